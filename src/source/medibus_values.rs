//! What the codes of MEDIBUS values stand for: measured data of both pages, and settings, each with its unit (Draeger, MEDIBUS annexes of the Evita,
//! Primus and Fabius families).
//!
//! Facts only, each written by hand. A device may know codes that are not here: they pass under the vendor's code alone. An MDC term
//! stands only where it means the same; what was set is no measurement and has none. Units are not sent: they are those of the annexes.

use crate::telemetry::codes;
use crate::telemetry::record::Code;
use crate::wire::medibus::code;

/// One code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// The code within its page.
    pub code: u8,
    /// For people.
    pub label: &'static str,
    unit: &'static str,
    mdc: &'static str,
}

impl Row {
    /// In UCUM; `None` where the annexes do not agree.
    pub fn unit(&self) -> Option<&'static str> {
        Some(self.unit).filter(|unit| !unit.is_empty())
    }

    /// The MDC term, where one means the same.
    pub fn mdc(&self) -> Option<Code> {
        codes::by_name(self.mdc)
    }
}

const fn row(code: u8, label: &'static str, unit: &'static str, mdc: &'static str) -> Row {
    Row { code, label, unit, mdc }
}

/// What `code` of `page` is: of the measured data, the limits of the same page, or the settings.
pub fn find(page: u8, code: u8) -> Option<&'static Row> {
    let table = match page {
        code::MEASURED_1 | code::LOW_1 | code::HIGH_1 => MEASURED_1,
        code::MEASURED_2 | code::LOW_2 | code::HIGH_2 => MEASURED_2,
        code::SETTINGS => SETTINGS,
        _ => return None,
    };
    let index = table.binary_search_by_key(&code, |row| row.code).ok()?;
    table.get(index)
}

