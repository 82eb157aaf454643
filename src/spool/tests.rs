//! The spool against a model, on a disk that loses power, fails, fills up and rots.
//!
//! The invariants: what was committed is read back whole and in order per lane, or damage is shown (I1, I2); nothing is
//! read that was not sent (I3); after a fault everything goes on (I4); no nonce is used twice under one key (I5).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::sim::{Dice, Fault, SimDisk};
use super::{Class, CommitError, Committed, Lane, Limits, LogConfig, Name, ReplayOrder, Secret, Spool, SpoolConfig};
use crate::envelope::{Flags, MessageId, Meta};
use crate::values::SecretRef;

pub(super) const SEGMENT: u64 = 1 << 20;

pub(super) fn config() -> SpoolConfig {
    SpoolConfig {
        path: "unused".into(),
        key: SecretRef::File("unused".into()),
        recovery: vec![],
        duplicate_window: super::default_duplicate_window(),
        clinical: LogConfig::default(),
        imaging: LogConfig::default(),
        telemetry: LogConfig::default(),
    }
}

/// A spool with small segments, so that rolling, reclaiming and compacting happen in every test.
pub(super) fn open(disk: &SimDisk, quota_segments: u64) -> Spool {
    let limits = |class| Limits {
        quota: quota_segments * SEGMENT,
        segment_bytes: SEGMENT,
        keep_delivered: Duration::from_secs(3600),
        drop_oldest: class == Class::Telemetry,
    };
    Spool::open_with(Arc::new(disk.clone()), Secret::new([7; 32]), &config(), limits).unwrap()
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) async fn commit(
    spool: &Spool,
    class: Class,
    targets: &[&str],
    body: &[u8],
) -> Result<MessageId, CommitError> {
    commit_of(spool, "icu", class, targets, body).await
}

pub(super) async fn commit_of(
    spool: &Spool,
    source: &str,
    class: Class,
    targets: &[&str],
    body: &[u8],
) -> Result<MessageId, CommitError> {
    let source = name(source);
    let mut draft = spool.begin(class, &source);
    for part in body.chunks(50_000) {
        draft.write(part).await?;
    }
    match draft.commit(meta(spool, source.as_str(), targets)).await? {
        Committed::Stored(id) | Committed::Differing(id) => Ok(id),
        Committed::Repeat(_) => panic!("a message without control id is never a repeat"),
    }
}

/// What a source says of a message without control id.
pub(super) fn meta(spool: &Spool, source: &str, targets: &[&str]) -> Meta {
    Meta {
        source: name(source),
        protocol: "test".into(),
        content_type: "text/plain".into(),
        control_id: vec![],
        targets: targets.iter().map(|target| name(target)).collect(),
        flags: Flags::default(),
        received: spool.now(),
        tokens: Vec::new(),
    }
}

/// Everything that waits in a lane, without moving its cursor.
pub(super) async fn waiting(spool: &Spool, lane: &mut Lane) -> Vec<(MessageId, Vec<u8>)> {
    let mut found = Vec::new();
    for _ in 0..backlog(spool, lane) {
        let next =
            tokio::time::timeout(Duration::from_secs(10), lane.next()).await.expect("the backlog is there to be read");
        let envelope = next.content.expect("readable");
        found.push((envelope.id, envelope.body.collect().await.unwrap().to_vec()));
    }
    lane.rewind();
    found
}

fn backlog(spool: &Spool, lane: &Lane) -> u64 {
    let lanes = spool.lanes();
    let own = lanes.iter().find(|status| status.source == *lane.source() && status.upstream == *lane.upstream());
    own.map_or(0, |status| status.backlog)
}

pub(super) fn body(number: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(number);
    let mut body = number.to_le_bytes().to_vec();
    while body.len() < length {
        body.extend_from_slice(&dice.roll(u64::MAX).to_le_bytes());
    }
    body.truncate(length.max(8));
    body
}

