//! Who may associate, and what is agreed (PS3.8 section 7.1, PS3.7 annex D.3.3): the acceptor's side of the negotiation.
//!
//! Decides and counts; reads and sends nothing. A rejection for good is only for what a person must change in a
//! configuration; load and a short disk are rejections for now.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::classes::is_other_service;
use super::{DicomConfig, Preference};
use crate::wire::dicom::pdu::{PduError, Reject, fragment_bytes_max};
use crate::wire::dicom::pdu_associate::{
    AnsweredContext, AssociateAccept, AssociateRequest, ContextResult, ProposedContext, Role, UserInformation,
};
use crate::wire::dicom::values::{
    APPLICATION_CONTEXT, AeTitle, IMPLEMENTATION_CLASS, IMPLEMENTATION_VERSION, STORAGE_COMMITMENT, Uid, VERIFICATION,
};

/// How long after an instance was refused for want of room new associations are rejected; then one may try again.
const CONGESTION_TIME: Duration = Duration::from_secs(1);

/// The rules of one source.
pub(super) struct Policy {
    titles: Vec<AeTitle>,
    calling: Vec<AeTitle>,
    preference: Preference,
    max_pdu: u32,
    /// Storage commitment is offered.
    commits: bool,
}

/// An accepted presentation context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) id: u8,
    pub(super) abstract_syntax: Uid,
    pub(super) transfer_syntax: Uid,
}

/// What was agreed.
pub(super) struct Association {
    pub(super) calling: AeTitle,
    pub(super) called: AeTitle,
    pub(super) contexts: Vec<Context>,
    /// Whether the peer takes reports of storage commitment here: it is the user of that service, and we provide it.
    pub(super) takes_reports: bool,
    /// Bytes of a message that one PDU to the peer may carry.
    pub(super) fragment_bytes: usize,
}

impl Policy {
    pub(super) fn new(config: &DicomConfig) -> Self {
        Self {
            titles: config.ae_title.0.clone(),
            calling: config.calling.0.clone(),
            preference: config.transfer_syntaxes.clone(),
            max_pdu: u32::try_from(config.max_pdu.0).unwrap_or(u32::MAX),
            commits: config.reporting().is_some(),
        }
    }

    /// The longest P-DATA PDU that we take.
    pub(super) fn max_pdu(&self) -> u32 {
        self.max_pdu
    }

    /// Whether this peer may associate.
    ///
    /// # Errors
    /// The rejection, for good.
    pub(super) fn admit(&self, request: &AssociateRequest) -> Result<(), Reject> {
        if !request.speaks_version_1() {
            return Err(Reject::PROTOCOL_VERSION);
        }
        if request.application_context != APPLICATION_CONTEXT {
            return Err(Reject::APPLICATION_CONTEXT);
        }
        if !self.titles.contains(&request.called) {
            return Err(Reject::CALLED_AE_TITLE);
        }
        if !self.calling.is_empty() && !self.calling.contains(&request.calling) {
            return Err(Reject::CALLING_AE_TITLE);
        }
        Ok(())
    }

    /// The answer to a request that is admitted, and what is agreed by it.
    ///
    /// # Errors
    /// When the peer leaves no room for answers.
    pub(super) fn agree(&self, request: &AssociateRequest) -> Result<(AssociateAccept, Association), PduError> {
        let fragment_bytes = fragment_bytes_max(request.user.max_length)?;
        let mut contexts = Vec::new();
        let answers = request.contexts.iter().map(|proposed| {
            let (result, transfer_syntax) = self.choose(proposed);
            if let (ContextResult::Accepted, Some(syntax)) = (result, &transfer_syntax) {
                let (abstract_syntax, transfer_syntax) = (proposed.abstract_syntax.clone(), syntax.clone());
                contexts.push(Context { id: proposed.id, abstract_syntax, transfer_syntax });
            }
            AnsweredContext { id: proposed.id, result, transfer_syntax }
        });
        let answers = answers.collect();
        let accept = request.accept(answers, self.user(&request.user));
        let (calling, called) = (request.calling.clone(), request.called.clone());
        // Without a word about it the requestor is the user (PS3.7 annex D.3.3.4).
        let gave_up = |role: &Role| role.sop_class == STORAGE_COMMITMENT && !role.scu;
        let takes_reports = !request.user.roles.iter().any(gave_up);
        Ok((accept, Association { calling, called, contexts, takes_reports, fragment_bytes }))
    }

