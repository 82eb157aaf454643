//! How a device's plug stands: the port or connection, since when it is there or missing, and what came last.
//!
//! The last bytes and the frames that could not be read may hold anything that the device says: they are shown on this box through the
//! control socket only, never logged, counted by name or sent upstream.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Bytes of what came last that are kept.
pub const TAIL_BYTES: usize = 64;
/// Frames that could not be read that are kept: the last ones.
pub const SAMPLES_MAX: usize = 4;
/// Bytes of such a frame that are kept.
pub const SAMPLE_BYTES_MAX: usize = 160;

/// What a source notes about its plug.
#[derive(Default, Debug)]
pub struct Plugged {
    inner: Mutex<Inner>,
}

#[derive(Default, Debug)]
struct Inner {
    at: Option<At>,
    state: PlugState,
    since_ms: u64,
    unplugs: u64,
    tail: VecDeque<u8>,
    unreadable: u64,
    samples: VecDeque<String>,
}

#[derive(Debug)]
struct At {
    port: String,
    settings: String,
}

/// How the plug stands.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "cause")]
pub enum PlugState {
    /// Not looked for yet.
    #[default]
    Unknown,
    /// Devices connect to it.
    Listening,
    /// It is there.
    Plugged,
    /// It is not there, or can't be used: why.
    Missing(String),
}

/// The plug in the snapshot.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlugStatus {
    /// The port or address.
    pub port: String,
    /// Settings of the line, `9600 8N1`; empty over the network.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub settings: String,
    /// How it stands.
    #[serde(flatten)]
    pub state: PlugState,
    /// For how long it has stood so, seconds.
    pub since_s: u64,
    /// How often it was unplugged or lost since the start.
    pub unplugs: u64,
    /// What came last, in hexadecimal digits.
    pub last_bytes: String,
    /// Frames that could not be read.
    pub unreadable: u64,
    /// The last of them, with everything but printable ASCII escaped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<String>,
}

impl Plugged {
    /// Names the port or address, and the settings of the line.
    pub fn at(&self, port: &str, settings: &str) {
        self.inner().at = Some(At { port: port.to_owned(), settings: settings.to_owned() });
    }

    /// Says how it stands since `now_ms` (uptime, milliseconds).
    pub fn set(&self, state: PlugState, now_ms: u64) {
        let mut inner = self.inner();
        if std::mem::discriminant(&inner.state) != std::mem::discriminant(&state) {
            inner.since_ms = now_ms;
            inner.unplugs += u64::from(inner.state == PlugState::Plugged);
        }
        inner.state = state;
    }

    /// Keeps the end of what came.
    pub fn came(&self, bytes: &[u8]) {
        let mut inner = self.inner();
        let kept = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        let over = (inner.tail.len() + kept.len()).saturating_sub(TAIL_BYTES);
        inner.tail.drain(..over);
        inner.tail.extend(kept);
    }

    /// Counts a frame that could not be read, and keeps its beginning.
    pub fn unreadable(&self, frame: &[u8]) {
        let mut inner = self.inner();
        inner.unreadable += 1;
        if inner.samples.len() == SAMPLES_MAX {
            inner.samples.pop_front();
        }
        inner.samples.push_back(escaped(frame));
    }

    /// The plug in the snapshot; `None` when the source has none.
    pub fn snapshot(&self, now_ms: u64) -> Option<PlugStatus> {
        let inner = self.inner();
        let at = inner.at.as_ref()?;
        Some(PlugStatus {
            port: at.port.clone(),
            settings: at.settings.clone(),
            state: inner.state.clone(),
            since_s: now_ms.saturating_sub(inner.since_ms) / 1_000,
            unplugs: inner.unplugs,
            last_bytes: data_encoding::HEXLOWER.encode(&inner.tail.iter().copied().collect::<Vec<u8>>()),
            unreadable: inner.unreadable,
            samples: inner.samples.iter().cloned().collect(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Printable ASCII as it is, all else as `\r` or `\x1b`.
pub fn escaped(bytes: &[u8]) -> String {
    let kept = &bytes[..bytes.len().min(SAMPLE_BYTES_MAX)];
    let mut text = kept.escape_ascii().to_string();
    if kept.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_bytes_and_frames_are_kept() {
        let plug = Plugged::default();
        assert_eq!(plug.snapshot(0), None);
        plug.at("/dev/serial/by-path/usb-1", "9600 8N1");
        plug.came(&[1; 60]);
        plug.came(b"SPO2=98\r\n");
        plug.came(&[]);
        for frame in 0..9u8 {
            plug.unreadable(&[b'0' + frame, 0x1b, 0xff]);
        }
        plug.unreadable(&[b'x'; 500]);
        let status = plug.snapshot(0).unwrap();
        assert_eq!(status.last_bytes.len(), 2 * TAIL_BYTES);
        assert!(status.last_bytes.ends_with("53504f323d39380d0a"));
        assert_eq!((status.unreadable, status.samples.len()), (10, SAMPLES_MAX));
        assert_eq!(status.samples[0], r"6\x1b\xff");
        assert!(status.samples[3].ends_with("x...") && status.samples[3].len() < 200);
        plug.came(&[7; 1000]);
        assert_eq!(plug.snapshot(0).unwrap().last_bytes, "07".repeat(TAIL_BYTES));
    }

    #[test]
    fn it_is_told_since_when_a_plug_is_missing_and_how_often_it_was() {
        let plug = Plugged::default();
        plug.at("10.0.0.5:4000", "");
        plug.set(PlugState::Missing("not plugged in".into()), 1_000);
        plug.set(PlugState::Plugged, 2_000);
        plug.set(PlugState::Missing("not plugged in".into()), 10_000);
        plug.set(PlugState::Missing("in use".into()), 12_000);
        let status = plug.snapshot(70_000).unwrap();
        assert_eq!((status.since_s, status.unplugs), (60, 1));
        assert_eq!(status.state, PlugState::Missing("in use".into()));
        let json = serde_json::to_string(&status).unwrap();
        assert!(json.contains(r#""state":"missing","cause":"in use""#), "{json}");
        assert_eq!(serde_json::from_str::<PlugStatus>(&json).unwrap(), status);
    }
}
