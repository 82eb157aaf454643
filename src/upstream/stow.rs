//! The STOW upstream: DICOM instances to a DICOMweb server, one instance in each request, streamed (PS3.18, 10.5).
//!
//! An instance is stored as a Part 10 file, and is sent as that: the only part of a `multipart/related` body of known length. Its SOP
//! Instance UID makes a second copy harmless, so nothing else identifies it. Several are on their way at once, over as many
//! connections (HTTP/1.1) or streams (HTTP/2): instances have no order among themselves. Two with the same UID do (the archive
//! keeps the first, or replaces it by the second), so they never are on their way together.
//!
//! The server's word on the instance decides, where it gives one, else the status: see [`verdict`]. Answers may quote patients: of them
//! only codes are taken, and told in our own words.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::Bytes;
use hyper::Request;
use hyper::header::{self, HeaderValue};
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};

use super::flights::{ANOTHER_IS_KEPT, Flights};
use super::http_body::{Outgoing, Pump, unreadable};
use super::http_link::{self, Answer, HttpLink, Patience, Server, Version};
use super::link::{self, lost};
use super::presence::{self, Presence};
use super::sealing::Payload;
use super::{Delivery, Identity, Receipt, SendError, Upstream, WhenRefused};
use crate::envelope::{Envelope, Flags};
use crate::system::tls::ClientTls;
use crate::upstream::url::Url;
use crate::values::{Problems, SecretRef, Section, Span};
use crate::wire::stow::{Outcome, Report, failure_words};

/// Bytes of an answer's body that are read. That of one instance has some hundred.
pub const ANSWER_BODY_MAX: usize = 1 << 20;
/// Bounds of `max-in-flight`.
pub const IN_FLIGHT_MAX: u16 = 32;
/// The media type of what can be sent.
const MEDIA: &str = "application/dicom";

/// `[upstream.<name>.stow]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StowConfig {
    /// The server's studies: `https://host/dicom-web/studies`; `http://` needs `plain = true`.
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
    /// `"1.1"`, `"2"`, or `"auto"` (default): what the server picks in the TLS handshake.
    #[serde(default)]
    pub http: Version,
    /// For name, TCP and TLS together; default 10 s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// For the server to take the next piece of an instance; default 30 s.
    #[serde(default = "write_timeout")]
    pub write_timeout: Span,
    /// From the last byte sent to the answer; default 2 min, since archives index before they answer.
    #[serde(default = "answer_timeout")]
    pub answer_timeout: Span,
    /// How often is looked, while nothing is sent and no connection is open, whether the server is there: by a connection. Default 60 s.
    #[serde(default = "presence::check_every")]
    pub check_every: Span,
    /// Instances that may be on their way at once; default 4.
    #[serde(default = "max_in_flight")]
    pub max_in_flight: u16,
    /// What becomes of an instance that the server refuses for good.
    #[serde(default)]
    pub when_refused: WhenRefused,
}

fn connect_timeout() -> Span {
    Span(Duration::from_secs(10))
}

fn write_timeout() -> Span {
    Span(Duration::from_secs(30))
}

fn answer_timeout() -> Span {
    Span(Duration::from_secs(120))
}

fn max_in_flight() -> u16 {
    4
}

impl Section for StowConfig {
    fn check(&self, problems: &mut Problems) {
        link::check(problems, self.tls.as_ref(), self.plain);
        http_link::check(problems, &self.url, self.bearer_token.as_ref(), self.plain);
        let path = self.url.path().split('?').next().unwrap_or_default();
        if !path.split('/').any(|segment| segment == "studies") {
            problems.warn("url", "instances are posted to the server's studies: the path ends with /studies as a rule");
        }
        presence::check(problems, self.check_every);
        if !(1..=IN_FLIGHT_MAX).contains(&self.max_in_flight) {
            problems.error("max-in-flight", format!("between 1 and {IN_FLIGHT_MAX}"));
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        link::files(self.tls.as_mut(), visit);
        self.bearer_token.iter_mut().for_each(visit);
    }
}

impl StowConfig {
    fn server(&self) -> Server {
        Server {
            url: self.url.clone(),
            tls: self.tls.clone(),
            version: self.http,
            patience: Patience {
                connect: self.connect_timeout.0,
                write: self.write_timeout.0,
                answer: self.answer_timeout.0,
            },
            answer_bytes_max: ANSWER_BODY_MAX,
        }
    }
}

/// A DICOMweb server, with the connections to it that are kept open.
pub struct Stow {
    link: Arc<HttpLink>,
    token: Option<HeaderValue>,
    window: u16,
    /// One permit for each instance that may be on its way, all lanes together.
    room: Arc<Semaphore>,
    flights: Flights,
    presence: Presence,
}

impl Upstream for Stow {
    type Config = StowConfig;
    const PROTOCOL: &'static str = "stow";

