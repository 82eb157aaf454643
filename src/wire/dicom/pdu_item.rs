//! Items of A-ASSOCIATE PDUs (PS3.8 section 9.3.2.1 and following): a type, a byte that means nothing, a length of two bytes, a
//! value, which may hold items again. No item is trusted to end within what it is in.

use super::pdu::PduError;
use super::values::Uid;

/// Types of items (PS3.8 tables 9-11 to 9-19, PS3.7 annex D.3.3).
pub(super) mod kind {
    pub const APPLICATION_CONTEXT: u8 = 0x10;
    pub const PROPOSED_CONTEXT: u8 = 0x20;
    pub const ANSWERED_CONTEXT: u8 = 0x21;
    pub const ABSTRACT_SYNTAX: u8 = 0x30;
    pub const TRANSFER_SYNTAX: u8 = 0x40;
    pub const USER_INFORMATION: u8 = 0x50;
    pub const MAX_LENGTH: u8 = 0x51;
    pub const IMPLEMENTATION_CLASS: u8 = 0x52;
    pub const ASYNC_WINDOW: u8 = 0x53;
    pub const ROLE: u8 = 0x54;
    pub const IMPLEMENTATION_VERSION: u8 = 0x55;
    pub const IDENTITY: u8 = 0x58;
    pub const IDENTITY_RESPONSE: u8 = 0x59;
}

/// Items and sub-items: type, a byte that means nothing, length of two bytes, value. Nothing follows an error.
pub(super) struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Items<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
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
pub(super) fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(u16::from_be_bytes(*length).into())
}

pub(super) fn uid(value: &[u8]) -> Result<Uid, PduError> {
    Uid::read(value).ok_or(PduError::Uid)
}

pub(super) fn add<T>(list: &mut Vec<T>, value: T, (limit, what): (usize, &'static str)) -> Result<(), PduError> {
    if list.len() >= limit {
        return Err(PduError::TooMany(what));
    }
    list.push(value);
    Ok(())
}

/// Writes an item, whose value `write` appends. What is over 65,535 bytes is cut off there: nothing that we send comes near it.
pub(super) fn write_item(kind: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[kind, 0, 0, 0]);
    let start = out.len();
    write(out);
    out.truncate(start + usize::from(u16::MAX));
    let length = u16::try_from(out.len() - start).unwrap_or(u16::MAX);
    if let Some(place) = out.get_mut(start - 2..start) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

pub(super) fn write_counted(value: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value.get(..usize::from(length)).unwrap_or(value));
}
