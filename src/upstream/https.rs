//! The HTTPS upstream: one POST for each message, streamed; a 2xx status is the receipt (RFC 9110).
//!
//! `Idempotency-Key` and `Wardgate-Id` carry the message's id, so that a second copy is harmless; no header carries anything
//! from the message or the device's own id of it. Bodies of answers are read and thrown away: they may quote patient data.
//! HTTP/1.1 on our own streams, one request at a time; a server that closes an idle connection is no fault.
//!
//! * 2xx: receipt. * 408, 425, 429 and 5xx: busy, with `Retry-After`.
//! * 401, 403 and 407 blame this box's credentials, which no message can help: busy, and the cause says what to do. Else an expired
//!   token would turn a night's messages into dead letters.
//! * Other 4xx, and redirects (never followed: who configures names the place): refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::link::{self, lost};
use super::sealing::{Payload, Sealer};
use super::{Delivery, Identity, SendError, Upstream, WhenRefused};
use crate::envelope::{BodyError, Envelope};
use crate::system::credentials;
use crate::system::tls::ClientTls;
use crate::upstream::url::Url;
use crate::values::{Problems, SecretRef, Section, Span};

/// Longest pause that `Retry-After` may ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Bytes of an answer's body that are read to keep the connection; with more it is closed.
pub const ANSWER_BODY_MAX: u64 = 64 << 10;
/// Sealed bodies up to this are sealed in memory, so that a header can tell their SHA-256.
pub const WHOLE_MAX: u64 = 1 << 20;
/// Pieces of a body that wait for the socket.
const PIECES_AHEAD: usize = 2;
/// Pieces are cut to this, so that `write-timeout` is about little and an answer that comes too early is seen as such.
const PIECE_BYTES: usize = 64 << 10;
/// After an answer the connection must be ready for the next request within this, or it is closed.
const READY_WITHIN: Duration = Duration::from_secs(1);

/// `[upstream.<name>.https]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HttpsConfig {
    /// Where to POST to: `https://host/path`; `http://` needs `plain = true`.
    pub url: Url,
    /// Whom to trust, and who we are.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// Says aloud that the connection is not encrypted.
    #[serde(default)]
    pub plain: bool,
    /// A token for `Authorization: Bearer`.
    #[serde(default)]
    pub bearer_token: Option<SecretRef>,
    /// Who may open the messages.
    #[serde(default)]
    pub seal_to: Option<Sealer>,
    /// For name, TCP and TLS together; default 10 s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// For the server to take the next piece of a body; default 30 s.
    #[serde(default = "patience")]
    pub write_timeout: Span,
    /// From the last byte sent to the answer; default 30 s.
    #[serde(default = "patience")]
    pub answer_timeout: Span,
    /// What becomes of a message that the server refuses for good.
    #[serde(default)]
    pub when_refused: WhenRefused,
}

fn connect_timeout() -> Span {
    Span(Duration::from_secs(10))
}

fn patience() -> Span {
    Span(Duration::from_secs(30))
}

impl Section for HttpsConfig {
    fn check(&self, problems: &mut Problems) {
        link::check(problems, self.tls.as_ref(), self.plain);
        if self.url.is_secure() == self.plain {
            problems.error("url", "https:// goes with tls, http:// with plain = true");
        }
        let Some(token) = &self.bearer_token else { return };
        if self.plain {
            problems.warn("bearer-token", "without TLS everyone on the way can read the token and use it");
        }
        if let Some(exposed) = credentials::exposure(token) {
            problems.warn("bearer-token", exposed);
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        link::files(self.tls.as_mut(), visit);
        self.bearer_token.iter_mut().for_each(visit);
    }
}

/// A server that takes POSTs, with the connection to it that is kept open.
pub struct Https {
    config: HttpsConfig,
    about: Identity,
    token: Option<HeaderValue>,
    /// Taken out while a request is under way: an exchange that is given up leaves no connection behind.
    idle: Mutex<Option<SendRequest<Outgoing>>>,
}

impl Upstream for Https {
    type Config = HttpsConfig;
    const PROTOCOL: &'static str = "https";

    fn when_refused(config: &HttpsConfig) -> WhenRefused {
        config.when_refused
    }

