//! Pieces of long bodies are written without a sync of their own: the commit that takes them over makes them durable, a power
//! cut before it is no damage, and when their sync fails nothing that needs them is said to be stored. What is committed together is
//! there together.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use super::draft::FRAGMENT_BYTES;
use super::sim::{Dice, Fault, SimDisk};
use super::tests::{body, commit, meta, name, open, waiting};
use super::{Class, CommitError, Committed, Draft, Sight, Spool, compact};
use crate::digest::Digest;
use crate::envelope::{BodyError, Meta};

const LONG: usize = 2 * FRAGMENT_BYTES + 1000;

/// A body of which the first pieces were written and the rest never comes, unless it is committed.
async fn begun(spool: &Spool, number: u64) -> Draft {
    let mut draft = spool.begin(Class::Clinical, &name("icu"));
    for part in body(number, LONG).chunks(50_000) {
        draft.write(part).await.unwrap();
    }
    draft
}

/// A body of which one piece was written, and is in the log.
async fn piece(spool: &Spool, number: u64) -> Draft {
    let groups = || spool.opened(Class::Clinical).log.counters.groups.value();
    let before = groups();
    let mut draft = spool.begin(Class::Clinical, &name("icu"));
    draft.write(&body(number, FRAGMENT_BYTES + 1000)).await.unwrap();
    while groups() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    draft
}

async fn end(spool: &Spool, draft: Draft) -> Result<Committed, CommitError> {
    draft.commit(meta(spool, "icu", &["engine"])).await
}

async fn delivered(spool: &Spool) -> Vec<Vec<u8>> {
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    waiting(spool, &mut lane).await.into_iter().map(|(_, body)| body).collect()
}

#[tokio::test]
async fn a_long_body_costs_one_sync() {
    let spool = open(&SimDisk::new(), 8);
    commit(&spool, Class::Clinical, &["engine"], b"first").await.unwrap();
    let syncs = || spool.logs()[0].syncs;
    let before = syncs();
    let draft = begun(&spool, 1).await;
    end(&spool, draft).await.unwrap();
    assert_eq!(syncs() - before, 1);
    assert_eq!(delivered(&spool).await, [b"first".to_vec(), body(1, LONG)]);
}

#[tokio::test]
async fn a_power_cut_among_pieces_that_nobody_committed_is_no_damage_and_costs_nothing_else() {
    for seed in 0..60 {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        let mut sent = Vec::new();
        for number in 0..3 {
            sent.push(body(number, 3000));
            commit(&spool, Class::Clinical, &["engine"], &body(number, 3000)).await.unwrap();
        }
        // In some runs a message is committed between the pieces of the one that never ends.
        let unfinished = begun(&spool, 10).await;
        if seed % 2 == 0 {
            sent.push(body(20, 700));
            commit(&spool, Class::Clinical, &["engine"], &body(20, 700)).await.unwrap();
        }
        let other = begun(&spool, 11).await;
        if seed % 3 == 0 {
            sent.push(body(11, LONG));
            end(&spool, other).await.unwrap();
        }
        let after = open(&disk.cut(&mut Dice::new(seed)), 8);
        assert!(delivered(&after).await == sent, "seed {seed}");
        assert_eq!(after.logs()[0].quarantined, 0, "seed {seed}");
        drop(unfinished);
    }
}

#[tokio::test]
async fn a_power_cut_in_the_commit_of_a_long_body_is_no_damage() {
    for seed in 0..40 {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        commit(&spool, Class::Clinical, &["engine"], b"first").await.unwrap();
        let draft = piece(&spool, 1).await;
        // The last piece is written, and the power goes in its sync: it may be on the disk, and the pieces before it not.
        disk.power_off_at(2);
        assert_eq!(end(&spool, draft).await, Err(CommitError::Failed));
        let after = open(&disk.cut(&mut Dice::new(seed)), 8);
        assert!(delivered(&after).await == [b"first".to_vec()], "seed {seed}");
        assert_eq!(after.logs()[0].quarantined, 0, "seed {seed}");
    }
}

#[tokio::test]
async fn when_the_sync_of_pieces_fails_whatever_needs_them_is_refused_and_the_rest_goes_on() {
    for seed in 0..20 {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        commit(&spool, Class::Clinical, &["engine"], b"first").await.unwrap();
        let (one, two) = (piece(&spool, 1).await, piece(&spool, 2).await);
        // The write of the last piece goes well, its sync does not.
        disk.fail(Some(Fault { at: 2, lasting: false, kind: io::ErrorKind::Other }));
        assert_eq!(end(&spool, one).await, Err(CommitError::Failed));
        disk.fail(None);
        assert_eq!(end(&spool, two).await, Err(CommitError::Failed));
        let three = begun(&spool, 3).await;
        end(&spool, three).await.unwrap();
        let expected = [b"first".to_vec(), body(3, LONG)];
        assert!(delivered(&spool).await == expected);
        let after = open(&disk.cut(&mut Dice::new(seed)), 8);
        assert!(delivered(&after).await == expected, "seed {seed}");
        assert_eq!(after.logs()[0].quarantined, 0, "seed {seed}");
    }
}

