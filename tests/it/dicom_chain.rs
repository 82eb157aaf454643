//! The whole way of an image: a modality, the real executable with its spool, and what is behind it. Peers that are not ours on both
//! sides; what arrives is compared by the hash of its data set with what the modality read from its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;

use crate::gateway::route;
use crate::support::broker::Broker;
use crate::support::dicom::{AS_SENT, Archive, Storescp, events, files_in, modality};
use crate::support::dicom_files::{
    Object, ct_images, data_set_hash, data_set_hash_of, faults, hash_of_the_last, large_objects, odd_objects,
    wheel_objects,
};
use crate::support::gateway::Gateway;
use crate::support::orthanc::Orthanc;
use crate::support::process::{Process, run, run_long, succeeds, wardgate};
use crate::support::rounds;
use crate::support::tools::system;
use crate::support::wait::{PATIENCE, eventually, holds_within};

/// Classes whose storage is the Storage service (PS3.4 annex B.5) begin so; palettes, templates and media directories do not.
const STORAGE: &str = "1.2.840.10008.5.1.4.1.1.";
/// For an object of gigabytes.
const LONG: Duration = Duration::from_secs(600);
const SOURCE: &str = "[source.ct.dicom]\nlisten = \"127.0.0.1:0\"\nae-title = \"WARDGATE\"\n";

fn to_archive(at: SocketAddr) -> String {
    format!("[upstream.archive.dicom]\naddress = \"{at}\"\ncalled = \"ARCHIVE\"\nplain = true\n")
}

fn to_folder(out: &Path) -> String {
    fs::create_dir_all(out).unwrap();
    format!("[upstream.folder.directory]\npath = \"{}\"\nunsealed = true\n", out.display())
}

/// The sender, with several associations and no limit for what we send.
fn sender(gateway: &Gateway, files: &Path) -> Command {
    let mut command = modality(gateway.endpoint("ct"), "WARDGATE");
    command.args(["--associations", "4", "--max-pdu", "0"]).arg(files);
    command
}

/// The hashes of what a modality was told is stored, each once.
fn told(said: &str) -> BTreeSet<String> {
    let stored = events(said, "stored").into_iter().filter(|event| event["status"] == "0000");
    stored.map(|event| event["sha256"].as_str().unwrap().to_owned()).collect()
}

fn hashes<'a>(objects: impl IntoIterator<Item = &'a Object>) -> BTreeSet<String> {
    objects.into_iter().map(|object| object.sha256.clone()).collect()
}

fn in_folder(folder: &Path) -> BTreeSet<String> {
    files_in(folder).iter().map(|path| data_set_hash(path)).collect()
}

#[track_caller]
fn drained(gateway: &Gateway) {
    eventually("everything that waits is delivered", || gateway.backlog() == 0);
}

/// SOP classes that the archive refused, from the words of the dead letters.
fn refused_classes(gateway: &Gateway, known: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for letter in gateway.dead() {
        assert_eq!(letter["upstream"], "archive", "{letter}");
        let reason = letter["reason"].as_str().unwrap();
        let mut words = reason.split(|c: char| !c.is_ascii_digit() && c != '.');
        let class = words.find(|word| known.contains(word));
        found.insert(class.unwrap_or_else(|| panic!("refused for another reason: {reason}")).to_owned());
    }
    found
}

#[test]
fn every_object_of_the_wheels_and_every_odd_one_is_in_the_archive_and_in_the_folder_as_it_was_sent() {
    let (folder, outbox, store) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = [wheel_objects(outbox.path()), odd_objects(outbox.path())].concat();
    let archive = Archive::start::<&str>(store.path(), &[]);
    let out = folder.path().join("out");
    let config = [SOURCE, &to_archive(archive.address), &to_folder(&out), &route("ct", &["archive", "folder"])];
    let gateway = Gateway::start(folder.path(), &config.concat());
    let said = run_long(&mut sender(&gateway, outbox.path())).said;
    let answered = events(&said, "stored");
    assert_eq!(answered.len(), objects.len(), "{said}");
    // Where group 2 of a file names another instance than its data set, the modality is told so, and the object kept.
    assert!(answered.iter().all(|answer| answer["status"] == "0000" || answer["status"] == "A900"), "{said}");
    drained(&gateway);
    assert_eq!(in_folder(&out), hashes(&objects));
    let classes = objects.iter().map(|object| object.sop_class.as_str()).collect();
    let refused = refused_classes(&gateway, &classes);
    assert!(refused.iter().all(|class| !class.starts_with(STORAGE)), "{refused:?}");
    let wanted: Vec<_> = objects.iter().filter(|object| !refused.contains(&object.sop_class)).collect();
    assert!(wanted.len() > 250, "only {}", wanted.len());
    assert_eq!(in_folder(store.path()), hashes(wanted));
    gateway.stop();
}

