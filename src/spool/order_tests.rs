//! Space is made by the cursors that are in the log: no start says old messages again without the newer ones behind them, and a log whose
//! lanes get on takes messages, however little room there is for cursors.

use std::time::Duration;

use super::log::Limits;
use super::sim::{Dice, SimDisk};
use super::space_tests::{KEPT_MS, roll, write_cursors};
use super::tests::{body, commit, commit_of, name, open, waiting};
use super::{Class, Lane, Spool, compact};

const LENGTH: usize = 90_000;

fn lane(spool: &Spool, upstream: &str) -> Lane {
    spool.lane(Class::Clinical, &name("icu"), &name(upstream))
}

fn backlog(spool: &Spool, upstream: &str) -> u64 {
    let lanes = spool.lanes();
    lanes.iter().find(|lane| lane.upstream == name(upstream)).map_or(0, |lane| lane.backlog)
}

/// Delivers all that waits in a lane, or the next `count`; nothing is written to the log by that.
async fn take(spool: &Spool, lane: &mut Lane, count: u64) {
    for _ in 0..count.min(backlog(spool, lane.upstream().as_str())) {
        let entry = tokio::time::timeout(Duration::from_secs(10), lane.next()).await.expect("the backlog is there");
        entry.content.unwrap().body.collect().await.unwrap();
        lane.advance(entry.place);
    }
}

async fn bodies(spool: &Spool, upstream: &str) -> Vec<Vec<u8>> {
    waiting(spool, &mut lane(spool, upstream)).await.into_iter().map(|(_, body)| body).collect()
}

/// Messages for these upstreams until there is no room for another one, however short.
async fn fill(spool: &Spool, upstreams: &[&str], beside: &[&str]) -> Vec<Vec<u8>> {
    let (mut sent, mut number) = (Vec::new(), 0);
    for length in [LENGTH, 300] {
        loop {
            number += 1;
            assert!(number < 1000, "the quota holds nobody back");
            if !beside.is_empty() && commit(spool, Class::Clinical, beside, &body(5000 + number, 300)).await.is_err() {
                break;
            }
            if commit(spool, Class::Clinical, upstreams, &body(number, length)).await.is_err() {
                break;
            }
            sent.push(body(number, length));
        }
    }
    sent
}

/// Messages that come and are delivered one after the other, of which none may be refused.
async fn goes_on(spool: &Spool, upstream: &str, count: u64, what: &str) {
    let mut lane = lane(spool, upstream);
    for number in 2000..2000 + count {
        let outcome = commit(spool, Class::Clinical, &[upstream], &body(number, LENGTH)).await;
        assert!(outcome.is_ok(), "{what}: message {number}: {outcome:?} {:?}", spool.logs()[0]);
        take(spool, &mut lane, u64::MAX).await;
    }
}

/// The cursor was in memory only when a segment that it had passed was taken back: after a crash, what an older segment still held came again,
/// a preliminary result behind the final one, and the final one did not.
#[tokio::test]
async fn after_a_crash_no_lane_says_old_messages_again_without_the_newer_ones_behind_them() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    for (number, upstreams) in [&["quick", "slow"][..], &["quick"], &["quick"], &["slow"]].into_iter().enumerate() {
        commit(&spool, Class::Clinical, upstreams, &body(number as u64, 9_000)).await.unwrap();
        roll(&spool);
    }
    take(&spool, &mut lane(&spool, "quick"), u64::MAX).await;
    let log = &spool.opened(Class::Clinical).log;
    log.uptime.at_least(KEPT_MS);
    compact::sweep(log, 8);
    let after = disk.after_kill();
    let again = bodies(&open(&after, 8), "quick").await;
    let all: Vec<Vec<u8>> = (0..3).map(|number| body(number, 9_000)).collect();
    assert!(all.ends_with(&again), "{} of 3 come again, and not the last ones", again.len());
    // Once the log knows that they were taken their space comes free.
    let spool = open(&after.after_kill(), 8);
    take(&spool, &mut lane(&spool, "quick"), u64::MAX).await;
    commit(&spool, Class::Clinical, &["slow"], b"more").await.unwrap();
    write_cursors(&spool);
    let log = &spool.opened(Class::Clinical).log;
    log.uptime.at_least(3 * KEPT_MS);
    compact::sweep(log, 8);
    let held: Vec<u64> = log.state().segments.keys().copied().filter(|order| *order <= 4).collect();
    assert_eq!(held, [1, 4], "both hold something for the slow one");
}

