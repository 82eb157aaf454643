//! The DICOM upstream: each instance goes to an archive by C-STORE, its status is the receipt (DICOM PS3.4 annex B).
//!
//! Instances need no order between them, so as many are on their way as there are associations; the lane's cursor still moves in
//! order, and a second copy is harmless because the SOP instance UID is the same. Two messages with the same UID do have an order
//! (the archive keeps the first, or replaces it by the second), so they never are on their way together. The data set's bytes are
//! those that the device sent: nothing is converted unless `convert` allows it, and a refused transfer syntax is a dead letter that
//! says so.
//!
//! * 0000, warnings (Bxxx) and 0111 (it has the instance already): receipts; 0111 for an instance that came with other bytes before:
//!   rejected, since it has the other one. * A7xx and 0213: busy. * Statuses that blame the
//!   instance (A9xx, C000, C122, 0117 to 0119, 0122): rejected. * Other statuses, and an abort while an instance is on its way: refused.
//! * A context that the archive does not accept: rejected, with the names of class and syntax, when it says that it does not support
//!   them; with any other result, or none, refused: it may be in maintenance.
//! * A rejected association, a connection that ends, silence: the connection's fault; tried for ever, since the archive's settings may be mended.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::flights::{Flight, Flights, Turn, Waiting};
use super::link;
use super::presence::{self, Presence};
use super::{Delivery, Identity, Receipt, SendError, Upstream, WhenRefused};
use crate::envelope::{Body, Envelope, Flags};
use crate::system::tls::ClientTls;
use crate::values::{ByteSize, HostPort, Problems, SecretRef, Section, Span};
use crate::wire::dicom::commitment::Reference;
use crate::wire::dicom::pdu;
use crate::wire::dicom::pdu_associate::ContextResult;
use crate::wire::dicom::values::AeTitle;
use archive::{Archive, AssociationError};
use association::Pair;
use commitment::{Commitment, Reports};
use pool::{Member, NoContext, Nothing, Pool, Rules, Slot, Unasked, look};
use reports::{ReportsConfig, ReportsListener};
use store::{Instance, StoreError, store, verdict};

pub mod archive;
pub mod association;
#[cfg(test)]
mod association_tests;
pub mod commitment;
mod pieces;
pub mod pool;
pub mod reports;
pub mod store;

/// Most associations side by side.
pub const ASSOCIATIONS_MAX: usize = 16;
/// Least `max-pdu`: what the oldest archives speak.
pub const MAX_PDU_MIN: u64 = 4 << 10;
/// `[upstream.<name>.dicom]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DicomConfig {
    /// Where the archive listens.
    pub address: HostPort,
    /// The archive's AE title.
    pub called: Title,
    /// Ours; default `WARDGATE`.
    #[serde(default)]
    pub calling: Title,
    /// Whom to trust, and who we are.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// Says aloud that the connection is not encrypted.
    #[serde(default)]
    pub plain: bool,
    /// How many instances are sent side by side, each over its own association: 1 to [`ASSOCIATIONS_MAX`]; default 2.
    #[serde(default = "associations")]
    pub associations: usize,
    /// The longest P-DATA that we take, announced to the archive: 4 KiB to 128 KiB; default 64 KiB. What we send is bounded by what the
    /// archive announces.
    #[serde(default = "max_pdu")]
    pub max_pdu: ByteSize,
    /// For name, TCP and TLS, and once more for the association; default 10 s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// For the archive to take the next piece of an instance; default 30 s.
    #[serde(default = "write_timeout")]
    pub write_timeout: Span,
    /// From the last byte of an instance to its status; default 60 s.
    #[serde(default = "response_timeout")]
    pub response_timeout: Span,
    /// An association on which nothing is sent is released after this: many archives take that for "the study is complete"; default
    /// 10 s.
    #[serde(default = "release_after")]
    pub release_after: Span,
    /// How often is looked, while nothing is sent, whether the archive is there and takes us: by an association that is released at once.
    /// Default 60 s.
    #[serde(default = "presence::check_every")]
    pub check_every: Span,
    /// Whether an instance counts as delivered only when the archive's storage commitment says that it keeps it; default false.
    #[serde(default)]
    pub commitment: bool,
    /// Where the archive may bring its reports, when it does so on an association of its own, as most do.
    #[serde(default)]
    pub commitment_listen: Option<ReportsConfig>,
    /// From the request to the report; then the instance is stored and asked for again. Default 1 h.
    #[serde(default = "commitment_timeout")]
    pub commitment_timeout: Span,
    /// Whether an instance in an encoding that the archive refuses is sent in another.
    #[serde(default)]
    pub convert: Convert,
    /// What becomes of an instance that the archive refuses for good.
    #[serde(default)]
    pub when_refused: WhenRefused,
}

