//! `wardgate status`: how the running service stands, once or as a table that follows.

use std::time::Duration;

use clap::Args;

use super::exit::{Exit, Failure};
use super::terminal::{Screen, is_terminal, say, size};
use super::{SocketArgs, say_json, status_view};
use crate::admin::verbs::Request;
use crate::status::Status;

/// Between two tables.
const REFRESH: Duration = Duration::from_secs(1);

/// Shows how the running service stands: sources, upstreams, what waits, space, and what a person must do.
///
/// In a terminal the table follows until Ctrl-C; into a pipe or a file it is printed once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate status                                       follow it in the terminal
  wardgate status --once                                print it once
  wardgate status --json | jq '.lanes[] | select(.backlog > 0)'
  wardgate status --json | jq -e '.alarms == []'        for a monitoring system

What the columns say (all counters count since the start of the service, which the first line tells):
  sources    RECEIVED messages that came whole; STORED durably, of these; FLAGGED stored, but something about them was
             noticed (can't be parsed, rejected, ...); REPEATS second copies: acknowledged, not stored again; REFUSED this
             box could not store them (full, failed): the device was told \"not now\"; REJECTED the device was told that
             they are not acceptable (over a limit, no control id); AWAY connections and DICOM associations that were turned away
             (not allowed, unknown title, too many); OPEN connections now; LAST when the last message came
  studies    DICOM, the last ones: STUDY a label of this box for it, never its own UID; FROM the sender's AE title; INSTANCES
             stored; BEGAN with the first of them; QUIET FOR so long none came: compare with what the modality shows to see
             whether all arrived
  devices    those that plug in, and analysers: LINE its settings; UNPLUGGED how often; UNREADABLE frames that the profile does not
             know; QUERIES questions that nobody answers; GAPS records that tell of something missing; DROPPED readings that could
             not be stored; NOISE bytes that belong to no frame
  peers      DICOM, who associated last: PEER its AE title, AT its address; CALLS the title that it calls us by; SOFTWARE its
             implementation; CERTIFICATE whom it names; LAST when it came
  upstreams  DELIVERED the upstream took them; RETRIED sent again; DEAD became dead letters since the start; LAST receipt;
             LINK the connection now
  lanes      from a source to an upstream: WAITING messages, their SIZE, the age of the OLDEST; DEAD dead letters kept now
  logs       USED bytes of the files that hold something that must stay (it waits, is dead, or is kept for replay), of the QUOTA;
             SEGMENTS files of the log, each of 16 or 64 MiB, also those that wait to be used again: they keep their place on the disk;
             WRITTEN bytes that went to the disk since the start, of all files of the log; SYNCS how often it was waited for

A frame of a device that its profile can't read is shown as it came, so that the profile can be mended: keep it to yourself.
Beside such frames there is no patient data in it. Safe: it only reads.")]
pub struct StatusArgs {
    /// Print the snapshot as JSON, once.
    #[arg(long, conflicts_with_all = ["watch", "once"])]
    json: bool,
    /// Follow it even when standard output is no terminal: a table each second.
    #[arg(long)]
    watch: bool,
    /// Print the table once, also in a terminal.
    #[arg(long, conflicts_with = "watch")]
    once: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `wardgate status`.
///
/// # Errors
/// [`Exit::Unavailable`] when the service does not run or stops meanwhile, [`Exit::NoPermission`] without the right to ask.
pub async fn run(args: StatusArgs) -> Result<(), Failure> {
    let mut client = args.socket.connect().await?;
    let first: Status = client.ask(&Request::Status).await?;
    if args.json {
        return say_json(&first);
    }
    let live = is_terminal() && !args.once;
    if !live && !args.watch {
        return say(&status_view::render(&first, size().0));
    }
    let mut screen = if live { Some(Screen::open()?) } else { None };
    let mut status = first;
    loop {
        let text = status_view::render(&status, size().0);
        match &mut screen {
            Some(screen) => screen.draw(&text)?,
            None => say(&format!("{text}\n"))?,
        }
        tokio::select! {
            pressed = tokio::signal::ctrl_c() => {
                return pressed.map_err(|error| Failure::new(Exit::Software, error.to_string()));
            }
            () = tokio::time::sleep(REFRESH) => {}
        }
        status = client.ask(&Request::Status).await?;
    }
}
