//! An ASTM message as JSON: header, patients, their orders, the results, with names for the fields that LIS02-A2 names.
//!
//! Nothing is left out: a field that has no name here stands under its number in `fields`, a record of an unknown type in `others`.
//! Nothing is made up either: a value is text as the device wrote it, times are said and read beside each other, flags are the device's.
//!
//! ```text
//! { "protocol": "astm", "complete": true, "header": {...},
//!   "patients": [ { "patient-id": ..., "comments": [...],
//!                   "orders": [ { "specimen": ..., "results": [ { "code": "WBC", "value": "4.5", "unit": ..., "comments": [...] } ] } ] } ],
//!   "queries": [...], "others": [...], "comments": [...] }
//! ```
//!
//! A field with components is a list, one with repetitions an object with a list `repeated`.

use serde_json::{Map, Value, json};

use super::astm_record::{Delimiters, Record, records};

/// Longest message that is converted, in bytes: the tree of its values takes some tens of times as much.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Most records that are converted.
pub const RECORDS_MAX: usize = 10_000;
/// Parts of one field that are told apart; more stay text.
const PARTS_MAX: usize = 1_000;

/// Why a message is not converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It does not begin with a header that names its delimiters.
    #[error("it does not begin with an ASTM header (H record)")]
    NoHeader,
    /// Over [`MESSAGE_BYTES_MAX`] or [`RECORDS_MAX`].
    #[error("it is longer than 1 MiB or has more than 10 000 records")]
    TooLong,
}

/// What a field is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Text, or a list of components.
    Plain,
    /// A local time, YYYYMMDDHHMMSS or a beginning of it.
    Time,
}

/// The names of a type of record: field, name, form.
type Names = &'static [(usize, &'static str, Form)];

const HEADER: Names = &[
    (3, "control-id", Form::Plain),
    (5, "sender", Form::Plain),
    (6, "sender-address", Form::Plain),
    (10, "receiver", Form::Plain),
    (11, "comment", Form::Plain),
    (12, "processing-id", Form::Plain),
    (13, "version", Form::Plain),
    (14, "time", Form::Time),
];
const PATIENT: Names = &[
    (2, "sequence", Form::Plain),
    (3, "practice-patient-id", Form::Plain),
    (4, "laboratory-patient-id", Form::Plain),
    (5, "patient-id", Form::Plain),
    (6, "name", Form::Plain),
    (8, "birth-date", Form::Plain),
    (9, "sex", Form::Plain),
    (14, "physician", Form::Plain),
    (26, "location", Form::Plain),
];
const ORDER: Names = &[
    (2, "sequence", Form::Plain),
    (3, "specimen", Form::Plain),
    (4, "instrument-specimen", Form::Plain),
    (5, "tests", Form::Plain),
    (6, "priority", Form::Plain),
    (7, "ordered", Form::Time),
    (8, "collected", Form::Time),
    (12, "action", Form::Plain),
    (15, "specimen-received", Form::Time),
    (16, "specimen-type", Form::Plain),
    (17, "physician", Form::Plain),
    (23, "reported", Form::Time),
    (26, "report-type", Form::Plain),
];
const RESULT: Names = &[
    (2, "sequence", Form::Plain),
    (3, "test", Form::Plain),
    (4, "value", Form::Plain),
    (5, "unit", Form::Plain),
    (6, "reference-range", Form::Plain),
    (7, "flags", Form::Plain),
    (8, "nature-of-flags", Form::Plain),
    (9, "status", Form::Plain),
    (11, "operator", Form::Plain),
    (12, "started", Form::Time),
    (13, "completed", Form::Time),
    (14, "instrument", Form::Plain),
];
const COMMENT: Names =
    &[(2, "sequence", Form::Plain), (3, "source", Form::Plain), (4, "text", Form::Plain), (5, "type", Form::Plain)];
const QUERY: Names = &[
    (2, "sequence", Form::Plain),
    (3, "from", Form::Plain),
    (4, "to", Form::Plain),
    (5, "tests", Form::Plain),
    (7, "from-time", Form::Time),
    (8, "to-time", Form::Time),
    (13, "status", Form::Plain),
];
const TERMINATOR: Names = &[(2, "sequence", Form::Plain), (3, "code", Form::Plain)];

