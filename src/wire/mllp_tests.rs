//! The tolerances of the framing one by one, and that no cut of the stream changes what is read.

use proptest::prelude::*;

use super::mllp::{BODY_BYTES_MAX, Decoder, End, Event, FS, Quirks, VT, encode};

/// What a reader of the stream would hold in the end.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    frames: Vec<(Vec<u8>, String, u64)>,
    cut: u64,
    oversize: usize,
    junk: u64,
    unfinished: Vec<u8>,
}

fn decoded<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, limit: u64) -> Seen {
    let (mut decoder, mut seen) = (Decoder::new(limit), Seen::default());
    for chunk in chunks {
        let mut input = chunk;
        while let Some(event) = decoder.pull(&mut input) {
            match event {
                Event::Body(bytes) => {
                    assert!(!bytes.is_empty());
                    seen.unfinished.extend_from_slice(bytes);
                }
                Event::End(end) => finish(&mut seen, end),
                Event::Cut(length) => {
                    seen.cut += length;
                    seen.unfinished.clear();
                }
                Event::Oversize => {
                    seen.oversize += 1;
                    seen.unfinished.clear();
                }
                Event::Junk(count) => seen.junk += count,
            }
        }
        assert!(input.is_empty());
    }
    if let Some(end) = decoder.settle() {
        finish(&mut seen, end);
    }
    seen
}

fn finish(seen: &mut Seen, end: End) {
    let body = std::mem::take(&mut seen.unfinished);
    if !end.quirks.has(Quirks::OVERSIZE) {
        assert_eq!(end.length, body.len() as u64);
    }
    seen.frames.push((body, end.quirks.to_string(), end.discarded));
}

/// Decodes `stream` whole, cut at each byte, and byte by byte; all must agree.
fn all_ways(stream: &[u8]) -> Seen {
    let whole = decoded([stream], BODY_BYTES_MAX);
    assert_eq!(decoded(stream.chunks(1), BODY_BYTES_MAX), whole, "byte by byte");
    for place in 0..stream.len() {
        let (a, b) = stream.split_at(place);
        assert_eq!(decoded([a, b], BODY_BYTES_MAX), whole, "cut at {place}");
    }
    whole
}

fn frames(stream: &[u8]) -> Vec<(String, String, u64)> {
    let seen = all_ways(stream);
    assert!(seen.unfinished.is_empty(), "{seen:?}");
    seen.frames.into_iter().map(|(body, q, d)| (String::from_utf8_lossy(&body).into_owned(), q, d)).collect()
}

