//! What only the whole file shows: routes that lead nowhere, sources that nobody listens to, two listeners at one address, two
//! upstreams in each other's way at one broker.
//!
//! Names are taken from the document and not from the sections that could be read: a problem inside a section must not
//! make its name unknown elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::document::Document;
use super::fits;
use super::report::nearest;
use crate::route::{self, Form, RouteConfig};
use crate::source::astm;
use crate::spool::{self, KeyError, SpoolConfig};
use crate::system::credentials::{self, CredentialError};
use crate::system::disk;
use crate::upstream::mqtt;
use crate::values::{ASSEMBLY, ByteSize, Listen, Name, Problems, STORAGE_COMMITMENT};

/// Checks the whole; `routes` and `spool` are `None` when they have problems of their own.
pub fn check(
    document: &Document<'_>,
    routes: Option<&[RouteConfig]>,
    spool: Option<&SpoolConfig>,
    problems: &mut Problems,
) {
    let (sources, upstreams) = (names(document, "source"), names(document, "upstream"));
    for own in [STORAGE_COMMITMENT, ASSEMBLY] {
        if upstreams.iter().any(|name| name == own) {
            problems.under("upstream", |problems| {
                problems.error(own, "is the name of an upstream that the gateway makes by itself: choose another")
            });
        }
    }
    if let Some(routes) = routes {
        check_names(routes, "from", "source", &sources, problems);
        check_names(routes, "to", "upstream", &upstreams, problems);
        check_retired(document, routes, problems);
        check_reach(document, routes, &sources, &upstreams, problems);
        check_forms(document, routes, problems);
        fits::check(document, routes, problems);
    }
    check_addresses(document, &sources, problems);
    check_ports(document, &sources, problems);
    check_brokers(document, &upstreams, problems);
    if let Some(spool) = spool {
        check_quotas(spool, problems);
        check_analysers(document, &sources, spool, problems);
        problems.under("spool", |problems| check_key(spool, problems));
    }
}

fn names(document: &Document<'_>, kind: &str) -> Vec<String> {
    let table = document.value(&[kind]).and_then(|value| value.get_ref().as_table());
    table.into_iter().flat_map(DeTable::keys).map(|key| key.get_ref().to_string()).collect()
}

fn is_retired(document: &Document<'_>, upstream: &str) -> bool {
    document.value(&["upstream", upstream, "retired"]).is_some()
}

/// Each name that a route uses must be there.
fn check_names(routes: &[RouteConfig], key: &str, kind: &str, known: &[String], problems: &mut Problems) {
    each_name(routes, key, problems, |name, problems, place| {
        if known.iter().any(|known| known == name) {
            return;
        }
        let text = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("there is no {kind} \"{name}\": did you mean \"{near}\"?"),
            None => {
                format!("there is no {kind} \"{name}\": add [{kind}.{name}.<protocol>], or take it out of the route")
            }
        };
        problems.error(place, text);
    });
}

fn check_retired(document: &Document<'_>, routes: &[RouteConfig], problems: &mut Problems) {
    each_name(routes, "to", problems, |name, problems, place| {
        if is_retired(document, name) {
            problems.error(place, format!("\"{name}\" is retired: take it out of the route"));
        }
    });
}

/// Visits each name in `from` or `to` of each route, with the problems under its place.
fn each_name(routes: &[RouteConfig], key: &str, problems: &mut Problems, visit: impl Fn(&str, &mut Problems, &str)) {
    for (index, route) in routes.iter().enumerate() {
        let names = if key == "from" { &route.from } else { &route.to };
        problems.under("route", |problems| {
            problems.under(&index.to_string(), |problems| {
                problems.under(key, |problems| {
                    for (place, name) in names.iter().enumerate() {
                        visit(name.as_str(), problems, &place.to_string());
                    }
                });
            });
        });
    }
}

