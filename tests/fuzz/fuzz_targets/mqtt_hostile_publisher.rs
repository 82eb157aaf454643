//! The ingest endpoint for MQTT 3.1.1 and 5 before a hostile client: whatever comes, nothing panics, and each answer is one whole packet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::mqtt_answer::hostile_publisher;

fuzz_target!(|data: &[u8]| hostile_publisher(data, 64 << 10));
