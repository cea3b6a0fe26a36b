//! Which of an engine's own files are gone, looked at before it is opened.
//!
//! fjall takes a keyspace without its file `current` for one whose creation was cut short: it deletes all of it and makes
//! a new one, and so the loss of 25 bytes becomes the loss of everything. An engine that was in use is therefore looked
//! at first. Tables are not: fjall itself refuses to open without one of them, and deletes nothing.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::Space;

/// Names the version of a keyspace that counts: a number (8 bytes, little-endian), then its checksum.
const CURRENT: &str = "current";

/// The first file that is missing from the engine in `directory`, which was opened at least once and in which all spaces
/// were made. A pattern where several would do.
///
/// # Errors
/// The directory cannot be read.
pub fn missing_piece(directory: &Path) -> io::Result<Option<PathBuf>> {
    for name in ["version", "lock"] {
        if !directory.join(name).try_exists()? {
            return Ok(Some(directory.join(name)));
        }
    }
    let is_journal = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "jnl");
    if !entries(directory)?.iter().any(is_journal) {
        return Ok(Some(directory.join("*.jnl")));
    }
    missing_keyspace_piece(&directory.join("keyspaces"))
}

fn missing_keyspace_piece(keyspaces: &Path) -> io::Result<Option<PathBuf>> {
    if !keyspaces.try_exists()? {
        return Ok(Some(keyspaces.to_path_buf()));
    }
    let mut found = 0;
    for keyspace in entries(keyspaces)?.into_iter().filter(|path| path.is_dir()) {
        found += 1;
        let current = keyspace.join(CURRENT);
        if !current.try_exists()? {
            return Ok(Some(current));
        }
        let mut version = [0; 8];
        File::open(&current)?.read_exact(&mut version)?;
        let version = keyspace.join(format!("v{}", u64::from_le_bytes(version)));
        if !version.try_exists()? {
            return Ok(Some(version));
        }
    }
    // One for each space, and one in which their names are.
    let is_short = found < 1 + Space::ALL.len();
    Ok(is_short.then(|| keyspaces.join("*")))
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::{Engine as _, FjallEngine, FjallOptions};

    #[test]
    fn each_file_that_is_gone_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        FjallEngine::open(path, &FjallOptions::default()).unwrap().persist().unwrap();
        assert_eq!(missing_piece(path).unwrap(), None);
        let away = tempfile::tempdir().unwrap();
        let away = away.path().join("piece");
        let mut pieces = vec![path.join("version"), path.join("lock"), path.join("keyspaces")];
        for keyspace in entries(&path.join("keyspaces")).unwrap() {
            // Older versions may still be there, and are not needed.
            let version = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix('v')?.parse::<u64>().ok();
            pieces.push(keyspace.join(CURRENT));
            pieces.extend(entries(&keyspace).unwrap().into_iter().max_by_key(version));
        }
        for piece in pieces {
            fs::rename(&piece, &away).unwrap();
            assert_eq!(missing_piece(path).unwrap(), Some(piece.clone()));
            fs::rename(&away, &piece).unwrap();
        }
        fs::rename(path.join("0.jnl"), &away).unwrap();
        assert_eq!(missing_piece(path).unwrap(), Some(path.join("*.jnl")));
        fs::rename(&away, path.join("0.jnl")).unwrap();
        fs::rename(path.join("keyspaces/4"), &away).unwrap();
        assert_eq!(missing_piece(path).unwrap(), Some(path.join("keyspaces/*")));
    }
}
