//! Modbus requests and answers, for reading only: function codes 1 to 4 over RTU and TCP framing.
//!
//! *MODBUS Application Protocol Specification V1.1b3* for the PDUs, *MODBUS over Serial Line V1.02* section 2.5.1 for RTU, *MODBUS
//! Messaging on TCP/IP V1.0b* section 3.1.3 for the MBAP header. There is no way to write a register or a coil here and there must
//! never be one: panels that are read by this box feed patients with gases.
//!
//! An answer is believed only when unit, function and length are those that were asked for, and over TCP the transaction, too: what
//! comes late for an earlier question is not the answer to this one.

use std::fmt;

/// Longest RTU frame, bytes.
pub const RTU_BYTES_MAX: usize = 256;
/// Longest frame over TCP: MBAP header and PDU.
pub const TCP_BYTES_MAX: usize = 260;
/// Bytes in which the answer is looked for on a serial line: noise of a transceiver that switches, a late answer, and the answer.
pub const SEARCH_BYTES_MAX: usize = 3 * RTU_BYTES_MAX;
/// Registers that one request may ask for.
pub const REGISTERS_MAX: u16 = 125;
/// Coils or discrete inputs that one request may ask for.
pub const BITS_MAX: u16 = 2000;
/// The highest unit id of a device on a serial line; 0 is the broadcast, 248 to 255 are reserved (255: a TCP device itself).
pub const SERIAL_UNIT_MAX: u8 = 247;

/// Bytes of an exception answer in RTU: unit, function, code, CRC.
const EXCEPTION_BYTES: usize = 5;
/// Bytes of an RTU answer beside its data: unit, function, byte count, CRC.
const ANSWER_BYTES: usize = 5;
const MBAP_BYTES: usize = 7;
/// What a function code of an exception answer has beside its request's.
const REFUSED: u8 = 0x80;

/// The four tables of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// Output bits (function 1, `0xxxx`).
    Coils,
    /// Input bits (function 2, `1xxxx`).
    Discrete,
    /// Registers that could be written (function 3, `4xxxx`).
    Holding,
    /// Registers that can only be read (function 4, `3xxxx`).
    Input,
}

impl Table {
    /// The function code that reads it.
    pub fn function(self) -> u8 {
        match self {
            Self::Coils => 1,
            Self::Discrete => 2,
            Self::Holding => 3,
            Self::Input => 4,
        }
    }

    /// Whether it holds bits, else registers of 16 bits.
    pub fn is_bits(self) -> bool {
        matches!(self, Self::Coils | Self::Discrete)
    }

    /// Cells that one request may ask for.
    pub fn count_max(self) -> u16 {
        if self.is_bits() { BITS_MAX } else { REGISTERS_MAX }
    }
}

/// One request: so many cells of a table, from an address on (counted from 0, as on the wire).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Read {
    table: Table,
    address: u16,
    count: u16,
}

impl Read {
    /// `None` when it is for nothing, for more than one answer can hold, or goes beyond the last address.
    pub fn new(table: Table, address: u16, count: u16) -> Option<Self> {
        let ends = u32::from(address) + u32::from(count);
        ((1..=table.count_max()).contains(&count) && ends <= 1 << 16).then_some(Self { table, address, count })
    }

    /// Which table.
    pub fn table(&self) -> Table {
        self.table
    }

    /// The first address, counted from 0.
    pub fn address(&self) -> u16 {
        self.address
    }

    /// How many cells.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Bytes of data that its answer has.
    pub fn data_bytes(&self) -> usize {
        let count = usize::from(self.count);
        if self.table.is_bits() { count.div_ceil(8) } else { 2 * count }
    }

    /// Bytes that its answer has on a serial line.
    pub fn rtu_answer_bytes(&self) -> usize {
        ANSWER_BYTES + self.data_bytes()
    }

    fn pdu(&self) -> [u8; 5] {
        let ([address_high, address_low], [count_high, count_low]) =
            (self.address.to_be_bytes(), self.count.to_be_bytes());
        [self.table.function(), address_high, address_low, count_high, count_low]
    }

    /// The request as an RTU frame.
    pub fn rtu(&self, unit: u8) -> [u8; 8] {
        let [function, a, b, c, d] = self.pdu();
        let [low, high] = crc(&[unit, function, a, b, c, d]).to_le_bytes();
        [unit, function, a, b, c, d, low, high]
    }

