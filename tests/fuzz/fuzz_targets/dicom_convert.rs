//! The conversion between implicit and explicit: no data set makes it panic or write much more than it read; however the data set
//! is cut into pieces, the outcome is the same; and what it wrote can be converted back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::dicom::convert::{ConvertError, Converter, other};
use wardgate_fuzz::wire::dicom::values::Uid;

const SYNTAXES: [&str; 2] = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"];

fn converted(syntax: &Uid, data_set: &[u8], size: usize) -> Result<Vec<u8>, ConvertError> {
    let (mut converter, mut out) = (Converter::from(syntax).expect("one of the two"), Vec::new());
    for piece in data_set.chunks(size) {
        converter.push(piece, &mut out)?;
    }
    assert!(out.len() <= 3 * data_set.len());
    converter.finish().map(|()| out)
}

fuzz_target!(|data: &[u8]| {
    let Some((&[which, size], data_set)) = data.split_first_chunk::<2>() else { return };
    let syntax: Uid = SYNTAXES[usize::from(which % 2)].parse().expect("a UID");
    let whole = converted(&syntax, data_set, data_set.len().max(1));
    assert_eq!(converted(&syntax, data_set, usize::from(size) + 1), whole);
    assert_eq!(converted(&syntax, data_set, 1), whole);
    if let Ok(whole) = whole {
        let back = other(&syntax).expect("the other one");
        converted(&back, &whole, whole.len().max(1)).expect("it is what we wrote");
    }
});
