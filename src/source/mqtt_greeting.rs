//! The first packet of an MQTT connection: who it is, what it may, and what it is told.
//!
//! All of it takes at most the connect-timeout. Whoever is not let in is told why in the protocol's words, a second later when it was about a
//! name or a password, so that guessing is slow; a wrong name is answered as a wrong password is.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::mqtt_endpoint::{Endpoint, Guest, TOPIC_BYTES_MAX};
use super::mqtt_inlet::{FREE_BYTES, Inlet};
use super::mqtt_reading;
use crate::system::stream::Stream;
use crate::wire::mqtt_answer::{self as answer, Reason, Terms};
use crate::wire::mqtt_packet::{Connect, Fault, Header, Version};

/// Bytes of a CONNECT, its will among them: strangers send it.
const CONNECT_BYTES_MAX: usize = FREE_BYTES;
/// Bytes of a client id.
const ID_BYTES_MAX: usize = 256;
/// What a wrong name or password costs.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// Why somebody was not let in.
#[derive(Debug, thiserror::Error)]
enum Turned {
    #[error("no whole CONNECT came within the connect timeout")]
    Slow,
    #[error("it closed before its CONNECT was whole")]
    Gone,
    #[error("{0}")]
    Fault(#[from] Fault),
    #[error("it was refused: {0}")]
    Refused(&'static str),
}

/// Lets a client in; `None` when it was turned away, or the source stops.
pub(super) async fn greet(stream: &mut Stream, endpoint: &Endpoint) -> Option<Guest> {
    let peer = stream.peer();
    let deadline = Instant::now() + endpoint.connect_time;
    let outcome = tokio::select! {
        () = endpoint.stop.cancelled() => return None,
        outcome = timeout_at(deadline, admit(stream, endpoint)) => outcome.unwrap_or(Err(Turned::Slow)),
    };
    outcome.map_err(|turned| tell(endpoint, peer, &turned)).ok()
}

fn tell(endpoint: &Endpoint, peer: SocketAddr, turned: &Turned) {
    endpoint.intake.counters().turned_away.one();
    if let Some(unsaid) = endpoint.strangers.speak() {
        tracing::warn!(source = %endpoint.intake.source(), %peer, unsaid, "turned away: {turned}");
    }
}

async fn admit(stream: &mut Stream, endpoint: &Endpoint) -> Result<Guest, Turned> {
    let mut inlet = Inlet::default();
    let header = whole(stream, &mut inlet).await?;
    let connect = match Connect::read(header, inlet.body(header)) {
        Ok(connect) => connect,
        Err(Fault::Version(level)) => {
            let version = if level > 5 { Version::V5 } else { Version::V311 };
            refuse(stream, version, Reason::UnsupportedVersion).await;
            return Err(Fault::Version(level).into());
        }
        Err(fault) => return Err(fault.into()),
    };
    let version = connect.version;
    match judge(&connect, stream.peer_common_name().as_deref(), endpoint).await {
        Ok((mut guest, terms)) => {
            let mut out = Vec::new();
            answer::connack(&mut out, version, Reason::Success, &terms);
            stream.write_all(&out).await.map_err(|_| Turned::Gone)?;
            inlet.consume(header);
            guest.inlet = inlet;
            Ok(guest)
        }
        Err(reason) => {
            if matches!(reason, Reason::BadPassword | Reason::NotAuthorised) {
                sleep(REFUSAL_PAUSE).await;
            }
            refuse(stream, version, reason).await;
            Err(Turned::Refused(words(reason)))
        }
    }
}

async fn whole(stream: &mut Stream, inlet: &mut Inlet) -> Result<Header, Turned> {
    loop {
        if inlet.read(stream).await.map_err(|_| Turned::Gone)? == 0 {
            return Err(Turned::Gone);
        }
        // A stranger that speaks something else is known by its first byte.
        if inlet.first().is_some_and(|first| first != 0x10) {
            return Err(Fault::Protocol("the first packet is no CONNECT").into());
        }
        if let Some(header) = inlet.whole(CONNECT_BYTES_MAX)? {
            return Ok(header);
        }
        inlet.settle(CONNECT_BYTES_MAX);
    }
}

/// Whether it is let in, and on which terms.
async fn judge(
    connect: &Connect<'_>,
    certificate: Option<&str>,
    endpoint: &Endpoint,
) -> Result<(Guest, Terms), Reason> {
    let version = connect.version;
    if connect.extended_authentication {
        return Err(Reason::BadAuthenticationMethod);
    }
    // A client of 3.1.1 that wants its session kept must have a name for it (MQTT-3.1.3-8).
    let nameless = connect.client_id.is_empty() && version == Version::V311 && !connect.clean;
    if nameless || connect.client_id.len() > ID_BYTES_MAX {
        return Err(Reason::BadClientId);
    }
    let client = endpoint.clients.admit(connect, certificate).await?;
    let mut will = None;
    if let Some((message, qos, retain)) = &connect.will {
        if *qos == 2 && version == Version::V5 {
            return Err(Reason::Qos);
        }
        if message.topic.len() > TOPIC_BYTES_MAX || !client.may_publish(message.topic) {
            return Err(Reason::NotAuthorised);
        }
        will = Some((message, *qos, *retain));
    }
    let assigned = connect.client_id.is_empty().then(chosen_id);
    let id = assigned.as_deref().unwrap_or(connect.client_id);
    let place = client.connect(id).ok_or(Reason::Quota)?;
    let guest = Guest {
        version,
        keep_alive_s: connect.keep_alive_s,
        packet_bytes_max: connect.packet_bytes_max,
        will: will.map(|(message, qos, retain)| Box::new(mqtt_reading::of_will(message, qos, retain, id))),
        inlet: Inlet::default(),
        place,
    };
    let terms = Terms {
        receive_maximum: endpoint.receive_maximum,
        packet_bytes_max: u32::try_from(endpoint.packet_bytes_max).unwrap_or(u32::MAX),
        no_session: connect.session_expiry_s > 0,
        keep_alive_s: None,
        assigned_id: assigned,
    };
    Ok((guest, terms))
}

fn chosen_id() -> String {
    let mut random = [0; 8];
    // All zeros when the system gives none: then the next such client takes this one's place.
    aws_lc_rs::rand::fill(&mut random).ok();
    format!("wardgate-{}", data_encoding::HEXLOWER.encode(&random))
}

async fn refuse(stream: &mut Stream, version: Version, reason: Reason) {
    let mut out = Vec::new();
    answer::connack(&mut out, version, reason, &Terms::default());
    // It may be gone, or deaf: its connection ends all the same.
    if stream.write_all(&out).await.is_ok() {
        stream.shutdown().await.ok();
    }
}

fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::NotAuthorised => {
            "no client of the configuration has this certificate, user and id, or its will has a topic that it may not use"
        }
        Reason::BadPassword => {
            "its password is wrong, or no client of the configuration has this user with this certificate and id"
        }
        Reason::BadClientId => "a client id that is too long, or none though a session was wanted",
        Reason::Quota => "this client has as many connections as it may: see its max-connections",
        Reason::Qos => "its will has QoS 2",
        Reason::BadAuthenticationMethod => "it wants an authentication method that is not spoken here",
        _ => "it can't be served",
    }
}
