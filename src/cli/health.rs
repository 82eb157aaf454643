//! `wardgate health`: may the system that this box has just started be kept? Asked after an update, before it is marked good.
//!
//! Three questions, all about this box: does the service answer with its spool open, does every source run, and does a message
//! go in and out of a gateway of the same program. An upstream that can't be reached, a device that is not plugged in, a full
//! disk are none of the system's faults and never fail the check: else a box would fall back to its old system for a cable
//! that somebody pulled out in the server room.
//!
//! The message goes through a loop of its own, in a temporary folder and on loopback: the hospital never sees it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::time::sleep;

use super::SocketArgs;
use super::exit::{Exit, Failure, OrExit};
use super::mllp_client::MllpClient;
use super::own_gateway::{Folder, OwnGateway, SOCKET};
use super::probe::message;
use super::terminal::{plain, say};
use crate::admin::verbs::Request;
use crate::source::accept::NO_SUCH_ADDRESS;
use crate::status::Status;
use crate::system::disk;
use crate::values::{HostPort, Span, counted};

/// Between two looks.
const TICK: Duration = Duration::from_millis(100);
/// How long the loop may take to answer, and to deliver.
const STEP_MAX: Duration = Duration::from_secs(30);
/// How the name of the loop's folder begins.
const PREFIX: &str = "wardgate-health";
/// A folder of another loop that is older was left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);
/// What the loop's spool takes of a disk, with room to spare.
const LOOP_BYTES: u64 = 128 << 20;

/// Says whether this box works: the service and its spool, its sources, and a message through a loop.
///
/// For the moment after an update of the whole system: a boot loader that counts attempts keeps the new system only when
/// this ends with 0. An upstream that is away, a device that is not plugged in and a full disk do not fail it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate health                                now
  wardgate health --wait 2m                      give the service two minutes to come up
  wardgate health --wait 2m --in /var/lib/wardgate   make the loop's own spool on the disk of the real one

Ends with 0 when all is well, 69 when the service does not run or a source doesn't, 65 when the message did not
come out of the loop as it went in.

