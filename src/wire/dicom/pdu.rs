//! DICOM's upper layer on the wire (PS3.8 section 9.3): headers of PDUs, P-DATA, release, rejection, abort. `pdu_associate` has
//! the two long ones.
//!
//! [`Header::read`] judges six bytes before anything else is read or room is made for it: a peer that announces 4 GiB, or speaks
//! HTTP, costs six bytes. Nothing here keeps a copy of a peer's bytes or panics on them.

use std::fmt;

/// Bytes of a PDU before its body.
pub const HEADER_BYTES: usize = 6;
/// Longest A-ASSOCIATE-RQ or AC: 128 contexts with every known transfer syntax have 148 kB.
pub const ASSOCIATE_BYTES_MAX: u32 = 256 << 10;
/// Longest body of a P-DATA PDU that we announce or send, whatever the peer would take: 128 KiB.
pub const DATA_BYTES_MAX: u32 = 128 << 10;
/// Shortest maximum of a peer that lets data flow at all: a PDV's header and one pair of bytes.
pub const PEER_MAXIMUM_MIN: u32 = 8;
/// Bytes of a PDV item before its data: length, context, control header.
pub const PDV_HEADER_BYTES: usize = 6;

/// A broken PDU: the association is to be aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// The six bytes are no PDU's.
    #[error("{0}")]
    NotDicom(Stranger),
    /// Longer than it may be.
    #[error("a {kind} of {length} bytes; at most {limit} are taken")]
    TooLong {
        /// What it says it is.
        kind: Kind,
        /// What it announces.
        length: u32,
        /// What is taken.
        limit: u32,
    },
    /// Of a length that this PDU can't have.
    #[error("a {kind} of {length} bytes, which it can't have")]
    Length {
        /// What it says it is.
        kind: Kind,
        /// What it announces.
        length: u32,
    },
    /// An item's length goes beyond the PDU or item that it is in.
    #[error("an item of type {0:#04x} goes beyond what it is in")]
    Item(u8),
    /// A PDV's length is less than its own header or goes beyond its PDU.
    #[error("a PDV's length does not fit into its PDU")]
    Pdv,
    /// More contexts, transfer syntaxes or roles than are taken.
    #[error("more {0} than are taken")]
    TooMany(&'static str),
    /// Two presentation contexts with one id.
    #[error("two presentation contexts with the id {0}")]
    ContextTwice(u8),
    /// A UID of more than 64 bytes.
    #[error("a UID of more than 64 bytes")]
    Uid,
    /// The peer's maximum PDU length leaves no room for data.
    #[error("the peer takes at most {0} bytes in a PDU, which leaves no room for data")]
    NoRoom(u32),
}

/// Who else may be calling, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// An HTTP request.
    Http,
    /// A TLS handshake.
    Tls,
    /// An MLLP frame.
    Mllp,
    /// A PDU type that does not exist.
    Other(u8),
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http => f.write_str("this is HTTP, not DICOM: the peer is set to the wrong port"),
            Self::Tls => f.write_str("this is TLS, and plain DICOM is spoken here: the peer or this port is set wrong"),
            Self::Mllp => f.write_str("this is HL7 over MLLP, not DICOM: the peer is set to the wrong port"),
            Self::Other(kind) => write!(f, "there is no PDU of type {kind:#04x}: this is not DICOM"),
        }
    }
}

/// The types of PDUs (PS3.8 section 9.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A-ASSOCIATE-RQ
    AssociateRequest,
    /// A-ASSOCIATE-AC
    AssociateAccept,
    /// A-ASSOCIATE-RJ
    AssociateReject,
    /// P-DATA-TF
    Data,
    /// A-RELEASE-RQ
    ReleaseRequest,
    /// A-RELEASE-RP
    ReleaseResponse,
    /// A-ABORT
    Abort,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::AssociateRequest,
            2 => Self::AssociateAccept,
            3 => Self::AssociateReject,
            4 => Self::Data,
            5 => Self::ReleaseRequest,
            6 => Self::ReleaseResponse,
            7 => Self::Abort,
            _ => return None,
        })
    }

    pub(super) fn code(self) -> u8 {
        match self {
            Self::AssociateRequest => 1,
            Self::AssociateAccept => 2,
            Self::AssociateReject => 3,
            Self::Data => 4,
            Self::ReleaseRequest => 5,
            Self::ReleaseResponse => 6,
            Self::Abort => 7,
        }
    }
}

