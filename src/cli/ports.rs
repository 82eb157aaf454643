//! `wardgate ports`: what is plugged into the box, who uses it, and what it looks like.
//!
//! It never writes to a port. A port that the service uses is not opened: what it last said comes from the service.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};

use super::exit::Failure;
use super::table::{Column, Table, age};
use super::terminal::{self, plain};
use super::{SocketArgs, say_json};
use crate::admin::verbs::Request;
use crate::source::identify::{Look, look};
use crate::status::plug::{PlugState, PlugStatus};
use crate::status::{Status, plug};
use crate::system::ports::{self, Port};
use crate::system::serial::{Parity, SerialConfig, SerialPort};

/// Line settings that are tried, the usual ones first.
const SETTINGS: [(u32, u8, Parity); 9] = [
    (9_600, 8, Parity::None),
    (19_200, 8, Parity::None),
    (115_200, 8, Parity::None),
    (38_400, 8, Parity::None),
    (19_200, 8, Parity::Even),
    (9_600, 8, Parity::Even),
    (9_600, 7, Parity::Even),
    (2_400, 8, Parity::None),
    (57_600, 8, Parity::None),
];
/// Bytes of a device that are enough to tell.
const SNIFFED_BYTES_MAX: usize = 8 << 10;

/// List the serial ports of this box: adapter, place, who uses it, what it looks like.
#[derive(Debug, Args)]
#[command(after_help = "\
Safe while the service runs: ports that it uses are not opened, and nothing is ever sent to a device.

Examples:
  wardgate ports                         what is plugged in, and the path to write into the configuration
  wardgate ports --identify              listens at each free port, with one line setting after the other
  wardgate ports --json                  for scripts")]
pub struct PortsArgs {
    /// Listen at each free port and tell what the device looks like. Takes a while: one line setting after the other.
    #[arg(long)]
    identify: bool,
    /// With --identify: how long to listen at each setting, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    /// Where /dev and /sys are.
    #[arg(long, value_name = "FOLDER", default_value = "/", hide = true)]
    root: PathBuf,
    #[command(flatten)]
    socket: SocketArgs,
}

/// One port, as it is told.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Told {
    #[serde(flatten)]
    port: Port,
    /// The source that has it.
    used_by: Option<String>,
    /// How its plug stands there.
    plug: Option<PlugStatus>,
    /// What listening found.
    heard: Option<Heard>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Heard {
    /// The line settings at which it was heard best.
    settings: String,
    /// In words.
    looks_like: String,
    /// The last bytes, in hexadecimal digits.
    last_bytes: String,
}

/// Lists the ports.
///
/// # Errors
/// When standard output can't be written.
pub async fn run(args: PortsArgs) -> Result<(), Failure> {
    let status = match args.socket.connect().await {
        Ok(mut service) => service.ask::<Status>(&Request::Status).await.ok(),
        // Ports can be looked at without a service.
        Err(_) => None,
    };
    let mut all: Vec<Told> = ports::list(&args.root).into_iter().map(|port| told(port, status.as_ref())).collect();
    if args.identify {
        for told in all.iter_mut().filter(|told| told.used_by.is_none()) {
            if !args.json {
                terminal::note(&format!("listening at {} ...", told.port.path.display()));
            }
            told.heard = Some(identify(&told.port, Duration::from_secs(args.seconds)).await);
        }
    }
    if args.json {
        return say_json(&all);
    }
    if all.is_empty() {
        return terminal::say("no serial port is plugged in");
    }
    terminal::say(&table(&all).render(terminal::size().0))
}

fn told(port: Port, status: Option<&Status>) -> Told {
    let used = status.iter().flat_map(|status| &status.sources).find_map(|(name, source)| {
        let plug = source.plug.as_ref()?;
        let has = fs::canonicalize(&plug.port).is_ok_and(|device| device == port.device);
        has.then(|| (name.to_string(), plug.clone()))
    });
    let (used_by, plug) = used.unzip();
    Told { port, used_by, plug, heard: None }
}