/// `convert`: what is done with an instance whose encoding the archive refuses.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convert {
    /// Nothing: it becomes a dead letter that says so, and no byte is ever changed.
    #[default]
    Never,
    /// One in Explicit VR Little Endian goes in Implicit VR Little Endian, and the other way round. Its bytes change, its values do
    /// not: see [`crate::wire::dicom::convert`]. Compressed ones stay as they are.
    Uncompressed,
}

/// An AE title in a configuration: archives may look at upper and lower case, so another case is another configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Title(pub AeTitle);

impl Default for Title {
    fn default() -> Self {
        Self(AeTitle::read(b"WARDGATE"))
    }
}

impl PartialEq for Title {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

fn associations() -> usize {
    2
}

fn max_pdu() -> ByteSize {
    ByteSize(64 << 10)
}

fn connect_timeout() -> Span {
    Span(Duration::from_secs(10))
}

fn release_after() -> Span {
    Span(Duration::from_secs(10))
}

fn commitment_timeout() -> Span {
    Span(Duration::from_secs(3600))
}

fn write_timeout() -> Span {
    Span(Duration::from_secs(30))
}

fn response_timeout() -> Span {
    Span(Duration::from_secs(60))
}

impl Section for DicomConfig {
    fn check(&self, problems: &mut Problems) {
        link::check(problems, self.tls.as_ref(), self.plain);
        if !(1..=ASSOCIATIONS_MAX).contains(&self.associations) {
            problems.error("associations", format!("there can be 1 to {ASSOCIATIONS_MAX}"));
        }
        if !(MAX_PDU_MIN..=u64::from(pdu::DATA_BYTES_MAX)).contains(&self.max_pdu.0) {
            problems.error("max-pdu", "it can be \"4KiB\" to \"128KiB\"");
        }
        presence::check(problems, self.check_every);
        if let Some(listen) = &self.commitment_listen {
            problems.under("commitment-listen", |problems| listen.check(problems));
            if !self.commitment {
                problems.error("commitment-listen", "nobody reports there without commitment = true");
            }
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        link::files(self.tls.as_mut(), visit);
        if let Some(listen) = &mut self.commitment_listen {
            listen.files(visit);
        }
    }
}

impl DicomConfig {
    /// Whom to call, and how.
    pub fn archive(&self) -> Archive {
        Archive {
            address: self.address.clone(),
            tls: self.tls.clone(),
            called: self.called.0.clone(),
            calling: self.calling.0.clone(),
            max_pdu: u32::try_from(self.max_pdu.0).unwrap_or(pdu::DATA_BYTES_MAX),
            connect_timeout: self.connect_timeout.0,
            write_timeout: self.write_timeout.0,
            response_timeout: self.response_timeout.0,
        }
    }
}

/// An archive, with the associations to it.
pub struct Dicom {
    associations: usize,
    pool: Arc<Pool>,
    commitment: Option<Commitment>,
    /// SOP instance UIDs that are on their way.
    flights: Flights,
    presence: Presence,
    /// What runs beside: who asks for commitment, and the listener for reports.
    beside: JoinSet<()>,
}

impl Upstream for Dicom {
    type Config = DicomConfig;
    const PROTOCOL: &'static str = "dicom";

    fn when_refused(config: &DicomConfig) -> WhenRefused {
        config.when_refused
    }

