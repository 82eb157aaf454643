//! What an MQTT client sent, as a reading: its payload byte for byte, and beside it what the protocol said.
//!
//! A payload is read by the profile of its topic, where there is one; one that it can't read is kept and flagged. Nothing is left out of what
//! was said but user properties beyond the number that is kept.

use std::borrow::Cow;

use super::profile::Profile;
use super::readings::Reading;
use crate::envelope::{Flags, Stamp};
use crate::telemetry::record::{Event, Named, Raw};
use crate::wire::mqtt_packet::{Message, Publish};

/// Bytes of a stored record beside its payload, topic and properties, about: for the account of memory.
const FRAME_BYTES: usize = 1024;
/// Bytes of a value that was read, in memory and in the record, beside its own.
const VALUE_BYTES: usize = 768;
/// What a will may hold until it is stored: it came in a CONNECT, which is short.
pub(super) const WILL_BYTES: usize = 64 << 10;

/// A published message. `id` is the client id of its connection, `profile` what reads its payload.
pub(super) fn of_publish(publish: &Publish<'_>, id: &str, received: Stamp, profile: Option<&Profile>) -> Reading {
    let mut about = about(&publish.message, publish.qos, id);
    let mut events = Vec::new();
    if publish.dup {
        about.push(named("dup", "true"));
    }
    if publish.retain {
        about.push(named("retain", "true"));
        events.push(event("retained", "the device marked it to be kept for later subscribers"));
    }
    let payload = publish.message.payload;
    let raw = Some(Raw::of(payload));
    let Some(profile) = profile else {
        return Reading { received: Some(received), events, about, raw, ..Reading::default() };
    };
    let decoded = profile.decode(payload, payload, received);
    events.extend(decoded.events);
    Reading {
        received: Some(received),
        device_time: decoded.device_time,
        observations: decoded.observations,
        events,
        device: decoded.device,
        about,
        raw,
        flags: if decoded.is_readable { Flags::default() } else { Flags::UNREADABLE },
        ..Reading::default()
    }
}

/// A will, to be stored when the connection breaks. The time of its reception is then.
pub(super) fn of_will(message: &Message<'_>, qos: u8, retain: bool, id: &str) -> Reading {
    let mut about = about(message, qos, id);
    if retain {
        about.push(named("retain", "true"));
    }
    let events =
        vec![event("will", "the connection ended without a goodbye; these are the device's words for that case")];
    Reading { events, about, raw: Some(Raw::of(message.payload)), ..Reading::default() }
}

/// About how many bytes a reading of this message holds until it is stored.
pub(super) fn bytes_of(message: &Message<'_>, reading: &Reading) -> usize {
    let user: usize = message.user.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    let read = (reading.observations.len() + reading.events.len() + reading.device.len()) * VALUE_BYTES;
    // The payload as text or base64, and again in the record; what was read of it is a part of it.
    FRAME_BYTES + read + 2 * message.topic.len() + 2 * user + 5 * message.payload.len()
}

fn about(message: &Message<'_>, qos: u8, id: &str) -> Vec<Named> {
    let mut about = Vec::with_capacity(4 + message.user.len());
    about.push(named("client-id", id));
    about.push(named("topic", message.topic));
    about.push(named(
        "qos",
        match qos {
            0 => "0",
            1 => "1",
            _ => "2",
        },
    ));
    about.extend(message.content_type.map(|text| named("content-type", text)));
    for (name, value) in &message.user {
        about.push(Named { name: Cow::Owned(format!("user:{name}")), value: (*value).to_owned() });
    }
    if message.user_left_out > 0 {
        about.push(named("user-properties-left-out", &message.user_left_out.to_string()));
    }
    about
}

fn named(name: &'static str, value: &str) -> Named {
    Named { name: Cow::Borrowed(name), value: value.to_owned() }
}

fn event(kind: &'static str, text: &'static str) -> Event {
    Event {
        kind: kind.into(),
        vendor_code: None,
        code: None,
        text: Some(text.to_owned()),
        priority: None,
        phase: None,
        details: Vec::new(),
    }
}
