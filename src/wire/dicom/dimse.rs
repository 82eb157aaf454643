//! Command sets of DIMSE (PS3.7 sections 6.3 and 9, annex E): what a peer wants, and how it went. Read and written by hand in
//! Implicit VR Little Endian, within 64 KiB, because they come before anything about a peer is known.
//!
//! Reading is tolerant: a wrong or missing group length, unknown elements and values that can't be used are passed over, and
//! what is then missing is `None`. Only what has no command field, or lengths beyond its end, is no command set.

pub use super::dimse_status::{Status, StatusClass};
use super::element::{self as element, Encoding, Step, Tag};
use super::pdu::Pdv;
use super::values::{
    AeTitle, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, Uid, VERIFICATION, from_latin1, to_latin1, trim_end,
};

/// Longest command set, in bytes; the longest that the standard knows has less than 1 KiB.
pub const COMMAND_BYTES_MAX: usize = 64 << 10;
/// Longest comment that is kept or sent, in bytes.
pub const COMMENT_BYTES_MAX: usize = 64;

/// What is wrong with a command set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Over [`COMMAND_BYTES_MAX`].
    #[error("a command set of more than {COMMAND_BYTES_MAX} bytes")]
    TooLong,
    /// An element goes beyond the end.
    #[error("an element of the command set goes beyond its end")]
    Truncated,
    /// No command field: it is not known what is wanted.
    #[error("a command set without a command field")]
    NoField,
    /// Another presentation context in the middle of a command set.
    #[error("the presentation context changes in the middle of a command set")]
    Context,
}

/// The command field, (0000,0100): PS3.7 table E.1-1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommandField {
    /// C-STORE-RQ
    StoreRequest,
    /// C-STORE-RSP
    StoreResponse,
    /// C-ECHO-RQ
    EchoRequest,
    /// C-ECHO-RSP
    EchoResponse,
    /// N-EVENT-REPORT-RQ
    EventReportRequest,
    /// N-EVENT-REPORT-RSP
    EventReportResponse,
    /// N-ACTION-RQ
    ActionRequest,
    /// N-ACTION-RSP
    ActionResponse,
    /// C-CANCEL-RQ, which has no response.
    CancelRequest,
    /// One that is not spoken here.
    Other(u16),
}

impl CommandField {
    fn read(code: u16) -> Self {
        match code {
            0x0001 => Self::StoreRequest,
            0x8001 => Self::StoreResponse,
            0x0030 => Self::EchoRequest,
            0x8030 => Self::EchoResponse,
            0x0100 => Self::EventReportRequest,
            0x8100 => Self::EventReportResponse,
            0x0130 => Self::ActionRequest,
            0x8130 => Self::ActionResponse,
            0x0fff => Self::CancelRequest,
            other => Self::Other(other),
        }
    }

    fn code(self) -> u16 {
        match self {
            Self::StoreRequest => 0x0001,
            Self::StoreResponse => 0x8001,
            Self::EchoRequest => 0x0030,
            Self::EchoResponse => 0x8030,
            Self::EventReportRequest => 0x0100,
            Self::EventReportResponse => 0x8100,
            Self::ActionRequest => 0x0130,
            Self::ActionResponse => 0x8130,
            Self::CancelRequest => 0x0fff,
            Self::Other(code) => code,
        }
    }

    /// Whether it is a response.
    pub fn is_response(self) -> bool {
        self.code() & 0x8000 != 0
    }

    /// The field of its response: the same with the highest bit.
    fn response(self) -> Self {
        Self::read(self.code() | 0x8000)
    }
}

/// What is done first (PS3.7 section 9.1.1.1.5). Others are medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// 0000
    #[default]
    Medium,
    /// 0001
    High,
    /// 0002
    Low,
}

