//! What a device is told of its instances: never that one was delivered which was not.

use super::fates::{CLASS, Fate};
use super::sim::SimDisk;
use super::tests::{body, name, open, waiting};
use super::{Committed, Lane, Spool};
use crate::envelope::{Flags, Meta};

async fn send(spool: &Spool, instance: &str, body: &[u8], targets: &[&str]) {
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
    };
    assert!(matches!(draft.commit(meta).await, Ok(Committed::Stored(_))), "{instance}");
}

fn fates(spool: &Spool, instances: &[&str]) -> Vec<Fate> {
    let ids: Vec<&[u8]> = instances.iter().map(|id| id.as_bytes()).collect();
    let traces = spool.trace(&name("ct"), &ids).unwrap();
    traces.iter().map(|trace| spool.fate(&name("ct"), trace.as_ref())).collect()
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
