//! The parts that run, and how a changed configuration is applied to them: a comparison of two maps.
//!
//! A part whose section and files are equal keeps running. One that changed is stopped, then started. Nothing here decides
//! what becomes of messages; a lane belongs to the forwarder of its upstream and to nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::burials::Burials;
use super::{forms, reports};
use crate::callers::Callers;
use crate::config::{Part, Standing};
use crate::envelope::Class;
use crate::route;
use crate::route::convert::{Conversions, Lane};
use crate::source::intake::Intake;
use crate::source::{SourceConfig, Started};
use crate::spool::Spool;
use crate::status::{Alarm, LaneStatus, SourceStatus, Status, Turns, UpstreamCounters, UpstreamStatus};
use crate::system::sockets::Sockets;
use crate::upstream::forwarder::Forwarding;
use crate::upstream::holds::{Decision, Holds};
use crate::upstream::{Identity, UpstreamConfig};
use crate::values::{Name, counted};

/// Everything that runs beside the spool.
pub struct Parts {
    spool: Spool,
    status: watch::Receiver<Arc<Status>>,
    config: Config,
    sources: BTreeMap<Name, RunningSource>,
    upstreams: BTreeMap<Name, RunningUpstream>,
    /// In which forms messages go; forwarders look at it when they send.
    conversions: watch::Sender<Arc<Conversions>>,
    burials: Burials,
    callers: Callers,
    sockets: Sockets,
}

struct RunningSource {
    part: Part<SourceConfig>,
    intake: Intake,
    targets: watch::Sender<Arc<[Name]>>,
    started: Started,
    /// Uptime at which it began to run: silence counts from there when nothing ever came.
    since_ms: u64,
    stop: CancellationToken,
}