/// As the standard writes it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AssociateRequest => "A-ASSOCIATE-RQ",
            Self::AssociateAccept => "A-ASSOCIATE-AC",
            Self::AssociateReject => "A-ASSOCIATE-RJ",
            Self::Data => "P-DATA-TF",
            Self::ReleaseRequest => "A-RELEASE-RQ",
            Self::ReleaseResponse => "A-RELEASE-RP",
            Self::Abort => "A-ABORT",
        })
    }
}

/// The first six bytes of a PDU, judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which PDU.
    pub kind: Kind,
    /// Bytes that follow; within the limit for its type.
    pub length: u32,
}

impl Header {
    /// Reads a header; `data_bytes_max` is the longest body of a P-DATA PDU: what we announced.
    ///
    /// # Errors
    /// [`PduError::NotDicom`], [`PduError::TooLong`], [`PduError::Length`].
    pub fn read(bytes: [u8; HEADER_BYTES], data_bytes_max: u32) -> Result<Self, PduError> {
        let [kind, _, a, b, c, d] = bytes;
        let length = u32::from_be_bytes([a, b, c, d]);
        let kind = Kind::read(kind).ok_or_else(|| PduError::NotDicom(stranger(bytes)))?;
        let (least, limit) = match kind {
            Kind::AssociateRequest | Kind::AssociateAccept => (super::pdu_associate::FIXED_BYTES, ASSOCIATE_BYTES_MAX),
            Kind::Data => (6, data_bytes_max),
            _ => (4, 4),
        };
        match length {
            _ if length < least || (limit == 4 && length != 4) => Err(PduError::Length { kind, length }),
            _ if length > limit => Err(PduError::TooLong { kind, length, limit }),
            _ => Ok(Self { kind, length }),
        }
    }

    /// As it goes out.
    pub fn bytes(self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = self.length.to_be_bytes();
        [self.kind.code(), 0, a, b, c, d]
    }
}

fn stranger(bytes: [u8; HEADER_BYTES]) -> Stranger {
    const METHODS: [&[u8]; 7] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTION", b"DELETE", b"PRI * "];
    match bytes {
        [0x16, 3, ..] => Stranger::Tls,
        [crate::wire::mllp::VT, ..] => Stranger::Mllp,
        _ if METHODS.iter().any(|method| bytes.starts_with(method)) => Stranger::Http,
        [kind, ..] => Stranger::Other(kind),
    }
}

/// A piece of a message: presentation data value (PS3.8 section 9.3.5.1 and annex E.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pdv<'a> {
    /// Presentation context.
    pub context: u8,
    /// Of a command set; else of a data set.
    pub is_command: bool,
    /// The last piece of it.
    pub is_last: bool,
    /// May be empty.
    pub data: &'a [u8],
}

/// The pieces in the body of a P-DATA PDU, in order; commands and data may be mixed. Nothing follows an error.
#[derive(Debug, Clone)]
pub struct Pdvs<'a> {
    rest: &'a [u8],
}

impl<'a> Pdvs<'a> {
    /// Of a body that was read whole.
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }
}

impl<'a> Iterator for Pdvs<'a> {
    type Item = Result<Pdv<'a>, PduError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.rest);
        if bytes.is_empty() {
            return None;
        }
        let cut = || {
            let (length, bytes) = bytes.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            let (item, rest) = bytes.split_at_checked(length)?;
            let (&[context, control], data) = item.split_first_chunk::<2>()?;
            Some((Pdv { context, is_command: control & 1 == 1, is_last: control & 2 == 2, data }, rest))
        };
        let Some((pdv, rest)) = cut() else { return Some(Err(PduError::Pdv)) };
        self.rest = rest;
        Some(Ok(pdv))
    }
}

