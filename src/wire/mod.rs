//! What the bytes mean: pure state machines with no I/O, no clock and no configuration; every one is fuzzed.
//!
//! Bytes come from strangers here: no indexing, no panics, no allocation that a peer can choose the size of.
//!
//! * HL7 v2: `mllp` frames, `hl7` headers, `answer` which acknowledgement is due, `ack` acknowledgements written and read, `oru`
//!   observations.
//! * DICOM: `dicom`, a folder of its own, and `stow`, a DICOMweb server's answer.
//! * Laboratory analysers: `astm` the framing of E1381, `astm_record` the records of E1394, `astm_json` the same as JSON.
//! * Serial lines: `serial_frame` frames, `checksum` what checks them. MEDIBUS: `medibus` frames, `medibus_data` what the answers hold.
//! * Modbus: `modbus` requests and answers, `modbus_value` what registers mean. `result_file` what a file of results looks like.
//! * Sensors: `json_leaves` the values of a JSON text.
//! * MQTT: `mqtt` packets, `mqtt_label` what travels beside a message; `mqtt_packet` what a device sends to the ingest endpoint,
//!   `mqtt_answer` what it is answered, `mqtt_topic` names and filters.

pub mod ack;
pub mod answer;
pub mod astm;
pub mod astm_json;
pub mod astm_record;
pub mod checksum;
pub mod dicom;
pub mod hl7;
pub mod json_leaves;
pub mod medibus;
pub mod medibus_data;
pub mod mllp;
pub mod modbus;
pub mod modbus_value;
pub mod mqtt;
pub mod mqtt_answer;
pub mod mqtt_label;
pub mod mqtt_packet;
pub mod mqtt_topic;
pub mod oru;
pub mod result_file;
pub mod serial_frame;
pub mod stow;

#[cfg(test)]
mod astm_tests;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod mllp_tests;
#[cfg(test)]
mod mqtt_packet_tests;
