//! Orthanc, the archive: C-STORE and storage commitment over DICOM, STOW-RS over DICOMweb, and what it holds over REST.
//!
//! HTTP is on 127.0.0.1 without a password. DICOM listens on every address of the machine: Orthanc knows no other way.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::dicom::ARCHIVE;
use super::ports::{free_port, listens};
use super::process::Process;
use super::tools::system;
use super::wait::{PATIENCE, holds_within};

const DICOMWEB: &str = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so";
/// It sleeps a tenth of a second at places, and loads its plugin first.
const STARTS_WITHIN: Duration = Duration::from_secs(20);
const TRIES: u32 = 5;

/// A DICOM end that Orthanc knows and may call: for storage commitment, and to be sent to.
pub struct Known {
    /// Orthanc's own name for it in the REST interface.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A running Orthanc whose title is [`ARCHIVE`]; ends with the value.
pub struct Orthanc {
    /// The process, for its log and for signals.
    pub process: Process,
    /// Where it takes DICOM.
    pub dicom: SocketAddr,
    /// Where it takes HTTP: REST at `/`, DICOMweb at `/dicom-web/`.
    pub http: SocketAddr,
    config: PathBuf,
}

impl Orthanc {
    /// Starts one with its files in `folder`, which `known` may ask for storage commitment. `more` are entries of orthanc.json
    /// that come on top, or `Value::Null`.
    #[track_caller]
    pub fn start(folder: &Path, known: &[Known], more: &Value) -> Self {
        let config = folder.join("orthanc.json");
        let mut said = String::new();
        for _ in 0..TRIES {
            let (dicom, http) = (free_port(), free_port());
            fs::write(&config, written(folder, dicom, http, known, more).to_string()).unwrap();
            match launch(&config, dicom, http) {
                Ok(started) => return started,
                Err(words) => said = words,
            }
        }
        panic!("Orthanc did not start on any of {TRIES} pairs of ports; it said:\n{said}");
    }

    /// Kills it, as a power cut would, and starts it again on the same ports and files.
    #[track_caller]
    pub fn kill_and_restart(self) -> Self {
        let Self { process, dicom, http, config } = self;
        process.kill();
        launch(&config, dicom.port(), http.port()).unwrap_or_else(|said| panic!("Orthanc did not start again:\n{said}"))
    }

    /// The instances that it holds.
    #[track_caller]
    pub fn count(&self) -> u64 {
        self.json("/statistics")["CountInstances"].as_u64().unwrap()
    }

    /// Orthanc's ids of all instances.
    #[track_caller]
    pub fn instances(&self) -> Vec<String> {
        let list = self.json("/instances");
        list.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// The SOP instance UID and the Part 10 bytes of every instance, sorted.
    #[track_caller]
    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let read = |id: &String| {
            let tags = self.json(&format!("/instances/{id}/simplified-tags"));
            let uid = tags["SOPInstanceUID"].as_str().unwrap().to_owned();
            (uid, self.file(id))
        };
        let mut objects: Vec<_> = self.instances().iter().map(read).collect();
        objects.sort();
        objects
    }

    /// The bytes of an instance as it is stored (`/instances/{id}/file`).
    #[track_caller]
    pub fn file(&self, id: &str) -> Vec<u8> {
        self.get(&format!("/instances/{id}/file"))
    }

    /// A resource of the REST interface.
    #[track_caller]
    pub fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.get(path)).unwrap()
    }

    /// The body of a resource; fails the test when the status is not 200.
    #[track_caller]
    pub fn get(&self, path: &str) -> Vec<u8> {
        let (status, body) = self.ask("GET", path, b"");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        body
    }

    /// A request and its answer: status and body.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        // HTTP/1.0: the answer is neither chunked nor compressed, and ends with the connection.
        let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an HTTP answer");
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(end + 4))
    }
}

fn launch(config: &Path, dicom: u16, http: u16) -> Result<Orthanc, String> {
    let mut process = Process::start(system("Orthanc").env("TCP_NODELAY", "1").arg("--verbose").arg(config));
    let mut gone = false;
    let up = holds_within(STARTS_WITHIN, || {
        gone = process.has_ended();
        gone || (listens(dicom) && listens(http))
    });
    if gone || !up {
        return Err(process.said());
    }
    let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    Ok(Orthanc { process, dicom: address(dicom), http: address(http), config: config.to_owned() })
}

fn written(folder: &Path, dicom: u16, http: u16, known: &[Known], more: &Value) -> Value {
    let entry = |known: &Known| {
        let (host, port) = (known.address.ip().to_string(), known.address.port());
        (known.name.to_owned(), json!([known.title, host, port]))
    };
    let modalities: serde_json::Map<String, Value> = known.iter().map(entry).collect();
    let mut config = json!({
        "Name": ARCHIVE, "StorageDirectory": folder.join("orthanc"), "IndexDirectory": folder.join("orthanc"),
        "HttpServerEnabled": true, "HttpPort": http, "RemoteAccessAllowed": false, "AuthenticationEnabled": false,
        "DicomServerEnabled": true, "DicomAet": ARCHIVE, "DicomPort": dicom, "DicomAlwaysAllowStore": true,
        "UnknownSopClassAccepted": true, "AcceptedTransferSyntaxes": ["1.*"], "DicomModalities": modalities,
        "DicomAssociationCloseDelay": 0, "DicomThreadsCount": 8, "StableAge": 1, "OverwriteInstances": false,
        "SaveJobs": false, "ConcurrentJobs": 2, "StorageCompression": false, "SyncStorageArea": true,
        "HttpThreadsCount": 8, "HttpCompressionEnabled": false, "Plugins": [DICOMWEB],
        "DicomWeb": {"Enable": true, "Root": "/dicom-web/", "EnableWado": false},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}
