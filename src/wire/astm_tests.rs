//! Tests of the framing: the vectors of vendors' guides, each thing that devices do wrong, and any stream cut anyhow.

use proptest::prelude::*;

use super::astm::{ACK, ENQ, EOT, ETX, Event, Fault, NAK, Receiver, STX, TEXT_BYTES_MAX, encode};

/// Takes everything in; frames that come are accepted, as after a commit.
fn run<'a>(receiver: &mut Receiver, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
    let mut seen = Vec::new();
    for mut input in chunks {
        while let Some(event) = receiver.pull(&mut input) {
            if let Event::Frame(frame) = &event {
                receiver.accept(frame.number, frame.fingerprint());
            }
            seen.push(event);
        }
        assert!(input.is_empty());
    }
    seen
}

fn all(bytes: &[u8]) -> Vec<Event> {
    run(&mut Receiver::default(), [bytes])
}

fn frame(number: u8, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(number, text, true, &mut out);
    out
}

/// Numbers and texts of the frames that were taken.
fn taken(events: &[Event]) -> Vec<(u8, String)> {
    let frames = events.iter().filter_map(|event| match event {
        Event::Frame(frame) => Some((frame.number, String::from_utf8_lossy(&frame.text).into_owned())),
        _ => None,
    });
    frames.collect()
}

const HEADER: &[u8] = b"\x021H|\\^&\r\x03E5\r\n";
const TERMINATOR: &[u8] = b"\x022L|1|N\r\x0305\r\n";

#[test]
fn the_vectors_of_the_guides_are_read_and_written() {
    assert_eq!((frame(1, b"H|\\^&\r"), frame(2, b"L|1|N\r")), (HEADER.to_vec(), TERMINATOR.to_vec()));
    let events = all(&[&[ENQ], HEADER, TERMINATOR, &[EOT]].concat());
    assert_eq!(taken(&events), [(1, "H|\\^&\r".into()), (2, "L|1|N\r".into())]);
    assert_eq!(events[0], Event::Enquiry { cut: false });
    assert_eq!(events[3], Event::End { frames: 2 });
    let answers: Vec<_> = events.iter().map(Event::answer).collect();
    assert_eq!(answers, [Some(ACK), Some(ACK), Some(ACK), None]);
}

#[test]
fn a_checksum_in_lower_case_is_one_and_a_wrong_one_is_asked_for_again() {
    let lower = HEADER.to_ascii_lowercase();
    let lower = [&HEADER[..9], &lower[9..]].concat();
    assert_eq!(taken(&all(&[&[ENQ], &lower[..]].concat())).len(), 1);
    let mut wrong = HEADER.to_vec();
    wrong[9] = b'0';
    let events = all(&[&[ENQ], &wrong[..], HEADER].concat());
    assert_eq!(events[1], Event::BadFrame(Fault::Checksum));
    assert_eq!((events[1].answer(), taken(&events).len()), (Some(NAK), 1));
    let none = all(b"\x05\x021H|\\^&\r\x03\r\n");
    assert_eq!(none[1], Event::BadFrame(Fault::Malformed));
}

#[test]
fn a_second_copy_is_known_by_number_and_text_and_nothing_else_is_taken_for_one() {
    let events = all(&[&[ENQ], HEADER, HEADER, TERMINATOR].concat());
    assert_eq!(events[2], Event::Repeat);
    assert_eq!((events[2].answer(), taken(&events).len()), (Some(ACK), 2));
    // A device that numbers all its frames 1.
    let events = all(&[&[ENQ], HEADER, &frame(1, b"L|1|N\r")[..]].concat());
    assert_eq!(taken(&events).len(), 2);
    // One that begins to count anew with each message of a transfer.
    let events = all(&[&[ENQ], HEADER, TERMINATOR, HEADER].concat());
    assert_eq!(taken(&events).len(), 3);
    // One that has lost a frame.
    let events = all(&[&[ENQ], HEADER, &frame(3, b"R|1\r")[..]].concat());
    assert_eq!(events[2], Event::BadFrame(Fault::Number));
}

