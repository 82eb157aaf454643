//! `wardgate demo` as a newcomer runs it: the real executable, from the first message to the verdict.

use std::time::Duration;

use crate::support::process::{Process, wardgate};

/// The demo's own time, its drain after a cut, and room for a slow machine.
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn a_demo_that_ends_while_the_upstream_is_cut_delivers_what_waits_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Process::start(wardgate().args(["demo", "--for", "13s"]).env("TMPDIR", folder.path()));
    let how_to = demo.line_with("wardgate probe mllp ");
    let address = how_to.split_whitespace().last().unwrap().to_owned();
    let probed = wardgate().args(["probe", "mllp", &address]).output().unwrap();
    assert_eq!(probed.status.code(), Some(0), "the command that the demo prints works as it stands");
    let ended = demo.ends_within(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
    let cut = ended.said.lines().filter(|line| line.contains("upstream CUT")).filter_map(waiting);
    assert!(cut.max() > Some(8), "the backlog grew while the upstream was cut:\n{}", ended.said);
    let verdict = ended.said.lines().find(|line| line.starts_with("GOOD: ")).unwrap();
    let acknowledged: u64 = verdict.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(acknowledged >= 100, "eight monitors send sixteen a second: {verdict}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the temporary folder is gone");
}

/// The number behind "waiting" in a line of the demo.
fn waiting(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "waiting");
    words.nth(1)?.parse().ok()
}
