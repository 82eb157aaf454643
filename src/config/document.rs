//! The parsed file with the place of every key and value, and the reading of single sections from it.
//!
//! serde stops at the first problem of what it reads. [`read`] takes the offending part out and reads again, so that a
//! person sees all that is wrong with a section at once; what would only follow from an earlier problem is not told.

use std::ops::Range;

use serde::de::DeserializeOwned;
use serde_spanned::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue, ValueDeserializer};

use super::report::{Report, nearest};

/// Problems of one section that are looked for.
const SECTION_PROBLEMS_MAX: usize = 50;

/// A value in the file.
pub type Value<'t> = Spanned<DeValue<'t>>;

/// The file's text and what it says.
pub struct Document<'t> {
    /// The text.
    pub text: &'t str,
    /// All tables.
    pub root: DeTable<'t>,
}

impl<'t> Document<'t> {
    /// Parses the text; notes every place that is not TOML.
    pub fn parse(text: &'t str, report: &mut Report) -> Option<Self> {
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let span = error.span().unwrap_or(text.len()..text.len());
            report.note(text, span, format!("this is not TOML: {}", error.message()), false);
        }
        errors.is_empty().then(|| Self { text, root: root.into_inner() })
    }

    /// Where the deepest part of `path` that exists stands. Elements of arrays are named by their number; steps that are not
    /// there are passed over (a key that is missing, a protocol that an enum of protocols names once more).
    pub fn place<S: AsRef<str>>(&self, path: &[S]) -> Range<usize> {
        let mut path = path.iter().map(AsRef::as_ref);
        let Some((key, value)) = path.next().and_then(|first| self.root.get_key_value(first)) else { return 0..0 };
        let (mut place, mut value) = (shown(key.span(), value), value);
        for step in path {
            let found = match value.get_ref() {
                DeValue::Table(table) => {
                    table.get_key_value(step).map(|(key, value)| (shown(key.span(), value), value))
                }
                DeValue::Array(array) => {
                    step.parse::<usize>().ok().and_then(|at| array.get(at)).map(|value| (value.span(), value))
                }
                _ => None,
            };
            let Some(found) = found else { continue };
            (place, value) = found;
        }
        place
    }

    /// The value at `path`, if it is there.
    pub fn value(&self, path: &[&str]) -> Option<&Value<'t>> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.root.get(*first)?, |value, key| value.get_ref().as_table()?.get(*key))
    }
}

/// Reads a section; notes all that is wrong with it. `Some` when it can be looked at further: nothing is wrong with it but
/// keys that are not known. One that is nearly a known key is read as that one: what is meant is looked at, too.
pub fn read<T: DeserializeOwned>(text: &str, value: &Value<'_>, report: &mut Report) -> Option<T> {
    let mut value = value.clone();
    let mut removed: Vec<String> = Vec::new();
    let mut whole = true;
    for _ in 0..SECTION_PROBLEMS_MAX {
        let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(section) => return whole.then_some(section),
            Err(error) => error,
        };
        let follows = follows(error.message(), &removed);
        let span = error.span().unwrap_or_else(|| value.span());
        if !follows {
            report.note(text, span.clone(), explain(error.message()), false);
        }
        let meant = meant(error.message());
        whole &= meant.is_some() || follows;
        let entry = take(&mut value, &span, meant.flatten().as_deref());
        removed.push(entry?);
    }
    None
}

/// For an unknown key: the one that was meant, if that can be told. `None` for all other problems.
fn meant(message: &str) -> Option<Option<String>> {
    let names = message.strip_prefix("unknown field `")?;
    let mut quoted = names.split('`').step_by(2);
    let typed = quoted.next()?;
    Some(nearest(typed, quoted).map(str::to_owned))
}

/// A problem in a table is shown at its key (the table may be long), one in a value at the value.
fn shown(key: Range<usize>, value: &Value<'_>) -> Range<usize> {
    match value.get_ref() {
        DeValue::Table(_) => key,
        _ => value.span(),
    }
}

/// Takes out the deepest entry whose key or value stands at `span`, or puts it under the key that was meant when that is
/// free; returns the key that it had.
fn take(value: &mut Value<'_>, span: &Range<usize>, meant: Option<&str>) -> Option<String> {
    match value.get_mut() {
        DeValue::Table(table) => {
            // The tables of a file stand anywhere, not inside the span of their parent: all are searched.
            if let Some(found) = table.iter_mut().find_map(|(_, inner)| take(inner, span, meant)) {
                return Some(found);
            }
            let at_fault = table.iter().find(|(key, inner)| key.span() == *span || inner.span() == *span);
            let key = at_fault.map(|(key, _)| key.get_ref().to_string())?;
            let (place, inner) = table.remove_entry(key.as_str())?;
            if let Some(meant) = meant.filter(|meant| table.get(*meant).is_none()) {
                table.insert(Spanned::new(place.span(), DeString::from(meant.to_owned())), inner);
            }
            Some(key)
        }
        DeValue::Array(array) => {
            if let Some(found) = array.iter_mut().find_map(|inner| take(inner, span, meant)) {
                return Some(found);
            }
            let at = array.iter().position(|inner| inner.span() == *span)?;
            let all = std::mem::replace(array, DeArray::new()).into_iter().enumerate();
            *array = all.filter(|(index, _)| *index != at).map(|(_, inner)| inner).collect();
            Some(at.to_string())
        }
        _ => None,
    }
}

