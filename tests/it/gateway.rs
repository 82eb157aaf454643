//! The whole service, as a hospital runs it: the real executable between a device and an upstream.

mod dead;
mod delivery;
mod keys;
mod reload;
mod shortage;
mod stopping;
mod tls;

/// A source that takes HL7 v2 on any free port.
pub fn source(name: &str) -> String {
    format!("[source.{name}.mllp]\nlisten = \"127.0.0.1:0\"\n")
}

/// An upstream that speaks HL7 v2 without TLS.
pub fn engine(name: &str, port: u16) -> String {
    format!("[upstream.{name}.mllp]\naddress = \"127.0.0.1:{port}\"\nplain = true\n")
}

/// A route.
pub fn route(from: &str, to: &[&str]) -> String {
    format!("[[route]]\nfrom = [\"{from}\"]\nto = {to:?}\n")
}

/// The source `monitors` and the upstream `engine` on this port.
pub fn monitors_to_engine(port: u16) -> String {
    source("monitors") + &engine("engine", port) + &route("monitors", &["engine"])
}
