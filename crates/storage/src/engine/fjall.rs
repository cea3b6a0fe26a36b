//! The production engine: fjall, an LSM tree, with one fjall keyspace per [`Space`].
//!
//! What the rest relies on, and where it comes from:
//! - *A crash keeps a prefix of the batches.* All spaces share one journal, a batch is one journal record with a
//!   checksum, and fjall fsyncs the journal before it turns any memtable into a table.
//! - *Nothing is durable before [`Engine::persist`]*, or at least nothing may be assumed to be: the journal is written
//!   through a buffer and fsynced only there (and before tables are written).
//! - *A failed write or fsync poisons* the engine: fjall refuses everything after it.
//!
//! Left out: compression (it costs CPU on every flush and compaction, and entries that compress well are the client's to
//! compress) and key-value separation.
//!
//! Known limit: should two memtables of one space fill up while a third is being written, the second can become a table before the
//! journal is fsynced up to its end; a power loss in that moment leaves tables that are ahead of the journal, which are
//! refused as damaged and cost a rebuild from the other members.
//! fjall opens successfully with its journal cut short, so whoever opens an engine must compare the applied
//! index in it with the floor that the write-ahead log recorded.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use fjall::compaction::Leveled;
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use fjall::{
    AbstractTree as _, CompressionType, Database, Error, Keyspace, KeyspaceCreateOptions, LsmError,
    OwnedWriteBatch, PersistMode, Readable,
};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::journal::cut_torn_end;
use super::{Batch, Change, Engine, EngineError, Read, Reclaimed, Space, Visit, check_sizes};
use crate::TornTail;
use crate::disk::{Disk as _, RealDisk};
use crate::priority::give_way;

/// Makes the names in a directory durable, and in those below: a process that was killed may have made files and never got to that.
fn sync_directories(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    File::open(directory)?.sync_all()
}

/// How much memory, disk and how many threads an engine may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FjallOptions {
    /// Bytes of blocks cached in memory, for all spaces together. Values that are read again are cached above the engine.
    pub cache_bytes: u64,
    /// Size in bytes at which the memtable of a space is written to a table. Up to five per space can wait for that at once, and those that were
    /// written stay until the next one is full; while a view is open, all of them stay ([`Engine::snapshot`]).
    pub memtable_bytes: u64,
    /// Size in bytes of tables that are merged, and a quarter of that of the first level, which is merged as a whole. An engine keeps
    /// what it was made with.
    pub table_bytes: u64,
    /// Bytes of journals beyond which memtables are flushed early; bounds the time that a restart takes. At least
    /// 64 MiB.
    pub journal_bytes: u64,
    /// Background threads for flushes and compactions; with one, a long compaction holds up flushes.
    pub threads: usize,
    /// Tables that are kept open; at least 10. Those that are being written or merged come on top.
    pub open_tables: usize,
}

impl Default for FjallOptions {
    fn default() -> FjallOptions {
        FjallOptions {
            cache_bytes: 16 << 20,
            memtable_bytes: 16 << 20,
            table_bytes: 64 << 20,
            journal_bytes: 64 << 20,
            threads: 2,
            open_tables: 900,
        }
    }
}

/// fjall holds a write up while a space has 30 tables beside each other in its first level or four memtables that are being written, and does
/// not notice meanwhile that it has given up. Writes are held up before that, where it is noticed and nobody waits for them.
const TABLES_MAX: usize = 28;
const MEMTABLES_MAX: usize = 3;
/// The newest format of fjall's that this version of it reads.
const FORMAT: u8 = 3;
const CONGESTION_POLL: Duration = Duration::from_millis(10);

/// An [`Engine`] in a directory, which it locks.
pub struct FjallEngine {
    directory: PathBuf,
    database: Database,
    pub(super) spaces: Spaces,
    torn_tail: Option<TornTail>,
    /// Held while a batch is written and while a view is begun: fjall makes visible what is being written when it puts a table in its place
    /// meanwhile.
    writing: Mutex<()>,
    /// Of each space, since it was last rewritten; there may be some in the journal when an engine is opened.
    pub(super) deletions: [AtomicU64; Space::ALL.len()],
    /// Held while spaces are rewritten.
    pub(super) reclaiming: Mutex<()>,
}

#[derive(Clone)]
pub(super) struct Spaces([Keyspace; Space::ALL.len()]);

