//! `wardgate demo` as a newcomer runs it: the real executable, from the first message to the verdict.

use std::time::Duration;

use wardgate::wire::dicom::file::FileMeta;
use wardgate::wire::dicom::sample::{CtSlice, Sample};
use wardgate::wire::dicom::values::{AeTitle, CT_IMAGE, EXPLICIT_LITTLE_ENDIAN, SECONDARY_CAPTURE};

use crate::support::dicom::modality;
use crate::support::dicom_files::{ct_images, faults, hashes, hashes_in};
use crate::support::process::{Process, succeeds, wardgate};

/// The demo's own time, its drain after a cut, and room for a slow machine.
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn a_demo_that_ends_while_the_upstream_is_cut_delivers_what_waits_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Process::start(wardgate().args(["demo", "--for", "13s"]).env("TMPDIR", folder.path()));
    let how_to = demo.line_with("wardgate probe mllp ");
    let address = how_to.split_whitespace().last().unwrap().to_owned();
    let probed = wardgate().args(["probe", "mllp", &address]).output().unwrap();
    assert_eq!(probed.status.code(), Some(0), "the command that the demo prints works as it stands");
    let how_to = demo.line_with("wardgate probe dicom ");
    let probe: Vec<&str> = how_to.split_whitespace().skip_while(|word| *word != "probe").collect();
    let probed = wardgate().args(probe).output().unwrap();
    assert_eq!(probed.status.code(), Some(0), "and the one for images: {}", String::from_utf8_lossy(&probed.stderr));
    let ended = demo.ends_within(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
    let cut = ended.said.lines().filter(|line| line.contains("upstream CUT")).filter_map(waiting);
    assert!(cut.max() > Some(8), "the backlog grew while the upstream was cut:\n{}", ended.said);
    let verdict = ended.said.lines().find(|line| line.starts_with("GOOD: ")).unwrap();
    let acknowledged: u64 = verdict.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(acknowledged >= 100, "eight monitors send sixteen a second: {verdict}");
    let images: u64 = verdict.split(" and ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(images, 24, "one study of the CT: {verdict}");
    assert!(verdict.contains(" results and ") && verdict.contains(" readings were acknowledged"), "{verdict}");
    let (lines, _) = verdict.split_once(" lines of the oximeter").expect(verdict);
    let lines: u64 = lines.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(lines >= 10, "the oximeter writes one a second: {verdict}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the temporary folder is gone");
}

#[test]
fn a_real_modality_can_be_pointed_at_the_demo_and_its_images_are_put_into_a_folder() {
    let (folder, outbox, into) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = ct_images(outbox.path(), 2);
    let mut demo = Process::start(
        wardgate()
            .args(["demo", "--monitors", "0", "--listen-dicom", "127.0.0.1:0", "--into"])
            .arg(into.path())
            .env("TMPDIR", folder.path()),
    );
    let how_to = demo.line_with("point a real modality at:");
    let address = how_to.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    succeeds(modality(address, "WARDGATE").arg(outbox.path()));
    demo.line_with("images   24");
    demo.signal("TERM");
    let ended = demo.ends_within(LIMIT);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.said);
    let verdict = ended.said.lines().find(|line| line.starts_with("GOOD: ")).unwrap();
    assert!(verdict.contains(" images and ") && !verdict.contains("messages"), "{verdict}");
    assert_eq!(hashes_in(&into.path().join("demo/demo/modalities")), hashes(&images));
    let left = std::fs::read_dir(into.path().join("demo/demo/scanners")).unwrap().count();
    assert_eq!(left, 0, "what was simulated is gone");
}

#[test]
fn dciodvfy_finds_nothing_wrong_with_the_images_that_we_make_up() {
    let folder = tempfile::tempdir().unwrap();
    let [sop_instance, study, series, frame] = [1, 2, 3, 4].map(|end| format!("2.25.900{end}").parse().unwrap());
    let (number, date, time) = (7, "20260102", "030405");
    let slice = CtSlice {
        sop_instance: &sop_instance,
        study: &study,
        series: &series,
        frame_of_reference: &frame,
        patient_name: "Test-Érable^Élodie",
        patient_id: "TEST-CT-1",
        born: "19911217",
        sex: "F",
        number,
        date,
        time,
    };
    let sample = Sample { sop_instance: &sop_instance, study: &study, series: &series, number, date, time, side: 64 };
    for (name, sop_class, data_set) in
        [("slice", CT_IMAGE, slice.data_set()), ("sample", SECONDARY_CAPTURE, sample.data_set())]
    {
        let meta = FileMeta {
            sop_class,
            sop_instance: sop_instance.clone(),
            transfer_syntax: EXPLICIT_LITTLE_ENDIAN,
            source_ae: AeTitle::read(b"CT1"),
            receiving_ae: AeTitle::default(),
        };
        let path = folder.path().join(name);
        std::fs::write(&path, [meta.bytes(), data_set].concat()).unwrap();
        assert_eq!(faults(&path), [""; 0], "{name}");
    }
}

/// The number behind "waiting" in a line of the demo.
fn waiting(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "waiting");
    words.nth(1)?.parse().ok()
}
