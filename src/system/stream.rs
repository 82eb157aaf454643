//! A connection, plain or TLS, dialled or accepted: one type, so that no protocol needs to know which it is.
//!
//! Errors are told in words with what to do, since they end on the status page: "connection refused" alone helps nobody at
//! three in the morning. Nothing here retries; see [`super::backoff`].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsAcceptor, client, server};

use crate::system::certificate;
use crate::system::tls::{Connector, TlsError};
use crate::values::HostPort;

pub use crate::system::fault::in_words;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;
/// Seconds of silence before TCP asks whether the peer is still there.
const KEEP_ALIVE_IDLE_S: u32 = 30;
/// Seconds between two such questions.
const KEEP_ALIVE_INTERVAL_S: u32 = 10;
/// Questions without an answer after which the connection is dead: within a minute in all.
const KEEP_ALIVE_COUNT: u32 = 3;
/// Milliseconds that sent bytes may stay unacknowledged; else a pulled cable is noticed after a quarter of an hour only.
const UNACKNOWLEDGED_MS_MAX: u32 = 60_000;

/// A connection over TCP, with or without TLS.
#[derive(Debug)]
pub struct Stream {
    kind: Kind,
    peer: SocketAddr,
    since: Instant,
}

#[derive(Debug)]
enum Kind {
    Plain(TcpStream),
    // Boxed: a TLS session is a kilobyte and more.
    Client(Box<client::TlsStream<TcpStream>>),
    Server(Box<server::TlsStream<TcpStream>>),
}

/// Why no connection came about. Every text names the peer and says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("the name of {address} was not found ({cause}): check the name, and the DNS server that this box uses")]
    NameNotFound {
        /// The configured address.
        address: HostPort,
        /// The resolver's words.
        cause: String,
    },
    /// Nobody listens there, or a firewall says so.
    #[error("{address} refused the connection: check the port, and that the service there is running")]
    Refused {
        /// The configured address.
        address: HostPort,
    },
    /// No answer in time.
    #[error(
        "{address} did not answer within {after_s} s ({stage}): check that it is up and that no firewall is in the way"
    )]
    TimedOut {
        /// The configured address.
        address: HostPort,
        /// Seconds.
        after_s: u64,
        /// What was waited for.
        stage: &'static str,
    },
    /// No way to it, and all other faults of the network.
    #[error("{address} can't be reached ({cause}): check the network of this box")]
    Unreachable {
        /// The configured address.
        address: HostPort,
        /// The system's words.
        cause: String,
    },
    /// The peer is there, but TLS with it failed.
    #[error("TLS with {address} failed: {cause}")]
    Tls {
        /// The configured address.
        address: HostPort,
        /// In words, with what to do.
        cause: String,
    },
}

