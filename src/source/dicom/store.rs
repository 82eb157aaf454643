//! One instance on its way into the imaging log: C-STORE (PS3.4 annex B, PS3.7 section 9.1.1).
//!
//! Its file head is ours, its data set is written as it comes, byte for byte, and looked at only in passing. It answers a status
//! and never sends it; 0000 is said only after the commit. Identifiers of instances and studies are never logged; of patient id and
//! accession number keyed hashes are kept, by which a person finds the instance.

use super::association::{Association, Context};
use super::link::{NoRoom, Patience};
use crate::envelope::{Flags, Identifier};
use crate::source::intake::{About, Incoming, Intake, Share};
use crate::spool::{CommitError, Committed};
use crate::status::imaging::Instance;
use crate::wire::dicom::dimse::{Command, Status};
use crate::wire::dicom::file::FileMeta;
use crate::wire::dicom::header::{Facts, Scanner};
use crate::wire::dicom::values::{AeTitle, Uid};

/// The modalities that the standard knows (PS3.3 section C.7.3.1.1.1), also retired ones. Whatever else stands in that field may
/// be anything, and is not shown.
const MODALITIES: [&str; 96] = [
    "AR",
    "AS",
    "ASMT",
    "AU",
    "BDUS",
    "BI",
    "BMD",
    "CD",
    "CF",
    "CFM",
    "CP",
    "CR",
    "CS",
    "CT",
    "CTPROTOCOL",
    "DD",
    "DF",
    "DG",
    "DM",
    "DMS",
    "DOC",
    "DS",
    "DX",
    "EC",
    "ECG",
    "EEG",
    "EMG",
    "EOG",
    "EPS",
    "ES",
    "FA",
    "FID",
    "FS",
    "GM",
    "HC",
    "HD",
    "IO",
    "IOL",
    "IVOCT",
    "IVUS",
    "KER",
    "KO",
    "LEN",
    "LP",
    "LS",
    "M3D",
    "MA",
    "MG",
    "MR",
    "MS",
    "NM",
    "OAM",
    "OCT",
    "OP",
    "OPM",
    "OPR",
    "OPT",
    "OPTBSV",
    "OPTENF",
    "OPV",
    "OSS",
    "OT",
    "PA",
    "PLAN",
    "POS",
    "PR",
    "PT",
    "PX",
    "REG",
    "RESP",
    "RF",
    "RG",
    "RTDOSE",
    "RTIMAGE",
    "RTINTENT",
    "RTPLAN",
    "RTRAD",
    "RTRECORD",
    "RTSEGANN",
    "RTSTRUCT",
    "RWV",
    "SEG",
    "SM",
    "SMR",
    "SR",
    "SRF",
    "ST",
    "STAIN",
    "TEXTUREMAP",
    "TG",
    "US",
    "VA",
    "VF",
    "XA",
    "XAPROTOCOL",
    "XC",
];

/// Why an instance was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The log has no room.
    Full,
    /// The disk failed.
    Failed,
    /// Others that arrive hold all the memory that there is for them.
    Crowded,
    /// Who sends it has hung up before it could begin.
    Gone,
    /// It is longer than is taken.
    TooLarge,
    /// No class, no instance or no data set in the request, or a UID of characters that none has.
    BadRequest,
    /// The class in the request is not that of its presentation context.
    OtherClass,
    /// Class or instance in the data set are not those of the request. It is stored all the same.
    Mismatch,
}

impl Refusal {
    pub(super) fn status(self) -> Status {
        match self {
            Self::Full | Self::Failed | Self::Crowded | Self::Gone => Status::OUT_OF_RESOURCES,
            // Not A700, after which senders try again for ever: it will be as large then.
            Self::BadRequest | Self::TooLarge => Status::CANNOT_UNDERSTAND,
            Self::OtherClass => Status::CLASS_NOT_SUPPORTED,
            Self::Mismatch => Status::CLASS_MISMATCH,
        }
    }

    /// For the error comment, which has at most 64 characters, and for the log.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Full => "no room now; try again later",
            Self::Failed => "the disk failed; a person must look at the box",
            Self::Crowded => "too many instances arrive at once; try again later",
            Self::Gone => "nobody is there any more",
            Self::TooLarge => "larger than the configured max-instance-size",
            Self::BadRequest => "SOP class, SOP instance or data set missing, or a bad UID",
            Self::OtherClass => "SOP class is not that of the presentation context",
            Self::Mismatch => "SOP class or instance of command and data set differ",
        }
    }

    /// Whether it lies with this box.
    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Full | Self::Failed | Self::Crowded)
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Full => Self::Full,
            CommitError::Failed => Self::Failed,
        }
    }
}

/// What arrives of an instance.
pub(super) struct Store {
    request: Request,
    calling: String,
    scanner: Scanner,
    length: u64,
    bytes_max: u64,
    /// Where it goes; when it is refused, what is left of it is read and dropped.
    arriving: Result<Arriving, Refusal>,
}

/// The class and the instance that the request names; both can be UIDs.
struct Request {
    class: Uid,
    instance: Uid,
}

/// On its way into the log, and what it may hold in memory meanwhile.
struct Arriving {
    incoming: Incoming,
    share: Share,
}

