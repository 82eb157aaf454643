//! Modbus, RTU and TCP: `[source.<name>.modbus]`. Gas panels, isolation monitors, refrigerators, power supplies.
//!
//! This box is the only client on the line and asks its units in turn. It reads; there is no code in this house that writes to a
//! device, and there must never be. The frames are in [`crate::wire::modbus`], the registers in `map`, one question and its answer in
//! `link`, a unit in `unit`, the order of the questions in `bus`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::intake::Intake;
use super::plug::{Line, Plug, PlugConfig};
use super::plug_journal::Journal;
use super::readings::TelemetryLog;
use super::{Source, SourceError, Stop};
use crate::system::backoff::Backoff;
use crate::system::seldom::Seldom;
use crate::system::serial::SerialConfig;
use crate::system::sockets::Sockets;
use crate::system::stream;
use crate::values::{HostPort, Problems, SecretRef, Section, Span};
use crate::wire::modbus::{REGISTERS_MAX, SERIAL_UNIT_MAX};
use bus::{Bus, Ending};
use link::{Framing, UNKNOWN_SILENCE};
use map::PointConfig;

mod bus;
mod link;
mod map;
mod unit;

/// Units on one line: the ids that there are.
pub const UNITS_MAX: usize = 247;
/// Points of one unit.
pub const POINTS_MAX: usize = 1000;
/// What `every` may be.
const EVERY: (Span, Span) = (Span(Duration::from_millis(50)), Span(Duration::from_secs(86_400)));
/// What `at-least-every` may be.
const AT_LEAST_EVERY: (Span, Span) = (Span(Duration::from_secs(1)), Span(Duration::from_secs(86_400)));
/// What `answer-timeout` may be.
const ANSWER_TIMES: (Span, Span) = (Span(Duration::from_millis(20)), Span(Duration::from_secs(10)));
/// How long making a connection may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// Pauses between attempts to connect: from this to the next.
const CONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A connection that lasted for so long was a good one.
const CONNECTED_WELL: Duration = Duration::from_secs(5);

/// `[source.<name>.modbus]`.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModbusConfig {
    /// A serial line: RTU.
    pub serial: Option<SerialConfig>,
    /// The device, or the gateway or serial server before it.
    pub connect: Option<HostPort>,
    /// What goes over the connection; without it Modbus TCP.
    pub framing: Option<TcpFraming>,
    /// How often each unit is asked.
    #[serde(default = "default_every")]
    pub every: Span,
    /// All values are stored again after so long, changed or not.
    #[serde(default = "default_at_least_every")]
    pub at_least_every: Span,
    /// How long an answer may take.
    #[serde(default = "default_answer_timeout")]
    pub answer_timeout: Span,
    /// An alarm is raised when nothing was stored for so long.
    pub silent_after: Option<Span>,
    /// The log of its readings.
    #[serde(default)]
    pub log: TelemetryLog,
    /// The units on the line.
    pub unit: Vec<UnitConfig>,
}

/// `framing`: what goes over a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpFraming {
    /// Modbus TCP.
    Tcp,
    /// RTU frames as they are, through a serial server.
    Rtu,
}

/// `[[source.<name>.modbus.unit]]`: one device on the line.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct UnitConfig {
    /// Its address on the line; 255 or 0 for a TCP device that has none.
    pub id: u8,
    /// What the first cell is called in the maker's table: 0 or 1.
    pub first_address: u8,
    /// How often it is asked, when not as often as the others.
    pub every: Option<Span>,
    /// Cells between two points that may be read and thrown away, to save a request.
    #[serde(default)]
    pub gap_max: u16,
    /// Registers that the device gives in one answer.
    #[serde(default = "default_registers")]
    pub registers_max: u16,
    /// What is read.
    pub point: Vec<PointConfig>,
}

fn default_every() -> Span {
    Span(Duration::from_secs(1))
}

fn default_at_least_every() -> Span {
    Span(Duration::from_secs(60))
}

fn default_answer_timeout() -> Span {
    Span(Duration::from_secs(1))
}

fn default_registers() -> u16 {
    REGISTERS_MAX
}

