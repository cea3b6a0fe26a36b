//! Whether a node's directories are whole: the write-ahead log and the engine are two halves of one state, and neither
//! is worth anything beside an empty other one.
//!
//! A node without its log has forgotten its votes and the newest writes that it acknowledged, and would break both
//! promises if it started; a `--wal-dir` that points elsewhere than last time looks the same. A node without its
//! engine has forgotten everything that was cut from its log. Both are refused before anything is made anew.
//!
//! That both halves are in use is remembered by a file, [`MARK`]. It is written once, when the log has its first batch
//! durably and before anybody is told so: a crash before it leaves nothing that anybody relies on, and with it the log is
//! never without records. An engine with state beside a directory without the mark has lost it, and who knows what else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hadron_consensus::GroupId;
use hadron_keyspace::Keyspace;
use hadron_storage::disk::{Disk, LOCK_FILE, write_atomically};
use hadron_storage::engine::{clear_half_made, missing_piece};
use hadron_storage::wal::Recovered;
use tracing::info;

use super::error::RunError;
use super::pool_file::POOL_FILE;

/// There once log and engine are in use.
pub(super) const MARK: &str = "COMPLETE";
/// What means nothing in a directory: what a file system that was just made holds, and a lock.
const MEANINGLESS: [&str; 2] = ["lost+found", LOCK_FILE];
const MARK_TEXT: &[u8] =
    b"The write-ahead log and the engine are in use; a start without one of them is refused.\n";

/// The three places of a node's files.
pub(super) struct Places {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    /// Maybe not in the data directory.
    wal_dir: PathBuf,
    engine: PathBuf,
    /// The mark is there.
    marked: bool,
}

impl Places {
    /// Looks at the places before anything there is opened, since opening makes what is missing.
    ///
    /// # Errors
    /// The node has run before and lacks its log or its engine.
    pub(super) fn look(
        disk: &Arc<dyn Disk>,
        data_dir: PathBuf,
        wal_dir: PathBuf,
        engine: PathBuf,
    ) -> Result<Places, RunError> {
        let mark = data_dir.join(MARK);
        let marked = disk.exists(&mark).map_err(RunError::files("reading", &mark))?;
        let places = Places { disk: disk.clone(), data_dir, wal_dir, engine, marked };
        if marked && is_empty(&**disk, &places.wal_dir)? {
            return Err(places.log_missing());
        }
        if marked && is_empty(&**disk, &places.engine)? {
            let Places { data_dir, engine, .. } = places;
            return Err(RunError::EngineMissing { data_dir, engine });
        }
        Ok(places)
    }

    /// The node's log had something durably in an earlier run: it may have voted.
    pub(super) fn marked(&self) -> bool {
        self.marked
    }

    /// Refuses an engine that was in use and lacks one of its own files, before it is opened: opening would delete what
    /// it could not make sense of. One that was never in use and is not even made is removed, so that it can be.
    ///
    /// # Errors
    /// Names the file.
    pub(super) fn check_engine(&self) -> Result<(), RunError> {
        if !self.marked {
            return self.clear_half_made_engine();
        }
        match missing_piece(&self.engine).map_err(RunError::files("reading", &self.engine))? {
            Some(file) => Err(RunError::EnginePieceMissing { data_dir: self.data_dir.clone(), file }),
            None => Ok(()),
        }
    }

    /// Removes what a first start left of an engine that it did not get to make.
    fn clear_half_made_engine(&self) -> Result<(), RunError> {
        let cleared = clear_half_made(&self.engine).map_err(RunError::files("removing", &self.engine))?;
        if cleared {
            info!(engine = %self.engine.display(), "a first start was cut short while it made the engine, which is made again");
        }
        Ok(())
    }

    /// Refuses places in which there is something, where the directory says that nothing happened yet.
    ///
    /// # Errors
    /// The record of the pool is missing, or the log is another directory's.
    pub(super) fn check_unused(&self, has_identity: bool) -> Result<(), RunError> {
        let log = !is_empty(&*self.disk, &self.wal_dir)?;
        if !has_identity && log {
            let (data_dir, wal_dir) = (self.data_dir.clone(), self.wal_dir.clone());
            return Err(RunError::ForeignLog { data_dir, wal_dir });
        }
        if self.marked || log || !is_empty(&*self.disk, &self.engine)? {
            return Err(RunError::PoolMissing { file: self.data_dir.join(POOL_FILE) });
        }
        Ok(())
    }

