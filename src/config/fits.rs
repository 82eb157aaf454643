//! Whether an upstream can take what its routes bring: known by the protocols of both ends and the form, before the first message is a
//! dead letter.
//!
//! Only what can never be delivered is refused. Where it depends on what comes (files of a folder, the bytes of a device), a warning
//! says what is taken. Forms that no message of an upstream may have are `cross`'s.

use super::document::Document;
use crate::route::{Form, RouteConfig};
use crate::values::{Name, Problems};

/// What the messages of a source are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    Hl7,
    Images,
    Laboratory,
    /// Records; the bytes of the device in them may be anything.
    Readings,
    /// Records; the bytes of the device are its own protocol.
    OwnBytes,
    /// Whatever lies in a folder.
    Files,
}

/// What an upstream takes; any other takes everything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Hl7,
    /// C-STORE: what the file itself says counts.
    Images,
    /// DICOMweb: what is not known as DICOM is not sent.
    KnownImages,
}

const SOURCES: [(&str, Given); 9] = [
    ("mllp", Given::Hl7),
    ("dicom", Given::Images),
    ("astm", Given::Laboratory),
    ("serial", Given::Readings),
    ("udp", Given::Readings),
    ("mqtt", Given::Readings),
    ("modbus", Given::OwnBytes),
    ("medibus", Given::OwnBytes),
    ("folder", Given::Files),
];
const UPSTREAMS: [(&str, Taken); 3] = [("mllp", Taken::Hl7), ("dicom", Taken::Images), ("stow", Taken::KnownImages)];

const HL7: &str = "application/hl7-v2";
const ASTM: &str = "application/vnd.wardgate.astm";
const DICOM: &str = "application/dicom";

/// A source or an upstream of a route.
struct End<'r, T> {
    name: &'r Name,
    is: T,
    /// Media types of files by their names.
    rules: Vec<String>,
}

/// What is wrong between two of them.
enum Verdict {
    /// Nothing would ever be delivered.
    Never(String),
    /// Some would, some would not.
    Partly(String),
}

/// Notes what can't be delivered at the route's `to`, or at its form.
pub fn check(document: &Document<'_>, routes: &[RouteConfig], problems: &mut Problems) {
    for (index, route) in routes.iter().enumerate() {
        problems.under("route", |problems| {
            problems.under(&index.to_string(), |problems| check_route(document, route, problems));
        });
    }
}

fn check_route(document: &Document<'_>, route: &RouteConfig, problems: &mut Problems) {
    let sources = ends(document, "source", &route.from, &SOURCES);
    let upstreams = ends(document, "upstream", &route.to, &UPSTREAMS);
    let form = route.conversion().map(|conversion| conversion.form);
    for upstream in &upstreams {
        let verdicts: Vec<Verdict> = sources.iter().filter_map(|source| of_ends(source, upstream, form)).collect();
        note("to", verdicts, problems);
    }
    let key = if route.form.is_some() { "as" } else { "with-raw" };
    if let Some(form) = form {
        note(key, sources.iter().filter_map(|source| of_form(source, form, key)).collect(), problems);
    }
}

/// One of each kind is enough: who mends it sees the next.
fn note(key: &str, verdicts: Vec<Verdict>, problems: &mut Problems) {
    let (mut is_refused, mut is_warned) = (false, false);
    for verdict in verdicts {
        match verdict {
            Verdict::Never(text) if !is_refused => {
                problems.error(key, text);
                is_refused = true;
            }
            Verdict::Partly(text) if !is_warned => {
                problems.warn(key, text);
                is_warned = true;
            }
            Verdict::Never(_) | Verdict::Partly(_) => {}
        }
    }
}

fn ends<'r, T: Copy>(
    document: &Document<'_>,
    kind: &str,
    names: &'r [Name],
    protocols: &[(&str, T)],
) -> Vec<End<'r, T>> {
    let end = |name: &'r Name| {
        let has = |protocol: &str| document.value(&[kind, name.as_str(), protocol]).is_some();
        let (_, is) = protocols.iter().find(|(protocol, _)| has(protocol))?;
        Some(End { name, is: *is, rules: rules(document, kind, name) })
    };
    names.iter().filter_map(end).collect()
}

