//! Role selection and storage commitment: who says what it is gets its reports where it takes them.

use std::io::Read;
use std::net::TcpListener;

use wardgate::wire::dicom::commitment::{Reference, Report, Request};
use wardgate::wire::dicom::dimse::{Command, CommandField, Status};
use wardgate::wire::dicom::element::Encoding;
use wardgate::wire::dicom::pdu::{HEADER_BYTES, Header, Kind, Pdvs};
use wardgate::wire::dicom::pdu_associate::{AssociateRequest, Role, UserInformation};
use wardgate::wire::dicom::values::{CT_IMAGE, STORAGE_COMMITMENT};

use super::device::{COMMITMENT, Device, instance, request, uid};
use super::start;
use crate::support::wait::eventually;

/// What a device may say that it is, and what it is then agreed to be: `(scu, scp)`.
type Said = Option<(bool, bool)>;

fn role((scu, scp): (bool, bool)) -> Role {
    Role { sop_class: STORAGE_COMMITMENT, scu, scp }
}

/// Associates as one that says this about its role, stores an instance and asks for commitment to it.
fn asks(at: std::net::SocketAddr, said: Said, transaction: &str) -> Device {
    let user = UserInformation { roles: said.map(role).into_iter().collect(), ..request("CT1", "WARDGATE").user };
    let request = AssociateRequest { user, ..request("CT1", "WARDGATE") };
    let mut device = Device::propose(at, &request).unwrap().unwrap();
    // Whoever stores here is a user; what it may provide beside is not used.
    let agreed: Vec<Role> = said.map(|(scu, _)| role((scu, false))).into_iter().collect();
    assert_eq!(device.accept.user.roles, agreed, "{said:?}");
    let (own, data) = instance(1, 1, 1000);
    assert_eq!(device.store(&own, &data).unwrap(), Status::SUCCESS);
    let references = vec![Reference { sop_class: CT_IMAGE, sop_instance: own }];
    let question = Request { transaction: uid(transaction), references }.bytes(Encoding::Explicit);
    let command = Command::commitment_request(device.next_message());
    assert_eq!(device.exchange(COMMITMENT, &command, Some(&question)).unwrap(), Status::SUCCESS);
    device
}

#[test]
fn a_user_of_storage_commitment_is_told_on_the_association_on_which_it_asked() {
    let folder = tempfile::tempdir().unwrap();
    let never = TcpListener::bind("127.0.0.1:0").unwrap();
    let lines = format!(
        "report-on = \"same-association\"\ncommit = \"stored\"\nreport-to = {{ CT1 = \"{}\" }}",
        never.local_addr().unwrap()
    );
    let gateway = start(folder.path(), &lines);
    for (said, transaction) in [(None, "1.2.3.1"), (Some((true, false)), "1.2.3.2"), (Some((true, true)), "1.2.3.3")] {
        let mut device = asks(gateway.endpoint("ct"), said, transaction);
        let event = device.answer().unwrap();
        assert_eq!(
            (event.field, event.affected_class.as_ref()),
            (CommandField::EventReportRequest, Some(&STORAGE_COMMITMENT))
        );
        let (kind, body) = device.hear().unwrap();
        let pdv = Pdvs::new(&body).next().unwrap().unwrap();
        assert_eq!((kind, pdv.context, pdv.is_last), (Kind::Data, COMMITMENT, true));
        let report = Report::read(Encoding::Explicit, pdv.data).unwrap();
        assert_eq!((&report.transaction, report.committed.len(), report.failed.len()), (&uid(transaction), 1, 0));
        device.send(COMMITMENT, &event.response(Status::SUCCESS), None).unwrap();
        eventually("the request is done", || gateway.backlog_of("storage-commitment") == 0);
        device.release();
    }
    never.set_nonblocking(true).unwrap();
    assert!(never.accept().is_err(), "it was called, too");
}

/// Who asks in an encoding that is not read here is told that it is our failing, and not that the request was wrong.
#[test]
fn a_request_for_commitment_that_can_not_be_read_here_is_answered_with_processing_failure() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "commit = \"stored\"\nreport-to = { CT1 = \"127.0.0.1:9\" }");
    let mut request = request("CT1", "WARDGATE");
    for context in request.contexts.iter_mut().filter(|context| context.id == COMMITMENT) {
        context.transfer_syntaxes = vec![uid("1.2.840.10008.1.2.1.99")];
    }
    let mut device = Device::propose(gateway.endpoint("ct"), &request).unwrap().unwrap();
    let references = vec![Reference { sop_class: CT_IMAGE, sop_instance: uid("1.2.3") }];
    let question = Request { transaction: uid("1.2.3.9"), references }.bytes(Encoding::Explicit);
    let command = Command::commitment_request(device.next_message());
    assert_eq!(device.exchange(COMMITMENT, &command, Some(&question)).unwrap(), Status::PROCESSING_FAILURE);
    assert_eq!(Status::PROCESSING_FAILURE.0, 0x0110);
    assert_eq!(gateway.backlog(), 0, "it is kept, though nobody can answer it");
    device.release();
}

#[test]
fn who_gave_up_the_role_of_the_user_is_called_by_the_provider() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let lines = format!(
        "report-on = \"same-association\"\ncommit = \"stored\"\nreport-to = {{ CT1 = \"{}\" }}",
        listener.local_addr().unwrap()
    );
    let gateway = start(folder.path(), &lines);
    let device = asks(gateway.endpoint("ct"), Some((false, true)), "1.2.3.4");
    let (mut called, _) = listener.accept().unwrap();
    let mut head = [0; HEADER_BYTES];
    called.read_exact(&mut head).unwrap();
    let header = Header::read(head, 0).unwrap();
    let mut body = vec![0; header.length as usize];
    called.read_exact(&mut body).unwrap();
    let asked = AssociateRequest::read(&body).unwrap();
    assert_eq!((asked.calling, asked.called), ("WARDGATE".parse().unwrap(), "CT1".parse().unwrap()));
    assert_eq!(asked.user.roles, [role((false, true))], "we call, and provide");
    device.release();
}
