//! How a local device plugs in: a serial port, a connection that is dialled, or one that is accepted. One [`Line`] for each time.
//!
//! A port that is not there is waited for and is no error. One that is unplugged is let go at once (its number would move on
//! otherwise), told by a record, and taken again within two seconds when it is back. What the bytes mean is the protocol's part.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::accept::{CONNECTIONS_MAX, Listener, Rules};
use super::intake::Intake;
use super::plug_journal::Journal;
use super::{SourceError, Stop};
use crate::status::SourceCounters;
use crate::status::plug::PlugState;
use crate::system::serial::{self, SerialConfig, SerialPort};
use crate::system::sockets::Sockets;
use crate::system::stream::{self, Stream};
use crate::system::tls::ServerTls;
use crate::system::watch::Watch;
use crate::values::{HostPort, Listen, Problems, SecretRef, Section};

pub use super::plug_line::Line;

/// Connections at once, unless the configuration says otherwise: one device has one, and a new one before the old one is gone.
pub const CONNECTIONS_DEFAULT: usize = 8;
/// How long a line has to finish what it is at once the source stops; then it is cut.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a protocol has to let go of a port that is gone.
const LET_GO_TIME_MAX: Duration = Duration::from_secs(10);
/// A connection that does not come about in this time is tried again.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);
/// The pause after a line that ended at once; it doubles up to the longest.
const PAUSE_SHORTEST: Duration = Duration::from_millis(100);
/// The longest pause before a port is opened again.
const PAUSE_LONGEST: Duration = Duration::from_millis(1500);
/// The longest pause before a device is dialled again.
const DIAL_PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// A line that held for so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// A link that is gone for a moment only (udev writes it anew) is not unplugged.
const LINK_GRACE: Duration = Duration::from_millis(150);

/// Where the device is: exactly one of `serial`, `connect` and `listen`. A protocol's section has these keys and makes this of them.
///
/// The keys stand in each section and not here with `#[serde(flatten)]`: that can't go with `deny_unknown_fields`, and an error in any
/// key of the section would be told without its line and column.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct PlugConfig {
    /// `serial = { port = "/dev/serial/by-path/...", baud = 9600 }`.
    pub serial: Option<SerialConfig>,
    /// `connect = "10.0.0.5:4000"`: a device, or a serial server, that is dialled.
    pub connect: Option<HostPort>,
    /// `listen = "10.20.0.1:4001"`: the device dials.
    pub listen: Option<Listen>,
    /// With `listen`: networks that may connect.
    pub allow: Vec<IpNet>,
    /// With `listen`: connections at once.
    pub connections: Option<usize>,
    /// With `listen`: speak TLS; with a `client-ca` devices must show a certificate.
    pub tls: Option<ServerTls>,
}

impl PlugConfig {
    /// Notes what is missing, too much, unsafe or impossible, under the keys of the protocol's section.
    pub fn check(&self, problems: &mut Problems) {
        let given =
            [("serial", self.serial.is_some()), ("connect", self.connect.is_some()), ("listen", self.listen.is_some())];
        let given: Vec<&str> = given.into_iter().filter_map(|(key, given)| given.then_some(key)).collect();
        match given[..] {
            [] => problems.error(
                "",
                "says not where the device is: add serial = { port = \"/dev/serial/by-path/...\" }, \
                 connect = \"host:port\" or listen = \"address:port\"",
            ),
            [_] => {}
            [first, second, ..] => {
                problems.error(second, format!("the device is at one place: keep either {first} or {second}"));
            }
        }
        if let Some(serial) = &self.serial {
            problems.under("serial", |problems| serial.check(problems));
        }
        self.check_door(problems);
    }

    /// The files that it names.
    pub fn files(tls: &mut Option<ServerTls>, visit: &mut dyn FnMut(&mut SecretRef)) {
        if let Some(tls) = tls {
            tls.files(visit);
        }
    }