    async fn connect(config: &HttpsConfig, about: &Identity) -> Result<Self, SendError> {
        let token = config.bearer_token.as_ref().map(bearer).transpose().map_err(lost)?;
        let upstream = Self { config: config.clone(), about: about.clone(), token, idle: Mutex::new(None) };
        let sender = upstream.dial().await?;
        *upstream.idle.lock().await = Some(sender);
        Ok(upstream)
    }

    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        let payload = Payload::new(envelope, self.config.seal_to.as_ref()).map_err(unreadable)?;
        let mut outgoing = Pump::new(payload).await.map_err(unreadable)?;
        let request = self.request(envelope, &mut outgoing)?;
        let mut idle = self.idle.lock().await;
        let mut sender = match idle.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.dial().await?,
        };
        let (status, after, reusable) = self.exchange(&mut sender, request, outgoing).await?;
        if reusable && timeout(READY_WITHIN, sender.ready()).await.is_ok_and(|ready| ready.is_ok()) {
            *idle = Some(sender);
        }
        drop(idle);
        verdict(status, after).map(|()| Delivery::done(status.as_str()))
    }
}

impl Https {
    async fn dial(&self) -> Result<SendRequest<Outgoing>, SendError> {
        let config = &self.config;
        let (address, limit) = (config.url.address(), config.connect_timeout.0);
        let stream = link::dial(address, config.tls.as_ref(), &["http/1.1"], limit).await?;
        let made = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|error| lost(error.to_string()))?;
        // It ends with its sender; what goes wrong on it is told to the request under way.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, envelope: &Envelope, pump: &mut Pump) -> Result<Request<Outgoing>, SendError> {
        let (meta, about) = (&envelope.meta, &self.about);
        let received = Timestamp::from_microsecond(meta.received.wall_us).unwrap_or(Timestamp::UNIX_EPOCH);
        let id = envelope.id.to_string();
        let mut request = Request::post(self.config.url.path())
            .header(header::HOST, self.config.url.authority())
            .header(header::USER_AGENT, concat!("wardgate/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, &meta.content_type)
            .header("idempotency-key", &id)
            .header("wardgate-id", &id)
            .header("wardgate-site", about.site.as_str())
            .header("wardgate-gateway", about.gateway.as_str())
            .header("wardgate-source", meta.source.as_str())
            .header("wardgate-protocol", &meta.protocol)
            .header("wardgate-received", received.to_string());
        if let Some(sha256) = pump.payload.sha256() {
            request = request.header("wardgate-sha256", data_encoding::HEXLOWER.encode(&sha256));
        }
        if pump.payload.is_sealed() {
            request = request.header("wardgate-encoding", "age");
        }
        let flags = meta.flags.names();
        if !flags.is_empty() {
            request = request.header("wardgate-flags", flags.join(", "));
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let wrong = |error: hyper::http::Error| SendError::Rejected { reason: format!("no HTTP request: {error}") };
        request.body(pump.body()).map_err(wrong)
    }

    /// Sends the request and its body; the answer's status, its `Retry-After`, and whether the connection may be used again.
    async fn exchange(
        &self,
        sender: &mut SendRequest<Outgoing>,
        request: Request<Outgoing>,
        pump: Pump,
    ) -> Result<(StatusCode, Option<Duration>, bool), SendError> {
        let address = self.config.url.address();
        let sent = Arc::clone(&pump.sent);
        let mut answer = std::pin::pin!(sender.send_request(request));
        let early = tokio::select! {
            biased;
            pumped = pump.run(self.config.write_timeout.0) => {
                pumped.map_err(|cut| cut.blame(&address.to_string()))?;
                None
            }
            early = &mut answer => Some(early),
        };
        let answer = match early {
            Some(early) => Ok(early),
            None => timeout(self.config.answer_timeout.0, answer).await,
        };
        let answer = answer.map_err(|_| lost(format!("{address} did not answer the request in time")))?;
        let answer = answer.map_err(|error| lost(format!("{address}: {}", in_words(&error))))?;
        let (status, after) = (answer.status(), retry_after(&answer));
        let whole = sent.load(Ordering::Acquire);
        if status.is_success() && !whole {
            return Err(lost(format!("{address} answered {status} before it had the whole message")));
        }
        Ok((status, after, whole && drain(answer, self.config.answer_timeout.0).await))
    }
}

/// Feeds a request's body from a payload, piece by piece as the socket takes them.
struct Pump {
    payload: Payload,
    /// A short sealed body, sealed already.
    whole: Option<Bytes>,
    pieces: Option<mpsc::Sender<Result<Bytes, BodyError>>>,
    sent: Arc<AtomicBool>,
}

/// Why a body was not sent to its end.
enum Cut {
    Unreadable(BodyError),
    Stuck,
}

impl Cut {
    fn blame(self, address: &str) -> SendError {
        match self {
            Self::Unreadable(error) => unreadable(error),
            Self::Stuck => lost(format!("{address} took nothing more of the message: write-timeout")),
        }
    }
}

impl Pump {
    async fn new(mut payload: Payload) -> Result<Self, BodyError> {
        let mut whole = None;
        if payload.is_sealed() && payload.len() <= WHOLE_MAX {
            whole = Some(payload.collect().await?);
        }
        Ok(Self { payload, whole, pieces: None, sent: Arc::default() })
    }

    /// The body that this pump feeds.
    fn body(&mut self) -> Outgoing {
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        self.pieces = Some(sender);
        Outgoing { pieces, left: self.payload.len(), sent: Arc::clone(&self.sent) }
    }

    async fn run(mut self, limit: Duration) -> Result<(), Cut> {
        let Some(pieces) = self.pieces.take() else { return Ok(()) };
        loop {
            let bytes = match self.whole.take() {
                Some(whole) => Ok(Some(whole)),
                None => self.payload.next().await,
            };
            match bytes {
                Ok(None) => return Ok(()),
                Ok(Some(bytes)) => match feed(&pieces, bytes, limit).await? {
                    Fed::On => {}
                    // The connection takes no more: it has its answer, or it broke. The request tells which.
                    Fed::Over => return Ok(()),
                },
                Err(error) => {
                    // Told to the connection as well, so that it is torn down and does not end the body early.
                    drop(pieces.try_send(Err(error.clone())));
                    return Err(Cut::Unreadable(error));
                }
            }
        }
    }
}

/// Whether a body goes on.
enum Fed {
    On,
    Over,
}

async fn feed(pieces: &mpsc::Sender<Result<Bytes, BodyError>>, mut bytes: Bytes, limit: Duration) -> Result<Fed, Cut> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        match timeout(limit, pieces.send(Ok(piece))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(Fed::Over),
            Err(_) => return Err(Cut::Stuck),
        }
    }
    Ok(Fed::On)
}

