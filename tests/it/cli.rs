//! The real executable's command line: exit codes, help, and errors that say what to do.

use std::process::{Command, Output};

use crate::support::process::executable;

fn wardgate(arguments: &[&str]) -> Output {
    Command::new(executable()).args(arguments).output().unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn help_leads_a_newcomer_to_the_first_steps() {
    let output = wardgate(&["--help"]);
    assert_eq!(code(&output), Some(0));
    for words in ["First steps:", "wardgate demo", "wardgate check", "Exit codes:"] {
        assert!(text(&output).contains(words), "{words} is not in:\n{}", text(&output));
    }
}

#[test]
fn every_subcommand_teaches_its_use() {
    let all: [&[&str]; 22] = [
        &["status"],
        &["dead"],
        &["dead", "list"],
        &["dead", "show"],
        &["dead", "retry"],
        &["dead", "discard"],
        &["spool"],
        &["spool", "usage"],
        &["spool", "verify"],
        &["spool", "export"],
        &["spool", "import"],
        &["replay"],
        &["keys"],
        &["keys", "rotate"],
        &["keys", "destroy"],
        &["run"],
        &["check"],
        &["collect"],
        &["recover"],
        &["demo"],
        &["probe"],
        &["probe", "mllp"],
    ];
    for subcommand in all {
        let output = wardgate(&[subcommand, &["--help"]].concat());
        assert_eq!(code(&output), Some(0), "{subcommand:?}");
        assert!(text(&output).contains("Example"), "{subcommand:?} shows no example");
    }
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    for arguments in
        [&["frobnicate"][..], &["dead", "retry"], &["status", "--jsn"], &["dead", "show", "not-an-id"], &[]]
    {
        assert_eq!(code(&wardgate(arguments)), Some(64), "{arguments:?}");
    }
}

#[test]
fn a_service_that_does_not_run_ends_with_69_and_says_how_to_start_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for arguments in [&["status"][..], &["dead", "list"], &["spool", "usage"], &["keys", "rotate"]] {
        let output = wardgate(&[arguments, &["--socket", socket]].concat());
        assert_eq!(code(&output), Some(69), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains("systemctl start wardgate"), "{}", errors(&output));
        assert!(errors(&output).contains("--socket PATH"), "{}", errors(&output));
    }
}

#[test]
fn a_control_socket_that_can_not_be_made_is_told_with_the_lines_that_help() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("taken"), "a file, where a folder is wanted").unwrap();
    let head = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/minimal.toml")).unwrap();
    let socket = folder.path().join("taken/control.sock");
    let file = folder.path().join("minimal.toml");
    let text = head.replace("[spool]", &format!("[gateway.control]\nsocket = \"{}\"\n[spool]", socket.display()));
    std::fs::write(&file, text).unwrap();
    let output = wardgate(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), Some(69), "{}", errors(&output));
    for words in ["[gateway.control]\n", "  socket = \"/", "--socket"] {
        assert!(errors(&output).contains(words), "{words} is not in: {}", errors(&output));
    }
}

#[test]
fn the_help_of_status_explains_every_column_that_it_shows() {
    let help = text(&wardgate(&["status", "--help"]));
    for column in [
        "RECEIVED",
        "STORED",
        "FLAGGED",
        "REPEATS",
        "REFUSED",
        "REJECTED",
        "OPEN",
        "LAST",
        "DELIVERED",
        "RETRIED",
        "DEAD",
        "LINK",
        "WAITING",
        "SIZE",
        "OLDEST",
        "USED",
        "QUOTA",
        "SEGMENTS",
        "WRITTEN",
        "SYNCS",
    ] {
        assert!(help.contains(column), "{column} is not in:\n{help}");
    }
    assert!(help.contains("since the start of the service"), "{help}");
}

#[test]
fn what_can_not_be_undone_is_not_done_without_being_asked() {
    let output = Command::new(executable())
        .args(["keys", "destroy", "--gateway", "icu-3-east"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(code(&output), Some(64));
    assert!(errors(&output).contains("nothing was done: add --yes"), "{}", errors(&output));
}

#[test]
fn an_identity_that_is_not_there_ends_with_78_before_anything_is_asked() {
    let arguments = ["spool", "import", "x.age", "--identity", "/nonexistent/key.txt", "--upstream", "engine"];
    let output = wardgate(&arguments);
    assert_eq!(code(&output), Some(78), "{}", errors(&output));
}
