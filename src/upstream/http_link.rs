//! What upstreams over HTTP share: connections to one server, one exchange over them, and what a status means (RFC 9110, 9112, 9113).
//!
//! HTTP/1.1 on our own streams, one request at a time on each connection, which is then kept open; or HTTP/2, where requests share
//! one. A server that closes an idle connection is no fault. An exchange that is given up leaves no connection behind (HTTP/2: no
//! stream). Answers are read up to a limit and never logged: they may quote patient data.
//!
//! * 2xx: receipt, as far as the status goes. * 408, 425, 429 and 5xx: busy, with `Retry-After`.
//! * 401, 403 and 407 blame this box's credentials, which no message can help: busy, and the cause says what to do. Else an expired
//!   token would turn a night's messages into dead letters.
//! * Other 4xx, and redirects (never followed: who configures names the place): refused.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::timeout;

use super::SendError;
use super::http_body::{Outgoing, Pump};
use super::link::{self, lost};
use crate::system::credentials;
use crate::system::tls::ClientTls;
use crate::upstream::url::Url;
use crate::values::{Problems, SecretRef};

/// Longest pause that `Retry-After` may ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// After an answer the connection must be ready for the next request within this, or it is closed.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// Which HTTP is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
pub enum Version {
    /// HTTP/1.1, one connection for each request that is on its way.
    #[serde(rename = "1.1")]
    One,
    /// HTTP/2, one connection for all; without TLS the server must know that it comes (prior knowledge).
    #[serde(rename = "2")]
    Two,
    /// What the server picks in the TLS handshake (ALPN); HTTP/1.1 without TLS.
    #[default]
    #[serde(rename = "auto")]
    Auto,
}

impl Version {
    fn alpn(self) -> &'static [&'static str] {
        match self {
            Self::One => &["http/1.1"],
            Self::Two => &["h2"],
            Self::Auto => &["h2", "http/1.1"],
        }
    }
}

/// How long each step of an exchange may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Patience {
    /// For name, TCP and TLS together.
    pub(super) connect: Duration,
    /// For the server to take the next piece of a body.
    pub(super) write: Duration,
    /// From the last byte sent to the answer, and again for the answer's body.
    pub(super) answer: Duration,
}

/// Whom to speak to, and how.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) url: Url,
    pub(super) tls: Option<ClientTls>,
    pub(super) version: Version,
    pub(super) patience: Patience,
    /// Bytes of an answer's body that are read; a connection whose answer is longer is closed.
    pub(super) answer_bytes_max: usize,
}

/// What a server said to one request.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `Retry-After`.
    pub(super) after: Option<Duration>,
    /// Its body; `None` when it was too long, or came before the request had ended.
    pub(super) body: Option<Bytes>,
}

/// The connections to one server that are kept open.
pub(super) struct HttpLink {
    server: Server,
    /// Those of HTTP/1.1 are taken out while a request is under way, those of HTTP/2 are shared.
    kept: Mutex<Vec<Connection>>,
}

enum Connection {
    One(http1::SendRequest<Outgoing>),
    Two(http2::SendRequest<Outgoing>),
}

/// A request under way.
type Asked = Pin<Box<dyn Future<Output = Result<Response<Incoming>, hyper::Error>> + Send>>;

impl HttpLink {
    /// Connects once, so that a server that is not there is told at once.
    pub(super) async fn connect(server: Server) -> Result<Self, SendError> {
        let first = server.dial().await?;
        let link = Self { server, kept: Mutex::default() };
        link.keep(first);
        Ok(link)
    }

    /// Whether the server is there: a connection that is kept shows it, else a new one, which is kept.
    pub(super) async fn look(&self) -> Result<(), SendError> {
        let known = {
            let mut kept = self.kept();
            kept.retain(|connection| !connection.is_closed());
            !kept.is_empty()
        };
        if !known {
            self.keep(self.server.dial().await?);
        }
        Ok(())
    }

