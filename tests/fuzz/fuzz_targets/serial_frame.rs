//! Frames on a serial line: the same bytes give the same frames however they are cut into reads, every byte is accounted for, nothing
//! that is kept grows over the limit, and a frame that was found is found again when it comes alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::checksum::Checksum;
use wardgate_fuzz::wire::serial_frame::{Found, Framer, Framing, Mask, Packet};

const LIMIT: usize = 64;

fn framing(which: u8) -> Framing {
    let sync = vec![Mask { byte: 0, mask: 0x80, is: 0x80 }];
    let packet = Packet { frames: 3, first: Mask { byte: 0, mask: 1, is: 1 } };
    match which % 7 {
        0 => Framing::Delimiter(b"\r\n".to_vec()),
        1 => Framing::Delimiter(b"\n".to_vec()),
        2 => Framing::StartEnd { start: vec![2], end: vec![3], after: 0 },
        3 => Framing::StartEnd { start: vec![2], end: vec![3], after: 4 },
        4 => Framing::StartEnd { start: vec![0x7e], end: vec![0x7e], after: 0 },
        5 => Framing::Fixed { length: 5, sync, packet: None },
        _ => Framing::Fixed { length: 5, sync, packet: Some(packet) },
    }
}

fn checksum(which: u8) -> Checksum {
    use Checksum as C;
    let all = [C::None, C::Sum8, C::Xor8, C::Sum8Hex, C::Crc16Modbus, C::Crc16X25, C::Crc16Ccitt, C::Crc16Xmodem];
    all[usize::from(which) % all.len()]
}

#[derive(Debug, Default, PartialEq)]
struct Seen {
    frames: Vec<Vec<u8>>,
    broken: Vec<Vec<u8>>,
    junk: usize,
}

fn cut<'a>(mut framer: Framer, reads: impl Iterator<Item = &'a [u8]>) -> Seen {
    let mut seen = Seen::default();
    let mut note = |found: Found<'_>| match found {
        Found::Frame { raw, payload } => {
            assert!(raw.get(payload).is_some());
            seen.frames.push(raw.to_vec());
        }
        Found::Damaged(bytes) | Found::Oversize(bytes) => seen.broken.push(bytes.to_vec()),
        Found::Junk(count) => seen.junk += count,
    };
    for read in reads {
        framer.push(read, &mut note);
    }
    framer.abandon(&mut note);
    assert!(framer.is_empty());
    seen
}

fuzz_target!(|data: &[u8]| {
    let Some((&[which, check, skip, size], stream)) = data.split_first_chunk::<4>() else { return };
    let framing = framing(which);
    let framer = Framer::new(framing.clone(), checksum(check), usize::from(skip % 4), LIMIT);
    let whole = cut(framer.clone(), std::iter::once(stream));
    assert_eq!(cut(framer.clone(), stream.chunks(usize::from(size) + 1)), whole);
    assert_eq!(cut(framer.clone(), stream.chunks(1)), whole);
    let length = |all: &[Vec<u8>]| all.iter().map(Vec::len).sum::<usize>();
    let told = length(&whole.frames) + length(&whole.broken) + whole.junk;
    // Empty lines are passed over.
    assert!(told <= stream.len() && (told == stream.len() || matches!(framing, Framing::Delimiter(_))));
    for frame in &whole.frames {
        assert!(frame.len() <= LIMIT + 2);
        assert_eq!(cut(framer.clone(), std::iter::once(&frame[..])).frames, [frame.clone()]);
    }
});
