//! HL7 v2 headers at byte level: MSH with the sender's own separators, batches, character sets (HL7 v2.5.1, 2.14.9; table 0211).
//!
//! Only the first segments of a body are ever looked at, nothing is copied, and no charset is assumed: fields are the sender's
//! bytes. It must never refuse a message for what lies behind its header, and never panic on a peer's bytes.

use memchr::memchr2;

/// How much of a body's beginning is looked at; a header that does not end within it is unreadable.
pub const HEADER_BYTES_MAX: usize = 16 << 10;

/// Segments of a batch (FHS, BHS) that may stand before the first MSH.
const BATCH_SEGMENTS_MAX: usize = 8;

/// The fields of MSH that are kept by their number; 20 (the alternate character set handling) is the last.
const FIELDS: usize = 21;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a body has no header that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The body does not begin with MSH, FHS or BHS.
    #[error("it does not begin with MSH, FHS or BHS")]
    Missing,
    /// The byte after `MSH` can't be a field separator.
    #[error("the byte after MSH is not a field separator")]
    Separator,
    /// The header segment does not end within [`HEADER_BYTES_MAX`].
    #[error("the header segment is too long")]
    TooLong,
}

/// The separators that a message declares in its first two fields (HL7 v2.5.1, 2.5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Separators {
    /// Between fields, `|`.
    pub field: u8,
    /// Between components, `^`.
    pub component: u8,
    /// Between repetitions, `~`.
    pub repetition: u8,
    /// Before an escape, `\`.
    pub escape: u8,
    /// Between subcomponents, `&`.
    pub subcomponent: u8,
}

impl Separators {
    /// Those that nearly everybody uses.
    pub const USUAL: Self = Self { field: b'|', component: b'^', repetition: b'~', escape: b'\\', subcomponent: b'&' };

    /// From MSH-1 and MSH-2; what a short MSH-2 leaves out is as usual, and so is what can't separate: a control character is
    /// no separator, least of all one of MLLP's, which an answer would be cut by.
    fn declared(field: u8, encoding: &[u8]) -> Self {
        let nth = |index: usize, usual: u8| match encoding.get(index) {
            Some(byte) if !byte.is_ascii_control() => *byte,
            _ => usual,
        };
        Self {
            field,
            component: nth(0, Self::USUAL.component),
            repetition: nth(1, Self::USUAL.repetition),
            escape: nth(2, Self::USUAL.escape),
            subcomponent: nth(3, Self::USUAL.subcomponent),
        }
    }

    /// Whether `byte` has a meaning of its own in this message.
    pub fn contains(&self, byte: u8) -> bool {
        [self.field, self.component, self.repetition, self.escape, self.subcomponent].contains(&byte)
    }
}

/// A message's header: MSH, or the FHS or BHS of a batch that holds no message.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    separators: Separators,
    fields: [&'a [u8]; FIELDS],
    batch: bool,
}

impl<'a> Header<'a> {
    /// Reads the header at the beginning of a body, of which `head` is the first [`HEADER_BYTES_MAX`] bytes (or all).
    ///
    /// A byte order mark and white space before it are skipped. In a batch it is the first message's, so that the answer names
    /// that message; a batch without a message is named by its own control id (BHS-11, FHS-11).
    ///
    /// # Errors
    /// [`HeaderError`]; the message is stored all the same and rejected.
    pub fn read(head: &'a [u8]) -> Result<Self, HeaderError> {
        let found = Found::within(head)?;
        let segment = found.segment;
        let separators = Separators::declared(found.field, field_of(segment, found.field, 1));
        let mut fields: [&[u8]; FIELDS] = [&[]; FIELDS];
        let pieces = segment.split(|byte| *byte == found.field);
        // MSH-1 is the separator itself, so that the pieces are MSH, MSH-2, MSH-3 and so on.
        for (field, piece) in fields.iter_mut().skip(1).zip(pieces) {
            *field = piece;
        }
        if !segment.starts_with(b"MSH") {
            let control_id = fields[11];
            fields[7..].fill(&[]);
            fields[10] = control_id;
        }
        Ok(Self { separators, fields, batch: found.batch })
    }

