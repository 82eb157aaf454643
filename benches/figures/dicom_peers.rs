//! DICOM ends that are not ours: dcmtk's `storescu` as the load, `storescp` and Orthanc to compare with and to send to.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::free_address;

/// Orthanc loads its plugins first.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A peer that runs; ends with the value.
pub struct Peer {
    child: Child,
    /// Where it takes DICOM.
    pub address: SocketAddr,
    /// Where its objects go.
    pub store: PathBuf,
}

/// `storescp` as it comes, with a process for each association. `stock` leaves Nagle's algorithm on.
pub fn storescp(folder: &Path, stock: bool, options: &[&str]) -> Peer {
    let (address, store) = fresh(folder);
    let mut command = Command::new("storescp");
    nodelay(&mut command, stock).args(["-aet", "ARCHIVE", "--fork"]).args(options);
    start(command.arg("-od").arg(&store).arg(address.port().to_string()), address, store)
}

/// `storescp` that writes what comes, whatever it is: where the systems under test send to.
pub fn sink(folder: &Path) -> Peer {
    storescp(folder, false, &["+B", "+xa", "-pm"])
}

/// Orthanc that stores, and sends each object on to `up` as it comes.
pub fn orthanc(folder: &Path, up: SocketAddr) -> Peer {
    let (address, store) = fresh(folder);
    let script = folder.join("route.lua");
    let route = "function OnStoredInstance(id, tags, metadata, origin)\n\
                 if origin[\"RequestOrigin\"] ~= \"Lua\" then SendToModality(id, \"up\") end\nend\n";
    fs::write(&script, route).unwrap();
    let config = serde_json::json!({
        "Name": "BENCH", "StorageDirectory": store, "IndexDirectory": store, "HttpServerEnabled": false,
        "DicomAet": "WARDGATE", "DicomPort": address.port(), "DicomAlwaysAllowStore": true, "SyncStorageArea": true,
        "DicomModalities": {"up": ["ARCHIVE", up.ip().to_string(), up.port()]}, "OverwriteInstances": false,
        "LuaScripts": [script], "Plugins": [], "SaveJobs": true, "StorageAccessOnFind": "Always",
    });
    let path = folder.join("orthanc.json");
    fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new("Orthanc");
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
    start(nodelay(&mut command, false).arg(path), address, store)
}

fn fresh(folder: &Path) -> (SocketAddr, PathBuf) {
    let _absent = fs::remove_dir_all(folder);
    let store = folder.join("store");
    fs::create_dir_all(&store).unwrap();
    (free_address(), store)
}

fn nodelay(command: &mut Command, stock: bool) -> &mut Command {
    if stock { command.env_remove("TCP_NODELAY") } else { command.env("TCP_NODELAY", "1") }
}

fn start(command: &mut Command, address: SocketAddr, store: PathBuf) -> Peer {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("dcmtk and Orthanc are installed by tests/setup");
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(child.try_wait().unwrap().is_none() && began.elapsed() < STARTS_WITHIN, "{command:?} did not start");
        std::thread::sleep(Duration::from_millis(2));
    }
    Peer { child, address, store }
}

impl Peer {
    /// Waits until it has written `count` objects since it was started.
    pub fn wait_for(&self, count: usize, limit: Duration) {
        let began = Instant::now();
        loop {
            let have = fs::read_dir(&self.store).unwrap().count();
            if have >= count {
                return;
            }
            assert!(began.elapsed() < limit, "only {have} of {count} objects came within {limit:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Sends what is in the folders, an association for each, all at once; how long that took, in seconds. Every object must be
/// answered with success.
pub fn send(folders: &[PathBuf], to: SocketAddr, stock: bool) -> f64 {
    let count: usize = folders.iter().map(|folder| fs::read_dir(folder).unwrap().count()).sum();
    let began = Instant::now();
    let senders: Vec<Child> = folders.iter().map(|folder| storescu(folder, to, stock)).collect();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let waiting: Vec<_> = senders.into_iter().map(|sender| scope.spawn(|| sender.wait_with_output())).collect();
        waiting.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    let said: String = outputs
        .iter()
        .map(|output| String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned())
        .collect();
    let good = said.matches("Received Store Response (Success)").count();
    let tail: Vec<&str> = said.lines().rev().take(8).collect();
    assert_eq!(good, count, "storescu said at last: {tail:?}");
    seconds
}

fn storescu(folder: &Path, to: SocketAddr, stock: bool) -> Child {
    let mut command = Command::new("storescu");
    nodelay(&mut command, stock).args(["-v", "-aet", "MODALITY", "-aec", "WARDGATE", "+sd"]);
    command.arg(to.ip().to_string()).arg(to.port().to_string()).arg(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
