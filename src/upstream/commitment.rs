//! The answers of storage commitment (DICOM PS3.4 annex J): tells each device what became of the instances that it asked about.
//!
//! A request lies in the imaging log like any other message, for the upstream [`STORAGE_COMMITMENT`] that the gateway makes by
//! itself; it counts as delivered when the device took the report. So a request that was answered for survives a restart, is shown
//! with its lane, and becomes a dead letter when the device never takes the report. It must never report an instance as safe of
//! which that is not known for sure: the device may then delete the only other copy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::dicom::archive::{Archive, AssociationError};
use super::dicom::association::{Association, Pair};
use super::{Delivery, Identity, Receipt, SendError, Upstream, WhenRefused};
use crate::callers::Callers;
use crate::envelope::Envelope;
use crate::spool::{Fate, Spool, Standing, Trace};
use crate::system::backoff::Backoff;
use crate::system::tls::ClientTls;
use crate::values::{HostPort, Name, Problems, STORAGE_COMMITMENT, SecretRef, Section};
use crate::wire::dicom::commitment::{DATA_SET_BYTES_MAX, Report, Request};
use crate::wire::dicom::dimse::{Command, Status};
use crate::wire::dicom::element::Encoding;
use crate::wire::dicom::file::{FileMeta, HEAD_BYTES_MAX};
use crate::wire::dicom::values::{self, AeTitle};

/// Requests of one source that are worked on at once; one whose instances are not delivered yet must not hold up the others.
const REQUESTS_MAX: usize = 32;
/// How often is looked whether the instances were delivered meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Pause when nothing can be said because the index can't be read.
const INDEX_PAUSE: Duration = Duration::from_secs(30);
/// Pauses between attempts to reach a device.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How long a device is called before its report becomes a dead letter.
const CALLED_FOR_MAX: Duration = Duration::from_secs(86_400);
/// Reports that a device may answer with a failure before the same.
const REFUSALS_MAX: u32 = 3;
/// How long a stop waits for reports: those that wait for an upstream or a device are simply begun again.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// Longest P-DATA that is taken from a device here: its answers are short.
const PDU_BYTES_MAX: u32 = 16 << 10;
/// For name, TCP and TLS; for each write; for the answer to a report.
const DEVICE_PATIENCE: Duration = Duration::from_secs(30);

/// What the gateway gathers from all sources that answer for commitments.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Config {
    /// By source.
    pub sources: BTreeMap<Name, Reporting>,
    /// The devices that are still on the line.
    pub callers: Callers,
}

/// How the devices of one source are answered.
#[derive(Clone, PartialEq, Debug)]
pub struct Reporting {
    /// An instance counts as safe when every upstream has it; else when this box has it.
    pub when_delivered: bool,
    /// Where each calling AE title takes reports.
    pub report_to: Vec<(AeTitle, HostPort)>,
    /// How devices are called; `None` is plain TCP.
    pub tls: Option<ClientTls>,
}

impl Section for Config {
    fn check(&self, _: &mut Problems) {}

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        for tls in self.sources.values_mut().filter_map(|reporting| reporting.tls.as_mut()) {
            tls.files(visit);
        }
    }
}

/// The configuration with the spool that knows what became of the instances.
#[derive(Clone)]
pub struct Served {
    /// What was configured.
    pub config: Config,
    /// The spool.
    pub spool: Spool,
}

/// There is one spool in a process.
impl PartialEq for Served {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

impl Section for Served {
    fn check(&self, _: &mut Problems) {}

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        self.config.files(visit);
    }
}

/// Answers requests. Has no connection of its own: each report goes over an association to its device.
pub struct Commitment {
    served: Served,
    /// Uptime when it began.
    began_ms: u64,
    /// One report at a time to one device.
    lines: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Ended with this: what they were at is done again by whoever comes next.
    work: Mutex<JoinSet<()>>,
}

impl Upstream for Commitment {
    type Config = Served;

    const PROTOCOL: &'static str = STORAGE_COMMITMENT;
    const DRAIN_MAX: Duration = DRAIN_MAX;

    fn when_refused(_: &Served) -> WhenRefused {
        WhenRefused::DeadLetter
    }

    async fn connect(served: &Served, _: &Identity) -> Result<Self, SendError> {
        let began_ms = served.spool.now().uptime_ms;
        Ok(Self { served: served.clone(), began_ms, lines: Mutex::default(), work: Mutex::default() })
    }

    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        let question = self.question(envelope).await.map_err(|reason| SendError::Rejected { reason })?;
        let (tell, told) = oneshot::channel();
        let line = Arc::clone(self.lines.lock().await.entry(question.device.address.to_string()).or_default());
        let mut work = self.work.lock().await;
        while work.try_join_next().is_some() {}
        work.spawn(async move {
            let outcome = question.answer(&line).await;
            // Nobody waits any more when the forwarder has stopped.
            drop(tell.send(outcome));
        });
        Ok(Delivery::waiting(told))
    }

    fn window(&self) -> usize {
        REQUESTS_MAX
    }
}

