//! A small instance that is made up, for a test of the line: an image of an invented patient that no archive can take for real.
//!
//! It is a Secondary Capture in Explicit VR Little Endian (PS3.3 annex A.8), with what its modules ask for and no more.

use super::dicom_element::{self as element, Encoding, Tag};
use super::dicom_values::{SECONDARY_CAPTURE, Uid};

/// Rows and columns at most: 16 MiB of pixels.
pub const SIDE_MAX: u16 = 4096;

/// What differs between two samples.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Of this instance.
    pub sop_instance: &'a Uid,
    /// Of its study.
    pub study: &'a Uid,
    /// Of its series.
    pub series: &'a Uid,
    /// Its number in the series, from 1.
    pub number: u32,
    /// Day of the study, `YYYYMMDD`.
    pub date: &'a str,
    /// Time of the study, `HHMMSS`.
    pub time: &'a str,
    /// Rows and columns of the image; at most [`SIDE_MAX`].
    pub side: u16,
}

impl Sample<'_> {
    /// The data set, without a file's head: Secondary Capture, Explicit VR Little Endian.
    pub fn data_set(&self) -> Vec<u8> {
        let side = self.side.clamp(2, SIDE_MAX) & !1;
        let number = self.number.to_string();
        let mut out = Vec::with_capacity(1024 + usize::from(side) * usize::from(side));
        let mut add = |tag: u32, vr: &[u8; 2], value: &[u8]| {
            element::write(Encoding::Explicit, (Tag(tag), vr), value, &mut out);
        };
        add(0x0008_0005, b"CS", b"ISO_IR 100");
        add(0x0008_0008, b"CS", b"DERIVED\\SECONDARY");
        add(0x0008_0016, b"UI", &SECONDARY_CAPTURE.to_bytes());
        add(0x0008_0018, b"UI", &self.sop_instance.to_bytes());
        add(0x0008_0020, b"DA", self.date.as_bytes());
        add(0x0008_0030, b"TM", self.time.as_bytes());
        add(0x0008_0050, b"SH", b"");
        add(0x0008_0060, b"CS", b"OT");
        add(0x0008_0064, b"CS", b"SYN");
        add(0x0008_0070, b"LO", b"wardgate");
        add(0x0008_0090, b"PN", b"");
        add(0x0008_1030, b"LO", b"wardgate test, not a patient");
        add(0x0010_0010, b"PN", b"WARDGATE^TEST");
        add(0x0010_0020, b"LO", b"WARDGATE-TEST");
        add(0x0010_0030, b"DA", b"");
        add(0x0010_0040, b"CS", b"O");
        add(0x0020_000d, b"UI", &self.study.to_bytes());
        add(0x0020_000e, b"UI", &self.series.to_bytes());
        add(0x0020_0010, b"SH", b"TEST");
        add(0x0020_0011, b"IS", b"1");
        add(0x0020_0013, b"IS", number.as_bytes());
        add(0x0020_0020, b"CS", b"");
        add(0x0028_0002, b"US", &1_u16.to_le_bytes());
        add(0x0028_0004, b"CS", b"MONOCHROME2");
        add(0x0028_0010, b"US", &side.to_le_bytes());
        add(0x0028_0011, b"US", &side.to_le_bytes());
        add(0x0028_0100, b"US", &8_u16.to_le_bytes());
        add(0x0028_0101, b"US", &8_u16.to_le_bytes());
        add(0x0028_0102, b"US", &7_u16.to_le_bytes());
        add(0x0028_0103, b"US", &0_u16.to_le_bytes());
        add(0x0028_0301, b"CS", b"NO");
        add(0x7fe0_0010, b"OB", &pixels(side));
        out
    }
}

/// A slope from black to white, from corner to corner.
fn pixels(side: u16) -> Vec<u8> {
    let shade = |row: u16, column: u16| {
        let shade = (u32::from(row) + u32::from(column)) * 255 / (2 * u32::from(side) - 2);
        u8::try_from(shade).unwrap_or(u8::MAX)
    };
    (0..side).flat_map(|row| (0..side).map(move |column| shade(row, column))).collect()
}