/// One sender until it has been told `enough`, and then SIGKILL for the service. What the sender was told.
fn send_and_be_killed(gateway: Gateway, files: &Path, enough: usize) -> BTreeSet<String> {
    let process = Process::start(&mut sender(&gateway, files));
    eventually("some images are acknowledged", || told(&process.lines().join("\n")).len() >= enough);
    gateway.process.kill();
    // pynetdicom waits for minutes for the answer to what it was sending: whoever stands at the scanner starts it again.
    told(&process.kill().said)
}

#[test]
fn what_the_modality_was_told_is_stored_arrives_through_kills_and_an_archive_that_goes_and_comes() {
    let (folder, outbox, store) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = [ct_images(outbox.path(), 30), odd_objects(outbox.path())].concat();
    let mut archive = Some(Archive::start::<&str>(store.path(), &[]));
    let at = archive.as_ref().unwrap().address;
    let port = ["--port".to_owned(), at.port().to_string()];
    let config = [SOURCE, &to_archive(at), &route("ct", &["archive"])];
    let mut gateway = Gateway::start(folder.path(), &config.concat());
    let mut promised = BTreeSet::new();
    for round in 0..rounds(3, 40) as usize {
        promised.extend(send_and_be_killed(gateway, outbox.path(), 4 + round * 7 % 30));
        archive = match archive {
            Some(archive) => {
                archive.process.kill();
                None
            }
            None => Some(Archive::start(store.path(), &port)),
        };
        gateway = Gateway::again(folder.path());
    }
    let _running = archive.unwrap_or_else(|| Archive::start(store.path(), &port));
    // A modality sends a study again that was not acknowledged to its end.
    let said = succeeds(&mut sender(&gateway, outbox.path()));
    promised.extend(told(&said));
    assert_eq!(promised, hashes(&objects));
    drained(&gateway);
    assert_eq!(in_folder(store.path()), promised);
    assert_eq!(gateway.dead().len(), 0);
    gateway.stop();
}

#[test]
fn an_archive_that_goes_while_nothing_is_sent_is_shown_as_gone_and_then_as_there_again() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archive = Archive::start::<&str>(store.path(), &[]);
    let at = archive.address;
    let often = to_archive(at).replace("plain = true\n", "plain = true\ncheck-every = \"1s\"\n");
    let gateway = Gateway::start(folder.path(), &[SOURCE, &often, &route("ct", &["archive"])].concat());
    let link = || gateway.status()["upstreams"]["archive"]["link"].clone();
    eventually("it is looked after", || link()["state"] == "up" && archive.events("released").len() > 2);
    archive.process.kill();
    eventually("it is shown as gone", || link()["state"] == "down");
    let _again = Archive::start(store.path(), &["--port".to_owned(), at.port().to_string()]);
    eventually("it is shown as there", || link()["state"] == "up");
}

#[test]
fn a_study_arrives_in_orthanc_over_dicomweb_as_it_was_sent() {
    let (folder, outbox) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = [ct_images(outbox.path(), 6), odd_objects(outbox.path())].concat();
    let orthanc = Orthanc::start(folder.path(), &[], &Value::Null);
    let url = format!("http://{}/dicom-web/studies", orthanc.http);
    let upstream = format!("[upstream.web.stow]\nurl = \"{url}\"\nplain = true\n");
    let gateway = Gateway::start(folder.path(), &[SOURCE, &upstream, &route("ct", &["web"])].concat());
    succeeds(&mut sender(&gateway, outbox.path()));
    drained(&gateway);
    assert_eq!(gateway.dead().len(), 0, "{:?}", gateway.dead());
    let held: BTreeSet<_> = orthanc.objects().iter().map(|(_, file)| data_set_hash_of(file)).collect();
    assert_eq!(held, hashes(&objects));
    gateway.stop();
}

