//! The header scanner: the same facts however the data set is cut, in every encoding, and nothing that a hostile one can do to it.

use proptest::prelude::*;

use super::element::{self as element, Encoding, ITEM, ITEM_END, SEQUENCE_END, Tag, UNDEFINED};
use super::header::{DEPTH_MAX, Facts, SCAN_BYTES_MAX, Scanner, VALUE_BYTES_MAX};
use super::sample::Sample;
use super::values::{
    CT_IMAGE, EXPLICIT_BIG_ENDIAN, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN, SECONDARY_CAPTURE, Uid,
};

const ENCODINGS: [(Encoding, Uid); 3] = [
    (Encoding::Implicit, IMPLICIT_LITTLE_ENDIAN),
    (Encoding::Explicit, EXPLICIT_LITTLE_ENDIAN),
    (Encoding::ExplicitBig, EXPLICIT_BIG_ENDIAN),
];

/// A data set that is put together by hand.
struct Set {
    encoding: Encoding,
    bytes: Vec<u8>,
}

impl Set {
    fn new(encoding: Encoding) -> Self {
        Self { encoding, bytes: Vec::new() }
    }

    /// With the two elements that say which instance it is.
    fn named(encoding: Encoding) -> Self {
        Self::new(encoding).with(0x0008_0016, b"UI", b"1.2.840.10008.5.1.4.1.1.2").with(0x0008_0018, b"UI", b"1.2.3")
    }

    fn with(mut self, tag: u32, vr: &[u8; 2], value: &[u8]) -> Self {
        element::write(self.encoding, (Tag(tag), vr), value, &mut self.bytes);
        self
    }

    fn head(mut self, tag: Tag, vr: &[u8; 2], length: u32) -> Self {
        element::write_header(self.encoding, (tag, vr), length, &mut self.bytes);
        self
    }

    /// After whatever came, all that is left to find.
    fn with_the_rest(self) -> Self {
        self.with(0x0010_0020, b"LO", b"P-77")
            .with(0x0020_000d, b"UI", b"1.2.4")
            .with(0x0020_000e, b"UI", b"1.2.5")
            .with(0x0028_0010, b"US", &[0, 1])
            .head(Tag(0x7fe0_0010), b"OW", 1 << 30)
    }

    fn facts(&self) -> Facts {
        let (_, syntax) = ENCODINGS.into_iter().find(|(encoding, _)| *encoding == self.encoding).unwrap();
        facts(&syntax, &self.bytes)
    }
}

/// The facts, which must be the same in one piece, byte by byte, and in pieces of 7.
fn facts(syntax: &Uid, bytes: &[u8]) -> Facts {
    let pushed = |size: usize| {
        let mut scanner = Scanner::new(syntax);
        bytes.chunks(size).for_each(|piece| scanner.push(piece));
        scanner.finish()
    };
    let whole = pushed(bytes.len().max(1));
    assert_eq!(pushed(1), whole, "byte by byte");
    assert_eq!(pushed(7), whole, "in pieces of 7");
    whole
}

fn assert_all_found(facts: &Facts) {
    assert!(facts.complete && !facts.unreadable, "{facts:?}");
    assert_eq!(facts.sop_class, Some(CT_IMAGE));
    assert_eq!(facts.sop_instance.as_ref().map(Uid::as_str), Some("1.2.3"));
    assert_eq!(facts.study.as_ref().map(Uid::as_str), Some("1.2.4"));
    assert_eq!(facts.series.as_ref().map(Uid::as_str), Some("1.2.5"));
    assert_eq!(facts.patient_id.as_deref(), Some(&b"P-77"[..]));
}

#[test]
fn all_facts_are_found_in_every_encoding() {
    for (encoding, _) in ENCODINGS {
        let set = Set::new(encoding)
            .with(0x0008_0005, b"CS", b"\\ISO 2022 IR 87")
            .with(0x0008_0016, b"UI", b"1.2.840.10008.5.1.4.1.1.2")
            .with(0x0008_0018, b"UI", b"1.2.3")
            .with(0x0008_0050, b"SH", b" A1 ")
            .with(0x0008_0060, b"CS", b"CT")
            .with_the_rest();
        let facts = set.facts();
        assert_all_found(&facts);
        assert_eq!(facts.character_set.as_deref(), Some("\\ISO 2022 IR 87"));
        assert_eq!((facts.modality.as_deref(), facts.accession_number.as_deref()), (Some("CT"), Some(&b"A1"[..])));
    }
}

