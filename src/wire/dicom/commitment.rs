//! The data sets of storage commitment (PS3.4 annex J, tables J.3-1 and J.3-2): which instances one side asks the other to answer
//! for, and the answer. Read and written for both sides.
//!
//! Reading is iterative and bounded: at most [`REFERENCES_MAX`] instances are taken, nothing is allocated by a claimed length,
//! and what is of no interest is skipped to any depth.

use super::dimse_status::Status;
use super::element::{self as element, Encoding, Header, ITEM, ITEM_END, SEQUENCE_END, Step, Tag, UNDEFINED};
use super::values::Uid;

/// Most instances in one transaction.
pub const REFERENCES_MAX: usize = 20_000;
/// Longest data set that is worth gathering: that many instances with all they can have, in bytes.
pub const DATA_SET_BYTES_MAX: usize = 8 << 20;

const CLASS: Tag = Tag(0x0008_1150);
const INSTANCE: Tag = Tag(0x0008_1155);
const TRANSACTION: Tag = Tag(0x0008_1195);
const FAILURE_REASON: Tag = Tag(0x0008_1197);
const FAILED: Tag = Tag(0x0008_1198);
const REFERENCED: Tag = Tag(0x0008_1199);

/// What is wrong with such a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitmentError {
    /// No transaction UID: it can't be answered for.
    #[error("there is no usable transaction UID")]
    NoTransaction,
    /// Over [`REFERENCES_MAX`].
    #[error("more than {REFERENCES_MAX} instances in one transaction")]
    TooMany,
    /// An item without an instance UID that can be used.
    #[error("an instance without a usable UID")]
    NoInstance,
    /// Lengths or elements that can't be.
    #[error("the data set can't be read")]
    Nonsense,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// (0008,1150); empty when it was not there.
    pub sop_class: Uid,
    /// (0008,1155)
    pub sop_instance: Uid,
}

/// Action information: take these into safe keeping (N-ACTION, action 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// (0008,1195): the requestor's name for this request.
    pub transaction: Uid,
    /// (0008,1199)
    pub references: Vec<Reference>,
}

/// Event information: how it went (N-EVENT-REPORT, event 1 or 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// (0008,1195), of the request.
    pub transaction: Uid,
    /// (0008,1199): those that are safe.
    pub committed: Vec<Reference>,
    /// (0008,1198): those that are not, and why (0008,1197).
    pub failed: Vec<(Reference, Status)>,
}

impl Request {
    /// Reads action information.
    ///
    /// # Errors
    /// [`CommitmentError`].
    pub fn read(encoding: Encoding, data_set: &[u8]) -> Result<Self, CommitmentError> {
        let Report { transaction, committed, .. } = Report::read(encoding, data_set)?;
        Ok(Self { transaction, references: committed })
    }

    /// The data set.
    pub fn bytes(&self, encoding: Encoding) -> Vec<u8> {
        let mut out = transaction(encoding, &self.transaction);
        write_items(encoding, REFERENCED, &mut out, self.references.iter().map(|reference| (reference, None)));
        out
    }
}

impl Report {
    /// Reads event information. A failure without a reason is a processing failure.
    ///
    /// # Errors
    /// [`CommitmentError`].
    pub fn read(encoding: Encoding, data_set: &[u8]) -> Result<Self, CommitmentError> {
        let mut reader = Reader::new(encoding, data_set);
        while reader.step()? {}
        let transaction = reader.transaction.filter(|uid| !uid.is_empty()).ok_or(CommitmentError::NoTransaction)?;
        Ok(Self { transaction, committed: reader.committed, failed: reader.failed })
    }

    /// The data set. A list that is empty is left out: it may only be there with items.
    pub fn bytes(&self, encoding: Encoding) -> Vec<u8> {
        let mut out = transaction(encoding, &self.transaction);
        let failed = self.failed.iter().map(|(reference, reason)| (reference, Some(*reason)));
        write_items(encoding, FAILED, &mut out, failed);
        write_items(encoding, REFERENCED, &mut out, self.committed.iter().map(|reference| (reference, None)));
        out
    }
}

fn transaction(encoding: Encoding, uid: &Uid) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    element::write(encoding, (TRANSACTION, b"UI"), &uid.to_bytes(), &mut out);
    out
}

/// A sequence of defined length: some receivers know no other.
fn write_items<'a>(
    encoding: Encoding,
    sequence: Tag,
    out: &mut Vec<u8>,
    references: impl Iterator<Item = (&'a Reference, Option<Status>)>,
) {
    let (mut items, mut item) = (Vec::new(), Vec::with_capacity(192));
    for (reference, reason) in references {
        item.clear();
        element::write(encoding, (CLASS, b"UI"), &reference.sop_class.to_bytes(), &mut item);
        element::write(encoding, (INSTANCE, b"UI"), &reference.sop_instance.to_bytes(), &mut item);
        if let Some(reason) = reason {
            element::write(encoding, (FAILURE_REASON, b"US"), &encoding.number(reason.0), &mut item);
        }
        element::write(encoding, (ITEM, b"  "), &item, &mut items);
    }
    if !items.is_empty() {
        element::write(encoding, (sequence, b"SQ"), &items, out);
    }
}