#[tokio::test]
async fn a_message_comes_back_whole_after_a_power_cut() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let first = commit(&spool, Class::Clinical, &["engine"], b"MSH|short").await.unwrap();
    let second = commit(&spool, Class::Imaging, &["archive"], &body(3, 3_000_000)).await.unwrap();
    let after = disk.cut(&mut Dice::new(1));
    spool.close();
    let spool = open(&after, 8);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    assert_eq!(waiting(&spool, &mut lane).await, [(first, b"MSH|short".to_vec())]);
    assert!(!after.names().iter().any(|name| contains(&after.bytes(name), b"MSH|short")), "in clear on disk");
    let mut lane = spool.lane(Class::Imaging, &name("icu"), &name("archive"));
    assert!(waiting(&spool, &mut lane).await == [(second, body(3, 3_000_000))], "pieces over four segments");
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn a_delivered_message_is_not_sent_again_after_a_clean_stop() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    commit(&spool, Class::Clinical, &["engine", "cloud"], b"one").await.unwrap();
    let second = commit(&spool, Class::Clinical, &["engine", "cloud"], b"two").await.unwrap();
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let entry = lane.next().await;
    lane.advance(entry.place);
    spool.close();
    let spool = open(&disk.after_kill(), 8);
    let mut engine = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let mut cloud = spool.lane(Class::Clinical, &name("icu"), &name("cloud"));
    assert_eq!(waiting(&spool, &mut engine).await, [(second, b"two".to_vec())]);
    assert_eq!(waiting(&spool, &mut cloud).await.len(), 2);
}

#[tokio::test]
async fn after_a_restart_what_waits_is_as_old_as_its_oldest_and_not_as_what_was_delivered_before() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    // Of one second of service, and of now.
    for (body, received) in [(&b"delivered"[..], None), (b"waiting", Some(3_600_000))] {
        let mut draft = spool.begin(Class::Clinical, &name("icu"));
        draft.write(body).await.unwrap();
        let mut meta = meta(&spool, "icu", &["engine"]);
        meta.received.uptime_ms = received.unwrap_or(1_000);
        draft.commit(meta).await.unwrap();
    }
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let entry = lane.next().await;
    lane.advance(entry.place);
    spool.close();
    let spool = open(&disk.after_kill(), 8);
    let status = spool.lanes().into_iter().find(|lane| lane.upstream == name("engine")).unwrap();
    assert_eq!(status.backlog, 1);
    assert!(status.oldest_s.unwrap() < 60, "{status:?}");
}

#[tokio::test]
async fn a_full_log_refuses_then_drains_and_takes_messages_again_by_itself() {
    let disk = SimDisk::new();
    let spool = open(&disk, 5);
    let mut stored = 0;
    while commit(&spool, Class::Clinical, &["engine"], &body(stored, 60_000)).await.is_ok() {
        stored += 1;
        assert!(stored < 1000, "the quota holds nobody back");
    }
    assert!(stored > 20 && spool.logs()[0].refusing.is_some());
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    for number in 0..stored {
        let entry = lane.next().await;
        let got = entry.content.unwrap().body.collect().await.unwrap();
        assert!(got == body(number, 60_000), "message {number} is not what was sent");
        lane.advance(entry.place);
    }
    commit(&spool, Class::Clinical, &["engine"], b"again").await.unwrap();
    assert!(spool.logs()[0].refusing.is_none());
}

/// Stores and delivers one message after the other, more than the quota holds.
async fn store_and_deliver(spool: &Spool, lane: &mut Lane, numbers: std::ops::Range<u64>, length: usize) {
    for number in numbers {
        commit(spool, Class::Clinical, &["engine"], &body(number, length)).await.expect("there is room");
        let entry = lane.next().await;
        assert!(entry.content.unwrap().body.collect().await.unwrap() == body(number, length));
        lane.advance(entry.place);
    }
}

