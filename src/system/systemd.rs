//! Tells systemd how the service stands: ready, reloading, stopping, status, alive. Outside of systemd all of it does nothing.
//!
//! Protocol: sd_notify(3). Nothing here decides whether the service is well: who calls [`alive`] must have seen every part
//! move, for a task that pings blindly keeps a dead service running.

use std::time::Duration;

use sd_notify::NotifyState;

/// Longest status line, in bytes; longer ones are cut.
const STATUS_BYTES_MAX: usize = 200;

/// Start-up, or a reload, is finished: all listeners are bound.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(cut(status))]);
}

/// A reload begins; [`ready`] ends it. With `Type=notify-reload` systemd waits for that.
pub fn reloading() {
    // Without the time stamp systemd takes the message for one of an earlier reload.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The service begins to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`. No patient data.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(cut(text))]);
}

/// The watchdog's sign of life.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be called: half of what the unit allows (`WatchdogSec=`); `None`: there is no watchdog.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// The first line, at most [`STATUS_BYTES_MAX`] long: a line end would begin another assignment of the protocol.
fn cut(text: &str) -> &str {
    let line = text.lines().next().unwrap_or("");
    let end = (0..=STATUS_BYTES_MAX.min(line.len())).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
    line.get(..end).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_status_can_not_smuggle_a_second_assignment() {
        assert_eq!(cut("running\nREADY=1"), "running");
        assert_eq!(cut(""), "");
        assert_eq!(cut(&"ä".repeat(150)).len(), 200);
    }

    /// Started by the test below in a process of its own, since the socket is named by the environment.
    #[test]
    fn child_that_reloads_and_stops() {
        if std::env::var_os("WARDGATE_TEST_CHILD").is_some() {
            reloading();
            ready("3 sources, 2 upstreams");
            alive();
            stopping();
        }
    }

    #[test]
    fn systemd_is_told_of_a_reload_with_its_time_then_ready_alive_and_stopping() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "system::systemd::tests::child_that_reloads_and_stops"])
            .env("WARDGATE_TEST_CHILD", "1")
            .env("NOTIFY_SOCKET", &path)
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let mut buffer = [0; 256];
        let mut told = || {
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
        };
        let reload = told();
        let time: u64 = reload.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(time > 0);
        assert_eq!(told(), "READY=1\nSTATUS=3 sources, 2 upstreams");
        assert_eq!(told(), "WATCHDOG=1");
        assert_eq!(told(), "STOPPING=1");
    }
}
