//! The stage of the demo: a temporary folder, a broker, a collector and a gateway, set up in this order and struck in reverse.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::demo_broker::DemoBroker;
use super::demo_view::Moment;
use super::exit::{Exit, Failure, OrExit};
use super::inbox::Inbox;
use super::ledger::Books;
use super::own_gateway::{Folder, OwnGateway, SOCKET, STOP_MAX};
use super::oximeter::PROFILE as OXIMETER_PROFILE;
use super::scanner::GATEWAY_TITLE;
use super::sensors::{self, TOPICS};
use crate::collector::{self, Collection};
use crate::status::Status;
use crate::system::pty::Pty;
use crate::values::{HostPort, Listen, Name};

/// Between two looks at the stage.
pub const TICK: Duration = Duration::from_millis(250);

/// Where real devices may come in, beside the simulated ones on loopback.
#[derive(Clone, Copy, Default, Debug)]
pub struct Doors {
    /// For HL7 v2 over MLLP.
    pub messages: Option<Listen>,
    /// For DICOM.
    pub images: Option<Listen>,
}

/// Everything that runs.
pub struct Stage {
    /// The broker, which can be cut off.
    pub broker: DemoBroker,
    folder: Folder,
    gateway: OwnGateway,
    collector: JoinHandle<Result<(), Failure>>,
    collector_stop: CancellationToken,
    inbox: Option<Inbox>,
    lines: (Option<Pty>, Option<Pty>),
    cut: bool,
    status: Status,
}

impl Stage {
    /// Sets the stage: everything runs and listens when this returns.
    ///
    /// # Errors
    /// [`Failure`] when a part can't start.
    pub async fn set(doors: Doors, sensors: usize, into: Option<&Path>) -> Result<Self, Failure> {
        let folder = Folder::make(&std::env::temp_dir(), "wardgate-demo")?;
        let collected = into.map_or_else(|| folder.path().join("collected"), Path::to_owned);
        let broker = DemoBroker::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await;
        let broker = broker.or_exit(Exit::Unavailable, "can't start the demo's broker")?;
        let collector_stop = CancellationToken::new();
        let collector = tokio::spawn(collect(broker.address(), collected.clone(), collector_stop.clone()));
        // Before the gateway, so that it finds the devices plugged in.
        let line = |name: &str| {
            Pty::open(&folder.path().join(name)).or_exit(Exit::CannotCreate, "can't open a pseudo-terminal").map(Some)
        };
        let lines = (line("analyser")?, line("oximeter")?);
        let configuration = configuration(folder.path(), broker.address(), doors, sensors);
        let (gateway, status) = OwnGateway::start(&folder, &configuration).await?;
        let inbox = Some(Inbox::new(&collected));
        Ok(Self { broker, folder, gateway, collector, collector_stop, inbox, lines, cut: false, status })
    }

    /// Where a source listens.
    ///
    /// # Errors
    /// [`Exit::Software`] when the gateway does not say.
    pub fn endpoint(&self, source: &str) -> Result<HostPort, Failure> {
        let endpoint = self.bound(source).and_then(|bound| bound.parse().ok());
        endpoint.ok_or_else(|| Failure::new(Exit::Software, "the demo's gateway does not say where it listens"))
    }

    /// The devices' ends of the two serial lines, that of the analyser and that of the oximeter; there is one of each.
    pub fn take_lines(&mut self) -> (Option<Pty>, Option<Pty>) {
        std::mem::take(&mut self.lines)
    }

    fn bound(&self, source: &str) -> Option<String> {
        let found = self.status.sources.iter().find(|(name, _): &(&Name, _)| name.as_str() == source);
        found.map(|(_, source)| source.endpoint.clone())
    }