const MEASURED_1: &[Row] = &[
    row(0x05, "Breathing pressure", "mbar", "MDC_PRESS_AWAY"),
    row(0x06, "Compliance", "mL/mbar", "MDC_COMPL_LUNG"),
    row(0x07, "Compliance", "L/bar", "MDC_COMPL_LUNG"),
    row(0x08, "Airway resistance", "mbar/(L/s)", "MDC_RES_AWAY"),
    row(0x09, "CO2 production", "mL/min", "MDC_FLOW_CO2_PROD_RESP"),
    row(0x0b, "Airway resistance", "mbar/(L/s)", "MDC_RES_AWAY"),
    row(0x2a, "Goodness of fit of the lung mechanics, r2", "1", ""),
    row(0x50, "Halothane, inspired", "kPa", ""),
    row(0x51, "Halothane, expired", "kPa", ""),
    row(0x52, "Enflurane, inspired", "kPa", ""),
    row(0x53, "Enflurane, expired", "kPa", ""),
    row(0x54, "Isoflurane, inspired", "kPa", ""),
    row(0x55, "Isoflurane, expired", "kPa", ""),
    row(0x56, "Desflurane, inspired", "kPa", ""),
    row(0x57, "Desflurane, expired", "kPa", ""),
    row(0x58, "Sevoflurane, inspired", "kPa", ""),
    row(0x59, "Sevoflurane, expired", "kPa", ""),
    row(0x5a, "Anaesthetic agent, inspired", "kPa", ""),
    row(0x5b, "Anaesthetic agent, expired", "kPa", ""),
    row(0x5c, "Second anaesthetic agent, inspired", "kPa", ""),
    row(0x5d, "Second anaesthetic agent, expired", "kPa", ""),
    row(0x64, "O2 uptake", "10.mL/min", ""),
    row(0x6b, "Ambient pressure", "mbar", ""),
    row(0x71, "Airway pressure, least", "mbar", "MDC_PRESS_AWAY_MIN"),
    row(0x72, "Occlusion pressure", "mbar", ""),
    row(0x73, "Breathing pressure, mean", "mbar", ""),
    row(0x74, "Plateau pressure", "mbar", "MDC_PRESS_RESP_PLAT"),
    row(0x78, "Positive end-expiratory pressure", "mbar", "MDC_PRESS_AWAY_END_EXP_POS"),
    row(0x79, "Positive end-expiratory pressure, intrinsic", "mbar", "MDC_PRESS_AWAY_END_EXP_POS_INTRINSIC"),
    row(0x7a, "Minute volume, spontaneous", "L/min", ""),
    row(0x7b, "Respiration rate, mandatory", "/min", ""),
    row(0x7d, "Breathing pressure, peak", "mbar", "MDC_PRESS_AWAY_INSP_MAX"),
    row(0x7e, "Tidal volume, mandatory", "L", ""),
    row(0x7f, "Tidal volume, spontaneous", "L", ""),
    row(0x81, "Trapped volume", "mL", ""),
    row(0x82, "Tidal volume", "L", "MDC_VOL_AWAY_TIDAL"),
    row(0x83, "Tidal volume, expired, mandatory", "mL", ""),
    row(0x84, "Tidal volume, expired, spontaneous", "mL", ""),
    row(0x85, "Tidal volume, inspired, mandatory", "mL", ""),
    row(0x88, "Tidal volume", "mL", "MDC_VOL_AWAY_TIDAL"),
    row(0x89, "Dead space", "mL", ""),
    row(0x8a, "Dead space as a part of the tidal volume", "%", "MDC_RATIO_AWAY_DEADSP_TIDAL"),
    row(0x8b, "Tidal volume of supported spontaneous breaths, inspired", "", ""),
    row(0xac, "Minimum alveolar concentration, inspired", "1", ""),
    row(0xad, "Minimum alveolar concentration, expired", "1", ""),
    row(0xae, "Desflurane, inspired", "%", "MDC_CONC_AWAY_DESFL_INSP"),
    row(0xaf, "Desflurane, expired", "%", ""),
    row(0xb0, "Sevoflurane, inspired", "%", "MDC_CONC_AWAY_SEVOFL_INSP"),
    row(0xb1, "Sevoflurane, expired", "%", ""),
    row(0xb2, "Leakage", "mL/min", ""),
    row(0xb3, "Leakage, relative", "%", ""),
    row(0xb4, "Respiration rate, by pressure", "/min", "MDC_AWAY_RESP_RATE"),
    row(0xb5, "Respiration rate, spontaneous", "/min", ""),
    row(0xb6, "Spontaneous part of the minute volume", "%", ""),
    row(0xb7, "Minute volume, spontaneous", "L/min", ""),
    row(0xb8, "Minute volume", "L/min", "MDC_VOL_MINUTE_AWAY"),
    row(0xb9, "Minute volume", "L/min", "MDC_VOL_MINUTE_AWAY"),
    row(0xbd, "Apnoea time", "s", "MDC_TIME_PD_APNEA"),
    row(0xc1, "Airway temperature", "Cel", "MDC_TEMP_AWAY"),
    row(0xc4, "O2, inspired less expired", "%", ""),
    row(0xc9, "Rapid shallow breathing index", "/(min.L)", ""),
    row(0xd5, "Respiration rate, by CO2", "/min", "MDC_CO2_RESP_RATE"),
    row(0xd6, "Respiration rate", "/min", "MDC_RESP_RATE"),
    row(0xd7, "Respiration rate, by volume or flow", "/min", "MDC_AWAY_RESP_RATE"),
    row(0xd9, "Respiration rate, derived", "/min", "MDC_RESP_RATE"),
    row(0xda, "CO2, inspired", "%", "MDC_CONC_AWAY_CO2_INSP"),
    row(0xdb, "CO2, end-tidal", "%", "MDC_CONC_AWAY_CO2_ET"),
    row(0xdd, "N2O flow", "mL/min", ""),
    row(0xde, "Air flow", "mL/min", ""),
    row(0xdf, "Pulse rate, derived", "/min", "MDC_PULS_RATE"),
    row(0xe1, "Pulse rate, oximetry", "/min", "MDC_PULS_OXIM_PULS_RATE"),
    row(0xe2, "O2 flow", "mL/min", ""),
    row(0xe3, "CO2, end-tidal", "kPa", "MDC_AWAY_CO2_ET"),
    row(0xe5, "CO2, inspired", "mm[Hg]", "MDC_AWAY_CO2_INSP"),
    row(0xe6, "CO2, end-tidal", "mm[Hg]", "MDC_AWAY_CO2_ET"),
    row(0xe7, "Ratio of inspiration to expiration, inspiration's part", "1", ""),
    row(0xe8, "Ratio of inspiration to expiration, expiration's part", "1", ""),
    row(0xe9, "Anaesthetic agent, inspired", "%", "MDC_CONC_AWAY_AGENT_INSP"),
    row(0xea, "Anaesthetic agent, expired", "%", ""),
    row(0xeb, "Oxygen saturation, oximetry", "%", "MDC_PULS_OXIM_SAT_O2"),
    row(0xed, "Second anaesthetic agent, inspired", "%", ""),
    row(0xee, "Second anaesthetic agent, expired", "%", ""),
    row(0xef, "O2, expired", "%", ""),
    row(0xf0, "O2, inspired", "%", "MDC_CONC_AWAY_O2_INSP"),
    row(0xf4, "Halothane, inspired", "%", "MDC_CONC_AWAY_HALOTH_INSP"),
    row(0xf5, "Halothane, expired", "%", ""),
    row(0xf6, "Enflurane, inspired", "%", "MDC_CONC_AWAY_ENFL_INSP"),
    row(0xf7, "Enflurane, expired", "%", ""),
    row(0xf8, "Isoflurane, inspired", "%", "MDC_CONC_AWAY_ISOFL_INSP"),
    row(0xf9, "Isoflurane, expired", "%", ""),
    row(0xfb, "N2O, inspired", "%", "MDC_CONC_AWAY_N2O_INSP"),
    row(0xfc, "N2O, expired", "%", ""),
    row(0xff, "CO2, inspired", "kPa", "MDC_AWAY_CO2_INSP"),
];

