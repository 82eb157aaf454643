//! A disk that fails while images arrive: no modality is told that its image is kept, a person sees why, and a sound disk mends it.
//!
//! Calls on files that have a certain name are made to fail. A file "breaks" when it gets that name, and a link to it the old one, be it
//! open or not; a disk, when the spool's folder does, whose files have names in it then.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::dicom_source::{ct, ct_to_folder};
use crate::support::dicom::{answers, echoscu, storescu};
use crate::support::dicom_files::{Object, ct_images, hashes, hashes_in};
use crate::support::gateway::Gateway;
use crate::support::process::{run, succeeds};
use crate::support::tools::with_faults;
use crate::support::wait::eventually;

/// What `storescu` says to the statuses 0000 and A700 (PS3.4 annex B.2.3).
const KEPT: &str = "Success";
const NO_ROOM: &str = "Refused: OutOfResources";

/// More segments than a test begins.
const SEGMENTS: u32 = 12;

/// What is broken has this name.
struct Broken(PathBuf);

impl Broken {
    fn in_folder(folder: &Path) -> Self {
        // As the kernel names it.
        let broken = folder.canonicalize().unwrap().join("broken");
        std::os::unix::fs::symlink(&broken, &broken).unwrap();
        Self(broken)
    }

    /// The command that becomes the service; `call` fails on what is broken.
    fn tracer(&self, call: &str) -> Command {
        let of_all = (1..=SEGMENTS).map(|segment| self.0.join("imaging").join(format!("{segment:06}.seg")));
        let names: Vec<PathBuf> = of_all.chain([self.0.clone()]).collect();
        with_faults(&format!("{call}:error=EIO"), &names)
    }

    /// Breaks what is there, or mends it, from one moment to the next, whatever the service is about.
    #[track_caller]
    fn exchange(&self, with: &Path) {
        renameat2(AT_FDCWD, with, AT_FDCWD, &self.0, RenameFlags::RENAME_EXCHANGE).unwrap();
    }
}

/// The file that holds the images that came: others are there for those to come, and empty.
fn segment_in_use(spool: &Path) -> PathBuf {
    let begun = |path: &PathBuf| {
        let mut head = [0; 4];
        fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head != [0; 4]
    };
    let entries = fs::read_dir(spool.join("imaging")).unwrap().map(|entry| entry.unwrap().path());
    let begun: Vec<PathBuf> = entries.filter(begun).collect();
    assert_eq!(begun.len(), 1, "{begun:?}");
    begun[0].clone()
}

/// Nothing leaves the box, so that nothing but instances is written.
fn to_nobody(folder: &Path) -> String {
    ct_to_folder(folder, "").replace("unsealed = true", "marker = \".mounted\"\nunsealed = true")
}

/// The words for the status of each image that `storescu` got an answer for.
#[track_caller]
fn sent(gateway: &Gateway, images: &[Object]) -> Vec<String> {
    let files: Vec<&Path> = images.iter().map(|image| image.path.as_path()).collect();
    // Without --no-halt it would stop at the first that is refused.
    let said = run(&mut storescu(gateway.endpoint("ct"), "WARDGATE", &["--no-halt"], &files)).said;
    let told: Vec<String> = answers(&said).into_iter().map(|(_, status)| status).collect();
    assert!(!told.is_empty(), "{said}");
    told
}

/// Sends two images to a sound disk, and three when `call` fails on what `breaks` names, of the spool's folder. Returns what the three
/// were answered, the alarms, and what the service said. What was refused is sent again then, to a sound disk.
fn sent_while(call: &str, breaks: fn(&Path) -> PathBuf) -> (Vec<String>, Vec<(String, String)>, String) {
    let folder = tempfile::tempdir().unwrap();
    let images = ct_images(&folder.path().join("images"), 5);
    let broken = Broken::in_folder(folder.path());
    let gateway = Gateway::start_under(broken.tracer(call), folder.path(), &to_nobody(folder.path()));
    assert_eq!(sent(&gateway, &images[..2]), [KEPT; 2]);
    let place = breaks(&folder.path().join("spool"));
    broken.exchange(&place);
    let told = sent(&gateway, &images[2..]);
    let (alarms, refused) = (gateway.alarms(), told.iter().filter(|status| *status == NO_ROOM).count());
    assert_eq!((told.len(), &ct(&gateway)["refused"]), (3, &refused.into()), "{told:?}");
    succeeds(&mut echoscu(gateway.endpoint("ct"), "WARDGATE", &[]));
    let said = gateway.stop();

    broken.exchange(&place);
    let mounted = folder.path().join("out").join(".mounted");
    fs::write(&mounted, "").unwrap();
    let gateway = Gateway::again(folder.path());
    for (image, _) in images[2..].iter().zip(&told).filter(|(_, told)| *told == NO_ROOM) {
        assert_eq!(sent(&gateway, std::slice::from_ref(image)), [KEPT]);
    }
    eventually("everything that waits is delivered", || gateway.backlog() == 0);
    fs::remove_file(&mounted).unwrap();
    assert_eq!(hashes_in(&folder.path().join("out")), hashes(&images), "each once, and whole");
    gateway.stop();
    (told, alarms, said)
}

#[test]
fn on_a_disk_that_fails_every_image_is_refused_and_a_person_sees_why() {
    for call in ["fdatasync", "pwrite64"] {
        let (told, alarms, said) = sent_while(call, Path::to_owned);
        assert_eq!(told, [NO_ROOM; 3], "{call}");
        let [(code, words)] = &alarms[..] else { panic!("{call}: {alarms:?}") };
        assert_eq!(code, "spool-failed", "{call}: {words}");
        assert!(words.contains("disk") && words.contains("Input/output error"), "{call}: {words}");
        assert!(said.contains("A700") && said.contains("a person must look at the box"), "{call}: {said}");
    }
}

#[test]
fn a_bad_place_on_a_disk_costs_at_most_the_image_that_was_on_its_way_there() {
    for call in ["fdatasync", "pwrite64"] {
        let (told, alarms, said) = sent_while(call, segment_in_use);
        assert_eq!(told[1..], [KEPT; 2], "{call}");
        assert!(alarms.is_empty(), "{call}: {alarms:?}");
        assert!(said.contains("a write failed: the segment gets no more"), "{call}: {said}");
    }
}