/// What `[[source.<name>.folder.file]]` says that files are, without parameters.
fn rules(document: &Document<'_>, kind: &str, name: &Name) -> Vec<String> {
    let tables = document.value(&[kind, name.as_str(), "folder", "file"]).and_then(|value| value.get_ref().as_array());
    let media = |value: &super::document::Value<'_>| {
        let text = value.get_ref().as_table()?.get("content-type")?.get_ref().as_str()?;
        Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
    };
    tables.into_iter().flat_map(|tables| tables.iter().filter_map(media)).collect()
}

impl<T> End<'_, T> {
    /// Whether somebody said of all files that they are one of these.
    fn are_all(&self, media: &[&str]) -> bool {
        !self.rules.is_empty() && self.rules.iter().all(|rule| media.contains(&rule.as_str()))
    }
}

/// What one form has no room for is told at the form, and by `cross`.
fn of_ends(source: &End<'_, Given>, upstream: &End<'_, Taken>, form: Option<Form>) -> Option<Verdict> {
    match (upstream.is, form) {
        (_, Some(Form::Json | Form::Senml)) => None,
        (Taken::Hl7, form) => to_hl7(source, upstream.name, form),
        (Taken::Images | Taken::KnownImages, Some(Form::Pcd01)) => None,
        (Taken::Images | Taken::KnownImages, form) => to_images(source, upstream, form),
    }
}

fn to_hl7(source: &End<'_, Given>, upstream: &Name, form: Option<Form>) -> Option<Verdict> {
    let name = source.name;
    let text = match (source.is, form) {
        (Given::Hl7, _) | (_, Some(Form::Pcd01)) => return None,
        (Given::Readings | Given::OwnBytes, None) => {
            format!("what \"{name}\" reads is no HL7, which is all that \"{upstream}\" takes: write as = \"pcd-01\"")
        }
        (Given::OwnBytes, _) => format!(
            "the bytes that \"{name}\" reads are no HL7, which is all that \"{upstream}\" takes: write as = \"pcd-01\""
        ),
        (Given::Readings, _) => {
            return Some(Verdict::Partly(format!(
                "\"{upstream}\" takes HL7 v2 only: where the bytes of a device of \"{name}\" are none, they become dead letters; as = \
                 \"pcd-01\" makes HL7 of readings"
            )));
        }
        (Given::Images, _) => format!(
            "what \"{name}\" receives is DICOM, and HL7 v2 is all that \"{upstream}\" takes: route \"{name}\" to a dicom, stow, https, mqtt \
             or directory upstream"
        ),
        (Given::Laboratory, _) => format!(
            "what \"{name}\" receives is ASTM, which is not made into HL7, and HL7 v2 is all that \"{upstream}\" takes: route \"{name}\" to \
             an https, mqtt or directory upstream"
        ),
        (Given::Files, _) => {
            return (!source.are_all(&[HL7])).then(|| {
                Verdict::Partly(format!(
                    "\"{upstream}\" takes HL7 v2 only: files of \"{name}\" that are none become dead letters; keep them in a folder, \
                     and a route, of their own"
                ))
            });
        }
    };
    Some(Verdict::Never(text))
}

