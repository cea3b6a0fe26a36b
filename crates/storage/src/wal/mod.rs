//! The write-ahead log: one per node, shared by all its groups, so that one write and one fdatasync carry everything
//! that waits.
//!
//! ```text
//!   append(&[Record]) ──▶ one batch ──▶ one pwrite into the current segment        (visible, not durable)
//!   sync()            ──▶ one fdatasync                                             (durable; old segments may go)
//!
//!   segment 17            segment 18                      segment 19 (current)         segment 20 (ready)
//!   [table|batch|batch]   [table|batch|batch|batch|...]   [table|batch|batch|0000..]   [header, zeros or old bytes]
//! ```
//!
//! Invariants:
//! - **A batch is there or not.** Its checksum starts from a salt of its segment's life, so nothing of a recycled file's
//!   former life is ever replayed.
//! - **What was synced is never silently cut.** Each batch says up to which batch the log was durable when it was
//!   written. Where a batch is missing, later ones that call it durable prove damage: opening refuses, names file and
//!   offset, and has written nothing. Otherwise it is the torn tail of a crash, which is cut and reported. A
//!   [`Wal::seal`] after the last sync makes even the last batch provable.
//! - **A failed write or sync poisons.** After it nobody knows what is on disk, so every later call fails. Opening writes
//!   the last batches once more, because what can be read after a failed sync need not be on the disk.
//! - **Only live entries pin segments.** Each segment begins with a table of all groups' hard states and floors, so a
//!   segment may go once no group has a live entry in it, in order, after the records that killed them are durable.
//! - **What is appended can be recovered**: entries that would leave a gap or break their group's chain of checksums
//!   are refused before they are written.
//!
//! Left out: reading entries back while the log is open (the groups hold them in memory), and cutting within a segment.
//!
//! This is on the path of every write: no allocation per entry, one copy, one lookup per record.

#[cfg(test)]
mod crash_images;
mod format;
mod index;
#[cfg(test)]
mod model_tests;
mod pool;
mod recover;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hadron_consensus::{Entry, GroupId, HardState, LogPosition};

use self::format::{BatchEncoder, FIRST_BATCH, TERMINATOR};
use self::index::LiveIndex;
use self::pool::{Listing, Pool, Retired, Segment};
use self::recover::Outcome;
use crate::TornTail;
use crate::disk::{DirectoryLock, Disk, is_full, sync_parent, write_ballast};

pub use self::pool::Preparer;

const BALLAST: &str = "ballast";

/// How a log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a segment. Files are recycled among segments of this size; a batch that does not fit gets a larger
    /// segment of its own.
    pub segment_bytes: u64,
    /// Whose log this is: a random number that the data directory carries. Batches of other logs are not valid here.
    pub log_id: u64,
    /// Bytes of a file that only takes up room, to be removed when the disk is full: see [`Wal::release_ballast`].
    pub ballast_bytes: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { segment_bytes: 64 << 20, log_id: 0, ballast_bytes: 16 << 20 }
    }
}

/// Something to be remembered.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// The group's hard state from now on.
    HardState(GroupId, HardState),
    /// Consecutive entries; they replace whatever the group's log holds at and after the first one's index. Those at or
    /// below its floor are passed over.
    Entries(GroupId, Vec<Entry>),
    /// Everything up to this position is durable in the engine, and the log starts after it. If the log ends before the
    /// position or holds another entry there, all its entries go. A position below the present floor does nothing.
    Floor(GroupId, LogPosition),
    /// The group and all its entries are gone from this node.
    Forget(GroupId),
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// All groups it knows.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    /// What was cut off at its end, if something was.
    pub torn_tail: Option<TornTail>,
}

/// One group in a log that was opened.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecoveredGroup {
    /// The last hard state.
    pub hard_state: HardState,
    /// The last floor. The engine must have everything up to it; if not, the replica is unusable.
    pub floor: LogPosition,
    /// The log after the floor, without gaps, its chain of checksums verified.
    pub entries: Vec<Entry>,
}

impl RecoveredGroup {
    /// Where the log ends.
    pub fn last(&self) -> LogPosition {
        self.entries.last().map_or(self.floor, Entry::position)
    }
}

