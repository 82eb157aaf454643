//! What a person must see, derived from the snapshot: each alarm says what is wrong and what to do about it.
//!
//! Pure functions of numbers and states. The parts add alarms of their own (the spool's: full, failed, damaged; a certificate
//! that ends); silence is raised where the configuration says how long a source may be silent.

use std::collections::{BTreeMap, BTreeSet};

use super::answers::Damage;
use crate::status::plug::{PlugState, PlugStatus};
use crate::status::{Alarm, LaneStatus, Link, Status, UpstreamStatus};
use crate::values::{Name, counted};

/// A lane whose oldest message waits for longer, in seconds, raises an alarm.
const BACKLOG_AGE_S: u64 = 5 * 60;
/// An upstream that can't be reached for longer, in seconds, raises an alarm, however little waits for it.
const UPSTREAM_DOWN_S: u64 = 5 * 60;
/// So long after the last question of a device that nobody answers, in seconds, its alarm goes.
const QUERY_ALARM_S: u64 = 24 * 3600;
/// A device that is missing for longer, in seconds, raises an alarm.
const UNPLUGGED_S: u64 = 10;
/// Damaged files that an alarm names.
const FILES_MAX: usize = 5;

/// The alarms that follow from the snapshot, beside those that are already in it.
pub fn derive(status: &Status) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for (name, source) in &status.sources {
        if let Some(asked_s) = source.last_query_s.filter(|asked_s| *asked_s < QUERY_ALARM_S) {
            let text = format!(
                "the analyser asks for orders ({}, the last {} min ago) and nobody answers here: turn off query mode (\"host query\") on \
                 the analyser, or it may wait before each sample. Its results are taken all the same",
                counted(source.queries, "question"),
                asked_s / 60
            );
            alarms.push(alarm("query-unanswered", name, text));
        }
        if let Some(trouble) = &source.trouble {
            let text = format!("this source is not running: {trouble}. It is tried again by itself");
            alarms.push(alarm("source-down", name, text));
        }
        alarms.extend(source.plug.as_ref().and_then(|plug| of_plug(name, plug)));
        if source.closed_folders > 0 {
            let text = format!(
                "{} in {} can't be looked into: give this service the right to read there, or what lies there is never taken",
                counted(source.closed_folders, "folder"),
                source.endpoint
            );
            alarms.push(alarm("folder-closed", name, text));
        }
    }
    alarms.extend(status.lanes.iter().flat_map(|lane| of_lane(status, lane)));
    alarms.extend(status.upstreams.iter().filter_map(|(name, upstream)| of_upstream(status, name, upstream)));
    alarms
}

/// An upstream that is away, unless one of its lanes tells of it.
fn of_upstream(status: &Status, name: &Name, upstream: &UpstreamStatus) -> Option<Alarm> {
    let (Link::Down(cause), Some(down_s)) = (&upstream.link, upstream.down_s) else { return None };
    let old = |lane: &LaneStatus| lane.oldest_s.is_some_and(|age_s| age_s >= BACKLOG_AGE_S);
    if down_s < UPSTREAM_DOWN_S || status.lanes.iter().any(|lane| lane.upstream == *name && old(lane)) {
        return None;
    }
    let text = format!(
        "this upstream can't be reached for {} min: {cause}. Little or nothing waits for it yet; it is tried again by itself",
        down_s / 60
    );
    Some(alarm("upstream-down", name, text))
}

/// A device that is not there. A moment of it (a cable that is moved, a device that dials anew) is none for a person.
fn of_plug(source: &Name, plug: &PlugStatus) -> Option<Alarm> {
    let PlugState::Missing(cause) = &plug.state else { return None };
    let text = format!(
        "the device has not been there for {} s: {cause}. Plug it in and switch it on; it is taken up by itself",
        plug.since_s
    );
    (plug.since_s >= UNPLUGGED_S).then(|| alarm("unplugged", source, text))
}

