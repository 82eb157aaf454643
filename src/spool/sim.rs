//! A disk that loses power: for tests only.
//!
//! What was not synced survives in any subset of 512-byte sectors, each write on its own, so that old contents of a block
//! that was written twice can come back too. Creations, renames and removals survive in order, up to any point. The nth
//! operation can be made to fail, once or from then on, a read can panic, room can run out, and bits can be flipped.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{File, Storage};

const SECTOR: usize = 512;

/// A small deterministic generator (xorshift64*): tests must be repeatable by their seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % sides.max(1)
    }
}

/// The disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<World>>);

#[derive(Default, Clone)]
struct World {
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    files: Vec<Contents>,
    operations: u64,
    read_bytes: u64,
    fault: Option<Fault>,
    /// Reads until one fails.
    read_fault: Option<u64>,
    /// Whether that one panics instead.
    read_panics: bool,
    /// Bytes that all files together may have.
    room: Option<u64>,
    off: bool,
    /// The operation in which the power goes.
    off_at: Option<u64>,
}

#[derive(Clone, Copy)]
pub struct Fault {
    /// The first operation that fails, counted from now.
    pub at: u64,
    /// Whether those after it fail as well.
    pub lasting: bool,
    pub kind: io::ErrorKind,
}

#[derive(Clone)]
enum NameChange {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
}

#[derive(Default, Clone)]
struct Contents {
    durable: Vec<u8>,
    live: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

struct SimFile {
    disk: SimDisk,
    index: usize,
}

impl SimDisk {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// Cuts the power: this disk answers nothing any more; the result is what a new start finds.
    pub fn cut(&self, dice: &mut Dice) -> Self {
        let mut world = self.lock();
        world.off = true;
        let mut after = World { durable_names: world.durable_names.clone(), ..World::default() };
        let survive = dice.roll(world.pending_names.len() as u64 + 1);
        for change in world.pending_names.iter().take(usize::try_from(survive).unwrap()) {
            change.apply(&mut after.durable_names);
        }
        after.names = after.durable_names.clone();
        after.files = world.files.iter().map(|contents| contents.after_cut(dice)).collect();
        Self(Arc::new(Mutex::new(after)))
    }

    /// What a new start finds when only the process died: all that was written.
    pub fn after_kill(&self) -> Self {
        let mut world = self.lock();
        world.off = true;
        let mut after = World { names: world.names.clone(), ..World::default() };
        after.durable_names = after.names.clone();
        after.files = world.files.iter().map(|file| Contents { durable: file.live.clone(), ..file.clone() }).collect();
        for file in &mut after.files {
            file.pending.clear();
        }
        Self(Arc::new(Mutex::new(after)))
    }

    /// Makes an operation fail that is still to come.
    pub fn fail(&self, fault: Option<Fault>) {
        let mut world = self.lock();
        let now = world.operations;
        world.fault = fault.map(|fault| Fault { at: now + fault.at, ..fault });
    }

    /// The power goes in an operation that is still to come, counted from now: it does not happen, and nothing after it.
    pub fn power_off_at(&self, at: u64) {
        let mut world = self.lock();
        world.off_at = Some(world.operations + at);
    }

    /// Changing operations so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Makes the nth read from now fail, once.
    pub fn fail_read(&self, nth: u64) {
        self.lock().read_fault = Some(nth);
    }

    /// Makes the nth read from now panic, once.
    pub fn panic_read(&self, nth: u64) {
        let mut world = self.lock();
        (world.read_fault, world.read_panics) = (Some(nth), true);
    }

    /// Leaves room for so many bytes more than there are now.
    pub fn leave_room(&self, bytes: u64) {
        let mut world = self.lock();
        world.room = Some(world.used() + bytes);
    }

    /// Bytes that were read so far.
    pub fn read_bytes(&self) -> u64 {
        self.lock().read_bytes
    }

    /// Flips a bit of what is durable; false when there is no such byte.
    pub fn flip(&self, name: &str, byte: usize, bit: u8) -> bool {
        let mut world = self.lock();
        let Some(index) = world.names.get(name).copied() else { return false };
        let file = &mut world.files[index];
        let (Some(durable), true) = (file.durable.get_mut(byte), byte < file.live.len()) else { return false };
        *durable ^= 1 << bit;
        file.live[byte] ^= 1 << bit;
        true
    }

    /// The bytes of a file.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let world = self.lock();
        world.names.get(name).map(|index| world.files[*index].live.clone()).unwrap_or_default()
    }

