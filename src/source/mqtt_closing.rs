//! Why an MQTT connection ended, in words for the log, in a reason code for the client, and in what it means for its will.
//!
//! No topic, client id or payload stands in these words.

use std::io;

use crate::spool::CommitError;
use crate::wire::mqtt_answer::Reason;
use crate::wire::mqtt_packet::Fault;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closing {
    #[error("it said goodbye")]
    Goodbye,
    #[error("it said goodbye and wants its will published")]
    GoodbyeWithWill,
    #[error("the peer closed it without a goodbye")]
    Peer,
    #[error("the source is stopping")]
    Stopped,
    #[error("another connection came with the same client id: give each device its own")]
    TakenOver,
    #[error("nothing came within one and a half times the keep-alive")]
    Silent,
    #[error("a packet did not end in time")]
    Slow,
    #[error("the client did not read its acknowledgements within the write timeout")]
    Deaf,
    #[error("{0}")]
    Fault(#[from] Fault),
    #[error("it published where it may not, or to a topic of more than 1024 bytes: see its publish list")]
    Refused(Reason),
    #[error(
        "more messages are unacknowledged than the receive maximum, or more of QoS 2 unreleased than anybody needs"
    )]
    TooMany,
    #[error("its message could not be stored and is not acknowledged: {0}")]
    NotStored(CommitError),
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

impl Closing {
    /// The reason that a client of MQTT 5 is told, if there is anybody to tell.
    pub(super) fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Goodbye | Self::GoodbyeWithWill | Self::Peer | Self::Deaf | Self::Broken(_) => return None,
            Self::Stopped => Reason::ShuttingDown,
            Self::TakenOver => Reason::TakenOver,
            Self::Silent | Self::Slow => Reason::KeepAlive,
            Self::Fault(fault) => Reason::Fault(*fault),
            Self::Refused(reason) => *reason,
            Self::TooMany => Reason::ReceiveMaximum,
            Self::NotStored(CommitError::Full) => Reason::Quota,
            Self::NotStored(CommitError::Failed) => Reason::Unspecified,
        })
    }

    /// Whether the will is in force (3.1.2.5). A source that stops says so itself.
    pub(super) fn leaves_will(&self) -> bool {
        !matches!(self, Self::Goodbye | Self::Stopped)
    }

    /// Whether it is nothing that anybody must know of.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(self, Self::Goodbye | Self::GoodbyeWithWill | Self::Peer | Self::Stopped)
    }
}
