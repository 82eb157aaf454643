//! What a newer version stored before the box went back to this one is seen, kept, and sent once the newer one is back.

use std::ops::ControlFlow;
use std::time::Duration;

use super::frame::{Outgoing, build_group};
use super::record::Kind;
use super::sim::SimDisk;
use super::space_tests::{KEPT_MS, roll, write_cursors};
use super::storage::Storage;
use super::tests::{body, commit, commit_of, meta, name, open, waiting};
use super::{Class, Place, Spool, compact};
use crate::envelope::MessageId;

/// A kind of record that no version has yet.
const LATER: u8 = 77;

/// A log whose last message is in a form of a newer version.
struct Newer {
    id: MessageId,
    file: String,
    offset: u64,
    /// Its group as the newer version wrote it.
    group: Vec<u8>,
}

impl Newer {
    /// Stores a message of `source` for `engine`, 300 kB of it in an earlier segment, in a record of this kind.
    async fn store(disk: &SimDisk, spool: &Spool, source: &str, kind: u8) -> Self {
        let log = &spool.opened(Class::Clinical).log;
        let sent = body(50, 310_000);
        let mut draft = spool.begin(Class::Clinical, &name(source));
        draft.write(&sent[..300_000]).await.unwrap();
        // Another one in between begins the next segment.
        roll(spool);
        commit_of(spool, "other", Class::Clinical, &["other"], b"between").await.unwrap();
        draft.write(&sent[300_000..]).await.unwrap();
        let offset = log.state().segments.last_key_value().unwrap().1.end;
        draft.commit(meta(spool, source, &["engine"])).await.unwrap();
        let (segment, at) = {
            let state = log.state();
            let (order, held) = state.segments.last_key_value().unwrap();
            let extent = held.extent.lanes.iter().find(|extent| extent.source == name(source)).unwrap();
            (held.segment.clone(), Place { segment: *order, ordinal: extent.last })
        };
        let found = log.record(at, None).unwrap();
        let number = log.state().segments[&at.segment].groups - 1;
        let mut plaintext = found.plaintext;
        plaintext[0] = 9;
        let record = Outgoing { kind, tag: found.header.tag, ordinal: at.ordinal, plaintext };
        let mut group = Vec::new();
        build_group(&segment.seal, (number, 0), &[record], &mut group);
        let offset = disk.bytes(&segment.name).len().min(usize::try_from(offset).unwrap());
        let stored = disk.bytes(&segment.name)[offset..offset + group.len()].to_vec();
        let (offset, id) = (offset as u64, MessageId::new(segment.identity.id, at.ordinal));
        segment.file.write_at(&group, offset).unwrap();
        Self { id, file: segment.name.clone(), offset, group: stored }
    }

    /// The newer version is back: what it wrote is readable.
    fn back(&self, disk: &SimDisk) -> SimDisk {
        disk.open(&self.file).unwrap().write_at(&self.group, self.offset).unwrap();
        disk.after_kill()
    }
}

fn told(spool: &Spool) -> bool {
    spool.alarms().iter().any(|alarm| alarm.code == "damaged" && alarm.text.contains("newer version"))
}

/// Everything that could take its segments away, or parts of them.
async fn make_space(spool: &Spool) {
    write_cursors(spool);
    let log = &spool.opened(Class::Clinical).log;
    log.uptime.at_least(log.uptime.ms() + KEPT_MS);
    compact::sweep(log, 100);
    let mut lane = spool.lane(Class::Clinical, &name("busy"), &name("busy"));
    for number in 0..60 {
        commit_of(spool, "busy", Class::Clinical, &["busy"], &body(number, 90_000)).await.unwrap();
        let entry = lane.next().await;
        lane.advance(entry.place);
    }
}

