//! The associations to one archive, side by side: opened when they are needed, kept for a short while, released when it is quiet.
//!
//! A context is proposed for the instance at hand and for what was sent lately, so that a study goes over one association. When
//! another context is needed, an association is released and opened anew with it. An archive that takes fewer associations than
//! we may open is no fault: what can't be opened beside others waits for one of those. Many archives take the
//! release for "the study is complete", hence it comes soon after the last instance.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Convert;
use super::archive::{Archive, AssociationError};
use super::association::{Association, Message, Pair};
use super::store::unexpected;
use crate::wire::dicom::convert;
use crate::wire::dicom::dimse::Command;
use crate::wire::dicom::pdu_associate::{CONTEXTS_MAX, ContextResult};
use crate::wire::dicom::values::{AeTitle, IMPLICIT_LITTLE_ENDIAN, VERIFICATION};

/// A refused context is taken for refused so long; then the archive is asked again, since its settings may have been mended.
const REFUSAL_BELIEVED: Duration = Duration::from_secs(30);

/// What is done with messages that answer no request of ours: reports of storage commitment.
pub trait Unasked: Send + Sync {
    /// The response; `None` when such a message can't come.
    fn take(&self, message: &Message) -> Option<Command>;

    /// Whether such messages are waited for, so that associations must stay open.
    fn awaits(&self) -> bool;

    /// Whether such messages are waited for, on whatever association they come.
    fn is_waited_for(&self) -> bool;
}

/// Nothing can come.
pub struct Nothing;

impl Unasked for Nothing {
    fn take(&self, _message: &Message) -> Option<Command> {
        None
    }

    fn awaits(&self) -> bool {
        false
    }

    fn is_waited_for(&self) -> bool {
        false
    }
}

/// Asks for an association and releases it.
///
/// # Errors
/// [`AssociationError`].
pub async fn look(archive: &Archive) -> Result<(), AssociationError> {
    let verification = Pair { abstract_syntax: VERIFICATION, transfer_syntax: IMPLICIT_LITTLE_ENDIAN };
    Association::open(archive, &[verification]).await?.release().await;
    Ok(())
}

/// How a [`Pool`] works.
pub struct Rules {
    /// Associations side by side, at most.
    pub associations: usize,
    /// One on which nothing is sent is released after this.
    pub quiet: Duration,
    /// Contexts that are proposed always.
    pub standing: Vec<Pair>,
    /// In which other encoding an instance may go.
    pub convert: Convert,
}

/// The associations to one archive.
pub struct Pool {
    archive: Archive,
    /// Proposed always, beside the pairs of instances.
    standing: Vec<Pair>,
    convert: Convert,
    slots: Arc<Semaphore>,
    open: Arc<AtomicUsize>,
    /// Written by the one who looks whether the archive is there, so that no association for an instance is asked for beside.
    door: RwLock<()>,
    idle: Mutex<Vec<Parked>>,
    recent: Mutex<VecDeque<Pair>>,
    unasked: Arc<dyn Unasked>,
    quiet: Duration,
    tasks: TaskTracker,
}

/// The right to use one association.
pub struct Slot(Option<OwnedSemaphorePermit>);

/// An open association of a [`Pool`], in use.
pub struct Member {
    /// The association.
    pub association: Association,
    /// The context that was asked for.
    pub context: u8,
    /// It was used before: that it has ended meanwhile would be no fault.
    pub reused: bool,
    opened: Instant,
    _counted: Counted,
}

/// Why there is no context to send in.
#[derive(Debug)]
pub enum NoContext {
    /// The archive refused it.
    Refused(ContextResult),
    /// There is no association.
    Association(AssociationError),
}

/// An association that waits for its next use, in a task of its own that sees when the archive ends it.
struct Parked {
    pairs: Vec<(Pair, Result<u8, ContextResult>)>,
    ask: oneshot::Sender<oneshot::Sender<Member>>,
}

