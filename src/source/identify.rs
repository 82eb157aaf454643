//! What a device's bytes look like: ASTM, MEDIBUS, a known profile, plain lines, or nothing that is known. A guess for people.
//!
//! It only looks at bytes that came by themselves. Wrong line settings give bytes that look like nothing; a checksum that holds or a
//! pattern that fits is hardly ever chance.

use super::profile::{BUILT_IN, Profile};
use crate::envelope::Stamp;
use crate::wire::checksum::{Checksum, sum8};
use crate::wire::serial_frame::{Found, Framer, Framing};

/// Of a hundred bytes of text, so many can be printed.
const TEXT_PERCENT: usize = 95;
/// Fewer bytes say nothing.
const BYTES_MIN: usize = 4;
/// Longest frame that is looked for, in bytes.
const FRAME_BYTES_MAX: usize = 1024;

/// What the bytes look like; a later one is a better guess.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Look {
    /// Nothing came.
    Silent,
    /// Bytes, but nothing that is known: other line settings, or another protocol.
    Unknown,
    /// Lines of text.
    Lines,
    /// An analyser asks to send, or repeats itself (ASTM E1381).
    AstmEnquiry,
    /// A built-in profile reads it: its key and its name for people.
    Profile(String, String),
    /// Frames of Draeger's MEDIBUS whose checksums hold.
    Medibus,
    /// Frames of ASTM E1381 whose checksums hold.
    Astm,
}

impl Look {
    /// Whether it is hardly chance: no other line settings need be tried.
    pub fn is_sure(&self) -> bool {
        *self > Self::AstmEnquiry
    }

    /// In words, with what to configure.
    pub fn words(&self) -> String {
        match self {
            Self::Silent => "silent: is the device on, is it a null-modem cable, must it be asked?".into(),
            Self::Unknown => "bytes of an unknown kind: other line settings, or another protocol".into(),
            Self::Lines => "plain lines: a profile can read them (start from csv)".into(),
            Self::AstmEnquiry => "ASTM: an analyser asks to send (astm)".into(),
            Self::Profile(key, name) => format!("{name} (serial, profile = \"{key}\")"),
            Self::Medibus => "Draeger MEDIBUS (medibus)".into(),
            Self::Astm => "ASTM frames (astm)".into(),
        }
    }
}

/// The best guess at what these bytes are.
pub fn look(bytes: &[u8]) -> Look {
    let guesses = [
        (is_astm(bytes), Look::Astm),
        (is_medibus(bytes), Look::Medibus),
        (is_enquiry(bytes), Look::AstmEnquiry),
        (is_lines(bytes), Look::Lines),
        (!bytes.is_empty(), Look::Unknown),
    ];
    let guess = guesses.into_iter().find_map(|(is, look)| is.then_some(look)).unwrap_or(Look::Silent);
    match by_profile(bytes) {
        Some(profile) if profile > guess => profile,
        _ => guess,
    }
}

fn is_astm(bytes: &[u8]) -> bool {
    let framing = Framing::StartEnd { start: vec![0x02], end: vec![0x03], after: 4 };
    let last = frames(Framer::new(framing, Checksum::Sum8Hex, 1, FRAME_BYTES_MAX), bytes);
    let framing = Framing::StartEnd { start: vec![0x02], end: vec![0x17], after: 4 };
    last + frames(Framer::new(framing, Checksum::Sum8Hex, 1, FRAME_BYTES_MAX), bytes) > 0
}

fn frames(mut framer: Framer, bytes: &[u8]) -> usize {
    let mut count = 0;
    framer.push(bytes, &mut |found| count += usize::from(matches!(found, Found::Frame { .. })));
    count
}

/// `ESC` or `SOH`, a code, text, the sum of all of it as two digits, `CR`.
fn is_medibus(bytes: &[u8]) -> bool {
    // Bytes with the highest bit are the realtime stream, which may be anywhere between the others.
    let slow: Vec<u8> = bytes.iter().copied().filter(|byte| *byte < 0x80).collect();
    slow.split(|byte| *byte == b'\r').any(|line| {
        let start = line.iter().rposition(|byte| matches!(byte, 0x1b | 0x01));
        let frame = start.and_then(|start| line.get(start..)).unwrap_or_default();
        let (covered, sum) = frame.split_at(frame.len().saturating_sub(2));
        covered.len() >= 2 && sum == format!("{:02X}", sum8(covered)).as_bytes()
    })
}

/// Nothing but ENQ, again and again.
fn is_enquiry(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| matches!(byte, 0x05 | 0x04))
}

fn is_lines(bytes: &[u8]) -> bool {
    let is_text = |byte: &&u8| matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t');
    let ends = bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n'));
    bytes.len() >= BYTES_MIN && ends && bytes.iter().filter(is_text).count() * 100 >= bytes.len() * TEXT_PERCENT
}

fn by_profile(bytes: &[u8]) -> Option<Look> {
    BUILT_IN.iter().find_map(|(key, text)| {
        let profile = Profile::parse(text, key).ok().filter(Profile::is_telling)?;
        reads(&profile, bytes).then(|| Look::Profile((*key).to_owned(), profile.name))
    })
}

fn reads(profile: &Profile, bytes: &[u8]) -> bool {
    let (mut framer, mut count) = (profile.framer(), 0);
    let now = Stamp { wall_us: 0, synchronised: false, uptime_ms: 0 };
    framer.push(bytes, &mut |found| {
        if let Found::Frame { raw, payload } = found {
            let decoded = profile.decode(raw, raw.get(payload).unwrap_or_default(), now);
            count += usize::from(decoded.is_readable && !decoded.observations.is_empty());
        }
    });
    count > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_by_what_they_say() {
        let of = |bytes: &[u8]| look(bytes);
        assert_eq!(of(b""), Look::Silent);
        assert_eq!(of(b"\x05\x05"), Look::AstmEnquiry);
        assert_eq!(of(b"\x05\x021H|\\^&\r\x03E5\r\n\x022L|1|N\r\x0305\r\n\x04"), Look::Astm);
        assert_eq!(of(b"\x1bQ6C\r"), Look::Medibus);
        assert_eq!(of(b"\xd1\x1b\x80\xbfQ6C\r"), Look::Medibus);
        assert!(matches!(of(b"8 HR=061\r\nSPO2=098 HR=061\r\n"), Look::Profile(key, _) if key == "nonin-ascii"));
        assert_eq!(of(b"GS,  12.5,kg\r\nGS,  12.5,kg\r\n"), Look::Lines);
        let noise: Vec<u8> = (0u32..300).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        assert_eq!(of(&noise), Look::Unknown);
        assert!(of(b"\x1bQ6C\r").is_sure() && !of(b"abcd\r\n").is_sure());
    }
}
