//! Which message goes where: `[[route]]`, and the one question that is asked of all of them at each commit.
//!
//! The targets of a message are decided when it is committed, by its source alone, and are stored with it: a changed route
//! never moves what is already stored. In which form it goes is decided when it is sent ([`convert`]), over the stored bytes: a changed
//! `as` holds for all that has not been sent. [`oru_record`] makes a record of an HL7 message on that way. Nothing here does I/O.

use serde::{Deserialize, Serialize};

use crate::values::{Name, Problems, SecretRef, Section};

mod charset;
pub mod convert;
#[cfg(test)]
mod convert_tests;
mod oru_record;
mod oru_time;

/// Sources or upstreams in one route.
const ROUTE_NAMES_MAX: usize = 256;

/// `[[route]]`: all that comes from these sources goes to each of these upstreams.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RouteConfig {
    /// Sources.
    pub from: Vec<Name>,
    /// Upstreams; each gets its own copy and its own cursor.
    pub to: Vec<Name>,
    /// In which form; as it is stored unless given.
    #[serde(rename = "as")]
    pub form: Option<Form>,
    /// Whether the device's own bytes travel in the JSON; yes unless given.
    pub with_raw: Option<bool>,
}

/// `as`: the form in which messages are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// The record as JSON; of an HL7 message with observations, the record that it holds.
    Json,
    /// HL7 v2.6 in the profiles PCD-01 (observations) and PCD-04 (alarms) of IHE.
    #[serde(rename = "pcd-01")]
    Pcd01,
    /// SenML JSON, which has no room for much of a record.
    Senml,
    /// The device's own bytes alone.
    Raw,
}

impl Form {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Pcd01 => "pcd-01",
            Self::Senml => "senml",
            Self::Raw => "raw",
        }
    }
}

/// What a route makes of its messages when they are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Conversion {
    /// The form.
    #[serde(rename = "as")]
    pub form: Form,
    /// Whether the device's own bytes travel in the JSON.
    pub with_raw: bool,
}

impl RouteConfig {
    /// What the route asks for; `None`: messages go as they are stored.
    pub fn conversion(&self) -> Option<Conversion> {
        let form = self.form.or_else(|| self.with_raw.map(|_| Form::Json))?;
        Some(Conversion { form, with_raw: self.with_raw.unwrap_or(true) })
    }
}

impl Section for RouteConfig {
    fn check(&self, problems: &mut Problems) {
        for (key, names, what) in [("from", &self.from, "source"), ("to", &self.to, "upstream")] {
            if names.is_empty() {
                problems.error(key, format!("is empty: name at least one {what}, or take the route out"));
            }
            if names.len() > ROUTE_NAMES_MAX {
                problems.error(key, format!("names more than {ROUTE_NAMES_MAX}: make several routes of it"));
            }
        }
        if let (Some(_), Some(form)) = (self.with_raw, self.form.filter(|form| *form != Form::Json)) {
            let text = format!("goes with as = \"json\": \"{}\" has no room to choose; take it out", form.as_str());
            problems.error("with-raw", text);
        }
    }

    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

/// The upstreams that a message of `source` goes to, in the order of the routes, each once.
pub fn targets(routes: &[RouteConfig], source: &Name) -> Vec<Name> {
    let mut found: Vec<Name> = Vec::new();
    let of_source = routes.iter().filter(|route| route.from.contains(source));
    for upstream in of_source.flat_map(|route| &route.to) {
        if !found.contains(upstream) {
            found.push(upstream.clone());
        }
    }
    found
}

/// What is made of messages of `source` for `upstream`: what the first route that has both says.
pub fn conversion(routes: &[RouteConfig], source: &Name, upstream: &Name) -> Option<Conversion> {
    let route = routes.iter().find(|route| route.from.contains(source) && route.to.contains(upstream))?;
    route.conversion()
}

/// The first two routes, by their numbers, that give messages of a source to the same upstream in different forms.
pub fn contradiction(routes: &[RouteConfig]) -> Option<(usize, usize)> {
    let share = |one: &[Name], other: &[Name]| one.iter().any(|name| other.contains(name));
    routes.iter().enumerate().find_map(|(later, route)| {
        let differs = |other: &RouteConfig| {
            share(&route.from, &other.from) && share(&route.to, &other.to) && route.conversion() != other.conversion()
        };
        let earlier = routes.get(..later)?.iter().position(differs)?;
        Some((earlier, later))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn plain(from: Vec<Name>, to: Vec<Name>) -> RouteConfig {
        RouteConfig { from, to, form: None, with_raw: None }
    }

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        toml::from_str::<RouteConfig>(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn a_form_is_read_as_people_write_it_and_with_raw_goes_with_json_only() {
        let read = |more: &str| {
            toml::from_str::<RouteConfig>(&format!("from = ['a']\nto = ['b']\n{more}")).unwrap().conversion()
        };
        assert_eq!(read(""), None);
        for (text, form, with_raw) in [
            ("as = 'json'", Form::Json, true),
            ("as = 'pcd-01'", Form::Pcd01, true),
            ("as = 'senml'", Form::Senml, true),
            ("as = 'raw'", Form::Raw, true),
            ("with-raw = false", Form::Json, false),
        ] {
            assert_eq!(read(text), Some(Conversion { form, with_raw }), "{text}");
        }
        assert_eq!(problems("from = ['a']\nto = ['b']\nas = 'json'\nwith-raw = false"), [""; 0]);
        assert!(problems("from = ['a']\nto = ['b']\nas = 'raw'\nwith-raw = true")[0].contains("take it out"));
    }

    #[test]
    fn two_forms_for_one_source_and_upstream_contradict_each_other() {
        let route = |from: &str, to: &str, form| RouteConfig { form, ..plain(names(&[from]), names(&[to])) };
        let routes = [route("a", "x", None), route("a", "y", Some(Form::Json)), route("b", "x", Some(Form::Raw))];
        assert_eq!(contradiction(&routes), None);
        let more = [&routes[..], &[route("a", "x", Some(Form::Json))]].concat();
        assert_eq!(contradiction(&more), Some((0, 3)));
    }

    #[test]
    fn a_message_goes_once_to_each_upstream_that_any_route_of_its_source_names() {
        let routes = [
            plain(names(&["monitors", "lab"]), names(&["engine", "cloud"])),
            plain(names(&["lab"]), names(&["archive", "engine"])),
        ];
        let of = |source: &str| targets(&routes, &source.parse().unwrap());
        assert_eq!(of("lab"), names(&["engine", "cloud", "archive"]));
        assert_eq!(of("monitors"), names(&["engine", "cloud"]));
        assert_eq!(of("ct"), []);
    }

    #[test]
    fn an_empty_route_is_a_problem() {
        let mut problems = Problems::default();
        plain(vec![], names(&["engine"])).check(&mut problems);
        let found = problems.into_found();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text, "is empty: name at least one source, or take the route out");
    }
}
