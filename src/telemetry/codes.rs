//! Codes and units by name: ISO/IEEE 11073-10101 (MDC) and UCUM.
//!
//! What a device's value is called elsewhere in the house. The terms that the usual devices need are built in; a site adds its own with
//! a table of its own. A code is looked up, never guessed: what has no row keeps the vendor's code alone. The same physiology measured
//! in two ways has two codes here and stays apart.

use std::borrow::Cow;

use super::mdc_table::{METRICS, UNITS};
use super::record::Code;

/// The system of MDC codes in a [`Code`].
pub const MDC: &str = "urn:iso:std:iso:11073:10101";

/// Names that devices and older tables write for a term that is listed under another (the Rosetta's harmonised terms).
const SYNONYMS: [(&str, &str); 3] = [
    ("MDC_PRESS_AWAY_INSP_PEAK", "MDC_PRESS_AWAY_INSP_MAX"),
    ("MDC_ECG_CARD_BEAT_RATE", "MDC_ECG_HEART_RATE"),
    ("MDC_PLETH", "MDC_PULS_OXIM_PLETH"),
];

/// UCUM strings that mean a unit of the table in other words; annotations in braces are left out before they are compared.
const SAME_UCUM: [(&str, &str); 10] = [
    ("1/min", "/min"),
    ("l", "L"),
    ("ml", "mL"),
    ("l/min", "L/min"),
    ("ml/h", "mL/h"),
    ("ml/min", "mL/min"),
    ("cm[H2O]/(L/s)", "cm[H2O].s/L"),
    ("10*-3.bar", "mbar"),
    ("", "1"),
    ("g%", "g/dL"),
];

/// A term of the nomenclature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// The 32-bit code: partition and term.
    pub code: u32,
    /// The reference id.
    pub name: &'static str,
    /// The MDC code of its usual unit; 0 for an event, which has none. A record carries the unit that the device gave.
    pub unit: u32,
    /// For people.
    pub display: &'static str,
}

/// A unit of the nomenclature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unit {
    /// The 32-bit code, partition 4.
    pub code: u32,
    /// The reference id.
    pub name: &'static str,
    /// The same unit in UCUM.
    pub ucum: &'static str,
}

impl From<&Metric> for Code {
    fn from(metric: &Metric) -> Self {
        mdc(metric.code, Some(metric.name.into()))
    }
}

/// The code of a reference id, as a record carries it: `by_name("MDC_PULS_OXIM_SAT_O2")`.
pub fn by_name(name: &str) -> Option<Code> {
    metric_by_name(name).map(Code::from)
}

/// The term of a reference id, or of one of its synonyms.
pub fn metric_by_name(name: &str) -> Option<&'static Metric> {
    let name = SYNONYMS.iter().find(|(synonym, _)| *synonym == name).map_or(name, |(_, listed)| listed);
    METRICS.iter().find(|metric| metric.name == name)
}

/// The term of a 32-bit code.
pub fn metric(code: u32) -> Option<&'static Metric> {
    let index = METRICS.binary_search_by_key(&code, |metric| metric.code).ok()?;
    METRICS.get(index)
}

/// An MDC code, whether it is in the table or not.
pub fn mdc(code: u32, name: Option<Cow<'static, str>>) -> Code {
    Code { system: MDC.into(), code: code.to_string().into(), name }
}

/// The unit of a 32-bit code.
pub fn unit(code: u32) -> Option<&'static Unit> {
    let index = UNITS.binary_search_by_key(&code, |unit| unit.code).ok()?;
    UNITS.get(index)
}

/// The unit of a reference id: `MDC_DIM_PERCENT`. The `X_` of the nomenclature's first edition is read over (`MDC_DIM_X_L`).
pub fn unit_by_name(name: &str) -> Option<&'static Unit> {
    let known = |name: &str| UNITS.iter().find(|unit| unit.name == name);
    known(name).or_else(|| known(&format!("MDC_DIM_{}", name.strip_prefix("MDC_DIM_X_")?)))
}

/// The unit of a UCUM string. Where several have the same string (beats and breaths are both `/min`), that of `metric` counts, and else
/// the plainest.
pub fn unit_by_ucum(ucum: &str, metric: Option<&Metric>) -> Option<&'static Unit> {
    let plain = without_annotations(ucum);
    let ucum = SAME_UCUM.iter().find(|(same, _)| *same == plain).map_or(plain.as_str(), |(_, listed)| listed);
    let usual = metric.and_then(|metric| unit(metric.unit)).filter(|unit| unit.ucum == ucum);
    usual.or_else(|| UNITS.iter().find(|unit| unit.ucum == ucum))
}

/// UCUM, section 2: what stands in braces is for people and no part of the unit.
fn without_annotations(ucum: &str) -> String {
    let mut rest = ucum.trim();
    let mut plain = String::with_capacity(rest.len());
    while let Some((before, after)) = rest.split_once('{') {
        plain.push_str(before);
        rest = after.split_once('}').map_or("", |(_, behind)| behind);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_are_in_order_and_name_nothing_twice() {
        assert!(METRICS.windows(2).all(|pair| pair[0].code < pair[1].code));
        assert!(UNITS.windows(2).all(|pair| pair[0].code < pair[1].code));
        for metric in METRICS {
            assert_eq!(metric_by_name(metric.name), Some(metric));
            assert!(metric.unit == 0 || unit(metric.unit).is_some(), "{}", metric.name);
        }
        assert!(UNITS.iter().all(|unit| unit_by_name(unit.name) == Some(unit)));
        assert!(METRICS.len() >= 150);
        assert!(SYNONYMS.iter().all(|(synonym, listed)| *synonym != *listed && metric_by_name(listed).is_some()));
    }

    #[test]
    fn terms_are_found_as_devices_and_profiles_name_them() {
        let saturation = by_name("MDC_PULS_OXIM_SAT_O2").unwrap();
        assert_eq!((saturation.system.as_ref(), saturation.code.as_ref()), (MDC, "150456"));
        assert_eq!(saturation.name.as_deref(), Some("MDC_PULS_OXIM_SAT_O2"));
        assert_eq!(metric(147_842).unwrap().name, "MDC_ECG_HEART_RATE");
        assert_eq!(metric_by_name("MDC_PRESS_AWAY_INSP_PEAK").unwrap().code, 151_817);
        assert_eq!(by_name("SPO2"), None);
        assert_eq!(metric(1), None);
    }

    #[test]
    fn units_are_found_both_ways_and_rates_keep_what_they_count() {
        let pairs = [(262_688, "%"), (266_016, "mm[Hg]"), (268_192, "Cel"), (263_762, "mL"), (265_266, "mL/h")];
        for (code, ucum) in pairs {
            assert_eq!((unit(code).unwrap().ucum, unit_by_ucum(ucum, None).unwrap().code), (ucum, code));
        }
        let name = |ucum, metric| unit_by_ucum(ucum, metric_by_name(metric)).unwrap().name;
        assert_eq!(name("/min", "MDC_ECG_HEART_RATE"), "MDC_DIM_BEAT_PER_MIN");
        assert_eq!(name("{breath}/min", "MDC_RESP_RATE"), "MDC_DIM_RESP_PER_MIN");
        assert_eq!(name("1/min", "MDC_TEMP"), "MDC_DIM_PER_MIN");
        assert_eq!(unit_by_name("MDC_DIM_X_L_PER_MIN").unwrap().code, 265_216);
        assert_eq!((unit_by_ucum("furlong", None), unit_by_ucum("{", None).map(|unit| unit.ucum)), (None, Some("1")));
    }
}
