//! Tests of a watched folder over a real spool: what a file that is stored already is taken for, after a restart or on another mount.

use std::fs::{self, File};
use std::sync::mpsc::channel;

use tokio::sync::watch;

use super::scan::Asides;
use super::*;
use crate::envelope::Class;
use crate::spool::{Disk, Secret, Spool, SpoolConfig};
use crate::system::beneath::Beneath;
use crate::values::Name;

/// A watched folder and a spool that outlive the source.
struct Desk {
    root: tempfile::TempDir,
    spooled: tempfile::TempDir,
}

/// A run of the source.
struct Running {
    folder: Folder,
    memory: Memory,
    intake: Intake,
    spool: Spool,
    _targets: watch::Sender<Arc<[Name]>>,
}

impl Desk {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), spooled: tempfile::tempdir().unwrap() }
    }

    /// Starts the source; the duplicate window has forgotten all.
    async fn start(&self) -> Running {
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'\nduplicate-window = '0s'").unwrap();
        let disk = Arc::new(Disk::open(self.spooled.path()).unwrap());
        let spool = Spool::open(disk, Secret::new([7; 32]), &config).unwrap();
        let (targets, routed) = watch::channel(Arc::from(["lis".parse().unwrap()]));
        let intake = Intake::new("lab".parse().unwrap(), "folder", Class::Clinical, spool.clone(), routed);
        let config: FolderConfig =
            toml::from_str(&format!("path = '{}'\nsub-folders = true", self.root.path().display())).unwrap();
        let folder = Folder::open(&config, &Sockets::default()).await.unwrap();
        let mut memory = Memory::open(&intake);
        memory.read().await;
        Running { folder, memory, intake, spool, _targets: targets }
    }

    /// Writes a file as another one, which was changed last at this time.
    fn put(&self, name: &str, bytes: &[u8], changed_s: u64) {
        let (new, to) = (self.root.path().join("new.part"), self.root.path().join(name));
        fs::write(&new, bytes).unwrap();
        let changed = std::time::UNIX_EPOCH + Duration::from_secs(changed_s);
        File::options().write(true).open(&new).unwrap().set_modified(changed).unwrap();
        fs::rename(new, to).unwrap();
    }

    /// Nothing can be put away: a file has the name of the folder for those that are done.
    fn lock(&self) {
        fs::write(self.root.path().join("done"), "").unwrap();
    }

    fn unlock(&self) {
        fs::remove_file(self.root.path().join("done")).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.root.path().join(name).exists()
    }
}

impl Running {
    fn scan(&self) -> Scan {
        scan(&self.folder.rules, &mut Asides::default(), &self.memory.paths()).unwrap()
    }

    /// Takes all that is there.
    async fn take(&mut self) {
        let files = self.scan().files;
        self.folder.take(files, &mut self.memory, &self.intake, &Stop::new()).await.unwrap();
    }

    fn counted(&self) -> [u64; 2] {
        [self.intake.counters().stored.value(), self.intake.counters().repeats.value()]
    }

    /// What the source has not handed over, of all that it keeps for itself.
    fn kept(&self) -> u64 {
        let lanes = self.spool.lanes().into_iter().filter(|lane| lane.upstream == Name::assembly());
        lanes.map(|lane| lane.backlog).sum()
    }

    /// Its end, as far as the spool can tell the power's.
    fn stop(self) {
        self.spool.close();
    }
}

/// Longer than what is stored together with others.
fn long(last: u8) -> Vec<u8> {
    [vec![b'x'; 300_000], vec![last]].concat()
}

#[tokio::test]
async fn a_stored_file_that_could_not_be_put_away_is_no_new_message_after_a_restart_and_another_mount() {
    let desk = Desk::new();
    for (name, bytes) in [("short", b"one".to_vec()), ("long", long(1))] {
        desk.put(name, &bytes, 1_000);
    }
    desk.lock();
    let mut first = desk.start().await;
    first.take().await;
    assert_eq!((first.counted(), first.memory.len()), ([2, 0], 2));
    first.stop();
    // A disk that was pulled out and is back numbers its files anew, and perhaps tells times less finely.
    for (name, bytes) in [("short", b"one".to_vec()), ("long", long(1))] {
        desk.put(name, &bytes, 1_001);
    }
    desk.unlock();
    let mut second = desk.start().await;
    second.take().await;
    assert_eq!(second.counted(), [0, 2], "they were stored twice");
    assert!(!desk.has("short") && desk.has("done/short") && desk.has("done/long"));
    assert_eq!((second.memory.len(), second.kept()), (0, 0));
    // Brought again when it was put away: that is somebody's will.
    desk.put("short", b"one", 1_000);
    second.take().await;
    assert_eq!(second.counted(), [1, 2]);
    second.stop();
}

