//! Requests for storage commitment (N-ACTION, PS3.4 annex J.3.2): kept in the log before they are answered.
//!
//! What is asked is stored as it came, behind a head that says who asked whom, for the upstream that reports to devices. Nothing is
//! decided here: whether the instances are safe is found out when the report is made.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::association::{Association, Context};
use super::link::{NoRoom, Patience};
use crate::callers::{Call, Line};
use crate::envelope::Flags;
use crate::source::intake::{About, Intake};
use crate::spool::CommitError;
use crate::system::tls::ClientTls;
use crate::values::{HostPort, Name, Problems, Section};
use crate::wire::dicom::commitment::{CommitmentError, DATA_SET_BYTES_MAX, Request};
use crate::wire::dicom::dimse::{Command, REQUEST_COMMITMENT, Status};
use crate::wire::dicom::element::Encoding;
use crate::wire::dicom::file::FileMeta;
use crate::wire::dicom::values::{
    AeTitle, STORAGE_COMMITMENT as STORAGE_COMMITMENT_CLASS, STORAGE_COMMITMENT_INSTANCE,
};

/// Requests of one source that arrive at once; each is held whole, up to [`DATA_SET_BYTES_MAX`].
pub(super) const REQUESTS_MAX: usize = 2;

/// `commit`: from when on an instance counts as safe.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Commit {
    /// When every upstream that it is routed to has it.
    #[default]
    Delivered,
    /// When this box has it. A device may then delete the only other copy.
    Stored,
}

/// `report-on`: where a device gets the report that it asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportOn {
    /// On an association that we ask the device for.
    #[default]
    NewAssociation,
    /// On the association on which it asked, while that is open; else on a new one.
    SameAssociation,
}

/// How devices of a source that ask for storage commitment are answered.
#[derive(Clone, PartialEq, Debug)]
pub struct Reporting {
    /// When an instance counts as safe.
    pub commit: Commit,
    /// On which association devices are told.
    pub on: ReportOn,
    /// Where each calling AE title takes reports.
    pub to: Vec<(AeTitle, HostPort)>,
    /// How they are called; `None` is plain TCP.
    pub tls: Option<ClientTls>,
}

/// Checks the keys `commit`, `report-on`, `report-to` and `report-tls`.
pub(super) fn check(
    (commit, on): (Commit, ReportOn),
    to: &BTreeMap<String, HostPort>,
    tls: Option<&ClientTls>,
    problems: &mut Problems,
) {
    problems.under("report-to", |problems| {
        for title in to.keys() {
            if title.parse::<AeTitle>().is_err() {
                problems.error(title, "is not an AE title: 1 to 16 printable characters, no backslash");
            }
        }
    });
    let titles: HashSet<AeTitle> = to.keys().filter_map(|title| title.parse().ok()).collect();
    if titles.len() < to.keys().filter(|title| title.parse::<AeTitle>().is_ok()).count() {
        problems.error(
            "report-to",
            "names a device twice: case and blanks around a title do not count; remove one of them",
        );
    }
    if commit == Commit::Stored {
        problems.warn(
            "commit",
            "a modality that is told \"committed\" may delete its images while this box has the only other copy: \"delivered\" \
             waits until every upstream has them",
        );
    }
    if to.is_empty() && (commit == Commit::Stored || tls.is_some()) {
        problems.warn("commit", "has no effect without report-to, which says where each modality takes its reports");
    }
    if to.is_empty() && on == ReportOn::SameAssociation {
        let why = "has no effect without report-to: who is not named there may not ask, and is called there when its association is over";
        problems.warn("report-on", why);
    }
    if let Some(tls) = tls {
        problems.under("report-tls", |problems| tls.check(problems));
    }
}

/// A request that is arriving.
pub(super) struct Asked {
    meta: FileMeta,
    data_set: Vec<u8>,
    too_long: bool,
    _seat: Option<OwnedSemaphorePermit>,
}

impl Asked {
    /// A request for storage commitment has begun.
    ///
    /// # Errors
    /// The status, when it is anything else.
    pub(super) fn begin(command: &Command, context: &Context, association: &Association) -> Result<Self, Status> {
        let instance = command.requested_instance.as_ref();
        match () {
            () if context.abstract_syntax != STORAGE_COMMITMENT_CLASS => return Err(Status::CLASS_NOT_SUPPORTED),
            () if instance != Some(&STORAGE_COMMITMENT_INSTANCE) => return Err(Status::NO_SUCH_INSTANCE),
            () if command.action_type != Some(REQUEST_COMMITMENT) => return Err(Status::NO_SUCH_ACTION),
            () if !command.has_data_set => return Err(Status::INVALID_ARGUMENT),
            () => {}
        }
        let meta = FileMeta {
            sop_class: STORAGE_COMMITMENT_CLASS,
            sop_instance: STORAGE_COMMITMENT_INSTANCE,
            transfer_syntax: context.transfer_syntax.clone(),
            source_ae: association.calling.clone(),
            receiving_ae: association.called.clone(),
        };
        Ok(Self { meta, data_set: Vec::new(), too_long: false, _seat: None })
    }

    /// Waits until it may be held in memory.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub(super) async fn seated(mut self, requests: &Arc<Semaphore>, patience: &Patience<'_>) -> Result<Self, NoRoom> {
        self._seat = patience.wait(Arc::clone(requests).acquire_owned()).await?.ok();
        Ok(self)
    }

    /// The next bytes of the action information.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.too_long |= self.data_set.len() + bytes.len() > DATA_SET_BYTES_MAX;
        if !self.too_long {
            self.data_set.extend_from_slice(bytes);
        }
    }

    /// Keeps it; the status is the answer to it, after the commit. With `calls` the device may be told through them: it is, while the
    /// line is kept.
    pub(super) async fn keep(
        self,
        (intake, reporting): (&Intake, &Reporting),
        calls: Option<&mpsc::Sender<Call>>,
    ) -> Result<Option<Line>, Status> {
        let (source, device) = (intake.source(), &self.meta.source_ae);
        if !reporting.to.iter().any(|(title, _)| title == device) {
            tracing::warn!(%source, %device, "storage commitment refused: report-to does not name this device");
            return Err(Status::NOT_AUTHORISED);
        }
        let Some(encoding) = Encoding::of(&self.meta.transfer_syntax) else { return Err(Status::PROCESSING_FAILURE) };
        let request = match Request::read(encoding, &self.data_set) {
            _ if self.too_long => return Err(Status::RESOURCE_LIMITATION),
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%source, %device, %error, "storage commitment refused");
                let too_many = error == CommitmentError::TooMany;
                return Err(if too_many { Status::RESOURCE_LIMITATION } else { Status::INVALID_ARGUMENT });
            }
        };
        let about = About {
            content_type: "application/dicom".to_owned(),
            control_id: request.transaction.as_str().as_bytes().to_vec(),
            flags: Flags::default(),
        };
        // Before the commit: its report may be ready at once.
        let line = calls.map(|calls| intake.callers().enter(source, &request.transaction, calls));
        let mut incoming = intake.begin();
        let stored = async {
            incoming.write(&self.meta.bytes()).await?;
            incoming.write(&self.data_set).await?;
            incoming.commit_for(Name::storage_commitment(), about).await
        };
        match stored.await {
            Ok(_) => Ok(line),
            Err(CommitError::Full) => Err(Status::RESOURCE_LIMITATION),
            Err(CommitError::Failed) => Err(Status::PROCESSING_FAILURE),
        }
    }
}