impl Parked {
    /// What became of the context of this pair.
    fn answer(&self, pair: &Pair) -> Option<Result<u8, ContextResult>> {
        self.pairs.iter().find(|(known, _)| known == pair).map(|(_, outcome)| *outcome)
    }
}

/// Counts open associations.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    /// At most `rules.associations` to `archive`.
    pub fn new(archive: Archive, rules: Rules, unasked: Arc<dyn Unasked>) -> Self {
        Self {
            archive,
            standing: rules.standing,
            convert: rules.convert,
            quiet: rules.quiet,
            slots: Arc::new(Semaphore::new(rules.associations)),
            open: Arc::default(),
            door: RwLock::default(),
            idle: Mutex::default(),
            recent: Mutex::default(),
            unasked,
            tasks: TaskTracker::new(),
        }
    }

    /// As whom it calls.
    pub fn calling(&self) -> &AeTitle {
        &self.archive.calling
    }

    /// What is done with messages that answer none of ours.
    pub fn unasked(&self) -> &dyn Unasked {
        self.unasked.as_ref()
    }

    /// The tasks of this pool: whoever sends over it runs here, so that [`Self::close`] waits for it.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Waits until one association more may be used.
    pub async fn slot(&self) -> Slot {
        // Unwrap safety: it is never closed; if it were, one more association would be opened.
        Slot(Arc::clone(&self.slots).acquire_owned().await.ok())
    }

    /// An association with a context for `pair`: one that waits, or a new one.
    ///
    /// # Errors
    /// [`NoContext`].
    pub async fn take(&self, pair: &Pair, slot: &mut Slot) -> Result<Member, NoContext> {
        loop {
            if let Some(found) = self.reuse(pair).await {
                return found;
            }
            // In this order: an archive that takes one association at a time must see the release first.
            if let Some(other) = self.unpark(|_| true).await {
                other.association.release().await;
            }
            match self.make(pair).await {
                Ok(member) => return member,
                Err(error) if self.open.load(Ordering::Acquire) == 0 => return Err(NoContext::Association(error)),
                Err(error) => self.narrow(slot, &error).await,
            }
        }
    }

    /// Asks for an association and releases it, to see whether the archive is there and takes us. Not while there is one, or one is asked
    /// for: then that shows it. Nor while something is waited for that comes on an association of its own: an archive that is away for a
    /// moment may still say it, and who asks it all anew sends all again. One that is busy is there.
    ///
    /// # Errors
    /// [`AssociationError`].
    pub async fn look(&self) -> Result<(), AssociationError> {
        let Ok(_door) = self.door.try_write() else { return Ok(()) };
        if self.open.load(Ordering::Acquire) > 0 || self.unasked.is_waited_for() {
            return Ok(());
        }
        match look(&self.archive).await {
            Err(AssociationError::Rejected { reject, .. }) if reject.is_transient() => Ok(()),
            outcome => outcome,
        }
    }

    /// Fewer associations from now on: waits for one of the others.
    async fn narrow(&self, slot: &mut Slot, error: &AssociationError) {
        tracing::info!(%error, "the archive takes no further association beside those that are open: fewer are used");
        if let Some(permit) = slot.0.take() {
            permit.forget();
        }
        *slot = self.slot().await;
    }

    async fn reuse(&self, pair: &Pair) -> Option<Result<Member, NoContext>> {
        let mut member = self.unpark(|parked| parked.answer(pair).is_some()).await?;
        member.reused = true;
        match member.association.context(pair) {
            Some(Ok(context)) => {
                member.context = context;
                self.remember(pair);
                Some(Ok(member))
            }
            Some(Err(refusal)) if member.opened.elapsed() < REFUSAL_BELIEVED => {
                // Not this instance, but the next may go over it.
                self.park(member);
                Some(Err(NoContext::Refused(refusal)))
            }
            _ => {
                member.association.release().await;
                None
            }
        }
    }

    async fn make(&self, pair: &Pair) -> Result<Result<Member, NoContext>, AssociationError> {
        let pairs = self.proposal(pair);
        let _door = self.door.read().await;
        let association = Association::open(&self.archive, &pairs).await?;
        self.open.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&self.open));
        let outcome = association.context(pair).unwrap_or(Err(ContextResult::NoReason));
        let context = outcome.unwrap_or_default();
        let member = Member { association, context, reused: false, opened: Instant::now(), _counted: counted };
        match outcome {
            Ok(_) => {
                self.remember(pair);
                Ok(Ok(member))
            }
            Err(refusal) => {
                self.park(member);
                Ok(Err(NoContext::Refused(refusal)))
            }
        }
    }

    /// In which other encoding an instance of this pair may go too: it is proposed beside it, so that one association tells both.
    pub fn alternative(&self, pair: &Pair) -> Option<Pair> {
        let transfer_syntax = match self.convert {
            Convert::Never => None,
            Convert::Uncompressed => convert::other(&pair.transfer_syntax),
        };
        let abstract_syntax = pair.abstract_syntax.clone();
        transfer_syntax.map(|transfer_syntax| Pair { abstract_syntax, transfer_syntax })
    }

    /// What is needed now first, then what was sent lately.
    fn proposal(&self, pair: &Pair) -> Vec<Pair> {
        let mut pairs = vec![pair.clone()];
        pairs.extend(self.alternative(pair));
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for known in self.standing.iter().chain(recent.iter()) {
            for known in [Some(known.clone()), self.alternative(known)].into_iter().flatten() {
                if !pairs.contains(&known) {
                    pairs.push(known);
                }
            }
        }
        pairs.truncate(CONTEXTS_MAX);
        pairs
    }

    fn remember(&self, pair: &Pair) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|known| known != pair);
        recent.push_front(pair.clone());
        recent.truncate(CONTEXTS_MAX);
    }

    /// Keeps an association for its next use: until it is quiet, or the archive ends it.
    pub fn park(&self, mut member: Member) {
        let (ask, mut asked) = oneshot::channel::<oneshot::Sender<Member>>();
        let contexts = member.association.contexts();
        let pairs = contexts.iter().map(|known| (known.pair.clone(), known.outcome)).collect();
        self.idle().push(Parked { pairs, ask });
        let (unasked, limit) = (Arc::clone(&self.unasked), self.quiet);
        self.tasks.spawn(async move {
            let quiet = tokio::time::sleep(limit);
            tokio::pin!(quiet);
            loop {
                tokio::select! {
                    biased;
                    taker = &mut asked => {
                        // A pool that was closed asks no more.
                        let Ok(taker) = taker else { break };
                        match taker.send(member) {
                            Ok(()) => return,
                            Err(back) => member = back,
                        }
                        break;
                    }
                    message = member.association.receive_unlimited() => {
                        let Ok(message) = message else { return };
                        if unexpected(&mut member.association, &message, unasked.as_ref()).await.is_err() {
                            return;
                        }
                    }
                    () = &mut quiet => {
                        if !unasked.awaits() {
                            break;
                        }
                        quiet.as_mut().reset(Instant::now() + limit);
                    }
                }
            }
            member.association.release().await;
        });
    }

    /// Takes an association that waits; those that have ended meanwhile are forgotten.
    async fn unpark(&self, fits: impl Fn(&Parked) -> bool) -> Option<Member> {
        loop {
            let parked = {
                let mut idle = self.idle();
                let at = idle.iter().rposition(&fits)?;
                idle.remove(at)
            };
            let (taker, taken) = oneshot::channel();
            if parked.ask.send(taker).is_ok()
                && let Ok(member) = taken.await
            {
                return Some(member);
            }
        }
    }

    /// Releases what waits and waits for what is under way.
    pub async fn close(&self) {
        self.idle().clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Parked>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