#[test]
fn images_go_over_mqtt_in_parts_and_the_collector_has_each_as_one_file() {
    const PACKET_BYTES: u64 = 60_000;
    let (folder, outbox, into) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let objects = [ct_images(outbox.path(), 6), odd_objects(outbox.path())].concat();
    let mut broker = Broker::start(folder.path(), &format!("max_packet_size {PACKET_BYTES}"));
    let address = format!("127.0.0.1:{}", broker.port);
    let mut collect = wardgate();
    collect.args(["collect", "--plain", "--broker", &address, "--into"]).arg(into.path());
    let collector = Process::start(&mut collect);
    broker.process.line_with("Sending SUBACK to wardgate-collect");
    let upstream = format!("[upstream.cloud.mqtt]\naddress = \"{address}\"\nplain = true\nreceipt = \"collector\"\n");
    let gateway = Gateway::start(folder.path(), &[SOURCE, &upstream, &route("ct", &["cloud"])].concat());
    succeeds(&mut sender(&gateway, outbox.path()));
    drained(&gateway);
    assert_eq!(in_folder(&into.path().join("test-site/test-box/ct")), hashes(&objects));
    let journal = fs::read_to_string(into.path().join("received.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), objects.len());
    for line in journal.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let file = fs::read(into.path().join(line["file"].as_str().unwrap())).unwrap();
        assert_eq!(line["sha256"], sha256(&file), "{line}");
        assert_eq!((&line["content-type"], &line["log"]), (&"application/dicom".into(), &"imaging".into()));
    }
    let packets = broker.process.lines().iter().filter(|line| line.contains("Received PUBLISH")).count() as u64;
    let least: u64 = objects.iter().map(|object| object.bytes / PACKET_BYTES + 1).sum();
    assert!(packets >= least, "{packets} packets for {least} parts");
    gateway.stop();
    collector.signal("TERM");
    assert!(collector.ends_within(PATIENCE).status.success());
}

fn sha256(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

#[test]
fn dciodvfy_finds_no_fault_in_our_files_that_was_not_in_what_was_sent() {
    let (folder, outbox) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let some = outbox.path().join("some");
    let objects = [ct_images(&some, 1), odd_objects(&some), dealt(&outbox.path().join("wheels"), &some, 9)].concat();
    let out = folder.path().join("out");
    let gateway = Gateway::start(folder.path(), &[SOURCE, &to_folder(&out), &route("ct", &["folder"])].concat());
    run(&mut sender(&gateway, &some));
    drained(&gateway);
    let written: BTreeMap<_, _> = files_in(&out).into_iter().map(|path| (data_set_hash(&path), path)).collect();
    assert_eq!(written.keys().cloned().collect::<BTreeSet<_>>(), hashes(&objects));
    let mut with_faults = 0;
    for object in &objects {
        let (before, after) = (faults(&object.path), faults(&written[&object.sha256]));
        assert_eq!(after, before, "{}", object.path.display());
        with_faults += usize::from(!before.is_empty());
    }
    assert!(with_faults > 0, "nothing was looked at");
    gateway.stop();
}

/// Every `nth` object of the wheels, in another folder.
fn dealt(wheels: &Path, to: &Path, nth: usize) -> Vec<Object> {
    let chosen = wheel_objects(wheels).into_iter().step_by(nth);
    let moved = chosen.map(|object| {
        let path = to.join(object.path.file_name().unwrap());
        fs::hard_link(&object.path, &path).unwrap();
        Object { path, ..object }
    });
    moved.collect()
}

/// A small image and a multi-frame, made in `outbox` and sent through the box to `storescp` with these options, which keeps them in
/// `store`. Checks that the box's memory does not grow with the multi-frame.
fn a_multi_frame_goes_through([outbox, store]: [&Path; 2], options: &[&str], upstream: &str) -> [Object; 2] {
    const GROWTH_KIB_MAX: u64 = 32 << 10;
    let size = u64::from(rounds(96, 2048)) << 20;
    let folder = tempfile::tempdir().unwrap();
    let small = ct_images(&outbox.join("small"), 1);
    let large = large_objects(&outbox.join("large"), 1, size);
    // This one writes while it receives.
    let archive = Storescp::start(store, &[options, &["--fork"]].concat());
    let config = [SOURCE, &to_archive(archive.address), upstream, &route("ct", &["archive"])];
    let gateway = Gateway::start(folder.path(), &config.concat());
    succeeds(&mut sender(&gateway, &outbox.join("small")));
    drained(&gateway);
    let before = peak_kib(gateway.process.pid());
    let began = Instant::now();
    let sending = Process::start(&mut sender(&gateway, &outbox.join("large")));
    assert!(sending.ends_within(LONG).status.success());
    let stored = began.elapsed();
    assert!(holds_within(LONG, || gateway.backlog() == 0), "it did not leave");
    let grown = peak_kib(gateway.process.pid()).saturating_sub(before);
    eprintln!(
        "{} MiB: acknowledged after {stored:.1?}, delivered after {:.1?}, {grown} KiB",
        size >> 20,
        began.elapsed()
    );
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB of memory for {} MiB", size >> 20);
    assert_eq!(gateway.dead().len(), 0);
    gateway.stop();
    [small, large].map(|mut objects| objects.remove(0))
}

#[test]
fn a_multi_frame_of_any_length_arrives_and_leaves_in_bounded_memory() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sent = a_multi_frame_goes_through([outbox.path(), store.path()], AS_SENT, "");
    assert_eq!(in_folder(store.path()), hashes(&sent));
}

#[test]
fn a_multi_frame_of_any_length_is_converted_in_bounded_memory() {
    let (outbox, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // This archive takes implicit VR only.
    let sent =
        a_multi_frame_goes_through([outbox.path(), store.path()], &["+B", "+xi"], "convert = \"uncompressed\"\n");
    for object in &sent {
        let kept =
            files_in(store.path()).into_iter().find(|path| path.to_string_lossy().ends_with(&object.sop_instance));
        let kept = kept.expect("it is there");
        let meta = succeeds(system("dcmdump").args(["+P", "0002,0010"]).arg(&kept));
        assert!(meta.contains("=LittleEndianImplicit"), "{meta}");
        // The pixels are the last element, and all but some hundred bytes.
        let pixels = object.bytes - object.bytes.min(2000);
        assert_eq!(hash_of_the_last(&kept, pixels), hash_of_the_last(&object.path, pixels));
    }
}

/// Peak memory of a process in KiB (proc(5), `VmHWM`).
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
