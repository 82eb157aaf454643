//! Second copies: the same source, control id and body within a window are acknowledged again and not stored again.
//!
//! The first half of a key is that of source and control id alone: so it is known, too, that the same id came with another body.
//! Keys are short keyed hashes; no content is kept. The window counts uptime and is bounded in number: the oldest go first.
//! A copy that arrives while the first is being committed waits for that commit. What is in memory is all that counts;
//! `index` fills it at a start, so that a message which was acknowledged just before a power cut is known after it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use tokio::sync::watch;

use super::seal::Secret;
use crate::digest::Digest;
use crate::envelope::MessageId;
use crate::values::Name;

/// Messages that the window remembers at most.
pub const REMEMBERED_MAX: usize = 65_536;

/// A keyed hash of source and control id, and one of both and the body.
pub type Key = [u8; 16];
/// The first half of a [`Key`].
type IdHash = [u8; 8];

/// The window.
pub struct Duplicates {
    secret: Secret,
    window_ms: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    known: HashMap<Key, Known>,
    /// How many of `known` have an id in common.
    ids: HashMap<IdHash, u32>,
    oldest: VecDeque<(u64, Key)>,
}

enum Known {
    Stored(MessageId, u64),
    Underway(watch::Receiver<Option<MessageId>>),
}

/// What the window says of a message that is about to be stored.
pub enum Verdict<'a> {
    /// It is new; the claim must be settled.
    New(Claim<'a>),
    /// It is stored already.
    Repeat(MessageId),
    /// The same is being stored: wait for it, then ask again.
    Wait(watch::Receiver<Option<MessageId>>),
}

/// The right to store a message; others with the same key wait. Dropped unsettled, the next one may try.
pub struct Claim<'a> {
    /// A message with the same id and another body is in the window.
    pub differs: bool,
    window: &'a Duplicates,
    key: Key,
    settled: bool,
    tell: watch::Sender<Option<MessageId>>,
}

impl Duplicates {
    /// A window of `window_ms` of uptime; `secret` keys the hashes.
    pub fn new(secret: Secret, window_ms: u64) -> Self {
        Self { secret, window_ms, inner: Mutex::default() }
    }

    /// How long a second copy is recognised, milliseconds of uptime.
    pub fn window_ms(&self) -> u64 {
        self.window_ms
    }

    /// The key of a message; `None` when it has no control id, and every copy is then a message of its own.
    pub fn key(&self, source: &Name, control_id: &[u8], digest: &Digest) -> Option<Key> {
        if control_id.is_empty() {
            return None;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.secret.bytes());
        context.update(source.as_str().as_bytes());
        context.update(&[0]);
        context.update(control_id);
        let id: IdHash = context.clone().finish().as_ref().first_chunk().copied()?;
        context.update(&digest.bytes);
        let whole: IdHash = context.finish().as_ref().first_chunk().copied()?;
        let mut key = [0; 16];
        key[..8].copy_from_slice(&id);
        key[8..].copy_from_slice(&whole);
        Some(key)
    }

    /// The hash of a device's own id, whatever the body is.
    pub fn name_key(&self, source: &Name, control_id: &[u8]) -> Key {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(self.secret.bytes());
        // No source's name is empty, so no key of a message is the same.
        context.update(&[0]);
        context.update(source.as_str().as_bytes());
        context.update(&[0]);
        context.update(control_id);
        context.finish().as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Asks for a key at uptime `now_ms`.
    pub fn claim(&self, key: Key, now_ms: u64) -> Verdict<'_> {
        let mut inner = self.lock();
        inner.forget_before(now_ms.saturating_sub(self.window_ms));
        match inner.known.get(&key) {
            Some(Known::Stored(id, _)) => Verdict::Repeat(*id),
            Some(Known::Underway(told)) => Verdict::Wait(told.clone()),
            None => {
                let (tell, told) = watch::channel(None);
                let differs = inner.ids.contains_key(&id_of(&key));
                inner.insert(key, Known::Underway(told));
                Verdict::New(Claim { differs, window: self, key, settled: false, tell })
            }
        }
    }

    /// Remembers what was stored before this start. The oldest must come first.
    pub fn remember(&self, key: Key, id: MessageId, at_ms: u64) {
        let mut inner = self.lock();
        inner.store(key, id, at_ms);
    }

    /// Those of these messages that are in the window.
    pub fn known(&self, messages: &HashSet<MessageId>) -> HashSet<MessageId> {
        let inner = self.lock();
        let stored = inner.known.values().filter_map(|known| match known {
            Known::Stored(id, _) => Some(*id),
            Known::Underway(_) => None,
        });
        stored.filter(|id| messages.contains(id)).collect()
    }

    /// Forgets these messages: when a device sends one of them again, it is stored again.
    pub fn forget(&self, messages: &HashSet<MessageId>) {
        let mut inner = self.lock();
        let is_one = |known: &Known| matches!(known, Known::Stored(id, _) if messages.contains(id));
        let keys: Vec<Key> = inner.known.iter().filter(|(_, known)| is_one(known)).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| inner.remove(key));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// The message is stored.
    pub fn settle(mut self, id: MessageId, now_ms: u64) {
        self.window.lock().store(self.key, id, now_ms);
        self.settled = true;
        self.tell.send_replace(Some(id));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.window.lock().remove(&self.key);
        }
    }
}

