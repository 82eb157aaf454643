//! A-ASSOCIATE-RQ and A-ASSOCIATE-AC (PS3.8 sections 9.3.2 and 9.3.3), read and written by both sides.
//!
//! What is unknown is skipped, as the standard wants; what is missing is empty: whether that will do is decided by whoever
//! negotiates. A length that goes beyond what it is in, or more of anything than is taken, is an error.

use std::fmt;

use super::pdu::{Header, Kind, PduError};
use super::pdu_item::{Items, add, kind, uid, write_item};
pub use super::pdu_user::{ROLES_MAX, Role, UserIdentity, UserInformation};
use super::values::{AE_TITLE_BYTES, APPLICATION_CONTEXT, AeTitle, Uid};

/// Most presentation contexts: there are no more ids.
pub const CONTEXTS_MAX: usize = 128;
/// Most transfer syntaxes in a context: twice as many as the standard has.
pub const TRANSFER_SYNTAXES_MAX: usize = 128;
/// Bytes of the body before the first item.
pub const FIXED_BYTES: u32 = 68;

/// What a requestor proposes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociateRequest {
    /// A bit for each version; see [`AssociateRequest::speaks_version_1`].
    pub protocol_version: u16,
    /// Who is called.
    pub called: AeTitle,
    /// Who calls.
    pub calling: AeTitle,
    /// Empty when the peer sent none.
    pub application_context: Uid,
    /// In the order in which they came.
    pub contexts: Vec<ProposedContext>,
    /// Limits, names and roles.
    pub user: UserInformation,
}

/// A presentation context that is proposed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposedContext {
    /// An odd number, unless the peer errs.
    pub id: u8,
    /// A SOP class; empty when the peer sent none.
    pub abstract_syntax: Uid,
    /// In the peer's order; may be empty.
    pub transfer_syntaxes: Vec<Uid>,
}

/// What an acceptor answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociateAccept {
    /// A bit for each version; 1 is the one there is.
    pub protocol_version: u16,
    /// Sent back as it came; not to be tested.
    pub called: AeTitle,
    /// Sent back as it came; not to be tested.
    pub calling: AeTitle,
    /// Empty when the peer sent none.
    pub application_context: Uid,
    /// One for each that was proposed.
    pub contexts: Vec<AnsweredContext>,
    /// Limits, names and roles.
    pub user: UserInformation,
}

/// The answer to a proposed context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredContext {
    /// Of the proposal.
    pub id: u8,
    /// Accepted or why not.
    pub result: ContextResult,
    /// The one that was chosen. Of a rejected context it is not significant, and may not be there.
    pub transfer_syntax: Option<Uid>,
}

/// Accepted, or why not (PS3.8 table 9-18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextResult {
    /// 0
    Accepted,
    /// 1: the application does not want it.
    UserRejection,
    /// 2
    NoReason,
    /// 3: the SOP class is not supported.
    AbstractSyntax,
    /// 4: none of the transfer syntaxes is supported.
    TransferSyntaxes,
    /// What the standard does not know.
    Other(u8),
}

impl ContextResult {
    fn read(code: u8) -> Self {
        match code {
            0 => Self::Accepted,
            1 => Self::UserRejection,
            2 => Self::NoReason,
            3 => Self::AbstractSyntax,
            4 => Self::TransferSyntaxes,
            other => Self::Other(other),
        }
    }

    /// Whether it says of the class or the syntax that it is not supported. Anything else may be another tomorrow.
    pub fn is_unsupported(self) -> bool {
        matches!(self, Self::AbstractSyntax | Self::TransferSyntaxes)
    }

    fn code(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::UserRejection => 1,
            Self::NoReason => 2,
            Self::AbstractSyntax => 3,
            Self::TransferSyntaxes => 4,
            Self::Other(code) => code,
        }
    }
}

/// In the standard's words.
impl fmt::Display for ContextResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::UserRejection => f.write_str("rejected by the application"),
            Self::NoReason => f.write_str("rejected without a reason"),
            Self::AbstractSyntax => f.write_str("SOP class not supported"),
            Self::TransferSyntaxes => f.write_str("transfer syntaxes not supported"),
            Self::Other(code) => write!(f, "result {code}"),
        }
    }
}

