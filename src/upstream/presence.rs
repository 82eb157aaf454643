//! Whether a peer is there while nothing is sent to it, for upstreams whose connections come and go: the link in the status would
//! else say "up" until the next message finds nobody.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::SendError;
use crate::values::{Problems, Span};

/// Least `check-every`.
pub const CHECK_EVERY_MIN: Duration = Duration::from_secs(1);

/// `check-every` unless it is configured: as often as one that is not there is tried again.
pub(super) fn check_every() -> Span {
    Span(Duration::from_secs(60))
}

/// Checks the key `check-every` of a section.
pub(super) fn check(problems: &mut Problems, every: Span) {
    if every.0 < CHECK_EVERY_MIN {
        problems.error("check-every", "it can be \"1s\" or longer");
    }
}

/// Looks after a peer until it is dropped.
pub(super) struct Presence {
    gone: watch::Receiver<Option<String>>,
    _looking: JoinSet<()>,
}

impl Presence {
    /// Looks every so often, in a task of its own: `look` is Ok while the peer is there, or while others see to that.
    pub(super) fn watch<F>(every: Span, look: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), SendError>> + Send + 'static,
    {
        let (tell, gone) = watch::channel(None);
        let mut looking = JoinSet::new();
        looking.spawn(async move {
            loop {
                sleep(every.0).await;
                if let Err(error) = look().await {
                    tell.send_replace(Some(error.to_string()));
                    return;
                }
            }
        });
        Self { gone, _looking: looking }
    }

    /// Completes with the cause when the peer is not there. It is cancelled and called again at will.
    pub(super) async fn lost(&self) -> String {
        let mut gone = self.gone.clone();
        let cause = gone.wait_for(Option::is_some).await.ok().and_then(|cause| cause.clone());
        match cause {
            Some(cause) => cause,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::timeout;

    use super::super::link::lost;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_goes_is_told_to_whoever_asks_then_and_later() {
        let looks = Arc::new(AtomicUsize::new(0));
        let looked = Arc::clone(&looks);
        let presence = Presence::watch(check_every(), move || {
            let is_there = looked.fetch_add(1, Ordering::SeqCst) < 3;
            async move { if is_there { Ok(()) } else { Err(lost("nobody is there")) } }
        });
        assert!(timeout(Duration::from_secs(59), presence.lost()).await.is_err());
        assert_eq!(looks.load(Ordering::SeqCst), 0, "it was connected a moment ago");
        // Asked anew all the time, as a forwarder does.
        while timeout(Duration::from_secs(1), presence.lost()).await.is_err() {}
        assert_eq!((presence.lost().await.as_str(), looks.load(Ordering::SeqCst)), ("nobody is there", 4));
    }

    #[test]
    fn nobody_is_looked_after_all_the_time() {
        let mut problems = Problems::default();
        check(&mut problems, check_every());
        assert!(problems.into_found().is_empty());
        let mut problems = Problems::default();
        check(&mut problems, Span(Duration::from_millis(999)));
        assert_eq!(problems.into_found().len(), 1);
    }
}
