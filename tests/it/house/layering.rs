//! Who may import whom. The arrows of the house point one way; this table is where they are written down.

use super::Fault;
use super::outline::{Line, lines};

/// A room (a folder or a file of `src/`) and the rooms that its code may name.
const ALLOWED: &[(&str, &[&str])] = &[
    // What the bytes mean: no I/O, no clock, nothing of ours.
    ("wire", &[]),
    ("values", &[]),
    ("digest", &[]),
    ("envelope", &["values", "digest"]),
    ("status", &["values"]),
    // Where sources and upstreams meet that must not know each other: a device asked here is answered from there.
    ("callers", &["values", "wire"]),
    ("system", &["values"]),
    // The durable queue knows bytes, not hospitals.
    ("spool", &["envelope", "digest", "values", "status", "system"]),
    ("telemetry", &["envelope", "values"]),
    ("route", &["envelope", "digest", "values", "wire", "telemetry"]),
    // Sources and upstreams do not know each other.
    ("source", &["envelope", "values", "status", "system", "spool", "wire", "telemetry", "callers"]),
    ("upstream", &["envelope", "digest", "values", "status", "system", "spool", "wire", "route", "callers"]),
    // The other end of the mqtt upstream: it shares its link and its seals, and knows no spool.
    ("collector", &["values", "status", "system", "wire", "upstream"]),
    // A section lives beside the code that it configures; config puts them together.
    ("config", &["values", "system", "spool", "source", "upstream", "route", "telemetry", "admin", "status"]),
    ("admin", &["config", "values", "envelope", "status", "system", "spool"]),
];

/// These may name every room: the wiring, the command line and the map.
const EVERYTHING: &[&str] = &["gateway", "cli", "lib", "main"];

/// Imports that the table does not allow.
pub fn faults(file: &str, source: &str) -> Vec<Fault> {
    let room = room_of(file);
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == room) else { return Vec::new() };
    let mut found = Vec::new();
    for (line, named) in named_rooms(&lines(source)) {
        if named != room && !allowed.contains(&named.as_str()) {
            let rule = format!(
                "`{room}` may not import `{named}` (allowed: {}); see ALLOWED in house/layering.rs",
                allowed.join(", ")
            );
            found.push(Fault::new(file, line, rule));
        }
    }
    found
}

/// A file in a room that the table does not know: its arrows must be decided first.
pub fn unknown_room(file: &str) -> Option<Fault> {
    let room = room_of(file);
    let known = EVERYTHING.contains(&room) || ALLOWED.iter().any(|(name, _)| *name == room);
    (!known).then(|| {
        Fault::new(
            file,
            1,
            format!("room `{room}` is not in the table of house/layering.rs: add it with what it may import"),
        )
    })
}

/// `src/spool/log.rs` and `src/spool.rs` are in room `spool`.
fn room_of(file: &str) -> &str {
    let inside = file.strip_prefix("src/").unwrap_or(file);
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// Each `crate::room` and each member of `crate::{...}` in code, with its line.
fn named_rooms(lines: &[Line<'_>]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let parts: Vec<&str> = line.code.split("crate::").collect();
        for (before, rest) in parts.iter().zip(parts.iter().skip(1)) {
            // `$crate` and names that end in "crate" are something else.
            if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            match rest.strip_prefix('{') {
                Some(group) => {
                    found.extend(members(group, &lines[index + 1..]).into_iter().map(|room| (line.number, room)))
                }
                None => found.push((line.number, word(rest))),
            }
        }
    }
    // A lower-case word is a module; `crate::Name` is an item of the root, which has none.
    found.retain(|(_, room)| room.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

/// First words of the members of a group whose opening brace was just read; the group may go on over lines.
fn members(first: &str, following: &[Line<'_>]) -> Vec<String> {
    let rest = following.iter().map(|line| line.code.as_str());
    let (mut depth, mut current, mut found) = (1, String::new(), Vec::new());
    for c in std::iter::once(first).chain(rest).collect::<Vec<_>>().join(" ").chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            found.push(word(current.trim()));
            current.clear();
        } else {
            current.push(c);
        }
        if depth == 0 {
            break;
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn a_source_that_names_an_upstream_is_a_fault_at_its_line() {
    let found = faults("src/source/mllp.rs", "//! x\nuse crate::upstream::Receipt;\nuse crate::spool::Spool;\n");
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].line, found[0].rule.contains("`source` may not import `upstream`")), (2, true));
}

#[test]
fn groups_and_paths_in_the_middle_of_code_are_seen() {
    assert_eq!(faults("src/wire/hl7.rs", "use crate::{\n    values::{Name, Span},\n    envelope,\n};\n").len(), 2);
    assert_eq!(faults("src/spool/log.rs", "fn f() -> crate::source::Stop {}\n").len(), 1);
    assert_eq!(faults("src/upstream/mqtt.rs", "use crate::config::Config;\n").len(), 1);
}

#[test]
fn what_is_allowed_or_only_a_comment_is_no_fault() {
    assert!(faults("src/wire/hl7.rs", "//! see [`crate::spool`]\nuse crate::wire::mllp;\n").is_empty());
    assert!(faults("src/source/mllp.rs", "use crate::wire::mllp;\nlet a = \"crate::config\";\n").is_empty());
    assert!(faults("src/gateway.rs", "use crate::config::Config;\n").is_empty());
}

#[test]
fn a_new_room_must_be_put_into_the_table() {
    assert!(unknown_room("src/cellar/mod.rs").is_some());
    assert!(unknown_room("src/spool/mod.rs").is_none());
    assert!(unknown_room("src/main.rs").is_none());
}
