//! The process itself and who talks to it: no memory dumps, and the identity of a peer on a Unix socket.

use std::io;
use std::os::fd::AsFd;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{getsockopt, sockopt};

/// Keeps the memory of this process, which holds keys and patient data, out of core dumps and from other processes of the
/// same user. To be called first thing by whatever opens a spool.
///
/// # Errors
/// Those of `prctl` and `setrlimit`; none is known on Linux.
pub fn forbid_dumps() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    Ok(())
}

/// Who is at the other end of a Unix socket, as the kernel saw it at connect: it can't be forged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// The peer's effective group id; further groups of the user are not told by the kernel.
    pub gid: u32,
    /// Process id, for the log only: it may be gone already.
    pub pid: i32,
}

/// Asks the kernel who is at the other end of a connected Unix socket.
///
/// # Errors
/// When it is not a connected Unix socket.
pub fn peer(socket: &impl AsFd) -> io::Result<Peer> {
    let found = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Peer { uid: found.uid(), gid: found.gid(), pid: found.pid() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_unix_socket_is_known() {
        let (near, _far) = UnixStream::pair().unwrap();
        let found = peer(&near).unwrap();
        let own = nix::unistd::getpid().as_raw();
        assert_eq!(found, Peer { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw(), pid: own });
    }

    #[test]
    fn a_process_that_forbids_dumps_can_not_be_dumped() {
        forbid_dumps().unwrap();
        assert!(!prctl::get_dumpable().unwrap());
        // Other tests of this process must be free to run under a debugger.
        prctl::set_dumpable(true).unwrap();
    }
}