/// The message as compact JSON.
///
/// # Errors
/// [`JsonError`].
pub fn json(message: &[u8]) -> Result<Vec<u8>, JsonError> {
    value(message).map(|value| value.to_string().into_bytes())
}

/// The message as a value.
///
/// # Errors
/// [`JsonError`].
pub fn value(message: &[u8]) -> Result<Value, JsonError> {
    if message.len() > MESSAGE_BYTES_MAX || records(message).nth(RECORDS_MAX).is_some() {
        return Err(JsonError::TooLong);
    }
    let first = records(message).next().ok_or(JsonError::NoHeader)?;
    let delimiters = Delimiters::of(first).ok_or(JsonError::NoHeader)?;
    let mut tree = Tree::default();
    for line in records(message) {
        tree.take(&Record::new(line, delimiters));
    }
    Ok(tree.end())
}

/// The message while its records come.
#[derive(Default)]
struct Tree {
    whole: Map<String, Value>,
    patients: Vec<Patient>,
    queries: Vec<Value>,
    others: Vec<Value>,
    comments: Vec<Value>,
    complete: bool,
}

struct Patient {
    /// `None`: orders came without a patient.
    own: Map<String, Value>,
    comments: Vec<Value>,
    orders: Vec<Order>,
}

struct Order {
    own: Map<String, Value>,
    comments: Vec<Value>,
    results: Vec<Map<String, Value>>,
}

impl Tree {
    fn take(&mut self, record: &Record<'_>) {
        match record.kind() {
            b'H' => _ = self.whole.insert("header".to_owned(), Value::Object(fields(record, HEADER))),
            b'P' => self.patients.push(Patient::new(fields(record, PATIENT))),
            b'O' => self.patient().orders.push(Order::new(fields(record, ORDER))),
            b'R' => self.order().results.push(result(record)),
            b'C' => self.comment(Value::Object(fields(record, COMMENT))),
            b'Q' => self.queries.push(Value::Object(fields(record, QUERY))),
            b'L' => {
                self.complete = true;
                self.whole.insert("terminator".to_owned(), Value::Object(fields(record, TERMINATOR)));
            }
            kind => {
                let mut other = Map::from_iter([("type".to_owned(), json!(text(&[kind])))]);
                other.extend(fields(record, &[]));
                self.others.push(Value::Object(other));
            }
        }
    }

    fn patient(&mut self) -> &mut Patient {
        if self.patients.is_empty() {
            self.patients.push(Patient::new(Map::new()));
        }
        let last = self.patients.len() - 1;
        &mut self.patients[last]
    }

    fn order(&mut self) -> &mut Order {
        let orders = &mut self.patient().orders;
        if orders.is_empty() {
            orders.push(Order::new(Map::new()));
        }
        let last = orders.len() - 1;
        &mut orders[last]
    }

    /// A comment is about the record before it.
    fn comment(&mut self, comment: Value) {
        let Some(patient) = self.patients.last_mut() else { return self.comments.push(comment) };
        let Some(order) = patient.orders.last_mut() else { return patient.comments.push(comment) };
        let Some(result) = order.results.last_mut() else { return order.comments.push(comment) };
        let comments = result.entry("comments").or_insert_with(|| json!([]));
        if let Some(comments) = comments.as_array_mut() {
            comments.push(comment);
        }
    }

    fn end(self) -> Value {
        let mut whole = self.whole;
        whole.insert("protocol".to_owned(), json!("astm"));
        whole.insert("complete".to_owned(), json!(self.complete));
        let patients: Vec<Value> = self.patients.into_iter().map(Patient::end).collect();
        for (name, values) in
            [("patients", patients), ("queries", self.queries), ("others", self.others), ("comments", self.comments)]
        {
            insert_some(&mut whole, name, values);
        }
        Value::Object(whole)
    }
}

impl Patient {
    fn new(own: Map<String, Value>) -> Self {
        Self { own, comments: Vec::new(), orders: Vec::new() }
    }

    fn end(mut self) -> Value {
        insert_some(&mut self.own, "comments", self.comments);
        insert_some(&mut self.own, "orders", self.orders.into_iter().map(Order::end).collect());
        Value::Object(self.own)
    }
}