impl Inner {
    fn store(&mut self, key: Key, id: MessageId, at_ms: u64) {
        self.insert(key, Known::Stored(id, at_ms));
        self.oldest.push_back((at_ms, key));
        if self.oldest.len() > REMEMBERED_MAX {
            self.drop_oldest();
        }
    }

    fn forget_before(&mut self, before_ms: u64) {
        while self.oldest.front().is_some_and(|(at_ms, _)| *at_ms < before_ms) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((at_ms, key)) = self.oldest.pop_front()
            && matches!(self.known.get(&key), Some(Known::Stored(_, stored)) if *stored == at_ms)
        {
            self.remove(&key);
        }
    }

    fn insert(&mut self, key: Key, known: Known) {
        if self.known.insert(key, known).is_none() {
            *self.ids.entry(id_of(&key)).or_default() += 1;
        }
    }

    fn remove(&mut self, key: &Key) {
        if self.known.remove(key).is_some()
            && let Entry::Occupied(mut count) = self.ids.entry(id_of(key))
        {
            match count.get() {
                0 | 1 => drop(count.remove()),
                more => drop(count.insert(more - 1)),
            }
        }
    }
}

fn id_of(key: &Key) -> IdHash {
    let mut id = [0; 8];
    id.copy_from_slice(&key[..8]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn window() -> Duplicates {
        Duplicates::new(Secret::new([1; 32]), 600_000)
    }

    fn sum(byte: u8) -> Digest {
        Digest { algorithm: Algorithm::Sha256, bytes: [byte; 32] }
    }

    fn key(window: &Duplicates, control_id: &[u8]) -> Key {
        window.key(&"icu".parse().unwrap(), control_id, &sum(7)).unwrap()
    }

    #[test]
    fn a_second_copy_is_known_for_ten_minutes_and_then_new_again() {
        let window = window();
        let key = key(&window, b"1");
        let Verdict::New(claim) = window.claim(key, 1000) else { panic!("new") };
        claim.settle(MessageId([9; 16]), 1000);
        assert!(matches!(window.claim(key, 600_000), Verdict::Repeat(MessageId([9, ..]))));
        assert!(matches!(window.claim(key, 601_001), Verdict::New(_)));
    }

    #[test]
    fn a_restarted_counter_is_no_second_copy_and_no_control_id_is_never_one() {
        let window = window();
        let source = "icu".parse().unwrap();
        assert_ne!(window.key(&source, b"1", &sum(1)), window.key(&source, b"1", &sum(2)));
        assert_ne!(window.key(&source, b"1", &sum(1)), window.key(&"er".parse().unwrap(), b"1", &sum(1)));
        assert_eq!(window.key(&source, b"", &sum(1)), None);
    }

    #[tokio::test]
    async fn a_copy_waits_for_the_first_and_tries_itself_when_that_fails() {
        let window = window();
        let key = key(&window, b"1");
        let Verdict::New(first) = window.claim(key, 0) else { panic!("new") };
        let Verdict::Wait(mut told) = window.claim(key, 0) else { panic!("wait") };
        drop(first);
        assert!(told.changed().await.is_err());
        assert!(matches!(window.claim(key, 0), Verdict::New(_)));
    }

    #[test]
    fn the_same_id_with_another_body_is_noticed_while_the_first_is_in_the_window() {
        let window = window();
        let source = "ct".parse().unwrap();
        let key = |id: &[u8], body| window.key(&source, id, &sum(body)).unwrap();
        let Verdict::New(first) = window.claim(key(b"1.2.3", 1), 0) else { panic!("new") };
        assert!(!first.differs);
        // Also while the first is still being stored.
        let Verdict::New(second) = window.claim(key(b"1.2.3", 2), 0) else { panic!("new") };
        assert!(second.differs);
        drop(second);
        first.settle(MessageId([1; 16]), 0);
        let Verdict::New(other) = window.claim(key(b"1.2.4", 1), 10) else { panic!("new") };
        assert!(!other.differs);
        drop(other);
        let Verdict::New(third) = window.claim(key(b"1.2.3", 3), 10) else { panic!("new") };
        assert!(third.differs);
        drop(third);
        let Verdict::New(late) = window.claim(key(b"1.2.3", 3), 600_001) else { panic!("new") };
        assert!(!late.differs, "the first has left the window");
        drop(late);
        assert!(window.lock().ids.is_empty() && window.lock().known.is_empty());
    }

    #[test]
    fn the_window_is_bounded() {
        let window = window();
        for number in 0..REMEMBERED_MAX as u64 + 10 {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&number.to_le_bytes());
            window.remember(key, MessageId([0; 16]), 0);
        }
        assert_eq!(window.lock().known.len(), REMEMBERED_MAX);
        assert!(window.lock().ids.len() <= REMEMBERED_MAX);
    }
}