    fn check_door(&self, problems: &mut Problems) {
        let Some(listen) = self.listen else {
            let keys = [
                ("allow", !self.allow.is_empty()),
                ("connections", self.connections.is_some()),
                ("tls", self.tls.is_some()),
            ];
            for (key, given) in keys {
                if given {
                    problems.error(key, "goes with listen only: take it out");
                }
            }
            return;
        };
        let known_peers = !self.allow.is_empty() || self.tls.as_ref().is_some_and(ServerTls::is_mutual);
        if !listen.0.ip().to_canonical().is_loopback() && !known_peers {
            let text = format!(
                "{listen} can be reached from the network and anybody may connect: add allow = [\"10.20.0.5/32\"] with the \
                 addresses of the devices (all of them: [\"0.0.0.0/0\", \"::/0\"]), or tls with a client-ca"
            );
            problems.error("listen", text);
        }
        if let Some(tls) = &self.tls {
            problems.under("tls", |problems| tls.check(problems));
        }
        if self.connections.is_some_and(|connections| !(1..=CONNECTIONS_MAX).contains(&connections)) {
            problems.error("connections", format!("must be from 1 to {CONNECTIONS_MAX}"));
        }
    }
}

/// The device's place, ready to be used.
pub struct Plug {
    way: Way,
}

enum Way {
    Serial(SerialConfig),
    Connect(HostPort),
    Listen(Box<Listener>),
}

/// How one line ended.
struct Ended {
    gone: bool,
    lasted: Duration,
}

impl Plug {
    /// Binds a listener. A serial port and a connection are opened by [`Plug::run`], which waits for them.
    ///
    /// # Errors
    /// [`SourceError::Open`] with what to do in words.
    pub async fn open(config: PlugConfig, sockets: &Sockets) -> Result<Self, SourceError> {
        let way = match config {
            PlugConfig { serial: Some(serial), .. } => Way::Serial(serial),
            PlugConfig { connect: Some(address), .. } => Way::Connect(address),
            PlugConfig { listen: Some(listen), allow, connections, tls, .. } => {
                let rules = Rules { allow, connections: connections.unwrap_or(CONNECTIONS_DEFAULT) };
                Way::Listen(Box::new(Listener::open(listen, rules, tls.as_ref(), sockets).await?))
            }
            _ => return Err(SourceError::Open("no place of the device is configured".into())),
        };
        Ok(Self { way })
    }

    /// The port or address, as it is bound.
    pub fn endpoint(&self) -> String {
        match &self.way {
            Way::Serial(serial) => serial.port.display().to_string(),
            Way::Connect(address) => address.to_string(),
            Way::Listen(listener) => listener.endpoint().to_string(),
        }
    }

    /// Calls `serve` each time that the device is plugged in, answers or connects, until `stop`. `serve` watches `stop` itself, and
    /// returns when the line ends: a read of a port that is gone fails with [`std::io::ErrorKind::UnexpectedEof`]. Lines that do
    /// not end within some seconds of the stop are cut.
    ///
    /// # Errors
    /// [`SourceError::Broken`] when a listening socket is unusable. No device can cause that.
    pub async fn run<S, F>(&mut self, intake: &Intake, stop: &Stop, serve: S) -> Result<(), SourceError>
    where
        S: Fn(Line) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let endpoint = self.endpoint();
        let counters = Arc::clone(intake.counters());
        match &mut self.way {
            Way::Listen(listener) => {
                counters.plug.at(&endpoint, "");
                counters.plug.set(PlugState::Listening, intake.uptime_ms());
                let noted = Arc::clone(&counters);
                let served = move |stream: Stream| serve(Line::tcp(stream, Arc::clone(&noted), Arc::default()));
                listener.run(&counters, stop, served).await
            }
            Way::Serial(config) => {
                counters.plug.at(&endpoint, &config.settings());
                run_port(config, intake, stop, serve).await;
                Ok(())
            }
            Way::Connect(address) => {
                counters.plug.at(&endpoint, "");
                run_dialled(address, intake, stop, serve).await;
                Ok(())
            }
        }
    }
}

