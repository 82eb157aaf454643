//! The loop of one DICOM connection: associate, then read, store, answer, in this order and never another.
//!
//! Commands and data may be mixed in one PDU and cut anywhere (PS3.8 annex E.2). Nothing of a body is ever logged, nor an
//! instance's or a study's identifier: AE titles, addresses, codes and counts only.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::DicomConfig;
use super::association::{Association, Context, Policy, Seat, Seats, wants_storage};
use super::commitment::{Asked, REQUESTS_MAX, ReportOn, Reporting};
use super::link::{Closing, Frame, Link, NoRoom, Patience};
use super::reports::Reports;
use super::store::{Refusal, Store};
use crate::source::Stop;
use crate::source::intake::Intake;
use crate::status::SourceCounters;
use crate::status::imaging::PeerStatus;
use crate::system::seldom::{Seldom, SeldomEach};
use crate::system::stream::Stream;
use crate::values::ByteSize;
use crate::wire::dicom::dimse::{Command, CommandAssembler, CommandField, Status};
use crate::wire::dicom::pdu::{Abort, Kind, Pdv, Pdvs, RELEASE_RESPONSE, Reject, write_message};
use crate::wire::dicom::pdu_associate::AssociateRequest;
use crate::wire::dicom::values::Uid;

/// Between two PDUs of one instance: its sender holds room in memory that others wait for.
const STALL_TIME: Duration = Duration::from_secs(60);
/// An instance that has so many bytes more has earned another stall time: one that is slower keeps its room from others.
const STEP_BYTES: u64 = 256 << 10;
/// Stall times that can be earned ahead: who sent much at once may not keep its room for hours with nothing.
const STEPS_AHEAD_MAX: u32 = 3;
/// How long a message waits for room: less than a device waits for its answer, and than one that stalls can hold the room.
const ROOM_TIME: Duration = Duration::from_secs(20);

/// What all connections of a source share.
pub(super) struct Settings {
    policy: Policy,
    seats: Arc<Seats>,
    instance_bytes_max: u64,
    artim: Duration,
    idle: Duration,
    /// The shorter of this and [`STALL_TIME`].
    stall: Duration,
    write: Duration,
    /// How storage commitment is answered, if it is offered.
    reporting: Option<Reporting>,
    /// Requests for it that arrive at once: each is held whole.
    requests: Arc<Semaphore>,
    /// By who it is and why: a second modality that is set up wrong is seen, too.
    rejections: SeldomEach<(IpAddr, Reject)>,
    faults: Seldom,
    endings: Seldom,
}

impl Settings {
    pub(super) fn new(config: &DicomConfig) -> Self {
        Self {
            policy: Policy::new(config),
            seats: Seats::new(config.max_associations, config.max_associations_per_peer),
            instance_bytes_max: config.max_instance_size.0,
            artim: config.artim_timeout.0,
            idle: config.idle_timeout.0,
            stall: config.idle_timeout.0.min(STALL_TIME),
            write: config.write_timeout.0,
            reporting: config.reporting(),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            rejections: SeldomEach::default(),
            faults: Seldom::default(),
            endings: Seldom::default(),
        }
    }
}

/// Serves a connection until it ends or `stop`: then no new message is begun, and one that has begun may end.
pub(super) async fn serve(stream: Stream, settings: Arc<Settings>, intake: Intake, stop: Stop) {
    let mut link = Link::new(stream, settings.policy.max_pdu(), settings.write);
    let peer = link.peer();
    let closing = match associate(&mut link, &settings, &intake, &stop).await {
        Err(closing) => closing,
        Ok(session) => Connection { link: &mut link, session }.run(&stop).await,
    };
    let source = intake.source();
    match &closing {
        Closing::Rejected(_) => {}
        ordinary if ordinary.is_ordinary() => tracing::debug!(%source, %peer, "connection closed: {closing}"),
        _ => {
            if let Some(unsaid) = settings.endings.speak() {
                tracing::warn!(%source, %peer, unsaid, "connection closed: {closing}");
            }
        }
    }
    link.close(&closing).await;
}

