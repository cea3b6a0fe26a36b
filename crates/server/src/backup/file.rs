//! Opening a file that may be anything.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use hadron_bolt::{Damage, Reader};
use hadron_keyspace::RestoreError;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

/// The data are whole sectors; what is more than that is their SHA-256.
const SECTOR: u64 = 512;
/// Bytes that are hashed at a time.
const PART_BYTES: usize = 1 << 20;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("{}: {error}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// There is no SHA-256 at its end.
    #[error(
        "snapshot missing hash but --skip-hash-check=false: {} has no SHA-256 at its end. Either it was cut off, or it is the file `db` of a \
         data directory; for the latter give --skip-hash-check", .0.display()
    )]
    NoHash(PathBuf),
    /// The SHA-256 at its end is another one.
    #[error("expected sha256 {expected}, got {found}: {} was changed since it was made", file.display())]
    OtherHash {
        /// The file.
        file: PathBuf,
        /// What its end says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// It does not have what was asked for.
    #[error("mvcc: required revision {what}: {}", file.display())]
    Absent {
        /// The file.
        file: PathBuf,
        /// Why, in etcd's words and then ours.
        what: String,
    },
    /// Its contents are not what they should be.
    #[error("{}: damaged, {what}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// What went wrong while a file was read: without the file's name.
#[derive(Debug)]
pub(super) enum ReadError {
    Damage(Damage),
    Contents(String),
    Absent(String),
    Restore(RestoreError),
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> ReadError {
        ReadError::Damage(damage)
    }
}

impl From<RestoreError> for ReadError {
    fn from(error: RestoreError) -> ReadError {
        ReadError::Restore(error)
    }
}

/// A file that was opened.
pub(crate) struct BackupFile {
    path: PathBuf,
    pub(super) reader: Reader<File>,
}

impl BackupFile {
    /// Opens a file, whose SHA-256 must be at its end if `checks`. Reads all of it then.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open(path: &Path, checks: bool) -> Result<BackupFile, FileError> {
        let failed = |error| FileError::Io { file: path.to_path_buf(), error };
        let mut file = File::open(path).map_err(failed)?;
        let mut length = file.metadata().map_err(failed)?.len();
        let has_hash = length % SECTOR == SHA256_OUTPUT_LEN as u64;
        if has_hash {
            length -= SHA256_OUTPUT_LEN as u64;
        }
        match (has_hash, checks) {
            (false, true) => return Err(FileError::NoHash(path.to_path_buf())),
            (true, true) => check(&mut file, path, length)?,
            (_, false) => {}
        }
        let reader = Reader::new(file, length).map_err(|damage| damaged(path, &damage))?;
        Ok(BackupFile { path: path.to_path_buf(), reader })
    }

    /// Shows what is in a bucket, in order; false if there is no such bucket.
    pub(super) fn visit(
        &mut self,
        bucket: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<(), ReadError>,
    ) -> Result<bool, ReadError> {
        self.reader.visit(bucket, visit)
    }

    /// An error with the file's name, or one that is not the file's fault.
    pub(super) fn blame(&self, error: ReadError) -> Result<FileError, RestoreError> {
        let what = match error {
            ReadError::Damage(Damage::Io(error)) => {
                return Ok(FileError::Io { file: self.path.clone(), error });
            }
            ReadError::Damage(damage) => damage.to_string(),
            ReadError::Absent(what) => return Ok(FileError::Absent { file: self.path.clone(), what }),
            ReadError::Contents(what) | ReadError::Restore(RestoreError::Damaged(what)) => what,
            ReadError::Restore(error) => return Err(error),
        };
        Ok(FileError::Damaged { file: self.path.clone(), what })
    }
}

fn damaged(path: &Path, damage: &Damage) -> FileError {
    FileError::Damaged { file: path.to_path_buf(), what: damage.to_string() }
}

/// Compares the first `length` bytes with the SHA-256 behind them.
fn check(file: &mut File, path: &Path, length: u64) -> Result<(), FileError> {
    let failed = |error| FileError::Io { file: path.to_path_buf(), error };
    let mut context = Context::new(&SHA256);
    let mut part = vec![0; PART_BYTES];
    let mut left = length;
    while left > 0 {
        let some = left.min(PART_BYTES as u64) as usize;
        file.read_exact(&mut part[..some]).map_err(failed)?;
        context.update(&part[..some]);
        left -= some as u64;
    }
    let mut expected = [0; SHA256_OUTPUT_LEN];
    file.read_exact(&mut expected).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let found = context.finish();
    if found.as_ref() == expected {
        return Ok(());
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Err(FileError::OtherHash {
        file: path.to_path_buf(),
        expected: hex(&expected),
        found: hex(found.as_ref()),
    })
}
