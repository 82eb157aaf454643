//! Command sets, the head of a file, and the data sets of storage commitment: by hand from the standard, as sloppy peers send
//! them, and as hostile ones do.

use proptest::prelude::*;

use super::commitment::{CommitmentError, REFERENCES_MAX, Reference, Report, Request};
use super::dimse::{COMMAND_BYTES_MAX, Command, CommandAssembler, CommandError, CommandField, Priority, Status};
use super::element::{self as element, Encoding, ITEM, ITEM_END, SEQUENCE_END, Tag, UNDEFINED};
use super::file::{FileError, FileMeta, HEAD_BYTES_MAX};
use super::pdu::Pdv;
use super::values::{AeTitle, CT_IMAGE, EXPLICIT_LITTLE_ENDIAN, Uid, VERIFICATION};

fn uid(text: &str) -> Uid {
    text.parse().unwrap()
}

fn element_of(tag: u32, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    element::write(Encoding::Implicit, (Tag(tag), b"UI"), value, &mut out);
    out
}

#[test]
fn an_echo_is_written_as_the_standard_draws_it() {
    let wanted = [
        &[0, 0, 0, 0, 4, 0, 0, 0, 56, 0, 0, 0][..],
        b"\0\0\x02\0\x12\0\0\x001.2.840.10008.1.1\0",
        &[0, 0, 0, 1, 2, 0, 0, 0, 0x30, 0],
        &[0, 0, 0x10, 1, 2, 0, 0, 0, 7, 0],
        &[0, 0, 0, 8, 2, 0, 0, 0, 1, 1],
    ];
    assert_eq!(Command::echo_request(7).bytes(), wanted.concat());
}

#[test]
fn a_store_and_its_response_read_back() {
    let request = Command::store_request(0xfffe, CT_IMAGE, uid("1.2.3"));
    assert_eq!(Command::read(&request.bytes()).as_ref(), Ok(&request));
    assert!(request.has_data_set && !request.field.is_response());
    let response = request.response(Status::OUT_OF_RESOURCES).with_comment("the disk is full");
    let read = Command::read(&response.bytes()).unwrap();
    assert_eq!(read, response);
    assert_eq!((read.field, read.responded_to, read.message_id), (CommandField::StoreResponse, Some(0xfffe), None));
    assert_eq!((read.affected_class, read.affected_instance), (Some(CT_IMAGE), Some(uid("1.2.3"))));
    assert_eq!((read.status, read.has_data_set), (Some(Status::OUT_OF_RESOURCES), false));
}

#[test]
fn the_services_of_commitment_answer_with_affected_class_and_instance() {
    let action = Command::commitment_request(3);
    let response = action.response(Status::SUCCESS);
    assert_eq!(response.field, CommandField::ActionResponse);
    assert_eq!(
        (response.affected_class, response.affected_instance),
        (action.requested_class, action.requested_instance)
    );
    assert_eq!((response.requested_class, response.action_type), (None, Some(1)));
    for (failures, event) in [(false, 1), (true, 2)] {
        let report = Command::commitment_report(4, failures);
        assert_eq!(Command::read(&report.bytes()).as_ref(), Ok(&report));
        let response = report.response(Status::SUCCESS);
        assert_eq!((response.field, response.event_type), (CommandField::EventReportResponse, Some(event)));
    }
    let unknown = Command { field: CommandField::Other(0x0020), ..Command::echo_request(9) };
    let response = Command::read(&unknown.response(Status::UNRECOGNISED_OPERATION).bytes()).unwrap();
    assert_eq!((response.field, response.responded_to), (CommandField::Other(0x8020), Some(9)));
}

#[test]
fn sloppy_command_sets_are_read() {
    // No group length, elements in disorder, unknown ones, blanks and NULs, an identifier that is far too long.
    let bytes = [
        element_of(0x0000_1000, &[b'1'; 90]),
        element_of(0x0000_0110, &[5, 0]),
        element_of(0x0000_5010, b"unknown"),
        element_of(0x0009_0010, b"private"),
        element_of(0x0000_0002, b"1.2.840.10008.1.1 \0"),
        element_of(0x0000_0700, &[2, 0]),
        element_of(0x0000_0100, &[1, 0, 0, 0]),
        element_of(0x0000_0800, &[0, 0]),
        element_of(0x0000_0900, b""),
        element_of(0x0000_1030, b"MOVER "),
    ];
    let command = Command::read(&bytes.concat()).unwrap();
    assert_eq!((command.field, command.message_id), (CommandField::StoreRequest, Some(5)));
    assert_eq!((command.affected_class, command.affected_instance), (Some(VERIFICATION), None));
    assert_eq!((command.priority, command.has_data_set, command.status), (Some(Priority::Low), true, None));
    assert_eq!(command.move_originator, Some("mover".parse().unwrap()));
    let wrong = [element_of(0, &[0xff; 4]), element_of(0x0000_0100, &[0x30, 0])].concat();
    assert_eq!(Command::read(&wrong).unwrap().field, CommandField::EchoRequest);
}

