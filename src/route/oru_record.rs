//! The [`Record`] that an HL7 v2 message with observations holds (ORU^R01 and R40; IHE PCD-01 and PCD-04), for routes with `as`.
//!
//! Private codes are kept as they came. A value is one only where the sender says so: an NM field that holds no number, an OBX that is
//! not final, a waveform, are none. Which numbers stand for "no value" is known to nobody here: an HL7 sender says it with OBX-11.

use super::Form;
use super::charset::Charset;
use super::oru_time::Times;
use crate::envelope::Envelope;
use crate::telemetry::codes::{self, MDC};
use crate::telemetry::record::{
    Code, Event, Mode, Named, Observation, Phase, Priority, Raw, Record, Time, VERSION, Validity, Value,
};
use crate::values::Zone;
use crate::wire::hl7::{self, Header};
use crate::wire::oru::{Group, Oru, Part, Segment};

/// Levels of the device that are told.
const LEVELS_MAX: usize = 64;
/// Coding systems of table 0396 that have a URI.
const SYSTEMS: [(&str, &str); 4] = [
    ("MDC", MDC),
    ("LN", "http://loinc.org"),
    ("SCT", "http://snomed.info/sct"),
    ("UCUM", "http://unitsofmeasure.org"),
];

/// Reads the body of a stored HL7 message. `zone` is that of times that name none, in a message whose header names none.
///
/// # Errors
/// Why it holds no observations, or none that can be read, in words.
pub(super) fn record(body: &[u8], envelope: &Envelope, zone: Option<&Zone>) -> Result<Record, String> {
    let oru = Oru::read(body).map_err(|error| format!("{error}; as = \"{}\" is for ORU", Form::Json.as_str()))?;
    let meta = &envelope.meta;
    let (charset, told) = Charset::of(charset_name(&oru.header, &meta.content_type), body)?;
    let times = Times::of(oru.header.field(7), zone);
    let reader = Reader { charset, times };
    let received = Time::from(meta.received);
    let (mut observations, mut events, mut device) = (Vec::new(), Vec::new(), Vec::new());
    let mut stream = String::new();
    for group in &oru.groups {
        let segments = group.observations.iter();
        if let Some(named) = segments.map(|segment| reader.device(segment)).find(|named| !named.is_empty())
            && stream.is_empty()
        {
            stream = named;
        }
        let facets = reader.alarm(group);
        for segment in &group.observations {
            if is_level(segment) {
                device.push(Named::new("level", reader.whole(segment.field(3))));
            } else if facets.is_none() || !is_facet(segment) {
                observations.push(reader.observation(segment, group.request.field(7), &stream));
            }
        }
        events.extend(facets);
    }
    device.truncate(LEVELS_MAX);
    if stream.is_empty() {
        stream = reader.text(oru.header.field(3));
    }
    // MSH-7 is when it was sent; a sender without one says at least when it observed.
    let sent = Some(oru.header.field(7)).filter(|sent| !sent.is_empty());
    let sent = sent.or_else(|| Some(oru.groups.first()?.request.field(7).bytes())).unwrap_or_default();
    Ok(Record {
        v: VERSION,
        source: meta.source.to_string(),
        stream,
        // An HL7 sender does not count its messages: each is a stream of its own.
        boot: envelope.id.to_string(),
        seq: 1,
        received,
        device_time: reader.times.device_time(sent, received),
        observations,
        events,
        gap: None,
        device,
        about: told.map(|told| Named::new("charset", told)).into_iter().collect(),
        subject: reader.subject(&oru),
        raw: Some(Raw::of(body)),
    })
}

/// The character set that the header says; the source's configuration serves messages that say nothing.
fn charset_name<'m>(header: &Header<'_>, content_type: &'m str) -> Option<&'m str> {
    let said = content_type.split(';').find_map(|part| part.trim().strip_prefix("charset="));
    let unknown = || (!header.field(18).trim_ascii().is_empty()).then_some("of a name that is not known here");
    // The configuration may spell it in any way that devices do.
    let configured = || said.map(|said| hl7::charset(said.trim_matches('"').as_bytes()).unwrap_or(said));
    header.charset().or_else(unknown).or_else(configured)
}

/// What reads the fields of one message.
struct Reader<'z> {
    charset: Charset,
    times: Times<'z>,
}

