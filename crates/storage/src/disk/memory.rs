//! A disk in memory for simulations: it keeps what is durable apart from what is merely written, and is as unkind in a
//! crash as a real one may be.
//!
//! Everything is deterministic: what a crash keeps follows from its seed. A handle from before a crash is dead and
//! answers with errors, like the process that held it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DirectoryLock, Disk, DiskFile, LOCK_FILE};

/// Bytes that are written all or none: what a torn write is torn into.
const SECTOR: usize = 512;

/// A [`Disk`] in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

/// What an operation is, for [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creating a file.
    Create,
    /// Opening a file.
    Open,
    /// Writing to a file or setting its size.
    Write,
    /// Reading from a file.
    Read,
    /// Making a file's contents durable.
    Sync,
    /// Renaming or removing a file.
    Rename,
    /// Making a directory durable.
    SyncDirectory,
}

/// A failure to come.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which operations count; `None` for all but reading and opening.
    pub operation: Option<Operation>,
    /// How many of them still succeed.
    pub after: u64,
    /// The error.
    pub kind: io::ErrorKind,
    /// Whether all later ones fail as well.
    pub lasting: bool,
}

#[derive(Default)]
struct State {
    /// Increased by each crash; handles of an earlier life are dead.
    life: u64,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// The names as processes see them.
    names: BTreeMap<PathBuf, u64>,
    /// The names as a crash would leave them, if it lost all of `renames`.
    durable_names: BTreeMap<PathBuf, u64>,
    /// Changes of names since the last sync of their directory, oldest first.
    renames: Vec<Rename>,
    /// Directories. They survive crashes: their creation is not modelled.
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Bytes that all files together may have.
    capacity: Option<u64>,
    fault: Option<Fault>,
    syncs: u64,
}

#[derive(Default)]
struct Inode {
    contents: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync, oldest first.
    unsynced: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    Bytes(u64, Vec<u8>),
    Size(u64),
}

/// One atomic change of names in one directory: each name gets an inode or loses its one.
struct Rename {
    directory: PathBuf,
    changes: Vec<(PathBuf, Option<u64>)>,
}

impl MemoryDisk {
    /// An empty disk without limits or faults.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// The machine stops and comes back: what was not synced is kept, lost, torn or reordered as `seed` decides; locks
    /// are gone, handles are dead, faults are forgotten.
    pub fn crash(&self, seed: u64) {
        let mut state = self.state.lock();
        let mut random = Random(seed);
        state.life += 1;
        state.locks.clear();
        state.fault = None;
        state.crash_names(&mut random);
        for inode in state.inodes.values_mut() {
            inode.crash(&mut random);
        }
    }