struct RunningUpstream {
    part: Part<UpstreamConfig>,
    /// The lanes that its forwarder holds.
    lanes: Vec<(Class, Name)>,
    counters: Arc<UpstreamCounters>,
    holds: Arc<Holds>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Parts {
    /// Nothing runs yet.
    pub fn new(spool: Spool, status: watch::Receiver<Arc<Status>>, config: &Config, sockets: Sockets) -> Self {
        let kept = forms::recall(&config.spool.path);
        let conversions = conversions(config).with_former(kept, &config.routes);
        Self {
            spool,
            status,
            config: config.clone(),
            sources: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            conversions: watch::Sender::new(Arc::new(conversions)),
            burials: Burials::default(),
            callers: Callers::default(),
            sockets,
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What a running gateway can't change, or may not.
    ///
    /// # Errors
    /// In words, with what to do.
    pub fn check_change(&self, new: &Config) -> Result<(), String> {
        if self.spool.is_destroyed() {
            return Err("the keys of the spool were destroyed: nothing can be stored any more".into());
        }
        let new = reports::with_reports(new, &self.spool, &self.callers);
        let (old, new_spool) = (&self.config.spool, &new.spool);
        if old.path != new_spool.path || old.key != new_spool.key {
            return Err("[spool] path and key can't be changed while it runs: restart the service".into());
        }
        // What a source keeps for itself it hands over when it stops.
        let own = Name::assembly();
        for lane in self.spool.lanes().into_iter().filter(|lane| lane.backlog > 0 && lane.upstream != own) {
            if !new.upstreams.contains_key(&lane.upstream) {
                return Err(format!(
                    "{} for the upstream \"{}\", which is not in it any more: keep it and say in \
                     [upstream.{}] retired = \"drain\" (they are still sent) or retired = \"dead-letter\"",
                    waiting(lane.backlog),
                    lane.upstream,
                    lane.upstream
                ));
            }
        }
        self.spool.check_limits(new_spool)
    }

    /// Makes what runs equal to `config`; tells what could not be opened at once (it is tried on all the same). Does nothing that
    /// can't be undone by settling on the former configuration: that is done by [`Parts::put_in_force`].
    pub async fn settle(&mut self, config: &Config) -> Vec<String> {
        let identity_changed =
            self.config.gateway.name != config.gateway.name || self.config.gateway.site != config.gateway.site;
        self.config = reports::with_reports(config, &self.spool, &self.callers);
        self.stop_sources().await;
        // An address that nobody names any more must not stand in the way of a new one.
        self.sockets.release(&self.listens());
        self.settle_upstreams(identity_changed).await;
        self.start_sources().await
    }

    /// Seals the root key to the recipients of the configuration.
    ///
    /// # Errors
    /// In words; the sealed key is then as it was.
    pub async fn keep_recovery(&self) -> Result<(), String> {
        let (spool, recipients) = (self.spool.clone(), self.config.spool.recovery.clone());
        let kept = tokio::task::spawn_blocking(move || spool.keep_recovery(&recipients)).await;
        kept.unwrap_or_else(|error| Err(error.into()))
            .map_err(|error| format!("[spool] recovery: the key can't be sealed to its recipients: {error}"))
    }

    /// The configuration that runs is taken: from now on it decides where messages go, how long originals stay, and what is
    /// buried. None of this can be undone, so none of it happens while it may still be refused.
    pub async fn put_in_force(&mut self) {
        self.spool.set_limits(&self.config.spool);
        let former = Arc::clone(&self.conversions.borrow());
        let conversions = conversions(&self.config).with_former(former.lanes(), &self.config.routes);
        self.keep_forms(&conversions);
        self.conversions.send_replace(Arc::new(conversions));
        for (name, source) in &self.sources {
            source.targets.send_replace(self.targets(name));
        }
        self.settle_burials().await;
        self.sockets.refuse_unnamed(&self.listens());
    }

    /// The turns of each part that runs.
    pub fn turns(&self) -> Turns {
        let mut turns = Turns::new();
        for (name, source) in &self.sources {
            turns.insert(format!("the source {name}"), source.intake.counters().turns.value());
        }
        for (name, upstream) in &self.upstreams {
            turns.insert(format!("the forwarder of {name}"), upstream.counters.turns.value());
            let lanes = upstream.counters.lanes().into_iter();
            turns.extend(lanes.map(|(source, count)| (format!("the lane {source} > {name}"), count)));
        }
        turns
    }

    fn listens(&self) -> BTreeSet<SocketAddr> {
        self.config.sources.values().filter_map(|part| part.config.listens()).collect()
    }

    /// What waits goes in its form also when its route is taken out of the file while nobody runs. So the forms of all lanes are kept, of
    /// those that a route serves as well, and whether something waits now or not: a message that is being committed may be meant for it.
    fn keep_forms(&self, conversions: &Conversions) {
        let mut lanes: Vec<Lane> = conversions.lanes().collect();
        lanes.retain(|lane| self.config.upstreams.contains_key(&lane.upstream));
        forms::keep(&self.config.spool.path, &lanes);
    }

    /// Serves lanes that came to be by an import, a replay or a retry: their forwarders begin anew with all their lanes.
    pub async fn serve_new_lanes(&mut self) {
        let short = |(name, upstream): &(&Name, &RunningUpstream)| self.lanes_of(name) != upstream.lanes;
        let names: Vec<Name> = self.upstreams.iter().filter(short).map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(upstream) = self.upstreams.remove(&name) else { continue };
            let (part, counters) = (upstream.part.clone(), Arc::clone(&upstream.counters));
            upstream.stop.cancel();
            upstream.end(&name).await;
            self.start_upstream(name, part, counters);
        }
        self.settle_burials().await;
    }

    /// Stops sources first, so that nothing new comes, then forwarders.
    pub async fn stop(&mut self) {
        for source in self.sources.values() {
            source.stop.cancel();
        }
        for (_, source) in std::mem::take(&mut self.sources) {
            source.end().await;
        }
        for upstream in self.upstreams.values() {
            upstream.stop.cancel();
        }
        for (name, upstream) in std::mem::take(&mut self.upstreams) {
            upstream.end(&name).await;
        }
        self.burials.stop().await;
    }

    /// Decides about the lanes to an upstream that wait for a person, or about the one from `source`; the sources of those that did.
    pub fn decide(&self, upstream: &Name, source: Option<&Name>, decision: Decision) -> Vec<Name> {
        let Some(upstream) = self.upstreams.get(upstream) else { return Vec::new() };
        let mut sources = upstream.holds.waiting();
        sources.retain(|held| source.is_none_or(|source| source == held) && upstream.holds.decide(held, decision));
        sources
    }

    /// Sources for the snapshot.
    pub fn sources(&self) -> BTreeMap<Name, SourceStatus> {
        let now_ms = self.spool.now().uptime_ms;
        let status = |source: &RunningSource| {
            let endpoint = source.started.endpoint.borrow().clone();
            source.intake.counters().snapshot(source.part.config.protocol(), &endpoint, now_ms)
        };
        self.sources.iter().map(|(name, source)| (name.clone(), status(source))).collect()
    }

    /// Upstreams for the snapshot.
    pub fn upstreams(&self) -> BTreeMap<Name, UpstreamStatus> {
        let now_ms = self.spool.now().uptime_ms;
        let status = |upstream: &RunningUpstream| {
            let config = &upstream.part.config;
            upstream.counters.snapshot(config.protocol(), &config.endpoint(), now_ms)
        };
        self.upstreams.iter().map(|(name, upstream)| (name.clone(), status(upstream))).collect()
    }

    /// What only the parts can tell: sources that are silent for too long, lanes that nobody serves, lanes that wait for a person.
    pub fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        let now_ms = self.spool.now().uptime_ms;
        for (name, source) in &self.sources {
            let Some(limit) = source.part.config.silent_after() else { continue };
            let seen_ms = u64::try_from(source.intake.counters().last_seen_ms.value()).unwrap_or(0);
            let seen_ms = seen_ms.max(source.since_ms);
            let silent_s = now_ms.saturating_sub(seen_ms) / 1000;
            if silent_s >= limit.0.as_secs() {
                let text = format!(
                    "nothing came for {silent_s} s; expected is something every {limit}: look at the device and its cable"
                );
                alarms.push(Alarm { code: "silence".into(), about: name.to_string(), text });
            }
        }
        for lane in self.spool.lanes().into_iter().filter(|lane| lane.backlog > 0) {
            alarms.extend(self.decision_wanted(&lane));
            if lane.upstream == Name::assembly() {
                alarms.extend(self.unfinished(&lane));
            } else if !self.config.upstreams.contains_key(&lane.upstream) {
                let text = format!(
                    "{} for an upstream that is not configured any more: add it again, with retired = \"drain\" \
                     or retired = \"dead-letter\" if it is gone for good",
                    waiting(lane.backlog)
                );
                alarms.push(Alarm {
                    code: "orphaned-lane".into(),
                    about: format!("{} > {}", lane.source, lane.upstream),
                    text,
                });
            }
        }
        alarms
    }

    /// Parts of messages that their source kept for itself, when it is not there any more, or its name is another protocol's now.
    fn unfinished(&self, lane: &LaneStatus) -> Option<Alarm> {
        let source = &lane.source;
        let keeps = |config: &SourceConfig| matches!(config, SourceConfig::Astm(_) | SourceConfig::Folder(_));
        let kept = self.config.sources.get(source).is_some_and(|part| keeps(&part.config));
        (!kept).then(|| Alarm {
            code: "orphaned-lane".into(),
            about: source.to_string(),
            text: format!(
                "{} that a source kept for itself which is not configured any more: frames of an unfinished message, which is sent as an incomplete one \
                 when you add [source.{source}.astm] again for a moment, or notes of files that are stored and still lie in their folder, which go \
                 when you add [source.{source}.folder] again",
                counted(lane.backlog, "part")
            ),
        })
    }

    /// A lane that stands still until a person decides, with the commands that decide.
    fn decision_wanted(&self, lane: &LaneStatus) -> Option<Alarm> {
        let LaneStatus { source, upstream, backlog, held, .. } = lane;
        self.upstreams.get(upstream)?.holds.waiting().contains(source).then_some(())?;
        let why = held.as_deref().unwrap_or("the first message was refused");
        let which = format!("--upstream {upstream} --source {source}");
        let text = format!(
            "{backlog} messages stand still until you decide: {why}. Mend the cause and run wardgate lane retry {which}, or \
             run wardgate lane set-aside {which} to make the first one a dead letter and go on"
        );
        Some(Alarm { code: "lane-held".into(), about: format!("{source} > {upstream}"), text })
    }

    /// Stops the sources that are gone or changed.
    async fn stop_sources(&mut self) {
        let mut kept = BTreeMap::new();
        for (name, source) in std::mem::take(&mut self.sources) {
            if self.config.sources.get(&name) == Some(&source.part) {
                kept.insert(name, source);
            } else {
                source.stop.cancel();
                source.end().await;
            }
        }
        self.sources = kept;
    }

    async fn start_sources(&mut self) -> Vec<String> {
        let mut troubles = Vec::new();
        let new: Vec<(Name, Part<SourceConfig>)> = self
            .config
            .sources
            .iter()
            .filter(|(name, _)| !self.sources.contains_key(name))
            .map(|(name, part)| (name.clone(), part.clone()))
            .collect();
        for (name, part) in new {
            let class = part.config.class();
            let spool = self.spool.clone();
            // The first message should not wait for its file to be written through.
            tokio::task::spawn_blocking(move || spool.prepare(class));
            let (targets, told) = watch::channel(self.targets(&name));
            let intake = Intake::new(name.clone(), part.config.protocol(), class, self.spool.clone(), told)
                .with_callers(self.callers.clone())
                .with_sockets(self.sockets.clone());
            let stop = CancellationToken::new();
            let started = part.config.start(intake.clone(), stop.clone()).await;
            if let Err(error) = &started.first {
                troubles.push(format!("source {name}: {error}"));
            }
            self.sources
                .insert(name, RunningSource { part, since_ms: intake.uptime_ms(), intake, targets, started, stop });
        }
        troubles
    }

    async fn settle_upstreams(&mut self, identity_changed: bool) {
        let (mut kept, mut counted) = (BTreeMap::new(), BTreeMap::new());
        for (name, upstream) in std::mem::take(&mut self.upstreams) {
            let same = self.config.upstreams.get(&name).and_then(Standing::part) == Some(&upstream.part);
            if same && !identity_changed && self.lanes_of(&name) == upstream.lanes {
                kept.insert(name, upstream);
            } else {
                // It counts since the start of the service, and not since it was given another lane.
                counted.insert(name.clone(), Arc::clone(&upstream.counters));
                upstream.stop.cancel();
                upstream.end(&name).await;
            }
        }
        self.upstreams = kept;
        self.end_burials().await;
        for (name, standing) in self.config.upstreams.clone() {
            if let Some(part) = standing.part().filter(|_| !self.upstreams.contains_key(&name)) {
                let counters = counted.remove(&name).unwrap_or_default();
                self.start_upstream(name, part.clone(), counters);
            }
        }
    }

    fn start_upstream(&mut self, name: Name, part: Part<UpstreamConfig>, counters: Arc<UpstreamCounters>) {
        let lanes = self.lanes_of(&name);
        let holds: Arc<Holds> = Arc::default();
        let gateway = &self.config.gateway;
        let identity = Identity { gateway: gateway.name.clone(), site: gateway.site.clone(), upstream: name.clone() };
        let forwarding = Forwarding {
            identity,
            spool: self.spool.clone(),
            lanes: lanes.iter().map(|(class, source)| self.spool.lane(*class, source, &name)).collect(),
            conversions: self.conversions.subscribe(),
            counters: Arc::clone(&counters),
            holds: Arc::clone(&holds),
            status: self.status.clone(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(part.config.clone().forward(forwarding, stop.clone()));
        self.upstreams.insert(name, RunningUpstream { part, lanes, counters, holds, stop, task });
    }

    /// Ends burials of upstreams that are not buried any more, before anybody else holds their lanes.
    async fn end_burials(&mut self) {
        for name in self.burials.upstreams() {
            if self.config.upstreams.get(&name) != Some(&Standing::Buried) {
                self.burials.end(&name).await;
            }
        }
    }

    /// Begins and renews burials. Not before the configuration is taken: what is buried stays buried.
    async fn settle_burials(&mut self) {
        let buried = self.config.upstreams.iter().filter(|(_, standing)| **standing == Standing::Buried);
        let buried: Vec<Name> = buried.map(|(name, _)| name.clone()).collect();
        for name in buried {
            let lanes = self.lanes_of(&name);
            self.burials.settle(&self.spool, &name, lanes).await;
        }
    }

    /// Whether a route leads to an upstream.
    pub(super) fn leads_to(&self, upstream: &Name) -> bool {
        self.config.sources.keys().any(|source| route::targets(&self.config.routes, source).contains(upstream))
    }

    /// The lanes to an upstream: of each source that is routed there, and of each that still has something for it.
    fn lanes_of(&self, upstream: &Name) -> Vec<(Class, Name)> {
        let known = self.spool.lane_classes().into_iter().filter(|(_, _, to)| to == upstream);
        let mut lanes: Vec<(Class, Name)> = known.map(|(class, source, _)| (class, source)).collect();
        for (source, part) in &self.config.sources {
            let asks = *upstream == Name::storage_commitment() && reports::offers(&part.config);
            if asks || route::targets(&self.config.routes, source).contains(upstream) {
                lanes.push((part.config.class(), source.clone()));
            }
        }
        lanes.sort();
        lanes.dedup();
        lanes
    }

    /// Where a source's messages go now: upstreams that are retired get nothing new.
    fn targets(&self, source: &Name) -> Arc<[Name]> {
        let active = |name: &Name| self.config.upstreams.get(name).is_some_and(Standing::is_active);
        route::targets(&self.config.routes, source).into_iter().filter(active).collect()
    }
}

impl RunningSource {
    async fn end(self) {
        if let Err(error) = self.started.task.await {
            tracing::error!(source = %self.intake.source(), %error, "a source ended badly");
        }
    }
}

impl RunningUpstream {
    async fn end(self, name: &Name) {
        if let Err(error) = self.task.await {
            tracing::error!(upstream = %name, %error, "a forwarder ended badly");
        }
    }
}

/// What the configuration makes of messages when they are sent.
fn conversions(config: &Config) -> Conversions {
    let (gateway, codes) = (&config.gateway, Arc::clone(&config.codes));
    Conversions::new(&config.routes, &gateway.name, &gateway.site, codes)
}

/// `1 message still waits`, `2 messages still wait`.
fn waiting(messages: u64) -> String {
    format!("{} still wait{}", counted(messages, "message"), if messages == 1 { "s" } else { "" })
}
