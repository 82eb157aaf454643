//! A-ASSOCIATE-RQ and A-ASSOCIATE-AC (PS3.8 sections 9.3.2 and 9.3.3, PS3.7 annex D.3.3), read and written by both sides.
//!
//! What is unknown is skipped, as the standard wants; what is missing is empty: whether that will do is decided by whoever
//! negotiates. A length that goes beyond what it is in, or more of anything than is taken, is an error. User identities are
//! secrets and never shown.

use std::fmt;

use super::dicom_values::{AE_TITLE_BYTES, APPLICATION_CONTEXT, AeTitle, Uid, from_latin1, to_latin1, trim_end};
use super::pdu::{Header, Kind, PduError};

/// Most presentation contexts: there are no more ids.
pub const CONTEXTS_MAX: usize = 128;
/// Most transfer syntaxes in a context: twice as many as the standard has.
pub const TRANSFER_SYNTAXES_MAX: usize = 128;
/// Most role selections.
pub const ROLES_MAX: usize = 256;
/// Bytes of the body before the first item.
pub const FIXED_BYTES: u32 = 68;
/// Longest implementation version name.
const VERSION_BYTES_MAX: usize = 16;

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

/// The user information item (PS3.7 annex D.3.3). Extended negotiations are skipped: storage needs none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInformation {
    /// Longest body of a P-DATA PDU that its sender takes; 0: no limit, also when it did not say.
    pub max_length: u32,
    /// Whose program it is.
    pub implementation_class: Option<Uid>,
    /// And which version; at most 16 bytes.
    pub implementation_version: Option<String>,
    /// Operations invoked and performed at a time; not there: one of each.
    pub async_window: Option<(u16, u16)>,
    /// Roles for SOP classes whose roles are not the usual ones.
    pub roles: Vec<Role>,
    /// Who the user is, in a request.
    pub identity: Option<UserIdentity>,
    /// The answer to that, in an accept; may be empty.
    pub identity_response: Option<Vec<u8>>,
}

/// Role selection (PS3.7 annex D.3.3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// For this SOP class.
    pub sop_class: Uid,
    /// The requestor is its user.
    pub scu: bool,
    /// The requestor is its provider.
    pub scp: bool,
}

/// User identity (PS3.7 annex D.3.3.7): both fields are secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct UserIdentity {
    /// 1 user name, 2 user name and passcode, 3 Kerberos, 4 SAML, 5 JSON web token.
    pub kind: u8,
    /// An accept must have a response.
    pub positive_response_requested: bool,
    /// User name, ticket, assertion or token.
    pub primary: Vec<u8>,
    /// Passcode.
    pub secondary: Vec<u8>,
}

impl fmt::Debug for UserIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, positive_response_requested, .. } = self;
        write!(f, "UserIdentity {{ kind: {kind}, positive_response_requested: {positive_response_requested}, .. }}")
    }
}

