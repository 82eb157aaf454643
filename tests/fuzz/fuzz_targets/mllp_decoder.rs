//! The MLLP decoder: the same stream gives the same frames however it is cut into reads, no byte of a body is lost or made up,
//! and the limit holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::mllp::{Decoder, End, Event, Quirks, encode};

#[derive(Debug, Default, PartialEq)]
struct Seen {
    frames: Vec<(Vec<u8>, End)>,
    body: Vec<u8>,
    cut: u64,
    junk: u64,
}

fn decode<'a>(chunks: impl Iterator<Item = &'a [u8]>, limit: u64) -> Seen {
    let (mut decoder, mut seen) = (Decoder::new(limit), Seen::default());
    for mut input in chunks {
        while let Some(event) = decoder.pull(&mut input) {
            match event {
                Event::Body(bytes) => seen.body.extend_from_slice(bytes),
                Event::End(end) => finish(&mut seen, end),
                Event::Cut(length) => {
                    seen.cut += length;
                    seen.body.clear();
                }
                Event::Oversize => seen.body.clear(),
                Event::Junk(count) => seen.junk += count,
            }
            assert!(seen.body.len() as u64 <= limit);
        }
        assert!(input.is_empty());
    }
    if let Some(end) = decoder.settle() {
        finish(&mut seen, end);
    }
    seen
}

fn finish(seen: &mut Seen, end: End) {
    let body = std::mem::take(&mut seen.body);
    assert!(end.quirks.has(Quirks::OVERSIZE) || end.length == body.len() as u64);
    seen.frames.push((body, end));
}

fuzz_target!(|data: &[u8]| {
    let Some((&[limit, size], stream)) = data.split_first_chunk::<2>() else { return };
    // Limits from 0 to 32 KiB, reads from 1 byte to 256.
    let (limit, size) = (1u64 << (limit % 16) >> 1, usize::from(size) + 1);
    let whole = decode(std::iter::once(stream), limit);
    assert_eq!(decode(stream.chunks(size), limit), whole);
    assert_eq!(decode(stream.chunks(1), limit), whole);
    let bodies: usize = whole.frames.iter().map(|(body, _)| body.len()).sum();
    assert!(bodies + whole.body.len() <= stream.len());

    // Each body that was read can be written and read again, unless it holds what MLLP can't carry.
    for (body, end) in &whole.frames {
        if end.length == 0 || body.is_empty() || body.iter().any(|byte| [0x0b, 0x1c].contains(byte)) {
            continue;
        }
        let mut framed = Vec::new();
        encode(body, &mut framed);
        let again = decode(std::iter::once(&framed[..]), u64::MAX);
        assert_eq!((again.frames.len(), again.junk, again.cut), (1, 0, 0));
        assert_eq!(&again.frames[0].0, body);
    }
});
