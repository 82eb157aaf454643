//! Holds the files in `config/` to what they say: they load, `#key` lines are the defaults, and no key is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, LoadError, Loaded, load};
use crate::source::SourceConfig;
use crate::upstream::UpstreamConfig;

type Outcome = Result<Loaded<SourceConfig, UpstreamConfig>, LoadError>;

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

fn load_in(folder: &Path, text: &str) -> Outcome {
    let file = folder.join("gateway.toml");
    fs::write(&file, text).unwrap();
    load(&file)
}

#[test]
fn every_shipped_file_loads() {
    assert!(shipped().len() >= 2);
    for file in shipped() {
        let outcome: Outcome = load(&file);
        outcome.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_commented_keys_are_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    for file in shipped() {
        let text = fs::read_to_string(&file).unwrap();
        let parts = |text: &str| Config { digest: [0; 32], ..load_in(folder.path(), text).unwrap().config };
        let bare = parts(&text);
        let commented = text.lines().filter_map(|line| line.strip_prefix('#'));
        for key in commented.filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())) {
            let same = parts(&text.replace(&format!("#{key}"), key)) == bare;
            assert!(same, "{}: not the default: {key}", file.display());
        }
    }
}

#[test]
fn gateway_toml_shows_every_key_of_every_section_that_it_has() {
    let text = include_str!("../../config/gateway.toml");
    let mut shown: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut known = shown.clone();
    for line in text.lines().filter(|line| line.starts_with('[')) {
        let end = if line.starts_with("[[") { "]]" } else { "]" };
        let header = format!("{}{end}", line.split_once(end).unwrap().0);
        let kind = kind(&header);
        known.entry(kind.clone()).or_default().extend(known_keys(text, &header));
        // A sub-table shows a key of the table that it is in.
        if let Some((parent, key)) = kind.rsplit_once('.') {
            shown.entry(parent.to_owned()).or_default().insert(key.to_owned());
        }
        let own = text.split_once(line).unwrap().1.split("\n[").next().unwrap();
        let keys = own.lines().filter_map(|line| line.trim_start_matches(['#', ' ']).split_once(" = "));
        shown.entry(kind).or_default().extend(keys.map(|(key, _)| key.to_owned()));
    }
    assert!(known.values().filter(|keys| !keys.is_empty()).count() >= 10, "{known:?}");
    for (kind, keys) in known {
        let missing: Vec<&String> = keys.difference(&shown[&kind]).collect();
        assert_eq!(missing, Vec::<&String>::new(), "[{kind}]");
    }
}

/// `[upstream.engine.mllp.tls]` is of the kind `upstream.*.mllp.tls`.
fn kind(header: &str) -> String {
    let mut steps: Vec<&str> = header.trim_matches(['[', ']']).split('.').collect();
    if let ["source" | "upstream", name, ..] = steps.as_mut_slice() {
        *name = "*";
    }
    steps.join(".")
}

/// The keys that the section under `header` knows, as the loader lists them for one that it does not know.
fn known_keys(text: &str, header: &str) -> Vec<String> {
    let asking = text.replacen(header, &format!("{header}\nxyzxyzxyzxyz = 1\n#"), 1);
    let folder = tempfile::tempdir().unwrap();
    let Err(LoadError::Bad(report)) = load_in(folder.path(), &asking) else { panic!("{header} takes any key") };
    let listed =
        report.findings().iter().find_map(|finding| finding.text.split_once("\"xyzxyzxyzxyz\": write one of "));
    listed.map(|(_, keys)| keys.split(", ").map(str::to_owned).collect()).unwrap_or_default()
}
