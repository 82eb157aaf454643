//! Listening sockets that outlive this process: systemd hands them over at the start, and keeps them over a restart.
//!
//! Protocol: sd_listen_fds(3) for what comes (socket units, and what an earlier process of this service left), sd_notify(3)
//! `FDSTORE=1` for what is left. Such a socket takes connections into its queue while nobody runs, so that a device that
//! connects during a restart waits for a moment and is served. A socket is taken for an address only when it is bound to that
//! very address; one that nobody asks for is closed, and never left open in silence. Outside of systemd this binds, and no more.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, getsockopt, sendmsg, sockopt};
use tokio::net::TcpListener;

/// Sockets that are left with systemd at most; more are bound anew at each start. The unit allows as many
/// (`FileDescriptorStoreMax=`).
const STORED_MAX: usize = 128;
/// How the names of those begin that an earlier process of this service left; socket units have names of their own.
const STORED_PREFIX: &str = "tcp-";
/// Where systemd is told.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// The listening sockets that this process shares with systemd. Cheap to clone: all clones are one.
#[derive(Clone, Default)]
pub struct Sockets {
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    sockets: Vec<Shared>,
    /// There is a systemd that can keep more.
    stores: bool,
}

struct Shared {
    at: SocketAddr,
    name: String,
    socket: StdListener,
}

impl Sockets {
    /// What systemd handed over to this process, and a place to leave more. To be called once, before anything is opened.
    pub fn inherited() -> Self {
        let mut held = Held { sockets: Vec::new(), stores: std::env::var_os(NOTIFY_SOCKET).is_some() };
        match sd_notify::listen_fds_with_names() {
            Ok(found) => found.for_each(|(descriptor, name)| held.take(taken(descriptor), name)),
            Err(error) => tracing::warn!(%error, "sockets that systemd handed over can't be used"),
        }
        Self { held: Arc::new(Mutex::new(held)) }
    }

    /// Listens at `at`: on the socket that is held for it, else on a new one, which is then held over a restart if systemd does.
    ///
    /// # Errors
    /// Those of the system's `bind` and `listen`.
    pub async fn listen(&self, at: SocketAddr) -> io::Result<TcpListener> {
        if let Some(held) = self.held().of(at) {
            return TcpListener::from_std(held?);
        }
        let socket = TcpListener::bind(at).await?;
        if at.port() != 0 {
            self.held().keep(at, &socket);
        }
        Ok(socket)
    }

    /// Gives up what was left with systemd for other addresses than these: nobody listens there any more.
    pub fn release(&self, named: &BTreeSet<SocketAddr>) {
        self.held().close(named, |shared| shared.is_ours());
    }

    /// Closes what socket units opened for other addresses than these, and says so: it can't be had back before the next start.
    pub fn refuse_unnamed(&self, named: &BTreeSet<SocketAddr>) {
        self.held().close(named, |shared| {
            if !shared.is_ours() {
                tracing::warn!(
                    socket = shared.name,
                    address = %shared.at,
                    "systemd opened a socket at which no source listens: it is not served here. Write listen = \"{}\" at the source that \
                     it is for and restart, or: systemctl disable --now {}.socket",
                    shared.at,
                    shared.name
                );
            }
            true
        });
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn take(&mut self, descriptor: OwnedFd, name: String) {
        match listening(descriptor) {
            Ok((socket, at)) if self.sockets.iter().all(|shared| shared.at != at) => {
                tracing::info!(socket = name, address = %at, "a listening socket was handed over");
                self.sockets.push(Shared { at, name, socket });
            }
            // The second one for an address adds nothing.
            Ok(_) => forget(&name),
            Err(error) => {
                tracing::warn!(socket = name, %error, "what systemd handed over is no listening TCP socket: it is closed");
                forget(&name);
            }
        }
    }

    fn of(&self, at: SocketAddr) -> Option<io::Result<StdListener>> {
        self.sockets.iter().find(|shared| shared.at == at).map(|shared| shared.socket.try_clone())
    }

    fn keep(&mut self, at: SocketAddr, socket: &TcpListener) {
        if !self.stores || self.sockets.len() >= STORED_MAX {
            return;
        }
        // A colon ends a name.
        let name = format!("{STORED_PREFIX}{}", at.to_string().replace(':', "-"));
        let stored = socket.as_fd().try_clone_to_owned().and_then(|ours| {
            store(&name, ours.as_fd())?;
            Ok(StdListener::from(ours))
        });
        match stored {
            Ok(socket) => self.sockets.push(Shared { at, name, socket }),
            Err(error) => tracing::debug!(%error, "systemd does not keep the socket"),
        }
    }

    fn close(&mut self, named: &BTreeSet<SocketAddr>, mut which: impl FnMut(&Shared) -> bool) {
        self.sockets.retain(|shared| {
            let stays = named.contains(&shared.at) || !which(shared);
            if !stays {
                forget(&shared.name);
            }
            stays
        });
    }
}

impl Shared {
    fn is_ours(&self) -> bool {
        self.name.starts_with(STORED_PREFIX)
    }
}

#[allow(unsafe_code)] // systemd names descriptors by their numbers
fn taken(descriptor: RawFd) -> OwnedFd {
    // SAFETY: systemd opened it for this process alone, nothing here has closed it, and this is called once for each.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn listening(descriptor: OwnedFd) -> io::Result<(StdListener, SocketAddr)> {
    if !getsockopt(&descriptor, sockopt::AcceptConn)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
    }
    let socket = StdListener::from(descriptor);
    socket.set_nonblocking(true)?;
    let at = socket.local_addr()?;
    Ok((socket, at))
}

