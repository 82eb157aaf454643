//! What the DICOM load sends: CT images and large multi-frame objects of an invented patient, as Part 10 files in explicit VR
//! little endian. Pixels are noise, so that nothing can be saved by packing them.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// UIDs of test objects begin so.
const ROOT: &str = "1.2.826.0.1.3680043.10.999";
const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const WORD_FRAMES: &str = "1.2.840.10008.5.1.4.1.1.7.3";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
/// 512 x 512 pixels of 16 bits.
const FRAME: u64 = 512 * 512 * 2;

/// An element with a short length.
fn element(tag: (u16, u16), vr: &str, value: &str) -> Vec<u8> {
    let mut value = value.as_bytes().to_vec();
    if value.len() % 2 == 1 {
        value.push(if vr == "UI" { 0 } else { b' ' });
    }
    with_value(tag, vr, &value)
}

fn with_value(tag: (u16, u16), vr: &str, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_le_bytes();
    [&tag.0.to_le_bytes(), &tag.1.to_le_bytes(), vr.as_bytes(), &length, value].concat()
}

fn short(tag: (u16, u16), value: u16) -> Vec<u8> {
    with_value(tag, "US", &value.to_le_bytes())
}

fn header(class: &str, uid: &str) -> Vec<u8> {
    let version = [&[2, 0, 1, 0][..], b"OB", &[0, 0, 2, 0, 0, 0, 0, 1]].concat();
    let uids = [(2, class), (3, uid), (0x10, EXPLICIT), (0x12, "1.2.826.0.1.3680043.10.999.0")];
    let group = [version, uids.map(|(number, value)| element((2, number), "UI", value)).concat()].concat();
    let length = u32::try_from(group.len()).unwrap().to_le_bytes();
    [vec![0; 128], b"DICM".to_vec(), with_value((2, 0), "UL", &length), group].concat()
}

/// All that comes before the pixels.
fn head(class: &str, uid: &str, number: usize, pixels: u64) -> Vec<u8> {
    let ow = [&[0xe0, 0x7f, 0x10, 0][..], b"OW", &[0, 0], &u32::try_from(pixels).unwrap().to_le_bytes()].concat();
    let frames = (pixels / FRAME).max(1).to_string();
    [
        header(class, uid),
        element((8, 0x16), "UI", class),
        element((8, 0x18), "UI", uid),
        element((8, 0x20), "DA", "20260102"),
        element((8, 0x50), "SH", "TEST-ACC-1"),
        element((8, 0x60), "CS", if class == CT { "CT" } else { "OT" }),
        element((0x10, 0x10), "PN", "Probe^Paula"),
        element((0x10, 0x20), "LO", "TEST-1"),
        element((0x20, 0xd), "UI", &format!("{ROOT}.1")),
        element((0x20, 0xe), "UI", &format!("{ROOT}.1.1")),
        element((0x20, 0x13), "IS", &number.to_string()),
        short((0x28, 2), 1),
        element((0x28, 4), "CS", "MONOCHROME2"),
        if class == CT { Vec::new() } else { element((0x28, 8), "IS", &frames) },
        short((0x28, 0x10), 512),
        short((0x28, 0x11), 512),
        short((0x28, 0x100), 16),
        short((0x28, 0x101), 16),
        short((0x28, 0x102), 15),
        short((0x28, 0x103), 0),
        ow,
    ]
    .concat()
}

fn write(path: &Path, class: &str, uid: &str, number: usize, pixels: u64) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    file.write_all(&head(class, uid, number, pixels)).unwrap();
    // xorshift64*, another seed for each object.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number as u64 + 1);
    for _ in 0..pixels / 8 {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        file.write_all(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()).unwrap();
    }
    let rest = usize::try_from(pixels % 8).unwrap();
    file.write_all(&[0; 8][..rest]).unwrap();
    file.flush().unwrap();
}

/// A folder for each of `senders`, with `count` objects dealt out to them: CT images when `pixels` is `None`.
pub fn dealt_out(folder: &Path, name: &str, senders: usize, count: usize, pixels: Option<u64>) -> Vec<PathBuf> {
    let folders: Vec<_> = (0..senders).map(|sender| folder.join(format!("{name}-{sender}"))).collect();
    for own in &folders {
        fs::create_dir_all(own).unwrap();
    }
    for number in 0..count {
        let path = folders[number % senders].join(format!("{number:04}.dcm"));
        let (class, branch) = if pixels.is_some() { (WORD_FRAMES, 3) } else { (CT, 2) };
        // The name takes part in the UID: a group of objects is never taken for a copy of another.
        let branch = format!("{branch}.{}", name.bytes().map(u64::from).sum::<u64>());
        write(&path, class, &format!("{ROOT}.{branch}.{number}"), number, pixels.unwrap_or(FRAME));
    }
    folders
}
