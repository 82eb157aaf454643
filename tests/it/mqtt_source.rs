//! MQTT sensors publish to the real executable: what was acknowledged arrives behind the box, byte for byte, and strangers get nowhere.
//!
//! Behind the box is a folder; each record in it is read as a consumer would.

use std::fs;
use std::path::Path;

use serde_json::Value;
use wardgate::telemetry::record::Record;

use crate::gateway::route;
use crate::support::gateway::Gateway;
use crate::support::wait::eventually;

mod access;
mod answers;
mod decoding;
mod durability;
mod hostile;
mod peers;

/// A client that anybody may be, for topics below `ward3`.
pub const ANYBODY: &str = "[[source.sensors.mqtt.client]]\nid = \"spo2\"\npublish = [\"ward3/+/spo2\"]\n";

/// The source `sensors` with these lines and clients, and the folder `out` behind it.
pub fn sensors_to_folder(folder: &Path, lines: &str, clients: &str) -> String {
    let out = folder.join("out");
    fs::create_dir_all(&out).unwrap();
    let source = format!("[source.sensors.mqtt]\nlisten = \"127.0.0.1:0\"\n{lines}\n{clients}");
    let upstream = format!("[upstream.archive.directory]\npath = \"{}\"\nunsealed = true\n", out.display());
    source + &upstream + &route("sensors", &["archive"])
}

/// Starts the service with [`sensors_to_folder`].
#[track_caller]
pub fn start(folder: &Path, lines: &str, clients: &str) -> Gateway {
    Gateway::start(folder, &sensors_to_folder(folder, lines, clients))
}

/// The records that arrived, in the order of their reception, once nothing waits any more.
#[track_caller]
pub fn records(gateway: &Gateway, folder: &Path) -> Vec<Record> {
    eventually("everything that waits is delivered", || gateway.backlog() == 0);
    let files = fs::read_dir(folder.join("out")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| !path.ends_with(".mounted"));
    let read = |path| serde_json::from_slice::<Record>(&fs::read(path).unwrap()).unwrap();
    let mut records: Vec<Record> = files.map(read).collect();
    records.sort_by_key(|record| (record.received.utc_us, record.seq));
    records
}

/// The payload of a record.
pub fn payload(record: &Record) -> Vec<u8> {
    record.raw.as_ref().and_then(|raw| raw.bytes()).unwrap_or_default()
}

/// What the protocol said, by name.
pub fn about<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    record.about.iter().find(|named| named.name == name).map(|named| named.value.as_str())
}

/// The status of the source.
#[track_caller]
pub fn sensors(gateway: &Gateway) -> Value {
    gateway.status()["sources"]["sensors"].clone()
}
