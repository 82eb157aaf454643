//! Reads and checks a whole file. All problems are found in one go, whichever sections they are in.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::document::Document;
use super::report::Report;
use super::{Config, Readable, parts};

/// Largest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A good configuration, and what should be known about it.
#[derive(Clone, Debug)]
pub struct Loaded<S, U> {
    /// The configuration.
    pub config: Config<S, U>,
    /// Warnings only.
    pub report: Report,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("{}: {cause}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// In words, with what to do.
        cause: String,
    },
    /// It has problems: they are shown by the report.
    #[error("{0}")]
    Bad(Report),
}

/// Reads and checks the configuration file.
///
/// # Errors
/// [`LoadError`], with every problem of the file.
pub fn load<S: Readable, U: Readable>(file: &Path) -> Result<Loaded<S, U>, LoadError> {
    let (text, world_writable) =
        text_of(file).map_err(|cause| LoadError::Unreadable { file: file.to_owned(), cause })?;
    let mut report = Report::new(file);
    if world_writable {
        let text = format!("everybody may change this file: run chmod o-w {}", file.display());
        report.note_of_file(text, true);
    }
    let folder = folder_of(file);
    let config = match Document::parse(&text, &mut report) {
        Some(document) => parts::read(document, &folder, &mut report),
        None => None,
    };
    match config {
        Some(config) if !report.is_bad() => Ok(Loaded { config, report }),
        _ => Err(LoadError::Bad(report)),
    }
}

/// The folder from which relative paths in the file count.
fn folder_of(file: &Path) -> PathBuf {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned())
}

