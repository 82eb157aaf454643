//! Which acknowledgement a message gets: a pure function of what it asked for, how it went, and the configuration.
//!
//! MSH-15 (accept) and MSH-16 (application) choose between original and enhanced mode (HL7 v2.5.1, 2.9.2 and 2.9.3; table 0155).
//! A positive code may only be sent after the message is on stable storage; that is its caller's promise, not this file's.

use serde::Deserialize;

use super::ack::Code;

/// When a sender wants an acknowledgement: a value of table 0155.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The field is empty, null (`""`) or not in the table.
    Unset,
    /// `AL`
    Always,
    /// `NE`
    Never,
    /// `ER`: on error or reject only.
    OnError,
    /// `SU`: on success only.
    OnSuccess,
}

impl Condition {
    /// Reads MSH-15 or MSH-16.
    pub fn read(field: &[u8]) -> Self {
        match field.trim_ascii().to_ascii_uppercase().as_slice() {
            b"AL" => Self::Always,
            b"NE" => Self::Never,
            b"ER" => Self::OnError,
            b"SU" => Self::OnSuccess,
            _ => Self::Unset,
        }
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Committed.
    Success,
    /// This box can't store now: the sender should try again.
    Error,
    /// It can't be correlated, or is over a limit: trying again is of no use.
    Reject,
}

/// Who decides on the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The message: MSH-15 and MSH-16.
    #[default]
    Auto,
    /// Always answer AA, AE or AR, whatever the message asks for; also written `application`.
    #[serde(alias = "application")]
    Original,
    /// Always answer CA, CE or CR, whatever the message asks for; also written `accept`.
    #[serde(alias = "accept")]
    Enhanced,
}

/// Whether a message that asks for both acknowledgements gets the second from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplicationAck {
    /// No: the application is upstream.
    #[default]
    Never,
    /// AA in a frame of its own right after CA.
    OnCommit,
}

/// What to send: at most two acknowledgements, each in a frame of its own.
pub type Codes = [Option<Code>; 2];

/// The codes for a message that asked for `accept` (MSH-15) and `application` (MSH-16).
///
/// Where MSH-15 asks for anything but `NE`, it alone decides: the application's acknowledgement is the upstream's. The one
/// exception is [`ApplicationAck::OnCommit`] for a message that asks for both always.
pub fn codes(accept: Condition, application: Condition, outcome: Outcome, policy: (Mode, ApplicationAck)) -> Codes {
    use Condition::{Always, Never, OnError, OnSuccess, Unset};
    let (mode, application_ack) = policy;
    let first = match (mode, accept, application) {
        (Mode::Original, ..) | (Mode::Auto, Unset, Unset) => Some(original(outcome)),
        (Mode::Enhanced, ..) | (Mode::Auto, Always, _) => Some(enhanced(outcome)),
        (Mode::Auto, OnSuccess, _) => on_success(outcome, enhanced),
        (Mode::Auto, OnError, _) => on_error(outcome, enhanced),
        (Mode::Auto, Never | Unset, Always) => Some(original(outcome)),
        (Mode::Auto, Never | Unset, OnSuccess) => on_success(outcome, original),
        (Mode::Auto, Never | Unset, OnError) => on_error(outcome, original),
        (Mode::Auto, Never, Never | Unset) | (Mode::Auto, Unset, Never) => None,
    };
    let both = mode != Mode::Original && first == Some(Code::Ca) && application == Always;
    let second = both && accept == Always && application_ack == ApplicationAck::OnCommit;
    [first, second.then_some(Code::Aa)]
}

fn original(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Success => Code::Aa,
        Outcome::Error => Code::Ae,
        Outcome::Reject => Code::Ar,
    }
}

fn enhanced(outcome: Outcome) -> Code {
    match outcome {
        Outcome::Success => Code::Ca,
        Outcome::Error => Code::Ce,
        Outcome::Reject => Code::Cr,
    }
}

fn on_success(outcome: Outcome, code: fn(Outcome) -> Code) -> Option<Code> {
    (outcome == Outcome::Success).then(|| code(outcome))
}