    /// What stands for the header of a message that has none: the usual separators and empty fields.
    pub fn none() -> Self {
        let mut fields: [&[u8]; FIELDS] = [&[]; FIELDS];
        fields[2] = br"^~\&";
        Self { separators: Separators::USUAL, fields, batch: false }
    }

    /// The sender's separators.
    pub fn separators(&self) -> &Separators {
        &self.separators
    }

    /// Whether the body is a batch (FHS or BHS).
    pub fn is_batch(&self) -> bool {
        self.batch
    }

    /// MSH-`number` as it stands there, for 2 to 20; empty when it is not there.
    pub fn field(&self, number: usize) -> &'a [u8] {
        if number < 2 { &[] } else { self.fields.get(number).copied().unwrap_or_default() }
    }

    /// MSH-10, verbatim.
    pub fn control_id(&self) -> &'a [u8] {
        self.field(10)
    }

    /// MSH-9.1: `ORU`.
    pub fn message_type(&self) -> &'a [u8] {
        self.component(9, 0)
    }

    /// MSH-9.2: `R01`.
    pub fn trigger(&self) -> &'a [u8] {
        self.component(9, 1)
    }

    /// MSH-12.1 as numbers: `(2, 5)` for `2.5.1`.
    pub fn version(&self) -> Option<(u8, u8)> {
        let mut parts = std::str::from_utf8(self.component(12, 0)).ok()?.trim().split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next().map_or(Some(0), |part| part.parse().ok())?;
        Some((major, minor))
    }

    /// MSH-18 as an IANA charset name, when the sender gave one that is known.
    pub fn charset(&self) -> Option<&'static str> {
        let mut names = self.field(18).split(|byte| *byte == self.separators.repetition);
        let first = names.next().and_then(charset);
        // Any repetition that switches to kanji makes the whole text ISO 2022 (HL7 v2.5.1, 2.15.9.18).
        let switched = names.filter_map(charset).find(|name| name.starts_with("iso-2022"));
        switched.or(first)
    }

    fn component(&self, number: usize, index: usize) -> &'a [u8] {
        self.field(number).split(|byte| *byte == self.separators.component).nth(index).unwrap_or_default()
    }
}

/// The IANA name for a name of table 0211, or for the names that devices write instead.
pub fn charset(name: &[u8]) -> Option<&'static str> {
    let name = name.trim_ascii();
    CHARSETS.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name)).map(|(_, iana)| *iana)
}

const CHARSETS: [(&str, &str); 47] = [
    ("ASCII", "us-ascii"),
    ("US-ASCII", "us-ascii"),
    ("ISO IR6", "us-ascii"),
    ("8859/1", "iso-8859-1"),
    ("8859/2", "iso-8859-2"),
    ("8859/3", "iso-8859-3"),
    ("8859/4", "iso-8859-4"),
    ("8859/5", "iso-8859-5"),
    ("8859/6", "iso-8859-6"),
    ("8859/7", "iso-8859-7"),
    ("8859/8", "iso-8859-8"),
    ("8859/9", "iso-8859-9"),
    ("8859/15", "iso-8859-15"),
    ("ISO-8859-1", "iso-8859-1"),
    ("ISO8859-1", "iso-8859-1"),
    ("ISO 8859-1", "iso-8859-1"),
    ("ISO_8859-1", "iso-8859-1"),
    ("LATIN1", "iso-8859-1"),
    ("ISO-8859-2", "iso-8859-2"),
    ("ISO-8859-5", "iso-8859-5"),
    ("ISO-8859-7", "iso-8859-7"),
    ("ISO-8859-9", "iso-8859-9"),
    ("ISO-8859-15", "iso-8859-15"),
    ("WINDOWS-1250", "windows-1250"),
    ("WINDOWS-1251", "windows-1251"),
    ("WINDOWS-1252", "windows-1252"),
    ("CP1252", "windows-1252"),
    ("UNICODE UTF-8", "utf-8"),
    ("UTF-8", "utf-8"),
    ("UTF8", "utf-8"),
    ("UNICODE UTF8", "utf-8"),
    ("ISO IR192", "utf-8"),
    ("UNICODE UTF-16", "utf-16"),
    ("UNICODE UTF-32", "utf-32"),
    ("ISO IR14", "jis_x0201"),
    ("ISO IR87", "iso-2022-jp"),
    ("ISO IR159", "iso-2022-jp-2"),
    ("ISO-2022-JP", "iso-2022-jp"),
    ("SHIFT-JIS", "shift_jis"),
    ("SHIFT_JIS", "shift_jis"),
    ("SJIS", "shift_jis"),
    ("EUC-JP", "euc-jp"),
    ("GB 18030-2000", "gb18030"),
    ("GB18030", "gb18030"),
    ("KS X 1001", "euc-kr"),
    ("BIG-5", "big5"),
    ("BIG5", "big5"),
];

