//! A gateway that a command runs for itself, in this process and out of a temporary folder: the demo's, and the loop of `health`.
//!
//! It is started from a configuration file, as on a box, and asked over its control socket, as `wardgate status` does: the
//! command sees what a person would see.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure, OrExit};
use super::run;
use crate::admin::client::ControlClient;
use crate::admin::verbs::Request;
use crate::status::{SourceStatus, Status};

/// The control socket's file in the folder; a configuration names it.
pub const SOCKET: &str = "control.sock";
/// How long the gateway may take to start, and to stop.
pub const START_MAX: Duration = Duration::from_secs(20);
pub const STOP_MAX: Duration = Duration::from_secs(20);
/// Between two looks whether it has started.
const TICK: Duration = Duration::from_millis(25);

/// A folder of our own that only we can read; it goes when this is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it in `inside`, its name begins with `prefix`.
    ///
    /// # Errors
    /// [`Exit::CannotCreate`].
    pub fn make(inside: &Path, prefix: &str) -> Result<Self, Failure> {
        let mut random = [0; 6];
        aws_lc_rs::rand::fill(&mut random).or_exit(Exit::Software, "no random numbers")?;
        let path = inside.join(format!("{prefix}-{}", HEXLOWER.encode(&random)));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.or_exit(Exit::CannotCreate, format!("can't make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What can't be deleted now goes with the system's temporary files.
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A gateway that runs.
pub struct OwnGateway {
    task: JoinHandle<Result<(), Failure>>,
    stop: CancellationToken,
    client: ControlClient,
}

impl OwnGateway {
    /// Writes the configuration into the folder and starts the gateway; all its sources listen when this returns.
    /// The configuration must name [`SOCKET`] in the folder as its control socket.
    ///
    /// # Errors
    /// [`Failure`] when it can't start.
    pub async fn start(folder: &Folder, configuration: &str) -> Result<(Self, Status), Failure> {
        let file = folder.path().join("gateway.toml");
        std::fs::write(&file, configuration).or_exit(Exit::CannotCreate, format!("can't write {}", file.display()))?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut task = tokio::spawn(async move { run::serve(&file, stopped).await });
        let (client, status) = answering(&folder.path().join(SOCKET), &mut task).await?;
        Ok((Self { task, stop, client }, status))
    }

    /// How it stands.
    ///
    /// # Errors
    /// [`Failure`] when it has ended.
    pub async fn status(&mut self) -> Result<Status, Failure> {
        if self.task.is_finished() {
            return Err(ended(&mut self.task).await);
        }
        Ok(self.client.ask(&Request::Status).await?)
    }

    /// Stops it and waits for its end.
    ///
    /// # Errors
    /// [`Failure`] when it did not end well, or not in time.
    pub async fn stop(self) -> Result<(), Failure> {
        self.stop.cancel();
        let late = || format!("the gateway did not stop within {} s", STOP_MAX.as_secs());
        let ended = timeout(STOP_MAX, self.task).await.or_exit(Exit::Software, late())?;
        ended.or_exit(Exit::Software, "the gateway broke")?
    }
}

/// The gateway's control socket once it answers and all its sources listen.
async fn answering(
    socket: &Path,
    task: &mut JoinHandle<Result<(), Failure>>,
) -> Result<(ControlClient, Status), Failure> {
    let deadline = Instant::now() + START_MAX;
    loop {
        if task.is_finished() {
            return Err(ended(task).await);
        }
        if let Ok(mut client) = ControlClient::connect(socket).await {
            let status: Status = client.ask(&Request::Status).await?;
            let listening = |source: &SourceStatus| !source.endpoint.is_empty();
            if !status.sources.is_empty() && status.sources.values().all(listening) {
                return Ok((client, status));
            }
        }
        if Instant::now() > deadline {
            let text = format!("the gateway does not listen after {} s", START_MAX.as_secs());
            return Err(Failure::new(Exit::Software, text));
        }
        sleep(TICK).await;
    }
}

/// Why the gateway ended before its time.
async fn ended(task: &mut JoinHandle<Result<(), Failure>>) -> Failure {
    match task.await {
        Ok(Err(failure)) => failure,
        Ok(Ok(())) => Failure::new(Exit::Software, "the gateway ended by itself"),
        Err(error) => Failure::new(Exit::Software, format!("the gateway broke: {error}")),
    }
}