mod item {
    pub(super) const APPLICATION_CONTEXT: u8 = 0x10;
    pub(super) const PROPOSED_CONTEXT: u8 = 0x20;
    pub(super) const ANSWERED_CONTEXT: u8 = 0x21;
    pub(super) const ABSTRACT_SYNTAX: u8 = 0x30;
    pub(super) const TRANSFER_SYNTAX: u8 = 0x40;
    pub(super) const USER_INFORMATION: u8 = 0x50;
    pub(super) const MAX_LENGTH: u8 = 0x51;
    pub(super) const IMPLEMENTATION_CLASS: u8 = 0x52;
    pub(super) const ASYNC_WINDOW: u8 = 0x53;
    pub(super) const ROLE: u8 = 0x54;
    pub(super) const IMPLEMENTATION_VERSION: u8 = 0x55;
    pub(super) const IDENTITY: u8 = 0x58;
    pub(super) const IDENTITY_RESPONSE: u8 = 0x59;
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
        let (mut application_context, mut contexts, mut user) = (Uid::default(), Vec::new(), None);
        for found in Items::new(items) {
            let (kind, value) = found?;
            match kind {
                item::APPLICATION_CONTEXT => application_context = uid(value)?,
                item::PROPOSED_CONTEXT => {
                    let context = proposed(value)?;
                    let twice = contexts.iter().any(|other: &ProposedContext| other.id == context.id);
                    add(&mut contexts, context, (CONTEXTS_MAX, "presentation contexts"))?;
                    unique(twice, &contexts.last().map(|context| context.id))?;
                }
                item::USER_INFORMATION if user.is_none() => user = Some(UserInformation::read(value)?),
                _ => {}
            }
        }
        let Fixed { protocol_version, called, calling } = fixed;
        let user = user.unwrap_or_default();
        Ok(Self { protocol_version, called, calling, application_context, contexts, user })
    }

    /// The whole PDU.
    pub fn bytes(&self) -> Vec<u8> {
        let fixed = Fixed {
            protocol_version: self.protocol_version,
            called: self.called.clone(),
            calling: self.calling.clone(),
        };
        whole(Kind::AssociateRequest, &fixed, |out| {
            write_item(item::APPLICATION_CONTEXT, out, |out| out.extend(self.application_context.to_bytes()));
            for context in &self.contexts {
                write_item(item::PROPOSED_CONTEXT, out, |out| {
                    out.extend_from_slice(&[context.id, 0, 0, 0]);
                    write_item(item::ABSTRACT_SYNTAX, out, |out| out.extend(context.abstract_syntax.to_bytes()));
                    for syntax in &context.transfer_syntaxes {
                        write_item(item::TRANSFER_SYNTAX, out, |out| out.extend(syntax.to_bytes()));
                    }
                });
            }
            write_item(item::USER_INFORMATION, out, |out| self.user.write(out));
        })
    }

    /// An accept of this request without contexts: the acceptor puts them in, and says of itself what it wants.
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
        let (mut application_context, mut contexts, mut user) = (Uid::default(), Vec::new(), None);
        for found in Items::new(items) {
            let (kind, value) = found?;
            match kind {
                item::APPLICATION_CONTEXT => application_context = uid(value)?,
                item::ANSWERED_CONTEXT => {
                    let context = answered(value)?;
                    let twice = contexts.iter().any(|other: &AnsweredContext| other.id == context.id);
                    add(&mut contexts, context, (CONTEXTS_MAX, "presentation contexts"))?;
                    unique(twice, &contexts.last().map(|context| context.id))?;
                }
                item::USER_INFORMATION if user.is_none() => user = Some(UserInformation::read(value)?),
                _ => {}
            }
        }
        let Fixed { protocol_version, called, calling } = fixed;
        let user = user.unwrap_or_default();
        Ok(Self { protocol_version, called, calling, application_context, contexts, user })
    }

    /// The whole PDU.
    pub fn bytes(&self) -> Vec<u8> {
        let fixed = Fixed {
            protocol_version: self.protocol_version,
            called: self.called.clone(),
            calling: self.calling.clone(),
        };
        whole(Kind::AssociateAccept, &fixed, |out| {
            write_item(item::APPLICATION_CONTEXT, out, |out| out.extend(self.application_context.to_bytes()));
            for context in &self.contexts {
                write_item(item::ANSWERED_CONTEXT, out, |out| {
                    out.extend_from_slice(&[context.id, 0, context.result.code(), 0]);
                    if let Some(syntax) = &context.transfer_syntax {
                        write_item(item::TRANSFER_SYNTAX, out, |out| out.extend(syntax.to_bytes()));
                    }
                });
            }
            write_item(item::USER_INFORMATION, out, |out| self.user.write(out));
        })
    }
}

impl UserInformation {
    fn read(items: &[u8]) -> Result<Self, PduError> {
        let mut user = Self::default();
        for found in Items::new(items) {
            let (kind, value) = found?;
            match kind {
                item::MAX_LENGTH => {
                    user.max_length =
                        value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(PduError::Item(kind))?
                }
                item::IMPLEMENTATION_CLASS => user.implementation_class = Some(uid(value)?),
                item::IMPLEMENTATION_VERSION => {
                    let value = trim_end(value);
                    user.implementation_version = Some(from_latin1(value.get(..VERSION_BYTES_MAX).unwrap_or(value)));
                }
                item::ASYNC_WINDOW => {
                    let &[a, b, c, d] = value.first_chunk().ok_or(PduError::Item(kind))?;
                    user.async_window = Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
                }
                item::ROLE => add(&mut user.roles, role(value)?, (ROLES_MAX, "role selections"))?,
                item::IDENTITY => user.identity = Some(identity(value).ok_or(PduError::Item(kind))?),
                item::IDENTITY_RESPONSE => {
                    let (response, _) = counted(value).ok_or(PduError::Item(kind))?;
                    user.identity_response = Some(response.to_vec());
                }
                _ => {}
            }
        }
        Ok(user)
    }

