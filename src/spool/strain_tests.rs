//! The spool under strain: files that are used again and again, reads that fail, logs that are full and restarted, quotas that everybody shares.

use std::collections::HashMap;
use std::io;

use super::sim::{Dice, Fault, SimDisk};
use super::tests::{SEGMENT, body, commit, commit_of, name, open, waiting};
use super::{Class, CommitError, compact, frame, segment};

/// A read that fails once once made a lane pass over what it had read before.
#[tokio::test(start_paused = true)]
async fn a_read_that_fails_once_loses_nothing_of_a_lane() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let mut sent = Vec::new();
    for number in 0..40 {
        sent.push((
            commit(&spool, Class::Clinical, &["engine"], &body(number, 30_000)).await.unwrap(),
            body(number, 30_000),
        ));
    }
    spool.close();
    for nth in 1..60 {
        let disk = disk.after_kill();
        let spool = open(&disk, 8);
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        disk.fail_read(nth);
        assert!(waiting(&spool, &mut lane).await == sent, "read {nth} failed");
        assert_eq!(spool.logs()[0].quarantined, 0, "read {nth} failed");
        spool.close();
    }
}

/// A reader that panicked left its lane without one: it was stuck until the next start.
#[tokio::test(start_paused = true)]
async fn a_reader_that_panics_is_replaced_and_the_lane_loses_nothing() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let mut sent = Vec::new();
    for number in 0..40 {
        let id = commit(&spool, Class::Clinical, &["engine"], &body(number, 30_000)).await.unwrap();
        sent.push((id, body(number, 30_000)));
    }
    spool.close();
    for nth in [1, 2, 5, 11, 17] {
        let disk = disk.after_kill();
        let spool = open(&disk, 8);
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        disk.panic_read(nth);
        assert!(waiting(&spool, &mut lane).await == sent, "read {nth} panicked");
        spool.close();
    }
}

/// What a failed attempt to begin a segment left in its file was taken for the segment that followed.
#[tokio::test]
async fn after_a_failed_begin_of_a_segment_a_start_takes_the_file_that_holds_the_message() {
    for (at, seed) in (2..=4).flat_map(|at| (0..8).map(move |seed| (at, seed))) {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        let log = &spool.opened(Class::Clinical).log;
        compact::prepare(log);
        let lower = compact::next_file(log).unwrap();
        compact::prepare(log);
        // The attempt that fails has the file that a start lists last.
        log.state().free.insert(0, lower);
        disk.fail(Some(Fault { at, lasting: false, kind: io::ErrorKind::Other }));
        let id = commit(&spool, Class::Clinical, &["engine"], b"stored").await.unwrap();
        let after = disk.cut(&mut Dice::new(seed));
        spool.close();
        let spool = open(&after, 8);
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        assert_eq!(waiting(&spool, &mut lane).await, [(id, b"stored".to_vec())], "operation {at}, seed {seed}");
        assert_eq!(spool.logs()[0].quarantined, 0);
        spool.close();
    }
}

