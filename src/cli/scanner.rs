//! The demo's simulated CT scanners: each sends a study of slices as a real one does, over one association on loopback.
//!
//! It sends an image again that was not acknowledged, over a new association. What it was told is safe goes into the [`Ledger`].
//! The phantom's patients are invented.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ledger::{Ledger, fingerprint};
use super::patients::patient;
use crate::envelope::Body;
use crate::upstream::dicom::archive::Archive;
use crate::upstream::dicom::association::{Association, Pair};
use crate::upstream::dicom::commitment::fresh_uid;
use crate::upstream::dicom::pool::Nothing;
use crate::upstream::dicom::store::{self, Instance};
use crate::values::HostPort;
use crate::wire::dicom::dimse::Status;
use crate::wire::dicom::file::FileMeta;
use crate::wire::dicom::sample::CtSlice;
use crate::wire::dicom::values::{AeTitle, CT_IMAGE, EXPLICIT_LITTLE_ENDIAN, Uid};

/// The title that the demo's gateway answers to.
pub const GATEWAY_TITLE: &str = "WARDGATE";
/// From the beginning of one study to that of the next.
const STUDY_PERIOD: Duration = Duration::from_secs(15);
/// Images of a study: 12 MB.
const STUDY_IMAGES: u32 = 24;
/// The longest P-DATA that a scanner takes.
const MAX_PDU: u32 = 16 << 10;
/// How long a scanner waits for an answer, or for an association.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Before an image is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Scanners that are at work.
pub struct Scanners {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Scanners {
    /// Sets `count` scanners going, beginning at different moments.
    pub fn start(count: usize, gateway: &HostPort, ledger: &Arc<Ledger>) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        for number in 0..count {
            let scanner = Scanner { number, archive: archive(gateway, number), ledger: Arc::clone(ledger) };
            let (stop, delay) = (stop.clone(), STUDY_PERIOD * part(number) / part(count));
            tasks.spawn(async move {
                if stop.run_until_cancelled(sleep(delay)).await.is_some() {
                    scanner.work(&stop).await;
                }
            });
        }
        Self { tasks, stop }
    }

    /// Lets each scanner have the answer that it is waiting for, and stops them.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn part(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The gateway, as a scanner sees it.
fn archive(gateway: &HostPort, number: usize) -> Archive {
    Archive {
        address: gateway.clone(),
        tls: None,
        called: AeTitle::read(GATEWAY_TITLE.as_bytes()),
        calling: AeTitle::read(format!("CT{}", number + 1).as_bytes()),
        max_pdu: MAX_PDU,
        connect_timeout: ANSWER_MAX,
        write_timeout: ANSWER_MAX,
        response_timeout: ANSWER_MAX,
    }
}

/// One scanner.
struct Scanner {
    number: usize,
    archive: Archive,
    ledger: Arc<Ledger>,
}

impl Scanner {
    /// One study after the other until `stop`.
    async fn work(&self, stop: &CancellationToken) {
        let mut period = interval(STUDY_PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut visitor = self.number;
        while stop.run_until_cancelled(period.tick()).await.is_some() {
            self.scan(&Study::of(visitor), stop).await;
            visitor += 1;
        }
    }

    /// Sends a study, each image until it is acknowledged; ends early at `stop`.
    async fn scan(&self, study: &Study, stop: &CancellationToken) {
        let mut association = None;
        for number in 1..=STUDY_IMAGES {
            let (sop_instance, data_set) = study.slice(number);
            let fingerprint = fingerprint(&data_set);
            let file = [self.meta(&sop_instance).bytes(), data_set].concat();
            self.ledger.sending(fingerprint, sop_instance.as_str());
            while !self.deliver(&mut association, &file).await {
                association = None;
                if stop.run_until_cancelled(sleep(AGAIN_AFTER)).await.is_none() {
                    return;
                }
            }
            self.ledger.acknowledged(&fingerprint);
            if stop.is_cancelled() {
                break;
            }
        }
        if let Some(association) = association {
            association.release().await;
        }
    }

    fn meta(&self, sop_instance: &Uid) -> FileMeta {
        FileMeta {
            sop_class: CT_IMAGE,
            sop_instance: sop_instance.clone(),
            transfer_syntax: EXPLICIT_LITTLE_ENDIAN,
            source_ae: self.archive.calling.clone(),
            receiving_ae: self.archive.called.clone(),
        }
    }

    /// Whether the gateway said that it has the image.
    async fn deliver(&self, association: &mut Option<Association>, file: &[u8]) -> bool {
        let pair = Pair { abstract_syntax: CT_IMAGE, transfer_syntax: EXPLICIT_LITTLE_ENDIAN };
        let association = match association {
            Some(association) => association,
            None => match Association::open(&self.archive, std::slice::from_ref(&pair)).await {
                Ok(opened) => association.insert(opened),
                Err(_) => return false,
            },
        };
        let Some(Ok(context)) = association.context(&pair) else { return false };
        let Ok(instance) = Instance::open(&Body::whole(file.to_vec().into())).await else { return false };
        let status = store::store(association, context, instance, &Nothing).await;
        status.is_ok_and(|status| status == Status::SUCCESS)
    }
}

/// One patient's visit to a scanner.
struct Study {
    visitor: usize,
    study: Uid,
    series: Uid,
    frame_of_reference: Uid,
    date: String,
    time: String,
}

impl Study {
    fn of(visitor: usize) -> Self {
        let now = jiff::Zoned::now();
        Self {
            visitor,
            study: fresh_uid(),
            series: fresh_uid(),
            frame_of_reference: fresh_uid(),
            date: now.strftime("%Y%m%d").to_string(),
            time: now.strftime("%H%M%S").to_string(),
        }
    }

    /// An image as its UID and its data set.
    fn slice(&self, number: u32) -> (Uid, Vec<u8>) {
        let (patient, sop_instance) = (patient(self.visitor), fresh_uid());
        let slice = CtSlice {
            sop_instance: &sop_instance,
            study: &self.study,
            series: &self.series,
            frame_of_reference: &self.frame_of_reference,
            patient_name: &format!("{}^{}", patient.family, patient.given),
            patient_id: &format!("TEST-CT-{}", self.visitor),
            born: patient.born,
            sex: patient.sex,
            number,
            date: &self.date,
            time: &self.time,
        };
        let data_set = slice.data_set();
        (sop_instance, data_set)
    }
}