#[tokio::test]
async fn a_full_log_of_bodies_that_reach_over_segments_takes_messages_again_when_they_are_delivered() {
    let disk = SimDisk::new();
    let spool = open(&disk, 5);
    let mut stored = 0;
    while commit(&spool, Class::Clinical, &["engine"], &body(stored, 700_000)).await.is_ok() {
        stored += 1;
        assert!(stored < 100, "the quota holds nobody back");
    }
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    for number in 0..stored {
        let entry = lane.next().await;
        assert!(entry.content.unwrap().body.collect().await.unwrap() == body(number, 700_000));
        lane.advance(entry.place);
    }
    store_and_deliver(&spool, &mut lane, 100..120, 700_000).await;
}

#[tokio::test]
async fn the_pieces_of_a_body_that_arrives_slowly_stay_while_space_is_taken_back() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let slow = body(1, 3_000_000);
    let mut draft = spool.begin(Class::Clinical, &name("icu"));
    draft.write(&slow[..2_500_000]).await.unwrap();
    // Enough for every segment but its own to be used again. What finds no room is refused, as it should be.
    for number in 2..60 {
        if commit(&spool, Class::Clinical, &["engine"], &body(number, 200_000)).await.is_ok() {
            let entry = lane.next().await;
            lane.advance(entry.place);
        }
    }
    draft.write(&slow[2_500_000..]).await.unwrap();
    draft.commit(meta(&spool, "icu", &["engine"])).await.unwrap();
    assert!(lane.next().await.content.unwrap().body.collect().await.unwrap() == slow);
}

#[tokio::test]
async fn bodies_that_were_never_finished_pin_nothing_in_this_run_or_the_next() {
    let disk = SimDisk::new();
    let spool = open(&disk, 5);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    for number in 0..20 {
        let mut draft = spool.begin(Class::Clinical, &name("icu"));
        // The last piece is still on its way when the connection breaks.
        draft.write(&body(number, 300_000)).await.unwrap();
        drop(draft);
        store_and_deliver(&spool, &mut lane, 100 * number..100 * number + 3, 100_000).await;
    }
    let mut draft = spool.begin(Class::Clinical, &name("icu"));
    draft.write(&body(1, 800_000)).await.unwrap();
    let after = disk.cut(&mut Dice::new(3));
    drop(draft);
    spool.close();
    let spool = open(&after, 5);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    while backlog(&spool, &lane) > 0 {
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
    store_and_deliver(&spool, &mut lane, 5000..5100, 100_000).await;
}

#[tokio::test]
async fn a_stalled_lane_and_a_dead_letter_do_not_pin_the_space_of_a_busy_one() {
    let disk = SimDisk::new();
    let spool = open(&disk, 6);
    let mut busy = spool.lane(Class::Clinical, &name("icu"), &name("busy"));
    let mut refused = spool.lane(Class::Clinical, &name("icu"), &name("refuses"));
    let dead = commit(&spool, Class::Clinical, &["refuses"], &body(0, 900)).await.unwrap();
    let entry = refused.next().await;
    refused.bury(entry.place, "AR: no such patient", 1).await.unwrap();
    refused.advance(entry.place);
    let mut stalled = Vec::new();
    for number in 1..300 {
        if number % 40 == 0 {
            stalled.push((
                commit(&spool, Class::Clinical, &["stalled"], &body(number, 500)).await.unwrap(),
                body(number, 500),
            ));
        }
        commit(&spool, Class::Clinical, &["busy"], &body(number, 90_000)).await.expect("the busy lane goes on");
        let entry = busy.next().await;
        assert!(entry.content.unwrap().body.collect().await.unwrap() == body(number, 90_000));
        busy.advance(entry.place);
    }
    let after = disk.cut(&mut Dice::new(5));
    spool.close();
    let spool = open(&after, 6);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("stalled"));
    assert_eq!(waiting(&spool, &mut lane).await, stalled, "order and ids stay through compaction");
    let letters = spool.dead();
    assert_eq!((letters.len(), letters[0].id), (1, dead));
    assert_eq!(spool.message(&letters[0]).unwrap().body.collect().await.unwrap(), body(0, 900));
}

