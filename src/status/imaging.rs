//! What a DICOM source knows of its peers and of the studies that come, so that a person sees whether all images arrived.
//!
//! No patient data: a study is named by a label made here and known nowhere else. What is remembered is bounded, and is
//! forgotten with the process.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Mutex, PoisonError};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

use super::Gauge;

/// Studies that are remembered: the last ones.
pub const STUDIES_MAX: usize = 8;
/// Peers that are remembered: the last ones.
pub const PEERS_MAX: usize = 16;
/// Characters of a study's label.
const LABEL_CHARACTERS: usize = 6;

/// What an imaging source notes.
#[derive(Default, Debug)]
pub struct Imaging {
    /// Associations now open.
    pub associations: Gauge,
    /// Keys the labels; another one for each source and each run.
    secret: RandomState,
    inner: Mutex<Inner>,
}

#[derive(Default, Debug)]
struct Inner {
    /// The newest is last.
    studies: VecDeque<Study>,
    peers: VecDeque<(PeerStatus, u64)>,
}

#[derive(Debug)]
struct Study {
    key: u64,
    modality: String,
    calling: String,
    instances: u64,
    bytes: u64,
    first_ms: u64,
    last_ms: u64,
}

/// A stored instance, as far as it is noted.
pub struct Instance<'a> {
    /// The study's identifier; only a keyed hash of it is kept.
    pub study: &'a [u8],
    /// Modality (0008,0060): one that the standard knows, or `?`.
    pub modality: &'a str,
    /// The calling AE title, printable.
    pub calling: &'a str,
    /// Its length.
    pub bytes: u64,
}

impl Imaging {
    /// An association of a peer was accepted at uptime `now_ms`. A peer is known again when all that is told of it is the same: a
    /// title that two machines use, or a changed software, shows as two.
    pub fn met(&self, peer: PeerStatus, now_ms: u64) {
        self.with(|inner| {
            let known = inner.peers.iter().position(|(old, _)| *old == peer);
            keep(&mut inner.peers, known, (peer, now_ms), PEERS_MAX);
        });
    }

    /// An instance was stored at uptime `now_ms`.
    pub fn stored(&self, instance: &Instance<'_>, now_ms: u64) {
        let key = self.secret.hash_one(instance.study);
        self.with(|inner| {
            let known = inner.studies.iter().position(|study| study.key == key);
            if let Some(study) = known.and_then(|at| inner.studies.get_mut(at)) {
                study.instances += 1;
                study.bytes += instance.bytes;
                study.last_ms = now_ms;
                return;
            }
            let (modality, calling) = (instance.modality.to_owned(), instance.calling.to_owned());
            let (instances, bytes, first_ms, last_ms) = (1, instance.bytes, now_ms, now_ms);
            let study = Study { key, modality, calling, instances, bytes, first_ms, last_ms };
            keep(&mut inner.studies, None, study, STUDIES_MAX);
        });
    }

