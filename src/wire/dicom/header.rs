//! The facts about an instance that routing and the index need, taken from its data set while it passes by (PS3.5 section 7).
//!
//! [`Scanner`] is pushed the bytes as they come, in pieces of any size, and changes none. It keeps a dozen bytes and the few
//! values that are wanted, never believes a length, never recurses, and stops before the pixels, after [`SCAN_BYTES_MAX`] bytes
//! or at the first thing that can't be. What it can't read is a flag, never a reason to refuse.

use std::fmt;

use super::deflated::{Deflated, NotDeflated};
use super::element::{
    self as element, Encoding, HEADER_BYTES_MAX, Header, ITEM, ITEM_END, SEQUENCE_END, Step, Tag, UNDEFINED,
};
use super::values::{Uid, from_latin1, trim_end};

/// How far it looks, in bytes: pixels begin before that in all but a few objects.
pub const SCAN_BYTES_MAX: u64 = 1 << 20;
/// Longest value that is kept, in bytes.
pub const VALUE_BYTES_MAX: usize = 256;
/// Bytes of a deflated data set that are inflated at a time.
const INFLATED_BYTES: usize = 4 << 10;
/// Sequences and items of undefined length in each other.
pub const DEPTH_MAX: u32 = 128;

const CHARACTER_SET: Tag = Tag(0x0008_0005);
const SOP_CLASS: Tag = Tag(0x0008_0016);
const SOP_INSTANCE: Tag = Tag(0x0008_0018);
const ACCESSION_NUMBER: Tag = Tag(0x0008_0050);
const MODALITY: Tag = Tag(0x0008_0060);
const PATIENT_ID: Tag = Tag(0x0010_0020);
const STUDY: Tag = Tag(0x0020_000d);
const SERIES: Tag = Tag(0x0020_000e);
const WANTED: [Tag; 8] =
    [CHARACTER_SET, SOP_CLASS, SOP_INSTANCE, ACCESSION_NUMBER, MODALITY, PATIENT_ID, STUDY, SERIES];
/// Pixels, in all their forms, begin here.
const PIXELS: Tag = Tag(0x7fe0_0000);

/// What a data set says about itself. Empty values are `None`, and so are those over [`VALUE_BYTES_MAX`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// (0008,0016)
    pub sop_class: Option<Uid>,
    /// (0008,0018)
    pub sop_instance: Option<Uid>,
    /// (0020,000D)
    pub study: Option<Uid>,
    /// (0020,000E)
    pub series: Option<Uid>,
    /// (0008,0060)
    pub modality: Option<String>,
    /// (0008,0005), as it was sent: may have several values.
    pub character_set: Option<String>,
    /// (0008,0050), in the data set's own character set. Patient data: never shown.
    pub accession_number: Option<Vec<u8>>,
    /// (0010,0020), in the data set's own character set. Patient data: never shown.
    pub patient_id: Option<Vec<u8>>,
    /// The header was read as far as these values can be, and says which instance it is: what is `None` is not there. Neither
    /// this nor `unreadable`: the rest lies beyond [`SCAN_BYTES_MAX`].
    pub complete: bool,
    /// The data set can't be inflated, or is none, or does not say which instance it is: it is to be kept and flagged.
    pub unreadable: bool,
}

/// Without patient id and accession number.
impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts")
            .field("sop_class", &self.sop_class)
            .field("sop_instance", &self.sop_instance)
            .field("study", &self.study)
            .field("series", &self.series)
            .field("modality", &self.modality)
            .field("character_set", &self.character_set)
            .field("complete", &self.complete)
            .field("unreadable", &self.unreadable)
            .finish_non_exhaustive()
    }
}

/// Reads a data set's header while it arrives.
pub struct Scanner {
    state: State,
    /// Of the data set, when it is inflated.
    encoding: Encoding,
    deflated: Option<Deflated>,
    /// Bytes from the beginning to the end of the present element.
    position: u64,
    /// Open sequences and items of undefined length.
    depth: u32,
    /// The depth at which an element of unknown representation and undefined length began: inside it is Implicit VR Little
    /// Endian, whatever the transfer syntax (PS3.5 section 6.2.2).
    implicit_from: Option<u32>,
    held: Held,
    facts: Facts,
}

/// What comes next.
#[derive(Clone, Copy)]
enum State {
    /// An element's header; some of it may be in hand.
    Header,
    /// So many bytes that are of no interest.
    Skip(u32),
    /// The rest of a value that is wanted: so many bytes.
    Value(Tag, usize),
    /// Nothing: the rest of the data set is not looked at.
    Done,
}

