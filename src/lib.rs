//! wardgate takes HL7 v2, DICOM and device telemetry on a hospital's edge, keeps it durably and encrypted, and forwards it.
//!
//! This is the map. The way of a message, in order:
//!
//! ```text
//! device > source > Intake: begin, write, commit > spool: encrypt, append, sync > acknowledgement to the device
//!                                                    |
//!                    one forwarder per upstream; one lane per source and upstream, each with its cursor
//!                                                    |
//!                          upstream.send > Receipt > the lane's cursor moves on;  refused for good > dead letter
//! ```
//!
//! The rooms, in the order of that way:
//!
//! * [`values`], [`envelope`], [`digest`], [`status`], [`callers`]: what the rooms hand each other. Checked values, the message, what its
//!   body is known by, the counters,
//!   the devices that wait on the line for an answer.
//! * [`source`]: the device side, a file or a folder for each protocol. `accept` is the listener that they share, `plug` how local
//!   devices plug in, `readings` and `intake` their way into the spool.
//! * [`wire`]: what the bytes mean. MLLP and HL7, DICOM, ASTM, MEDIBUS, Modbus, frames of serial lines, MQTT packets; pure
//!   and fuzzed.
//! * [`spool`]: the durable queue. Its head is the document of the format on disk.
//! * [`telemetry`]: what devices observe, in one device-neutral form; the codes of it, and the forms in which it is sent.
//! * [`route`]: which message goes where, and in which form.
//! * [`upstream`]: the network side: `mllp`, `dicom`, `stow`, `mqtt`, `https`, `directory`. `forwarder` is the only delivery loop;
//!   `sealing` end-to-end encryption; `commitment` tells modalities what became of their instances.
//! * [`collector`]: the other end of the mqtt upstream, for whoever receives there.
//! * [`config`]: the file that sets all this up, with all its problems at once.
//! * [`gateway`]: the wiring, the one file in which the whole can be seen being put together.
//! * [`admin`]: how the running service is asked: control socket, metrics.
//! * [`cli`]: the command line, a file for each subcommand; [`system`]: TLS, time, credentials, systemd.
//!
//! Beside the code: `systemd/` and `debian/` make a service of it, `yocto/` a whole system, `config/` what they are told;
//! `tests/arm` and `tests/appliance` prove it on the box's processor and through power cuts.
//!
//! What no change may break:
//!
//! * **A source acknowledges only after the commit returned Ok**, that is after the sync. Never from memory.
//! * **A cursor moves only on a receipt**, the upstream's own acceptance; never on "written to the socket".
//! * **Content never stops storage.** What can't be parsed is stored, answered as its protocol wants, and flagged.
//! * **Nothing is dropped silently.** Refusals, dead letters and gaps are records, counted, logged and shown.
//! * **No content in logs, metrics, topics or names, nor in clear on disk.**
//! * **Arrows point one way**: `wire` imports nothing of ours; sources and upstreams do not know each other; the spool knows
//!   neither. A test reads the imports (`tests/it/house`).

pub mod admin;
pub mod callers;
pub mod cli;
pub mod collector;
pub mod config;
pub mod digest;
pub mod envelope;
pub mod gateway;
pub mod route;
pub mod source;
pub mod spool;
pub mod status;
pub mod system;
pub mod telemetry;
pub mod upstream;
pub mod values;
pub mod wire;