/// Whether the message only tells that something is gone which we took out ourselves.
fn follows(message: &str, removed: &[String]) -> bool {
    let missing = missing_key(message).is_some_and(|key| removed.iter().any(|gone| gone == key));
    missing || (!removed.is_empty() && message.starts_with("wanted exactly 1 element"))
}

fn missing_key(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// serde's words in ours. What is not recognised is passed on as it is: a problem must never be hidden by its wording.
fn explain(message: &str) -> String {
    if let Some(key) = missing_key(message) {
        return format!("\"{key}\" is missing here: add it");
    }
    if message == "invalid IP address syntax" {
        return "this is not a network: write for example \"10.20.0.0/24\", or \"10.20.0.7/32\" for one address"
            .to_owned();
    }
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((typed, known)) if message.starts_with("unknown field `") => unknown_key(typed, known),
        Some((typed, known)) if message.starts_with("unknown variant `") => not_known(typed, known),
        _ => match message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
            Some((found, wanted)) => format!("this is the wrong kind of value ({found}): write {wanted}"),
            None => message.to_owned(),
        },
    }
}

/// The words for a key that is not known.
pub fn unknown_key(typed: &str, known: &[&str]) -> String {
    format!("unknown key \"{typed}\": {}", advice(typed, known))
}

fn not_known(typed: &str, known: &[&str]) -> String {
    format!("\"{typed}\" is not known here: {}", advice(typed, known))
}

fn advice(typed: &str, known: &[&str]) -> String {
    match nearest(typed, known.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None if known.is_empty() => "take it out".to_owned(),
        None => format!("write one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;
    use crate::values::{Listen, Span};

    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    #[allow(dead_code)]
    struct Listener {
        listen: Listen,
        #[serde(default)]
        allow: Vec<ipnet::IpNet>,
        idle: Option<Span>,
        tls: Option<Tls>,
        mode: Option<Mode>,
    }

    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    #[allow(dead_code)]
    struct Tls {
        certificate: String,
        key: String,
    }

    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        Original,
        Enhanced,
    }

    fn found(text: &str) -> Vec<String> {
        let mut report = Report::new(Path::new("x"));
        if let Some(document) = Document::parse(text, &mut report) {
            let value = document.value(&["source", "m", "mllp"]).unwrap().clone();
            let section: Option<Listener> = read(text, &value, &mut report);
            assert!(section.is_some() || report.is_bad());
        }
        let shown = |finding: &super::super::report::Finding| {
            let place = finding.place.clone().unwrap();
            format!("{}:{}: {}", place.line, place.column, finding.text)
        };
        report.findings().iter().map(shown).collect()
    }

    #[test]
    fn all_problems_of_a_section_are_found_at_once_each_at_its_place() {
        let text = "[source.m.mllp]\n\
                    listen = \"10.20.0.1\"\n\
                    alow = [\"10.20.0.0/24\"]\n\
                    allow = [\"10.20.0.0/24\", \"anybody\", 7]\n\
                    idle = \"5 minutes\"\n\
                    mode = \"enhansed\"\n\
                    [source.m.mllp.tls]\n\
                    certificate = \"a.pem\"\n\
                    colour = \"red\"\n";
        assert_eq!(
            found(text),
            [
                "2:10: \"10.20.0.1\" is not an address to listen on: write for example \"10.20.0.1:2575\" or \"[::1]:2575\"",
                "3:1: unknown key \"alow\": did you mean \"allow\"?",
                "4:26: this is not a network: write for example \"10.20.0.0/24\", or \"10.20.0.7/32\" for one address",
                "4:37: this is the wrong kind of value (integer `7`): write IPv4 or IPv6 network address",
                "5:8: \"5 minutes\" is not a length of time: write for example \"30s\", \"5m\" or \"7d\"",
                "6:8: \"enhansed\" is not known here: did you mean \"enhanced\"?",
                "7:1: \"key\" is missing here: add it",
                "9:1: unknown key \"colour\": write one of certificate, key",
            ]
        );
    }

    #[test]
    fn a_required_key_with_a_bad_value_is_not_also_reported_as_missing() {
        assert_eq!(found("source.m.mllp.listen = 2575").len(), 1);
        assert_eq!(found("[source.m.mllp]\nidle = \"5m\""), ["1:1: \"listen\" is missing here: add it"]);
        assert!(found("[source.m.mllp]\nlisten = \"[::1]:0\"").is_empty());
    }

    #[test]
    fn what_is_not_toml_is_shown_at_its_place() {
        let all = found("[source.m.mllp]\nlisten = \nidle = 5m\n");
        assert!(all[0].starts_with("2:10: this is not TOML: "), "{all:?}");
        assert!(all.iter().any(|one| one.starts_with("3:")), "{all:?}");
        let all = found("[source.m.mllp]\nlisten = \"[::1]:0\"\nlisten = \"[::1]:1\"\n");
        assert_eq!(all, ["3:1: this is not TOML: duplicate key"]);
    }

    #[test]
    fn a_place_is_the_deepest_part_of_the_path_that_exists() {
        let text = "[[route]]\nfrom = [\"a\", \"b\"]\n[[route]]\nfrom = []\n";
        let document = Document::parse(text, &mut Report::new(Path::new("x"))).unwrap();
        let at = |path: &[&str]| text.get(document.place(path)).unwrap().to_owned();
        assert_eq!(at(&["route", "0", "from", "1"]), "\"b\"");
        assert_eq!(at(&["route", "1", "from"]), "[]");
        assert_eq!(at(&["route", "1", "to"]), "[[route]]");
        assert_eq!(at(&["route", "1", "more", "from"]), "[]");
        assert_eq!(at(&["nowhere"]), "");
    }
}
