//! What is measured: wardgate as an operator runs it, or the floor. Each in a fresh folder, ended by its own process id.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::free_address;
use crate::serial::PORTS;

/// A start that takes longer is a failure.
const STARTS_WITHIN: Duration = Duration::from_secs(120);
/// One that writes nothing for so long has its files ready.
const RESTS_FOR: Duration = Duration::from_secs(2);
/// A stop that takes longer is a failure.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// Where wardgate sends to.
#[derive(Clone, Copy)]
pub enum Upstream {
    /// An MLLP receiver without TLS.
    Mllp(SocketAddr),
    /// An MQTT broker without TLS.
    Mqtt(SocketAddr),
    /// A DICOM archive without TLS, called `ARCHIVE`; the source is then DICOM too, called `WARDGATE`.
    Dicom(SocketAddr),
    /// Nowhere: nobody listens. The source is MQTT, for the clients `load-0` and on, and for the user `idle`.
    Away,
    /// The folder `results`; the source is then ASTM.
    Folder,
    /// An MQTT broker without TLS; the sources are then serial ports, too, in the folder `serial-ports` beside this one.
    SerialTo(SocketAddr),
}

/// The password of the user `idle`.
pub const IDLE_PASSWORD: &str = "idle";

/// A running process under test.
pub struct Subject {
    child: Child,
    /// Where it takes MLLP, DICOM or ASTM.
    pub address: SocketAddr,
    /// From its start until it accepted a connection, in seconds.
    pub started_in: f64,
    folder: PathBuf,
}

