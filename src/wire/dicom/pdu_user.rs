//! The user information of A-ASSOCIATE PDUs (PS3.7 annex D.3.3): limits, names, roles and identities.
//!
//! Unknown sub-items are skipped. User identities are secrets: nothing here shows them.

use std::fmt;

use super::pdu::PduError;
use super::pdu_item::{Items, add, counted, kind, uid, write_counted, write_item};
use super::values::{Uid, from_latin1, to_latin1, trim_end};

/// Most role selections.
pub const ROLES_MAX: usize = 256;
/// Longest implementation version name.
const VERSION_BYTES_MAX: usize = 16;

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

impl UserInformation {
    pub(super) fn read(items: &[u8]) -> Result<Self, PduError> {
        let mut user = Self::default();
        for found in Items::new(items) {
            let (found, value) = found?;
            match found {
                kind::MAX_LENGTH => {
                    user.max_length =
                        value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(PduError::Item(found))?
                }
                kind::IMPLEMENTATION_CLASS => user.implementation_class = Some(uid(value)?),
                kind::IMPLEMENTATION_VERSION => {
                    let value = trim_end(value.get(..VERSION_BYTES_MAX).unwrap_or(value));
                    user.implementation_version = Some(from_latin1(value));
                }
                kind::ASYNC_WINDOW => {
                    let &[a, b, c, d] = value.first_chunk().ok_or(PduError::Item(found))?;
                    user.async_window = Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
                }
                kind::ROLE => add(&mut user.roles, role(value)?, (ROLES_MAX, "role selections"))?,
                kind::IDENTITY => user.identity = Some(identity(value).ok_or(PduError::Item(found))?),
                kind::IDENTITY_RESPONSE => {
                    let (response, _) = counted(value).ok_or(PduError::Item(found))?;
                    user.identity_response = Some(response.to_vec());
                }
                _ => {}
            }
        }
        Ok(user)
    }

    /// In the order of their types, as everybody sends them.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_item(kind::MAX_LENGTH, out, |out| out.extend_from_slice(&self.max_length.to_be_bytes()));
        if let Some(class) = &self.implementation_class {
            write_item(kind::IMPLEMENTATION_CLASS, out, |out| out.extend(class.to_bytes()));
        }
        if let Some((invoked, performed)) = self.async_window {
            let window = [invoked.to_be_bytes(), performed.to_be_bytes()].concat();
            write_item(kind::ASYNC_WINDOW, out, |out| out.extend_from_slice(&window));
        }
        for role in &self.roles {
            write_item(kind::ROLE, out, |out| {
                write_counted(&role.sop_class.to_bytes(), out);
                out.extend_from_slice(&[role.scu.into(), role.scp.into()]);
            });
        }
        if let Some(version) = &self.implementation_version {
            write_item(kind::IMPLEMENTATION_VERSION, out, |out| out.extend(to_latin1(version).take(VERSION_BYTES_MAX)));
        }
        if let Some(identity) = &self.identity {
            write_item(kind::IDENTITY, out, |out| {
                out.extend_from_slice(&[identity.kind, identity.positive_response_requested.into()]);
                write_counted(&identity.primary, out);
                write_counted(&identity.secondary, out);
            });
        }
        if let Some(response) = &self.identity_response {
            write_item(kind::IDENTITY_RESPONSE, out, |out| write_counted(response, out));
        }
    }
}

fn role(value: &[u8]) -> Result<Role, PduError> {
    let (class, rest) = counted(value).ok_or(PduError::Item(kind::ROLE))?;
    let &[scu, scp] = rest.first_chunk().ok_or(PduError::Item(kind::ROLE))?;
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