#[tokio::test]
async fn large_bodies_that_were_delivered_do_not_fill_the_quota_beside_a_stalled_lane() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let mut busy = spool.lane(Class::Clinical, &name("icu"), &name("busy"));
    let mut refused = spool.lane(Class::Clinical, &name("icu"), &name("refuses"));
    let dead = commit(&spool, Class::Clinical, &["refuses"], &body(0, 600_000)).await.unwrap();
    let entry = refused.next().await;
    refused.bury(entry.place, "AR: no such patient", 1).await.unwrap();
    refused.advance(entry.place);
    let first = commit(&spool, Class::Clinical, &["stalled"], &body(1, 600_000)).await.unwrap();
    let mut stalled = vec![(first, body(1, 600_000))];
    // In every segment something that waits: none of them is ever done.
    for number in 2..80 {
        let id = commit(&spool, Class::Clinical, &["stalled"], &body(number, 500)).await.unwrap();
        stalled.push((id, body(number, 500)));
        commit(&spool, Class::Clinical, &["busy"], &body(number, 600_000)).await.expect("the busy lane goes on");
        let entry = busy.next().await;
        assert!(entry.content.unwrap().body.collect().await.unwrap() == body(number, 600_000));
        busy.advance(entry.place);
        if number == 2 {
            let (from_us, to_us, upstream) = (0, i64::MAX, name("again"));
            let order = ReplayOrder { source: name("icu"), from_us, to_us, upstream, dry_run: false };
            assert_eq!(spool.replay(&order).await.unwrap().messages, 4);
        }
    }
    let after = disk.cut(&mut Dice::new(5));
    spool.close();
    // With room again, so that nothing is compacted while it is asked for.
    let spool = open(&after, 32);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("stalled"));
    assert!(waiting(&spool, &mut lane).await == stalled, "order, ids and bodies stay through compaction");
    let mut again = spool.lane(Class::Clinical, &name("icu"), &name("again"));
    let again: Vec<Vec<u8>> = waiting(&spool, &mut again).await.into_iter().map(|(_, body)| body).collect();
    let originals = [body(0, 600_000), body(1, 600_000), body(2, 500), body(2, 600_000)];
    assert!(again == originals, "what a replay needs stays, delivered or not");
    let letters = spool.dead();
    assert_eq!((letters.len(), letters[0].id), (1, dead));
    assert!(spool.message(&letters[0]).unwrap().body.collect().await.unwrap() == body(0, 600_000));
    let (from_us, to_us, upstream) = (0, i64::MAX, name("later"));
    let order = ReplayOrder { source: name("icu"), from_us, to_us, upstream, dry_run: false };
    let kept = spool.replay(&order).await.unwrap().messages;
    let mut later = spool.lane(Class::Clinical, &name("icu"), &name("later"));
    assert_eq!(waiting(&spool, &mut later).await.len() as u64, kept, "only what is there whole is sent again");
}

#[tokio::test]
async fn an_original_that_waits_to_be_sent_again_survives_compaction() {
    let disk = SimDisk::new();
    let spool = open(&disk, 4);
    let mut busy = spool.lane(Class::Clinical, &name("icu"), &name("busy"));
    let original = commit(&spool, Class::Clinical, &["busy"], &body(1000, 400_000)).await.unwrap();
    let entry = busy.next().await;
    busy.advance(entry.place);
    let order =
        ReplayOrder { source: name("icu"), from_us: 0, to_us: i64::MAX, upstream: name("stalled"), dry_run: false };
    assert_eq!(spool.replay(&order).await.unwrap().messages, 1);
    for number in 1..150 {
        if number == 30 {
            commit(&spool, Class::Clinical, &["other"], b"pins a second segment").await.unwrap();
        }
        commit(&spool, Class::Clinical, &["busy"], &body(number, 90_000)).await.expect("the busy lane goes on");
        let entry = busy.next().await;
        busy.advance(entry.place);
    }
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("stalled"));
    assert!(waiting(&spool, &mut lane).await == [(original, body(1000, 400_000))]);
    // Refused again, it is a dead letter of which only the replay's place is known.
    let entry = lane.next().await;
    lane.bury(entry.place, "AR", 1).await.unwrap();
    lane.advance(entry.place);
    for number in 200..300 {
        commit(&spool, Class::Clinical, &["busy"], &body(number, 90_000)).await.expect("the busy lane goes on");
        let entry = busy.next().await;
        busy.advance(entry.place);
    }
    let letters = spool.dead();
    assert!(spool.message(&letters[0]).unwrap().body.collect().await.unwrap() == body(1000, 400_000));
}

