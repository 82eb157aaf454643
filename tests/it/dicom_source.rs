//! DICOM as a department has it: real modalities send to the real executable, and what they were told is true.
//!
//! What arrives is compared by the hash of its data set; the archive behind the box is a folder.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::gateway::route;
use crate::support::dicom_files::hashes_in;
use crate::support::gateway::Gateway;
use crate::support::wait::eventually;

mod answers;
mod associations;
pub mod device;
mod durability;
mod find;
mod hostile;
mod peers;
mod quiet;
mod roles;
mod slow;

/// The source `ct` with these further lines, and the folder `out` behind it.
pub fn ct_to_folder(folder: &Path, lines: &str) -> String {
    let out = folder.join("out");
    fs::create_dir_all(&out).unwrap();
    let source = format!("[source.ct.dicom]\nlisten = \"127.0.0.1:0\"\nae-title = \"WARDGATE\"\n{lines}\n");
    let upstream = format!("[upstream.archive.directory]\npath = \"{}\"\nunsealed = true\n", out.display());
    source + &upstream + &route("ct", &["archive"])
}

/// Starts the service with [`ct_to_folder`].
#[track_caller]
pub fn start(folder: &Path, lines: &str) -> Gateway {
    Gateway::start(folder, &ct_to_folder(folder, lines))
}

/// Waits until exactly these data sets are in the folder behind the box.
#[track_caller]
pub fn arrived(gateway: &Gateway, folder: &Path, hashes: &[String]) {
    eventually("everything that waits is delivered", || gateway.backlog() == 0);
    assert_eq!(hashes_in(&folder.join("out")), hashes);
}

/// The status of the source.
#[track_caller]
pub fn ct(gateway: &Gateway) -> Value {
    gateway.status()["sources"]["ct"].clone()
}
