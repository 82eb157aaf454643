//! Device telemetry in a device-neutral form: what was observed, by which device, when, how sure of the time, and what is missing.
//!
//! A source that understands its device stores one [`record::Record`] for each frame, reading or poll, as JSON of the media type
//! [`record::CONTENT_TYPE`]; the device's own bytes travel in it. Encoders make other forms of it when it is sent. Nothing here
//! does I/O, nothing here corrects a device: values, codes and times stay as the device gave them, what we know better stands beside.

pub mod codes;
#[cfg(test)]
pub mod fixtures;
mod mdc_table;
pub mod pcd;
#[cfg(test)]
mod pcd_tests;
pub mod record;
pub mod senml;
pub mod site;
