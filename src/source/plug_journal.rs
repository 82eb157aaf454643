//! What is told of a plug: the status, one log line when it changes, and the records `unplugged` and `plugged` with the gap.
//!
//! A cause that stays the same is said once, however often the port is tried; a line that comes and goes is said once a minute, with how
//! often it did.

use std::time::Duration;

use tokio::time::Instant;

use super::intake::Intake;
use super::readings::{Reading, Readings};
use crate::status::plug::PlugState;
use crate::system::seldom::Seldom;
use crate::telemetry::record::{Event, Gap, GapReason};

/// The stream of these records, beside the device's own.
const STREAM: &str = "line";
/// A device may end its connection and dial or be dialled anew: only a longer absence is told by a record.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);

/// The journal of one plug.
pub struct Journal {
    intake: Intake,
    readings: Readings,
    grace: Duration,
    missing: Option<Missing>,
    log: Seldom,
}

struct Missing {
    since: Instant,
    cause: String,
    told: bool,
    /// Whether it stands in the log.
    logged: bool,
}

impl Journal {
    /// Of a serial port: every absence is told.
    pub fn of_port(intake: &Intake) -> Self {
        Self::new(intake, Duration::ZERO)
    }

    /// Of a connection: an absence of some seconds is told.
    pub fn of_connection(intake: &Intake) -> Self {
        Self::new(intake, CONNECTION_GRACE)
    }

    fn new(intake: &Intake, grace: Duration) -> Self {
        Self {
            intake: intake.clone(),
            readings: Readings::new(intake, STREAM),
            grace,
            missing: None,
            log: Seldom::default(),
        }
    }

    /// The device is not there, or can't be used.
    pub async fn missing(&mut self, cause: &str) {
        let now = Instant::now();
        let new = || Missing { since: now, cause: String::new(), told: false, logged: false };
        let missing = self.missing.get_or_insert_with(new);
        let speak = if missing.cause != cause {
            cause.clone_into(&mut missing.cause);
            self.intake.counters().plug.set(PlugState::Missing(cause.to_owned()), self.intake.uptime_ms());
            missing.logged = false;
            self.log.speak()
        } else if missing.logged {
            None
        } else {
            self.log.speak_yet()
        };
        if let Some(unsaid) = speak {
            missing.logged = true;
            tracing::warn!(source = %self.intake.source(), cause, unsaid, "waiting for the device");
        }
        if missing.told || now - missing.since < self.grace {
            return;
        }
        missing.told = true;
        self.note(Reading { events: vec![event("unplugged", cause)], ..Reading::default() }).await;
    }

    /// The device is there.
    pub async fn there(&mut self) {
        self.intake.counters().plug.set(PlugState::Plugged, self.intake.uptime_ms());
        let Some(missing) = self.missing.take() else { return };
        let lasted_ms = u64::try_from(missing.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        if missing.logged {
            tracing::info!(source = %self.intake.source(), missing_ms = lasted_ms, "the device is there");
        }
        if missing.told {
            let gap =
                Gap { reason: GapReason::Unplugged, from: None, to: None, count: None, lasted_ms: Some(lasted_ms) };
            let events = vec![event("plugged", "the device is there again")];
            self.note(Reading { events, gap: Some(gap), ..Reading::default() }).await;
        }
    }

    async fn note(&mut self, reading: Reading) {
        if let Err(error) = self.readings.note(reading).await {
            tracing::warn!(source = %self.intake.source(), %error, "the record of a plug could not be stored");
        }
    }
}

fn event(kind: &'static str, text: &str) -> Event {
    Event {
        kind: kind.into(),
        vendor_code: None,
        code: None,
        text: Some(text.to_owned()),
        priority: None,
        phase: None,
        details: vec![],
    }
}
