//! Long jobs on the spool for people: checking all of it, and carrying messages to other boxes, sealed.
//!
//! Whatever blocks on the disk runs off the runtime's threads and ends when the one who asked has hung up. An export marks
//! nothing as delivered and leaves this process only sealed.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::PoisonError;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Gateway;
use super::verbs::expect_among;
use crate::admin::alarms;
use crate::admin::answers::{Code, Damage, ExportReport, ImportReport, Refusal, VerifyReport};
use crate::admin::ids::IdPattern;
use crate::admin::operator::{Answer, Inlet, Outlet};
use crate::admin::verbs::{ExportRequest, ImportRequest};
use crate::envelope::MessageId;
use crate::spool::{Damaged, ImportError, Seen, Sight, Spool, Writing};
use crate::upstream::sealing::{Sealer, Sealing};

/// Messages that were found and wait to be sealed.
const FOUND_WAITING_MAX: usize = 16;
/// Sealed bytes are handed out in pieces of about this size.
const PIECE_BYTES: u64 = 128 << 10;
/// Messages between two words of progress.
const PROGRESS_EVERY: u64 = 500;

impl Gateway {
    /// Reads every record.
    pub(super) async fn verify(&self, outlet: &Outlet) -> Answer<VerifyReport> {
        let spool = self.spool.clone();
        let found = told(outlet, move |progress| spool.verify(progress)).await?;
        let folder = self.parts.lock().await.config().spool.path.clone();
        let damage: Vec<Damage> = found.damage.into_iter().map(|found| damage(found, &folder)).collect();
        *self.damaged.lock().unwrap_or_else(PoisonError::into_inner) = alarms::of_damage(&damage);
        Ok(VerifyReport { segments: found.segments, records: found.records, bytes: found.bytes, damage })
    }

    /// Seals the chosen messages and hands them out.
    pub(super) async fn export(&self, request: ExportRequest, outlet: &Outlet) -> Answer<ExportReport> {
        self.expect_known(request.source.as_ref(), request.upstream.as_ref()).await?;
        let sealer = Sealer::new(&request.recipients).map_err(|error| Refusal::bad(error.to_string()))?;
        let mut exporting = Exporting::begin(&sealer, outlet)?;
        let mut named = Named::new(&request.ids);
        let choice = Choice { request };
        let mut sights = survey(&self.spool, move |seen| choice.takes(seen));
        let mut damaged = 0;
        while let Some(sight) = sights.recv().await {
            match sight.map_err(failed)? {
                Sight::Segments { done, total } => outlet.progress("segments", done, Some(total)).await,
                Sight::Message(seen) => match exporting.message(&seen).await? {
                    Exported::Whole => named.note(seen.envelope.id)?,
                    Exported::Unreadable => {
                        damaged += 1;
                        named.note(seen.envelope.id)?;
                    }
                    Exported::Gone => {}
                },
                Sight::Damage(_) => damaged += 1,
            }
        }
        let (messages, bytes) = exporting.end().await?;
        Ok(ExportReport { messages, bytes, damaged, unknown: named.unknown() })
    }

    /// Stores what another box exported.
    pub(super) async fn import(
        &self,
        request: ImportRequest,
        inlet: &mut Inlet,
        outlet: &Outlet,
    ) -> Answer<ImportReport> {
        let busy = || Refusal::new(Code::Unavailable, "another import is under way: try again when it has ended");
        let _turn = self.importing.try_lock().map_err(|_| busy())?;
        let config = self.parts.lock().await.config().clone();
        let active = config.upstreams.iter().filter(|(_, standing)| standing.is_active()).map(|(name, _)| name.clone());
        let active = active.collect();
        for name in &request.upstreams {
            expect_among("active upstream", name, &active)?;
        }
        let spool = self.spool.clone();
        let mut import = told(outlet, move |progress| spool.import(request.upstreams, progress)).await?;
        let mut shown = 0;
        let outcome = loop {
            match inlet.next().await? {
                None => break import.finish(),
                Some(bytes) => {
                    if let Err(error) = import.take(&bytes).await {
                        break Err(error);
                    }
                }
            }
            let done = import.done();
            if done.stored + done.repeats >= shown + PROGRESS_EVERY {
                shown = done.stored + done.repeats;
                outlet.progress("messages", shown, None).await;
            }
        };
        self.parts.lock().await.serve_new_lanes().await;
        let done = outcome.map_err(refused)?;
        Ok(ImportReport { stored: done.stored, repeats: done.repeats, bytes: done.bytes })
    }
}

/// Which messages an export is about.
struct Choice {
    request: ExportRequest,
}

impl Choice {
    fn takes(&self, seen: &Seen) -> bool {
        let (request, meta) = (&self.request, &seen.envelope.meta);
        let received = meta.received.wall_us;
        let is_named = || {
            let id = seen.envelope.id.to_string();
            request.ids.iter().any(|named| named.fits(&id))
        };
        // A device's request for storage commitment is answered here or not at all; parts come as the message that they make.
        !meta.asks_for_commitment()
            && !meta.is_part()
            && (request.ids.is_empty() || is_named())
            && request.source.as_ref().is_none_or(|source| meta.source == *source)
            && request.upstream.as_ref().is_none_or(|name| seen.waiting.contains(name) || seen.dead.contains(name))
            && request.from.is_none_or(|from| received >= from.0.as_microsecond())
            && request.to.is_none_or(|to| received < to.0.as_microsecond())
    }
}

