//! What a file of results looks like, by its first bytes: ASTM, HL7 v2, CSV, other text, or none of these.
//!
//! A guess for a label, and never a reason to refuse a file. E1394/LIS02-A2 section 6 for the header record, HL7 v2.5.1 section 2.14.9,
//! RFC 4180 for comma-separated values (semicolons and tabs, too).

use super::hl7;

/// How much of a file's beginning is looked at.
pub const HEAD_BYTES_MAX: usize = hl7::HEADER_BYTES_MAX;

/// Lines of which the separators are counted.
const LINES_COUNTED: usize = 8;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const START_OF_TEXT: u8 = 0x02;
const ENQUIRY: u8 = 0x05;
const VERTICAL_TAB: u8 = 0x0b;

/// What a file seems to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// ASTM E1394 records.
    Astm,
    /// The same in the frames of E1381, as they went over a line.
    AstmFrames,
    /// HL7 v2, also batches.
    Hl7,
    /// Lines of equally many values.
    Csv,
    /// Other text.
    Text,
    /// Anything else.
    Bytes,
}

impl Kind {
    /// The media type. ASTM has none that is registered: that of records is the one that the astm source gives them.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Astm => "application/vnd.wardgate.astm",
            Self::AstmFrames => "application/vnd.wardgate.astm-frames",
            Self::Hl7 => "application/hl7-v2",
            Self::Csv => "text/csv",
            Self::Text => "text/plain",
            Self::Bytes => "application/octet-stream",
        }
    }
}

/// Guesses by `head`, the first [`HEAD_BYTES_MAX`] bytes (or all).
pub fn look(head: &[u8]) -> Kind {
    let head = head.get(..HEAD_BYTES_MAX).unwrap_or(head);
    let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head);
    let framed = text.strip_prefix(&[VERTICAL_TAB]).unwrap_or(text).trim_ascii_start();
    if ["MSH", "FHS", "BHS"].iter().any(|name| is_segment(framed, name.as_bytes())) {
        Kind::Hl7
    } else if is_astm(text.trim_ascii_start()) {
        Kind::Astm
    } else if is_framed_astm(text.trim_ascii_start()) {
        Kind::AstmFrames
    } else if !text.iter().all(|byte| is_text(*byte)) || text.is_empty() {
        Kind::Bytes
    } else if is_csv(text) {
        Kind::Csv
    } else {
        Kind::Text
    }
}

fn is_segment(bytes: &[u8], name: &[u8]) -> bool {
    bytes.strip_prefix(name).and_then(<[u8]>::first).is_some_and(u8::is_ascii_punctuation)
}

/// ENQ, or STX and a digit, before the header record.
fn is_framed_astm(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(&[ENQUIRY]).unwrap_or(bytes).trim_ascii_start();
    match bytes {
        [START_OF_TEXT, b'0'..=b'7', record @ ..] => is_astm(record),
        _ => is_astm(bytes),
    }
}

/// A header record declares its delimiters: `H|\^&|`, with others `H@^\|`.
fn is_astm(record: &[u8]) -> bool {
    let [b'H', field, repeat, component, escape, rest @ ..] = record else { return false };
    let four = [field, repeat, component, escape];
    let apart = four.iter().enumerate().all(|(index, one)| !four.iter().skip(index + 1).any(|other| other == one));
    // Behind them comes the next field, or the end of the record.
    let ends = rest.first().is_none_or(|byte| byte == field || byte.is_ascii_control());
    apart && ends && four.iter().all(|byte| byte.is_ascii_punctuation())
}

/// Any charset that extends ASCII; control characters are none of its text, but for those that lay out lines.
fn is_text(byte: u8) -> bool {
    !byte.is_ascii_control() || matches!(byte, b'\t' | b'\r' | b'\n' | 0x0c)
}

/// Two lines or more with the same number of one separator; or a single line with two or more.
fn is_csv(text: &[u8]) -> bool {
    let whole = text.len() < HEAD_BYTES_MAX;
    let mut lines: Vec<&[u8]> = text.split(|byte| matches!(byte, b'\r' | b'\n')).collect();
    if !whole {
        lines.pop();
    }
    lines.retain(|line| !line.trim_ascii().is_empty());
    lines.truncate(LINES_COUNTED);
    let Some((first, others)) = lines.split_first() else { return false };
    [b';', b'\t', b','].iter().any(|separator| {
        let count = separators(first, *separator);
        let least = if others.is_empty() { 2 } else { 1 };
        count >= least && others.iter().all(|line| separators(line, *separator) == count)
    })
}

/// How often it stands in a line, outside of quotes.
fn separators(line: &[u8], separator: u8) -> usize {
    let mut quoted = false;
    let mut count = 0;
    for byte in line {
        if *byte == b'"' {
            quoted = !quoted;
        } else if *byte == separator && !quoted {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn astm_is_known_by_its_header_whatever_its_delimiters_and_frames() {
        for head in [&b"H|\\^&|||Analyser\r"[..], b"H@^\\|@1", b"\r\nH|\\^&"] {
            assert_eq!(look(head), Kind::Astm, "{head:?}");
        }
        for head in [&b"\x02\x31H|\\^&\r\x03E5\r\n"[..], b"\x05\x02\x31H|\\^&|", b"\x05H|\\^&"] {
            assert_eq!(look(head), Kind::AstmFrames, "{head:?}");
        }
        for head in [&b"H||^&|"[..], b"Haemoglobin 7", b"H|\\^", b"HbA1c|x", b"H|\\^&x"] {
            assert_ne!(look(head), Kind::Astm, "{head:?}");
        }
    }

    #[test]
    fn hl7_is_known_also_in_a_batch_or_a_frame() {
        for head in
            [&b"MSH|^~\\&|A"[..], b"\xef\xbb\xbfMSH|^~\\&|", b"FHS|^~\\&\r", b"\x0bMSH|^~\\&|", b"\r\nBHS^~|\\&"]
        {
            assert_eq!(look(head), Kind::Hl7, "{head:?}");
        }
        assert_ne!(look(b"MSHA"), Kind::Hl7);
        assert_ne!(look(b"MSH"), Kind::Hl7);
    }

    #[test]
    fn csv_has_equally_many_values_in_each_line() {
        for head in [
            &b"id,name,value\n1,\"a,b\",3\n"[..],
            b"id;value\r\n1;2,5\r\n",
            b"a\tb\r1\t2\r",
            b"2026-01-02,7.3,98\n",
            b"Gr\xf6\xdfe;1\n",
        ] {
            assert_eq!(look(head), if head.contains(&0xf6) { Kind::Text } else { Kind::Csv }, "{head:?}");
        }
        assert_eq!(look(b"Dear colleague,\nthe results are fine, thanks, bye\n"), Kind::Text);
    }

    #[test]
    fn other_text_is_text_and_the_rest_are_bytes() {
        assert_eq!(look(b"Result: 7\n"), Kind::Text);
        for head in [&b""[..], b"%PDF-1.7\x00", b"\x89PNG\r\n\x1a\n", b"\xff\xfeM\x00S\x00H\x00"] {
            assert_eq!(look(head), Kind::Bytes, "{head:?}");
        }
        assert_eq!(look(&[b'x'; 2 * HEAD_BYTES_MAX]), Kind::Text);
    }
}
