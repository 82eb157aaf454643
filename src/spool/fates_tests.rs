//! What a device is told of its instances: never that one was delivered which was not.

use redb::{Database, ReadableDatabase, backends::InMemoryBackend};

use super::fates::{self, CLASS, DECIDED_MAX, Fate, Known, Sightings};
use super::index_file::Owner;
use super::record::Discard;
use super::sim::SimDisk;
use super::space_tests::lose_groups;
use super::tests::{body, name, open, waiting};
use super::{CommitError, Committed, Lane, Place, ReplayOrder, Spool, compact};
use crate::envelope::{Flags, MessageId, Meta};

async fn send(spool: &Spool, instance: &str, body: &[u8], targets: &[&str]) {
    let stored = commit(spool, instance, body, targets).await;
    assert!(matches!(stored, Ok(Committed::Stored(_) | Committed::Differing(_))), "{instance}");
}

async fn commit(spool: &Spool, instance: &str, body: &[u8], targets: &[&str]) -> Result<Committed, CommitError> {
    let source = name("ct");
    let mut draft = spool.begin(CLASS, &source);
    draft.write(body).await.unwrap();
    let meta = Meta {
        source,
        protocol: "dicom".into(),
        content_type: "application/dicom".into(),
        control_id: instance.as_bytes().to_vec(),
        targets: targets.iter().map(|target| name(target)).collect(),
        flags: Flags::default(),
        received: spool.now(),
        tokens: Vec::new(),
    };
    draft.commit(meta).await
}

fn fates(spool: &Spool, instances: &[&str]) -> Vec<Fate> {
    let ids: Vec<&[u8]> = instances.iter().map(|id| id.as_bytes()).collect();
    let standing = spool.standing(&name("ct"));
    let traces = spool.trace(&name("ct"), &ids).unwrap();
    traces.iter().map(|trace| standing.fate(trace.as_ref())).collect()
}

fn lane(spool: &Spool, upstream: &str) -> Lane {
    spool.lane(CLASS, &name("ct"), &name(upstream))
}

async fn refuse(lane: &mut Lane) {
    let entry = lane.next().await;
    lane.bury(entry.place, "refused", 1).await.unwrap();
    lane.advance(entry.place);
}

async fn deliver(lane: &mut Lane, count: usize) {
    for _ in 0..count {
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
}

#[tokio::test]
async fn an_instance_is_delivered_when_every_upstream_of_it_took_it_and_unknown_when_it_never_came() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    send(&spool, "1.2.1", &body(1, 900_000), &["archive", "cloud"]).await;
    send(&spool, "1.2.2", &body(2, 900), &["archive"]).await;
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), [Fate::Underway, Fate::Underway, Fate::Unknown]);
    let (mut archive, mut cloud) = (lane(&spool, "archive"), lane(&spool, "cloud"));
    deliver(&mut archive, 1).await;
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2"]), [Fate::Underway, Fate::Underway]);
    deliver(&mut archive, 1).await;
    deliver(&mut cloud, 1).await;
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2"]), [Fate::Delivered, Fate::Delivered]);
    // Another source's instance of the same name is another instance.
    assert!(spool.trace(&name("mr"), &[b"1.2.1"]).unwrap()[0].is_none());
}

#[tokio::test]
async fn what_was_refused_or_discarded_has_failed_and_what_was_put_back_is_underway_again() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    for (number, instance) in (1..).zip(["1.2.1", "1.2.2", "1.2.3"]) {
        send(&spool, instance, &body(number, 500), &["archive"]).await;
    }
    let mut archive = lane(&spool, "archive");
    for _ in 0..3 {
        let entry = archive.next().await;
        archive.bury(entry.place, "refused", 1).await.unwrap();
        archive.advance(entry.place);
    }
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), [Fate::Failed; 3]);
    let mut dead = spool.dead();
    dead.sort_by_key(|dead| dead.at);
    spool.discard(&dead[0..1], None).await.unwrap();
    spool.retry(&dead[1..2], None).await.unwrap();
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), [Fate::Failed, Fate::Underway, Fate::Failed]);
    deliver(&mut archive, 1).await;
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), [Fate::Failed, Fate::Delivered, Fate::Failed]);
}