    /// Refuses a log that was opened and holds nothing, where it should.
    pub(super) fn check_opened(
        &self,
        recovered: &Recovered,
        keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
    ) -> Result<(), RunError> {
        // The engine only ever gets what the log has durably.
        let engine_has_state = keyspaces.values().any(|keyspace| keyspace.applied().index > 0);
        if engine_has_state && !self.marked && !recovered.groups.is_empty() {
            return Err(RunError::MarkMissing { file: self.data_dir.join(MARK) });
        }
        let lacks_records = recovered.groups.is_empty() && (self.marked || engine_has_state);
        if lacks_records { Err(self.log_missing()) } else { Ok(()) }
    }

    /// The log has something durably: remembers that, durably, the first time. Cheap afterwards.
    pub(super) fn mark(&mut self) -> Result<(), RunError> {
        if self.marked {
            return Ok(());
        }
        for directory in [&self.wal_dir, &self.engine] {
            self.disk.sync_dir(directory).map_err(RunError::files("syncing", directory))?;
        }
        let failed = RunError::files("writing", self.data_dir.join(MARK));
        write_atomically(&*self.disk, &self.data_dir, MARK, MARK_TEXT).map_err(failed)?;
        self.marked = true;
        Ok(())
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
    Ok(names.iter().all(|name| MEANINGLESS.contains(&name.as_str())))
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

    fn look(data_dir: &Path) -> Result<Places, RunError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        Places::look(&disk, data_dir.to_path_buf(), data_dir.join("wal"), data_dir.join("engine"))
    }

    /// A directory with something in both halves.
    fn whole() -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for half in ["wal", "engine"] {
            fs::create_dir(directory.path().join(half)).unwrap();
            fs::write(directory.path().join(half).join("file"), "x").unwrap();
        }
        directory
    }

    #[test]
    fn a_first_start_that_was_cut_short_begins_again() {
        let directory = whole();
        fs::remove_dir_all(directory.path().join("wal")).unwrap();
        look(directory.path()).unwrap().check_opened(&Recovered::default(), &BTreeMap::new()).unwrap();
    }

    #[test]
    fn a_first_start_that_was_cut_short_in_the_making_of_the_engine_begins_again() {
        let directory = whole();
        let engine = directory.path().join("engine");
        fs::remove_file(engine.join("file")).unwrap();
        for name in ["lock", "0.jnl", "version"] {
            fs::write(engine.join(name), "").unwrap();
        }
        let mut places = look(directory.path()).unwrap();
        places.check_engine().unwrap();
        assert!(!engine.exists());
        fs::create_dir(&engine).unwrap();
        fs::write(engine.join("lock"), "").unwrap();
        places.mark().unwrap();
        assert!(places.check_engine().is_err());
        assert!(engine.join("lock").exists());
    }

    #[test]
    fn a_missing_and_an_empty_half_are_refused_by_name() {
        for lost in ["wal", "engine"] {
            let directory = whole();
            look(directory.path()).unwrap().mark().unwrap();
            look(directory.path()).unwrap().mark().unwrap();
            let path = directory.path().join(lost);
            let refusal = || look(directory.path()).err().unwrap().to_string();
            fs::remove_dir_all(&path).unwrap();
            let missing = refusal();
            assert!(missing.contains(&format!("{} is missing or empty", path.display())), "{missing}");
            fs::create_dir_all(path.join("lost+found")).unwrap();
            assert_eq!(refusal(), missing);
        }
    }

    #[test]
    fn a_log_without_records_is_refused_where_there_were_some() {
        let directory = whole();
        let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), GROUP.0, Options::default()).unwrap();
        let keyspaces = BTreeMap::from([(GROUP, keyspace.clone())]);
        let nothing = Recovered::default();
        let groups = BTreeMap::from([(GROUP, RecoveredGroup::default())]);
        let something = Recovered { groups, torn_tail: None };

        let mut places = look(directory.path()).unwrap();
        places.check_opened(&nothing, &keyspaces).unwrap();
        keyspace.apply(Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 }, Vec::new());
        let error = places.check_opened(&nothing, &keyspaces).unwrap_err().to_string();
        assert!(error.contains("write-ahead log"), "{error}");
        let error = places.check_opened(&something, &keyspaces).unwrap_err().to_string();
        assert!(error.contains("COMPLETE is missing"), "{error}");

        places.mark().unwrap();
        places.check_opened(&something, &keyspaces).unwrap();
        assert!(places.check_opened(&nothing, &BTreeMap::new()).is_err());
        places.check_opened(&something, &BTreeMap::new()).unwrap();
    }
}
