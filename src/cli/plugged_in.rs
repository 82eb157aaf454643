//! A simulated device of the demo at the far end of a pseudo-terminal: it works until it is stopped, and stays plugged in after that.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::system::pty::Pty;

/// A device that is working.
pub struct PluggedIn {
    task: JoinHandle<()>,
    stop: CancellationToken,
    pty: Arc<Pty>,
}

impl PluggedIn {
    /// Sets it going at the far end of `pty`; `work` ends soon after its token is cancelled.
    pub fn start<F: Future<Output = ()> + Send + 'static>(
        pty: Pty,
        work: impl FnOnce(Arc<Pty>, CancellationToken) -> F,
    ) -> Self {
        let (stop, pty) = (CancellationToken::new(), Arc::new(pty));
        let task = tokio::spawn(work(Arc::clone(&pty), stop.clone()));
        Self { task, stop, pty }
    }

    /// Lets it end what it is at, and stops it. It stays plugged in as long as what is returned.
    pub async fn stop(self) -> Arc<Pty> {
        self.stop.cancel();
        // It panics never; and if it did, the books would show what is missing.
        self.task.await.ok();
        self.pty
    }
}
