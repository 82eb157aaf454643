//! Reading a segment: frame by frame in order, opening only what is wanted, and going on behind damage.
//!
//! A [`Walker`] never reads beyond the limit that it is given (what was synced), trusts no length before it is checked, and
//! tells damage as such: it never skips it in silence.

use std::io;
use std::sync::Arc;

use super::frame::{BLOCK, FRAME_HEADER, FrameHeader, GROUP_HEADER, GroupHeader, open_frame};
use super::segment::{FIRST_GROUP, Segment};

/// Bytes that are read ahead at once.
const WINDOW: usize = 64 << 10;

/// One step of a walk.
pub enum Step {
    /// A frame that was wanted, authentic.
    Frame(Found),
    /// A frame that was wanted and does not authenticate.
    Damaged {
        /// The record's number, as far as the clear header can be believed.
        ordinal: u32,
    },
    /// Blocks in which no group begins; the next group, if there is one below the limit, is open already.
    Skipped {
        /// How many bytes.
        bytes: u64,
    },
    /// The limit is reached.
    End,
}

/// An authentic frame.
pub struct Found {
    /// What it says in the clear.
    pub header: FrameHeader,
    /// Its contents.
    pub plaintext: Vec<u8>,
}

/// A place in a segment, moving forward.
pub struct Walker {
    segment: Arc<Segment>,
    /// Where the next group begins.
    next_group: u64,
    /// Its expected number.
    expected: u32,
    open: Option<OpenGroup>,
    window: Vec<u8>,
    window_at: u64,
    /// The number after the last record that was seen.
    ordinal: u32,
    /// See [`Walker::unsynced`].
    unsynced: u32,
}

struct OpenGroup {
    header: GroupHeader,
    frame: u32,
    offset: u64,
    end: u64,
}

impl Walker {
    /// At the first group.
    pub fn new(segment: Arc<Segment>) -> Self {
        Self::at(segment, FIRST_GROUP, 0)
    }

    /// At the group that begins at `offset` and has the number `group`.
    pub fn at(segment: Arc<Segment>, offset: u64, group: u32) -> Self {
        Self {
            segment,
            next_group: offset,
            expected: group,
            open: None,
            window: Vec::new(),
            window_at: 0,
            ordinal: 0,
            unsynced: 0,
        }
    }

    /// The segment.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Where the next group begins and its number, when all frames before it were taken.
    pub fn group_boundary(&self) -> (u64, u32) {
        (self.next_group, self.expected)
    }

    /// How many groups directly before the last one that was opened were not synced when it was written.
    pub fn unsynced(&self) -> u32 {
        self.unsynced
    }

