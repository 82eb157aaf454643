//! What MEDIBUS answers hold: measured values and limits, settings, alarms, texts, who the device is, its clock (Draeger, "RS 232 MEDIBUS Protocol
//! Definition", responding to data request commands).
//!
//! Readers of whole answers: what does not fit its layout makes the answer [`Malformed`], never half an answer. Values stay the text that the
//! device sent; codes that nobody knows are codes like any other. Nothing here allocates more than the answer is long.

use super::medibus::hex;

/// Bytes of a code.
const CODE: usize = 2;
/// Bytes of a measured value and of a limit.
const VALUE: usize = 4;
/// Bytes of a setting.
const SETTING: usize = 5;
/// Bytes of an alarm's words.
const PHRASE: usize = 12;
/// Numbers of one character begin here: priorities and lengths of texts.
const NUMBER_BASE: u8 = b'0';
/// Ends a text.
const ETX: u8 = 0x03;
/// Two-digit years below are of this century, the others of the last: no clock with MEDIBUS is older.
const CENTURY_FROM: i16 = 80;

/// The answer has not the layout of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A measured value, a limit or a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// What it is, within its page.
    pub code: u8,
    /// Its characters, blanks included.
    pub text: &'a str,
}

/// An alarm that is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alarm<'a> {
    /// The device's own number: 31 is the most urgent, 1 the least.
    pub priority: u8,
    /// Which alarm, within its page.
    pub code: u8,
    /// In the device's language.
    pub phrase: &'a str,
}

/// Who the device says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Four characters that stand for the model.
    pub number: &'a str,
    /// The model's name.
    pub name: &'a str,
    /// Software and protocol: `03.10:04.03`.
    pub revision: &'a str,
}

/// The device's clock, as numbers: whether there is such a day is not looked at here. No zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// Four digits.
    pub year: i16,
    /// 1 to 12.
    pub month: i8,
    /// As it was said.
    pub day: i8,
    /// As it was said.
    pub hour: i8,
    /// As it was said.
    pub minute: i8,
    /// Some devices leave it out.
    pub second: Option<i8>,
}

/// What the characters of a value say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Nothing: blanks, or a mark in their place.
    Nothing,
    /// A number in decimal digits, with the device's precision.
    Number(String),
    /// Something else, trimmed.
    Text(String),
}

/// Measured values or limits.
///
/// # Errors
/// [`Malformed`].
pub fn values(data: &[u8]) -> Result<Vec<Item<'_>>, Malformed> {
    items(data, VALUE)
}

/// Settings.
///
/// # Errors
/// [`Malformed`].
pub fn settings(data: &[u8]) -> Result<Vec<Item<'_>>, Malformed> {
    items(data, SETTING)
}

fn items(data: &[u8], width: usize) -> Result<Vec<Item<'_>>, Malformed> {
    let records = data.chunks_exact(CODE + width);
    if !records.remainder().is_empty() {
        return Err(Malformed);
    }
    records
        .map(|record| {
            let (code, text) = coded(record)?;
            Ok(Item { code, text: printable(text)? })
        })
        .collect()
}

/// Alarms that are present, in the device's order.
///
/// # Errors
/// [`Malformed`].
pub fn alarms(data: &[u8]) -> Result<Vec<Alarm<'_>>, Malformed> {
    let records = data.chunks_exact(1 + CODE + PHRASE);
    if !records.remainder().is_empty() {
        return Err(Malformed);
    }
    records
        .map(|record| {
            let (priority, rest) = record.split_first().ok_or(Malformed)?;
            let (code, phrase) = coded(rest)?;
            let priority = priority.checked_sub(NUMBER_BASE).ok_or(Malformed)?;
            Ok(Alarm { priority, code, phrase: printable(phrase)?.trim() })
        })
        .collect()
}

/// Text messages: code, length, text, ETX.
///
/// # Errors
/// [`Malformed`].
pub fn texts(mut data: &[u8]) -> Result<Vec<Item<'_>>, Malformed> {
    let mut found = Vec::new();
    while !data.is_empty() {
        let (code, rest) = coded(data)?;
        let (length, rest) = rest.split_first().ok_or(Malformed)?;
        let length = usize::from(length.checked_sub(NUMBER_BASE).ok_or(Malformed)?);
        let (text, rest) = rest.split_at_checked(length).ok_or(Malformed)?;
        data = rest.strip_prefix(&[ETX]).ok_or(Malformed)?;
        found.push(Item { code, text: printable(text)?.trim() });
    }
    Ok(found)
}

