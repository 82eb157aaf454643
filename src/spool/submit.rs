//! Short messages that have wholly arrived, many of one sender in flight at once: sent to the writer at once, waited for with little.
//!
//! A [`super::Draft`] can grow, go to disk in pieces and wait for a first copy of itself; all that such a message needs is a place in the
//! queue and an end to wait for.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::requests::Requests;
use super::writer::{Request, Written};
use super::{CommitError, Committed, draft, source_tag};
use crate::envelope::{Class, Meta};
use crate::values::Name;

/// The way of one source's messages into its log.
pub struct Way {
    requests: Requests,
    class: Class,
    tag: u16,
}

/// The end of a message that was sent off: Ok only after the sync. Dropped, the message is stored all the same.
pub struct Submitted(oneshot::Receiver<Result<Vec<Written>, CommitError>>);

impl super::Spool {
    /// The way of a source's messages into the log of this class.
    pub fn way(&self, class: Class, source: &Name) -> Way {
        let opened = self.opened(class);
        let tag = source_tag(&opened.log.keys().spool, source);
        Way { requests: opened.requests.clone(), class, tag }
    }
}

impl Way {
    /// Sends a message off, of at most [`super::FRAGMENT_BYTES`]. It is not looked up among those that came before, so that it is for
    /// messages without an id of their own. The order of the calls is the order of the log. `crowd`: see [`super::Draft::among_others`].
    pub fn submit(&self, body: &[u8], meta: Meta, crowd: bool) -> Submitted {
        let records = vec![draft::whole(self.class, meta, body, self.tag)];
        let (reply, told) = oneshot::channel();
        let request = Request::Append { records, control: false, reply };
        match crowd {
            true => self.requests.send(request),
            false => self.requests.send_and_wait(request),
        }
        Submitted(told)
    }
}

impl Future for Submitted {
    type Output = Result<Committed, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|told| {
            let written = told.unwrap_or(Err(CommitError::Failed))?;
            written.first().map(|written| Committed::Stored(written.id)).ok_or(CommitError::Failed)
        })
    }
}
