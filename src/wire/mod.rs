//! What the bytes mean: pure state machines with no I/O, no clock and no configuration; every one is fuzzed.
//!
//! Bytes come from strangers here: no indexing, no panics, no allocation that a peer can choose the size of.
//!
//! * HL7 v2: `mllp` frames, `hl7` headers, `answer` which acknowledgement is due, `ack` acknowledgements written and read, `oru`
//!   observations.
//! * DICOM: `pdu` the upper layer, `pdu_associate` its two long PDUs; `dimse` commands and statuses; `dicom_element` the encodings,
//!   `dicom_header` the facts in a data set that passes by, `dicom_file` the head of a file, `dicom_values` titles and UIDs;
//!   `commitment` requests and reports of storage commitment; `dicom_sample` an instance for tests of the line; `stow` a
//!   DICOMweb server's answer.
//! * Laboratory analysers: `astm` the framing of E1381, `astm_record` the records of E1394, `astm_json`
//!   a message of them as JSON.
//! * MQTT: `mqtt` packets, `mqtt_label` what travels beside a message.

pub mod ack;
pub mod answer;
pub mod astm;
pub mod astm_json;
pub mod astm_record;
pub mod commitment;
pub mod dicom_element;
pub mod dicom_file;
pub mod dicom_header;
pub mod dicom_sample;
pub mod dicom_values;
pub mod dimse;
mod dimse_status;
pub mod hl7;
pub mod mllp;
pub mod mqtt;
pub mod mqtt_label;
pub mod oru;
pub mod pdu;
pub mod pdu_associate;
mod pdu_item;
mod pdu_user;
pub mod stow;

#[cfg(test)]
mod astm_tests;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod dicom_header_tests;
#[cfg(test)]
mod dimse_tests;
#[cfg(test)]
mod mllp_tests;
#[cfg(test)]
mod pdu_tests;