/// How many bytes of a message one PDU to this peer can carry: an even number, so that no value of two bytes is cut.
///
/// `peer_maximum` is the maximum length that the peer announced: 0 is "no limit", for which [`DATA_BYTES_MAX`] stands.
///
/// # Errors
/// [`PduError::NoRoom`] when it is below [`PEER_MAXIMUM_MIN`].
pub fn fragment_bytes_max(peer_maximum: u32) -> Result<usize, PduError> {
    let room = if peer_maximum == 0 { DATA_BYTES_MAX } else { peer_maximum.min(DATA_BYTES_MAX) };
    if room < PEER_MAXIMUM_MIN {
        return Err(PduError::NoRoom(peer_maximum));
    }
    let room = usize::try_from(room).map_err(|_| PduError::NoRoom(peer_maximum))?;
    Ok((room - PDV_HEADER_BYTES) & !1)
}

/// What goes before `pdv.data` on the wire: the header of a P-DATA PDU with this one PDV, and the PDV's own. For those who write
/// data without copying it.
pub fn data_header(pdv: &Pdv<'_>) -> [u8; HEADER_BYTES + PDV_HEADER_BYTES] {
    // Pieces are cut to `fragment_bytes_max`; one of 4 GiB would be announced with a length that no peer takes.
    let item = u32::try_from(pdv.data.len() + 2).unwrap_or(u32::MAX - 4);
    let [p, q, r, s] = (item.saturating_add(4)).to_be_bytes();
    let [a, b, c, d] = item.to_be_bytes();
    let control = u8::from(pdv.is_command) | u8::from(pdv.is_last) << 1;
    [Kind::Data.code(), 0, p, q, r, s, a, b, c, d, pdv.context, control]
}

/// Appends a P-DATA PDU with this one PDV.
pub fn write_data(pdv: &Pdv<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&data_header(pdv));
    out.extend_from_slice(pdv.data);
}

/// Appends a whole command set or data set, in as many PDUs as it needs, each of at most `fragment_bytes` bytes of it (see
/// [`fragment_bytes_max`]; less than 2 is taken for 2).
pub fn write_message(whole: &Pdv<'_>, fragment_bytes: usize, out: &mut Vec<u8>) {
    let mut rest = whole.data;
    loop {
        let (data, after) = rest.split_at(rest.len().min(fragment_bytes.max(2)));
        write_data(&Pdv { data, is_last: after.is_empty(), ..*whole }, out);
        rest = after;
        if rest.is_empty() {
            return;
        }
    }
}

/// A-RELEASE-RQ.
pub const RELEASE_REQUEST: [u8; 10] = [5, 0, 0, 0, 0, 4, 0, 0, 0, 0];
/// A-RELEASE-RP.
pub const RELEASE_RESPONSE: [u8; 10] = [6, 0, 0, 0, 0, 4, 0, 0, 0, 0];

/// A-ASSOCIATE-RJ (PS3.8 section 9.3.4): the three numbers as they are on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reject {
    /// 1 permanent, 2 transient.
    pub result: u8,
    /// 1 the application, 2 the upper layer (ACSE), 3 the upper layer (presentation).
    pub source: u8,
    /// Why; what it means depends on the source.
    pub reason: u8,
}

impl Reject {
    /// Permanent, no reason given.
    pub const NO_REASON: Self = Self { result: 1, source: 1, reason: 1 };
    /// Permanent: this application context is not supported.
    pub const APPLICATION_CONTEXT: Self = Self { result: 1, source: 1, reason: 2 };
    /// Permanent: the calling AE title is not known.
    pub const CALLING_AE_TITLE: Self = Self { result: 1, source: 1, reason: 3 };
    /// Permanent: there is nobody of the called AE title.
    pub const CALLED_AE_TITLE: Self = Self { result: 1, source: 1, reason: 7 };
    /// Permanent: this version of the protocol is not supported.
    pub const PROTOCOL_VERSION: Self = Self { result: 1, source: 2, reason: 2 };
    /// For now: congestion (disk, memory).
    pub const CONGESTION: Self = Self { result: 2, source: 3, reason: 1 };
    /// For now: too many associations.
    pub const LOCAL_LIMIT: Self = Self { result: 2, source: 3, reason: 2 };

