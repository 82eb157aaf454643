//! The demo's simulated pulse oximeter: a bedside monitor on a pseudo-terminal that writes a line a second, as a Masimo with its serial
//! output set to "ASCII 1" does.
//!
//! Nobody answers an oximeter, and it says nothing twice. So each line that went out is held in the [`Ledger`] as promised: while the port
//! is plugged in and the gateway runs, none may be lost. It shares no code with the gateway's profile.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::ledger::{Ledger, fingerprint};
use super::plugged_in::PluggedIn;
use crate::system::pty::Pty;

/// The profile that reads it.
pub const PROFILE: &str = "masimo-ascii-1";
/// Between two lines.
const PERIOD: Duration = Duration::from_secs(1);
/// In each so many seconds the finger is out of the sensor for one.
const OFF_EVERY: u64 = 15;

/// Sets an oximeter going at the far end of `pty`.
pub fn start(pty: Pty, ledger: &Arc<Ledger>) -> PluggedIn {
    let ledger = Arc::clone(ledger);
    PluggedIn::start(pty, |line, stop| async move { measure(&line, &ledger, &stop).await })
}

async fn measure(pty: &Pty, ledger: &Ledger, stop: &CancellationToken) {
    let mut period = interval(PERIOD);
    // Two lines of one second would be the same bytes.
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1.. {
        if stop.run_until_cancelled(period.tick()).await.is_none() {
            return;
        }
        let line = line(number, jiff::Timestamp::now());
        let fingerprint = fingerprint(line.as_bytes());
        ledger.sending(fingerprint, &format!("line {number}"));
        if pty.write_all(line.as_bytes()).await.is_err() {
            return;
        }
        ledger.acknowledged(&fingerprint);
    }
}

/// A line of "ASCII 1" with its CR LF. Its clock shows UTC.
fn line(number: u64, at: jiff::Timestamp) -> String {
    let clock = at.strftime("%m/%d/%y %H:%M:%S");
    let (saturation, rate, perfusion, exceptions) = if number.is_multiple_of(OFF_EVERY) {
        ("---".to_owned(), "---".to_owned(), "--.--".to_owned(), "000002")
    } else {
        let (saturation, rate) = (95 + number * 7 % 5, 66 + number * 5 % 11);
        (
            format!("{saturation:03}"),
            format!("{rate:03}"),
            format!("0{}.{:02}", 1 + number % 4, number * 13 % 100),
            "000000",
        )
    };
    format!(
        "{clock} SN=0000000001 SPO2={saturation}% BPM={rate} PI={perfusion}% SPCO=--.-% SPMET=--.-% DESAT=-- PIDELTA=+-- \
         ALARM=0000 EXC={exceptions}\r\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Stamp;
    use crate::source::profile::{Profile, ProfileRef};
    use crate::telemetry::record::{Validity, Value};

    #[test]
    fn the_shipped_profile_reads_each_line_that_it_writes() {
        let profile: ProfileRef = toml::Value::from(PROFILE).try_into().unwrap();
        let profile: Profile = profile.load().unwrap();
        for (number, saturation, validity) in [(1, Some("097"), Validity::Valid), (15, None, Validity::NotAvailable)] {
            let line = line(number, jiff::Timestamp::from_second(1_800_000_000).unwrap());
            let noon = Stamp { wall_us: 1_800_000_000_000_000, synchronised: true, uptime_ms: 1 };
            let decoded = profile.decode(line.as_bytes(), line.trim_end().as_bytes(), noon);
            assert!(decoded.is_readable, "{line}");
            let first = decoded.observations.iter().find(|seen| seen.vendor_code == "SPO2").unwrap();
            assert_eq!(first.value, saturation.map(|value| Value::Number(value.to_owned())));
            assert_eq!(first.validity, validity, "{line}");
        }
    }

    #[test]
    fn no_two_lines_are_the_same() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        assert_ne!(line(1, at(0)), line(1, at(1)));
    }
}