/// A command set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// (0000,0100)
    pub field: CommandField,
    /// (0000,0110), in requests.
    pub message_id: Option<u16>,
    /// (0000,0120), in responses.
    pub responded_to: Option<u16>,
    /// (0000,0002)
    pub affected_class: Option<Uid>,
    /// (0000,1000). A peer's: it may be anything, see [`Uid::is_valid`].
    pub affected_instance: Option<Uid>,
    /// (0000,0003)
    pub requested_class: Option<Uid>,
    /// (0000,1001)
    pub requested_instance: Option<Uid>,
    /// (0000,0800): a data set follows. Taken for none when the element is missing.
    pub has_data_set: bool,
    /// (0000,0900), in responses.
    pub status: Option<Status>,
    /// (0000,0700), in requests of the C services.
    pub priority: Option<Priority>,
    /// (0000,1002)
    pub event_type: Option<u16>,
    /// (0000,1008)
    pub action_type: Option<u16>,
    /// (0000,0902), at most 64 bytes. A peer's text: it may quote what it must not, so it is not for logs.
    pub error_comment: Option<String>,
    /// (0000,1030): who asked for it by C-MOVE.
    pub move_originator: Option<AeTitle>,
    /// (0000,1031)
    pub move_message_id: Option<u16>,
}

mod tag {
    use super::Tag;

    pub(super) const GROUP_LENGTH: Tag = Tag(0x0000);
    pub(super) const AFFECTED_CLASS: Tag = Tag(0x0002);
    pub(super) const REQUESTED_CLASS: Tag = Tag(0x0003);
    pub(super) const FIELD: Tag = Tag(0x0100);
    pub(super) const MESSAGE_ID: Tag = Tag(0x0110);
    pub(super) const RESPONDED_TO: Tag = Tag(0x0120);
    pub(super) const PRIORITY: Tag = Tag(0x0700);
    pub(super) const DATA_SET_TYPE: Tag = Tag(0x0800);
    pub(super) const STATUS: Tag = Tag(0x0900);
    pub(super) const ERROR_COMMENT: Tag = Tag(0x0902);
    pub(super) const AFFECTED_INSTANCE: Tag = Tag(0x1000);
    pub(super) const REQUESTED_INSTANCE: Tag = Tag(0x1001);
    pub(super) const EVENT_TYPE: Tag = Tag(0x1002);
    pub(super) const ACTION_TYPE: Tag = Tag(0x1008);
    pub(super) const MOVE_ORIGINATOR: Tag = Tag(0x1030);
    pub(super) const MOVE_MESSAGE_ID: Tag = Tag(0x1031);
}

/// (0000,0800) for: no data set.
const NO_DATA_SET: u16 = 0x0101;
/// And for: there is one. Any other value than [`NO_DATA_SET`] says so.
const DATA_SET: u16 = 0x0001;
/// The action "Request Storage Commitment" (PS3.4 annex J.3.2).
pub const REQUEST_COMMITMENT: u16 = 1;
/// The event "all of them are committed" (PS3.4 annex J.3.3).
pub const EVENT_COMMITTED: u16 = 1;
/// The event "some of them are not".
pub const EVENT_FAILURES: u16 = 2;

impl Command {
    fn of(field: CommandField) -> Self {
        Self {
            field,
            message_id: None,
            responded_to: None,
            affected_class: None,
            affected_instance: None,
            requested_class: None,
            requested_instance: None,
            has_data_set: false,
            status: None,
            priority: None,
            event_type: None,
            action_type: None,
            error_comment: None,
            move_originator: None,
            move_message_id: None,
        }
    }

    /// C-ECHO-RQ.
    pub fn echo_request(message_id: u16) -> Self {
        let affected_class = Some(VERIFICATION);
        Self { message_id: Some(message_id), affected_class, ..Self::of(CommandField::EchoRequest) }
    }

    /// C-STORE-RQ; the instance's data set follows it.
    pub fn store_request(message_id: u16, class: Uid, instance: Uid) -> Self {
        Self {
            message_id: Some(message_id),
            affected_class: Some(class),
            affected_instance: Some(instance),
            has_data_set: true,
            priority: Some(Priority::Medium),
            ..Self::of(CommandField::StoreRequest)
        }
    }

    /// N-ACTION-RQ for storage commitment; the action information follows it.
    pub fn commitment_request(message_id: u16) -> Self {
        Self {
            message_id: Some(message_id),
            requested_class: Some(STORAGE_COMMITMENT),
            requested_instance: Some(STORAGE_COMMITMENT_INSTANCE),
            has_data_set: true,
            action_type: Some(REQUEST_COMMITMENT),
            ..Self::of(CommandField::ActionRequest)
        }
    }

