//! The way of parts into the spool: those of several analysers that come at the same time share a write and a sync.
//!
//! A lone analyser waits for nobody. When parts of several came together, the next ones of them are waited for, a moment: their senders
//! were answered at the same time. Nobody is told Ok before the sync of what he brought; a part that is not taken is its sender's again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::astm_part;
use super::astm_transfers::Transfers;
use super::intake::Intake;
use crate::envelope::Stamp;
use crate::spool::CommitError;

/// Parts that wait to be taken; a sender beyond them waits to bring his.
const WAITING_MAX: usize = 64;
/// Parts that share a sync.
const PARTS_MAX: usize = 64;
/// Bytes of parts that share a sync: one beyond it is the last.
const BYTES_MAX: usize = 256 << 10;
/// How long others are waited for. An analyser waits 15 s for its answer, and takes longer than this to send a byte.
const GATHER_TIME: Duration = Duration::from_millis(2);

/// A part on its way.
struct Brought {
    body: Vec<u8>,
    received: Stamp,
    told: oneshot::Sender<Result<(), CommitError>>,
}

/// Where lines bring their parts.
#[derive(Debug, Clone)]
pub struct Inlet {
    queue: mpsc::Sender<Brought>,
}

/// The other end: to be [`Gather::run`].
pub struct Gather {
    queue: mpsc::Receiver<Brought>,
    intake: Intake,
    transfers: Arc<Transfers>,
    /// Parts in the last write.
    last: usize,
}

/// A way for the parts of all lines of a source.
pub fn open(intake: &Intake, transfers: Arc<Transfers>) -> (Inlet, Gather) {
    let (queue, brought) = mpsc::channel(WAITING_MAX);
    (Inlet { queue }, Gather { queue: brought, intake: intake.clone(), transfers, last: 1 })
}

impl Inlet {
    /// Makes a part durable.
    ///
    /// # Errors
    /// [`CommitError`] when the log is full or has failed; nothing is stored then.
    pub async fn commit(&self, body: Vec<u8>, received: Stamp) -> Result<(), CommitError> {
        let (told, outcome) = oneshot::channel();
        self.queue.send(Brought { body, received, told }).await.map_err(|_| CommitError::Failed)?;
        outcome.await.unwrap_or(Err(CommitError::Failed))
    }
}

impl Gather {
    /// Takes what is brought, until nobody can bring anything any more.
    pub async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let mut together = vec![first];
            self.gather(&mut together).await;
            self.last = together.len();
            let outcome = self.write(&mut together).await;
            for Brought { told, .. } in together {
                // Whose line is gone is not told: his part is stored all the same.
                told.send(outcome).ok();
            }
        }
    }

    async fn gather(&mut self, together: &mut Vec<Brought>) {
        let mut bytes = together.iter().map(|part| part.body.len()).sum::<usize>();
        // Each line has one part on its way at most.
        let expected = if self.last > 1 { self.transfers.live().min(PARTS_MAX) } else { 1 };
        let until = Instant::now() + GATHER_TIME;
        while together.len() < PARTS_MAX && bytes < BYTES_MAX {
            let next = match self.queue.try_recv() {
                Ok(next) => Some(next),
                Err(_) if together.len() < expected => timeout_at(until, self.queue.recv()).await.ok().flatten(),
                Err(_) => None,
            };
            let Some(next) = next else { return };
            bytes += next.body.len();
            together.push(next);
        }
    }

    /// All of them or none.
    async fn write(&self, together: &mut [Brought]) -> Result<(), CommitError> {
        let Some((first, others)) = together.split_first_mut() else { return Ok(()) };
        let mut incoming = self.intake.begin_at(first.received);
        incoming.write(&first.body).await?;
        for other in others {
            incoming.also_part(astm_part::CONTENT_TYPE, other.received, std::mem::take(&mut other.body));
        }
        incoming.commit_part(astm_part::about()).await.map(drop)
    }
}