    /// The request as a frame of Modbus TCP.
    pub fn tcp(&self, transaction: u16, unit: u8) -> [u8; 12] {
        let [function, a, b, c, d] = self.pdu();
        let [high, low] = transaction.to_be_bytes();
        [high, low, 0, 0, 0, 6, unit, function, a, b, c, d]
    }
}

/// What a device answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer<'a> {
    /// The cells: registers with their high byte first, bits with the first in the lowest place.
    Data(&'a [u8]),
    /// It can't or will not.
    Exception(Exception),
}

/// A device's reason (V1.1b3, section 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception(pub u8);

impl Exception {
    /// Whether a gateway says that the unit behind it is not reachable, which is no answer of the unit.
    pub fn is_unreachable(self) -> bool {
        matches!(self.0, 0x0a | 0x0b)
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.0 {
            1 => "illegal function",
            2 => "illegal data address",
            3 => "illegal data value",
            4 => "device failure",
            5 => "acknowledged, takes longer",
            6 => "device busy",
            8 => "memory parity error",
            10 => "gateway path unavailable",
            11 => "gateway target did not respond",
            _ => "unknown exception",
        };
        write!(f, "{words} ({})", self.0)
    }
}

/// What stands in the bytes that came so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<'a> {
    /// Not the whole answer yet.
    More,
    /// A whole frame that is the answer to another question: skip so many bytes.
    Foreign(usize),
    /// The answer.
    Answer {
        /// What it says.
        answer: Answer<'a>,
        /// Bytes before it that belong to nothing.
        junk: usize,
        /// Bytes up to its end, with those before it.
        end: usize,
    },
}

/// Bytes that can't be the answer; the connection is of no use any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// More bytes than [`SEARCH_BYTES_MAX`] without an answer in them.
    #[error("the line carries noise, or another master's traffic")]
    Noise,
    /// No Modbus TCP: protocol id or length are impossible.
    #[error("what came is not Modbus TCP")]
    NotModbus,
    /// Another unit answered this transaction.
    #[error("unit {0} answered in its place")]
    OtherUnit(u8),
    /// Another function or length than was asked for.
    #[error("the answer does not fit what was asked for")]
    Mismatch,
}

/// Looks for the answer of `unit` to `read` in what came on a serial line since the request.
///
/// Junk before it is tolerated, since transceivers make some when they switch; each frame must have the asked unit, function and
/// byte count, and its CRC.
///
/// # Errors
/// [`FrameError::Noise`].
pub fn find_rtu<'a>(bytes: &'a [u8], unit: u8, read: &Read) -> Result<Found<'a>, FrameError> {
    for at in 0..bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        if let Some((answer, length)) = rtu_frame(rest, unit, read) {
            return Ok(Found::Answer { answer, junk: at, end: at + length });
        }
    }
    if bytes.len() >= SEARCH_BYTES_MAX { Err(FrameError::Noise) } else { Ok(Found::More) }
}

/// The answer at the very beginning of `bytes`, and its length.
fn rtu_frame<'a>(bytes: &'a [u8], unit: u8, read: &Read) -> Option<(Answer<'a>, usize)> {
    let function = read.table.function();
    let [first, second, third, ..] = *bytes else { return None };
    let length = match second {
        _ if first != unit => return None,
        _ if second == function && usize::from(third) == read.data_bytes() => read.rtu_answer_bytes(),
        _ if second == function | REFUSED => EXCEPTION_BYTES,
        _ => return None,
    };
    let (checked, [low, high]) = bytes.get(..length)?.split_last_chunk::<2>()?;
    if crc(checked) != u16::from_le_bytes([*low, *high]) {
        return None;
    }
    let answer = if second == function { Answer::Data(checked.get(3..)?) } else { Answer::Exception(Exception(third)) };
    Some((answer, length))
}

