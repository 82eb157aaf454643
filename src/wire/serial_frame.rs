//! Frames on a serial line: ended by a delimiter, between start and end bytes, of a fixed length, or followed by silence.
//!
//! [`Framer`] is given bytes as they come and tells what it finds. What it keeps is bounded by the largest frame. It never panics on
//! noise, and it finds the next good frame whatever came before: a frame that was begun in the middle, one whose end was lost, or one
//! that never ends. Every byte is part of exactly one thing that is told, but for those that are still kept.

use std::ops::Range;

use super::checksum::Checksum;

/// How frames are told apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Framing {
    /// Each frame ends with these bytes; empty frames are passed over.
    Delimiter(Vec<u8>),
    /// Each frame is between these bytes; so many bytes (a checksum) follow the end.
    StartEnd {
        /// First bytes.
        start: Vec<u8>,
        /// Last bytes, before what follows.
        end: Vec<u8>,
        /// Bytes of the frame that come after its end.
        after: usize,
    },
    /// Each frame has so many bytes, of which some tell that it is one. Several make a packet where that is given.
    Fixed {
        /// Bytes of a frame.
        length: usize,
        /// What each frame has.
        sync: Vec<Mask>,
        /// Frames that belong together.
        packet: Option<Packet>,
    },
    /// Each frame is followed by silence: [`Framer::idle`] ends it.
    Idle,
}

/// Bits of a byte that are always the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mask {
    /// Which byte, from 0.
    pub byte: usize,
    /// Which of its bits.
    pub mask: u8,
    /// What they are.
    pub is: u8,
}

