//! A pseudo-terminal: a serial line without a wire, for devices that the demo plays. A link stands for the path of the port.
//!
//! Both ends stay open as long as it lives, so that whoever reads the port may come and go. It has no parity and no speed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;
use tokio::io::unix::AsyncFd;

/// The device's end, with the other one behind a link.
#[derive(Debug)]
pub struct Pty {
    ours: AsyncFd<File>,
    _theirs: OwnedFd,
    link: PathBuf,
}

impl Pty {
    /// Opens one whose other end is at `link`, which must not be there yet.
    ///
    /// # Errors
    /// Those of the system.
    pub fn open(link: &Path) -> io::Result<Self> {
        let pair = openpty(None, None)?;
        let mut raw = tcgetattr(&pair.slave)?;
        cfmakeraw(&mut raw);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &raw)?;
        let flags = OFlag::from_bits_retain(fcntl(&pair.master, FcntlArg::F_GETFL)?);
        fcntl(&pair.master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        symlink(ttyname(&pair.slave)?, link)?;
        let ours = registered(File::from(pair.master))?;
        Ok(Self { ours, _theirs: pair.slave, link: link.to_owned() })
    }

    /// Reads what the other end has written; waits for it.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.ours.readable().await?;
            if let Ok(read) = ready.try_io(|ours| ours.get_ref().read(buffer)) {
                return read;
            }
        }
    }

    /// Writes all of it; waits while the other end does not read.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.ours.writable().await?;
            if let Ok(written) = ready.try_io(|ours| ours.get_ref().write(bytes)) {
                bytes = bytes.get(written?..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

#[allow(unsafe_code)] // the runtime asks for a promise about the descriptor
fn registered(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: the file owns its descriptor and neither closes nor replaces it while it lives.
    Ok(unsafe { AsyncFd::register(file) }?)
}

impl Drop for Pty {
    fn drop(&mut self) {
        // A link that leads nowhere harms nobody.
        std::fs::remove_file(&self.link).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[tokio::test]
    async fn every_byte_passes_both_ways_as_it_is_and_the_link_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("port");
        let pty = Pty::open(&link).unwrap();
        let mut port = OpenOptions::new().read(true).write(true).open(&link).unwrap();
        let all: Vec<u8> = (0..=255).collect();
        pty.write_all(&all).await.unwrap();
        let mut came = vec![0; all.len()];
        port.read_exact(&mut came).unwrap();
        assert_eq!(came, all);
        port.write_all(b"\x06\r\n").unwrap();
        let mut buffer = [0; 16];
        assert_eq!(pty.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(buffer[..3], *b"\x06\r\n");
        drop(pty);
        assert!(!link.is_symlink());
    }
}
