//! A batch on its way to the disk: the records of several requests, and who waits for them.

use tokio::sync::oneshot;

use super::CommitError;
use super::frame::framed_bytes;
use super::log::{Effect, State};
use super::record::{self, Cursor, Kind};
use super::writer::{Prepared, Written};

/// Told after the sync.
type Reply = oneshot::Sender<Result<Vec<Written>, CommitError>>;

/// Somebody who asked.
pub struct Waiter {
    /// How many of the records are his.
    pub count: usize,
    /// Where he waits.
    pub reply: Reply,
}

/// See the module.
#[derive(Default)]
pub struct Batch {
    /// In the order in which they are written.
    pub records: Vec<Prepared>,
    /// In the same order; records beyond theirs are nobody's.
    pub waiters: Vec<Waiter>,
    /// Bytes that the records take in a group.
    pub bytes: usize,
}

impl Batch {
    /// Cursors and nothing else.
    pub fn of_cursors(cursors: Vec<Cursor>) -> Self {
        let encoded = cursors.iter().map(record::encode).collect();
        let mut batch = Self::default();
        batch.add_cursors(cursors, encoded);
        batch
    }

    /// Adds the records of one request.
    pub fn add(&mut self, records: Vec<Prepared>, reply: Reply) {
        self.bytes += records.iter().map(|record| framed_bytes(record.plaintext.len())).sum::<usize>();
        self.waiters.push(Waiter { count: records.len(), reply });
        self.records.extend(records);
    }

    /// Adds cursors, which nobody waits for.
    pub fn add_cursors(&mut self, cursors: Vec<Cursor>, encoded: Vec<Vec<u8>>) {
        for (cursor, plaintext) in cursors.into_iter().zip(encoded) {
            self.bytes += framed_bytes(plaintext.len());
            self.records.push(Prepared {
                kind: Kind::Cursor,
                tag: 0,
                plaintext,
                effect: Effect::Cursor(cursor),
                id: None,
            });
        }
    }

    /// Both together, this one first.
    pub fn join(mut self, other: Self) -> Self {
        self.records.extend(other.records);
        self.waiters.extend(other.waiters);
        self.bytes += other.bytes;
        self
    }

    /// Refuses the messages of which an earlier piece is gone: with its segment, or because it was in one of those that were `lost`.
    pub fn refuse_torn(self, state: &State, lost: &[u64]) -> Self {
        let gone = |order: &u64| lost.contains(order) || !state.segments.contains_key(order);
        let cause = |record: &Prepared| match &record.effect {
            Effect::Message { refers, .. } if refers.iter().any(|order| lost.contains(order)) => {
                Some(CommitError::Failed)
            }
            Effect::Message { refers, .. } if refers.iter().any(gone) => Some(CommitError::Full),
            _ => None,
        };
        if self.records.iter().all(|record| cause(record).is_none()) {
            return self;
        }
        let mut whole = Self::default();
        let mut records = self.records.into_iter();
        for waiter in self.waiters {
            let own: Vec<Prepared> = records.by_ref().take(waiter.count).collect();
            match own.iter().find_map(cause) {
                Some(error) => drop(waiter.reply.send(Err(error))),
                None => whole.add(own, waiter.reply),
            }
        }
        whole
    }

    /// Whether nobody waits for a sync of it.
    pub fn is_pieces_only(&self) -> bool {
        self.records.iter().all(|record| record.kind == Kind::Fragment)
    }

    /// Tells everybody who waits.
    pub fn refuse(self, error: CommitError) {
        for waiter in self.waiters {
            drop(waiter.reply.send(Err(error)));
        }
    }
}
