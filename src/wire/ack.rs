//! HL7 v2 acknowledgements: writing one to a message's header, reading one from a peer (HL7 v2.5.1, 2.9.2, 2.14.8; tables 0008, 0357).
//!
//! All on raw bytes with the sender's own separators and charset, since what is echoed must be what was sent. An acknowledgement
//! never holds a byte that could end its MLLP frame, and nothing of a message but header fields.

use super::hl7::{Header, HeaderError, field_of, segments};
use super::mllp::{FS, VT};

/// Longest MSH-10 that is answered; HL7 allows 20, from version 2.7 on 199.
pub const CONTROL_ID_BYTES_MAX: usize = 1024;

/// How much of an acknowledgement is looked at by [`Acknowledgement::read`]'s callers: MSH, MSA and an ERR or two.
pub const ACKNOWLEDGEMENT_BYTES_MAX: u64 = 256 << 10;

/// Table 0008: what became of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Application accept (original mode: the receiver took it).
    Aa,
    /// Application error: may be tried again.
    Ae,
    /// Application reject: trying again is of no use.
    Ar,
    /// Commit accept (enhanced mode): on safe storage.
    Ca,
    /// Commit error.
    Ce,
    /// Commit reject.
    Cr,
}

impl Code {
    const ALL: [Self; 6] = [Self::Aa, Self::Ae, Self::Ar, Self::Ca, Self::Ce, Self::Cr];

    /// As it stands in MSA-1.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aa => "AA",
            Self::Ae => "AE",
            Self::Ar => "AR",
            Self::Ca => "CA",
            Self::Ce => "CE",
            Self::Cr => "CR",
        }
    }

    /// Whether the message was taken.
    pub fn is_positive(self) -> bool {
        matches!(self, Self::Aa | Self::Ca)
    }
}

/// Why a message is not accepted, in the words that its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The storage is full or has failed.
    CannotStore,
    /// No header that can be read.
    NoHeader,
    /// MSH-10 is empty, too long or holds a framing byte.
    NoControlId,
    /// Bytes of the message may have been lost in the framing.
    BytesLost,
    /// Larger than the limit.
    TooLarge,
}

impl Fault {
    /// A sentence for the log and the sender.
    pub fn text(self) -> &'static str {
        self.words().2
    }

    /// Code and name of table 0357, the place (ERR-2) and a sentence. Only letters and spaces: no message's separators.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::CannotStore => ("207", "Application internal error", "The message can not be stored now"),
            Self::NoHeader => ("100", "Segment sequence error", "The message has no MSH that can be read"),
            Self::NoControlId => ("101", "Required field missing", "The message has no control id that can be echoed"),
            Self::BytesLost => ("100", "Segment sequence error", "The framing was broken and bytes were lost"),
            Self::TooLarge => ("207", "Application internal error", "The message is larger than the limit"),
        }
    }
}

/// What is said to the sender.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// MSA-1.
    pub code: Code,
    /// MSH-7 of the acknowledgement: `20260131120000+0000`.
    pub time: &'a str,
    /// MSH-10 of the acknowledgement: letters and digits, unique.
    pub control_id: &'a str,
    /// Why not, unless the code is positive.
    pub fault: Option<Fault>,
}

/// Whether the header's MSH-10 can be given back verbatim in MSA-2.
pub fn is_correlatable(header: &Header<'_>) -> bool {
    let id = header.control_id();
    (1..=CONTROL_ID_BYTES_MAX).contains(&id.len()) && echo(id) == id
}

/// Writes the acknowledgement's segments (without MLLP framing) at the end of `out`.
///
/// MSH-3/4 and 5/6 are swapped, MSH-9 is `ACK^trigger^ACK`, MSH-2, 11, 12 and 18 are the sender's, MSA-2 is its MSH-10 verbatim.
/// A fault is told in MSA-3, and from version 2.5 on in an ERR segment.
pub fn write(header: &Header<'_>, answer: &Answer<'_>, out: &mut Vec<u8>) {
    let (field, component) = (header.separators().field, header.separators().component);
    let id = if is_correlatable(header) { header.control_id() } else { b"" };
    let trigger = echo(header.trigger());
    let kind = if trigger.is_empty() {
        b"ACK".to_vec()
    } else {
        [b"ACK", &[component][..], trigger, &[component], b"ACK"].concat()
    };
    let echoed = |number| echo(header.field(number));
    segment(
        out,
        field,
        &[
            b"MSH",
            echoed(2),
            echoed(5),
            echoed(6),
            echoed(3),
            echoed(4),
            ours(answer.time, header),
            b"",
            &kind,
            answer.control_id.as_bytes(),
            echoed(11),
            echoed(12),
            b"",
            b"",
            b"",
            b"",
            b"",
            echoed(18),
        ],
    );
    let Some((code, name, text)) = answer.fault.map(Fault::words) else {
        return segment(out, field, &[b"MSA", answer.code.as_str().as_bytes(), id]);
    };
    segment(out, field, &[b"MSA", answer.code.as_str().as_bytes(), id, text.as_bytes()]);
    if header.version().is_some_and(|version| version >= (2, 5)) {
        let coded = [code.as_bytes(), name.as_bytes(), b"HL70357"].join(&component);
        let place = match answer.fault {
            Some(Fault::NoControlId) => [&b"MSH"[..], b"1", b"10"].join(&component),
            _ => Vec::new(),
        };
        segment(out, field, &[b"ERR", b"", &place, &coded, b"E", b"", b"", b"", text.as_bytes()]);
    }
}

