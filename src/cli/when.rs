//! Points in time as people type them: RFC 3339, a date and time in UTC, or an age ("2h" ago).

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::admin::answers::When;
use crate::values::Span;

/// Reads a time as it is typed on the command line, seen from now.
///
/// # Errors
/// A text that says how to write one.
pub fn parse(text: &str) -> Result<When, String> {
    parse_at(text, jiff::Timestamp::now())
}

fn parse_at(text: &str, now: jiff::Timestamp) -> Result<When, String> {
    let wrong = || {
        format!(
            "\"{text}\" is not a time: write 2026-11-22T14:00:00+01:00, \"2026-11-22 13:00\" (UTC), 2026-11-22 or an age like 2h"
        )
    };
    if text == "now" {
        return Ok(When(now));
    }
    if let Ok(span) = text.parse::<Span>() {
        return now.checked_sub(span.0).map(When).map_err(|_| wrong());
    }
    if let Ok(exact) = text.parse() {
        return Ok(When(exact));
    }
    let civil: DateTime = text.parse().map_err(|_| wrong())?;
    TimeZone::UTC.to_timestamp(civil).map(When).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_type_them() {
        let now: jiff::Timestamp = "2026-11-22T14:00:00Z".parse().unwrap();
        let read = |text| parse_at(text, now).unwrap().to_string();
        assert_eq!(read("2026-11-22T14:00:00+01:00"), "2026-11-22T13:00:00Z");
        assert_eq!(read("2026-11-22 13:00"), "2026-11-22T13:00:00Z");
        assert_eq!(read("2026-11-22"), "2026-11-22T00:00:00Z");
        assert_eq!(read("2h"), "2026-11-22T12:00:00Z");
        assert_eq!(read("now"), "2026-11-22T14:00:00Z");
        for bad in ["yesterday", "", "25:00", "2026-13-01"] {
            assert!(parse_at(bad, now).unwrap_err().contains("write"), "{bad}");
        }
    }
}
