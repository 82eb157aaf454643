//! HL7 observations: every part of every segment, its escapes and its times.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::oru::{OBX_MAX, Oru, Part, rfc3339};

fuzz_target!(|data: &[u8]| {
    let _ = rfc3339(data);
    let Ok(oru) = Oru::read(data) else { return };
    let segments = oru.groups.iter().flat_map(|group| std::iter::once(&group.request).chain(&group.observations));
    let mut count = 0;
    for segment in segments.chain([&oru.patient, &oru.visit]) {
        count += 1;
        for number in 0..21 {
            let field = segment.field(number);
            assert_eq!(field.repetitions().map(|one| one.bytes().len() + 1).sum::<usize>(), field.bytes().len() + 1);
            look(field);
            (0..10).for_each(|component| look(field.component(component)));
        }
    }
    assert!(count <= OBX_MAX + oru.groups.len() + 2);
});

/// What is unescaped never grows.
fn look(part: Part<'_>) {
    let plain = part.unescaped();
    assert!(plain.len() <= part.bytes().len());
    if let Some(time) = rfc3339(&plain) {
        assert!(time.len() >= "2019-09-29T09:21:50".len());
    }
}
