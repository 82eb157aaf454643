//! What people ask of the running gateway over the control socket, carried out on the spool and the parts.
//!
//! The socket has checked who asks and logs what is changed. Content is revealed by `dead_body` and `spool_export` only.

use std::collections::{BTreeSet, HashSet};

use super::{DRAIN_MAX, Gateway, keyfile};
use crate::admin::answers::{
    Code, Count, DeadLetter, DeadList, ExportReport, FindReport, ImportReport, KeysReport, Refusal, Released,
    ReplayReport, SpoolUsage, VerifyReport, When,
};
use crate::admin::ids::IdPattern;
use crate::admin::operator::{Answer, Inlet, Operator, Outlet};
use crate::admin::verbs::{
    DeadQuery, DeadSelection, DestroyRequest, ExportRequest, FindRequest, ImportRequest, LIST_MAX, LaneSelection,
    ReplayRequest,
};
use crate::config::report::nearest;
use crate::envelope::Class;
use crate::spool::{CommitError, Dead, ReplayOrder, Spool};
use crate::status::Status;
use crate::system::disk;
use crate::upstream::holds::Decision;
use crate::values::Name;

impl Operator for Gateway {
    async fn status(&self) -> Status {
        self.snapshot().await
    }

    async fn dead_list(&self, query: DeadQuery) -> Answer<DeadList> {
        self.expect_known(query.source.as_ref(), query.upstream.as_ref()).await?;
        let mut dead = self.spool.dead();
        dead.retain(|dead| {
            query.source.as_ref().is_none_or(|source| dead.source == *source)
                && query.upstream.as_ref().is_none_or(|upstream| dead.upstream == *upstream)
        });
        dead.sort_by_key(|dead| std::cmp::Reverse(dead.stamp.uptime_ms));
        let total = dead.len() as u64;
        let limit = query.limit.unwrap_or(LIST_MAX).min(LIST_MAX);
        dead.truncate(limit);
        Ok(DeadList { total, letters: self.letters(dead).await? })
    }

    async fn dead_show(&self, id: IdPattern) -> Answer<Vec<DeadLetter>> {
        let found = self.find(&id)?;
        self.letters(found).await
    }

    async fn dead_body(&self, id: IdPattern, outlet: &Outlet) -> Answer<u64> {
        let dead = self.find(&id)?.into_iter().next().ok_or_else(|| unknown(&id))?;
        let spool = self.spool.clone();
        let message =
            tokio::task::spawn_blocking(move || spool.message(&dead)).await.map_err(failed)?.map_err(failed)?;
        let mut reader = message.body.reader();
        while let Some(bytes) = reader.next().await.map_err(failed)? {
            outlet.data(bytes).await?;
        }
        Ok(message.body.len())
    }

    async fn dead_retry(&self, selection: DeadSelection) -> Answer<Count> {
        let (chosen, unknown) = self.choose(&selection).await?;
        let changed = self.spool.retry(&chosen, None).await.map_err(not_written)?;
        self.parts.lock().await.serve_new_lanes().await;
        Ok(Count { changed, unknown })
    }

    async fn dead_discard(&self, selection: DeadSelection) -> Answer<Count> {
        let (chosen, unknown) = self.choose(&selection).await?;
        let changed = self.spool.discard(&chosen, None).await.map_err(not_written)?;
        Ok(Count { changed, unknown })
    }

    async fn lane_retry(&self, selection: LaneSelection) -> Answer<Released> {
        self.decide(selection, Decision::Retry).await
    }

    async fn lane_set_aside(&self, selection: LaneSelection) -> Answer<Released> {
        self.decide(selection, Decision::DeadLetter).await
    }

    async fn spool_accept_damage(&self) -> Answer<Count> {
        let changed = self.spool.accept_damage().await.map_err(not_written)?;
        Ok(Count { changed, unknown: Vec::new() })
    }

    async fn spool_usage(&self) -> Answer<SpoolUsage> {
        let path = self.parts.lock().await.config().spool.path.clone();
        let space = disk::space(&path).map_err(failed)?;
        Ok(SpoolUsage {
            path: path.display().to_string(),
            disk_free: space.free,
            disk_total: space.total,
            logs: self.spool.logs(),
            lanes: self.spool.lanes(),
        })
    }

    async fn spool_verify(&self, outlet: &Outlet) -> Answer<VerifyReport> {
        self.verify(outlet).await
    }

