//! Decimal numbers as devices write them, and exact scaling of them: a digit that the device gave is never lost or made up.

/// A decimal number: `mantissa` with `places` digits after the point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decimal {
    mantissa: i128,
    places: u32,
}

/// Digits that are taken: what is longer is no number of a device.
const DIGITS_MAX: usize = 30;

impl Decimal {
    /// Reads `98`, `+0.5`, `-100`, `036.70`; nothing else is a number.
    pub fn read(text: &str) -> Option<Self> {
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let all = || whole.bytes().chain(part.bytes());
        let is_number = !whole.is_empty() && digits.len() <= DIGITS_MAX && all().all(|byte| byte.is_ascii_digit());
        if !is_number || (digits.contains('.') && part.is_empty()) {
            return None;
        }
        let mantissa = all().fold(0i128, |sum, byte| sum * 10 + i128::from(byte - b'0'));
        let places = u32::try_from(part.len()).ok()?;
        Some(Self { mantissa: if negative { -mantissa } else { mantissa }, places })
    }

    /// The product; `None` when it has more digits than can be kept.
    pub fn times(self, other: Self) -> Option<Self> {
        let mantissa = self.mantissa.checked_mul(other.mantissa)?;
        Some(Self { mantissa, places: self.places + other.places })
    }

    /// The sum; `None` when it has more digits than can be kept.
    pub fn plus(self, other: Self) -> Option<Self> {
        let places = self.places.max(other.places);
        let grown = |number: Self| number.mantissa.checked_mul(10i128.checked_pow(places - number.places)?);
        Some(Self { mantissa: grown(self)?.checked_add(grown(other)?)?, places })
    }
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let places = usize::try_from(self.places).unwrap_or(0);
        let digits = format!("{:0>width$}", self.mantissa.unsigned_abs(), width = places + 1);
        let (whole, part) = digits.split_at(digits.len() - places);
        match part {
            "" => write!(f, "{sign}{whole}"),
            _ => write!(f, "{sign}{whole}.{part}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Decimal {
        Decimal::read(text).unwrap()
    }

    #[test]
    fn only_plain_decimal_numbers_are_numbers() {
        for text in ["98", "-100", "0.5", "36.70", "-0.05", "0"] {
            assert_eq!(read(text).to_string(), text);
        }
        assert_eq!(read("+098").to_string(), "98");
        for text in ["", "-", "---", ".5", "5.", "1e3", "0x10", "1,5", " 1", "NaN", "1.2.3", &"9".repeat(31)] {
            assert_eq!(Decimal::read(text), None, "{text}");
        }
    }

    #[test]
    fn scaling_is_exact_and_keeps_the_precision() {
        assert_eq!(read("385").times(read("0.1")).unwrap().to_string(), "38.5");
        assert_eq!(read("-7").times(read("0.01")).unwrap().to_string(), "-0.07");
        assert_eq!(read("36.70").plus(read("-273.15")).unwrap().to_string(), "-236.45");
        assert_eq!(read("5").plus(read("0.50")).unwrap().to_string(), "5.50");
        let long = read(&"9".repeat(DIGITS_MAX));
        assert_eq!(long.times(long), None);
    }
}
