//! `wardgate keys`: a new epoch key, the end of all keys, and the hash of a password for the configuration.

use std::io::Read;

use clap::{Args, Subcommand};

use super::exit::{Exit, Failure};
use super::terminal::{ask_hidden, confirm, plain, say};
use super::{SocketArgs, say_json};
use crate::admin::answers::KeysReport;
use crate::admin::verbs::{DestroyRequest, Request};
use crate::system::password::{Hashed, PASSWORD_BYTES_MAX};
use crate::values::Name;

/// Makes a new key for what is stored from now on, destroys the root key and with it all that is stored, or makes the hash of a password.
///
/// Everything on this box's disk is encrypted; the service makes and rotates its keys itself. One needs this command after a
/// suspicion (rotate), and before a box leaves the house (destroy).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate keys rotate
  wardgate keys destroy --gateway icu-3-east      erases the box: nothing in its spool can ever be read again
  wardgate keys password                          asks for an MQTT client's password and prints its hash

Safe: rotate and password, at any time. Destroy can't be undone, not by the vendor and not by the recovery recipients: their file and the
keyring go, too. Export first what is still wanted.")]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    Rotate(RotateArgs),
    Destroy(DestroyArgs),
    Password(PasswordArgs),
}

/// Makes the argon2id hash of a password, for `password = "..."` of an MQTT client. The password is read from standard input.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate keys password                          asks for it, without showing it
  cat password.txt | wardgate keys password       the first line of the file, without its end

Safe: it needs no running service and changes nothing. The same password gives another hash each time.")]
struct PasswordArgs {}

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
        KeysCommand::Password(PasswordArgs {}) => password(),
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

fn password() -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| Failure::new(Exit::Io, format!("can't read the password: {error}"));
    let given = match ask_hidden("password: ").map_err(unreadable)? {
        Some(typed) => typed,
        None => {
            let mut bytes = Vec::new();
            let limit = u64::try_from(PASSWORD_BYTES_MAX).unwrap_or(u64::MAX) + 3;
            std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
            let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
            line.strip_suffix(b"\r").unwrap_or(line).to_vec()
        }
    };
    if given.is_empty() || given.len() > PASSWORD_BYTES_MAX {
        let text = format!("a password has 1 to {PASSWORD_BYTES_MAX} bytes: write it to standard input");
        return Err(Failure::new(Exit::Usage, text));
    }
    let hashed = Hashed::of(&given).map_err(|cause| Failure::new(Exit::Io, cause))?;
    say(hashed.as_str())
}
