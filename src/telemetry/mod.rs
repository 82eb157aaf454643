//! Device telemetry in a device-neutral form: what was observed, by which device, when, how sure of the time, and what is missing.
//!
//! A source that understands its device stores one [`record::Record`] for each frame, reading or poll, as JSON of the media type
//! [`record::CONTENT_TYPE`] (JSON Schema: `config/record.schema.json`); the device's own bytes travel in it. [`codes`] has the terms and
//! units, [`site`] the site's own. Encoders make other forms of it when it is sent: [`pcd`], [`senml`]. Nothing here
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
