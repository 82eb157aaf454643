//! A MEDIBUS line: the same stream gives the same frames however it is cut into reads and whatever waveforms lie between its bytes, a
//! frame's sum is right, and what is read of an answer fits into it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::medibus::{Decoder, Event, FRAME_BYTES_MAX, Lead, command, hex, response};
use wardgate_fuzz::wire::medibus_data::{alarms, date_time, identity, said, settings, texts, values};

fn decode<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let (mut decoder, mut seen) = (Decoder::new(), Vec::new());
    for mut input in chunks {
        while let Some(event) = decoder.pull(&mut input) {
            seen.push(match event {
                Event::Frame(frame) => {
                    whole(frame.raw);
                    frame.raw.to_vec()
                }
                Event::Corrupt(lead) => vec![u8::from(lead == Lead::Command)],
                Event::Flow(byte) => vec![byte],
            });
        }
        assert!(input.is_empty());
    }
    seen
}

fn whole(raw: &[u8]) {
    let (body, end) = raw.split_at(raw.len() - 3);
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(hex([end[0], end[1]]), Some(sum));
    assert!(raw.len() <= FRAME_BYTES_MAX + 1 && raw.iter().all(|byte| *byte < 0x80));
    let (mut again, small) = (Vec::new(), body.len() <= 253);
    if small && body[0] == 0x1b { command(body[1], &body[2..], &mut again) } else { response(body[1], &body[2..], &mut again) }
    assert!(again.eq_ignore_ascii_case(raw) || !small);
}

fuzz_target!(|data: &[u8]| {
    let Some((size, stream)) = data.split_first() else { return };
    let frames = decode(std::iter::once(stream));
    assert_eq!(decode(stream.chunks(usize::from(*size) + 1)), frames);
    let woven: Vec<u8> = stream.iter().flat_map(|byte| [0xd1, 0x80, *byte]).collect();
    assert_eq!(decode(woven.chunks(64)), frames);

    for found in [values(stream), settings(stream), texts(stream)].into_iter().flatten() {
        assert!(found.len() * 4 <= stream.len());
        for item in found {
            said(item.text);
        }
    }
    assert!(alarms(stream).map_or(0, |found| found.len()) * 15 <= stream.len());
    let _read = (identity(stream), date_time(stream));
});