/// The request, within the ARTIM timeout together with the TLS handshake before it, and its answer.
async fn associate(
    link: &mut Link,
    settings: &Arc<Settings>,
    intake: &Intake,
    stop: &Stop,
) -> Result<Session, Closing> {
    let deadline = link.since() + settings.artim;
    let waiting = settings.seats.wait(link.peer().ip().to_canonical()).ok_or(Closing::Crowded)?;
    let frame = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(Closing::Stopped),
        frame = timeout_at(deadline, link.next()) => frame.map_err(|_| Closing::Artim)??,
    };
    if frame.kind == Kind::Abort {
        return Err(aborted(link, &frame));
    }
    drop(waiting);
    let request = AssociateRequest::read(link.body(&frame))?;
    let seat = match admit(&request, link, settings) {
        Ok(seat) => Admitted::take(seat, intake.counters()),
        Err(reject) => {
            intake.counters().turned_away.one();
            if let Some(unsaid) = settings.rejections.speak((link.peer().ip().to_canonical(), reject)) {
                let (source, peer, calling, called) = (intake.source(), link.peer(), &request.calling, &request.called);
                tracing::warn!(%source, %peer, %calling, %called, unsaid, "association {reject}");
            }
            return Err(Closing::Rejected(reject));
        }
    };
    let (accept, association) = settings.policy.agree(&request)?;
    intake.counters().imaging.met(peer_status(&request, link), intake.uptime_ms());
    link.establish();
    link.send(&accept.bytes()).await?;
    Ok(Session {
        association,
        settings: Arc::clone(settings),
        intake: intake.clone(),
        assembler: CommandAssembler::default(),
        reports: Reports::new(),
        arrival: None,
        stop: stop.clone(),
        out: Vec::new(),
        _seat: seat,
    })
}

fn admit(request: &AssociateRequest, link: &Link, settings: &Settings) -> Result<Seat, Reject> {
    settings.policy.admit(request)?;
    if settings.seats.is_congested() && wants_storage(request) {
        return Err(Reject::CONGESTION);
    }
    settings.seats.take(link.peer().ip().to_canonical())
}

fn peer_status(request: &AssociateRequest, link: &Link) -> PeerStatus {
    let class = request.user.implementation_class.as_ref().map(Uid::to_string);
    let printable = |text: &str| text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
    PeerStatus {
        calling: request.calling.to_string(),
        address: link.peer().ip().to_canonical().to_string(),
        called: request.called.to_string(),
        implementation_class: class.unwrap_or_default(),
        implementation_version: request.user.implementation_version.as_deref().map(printable).unwrap_or_default(),
        certificate: link.certificate(),
        last_s: 0,
    }
}

fn aborted(link: &Link, frame: &Frame) -> Closing {
    Closing::Aborted(Abort::read(link.body(frame)).unwrap_or(Abort::NO_REASON))
}

/// An association's place, counted while it is open.
struct Admitted {
    counters: Arc<SourceCounters>,
    _seat: Seat,
}

impl Admitted {
    fn take(seat: Seat, counters: &Arc<SourceCounters>) -> Self {
        counters.imaging.associations.add(1);
        Self { counters: Arc::clone(counters), _seat: seat }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.counters.imaging.associations.add(-1);
    }
}

struct Connection<'a> {
    link: &'a mut Link,
    session: Session,
}

impl Connection<'_> {
    async fn run(mut self, stop: &Stop) -> Closing {
        loop {
            if let Err(closing) = self.step(stop).await {
                return closing;
            }
        }
    }

    async fn step(&mut self, stop: &Stop) -> Result<(), Closing> {
        let is_quiet = self.session.is_quiet();
        let (deadline, overdue) = self.session.deadline();
        let may_report = is_quiet && self.session.reports.is_free();
        let frame = tokio::select! {
            biased;
            () = stop.cancelled(), if is_quiet => return Err(Closing::Stopped),
            frame = timeout_at(deadline, self.link.next()) => frame.map_err(|_| overdue)??,
            call = self.session.reports.next(), if may_report => {
                let Session { reports, association, out, .. } = &mut self.session;
                reports.send(call, association.fragment_bytes, out);
                return self.answer().await;
            }
        };
        match frame.kind {
            Kind::Data => {
                for pdv in Pdvs::new(self.link.body(&frame)) {
                    self.session.take(&pdv?, self.link).await?;
                }
                self.answer().await
            }
            Kind::ReleaseRequest => {
                self.link.send(&RELEASE_RESPONSE).await?;
                Err(Closing::Released)
            }
            Kind::Abort => Err(aborted(self.link, &frame)),
            kind => Err(Closing::Unexpected(kind)),
        }
    }

    /// Sends what was composed, in one write.
    async fn answer(&mut self) -> Result<(), Closing> {
        if self.session.out.is_empty() {
            return Ok(());
        }
        let sent = self.link.send(&self.session.out).await;
        self.session.out.clear();
        sent
    }
}

