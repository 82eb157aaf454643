//! What people carry from box to box by hand, and a check of everything: on the simulated disk.

use std::ops::ControlFlow;

use bytes::Bytes;
use proptest::prelude::*;

use super::sim::{Dice, SimDisk};
use super::tests::{body, commit, name, open, waiting};
use super::transfer::{PIECE_BYTES_MAX, Parser, TransferError};
use super::{Class, ImportError, Imported, Sight, Spool, Writing};
use crate::envelope::MessageId;

/// The export of all that a spool holds.
async fn export(spool: &Spool) -> Vec<u8> {
    let mut found = Vec::new();
    let see = &mut |sight| {
        if let Sight::Message(seen) = sight {
            found.push(seen);
        }
        ControlFlow::Continue(())
    };
    spool.survey(see).unwrap();
    let (mut writing, mut bytes) = Writing::begin();
    for seen in found {
        bytes.extend(writing.head(&seen.envelope));
        let mut reader = seen.envelope.body.reader();
        while let Some(piece) = reader.next().await.unwrap() {
            bytes.extend(Writing::piece(&piece));
        }
        bytes.extend(writing.whole(seen.envelope.body.len()));
    }
    bytes.extend(writing.end().0);
    bytes
}

/// Imports what comes in pieces of `size`.
async fn import(spool: &Spool, export: &[u8], size: usize) -> Result<Imported, ImportError> {
    let mut import = spool.import(vec![name("archive")], &mut |_, _| ControlFlow::Continue(())).unwrap();
    for piece in export.chunks(size) {
        import.take(&Bytes::copy_from_slice(piece)).await?;
    }
    import.finish()
}

async fn held(spool: &Spool, class: Class) -> Vec<(MessageId, Vec<u8>)> {
    let mut lane = spool.lane(class, &name("icu"), &name("archive"));
    waiting(spool, &mut lane).await
}

/// A spool with short messages and one of several pieces, and what it holds.
async fn first_box() -> (Spool, Vec<(MessageId, Vec<u8>)>) {
    let spool = open(&SimDisk::new(), 8);
    let mut sent = Vec::new();
    for (number, length) in [(1, 60), (2, 900_000), (3, 8), (4, 5_000)] {
        let body = body(number, length);
        let id = commit(&spool, Class::Clinical, &["engine"], &body).await.unwrap();
        sent.push((id, body));
    }
    (spool, sent)
}

#[tokio::test]
async fn messages_arrive_on_another_box_under_their_ids_and_only_once() {
    let (first, sent) = first_box().await;
    let bytes = export(&first).await;
    let disk = SimDisk::new();
    let second = open(&disk, 8);
    let total = sent.iter().map(|(_, body)| body.len() as u64).sum();
    let all = Imported { stored: 4, repeats: 0, bytes: total };
    assert_eq!(import(&second, &bytes, 10_000).await, Ok(all));
    assert!(held(&second, Class::Clinical).await == sent);
    assert_eq!(import(&second, &bytes, 77_777).await.unwrap().repeats, 4);
    let after = disk.cut(&mut Dice::new(5));
    second.close();
    let second = open(&after, 8);
    assert_eq!(import(&second, &bytes, 1 << 20).await.unwrap(), Imported { repeats: 4, ..Imported::default() });
    assert!(held(&second, Class::Clinical).await == sent, "what was told to be stored survives a power cut");
    assert_eq!(import(&first, &bytes, 1 << 20).await.unwrap().repeats, 4, "its own messages are known to a box too");
    assert_eq!(first.lanes().iter().map(|lane| lane.backlog).sum::<u64>(), 4, "an export delivers nothing");
}

#[tokio::test]
async fn an_export_that_was_cut_off_is_told_from_a_whole_one_and_can_be_taken_up_again() {
    let (first, sent) = first_box().await;
    let bytes = export(&first).await;
    let second = open(&SimDisk::new(), 8);
    let mut dice = Dice::new(8);
    for _ in 0..20 {
        let length = usize::try_from(dice.roll(bytes.len() as u64)).unwrap();
        assert_eq!(import(&second, &bytes[..length], 50_000).await, Err(TransferError::CutOff.into()), "{length}");
    }
    import(&second, &bytes, 50_000).await.unwrap();
    let mut arrived = held(&second, Class::Clinical).await;
    arrived.sort();
    let mut sent = sent;
    sent.sort();
    assert!(arrived == sent, "each once, whatever came in which attempt");
}

#[tokio::test]
async fn a_changed_body_is_refused_and_never_stored() {
    let (first, sent) = first_box().await;
    let mut bytes = export(&first).await;
    let place = bytes.windows(60).position(|window| window == sent[0].1).unwrap();
    bytes[place + 30] ^= 1;
    let second = open(&SimDisk::new(), 8);
    assert_eq!(import(&second, &bytes, 4_096).await, Err(ImportError::Checksum));
    assert!(held(&second, Class::Clinical).await.is_empty());
}

