//! HL7 headers: reading one, answering it, reading the answer, and rewriting what it asks for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::ack::{self, Acknowledgement, Answer, Code, Fault};
use wardgate_fuzz::wire::hl7::{self, Header};
use wardgate_fuzz::wire::mllp::{Decoder, Event, encode};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, body)) = data.split_first() else { return };
    let header = Header::read(body).unwrap_or_else(|_| Header::none());
    let code = if choice & 1 == 0 { Code::Ca } else { Code::Ar };
    let fault = [None, Some(Fault::NoHeader), Some(Fault::NoControlId), Some(Fault::CannotStore)][usize::from(choice >> 6)];
    let answer = Answer { code, time: "20260131120000+0000", control_id: "WG5F", fault };
    let mut out = Vec::new();
    ack::write(&header, &answer, &mut out);

    // The answer is one frame, whatever was echoed.
    let mut framed = Vec::new();
    encode(&out, &mut framed);
    let (mut decoder, mut input, mut frames, mut bytes) = (Decoder::new(u64::MAX), &framed[..], 0, 0);
    while let Some(event) = decoder.pull(&mut input) {
        match event {
            Event::Body(run) => bytes += run.len(),
            Event::End(end) => {
                assert!(end.quirks.is_empty());
                frames += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((frames, bytes), (1, out.len()));

    // It says what it should, in the sender's own separators; a peer's reader (ours) finds its way.
    let read = Acknowledgement::read(&out).expect("our own answer is an answer");
    assert_eq!(read.code, code);
    if ack::is_correlatable(&header) {
        assert_eq!(read.control_id, header.control_id());
    } else {
        assert!(read.control_id.is_empty());
    }

    // Anything may come as an answer.
    let _ = Acknowledgement::read(body);

    // Rewriting changes two fields and nothing else.
    if let Ok(new) = hl7::ask_accept_only(body) {
        let rest = &body[new.consumed..];
        let again = [&new.head[..], rest].concat();
        let changed = Header::read(&again);
        // A header at the very limit may grow over it.
        if let Ok(changed) = changed {
            assert_eq!((changed.field(15), changed.field(16)), (&b"AL"[..], &b"NE"[..]));
            for number in (2..=20).filter(|number| ![15, 16].contains(number)) {
                assert_eq!(changed.field(number), header.field(number), "MSH-{number}");
            }
        } else {
            assert!(new.head.len() >= hl7::HEADER_BYTES_MAX);
        }
    }
});
