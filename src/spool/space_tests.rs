//! What is kept when space is made: compaction at known moments, then damage, power cuts and full disks.

use super::sim::SimDisk;
use super::tests::{commit, name, open};
use super::{Class, Spool, compact, segment};

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
    let waiting = |upstream: &str| {
        let lanes = spool.lanes();
        lanes.iter().find(|lane| lane.upstream == name(upstream)).map_or(0, |lane| lane.backlog)
    };
    assert_eq!((waiting("refuses"), waiting("stalled")), (0, 2), "what was done stays done");
    assert_eq!(spool.logs()[0].quarantined, 1, "the damage is shown");
}
