//! The archive at the other end: whom to call and how, and in which words an association with it fails.
//!
//! Every text says whose settings to look at. None of them blames a message or quotes one.

use std::time::Duration;

use crate::system::tls::ClientTls;
use crate::upstream::SendError;
use crate::values::HostPort;
use crate::wire::dicom::pdu::{Abort, PduError, Reject};
use crate::wire::dicom::values::AeTitle;

/// Whom to call, and how.
#[derive(Clone, PartialEq, Debug)]
pub struct Archive {
    /// Where it listens.
    pub address: HostPort,
    /// Whom to trust; `None` is plain TCP.
    pub tls: Option<ClientTls>,
    /// Its AE title.
    pub called: AeTitle,
    /// Ours.
    pub calling: AeTitle,
    /// The longest P-DATA body that we take, in bytes; announced.
    pub max_pdu: u32,
    /// For name, TCP and TLS; and once more for the answer to the association's request.
    pub connect_timeout: Duration,
    /// For the peer to take the next 64 KiB.
    pub write_timeout: Duration,
    /// From the last byte sent to the answer.
    pub response_timeout: Duration,
}

/// Why an association did not come about or ended. Nobody is blamed but the connection and the two configurations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssociationError {
    /// No connection.
    #[error("{0}")]
    Dial(String),
    /// A-ASSOCIATE-RJ.
    #[error("the archive answered the association: {reject}{}", advice(*.reject, .calling, .called))]
    Rejected {
        /// Its three numbers.
        reject: Reject,
        /// As whom we called.
        calling: AeTitle,
        /// Whom we called.
        called: AeTitle,
    },
    /// A-ABORT.
    #[error("the archive ended the association: {0}")]
    Aborted(Abort),
    /// It released the association by itself.
    #[error("the archive released the association")]
    Released,
    /// TCP or TLS ended.
    #[error("the connection to the archive ended: {0}")]
    Closed(String),
    /// It takes or says nothing more.
    #[error("the archive {what} within {} s", .limit.as_secs().max(1))]
    Silent {
        /// What it did not do.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// It does not keep to the protocol.
    #[error("the archive does not speak as DICOM wants: {0}")]
    Broken(String),
}

fn advice(reject: Reject, calling: &AeTitle, called: &AeTitle) -> String {
    match (reject.source, reject.reason) {
        (1, 3) => format!("; let its owner enter \"{calling}\" with the address of this box"),
        (1, 7) => format!("; check called = \"{called}\": it must be written as the archive knows itself"),
        _ if reject.is_transient() => String::new(),
        _ => format!("; ask its owner whether \"{calling}\" may store to \"{called}\""),
    }
}

impl From<AssociationError> for SendError {
    fn from(error: AssociationError) -> Self {
        Self::Disconnected { cause: error.to_string() }
    }
}

impl From<PduError> for AssociationError {
    fn from(error: PduError) -> Self {
        Self::Broken(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_says_what_to_do_where() {
        let words = |reject| {
            let (calling, called) = (AeTitle::read(b"WARDGATE"), AeTitle::read(b"PACS"));
            AssociationError::Rejected { reject, calling, called }.to_string()
        };
        for (reject, expected) in [
            (Reject::CALLING_AE_TITLE, "let its owner enter \"WARDGATE\" with the address of this box"),
            (Reject::CALLED_AE_TITLE, "check called = \"PACS\""),
            (Reject::LOCAL_LIMIT, "rejected for now: local limit exceeded"),
            (Reject::NO_REASON, "whether \"WARDGATE\" may store to \"PACS\""),
        ] {
            assert!(words(reject).contains(expected), "{}", words(reject));
        }
    }
}