impl Reader<'_> {
    fn text(&self, bytes: &[u8]) -> String {
        self.charset.text(bytes)
    }

    fn part(&self, part: Part<'_>) -> String {
        self.text(&part.unescaped()).trim().to_owned()
    }

    /// A field with its separators, as people read it.
    fn whole(&self, part: Part<'_>) -> String {
        self.text(part.bytes())
    }

    /// OBX-18, the name that stands for one device the longest: the universal id, else the entity's.
    fn device(&self, segment: &Segment<'_>) -> String {
        let [entity, universal] = [1, 3].map(|number| self.part(segment.field(18).component(number)));
        match (entity.is_empty(), universal.is_empty()) {
            (_, true) => entity,
            (true, false) => universal,
            (false, false) => format!("{universal}/{entity}"),
        }
    }

    /// `started` is OBR-7: when periodic values were measured.
    fn observation(&self, segment: &Segment<'_>, started: Part<'_>, stream: &str) -> Observation {
        let (code, vendor_code) = self.code(segment.field(3));
        let (unit, vendor_unit) = self.unit(segment.field(6));
        let at = segment.field(14);
        let mut notes = Vec::new();
        let mut note = |name: &'static str, text: String| {
            if !text.is_empty() {
                notes.push(Named::new(name, text));
            }
        };
        let label = self.part(segment.field(3).component(2));
        if code.is_none() && label != vendor_code {
            note("label", label);
        }
        note("containment", self.part(segment.field(4)));
        note("limits", self.part(segment.field(7)));
        note("flags", self.whole(segment.field(8)));
        note("method", self.whole(segment.field(17)));
        note("site", self.whole(segment.field(20)));
        let device = self.device(segment);
        if device != stream {
            note("device", device);
        }
        let waveform = matches!(segment.field(2).bytes(), b"NA" | b"MA");
        if waveform {
            note("class", "waveform".to_owned());
            note("waveform", self.whole(segment.field(5)));
        }
        let value = if waveform { None } else { self.value(segment) };
        let validity = validity(segment.field(11).bytes(), value.is_some());
        let mode = if at.is_empty() { Mode::Periodic } else { Mode::Episodic };
        let said = if at.is_empty() { started } else { at };
        let time = self.times.read(said.bytes());
        match &time {
            None => note("time", self.part(said)),
            Some(time) => notes.extend(time.note()),
        }
        let at = time.map(|time| time.text);
        Observation { vendor_code, code, value, unit, vendor_unit, validity, mode, at, notes }
    }

    /// OBX-5, by OBX-2; `None` where there is none.
    fn value(&self, segment: &Segment<'_>) -> Option<Value> {
        let (kind, field) = (segment.field(2), segment.field(5));
        if field.is_empty() {
            return None;
        }
        match kind.bytes() {
            b"NM" => number(&self.part(field)).map(Value::Number),
            // Comparator, number, separator, number: one number alone is a value like any other (HL7 v2.6, 2.A.70).
            b"SN" => {
                let parts = [1, 2, 3, 4].map(|part| self.part(field.component(part)));
                match (parts[0].as_str(), parts[2].as_str()) {
                    ("" | "=", "") => number(&parts[1]).map(Value::Number),
                    _ => Some(Value::Text(parts.concat())),
                }
            }
            b"CWE" | b"CE" | b"CNE" => {
                let text = [2, 9, 1].map(|part| self.part(field.component(part)));
                text.into_iter().find(|text| !text.is_empty()).map(Value::Text)
            }
            _ => {
                let texts: Vec<String> = field.repetitions().map(|one| self.part(one)).collect();
                Some(Value::Text(texts.join("\n")))
            }
        }
    }

    /// The code of OBX-3 or its alternate, and the vendor's own.
    fn code(&self, field: Part<'_>) -> (Option<Code>, String) {
        let [id, text, system, other_id, other_text, other_system] =
            [1, 2, 3, 4, 5, 6].map(|number| self.part(field.component(number)));
        let first = coded(&id, &text, &system);
        let second = coded(&other_id, &other_text, &other_system);
        let is_mdc = |code: &Option<Code>| code.as_ref().is_some_and(|code| code.system == MDC);
        // The sender's own code is the triple that means something to nobody else; where both do, the name is told apart best.
        let own = match (&first, is_mdc(&second) && !is_mdc(&first)) {
            (None, _) | (_, true) => [&id, &text],
            _ => [&other_id, &other_text],
        };
        let vendor = own.into_iter().chain([&text, &id]).find(|text| !text.is_empty());
        let code = if is_mdc(&second) { first.filter(|code| code.system == MDC).or(second) } else { first.or(second) };
        (code, vendor.cloned().unwrap_or_default())
    }

    /// OBX-6 in UCUM, and as it was sent.
    fn unit(&self, field: Part<'_>) -> (Option<String>, Option<String>) {
        let parts = [1, 2, 3, 4, 5, 6].map(|number| self.part(field.component(number)));
        let [id, text, system, other, _, other_system] = &parts;
        let ucum = match (system.as_str(), other_system.as_str()) {
            ("UCUM", _) => Some(id.clone()),
            (_, "UCUM") => Some(other.clone()),
            _ => {
                let known = id.parse().ok().and_then(codes::unit).or_else(|| codes::unit_by_name(text));
                known.or_else(|| codes::unit_by_name(id)).map(|unit| unit.ucum.to_owned())
            }
        };
        let said = if text.is_empty() { id } else { text };
        (ucum.filter(|ucum| !ucum.is_empty()), Some(said.clone()).filter(|said| !said.is_empty()))
    }

    /// The alert that a group is about (PCD-04), of all its facets.
    fn alarm(&self, group: &Group<'_>) -> Option<Event> {
        let first = group.observations.iter().find(|segment| is_event(segment))?;
        let mut event = Event {
            kind: "alarm".into(),
            vendor_code: None,
            code: None,
            text: None,
            priority: None,
            phase: None,
            details: Vec::new(),
        };
        let (what, said) = self.code(first.field(3));
        let value = first.field(5);
        // MDC_EVT_ALARM says what it is in its value, any other event with its code.
        let general = what.as_ref().is_some_and(|code| code.name.as_deref() == Some("MDC_EVT_ALARM"));
        let (coded, vendor) = self.code(value);
        let typed = matches!(first.field(2).bytes(), b"CWE" | b"CE");
        (event.code, event.vendor_code) = match (general, typed) {
            (true, true) => (coded, Some(vendor)),
            (true, false) => (None, None),
            (false, _) => (what, Some(said)),
        };
        let text = if typed {
            [9, 2].map(|part| self.part(value.component(part))).into_iter().find(|text| !text.is_empty())
        } else {
            Some(self.part(value))
        };
        event.text = text.filter(|text| !text.is_empty());
        for flag in first.field(8).repetitions() {
            event.priority = event.priority.or_else(|| priority(flag.bytes()));
        }
        for segment in group.observations.iter().filter(|segment| is_facet(segment)) {
            self.facet(segment, &mut event);
        }
        let at = [first.field(14), group.request.field(7)].into_iter().find(|at| !at.is_empty());
        if let Some(time) = at.and_then(|at| self.times.read(at.bytes())) {
            let note = time.note();
            event.details.push(Named::new("time", time.text));
            event.details.extend(note);
        }
        Some(event)
    }

    fn facet(&self, segment: &Segment<'_>, event: &mut Event) {
        let value = self.part(segment.field(5));
        match facet(segment) {
            Some("EVENT_PHASE") => {
                event.phase = match value.as_str() {
                    "start" => Some(Phase::Start),
                    "continue" | "update" | "escalate" | "deescalate" => Some(Phase::Continue),
                    "end" | "stop" | "reset" => Some(Phase::End),
                    _ => None,
                };
            }
            Some("PRIORITY") => event.priority = priority(value.as_bytes()).or(event.priority),
            _ => {}
        }
        let name = match facet(segment) {
            Some("EVENT_PHASE") if event.phase.is_none() => "phase",
            Some("STATE") => "state",
            Some("INACTIVATION_STATE") => "inactivation-state",
            Some("SOURCE") => "source",
            Some("TYPE") => "type",
            _ => return,
        };
        let value = match (name, value.as_str()) {
            ("type", "SP") => "physiological",
            ("type", "ST") => "technical",
            ("type", "SA") => "advisory",
            (_, other) => other,
        };
        if !value.is_empty() {
            event.details.push(Named::new(name, value));
        }
    }

    /// As HL7 writes it with the usual separators: that is how it can be passed on whole.
    fn subject(&self, oru: &Oru<'_>) -> Vec<Named> {
        let first = |part: Part<'_>| part.repetitions().next().map(|one| self.text(&one.usual())).unwrap_or_default();
        let told = [("patient-id", first(oru.patient.field(3))), ("location", first(oru.visit.field(3)))];
        let told = told.into_iter().filter(|(_, text)| !text.trim_matches('^').trim().is_empty());
        told.map(|(name, text)| Named::new(name, text)).collect()
    }
}