/// A log that is full, of which `quick` took all and the log does not know it yet. With `slow`, each segment has something that stays; it was
/// killed so often since it is full.
async fn full_and_taken(slow: bool, used_up: bool, kills: u32) -> (SimDisk, Spool, Vec<Vec<u8>>) {
    let mut disk = SimDisk::new();
    let mut spool = open(&disk, 5);
    commit(&spool, Class::Clinical, &["slow"], b"stays in the first segment").await.unwrap();
    let mut sent = fill(&spool, &["quick"], if slow { &["slow"] } else { &[] }).await;
    for _ in 0..kills {
        disk = disk.after_kill();
        spool = open(&disk, 5);
        assert!(use_last_room(&spool).await);
        sent.extend(fill(&spool, &["quick"], &[]).await);
    }
    let mut quick = lane(&spool, "quick");
    for _ in 0..if used_up { 10 } else { 0 } {
        take(&spool, &mut quick, 1).await;
        write_cursors(&spool);
    }
    take(&spool, &mut quick, u64::MAX).await;
    (disk, spool, sent)
}

/// A power cut in the middle of a compaction costs the reserve: where the quota had no room for another the log was full for good.
#[tokio::test]
async fn a_full_log_that_lost_its_reserve_makes_room_all_the_same() {
    let (_disk, spool, _) = full_and_taken(true, false, 0).await;
    write_cursors(&spool);
    let log = &spool.opened(Class::Clinical).log;
    let reserve = compact::take_reserve(log).unwrap();
    log.storage.remove(&reserve.name).unwrap();
    let held: u64 = {
        let state = log.state();
        assert!(!state.has_spare());
        state.segments.values().map(|held| held.segment.bytes).sum()
    };
    log.set_limits(Limits { quota: held, ..log.limits() });
    goes_on(&spool, "quick", 15, "without a reserve").await;
    assert!(log.state().reserve.is_some());
    spool.close();
}

/// Stores a record that may use the last room of all; whether there was some.
async fn use_last_room(spool: &Spool) -> bool {
    let mut quick = lane(spool, "quick");
    let entry = quick.next().await;
    quick.bury(entry.place, "AR", 1).await.is_ok()
}

#[tokio::test]
async fn whenever_the_power_goes_while_space_is_made_what_comes_again_is_the_end_of_what_was_sent() {
    for (slow, used_up, kills, disk_full) in
        [(false, false, 0, false), (true, true, 0, false), (false, true, 0, true), (true, false, 3, false)]
    {
        for nth in 1.. {
            let (disk, spool, mut sent) = full_and_taken(slow, used_up, kills).await;
            let stays = bodies(&spool, "slow").await;
            if disk_full {
                disk.leave_room(0);
            }
            let next = body(3000, LENGTH);
            disk.power_off_at(nth);
            let stored = commit(&spool, Class::Clinical, &["quick"], &next).await.is_ok();
            let after = disk.cut(&mut Dice::new(nth));
            spool.close();
            let spool = open(&after, 5);
            let what = format!("slow {slow}, used up {used_up}, kills {kills}, disk full {disk_full}, operation {nth}");
            assert!(bodies(&spool, "slow").await == stays, "{what}");
            let again = bodies(&spool, "quick").await;
            if stored || again.last() == Some(&next) {
                sent.push(next);
            }
            assert!(sent.ends_with(&again), "{what}: {} come again, and not the last ones", again.len());
            assert!(!stored || !again.is_empty(), "{what}: what was acknowledged is gone");
            if stored || nth % 4 == 0 {
                take(&spool, &mut lane(&spool, "quick"), u64::MAX).await;
                goes_on(&spool, "quick", 15, &what).await;
            }
            spool.close();
            if stored {
                assert!(nth > 5, "{what}: no space had to be made");
                break;
            }
        }
    }
}