/// Who the device is. An answer without data is one of a device that does not say.
///
/// # Errors
/// [`Malformed`].
pub fn identity(data: &[u8]) -> Result<Option<Identity<'_>>, Malformed> {
    let data = printable(data)?;
    if data.is_empty() {
        return Ok(None);
    }
    let (number, rest) = data.split_once('\'').ok_or(Malformed)?;
    let (name, revision) = rest.split_once('\'').ok_or(Malformed)?;
    Ok(Some(Identity { number: number.trim(), name: name.trim(), revision: revision.trim() }))
}

/// The clock: `HH:MM:SS` and `DD-MMM-YY`, the months in German or English, with the liberties that devices take: no seconds, no
/// blank between both, a blank for a leading nought.
pub fn date_time(data: &[u8]) -> Option<DateTime> {
    let text = std::str::from_utf8(data).ok()?.trim();
    let (hour, rest) = number(text, 2)?;
    let (minute, rest) = number(rest.strip_prefix(':')?.trim_start(), 2)?;
    let (second, rest) = match rest.strip_prefix(':') {
        Some(rest) => number(rest, 2).map(|(second, rest)| (Some(second), rest)).unwrap_or((None, rest)),
        None => (None, rest),
    };
    let (day, rest) = number(rest.trim_start(), 2)?;
    let (name, rest) = rest.strip_prefix('-')?.split_once('-')?;
    let (year, rest) = number(rest, 4)?;
    let year = match year {
        0..CENTURY_FROM => 2000 + year,
        CENTURY_FROM..100 => 1900 + year,
        _ => year,
    };
    let small = |number: i16| i8::try_from(number).ok();
    rest.is_empty().then_some(())?;
    Some(DateTime {
        year,
        month: month(name)?,
        day: small(day)?,
        hour: small(hour)?,
        minute: small(minute)?,
        second: second.and_then(small),
    })
}

fn month(name: &str) -> Option<i8> {
    const NAMES: [&[&str]; 12] = [
        &["JAN"],
        &["FEB"],
        &["MAR", "MRZ", "MAE"],
        &["APR"],
        &["MAI", "MAY"],
        &["JUN"],
        &["JUL"],
        &["AUG"],
        &["SEP"],
        &["OKT", "OCT"],
        &["NOV"],
        &["DEZ", "DEC"],
    ];
    let name = name.to_ascii_uppercase();
    let index = NAMES.iter().position(|names| names.contains(&name.as_str()))?;
    i8::try_from(index + 1).ok()
}