/// The code of a triple, when its system is one that means something elsewhere too.
fn coded(id: &str, text: &str, system: &str) -> Option<Code> {
    if id.is_empty() || system.is_empty() || system == "L" || system.starts_with("99") {
        return None;
    }
    let uri = SYSTEMS.iter().find(|(name, _)| *name == system).map_or(system, |(_, uri)| uri);
    let name = (!text.is_empty()).then(|| text.to_owned().into());
    Some(Code { system: uri.to_owned().into(), code: id.to_owned().into(), name })
}

/// A number; with a decimal comma, as some devices write it, unless that could stand between thousands.
fn number(text: &str) -> Option<String> {
    if text.split_once(',').is_some_and(|(_, after)| after.len() == 3) {
        return None;
    }
    let text = text.replace(',', ".");
    let plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.'));
    (plain && text.parse::<f64>().is_ok()).then_some(text)
}

/// OBX-11 (table 0085). PCD-01: `R` is valid and not reviewed, `F` validated.
fn validity(status: &[u8], has_value: bool) -> Validity {
    match status {
        _ if !has_value => Validity::NotAvailable,
        b"F" | b"C" | b"U" => Validity::Validated,
        b"R" => Validity::Valid,
        b"W" | b"D" | b"X" | b"N" => Validity::Invalid,
        _ => Validity::Questionable,
    }
}

