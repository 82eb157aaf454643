//! Where the log goes: to the journal, with its fields, when systemd gave us one; else readable lines on standard error.
//!
//! What is logged must never hold patient data; that is the duty of each `tracing` call, nothing here can filter it.
//! `RUST_LOG` sets the level (`debug`, `wardgate::spool=trace,info`); without it `info`.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// The level when `RUST_LOG` says nothing.
const LEVEL: &str = "info";

/// Under which name the journal has it.
const IDENTIFIER: &str = "wardgate";
/// The target of events that name their fields in the journal themselves.
pub const EVENTS: &str = "wardgate::event";

/// Begins to log, to the journal when standard error is one, else to standard error. To be called once, by `cli`.
pub fn start() {
    let (output, trouble): (Box<dyn Layer<Registry> + Send + Sync>, _) = match stderr_is_the_journal().then(journal) {
        Some(Ok(layers)) => (layers, None),
        Some(Err(error)) => (lines(), Some(error)),
        None => (lines(), None),
    };
    if tracing_subscriber::registry().with(output).with(filter()).try_init().is_err() {
        return; // already begun: by a test, or by a second call
    }
    if let Some(error) = trouble {
        tracing::warn!(%error, "the journal can't be reached, logging to standard error");
    }
}

/// "source" and "upstream" become fields of the journal as WARDGATE_SOURCE and WARDGATE_UPSTREAM. Events that people are alerted by
/// name their fields themselves: MESSAGE_ID is one of systemd's.
fn journal() -> std::io::Result<Box<dyn Layer<Registry> + Send + Sync>> {
    let layer = |prefix: Option<&str>| {
        let layer = tracing_journald::layer()?.with_syslog_identifier(IDENTIFIER.to_owned());
        std::io::Result::Ok(layer.with_field_prefix(prefix.map(str::to_owned)))
    };
    let others = layer(Some("WARDGATE"))?.with_filter(filter_fn(|event| event.target() != EVENTS));
    let events = layer(None)?.with_filter(filter_fn(|event| event.target() == EVENTS));
    Ok(others.and_then(events).boxed())
}

fn lines() -> Box<dyn Layer<Registry> + Send + Sync> {
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false).boxed()
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVEL))
}

/// systemd.exec(5): `JOURNAL_STREAM` holds device and inode of the journal's stream; a process whose output was redirected
/// inherits the variable but not the stream.
fn stderr_is_the_journal() -> bool {
    let Ok(told) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/dev/stderr").is_ok_and(|found| is_stream(&told, found.dev(), found.ino()))
}

fn is_stream(told: &str, device: u64, inode: u64) -> bool {
    told.split_once(':').is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_that_systemd_named_is_the_journal() {
        assert!(is_stream("9:26641", 9, 26641));
        assert!(!is_stream("9:26641", 9, 26642));
        for nonsense in ["", "9", "9:", ":26641", "a:b"] {
            assert!(!is_stream(nonsense, 9, 26641), "{nonsense}");
        }
    }
}