#[test]
fn what_is_in_a_sequence_is_not_of_the_instance() {
    for (encoding, _) in ENCODINGS {
        let inner = Set::new(encoding).with(0x0010_0020, b"LO", b"OTHER").with(0x0020_000d, b"UI", b"9.9").bytes;
        let length = u32::try_from(inner.len()).unwrap();
        let with_inner = |mut set: Set| {
            set.bytes.extend_from_slice(&inner);
            set
        };
        // Defined and undefined lengths, in each other.
        let set =
            with_inner(Set::named(encoding).head(Tag(0x0008_1140), b"SQ", UNDEFINED).head(ITEM, b"  ", UNDEFINED));
        let set = set.head(Tag(0x0008_1199), b"SQ", UNDEFINED).head(ITEM, b"  ", length);
        let set = with_inner(set).head(SEQUENCE_END, b"  ", 0);
        let set = with_inner(set).head(ITEM_END, b"  ", 0).head(ITEM, b"  ", 0).head(SEQUENCE_END, b"  ", 0);
        let set = with_inner(set.head(Tag(0x0008_2112), b"SQ", length + 8).head(ITEM, b"  ", length));
        assert_all_found(&set.with_the_rest().facts());
    }
}

#[test]
fn a_value_of_unknown_representation_and_undefined_length_is_implicit_inside() {
    for encoding in [Encoding::Explicit, Encoding::ExplicitBig] {
        let mut set = Set::named(encoding).head(Tag(0x0009_1001), b"UN", UNDEFINED);
        let inside = Set::new(Encoding::Implicit)
            .head(ITEM, b"  ", UNDEFINED)
            .with(0x0010_0020, b"LO", b"OTHER")
            .head(Tag(0x0009_1002), b"SQ", UNDEFINED)
            .head(SEQUENCE_END, b"  ", 0)
            .head(ITEM_END, b"  ", 0)
            .head(SEQUENCE_END, b"  ", 0);
        set.bytes.extend_from_slice(&inside.bytes);
        assert_all_found(&set.with_the_rest().facts());
    }
}

#[test]
fn the_pixels_of_an_icon_are_passed_over() {
    let set = Set::named(Encoding::Explicit)
        .head(Tag(0x0009_0200), b"SQ", UNDEFINED)
        .head(ITEM, b"  ", UNDEFINED)
        .head(Tag(0x7fe0_0010), b"OB", UNDEFINED)
        .with(0xfffe_e000, b"  ", b"")
        .with(0xfffe_e000, b"  ", b"\xff\xd8\xff\xe0")
        .head(SEQUENCE_END, b"  ", 0)
        .head(ITEM_END, b"  ", 0)
        .head(SEQUENCE_END, b"  ", 0);
    assert_all_found(&set.with_the_rest().facts());
}

#[test]
fn private_transfer_syntaxes_are_read_as_what_they_are() {
    let implicit = Set::named(Encoding::Implicit).with_the_rest().bytes;
    assert_all_found(&facts(&"1.2.840.113619.5.2".parse().unwrap(), &implicit));
    let explicit = Set::named(Encoding::Explicit).with_the_rest().bytes;
    assert_all_found(&facts(&"1.2.840.10008.1.2.4.90".parse().unwrap(), &explicit));
    assert_all_found(&facts(&"1.3.46.670589.33.1.4.1".parse().unwrap(), &explicit));
}

#[test]
fn explicit_where_implicit_was_agreed_is_read_and_the_other_way_round() {
    assert_all_found(&facts(&IMPLICIT_LITTLE_ENDIAN, &Set::named(Encoding::Explicit).with_the_rest().bytes));
    assert_all_found(&facts(&EXPLICIT_LITTLE_ENDIAN, &Set::named(Encoding::Implicit).with_the_rest().bytes));
}

fn deflated() -> Uid {
    "1.2.840.10008.1.2.1.99".parse().unwrap()
}

#[test]
fn a_deflated_data_set_is_laid_open_as_far_as_its_header() {
    let plain = Set::named(Encoding::Explicit).with_the_rest().bytes;
    let mut packed = miniz_oxide::deflate::compress_to_vec(&plain, 6);
    assert_all_found(&facts(&deflated(), &packed));
    packed.push(0); // to an even length
    assert_all_found(&facts(&deflated(), &packed));
}

#[test]
fn what_is_not_deflated_or_ends_too_early_is_not_readable() {
    for data_set in [&[0xff; 100][..], b"", &Set::named(Encoding::Explicit).bytes] {
        assert!(facts(&deflated(), data_set).unreadable);
    }
    let packed = miniz_oxide::deflate::compress_to_vec(&Set::named(Encoding::Explicit).with_the_rest().bytes, 6);
    assert!(facts(&deflated(), &packed[..packed.len() / 2]).unreadable);
}

