//! Waiting for a condition, with a deadline. The only place in the tests that sleeps.

use std::time::{Duration, Instant};

/// Pause between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long a condition may take before the test fails: far above what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The same for work on hundreds of things, or on gigabytes.
pub const LONG_PATIENCE: Duration = Duration::from_secs(300);

/// Waits until `condition` holds; fails the test with `what` after [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(PATIENCE, condition), "after {PATIENCE:?} still not: {what}");
}

/// Waits until `look` finds something; fails the test with `what` after [`PATIENCE`].
#[track_caller]
pub fn eventually_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(what, || {
        found = look();
        found.is_some()
    });
    found.unwrap()
}

/// Whether `condition` holds within `limit`. It is looked at once at least.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// As [`eventually`], for tests on a tokio runtime: other tasks go on meanwhile.
pub async fn eventually_async<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "after {PATIENCE:?} still not: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[test]
fn a_condition_that_comes_true_is_seen_and_one_that_does_not_is_given_up() {
    let mut looks = 0;
    eventually("three looks", || {
        looks += 1;
        looks == 3
    });
    assert_eq!(eventually_some("a value", || Some(7)), 7);
    assert!(!holds_within(Duration::from_millis(20), || false));
}

#[tokio::test]
async fn waiting_on_a_runtime_lets_other_tasks_go_on() {
    let (tx, rx) = tokio::sync::watch::channel(false);
    tokio::spawn(async move { tx.send(true) });
    eventually_async("the other task sent", || async { *rx.borrow() }).await;
}
