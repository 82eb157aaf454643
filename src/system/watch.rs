//! Waits until something may have changed at a path: by inotify on the nearest folder that exists, and by the clock.
//!
//! It says only "look again" and never what happened. Where inotify does not work (a network share, a container without it), the
//! clock alone still finds every change.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// After how long it says "look again" although nothing was told: what is plugged in is found within two seconds in any case.
pub const RESCAN: Duration = Duration::from_secs(1);

/// A path that is watched.
pub struct Watch {
    path: PathBuf,
    inotify: Option<AsyncFd<Notifier>>,
    watched: Option<(PathBuf, WatchDescriptor)>,
}

struct Notifier(Inotify);

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[allow(unsafe_code)] // tokio leaves it to the caller to keep the descriptor open
fn registered(notifier: Notifier) -> Option<AsyncFd<Notifier>> {
    // SAFETY: the notifier owns its descriptor and neither closes nor replaces it while it lives.
    unsafe { AsyncFd::register(notifier) }.ok()
}

impl Watch {
    /// Watches `path` from now on: a change between this and the first [`Watch::changed`] is not missed.
    pub fn new(path: &Path) -> Self {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags).ok().and_then(|inotify| registered(Notifier(inotify)));
        let mut watch = Self { path: path.to_owned(), inotify, watched: None };
        watch.arm();
        watch
    }

    /// Returns when it is time to look again.
    pub async fn changed(&mut self) {
        // A folder on the way may have come or gone since the last look.
        if self.arm() {
            return;
        }
        let Some(inotify) = &self.inotify else { return sleep(RESCAN).await };
        tokio::select! {
            () = sleep(RESCAN) => {}
            ready = inotify.readable() => match ready {
                Ok(mut ready) => {
                    // All that is waiting is one change.
                    while inotify.get_ref().0.read_events().is_ok() {}
                    ready.clear_ready();
                }
                Err(_) => sleep(RESCAN).await,
            },
        }
    }

    /// Watches the nearest folder that exists. True when that is another one than before: something has changed.
    fn arm(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let folder = self.path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or_else(|| Path::new("/"));
        use AddWatchFlags as W;
        let flags = W::IN_CREATE | W::IN_DELETE | W::IN_MOVE | W::IN_ATTRIB | W::IN_DELETE_SELF | W::IN_MOVE_SELF;
        // A folder that was made anew under its name is another one: asking again tells by the number.
        let Ok(number) = inotify.get_ref().0.add_watch(folder, flags) else { return false };
        let now = Some((folder.to_owned(), number));
        if self.watched == now {
            return false;
        }
        let former = std::mem::replace(&mut self.watched, now);
        if let Some((_, old)) = former.as_ref().filter(|(_, old)| *old != number) {
            // The kernel has removed it already when its folder is gone.
            inotify.get_ref().0.rm_watch(*old).unwrap_or_default();
        }
        former.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;

    /// How long it takes until the path is seen in this state.
    async fn seen(watch: &mut Watch, there: bool) -> Duration {
        let began = Instant::now();
        while watch.path.exists() != there {
            watch.changed().await;
            assert!(began.elapsed() < Duration::from_secs(20));
        }
        began.elapsed()
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_seen_also_when_its_folders_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial/by-path/usb-1");
        let mut watch = Watch::new(&path);
        for _ in 0..3 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            seen(&mut watch, true).await;
            fs::remove_dir_all(folder.path().join("serial")).unwrap();
            seen(&mut watch, false).await;
        }
        let (made, late) = (path.clone(), Duration::from_millis(30));
        tokio::spawn(async move {
            sleep(late).await;
            fs::create_dir_all(made.parent().unwrap()).unwrap();
            fs::write(&made, "").unwrap();
        });
        seen(&mut watch, true).await;
    }

    #[tokio::test]
    async fn without_inotify_the_clock_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch { path: folder.path().join("usb-1"), inotify: None, watched: None };
        fs::write(&watch.path, "").unwrap();
        let began = Instant::now();
        watch.changed().await;
        assert!(began.elapsed() >= RESCAN);
    }
}