async fn run_port<F: Future<Output = ()>>(
    config: &SerialConfig,
    intake: &Intake,
    stop: &Stop,
    serve: impl Fn(Line) -> F,
) {
    // Armed before the first look, so that nothing that comes in between is missed.
    let mut watch = Watch::new(&config.port);
    let mut journal = Journal::of_port(intake);
    let mut pause = PAUSE_SHORTEST;
    while !stop.is_cancelled() {
        match SerialPort::open(config) {
            Ok(port) => {
                for setting in port.tolerated() {
                    tracing::info!(source = %intake.source(), port = %config.port.display(), setting, "a pseudo-terminal did not take it");
                }
                journal.there().await;
                let device = port.device();
                let (gone, unplugged) = (CancellationToken::new(), Arc::<AtomicBool>::default());
                let line = Line::serial(
                    port,
                    Arc::clone(intake.counters()),
                    gone.clone().cancelled_owned(),
                    unplugged.clone(),
                );
                let moved = moved_on(&config.port, device);
                let ended = serve_one(stop, serve(line), moved, (&gone, &unplugged), intake.counters()).await;
                if ended.gone {
                    journal.missing("it was unplugged").await;
                }
                pause = next_pause(pause, ended.lasted, PAUSE_LONGEST);
                if stopped_within(stop, pause).await {
                    return;
                }
            }
            Err(error) => {
                journal.missing(&error.to_string()).await;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = watch.changed() => {}
                }
            }
        }
    }
}

async fn run_dialled<F: Future<Output = ()>>(
    address: &HostPort,
    intake: &Intake,
    stop: &Stop,
    serve: impl Fn(Line) -> F,
) {
    let mut journal = Journal::of_connection(intake);
    let mut pause = PAUSE_SHORTEST;
    while !stop.is_cancelled() {
        let dialled = tokio::select! {
            () = stop.cancelled() => return,
            dialled = stream::dial(address, None, DIAL_TIME_MAX) => dialled,
        };
        let lasted = match dialled {
            Ok(stream) => {
                journal.there().await;
                let (gone, unplugged) = (CancellationToken::new(), Arc::<AtomicBool>::default());
                let line = Line::tcp(stream, Arc::clone(intake.counters()), unplugged.clone());
                let never = std::future::pending();
                let ended = serve_one(stop, serve(line), never, (&gone, &unplugged), intake.counters()).await;
                journal.missing("the device ended the connection").await;
                ended.lasted
            }
            Err(error) => {
                journal.missing(&error.to_string()).await;
                Duration::ZERO
            }
        };
        pause = next_pause(pause, lasted, DIAL_PAUSE_LONGEST);
        if stopped_within(stop, pause).await {
            return;
        }
    }
}

/// Serves one line until it ends, the port is gone (`moved`), or some seconds after the stop.
async fn serve_one(
    stop: &Stop,
    serving: impl Future<Output = ()>,
    moved: impl Future<Output = ()>,
    (gone, unplugged): (&CancellationToken, &AtomicBool),
    counters: &SourceCounters,
) -> Ended {
    let began = Instant::now();
    counters.connections.add(1);
    tokio::pin!(serving);
    let cut = tokio::select! {
        () = &mut serving => false,
        () = moved => {
            gone.cancel();
            timeout(LET_GO_TIME_MAX, &mut serving).await.is_err()
        }
        () = stop.cancelled() => timeout(DRAIN_TIME_MAX, &mut serving).await.is_err(),
    };
    counters.connections.add(-1);
    if cut {
        tracing::warn!("a line did not end in time and is cut");
    }
    Ended { gone: gone.is_cancelled() || unplugged.load(Ordering::Relaxed), lasted: began.elapsed() }
}

/// Returns when the path leads to another device than the one that is open, or nowhere.
async fn moved_on(port: &Path, device: u64) {
    let mut watch = Watch::new(port);
    loop {
        if serial::device(port) != Some(device) {
            sleep(LINK_GRACE).await;
            if serial::device(port) != Some(device) {
                return;
            }
        }
        watch.changed().await;
    }
}

fn next_pause(pause: Duration, lasted: Duration, longest: Duration) -> Duration {
    if lasted >= GOOD_AFTER { PAUSE_SHORTEST } else { (pause * 2).min(longest) }
}

async fn stopped_within(stop: &Stop, pause: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => true,
        () = sleep(pause) => false,
    }
}