fn of_lane(status: &Status, lane: &LaneStatus) -> Vec<Alarm> {
    let about = format!("{} > {}", lane.source, lane.upstream);
    let mut alarms = Vec::new();
    if let Some(why) = &lane.held {
        // One that waits for a person has an alarm of the gateway, with the commands that decide, in place of this one.
        let text = format!("nothing is sent: {why}. Nothing is lost: it is tried again by itself");
        alarms.push(alarm("lane-held", &about, text));
    } else if let Some(age_s) = lane.oldest_s.filter(|age_s| *age_s >= BACKLOG_AGE_S)
        // What a source keeps for itself waits for no upstream.
        && lane.upstream != Name::assembly()
    {
        let cause = match status.upstreams.get(&lane.upstream).map(|upstream| &upstream.link) {
            Some(Link::Down(cause)) => format!("the upstream can't be reached ({cause})"),
            Some(Link::Up) => "the upstream is connected but too slow, or does not accept".to_owned(),
            Some(Link::Idle | Link::Connecting) | None => "there is no connection yet".to_owned(),
        };
        let text = format!(
            "{} waiting, the oldest for {} min: {cause}. Nothing is lost; it is sent when the upstream takes it",
            counted(lane.backlog, "message"),
            age_s / 60
        );
        alarms.push(alarm("backlog-age", &about, text));
    }
    alarms.extend(of_dead(lane, &about));
    alarms
}

/// Dead letters, each kind with what to do about it: a message that is damaged here can never be sent, one that was given up
/// with its upstream waits for another one.
fn of_dead(lane: &LaneStatus, about: &str) -> Option<Alarm> {
    let refused = lane.dead.saturating_sub(lane.dead_retired + lane.dead_damaged);
    let upstream = &lane.upstream;
    let kinds = [
        (refused, "refused for good: mend the cause, then retry or discard".to_owned()),
        (
            lane.dead_retired,
            format!("left over from the retired upstream: export them, retry them when [upstream.{upstream}] is in use again, or discard"),
        ),
        (
            lane.dead_damaged,
            "damaged on this box's disk and can't be sent: ask the sender for them again, discard them here, and look after the \
             disk (wardgate spool verify)"
                .to_owned(),
        ),
    ];
    let told = kinds.iter().filter(|(number, _)| *number > 0);
    let told: Vec<String> = told.map(|(number, what)| format!("{} {what}", counted(*number, "message"))).collect();
    let text = format!("{}. See wardgate dead list --upstream {upstream}", told.join("; "));
    (!told.is_empty()).then(|| alarm("dead-letters", about, text))
}

/// What a check of all records found: one alarm for each log, with the files.
pub fn of_damage(damage: &[Damage]) -> Vec<Alarm> {
    let mut logs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for place in damage {
        logs.entry(place.log.as_str()).or_default().insert(&place.file);
    }
    let told = logs.into_iter().map(|(log, files)| {
        let more = if files.len() > FILES_MAX { ", ..." } else { "" };
        let shown: Vec<&str> = files.iter().copied().take(FILES_MAX).collect();
        let text = format!(
            "\"wardgate spool verify\" found damage in {}{more}: what can't be read is lost, the rest goes on. The disk may be \
             failing: replace it soon. This goes when a check finds nothing",
            shown.join(", ")
        );
        alarm("damaged", log, text)
    });
    told.collect()
}

