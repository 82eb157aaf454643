//! Tests over `tests/corpus/hl7`: every dialect that is kept there is framed, read, answered and given back byte for byte.

use std::fs;
use std::path::PathBuf;

use super::ack::{self, Acknowledgement, Answer, Code};
use super::hl7::{Header, ask_accept_only};
use super::mllp::{BODY_BYTES_MAX, Decoder, Event, encode};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/hl7")
}

/// Names and bodies, in order.
fn messages() -> Vec<(String, Vec<u8>)> {
    let names = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".hl7")).collect();
    names.sort();
    assert!(names.len() >= 60, "{} messages", names.len());
    names.into_iter().map(|name| (name.clone(), fs::read(folder().join(name)).unwrap())).collect()
}

#[test]
fn every_file_is_described_in_the_folders_readme_and_no_other() {
    let readme = fs::read_to_string(folder().join("README.md")).unwrap();
    let described = readme.lines().filter(|line| line.starts_with("| `")).count();
    for (name, _) in messages() {
        assert!(readme.contains(&format!("| `{name}` |")), "{name} is not described");
    }
    assert_eq!(described, messages().len());
}

#[test]
fn every_message_comes_out_of_its_frame_as_it_went_in_however_it_is_cut() {
    let mut stream = Vec::new();
    messages().iter().for_each(|(_, body)| encode(body, &mut stream));
    for size in [1, 7, 1460, 1 << 20] {
        let (mut decoder, mut bodies, mut body) = (Decoder::new(BODY_BYTES_MAX), Vec::new(), Vec::new());
        for mut input in stream.chunks(size) {
            while let Some(event) = decoder.pull(&mut input) {
                match event {
                    Event::Body(bytes) => body.extend_from_slice(bytes),
                    Event::End(_) => bodies.push(std::mem::take(&mut body)),
                    other => panic!("{other:?}"),
                }
            }
        }
        for ((name, sent), came) in messages().iter().zip(&bodies) {
            assert!(sent == came, "{name} in reads of {size}");
        }
        assert_eq!(bodies.len(), messages().len());
    }
}

#[test]
fn every_message_can_be_answered_and_those_that_must_not_be_accepted_can_be_told() {
    for (name, body) in messages() {
        let header = Header::read(&body);
        let positive = header.is_ok_and(|header| ack::is_correlatable(&header));
        assert_eq!(positive, !name.contains("-reject-"), "{name}");
        let header = header.unwrap_or_else(|_| Header::none());
        let mut out = Vec::new();
        let answer = Answer { code: Code::Ca, time: "20260131120000+0000", control_id: "WG1", fault: None };
        ack::write(&header, &answer, &mut out);
        let read = Acknowledgement::read(&out).unwrap();
        let id = if positive { header.control_id() } else { b"" };
        assert_eq!((read.code, read.control_id), (Code::Ca, id), "{name}");
        assert_eq!(header.is_batch(), name.contains("-batch-"), "{name}");
    }
}

#[test]
fn asking_for_the_accept_acknowledgement_changes_two_fields_and_nothing_else() {
    for (name, body) in messages() {
        let Ok(new) = ask_accept_only(&body) else {
            assert!(name.contains("-reject-") || name.contains("-batch-"), "{name}");
            continue;
        };
        let again = [&new.head[..], &body[new.consumed..]].concat();
        let (before, after) = (Header::read(&body).unwrap(), Header::read(&again).unwrap());
        assert_eq!((after.field(15), after.field(16)), (&b"AL"[..], &b"NE"[..]), "{name}");
        for number in (2..=20).filter(|number| ![15, 16].contains(number)) {
            assert_eq!(after.field(number), before.field(number), "{name} MSH-{number}");
        }
        assert!(again.ends_with(&body[new.consumed..]));
    }
}

#[test]
fn a_second_opinion_reads_the_same_headers_where_it_reads_at_all() {
    let mut agreed = 0;
    for (name, body) in messages() {
        // It wants text, four encoding characters and CR; and it drops in silence what it can't read.
        let Ok(text) = std::str::from_utf8(&body) else { continue };
        let Ok(theirs) = hl7_parser::Message::parse(text) else { continue };
        let Ok(ours) = Header::read(&body) else { continue };
        if theirs.raw_value().trim_end() != text.trim_end() || ours.field(2).len() != 4 || text.contains('\n') {
            continue;
        }
        let msh = theirs.segment("MSH").unwrap();
        for number in 3..=20 {
            let field = msh.field(number).map_or("", |field| field.raw_value());
            assert_eq!(ours.field(number), field.as_bytes(), "{name} MSH-{number}");
        }
        agreed += 1;
    }
    assert!(agreed >= 40, "only {agreed} messages could be compared");
}
