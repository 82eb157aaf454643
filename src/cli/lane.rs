//! `wardgate lane`: what becomes of lanes that stand still until a person decides (`when-refused = "hold"`).
//!
//! It shows no content and decides nothing by itself; the service logs each decision with the uid of the one who took it.

use clap::{Args, Subcommand};

use super::exit::Failure;
use super::terminal::{confirm, say};
use super::{SocketArgs, say_json};
use crate::admin::answers::Released;
use crate::admin::verbs::{LaneSelection, Request};
use crate::values::Name;

/// Decides about lanes that stand still because their upstream refused a message.
///
/// Only upstreams with when-refused = "hold" have such lanes: order matters more there than going on. `wardgate status` shows
/// them with the reason. A lane is what goes from one source to one upstream.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate status                                       which lanes stand still, and why?
  wardgate lane retry --upstream engine                 the cause is mended: send the message again
  wardgate lane set-aside --upstream engine --source monitors
      make the message a dead letter (wardgate dead list) and go on with the next

Both are logged with your uid. Neither loses a message: one that is set aside is kept until it is retried or discarded.")]
pub struct LaneArgs {
    #[command(subcommand)]
    command: LaneCommand,
}

#[derive(Debug, Subcommand)]
enum LaneCommand {
    Retry(RetryArgs),
    SetAside(SetAsideArgs),
}

/// Sends the message that a lane stands at again, with all its attempts.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate lane retry --upstream engine
  wardgate lane retry --upstream engine --source monitors")]
struct RetryArgs {
    #[command(flatten)]
    which: WhichArgs,
}

/// Makes the message that a lane stands at a dead letter; the lane goes on with the next.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate lane set-aside --upstream engine --source monitors
  wardgate lane set-aside --upstream engine --yes       every lane to it that stands still")]
struct SetAsideArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Do it without being asked.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct WhichArgs {
    /// Lanes to this upstream.
    #[arg(long)]
    upstream: Name,
    /// Only the lane from this source.
    #[arg(long)]
    source: Option<Name>,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `wardgate lane`.
///
/// # Errors
/// [`Failure`] for the person at the terminal; [`Exit::Data`](super::exit::Exit::Data) when no such lane stands still.
pub async fn run(args: LaneArgs) -> Result<(), Failure> {
    match args.command {
        LaneCommand::Retry(RetryArgs { which }) => {
            let request = Request::LaneRetry(which.selection());
            decide(which, request, "its message is sent again").await
        }
        LaneCommand::SetAside(SetAsideArgs { which, yes }) => {
            let from = which.source.as_ref().map(|source| format!(" from {source}")).unwrap_or_default();
            let question = format!(
                "the message that each held lane{from} to {} stands at becomes a dead letter, and those behind it go first",
                which.upstream
            );
            confirm(&question, "set aside", yes)?;
            let request = Request::LaneSetAside(which.selection());
            decide(which, request, "its message becomes a dead letter (wardgate dead list)").await
        }
    }
}

async fn decide(which: WhichArgs, request: Request, what: &str) -> Result<(), Failure> {
    let released: Released = which.socket.connect().await?.ask(&request).await?;
    if which.json {
        return say_json(&released);
    }
    let lines: Vec<String> =
        released.sources.iter().map(|source| format!("{source} > {}: {what}", which.upstream)).collect();
    say(&lines.join("\n"))
}

impl WhichArgs {
    fn selection(&self) -> LaneSelection {
        LaneSelection { upstream: self.upstream.clone(), source: self.source.clone() }
    }
}