    /// N-EVENT-REPORT-RQ for storage commitment; the event information follows it.
    pub fn commitment_report(message_id: u16, failures: bool) -> Self {
        Self {
            message_id: Some(message_id),
            affected_class: Some(STORAGE_COMMITMENT),
            affected_instance: Some(STORAGE_COMMITMENT_INSTANCE),
            has_data_set: true,
            event_type: Some(if failures { EVENT_FAILURES } else { EVENT_COMMITTED }),
            ..Self::of(CommandField::EventReportRequest)
        }
    }

    /// The response to this request, without a data set: of the same class and instance, event and action.
    pub fn response(&self, status: Status) -> Self {
        Self {
            responded_to: Some(self.message_id.unwrap_or_default()),
            affected_class: self.affected_class.clone().or_else(|| self.requested_class.clone()),
            affected_instance: self.affected_instance.clone().or_else(|| self.requested_instance.clone()),
            status: Some(status),
            event_type: self.event_type,
            action_type: self.action_type,
            ..Self::of(self.field.response())
        }
    }

    /// The same with an error comment, cut to what it may have. No patient data may be in it.
    #[must_use]
    pub fn with_comment(self, comment: &str) -> Self {
        Self { error_comment: Some(comment.chars().take(COMMENT_BYTES_MAX).collect()), ..self }
    }

    /// Reads a whole command set.
    ///
    /// # Errors
    /// [`CommandError::TooLong`], [`CommandError::Truncated`], [`CommandError::NoField`].
    pub fn read(bytes: &[u8]) -> Result<Self, CommandError> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::TooLong);
        }
        let (mut command, mut field, mut rest) = (Self::of(CommandField::Other(0)), None, bytes);
        while !rest.is_empty() {
            let Step::Header(header) = element::read(Encoding::Implicit, rest) else {
                return Err(CommandError::Truncated);
            };
            let value = rest.get(header.bytes..).ok_or(CommandError::Truncated)?;
            let length = usize::try_from(header.length).map_err(|_| CommandError::Truncated)?;
            let (value, after) = value.split_at_checked(length).ok_or(CommandError::Truncated)?;
            rest = after;
            if header.tag == tag::FIELD {
                field = number(value).map(CommandField::read);
            } else {
                command.take(header.tag, value);
            }
        }
        Ok(Self { field: field.ok_or(CommandError::NoField)?, ..command })
    }

    fn take(&mut self, tag: Tag, value: &[u8]) {
        match tag {
            tag::AFFECTED_CLASS => self.affected_class = uid(value),
            tag::REQUESTED_CLASS => self.requested_class = uid(value),
            tag::MESSAGE_ID => self.message_id = number(value),
            tag::RESPONDED_TO => self.responded_to = number(value),
            tag::PRIORITY => self.priority = number(value).map(priority),
            tag::DATA_SET_TYPE => self.has_data_set = number(value).is_some_and(|kind| kind != NO_DATA_SET),
            tag::STATUS => self.status = number(value).map(Status),
            tag::ERROR_COMMENT => {
                let value = trim_end(value.get(..COMMENT_BYTES_MAX).unwrap_or(value));
                self.error_comment = Some(from_latin1(value));
            }
            tag::AFFECTED_INSTANCE => self.affected_instance = uid(value),
            tag::REQUESTED_INSTANCE => self.requested_instance = uid(value),
            tag::EVENT_TYPE => self.event_type = number(value),
            tag::ACTION_TYPE => self.action_type = number(value),
            tag::MOVE_ORIGINATOR => self.move_originator = Some(AeTitle::read(value)),
            tag::MOVE_MESSAGE_ID => self.move_message_id = number(value),
            _ => {}
        }
    }

    /// The command set as it goes out: elements in order, lengths even, group length right.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let mut text = |tag, vr, value: Option<Vec<u8>>| {
            if let Some(value) = value {
                element::write(Encoding::Implicit, (tag, vr), &value, &mut out);
            }
        };
        let number = |value: Option<u16>| value.map(|value| value.to_le_bytes().to_vec());
        let uid = |uid: &Option<Uid>| uid.as_ref().map(Uid::to_bytes);
        let data_set = if self.has_data_set { DATA_SET } else { NO_DATA_SET };
        text(tag::AFFECTED_CLASS, b"UI", uid(&self.affected_class));
        text(tag::REQUESTED_CLASS, b"UI", uid(&self.requested_class));
        text(tag::FIELD, b"US", number(Some(self.field.code())));
        text(tag::MESSAGE_ID, b"US", number(self.message_id));
        text(tag::RESPONDED_TO, b"US", number(self.responded_to));
        text(tag::PRIORITY, b"US", number(self.priority.map(priority_code)));
        text(tag::DATA_SET_TYPE, b"US", number(Some(data_set)));
        text(tag::STATUS, b"US", number(self.status.map(|status| status.0)));
        text(
            tag::ERROR_COMMENT,
            b"LO",
            self.error_comment.as_ref().map(|comment| to_latin1(comment).take(COMMENT_BYTES_MAX).collect()),
        );
        text(tag::AFFECTED_INSTANCE, b"UI", uid(&self.affected_instance));
        text(tag::REQUESTED_INSTANCE, b"UI", uid(&self.requested_instance));
        text(tag::EVENT_TYPE, b"US", number(self.event_type));
        text(tag::ACTION_TYPE, b"US", number(self.action_type));
        text(
            tag::MOVE_ORIGINATOR,
            b"AE",
            self.move_originator.as_ref().map(|title| to_latin1(title.as_str()).collect()),
        );
        text(tag::MOVE_MESSAGE_ID, b"US", number(self.move_message_id));
        let mut whole = Vec::with_capacity(out.len() + 12);
        let length = u32::try_from(out.len()).unwrap_or(u32::MAX).to_le_bytes();
        element::write(Encoding::Implicit, (tag::GROUP_LENGTH, b"UL"), &length, &mut whole);
        whole.extend_from_slice(&out);
        whole
    }
}

