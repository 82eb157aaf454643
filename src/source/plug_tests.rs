//! The plug, played with links to pseudo-terminals: waited for, unplugged, replugged, swapped; and devices over the network.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::pty::openpty;
use nix::unistd::ttyname;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Stop;
use super::intake::Intake;
use super::plug::{Line, Plug, PlugConfig};
use crate::envelope::Class;
use crate::spool::{Disk, Lane, Secret, Spool, SpoolConfig};
use crate::status::plug::PlugState;
use crate::system::sockets::Sockets;
use crate::system::stream::dial;
use crate::system::test_pki::Pki;
use crate::system::tls::{ClientTls, ServerTls};
use crate::telemetry::record::{GapReason, Record};
use crate::values::{HostPort, Name, Problems};

pub const LIMIT: Duration = Duration::from_secs(20);

/// A spool in a temporary folder with the intake of one telemetry source, and the lane to an upstream that takes nothing.
pub struct Room {
    pub intake: Intake,
    pub lane: Lane,
    pub stop: Stop,
    pub folder: TempDir,
    _targets: watch::Sender<Arc<[Name]>>,
}

impl Room {
    pub fn new(protocol: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let spool = folder.path().join("spool");
        fs::create_dir(&spool).unwrap();
        let spool = Spool::open(Arc::new(Disk::open(&spool).unwrap()), Secret::random(), &config).unwrap();
        let (source, upstream): (Name, Name) = ("ward".parse().unwrap(), "cloud".parse().unwrap());
        let lane = spool.lane(Class::Telemetry, &source, &upstream);
        let (targets, routed) = watch::channel(Arc::from([upstream]));
        let intake = Intake::new(source, protocol, Class::Telemetry, spool, routed);
        Self { intake, lane, stop: Stop::new(), folder, _targets: targets }
    }

    /// Where the device's port is, when it is plugged in.
    pub fn port(&self) -> PathBuf {
        self.folder.path().join("serial/by-path/usb-1")
    }