const MEASURED_2: &[Row] = &[
    row(0x00, "Tidal volume, spontaneous", "mL", ""),
    row(0x06, "Elastance", "mbar/L", ""),
    row(0x07, "Time constant of the lung", "s", ""),
    row(0x21, "Tidal volume, expired", "mL", ""),
    row(0x22, "Tidal volume, inspired", "mL", ""),
    row(0x23, "End-inspiratory pressure", "mbar", ""),
    row(0x7b, "Pressure variability", "%", ""),
    row(0x7d, "Time at low pressure, greatest", "s", ""),
];

const SETTINGS: &[Row] = &[
    row(0x01, "O2, inspired", "%", ""),
    row(0x02, "Inspiratory flow, greatest", "L/min", ""),
    row(0x04, "Tidal volume, inspired", "L", ""),
    row(0x05, "Inspiratory time", "s", ""),
    row(0x07, "Ratio of inspiration to expiration, inspiration's part", "1", ""),
    row(0x08, "Ratio of inspiration to expiration, expiration's part", "1", ""),
    row(0x09, "Rate of mandatory breaths, intermittent (IMV)", "/min", ""),
    row(0x0a, "Rate of mandatory breaths (IPPV)", "/min", ""),
    row(0x0b, "Positive end-expiratory pressure", "mbar", ""),
    row(0x0c, "Positive end-expiratory pressure, intermittent", "mbar", ""),
    row(0x0d, "Low pressure (BIPAP)", "mbar", ""),
    row(0x0e, "High pressure (BIPAP)", "mbar", ""),
    row(0x0f, "Time at low pressure (BIPAP)", "s", ""),
    row(0x10, "Time at high pressure (BIPAP)", "s", ""),
    row(0x11, "Apnoea time", "s", ""),
    row(0x12, "Pressure support", "mbar", ""),
    row(0x13, "Airway pressure in inspiration, greatest", "mbar", ""),
    row(0x15, "Trigger pressure", "mbar", ""),
    row(0x16, "Rate that counts as tachypnoea", "/min", ""),
    row(0x17, "Time until tachypnoea is told", "s", ""),
    row(0x27, "Inspiratory pause as a part of the inspiratory time", "%", ""),
    row(0x29, "Flow trigger", "L/min", ""),
    row(0x2e, "Pressure rise time", "s", ""),
    row(0x2f, "Fresh gas flow", "mL/min", ""),
    row(0x40, "Tidal volume", "mL", ""),
    row(0x42, "Rate of breaths, least", "/min", ""),
    row(0x45, "Inspiratory pressure", "mbar", ""),
    row(0x4a, "Age of the patient", "a", ""),
    row(0x4b, "Weight of the patient", "kg", ""),
    row(0x4c, "Inspiratory flow", "L/s", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_in_the_order_of_their_codes_and_each_term_and_unit_is_known() {
        for table in [MEASURED_1, MEASURED_2, SETTINGS] {
            assert!(table.windows(2).all(|pair| pair[0].code < pair[1].code));
            for row in table {
                assert!(row.mdc.is_empty() || row.mdc().is_some(), "{}", row.mdc);
                assert!(!row.unit.contains(' '), "{}", row.label);
            }
        }
        assert!(SETTINGS.iter().all(|row| row.mdc.is_empty()), "a setting is no measurement");
    }

    #[test]
    fn the_same_code_is_another_thing_on_another_page_and_the_limits_are_of_what_is_measured() {
        let label = |page, code| find(page, code).map(|row| row.label);
        assert_eq!(label(code::MEASURED_1, 0x7d), Some("Breathing pressure, peak"));
        assert_eq!(label(code::HIGH_1, 0x7d), label(code::MEASURED_1, 0x7d));
        assert_eq!(label(code::MEASURED_2, 0x7d), Some("Time at low pressure, greatest"));
        assert_eq!(
            (label(code::SETTINGS, 0x0b), label(code::MEASURED_1, 0x3c)),
            (Some("Positive end-expiratory pressure"), None)
        );
        let peep = find(code::MEASURED_1, 0x78).unwrap();
        assert_eq!((peep.unit(), peep.mdc().unwrap().code.as_ref()), (Some("mbar"), "151804"));
    }
}
