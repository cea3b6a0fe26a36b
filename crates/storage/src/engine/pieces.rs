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
/// Names the format of all of it.
const VERSION: &str = "version";
const VERSION_BYTES: u64 = 4;
/// The journal of an engine that was just made.
const FIRST_JOURNAL: &str = "0.jnl";

/// The first file that is missing from the engine in `directory`, which was opened at least once and in which all spaces
/// were made. A pattern where several would do.
///
/// # Errors
/// The directory cannot be read.
pub fn missing_piece(directory: &Path) -> io::Result<Option<PathBuf>> {
    for name in [VERSION, "lock"] {
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

/// Removes an engine whose making was cut short, and says whether there was one: fjall refuses to make another in its place. Only
/// for a directory that nothing was ever stored in.
///
/// fjall makes `lock`, an empty `keyspaces` and a journal, then `version`, whose contents and name are durable before anything is put
/// into `keyspaces`.
///
/// # Errors
/// The directory cannot be read or removed.
pub fn clear_half_made(directory: &Path) -> io::Result<bool> {
    if !is_half_made(directory)? {
        return Ok(false);
    }
    fs::remove_dir_all(directory)?;
    Ok(true)
}

fn is_half_made(directory: &Path) -> io::Result<bool> {
    if !directory.try_exists()? {
        return Ok(false);
    }
    let entries = entries(directory)?;
    let mut is_whole = false;
    for path in &entries {
        match path.file_name().and_then(|name| name.to_str()) {
            Some("lock" | FIRST_JOURNAL) => {}
            Some("keyspaces") if self::entries(path)?.is_empty() => {}
            Some(VERSION) => is_whole = fs::metadata(path)?.len() >= VERSION_BYTES,
            _ => return Ok(false),
        }
    }
    Ok(!is_whole && !entries.is_empty())
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

    /// A kill between two steps of the making of an engine, or a power loss, left what no later start could open.
    #[test]
    fn an_engine_whose_making_was_cut_short_is_made_again() {
        let steps: [&[(&str, &[u8])]; 5] = [
            &[("lock", b"")],
            &[("lock", b""), ("0.jnl", b"")],
            &[("lock", b""), ("0.jnl", &[0; 4096])],
            &[("lock", b""), ("0.jnl", b""), ("version", b"")],
            &[("lock", b""), ("0.jnl", b""), ("version", b"FJL")],
        ];
        let mut refused = 0;
        for (step, keyspaces) in steps.into_iter().flat_map(|step| [(step, false), (step, true)]) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("engine");
            let make = || {
                fs::create_dir(&path).unwrap();
                step.iter().for_each(|(name, bytes)| fs::write(path.join(name), bytes).unwrap());
                if keyspaces {
                    fs::create_dir(path.join("keyspaces")).unwrap();
                }
            };
            make();
            refused += usize::from(FjallEngine::open(&path, &FjallOptions::default()).is_err());
            fs::remove_dir_all(&path).unwrap();
            make();
            assert!(clear_half_made(&path).unwrap(), "{step:?}");
            FjallEngine::open(&path, &FjallOptions::default()).unwrap().persist().unwrap();
            assert!(!clear_half_made(&path).unwrap());
        }
        assert!(refused >= 8, "fjall refused {refused}: are they not cleared for nothing?");
    }

    #[test]
    fn an_engine_that_holds_anything_is_not_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(!clear_half_made(&path.join("none")).unwrap());
        assert!(!clear_half_made(path).unwrap());
        FjallEngine::open(path, &FjallOptions::default()).unwrap().persist().unwrap();
        fs::remove_file(path.join("version")).unwrap();
        assert!(!clear_half_made(path).unwrap());
        fs::remove_dir_all(path.join("keyspaces")).unwrap();
        fs::write(path.join("1.jnl"), "").unwrap();
        assert!(!clear_half_made(path).unwrap());
        assert!(path.join("0.jnl").exists());
    }

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