    fn when_refused(config: &StowConfig) -> WhenRefused {
        config.when_refused
    }

    async fn connect(config: &StowConfig, _about: &Identity) -> Result<Self, SendError> {
        let token = config.bearer_token.as_ref().map(http_link::bearer).transpose().map_err(lost)?;
        let link = Arc::new(HttpLink::connect(config.server()).await?);
        let room = Arc::new(Semaphore::new(usize::from(config.max_in_flight)));
        let (looked_at, used, all) = (Arc::clone(&link), Arc::clone(&room), usize::from(config.max_in_flight));
        let presence = Presence::watch(config.check_every, move || {
            let (link, is_quiet) = (Arc::clone(&looked_at), used.available_permits() == all);
            // What is on its way shows it.
            async move { if is_quiet { link.look().await } else { Ok(()) } }
        });
        Ok(Self { link, token, window: config.max_in_flight, room, flights: Flights::default(), presence })
    }

    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        sendable(&envelope.meta.content_type)?;
        let (request, pump) = self.request(envelope)?;
        let (instance, flags) = (envelope.meta.control_id.clone(), envelope.meta.flags);
        let flight = self.flights.begin(&instance).await;
        let permit = Arc::clone(&self.room).acquire_owned().await;
        let permit = permit.map_err(|_| lost("the connection is being closed"))?;
        let link = Arc::clone(&self.link);
        let (mut reply, delivery) = oneshot::channel();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = link.exchange(request, pump) => outcome,
                // Nobody waits any more: the lane goes back to its cursor, and the instance comes again.
                () = reply.closed() => return,
            };
            let outcome = outcome.and_then(|answer| verdict(&answer, &instance, flags));
            drop((flight, permit));
            drop(reply.send(outcome)); // as above
        });
        Ok(Delivery::waiting(delivery))
    }

    fn window(&self) -> usize {
        usize::from(self.window)
    }

    async fn closed(&self) -> String {
        self.presence.lost().await
    }
}

impl Stow {
    /// The request with the instance as the only part of its body (RFC 2387).
    fn request(&self, envelope: &Envelope) -> Result<(Request<Outgoing>, Pump), SendError> {
        let boundary = boundary()?;
        let before = format!("--{boundary}\r\nContent-Type: {MEDIA}\r\n\r\n");
        let after = format!("\r\n--{boundary}--\r\n");
        let payload = Payload::new(envelope, None).map_err(unreadable)?;
        let mut pump = Pump::framed(payload, Bytes::from(before), Bytes::from(after));
        let content = format!("multipart/related; type=\"{MEDIA}\"; boundary={boundary}");
        let mut request = Request::post(self.link.server().url.uri())
            .header(header::USER_AGENT, concat!("wardgate/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/dicom+json")
            .header(header::CONTENT_TYPE, content);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let wrong = |error: hyper::http::Error| SendError::Rejected { reason: format!("no HTTP request: {error}") };
        Ok((request.body(pump.body()).map_err(wrong)?, pump))
    }
}

/// Only DICOM instances go over DICOMweb.
fn sendable(content_type: &str) -> Result<(), SendError> {
    let media = content_type.split(';').next().unwrap_or_default().trim();
    match media.eq_ignore_ascii_case(MEDIA) {
        true => Ok(()),
        false => Err(SendError::Rejected {
            reason: format!("it is no DICOM instance ({media}), and only those can be stored over DICOMweb"),
        }),
    }
}

/// A delimiter that no instance holds: 128 random bits.
fn boundary() -> Result<String, SendError> {
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| lost("the system gives no random numbers"))?;
    Ok(format!("wardgate-{}", data_encoding::HEXLOWER.encode(&random)))
}

