//! Laboratory analysers that speak ASTM E1381 and E1394 (CLSI LIS01-A2, LIS02-A2): `[source.<name>.astm]`. We only receive.
//!
//! Each frame is stored, synced and only then acknowledged; the frames of one record set (H to L) become one message, in the
//! device's own bytes. The framing is in [`crate::wire::astm`], the records in [`crate::wire::astm_record`], one line in `astm_session`, the
//! way of frames to the disk in `astm_gather`, the putting together in `astm_assembly`. It must never send a byte that an analyser has not
//! asked for: no orders, no ENQ.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::astm_assembly::Assembly;
use super::astm_session::{self, Settings};
use super::astm_transfers::Transfers;
use super::intake::Intake;
use super::plug::{Line, Plug, PlugConfig};
use super::{Source, SourceError, Stop, astm_gather};
use crate::system::serial::SerialConfig;
use crate::system::sockets::Sockets;
use crate::system::tls::ServerTls;
use crate::values::{ByteSize, HostPort, Listen, Problems, SecretRef, Section, Span};

/// What `max-message-size` may be.
const MESSAGE_SIZES: (ByteSize, ByteSize) = (ByteSize(64 << 10), ByteSize(256 << 20));

/// What `max-message-size` is when it is not said.
pub const MESSAGE_SIZE_DEFAULT: ByteSize = ByteSize(16 << 20);
/// Text of a short frame: a record of a result.
const SHORT_FRAME_BYTES: u64 = 80;
/// What a frame takes in the log beside its text, at most, when space is short.
const FRAME_OVERHEAD_BYTES: u64 = 300;
/// What the log needs to write and to make room at all: three of its segments.
const LOG_BASE_BYTES: u64 = 48 << 20;
/// How long what lines brought before they were cut may take to the disk at a stop.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// `[source.<name>.astm]`: exactly one of `serial`, `connect` and `listen` says where the analyser is.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AstmConfig {
    /// The analyser's serial port.
    pub serial: Option<SerialConfig>,
    /// The analyser, or the serial server before it, is dialled.
    pub connect: Option<HostPort>,
    /// The analyser dials.
    pub listen: Option<Listen>,
    /// With `listen`: networks that may connect.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// With `listen`: connections at once; more wait.
    pub connections: Option<usize>,
    /// With `listen`: speak TLS; with a `client-ca` devices must show a certificate.
    pub tls: Option<ServerTls>,
    /// A longer message is stored in pieces, flagged as incomplete.
    #[serde(default = "default_message_size")]
    pub max_message_size: ByteSize,
    /// An alarm is raised when no message came for so long.
    pub silent_after: Option<Span>,
}

fn default_message_size() -> ByteSize {
    MESSAGE_SIZE_DEFAULT
}

/// What the clinical log must hold at least for messages of this size: the frames of one, which wait until it is committed, and the
/// message itself. In a smaller one frames could take all the room that the message needs to let go of them.
pub fn quota_wanted(message_size: ByteSize) -> ByteSize {
    let frames = (message_size.0 / SHORT_FRAME_BYTES).min(astm_session::PARTS_MAX);
    let bytes = LOG_BASE_BYTES + 2 * message_size.0 + frames * FRAME_OVERHEAD_BYTES;
    ByteSize(bytes.next_multiple_of(1 << 20))
}

impl AstmConfig {
    fn plug(&self) -> PlugConfig {
        PlugConfig {
            serial: self.serial.clone(),
            connect: self.connect.clone(),
            listen: self.listen,
            allow: self.allow.clone(),
            connections: self.connections,
            tls: self.tls.clone(),
        }
    }
}

impl Section for AstmConfig {
    fn check(&self, problems: &mut Problems) {
        self.plug().check(problems);
        let (least, most) = MESSAGE_SIZES;
        if !(least..=most).contains(&self.max_message_size) {
            problems.error("max-message-size", format!("must be from {least} to {most}"));
        }
    }

    fn files(&mut self, visit: &mut dyn FnMut(&mut SecretRef)) {
        PlugConfig::files(&mut self.tls, visit);
    }
}

/// An analyser's place.
pub struct Astm {
    plug: Plug,
    message_bytes_max: u64,
    /// Analysers dial, and several may have one address.
    listens: bool,
}

impl Source for Astm {
    type Config = AstmConfig;

    const PROTOCOL: &'static str = "astm";

    async fn open(config: &AstmConfig, sockets: &Sockets) -> Result<Self, SourceError> {
        let plug = Plug::open(config.plug(), sockets).await?;
        Ok(Self { plug, message_bytes_max: config.max_message_size.0, listens: config.listen.is_some() })
    }

