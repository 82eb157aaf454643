//! C-STORE of one stored instance (DICOM PS3.4 annex B, PS3.7 section 9.1.1), and what the archive's status means for it.
//!
//! The data set's bytes are those in the spool, read piece by piece as the archive takes them: a long instance uses no more
//! memory than a short one. The error comment of an answer is never told: it may quote the patient.

use bytes::{Buf, Bytes, BytesMut};

use super::archive::AssociationError;
use super::association::{Association, Message, Pair};
use super::pool::Unasked;
use crate::envelope::{Body, BodyError, BodyReader, Flags};
use crate::upstream::SendError;
use crate::upstream::flights::ANOTHER_IS_KEPT;
use crate::wire::dicom::convert::{self, ConvertError, Converter};
use crate::wire::dicom::dimse::{Command, CommandField, Status, StatusClass};
use crate::wire::dicom::file::{FileError, FileMeta};
use crate::wire::dicom::values::Uid;

/// Longest head of a file: preamble and group 2. Ours has less than 512 bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Messages that may come before the answer to ours.
const UNASKED_MAX: usize = 100;

/// A stored instance, opened at its data set.
pub struct Instance {
    /// SOP class and transfer syntax.
    pub pair: Pair,
    /// SOP instance UID.
    pub uid: Uid,
    /// What of the data set came with the head.
    first: Bytes,
    rest: BodyReader,
    /// It is sent in another encoding than it was stored in.
    converter: Option<Box<Converter>>,
}

/// Why an instance was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be converted, which is known before anything of it is sent.
    #[error("{0}")]
    Conversion(ConvertError),
    /// The association's fault.
    #[error("{0}")]
    Association(AssociationError),
    /// The spool's fault.
    #[error("{0}")]
    Body(BodyError),
}

impl From<AssociationError> for StoreError {
    fn from(error: AssociationError) -> Self {
        Self::Association(error)
    }
}

impl Instance {
    /// Reads the head of a DICOM file (PS3.10 section 7).
    ///
    /// # Errors
    /// [`SendError::Rejected`] when it is none, or can't be read back.
    pub async fn open(body: &Body) -> Result<Self, SendError> {
        let rejected = |reason: String| SendError::Rejected { reason };
        let (mut rest, mut head) = (body.reader(), BytesMut::new());
        loop {
            let piece = rest.next().await.map_err(|error| rejected(error.to_string()))?;
            let ended = piece.is_none();
            head.extend_from_slice(&piece.unwrap_or_default());
            match FileMeta::read(&head) {
                Err(FileError::Truncated | FileError::NotDicom) if !ended && head.len() < HEAD_BYTES_MAX => {}
                Err(error) => return Err(rejected(error.to_string())),
                Ok((meta, length)) => {
                    head.advance(length);
                    let pair = Pair { abstract_syntax: meta.sop_class, transfer_syntax: meta.transfer_syntax };
                    return Ok(Self { pair, uid: meta.sop_instance, first: head.freeze(), rest, converter: None });
                }
            }
        }
    }
}

impl Instance {
    /// The same, to be sent in the other uncompressed little endian encoding. It is read through once for that: what can't be
    /// converted to its end is not begun.
    ///
    /// # Errors
    /// In words.
    pub async fn converted(mut self, body: &Body) -> Result<Self, String> {
        let syntax = self.pair.transfer_syntax.clone();
        self.converter = Converter::from(&syntax).map(Box::new);
        while self.next().await.map_err(|error| error.to_string())?.is_some() {}
        let mut opened = Self::open(body).await.map_err(|error| error.to_string())?;
        if let Some(other) = convert::other(&syntax) {
            opened.pair.transfer_syntax = other;
        }
        Ok(Self { converter: Converter::from(&syntax).map(Box::new), ..opened })
    }

    /// The next piece of the data set as it is sent.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let piece = match std::mem::take(&mut self.first) {
            first if !first.is_empty() => Some(first),
            _ => self.rest.next().await.map_err(StoreError::Body)?,
        };
        let Some(converter) = &mut self.converter else { return Ok(piece) };
        let Some(piece) = piece else {
            return converter.finish().map(|()| None).map_err(StoreError::Conversion);
        };
        let mut out = Vec::with_capacity(piece.len());
        converter.push(&piece, &mut out).map_err(StoreError::Conversion)?;
        Ok(Some(out.into()))
    }
}