#[test]
fn numbers_go_round_after_seven() {
    let mut stream = vec![ENQ];
    for number in 1..=20u8 {
        encode(number, format!("R|{number}\r").as_bytes(), number % 3 != 0, &mut stream);
    }
    assert_eq!(taken(&all(&stream)).len(), 20);
}

#[test]
fn an_enquiry_right_before_the_end_is_a_sign_of_life() {
    assert_eq!(all(&[ENQ, EOT]), [Event::Enquiry { cut: false }, Event::End { frames: 0 }]);
}

#[test]
fn an_enquiry_in_the_middle_begins_anew_and_tells_what_it_cut() {
    let events = all(&[&[ENQ], HEADER, &[STX, b'2', b'R', ENQ], HEADER].concat());
    assert!(events.contains(&Event::Enquiry { cut: true }), "{events:?}");
    assert_eq!(taken(&events).len(), 2, "the header after it is not a second copy");
}

#[test]
fn a_frame_that_begins_anew_is_read_from_its_new_beginning() {
    let events = all(&[&[ENQ, STX, b'1', b'H', b'|'], HEADER].concat());
    assert_eq!(taken(&events), [(1, "H|\\^&\r".into())]);
    assert!(events.contains(&Event::Junk(2)), "{events:?}");
}

#[test]
fn the_line_end_behind_a_checksum_may_be_missing() {
    let cut = &HEADER[..HEADER.len() - 2];
    let mut receiver = Receiver::default();
    assert_eq!(taken(&run(&mut receiver, [&[ENQ], cut])), []);
    assert!(receiver.is_undecided());
    assert!(matches!(receiver.settle(), Some(Event::Frame(_))));
    assert_eq!(receiver.settle(), None);
    assert_eq!(taken(&all(&[&[ENQ], cut, TERMINATOR].concat())).len(), 2);
    assert_eq!(taken(&all(&[&[ENQ], cut, b"\n", TERMINATOR, &[EOT]].concat())).len(), 2);
}

#[test]
fn text_that_is_not_astm_comes_out_as_it_is() {
    let events = all(b"\x05\x02\x1emtrsl|pi1|\x1d3f\x03\x04");
    assert_eq!(events[1], Event::Other(b"\x1emtrsl|pi1|\x1d3f".to_vec()));
    assert_eq!((events[1].answer(), events.len()), (Some(ACK), 3));
    let events = all(b"\x02 12:04 GLU 98\x0345\r\n\x02 12:05 GLU 99\x03");
    assert_eq!(events.len(), 2, "{events:?}");
}

/// HEADER and the frame that follows it, of which one byte was damaged on the line.
fn with_damage(at: usize, damaged: u8) -> Vec<Event> {
    let mut second = frame(2, b"R|1|^^^Fe|24.5\r");
    second[at] = damaged;
    all(&[&[ENQ], HEADER, &second[..], &frame(2, b"R|1|^^^Fe|24.5\r")[..]].concat())
}

#[test]
fn a_frame_of_which_any_byte_was_damaged_is_refused_and_never_acknowledged() {
    let whole = frame(2, b"R|1|^^^Fe|24.5\r");
    // A frame whose end is not recognised can't be answered: its sender waits, and asks again with ENQ.
    let end = whole.len() - 5;
    for at in (1..whole.len() - 2).filter(|at| *at != end) {
        for damaged in [ENQ, EOT, b'r', b'8', 0x1e].into_iter().filter(|damaged| *damaged != whole[at]) {
            let events = with_damage(at, damaged);
            let answers: Vec<u8> = events.iter().filter_map(Event::answer).collect();
            assert_eq!(answers, [ACK, ACK, NAK, ACK], "byte {at} became {damaged:#04x}: {events:?}");
            assert_eq!(taken(&events).len(), 2, "byte {at} became {damaged:#04x}");
        }
    }
}