fn one(stream: &[u8]) -> (String, String, u64) {
    let mut all = frames(stream);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn frame(body: &str, quirks: &str, discarded: u64) -> (String, String, u64) {
    (body.into(), quirks.into(), discarded)
}

#[test]
fn a_frame_gives_back_its_body() {
    assert_eq!(one(b"\x0bMSH|a\r\x1c\r"), frame("MSH|a\r", "", 0));
}

#[test]
fn several_frames_in_one_read_come_out_in_order() {
    let all = frames(b"\x0bMSH|1\r\x1c\r\x0bMSH|2\r\x1c\r\x0bMSH|3\r\x1c\r");
    assert_eq!(all, [frame("MSH|1\r", "", 0), frame("MSH|2\r", "", 0), frame("MSH|3\r", "", 0)]);
}

#[test]
fn what_the_encoder_writes_the_decoder_reads() {
    let mut stream = Vec::new();
    encode(b"MSH|1\r", &mut stream);
    encode(b"MSH|2\r", &mut stream);
    assert_eq!(frames(&stream), [frame("MSH|1\r", "", 0), frame("MSH|2\r", "", 0)]);
}

#[test]
fn a_lost_vt_is_tolerated_where_a_header_begins() {
    assert_eq!(one(b"MSH|a\r\x1c\r"), frame("MSH|a\r", "missing-vt", 0));
    assert_eq!(one(b"\r\n FHS|a\r\x1c\r"), frame("FHS|a\r", "missing-vt", 0));
    let all = frames(b"\x0bMSH|1\r\x1c\rBHS|2\r\x1c\r");
    assert_eq!(all, [frame("MSH|1\r", "", 0), frame("BHS|2\r", "missing-vt", 0)]);
}

#[test]
fn fs_without_cr_ends_a_frame_when_the_next_begins_or_nothing_more_comes() {
    let all = frames(b"\x0bMSH|1\r\x1c\x0bMSH|2\r\x1c");
    assert_eq!(all, [frame("MSH|1\r", "fs-without-cr", 0), frame("MSH|2\r", "fs-without-cr", 0)]);
}

#[test]
fn a_cr_that_comes_after_the_lone_fs_was_settled_is_not_junk() {
    let mut decoder = Decoder::new(BODY_BYTES_MAX);
    let mut input: &[u8] = b"\x0bMSH|1\r\x1c";
    while decoder.pull(&mut input).is_some() {}
    assert!(decoder.is_undecided() && decoder.is_in_frame());
    assert_eq!(decoder.settle().unwrap().quirks, Quirks::FS_WITHOUT_CR);
    assert_eq!(decoder.settle(), None);
    let mut input: &[u8] = b"\r\x0bMSH|2\r\x1c\r";
    assert_eq!(decoder.pull(&mut input), Some(Event::Body(b"MSH|2\r")));
    assert_eq!(decoder.pull(&mut input), Some(Event::End(End { length: 6, quirks: Quirks::default(), discarded: 0 })));
}

#[test]
fn fs_lf_ends_a_frame() {
    let all = frames(b"\x0bMSH|1\r\x1c\n\x0bMSH|2\r\x1c\r\n");
    assert_eq!(all, [frame("MSH|1\r", "fs-lf", 0), frame("MSH|2\r", "", 0)]);
}

#[test]
fn junk_between_frames_is_counted_and_does_no_harm() {
    let stream = b"noise\x0bMSH|1\r\x1c\r\x1c\rmore MSH\x0bMSH|2\r\x1c\r";
    let all = frames(stream);
    assert_eq!(all, [frame("MSH|1\r", "junk-before", 0), frame("MSH|2\r", "junk-before", 0)]);
    assert_eq!(all_ways(stream).junk, 13);
}

#[test]
fn junk_before_a_lost_vt_may_be_part_of_the_message() {
    assert_eq!(one(b"PID|9\rMSH|a\r\x1c\r"), frame("MSH|a\r", "missing-vt,junk-before", 5));
}

#[test]
fn white_space_before_the_header_stays_in_the_body() {
    assert_eq!(one(b"\x0b\r\n MSH|a\r\x1c\r"), frame("\r\n MSH|a\r", "leading-white-space", 0));
}

#[test]
fn empty_frames_are_only_marked() {
    let all = frames(b"\x0b\x1c\r\x0bMSH|1\r\x1c\r\x0b\x1c");
    assert_eq!(all, [frame("", "empty-frame", 0), frame("MSH|1\r", "", 0), frame("", "fs-without-cr,empty-frame", 0)]);
}

#[test]
fn fs_inside_a_body_belongs_to_it() {
    assert_eq!(one(b"\x0bMSH|a\x1cb\r\x1c\r"), frame("MSH|a\x1cb\r", "fs-in-body", 0));
    assert_eq!(one(b"\x0bMSH|a\x1c\x1c\r"), frame("MSH|a\x1c", "fs-in-body", 0));
}

#[test]
fn vt_inside_a_body_belongs_to_it_unless_a_header_follows() {
    assert_eq!(one(b"\x0bMSH|a\x0bMS|\x0b\r\x1c\r"), frame("MSH|a\x0bMS|\x0b\r", "vt-in-body", 0));
    assert_eq!(one(b"\x0bMSH|a\x0b\x1c\r"), frame("MSH|a\x0b", "vt-in-body", 0));
    assert_eq!(one(b"\x0bMSH|a\x0bF\x0bB\x1c\r"), frame("MSH|a\x0bF\x0bB", "vt-in-body", 0));
}

#[test]
fn a_frame_begun_anew_says_what_was_thrown_away() {
    let stream = b"\x0bMSH|half\x0bMSH|whole\r\x1c\r";
    assert_eq!(one(stream), frame("MSH|whole\r", "begun-anew", 8));
    assert_eq!(all_ways(stream).cut, 8);
    assert_eq!(one(b"\x0b\x0bMSH|a\r\x1c\r"), frame("MSH|a\r", "begun-anew", 0));
}

#[test]
fn nul_is_a_byte_like_any_other() {
    assert_eq!(one(b"\x0bMSH|a\0b\r\x1c\r"), frame("MSH|a\0b\r", "", 0));
}

#[test]
fn an_oversize_frame_is_skipped_and_the_next_one_is_read() {
    let stream = b"\x0bMSH|0123456789\r\x1c\r\x0bMSH|1\r\x1c\r";
    for chunk in [1, 3, 100] {
        let seen = decoded(stream.chunks(chunk), 8);
        assert_eq!(seen.oversize, 1);
        assert_eq!(seen.frames[0], (vec![], "oversize".into(), 0));
        assert_eq!(seen.frames[1], (b"MSH|1\r".to_vec(), String::new(), 0));
    }
}

/// Streams that are dense in the bytes that matter.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(VT),
        Just(FS),
        Just(b'\r'),
        Just(b'\n'),
        Just(b' '),
        Just(b'M'),
        Just(b'S'),
        Just(b'H'),
        Just(b'F'),
        Just(b'B'),
        any::<u8>()
    ];
    let piece =
        prop_oneof![Just(b"\x0bMSH|".to_vec()), Just(b"\x1c\r".to_vec()), proptest::collection::vec(byte, 0..8)];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_split_of_any_stream_gives_the_same_frames(
        stream in hostile(), cuts in proptest::collection::vec(0usize..100, 0..6), limit in 0u64..40,
    ) {
        let whole = decoded([&stream[..]], limit);
        let mut places: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
        places.extend([0, stream.len()]);
        places.sort_unstable();
        let pieces = places.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        prop_assert_eq!(decoded(pieces, limit), whole);
    }

    #[test]
    fn body_in_is_body_out(bodies in proptest::collection::vec("[^\\x0b\\x1c]{0,60}", 0..6)) {
        let mut stream = Vec::new();
        bodies.iter().for_each(|body| encode(body.as_bytes(), &mut stream));
        let seen = decoded(stream.chunks(7), BODY_BYTES_MAX);
        let out: Vec<_> = seen.frames.iter().map(|(body, ..)| String::from_utf8(body.clone()).unwrap()).collect();
        prop_assert_eq!(out, bodies);
        prop_assert_eq!(seen.junk, 0);
    }
}
