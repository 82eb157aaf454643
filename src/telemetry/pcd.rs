//! HL7 v2.6 of a [`Record`]: ORU^R01 as IHE PCD-01 (device observations), ORU^R40 as IHE PCD-04 (alarms) (IHE DEV TF-2, 3.1 and 3.4).
//!
//! A record of alarms alone is an ORU^R40, any other an ORU^R01. Only values that are valid or validated are written, never a sentinel nor
//! a doubted value: such an observation is told without one (OBX-11 `X`). What HL7 has no field for, gaps, events and flags, follows as NTE, so
//! that nothing is lost on the way. The same record gives the same bytes each time.
//!
//! * OBR-7 is when periodic values were measured: by the device's clock where it says so and its zone is known, else when the record came; in
//!   UTC. OBX-14 is there for episodic values only. A device's clock that was never set is not used, and how far off it is is told.
//! * OBX-4 counts metrics under the device as a whole (`1.0.0.n`): which of its parts measured them is not known here.
//! * The device's own code stands beside the MDC code, and by itself where there is none.

use super::codes::{self, MDC};
use super::record::{
    ClockQuality, Code, Event, Gap, Mode, Named, Observation, Phase, Priority, Record, Validity, Value,
};

/// The media type of both.
pub const CONTENT_TYPE: &str = "application/hl7-v2; charset=utf-8";
/// Most NTE after OBR and after each OBX.
const NOTES_MAX: usize = 64;
/// OBR-4 of an alarm, and OBX-3 of its first OBX.
const ALARM: &str = "196616^MDC_EVT_ALARM^MDC";
/// OBR-4 of observations: what the order would have been.
const MONITORING: &str = "182777000^monitoring of patient^SCT";
/// MSH-21 of PCD-01 and PCD-04.
const PROFILES: [&str; 2] =
    ["IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO", "IHE_PCD_ACM_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.4.1^ISO"];

/// Who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// MSH-3 and the name space of the ids.
    pub gateway: &'a str,
    /// MSH-4.
    pub site: &'a str,
    /// MSH-10, and what the ids in OBR are made of: the message's own id, so that a second copy is known as one.
    pub id: &'a str,
}

/// Writes the message.
pub fn encode(record: &Record, sender: &Sender<'_>) -> String {
    let (device, out) = (device(record, sender), String::new());
    let mut message = Message { out, record, sender, device, observed: 0, places: 0 };
    let alarms: Vec<&Event> = record.events.iter().filter(|event| is_alarm(event)).collect();
    if alarms.is_empty() || !record.observations.is_empty() {
        message.header(["ORU^R01^ORU_R01", PROFILES[0]]);
        message.observations(&alarms);
    } else {
        message.header(["ORU^R40^ORU_R40", PROFILES[1]]);
        for (index, alarm) in alarms.iter().enumerate() {
            let at = message.alarm_time(alarm);
            message.request(index + 1, ALARM, &at);
            if index == 0 {
                message.remark();
            }
            message.alarm(index + 1, alarm, &at);
        }
    }
    message.out
}

/// A message under construction.
struct Message<'a> {
    out: String,
    record: &'a Record,
    sender: &'a Sender<'a>,
    /// OBX-18.
    device: String,
    /// OBX so far in this OBR.
    observed: usize,
    /// Metrics so far in the message.
    places: usize,
}