    /// The next record that is stored.
    pub async fn record(&mut self) -> Record {
        let entry = timeout(LIMIT, self.lane.next()).await.expect("nothing more was stored");
        let body = entry.content.unwrap().body.collect().await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    pub async fn until_plugged(&self, plugged: bool) {
        let deadline = Instant::now() + LIMIT;
        let stands = |state: &PlugState| match state {
            PlugState::Plugged => plugged,
            PlugState::Missing(_) => !plugged,
            PlugState::Unknown | PlugState::Listening => false,
        };
        while !self.intake.counters().plug.snapshot(0).is_some_and(|plug| stands(&plug.state)) {
            assert!(Instant::now() < deadline, "the plug did not come to stand so");
            sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A device at the other end of a pseudo-terminal, plugged in at a link.
pub struct Device {
    pub end: File,
    link: PathBuf,
}

impl Device {
    pub fn plug_in(link: &Path) -> Self {
        let pair = openpty(None, None).unwrap();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(ttyname(&pair.slave).unwrap(), link).unwrap();
        Self { end: File::from(pair.master), link: link.to_owned() }
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.end.write_all(bytes).unwrap();
    }

    pub fn unplug(self) {
        fs::remove_file(&self.link).unwrap();
    }
}

fn serial(port: &Path) -> PlugConfig {
    let serial = toml::from_str(&format!("port = {port:?}")).unwrap();
    PlugConfig { serial: Some(serial), ..PlugConfig::default() }
}

/// A protocol that says what it reads and how its line ended.
fn listening(config: PlugConfig, room: &Room) -> (mpsc::UnboundedReceiver<String>, JoinHandle<()>, String) {
    let (heard, hears) = mpsc::unbounded_channel();
    let (bound, endpoint) = std::sync::mpsc::channel();
    let (intake, stop) = (room.intake.clone(), room.stop.clone());
    let task = tokio::spawn(async move {
        let mut plug = Plug::open(config, &Sockets::default()).await.unwrap();
        bound.send(plug.endpoint()).unwrap();
        let stopped = stop.clone();
        let serve = move |line: Line| listen(line, heard.clone(), stopped.clone());
        plug.run(&intake, &stop, serve).await.unwrap();
    });
    let endpoint = tokio::task::block_in_place(|| endpoint.recv_timeout(LIMIT).unwrap());
    (hears, task, endpoint)
}

async fn listen(mut line: Line, heard: mpsc::UnboundedSender<String>, stop: Stop) {
    let mut bytes = [0; 64];
    loop {
        let read = tokio::select! {
            () = stop.cancelled() => return,
            read = line.read(&mut bytes) => read,
        };
        let word = match read {
            Ok(0) => "end".to_owned(),
            Ok(count) => String::from_utf8_lossy(&bytes[..count]).into_owned(),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => "unplugged".to_owned(),
            Err(error) => error.to_string(),
        };
        let ended = word == "end" || word == "unplugged";
        heard.send(word).unwrap();
        if ended {
            return;
        }
    }
}

async fn next(hears: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(LIMIT, hears.recv()).await.expect("nothing was heard").unwrap()
}

/// Waits until this process has a device open no more. Other tests may run in it, and may have one for a moment that got its number.
async fn until_closed(device: &Path) {
    let open = |link: PathBuf| link.to_string_lossy().trim_end_matches(" (deleted)") == device.to_string_lossy();
    let closed = async {
        while fs::read_dir("/proc/self/fd").unwrap().flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(open))
        {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, closed).await.expect("descriptors leak");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_waited_for_and_back_within_two_seconds_of_being_plugged_in_again() {
    let mut room = Room::new("serial");
    let (mut hears, task, _) = listening(serial(&room.port()), &room);
    room.until_plugged(false).await;
    assert_eq!(room.record().await.events[0].kind, "unplugged");
    for round in 0..6 {
        let began = Instant::now();
        let mut device = Device::plug_in(&room.port());
        room.until_plugged(true).await;
        device.say(b"SPO2=98");
        assert_eq!(next(&mut hears).await, "SPO2=98", "round {round}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let back = room.record().await;
        assert_eq!((back.stream.as_str(), back.events[0].kind.as_ref()), ("line", "plugged"));
        let gap = back.gap.unwrap();
        assert!(gap.reason == GapReason::Unplugged && gap.lasted_ms.is_some());
        let path = fs::canonicalize(room.port()).unwrap();
        device.unplug();
        assert_eq!(next(&mut hears).await, "unplugged");
        assert_eq!(room.record().await.events[0].kind, "unplugged");
        room.until_plugged(false).await;
        until_closed(&path).await;
    }
    let plug = room.intake.counters().plug.snapshot(0).unwrap();
    assert_eq!((plug.unplugs, plug.settings.as_str()), (6, "9600 8N1"));
    assert_eq!(room.intake.counters().last_seen_ms.value(), 0, "our own records are no sign of life of the device");
    room.stop.cancel();
    timeout(LIMIT, task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_leads_to_another_device_now_is_let_go() {
    let mut room = Room::new("serial");
    let mut first = Device::plug_in(&room.port());
    let (mut hears, task, _) = listening(serial(&room.port()), &room);
    room.until_plugged(true).await;
    first.say(b"first");
    assert_eq!(next(&mut hears).await, "first");
    // The other adapter is in this socket now; the first one is still powered, elsewhere.
    fs::remove_file(room.port()).unwrap();
    let mut second = Device::plug_in(&room.port());
    assert_eq!(next(&mut hears).await, "unplugged");
    while room.record().await.events[0].kind != "plugged" {}
    second.say(b"second");
    assert_eq!(next(&mut hears).await, "second");
    room.stop.cancel();
    timeout(LIMIT, task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_another_program_holds_is_taken_when_it_is_free_and_told_meanwhile() {
    let room = Room::new("serial");
    let mut device = Device::plug_in(&room.port());
    let other = File::open(fs::canonicalize(room.port()).unwrap()).unwrap();
    other.try_lock().unwrap();
    let (mut hears, task, _) = listening(serial(&room.port()), &room);
    room.until_plugged(false).await;
    let state = room.intake.counters().plug.snapshot(0).unwrap().state;
    assert!(matches!(&state, PlugState::Missing(cause) if cause.contains("in use by another program")), "{state:?}");
    drop(other);
    room.until_plugged(true).await;
    device.say(b"free");
    assert_eq!(next(&mut hears).await, "free");
    room.stop.cancel();
    timeout(LIMIT, task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_on_the_network_is_dialled_again_whenever_it_hangs_up() {
    let room = Room::new("serial");
    let device = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = Some(device.local_addr().unwrap().to_string().parse().unwrap());
    let (mut hears, task, _) = listening(PlugConfig { connect, ..PlugConfig::default() }, &room);
    for _ in 0..3 {
        let (mut line, _) = timeout(LIMIT, device.accept()).await.unwrap().unwrap();
        line.write_all(b"hello").await.unwrap();
        assert_eq!(next(&mut hears).await, "hello");
        drop(line);
        assert_eq!(next(&mut hears).await, "end");
    }
    room.stop.cancel();
    timeout(LIMIT, task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dials_is_served() {
    let room = Room::new("serial");
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let (mut hears, task, endpoint) = listening(PlugConfig { listen, ..PlugConfig::default() }, &room);
    let mut device = TcpStream::connect(endpoint).await.unwrap();
    device.write_all(b"ENQ").await.unwrap();
    assert_eq!(next(&mut hears).await, "ENQ");
    drop(device);
    assert_eq!(next(&mut hears).await, "end");
    let plug = room.intake.counters().plug.snapshot(0).unwrap();
    assert_eq!((plug.state, plug.last_bytes.as_str()), (PlugState::Listening, "454e51"));
    room.stop.cancel();
    timeout(LIMIT, task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_dials_with_tls_is_served_and_one_without_its_certificate_is_not() {
    let (room, pki) = (Room::new("serial"), Pki::new());
    let (certificate, key) = pki.leaf("server", &["localhost"]);
    let tls = Some(ServerTls { certificate, key, client_ca: Some(pki.ca()), client_certificate: Default::default() });
    let listen = Some("127.0.0.1:0".parse().unwrap());
    let (mut hears, task, endpoint) = listening(PlugConfig { listen, tls, ..PlugConfig::default() }, &room);
    let port = endpoint.rsplit(':').next().unwrap().to_owned();
    let address: HostPort = format!("localhost:{port}").parse().unwrap();
    let mut plain = TcpStream::connect(&endpoint).await.unwrap();
    plain.write_all(b"in clear").await.unwrap();
    let stranger = ClientTls { ca: pki.ca(), certificate: None, key: None, server_name: None }.connector().unwrap();
    if let Ok(mut stranger) = dial(&address, Some(&stranger), LIMIT).await {
        stranger.write_all(b"nobody").await.ok();
    }
    let (certificate, key) = pki.leaf("analyser", &["analyser"]);
    let known = ClientTls { ca: pki.ca(), certificate: Some(certificate), key: Some(key), server_name: None };
    let mut device = dial(&address, Some(&known.connector().unwrap()), LIMIT).await.unwrap();
    device.write_all(b"ENQ").await.unwrap();
    device.flush().await.unwrap();
    assert_eq!(next(&mut hears).await, "ENQ", "and nothing of the others");
    drop(device);
    room.stop.cancel();
    timeout(LIMIT, task).await.unwrap().unwrap();
}

#[test]
fn the_device_is_at_one_place_and_listening_is_safe() {
    let found = |config: PlugConfig| {
        let mut problems = Problems::default();
        config.check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect::<Vec<_>>()
    };
    let none = PlugConfig::default;
    let serial = || serial(Path::new("/dev/serial/by-path/usb-1"));
    let connect = Some("10.0.0.5:4000".parse().unwrap());
    let listen = |text: &str| Some(text.parse().unwrap());
    let anybody = || vec!["10.20.0.0/24".parse().unwrap()];
    assert_eq!(found(none()), [""]);
    assert_eq!(found(serial()), Vec::<String>::new());
    assert_eq!(found(PlugConfig { connect, ..serial() }), ["connect"]);
    assert_eq!(found(PlugConfig { listen: listen("10.20.0.1:4001"), ..none() }), ["listen"]);
    assert!(found(PlugConfig { listen: listen("10.20.0.1:4001"), allow: anybody(), ..none() }).is_empty());
    assert_eq!(found(PlugConfig { allow: anybody(), connections: Some(1), ..serial() }), ["allow", "connections"]);
    assert_eq!(found(PlugConfig { listen: listen("127.0.0.1:1"), connections: Some(0), ..none() }), ["connections"]);
    let wrong = PlugConfig { serial: Some(toml::from_str("port = 'COM1'\nbaud = 1").unwrap()), ..none() };
    assert_eq!(found(wrong), ["serial.port", "serial.baud"]);
}
