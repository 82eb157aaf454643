//! Where the writer finds room for what it is to write: in its segment, in another file, or by bringing the cursors into the log so that
//! what they have passed comes free. What makes space is in [`compact`]; the order of the steps, and the words when there is none, are here.

use super::{Writer, outgoing};
use crate::spool::batch::Batch;
use crate::spool::compact::{self, Gain};
use crate::spool::frame::{framed_bytes, group_bytes};
use crate::spool::log::{FreeFile, Short};
use crate::spool::record::{self, Kind};

/// Share of a segment that only cursors, dead letters and the like may use, so that draining is always possible.
const CONTROL_SHARE: u64 = 64;
/// A part of the former that only cursors may use when space is to be made, which is by those that are in the log.
const CURSOR_SHARE: u64 = 128;
/// Share of a segment that is kept for the footer.
const FOOTER_SHARE: u64 = 128;

/// For what room is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    /// Messages, and pieces of them.
    Message,
    /// Dead letters, replays and what else is not refused before there is no way left.
    Control,
    /// Cursors alone, which can wait for the next segment's checkpoint.
    Cursors,
}

impl Writer {
    /// Whether records of `bytes` fit into the active segment or a new one, which is begun if needed.
    pub(super) fn room(&mut self, bytes: usize, need: Need) -> bool {
        let message = need == Need::Message;
        let share = if message { CONTROL_SHARE } else { CURSOR_SHARE };
        if self.fits(bytes, share) {
            let mut state = self.log.state();
            // What fits into the rest of a segment is no sign of room for another.
            if message && state.refusing.is_some() && (state.full_at == 0 || state.has_room_again()) {
                (state.refusing, state.full_at) = (None, 0);
            }
            return true;
        }
        let ready = self.log.state().has_spare();
        let mut file = if ready { compact::next_file(&self.log) } else { None };
        if file.is_none() {
            let gain = compact::gain_of_cursors(&self.log);
            let logged = gain != Gain::Nothing && self.log_cursors();
            if logged && self.fits(bytes, share) {
                // A write that failed has begun another segment.
                return self.admit(message);
            }
            file = compact::next_file(&self.log);
            if file.is_none() && !logged && self.turn_over(gain, bytes) {
                if self.fits(bytes, share) {
                    return self.admit(message);
                }
                file = compact::next_file(&self.log);
            }
        }
        file = file.or_else(|| self.drop_oldest());
        if file.is_none() {
            file = match need {
                Need::Message => None,
                // After a start there is no active segment that has kept room for them: they then get the last file of all.
                Need::Control | Need::Cursors if self.active.is_none() => self.last_file(bytes),
                // What a lane buries must be written, or it stands still and nothing ever comes free.
                Need::Control => self.small_file(bytes),
                Need::Cursors => None,
            };
        }
        if self.log.has_failed() {
            return false;
        }
        match file {
            Some(file) => {
                self.retire();
                match self.begin_somewhere(file) {
                    Ok(()) => self.admit(message),
                    Err(error) => self.fail(&error),
                }
            }
            None => {
                let mut state = self.log.state();
                // What is delivered makes room, and mends no disk.
                state.full_at = if state.disk_fails() { 0 } else { state.must_stay() };
                state.refusing = Some(match &state.disk_short {
                    Some(Short { error, is_full: true }) => format!(
                        "the disk is full before the quota is ({error}), and what is on it is not delivered yet: free space \
                         on it, or lower the quota"
                    ),
                    Some(Short { error, is_full: false }) => format!(
                        "no new file can be written on the disk ({error}): look after the disk; it is tried again with \
                         each message"
                    ),
                    None => "all of the quota holds messages that are not delivered yet".to_owned(),
                });
                false
            }
        }
    }

    /// Whether records of `bytes` fit into the active segment and leave this share of a full one, and room for the footer.
    fn fits(&self, bytes: usize, share: u64) -> bool {
        let Some(active) = &self.active else { return false };
        let size = self.log.limits().segment_bytes;
        let need = group_bytes(bytes) as u64 + size / FOOTER_SHARE + size.checked_div(share).unwrap_or(0);
        need <= active.segment.groups_end().saturating_sub(active.offset)
    }

    /// Brings the cursors into what is left of the active segment; whether it did.
    fn log_cursors(&mut self) -> bool {
        let batch = Batch::of_cursors(self.changed_cursors());
        let fits = self.fits(batch.bytes, 0);
        if fits {
            self.write(batch);
        }
        fits && !self.log.has_failed()
    }

    /// Where cursors do not fit: begins a segment, whose checkpoint holds them, when space comes free by them; whether it did.
    fn turn_over(&mut self, gain: Gain, bytes: usize) -> bool {
        let file = match gain {
            Gain::Nothing => None,
            Gain::Some => self.small_file(bytes),
            // A segment comes free at once that is the next reserve.
            Gain::Segment => compact::take_reserve(&self.log).or_else(|| self.last_file(bytes)),
        };
        let Some(file) = file else { return false };
        self.retire();
        if let Err(error) = self.begin_somewhere(file) {
            return self.fail(&error);
        }
        compact::refill_reserve(&self.log);
        true
    }

    /// A file where there seems to be none, for the checkpoint and control records of `bytes`; the reserve only where no small one can be had.
    fn last_file(&self, bytes: usize) -> Option<FreeFile> {
        let file = self.small_file(bytes).or_else(|| compact::take_reserve(&self.log));
        file.or_else(|| compact::take_delivered(&self.log))
    }

    fn small_file(&self, bytes: usize) -> Option<FreeFile> {
        let framed = self.checkpoint().0.iter().map(|record| framed_bytes(record.plaintext.len())).sum();
        compact::make_small(&self.log, (group_bytes(framed) + group_bytes(bytes)) as u64)
    }

    /// Makes room in a log that may lose its oldest: the GAP record is synced first.
    fn drop_oldest(&mut self) -> Option<FreeFile> {
        if !self.log.limits().drop_oldest {
            return None;
        }
        if self.active.is_none() {
            let file = self.last_file(0)?;
            self.begin(file).ok()?;
        }
        // One in a file that is not of full size gives room, and perhaps no file.
        loop {
            let gap = compact::oldest_as_gap(&self.log)?;
            let mut record = [outgoing(Kind::Gap, record::encode(&gap), 0)];
            if let Err(error) = self.write_group(&mut record, &[None], true) {
                self.give_up(&error);
                return None;
            }
            self.publish(Vec::new(), &[], true);
            tracing::warn!(log = %self.log.class, segment = gap.segment, "the log is full: its oldest segment is dropped");
            compact::drop_segment(&self.log, &gap);
            if let Some(file) = compact::next_file(&self.log) {
                return Some(file);
            }
        }
    }

    fn admit(&self, message: bool) -> bool {
        if message {
            let mut state = self.log.state();
            (state.refusing, state.full_at) = (None, 0);
        }
        true
    }
}
