//! Messages on their way over one MQTT connection, and what decides about each: PUBACKs, receipts, time.
//!
//! Pure bookkeeping under the session's lock: it answers whoever waits for a message exactly once, and never waits itself.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use mqtt_protocol_core::mqtt::packet::v5_0::Puback;
use mqtt_protocol_core::mqtt::result_code::PubackReasonCode;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Receipt, SendError};
use crate::envelope::MessageId;
use crate::wire::mqtt::{puback_words, reason_string};

/// Who waits for a message's end.
pub type Reply = oneshot::Sender<Result<Receipt, SendError>>;

/// What is on its way.
pub struct Flights {
    /// Publishes without PUBACK: packet id and message.
    publishes: HashMap<u16, u64>,
    /// In the order in which they were begun.
    messages: BTreeMap<u64, Message>,
    by_id: HashMap<MessageId, u64>,
    next: u64,
    /// The last PUBACK, or the first publish after there was none on its way.
    progress: Instant,
    /// How long a collector's receipt may take after the PUBACK; `None`: the PUBACK is the receipt.
    receipt_wait: Option<Duration>,
}

struct Message {
    id: MessageId,
    sha256: Option<[u8; 32]>,
    /// Publishes that are still to be made or to be acknowledged.
    left: u64,
    receipted: bool,
    acknowledged: Option<Instant>,
    reply: Reply,
}

impl Flights {
    /// Nothing on its way.
    pub fn new(receipt_wait: Option<Duration>) -> Self {
        Self {
            publishes: HashMap::new(),
            messages: BTreeMap::new(),
            by_id: HashMap::new(),
            next: 0,
            progress: Instant::now(),
            receipt_wait,
        }
    }

    /// A message that goes out in so many publishes; the number is its key from now on.
    pub fn begin(&mut self, id: MessageId, publishes: u64, reply: Reply) -> u64 {
        let key = self.next;
        self.next += 1;
        self.messages
            .insert(key, Message { id, sha256: None, left: publishes, receipted: false, acknowledged: None, reply });
        self.by_id.insert(id, key);
        key
    }

    /// Whether nobody has decided about the message yet. Notes its digest, which comes with its last publish.
    pub fn is_open(&mut self, key: u64, digest: Option<[u8; 32]>) -> bool {
        let message = self.messages.get_mut(&key);
        message.map(|message| message.sha256 = message.sha256.or(digest)).is_some()
    }

    /// One of its publishes is in the outlet.
    pub fn published(&mut self, packet_id: u16, key: u64) {
        if self.publishes.is_empty() {
            self.progress = Instant::now();
        }
        self.publishes.insert(packet_id, key);
    }

    /// The broker's word about a publish. Tells whether it was one of ours.
    pub fn note_puback(&mut self, puback: &Puback) -> bool {
        let Some(key) = self.publishes.remove(&puback.packet_id()) else { return false };
        self.progress = Instant::now();
        match refusal(puback) {
            None => self.acknowledged(key),
            Some(error) => self.answer(key, Err(error)),
        }
        true
    }

    /// A collector's receipt. It counts only for the bytes that were sent this time: the digest must be the same.
    pub fn note_receipt(&mut self, id: MessageId, sha256: &[u8]) {
        let Some(key) = self.by_id.get(&id).copied() else { return };
        let Some(message) = self.messages.get_mut(&key) else { return };
        if message.sha256.as_ref().map(|digest| digest.as_slice()) != Some(sha256) {
            return;
        }
        message.receipted = true;
        if message.left == 0 {
            self.answer(key, Ok(Receipt { code: "collector".into() }));
        }
    }

    /// Nobody waits for it any more.
    pub fn forget(&mut self, key: u64) -> Option<Reply> {
        let message = self.messages.remove(&key)?;
        if self.by_id.get(&message.id) == Some(&key) {
            self.by_id.remove(&message.id);
        }
        Some(message.reply)
    }

    /// How long publishes have been waiting without any PUBACK.
    pub fn stalled(&self) -> Duration {
        if self.publishes.is_empty() { Duration::ZERO } else { self.progress.elapsed() }
    }

    /// Answers those whose receipt has not come in time.
    pub fn expire(&mut self) {
        let Some(wait) = self.receipt_wait else { return };
        let late = |message: &Message| message.acknowledged.is_some_and(|at| at.elapsed() > wait);
        let keys: Vec<u64> = self.messages.iter().filter(|(_, message)| late(message)).map(|(key, _)| *key).collect();
        for key in keys {
            let cause = format!(
                "the broker has the message, but the collector's receipt has not come in {} s: does `wardgate collect` run and subscribe to our topics?",
                wait.as_secs()
            );
            self.answer(key, Err(SendError::Busy { cause, after: None }));
        }
    }

    /// Answers all that is left.
    pub fn end(&mut self, error: &SendError) {
        self.by_id.clear();
        for message in std::mem::take(&mut self.messages).into_values() {
            // Whoever asked may have gone.
            drop(message.reply.send(Err(error.clone())));
        }
    }

    fn acknowledged(&mut self, key: u64) {
        let Some(message) = self.messages.get_mut(&key) else { return };
        message.left = message.left.saturating_sub(1);
        if message.left > 0 {
            return;
        }
        match (self.receipt_wait.is_some(), message.receipted) {
            (false, _) => self.answer(key, Ok(Receipt { code: "puback".into() })),
            (true, true) => self.answer(key, Ok(Receipt { code: "collector".into() })),
            (true, false) => message.acknowledged = Some(Instant::now()),
        }
    }

    fn answer(&mut self, key: u64, answer: Result<Receipt, SendError>) {
        if let Some(reply) = self.forget(key) {
            // Whoever asked may have gone.
            drop(reply.send(answer));
        }
    }
}

/// What a PUBACK says against the message; `None`: the broker took it.
fn refusal(puback: &Puback) -> Option<SendError> {
    let code = puback.reason_code().unwrap_or(PubackReasonCode::Success);
    let properties = puback.props().as_ref().map_or(&[][..], |properties| properties.as_slice());
    let words = format!("the broker answered: {}{}", puback_words(code), reason_string(properties));
    Some(match code {
        PubackReasonCode::Success => return None,
        PubackReasonCode::NoMatchingSubscribers => {
            let cause = "nobody is subscribed to our topic, so the broker keeps nothing: start the consumer (or `wardgate collect`), it \
                         goes on by itself as soon as somebody subscribes";
            SendError::Busy { cause: cause.into(), after: None }
        }
        PubackReasonCode::QuotaExceeded => SendError::Busy { cause: words, after: None },
        PubackReasonCode::NotAuthorized
        | PubackReasonCode::TopicNameInvalid
        | PubackReasonCode::PayloadFormatInvalid => SendError::Rejected { reason: words },
        _ => SendError::Refused { reason: words },
    })
}