/// Listens with one line setting after the other, until the bytes look like something that is hardly chance.
async fn identify(port: &Port, limit: Duration) -> Heard {
    let mut best: Option<(Look, String, Vec<u8>)> = None;
    for (baud, data_bits, parity) in SETTINGS {
        let config =
            SerialConfig { port: port.path.clone(), baud, data_bits, parity, stop_bits: 1, flow: Default::default() };
        let bytes = match sniff(&config, limit).await {
            Ok(bytes) => bytes,
            Err(cause) => return Heard { settings: String::new(), looks_like: cause, last_bytes: String::new() },
        };
        let found = look(&bytes);
        let sure = found.is_sure();
        if best.as_ref().is_none_or(|(held, ..)| found > *held) {
            best = Some((found, config.settings(), bytes));
        }
        if sure {
            break;
        }
    }
    let (found, settings, bytes) = best.unwrap_or((Look::Silent, String::new(), Vec::new()));
    let tail = bytes.get(bytes.len().saturating_sub(plug::TAIL_BYTES)..).unwrap_or_default();
    let settings = if found == Look::Silent { String::new() } else { settings };
    Heard { settings, looks_like: found.words(), last_bytes: data_encoding::HEXLOWER.encode(tail) }
}

/// What comes by itself within the time, or until that is enough.
async fn sniff(config: &SerialConfig, limit: Duration) -> Result<Vec<u8>, String> {
    let mut port = SerialPort::open(config).map_err(|error| error.to_string())?;
    let (mut bytes, until) = (Vec::new(), Instant::now() + limit);
    let mut read = [0; 512];
    while bytes.len() < SNIFFED_BYTES_MAX {
        match timeout_at(until, port.read(&mut read)).await {
            Ok(Ok(count)) => bytes.extend_from_slice(read.get(..count).unwrap_or_default()),
            Ok(Err(_)) | Err(_) => break,
        }
        if look(&bytes).is_sure() {
            break;
        }
    }
    Ok(bytes)
}

fn table(all: &[Told]) -> Table {
    let mut table = Table::new([
        Column::left("PORT"),
        Column::left("ADAPTER").shrinking().optional(3),
        Column::left("SERIAL NUMBER").optional(4),
        Column::left("NOW").optional(5),
        Column::left("USED BY"),
        Column::left("LINE").optional(2),
        Column::left("STATE").shrinking(),
        Column::left("LAST BYTES").shrinking().optional(1),
    ]);
    for told in all {
        table.row(row(told));
    }
    table
}

fn row(told: &Told) -> [String; 8] {
    let Port { path, device, vendor, product, usb_id, serial_number, .. } = &told.port;
    let adapter: Vec<&str> = [vendor, product, usb_id].into_iter().flatten().map(String::as_str).collect();
    let (line, state, last) = match (&told.plug, &told.heard) {
        (Some(plug), _) => (plug.settings.clone(), state(plug), plug.last_bytes.clone()),
        (None, Some(heard)) => (heard.settings.clone(), heard.looks_like.clone(), heard.last_bytes.clone()),
        (None, None) => (String::new(), "free".to_owned(), String::new()),
    };
    [
        path.display().to_string(),
        plain(&adapter.join(" ")),
        plain(serial_number.as_deref().unwrap_or("")),
        device.display().to_string(),
        told.used_by.clone().unwrap_or_default(),
        line,
        state,
        last,
    ]
}

fn state(plug: &PlugStatus) -> String {
    match &plug.state {
        PlugState::Plugged => format!("in use for {}", age(plug.since_s)),
        PlugState::Missing(cause) => format!("NOT USED for {}: {cause}", age(plug.since_s)),
        PlugState::Unknown | PlugState::Listening => "in use".to_owned(),
    }
}
