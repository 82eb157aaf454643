//! Who may associate, how many, and what is agreed.

use wardgate::wire::dicom::dimse::{Command, Status};
use wardgate::wire::dicom::pdu::Reject;
use wardgate::wire::dicom::pdu_associate::{
    AssociateRequest, ContextResult, ProposedContext, Role, UserIdentity, UserInformation,
};
use wardgate::wire::dicom::values::{CT_IMAGE, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN};

use super::device::{COMMITMENT, CT, Device, instance, is_sent_away, request, socket_from, uid};
use super::{ct, start};
use crate::support::wait::eventually;

#[test]
fn titles_are_compared_without_case_and_strangers_are_told_which_title_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "calling = [\"CT1\", \"CT2\"]");
    let at = gateway.endpoint("ct");
    let outcome = |calling, called| Device::try_associate(at, calling, called).unwrap().err();
    assert_eq!(outcome("CT1", "WARDGATE"), None);
    assert_eq!(outcome("ct2", "wardGate"), None);
    assert_eq!(outcome("CT3", "WARDGATE"), Some(Reject::CALLING_AE_TITLE));
    assert_eq!(outcome("CT1", "ARCHIVE"), Some(Reject::CALLED_AE_TITLE));
    let status = ct(&gateway);
    assert_eq!((&status["turned-away"], &status["imaging"]["peers"].as_array().unwrap().len()), (&2.into(), &2));
    assert_eq!(outcome("CT4", "WARDGATE"), Some(Reject::CALLING_AE_TITLE));
    let other = Device::over(socket_from([127, 0, 0, 2]).to(at), &request("CT5", "WARDGATE")).unwrap().err();
    assert_eq!(other, Some(Reject::CALLING_AE_TITLE));
    let said = gateway.stop();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("AE title not recognised")).collect();
    let told = ["calling=CT3", "called=ARCHIVE", "calling=CT5"];
    // The third from the same address with the same fault is no news.
    assert!(lines.len() == 3 && lines.iter().zip(told).all(|(line, who)| line.contains(who)), "{said}");
}

#[test]
fn one_port_answers_to_several_titles() {
    let folder = tempfile::tempdir().unwrap();
    let config = super::ct_to_folder(folder.path(), "").replace("\"WARDGATE\"", "[\"WARDGATE\", \"ARCHIVE\"]");
    let gateway = crate::support::gateway::Gateway::start(folder.path(), &config);
    for called in ["WARDGATE", "archive"] {
        let device = Device::try_associate(gateway.endpoint("ct"), "CT1", called).unwrap().unwrap();
        assert_eq!(device.accept.called, called.parse().unwrap());
        device.release();
    }
}

#[test]
fn too_many_associations_are_rejected_for_now_and_there_is_room_again_when_one_ends() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "max-associations = 2");
    let at = gateway.endpoint("ct");
    let (first, mut second) = (Device::associate(at), Device::associate(at));
    let third = Device::try_associate(at, "CT1", "WARDGATE").unwrap().err();
    assert_eq!(third, Some(Reject::LOCAL_LIMIT));
    assert_eq!(ct(&gateway)["imaging"]["associations"], 2);
    assert_eq!(second.echo().unwrap(), Status::SUCCESS);
    first.release();
    eventually("there is room again", || Device::try_associate(at, "CT1", "WARDGATE").unwrap().is_ok());
}

#[test]
fn who_is_in_no_allowed_network_is_sent_away_before_it_says_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "allow = [\"127.0.0.2/32\"]");
    let at = gateway.endpoint("ct");
    let mut stranger = socket_from([127, 0, 0, 3]).to(at);
    assert!(is_sent_away(&mut stranger), "a stranger is kept, or spoken to");
    let known = socket_from([127, 0, 0, 2]).to(at);
    let mut device = Device::over(known, &request("CT1", "WARDGATE")).unwrap().unwrap();
    assert_eq!(device.echo().unwrap(), Status::SUCCESS);
    device.release();
    assert_eq!(ct(&gateway)["imaging"]["peers"].as_array().unwrap().len(), 1, "the stranger is no peer");
    assert!(gateway.stop().contains("turned away"), "a person is told");
}

#[test]
fn one_peer_can_not_take_all_associations() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "max-associations-per-peer = 1");
    let at = gateway.endpoint("ct");
    let _first = Device::associate(at);
    assert_eq!(Device::try_associate(at, "CT2", "WARDGATE").unwrap().err(), Some(Reject::LOCAL_LIMIT));
    let other = socket_from([127, 0, 0, 2]).to(at);
    assert!(Device::over(other, &request("CT2", "WARDGATE")).unwrap().is_ok(), "another peer has its own place");
}

