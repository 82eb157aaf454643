//! SIGHUP: a changed file is applied part by part, or not at all.

use std::time::Duration;

use super::{engine, monitors_to_engine, route, source};
use crate::support::gateway::Gateway;
use crate::support::mllp::{Device, Engine, message};
use crate::support::wait::eventually;

/// How long a connection that should stay open is watched.
const A_MOMENT: Duration = Duration::from_millis(50);

#[test]
fn a_new_source_comes_in_and_the_connections_of_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Engine::up();
    let config = monitors_to_engine(receiver.port);
    let gateway = Gateway::start(folder.path(), &config);
    let before = gateway.endpoint("monitors");
    let mut device = Device::connect(before);
    assert_eq!(device.send(&message("1")), "AA");

    let more = config.clone() + &source("lab") + &route("lab", &["engine"]);
    assert_eq!(gateway.reload(&more), None);
    assert_eq!(device.send(&message("2")), "AA");
    assert_eq!(Device::connect(gateway.endpoint("lab")).send(&message("3")), "AA");
    assert_eq!(gateway.endpoint("monitors"), before);
    eventually("all three arrived", || receiver.count() == 3);

    // A changed source is opened anew, one that is gone is closed; the first one is neither.
    let lab = gateway.endpoint("lab");
    let mut left = Device::connect(lab);
    assert_eq!(left.send(&message("4")), "AA");
    assert_eq!(gateway.reload(&config), None);
    assert!(left.is_closed_within(Duration::from_secs(10)) && Device::try_connect(lab).is_err());
    assert_eq!(device.send(&message("5")), "AA");
    let changed = config.replace("listen = \"127.0.0.1:0\"", "listen = \"127.0.0.1:0\"\nack = \"enhanced\"");
    assert_eq!(gateway.reload(&changed), None);
    assert!(device.is_closed_within(Duration::from_secs(10)));
    assert_eq!(Device::connect(gateway.endpoint("monitors")).send(&message("6")), "CA");
    eventually("all arrived", || receiver.first_arrivals().0 == ["1", "2", "3", "4", "5", "6"]);
    // It was given another lane twice meanwhile, and counts since the start of the service all the same.
    eventually("all are counted", || gateway.status()["upstreams"]["engine"]["delivered"] == 6);
}

#[test]
fn a_file_with_problems_changes_nothing_and_the_status_says_why_until_a_good_one_comes() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Engine::up();
    let config = monitors_to_engine(receiver.port);
    let gateway = Gateway::start(folder.path(), &config);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    assert_eq!(device.send(&message("1")), "AA");
    let in_force = gateway.status()["config"].clone();

    let why = gateway.reload(&config.replace("plain = true", "plane = true")).unwrap();
    assert!(why.contains("gateway.toml:") && why.contains("plane"), "{why}");
    let why = gateway.reload(&(config.clone() + &route("monitors", &["nowhere"]))).unwrap();
    assert!(why.contains("nowhere"), "{why}");
    // A listener that can't be opened: the former configuration is put back.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = source("lab").replace(":0", &format!(":{}", taken.local_addr().unwrap().port()));
    let why = gateway.reload(&(config.clone() + &second + &route("lab", &["engine"]))).unwrap();
    assert!(why.contains("lab") && why.contains("former configuration is in force"), "{why}");

    assert_eq!(gateway.status()["config"], in_force);
    assert!(gateway.status()["sources"]["lab"].is_null());
    assert!(!device.is_closed_within(A_MOMENT));
    assert_eq!(device.send(&message("2")), "AA");
    eventually("both arrived", || receiver.count() == 2);
    assert_eq!(gateway.reload(&(config.clone() + &source("lab") + &route("lab", &["engine"]))), None);
    assert!(gateway.alarms().iter().all(|(code, _)| code != "config-refused"));
}

#[test]
fn an_upstream_with_a_backlog_is_not_removed_until_the_file_says_what_becomes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut old, new) = (Engine::down(), Engine::up());
    let both =
        source("monitors") + &engine("old", old.port) + &engine("new", new.port) + &route("monitors", &["old", "new"]);
    let gateway = Gateway::start(folder.path(), &both);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    assert_eq!((device.send(&message("1")), device.send(&message("2"))), ("AA".into(), "AA".into()));
    eventually("the new one has both", || gateway.backlog_of("new") == 0 && new.count() == 2);

    let without = source("monitors") + &engine("new", new.port) + &route("monitors", &["new"]);
    let why = gateway.reload(&without).unwrap();
    assert!(why.contains("2 messages still wait") && why.contains("retired = \"drain\""), "{why}");

    let drained = without.clone() + "[upstream.old]\nretired = \"drain\"\n" + &engine("old", old.port);
    assert_eq!(gateway.reload(&drained), None);
    assert_eq!(device.send(&message("3")), "AA");
    assert_eq!(gateway.backlog_of("old"), 2, "it gets nothing new");
    old.restore();
    eventually("what waited for it arrives", || gateway.backlog() == 0);
    assert_eq!(old.first_arrivals().0, ["1", "2"]);
    assert_eq!(gateway.reload(&without), None);
    eventually("the other one went on", || new.first_arrivals().0 == ["1", "2", "3"]);
}

#[test]
fn what_waits_for_an_upstream_that_is_given_up_can_become_dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Engine::down(), Engine::up());
    let both =
        source("monitors") + &engine("old", old.port) + &engine("new", new.port) + &route("monitors", &["old", "new"]);
    let gateway = Gateway::start(folder.path(), &both);
    assert_eq!(Device::connect(gateway.endpoint("monitors")).send(&message("1")), "AA");
    let buried = source("monitors")
        + &engine("new", new.port)
        + &route("monitors", &["new"])
        + "[upstream.old]\nretired = \"dead-letter\"\n";
    assert_eq!(gateway.reload(&buried), None);
    eventually("nothing waits", || gateway.backlog() == 0);
    let dead = gateway.dead();
    assert!(dead.len() == 1 && dead[0]["reason"] == "the upstream was retired", "{dead:?}");
}

#[test]
fn a_refused_file_buries_nothing_forgets_nothing_and_moves_no_message() {
    let folder = tempfile::tempdir().unwrap();
    let (mut old, new) = (Engine::down(), Engine::up());
    let both =
        source("monitors") + &engine("old", old.port) + &engine("new", new.port) + &route("monitors", &["old", "new"]);
    let gateway = Gateway::start(folder.path(), &both);
    let mut device = Device::connect(gateway.endpoint("monitors"));
    let ids: Vec<String> = (0..40).map(|id| id.to_string()).collect();
    assert!(ids.iter().all(|id| device.send(&message(id)) == "AA"));
    eventually("the new one has all", || gateway.backlog_of("new") == 0);

    // It gives the old upstream up, and can't be applied.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for attempt in 0..10 {
        let buried = source("monitors")
            + &engine("new", new.port)
            + "[upstream.old]\nretired = \"dead-letter\"\n"
            + &route("monitors", &["new"])
            + &source(&format!("lab-{attempt}")).replace(":0", &format!(":{port}"))
            + &route(&format!("lab-{attempt}"), &["new"]);
        let why = gateway.reload(&buried).unwrap();
        assert!(why.contains("lab") && why.contains("former configuration"), "{why}");
        assert_eq!(gateway.dead().len(), 0, "attempt {attempt}");
    }
    assert_eq!(gateway.backlog_of("old"), 40);
    assert_eq!(device.send(&message("last")), "AA");
    old.restore();
    eventually("everything arrived", || gateway.backlog() == 0);
    assert_eq!(old.first_arrivals().0, [ids, vec!["last".to_owned()]].concat());
}