impl AssociateRequest {
    /// Whether the requestor speaks the one version there is: only bit 0 counts (PS3.8 table 9-11).
    pub fn speaks_version_1(&self) -> bool {
        self.protocol_version & 1 == 1
    }

    /// Reads the body of an A-ASSOCIATE-RQ.
    ///
    /// # Errors
    /// Lengths and counts that can't be; see [`PduError`].
    pub fn read(body: &[u8]) -> Result<Self, PduError> {
        let (fixed, items) = Fixed::read(body, Kind::AssociateRequest)?;
        let Variable { application_context, contexts, user } = read_items(items, kind::PROPOSED_CONTEXT, proposed)?;
        let Fixed { protocol_version, called, calling } = fixed;
        Ok(Self { protocol_version, called, calling, application_context, contexts, user })
    }

    /// The whole PDU.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { protocol_version, called, calling, .. } = self.clone();
        let contexts = |out: &mut Vec<u8>| {
            for context in &self.contexts {
                write_item(kind::PROPOSED_CONTEXT, out, |out| context.write(out));
            }
        };
        let fixed = Fixed { protocol_version, called, calling };
        whole(Kind::AssociateRequest, &fixed, (&self.application_context, &self.user), contexts)
    }

    /// The accept of this request, with the acceptor's answers to its contexts and what the acceptor says of itself.
    pub fn accept(&self, contexts: Vec<AnsweredContext>, user: UserInformation) -> AssociateAccept {
        AssociateAccept {
            protocol_version: 1,
            called: self.called.clone(),
            calling: self.calling.clone(),
            application_context: APPLICATION_CONTEXT,
            contexts,
            user,
        }
    }
}

impl AssociateAccept {
    /// Reads the body of an A-ASSOCIATE-AC.
    ///
    /// # Errors
    /// Lengths and counts that can't be; see [`PduError`].
    pub fn read(body: &[u8]) -> Result<Self, PduError> {
        let (fixed, items) = Fixed::read(body, Kind::AssociateAccept)?;
        let Variable { application_context, contexts, user } = read_items(items, kind::ANSWERED_CONTEXT, answered)?;
        let Fixed { protocol_version, called, calling } = fixed;
        Ok(Self { protocol_version, called, calling, application_context, contexts, user })
    }

    /// The whole PDU.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { protocol_version, called, calling, .. } = self.clone();
        let contexts = |out: &mut Vec<u8>| {
            for context in &self.contexts {
                write_item(kind::ANSWERED_CONTEXT, out, |out| context.write(out));
            }
        };
        let fixed = Fixed { protocol_version, called, calling };
        whole(Kind::AssociateAccept, &fixed, (&self.application_context, &self.user), contexts)
    }
}

impl ProposedContext {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.id, 0, 0, 0]);
        write_item(kind::ABSTRACT_SYNTAX, out, |out| out.extend(self.abstract_syntax.to_bytes()));
        for syntax in &self.transfer_syntaxes {
            write_item(kind::TRANSFER_SYNTAX, out, |out| out.extend(syntax.to_bytes()));
        }
    }
}

impl AnsweredContext {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.id, 0, self.result.code(), 0]);
        if let Some(syntax) = &self.transfer_syntax {
            write_item(kind::TRANSFER_SYNTAX, out, |out| out.extend(syntax.to_bytes()));
        }
    }
}

/// What both PDUs begin with.
struct Fixed {
    protocol_version: u16,
    called: AeTitle,
    calling: AeTitle,
}

impl Fixed {
    fn read(body: &[u8], kind: Kind) -> Result<(Self, &[u8]), PduError> {
        let cut = || {
            let (version, rest) = body.split_first_chunk::<2>()?;
            let (_, rest) = rest.split_first_chunk::<2>()?;
            let (called, rest) = rest.split_first_chunk::<AE_TITLE_BYTES>()?;
            let (calling, rest) = rest.split_first_chunk::<AE_TITLE_BYTES>()?;
            let (_, items) = rest.split_first_chunk::<32>()?;
            let (called, calling) = (AeTitle::read(called), AeTitle::read(calling));
            Some((Self { protocol_version: u16::from_be_bytes(*version), called, calling }, items))
        };
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        cut().ok_or(PduError::Length { kind, length })
    }
}