    /// Asks for an association and releases it: whether the archive knows us is then known before the first instance comes.
    async fn connect(config: &DicomConfig, _about: &Identity) -> Result<Self, SendError> {
        let archive = config.archive();
        look(&archive).await?;
        let (associations, quiet) = (config.associations, config.release_after.0);
        if !config.commitment {
            let rules = Rules { associations, quiet, standing: Vec::new(), convert: config.convert };
            let pool = Arc::new(Pool::new(archive, rules, Arc::new(Nothing)));
            return Ok(Self::looking(config, pool, None, JoinSet::new()));
        }
        let reports = Arc::new(Reports::new(config.commitment_listen.is_some()));
        let rules = Rules { associations, quiet, standing: vec![commitment::context()], convert: config.convert };
        let mut beside = JoinSet::new();
        if let Some(listen) = &config.commitment_listen {
            let listener = ReportsListener::open(listen).await?;
            beside.spawn(listener.run(archive.clone(), Arc::clone(&reports)));
        }
        let pool = Arc::new(Pool::new(archive, rules, Arc::clone(&reports) as Arc<dyn Unasked>));
        let listening = config.commitment_listen.is_some();
        let (commitment, wanted) = Commitment::new(config.commitment_timeout.0, listening);
        beside.spawn(commitment::ask(Arc::clone(&pool), reports, wanted));
        Ok(Self::looking(config, pool, Some(commitment), beside))
    }

    /// Waits for an association to be free; the instance is then sent in a task of its own. One whose UID is on its way already waits
    /// for that in its task, and holds nothing meanwhile: others pass it.
    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        let instance = Instance::open(&envelope.body).await?;
        let start = match self.flights.queue(instance.uid.as_str().as_bytes()) {
            Turn::Now(flight) => Start::Now { flight, instance, slot: self.pool.slot().await },
            Turn::Later(waiting) => Start::Later(waiting),
        };
        let (pool, commitment) = (Arc::clone(&self.pool), self.commitment.clone());
        let job = Job { pool, commitment, body: envelope.body.clone(), flags: envelope.meta.flags };
        let (mut done, receiver) = oneshot::channel();
        self.pool.tasks().spawn(async move {
            let outcome = tokio::select! {
                biased;
                // Nobody waits for it any more: it comes again, and two copies at once might confuse the archive.
                () = done.closed() => return,
                outcome = job.begin(start) => outcome,
            };
            // Unless it was given up in this very moment.
            done.send(outcome).ok();
        });
        Ok(Delivery::waiting(receiver))
    }

    fn window(&self) -> usize {
        if self.commitment.is_some() { commitment::WAITING_MAX } else { self.associations }
    }

    async fn closed(&self) -> String {
        self.presence.lost().await
    }

    async fn close(mut self) {
        // Waited for: a successor may listen where this one did.
        self.beside.shutdown().await;
        self.pool.close().await;
    }
}

impl Dicom {
    /// With somebody beside who looks whether the archive is there while nothing is sent.
    fn looking(config: &DicomConfig, pool: Arc<Pool>, commitment: Option<Commitment>, beside: JoinSet<()>) -> Self {
        let looked_at = Arc::clone(&pool);
        let presence = Presence::watch(config.check_every, move || {
            let pool = Arc::clone(&looked_at);
            async move { Ok(pool.look().await?) }
        });
        Self { associations: config.associations, pool, commitment, flights: Flights::default(), presence, beside }
    }
}

/// An instance on its way.
struct Job {
    pool: Arc<Pool>,
    commitment: Option<Commitment>,
    body: Body,
    flags: Flags,
}

/// When an instance is sent.
enum Start {
    Now { flight: Flight, instance: Instance, slot: Slot },
    Later(Waiting),
}

impl Job {
    /// Is on its way until its receipt.
    async fn begin(self, start: Start) -> Result<Receipt, SendError> {
        let (_flight, instance, slot) = match start {
            Start::Now { flight, instance, slot } => (flight, instance, slot),
            Start::Later(waiting) => {
                let flight = waiting.turn().await;
                let slot = self.pool.slot().await;
                (flight, Instance::open(&self.body).await?, slot)
            }
        };
        self.run(instance, slot).await
    }

