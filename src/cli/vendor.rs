//! Messages of bedside devices in the shapes that one meets: IHE PCD-01 (ORU^R01) from a monitor gateway, a central, a
//! spot-check device and an infusion pump (IHE PCD TF-2, 3.1; codes of ISO/IEEE 11073-10101).
//!
//! They differ as the real ones do: version, charset, separators in use, what they ask of the answer (MSH-15/16), how they
//! number their messages and write their times. A pure function: device, signs and time in, bytes out.

use super::patients::{Patient, Vitals, patient};

/// The shapes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A gateway of bedside monitors: 2.6, UTF-8, accept acknowledgement, numbers from 1, time with milliseconds.
    Bedside,
    /// A central station's interface: 2.3.1-like PV1, Latin-1, accept acknowledgement, long numbers.
    Central,
    /// A spot-check monitor that is carried around: asks for an application acknowledgement.
    SpotCheck,
    /// An infusion pump that does not know its patient: ASCII.
    Pump,
}

impl Shape {
    /// All of them, in the order in which beds get them.
    pub const ALL: [Self; 4] = [Self::Bedside, Self::Central, Self::SpotCheck, Self::Pump];
}

/// A simulated device at a bed.
#[derive(Clone, Debug)]
pub struct Device {
    shape: Shape,
    bed: usize,
    /// EUI-64 of the device, of a block that is reserved for local use.
    eui: String,
    patient: Patient,
    sent: u64,
}

/// One observation: MDC code and name, its place in the device's tree, value, unit.
struct Observation {
    metric: &'static str,
    place: &'static str,
    value: String,
    unit: &'static str,
}

impl Device {
    /// The device at a bed; its shape follows from the bed.
    pub fn at(bed: usize) -> Self {
        let [first, second, third, fourth] = Shape::ALL;
        let shape = match bed % 4 {
            0 => first,
            1 => second,
            2 => third,
            _ => fourth,
        };
        Self { shape, bed, eui: format!("0200DEFFFE{bed:06X}"), patient: patient(bed), sent: 0 }
    }

    /// The next message with its control id (MSH-10), in the device's own charset.
    pub fn message(&mut self, signs: &Vitals, now: jiff::Timestamp) -> (String, Vec<u8>) {
        self.sent += 1;
        let control_id = match self.shape {
            Shape::Bedside | Shape::Pump => self.sent.to_string(),
            Shape::Central => format!("{}{:04}{:08}", now.strftime("%Y%m%d"), self.bed, self.sent),
            Shape::SpotCheck => format!("SC{:03}-{}", self.bed, self.sent),
        };
        let mut text = self.header(&control_id, now);
        text.push_str(&self.who());
        text.push_str(&self.order(now));
        for (index, observation) in self.observations(signs).iter().enumerate() {
            text.push_str(&self.obx(index + 1, observation, now));
        }
        let body = if self.shape == Shape::Central { latin1(&text) } else { text.into_bytes() };
        (control_id, body)
    }

    fn header(&self, control_id: &str, now: jiff::Timestamp) -> String {
        let (eui, time) = (&self.eui, self.time(now));
        let profile = "IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO";
        match self.shape {
            Shape::Bedside => format!(
                "MSH|^~\\&|DEMO_EGATEWAY^{eui}^EUI-64|DEMO|||{time}||ORU^R01^ORU_R01|{control_id}|P|2.6|||AL|NE||UNICODE UTF-8|||{profile}\r"
            ),
            Shape::Central => format!(
                "MSH|^~\\&|DEMO_CENTRAL^{eui}^EUI-64|ICU^1^L|EMR|HOSPITAL|{time}||ORU^R01^ORU_R01|{control_id}|P|2.6|{}||AL|NE||8859/1|EN^English^ISO659||{profile}\r",
                self.sent
            ),
            Shape::SpotCheck => format!(
                "MSH|^~\\&|DEMO_SPOT^{eui}^EUI-64|WARD^3^L|||{time}||ORU^R01^ORU_R01|{control_id}|P|2.6|||NE|AL||UNICODE UTF-8|||{profile}\r"
            ),
            Shape::Pump => format!(
                "MSH|^~\\&|DEMO_PUMP^{eui}^EUI-64|||EMR|{time}||ORU^R01^ORU_R01|{control_id}|P|2.6|||AL|NE||ASCII|||{profile}\r"
            ),
        }
    }

    fn who(&self) -> String {
        let Patient { family, given, born, sex } = self.patient;
        let (bed, id) = (self.bed + 1, 900_000 + self.bed);
        match self.shape {
            Shape::Pump => "PID|||||^^^^^^U\r".to_owned(),
            Shape::Central => {
                format!("PID|||{id}^^^DEMO^MR||{family}^{given}^^^^^L||{born}|{sex}\rPV1||I|ICU^1^{bed}^DEMO\r")
            }
            Shape::Bedside | Shape::SpotCheck => {
                format!("PID|||{id}^^^DEMO^PI||{family}^{given}^^^^^L||{born}000000|{sex}\rPV1||I|^^ICU&0&0&{bed}\r")
            }
        }
    }

    fn order(&self, now: jiff::Timestamp) -> String {
        let (eui, sent, time) = (&self.eui, self.sent, self.time(now));
        let service = match self.shape {
            Shape::Pump => "69985^MDC_DEV_PUMP_INFUS_MDS^MDC",
            _ => "69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC",
        };
        format!("OBR|1|{sent}^DEMO^{eui}^EUI-64|{sent}^DEMO^{eui}^EUI-64|{service}|||{time}\r")
    }

