//! How people and machines look at the running service and change it: the control socket of the command line and the
//! page of figures for Prometheus.
//!
//! This room decides who may ask what and speaks the lines; what is done about a request is the [`operator::Operator`]'s,
//! which `gateway` implements. Nothing here knows the spool or a protocol, and nothing here shows patient data, but the one
//! verb that is made for it (`dead-body`), which counts as a change and is logged.
//!
//! * [`verbs`]: requests. [`answers`]: what comes back. [`operator`]: the trait that carries them out.
//! * [`ids`]: messages as people name them.
//! * [`access`]: `[gateway] control`, and who may read and who may change, by the peer's uid and groups.
//! * [`lines`]: JSON lines with a bound, for both ends.
//! * [`control`]: the server side. [`client`]: the side of the command line.
//! * [`alarms`]: what a person must see, derived from the snapshot. [`metrics`]: the snapshot as Prometheus text.
//!   [`scrape`]: the loopback page that serves it.

pub mod access;
pub mod alarms;
pub mod answers;
pub mod client;
pub mod control;
pub mod events;
pub mod ids;
pub mod lines;
pub mod metrics;
pub mod operator;
#[cfg(test)]
pub(crate) mod sample;
pub mod scrape;
pub mod verbs;
