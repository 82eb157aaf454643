//! ASTM E1394 records (CLSI LIS02-A2): lines `H P O R C Q M S L`, each ended by CR, with the delimiters that their header names.
//!
//! [`Splitter`] finds records in text that arrives in pieces and keeps none of it; [`Record`] reads the fields of one. Nothing here
//! changes a byte of a message, and nothing depends on how the text was cut into frames.
//!
//! A header is `H`, then the delimiters of fields, repetitions, components and escapes (`H|\^&`, but also `H|@^\|`): E1394,
//! clause 6. Fields are counted from 1, the record's type. Devices end records with LF or CR LF as well.

use std::borrow::Cow;

/// Of a header so many bytes are looked at: it is known to have its field 14 within a few hundred.
pub const HEADER_BYTES_MAX: usize = 1024;
/// Longest control id that is read; a longer one is cut.
pub const CONTROL_ID_BYTES_MAX: usize = 128;
/// The field of the header that holds the message's own id, and the one that holds its time.
const HEADER_CONTROL_ID: usize = 3;
const HEADER_TIME: usize = 14;

/// What separates what in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delimiters {
    /// Between fields.
    pub field: u8,
    /// Between repetitions of a field.
    pub repeat: u8,
    /// Between components.
    pub component: u8,
    /// Around escapes.
    pub escape: u8,
}

impl Default for Delimiters {
    /// Those of the standard's examples.
    fn default() -> Self {
        Self { field: b'|', repeat: b'\\', component: b'^', escape: b'&' }
    }
}

impl Delimiters {
    /// Those that a header names; `None` when this is no header.
    pub fn of(header: &[u8]) -> Option<Self> {
        let [b'H', field, repeat, component, rest @ ..] = header else { return None };
        if ![field, repeat, component].into_iter().all(u8::is_ascii_punctuation) {
            return None;
        }
        // A device that has no escapes may leave theirs out.
        let escape = rest.first().copied().filter(u8::is_ascii_punctuation).unwrap_or(b'&');
        Some(Self { field: *field, repeat: *repeat, component: *component, escape })
    }
}

/// One record, without what ends it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    bytes: &'a [u8],
    delimiters: Delimiters,
}

impl<'a> Record<'a> {
    /// A record in a message with these delimiters.
    pub fn new(bytes: &'a [u8], delimiters: Delimiters) -> Self {
        Self { bytes, delimiters }
    }

    /// The type: `H`, `P`, `O`, `R`, `C`, `Q`, `M`, `S`, `L`, or what else is there; upper case.
    pub fn kind(&self) -> u8 {
        self.bytes.first().map_or(0, u8::to_ascii_uppercase)
    }

    /// A field as it was sent, from 1; empty when it is not there. Of a header, 2 are the delimiters.
    pub fn field(&self, number: usize) -> &'a [u8] {
        self.fields().nth(number.wrapping_sub(1)).unwrap_or_default()
    }

    /// All fields, the first is the type.
    pub fn fields(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        // The delimiters of a header may hold the one of fields: `H|@^\|` has two empty fields less than it seems.
        let bytes = self.bytes;
        let at = if self.kind() == b'H' { self.bytes.len().min(5) } else { 0 };
        let (head, rest) = bytes.split_at(at);
        let header = (at > 0).then(|| head.split_at(head.len().min(1)));
        let (kind, delimiters) = header.unwrap_or_default();
        let delimiters = delimiters.get(1..).unwrap_or_default();
        let field = self.delimiters.field;
        let rest = match rest.split_first() {
            Some((first, rest)) if at > 0 && *first == field => Some(rest),
            Some(_) => Some(rest),
            None => None,
        };
        let first = (at > 0).then_some([kind, delimiters]).into_iter().flatten();
        first.chain(rest.into_iter().flat_map(move |rest| rest.split(move |byte| *byte == field)))
    }

    /// The repetitions of a field.
    pub fn repetitions(&self, field: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let repeat = self.delimiters.repeat;
        field.split(move |byte| *byte == repeat)
    }

    /// The components of a field, or of one of its repetitions.
    pub fn components(&self, field: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let component = self.delimiters.component;
        field.split(move |byte| *byte == component)
    }

    /// A value with its escapes resolved: `&F&` field, `&S&` component, `&R&` repetition, `&E&` escape, `&Xhh..&` bytes. What is no
    /// escape stays as it is.
    pub fn unescaped(&self, value: &'a [u8]) -> Cow<'a, [u8]> {
        let escape = self.delimiters.escape;
        if !value.contains(&escape) {
            return Cow::Borrowed(value);
        }
        let (mut out, mut rest) = (Vec::with_capacity(value.len()), value);
        while let Some(at) = rest.iter().position(|byte| *byte == escape) {
            let (before, after) = rest.split_at(at);
            out.extend_from_slice(before);
            let inner = after.get(1..).unwrap_or_default();
            let close = inner.iter().position(|byte| *byte == escape);
            match close.and_then(|close| Some((self.resolved(inner.get(..close)?)?, inner.get(close + 1..)?))) {
                Some((bytes, behind)) => {
                    out.extend_from_slice(&bytes);
                    rest = behind;
                }
                None => {
                    out.push(escape);
                    rest = inner;
                }
            }
        }
        out.extend_from_slice(rest);
        Cow::Owned(out)
    }

    fn resolved(&self, name: &[u8]) -> Option<Vec<u8>> {
        let Delimiters { field, repeat, component, escape } = self.delimiters;
        match name {
            b"F" => Some(vec![field]),
            b"S" => Some(vec![component]),
            b"R" => Some(vec![repeat]),
            b"E" => Some(vec![escape]),
            [b'X', digits @ ..] => hexadecimal(digits),
            _ => None,
        }
    }
}

fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// The records of a whole message. Lines that are empty are left out.
pub fn records(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    message.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|record| !record.is_empty())
}

/// What tells a message from others of its device: the header's control id, else its time; `None` when it has neither. `header` are the
/// first bytes of the message.
pub fn control_id(header: &[u8]) -> Option<&[u8]> {
    let line = records(header).next()?;
    let record = Record::new(line, Delimiters::of(line)?);
    let id =
        [HEADER_CONTROL_ID, HEADER_TIME].map(|number| record.field(number)).into_iter().find(|id| !id.is_empty())?;
    id.get(..id.len().min(CONTROL_ID_BYTES_MAX))
}

/// Finds records in text that arrives in pieces. Holds none of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Splitter {
    /// The type of the record that has begun.
    kind: Option<u8>,
}

/// Some text of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// In the order of arrival, nothing left out. Never empty.
    pub bytes: &'a [u8],
    /// The record's type, upper case; 0 between records: line ends.
    pub kind: u8,
    /// The record begins with it.
    pub begins: bool,
    /// The record ends with it: the last byte is its CR or LF.
    pub ends: bool,
}

impl Splitter {
    /// In the middle of a record of this type, or between records.
    pub fn within(kind: Option<u8>) -> Self {
        Self { kind }
    }

    /// The type of the record that has begun and not ended.
    pub fn within_record(&self) -> Option<u8> {
        self.kind
    }

