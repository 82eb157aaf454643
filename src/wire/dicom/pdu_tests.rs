//! PDUs as other stacks send them and as strangers make them up: what is unknown is skipped, what can't be is an error that says
//! so, and what is written is read again.

use proptest::prelude::*;

use super::pdu::{
    Abort, DATA_BYTES_MAX, HEADER_BYTES, Header, Kind, PDV_HEADER_BYTES, PduError, Pdv, Pdvs, RELEASE_REQUEST,
    RELEASE_RESPONSE, Reject, data_header, fragment_bytes_max, write_data, write_message,
};
use super::pdu_associate::{
    AnsweredContext, AssociateAccept, AssociateRequest, CONTEXTS_MAX, ContextResult, ProposedContext, Role,
    TRANSFER_SYNTAXES_MAX, UserIdentity, UserInformation,
};
use super::values::{AeTitle, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN, Uid, VERIFICATION};

fn uid(text: &str) -> Uid {
    text.parse().unwrap()
}

fn item(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind, 0][..], &length, value].concat()
}

fn body(version: u16, items: &[Vec<u8>]) -> Vec<u8> {
    let titles = b"WARDGATE        CT1             ";
    [&version.to_be_bytes()[..], &[0; 2], titles, &[0; 32], &items.concat()].concat()
}

fn echo_context() -> Vec<u8> {
    let syntaxes = [item(0x30, b"1.2.840.10008.1.1"), item(0x40, b"1.2.840.10008.1.2\0")].concat();
    item(0x20, &[&[1, 0, 0xff, 0][..], &syntaxes].concat())
}

#[test]
fn a_request_by_hand_is_read() {
    let user = [item(0x51, &[0, 0, 0x40, 0]), item(0x52, b"1.2.3"), item(0x53, &[0, 5, 0, 1]), item(0x55, b"PEER_1 ")];
    let items = [item(0x10, b"1.2.840.10008.3.1.1.1"), echo_context(), item(0x50, &user.concat())];
    let request = AssociateRequest::read(&body(1, &items)).unwrap();
    assert!(request.speaks_version_1());
    assert_eq!((request.called.as_str(), request.calling.as_str()), ("WARDGATE", "CT1"));
    assert_eq!(request.application_context, uid("1.2.840.10008.3.1.1.1"));
    let contexts =
        vec![ProposedContext { id: 1, abstract_syntax: VERIFICATION, transfer_syntaxes: vec![IMPLICIT_LITTLE_ENDIAN] }];
    assert_eq!(request.contexts, contexts);
    assert_eq!((request.user.max_length, request.user.async_window), (16384, Some((5, 1))));
    assert_eq!(request.user.implementation_version.as_deref(), Some("PEER_1"));
}

#[test]
fn a_version_name_that_is_cut_reads_back_as_it_was_kept() {
    let user = item(0x50, &item(0x55, b"VERSION             1"));
    let request = AssociateRequest::read(&body(1, &[user])).unwrap();
    assert_eq!(request.user.implementation_version.as_deref(), Some("VERSION"));
    assert_eq!(AssociateRequest::read(&request.bytes()[HEADER_BYTES..]), Ok(request));
}

#[test]
fn unknown_items_and_sub_items_are_skipped() {
    let user = [item(0x51, &[0, 0, 0x40, 0]), item(0x56, b"\0\x03abc"), item(0x57, b"anything"), item(0x7f, b"")];
    let context = [&[3, 0, 0, 0][..], &item(0x30, b"1.2"), &item(0x31, b"new"), &item(0x40, b"1.3")].concat();
    let items = [item(0x60, b"unknown"), item(0x20, &context), item(0x50, &user.concat()), item(0xff, b"")];
    let request = AssociateRequest::read(&body(3, &items)).unwrap();
    assert!(request.speaks_version_1(), "only bit 0 counts");
    assert_eq!((request.contexts.len(), request.user.max_length), (1, 16384));
    assert!(request.application_context.is_empty());
    assert!(!AssociateRequest::read(&body(2, &items)).unwrap().speaks_version_1());
}

