//! Reports of storage commitment on the association on which they were asked for (PS3.4 annex J.3.3): one at a time, between messages.
//!
//! Whoever makes a report calls here while the association is open, and goes another way when it is not. Nothing is tried again.

use std::collections::VecDeque;

use tokio::sync::{mpsc, oneshot};

use super::association::Context;
use crate::callers::{CALLS_MAX, Call, Line};
use crate::wire::dicom::dimse::{Command, CommandField, Status};
use crate::wire::dicom::element::Encoding;
use crate::wire::dicom::pdu::{Pdv, write_message};

/// Requests of one association that wait for their report on it; the oldest of more is told elsewhere.
const LINES_MAX: usize = 32;

/// The reports of one association.
pub(super) struct Reports {
    calls: mpsc::Receiver<Call>,
    caller: mpsc::Sender<Call>,
    lines: VecDeque<(Line, Context)>,
    underway: Option<Underway>,
    message_id: u16,
}

/// A report that was sent.
struct Underway {
    message_id: u16,
    answer: oneshot::Sender<Status>,
}

impl Reports {
    pub(super) fn new() -> Self {
        let (caller, calls) = mpsc::channel(CALLS_MAX);
        Self { calls, caller, lines: VecDeque::new(), underway: None, message_id: 0 }
    }

    /// Through which reports come here.
    pub(super) fn caller(&self) -> &mpsc::Sender<Call> {
        &self.caller
    }

    /// A request was made in this context, and waits.
    pub(super) fn wait(&mut self, line: Line, context: Context) {
        if self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back((line, context));
    }

    /// Whether the next report may be sent: the one before it is answered, or nobody waits for that any more.
    pub(super) fn is_free(&self) -> bool {
        self.underway.as_ref().is_none_or(|underway| underway.answer.is_closed())
    }

    /// The next report; waits for ever when there is none. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Call {
        loop {
            match self.calls.recv().await {
                Some(call) if !call.answer.is_closed() => return call,
                Some(_) => {}
                // It can't be closed, since we hold one end ourselves.
                None => std::future::pending().await,
            }
        }
    }

    /// Composes the report: a request of ours, with an id of ours.
    pub(super) fn send(&mut self, call: Call, fragment_bytes: usize, out: &mut Vec<u8>) {
        let Call { report, answer } = call;
        let asked = |(line, _): &(Line, Context)| *line.transaction() == report.transaction;
        let at = self.lines.iter().position(asked);
        let Some((_, context)) = at.and_then(|at| self.lines.remove(at)) else { return };
        let Some(encoding) = Encoding::of(&context.transfer_syntax) else { return };
        self.message_id = self.message_id.wrapping_add(1).max(1);
        let command = Command::commitment_report(self.message_id, !report.failed.is_empty()).bytes();
        for (is_command, data) in [(true, command), (false, report.bytes(encoding))] {
            write_message(&Pdv { context: context.id, is_command, is_last: true, data: &data }, fragment_bytes, out);
        }
        self.underway = Some(Underway { message_id: self.message_id, answer });
    }

    /// A response of the peer came; it may be the answer to the report.
    pub(super) fn answered(&mut self, response: &Command) {
        let ours = |underway: &mut Underway| {
            response.field == CommandField::EventReportResponse && response.responded_to == Some(underway.message_id)
        };
        if let Some(underway) = self.underway.take_if(ours) {
            // Unless nobody waits for it any more.
            underway.answer.send(response.status.unwrap_or(Status::PROCESSING_FAILURE)).ok();
        }
    }
}