impl Order {
    fn new(own: Map<String, Value>) -> Self {
        Self { own, comments: Vec::new(), results: Vec::new() }
    }

    fn end(mut self) -> Value {
        insert_some(&mut self.own, "comments", self.comments);
        insert_some(&mut self.own, "results", self.results.into_iter().map(Value::Object).collect());
        Value::Object(self.own)
    }
}

fn insert_some(map: &mut Map<String, Value>, name: &str, values: Vec<Value>) {
    if !values.is_empty() {
        map.insert(name.to_owned(), Value::Array(values));
    }
}

/// A result, with its code: devices put it into the fourth component of the test (`^^^WBC`), but also into the second or fifth.
fn result(record: &Record<'_>) -> Map<String, Value> {
    let mut result = fields(record, RESULT);
    let code = record.components(record.field(3)).map(|part| record.unescaped(part)).find(|part| !part.is_empty());
    if let Some(code) = code {
        result.insert("code".to_owned(), json!(text(&code)));
    }
    result
}

/// The fields of a record that are not empty, by their names; those without one under `fields` by their numbers.
fn fields(record: &Record<'_>, names: Names) -> Map<String, Value> {
    let (mut named, mut rest) = (Map::new(), Map::new());
    for (number, field) in (1..).zip(record.fields()).skip(1).filter(|(_, field)| !field.is_empty()) {
        if record.kind() == b'H' && number == 2 {
            named.insert("delimiters".to_owned(), json!(text(field)));
            continue;
        }
        match names.iter().find(|(known, ..)| *known == number) {
            Some((_, name, Form::Plain)) => _ = named.insert((*name).to_owned(), parts(record, field)),
            Some((_, name, Form::Time)) => _ = named.insert((*name).to_owned(), time(record, field)),
            None => _ = rest.insert(number.to_string(), parts(record, field)),
        }
    }
    if !rest.is_empty() {
        named.insert("fields".to_owned(), Value::Object(rest));
    }
    named
}

fn parts(record: &Record<'_>, field: &[u8]) -> Value {
    let mut repeated: Vec<Value> =
        record.repetitions(field).take(PARTS_MAX + 1).map(|part| components(record, part)).collect();
    match repeated.len() {
        ..=1 => repeated.pop().unwrap_or_default(),
        2..=PARTS_MAX => json!({ "repeated": repeated }),
        _ => json!(text(field)),
    }
}

fn components(record: &Record<'_>, part: &[u8]) -> Value {
    let mut parts: Vec<Value> =
        record.components(part).take(PARTS_MAX + 1).map(|part| json!(text(&record.unescaped(part)))).collect();
    match parts.len() {
        ..=1 => parts.pop().unwrap_or_default(),
        2..=PARTS_MAX => Value::Array(parts),
        _ => json!(text(part)),
    }
}

/// A time as the device wrote it and, where it can be read, as RFC 3339 without a zone: devices name none.
fn time(record: &Record<'_>, field: &[u8]) -> Value {
    let said = text(&record.unescaped(field));
    match read_time(&said) {
        Some(read) => json!({ "said": said, "read": read }),
        None => json!({ "said": said }),
    }
}

fn read_time(said: &str) -> Option<String> {
    let digits = said.as_bytes();
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let two = |at: usize| said.get(at..at + 2).unwrap_or("00");
    let in_range = |at: usize, least: u32, most: u32| (least..=most).contains(&two(at).parse().unwrap_or(u32::MAX));
    let good = in_range(4, 1, 12) && in_range(6, 1, 31) && in_range(8, 0, 23) && in_range(10, 0, 59);
    let good = good && in_range(12, 0, 60);
    let date = format!("{}-{}-{}", said.get(..4)?, two(4), two(6));
    good.then(|| if digits.len() == 8 { date } else { format!("{}T{}:{}:{}", date, two(8), two(10), two(12)) })
}

