//! Laboratory analysers that speak ASTM E1381 and E1394 (CLSI LIS01-A2, LIS02-A2): `[source.<name>.astm]`. We only receive.
//!
//! Each frame is stored, synced and only then acknowledged; the frames of one record set (H to L) become one message, in the
//! device's own bytes. The framing is in [`crate::wire::astm`], the records in [`crate::wire::astm_record`], one line in `astm_session`, the
//! putting together in `astm_assembly`. It must never send a byte that an analyser has not asked for: no orders, no ENQ.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::astm_assembly::Assembly;
use super::astm_session::{self, Settings};
use super::intake::Intake;
use super::plug::{Line, Plug, PlugConfig};
use super::{Source, SourceError, Stop};
use crate::system::serial::SerialConfig;
use crate::system::tls::ServerTls;
use crate::values::{ByteSize, HostPort, Listen, Problems, SecretRef, Section, Span};

/// What `max-message-size` may be.
const MESSAGE_SIZES: (ByteSize, ByteSize) = (ByteSize(64 << 10), ByteSize(256 << 20));

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
    ByteSize(16 << 20)
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
}

impl Source for Astm {
    type Config = AstmConfig;

    const PROTOCOL: &'static str = "astm";

    async fn open(config: &AstmConfig) -> Result<Self, SourceError> {
        let plug = Plug::open(config.plug()).await?;
        Ok(Self { plug, message_bytes_max: config.max_message_size.0 })
    }

    fn endpoint(&self) -> String {
        self.plug.endpoint()
    }

    async fn run(&mut self, intake: &Intake, stop: &Stop) -> Result<(), SourceError> {
        let settings = Arc::new(Settings::new(self.message_bytes_max));
        let assembly = Assembly::begin(intake, Arc::clone(&settings.transfers)).await;
        let done = CancellationToken::new();
        let assembling = tokio::spawn(assembly.run(done.clone()));
        let (lines, stopping) = (intake.clone(), stop.clone());
        let serve = move |line: Line| {
            let place = line.place();
            astm_session::serve(line, place, Arc::clone(&settings), lines.clone(), stopping.clone())
        };
        let outcome = self.plug.run(intake, stop, serve).await;
        done.cancel();
        if let Err(error) = assembling.await {
            tracing::error!(source = %intake.source(), %error, "the assembly of messages ended badly");
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let mut problems = Problems::default();
        toml::from_str::<AstmConfig>(text).unwrap().check(&mut problems);
        problems.into_found().into_iter().map(|problem| problem.path.join(".")).collect()
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
    fn what_is_missing_unsafe_or_impossible_is_named_by_its_key() {
        assert_eq!(problems("").len(), 1);
        assert_eq!(problems("listen = \"0.0.0.0:4001\""), ["listen"]);
        let tls = "tls = { certificate = \"a.pem\", key = \"a.key\", client-ca = \"ca.pem\" }";
        assert!(!problems(&format!("listen = \"0.0.0.0:4001\"\n{tls}")).contains(&"listen".to_owned()));
        assert!(problems(&format!("connect = \"10.0.0.5:4000\"\n{tls}")).contains(&"tls".to_owned()));
        assert_eq!(problems("connect = \"10.0.0.5:4000\"\nmax-message-size = \"1KiB\""), ["max-message-size"]);
    }
}
