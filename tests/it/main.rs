//! What a user would see: real sockets, the real executable, real peers. One binary, one module per subject.
//!
//! No fixed ports, no sleeps in place of conditions, nothing outside loopback, invented patients only. `tests/setup`
//! installs the peers; a test whose peer is missing fails and says so, it is never skipped.

// Test helpers run outside #[test] functions too, and a test that unwraps has asserted.
#![allow(clippy::unwrap_used)]

mod astm_source;
mod cli;
mod collect;
mod control;
mod demo;
mod demo_broker;
mod dicom_chain;
mod dicom_commitment;
mod dicom_peers;
mod dicom_source;
mod failing_disk;
mod folder;
mod forms;
mod full_disk;
mod gateway;
mod health;
mod hl7_peers;
mod hl7_to_mqtt;
mod house;
mod kill9;
mod medibus;
mod modbus;
mod mqtt;
mod mqtt_source;
mod peers;
mod privacy;
mod probe;
mod probe_dicom;
mod serial;
mod spool_commands;
mod support;
mod sync_order;
mod units;
mod upstreams;
mod yocto;
