//! The forwarder over a real spool, with an upstream that answers as each test says. Time is tokio's paused clock: pauses
//! of minutes pass at once, and what would be a hot loop shows as a count.

#![cfg(test)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::fixtures::identity;
use super::forwarder::{Forwarding, forward};
use super::holds::{Decision, Holds};
use super::lane::REFUSALS_MAX;
use super::{Delivery, Identity, SendError, Stop, Upstream, WhenRefused};
use crate::envelope::{Class, Envelope, Flags, Meta};
use crate::route::convert::Conversions;
use crate::spool::{Disk, Secret, Spool, SpoolConfig};
use crate::status::{Counter, Link, UpstreamCounters};
use crate::values::{Problems, SecretRef, Section};

/// What the upstream does with a message.
enum Act {
    Accept,
    /// Takes it, and lets the test tell later how it ended.
    Later,
    Fail(SendError),
}

type Plan = Box<dyn FnMut(&str) -> Act + Send>;

/// An upstream that does as it is told and remembers what it was sent.
struct World {
    plan: Mutex<Plan>,
    sent: Mutex<Vec<String>>,
    later: Mutex<VecDeque<oneshot::Sender<Result<super::Receipt, SendError>>>>,
    connects: Mutex<Vec<Instant>>,
    refuses_connections: Mutex<bool>,
    hang_up: Notify,
    window: usize,
    when_refused: WhenRefused,
}

#[derive(Clone)]
struct WorldConfig(Arc<World>);

impl PartialEq for WorldConfig {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Section for WorldConfig {
    fn check(&self, _problems: &mut Problems) {}
    fn files(&mut self, _visit: &mut dyn FnMut(&mut SecretRef)) {}
}

struct Told(Arc<World>);

impl Upstream for Told {
    type Config = WorldConfig;
    const PROTOCOL: &'static str = "told";

    fn when_refused(config: &WorldConfig) -> WhenRefused {
        config.0.when_refused
    }

    async fn connect(config: &WorldConfig, _about: &Identity) -> Result<Self, SendError> {
        config.0.connects.lock().unwrap().push(Instant::now());
        match *config.0.refuses_connections.lock().unwrap() {
            true => Err(lost()),
            false => Ok(Self(Arc::clone(&config.0))),
        }
    }

    async fn send(&self, envelope: &Envelope) -> Result<Delivery, SendError> {
        let text = String::from_utf8(envelope.body.collect().await.unwrap().to_vec()).unwrap();
        let act = (self.0.plan.lock().unwrap())(&text);
        self.0.sent.lock().unwrap().push(text);
        match act {
            Act::Accept => Ok(Delivery::done("AA")),
            Act::Fail(error) => Err(error),
            Act::Later => {
                let (sender, receiver) = oneshot::channel();
                self.0.later.lock().unwrap().push_back(sender);
                Ok(Delivery::waiting(receiver))
            }
        }
    }

    fn window(&self) -> usize {
        self.0.window
    }

    async fn closed(&self) -> String {
        self.0.hang_up.notified().await;
        "the peer hung up".into()
    }
}

/// A spool in a temporary folder with a forwarder to the told upstream.
struct Bench {
    spool: Spool,
    world: Arc<World>,
    counters: Arc<UpstreamCounters>,
    holds: Arc<Holds>,
    conversions: Conversions,
    stop: Stop,
    class: Class,
    running: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(window: usize, when_refused: WhenRefused, plan: impl FnMut(&str) -> Act + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let storage = Arc::new(Disk::open(folder.path()).unwrap());
        let spool = Spool::open(storage, Secret::random(), &config).unwrap();
        let world = World {
            plan: Mutex::new(Box::new(plan)),
            sent: Mutex::default(),
            later: Mutex::default(),
            connects: Mutex::default(),
            refuses_connections: Mutex::new(false),
            hang_up: Notify::new(),
            window,
            when_refused,
        };
        let (counters, holds, stop) = (Arc::default(), Arc::default(), Stop::new());
        Self {
            spool,
            world: Arc::new(world),
            counters,
            holds,
            conversions: Conversions::default(),
            stop,
            class: Class::Clinical,
            running: None,
            _folder: folder,
        }
    }