/// The one place that knows the configuration's keys.
fn config(folder: &Path, address: SocketAddr, upstream: Upstream, quota: &str) -> String {
    let (log, source) = match upstream {
        Upstream::Dicom(_) => ("imaging", "dicom]\nae-title = \"WARDGATE\""),
        Upstream::Mllp(_) | Upstream::Mqtt(_) => ("clinical", "mllp]"),
        Upstream::Away => ("telemetry", "mqtt]\nmax-connections = 4096"),
        Upstream::Folder => ("clinical", "astm]"),
        Upstream::SerialTo(_) => ("telemetry", "mllp]"),
    };
    let (ports, from) = ports(folder, upstream);
    let upstream = match upstream {
        Upstream::Mllp(to) => format!("[upstream.up.mllp]\naddress = \"{to}\"\nplain = true\n"),
        Upstream::Mqtt(to) | Upstream::SerialTo(to) => {
            format!("[upstream.up.mqtt]\naddress = \"{to}\"\nplain = true\n")
        }
        Upstream::Dicom(to) => {
            format!("[upstream.up.dicom]\naddress = \"{to}\"\ncalled = \"ARCHIVE\"\nplain = true\n")
        }
        Upstream::Away => {
            format!("{}[upstream.up.mqtt]\naddress = \"{}\"\nplain = true\n", mqtt_clients(), free_address())
        }
        Upstream::Folder => {
            format!("[upstream.up.directory]\npath = \"{}/results\"\nunsealed = true\n", folder.display())
        }
    };
    let folder = folder.display();
    format!(
        r#"[gateway]
name = "bench"
site = "bench"
control = {{ socket = "{folder}/control.sock" }}

[spool]
path = "{folder}/spool"
key = {{ file = "{folder}/spool.key" }}

[spool.{log}]
quota = "{quota}"

[source.load.{source}
listen = "{address}"

{ports}{upstream}
[[route]]
from = {from:?}
to = ["up"]
"#
    )
}

/// The sections of the serial sources, and the names of all sources.
fn ports(folder: &Path, upstream: Upstream) -> (String, Vec<String>) {
    let mut from = vec!["load".to_owned()];
    let mut sections = String::new();
    if let Upstream::SerialTo(_) = upstream {
        let ports = folder.with_file_name("serial-ports");
        for number in 1..=PORTS {
            from.push(format!("monitor-{number}"));
            sections += &format!(
                "[source.monitor-{number}.serial]\nserial = {{ port = \"{}/port-{number}\", baud = 9600 }}\nprofile = \"masimo-ascii-1\"\n\n",
                ports.display()
            );
        }
    }
    (sections, from)
}

fn mqtt_clients() -> String {
    let mut command = Command::new(executable());
    command.args(["keys", "password"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(IDLE_PASSWORD.as_bytes()).unwrap();
    let hash = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let client = "[[source.load.mqtt.client]]\npublish = [\"ward/+/spo2\"]\n";
    let mut text: String = (0..16).map(|number| format!("{client}id = \"load-{number}\"\n")).collect();
    text += &format!("{client}user = \"idle\"\npassword = \"{}\"\nmax-connections = 4096\n", hash.trim());
    text
}

impl Subject {
    /// Starts wardgate on an empty spool in `folder`.
    pub fn wardgate(folder: &Path, upstream: Upstream) -> Self {
        Self::wardgate_within(folder, upstream, "6GiB")
    }

    /// The same, with this quota.
    pub fn wardgate_within(folder: &Path, upstream: Upstream, quota: &str) -> Self {
        let _absent = fs::remove_dir_all(folder);
        fs::create_dir_all(folder.join("results")).unwrap();
        let address = free_address();
        fs::write(folder.join("gateway.toml"), config(folder, address, upstream, quota)).unwrap();
        Self::start(wardgate(folder), address, folder)
    }

    /// Starts the floor with an empty file in `folder`.
    pub fn floor(folder: &Path, mode: &str, forward: Option<SocketAddr>) -> Self {
        let _absent = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).unwrap();
        let address = free_address();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["floor", mode, &address.to_string()]).arg(folder.join("log"));
        command.args(forward.map(|address| address.to_string()));
        Self::start(command, address, folder)
    }

    /// Starts the floor for DICOM, which keeps its files in `folder`.
    pub fn dicom_floor(folder: &Path) -> Self {
        let _absent = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).unwrap();
        let address = free_address();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["floor", "dicom", &address.to_string()]).arg(folder);
        Self::start(command, address, folder)
    }

    /// Starts wardgate again on what it left behind.
    pub fn again(self) -> Self {
        let (address, folder) = (self.address, self.folder.clone());
        Self::start(wardgate(&folder), address, &folder)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Syncs of all logs since its start, by its own account.
    pub fn syncs(&self) -> u64 {
        self.status()["logs"].as_array().unwrap().iter().map(|log| log["syncs"].as_u64().unwrap()).sum()
    }

    /// Waits until it has made its files ready, as it has on every day but the first.
    pub fn rested(self) -> Self {
        let written = || -> u64 {
            self.status()["logs"].as_array().unwrap().iter().map(|log| log["written"].as_u64().unwrap()).sum()
        };
        let (began, mut before) = (Instant::now(), 0);
        loop {
            std::thread::sleep(RESTS_FOR);
            let now = written();
            if now > 0 && now == before {
                return self;
            }
            assert!(began.elapsed() < STARTS_WITHIN, "it writes on and on, though nothing comes");
            before = now;
        }
    }

    /// Messages that all sources stored since its start, by its own account.
    pub fn stored(&self) -> u64 {
        self.status()["sources"].as_object().unwrap().values().map(|source| source["stored"].as_u64().unwrap()).sum()
    }

    /// `wardgate status --json`.
    fn status(&self) -> serde_json::Value {
        let mut command = Command::new(executable());
        command.args(["status", "--json", "--socket"]).arg(self.folder.join("control.sock"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) -> Self {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let asked = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(asked.elapsed() < STOPS_WITHIN, "it did not stop; see {}", self.folder.join("said").display());
            std::thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// Kills it, as a power cut would.
    pub fn kill(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self
    }

    fn start(mut command: Command, address: SocketAddr, folder: &Path) -> Self {
        let said = fs::File::options().create(true).append(true).open(folder.join("said")).unwrap();
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        while TcpStream::connect(address).is_err() {
            let alive = child.try_wait().unwrap().is_none() && began.elapsed() < STARTS_WITHIN;
            assert!(alive, "it does not listen; it said:\n{}", fs::read_to_string(folder.join("said")).unwrap());
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { child, address, started_in: began.elapsed().as_secs_f64(), folder: folder.to_owned() }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

fn wardgate(folder: &Path) -> Command {
    let mut command = Command::new(executable());
    command.current_dir(folder).args(["run", "--config", "gateway.toml"]).env("RUST_LOG", "warn");
    command
}

/// The executable beside us, built by the same command: `target/release/wardgate` for `target/release/examples/figures`.
fn executable() -> PathBuf {
    let ours = std::env::current_exe().unwrap();
    ours.ancestors().nth(2).unwrap().join("wardgate")
}
