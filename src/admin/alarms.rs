//! What a person must see, derived from the snapshot: each alarm says what is wrong and what to do about it.
//!
//! A pure function of numbers and states. The parts add alarms of their own (the spool's, a certificate that ends); silence
//! is raised where the configuration says how long a source may be silent.

use crate::status::{Alarm, LaneStatus, Link, LogStatus, Status};

/// A lane whose oldest message waits for longer, in seconds, raises an alarm.
const BACKLOG_AGE_S: u64 = 5 * 60;
/// A log that is fuller than this, in percent of its quota, raises an alarm.
const QUOTA_PERCENT: u64 = 80;

/// The alarms that follow from the snapshot, beside those that are already in it.
pub fn derive(status: &Status) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for (name, source) in &status.sources {
        if let Some(trouble) = &source.trouble {
            let text = format!("this source is not running: {trouble}. It is tried again by itself");
            alarms.push(alarm("source-down", name, text));
        }
    }
    alarms.extend(status.lanes.iter().flat_map(|lane| of_lane(status, lane)));
    alarms.extend(status.logs.iter().filter_map(of_log));
    alarms
}

fn of_lane(status: &Status, lane: &LaneStatus) -> Vec<Alarm> {
    let about = format!("{} > {}", lane.source, lane.upstream);
    let mut alarms = Vec::new();
    if let Some(why) = &lane.held {
        let text = format!("nothing is sent: {why}. See wardgate dead list --upstream {}", lane.upstream);
        alarms.push(alarm("lane-held", &about, text));
    } else if let Some(age_s) = lane.oldest_s.filter(|age_s| *age_s >= BACKLOG_AGE_S) {
        let cause = match status.upstreams.get(&lane.upstream).map(|upstream| &upstream.link) {
            Some(Link::Down(cause)) => format!("the upstream can't be reached ({cause})"),
            Some(Link::Up) => "the upstream is connected but too slow, or does not accept".to_owned(),
            Some(Link::Idle | Link::Connecting) | None => "there is no connection yet".to_owned(),
        };
        let text = format!(
            "{} messages wait, the oldest for {} min: {cause}. Nothing is lost; it is sent when the upstream takes it",
            lane.backlog,
            age_s / 60
        );
        alarms.push(alarm("backlog-age", &about, text));
    }
    if lane.dead > 0 {
        let text = format!(
            "{} messages were refused for good. See wardgate dead list --upstream {}, mend the cause, then retry or discard them",
            lane.dead, lane.upstream
        );
        alarms.push(alarm("dead-letters", &about, text));
    }
    alarms
}

fn of_log(log: &LogStatus) -> Option<Alarm> {
    if let Some(why) = &log.refusing {
        let text = format!(
            "new messages are refused: {why}. Devices are told and try again; it goes on by itself when there is room"
        );
        return Some(alarm("refusing", &log.log, text));
    }
    let percent = u128::from(log.used) * 100 / u128::from(log.quota.max(1));
    (percent >= u128::from(QUOTA_PERCENT)).then(|| {
        let text = format!("{percent} % of the quota are used by messages that are not delivered. Mend the upstream, or raise [spool.{}] quota", log.log);
        alarm("quota", &log.log, text)
    })
}

fn alarm(code: &str, about: impl ToString, text: String) -> Alarm {
    Alarm { code: code.to_owned(), about: about.to_string(), text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::sample;

    fn codes(status: &Status) -> Vec<String> {
        derive(status).into_iter().map(|alarm| alarm.code).collect()
    }

    #[test]
    fn a_healthy_box_raises_nothing() {
        assert_eq!(codes(&sample::healthy()), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_do() {
        let status = sample::troubled();
        assert_eq!(codes(&status), ["source-down", "backlog-age", "dead-letters", "quota"]);
        let alarms = derive(&status);
        assert!(alarms.iter().any(|alarm| alarm.text.contains("connection refused")), "{alarms:?}");
        assert!(alarms.iter().any(|alarm| alarm.text.contains("wardgate dead list --upstream engine")));
    }
}
