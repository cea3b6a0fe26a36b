//! The checksums of fjall's manifests, which fjall writes and does not compare.
//!
//! Each keyspace of an engine has a file `current`, which names the manifest that counts, `v` and a number, with a checksum
//! of all of it; the manifest says which tables there are. A flipped bit there can make batches of the journal look as if
//! they were in tables already, so that they are missing without an error. Tables have checksums of their own, in each
//! block, which are compared at every read.
//!
//! `current`, little-endian: number (8), XXH3-128 of the manifest (16), kind of checksum (1), 0 for this one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use super::EngineError;

const KEYSPACES: &str = "keyspaces";
const CURRENT: &str = "current";
const NUMBER_BYTES: usize = 8;
const CURRENT_BYTES: usize = 25;
const XXH3: u8 = 0;

/// Compares every manifest of the engine in `directory` with its checksum. What is missing is not looked at.
///
/// # Errors
/// [`EngineError::Damaged`] names the first manifest that is not what was written, or its `current`.
pub(super) fn check(directory: &Path) -> Result<(), EngineError> {
    for keyspace in keyspaces(&directory.join(KEYSPACES))? {
        let path = keyspace.join(CURRENT);
        let Some(current) = if_there(fs::read(&path), &path)? else { continue };
        let damaged =
            || EngineError::Damaged(format!("{}: not the manifest that was written", path.display()));
        if current.len() != CURRENT_BYTES || current[CURRENT_BYTES - 1] != XXH3 {
            return Err(damaged());
        }
        let number = little_endian(&current[..NUMBER_BYTES]);
        let checksum = little_endian(&current[NUMBER_BYTES..CURRENT_BYTES - 1]);
        let manifest = keyspace.join(format!("v{number}"));
        let bytes = if_there(fs::read(&manifest), &manifest)?.ok_or_else(damaged)?;
        if xxh3_128(&bytes) != checksum {
            return Err(damaged());
        }
    }
    Ok(())
}

fn keyspaces(directory: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let Some(entries) = if_there(fs::read_dir(directory), directory)? else { return Ok(Vec::new()) };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(|error| failed(directory, &error))).collect()
}

/// `None` for what does not exist.
fn if_there<T>(outcome: io::Result<T>, path: &Path) -> Result<Option<T>, EngineError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

fn failed(path: &Path, error: &io::Error) -> EngineError {
    EngineError::Io(format!("{}: {error}", path.display()))
}

fn little_endian(bytes: &[u8]) -> u128 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u128::from(*byte))
}