#[tokio::test]
async fn other_content_under_the_same_name_is_a_new_message_whatever_its_size_and_time() {
    let desk = Desk::new();
    for (name, bytes) in [("a", b"one".to_vec()), ("b", b"one".to_vec()), ("c", long(1))] {
        desk.put(name, &bytes, 1_000);
    }
    desk.lock();
    let mut running = desk.start().await;
    running.take().await;
    running.stop();
    desk.unlock();
    for (name, bytes, changed_s) in
        [("a", b"two".to_vec(), 1_000), ("b", b"one".to_vec(), 5_000), ("c", long(2), 1_000)]
    {
        desk.put(name, &bytes, changed_s);
    }
    let mut running = desk.start().await;
    running.take().await;
    assert_eq!((running.counted(), running.memory.len(), running.kept()), ([3, 0], 0, 0));
    running.stop();
}

#[tokio::test]
async fn a_disk_that_comes_back_while_the_service_runs_brings_no_second_copies() {
    let desk = Desk::new();
    desk.put("a", b"one", 1_000);
    desk.lock();
    let mut running = desk.start().await;
    running.take().await;
    desk.unlock();
    desk.put("a", b"one", 1_000);
    running.take().await;
    assert!(desk.has("a"), "by its number it is another file");
    running.take().await;
    assert_eq!((running.counted(), desk.has("done/a"), running.kept()), ([1, 1], true, 0));
    running.stop();
}

#[tokio::test]
async fn what_is_gone_is_forgotten_and_what_is_missing_on_another_disk_is_not() {
    let desk = Desk::new();
    desk.put("a", b"one", 1_000);
    desk.lock();
    let mut running = desk.start().await;
    running.take().await;
    let away = desk.root.path().join("..").join(format!("{}.away", desk.root.path().display()));
    fs::rename(desk.root.path().join("a"), &away).unwrap();
    let mut other = running.scan();
    (other.volume.device, other.volume.bytes) = (u64::MAX, u64::MAX);
    running.memory.reconcile(&other);
    assert_eq!(running.memory.len(), 1, "the folder below a disk that is not mounted");
    running.memory.reconcile(&Scan { whole: false, ..running.scan() });
    assert_eq!(running.memory.len(), 1, "not all was seen");
    let here = running.scan();
    running.memory.reconcile(&here);
    assert_eq!((running.memory.len(), running.kept()), (0, 0));
    fs::remove_file(away).unwrap();
    running.stop();
}

#[tokio::test]
async fn what_is_away_for_long_is_forgotten_and_what_lies_there_never() {
    let desk = Desk::new();
    desk.put("a", b"one", 1_000);
    desk.lock();
    let mut running = desk.start().await;
    running.take().await;
    let before = running.intake.uptime_ms();
    while running.intake.uptime_ms() == before {
        tokio::task::yield_now().await;
    }
    running.memory.kept_ms = 0;
    let mut elsewhere = Scan { whole: false, ..running.scan() };
    running.memory.reconcile(&elsewhere);
    assert_eq!(running.memory.len(), 1, "it lies there");
    elsewhere.present.clear();
    running.memory.reconcile(&elsewhere);
    assert_eq!((running.memory.len(), running.kept()), (0, 0));
    running.stop();
}

#[tokio::test]
async fn what_another_source_left_under_this_name_holds_up_no_file_even_when_it_can_not_be_put_aside() {
    let desk = Desk::new();
    let mut running = desk.start().await;
    let mut alone = running.intake.begin();
    alone.write(b"astm-part/2 of a source before").await.unwrap();
    let about = crate::source::intake::About {
        content_type: String::new(),
        control_id: Vec::new(),
        flags: crate::envelope::Flags::default(),
    };
    alone.commit_part(about).await.unwrap();
    running.spool.clone().close();
    let read = tokio::time::timeout(Duration::from_secs(20), running.memory.read()).await;
    assert!(read.is_ok(), "it is read for ever");
    assert_eq!(running.kept(), 1, "and stays until it can be put aside");
}

