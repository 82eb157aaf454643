//! Storage commitment as its user (DICOM PS3.4 annex J): an instance counts as delivered when the archive says that it keeps it.
//!
//! Instances that were stored are asked for together, by N-ACTION; the answer comes whenever the archive likes, by N-EVENT-REPORT on
//! the same association or on one of its own ([`super::reports`]). A report counts only for the random transaction that
//! it names and the instances that were asked for in it. Nothing is kept over a lost connection: what was not committed by
//! then is stored and asked for again, which does no harm.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::archive::AssociationError;
use super::association::{Message, Pair};
use super::pool::{Member, NoContext, Pool, Unasked};
use super::store::answer;
use crate::upstream::{Receipt, SendError};
use crate::wire::dicom::commitment::{Reference, Report, Request};
use crate::wire::dicom::dimse::{Command, CommandField, Status, StatusClass};
use crate::wire::dicom::element::Encoding;
use crate::wire::dicom::values::{IMPLICIT_LITTLE_ENDIAN, STORAGE_COMMITMENT, Uid};

/// Instances that may wait for the archive's commitment: the lane's window.
pub const WAITING_MAX: usize = 256;
/// Instances in one request.
const TOGETHER_MAX: usize = 64;
/// How long a request waits for more instances.
const GATHER: Duration = Duration::from_millis(500);

/// What waits for the archive's reports.
#[derive(Default)]
pub struct Reports {
    transactions: Mutex<HashMap<Uid, HashMap<Uid, Done>>>,
    /// Reports come on associations of the archive's own.
    listening: bool,
}

type Done = oneshot::Sender<Result<Receipt, SendError>>;

/// An instance whose commitment is wanted.
pub struct Wanted {
    reference: Reference,
    done: Done,
}

/// Asks the archive, for many instances at once.
#[derive(Clone)]
pub struct Commitment {
    queue: mpsc::Sender<Wanted>,
    limit: Duration,
    listening: bool,
}

/// The context of storage commitment: in the encoding that everybody knows.
pub fn context() -> Pair {
    Pair { abstract_syntax: STORAGE_COMMITMENT, transfer_syntax: IMPLICIT_LITTLE_ENDIAN }
}

/// A UID that nobody else has, made from random bits (PS3.5 annex B.2).
pub fn fresh_uid() -> Uid {
    let mut random = [0; 16];
    // It fails only when the system has no random numbers; then TLS does not work either, and 0 is refused by the archive.
    aws_lc_rs::rand::fill(&mut random).ok();
    // The bits that say: a random UUID (RFC 9562, 5.4).
    let number = u128::from_be_bytes(random) & !(0xf000 << 64 | 0xc << 60) | 0x4000 << 64 | 0x8 << 60;
    Uid::read(format!("2.25.{number}").as_bytes()).unwrap_or_default()
}

impl Commitment {
    /// Instances come through the receiver to [`ask`]; their reports must come within `limit`.
    pub fn new(limit: Duration, listening: bool) -> (Self, mpsc::Receiver<Wanted>) {
        let (queue, wanted) = mpsc::channel(WAITING_MAX);
        (Self { queue, limit, listening }, wanted)
    }

    /// Waits until the archive commits itself to an instance that it has.
    ///
    /// # Errors
    /// As the archive's report or its silence wants it.
    pub async fn of(&self, reference: Reference) -> Result<Receipt, SendError> {
        let (done, reported) = oneshot::channel();
        let ended = || SendError::Disconnected { cause: "the archive was left before its report came".into() };
        self.queue.send(Wanted { reference, done }).await.map_err(|_| ended())?;
        match timeout(self.limit, reported).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(ended())),
            Err(_) => Err(SendError::Busy { cause: self.silence(), after: None }),
        }
    }

    fn silence(&self) -> String {
        let seconds = self.limit.as_secs().max(1);
        let advice = match self.listening {
            true => "check the address that it has for this box",
            false => {
                "if it reports on a connection of its own, set commitment-listen (a probe: --listen) and enter that address there"
            }
        };
        format!("the archive has stored the instance and did not report its commitment within {seconds} s: {advice}")
    }
}