    fn start(mut self, sources: &[&str]) -> Self {
        let upstream = identity().upstream;
        let lane = |source: &&str| self.spool.lane(self.class, &source.parse().unwrap(), &upstream);
        let forwarding = Forwarding {
            identity: identity(),
            spool: self.spool.clone(),
            lanes: sources.iter().map(lane).collect(),
            conversions: tokio::sync::watch::Sender::new(Arc::new(self.conversions.clone())).subscribe(),
            counters: Arc::clone(&self.counters),
            holds: Arc::clone(&self.holds),
            status: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
        };
        let running = forward::<Told>(WorldConfig(Arc::clone(&self.world)), forwarding, self.stop.clone());
        self.running = Some(tokio::spawn(running));
        self
    }

    async fn store(&self, source: &str, text: &str) {
        let source = source.parse().unwrap();
        let mut draft = self.spool.begin(self.class, &source);
        draft.write(text.as_bytes()).await.unwrap();
        let meta = Meta {
            source,
            protocol: "mllp".into(),
            content_type: "application/hl7-v2".into(),
            // Versions of one instance: "UID/1", "UID/2".
            control_id: text.split('/').next().unwrap_or_default().as_bytes().to_vec(),
            targets: vec![identity().upstream],
            flags: Flags::default(),
            received: self.spool.now(),
            tokens: Vec::new(),
        };
        draft.commit(meta).await.unwrap();
    }

    async fn store_all(&self, source: &str, texts: &[&str]) {
        for text in texts {
            self.store(source, text).await;
        }
    }

