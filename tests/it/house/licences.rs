//! Every crate in the build comes from the registry and may be used under a licence of the table in THIRD-PARTY.md.
//!
//! It reads `cargo metadata`, so that it needs no tool and no list of its own. Security advisories are not looked at: that
//! needs a database from outside.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{Fault, settle};
use crate::support::tools::repository;

/// What we build for: development and CI machines, and the boxes.
const TARGETS: &[&str] = &["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];
const TABLE: &str = "THIRD-PARTY.md";

/// A crate as `cargo metadata` describes it.
struct Crate {
    name: String,
    version: String,
    /// SPDX expression; empty when the crate has none.
    licence: String,
    /// Where it comes from; `None` for our own.
    source: Option<String>,
}

/// Crates that may not be used; the licences that were needed are added to `used`.
fn faults(crates: &[Crate], allowed: &BTreeSet<String>, used: &mut BTreeSet<String>) -> Vec<Fault> {
    let mut found = Vec::new();
    for it in crates {
        let mut blame =
            |rule: String| found.push(Fault::new("Cargo.lock", 1, format!("{} {}: {rule}", it.name, it.version)));
        if it.source.as_ref().is_some_and(|source| !source.starts_with("registry+")) {
            blame("does not come from the registry: Yocto can't fetch it".to_owned());
        }
        match permitted(&it.licence, allowed) {
            Some(needed) => used.extend(needed),
            None => blame(format!("licence \"{}\" is not allowed by the table in {TABLE}", it.licence)),
        }
    }
    found
}

/// The licences under which an SPDX expression is satisfied by `allowed`; `None` when it is not.
fn permitted(expression: &str, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    // Older crates write "MIT/Apache-2.0" for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let outcome = alternatives(&tokens, &mut at, allowed);
    if at == tokens.len() { outcome } else { None }
}

fn alternatives(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let mut outcome = together(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        let other = together(tokens, at, allowed);
        outcome = outcome.or(other);
    }
    outcome
}

fn together(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let mut outcome = single(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        let other = single(tokens, at, allowed);
        outcome = outcome.zip(other).map(|(one, other)| one.union(&other).cloned().collect());
    }
    outcome
}

fn single(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let first = *tokens.get(*at)?;
    *at += 1;
    if first == "(" {
        let inner = alternatives(tokens, at, allowed);
        *at += 1; // the closing parenthesis
        return inner;
    }
    let mut licence = first.to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        licence = format!("{first} WITH {}", tokens.get(*at + 1)?);
        *at += 2;
    }
    allowed.contains(&licence).then(|| BTreeSet::from([licence]))
}

/// First column of the table, below its head.
fn table(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    rows.filter(|licence| *licence != "licence").map(str::to_owned).collect()
}

/// The crates in the build for `target`, with those that only tests use.
fn crates_for(target: &str) -> Vec<Crate> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target]);
    let output = command.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let built: BTreeSet<&str> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().filter_map(|node| node["id"].as_str()).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| built.contains(package["id"].as_str().unwrap())).map(crate_of).collect()
}

fn crate_of(package: &Value) -> Crate {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let source = package["source"].as_str().map(str::to_owned);
    Crate { name: text("name"), version: text("version"), licence: text("license"), source }
}

#[test]
fn every_crate_in_the_build_is_allowed_and_no_licence_is_listed_in_vain() {
    let allowed = table(&fs::read_to_string(repository().join(TABLE)).unwrap());
    let (mut found, mut used) = (Vec::new(), BTreeSet::new());
    for target in TARGETS {
        found.extend(faults(&crates_for(target), &allowed, &mut used));
    }
    for idle in allowed.difference(&used) {
        found.push(Fault::new(
            TABLE,
            1,
            format!("no crate needs the licence {idle} any more: take it out of the table"),
        ));
    }
    settle(&found);
}

#[test]
fn expressions_are_read_as_they_are_meant() {
    let allowed =
        table("| licence | why |\n|---|---|\n| MIT | x |\n| ISC | x |\n| Apache-2.0 WITH LLVM-exception | x |\n");
    assert_eq!(allowed.len(), 3);
    for good in
        ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND ISC", "Apache-2.0 WITH LLVM-exception OR X"]
    {
        assert!(permitted(good, &allowed).is_some(), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT OR ISC) AND GPL-3.0",
        "Apache-2.0",
        "Apache-2.0 WITH",
        "MIT ISC",
        "AND",
    ] {
        assert!(permitted(bad, &allowed).is_none(), "{bad}");
    }
}

#[test]
fn a_crate_from_elsewhere_or_under_another_licence_is_a_fault() {
    let made = |licence: &str, source: &str| Crate {
        name: "x".to_owned(),
        version: "1.0.0".to_owned(),
        licence: licence.to_owned(),
        source: Some(source.to_owned()),
    };
    let allowed = BTreeSet::from(["MIT".to_owned()]);
    let count = |it: Crate| faults(&[it], &allowed, &mut BTreeSet::new()).len();
    assert_eq!(count(made("MIT", "registry+index")), 0);
    assert_eq!(count(made("MIT", "git+elsewhere")), 1);
    assert_eq!(count(made("AGPL-3.0", "registry+index")), 1);
}
