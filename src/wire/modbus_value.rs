//! What registers mean: types over one to four of them, in four orders of their bytes, and exact scaling in decimal.
//!
//! The specification knows registers of 16 bits and nothing larger: each maker puts larger values together in its own way. Scaling is
//! exact, so that 367 times 0.1 is "36.7" and nothing like 36.700000000000003.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Digits behind the point that a factor or an offset may have.
pub const DECIMALS_MAX: u32 = 12;
/// Digits of a factor or an offset, without the point.
const DIGITS_MAX: usize = 18;
/// Digits of a float's shortest text that are scaled exactly; beyond, its magnitude is meant and not its digits.
const EXACT_BYTES_MAX: usize = 24;

/// The type of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Type {
    /// One register, without sign.
    U16,
    /// One register, two's complement.
    I16,
    /// Two registers, without sign.
    U32,
    /// Two registers, two's complement.
    I32,
    /// Two registers, IEEE 754.
    F32,
    /// Four registers, without sign.
    U64,
    /// Four registers, two's complement.
    I64,
    /// Four registers, IEEE 754.
    F64,
    /// One register of bits, each with a meaning of its own.
    Bits,
}

impl Type {
    /// How many registers it takes.
    pub fn registers(self) -> u16 {
        match self {
            Self::U16 | Self::I16 | Self::Bits => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
        }
    }
}

/// In which order the bytes of a value come; a and b are those of its highest register, as a device with the usual order sends them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Highest first, as in a register.
    #[default]
    Abcd,
    /// Lowest register first.
    Cdab,
    /// Highest register first, the bytes of each swapped.
    Badc,
    /// Lowest byte first.
    Dcba,
}

/// A value as the device has it, before any scaling.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Raw {
    /// A whole number.
    Int(i128),
    /// A number of type f32.
    Single(f32),
    /// A number of type f64.
    Double(f64),
}

/// The value in `registers`, which has as many bytes as the type wants; `None` when it has not.
pub fn decode(kind: Type, order: Order, registers: &[u8]) -> Option<Raw> {
    if registers.len() != 2 * usize::from(kind.registers()) {
        return None;
    }
    let mut bytes = [0; 8];
    let used = bytes.get_mut(8 - registers.len()..)?;
    used.copy_from_slice(registers);
    if matches!(order, Order::Badc | Order::Cdab) {
        used.chunks_exact_mut(2).for_each(|register| register.swap(0, 1));
    }
    // Cdab is dcba with the bytes of each register swapped back.
    if matches!(order, Order::Cdab | Order::Dcba) {
        used.reverse();
    }
    let [_, _, _, _, a, b, c, d] = bytes;
    Some(match kind {
        Type::U16 | Type::U32 | Type::U64 | Type::Bits => Raw::Int(u64::from_be_bytes(bytes).into()),
        Type::I16 => Raw::Int(i16::from_be_bytes([c, d]).into()),
        Type::I32 => Raw::Int(i32::from_be_bytes([a, b, c, d]).into()),
        Type::I64 => Raw::Int(i64::from_be_bytes(bytes).into()),
        Type::F32 => Raw::Single(f32::from_be_bytes([a, b, c, d])),
        Type::F64 => Raw::Double(f64::from_be_bytes(bytes)),
    })
}

impl Raw {
    /// Whether it is `number`. A negative one stands for the bits that it has in two's complement where the type has no sign, so
    /// that -1 is all ones in each type.
    pub fn is(self, number: f64, kind: Type) -> bool {
        match self {
            // By their digits: -99.9 of 32 bits is another number than -99.9 of 64.
            Self::Single(value) => value.to_string() == number.to_string(),
            Self::Double(value) => value == number,
            Self::Int(value) => {
                let unsigned = matches!(kind, Type::U16 | Type::U32 | Type::U64 | Type::Bits);
                let turn = if unsigned && number < 0.0 { 1i128 << (16 * kind.registers()) } else { 0 };
                value - turn == exact(number).unwrap_or(i128::MAX)
            }
        }
    }

    /// Whether it is a number at all: not NaN and not infinite.
    pub fn is_finite(self) -> bool {
        match self {
            Self::Int(_) => true,
            Self::Single(value) => value.is_finite(),
            Self::Double(value) => value.is_finite(),
        }
    }
}

