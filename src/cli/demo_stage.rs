//! The stage of the demo: a temporary folder, a broker, a collector and a gateway, set up in this order and struck in reverse.
//!
//! The gateway is started from a configuration file, as on a box, and asked over its control socket, as `wardgate status` does:
//! the demo sees what a person would see.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::demo_broker::DemoBroker;
use super::demo_view::Moment;
use super::exit::{Exit, Failure, OrExit};
use super::inbox::Inbox;
use super::ledger::Ledger;
use super::run;
use crate::admin::client::ControlClient;
use crate::admin::verbs::Request;
use crate::collector::{self, Collection};
use crate::status::Status;
use crate::values::{HostPort, Listen, Name};

/// Between two looks at the stage.
pub const TICK: Duration = Duration::from_millis(250);
/// How long the gateway may take to start, and to stop.
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(20);

/// Everything that runs.
pub struct Stage {
    /// The broker, which can be cut off.
    pub broker: DemoBroker,
    folder: Folder,
    gateway: JoinHandle<Result<(), Failure>>,
    gateway_stop: CancellationToken,
    collector: JoinHandle<Result<(), Failure>>,
    collector_stop: CancellationToken,
    client: ControlClient,
    inbox: Option<Inbox>,
    cut: bool,
    status: Status,
}

impl Stage {
    /// Sets the stage: everything runs and listens when this returns.
    ///
    /// # Errors
    /// [`Failure`] when a part can't start.
    pub async fn set(listen: Option<Listen>, into: Option<&Path>) -> Result<Self, Failure> {
        let folder = Folder::make()?;
        let collected = into.map_or_else(|| folder.0.join("collected"), Path::to_owned);
        let broker = DemoBroker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
        let broker = broker.or_exit(Exit::Unavailable, "can't start the demo's broker")?;
        let collector_stop = CancellationToken::new();
        let collector = tokio::spawn(collect(broker.address(), collected.clone(), collector_stop.clone()));
        let config = folder.0.join("gateway.toml");
        std::fs::write(&config, configuration(&folder.0, broker.address(), listen))
            .or_exit(Exit::CannotCreate, format!("can't write {}", config.display()))?;
        let gateway_stop = CancellationToken::new();
        let stop = gateway_stop.clone();
        let mut gateway = tokio::spawn(async move { run::serve(&config, stop).await });
        let (client, status) = answering(&folder.0.join("control.sock"), &mut gateway).await?;
        let inbox = Some(Inbox::new(&collected));
        Ok(Self { broker, folder, gateway, gateway_stop, collector, collector_stop, client, inbox, cut: false, status })
    }

    /// Where the monitors send to.
    ///
    /// # Errors
    /// [`Exit::Software`] when the gateway does not say.
    pub fn monitors(&self) -> Result<HostPort, Failure> {
        let source = self.status.sources.iter().find(|(name, _)| name.as_str() == "monitors");
        let endpoint = source.and_then(|(_, source)| source.endpoint.parse().ok());
        endpoint.ok_or_else(|| Failure::new(Exit::Software, "the demo's gateway does not say where it listens"))
    }

    /// How one gets at it from outside.
    pub fn how_to(&self) -> String {
        let at = |name: &str| {
            let found = self.status.sources.iter().find(|(source, _): &(&Name, _)| source.as_str() == name);
            found.map(|(_, source)| source.endpoint.clone())
        };
        let monitors = at("monitors").unwrap_or_default();
        let socket = self.folder.0.join("control.sock");
        let mut lines = vec![
            "wardgate demo: monitors > gateway > MQTT broker > collector. The patients are invented.".to_owned(),
            format!("  send a message yourself:  wardgate probe mllp {monitors}"),
            format!("  look inside:              wardgate status --socket {}", socket.display()),
        ];
        lines.push(match at("devices") {
            Some(devices) => format!("  point a real device at:   {devices}  (HL7 v2 over MLLP, without TLS)"),
            None => "  for a real device:        start again with --listen ADDRESS:PORT".to_owned(),
        });
        lines.join("\n")
    }

    /// Cuts the upstream off, or lets it through again.
    pub fn set_cut(&mut self, cut: bool) {
        match (self.cut, cut) {
            (false, true) => self.broker.cut(),
            (true, false) => self.broker.restore(),
            _ => {}
        }
        self.cut = cut;
    }

    /// How it stands.
    ///
    /// # Errors
    /// [`Failure`] when the gateway has ended or the collector's folder can't be read.
    pub async fn moment(&mut self, elapsed: Duration, cut: bool, ledger: &Arc<Ledger>) -> Result<Moment, Failure> {
        let strangers = self.sweep(ledger).await?;
        if self.gateway.is_finished() {
            return Err(ended(&mut self.gateway).await);
        }
        self.status = self.client.ask(&Request::Status).await?;
        Ok(Moment::new(elapsed, cut, &self.status, ledger.totals(), strangers))
    }