/// Reads the frame at the beginning of what came over TCP since the request with this `transaction`.
///
/// # Errors
/// [`FrameError`]: the stream can't be trusted any more.
pub fn find_tcp<'a>(bytes: &'a [u8], transaction: u16, unit: u8, read: &Read) -> Result<Found<'a>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<MBAP_BYTES>() else { return Ok(Found::More) };
    let [id_high, id_low, protocol_high, protocol_low, length_high, length_low, answering] = *header;
    // The length counts the unit, which is in the header here.
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if (protocol_high, protocol_low) != (0, 0) || !(3..=TCP_BYTES_MAX + 1 - MBAP_BYTES).contains(&length) {
        return Err(FrameError::NotModbus);
    }
    let (pdu_bytes, end) = (length - 1, MBAP_BYTES + length - 1);
    let Some(pdu) = rest.get(..pdu_bytes) else { return Ok(Found::More) };
    if u16::from_be_bytes([id_high, id_low]) != transaction {
        return Ok(Found::Foreign(end));
    }
    if answering != unit {
        return Err(FrameError::OtherUnit(answering));
    }
    let function = read.table.function();
    let answer = match *pdu {
        [refused, code] if refused == function | REFUSED => Answer::Exception(Exception(code)),
        [same, count, ref data @ ..]
            if same == function && usize::from(count) == data.len() && data.len() == read.data_bytes() =>
        {
            Answer::Data(data)
        }
        _ => return Err(FrameError::Mismatch),
    };
    Ok(Found::Answer { answer, junk: 0, end })
}

/// CRC-16/MODBUS (V1.02, appendix B): polynomial 0xA001 reflected, first value 0xFFFF; its low byte goes first.
pub fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}