#[test]
fn a_few_bytes_that_would_inflate_to_many_are_not_inflated_further_than_is_looked() {
    // Empty elements without end, and one long one: 64 MiB each.
    let mut long = Vec::new();
    element::write_header(Encoding::Explicit, (Tag(0x0008_0001), b"OB"), 64 << 20, &mut long);
    long.resize(64 << 20, 0);
    let mut empty = Vec::new();
    element::write_header(Encoding::Explicit, (Tag(0x0008_0005), b"CS"), 0, &mut empty);
    for bomb in [long, empty.repeat(8 << 20)] {
        let packed = miniz_oxide::deflate::compress_to_vec(&bomb, 1);
        assert!(packed.len() < bomb.len() / 50);
        let mut scanner = Scanner::new(&deflated());
        let taken = packed.chunks(512).take_while(|piece| {
            scanner.push(piece);
            !scanner.is_done()
        });
        assert!(taken.count() < packed.len() / 512 / 10, "it looked at most of it");
        assert!(scanner.finish().unreadable);
    }
}

#[test]
fn the_end_of_a_data_set_without_pixels_is_an_end() {
    let facts = Set::named(Encoding::Explicit).with(0x0020_000d, b"UI", b"1.2.4").facts();
    assert!(facts.complete && !facts.unreadable);
    assert_eq!((facts.series, facts.modality), (None, None));
}

#[test]
fn a_data_set_that_breaks_off_is_not_readable_but_keeps_what_was_found() {
    let mut set = Set::named(Encoding::Implicit).with(0x0020_000d, b"UI", b"1.2.4");
    set.bytes.pop();
    let facts = set.facts();
    assert!(facts.unreadable && !facts.complete);
    assert_eq!((facts.sop_class, facts.study), (Some(CT_IMAGE), None));
}

#[test]
fn what_is_no_data_set_is_not_readable() {
    for (_, syntax) in ENCODINGS {
        for junk in
            [&b"GET / HTTP/1.1\r\nHost: wardgate\r\n\r\n"[..], b"x", &[0xff; 64], b"%PDF-1.7 .............", b""]
        {
            let facts = facts(&syntax, junk);
            assert!(facts.unreadable && !facts.complete, "{syntax} {junk:?} {facts:?}");
        }
    }
}

#[test]
fn a_length_of_gigabytes_costs_nothing() {
    for (encoding, _) in ENCODINGS {
        for length in [1 << 30, UNDEFINED - 1] {
            let facts = Set::named(encoding).head(Tag(0x0009_1010), b"OB", length).facts();
            assert!(!facts.complete && !facts.unreadable, "{facts:?}: what comes after it is too far away");
            assert_eq!(facts.sop_class, Some(CT_IMAGE));
        }
        // Of a value that is wanted, too.
        let facts = Set::named(encoding).head(Tag(0x0020_000d), b"UN", 1 << 30).facts();
        assert_eq!((facts.study, facts.complete), (None, false));
        // Before it is known which instance it is, this is most likely no data set.
        let facts = Set::new(encoding).head(Tag(0x0009_1010), b"OB", 1 << 30).facts();
        assert!(facts.unreadable);
    }
}

#[test]
fn sequences_in_each_other_are_followed_to_a_limit() {
    for (encoding, _) in ENCODINGS {
        for (levels, is_well) in [(DEPTH_MAX / 2, true), (20_000, false)] {
            let open = |set: Set, _| set.head(Tag(0x0008_1140), b"SQ", UNDEFINED).head(ITEM, b"  ", UNDEFINED);
            let close = |set: Set, _| set.head(ITEM_END, b"  ", 0).head(SEQUENCE_END, b"  ", 0);
            let set = (0..levels).fold(Set::named(encoding), open);
            let facts = (0..levels).fold(set, close).with_the_rest().facts();
            assert_eq!((facts.complete, facts.unreadable), (is_well, !is_well), "{levels} levels");
        }
    }
}

#[test]
fn it_stops_before_the_pixels() {
    let mut scanner = Scanner::new(&EXPLICIT_LITTLE_ENDIAN);
    let set = Set::named(Encoding::Explicit).with_the_rest();
    scanner.push(&set.bytes[..set.bytes.len() - 1]);
    assert!(!scanner.is_done());
    scanner.push(&set.bytes[set.bytes.len() - 1..]);
    assert!(scanner.is_done());
    scanner.push(&[0; 1000]);
    assert_all_found(scanner.facts());
}

#[test]
fn it_looks_no_further_than_its_limit() {
    let mut scanner = Scanner::new(&IMPLICIT_LITTLE_ENDIAN);
    let private = Set::new(Encoding::Implicit).with(0x0009_1010, b"UN", &[0; 1000]).bytes;
    let named = Set::named(Encoding::Implicit).bytes;
    scanner.push(&named);
    let mut pushed = named.len() as u64;
    while !scanner.is_done() {
        scanner.push(&private);
        pushed += private.len() as u64;
    }
    assert!(pushed <= SCAN_BYTES_MAX + private.len() as u64, "{pushed}");
    let facts = scanner.finish();
    assert!(!facts.complete && !facts.unreadable);
}