fn on_error(outcome: Outcome, code: fn(Outcome) -> Code) -> Option<Code> {
    (outcome != Outcome::Success).then(|| code(outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MSH-15, MSH-16, then what is sent for success, error and reject.
    const TABLE: [[&str; 5]; 25] = [
        ["", "", "AA", "AE", "AR"],
        ["AL", "", "CA", "CE", "CR"],
        ["AL", "NE", "CA", "CE", "CR"],
        ["AL", "ER", "CA", "CE", "CR"],
        ["AL", "SU", "CA", "CE", "CR"],
        ["AL", "AL", "CA", "CE", "CR"],
        ["SU", "", "CA", "", ""],
        ["SU", "NE", "CA", "", ""],
        ["SU", "ER", "CA", "", ""],
        ["SU", "SU", "CA", "", ""],
        ["SU", "AL", "CA", "", ""],
        ["ER", "", "", "CE", "CR"],
        ["ER", "NE", "", "CE", "CR"],
        ["ER", "ER", "", "CE", "CR"],
        ["ER", "SU", "", "CE", "CR"],
        ["ER", "AL", "", "CE", "CR"],
        ["NE", "AL", "AA", "AE", "AR"],
        ["NE", "SU", "AA", "", ""],
        ["NE", "NE", "", "", ""],
        ["NE", "ER", "", "AE", "AR"],
        ["NE", "", "", "", ""],
        ["", "AL", "AA", "AE", "AR"],
        ["", "SU", "AA", "", ""],
        ["", "NE", "", "", ""],
        ["", "ER", "", "AE", "AR"],
    ];

    const OUTCOMES: [Outcome; 3] = [Outcome::Success, Outcome::Error, Outcome::Reject];

    fn sent(row: &[&str; 5], outcome: Outcome, policy: (Mode, ApplicationAck)) -> String {
        let [accept, application] = [row[0], row[1]].map(|text| Condition::read(text.as_bytes()));
        let codes = codes(accept, application, outcome, policy);
        codes.into_iter().flatten().map(Code::as_str).collect::<Vec<_>>().join("+")
    }

    #[test]
    fn the_message_decides_cell_by_cell() {
        for row in &TABLE {
            for (column, outcome) in OUTCOMES.into_iter().enumerate() {
                let sent = sent(row, outcome, (Mode::Auto, ApplicationAck::Never));
                assert_eq!(sent, row[2 + column], "MSH-15 {:?} MSH-16 {:?} {outcome:?}", row[0], row[1]);
            }
        }
    }

    #[test]
    fn on_commit_adds_one_aa_where_both_were_asked_for() {
        for row in &TABLE {
            for (column, outcome) in OUTCOMES.into_iter().enumerate() {
                let sent = sent(row, outcome, (Mode::Auto, ApplicationAck::OnCommit));
                let both = row[0] == "AL" && row[1] == "AL" && outcome == Outcome::Success;
                assert_eq!(sent, if both { "CA+AA" } else { row[2 + column] }, "{row:?} {outcome:?}");
            }
        }
    }

    #[test]
    fn a_forced_mode_always_answers_in_its_own_codes() {
        for row in &TABLE {
            for (outcome, [original, enhanced]) in OUTCOMES.into_iter().zip([["AA", "CA"], ["AE", "CE"], ["AR", "CR"]])
            {
                assert_eq!(sent(row, outcome, (Mode::Original, ApplicationAck::Never)), original, "{row:?}");
                assert_eq!(sent(row, outcome, (Mode::Original, ApplicationAck::OnCommit)), original, "{row:?}");
                assert_eq!(sent(row, outcome, (Mode::Enhanced, ApplicationAck::Never)), enhanced, "{row:?}");
            }
        }
    }

    #[test]
    fn conditions_are_read_in_any_case_and_what_is_unknown_counts_as_empty() {
        assert_eq!(Condition::read(b" al "), Condition::Always);
        for unset in [&b""[..], b"\"\"", b"YES", b"\xff"] {
            assert_eq!(Condition::read(unset), Condition::Unset);
        }
    }
}
