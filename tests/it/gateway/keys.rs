//! The spool's key: made once, never again, and a wrong one harms nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::monitors_to_engine;
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, message};
use crate::support::process::{Ended, run, wardgate};
use crate::support::wait::eventually;

/// All files of the spool with their bytes, but for the lock's.
fn contents(spool: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![spool.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with("lock") => {}
                false => drop(found.insert(path.display().to_string(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

fn start(folder: &Path) -> Ended {
    run(wardgate().arg("run").arg("--config").arg(folder.join("gateway.toml")))
}

#[test]
fn a_key_is_made_for_an_empty_spool_for_its_owner_alone_and_said_aloud() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Engine::up();
    let mut gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    let key = folder.path().join("spool.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    gateway.process.line_with("a new spool key was made");
    let before = fs::read(&key).unwrap();
    gateway.stop();
    Gateway::again(folder.path()).stop();
    assert_eq!(fs::read(&key).unwrap(), before);
}

#[test]
fn a_wrong_or_missing_key_ends_with_78_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Engine::down();
    let gateway = Gateway::start(folder.path(), &monitors_to_engine(receiver.port));
    assert_eq!(Device::connect(gateway.endpoint("monitors")).send(&message("1")), "AA");
    gateway.stop();
    let (spool, key) = (folder.path().join("spool"), folder.path().join("spool.key"));
    let (before, right) = (contents(&spool), fs::read(&key).unwrap());
    assert!(before.len() > 2, "{:?}", before.keys());

    let wrong = String::from_utf8(right.clone()).unwrap();
    let turned: String = wrong.trim().chars().rev().collect();
    assert_ne!(turned, wrong.trim());
    for (content, words) in [(Some(turned.as_str()), "key"), (Some("no key at all"), "key"), (None, "spool.key")] {
        match content {
            Some(text) => fs::write(&key, text).unwrap(),
            None => fs::remove_file(&key).unwrap(),
        }
        let ended = start(folder.path());
        assert_eq!(ended.status.code(), Some(78), "{content:?}: {}", ended.said);
        assert!(ended.said.contains(words), "{content:?}: {}", ended.said);
        let checked = run(wardgate().arg("check").arg(folder.path().join("gateway.toml")));
        assert_eq!(checked.status.code(), Some(78), "check is of another opinion than run: {}", checked.said);
        assert!(contents(&spool) == before, "{content:?} changed the spool");
        assert_eq!(key.exists(), content.is_some(), "no key is made where there is data");
    }

    fs::write(&key, right).unwrap();
    receiver.restore();
    let gateway = Gateway::again(folder.path());
    eventually("the message of the first run arrives", || receiver.has(&message("1")));
    gateway.stop();
}