#[test]
fn a_rejected_context_may_lack_its_transfer_syntax() {
    let accepted = item(0x21, &[&[1, 0, 0, 0][..], &item(0x40, b"1.2.840.10008.1.2")].concat());
    let items = [accepted, item(0x21, &[3, 0, 3, 0]), item(0x21, &[5, 0, 9, 0])];
    let accept = AssociateAccept::read(&body(1, &items)).unwrap();
    let found: Vec<_> = accept.contexts.iter().map(|context| (context.id, context.result)).collect();
    let wanted = [(1, ContextResult::Accepted), (3, ContextResult::AbstractSyntax), (5, ContextResult::Other(9))];
    assert_eq!(found, wanted);
    assert_eq!(accept.contexts[0].transfer_syntax, Some(IMPLICIT_LITTLE_ENDIAN));
    assert_eq!(accept.contexts[1].transfer_syntax, None);
}

#[test]
fn lengths_beyond_what_they_are_in_are_errors() {
    let mut cut = body(1, &[echo_context()]);
    cut.pop();
    assert_eq!(AssociateRequest::read(&cut), Err(PduError::Item(0x20)));
    // An inner item that would reach into the next.
    let inner = [&[1, 0, 0, 0][..], &[0x30, 0, 0, 200], b"1.2"].concat();
    let reaching = body(1, &[item(0x20, &inner), item(0x10, &[b'1'; 64])]);
    assert_eq!(AssociateRequest::read(&reaching), Err(PduError::Item(0x30)));
    for (kind, short) in [(0x51, &[0, 0, 1][..]), (0x53, &[0]), (0x54, &[0, 9, b'1']), (0x58, &[1]), (0x59, &[0, 1])] {
        let broken = body(1, &[item(0x50, &item(kind, short))]);
        assert_eq!(AssociateRequest::read(&broken), Err(PduError::Item(kind)), "{kind:#x}");
    }
    assert!(AssociateRequest::read(&[0; 67]).is_err());
    assert!(AssociateRequest::read(&[]).is_err());
}

#[test]
fn more_than_is_taken_is_an_error() {
    let twice = body(1, &[echo_context(), echo_context()]);
    assert_eq!(AssociateRequest::read(&twice), Err(PduError::ContextTwice(1)));
    let all: Vec<_> = (0..=255).map(|id| item(0x20, &[id, 0, 0, 0])).collect();
    let (most, more) = (body(1, &all[..CONTEXTS_MAX]), body(1, &all[..=CONTEXTS_MAX]));
    assert_eq!(AssociateRequest::read(&most).unwrap().contexts.len(), CONTEXTS_MAX);
    assert_eq!(AssociateRequest::read(&more), Err(PduError::TooMany("presentation contexts")));
    let syntaxes = item(0x40, b"1.2").repeat(TRANSFER_SYNTAXES_MAX + 1);
    let many = body(1, &[item(0x20, &[&[1, 0, 0, 0][..], &syntaxes].concat())]);
    assert_eq!(AssociateRequest::read(&many), Err(PduError::TooMany("transfer syntaxes")));
    let long = body(1, &[item(0x10, &[b'1'; 65])]);
    assert_eq!(AssociateRequest::read(&long), Err(PduError::Uid));
}

#[test]
fn the_largest_request_that_is_met_is_taken() {
    // pynetdicom with all storage classes and all transfer syntaxes: 147 763 bytes.
    let syntaxes: Vec<Uid> = (0..41).map(|number| uid(&format!("1.2.840.10008.1.2.4.{number}"))).collect();
    let context = |id| ProposedContext { id, abstract_syntax: VERIFICATION, transfer_syntaxes: syntaxes.clone() };
    let request = AssociateRequest { contexts: (0..128).map(|n| context(n * 2 + 1)).collect(), ..request() };
    let bytes = request.bytes();
    assert!(bytes.len() > 120_000, "{}", bytes.len());
    let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().unwrap();
    assert_eq!(Header::read(*head, 16384).unwrap().length as usize, body.len());
    assert_eq!(AssociateRequest::read(body), Ok(request));
}

fn request() -> AssociateRequest {
    AssociateRequest {
        protocol_version: 1,
        called: "ARCHIVE".parse().unwrap(),
        calling: "WARDGATE".parse().unwrap(),
        application_context: uid("1.2.840.10008.3.1.1.1"),
        contexts: Vec::new(),
        user: UserInformation { max_length: 65536, ..UserInformation::default() },
    }
}

