//! The bytes of an MQTT connection on their way to being packets: little memory while nothing comes, never more than a packet while much does.
//!
//! A packet that does not fit into what a connection has for itself is read only with a share of the budget that all sources have for
//! messages that are still arriving. No memory is reserved because of a length alone.

use std::io;

use tokio::io::AsyncReadExt;

use super::intake::{GATHER_BYTES, Share};
use crate::system::stream::Stream;
use crate::wire::mqtt_packet::{Fault, Header};

/// Bytes that an idle connection keeps.
const IDLE_BYTES: usize = 512;
/// Bytes that one read takes, and what a connection may hold of an unfinished packet without a share.
pub(super) const FREE_BYTES: usize = 16 << 10;

/// What an unfinished packet needs before it is read on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    /// Nothing.
    Nothing,
    /// A share for a message that is gathered.
    Gathered,
    /// A share for a longer one.
    Streamed,
}

/// See the module.
#[derive(Default)]
pub(super) struct Inlet {
    bytes: Vec<u8>,
    /// Bytes at the front that were packets.
    taken: usize,
    /// The last read brought as much as it could.
    busy: bool,
    /// Of the packet that is unfinished: its whole length, as far as that is known.
    unfinished: Option<usize>,
    share: Option<Share>,
}

impl Inlet {
    /// The next packet's header, when all of it is there.
    ///
    /// # Errors
    /// [`Fault`] of the header alone.
    pub(super) fn whole(&self, bytes_max: usize) -> Result<Option<Header>, Fault> {
        let left = self.left();
        Ok(Header::read(left, bytes_max)?.filter(|header| left.len() >= header.total()))
    }

    /// What follows the header of a whole packet.
    pub(super) fn body(&self, header: Header) -> &[u8] {
        self.left().get(header.size..header.total()).unwrap_or_default()
    }

    /// The first byte that is no packet yet.
    pub(super) fn first(&self) -> Option<u8> {
        self.left().first().copied()
    }

    /// Done with a packet.
    pub(super) fn consume(&mut self, header: Header) {
        self.taken = (self.taken + header.total()).min(self.bytes.len());
    }

    /// Whether a packet has begun and not ended, as of the last [`Self::settle`].
    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Done with all packets that are whole: tells what the rest needs before it is read on.
    pub(super) fn settle(&mut self, bytes_max: usize) -> Need {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
            // What was needed for a packet that is done is given back, though the next one may have begun.
            self.share = None;
            self.bytes.shrink_to(FREE_BYTES);
        }
        if self.bytes.is_empty() {
            (self.unfinished, self.share) = (None, None);
            self.bytes.shrink_to(if self.busy { FREE_BYTES } else { IDLE_BYTES });
            return Need::Nothing;
        }
        let total = Header::read(&self.bytes, bytes_max).ok().flatten().map_or(0, Header::total);
        self.unfinished = Some(total);
        if self.share.is_some() || total <= FREE_BYTES {
            return Need::Nothing;
        }
        if total <= GATHER_BYTES { Need::Gathered } else { Need::Streamed }
    }

    /// What was needed.
    pub(super) fn grant(&mut self, share: Share) {
        self.share = Some(share);
    }

    /// Reads once; 0 at the end. May be dropped at any time.
    ///
    /// # Errors
    /// The connection's.
    pub(super) async fn read(&mut self, stream: &mut Stream) -> io::Result<usize> {
        let usual = if self.busy { FREE_BYTES } else { IDLE_BYTES };
        let wanted = match self.unfinished {
            // Grows as the bytes come, and no further than the packet's end.
            Some(total) if total > FREE_BYTES => total.min((2 * self.bytes.len()).max(FREE_BYTES)),
            Some(_) => FREE_BYTES,
            None => usual,
        };
        if self.bytes.capacity() < wanted {
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let count = stream.read_buf(&mut self.bytes).await?;
        self.busy = count == room || count > IDLE_BYTES;
        Ok(count)
    }

    fn left(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::plug_tests::Room;

    /// A PUBLISH of QoS 0 with a payload of so many bytes.
    fn publish(payload: usize) -> Vec<u8> {
        let length = payload + 3;
        assert!((1 << 14..1 << 21).contains(&length));
        let mut packet = vec![0x30];
        packet.extend(
            [length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14].map(|part| u8::try_from(part).unwrap()),
        );
        packet.extend([0, 1, b't']);
        packet.resize(packet.len() + payload, b'x');
        packet
    }

    /// A client that always cuts its packets kept the share of the first for as long as it was connected.
    #[tokio::test]
    async fn the_share_of_a_packet_goes_back_with_its_end_though_the_next_one_has_begun() {
        const MOST: usize = 256 << 10;
        let room = Room::new("mqtt");
        let (long, short) = (publish(50_000), publish(17_000));
        let mut inlet = Inlet { bytes: long.get(..20_000).unwrap().to_vec(), ..Inlet::default() };
        assert_eq!(inlet.settle(MOST), Need::Gathered);
        inlet.grant(room.intake.gather_share().await);
        assert_eq!((inlet.settle(MOST), inlet.share.is_some()), (Need::Nothing, true), "it is asked for once");
        inlet.bytes.extend_from_slice(&long[20_000..]);
        inlet.bytes.extend_from_slice(&short[..10]);
        let header = inlet.whole(MOST).unwrap().unwrap();
        inlet.consume(header);
        assert_eq!((inlet.settle(MOST), inlet.share.is_some()), (Need::Gathered, false));
        assert!(inlet.is_unfinished() && inlet.bytes.capacity() <= FREE_BYTES, "{}", inlet.bytes.capacity());
    }
}
