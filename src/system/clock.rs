//! Time: the wall clock with its quality, a clock that only goes forward, and the time that TLS may believe.
//!
//! A box without a battery starts in 1970. Its wall clock is data and never decides how long something takes; windows and
//! pauses count [`monotonic_ms`]. For certificates it is raised to what is certain: no earlier than the build of this
//! program and than the last moment at which the clock was known to be synchronised ([`trusted`]). It is never lowered,
//! and no certificate goes unchecked.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::libc;
use nix::time::{ClockId, clock_gettime};
use rustls::pki_types::UnixTime;

use crate::system::disk;

/// Moved on with each release: the earliest moment at which this source can have been built (2026-09-01).
const RELEASED_S: u64 = 1_788_220_800;

/// Where systemd-timesyncd says that it has synchronised the clock; for sandboxes in which `adjtimex` is forbidden.
const TIMESYNC_MARK: &str = "/run/systemd/timesync/synchronized";

/// How old the record of [`tend`] may be: each writing costs flash, and a certificate is not judged by the hour.
const RECORD_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A clock that is behind by less is drift and time zones, and no reason for an alarm.
const SLACK: Duration = Duration::from_secs(24 * 3600);

/// A clock that is further ahead than this of what is known is wrong: no box runs one release for so long.
const LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Longest that the record of [`recall`] may be: a count of seconds and a line end.
const RECORD_BYTES_MAX: usize = 32;

/// Seconds since 1970 of the last moment at which the clock was known to be right; 0: not known.
///
/// The one value that all of the process shares, as the clock itself is the one of all the process: every TLS section is
/// built from its own configuration alone and could be handed a clock by no road that would not also carry a second one.
static LAST_SYNCHRONISED_S: AtomicU64 = AtomicU64::new(0);

/// What the wall clock says, microseconds since 1970-01-01 UTC.
pub fn wall_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Milliseconds since the box was started, sleep included. Never goes back while the box runs.
pub fn monotonic_ms() -> u64 {
    // Unwrap safety: Linux has this clock since 2.6.39 and the call has no other way to fail.
    #[allow(clippy::unwrap_used)]
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the wall clock follows a time server (NTP, PTP). When nobody says so, it does not.
pub fn synchronised() -> bool {
    match kernel_synchronised() {
        Ok(synchronised) => synchronised,
        // systemd's ProtectClock=yes forbids the call, also for reading.
        Err(_) => Path::new(TIMESYNC_MARK).exists(),
    }
}

/// When this program was built, as far as it is known: `SOURCE_DATE_EPOCH` of the build, at least the release's date.
///
/// No build script and no time stamp of the compiler: the same source gives the same bytes.
pub fn built() -> SystemTime {
    let told = option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(RELEASED_S.max(told))
}

/// The time for certificates: the latest of the wall clock, [`built`] and what was [`remember`]ed.
pub fn trusted() -> SystemTime {
    trusted_when(SystemTime::now())
}

/// [`trusted`], for a wall clock that says `system`.
pub fn trusted_when(system: SystemTime) -> SystemTime {
    let last = UNIX_EPOCH + Duration::from_secs(LAST_SYNCHRONISED_S.load(Ordering::Relaxed));
    latest(system, built(), last)
}

/// From now on no certificate is judged by an earlier time than `at`: a moment at which the clock was known to be right.
///
/// The present call counts, not the greatest: a time server that once lied is forgotten when the clock is right again.
pub fn remember(at: SystemTime) {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST_SYNCHRONISED_S.store(seconds, Ordering::Relaxed);
}

/// Reads the record that [`record`] left: the last moment at which the clock was known to be right. `None` when there is
/// none or it makes no sense; it is only a help.
pub fn recall(path: &Path) -> Option<SystemTime> {
    let text = std::fs::read_to_string(path).ok().filter(|text| text.len() <= RECORD_BYTES_MAX)?;
    let seconds = text.trim_end().parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Why the wall clock can't be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Doubt {
    /// Before this program was built, or before a moment at which the clock was known to be right.
    #[error(
        "the clock of this box says {}, which is long past: it was started without a battery or a time server. Messages are taken, \
         kept and sent all the same, and their times are marked; set the clock, and look after the time server and the battery",
        day(*.0)
    )]
    Past(SystemTime),
    /// Further ahead than this program will ever be used.
    #[error(
        "the clock of this box says {}, which is far ahead: a time server that lies, or a wrong entry. Messages are taken, kept and \
         sent all the same; but every certificate has ended by that clock, so that TLS fails: set the clock",
        day(*.0)
    )]
    Ahead(SystemTime),
}

