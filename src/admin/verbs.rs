//! What the running service can be asked over the control socket.
//!
//! A request is one JSON line, `{"verb":"dead-list","upstream":"engine"}`; the answer is any number of `progress` and
//! `data` lines and then one `ok` or `error` line. A key that a verb does not know is an error, so that a misspelt filter
//! never widens a change. What is answered is in [`super::answers`], who answers in [`super::operator`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::answers::{Refusal, When};
use super::ids::IdPattern;
use crate::values::Name;

/// Most ids that one request may name.
pub const IDS_MAX: usize = 1_000;
/// Most dead letters that one answer lists.
pub const LIST_MAX: usize = 1_000;

/// Fields whose values are patient data: the log says that they were given, never what they are.
pub const PRIVATE_FIELDS: [&str; 2] = ["patient-id", "accession"];

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    /// The snapshot: [`Status`](crate::status::Status).
    Status,
    /// Which messages were refused for good: [`DeadList`](super::answers::DeadList).
    DeadList(DeadQuery),
    /// One of them, for each upstream that refused it: a list of [`DeadLetter`](super::answers::DeadLetter).
    DeadShow(DeadRef),
    /// Its body, as `data` lines. Reveals patient data: a change.
    DeadBody(DeadRef),
    /// Put back into their lanes: [`Count`](super::answers::Count).
    DeadRetry(DeadSelection),
    /// Given up for good: [`Count`](super::answers::Count).
    DeadDiscard(DeadSelection),
    /// Lanes that wait for a person send their message again: [`Released`](super::answers::Released).
    LaneRetry(LaneSelection),
    /// Lanes that wait for a person make their message a dead letter and go on: [`Released`](super::answers::Released).
    LaneSetAside(LaneSelection),
    /// What the spool holds: [`SpoolUsage`](super::answers::SpoolUsage).
    SpoolUsage,
    /// Reads and authenticates every record: [`VerifyReport`](super::answers::VerifyReport).
    SpoolVerify,
    /// A person took note of the damage: it is shown no more: [`Count`](super::answers::Count) of segments.
    SpoolAcceptDamage,
    /// Which messages are about a patient or an order: [`FindReport`](super::answers::FindReport). Reveals patient data, namely whether
    /// there are any: a change.
    SpoolFind(FindRequest),
    /// Messages with their ids, sealed, as `data` lines: [`ExportReport`](super::answers::ExportReport).
    SpoolExport(ExportRequest),
    /// Takes what another box exported, from `data` lines: [`ImportReport`](super::answers::ImportReport).
    SpoolImport(ImportRequest),
    /// Sends kept originals again: [`ReplayReport`](super::answers::ReplayReport).
    Replay(ReplayRequest),
    /// A new epoch key for all that is written from now on: [`KeysReport`](super::answers::KeysReport).
    KeysRotate,
    /// Destroys the root key: nothing in the spool can ever be read again: [`KeysReport`](super::answers::KeysReport).
    KeysDestroy(DestroyRequest),
}

/// What a request needs of the one who asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Names, numbers, states.
    Read,
    /// Changes something, or reveals content.
    Change,
}

impl Request {
    /// The verb, as it is written on the line and in the log.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::DeadList(_) => "dead-list",
            Self::DeadShow(_) => "dead-show",
            Self::DeadBody(_) => "dead-body",
            Self::DeadRetry(_) => "dead-retry",
            Self::DeadDiscard(_) => "dead-discard",
            Self::LaneRetry(_) => "lane-retry",
            Self::LaneSetAside(_) => "lane-set-aside",
            Self::SpoolUsage => "spool-usage",
            Self::SpoolVerify => "spool-verify",
            Self::SpoolAcceptDamage => "spool-accept-damage",
            Self::SpoolFind(_) => "spool-find",
            Self::SpoolExport(_) => "spool-export",
            Self::SpoolImport(_) => "spool-import",
            Self::Replay(_) => "replay",
            Self::KeysRotate => "keys-rotate",
            Self::KeysDestroy(_) => "keys-destroy",
        }
    }

    /// What it needs. A replay that only counts is a reading.
    pub fn level(&self) -> Level {
        match self {
            Self::Status | Self::DeadList(_) | Self::DeadShow(_) | Self::SpoolUsage | Self::SpoolVerify => Level::Read,
            Self::Replay(request) if request.dry_run => Level::Read,
            _ => Level::Change,
        }
    }

    /// Checks what serde can't see: a selection that selects nothing, too many ids.
    ///
    /// # Errors
    /// [`Refusal`] with [`BadRequest`](super::answers::Code::BadRequest).
    pub fn check(&self) -> Result<(), Refusal> {
        let ids = match self {
            Self::DeadRetry(selection) | Self::DeadDiscard(selection) => {
                if selection.ids.is_empty() != selection.all {
                    return Err(Refusal::bad("name the dead letters by id, or say \"all\": one of the two"));
                }
                selection.ids.len()
            }
            Self::SpoolFind(request) if request.is_blank() => {
                return Err(Refusal::bad("give a patient id or an accession number to look for"));
            }
            Self::SpoolExport(request) if request.recipients.is_empty() => {
                return Err(Refusal::bad("name at least one age recipient that the export is sealed to"));
            }
            Self::SpoolExport(request) => request.ids.len(),
            Self::SpoolImport(request) if request.upstreams.is_empty() => {
                return Err(Refusal::bad("name the upstreams that the imported messages go to"));
            }
            Self::Replay(request) if request.to <= request.from => {
                return Err(Refusal::bad("the end of the time range must be after its beginning"));
            }
            _ => 0,
        };
        match ids > IDS_MAX {
            true => Err(Refusal::bad(format!("{ids} ids in one request; at most {IDS_MAX}"))),
            false => Ok(()),
        }
    }
}

