//! The ASTM receiver: the same stream gives the same events however it is cut into reads, the limit holds, a second copy of a frame is
//! one only when its number and its text are the same, and every frame that was written is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::astm::{ENQ, Event, Receiver, TEXT_BYTES_MAX, encode};

fn take(receiver: &mut Receiver, event: Event, seen: &mut (Vec<Event>, u64)) {
    match &event {
        Event::Frame(frame) => {
            assert!(frame.number < 8 && frame.text.len() <= TEXT_BYTES_MAX);
            receiver.accept(frame.number, frame.fingerprint());
            assert_eq!(receiver.judge(frame.clone()), Event::Repeat);
        }
        Event::Other(text) | Event::Bare(text) => assert!(!text.is_empty() && text.len() <= TEXT_BYTES_MAX),
        Event::Junk(count) => {
            seen.1 += count;
            return;
        }
        _ => {}
    }
    seen.0.push(event);
}

fn receive<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Event>, u64) {
    let (mut receiver, mut seen) = (Receiver::default(), Default::default());
    for mut input in chunks {
        while let Some(event) = receiver.pull(&mut input) {
            take(&mut receiver, event, &mut seen);
        }
        assert!(input.is_empty() && receiver.held() <= TEXT_BYTES_MAX);
    }
    while let Some(event) = receiver.give_up() {
        take(&mut receiver, event, &mut seen);
    }
    seen
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, stream)) = data.split_first() else { return };
    let whole = receive(std::iter::once(stream));
    assert_eq!(receive(stream.chunks(usize::from(size) + 1)), whole);
    assert_eq!(receive(stream.chunks(1)), whole);

    // What is no control byte of the framing can be text, and comes back.
    let text: Vec<u8> = stream.iter().copied().filter(|byte| !matches!(byte, 2..=5 | 0x17)).collect();
    let mut framed = vec![ENQ];
    encode(1, &text, size % 2 == 0, &mut framed);
    let (events, _) = receive(std::iter::once(&framed[..]));
    assert!(matches!(&events[1], Event::Frame(frame) if frame.text == text && frame.last == (size % 2 == 0)));
});