/// A body whose first message asks for an accept acknowledgement and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// What stands in place of the first `consumed` bytes of the body.
    pub head: Vec<u8>,
    /// Bytes of the body that `head` replaces; all behind them is unchanged.
    pub consumed: usize,
}

/// Sets MSH-15 to `AL` and MSH-16 to `NE` in the first message of a body, of which `head` is the first [`HEADER_BYTES_MAX`] bytes
/// (or all), and leaves every other byte as it is.
///
/// # Errors
/// [`HeaderError`] when there is no header; [`HeaderError::Missing`] also for a batch without a message.
pub fn ask_accept_only(head: &[u8]) -> Result<Rewritten, HeaderError> {
    let found = Found::within(head)?;
    if !found.segment.starts_with(b"MSH") {
        return Err(HeaderError::Missing);
    }
    let consumed = found.start + found.segment.len();
    let mut out = Vec::with_capacity(consumed + 16);
    out.extend_from_slice(head.get(..found.start).unwrap_or_default());
    let mut pieces = found.segment.split(|byte| *byte == found.field);
    // Piece 0 is "MSH", piece n is MSH-(n+1).
    for number in 1.. {
        let piece = pieces.next();
        let field = match number {
            15 => b"AL",
            16 => b"NE",
            _ => match piece {
                Some(piece) => piece,
                None if number < 15 => b"",
                None => break,
            },
        };
        if number > 1 {
            out.push(found.field);
        }
        out.extend_from_slice(field);
    }
    Ok(Rewritten { head: out, consumed })
}

/// The segments of a body, one after the other, without their ends (CR, LF or CRLF); blank ones are left out.
pub(super) fn segments(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|segment| !segment.is_empty())
}

/// Field `number` of a segment other than MSH (the name is 0).
pub(super) fn field_of(segment: &[u8], separator: u8, number: usize) -> &[u8] {
    segment.split(|byte| *byte == separator).nth(number).unwrap_or_default()
}

/// The header segment: the first MSH, or the last of FHS and BHS when no MSH follows.
struct Found<'a> {
    segment: &'a [u8],
    /// Where it begins in the body.
    start: usize,
    /// Its field separator.
    field: u8,
    batch: bool,
}

impl<'a> Found<'a> {
    fn within(head: &'a [u8]) -> Result<Self, HeaderError> {
        let cut = head.len() >= HEADER_BYTES_MAX;
        let head = head.get(..HEADER_BYTES_MAX).unwrap_or(head);
        let mut found: Result<Self, HeaderError> = Err(HeaderError::Missing);
        let mut start = 0;
        for _ in 0..=BATCH_SEGMENTS_MAX {
            start += leading(head.get(start..).unwrap_or_default());
            let rest = head.get(start..).unwrap_or_default();
            let batch = rest.starts_with(b"FHS") || rest.starts_with(b"BHS");
            if !batch && !rest.starts_with(b"MSH") {
                break;
            }
            let field = rest.get(3).copied().ok_or(HeaderError::Separator)?;
            if !field.is_ascii_punctuation() {
                return Err(HeaderError::Separator);
            }
            let length = match memchr2(b'\r', b'\n', rest) {
                Some(length) => length,
                None if cut => return Err(HeaderError::TooLong),
                None => rest.len(),
            };
            let segment = rest.get(..length).unwrap_or_default();
            let within_batch = found.is_ok();
            found = Ok(Self { segment, start, field, batch: batch || within_batch });
            if !batch {
                break;
            }
            start += length;
        }
        found
    }
}