    /// Waits in real time: the spool's threads do not live by the paused clock.
    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(120);
        while !condition(self) {
            assert!(std::time::Instant::now() < end, "never: {what}; sent {:?}", self.sent());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn sent(&self) -> Vec<String> {
        self.world.sent.lock().unwrap().clone()
    }

    fn backlog(&self) -> u64 {
        self.spool.lanes().iter().map(|lane| lane.backlog).sum()
    }

    fn held(&self, source: &str) -> Option<String> {
        self.spool.lanes().into_iter().find(|lane| lane.source.as_str() == source)?.held
    }

    fn counted(&self, counter: impl Fn(&UpstreamCounters) -> &Counter) -> u64 {
        counter(&self.counters).value()
    }

    async fn end(mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap();
        let spool = self.spool.clone();
        tokio::task::spawn_blocking(move || spool.close()).await.unwrap();
    }
}

fn lost() -> SendError {
    SendError::Disconnected { cause: "cable out".into() }
}

fn refused() -> SendError {
    SendError::Refused { reason: "AE".into() }
}

fn rejected() -> SendError {
    SendError::Rejected { reason: "AR".into() }
}

fn busy(after: Option<Duration>) -> SendError {
    SendError::Busy { cause: "503".into(), after }
}

/// Fails `text` so many times, accepts it and all else afterwards.
fn failing(text: &'static str, mut times: u32, error: impl Fn() -> SendError + Send + 'static) -> Plan {
    Box::new(move |sent| {
        if sent != text || times == 0 {
            return Act::Accept;
        }
        times -= 1;
        Act::Fail(error())
    })
}

#[tokio::test(start_paused = true)]
async fn messages_go_out_in_order_and_the_backlog_empties() {
    let bench = Bench::new(1, WhenRefused::DeadLetter, |_| Act::Accept).start(&["icu"]);
    bench.store_all("icu", &["1", "2", "3"]).await;
    bench.until("all delivered", |bench| bench.counted(|c| &c.delivered) == 3).await;
    assert_eq!(bench.sent(), ["1", "2", "3"]);
    assert_eq!((bench.backlog(), bench.counted(|c| &c.retried)), (0, 0));
    bench.end().await;
}

/// An archive that replaces would end with the older version.
#[tokio::test(start_paused = true)]
async fn a_changed_instance_is_sent_when_the_former_one_was_taken_whatever_was_answered_first() {
    let mut unanswered = 3;
    let mut bench = Bench::new(4, WhenRefused::DeadLetter, move |text| {
        // "large" and the first try of the former version are answered when the test says it.
        let later = unanswered > 0 && (text == "large" || text == "ct/1");
        unanswered -= i32::from(later);
        if later { Act::Later } else { Act::Accept }
    });
    bench.class = Class::Imaging;
    let bench = bench.start(&["ct"]);
    bench.store_all("ct", &["large", "ct/1", "ct/2", "mr/1"]).await;
    bench.until("others pass the version that waits", |bench| bench.sent().contains(&"mr/1".to_owned())).await;
    assert_eq!(bench.sent(), ["large", "ct/1", "mr/1"]);
    let mut later: Vec<_> = bench.world.later.lock().unwrap().drain(..).collect();
    later.pop().unwrap().send(Err(busy(None))).unwrap();
    later.pop().unwrap().send(Ok(super::Receipt { code: "200".into() })).unwrap();
    bench.until("the former one comes again", |bench| bench.world.later.lock().unwrap().len() == 1).await;
    assert_eq!(bench.sent(), ["large", "ct/1", "mr/1", "ct/1"]);
    let again = bench.world.later.lock().unwrap().pop_front().unwrap();
    again.send(Ok(super::Receipt { code: "200".into() })).unwrap();
    bench.until("all delivered", |bench| bench.counted(|c| &c.delivered) == 4).await;
    assert_eq!(
        bench.sent(),
        ["large", "ct/1", "mr/1", "ct/1", "ct/2"],
        "each was sent once but for what was not taken"
    );
    assert_eq!((bench.backlog(), bench.spool.dead().len()), (0, 0));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_instance_goes_on_its_way_when_the_former_one_is_set_aside() {
    let mut bench = Bench::new(4, WhenRefused::DeadLetter, |text| match text {
        "ct/1" => Act::Later,
        _ => Act::Accept,
    });
    bench.class = Class::Imaging;
    let bench = bench.start(&["ct"]);
    bench.store_all("ct", &["ct/1", "ct/2", "mr/1"]).await;
    bench.until("others pass the version that waits", |bench| bench.sent().contains(&"mr/1".to_owned())).await;
    let former = bench.world.later.lock().unwrap().pop_front().unwrap();
    former.send(Err(rejected())).unwrap();
    bench.until("the later one goes", |bench| bench.counted(|c| &c.delivered) == 2).await;
    assert_eq!(bench.sent(), ["ct/1", "mr/1", "ct/2"]);
    assert_eq!(bench.spool.dead().len(), 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_refused_again_and_again_becomes_a_dead_letter_and_the_next_goes_on() {
    let plan = failing("bad", u32::MAX, refused);
    let bench = Bench::new(4, WhenRefused::DeadLetter, plan).start(&["icu"]);
    bench.store_all("icu", &["bad", "2", "3"]).await;
    bench.until("the lane goes on", |bench| bench.counted(|c| &c.delivered) == 2).await;
    let tries = bench.sent().iter().filter(|text| *text == "bad").count();
    assert_eq!(tries, usize::try_from(REFUSALS_MAX).unwrap());
    let dead = bench.spool.dead();
    assert_eq!((dead.len(), dead[0].reason.as_str(), dead[0].attempts), (1, "AE", REFUSALS_MAX));
    assert_eq!((bench.backlog(), bench.held("icu")), (0, None));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_rejected_is_a_dead_letter_at_once_and_those_behind_it_are_sent_once() {
    let bench = Bench::new(4, WhenRefused::DeadLetter, failing("bad", u32::MAX, rejected)).start(&["icu"]);
    bench.store_all("icu", &["1", "bad", "3"]).await;
    bench.until("the lane goes on", |bench| bench.counted(|c| &c.delivered) == 2).await;
    assert_eq!(bench.sent(), ["1", "bad", "3"]);
    assert_eq!((bench.spool.dead().len(), bench.counted(|c| &c.dead)), (1, 1));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_passing_refusal_costs_nothing_but_time() {
    let bench = Bench::new(1, WhenRefused::DeadLetter, failing("1", 3, refused)).start(&["icu"]);
    bench.store_all("icu", &["1", "2"]).await;
    bench.until("delivered", |bench| bench.counted(|c| &c.delivered) == 2).await;
    assert_eq!(bench.sent(), ["1", "1", "1", "1", "2"]);
    assert_eq!((bench.spool.dead().len(), bench.counted(|c| &c.connects)), (0, 1));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_upstream_is_waited_for_without_end_and_as_long_as_it_asks() {
    let start = Instant::now();
    let plan = failing("1", 30, || busy(Some(Duration::from_secs(300))));
    let bench = Bench::new(1, WhenRefused::DeadLetter, plan).start(&["icu"]);
    bench.store("icu", "1").await;
    bench.until("delivered", |bench| bench.counted(|c| &c.delivered) == 1).await;
    assert!(start.elapsed() >= Duration::from_secs(30 * 300), "{:?}", start.elapsed());
    assert_eq!((bench.spool.dead().len(), bench.counted(|c| &c.connects)), (0, 1));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_waits_says_why_and_does_not_stop_another() {
    let bench =
        Bench::new(1, WhenRefused::DeadLetter, failing("slow", u32::MAX, || busy(None))).start(&["icu", "ward"]);
    bench.store("icu", "slow").await;
    bench.until("held", |bench| bench.held("icu").as_deref() == Some("503")).await;
    bench.store_all("ward", &["1", "2"]).await;
    bench.until("the other lane delivers", |bench| bench.counted(|c| &c.delivered) == 2).await;
    assert_eq!((bench.backlog(), bench.held("ward")), (1, None));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_anew_and_no_message_is_lost_or_blamed() {
    let bench = Bench::new(4, WhenRefused::DeadLetter, failing("2", 50, lost)).start(&["icu", "ward"]);
    bench.store_all("icu", &["1", "2", "3"]).await;
    bench.store_all("ward", &["a", "b"]).await;
    bench.until("all delivered", |bench| bench.backlog() == 0).await;
    let mut distinct = bench.sent();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct, ["1", "2", "3", "a", "b"]);
    assert_eq!((bench.spool.dead().len(), bench.counted(|c| &c.connects)), (0, 51));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_down_is_tried_with_pauses_that_grow() {
    let bench = Bench::new(1, WhenRefused::DeadLetter, |_| Act::Accept);
    *bench.world.refuses_connections.lock().unwrap() = true;
    let bench = bench.start(&["icu"]);
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let tries = bench.world.connects.lock().unwrap().len();
    assert!((60..400).contains(&tries), "{tries} attempts in an hour");
    assert_eq!(*bench.counters.link.lock().unwrap(), Link::Down("cable out".into()));
    *bench.world.refuses_connections.lock().unwrap() = false;
    bench.until("connected", |bench| bench.counted(|c| &c.connects) == 1).await;
    // Before anything is stored: the disk's time is real, and the paused clock runs on meanwhile.
    assert!(start.elapsed() < Duration::from_secs(3600 + 180));
    bench.store("icu", "1").await;
    bench.until("delivered", |bench| bench.counted(|c| &c.delivered) == 1).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_up_while_nothing_is_sent_is_noticed() {
    let bench = Bench::new(1, WhenRefused::DeadLetter, |_| Act::Accept).start(&["icu"]);
    bench.until("connected", |bench| bench.counted(|c| &c.connects) == 1).await;
    bench.world.hang_up.notify_one();
    bench.until("connected again", |bench| bench.counted(|c| &c.connects) == 2).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_cursor_never_passes_a_message_without_a_receipt() {
    let bench = Bench::new(3, WhenRefused::DeadLetter, |_| Act::Later).start(&["icu"]);
    bench.store_all("icu", &["1", "2", "3", "4"]).await;
    bench.until("a full window", |bench| bench.sent().len() == 3).await;
    let receipt = || Ok(super::Receipt { code: "AA".into() });
    let mut later: Vec<_> = bench.world.later.lock().unwrap().drain(..).collect();
    // The second and third are accepted, the first is not yet.
    later.pop().unwrap().send(receipt()).unwrap();
    later.pop().unwrap().send(receipt()).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((bench.backlog(), bench.sent().len()), (4, 3));
    later.pop().unwrap().send(receipt()).unwrap();
    bench.until("all three pass", |bench| bench.backlog() == 1).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn with_hold_a_person_decides_to_try_again() {
    let times = REFUSALS_MAX;
    let bench = Bench::new(1, WhenRefused::Hold, failing("bad", times, refused)).start(&["icu"]);
    bench.store_all("icu", &["bad", "2"]).await;
    let icu = "icu".parse().unwrap();
    bench.until("held for a person", |bench| bench.holds.decide(&icu, Decision::Retry)).await;
    bench.until("delivered", |bench| bench.counted(|c| &c.delivered) == 2).await;
    assert_eq!((bench.spool.dead().len(), bench.held("icu")), (0, None));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn with_hold_a_person_decides_to_set_the_message_aside_and_it_is_kept() {
    let bench = Bench::new(3, WhenRefused::Hold, failing("bad", u32::MAX, rejected)).start(&["icu"]);
    bench.store_all("icu", &["bad", "2"]).await;
    let icu = "icu".parse().unwrap();
    bench.until("held", |bench| bench.held("icu").as_deref() == Some("AR")).await;
    // A new connection in between: the lane went back to its cursor and has nothing in hand.
    bench.world.hang_up.notify_one();
    bench.until("connected again", |bench| bench.counted(|c| &c.connects) == 2).await;
    bench.until("held for a person", |bench| bench.holds.decide(&icu, Decision::DeadLetter)).await;
    bench.until("delivered", |bench| bench.backlog() == 0).await;
    assert_eq!((bench.spool.dead().len(), bench.counted(|c| &c.dead)), (1, 1), "set aside, not lost");
    bench.end().await;
}

/// Else those behind it would be cut off in the middle, and come a second time.
#[tokio::test(start_paused = true)]
async fn stopping_sends_a_version_that_waited_and_what_is_behind_it_gets_its_receipt() {
    let mut bench =
        Bench::new(4, WhenRefused::DeadLetter, |text| if text == "ct/2" { Act::Accept } else { Act::Later });
    bench.class = Class::Imaging;
    let bench = bench.start(&["ct"]);
    bench.store_all("ct", &["ct/1", "ct/2", "mr/1"]).await;
    bench.until("others pass the version that waits", |bench| bench.sent() == ["ct/1", "mr/1"]).await;
    bench.stop.cancel();
    for text in ["ct/1", "mr/1"] {
        let later = bench.world.later.lock().unwrap().pop_front().unwrap();
        later.send(Ok(super::Receipt { code: "0000".into() })).unwrap();
        bench.until(text, |bench| bench.counted(|c| &c.delivered) >= 2).await;
    }
    bench.until("all delivered", |bench| bench.counted(|c| &c.delivered) == 3).await;
    assert_eq!((bench.sent(), bench.backlog()), (["ct/1", "mr/1", "ct/2"].map(str::to_owned).to_vec(), 0));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_receipts_of_what_is_on_its_way() {
    let bench = Bench::new(2, WhenRefused::DeadLetter, |_| Act::Later).start(&["icu"]);
    bench.store_all("icu", &["1", "2", "3"]).await;
    bench.until("a full window", |bench| bench.sent().len() == 2).await;
    bench.stop.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for later in bench.world.later.lock().unwrap().drain(..) {
        later.send(Ok(super::Receipt { code: "AA".into() })).unwrap();
    }
    bench.until("both counted", |bench| bench.counted(|c| &c.delivered) == 2).await;
    assert_eq!((bench.backlog(), bench.sent().len()), (1, 2));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_has_its_receipt_behind_the_front_is_not_sent_again_after_the_connection_was_lost() {
    let mut asked = 0;
    let plan = move |_: &str| {
        asked += 1;
        if asked <= 4 { Act::Later } else { Act::Accept }
    };
    let bench = Bench::new(8, WhenRefused::DeadLetter, plan).start(&["monitors"]);
    bench.store_all("monitors", &["a", "b", "c", "d"]).await;
    bench.until("all are on their way", |bench| bench.sent().len() == 4).await;
    for nth in [3, 1] {
        let sender = bench.world.later.lock().unwrap().remove(nth).unwrap();
        sender.send(Ok(super::Receipt { code: "AA".into() })).unwrap();
    }
    bench.world.hang_up.notify_one();
    bench.until("all have arrived", |bench| bench.backlog() == 0).await;
    assert_eq!(bench.sent(), ["a", "b", "c", "d", "a", "c"]);
    assert_eq!(bench.counted(|counters| &counters.delivered), 4);
    bench.end().await;
}