impl Commitment {
    /// Reads what was asked and finds out who must be told.
    async fn question(&self, envelope: &Envelope) -> Result<Question, String> {
        let source = envelope.meta.source.clone();
        let gone = || format!("[source.{source}.dicom] has no report-to in the configuration any more");
        let reporting = self.served.config.sources.get(&source).ok_or_else(gone)?;
        if envelope.body.len() > (DATA_SET_BYTES_MAX + HEAD_BYTES_MAX) as u64 {
            return Err("this is longer than a request for storage commitment can be".into());
        }
        let body = envelope.body.collect().await.map_err(|error| error.to_string())?;
        let (meta, at) = FileMeta::read(&body).map_err(|error| error.to_string())?;
        let data_set = body.get(at..).unwrap_or_default();
        let encoding = Encoding::of(&meta.transfer_syntax).ok_or("its transfer syntax can't be read")?;
        let request = Request::read(encoding, data_set).map_err(|error| error.to_string())?;
        let address = reporting.report_to.iter().find(|(title, _)| *title == meta.source_ae);
        let (_, address) = address.ok_or_else(|| {
            format!(
                "where \"{0}\" takes reports is not known: add {0} = \"host:port\" to report-to in [source.{source}.dicom]",
                meta.source_ae
            )
        })?;
        let device = Archive {
            address: address.clone(),
            tls: reporting.tls.clone(),
            called: meta.source_ae,
            calling: meta.receiving_ae,
            max_pdu: PDU_BYTES_MAX,
            connect_timeout: DEVICE_PATIENCE,
            write_timeout: DEVICE_PATIENCE,
            response_timeout: DEVICE_PATIENCE,
        };
        Ok(Question {
            spool: self.served.spool.clone(),
            callers: self.served.config.callers.clone(),
            source,
            request,
            device,
            when_delivered: reporting.when_delivered,
            again: envelope.meta.received.uptime_ms <= self.began_ms,
        })
    }
}

/// One request, and whom to answer.
struct Question {
    spool: Spool,
    callers: Callers,
    source: Name,
    request: Request,
    device: Archive,
    when_delivered: bool,
    /// The same may have been reported already: it was asked before this start, and only the first of the requests that wait moves
    /// the cursor; or the device gave no answer to a report on the line.
    again: bool,
}

/// Why a device has not taken its report.
enum Trouble {
    /// It can't be reached or broke off.
    Away(String),
    /// It does not take reports.
    Refused(String),
    /// It answered with a failure.
    Denied(Status),
}