/// What a log could not do.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The operating system refused. If it was a write or a sync, the log is poisoned.
    #[error("{action} {}: {source}", file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        file: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no room for the next segment. Nothing was written; the log is still usable, and the same call may
    /// succeed once there is room.
    #[error(
        "no space left for the write-ahead log in {}, which needs {} MiB for its next segment; nothing is damaged: free some space and start \
         this node again", directory.display(), segment_bytes >> 20
    )]
    Full {
        /// The log's directory.
        directory: PathBuf,
        /// What a segment takes.
        segment_bytes: u64,
    },
    /// An earlier write or sync failed, so nothing is accepted until the log is opened again.
    #[error("the write-ahead log refuses: an earlier write or sync failed")]
    Poisoned,
    /// Another process has the log open.
    #[error("write-ahead log {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// What was durable cannot be read any more. Nothing was changed.
    #[error(
        "damaged write-ahead log: {} at offset {offset}: {what}; move the data directory and the write-ahead log away \
         and rebuild this member from the others", file.display()
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A newer version of Hadron wrote this.
    #[error("{} has format {found}; this version reads up to {supported}: use a newer one", file.display())]
    NewerFormat {
        /// The segment.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this code reads.
        supported: u32,
    },
    /// A newer version of Hadron wrote a record of a kind that this one does not know.
    #[error(
        "{} has at offset {offset} a record of kind {kind}, which this version does not know: use a newer one", file.display()
    )]
    NewerRecord {
        /// The segment.
        file: PathBuf,
        /// The batch with the record.
        offset: u64,
        /// What kind it is of.
        kind: u8,
    },
    /// The file belongs to another log.
    #[error("{} belongs to log {found:016x}, not to {expected:016x}", file.display())]
    Foreign {
        /// The segment.
        file: PathBuf,
        /// The log that it says it belongs to.
        found: u64,
        /// The log that was opened.
        expected: u64,
    },
    /// A bug of the caller: records that could not be recovered. Nothing was written, but the log is poisoned.
    #[error("refused to log: {0}")]
    Misuse(String),
}

impl WalError {
    fn io(action: &'static str, file: &Path, source: io::Error) -> WalError {
        WalError::Io { action, file: file.to_path_buf(), source }
    }
}

/// Makes durable all that was read. What can be read may not be on the disk: a killed process may not have synced it, and
/// after a failed sync the operating system may count pages as clean that it never wrote, so that a sync alone does
/// nothing for them. What no batch calls durable is therefore written once more.
fn make_durable(outcome: &Outcome) -> Result<(), WalError> {
    if let (Some(unproven), Some((path, file))) = (&outcome.unproven, outcome.files.last()) {
        let written = file.write_at(unproven.offset, &unproven.bytes);
        written.map_err(|source| WalError::io("writing", path, source))?;
    }
    outcome
        .files
        .iter()
        .try_for_each(|(path, file)| file.sync().map_err(|source| WalError::io("syncing", path, source)))
}

/// An open log. It belongs to one thread.
pub struct Wal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    pool: Arc<Pool>,
    index: LiveIndex,
    /// The segments that hold the log, oldest first, the current one included.
    segments: VecDeque<LiveSegment>,
    /// Where the next batch goes; `None` when it needs a new segment.
    current: Option<Current>,
    encoder: BatchEncoder,
    next_sequence: u64,
    /// The last batch that is durable.
    durable: u64,
    /// The last batch is a seal.
    sealed: bool,
    poisoned: bool,
    written_bytes: u64,
    /// Released last, when nobody works on the files any more.
    _lock: Box<dyn DirectoryLock>,
}

struct LiveSegment {
    number: u64,
    size: u64,
}

struct Current {
    segment: Segment,
    offset: u64,
}

impl Current {
    /// Whether a batch with `length` bytes of records fits, with the terminator behind it.
    fn fits(&self, length: usize) -> bool {
        let end = self.offset + (format::batch_extent(length) + TERMINATOR) as u64;
        end <= self.segment.size
    }
}