/// Asks for what comes through `wanted`, together where it comes together, until nobody wants anything any more.
pub async fn ask(pool: Arc<Pool>, reports: Arc<Reports>, mut wanted: mpsc::Receiver<Wanted>) {
    while let Some(first) = wanted.recv().await {
        let mut together = vec![first];
        let until = Instant::now() + GATHER;
        while together.len() < TOGETHER_MAX
            && let Ok(Some(next)) = timeout_at(until, wanted.recv()).await
        {
            together.push(next);
        }
        request(&pool, &reports, together).await;
    }
}

/// No two of `together` have the same UID: the second waits for the first one's receipt, unless that was given up.
async fn request(pool: &Pool, reports: &Reports, mut together: Vec<Wanted>) {
    together.retain(|wanted| !wanted.done.is_closed());
    if together.is_empty() {
        return;
    }
    let transaction = fresh_uid();
    let references = together.iter().map(|wanted| wanted.reference.clone()).collect();
    let data = Request { transaction: transaction.clone(), references }.bytes(Encoding::Implicit);
    // Before it is asked: the report may come before the answer.
    reports.expect(&transaction, together);
    if let Err(error) = exchange(pool, reports, &data).await {
        reports.fail(&transaction, &error);
    }
}

async fn exchange(pool: &Pool, reports: &Reports, data: &[u8]) -> Result<(), SendError> {
    let mut slot = pool.slot().await;
    let mut member = match pool.take(&context(), &mut slot).await {
        Ok(member) => member,
        Err(NoContext::Association(error)) => return Err(error.into()),
        Err(NoContext::Refused(_)) => return Err(unwilling("it does not offer storage commitment")),
    };
    let status = action(&mut member, reports, data).await?;
    pool.park(member);
    match status.class() {
        StatusClass::Success | StatusClass::Warning => Ok(()),
        _ => Err(unwilling(&format!("it answered the request for commitment with {status}"))),
    }
}

async fn action(member: &mut Member, reports: &Reports, data: &[u8]) -> Result<Status, AssociationError> {
    let association = &mut member.association;
    let id = association.next_message_id();
    association.send(member.context, &Command::commitment_request(id).bytes(), Some(data)).await?;
    let answer = answer(association, id, reports).await?;
    match (answer.field, answer.status) {
        (CommandField::ActionResponse, Some(status)) => Ok(status),
        _ => Err(AssociationError::Broken("it answered N-ACTION with something else".into())),
    }
}

/// No message's fault: the archive's settings or ours must be changed, and until then nothing may be lost.
fn unwilling(what: &str) -> SendError {
    let cause = format!(
        "the archive has stored the instance, but {what}: let its owner allow it, or do without (commitment = false)"
    );
    SendError::Busy { cause, after: None }
}

impl Reports {
    /// `listening`: they come on associations of the archive's own, so that ours need not stay open for them.
    pub fn new(listening: bool) -> Self {
        Self { transactions: Mutex::default(), listening }
    }

    fn expect(&self, transaction: &Uid, together: Vec<Wanted>) {
        let asked = together.into_iter().map(|wanted| (wanted.reference.sop_instance, wanted.done)).collect();
        let mut transactions = self.locked();
        // Those that nobody waits for any more have had their time.
        transactions.retain(|_, asked: &mut HashMap<Uid, Done>| asked.values().any(|done| !done.is_closed()));
        transactions.insert(transaction.clone(), asked);
    }

    fn fail(&self, transaction: &Uid, error: &SendError) {
        for (_, done) in self.locked().remove(transaction).into_iter().flatten() {
            // Unless it was given up meanwhile.
            done.send(Err(error.clone())).ok();
        }
    }

