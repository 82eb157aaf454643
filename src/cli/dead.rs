//! `wardgate dead`: the messages that an upstream refused for good, and what becomes of them.
//!
//! Lists and shows without content. Only `show --body` writes content, to a file that only its owner can read; the service
//! counts that as a change and logs it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure, OrExit};
use super::status_view::wrap;
use super::table::{Column, Table, bytes, count, counted};
use super::terminal::{confirm, note, plain, say, size};
use super::{SocketArgs, say_json};
use crate::admin::answers::{Count, DeadLetter, DeadList};
use crate::admin::ids::IdPattern;
use crate::admin::operator::Saying;
use crate::admin::verbs::{DeadQuery, DeadRef, DeadSelection, Request};
use crate::values::Name;

/// Reasons that are told whole below a list.
const REASONS_MAX: usize = 10;

/// Lists, shows, retries and discards the messages that an upstream refused for good.
///
/// A message becomes a dead letter when an upstream answers that it will never take it, or kept blaming it (10 times, 15
/// minutes). It stays, encrypted, until a person decides; its lane has gone on without it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate dead list --upstream engine                  what did the engine refuse, and why?
  wardgate dead show 5b0c...e1                          all that is known about one, without its content
  wardgate dead retry --upstream engine --all           after the cause is mended: send them again

Safe: list, show. Retry sends again (an upstream that had taken a message after all gets a second copy).
Discard and show --body are logged with your uid; a discard can't be undone.")]
pub struct DeadArgs {
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    List(ListArgs),
    Show(ShowArgs),
    Retry(SelectArgs),
    Discard(DiscardArgs),
}

/// Lists dead letters, the newest first: id, source, upstream, reason.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate dead list
  wardgate dead list --source monitors --limit 20
  wardgate dead list --json | jq -r '.letters[].id'     ids for a script")]