/// What comes in must go somewhere; what could go out should be asked for.
fn check_reach(
    document: &Document<'_>,
    routes: &[RouteConfig],
    sources: &[String],
    upstreams: &[String],
    problems: &mut Problems,
) {
    // A mistyped name is a problem of its own, and must not make the one that was meant look forgotten.
    let meant = |known: &[String], name: &str| {
        let is_known = known.iter().any(|known| known == name);
        let near = if is_known { None } else { nearest(name, known.iter().map(String::as_str)) };
        near.unwrap_or(name).to_owned()
    };
    let from: Vec<String> =
        routes.iter().flat_map(|route| &route.from).map(|name| meant(sources, name.as_str())).collect();
    let to: Vec<String> =
        routes.iter().flat_map(|route| &route.to).map(|name| meant(upstreams, name.as_str())).collect();
    problems.under("source", |problems| {
        for name in sources.iter().filter(|name| !from.contains(name)) {
            problems.error(
                name,
                format!("nobody gets what \"{name}\" receives: add [[route]] with from = [\"{name}\"] and to = [...]"),
            );
        }
    });
    problems.under("upstream", |problems| {
        for name in upstreams.iter().filter(|name| !to.contains(name) && !is_retired(document, name)) {
            problems.warn(name, format!("nothing is routed to \"{name}\": name it in the to of a [[route]]"));
        }
    });
    if sources.is_empty() {
        problems.warn("source", "there is no source: this box will receive nothing; add [source.<name>.<protocol>]");
    }
}

/// One message can't go to one upstream in two forms, and not every upstream takes every form.
fn check_forms(document: &Document<'_>, routes: &[RouteConfig], problems: &mut Problems) {
    let mut note = |route: usize, key: &str, text: String| {
        problems.under("route", |problems| problems.under(&route.to_string(), |problems| problems.error(key, text)));
    };
    if let Some((earlier, later)) = route::contradiction(routes) {
        let key = if routes.get(later).is_some_and(|route| route.form.is_some()) { "as" } else { "to" };
        let text = format!(
            "route {} gives some of these messages to the same upstream in another form: make them equal, or make two \
             upstreams of it",
            earlier + 1
        );
        note(later, key, text);
    }
    for (index, route) in routes.iter().enumerate() {
        let speaks = |kind: &'static str, names: &[Name], protocol: &str| {
            names.iter().find(|name| document.value(&[kind, name.as_str(), protocol]).is_some()).cloned()
        };
        let Some(form) = route.conversion().map(|conversion| conversion.form) else { continue };
        let key = if route.form.is_some() { "as" } else { "with-raw" };
        if let Some(name) = speaks("upstream", &route.to, "mllp").filter(|_| matches!(form, Form::Json | Form::Senml)) {
            note(index, key, format!("\"{name}\" takes HL7 v2 only: write as = \"pcd-01\", or route it elsewhere"));
        }
        let imaging = speaks("upstream", &route.to, "dicom").or_else(|| speaks("upstream", &route.to, "stow"));
        if let Some(name) = imaging.or_else(|| speaks("source", &route.from, "dicom")).filter(|_| form != Form::Raw) {
            note(
                index,
                key,
                format!("\"{name}\" carries images, which have no other form: take it out, or make a route of its own"),
            );
        }
    }
}

/// Two parts can't listen at one address. Port 0 lets the system choose and never collides.
fn check_addresses(document: &Document<'_>, sources: &[String], problems: &mut Problems) {
    let mut taken: BTreeMap<(bool, String), SocketAddr> = BTreeMap::new();
    let mut claim = |path: &[&str], who: String, problems: &mut Problems| {
        // Datagrams and connections have ports of their own.
        let is_udp = path.contains(&"udp");
        let text = document.value(path).and_then(|value| value.get_ref().as_str());
        let Some(Listen(address)) = text.and_then(|text| text.parse().ok()) else { return };
        match taken.iter().find(|((udp, _), other)| *udp == is_udp && collide(**other, address)) {
            Some(((_, other), at)) => {
                let text = format!("{other} listens at {at} already: choose another port or address");
                note_at(problems, path, &text);
            }
            None => drop(taken.insert((is_udp, who), address)),
        }
    };
    claim(&["gateway", "metrics"], "[gateway] metrics".to_owned(), problems);
    for name in sources {
        let table = document.value(&["source", name]).and_then(|value| value.get_ref().as_table());
        for protocol in table.into_iter().flat_map(DeTable::keys) {
            claim(&["source", name, protocol.get_ref(), "listen"], format!("source \"{name}\""), problems);
        }
    }
}

/// A serial port has one owner. Two names of one device (by path, by id) are one port where it is plugged in.
fn check_ports(document: &Document<'_>, sources: &[String], problems: &mut Problems) {
    let mut taken: BTreeMap<PathBuf, &String> = BTreeMap::new();
    for name in sources {
        let table = document.value(&["source", name]).and_then(|value| value.get_ref().as_table());
        for protocol in table.into_iter().flat_map(DeTable::keys) {
            let path = ["source", name, protocol.get_ref(), "serial", "port"];
            let Some(port) = document.value(&path).and_then(|value| value.get_ref().as_str()) else { continue };
            let port = fs::canonicalize(port).unwrap_or_else(|_| port.into());
            match taken.get(&port) {
                Some(other) => {
                    let text =
                        format!("source \"{other}\" has this port already: a port has one owner, choose another one");
                    note_at(problems, &path, &text);
                }
                None => drop(taken.insert(port, name)),
            }
        }
    }
}

