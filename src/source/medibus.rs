//! MEDIBUS of Draeger's ventilators, anaesthesia machines and incubators: `[source.<name>.medibus]`.
//!
//! The device is asked for its measured values, settings, limits, alarms, texts and clock, and only asked. Framing and data are in
//! [`crate::wire::medibus`] and [`crate::wire::medibus_data`], the dialogue in `medibus_session`, what becomes of the answers in `medibus_chart`,
//! the codes in `medibus_values` and `medibus_words`.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::intake::Intake;
use super::medibus_chart::Chart;
use super::medibus_session::{self, End, Settings};
use super::plug::{Line, Plug, PlugConfig};
use super::readings::TelemetryLog;
use super::{Source, SourceError, Stop};
use crate::system::seldom::Seldom;
use crate::system::serial::{Flow, Parity, SerialConfig};
use crate::system::sockets::Sockets;
use crate::system::tls::ServerTls;
use crate::values::{HostPort, Listen, Problems, SecretRef, Section, Span, Zone};
use crate::wire::medibus::{ARGUMENT_BYTES_MAX, code, hex};

/// The pauses between two questions of a kind.
const PAUSES: (Span, Span) = (Span(Duration::from_millis(500)), Span(Duration::from_secs(3600)));
/// `quiet` and `negotiate`.
const TIMERS: (Span, Span) = (Span(Duration::from_millis(200)), Span(Duration::from_secs(60)));
/// Pages whose answers can be narrowed by the configure command.
const NARROWED: [u8; 6] =
    [code::MEASURED_1, code::ALARMS_1, code::SETTINGS, code::TEXTS, code::MEASURED_2, code::ALARMS_2];
/// Codes of one page in `only`: what fits into the command.
const ONLY_MAX: usize = (ARGUMENT_BYTES_MAX - 1) / 2;

/// `[source.<name>.medibus]`. The device is at one of `serial`, `connect` and `listen`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MedibusConfig {
    /// The device's port. Its line settings are those of `model` unless they are said here.
    pub serial: Option<MedibusPort>,
    /// A serial server that is dialled.
    pub connect: Option<HostPort>,
    /// Where a serial server dials.
    pub listen: Option<Listen>,
    /// With `listen`: networks that may connect.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// With `listen`: speak TLS; with a `client-ca` devices must show a certificate.
    pub tls: Option<ServerTls>,
    /// Which model's line settings.
    #[serde(default)]
    pub model: Model,
    /// Measured values are asked for so often.
    #[serde(default = "default_every")]
    pub every: Span,
    /// Alarms are asked for so often.
    #[serde(default = "default_alarms_every")]
    pub alarms_every: Span,
    /// Settings, alarm limits and text messages are asked for so often; they are stored when they change.
    #[serde(default = "default_settings_every")]
    pub settings_every: Span,
    /// The device's clock is asked for so often.
    #[serde(default = "default_clock_every")]
    pub clock_every: Span,
    /// No byte for so long, and the communication is initialised anew.
    #[serde(default = "default_quiet")]
    pub quiet: Span,
    /// The pause between attempts to initialise it.
    #[serde(default = "default_negotiate")]
    pub negotiate: Span,
    /// `"24:78"`: of the pages that are named here only these codes are asked for; else all that the device has.
    #[serde(default)]
    pub only: Vec<String>,
    /// The zone that the device's clock shows, as `Europe/Berlin` or `+01:00`; its offset is measured against it.
    #[serde(default = "default_zone")]
    pub zone: String,
    /// The log that the readings belong to.
    #[serde(default)]
    pub log: TelemetryLog,
    /// An alarm is raised when nothing came for so long.
    pub silent_after: Option<Span>,
}

/// `serial` of a MEDIBUS source: what is left out is the model's. Flow control is in the protocol.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MedibusPort {
    /// The port, best by its physical place: `/dev/serial/by-path/...`.
    pub port: std::path::PathBuf,
    /// Bits a second.
    pub baud: Option<u32>,
    /// The bit that checks a character.
    pub parity: Option<Parity>,
    /// Bits of a character. Waveforms need all 8.
    pub data_bits: Option<u8>,
    /// Bits after a character.
    pub stop_bits: Option<u8>,
}

/// Models by the line settings that they leave the factory with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// 19200 8E1, what most have.
    #[default]
    Common,
    /// 9600 8E1.
    Apollo,
    /// 19200 8E1.
    Evita4,
    /// 19200 8N1.
    EvitaXl,
    /// Evita Infinity V500: 19200 8N1.
    V500,
}

