//! Upstreams that are gone for good (`retired = "dead-letter"`): what waits for one becomes dead letters.
//!
//! A lane has one holder at a time. A burial therefore begins once for each upstream and is ended, and waited for, before
//! anybody else may hold its lanes; nothing that waits is ever dropped here.

use std::collections::BTreeMap;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::envelope::Class;
use crate::spool::{Lane, RETIRED, Spool};
use crate::values::Name;

/// The burials that go on.
#[derive(Default)]
pub struct Burials {
    upstreams: BTreeMap<Name, Burial>,
}

struct Burial {
    lanes: Vec<(Class, Name)>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Burials {
    /// Goes on burying what waits for `upstream` in `lanes`; begins anew when the lanes are others, or when it had to give up.
    pub async fn settle(&mut self, spool: &Spool, upstream: &Name, lanes: Vec<(Class, Name)>) {
        let goes_on = |burial: &Burial| burial.lanes == lanes && !burial.tasks.iter().any(JoinHandle::is_finished);
        if self.upstreams.get(upstream).is_some_and(goes_on) {
            return;
        }
        self.end(upstream).await;
        let stop = CancellationToken::new();
        let begin = |(class, source): &(Class, Name)| {
            let (lane, stop) = (spool.lane(*class, source, upstream), stop.clone());
            tokio::spawn(async move {
                stop.run_until_cancelled(bury(lane)).await;
            })
        };
        let tasks = lanes.iter().map(begin).collect();
        self.upstreams.insert(upstream.clone(), Burial { lanes, stop, tasks });
    }

    /// The upstreams whose lanes are held here.
    pub fn upstreams(&self) -> Vec<Name> {
        self.upstreams.keys().cloned().collect()
    }

    /// Ends the burial for an upstream, if there is one: its lanes are free when this returns.
    pub async fn end(&mut self, upstream: &Name) {
        let Some(burial) = self.upstreams.remove(upstream) else { return };
        burial.stop.cancel();
        for task in burial.tasks {
            if let Err(error) = task.await {
                tracing::error!(%upstream, %error, "a burial ended badly");
            }
        }
    }

    /// Ends all.
    pub async fn stop(&mut self) {
        for upstream in self.upstreams() {
            self.end(&upstream).await;
        }
    }
}

async fn bury(mut lane: Lane) {
    lane.hold(None);
    loop {
        let entry = lane.next().await;
        match lane.bury(entry.place, RETIRED, 0).await {
            Ok(()) => lane.advance(entry.place),
            // Too many dead letters, or a full disk: the rest stays in its lane, where it is shown.
            Err(error) => return lane.hold(Some(format!("its upstream is retired, but: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::envelope::{Flags, Meta};
    use crate::spool::{Disk, Secret, SpoolConfig};

    async fn store(spool: &Spool, upstream: &Name) {
        let source: Name = "monitors".parse().unwrap();
        let mut draft = spool.begin(Class::Clinical, &source);
        draft.write(b"MSH|").await.unwrap();
        let meta = Meta {
            source,
            protocol: "mllp".into(),
            content_type: "application/hl7-v2".into(),
            control_id: vec![],
            targets: vec![upstream.clone()],
            flags: Flags::default(),
            received: spool.now(),
            tokens: Vec::new(),
        };
        draft.commit(meta).await.unwrap();
    }

    async fn until_dead(spool: &Spool, count: usize) {
        let end = Instant::now() + Duration::from_secs(30);
        while spool.dead().len() != count || spool.lanes().iter().any(|lane| lane.backlog > 0) {
            assert!(Instant::now() < end, "{:?}", spool.lanes());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn tasks(burials: &Burials, upstream: &Name) -> Vec<tokio::task::Id> {
        burials
            .upstreams
            .get(upstream)
            .map(|burial| burial.tasks.iter().map(JoinHandle::id).collect())
            .unwrap_or_default()
    }

    #[tokio::test]
    async fn a_lane_is_buried_by_one_holder_however_often_the_configuration_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let config: SpoolConfig = toml::from_str("path = '/unused'\nkey = 'unused'").unwrap();
        let spool = Spool::open(Arc::new(Disk::open(folder.path()).unwrap()), Secret::random(), &config).unwrap();
        let old: Name = "old".parse().unwrap();
        let lanes = vec![(Class::Clinical, "monitors".parse().unwrap())];
        let mut burials = Burials::default();
        store(&spool, &old).await;
        burials.settle(&spool, &old, lanes.clone()).await;
        let first = tasks(&burials, &old);
        until_dead(&spool, 1).await;
        burials.settle(&spool, &old, lanes.clone()).await;
        assert!(first.len() == 1 && tasks(&burials, &old) == first, "a second holder on the same lane");
        store(&spool, &old).await;
        until_dead(&spool, 2).await;
        // In use again: the lane is its forwarder's.
        burials.end(&old).await;
        store(&spool, &old).await;
        let mut lane = spool.lane(Class::Clinical, &"monitors".parse().unwrap(), &old);
        lane.next().await;
        assert_eq!((spool.dead().len(), burials.upstreams()), (2, vec![]));
        // Given up again, with one lane more.
        drop(lane);
        burials.settle(&spool, &old, lanes.clone()).await;
        until_dead(&spool, 3).await;
        let more = [lanes, vec![(Class::Clinical, "lab".parse().unwrap())]].concat();
        burials.settle(&spool, &old, more).await;
        assert_eq!(tasks(&burials, &old).len(), 2);
        burials.stop().await;
    }
}