    /// Reads what has arrived, off the runtime's threads.
    async fn sweep(&mut self, ledger: &Arc<Ledger>) -> Result<usize, Failure> {
        let Some(mut inbox) = self.inbox.take() else { return Ok(0) };
        let ledger = Arc::clone(ledger);
        let swept = tokio::task::spawn_blocking(move || {
            let outcome = inbox.sweep(&ledger);
            (inbox, outcome)
        });
        let (inbox, outcome) = swept.await.or_exit(Exit::Software, "can't read what arrived")?;
        let strangers = inbox.strangers();
        self.inbox = Some(inbox);
        outcome.or_exit(Exit::Io, "can't read what arrived")?;
        Ok(strangers)
    }

    /// Stops everything; the temporary folder goes.
    ///
    /// # Errors
    /// [`Failure`] of a part that did not end well.
    pub async fn strike(mut self) -> Result<(), Failure> {
        self.gateway_stop.cancel();
        let gateway = tokio::time::timeout(STOP_MAX, &mut self.gateway).await;
        self.collector_stop.cancel();
        let collector = tokio::time::timeout(STOP_MAX, &mut self.collector).await;
        for (part, ended) in [("gateway", gateway), ("collector", collector)] {
            let late = || format!("the {part} did not stop within {} s", STOP_MAX.as_secs());
            ended.or_exit(Exit::Software, late())?.or_exit(Exit::Software, format!("the {part} broke"))??;
        }
        Ok(())
    }
}

/// A folder of our own that only we can read; it goes when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("wardgate-demo-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.or_exit(Exit::CannotCreate, format!("can't make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What can't be deleted now goes with the system's temporary files.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// The configuration of the demo's gateway: what is unsafe on a box is said aloud in it.
fn configuration(folder: &Path, broker: SocketAddr, listen: Option<Listen>) -> String {
    let folder = folder.display();
    let (devices, from) = match listen {
        Some(listen) => {
            let everyone = if listen.0.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
            let section = format!("[source.devices.mllp]\nlisten = \"{listen}\"\nallow = [\"{everyone}\"]\n");
            (section, "\"monitors\", \"devices\"")
        }
        None => (String::new(), "\"monitors\""),
    };
    format!(
        "\
[gateway]
name = \"demo\"
site = \"demo\"
control = {{ socket = \"{folder}/control.sock\" }}

[spool]
path = \"{folder}/spool\"
key = {{ file = \"{folder}/demo.key\" }}

[source.monitors.mllp]
listen = \"127.0.0.1:0\"
max-connections = 600

{devices}
[upstream.collector.mqtt]
address = \"{broker}\"
plain = true
receipt = \"collector\"

[[route]]
from = [{from}]
to = [\"collector\"]
"
    )
}

async fn collect(broker: SocketAddr, into: PathBuf, stop: CancellationToken) -> Result<(), Failure> {
    let collection = Collection {
        broker: HostPort { host: broker.ip().to_string(), port: broker.port() },
        tls: None,
        client_id: "wardgate-demo-collector".to_owned(),
        username: None,
        password: None,
        topic: "wardgate/+/+/+/+".to_owned(),
        into,
        opener: None,
    };
    let progress = collector::Progress::default();
    collector::collect(&collection, &progress, &stop)
        .await
        .or_exit(Exit::CannotCreate, "the demo's collector can't start")
}

/// The gateway's control socket once it answers and the monitors' source listens.
async fn answering(
    socket: &Path,
    gateway: &mut JoinHandle<Result<(), Failure>>,
) -> Result<(ControlClient, Status), Failure> {
    let deadline = Instant::now() + START_MAX;
    loop {
        if gateway.is_finished() {
            return Err(ended(gateway).await);
        }
        if let Ok(mut client) = ControlClient::connect(socket).await {
            let status: Status = client.ask(&Request::Status).await?;
            let listening = |source: &crate::status::SourceStatus| source.endpoint.parse::<HostPort>().is_ok();
            if !status.sources.is_empty() && status.sources.values().all(listening) {
                return Ok((client, status));
            }
        }
        if Instant::now() > deadline {
            let text = format!("the demo's gateway does not listen after {} s", START_MAX.as_secs());
            return Err(Failure::new(Exit::Software, text));
        }
        tokio::time::sleep(TICK / 10).await;
    }
}

/// Why the gateway ended before its time.
async fn ended(gateway: &mut JoinHandle<Result<(), Failure>>) -> Failure {
    match gateway.await {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) => Failure::new(Exit::Software, "the demo's gateway ended by itself"),
        Err(error) => Failure::new(Exit::Software, format!("the demo's gateway broke: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::source::SourceConfig;
    use crate::upstream::UpstreamConfig;

    #[test]
    fn the_demos_configuration_is_one_that_check_would_pass() {
        let folder = tempfile::tempdir().unwrap();
        for listen in [None, Some("0.0.0.0:2575"), Some("[::1]:2575")] {
            let listen = listen.map(|listen| listen.parse().unwrap());
            let file = folder.path().join("gateway.toml");
            std::fs::write(&file, configuration(folder.path(), "127.0.0.1:1883".parse().unwrap(), listen)).unwrap();
            let loaded = config::load::<SourceConfig, UpstreamConfig>(&file).unwrap();
            assert_eq!(loaded.config.sources.len(), 1 + usize::from(listen.is_some()));
        }
    }
}
