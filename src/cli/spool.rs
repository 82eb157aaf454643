//! `wardgate spool`: what the spool holds, whether it is sound, and how messages travel without a network.
//!
//! An export leaves the service sealed; an import is unsealed here, so that the identity never reaches the service.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use tokio::sync::mpsc;

use super::dead::new_private_file;
use super::exit::{Exit, Failure, OrExit};
use super::find::{self, FindArgs};
use super::status_view;
use super::table::{bytes, count, counted};
use super::terminal::{self, confirm, plain, progress_over, say, size};
use super::{SocketArgs, say_json, when};
use crate::admin::answers::{Count, Damage, ExportReport, ImportReport, SpoolUsage, VerifyReport, When};
use crate::admin::ids::IdPattern;
use crate::admin::lines::DATA_PIECE_BYTES_MAX;
use crate::admin::operator::Saying;
use crate::admin::verbs::{ExportRequest, ImportRequest, Request};
use crate::upstream::opening::{OpenError, Opener};
use crate::values::Name;

/// Pieces that wait between the file and the socket.
const PIECES_WAITING_MAX: usize = 4;

/// Shows what the spool holds, checks it, and carries messages by hand when no network comes back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate spool usage
  wardgate spool verify
  wardgate spool accept-damage
  wardgate spool find --patient-id
  wardgate spool export --upstream engine --recipient age1... --to waiting.age
  wardgate spool import waiting.age --identity key.txt --upstream engine

Safe: usage, verify. Accept-damage, find, export and import need the right to change and are logged.")]
pub struct SpoolArgs {
    #[command(subcommand)]
    command: SpoolCommand,
}

#[derive(Debug, Subcommand)]
enum SpoolCommand {
    Usage(UsageArgs),
    Verify(VerifyArgs),
    AcceptDamage(AcceptDamageArgs),
    Find(FindArgs),
    Export(ExportArgs),
    Import(ImportArgs),
}

/// Shows how full the logs and their disk are, and what waits.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate spool usage
  wardgate spool usage --json | jq '.logs[] | .used / .quota'")]