    /// How one gets at it from outside.
    pub fn how_to(&self) -> String {
        let (monitors, scanners) = ["monitors", "scanners"].map(|name| self.bound(name).unwrap_or_default()).into();
        let socket = self.folder.path().join(SOCKET);
        let mut lines = vec![
            "wardgate demo: monitors, a CT, an analyser, an oximeter, sensors > gateway > MQTT broker > collector. The patients are invented."
                .to_owned(),
            format!("  send a message yourself:  wardgate probe mllp {monitors}"),
            format!("  send an image yourself:   wardgate probe dicom {scanners} --called {GATEWAY_TITLE} --store"),
            format!("  look inside:              wardgate status --socket {}", socket.display()),
        ];
        if let Some(devices) = self.bound("devices") {
            lines.push(format!("  point a real device at:   {devices}  (HL7 v2 over MLLP, without TLS)"));
        }
        if let Some(modalities) = self.bound("modalities") {
            let how = format!("(DICOM C-STORE, AE title {GATEWAY_TITLE}, without TLS)");
            lines.push(format!("  point a real modality at: {modalities}  {how}"));
        }
        if self.bound("devices").or_else(|| self.bound("modalities")).is_none() {
            lines.push(
                "  for real devices:         start again with --listen or --listen-dicom ADDRESS:PORT".to_owned(),
            );
        }
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
    pub async fn moment(&mut self, elapsed: Duration, cut: bool, books: &Books) -> Result<Moment, Failure> {
        let strangers = self.sweep(books).await?;
        self.status = self.gateway.status().await?;
        Ok(Moment::new(elapsed, cut, &self.status, books, strangers))
    }

    /// Reads what has arrived, off the runtime's threads.
    async fn sweep(&mut self, books: &Books) -> Result<usize, Failure> {
        let Some(mut inbox) = self.inbox.take() else { return Ok(0) };
        let books = books.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let outcome = inbox.sweep(&books);
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
        let gateway = self.gateway.stop().await;
        self.collector_stop.cancel();
        let late = || format!("the collector did not stop within {} s", STOP_MAX.as_secs());
        let collector = timeout(STOP_MAX, &mut self.collector).await.or_exit(Exit::Software, late());
        gateway?;
        collector?.or_exit(Exit::Software, "the collector broke")??;
        Ok(())
    }
}

/// The configuration of the demo's gateway: what is unsafe on a box is said aloud in it.
fn configuration(folder: &Path, broker: SocketAddr, doors: Doors, sensors: usize) -> String {
    let folder = folder.display();
    let clients: String = (1..=sensors.max(1)).map(client).collect();
    let (mut devices, mut from) = (String::new(), vec!["monitors", "scanners", "analyser", "oximeter", "sensors"]);
    let everyone = |listen: &Listen| if listen.0.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
    if let Some(listen) = &doors.messages {
        let allow = everyone(listen);
        devices.push_str(&format!("[source.devices.mllp]\nlisten = \"{listen}\"\nallow = [\"{allow}\"]\n\n"));
        from.push("devices");
    }
    if let Some(listen) = &doors.images {
        let allow = everyone(listen);
        devices.push_str(&format!("[source.modalities.dicom]\nlisten = \"{listen}\"\nallow = [\"{allow}\"]\n"));
        devices.push_str(&format!("ae-title = \"{GATEWAY_TITLE}\"\n\n"));
        from.push("modalities");
    }
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

[source.scanners.dicom]
listen = \"127.0.0.1:0\"
ae-title = \"{GATEWAY_TITLE}\"

[source.analyser.astm]
serial = {{ port = \"{folder}/analyser\" }}

[source.oximeter.serial]
serial = {{ port = \"{folder}/oximeter\" }}
profile = \"{OXIMETER_PROFILE}\"

[source.sensors.mqtt]
listen = \"127.0.0.1:0\"

{clients}{devices}[upstream.collector.mqtt]
address = \"{broker}\"
plain = true
receipt = \"collector\"

[[route]]
from = {from:?}
to = [\"collector\"]
"
    )
}

/// A sensor that may publish. There is no password: only this machine reaches the gateway.
fn client(number: usize) -> String {
    format!("[[source.sensors.mqtt.client]]\nid = \"{}\"\npublish = [\"{TOPICS}\"]\n\n", sensors::id(number))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::source::SourceConfig;
    use crate::upstream::UpstreamConfig;

    #[test]
    fn the_demos_configuration_is_one_that_check_would_pass() {
        let folder = tempfile::tempdir().unwrap();
        let at = |listen: &str| Some(listen.parse().unwrap());
        for (messages, images) in [(None, None), (at("0.0.0.0:2575"), None), (at("[::1]:2575"), at("[::]:11112"))] {
            let file = folder.path().join("gateway.toml");
            std::fs::write(
                &file,
                configuration(folder.path(), "127.0.0.1:1883".parse().unwrap(), Doors { messages, images }, 3),
            )
            .unwrap();
            let loaded = config::load::<SourceConfig, UpstreamConfig>(&file).unwrap();
            let doors = usize::from(messages.is_some()) + usize::from(images.is_some());
            assert_eq!(loaded.config.sources.len(), 5 + doors);
        }
    }
}