    async fn spool_find(&self, request: FindRequest, outlet: &Outlet) -> Answer<FindReport> {
        self.find_messages(request, outlet).await
    }

    async fn spool_export(&self, request: ExportRequest, outlet: &Outlet) -> Answer<ExportReport> {
        self.export(request, outlet).await
    }

    async fn spool_import(&self, request: ImportRequest, inlet: &mut Inlet, outlet: &Outlet) -> Answer<ImportReport> {
        self.import(request, inlet, outlet).await
    }

    async fn replay(&self, request: ReplayRequest, _outlet: &Outlet) -> Answer<ReplayReport> {
        self.expect_known(Some(&request.source), None).await?;
        let (configured, routed) = {
            let parts = self.parts.lock().await;
            let configured: BTreeSet<Name> = parts.config().upstreams.keys().cloned().collect();
            (configured, parts.leads_to(&request.upstream))
        };
        expect_among("upstream", &request.upstream, &configured)?;
        if !routed {
            let text = format!(
                "no route leads to \"{0}\", so that it is not known what it takes, and in which form: add a [[route]] with to = [\"{0}\"]",
                request.upstream
            );
            return Err(Refusal::bad(text));
        }
        let order = ReplayOrder {
            source: request.source,
            from_us: request.from.0.as_microsecond(),
            to_us: request.to.0.as_microsecond(),
            upstream: request.upstream,
            dry_run: request.dry_run,
        };
        let done = self.spool.replay(&order).await.map_err(not_written)?;
        self.parts.lock().await.serve_new_lanes().await;
        Ok(ReplayReport {
            messages: done.messages,
            bytes: done.bytes,
            first: done.received_us.map(|(first, _)| when(first)),
            last: done.received_us.map(|(_, last)| when(last)),
            incomplete: done.incomplete,
            missing: done.missing,
        })
    }

    async fn keys_rotate(&self) -> Answer<KeysReport> {
        let epoch = self.spool.rotate().map_err(failed)?;
        Ok(KeysReport { epoch: epoch.into(), text: "what is written from now on is under a new epoch key".to_owned() })
    }

    async fn keys_destroy(&self, request: DestroyRequest) -> Answer<KeysReport> {
        let mut parts = self.parts.lock().await;
        let config = parts.config().clone();
        if config.gateway.name != request.gateway {
            let text = format!("this gateway is \"{}\": nothing was destroyed", config.gateway.name);
            return Err(Refusal::new(Code::NotFound, text));
        }
        if tokio::time::timeout(DRAIN_MAX, parts.stop()).await.is_err() {
            tracing::warn!("not everything ended; the keys are destroyed all the same");
        }
        let spool = self.spool.clone();
        let erase = move || (keyfile::destroy(&config.spool), spool.destroy());
        let (key, keyring) = tokio::task::spawn_blocking(erase).await.map_err(failed)?;
        keyring.map_err(failed)?;
        let left = key.map_err(failed)?;
        tracing::warn!("the keys of the spool were destroyed on request");
        let text = "The keys are destroyed: nothing that this spool held can ever be read again, and nothing is taken any more. \
                    To begin anew, stop the service and move the spool's folder away.";
        let text = left.into_iter().fold(text.to_owned(), |text, left| format!("{text}\n{left}."));
        Ok(KeysReport { epoch: 0, text })
    }
}

impl Gateway {
    /// Refuses names that are neither configured nor known from what is held: a mistyped filter finds nothing, which
    /// looks as if all were well.
    pub(super) async fn expect_known(&self, source: Option<&Name>, upstream: Option<&Name>) -> Answer<()> {
        let (lanes, dead) = (self.spool.lanes(), self.spool.dead());
        let config = self.parts.lock().await.config().clone();
        if let Some(source) = source {
            let held = lanes.iter().map(|lane| &lane.source).chain(dead.iter().map(|dead| &dead.source));
            expect_among("source", source, &held.chain(config.sources.keys()).cloned().collect())?;
        }
        if let Some(upstream) = upstream {
            let held = lanes.iter().map(|lane| &lane.upstream).chain(dead.iter().map(|dead| &dead.upstream));
            expect_among("upstream", upstream, &held.chain(config.upstreams.keys()).cloned().collect())?;
        }
        Ok(())
    }