    /// Whom it speaks to.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Sends a request and its body. The request's URI is the whole URL, and it has no `Host`: both are set as the protocol wants.
    pub(super) async fn exchange(&self, mut request: Request<Outgoing>, pump: Pump) -> Result<Answer, SendError> {
        let address = self.server.url.address();
        let mut connection = match self.take() {
            Some(connection) => connection,
            None => self.server.dial().await?,
        };
        connection.suit(&mut request, &self.server.url)?;
        let sent = pump.sent();
        let answer = self.server.answer(connection.send(request), pump).await?;
        let (status, after) = (answer.status(), retry_after(&answer));
        let whole = sent.load(Ordering::Acquire);
        if status.is_success() && !whole {
            return Err(lost(format!("{address} answered {status} before it had the whole message")));
        }
        let mut body = None;
        if whole {
            body = read(answer, self.server.answer_bytes_max, self.server.patience.answer).await;
        }
        if body.is_some() && connection.is_ready_soon().await {
            self.keep(connection);
        }
        Ok(Answer { status, after, body })
    }

    fn take(&self) -> Option<Connection> {
        let mut kept = self.kept();
        kept.retain(|connection| !connection.is_closed());
        match kept.pop()? {
            Connection::Two(sender) => {
                kept.push(Connection::Two(sender.clone()));
                Some(Connection::Two(sender))
            }
            one => Some(one),
        }
    }

