//! Checksums of device protocols: sums, exclusive or, and the CRCs of 16 bits that devices use, in the form that stands on the wire.
//!
//! A checksum tells noise from a frame; it proves nothing against an attacker.

/// How a frame is checked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Checksum {
    /// Not at all.
    #[default]
    None,
    /// Sum of the bytes modulo 256, one byte.
    Sum8,
    /// Exclusive or of the bytes, one byte.
    Xor8,
    /// Sum modulo 256 as two hexadecimal digits, of either case (ASTM E1381, MEDIBUS).
    Sum8Hex,
    /// CRC-16/MODBUS, low byte first.
    Crc16Modbus,
    /// CRC-16/IBM-SDLC, called X-25, low byte first.
    Crc16X25,
    /// CRC-16/IBM-3740: polynomial 1021, begun with FFFF, high byte first. What most devices call CCITT.
    Crc16Ccitt,
    /// CRC-16/XMODEM: polynomial 1021, begun with 0, high byte first. What the others call CCITT.
    Crc16Xmodem,
}

/// A CRC of 16 bits: polynomial, first value, whether the lowest bit goes first, and what is laid over the end.
struct Crc {
    polynomial: u16,
    first: u16,
    reflected: bool,
    over: u16,
}

impl Checksum {
    /// Bytes that it takes on the wire.
    pub fn width(self) -> usize {
        match self {
            Self::None => 0,
            Self::Sum8 | Self::Xor8 => 1,
            Self::Sum8Hex | Self::Crc16Modbus | Self::Crc16X25 | Self::Crc16Ccitt | Self::Crc16Xmodem => 2,
        }
    }

    /// The checksum of `bytes` as it stands on the wire, hexadecimal digits in upper case.
    pub fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Sum8 => vec![sum8(bytes)],
            Self::Xor8 => vec![bytes.iter().fold(0, |all, byte| all ^ byte)],
            Self::Sum8Hex => format!("{:02X}", sum8(bytes)).into_bytes(),
            Self::Crc16Modbus => crc(bytes, 0xa001, 0xffff, true, 0).to_le_bytes().to_vec(),
            Self::Crc16X25 => crc(bytes, 0x8408, 0xffff, true, 0xffff).to_le_bytes().to_vec(),
            Self::Crc16Ccitt => crc(bytes, 0x1021, 0xffff, false, 0).to_be_bytes().to_vec(),
            Self::Crc16Xmodem => crc(bytes, 0x1021, 0, false, 0).to_be_bytes().to_vec(),
        }
    }

    /// Whether `field`, as it stood on the wire, is the checksum of `bytes`.
    pub fn holds(self, bytes: &[u8], field: &[u8]) -> bool {
        match self {
            Self::Sum8Hex => field.eq_ignore_ascii_case(&self.of(bytes)),
            _ => field == self.of(bytes),
        }
    }
}

/// Sum of the bytes modulo 256.
pub fn sum8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn crc(bytes: &[u8], polynomial: u16, first: u16, reflected: bool, over: u16) -> u16 {
    let crc = Crc { polynomial, first, reflected, over };
    bytes.iter().fold(crc.first, |value, byte| crc.next(value, *byte)) ^ crc.over
}

impl Crc {
    fn next(&self, value: u16, byte: u8) -> u16 {
        let (at, out) = if self.reflected { (u16::from(byte), 1) } else { (u16::from(byte) << 8, 0x8000) };
        (0..8).fold(value ^ at, |value, _| {
            let shifted = if self.reflected { value >> 1 } else { value << 1 };
            if value & out == 0 { shifted } else { shifted ^ self.polynomial }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of CRC algorithms, and sums by hand.
    #[test]
    fn nine_digits_give_the_check_values() {
        let of = |kind: Checksum| kind.of(b"123456789");
        assert_eq!(of(Checksum::None), b"");
        assert_eq!(of(Checksum::Sum8), [0xdd]);
        assert_eq!(of(Checksum::Xor8), [0x31]);
        assert_eq!(of(Checksum::Sum8Hex), b"DD");
        assert_eq!(of(Checksum::Crc16Modbus), 0x4b37u16.to_le_bytes());
        assert_eq!(of(Checksum::Crc16X25), 0x906eu16.to_le_bytes());
        assert_eq!(of(Checksum::Crc16Ccitt), 0x29b1u16.to_be_bytes());
        assert_eq!(of(Checksum::Crc16Xmodem), 0x31c3u16.to_be_bytes());
    }

    #[test]
    fn frames_of_devices_check() {
        // ASTM E1381, and the answer of an IntelliVue monitor.
        assert!(Checksum::Sum8Hex.holds(b"1H|\\^&\r\x03", b"E5"));
        assert!(Checksum::Sum8Hex.holds(b"1H|\\^&\r\x03", b"e5"));
        assert!(Checksum::Crc16X25.holds(b"\x11\x01\x00\x04\xe1\x00\x00\x02", b"\x52\x60"));
        assert!(!Checksum::Sum8.holds(b"\x81", b""));
        assert!(Checksum::None.holds(b"anything", b""));
    }
}