    /// The transfer syntax of a rejected context is not significant, but some peers want one to be there.
    fn choose(&self, proposed: &ProposedContext) -> (ContextResult, Option<Uid>) {
        let usable = |uid: &&Uid| !uid.is_empty();
        let first = || proposed.transfer_syntaxes.iter().find(usable);
        let preferred = match &self.preference {
            Preference::First => None,
            Preference::Listed(listed) => listed.iter().find(|uid| proposed.transfer_syntaxes.contains(uid)),
        };
        let chosen = preferred.or_else(first).cloned();
        let result = match &chosen {
            _ if proposed.abstract_syntax.is_empty() => ContextResult::AbstractSyntax,
            _ if proposed.abstract_syntax == STORAGE_COMMITMENT && !self.commits => ContextResult::AbstractSyntax,
            _ if is_other_service(proposed.abstract_syntax.as_str()) => ContextResult::AbstractSyntax,
            None => ContextResult::TransferSyntaxes,
            Some(_) => ContextResult::Accepted,
        };
        (result, chosen)
    }

    /// Our side of the user information: what was asked is answered, and nothing else.
    fn user(&self, asked: &UserInformation) -> UserInformation {
        // The requestor may send; what it would get is not spoken here.
        let role = |role: &Role| Role { scp: false, ..role.clone() };
        let identity = asked.identity.as_ref().filter(|identity| identity.positive_response_requested);
        UserInformation {
            max_length: self.max_pdu,
            implementation_class: Some(IMPLEMENTATION_CLASS),
            implementation_version: Some(IMPLEMENTATION_VERSION.to_owned()),
            async_window: asked.async_window.map(|_| (1, 1)),
            roles: asked.roles.iter().map(role).collect(),
            identity: None,
            identity_response: identity.map(|_| Vec::new()),
        }
    }
}

impl Association {
    /// The accepted context of this id.
    pub(super) fn context(&self, id: u8) -> Option<&Context> {
        self.contexts.iter().find(|context| context.id == id)
    }
}

/// Whether a peer wants to store: an association for C-ECHO alone, or for what is refused anyway, is welcome however full the disk is.
pub(super) fn wants_storage(request: &AssociateRequest) -> bool {
    let stores = |class: &Uid| *class != VERIFICATION && !is_other_service(class.as_str());
    request.contexts.iter().any(|context| stores(&context.abstract_syntax))
}

/// The associations that are open, and who waits to have one.
pub(super) struct Seats {
    most: usize,
    most_per_peer: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
    waiting: Mutex<HashMap<IpAddr, usize>>,
    refused: Mutex<Option<Instant>>,
}

/// A place among them; given back when it is dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
    is_waiting: bool,
}

impl Seats {
    pub(super) fn new(most: usize, most_per_peer: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_per_peer,
            taken: Mutex::default(),
            waiting: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// A seat, unless all are taken.
    ///
    /// # Errors
    /// The rejection, for now.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Seat, Reject> {
        self.sit(peer, false).ok_or(Reject::LOCAL_LIMIT)
    }

    /// A place to wait in for an association; `None` when the peer has as many already as it may have associations. So one
    /// peer that only connects does not keep out the others.
    pub(super) fn wait(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        self.sit(peer, true)
    }

    fn sit(self: &Arc<Self>, peer: IpAddr, is_waiting: bool) -> Option<Seat> {
        let mut places = whole(self.places(is_waiting));
        let total: usize = places.values().sum();
        let of_peer = places.get(&peer).copied().unwrap_or_default();
        if (total >= self.most && !is_waiting) || of_peer >= self.most_per_peer {
            return None;
        }
        places.insert(peer, of_peer + 1);
        Some(Seat { seats: Arc::clone(self), peer, is_waiting })
    }

    fn places(&self, is_waiting: bool) -> &Mutex<HashMap<IpAddr, usize>> {
        if is_waiting { &self.waiting } else { &self.taken }
    }

    /// An instance was refused for want of room.
    pub(super) fn congest(&self) {
        *whole(&self.refused) = Some(Instant::now());
    }

    /// An instance was stored.
    pub(super) fn relieve(&self) {
        *whole(&self.refused) = None;
    }

    /// Whether there was no room just now. Nothing but a try tells whether there is again.
    pub(super) fn is_congested(&self) -> bool {
        whole(&self.refused).is_some_and(|at| at.elapsed() < CONGESTION_TIME)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut places = whole(self.seats.places(self.is_waiting));
        if let Entry::Occupied(mut of_peer) = places.entry(self.peer) {
            *of_peer.get_mut() -= 1;
            if *of_peer.get() == 0 {
                of_peer.remove();
            }
        }
    }
}

/// A value that is whole even when a thread died while it held the lock.
fn whole<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