/// Bit `at` of an answer about bits (V1.1b3, section 6.1): the first is the lowest of the first byte.
pub fn bit(data: &[u8], at: usize) -> Option<bool> {
    data.get(at / 8).map(|byte| byte >> (at % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(table: Table, address: u16, count: u16) -> Read {
        Read::new(table, address, count).unwrap()
    }

    fn rtu(bytes: &[u8]) -> Vec<u8> {
        let mut frame = bytes.to_vec();
        frame.extend(crc(bytes).to_le_bytes());
        frame
    }

    #[test]
    fn the_crc_is_that_of_the_serial_line_specification() {
        assert_eq!(crc(b"123456789"), 0x4b37);
        assert_eq!(crc(&[0x02, 0x07]), 0x1241);
        assert_eq!(read(Table::Holding, 0, 10).rtu(1), [1, 3, 0, 0, 0, 10, 0xc5, 0xcd]);
    }

    #[test]
    fn the_examples_of_the_application_protocol_are_written_and_read() {
        let examples: [(Read, &[u8], &[u8]); 4] = [
            (read(Table::Coils, 0x13, 0x13), &[1, 0, 0x13, 0, 0x13], &[1, 3, 0xcd, 0x6b, 0x05]),
            (read(Table::Discrete, 0xc4, 0x16), &[2, 0, 0xc4, 0, 0x16], &[2, 3, 0xac, 0xdb, 0x35]),
            (read(Table::Holding, 0x6b, 3), &[3, 0, 0x6b, 0, 3], &[3, 6, 2, 0x2b, 0, 0, 0, 0x64]),
            (read(Table::Input, 8, 1), &[4, 0, 8, 0, 1], &[4, 2, 0, 0x0a]),
        ];
        for (read, request, answer) in examples {
            assert_eq!(&read.pdu()[..], request);
            let frame = rtu(&[&[0x11], answer].concat());
            let wanted = Answer::Data(&answer[2..]);
            let found = find_rtu(&frame, 0x11, &read).unwrap();
            assert_eq!(found, Found::Answer { answer: wanted, junk: 0, end: frame.len() });
            let length = u8::try_from(answer.len() + 1).unwrap();
            let frame = [&[0x15, 0x01, 0, 0, 0, length, 0x11], answer].concat();
            let found = find_tcp(&frame, 0x1501, 0x11, &read).unwrap();
            assert_eq!(found, Found::Answer { answer: wanted, junk: 0, end: frame.len() });
        }
        assert_eq!(read(Table::Holding, 0x6b, 3).tcp(1, 0x11), [0, 1, 0, 0, 0, 6, 0x11, 3, 0, 0x6b, 0, 3]);
        assert_eq!((bit(&[0xcd, 0x6b, 0x05], 0), bit(&[0xcd, 0x6b, 0x05], 18)), (Some(true), Some(true)));
        assert_eq!((bit(&[0xcd, 0x6b, 0x05], 1), bit(&[0xcd], 8)), (Some(false), None));
    }

    #[test]
    fn an_exception_is_an_answer_and_says_why() {
        let asked = read(Table::Coils, 0x4a1, 1);
        let frame = rtu(&[0x0a, 0x81, 0x02]);
        let answer = Answer::Exception(Exception(2));
        assert_eq!(find_rtu(&frame, 0x0a, &asked), Ok(Found::Answer { answer, junk: 0, end: 5 }));
        let frame = [0, 7, 0, 0, 0, 3, 0x0a, 0x81, 0x02];
        assert_eq!(find_tcp(&frame, 7, 0x0a, &asked), Ok(Found::Answer { answer, junk: 0, end: 9 }));
        assert_eq!(Exception(2).to_string(), "illegal data address (2)");
        assert!(Exception(11).is_unreachable() && !Exception(6).is_unreachable());
    }

    #[test]
    fn a_late_answer_of_another_unit_function_or_length_is_not_the_answer() {
        let asked = read(Table::Holding, 0, 2);
        let late =
            [rtu(&[2, 3, 4, 0, 1, 0, 2]), rtu(&[1, 4, 4, 0, 1, 0, 2]), rtu(&[1, 3, 2, 0, 1]), rtu(&[1, 0x84, 2])];
        let right = rtu(&[1, 3, 4, 0, 7, 0, 8]);
        for late in late {
            assert_eq!(find_rtu(&late, 1, &asked), Ok(Found::More));
            let both = [late.clone(), right.clone()].concat();
            let answer = Answer::Data(&[0, 7, 0, 8]);
            assert_eq!(find_rtu(&both, 1, &asked), Ok(Found::Answer { answer, junk: late.len(), end: both.len() }));
        }
        let mut broken = right;
        broken[4] ^= 1;
        assert_eq!(find_rtu(&broken, 1, &asked), Ok(Found::More), "a wrong CRC is no answer");
        assert_eq!(find_rtu(&[0x55; SEARCH_BYTES_MAX], 1, &asked), Err(FrameError::Noise));
    }

    #[test]
    fn over_tcp_only_the_same_transaction_unit_function_and_length_are_the_answer() {
        let asked = read(Table::Input, 0, 1);
        let frame = [0, 9, 0, 0, 0, 5, 1, 4, 2, 0, 1];
        assert_eq!(find_tcp(&frame, 8, 1, &asked), Ok(Found::Foreign(11)));
        assert_eq!(find_tcp(&frame, 9, 2, &asked), Err(FrameError::OtherUnit(1)));
        assert_eq!(find_tcp(&frame, 9, 1, &read(Table::Holding, 0, 1)), Err(FrameError::Mismatch));
        assert_eq!(find_tcp(&frame, 9, 1, &read(Table::Input, 0, 2)), Err(FrameError::Mismatch));
        assert_eq!(find_tcp(&frame[..10], 9, 1, &asked), Ok(Found::More));
        assert_eq!(find_tcp(b"HTTP/1.1 400", 9, 1, &asked), Err(FrameError::NotModbus));
        let endless = [0, 9, 0, 0, 0xff, 0xff, 1, 4];
        assert_eq!(find_tcp(&endless, 9, 1, &asked), Err(FrameError::NotModbus));
    }

    #[test]
    fn a_request_that_no_answer_could_hold_can_not_be_made() {
        assert!(Read::new(Table::Holding, 0, 125).is_some() && Read::new(Table::Holding, 0, 126).is_none());
        assert!(Read::new(Table::Coils, 0, 2000).is_some() && Read::new(Table::Coils, 0, 2001).is_none());
        assert!(Read::new(Table::Input, 65535, 1).is_some() && Read::new(Table::Input, 65535, 2).is_none());
        assert!(Read::new(Table::Input, 0, 0).is_none());
    }

    #[test]
    fn the_longest_answers_fit_the_limits() {
        for (table, count) in [(Table::Holding, REGISTERS_MAX), (Table::Coils, BITS_MAX)] {
            let asked = read(table, 0, count);
            assert!(asked.rtu_answer_bytes() <= RTU_BYTES_MAX);
            let data = vec![0; asked.data_bytes()];
            let length = u8::try_from(data.len()).unwrap();
            let mut frame = vec![0, 1, 0, 0, 0, length + 3, 1, table.function(), length];
            frame.extend(&data);
            assert!(frame.len() <= TCP_BYTES_MAX);
            assert!(matches!(find_tcp(&frame, 1, 1, &asked), Ok(Found::Answer { .. })));
        }
    }
}
