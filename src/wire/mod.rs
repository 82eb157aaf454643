//! What the bytes mean: pure state machines with no I/O, no clock and no configuration; every one is fuzzed.
//!
//! Bytes come from strangers here: no indexing, no panics, no allocation that a peer can choose the size of.

pub mod ack;
pub mod answer;
pub mod hl7;
pub mod mllp;
pub mod mqtt;
pub mod mqtt_label;
pub mod stow;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod mllp_tests;