impl Section for ModbusConfig {
    fn check(&self, problems: &mut Problems) {
        self.check_place(problems);
        check_span("every", self.every, EVERY, problems);
        check_span("at-least-every", self.at_least_every, AT_LEAST_EVERY, problems);
        check_span("answer-timeout", self.answer_timeout, ANSWER_TIMES, problems);
        if self.silent_after.is_some_and(|silent| silent <= self.at_least_every) {
            let text = format!("must be longer than at-least-every, which is {}", self.at_least_every);
            problems.error("silent-after", text);
        }
        if self.unit.is_empty() || self.unit.len() > UNITS_MAX {
            problems.error("unit", format!("must be 1 to {UNITS_MAX} tables [[source.<name>.modbus.unit]]"));
        }
        let mut ids = BTreeSet::new();
        problems.under("unit", |problems| {
            for (index, unit) in self.unit.iter().enumerate() {
                problems.under(&index.to_string(), |problems| {
                    if !ids.insert(unit.id) {
                        problems.error("id", format!("unit {} is there already: put all its points into one", unit.id));
                    }
                    unit.check(self.framing() == Framing::Tcp, problems);
                });
            }
        });
    }

    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

impl ModbusConfig {
    fn framing(&self) -> Framing {
        match (&self.serial, self.framing) {
            (Some(serial), _) => Framing::Rtu(link::silence(serial.baud)),
            (None, Some(TcpFraming::Rtu)) => Framing::Rtu(UNKNOWN_SILENCE),
            (None, _) => Framing::Tcp,
        }
    }

    fn check_place(&self, problems: &mut Problems) {
        match (&self.serial, &self.connect) {
            (None, None) => problems.error(
                "",
                "says not where the units are: add serial = { port = \"/dev/serial/by-path/...\" } or connect = \"host:502\"",
            ),
            (Some(_), Some(_)) => problems.error("connect", "the units are at one place: keep either serial or connect"),
            _ => {}
        }
        if let Some(serial) = &self.serial {
            problems.under("serial", |problems| serial.check(problems));
            if self.framing.is_some() {
                problems.error("framing", "goes with connect only: a serial line carries RTU");
            }
        }
    }
}

fn check_span(key: &str, span: Span, (shortest, longest): (Span, Span), problems: &mut Problems) {
    if !(shortest..=longest).contains(&span) {
        problems.error(key, format!("must be from {shortest} to {longest}"));
    }
}

impl UnitConfig {
    fn check(&self, tcp: bool, problems: &mut Problems) {
        let itself = tcp && [0, 255].contains(&self.id);
        if !itself && !(1..=SERIAL_UNIT_MAX).contains(&self.id) {
            problems.error(
                "id",
                format!("must be from 1 to {SERIAL_UNIT_MAX}; over Modbus TCP 0 and 255 mean the device itself"),
            );
        }
        if self.first_address > 1 {
            problems.error("first-address", "must be 0 or 1: what the maker's table calls the first cell");
        }
        if let Some(every) = self.every {
            check_span("every", every, EVERY, problems);
        }
        if self.gap_max > REGISTERS_MAX {
            problems.error("gap-max", format!("must be at most {REGISTERS_MAX}"));
        }
        if !(4..=REGISTERS_MAX).contains(&self.registers_max) {
            problems.error("registers-max", format!("must be from 4 to {REGISTERS_MAX}"));
        }
        if self.point.is_empty() || self.point.len() > POINTS_MAX {
            problems.error("point", format!("must be 1 to {POINTS_MAX} tables [[source.<name>.modbus.unit.point]]"));
        }
        let mut names = BTreeSet::new();
        problems.under("point", |problems| {
            for (index, point) in self.point.iter().enumerate() {
                problems.under(&index.to_string(), |problems| {
                    if !names.insert(&point.name) {
                        problems.error("name", "another point of this unit has this name");
                    }
                    point.check(self.first_address, problems);
                });
            }
        });
    }
}

/// A client of one line.
pub struct Modbus {
    config: ModbusConfig,
}

impl Source for Modbus {
    type Config = ModbusConfig;