impl FjallEngine {
    /// Opens the engine in `directory`, which is created when it does not exist. What it shows then is durable: a killed
    /// process may have left it in the system's page cache alone.
    pub fn open(directory: &Path, options: &FjallOptions) -> Result<FjallEngine, EngineError> {
        check_version(directory)?;
        super::manifest::check(directory)?;
        let end = cut_torn_end(directory)
            .map_err(|error| EngineError::Io(format!("the end of the journal: {error}")))?;
        let database = open_database(directory, options)?;
        let spaces = Spaces::open(&database, options)?;
        spaces.check_not_ahead_of(end.last)?;
        let engine = FjallEngine {
            directory: directory.to_owned(),
            database,
            spaces,
            torn_tail: end.torn,
            writing: Mutex::new(()),
            deletions: Space::ALL.map(|_| AtomicU64::new(1)),
            reclaiming: Mutex::new(()),
        };
        engine.persist()?;
        sync_directories(directory)
            .map_err(|error| EngineError::Io(format!("the names of the engine's files: {error}")))?;
        Ok(engine)
    }

    /// What was cut off at the end of the journal when it was opened: what a crash interrupted, or damage. A log that
    /// reaches back to the applied index in the engine has it still.
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.torn_tail.as_ref()
    }

    /// Writes a batch that repeats no key.
    pub(super) fn commit(&self, batch: Batch) -> Result<(), Error> {
        let mut writes = OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        for change in batch {
            match change {
                Change::Put(space, key, value) => writes.insert(self.spaces.of(space), &*key, &*value),
                Change::Delete(space, key) => {
                    self.deletions[space as usize].fetch_add(1, Ordering::Relaxed);
                    writes.remove(self.spaces.of(space), &*key);
                }
            }
        }
        self.wait_while_congested()?;
        let _writing = self.writing.lock();
        writes.commit()
    }

    fn wait_while_congested(&self) -> Result<(), Error> {
        while self.spaces.0.iter().any(is_congested) {
            self.check_poisoned()?;
            thread::sleep(CONGESTION_POLL);
        }
        Ok(())
    }

    /// What is told of an error.
    pub(super) fn failed(&self, error: Error) -> EngineError {
        match error {
            Error::Poisoned => EngineError::Io(poisoned(RealDisk.free_bytes(&self.directory).ok())),
            error => engine_error(error),
        }
    }

    pub(super) fn check_poisoned(&self) -> Result<(), Error> {
        self.database.persist(PersistMode::Buffer)
    }
}

fn is_congested(keyspace: &Keyspace) -> bool {
    keyspace.tree.l0_run_count() >= TABLES_MAX || keyspace.tree.sealed_memtable_count() >= MEMTABLES_MAX
}

/// fjall takes a version that it does not know for damage.
fn check_version(directory: &Path) -> Result<(), EngineError> {
    match fs::read(directory.join("version")) {
        Ok(bytes) => match bytes[..] {
            [b'F', b'J', b'L', version, ..] if version > FORMAT => Err(newer(version)),
            // What else may be wrong with it fjall knows.
            _ => Ok(()),
        },
        Err(_) => Ok(()),
    }
}

fn newer(format: impl fmt::Debug) -> EngineError {
    EngineError::Io(format!(
        "the engine's files have a format that this version cannot read ({format:?}): run the version that wrote them"
    ))
}