/// A whole number that a float holds.
fn exact(number: f64) -> Option<i128> {
    // Texts of floats are exact for whole numbers, and have no exponent.
    number.to_string().parse().ok()
}

/// A decimal number with the digits behind its point that it was written with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decimal {
    digits: i128,
    decimals: u32,
}

impl Decimal {
    /// 1.
    pub const ONE: Self = Self { digits: 1, decimals: 0 };
    /// 0.
    pub const ZERO: Self = Self { digits: 0, decimals: 0 };

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.digits == 0
    }

    fn times(self, other: Self) -> Option<Self> {
        Some(Self { digits: self.digits.checked_mul(other.digits)?, decimals: self.decimals + other.decimals })
    }

    fn plus(self, other: Self) -> Option<Self> {
        let decimals = self.decimals.max(other.decimals);
        let raised = |one: Self| one.digits.checked_mul(10i128.checked_pow(decimals - one.decimals)?);
        Some(Self { digits: raised(self)?.checked_add(raised(other)?)?, decimals })
    }
}

impl FromStr for Decimal {
    type Err = ();

    /// `0.1`, `-40`, `1e-3`; at most [`DECIMALS_MAX`] digits behind the point.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (number, exponent) = match text.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i32>().map_err(|_| ())?),
            None => (text, 0),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let joined = format!("{whole}{part}");
        let digits_only = joined.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
        if joined.len() > EXACT_BYTES_MAX || !digits_only {
            return Err(());
        }
        let digits: i128 = joined.parse().map_err(|_| ())?;
        let decimals = i32::try_from(part.len()).map_err(|_| ())? - exponent.clamp(-1000, 1000);
        let raised = |by: u32| 10i128.checked_pow(by).and_then(|factor| digits.checked_mul(factor)).ok_or(());
        let (digits, decimals) = match u32::try_from(decimals) {
            Ok(decimals) => (digits, decimals),
            Err(_) => (raised(decimals.unsigned_abs())?, 0),
        };
        if decimals > 2 * DECIMALS_MAX { Err(()) } else { Ok(Self { digits, decimals }) }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, digits) = (if self.digits < 0 { "-" } else { "" }, self.digits.unsigned_abs().to_string());
        let decimals = usize::try_from(self.decimals).unwrap_or(0);
        if decimals == 0 {
            return write!(f, "{sign}{digits}");
        }
        let padded = format!("{digits:0>width$}", width = decimals + 1);
        let (whole, part) = padded.split_at_checked(padded.len() - decimals).unwrap_or((&padded, ""));
        write!(f, "{sign}{whole}.{part}")
    }
}

/// A number from the configuration file as it was written there; [`None`] for one that is none or has too many digits.
pub fn configured(number: f64) -> Option<Decimal> {
    let text = number.to_string();
    let decimal: Decimal = text.parse().ok()?;
    (decimal.decimals <= DECIMALS_MAX && text.len() <= DIGITS_MAX).then_some(decimal)
}

/// The value times `scale` plus `offset`, in decimal digits. Whole numbers have as many digits behind the point as scale and offset
/// have; floats as many as tell them from their neighbours. `None` for what is no number.
pub fn scaled(raw: Raw, scale: Decimal, offset: Decimal) -> Option<String> {
    let text = match raw {
        Raw::Int(value) => value.to_string(),
        Raw::Single(value) if value.is_finite() => value.to_string(),
        Raw::Double(value) if value.is_finite() => value.to_string(),
        Raw::Single(_) | Raw::Double(_) => return None,
    };
    if (scale, offset) == (Decimal::ONE, Decimal::ZERO) {
        return Some(text);
    }
    let exact = text.parse::<Decimal>().ok().and_then(|value| value.times(scale)?.plus(offset));
    Some(exact.map_or_else(|| roughly(&text, scale, offset), |value| value.to_string()))
}