#[test]
fn a_comment_that_is_cut_reads_back_as_it_was_kept() {
    let long = [&b"no room"[..], &[b' '; 60], b"left"].concat();
    let bytes = [element_of(0x0000_0100, &[1, 0x80]), element_of(0x0000_0902, &long)].concat();
    let command = Command::read(&bytes).unwrap();
    assert_eq!(command.error_comment.as_deref(), Some("no room"));
    assert_eq!(Command::read(&command.bytes()), Ok(command));
}

#[test]
fn a_command_set_that_claims_more_than_it_has_is_an_error() {
    for claim in [700 << 20, u32::MAX, 9] {
        let mut bytes = Vec::new();
        element::write_header(Encoding::Implicit, (Tag(0x0000_0002), b"UI"), claim, &mut bytes);
        bytes.extend_from_slice(b"1.2.3.4\0");
        assert_eq!(Command::read(&bytes), Err(CommandError::Truncated), "{claim}");
    }
    assert_eq!(Command::read(&[0; 7]), Err(CommandError::Truncated));
    assert_eq!(Command::read(&[]), Err(CommandError::NoField));
    assert_eq!(Command::read(&element_of(0x0000_0100, b"")), Err(CommandError::NoField));
    assert_eq!(Command::read(&vec![0; COMMAND_BYTES_MAX + 1]), Err(CommandError::TooLong));
}

#[test]
fn pieces_of_a_command_are_put_together_within_a_limit() {
    let bytes = Command::echo_request(1).bytes();
    let piece = |context, is_last, data| Pdv { context, is_command: true, is_last, data };
    for size in [1, 3, 1000] {
        let mut assembler = CommandAssembler::default();
        let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
        let (last, first) = pieces.split_last().unwrap();
        for data in first {
            assert_eq!(assembler.push(&piece(1, false, data)), Ok(None));
            assert!(assembler.is_in_command());
        }
        assert_eq!(assembler.push(&piece(1, true, last)), Ok(Some(Command::echo_request(1))));
        assert!(!assembler.is_in_command());
    }
    let mut assembler = CommandAssembler::default();
    assert_eq!(assembler.push(&piece(1, false, &bytes[..8])), Ok(None));
    assert_eq!(assembler.push(&piece(3, true, &bytes[8..])), Err(CommandError::Context));
    let (mut assembler, kib) = (CommandAssembler::default(), [0; 1024]);
    for _ in 0..64 {
        assert_eq!(assembler.push(&piece(1, false, &kib)), Ok(None));
    }
    assert_eq!(assembler.push(&piece(1, false, &[0])), Err(CommandError::TooLong));
}

fn meta() -> FileMeta {
    FileMeta {
        sop_class: CT_IMAGE,
        sop_instance: uid("1.2.3"),
        transfer_syntax: EXPLICIT_LITTLE_ENDIAN,
        source_ae: AeTitle::read(b"CT1"),
        receiving_ae: AeTitle::default(),
    }
}

#[test]
fn the_head_of_a_file_reads_back_and_says_where_the_data_set_begins() {
    for source_ae in ["CT1", ""] {
        let meta = FileMeta { source_ae: AeTitle::read(source_ae.as_bytes()), ..meta() };
        let head = meta.bytes();
        assert_eq!(head, meta.bytes(), "the same for the same instance");
        assert_eq!((&head[..128], &head[128..132]), (&[0; 128][..], &b"DICM"[..]));
        let length = u32::from_le_bytes(*head[140..].first_chunk().unwrap());
        assert_eq!(length as usize, head.len() - 144);
        for data_set in [&b"\x08\0\x05\0"[..], b"", b"\x02\0\x02\0"] {
            assert_eq!(FileMeta::read(&[&head, data_set].concat()), Ok((meta.clone(), head.len())), "{data_set:?}");
        }
        for cut in [0, 131, 132, 140, 150, head.len() - 1] {
            assert!(FileMeta::read(&head[..cut]).is_err(), "{cut}");
        }
    }
}

