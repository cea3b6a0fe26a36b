//! The seam to the file system: everything Hadron itself stores goes through [`Disk`], so that a simulation can stand
//! in for it. (The engine brings its own files and has a seam of its own, [`crate::engine::Engine`].)
//!
//! The rules are those of a POSIX file system at its least helpful:
//! - what was written is durable only after [`DiskFile::sync`], and until then may be kept, lost or torn in any order;
//! - that a file exists, or has its new name, is durable only after [`Disk::sync_dir`] of its directory;
//! - after a failed sync nothing is known about what was written since the last good one. Never retry.

mod memory;
mod real;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use memory::{Fault, MemoryDisk, Operation};
pub use real::RealDisk;

/// A file system.
pub trait Disk: Send + Sync {
    /// Creates an empty file for reading and writing; an error if something has that name.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Whether a file or directory has that name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Gives a file another name, atomically replacing the file that may have that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names of the files and directories in a directory, sorted.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory and those above it, as far as they do not exist. Their names are durable on return.
    fn create_dir(&self, directory: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;

    /// Locks a directory against every other process, until the lock is dropped. [`io::ErrorKind::WouldBlock`] when
    /// it is locked already. Leaves a file [`LOCK_FILE`] behind.
    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>>;

    /// Bytes that may still be written to the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`, extending the file as needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Bytes in the file.
    fn size(&self) -> io::Result<u64>;

    /// Cuts the file or extends it with zeros, which may take up no room yet.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Extends the file to at least `size` bytes, with zeros, and makes sure that there is room for them. Quick, but each
    /// block costs more when it is first written than one that [`DiskFile::write_at`] has filled before.
    fn allocate(&self, size: u64) -> io::Result<()>;

    /// Makes the contents (and size) durable: one fdatasync.
    fn sync(&self) -> io::Result<()>;
}

/// Holds a directory; see [`Disk::lock`].
pub trait DirectoryLock: Send + Sync {}

/// The name of the file that locks a directory.
pub const LOCK_FILE: &str = "LOCK";

/// Whether the disk has no room left, or this user may not have more of it.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Reads a whole file into memory.
pub fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.size()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Writes a small file so that after a crash either the old contents or the new are there, in full.
/// Durable when it returns.
pub fn write_atomically(disk: &dyn Disk, directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    if disk.exists(&temporary)? {
        disk.remove(&temporary)?;
    }
    let file = disk.create(&temporary)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    disk.rename(&temporary, &directory.join(name))?;
    disk.sync_dir(directory)
}

/// Makes the name of `directory` durable in the one above it. Who may not read that has been given a directory that was there before.
pub(crate) fn sync_parent(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    match disk.sync_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        outcome => outcome,
    }
}

/// Creates or extends the file at `path` to `bytes` bytes that really take up space, durably: room that can be
/// had back by removing the file when the disk is full.
pub fn write_ballast(disk: &dyn Disk, path: &Path, bytes: u64) -> io::Result<()> {
    let file = if disk.exists(path)? { disk.open(path)? } else { disk.create(path)? };
    file.allocate(bytes)?;
    file.sync()?;
    match path.parent() {
        Some(directory) => disk.sync_dir(directory),
        None => Ok(()),
    }
}

/// Writes zeros over the first `size` bytes. Writing them, unlike extending a file or reserving space, leaves nothing
/// for a later fdatasync to do to the file's extents. Synced piece by piece, so that the syncs of others never wait
/// behind all of it.
pub(crate) fn zero_fill(file: &dyn DiskFile, size: u64) -> io::Result<()> {
    const CHUNK: u64 = 2 << 20;
    let zeros = vec![0; CHUNK.min(size) as usize];
    let mut offset = 0;
    while offset < size {
        let length = CHUNK.min(size - offset) as usize;
        file.write_at(offset, &zeros[..length])?;
        file.sync()?;
        offset += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A node whose data directory is in one that it may not read did not start.
    #[test]
    fn a_directory_above_that_may_not_be_read_is_no_failure() {
        let disk = MemoryDisk::new();
        let sync_with = |kind| {
            let operation = Some(Operation::SyncDirectory);
            disk.set_fault(Some(Fault { operation, after: 0, kind, lasting: false }));
            sync_parent(&disk, Path::new("/above/data"))
        };
        sync_with(io::ErrorKind::PermissionDenied).unwrap();
        assert_eq!(sync_with(io::ErrorKind::Other).unwrap_err().kind(), io::ErrorKind::Other);
    }
}
