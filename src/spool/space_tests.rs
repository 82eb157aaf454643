//! What is kept when space is made: compaction at known moments, then damage, power cuts and full disks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::log::Log;
use super::record::Gap;
use super::sim::{Dice, Fault, SimDisk};
use super::tests::{SEGMENT, body, commit, meta, name, open, waiting};
use super::{Class, CommitError, Lane, ReplayOrder, Replayed, Spool, compact, segment};

pub(super) const KEPT_MS: u64 = 2 * 3_600_000;

/// Makes the next record begin a new segment.
pub(super) fn roll(spool: &Spool) {
    spool.rotate().unwrap();
}

fn compact_segment(spool: &Spool, order: u64) {
    let [clinical, ..] = &spool.inner.logs;
    compact::prepare(&clinical.log);
    compact::compact(&clinical.log, order).unwrap();
    let generation = clinical.log.state().segments[&order].segment.identity.generation;
    assert!(generation > 0, "segment {order} was not compacted");
}

/// What the writer does when a minute is over: what was delivered counts as such when space is made.
pub(super) fn write_cursors(spool: &Spool) {
    spool.opened(Class::Clinical).requests.hold().write_cursors();
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
pub(super) fn lose_groups(spool: &Spool, disk: &SimDisk, class: Class, order: u64, groups: &[u32]) {
    let file = spool.opened(class).log.state().segments[&order].segment.name.clone();
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
        let next = tokio::time::timeout(Duration::from_secs(10), lane.next());
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
    lose_groups(&spool, &disk, Class::Clinical, 1, &[3, 8]);
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
    log.uptime.at_least(KEPT_MS);
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

/// Every original of the source, to the upstream `again`.
fn all_again() -> ReplayOrder {
    ReplayOrder { source: name("icu"), from_us: 0, to_us: i64::MAX, upstream: name("again"), dry_run: false }
}

async fn store_and_deliver(spool: &Spool, class: Class, numbers: std::ops::Range<u64>, length: usize) {
    let mut lane = spool.lane(class, &name("icu"), &name("engine"));
    for number in numbers {
        commit(spool, class, &["engine"], &body(number, length)).await.unwrap();
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
}

/// Replays all, and does something to the log after the originals were found and before their records are written.
fn replay_while(
    runtime: &tokio::runtime::Runtime,
    spool: &Spool,
    class: Class,
    meanwhile: impl FnOnce(&Arc<Log>),
) -> Replayed {
    let opened = spool.opened(class);
    let writer = opened.requests.hold();
    let (other, order) = (spool.clone(), all_again());
    let replay = runtime.spawn(async move { other.replay(&order).await });
    while opened.requests.queued() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    meanwhile(&opened.log);
    drop(writer);
    runtime.block_on(replay).unwrap().unwrap()
}

/// Originals that were found could be taken back before the record that needs them was written.
#[test]
fn originals_that_a_replay_has_found_stay_until_its_records_hold_them() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let spool = open(&SimDisk::new(), 8);
    runtime.block_on(store_and_deliver(&spool, Class::Clinical, 0..3, 500_000));
    roll(&spool);
    runtime.block_on(store_and_deliver(&spool, Class::Clinical, 3..4, 100));
    let done = replay_while(&runtime, &spool, Class::Clinical, |log| {
        log.uptime.at_least(KEPT_MS);
        compact::sweep(log, 8);
    });
    assert_eq!((done.messages, done.missing), (4, 0));
    let again: Vec<Vec<u8>> = runtime.block_on(async {
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("again"));
        waiting(&spool, &mut lane).await.into_iter().map(|(_, body)| body).collect()
    });
    let sent: Vec<_> = (0..3).map(|number| body(number, 500_000)).chain([body(3, 100)]).collect();
    assert!(again == sent, "{} come again", again.len());
    // What a replay held is free again when it is over.
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("again"));
    runtime.block_on(drain(&spool, &mut lane));
    write_cursors(&spool);
    let [clinical, ..] = &spool.inner.logs;
    compact::sweep(&clinical.log, 8);
    assert_eq!(clinical.log.state().segments.len(), 1);
}

