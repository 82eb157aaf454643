//! What is kept when space is made: compaction at known moments, then damage, power cuts and full disks.

use super::record::Gap;
use super::sim::SimDisk;
use super::tests::{body, commit, name, open, waiting};
use super::{Class, Lane, Spool, compact, segment};

/// Makes the next record begin a new segment.
fn roll(spool: &Spool) {
    spool.rotate().unwrap();
}

fn compact_segment(spool: &Spool, order: u64) {
    let [clinical, ..] = &spool.inner.logs;
    compact::prepare(&clinical.log);
    compact::compact(&clinical.log, order).unwrap();
    let generation = clinical.log.state().segments[&order].segment.identity.generation;
    assert!(generation > 0, "segment {order} was not compacted");
}

/// Flips a bit in the first group of the newest segment: its checkpoint can't be read any more.
fn damage_newest_checkpoint(spool: &Spool, disk: &SimDisk) {
    let [clinical, ..] = &spool.inner.logs;
    let file = clinical.log.state().segments.last_key_value().unwrap().1.segment.name.clone();
    assert!(disk.flip(&file, usize::try_from(segment::FIRST_GROUP).unwrap() + 2, 1));
}

fn backlog(spool: &Spool, upstream: &str) -> u64 {
    let lanes = spool.lanes();
    lanes.iter().find(|lane| lane.upstream == name(upstream)).map_or(0, |lane| lane.backlog)
}

/// Makes whole groups of a segment unreadable: those with these numbers.
fn lose_groups(spool: &Spool, disk: &SimDisk, order: u64, groups: &[u32]) {
    let [clinical, ..] = &spool.inner.logs;
    let file = clinical.log.state().segments[&order].segment.name.clone();
    let bytes = disk.bytes(&file);
    let begins = |at: &usize| bytes[*at..].starts_with(b"WGGR");
    let found: Vec<usize> = (0..bytes.len()).step_by(4096).filter(begins).collect();
    for group in groups {
        assert!(disk.flip(&file, found[*group as usize] + 2, 1));
    }
}

fn gaps(spool: &Spool) -> Vec<Gap> {
    let [clinical, ..] = &spool.inner.logs;
    clinical.log.state().gaps.clone()
}

/// All that comes out of a lane, advancing over it.
async fn drain(spool: &Spool, lane: &mut Lane) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while backlog(spool, lane.upstream().as_str()) > 0 {
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), lane.next());
        let Ok(entry) = next.await else { panic!("a backlog of messages that never come") };
        lane.advance(entry.place);
        found.push(entry.content.unwrap().body.collect().await.unwrap().to_vec());
    }
    found
}

/// Eight messages for two upstreams in a segment that is full, of which the third and the last one are lost, and one behind it.
async fn with_lost_messages() -> (SimDisk, Spool) {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    for number in 0..8 {
        commit(&spool, Class::Clinical, &["engine", "cloud"], &body(number, 9_000)).await.unwrap();
    }
    roll(&spool);
    commit(&spool, Class::Clinical, &["engine", "cloud"], &body(8, 9_000)).await.unwrap();
    // The first group is the checkpoint.
    lose_groups(&spool, &disk, 1, &[3, 8]);
    (disk, spool)
}

fn readable() -> Vec<Vec<u8>> {
    [0, 1, 3, 4, 5, 6, 8].map(|number| body(number, 9_000)).into()
}