fn to_images(source: &End<'_, Given>, upstream: &End<'_, Taken>, form: Option<Form>) -> Option<Verdict> {
    let (name, to) = (source.name, upstream.name);
    let said = source.rules.iter().any(|media| media == DICOM);
    match (source.is, upstream.is) {
        (Given::Images, _) => None,
        (Given::Files, _) if said => None,
        (Given::Files, Taken::KnownImages) => Some(Verdict::Never(format!(
            "\"{to}\" takes DICOM only, which files of \"{name}\" are not known to be: add [[source.{name}.folder.file]] with pattern = \"*.dcm\" \
             and content-type = \"{DICOM}\", or route \"{name}\" elsewhere"
        ))),
        (Given::Files, _) => Some(Verdict::Partly(format!(
            "\"{to}\" takes DICOM only: files of \"{name}\" that are none become dead letters; keep them in a folder, and a route, of their own"
        ))),
        // A payload may be an image.
        (Given::Readings, Taken::Images) if form == Some(Form::Raw) => Some(Verdict::Partly(format!(
            "\"{to}\" takes DICOM only: where the bytes of a device of \"{name}\" are none, they become dead letters"
        ))),
        (Given::Hl7, _) => Some(Verdict::Never(format!(
            "what \"{name}\" receives is HL7, and DICOM is all that \"{to}\" takes: route \"{name}\" to an mllp, https, mqtt or directory \
             upstream"
        ))),
        (Given::Laboratory | Given::Readings | Given::OwnBytes, _) => Some(Verdict::Never(format!(
            "what \"{name}\" gives is no DICOM, which is all that \"{to}\" takes: route \"{name}\" to an https, mqtt or directory upstream"
        ))),
    }
}

