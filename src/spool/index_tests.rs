//! The index over the logs, on a disk that loses power: what was acknowledged is known as a second copy after any start,
//! whatever has become of the index file, and the index costs little.

use super::index_file::NAME;
use super::sim::{Dice, Fault, SimDisk};
use super::tests::{body, name, open, waiting};
use super::{Class, CommitError, Committed, Spool, Storage, logs_of};
use crate::envelope::{Flags, MessageId, Meta};

/// Sends a message as a device does, with its control id.
async fn send(spool: &Spool, control_id: u64, body: &[u8]) -> Result<Committed, CommitError> {
    send_to(spool, Class::Clinical, control_id, body).await
}

async fn send_to(spool: &Spool, class: Class, control_id: u64, body: &[u8]) -> Result<Committed, CommitError> {
    let source = name("icu");
    let mut draft = spool.begin(class, &source);
    draft.write(body).await?;
    let meta = Meta {
        source,
        protocol: "test".into(),
        content_type: "text/plain".into(),
        control_id: control_id.to_be_bytes().to_vec(),
        targets: vec![name("engine")],
        flags: Flags::default(),
        received: spool.now(),
        tokens: Vec::new(),
    };
    draft.commit(meta).await
}

async fn stored(spool: &Spool, control_id: u64, body: &[u8]) -> MessageId {
    match send(spool, control_id, body).await {
        Ok(Committed::Stored(id)) => id,
        other => panic!("{control_id} should be stored: {other:?}"),
    }
}

async fn backlog(spool: &Spool) -> usize {
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    waiting(spool, &mut lane).await.len()
}

fn follow(spool: &Spool) {
    spool.inner.index.apply(&logs_of(&spool.inner.logs));
}

fn restore(disk: &SimDisk, bytes: &[u8]) {
    disk.remove(NAME).ok();
    let file = disk.create(NAME).unwrap();
    file.write_at(bytes, 0).unwrap();
    file.sync().unwrap();
    disk.sync_folder("").unwrap();
}

/// Ten messages of which the index knows five.
async fn half_indexed(disk: &SimDisk) -> Vec<MessageId> {
    let spool = open(disk, 8);
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(stored(&spool, number, &body(number, 3000)).await);
        if number == 4 {
            follow(&spool);
        }
    }
    ids
}

async fn assert_all_known(disk: &SimDisk, ids: &[MessageId], what: &str) {
    let spool = open(disk, 8);
    assert_eq!(spool.inner.index.alarm(), None, "{what}");
    assert_eq!(backlog(&spool).await, ids.len(), "{what}");
    for (number, id) in (0..).zip(ids) {
        let again = send(&spool, number, &body(number, 3000)).await;
        assert_eq!(again, Ok(Committed::Repeat(*id)), "{what}: message {number}");
    }
    assert_eq!(backlog(&spool).await, ids.len(), "{what}: nothing was stored twice");
    spool.close();
    assert_eq!(spool.inner.index.alarm(), None, "{what}: the index can be written");
}

#[tokio::test]
async fn a_message_acknowledged_just_before_a_power_cut_is_a_second_copy_right_after_it() {
    for seed in 0..20 {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        let id = stored(&spool, 1, b"MSH|one").await;
        let after = disk.cut(&mut Dice::new(seed));
        let spool = open(&after, 8);
        assert_eq!(send(&spool, 1, b"MSH|one").await, Ok(Committed::Repeat(id)));
        assert!(matches!(send(&spool, 1, b"MSH|other body").await, Ok(Committed::Stored(_))));
        assert_eq!(backlog(&spool).await, 2);
    }
}

#[tokio::test]
async fn other_bytes_under_a_worldwide_unique_id_are_kept_and_flagged_also_after_a_power_cut() {
    for followed in [false, true] {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        let first = send_to(&spool, Class::Imaging, 1, b"one").await;
        assert!(matches!(first, Ok(Committed::Stored(_))), "{first:?}");
        if followed {
            follow(&spool);
        }
        let spool = open(&disk.cut(&mut Dice::new(1)), 8);
        let Ok(Committed::Differing(id)) = send_to(&spool, Class::Imaging, 1, b"other").await else {
            panic!("flagged")
        };
        assert_eq!(send_to(&spool, Class::Imaging, 1, b"other").await, Ok(Committed::Repeat(id)));
        assert!(matches!(send_to(&spool, Class::Imaging, 2, b"other").await, Ok(Committed::Stored(_))));
        let mut lane = spool.lane(Class::Imaging, &name("icu"), &name("engine"));
        let mut flags = Vec::new();
        for _ in 0..3 {
            flags.push(lane.next().await.content.unwrap().meta.flags);
        }
        assert_eq!(flags, [Flags::default(), Flags::DUPLICATE, Flags::default()]);
    }
}