    /// The dead letters of one message.
    fn find(&self, id: &IdPattern) -> Answer<Vec<Dead>> {
        let mut dead = self.spool.dead();
        let chosen = id.choose(dead.iter().map(|dead| dead.id))?.ok_or_else(|| unknown(id))?;
        dead.retain(|dead| dead.id == chosen);
        Ok(dead)
    }

    /// The dead letters of a selection, and the ids that are none.
    async fn choose(&self, selection: &DeadSelection) -> Answer<(Vec<Dead>, Vec<IdPattern>)> {
        self.expect_known(selection.source.as_ref(), selection.upstream.as_ref()).await?;
        let mut dead = self.spool.dead();
        let (mut chosen, mut unknown) = (HashSet::new(), Vec::new());
        for id in &selection.ids {
            match id.choose(dead.iter().map(|dead| dead.id))? {
                Some(id) => drop(chosen.insert(id)),
                None => unknown.push(id.clone()),
            }
        }
        dead.retain(|dead| {
            (selection.all || chosen.contains(&dead.id))
                && selection.source.as_ref().is_none_or(|source| dead.source == *source)
                && selection.upstream.as_ref().is_none_or(|upstream| dead.upstream == *upstream)
        });
        Ok((dead, unknown))
    }

    async fn decide(&self, selection: LaneSelection, decision: Decision) -> Answer<Released> {
        let LaneSelection { upstream, source } = selection;
        self.expect_known(source.as_ref(), Some(&upstream)).await?;
        let sources = self.parts.lock().await.decide(&upstream, source.as_ref(), decision);
        let text = || format!("no such lane to \"{upstream}\" waits for a person; see wardgate status");
        if sources.is_empty() { Err(Refusal::new(Code::NotFound, text())) } else { Ok(Released { sources }) }
    }

    /// Dead letters for people; reads each message from disk, off the runtime's threads.
    async fn letters(&self, dead: Vec<Dead>) -> Answer<Vec<DeadLetter>> {
        let spool = self.spool.clone();
        let read = move || dead.iter().map(|dead| letter(&spool, dead)).collect();
        tokio::task::spawn_blocking(read).await.map_err(failed)
    }
}

fn letter(spool: &Spool, dead: &Dead) -> DeadLetter {
    let message = spool.message(dead).ok();
    let meta = message.as_ref().map(|message| &message.meta);
    DeadLetter {
        id: dead.id,
        log: message.as_ref().map_or(Class::Clinical, |message| message.class),
        source: dead.source.clone(),
        upstream: dead.upstream.clone(),
        reason: dead.reason.clone(),
        attempts: dead.attempts,
        received: when(meta.map_or(dead.stamp.wall_us, |meta| meta.received.wall_us)),
        given_up: when(dead.stamp.wall_us),
        bytes: dead.length,
        content_type: meta.map(|meta| meta.content_type.clone()).unwrap_or_default(),
        flags: meta.map(|meta| meta.flags.names().into_iter().map(str::to_owned).collect()).unwrap_or_default(),
    }
}

fn when(wall_us: i64) -> When {
    When(jiff::Timestamp::from_microsecond(wall_us).unwrap_or(jiff::Timestamp::UNIX_EPOCH))
}

/// Refuses a name that is not among those that are known, and lists them.
pub(super) fn expect_among(kind: &str, name: &Name, known: &BTreeSet<Name>) -> Answer<()> {
    if known.contains(name) {
        return Ok(());
    }
    let near = nearest(name.as_str(), known.iter().map(Name::as_str));
    let near = near.map(|near| format!(" Did you mean \"{near}\"?")).unwrap_or_default();
    let known: Vec<&str> = known.iter().map(Name::as_str).collect();
    let listed = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(Refusal::bad(format!("there is no {kind} \"{name}\" here.{near} Known: {listed}")))
}

fn unknown(id: &IdPattern) -> Refusal {
    Refusal::new(Code::NotFound, format!("{id} is not a dead letter; see wardgate dead list"))
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::Failed, error.to_string())
}

fn not_written(error: CommitError) -> Refusal {
    match error {
        CommitError::Full => Refusal::new(Code::Unavailable, "the log is full: nothing was changed"),
        CommitError::Failed => {
            Refusal::new(Code::Failed, "the spool has failed: nothing was changed; see wardgate status")
        }
    }
}
