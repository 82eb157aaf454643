//! What a conversion keeps, what it changes, and what it refuses.

use super::convert::{ConvertError, Converter, DEPTH_MAX, other};
use super::element::{self as element, Encoding, ITEM, ITEM_END, SEQUENCE_END, Tag, UNDEFINED};
use super::sample::Sample;
use super::values::{EXPLICIT_BIG_ENDIAN, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN, Uid};

fn converted(syntax: &Uid, bytes: &[u8], step: usize) -> Result<Vec<u8>, ConvertError> {
    let (mut converter, mut out) = (Converter::from(syntax).unwrap(), Vec::new());
    for piece in bytes.chunks(step) {
        converter.push(piece, &mut out)?;
    }
    converter.finish().map(|()| out)
}

fn to_explicit(bytes: &[u8]) -> Result<Vec<u8>, ConvertError> {
    converted(&IMPLICIT_LITTLE_ENDIAN, bytes, 7)
}

fn to_implicit(bytes: &[u8]) -> Result<Vec<u8>, ConvertError> {
    converted(&EXPLICIT_LITTLE_ENDIAN, bytes, 7)
}

type Part<'a> = (u32, &'a [u8; 2], &'a [u8]);

fn set(encoding: Encoding, parts: &[Part<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, vr, value) in parts {
        element::write(encoding, (Tag(*tag), vr), value, &mut out);
    }
    out
}

fn delimited(encoding: Encoding, tag: u32, vr: &[u8; 2], items: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    element::write_header(encoding, (Tag(tag), vr), UNDEFINED, &mut out);
    for item in items {
        element::write_header(encoding, (ITEM, b"UN"), UNDEFINED, &mut out);
        out.extend_from_slice(item);
        element::write_header(encoding, (ITEM_END, b"UN"), 0, &mut out);
    }
    element::write_header(encoding, (SEQUENCE_END, b"UN"), 0, &mut out);
    out
}

/// With the lengths of the sequence and its items.
fn measured(encoding: Encoding, tag: u32, items: &[&[u8]]) -> Vec<u8> {
    let mut inside = Vec::new();
    for item in items {
        element::write(encoding, (ITEM, b"UN"), item, &mut inside);
    }
    set(encoding, &[(tag, b"SQ", &inside)])
}

use Encoding::{Explicit, Implicit};

#[test]
fn an_image_goes_there_and_back_in_pieces_of_any_size() {
    let (one, two, three): (Uid, Uid, Uid) = ("1.2".parse().unwrap(), "1.3".parse().unwrap(), "1.4".parse().unwrap());
    let (date, time) = ("20260102", "030405");
    let explicit =
        Sample { sop_instance: &one, study: &two, series: &three, number: 1, date, time, side: 16 }.data_set();
    let implicit = to_implicit(&explicit).unwrap();
    assert!(implicit.len() < explicit.len());
    for step in [1, 3, 4096] {
        assert_eq!(converted(&EXPLICIT_LITTLE_ENDIAN, &explicit, step).unwrap(), implicit);
        let back = converted(&IMPLICIT_LITTLE_ENDIAN, &implicit, step).unwrap();
        assert_eq!(to_implicit(&back).unwrap(), implicit);
    }
}

#[test]
fn sequences_get_undefined_length_and_empty_ones_stay_empty() {
    let inner = |encoding| set(encoding, &[(0x0008_1150, b"UI", b"1.2"), (0x0008_1155, b"UI", b"1.3")]);
    for (from, to, convert) in [
        (Implicit, Explicit, to_explicit as fn(&[u8]) -> Result<Vec<u8>, ConvertError>),
        (Explicit, Implicit, to_implicit),
    ] {
        let expected = delimited(to, 0x0008_1140, b"SQ", &[&inner(to), &inner(to)]);
        assert_eq!(convert(&measured(from, 0x0008_1140, &[&inner(from), &inner(from)])).unwrap(), expected);
        assert_eq!(convert(&delimited(from, 0x0008_1140, b"SQ", &[&inner(from), &inner(from)])).unwrap(), expected);
        let nested = |encoding| delimited(encoding, 0x0008_1140, b"SQ", &[&inner(encoding)]);
        let within = measured(from, 0x0008_1115, &[&nested(from)]);
        assert_eq!(convert(&within).unwrap(), delimited(to, 0x0008_1115, b"SQ", &[&nested(to)]));
        let empty = |encoding| set(encoding, &[(0x0008_1140, b"SQ", b""), (0x0010_0010, b"PN", b"")]);
        assert_eq!(convert(&empty(from)).unwrap(), empty(to));
    }
}

#[test]
fn group_lengths_are_left_out() {
    let with = set(Implicit, &[(0x0008_0000, b"UL", &[9, 0, 0, 0]), (0x0008_0060, b"CS", b"CT")]);
    assert_eq!(to_explicit(&with).unwrap(), set(Explicit, &[(0x0008_0060, b"CS", b"CT")]));
}