/// Goes through a data set, element by element.
struct Reader<'a> {
    encoding: Encoding,
    whole: &'a [u8],
    at: usize,
    /// The sequence that is being read, and where it ends (undefined: at its delimiter).
    sequence: Option<(Tag, Option<usize>)>,
    /// The item that is being read.
    item: Option<Item>,
    transaction: Option<Uid>,
    committed: Vec<Reference>,
    failed: Vec<(Reference, Status)>,
}

#[derive(Default)]
struct Item {
    end: Option<usize>,
    class: Option<Uid>,
    instance: Option<Uid>,
    reason: Option<Status>,
}

impl<'a> Reader<'a> {
    fn new(encoding: Encoding, whole: &'a [u8]) -> Self {
        let (committed, failed) = (Vec::new(), Vec::new());
        Self { encoding, whole, at: 0, sequence: None, item: None, transaction: None, committed, failed }
    }

    /// Reads the next element; false at the end.
    fn step(&mut self) -> Result<bool, CommitmentError> {
        self.close_what_ended()?;
        if self.at == self.whole.len() {
            // A sequence of undefined length that is never closed has lost its end.
            return if self.sequence.is_none() { Ok(false) } else { Err(CommitmentError::Nonsense) };
        }
        let header = self.header()?;
        match (self.sequence, &mut self.item, header.tag) {
            (None, _, FAILED | REFERENCED) => self.sequence = Some((header.tag, self.end_of(&header)?)),
            (Some(_), None, ITEM) => self.item = Some(Item { end: self.end_of(&header)?, ..Item::default() }),
            (Some(_), None, SEQUENCE_END) => self.sequence = None,
            (Some(_), None, _) => return Err(CommitmentError::Nonsense),
            (Some(_), Some(_), ITEM_END) => self.close_item()?,
            _ if header.length == UNDEFINED => self.skip_sequence()?,
            _ => self.value(&header)?,
        }
        Ok(true)
    }

    fn header(&mut self) -> Result<Header, CommitmentError> {
        match element::read(self.encoding, self.whole.get(self.at..).unwrap_or_default()) {
            Step::Header(header) => {
                self.at += header.bytes;
                Ok(header)
            }
            Step::Short(_) | Step::Nonsense => Err(CommitmentError::Nonsense),
        }
    }

    /// Where the value ends whose header was just read; `None`: at its delimiter.
    fn end_of(&self, header: &Header) -> Result<Option<usize>, CommitmentError> {
        if header.length == UNDEFINED {
            return Ok(None);
        }
        let length = usize::try_from(header.length).ok();
        let end = length.and_then(|length| self.at.checked_add(length)).filter(|end| *end <= self.whole.len());
        end.map(Some).ok_or(CommitmentError::Nonsense)
    }

    fn close_what_ended(&mut self) -> Result<(), CommitmentError> {
        if self.item.as_ref().is_some_and(|item| item.end.is_some_and(|end| end <= self.at)) {
            self.close_item()?;
        }
        if self.item.is_none() && self.sequence.is_some_and(|(_, end)| end.is_some_and(|end| end <= self.at)) {
            self.sequence = None;
        }
        Ok(())
    }

    fn close_item(&mut self) -> Result<(), CommitmentError> {
        let (Some(item), Some((sequence, _))) = (self.item.take(), self.sequence) else { return Ok(()) };
        let sop_instance = item.instance.filter(|uid| !uid.is_empty()).ok_or(CommitmentError::NoInstance)?;
        let reference = Reference { sop_class: item.class.unwrap_or_default(), sop_instance };
        if self.committed.len() + self.failed.len() >= REFERENCES_MAX {
            return Err(CommitmentError::TooMany);
        }
        if sequence == FAILED {
            self.failed.push((reference, item.reason.unwrap_or(Status::PROCESSING_FAILURE)));
        } else {
            self.committed.push(reference);
        }
        Ok(())
    }

    fn value(&mut self, header: &Header) -> Result<(), CommitmentError> {
        let end = self.end_of(header)?.ok_or(CommitmentError::Nonsense)?;
        let value = self.whole.get(self.at..end).unwrap_or_default();
        self.at = end;
        match (&mut self.item, header.tag) {
            (None, TRANSACTION) => self.transaction = Uid::read(value),
            (Some(item), CLASS) => item.class = Uid::read(value),
            (Some(item), INSTANCE) => item.instance = Uid::read(value),
            (Some(item), FAILURE_REASON) => item.reason = self.encoding.read_number(value).map(Status),
            _ => {}
        }
        Ok(())
    }

    /// Skips what is in a sequence of undefined length whose header was just read, and all that is in it.
    fn skip_sequence(&mut self) -> Result<(), CommitmentError> {
        let mut depth = 1_usize;
        while depth > 0 {
            let header = self.header()?;
            match header.tag {
                ITEM_END | SEQUENCE_END => depth -= 1,
                _ if header.length == UNDEFINED => depth += 1,
                _ => self.at = self.end_of(&header)?.ok_or(CommitmentError::Nonsense)?,
            }
        }
        Ok(())
    }
}