/// The file's text, and whether everybody may change it.
fn text_of(path: &Path) -> Result<(String, bool), String> {
    let advice = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "there is no such file: check the path".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not read it: change its owner or mode".to_owned(),
        _ => format!("it can't be read: {error}"),
    };
    let file = File::open(path).map_err(advice)?;
    let mode = file.metadata().map_err(advice)?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(advice)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("it is larger than 1 MiB: this is not a configuration file".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes().iter().take(error.utf8_error().valid_up_to()).filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8: save the file as UTF-8 text")
    })?;
    Ok((text, mode & 0o002 != 0))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde::Deserialize;

    use super::*;
    use crate::config::Standing;
    use crate::values::{HostPort, Listen, Problems, SecretRef, Section};

    #[derive(Clone, PartialEq, Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum AnySource {
        Mllp(Listener),
    }

    #[derive(Clone, PartialEq, Debug, Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    struct Listener {
        listen: Listen,
        #[serde(default)]
        allow: Vec<String>,
    }

    #[derive(Clone, PartialEq, Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum AnyUpstream {
        Mllp(Dialler),
    }

    #[derive(Clone, PartialEq, Debug, Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    struct Dialler {
        address: HostPort,
        token: Option<SecretRef>,
    }

    impl Section for AnySource {
        fn check(&self, problems: &mut Problems) {
            let Self::Mllp(section) = self;
            if !section.listen.0.ip().is_loopback() && section.allow.is_empty() {
                problems.error("listen", "say who may connect: add allow");
            }
        }

        fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
    }

    impl Section for AnyUpstream {
        fn check(&self, _problems: &mut Problems) {}

        fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
            let Self::Mllp(section) = self;
            section.token.iter_mut().for_each(visit);
        }
    }

    type Outcome = Result<Loaded<AnySource, AnyUpstream>, LoadError>;

    const HEAD: &str = "[gateway]\nname = \"box\"\nsite = \"here\"\n[spool]\npath = \"spool\"\nkey = \"dev.key\"\n";
    const GOOD: &str = "[source.a.mllp]\nlisten = \"127.0.0.1:2575\"\n[upstream.b.mllp]\naddress = \"b:1\"\n\
                        token = \"token\"\n[[route]]\nfrom = [\"a\"]\nto = [\"b\"]\n";

    fn load_in(folder: &Path, text: &str) -> Outcome {
        let file = folder.join("gateway.toml");
        fs::write(&file, text).unwrap();
        load(&file)
    }

    fn load_text(text: &str) -> Outcome {
        load_in(tempfile::tempdir().unwrap().path(), text)
    }

    /// `line:column: text`, lines counted from the end of [`HEAD`].
    fn found(rest: &str) -> Vec<String> {
        let report = match load_text(&format!("{HEAD}{rest}")) {
            Ok(loaded) => loaded.report,
            Err(LoadError::Bad(report)) => report,
            Err(other) => panic!("{other}"),
        };
        let shown = |finding: &super::super::report::Finding| {
            let kind = if finding.warning { "warning: " } else { "" };
            match &finding.place {
                Some(place) => format!("{}:{}: {kind}{}", place.line.saturating_sub(6), place.column, finding.text),
                None => format!("{kind}{}", finding.text),
            }
        };
        report.findings().iter().map(shown).collect()
    }

    #[test]
    fn a_good_file_is_loaded_with_whole_paths_and_titles() {
        let folder = tempfile::tempdir().unwrap();
        let Loaded { config, report } = load_in(folder.path(), &format!("{HEAD}{GOOD}")).unwrap();
        assert_eq!(report.findings(), []);
        assert_eq!(config.spool.path, folder.path().join("spool"));
        assert_eq!(config.spool.key, SecretRef::File(folder.path().join("dev.key")));
        assert_eq!(config.sources[&"a".parse().unwrap()].title, "mllp 127.0.0.1:2575");
        let upstream = config.upstreams[&"b".parse().unwrap()].clone();
        assert!(upstream.is_active());
        let AnyUpstream::Mllp(dialler) = &upstream.part().unwrap().config;
        assert_eq!(dialler.token, Some(SecretRef::File(folder.path().join("token"))));
        assert_eq!(config.fingerprint().len(), 16);
    }

    #[test]
    fn a_part_changes_with_the_content_of_a_file_that_it_names_and_others_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{HEAD}{GOOD}");
        let load = || load_in(folder.path(), &text).unwrap().config;
        fs::write(folder.path().join("token"), "one").unwrap();
        let (first, same) = (load(), load());
        assert_eq!(first, same);
        fs::write(folder.path().join("token"), "two").unwrap();
        let changed = load();
        assert_ne!(first.upstreams, changed.upstreams);
        assert_eq!(first.sources, changed.sources);
        assert_eq!(first.digest, changed.digest);
    }

    #[test]
    fn problems_of_all_sections_come_at_once_in_the_order_of_the_file() {
        let all = found(
            "[source.a.mllp]\nlisten = \"x\"\n[source.A.mllp]\nlisten = \"127.0.0.1:1\"\n[source.c.mlpp]\n[source.d]\n\
             [source.e.mllp]\nlisten = \"10.0.0.1:1\"\n[source.e.dicom]\n[upstream.b.mllp]\naddres = \"b:1\"\n\
             [[route]]\nfrom = [\"a\", \"c\", \"d\", \"e\", \"A\"]\nto = [\"bb\"]\n[sources.a.mllp]\n",
        );
        assert_eq!(
            all,
            [
                "2:10: \"x\" is not an address to listen on: write for example \"10.20.0.1:2575\" or \"[::1]:2575\"",
                "3:9: \"A\" is not a name: use 1 to 48 of a-z, 0-9 and -, beginning with a letter or digit",
                "5:11: \"mlpp\" is not known here: did you mean \"mllp\"?",
                "6:9: \"d\" has no protocol: write [source.d.mllp], or another one",
                "7:11: \"e\" speaks dicom already: one name has one protocol; give mllp a name of its own",
                "11:1: unknown key \"addres\": did you mean \"address\"?",
                "13:29: \"A\" is not a name: use 1 to 48 of a-z, 0-9 and -, beginning with a letter or digit",
                "15:2: unknown key \"sources\": did you mean \"source\"?",
            ]
        );
    }

    #[test]
    fn a_mistyped_key_hides_no_other_problem_of_its_section_and_makes_none() {
        let all = found(
            "[source.a.mllp]\nlisten = \"10.0.0.1:1\"\ncolour = 1\n[source.b.mllp]\nlisten = \"10.0.0.2:1\"\nalow = [\"x\"]\n\
             [upstream.u.mllp]\naddress = \"b:1\"\n[[route]]\nfrom = [\"a\", \"b\"]\nto = [\"u\"]\n",
        );
        assert_eq!(
            all,
            [
                "2:10: say who may connect: add allow",
                "3:1: unknown key \"colour\": write one of listen, allow",
                "6:1: unknown key \"alow\": did you mean \"allow\"?",
            ]
        );
    }

    #[test]
    fn the_spool_key_is_judged_as_a_start_would_judge_it() {
        let folder = tempfile::tempdir().unwrap();
        let (key, spool) = (folder.path().join("dev.key"), folder.path().join("spool"));
        let told = || match load_in(folder.path(), &format!("{HEAD}{GOOD}").replace("token = \"token\"\n", "")) {
            Ok(loaded) => loaded.report.to_string(),
            Err(error) => format!("REFUSED {error}"),
        };
        assert_eq!(told(), "", "it is made at the first start");
        fs::write(&key, "too short").unwrap();
        assert!(told().contains("REFUSED") && told().contains("must be 32 bytes"), "{}", told());
        fs::write(&key, "").unwrap();
        assert!(told().contains("REFUSED") && told().contains("is empty"), "{}", told());
        fs::remove_file(&key).unwrap();
        fs::create_dir_all(spool.join("clinical")).unwrap();
        fs::write(spool.join("clinical/1"), "data").unwrap();
        assert!(told().contains("gateway.toml:6:7: file") && told().contains("holds data"), "{}", told());
        fs::write(&key, [7; 32]).unwrap();
        assert!(told().contains("keyring") && told().contains("REFUSED"), "{}", told());
    }

    #[test]
    fn a_section_that_contradicts_itself_is_shown_at_its_key() {
        let all = found(
            "[source.a.mllp]\nlisten = \"10.0.0.1:1\"\n[upstream.b.mllp]\naddress = \"b:1\"\n[[route]]\nfrom = [\"a\"]\nto = [\"b\"]\n",
        );
        assert_eq!(all, ["2:10: say who may connect: add allow"]);
    }

    #[test]
    fn routes_that_lead_nowhere_are_named_with_the_nearest_name() {
        let all = found(
            "[source.monitors.mllp]\nlisten = \"127.0.0.1:1\"\n[source.lab.mllp]\nlisten = \"127.0.0.1:2\"\n\
             [source.ct.mllp]\nlisten = \"127.0.0.1:3\"\n[upstream.engine.mllp]\naddress = \"b:1\"\n[upstream.spare.mllp]\naddress = \"b:2\"\n\
             [[route]]\nfrom = [\"monitor\", \"lab\"]\nto = [\"engine\", \"archive\"]\n",
        );
        assert_eq!(
            all,
            [
                "5:9: nobody gets what \"ct\" receives: add [[route]] with from = [\"ct\"] and to = [...]",
                "9:11: warning: nothing is routed to \"spare\": name it in the to of a [[route]]",
                "12:9: there is no source \"monitor\": did you mean \"monitors\"?",
                "13:17: there is no upstream \"archive\": add [upstream.archive.<protocol>], or take it out of the route",
            ]
        );
    }

    #[test]
    fn two_listeners_at_one_address_collide_also_by_the_address_of_all() {
        let all = found(
            "[source.a.mllp]\nlisten = \"127.0.0.1:2575\"\n[source.b.mllp]\nlisten = \"0.0.0.0:2575\"\nallow = [\"x\"]\n\
             [source.c.mllp]\nlisten = \"127.0.0.2:2575\"\n[source.d.mllp]\nlisten = \"127.0.0.1:0\"\n\
             [source.e.mllp]\nlisten = \"127.0.0.1:0\"\n[upstream.u.mllp]\naddress = \"u:1\"\n\
             [[route]]\nfrom = [\"a\", \"b\", \"c\", \"d\", \"e\"]\nto = [\"u\"]\n",
        );
        assert_eq!(all, ["4:10: source \"a\" listens at 127.0.0.1:2575 already: choose another port or address"]);
    }

    #[test]
    fn a_retired_upstream_says_what_becomes_of_its_backlog() {
        let with = |retired: &str| format!("{HEAD}{GOOD}[upstream.old]\n{retired}\n");
        let old = |text: &str| load_text(text).unwrap().config.upstreams[&"old".parse().unwrap()].clone();
        let drain = with("retired = \"drain\"\n[upstream.old.mllp]\naddress = \"old:1\"");
        assert!(matches!(old(&drain), Standing::Draining(_)));
        assert_eq!(old(&with("retired = \"dead-letter\"")), Standing::Buried);
        let buried = with("retired = \"dead-letter\"\n[upstream.old.mllp]\naddress = \"old:1\"");
        assert_eq!(old(&buried), Standing::Buried);
        let tail = |rest: &str| found(&format!("{GOOD}[upstream.old]\n{rest}"));
        assert_eq!(
            tail("retired = \"drain\"\n"),
            ["9:11: \"old\" has no protocol: write [upstream.old.mllp], or another one"]
        );
        assert_eq!(tail("retired = \"drian\"\n[upstream.old.mllp]\nport = 1\n").len(), 2 + 1);
        let routed = "retired = \"dead-letter\"\n[[route]]\nfrom = [\"a\"]\nto = [\"old\"]\n";
        assert_eq!(tail(routed), ["13:7: \"old\" is retired: take it out of the route"]);
    }

    #[test]
    fn a_file_without_its_tables_or_that_is_no_text_says_what_is_missing() {
        let words = |text: &str| load_text(text).unwrap_err().to_string();
        let empty = words("");
        assert!(empty.contains("there is no [gateway]: add it, with name and site"), "{empty}");
        assert!(empty.contains("there is no [spool]: add it, with path and key"), "{empty}");
        let missing = load::<AnySource, AnyUpstream>(Path::new("/nonexistent.toml")).unwrap_err().to_string();
        assert_eq!(missing, "/nonexistent.toml: there is no such file: check the path");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("x"), b"a = 1\nb = \"\xff\"").unwrap();
        let binary = load::<AnySource, AnyUpstream>(&folder.path().join("x")).unwrap_err().to_string();
        assert!(binary.ends_with("line 2 is not UTF-8: save the file as UTF-8 text"), "{binary}");
    }

    proptest::proptest! {
        #[test]
        fn a_damaged_file_is_answered_and_never_crashes_the_loader(cut in 0usize..400, length in 0usize..40, noise in ".{0,6}") {
            let mut text: Vec<char> = format!("{HEAD}{GOOD}").chars().collect();
            let (start, end) = (cut.min(text.len()), (cut + length).min(text.len()));
            text.splice(start..end, noise.chars());
            let text: String = text.into_iter().collect();
            if let Err(error) = load_text(&text) {
                proptest::prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_file_that_everybody_may_change_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.toml");
        fs::write(&file, format!("{HEAD}{GOOD}")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let report = load::<AnySource, AnyUpstream>(&file).unwrap().report;
        assert!(report.to_string().contains("warning: everybody may change this file: run chmod o-w "));
    }

    #[test]
    fn a_metrics_page_for_everybody_and_quotas_beyond_the_disk_are_noticed() {
        let text = format!("{HEAD}{GOOD}").replace("site =", "metrics = \"0.0.0.0:9464\"\nsite =");
        let text = text.replace("[source.a", "[spool.imaging]\nquota = \"9000000TiB\"\n[source.a");
        let words = load_text(&text).unwrap_err().to_string();
        assert!(words.contains("gateway.toml:3:11: anyone who reaches 0.0.0.0:9464 could read this page"), "{words}");
        assert!(words.contains("gateway.toml:5:2: warning: the quotas together are"), "{words}");
    }
}