#[test]
fn a_frame_that_is_not_good_is_refused_when_it_is_over_and_not_before() {
    for (damaged, rest) in
        [("\x022R|1\r\x0300", ""), ("\x028R|1\r\x0300", "\r\n"), ("\x028R|1\r\x03", ""), ("\x022R|1\r\x030", "\r\n")]
    {
        let mut receiver = Receiver::default();
        assert_eq!(run(&mut receiver, [&[ENQ][..], HEADER, damaged.as_bytes()]).len(), 2, "it may still go on");
        let told = run(&mut receiver, [rest.as_bytes()]).into_iter().next().or_else(|| receiver.settle());
        assert!(matches!(told, Some(Event::BadFrame(_))), "{told:?}");
    }
}

#[test]
fn a_frame_that_was_cut_behind_its_end_and_comes_again_at_once_is_taken_without_a_refusal() {
    let whole = frame(2, b"R|1|^^^Fe|24.5\r");
    let end = whole.iter().position(|byte| *byte == ETX).unwrap() + 1;
    for cut in [end, end + 1] {
        let events = all(&[&[ENQ], HEADER, &whole[..cut], &whole].concat());
        let answers: Vec<u8> = events.iter().filter_map(Event::answer).collect();
        assert_eq!((answers, taken(&events).len()), (vec![ACK, ACK, ACK], 2), "cut at {cut}: {events:?}");
    }
}

#[test]
fn the_number_of_the_first_frame_may_be_damaged_too() {
    let mut damaged = HEADER.to_vec();
    damaged[1] = b'q';
    let events = all(&[&[ENQ], &damaged[..], HEADER].concat());
    assert_eq!(events[1], Event::BadFrame(Fault::Number));
    assert_eq!(taken(&events).len(), 1);
}

#[test]
fn an_enquiry_inside_a_frame_is_one_when_nothing_follows_it() {
    let mut receiver = Receiver::default();
    assert_eq!(run(&mut receiver, [&[ENQ][..], HEADER, &[STX, b'2', b'R', ENQ]]).len(), 2);
    assert!(receiver.is_undecided());
    assert_eq!(receiver.settle(), Some(Event::Enquiry { cut: true }));
    assert_eq!(run(&mut receiver, [&[STX, b'1', b'H', EOT][..]]), [Event::Junk(1)]);
    assert_eq!((receiver.settle(), receiver.is_undecided()), (Some(Event::End { frames: 0 }), false));
}

#[test]
fn a_frame_without_a_checksum_leaves_nothing_in_the_next() {
    let events = all(&[&[ENQ, STX, b'1', b'H', ETX][..], b"\r\n", HEADER].concat());
    assert_eq!(taken(&events), [(1, "H|\\^&\r".into())]);
}

#[test]
fn records_without_framing_come_out_up_to_their_terminator() {
    let message = b"H|\\^&|||X\rP|1\rL|1|N\r";
    assert_eq!(all(message), [Event::Bare(message.to_vec())]);
    assert_eq!(all(&[&message[..], message].concat()).len(), 2);
    let mut receiver = Receiver::default();
    assert_eq!(run(&mut receiver, [&b"H|\\^&\nP|1\nR|1"[..]]), []);
    assert!(receiver.is_in_frame());
    assert_eq!(receiver.give_up(), Some(Event::Bare(b"H|\\^&\nP|1\nR|1".to_vec())));
    assert_eq!(all(b"HELLO\rH\r"), [Event::Junk(6)]);
}

#[test]
fn what_stands_behind_a_damaged_frame_is_its_rest_and_no_record_set() {
    let damaged = |receiver: &mut Receiver| {
        let mut damaged = frame(1, b"P|1|abcdef\rH|\\^&|7\rL|1|N\r");
        damaged[8] = ETX;
        run(receiver, [&damaged[..]])
    };
    let mut receiver = Receiver::default();
    run(&mut receiver, [&[ENQ][..]]);
    let seen = damaged(&mut receiver);
    assert!(matches!(seen[..], [Event::BadFrame(_), Event::Junk(_)]), "{seen:?}");
    // Its sender is to say it again, after a pause or without one.
    assert_eq!(receiver.settle(), None);
    assert!(matches!(run(&mut receiver, [&b"H|\\^&|7\rL|1|N\r"[..]])[..], [Event::Junk(_)]));
    assert_eq!(taken(&run(&mut receiver, [HEADER])).len(), 1);
    // Outside of transfers a device that knows no framing may begin after a pause.
    let mut receiver = Receiver::default();
    assert!(matches!(damaged(&mut receiver)[..], [Event::BadFrame(_), Event::Junk(_)]));
    assert!(receiver.is_undecided());
    assert_eq!(receiver.settle(), None);
    let seen = run(&mut receiver, [&b"H|\\^&|7\rL|1|N\r"[..]]);
    assert_eq!(seen, [Event::Bare(b"H|\\^&|7\rL|1|N\r".to_vec())]);
}

