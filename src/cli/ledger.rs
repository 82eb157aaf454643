//! The demo's own books, one for each kind of device: what its devices sent, what was acknowledged to them, what arrived at
//! the other end. By SHA-256 of the bytes, so that "arrived" means byte for byte; of an image, its data set, of a
//! sensor's reading, its payload, of an oximeter's line, the `raw` of its record.
//!
//! It knows nothing of the gateway: that is what makes its verdict worth something. A message leaves the book when it was
//! both acknowledged and found at the other end, so that a demo that runs for days does not grow.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

/// What a message is known by here.
pub type Fingerprint = [u8; 32];

/// The fingerprint of a body.
pub fn fingerprint(body: &[u8]) -> Fingerprint {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, body).as_ref());
    fingerprint
}

/// All books.
#[derive(Clone, Default)]
pub struct Books {
    /// Of the monitors.
    pub messages: Arc<Ledger>,
    /// Of the scanners.
    pub images: Arc<Ledger>,
    /// Of the analyser.
    pub results: Arc<Ledger>,
    /// Of the sensors.
    pub readings: Arc<Ledger>,
    /// Of the oximeter, which nobody answers: what it said is in it as acknowledged.
    pub lines: Arc<Ledger>,
}

impl Books {
    /// Whether all that was acknowledged has arrived.
    pub fn are_even(&self) -> bool {
        self.named().iter().all(|(_, ledger)| ledger.missing().is_empty())
    }

    /// Each book with the name of what is in it.
    pub fn named(&self) -> [(&'static str, &Arc<Ledger>); 5] {
        [
            ("messages", &self.messages),
            ("images", &self.images),
            ("results", &self.results),
            ("readings", &self.readings),
            ("lines of the oximeter", &self.lines),
        ]
    }
}

/// A book.
#[derive(Default)]
pub struct Ledger(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    open: HashMap<Fingerprint, Message>,
    totals: Totals,
}

struct Message {
    name: String,
    acknowledged: bool,
    arrived: bool,
}

/// Sums since the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// What the devices made.
    pub sent: u64,
    /// What they were told is safe.
    pub acknowledged: u64,
    /// What arrived of theirs, each counted once.
    pub arrived: u64,
}

impl Ledger {
    /// A device is about to send this, perhaps again. Its name is a control id, or a SOP instance UID.
    pub fn sending(&self, fingerprint: Fingerprint, name: &str) {
        let mut pages = self.pages();
        let Entry::Vacant(place) = pages.open.entry(fingerprint) else { return };
        place.insert(Message { name: name.to_owned(), acknowledged: false, arrived: false });
        pages.totals.sent += 1;
    }

    /// The device was told that this is safe.
    pub fn acknowledged(&self, fingerprint: &Fingerprint) {
        let mut pages = self.pages();
        let Some(message) = pages.open.get_mut(fingerprint) else { return };
        let first = !message.acknowledged;
        message.acknowledged = true;
        pages.totals.acknowledged += u64::from(first);
        pages.close(fingerprint);
    }

    /// This was found at the other end. `false`: it is not (or no longer) in the book, so it is a real device's, or a second copy.
    pub fn arrived(&self, fingerprint: &Fingerprint) -> bool {
        let mut pages = self.pages();
        let Some(message) = pages.open.get_mut(fingerprint) else { return false };
        let first = !message.arrived;
        message.arrived = true;
        pages.totals.arrived += u64::from(first);
        pages.close(fingerprint);
        true
    }

    /// The sums.
    pub fn totals(&self) -> Totals {
        self.pages().totals
    }

    /// The names of what was acknowledged and has not arrived.
    pub fn missing(&self) -> Vec<String> {
        let pages = self.pages();
        let missing = pages.open.values().filter(|message| message.acknowledged && !message.arrived);
        missing.map(|message| message.name.clone()).collect()
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn close(&mut self, fingerprint: &Fingerprint) {
        if self.open.get(fingerprint).is_some_and(|message| message.acknowledged && message.arrived) {
            self.open.remove(fingerprint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_and_never_arrived_is_missing() {
        let ledger = Ledger::default();
        let [safe, lost, unanswered] = [&b"one"[..], b"two", b"three"].map(fingerprint);
        for (message, id) in [(safe, "1"), (lost, "2"), (unanswered, "3")] {
            ledger.sending(message, id);
        }
        ledger.arrived(&safe);
        ledger.acknowledged(&safe);
        ledger.acknowledged(&lost);
        assert_eq!(ledger.missing(), ["2"], "three was never promised, so it is not missing");
        assert_eq!(ledger.totals(), Totals { sent: 3, acknowledged: 2, arrived: 1 });
    }

    #[test]
    fn a_message_sent_again_is_one_message_and_a_strangers_is_none() {
        let ledger = Ledger::default();
        let message = fingerprint(b"one");
        ledger.sending(message, "1");
        assert!(ledger.arrived(&message));
        ledger.sending(message, "1");
        assert!(ledger.arrived(&message), "a second copy before the acknowledgement");
        ledger.acknowledged(&message);
        assert_eq!(ledger.totals(), Totals { sent: 1, acknowledged: 1, arrived: 1 });
        assert!(!ledger.arrived(&fingerprint(b"from a real device")));
    }
}
