//! The time zone of a clock that names none, as a configuration writes it: `Europe/Berlin`, `UTC` or `+01:00`.
//!
//! It must never guess: a moment that the zone has twice, or not at all, is no moment.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use serde::{Deserialize, Deserializer};

use super::{ValueError, parsed};

/// A time zone that this box knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zone(pub TimeZone);

impl Zone {
    /// The moment of a local time, and how far the zone is from UTC then. `None` in the hour that the clocks leave out, and in the one that
    /// they have twice.
    pub fn moment(&self, local: DateTime) -> Option<(Timestamp, Offset)> {
        let moment = self.0.to_ambiguous_timestamp(local).unambiguous().ok()?;
        Some((moment, self.0.to_offset(moment)))
    }
}

impl FromStr for Zone {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            let right = "write \"UTC\", an offset as \"+01:00\", or a name as \"Europe/Berlin\"";
            ValueError(format!("\"{text}\" is not a zone that is known here: {right}"))
        };
        let found = match text.as_bytes() {
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => fixed(*sign, [*h1, *h2], [*m1, *m2]),
            b"UTC" => Some(TimeZone::UTC),
            _ => TimeZone::get(text).ok(),
        };
        found.map(Self).ok_or_else(wrong)
    }
}

fn fixed(sign: u8, hours: [u8; 2], minutes: [u8; 2]) -> Option<TimeZone> {
    let number = |[high, low]: [u8; 2]| {
        let digit = |byte: u8| byte.is_ascii_digit().then(|| i32::from(byte - b'0'));
        Some(digit(high)? * 10 + digit(low)?)
    };
    let minutes = number(minutes).filter(|minutes| *minutes < 60)?;
    let seconds = (number(hours)? * 60 + minutes) * 60;
    Some(TimeZone::fixed(Offset::from_seconds(if sign == b'-' { -seconds } else { seconds }).ok()?))
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(text: &str) -> Zone {
        text.parse().unwrap()
    }

    #[test]
    fn a_zone_is_a_name_or_an_offset_and_anything_else_is_told_with_what_to_write() {
        let noon: DateTime = "2026-01-29T12:00:00".parse().unwrap();
        for (text, utc) in [("UTC", 12), ("+01:00", 11), ("-03:30", 15), ("Europe/Berlin", 11)] {
            let (moment, _) = zone(text).moment(noon).unwrap();
            assert_eq!(moment.to_zoned(TimeZone::UTC).hour(), utc, "{text}");
        }
        for text in ["", "MEZ plus", "+1:00", "+01:60", "+99:00", "+a1:00"] {
            assert!(text.parse::<Zone>().unwrap_err().0.contains("Europe/Berlin"), "{text}");
        }
    }

    #[test]
    fn the_hour_that_comes_twice_and_the_one_that_never_comes_are_no_moment() {
        for text in ["2026-10-25T02:30:00", "2026-03-29T02:30:00"] {
            assert_eq!(zone("Europe/Berlin").moment(text.parse().unwrap()), None, "{text}");
        }
    }
}