fn alarm(code: &str, about: impl ToString, text: String) -> Alarm {
    Alarm { code: code.to_owned(), about: about.to_string(), text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::sample;
    use crate::status::SourceCounters;

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
        assert_eq!(codes(&status), ["source-down", "backlog-age", "dead-letters"]);
        let alarms = derive(&status);
        assert!(alarms.iter().any(|alarm| alarm.text.contains("connection refused")), "{alarms:?}");
        assert!(alarms.iter().any(|alarm| alarm.text.contains("wardgate dead list --upstream engine")));
    }

    #[test]
    fn a_held_lane_says_that_it_goes_on_by_itself_and_does_not_point_to_dead_letters_that_are_not_there() {
        let mut status = sample::healthy();
        status.lanes[0].held = Some("nobody is subscribed".into());
        let alarms = derive(&status);
        assert_eq!(codes(&status), ["lane-held"]);
        assert!(alarms[0].text.starts_with("nothing is sent: nobody is subscribed. "), "{alarms:?}");
        assert!(alarms[0].text.contains("by itself") && !alarms[0].text.contains("dead list"), "{alarms:?}");
    }

    #[test]
    fn folders_that_can_not_be_read_are_an_alarm_and_what_a_source_keeps_for_itself_waits_for_no_upstream() {
        let mut status = sample::healthy();
        let (name, source) = status.sources.first_key_value().map(|(name, part)| (name.clone(), part.clone())).unwrap();
        status.sources.get_mut(&name).unwrap().closed_folders = 2;
        let mut own = sample::troubled().lanes[0].clone();
        (own.source, own.upstream, own.held, own.dead) = (name, Name::assembly(), None, 0);
        (own.backlog, own.oldest_s) = (3, Some(86_400));
        status.lanes.push(own);
        let alarms = derive(&status);
        assert_eq!(codes(&status), ["folder-closed"], "{alarms:?}");
        assert!(alarms[0].text.contains("2 folders") && alarms[0].text.contains(&source.endpoint), "{alarms:?}");
    }

    #[test]
    fn an_upstream_that_is_away_for_long_is_an_alarm_also_when_nothing_waits() {
        let mut status = sample::healthy();
        for (down_s, told) in [(60, vec![]), (600, vec!["upstream-down".to_owned()])] {
            let upstream = status.upstreams.values_mut().next().unwrap();
            (upstream.link, upstream.down_s) = (Link::Down("connection refused".into()), Some(down_s));
            assert_eq!(codes(&status), told);
        }
        assert!(derive(&status)[0].text.contains("10 min: connection refused"));
        status.lanes = sample::troubled().lanes;
        assert!(!codes(&status).contains(&"upstream-down".to_owned()), "its lane tells of it");
    }

    #[test]
    fn a_device_that_is_not_plugged_in_is_an_alarm_after_a_while() {
        let mut status = sample::healthy();
        let counters = SourceCounters::default();
        counters.plug.at("/dev/serial/by-path/usb-1", "9600 8N1");
        counters.plug.set(PlugState::Missing("it was unplugged".into()), 5_000);
        for (now_ms, raised) in [(6_000, false), (15_000, true)] {
            let snapshot = counters.snapshot("serial", "/dev/serial/by-path/usb-1", now_ms);
            status.sources.insert("oximeter".parse().unwrap(), snapshot);
            assert_eq!(codes(&status).contains(&"unplugged".to_owned()), raised);
        }
        counters.plug.set(PlugState::Plugged, 16_000);
        let snapshot = counters.snapshot("serial", "/dev/serial/by-path/usb-1", 60_000);
        status.sources.insert("oximeter".parse().unwrap(), snapshot);
        assert_eq!(codes(&status), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_dead_letter_is_told_with_what_to_do_about_it() {
        let mut status = sample::healthy();
        let told = |status: &Status| derive(status).into_iter().map(|alarm| alarm.text).collect::<Vec<_>>().join("\n");
        let lane = LaneStatus { dead: 1, ..status.lanes[0].clone() };
        status.lanes = vec![LaneStatus { dead_retired: 1, ..lane.clone() }];
        assert!(told(&status).starts_with("1 message left over from the retired upstream: "), "{}", told(&status));
        assert!(!told(&status).contains("mend the cause"), "nobody refused it");
        status.lanes = vec![LaneStatus { dead: 4, dead_damaged: 2, dead_retired: 1, ..lane }];
        let text = told(&status);
        for words in ["1 message refused for good", "2 messages damaged on this box's disk", "1 message left over"] {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn damage_that_a_check_found_names_its_files() {
        let place = |segment, file: &str| Damage {
            log: crate::envelope::Class::Clinical,
            segment,
            file: file.into(),
            text: "record 3 is lost".into(),
        };
        let alarms = of_damage(&[place(1, "/spool/clinical/000001.seg"), place(1, "/spool/clinical/000001.seg")]);
        assert_eq!(alarms.len(), 1);
        assert_eq!((alarms[0].code.as_str(), alarms[0].about.as_str()), ("damaged", "clinical"));
        assert_eq!(alarms[0].text.matches("/spool/clinical/000001.seg").count(), 1, "{}", alarms[0].text);
        assert_eq!(of_damage(&[]), []);
    }
}
