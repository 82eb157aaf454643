//! Directory: files that the `age` command opens, and a file system that is full.

use std::fs;
use std::path::{Path, PathBuf};

use wardgate::upstream::directory::{Directory, DirectoryConfig};
use wardgate::upstream::{SendError, Upstream};

use super::{envelope, identity, message, section};
use crate::support::process::{run, succeeds};
use crate::support::tools::system;

/// An identity made by `age-keygen`, and its recipient.
pub(super) fn age_identity(folder: &Path, name: &str) -> (PathBuf, String) {
    let file = folder.join(name);
    succeeds(system("age-keygen").arg("-o").arg(&file));
    let recipient = succeeds(system("age-keygen").arg("-y").arg(&file)).trim().to_owned();
    (file, recipient)
}

async fn connect(folder: &Path, more: &str) -> Directory {
    let config: DirectoryConfig = section(&format!("path = '{}'\n{more}", folder.display()));
    Directory::connect(&config, &identity()).await.unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn the_age_command_opens_what_was_sealed_with_the_identity_of_any_recipient() {
    let (keys, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ((one, to_one), (two, to_two)) = (age_identity(keys.path(), "one"), age_identity(keys.path(), "two"));
    let (stranger, _) = age_identity(keys.path(), "stranger");
    let directory = connect(folder.path(), &format!("seal-to = ['{to_one}', '{to_two}']")).await;
    for body in [message("1", "|"), message("2", "|") + &"OBX|2|TX|||text\r".repeat(300_000)] {
        directory.send(&envelope("1", body.clone())).await.unwrap().receipt().await.unwrap();
        let sealed = files(folder.path()).pop().unwrap();
        assert!(sealed.to_str().unwrap().ends_with(".hl7.age"), "{}", sealed.display());
        for identity in [&one, &two] {
            let opened = keys.path().join("opened");
            succeeds(system("age").arg("-d").arg("-i").arg(identity).arg("-o").arg(&opened).arg(&sealed));
            assert!(fs::read(&opened).unwrap() == body.as_bytes());
        }
        let told = run(system("age").arg("-d").arg("-i").arg(&stranger).arg(&sealed));
        assert!(!told.status.success() && !told.said.contains("Paula"), "{}", told.said);
    }
}

#[tokio::test]
async fn files_of_many_messages_are_whole_and_nothing_else_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let directory = connect(folder.path(), "unsealed = true").await;
    let mut deliveries = Vec::new();
    for number in 0..40_u8 {
        let mut envelope = envelope("1", message(&number.to_string(), "|"));
        envelope.id.0[15] = number;
        deliveries.push(directory.send(&envelope).await.unwrap());
    }
    for delivery in &mut deliveries {
        delivery.receipt().await.unwrap();
    }
    let files = files(folder.path());
    assert_eq!(files.len(), 40);
    assert!(files.iter().all(|file| fs::read_to_string(file).unwrap().ends_with("/min\r")));
}

/// A file system of one mebibyte; needs the right to mount, which root in a container may not have.
struct Small(PathBuf);

impl Small {
    fn mount(folder: &Path) -> Option<Self> {
        let mounted = run(system("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(folder));
        mounted.status.success().then(|| Self(folder.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run(system("umount").arg(&self.0));
    }
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Small::mount(folder.path());
    assert!(mounted.is_some(), "the test must be allowed to mount a tmpfs: run it as root");
    let directory = connect(folder.path(), "unsealed = true").await;
    let ballast = folder.path().join("ballast");
    fs::write(&ballast, vec![0; 900 << 10]).unwrap();
    let large = envelope("1", message("1", "|") + &"OBX|2|TX|||text\r".repeat(20_000));
    let error = directory.send(&large).await.unwrap().receipt().await.unwrap_err();
    assert!(matches!(&error, SendError::Busy { cause, .. } if cause.contains("is full")), "{error}");
    assert_eq!(files(folder.path()), std::slice::from_ref(&ballast), "half a file is not left behind");
    fs::remove_file(&ballast).unwrap();
    directory.send(&large).await.unwrap().receipt().await.unwrap();
}