/// After a restart a full log had no place for a dead letter: its lane stood still for ever.
#[tokio::test]
async fn a_full_log_that_was_restarted_can_still_set_a_message_aside_and_drain() {
    let disk = SimDisk::new();
    let spool = open(&disk, 5);
    let mut stored = 0;
    while commit(&spool, Class::Clinical, &["engine"], &body(stored, 60_000)).await.is_ok() {
        stored += 1;
    }
    spool.close();
    let spool = open(&disk.after_kill(), 5);
    assert_eq!(commit(&spool, Class::Clinical, &["engine"], b"more").await, Err(CommitError::Full));
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let first = lane.next().await;
    lane.bury(first.place, "AR", 1).await.expect("there is room for a dead letter");
    lane.advance(first.place);
    for _ in 1..stored {
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
    commit(&spool, Class::Clinical, &["engine"], b"again").await.expect("it takes messages again");
}

/// Two sources that fill a log were taken for one half of it: full segments were rewritten again and again for nothing.
#[tokio::test]
async fn a_log_that_is_full_of_undelivered_messages_is_not_rewritten_for_nothing() {
    let disk = SimDisk::new();
    let spool = open(&disk, 6);
    for number in 0..400 {
        let source = if number % 2 == 0 { "icu" } else { "er" };
        commit_of(&spool, source, Class::Clinical, &["engine"], &body(number, 30_000)).await.ok();
    }
    let written = spool.logs()[0].written;
    // Each file is written through once and then filled.
    assert!(written < 14 * SEGMENT, "{written} bytes for a quota of {}", 6 * SEGMENT);
}

/// A disk that failed, or that could not be written to any more, when the next file was to be made was called a full one.
#[tokio::test]
async fn a_disk_that_gives_no_file_is_not_called_full_and_is_tried_again() {
    for kind in [io::ErrorKind::Other, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::StorageFull] {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        disk.fail(Some(Fault { at: 1, lasting: true, kind }));
        let (refused, code) = match kind {
            io::ErrorKind::StorageFull => (CommitError::Full, "spool-full"),
            _ => (CommitError::Failed, "spool-failed"),
        };
        assert_eq!(commit(&spool, Class::Clinical, &["engine"], b"refused").await, Err(refused), "{kind}");
        let alarms = spool.alarms();
        assert_eq!(alarms.len(), 1, "{alarms:?}");
        assert!(alarms[0].code == code && alarms[0].text.contains("the disk"), "{alarms:?}");
        assert!(spool.logs()[0].refusing.is_some());
        disk.fail(None);
        commit(&spool, Class::Clinical, &["engine"], b"stored").await.expect("it is tried again");
        assert!(spool.alarms().is_empty() && spool.logs()[0].refusing.is_none());
    }
}

/// I5: over restarts, faults and recycling, no group number is written twice with other contents under one key.
#[tokio::test]
async fn no_nonce_is_used_twice_under_one_key() {
    let mut disk = SimDisk::new();
    let mut seen: HashMap<(Vec<u8>, u32), Vec<u8>> = HashMap::new();
    for round in 0..40 {
        let spool = open(&disk, 6);
        // Delivered first, so that the cursor rides with the commits and is not lost with the power.
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        for _ in 0..spool.lanes().iter().map(|lane| lane.backlog).sum() {
            let entry = lane.next().await;
            lane.advance(entry.place);
        }
        for number in 0..4 {
            let outcome = commit(&spool, Class::Clinical, &["engine"], &body(round * 10 + number, 30_000)).await;
            assert!(outcome.is_ok(), "round {round}: {outcome:?} {:?}", spool.logs()[0]);
        }
        note_groups(&disk, &mut seen);
        let after = disk.cut(&mut Dice::new(round));
        spool.close();
        disk = after;
        note_groups(&disk, &mut seen);
    }
    assert!(seen.len() > 100, "{} groups", seen.len());
}

fn note_groups(disk: &SimDisk, seen: &mut HashMap<(Vec<u8>, u32), Vec<u8>>) {
    for name in disk.names().into_iter().filter(|name| name.ends_with(".seg")) {
        let bytes = disk.bytes(&name);
        let Some(header) = bytes.get(..4096).filter(|header| header.starts_with(b"WGSEG001")) else { continue };
        let incarnation = header[56..72].to_vec();
        let mut at = usize::try_from(segment::FIRST_GROUP).unwrap();
        while at + frame::BLOCK <= bytes.len() {
            let short: [u8; 12] = incarnation[..12].try_into().unwrap();
            if let Some(group) = frame::GroupHeader::read(&bytes[at..], &short) {
                let contents = bytes[at..(at + group.bytes as usize).min(bytes.len())].to_vec();
                let key = (incarnation.clone(), group.group);
                let known = seen.entry(key).or_insert_with(|| contents.clone());
                // A torn write leaves a part of the same group, never another one.
                assert!(known[..32] == contents[..32], "group {} of {name} was written twice", group.group);
            }
            at += frame::BLOCK;
        }
    }
}

/// The room for control records ran out after some dead letters, and the lane then stood still until a restart.
#[tokio::test]
async fn an_upstream_that_refuses_many_messages_of_a_full_log_drains_it_all_the_same() {
    let disk = SimDisk::new();
    let spool = open(&disk, 6);
    let mut count = 0u64;
    while commit(&spool, Class::Clinical, &["engine"], &body(count, 2_000)).await.is_ok() {
        count += 1;
    }
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    for number in 0..40 {
        let entry = lane.next().await;
        lane.bury(entry.place, "refused", 1).await.unwrap_or_else(|error| panic!("{number} of {count}: {error}"));
        lane.advance(entry.place);
    }
    for _ in 40..count {
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
    assert_eq!((lane.waiting(), spool.dead().len()), (0, 40));
    commit(&spool, Class::Clinical, &["engine"], b"there is room again").await.unwrap();
    assert!(disk.names().len() < 40, "{:?}", disk.names());
    spool.close();
}