#[tokio::test]
async fn what_a_person_discarded_is_stored_when_it_is_sent_again_also_after_a_restart_and_what_is_tried_again_is_not() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let mut archive = lane(&spool, "archive");
    for (number, instance) in (1..).zip(["1.2.1", "1.2.2", "1.2.3"]) {
        send(&spool, instance, &body(number, 500), &["archive"]).await;
        refuse(&mut archive).await;
    }
    let mut dead = spool.dead();
    dead.sort_by_key(|dead| dead.at);
    spool.discard(&dead[..2], None).await.unwrap();
    spool.retry(&dead[2..], None).await.unwrap();
    send(&spool, "1.2.1", &body(1, 500), &["archive"]).await;
    assert!(matches!(commit(&spool, "1.2.3", &body(3, 500), &["archive"]).await, Ok(Committed::Repeat(_))));
    spool.close();
    let spool = open(&disk.after_kill(), 8);
    send(&spool, "1.2.2", &body(2, 500), &["archive"]).await;
    for (number, instance) in [(1, "1.2.1"), (3, "1.2.3")] {
        let again = commit(&spool, instance, &body(number, 500), &["archive"]).await;
        assert!(matches!(again, Ok(Committed::Repeat(_))), "{instance} is stored or tried again already");
    }
    assert_eq!(
        waiting(&spool, &mut lane(&spool, "archive")).await.len(),
        3,
        "the two that came again, and that which is tried again"
    );
}

/// Else the cloud would get it twice, or take a changed one for the former.
#[tokio::test]
async fn what_is_discarded_at_one_upstream_and_another_has_is_a_second_copy_still() {
    let spool = open(&SimDisk::new(), 8);
    let targets = ["archive", "cloud"];
    send(&spool, "1.2.1", &body(1, 500), &targets).await;
    refuse(&mut lane(&spool, "archive")).await;
    deliver(&mut lane(&spool, "cloud"), 1).await;
    spool.discard(&spool.dead(), None).await.unwrap();
    assert!(matches!(commit(&spool, "1.2.1", &body(1, 500), &targets).await, Ok(Committed::Repeat(_))));
    assert!(matches!(commit(&spool, "1.2.1", &body(2, 500), &targets).await, Ok(Committed::Differing(_))));
}

#[tokio::test]
async fn after_a_power_cut_and_a_lost_index_nothing_is_said_that_is_not_so() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    send(&spool, "1.2.1", &body(1, 500), &["archive"]).await;
    send(&spool, "1.2.2", &body(2, 500), &["archive"]).await;
    deliver(&mut lane(&spool, "archive"), 1).await;
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2"]), [Fate::Delivered, Fate::Underway]);
    spool.close();
    let spool = open(&disk, 8);
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2"]), [Fate::Delivered, Fate::Underway]);
    spool.close();
    super::Storage::remove(&disk, super::index_file::NAME).unwrap();
    let spool = open(&disk, 8);
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2"]), [Fate::Delivered, Fate::Underway]);
    assert_eq!(waiting(&spool, &mut lane(&spool, "archive")).await.len(), 1);
}

/// Put back, refused again and discarded between two looks once passed for delivered.
#[tokio::test]
async fn what_was_put_back_refused_again_and_discarded_has_failed_when_it_is_asked_for_only_then() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    send(&spool, "1.2.1", &body(1, 500), &["archive"]).await;
    let mut archive = lane(&spool, "archive");
    refuse(&mut archive).await;
    spool.retry(&spool.dead(), None).await.unwrap();
    refuse(&mut archive).await;
    spool.discard(&spool.dead(), None).await.unwrap();
    assert_eq!(fates(&spool, &["1.2.1"]), [Fate::Failed]);
}

/// What a lane could not find on a damaged disk once passed for delivered.
#[tokio::test]
async fn what_was_lost_to_damage_is_unknown_also_when_a_person_took_note_and_the_segment_is_gone() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    for (number, instance) in (1..).zip(["1.2.1", "1.2.2"]) {
        send(&spool, instance, &body(number, 500), &["archive"]).await;
    }
    spool.rotate().unwrap();
    send(&spool, "1.2.3", &body(3, 500), &["archive"]).await;
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), [Fate::Underway; 3]);
    lose_groups(&spool, &disk, CLASS, 1, &[2]);
    deliver(&mut lane(&spool, "archive"), 2).await;
    let told = [Fate::Unknown, Fate::Unknown, Fate::Delivered];
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), told);
    spool.accept_damage().await.unwrap();
    let log = &spool.opened(CLASS).log;
    log.uptime.at_least(2 * 3_600_000);
    compact::sweep(log, 8);
    assert!(!log.state().segments.contains_key(&1));
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), told);
    spool.close();
    let spool = open(&disk, 8);
    spool.rotate().unwrap();
    send(&spool, "1.2.4", &body(4, 500), &["archive"]).await;
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), told);
}

