//! What stands in a JSON text (RFC 8259), each scalar under its pointer (RFC 6901), numbers in the digits in which they were written.
//!
//! For the payloads of small sensors. Of members with one name in one object readers take the first, the last or none (RFC 8259, section 4):
//! what stands under such a name is told and marked as ambiguous, and is no value. It must never panic on a peer's bytes, hold more than [`LEAVES_MAX`] leaves, nor lose a digit: a
//! number is not read into a float.

use std::collections::HashSet;

use serde::de::IgnoredAny;

/// Scalars of one text. A sensor has some, a gateway of a room some dozens.
pub const LEAVES_MAX: usize = 200;
/// How deep objects and arrays may stand in each other.
const DEPTH_MAX: usize = 16;
/// Bytes of a pointer.
const POINTER_BYTES_MAX: usize = 256;
/// Digits that an exponent may add.
const EXPONENT_MAX: i32 = 20;

/// A scalar and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// RFC 6901: `/room/0/temperature`; empty when the text is a scalar alone.
    pub pointer: String,
    /// What it is.
    pub scalar: Scalar,
    /// It stands in a member whose name another one of the same object has, too.
    pub ambiguous: bool,
}

/// What can stand at a place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scalar {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// In plain decimal digits, as they were written: `36.70`; an exponent is written out.
    Number(String),
    /// Unescaped.
    Text(String),
}

/// Why a text can't be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JsonError {
    /// It is no JSON.
    #[error("it is no JSON")]
    Malformed,
    /// It has more in it than is taken.
    #[error("it has more than {LEAVES_MAX} values, or they stand too deep")]
    TooMuch,
}

/// Reads a text, in its order. Of two members with one name both are told, as ambiguous.
///
/// # Errors
/// [`JsonError`].
pub fn leaves(text: &[u8]) -> Result<Vec<Leaf>, JsonError> {
    // Syntax is judged by serde; what follows only finds its way.
    serde_json::from_slice::<IgnoredAny>(text).map_err(|_| JsonError::Malformed)?;
    let mut walk = Walk { rest: text, pointer: String::new(), leaves: Vec::new() };
    walk.value(0)?;
    Ok(walk.leaves)
}

struct Walk<'t> {
    rest: &'t [u8],
    pointer: String,
    leaves: Vec<Leaf>,
}

impl<'t> Walk<'t> {
    fn value(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth > DEPTH_MAX {
            return Err(JsonError::TooMuch);
        }
        match self.next() {
            Some(b'{') => self.members(b'}', depth),
            Some(b'[') => self.members(b']', depth),
            Some(b'"') => {
                let text = self.string()?;
                self.leaf(Scalar::Text(text))
            }
            _ => {
                let end = self.rest.iter().position(|byte| b",]} \t\r\n".contains(byte)).unwrap_or(self.rest.len());
                let scalar = match self.take(end) {
                    b"null" => Scalar::Null,
                    b"true" => Scalar::Bool(true),
                    b"false" => Scalar::Bool(false),
                    digits => Scalar::Number(plain(digits).ok_or(JsonError::TooMuch)?),
                };
                self.leaf(scalar)
            }
        }
    }

    /// What stands between the brackets of an object or an array.
    fn members(&mut self, end: u8, depth: usize) -> Result<(), JsonError> {
        self.take(1);
        let (mut names, first) = (HashSet::new(), self.leaves.len());
        for number in 0.. {
            match self.next() {
                Some(byte) if byte == end => break,
                Some(b',') => drop(self.take(1)),
                None => return Err(JsonError::Malformed),
                Some(_) => {}
            }
            self.next();
            let name = if end == b'}' { self.name()? } else { usize::to_string(&number) };
            let length = self.pointer.len();
            self.pointer.push('/');
            self.pointer.push_str(&name);
            if self.pointer.len() > POINTER_BYTES_MAX {
                return Err(JsonError::TooMuch);
            }
            self.value(depth + 1)?;
            if !names.insert(name) {
                self.doubt(first);
            }
            self.pointer.truncate(length);
        }
        self.take(1);
        Ok(())
    }

    /// Nobody can tell which of the values under the present pointer counts, from this leaf on.
    fn doubt(&mut self, first: usize) {
        for leaf in self.leaves.iter_mut().skip(first) {
            let below = leaf.pointer.strip_prefix(&self.pointer);
            leaf.ambiguous |= below.is_some_and(|below| below.is_empty() || below.starts_with('/'));
        }
    }

    /// A member's name, as a pointer has it, and the colon behind it.
    fn name(&mut self) -> Result<String, JsonError> {
        let name = self.string()?.replace('~', "~0").replace('/', "~1");
        self.next();
        self.take(1);
        Ok(name)
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let mut escaped = false;
        let ends = |byte: &u8| {
            let ends = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        };
        let inside = self.rest.get(1..).unwrap_or_default();
        let end = inside.iter().position(ends).ok_or(JsonError::Malformed)?;
        let quoted = self.take(end + 2);
        serde_json::from_slice(quoted).map_err(|_| JsonError::Malformed)
    }

    fn leaf(&mut self, scalar: Scalar) -> Result<(), JsonError> {
        if self.leaves.len() == LEAVES_MAX {
            return Err(JsonError::TooMuch);
        }
        self.leaves.push(Leaf { pointer: self.pointer.clone(), scalar, ambiguous: false });
        Ok(())
    }