#[test]
fn un_is_written_for_what_the_dictionary_does_not_know_and_for_texts_that_are_too_long() {
    let long = vec![b'x'; 70_000];
    let implicit = |parts: &[Part<'_>]| to_explicit(&set(Implicit, parts)).unwrap();
    assert_eq!(
        implicit(&[(0x0009_0010, b"LO", b"MAKER"), (0x0009_1001, b"??", b"ab"), (0x0010_4000, b"LT", &long)]),
        set(Explicit, &[(0x0009_0010, b"LO", b"MAKER"), (0x0009_1001, b"UN", b"ab"), (0x0010_4000, b"UN", &long)])
    );
    let inside = set(Implicit, &[(0x0009_1002, b"UN", b"ab")]);
    let private = delimited(Implicit, 0x0009_1003, b"UN", &[&inside, &delimited(Implicit, 0x0009_1004, b"UN", &[])]);
    let expected = [&set(Explicit, &[(0x0009_1003, b"UN", b"")])[..8], &[0xff; 4], &private[8..]].concat();
    assert_eq!(to_explicit(&private).unwrap(), expected);
    assert_eq!(to_implicit(&expected).unwrap(), private);
}

#[test]
fn the_sign_of_the_pixels_holds_for_its_item_and_those_in_it() {
    let smallest: Part<'_> = (0x0028_0106, b"SS", &[1, 0]);
    let sign: Part<'_> = (0x0028_0103, b"US", &[1, 0]);
    let item = set(Implicit, &[sign, smallest]);
    let bytes = [delimited(Implicit, 0x0008_1140, b"SQ", &[&item]), set(Implicit, &[smallest])].concat();
    let item = set(Explicit, &[sign, smallest]);
    let outside: Part<'_> = (0x0028_0106, b"US", &[1, 0]);
    let expected = [delimited(Explicit, 0x0008_1140, b"SQ", &[&item]), set(Explicit, &[outside])].concat();
    assert_eq!(to_explicit(&bytes).unwrap(), expected);
}

#[test]
fn what_is_no_such_data_set_is_refused() {
    let compressed = delimited(Explicit, 0x7fe0_0010, b"OB", &[]);
    assert_eq!(to_implicit(&compressed), Err(ConvertError::Compressed));
    let whole = set(Explicit, &[(0x0008_0060, b"CS", b"CT"), (0x0008_0070, b"LO", b"MAKER")]);
    for length in 1..whole.len() {
        let cut = to_implicit(&whole[..length]);
        assert!(length == 10 || cut == Err(ConvertError::Truncated), "{length}");
    }
    assert_eq!(to_explicit(&whole), Err(ConvertError::Nonsense), "it is explicit already");
    let item = set(Explicit, &[(0x0008_1150, b"UI", b"1.2")]);
    let mut lies = measured(Explicit, 0x0008_1140, &[&item]);
    lies[16] += 1; // the item ends beyond its sequence
    assert_eq!(to_implicit(&lies), Err(ConvertError::Nonsense));
    for (tag, length) in [(ITEM_END, 0), (SEQUENCE_END, 0), (ITEM, 0), (Tag(0), 0), (Tag(0x0008_0000), UNDEFINED)] {
        let mut stray = Vec::new();
        element::write_header(Explicit, (tag, b"UL"), length, &mut stray);
        assert!(to_implicit(&stray).is_err(), "{tag}");
    }
    // Read back without representations, these would be taken for what they are not.
    assert_eq!(to_implicit(&set(Explicit, &[(0x0008_0051, b"SH", b"1.2 ")])), Err(ConvertError::Nonsense));
    assert_eq!(to_implicit(&measured(Explicit, 0x0008_0060, &[&item])), Err(ConvertError::Nonsense));
    let nested = |levels: usize| {
        let mut bytes = Vec::new();
        for _ in 0..levels {
            element::write_header(Explicit, (Tag(0x0008_1140), b"SQ"), UNDEFINED, &mut bytes);
            element::write_header(Explicit, (ITEM, b"UN"), UNDEFINED, &mut bytes);
        }
        to_implicit(&bytes)
    };
    assert_eq!(nested(DEPTH_MAX), Err(ConvertError::TooDeep));
    assert_eq!(nested(DEPTH_MAX / 2), Err(ConvertError::Truncated));
}

#[test]
fn only_the_two_uncompressed_little_endian_encodings_are_converted() {
    assert_eq!(other(&IMPLICIT_LITTLE_ENDIAN), Some(EXPLICIT_LITTLE_ENDIAN));
    assert_eq!(other(&EXPLICIT_LITTLE_ENDIAN), Some(IMPLICIT_LITTLE_ENDIAN));
    assert_eq!(other(&EXPLICIT_BIG_ENDIAN), None);
    assert!(Converter::from(&"1.2.840.113619.5.2".parse().unwrap()).is_none(), "its pixels are big endian");
}