/// Length of the white space and byte order marks at the beginning.
fn leading(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    loop {
        rest = match rest.split_first() {
            Some((b' ' | b'\t' | b'\r' | b'\n' | 0, after)) => after,
            _ => match rest.strip_prefix(BYTE_ORDER_MARK) {
                Some(after) => after,
                None => return bytes.len() - rest.len(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONITOR: &[u8] = b"MSH|^~\\&|MINDRAY^00A037^EUI-64|ICU|WG|HOSP|20190929092150000||ORU^R01^ORU_R01|1914|P|2.6|||AL|NE||UNICODE UTF-8|||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376\rPID|||1\r";

    fn read(body: &[u8]) -> Header<'_> {
        Header::read(body).unwrap()
    }

    #[test]
    fn a_monitors_header_is_read_field_by_field() {
        let header = read(MONITOR);
        assert_eq!(header.field(3), b"MINDRAY^00A037^EUI-64");
        assert_eq!(header.field(6), b"HOSP");
        assert_eq!((header.message_type(), header.trigger()), (&b"ORU"[..], &b"R01"[..]));
        assert_eq!(header.control_id(), b"1914");
        assert_eq!((header.field(11), header.version()), (&b"P"[..], Some((2, 6))));
        assert_eq!((header.field(15), header.field(16)), (&b"AL"[..], &b"NE"[..]));
        assert_eq!(header.charset(), Some("utf-8"));
        assert_eq!((header.field(0), header.field(1), header.field(99)), (&b""[..], &b""[..], &b""[..]));
        assert!(!header.is_batch());
    }

    #[test]
    fn the_senders_own_separators_count() {
        let odd = read(b"MSH!@~\\&!A!B!C!D!!!ADT@A01!id|7^!P!2.3\r");
        assert_eq!((odd.message_type(), odd.trigger(), odd.control_id()), (&b"ADT"[..], &b"A01"[..], &b"id|7^"[..]));
        let truncation = read(b"MSH|^~\\&#|A|B|C|D|||ADT^A01|77|P|2.7\r");
        assert_eq!(
            (truncation.field(2), truncation.field(3), truncation.control_id()),
            (&br"^~\&#"[..], &b"A"[..], &b"77"[..])
        );
        let short = read(b"MSH|^~|A|B|C|D|||ADT^A01|77|P|2.1\r");
        assert_eq!((short.separators().subcomponent, short.control_id()), (b'&', &b"77"[..]));
    }

    #[test]
    fn byte_order_marks_white_space_and_any_segment_end_are_tolerated() {
        for body in [
            &b"\xef\xbb\xbfMSH|^~\\&|A|B|C|D|||ORU^R01|9|P|2.5\rPID|x"[..],
            b"\r\n MSH|^~\\&|A|B|C|D|||ORU^R01|9|P|2.5\nPID|x",
            b"MSH|^~\\&|A|B|C|D|||ORU^R01|9|P|2.5\r\nPID|x",
            b"\0\xef\xbb\xbf\rMSH|^~\\&|A|B|C|D|||ORU^R01|9|P|2.5",
        ] {
            let header = read(body);
            assert_eq!((header.control_id(), header.field(12)), (&b"9"[..], &b"2.5"[..]));
        }
    }

    #[test]
    fn a_batch_is_named_by_its_first_message_or_by_its_own_id() {
        let batch = read(b"FHS|^~\\&|F\rBHS|^~\\&|B|B2||||||||B77\r\nMSH|^~\\&|A||||||ORU^R01|M1|P|2.4\rMSH|^~\\&|A||||||ORU^R01|M2\r");
        assert!(batch.is_batch());
        assert_eq!((batch.control_id(), batch.field(3)), (&b"M1"[..], &b"A"[..]));
        let empty = read(b"BHS|^~\\&|B|B2|||||name|comment|B77\rBTS|0\r");
        assert!(empty.is_batch());
        assert_eq!((empty.control_id(), empty.field(3), empty.message_type()), (&b"B77"[..], &b"B"[..], &b""[..]));
    }

    #[test]
    fn what_has_no_header_says_why() {
        let why = |body: &[u8]| Header::read(body).map(|_| ()).unwrap_err();
        assert_eq!(why(b""), HeaderError::Missing);
        assert_eq!(why(b"PID|1\rMSH|^~\\&|"), HeaderError::Missing);
        assert_eq!(why(b"MSH"), HeaderError::Separator);
        assert_eq!(why(b"MSHX^~"), HeaderError::Separator);
        assert_eq!(why(b"MSH\r"), HeaderError::Separator);
        let mut long = b"MSH|^~\\&|".to_vec();
        long.resize(HEADER_BYTES_MAX + 9, b'x');
        assert_eq!(why(&long), HeaderError::TooLong);
    }

    #[test]
    fn table_0211_names_become_iana_names() {
        for (field, iana) in [
            ("UNICODE UTF-8", Some("utf-8")),
            ("8859/1", Some("iso-8859-1")),
            ("ASCII", Some("us-ascii")),
            ("~ISO IR87", Some("iso-2022-jp")),
            ("ASCII~ISO IR87", Some("iso-2022-jp")),
            ("8859/1~8859/5", Some("iso-8859-1")),
            ("", None),
            ("KLINGON", None),
        ] {
            let body = format!("MSH|^~\\&|A||||||ORU^R01|1|P|2.5||||||{field}\r");
            assert_eq!(read(body.as_bytes()).charset(), iana, "{field}");
        }
    }

    #[test]
    fn a_rewritten_header_differs_in_msh_15_and_16_only() {
        let rewritten = |body: &[u8]| {
            let new = ask_accept_only(body).unwrap();
            [&new.head[..], &body[new.consumed..]].concat()
        };
        let all = b"\xef\xbb\xbfMSH|^~\\&|A|B|C|D|t|s|ORU^R01|1|P|2.5|13|14|NE|AL|DEU|8859/1\rPID|1\r";
        assert_eq!(
            rewritten(all),
            b"\xef\xbb\xbfMSH|^~\\&|A|B|C|D|t|s|ORU^R01|1|P|2.5|13|14|AL|NE|DEU|8859/1\rPID|1\r"
        );
        assert_eq!(
            rewritten(b"MSH!^~\\&!A!!!!!!ORU^R01!1!P!2.5\nPID"),
            b"MSH!^~\\&!A!!!!!!ORU^R01!1!P!2.5!!!AL!NE\nPID"
        );
        assert_eq!(rewritten(b"MSH|^~\\&|A||||||X|1|P|2.5|||NE\r"), b"MSH|^~\\&|A||||||X|1|P|2.5|||AL|NE\r");
        assert_eq!(
            rewritten(b"FHS|^~\\&\rMSH|^~\\&|A||||||X|1|P|2.5\r\nPID|"),
            b"FHS|^~\\&\rMSH|^~\\&|A||||||X|1|P|2.5|||AL|NE\r\nPID|"
        );
        assert_eq!(ask_accept_only(b"PID|1"), Err(HeaderError::Missing));
    }

    #[test]
    fn a_second_opinion_agrees_on_ordinary_headers() {
        let text = std::str::from_utf8(MONITOR).unwrap();
        let other = hl7_parser::Message::parse(text).unwrap();
        let msh = other.segment("MSH").unwrap();
        let ours = read(MONITOR);
        for number in 3..=20 {
            let theirs = msh.field(number).map_or("", |field| field.raw_value());
            assert_eq!(ours.field(number), theirs.as_bytes(), "MSH-{number}");
        }
    }
}