#[test]
fn the_longest_names_fit_into_a_head() {
    let long = Uid::read(&[b'1'; 64]).unwrap();
    let meta = FileMeta {
        sop_class: long.clone(),
        sop_instance: long.clone(),
        transfer_syntax: long,
        source_ae: AeTitle::read(&[b'A'; 16]),
        receiving_ae: AeTitle::read(&[b'B'; 16]),
    };
    let head = meta.bytes();
    assert!(head.len() <= HEAD_BYTES_MAX, "{}", head.len());
    assert_eq!(FileMeta::read(&head), Ok((meta, head.len())));
}

#[test]
fn heads_of_others_are_read_and_those_that_are_none_are_errors() {
    // A wrong group length: the first element of another group ends it.
    let mut head = meta().bytes();
    head[140..144].copy_from_slice(&9999_u32.to_le_bytes());
    let end = head.len();
    head.extend_from_slice(b"\x08\0\x05\0CS\0\0");
    assert_eq!(FileMeta::read(&head), Ok((meta(), end)));
    assert_eq!(FileMeta::read(&[0; 200]), Err(FileError::NotDicom));
    let mut claim = [&[0; 128][..], b"DICM"].concat();
    element::write_header(Encoding::Explicit, (Tag(0x0002_0001), b"OB"), 1 << 30, &mut claim);
    assert_eq!(FileMeta::read(&claim), Err(FileError::Truncated));
    let nothing = [&[0; 128][..], b"DICM", b"\x08\0\x05\0CS\0\0"].concat();
    assert_eq!(FileMeta::read(&nothing), Err(FileError::Missing(Tag(0x0002_0002))));
}

fn references(count: usize) -> Vec<Reference> {
    (0..count).map(|number| Reference { sop_class: CT_IMAGE, sop_instance: uid(&format!("1.2.{number}")) }).collect()
}

const ENCODINGS: [Encoding; 3] = [Encoding::Implicit, Encoding::Explicit, Encoding::ExplicitBig];

#[test]
fn a_commitment_request_by_hand_is_read() {
    let bytes = [
        b"\x08\0\x95\x11UI\x04\x001.9\0".as_slice(),
        b"\x08\0\x99\x11SQ\0\0\xff\xff\xff\xff",
        b"\xfe\xff\0\xe0\xff\xff\xff\xff\x08\0\x50\x11UI\x04\x001.2\0\x08\0\x55\x11UI\x06\x001.2.3\0\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\0\xe0\x0e\0\0\0\x08\0\x55\x11UI\x06\x001.2.4\0",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
        b"\x40\0\x08\xa1CS\x02\0OK",
    ];
    let request = Request::read(Encoding::Explicit, &bytes.concat()).unwrap();
    let reference = |class: &str, instance| Reference { sop_class: uid(class), sop_instance: uid(instance) };
    assert_eq!(request.transaction, uid("1.9"));
    assert_eq!(request.references, [reference("1.2", "1.2.3"), reference("", "1.2.4")]);
}

#[test]
fn commitment_data_sets_read_back_in_every_encoding() {
    for encoding in ENCODINGS {
        for count in [0, 1, 5000] {
            let request = Request { transaction: uid("2.25.7"), references: references(count) };
            assert_eq!(Request::read(encoding, &request.bytes(encoding)), Ok(request));
            let failed = references(count / 2).into_iter().map(|lost| (lost, Status::NO_SUCH_INSTANCE)).collect();
            let report = Report { transaction: uid("2.25.7"), committed: references(count), failed };
            assert_eq!(Report::read(encoding, &report.bytes(encoding)), Ok(report));
        }
    }
}

#[test]
fn a_failure_without_a_reason_is_one_all_the_same() {
    let mut item = Vec::new();
    element::write(Encoding::Implicit, (Tag(0x0008_1155), b"UI"), b"1.2.3", &mut item);
    let mut sequence = Vec::new();
    element::write(Encoding::Implicit, (ITEM, b"  "), &item, &mut sequence);
    let bytes = [element_of(0x0008_1195, b"1.9"), element_of(0x0008_1198, &sequence)].concat();
    let report = Report::read(Encoding::Implicit, &bytes).unwrap();
    assert_eq!((report.committed.len(), report.failed[0].1), (0, Status::PROCESSING_FAILURE));
}

