//! Makes the parts of a configuration from the document: each section is read, its paths made whole, and checked.
//!
//! No problem ends the reading: what is bad is noted and left out, and the next one is read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_spanned::Spanned;
use toml::de::{DeString, DeValue};

use super::document::{self, Document, Value};
use super::report::Report;
use super::{Config, GatewayConfig, Part, Readable, Retired, Standing, cross, files};
use crate::route::RouteConfig;
use crate::spool::SpoolConfig;
use crate::telemetry::site::{SiteCodes, TelemetryConfig};
use crate::values::{Name, Problems, Section};

/// The tables at the top of the file.
const TOP: [&str; 6] = ["gateway", "spool", "source", "upstream", "route", "telemetry"];
/// The key beside an upstream's protocol.
const RETIRED: &str = "retired";
/// The keys of which the first that is there says to people where a source or an upstream is.
const ENDPOINTS: [&str; 6] = ["listen", "connect", "address", "url", "path", "port"];

/// Reads all parts; notes all that is wrong. `None` when a part could not be read at all; the report then says why.
/// Relative paths count from `folder`.
pub fn read<S: Readable, U: Readable>(
    document: Document<'_>,
    folder: &Path,
    report: &mut Report,
) -> Option<Config<S, U>> {
    Loader { document, report, folder, problems: Problems::default() }.config()
}

struct Loader<'a, 't> {
    document: Document<'t>,
    report: &'a mut Report,
    folder: &'a Path,
    problems: Problems,
}

/// An entry of `[source]` or `[upstream]` whose protocol is yet to be read.
struct Entry<'t> {
    name: Name,
    /// The protocol, and a table that holds nothing but it; `None`: there is none.
    service: Option<(String, Value<'t>)>,
    retired: Option<Value<'t>>,
}