impl Message<'_> {
    fn header(&mut self, [kind, profile]: [&str; 2]) {
        let Sender { gateway, site, id } = self.sender;
        let time = time(self.record.received.utc_us);
        let encoding = r"^~\&";
        let fields =
            format!("{encoding}|{gateway}|{site}|||{time}||{kind}|{id}|P|2.6|||AL|NE||UNICODE UTF-8|||{profile}");
        self.out.push_str(&format!("MSH|{fields}\r"));
        let named = |name: &str| self.record.subject.iter().find(|named| named.name == name).map(|named| &named.value);
        // Who it is was never known here, or was known to the sender of the message that the record came in.
        let patient = named("patient-id").map_or_else(|| "^^^^U".to_owned(), |id| as_field(id));
        let location = named("location").map(|location| as_field(location)).unwrap_or_default();
        self.segment("PID", &[(3, &patient), (5, "^^^^^^U")]);
        self.segment("PV1", &[(2, "U"), (3, &location)]);
    }

    fn observations(&mut self, alarms: &[&Event]) {
        // Values that were measured at another time are observed under another order.
        let measured = |observation: &Observation| match observation.mode {
            Mode::Periodic => Some(self.device_moment(observation).unwrap_or_else(|| self.at())),
            Mode::Episodic => None,
        };
        let times: Vec<Option<String>> = self.record.observations.iter().map(measured).collect();
        let mut current = times.iter().flatten().next().cloned().unwrap_or_else(|| self.at());
        let mut requests = 1;
        self.request(requests, MONITORING, &current);
        self.remark();
        for (observation, time) in self.record.observations.iter().zip(times) {
            if let Some(time) = time.filter(|time| *time != current) {
                requests += 1;
                current = time;
                self.request(requests, MONITORING, &current);
            }
            self.observation(observation);
        }
        for alarm in alarms {
            self.alarm_beside(alarm);
        }
    }

    /// An alarm in a message of values: what is known of it beside its name stands in notes.
    fn alarm_beside(&mut self, alarm: &Event) {
        let (set, place) = self.next_place();
        let (what, at, device) = (alarm_text(alarm), self.alarm_time(alarm), self.device.clone());
        let fields = [(1, set.as_str()), (2, "CWE"), (3, ALARM), (4, &place), (5, &what), (11, "R"), (14, &at)];
        self.segment("OBX", &[&fields[..], &[(18, device.as_str())]].concat());
        let known =
            [("phase", alarm.phase.map(|phase| word(&phase))), ("priority", alarm.priority.map(|of| word(&of)))];
        for (name, value) in known {
            if let Some(value) = value {
                self.note(format!("{name}: {value}"));
            }
        }
        for detail in alarm.details.iter().take(NOTES_MAX) {
            self.note(format!("{}: {}", detail.name, detail.value));
        }
    }

    /// OBX-1 and OBX-4 of the next metric.
    fn next_place(&mut self) -> (String, String) {
        self.observed += 1;
        self.places += 1;
        (self.observed.to_string(), format!("1.0.0.{}", self.places))
    }

    /// OBR with ids that no other message has.
    fn request(&mut self, number: usize, service: &str, at: &str) {
        let Sender { gateway, id, .. } = self.sender;
        let (set, id) = (number.to_string(), format!("{id}-{number}^{gateway}"));
        self.segment("OBR", &[(1, &set), (2, &id), (3, &id), (4, service), (7, at)]);
        self.observed = 0;
    }

    /// When the device says that it measured a value, in UTC; `None` where that is no moment.
    fn device_moment(&self, observation: &Observation) -> Option<String> {
        self.moment(observation.at.as_deref()?)
    }

    /// A clock that was never set says nothing, whatever it shows.
    fn moment(&self, at: &str) -> Option<String> {
        let never_set = |quality| quality == ClockQuality::NeverSet;
        let unset = self.record.device_time.as_ref().is_some_and(|time| never_set(time.quality));
        zoned(at).filter(|_| !unset)
    }

    /// When an alarm was, by the device's clock where that is known, else when it came.
    fn alarm_time(&self, alarm: &Event) -> String {
        let said = alarm.details.iter().find(|detail| detail.name == "time");
        said.and_then(|said| self.moment(&said.value)).unwrap_or_else(|| self.at())
    }

    fn observation(&mut self, observation: &Observation) {
        let (set, place) = self.next_place();
        let (code, device) = (identifier(observation.code.as_ref(), &observation.vendor_code, ""), self.device.clone());
        let (kind, value) = match observation.usable() {
            Some(Value::Number(digits)) => number(digits).map_or_else(Default::default, |number| ("NM", number)),
            Some(Value::Text(text)) => ("ST", escaped(text)),
            None => ("", String::new()),
        };
        let unit = if kind == "NM" { unit(observation) } else { String::new() };
        let status = match observation.validity {
            _ if kind.is_empty() => "X",
            Validity::Validated => "F",
            _ => "R",
        };
        let at = match observation.mode {
            Mode::Periodic => String::new(),
            Mode::Episodic => self.device_moment(observation).unwrap_or_else(|| self.at()),
        };
        let fields = [(1, set.as_str()), (2, kind), (3, &code), (4, &place), (5, &value), (6, &unit), (11, status)];
        self.segment("OBX", &[&fields[..], &[(14, at.as_str()), (18, &device)]].concat());
        if kind.is_empty() {
            self.note(format!("validity: {}", word(&observation.validity)));
        }
        if let Some(at) = observation.at.as_deref().filter(|_| self.device_moment(observation).is_none()) {
            self.note(format!("time: {at} by the device's clock, which is not set or whose zone is not known"));
        }
        for note in observation.notes.iter().take(NOTES_MAX) {
            self.note(format!("{}: {}", note.name, note.value));
        }
    }

    /// One alert: its own OBR, and an OBX for each facet that is known (PCD-04, table of facets; the last part of OBX-4 names it).
    fn alarm(&mut self, number: usize, alarm: &Event, at: &str) {
        let (phase, state) = match alarm.phase {
            Some(Phase::Start) => ("start", "active"),
            Some(Phase::Continue) => ("continue", "active"),
            Some(Phase::End) => ("end", "inactive"),
            None => ("tpoint", "active"),
        };
        let priority = match alarm.priority {
            Some(Priority::High) => "PH",
            Some(Priority::Medium) => "PM",
            Some(Priority::Low) => "PL",
            Some(Priority::Information) => "PI",
            None => "PN",
        };
        let detail = |name: &str| alarm.details.iter().find(|detail| detail.name == name).map(|detail| &detail.value);
        let kind = match (detail("type").map(String::as_str), alarm.priority) {
            (Some("physiological"), _) => "SP",
            (Some("technical"), _) => "ST",
            (_, Some(Priority::Information)) => "SA",
            _ => "",
        };
        let source = detail("source").map_or_else(|| escaped(&self.record.source), |source| escaped(source));
        let facets = [
            (1, "CWE", ALARM, alarm_text(alarm)),
            (2, "ST", "68480^MDC_ATTR_ALERT_SOURCE^MDC", source),
            (3, "ST", "68481^MDC_ATTR_EVENT_PHASE^MDC", phase.to_owned()),
            (4, "ST", "68482^MDC_ATTR_ALARM_STATE^MDC", state.to_owned()),
            (6, "ST", "68484^MDC_ATTR_ALARM_PRIORITY^MDC", priority.to_owned()),
            (7, "ST", "68485^MDC_ATTR_ALERT_TYPE^MDC", kind.to_owned()),
        ];
        for (facet, kind, code, value) in facets.into_iter().filter(|(_, _, _, value)| !value.is_empty()) {
            self.observed += 1;
            let (set, place, device) =
                (self.observed.to_string(), format!("1.0.0.{number}.{facet}"), self.device.clone());
            let at = if facet == 1 { at } else { "" };
            let fields = [(1, set.as_str()), (2, kind), (3, code), (4, &place), (5, &value), (11, "R"), (14, at)];
            self.segment("OBX", &[&fields[..], &[(18, device.as_str())]].concat());
        }
        for detail in alarm.details.iter().take(NOTES_MAX) {
            self.note(format!("{}: {}", detail.name, detail.value));
        }
    }

    /// What the record says beside its values.
    fn remarks(&self) -> Vec<String> {
        let record = self.record;
        let mut remarks = Vec::new();
        if !record.received.synchronised {
            remarks.push("clock: the time of the gateway was not synchronised".to_owned());
        }
        remarks.extend(record.gap.as_ref().map(gap_text));
        if let Some(time) = &record.device_time {
            let off = time.offset_ms.map(|off| format!("{off} ms off the gateway's, "));
            remarks.push(format!("device clock: {}; {}{}", time.said, off.unwrap_or_default(), word(&time.quality)));
        }
        for event in record.events.iter().filter(|event| !is_alarm(event)) {
            let text = [event.vendor_code.as_deref(), event.text.as_deref()].into_iter().flatten();
            remarks.push(format!("{}: {}", event.kind, text.collect::<Vec<_>>().join(" ")));
        }
        let charset = record.about.iter().filter(|about| about.name == "charset");
        remarks.extend(charset.map(|about| format!("charset: {}", about.value)));
        remarks.extend(record.device.iter().map(|Named { name, value }| format!("device {name}: {value}")));
        remarks.truncate(NOTES_MAX);
        remarks
    }

    fn remark(&mut self) {
        for remark in self.remarks() {
            self.note(remark);
        }
    }

    fn note(&mut self, text: String) {
        self.segment("NTE", &[(1, "1"), (2, "L"), (3, &escaped(&text))]);
    }

    /// When the record came.
    fn at(&self) -> String {
        time(self.record.received.utc_us)
    }

    /// A segment with these fields, by number and ascending.
    fn segment(&mut self, name: &str, fields: &[(usize, &str)]) {
        self.out.push_str(name);
        let mut written = 0;
        for (number, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            self.out.extend(std::iter::repeat_n('|', number - written));
            self.out.push_str(value);
            written = *number;
        }
        self.out.push('\r');
    }
}

