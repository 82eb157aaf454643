//! `wardgate probe dicom`: asks an archive for an association and an echo; if told so, stores a made-up instance there and asks
//! for its storage commitment. Each step is shown with its time, the archive's words and what to do.
//!
//! It goes the same way as the upstream, so that what works here works there. Without `--store` it leaves nothing behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::probe::{TlsArgs, milliseconds};
use super::say_json;
use super::terminal::{plain, say};
use crate::envelope::{Body, Flags};
use crate::upstream::SendError;
use crate::upstream::dicom::Convert;
use crate::upstream::dicom::archive::{Archive, AssociationError};
use crate::upstream::dicom::association::{Association, Pair};
use crate::upstream::dicom::commitment::{self, Commitment, Reports, fresh_uid};
use crate::upstream::dicom::pool::{Nothing, Pool, Rules};
use crate::upstream::dicom::reports::{ReportsConfig, ReportsListener};
use crate::upstream::dicom::store::{self, Instance, StoreError};
use crate::values::{HostPort, Listen, Span};
use crate::wire::dicom::commitment::Reference;
use crate::wire::dicom::dimse::{Command, Status};
use crate::wire::dicom::file::FileMeta;
use crate::wire::dicom::sample::Sample;
use crate::wire::dicom::values::{
    AeTitle, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN, SECONDARY_CAPTURE, Uid, VERIFICATION,
};

/// The longest P-DATA that we take.
const MAX_PDU: u32 = 64 << 10;
/// Rows and columns of the instance.
const SIDE: u16 = 64;

/// Asks a DICOM archive for an association and an echo (C-ECHO), and with --store stores a made-up instance in it.
///
/// Works against an archive upstream and against a gateway's own listener.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate probe dicom pacs.example:11112 --called PACS                        are we let in?
  wardgate probe dicom pacs.example:11112 --called PACS --store                does it take an image?
  wardgate probe dicom pacs.example:11112 --called PACS --store --commit --listen 10.20.0.1:11113
  wardgate probe dicom pacs.example:2762 --called PACS --tls-ca hospital-ca.pem --json

--store leaves an image of the invented patient WARDGATE^TEST in the archive: ask its owner first.
Ends with 0 when every step succeeded, 65 when the archive refused one, 69 when nobody answers.")]
pub(super) struct DicomArgs {
    /// Host and port.
    #[arg(value_name = "ADDRESS")]
    address: HostPort,
    /// The AE title that is called: the archive's own.
    #[arg(long, value_name = "TITLE")]
    called: AeTitle,
    /// The AE title that calls: ours, as the archive knows us.
    #[arg(long, default_value = "WARDGATE", value_name = "TITLE")]
    calling: AeTitle,
    /// Store an instance of an invented patient.
    #[arg(long)]
    store: bool,
    /// Ask for its storage commitment and wait for the report.
    #[arg(long, requires = "store")]
    commit: bool,
    /// Where the archive may bring its report, as it knows us: most do so on an association of their own.
    #[arg(long, value_name = "ADDRESS", requires = "commit")]
    listen: Option<Listen>,
    #[command(flatten)]
    tls: TlsArgs,
    /// How long to wait, for each answer.
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
    called: String,
    calling: String,
    tls: bool,
    /// The instance that was stored, so that it can be found and deleted.
    sop_instance: Option<String>,
    steps: Vec<Step>,
}

/// One question and its answer.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Step {
    step: &'static str,
    ms: f64,
    good: bool,
    words: String,
}

/// Why a step did not succeed, and what the program ends with.
struct Bad(Exit, String);

impl From<AssociationError> for Bad {
    fn from(error: AssociationError) -> Self {
        let nobody =
            matches!(error, AssociationError::Dial(_) | AssociationError::Closed(_) | AssociationError::Silent { .. });
        Self(if nobody { Exit::Unavailable } else { Exit::Data }, error.to_string())
    }
}