/// Forms that cannot be made of what a source gives.
fn of_form(source: &End<'_, Given>, form: Form, key: &str) -> Option<Verdict> {
    let name = source.name;
    let (said, has) = match form {
        Form::Raw => return None,
        Form::Json => (source.are_all(&[HL7, ASTM]), "HL7 v2 with observations and ASTM have"),
        Form::Pcd01 | Form::Senml => (source.are_all(&[HL7]), "HL7 v2 with observations has"),
    };
    let form = form.as_str();
    match source.is {
        Given::Laboratory if form != "json" => Some(Verdict::Never(format!(
            "what \"{name}\" receives is ASTM, which goes as \"json\" or \"raw\" only: make a route of its own for \"{name}\""
        ))),
        Given::Files if !said => Some(Verdict::Partly(format!(
            "of the files of \"{name}\" only {has} a form as \"{form}\": CSV and all others become dead letters; leave {key} out, and each \
             goes as it is"
        ))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::report::Finding;
    use super::super::{LoadError, Loaded, load};
    use crate::source::SourceConfig;
    use crate::upstream::UpstreamConfig;

    /// What is said of a route from a source of this protocol to an upstream of that one.
    fn told(source: &str, upstream: &str, form: &str) -> Vec<String> {
        let head = format!(
            "[gateway]\nname = \"box\"\nsite = \"here\"\n[spool]\npath = \"spool\"\nkey = \"dev.key\"\n[source.s.{source}\n[upstream.u.{upstream}]\n"
        );
        let first = head.lines().count();
        let text = format!("{head}[[route]]\nfrom = [\"s\"]\nto = [\"u\"]\n{form}\n");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.toml");
        fs::write(&file, text).unwrap();
        let report = match load::<SourceConfig, UpstreamConfig>(&file) {
            Ok(Loaded { report, .. }) | Err(LoadError::Bad(report)) => report,
            Err(other) => panic!("{other}"),
        };
        let of_route = |finding: &&Finding| finding.place.as_ref().is_some_and(|place| place.line > first);
        let shown = |finding: &Finding| {
            let kind = if finding.warning { "warning" } else { "error" };
            format!("{}: {kind}: {}", finding.place.as_ref().map_or(0, |place| place.line - first), finding.text)
        };
        report.findings().iter().filter(of_route).map(shown).collect()
    }

    #[test]
    fn routes_that_can_never_deliver_are_refused_at_their_to_with_what_the_upstream_takes() {
        for (source, upstream, form, words) in [
            ("dicom]", "mllp", "", "is DICOM, and HL7 v2 is all that \"u\" takes"),
            ("dicom]", "mllp", "as = \"raw\"", "HL7 v2 is all that \"u\" takes"),
            ("astm]", "mllp", "", "HL7 v2 is all that \"u\" takes"),
            ("serial]", "mllp", "", "write as = \"pcd-01\""),
            ("modbus]", "mllp", "as = \"raw\"", "write as = \"pcd-01\""),
            ("mllp]", "dicom", "", "is HL7, and DICOM is all that \"u\" takes"),
            ("mllp]", "stow", "as = \"raw\"", "DICOM is all that \"u\" takes"),
            ("astm]", "stow", "", "is no DICOM, which is all that \"u\" takes"),
            ("serial]", "dicom", "", "is no DICOM"),
            ("udp]", "stow", "as = \"raw\"", "is no DICOM"),
            ("folder]", "stow", "", "content-type = \"application/dicom\""),
        ] {
            let told = told(source, upstream, form);
            let [only] = &told[..] else { panic!("{source} {upstream} {form}: {told:?}") };
            assert!(only.starts_with("3: error: ") && only.contains(words), "{source} {upstream} {form}: {only}");
        }
    }

    #[test]
    fn what_depends_on_what_comes_is_a_warning() {
        let hl7 =
            "folder]\n[[source.s.folder.file]]\npattern = \"*\"\ncontent-type = \"application/hl7-v2; charset=utf-8\"";
        let dicom = hl7.replace("hl7-v2; charset=utf-8", "dicom");
        for (source, upstream, form) in [
            ("folder]", "mllp", ""),
            (dicom.as_str(), "mllp", ""),
            ("folder]", "dicom", ""),
            ("udp]", "mllp", "as = \"raw\""),
            ("mqtt]", "dicom", "as = \"raw\""),
        ] {
            let told = told(source, upstream, form);
            let [only] = &told[..] else { panic!("{source} {upstream} {form}: {told:?}") };
            assert!(only.starts_with("3: warning: ") && only.contains("dead letters"), "{source} {upstream}: {only}");
        }
        for (source, upstream) in [(hl7, "mllp"), (&dicom, "dicom"), (&dicom, "stow")] {
            assert_eq!(told(source, upstream, ""), Vec::<String>::new(), "{source} {upstream}");
        }
    }

    #[test]
    fn what_works_is_not_spoken_of() {
        for (source, upstream, form) in [
            ("mllp]", "mllp", ""),
            ("mllp]", "mllp", "as = \"pcd-01\""),
            ("serial]", "mllp", "as = \"pcd-01\""),
            ("modbus]", "mllp", "as = \"pcd-01\""),
            ("mqtt]", "mllp", "as = \"pcd-01\""),
            ("dicom]", "dicom", ""),
            ("dicom]", "stow", "as = \"raw\""),
            ("astm]", "https", "as = \"json\""),
        ] {
            assert_eq!(told(source, upstream, form), Vec::<String>::new(), "{source} {upstream} {form}");
        }
        for source in ["mllp]", "dicom]", "astm]", "serial]", "udp]", "mqtt]", "modbus]", "medibus]", "folder]"] {
            for upstream in ["mqtt", "https", "directory"] {
                assert_eq!(told(source, upstream, ""), Vec::<String>::new(), "{source} {upstream}");
            }
        }
    }

    #[test]
    fn files_and_laboratory_messages_in_a_form_that_they_do_not_have_are_told_at_the_form() {
        for form in ["as = \"json\"", "as = \"pcd-01\"", "with-raw = false"] {
            let told = told("folder]", "https", form);
            let [only] = &told[..] else { panic!("{told:?}") };
            let (key, _) = form.split_once(' ').unwrap();
            let advice = format!("CSV and all others become dead letters; leave {key} out");
            assert!(only.starts_with("4: warning: ") && only.contains(&advice), "{only}");
        }
        let astm =
            "folder]\n[[source.s.folder.file]]\npattern = \"*\"\ncontent-type = \"application/vnd.wardgate.astm\"";
        assert_eq!(told(astm, "https", "as = \"json\""), Vec::<String>::new());
        let laboratory = told("astm]", "mqtt", "as = \"pcd-01\"");
        assert!(
            laboratory[0].starts_with("4: error: ") && laboratory[0].contains("\"json\" or \"raw\""),
            "{laboratory:?}"
        );
    }
}
