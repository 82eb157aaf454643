//! How people name a message: by its whole id, by the beginning of it, or by beginning and end with `...` between them.
//!
//! Messages of one segment share the first 24 digits of their ids, so that an end tells more than a beginning. What fits
//! several messages is refused and never chooses one of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::answers::{Refusal, as_text};
use crate::envelope::MessageId;
use crate::values::ValueError;

/// Digits of a whole id.
const DIGITS: usize = 32;
/// Fewest digits that name a message.
const DIGITS_MIN: usize = 4;
/// Between beginning and end; a list that was cut short has the single character.
const GAPS: [&str; 2] = ["...", "…"];
/// Ids that the refusal of an ambiguous one names.
const SHOWN_MAX: usize = 5;

/// A message, as a person names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdPattern {
    head: String,
    tail: Option<String>,
}

impl IdPattern {
    /// Whether it names this message, given by its id as text.
    pub fn fits(&self, id: &str) -> bool {
        match &self.tail {
            None => id.starts_with(&self.head),
            Some(tail) => self.head.len() + tail.len() <= id.len() && id.starts_with(&self.head) && id.ends_with(tail),
        }
    }

    /// The one of `ids` that it names; `None` when there is none. The same id may come several times.
    ///
    /// # Errors
    /// [`Refusal`] when it fits several.
    pub fn choose(&self, ids: impl IntoIterator<Item = MessageId>) -> Result<Option<MessageId>, Refusal> {
        let mut fitting: Vec<MessageId> = ids.into_iter().filter(|id| self.fits(&id.to_string())).collect();
        fitting.sort_unstable();
        fitting.dedup();
        match fitting.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            several => Err(self.ambiguous(several)),
        }
    }

    /// Says that it fits all of these.
    pub fn ambiguous(&self, fitting: &[MessageId]) -> Refusal {
        let shown: Vec<String> = fitting.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
        let more = if fitting.len() > SHOWN_MAX { ", ..." } else { "" };
        Refusal::bad(format!(
            "\"{self}\" fits several messages ({}{more}): give more of the id; nothing was done",
            shown.join(", ")
        ))
    }
}

impl From<MessageId> for IdPattern {
    fn from(id: MessageId) -> Self {
        Self { head: id.to_string(), tail: None }
    }
}

impl FromStr for IdPattern {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || {
            ValueError(format!(
                "\"{text}\" is not a message id: write its {DIGITS} hexadecimal digits, at least the first {DIGITS_MIN} of them, \
                 or beginning and end, as in 5b0c...e1"
            ))
        };
        let halves = GAPS.iter().find_map(|gap| text.split_once(gap));
        let (head, tail) = halves.map_or((text, None), |(head, tail)| (head, Some(tail)));
        let is_hex = |part: &str| part.bytes().all(|digit| digit.is_ascii_hexdigit());
        let digits = head.len() + tail.map_or(0, str::len);
        let is_good = is_hex(head) && tail.is_none_or(is_hex) && (DIGITS_MIN..=DIGITS).contains(&digits);
        let lower = str::to_ascii_lowercase;
        is_good.then(|| Self { head: lower(head), tail: tail.map(lower) }).ok_or_else(wrong)
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tail {
            None => f.write_str(&self.head),
            Some(tail) => write!(f, "{}...{tail}", self.head),
        }
    }
}

impl Serialize for IdPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        as_text::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::Code;
    use super::*;

    fn pattern(text: &str) -> IdPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_message_is_named_by_its_id_its_beginning_or_beginning_and_end() {
        let ids = [1, 2, 0x1234].map(|ordinal| MessageId::new([0xab; 12], ordinal));
        let one = |text: &str| pattern(text).choose(ids);
        for text in ["abababababababababababab00000002", "ABABABABABABABABABABABAB00000002", "abab...02", "…00002"] {
            assert_eq!(one(text).unwrap(), Some(ids[1]), "{text}");
        }
        assert_eq!(one("abababababababababababab00001").unwrap(), Some(ids[2]));
        assert_eq!(one("abac").unwrap(), None);
        let refusal = one("abab").unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest);
        assert!(
            refusal.text.contains("\"abab\" fits several messages (abababababababababababab00000001, "),
            "{refusal}"
        );
    }

    #[test]
    fn what_is_no_part_of_an_id_is_refused_with_what_to_write() {
        for text in ["", "abc", "not-an-id", "ab...", "abab...xy", "ab..cd", &"a".repeat(33)] {
            let words = text.parse::<IdPattern>().unwrap_err().to_string();
            assert!(words.contains("5b0c...e1"), "{text}: {words}");
        }
        assert_eq!(pattern("5B0C…E1").to_string(), "5b0c...e1");
    }
}