#[tokio::test]
async fn a_message_in_a_form_of_a_newer_version_is_a_dead_letter_until_that_version_is_back() {
    for kind in [Kind::Data as u8, LATER] {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        commit(&spool, Class::Clinical, &["engine", "cloud"], b"before").await.unwrap();
        commit(&spool, Class::Clinical, &["stalled"], b"waits in the segment with the first pieces").await.unwrap();
        let newer = Newer::store(&disk, &spool, "icu", kind).await;
        let disk = disk.after_kill();
        let spool = open(&disk, 8);
        assert!(told(&spool), "kind {kind}: {:?}", spool.alarms());
        commit(&spool, Class::Clinical, &["engine"], b"behind").await.unwrap();
        // It may be for any of them.
        for (upstream, count) in [("engine", 3), ("cloud", 2)] {
            let mut lane = spool.lane(Class::Clinical, &name("icu"), &name(upstream));
            for number in 0..count {
                let next = tokio::time::timeout(Duration::from_secs(10), lane.next()).await;
                let entry = next.unwrap_or_else(|_| panic!("kind {kind}: {upstream} gets {number} of {count}"));
                assert_eq!((number == 1, number == 1), (entry.content.is_err(), entry.id == newer.id), "kind {kind}");
                if let Err(error) = entry.content {
                    lane.bury(entry.place, &error.to_string(), 1).await.unwrap();
                }
                lane.advance(entry.place);
            }
            assert_eq!(lane.waiting(), 0, "kind {kind}: {upstream}");
        }
        make_space(&spool).await;
        // Another start of this version.
        let disk = disk.after_kill();
        let spool = open(&disk, 8);
        assert!(told(&spool) && spool.dead().len() == 2, "kind {kind}");
        assert!(spool.dead().iter().all(|dead| spool.message(dead).is_err()));
        assert_eq!(spool.retry(&spool.dead(), None).await.unwrap(), 0, "kind {kind}: whom it is for is not known here");
        assert_eq!(spool.dead().len(), 2, "kind {kind}");
        assert_eq!(spool.verify(&mut |_, _| ControlFlow::Continue(())).unwrap().damage.len(), 1);
        make_space(&spool).await;
        // The newer one.
        let spool = open(&newer.back(&disk.after_kill()), 8);
        assert!(!told(&spool), "kind {kind}");
        assert_eq!(spool.retry(&spool.dead(), None).await.unwrap(), 2);
        assert!(spool.dead().is_empty());
        let mut engine = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        assert!(waiting(&spool, &mut engine).await == [(newer.id, body(50, 310_000))], "kind {kind}");
        let mut cloud = spool.lane(Class::Clinical, &name("icu"), &name("cloud"));
        assert!(waiting(&spool, &mut cloud).await.is_empty(), "it was not for this one");
        spool.close();
    }
}

#[tokio::test]
async fn a_message_of_a_newer_version_whose_lane_is_not_known_is_kept_and_sent_by_that_version() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let newer = Newer::store(&disk, &spool, "new", LATER).await;
    let disk = disk.after_kill();
    let spool = open(&disk, 8);
    assert!(told(&spool));
    make_space(&spool).await;
    let spool = open(&newer.back(&disk.after_kill()), 8);
    let mut lane = spool.lane(Class::Clinical, &name("new"), &name("engine"));
    assert!(waiting(&spool, &mut lane).await == [(newer.id, body(50, 310_000))]);
}

#[tokio::test]
async fn what_only_a_newer_version_can_read_goes_when_a_person_took_note_of_it() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    Newer::store(&disk, &spool, "new", LATER).await;
    let disk = disk.after_kill();
    let spool = open(&disk, 8);
    assert_eq!(spool.accept_damage().await.unwrap(), 1);
    assert!(!told(&spool));
    let spool = open(&disk.after_kill(), 8);
    assert!(!told(&spool), "after a restart as well");
}

/// A closed segment is not read at a start: whoever comes upon such a record leaves the segment alone.
#[tokio::test]
async fn a_closed_segment_of_a_newer_version_is_not_compacted_nor_are_the_pieces_that_it_points_to() {
    for kind in [Kind::Data as u8, LATER] {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        commit(&spool, Class::Clinical, &["stalled"], b"waits in the segment with the first pieces").await.unwrap();
        let newer = Newer::store(&disk, &spool, "icu", kind).await;
        roll(&spool);
        commit(&spool, Class::Clinical, &["stalled"], b"waits behind it").await.unwrap();
        let log = &spool.opened(Class::Clinical).log;
        compact::prepare(log);
        for order in [1, 2] {
            assert!(compact::compact(log, order).is_err(), "kind {kind}: segment {order}");
        }
        assert!(told(&spool), "kind {kind}");
        let spool = open(&newer.back(&disk.after_kill()), 8);
        let mut engine = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
        assert!(waiting(&spool, &mut engine).await == [(newer.id, body(50, 310_000))], "kind {kind}");
    }
}

/// It was taken for a free file, and written over.
#[tokio::test]
async fn a_segment_of_a_newer_version_is_left_alone() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    commit(&spool, Class::Clinical, &["engine"], b"of the newer version").await.unwrap();
    let log = &spool.opened(Class::Clinical).log;
    let (file, segment) = {
        let state = log.state();
        let segment = &state.segments.first_key_value().unwrap().1.segment;
        (segment.name.clone(), segment.file.clone())
    };
    spool.close();
    // Magic, spool, log and cipher, then the version; the checksum ends the header.
    let mut header = disk.bytes(&file)[..160].to_vec();
    header[26] = 9;
    let sum = crc32fast::hash(&header[..156]);
    header[156..].copy_from_slice(&sum.to_le_bytes());
    for slot in [0, 4096] {
        segment.write_at(&header, slot).unwrap();
    }
    segment.sync().unwrap();
    let before = disk.bytes(&file);
    let spool = open(&disk, 8);
    for number in 0..40 {
        // The quota is full at last: what is stored or refused then is not the question.
        let _stored_or_refused = commit(&spool, Class::Clinical, &["engine"], &body(number, 20_000)).await;
    }
    assert_eq!(spool.opened(Class::Clinical).log.state().foreign, std::slice::from_ref(&file));
    spool.close();
    assert!(disk.bytes(&file) == before, "it is written over");
}