impl Store {
    /// Begins an instance: waits for its share of memory and writes the head of the file.
    ///
    /// # Errors
    /// The refusal, known before anything of it has come: its data set is not for the log.
    pub(super) async fn begin(
        command: &Command,
        context: &Context,
        association: &Association,
        (intake, bytes_max, patience): (&Intake, u64, &Patience<'_>),
    ) -> Result<Self, Refusal> {
        let usable = |uid: &Option<Uid>| uid.clone().filter(is_usable).ok_or(Refusal::BadRequest);
        let request =
            Request { class: usable(&command.affected_class)?, instance: usable(&command.affected_instance)? };
        if !command.has_data_set {
            return Err(Refusal::BadRequest);
        }
        if request.class != context.abstract_syntax {
            return Err(Refusal::OtherClass);
        }
        let head = FileMeta {
            receiving_ae: AeTitle::default(),
            sop_class: request.class.clone(),
            sop_instance: request.instance.clone(),
            transfer_syntax: context.transfer_syntax.clone(),
            source_ae: association.calling.clone(),
        };
        let share = patience.wait(intake.stream_share()).await;
        let share = share.map_err(|why| match why {
            NoRoom::Late => lost(Refusal::Crowded, intake),
            NoRoom::Gone => Refusal::Gone,
        })?;
        let mut incoming = intake.begin();
        let arriving = match incoming.write(&head.bytes()).await {
            Ok(()) => Ok(Arriving { incoming, share }),
            Err(error) => Err(lost(error.into(), intake)),
        };
        let scanner = Scanner::new(&context.transfer_syntax);
        Ok(Self { request, calling: association.calling.to_string(), scanner, length: 0, bytes_max, arriving })
    }

    /// The next bytes of the data set.
    pub(super) async fn write(&mut self, bytes: &[u8], intake: &Intake) {
        let Ok(arriving) = &mut self.arriving else { return };
        self.length += bytes.len() as u64;
        if self.length > self.bytes_max {
            self.arriving = Err(lost(Refusal::TooLarge, intake));
            return;
        }
        if !self.scanner.is_done() {
            self.scanner.push(bytes);
        }
        if let Err(error) = arriving.incoming.write(bytes).await {
            self.arriving = Err(lost(error.into(), intake));
        }
    }

    /// The data set has ended: makes the instance durable. Ok is said after the sync.
    ///
    /// # Errors
    /// The refusal.
    pub(super) async fn finish(self, intake: &Intake) -> Result<(), Refusal> {
        let Arriving { mut incoming, share } = self.arriving?;
        let _share = share.arrived();
        let facts = self.scanner.finish();
        let differs = self.request.differs_from(&facts);
        let about = About {
            content_type: "application/dicom".to_owned(),
            control_id: self.request.instance.to_bytes(),
            flags: flags(&facts, differs),
        };
        let numbers =
            [(Identifier::PatientId, &facts.patient_id), (Identifier::AccessionNumber, &facts.accession_number)];
        for (identifier, value) in numbers {
            value.iter().for_each(|value| incoming.find_by(identifier, value));
        }
        let bytes = incoming.len();
        let committed = incoming.commit(about).await?;
        if !matches!(committed, Committed::Repeat(_)) {
            note(intake, &facts, &self.calling, bytes);
        }
        if differs { Err(Refusal::Mismatch) } else { Ok(()) }
    }
}

/// Whether a UID has only the characters of one. Numbers with leading zeros, which the standard forbids (PS3.5 section 9.1), are in
/// the field, and archives take them.
fn is_usable(uid: &Uid) -> bool {
    !uid.is_empty() && uid.as_str().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// Counts an instance that is given up before its end: it never existed.
fn lost(refusal: Refusal, intake: &Intake) -> Refusal {
    if refusal.is_ours() {
        intake.counters().refused.one();
    }
    refusal
}

impl Request {
    /// Whether the data set says that it is something else. One that says nothing does not differ.
    fn differs_from(&self, facts: &Facts) -> bool {
        let other = |said: &Option<Uid>, asked: &Uid| said.as_ref().is_some_and(|said| said != asked);
        other(&facts.sop_class, &self.class) || other(&facts.sop_instance, &self.instance)
    }
}

fn flags(facts: &Facts, differs: bool) -> Flags {
    let nameless = facts.sop_instance.is_none() || facts.sop_class.is_none();
    let mut flags = Flags::default();
    for (flag, set) in [(Flags::UNREADABLE, facts.unreadable || nameless), (Flags::REJECTED, differs)] {
        if set {
            flags = flags.with(flag);
        }
    }
    flags
}

/// For the study view. An instance whose study is not known is of none.
fn note(intake: &Intake, facts: &Facts, calling: &str, bytes: u64) {
    let Some(study) = &facts.study else { return };
    let said = facts.modality.as_deref().unwrap_or_default().trim();
    let modality = MODALITIES.iter().find(|known| **known == said).unwrap_or(&"?");
    let instance = Instance { study: study.as_str().as_bytes(), modality, calling, bytes };
    intake.counters().imaging.stored(&instance, intake.uptime_ms());
}