#[tokio::test]
async fn a_message_that_the_device_was_told_is_not_stored_is_never_taken_for_a_second_copy() {
    for at in 1..8 {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        spool.prepare(Class::Clinical);
        stored(&spool, 1, b"MSH|one").await;
        disk.fail(Some(Fault { at, lasting: true, kind: std::io::ErrorKind::Other }));
        let refused = send(&spool, 2, b"MSH|two").await.is_err();
        let again = disk.after_kill();
        let spool = open(&again, 8);
        let outcome = send(&spool, 2, b"MSH|two").await.unwrap();
        // After a failed sync the bytes may be in memory only: what is read back proves nothing.
        assert_eq!(matches!(outcome, Committed::Stored(_)), refused, "fault at {at}");
    }
}

#[tokio::test]
async fn whatever_becomes_of_the_index_file_second_copies_are_known_and_nothing_else_changes() {
    let disk = SimDisk::new();
    let ids = half_indexed(&disk).await;
    let whole = disk.bytes(NAME);
    let foreign = {
        let other = SimDisk::new();
        half_indexed(&other).await;
        other.bytes(NAME)
    };
    assert!(whole.len() > 8192 && foreign.len() > 8192);
    assert_all_known(&disk.after_kill(), &ids, "as it was").await;
    let damaged: [(&str, &[u8]); 6] = [
        ("empty", &[]),
        ("a header only", &whole[..4096]),
        ("truncated", &whole[..whole.len() / 2]),
        ("without its last byte", &whole[..whole.len() - 1]),
        ("another spool's", &foreign),
        ("something else", b"not an index"),
    ];
    for (what, bytes) in damaged {
        let after = disk.after_kill();
        restore(&after, bytes);
        assert_all_known(&after, &ids, what).await;
        assert_all_known(&after.after_kill(), &ids, &format!("{what}, made again")).await;
    }
    let after = disk.after_kill();
    after.remove(NAME).unwrap();
    assert_all_known(&after, &ids, "deleted").await;
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_the_index_never_reaches_redb() {
    let disk = SimDisk::new();
    let ids = half_indexed(&disk).await;
    let length = disk.bytes(NAME).len() as u64;
    let mut dice = Dice::new(5);
    for round in 0..40 {
        let after = disk.after_kill();
        // The first pages are in use; most of the rest is zeros.
        let byte = if round % 2 == 0 { dice.roll(40_000) } else { dice.roll(length) };
        let bit = u8::try_from(dice.roll(8)).unwrap();
        assert!(after.flip(NAME, usize::try_from(byte).unwrap(), bit));
        assert_eq!(open(&after, 8).inner.index.count(), None, "bit {bit} of byte {byte} was not noticed");
        assert_all_known(&after, &ids, &format!("bit {bit} of byte {byte}")).await;
    }
}

#[tokio::test]
async fn yesterdays_index_is_caught_up_from_the_log() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let mut ids = vec![stored(&spool, 0, &body(0, 3000)).await];
    follow(&spool);
    let yesterday = disk.bytes(NAME);
    for number in 1..20 {
        ids.push(stored(&spool, number, &body(number, 3000)).await);
    }
    spool.close();
    let after = disk.after_kill();
    restore(&after, &yesterday);
    assert_all_known(&after, &ids, "yesterday's").await;
}

#[tokio::test]
async fn an_index_that_knows_more_than_an_older_log_is_not_believed() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    stored(&spool, 0, &body(0, 3000)).await;
    let older = disk.after_kill();
    let newer = {
        let after = older.after_kill();
        let spool = open(&after, 8);
        stored(&spool, 1, &body(1, 3000)).await;
        spool.close();
        after.bytes(NAME)
    };
    // The log is put back as it was, and only the log.
    let older = older.after_kill();
    restore(&older, &newer);
    let spool = open(&older, 8);
    assert!(matches!(send(&spool, 0, &body(0, 3000)).await, Ok(Committed::Repeat(_))));
    let again = send(&spool, 1, &body(1, 3000)).await;
    assert!(matches!(again, Ok(Committed::Stored(_))), "this log does not hold it: {again:?}");
}

