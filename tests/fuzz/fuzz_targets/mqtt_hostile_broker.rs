//! A client's side of MQTT 5 before a hostile broker: whatever comes, and however it is cut into reads, nothing panics and no
//! buffer outgrows the maximum packet size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wardgate_fuzz::wire::mqtt::hostile_broker;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, stream)) = data.split_first() else { return };
    // Reads from 1 byte to 256.
    hostile_broker(stream, usize::from(cut) + 1);
});
