//! Which message goes where: `[[route]]`, and the one question that is asked of all of them at each commit.
//!
//! The targets of a message are decided when it is committed, by its source alone, and are stored with it: a changed route
//! never moves what is already stored. Filters and transforms, which run when a message is sent, will find their room here.
//! Nothing here does I/O.

use serde::Deserialize;

use crate::values::{Name, Problems, SecretRef, Section};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_message_goes_once_to_each_upstream_that_any_route_of_its_source_names() {
        let routes = [
            RouteConfig { from: names(&["monitors", "lab"]), to: names(&["engine", "cloud"]) },
            RouteConfig { from: names(&["lab"]), to: names(&["archive", "engine"]) },
        ];
        let of = |source: &str| targets(&routes, &source.parse().unwrap());
        assert_eq!(of("lab"), names(&["engine", "cloud", "archive"]));
        assert_eq!(of("monitors"), names(&["engine", "cloud"]));
        assert_eq!(of("ct"), []);
    }

    #[test]
    fn an_empty_route_is_a_problem() {
        let mut problems = Problems::default();
        RouteConfig { from: vec![], to: names(&["engine"]) }.check(&mut problems);
        let found = problems.into_found();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text, "is empty: name at least one source, or take the route out");
    }
}