#[tokio::test]
async fn a_full_telemetry_log_drops_its_oldest_and_goes_on() {
    let disk = SimDisk::new();
    let spool = open(&disk, 5);
    for number in 0..200 {
        commit(&spool, Class::Telemetry, &["cloud"], &body(number, 90_000)).await.expect("telemetry is never refused");
    }
    let mut lane = spool.lane(Class::Telemetry, &name("icu"), &name("cloud"));
    let left = waiting(&spool, &mut lane).await;
    assert!(left.len() > 10 && left.len() < 100);
    assert!(left.last().unwrap().1 == body(199, 90_000), "the newest stays");
}

#[tokio::test]
async fn a_dead_letter_that_is_retried_comes_at_the_end_of_its_lane_under_its_own_id() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let first = commit(&spool, Class::Clinical, &["engine"], b"first").await.unwrap();
    let second = commit(&spool, Class::Clinical, &["engine"], b"second").await.unwrap();
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let entry = lane.next().await;
    lane.bury(entry.place, "AE", 10).await.unwrap();
    lane.advance(entry.place);
    assert_eq!(spool.retry(&spool.dead(), Some(0)).await.unwrap(), 1);
    spool.close();
    let spool = open(&disk.cut(&mut Dice::new(3)), 8);
    assert!(spool.dead().is_empty());
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let found = waiting(&spool, &mut lane).await;
    assert_eq!(found, [(second, b"second".to_vec()), (first, b"first".to_vec())]);
}

#[tokio::test]
async fn after_one_failed_sync_the_message_is_committed_elsewhere_and_after_two_intake_is_off() {
    for lasting in [false, true] {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        spool.prepare(Class::Clinical);
        commit(&spool, Class::Clinical, &["engine"], b"before").await.unwrap();
        disk.fail(Some(Fault { at: 2, lasting, kind: io::ErrorKind::Other }));
        let outcome = commit(&spool, Class::Clinical, &["engine"], b"during").await;
        assert_eq!(outcome.err(), lasting.then_some(CommitError::Failed));
        disk.fail(None);
        let later = commit(&spool, Class::Clinical, &["engine"], b"after").await;
        assert_eq!(later.is_err(), lasting, "intake stays off after two failures");
        let after = disk.cut(&mut Dice::new(9));
        spool.close();
        let spool = open(&after, 8);
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        let found: Vec<Vec<u8>> = waiting(&spool, &mut lane).await.into_iter().map(|(_, body)| body).collect();
        let expected: &[&[u8]] = if lasting { &[b"before"] } else { &[b"before", b"during", b"after"] };
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn a_flipped_bit_is_damage_that_is_shown_and_never_a_wrong_message() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let mut sent = BTreeMap::new();
    for number in 0..6 {
        sent.insert(
            commit(&spool, Class::Clinical, &["engine"], &body(number, 3000)).await.unwrap(),
            body(number, 3000),
        );
    }
    spool.close();
    let files: Vec<String> = disk.names().into_iter().filter(|name| name.starts_with("clinical/")).collect();
    let mut dice = Dice::new(77);
    for _ in 0..60 {
        let rotten = disk.after_kill();
        let file = &files[usize::try_from(dice.roll(files.len() as u64)).unwrap()];
        let byte = 8192 + usize::try_from(dice.roll(40_000)).unwrap();
        rotten.flip(file, byte, 3);
        check_rotten(&rotten, &sent, &format!("{file} byte {byte}")).await;
    }
}

async fn check_rotten(disk: &SimDisk, sent: &BTreeMap<MessageId, Vec<u8>>, what: &str) {
    let spool = open(disk, 8);
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let mut whole = HashSet::new();
    let shown = || spool.logs()[0].quarantined > 0;
    while whole.len() < sent.len() {
        // What is not shown as damaged must come, on a slow machine too.
        let patience = Duration::from_millis(if shown() { 50 } else { 20_000 });
        let Ok(entry) = tokio::time::timeout(patience, lane.next()).await else { break };
        if let Ok(envelope) = entry.content {
            assert_eq!(envelope.body.collect().await.unwrap(), sent[&envelope.id], "{what}");
            whole.insert(envelope.id);
        }
    }
    let gone = sent.len() - whole.len();
    assert!(gone == 0 || shown(), "{what}: {gone} of {} messages are gone and nobody is told", sent.len());
    spool.close();
}

#[derive(Clone, Debug)]
enum Step {
    Commit { target: usize, length: usize },
    Deliver { target: usize, count: usize },
    Bury { target: usize },
    Cut { seed: u64 },
    Kill,
    Stop,
    Fault { at: u64, full: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..3usize, prop_oneof![9..2000usize, Just(9), 80_000..300_000usize]).prop_map(|(target, length)| Step::Commit { target, length }),
        6 => (0..3usize, 1..30usize).prop_map(|(target, count)| Step::Deliver { target, count }),
        1 => (0..3usize).prop_map(|target| Step::Bury { target }),
        2 => any::<u64>().prop_map(|seed| Step::Cut { seed }),
        1 => Just(Step::Kill),
        1 => Just(Step::Stop),
        1 => (1..12u64, any::<bool>()).prop_map(|(at, full)| Step::Fault { at, full }),
    ];
    prop::collection::vec(step, 1..60)
}

