//! The guess at a file of results: never a panic, the same for a file however much lies behind its head.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::hl7::Header;
use wardgate_fuzz::wire::result_file::{HEAD_BYTES_MAX, Kind, look};

fuzz_target!(|data: &[u8]| {
    let kind = look(data);
    assert!(!kind.media_type().is_empty());
    if data.len() >= HEAD_BYTES_MAX {
        assert_eq!(look(&[data, b"\x00"].concat()), kind);
    }
    if kind == Kind::Hl7 && !data.starts_with(b"\x0b") {
        // What is labelled HL7 has a header that is read, or one that is too long or too odd to be.
        let _ = Header::read(data);
    }
});