/// An association and the message that is arriving on it.
struct Session {
    association: Association,
    settings: Arc<Settings>,
    intake: Intake,
    assembler: CommandAssembler,
    reports: Reports,
    arrival: Option<Arrival>,
    stop: Stop,
    /// Answers that are not sent yet.
    out: Vec<u8>,
    _seat: Admitted,
}

/// A command whose data set is arriving, on this presentation context.
struct Arrival {
    context: u8,
    command: Command,
    data: Data,
    pace: Pace,
}

/// How a data set goes on.
struct Pace {
    /// When it began; later by the time that our own storage took.
    since: Instant,
    /// When more must have come of an instance.
    due: Instant,
    /// Bytes since the last step.
    bytes: u64,
    stall: Duration,
}

impl Pace {
    fn new(stall: Duration) -> Self {
        let since = Instant::now();
        Self { since, due: since + stall, bytes: 0, stall }
    }

    /// So many bytes came at `at`, and are stored now.
    fn went_on(&mut self, bytes: usize, at: Instant) {
        let ours = at.elapsed();
        self.since += ours;
        let bytes = self.bytes + bytes as u64;
        let steps = u32::try_from(bytes / STEP_BYTES).unwrap_or(u32::MAX);
        self.bytes = bytes % STEP_BYTES;
        let most = Instant::now() + self.stall.saturating_mul(STEPS_AHEAD_MAX);
        self.due = (self.due + ours + self.stall.saturating_mul(steps.min(STEPS_AHEAD_MAX))).min(most);
    }
}

/// Where the data set goes.
enum Data {
    Store(Box<Store>),
    /// Action information.
    Ask(Box<Asked>),
    /// Nowhere; this is what is answered at its end.
    Scrap(Option<Answer>),
}

/// A status and what is said beside it.
#[derive(Clone, Copy)]
struct Answer {
    status: Status,
    words: &'static str,
}

impl Session {
    /// Whether no message is under way.
    fn is_quiet(&self) -> bool {
        self.arrival.is_none() && !self.assembler.is_in_command()
    }

    /// When the next PDU must be there, and what it is when it is not. A request for commitment has one stall time for all of it.
    fn deadline(&self) -> (Instant, Closing) {
        let Settings { idle, stall, .. } = *self.settings;
        let Some(Arrival { data, pace, .. }) = &self.arrival else { return (Instant::now() + idle, Closing::Idle) };
        let due = if matches!(data, Data::Ask(_)) { pace.since + stall } else { pace.due };
        let quiet = Instant::now() + stall;
        if due < quiet { (due, Closing::Slow) } else { (quiet, Closing::Idle) }
    }

    async fn take(&mut self, pdv: &Pdv<'_>, link: &Link) -> Result<(), Closing> {
        if pdv.is_command {
            if self.arrival.is_some() {
                return Err(Closing::Order("a command before the end of the data set before it"));
            }
            let Some(context) = self.association.context(pdv.context) else {
                return Err(Closing::Order("a message in a presentation context that was not accepted"));
            };
            let context = context.clone();
            match self.assembler.push(pdv)? {
                Some(command) => self.begin(&context, command, link).await,
                None => Ok(()),
            }
        } else {
            let Some(arrival) = self.arrival.as_mut().filter(|arrival| arrival.context == pdv.context) else {
                return Err(Closing::Order("a data set that no command announced"));
            };
            let came = Instant::now();
            match &mut arrival.data {
                Data::Store(store) => store.write(pdv.data, &self.intake).await,
                Data::Ask(asked) => asked.write(pdv.data),
                Data::Scrap(_) => {}
            }
            arrival.pace.went_on(pdv.data.len(), came);
            match pdv.is_last {
                true => self.finish().await,
                false => Ok(()),
            }
        }
    }

    /// A command is whole.
    async fn begin(&mut self, context: &Context, command: Command, link: &Link) -> Result<(), Closing> {
        let limit = ROOM_TIME.min(self.settings.stall / 2);
        let patience = Patience { limit, stop: &self.stop, link };
        let data = match command.field {
            CommandField::EchoRequest => Data::Scrap(Some(Answer { status: Status::SUCCESS, words: "" })),
            CommandField::StoreRequest => {
                let way = (&self.intake, self.settings.instance_bytes_max, &patience);
                match Store::begin(&command, context, &self.association, way).await {
                    Ok(store) => Data::Store(Box::new(store)),
                    Err(Refusal::Gone) => return Err(Closing::Peer),
                    Err(refusal) => Data::Scrap(Some(self.refused(refusal))),
                }
            }
            CommandField::ActionRequest => match Asked::begin(&command, context, &self.association) {
                Ok(asked) => match asked.seated(&self.settings.requests, &patience).await {
                    Ok(asked) => Data::Ask(Box::new(asked)),
                    Err(NoRoom::Gone) => return Err(Closing::Peer),
                    Err(NoRoom::Late) => Data::Scrap(Some(self.crowded())),
                },
                Err(status) => Data::Scrap(Some(Answer { status, words: "" })),
            },
            // What was to be cancelled is answered already, and to a response nothing is said.
            CommandField::CancelRequest => Data::Scrap(None),
            field if field.is_response() => {
                self.reports.answered(&command);
                Data::Scrap(None)
            }
            _ => Data::Scrap(Some(Answer { status: Status::UNRECOGNISED_OPERATION, words: "" })),
        };
        let (has_data_set, context) = (command.has_data_set, context.id);
        self.arrival = Some(Arrival { context, command, data, pace: Pace::new(self.settings.stall) });
        match has_data_set {
            true => Ok(()),
            false => self.finish().await,
        }
    }

