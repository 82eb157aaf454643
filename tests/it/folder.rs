//! A watched folder, played by hand: files that grow, come again, can't be read, are links, are very many or very large.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{Context, SHA256};

use crate::support::gateway::Gateway;
use crate::support::process::{Process, run};
use crate::support::rounds;
use crate::support::tools::{python_peer, system, with_faults};
use crate::support::wait::{eventually, holds_within};

/// A folder that is watched, and one for what the service delivers.
struct Desk {
    folder: tempfile::TempDir,
}

const FAST: &str = "settle = \"200ms\"\nevery = \"100ms\"";

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(desk.watched()).unwrap();
        fs::create_dir(desk.out()).unwrap();
        desk
    }

    fn watched(&self) -> PathBuf {
        self.folder.path().join("results")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn put(&self, name: impl AsRef<Path>, bytes: &[u8]) {
        let path = self.watched().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn config(&self, more: &str) -> String {
        let (watched, out) = (self.watched(), self.out());
        format!(
            "[source.lab.folder]\npath = \"{}\"\n{more}\n[upstream.out.directory]\npath = \"{}\"\nunsealed = true\n\
             [[route]]\nfrom = [\"lab\"]\nto = [\"out\"]\n",
            watched.display(),
            out.display()
        )
    }

    fn start(&self, more: &str) -> Gateway {
        Gateway::start(self.folder.path(), &self.config(more))
    }

    /// What was delivered: how often each body arrived, without the records about the folder itself.
    fn delivered(&self) -> BTreeMap<Vec<u8>, usize> {
        let mut bodies = BTreeMap::new();
        for path in files(&self.out()) {
            let bytes = fs::read(path).unwrap();
            if !bytes.starts_with(b"{\"v\":1,") {
                *bodies.entry(bytes).or_default() += 1;
            }
        }
        bodies
    }

    fn records(&self) -> Vec<serde_json::Value> {
        let bodies = files(&self.out()).into_iter().map(|path| fs::read(path).unwrap());
        bodies
            .filter(|bytes| bytes.starts_with(b"{\"v\":1,"))
            .map(|bytes| serde_json::from_slice(&bytes).unwrap())
            .collect()
    }

    #[track_caller]
    fn awaits(&self, bodies: &[&[u8]]) {
        let what = format!("{} bodies arrive", bodies.len());
        eventually(&what, || bodies.iter().all(|body| self.delivered().contains_key(*body)));
    }
}

/// Files of a folder that are whole.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap());
    let shown = entries.filter(|entry| !entry.file_name().as_bytes().starts_with(b"."));
    shown.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

fn names(folder: &Path) -> BTreeSet<Vec<u8>> {
    files(folder).into_iter().map(|path| path.file_name().unwrap().as_bytes().to_vec()).collect()
}

#[test]
fn files_arrive_byte_for_byte_and_are_moved_away_only_then() {
    let desk = Desk::new();
    let odd = OsStr::from_bytes(b"odd\xff name\n.csv");
    desk.put("run 1.astm", b"H|\\^&|||A\rL|1|N\r");
    desk.put(odd, b"id;value\r\n1;7,3\r\n");
    desk.put("sub/deep/b.txt", b"in a folder of a folder");
    let long: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    desk.put("long.bin", &long);
    let gateway = desk.start(&format!("{FAST}\nsub-folders = true"));
    desk.awaits(&[b"H|\\^&|||A\rL|1|N\r", b"id;value\r\n1;7,3\r\n", b"in a folder of a folder", &long]);
    let done = desk.watched().join("done");
    eventually("all are moved", || files(&desk.watched()).is_empty() && done.join("sub/deep/b.txt").exists());
    assert_eq!(fs::read(done.join(odd)).unwrap(), b"id;value\r\n1;7,3\r\n");
    assert_eq!(fs::read(done.join("long.bin")).unwrap(), long);
    let said = gateway.stop();
    for name in ["run 1", "odd", "deep", "long.bin"] {
        assert!(!said.contains(name), "a file's name is in the log: {said}");
    }
    assert!(desk.delivered().values().all(|count| *count == 1));
}

#[test]
fn what_a_file_is_is_known_by_rule_or_by_its_content() {
    let (desk, store) = (Desk::new(), tempfile::tempdir().unwrap());
    let mut end = Process::start(python_peer("https_end.py").arg("--store").arg(store.path()));
    let files: [(&str, &[u8], &str); 5] = [
        ("1.dat", b"H|\\^&|||A\rL|1|N\r", "application/vnd.wardgate.astm"),
        ("2.dat", b"MSH|^~\\&|A|B|C|D|20260102||ORU^R01|4711|P|2.5\r", "application/hl7-v2"),
        ("3.dat", b"id,value\n1,2\n", "text/csv"),
        ("4.xyz", b"id,value\n1,3\n", "application/x-ours; charset=utf-8"),
        ("5.dat", b"\x89PNG\r\n\x1a\n\x00", "application/octet-stream"),
    ];
    for (name, bytes, _) in files {
        desk.put(name, bytes);
    }
    let rule = "[[source.lab.folder.file]]\npattern = \"*.XYZ\"\ncontent-type = \"application/x-ours; charset=utf-8\"";
    let url = format!("http://localhost:{}/in", end.listening().port());
    let config = format!(
        "[source.lab.folder]\npath = \"{}\"\nthen = \"delete\"\n{FAST}\n{rule}\n[upstream.out.https]\nurl = \"{url}\"\nplain = true\n\
         [[route]]\nfrom = [\"lab\"]\nto = [\"out\"]\n",
        desk.watched().display()
    );
    let gateway = Gateway::start(desk.folder.path(), &config);
    let requests = || fs::read_to_string(store.path().join("requests")).unwrap_or_default();
    eventually("all are posted", || requests().lines().count() == files.len());
    let mut types = BTreeMap::new();
    for line in requests().lines() {
        let request: serde_json::Value = serde_json::from_str(line).unwrap();
        let headers = request["headers"].as_object().unwrap();
        let (_, media) = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type")).unwrap();
        types.insert(request["sha256"].as_str().unwrap().to_owned(), media.as_str().unwrap().to_owned());
    }
    for (name, bytes, media) in files {
        assert_eq!(types[&crate::mqtt::hex(&crate::mqtt::sha256(bytes))], media, "{name}");
    }
    eventually("all are deleted", || files_left(&desk) == 0);
    gateway.stop();
}

fn files_left(desk: &Desk) -> usize {
    files(&desk.watched()).len()
}

#[test]
fn a_file_is_taken_only_when_it_has_settled_and_unfinished_ones_never() {
    let desk = Desk::new();
    let gateway = desk.start("settle = \"1s\"\nevery = \"100ms\"\nthen = \"delete\"");
    for name in ["a.part", "B.TMP", ".hidden", "~c"] {
        desk.put(name, b"unfinished");
    }
    fs::write(desk.folder.path().join("elsewhere"), "outside").unwrap();
    symlink(desk.folder.path().join("elsewhere"), desk.watched().join("link.csv")).unwrap();
    // Written in steps that are shorter than it takes to settle: it arrives once, and whole.
    let mut growing = File::create(desk.watched().join("growing.csv")).unwrap();
    let mut whole = Vec::new();
    for step in 0..8 {
        let line = format!("{step},value\n");
        growing.write_all(line.as_bytes()).unwrap();
        whole.extend(line.into_bytes());
        let early = holds_within(std::time::Duration::from_millis(250), || !desk.delivered().is_empty());
        assert!(!early, "it was taken while it grew");
    }
    desk.awaits(&[&whole]);
    eventually("it is deleted", || !desk.watched().join("growing.csv").exists());
    // What is renamed when it is finished is taken.
    fs::rename(desk.watched().join("a.part"), desk.watched().join("a.csv")).unwrap();
    desk.awaits(&[b"unfinished"]);
    assert_eq!(desk.delivered().len(), 2, "nothing else was taken, least of all what the link leads to");
    assert!(desk.watched().join("link.csv").symlink_metadata().is_ok());
    gateway.stop();
}

#[test]
fn the_same_name_with_other_content_is_a_new_message_and_all_are_kept_in_done() {
    let desk = Desk::new();
    let gateway = desk.start(FAST);
    for number in 0..3 {
        let body = format!("result {number}");
        desk.put("result.txt", body.as_bytes());
        desk.awaits(&[body.as_bytes()]);
        eventually("it is moved", || files_left(&desk) == 0);
    }
    assert_eq!(files(&desk.watched().join("done")).len(), 3);
    // The very same file again is known, acknowledged by being moved, and not sent twice.
    desk.put("result.txt", b"result 1");
    eventually("it is moved, too", || files_left(&desk) == 0);
    eventually("it is counted as a repeat", || gateway.status()["sources"]["lab"]["repeats"] == 1);
    gateway.stop();
    assert!(desk.delivered().values().all(|count| *count == 1));
}

#[test]
fn a_folder_that_vanishes_is_waited_for_and_told() {
    let desk = Desk::new();
    let away = desk.folder.path().join("away");
    let gateway = desk.start(&format!("{FAST}\nmarker = \"mounted\""));
    let state = || gateway.status()["sources"]["lab"]["plug"]["state"].clone();
    eventually("the marker is missing", || state() == "missing");
    desk.put("mounted", b"");
    eventually("it is there", || state() == "plugged");
    fs::rename(desk.watched(), &away).unwrap();
    eventually("it is missed", || state() == "missing");
    fs::write(away.join("while-away.txt"), "written meanwhile").unwrap();
    fs::rename(&away, desk.watched()).unwrap();
    desk.awaits(&[b"written meanwhile"]);
    let kinds = || {
        desk.records()
            .iter()
            .map(|record| record["events"][0]["kind"].as_str().unwrap().to_owned())
            .collect::<BTreeSet<_>>()
    };
    eventually("both are told upstream", || kinds() == BTreeSet::from(["plugged".to_owned(), "unplugged".to_owned()]));
    assert!(desk.watched().join("mounted").exists(), "an empty file is left where it is");
    gateway.stop();
}

#[test]
fn a_sub_folder_that_can_be_read_only_half_is_told_and_stops_no_other() {
    // A name is listed and nothing more is told of it; and a list breaks off behind it. Each is the second of two calls in every look.
    for fault in ["/fstatat:error=EACCES:when=2+2", "getdents64:error=EIO:when=2+2"] {
        let desk = Desk::new();
        desk.put("half/inside.txt", b"inside");
        desk.put("outside.txt", b"outside");
        // As the kernel names it. Calls fail as long as the folder has this name.
        let half = desk.watched().canonicalize().unwrap().join("half");
        let tracer = with_faults(fault, std::slice::from_ref(&half));
        let config = desk.config(&format!("{FAST}\nsub-folders = true"));
        let gateway = Gateway::start_under(tracer, desk.folder.path(), &config);
        desk.awaits(&[b"outside"]);
        let told = |code: &str, text: &str| code == "folder-closed" && text.contains("1 folder in ");
        eventually("it is told", || gateway.alarms().iter().any(|(code, text)| told(code, text)));
        fs::rename(&half, half.with_file_name("whole")).unwrap();
        desk.awaits(&[b"inside"]);
        eventually("nothing is told any more", || gateway.alarms().is_empty());
        gateway.stop();
        assert!(desk.delivered().values().all(|count| *count == 1));
    }
}

#[test]
fn a_file_over_the_limit_is_left_and_counted_and_stops_no_other() {
    let desk = Desk::new();
    desk.put("large.bin", &[7; 5000]);
    let gateway = desk.start(&format!("{FAST}\nmax-size = \"4KiB\""));
    desk.put("small.txt", b"small");
    desk.awaits(&[b"small"]);
    eventually("it is counted once", || gateway.status()["sources"]["lab"]["rejected"] == 1);
    assert!(desk.watched().join("large.bin").exists());
    gateway.stop();
}

#[test]
fn a_service_that_is_killed_while_it_takes_files_loses_none() {
    let desk = Desk::new();
    let (rounds, each) = (rounds(4, 25), 40u32);
    let mut gateway = desk.start(&format!("{FAST}\nthen = \"delete\""));
    let mut written = BTreeSet::new();
    for round in 0..rounds {
        for number in 0..each {
            // Some are long, so that they go in pieces.
            let repeats = if number % 10 == 3 { 60_000 } else { 3 };
            let body = format!("result {round}-{number}\r").repeat(repeats).into_bytes();
            desk.put(format!("{round}-{number}.part"), &body);
            let [from, to] = ["part", "txt"].map(|end| desk.watched().join(format!("{round}-{number}.{end}")));
            fs::rename(from, to).unwrap();
            written.insert(body);
        }
        let wanted = usize::try_from(round % 4 * 10).unwrap();
        let all = usize::try_from(each).unwrap();
        eventually("some are taken", || files_left(&desk) <= all - wanted || files_left(&desk) == 0);
        gateway.process.kill();
        gateway = Gateway::again(desk.folder.path());
    }
    eventually("all are taken and delivered", || files_left(&desk) == 0 && gateway.backlog() == 0);
    gateway.stop();
    let delivered = desk.delivered();
    assert_eq!(delivered.keys().cloned().collect::<BTreeSet<_>>(), written);
    let copies: usize = delivered.values().map(|count| count - 1).sum();
    eprintln!("{rounds} kills, {} files, none lost, {copies} second copies", written.len());
}

/// A file system of its own that can be made to hang, as a share does whose server is gone: what would change it waits.
struct Share {
    folder: PathBuf,
}

impl Share {
    /// `None` where this user, or this machine, may not mount.
    fn mount(image: &Path, folder: &Path) -> Option<Self> {
        fs::create_dir(folder).unwrap();
        File::create(image).unwrap().set_len(16 << 20).unwrap();
        let done = |command: &mut Command| run(command).status.success();
        let mounted = nix::unistd::geteuid().is_root()
            && done(system("mkfs.ext4").arg("-q").arg(image))
            && done(system("mount").args(["-o", "loop"]).arg(image).arg(folder));
        mounted.then(|| Self { folder: folder.to_owned() })
    }

    fn hangs(&self, hangs: bool) -> bool {
        run(system("fsfreeze").arg(if hangs { "--freeze" } else { "--unfreeze" }).arg(&self.folder)).status.success()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hangs(false);
        run(system("umount").arg("--lazy").arg(&self.folder));
    }
}

#[test]
fn a_share_that_hangs_is_told_and_stops_no_other_source() {
    let desk = Desk::new();
    let place = |name: &str| desk.folder.path().join(name);
    let Some(share) = Share::mount(&place("image"), &place("share")) else {
        return eprintln!("no right to mount a file system here: not tried");
    };
    let source = |name: &str, path: &Path, settle: &str| {
        format!(
            "[source.{name}.folder]\npath = \"{}\"\nthen = \"delete\"\nevery = \"100ms\"\nsettle = \"{settle}\"\n",
            path.display()
        )
    };
    let config = format!(
        "{}{}[upstream.out.directory]\npath = \"{}\"\nunsealed = true\n[[route]]\nfrom = [\"far\", \"near\"]\nto = [\"out\"]\n",
        source("far", &share.folder, "2s"),
        source("near", &desk.watched(), "200ms"),
        desk.out().display()
    );
    let gateway = Gateway::start(desk.folder.path(), &config);
    let state = || gateway.status()["sources"]["far"]["plug"]["state"].clone();
    eventually("the share is there", || state() == "plugged");
    fs::write(share.folder.join("far.txt"), "from the share").unwrap();
    assert!(share.hangs(true));
    desk.awaits(&[b"from the share"]);
    for number in 0..3 {
        let body = format!("near {number}");
        desk.put(format!("{number}.txt"), body.as_bytes());
        desk.awaits(&[body.as_bytes()]);
    }
    eventually("the others are put away", || files_left(&desk) == 0);
    assert!(holds_within(std::time::Duration::from_secs(120), || state() == "missing"), "{}", gateway.status());
    desk.put("still.txt", b"still near");
    desk.awaits(&[b"still near"]);
    let threads = fs::read_dir(format!("/proc/{}/task", gateway.process.pid())).unwrap().count();
    assert!(threads < 40, "{threads} threads");
    assert!(share.hangs(false));
    eventually("it goes on when the share answers", || state() == "plugged" && files(&share.folder).is_empty());
    gateway.stop();
    assert!(desk.delivered().values().all(|count| *count == 1), "nothing was sent twice");
}

#[test]
fn a_sub_folder_that_is_replaced_by_a_link_gives_nothing_of_what_it_leads_to() {
    let desk = Desk::new();
    let outside = desk.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret.txt"), "not the folder's").unwrap();
    desk.put("sub/a.txt", b"ours");
    let gateway = desk.start(&format!("{FAST}\nsub-folders = true\nthen = \"delete\""));
    desk.awaits(&[b"ours"]);
    // In the moment between the look and the reading nobody can be quick enough here; the parts of it are proven beside the code.
    fs::remove_dir_all(desk.watched().join("sub")).unwrap();
    symlink(&outside, desk.watched().join("sub")).unwrap();
    desk.put("b.txt", b"after the link");
    desk.awaits(&[b"after the link"]);
    gateway.stop();
    assert_eq!(desk.delivered().len(), 2);
    assert!(outside.join("secret.txt").exists());
}

/// Memory of a process that is not shared with files, in KiB.
fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap().to_owned();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn very_many_files_are_taken_in_bounded_memory() {
    let desk = Desk::new();
    let many = rounds(5_000, 100_000);
    for number in 0..many {
        fs::write(desk.watched().join(format!("{number:06}.csv")), format!("{number},1,2\n")).unwrap();
    }
    let gateway = desk.start(&format!("{FAST}\nthen = \"delete\""));
    let mut most = 0;
    let patience = std::time::Duration::from_secs(1200);
    let taken = holds_within(patience, || {
        most = most.max(memory_kib(gateway.process.pid()));
        gateway.status()["sources"]["lab"]["stored"] == many
    });
    assert!(taken, "{}", gateway.status());
    eventually("all are deleted", || files_left(&desk) == 0);
    assert!(most < 96 << 10, "{most} KiB");
    eprintln!("{many} files taken, {most} KiB of memory at most");
    let status = gateway.status();
    assert_eq!((&status["sources"]["lab"]["repeats"], &status["sources"]["lab"]["rejected"]), (&0.into(), &0.into()));
    gateway.stop();
}

#[test]
fn a_very_large_file_is_streamed_in_bounded_memory() {
    let desk = Desk::new();
    let mib = u64::from(rounds(64, 2048));
    let file = File::create(desk.watched().join("large.part")).unwrap();
    file.set_len(mib << 20).unwrap();
    drop(file);
    fs::rename(desk.watched().join("large.part"), desk.watched().join("large.bin")).unwrap();
    let gateway = desk.start(&format!("{FAST}\nthen = \"delete\"\nmax-size = \"4GiB\""));
    let mut most = 0;
    let delivered = holds_within(std::time::Duration::from_secs(1200), || {
        most = most.max(memory_kib(gateway.process.pid()));
        files_left(&desk) == 0 && gateway.backlog() == 0 && !files(&desk.out()).is_empty()
    });
    assert!(delivered, "{}", gateway.status());
    assert!(most < 96 << 10, "{most} KiB");
    gateway.stop();
    assert!(desk_records_nothing(&desk), "a long file was taken for a folder that is missing");
    let arrived = files(&desk.out()).remove(0);
    assert_eq!(sha256_of(&arrived), sha256_of_zeros(mib << 20));
    eprintln!("{mib} MiB taken, {most} KiB of memory at most");
}

/// Whether the file alone was delivered, and no record about the folder.
fn desk_records_nothing(desk: &Desk) -> bool {
    files(&desk.out()).len() == 1
}

fn sha256_of(path: &Path) -> Vec<u8> {
    let (mut file, mut sum, mut bytes) = (File::open(path).unwrap(), Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        let count = std::io::Read::read(&mut file, &mut bytes).unwrap();
        if count == 0 {
            return sum.finish().as_ref().to_vec();
        }
        sum.update(&bytes[..count]);
    }
}

fn sha256_of_zeros(length: u64) -> Vec<u8> {
    let mut sum = Context::new(&SHA256);
    (0..length >> 20).for_each(|_| sum.update(&[0; 1 << 20]));
    sum.finish().as_ref().to_vec()
}

#[test]
fn names_in_done_are_those_that_the_files_had() {
    let desk = Desk::new();
    let wanted: BTreeSet<Vec<u8>> = (0..50).map(|number| format!("r{number}.csv").into_bytes()).collect();
    for name in &wanted {
        desk.put(OsStr::from_bytes(name), name);
    }
    let gateway = desk.start(&format!("{FAST}\ndone = \"archive/taken\""));
    eventually("all are moved", || names(&desk.watched().join("archive/taken")) == wanted);
    eventually("all are delivered", || desk.delivered().len() == wanted.len());
    gateway.stop();
}
