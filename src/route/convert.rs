//! The form in which a message is sent: `as` of its route, made anew of the stored bytes at each attempt.
//!
//! A message without a conversion is never touched, nor is its body read here. One that can't be converted is refused with words that
//! say why, and so becomes a dead letter. What is made depends on the stored message and the configuration alone: a second copy is
//! the same. No content stands in the words.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Conversion, Form, RouteConfig, oru_record};
use crate::digest::Digest;
use crate::envelope::{Body, Envelope, Flags, Meta};
use crate::telemetry::record::{self, Raw, Record};
use crate::telemetry::site::SiteCodes;
use crate::telemetry::{pcd, senml};
use crate::values::Name;
use crate::wire::astm_json;
use crate::wire::astm_record::MEDIA_TYPE;
use crate::wire::hl7::Header;

/// Largest message that is converted. A reading has hundreds of bytes, a ward's ORU some hundred KiB.
pub const CONVERTED_BYTES_MAX: u64 = 1 << 20;
/// Largest message that may come of it, the bytes of the device in JSON with it.
const MADE_BYTES_MAX: usize = 8 << 20;
/// How the media type of HL7 v2 begins.
const HL7: &str = "application/hl7-v2";

/// What becomes of messages of each source for each upstream. Empty: all go as they are stored.
#[derive(Clone, Default, Debug)]
pub struct Conversions {
    lanes: BTreeMap<(Name, Name), Conversion>,
    gateway: String,
    site: String,
    codes: Arc<SiteCodes>,
}

/// A lane, and the form in which its messages go, or went while a route served it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Lane {
    /// The source.
    pub source: Name,
    /// The upstream.
    pub upstream: Name,
    /// What is made of its messages.
    pub conversion: Conversion,
}

/// What a stored message is, by its media type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Record,
    Hl7,
    Astm,
    Other,
}

/// What is sent instead.
struct Made {
    bytes: Vec<u8>,
    content_type: String,
    /// The receiver's name of it, where that is not the stored one: MSH-10.
    control_id: Option<Vec<u8>>,
}

impl Conversions {
    /// Those that the routes ask for. `gateway` and `site` name this box in what is made.
    pub fn new(routes: &[RouteConfig], gateway: &Name, site: &Name, codes: Arc<SiteCodes>) -> Self {
        let mut lanes = BTreeMap::new();
        for route in routes {
            let Some(conversion) = route.conversion() else { continue };
            for source in &route.from {
                for upstream in &route.to {
                    lanes.entry((source.clone(), upstream.clone())).or_insert(conversion);
                }
            }
        }
        Self { lanes, gateway: gateway.to_string(), site: site.to_string(), codes }
    }

    /// With those of `former` for lanes that no route serves any more: what waits in them was meant to go in that form.
    #[must_use]
    pub fn with_former(mut self, former: impl IntoIterator<Item = Lane>, routes: &[RouteConfig]) -> Self {
        for Lane { source, upstream, conversion } in former {
            if !is_routed(routes, &source, &upstream) {
                self.lanes.insert((source, upstream), conversion);
            }
        }
        self
    }

