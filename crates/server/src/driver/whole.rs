//! Whether a node's directories are whole: the write-ahead log and the engine are two halves of one state, and neither
//! is worth anything beside an empty other one.
//!
//! A node without its log has forgotten its votes and the newest writes that it acknowledged, and would break both
//! promises if it started; a `--wal-dir` that points elsewhere than last time looks the same. A node without its
//! engine has forgotten everything that was cut from its log. Both are refused before anything is made anew.
//!
//! That both halves exist is remembered by a file, [`MARK`], written when they do and before the node says anything. A
//! crash before it leaves nothing that anybody relies on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hadron_consensus::GroupId;
use hadron_keyspace::Keyspace;
use hadron_storage::disk::{Disk, write_atomically};
use hadron_storage::wal::Recovered;

use super::error::RunError;

/// There once both log and engine were made.
const MARK: &str = "COMPLETE";
/// What a file system that was just made holds.
const NEW_FILE_SYSTEM: &str = "lost+found";
const MARK_TEXT: &[u8] =
    b"The write-ahead log and the engine were made; a start without one of them is refused.\n";

/// The three places of a node's files.
pub(super) struct Places {
    /// The data directory.
    pub(super) data_dir: PathBuf,
    /// The write-ahead log, maybe elsewhere.
    pub(super) wal_dir: PathBuf,
    /// The engine.
    pub(super) engine: PathBuf,
}

impl Places {
    /// Refuses a node that has run before and lacks one of its halves. To be called before either is opened, since
    /// opening makes what is not there.
    pub(super) fn check(&self, disk: &dyn Disk) -> Result<(), RunError> {
        let mark = self.data_dir.join(MARK);
        if !disk.exists(&mark).map_err(RunError::files("reading", &mark))? {
            return Ok(());
        }
        if is_empty(disk, &self.wal_dir)? {
            return Err(self.log_missing());
        }
        if is_empty(disk, &self.engine)? {
            let (data_dir, engine) = (self.data_dir.clone(), self.engine.clone());
            return Err(RunError::EngineMissing { data_dir, engine });
        }
        Ok(())
    }

    /// Refuses a log that holds nothing beside an engine that holds something: the engine only ever gets what the log
    /// has durably.
    pub(super) fn check_opened(
        &self,
        recovered: &Recovered,
        keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
    ) -> Result<(), RunError> {
        let engine_has_state = keyspaces.values().any(|keyspace| keyspace.applied().index > 0);
        if recovered.groups.is_empty() && engine_has_state { Err(self.log_missing()) } else { Ok(()) }
    }

    /// Remembers, durably, that both halves are there.
    pub(super) fn mark(&self, disk: &dyn Disk) -> Result<(), RunError> {
        let mark = self.data_dir.join(MARK);
        if disk.exists(&mark).map_err(RunError::files("reading", &mark))? {
            return Ok(());
        }
        for directory in [&self.wal_dir, &self.engine, &self.data_dir] {
            disk.sync_dir(directory).map_err(RunError::files("syncing", directory))?;
        }
        write_atomically(disk, &self.data_dir, MARK, MARK_TEXT).map_err(RunError::files("writing", mark))
    }

    fn log_missing(&self) -> RunError {
        RunError::LogMissing { data_dir: self.data_dir.clone(), wal_dir: self.wal_dir.clone() }
    }
}

/// Whether a directory is missing or has nothing in it.
fn is_empty(disk: &dyn Disk, directory: &Path) -> Result<bool, RunError> {
    let failed = || RunError::files("reading", directory);
    if !disk.exists(directory).map_err(failed())? {
        return Ok(true);
    }
    let names = disk.list(directory).map_err(failed())?;
    Ok(names.iter().all(|name| name == NEW_FILE_SYSTEM))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use hadron_keyspace::{Applied, Options};
    use hadron_storage::disk::RealDisk;
    use hadron_storage::engine::ModelEngine;
    use hadron_storage::wal::RecoveredGroup;
    use tempfile::TempDir;

    use super::*;

    const GROUP: GroupId = GroupId(1);

    /// Places with something in them.
    fn whole() -> (TempDir, Places) {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().to_path_buf();
        let places = Places { wal_dir: data_dir.join("wal"), engine: data_dir.join("engine"), data_dir };
        for made in [&places.wal_dir, &places.engine] {
            fs::create_dir(made).unwrap();
            fs::write(made.join("file"), "x").unwrap();
        }
        (directory, places)
    }

    fn refusal(places: &Places) -> String {
        places.check(&RealDisk).unwrap_err().to_string()
    }

    #[test]
    fn a_first_start_that_was_cut_short_begins_again() {
        let (_directory, places) = whole();
        fs::remove_dir_all(&places.wal_dir).unwrap();
        places.check(&RealDisk).unwrap();
    }

    #[test]
    fn a_missing_and_an_empty_half_are_refused_by_name() {
        for lost in ["wal", "engine"] {
            let (_directory, places) = whole();
            places.mark(&RealDisk).unwrap();
            places.mark(&RealDisk).unwrap();
            places.check(&RealDisk).unwrap();
            let path = places.data_dir.join(lost);
            fs::remove_dir_all(&path).unwrap();
            let missing = refusal(&places);
            assert!(missing.contains(&format!("{} is missing or empty", path.display())), "{missing}");
            fs::create_dir_all(path.join("lost+found")).unwrap();
            assert_eq!(refusal(&places), missing);
        }
    }

    #[test]
    fn a_log_without_records_beside_an_engine_with_state_is_refused() {
        let (_directory, places) = whole();
        let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), GROUP.0, Options::default()).unwrap();
        let keyspaces = BTreeMap::from([(GROUP, keyspace.clone())]);
        let nothing = Recovered::default();
        places.check_opened(&nothing, &keyspaces).unwrap();
        keyspace.apply(Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 }, Vec::new());
        let error = places.check_opened(&nothing, &keyspaces).unwrap_err().to_string();
        assert!(error.contains("write-ahead log"), "{error}");
        let groups = BTreeMap::from([(GROUP, RecoveredGroup::default())]);
        places.check_opened(&Recovered { groups, torn_tail: None }, &keyspaces).unwrap();
    }
}