impl Question {
    async fn answer(mut self, line: &Mutex<()>) -> Result<Receipt, SendError> {
        let report = self.report().await;
        let (began, mut refusals, mut denied) = (Instant::now(), 0, None);
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1, Duration::MAX);
        loop {
            let turn = line.lock().await;
            let sent = match self.call(&report).await {
                Some(told) => told,
                None => self.send(&report).await,
            };
            drop(turn);
            let (source, device) = (&self.source, &self.device.called);
            let reason = match sent {
                Ok(()) => {
                    let (safe, failed) = (report.committed.len(), report.failed.len());
                    tracing::info!(%source, %device, safe, failed, "storage commitment reported");
                    return Ok(Receipt { code: "N-EVENT-REPORT-RSP".into() });
                }
                Err(Trouble::Away(reason)) => reason,
                Err(Trouble::Refused(reason)) => {
                    refusals += 1;
                    reason
                }
                Err(Trouble::Denied(status)) => {
                    refusals += 1;
                    denied = Some(status);
                    status.words().to_owned()
                }
            };
            if self.again && refusals >= REFUSALS_MAX && denied.is_some_and(is_done_with_it) {
                tracing::info!(%source, %device, reason, "storage commitment was reported before, as it seems");
                return Ok(Receipt { code: "N-EVENT-REPORT-RSP".into() });
            }
            if refusals >= REFUSALS_MAX || began.elapsed() >= CALLED_FOR_MAX {
                let reason = format!("{device} did not take the report of its storage commitment: {reason}");
                return Err(SendError::Rejected { reason });
            }
            tracing::warn!(%source, %device, reason, "a storage commitment can't be reported yet");
            sleep(backoff.pause(Duration::ZERO)).await;
        }
    }

    /// Waits until it is known of each instance what became of it.
    async fn report(&self) -> Report {
        let mut warned = false;
        loop {
            // Before the trace: see `Standing::fate`.
            let standing = self.spool.standing(&self.source);
            let traces = match self.trace().await {
                Ok(traces) => traces,
                Err(error) => {
                    if !std::mem::replace(&mut warned, true) {
                        tracing::warn!(source = %self.source, error, "a report of storage commitment waits");
                    }
                    sleep(INDEX_PAUSE).await;
                    continue;
                }
            };
            if !self.is_underway(&standing, &traces) {
                return self.judge(&standing, &traces);
            }
            // What memory tells later is only reason enough to look again.
            while self.is_underway(&self.spool.standing(&self.source), &traces) {
                sleep(LOOK_INTERVAL).await;
            }
        }
    }

    async fn trace(&self) -> Result<Vec<Option<Trace>>, String> {
        let (spool, source, request) = (self.spool.clone(), self.source.clone(), self.request.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let ids: Vec<&[u8]> =
                request.references.iter().map(|reference| reference.sop_instance.as_str().as_bytes()).collect();
            spool.trace(&source, &ids)
        });
        looked.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn is_underway(&self, standing: &Standing, traces: &[Option<Trace>]) -> bool {
        self.when_delivered && traces.iter().any(|trace| standing.fate(trace.as_ref()) == Fate::Underway)
    }

    fn judge(&self, standing: &Standing, traces: &[Option<Trace>]) -> Report {
        let mut report = Report { transaction: self.request.transaction.clone(), committed: vec![], failed: vec![] };
        for (reference, trace) in self.request.references.iter().zip(traces) {
            let reference = reference.clone();
            match standing.fate(trace.as_ref()) {
                Fate::Delivered => report.committed.push(reference),
                Fate::Underway if !self.when_delivered => report.committed.push(reference),
                Fate::Unknown => report.failed.push((reference, Status::NO_SUCH_INSTANCE)),
                Fate::Failed | Fate::Underway => report.failed.push((reference, Status::PROCESSING_FAILURE)),
            }
        }
        report
    }

    /// Reports on the association on which the device asked, if it waits there for that; `None`: it does not, or did not answer.
    async fn call(&mut self, report: &Report) -> Option<Result<(), Trouble>> {
        let answered = self.callers.call(&self.source, report)?;
        if let Ok(Ok(status)) = timeout(DEVICE_PATIENCE, answered).await {
            return Some(took(status));
        }
        self.again = true;
        None
    }

    /// Calls the device and reports, once (PS3.4 J.3.3: we are the provider and ask for the association).
    async fn send(&self, report: &Report) -> Result<(), Trouble> {
        let away = |error: AssociationError| Trouble::Away(error.to_string());
        let pair = |transfer_syntax| Pair { abstract_syntax: values::STORAGE_COMMITMENT, transfer_syntax };
        // Some devices read reports in implicit VR only, all read it.
        let pairs = [pair(values::IMPLICIT_LITTLE_ENDIAN), pair(values::EXPLICIT_LITTLE_ENDIAN)];
        let mut association = Association::open_as_provider(&self.device, &pairs).await.map_err(away)?;
        let open = pairs.iter().find_map(|pair| Some((pair, association.context(pair)?.ok()?)));
        let Some((pair, context)) = open else {
            association.release().await;
            return Err(Trouble::Refused(
                "it does not accept storage commitment on the association of the report".into(),
            ));
        };
        let encoding = Encoding::of(&pair.transfer_syntax).unwrap_or(Encoding::Implicit);
        let command = Command::commitment_report(association.next_message_id(), !report.failed.is_empty());
        let data_set = report.bytes(encoding);
        association.send(context, &command.bytes(), Some(&data_set)).await.map_err(away)?;
        let answer = association.receive().await.map_err(away)?;
        association.release().await;
        let status = answer.command.status.unwrap_or(Status::PROCESSING_FAILURE);
        took(status)
    }
}

fn took(status: Status) -> Result<(), Trouble> {
    if status == Status::SUCCESS { Ok(()) } else { Err(Trouble::Denied(status)) }
}

/// Whether a device may answer so because it has closed the transaction: it took the same report before.
fn is_done_with_it(status: Status) -> bool {
    let known = [
        Status::PROCESSING_FAILURE,
        Status::DUPLICATE_INSTANCE,
        Status::NO_SUCH_INSTANCE,
        Status::NO_SUCH_EVENT,
        Status::INVALID_ARGUMENT,
    ];
    known.contains(&status)
}