    fn keep(&self, connection: Connection) {
        let mut kept = self.kept();
        // An HTTP/2 connection that was taken is still there.
        if matches!(connection, Connection::One(_)) || kept.is_empty() {
            kept.push(connection);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    async fn dial(&self) -> Result<Connection, SendError> {
        let stream =
            link::dial(self.url.address(), self.tls.as_ref(), self.version.alpn(), self.patience.connect).await?;
        let two = match self.version {
            Version::One => false,
            Version::Auto => stream.alpn() == Some(b"h2"),
            Version::Two if stream.is_tls() && stream.alpn() != Some(b"h2") => {
                return Err(lost(format!("{} does not speak HTTP/2: set http = \"1.1\"", self.url.address())));
            }
            Version::Two => true,
        };
        // The connection's own task ends with its senders; what goes wrong on it is told to the requests under way.
        let shaken = async {
            let io = TokioIo::new(stream);
            if two {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                return Ok(Connection::Two(sender));
            }
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Ok(Connection::One(sender))
        };
        shaken.await.map_err(|error: hyper::Error| lost(format!("{}: {}", self.url.address(), in_words(&error))))
    }

    /// Feeds the body until it has ended or the answer is there, then waits for the answer.
    async fn answer(&self, mut answer: Asked, pump: Pump) -> Result<Response<Incoming>, SendError> {
        let address = self.url.address();
        let early = tokio::select! {
            biased;
            pumped = pump.run(self.patience.write) => {
                pumped.map_err(|cut| cut.blame(&address.to_string()))?;
                None
            }
            early = &mut answer => Some(early),
        };
        let answer = match early {
            Some(early) => Ok(early),
            None => timeout(self.patience.answer, answer).await,
        };
        let answer = answer.map_err(|_| lost(format!("{address} did not answer the request in time")))?;
        answer.map_err(|error| lost(format!("{address}: {}", in_words(&error))))
    }
}

impl Connection {
    fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }

    async fn is_ready_soon(&mut self) -> bool {
        match self {
            Self::One(sender) => timeout(READY_WITHIN, sender.ready()).await.is_ok_and(|ready| ready.is_ok()),
            Self::Two(sender) => !sender.is_closed(),
        }
    }

    /// HTTP/1.1 asks for a path and names the host in a header (RFC 9112, 3.2.1); HTTP/2 sends the URL's parts (RFC 9113, 8.3.1).
    fn suit(&self, request: &mut Request<Outgoing>, url: &Url) -> Result<(), SendError> {
        if matches!(self, Self::Two(_)) {
            return Ok(());
        }
        let wrong = || SendError::Rejected { reason: "no HTTP request can be made for this url".into() };
        *request.uri_mut() = url.path().parse().map_err(|_| wrong())?;
        let host = HeaderValue::from_str(url.authority()).map_err(|_| wrong())?;
        request.headers_mut().insert(header::HOST, host);
        Ok(())
    }

    fn send(&mut self, request: Request<Outgoing>) -> Asked {
        match self {
            Self::One(sender) => Box::pin(sender.send_request(request)),
            Self::Two(sender) => Box::pin(sender.send_request(request)),
        }
    }
}

/// Checks the keys `url` and `bearer-token` of a section.
pub(super) fn check(problems: &mut Problems, url: &Url, token: Option<&SecretRef>, plain: bool) {
    if url.is_secure() == plain {
        problems.error("url", "https:// goes with tls, http:// with plain = true");
    }
    let Some(token) = token else { return };
    if plain {
        problems.warn("bearer-token", "without TLS everyone on the way can read the token and use it");
    }
    if let Some(exposed) = credentials::exposure(token) {
        problems.warn("bearer-token", exposed);
    }
}

/// The value of `Authorization` for a token.
pub(super) fn bearer(token: &SecretRef) -> Result<HeaderValue, String> {
    let secret = credentials::read(token).map_err(|error| error.to_string())?;
    let mut line = zeroize::Zeroizing::new(b"Bearer ".to_vec());
    line.extend_from_slice(secret.trim_ascii());
    let mut value = HeaderValue::from_bytes(&line).map_err(|_| {
        format!("the bearer token in {token} is not one line of text: write the token and nothing else")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// What the status means for the message.
pub(super) fn verdict(status: StatusCode, after: Option<Duration>) -> Result<(), SendError> {
    let said = |what: &str| format!("the server answered {status}: {what}");
    match status.as_u16() {
        200..=299 => Ok(()),
        401 | 407 => {
            let cause = said("it does not know this box; check bearer-token or the client certificate");
            Err(SendError::Busy { cause, after })
        }
        403 => {
            let cause = said("it does not let this box in; ask for the right to POST here");
            Err(SendError::Busy { cause, after })
        }
        408 | 425 | 429 | 500.. => Err(SendError::Busy { cause: said("it can't take messages now"), after }),
        300..=399 => {
            Err(SendError::Refused { reason: said("redirects are not followed; correct url in the configuration") })
        }
        _ => Err(SendError::Refused { reason: said("it does not take this message") }),
    }
}

/// Reads the answer's body to its end; `None` when it is too long, too slow or breaks off.
async fn read(answer: Response<Incoming>, bytes_max: usize, limit: Duration) -> Option<Bytes> {
    let mut body = answer.into_body();
    let reading = async {
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.ok()?;
            let Some(data) = frame.data_ref() else { continue };
            if all.len() + data.len() > bytes_max {
                return None;
            }
            all.extend_from_slice(data);
        }
        Some(all.freeze())
    };
    timeout(limit, reading).await.unwrap_or(None)
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3); a date is measured by the server's own clock where it tells it.
fn retry_after(answer: &Response<Incoming>) -> Option<Duration> {
    let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let now = text(header::DATE.as_str()).and_then(http_date);
    pause_until(text(header::RETRY_AFTER.as_str())?, now.unwrap_or_else(Timestamp::now))
}

fn pause_until(text: &str, now: Timestamp) -> Option<Duration> {
    let pause = match text.trim().parse().map(Duration::from_secs) {
        Ok(pause) => pause,
        Err(_) => Duration::try_from(http_date(text)?.duration_since(now)).unwrap_or_default(),
    };
    Some(pause.min(RETRY_AFTER_MAX))
}

fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()
}

/// hyper says little itself; the cause below it says more.
fn in_words(error: &hyper::Error) -> String {
    let below = std::error::Error::source(error).map(|source| format!(" ({source})"));
    format!("{error}{}", below.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_blames_the_message_can_make_it_a_dead_letter() {
        let means = |code: u16| match verdict(StatusCode::from_u16(code).unwrap(), None) {
            Ok(()) => "receipt",
            Err(SendError::Busy { .. }) => "busy",
            Err(SendError::Refused { .. }) => "refused",
            Err(_) => "other",
        };
        for (codes, meaning) in [
            (&[200, 201, 202, 204][..], "receipt"),
            (&[401, 403, 407, 408, 425, 429, 500, 502, 503, 504], "busy"),
            (&[301, 302, 307, 400, 404, 409, 410, 413, 415, 422], "refused"),
        ] {
            assert!(codes.iter().all(|code| means(*code) == meaning), "{meaning}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_a_limit() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        let pause = |text| pause_until(text, now).map(|pause| pause.as_secs());
        assert_eq!(pause("120"), Some(120));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(pause("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0), "past");
        assert_eq!(pause("999999"), Some(3600));
        assert_eq!(pause("soon"), None);
    }
}
