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
use rustls::{AlertDescription, CertificateError, Error as TlsFault};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsAcceptor, client, server};

use crate::system::certificate;
use crate::system::tls::{Connector, TlsError};
use crate::values::HostPort;

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
    let Some(acceptor) = tls else { return Ok(Stream { kind: Kind::Plain(tcp), peer }) };
    match tokio::time::timeout(limit, acceptor.accept(tcp)).await {
        Err(_) => Err(format!("no TLS handshake within {} s: does the device speak TLS?", limit.as_secs().max(1))),
        Ok(Err(error)) => Err(in_words(&error)),
        Ok(Ok(stream)) => Ok(Stream { kind: Kind::Server(Box::new(stream)), peer }),
    }
}

impl Stream {
    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
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
        let certificates = match &self.kind {
            Kind::Plain(_) => return None,
            Kind::Client(stream) => stream.get_ref().1.peer_certificates(),
            Kind::Server(stream) => stream.get_ref().1.peer_certificates(),
        };
        certificate::facts(certificates?.first()?).map(|facts| facts.subject)
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

/// A fault of a connection in words. Over TLS 1.3 a server's refusal of our certificate arrives with the first read, after
/// [`dial`] was content: the reader should tell it by this.
pub fn in_words(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsFault>()) {
        Some(fault) => tls_in_words(fault),
        None => match error.kind() {
            io::ErrorKind::UnexpectedEof => "the peer closed the connection in the middle".to_owned(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "the peer closed the connection".to_owned(),
            io::ErrorKind::TimedOut => "the peer is silent: is the cable in, is the peer up?".to_owned(),
            _ => error.to_string(),
        },
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
    let Some(connector) = tls else { return Ok(Stream { kind: Kind::Plain(tcp), peer }) };
    let failed = |cause| DialError::Tls { address: address.clone(), cause };
    let name = connector.server_name(address).map_err(|error: TlsError| failed(error.to_string()))?;
    let stream = connector.inner().connect(name, tcp).await.map_err(|error| failed(in_words(&error)))?;
    Ok(Stream { kind: Kind::Client(Box::new(stream)), peer })
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

fn tls_in_words(fault: &TlsFault) -> String {
    match fault {
        TlsFault::InvalidCertificate(error) => certificate_in_words(error),
        TlsFault::AlertReceived(alert) => alert_in_words(*alert),
        TlsFault::InvalidMessage(_) => "the peer does not speak TLS: check the port, or leave tls out".to_owned(),
        TlsFault::PeerIncompatible(error) => {
            format!("no common version or cipher ({error:?}): the peer needs TLS 1.2 or 1.3")
        }
        TlsFault::NoCertificatesPresented => {
            "the peer showed no certificate: give it one of the configured CA".to_owned()
        }
        other => other.to_string(),
    }
}

fn certificate_in_words(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => {
            "the peer's certificate has expired: renew it there (or this box's clock is ahead)".to_owned()
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the peer's certificate is not yet valid: this box's clock is behind; set it, or check its time server"
                .to_owned()
        }
        E::UnknownIssuer => {
            "the peer's certificate is not from a CA that is trusted here: put its CA certificate into the ca file"
                .to_owned()
        }
        E::NotValidForNameContext { expected, presented } => format!(
            "the peer's certificate is not for {} but for {}: correct the address, or set server-name",
            expected.to_str(),
            if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") }
        ),
        E::NotValidForName => {
            "the peer's certificate is for another name: correct the address, or set server-name".to_owned()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the peer's certificate is not for this side of TLS (extended key usage): issue it anew".to_owned()
        }
        E::Revoked => "the peer's certificate was revoked: renew it there".to_owned(),
        other => format!("the peer's certificate can't be accepted: {other}"),
    }
}

fn alert_in_words(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => {
            "the peer wants a certificate of this box: set certificate and key (mutual TLS)".to_owned()
        }
        A::UnknownCA => "the peer does not trust the CA of this box's certificate: add the CA there".to_owned(),
        A::CertificateExpired => "the peer says that this box's certificate has expired: renew it".to_owned(),
        A::BadCertificate
        | A::CertificateUnknown
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::AccessDenied => {
            format!("the peer refused this box's certificate ({alert:?}): check which ones it lets in")
        }
        A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity => {
            format!(
                "the peer found no common version or cipher ({alert:?}): it needs TLS 1.2 or 1.3; or it wants a certificate"
            )
        }
        other => format!("the peer ended TLS with the alert {other:?}"),
    }
}