/// An acknowledgement that a peer sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement<'a> {
    /// MSA-1.
    pub code: Code,
    /// MSA-2: MSH-10 of the message that it is about.
    pub control_id: &'a [u8],
    /// MSA-3, or ERR-8 or ERR-3 where MSA-3 is empty. The peer's words: may hold patient data, so never logged.
    pub text: &'a [u8],
}

/// Shows the code only.
impl std::fmt::Debug for Acknowledgement<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Acknowledgement({})", self.code.as_str())
    }
}

/// Why a body is not an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AcknowledgementError {
    /// It has no header.
    #[error("the answer has no header: {0}")]
    Header(#[from] HeaderError),
    /// It has no MSA segment: not an answer, but a message.
    #[error("the answer has no MSA segment")]
    NoMsa,
    /// MSA-1 is not in table 0008.
    #[error("the answer's MSA-1 is none of AA, AE, AR, CA, CE, CR")]
    Code,
}

impl<'a> Acknowledgement<'a> {
    /// Reads an acknowledgement, with its own separators.
    ///
    /// # Errors
    /// [`AcknowledgementError`].
    pub fn read(body: &'a [u8]) -> Result<Self, AcknowledgementError> {
        let field = Header::read(body)?.separators().field;
        let named = |name: [u8; 3]| {
            let mut all = segments(body);
            all.find(|segment| segment.strip_prefix(&name).is_some_and(|rest| rest.first().is_none_or(|b| *b == field)))
        };
        let msa = named(*b"MSA").ok_or(AcknowledgementError::NoMsa)?;
        let code = field_of(msa, field, 1).trim_ascii();
        let code = Code::ALL.into_iter().find(|known| known.as_str().as_bytes().eq_ignore_ascii_case(code));
        let err = named(*b"ERR").unwrap_or_default();
        let texts = [field_of(msa, field, 3), field_of(err, field, 8), field_of(err, field, 3)];
        let text = texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
        Ok(Self { code: code.ok_or(AcknowledgementError::Code)?, control_id: field_of(msa, field, 2), text })
    }
}

/// A field as it may be given back: one that holds a framing byte is left empty, since it would break our frame.
fn echo(field: &[u8]) -> &[u8] {
    if memchr::memchr2(VT, FS, field).is_some() { b"" } else { field }
}

/// Our own text, left out where the sender's separators would cut it to pieces.
fn ours<'a>(text: &'a str, header: &Header<'_>) -> &'a [u8] {
    if text.bytes().any(|byte| header.separators().contains(byte)) { b"" } else { text.as_bytes() }
}