#[tokio::test]
async fn one_file_that_stays_for_ever_holds_up_neither_the_memory_of_others_nor_the_spool() {
    let desk = Desk::new();
    desk.put("a", b"one", 1_000);
    desk.lock();
    let mut running = desk.start().await;
    running.take().await;
    let mark = |number: u64| {
        let seen = Seen { path: format!("{number}").into(), ..running.scan().files[0].clone() };
        memory::Mark::of(&seen, [0; 32], Beneath::open(desk.root.path()).unwrap().volume().unwrap())
    };
    let marks: Vec<_> = (0..50).map(mark).collect();
    for mark in &marks {
        memory::keep(&running.intake, mark).await.unwrap();
    }
    running.memory.read().await;
    running.memory.forget(marks.iter().map(memory::Mark::path));
    assert_eq!((running.memory.len(), running.kept()), (1, 51));
    running.memory.held_max = 10;
    running.memory.bound().await.unwrap();
    running.memory.read().await;
    assert_eq!((running.memory.len(), running.kept()), (1, 1));
    running.memory.marks_max = 0;
    running.memory.bound().await.unwrap();
    assert_eq!((running.memory.len(), running.kept()), (0, 0));
    running.stop();
}

#[tokio::test]
async fn a_stored_file_whose_putting_away_hangs_is_put_away_later_and_not_stored_again() {
    let desk = Desk::new();
    desk.put("a", b"one", 1_000);
    let mut running = desk.start().await;
    let files = running.scan().files;
    let stored = store::take(&running.folder.settings, files, &running.memory, &running.intake).await.stored;
    Arc::get_mut(&mut running.folder.settings).unwrap().worker.step_time = Duration::from_millis(50);
    let (answer, hangs) = channel::<()>();
    let worker = running.folder.settings.worker.clone();
    let hanging = tokio::spawn(async move { worker.act(move || hangs.recv().ok()).await });
    tokio::task::yield_now().await;
    let put = running.folder.put_away(stored, &mut running.memory).await;
    assert_eq!(put, Err(HUNG.to_owned()));
    answer.send(()).unwrap();
    hanging.await.unwrap().unwrap();
    assert!(desk.has("a") && running.folder.stuck.len() == 1);
    running.folder.settings.worker.act(|| ()).await.unwrap();
    Arc::get_mut(&mut running.folder.settings).unwrap().worker.step_time = Duration::from_secs(60);
    running.take().await;
    assert_eq!((running.counted(), desk.has("done/a"), running.folder.stuck.len()), ([1, 0], true, 0));
    running.stop();
}

#[test]
fn a_mark_reads_back_as_it_was_written() {
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new();
    desk.put("a", b"one", 1_001);
    let beneath = Beneath::open(desk.root.path()).unwrap();
    let path = Path::new(std::ffi::OsStr::from_bytes(b"sub/odd\xff\n name")).to_owned();
    let seen = Seen { stamp: Stamp::of(&beneath.about(Path::new("a")).unwrap()), path };
    let mark = memory::Mark::of(&seen, memory::sha256(b"one"), beneath.volume().unwrap());
    assert_eq!(memory::Mark::decode(&mark.encode()), Some(mark));
    for foreign in [&b""[..], b"\n", b"astm-part/2 0 0 0 - x 1 0 a \n", b"file-mark/1 1 2 3 4 zz\na", &[b'x'; 400]] {
        assert_eq!(memory::Mark::decode(foreign), None);
    }
}

#[tokio::test]
async fn folders_that_can_not_be_looked_into_are_counted_until_they_can() {
    let desk = Desk::new();
    let mut running = desk.start().await;
    for closed in [2, 0] {
        running.folder.tell(&Scan { closed, ..Scan::default() }, &running.intake);
        assert_eq!(running.intake.counters().snapshot("folder", "", 0).closed_folders, closed);
    }
    running.stop();
}

#[test]
fn a_folder_that_is_not_there_is_a_warning_and_no_error() {
    let mut problems = Problems::default();
    let config: FolderConfig = toml::from_str("path = '/nowhere-at-all'").unwrap();
    config.check(&mut problems);
    let told: Vec<_> = problems.into_found().into_iter().map(|problem| (problem.text, problem.warning)).collect();
    assert!(matches!(&told[..], [(text, true)] if text.contains("will be waited for")), "{told:?}");
}
