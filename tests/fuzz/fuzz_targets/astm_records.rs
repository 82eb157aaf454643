//! The records of ASTM: they are found wherever the text is cut, nothing of it is lost, and any of it becomes JSON that reads back, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::astm_json;
use wardgate_fuzz::wire::astm_record::{Delimiters, Record, Splitter, control_id, records};

fn split<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<u8>, u64) {
    let (mut splitter, mut kinds, mut all, mut ended) = (Splitter::default(), Vec::new(), Vec::new(), 0);
    for mut input in chunks {
        while let Some(piece) = splitter.pull(&mut input) {
            assert!(!piece.bytes.is_empty());
            if piece.begins {
                kinds.push(piece.kind);
            }
            ended += u64::from(piece.ends);
            all.extend_from_slice(piece.bytes);
        }
        assert!(input.is_empty());
    }
    (kinds, all, ended)
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, text)) = data.split_first() else { return };
    let whole = split(std::iter::once(text));
    assert_eq!(whole.1, text);
    assert_eq!(split(text.chunks(usize::from(size) + 1)), whole);
    assert_eq!(split(text.chunks(1)), whole);
    assert!(control_id(text).is_none_or(|id| !id.is_empty() && id.len() <= text.len()));
    for line in records(text) {
        let record = Record::new(line, Delimiters::of(line).unwrap_or_default());
        for part in record.fields().flat_map(|field| record.repetitions(field)) {
            for component in record.components(part) {
                assert!(record.unescaped(component).len() <= component.len());
            }
        }
    }
    if let Ok(bytes) = astm_json::json(text) {
        assert!(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap().is_object());
    }
});