/// The messages that were named, each by what a person wrote, and which one that turned out to be.
struct Named(Vec<(IdPattern, Option<MessageId>)>);

impl Named {
    fn new(ids: &[IdPattern]) -> Self {
        Self(ids.iter().map(|id| (id.clone(), None)).collect())
    }

    /// A message was found. Refused when what a person wrote fits another one as well: what was handed out is not whole then.
    fn note(&mut self, found: MessageId) -> Answer<()> {
        let id = found.to_string();
        for (named, known) in self.0.iter_mut().filter(|(named, _)| named.fits(&id)) {
            match known.replace(found) {
                Some(other) if other != found => return Err(named.ambiguous(&[other, found])),
                _ => {}
            }
        }
        Ok(())
    }

    fn unknown(self) -> Vec<IdPattern> {
        self.0.into_iter().filter(|(_, known)| known.is_none()).map(|(named, _)| named).collect()
    }
}

/// Reads all that is held on a thread of its own; gives the messages of which `takes` says yes, and all damage. Ends when nobody listens.
pub(super) fn survey(
    spool: &Spool,
    takes: impl Fn(&Seen) -> bool + Send + 'static,
) -> mpsc::Receiver<io::Result<Sight>> {
    let (sender, sights) = mpsc::channel(FOUND_WAITING_MAX);
    let spool = spool.clone();
    tokio::task::spawn_blocking(move || {
        let outcome = spool.survey(&mut |sight| {
            let wanted = if let Sight::Message(seen) = &sight { takes(seen) } else { true };
            match wanted && sender.blocking_send(Ok(sight)).is_err() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        if let Err(error) = outcome {
            // Nobody listens any more: nobody wants to know.
            sender.blocking_send(Err(error)).ok();
        }
    });
    sights
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exported {
    /// It is part of the export.
    Whole,
    /// It can't be read and should be.
    Unreadable,
    /// It was held when it was found, and is not any more.
    Gone,
}

/// An export that is being sealed and handed out.
struct Exporting<'a> {
    sealing: Sealing,
    writing: Writing,
    outlet: &'a Outlet,
}

impl<'a> Exporting<'a> {
    fn begin(sealer: &Sealer, outlet: &'a Outlet) -> Answer<Self> {
        let mut sealing = Sealing::begin(sealer).map_err(failed)?;
        let (writing, first) = Writing::begin();
        sealing.push(&first).map_err(failed)?;
        Ok(Self { sealing, writing, outlet })
    }

    /// Adds a message; when its body can't be read it is not part of the export.
    async fn message(&mut self, seen: &Seen) -> Answer<Exported> {
        let envelope = &seen.envelope;
        self.push(&self.writing.head(envelope)).await?;
        let mut reader = envelope.body.reader();
        loop {
            match reader.next().await {
                Ok(Some(bytes)) => self.push(&Writing::piece(&bytes)).await?,
                Ok(None) => break,
                Err(error) => {
                    self.push(&Writing::give_up()).await?;
                    if seen.is_let_go(&error) {
                        return Ok(Exported::Gone);
                    }
                    tracing::error!(id = %envelope.id, %error, "a message can't be exported");
                    return Ok(Exported::Unreadable);
                }
            }
        }
        let whole = self.writing.whole(envelope.body.len());
        self.push(&whole).await?;
        Ok(Exported::Whole)
    }

    async fn push(&mut self, plain: &[u8]) -> Answer<()> {
        self.sealing.push(plain).map_err(failed)?;
        if self.sealing.buffered() >= PIECE_BYTES {
            self.outlet.data(Bytes::from(self.sealing.take())).await?;
        }
        Ok(())
    }

    async fn end(mut self) -> Answer<(u64, u64)> {
        let (last, tail) = std::mem::take(&mut self.writing).end();
        self.push(&last).await?;
        self.sealing.end().map_err(failed)?;
        self.outlet.data(Bytes::from(self.sealing.take())).await?;
        Ok((tail.messages, tail.bytes))
    }
}

/// Where a blocking job says how many segments of how many are done.
type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Runs blocking work and passes on how far it is; it breaks off when the one who asked has hung up.
async fn told<T: Send + 'static>(
    outlet: &Outlet,
    work: impl FnOnce(Progress<'_>) -> io::Result<T> + Send + 'static,
) -> Answer<T> {
    let (sender, mut steps) = mpsc::channel(1);
    let running = tokio::task::spawn_blocking(move || {
        work(&mut |done, total| match sender.blocking_send((done, total)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    });
    while let Some((done, total)) = steps.recv().await {
        outlet.progress("segments", done, Some(total)).await;
    }
    running.await.map_err(failed)?.map_err(failed)
}

fn damage(found: Damaged, folder: &Path) -> Damage {
    let file = if found.file.is_empty() { String::new() } else { folder.join(&found.file).display().to_string() };
    Damage { log: found.class, segment: found.segment, file, text: found.text }
}

fn refused(error: ImportError) -> Refusal {
    let code = match error {
        ImportError::Commit(_) | ImportError::TooMany => Code::Unavailable,
        ImportError::Transfer(_) | ImportError::Checksum | ImportError::Count(..) => Code::Failed,
    };
    Refusal::new(code, error.to_string())
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::Failed, error.to_string())
}