fn priority(text: &[u8]) -> Option<Priority> {
    match text {
        b"PH" => Some(Priority::High),
        b"PM" => Some(Priority::Medium),
        b"PL" => Some(Priority::Low),
        b"PI" => Some(Priority::Information),
        _ => None,
    }
}

/// A level of the device: no value, OBX-11 `X`, and no metric in OBX-4.
fn is_level(segment: &Segment<'_>) -> bool {
    let place = segment.field(4).bytes();
    let metric = place.split(|byte| *byte == b'.').nth(3).unwrap_or_default();
    let names_none = metric.is_empty() || metric == b"0";
    segment.field(2).is_empty() && segment.field(11).bytes().eq_ignore_ascii_case(b"X") && names_none
}

/// Whether OBX-3 is an event: a code of MDC's partition 3, or a name that says so.
fn is_event(segment: &Segment<'_>) -> bool {
    let id = segment.field(3);
    let code: Option<u32> = std::str::from_utf8(id.component(1).bytes()).ok().and_then(|code| code.parse().ok());
    let name = id.component(2).bytes();
    code.is_some_and(|code| code >> 16 == 3) || name.starts_with(b"MDC_EVT_") || name.starts_with(b"MDCX_EVT_")
}

/// Whether a segment of an alert says something about the alert and not about the patient.
fn is_facet(segment: &Segment<'_>) -> bool {
    is_event(segment) || facet(segment).is_some()
}

/// Which facet, by its name: senders do not agree about the numbers.
fn facet(segment: &Segment<'_>) -> Option<&'static str> {
    let id = segment.field(3);
    let name = std::str::from_utf8(id.component(2).bytes()).ok()?;
    let known = match name.strip_prefix("MDC_ATTR_") {
        Some("EVENT_PHASE") => "EVENT_PHASE",
        Some("ALARM_STATE" | "ALERT_STATE") => "STATE",
        Some("ALARM_INACTIVATION_STATE" | "ALERT_INACTIVATION_STATE") => "INACTIVATION_STATE",
        Some("ALARM_PRIORITY" | "ALERT_PRIORITY") => "PRIORITY",
        Some("ALERT_TYPE" | "ALARM_TYPE") => "TYPE",
        Some("ALERT_SOURCE" | "ALARM_SOURCE") => "SOURCE",
        _ => return None,
    };
    Some(known)
}