/// Which dead letters to list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DeadQuery {
    /// Only of this source.
    pub source: Option<Name>,
    /// Only those that this upstream refused.
    pub upstream: Option<Name>,
    /// At most so many, the newest first; [`LIST_MAX`] when it is not given or larger.
    pub limit: Option<usize>,
}

/// A message that is dead for one or several upstreams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DeadRef {
    /// Which message.
    pub id: IdPattern,
}

/// Dead letters to retry or discard: by id, or all that the filters leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DeadSelection {
    /// These; empty when `all` is set.
    pub ids: Vec<IdPattern>,
    /// Every one that the filters leave.
    pub all: bool,
    /// Only of this source.
    pub source: Option<Name>,
    /// Only those that this upstream refused.
    pub upstream: Option<Name>,
}

/// Lanes that are held until a person decides (`when-refused = "hold"`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LaneSelection {
    /// To this upstream.
    pub upstream: Name,
    /// Only that of this source.
    #[serde(default)]
    pub source: Option<Name>,
}

/// Messages to look for: by what a person knows of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FindRequest {
    /// About this patient.
    pub patient_id: Option<Private>,
    /// Of the order with this number.
    pub accession: Option<Private>,
    /// Only of this source.
    pub source: Option<Name>,
    /// At most so many, the newest first; [`LIST_MAX`] when it is not given or larger.
    pub limit: Option<usize>,
}

impl FindRequest {
    /// Whether it says nothing to look for, or gives a number that is blank: left out, it would widen what is found.
    fn is_blank(&self) -> bool {
        let mut given = [&self.patient_id, &self.accession].into_iter().flatten().peekable();
        given.peek().is_none() || given.any(|value| value.0.trim().is_empty())
    }
}

/// Patient data in a request: never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Private(pub String);

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Private(..)")
    }
}

/// Messages to carry to another box or into a file, sealed. Marks nothing as delivered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ExportRequest {
    /// These; empty: all that the filters leave.
    pub ids: Vec<IdPattern>,
    /// Only of this source.
    pub source: Option<Name>,
    /// Only those that still wait for this upstream (or are dead for it).
    pub upstream: Option<Name>,
    /// Only those received at or after.
    pub from: Option<When>,
    /// Only those received before.
    pub to: Option<When>,
    /// age recipients (`age1...`); at least one.
    pub recipients: Vec<String>,
}

/// Where imported messages go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImportRequest {
    /// Upstreams of this box; at least one.
    pub upstreams: Vec<Name>,
}

/// Kept originals to send again to one upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReplayRequest {
    /// Of this source.
    pub source: Name,
    /// Received at or after.
    pub from: When,
    /// Received before.
    pub to: When,
    /// To this upstream.
    pub upstream: Name,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
}

/// The word that proves that one means this box.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DestroyRequest {
    /// The gateway's name; anything else is refused.
    pub gateway: Name,
}

#[cfg(test)]
mod tests {
    use super::super::answers::Code;
    use super::*;

    #[test]
    fn a_misspelt_filter_is_refused_and_never_widens_a_change() {
        let line = r#"{"verb":"dead-discard","all":true,"upstraem":"engine"}"#;
        assert!(serde_json::from_str::<Request>(line).unwrap_err().to_string().contains("upstraem"));
    }

    #[test]
    fn a_selection_of_nothing_is_refused() {
        let request = Request::DeadDiscard(DeadSelection::default());
        assert_eq!(request.check().unwrap_err().code, Code::BadRequest);
        let both = DeadSelection { ids: vec!["5b0c...e1".parse().unwrap()], all: true, ..DeadSelection::default() };
        assert_eq!(Request::DeadRetry(both).check().unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn requests_read_as_people_write_them() {
        let line = r#"{"verb":"replay","source":"monitors","from":"2026-11-22T14:00:00Z","to":"2026-11-22T15:00:00Z","upstream":"engine"}"#;
        let request: Request = serde_json::from_str(line).unwrap();
        assert_eq!((request.verb(), request.level()), ("replay", Level::Change));
        let line = r#"{"verb":"dead-show","id":"00112233445566778899aabbccddeeff"}"#;
        let Request::DeadShow(DeadRef { id }) = serde_json::from_str(line).unwrap() else { panic!("another verb") };
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
    }

    #[test]
    fn who_looks_for_a_patient_must_say_for_whom_and_have_the_right_to_change() {
        let line = r#"{"verb":"spool-find","patient-id":"T-4711"}"#;
        let request: Request = serde_json::from_str(line).unwrap();
        assert_eq!((request.verb(), request.level(), request.check()), ("spool-find", Level::Change, Ok(())));
        assert!(!format!("{request:?}").contains("4711"), "{request:?}");
        for nobody in [r#"{"verb":"spool-find"}"#, r#"{"verb":"spool-find","patient-id":" ","source":"ct"}"#] {
            assert!(serde_json::from_str::<Request>(nobody).unwrap().check().is_err(), "{nobody}");
        }
    }

    #[test]
    fn deciding_about_a_lane_is_a_change_and_names_its_upstream() {
        let line = r#"{"verb":"lane-set-aside","upstream":"engine"}"#;
        let request: Request = serde_json::from_str(line).unwrap();
        assert_eq!((request.verb(), request.level()), ("lane-set-aside", Level::Change));
        assert!(serde_json::from_str::<Request>(r#"{"verb":"lane-retry","source":"monitors"}"#).is_err());
    }

    #[test]
    fn showing_a_body_counts_as_a_change() {
        let id: IdPattern = "5b0c".parse().unwrap();
        assert_eq!(Request::DeadBody(DeadRef { id: id.clone() }).level(), Level::Change);
        assert_eq!(Request::DeadShow(DeadRef { id }).level(), Level::Read);
    }
}