    /// The next piece of `input`, which moves on behind it. `None`: there is no more.
    pub fn pull<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        let first = *input.first()?;
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        if self.kind.is_none() && is_end(&first) {
            let length = input.iter().take_while(|byte| is_end(byte)).count();
            let (bytes, rest) = input.split_at(length);
            *input = rest;
            return Some(Piece { bytes, kind: 0, begins: false, ends: false });
        }
        let begins = self.kind.is_none();
        let kind = self.kind.unwrap_or(first.to_ascii_uppercase());
        let found = input.iter().position(is_end);
        let (bytes, rest) = input.split_at(found.map_or(input.len(), |at| at + 1));
        *input = rest;
        self.kind = found.is_none().then_some(kind);
        Some(Piece { bytes, kind, begins, ends: found.is_some() })
    }

    /// A frame that ends a record has ended: the type of the record that has no CR of its own, if there is one.
    pub fn end(&mut self) -> Option<u8> {
        self.kind.take()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(line: &[u8]) -> Vec<&[u8]> {
        Record::new(line, Delimiters::of(line).unwrap_or_default()).fields().collect()
    }

    #[test]
    fn the_header_names_the_delimiters_of_its_message() {
        let usual = Delimiters::of(br"H|\^&|||ABX").unwrap();
        assert_eq!(usual, Delimiters::default());
        let other = Delimiters::of(br"H|@^\|GX-1||GeneXpert").unwrap();
        assert_eq!((other.field, other.repeat, other.component, other.escape), (b'|', b'@', b'^', b'\\'));
        assert_eq!(Delimiters::of(b"H|\\^").unwrap().escape, b'&');
        for line in [&b"P|1"[..], b"", b"H", b"H|", b"HELLO", b"H 1^"] {
            assert_eq!(Delimiters::of(line), None);
        }
    }

    #[test]
    fn fields_are_counted_from_the_type_and_the_delimiters_of_a_header_are_one() {
        assert_eq!(fields(br"H|\^&|7||ABX")[..5], [&b"H"[..], br"\^&", b"7", b"", b"ABX"]);
        assert_eq!(fields(br"H|@^\|GX-1||GeneXpert")[2..5], [&b"GX-1"[..], b"", b"GeneXpert"]);
        assert_eq!(fields(b"R|1|^^^WBC|4.5|10*3/uL"), [&b"R"[..], b"1", b"^^^WBC", b"4.5", b"10*3/uL"]);
        assert_eq!((fields(b"L"), fields(br"H|\^&").len()), (vec![&b"L"[..]], 2));
        let record = Record::new(b"R|1|a^b\\c^d", Delimiters::default());
        let repeated: Vec<_> = record.repetitions(record.field(3)).collect();
        assert_eq!(repeated, [&b"a^b"[..], b"c^d"]);
        assert_eq!(record.components(repeated[1]).collect::<Vec<_>>(), [&b"c"[..], b"d"]);
        assert_eq!((record.field(0), record.field(9), record.kind()), (&b""[..], &b""[..], b'R'));
    }

    #[test]
    fn escapes_stand_for_the_delimiters_and_what_is_none_stays() {
        let record = Record::new(b"C", Delimiters::default());
        for (sent, meant) in [
            (&b"a&F&b&S&c&R&d&E&"[..], &b"a|b^c\\d&"[..]),
            (b"50 &X25&", b"50 %"),
            (b"AT&T", b"AT&T"),
            (b"&Q&&F&", b"&Q&|"),
            (b"&X2&", b"&X2&"),
            (b"&", b"&"),
        ] {
            assert_eq!(record.unescaped(sent), meant);
        }
    }

    #[test]
    fn a_message_is_known_by_its_control_id_or_else_by_its_time() {
        assert_eq!(control_id(b"H|\\^&|77||X|||||||P|1|20261122101500\rP|1\r"), Some(&b"77"[..]));
        assert_eq!(control_id(b"H|\\^&|||X||||||||1|20261122101500\r"), Some(&b"20261122101500"[..]));
        assert_eq!(control_id(b"H|\\^&\rL|1|N\r"), None);
        assert_eq!(control_id(b"no header"), None);
    }

    type Seen = Vec<(u8, Vec<u8>, bool)>;

    fn split<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Seen {
        let (mut splitter, mut seen) = (Splitter::default(), Seen::new());
        for mut input in chunks {
            while let Some(piece) = splitter.pull(&mut input) {
                match seen.last_mut() {
                    Some((kind, bytes, ended)) if *kind == piece.kind && !piece.begins && !*ended => {
                        bytes.extend_from_slice(piece.bytes);
                        *ended = piece.ends;
                    }
                    _ => seen.push((piece.kind, piece.bytes.to_vec(), piece.ends)),
                }
            }
        }
        seen
    }

    #[test]
    fn records_are_found_whatever_ends_them() {
        let seen = split(std::iter::once(&b"H|\\^&\r\nP|1\nl|1|N\r"[..]));
        let kinds: Vec<u8> = seen.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [b'H', 0, b'P', b'L']);
        let mut splitter = Splitter::default();
        assert!(!splitter.pull(&mut &b"L|1|N"[..]).unwrap().ends);
        assert_eq!((splitter.end(), splitter.end()), (Some(b'L'), None));
    }

    proptest! {
        #[test]
        fn records_are_the_same_however_the_text_was_cut(
            text in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'H'), Just(b'L'), any::<u8>()], 0..200),
            size in 1usize..20,
        ) {
            let whole = split(std::iter::once(&text[..]));
            prop_assert_eq!(&split(text.chunks(size)), &whole);
            let again: Vec<u8> = whole.into_iter().flat_map(|(_, bytes, _)| bytes).collect();
            prop_assert_eq!(again, text);
        }

        #[test]
        fn no_record_makes_the_reader_panic(line in prop::collection::vec(any::<u8>(), 0..80)) {
            let record = Record::new(&line, Delimiters::of(&line).unwrap_or_default());
            for field in record.fields() {
                for part in record.repetitions(field).flat_map(|part| record.components(part)) {
                    prop_assert!(record.unescaped(part).len() <= line.len());
                }
            }
            control_id(&line);
        }
    }
}