impl Model {
    fn line(self) -> (u32, Parity) {
        match self {
            Self::Common | Self::Evita4 => (19_200, Parity::Even),
            Self::Apollo => (9_600, Parity::Even),
            Self::EvitaXl | Self::V500 => (19_200, Parity::None),
        }
    }
}

fn default_every() -> Span {
    Span(Duration::from_secs(5))
}

fn default_alarms_every() -> Span {
    Span(Duration::from_secs(1))
}

fn default_settings_every() -> Span {
    Span(Duration::from_secs(10))
}

fn default_clock_every() -> Span {
    Span(Duration::from_secs(60))
}

fn default_quiet() -> Span {
    Span(Duration::from_secs(3))
}

fn default_negotiate() -> Span {
    Span(Duration::from_secs(1))
}

fn default_zone() -> String {
    "UTC".to_owned()
}

impl MedibusConfig {
    fn plug(&self) -> PlugConfig {
        let (baud, parity) = self.model.line();
        let serial = self.serial.as_ref().map(|serial| SerialConfig {
            port: serial.port.clone(),
            baud: serial.baud.unwrap_or(baud),
            data_bits: serial.data_bits.unwrap_or(8),
            parity: serial.parity.unwrap_or(parity),
            stop_bits: serial.stop_bits.unwrap_or(1),
            flow: Flow::None, // XON and XOFF lie between the bytes of waveforms, which the driver can't tell apart
        });
        PlugConfig {
            serial,
            connect: self.connect.clone(),
            listen: self.listen,
            allow: self.allow.clone(),
            connections: None,
            tls: self.tls.clone(),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            every: self.every.0,
            alarms_every: self.alarms_every.0,
            settings_every: self.settings_every.0,
            clock_every: self.clock_every.0,
            quiet: self.quiet.0,
            negotiate: self.negotiate.0,
            only: self.only().unwrap_or_default(),
            faults: Seldom::default(),
            greetings: Seldom::default(),
        }
    }

    /// The codes of each page of `only`, or the entry that is none.
    fn only(&self) -> Result<Vec<(u8, Vec<u8>)>, &str> {
        let mut pages: Vec<(u8, Vec<u8>)> = Vec::new();
        for entry in &self.only {
            let byte = |text: &str| text.as_bytes().try_into().ok().and_then(hex);
            let (page, code) = entry.split_once(':').ok_or(entry.as_str())?;
            let page = byte(page).filter(|page| NARROWED.contains(page)).ok_or(entry.as_str())?;
            let code = byte(code).ok_or(entry.as_str())?;
            match pages.iter_mut().find(|(known, _)| *known == page) {
                Some((_, codes)) if codes.len() == ONLY_MAX => return Err(entry),
                Some((_, codes)) => codes.push(code),
                None => pages.push((page, vec![code])),
            }
        }
        Ok(pages)
    }

    fn zone(&self) -> Option<TimeZone> {
        self.zone.parse().ok().map(|Zone(zone)| zone)
    }
}

impl Section for MedibusConfig {
    fn check(&self, problems: &mut Problems) {
        self.plug().check(problems);
        if self.serial.is_none() && self.model != Model::Common {
            problems.warn("model", "has no effect without serial: the line settings are those of the serial server");
        }
        if self.serial.as_ref().is_some_and(|serial| serial.data_bits == Some(7)) {
            problems.under("serial", |problems| problems.error("data-bits", "must be 8: the eighth marks waveforms"));
        }
        let pauses = [
            ("every", self.every),
            ("alarms-every", self.alarms_every),
            ("settings-every", self.settings_every),
            ("clock-every", self.clock_every),
        ];
        let pauses = pauses.map(|(key, span)| (key, span, PAUSES));
        let timers = [("quiet", self.quiet, TIMERS), ("negotiate", self.negotiate, TIMERS)];
        for (key, span, (shortest, longest)) in pauses.into_iter().chain(timers) {
            if !(shortest..=longest).contains(&span) {
                problems.error(key, format!("must be from {shortest} to {longest}"));
            }
        }
        if let Err(entry) = self.only() {
            let pages: Vec<String> = NARROWED.iter().map(|page| format!("{page:02X}")).collect();
            let text = format!(
                "\"{entry}\" is not a page and a code: write for example \"24:78\"; the pages are {}, at most {ONLY_MAX} codes each",
                pages.join(", ")
            );
            problems.error("only", text);
        }
        if self.zone().is_none() {
            problems.error(
                "zone",
                "is not known here: write \"UTC\", an offset as \"+01:00\", or a name as \"Europe/Berlin\"",
            );
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        PlugConfig::files(&mut self.tls, visit);
    }
}

/// A MEDIBUS device.
pub struct Medibus {
    plug: Plug,
    settings: Arc<Settings>,
    zone: TimeZone,
}

impl Source for Medibus {
    type Config = MedibusConfig;

