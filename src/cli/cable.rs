//! A network cable on loopback that one can pull: it passes bytes on to an address, and while it is pulled it breaks what
//! runs over it and takes nothing new. The demo's upstream hangs on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Connections that run over it at the same time.
const CONNECTIONS_MAX: usize = 64;
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The cable. It is gone when this is dropped.
pub struct Cable {
    address: SocketAddr,
    plugged: watch::Sender<bool>,
    _stop: DropGuard,
}

impl Cable {
    /// Plugs a cable in that leads to `to`.
    ///
    /// # Errors
    /// Those of the system, when no loopback port is free.
    pub async fn plug(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (plugged, state) = watch::channel(true);
        let stop = CancellationToken::new();
        tokio::spawn(carry(listener, to, state, stop.clone()));
        Ok(Self { address, plugged, _stop: stop.drop_guard() })
    }

    /// This end of it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it is plugged in.
    pub fn is_plugged(&self) -> bool {
        *self.plugged.borrow()
    }

    /// Pulls it (`false`) or plugs it in again.
    pub fn set_plugged(&self, plugged: bool) {
        self.plugged.send_if_modified(|now| std::mem::replace(now, plugged) != plugged);
    }
}

async fn carry(listener: TcpListener, to: SocketAddr, plugged: watch::Receiver<bool>, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((near, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let (mut plugged, stop) = (plugged.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                // Whatever broke, both ends see it, and that is all that a cable does.
                _ = pass(near, to) => {}
                _ = plugged.wait_for(|plugged| !plugged) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn pass(mut near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_pulled_cable_breaks_what_runs_and_takes_nothing_new() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cable = Cable::plug(echo.local_addr().unwrap()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        let mut stream = TcpStream::connect(cable.address()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        cable.set_plugged(false);
        assert!(stream.read_u8().await.is_err(), "what ran over it is broken");
        let mut second = TcpStream::connect(cable.address()).await.unwrap();
        second.write_all(b"x").await.ok();
        assert!(second.read_u8().await.is_err(), "nothing new gets through");
        cable.set_plugged(true);
        let mut third = TcpStream::connect(cable.address()).await.unwrap();
        third.write_all(b"y").await.unwrap();
        assert_eq!(third.read_u8().await.unwrap(), b'y');
    }
}
