//! What the bytes of DICOM mean, on the line (PS3.7, PS3.8) and in a data set (PS3.5, PS3.10).
//!
//! * On the line: `pdu` the upper layer, `pdu_associate` its two long PDUs, `pdu_item` and `pdu_user` what they are made of;
//!   `dimse` commands, `dimse_status` statuses; `commitment` requests and reports of storage commitment.
//! * In a data set: `element` the encodings, `header` the facts in a data set that passes by, `file` the head of a file,
//!   `dictionary` standard elements, `convert` one encoding into the other, `deflated` the one that is inflated first, `values` titles and UIDs, `sample` an instance for tests of the line.

pub mod commitment;
pub mod convert;
pub mod deflated;
pub mod dictionary;
pub mod dimse;
mod dimse_status;
pub mod element;
pub mod file;
pub mod header;
pub mod pdu;
pub mod pdu_associate;
mod pdu_item;
mod pdu_user;
pub mod sample;
pub mod values;

#[cfg(test)]
mod convert_tests;
#[cfg(test)]
mod dimse_tests;
#[cfg(test)]
mod header_tests;
#[cfg(test)]
mod pdu_tests;
