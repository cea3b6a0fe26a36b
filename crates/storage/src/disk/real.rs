//! The operating system's file system.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{DirectoryLock, Disk, DiskFile, LOCK_FILE, zero_fill};

/// The [`Disk`] of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(file))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, directory: &Path) -> io::Result<()> {
        let missing = directory.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists());
        let missing: Vec<&Path> = missing.collect();
        // What is stored is nobody else's to read: values, and what passwords and tokens are made of. As etcd's.
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // Each of them is a name in the one above it.
        missing.iter().rev().filter_map(|part| part.parent()).try_for_each(|above| self.sync_dir(above))
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        // The parent of a relative path of one part is empty, which names nothing.
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        File::open(directory)?.sync_all()
    }

    fn lock(&self, directory: &Path) -> io::Result<Box<dyn DirectoryLock>> {
        let path = directory.join(LOCK_FILE);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock(file))),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let status = rustix::fs::statvfs(path)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }
}

impl DiskFile for File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        let present = self.metadata()?.len();
        if present >= size {
            return Ok(());
        }
        match rustix::fs::fallocate(self, FallocateFlags::empty(), present, size - present) {
            Ok(()) => Ok(()),
            // Not every file system can; then the room is taken the slow way.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => zero_fill(self, size),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The lock is the kernel's and goes with the open file, so it cannot be left behind by a process that was killed.
struct RealLock(#[expect(dead_code, reason = "kept open for as long as the lock is held")] File);

impl DirectoryLock for RealLock {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::{read_all, write_atomically, write_ballast};

    #[test]
    fn files_and_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let file = RealDisk.create(&path("a")).unwrap();
        assert!(RealDisk.create(&path("a")).is_err());
        file.write_at(3, b"def").unwrap();
        file.write_at(0, b"abc").unwrap();
        file.sync().unwrap();
        let mut buffer = [0; 10];
        assert_eq!(DiskFile::read_at(&*file, 2, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"cdef");
        file.set_size(8).unwrap();
        assert_eq!(read_all(&*file).unwrap(), b"abcdef\0\0");
        RealDisk.rename(&path("a"), &path("b")).unwrap();
        RealDisk.create(&path("0")).unwrap();
        RealDisk.sync_dir(directory.path()).unwrap();
        assert_eq!(RealDisk.list(directory.path()).unwrap(), ["0", "b"]);
        RealDisk.remove(&path("0")).unwrap();
        assert!(!RealDisk.exists(&path("0")).unwrap());
        assert!(RealDisk.open(&path("a")).is_err());
        assert!(RealDisk.free_bytes(directory.path()).unwrap() > 0);
    }

    #[test]
    fn a_locked_directory_is_refused_until_the_lock_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let lock = RealDisk.lock(directory.path()).unwrap();
        let error = RealDisk.lock(directory.path()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        RealDisk.lock(directory.path()).unwrap();
    }

    #[test]
    fn small_files_and_ballast() {
        let directory = tempfile::tempdir().unwrap();
        write_atomically(&RealDisk, directory.path(), "x", b"one").unwrap();
        write_atomically(&RealDisk, directory.path(), "x", b"two").unwrap();
        assert_eq!(fs::read(directory.path().join("x")).unwrap(), b"two");
        let ballast = directory.path().join("ballast");
        write_ballast(&RealDisk, &ballast, 3 << 20).unwrap();
        write_ballast(&RealDisk, &ballast, 3 << 20).unwrap();
        assert_eq!(fs::metadata(&ballast).unwrap().len(), 3 << 20);
    }
}
