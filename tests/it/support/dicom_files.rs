//! What DICOM ends are sent: the objects of the pydicom wheels, synthetic ones, and the hash by which a data set is known again.
//!
//! All patients are invented, by the makers of the wheels or by us. Comparing is by the data set's bytes after group 2:
//! every receiver writes a file header of its own.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Deserialize;

use super::process::{run, run_long};
use super::tools::python_peer;

/// A preamble, `DICM`, and the group length element (explicit VR little endian, PS3.10 section 7.1).
const PREAMBLE: usize = 128;
const HEAD: usize = PREAMBLE + 4 + 12;
const BLOCK: usize = 1 << 20;

/// A Part 10 file and what it holds.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub struct Object {
    /// The file.
    pub path: PathBuf,
    /// Transfer syntax UID.
    pub transfer_syntax: String,
    /// SOP class UID.
    pub sop_class: String,
    /// SOP instance UID.
    pub sop_instance: String,
    /// SHA-256 of the bytes after group 2, lower-case hexadecimal.
    pub sha256: String,
    /// Count of these bytes.
    pub bytes: u64,
}

/// The 261 objects of the pydicom, pydicom-data and pynetdicom wheels as Part 10 files in `folder`, each data set byte for byte as
/// in the wheel; each has a header of ours, with the wheel's own UIDs where there are any. There are 176 SOP instances among them:
/// several files are the same image, encoded otherwise. An archive that names files after the instance overwrites some
/// (`storescp +uf` and [`super::dicom::Archive`] don't). Eight are DICOMDIRs, which no archive takes.
#[track_caller]
pub fn wheel_objects(folder: &Path) -> Vec<Object> {
    listed(python_peer("dicom_objects.py").arg("wheels").arg(folder))
}

/// One small object of each kind that the wheels lack: MPEG2, H.264 and HEVC video, HTJ2K, a private transfer syntax, deflated, big
/// endian, a private SOP class, an encapsulated object in many fragments.
#[track_caller]
pub fn odd_objects(folder: &Path) -> Vec<Object> {
    listed(python_peer("dicom_objects.py").arg("odd").arg(folder))
}

/// `count` CT images of 512 x 512 pixels (0.5 MB), one study and series.
#[track_caller]
pub fn ct_images(folder: &Path, count: usize) -> Vec<Object> {
    listed(python_peer("dicom_objects.py").arg("ct").arg(folder).arg(count.to_string()))
}

/// `count` multi-frame objects of `bytes` of pixel data each, written as sparse files: content only at the first and last bytes and one
/// byte in each MiB, so that a shifted or lost block changes the hash.
#[track_caller]
pub fn large_objects(folder: &Path, count: usize, bytes: u64) -> Vec<Object> {
    let arguments = [count.to_string(), bytes.to_string()];
    listed(python_peer("dicom_objects.py").arg("large").arg(folder).args(arguments))
}

/// Objects that a scanner of headers must survive: 20 000 nested sequences, lengths that lie, none or a part of an element, noise,
/// path characters in UIDs. A sender that does not decode takes them all: [`super::dicom::modality`].
#[track_caller]
pub fn bad_objects(folder: &Path) -> Vec<Object> {
    listed(python_peer("dicom_objects.py").arg("bad").arg(folder))
}

#[track_caller]
fn listed(command: &mut Command) -> Vec<Object> {
    let ended = run_long(command);
    assert!(ended.status.success(), "{command:?}: {}; it said:\n{}", ended.status, ended.said);
    ended.said.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Where the data set begins: after the preamble, `DICM` and group 2, by its group length.
pub fn data_set_offset(head: &[u8]) -> usize {
    assert!(head.len() >= HEAD && &head[PREAMBLE..PREAMBLE + 4] == b"DICM", "not a Part 10 file");
    let element = &head[PREAMBLE + 4..HEAD];
    assert_eq!(&element[..8], b"\x02\0\0\0UL\x04\0", "group 2 opens with its length");
    HEAD + u32::from_le_bytes([element[8], element[9], element[10], element[11]]) as usize
}

/// SHA-256 of the data set of a Part 10 file, read in blocks. Lower-case hexadecimal.
#[track_caller]
pub fn data_set_hash(path: &Path) -> String {
    let mut head = Vec::new();
    let mut file = File::open(path).unwrap();
    file.by_ref().take(HEAD as u64).read_to_end(&mut head).unwrap();
    let group = data_set_offset(&head) - HEAD;
    let mut reader = BufReader::with_capacity(BLOCK, file);
    std::io::copy(&mut reader.by_ref().take(group as u64), &mut std::io::sink()).unwrap();
    hash_of(reader)
}

/// The same of the last `bytes` of a file.
#[track_caller]
pub fn hash_of_the_last(path: &Path, bytes: u64) -> String {
    let mut file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(length.checked_sub(bytes).expect("it is so long"))).unwrap();
    hash_of(file)
}

fn hash_of(mut reader: impl Read) -> String {
    let (mut digest, mut block) = (Context::new(&SHA256), vec![0; BLOCK]);
    loop {
        match reader.read(&mut block).unwrap() {
            0 => break,
            count => digest.update(&block[..count]),
        }
    }
    data_encoding::HEXLOWER.encode(digest.finish().as_ref())
}

/// The same of a Part 10 file in memory.
#[track_caller]
pub fn data_set_hash_of(file: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&SHA256, &file[data_set_offset(file)..]);
    data_encoding::HEXLOWER.encode(digest.as_ref())
}

/// What `dciodvfy` of dicom3tools finds wrong with an object, sorted: its errors, not its warnings. Compare with the faults of what was
/// sent: objects have faults of their own.
#[track_caller]
pub fn faults(path: &Path) -> Vec<String> {
    let said = run(Command::new("dciodvfy").arg(path)).said;
    let mut faults: Vec<_> = said.lines().filter(|line| line.starts_with("Error")).map(str::to_owned).collect();
    faults.sort();
    faults
}

/// The data set hashes of the files in a folder, sorted: what an archive holds.
#[track_caller]
pub fn hashes_in(folder: &Path) -> Vec<String> {
    let mut hashes: Vec<_> = super::dicom::files_in(folder).iter().map(|path| data_set_hash(path)).collect();
    hashes.sort();
    hashes
}

/// The hashes of objects, sorted.
pub fn hashes(objects: &[Object]) -> Vec<String> {
    let mut hashes: Vec<_> = objects.iter().map(|object| object.sha256.clone()).collect();
    hashes.sort();
    hashes
}

/// A folder of its own for each of `count` senders, the objects dealt out as links.
pub fn dealt_out(folder: &Path, objects: &[Object], count: usize) -> Vec<PathBuf> {
    let folders: Vec<_> = (0..count).map(|k| folder.join(format!("sender-{k}"))).collect();
    for own in &folders {
        fs::create_dir_all(own).unwrap();
    }
    for (index, object) in objects.iter().enumerate() {
        fs::hard_link(&object.path, folders[index % count].join(object.path.file_name().unwrap())).unwrap();
    }
    folders
}