struct ListArgs {
    /// Only of this source.
    #[arg(long)]
    source: Option<Name>,
    /// Only those that this upstream refused.
    #[arg(long)]
    upstream: Option<Name>,
    /// At most so many.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Shows one dead letter: reason, attempts, times and sizes, for each upstream that refused it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate dead show 5b0c...e1
  wardgate dead show 5b0c...e1 --body refused.hl7     write its content to a new file (mode 0600)

--body reveals patient data: it needs the right to change, and the service logs that you did it.")]
struct ShowArgs {
    /// The message's id, from `dead list`: whole, its beginning, or beginning...end.
    id: IdPattern,
    /// Also write the body to this file, which must not be there yet.
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Puts dead letters back into their lanes, to be sent again after what waits there.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate dead retry 5b0c...e1
  wardgate dead retry --all --upstream engine           all that the engine refused")]
struct SelectArgs {
    /// Ids of messages, from `dead list`: each whole, its beginning, or beginning...end.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<IdPattern>,
    /// Every dead letter that the filters leave.
    #[arg(long)]
    all: bool,
    /// Only of this source.
    #[arg(long)]
    source: Option<Name>,
    /// Only those that this upstream refused.
    #[arg(long)]
    upstream: Option<Name>,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Gives dead letters up for good. It can't be undone: export first what may still be wanted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate spool export --to refused.age --recipient age1... 5b0c...e1    first keep a sealed copy
  wardgate dead discard 5b0c...e1
  wardgate dead discard --all --upstream old-engine --yes")]
struct DiscardArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Do it without being asked.
    #[arg(long)]
    yes: bool,
}

/// Runs `wardgate dead`.
///
/// # Errors
/// [`Failure`] for the person at the terminal.
pub async fn run(args: DeadArgs) -> Result<(), Failure> {
    match args.command {
        DeadCommand::List(args) => list(args).await,
        DeadCommand::Show(args) => show(args).await,
        DeadCommand::Retry(args) => {
            let (json, socket) = (args.json, SocketArgs { socket: args.socket.socket.clone() });
            change(Request::DeadRetry(args.selection()), "put back, to be sent again", json, &socket).await
        }
        DeadCommand::Discard(DiscardArgs { select, yes }) => {
            confirm(&select.question(), "discard", yes)?;
            let (json, socket) = (select.json, SocketArgs { socket: select.socket.socket.clone() });
            change(Request::DeadDiscard(select.selection()), "discarded", json, &socket).await
        }
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let query = DeadQuery { source: args.source, upstream: args.upstream, limit: Some(args.limit) };
    let list: DeadList = args.socket.connect().await?.ask(&Request::DeadList(query)).await?;
    match args.json {
        true => say_json(&list),
        false => say(&list_text(&list, size().0)),
    }
}

fn list_text(list: &DeadList, width: usize) -> String {
    if list.letters.is_empty() {
        return "no dead letters".to_owned();
    }
    let columns = [
        Column::left("ID"),
        Column::left("GIVEN UP").optional(1),
        Column::left("SOURCE"),
        Column::left("UPSTREAM"),
        Column::right("TRIES").optional(2),
        Column::right("SIZE").optional(3),
        Column::left("REASON").shrinking(),
    ];
    let mut table = Table::new(columns);
    for letter in &list.letters {
        table.row([
            letter.id.to_string(),
            letter.given_up.to_string(),
            letter.source.to_string(),
            letter.upstream.to_string(),
            letter.attempts.to_string(),
            bytes(letter.bytes),
            letter.reason.clone(),
        ]);
    }
    let listed = u64::try_from(list.letters.len()).unwrap_or(u64::MAX);
    let more = match list.total.saturating_sub(listed) {
        0 => String::new(),
        more => format!("\n… and {} more: --limit, --source, --upstream", count(more)),
    };
    let shown = table.render(width);
    // What was refused is nothing without the reason: those that the column cut short follow whole.
    let reasons = if shown.contains('…') { reasons(list, width) } else { String::new() };
    format!("{shown}{more}{reasons}")
}

/// The reasons, each once, with how many letters have it.
fn reasons(list: &DeadList, width: usize) -> String {
    let mut known: Vec<(&Name, &str, u64)> = Vec::new();
    for letter in &list.letters {
        match known.iter_mut().find(|(upstream, reason, _)| **upstream == letter.upstream && *reason == letter.reason) {
            Some((_, _, times)) => *times += 1,
            None => known.push((&letter.upstream, &letter.reason, 1)),
        }
    }
    let lines = known.iter().take(REASONS_MAX).map(|(upstream, reason, times)| {
        wrap(&plain(&format!("{upstream} refused {}: {reason}", counted(*times, "message"))), width)
    });
    format!("\n\n{}", lines.collect::<Vec<_>>().join("\n"))
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let mut client = args.socket.connect().await?;
    let which = DeadRef { id: args.id };
    let letters: Vec<DeadLetter> = client.ask(&Request::DeadShow(which.clone())).await?;
    if let Some(path) = &args.body {
        let mut file = new_private_file(path)?;
        let write = |saying| match saying {
            Saying::Data(bytes) => {
                file.write_all(&bytes).map_err(|error| format!("can't write {}: {error}", path.display()))
            }
            Saying::Progress(_) => Ok(()),
        };
        let length: u64 = client.ask_and_hear(&Request::DeadBody(which), write).await?;
        file.sync_all().or_exit(Exit::Io, format!("can't write {}", path.display()))?;
        note(&format!("{} of content written to {}: patient data, mode 0600", bytes(length), path.display()));
    }
    match args.json {
        true => say_json(&letters),
        false => say(&letters.iter().map(letter_text).collect::<Vec<_>>().join("\n\n")),
    }
}

fn letter_text(letter: &DeadLetter) -> String {
    let rows = [
        ("id", letter.id.to_string()),
        ("source", letter.source.to_string()),
        ("upstream", letter.upstream.to_string()),
        ("reason", letter.reason.clone()),
        ("tried", counted(letter.attempts.into(), "time")),
        ("received", letter.received.to_string()),
        ("given up", letter.given_up.to_string()),
        ("size", size_text(letter.bytes)),
        ("content type", letter.content_type.clone()),
        ("log", letter.log.to_string()),
        ("flags", if letter.flags.is_empty() { "none".to_owned() } else { letter.flags.join(", ") }),
    ];
    rows.map(|(name, value)| format!("{name:<13} {}", plain(&value))).join("\n")
}

/// `1.1 KiB (1100 bytes)`; a short one is told once.
fn size_text(length: u64) -> String {
    let short = bytes(length);
    if short == format!("{length} B") { short } else { format!("{short} ({length} bytes)") }
}

async fn change(request: Request, done: &str, json: bool, socket: &SocketArgs) -> Result<(), Failure> {
    let answer: Count = socket.connect().await?.ask(&request).await?;
    match json {
        true => say_json(&answer)?,
        false => say(&format!("{} {done}", counted(answer.changed, "dead letter")))?,
    }
    match answer.unknown.as_slice() {
        [] => Ok(()),
        unknown => {
            let ids: Vec<String> = unknown.iter().map(ToString::to_string).collect();
            Err(Failure::new(Exit::Data, format!("not dead letters (any more): {}", ids.join(", "))))
        }
    }
}

impl SelectArgs {
    fn selection(self) -> DeadSelection {
        DeadSelection { ids: self.ids, all: self.all, source: self.source, upstream: self.upstream }
    }

    fn question(&self) -> String {
        let of =
            |what: &str, name: &Option<Name>| name.as_ref().map(|name| format!(" {what} {name}")).unwrap_or_default();
        let which = match self.all {
            true => format!("ALL dead letters{}{}", of("of", &self.source), of("for", &self.upstream)),
            false => counted(self.ids.len() as u64, "dead letter"),
        };
        format!("{which} will be discarded for good; export them first if they may still be wanted")
    }
}

/// A new file that only its owner can read; an existing one is never written over.
pub(super) fn new_private_file(path: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    if opened.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists) {
        let text = format!("{} is there already and was not touched: give another name", path.display());
        return Err(Failure::new(Exit::CannotCreate, text));
    }
    opened.or_exit(Exit::CannotCreate, format!("can't make {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Class, MessageId};

    fn letter() -> DeadLetter {
        DeadLetter {
            id: MessageId([0xab; 16]),
            log: Class::Clinical,
            source: "monitors".parse().unwrap(),
            upstream: "engine".parse().unwrap(),
            reason: "AR: unsupported message type\x1b[2J".into(),
            attempts: 10,
            received: "2026-11-22T14:00:00Z".parse().unwrap(),
            given_up: "2026-11-22T14:15:00Z".parse().unwrap(),
            bytes: 1_100,
            content_type: "application/hl7-v2".into(),
            flags: vec![],
        }
    }

    #[test]
    fn the_list_fits_the_terminal_and_tells_of_what_it_left_out() {
        let list = DeadList { total: 3, letters: vec![letter()] };
        let text = list_text(&list, 90);
        assert!(text.lines().all(|line| line.chars().count() <= 90), "{text}");
        assert!(text.starts_with("ID  "), "{text}");
        assert!(text.contains("… and 2 more: --limit, --source, --upstream"), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(text.contains("engine refused 1 message: AR: unsupported message type"), "{text}");
        assert_eq!(list_text(&DeadList::default(), 90), "no dead letters");
    }

    #[test]
    fn a_size_is_not_told_twice_in_the_same_words() {
        assert_eq!((size_text(348).as_str(), size_text(1_536).as_str()), ("348 B", "1.5 KiB (1536 bytes)"));
    }

    #[test]
    fn a_body_is_never_written_over_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("body.hl7");
        std::fs::write(&path, "something else").unwrap();
        assert_eq!(new_private_file(&path).unwrap_err().exit, Exit::CannotCreate);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "something else");
    }
}
