//! `wardgate collect`: takes messages from an MQTT broker into a folder, and sends the gateways their receipts.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure, OrExit};
use super::table::{bytes, count};
use super::terminal::{note, plain};
use crate::collector::{Collection, Progress, collect};
use crate::system::tls::ClientTls;
use crate::upstream::opening::Opener;
use crate::values::{HostPort, SecretRef};

/// How often the progress line is written: to a terminal, and to a file or journal.
const PROGRESS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Takes messages from an MQTT broker, makes a file of each, and sends the gateways their receipts.
///
/// The other end of `[upstream.<name>.mqtt]`. Parts are put together, digests verified, sealed messages opened, second copies
/// dropped by their id. A message is written, synced and renamed before its gateway gets a receipt (`receipt = "collector"`)
/// and before the broker gets its acknowledgement. What can't be stored is not acknowledged.
///
/// The folder: `<site>/<gateway>/<source>/<received>-<id>.hl7` (dcm, json, txt, bin; `.age` at the end when it could not be
/// opened), appearing whole; take files away or delete them as you like. `received.jsonl` has a line of JSON for each message.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate collect --broker broker.example:8883 --tls-ca ca.pem --cert me.pem --key me.key --into /srv/in
  wardgate collect --broker broker.example:8883 --tls-ca ca.pem --username me --password-file pw \\
      --identity key.txt --into /srv/in
      opens what was sealed with `seal-to`; key.txt is made by `age-keygen`
  wardgate collect --broker 127.0.0.1:1883 --plain --topic 'wardgate/st-marys/+/+/+' --into in
      one site only; several collectors share the work by topic, each with its own --client-id

Safe: it changes nothing but its folder. Ctrl-C or SIGTERM ends it after what is in hand; the broker keeps what comes meanwhile
for 30 days, as far as its own limits allow.")]
pub struct CollectArgs {
    /// The broker.
    #[arg(long, value_name = "HOST:PORT")]
    broker: HostPort,
    /// CA certificates that are trusted, PEM.
    #[arg(long, value_name = "FILE", required_unless_present = "plain", conflicts_with = "plain")]
    tls_ca: Option<PathBuf>,
    /// Our certificate for mutual TLS, PEM.
    #[arg(long, value_name = "FILE", requires = "key", requires = "tls_ca")]
    cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The name that the broker's certificate must carry, when it is not the host.
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    server_name: Option<String>,
    /// Without TLS: everyone on the way can read what is not sealed.
    #[arg(long)]
    plain: bool,
    /// User name at the broker.
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// A file with the password.
    #[arg(long, value_name = "FILE", requires = "username")]
    password_file: Option<PathBuf>,
    /// The session's name at the broker; another one for each collector.
    #[arg(long, value_name = "ID", default_value = "wardgate-collect")]
    client_id: String,
    /// What to take; the levels are root, site, gateway, source and log.
    #[arg(long, value_name = "FILTER", default_value = "wardgate/+/+/+/+")]
    topic: String,
    /// Identities that open sealed messages, as `age-keygen` writes them.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The folder for messages; made when it is not there.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

/// Runs `wardgate collect` until it is told to end.
///
/// # Errors
/// [`Exit::Config`] for wrong certificates or identities, [`Exit::CannotCreate`] when the folder can't be used.
pub async fn run(args: CollectArgs) -> Result<(), Failure> {
    let collection = args.collection()?;
    let (progress, stop) = (Progress::default(), CancellationToken::new());
    let mut term = signal(SignalKind::terminate()).or_exit(Exit::Software, "can't wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Software, "can't wait for signals")?;
    let work = collect(&collection, &progress, &stop);
    tokio::pin!(work);
    let terminal = std::io::stderr().is_terminal();
    let mut ticks = tokio::time::interval(if terminal { PROGRESS.0 } else { PROGRESS.1 });
    let mut shown = String::new();
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            _ = term.recv() => stop.cancel(),
            _ = interrupt.recv() => stop.cancel(),
            _ = ticks.tick() => show(&line(&progress), &mut shown, terminal),
        }
    };
    show(&line(&progress), &mut shown, terminal);
    if terminal {
        note("");
    }
    ended.or_exit(Exit::CannotCreate, "can't collect")
}

impl CollectArgs {
    fn collection(self) -> Result<Collection, Failure> {
        let opener = self.identity.as_deref().map(Opener::from_file).transpose();
        let tls = self.tls_ca.map(|ca| ClientTls {
            ca: SecretRef::File(ca),
            certificate: self.cert.map(SecretRef::File),
            key: self.key.map(SecretRef::File),
            server_name: self.server_name,
        });
        // Wrong files are told at once, not at the first connection.
        if let Some(tls) = &tls {
            tls.connector().or_exit(Exit::Config, "--tls-ca, --cert and --key can't be used")?;
        }
        Ok(Collection {
            broker: self.broker,
            tls,
            client_id: self.client_id,
            username: self.username,
            password: self.password_file.map(SecretRef::File),
            topic: self.topic,
            into: self.into,
            opener: opener.or_exit(Exit::Config, "--identity can't be used")?,
        })
    }
}

fn line(progress: &Progress) -> String {
    let trouble = progress.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let state = match trouble {
        Some(trouble) => plain(&trouble),
        None if progress.connects.value() == 0 => "connecting".into(),
        None => "connected".into(),
    };
    let numbers = [progress.stored.value(), progress.repeats.value(), progress.refused.value()].map(count);
    let [stored, repeats, refused] = numbers;
    format!("{stored} stored ({}), {repeats} second copies, {refused} refused; {state}", bytes(progress.bytes.value()))
}

/// A terminal's line is drawn over itself; elsewhere only what changed is written.
fn show(line: &str, shown: &mut String, terminal: bool) {
    if terminal {
        eprint!("\r\x1b[K{line}");
    } else if line != shown {
        note(line);
    }
    line.clone_into(shown);
}