    /// The process stops and comes back, the machine does not: nothing is lost but locks and handles.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.life += 1;
        state.locks.clear();
    }

    /// Limits the bytes in all files together; writes beyond fail with [`io::ErrorKind::StorageFull`].
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Makes operations fail; replaces an earlier fault.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state.lock().fault = fault;
    }

    /// Flips a bit of a file at rest.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode_of(path)?;
        let inode = state.inodes.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?;
        for bytes in [&mut inode.contents, &mut inode.durable] {
            if let Some(byte) = bytes.get_mut(offset as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    /// An independent copy of the disk as it is, durable and not.
    pub fn fork(&self) -> MemoryDisk {
        let state = self.state.lock();
        let copy = State {
            life: state.life,
            inodes: state.inodes.iter().map(|(id, inode)| (*id, inode.copy())).collect(),
            next_inode: state.next_inode,
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            renames: state.renames.iter().map(Rename::copy).collect(),
            directories: state.directories.clone(),
            locks: BTreeSet::new(),
            capacity: state.capacity,
            fault: None,
            syncs: state.syncs,
        };
        MemoryDisk { state: Arc::new(Mutex::new(copy)) }
    }

    /// How many file syncs succeeded so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }
}

impl State {
    fn inode_of(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn check_fault(&mut self, operation: Operation) -> io::Result<()> {
        let Some(fault) = &mut self.fault else { return Ok(()) };
        let counts = match fault.operation {
            Some(chosen) => chosen == operation,
            None => !matches!(operation, Operation::Read | Operation::Open),
        };
        if !counts {
            return Ok(());
        }
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        let kind = fault.kind;
        if !fault.lasting {
            self.fault = None;
        }
        Err(io::Error::new(kind, "made to fail"))
    }

    fn check_capacity(&self, growth: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        if self.used_bytes() + growth > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        let used: BTreeSet<u64> = self.names.values().copied().collect();
        used.iter().filter_map(|id| self.inodes.get(id)).map(|inode| inode.contents.len() as u64).sum()
    }

    fn change_names(&mut self, directory: &Path, changes: Vec<(PathBuf, Option<u64>)>) {
        apply_names(&mut self.names, &changes);
        self.renames.push(Rename { directory: directory.to_path_buf(), changes });
    }

    fn sync_names(&mut self, directory: &Path) {
        let (synced, rest) =
            std::mem::take(&mut self.renames).into_iter().partition(|rename| rename.directory == directory);
        self.renames = rest;
        for rename in synced {
            apply_names(&mut self.durable_names, &rename.changes);
        }
    }

    /// Keeps the first few changes of names: a file system's journal has an order.
    fn crash_names(&mut self, random: &mut Random) {
        let keep = random.below(self.renames.len() as u64 + 1) as usize;
        for rename in std::mem::take(&mut self.renames).into_iter().take(keep) {
            apply_names(&mut self.durable_names, &rename.changes);
        }
        self.names = self.durable_names.clone();
        let kept: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|id, _| kept.contains(id));
    }
}

impl Rename {
    fn copy(&self) -> Rename {
        Rename { directory: self.directory.clone(), changes: self.changes.clone() }
    }
}

fn apply_names(names: &mut BTreeMap<PathBuf, u64>, changes: &[(PathBuf, Option<u64>)]) {
    for (path, inode) in changes {
        match inode {
            Some(inode) => names.insert(path.clone(), *inode),
            None => names.remove(path),
        };
    }
}

impl Inode {
    fn copy(&self) -> Inode {
        Inode {
            contents: self.contents.clone(),
            durable: self.durable.clone(),
            unsynced: self.unsynced.clone(),
        }
    }

    fn write(&mut self, write: Write) {
        write.apply(&mut self.contents);
        self.unsynced.push(write);
    }

    fn sync(&mut self) {
        for write in self.unsynced.drain(..) {
            write.apply(&mut self.durable);
        }
    }

    fn crash(&mut self, random: &mut Random) {
        let unsynced = std::mem::take(&mut self.unsynced);
        match random.below(4) {
            0 => {}
            1 => unsynced.iter().for_each(|write| write.apply(&mut self.durable)),
            2 => {
                // In order, the last one torn.
                let keep = random.below(unsynced.len() as u64 + 1) as usize;
                unsynced[..keep].iter().for_each(|write| write.apply(&mut self.durable));
                if let Some(torn) = unsynced.get(keep) {
                    torn.apply_torn(&mut self.durable, random);
                }
            }
            _ => {
                // Each sector of each write by itself, as a page cache may write them back.
                unsynced.iter().for_each(|write| write.apply_torn(&mut self.durable, random));
            }
        }
        self.contents = self.durable.clone();
    }
}

impl Write {
    fn apply(&self, contents: &mut Vec<u8>) {
        match self {
            Write::Bytes(offset, bytes) => {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                if contents.len() < end {
                    contents.resize(end, 0);
                }
                contents[start..end].copy_from_slice(bytes);
            }
            Write::Size(size) => contents.resize(*size as usize, 0),
        }
    }

    /// Applies only some of the sectors that the write touches.
    fn apply_torn(&self, contents: &mut Vec<u8>, random: &mut Random) {
        let Write::Bytes(offset, bytes) = self else { return self.apply(contents) };
        let mut start = 0;
        while start < bytes.len() {
            let place = *offset as usize + start;
            let length = (SECTOR - place % SECTOR).min(bytes.len() - start);
            if random.below(2) == 0 {
                Write::Bytes(place as u64, bytes[start..start + length].to_vec()).apply(contents);
            }
            start += length;
        }
    }
}

impl Disk for MemoryDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_fault(Operation::Create)?;
        let directory = parent(path);
        if !state.directories.contains(&directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.change_names(&directory, vec![(path.to_path_buf(), Some(inode))]);
        Ok(Arc::new(MemoryFile { disk: self.clone(), life: state.life, inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_fault(Operation::Open)?;
        let inode = state.inode_of(path)?;
        Ok(Arc::new(MemoryFile { disk: self.clone(), life: state.life, inode }))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.state.lock();
        Ok(state.names.contains_key(path) || state.directories.contains(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_fault(Operation::Rename)?;
        let inode = state.inode_of(from)?;
        let changes = vec![(from.to_path_buf(), None), (to.to_path_buf(), Some(inode))];
        state.change_names(&parent(to), changes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_fault(Operation::Rename)?;
        state.inode_of(path)?;
        state.change_names(&parent(path), vec![(path.to_path_buf(), None)]);
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        if !state.directories.contains(directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let children = state.names.keys().chain(&state.directories).filter(|path| parent(path) == directory);
        let names: BTreeSet<String> =
            children.filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into()).collect();
        Ok(names.into_iter().collect())
    }

    fn create_dir(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        for ancestor in directory.ancestors() {
            state.directories.insert(ancestor.to_path_buf());
        }
        Ok(())
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_fault(Operation::SyncDirectory)?;
        state.sync_names(directory);
        Ok(())
    }

    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        if !self.exists(&directory.join(LOCK_FILE))? {
            self.create(&directory.join(LOCK_FILE))?;
        }
        let mut state = self.state.lock();
        if !state.locks.insert(directory.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let lock = MemoryLock { disk: self.clone(), life: state.life, directory: directory.to_path_buf() };
        Ok(Box::new(lock))
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used_bytes())))
    }
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}

struct MemoryFile {
    disk: MemoryDisk,
    life: u64,
    inode: u64,
}

impl MemoryFile {
    fn with<T>(
        &self,
        operation: Operation,
        act: impl FnOnce(&mut State) -> io::Result<T>,
        failed: impl FnOnce(&mut Inode),
    ) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        if state.life != self.life {
            return Err(io::Error::other("the process that opened this file has crashed"));
        }
        if let Err(error) = state.check_fault(operation) {
            if let Some(inode) = state.inodes.get_mut(&self.inode) {
                failed(inode);
            }
            return Err(error);
        }
        act(&mut state)
    }

    fn write(&self, write: Write, new_size: impl FnOnce(u64) -> u64) -> io::Result<()> {
        let torn = match &write {
            Write::Bytes(offset, bytes) => Some(Write::Bytes(*offset, bytes[..bytes.len() / 2].to_vec())),
            Write::Size(_) => None,
        };
        let act = |state: &mut State| {
            let size = inode(state, self.inode)?.contents.len() as u64;
            state.check_capacity(new_size(size).saturating_sub(size))?;
            inode(state, self.inode)?.write(write);
            Ok(())
        };
        // A write that fails may have written a part.
        self.with(Operation::Write, act, |inode| {
            if let Some(torn) = torn {
                inode.write(torn);
            }
        })
    }
}

fn inode(state: &mut State, id: u64) -> io::Result<&mut Inode> {
    state.inodes.get_mut(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl DiskFile for MemoryFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        self.write(Write::Bytes(offset, bytes.to_vec()), |size| size.max(end))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let act = |state: &mut State| {
            let contents = &inode(state, self.inode)?.contents;
            let start = contents.len().min(offset as usize);
            let count = buffer.len().min(contents.len() - start);
            buffer[..count].copy_from_slice(&contents[start..start + count]);
            Ok(count)
        };
        self.with(Operation::Read, act, |_| {})
    }

    fn size(&self) -> io::Result<u64> {
        let mut state = self.disk.state.lock();
        Ok(inode(&mut state, self.inode)?.contents.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.write(Write::Size(size), |_| size)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        if self.size()? < size { self.set_size(size) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let act = |state: &mut State| {
            inode(state, self.inode)?.sync();
            state.syncs += 1;
            Ok(())
        };
        // As in Linux: after a failed fsync the pages count as clean, so that the next fsync succeeds and they are
        // lost in the next crash although they can be read until then.
        self.with(Operation::Sync, act, |inode| inode.unsynced.clear())
    }
}

struct MemoryLock {
    disk: MemoryDisk,
    life: u64,
    directory: PathBuf,
}

impl DirectoryLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.life == self.life {
            state.locks.remove(&self.directory);
        }
    }
}

/// SplitMix64: small, seeded, good enough to choose crash images.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::read_all;

    fn disk() -> (MemoryDisk, PathBuf) {
        let disk = MemoryDisk::new();
        disk.create_dir(Path::new("/d")).unwrap();
        (disk, PathBuf::from("/d"))
    }

    #[test]
    fn synced_bytes_and_names_survive_every_crash() {
        for seed in 0..50 {
            let (disk, directory) = disk();
            let file = disk.create(&directory.join("a")).unwrap();
            file.write_at(0, b"kept").unwrap();
            file.sync().unwrap();
            disk.sync_dir(&directory).unwrap();
            file.write_at(4, &[b'x'; 2000]).unwrap();
            disk.create(&directory.join("b")).unwrap();
            disk.crash(seed);
            assert!(file.write_at(0, b"dead").is_err());
            let contents = read_all(&*disk.open(&directory.join("a")).unwrap()).unwrap();
            assert_eq!(&contents[..4], b"kept");
        }
    }

    #[test]
    fn crashes_lose_keep_and_tear() {
        let mut lengths = BTreeSet::new();
        let mut names = BTreeSet::new();
        for seed in 0..100 {
            let (disk, directory) = disk();
            let file = disk.create(&directory.join("a")).unwrap();
            disk.sync_dir(&directory).unwrap();
            file.write_at(0, &[b'x'; 2000]).unwrap();
            disk.rename(&directory.join("a"), &directory.join("b")).unwrap();
            disk.crash(seed);
            let name = disk.list(&directory).unwrap().pop().unwrap();
            let contents = read_all(&*disk.open(&directory.join(&name)).unwrap()).unwrap();
            lengths.insert(contents.iter().filter(|byte| **byte == b'x').count());
            names.insert(name);
        }
        assert!(lengths.contains(&0));
        assert!(lengths.contains(&2000));
        assert!(lengths.len() > 4, "{lengths:?}");
        assert_eq!(names.len(), 2);
    }

    #[test]
    fn a_failed_sync_loses_what_it_should_have_kept() {
        let (disk, directory) = disk();
        let file = disk.create(&directory.join("a")).unwrap();
        disk.sync_dir(&directory).unwrap();
        file.write_at(0, b"lost").unwrap();
        let fault =
            Fault { operation: Some(Operation::Sync), after: 0, kind: io::ErrorKind::Other, lasting: false };
        disk.set_fault(Some(fault));
        assert!(file.sync().is_err());
        file.sync().unwrap();
        assert_eq!(file.size().unwrap(), 4);
        disk.crash(1);
        assert_eq!(disk.open(&directory.join("a")).unwrap().size().unwrap(), 0);
    }

    #[test]
    fn full_flipped_and_locked() {
        let (disk, directory) = disk();
        disk.set_capacity(Some(10));
        let file = disk.create(&directory.join("a")).unwrap();
        file.write_at(0, b"0123456789").unwrap();
        assert_eq!(file.write_at(10, b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(0, b"9").unwrap();
        assert_eq!(disk.free_bytes(&directory).unwrap(), 0);
        disk.flip_bit(&directory.join("a"), 0, 1).unwrap();
        assert_eq!(read_all(&*file).unwrap()[0], b'9' ^ 2);
        let lock = disk.lock(&directory).unwrap();
        assert!(disk.lock(&directory).is_err());
        drop(lock);
        let copy = disk.fork();
        disk.remove(&directory.join("a")).unwrap();
        assert!(copy.exists(&directory.join("a")).unwrap());
    }
}