/// Two upstreams of one broker: a client id there has one connection, and the topic of the status one state.
fn check_brokers(document: &Document<'_>, upstreams: &[String], problems: &mut Problems) {
    let mut clients: BTreeMap<[String; 2], &String> = BTreeMap::new();
    let mut statuses: BTreeMap<[String; 2], &String> = BTreeMap::new();
    for name in upstreams.iter().filter(|name| !is_retired(document, name)) {
        let text = |key| document.value(&["upstream", name, "mqtt", key]).and_then(|value| value.get_ref().as_str());
        let Some(address) = text("address").map(str::to_ascii_lowercase) else { continue };
        if let Some(client) = text("client-id") {
            if let Some(other) = clients.get(&[address.clone(), client.to_owned()]) {
                let text = format!(
                    "upstream \"{other}\" has this client id at this broker: each would throw the other one out; write another"
                );
                note_at(problems, &["upstream", name, "mqtt", "client-id"], &text);
            }
            clients.insert([address.clone(), client.to_owned()], name);
        }
        let root = text("topic-root").unwrap_or(mqtt::TOPIC_ROOT);
        if let Some(other) = statuses.get(&[address.clone(), root.to_owned()]) {
            let text = format!(
                "upstream \"{other}\" tells its state on the same topic of this broker: when one of them is cut off, both are shown as \
                 offline; write another topic-root if somebody watches it"
            );
            problems.under("upstream", |problems| {
                problems.under(name, |problems| problems.under("mqtt", |problems| problems.warn("topic-root", text)));
            });
        }
        statuses.insert([address, root.to_owned()], name);
    }
}

fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || everywhere)
}

fn note_at(problems: &mut Problems, path: &[&str], text: &str) {
    match path {
        [] => {}
        [last] => problems.error(last, text),
        [first, rest @ ..] => problems.under(first, |problems| note_at(problems, rest, text)),
    }
}

/// Quotas that the disk can't hold would be met by a full disk, not by a clear refusal.
fn check_quotas(spool: &SpoolConfig, problems: &mut Problems) {
    let quotas = [&spool.clinical, &spool.imaging, &spool.telemetry].map(|log| log.quota.map_or(0, |quota| quota.0));
    let wanted = quotas.into_iter().fold(0, u64::saturating_add);
    let Ok(space) = disk::space(&spool.path) else { return };
    if wanted > space.total {
        let (wanted, total) = (ByteSize(wanted), ByteSize(space.total));
        let folder = spool.path.display();
        let text = format!("the quotas together are {wanted}, but the disk of {folder} has {total} on this machine");
        problems.warn("spool", text);
    }
}

/// A log that one unfinished message of an analyser can fill would never have room for the message again.
fn check_analysers(document: &Document<'_>, sources: &[String], spool: &SpoolConfig, problems: &mut Problems) {
    let Some(quota) = spool.clinical.quota else { return };
    for name in sources.iter().filter(|name| document.value(&["source", name, "astm"]).is_some()) {
        let key = "max-message-size";
        let said = document.value(&["source", name, "astm", key]).and_then(|value| value.get_ref().as_str());
        let size = said.map_or(Ok(astm::MESSAGE_SIZE_DEFAULT), str::parse);
        let Some(wanted) = size.ok().map(astm::quota_wanted).filter(|wanted| wanted.0 > quota.0) else { continue };
        let text = format!(
            "the frames of one long message could fill the clinical log ({quota}), which then has no room for the message itself, \
             so that analysers are refused until a person helps: write a smaller max-message-size, or [spool.clinical] quota = \
             \"{wanted}\" or more"
        );
        problems.under("source", |problems| {
            problems.under(name, |problems| problems.under("astm", |problems| problems.warn(key, text)));
        });
    }
}

