//! What goes out of an association and what comes in, between messages and PDUs (DICOM PS3.8 section 9.3.5, annex E).
//!
//! Out: a message of any length becomes PDUs as it is written, each filled to what the peer takes, without knowing its length
//! before. In: the pieces of one message at a time, bounded.

use super::archive::AssociationError;
use super::association::Message;
use crate::wire::dicom::dimse::{Command, CommandAssembler};
use crate::wire::dicom::pdu::{self, HEADER_BYTES, PDV_HEADER_BYTES, Pdv};

/// Longest data set that is taken from a peer: reports of storage commitment, which may name thousands of instances.
const DATA_BYTES_MAX: usize = crate::wire::dicom::commitment::DATA_SET_BYTES_MAX;
/// Before a data PDU's data.
const BEFORE_DATA: usize = HEADER_BYTES + PDV_HEADER_BYTES;

/// PDUs that wait to be written; the last one may still be open.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Whole PDUs, and perhaps an open one.
    pub(super) bytes: Vec<u8>,
    /// Where the PDU that is being filled begins.
    open: Option<usize>,
}

impl Outgoing {
    /// How many bytes the open PDU still takes.
    pub(super) fn room(&self, fragment_bytes: usize) -> usize {
        fragment_bytes - self.filled()
    }

    fn filled(&self) -> usize {
        self.open.map_or(0, |open| self.bytes.len() - open - BEFORE_DATA)
    }

    /// Adds to the open PDU, which has room for it.
    pub(super) fn add(&mut self, piece: &[u8]) {
        self.begin();
        self.bytes.extend_from_slice(piece);
    }

    fn begin(&mut self) -> usize {
        let at = self.bytes.len();
        *self.open.get_or_insert_with(|| {
            self.bytes.resize(at + BEFORE_DATA, 0);
            at
        })
    }

    /// Ends the open PDU; an empty one when there is none.
    pub(super) fn seal(&mut self, context: u8, is_command: bool, is_last: bool) {
        let open = self.begin();
        self.open = None;
        let data = self.bytes.get(open + BEFORE_DATA..).unwrap_or_default();
        let header = pdu::data_header(&Pdv { context, is_command, is_last, data });
        if let Some(place) = self.bytes.get_mut(open..open + BEFORE_DATA) {
            place.copy_from_slice(&header);
        }
    }
}

/// A message as its pieces come.
#[derive(Default)]
pub(super) struct Assembly {
    command: CommandAssembler,
    /// A command that has come, whose data set comes.
    data: Option<(u8, Command, Vec<u8>)>,
}

impl Assembly {
    /// Takes a piece; the message when that was its last.
    pub(super) fn take(&mut self, pdv: &Pdv<'_>) -> Result<Option<Message>, AssociationError> {
        let mixed = match &self.data {
            Some((context, ..)) => pdv.is_command || pdv.context != *context,
            None => !pdv.is_command,
        };
        if mixed {
            return Err(AssociationError::Broken("the pieces of two messages are mixed".into()));
        }
        let context = pdv.context;
        let Some((_, _, data)) = &mut self.data else {
            let command = self.command.push(pdv).map_err(|error| AssociationError::Broken(error.to_string()))?;
            let Some(command) = command else { return Ok(None) };
            if command.has_data_set {
                self.data = Some((context, command, Vec::new()));
                return Ok(None);
            }
            return Ok(Some(Message { context, command, data: Vec::new() }));
        };
        if data.len() + pdv.data.len() > DATA_BYTES_MAX {
            return Err(AssociationError::Broken(format!("a data set of more than {DATA_BYTES_MAX} bytes")));
        }
        data.extend_from_slice(pdv.data);
        let whole = if pdv.is_last { self.data.take() } else { None };
        Ok(whole.map(|(context, command, data)| Message { context, command, data }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::dicom::pdu::Pdvs;

    /// The pieces on the wire: whether a command, whether the last, and the data.
    fn pieces(mut bytes: &[u8]) -> Vec<(bool, bool, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
            let length = pdu::Header::read(*header, 1 << 20).unwrap().length as usize;
            found.extend(Pdvs::new(&rest[..length]).map(|pdv| {
                let pdv = pdv.unwrap();
                (pdv.is_command, pdv.is_last, pdv.data.to_vec())
            }));
            bytes = &rest[length..];
        }
        found
    }

    #[test]
    fn a_message_fills_pdus_and_its_last_piece_says_so() {
        let mut outgoing = Outgoing::default();
        for piece in [&b"ab"[..], b"c"] {
            outgoing.add(piece);
        }
        assert_eq!(outgoing.room(4), 1);
        outgoing.add(b"d");
        assert_eq!(outgoing.room(4), 0);
        outgoing.seal(1, false, false);
        assert_eq!(outgoing.room(4), 4);
        outgoing.add(b"ef");
        outgoing.seal(1, false, true);
        assert_eq!(pieces(&outgoing.bytes), [(false, false, b"abcd".to_vec()), (false, true, b"ef".to_vec())]);
    }

    #[test]
    fn a_data_set_of_no_bytes_still_ends() {
        let mut outgoing = Outgoing::default();
        outgoing.seal(3, false, true);
        assert_eq!(pieces(&outgoing.bytes), [(false, true, vec![])]);
    }

    fn pdv(context: u8, is_command: bool, is_last: bool, data: &[u8]) -> Pdv<'_> {
        Pdv { context, is_command, is_last, data }
    }

    #[test]
    fn a_message_comes_in_pieces_of_any_size() {
        let command = Command::commitment_report(7, false).bytes();
        let mut assembly = Assembly::default();
        for byte in &command[..command.len() - 1] {
            assert!(assembly.take(&pdv(1, true, false, &[*byte])).unwrap().is_none());
        }
        assert!(assembly.take(&pdv(1, true, true, &command[command.len() - 1..])).unwrap().is_none());
        assert!(assembly.take(&pdv(1, false, false, b"ab")).unwrap().is_none());
        let message = assembly.take(&pdv(1, false, true, b"c")).unwrap().unwrap();
        assert_eq!((message.context, message.command.message_id, message.data), (1, Some(7), b"abc".to_vec()));
    }

    #[test]
    fn pieces_that_do_not_belong_together_are_refused() {
        let command = Command::commitment_report(7, false).bytes();
        for wrong in [pdv(1, true, true, &command), pdv(3, false, true, b"x")] {
            let mut assembly = Assembly::default();
            assembly.take(&pdv(1, true, true, &command)).unwrap();
            assert!(assembly.take(&wrong).is_err());
        }
        assert!(Assembly::default().take(&pdv(1, false, true, b"x")).is_err());
        assert!(Assembly::default().take(&pdv(1, true, true, b"no command")).is_err());
        let mut assembly = Assembly::default();
        assembly.take(&pdv(1, true, true, &command)).unwrap();
        let piece = vec![0; 1 << 20];
        let taken = (0..).take_while(|_| assembly.take(&pdv(1, false, false, &piece)).is_ok()).count();
        assert!(taken <= DATA_BYTES_MAX >> 20, "a data set without an end is given up");
    }
}
