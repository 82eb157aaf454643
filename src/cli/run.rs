//! `wardgate run`: the service itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure, OrExit};
use super::watchdog;
use crate::admin::control::ControlSocket;
use crate::admin::events;
use crate::admin::scrape::MetricsPage;
use crate::config::{self, Loaded};
use crate::gateway::{Gateway, StartError};
use crate::source::SourceConfig;
use crate::spool::OpenError;
use crate::system::disk::LockError;
use crate::system::sockets::Sockets;
use crate::system::{logging, process, systemd};
use crate::upstream::UpstreamConfig;

/// Runs the service: takes messages from devices, keeps them, forwards them.
///
/// Runs in the foreground until SIGTERM or Ctrl-C; then it takes nothing new, answers what is committed, and ends. SIGHUP reads
/// the configuration again and applies what changed; a file with problems changes nothing and says why.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate check gateway.toml && wardgate run --config gateway.toml
  systemctl start wardgate                          as it runs on a box: with credentials, restarts and a watchdog
  RUST_LOG=debug wardgate run --config dev.toml     by hand, with more to read

Safe: what was acknowledged survives any end of this process, also kill -9 and a power cut.
Ends with 78 for a bad configuration or key (nothing was changed), 69 when another copy runs or the control socket or the
metrics page can't be opened, 73 or 74 when the spool can't be opened.")]
pub struct RunArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/wardgate/gateway.toml")]
    config: PathBuf,
}

/// Runs `wardgate run`.
///
/// # Errors
/// [`Failure`] when the service can't start, or ended by a fault.
pub async fn run(args: RunArgs) -> Result<(), Failure> {
    logging::start();
    let sockets = Sockets::inherited();
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    // First of all: until it is caught SIGHUP ends a process. One that comes before the gateway runs is done when it does.
    let hangup = catch_hangup()?;
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Software, "can't listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Software, "can't listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        signalled.cancel();
    });
    serve_on(&args.config, sockets, stop, hangup).await
}

/// Runs the gateway of a configuration file until `stop`, in this process. The demo runs it the same way.
///
/// # Errors
/// [`Failure`] when the gateway can't start, or ended by a fault.
pub async fn serve(file: &Path, stop: CancellationToken) -> Result<(), Failure> {
    serve_on(file, Sockets::default(), stop, catch_hangup()?).await
}

fn catch_hangup() -> Result<Signal, Failure> {
    signal(SignalKind::hangup()).or_exit(Exit::Software, "can't listen for SIGHUP")
}

async fn serve_on(file: &Path, sockets: Sockets, stop: CancellationToken, hangup: Signal) -> Result<(), Failure> {
    if let Err(error) = process::forbid_dumps() {
        tracing::warn!(%error, "a crash could leave patient data in a core file");
    }
    let loaded = config::load::<SourceConfig, UpstreamConfig>(file);
    let Loaded { config, report } = loaded.map_err(|error| Failure::new(Exit::Config, error.to_string()))?;
    if report.warnings() > 0 {
        tracing::warn!("{report}");
    }
    let settings = config.gateway.clone();
    let control = ControlSocket::bind(&settings.control).await;
    let control = control.or_exit(Exit::Unavailable, "the control socket can't be opened")?;
    let metrics = match &settings.metrics {
        Some(metrics) => Some(MetricsPage::bind(metrics).await.map_err(|text| Failure::new(Exit::Unavailable, text))?),
        None => None,
    };
    let gateway = Gateway::start(file, config, sockets)
        .await
        .map_err(|error| Failure::new(exit_of(&error), error.to_string()))?;
    let asking = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(control.serve(Arc::clone(&gateway), asking.clone()));
    tasks.spawn(Arc::clone(&gateway).tend(stop.clone()));
    if let Some(metrics) = metrics {
        tasks.spawn(metrics.serve(Arc::clone(&gateway), asking.clone()));
    }
    systemd::ready(&format!("{} at {}", settings.name, settings.site));
    tracing::info!(
        target: events::TARGET, message_id = events::STARTED, wardgate_version = env!("CARGO_PKG_VERSION"),
        wardgate_gateway = %settings.name, wardgate_site = %settings.site, "started"
    );
    // Beside the reloads: one that waits for connections to end must not starve it.
    tasks.spawn(watchdog::feed(Arc::clone(&gateway), asking.clone()));
    reload_when_asked(&gateway, hangup, &stop).await;
    systemd::stopping();
    gateway.stop().await;
    asking.cancel();
    while tasks.join_next().await.is_some() {}
    tracing::info!(target: events::TARGET, message_id = events::STOPPED, "stopped");
    Ok(())
}

/// Reloads on SIGHUP, until `stop`; a reload that has begun ends first.
async fn reload_when_asked(gateway: &Gateway, mut hangup: Signal, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hangup.recv() => {
                systemd::reloading();
                let outcome = gateway.reload().await;
                if let Err(error) = &outcome {
                    tracing::error!("{error}");
                }
                systemd::ready(if outcome.is_ok() { "the changed configuration is in force" } else { "the changed configuration was refused" });
            }
        }
    }
}

fn exit_of(error: &StartError) -> Exit {
    match error {
        StartError::Config(_) | StartError::Key(_) | StartError::Spool { cause: OpenError::Key(_), .. } => Exit::Config,
        StartError::Folder(LockError::Held { .. }) => Exit::Unavailable,
        StartError::Folder(LockError::Io { .. }) | StartError::Io { .. } => Exit::CannotCreate,
        StartError::Spool { cause: OpenError::Io(_), .. } => Exit::Io,
    }
}