/// The body of a request: pieces from a [`Pump`], of a length that is known.
struct Outgoing {
    pieces: mpsc::Receiver<Result<Bytes, BodyError>>,
    left: u64,
    sent: Arc<AtomicBool>,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.pieces.poll_recv(context).map(|piece| {
            let piece = piece?;
            if let Ok(piece) = &piece {
                self.left = self.left.saturating_sub(piece.len() as u64);
            }
            self.sent.store(self.left == 0, Ordering::Release);
            Some(piece.map(Frame::data))
        })
    }

    fn is_end_stream(&self) -> bool {
        if self.left == 0 {
            self.sent.store(true, Ordering::Release);
        }
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Reads the answer's body to its end, so that the connection can be used again; false when it is too long or too slow.
async fn drain(answer: Response<Incoming>, limit: Duration) -> bool {
    let mut body = answer.into_body();
    let read = async {
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            length += frame.data_ref().map_or(0, |data| data.len() as u64);
            if length > ANSWER_BODY_MAX {
                return false;
            }
        }
        true
    };
    timeout(limit, read).await.unwrap_or(false)
}

/// What the status means for the message.
fn verdict(status: StatusCode, after: Option<Duration>) -> Result<(), SendError> {
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

fn bearer(token: &SecretRef) -> Result<HeaderValue, String> {
    let secret = credentials::read(token).map_err(|error| error.to_string())?;
    let mut line = zeroize::Zeroizing::new(b"Bearer ".to_vec());
    line.extend_from_slice(secret.trim_ascii());
    let mut value = HeaderValue::from_bytes(&line).map_err(|_| {
        format!("the bearer token in {token} is not one line of text: write the token and nothing else")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn unreadable(error: BodyError) -> SendError {
    SendError::Rejected { reason: error.to_string() }
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