const UPSTREAMS: [&[&str]; 3] = [&["engine"], &["cloud"], &["engine", "cloud"]];

/// What must be true, kept beside the spool.
#[derive(Default)]
struct Model {
    /// For each upstream, what was committed, in order.
    sent: BTreeMap<&'static str, Vec<MessageId>>,
    /// ... and not delivered yet.
    waiting: BTreeMap<&'static str, Vec<MessageId>>,
    dead: HashSet<(MessageId, &'static str)>,
    bodies: HashMap<MessageId, u64>,
    lengths: HashMap<u64, usize>,
    number: u64,
}

impl Model {
    async fn step(&mut self, disk: &mut SimDisk, spool: &mut Spool, step: &Step) {
        match step {
            Step::Commit { target, length } => {
                self.number += 1;
                self.lengths.insert(self.number, *length);
                let outcome = commit(spool, Class::Clinical, UPSTREAMS[*target], &body(self.number, *length)).await;
                if let Ok(id) = outcome {
                    self.bodies.insert(id, self.number);
                    for upstream in UPSTREAMS[*target] {
                        self.sent.entry(upstream).or_default().push(id);
                        self.waiting.entry(upstream).or_default().push(id);
                    }
                }
            }
            Step::Deliver { target, count } => self.deliver(spool, UPSTREAMS[*target][0], *count, false).await,
            Step::Bury { target } => self.deliver(spool, UPSTREAMS[*target][0], 1, true).await,
            Step::Cut { seed } => {
                let after = disk.cut(&mut Dice::new(*seed));
                self.restart(disk, spool, after).await;
            }
            Step::Kill => {
                let after = disk.after_kill();
                self.restart(disk, spool, after).await;
            }
            Step::Stop => {
                spool.close();
                let after = disk.cut(&mut Dice::new(1));
                self.restart(disk, spool, after).await;
            }
            Step::Fault { at, full } => {
                let kind = if *full { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
                disk.fail(Some(Fault { at: *at, lasting: false, kind }));
            }
        }
    }

    async fn restart(&mut self, disk: &mut SimDisk, spool: &mut Spool, after: SimDisk) {
        spool.close();
        *disk = after;
        *spool = open(disk, 7);
        self.check(spool).await;
    }

    async fn deliver(&mut self, spool: &Spool, upstream: &'static str, count: usize, bury: bool) {
        let mut lane = spool.lane(Class::Clinical, &name("icu"), &name(upstream));
        for _ in 0..count.min(usize::try_from(backlog(spool, &lane)).unwrap()) {
            let entry = tokio::time::timeout(Duration::from_secs(10), lane.next()).await.expect("there is a backlog");
            if bury {
                if lane.bury(entry.place, "refused", 1).await.is_err() {
                    return;
                }
                self.dead.insert((entry.id, upstream));
            }
            lane.advance(entry.place);
            // Second copies come after cursors that were lost; only the first one counts.
            self.waiting.entry(upstream).or_default().retain(|id| *id != entry.id);
        }
    }

    /// I1, I2, I3: all that is owed is there, in order and whole, and nothing else than what was once sent.
    async fn check(&mut self, spool: &Spool) {
        for upstream in ["engine", "cloud"] {
            let mut lane = spool.lane(Class::Clinical, &name("icu"), &name(upstream));
            let found = waiting(spool, &mut lane).await;
            for (id, bytes) in &found {
                // A commit that was refused may have reached the disk: its body is still one that was sent.
                let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert_eq!(*bytes, body(number, self.lengths[&number]), "{id} is not what was sent");
                assert!(self.bodies.get(id).is_none_or(|known| *known == number), "{id} is another message");
            }
            let ids: Vec<MessageId> = found.iter().map(|(id, _)| *id).collect();
            let owed = self.waiting.entry(upstream).or_default();
            let present: Vec<MessageId> = ids.iter().copied().filter(|id| owed.contains(id)).collect();
            assert_eq!(present, *owed, "what was acknowledged for {upstream} must be there, in order");
            // What was delivered before may come again, but then all that was sent after it does.
            let known: Vec<MessageId> = ids.into_iter().filter(|id| self.bodies.contains_key(id)).collect();
            let sent = self.sent.entry(upstream).or_default();
            assert!(
                sent.ends_with(&known),
                "{upstream} gets old messages again without those behind them: {known:?} of {sent:?}"
            );
        }
        let letters: HashSet<(MessageId, String)> =
            spool.dead().into_iter().map(|dead| (dead.id, dead.upstream.to_string())).collect();
        for (id, upstream) in &self.dead {
            assert!(letters.contains(&(*id, (*upstream).to_string())), "a dead letter is gone");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_was_acknowledged_is_there_in_order(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut disk = SimDisk::new();
            let mut spool = open(&disk, 7);
            let mut model = Model::default();
            for step in &steps {
                model.step(&mut disk, &mut spool, step).await;
            }
            let after = disk.cut(&mut Dice::new(steps.len() as u64));
            model.restart(&mut disk, &mut spool, after).await;
            spool.close();
        });
    }
}

/// I4: whichever single operation fails, nothing acknowledged is lost and the spool goes on or says that it is off.
#[tokio::test]
async fn whichever_operation_fails_once_nothing_acknowledged_is_lost() {
    for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
        for nth in (1..45).step_by(2).map(|nth| nth + u64::from(kind == io::ErrorKind::Other)) {
            let disk = SimDisk::new();
            let spool = open(&disk, 6);
            disk.fail(Some(Fault { at: nth, lasting: false, kind }));
            let mut stored = Vec::new();
            for number in 0..24 {
                if let Ok(id) = commit(&spool, Class::Clinical, &["engine"], &body(number, 90_000)).await {
                    stored.push((id, body(number, 90_000)));
                }
            }
            assert!(
                stored.len() >= 22 || spool.logs()[0].refusing.is_some(),
                "operation {nth}: {} stored",
                stored.len()
            );
            let after = disk.cut(&mut Dice::new(nth));
            spool.close();
            let spool = open(&after, 6);
            let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
            let found = waiting(&spool, &mut lane).await;
            let present: Vec<_> =
                found.into_iter().filter(|(id, _)| stored.iter().any(|(known, _)| known == id)).collect();
            assert!(present == stored, "operation {nth} with {kind:?}");
            spool.close();
        }
    }
}