#[test]
fn passcodes_and_tokens_are_never_shown() {
    let identity = UserIdentity {
        kind: 2,
        positive_response_requested: true,
        primary: b"operator".to_vec(),
        secondary: b"hunter2".to_vec(),
    };
    let request =
        AssociateRequest { user: UserInformation { identity: Some(identity), ..request().user }, ..request() };
    let shown = format!("{request:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("operator") && !shown.contains("104, 117"), "{shown}");
}

#[test]
fn a_user_name_without_a_second_field_is_read() {
    let request = AssociateRequest::read(&body(1, &[item(0x50, &item(0x58, b"\x01\x01\0\x02ab"))])).unwrap();
    let identity = request.user.identity.unwrap();
    assert_eq!((identity.primary, identity.secondary), (b"ab".to_vec(), Vec::new()));
}

#[test]
fn six_bytes_are_enough_to_send_a_stranger_away() {
    let error = |bytes: &[u8; 6]| Header::read(*bytes, 16384).unwrap_err().to_string();
    assert!(error(b"GET / ").contains("HTTP, not DICOM"));
    assert!(error(b"POST /").contains("HTTP"));
    assert!(error(b"\x16\x03\x01\x02\x00\x01").contains("TLS"));
    assert!(error(b"\x0bMSH|^").contains("MLLP"));
    assert!(error(b"\0\0\0\0\0\0").contains("type 0x00"));
}

#[test]
fn each_pdu_has_a_limit_before_anything_is_read() {
    let header = |kind: u8, length: u32| {
        let [a, b, c, d] = length.to_be_bytes();
        Header::read([kind, 0xff, a, b, c, d], 16384)
    };
    assert_eq!(header(4, 16384).unwrap(), Header { kind: Kind::Data, length: 16384 });
    assert_eq!(header(4, 16385), Err(PduError::TooLong { kind: Kind::Data, length: 16385, limit: 16384 }));
    assert!(matches!(header(4, u32::MAX), Err(PduError::TooLong { .. })));
    assert!(matches!(header(4, 5), Err(PduError::Length { .. })));
    assert!(header(1, 256 << 10).is_ok(), "whatever the limit of P-DATA");
    for kind in [1, 2] {
        assert!(matches!(header(kind, (256 << 10) + 1), Err(PduError::TooLong { .. })));
        assert!(matches!(header(kind, 67), Err(PduError::Length { .. })));
    }
    for kind in [3, 5, 6, 7] {
        assert!(header(kind, 4).is_ok());
        for length in [0, 3, 5, u32::MAX] {
            assert!(matches!(header(kind, length), Err(PduError::Length { .. })), "{kind} {length}");
        }
    }
}

#[test]
fn pieces_of_commands_and_data_may_share_a_pdu() {
    let mut one = Vec::new();
    write_data(&Pdv { context: 1, is_command: false, is_last: true, data: b"end" }, &mut one);
    let mut two = Vec::new();
    write_data(&Pdv { context: 3, is_command: true, is_last: false, data: b"" }, &mut two);
    let both = [&one[HEADER_BYTES..], &two[HEADER_BYTES..]].concat();
    let pieces: Vec<_> = Pdvs::new(&both).collect::<Result<_, _>>().unwrap();
    let wanted = [
        Pdv { context: 1, is_command: false, is_last: true, data: b"end" },
        Pdv { context: 3, is_command: true, is_last: false, data: b"" },
    ];
    assert_eq!(pieces, wanted);
}

#[test]
fn a_pdv_that_does_not_fit_is_one_error_and_the_end() {
    for broken in [&[0, 0, 0, 3, 1, 0][..], &[0, 0, 0, 1, 1, 0], &[0, 0, 0, 0], &[0, 0], &[0xff; 8]] {
        let found: Vec<_> = Pdvs::new(broken).collect();
        assert_eq!(found, [Err(PduError::Pdv)], "{broken:?}");
    }
}

#[test]
fn the_peers_maximum_is_honoured_and_a_useless_one_is_said() {
    let cap = DATA_BYTES_MAX as usize - PDV_HEADER_BYTES;
    assert_eq!(fragment_bytes_max(0), Ok(cap), "no limit is our limit");
    assert_eq!(fragment_bytes_max(u32::MAX), Ok(cap));
    assert_eq!(fragment_bytes_max(16384), Ok(16378));
    assert_eq!(fragment_bytes_max(16383), Ok(16376), "pieces are even");
    assert_eq!(fragment_bytes_max(8), Ok(2));
    for tiny in 1..8 {
        assert_eq!(fragment_bytes_max(tiny), Err(PduError::NoRoom(tiny)));
    }
}

#[test]
fn short_pdus_are_as_the_standard_draws_them() {
    let head = |bytes: &[u8; 10]| Header::read(*bytes.first_chunk().unwrap(), 0).unwrap().kind;
    assert_eq!(head(&RELEASE_REQUEST), Kind::ReleaseRequest);
    assert_eq!(head(&RELEASE_RESPONSE), Kind::ReleaseResponse);
    let reject = Reject::LOCAL_LIMIT.bytes();
    assert_eq!((head(&reject), Reject::read(&reject[6..])), (Kind::AssociateReject, Some(Reject::LOCAL_LIMIT)));
    assert_eq!(reject, [3, 0, 0, 0, 0, 4, 0, 2, 3, 2]);
    let abort = Abort::UNEXPECTED_PDU.bytes();
    assert_eq!((head(&abort), Abort::read(&abort[6..])), (Kind::Abort, Some(Abort::UNEXPECTED_PDU)));
    assert_eq!(Reject::CALLED_AE_TITLE.to_string(), "rejected permanently: called AE title not recognised");
    assert_eq!(Reject::CONGESTION.to_string(), "rejected for now: temporary congestion");
    assert_eq!(Abort::BY_USER.to_string(), "aborted by the application");
    assert_eq!((Reject::read(&[0; 3]), Abort::read(&[])), (None, None));
}

#[test]
fn a_message_goes_out_in_pieces_that_fit() {
    for (length, fragment, pdus) in [(0, 2, 1), (1, 2, 1), (100, 2, 50), (100, 99, 2), (100, 100, 1), (3, 0, 2)] {
        let data = vec![7; length];
        let mut out = Vec::new();
        write_message(&Pdv { context: 5, is_command: true, is_last: true, data: &data }, fragment, &mut out);
        let (found, count) = gathered(&out, 128);
        assert_eq!((found, count), (data, pdus), "{length} in pieces of {fragment}");
    }
}

/// What a receiver puts together, and from how many PDUs. Only the last piece says that it is.
fn gathered(mut stream: &[u8], limit: u32) -> (Vec<u8>, usize) {
    let (mut data, mut count, mut ended) = (Vec::new(), 0, false);
    while let Some((head, rest)) = stream.split_first_chunk::<HEADER_BYTES>() {
        let header = Header::read(*head, limit).unwrap();
        let (body, rest) = rest.split_at(header.length as usize);
        stream = rest;
        count += 1;
        for pdv in Pdvs::new(body) {
            let pdv = pdv.unwrap();
            assert!(!ended && pdv.is_command);
            ended = pdv.is_last;
            data.extend_from_slice(pdv.data);
        }
    }
    assert!(ended && stream.is_empty());
    (data, count)
}

#[test]
fn titles_are_equal_whatever_their_case_and_blanks() {
    let title = AeTitle::read(b"  CtScan1       ");
    assert_eq!(title, "CTSCAN1".parse().unwrap());
    assert_ne!(title, "CTSCAN2".parse().unwrap());
    assert_eq!(AeTitle::read(b"CT1\0garbage     ").as_str(), "CT1");
    assert!(AeTitle::read(&[b' '; 16]).is_empty());
    assert_eq!(AeTitle::read(b"a\n\xff").to_string(), "a??");
    for bad in ["", "   ", "SEVENTEEN_LETTERS", "A\\B", "a\tb", "ä"] {
        assert!(bad.parse::<AeTitle>().is_err(), "{bad}");
    }
}

#[test]
fn odd_identifiers_are_kept_and_told_apart() {
    let kept = Uid::read(b"../../etc/passwd\xff\0\0").unwrap();
    assert_eq!((kept.to_bytes(), kept.is_valid()), (b"../../etc/passwd\xff".to_vec(), false));
    assert_eq!(kept.to_string(), "../../etc/passwd?");
    assert_eq!(Uid::read(&[b'1'; 65]), None);
    for good in ["1.2.840.10008.1.1", "0.0", "2.25.329800735698586629295641978511506172918"] {
        assert!(uid(good).is_valid(), "{good}");
    }
    for bad in ["", ".", "1..2", "1.02", "1.2.", "1.2 3", "1.a"] {
        assert!(!uid(bad).is_valid(), "{bad}");
    }
    assert_eq!((uid("1.2.840.10008.1.1").name(), uid("1.2.3").name()), ("Verification".into(), "1.2.3".into()));
}

fn any_uid() -> impl Strategy<Value = Uid> {
    prop::collection::vec(any::<u8>(), 0..=64).prop_map(|bytes| Uid::read(&bytes).unwrap())
}

fn any_title() -> impl Strategy<Value = AeTitle> {
    any::<[u8; 16]>().prop_map(|bytes| AeTitle::read(&bytes))
}

fn any_user() -> impl Strategy<Value = UserInformation> {
    let role = (any_uid(), any::<(bool, bool)>()).prop_map(|(sop_class, (scu, scp))| Role { sop_class, scu, scp });
    let identity = (any::<(u8, bool)>(), any::<(Vec<u8>, Vec<u8>)>()).prop_map(|(what, (primary, secondary))| {
        UserIdentity { kind: what.0, positive_response_requested: what.1, primary, secondary }
    });
    let window = any::<Option<(u16, u16)>>();
    let names = (prop::option::of(any_uid()), prop::option::of("[!-~]{1,16}"));
    let rest = (prop::collection::vec(role, 0..4), prop::option::of(identity), any::<Option<Vec<u8>>>());
    (any::<u32>(), names, window, rest).prop_map(|(max_length, names, async_window, rest)| UserInformation {
        max_length,
        implementation_class: names.0,
        implementation_version: names.1,
        async_window,
        roles: rest.0,
        identity: rest.1,
        identity_response: rest.2,
    })
}

fn any_request() -> impl Strategy<Value = AssociateRequest> {
    let context = (any_uid(), prop::collection::vec(any_uid(), 0..4));
    let contexts = prop::collection::vec(context, 0..5);
    let names = (any_title(), any_title(), any_uid());
    (any::<u16>(), names, contexts, any_user()).prop_map(|(protocol_version, names, contexts, user)| AssociateRequest {
        protocol_version,
        called: names.0,
        calling: names.1,
        application_context: names.2,
        contexts: (0_u8..)
            .zip(contexts)
            .map(|(number, (abstract_syntax, transfer_syntaxes))| ProposedContext {
                id: number * 2 + 1,
                abstract_syntax,
                transfer_syntaxes,
            })
            .collect(),
        user,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(request in any_request(), results in any::<[u8; 5]>()) {
        let bytes = request.bytes();
        let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().unwrap();
        let header = Header::read(*head, 0).unwrap();
        prop_assert_eq!((header.kind, header.length as usize), (Kind::AssociateRequest, body.len()));
        prop_assert_eq!(AssociateRequest::read(body), Ok(request.clone()));

        let result = |code: u8| [ContextResult::Accepted, ContextResult::UserRejection, ContextResult::NoReason]
            .get(usize::from(code)).copied().unwrap_or_else(|| ContextResult::Other(code.max(5)));
        let answer = |(context, code): (&ProposedContext, &u8)| AnsweredContext {
            id: context.id,
            result: result(*code),
            transfer_syntax: context.transfer_syntaxes.first().cloned(),
        };
        let contexts = request.contexts.iter().zip(&results).map(answer).collect();
        let accept = request.accept(contexts, request.user.clone());
        let bytes = accept.bytes();
        prop_assert_eq!(AssociateAccept::read(&bytes[HEADER_BYTES..]), Ok(accept));
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 68_usize..300) {
        drop(AssociateRequest::read(&bytes));
        drop(AssociateAccept::read(&bytes));
        prop_assert!(Pdvs::new(&bytes).count() <= bytes.len());
        // A good one with bytes that were changed behind its head.
        let mut good = request().bytes();
        good.truncate(cut);
        good.extend_from_slice(&bytes);
        drop(AssociateRequest::read(&good[HEADER_BYTES..]));
    }

    #[test]
    fn the_header_of_a_piece_says_what_follows(context: u8, is_command: bool, is_last: bool, data: Vec<u8>) {
        let pdv = Pdv { context, is_command, is_last, data: &data };
        let bytes = [&data_header(&pdv)[..], &data].concat();
        let length = Header::read(*bytes.first_chunk().unwrap(), DATA_BYTES_MAX).unwrap().length;
        prop_assert_eq!(length as usize, bytes.len() - HEADER_BYTES);
        let pieces: Vec<_> = Pdvs::new(&bytes[HEADER_BYTES..]).collect();
        prop_assert_eq!(pieces, vec![Ok(pdv)]);
    }
}

#[test]
fn an_accept_says_who_it_is_an_answer_to() {
    let context =
        AnsweredContext { id: 1, result: ContextResult::Accepted, transfer_syntax: Some(EXPLICIT_LITTLE_ENDIAN) };
    let accept = request().accept(vec![context], UserInformation::default());
    assert_eq!((accept.protocol_version, accept.called.as_str(), accept.calling.as_str()), (1, "ARCHIVE", "WARDGATE"));
    assert_eq!(accept.bytes()[..2], [2, 0]);
}