#[tokio::test]
async fn a_power_cut_in_the_middle_of_a_change_costs_the_index_at_most() {
    for seed in 0..60 {
        let disk = SimDisk::new();
        let ids = half_indexed(&disk).await;
        let spool = open(&disk.after_kill(), 8);
        drop(spool);
        let disk = disk.after_kill();
        let spool = open(&disk, 8);
        // The change fails at some point, and what was written by then survives in part.
        disk.fail(Some(Fault { at: 1 + seed / 2, lasting: true, kind: std::io::ErrorKind::Other }));
        follow(&spool);
        disk.fail(None);
        let after = disk.cut(&mut Dice::new(seed));
        assert_all_known(&after, &ids, &format!("cut {seed}")).await;
    }
}

/// A spool with one message, and how many operations its first index takes.
async fn not_indexed() -> (SimDisk, Spool, MessageId) {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let id = stored(&spool, 0, &body(0, 3000)).await;
    // The keeper makes no file ready meanwhile: every operation is the index's.
    spool.prepare(Class::Clinical);
    (disk, spool, id)
}

#[tokio::test]
async fn a_full_disk_turns_the_index_off_and_the_spool_goes_on() {
    let (disk, spool, _) = not_indexed().await;
    let before = disk.operations();
    follow(&spool);
    let operations = disk.operations() - before;
    assert!(operations > 10);
    let mut told = 0;
    for at in 1..=operations {
        let (disk, spool, first) = not_indexed().await;
        let lasting = at % 2 == 0;
        disk.fail(Some(Fault { at, lasting, kind: std::io::ErrorKind::StorageFull }));
        follow(&spool);
        disk.fail(None);
        told += u64::from(spool.alarms().iter().any(|alarm| alarm.code == "index"));
        let ids = [first, stored(&spool, 1, &body(1, 3000)).await];
        follow(&spool);
        let litter = disk.names().iter().any(|name| name.ends_with(".tmp"));
        assert!(lasting || !litter, "fault at {at}: the room was not given back");
        let after = disk.after_kill();
        spool.close();
        assert_all_known(&after, &ids, &format!("full at {at}")).await;
    }
    assert_eq!(told, operations, "faults that were not told");
}

#[tokio::test]
async fn the_index_forgets_what_is_out_of_the_window() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    for number in 0..50 {
        stored(&spool, number, &body(number, 1000)).await;
    }
    follow(&spool);
    assert_eq!(spool.inner.index.count(), Some(50));
    let later = spool.inner.uptime.ms() + 601_000;
    spool.inner.uptime.at_least(later);
    stored(&spool, 1, &body(1, 1000)).await;
    follow(&spool);
    assert_eq!(spool.inner.index.count(), Some(1));
}

#[tokio::test]
async fn a_start_reads_neither_what_the_index_knows_nor_what_is_out_of_the_window() {
    for indexed in [true, false] {
        let disk = SimDisk::new();
        let spool = open(&disk, 60);
        for number in 0..120 {
            stored(&spool, number, &body(number, 200_000)).await;
        }
        match indexed {
            true => follow(&spool),
            false => {
                let later = spool.inner.uptime.ms() + 601_000;
                spool.inner.uptime.at_least(later);
            }
        }
        let id = stored(&spool, 1000, &body(1000, 200_000)).await;
        let after = disk.after_kill();
        let spool = open(&after, 60);
        let read = after.read_bytes();
        assert!(read < 6_000_000, "{read} bytes of 24 million were read");
        assert_eq!(send(&spool, 1000, &body(1000, 200_000)).await, Ok(Committed::Repeat(id)));
        let again = send(&spool, 7, &body(7, 200_000)).await.unwrap();
        assert_eq!(matches!(again, Committed::Repeat(_)), indexed);
    }
}

#[tokio::test]
async fn lone_messages_cost_the_index_little() {
    let disk = SimDisk::new();
    let spool = open(&disk, 40);
    let mut changes = 0;
    for number in 0..2000 {
        stored(&spool, number, &body(number, 1000)).await;
        // As the keeper would if the minute were always over.
        if spool.inner.index.is_worthwhile(&logs_of(&spool.inner.logs)) {
            follow(&spool);
            changes += 1;
        }
    }
    let index = spool.index_written();
    assert!(changes >= 3, "{changes} changes");
    assert!(index < 2000 * 200, "{} bytes a message, in {changes} changes", index / 2000);
}
