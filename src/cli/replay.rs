//! `wardgate replay`: sends kept originals again to one upstream.

use clap::Args;

use super::exit::{Exit, Failure};
use super::spool::tell_progress;
use super::table::{bytes, counted};
use super::terminal::{confirm, note, progress_over, say};
use super::{SocketArgs, say_json, when};
use crate::admin::answers::{ReplayReport, When};
use crate::admin::verbs::{ReplayRequest, Request};
use crate::values::Name;

/// Sends messages again that were already delivered, from the originals that the spool keeps (`keep-delivered`).
///
/// For the day when an upstream lost what it had taken. The messages keep their ids, so that a receiver that drops second
/// copies by id (`wardgate collect`) takes only what it does not have; an HL7 engine gets them a second time.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate replay --source monitors --from 2h --to now --upstream engine --dry-run
      how many would it be?
  wardgate replay --source monitors --from '2026-11-22 13:00' --to '2026-11-22 14:30' --upstream engine
      send them, after what already waits for the engine

Safe: --dry-run only counts. Without it the upstream gets messages that it has had before. Times without an offset are UTC.")]
pub struct ReplayArgs {
    /// Messages of this source.
    #[arg(long)]
    source: Name,
    /// Received at or after: RFC 3339, "2026-11-22 13:00" (UTC), or an age like 2h.
    #[arg(long, value_parser = when::parse)]
    from: When,
    /// Received before.
    #[arg(long, value_parser = when::parse)]
    to: When,
    /// Send them to this upstream.
    #[arg(long)]
    upstream: Name,
    /// Only count.
    #[arg(long)]
    dry_run: bool,
    /// Do it without being asked.
    #[arg(long)]
    yes: bool,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `wardgate replay`: counts first, asks, then does it.
///
/// # Errors
/// [`Failure`] for the person at the terminal; [`Exit::Data`] when nothing in that range is kept.
pub async fn run(args: ReplayArgs) -> Result<(), Failure> {
    let mut client = args.socket.connect().await?;
    let mut request =
        ReplayRequest { source: args.source, from: args.from, to: args.to, upstream: args.upstream, dry_run: true };
    let counted: ReplayReport = client.ask(&Request::Replay(request.clone())).await?;
    if counted.incomplete {
        note("part of this time range is no longer kept: see keep-delivered in the configuration");
    }
    if args.dry_run {
        return if args.json { say_json(&counted) } else { say(&format!("{} would be sent again", text(&counted))) };
    }
    if counted.messages == 0 {
        return Err(Failure::new(Exit::Data, "no original of that source and time is kept: nothing to send"));
    }
    confirm(&format!("{} will be sent to {} again", text(&counted), request.upstream), "send", args.yes)?;
    request.dry_run = false;
    let done = client.ask_and_hear(&Request::Replay(request), tell_progress).await;
    progress_over();
    let done: ReplayReport = done?;
    if done.missing > 0 {
        let missing = super::table::counted(done.missing, "message");
        note(&format!("{} dropped by the full log before it could be sent", missing));
    }
    if args.json { say_json(&done) } else { say(&format!("{} will be sent again", text(&done))) }
}

fn text(report: &ReplayReport) -> String {
    let range = match (&report.first, &report.last) {
        (Some(first), Some(last)) => format!(", received {first} to {last}"),
        _ => String::new(),
    };
    format!("{} ({}{range})", counted(report.messages, "message"), bytes(report.bytes))
}