/// The backlog stayed too high for ever, and no record told what was gone.
#[tokio::test]
async fn messages_that_are_lost_to_damage_leave_the_backlog_and_a_record_once() {
    let (disk, spool) = with_lost_messages().await;
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    for _ in 0..3 {
        lane.next().await;
    }
    lane.rewind();
    for _ in 0..7 {
        lane.next().await;
    }
    assert_eq!(backlog(&spool, "engine"), 7, "two of nine are lost");
    lane.rewind();
    let told: Vec<_> = gaps(&spool).into_iter().map(|gap| (gap.cause, gap.segment, gap.lanes)).collect();
    assert_eq!(told, [(Gap::DAMAGED.to_owned(), 1, vec![(name("icu"), name("engine"), 2)])]);
    assert!(spool.alarms().iter().any(|alarm| alarm.code == "damaged" && alarm.text.contains("2 messages")));
    // What was recorded is known after a restart, before anybody reads.
    let after = disk.after_kill();
    spool.close();
    let spool = open(&after, 8);
    assert_eq!((backlog(&spool, "engine"), backlog(&spool, "cloud")), (7, 9));
    for upstream in ["engine", "cloud"] {
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name(upstream));
        assert!(drain(&spool, &mut lane).await == readable(), "{upstream}");
    }
    assert_eq!(gaps(&spool).len(), 2, "one record for each lane");
}

#[tokio::test]
async fn damage_that_a_person_took_note_of_is_shown_no_more_and_its_file_is_not_used_again() {
    let (disk, spool) = with_lost_messages().await;
    for upstream in ["engine", "cloud"] {
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name(upstream));
        drain(&spool, &mut lane).await;
    }
    assert_eq!(spool.logs()[0].quarantined, 1);
    let file = spool.inner.logs[0].log.state().segments[&1].segment.name.clone();
    assert_eq!(spool.accept_damage().await.unwrap(), 1);
    assert_eq!((spool.accept_damage().await.unwrap(), spool.logs()[0].quarantined), (0, 0));
    roll(&spool);
    commit(&spool, Class::Clinical, &["engine"], b"more").await.unwrap();
    let after = disk.after_kill();
    spool.close();
    let spool = open(&after, 8);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    assert_eq!(waiting(&spool, &mut lane).await.len(), 1);
    assert_eq!((spool.logs()[0].quarantined, spool.alarms().len()), (0, 0), "after a restart as well");
    let log = &spool.inner.logs[0].log;
    log.uptime.at_least(2 * 3_600_000);
    compact::sweep(log, 8);
    assert!(!log.state().segments.contains_key(&1) && !after.names().contains(&file), "its file is gone");
}

/// A dead letter and a lane that got on, in a segment that was compacted, were forgotten with the newest checkpoint.
#[tokio::test]
async fn dead_letters_and_cursors_of_a_compacted_segment_survive_damage_to_the_newest_checkpoint() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let dead = commit(&spool, Class::Clinical, &["refuses"], b"refused").await.unwrap();
    let retried = commit(&spool, Class::Clinical, &["refuses"], b"refused first, then sent").await.unwrap();
    let mut refuses = spool.lane(Class::Clinical, &name("icu"), &name("refuses"));
    for _ in 0..2 {
        let entry = refuses.next().await;
        refuses.bury(entry.place, "AR", 1).await.unwrap();
        refuses.advance(entry.place);
    }
    roll(&spool);
    // The second segment opens with both dead letters; one of them ends in the third.
    commit(&spool, Class::Clinical, &["stalled"], b"waits").await.unwrap();
    roll(&spool);
    let letters: Vec<_> = spool.dead().into_iter().filter(|letter| letter.id == retried).collect();
    assert_eq!(spool.retry(&letters, None).await.unwrap(), 1);
    let entry = refuses.next().await;
    refuses.advance(entry.place);
    roll(&spool);
    commit(&spool, Class::Clinical, &["stalled"], b"waits too").await.unwrap();
    for order in 1..=3 {
        compact_segment(&spool, order);
    }
    damage_newest_checkpoint(&spool, &disk);
    let after = disk.after_kill();
    spool.close();
    let spool = open(&after, 8);
    let letters: Vec<_> = spool.dead().iter().map(|letter| letter.id).collect();
    assert_eq!(letters, [dead], "the one that ended stays ended, the other one is there");
    assert_eq!(&spool.message(&spool.dead()[0]).unwrap().body.collect().await.unwrap()[..], b"refused");
    assert_eq!((backlog(&spool, "refuses"), backlog(&spool, "stalled")), (0, 2), "what was done stays done");
    assert_eq!(spool.logs()[0].quarantined, 1, "the damage is shown");
}