/// Sends the instance in `context` and has the archive's status for it. Messages that came between go to `unasked`.
///
/// # Errors
/// [`StoreError`]; the association can't be used any more.
pub async fn store(
    association: &mut Association,
    context: u8,
    mut instance: Instance,
    unasked: &dyn Unasked,
) -> Result<Status, StoreError> {
    let id = association.next_message_id();
    let uid = instance.uid.clone();
    let command = Command::store_request(id, instance.pair.abstract_syntax.clone(), uid.clone());
    association.command(context, &command.bytes()).await?;
    while let Some(piece) = instance.next().await? {
        association.data(context, &piece).await?;
    }
    association.end_of_data(context).await?;
    let early = association.early;
    let (answer, before) = answer_after(association, id, unasked).await?;
    let (CommandField::StoreResponse, Some(status)) = (answer.field, answer.status) else {
        return Err(broken("it answered C-STORE with something else").into());
    };
    if answer.affected_instance.is_some_and(|other| other != uid) {
        return Err(broken("it answered C-STORE for another instance").into());
    }
    // What came early may have been a report of commitment.
    if early && before == 0 && status.is_receipt() {
        return Err(broken("it said that it has an instance before it had all of it").into());
    }
    Ok(status)
}

/// The response to our message `id`.
///
/// # Errors
/// [`AssociationError`].
pub async fn answer(
    association: &mut Association,
    id: u16,
    unasked: &dyn Unasked,
) -> Result<Command, AssociationError> {
    answer_after(association, id, unasked).await.map(|(command, _)| command)
}

/// The same, and how many other messages came before it.
async fn answer_after(
    association: &mut Association,
    id: u16,
    unasked: &dyn Unasked,
) -> Result<(Command, usize), AssociationError> {
    for before in 0..UNASKED_MAX {
        let message = association.receive().await?;
        if message.command.responded_to == Some(id) && message.command.field.is_response() {
            return Ok((message.command, before));
        }
        unexpected(association, &message, unasked).await?;
    }
    Err(broken("it sends messages without end and no answer"))
}

/// A message that is no answer to what is asked now. A second answer to an earlier message is passed over; a request is answered when
/// somebody knows what to answer, else it is the end of the association.
///
/// # Errors
/// [`AssociationError`].
pub async fn unexpected(
    association: &mut Association,
    message: &Message,
    unasked: &dyn Unasked,
) -> Result<(), AssociationError> {
    if message.command.field.is_response() {
        tracing::debug!("an answer that is not awaited");
        return Ok(());
    }
    match unasked.take(message) {
        Some(response) => association.send(message.context, &response.bytes(), None).await,
        None => Err(broken("it asked for something that is not done here")),
    }
}

fn broken(what: &str) -> AssociationError {
    AssociationError::Broken(what.to_owned())
}

/// What a status means for a message with these flags: its receipt, or what becomes of it.
///
/// # Errors
/// [`SendError::Busy`], [`SendError::Refused`] and [`SendError::Rejected`] with the status in words.
pub fn verdict(status: Status, flags: Flags) -> Result<String, SendError> {
    let said = |what: &str| format!("the archive answered {status}: {what}");
    match status.class() {
        StatusClass::Success | StatusClass::Warning => Ok(format!("{:04X}", status.0)),
        StatusClass::OutOfResources => Err(SendError::Busy { cause: said("it has no room for it now"), after: None }),
        // What it has under this UID are other bytes, as far as we know.
        _ if status == Status::DUPLICATE_INSTANCE && flags.has(Flags::DUPLICATE) => {
            Err(SendError::Rejected { reason: said(ANOTHER_IS_KEPT) })
        }
        // It has the instance, which is what we want of it; our second copy of one whose answer was lost is answered so.
        _ if status == Status::DUPLICATE_INSTANCE => Ok(format!("{:04X}", status.0)),
        // The same bytes would get the same answer.
        StatusClass::Failure if blames_the_instance(status) => {
            Err(SendError::Rejected { reason: said(advice(status)) })
        }
        StatusClass::Failure | StatusClass::Pending | StatusClass::Cancel => {
            Err(SendError::Refused { reason: said(advice(status)) })
        }
    }
}

/// Whether the archive says that it will never take what is in the instance: class (0118, 0122, A9xx), UID (0117, 0119) or encoding
/// (C000, C122). Others, "processing failure" above all, may pass. The standard has all of Cxxx for "cannot understand" and leaves the last
/// three digits to the archive's maker (PS3.4 table B.2-1): many answer C211 and the like when their own database or disk fails.
fn blames_the_instance(status: Status) -> bool {
    matches!(status.0, 0x0117..=0x0119 | 0x0122 | 0xa900..=0xa9ff | 0xc000 | 0xc122)
}

/// What may help.
fn advice(status: Status) -> &'static str {
    match status.0 {
        0x0122 => "it does not store this SOP class",
        0x0124 => "this box may not store there",
        0x0117 => "it takes the instance's UID for invalid",
        0xa900..=0xa9ff => "what is inside the instance is not what it is said to be",
        0xc000 => "it can't make sense of the instance",
        0xc122 => "it does not take this transfer syntax",
        0xc001..=0xcfff => "its maker knows what that means, and its log may say it",
        _ => "it could not process the instance",
    }
}