/// The key as a start would read it: what would end with 78 on this machine is a problem here. That a credential is not at
/// hand, or that this user may not look, is a warning only: the service has its own rights.
fn check_key(spool: &SpoolConfig, problems: &mut Problems) {
    let folder = spool.path.display();
    if let Some(exposed) = credentials::exposure(&spool.key) {
        problems.warn("key", exposed);
    }
    if let Err(error @ KeyError::Destroyed(_)) = spool::refuse_destroyed(&spool.path) {
        return problems.error("path", error.to_string());
    }
    let key = match credentials::read(&spool.key) {
        Ok(key) => key,
        Err(CredentialError::NoCredentials(_)) => return,
        Err(CredentialError::NoSuchFile(file)) => return check_missing(spool, &file, problems),
        Err(error @ CredentialError::Denied(_)) => {
            return problems.warn("key", format!("{error}; check again as the user that the service runs under"));
        }
        Err(error @ CredentialError::NoSuchCredential(_)) => return problems.warn("key", error.to_string()),
        Err(error) => return problems.error("key", error.to_string()),
    };
    match spool::parse_root(&key).map(|root| spool::check_root(&spool.path, root)) {
        Ok(Ok(())) => {}
        Ok(Err(KeyError::Io(error))) => problems.warn("path", format!("{folder} can't be looked into: {error}")),
        Ok(Err(error)) => problems.error("key", format!("{}: {error}", spool.key)),
        Err(error) => problems.error("key", format!("{}: {error}", spool.key)),
    }
}

/// A key file that is not there is made at the first start, for an empty spool only.
fn check_missing(spool: &SpoolConfig, file: &Path, problems: &mut Problems) {
    let (shown, folder) = (file.display(), spool.path.display());
    match spool::is_empty(&spool.path) {
        Ok(true) if file.parent().is_some_and(Path::is_dir) => {}
        Ok(true) => {
            problems.warn("key", format!("file \"{shown}\" can't be made at the first start: its folder is not there"));
        }
        Ok(false) => problems.error(
            "key",
            format!(
                "file \"{shown}\" is not there, but the spool in {folder} holds data that only this key opens: the service \
                 would not start (78). Put the file back, or move the spool's folder away to begin an empty one"
            ),
        ),
        Err(error) => problems.warn("path", format!("{folder} can't be looked into: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{LoadError, Loaded, load};
    use crate::source::SourceConfig;
    use crate::upstream::UpstreamConfig;

    /// What is said of two MQTT upstreams of one file, `a` and `b`.
    fn told_of_brokers(a: &str, b: &str) -> Vec<String> {
        let head = "[gateway]\nname = \"box\"\nsite = \"here\"\n[spool]\npath = \"spool\"\nkey = \"dev.key\"\n";
        let route = "[source.s.mllp]\nlisten = \"127.0.0.1:0\"\n[[route]]\nfrom = [\"s\"]\nto = [\"a\", \"b\"]\n";
        let upstream = |name: &str, keys: &str| format!("[upstream.{name}.mqtt]\nplain = true\n{keys}\n");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.toml");
        fs::write(&file, format!("{head}{route}{}{}", upstream("a", a), upstream("b", b))).unwrap();
        let report = match load::<SourceConfig, UpstreamConfig>(&file) {
            Ok(Loaded { report, .. }) | Err(LoadError::Bad(report)) => report,
            Err(other) => panic!("{other}"),
        };
        let shown = report.findings().iter();
        shown.map(|finding| format!("{}{}", if finding.warning { "warning: " } else { "" }, finding.text)).collect()
    }

    #[test]
    fn upstreams_in_each_others_way_at_one_broker_are_told_apart_from_those_at_two() {
        let told = told_of_brokers("address = \"broker:1883\"", "address = \"Broker:1883\"");
        let [only] = &told[..] else { panic!("{told:?}") };
        assert!(only.starts_with("warning: upstream \"a\" tells its state on the same topic"), "{only}");
        let told = told_of_brokers(
            "address = \"broker:1883\"\nclient-id = \"box\"",
            "address = \"broker:1883\"\nclient-id = \"box\"\ntopic-root = \"other\"",
        );
        let [only] = &told[..] else { panic!("{told:?}") };
        assert!(only.starts_with("upstream \"a\" has this client id at this broker"), "{only}");
        let other_root = "address = \"broker:1883\"\ntopic-root = \"other\"";
        for (a, b) in [("broker:1883", "broker:1884"), ("broker:1883", "spare:1883")] {
            let address = |at: &str| format!("address = \"{at}\"\nclient-id = \"box\"");
            assert_eq!(told_of_brokers(&address(a), &address(b)), Vec::<String>::new());
        }
        assert_eq!(told_of_brokers("address = \"broker:1883\"", other_root), Vec::<String>::new());
    }
}