/// And what follows, with the contexts of the one or the other.
struct Variable<C> {
    application_context: Uid,
    contexts: Vec<C>,
    user: UserInformation,
}

/// Reads items; `context_kind` are contexts, which `read_context` makes of their values. Of two items of which there may be one,
/// the first counts.
fn read_items<C>(
    items: &[u8],
    context_kind: u8,
    read_context: fn(u8, &[u8]) -> Result<C, PduError>,
) -> Result<Variable<C>, PduError> {
    let (mut application_context, mut contexts, mut user) = (None, Vec::new(), None);
    let mut ids = [false; 256];
    for found in Items::new(items) {
        match found? {
            (kind::APPLICATION_CONTEXT, value) if application_context.is_none() => {
                application_context = Some(uid(value)?);
            }
            (kind::USER_INFORMATION, value) if user.is_none() => user = Some(UserInformation::read(value)?),
            (other, value) if other == context_kind => {
                let (id, _) = value.split_first().ok_or(PduError::Item(context_kind))?;
                if ids.get_mut(usize::from(*id)).is_some_and(|known| std::mem::replace(known, true)) {
                    return Err(PduError::ContextTwice(*id));
                }
                add(&mut contexts, read_context(*id, value)?, (CONTEXTS_MAX, "presentation contexts"))?;
            }
            _ => {}
        }
    }
    let (application_context, user) = (application_context.unwrap_or_default(), user.unwrap_or_default());
    Ok(Variable { application_context, contexts, user })
}

fn proposed(id: u8, value: &[u8]) -> Result<ProposedContext, PduError> {
    let items = value.get(4..).ok_or(PduError::Item(kind::PROPOSED_CONTEXT))?;
    let (mut abstract_syntax, mut transfer_syntaxes) = (None, Vec::new());
    for found in Items::new(items) {
        match found? {
            (kind::ABSTRACT_SYNTAX, value) if abstract_syntax.is_none() => abstract_syntax = Some(uid(value)?),
            (kind::TRANSFER_SYNTAX, value) => {
                add(&mut transfer_syntaxes, uid(value)?, (TRANSFER_SYNTAXES_MAX, "transfer syntaxes"))?;
            }
            _ => {}
        }
    }
    Ok(ProposedContext { id, abstract_syntax: abstract_syntax.unwrap_or_default(), transfer_syntaxes })
}

fn answered(id: u8, value: &[u8]) -> Result<AnsweredContext, PduError> {
    let (&[_, _, result, _], items) = value.split_first_chunk().ok_or(PduError::Item(kind::ANSWERED_CONTEXT))?;
    let mut transfer_syntax = None;
    for found in Items::new(items) {
        match found? {
            (kind::TRANSFER_SYNTAX, value) if transfer_syntax.is_none() => transfer_syntax = Some(uid(value)?),
            _ => {}
        }
    }
    Ok(AnsweredContext { id, result: ContextResult::read(result), transfer_syntax })
}

fn whole(
    kind: Kind,
    fixed: &Fixed,
    (application_context, user): (&Uid, &UserInformation),
    write_contexts: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut body = Vec::with_capacity(1024);
    body.extend_from_slice(&fixed.protocol_version.to_be_bytes());
    body.extend_from_slice(&[0; 2]);
    body.extend_from_slice(&fixed.called.field());
    body.extend_from_slice(&fixed.calling.field());
    body.extend_from_slice(&[0; 32]);
    write_item(kind::APPLICATION_CONTEXT, &mut body, |out| out.extend(application_context.to_bytes()));
    write_contexts(&mut body);
    write_item(kind::USER_INFORMATION, &mut body, |out| user.write(out));
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&Header { kind, length }.bytes()[..], &body].concat()
}