    /// The next byte that is no blank; it stays.
    fn next(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn take(&mut self, count: usize) -> &'t [u8] {
        let (taken, rest) = self.rest.split_at_checked(count).unwrap_or((self.rest, b""));
        self.rest = rest;
        taken
    }
}

/// A JSON number without an exponent; `None` when that would have more digits than any device has.
fn plain(digits: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(digits).ok()?;
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else { return Some(text.to_owned()) };
    let exponent: i32 = exponent.parse().ok().filter(|exponent: &i32| exponent.abs() <= EXPONENT_MAX)?;
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |mantissa| ("-", mantissa));
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{part}");
    let point = i32::try_from(whole.len()).ok()? + exponent;
    let Ok(point) = usize::try_from(point) else {
        let zeros = "0".repeat(usize::try_from(-point).ok()?);
        return Some(format!("{sign}0.{zeros}{digits}"));
    };
    if point >= digits.len() {
        let whole = format!("{digits}{}", "0".repeat(point - digits.len()));
        let whole = whole.trim_start_matches('0');
        return Some(format!("{sign}{}", if whole.is_empty() { "0" } else { whole }));
    }
    let (whole, part) = digits.split_at_checked(point)?;
    let whole = whole.trim_start_matches('0');
    Some(format!("{sign}{}.{part}", if whole.is_empty() { "0" } else { whole }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let shown = |leaf: Leaf| match leaf.scalar {
            Scalar::Number(digits) => format!("{}={digits}", leaf.pointer),
            other => format!("{}={other:?}", leaf.pointer),
        };
        leaves(text.as_bytes()).unwrap().into_iter().map(shown).collect()
    }

    #[test]
    fn each_scalar_stands_under_its_pointer_in_its_own_digits() {
        let text =
            r#" { "t" : 36.70, "room": [ {"h":-100 , "on":true}, [] , {}, null ], "a/b~c": "x\"y\u00e9", "":0 } "#;
        let expected = [
            "/t=36.70",
            "/room/0/h=-100",
            "/room/0/on=Bool(true)",
            "/room/3=Null",
            "/a~1b~0c=Text(\"x\\\"yé\")",
            "/=0",
        ];
        assert_eq!(told(text), expected);
        assert_eq!(told("21.5"), ["=21.5"]);
        assert_eq!(told("[]"), [""; 0]);
    }

    #[test]
    fn what_stands_under_a_name_that_is_there_twice_is_marked_and_nothing_else_is() {
        let doubted = |text: &str| -> Vec<String> {
            let all = leaves(text.as_bytes()).unwrap();
            all.into_iter().filter(|leaf| leaf.ambiguous).map(|leaf| leaf.pointer).collect()
        };
        assert_eq!(told(r#"{"a":1,"a":2}"#), ["/a=1", "/a=2"]);
        assert_eq!(doubted(r#"{"a":1,"\u0061":2,"ab":3,"b":{"a":4}}"#), ["/a", "/a"]);
        assert_eq!(doubted(r#"{"r":{"t":1,"h":2},"u":5,"r":{"t":3}}"#), ["/r/t", "/r/h", "/r/t"]);
        assert_eq!(doubted(r#"[{"a":1},{"a":2},{"a":{},"a":7}]"#), ["/2/a"]);
        assert_eq!(doubted(r#"{"a":1,"b":[1,1],"c":1}"#), [""; 0]);
    }

    #[test]
    fn an_exponent_is_written_out_and_no_digit_is_lost_or_made_up() {
        for (written, read) in [
            ("1e3", "1000"),
            ("3.65E1", "36.5"),
            ("-1.5e-3", "-0.0015"),
            ("1.50e1", "15.0"),
            ("0.012e1", "0.12"),
            ("12e-1", "1.2"),
            ("12e-2", "0.12"),
            ("0e5", "0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
        ] {
            assert_eq!(told(written), [format!("={read}")], "{written}");
        }
    }

    #[test]
    fn what_is_no_json_or_too_much_of_it_is_told() {
        let malformed = ["", "{", "{\"a\":}", "[1,]", "nul", "\"\u{1}\"", "1 2", "{\"a\" 1}", "01", "{,}"];
        for text in malformed {
            assert_eq!(leaves(text.as_bytes()), Err(JsonError::Malformed), "{text}");
        }
        assert_eq!(leaves(b"\"\xff\""), Err(JsonError::Malformed));
        let many = format!("[{}1]", "1,".repeat(LEAVES_MAX));
        let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
        let long = format!("{{\"{}\":1}}", "k".repeat(POINTER_BYTES_MAX));
        for text in [&many, &deep, &long, "1e400", "1e999999999999"] {
            assert!(leaves(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_serde_reads_has_as_many_leaves_here(bytes in "[\\[\\]{}:,\"a1\\\\ ]{0,24}") {
            fn count(value: &serde_json::Value) -> usize {
                match value {
                    serde_json::Value::Array(all) => all.iter().map(count).sum(),
                    serde_json::Value::Object(all) => all.values().map(count).sum(),
                    _ => 1,
                }
            }
            match serde_json::from_str::<serde_json::Value>(&bytes) {
                // Of members with one name serde keeps the last.
                Ok(value) => proptest::prop_assert!(leaves(bytes.as_bytes()).is_ok_and(|leaves| leaves.len() >= count(&value))),
                Err(_) => proptest::prop_assert!(leaves(bytes.as_bytes()).is_err()),
            }
        }
    }
}
