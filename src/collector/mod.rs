//! The other end of the `mqtt` upstream: takes messages from a broker and makes files of them (`wardgate collect`).
//!
//! It is the reference for anyone who writes a consumer: a persistent session, so that the broker keeps what comes while it is
//! away; parts put together, digests verified, sealed messages opened, second copies dropped by their `id`; written, synced and
//! renamed ([`store`]); then the receipt to `<root>/<site>/<gateway>/receipt`, and only then the PUBACK. What can't be stored (a
//! full disk) is not acknowledged: the broker and the gateways keep it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mqtt_protocol_core::mqtt::packet::v5_0::{GenericPuback, GenericPublish};
use mqtt_protocol_core::mqtt::packet::{Packet, Qos};
use mqtt_protocol_core::mqtt::result_code::PubackReasonCode;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::status::Counter;
use crate::system::backoff::Backoff;
use crate::system::tls::ClientTls;
use crate::system::{credentials, stream};
use crate::upstream::mqtt_link::{Hello, Link, cant_say, goodbye_fault, ping};
use crate::upstream::opening::Opener;
use crate::values::{HostPort, SecretRef};
use crate::wire::mqtt::{Fault, Granted};
use crate::wire::mqtt_label::{Received, write_receipts};

pub mod parts;
pub mod store;

use store::{Incoming, Outcome, Store, StoreError, Verdict};

/// Largest packet that is taken; wardgate's own have parts of at most 256 KiB.
pub const PACKET_BYTES_MAX: u32 = 2 << 20;
/// Messages that the broker may send without our acknowledgement: one batch at most.
pub const RECEIVE_MAXIMUM: u16 = 1024;
/// How long the broker keeps our session while we are away.
const SESSION_EXPIRY_S: u32 = 30 * 24 * 3600;
/// After so long without a packet the broker is asked.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a connection may take to be made.
const DIAL_WAIT: Duration = Duration::from_secs(20);
/// Shortest and longest ceiling of the pause before the next attempt.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What to collect, from where, into what.
#[derive(Clone)]
pub struct Collection {
    /// The broker.
    pub broker: HostPort,
    /// How to trust it, and who we are to it; `None`: without TLS.
    pub tls: Option<ClientTls>,
    /// The session's name at the broker: the same after a restart, another for another collector.
    pub client_id: String,
    /// For brokers that ask for one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<SecretRef>,
    /// What to subscribe to, as a rule `wardgate/+/+/+/+`.
    pub topic: String,
    /// The folder for messages.
    pub into: PathBuf,
    /// Opens what was sealed to us. Without it sealed messages are kept as they are.
    pub opener: Option<Opener>,
}

/// What was done so far.
#[derive(Default, Debug)]
pub struct Progress {
    /// Messages that are new and on disk.
    pub stored: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Second copies that were dropped.
    pub repeats: Counter,
    /// Messages that were refused: digest or label wrong.
    pub refused: Counter,
    /// Connections that were made.
    pub connects: Counter,
    /// Why there is no connection, if there is none.
    pub trouble: Mutex<Option<String>>,
}

/// Collects until `stop`, reconnecting for ever.
///
/// # Errors
/// [`StoreError`] only when the folder can't be used at the start; later troubles are in `progress` and tried again.
pub async fn collect(collection: &Collection, progress: &Progress, stop: &CancellationToken) -> Result<(), StoreError> {
    let mut store = Some(Store::open(&collection.into, collection.opener.clone())?);
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1, PAUSE.1);
    loop {
        let began = Instant::now();
        let Err(cause) = attempt(collection, progress, &mut store, stop).await else { return Ok(()) };
        tracing::warn!(cause, "not collecting; it is tried again");
        progress.note_trouble(Some(cause));
        let pause = tokio::time::sleep(backoff.pause(began.elapsed()));
        if stop.run_until_cancelled(pause).await.is_none() {
            return Ok(());
        }
    }
}

impl Progress {
    fn note_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// One connection, until it or the store fails; Ok when it was to stop. A store that failed is opened anew the next time,
/// from what is on disk.
async fn attempt(
    collection: &Collection,
    progress: &Progress,
    store: &mut Option<Store>,
    stop: &CancellationToken,
) -> Result<(), String> {
    let ready = match store.take() {
        Some(ready) => ready,
        None => Store::open(&collection.into, collection.opener.clone()).map_err(|error| error.to_string())?,
    };
    let mut session =
        Session { store: Some(ready), progress, waiting: VecDeque::new(), unacknowledged: 0, receive_maximum: 1 };
    let ended = session.run(collection, stop).await;
    *store = session.store.take();
    ended
}

struct Session<'a> {
    /// Away while a batch is written.
    store: Option<Store>,
    progress: &'a Progress,
    /// Receipts that wait for the broker's receive maximum: topic and lines.
    waiting: VecDeque<(String, Vec<Received>)>,
    unacknowledged: u16,
    receive_maximum: u16,
}