/// Whether the wall clock can't be right.
pub fn doubt() -> Option<Doubt> {
    let last = UNIX_EPOCH + Duration::from_secs(LAST_SYNCHRONISED_S.load(Ordering::Relaxed));
    doubt_of(SystemTime::now(), built().max(last))
}

/// Keeps the memory of the right time: to be called every hour or so. While the clock is synchronised its time is
/// remembered, and recorded once a day.
///
/// # Errors
/// Those of the file system, when the record can't be written; the time is remembered all the same.
pub fn tend(path: &Path) -> io::Result<()> {
    if synchronised() { tend_at(path, SystemTime::now()) } else { Ok(()) }
}

/// Writes `at` to the small file `path`, so that it is there after a power cut.
///
/// # Errors
/// Those of the file system.
pub fn record(path: &Path, at: SystemTime) -> io::Result<()> {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    disk::replace(path, format!("{seconds}\n").as_bytes(), 0o600)
}

/// The clock that TLS asks: [`trusted`].
#[derive(Debug, Clone, Copy, Default)]
pub struct TrustedTime;

impl rustls::time_provider::TimeProvider for TrustedTime {
    fn current_time(&self) -> Option<UnixTime> {
        trusted().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

fn tend_at(path: &Path, now: SystemTime) -> io::Result<()> {
    remember(now);
    // A record from the future is of a time server that lied: it is put right as well.
    let is_fresh = |before: SystemTime| now.duration_since(before).is_ok_and(|age| age < RECORD_AGE_MAX);
    if recall(path).is_some_and(is_fresh) { Ok(()) } else { record(path, now) }
}

fn doubt_of(now: SystemTime, known: SystemTime) -> Option<Doubt> {
    if now + SLACK < known {
        Some(Doubt::Past(now))
    } else if known.checked_add(LIFETIME).is_some_and(|end| now > end) {
        Some(Doubt::Ahead(now))
    } else {
        None
    }
}

fn day(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let at = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(i64::MAX)).unwrap_or(jiff::Timestamp::MAX);
    at.strftime("%Y-%m-%d").to_string()
}

fn latest(system: SystemTime, built: SystemTime, last_synchronised: SystemTime) -> SystemTime {
    system.max(built).max(last_synchronised)
}

#[allow(unsafe_code)] // nix has no name for this call
fn kernel_synchronised() -> Result<bool, Errno> {
    // SAFETY: `timex` is made of integers, for which zero is a value; `modes` 0 makes the call read only.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, exclusive `timex`, which the kernel fills.
    let code = unsafe { libc::adjtimex(&raw mut state) };
    Errno::result(code)?;
    Ok(code != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_in_1970_is_raised_to_the_build_or_the_last_synchronised_time() {
        assert_eq!(latest(at(5), at(1000), at(0)), at(1000));
        assert_eq!(latest(at(5), at(1000), at(2000)), at(2000));
        assert_eq!(latest(at(3000), at(1000), at(2000)), at(3000));
        assert!(trusted() >= built());
        assert!(built() >= at(RELEASED_S));
    }

    #[test]
    fn the_last_synchronised_time_survives_in_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clock");
        assert_eq!(recall(&path), None);
        record(&path, at(1_800_000_000)).unwrap();
        record(&path, at(1_800_086_400)).unwrap();
        assert_eq!(recall(&path), Some(at(1_800_086_400)));
        for damaged in ["", "soon\n", "-5\n", "99999999999999999999999999999999999999999\n"] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(recall(&path), None, "{damaged}");
        }
    }

    #[test]
    fn the_record_is_renewed_once_a_day_and_a_lie_from_the_future_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clock");
        let start = 1_800_000_000;
        let recorded = |now| {
            tend_at(&path, at(now)).unwrap();
            recall(&path).unwrap().duration_since(UNIX_EPOCH).unwrap().as_secs()
        };
        assert_eq!(recorded(start), start);
        assert_eq!(recorded(start + 3_600), start);
        assert_eq!(recorded(start + 86_400), start + 86_400);
        assert_eq!(recorded(start), start);
    }

    #[test]
    fn a_clock_of_1970_or_2099_is_doubted_and_one_that_drifts_is_not() {
        let known = at(1_800_000_000);
        assert!(matches!(doubt_of(at(86_400), known), Some(Doubt::Past(_))));
        assert!(matches!(doubt_of(at(4_080_000_000), known), Some(Doubt::Ahead(_))));
        for fine in [1_799_990_000, 1_800_000_000, 1_900_000_000] {
            assert_eq!(doubt_of(at(fine), known), None);
        }
        assert!(Doubt::Past(at(86_400)).to_string().contains("says 1970-01-02, which"));
    }

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let first = monotonic_ms();
        assert!(first > 0);
        assert!(monotonic_ms() >= first);
        assert!(wall_us() > 0);
    }
}