Safe: the message of the loop stays in it; nothing reaches an upstream.")]
pub struct HealthArgs {
    /// How long the service may take to be well.
    #[arg(long, value_name = "TIME", default_value = "0s")]
    wait: Span,
    /// Where the loop makes its temporary folder. Without it, where the system keeps such.
    #[arg(long = "in", value_name = "DIR")]
    inside: Option<PathBuf>,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Runs `wardgate health`.
///
/// # Errors
/// [`Exit::Unavailable`] when the service or a source does not run, [`Exit::Data`] when the loop broke.
pub async fn run(args: HealthArgs) -> Result<(), Failure> {
    let status = well(&args).await?;
    let logs: Vec<&str> = status.logs.iter().map(|log| log.log.as_str()).collect();
    say(&format!(
        "service  wardgate {} runs for {} s, its spool is open ({})",
        status.version,
        status.running_s,
        logs.join(", ")
    ))?;
    for log in &status.logs {
        if let Some(why) = &log.refusing {
            say(&format!("note     the log {} takes nothing now: {why}", log.log))?;
        }
    }
    let (mut up, mut away) = (0, Vec::new());
    for (name, source) in &status.sources {
        match &source.trouble {
            Some(trouble) => away.push(format!("note     the source {name} does not run: {trouble}")),
            None => up += 1,
        }
    }
    say(&format!("sources  {} up", counted(up, "source")))?;
    for note in away {
        say(&note)?;
    }
    let took = looped(args.inside.as_deref()).await?;
    say(&format!("loop     a message went in and came out as it was, in {} ms", took.as_millis()))
}

/// Looks until all is well or the time is over; what was wrong last is the answer then.
async fn well(args: &HealthArgs) -> Result<Status, Failure> {
    let begun = Instant::now();
    loop {
        let seen = look(&args.socket).await;
        if seen.is_ok() || begun.elapsed() >= args.wait.0 {
            return seen;
        }
        sleep(TICK).await;
    }
}

async fn look(socket: &SocketArgs) -> Result<Status, Failure> {
    let mut client = socket.connect().await?;
    let status: Status = client.ask(&Request::Status).await?;
    match faults(&status) {
        faults if faults.is_empty() => Ok(status),
        faults => Err(Failure::new(Exit::Unavailable, faults.join("\n"))),
    }
}

/// What speaks against keeping this system, each in a line.
fn faults(status: &Status) -> Vec<String> {
    let mut faults = Vec::new();
    if status.logs.is_empty() {
        faults.push("the service has no log open".to_owned());
    }
    for (name, source) in &status.sources {
        // What plugs in may be switched off, and a network may be away: no fault of this system.
        let outside = |trouble: &str| source.plug.is_some() || trouble.contains(NO_SUCH_ADDRESS);
        if let Some(trouble) = source.trouble.as_deref().filter(|trouble| !outside(trouble)) {
            faults.push(format!("the source {name} does not run: {trouble}"));
        }
    }
    faults
}

/// Sends a message through a gateway of its own and compares what comes out.
async fn looped(inside: Option<&Path>) -> Result<Duration, Failure> {
    let folder = Folder::make(&place(inside)?, PREFIX)?;
    let out = folder.path().join("out");
    fs::create_dir(&out).or_exit(Exit::CannotCreate, format!("can't make {}", out.display()))?;
    let (gateway, status) = OwnGateway::start(&folder, &configuration(folder.path())).await?;
    let sent = through(&status, &out).await;
    let stopped = gateway.stop().await;
    let took = sent?;
    stopped?;
    Ok(took)
}

/// Where the loop's folder is made: not on a disk that is full, which is no fault of this system. What a check that was cut off left there
/// is cleaned up.
fn place(inside: Option<&Path>) -> Result<PathBuf, Failure> {
    let Some(inside) = inside else { return Ok(std::env::temp_dir()) };
    let entries = fs::read_dir(inside).or_exit(Exit::Io, format!("can't read {}", inside.display()))?;
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let age = entry.metadata().and_then(|about| about.modified()).ok().and_then(|made| made.elapsed().ok());
        if ours && age.is_some_and(|age| age > LEFT_BEHIND) {
            // What can't be deleted costs room and nothing else.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
    let free = disk::space(inside).or_exit(Exit::Io, format!("can't ask {}", inside.display()))?.free;
    if free < LOOP_BYTES {
        say(&format!("note     {} is nearly full: the loop is made elsewhere", inside.display()))?;
        return Ok(std::env::temp_dir());
    }
    Ok(inside.to_owned())
}

/// The message's way: MLLP on loopback, the spool, a file.
async fn through(status: &Status, out: &Path) -> Result<Duration, Failure> {
    let address: Option<HostPort> = status.sources.values().find_map(|source| source.endpoint.parse().ok());
    let address =
        address.ok_or_else(|| Failure::new(Exit::Data, "the loop's gateway does not say where it listens"))?;
    let (_, message) = message(jiff::Timestamp::now(), false);
    let begun = Instant::now();
    let client = MllpClient::connect(&address, None, STEP_MAX).await;
    let answer = client.or_exit(Exit::Data, "no way into the loop")?.ask(message.as_bytes(), STEP_MAX).await;
    let answer = answer.or_exit(Exit::Data, "the loop did not answer")?;
    if !answer.code.is_positive() {
        return Err(Failure::new(Exit::Data, format!("the loop refused a message: {}", plain(&answer.text))));
    }
    while begun.elapsed() < STEP_MAX {
        match delivered(out)? {
            Some(body) if body == message.as_bytes() => return Ok(begun.elapsed()),
            Some(_) => return Err(Failure::new(Exit::Data, "what came out of the loop is not what went in")),
            None => sleep(TICK).await,
        }
    }
    Err(Failure::new(Exit::Data, format!("nothing came out of the loop within {} s", STEP_MAX.as_secs())))
}

/// The file that came out. The directory upstream renames whole files into place; other names are not looked at.
fn delivered(out: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let entries = fs::read_dir(out).or_exit(Exit::Io, "can't read what came out of the loop")?;
    for entry in entries {
        let path = entry.or_exit(Exit::Io, "can't read what came out of the loop")?.path();
        if path.extension().is_some_and(|extension| extension == "hl7") {
            return fs::read(&path).map(Some).or_exit(Exit::Io, "can't read what came out of the loop");
        }
    }
    Ok(None)
}

/// Everything that is written lies in `folder`; nothing leaves loopback.
fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "\
[gateway]
name = \"health\"
site = \"loop\"
control = {{ socket = \"{folder}/{SOCKET}\" }}

[spool]
path = \"{folder}/spool\"
key = {{ file = \"{folder}/loop.key\" }}

[source.in.mllp]
listen = \"127.0.0.1:0\"

[upstream.out.directory]
path = \"{folder}/out\"
unsealed = true

[[route]]
from = [\"in\"]
to = [\"out\"]
"
    )
}