#[test]
fn a_replay_counts_what_a_full_log_dropped_before_it_could_be_sent() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let spool = open(&SimDisk::new(), 8);
    runtime.block_on(store_and_deliver(&spool, Class::Telemetry, 0..3, 100));
    roll(&spool);
    runtime.block_on(store_and_deliver(&spool, Class::Telemetry, 3..5, 100));
    let done = replay_while(&runtime, &spool, Class::Telemetry, |log| {
        compact::drop_segment(log, &compact::oldest_as_gap(log).unwrap());
    });
    assert_eq!((done.messages, done.bytes, done.missing), (2, 200, 3));
}

/// A device is not refused for the sake of a replay.
#[test]
fn a_full_log_takes_originals_from_a_replay_that_counts_them() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let spool = open(&SimDisk::new(), 5);
    runtime.block_on(store_and_deliver(&spool, Class::Clinical, 0..40, 80_000));
    let kept = runtime.block_on(spool.replay(&ReplayOrder { dry_run: true, ..all_again() })).unwrap().messages;
    let done = replay_while(&runtime, &spool, Class::Clinical, |log| {
        log.state().free.clear();
        for _ in 0..2 {
            assert!(compact::next_file(log).is_some(), "there is room for what comes in");
        }
    });
    assert!(done.missing > 5 && done.missing + done.messages == kept, "{done:?} of {kept}");
    // The records were on their way already: what they can't bring is shown as what can't be read.
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("again"));
    let mut readable = 0;
    for _ in 0..kept {
        readable += u64::from(runtime.block_on(lane.next()).content.is_ok());
    }
    assert_eq!(readable, done.messages);
}

/// A body that arrived slowly was committed although its first pieces had been dropped.
#[tokio::test]
async fn a_body_whose_first_pieces_a_full_telemetry_log_dropped_is_refused() {
    for length in [300_000, 600_000] {
        let spool = open(&SimDisk::new(), 5);
        let slow = body(1, length);
        let mut draft = spool.begin(Class::Telemetry, &name("icu"));
        draft.write(&slow[..290_000]).await.unwrap();
        for number in 2..100 {
            commit(&spool, Class::Telemetry, &["engine"], &body(number, 90_000)).await.unwrap();
        }
        let outcome = match draft.write(&slow[290_000..]).await {
            Ok(()) => draft.commit(meta(&spool, "icu", &["engine"])).await.map(drop),
            Err(error) => Err(error),
        };
        assert_eq!(outcome, Err(CommitError::Full));
        commit(&spool, Class::Telemetry, &["engine"], &body(100, 90_000)).await.unwrap();
        let mut lane = spool.lane(Class::Telemetry, &name("icu"), &name("engine"));
        let left = drain(&spool, &mut lane).await;
        assert!(left.last() == Some(&body(100, 90_000)));
    }
}

