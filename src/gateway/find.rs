//! Finding messages by what a person knows of them: the patient's number, the order's number.
//!
//! What came in since tokens are kept is found by them, and nothing but its record is read. An image without one (an earlier version
//! stored it, it was imported, or it names neither number) has its header read. Numbers are compared and forgotten, never told.

use std::collections::VecDeque;

use super::Gateway;
use super::carry::survey;
use crate::admin::answers::{Code, FindReport, FoundMessage, Refusal};
use crate::admin::operator::{Answer, Outlet};
use crate::admin::verbs::{FindRequest, LIST_MAX};
use crate::envelope::{Body, BodyError, Envelope, Identifier, Token};
use crate::spool::{Seen, Sight, Spool};
use crate::wire::dicom::file::{FileError, FileMeta};
use crate::wire::dicom::header::{Facts, Scanner};

/// The media type of what has a header to look into.
const DICOM: &str = "application/dicom";
/// Longest head of a file: preamble and group 2. Ours has less than 512 bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

impl Gateway {
    /// Messages with all the numbers that the request gives, the newest first.
    pub(super) async fn find_messages(&self, request: FindRequest, outlet: &Outlet) -> Answer<FindReport> {
        self.expect_known(request.source.as_ref(), None).await?;
        let wanted = Wanted::new(&self.spool, &request);
        let limit = request.limit.unwrap_or(LIST_MAX).min(LIST_MAX);
        let (tokens, source) = (wanted.clone(), request.source);
        let mut sights = survey(&self.spool, move |seen| {
            let meta = &seen.envelope.meta;
            let asked = source.as_ref().is_none_or(|source| meta.source == *source);
            asked && !meta.asks_for_commitment() && tokens.may_be(&seen.envelope)
        });
        let (mut found, mut report) = (VecDeque::new(), FindReport::default());
        while let Some(sight) = sights.recv().await {
            match sight.map_err(|error| Refusal::new(Code::Failed, error.to_string()))? {
                Sight::Segments { done, total } => outlet.progress("segments", done, Some(total)).await,
                Sight::Damage(_) => report.damaged += 1,
                Sight::Message(seen) => {
                    report.headers_read += u64::from(seen.envelope.meta.tokens.is_empty());
                    let outcome = wanted.is(&seen.envelope).await;
                    if is_found(outcome, seen.is_owed(), &mut report) {
                        report.total += 1;
                        found.push_front(told(*seen));
                        found.truncate(limit);
                    }
                }
            }
        }
        report.messages = found.into();
        Ok(report)
    }
}

/// What is looked for: each number as it may be written, and the tokens of these.
#[derive(Clone)]
struct Wanted(Vec<Number>);

#[derive(Clone)]
struct Number {
    identifier: Identifier,
    written: Vec<Vec<u8>>,
    tokens: Vec<Token>,
}

impl Wanted {
    /// Devices write numbers in their own character sets: beyond ASCII, in UTF-8 or in Latin-1 mostly.
    fn new(spool: &Spool, request: &FindRequest) -> Self {
        let given = [(Identifier::PatientId, &request.patient_id), (Identifier::AccessionNumber, &request.accession)];
        let numbers = given.into_iter().filter_map(|(identifier, value)| {
            let text = value.as_ref().map(|value| value.0.trim_matches(' ')).filter(|text| !text.is_empty())?;
            let latin1: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
            let mut written = vec![text.as_bytes().to_vec()];
            written.extend(latin1.ok().filter(|_| !text.is_ascii()));
            let tokens = written.iter().map(|value| spool.token(identifier, value)).collect();
            Some(Number { identifier, written, tokens })
        });
        Self(numbers.collect())
    }

    /// By its record alone.
    fn may_be(&self, envelope: &Envelope) -> bool {
        let tokens = &envelope.meta.tokens;
        match tokens.is_empty() {
            true => envelope.meta.content_type == DICOM,
            false => self.0.iter().all(|number| number.tokens.iter().any(|token| tokens.contains(token))),
        }
    }

    /// For certain.
    async fn is(&self, envelope: &Envelope) -> Result<bool, BodyError> {
        if !envelope.meta.tokens.is_empty() {
            return Ok(self.may_be(envelope));
        }
        let Some(facts) = facts(&envelope.body).await? else { return Ok(false) };
        Ok(self.0.iter().all(|number| {
            let said = match number.identifier {
                Identifier::PatientId => &facts.patient_id,
                Identifier::AccessionNumber => &facts.accession_number,
            };
            said.as_ref().is_some_and(|said| number.written.contains(said))
        }))
    }
}

/// Whether a message is among what is looked for. One that can't be read counts as damage; one that nobody waits for (`owed`) and that is
/// not kept any more is nothing that is held.
fn is_found(outcome: Result<bool, BodyError>, owed: bool, report: &mut FindReport) -> bool {
    match outcome {
        Ok(found) => found,
        Err(BodyError::Gone(_)) if !owed => false,
        Err(_) => {
            report.damaged += 1;
            false
        }
    }
}

/// What the header of a stored file says; `None` when it is no file that can be read.
async fn facts(body: &Body) -> Result<Option<Facts>, BodyError> {
    let (mut reader, mut head) = (body.reader(), Vec::new());
    let mut scanner: Option<Scanner> = None;
    while let Some(piece) = reader.next().await? {
        match &mut scanner {
            Some(scanner) => scanner.push(&piece),
            None => {
                head.extend_from_slice(&piece);
                match FileMeta::read(&head) {
                    Err(FileError::Truncated | FileError::NotDicom) if head.len() < HEAD_BYTES_MAX => {}
                    Err(_) => return Ok(None),
                    Ok((meta, length)) => {
                        let begun = scanner.insert(Scanner::new(&meta.transfer_syntax));
                        begun.push(head.get(length..).unwrap_or_default());
                    }
                }
            }
        }
        if scanner.as_ref().is_some_and(Scanner::is_done) {
            break;
        }
    }
    Ok(scanner.map(Scanner::finish))
}

fn told(seen: Seen) -> FoundMessage {
    let Seen { envelope, waiting, dead } = seen;
    let Envelope { id, class, meta, body, .. } = envelope;
    FoundMessage {
        id,
        log: class,
        source: meta.source,
        received: meta.received.into(),
        bytes: body.len(),
        content_type: meta.content_type,
        flags: meta.flags.names().into_iter().map(str::to_owned).collect(),
        waiting,
        dead,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::envelope::Pieces;

    type Why = fn(String) -> BodyError;

    /// What it says when it is read.
    struct Lost(Why);

    impl Pieces for Lost {
        fn count(&self) -> usize {
            1
        }

        fn read(&self, _: usize) -> Result<Bytes, BodyError> {
            Err((self.0)("lost".to_owned()))
        }
    }

    #[tokio::test]
    async fn an_image_that_is_not_kept_any_more_is_not_called_damage_unless_somebody_waits_for_it() {
        for (why, owed, damaged) in
            [(BodyError::Gone as Why, false, 0), (BodyError::Gone, true, 1), (BodyError::Unreadable, false, 1)]
        {
            let outcome = facts(&Body::pieces(9, Arc::new(Lost(why)))).await.map(|facts| facts.is_some());
            let mut report = FindReport::default();
            assert!(!is_found(outcome, owed, &mut report));
            assert_eq!(report.damaged, damaged);
        }
    }
}