/// What broke the first attempt: a full log has room for a few cursors only, and more segments than that come free.
#[tokio::test]
async fn a_full_log_takes_messages_as_soon_as_its_lanes_get_on_though_the_room_for_cursors_is_used_up() {
    for (quota, disk_full) in [(5, false), (16, false), (16, true)] {
        let disk = SimDisk::new();
        let spool = open(&disk, quota);
        commit(&spool, Class::Clinical, &["slow"], b"stays in the first segment").await.unwrap();
        let sent = fill(&spool, &["quick"], &[]).await.len() as u64;
        if disk_full {
            disk.leave_room(0);
        }
        let mut quick = lane(&spool, "quick");
        let (mut number, mut accepted) = (1000, 0);
        while backlog(&spool, "quick") > 20 {
            // Less than a segment, with its cursors; and more than one at once.
            for count in [1, 1, 1, 1, 1, 1, 24] {
                take(&spool, &mut quick, count).await;
                if count == 1 {
                    write_cursors(&spool);
                }
            }
            for _ in 0..10 {
                number += 1;
                let outcome = commit(&spool, Class::Clinical, &["quick"], &body(number, LENGTH)).await;
                assert!(outcome.is_ok(), "{quota} segments, disk full {disk_full}: {number} {:?}", spool.logs()[0]);
                accepted += 1;
            }
        }
        assert!(quota < 16 || accepted > sent / 4, "{accepted} beside {sent}");
        take(&spool, &mut quick, u64::MAX).await;
        drop(quick);
        goes_on(&spool, "quick", 40, &format!("{quota} segments, disk full {disk_full}")).await;
        assert_eq!(bodies(&spool, "slow").await, [b"stays in the first segment"]);
    }
}

#[tokio::test]
async fn a_slow_lane_with_something_in_each_segment_does_not_hold_up_a_quick_one_for_want_of_room_for_cursors() {
    for disk_full in [false, true] {
        // On a full disk there must be some room for cursors: in segments of full size there is.
        let (disk, spool, _sent) = full_and_taken(true, !disk_full, 0).await;
        if disk_full {
            disk.leave_room(0);
        }
        let stays = bodies(&spool, "slow").await;
        goes_on(&spool, "quick", 40, &format!("disk full {disk_full}")).await;
        assert!(bodies(&spool, "slow").await == stays);
    }
}

#[tokio::test]
async fn a_full_log_that_was_killed_again_and_again_still_drains_and_takes_messages() {
    for (disk_full, beside) in [(false, &[][..]), (true, &[]), (false, &["slow"])] {
        for kills in 1..6 {
            let mut disk = SimDisk::new();
            let spool = open(&disk, 5);
            fill(&spool, &["quick"], beside).await;
            drop(spool);
            for _ in 0..kills {
                disk = disk.after_kill();
                if disk_full {
                    disk.leave_room(0);
                }
                let spool = open(&disk, 5);
                // On a full disk there is none at last: the message stays where it is.
                assert!(use_last_room(&spool).await || disk_full);
                fill(&spool, &["quick"], &[]).await;
            }
            disk = disk.after_kill();
            if disk_full {
                disk.leave_room(0);
            }
            let spool = open(&disk, 5);
            let mut quick = lane(&spool, "quick");
            take(&spool, &mut quick, u64::MAX).await;
            drop(quick);
            goes_on(&spool, "quick", 40, &format!("{kills} kills, disk full {disk_full}, {beside:?}")).await;
            spool.close();
        }
    }
}

#[tokio::test]
async fn more_lanes_than_the_room_for_cursors_has_bytes_for_do_not_stop_a_full_log() {
    let disk = SimDisk::new();
    let spool = open(&disk, 6);
    let source = |number: u64| format!("a-source-with-a-long-name-{number}");
    for number in 0..400 {
        commit_of(&spool, &source(number), Class::Clinical, &["quick"], &body(number, 300)).await.unwrap();
    }
    fill(&spool, &["other"], &[]).await;
    for number in 0..400 {
        let mut lane = spool.lane(Class::Clinical, &name(&source(number)), &name("quick"));
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
    take(&spool, &mut lane(&spool, "other"), u64::MAX).await;
    goes_on(&spool, "other", 40, "many lanes").await;
    let spool = open(&disk.after_kill(), 6);
    assert!(bodies(&spool, "other").await.len() < 40, "the cursors were kept");
}