/// A lane that was in the middle of the dropped segment had its backlog counted down for what it had delivered before.
#[tokio::test]
async fn the_backlog_is_right_when_a_segment_is_dropped_that_was_delivered_in_part() {
    let spool = open(&SimDisk::new(), 5);
    let mut lane = spool.lane(Class::Telemetry, &name("icu"), &name("engine"));
    for number in 0..6 {
        commit(&spool, Class::Telemetry, &["engine"], &body(number, 90_000)).await.unwrap();
    }
    for _ in 0..4 {
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
    // Handed out and on its way while its segment goes.
    let underway = lane.next().await;
    let log = Arc::clone(&spool.opened(Class::Telemetry).log);
    let first = *log.state().segments.first_key_value().unwrap().0;
    for number in 6..100 {
        commit(&spool, Class::Telemetry, &["engine"], &body(number, 90_000)).await.unwrap();
    }
    assert!(!log.state().segments.contains_key(&first));
    lane.advance(underway.place);
    lane.rewind();
    let left = drain(&spool, &mut lane).await;
    assert!(left.last() == Some(&body(99, 90_000)), "the backlog was counted down too far");
}

/// A first segment with what waits for `stalled` and for `slow`, and more that was delivered; and one behind it.
async fn with_stalled_lanes(disk: &SimDisk) -> Spool {
    let spool = open(disk, 32);
    commit(&spool, Class::Clinical, &["stalled"], &body(1, 100_000)).await.unwrap();
    commit(&spool, Class::Clinical, &["slow"], &body(2, 300_000)).await.unwrap();
    store_and_deliver(&spool, Class::Clinical, 3..8, 90_000).await;
    roll(&spool);
    commit(&spool, Class::Clinical, &["stalled"], &body(9, 100)).await.unwrap();
    spool
}

/// The room that a second compaction made went to the next segment, and nothing was left for compaction to write into.
#[tokio::test]
async fn a_segment_that_is_compacted_twice_leaves_a_reserve_on_a_full_disk() {
    let disk = SimDisk::new();
    let spool = with_stalled_lanes(&disk).await;
    compact_segment(&spool, 1);
    let mut slow = spool.lane(Class::Clinical, &name("icu"), &name("slow"));
    drain(&spool, &mut slow).await;
    write_cursors(&spool);
    let log = &spool.opened(Class::Clinical).log;
    while !log.state().free.is_empty() {
        compact::next_file(log).unwrap();
    }
    disk.leave_room(0);
    let file = compact::next_file(log);
    assert!(log.state().segments[&1].segment.identity.generation == 2, "it was not compacted again");
    assert!(file.is_none() && log.state().reserve.is_some(), "the reserve is the last thing to go");
}

/// A file that was cut, or whose sync failed, once became the reserve: what was written into it next was lost.
#[tokio::test]
async fn a_compaction_that_fails_leaves_no_spoilt_file_behind_and_loses_nothing() {
    for nth in 1.. {
        let disk = SimDisk::new();
        let spool = with_stalled_lanes(&disk).await;
        let log = &spool.opened(Class::Clinical).log;
        compact::prepare(log);
        disk.fail(Some(Fault { at: nth, lasting: false, kind: io::ErrorKind::Other }));
        let outcome = compact::compact(log, 1);
        let done = disk.operations();
        disk.fail(None);
        let reserve =
            log.state().reserve.as_ref().map(|reserve| (reserve.name.clone(), reserve.file.length().unwrap()));
        if outcome.is_ok() {
            assert!(nth > 5 && reserve.is_some_and(|(_, length)| length == SEGMENT), "{nth} of {done} operations");
            return;
        }
        assert_eq!(reserve, None, "operation {nth}");
        let (held, listed) = (log.state().names(), disk.names());
        let strays: Vec<_> =
            listed.iter().filter(|name| name.starts_with("clinical/") && !held.contains(name)).collect();
        assert!(strays.len() <= 1, "operation {nth}: {strays:?}");
        // The next compaction finds a sound file to write into.
        compact::prepare(log);
        if log.state().segments[&1].segment.identity.generation == 0 {
            compact::compact(log, 1).unwrap();
        }
        let after = disk.cut(&mut Dice::new(nth));
        spool.close();
        let spool = open(&after, 32);
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("stalled"));
        assert!(drain(&spool, &mut lane).await == [body(1, 100_000), body(9, 100)], "operation {nth}");
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("slow"));
        assert!(drain(&spool, &mut lane).await == [body(2, 300_000)], "operation {nth}");
        spool.close();
    }
}

/// The power went before the sync of a copy, and its header and trailer reached the disk without its records: it was taken for whole, and
/// the original was wiped.
#[tokio::test]
async fn a_copy_of_which_only_the_ends_reached_the_disk_is_not_taken_for_the_original() {
    let disk = SimDisk::new();
    let spool = with_stalled_lanes(&disk).await;
    let log = &spool.opened(Class::Clinical).log;
    let source = log.state().segments[&1].segment.clone();
    let original = disk.bytes(&source.name);
    compact_segment(&spool, 1);
    let copy = log.state().segments[&1].segment.clone();
    spool.close();
    source.file.write_at(&original, 0).unwrap();
    let between = usize::try_from(copy.groups_end() - segment::FIRST_GROUP).unwrap();
    copy.file.write_at(&vec![0; between], segment::FIRST_GROUP).unwrap();
    source.file.sync().unwrap();
    copy.file.sync().unwrap();
    let spool = open(&disk.after_kill(), 32);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("stalled"));
    assert!(drain(&spool, &mut lane).await == [body(1, 100_000), body(9, 100)]);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("slow"));
    assert!(drain(&spool, &mut lane).await == [body(2, 300_000)]);
    spool.close();
}