    /// For the snapshot, the newest first; `None` when no association was ever accepted. `now_ms` is the present uptime.
    pub fn snapshot(&self, now_ms: u64) -> Option<ImagingStatus> {
        let associations = self.associations.value();
        let ago_s = |then_ms: u64| now_ms.saturating_sub(then_ms) / 1_000;
        self.with(|inner| {
            let peers = inner.peers.iter().rev();
            let peers: Vec<PeerStatus> =
                peers.map(|(peer, at_ms)| PeerStatus { last_s: ago_s(*at_ms), ..peer.clone() }).collect();
            let status = |study: &Study| StudyStatus {
                study: label(study.key),
                modality: study.modality.clone(),
                calling: study.calling.clone(),
                instances: study.instances,
                bytes: study.bytes,
                began_s: ago_s(study.first_ms),
                quiet_s: ago_s(study.last_ms),
            };
            let mut studies: Vec<StudyStatus> = inner.studies.iter().rev().map(status).collect();
            studies.sort_by_key(|study| study.quiet_s);
            (!peers.is_empty()).then_some(ImagingStatus { associations, peers, studies })
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Puts an entry at the end, in the place of the one that is known or, when there are too many, of the oldest.
fn keep<T>(entries: &mut VecDeque<T>, known: Option<usize>, entry: T, most: usize) {
    match known {
        Some(at) => drop(entries.remove(at)),
        None if entries.len() >= most => drop(entries.pop_front()),
        None => {}
    }
    entries.push_back(entry);
}

fn label(key: u64) -> String {
    BASE32_NOPAD.encode(&key.to_be_bytes()).chars().take(LABEL_CHARACTERS).collect()
}

/// The imaging side of a source in the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImagingStatus {
    /// Associations now open.
    pub associations: i64,
    /// The last peers, the newest first.
    pub peers: Vec<PeerStatus>,
    /// The last studies, the one that is least quiet first.
    pub studies: Vec<StudyStatus>,
}

/// Somebody who called, and with what software.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PeerStatus {
    /// Its AE title.
    pub calling: String,
    /// Its network address.
    pub address: String,
    /// The AE title that it called.
    pub called: String,
    /// Implementation class UID, as it was told.
    pub implementation_class: String,
    /// Implementation version name; empty where it tells none.
    pub implementation_version: String,
    /// Whom its certificate names.
    pub certificate: Option<String>,
    /// Seconds since its last association began; 0 where it is noted.
    pub last_s: u64,
}

/// A study that came lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StudyStatus {
    /// A label of ours, good for this run of the service only.
    pub study: String,
    /// CT, MR, ...; `?` where the instance does not say.
    pub modality: String,
    /// Who sent it.
    pub calling: String,
    /// Instances that were stored; second copies are not counted.
    pub instances: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Seconds since the first instance.
    pub began_s: u64,
    /// Seconds since the last instance.
    pub quiet_s: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(imaging: &Imaging, study: &str, now_ms: u64) {
        let instance = Instance { study: study.as_bytes(), modality: "CT", calling: "CT1", bytes: 10 };
        imaging.stored(&instance, now_ms);
    }

    fn peer(calling: &str) -> PeerStatus {
        PeerStatus { calling: calling.into(), address: "10.0.0.7".into(), ..PeerStatus::default() }
    }

    #[test]
    fn a_study_is_counted_and_known_by_how_long_it_is_quiet_and_never_by_its_own_name() {
        let imaging = Imaging::default();
        assert_eq!(imaging.snapshot(0), None);
        imaging.met(peer("CT1"), 1_000);
        for now_ms in [1_000, 2_000, 3_000] {
            store(&imaging, "1.2.3", now_ms);
        }
        store(&imaging, "1.2.4", 2_000);
        let status = imaging.snapshot(33_000).unwrap();
        let seen: Vec<_> = status.studies.iter().map(|study| (study.instances, study.bytes, study.quiet_s)).collect();
        assert_eq!(seen, [(3, 30, 30), (1, 10, 31)]);
        assert_eq!((status.studies[0].began_s, status.peers[0].last_s), (32, 32));
        let json = serde_json::to_string(&status).unwrap();
        assert!(!json.contains("1.2.3"), "{json}");
        assert_eq!(status.studies[0].study.len(), LABEL_CHARACTERS);
        assert_ne!(status.studies[0].study, status.studies[1].study);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let imaging = Imaging::default();
        for number in 0..100 {
            store(&imaging, &number.to_string(), number);
            imaging.met(peer(&format!("CT{number}")), number);
            imaging.met(peer("CT0"), number);
        }
        let status = imaging.snapshot(100).unwrap();
        assert_eq!((status.studies.len(), status.peers.len()), (STUDIES_MAX, PEERS_MAX));
        assert_eq!((status.peers[0].calling.as_str(), status.peers[1].calling.as_str()), ("CT0", "CT99"));
    }
}