fn segment(out: &mut Vec<u8>, separator: u8, fields: &[&[u8]]) {
    let used = fields.iter().rposition(|field| !field.is_empty()).map_or(0, |last| last + 1);
    for (index, field) in fields.iter().take(used).enumerate() {
        if index > 0 {
            out.push(separator);
        }
        out.extend_from_slice(field);
    }
    out.push(b'\r');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(body: &[u8], code: Code, fault: Option<Fault>) -> String {
        let header = Header::read(body).unwrap_or_else(|_| Header::none());
        let mut out = Vec::new();
        write(&header, &Answer { code, time: "20260131120000+0000", control_id: "WG7", fault }, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_acknowledgement_swaps_the_parties_and_echoes_the_rest() {
        let body = b"MSH|^~\\&|DEV|WARD|WG|HOSP|2026||ORU^R01^ORU_R01|000042|P^T|2.6|||AL|NE||8859/1\rPID|1\r";
        assert_eq!(
            written(body, Code::Ca, None),
            "MSH|^~\\&|WG|HOSP|DEV|WARD|20260131120000+0000||ACK^R01^ACK|WG7|P^T|2.6||||||8859/1\rMSA|CA|000042\r"
        );
    }

    #[test]
    fn the_senders_separators_and_odd_control_ids_come_back_verbatim() {
        let body = b"MSH#*~\\&$#A#B#C#D###ADT*A01# id|^ #P#2.7\r";
        assert_eq!(
            written(body, Code::Aa, None),
            "MSH#*~\\&$#C#D#A#B#20260131120000+0000##ACK*A01*ACK#WG7#P#2.7\rMSA#AA# id|^ \r"
        );
    }

    #[test]
    fn a_message_type_without_trigger_is_answered_with_a_bare_ack() {
        assert!(written(b"MSH|^~\\&|A||||||ORU|1|P|2.1\r", Code::Aa, None).contains("||ACK|WG7|P|2.1\r"));
    }

    #[test]
    fn from_2_5_on_a_fault_has_an_err_segment() {
        let new = b"MSH|^~\\&|A||||||ORU^R01||P|2.5.1\r";
        assert_eq!(
            written(new, Code::Ar, Some(Fault::NoControlId)),
            "MSH|^~\\&|||A||20260131120000+0000||ACK^R01^ACK|WG7|P|2.5.1\r\
             MSA|AR||The message has no control id that can be echoed\r\
             ERR||MSH^1^10|101^Required field missing^HL70357|E||||The message has no control id that can be echoed\r"
        );
        let old = b"MSH|^~\\&|A||||||ORU^R01|5|P|2.4\r";
        assert!(
            written(old, Code::Ae, Some(Fault::CannotStore)).ends_with("MSA|AE|5|The message can not be stored now\r")
        );
    }

    #[test]
    fn what_has_no_header_gets_an_answer_all_the_same() {
        assert_eq!(
            written(b"garbage", Code::Ar, Some(Fault::NoHeader)),
            "MSH|^~\\&|||||20260131120000+0000||ACK|WG7\rMSA|AR||The message has no MSH that can be read\r"
        );
    }

    #[test]
    fn framing_bytes_in_a_header_never_come_back() {
        let body = b"MSH|^~\\&|A\x0b||||||ORU^R\x1c1|7\x1c|P|2.5||||||8859/1\x1c\r";
        assert!(!is_correlatable(&Header::read(body).unwrap()));
        let out = written(body, Code::Ar, Some(Fault::NoControlId));
        assert!(!out.contains(['\x0b', '\x1c']), "{out:?}");
        let separators =
            written(b"MSH|\x1c\x0b\\&|A||||||ORU\x1cR01^R01|7|P|2.5\r", Code::Ar, Some(Fault::NoControlId));
        assert!(!separators.contains(['\x0b', '\x1c']), "{separators:?}");
    }

    #[test]
    fn a_time_that_the_separators_would_cut_is_left_out() {
        assert!(
            written(b"MSH|+~\\&|A||||||ORU+R01|7|P|2.3\r", Code::Aa, None)
                .starts_with("MSH|+~\\&|||A||||ACK+R01+ACK|WG7|")
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        for code in Code::ALL {
            let out = written(b"MSH!^~\\&!A!!!!!!ORU^R01!x 9!P!2.5\r", code, None);
            let read = Acknowledgement::read(out.as_bytes()).unwrap();
            assert_eq!((read.code, read.control_id, read.text), (code, &b"x 9"[..], &b""[..]));
        }
    }

    #[test]
    fn a_peers_acknowledgement_is_read_with_its_own_separators() {
        let read = |body| Acknowledgement::read(body).map(|ack| (ack.code, ack.control_id, ack.text));
        let body = b"\xef\xbb\xbf\nMSH@^~\\&@X\nMSA@ae@77@no bed\nERR@@@207";
        assert_eq!(read(body), Ok((Code::Ae, &b"77"[..], &b"no bed"[..])));
        let in_err = b"MSH|^~\\&|X\r\nMSA|AR|77\r\nERR||PID^1|101^Missing|E||||in words\r\n";
        assert_eq!(read(in_err), Ok((Code::Ar, &b"77"[..], &b"in words"[..])));
        assert_eq!(read(b"MSH|^~\\&|X\rMSA|CA\r"), Ok((Code::Ca, &b""[..], &b""[..])));
        assert_eq!(read(b"MSH|^~\\&|X\rPID|1\r"), Err(AcknowledgementError::NoMsa));
        assert_eq!(read(b"MSH|^~\\&|X\rMSA|OK|1\r"), Err(AcknowledgementError::Code));
        assert_eq!(read(b"OK"), Err(AcknowledgementError::Header(HeaderError::Missing)));
    }

    #[test]
    fn an_acknowledgement_never_prints_the_peers_words() {
        let ack = Acknowledgement::read(b"MSH|^~\\&|X\rMSA|AE|SECRET|SECRET\r").unwrap();
        assert!(!format!("{ack:?}").contains("SECRET"));
    }
}