/// Connects to `address`, trying each of its addresses in turn, and shakes hands when there is a `tls`. All of it together
/// takes at most `limit`.
///
/// # Errors
/// [`DialError`] of the address that was tried last.
pub async fn dial(address: &HostPort, tls: Option<&Connector>, limit: Duration) -> Result<Stream, DialError> {
    let deadline = Instant::now() + limit;
    let timed_out = |stage| DialError::TimedOut { address: address.clone(), after_s: limit.as_secs().max(1), stage };
    let found = timeout_at(deadline, resolve(address)).await.map_err(|_| timed_out("looking up its name"))??;
    let mut failure = timed_out("connecting");
    for (tried, at) in found.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = Instant::now() + left / u32::try_from(found.len() - tried).unwrap_or(1);
        let tcp = match timeout_at(share, TcpStream::connect(at)).await {
            Err(_) => Err(timed_out("connecting")),
            Ok(outcome) => outcome.map_err(|error| explain_connect(address, &error)),
        };
        let outcome = match tcp {
            Err(error) => Err(error),
            // From here on it is a matter of the peer, and all the time that is left is for it.
            Ok(tcp) => match timeout_at(deadline, secure(address, tcp, *at, tls)).await {
                Err(_) => Err(timed_out("TLS handshake; is the port one for TLS?")),
                Ok(outcome) => outcome,
            },
        };
        match outcome {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Takes a connection that was accepted, and shakes hands when there is a `tls`, within `limit`.
///
/// # Errors
/// In words, when the handshake fails or takes too long: a stranger's doing as a rule.
pub async fn accept(
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Option<&TlsAcceptor>,
    limit: Duration,
) -> Result<Stream, String> {
    tune(&tcp);
    let since = Instant::now();
    let Some(acceptor) = tls else { return Ok(Stream { kind: Kind::Plain(tcp), peer, since }) };
    match tokio::time::timeout(limit, acceptor.accept(tcp)).await {
        Err(_) => Err(format!("no TLS handshake within {} s: does the device speak TLS?", limit.as_secs().max(1))),
        Ok(Err(error)) => Err(in_words(&error)),
        Ok(Ok(stream)) => Ok(Stream { kind: Kind::Server(Box::new(stream)), peer, since }),
    }
}

impl Stream {
    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// When the connection came about, before any TLS handshake.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Our end.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.tcp().local_addr()
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        !matches!(self.kind, Kind::Plain(_))
    }

    /// Whom the peer's verified certificate names (`CN=ct-1, O=St Mary's`); `None` without TLS or without a certificate.
    pub fn peer_subject(&self) -> Option<String> {
        certificate::facts(self.peer_certificate()?).map(|facts| facts.subject)
    }

    /// The common name in the peer's verified certificate; `None` without TLS, without a certificate or when it has not exactly one.
    pub fn peer_common_name(&self) -> Option<String> {
        certificate::common_name(self.peer_certificate()?)
    }

    fn peer_certificate(&self) -> Option<&[u8]> {
        let certificates = match &self.kind {
            Kind::Plain(_) => return None,
            Kind::Client(stream) => stream.get_ref().1.peer_certificates(),
            Kind::Server(stream) => stream.get_ref().1.peer_certificates(),
        };
        certificates?.first().map(|certificate| certificate.as_ref())
    }

    /// The protocol above TLS that both agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Plain(_) => None,
            Kind::Client(stream) => stream.get_ref().1.alpn_protocol(),
            Kind::Server(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// The TCP connection below, for socket options.
    pub fn tcp(&self) -> &TcpStream {
        match &self.kind {
            Kind::Plain(tcp) => tcp,
            Kind::Client(stream) => stream.get_ref().0,
            Kind::Server(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Client(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Server(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Client(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Server(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Client(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Server(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Client(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Server(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Kind::Client(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Kind::Server(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Plain(stream) => stream.is_write_vectored(),
            Kind::Client(stream) => stream.is_write_vectored(),
            Kind::Server(stream) => stream.is_write_vectored(),
        }
    }
}

async fn resolve(address: &HostPort) -> Result<Vec<SocketAddr>, DialError> {
    let not_found = |cause| DialError::NameNotFound { address: address.clone(), cause };
    let found = lookup_host((address.host.as_str(), address.port)).await;
    let found: Vec<SocketAddr> = found.map_err(|error| not_found(error.to_string()))?.take(ADDRESSES_MAX).collect();
    if found.is_empty() { Err(not_found("it has no address".to_owned())) } else { Ok(found) }
}

async fn secure(
    address: &HostPort,
    tcp: TcpStream,
    peer: SocketAddr,
    tls: Option<&Connector>,
) -> Result<Stream, DialError> {
    tune(&tcp);
    let since = Instant::now();
    let Some(connector) = tls else { return Ok(Stream { kind: Kind::Plain(tcp), peer, since }) };
    let failed = |cause| DialError::Tls { address: address.clone(), cause };
    let name = connector.server_name(address).map_err(|error: TlsError| failed(error.to_string()))?;
    let stream = connector.inner().connect(name, tcp).await.map_err(|error| failed(in_words(&error)))?;
    Ok(Stream { kind: Kind::Client(Box::new(stream)), peer, since })
}

/// No waiting for more bytes, and a dead peer is noticed. A socket that takes no options is still a connection.
fn tune(tcp: &TcpStream) {
    let outcomes = [
        tcp.set_nodelay(true),
        setsockopt(tcp, sockopt::KeepAlive, &true).map_err(io::Error::from),
        setsockopt(tcp, sockopt::TcpKeepIdle, &KEEP_ALIVE_IDLE_S).map_err(io::Error::from),
        setsockopt(tcp, sockopt::TcpKeepInterval, &KEEP_ALIVE_INTERVAL_S).map_err(io::Error::from),
        setsockopt(tcp, sockopt::TcpKeepCount, &KEEP_ALIVE_COUNT).map_err(io::Error::from),
        setsockopt(tcp, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS_MAX).map_err(io::Error::from),
    ];
    if let Some(error) = outcomes.into_iter().find_map(Result::err) {
        tracing::debug!(%error, "a socket option could not be set");
    }
}

fn explain_connect(address: &HostPort, error: &io::Error) -> DialError {
    let address = address.clone();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused { address },
        _ => DialError::Unreachable { address, cause: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::system::test_pki::Pki;
    use crate::system::tls::ClientTls;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn listener() -> (TcpListener, HostPort) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, HostPort { host: "localhost".into(), port })
    }

    #[tokio::test]
    async fn a_plain_connection_carries_bytes_and_notices_a_dead_peer() {
        let (listener, address) = listener().await;
        let mut near = dial(&address, None, LIMIT).await.unwrap();
        let (tcp, peer) = listener.accept().await.unwrap();
        let mut far = accept(tcp, peer, None, LIMIT).await.unwrap();
        assert_eq!((near.local().unwrap(), near.is_tls(), near.peer_subject()), (far.peer(), false, None));
        near.write_all(b"ping").await.unwrap();
        let mut word = [0; 4];
        far.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ping");
        for stream in [&near, &far] {
            assert!(stream.tcp().nodelay().unwrap());
            assert!(nix::sys::socket::getsockopt(stream.tcp(), sockopt::KeepAlive).unwrap());
        }
    }

    #[tokio::test]
    async fn who_is_not_there_is_told_by_name_with_what_to_do() {
        let (listener, address) = listener().await;
        drop(listener);
        let words = dial(&address, None, LIMIT).await.unwrap_err().to_string();
        let expected =
            format!("{address} refused the connection: check the port, and that the service there is running");
        assert_eq!(words, expected);
        // An empty label is refused by the resolver itself, without a question to any server.
        let nowhere = HostPort { host: "no..where".into(), port: 2575 };
        let words = dial(&nowhere, None, LIMIT).await.unwrap_err().to_string();
        assert!(words.starts_with("the name of no..where:2575 was not found ("), "{words}");
    }

    #[tokio::test]
    async fn a_peer_without_tls_is_recognised_whether_it_talks_or_is_silent() {
        let pki = Pki::new();
        let tls = ClientTls { ca: pki.ca(), certificate: None, key: None, server_name: None }.connector().unwrap();
        let (silent, address) = listener().await;
        let words = dial(&address, Some(&tls), Duration::from_millis(200)).await.unwrap_err().to_string();
        assert!(words.contains("did not answer within 1 s (TLS handshake; is the port one for TLS?)"), "{words}");
        drop(silent);
        let (talking, address) = listener().await;
        tokio::spawn(async move {
            let (mut tcp, _) = talking.accept().await.unwrap();
            tcp.write_all(b"220 welcome to plain text\r\n").await.unwrap();
            // Held open: a reset would hide the greeting.
            tcp.read_to_end(&mut Vec::new()).await.unwrap();
        });
        let words = dial(&address, Some(&tls), LIMIT).await.unwrap_err().to_string();
        assert!(words.ends_with("the peer does not speak TLS: check the port, or leave tls out"), "{words}");
    }

    #[tokio::test]
    async fn a_device_that_sends_plain_bytes_to_a_tls_port_is_told_apart() {
        let pki = Pki::new();
        let (certificate, key) = pki.leaf("server", &["localhost"]);
        let acceptor =
            crate::system::tls::ServerTls { certificate, key, client_ca: None, client_certificate: Default::default() }
                .acceptor()
                .unwrap();
        let (listener, address) = listener().await;
        let mut device = dial(&address, None, LIMIT).await.unwrap();
        device.write_all(b"\x0bMSH|^~\\&|\r\x1c\r").await.unwrap();
        let (tcp, peer) = listener.accept().await.unwrap();
        let words = accept(tcp, peer, Some(&acceptor), LIMIT).await.unwrap_err();
        assert!(words.starts_with("the peer does not speak TLS"), "{words}");
    }
}
