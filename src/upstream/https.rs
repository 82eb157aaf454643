//! The HTTPS upstream: one POST for each message, streamed; a 2xx status is the receipt (RFC 9110).
//!
//! `Idempotency-Key` and `Wardgate-Id` carry the message's id, so that a second copy is harmless; no header carries anything
//! from the message or the device's own id of it. Bodies of answers are read and thrown away: they may quote patient data.
//! HTTP/1.1, one request at a time; what the statuses mean is said in `http_link`.

use std::time::Duration;

use hyper::Request;
use hyper::header::{self, HeaderValue};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::http_body::{Outgoing, Pump, unreadable};
use super::http_link::{self, HttpLink, Patience, Server, Version};
use super::link::{self, lost};
use super::sealing::{Payload, Sealer};
use super::{Delivery, Identity, SendError, Upstream, WhenRefused};
use crate::envelope::Envelope;
use crate::system::tls::ClientTls;
use crate::upstream::url::Url;
use crate::values::{Problems, SecretRef, Section, Span};

/// Bytes of an answer's body that are read to keep the connection; with more it is closed.
pub const ANSWER_BODY_MAX: usize = 64 << 10;

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
        http_link::check(problems, &self.url, self.bearer_token.as_ref(), self.plain);
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
    /// Held for as long as a request is under way.
    link: Mutex<HttpLink>,
}

impl Upstream for Https {
    type Config = HttpsConfig;
    const PROTOCOL: &'static str = "https";

    fn when_refused(config: &HttpsConfig) -> WhenRefused {
        config.when_refused
    }

    async fn connect(config: &HttpsConfig, about: &Identity) -> Result<Self, SendError> {
        let token = config.bearer_token.as_ref().map(http_link::bearer).transpose().map_err(lost)?;
        let link = HttpLink::connect(config.server()).await?;
        Ok(Self { config: config.clone(), about: about.clone(), token, link: Mutex::new(link) })
    }

    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        let payload = Payload::new(envelope, self.config.seal_to.as_ref()).map_err(unreadable)?;
        let payload = payload.summed_first(&envelope.body).await.map_err(unreadable)?;
        let mut pump = Pump::new(payload).await.map_err(unreadable)?;
        let request = self.request(envelope, &mut pump)?;
        let answer = self.link.lock().await.exchange(request, pump).await?;
        http_link::verdict(answer.status, answer.after).map(|()| Delivery::done(answer.status.as_str()))
    }
}

impl HttpsConfig {
    fn server(&self) -> Server {
        Server {
            url: self.url.clone(),
            tls: self.tls.clone(),
            version: Version::One,
            patience: Patience {
                connect: self.connect_timeout.0,
                write: self.write_timeout.0,
                answer: self.answer_timeout.0,
            },
            answer_bytes_max: ANSWER_BODY_MAX,
        }
    }
}

impl Https {
    fn request(&self, envelope: &Envelope, pump: &mut Pump) -> Result<Request<Outgoing>, SendError> {
        let (meta, about) = (&envelope.meta, &self.about);
        let received = Timestamp::from_microsecond(meta.received.wall_us).unwrap_or(Timestamp::UNIX_EPOCH);
        let id = envelope.id.to_string();
        let mut request = Request::post(self.config.url.uri())
            .header(header::USER_AGENT, concat!("wardgate/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, &meta.content_type)
            .header("idempotency-key", &id)
            .header("wardgate-id", &id)
            .header("wardgate-site", about.site.as_str())
            .header("wardgate-gateway", about.gateway.as_str())
            .header("wardgate-source", meta.source.as_str())
            .header("wardgate-protocol", &meta.protocol)
            .header("wardgate-received", received.to_string());
        if let Some(sha256) = pump.payload().sha256() {
            request = request.header("wardgate-sha256", data_encoding::HEXLOWER.encode(&sha256));
        }
        if pump.payload().is_sealed() {
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
}
