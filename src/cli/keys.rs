//! `wardgate keys`: a new epoch key, or the end of all keys.

use clap::{Args, Subcommand};

use super::exit::Failure;
use super::terminal::{confirm, plain, say};
use super::{SocketArgs, say_json};
use crate::admin::answers::KeysReport;
use crate::admin::verbs::{DestroyRequest, Request};
use crate::values::Name;

/// Makes a new key for what is stored from now on, or destroys the root key and with it all that is stored.
///
/// Everything on this box's disk is encrypted; the service makes and rotates its keys itself. One needs this command after a
/// suspicion (rotate), and before a box leaves the house (destroy).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate keys rotate
  wardgate keys destroy --gateway icu-3-east      erases the box: nothing in its spool can ever be read again

Safe: rotate, at any time. Destroy can't be undone, not by the vendor and not by the recovery recipients: their file and the
keyring go, too. Export first what is still wanted.")]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    Rotate(RotateArgs),
    Destroy(DestroyArgs),
}

/// Makes a new epoch key: what is stored from now on can't be read with an older one.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  wardgate keys rotate        safe at any time; nothing stops, what is stored stays readable to the service")]
struct RotateArgs {
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Destroys the root key: erases the box. What was not delivered is lost.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate status                                 is everything delivered?
  wardgate keys destroy --gateway icu-3-east      asks once more, then erases
  wardgate keys destroy --gateway icu-3-east --yes")]
struct DestroyArgs {
    /// This gateway's name, so that nobody erases the wrong box.
    #[arg(long)]
    gateway: Name,
    /// Do it without being asked.
    #[arg(long)]
    yes: bool,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `wardgate keys`.
///
/// # Errors
/// [`Failure`] for the person at the terminal.
pub async fn run(args: KeysArgs) -> Result<(), Failure> {
    match args.command {
        KeysCommand::Rotate(args) => report(&Request::KeysRotate, args.json, &args.socket).await,
        KeysCommand::Destroy(args) => {
            let question = format!(
                "the spool of {} will be unreadable for ever, with all that is not delivered yet",
                args.gateway
            );
            confirm(&question, args.gateway.as_str(), args.yes)?;
            let request = Request::KeysDestroy(DestroyRequest { gateway: args.gateway });
            report(&request, args.json, &args.socket).await
        }
    }
}

async fn report(request: &Request, json: bool, socket: &SocketArgs) -> Result<(), Failure> {
    let report: KeysReport = socket.connect().await?.ask(request).await?;
    match json {
        true => say_json(&report),
        false => say(&plain(&report.text)),
    }
}