/// Leaves a descriptor with systemd under this name.
fn store(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let manager = std::env::var_os(NOTIFY_SOCKET).ok_or(io::ErrorKind::NotFound)?;
    let socket = UnixDatagram::unbound()?;
    socket.connect(manager)?;
    let text = format!("FDSTORE=1\nFDNAME={name}\n");
    let descriptors = [descriptor.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let message = [IoSlice::new(text.as_bytes())];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &message, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// systemd forgets what was left under this name; nothing happens when nothing was.
fn forget(name: &str) {
    let name = format!("FDSTOREREMOVE=1\nFDNAME={name}");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Custom(&name)]) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(socket: StdListener, name: &str) -> Sockets {
        let mut held = Held::default();
        held.take(socket.into(), name.to_owned());
        Sockets { held: Arc::new(Mutex::new(held)) }
    }

    #[tokio::test]
    async fn a_connection_that_came_before_the_start_is_accepted_on_the_socket_for_its_address() {
        let socket = StdListener::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        let sockets = held(socket, "wardgate-mllp");
        let device = std::net::TcpStream::connect(at).unwrap();
        let (_, peer) = sockets.listen(at).await.unwrap().accept().await.unwrap();
        assert_eq!(peer, device.local_addr().unwrap());
        // A source that is stopped and started anew finds it again.
        let device = std::net::TcpStream::connect(at).unwrap();
        let (_, peer) = sockets.listen(at).await.unwrap().accept().await.unwrap();
        assert_eq!(peer, device.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_socket_that_no_source_names_is_closed() {
        for (name, by_release) in [("tcp-127.0.0.1-1", true), ("wardgate-dicom", false)] {
            let socket = StdListener::bind("127.0.0.1:0").unwrap();
            let at = socket.local_addr().unwrap();
            let sockets = held(socket, name);
            sockets.release(&BTreeSet::from([at]));
            sockets.refuse_unnamed(&BTreeSet::from([at]));
            assert!(std::net::TcpStream::connect(at).is_ok(), "{name} is named");
            sockets.release(&BTreeSet::new());
            assert_eq!(std::net::TcpStream::connect(at).is_err(), by_release, "{name}");
            sockets.refuse_unnamed(&BTreeSet::new());
            assert!(std::net::TcpStream::connect(at).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn outside_of_systemd_a_port_is_free_when_its_listener_ends() {
        let sockets = Sockets::default();
        let first = sockets.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let at = first.local_addr().unwrap();
        drop(first);
        let second = sockets.listen(at).await.unwrap();
        drop(second);
        assert!(std::net::TcpStream::connect(at).is_err());
    }

    #[test]
    fn what_does_not_listen_is_not_taken() {
        assert!(listening(UnixDatagram::unbound().unwrap().into()).is_err());
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let dialled = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listening(dialled.into()).is_err());
    }
}