    /// The next frame for which `wanted` says yes, of groups that end at or before `limit`.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn next(&mut self, limit: u64, wanted: &dyn Fn(&FrameHeader) -> bool) -> io::Result<Step> {
        loop {
            let Some(open) = &self.open else {
                match self.open_group(limit)? {
                    None => continue,
                    Some(step) => return Ok(step),
                }
            };
            if open.frame == u32::from(open.header.frames) {
                self.open = None;
                continue;
            }
            if let Some(step) = self.frame(limit, wanted)? {
                return Ok(step);
            }
        }
    }

    /// Opens the next group; a step when there is none, or when something was skipped to find it.
    fn open_group(&mut self, limit: u64) -> io::Result<Option<Step>> {
        let from = self.next_group;
        if from + BLOCK as u64 > limit {
            return Ok(Some(Step::End));
        }
        let mut at = from;
        while at + BLOCK as u64 <= limit {
            if let Some(header) = self.group_at(at, limit)? {
                self.next_group = at + header.padded();
                self.expected = header.group + 1;
                self.unsynced = u32::from(header.unsynced);
                let (offset, end) = (at + GROUP_HEADER as u64, at + u64::from(header.bytes));
                self.open = Some(OpenGroup { header, frame: 0, offset, end });
                return Ok((at > from).then_some(Step::Skipped { bytes: at - from }));
            }
            at += BLOCK as u64;
        }
        self.next_group = limit;
        Ok(Some(Step::Skipped { bytes: limit - from }))
    }

    fn group_at(&mut self, at: u64, limit: u64) -> io::Result<Option<GroupHeader>> {
        let incarnation = self.segment.seal.incarnation;
        let bytes = self.read(at, GROUP_HEADER, limit)?;
        let header = GroupHeader::read(bytes, &incarnation);
        Ok(header.filter(|header| header.group >= self.expected && at + header.padded() <= limit))
    }

    /// Takes one frame of the open group; `None` when it is not wanted. After a disk's error nothing has moved.
    fn frame(&mut self, limit: u64, wanted: &dyn Fn(&FrameHeader) -> bool) -> io::Result<Option<Step>> {
        let Some(open) = &self.open else { return Ok(None) };
        let (group, frame, offset, end) = (open.header, open.frame, open.offset, open.end);
        let clear: [u8; FRAME_HEADER] = match self.read(offset, FRAME_HEADER, limit)?.first_chunk() {
            Some(chunk) => *chunk,
            None => return Ok(Some(self.skip_group())),
        };
        let header = FrameHeader::read(clear).filter(|header| offset + header.framed() as u64 <= end);
        let Some(header) = header else { return Ok(Some(self.skip_group())) };
        if !wanted(&header) {
            self.pass(offset, &header);
            return Ok(None);
        }
        let mut sealed = self.read(offset, header.framed(), limit)?.get(FRAME_HEADER..).unwrap_or_default().to_vec();
        self.pass(offset, &header);
        let opened = open_frame(&self.segment.seal, group, frame, clear, &mut sealed).map(|plain| plain.len());
        Ok(Some(match opened {
            Ok(length) => {
                sealed.truncate(length);
                Step::Frame(Found { header, plaintext: sealed })
            }
            Err(_) => Step::Damaged { ordinal: header.ordinal },
        }))
    }

    /// Behind the frame that begins at `offset`.
    fn pass(&mut self, offset: u64, header: &FrameHeader) {
        if let Some(open) = &mut self.open {
            open.frame += 1;
            open.offset = offset + header.framed() as u64;
        }
        self.ordinal = header.ordinal.saturating_add(1);
    }

    /// A frame header that can't be true: the rest of the group can't be found.
    fn skip_group(&mut self) -> Step {
        self.open = None;
        Step::Damaged { ordinal: self.ordinal }
    }

    /// Bytes of the file through the window; fewer than asked for only behind `limit`.
    fn read(&mut self, at: u64, length: usize, limit: u64) -> io::Result<&[u8]> {
        let inside = at >= self.window_at && at + length as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let room = usize::try_from(limit.saturating_sub(at)).unwrap_or(usize::MAX);
            let size = length.max(WINDOW).min(room);
            self.window.resize(size, 0);
            self.window_at = at;
            if let Err(error) = self.segment.file.read_at(&mut self.window, at) {
                self.window.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(at - self.window_at).unwrap_or(usize::MAX);
        Ok(self.window.get(from..(from + length).min(self.window.len())).unwrap_or_default())
    }
}

/// Finds one record by its number: from the group at `hint` where it was written, else by walking the whole segment.
///
/// # Errors
/// As the disk gives them; `InvalidData` when the record is not there or does not authenticate.
pub fn record_at(segment: &Arc<Segment>, ordinal: u32, hint: Option<u32>, limit: u64) -> io::Result<Found> {
    if let Some(offset) = hint.map(u64::from).filter(|offset| *offset >= FIRST_GROUP && offset % BLOCK as u64 == 0)
        && let Some(found) = search(Walker::at(Arc::clone(segment), offset, 0), ordinal, limit)?
    {
        return Ok(found);
    }
    let found = search(Walker::new(Arc::clone(segment)), ordinal, limit)?;
    found.ok_or_else(|| {
        let text = format!("record {ordinal} of segment {} is not readable", segment.identity.order);
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn search(mut walker: Walker, ordinal: u32, limit: u64) -> io::Result<Option<Found>> {
    loop {
        match walker.next(limit, &|header| header.ordinal >= ordinal)? {
            Step::Frame(found) => return Ok((found.header.ordinal == ordinal).then_some(found)),
            Step::Damaged { ordinal: damaged } if damaged >= ordinal => return Ok(None),
            Step::Damaged { .. } | Step::Skipped { .. } => {}
            Step::End => return Ok(None),
        }
    }
}