    /// Names of all files.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    fn operation(&mut self) -> io::Result<()> {
        self.alive()?;
        self.operations += 1;
        self.off |= self.off_at == Some(self.operations);
        self.alive()?;
        match self.fault {
            Some(fault) if self.operations == fault.at || (fault.lasting && self.operations > fault.at) => {
                Err(io::Error::new(fault.kind, "simulated"))
            }
            _ => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|index| self.files[*index].live.len() as u64).sum()
    }

    /// Whether a file can have `length` bytes.
    fn fits(&self, index: usize, length: usize) -> io::Result<()> {
        let more = length.saturating_sub(self.files[index].live.len()) as u64;
        match self.room {
            Some(room) if self.used() + more > room => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn alive(&self) -> io::Result<()> {
        match self.off {
            true => Err(io::Error::other("the power is off")),
            false => Ok(()),
        }
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, index) => drop(names.insert(name.clone(), *index)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(index) = names.remove(from) {
                    names.insert(to.clone(), index);
                }
            }
        }
    }
}

impl Contents {
    fn after_cut(&self, dice: &mut Dice) -> Self {
        let mut bytes = self.durable.clone();
        if self.live.len() != bytes.len() && dice.roll(2) == 0 {
            bytes.resize(self.live.len(), 0);
        }
        for (offset, write) in &self.pending {
            for (index, sector) in write.chunks(SECTOR).enumerate() {
                let at = offset + index * SECTOR;
                if dice.roll(2) == 0 && at + sector.len() <= bytes.len() {
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Self { durable: bytes.clone(), live: bytes, pending: Vec::new() }
    }
}

impl Storage for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut world = self.lock();
        world.operation()?;
        if world.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.files.push(Contents::default());
        let index = world.files.len() - 1;
        world.change(NameChange::Add(name.to_owned(), index));
        Ok(Arc::new(SimFile { disk: self.clone(), index }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let world = self.lock();
        world.alive()?;
        let index = *world.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), index }))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let world = self.lock();
        world.alive()?;
        let prefix = format!("{folder}/");
        Ok(world.names.keys().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    fn make_folder(&self, _folder: &str) -> io::Result<()> {
        self.lock().alive()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.lock();
        world.operation()?;
        world.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.lock();
        world.operation()?;
        if !world.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, _folder: &str) -> io::Result<()> {
        let mut world = self.lock();
        world.operation()?;
        world.durable_names = world.names.clone();
        world.pending_names.clear();
        Ok(())
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut world = self.disk.lock();
        world.alive()?;
        world.read_bytes += buffer.len() as u64;
        world.read_fault = world.read_fault.and_then(|nth| nth.checked_sub(1));
        if world.read_fault == Some(0) {
            world.read_fault = None;
            assert!(!std::mem::take(&mut world.read_panics), "simulated");
            return Err(io::Error::other("simulated"));
        }
        let from = usize::try_from(offset).unwrap();
        let live = &world.files[self.index].live;
        let bytes = live.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut world = self.disk.lock();
        let outcome = world.operation();
        world.alive()?;
        let from = usize::try_from(offset).unwrap();
        world.fits(self.index, from + bytes.len())?;
        let file = &mut world.files[self.index];
        if file.live.len() < from + bytes.len() {
            file.live.resize(from + bytes.len(), 0);
        }
        // A write that fails may have reached the page cache all the same.
        file.live[from..from + bytes.len()].copy_from_slice(bytes);
        file.pending.push((from, bytes.to_vec()));
        outcome
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.disk.lock();
        let outcome = world.operation();
        // What was not synced when the power went may be on the disk all the same: `cut` decides.
        if world.off {
            return outcome;
        }
        let file = &mut world.files[self.index];
        let pending = std::mem::take(&mut file.pending);
        // After a failed sync the pages count as clean: what was not durable never will be, and a second sync says Ok.
        outcome?;
        file.durable.resize(file.live.len(), 0);
        for (offset, write) in pending {
            let end = (offset + write.len()).min(file.durable.len());
            if offset < end {
                file.durable[offset..end].copy_from_slice(&write[..end - offset]);
            }
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let world = self.disk.lock();
        world.alive()?;
        Ok(world.files[self.index].live.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut world = self.disk.lock();
        world.operation()?;
        world.fits(self.index, usize::try_from(length).unwrap())?;
        world.files[self.index].live.resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.set_length(length)
    }
}
