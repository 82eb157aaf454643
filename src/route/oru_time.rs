//! The times of one HL7 message as moments: each in the zone that it names, else in the header's, else in the site's.
//!
//! HL7 v2.6, 2.15.9.7: the zone of MSH-7 is that of all times in the message that name none. Nothing is corrected: what the device wrote stays,
//! and whose zone it was read in is told. A time whose zone nobody knows is no moment, and never taken for one of UTC.

use crate::telemetry::record::{ClockQuality, DeviceTime, Named, Time};
use crate::values::Zone;
use crate::wire::oru::rfc3339;

/// A device clock that is further off was never set.
const NEVER_SET_MS: u64 = 365 * 24 * 3600 * 1000;

/// How the times of a message are read.
pub(super) struct Times<'z> {
    /// The zone that MSH-7 names, as `+02:00`.
    header: Option<String>,
    /// The site's.
    site: Option<&'z Zone>,
}

/// A time of the message.
pub(super) struct Said {
    /// RFC 3339, with its zone where that is known.
    pub text: String,
    /// Whose zone that is, where the time itself names none.
    pub zone: Option<&'static str>,
}

impl Said {
    /// Whose zone it was read in, for whoever reads the record.
    pub(super) fn note(&self) -> Option<Named> {
        self.zone.map(|zone| Named::new("time-zone", zone))
    }
}

impl<'z> Times<'z> {
    /// By the time of the header, MSH-7, and what the site says.
    pub(super) fn of(header: &[u8], site: Option<&'z Zone>) -> Self {
        let header = rfc3339(header).and_then(|text| Some(zone(&text)?.to_owned()));
        Self { header, site }
    }

    /// Reads a time (DTM); `None` when it is none.
    pub(super) fn read(&self, said: &[u8]) -> Option<Said> {
        let text = rfc3339(said)?;
        if zone(&text).is_some() {
            return Some(Said { text, zone: None });
        }
        if let Some(header) = &self.header {
            return Some(Said { text: text + header, zone: Some("of the message's header") });
        }
        let offset = self.site.and_then(|site| site.moment(text.parse().ok()?));
        Some(match offset {
            Some((_, offset)) => Said { text: text + &shown(offset.seconds()), zone: Some("of the site") },
            None => Said { text, zone: Some("not known") },
        })
    }

    /// The sender's clock, by the time at which it sent the message.
    pub(super) fn device_time(&self, said: &[u8], received: Time) -> Option<DeviceTime> {
        let text = String::from_utf8_lossy(said).trim().to_owned();
        if text.is_empty() {
            return None;
        }
        let moment: Option<jiff::Timestamp> = self.read(said).and_then(|said| said.text.parse().ok());
        let read = rfc3339(said);
        let offset_ms = moment.map(|moment| moment.as_millisecond().saturating_sub(received.utc_us / 1000));
        let quality = match (offset_ms, &read) {
            (None, None) => ClockQuality::Unreadable,
            (None, Some(_)) => ClockQuality::ZoneUnknown,
            (Some(_), _) if !received.synchronised => ClockQuality::BoxUnsynchronised,
            (Some(offset), _) if offset.unsigned_abs() > NEVER_SET_MS => ClockQuality::NeverSet,
            (Some(_), _) => ClockQuality::Measured,
        };
        // The digits that it does not write are not known; the way of the message is short beside them.
        let error_ms = offset_ms.map(|_| if text.contains('.') { 1 } else { 500 });
        Some(DeviceTime { said: text, read, offset_ms, error_ms, quality })
    }
}

/// The zone at the end of an RFC 3339 text.
fn zone(text: &str) -> Option<&str> {
    let (_, zone) = text.split_at_checked(text.len().checked_sub(6)?)?;
    zone.starts_with(['+', '-']).then_some(zone).filter(|zone| zone.contains(':'))
}

fn shown(seconds: i32) -> String {
    let (sign, minutes) = (if seconds < 0 { '-' } else { '+' }, seconds.abs() / 60);
    format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str, site: Option<&str>, said: &str) -> Option<(String, Option<&'static str>)> {
        let site: Option<Zone> = site.map(|site| site.parse().unwrap());
        Times::of(header.as_bytes(), site.as_ref()).read(said.as_bytes()).map(|said| (said.text, said.zone))
    }

    #[test]
    fn a_time_is_read_in_its_own_zone_or_the_headers_or_the_sites() {
        for (header, site, said, text, zone) in [
            ("20260701120000+0200", None, "20260701115500-0330", "2026-07-01T11:55:00-03:30", None),
            (
                "20260701120000+0200",
                Some("UTC"),
                "20260701115500",
                "2026-07-01T11:55:00+02:00",
                Some("of the message's header"),
            ),
            ("20260701120000", Some("Europe/Berlin"), "202607011155", "2026-07-01T11:55:00+02:00", Some("of the site")),
            ("20260101120000", Some("-03:30"), "20260101115500.5", "2026-01-01T11:55:00.5-03:30", Some("of the site")),
            ("", None, "20260701115500", "2026-07-01T11:55:00", Some("not known")),
            // Berlin has this hour twice.
            ("", Some("Europe/Berlin"), "20261025023000", "2026-10-25T02:30:00", Some("not known")),
        ] {
            assert_eq!(read(header, site, said), Some((text.to_owned(), zone)), "{header} {site:?} {said}");
        }
        assert_eq!(read("20260701120000+0200", None, "yesterday"), None);
    }

    #[test]
    fn how_far_a_clock_is_off_is_measured_as_soon_as_its_zone_is_known() {
        let received = Time { utc_us: 1_772_366_400_000_000, synchronised: true, uptime_ms: 1 };
        let measured = |site: Option<&str>| {
            let site: Option<Zone> = site.map(|site| site.parse().unwrap());
            let time = Times::of(b"20260301130005", site.as_ref()).device_time(b"20260301130005", received).unwrap();
            (time.read.unwrap(), time.offset_ms, time.quality)
        };
        let read = || "2026-03-01T13:00:05".to_owned();
        assert_eq!(measured(None), (read(), None, ClockQuality::ZoneUnknown));
        assert_eq!(measured(Some("Europe/Berlin")), (read(), Some(5_000), ClockQuality::Measured));
    }
}