impl Session<'_> {
    async fn run(&mut self, collection: &Collection, stop: &CancellationToken) -> Result<(), String> {
        let Some(opened) = stop.run_until_cancelled(open(collection)).await else { return Ok(()) };
        let (mut link, granted) = opened?;
        self.receive_maximum = granted.receive_maximum;
        let mut packets = Vec::new();
        link.subscribe(&collection.topic, &mut packets).await.map_err(words)?;
        self.progress.connects.one();
        self.progress.note_trouble(None);
        let keep_alive = granted.keep_alive_s.map_or(KEEP_ALIVE, |s| Duration::from_secs(u64::from(s.max(1))));
        let (mut heard, mut pinged) = (Instant::now(), Instant::now());
        loop {
            self.handle(&mut link, &mut packets).await?;
            if pinged.elapsed() >= keep_alive / 2 {
                pinged = Instant::now();
                link.machine.send(ping().map_err(words)?).map_err(words)?;
            }
            // Written before the wait that may be cut short: half a packet would be the end of the connection.
            link.flush().await.map_err(words)?;
            match stop.run_until_cancelled(timeout(keep_alive / 4, link.exchange(&mut packets))).await {
                None => break,
                Some(Ok(result)) => result.map_err(words)?,
                Some(Err(_)) if heard.elapsed() > keep_alive + keep_alive / 2 => {
                    return Err("the broker is silent".into());
                }
                Some(Err(_)) => continue,
            }
            heard = Instant::now();
        }
        link.close().await;
        Ok(())
    }

    /// Stores what came as one batch, then answers.
    async fn handle(&mut self, link: &mut Link, packets: &mut Vec<Packet>) -> Result<(), String> {
        let mut batch = Vec::new();
        for packet in packets.drain(..) {
            match packet {
                Packet::V5_0Publish(publish) => batch.push(Incoming::from(&publish)),
                Packet::V5_0Puback(_) => self.unacknowledged = self.unacknowledged.saturating_sub(1),
                Packet::V5_0Disconnect(goodbye) => return Err(goodbye_fault(&goodbye).0),
                _ => {}
            }
        }
        if !batch.is_empty() {
            let mut store = self.store.take().ok_or("the folder is not open")?;
            // Disk work blocks. If it fails, the store is dropped: what it had in hand is on disk or was never acknowledged.
            let taken = tokio::task::spawn_blocking(move || store.take(batch).map(|outcomes| (store, outcomes))).await;
            let taken = taken.map_err(|error| error.to_string())?;
            let (store, outcomes) = taken.map_err(|error| error.to_string())?;
            self.store = Some(store);
            self.answer(link, outcomes).map_err(words)?;
        }
        self.send_receipts(link).map_err(words)
    }

    fn answer(&mut self, link: &mut Link, outcomes: Vec<Outcome>) -> Result<(), Fault> {
        let mut receipts: BTreeMap<String, Vec<Received>> = BTreeMap::new();
        for outcome in &outcomes {
            match &outcome.verdict {
                Verdict::Stored { bytes } => {
                    self.progress.stored.one();
                    self.progress.bytes.add(*bytes);
                }
                Verdict::Repeat => self.progress.repeats.one(),
                Verdict::Part => {}
                Verdict::Refused { reason, .. } => {
                    self.progress.refused.one();
                    tracing::warn!(reason, "a message was refused");
                }
            }
            if let Some((topic, receipt)) = &outcome.receipt {
                receipts.entry(topic.clone()).or_default().push(receipt.clone());
            }
        }
        self.waiting.extend(receipts);
        self.send_receipts(link)?;
        for outcome in outcomes {
            let Some(packet_id) = outcome.packet_id else { continue };
            let code = match outcome.verdict {
                Verdict::Refused { code, .. } => code,
                _ => PubackReasonCode::Success,
            };
            let puback = GenericPuback::<u16>::builder().packet_id(packet_id).reason_code(code).build();
            link.machine.send(puback.map_err(cant_say)?)?;
        }
        Ok(())
    }

    fn send_receipts(&mut self, link: &mut Link) -> Result<(), Fault> {
        while self.unacknowledged < self.receive_maximum {
            let Some((topic, receipts)) = self.waiting.pop_front() else { break };
            let packet_id = link.machine.packet_id()?;
            let publish = GenericPublish::<u16>::builder().topic_name(topic).map_err(cant_say)?;
            let publish = publish.qos(Qos::AtLeastOnce).packet_id(packet_id).payload(write_receipts(&receipts)).build();
            link.machine.send(publish.map_err(cant_say)?)?;
            self.unacknowledged += 1;
        }
        Ok(())
    }
}

async fn open(collection: &Collection) -> Result<(Link, Granted), String> {
    let connector = collection.tls.as_ref().map(ClientTls::connector).transpose().map_err(|error| error.to_string())?;
    let password =
        collection.password.as_ref().map(credentials::read).transpose().map_err(|error| error.to_string())?;
    let stream =
        stream::dial(&collection.broker, connector.as_ref(), DIAL_WAIT).await.map_err(|error| error.to_string())?;
    let hello = Hello {
        client_id: collection.client_id.clone(),
        username: collection.username.clone(),
        password: password.map(|secret| secret.trim_ascii_end().to_vec().into()),
        keep_alive: KEEP_ALIVE,
        session_expiry_s: SESSION_EXPIRY_S,
        will: None,
        packet_bytes_max: PACKET_BYTES_MAX,
        receive_maximum: RECEIVE_MAXIMUM,
    };
    Link::open(Box::new(stream), hello).await.map_err(words)
}

fn words(fault: Fault) -> String {
    fault.0
}
