//! `convert`: what an archive refuses in one uncompressed encoding reaches it in the other, with the same values.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use wardgate::upstream::SendError;
use wardgate::wire::dicom::dictionary::representation;
use wardgate::wire::dicom::element::Tag;

use super::dicom::{connect, read, send};
use crate::support::dicom::Archive;
use crate::support::dicom_files::{Object, faults, odd_objects, wheel_objects};
use crate::support::tools::python_peer;

const IMPLICIT: &str = "1.2.840.10008.1.2";
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const RETIRED_ULTRASOUND: &str = "1.2.840.10008.5.1.4.1.1.6";
const CONVERT: &str = "plain = true\nassociations = 1\nconvert = \"uncompressed\"";

/// What each pair's comparison by pydicom says.
fn compared(pairs: &[(PathBuf, PathBuf)]) -> Vec<String> {
    let mut child =
        python_peer("dicom_compare.py").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python");
    let lines: String = pairs.iter().map(|(one, other)| format!("{}\t{}\n", one.display(), other.display())).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Sends all objects of the encoding `from` to an archive that takes `to` alone; the pairs of what was sent and what it has, and why
/// others were not taken.
async fn converted(objects: &[Object], from: &str, to: &str, store: &Path) -> (Vec<(PathBuf, PathBuf)>, Vec<String>) {
    let classes: BTreeSet<&str> = objects.iter().map(|object| object.sop_class.as_str()).collect();
    let classes: Vec<&str> = classes.into_iter().collect();
    let archive = Archive::start(store, &["--transfer-syntaxes", to, "--sop-classes", &classes.join(",")]);
    let upstream = connect(archive.address, CONVERT).await.unwrap();
    let (mut pairs, mut reasons, mut copies) = (Vec::new(), Vec::new(), HashMap::new());
    for object in objects.iter().filter(|object| object.transfer_syntax == from) {
        match send(&upstream, &read(&object.path)).await {
            Ok(_) => {
                let copy = copies.entry(object.sop_instance.clone()).and_modify(|copy| *copy += 1).or_insert(1);
                let nth = if *copy > 1 { format!("~{copy}") } else { String::new() };
                pairs.push((object.path.clone(), store.join(format!("{}{nth}.dcm", object.sop_instance))));
            }
            Err(SendError::Rejected { reason }) => reasons.push(format!("{}: {reason}", object.path.display())),
            // pynetdicom ends the association over a retired class that it has no service for.
            Err(SendError::Refused { .. }) if object.sop_class == RETIRED_ULTRASOUND => {}
            Err(other) => panic!("{}: {other}", object.path.display()),
        }
    }
    let stored = archive.wait_for("stored", pairs.len());
    assert!(stored.iter().all(|event| event["transfer_syntax"] == to));
    (pairs, reasons)
}

/// What dcmtk writes where the standard leaves a choice, and for the tags of offsets in a DICOMDIR; and what we take.
const CHOICES: [(&str, &str); 5] = [("ox", "OW"), ("px", "OW"), ("lt", "OW"), ("xs", "US"), ("up", "UL")];

#[test]
fn the_list_of_elements_says_what_the_dictionary_of_dcmtk_says() {
    let mut folders = std::fs::read_dir("/usr/share").unwrap().map(|entry| entry.unwrap().path());
    let dcmtk = folders.find(|path| path.join("dicom.dic").is_file()).expect("dcmtk is installed");
    let theirs = std::fs::read(dcmtk.join("dicom.dic")).unwrap();
    let mut compared = 0;
    // Commands, heads of files and delimiters are no elements of a data set.
    let elsewhere = |line: &&str| ["(0000,", "(0002,", "(FFFE,"].iter().any(|group| line.starts_with(group));
    for line in String::from_utf8_lossy(&theirs).lines().filter(|line| !elsewhere(line)) {
        // (0008,0005)<tab>CS<tab>SpecificCharacterSet...; ranges are written otherwise.
        let Some((tag, rest)) = line.strip_prefix('(').and_then(|line| line.split_once(")\t")) else { continue };
        let Ok(tag) = u32::from_str_radix(&tag.replace(',', ""), 16) else { continue };
        let said = rest.split('\t').next().unwrap();
        let said = CHOICES.iter().find(|(theirs, _)| *theirs == said).map_or(said, |(_, ours)| ours);
        let ours = representation(Tag(tag), false).unwrap_or_default();
        assert_eq!(String::from_utf8_lossy(&ours), said, "{line}");
        compared += 1;
    }
    assert!(compared > 4000, "only {compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_uncompressed_object_of_the_wheels_says_the_same_in_the_other_encoding() {
    let folder = tempfile::tempdir().unwrap();
    let mut objects = wheel_objects(&folder.path().join("wheels"));
    objects.extend(odd_objects(&folder.path().join("odd")));
    // The archive does not store others, directories above all.
    objects.retain(|object| object.sop_class.starts_with("1.2.840.10008.5.1.4.1.1."));
    let there = proven(&objects, (EXPLICIT, IMPLICIT), &folder.path().join("implicit"), 140).await;
    // Few of the wheels are implicit: those that were made so go back as well.
    let first = objects.len();
    for (before, after) in there {
        let object = objects[..first].iter().find(|object| object.path == before).unwrap();
        objects.push(Object { path: after, transfer_syntax: IMPLICIT.into(), ..object.clone() });
    }
    proven(&objects, (IMPLICIT, EXPLICIT), &folder.path().join("explicit"), 150).await;
}

/// Converts what is there in one encoding and compares: the values by pydicom, the rules for its class by dciodvfy.
async fn proven(
    objects: &[Object],
    (from, to): (&str, &str),
    store: &Path,
    at_least: usize,
) -> Vec<(PathBuf, PathBuf)> {
    std::fs::create_dir(store).unwrap();
    let (pairs, reasons) = converted(objects, from, to, store).await;
    assert!(pairs.len() >= at_least, "{}: {reasons:#?}", pairs.len());
    // They are cut short, or explicit and said to be implicit.
    let known = ["truncated", "meta_missing_tsyntax"];
    assert!(reasons.iter().all(|reason| known.iter().any(|known| reason.contains(known))), "{reasons:#?}");
    let told = compared(&pairs);
    assert_eq!(told.len(), pairs.len());
    let differ: Vec<_> = pairs.iter().zip(&told).filter(|(_, said)| *said != "same").collect();
    assert!(differ.is_empty(), "{differ:#?}");
    for (before, after) in pairs.iter().step_by(10) {
        let (known, mut new) = (faults(before), faults(after));
        new.retain(|fault| !known.contains(fault));
        assert!(new.is_empty(), "{}: {new:#?}", before.display());
    }
    pairs
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compressed_or_no_data_set_is_a_dead_letter_that_says_so_and_a_study_goes_over_one_association() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = Archive::start(store.path(), &["--transfer-syntaxes", IMPLICIT]);
    let upstream = connect(archive.address, CONVERT).await.unwrap();
    for number in 0..5 {
        assert_eq!(send(&upstream, &super::dicom::instance(number)).await.unwrap(), "0000");
    }
    assert_eq!(archive.wait_for("associated", 2).len(), 2, "the trial, and one for all");
    let objects = odd_objects(folder.path());
    let htj2k = objects.iter().find(|object| object.transfer_syntax.ends_with(".4.201")).unwrap();
    let error = send(&upstream, &read(&htj2k.path)).await.unwrap_err();
    assert!(matches!(&error, SendError::Rejected { reason } if !reason.contains("converted")), "{error}");
    let mut cut = super::dicom::instance(9).body.as_whole().unwrap().to_vec();
    cut.truncate(cut.len() - 5);
    let error = send(&upstream, &super::envelope("2.25.1", cut)).await.unwrap_err();
    let words = "it can't be converted: it ends in the middle of an element";
    assert!(matches!(&error, SendError::Rejected { reason } if reason.contains(words)), "{error}");
    assert_eq!(archive.wait_for("stored", 5).len(), 5);
}