#[test]
fn what_a_peer_asks_for_is_answered_and_what_it_does_not_ask_for_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "max-pdu = \"16KiB\"");
    let transfer_syntaxes = vec![uid("1.2.840.113619.5.2"), IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN];
    let mut request = AssociateRequest {
        protocol_version: 3,
        contexts: vec![ProposedContext { id: CT, abstract_syntax: CT_IMAGE, transfer_syntaxes }],
        ..request("CT1", "WARDGATE")
    };
    let plain = Device::propose(gateway.endpoint("ct"), &request).unwrap().unwrap();
    let user = &plain.accept.user;
    assert_eq!((user.max_length, user.async_window, &user.identity_response), (16 << 10, None, &None));
    // The first that is proposed, also one that nobody knows.
    assert_eq!(plain.accept.contexts[0].transfer_syntax, Some(uid("1.2.840.113619.5.2")));
    plain.release();
    let role = Role { sop_class: CT_IMAGE, scu: true, scp: true };
    request.user = UserInformation {
        async_window: Some((0, 0)),
        roles: vec![role.clone()],
        identity: Some(UserIdentity {
            kind: 2,
            positive_response_requested: true,
            primary: b"user".to_vec(),
            secondary: b"word".to_vec(),
        }),
        ..request.user
    };
    let asking = Device::propose(gateway.endpoint("ct"), &request).unwrap().unwrap();
    let user = &asking.accept.user;
    assert_eq!((user.async_window, &user.identity_response), (Some((1, 1)), &Some(Vec::new())));
    assert_eq!(user.roles, [Role { scp: false, ..role }]);
    asking.release();
    assert!(!gateway.stop().contains("word"), "secrets are not logged");
}

#[test]
fn a_preference_list_chooses_among_what_is_proposed_and_refuses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "transfer-syntaxes = [\"1.2.840.10008.1.2.4.70\", \"1.2.840.10008.1.2.1\"]");
    let context = |id, syntaxes: &[&str]| ProposedContext {
        id,
        abstract_syntax: CT_IMAGE,
        transfer_syntaxes: syntaxes.iter().map(|syntax| uid(syntax)).collect(),
    };
    let contexts = vec![
        context(1, &["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70"]),
        context(3, &["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]),
        context(5, &["1.2.3.4"]),
        context(7, &[]),
    ];
    let request = AssociateRequest { contexts, ..request("CT1", "WARDGATE") };
    let device = Device::propose(gateway.endpoint("ct"), &request).unwrap().unwrap();
    let chosen: Vec<_> =
        device.accept.contexts.iter().map(|context| (context.result, context.transfer_syntax.clone())).collect();
    let accepted = |syntax: &str| (ContextResult::Accepted, Some(uid(syntax)));
    let expected = [
        accepted("1.2.840.10008.1.2.4.70"),
        accepted("1.2.840.10008.1.2.1"),
        accepted("1.2.3.4"),
        (ContextResult::TransferSyntaxes, None),
    ];
    assert_eq!(chosen, expected);
}

#[test]
fn only_storage_is_agreed_also_of_private_classes_and_a_query_is_told_that_nobody_answers_it() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let classes = [
        // Query by study, retrieval, worklist, print, a query for hanging protocols.
        ("1.2.840.10008.5.1.4.1.2.2.1", ContextResult::AbstractSyntax),
        ("1.2.840.10008.5.1.4.1.2.1.2", ContextResult::AbstractSyntax),
        ("1.2.840.10008.5.1.4.31", ContextResult::AbstractSyntax),
        ("1.2.840.10008.5.1.1.9", ContextResult::AbstractSyntax),
        ("1.2.840.10008.5.1.4.38.2", ContextResult::AbstractSyntax),
        // A hanging protocol itself, CT, a private class.
        ("1.2.840.10008.5.1.4.38.1", ContextResult::Accepted),
        ("1.2.840.10008.5.1.4.1.1.2", ContextResult::Accepted),
        ("1.3.12.2.1107.5.9.1", ContextResult::Accepted),
    ];
    let contexts = classes.iter().zip((1..).step_by(2)).map(|((class, _), id)| ProposedContext {
        id,
        abstract_syntax: uid(class),
        transfer_syntaxes: vec![IMPLICIT_LITTLE_ENDIAN],
    });
    let request = AssociateRequest { contexts: contexts.collect(), ..request("CT1", "WARDGATE") };
    let device = Device::propose(gateway.endpoint("ct"), &request).unwrap().unwrap();
    let results: Vec<_> = device.accept.contexts.iter().map(|context| context.result).collect();
    assert_eq!(results, classes.map(|(_, result)| result));
    device.release();
}

#[test]
fn storage_commitment_is_not_promised_and_a_request_for_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let mut device = Device::associate(gateway.endpoint("ct"));
    let context = device.accept.contexts.iter().find(|context| context.id == COMMITMENT).unwrap();
    assert_eq!(context.result, ContextResult::AbstractSyntax);
    let request = Command::commitment_request(device.next_message());
    assert_eq!(device.exchange(CT, &request, Some(b"")).unwrap(), Status::CLASS_NOT_SUPPORTED);
    let (own, data) = instance(1, 1, 100);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
}