/// Frames of a fixed length that belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// How many.
    pub frames: usize,
    /// What the first one has, and no other.
    pub first: Mask,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// A frame whose checksum holds.
    Frame {
        /// All its bytes.
        raw: &'a [u8],
        /// Where in it is what stands between start, delimiter or end, and checksum.
        payload: Range<usize>,
    },
    /// A frame that is not whole or whose checksum does not hold.
    Damaged(&'a [u8]),
    /// A frame that is longer than a frame can be: its beginning. What follows of it is junk.
    Oversize(&'a [u8]),
    /// So many bytes belong to no frame.
    Junk(usize),
}

/// Cuts a stream of bytes into frames.
#[derive(Clone, Debug)]
pub struct Framer {
    framing: Framing,
    checksum: Checksum,
    skip: usize,
    limit: usize,
    kept: Vec<u8>,
    packet: Vec<u8>,
    /// The rest of a frame that was too long is passed over.
    passing: bool,
    /// Where the frame seemed to end, and its checksum did not hold.
    bad_end: Option<usize>,
    junk: usize,
}

impl Framer {
    /// Frames of at most `limit` bytes. `checksum` covers a frame from its byte `skip` on.
    pub fn new(framing: Framing, checksum: Checksum, skip: usize, limit: usize) -> Self {
        let (kept, packet) = Default::default();
        Self { framing, checksum, skip, limit: limit.max(1), kept, packet, passing: false, bad_end: None, junk: 0 }
    }

    /// Whether nothing is kept: the next byte begins something new.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.packet.is_empty()
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8], found: &mut impl FnMut(Found<'_>)) {
        for byte in bytes {
            self.kept.push(*byte);
            match &self.framing {
                Framing::Delimiter(_) => self.delimited(found),
                Framing::StartEnd { .. } => self.enclosed(found),
                Framing::Fixed { .. } => self.fixed(found),
                Framing::Idle => self.bounded(found),
            }
        }
        self.tell_junk(found);
    }

    /// The line has been silent for as long as the device's frames are apart.
    pub fn idle(&mut self, found: &mut impl FnMut(Found<'_>)) {
        if self.framing == Framing::Idle {
            self.settle(found);
        }
    }

    /// Nothing more belongs to what was pushed (the end of a datagram): what is kept is a frame when it can be one.
    pub fn settle(&mut self, found: &mut impl FnMut(Found<'_>)) {
        let open_ended = matches!(self.framing, Framing::Delimiter(_) | Framing::Idle);
        if self.passing || !open_ended {
            return self.abandon(found);
        }
        let kept = std::mem::take(&mut self.kept);
        if !kept.is_empty() {
            found(self.checked(&kept, 0..kept.len(), 0));
        }
    }

    /// The line is gone: what is kept is the beginning of a frame that never comes to its end.
    pub fn abandon(&mut self, found: &mut impl FnMut(Found<'_>)) {
        if std::mem::take(&mut self.passing) {
            self.junk += self.kept.len();
            self.kept.clear();
        }
        self.bad_end = None;
        self.packet.append(&mut self.kept);
        let partial = std::mem::take(&mut self.packet);
        if !partial.is_empty() {
            found(Found::Damaged(&partial));
        }
        self.tell_junk(found);
    }

    fn delimited(&mut self, found: &mut impl FnMut(Found<'_>)) {
        let Framing::Delimiter(delimiter) = &self.framing else { return };
        if !self.kept.ends_with(delimiter) {
            return self.bounded(found);
        }
        let length = delimiter.len();
        let kept = std::mem::take(&mut self.kept);
        if std::mem::take(&mut self.passing) {
            self.junk += kept.len();
        } else if kept.len() > length {
            found(self.checked(&kept, 0..kept.len() - length, length));
        }
    }

    fn enclosed(&mut self, found: &mut impl FnMut(Found<'_>)) {
        let Framing::StartEnd { start, end, after } = &self.framing else { return };
        let (started, ended, after, length) = (start.len(), end.len(), *after, self.kept.len());
        if !begins(&self.kept, start) {
            return self.resume(found);
        }
        if self.bad_end.is_some_and(|bad| length - bad > self.checksum.width()) {
            return self.give_up(found);
        }
        let body = length.saturating_sub(started + ended + after);
        let is_at_end =
            length >= started + ended + after && self.kept.get(started + body..started + body + ended) == Some(end);
        // A flag that ends one frame and begins the next.
        if is_at_end && body == 0 && start == end {
            self.junk += self.kept.drain(..ended).count();
        } else if is_at_end {
            self.ended(started..started + body, after, found);
        } else if self.checksum == Checksum::None && start != end && length > started && self.kept.ends_with(start) {
            // The end was lost, and the next one begins.
            let kept = std::mem::replace(&mut self.kept, start.clone());
            found(Found::Damaged(&kept[..length - started]));
        } else {
            self.bounded_enclosed(found);
        }
    }

    fn ended(&mut self, content: Range<usize>, after: usize, found: &mut impl FnMut(Found<'_>)) {
        let told = self.checked(&self.kept, content, 0);
        if matches!(told, Found::Damaged(_)) && self.checksum != Checksum::None && after == 0 {
            // The byte of a checksum may look like the end: the true one is then right behind it.
            self.bad_end.get_or_insert(self.kept.len());
            return self.bounded_enclosed(found);
        }
        found(told);
        self.kept.clear();
        self.bad_end = None;
    }

    /// The checksum did not hold at the end: what came behind it is looked at anew.
    fn give_up(&mut self, found: &mut impl FnMut(Found<'_>)) {
        let kept = std::mem::take(&mut self.kept);
        let bad = self.bad_end.take().unwrap_or(kept.len()).min(kept.len());
        found(Found::Damaged(&kept[..bad]));
        for byte in &kept[bad..] {
            self.kept.push(*byte);
            self.enclosed(found);
        }
    }

    /// A frame that has not ended within the limit: its start was none, or its end was lost. The next start is looked for in it.
    fn bounded_enclosed(&mut self, found: &mut impl FnMut(Found<'_>)) {
        if self.kept.len() >= self.limit {
            found(Found::Oversize(&self.kept));
            self.kept.clear();
            self.bad_end = None;
        }
    }

    /// Lets go of all up to what may be a start.
    fn resume(&mut self, found: &mut impl FnMut(Found<'_>)) {
        let Framing::StartEnd { start, .. } = &self.framing else { return };
        let next = (1..self.kept.len()).find(|at| begins(&self.kept[*at..], start)).unwrap_or(self.kept.len());
        self.junk += self.kept.drain(..next).count();
        if self.kept.is_empty() {
            return;
        }
        // One byte of a start of one byte is a start already.
        self.bounded_enclosed(found);
    }

    fn fixed(&mut self, found: &mut impl FnMut(Found<'_>)) {
        let Framing::Fixed { length, sync, packet } = &self.framing else { return };
        let packet = *packet;
        if self.kept.len() < *length {
            return;
        }
        let in_step = sync.iter().all(|mask| mask.holds(&self.kept));
        if !in_step || !matches!(self.checked(&self.kept, 0..self.kept.len(), 0), Found::Frame { .. }) {
            // Out of step: the frame begins at a later byte.
            self.kept.remove(0);
            self.junk += 1;
            return;
        }
        self.tell_junk(found);
        let frame = std::mem::take(&mut self.kept);
        match packet {
            Some(packet) => self.packed(&frame, packet, found),
            None => found(self.checked(&frame, 0..frame.len(), 0)),
        }
    }

    fn packed(&mut self, frame: &[u8], packet: Packet, found: &mut impl FnMut(Found<'_>)) {
        if packet.first.holds(frame) && !self.packet.is_empty() {
            found(Found::Damaged(&self.packet));
            self.packet.clear();
        }
        if self.packet.is_empty() && !packet.first.holds(frame) {
            self.junk += frame.len();
            return;
        }
        self.packet.extend_from_slice(frame);
        if self.packet.len() >= packet.frames * frame.len() {
            found(Found::Frame { raw: &self.packet, payload: 0..self.packet.len() });
            self.packet.clear();
        }
    }

    /// A frame that is ended by what follows can't be longer than the limit; its rest is passed over.
    fn bounded(&mut self, found: &mut impl FnMut(Found<'_>)) {
        if self.kept.len() < self.limit {
            return;
        }
        let tail = match &self.framing {
            Framing::Delimiter(delimiter) => delimiter.len().saturating_sub(1),
            _ => 0,
        };
        if self.passing {
            self.junk += self.kept.len() - tail.min(self.kept.len());
        } else {
            found(Found::Oversize(&self.kept[..self.kept.len() - tail.min(self.kept.len())]));
            self.passing = true;
        }
        self.kept.drain(..self.kept.len() - tail.min(self.kept.len()));
    }

    /// A frame whose content is `content` and which has `trailer` more bytes after its checksum.
    fn checked<'a>(&self, raw: &'a [u8], content: Range<usize>, trailer: usize) -> Found<'a> {
        let width = self.checksum.width();
        let behind_end = match &self.framing {
            Framing::StartEnd { end, after, .. } if *after > 0 => Some(content.end + end.len()),
            _ => None,
        };
        // The checksum stands behind the end bytes where bytes follow them, else it is the last of the content.
        let at = behind_end.or_else(|| content.end.checked_sub(width).filter(|at| *at >= content.start));
        let Some(at) = at.filter(|at| at + width + trailer <= raw.len()) else { return Found::Damaged(raw) };
        let (covered, field) = (raw.get(self.skip..at), raw.get(at..at + width));
        match (covered, field) {
            (Some(covered), Some(field)) if self.checksum.holds(covered, field) => {
                let end = if behind_end.is_some() { content.end } else { at };
                Found::Frame { raw, payload: content.start..end }
            }
            (None, _) if self.checksum == Checksum::None => Found::Frame { raw, payload: content },
            _ => Found::Damaged(raw),
        }
    }

    fn tell_junk(&mut self, found: &mut impl FnMut(Found<'_>)) {
        if self.junk > 0 {
            found(Found::Junk(std::mem::take(&mut self.junk)));
        }
    }
}

impl Mask {
    fn holds(self, frame: &[u8]) -> bool {
        frame.get(self.byte).is_some_and(|byte| byte & self.mask == self.is)
    }
}

/// Whether `kept` begins with `start`, as far as both go.
fn begins(kept: &[u8], start: &[u8]) -> bool {
    kept.iter().zip(start).all(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 32;

    /// What is found, in short: `F raw|payload`, `D bytes`, `O bytes`, `J count`.
    fn told(framer: &mut Framer, reads: &[&[u8]]) -> Vec<String> {
        let mut all = Vec::new();
        for read in reads {
            framer.push(read, &mut |found| all.push(short(found)));
        }
        all
    }

    fn short(found: Found<'_>) -> String {
        match found {
            Found::Frame { raw, payload } => format!("F {}|{}", raw.escape_ascii(), raw[payload].escape_ascii()),
            Found::Damaged(bytes) => format!("D {}", bytes.escape_ascii()),
            Found::Oversize(bytes) => format!("O {}", bytes.escape_ascii()),
            Found::Junk(count) => format!("J {count}"),
        }
    }

    fn lines() -> Framer {
        Framer::new(Framing::Delimiter(b"\r\n".to_vec()), Checksum::None, 0, LIMIT)
    }

    fn stx_etx(after: usize, checksum: Checksum, skip: usize) -> Framer {
        Framer::new(Framing::StartEnd { start: vec![2], end: vec![3], after }, checksum, skip, LIMIT)
    }

    /// The frames of a Nonin oximeter: status with its highest bit set, four more bytes, the last of them the sum.
    fn nonin(packet: Option<Packet>) -> Framer {
        let sync = vec![Mask { byte: 0, mask: 0x80, is: 0x80 }];
        Framer::new(Framing::Fixed { length: 5, sync, packet }, Checksum::Sum8, 0, LIMIT)
    }

    fn of(status: u8, value: u8) -> Vec<u8> {
        let mut frame = vec![status, 1, 2, value];
        frame.extend(Checksum::Sum8.of(&frame));
        frame
    }

    #[test]
    fn lines_are_found_however_they_are_cut_into_reads() {
        let all = ["F SPO2=98\\r\\n|SPO2=98", "F a\\rb\\r\\n|a\\rb"];
        assert_eq!(told(&mut lines(), &[b"SPO2=98\r\n\r\na\rb\r\n"]), all);
        assert_eq!(told(&mut lines(), &[b"SPO", b"2=98\r", b"\n\r\na\rb\r", b"\n"]), all);
    }

    #[test]
    fn a_line_that_never_ends_is_told_once_and_the_next_one_is_found() {
        let mut framer = lines();
        let found = told(&mut framer, &[&[b'x'; 1000], b"\r\nSPO2=98\r\n"]);
        assert_eq!(found[0], format!("O {}", "x".repeat(LIMIT - 1)));
        let rest: Vec<&String> = found[1..].iter().filter(|told| !told.starts_with("J ")).collect();
        assert_eq!(rest, ["F SPO2=98\\r\\n|SPO2=98"]);
        assert!(framer.is_empty());
    }

    #[test]
    fn frames_between_start_and_end_are_found_amid_noise() {
        let mut framer = stx_etx(0, Checksum::None, 0);
        assert_eq!(told(&mut framer, &[b"zz\x02abc\x03\x02d\x03"]), ["F \\x02abc\\x03|abc", "F \\x02d\\x03|d", "J 2"]);
        // The end of the first was lost.
        assert_eq!(told(&mut framer, &[b"\x02lost", b"\x02ok\x03"]), ["D \\x02lost", "F \\x02ok\\x03|ok"]);
        let endless = told(&mut framer, &[&[2; 1], &[b'y'; 100], b"\x02ok\x03"]);
        assert!(
            endless[0].starts_with("O \\x02yyy") && endless.contains(&"F \\x02ok\\x03|ok".to_owned()),
            "{endless:?}"
        );
    }

    #[test]
    fn a_checksum_stands_before_the_end_or_behind_it() {
        let mut astm = stx_etx(4, Checksum::Sum8Hex, 1);
        let found = told(&mut astm, &[b"\x021H|\\^&\r\x03E5\r\n\x021H|\\^&\r\x03E6\r\n"]);
        assert_eq!(found[0], "F \\x021H|\\\\^&\\r\\x03E5\\r\\n|1H|\\\\^&\\r");
        assert!(found[1].starts_with("D \\x021H"));
        let mut inside = stx_etx(0, Checksum::Xor8, 1);
        assert_eq!(told(&mut inside, &[b"\x02ab\x03\x03\x02a"]), ["F \\x02ab\\x03\\x03|ab"]);
        let mut line = Framer::new(Framing::Delimiter(b"\n".to_vec()), Checksum::Sum8Hex, 0, LIMIT);
        assert_eq!(
            told(&mut line, &[b"123456789dd\n1234dd\n7\n"]),
            ["F 123456789dd\\n|123456789", "D 1234dd\\n", "D 7\\n"]
        );
    }

    #[test]
    fn fixed_frames_are_found_again_after_lost_and_added_bytes() {
        let mut framer = nonin(None);
        let stream = [&of(0x81, 98)[1..], &of(0x80, 99), b"\x80\x80", &of(0x80, 97), &of(0x80, 96)[..3]].concat();
        let found = told(&mut framer, &[&stream]);
        let frames: Vec<&String> = found.iter().filter(|told| told.starts_with('F')).collect();
        assert_eq!(frames.len(), 2, "{found:?}");
        assert!(found.contains(&"J 4".to_owned()) && found.contains(&"J 2".to_owned()), "{found:?}");
        assert!(!framer.is_empty());
    }

    #[test]
    fn a_packet_is_complete_or_told_as_damaged() {
        let packet = Packet { frames: 3, first: Mask { byte: 0, mask: 1, is: 1 } };
        let mut framer = nonin(Some(packet));
        let stream =
            [of(0x80, 9), of(0x81, 1), of(0x80, 2), of(0x80, 3), of(0x81, 4), of(0x80, 5), of(0x81, 6)].concat();
        let found = told(&mut framer, &[&stream]);
        let kinds: Vec<char> = found.iter().filter_map(|told| told.chars().next()).collect();
        assert_eq!(kinds, ['J', 'F', 'D'], "{found:?}");
        let mut rest = Vec::new();
        framer.abandon(&mut |found| rest.push(short(found)));
        assert!(rest[0].starts_with("D \\x81") && framer.is_empty());
    }

    #[test]
    fn silence_ends_a_frame_and_so_does_the_end_of_a_datagram() {
        let mut framer = Framer::new(Framing::Idle, Checksum::Crc16Modbus, 0, LIMIT);
        let mut found = told(&mut framer, &[b"\x01\x03\x02\x00\x05", b"\x78\x47"]);
        framer.idle(&mut |what| found.push(short(what)));
        framer.idle(&mut |what| found.push(short(what)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with('F'), "{found:?}");
        let (mut lines, mut found) = (lines(), Vec::new());
        lines.push(b"one\r\ntwo", &mut |what| found.push(short(what)));
        lines.idle(&mut |what| found.push(short(what)));
        assert_eq!(found.len(), 1);
        lines.settle(&mut |what| found.push(short(what)));
        assert_eq!(found[1], "F two|two");
    }

    proptest::proptest! {
        #[test]
        fn noise_is_accounted_for_to_the_last_byte(bytes in proptest::collection::vec(0u8..8, 0..600), cut in 1usize..50, which in 0usize..6) {
            let packet = Packet { frames: 2, first: Mask { byte: 0, mask: 1, is: 1 } };
            let fixed = |packet| Framing::Fixed { length: 3, sync: vec![Mask { byte: 0, mask: 4, is: 4 }], packet };
            let framing = [
                Framing::Delimiter(vec![3]), Framing::StartEnd { start: vec![1, 2], end: vec![3], after: 1 },
                Framing::StartEnd { start: vec![2], end: vec![2], after: 0 }, fixed(None), fixed(Some(packet)), Framing::Idle,
            ].into_iter().nth(which).unwrap();
            let empties = which == 0;
            let mut framer = Framer::new(framing, Checksum::None, 0, 20);
            let mut counted = 0;
            let mut count = |found: Found<'_>| counted += match found {
                Found::Frame { raw, .. } => raw.len(),
                Found::Damaged(bytes) | Found::Oversize(bytes) => bytes.len(),
                Found::Junk(count) => count,
            };
            for read in bytes.chunks(cut) {
                framer.push(read, &mut count);
            }
            framer.abandon(&mut count);
            proptest::prop_assert!(framer.is_empty());
            let accounted = counted == bytes.len() || (empties && counted < bytes.len());
            proptest::prop_assert!(accounted, "{counted} of {}", bytes.len());
        }
    }
}