/// A message with a note beside it, which is another lane's.
async fn with_a_note(spool: &Spool, control_id: &[u8]) -> Result<Committed, CommitError> {
    let mut draft = spool.begin(Class::Clinical, &name("icu"));
    draft.write(b"message").await.unwrap();
    draft.also(meta(spool, "icu", &["notes"]), b"note".to_vec());
    draft.commit(Meta { control_id: control_id.to_vec(), ..meta(spool, "icu", &["engine"]) }).await
}

async fn notes(spool: &Spool) -> usize {
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("notes"));
    waiting(spool, &mut lane).await.len()
}

#[tokio::test]
async fn what_is_committed_with_a_message_is_there_with_it_or_not_at_all() {
    for seed in 0..40 {
        let disk = SimDisk::new();
        let spool = open(&disk, 8);
        assert!(matches!(with_a_note(&spool, b"").await, Ok(Committed::Stored(_))));
        disk.power_off_at(1 + seed % 2);
        assert_eq!(with_a_note(&spool, b"").await, Err(CommitError::Failed));
        let after = open(&disk.cut(&mut Dice::new(seed)), 8);
        let count = delivered(&after).await.len();
        assert!((1..=2).contains(&count) && notes(&after).await == count, "seed {seed}");
    }
}

#[tokio::test]
async fn what_is_committed_with_a_message_goes_with_it_to_another_segment_and_not_with_a_second_copy() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    assert!(matches!(with_a_note(&spool, b"1").await, Ok(Committed::Stored(_))));
    assert!(matches!(with_a_note(&spool, b"1").await, Ok(Committed::Repeat(_))));
    assert_eq!((delivered(&spool).await.len(), notes(&spool).await), (1, 1));
    disk.fail(Some(Fault { at: 2, lasting: false, kind: io::ErrorKind::Other }));
    assert!(matches!(with_a_note(&spool, b"2").await, Ok(Committed::Stored(_))));
    assert_eq!((delivered(&spool).await.len(), notes(&spool).await), (2, 2));
    let after = open(&disk.after_kill(), 8);
    assert_eq!((delivered(&after).await.len(), notes(&after).await), (2, 2));
}

#[tokio::test]
async fn a_body_has_the_digest_of_its_bytes_however_long_it_is_and_however_it_came() {
    let spool = open(&SimDisk::new(), 64);
    let half = FRAGMENT_BYTES / 2;
    let lengths = [half, FRAGMENT_BYTES, FRAGMENT_BYTES + 1, LONG, LONG + half, 5 * FRAGMENT_BYTES + 9];
    let mut sent = Vec::new();
    for (number, length) in (0..).zip(lengths) {
        for cut in [7_919, 131_066, 2 * FRAGMENT_BYTES + 1] {
            let bytes = body(number, length);
            let mut draft = spool.begin(Class::Clinical, &name("icu"));
            for part in bytes.chunks(cut) {
                draft.write(part).await.unwrap();
            }
            end(&spool, draft).await.unwrap();
            sent.push(bytes);
        }
    }
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    for bytes in sent {
        let envelope = lane.next().await.content.unwrap();
        assert_eq!(envelope.digest, Digest::of(envelope.digest.algorithm, &bytes));
        assert!(envelope.body.collect().await.unwrap() == bytes);
    }
}

/// What was delivered long ago was called damaged, since its record is kept longer than its first pieces.
#[tokio::test]
async fn a_body_whose_pieces_are_not_kept_any_more_is_gone_and_not_damaged() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    let draft = piece(&spool, 1).await;
    spool.rotate().unwrap();
    end(&spool, draft).await.unwrap();
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let entry = lane.next().await;
    lane.advance(entry.place);
    spool.opened(Class::Clinical).requests.hold().write_cursors();
    // Room is wanted that there is not, until originals are given up for it.
    disk.leave_room(0);
    let log = &spool.opened(Class::Clinical).log;
    for _ in 0..3 {
        compact::next_file(log);
    }
    assert!(!log.state().segments.contains_key(&1), "it is not kept any more");
    let mut held = Vec::new();
    let mut see = |sight| {
        if let Sight::Message(seen) = sight {
            held.push(seen);
        }
        ControlFlow::Continue(())
    };
    spool.survey(&mut see).unwrap();
    assert_eq!(held.len(), 1, "its record is held");
    let error = held[0].envelope.body.collect().await.unwrap_err();
    assert!(matches!(error, BodyError::Gone(_)), "{error:?}");
    assert!(held[0].is_let_go(&error) && !held[0].is_let_go(&BodyError::Unreadable("damaged".to_owned())));
    held[0].waiting.push(name("engine"));
    assert!(!held[0].is_let_go(&error), "somebody waits for it: it should be there");
}