/// Text of a device that names no charset: UTF-8 when it is that, else ISO 8859-1.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: &str = "H|\\^&|7||SIM-HEM^1.0|||||LIS||P|1|20261122101500\rP|1|PAT-1|||Doe^Jane||19800101|F\r\
        O|1|S26-1|^12^3|^^^WBC^1\\^^^RBC^1|R|20261122093000\rR|1|^^^WBC^1|11.8|10*3/uL|4.0 to 10.0|H||F||OP01||20261122101455|X\r\
        C|1|I|Left&S&Shift?|I\rR|2|^MTB-RIF^^|NEG\rM|1|histogram|0102\rL|1|N\r";

    #[test]
    fn a_result_has_its_code_value_unit_flags_status_and_times() {
        let value = value(MESSAGE.as_bytes()).unwrap();
        let order = &value["patients"][0]["orders"][0];
        let result = &order["results"][0];
        assert_eq!(
            (&result["code"], &result["value"], &result["unit"], &result["flags"], &result["status"]),
            (&json!("WBC"), &json!("11.8"), &json!("10*3/uL"), &json!("H"), &json!("F"))
        );
        assert_eq!(result["completed"], json!({ "said": "20261122101455", "read": "2026-11-22T10:14:55" }));
        assert_eq!(result["test"], json!(["", "", "", "WBC", "1"]));
        assert_eq!(result["comments"][0]["text"], json!("Left^Shift?"));
        assert_eq!(order["results"][1]["code"], json!("MTB-RIF"));
        assert_eq!(order["tests"]["repeated"][1][3], json!("RBC"));
        assert_eq!(order["specimen"], json!("S26-1"));
        assert_eq!(value["header"]["sender"], json!(["SIM-HEM", "1.0"]));
        assert_eq!((&value["header"]["delimiters"], &value["complete"]), (&json!("\\^&"), &json!(true)));
        assert_eq!(value["patients"][0]["name"], json!(["Doe", "Jane"]));
    }

    #[test]
    fn what_has_no_name_is_kept_under_its_number_and_unknown_records_beside_the_others() {
        let value = value(MESSAGE.as_bytes()).unwrap();
        assert_eq!(value["others"][0], json!({ "type": "M", "fields": { "2": "1", "3": "histogram", "4": "0102" } }));
        let odd = super::value(b"H|\\^&|||X|||||||||||extra\rR|1|^^^K|<0.1\rC|1|I|about the result\r").unwrap();
        assert_eq!(odd["header"]["fields"]["16"], json!("extra"));
        assert_eq!(odd["complete"], json!(false));
        assert_eq!(odd["patients"][0]["orders"][0]["results"][0]["comments"][0]["text"], json!("about the result"));
    }

    #[test]
    fn other_delimiters_other_charsets_and_strange_times_are_read() {
        let value =
            value(b"H|@^\\|GX||GeneXpert\rP|1|||M\xfcller@Muller\rR|1|^^^A\\F\\B|1|||||||2026||99999999\rL|1\r")
                .unwrap();
        assert_eq!(value["patients"][0]["patient-id"]["repeated"], json!(["M\u{fc}ller", "Muller"]));
        let result = &value["patients"][0]["orders"][0]["results"][0];
        assert_eq!(result["code"], json!("A|B"));
        assert_eq!((&result["operator"], &result["completed"]), (&json!("2026"), &json!({ "said": "99999999" })));
        assert_eq!(read_time("20261122").as_deref(), Some("2026-11-22"));
        assert_eq!(read_time("202611220930").as_deref(), Some("2026-11-22T09:30:00"));
    }

    #[test]
    fn what_is_no_message_is_not_converted() {
        assert_eq!(json(b"P|1\r"), Err(JsonError::NoHeader));
        assert_eq!(json(b""), Err(JsonError::NoHeader));
        assert_eq!(json(&vec![b'H'; MESSAGE_BYTES_MAX + 1]), Err(JsonError::TooLong));
        assert_eq!(json(&b"x\r".repeat(RECORDS_MAX + 1)), Err(JsonError::TooLong));
    }

    proptest! {
        #[test]
        fn any_records_become_json_that_reads_back(records in prop::collection::vec("[HPORCQMSLhx]([ -~]|\u{e9}){0,60}", 0..20)) {
            let message = format!("H|\\^&\r{}", records.join("\r"));
            let bytes = json(message.as_bytes()).unwrap();
            prop_assert!(serde_json::from_slice::<Value>(&bytes).unwrap().is_object());
        }
    }
}
