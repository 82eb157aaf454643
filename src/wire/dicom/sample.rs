//! Instances that are made up: images of invented patients that no archive can take for real.
//!
//! A small one for a test of the line is a Secondary Capture (PS3.3 annex A.8); the slices of a simulated scanner are CT images
//! (PS3.3 annex A.3). Both in Explicit VR Little Endian, with what their modules ask for and no more.

use super::element::{self as element, Encoding, Tag};
use super::values::{CT_IMAGE, SECONDARY_CAPTURE, Uid};

/// Rows and columns at most: 16 MiB of pixels.
pub const SIDE_MAX: u16 = 4096;
/// Rows and columns of a [`CtSlice`], as scanners have them: half a megabyte of pixels.
pub const CT_SIDE: u16 = 512;
/// Between two slices, and a slice's own thickness.
const CT_SLICE_MM: u32 = 5;
/// What a CT number of 0 (water) is stored as; air is -1000 (PS3.3 section C.8.2.1).
const CT_WATER: u16 = 1024;

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
        add(0x0020_0060, b"CS", b"");
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

/// A slice through a phantom: water in a ring of bone, and a ball in it that moves from slice to slice.
#[derive(Debug, Clone, Copy)]
pub struct CtSlice<'a> {
    /// Of this instance.
    pub sop_instance: &'a Uid,
    /// Of its study.
    pub study: &'a Uid,
    /// Of its series.
    pub series: &'a Uid,
    /// What the positions of a series have in common.
    pub frame_of_reference: &'a Uid,
    /// Family and given name, both invented, with `^` between them; UTF-8.
    pub patient_name: &'a str,
    /// An invented number.
    pub patient_id: &'a str,
    /// Date of birth, `YYYYMMDD`.
    pub born: &'a str,
    /// `F`, `M` or `O`.
    pub sex: &'a str,
    /// Its number in the series, from 1.
    pub number: u32,
    /// Day of the study, `YYYYMMDD`.
    pub date: &'a str,
    /// Time of the study, `HHMMSS`.
    pub time: &'a str,
}

impl CtSlice<'_> {
    /// The data set, without a file's head: CT image, Explicit VR Little Endian.
    pub fn data_set(&self) -> Vec<u8> {
        let side = usize::from(CT_SIDE);
        let mut out = Vec::with_capacity(2048 + 2 * side * side);
        self.who_and_when(&mut out);
        self.how_and_where(&mut out);
        let pixels: Vec<u8> = phantom(self.number).flat_map(u16::to_le_bytes).collect();
        element::write(Encoding::Explicit, (Tag(0x7fe0_0010), b"OW"), &pixels, &mut out);
        out
    }

    /// Groups 0008 and 0010: what it is, whose, when.
    fn who_and_when(&self, out: &mut Vec<u8>) {
        let mut add = |tag: u32, vr: &[u8; 2], value: &str| {
            element::write(Encoding::Explicit, (Tag(tag), vr), value.as_bytes(), out);
        };
        add(0x0008_0005, b"CS", "ISO_IR 192");
        add(0x0008_0008, b"CS", "ORIGINAL\\PRIMARY\\AXIAL");
        add(0x0008_0016, b"UI", CT_IMAGE.as_str());
        add(0x0008_0018, b"UI", self.sop_instance.as_str());
        add(0x0008_0020, b"DA", self.date);
        add(0x0008_0030, b"TM", self.time);
        add(0x0008_0050, b"SH", "");
        add(0x0008_0060, b"CS", "CT");
        add(0x0008_0070, b"LO", "wardgate");
        add(0x0008_0090, b"PN", "");
        add(0x0008_1030, b"LO", "wardgate demo, not a patient");
        add(0x0010_0010, b"PN", self.patient_name);
        add(0x0010_0020, b"LO", self.patient_id);
        add(0x0010_0030, b"DA", self.born);
        add(0x0010_0040, b"CS", self.sex);
    }

    /// Groups 0018 to 0028: how it was scanned, where in the patient it is, what the pixels mean.
    fn how_and_where(&self, out: &mut Vec<u8>) {
        let number = self.number.to_string();
        let depth = format!("-200\\-200\\{}", self.number.saturating_mul(CT_SLICE_MM));
        let mut add = |tag: u32, vr: &[u8; 2], value: &[u8]| {
            element::write(Encoding::Explicit, (Tag(tag), vr), value, out);
        };
        add(0x0018_0050, b"DS", CT_SLICE_MM.to_string().as_bytes());
        add(0x0018_0060, b"DS", b"120");
        add(0x0018_5100, b"CS", b"HFS");
        add(0x0020_000d, b"UI", &self.study.to_bytes());
        add(0x0020_000e, b"UI", &self.series.to_bytes());
        add(0x0020_0010, b"SH", b"DEMO");
        add(0x0020_0011, b"IS", b"1");
        add(0x0020_0012, b"IS", b"1");
        add(0x0020_0013, b"IS", number.as_bytes());
        add(0x0020_0032, b"DS", depth.as_bytes());
        add(0x0020_0037, b"DS", b"1\\0\\0\\0\\1\\0");
        add(0x0020_0052, b"UI", &self.frame_of_reference.to_bytes());
        add(0x0020_0060, b"CS", b"");
        add(0x0020_1040, b"LO", b"");
        add(0x0028_0002, b"US", &1_u16.to_le_bytes());
        add(0x0028_0004, b"CS", b"MONOCHROME2");
        add(0x0028_0010, b"US", &CT_SIDE.to_le_bytes());
        add(0x0028_0011, b"US", &CT_SIDE.to_le_bytes());
        add(0x0028_0030, b"DS", b"0.78125\\0.78125");
        add(0x0028_0100, b"US", &16_u16.to_le_bytes());
        add(0x0028_0101, b"US", &12_u16.to_le_bytes());
        add(0x0028_0102, b"US", &11_u16.to_le_bytes());
        add(0x0028_0103, b"US", &0_u16.to_le_bytes());
        add(0x0028_1052, b"DS", b"-1024");
        add(0x0028_1053, b"DS", b"1");
        add(0x0028_1054, b"LO", b"HU");
    }
}

/// The stored values of a slice, row by row.
fn phantom(number: u32) -> impl Iterator<Item = u16> {
    let centre = i32::from(CT_SIDE / 2);
    let ball = centre + i32::try_from(number % 60).unwrap_or(0) * 4 - 120;
    let near = |row: i32, column: i32, to: (i32, i32), radius: i32| {
        (row - to.0).pow(2) + (column - to.1).pow(2) <= radius.pow(2)
    };
    let value = move |row: i32, column: i32| match () {
        () if near(row, column, (centre, ball), 24) => CT_WATER + 60,
        () if near(row, column, (centre, centre), 190) => CT_WATER,
        () if near(row, column, (centre, centre), 210) => CT_WATER + 900,
        () => CT_WATER - 1000,
    };
    let side = i32::from(CT_SIDE);
    (0..side).flat_map(move |row| (0..side).map(move |column| value(row, column)))
}