/// Opens the database on a thread that gives way, so that its workers, which that thread starts, do as well. On a machine whose processors
/// others keep busy it takes longer for that.
fn open_database(directory: &Path, options: &FjallOptions) -> Result<Database, EngineError> {
    let open = || {
        give_way();
        Database::builder(directory)
            .cache_size(options.cache_bytes)
            .worker_threads(options.threads.max(1))
            .max_journaling_size(options.journal_bytes.max(64 << 20))
            .journal_compression(CompressionType::None)
            .manual_journal_persist(true)
            .max_cached_files(Some(options.open_tables.max(10)))
            .open()
            .map_err(open_error)
    };
    thread::scope(|scope| {
        let opened = thread::Builder::new().spawn_scoped(scope, open);
        let opened = opened.map_err(|error| EngineError::Io(format!("starting a thread: {error}")))?;
        opened.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
impl FjallEngine {
    /// Writes all memtables to tables, and waits for it.
    pub(super) fn make_tables(&self) {
        self.spaces.0.iter().for_each(|space| space.rotate_memtable_and_wait().unwrap());
    }

    /// Merges tables until fjall sees nothing more to do.
    pub(super) fn merge_tables(&self) {
        for space in &self.spaces.0 {
            loop {
                let before = space.tree.current_version().id();
                let no_view_before = self.database.supervisor.snapshot_tracker.get_seqno_safe_to_gc();
                space.tree.compact(space.config.compaction_strategy.clone(), no_view_before).unwrap();
                let is_same = space.tree.current_version().id() == before;
                if is_same && self.database.active_compactions() == 0 {
                    break;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Spaces {
    fn open(database: &Database, options: &FjallOptions) -> Result<Spaces, EngineError> {
        let open = |space: Space| {
            database.keyspace(file_name(space), || create_options(space, options)).map_err(open_error)
        };
        Ok(Spaces([open(Space::State)?, open(Space::Versions)?, open(Space::Values)?, open(Space::Tables)?]))
    }

    /// What is in tables was durable in the journal before. `last` is the last batch of the newest journal, if it has one.
    fn check_not_ahead_of(&self, last: Option<u64>) -> Result<(), EngineError> {
        let in_tables = self.0.iter().filter_map(|space| space.tree.get_highest_persisted_seqno()).max();
        match (in_tables, last) {
            (Some(in_tables), Some(last)) if in_tables > last => Err(EngineError::Damaged(format!(
                "the journal ends with batch {last}, and tables hold batch {in_tables}"
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn of(&self, space: Space) -> &Keyspace {
        &self.0[space as usize]
    }

    fn get(&self, view: &fjall::Snapshot, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = view.get(self.of(space), key).map_err(read_error)?;
        // Copied, so that a small value does not keep a whole block in memory.
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        view: &fjall::Snapshot,
        space: Space,
        from: &[u8],
        to: &[u8],
        visit: Visit<'_>,
    ) -> Result<(), EngineError> {
        if from >= to {
            return Ok(());
        }
        for pair in view.range(self.of(space), from..to) {
            let (key, value) = pair.into_inner().map_err(read_error)?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The name of a space's fjall keyspace. Part of the format: never change one.
fn file_name(space: Space) -> &'static str {
    match space {
        Space::State => "state",
        Space::Versions => "versions",
        Space::Values => "values",
        Space::Tables => "tables",
    }
}

fn create_options(space: Space, options: &FjallOptions) -> KeyspaceCreateOptions {
    let block_bytes = match space {
        Space::Values => 8 << 10,
        // Read by scans only, at restarts.
        Space::Versions => 16 << 10,
        Space::State | Space::Tables => 4 << 10,
    };
    let filter = match space {
        // In revision order, so each key can be in one table only and a filter would save nothing.
        Space::Values | Space::Versions => FilterPolicy::disabled(),
        Space::State | Space::Tables => {
            FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0)))
        }
    };
    KeyspaceCreateOptions::default()
        .max_memtable_size(options.memtable_bytes)
        .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(options.table_bytes)))
        .manual_journal_persist(true)
        .data_block_size_policy(BlockSizePolicy::all(block_bytes))
        .data_block_compression_policy(CompressionPolicy::disabled())
        .filter_policy(filter)
        // Every lookup is for a record that the index in memory knows to exist.
        .expect_point_read_hits(true)
}

impl Read for FjallEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.spaces.of(space).get(key).map_err(read_error)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
        self.spaces.scan(&self.database.snapshot(), space, from, to, visit)
    }
}

impl Engine for FjallEngine {
    fn write(&self, batch: Batch) -> Result<(), EngineError> {
        check_sizes(&batch)?;
        self.commit(without_repeats(batch)).map_err(|error| self.failed(error))
    }

    fn persist(&self) -> Result<(), EngineError> {
        self.database.persist(PersistMode::SyncData).map_err(|error| self.failed(error))?;
        // If an fsync of fjall's own threads failed right before this one, the system counts those pages as clean, and this one
        // succeeded; and fjall looked whether it is poisoned before it waited for that thread. Now it knows.
        self.database.persist(PersistMode::SyncData).map_err(|error| self.failed(error))
    }

    fn snapshot(&self) -> Box<dyn Read> {
        let _writing = self.writing.lock();
        Box::new(FjallView { view: self.database.snapshot(), spaces: self.spaces.clone() })
    }

    fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }

    fn reclaim(&self) -> Result<Reclaimed, EngineError> {
        self.reclaim_all()
    }

    fn check(&self) -> Result<(), EngineError> {
        self.check_poisoned().map_err(|error| self.failed(error))
    }
}

/// A fixed view; fjall keeps what it needs for it.
struct FjallView {
    view: fjall::Snapshot,
    spaces: Spaces,
}

impl Read for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.spaces.get(&self.view, space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
        self.spaces.scan(&self.view, space, from, to, visit)
    }
}

/// All changes of a fjall batch get one sequence number, so two changes of one key would be unordered: only the last
/// is kept. Batches rarely repeat a key, and those in order within each space show it at no cost.
fn without_repeats(mut batch: Batch) -> Batch {
    let mut last: [Option<&[u8]>; Space::ALL.len()] = Default::default();
    let in_order = batch.iter().all(|change| {
        let (space, key) = place(change);
        last[space as usize].replace(key).is_none_or(|last| last < key)
    });
    if in_order {
        return batch;
    }
    let mut seen = std::collections::HashSet::with_capacity(batch.len());
    let keep: Vec<bool> = batch.iter().rev().map(|change| seen.insert(place(change))).collect();
    drop(seen);
    let mut keep = keep.into_iter().rev();
    batch.retain(|_| keep.next().unwrap_or(true));
    batch
}

fn place(change: &Change) -> (Space, &[u8]) {
    match change {
        Change::Put(space, key, _) | Change::Delete(space, key) => (*space, key),
    }
}

/// A record cannot be read: the disk does not give it.
fn read_error(error: fjall::Error) -> EngineError {
    match error {
        Error::Io(io) | Error::Storage(LsmError::Io(io)) if is(&io, Errno::IO) => {
            EngineError::Damaged(io.to_string())
        }
        error => engine_error(error),
    }
}

/// Opening reads and writes, and it is not said which of both failed: the disk, or something in a file that names a place no file can have.
fn open_error(error: fjall::Error) -> EngineError {
    match error {
        Error::Io(io) | Error::Storage(LsmError::Io(io)) if is(&io, Errno::IO) || is(&io, Errno::INVAL) => {
            EngineError::Io(format!(
                "opening: {io}; should that come again, files cannot be read: move the data directory and the write-ahead log away and \
                 rebuild this member from the others"
            ))
        }
        error => engine_error(error),
    }
}

/// With less left, a table that was being written may have filled the disk; it is gone when the node stops.
const ROOM_BYTES: u64 = 128 << 20;

/// What is told after fjall gave up, whatever for; its threads log that. Whoever looks at this line alone must not throw away what is whole.
fn poisoned(free_bytes: Option<u64>) -> String {
    let what = "an earlier write, fsync or merging of tables failed, as was logged when it happened, and nothing is accepted any more";
    let advice = match free_bytes {
        Some(free) if free < ROOM_BYTES => {
            let left = free >> 20;
            return format!(
                "{what}. The disk has {left} MiB left, so most likely it was full: then nothing is damaged, free some space and start this node again"
            );
        }
        _ => {
            "If that was for `No space left on device` or `Too many open files`, nothing is damaged: free some space, or raise the limit of \
             open files, and start this node again. If it was for a checksum, or comes again after a restart although there is room, \
             files are damaged: move the data directory and the write-ahead log away and rebuild this member from the others"
        }
    };
    format!("{what}. {advice}")
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn is_short_of_descriptors(error: &io::Error) -> bool {
    is(error, Errno::MFILE) || is(error, Errno::NFILE)
}

pub(super) fn engine_error(error: fjall::Error) -> EngineError {
    match error {
        Error::Io(error) | Error::Storage(LsmError::Io(error)) if is_short_of_descriptors(&error) => {
            EngineError::Io(format!(
                "{error}; nothing is damaged: raise the limit of open files (`ulimit -n`)"
            ))
        }
        Error::Io(error) | Error::Storage(LsmError::Io(error)) if is(&error, Errno::NOSPC) => {
            EngineError::Io(format!("{error}; nothing is damaged: free some space and start this node again"))
        }
        // A file ends before what another place says is in it.
        Error::Io(error) | Error::Storage(LsmError::Io(error))
            if error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            EngineError::Damaged(error.to_string())
        }
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => EngineError::Io(error.to_string()),
        Error::Locked => EngineError::Io("the engine is in use by another process".into()),
        Error::Poisoned => EngineError::Io(poisoned(None)),
        Error::InvalidVersion(Some(version)) => newer(version),
        Error::Storage(LsmError::InvalidVersion(version)) => newer(version),
        Error::InvalidVersion(None) => EngineError::Damaged("the file `version` is none".into()),
        damaged => EngineError::Damaged(damaged.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::engine::conformance;

    fn small() -> FjallOptions {
        FjallOptions { cache_bytes: 1 << 20, memtable_bytes: 1 << 20, ..FjallOptions::default() }
    }

    fn put(key: &'static str, value: &'static str) -> Change {
        Change::Put(Space::Values, key.into(), value.into())
    }

    /// fjall makes visible what is being written when it puts a table in its place meanwhile: views showed half a batch, and half of that grew
    /// whole while they were read.
    #[test]
    fn views_show_whole_batches_while_tables_are_made() {
        const KEYS: u32 = 2_000;
        let directory = tempfile::tempdir().unwrap();
        let options = FjallOptions { memtable_bytes: 128 << 10, ..small() };
        let engine = FjallEngine::open(directory.path(), &options).unwrap();
        let ends = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=300_u32 {
                    let value = Bytes::from([&number.to_be_bytes()[..], &[0; 100]].concat());
                    let put = |key: u32| {
                        Change::Put(Space::Values, Bytes::copy_from_slice(&key.to_be_bytes()), value.clone())
                    };
                    engine.write((0..KEYS).map(put).collect()).unwrap();
                }
                ends.store(true, Ordering::Release);
            });
            let mut looks = 0;
            while !ends.load(Ordering::Acquire) {
                let view = engine.snapshot();
                let ends = [0, KEYS - 1].map(|key| {
                    let value = view.get(Space::Values, &key.to_be_bytes()).unwrap();
                    value.map_or(0, |value| u32::from_be_bytes(value[..4].try_into().unwrap()))
                });
                assert_eq!(ends[0], ends[1], "look {looks}");
                looks += 1;
            }
        });
    }

    /// Why no view may be open for long: [`Engine::snapshot`]. fjall keeps former states of its tree, each with the memtables of its day.
    #[test]
    fn an_open_view_keeps_what_is_written_in_memory() {
        let directory = tempfile::tempdir().unwrap();
        let engine = FjallEngine::open(directory.path(), &small()).unwrap();
        let fill_memtables = || {
            for _ in 0..20 {
                engine.write(vec![put("a", "1")]).unwrap();
                engine.make_tables();
            }
            engine.spaces.of(Space::Values).tree.get_version_history_lock().len()
        };
        let without_a_view = fill_memtables();
        assert!(without_a_view < 10, "{without_a_view}");
        let view = engine.snapshot();
        let with_a_view = fill_memtables();
        assert!(with_a_view > 20, "{with_a_view}");
        drop(view);
        let without_it = fill_memtables();
        assert!(without_it < 10, "{without_it}");
    }

    #[test]
    fn conforms() {
        let mut directories = Vec::new();
        conformance::check(&mut || {
            let directory = tempfile::tempdir().unwrap();
            let engine = FjallEngine::open(directory.path(), &small()).unwrap();
            directories.push(directory);
            Arc::new(engine)
        });
    }

    #[test]
    fn reopens_with_everything_that_was_persisted() {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..3u8 {
            let engine = FjallEngine::open(directory.path(), &small()).unwrap();
            for earlier in 0..round {
                assert_eq!(engine.get(Space::State, &[earlier]).unwrap().as_deref(), Some(&[earlier][..]));
            }
            let pair = Bytes::copy_from_slice(&[round]);
            engine.write(vec![Change::Put(Space::State, pair.clone(), pair)]).unwrap();
            engine.persist().unwrap();
        }
    }

    #[test]
    fn writes_more_than_its_memtables_hold() {
        let directory = tempfile::tempdir().unwrap();
        let engine = FjallEngine::open(directory.path(), &small()).unwrap();
        let value = Bytes::from(vec![1; 1000]);
        for batch in 0..40u32 {
            let changes = (batch * 100..batch * 100 + 100)
                .map(|n| Change::Put(Space::Values, Bytes::copy_from_slice(&n.to_be_bytes()), value.clone()));
            engine.write(changes.collect()).unwrap();
        }
        engine.persist().unwrap();
        assert!(engine.disk_bytes() > 1 << 20);
        let mut count = 0u32;
        engine
            .scan(Space::Values, &[], &[0xff], &mut |key, _| {
                assert_eq!(key, count.to_be_bytes());
                count += 1;
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(count, 4000);
    }

    #[test]
    fn what_is_cut_off_the_journal_is_reported_and_zeros_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("0.jnl");
        let write = |engine: &FjallEngine, value| {
            engine.write(vec![put("a", value)]).unwrap();
            engine.persist().unwrap();
        };
        write(&FjallEngine::open(directory.path(), &small()).unwrap(), "1");
        let engine = FjallEngine::open(directory.path(), &small()).unwrap();
        assert_eq!(engine.torn_tail(), None);
        drop(engine);
        let first = std::fs::metadata(&journal).unwrap().len();
        let engine = FjallEngine::open(directory.path(), &small()).unwrap();
        write(&engine, "2");
        drop(engine);
        let bytes = fs::read(&journal).unwrap();
        let at = bytes.iter().rposition(|byte| *byte == b'2').unwrap();
        assert!(at as u64 > first);
        let mut flipped = bytes;
        flipped[at] ^= 1;
        fs::write(&journal, &flipped).unwrap();
        let engine = FjallEngine::open(directory.path(), &small()).unwrap();
        let tail = engine.torn_tail().unwrap();
        let end = flipped.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
        assert_eq!((&tail.file, tail.offset, tail.bytes), (&journal, first, end - first));
        assert_eq!(engine.get(Space::Values, b"a").unwrap().as_deref(), Some(&b"1"[..]));
    }

    /// After a failed fsync the journal was read from the page cache, as if it were on the disk, and no fsync put it there: with what the log had
    /// been cut for, it went with the next power loss.
    #[test]
    fn the_journal_is_written_again_when_it_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("0.jnl");
        let engine = FjallEngine::open(directory.path(), &small()).unwrap();
        let value = Bytes::from(vec![b'1'; 3 << 20]);
        engine.write(vec![Change::Put(Space::Values, "a".into(), value)]).unwrap();
        engine.persist().unwrap();
        drop(engine);
        let before = fs::read(&journal).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        std::fs::File::options().write(true).open(&journal).unwrap().set_modified(long_ago).unwrap();
        cut_torn_end(directory.path()).unwrap();
        let after = fs::read(&journal).unwrap();
        assert!(before.starts_with(&after) && after.len() > 3 << 20, "its end was zeros");
        assert_ne!(std::fs::metadata(&journal).unwrap().modified().unwrap(), long_ago);
        // Nothing is to be cut off any more, and still it is written.
        std::fs::File::options().write(true).open(&journal).unwrap().set_modified(long_ago).unwrap();
        cut_torn_end(directory.path()).unwrap();
        assert_eq!(fs::read(&journal).unwrap(), after);
        assert_ne!(std::fs::metadata(&journal).unwrap().modified().unwrap(), long_ago);
    }

    #[test]
    fn a_second_opening_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _engine = FjallEngine::open(directory.path(), &small()).unwrap();
        let error = FjallEngine::open(directory.path(), &small()).err().unwrap();
        assert!(error.to_string().contains("in use"), "{error}");
    }

    #[test]
    fn repeats_keep_the_last_change() {
        let delete = Change::Delete(Space::Values, "a".into());
        let batch = vec![put("b", "1"), put("a", "1"), delete.clone(), put("c", "1"), put("b", "2")];
        assert_eq!(without_repeats(batch), vec![delete, put("c", "1"), put("b", "2")]);
        let ascending = vec![put("a", "1"), put("b", "1")];
        assert_eq!(without_repeats(ascending.clone()), ascending);
    }

    /// A node whose disk was full said at last that its files are damaged if that came again, and to throw them away: it comes again until there is room.
    #[test]
    fn who_has_no_room_is_not_told_to_throw_anything_away() {
        let full = poisoned(Some(ROOM_BYTES - 1));
        assert!(full.contains("127 MiB left") && full.contains("nothing is damaged"), "{full}");
        assert!(!full.contains("rebuild"), "{full}");
        for free in [None, Some(ROOM_BYTES)] {
            let other = poisoned(free);
            assert!(other.contains("No space left") && other.contains("rebuild this member"), "{other}");
        }
        let full = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        assert!(engine_error(Error::Io(full)).to_string().contains("nothing is damaged"));
    }

    /// fjall takes them for damage: a node would have asked to be rebuilt for nothing, and have lost what it had.
    #[test]
    fn files_of_a_newer_fjall_are_no_damage() {
        let directory = tempfile::tempdir().unwrap();
        drop(FjallEngine::open(directory.path(), &small()).unwrap());
        let file = directory.path().join("version");
        assert_eq!(fs::read(&file).unwrap(), [b'F', b'J', b'L', FORMAT]);
        fs::write(&file, [b'F', b'J', b'L', FORMAT + 1]).unwrap();
        let refused = FjallEngine::open(directory.path(), &small()).err().unwrap().to_string();
        assert!(refused.contains("run the version that wrote them"), "{refused}");
        assert!(!refused.contains("rebuild"), "{refused}");
    }
}