    /// Reads the body. `None`: shorter than 4 bytes.
    pub fn read(body: &[u8]) -> Option<Self> {
        let [_, result, source, reason] = *body.first_chunk()?;
        Some(Self { result, source, reason })
    }

    /// The whole PDU.
    pub fn bytes(self) -> [u8; 10] {
        [Kind::AssociateReject.code(), 0, 0, 0, 0, 4, 0, self.result, self.source, self.reason]
    }

    /// Whether a later try may succeed.
    pub fn is_transient(self) -> bool {
        self.result == 2
    }
}

/// In the standard's words.
impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lasting = if self.is_transient() { "for now" } else { "permanently" };
        let reason = match (self.source, self.reason) {
            (1, 1) | (2, 1) => "no reason given",
            (1, 2) => "application context name not supported",
            (1, 3) => "calling AE title not recognised",
            (1, 7) => "called AE title not recognised",
            (2, 2) => "protocol version not supported",
            (3, 1) => "temporary congestion",
            (3, 2) => "local limit exceeded",
            _ => {
                return write!(f, "rejected {lasting}: source {}, reason {}", self.source, self.reason);
            }
        };
        write!(f, "rejected {lasting}: {reason}")
    }
}

/// A-ABORT (PS3.8 section 9.3.8): the two numbers as they are on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// 0 the application, 2 the upper layer.
    pub source: u8,
    /// Why, where the upper layer aborts.
    pub reason: u8,
}

impl Abort {
    /// By the application, which gives no reasons.
    pub const BY_USER: Self = Self { source: 0, reason: 0 };
    /// By the upper layer: no reason given; also timeouts.
    pub const NO_REASON: Self = Self { source: 2, reason: 0 };
    /// A PDU type that does not exist.
    pub const UNRECOGNISED_PDU: Self = Self { source: 2, reason: 1 };
    /// A PDU that can't come now.
    pub const UNEXPECTED_PDU: Self = Self { source: 2, reason: 2 };
    /// A parameter that can't come in this PDU.
    pub const UNEXPECTED_PARAMETER: Self = Self { source: 2, reason: 5 };
    /// A parameter with a value that it can't have: also lengths.
    pub const INVALID_PARAMETER: Self = Self { source: 2, reason: 6 };

    /// What to answer to a broken PDU.
    pub fn answer_to(error: &PduError) -> Self {
        match error {
            PduError::NotDicom(_) => Self::UNRECOGNISED_PDU,
            PduError::NoRoom(_) => Self::NO_REASON,
            _ => Self::INVALID_PARAMETER,
        }
    }

    /// Reads the body. `None`: shorter than 4 bytes.
    pub fn read(body: &[u8]) -> Option<Self> {
        let [_, _, source, reason] = *body.first_chunk()?;
        Some(Self { source, reason })
    }

    /// The whole PDU.
    pub fn bytes(self) -> [u8; 10] {
        [Kind::Abort.code(), 0, 0, 0, 0, 4, 0, 0, self.source, self.reason]
    }
}

/// In the standard's words.
impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match (self.source, self.reason) {
            (0, _) => return f.write_str("aborted by the application"),
            (2, 0) => "no reason given",
            (2, 1) => "unrecognised PDU",
            (2, 2) => "unexpected PDU",
            (2, 4) => "unrecognised PDU parameter",
            (2, 5) => "unexpected PDU parameter",
            (2, 6) => "invalid PDU parameter value",
            (source, reason) => return write!(f, "aborted: source {source}, reason {reason}"),
        };
        write!(f, "aborted by the upper layer: {reason}")
    }
}