/// Runs `wardgate probe dicom`.
pub(super) async fn dicom(args: DicomArgs) -> Result<(), Failure> {
    // Files that can't be used are a matter of the options and not of the archive.
    args.tls.connector()?;
    let limit = args.timeout.0;
    let archive = Archive {
        address: args.address.clone(),
        tls: args.tls.client()?,
        called: args.called.clone(),
        calling: args.calling.clone(),
        max_pdu: MAX_PDU,
        connect_timeout: limit,
        write_timeout: limit,
        response_timeout: limit,
    };
    let sop_instance = fresh_uid();
    let mut finding = Finding {
        address: args.address.to_string(),
        called: plain(args.called.as_str()),
        calling: plain(args.calling.as_str()),
        tls: archive.tls.is_some(),
        sop_instance: args.store.then(|| sop_instance.to_string()),
        steps: Vec::new(),
    };
    let bad = probe(&args, &archive, &sop_instance, &mut finding.steps).await.err();
    match args.json {
        true => say_json(&finding)?,
        false => say(&told(&finding))?,
    }
    match bad {
        None => Ok(()),
        Some(Bad(exit, words)) => Err(Failure::new(exit, words)),
    }
}

async fn probe(args: &DicomArgs, archive: &Archive, sop_instance: &Uid, steps: &mut Vec<Step>) -> Result<(), Bad> {
    let mut pairs = vec![Pair { abstract_syntax: VERIFICATION, transfer_syntax: IMPLICIT_LITTLE_ENDIAN }];
    if args.store {
        pairs.push(Pair { abstract_syntax: SECONDARY_CAPTURE, transfer_syntax: EXPLICIT_LITTLE_ENDIAN });
    }
    if args.commit {
        pairs.push(commitment::context());
    }
    let mut association = None;
    step(steps, "association", async {
        let opened = Association::open(archive, &pairs).await?;
        let words = accepted(&opened);
        association = Some(opened);
        Ok(words)
    })
    .await?;
    let Some(mut association) = association else { return Ok(()) };
    let asked = ask(args, archive, sop_instance, &mut association, steps).await;
    association.release().await;
    asked?;
    if args.commit {
        step(steps, "commitment", commit(args, archive, sop_instance)).await?;
    }
    Ok(())
}

/// Echo and store, over one association.
async fn ask(
    args: &DicomArgs,
    archive: &Archive,
    sop_instance: &Uid,
    association: &mut Association,
    steps: &mut Vec<Step>,
) -> Result<(), Bad> {
    step(steps, "echo", echo(association)).await?;
    if args.store {
        step(steps, "store", store(association, archive, sop_instance)).await?;
    }
    Ok(())
}

/// Does a step and notes how it went.
async fn step(
    steps: &mut Vec<Step>,
    name: &'static str,
    work: impl Future<Output = Result<String, Bad>>,
) -> Result<(), Bad> {
    let begun = Instant::now();
    let outcome = work.await;
    let (good, words) = match &outcome {
        Ok(words) => (true, words.clone()),
        Err(Bad(_, words)) => (false, words.clone()),
    };
    steps.push(Step { step: name, ms: milliseconds(begun.elapsed()), good, words });
    outcome.map(|_| ())
}

fn accepted(association: &Association) -> String {
    let peer = association.peer();
    let version = peer.implementation_version.as_deref().unwrap_or("an implementation that does not say its name");
    let longest = match peer.max_length {
        0 => "PDUs of any length".to_owned(),
        bytes => format!("PDUs of at most {bytes} bytes"),
    };
    format!("accepted by {}, which takes {longest}", plain(version))
}

/// The context that was proposed for a class, or the archive's reason.
fn context(association: &Association, class: &Uid) -> Result<u8, Bad> {
    let found = association.contexts().iter().find(|context| context.pair.abstract_syntax == *class);
    let refused = |why: String| Bad(Exit::Data, format!("the archive does not take {}: {why}", class.name()));
    match found.map(|context| context.outcome) {
        Some(Ok(id)) => Ok(id),
        Some(Err(result)) => Err(refused(result.to_string())),
        None => Err(refused("not proposed".to_owned())),
    }
}

async fn echo(association: &mut Association) -> Result<String, Bad> {
    let context = context(association, &VERIFICATION)?;
    let id = association.next_message_id();
    association.send(context, &Command::echo_request(id).bytes(), None).await?;
    let status = store::answer(association, id, &Nothing).await?.status.unwrap_or(Status::SUCCESS);
    match status.is_receipt() {
        true => Ok(status.to_string()),
        false => Err(Bad(Exit::Data, format!("the archive answered the echo with {status}"))),
    }
}

