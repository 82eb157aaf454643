//! `wardgate probe`: asks a system on the network for one answer and shows it, decoded.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::{Exit, Failure, OrExit};
use super::mllp_client::{Answer, MllpClient, MllpError};
use super::patients::patient;
use super::probe_dicom::{DicomArgs, dicom};
use super::say_json;
use super::terminal::{plain, say};
use crate::system::tls::{ClientTls, Connector};
use crate::values::{HostPort, SecretRef, Span};
use crate::wire::ack::Code;

/// Tests a connection from this box: is it reachable, does it answer, what does it say?
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  wardgate probe mllp engine.st-marys.example:2575
  wardgate probe dicom pacs.st-marys.example:11112 --called PACS

Safe for this box. The system that is probed gets a real message about an invented patient (DICOM: with
--store only): ask its owner first.")]
pub struct ProbeArgs {
    #[command(subcommand)]
    command: ProbeCommand,
}

#[derive(Debug, Subcommand)]
enum ProbeCommand {
    Mllp(MllpArgs),
    Dicom(Box<DicomArgs>),
}

/// TLS of a probe's connection.
#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    /// Use TLS and trust this CA (PEM).
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Our certificate, for a peer that wants one (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    tls_certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_certificate"])]
    tls_key: Option<PathBuf>,
    /// The name in the peer's certificate, when it is not the host in ADDRESS.
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    tls_name: Option<String>,
}

/// Sends one HL7 v2 message with an invented patient over MLLP and shows the acknowledgement and the time that it took.
///
/// Works against an engine upstream and against a gateway's own listener. The message is an ORU^R01 with MSH-11 = T (training).
/// A gateway stores it and forwards it as any other message.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate probe mllp 127.0.0.1:2575                              this box's own listener
  wardgate probe mllp engine.example:2575 --tls-ca hospital-ca.pem
  wardgate probe mllp engine.example:2575 --tls-ca ca.pem --tls-certificate box.pem --tls-key box.key
  wardgate probe mllp 127.0.0.1:2575 --enhanced --json            ask for a commit acknowledgement (MSH-15 AL)

Ends with 0 when the message was accepted, 65 when it was refused or the answer is wrong, 69 when nobody answers.")]
struct MllpArgs {
    /// Host and port.
    #[arg(value_name = "ADDRESS")]
    address: HostPort,
    #[command(flatten)]
    tls: TlsArgs,
    /// Ask for a commit acknowledgement only (MSH-15 AL, MSH-16 NE), as bedside devices do.
    #[arg(long)]
    enhanced: bool,
    /// How long to wait, for the connection and for the answer.
    #[arg(long, default_value = "10s", value_name = "TIME")]
    timeout: Span,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Finding {
    address: String,
    tls: bool,
    control_id: String,
    sent_bytes: usize,
    connected_ms: f64,
    answered_ms: f64,
    code: &'static str,
    accepted: bool,
    correlated: bool,
    text: String,
    segments: Vec<String>,
}

/// Runs `wardgate probe`.
///
/// # Errors
/// [`Exit::Unavailable`] when nobody answers, [`Exit::Data`] when the answer is no acceptance, [`Exit::Config`] for
/// certificates that can't be used.
pub async fn run(args: ProbeArgs) -> Result<(), Failure> {
    match args.command {
        ProbeCommand::Mllp(args) => mllp(args).await,
        ProbeCommand::Dicom(args) => dicom(*args).await,
    }
}

async fn mllp(args: MllpArgs) -> Result<(), Failure> {
    let connector = args.tls.connector()?;
    let limit = args.timeout.0;
    let begun = Instant::now();
    let connected = MllpClient::connect(&args.address, connector.as_ref(), limit).await;
    let mut client = connected.map_err(failure)?;
    let connected = begun.elapsed();
    let (control_id, message) = message(jiff::Timestamp::now(), args.enhanced);
    let begun = Instant::now();
    let answer = client.ask(message.as_bytes(), limit).await.map_err(failure)?;
    let finding = Finding {
        address: args.address.to_string(),
        tls: connector.is_some(),
        sent_bytes: message.len(),
        connected_ms: milliseconds(connected),
        answered_ms: milliseconds(begun.elapsed()),
        code: answer.code.as_str(),
        accepted: answer.code.is_positive(),
        correlated: answer.control_id == control_id.as_bytes(),
        text: plain(&answer.text),
        segments: segments(&answer),
        control_id,
    };
    match args.json {
        true => say_json(&finding)?,
        false => say(&told(&finding, answer.code))?,
    }
    verdict(&finding, &answer)
}

impl TlsArgs {
    /// TLS as the options want it; `None` without a CA.
    pub(super) fn client(&self) -> Result<Option<ClientTls>, Failure> {
        let Some(ca) = &self.tls_ca else { return Ok(None) };
        let absolute = |path: &PathBuf| {
            let path = std::path::absolute(path).or_exit(Exit::Config, format!("can't use {}", path.display()))?;
            Ok::<_, Failure>(SecretRef::File(path))
        };
        Ok(Some(ClientTls {
            ca: absolute(ca)?,
            certificate: self.tls_certificate.as_ref().map(absolute).transpose()?,
            key: self.tls_key.as_ref().map(absolute).transpose()?,
            server_name: self.tls_name.clone(),
        }))
    }

