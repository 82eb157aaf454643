//! The header scanner: no data set makes it panic, look at more than it should or keep more than it may, and however the data set
//! is cut into pieces, the facts are the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::dicom::header::{Facts, Scanner, VALUE_BYTES_MAX};
use wardgate_fuzz::wire::dicom::values::Uid;

const SYNTAXES: [&str; 4] =
    ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"];

fn facts(syntax: &Uid, data_set: &[u8], size: usize) -> Facts {
    let mut scanner = Scanner::new(syntax);
    data_set.chunks(size).for_each(|piece| scanner.push(piece));
    scanner.finish()
}

fuzz_target!(|data: &[u8]| {
    let Some((&[which, size], data_set)) = data.split_first_chunk::<2>() else { return };
    let syntax: Uid = SYNTAXES[usize::from(which % 4)].parse().expect("a UID");
    let whole = facts(&syntax, data_set, data_set.len().max(1));
    assert_eq!(facts(&syntax, data_set, usize::from(size) + 1), whole);
    assert_eq!(facts(&syntax, data_set, 1), whole);
    assert!(!(whole.complete && whole.unreadable));
    assert!(!whole.complete || whole.sop_instance.is_some());
    for secret in [&whole.patient_id, &whole.accession_number].into_iter().flatten() {
        assert!(!secret.is_empty() && secret.len() <= VALUE_BYTES_MAX);
    }
});
