//! Who carries out what is asked over the control socket, and the two ways that bytes and progress take meanwhile.
//!
//! The operator knows no socket and no lines: it is given requests that were already allowed and checked.

use std::future::Future;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::answers::{
    Code, Count, DeadLetter, DeadList, ExportReport, FindReport, ImportReport, KeysReport, Progress, Refusal, Released,
    ReplayReport, SpoolUsage, VerifyReport,
};
use super::ids::IdPattern;
use super::verbs::{
    DeadQuery, DeadSelection, DestroyRequest, ExportRequest, FindRequest, ImportRequest, LaneSelection, ReplayRequest,
};
use crate::status::Status;

/// Pieces of progress and data that may wait for a slow reader before the job waits too.
const SAYINGS_WAITING_MAX: usize = 8;

/// Carries out what is asked over the control socket. Implemented by the gateway.
///
/// The socket has already checked who asks ([`super::verbs::Request::level`]) and that the request makes sense ([`super::verbs::Request::check`]).
/// When the one who asked hangs up, the future is dropped at its next await.
pub trait Operator: Send + Sync + 'static {
    /// The snapshot.
    fn status(&self) -> impl Future<Output = Status> + Send;
    /// Dead letters, the newest first.
    fn dead_list(&self, query: DeadQuery) -> impl Future<Output = Answer<DeadList>> + Send;
    /// One message, for each upstream that refused it; [`Code::NotFound`] when there is none.
    fn dead_show(&self, id: IdPattern) -> impl Future<Output = Answer<Vec<DeadLetter>>> + Send;
    /// Its body, through [`Outlet::data`]; answers its length.
    fn dead_body(&self, id: IdPattern, outlet: &Outlet) -> impl Future<Output = Answer<u64>> + Send;
    /// Puts dead letters back at the end of their lanes; durable when it answers.
    fn dead_retry(&self, selection: DeadSelection) -> impl Future<Output = Answer<Count>> + Send;
    /// Gives dead letters up for good; durable when it answers.
    fn dead_discard(&self, selection: DeadSelection) -> impl Future<Output = Answer<Count>> + Send;
    /// Held lanes send their message again; [`Code::NotFound`] when none of them waits for a person.
    fn lane_retry(&self, selection: LaneSelection) -> impl Future<Output = Answer<Released>> + Send;
    /// Held lanes make their message a dead letter and go on; [`Code::NotFound`] when none of them waits for a person.
    fn lane_set_aside(&self, selection: LaneSelection) -> impl Future<Output = Answer<Released>> + Send;
    /// What the spool holds.
    fn spool_usage(&self) -> impl Future<Output = Answer<SpoolUsage>> + Send;
    /// Reads everything; tells its progress.
    fn spool_verify(&self, outlet: &Outlet) -> impl Future<Output = Answer<VerifyReport>> + Send;
    /// Takes note of all damage that was found; counts the segments.
    fn spool_accept_damage(&self) -> impl Future<Output = Answer<Count>> + Send;
    /// Messages about a patient or an order, the newest first; tells its progress.
    fn spool_find(&self, request: FindRequest, outlet: &Outlet) -> impl Future<Output = Answer<FindReport>> + Send;
    /// Seals the chosen messages to the recipients and hands the sealed bytes out through [`Outlet::data`].
    fn spool_export(
        &self,
        request: ExportRequest,
        outlet: &Outlet,
    ) -> impl Future<Output = Answer<ExportReport>> + Send;
    /// Stores what [`Inlet::next`] gives (the unsealed export); known ids are not stored again.
    fn spool_import(
        &self,
        request: ImportRequest,
        inlet: &mut Inlet,
        outlet: &Outlet,
    ) -> impl Future<Output = Answer<ImportReport>> + Send;
    /// Sends kept originals again, or counts them.
    fn replay(&self, request: ReplayRequest, outlet: &Outlet) -> impl Future<Output = Answer<ReplayReport>> + Send;
    /// Makes a new epoch key.
    fn keys_rotate(&self) -> impl Future<Output = Answer<KeysReport>> + Send;
    /// Destroys the root key if `gateway` is this gateway's name.
    fn keys_destroy(&self, request: DestroyRequest) -> impl Future<Output = Answer<KeysReport>> + Send;
}

/// What an [`Operator`] answers.
pub type Answer<T> = Result<T, Refusal>;

/// What a job says while it runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Saying {
    /// How far it is.
    Progress(Progress),
    /// Bytes for the one who asked.
    Data(Bytes),
}

/// Where a job says how far it is and hands out bytes. Waits for a slow reader; what is said to one who hung up is dropped
/// together with the job.
#[derive(Clone)]
pub struct Outlet(mpsc::Sender<Saying>);

impl Outlet {
    /// An outlet and its other end.
    pub fn channel() -> (Self, mpsc::Receiver<Saying>) {
        let (sender, receiver) = mpsc::channel(SAYINGS_WAITING_MAX);
        (Self(sender), receiver)
    }

    /// So many of so many.
    pub async fn progress(&self, what: &str, done: u64, total: Option<u64>) {
        // A reader that is gone takes the whole job with it: nothing to do about it here.
        self.0.send(Saying::Progress(Progress { what: what.to_owned(), done, total })).await.ok();
    }

    /// Bytes, in order; any length.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the reader is gone.
    pub async fn data(&self, bytes: Bytes) -> Result<(), Refusal> {
        let gone = |_| Refusal::new(Code::Unavailable, "the one who asked has hung up");
        self.0.send(Saying::Data(bytes)).await.map_err(gone)
    }
}

/// Bytes that come with a request (an import).
pub struct Inlet(mpsc::Receiver<Option<Bytes>>);

impl Inlet {
    /// The sender's end and an inlet. `None` is the end of the bytes; a sender that is dropped before is a break.
    pub fn channel() -> (mpsc::Sender<Option<Bytes>>, Self) {
        let (sender, receiver) = mpsc::channel(SAYINGS_WAITING_MAX);
        (sender, Self(receiver))
    }

    /// The next bytes; `None` when all have come.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the sender broke off: what has come is not whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        let broken = || Refusal::new(Code::Unavailable, "the bytes broke off before their end");
        self.0.recv().await.ok_or_else(broken)
    }
}