/// What the characters of a value say. A sign may stand apart from its digits: devices put it into the first blank of the field.
pub fn said(text: &str) -> Said {
    let text = text.trim();
    if text.is_empty() || text.bytes().all(|byte| matches!(byte, b'-' | b'*' | b'.' | b'?' | b'_')) {
        return Said::Nothing;
    }
    let (sign, digits) = match text.split_at_checked(1) {
        Some(("-", rest)) => ("-", rest.trim_start()),
        Some(("+", rest)) => ("", rest.trim_start()),
        _ => ("", text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let decimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !decimal(whole) || !decimal(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Said::Text(text.to_owned());
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let point = if fraction.is_empty() { "" } else { "." };
    Said::Number(format!("{sign}{whole}{point}{fraction}"))
}

/// The code that `data` begins with, and what follows it.
fn coded(data: &[u8]) -> Result<(u8, &[u8]), Malformed> {
    let (digits, rest) = data.split_first_chunk::<CODE>().ok_or(Malformed)?;
    Ok((hex(*digits).ok_or(Malformed)?, rest))
}

/// Text of a device is ASCII, and what is not is a sign of bytes gone wrong that the sum did not see.
fn printable(data: &[u8]) -> Result<&str, Malformed> {
    let fine = data.iter().all(|byte| matches!(byte, b' '..=b'~'));
    std::str::from_utf8(data).ok().filter(|_| fine).ok_or(Malformed)
}

/// Up to `most` digits at the beginning, one at least.
fn number(text: &str, most: usize) -> Option<(i16, &str)> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    let (digits, rest) = text.split_at_checked(count)?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_codes_of_two_digits_and_four_characters_and_blanks_are_nothing() {
        let found = values(b"78   57D  22EB    3C12.5").unwrap();
        let codes: Vec<(u8, Said)> = found.iter().map(|item| (item.code, said(item.text))).collect();
        let number = |text: &str| Said::Number(text.into());
        assert_eq!(codes, [(0x78, number("5")), (0x7d, number("22")), (0xeb, Said::Nothing), (0x3c, number("12.5"))]);
        assert_eq!(values(b""), Ok(vec![]));
        for bad in [&b"78   "[..], b"78   57D", b"7G   5", b"78  \x035", b"78  \xff5"] {
            assert_eq!(values(bad), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_setting_has_five_characters() {
        let found = settings(b"01 40.0040.5000B  5.0").unwrap();
        let numbers: Vec<_> = found.iter().map(|item| (item.code, said(item.text))).collect();
        let number = |text: &str| Said::Number(text.into());
        assert_eq!(numbers, [(1, number("40.0")), (4, number("0.500")), (0x0b, number("5.0"))]);
    }

    #[test]
    fn signs_marks_and_other_words_are_told_apart() {
        for (text, number) in
            [("-  5", "-5"), (" -5 ", "-5"), ("+3.5", "3.5"), ("5.  ", "5"), ("098", "098"), ("-.7", "-0.7")]
        {
            assert_eq!(said(text), Said::Number(number.into()), "{text}");
        }
        for text in ["    ", "----", " -- ", "****", "", "-"] {
            assert_eq!(said(text), Said::Nothing, "{text}");
        }
        for text in ["1:2", ">100", "1.2.3", "1e5", "- A", "NaN"] {
            assert_eq!(said(&format!(" {text} ")), Said::Text(text.into()));
        }
    }

    #[test]
    fn alarms_have_a_priority_a_code_and_words() {
        let found = alarms(b"O10PAW HIGH    19ALOW PEEP    ").unwrap();
        assert_eq!(
            found,
            [
                Alarm { priority: 31, code: 0x10, phrase: "PAW HIGH" },
                Alarm { priority: 1, code: 0x9a, phrase: "LOW PEEP" }
            ]
        );
        assert_eq!(alarms(b""), Ok(vec![]));
        assert_eq!((alarms(b"O10PAW HIGH"), alarms(b" 10PAW HIGH    ")), (Err(Malformed), Err(Malformed)));
    }

    #[test]
    fn texts_end_where_their_length_and_their_end_say() {
        let found = texts(b"0E5BIPAP\x03206ADULTS\x031E0\x03").unwrap();
        let all: Vec<_> = found.iter().map(|item| (item.code, item.text)).collect();
        assert_eq!(all, [(0x0e, "BIPAP"), (0x20, "ADULTS"), (0x1e, "")]);
        for bad in [&b"0E9BIPAP\x03"[..], b"0E4BIPAP\x03", b"0E", b"0E5BIPAP", b"0E\x01A\x03"] {
            assert_eq!(texts(bad), Err(Malformed), "{bad:?}");
        }
    }

    #[test]
    fn a_device_says_who_it_is_or_nothing() {
        let evita = Identity { number: "8201", name: "EVITA 4", revision: "03.10:04.03" };
        assert_eq!(identity(b"8201'EVITA 4'03.10:04.03"), Ok(Some(evita)));
        assert_eq!(identity(b"8201'EVITA 4'").unwrap().unwrap().revision, "");
        assert_eq!((identity(b""), identity(b"8201EVITA")), (Ok(None), Err(Malformed)));
    }

    #[test]
    fn the_clock_is_read_with_all_the_liberties_that_devices_take() {
        let seventh = |second| Some(DateTime { year: 2014, month: 10, day: 7, hour: 9, minute: 33, second });
        for text in [" 9:33:00 7-OKT-14", "09:33:00 07-OKT-14", "09:33:0007-OCT-14", " 9:33:00 7-okt-2014"] {
            assert_eq!(date_time(text.as_bytes()), seventh(Some(0)), "{text}");
        }
        for text in [" 9:33 7-OCT-14", " 9:33 07-OCT-14", "09:33 7-OKT-14 "] {
            assert_eq!(date_time(text.as_bytes()), seventh(None), "{text}");
        }
        let month = |name: &str| date_time(format!("00:00:00 1-{name}-03").as_bytes()).map(|clock| clock.month);
        assert_eq!((month("MAI"), month("DEZ"), month("MRZ"), month("MAY")), (Some(5), Some(12), Some(3), Some(5)));
        assert_eq!(date_time(b"00:00:00 1-JAN-80").map(|clock| clock.year), Some(1980));
        for bad in
            ["", "9", "9:33", "9:33 7-XXX-14", "9:33 7-OKT-", "9:33 7 OKT 14", "25-OKT-14 9:33", "9:33 7-OKT-14x"]
        {
            assert_eq!(date_time(bad.as_bytes()), None, "{bad}");
        }
    }
}
