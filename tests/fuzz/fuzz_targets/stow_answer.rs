//! The answer of a DICOMweb server: anything may come, and what is read of it is bounded and sure.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::stow::{Outcome, Report, failure_words};

const UID: &[u8] = b"1.2.3";

fuzz_target!(|data: &[u8]| {
    let Some(report) = Report::read(data) else { return };
    match report.of(UID) {
        // Nothing is stored that the answer does not name.
        Some(Outcome::Stored(_)) => {
            assert!(data.windows(UID.len()).any(|window| window == UID) || data.contains(&b'\\'))
        }
        Some(Outcome::Failed(Some(reason))) => assert!(!failure_words(reason).is_empty()),
        Some(Outcome::Failed(None)) | None => {}
    }
    // Without a UID to look for, nothing counts as stored.
    assert!(!matches!(report.of(b""), Some(Outcome::Stored(_))));
});