/// Bytes in hand: the beginning of a header, or of a value.
struct Held {
    bytes: [u8; VALUE_BYTES_MAX],
    length: usize,
}

impl Held {
    /// Takes bytes from `input` until `wanted` are in hand; whether they are.
    fn fill(&mut self, wanted: usize, input: &mut &[u8]) -> bool {
        let missing = wanted.saturating_sub(self.length).min(input.len());
        let (taken, rest) = input.split_at(missing);
        if let Some(place) = self.bytes.get_mut(self.length..self.length + missing) {
            place.copy_from_slice(taken);
            self.length += missing;
        }
        *input = rest;
        self.length >= wanted
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Without what is in hand, which may be patient data.
impl fmt::Debug for Scanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scanner").field("position", &self.position).field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Scanner {
    /// A scanner at the beginning of a data set of this transfer syntax.
    pub fn new(transfer_syntax: &Uid) -> Self {
        let encoding = Encoding::of(transfer_syntax);
        Self {
            state: State::Header,
            // What is deflated is explicit, little endian (PS3.5 annex A.5).
            encoding: encoding.unwrap_or(Encoding::Explicit),
            deflated: encoding.is_none().then(Deflated::default),
            position: 0,
            depth: 0,
            implicit_from: None,
            held: Held { bytes: [0; VALUE_BYTES_MAX], length: 0 },
            facts: Facts::default(),
        }
    }

    /// Looks at the next bytes of the data set. When [`Scanner::is_done`], this costs nothing.
    pub fn push(&mut self, bytes: &[u8]) {
        match self.deflated.take() {
            None => self.look(bytes),
            Some(mut deflated) => {
                self.inflate(&mut deflated, bytes);
                self.deflated = Some(deflated);
            }
        }
    }

    /// A few bytes may inflate to any number: no more is inflated than is looked at.
    fn inflate(&mut self, deflated: &mut Deflated, bytes: &[u8]) {
        let (mut input, mut plain) = (bytes, [0; INFLATED_BYTES]);
        while !self.is_done() {
            match deflated.next(&mut input, &mut plain) {
                Ok(0) => return,
                Ok(count) => self.look(plain.get(..count).unwrap_or_default()),
                Err(NotDeflated) => self.fail(),
            }
        }
    }

    fn look(&mut self, bytes: &[u8]) {
        let mut input = bytes;
        while !input.is_empty() {
            match self.state {
                State::Done => return,
                State::Header => self.header(&mut input),
                State::Skip(count) => self.skip(count, &mut input),
                State::Value(tag, length) => {
                    if self.held.fill(length, &mut input) {
                        self.keep(tag);
                        self.next();
                    }
                }
            }
        }
    }

    /// Whether it has seen all that it wants to see.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// What is known so far.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The data set has ended: what is known of it.
    pub fn finish(mut self) -> Facts {
        match self.state {
            State::Done => {}
            State::Header if self.held.length == 0 && self.depth == 0 => self.end(),
            _ => self.fail(),
        }
        self.facts
    }

    fn header(&mut self, input: &mut &[u8]) {
        let mut wanted = 8;
        loop {
            if !self.held.fill(wanted, input) {
                return;
            }
            if self.position == 0 {
                self.recognise();
            }
            let encoding = if self.implicit_from.is_some() { Encoding::Implicit } else { self.encoding };
            match element::read(encoding, self.held.bytes()) {
                Step::Header(header) => return self.element(&header),
                Step::Short(more) if more <= HEADER_BYTES_MAX => wanted = more,
                Step::Short(_) | Step::Nonsense => return self.fail(),
            }
        }
    }

    /// Some write explicit where implicit was agreed, and the other way round: the first element shows it. Two letters where its
    /// length would be are none: no first element is that long.
    fn recognise(&mut self) {
        let is_explicit = self.held.bytes().get(4..6).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
        self.encoding = match self.encoding {
            Encoding::Implicit if is_explicit => Encoding::Explicit,
            Encoding::Explicit if !is_explicit => Encoding::Implicit,
            agreed => agreed,
        };
    }

    fn element(&mut self, header: &Header) {
        self.held.length = 0;
        self.position += header.bytes as u64;
        if self.depth == 0 && !header.tag.is_delimiter() {
            // Top-level elements are in ascending order: beyond the last wanted one nothing is to be expected. What has not shown
            // everything by then is looked at further, for those who write in disorder.
            self.facts.complete = header.tag > SERIES && self.facts.has_identity() || self.facts.complete;
            if header.tag >= PIXELS || (self.facts.complete && self.facts.has_all()) {
                return self.end();
            }
        }
        let opens = header.length == UNDEFINED;
        match header.tag {
            ITEM_END | SEQUENCE_END if self.depth > 0 => self.close(),
            ITEM if opens && self.depth > 0 => self.open(header),
            // At the top there is nothing to close; some writers leave empty delimiters there.
            ITEM | ITEM_END | SEQUENCE_END if self.depth == 0 && header.length != 0 => self.fail(),
            _ if opens => self.open(header),
            _ => self.value(header),
        }
    }

    fn value(&mut self, header: &Header) {
        self.position += u64::from(header.length);
        match usize::try_from(header.length).unwrap_or(usize::MAX) {
            0 => self.next(),
            length @ 1..=VALUE_BYTES_MAX if self.depth == 0 && WANTED.contains(&header.tag) => {
                self.state = State::Value(header.tag, length);
            }
            // What comes after it is too far away.
            _ if self.position >= SCAN_BYTES_MAX => self.give_up(),
            _ => self.state = State::Skip(header.length),
        }
    }

    fn open(&mut self, header: &Header) {
        let is_sequence = match header.vr {
            None => true,
            // Encapsulated pixels of an icon are pieces in items.
            Some(vr) => [*b"SQ", *b"UN", *b"OB", *b"OW"].contains(&vr),
        };
        if !is_sequence || self.depth >= DEPTH_MAX {
            return self.fail();
        }
        self.depth += 1;
        if header.vr == Some(*b"UN") && self.implicit_from.is_none() {
            self.implicit_from = Some(self.depth);
        }
        self.next();
    }

    fn close(&mut self) {
        if self.implicit_from == Some(self.depth) {
            self.implicit_from = None;
        }
        self.depth = self.depth.saturating_sub(1);
        self.next();
    }

    fn skip(&mut self, count: u32, input: &mut &[u8]) {
        let here = usize::try_from(count).unwrap_or(usize::MAX).min(input.len());
        *input = input.get(here..).unwrap_or_default();
        match count - u32::try_from(here).unwrap_or(count) {
            0 => self.next(),
            rest => self.state = State::Skip(rest),
        }
    }

    /// The next element, unless it has looked far enough.
    fn next(&mut self) {
        self.held.length = 0;
        self.state = State::Header;
        if self.position >= SCAN_BYTES_MAX {
            self.give_up();
        }
    }

    /// It has looked far enough. What has not said by now which instance it is, is most likely no data set.
    fn give_up(&mut self) {
        self.state = State::Done;
        self.facts.unreadable = !self.facts.has_identity();
    }

    /// The header has ended as it should. One without its own SOP class and instance is none that can be read.
    fn end(&mut self) {
        self.state = State::Done;
        self.facts.complete = self.facts.has_identity();
        self.facts.unreadable = !self.facts.complete;
    }

    /// Here is something that can't be. After all wanted values it does no harm.
    fn fail(&mut self) {
        self.state = State::Done;
        self.facts.unreadable = !self.facts.complete;
    }

    /// The first value of each counts.
    fn keep(&mut self, tag: Tag) {
        let value = trim_end(self.held.bytes());
        let Some(start) = value.iter().position(|byte| *byte != b' ') else { return };
        let value = value.get(start..).unwrap_or_default();
        let facts = &mut self.facts;
        match tag {
            SOP_CLASS => first(&mut facts.sop_class, Uid::read(value)),
            SOP_INSTANCE => first(&mut facts.sop_instance, Uid::read(value)),
            STUDY => first(&mut facts.study, Uid::read(value)),
            SERIES => first(&mut facts.series, Uid::read(value)),
            MODALITY => first(&mut facts.modality, Some(from_latin1(value))),
            CHARACTER_SET => first(&mut facts.character_set, Some(from_latin1(value))),
            ACCESSION_NUMBER => first(&mut facts.accession_number, Some(value.to_vec())),
            PATIENT_ID => first(&mut facts.patient_id, Some(value.to_vec())),
            _ => {}
        }
    }
}

impl Facts {
    fn has_identity(&self) -> bool {
        self.sop_class.is_some() && self.sop_instance.is_some()
    }

    fn has_all(&self) -> bool {
        let uids = [&self.sop_class, &self.sop_instance, &self.study, &self.series];
        let texts = [&self.modality, &self.character_set].iter().all(|text| text.is_some());
        let secrets = [&self.accession_number, &self.patient_id].iter().all(|value| value.is_some());
        uids.iter().all(|uid| uid.is_some()) && texts && secrets
    }
}

fn first<T>(place: &mut Option<T>, value: Option<T>) {
    if place.is_none() {
        *place = value;
    }
}