#[test]
fn a_frame_without_an_enquiry_is_left_to_who_knows_what_was_before() {
    let mut receiver = Receiver::default();
    let events = run(&mut receiver, [TERMINATOR]);
    let [Event::Stray(frame)] = &events[..] else { panic!("{events:?}") };
    assert!(Receiver::fits((1, 0), frame) && Receiver::fits((2, frame.fingerprint()), frame));
    assert!(!Receiver::fits((2, 0), frame) && !Receiver::fits((4, 0), frame));
    receiver.resume(Some((1, 7)));
    assert!(matches!(receiver.judge(frame.clone()), Event::Frame(_)));
    receiver.resume(Some((2, frame.fingerprint())));
    assert_eq!(receiver.judge(frame.clone()), Event::Repeat);
}

#[test]
fn an_endless_frame_takes_no_memory_and_is_refused_at_its_end() {
    let mut receiver = Receiver::default();
    let noise = vec![b'R'; TEXT_BYTES_MAX];
    let events = run(&mut receiver, [&[ENQ, STX, b'1'], &noise[..], &noise, &noise, &[ETX], b"00\r\n", HEADER]);
    assert!(events.contains(&Event::BadFrame(Fault::TooLong)), "too long");
    assert_eq!(taken(&events).len(), 1);
}

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::collection::vec(prop_oneof![Just(b'\r'), b' '..=b'~', any::<u8>()], 0..30);
    let part = prop_oneof![
        (0u8..8, text.clone(), any::<bool>()).prop_map(|(number, text, last)| {
            let mut out = Vec::new();
            encode(number, &text, last, &mut out);
            out
        }),
        Just(vec![ENQ]),
        Just(vec![EOT]),
        Just(HEADER.to_vec()),
        Just(TERMINATOR.to_vec()),
        Just(b"H|\\^&\rP|1\rL|1|N\r".to_vec()),
        text,
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

/// All that matters of what was seen: junk by its sum, since when it is told depends on the reads.
fn essence(events: Vec<Event>) -> (Vec<Event>, u64) {
    let junk = events.iter().map(|event| if let Event::Junk(count) = event { *count } else { 0 }).sum();
    (events.into_iter().filter(|event| !matches!(event, Event::Junk(_))).collect(), junk)
}

proptest! {
    #[test]
    fn the_same_bytes_give_the_same_events_however_they_are_cut(stream in streams(), size in 1usize..40) {
        let (mut one, mut two) = (Receiver::default(), Receiver::default());
        let mut whole = run(&mut one, [&stream[..]]);
        let mut cut = run(&mut two, stream.chunks(size));
        for (receiver, seen) in [(&mut one, &mut whole), (&mut two, &mut cut)] {
            while let Some(event) = receiver.give_up() {
                seen.push(event);
            }
        }
        prop_assert_eq!(essence(cut), essence(whole));
    }

    #[test]
    fn a_message_of_any_records_comes_through_whole(records in prop::collection::vec("[PORCM]\\|[ -~]{0,60}", 0..30)) {
        let text = format!("H|\\^&\r{}L|1|N\r", records.iter().map(|record| format!("{record}\r")).collect::<String>());
        let mut stream = vec![ENQ];
        for (at, piece) in text.as_bytes().chunks(24).enumerate() {
            let number = u8::try_from((at + 1) % 8).unwrap();
            encode(number, piece, piece.ends_with(b"\r"), &mut stream);
        }
        stream.push(EOT);
        let seen: String = taken(&all(&stream)).into_iter().map(|(_, text)| text).collect();
        prop_assert_eq!(seen, text);
    }
}