/// What the answer means for an instance with these flags (PS3.18, 10.5.3).
///
/// * Named as stored, with or without a warning: receipt. Named as failed because it is there already: receipt, unless it came with other
///   bytes before: then those are there, and this one is rejected.
/// * Failed for want of resources (A7xx): busy. Any other failure: refused, with the reason in words.
/// * Not named: 200 is a receipt, unless its body is that of something else than a DICOMweb server (a portal's login page,
///   a proxy's JSON). 202 is refused, since it says that not all is well. Other statuses mean what they mean to all upstreams over
///   HTTP.
fn verdict(answer: &Answer, instance: &[u8], flags: Flags) -> Result<Receipt, SendError> {
    let (status, after) = (answer.status, answer.after);
    let receipt = |more: &str| Ok(Receipt { code: format!("{}{more}", status.as_str()) });
    let general = http_link::verdict(status, after);
    if matches!(general, Err(SendError::Busy { .. })) || status.is_redirection() {
        return general.and_then(|()| receipt(""));
    }
    let body = answer.body.as_deref();
    let report = body.and_then(Report::read);
    let stored = status.is_success() || status.as_u16() == 409;
    match report.as_ref().and_then(|report| report.of(instance)) {
        Some(Outcome::Stored(None)) if stored => return receipt(""),
        Some(Outcome::Stored(Some(warning))) if stored => return receipt(&format!(" {warning:04X}")),
        Some(Outcome::Failed(Some(reason @ (0x0111 | 0xb00e)))) if flags.has(Flags::DUPLICATE) => {
            let reason = format!("the server ({}) says {reason:04X}: {ANOTHER_IS_KEPT}", status.as_u16());
            return Err(SendError::Rejected { reason });
        }
        Some(Outcome::Failed(Some(reason @ (0x0111 | 0xb00e)))) => return receipt(&format!(" {reason:04X}")),
        Some(Outcome::Failed(reason)) => return Err(failed(status.as_u16(), reason, after)),
        _ => {}
    }
    let refused = |what: &str| SendError::Refused { reason: format!("the server answered {status}: {what}") };
    match (status.as_u16(), body) {
        (202, Some(_)) => Err(refused("it did not say what became of the instance")),
        (200..=299, None) => Err(lost("the server's answer did not come to its end")),
        (200..=299, Some(body)) if report.is_some() || body.trim_ascii().is_empty() => receipt(""),
        (200..=299, Some(_)) => {
            let cause = format!("the server answered {status}, but not as a DICOMweb server does: check url");
            Err(SendError::Busy { cause, after })
        }
        (406, _) => Err(refused("it has no answers in application/dicom+json")),
        (409, _) => Err(refused("it did not store the instance and did not say why")),
        (413, _) => Err(refused("the instance is too large for it")),
        (415, _) => Err(refused("it takes no instances in application/dicom, or not of this transfer syntax")),
        _ => general.and_then(|()| receipt("")),
    }
}