/// For floats of a size at which digits behind the point mean nothing.
fn roughly(text: &str, scale: Decimal, offset: Decimal) -> String {
    let number = |text: String| text.parse::<f64>().unwrap_or(f64::NAN);
    (number(text.to_owned()) * number(scale.to_string()) + number(offset.to_string())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(raw: Raw, scale: f64, offset: f64) -> String {
        scaled(raw, configured(scale).unwrap(), configured(offset).unwrap()).unwrap()
    }

    #[test]
    fn the_four_orders_of_one_value_give_the_same_number() {
        // 123456.7 is 47 F1 20 59; 0x0123456789abcdef in four registers.
        let orders = [Order::Abcd, Order::Cdab, Order::Badc, Order::Dcba];
        let floats =
            [[0x47, 0xf1, 0x20, 0x5a], [0x20, 0x5a, 0x47, 0xf1], [0xf1, 0x47, 0x5a, 0x20], [0x5a, 0x20, 0xf1, 0x47]];
        for (order, bytes) in orders.into_iter().zip(floats) {
            assert_eq!(decode(Type::F32, order, &bytes), Some(Raw::Single(123_456.7)), "{order:?}");
        }
        let long: [[u8; 8]; 4] = [
            [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef],
            [0xcd, 0xef, 0x89, 0xab, 0x45, 0x67, 0x01, 0x23],
            [0x23, 0x01, 0x67, 0x45, 0xab, 0x89, 0xef, 0xcd],
            [0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01],
        ];
        for (order, bytes) in orders.into_iter().zip(long) {
            assert_eq!(decode(Type::U64, order, &bytes), Some(Raw::Int(0x0123_4567_89ab_cdef)), "{order:?}");
        }
    }

    #[test]
    fn signs_are_kept_and_a_wrong_length_is_nothing() {
        assert_eq!(decode(Type::I16, Order::Abcd, &[0xff, 0xfe]), Some(Raw::Int(-2)));
        assert_eq!(decode(Type::U16, Order::Abcd, &[0xff, 0xfe]), Some(Raw::Int(65534)));
        assert_eq!(decode(Type::I32, Order::Cdab, &[0xff, 0xfe, 0xff, 0xff]), Some(Raw::Int(-2)));
        assert_eq!(decode(Type::I64, Order::Abcd, &[0xff; 8]), Some(Raw::Int(-1)));
        assert_eq!(decode(Type::U64, Order::Abcd, &[0xff; 8]), Some(Raw::Int(u64::MAX.into())));
        assert_eq!((decode(Type::U32, Order::Abcd, &[1, 2]), decode(Type::U16, Order::Abcd, &[])), (None, None));
    }

    #[test]
    fn scaling_is_exact_and_keeps_the_devices_precision() {
        assert_eq!(text(Raw::Int(367), 0.1, 0.0), "36.7");
        assert_eq!(text(Raw::Int(370), 0.1, 0.0), "37.0");
        assert_eq!(text(Raw::Int(-5), 0.01, 0.0), "-0.05");
        assert_eq!(text(Raw::Int(100), 0.5, -40.0), "10.0");
        assert_eq!(text(Raw::Int(3), 10.0, 0.0), "30");
        assert_eq!(text(Raw::Int(u64::MAX.into()), 0.001, 0.0), "18446744073709551.615");
        assert_eq!(text(Raw::Single(36.7), 1.0, 0.0), "36.7");
        assert_eq!(text(Raw::Single(36.7), 10.0, 0.0), "367.0");
        assert_eq!(text(Raw::Double(0.1), 1.0, 273.15), "273.25");
        assert_eq!(text(Raw::Double(1e300), 2.0, 0.0), "2".to_owned() + &"0".repeat(300));
        assert_eq!(scaled(Raw::Single(f32::NAN), Decimal::ONE, Decimal::ZERO), None);
        assert_eq!(configured(1e-30), None);
    }

    #[test]
    fn a_sentinel_is_meant_in_the_devices_own_number() {
        assert!(Raw::Int(65535).is(65535.0, Type::U16) && Raw::Int(65535).is(-1.0, Type::U16));
        assert!(Raw::Int(-1).is(-1.0, Type::I16) && !Raw::Int(-1).is(65535.0, Type::I16));
        assert!(Raw::Int(u64::MAX.into()).is(-1.0, Type::U64) && !Raw::Int(0).is(-1.0, Type::U64));
        assert!(Raw::Single(-99.9).is(-99.9, Type::F32));
        assert!(!Raw::Single(f32::NAN).is_finite() && Raw::Int(1).is_finite());
        assert!(!Raw::Int(1).is(1.5, Type::U16));
    }
}