fn is_alarm(event: &Event) -> bool {
    event.kind == "alarm"
}

/// OBX-18: the source, and its stream where it has several, in the name space of this box.
fn device(record: &Record, sender: &Sender<'_>) -> String {
    let Record { source, stream, .. } = record;
    let name = if stream.is_empty() { source.clone() } else { format!("{source}/{stream}") };
    format!("{}^{}", escaped(&name), sender.gateway)
}

/// A coded element: the code with the vendor's own beside it, or the vendor's own alone. `text` is what was originally said.
fn identifier(code: Option<&Code>, vendor: &str, text: &str) -> String {
    let vendor = escaped(vendor);
    let own = if vendor.is_empty() { String::new() } else { format!("{vendor}^^L") };
    let coded = match code {
        None if vendor.is_empty() => String::new(),
        None => format!("{vendor}^{vendor}^L"),
        Some(Code { system, code, name }) => {
            let system = if system == MDC { "MDC" } else { system };
            let (code, name) = (escaped(code), escaped(name.as_deref().unwrap_or_default()));
            let coded = format!("{code}^{name}^{}^{own}", escaped(system));
            coded.trim_end_matches('^').to_owned()
        }
    };
    if text.is_empty() {
        return coded;
    }
    // CWE.9, the original text.
    let separators = coded.matches('^').count();
    format!("{coded}{}{}", "^".repeat(8usize.saturating_sub(separators)), escaped(text))
}