impl<'t> Loader<'_, 't> {
    fn config<S: Readable, U: Readable>(mut self) -> Option<Config<S, U>> {
        self.reject_unknown_tables();
        let gateway = self.required::<GatewayConfig>("gateway", "add it, with name and site");
        let spool = self.required::<SpoolConfig>("spool", "add it, with path and key");
        let sources = self.sources();
        let upstreams = self.upstreams();
        let routes = self.routes();
        let codes = self.codes();
        let spool = spool.map(|part| self.placed(part.config));
        cross::check(&self.document, routes.as_deref(), spool.as_ref(), &mut self.problems);
        for problem in self.problems.into_found() {
            let place = self.document.place(&problem.path);
            self.report.note(self.document.text, place, problem.text, problem.warning);
        }
        Some(Config {
            gateway: gateway?.config,
            spool: spool?,
            sources: sources?,
            upstreams: upstreams?,
            routes: routes?,
            codes: codes?,
            digest: files::digest(self.document.text),
        })
    }

    fn reject_unknown_tables(&mut self) {
        for (key, _) in &self.document.root {
            if !TOP.contains(&key.get_ref().as_ref()) {
                let text = document::unknown_key(key.get_ref(), &TOP);
                self.report.note(self.document.text, key.span(), text, false);
            }
        }
    }

    fn required<T: Readable>(&mut self, table: &str, advice: &str) -> Option<Part<T>> {
        let Some(value) = self.document.value(&[table]).cloned() else {
            self.report.note_of_file(format!("there is no [{table}]: {advice}"), false);
            return None;
        };
        self.part(&[table], table.to_owned(), &value)
    }

    /// Reads a section, makes its paths whole and lets it check itself, under its own path.
    fn part<T: Readable>(&mut self, path: &[&str], title: String, value: &Value<'t>) -> Option<Part<T>> {
        let mut config: T = document::read(self.document.text, value, self.report)?;
        let files = files::settle(&mut config, self.folder);
        check_under(&mut self.problems, path, &config);
        Some(Part { config, files, title })
    }

    /// The spool's folder counts from the configuration file's as well.
    fn placed(&self, config: SpoolConfig) -> SpoolConfig {
        SpoolConfig { path: self.folder.join(&config.path), ..config }
    }

    /// `[telemetry]`: the site's table is read with the configuration, so that its bad rows are told like any other problem.
    fn codes(&mut self) -> Option<Arc<SiteCodes>> {
        let Some(value) = self.document.value(&["telemetry"]).cloned() else { return Some(Arc::default()) };
        let part = self.part::<TelemetryConfig>(&["telemetry"], "telemetry".to_owned(), &value)?;
        let TelemetryConfig { codes, zone } = part.config;
        let Some(file) = codes.map(|file| self.folder.join(file)) else {
            return Some(Arc::new(SiteCodes::default().with_zone(zone)));
        };
        match SiteCodes::load(&file) {
            Ok(codes) => Some(Arc::new(codes.with_zone(zone))),
            Err(faults) => {
                for fault in faults {
                    self.problems.under("telemetry", |problems| problems.error("codes", fault));
                }
                Some(Arc::default())
            }
        }
    }

    fn sources<S: Readable>(&mut self) -> Option<BTreeMap<Name, Part<S>>> {
        let read = self.entries("source").into_iter().map(|entry| {
            let entry = entry?;
            Some((entry.name.clone(), self.service("source", &entry)?))
        });
        every(read)
    }

    fn upstreams<U: Readable>(&mut self) -> Option<BTreeMap<Name, Standing<U>>> {
        let read = self.entries("upstream").into_iter().map(|entry| {
            let entry = entry?;
            let retired = entry.retired.as_ref();
            let retired = retired.map(|value| document::read::<Retired>(self.document.text, value, self.report));
            let standing = match (&entry.service, retired) {
                (None, Some(Some(Retired::DeadLetter))) => Standing::Buried,
                (_, Some(None)) => {
                    self.service::<U>("upstream", &entry);
                    return None;
                }
                (_, None) => Standing::Active(self.service("upstream", &entry)?),
                (_, Some(Some(Retired::Drain))) => Standing::Draining(self.service("upstream", &entry)?),
                (Some(_), Some(Some(Retired::DeadLetter))) => {
                    self.service::<U>("upstream", &entry)?;
                    Standing::Buried
                }
            };
            Some((entry.name, standing))
        });
        every(read)
    }

    fn routes(&mut self) -> Option<Vec<RouteConfig>> {
        let Some(value) = self.document.value(&["route"]) else { return Some(Vec::new()) };
        let DeValue::Array(routes) = value.get_ref().clone() else {
            self.note(value.span(), "write each route as a table of its own, under [[route]]".to_owned());
            return None;
        };
        let read = routes.into_iter().enumerate().map(|(index, route)| {
            let index = index.to_string();
            self.part::<RouteConfig>(&["route", &index], index.clone(), &route).map(|part| part.config)
        });
        every(read)
    }

    /// Reads the protocol's section of a source or an upstream.
    fn service<T: Readable>(&mut self, kind: &str, entry: &Entry<'t>) -> Option<Part<T>> {
        let name = entry.name.as_str();
        let Some((protocol, value)) = &entry.service else {
            let text = format!("\"{name}\" has no protocol: write [{kind}.{name}.mllp], or another one");
            self.note(self.document.place(&[kind, name]), text);
            return None;
        };
        let text = |key: &&str| Some(self.document.value(&[kind, name, protocol, key])?.get_ref().as_str()?.to_owned());
        let port =
            || Some(self.document.value(&[kind, name, protocol, "serial", "port"])?.get_ref().as_str()?.to_owned());
        let endpoint = ENDPOINTS.iter().find_map(text).or_else(port);
        let title = match endpoint {
            None => protocol.clone(),
            Some(endpoint) if endpoint.starts_with(&format!("{protocol}://")) => endpoint,
            Some(endpoint) => format!("{protocol} {endpoint}"),
        };
        self.part(&[kind, name, protocol], title, value)
    }

    /// The entries of `[source]` or `[upstream]`; `None` for each that can't be one, whose problem is noted.
    fn entries(&mut self, kind: &str) -> Vec<Option<Entry<'t>>> {
        let Some(value) = self.document.value(&[kind]) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref().clone() else {
            self.note(value.span(), format!("write tables here: [{kind}.<name>.<protocol>]"));
            return vec![None];
        };
        table.into_iter().map(|(key, value)| self.entry(kind, &key, value)).collect()
    }

    fn entry(&mut self, kind: &str, key: &Spanned<DeString<'t>>, mut value: Value<'t>) -> Option<Entry<'t>> {
        let name = match key.get_ref().parse::<Name>() {
            Ok(name) => name,
            Err(error) => {
                self.note(key.span(), error.to_string());
                return None;
            }
        };
        let DeValue::Table(table) = value.get_mut() else {
            self.note(value.span(), format!("write a table here: [{kind}.{name}.<protocol>]"));
            return None;
        };
        let retired = if kind == "upstream" { table.remove(RETIRED) } else { None };
        let protocols: Vec<_> = table.keys().cloned().collect();
        if let [first, others @ ..] = protocols.as_slice() {
            for other in others {
                let text = format!(
                    "\"{name}\" speaks {} already: one name has one protocol; give {other} a name of its own",
                    first.get_ref(),
                    other = other.get_ref(),
                );
                self.note(other.span(), text);
            }
            if !others.is_empty() {
                return None;
            }
        }
        let service = protocols.into_iter().next().map(|protocol| (protocol.into_inner().into_owned(), value));
        Some(Entry { name, service, retired })
    }

    fn note(&mut self, place: Range<usize>, text: String) {
        self.report.note(self.document.text, place, text, false);
    }
}

/// All of them, once each was looked at: a bad one must not keep the next from being read.
fn every<T, C: FromIterator<T>>(read: impl Iterator<Item = Option<T>>) -> Option<C> {
    let read: Vec<Option<T>> = read.collect();
    read.into_iter().collect()
}

fn check_under(problems: &mut Problems, path: &[&str], section: &impl Section) {
    match path.split_first() {
        None => section.check(problems),
        Some((first, rest)) => problems.under(first, |problems| check_under(problems, rest, section)),
    }
}
