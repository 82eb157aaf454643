//! The demo's simulated monitors: each with a connection of its own, as a real one has, over a loopback socket.
//!
//! They behave as devices do: one message at a time, the same message again until it is acknowledged, a new connection when
//! the old one breaks. What they were told is safe goes into the [`Ledger`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ledger::{Ledger, fingerprint};
use super::mllp_client::MllpClient;
use super::patients::Body;
use super::vendor::Device;
use crate::values::HostPort;

/// Between two messages of one monitor.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a monitor waits for its answer, or for a connection, before it tries again.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Before a message is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Monitors that are sending.
pub struct Monitors {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Monitors {
    /// Sets `count` monitors going, each at a bed of its own, beginning at different moments.
    pub fn start(count: usize, gateway: &HostPort, ledger: &Arc<Ledger>) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        for bed in 0..count {
            let (gateway, ledger, stop) = (gateway.clone(), Arc::clone(ledger), stop.clone());
            let delay = PERIOD * u32::try_from(bed).unwrap_or(0) / u32::try_from(count).unwrap_or(1);
            tasks.spawn(async move {
                if stop.run_until_cancelled(sleep(delay)).await.is_some() {
                    monitor(bed, &gateway, &ledger, &stop).await;
                }
            });
        }
        Self { tasks, stop }
    }

    /// Lets each monitor have the answer that it is waiting for, and stops them.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// One monitor until `stop`.
async fn monitor(bed: usize, gateway: &HostPort, ledger: &Ledger, stop: &CancellationToken) {
    let mut device = Device::at(bed);
    let mut body = Body::new(u64::try_from(bed).unwrap_or(0));
    let mut connection = None;
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(period.tick()).await.is_some() {
        let (control_id, message) = device.message(&body.signs(), jiff::Timestamp::now());
        let fingerprint = fingerprint(&message);
        ledger.sending(fingerprint, &control_id);
        while !deliver(&mut connection, gateway, &control_id, &message).await {
            connection = None;
            if stop.run_until_cancelled(sleep(AGAIN_AFTER)).await.is_none() {
                return;
            }
        }
        ledger.acknowledged(&fingerprint);
    }
}

/// Whether the message was acknowledged: positively, and with its own control id.
async fn deliver(connection: &mut Option<MllpClient>, gateway: &HostPort, control_id: &str, message: &[u8]) -> bool {
    let client = match connection {
        Some(client) => client,
        None => match MllpClient::connect(gateway, None, ANSWER_MAX).await {
            Ok(client) => connection.insert(client),
            Err(_) => return false,
        },
    };
    let answer = client.ask(message, ANSWER_MAX).await;
    answer.is_ok_and(|answer| answer.code.is_positive() && answer.control_id == control_id.as_bytes())
}
