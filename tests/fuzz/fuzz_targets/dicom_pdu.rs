//! PDUs from a stranger: whatever comes, no reader panics or takes more than its limits; what was read can be written and is read
//! again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::dicom::dimse::{COMMAND_BYTES_MAX, CommandAssembler};
use wardgate_fuzz::wire::dicom::pdu::{Abort, HEADER_BYTES, Header, Kind, Pdvs, Reject, fragment_bytes_max, write_message};
use wardgate_fuzz::wire::dicom::pdu_associate::{AssociateAccept, AssociateRequest, CONTEXTS_MAX, ROLES_MAX};

const DATA_BYTES_MAX: u32 = 16384;

fuzz_target!(|stream: &[u8]| {
    let (mut rest, mut assembler) = (stream, CommandAssembler::default());
    // As an acceptor reads, but from any state.
    while let Some((head, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(header) = Header::read(*head, DATA_BYTES_MAX) else { return };
        assert!(header.length <= 256 << 10);
        let (body, after) = after.split_at((header.length as usize).min(after.len()));
        rest = after;
        match header.kind {
            Kind::AssociateRequest => request(body),
            Kind::AssociateAccept => accept(body),
            Kind::AssociateReject => drop(Reject::read(body).map(|reject| reject.to_string())),
            Kind::Abort => drop(Abort::read(body).map(|abort| abort.to_string())),
            Kind::Data if !data(body, &mut assembler) => return,
            Kind::Data | Kind::ReleaseRequest | Kind::ReleaseResponse => {}
        }
    }
});

fn request(body: &[u8]) {
    let Ok(request) = AssociateRequest::read(body) else { return };
    assert!(request.contexts.len() <= CONTEXTS_MAX && request.user.roles.len() <= ROLES_MAX);
    let bytes = request.bytes();
    assert_eq!(AssociateRequest::read(&bytes[HEADER_BYTES..]).as_ref(), Ok(&request));
    let _ = (format!("{request:?}"), request.called == request.calling);
}

fn accept(body: &[u8]) {
    let Ok(accept) = AssociateAccept::read(body) else { return };
    let bytes = accept.bytes();
    assert_eq!(AssociateAccept::read(&bytes[HEADER_BYTES..]).as_ref(), Ok(&accept));
    // The peer's maximum is honoured, whatever it is.
    if let Ok(fragment) = fragment_bytes_max(accept.user.max_length) {
        assert!(fragment >= 2 && fragment % 2 == 0);
        let limit = if accept.user.max_length == 0 { u32::MAX } else { accept.user.max_length };
        let message = [0; 1000];
        let whole = wardgate_fuzz::wire::dicom::pdu::Pdv { context: 1, is_command: false, is_last: true, data: &message };
        let mut out = Vec::new();
        write_message(&whole, fragment, &mut out);
        assert!(Header::read(*out.first_chunk().expect("a header"), limit).is_ok());
    }
}

/// Whether the association goes on.
fn data(body: &[u8], assembler: &mut CommandAssembler) -> bool {
    for pdv in Pdvs::new(body) {
        let Ok(pdv) = pdv else { return false };
        assert!(pdv.data.len() <= body.len() && body.len() <= COMMAND_BYTES_MAX);
        if assembler.push(&pdv).is_err() {
            return false;
        }
    }
    true
}