#[tokio::test]
async fn the_age_of_an_imported_message_is_counted_on_this_box() {
    let (first, _) = first_box().await;
    let mut bytes = export(&first).await;
    let second = open(&SimDisk::new(), 8);
    import(&second, &bytes, 4_096).await.unwrap();
    let mut lane = second.lane(Class::Clinical, &name("icu"), &name("archive"));
    let received = lane.next().await.content.unwrap().meta.received;
    assert!(received.uptime_ms <= second.now().uptime_ms);
    bytes.clear();
    assert_eq!(import(&second, &bytes, 1).await, Err(TransferError::CutOff.into()));
}

#[tokio::test]
async fn a_check_of_all_records_finds_nothing_in_a_sound_spool_and_names_the_damaged_segment() {
    let disk = SimDisk::new();
    let spool = open(&disk, 8);
    for number in 0..20 {
        commit(&spool, Class::Clinical, &["engine"], &body(number, 3_000)).await.unwrap();
    }
    let mut steps = 0;
    let counted = &mut |_, total| {
        steps += 1;
        assert_eq!(total, 1);
        ControlFlow::Continue(())
    };
    let sound = spool.verify(counted).unwrap();
    assert!(sound.damage.is_empty() && sound.records > 20 && sound.bytes > 60_000, "{sound:?}");
    assert_eq!((sound.segments, steps), (1, 1));
    let file = disk.names().into_iter().find(|name| name.starts_with("clinical/") && disk.bytes(name)[0] != 0);
    assert!(disk.flip(&file.unwrap(), 41_500, 3));
    let damaged = spool.verify(&mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(damaged.damage.len(), 1, "{damaged:?}");
    assert_eq!((damaged.damage[0].class, damaged.damage[0].segment), (Class::Clinical, 1));
    assert_eq!(damaged.records, sound.records - 1);
    let broken_off = spool.verify(&mut |_, _| ControlFlow::Break(())).unwrap_err();
    assert_eq!(broken_off.kind(), std::io::ErrorKind::Interrupted);
}

#[tokio::test]
async fn a_reading_of_all_messages_tells_who_waits_and_who_refused() {
    let spool = open(&SimDisk::new(), 8);
    for text in ["done", "dead", "waits"] {
        commit(&spool, Class::Clinical, &["engine", "cloud"], text.as_bytes()).await.unwrap();
    }
    let mut lane = spool.lane(Class::Clinical, &name("icu"), &name("engine"));
    let entry = lane.next().await;
    lane.advance(entry.place);
    let entry = lane.next().await;
    lane.bury(entry.place, "AR", 1).await.unwrap();
    lane.advance(entry.place);
    let standing = |spool: &Spool| {
        let mut seen = Vec::new();
        let see = &mut |sight| {
            if let Sight::Message(message) = sight {
                let names = |names: &[super::Name]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                seen.push((names(&message.waiting), names(&message.dead)));
            }
            ControlFlow::Continue(())
        };
        spool.survey(see).unwrap();
        seen
    };
    let pair = |waiting: &str, dead: &str| (waiting.to_owned(), dead.to_owned());
    assert_eq!(standing(&spool), [pair("cloud", ""), pair("cloud", "engine"), pair("cloud engine", "")]);
    spool.retry(&spool.dead(), None).await.unwrap();
    assert_eq!(standing(&spool), [pair("cloud", ""), pair("cloud engine", ""), pair("cloud engine", "")]);
}

#[test]
fn a_length_above_its_limit_is_not_believed() {
    for (kind, longest) in [(1u8, 256 << 10), (2, 256 << 10)] {
        let mut parser = Parser::default();
        parser.feed(b"WGXFER01");
        parser.feed(&[kind]);
        parser.feed(&u32::try_from(longest + 1).unwrap().to_le_bytes());
        assert!(matches!(parser.part(), Err(TransferError::Malformed(_))));
    }
    let mut parser = Parser::default();
    parser.feed(b"an age file, or a picture");
    assert!(matches!(parser.part(), Err(TransferError::Foreign)));
}

proptest! {
    #[test]
    fn whatever_comes_a_parser_ends_and_holds_no_more_than_it_was_fed(junk: Vec<u8>, size in 1..40usize) {
        let mut parser = Parser::default();
        parser.feed(b"WGXFER01");
        let mut parts = 0;
        'all: for piece in junk.chunks(size) {
            parser.feed(piece);
            loop {
                match parser.part() {
                    Ok(Some(_)) => parts += 1,
                    Ok(None) => break,
                    Err(_) => break 'all,
                }
            }
        }
        prop_assert!(parts <= junk.len());
        prop_assert!(Writing::piece(&junk).len() <= junk.len() + 4 * (junk.len() / PIECE_BYTES_MAX + 1));
    }
}