    fn endpoint(&self) -> String {
        self.plug.endpoint()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let transfers = Arc::<Transfers>::default();
        let assembly = Assembly::begin(intake, Arc::clone(&transfers)).await;
        let (parts, gather) = astm_gather::open(intake, Arc::clone(&transfers));
        let settings = Arc::new(Settings::new(self.message_bytes_max, transfers, parts));
        let (done, halt) = (CancellationToken::new(), stop.child_token());
        let mut assembling = tokio::spawn(assembly.run(done.clone()));
        let mut gathering = tokio::spawn(gather.run());
        // The way for parts stays open as long as this.
        let held = Arc::clone(&settings);
        let (lines, stopping, listens) = (intake.clone(), halt.clone(), self.listens);
        let serve = move |line: Line| {
            let place = if listens { line.place() } else { String::new() };
            astm_session::serve(line, place, Arc::clone(&settings), lines.clone(), stopping.clone())
        };
        let plugged = self.plug.run(intake, &halt, serve);
        let outcome = unless_ended(plugged, &halt, [&mut assembling, &mut gathering]).await;
        drop(held);
        if !gathering.is_finished() {
            drop(timeout(WRITE_TIME, gathering).await);
        }
        done.cancel();
        if !assembling.is_finished() {
            assembling.await.map_err(|error| broken(&error.to_string()))?;
        }
        outcome
    }
}

/// What `plugged` ends with; but when one of these tasks ends before, nothing that comes would become a message: the lines are let go then.
async fn unless_ended(
    plugged: impl Future<Output = Result<(), SourceError>>,
    halt: &Stop,
    [one, other]: [&mut JoinHandle<()>; 2],
) -> Result<(), SourceError> {
    tokio::pin!(plugged);
    let ended = tokio::select! {
        outcome = &mut plugged => return outcome,
        ended = one => ended,
        ended = other => ended,
    };
    halt.cancel();
    plugged.await?;
    let why = ended.err().map_or_else(|| "it ended by itself".to_owned(), |error| error.to_string());
    Err(broken(&why))
}

fn broken(why: &str) -> SourceError {
    SourceError::Broken(format!(
        "the putting together of messages broke ({why}): nothing that was acknowledged is lost, and it begins anew"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        toml::from_str::<AstmConfig>(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect()
    }

    #[tokio::test]
    async fn a_part_that_panics_lets_the_lines_go_and_is_told_at_once() {
        let halt = Stop::new();
        let mut gone = tokio::spawn(async { panic!("simulated") });
        let mut fine = tokio::spawn(std::future::pending());
        let lines = async {
            halt.cancelled().await;
            Ok(())
        };
        let outcome = unless_ended(lines, &halt, [&mut fine, &mut gone]).await;
        assert!(matches!(outcome, Err(SourceError::Broken(why)) if why.contains("begins anew")));
        fine.abort();
    }

    #[test]
    fn one_line_is_enough_and_every_key_is_understood() {
        let config: AstmConfig = toml::from_str("listen = \"127.0.0.1:4001\"").unwrap();
        assert_eq!((config.max_message_size.to_string(), config.silent_after), ("16MiB".into(), None));
        let all = "listen = \"10.20.0.1:4001\"\nallow = [\"10.20.0.5/32\"]\nconnections = 2\n\
                   max-message-size = \"1MiB\"\nsilent-after = \"12h\"";
        assert_eq!(problems(all), Vec::<String>::new());
        assert_eq!(problems("connect = \"10.20.0.5:4000\""), Vec::<String>::new());
        assert_eq!(problems("serial = { port = \"/dev/serial/by-path/x\", baud = 9600 }"), Vec::<String>::new());
        assert!(toml::from_str::<AstmConfig>("listen = \"127.0.0.1:1\"\nquery = true").is_err());
    }

    #[test]
    fn the_smallest_quota_is_enough_for_short_messages_and_not_for_the_longest() {
        let wanted = |size: &str| quota_wanted(size.parse().unwrap()).to_string();
        assert_eq!([wanted("64KiB"), wanted("16MiB"), wanted("256MiB")], ["49MiB", "95MiB", "575MiB"]);
    }

    #[test]
    fn what_is_missing_unsafe_or_impossible_is_named_by_its_key() {
        assert_eq!(problems("").len(), 1);
        assert_eq!(problems("listen = \"0.0.0.0:4001\""), ["listen"]);
        let tls = "tls = { certificate = \"a.pem\", key = \"a.key\", client-ca = \"ca.pem\" }";
        assert!(!problems(&format!("listen = \"0.0.0.0:4001\"\n{tls}")).contains(&"listen".to_owned()));
        assert!(problems(&format!("connect = \"10.0.0.5:4000\"\n{tls}")).contains(&"tls".to_owned()));
        assert_eq!(problems("connect = \"10.0.0.5:4000\"\nmax-message-size = \"1KiB\""), ["max-message-size"]);
    }
}