    /// Takes a report: those whom it names have their receipt, or know why not.
    pub fn take(&self, report: &Report) {
        let mut transactions = self.locked();
        let Some(asked) = transactions.get_mut(&report.transaction) else {
            tracing::debug!("a report of storage commitment about a transaction that is over");
            return;
        };
        let committed = report.committed.iter().map(|reference| (reference, None));
        let failed = report.failed.iter().map(|(reference, reason)| (reference, Some(*reason)));
        for (reference, reason) in failed.chain(committed) {
            if let Some(done) = asked.remove(&reference.sop_instance) {
                done.send(reason.map_or_else(|| Ok(Receipt { code: "committed".into() }), |why| Err(failure(why))))
                    .ok();
            }
        }
        if asked.is_empty() {
            transactions.remove(&report.transaction);
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<Uid, HashMap<Uid, Done>>> {
        self.transactions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The archive had it and does not keep it: it is stored again, as often as a refusal is.
fn failure(reason: Status) -> SendError {
    SendError::Refused {
        reason: format!("the archive has stored the instance and does not commit itself to it: {reason}"),
    }
}

impl Unasked for Reports {
    fn take(&self, message: &Message) -> Option<Command> {
        let Message { command, data, .. } = message;
        if command.field != CommandField::EventReportRequest || command.affected_class != Some(STORAGE_COMMITMENT) {
            return None;
        }
        // Our contexts for it are implicit little endian, all of them.
        match Report::read(Encoding::Implicit, data) {
            Ok(report) => {
                Self::take(self, &report);
                Some(command.response(Status::SUCCESS))
            }
            Err(error) => {
                tracing::warn!(%error, "the archive sent a report of storage commitment that can't be read");
                Some(command.response(Status::INVALID_ARGUMENT))
            }
        }
    }

    fn awaits(&self) -> bool {
        !self.listening && self.is_waited_for()
    }

    fn is_waited_for(&self) -> bool {
        self.locked().values().flat_map(HashMap::values).any(|done| !done.is_closed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(uid: &str) -> Reference {
        Reference { sop_class: Uid::default(), sop_instance: uid.parse().unwrap() }
    }

    #[test]
    fn a_report_counts_for_its_transaction_and_for_whom_it_names() {
        let reports = Reports::new(false);
        let (first, second) = (fresh_uid(), fresh_uid());
        let wait = |transaction: &Uid, uids: &[&str]| {
            let (wanted, waiting): (Vec<_>, Vec<_>) = uids
                .iter()
                .map(|uid| {
                    let (done, waiting) = oneshot::channel();
                    (Wanted { reference: reference(uid), done }, waiting)
                })
                .unzip();
            reports.expect(transaction, wanted);
            waiting
        };
        let mut of_first = wait(&first, &["1.1", "1.2", "1.3"]);
        let mut of_second = wait(&second, &["1.1"]);
        let failed = vec![(reference("1.2"), Status::NO_SUCH_INSTANCE)];
        let committed = vec![reference("1.1"), reference("9.9")];
        reports.take(&Report { transaction: first.clone(), committed: committed.clone(), failed });
        reports.take(&Report { transaction: fresh_uid(), committed, failed: vec![] });
        assert_eq!(of_first[0].try_recv().unwrap().unwrap().code, "committed");
        let error = of_first[1].try_recv().unwrap().unwrap_err();
        assert!(error.to_string().ends_with("0112 (no such SOP instance)"), "{error}");
        assert!(of_first[2].try_recv().is_err() && of_second[0].try_recv().is_err(), "nobody spoke of them");
        assert!(reports.awaits());
        drop((of_first, of_second));
        assert!(!reports.awaits());
    }

    #[test]
    fn fresh_uids_are_valid_and_differ() {
        let (one, other) = (fresh_uid(), fresh_uid());
        assert!(one.is_valid() && other.is_valid() && one != other, "{one} {other}");
    }
}