/// The server says that it did not store the instance.
fn failed(status: u16, reason: Option<u16>, after: Option<Duration>) -> SendError {
    let Some(code) = reason else {
        return SendError::Refused { reason: format!("the server ({status}) did not store it and gave no reason") };
    };
    let said = format!("the server ({status}) says {code:04X}: {}", failure_words(code));
    match code {
        0xa700..=0xa7ff | 0xb00f => SendError::Busy { cause: said, after },
        _ => SendError::Refused { reason: said },
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    const UID: &str = "1.2.826.0.1.3680043.8.498.1";

    fn means(status: u16, body: &str) -> String {
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Answer { status, after: None, body: Some(Bytes::copy_from_slice(body.as_bytes())) };
        match verdict(&answer, UID.as_bytes(), Flags::default()) {
            Ok(receipt) => format!("receipt {}", receipt.code),
            Err(SendError::Busy { cause, .. }) => format!("busy {cause}"),
            Err(SendError::Refused { reason }) => format!("refused {reason}"),
            Err(other) => format!("{other:?}"),
        }
    }

    fn result(sequence: &str, more: &str) -> String {
        format!(r#"{{"{sequence}":{{"vr":"SQ","Value":[{{"00081155":{{"vr":"UI","Value":["{UID}"]}}{more}}}]}}}}"#)
    }

    fn failure(reason: u16) -> String {
        result("00081198", &format!(r#","00081197":{{"vr":"US","Value":[{reason}]}}"#))
    }

    #[test]
    fn the_servers_word_on_the_instance_goes_before_its_status() {
        let stored = result("00081199", "");
        for (status, body, meaning) in [
            (200, stored.clone(), "receipt 200"),
            (202, stored.clone(), "receipt 202"),
            (409, stored.clone(), "receipt 409"),
            (503, stored, "busy"),
            (202, result("00081199", r#","00081196":{"vr":"US","Value":[45056]}"#), "receipt 202 B000"),
            (200, failure(0x0110), "refused the server (200) says 0110: it failed to process"),
            (202, failure(0xa701), "busy the server (202) says A701: it is out of resources"),
            (409, failure(0x0111), "receipt 409 0111"),
            (409, failure(0xb00e), "receipt 409 B00E"),
            (409, failure(0xa900), "refused the server (409) says A900: the data set does not match"),
            (409, failure(0x0122), "refused the server (409) says 0122: it does not support the SOP class"),
            (400, failure(0xc122), "refused the server (400) says C122: it does not support the transfer syntax"),
            (409, result("00081198", ""), "refused the server (409) did not store it and gave no reason"),
        ] {
            assert!(means(status, &body).starts_with(meaning), "{meaning}: {}", means(status, &body));
        }
    }

    #[test]
    fn a_changed_instance_that_the_server_does_not_take_is_not_delivered() {
        for (status, reason) in [(200, 0x0111), (202, 0xb00e), (409, 0x0111), (409, 0xb00e)] {
            let body = Some(Bytes::from(failure(reason)));
            let answer = Answer { status: StatusCode::from_u16(status).unwrap(), after: None, body };
            let told = verdict(&answer, UID.as_bytes(), Flags::DUPLICATE.with(Flags::UNREADABLE));
            assert!(
                matches!(&told, Err(SendError::Rejected { reason }) if reason.contains("the former one")),
                "{told:?}"
            );
            assert!(verdict(&answer, UID.as_bytes(), Flags::UNREADABLE).is_ok());
        }
    }

    #[test]
    fn without_its_word_the_status_decides_and_a_login_page_is_no_receipt() {
        for (status, body, meaning) in [
            (200, "", "receipt 200"),
            (204, "", "receipt 204"),
            (200, "{}", "receipt 200"),
            (200, "<html>please log in</html>", "busy the server answered 200 OK, but not as"),
            (200, r#"{"error":"session expired"}"#, "busy the server answered 200 OK, but not as"),
            (202, "", "refused"),
            (202, "{}", "refused"),
            (409, "", "refused the server answered 409 Conflict: it did not store the instance and did not say why"),
            (415, "", "refused"),
            (406, "", "refused"),
            (401, "", "busy"),
            (429, "", "busy"),
            (503, "", "busy"),
            (302, "", "refused"),
        ] {
            assert!(means(status, body).starts_with(meaning), "{meaning}: {}", means(status, body));
        }
        let status = StatusCode::OK;
        let cut = verdict(&Answer { status, after: None, body: None }, UID.as_bytes(), Flags::default());
        assert!(matches!(cut, Err(SendError::Disconnected { .. })), "an answer that breaks off is none");
    }

    #[test]
    fn nothing_that_the_server_writes_gets_into_the_reason() {
        let quoting = result("00081198", r#","00080010":{"vr":"PN","Value":["Probe^Paula"]}"#);
        for status in [200, 202, 400, 409] {
            assert!(!means(status, &quoting).contains("Paula"));
        }
        assert!(!means(409, "Probe^Paula is here already").contains("Paula"));
    }

    #[test]
    fn what_is_no_instance_is_rejected_and_says_so() {
        assert!(sendable("application/dicom").is_ok() && sendable("Application/DICOM; x=y").is_ok());
        let error = sendable("application/hl7-v2; charset=utf-8").unwrap_err();
        assert!(matches!(&error, SendError::Rejected { reason } if reason.contains("application/hl7-v2")), "{error}");
    }

    #[test]
    fn a_section_reads_as_people_write_it() {
        let told = |text: &str| {
            let mut problems = Problems::default();
            toml::from_str::<StowConfig>(text).unwrap().check(&mut problems);
            let told: Vec<_> =
                problems.into_found().into_iter().map(|found| (found.path.join("."), found.warning)).collect();
            told
        };
        assert_eq!(told("url = 'http://a/dicom-web/studies'\nplain = true\nhttp = '1.1'"), []);
        assert_eq!(told("url = 'http://a/studies/1.2.3?x=y'\nplain = true\nhttp = '2'"), []);
        assert_eq!(told("url = 'http://a/dicom-web'\nplain = true\nhttp = 'auto'"), [("url".into(), true)]);
        assert_eq!(
            told("url = 'http://a/studies'\nplain = true\nmax-in-flight = 0"),
            [("max-in-flight".into(), false)]
        );
        assert!(toml::from_str::<StowConfig>("url = 'http://a/studies'\nhttp = '3'").is_err());
    }
}
