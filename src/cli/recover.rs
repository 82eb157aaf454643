//! `wardgate recover`: reads the spool of a dead box with the recovery identity.
//!
//! Works on the disk (or a copy of it) without the service and changes nothing on it. What it writes is patient data in clear.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::exit::{Exit, Failure, OrExit};
use super::say_json;
use super::table::{bytes, count};
use super::terminal::{note, plain, say};
use crate::admin::answers::{Damage, Progress};

/// Reads what a dead box still held, with the recovery identity of the hospital.
///
/// The configuration named recovery recipients (spool.recovery) when the box was alive; the owner of one of their identities can
/// read its disk. Each message that was not yet delivered everywhere becomes a file, named by its time and id.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate recover --spool /mnt/deadbox/var/lib/wardgate --identity hospital-recovery.txt --into rescued
  wardgate recover --spool copy-of-the-spool --identity hospital-recovery.txt --into rescued --json

Safe: the spool is only read; work on a copy all the same. The files in --into hold patient data in clear (mode 0600).
Ends with 65 when something was damaged: what could be read has been written, and what could not is named.")]
pub struct RecoverArgs {
    /// The spool's folder.
    #[arg(long, value_name = "DIR")]
    pub spool: PathBuf,
    /// The file with the recovery identity (AGE-SECRET-KEY-1...).
    #[arg(long, value_name = "FILE")]
    pub identity: PathBuf,
    /// The folder for the messages, which must not be there yet.
    #[arg(long, value_name = "DIR")]
    pub into: PathBuf,
    /// Print JSON for a script.
    #[arg(long)]
    json: bool,
}

/// What was rescued.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rescued {
    /// Messages that were written.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Of these, such that some upstream had not taken yet.
    pub undelivered: u64,
    /// What could not be read.
    pub damage: Vec<Damage>,
}

/// Runs `wardgate recover`.
///
/// # Errors
/// [`Exit::CannotCreate`] when the folder is there already, [`Exit::Config`] for a wrong identity, [`Exit::Data`] when something was
/// damaged.
pub fn run(args: &RecoverArgs) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(&args.into);
    made.or_exit(Exit::CannotCreate, format!("can't make {}", args.into.display()))?;
    let rescued = rescue(args, &mut |progress| note(&format!("  {} {}", count(progress.done), plain(&progress.what))));
    if rescued.is_err() {
        // Only an empty folder goes: what was written stays.
        std::fs::remove_dir(&args.into).ok();
    }
    let rescued = rescued?;
    match args.json {
        true => say_json(&rescued)?,
        false => say(&told(&rescued, args))?,
    }
    if rescued.damage.is_empty() {
        return Ok(());
    }
    let places = rescued
        .damage
        .iter()
        .map(|damage| format!("\n  {} segment {}: {}", damage.log, damage.segment, plain(&damage.text)));
    Err(Failure::new(Exit::Data, format!("not everything could be read:{}", places.collect::<String>())))
}

fn told(rescued: &Rescued, args: &RecoverArgs) -> String {
    format!(
        "{} messages ({}) written into {}, {} of them were not delivered yet; they are patient data in clear",
        count(rescued.messages),
        bytes(rescued.bytes),
        args.into.display(),
        count(rescued.undelivered)
    )
}

/// Opens the spool with the identity, read-only, and writes each message into the folder, which is there and empty.
fn rescue(args: &RecoverArgs, _tell: &mut dyn FnMut(Progress)) -> Result<Rescued, Failure> {
    Err(Failure::new(Exit::Software, format!("{}: recovery is not part of this build", args.spool.display())))
}