    /// The same, ready to dial: files that can't be used are told at once.
    pub(super) fn connector(&self) -> Result<Option<Connector>, Failure> {
        let tls = self.client()?.map(|tls| tls.connector());
        tls.transpose().or_exit(Exit::Config, "can't use TLS")
    }
}

/// A message about an invented patient, for training (MSH-11 T), with an observation that no one can take for a result.
pub(super) fn message(now: jiff::Timestamp, enhanced: bool) -> (String, String) {
    let patient = patient(0);
    let time = now.strftime("%Y%m%d%H%M%S+0000");
    let control_id = format!("WGPROBE{}", now.as_millisecond());
    let acknowledgements = if enhanced { "AL|NE" } else { "|" };
    let text = format!(
        "MSH|^~\\&|WARDGATE-PROBE|WARDGATE|||{time}||ORU^R01^ORU_R01|{control_id}|T|2.5.1|||{acknowledgements}||UNICODE UTF-8\r\
         PID|1||PROBE-0^^^WARDGATE^PI||{}^{}^^^^^L||{}|{}\r\
         OBR|1||{control_id}|PROBE^Connection test^L|||{time}\r\
         OBX|1|ST|PROBE^Connection test^L||test message, not a result||||||F|||{time}\r",
        patient.family, patient.given, patient.born, patient.sex
    );
    (control_id, text)
}

fn told(finding: &Finding, code: Code) -> String {
    let over = if finding.tls { "TLS" } else { "plain TCP" };
    let mut lines = vec![
        format!("{}  connected over {over} in {:.1} ms", finding.address, finding.connected_ms),
        format!("  sent      ORU^R01 {}, {} bytes, an invented patient", finding.control_id, finding.sent_bytes),
        format!("  answered  {} in {:.1} ms: {}", finding.code, finding.answered_ms, meaning(code)),
    ];
    if !finding.text.is_empty() {
        lines.push(format!("  it says   {}", finding.text));
    }
    lines.extend(finding.segments.iter().map(|segment| format!("    {segment}")));
    lines.join("\n")
}

/// HL7 table 0008, in words for the one who stands at the box.
fn meaning(code: Code) -> &'static str {
    match code {
        Code::Aa => "application accept: it took the message",
        Code::Ae => "application error: it could not process the message; it may later",
        Code::Ar => "application reject: it will never take this kind of message as it is",
        Code::Ca => "commit accept: the message is in its safe storage",
        Code::Ce => "commit error: it could not store the message now",
        Code::Cr => "commit reject: it will never take this kind of message as it is",
    }
}

fn segments(answer: &Answer) -> Vec<String> {
    let text = String::from_utf8_lossy(&answer.body);
    text.split(['\r', '\n']).filter(|segment| !segment.is_empty()).map(plain).collect()
}

fn verdict(finding: &Finding, answer: &Answer) -> Result<(), Failure> {
    if !finding.correlated {
        let text = format!(
            "the answer is about another message: MSA-2 is \"{}\" and should be \"{}\"; a gateway would not take it for a receipt",
            plain(&String::from_utf8_lossy(&answer.control_id)),
            finding.control_id
        );
        return Err(Failure::new(Exit::Data, text));
    }
    match finding.accepted {
        true => Ok(()),
        false => Err(Failure::new(Exit::Data, format!("{} was refused with {}", finding.control_id, finding.code))),
    }
}

fn failure(error: MllpError) -> Failure {
    let exit = match &error {
        MllpError::NotAnAnswer(_) | MllpError::TooLong => Exit::Data,
        MllpError::Dial(_) | MllpError::Broken(_) | MllpError::Closed | MllpError::Silent(_) => Exit::Unavailable,
    };
    Failure { exit, error: error.into() }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::hl7::Header;

    #[test]
    fn the_probes_message_is_for_training_and_about_nobody() {
        let (control_id, message) = message("2026-11-22T14:00:00Z".parse().unwrap(), true);
        let header = Header::read(message.as_bytes()).unwrap();
        assert_eq!(header.control_id(), control_id.as_bytes());
        assert_eq!([11, 15, 16].map(|number| header.field(number)), [&b"T"[..], b"AL", b"NE"]);
        assert!(control_id.len() <= 20, "HL7 2.5.1 allows 20");
        let text = hl7_parser::Message::parse(&message).unwrap();
        assert!(text.query("PID.5.1").unwrap().raw_value().starts_with("Test-"));
        assert_eq!(text.query("OBX.11").unwrap().raw_value(), "F");
    }
}