    const PROTOCOL: &'static str = "medibus";

    async fn open(config: &MedibusConfig, sockets: &Sockets) -> Result<Self, SourceError> {
        let plug = Plug::open(config.plug(), sockets).await?;
        let zone = config.zone().unwrap_or(TimeZone::UTC);
        Ok(Self { plug, settings: Arc::new(config.settings()), zone })
    }

    fn endpoint(&self) -> String {
        self.plug.endpoint()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let bed = Arc::new(Bed {
            chart: Mutex::new(Chart::new(intake, self.zone.clone())),
            latest: std::sync::Mutex::new(stop.child_token()),
        });
        let (settings, taken, stopping) = (Arc::clone(&self.settings), intake.clone(), stop.clone());
        let serve = move |line: Line| {
            let (bed, settings, intake) = (Arc::clone(&bed), Arc::clone(&settings), taken.clone());
            let mine = bed.take_over(stopping.child_token());
            async move {
                let mut chart = bed.chart.lock().await;
                match medibus_session::serve(line, &intake, &settings, &mut chart, &mine).await {
                    End::Stopped => {}
                    End::Gone(error) => tracing::debug!(source = %intake.source(), %error, "the line ended"),
                }
            }
        };
        self.plug.run(intake, stop, serve).await
    }
}

/// The one device that a source has: a line that comes takes the place of the one before, which may be dead without knowing it.
struct Bed {
    chart: Mutex<Chart>,
    latest: std::sync::Mutex<Stop>,
}

impl Bed {
    fn take_over(&self, mine: Stop) -> Stop {
        let mut latest = self.latest.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::replace(&mut *latest, mine.clone()).cancel();
        mine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> MedibusConfig {
        toml::from_str(text).unwrap()
    }

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        parsed(text).check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect()
    }

    #[test]
    fn a_port_is_enough_and_the_model_sets_its_line() {
        let line = |text: &str| parsed(text).plug().serial.unwrap().settings();
        let port = "serial = { port = \"/dev/serial/by-path/pci-0:1\"";
        assert_eq!(line(&format!("{port} }}")), "19200 8E1");
        for (model, settings) in
            [("apollo", "9600 8E1"), ("evita4", "19200 8E1"), ("evita-xl", "19200 8N1"), ("v500", "19200 8N1")]
        {
            assert_eq!(line(&format!("{port} }}\nmodel = \"{model}\"")), settings);
        }
        assert_eq!(line(&format!("{port}, baud = 38400 }}\nmodel = \"v500\"")), "38400 8N1");
        assert_eq!(problems(&format!("{port} }}")), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_or_impossible_is_named_by_its_key() {
        assert_eq!(problems("").len(), 1);
        let found = problems(
            "connect = \"10.0.0.5:4000\"\nmodel = \"apollo\"\nevery = \"1ms\"\nquiet = \"2h\"\nonly = [\"24:78\", \"52:01\"]\nzone = \"Nowhere\"",
        );
        assert_eq!(found, ["model", "every", "quiet", "only", "zone"]);
        assert_eq!(problems("serial = { port = \"/dev/serial/by-path/a\", data-bits = 7 }"), ["serial.data-bits"]);
        let many = vec!["\"24:78\""; ONLY_MAX + 1].join(", ");
        assert_eq!(problems(&format!("connect = \"a:1\"\nonly = [{many}]")), ["only"]);
    }

    #[test]
    fn codes_are_gathered_by_page_and_zones_are_names_or_offsets() {
        let config = parsed("connect = \"a:1\"\nonly = [\"24:78\", \"2b:21\", \"24:7D\"]\nzone = \"-03:30\"");
        assert_eq!(config.only(), Ok(vec![(0x24, vec![0x78, 0x7d]), (0x2b, vec![0x21])]));
        assert_eq!(config.zone().unwrap().to_fixed_offset().unwrap().seconds(), -12_600);
        assert!(parsed("connect = \"a:1\"").zone().is_some_and(|zone| zone == TimeZone::UTC));
    }
}