    const PROTOCOL: &'static str = "modbus";

    /// A device that is not there yet is waited for, and no reason to refuse a configuration.
    async fn open(config: &ModbusConfig, _sockets: &Sockets) -> Result<Self, SourceError> {
        Ok(Self { config: config.clone() })
    }

    fn endpoint(&self) -> String {
        match (&self.config.serial, &self.config.connect) {
            (Some(serial), _) => serial.port.display().to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        }
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let bus = Bus::new(&self.config, self.config.framing(), intake);
        match (&self.config.serial, &self.config.connect) {
            (Some(serial), _) => run_port(serial, bus, intake, stop).await,
            (None, Some(address)) => {
                dial(address, bus, intake, stop).await;
                Ok(())
            }
            (None, None) => Err(SourceError::Open("no place of the units is configured".into())),
        }
    }
}

/// On a serial port, each time that it is plugged in.
async fn run_port(serial: &SerialConfig, bus: Bus, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
    let config = PlugConfig { serial: Some(serial.clone()), ..PlugConfig::default() };
    let mut plug = Plug::open(config, &Sockets::default()).await?;
    // The port has one line at a time; the bus outlives it.
    let bus = Arc::new(Mutex::new(bus));
    let (ours, stopping, broken) = (intake.clone(), stop.clone(), Arc::new(Seldom::default()));
    let serve = move |line: Line| {
        let (bus, intake, stop, broken) = (Arc::clone(&bus), ours.clone(), stopping.clone(), Arc::clone(&broken));
        async move {
            let ending = bus.lock().await.run(line, &intake, &stop).await;
            if let Ending::Lost(error) = ending
                && let Some(unsaid) = broken.speak()
            {
                tracing::warn!(source = %intake.source(), %error, unsaid, "the port is opened anew");
            }
        }
    };
    plug.run(intake, stop, serve).await
}

/// Over TCP. Not by [`Plug`]: a unit behind a gateway that leaves a question unanswered costs the connection, and that must neither be
/// told as an unplugged device nor keep the other units waiting.
async fn dial(address: &HostPort, mut bus: Bus, intake: &Intake, stop: &Stop) {
    let mut journal = Journal::of_connection(intake);
    let (least, most) = CONNECT_PAUSES;
    let mut backoff = Backoff::new(least, most, CONNECTED_WELL);
    intake.counters().plug.at(&address.to_string(), "");
    loop {
        let dialled = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            dialled = stream::dial(address, None, CONNECT_TIME_MAX) => dialled,
        };
        let pause = match dialled {
            Ok(stream) => {
                journal.there().await;
                let since = stream.since();
                let line = Line::tcp(stream, Arc::clone(intake.counters()), Arc::default());
                intake.counters().connections.add(1);
                let ending = bus.run(line, intake, stop).await;
                intake.counters().connections.add(-1);
                match ending {
                    Ending::Stopped => return,
                    Ending::Unanswered => Duration::ZERO,
                    Ending::Lost(error) => {
                        journal.missing(&error.to_string()).await;
                        backoff.pause(since.elapsed())
                    }
                }
            }
            Err(error) => {
                journal.missing(&error.to_string()).await;
                backoff.pause(Duration::ZERO)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: &str = "[[unit.point]]\nname = \"p\"\nkind = \"holding\"\naddress = 1\ntype = \"u16\"\n";

    fn parsed(text: &str) -> Result<ModbusConfig, toml::de::Error> {
        toml::from_str(text)
    }

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        parsed(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect()
    }

    fn unit(text: &str) -> String {
        format!("connect = \"10.0.0.7:502\"\n[[unit]]\n{text}\n")
    }

    #[test]
    fn a_few_lines_are_enough_and_the_defaults_are_those_of_the_documentation() {
        let text = unit("id = 1\nfirst-address = 1") + POINT;
        let config = parsed(&text).unwrap();
        assert_eq!(problems(&text), Vec::<String>::new());
        let spans = [config.every, config.at_least_every, config.answer_timeout].map(|span| span.to_string());
        assert_eq!(spans, ["1s", "1m", "1s"]);
        assert_eq!((config.framing(), config.log), (Framing::Tcp, TelemetryLog::Telemetry));
        assert_eq!((config.unit[0].gap_max, config.unit[0].registers_max), (0, 125));
    }

    #[test]
    fn how_addresses_are_counted_must_be_said_and_no_key_writes() {
        assert!(parsed(&(unit("id = 1") + POINT)).unwrap_err().to_string().contains("first-address"));
        assert!(parsed(&(unit("id = 1\nfirst-address = 0\nwrite = true") + POINT)).is_err());
    }

    #[test]
    fn the_units_are_at_one_place_and_the_framing_follows_from_it() {
        let places = |head: &str| problems(&format!("{head}\n[[unit]]\nid = 1\nfirst-address = 1\n{POINT}"));
        let serial = "serial = { port = \"/dev/serial/by-path/x\", baud = 19200, parity = \"even\" }";
        assert_eq!(places(serial), Vec::<String>::new());
        assert_eq!(places(""), [""]);
        assert_eq!(places(&format!("{serial}\nconnect = \"10.0.0.7:502\"\nframing = \"rtu\"")), ["connect", "framing"]);
        let rtu = parsed(&format!(
            "connect = \"10.0.0.7:4001\"\nframing = \"rtu\"\n[[unit]]\nid = 1\nfirst-address = 1\n{POINT}"
        ));
        assert_eq!(rtu.unwrap().framing(), Framing::Rtu(UNKNOWN_SILENCE));
    }

    #[test]
    fn every_problem_is_named_by_its_key() {
        let head = "connect = \"10.0.0.7:502\"\nevery = \"1ms\"\nsilent-after = \"30s\"\nanswer-timeout = \"1h\"\n";
        let one = "[[unit]]\nid = 248\nfirst-address = 2\ngap-max = 200\nregisters-max = 2\nevery = \"0s\"\n";
        let two = "[[unit]]\nid = 248\nfirst-address = 1\npoint = []\n";
        assert_eq!(
            problems(&format!("{head}{one}{POINT}{POINT}{two}")),
            [
                "every",
                "answer-timeout",
                "silent-after",
                "unit.0.id",
                "unit.0.first-address",
                "unit.0.every",
                "unit.0.gap-max",
                "unit.0.registers-max",
                "unit.0.point.0.address",
                "unit.0.point.1.name",
                "unit.0.point.1.address",
                "unit.1.id",
                "unit.1.id",
                "unit.1.point"
            ]
        );
    }

    #[test]
    fn every_problem_of_a_point_is_named_by_its_key() {
        let of = |text: &str| {
            let point = format!("[[unit.point]]\nname = \"a\"\n{text}\n");
            let found = problems(&(unit("id = 1\nfirst-address = 1") + &point));
            found.into_iter().map(|path| path.trim_start_matches("unit.0.point.0.").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of("kind = \"holding\"\naddress = 0\ntype = \"u16\""), ["address"]);
        assert_eq!(of("kind = \"holding\"\naddress = 65536\ntype = \"u32\""), ["address"]);
        assert_eq!(of("kind = \"holding\"\naddress = 40001\ntype = \"u16\""), ["address"]);
        assert_eq!(of("kind = \"holding\"\naddress = 1"), ["type"]);
        assert_eq!(of("kind = \"coil\"\naddress = 1\ntype = \"u16\"\nscale = 2"), ["type", "scale"]);
        assert_eq!(of("kind = \"input\"\naddress = 1\ntype = \"bits\""), ["bits"]);
        assert_eq!(
            of("kind = \"input\"\naddress = 1\ntype = \"bits\"\nbits = { 16 = \"a\", 1 = \"b c\" }"),
            ["bits.1", "bits.16"]
        );
        assert_eq!(
            of("kind = \"input\"\naddress = 1\ntype = \"u16\"\nalarm = \"high\"\nscale = 0"),
            ["alarm", "scale"]
        );
        assert_eq!(
            of("kind = \"input\"\naddress = 1\ntype = \"u16\"\ndead-band = -1\nunit = \"\""),
            ["dead-band", "unit"]
        );
    }
}