/// Pieces of a delivered message go when their segment is compacted, its record in the next segment stays.
#[tokio::test]
async fn a_message_that_lost_its_first_pieces_to_compaction_is_not_replayed() {
    let spool = open(&SimDisk::new(), 8);
    commit(&spool, Class::Clinical, &["stalled"], b"keeps the first segment").await.unwrap();
    store_and_deliver(&spool, Class::Clinical, 1..3, 600_000).await;
    roll(&spool);
    commit(&spool, Class::Clinical, &["stalled"], b"keeps the second segment").await.unwrap();
    assert_eq!(spool.replay(&ReplayOrder { dry_run: true, ..all_again() }).await.unwrap().messages, 4);
    compact_segment(&spool, 1);
    let done = spool.replay(&all_again()).await.unwrap();
    assert_eq!((done.messages, done.missing), (2, 0), "one is gone with its record, another one lost its beginning");
    assert!(done.incomplete, "and that is told");
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("again"));
    let again = drain(&spool, &mut lane).await;
    assert_eq!(again, [b"keeps the first segment".to_vec(), b"keeps the second segment".to_vec()]);
}

/// Damage that cost no message was forgotten with the process that found it, and its file was used again.
#[tokio::test]
async fn damage_that_was_found_while_it_ran_is_shown_after_a_restart_and_its_file_is_left_alone() {
    for lost in [1, 2] {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        for upstream in ["engine", "cloud", "engine"] {
            commit(&spool, Class::Clinical, &[upstream], b"sent").await.unwrap();
        }
        drain(&spool, &mut spool.lane(Class::Clinical, &name("icu"), &name("cloud"))).await;
        roll(&spool);
        commit(&spool, Class::Clinical, &["engine"], b"more").await.unwrap();
        lose_groups(&spool, &disk, Class::Clinical, 1, &[lost]);
        let mut engine = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        while backlog(&spool, "engine") > 0 {
            let entry = engine.next().await;
            engine.advance(entry.place);
        }
        assert_eq!(spool.logs()[0].quarantined, 1, "group {lost}");
        assert_eq!(gaps(&spool).len(), 1, "group {lost}: recorded once");
        let after = disk.after_kill();
        let spool = open(&after, 8);
        assert_eq!(spool.logs()[0].quarantined, 1, "group {lost}");
        assert!(spool.alarms().iter().any(|alarm| alarm.code == "damaged"), "group {lost}");
        let log = &spool.inner.logs[0].log;
        log.uptime.at_least(KEPT_MS);
        compact::sweep(log, 8);
        assert!(log.state().segments.contains_key(&1), "group {lost}");
    }
}

/// A loss that could not be recorded was passed over in silence.
#[tokio::test(start_paused = true)]
async fn a_lane_stays_before_a_loss_that_can_not_be_recorded() {
    let (_disk, spool) = with_lost_messages().await;
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    spool.close();
    assert!(tokio::time::timeout(Duration::from_secs(60), lane.next()).await.is_err());
    assert!(gaps(&spool).is_empty());
}

#[tokio::test]
async fn a_start_reads_of_each_crash_before_it_what_that_left_and_no_more() {
    let mut disk = SimDisk::new();
    let mut read = Vec::new();
    for _ in 0..12 {
        let spool = open(&disk, 64);
        read.push(disk.read_bytes());
        commit(&spool, Class::Clinical, &["engine"], b"short").await.unwrap();
        disk = disk.after_kill();
    }
    let growth = (read[11] - read[5]) / 6;
    assert!(growth < SEGMENT / 4, "each crash costs each later start {growth} bytes more: {read:?}");
}

#[tokio::test]
async fn delivered_originals_of_a_run_that_crashed_are_given_up_in_their_time_however_often_the_box_is_started() {
    let mut disk = SimDisk::new();
    let segments = |spool: &Spool| spool.inner.logs[0].log.state().segments.len();
    for start in 1..=8 {
        let spool = open(&disk, 64);
        let log = &spool.inner.logs[0].log;
        // From start to start it is a third of the time for which they are kept.
        log.uptime.at_least(start * KEPT_MS / 6);
        commit(&spool, Class::Clinical, &["engine"], b"short").await.unwrap();
        drain(&spool, &mut spool.lane(Class::Clinical, &name("icu"), &name("engine"))).await;
        write_cursors(&spool);
        compact::sweep(log, 8);
        assert!(segments(&spool) <= 5, "start {start}: {} segments", segments(&spool));
        disk = disk.after_kill();
    }
}