    fn observations(&self, signs: &Vitals) -> Vec<Observation> {
        let observation = |metric, place, value: String, unit| Observation { metric, place, value, unit };
        let (beats, percent) = ("264864^MDC_DIM_BEAT_PER_MIN^MDC", "262688^MDC_DIM_PERCENT^MDC");
        let (pressure, breaths) = ("266016^MDC_DIM_MMHG^MDC", "264928^MDC_DIM_RESP_PER_MIN^MDC");
        let temperature = format!("{}.{}", signs.temperature_tenths / 10, signs.temperature_tenths % 10);
        if self.shape == Shape::Pump {
            let rate = format!("{}.{}", 2 + self.bed % 9, signs.heart % 10);
            return vec![
                observation("69985^MDC_DEV_PUMP_INFUS_MDS^MDC", "1.0.0.0", String::new(), ""),
                observation("69986^MDC_DEV_PUMP_INFUS_VMD^MDC", "1.1.0.0", String::new(), ""),
                observation("157784^MDC_FLOW_FLUID_PUMP^MDC", "1.1.2.1", rate, "265266^MDC_DIM_MILLI_L_PER_HR^MDC"),
            ];
        }
        let mut all = vec![
            observation("69965^MDC_DEV_MON_PHYSIO_MULTI_PARAM_MDS^MDC", "1.0.0.0", String::new(), ""),
            observation("150456^MDC_PULS_OXIM_SAT_O2^MDC", "1.2.1.150456", signs.oxygen.to_string(), percent),
            observation("149530^MDC_PULS_OXIM_PULS_RATE^MDC", "1.2.1.149530", signs.heart.to_string(), beats),
            observation("150301^MDC_PRESS_CUFF_SYS^MDC", "1.3.1.150301", signs.systolic.to_string(), pressure),
            observation("150302^MDC_PRESS_CUFF_DIA^MDC", "1.3.1.150302", signs.diastolic.to_string(), pressure),
            observation("150303^MDC_PRESS_CUFF_MEAN^MDC", "1.3.1.150303", signs.mean_pressure().to_string(), pressure),
            observation("150344^MDC_TEMP^MDC", "1.4.1.150344", temperature, "268192^MDC_DIM_DEGC^MDC"),
        ];
        if self.shape != Shape::SpotCheck {
            let heart = signs.heart.to_string();
            all.insert(1, observation("147842^MDC_ECG_HEART_RATE^MDC", "1.1.1.147842", heart, beats));
            all.insert(2, observation("151562^MDC_RESP_RATE^MDC", "1.1.2.151562", signs.breaths.to_string(), breaths));
        }
        all
    }

    fn obx(&self, number: usize, observation: &Observation, now: jiff::Timestamp) -> String {
        let Observation { metric, place, value, unit } = observation;
        let (eui, time) = (&self.eui, self.time(now));
        match value.is_empty() {
            true => format!("OBX|{number}||{metric}|{place}|||||||X|||||||{eui}^^{eui}^EUI-64\r"),
            false => format!("OBX|{number}|NM|{metric}|{place}|{value}|{unit}|||||R|||{time}||||{eui}^^{eui}^EUI-64\r"),
        }
    }

    /// MSH-7 and friends, as each writes it.
    fn time(&self, now: jiff::Timestamp) -> String {
        let format = match self.shape {
            Shape::Bedside => "%Y%m%d%H%M%S.%3f+0000",
            Shape::Central => "%Y%m%d%H%M%S",
            Shape::SpotCheck | Shape::Pump => "%Y%m%d%H%M%S+0000",
        };
        now.strftime(format).to_string()
    }
}

/// The text in ISO 8859-1; a letter that is not in it becomes a question mark.
fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::patients::Body;
    use crate::wire::hl7::Header;

    fn message(bed: usize) -> (String, Vec<u8>) {
        let now = "2026-11-22T14:00:00.25Z".parse().unwrap();
        Device::at(bed).message(&Body::new(7).signs(), now)
    }

    #[test]
    fn another_parser_reads_what_the_devices_say() {
        for bed in [0, 2, 3] {
            let (control_id, body) = message(bed);
            let text = String::from_utf8(body).unwrap();
            let read = hl7_parser::Message::parse(&text).unwrap();
            assert_eq!(read.raw_value().len(), text.trim_end().len(), "read to the end");
            assert_eq!(read.query("MSH.10").unwrap().raw_value(), control_id);
            assert_eq!(read.query("MSH.9.1").unwrap().raw_value(), "ORU");
            let values: Vec<f64> = read
                .segments()
                .filter(|segment| segment.name == "OBX")
                .filter_map(|segment| segment.field(5)?.raw_value().parse().ok())
                .collect();
            assert!(!values.is_empty() && values.iter().all(|value| *value > 0.0), "{values:?}");
        }
    }

    #[test]
    fn each_shape_asks_for_its_own_kind_of_answer_in_its_own_charset() {
        let asked: Vec<String> = (0..4)
            .map(|bed| {
                let (_, body) = message(bed);
                let header = Header::read(&body).unwrap();
                [15, 16, 18].map(|number| String::from_utf8_lossy(header.field(number)).into_owned()).join(" ")
            })
            .collect();
        assert_eq!(asked, ["AL NE UNICODE UTF-8", "AL NE 8859/1", "NE AL UNICODE UTF-8", "AL NE ASCII"]);
    }

    #[test]
    fn the_central_writes_latin_1() {
        let (_, body) = message(1);
        assert!(body.windows(6).any(|window| window == b"Bj\xf6rn^"), "Björn");
        assert!(String::from_utf8(body).is_err());
    }

    #[test]
    fn a_monitors_message_is_about_as_long_as_a_real_one() {
        let lengths = [0, 1, 2].map(|bed| message(bed).1.len());
        assert!(lengths.iter().all(|length| (1_200..2_000).contains(length)), "{lengths:?}");
    }
}