async fn store(association: &mut Association, archive: &Archive, sop_instance: &Uid) -> Result<String, Bad> {
    let context = context(association, &SECONDARY_CAPTURE)?;
    let file = file(sop_instance, &archive.calling);
    let bytes = file.len();
    let sent = |error: SendError| Bad(Exit::Data, error.to_string());
    let instance = Instance::open(&Body::whole(file.into())).await.map_err(sent)?;
    let status = match store::store(association, context, instance, &Nothing).await {
        Ok(status) => status,
        Err(StoreError::Association(error)) => return Err(error.into()),
        Err(error) => return Err(Bad(Exit::Software, error.to_string())),
    };
    store::verdict(status, Flags::default()).map_err(sent)?;
    Ok(format!("{status}: {bytes} bytes of the invented patient WARDGATE^TEST, instance {sop_instance}"))
}

/// A Part 10 file with an image of an invented patient.
fn file(sop_instance: &Uid, calling: &AeTitle) -> Vec<u8> {
    let (study, series) = (fresh_uid(), fresh_uid());
    let now = jiff::Zoned::now();
    let (date, time) = (now.strftime("%Y%m%d").to_string(), now.strftime("%H%M%S").to_string());
    let sample =
        Sample { sop_instance, study: &study, series: &series, number: 1, date: &date, time: &time, side: SIDE };
    let meta = FileMeta {
        sop_class: SECONDARY_CAPTURE,
        sop_instance: sop_instance.clone(),
        transfer_syntax: EXPLICIT_LITTLE_ENDIAN,
        source_ae: calling.clone(),
        receiving_ae: AeTitle::default(),
    };
    [meta.bytes(), sample.data_set()].concat()
}

/// Asks as the upstream does, over an association of its own.
async fn commit(args: &DicomArgs, archive: &Archive, sop_instance: &Uid) -> Result<String, Bad> {
    let failed = |error: SendError| match error {
        SendError::Disconnected { cause } => Bad(Exit::Unavailable, cause),
        other => Bad(Exit::Data, other.to_string()),
    };
    let listening = args.listen.is_some();
    let reports = Arc::new(Reports::new(listening));
    let mut beside = Vec::new();
    if let Some(listen) = args.listen {
        let config = ReportsConfig { listen, allow: Vec::new(), tls: None };
        let listener = ReportsListener::open(&config).await.map_err(failed)?;
        beside.push(tokio::spawn(listener.run(archive.clone(), Arc::clone(&reports))));
    }
    let rules = Rules { associations: 1, quiet: Duration::from_secs(1), standing: Vec::new(), convert: Convert::Never };
    let pool = Arc::new(Pool::new(archive.clone(), rules, Arc::clone(&reports) as _));
    let (commitment, wanted) = Commitment::new(args.timeout.0, listening);
    beside.push(tokio::spawn(commitment::ask(Arc::clone(&pool), reports, wanted)));
    let reference = Reference { sop_class: SECONDARY_CAPTURE, sop_instance: sop_instance.clone() };
    let outcome = commitment.of(reference).await;
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    pool.close().await;
    outcome.map_err(failed)?;
    Ok("the archive says that it keeps the instance".to_owned())
}

fn told(finding: &Finding) -> String {
    let over = if finding.tls { "TLS" } else { "plain TCP" };
    let mut lines =
        vec![format!("{}  we are {} and call {}, over {over}", finding.address, finding.calling, finding.called)];
    for step in &finding.steps {
        let mark = if step.good { "good" } else { "bad " };
        // What went wrong is told once, as the error that ends the program.
        let words = if step.good { plain(&step.words) } else { "see below".to_owned() };
        lines.push(format!("  {mark}  {:<11}  {:>8.1} ms  {words}", step.step, step.ms));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probes_instance_is_about_nobody_and_another_one_each_time() {
        let uid = fresh_uid();
        let file = file(&uid, &AeTitle::read(b"WARDGATE"));
        let (meta, data_set) = FileMeta::read(&file).unwrap();
        assert_eq!((meta.sop_instance, meta.sop_class), (uid, SECONDARY_CAPTURE));
        let text = String::from_utf8_lossy(&file[data_set..]);
        assert!(text.contains("WARDGATE^TEST") && text.contains("not a patient"));
    }
}