fn number(value: &[u8]) -> Option<u16> {
    Encoding::Implicit.read_number(value)
}

/// One that is empty or too long is as good as none.
fn uid(value: &[u8]) -> Option<Uid> {
    Uid::read(value).filter(|uid| !uid.is_empty())
}

fn priority(code: u16) -> Priority {
    match code {
        1 => Priority::High,
        2 => Priority::Low,
        _ => Priority::Medium,
    }
}

fn priority_code(priority: Priority) -> u16 {
    match priority {
        Priority::Medium => 0,
        Priority::High => 1,
        Priority::Low => 2,
    }
}

/// Gathers the pieces of a command set.
#[derive(Debug, Default)]
pub struct CommandAssembler {
    bytes: Vec<u8>,
    context: Option<u8>,
}

impl CommandAssembler {
    /// Takes the next piece of a command; after the last one, gives the command and is as new. Pieces of data sets are not for
    /// it: `None`.
    ///
    /// # Errors
    /// [`CommandError`]; the association is to be aborted, nothing more is to be pushed.
    pub fn push(&mut self, pdv: &Pdv<'_>) -> Result<Option<Command>, CommandError> {
        if !pdv.is_command {
            return Ok(None);
        }
        if self.context.is_some_and(|context| context != pdv.context) {
            return Err(CommandError::Context);
        }
        if self.bytes.len() + pdv.data.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::TooLong);
        }
        if pdv.is_last && self.bytes.is_empty() {
            self.context = None;
            return Command::read(pdv.data).map(Some);
        }
        self.context = Some(pdv.context);
        self.bytes.extend_from_slice(pdv.data);
        if !pdv.is_last {
            return Ok(None);
        }
        self.context = None;
        let bytes = std::mem::take(&mut self.bytes);
        Command::read(&bytes).map(Some)
    }

    /// Whether a command has begun and not ended: no piece of a data set may come now.
    pub fn is_in_command(&self) -> bool {
        self.context.is_some()
    }
}