    /// In the order of their types, as everybody sends them.
    fn write(&self, out: &mut Vec<u8>) {
        write_item(item::MAX_LENGTH, out, |out| out.extend_from_slice(&self.max_length.to_be_bytes()));
        if let Some(class) = &self.implementation_class {
            write_item(item::IMPLEMENTATION_CLASS, out, |out| out.extend(class.to_bytes()));
        }
        if let Some((invoked, performed)) = self.async_window {
            let window = [invoked.to_be_bytes(), performed.to_be_bytes()].concat();
            write_item(item::ASYNC_WINDOW, out, |out| out.extend_from_slice(&window));
        }
        for role in &self.roles {
            write_item(item::ROLE, out, |out| {
                write_counted(&role.sop_class.to_bytes(), out);
                out.extend_from_slice(&[role.scu.into(), role.scp.into()]);
            });
        }
        if let Some(version) = &self.implementation_version {
            write_item(item::IMPLEMENTATION_VERSION, out, |out| out.extend(to_latin1(version).take(VERSION_BYTES_MAX)));
        }
        if let Some(identity) = &self.identity {
            write_item(item::IDENTITY, out, |out| {
                out.extend_from_slice(&[identity.kind, identity.positive_response_requested.into()]);
                write_counted(&identity.primary, out);
                write_counted(&identity.secondary, out);
            });
        }
        if let Some(response) = &self.identity_response {
            write_item(item::IDENTITY_RESPONSE, out, |out| write_counted(response, out));
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

/// Items and sub-items: type, a byte that means nothing, length of two bytes, value. Nothing follows an error.
struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Items<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<(u8, &'a [u8]), PduError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.rest);
        let (&kind, after) = bytes.split_first()?;
        let found = after.get(1..).and_then(counted);
        Some(found.map_or(Err(PduError::Item(kind)), |(value, rest)| {
            self.rest = rest;
            Ok((kind, value))
        }))
    }
}

/// A value behind its length of two bytes, and what follows it.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

fn uid(value: &[u8]) -> Result<Uid, PduError> {
    Uid::read(value).ok_or(PduError::Uid)
}

fn add<T>(list: &mut Vec<T>, value: T, (limit, what): (usize, &'static str)) -> Result<(), PduError> {
    if list.len() >= limit {
        return Err(PduError::TooMany(what));
    }
    list.push(value);
    Ok(())
}

fn unique(twice: bool, id: &Option<u8>) -> Result<(), PduError> {
    if twice { Err(PduError::ContextTwice(id.unwrap_or_default())) } else { Ok(()) }
}

fn proposed(value: &[u8]) -> Result<ProposedContext, PduError> {
    let (&[id, ..], items) = value.split_first_chunk::<4>().ok_or(PduError::Item(item::PROPOSED_CONTEXT))?;
    let mut context = ProposedContext { id, abstract_syntax: Uid::default(), transfer_syntaxes: Vec::new() };
    for found in Items::new(items) {
        match found? {
            (item::ABSTRACT_SYNTAX, value) => context.abstract_syntax = uid(value)?,
            (item::TRANSFER_SYNTAX, value) => {
                add(&mut context.transfer_syntaxes, uid(value)?, (TRANSFER_SYNTAXES_MAX, "transfer syntaxes"))?
            }
            _ => {}
        }
    }
    Ok(context)
}

fn answered(value: &[u8]) -> Result<AnsweredContext, PduError> {
    let (&[id, _, result, _], items) = value.split_first_chunk::<4>().ok_or(PduError::Item(item::ANSWERED_CONTEXT))?;
    let result = ContextResult::read(result);
    let mut transfer_syntax = None;
    for found in Items::new(items) {
        match (found?, &transfer_syntax) {
            ((item::TRANSFER_SYNTAX, value), None) => transfer_syntax = Some(uid(value)?),
            _ => {}
        }
    }
    Ok(AnsweredContext { id, result, transfer_syntax })
}

fn role(value: &[u8]) -> Result<Role, PduError> {
    let (class, rest) = counted(value).ok_or(PduError::Item(item::ROLE))?;
    let &[scu, scp] = rest.first_chunk().ok_or(PduError::Item(item::ROLE))?;
    Ok(Role { sop_class: uid(class)?, scu: scu == 1, scp: scp == 1 })
}

fn identity(value: &[u8]) -> Option<UserIdentity> {
    let (&[kind, response], rest) = value.split_first_chunk::<2>()?;
    let (primary, rest) = counted(rest)?;
    // The second field may only be there for kind 2; some leave out its length as well.
    let (secondary, _) = if rest.is_empty() { (rest, rest) } else { counted(rest)? };
    let (primary, secondary) = (primary.to_vec(), secondary.to_vec());
    Some(UserIdentity { kind, positive_response_requested: response == 1, primary, secondary })
}

fn whole(kind: Kind, fixed: &Fixed, items: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = Vec::with_capacity(1024);
    body.extend_from_slice(&fixed.protocol_version.to_be_bytes());
    body.extend_from_slice(&[0; 2]);
    body.extend_from_slice(&fixed.called.field());
    body.extend_from_slice(&fixed.calling.field());
    body.extend_from_slice(&[0; 32]);
    items(&mut body);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&Header { kind, length }.bytes()[..], &body].concat()
}

/// Writes an item, whose value `write` appends. What is over 65,535 bytes is cut off there: nothing that we send comes near it.
fn write_item(kind: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[kind, 0, 0, 0]);
    let start = out.len();
    write(out);
    out.truncate(start + usize::from(u16::MAX));
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    if let Some(place) = out.get_mut(start - 2..start) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

fn write_counted(value: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value.get(..usize::from(length)).unwrap_or(value));
}