    async fn run(self, instance: Instance, slot: Slot) -> Result<Receipt, SendError> {
        let (sop_class, sop_instance) = (instance.pair.abstract_syntax.clone(), instance.uid.clone());
        let receipt = self.store(instance, slot).await?;
        match &self.commitment {
            None => Ok(receipt),
            Some(commitment) => commitment.of(Reference { sop_class, sop_instance }).await,
        }
    }

    async fn store(&self, instance: Instance, mut slot: Slot) -> Result<Receipt, SendError> {
        let pair = instance.pair.clone();
        let (mut instance, mut excused) = (Some(instance), false);
        loop {
            let opened = match instance.take() {
                Some(opened) => opened,
                None => Instance::open(&self.body).await?,
            };
            let (mut member, opened) = self.context(opened, &pair, &mut slot).await?;
            match store(&mut member.association, member.context, opened, self.pool.unasked()).await {
                Ok(status) => {
                    self.pool.park(member);
                    return verdict(status, self.flags).map(|code| Receipt { code });
                }
                // The archive may have ended it in the moment in which we took it: no fault, and a new one tells.
                Err(StoreError::Association(error)) if member.reused && !excused && has_ended(&error) => excused = true,
                Err(StoreError::Association(AssociationError::Aborted(abort))) => {
                    return Err(SendError::Refused {
                        reason: format!("the archive ended the association at this instance: {abort}"),
                    });
                }
                Err(StoreError::Association(error)) => return Err(error.into()),
                Err(error) => return Err(SendError::Rejected { reason: error.to_string() }),
            }
        }
    }

    /// An association that takes the instance: as it is, else converted where that is allowed.
    async fn context(&self, instance: Instance, pair: &Pair, slot: &mut Slot) -> Result<(Member, Instance), SendError> {
        let refusal = match self.pool.take(pair, slot).await {
            Ok(member) => return Ok((member, instance)),
            Err(NoContext::Association(error)) => return Err(error.into()),
            Err(NoContext::Refused(refusal)) => refusal,
        };
        let calling = self.pool.calling();
        let Some(other) = self.pool.alternative(pair) else { return Err(refused(refusal, pair, calling, "")) };
        match self.pool.take(&other, slot).await {
            Err(NoContext::Association(error)) => Err(error.into()),
            // It is refused for good only when both are.
            Err(NoContext::Refused(also)) if refusal.is_unsupported() && !also.is_unsupported() => {
                Err(refused(also, &other, calling, ""))
            }
            Err(NoContext::Refused(_)) => Err(refused(refusal, pair, calling, "")),
            Ok(member) => match instance.converted(&self.body).await {
                Ok(instance) => Ok((member, instance)),
                Err(error) => {
                    self.pool.park(member);
                    Err(refused(refusal, pair, calling, &format!("; and it can't be converted: {error}")))
                }
            },
        }
    }
}

fn has_ended(error: &AssociationError) -> bool {
    matches!(error, AssociationError::Closed(_) | AssociationError::Aborted(_) | AssociationError::Released)
}

/// Why there is no context for an instance, so that a person knows what to change where, and `more`. Only what an archive does not support
/// is refused for good: one in maintenance refuses all contexts, for its own reasons.
fn refused(result: ContextResult, pair: &Pair, calling: &AeTitle, more: &str) -> SendError {
    let named = |uid: &crate::wire::dicom::values::Uid| match uid.name() {
        name if name == uid.to_string() => name.into_owned(),
        name => format!("{name} ({uid})"),
    };
    let (class, syntax) = (named(&pair.abstract_syntax), named(&pair.transfer_syntax));
    let reason = match result {
        ContextResult::AbstractSyntax => {
            format!("the archive does not take {class}: its owner can allow this SOP class")
        }
        ContextResult::TransferSyntaxes => format!(
            "the archive does not take {class} in the encoding that the device sent, {syntax}: let the device send another, \
             or the archive's owner allow it"
        ),
        other => format!(
            "the archive does not take {class} in {syntax} now: {other}; ask its owner whether it stores for \"{calling}\" now; its log \
             may say why"
        ),
    };
    let reason = reason + more;
    if result.is_unsupported() { SendError::Rejected { reason } } else { SendError::Refused { reason } }
}
