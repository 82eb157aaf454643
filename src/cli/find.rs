//! `wardgate spool find`: which messages that are held are about a patient or an order.

use std::io::{BufRead, Read};

use clap::{ArgGroup, Args};

use super::exit::{Exit, Failure};
use super::spool::tell_progress;
use super::table::{Column, Table, bytes, count, counted};
use super::terminal::{ask_hidden, note, progress_over, say, size};
use super::{SocketArgs, say_json};
use crate::admin::answers::{FindReport, FoundMessage};
use crate::admin::verbs::{FindRequest, Private, Request};
use crate::values::Name;

/// A number is no longer than this, in bytes: DICOM's have 64 characters.
const NUMBER_BYTES_MAX: u64 = 1024;

/// Finds the images of a patient or an order among all that is held: what waits, what is dead, delivered originals that are still kept.
///
/// Only keyed hashes of these numbers are kept beside the sealed images, so they must be given exactly as the device wrote them, upper and
/// lower case too. What came from another box or an earlier version has its header read, which takes longer.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").args(["patient_id", "accession"]).required(true).multiple(true)))]
#[command(after_help = "\
Examples:
  wardgate spool find --patient-id                 asks for the number, or reads it from a pipe
  wardgate spool find --accession 17               the history of the shell has it then, and other users see it while this runs
  wardgate spool find --patient-id --json | jq -r '.messages[].id'     ids for spool export

It tells whether a patient was here: it needs the right to change, and the service logs that you asked, not for whom.")]
pub struct FindArgs {
    /// The patient's number, (0010,0020); asked for, or read from a pipe, when it does not stand here.
    #[arg(long, value_name = "ID", num_args = 0..=1, default_missing_value = "-")]
    patient_id: Option<String>,
    /// The accession number, (0008,0050); as the patient's.
    #[arg(long, value_name = "NUMBER", num_args = 0..=1, default_missing_value = "-")]
    accession: Option<String>,
    /// Only of this source.
    #[arg(long)]
    source: Option<Name>,
    /// At most so many, the newest first.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `wardgate spool find`.
///
/// # Errors
/// [`Failure`] for the person at the terminal.
pub async fn run(args: FindArgs) -> Result<(), Failure> {
    let FindArgs { patient_id, accession, source, limit, json, socket } = args;
    let patient_id = patient_id.map(|given| number(given, "patient id")).transpose()?;
    let accession = accession.map(|given| number(given, "accession number")).transpose()?;
    let request = Request::SpoolFind(FindRequest { patient_id, accession, source, limit: usize::try_from(limit).ok() });
    let mut client = socket.connect().await?;
    let report = client.ask_and_hear(&request, tell_progress).await;
    progress_over();
    let report: FindReport = report?;
    match json {
        true => say_json(&report)?,
        false => say(&text(&report, size().0))?,
    }
    if report.damaged > 0 {
        note("some places are damaged: what was stored there is not among these. See wardgate spool verify");
    }
    Ok(())
}

/// What was given, or what stands on standard input. There, several numbers are lines in the order of the options above.
fn number(given: String, what: &str) -> Result<Private, Failure> {
    if given != "-" {
        return Ok(Private(given));
    }
    let unreadable = |error: std::io::Error| Failure::new(Exit::Io, format!("can't read the {what}: {error}"));
    let line = match ask_hidden(&format!("{what}: ")).map_err(unreadable)? {
        Some(typed) => String::from_utf8_lossy(&typed).into_owned(),
        None => {
            let mut line = Vec::new();
            std::io::stdin().lock().take(NUMBER_BYTES_MAX).read_until(b'\n', &mut line).map_err(unreadable)?;
            String::from_utf8_lossy(&line).into_owned()
        }
    };
    match line.trim() {
        "" => Err(Failure::new(Exit::Usage, format!("no {what} on standard input"))),
        line => Ok(Private(line.to_owned())),
    }
}

fn text(report: &FindReport, width: usize) -> String {
    if report.total == 0 {
        return "nothing that is held here".to_owned();
    }
    let columns = [
        Column::left("ID"),
        Column::left("RECEIVED").optional(2),
        Column::left("SOURCE"),
        Column::right("SIZE").optional(1),
        Column::left("STANDS").shrinking(),
    ];
    let mut table = Table::new(columns);
    for message in &report.messages {
        table.row([
            message.id.to_string(),
            message.received.to_string(),
            message.source.to_string(),
            bytes(message.bytes),
            standing(message),
        ]);
    }
    let listed = u64::try_from(report.messages.len()).unwrap_or(u64::MAX);
    let more = match report.total.saturating_sub(listed) {
        0 => String::new(),
        more => format!("\n… and {} more: --limit", count(more)),
    };
    format!("{}{more}\n{}", table.render(width), counted(report.total, "message"))
}

/// Whom a message waits for, and who refused it. Of one that is with nobody any more only the record of that is left: a receipt, or a
/// person's decision.
fn standing(message: &FoundMessage) -> String {
    let names = |names: &[Name]| names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let parts = [("waits for", &message.waiting), ("refused by", &message.dead)];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, upstreams)| !upstreams.is_empty())
        .map(|(what, upstreams)| format!("{what} {}", names(upstreams)))
        .collect();
    if parts.is_empty() { "delivered, unless a person discarded it".to_owned() } else { parts.join("; ") }
}