impl Wal {
    /// Opens the log in `directory`, which is created when it does not exist, and reads all of it. Nothing is written
    /// before all of it is found good, but for a file that locks the directory; then what may not be durable yet is
    /// made so.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        options: Options,
    ) -> Result<(Wal, Recovered), WalError> {
        let failed = |source| WalError::io("opening", directory, source);
        disk.create_dir(directory).map_err(failed)?;
        // The log may be elsewhere than the node's other data, which has a lock of its own.
        let lock = disk.lock(directory).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => WalError::Locked(directory.to_path_buf()),
            _ => failed(source),
        })?;
        let listing = Listing::read(&*disk, directory).map_err(failed)?;
        let outcome = recover::recover(&*disk, directory, options.log_id, &listing)?;
        make_durable(&outcome)?;
        let usual =
            (options.segment_bytes.next_multiple_of(FIRST_BATCH).max(4 * FIRST_BATCH), options.log_id);
        sync_parent(&*disk, directory).map_err(failed)?;
        let pool = Pool::new(Arc::clone(&disk), directory.to_path_buf(), usual, listing, outcome.spare)
            .map_err(failed)?;
        pool.put_away_now(outcome.unused).map_err(failed)?;
        // Without room for it the log still works; it only cannot be helped when the disk is full.
        let _ = write_ballast(&*disk, &directory.join(BALLAST), options.ballast_bytes);
        let wal = Wal {
            disk,
            directory: directory.to_path_buf(),
            pool: Arc::new(pool),
            index: outcome.index,
            segments: outcome
                .segments
                .into_iter()
                .map(|(number, size)| LiveSegment { number, size })
                .collect(),
            current: outcome.current.map(|(segment, offset)| Current { segment, offset }),
            encoder: BatchEncoder::default(),
            next_sequence: outcome.next_sequence,
            durable: outcome.next_sequence - 1,
            sealed: false,
            poisoned: false,
            written_bytes: 0,
            _lock: lock,
        };
        Ok((wal, outcome.recovered))
    }

    /// Writes `records` as one batch, all or none of which a recovery will find. Not yet durable.
    pub fn append(&mut self, records: &[Record]) -> Result<(), WalError> {
        self.usable()?;
        if records.is_empty() {
            return Ok(());
        }
        let length = records.iter().map(format::record_length).sum();
        let at_head = self.make_room(length)?;
        self.poison_on_error(|wal| wal.write_records(records, at_head))
    }

    /// Makes everything appended so far durable.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.usable()?;
        if self.durable + 1 == self.next_sequence {
            return Ok(());
        }
        self.poison_on_error(Wal::sync_current)?;
        self.retire_segments();
        Ok(())
    }

    /// Syncs and leaves a durable mark after the last batch, so that damage to it cannot pass for a torn tail. For an
    /// idle log and for a clean stop; does nothing when there is such a mark already, nothing to be marked, or no room for it
    /// on the disk. Behind a torn tail and at the end of a full segment the mark begins the next segment.
    pub fn seal(&mut self) -> Result<(), WalError> {
        self.sync()?;
        const LENGTH: usize = 1;
        if self.sealed || self.segments.is_empty() {
            return Ok(());
        }
        let at_head = match self.make_room(LENGTH) {
            Err(WalError::Full { .. }) => return Ok(()),
            room => room?,
        };
        self.poison_on_error(|wal| {
            wal.encoder.begin();
            if at_head {
                wal.encoder.table(wal.index.table());
            }
            wal.encoder.seal();
            wal.write_batch()?;
            wal.sync_current()
        })?;
        self.sealed = true;
        Ok(())
    }

    /// Whether the last batch is followed by the mark that [`Wal::seal`] leaves.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// The groups whose oldest live entry keeps more than `bytes` of segments from being put away, counted up to the
    /// end of the log. Appending their live entries anew (one `Entries` record each) frees those segments.
    pub fn pinning(&self, bytes: u64) -> Vec<GroupId> {
        let (mut kept, current) = match &self.current {
            Some(current) => (current.offset, Some(current.segment.number)),
            None => (0, None),
        };
        // The current segment is kept in any case.
        let older = self.segments.iter().rev().filter(|segment| Some(segment.number) != current);
        let mut too_old = older.skip_while(|segment| {
            kept += segment.size;
            kept <= bytes
        });
        let Some(newest_too_old) = too_old.next().map(|segment| segment.number) else { return Vec::new() };
        let oldest = self.index.oldest_segments();
        oldest.filter(|(_, segment)| *segment <= newest_too_old).map(|(group, _)| group).collect()
    }

    /// Something that prepares segments ahead and puts old ones away, on a thread of its own. Without one the
    /// log does it inline. The thread ends when the log is dropped.
    pub fn preparer(&self) -> Preparer {
        Preparer::new(Arc::clone(&self.pool))
    }

    /// What the preparer, or putting away old segments, last failed at. It costs space, not safety.
    pub fn background_failure(&self) -> Option<String> {
        self.pool.failure()
    }

    /// Removes the ballast file, so that a node on a full disk can stop cleanly. True if there was one. It is written
    /// again when the log is next opened.
    pub fn release_ballast(&self) -> Result<bool, WalError> {
        let path = self.directory.join(BALLAST);
        let failed = |source| WalError::io("removing", &path, source);
        if !self.disk.exists(&path).map_err(failed)? {
            return Ok(false);
        }
        self.disk.remove(&path).map_err(failed)?;
        Ok(true)
    }

    /// Bytes of the segments that hold the log.
    pub fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Bytes written to segments since the log was opened.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// How many segments hold the log.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    fn usable(&self) -> Result<(), WalError> {
        if self.poisoned { Err(WalError::Poisoned) } else { Ok(()) }
    }

    fn poison_on_error<T>(
        &mut self,
        act: impl FnOnce(&mut Wal) -> Result<T, WalError>,
    ) -> Result<T, WalError> {
        let outcome = act(self);
        self.poisoned |= outcome.is_err();
        outcome
    }

    /// Makes sure that a batch with `length` bytes of records fits. True when it will be the first of its segment.
    fn make_room(&mut self, length: usize) -> Result<bool, WalError> {
        if u32::try_from(length).is_err() {
            return Err(WalError::Misuse(format!("a batch of {length} bytes")));
        }
        if let Some(current) = &self.current
            && current.offset > FIRST_BATCH
            && current.fits(length)
        {
            return Ok(false);
        }
        let with_table = length + format::table_length(self.index.group_count());
        let fresh = self.current.as_ref().is_some_and(|current| current.offset == FIRST_BATCH);
        if !fresh || !self.current.as_ref().is_some_and(|current| current.fits(with_table)) {
            self.begin_segment(with_table)?;
        }
        Ok(true)
    }

    fn begin_segment(&mut self, length: usize) -> Result<(), WalError> {
        // A batch in the new segment proves all before it, so those must be durable first.
        self.sync()?;
        let room = format::batch_extent(length) as u64;
        let segment = self.pool.take(room).map_err(|source| {
            if is_full(&source) {
                WalError::Full {
                    directory: self.directory.clone(),
                    segment_bytes: self.pool.segment_bytes().max(room),
                }
            } else {
                WalError::io("creating a segment in", &self.directory, source)
            }
        })?;
        self.segments.push_back(LiveSegment { number: segment.number, size: segment.size });
        self.current = Some(Current { segment, offset: FIRST_BATCH });
        Ok(())
    }

    fn write_records(&mut self, records: &[Record], at_head: bool) -> Result<(), WalError> {
        let Some(current) = &self.current else { unreachable!("make_room gives a segment") };
        let segment = current.segment.number;
        self.encoder.begin();
        if at_head {
            self.encoder.table(self.index.table());
        }
        for record in records {
            let effect = self.index.apply(record, segment)?;
            match record {
                Record::HardState(group, state) => self.encoder.hard_state(*group, state),
                Record::Entries(group, entries) => self.encoder.entries(*group, entries),
                Record::Floor(group, position) => self.encoder.floor(*group, position, effect),
                Record::Forget(group) => self.encoder.forget(*group),
            }
        }
        self.write_batch()?;
        self.sealed = false;
        Ok(())
    }

    /// Writes the batch in the encoder at the end of the log.
    fn write_batch(&mut self) -> Result<(), WalError> {
        let Some(current) = &mut self.current else { unreachable!("make_room gives a segment") };
        let bytes = self.encoder.finish(self.next_sequence, self.durable, current.segment.salt);
        debug_assert!(current.offset + bytes.len() as u64 <= current.segment.size);
        let written = current.segment.file.write_at(current.offset, bytes);
        written.map_err(|source| WalError::io("writing", &current.segment.path, source))?;
        let half = current.segment.size / 2;
        let was_below_half = current.offset < half;
        current.offset += (bytes.len() - TERMINATOR) as u64;
        if was_below_half && current.offset >= half {
            self.pool.want_spare();
        }
        self.written_bytes += bytes.len() as u64;
        self.next_sequence += 1;
        self.encoder.shrink();
        Ok(())
    }

    fn sync_current(&mut self) -> Result<(), WalError> {
        if let Some(current) = &self.current {
            let synced = current.segment.file.sync();
            synced.map_err(|source| WalError::io("syncing", &current.segment.path, source))?;
        }
        self.durable = self.next_sequence - 1;
        Ok(())
    }

    /// Gives up the oldest segments as far as nothing in them is alive. Only after a sync: what killed their entries
    /// must be durable first, and so must the table at the head of the segment that is then the oldest.
    fn retire_segments(&mut self) {
        let mut retired = Vec::new();
        while self.segments.len() > 1 {
            match self.segments.front() {
                Some(oldest) if !self.index.is_pinned(oldest.number) => {
                    retired.push(Retired { number: oldest.number, size: oldest.size });
                    self.segments.pop_front();
                }
                _ => break,
            }
        }
        if !retired.is_empty() {
            self.pool.retire(retired);
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.pool.close();
    }
}