#[test]
fn commitment_has_limits() {
    let encoding = Encoding::Implicit;
    let most = Request { transaction: uid("1.9"), references: references(REFERENCES_MAX) };
    assert_eq!(Request::read(encoding, &most.bytes(encoding)).as_ref(), Ok(&most));
    let more = Request { references: references(REFERENCES_MAX + 1), ..most };
    assert_eq!(Request::read(encoding, &more.bytes(encoding)), Err(CommitmentError::TooMany));
    let nameless = Request { transaction: Uid::default(), references: references(1) };
    assert_eq!(Request::read(encoding, &nameless.bytes(encoding)), Err(CommitmentError::NoTransaction));
    assert_eq!(Request::read(encoding, &[]), Err(CommitmentError::NoTransaction));
    let lost = vec![Reference { sop_class: CT_IMAGE, sop_instance: Uid::default() }];
    let lost = Request { transaction: uid("1.9"), references: lost };
    assert_eq!(Request::read(encoding, &lost.bytes(encoding)), Err(CommitmentError::NoInstance));
}

#[test]
fn sequences_that_are_of_no_interest_are_skipped_to_any_depth() {
    for encoding in ENCODINGS {
        let mut bytes = Vec::new();
        for _ in 0..20_000 {
            element::write_header(encoding, (Tag(0x0008_1140), b"SQ"), UNDEFINED, &mut bytes);
            element::write_header(encoding, (ITEM, b"  "), UNDEFINED, &mut bytes);
        }
        let unclosed = bytes.clone();
        for _ in 0..20_000 {
            element::write_header(encoding, (ITEM_END, b"  "), 0, &mut bytes);
            element::write_header(encoding, (SEQUENCE_END, b"  "), 0, &mut bytes);
        }
        let request = Request { transaction: uid("1.9"), references: references(2) };
        bytes.extend_from_slice(&request.bytes(encoding));
        assert_eq!(Request::read(encoding, &bytes), Ok(request));
        assert_eq!(Request::read(encoding, &unclosed), Err(CommitmentError::Nonsense));
        let mut claim = Vec::new();
        element::write_header(encoding, (Tag(0x0008_1199), b"SQ"), 1 << 30, &mut claim);
        assert_eq!(Request::read(encoding, &claim), Err(CommitmentError::Nonsense));
    }
}

fn any_uid() -> impl Strategy<Value = Uid> {
    prop::collection::vec(any::<u8>(), 1..=64)
        .prop_map(|bytes| Uid::read(&bytes).unwrap())
        .prop_filter("not empty", |uid| !uid.is_empty())
}

fn any_command() -> impl Strategy<Value = Command> {
    let uids = [(); 4].map(|()| prop::option::of(any_uid()));
    let numbers = any::<[Option<u16>; 6]>();
    let priority = prop::option::of(prop::sample::select(vec![Priority::Medium, Priority::High, Priority::Low]));
    let field = prop::sample::select(vec![0x0001_u16, 0x8001, 0x0030, 0x8030, 0x0100, 0x0130, 0x0fff, 0x0020]);
    (field, uids, numbers, (priority, any::<bool>(), prop::option::of("[!-~]{1,64}"))).prop_map(
        |(code, uids, numbers, (priority, has_data_set, error_comment))| {
            let [affected_class, affected_instance, requested_class, requested_instance] = uids;
            let [message_id, responded_to, status, event_type, action_type, move_message_id] = numbers;
            let field = Command::read(&element_of(0x0000_0100, &code.to_le_bytes())).unwrap().field;
            Command {
                field,
                message_id,
                responded_to,
                affected_class,
                affected_instance,
                requested_class,
                requested_instance,
                has_data_set,
                status: status.map(Status),
                priority,
                event_type,
                action_type,
                error_comment,
                move_originator: None,
                move_message_id,
            }
        },
    )
}

proptest! {
    #[test]
    fn any_command_reads_back(command in any_command()) {
        let bytes = command.bytes();
        prop_assert_eq!(bytes.len() % 2, 0);
        prop_assert_eq!(u32::from_le_bytes(*bytes[8..].first_chunk().unwrap()) as usize, bytes.len() - 12);
        prop_assert_eq!(Command::read(&bytes), Ok(command));
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), place in any::<prop::sample::Index>()) {
        drop(Command::read(&bytes));
        drop(FileMeta::read(&bytes));
        drop(FileMeta::read(&[&[0; 128][..], b"DICM", &bytes].concat()));
        for encoding in ENCODINGS {
            drop(Report::read(encoding, &bytes));
            let mut good = Request { transaction: uid("1.9"), references: references(3) }.bytes(encoding);
            good.truncate(place.index(good.len()));
            good.extend_from_slice(&bytes);
            drop(Report::read(encoding, &good));
        }
    }
}