#[test]
fn elements_in_disorder_are_found_all_the_same() {
    let facts = Set::new(Encoding::Explicit)
        .with(0x0020_000d, b"UI", b"1.2.4")
        .with(0x0020_000e, b"UI", b"1.2.5")
        .with(0x0028_0010, b"US", &[0, 1])
        .with(0x0010_0020, b"LO", b"P-77")
        .with(0x0008_0018, b"UI", b"1.2.3")
        .with(0x0008_0016, b"UI", b"1.2.840.10008.5.1.4.1.1.2")
        .facts();
    assert_all_found(&facts);
}

#[test]
fn values_that_are_empty_or_too_long_are_none() {
    let long = vec![b'x'; VALUE_BYTES_MAX + 2];
    let facts = Set::named(Encoding::Explicit)
        .with(0x0008_0050, b"SH", b"")
        .with(0x0008_0060, b"CS", b"  ")
        .with(0x0010_0020, b"LO", &long)
        .with(0x0020_000d, b"UI", &long[..66])
        .facts();
    assert!(facts.complete);
    assert_eq!((facts.accession_number, facts.modality, facts.patient_id, facts.study), (None, None, None, None));
}

#[test]
fn only_blanks_around_a_value_are_taken_off() {
    let facts =
        Set::named(Encoding::Explicit).with(0x0008_0050, b"SH", b"\r").with(0x0010_0020, b"LO", b"  a b\t ").facts();
    assert_eq!(facts.accession_number.as_deref(), Some(&b"\r"[..]));
    assert_eq!(facts.patient_id.as_deref(), Some(&b"a b\t"[..]));
}

#[test]
fn patients_are_never_shown() {
    let set = Set::named(Encoding::Explicit).with(0x0008_0050, b"SH", b"ACC-1").with(0x0010_0020, b"LO", b"P-77");
    let mut scanner = Scanner::new(&EXPLICIT_LITTLE_ENDIAN);
    scanner.push(&set.bytes[..set.bytes.len() - 1]);
    let shown = format!("{scanner:?} {:?} {:#?}", set.facts(), set.facts());
    for secret in ["ACC-1", "P-77", "80, 45, 55", "65, 67, 67"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn a_sample_is_read_as_what_it_is() {
    let [instance, study, series]: [Uid; 3] = ["2.25.1", "2.25.2", "2.25.3"].map(|text| text.parse().unwrap());
    let sample = Sample {
        sop_instance: &instance,
        study: &study,
        series: &series,
        number: 1,
        date: "20260102",
        time: "030405",
        side: 64,
    };
    let data_set = sample.data_set();
    assert!(data_set.len() > 64 * 64 && data_set.len().is_multiple_of(2));
    let facts = facts(&EXPLICIT_LITTLE_ENDIAN, &data_set);
    assert!(facts.complete);
    assert_eq!((facts.sop_class, facts.sop_instance), (Some(SECONDARY_CAPTURE), Some(instance)));
    assert_eq!((facts.study, facts.series, facts.modality.as_deref()), (Some(study), Some(series), Some("OT")));
    assert_eq!(facts.patient_id.as_deref(), Some(&b"WARDGATE-TEST"[..]));
}

proptest! {
    #[test]
    fn no_cut_changes_the_facts(
        values in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        noise in prop::collection::vec(any::<u8>(), 0..60),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        which in 0_usize..3,
    ) {
        const TAGS: [(u32, &[u8; 2]); 8] = [
            (0x0008_0005, b"CS"), (0x0008_0016, b"UI"), (0x0008_0018, b"UI"), (0x0008_1140, b"SQ"),
            (0x0009_1001, b"UN"), (0x0010_0020, b"LO"), (0x0020_000d, b"UI"), (0x0028_0010, b"US"),
        ];
        let (encoding, syntax) = ENCODINGS[which].clone();
        let mut set = Set::new(encoding);
        for (kind, value) in values {
            let (tag, vr) = TAGS[usize::from(kind % 8)];
            set = match kind / 8 {
                0 => set.head(Tag(tag), vr, UNDEFINED),
                1 => set.head(ITEM, b"  ", UNDEFINED),
                2 => set.head(ITEM_END, b"  ", 0),
                3 => set.head(SEQUENCE_END, b"  ", 0),
                _ => set.with(tag, vr, &value),
            };
        }
        let bytes = [set.bytes, noise].concat();
        let whole = facts(&syntax, &bytes);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        places.sort_unstable();
        let (mut scanner, mut from) = (Scanner::new(&syntax), 0);
        for place in places.into_iter().chain([bytes.len()]) {
            scanner.push(&bytes[from..place]);
            from = place;
        }
        prop_assert_eq!(scanner.finish(), whole);
    }
}
