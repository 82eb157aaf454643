//! Keys over the life of a box: by the day, sealed for recovery, destroyed; and what is left when the box is dead.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::sim::SimDisk;
use super::tests::{body, commit, config, name, open};
use super::{
    Class, CommitError, Disk, KeyError, OpenError, RECOVERY_FILE, Rescue, Secret, Sight, Spool, SpoolConfig, keeper,
    parse_root,
};

const DAY_MS: u64 = 86_400_000;

/// An age identity.
struct Somebody(age::x25519::Identity);

impl Somebody {
    fn open_whole(&self, sealed: &[u8]) -> Result<Vec<u8>, age::DecryptError> {
        age::decrypt(&self.0, sealed)
    }
}

fn somebody() -> (Somebody, String) {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    (Somebody(identity), recipient)
}

/// Every file below a folder: its bytes and when it was changed.
fn contents(folder: &Path) -> BTreeMap<std::path::PathBuf, (Vec<u8>, SystemTime)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(contents(&path)),
            false => {
                let changed = path.metadata().unwrap().modified().unwrap();
                all.insert(path.clone(), (std::fs::read(&path).unwrap(), changed));
            }
        }
    }
    all
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => {
                std::fs::create_dir(&target).unwrap();
                copy(&path, &target);
            }
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_dead_box_is_read_with_the_recovery_identity_and_its_disk_stays_as_it_is() {
    let (live, dead) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (hospital, recipient) = somebody();
    let settings = SpoolConfig { recovery: vec![recipient], ..config() };
    let spool = Spool::open(Arc::new(Disk::open(live.path()).unwrap()), Secret::random(), &settings).unwrap();
    let mut sent = Vec::new();
    for (number, length) in [(1, 40), (2, 700_000), (3, 3_000)] {
        let body = body(number, length);
        sent.push((commit(&spool, Class::Clinical, &["engine"], &body).await.unwrap(), body));
    }
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let entry = lane.next().await;
    lane.bury(entry.place, "AR", 1).await.unwrap();
    lane.advance(entry.place);
    // As the power goes: nothing was closed.
    copy(live.path(), dead.path());
    spool.close();
    let before = contents(dead.path());
    let root = hospital.open_whole(&before[&dead.path().join(RECOVERY_FILE)].0).unwrap();
    let mut found = Vec::new();
    let rescue = Rescue::open(dead.path(), parse_root(&root).unwrap()).unwrap();
    let see = &mut |sight| {
        match sight {
            Sight::Message(seen) => found.push(seen),
            Sight::Damage(damage) => panic!("{damage:?}"),
            Sight::Segments { .. } => {}
        }
        ControlFlow::Continue(())
    };
    rescue.survey(see).unwrap();
    let mut rescued = Vec::new();
    for seen in &found {
        rescued.push((seen.envelope.id, seen.envelope.body.collect().await.unwrap().to_vec()));
    }
    assert!(rescued == sent, "{} messages", rescued.len());
    let dead_for: Vec<usize> = found.iter().map(|seen| seen.dead.len()).collect();
    assert_eq!(dead_for, [1, 0, 0]);
    assert!(contents(dead.path()) == before, "the disk was changed");
}

#[test]
fn the_sealed_root_key_follows_the_recipients() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = || std::fs::read(folder.path().join(RECOVERY_FILE)).ok();
    let (first, one) = somebody();
    let (second, two) = somebody();
    let root = Secret::random();
    let start = |recovery: &[&String]| {
        let settings = SpoolConfig { recovery: recovery.iter().map(ToString::to_string).collect(), ..config() };
        let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), root.clone(), &settings).unwrap();
        spool.close();
    };
    start(&[&one]);
    let for_one = sealed().unwrap();
    assert_eq!(parse_root(&first.open_whole(&for_one).unwrap()).unwrap().bytes(), root.bytes());
    start(&[&one]);
    assert_eq!(sealed().unwrap(), for_one, "the same recipients: nothing is written");
    start(&[&two]);
    assert!(second.open_whole(&sealed().unwrap()).is_ok() && first.open_whole(&sealed().unwrap()).is_err());
    start(&[&one, &two]);
    assert!(second.open_whole(&sealed().unwrap()).is_ok() && first.open_whole(&sealed().unwrap()).is_ok());
    start(&[]);
    assert_eq!(sealed(), None, "nobody is named any more");
}

#[tokio::test]
async fn a_new_epoch_begins_with_each_day_in_service() {
    let spool = open(&SimDisk::new(), 8);
    commit(&spool, Class::Clinical, &["engine"], b"one").await.unwrap();
    let epochs = |spool: &Spool| -> Vec<u32> {
        let [clinical, ..] = &spool.inner.logs;
        let state = clinical.log.state();
        state.segments.values().map(|held| held.segment.epoch).collect()
    };
    let watched = spool.watched();
    keeper::rotate_in_time(&watched);
    commit(&spool, Class::Clinical, &["engine"], b"two").await.unwrap();
    assert_eq!(epochs(&spool), [1]);
    spool.inner.uptime.at_least(DAY_MS + 1);
    keeper::rotate_in_time(&watched);
    commit(&spool, Class::Clinical, &["engine"], b"three").await.unwrap();
    assert_eq!(epochs(&spool), [1, 2]);
}

#[tokio::test]
async fn after_the_keys_are_destroyed_nothing_is_read_or_stored_and_no_key_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (_, recipient) = somebody();
    let settings = SpoolConfig { recovery: vec![recipient], ..config() };
    let root = Secret::random();
    let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), root.clone(), &settings).unwrap();
    commit(&spool, Class::Clinical, &["engine"], b"one").await.unwrap();
    spool.destroy().unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.is_dir() || path.ends_with("keys-destroyed")), "{left:?}");
    assert_eq!(commit(&spool, Class::Clinical, &["engine"], b"two").await, Err(CommitError::Failed));
    let mut seen = 0;
    let see = &mut |sight| {
        seen += u32::from(matches!(sight, Sight::Message(_)));
        ControlFlow::Continue(())
    };
    spool.survey(see).unwrap();
    assert_eq!(seen, 0);
    assert!(spool.rotate().is_err() && spool.is_destroyed() && !spool.alarms().is_empty());
    let again = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), root, &settings);
    assert!(matches!(again, Err(OpenError::Key(KeyError::Destroyed(_)))));
}