/// An index that was made again did not know of a discard whose segment was gone.
#[tokio::test]
async fn an_index_that_is_made_again_says_nothing_of_what_came_before_segments_that_are_gone() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    send(&spool, "1.2.1", &body(1, 500), &["archive"]).await;
    send(&spool, "1.2.2", &body(2, 500), &["cloud"]).await;
    refuse(&mut lane(&spool, "archive")).await;
    spool.rotate().unwrap();
    spool.discard(&spool.dead(), None).await.unwrap();
    spool.rotate().unwrap();
    send(&spool, "1.2.3", &body(3, 500), &["archive"]).await;
    let log = &spool.opened(CLASS).log;
    log.uptime.at_least(2 * 3_600_000);
    compact::sweep(log, 8);
    assert_eq!(log.state().segments.keys().copied().collect::<Vec<_>>(), [1, 3]);
    spool.close();
    super::Storage::remove(&disk, super::index_file::NAME).unwrap();
    let spool = open(&disk, 8);
    assert_eq!(fates(&spool, &["1.2.1", "1.2.2", "1.2.3"]), [Fate::Unknown, Fate::Unknown, Fate::Underway]);
}

/// A second copy on another way once hid the first.
#[tokio::test]
async fn an_instance_that_came_twice_is_delivered_when_both_are_and_when_the_second_replaced_a_refused_one() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    send(&spool, "1.2.1", &body(1, 500), &["archive"]).await;
    send(&spool, "1.2.1", &body(2, 500), &["cloud"]).await;
    deliver(&mut lane(&spool, "cloud"), 1).await;
    assert_eq!(fates(&spool, &["1.2.1"]), [Fate::Underway]);
    let mut archive = lane(&spool, "archive");
    refuse(&mut archive).await;
    assert_eq!(fates(&spool, &["1.2.1"]), [Fate::Failed]);
    send(&spool, "1.2.1", &body(3, 500), &["archive"]).await;
    assert_eq!(fates(&spool, &["1.2.1"]), [Fate::Underway]);
    deliver(&mut archive, 1).await;
    assert_eq!(fates(&spool, &["1.2.1"]), [Fate::Delivered]);
}

/// A request for storage commitment was once replayed to the archive as if it were an image.
#[tokio::test]
async fn a_request_is_no_instance_neither_for_a_replay_nor_for_another_request() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    send(&spool, "1.2.1", &body(1, 500), &["archive"]).await;
    send(&spool, "2.25.1", &body(2, 500), &["storage-commitment"]).await;
    deliver(&mut lane(&spool, "archive"), 1).await;
    deliver(&mut lane(&spool, "storage-commitment"), 1).await;
    assert_eq!(fates(&spool, &["1.2.1", "2.25.1"]), [Fate::Delivered, Fate::Unknown]);
    for upstream in ["archive", "storage-commitment"] {
        let (source, upstream) = (name("ct"), name(upstream));
        let order = ReplayOrder { source, from_us: 0, to_us: i64::MAX, upstream, dry_run: false };
        assert_eq!(spool.replay(&order).await.unwrap().messages, 1);
        assert_eq!(lane(&spool, order.upstream.as_str()).next().await.content.unwrap().body.len(), 500);
    }
}

/// With too many decisions a discarded message once became a delivered one.
#[test]
fn a_message_whose_discard_had_to_make_room_is_unknown() {
    let owner = Owner::new([1; 16], &[2; 32]);
    let id = |number: u64| MessageId(u128::from(number).to_be_bytes());
    let key = |number: u64| u128::from(number).to_le_bytes();
    let mut seen = Sightings::default();
    let count = DECIDED_MAX + 1;
    for number in 0..count {
        let at = Place { segment: 1, ordinal: u32::try_from(number).unwrap() };
        seen.message(key(number), Known::new(&owner, (id(number), at), number, &[name("archive")]));
        seen.ended(&owner, &Discard { id: id(number), upstream: name("archive"), by: None }, at);
    }
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    let change = database.begin_write().unwrap();
    seen.write(&change).unwrap();
    change.commit().unwrap();
    let keys: Vec<_> = (0..count).map(key).collect();
    let traces = fates::find(&database.begin_read().unwrap(), &keys).unwrap();
    let known = traces.iter().flatten().count() as u64;
    assert!((DECIDED_MAX / 2..=DECIDED_MAX).contains(&known), "{known}");
    assert!(traces.iter().flatten().all(fates::Trace::is_decided));
}
