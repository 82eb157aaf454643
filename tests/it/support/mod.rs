//! What every integration test stands on: processes, waiting, ports, certificates, peers.
//!
//! Nothing here knows wardgate's behaviour. Everything that is started ends with the value that holds it, by its own
//! process id.

// Each subject uses a part of this; the part itself is tested in its own file.
#![allow(dead_code)]

pub mod broker;
pub mod certs;
pub mod ctn;
pub mod dicom;
pub mod dicom_files;
pub mod gateway;
pub mod mllp;
pub mod mqtt;
pub mod orthanc;
pub mod ports;
pub mod process;
pub mod subscriber;
pub mod tools;
pub mod wait;

/// How often a test that repeats itself goes round: `short` in `tests/all`, `long` in `tests/long`.
pub fn rounds(short: u32, long: u32) -> u32 {
    match std::env::var_os("WARDGATE_TEST_LONG") {
        Some(_) => long,
        None => short,
    }
}