    /// The message is whole: it is stored, then its answer is composed.
    async fn finish(&mut self) -> Result<(), Closing> {
        let Some(Arrival { context, command, data, .. }) = self.arrival.take() else { return Ok(()) };
        let answer = match data {
            Data::Scrap(None) => return Ok(()),
            Data::Scrap(Some(answer)) => answer,
            Data::Ask(asked) => Answer { status: self.ask(*asked, context).await, words: "" },
            Data::Store(store) => match store.finish(&self.intake).await {
                Ok(()) => {
                    self.settings.seats.relieve();
                    Answer { status: Status::SUCCESS, words: "" }
                }
                Err(refusal) => self.refused(refusal),
            },
        };
        let response = command.response(answer.status);
        let response = if answer.words.is_empty() { response } else { response.with_comment(answer.words) };
        let whole = Pdv { context, is_command: true, is_last: true, data: &response.bytes() };
        write_message(&whole, self.association.fragment_bytes, &mut self.out);
        Ok(())
    }

    /// A request for commitment is whole.
    async fn ask(&mut self, asked: Asked, context: u8) -> Status {
        let Some(reporting) = &self.settings.reporting else { return Status::CLASS_NOT_SUPPORTED };
        let here = reporting.on == ReportOn::SameAssociation && self.association.takes_reports;
        let calls = here.then(|| self.reports.caller());
        match asked.keep((&self.intake, reporting), calls).await {
            Ok(line) => {
                if let (Some(line), Some(context)) = (line, self.association.context(context)) {
                    self.reports.wait(line, context.clone());
                }
                Status::SUCCESS
            }
            Err(status) => status,
        }
    }

    fn refused(&self, refusal: Refusal) -> Answer {
        match refusal.is_ours() {
            true => self.settings.seats.congest(),
            false => self.intake.counters().rejected.one(),
        }
        let (status, words) = (refusal.status(), refusal.words());
        let what = match refusal {
            Refusal::TooLarge => {
                let limit = ByteSize(self.settings.instance_bytes_max);
                &format!(
                    "an instance larger than max-instance-size ({limit}) was not accepted: raise it if such a size is right"
                )
            }
            _ => "an instance was not accepted",
        };
        self.complain(what, Answer { status, words })
    }

    fn crowded(&self) -> Answer {
        let words = "too many requests arrive at once; try again later";
        let answer = Answer { status: Status::RESOURCE_LIMITATION, words };
        self.complain("a request for storage commitment was not accepted", answer)
    }

    fn complain(&self, what: &str, answer: Answer) -> Answer {
        if let Some(unsaid) = self.settings.faults.speak() {
            let (source, calling, status) = (self.intake.source(), &self.association.calling, answer.status);
            tracing::warn!(%source, %calling, %status, reason = answer.words, unsaid, "{what}");
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_instance_has_the_longer_time_the_more_of_it_came_but_never_hours_ahead() {
        let stall = Duration::from_secs(60);
        let mut pace = Pace::new(stall);
        let began = pace.since;
        assert_eq!(pace.due, began + stall);
        for _ in 0..10 {
            pace.went_on(30 << 10, Instant::now());
        }
        assert_eq!(pace.due, began + 2 * stall);
        // A hundred megabytes at once.
        for _ in 0..1000 {
            pace.went_on(100 << 10, Instant::now());
        }
        assert_eq!(pace.due, began + 3 * stall);
        // A slow one that goes on is never cut off.
        for _ in 0..100 {
            tokio::time::advance(Duration::from_secs(50)).await;
            pace.went_on(256 << 10, Instant::now());
            assert!(pace.due >= Instant::now() + stall);
        }
    }
}