struct UsageArgs {
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Reads every record and checks its seal; ends with 65 when something is damaged.
///
/// It changes nothing and the service goes on meanwhile, but the disk is read from end to end.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  wardgate spool verify       after a power cut that looked bad, or before trusting an old eMMC")]
struct VerifyArgs {
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Takes note of the damage that was found, once it was dealt with: its alarm ends, and its segments are given up.
///
/// What is readable of them is still delivered; a file in which damage was found is not used again. Damage in
/// another one raises the alarm again.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  wardgate spool accept-damage       after wardgate spool verify, when it is known what was lost")]
struct AcceptDamageArgs {
    /// Do it without being asked.
    #[arg(long)]
    yes: bool,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Writes messages with their ids to a file, sealed with age: for the day when no network comes back.
///
/// Marks nothing as delivered. The file can be imported on another box, any number of times, or opened by the recipients.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate spool export --upstream engine --recipient age1... --to waiting.age       all that waits for the engine
  wardgate spool export --source monitors --from 2h --recipient age1... --to last2h.age
  wardgate spool export 5b0c...e1 --recipient age1... --to one.age

The file holds patient data, which only the owners of the recipients' keys can read.")]
struct ExportArgs {
    /// Ids of messages (whole, a beginning, or beginning...end); none: all that the filters leave.
    ids: Vec<IdPattern>,
    /// Only of this source.
    #[arg(long)]
    source: Option<Name>,
    /// Only those that wait for this upstream or are dead for it.
    #[arg(long)]
    upstream: Option<Name>,
    /// Only those received at or after this time.
    #[arg(long, value_parser = when::parse)]
    from: Option<When>,
    /// Only those received before this time.
    #[arg(long = "until", value_parser = when::parse)]
    until: Option<When>,
    /// Who can open it: age recipients (age1...). May be given several times.
    #[arg(long = "recipient", required = true)]
    recipients: Vec<String>,
    /// The file, which must not be there yet.
    #[arg(long = "to", value_name = "FILE")]
    file: PathBuf,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Takes in what another box exported, for the upstreams that are named.
///
/// Importing the same file again stores nothing twice.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  wardgate spool import waiting.age --identity key.txt --upstream engine")]
struct ImportArgs {
    /// The sealed file.
    file: PathBuf,
    /// The file with the age identity (AGE-SECRET-KEY-1...) that opens it.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Where the messages go. May be given several times.
    #[arg(long = "upstream", required = true)]
    upstreams: Vec<Name>,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `wardgate spool`.
///
/// # Errors
/// [`Failure`] for the person at the terminal.
pub async fn run(args: SpoolArgs) -> Result<(), Failure> {
    match args.command {
        SpoolCommand::Usage(args) => usage(args).await,
        SpoolCommand::Verify(args) => verify(args).await,
        SpoolCommand::AcceptDamage(args) => accept_damage(args).await,
        SpoolCommand::Find(args) => find::run(args).await,
        SpoolCommand::Export(args) => export(args).await,
        SpoolCommand::Import(args) => import(args).await,
    }
}

async fn usage(args: UsageArgs) -> Result<(), Failure> {
    let usage: SpoolUsage = args.socket.connect().await?.ask(&Request::SpoolUsage).await?;
    match args.json {
        true => say_json(&usage),
        false => say(&usage_text(&usage, size().0)),
    }
}

fn usage_text(usage: &SpoolUsage, width: usize) -> String {
    let taken = usage.disk_total.saturating_sub(usage.disk_free);
    let disk = format!(
        "{}  on a disk with {} free of {}  {}",
        plain(&usage.path),
        bytes(usage.disk_free),
        bytes(usage.disk_total),
        status_view::bar(taken, usage.disk_total),
    );
    let lanes = status_view::lanes(&usage.lanes).map(|table| format!("\n\n{}", table.render(width)));
    format!("{disk}\n\n{}{}", status_view::logs(&usage.logs).render(width), lanes.unwrap_or_default())
}

async fn verify(args: VerifyArgs) -> Result<(), Failure> {
    let mut client = args.socket.connect().await?;
    let report = client.ask_and_hear(&Request::SpoolVerify, tell_progress).await;
    progress_over();
    let report: VerifyReport = report?;
    match args.json {
        true => say_json(&report)?,
        false => say(&verified(&report))?,
    }
    if report.damage.is_empty() {
        return Ok(());
    }
    let places = report.damage.iter().map(damage_text);
    let next = "\n  The alarm \"damaged\" is raised until a check finds nothing. What is sound goes on; the disk may be failing: \
                replace it soon";
    Err(Failure::new(Exit::Data, format!("the spool is damaged:{}{next}", places.collect::<String>())))
}

fn verified(report: &VerifyReport) -> String {
    let (records, segments) = (counted(report.records, "record"), counted(report.segments, "segment"));
    let found = match report.damage.len() {
        0 => "all sound".to_owned(),
        places => format!("{} damaged", counted(places as u64, "place")),
    };
    format!("{records} in {segments} read ({}): {found}", bytes(report.bytes))
}

/// A damaged place, on a line of its own.
pub(super) fn damage_text(damage: &Damage) -> String {
    let file = if damage.file.is_empty() { String::new() } else { format!(" (file {})", plain(&damage.file)) };
    format!("\n  {} segment {}: {}{file}", damage.log, damage.segment, plain(&damage.text))
}

async fn accept_damage(args: AcceptDamageArgs) -> Result<(), Failure> {
    let mut client = args.socket.connect().await?;
    let usage: SpoolUsage = client.ask(&Request::SpoolUsage).await?;
    let damaged: u64 = usage.logs.iter().map(|log| log.quarantined).sum();
    if damaged == 0 {
        return if args.json {
            say_json(&Count::default())
        } else {
            say("there is no damage that nobody took note of")
        };
    }
    let question = format!("the damage in {} segments will be shown no more", count(damaged));
    confirm(&question, "accept", args.yes)?;
    let done: Count = client.ask(&Request::SpoolAcceptDamage).await?;
    match args.json {
        true => say_json(&done),
        false => say(&format!("the damage in {} segments is taken note of", count(done.changed))),
    }
}

async fn export(args: ExportArgs) -> Result<(), Failure> {
    let request = ExportRequest {
        ids: args.ids,
        source: args.source,
        upstream: args.upstream,
        from: args.from,
        to: args.until,
        recipients: args.recipients,
    };
    let mut client = args.socket.connect().await?;
    let file = new_private_file(&args.file)?;
    let outcome = export_into(&mut client, request, file, &args.file).await;
    progress_over();
    // Made by us a moment ago, and either not whole or without any message in it.
    if outcome.as_ref().map_or(true, |report| report.messages == 0) {
        std::fs::remove_file(&args.file).or_exit(Exit::Io, format!("can't remove {}", args.file.display()))?;
    }
    let report = outcome?;
    if report.messages == 0 && report.unknown.is_empty() && report.damaged == 0 {
        return Err(Failure::new(Exit::Data, "no message that is kept here matches: no file was made"));
    }
    match args.json {
        true => say_json(&report)?,
        false if report.messages == 0 => say("0 messages could be sealed: no file was made")?,
        false => say(&format!(
            "{} ({}) sealed into {}; nothing was marked as delivered",
            counted(report.messages, "message"),
            bytes(report.bytes),
            args.file.display()
        ))?,
    }
    match (report.damaged, report.unknown.as_slice()) {
        (0, []) => Ok(()),
        (0, unknown) => {
            let ids: Vec<String> = unknown.iter().map(ToString::to_string).collect();
            Err(Failure::new(Exit::Data, format!("not kept here (any more): {}", ids.join(", "))))
        }
        (damaged, _) => {
            let text = format!(
                "{} can't be read: what is damaged is not in it; see wardgate spool verify",
                counted(damaged, "place")
            );
            Err(Failure::new(Exit::Data, text))
        }
    }
}

async fn export_into(
    client: &mut crate::admin::client::ControlClient,
    request: ExportRequest,
    mut file: std::fs::File,
    path: &Path,
) -> Result<ExportReport, Failure> {
    let write = |saying| match saying {
        Saying::Data(bytes) => std::io::Write::write_all(&mut file, &bytes)
            .map_err(|error| format!("can't write {}: {error}", path.display())),
        Saying::Progress(_) => tell_progress(saying),
    };
    let report = client.ask_and_hear(&Request::SpoolExport(request), write).await?;
    file.sync_all().or_exit(Exit::Io, format!("can't write {}", path.display()))?;
    Ok(report)
}

async fn import(args: ImportArgs) -> Result<(), Failure> {
    let opened = unsealed(&args.file, &args.identity)?;
    let mut client = args.socket.connect().await?;
    let (sender, pieces) = mpsc::channel(PIECES_WAITING_MAX);
    let reading = tokio::task::spawn_blocking(move || read_pieces(opened, &sender));
    let request = Request::SpoolImport(ImportRequest { upstreams: args.upstreams });
    let report: Result<ImportReport, _> = client.ask_and_feed(&request, pieces, tell_progress).await;
    progress_over();
    reading.await.or_exit(Exit::Software, "can't read the file")?;
    let report = report?;
    match args.json {
        true => say_json(&report),
        false => say(&format!(
            "{} stored ({}), {} already here",
            counted(report.stored, "message"),
            bytes(report.bytes),
            count(report.repeats)
        )),
    }
}

/// The plain bytes of a sealed file, as they are read.
fn unsealed(file: &Path, identity: &Path) -> Result<Box<dyn Read + Send>, Failure> {
    let opener = Opener::from_file(identity).or_exit(Exit::Config, "can't use the identity")?;
    let sealed = std::fs::File::open(file).or_exit(Exit::Io, format!("can't open {}", file.display()))?;
    let opened = opener.open(sealed).map_err(|error| {
        let exit = if matches!(error, OpenError::NotForUs) { Exit::NoPermission } else { Exit::Data };
        Failure::new(exit, format!("{}: {error}", file.display()))
    })?;
    Ok(Box::new(opened))
}

/// Passes the bytes on until the end or until nobody wants them; a file that is torn or changed ends in its error.
fn read_pieces(mut from: impl Read, to: &mpsc::Sender<Result<Bytes, String>>) {
    let mut buffer = vec![0; DATA_PIECE_BYTES_MAX];
    loop {
        let piece = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => Ok(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())),
            Err(error) => Err(format!("the sealed file can't be read to its end: {error}")),
        };
        let last = piece.is_err();
        if to.blocking_send(piece).is_err() || last {
            return;
        }
    }
}

/// Shows how far a job is.
pub(super) fn tell_progress(saying: Saying) -> Result<(), String> {
    if let Saying::Progress(progress) = saying {
        let total = progress.total.map(|total| format!(" of {}", count(total))).unwrap_or_default();
        terminal::progress(&format!("  {}{total} {}", count(progress.done), progress.what));
    }
    Ok(())
}
