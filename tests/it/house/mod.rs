//! The rules of the house, held by reading the source: who may import whom, lengths, words, licences.
//!
//! Each rule is a function from a file's text to the [`Fault`]s in it, proven on bad snippets in its own file; the tests here
//! apply it to the repository. A fault names file and line and says what to do.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::{run, succeeds, wardgate};
use crate::support::tools::repository;

mod documents;
mod form;
mod layering;
mod licences;
mod outline;
mod words;

/// A place where a rule is broken.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path from the repository's folder.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// The rule and what to do.
    pub rule: String,
}

impl Fault {
    fn new(file: &str, line: usize, rule: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, rule: rule.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// Applies `rule` to each Rust file below `folders` and fails with all faults at once.
fn hold(folders: &[&str], rule: impl Fn(&str, &str) -> Vec<Fault>) {
    let mut faults = Vec::new();
    for folder in folders {
        for file in files_below(&repository().join(folder)) {
            if file.extension().is_some_and(|extension| extension == "rs") {
                faults.extend(rule(&shown(&file), &fs::read_to_string(&file).unwrap()));
            }
        }
    }
    settle(&faults);
}

/// Files of `src/` that another one declares for tests only.
fn files_for_tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files_below(&repository().join("src")) {
        // The modules of mod.rs lie beside it, those of any other file in a folder with its name.
        let beside = matches!(file.file_name().and_then(|name| name.to_str()), Some("mod.rs" | "lib.rs" | "main.rs"));
        let folder = if beside { file.parent().unwrap().to_owned() } else { file.with_extension("") };
        for module in outline::test_modules(&fs::read_to_string(&file).unwrap()) {
            found.insert(shown(&folder.join(format!("{module}.rs"))));
        }
    }
    found
}

fn settle(faults: &[Fault]) {
    let told: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert!(told.is_empty(), "{} faults:\n{}", told.len(), told.join("\n"));
}

/// The path as a person would write it, from the repository's folder.
fn shown(file: &Path) -> String {
    file.strip_prefix(repository()).unwrap().to_string_lossy().into_owned()
}

/// All files below `folder`, in order, without what is built or installed.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy();
        let made = matches!(&*name, "target" | ".git" | ".peers" | ".arm" | ".appliance" | "corpus" | "artifacts");
        if path.is_dir() && !made {
            found.extend(files_below(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}

const SHIPPED: &[&str] = &["src"];
const ALL_CODE: &[&str] = &["src", "tests", "benches"];

#[test]
fn every_room_imports_only_what_the_table_allows() {
    hold(SHIPPED, layering::faults);
}

#[test]
fn every_room_of_the_source_is_in_the_table() {
    let rooms = files_below(&repository().join("src")).into_iter().map(|file| shown(&file));
    settle(&rooms.filter_map(|file| layering::unknown_room(&file)).collect::<Vec<_>>());
}

#[test]
fn no_folder_is_deeper_than_two() {
    let files = files_below(&repository().join("src")).into_iter().map(|file| shown(&file));
    settle(&files.filter_map(|file| form::too_deep(&file)).collect::<Vec<_>>());
}

#[test]
fn every_file_is_short_and_says_what_it_is() {
    hold(ALL_CODE, form::file_faults);
}

#[test]
fn every_function_is_short() {
    hold(ALL_CODE, form::function_faults);
}

#[test]
fn every_panic_outside_tests_says_why_it_cannot_happen() {
    let tests = files_for_tests();
    hold(SHIPPED, |file, source| if tests.contains(file) { Vec::new() } else { words::panic_faults(file, source) });
}

#[test]
fn nothing_is_left_undone_and_no_name_says_nothing() {
    hold(ALL_CODE, words::name_faults);
}

#[test]
fn unsafe_code_is_in_the_room_for_system_calls_alone() {
    hold(SHIPPED, words::unsafe_faults);
}

#[test]
fn no_test_sleeps_in_place_of_a_condition() {
    hold(&["tests"], words::sleep_faults);
}

#[test]
fn no_file_names_a_machine_or_a_package_registry() {
    let mut faults = Vec::new();
    for file in files_below(repository()) {
        let name = shown(&file);
        // Cargo's lock files name the index that cargo uses; a git worktree's link is not part of the repository.
        let ours = !name.ends_with("Cargo.lock") && name != ".git";
        if let (true, Ok(text)) = (ours, fs::read_to_string(&file)) {
            faults.extend(words::place_faults(&name, &text));
        }
    }
    settle(&faults);
}

#[test]
fn every_document_names_what_is_there() {
    let help = succeeds(wardgate().arg("--help"));
    let below = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let named = below.take_while(|line| !line.trim().is_empty()).filter_map(|line| line.split_whitespace().next());
    let known: Vec<String> = named.map(str::to_owned).collect();
    let mut faults = Vec::new();
    for file in files_below(repository()) {
        let name = shown(&file);
        if file.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(&file).unwrap();
            let beside = file.parent().unwrap().to_owned();
            faults.extend(documents::link_faults(&name, &text, |path| beside.join(path).exists()));
            faults.extend(documents::command_faults(&name, &text, &known));
        }
    }
    settle(&faults);
}

#[test]
fn the_configuration_in_the_readme_can_be_used() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let example = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), example).unwrap();
    succeeds(wardgate().arg("check").arg(file.path()));
}

#[test]
fn cross_builds_the_same_with_and_without_its_file() {
    let table = |file: &str| -> toml::Table { fs::read_to_string(repository().join(file)).unwrap().parse().unwrap() };
    let (own, cargo) = (table("cross.toml"), table("Cargo.toml"));
    assert_eq!(toml::Value::Table(own), cargo["package"]["metadata"]["cross"]);
}

/// Each alone in a folder: one that goes on does no more than to miss what it starts.
#[test]
fn who_runs_all_tests_as_a_normal_user_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let id = folder.path().join("id");
    fs::write(&id, "#!/bin/sh\necho 1000\n").unwrap();
    fs::set_permissions(&id, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    for script in ["tests/all", "tests/long", ".ci/run"] {
        let copy = folder.path().join(script);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(repository().join(script), &copy).unwrap();
        let ended = run(Command::new(copy).env("PATH", &path));
        assert!(!ended.status.success(), "{script}");
        assert!(ended.said.starts_with(&format!("{script}: run this as root")), "{}", ended.said);
    }
}
