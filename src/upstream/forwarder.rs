//! The only delivery loop: one for each upstream. It keeps the connection, and runs one lane for each source over it.
//!
//! Lanes run side by side over one shared connection; what one of them is refused is no other's fault. When the
//! connection is lost all lanes go back to their cursors and begin again on the next one, for ever, with pauses that
//! grow. A new source is a new lane: the forwarder is stopped and started with it, which costs one reconnect and loses nothing.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::holds::Holds;
use super::lane::{LaneRun, Shared};
use super::{Identity, SendError, Stop, Upstream};
use crate::route::convert::Conversions;
use crate::spool::{Lane, Spool};
use crate::status::{Link, Status, UpstreamCounters};
use crate::system::backoff::Backoff;
use crate::system::pulse::beating;

/// How long receipts are waited for when the forwarder is to stop.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long a goodbye may take.
pub const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Longest pause that a peer may ask for before the next connection.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// What a forwarder works with.
pub struct Forwarding {
    /// Who this box is to this upstream.
    pub identity: Identity,
    /// The clock of receipts.
    pub spool: Spool,
    /// One for each source that is routed here, or that still has a backlog.
    pub lanes: Vec<Lane>,
    /// In which forms messages go; what it holds when a message is sent counts.
    pub conversions: watch::Receiver<Arc<Conversions>>,
    /// What is counted.
    pub counters: Arc<UpstreamCounters>,
    /// Where lanes say why they do not move; kept over restarts of the forwarder if the gateway wishes.
    pub holds: Arc<Holds>,
    /// How the gateway stands, for upstreams that pass it on.
    pub status: watch::Receiver<Arc<Status>>,
}

/// Delivers until `stop`, then waits up to [`Upstream::DRAIN_MAX`] for what is on its way and says goodbye.
pub async fn forward<U: Upstream>(config: U::Config, forwarding: Forwarding, stop: Stop) {
    let counters = Arc::clone(&forwarding.counters);
    beating(deliver::<U>(config, forwarding, stop), || counters.turns.one()).await;
}

async fn deliver<U: Upstream>(config: U::Config, forwarding: Forwarding, stop: Stop) {
    let Forwarding { identity, spool, lanes, conversions, counters, holds, mut status } = forwarding;
    let shared = Shared { spool, when_refused: U::when_refused(&config), conversions, counters, holds };
    let mut lanes: Vec<LaneRun> = lanes.into_iter().map(|lane| LaneRun::new(lane, shared.clone())).collect();
    let mut connection = Connection { identity, counters: shared.counters, backoff: Backoff::default() };
    while !stop.is_cancelled() {
        let Some(upstream) = connection.make::<U>(&config, &stop).await else { break };
        let since = Instant::now();
        let cause;
        (lanes, cause) = serve(Arc::new(upstream), lanes, &mut status, &stop).await;
        let Some(cause) = cause else { break };
        connection.lost(cause, since.elapsed(), &stop).await;
    }
    connection.link(Link::Idle);
}

/// The link to the peer as status and log see it, and the pauses between attempts.
struct Connection {
    identity: Identity,
    counters: Arc<UpstreamCounters>,
    backoff: Backoff,
}

impl Connection {
    /// Tries until it is connected; `None` on `stop`.
    async fn make<U: Upstream>(&mut self, config: &U::Config, stop: &Stop) -> Option<U> {
        loop {
            if !matches!(self.present(), Link::Down(_)) {
                self.link(Link::Connecting);
            }
            let made = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                made = U::connect(config, &self.identity) => made,
            };
            match made {
                Ok(upstream) => {
                    self.counters.connects.one();
                    self.link(Link::Up);
                    tracing::info!(upstream = %self.identity.upstream, protocol = U::PROTOCOL, "connected");
                    return Some(upstream);
                }
                Err(error) => {
                    let asked = match &error {
                        SendError::Busy { after, .. } => after.unwrap_or_default().min(ASKED_PAUSE_MAX),
                        _ => Duration::ZERO,
                    };
                    self.down(error.to_string());
                    let pause = self.backoff.pause(Duration::ZERO).max(asked);
                    stop.run_until_cancelled(tokio::time::sleep(pause)).await?;
                }
            }
        }
    }

    /// The connection worked for `worked` and is gone: waits before the next.
    async fn lost(&mut self, cause: String, worked: Duration, stop: &Stop) {
        self.down(cause);
        let pause = self.backoff.pause(worked);
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }

    /// Says a cause once and not at each attempt: a peer that is down all night must not fill the log.
    fn down(&self, cause: String) {
        let down = Link::Down(cause);
        let Link::Down(cause) = &down else { return };
        match self.present() == down {
            true => tracing::debug!(upstream = %self.identity.upstream, cause, "still not connected"),
            false => tracing::warn!(upstream = %self.identity.upstream, cause, "not connected"),
        }
        self.link(down);
    }

    fn present(&self) -> Link {
        self.counters.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn link(&self, link: Link) {
        self.counters.set_link(link);
    }
}

/// Runs all lanes over one connection. `Some` cause: it is lost; `None`: stopped, and said goodbye.
async fn serve<U: Upstream>(
    upstream: Arc<U>,
    lanes: Vec<LaneRun>,
    status: &mut watch::Receiver<Arc<Status>>,
    stop: &Stop,
) -> (Vec<LaneRun>, Option<String>) {
    let lost = CancellationToken::new();
    status.mark_changed();
    let mut running = JoinSet::new();
    for lane in lanes {
        running.spawn(lane.run(Arc::clone(&upstream), lost.clone(), stop.clone()));
    }
    let mut ended = Vec::with_capacity(running.len());
    let mut cause = None;
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(U::DRAIN_MAX).await;
    };
    tokio::pin!(drained);
    loop {
        tokio::select! {
            Some(lane) = running.join_next() => {
                let (lane, found) = joined(lane);
                ended.push(lane);
                if let Some(found) = found {
                    cause.get_or_insert(found);
                    lost.cancel();
                }
            }
            closed = upstream.closed(), if cause.is_none() => {
                cause = Some(closed);
                lost.cancel();
            }
            // Once at once, since a new connection has not been told yet.
            Ok(()) = status.changed() => upstream.announce(&status.borrow_and_update()),
            () = &mut drained, if !lost.is_cancelled() => lost.cancel(),
            () = stop.cancelled(), if running.is_empty() => break,
            else => break,
        }
        if running.is_empty() && (cause.is_some() || stop.is_cancelled()) {
            break;
        }
    }
    if let Some(upstream) = Arc::into_inner(upstream).filter(|_| cause.is_none()) {
        // A goodbye that takes too long is not waited for.
        drop(tokio::time::timeout(CLOSE_MAX, upstream.close()).await);
    }
    (ended, cause)
}

/// A lane that ended. Its panic is ours: in the built service a panic ends the process in any case.
fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> T {
    outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