    /// All lanes with a form.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> + '_ {
        self.lanes.iter().map(|((source, upstream), conversion)| Lane {
            source: source.clone(),
            upstream: upstream.clone(),
            conversion: *conversion,
        })
    }

    /// What is made of messages of `source` for `upstream`.
    pub fn of(&self, source: &Name, upstream: &Name) -> Option<Conversion> {
        if self.lanes.is_empty() {
            return None;
        }
        self.lanes.get(&(source.clone(), upstream.clone())).copied()
    }

    /// The message in its form; `None`: it goes as it is stored, which is that form.
    ///
    /// # Errors
    /// Why it can't be converted, in words.
    pub async fn apply(&self, conversion: Conversion, envelope: &Envelope) -> Result<Option<Envelope>, String> {
        let stored = Stored::of(&envelope.meta.content_type);
        if self.is_in_form(conversion, stored) {
            return Ok(None);
        }
        let form = conversion.form.as_str();
        if stored == Stored::Other {
            let what = &envelope.meta.content_type;
            return Err(format!("it can't be sent as \"{form}\": {what} holds no observations that are known here"));
        }
        let length = envelope.body.len();
        if length > CONVERTED_BYTES_MAX {
            let limit = CONVERTED_BYTES_MAX >> 20;
            return Err(format!(
                "it can't be sent as \"{form}\": it has {length} bytes, at most {limit} MiB are converted"
            ));
        }
        let body = envelope.body.collect().await.map_err(|error| error.to_string())?;
        let made = match stored {
            Stored::Astm => astm(conversion.form, &body),
            _ => self.make(conversion, stored, &body, envelope),
        };
        let made = made.map_err(|reason| format!("it can't be sent as \"{form}\": {reason}"))?;
        if made.bytes.len() > MADE_BYTES_MAX {
            return Err(format!("it can't be sent as \"{form}\": it would have {} bytes", made.bytes.len()));
        }
        Ok(Some(made.envelope(envelope)))
    }

    /// Whether the stored bytes are what would be made.
    fn is_in_form(&self, conversion: Conversion, stored: Stored) -> bool {
        match conversion.form {
            Form::Raw => stored != Stored::Record,
            Form::Json => stored == Stored::Record && conversion.with_raw && self.codes.is_empty(),
            Form::Pcd01 | Form::Senml => false,
        }
    }

    fn make(&self, conversion: Conversion, stored: Stored, body: &Bytes, envelope: &Envelope) -> Result<Made, String> {
        let mut record = match stored {
            Stored::Record => read(body)?,
            Stored::Hl7 | Stored::Astm | Stored::Other => oru_record::record(body, envelope, self.codes.zone.as_ref())?,
        };
        if conversion.form == Form::Raw {
            return raw(&record);
        }
        self.codes.complete(&mut record);
        let id = envelope.id.to_string();
        let made = match conversion.form {
            Form::Pcd01 => {
                let sender = pcd::Sender { gateway: &self.gateway, site: &self.site, id: &id };
                let bytes = pcd::encode(&record, &sender).into_bytes();
                Made { bytes, content_type: pcd::CONTENT_TYPE.to_owned(), control_id: Some(id.into_bytes()) }
            }
            Form::Senml => {
                let bytes = senml::encode(&record, &self.gateway);
                Made { bytes, content_type: senml::CONTENT_TYPE.to_owned(), control_id: None }
            }
            Form::Json | Form::Raw => {
                if !conversion.with_raw {
                    record.raw = None;
                }
                // Only writers that fail and keys that are no strings can fail here. A record has neither.
                let bytes = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
                Made { bytes, content_type: record::CONTENT_TYPE.to_owned(), control_id: None }
            }
        };
        Ok(made)
    }
}

impl Stored {
    fn of(content_type: &str) -> Self {
        match content_type {
            record::CONTENT_TYPE => Self::Record,
            MEDIA_TYPE => Self::Astm,
            other if other.starts_with(HL7) => Self::Hl7,
            _ => Self::Other,
        }
    }
}

impl Made {
    fn envelope(self, stored: &Envelope) -> Envelope {
        let Self { bytes, content_type, control_id } = self;
        let digest = Digest::of(stored.class.digest(), &bytes);
        let is_new = control_id.is_some();
        let meta = Meta {
            content_type,
            control_id: control_id.unwrap_or_else(|| stored.meta.control_id.clone()),
            // What was noticed about a header does not hold for one that was made here.
            flags: if is_new { Flags::default() } else { stored.meta.flags },
            ..stored.meta.clone()
        };
        Envelope { id: stored.id, class: stored.class, meta, digest, body: Body::whole(bytes.into()) }
    }
}

/// A laboratory message: it has a form of its own, with orders and comments.
fn astm(form: Form, body: &[u8]) -> Result<Made, String> {
    if form != Form::Json {
        return Err("a laboratory message (ASTM) goes as \"json\" or \"raw\"".to_owned());
    }
    let bytes = astm_json::json(body).map_err(|error| error.to_string())?;
    Ok(Made { bytes, content_type: "application/json".to_owned(), control_id: None })
}

fn is_routed(routes: &[RouteConfig], source: &Name, upstream: &Name) -> bool {
    routes.iter().any(|route| route.from.contains(source) && route.to.contains(upstream))
}

fn read(body: &[u8]) -> Result<Record, String> {
    // The reader's own words may quote what it read: only its place is told.
    let place = |error: serde_json::Error| format!("the stored record can't be read at byte {}", error.column());
    serde_json::from_slice(body).map_err(place)
}

/// The device's own bytes.
fn raw(record: &Record) -> Result<Made, String> {
    let raw = record.raw.as_ref().ok_or("the record holds no bytes of the device")?;
    let bytes = raw.bytes().ok_or("the bytes of the device in the record are damaged")?;
    if let Ok(header) = Header::read(&bytes) {
        let content_type = match header.charset() {
            Some(charset) => format!("{HL7}; charset={charset}"),
            None => HL7.to_owned(),
        };
        let control_id = header.control_id().to_vec();
        return Ok(Made { bytes, content_type, control_id: Some(control_id) });
    }
    let content_type = match raw {
        Raw::Text(_) => "text/plain; charset=us-ascii",
        Raw::Base64(_) => "application/octet-stream",
    };
    Ok(Made { bytes, content_type: content_type.to_owned(), control_id: None })
}
