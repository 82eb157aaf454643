//! Which characters the bytes of an HL7 message are, by what its header or its source's configuration says (MSH-18, HL7 table 0211).
//!
//! Nothing is guessed in silence: a set that is not read here is refused by name, and where the bytes are not what was said, or nothing was,
//! the record tells as what they were read.

/// What ISO 8859-15 has in place of ISO 8859-1.
const LATIN_9: [(u8, char); 8] =
    [(0xA4, '€'), (0xA6, 'Š'), (0xA8, 'š'), (0xB4, 'Ž'), (0xB8, 'ž'), (0xBC, 'Œ'), (0xBD, 'œ'), (0xBE, 'Ÿ')];
/// What Windows-1252 has from 80 to 9F; the five places that it leaves empty are control characters.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
];

/// How bytes become text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Charset {
    Utf8,
    Latin1,
    Latin9,
    Windows1252,
}

impl Charset {
    /// For a body whose sender, or the configuration of its source, says `name` (IANA), and what there is to tell about it.
    ///
    /// # Errors
    /// In words: the set is not read here, and the body has more than ASCII in it.
    pub(super) fn of(name: Option<&str>, body: &[u8]) -> Result<(Self, Option<String>), String> {
        // With an escape character ASCII bytes can be anything (ISO 2022).
        let is_ascii = body.is_ascii() && !body.contains(&0x1B);
        if is_ascii {
            return Ok((Self::Utf8, None));
        }
        match name {
            Some("iso-8859-1") => Ok((Self::Latin1, None)),
            Some("iso-8859-15") => Ok((Self::Latin9, None)),
            Some("windows-1252") => Ok((Self::Windows1252, None)),
            None | Some("utf-8" | "us-ascii") => Ok(Self::by_bytes(name, body)),
            Some(other) => Err(format!(
                "its characters are {other} (MSH-18), which is not read here: send it without \"as\", or have the device send UTF-8"
            )),
        }
    }

    fn by_bytes(name: Option<&str>, body: &[u8]) -> (Self, Option<String>) {
        let (charset, read) = match std::str::from_utf8(body) {
            Ok(_) => (Self::Utf8, "utf-8"),
            // Of the sets of one byte it is the one that devices use most.
            Err(_) => (Self::Latin1, "iso-8859-1"),
        };
        let told = match name {
            Some(name) if name == read => None,
            Some(name) => Some(format!("{read}; the sender says {name}, which it is not")),
            None => Some(format!("{read}; the sender names none")),
        };
        (charset, told)
    }

    /// The text of some of its bytes.
    pub(super) fn text(self, bytes: &[u8]) -> String {
        if self == Self::Utf8 {
            return String::from_utf8_lossy(bytes).into_owned();
        }
        bytes.iter().map(|byte| self.character(*byte)).collect()
    }

    fn character(self, byte: u8) -> char {
        let special = match (self, byte) {
            (Self::Latin9, _) => LATIN_9.iter().find(|(known, _)| *known == byte).map(|(_, character)| *character),
            (Self::Windows1252, 0x80..=0x9F) => WINDOWS_1252.get(usize::from(byte - 0x80)).copied(),
            _ => None,
        };
        special.unwrap_or_else(|| char::from(byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: Option<&str>, body: &[u8]) -> (String, Option<String>) {
        let (charset, told) = Charset::of(name, body).unwrap();
        (charset.text(body), told)
    }

    #[test]
    fn bytes_are_read_as_their_sender_says() {
        for (name, body, text) in [
            ("iso-8859-1", &b"\xB5g 36\xB0C \xA4"[..], "µg 36°C ¤"),
            ("iso-8859-15", b"\xA4 \xBC\xE9", "€ Œé"),
            ("windows-1252", b"\x80 \x9F\xE4", "€ Ÿä"),
            ("utf-8", "µg".as_bytes(), "µg"),
            ("iso-8859-5", b"98 %", "98 %"),
        ] {
            assert_eq!(read(Some(name), body), (text.to_owned(), None), "{name}");
        }
    }

    #[test]
    fn what_was_not_said_or_is_not_so_is_told() {
        let told = |name, body| read(name, body).1.unwrap();
        assert_eq!(told(None, "µ".as_bytes()), "utf-8; the sender names none");
        assert_eq!(told(None, b"\xB5"), "iso-8859-1; the sender names none");
        assert_eq!(told(Some("utf-8"), b"\xB5"), "iso-8859-1; the sender says utf-8, which it is not");
        assert_eq!(told(Some("us-ascii"), "µ".as_bytes()), "utf-8; the sender says us-ascii, which it is not");
    }

    #[test]
    fn a_set_that_is_not_read_here_is_refused_by_name() {
        for (name, body) in [("iso-8859-5", &b"\xB5"[..]), ("gb18030", b"\x81\x30"), ("iso-2022-jp", b"\x1B$B!!")] {
            let reason = Charset::of(Some(name), body).unwrap_err();
            assert!(reason.contains(name) && reason.contains("without \"as\""), "{reason}");
        }
    }
}