fn alarm_text(alarm: &Event) -> String {
    let vendor = alarm.vendor_code.as_deref().unwrap_or_default();
    identifier(alarm.code.as_ref(), vendor, alarm.text.as_deref().unwrap_or_default())
}

/// OBX-6: in MDC where the unit has a code, else in UCUM, else in the device's own words.
fn unit(observation: &Observation) -> String {
    let vendor = escaped(observation.vendor_unit.as_deref().unwrap_or_default());
    let Some(ucum) = observation.unit.as_deref() else {
        return if vendor.is_empty() { vendor } else { format!("{vendor}^{vendor}^L") };
    };
    let metric = observation.code.as_ref().filter(|code| code.system == MDC);
    let metric = metric.and_then(|code| codes::metric(code.code.parse().ok()?));
    match codes::unit_by_ucum(ucum, metric) {
        Some(unit) => format!("{}^{}^MDC", unit.code, unit.name),
        None => format!("{0}^{0}^UCUM", escaped(ucum)),
    }
}

/// As an NM field has it (HL7 v2.6, 2.A.47): as the device wrote it where that is allowed, without an exponent else. `None` when it is no
/// number at all.
fn number(text: &str) -> Option<String> {
    let text = text.trim();
    if is_plain(text) {
        return Some(text.to_owned());
    }
    let value: f64 = text.parse().ok()?;
    value.is_finite().then(|| value.to_string())
}

/// Digits with at most one sign and one point.
fn is_plain(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    all(whole) && all(fraction) && !(whole.is_empty() && fraction.is_empty())
}

/// A moment in UTC, to the millisecond: `20260131120000.000+0000`.
fn time(utc_us: i64) -> String {
    let moment = jiff::Timestamp::from_microsecond(utc_us).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let millisecond = utc_us.rem_euclid(1_000_000) / 1000;
    format!("{}.{millisecond:03}+0000", moment.strftime("%Y%m%d%H%M%S"))
}

/// A moment of the device with its zone, in UTC. One without a zone can't be told as a moment: readers would take it for UTC.
fn zoned(at: &str) -> Option<String> {
    let moment: jiff::Timestamp = at.parse().ok()?;
    Some(time(moment.as_microsecond()))
}

/// A unit variant as it is written in JSON.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn gap_text(gap: &Gap) -> String {
    let Gap { reason, from, to, count, lasted_ms } = gap;
    let mut text = format!("gap: {}", word(reason));
    text.extend(count.map(|count| format!(", {count} missing")));
    text.extend(from.map(|from| format!(", from {from}")));
    text.extend(to.map(|to| format!(", to {to}")));
    text.extend(lasted_ms.map(|lasted| format!(", {lasted} ms")));
    text
}

/// What is written as HL7 writes it, with the usual separators, as a field with one repetition. Its escapes are escapes already.
fn as_field(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '~' => out.push_str(&escaped(c.encode_utf8(&mut [0; 4]))),
            c if c.is_ascii_control() => out.push_str(&escaped(c.encode_utf8(&mut [0; 4]))),
            c => out.push(c),
        }
    }
    out
}

/// With HL7's escapes (2.7): a separator or a line end in a value must not end its field.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' => out.push_str("\\F\\"),
            '^' => out.push_str("\\S\\"),
            '&' => out.push_str("\\T\\"),
            '~' => out.push_str("\\R\\"),
            '\\' => out.push_str("\\E\\"),
            c if c.is_ascii_control() => out.push_str(&format!("\\X{:02X}\\", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}
