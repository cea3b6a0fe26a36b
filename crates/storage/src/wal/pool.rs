//! Where segments come from and where they go.
//!
//! A new segment is written full of zeros, or is the file of an old one that nobody needs any more; either costs too
//! much time for the thread that appends. So a [`Preparer`] on a thread of its own makes the next segment ready once the
//! current one is half full, and puts old ones away. Without a preparer all that happens inline, as in a simulation,
//! and new files are only allocated, not filled.
//!
//! A file passes through these names, each change durable before the next begins:
//!
//! ```text
//!    next.tmp ──header written, synced──▶ N.wal ──nothing in it is alive──▶ N.old ──▶ next.tmp, or removed
//! ```
//!
//! so a file called `N.wal` always has an intact header, and old segments go strictly in order.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::format::{FIRST_BATCH, Salt, SegmentHeader, TERMINATOR, VERSION};
use crate::disk::{Disk, DiskFile, is_full, zero_fill};
use crate::priority::give_way;

const TEMPORARY: &str = "next.tmp";
/// How many files are kept to be used again, beyond the segment that is ready.
const KEEP_OLD: usize = 2;

/// The file name of segment `number`.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016}.wal")
}

fn old_name(number: u64) -> String {
    format!("{number:016}.old")
}

/// The number in a file name of the form `<number>.<extension>`.
fn parse_name(name: &str, extension: &str) -> Option<u64> {
    let digits = name.strip_suffix(extension)?.strip_suffix('.')?;
    (digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// An open segment.
pub(super) struct Segment {
    /// Of its header: batches of a newer version must not follow it.
    pub(super) version: u32,
    pub(super) number: u64,
    pub(super) size: u64,
    pub(super) path: PathBuf,
    pub(super) salt: Salt,
    pub(super) file: Arc<dyn DiskFile>,
}

/// A segment to put away.
pub(super) struct Retired {
    pub(super) number: u64,
    pub(super) size: u64,
}

/// The files of a log's directory, by what their names say.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) segments: Vec<u64>,
    old: Vec<u64>,
    temporary: bool,
}

impl Listing {
    pub(super) fn read(disk: &dyn Disk, directory: &Path) -> io::Result<Listing> {
        let mut listing = Listing::default();
        for name in disk.list(directory)? {
            if let Some(number) = parse_name(&name, "wal") {
                listing.segments.push(number);
            } else if let Some(number) = parse_name(&name, "old") {
                listing.old.push(number);
            } else if name == TEMPORARY {
                listing.temporary = true;
            }
        }
        listing.segments.sort_unstable();
        Ok(listing)
    }
}

pub(super) struct Pool {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    segment_bytes: u64,
    log_id: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// Which names are on the disk is not known any more.
    is_doubtful: AtomicBool,
}

struct State {
    next_number: u64,
    spare: Option<Segment>,
    /// A spare will be needed soon.
    wanted: bool,
    /// Oldest first.
    retired: VecDeque<Retired>,
    /// Numbers of files of the usual size that may be used again.
    old: Vec<u64>,
    /// Someone is working on files; nobody else may.
    busy: bool,
    /// How many preparers there are.
    preparers: usize,
    closed: bool,
    /// What preparing a spare failed at. It is not tried again before the next segment is taken or an old one is put away.
    not_prepared: Option<String>,
    /// What putting away failed at. It is not tried again before the next segment is taken or retired.
    not_put_away: Option<String>,
}

/// When the blocks of a new file are written for the first time.
#[derive(Clone, Copy)]
enum Fill {
    /// Now, with zeros: by a preparer, which has the time.
    Now,
    /// By the batches: their syncs cost half as much again, but the thread that appends waits for milliseconds at most.
    Later,
}

enum Work {
    PutAway(Retired),
    Prepare { number: u64, old: Option<u64> },
}

impl Pool {
    /// The usual size of a segment.
    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// A pool for the files that are there; `spare` is an unused segment.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        (segment_bytes, log_id): (u64, u64),
        listing: Listing,
        spare: Option<Segment>,
    ) -> io::Result<Pool> {
        let highest = listing.segments.iter().chain(&listing.old).max().copied().unwrap_or(0);
        let (spare, odd) = match spare {
            Some(spare) if spare.size != segment_bytes => (None, Some(spare)),
            spare => (spare, None),
        };
        let odd = odd.map(|spare| Retired { number: spare.number, size: spare.size });
        let state = State {
            next_number: highest + 1,
            spare,
            wanted: false,
            retired: odd.into_iter().collect(),
            old: Vec::new(),
            busy: false,
            preparers: 0,
            closed: false,
            not_prepared: None,
            not_put_away: None,
        };
        let pool = Pool {
            disk,
            directory,
            segment_bytes,
            log_id,
            state: Mutex::new(state),
            changed: Condvar::new(),
            is_doubtful: AtomicBool::new(false),
        };
        if listing.temporary {
            pool.disk.remove(&pool.directory.join(TEMPORARY))?;
        }
        for number in listing.old {
            let path = pool.directory.join(old_name(number));
            let size = pool.disk.open(&path)?.size()?;
            if !pool.state.lock().keep(&Retired { number, size }, segment_bytes) {
                pool.disk.remove(&path)?;
            }
        }
        pool.disk.sync_dir(&pool.directory)?;
        Ok(pool)
    }

    /// A segment with room for `room` bytes of batches, numbered above all others.
    pub(super) fn take(&self, room: u64) -> io::Result<Segment> {
        let needed = (FIRST_BATCH + room + TERMINATOR as u64).next_multiple_of(FIRST_BATCH);
        let is_large = needed > self.segment_bytes;
        let mut state = self.state.lock();
        // While an old segment is put away, a spare can be taken all the same.
        while state.busy && (is_large || state.spare.is_none()) {
            self.changed.wait(&mut state);
        }
        state.not_prepared = None;
        state.not_put_away = None;
        state.wanted = false;
        if is_large {
            // Segments are used in the order of their numbers, so the spare's must not come after this one's.
            if let Some(spare) = state.spare.take() {
                state.retired.push_back(Retired { number: spare.number, size: spare.size });
            }
        } else if let Some(spare) = state.spare.take() {
            return Ok(spare);
        }
        let size = if is_large { needed } else { self.segment_bytes };
        self.make(&mut state, size).or_else(|error| {
            if !is_full(&error) {
                return Err(error);
            }
            self.make_room(&mut state, is_large)?;
            self.make(&mut state, size)
        })
    }

    /// A segment of `size` bytes for the one who waits for it.
    fn make(&self, state: &mut State, size: u64) -> io::Result<Segment> {
        let number = state.next_number();
        let old = if size == self.segment_bytes { state.old.pop() } else { None };
        self.prepare(number, size, old, Fill::Later)
    }

    /// Gets room on a full disk from what nobody needs any more: segments that wait to be put away and, if they are `too_small` to be
    /// used again, old ones.
    fn make_room(&self, state: &mut State, too_small: bool) -> io::Result<()> {
        self.put_all_away(state)?;
        while too_small && let Some(old) = state.old.pop() {
            self.disk.remove(&self.directory.join(old_name(old)))?;
        }
        Ok(())
    }

    /// A new segment will be needed soon: a preparer, if there is one, makes it ready.
    pub(super) fn want_spare(&self) {
        self.state.lock().wanted = true;
        self.changed.notify_all();
    }

    /// Puts away segments without live contents, oldest first: at once when there is no preparer, soon otherwise.
    /// A failure is remembered and costs only space; the next call tries again.
    pub(super) fn retire(&self, retired: Vec<Retired>) {
        let mut state = self.state.lock();
        state.retired.extend(retired);
        state.not_put_away = None;
        self.changed.notify_all();
        if state.preparers == 0 {
            let outcome = self.put_all_away(&mut state);
            state.not_put_away = outcome.err().map(|error| error.to_string());
        }
    }

    /// Puts away segments and returns when it is done.
    pub(super) fn put_away_now(&self, retired: Vec<Retired>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.retired.extend(retired);
        self.put_all_away(&mut state)
    }

    fn put_all_away(&self, state: &mut State) -> io::Result<()> {
        while let Some(oldest) = state.retired.pop_front() {
            let keep = state.has_room_for(&oldest, self.segment_bytes);
            if let Err(error) = self.put_away(&oldest, keep) {
                state.retired.push_front(oldest);
                return Err(error);
            }
            state.keep(&oldest, self.segment_bytes);
        }
        Ok(())
    }

    /// What the background last failed at.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.state.lock();
        state.not_prepared.as_ref().or(state.not_put_away.as_ref()).cloned()
    }

    /// Ends the preparers. When it returns nobody touches the files any more.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        self.changed.notify_all();
        while state.busy {
            self.changed.wait(&mut state);
        }
    }

    fn put_away(&self, retired: &Retired, keep: bool) -> io::Result<()> {
        let path = self.directory.join(segment_name(retired.number));
        let old = self.directory.join(old_name(retired.number));
        if self.disk.exists(&path)? {
            self.disk.rename(&path, &old)?;
        }
        // Before the next one goes: a log with a gap would not open.
        self.sync_names()?;
        if keep { Ok(()) } else { self.disk.remove(&old) }
    }

    /// Makes the names of the files durable. If that has failed once, the system may say of the next time that it succeeded: from then on
    /// no segment is begun, and none goes.
    fn sync_names(&self) -> io::Result<()> {
        if self.is_doubtful.load(Ordering::Relaxed) {
            return Err(io::Error::other("the directory could not be synced before"));
        }
        let synced = self.disk.sync_dir(&self.directory);
        self.is_doubtful.fetch_or(synced.is_err(), Ordering::Relaxed);
        synced
    }

    /// Prepares a segment of `size` bytes, from an old file of that size if there is one.
    fn prepare(&self, number: u64, size: u64, old: Option<u64>, fill: Fill) -> io::Result<Segment> {
        let Some(old) = old else { return self.create(number, size, fill) };
        let temporary = self.directory.join(TEMPORARY);
        self.disk.rename(&self.directory.join(old_name(old)), &temporary)?;
        self.sync_names()?;
        let file = self.disk.open(&temporary)?;
        self.finish(number, size, file)
    }

    fn create(&self, number: u64, size: u64, fill: Fill) -> io::Result<Segment> {
        let temporary = self.directory.join(TEMPORARY);
        if self.disk.exists(&temporary)? {
            self.disk.remove(&temporary)?;
        }
        let file = self.disk.create(&temporary)?;
        // All of it at once, so that a disk with too little room says so before others lack what there is.
        let allocated = file.allocate(size);
        let filled = match fill {
            Fill::Now => allocated.and_then(|()| zero_fill(&*file, size)),
            Fill::Later => allocated,
        };
        if let Err(error) = filled {
            // Most likely the disk is full: do not keep what room is left.
            self.disk.remove(&temporary)?;
            return Err(error);
        }
        self.finish(number, size, file)
    }

    fn finish(&self, number: u64, size: u64, file: Arc<dyn DiskFile>) -> io::Result<Segment> {
        let header = SegmentHeader { version: VERSION, number, size, log_id: self.log_id };
        file.write_at(0, &header.encode())?;
        file.sync()?;
        let path = self.directory.join(segment_name(number));
        self.disk.rename(&self.directory.join(TEMPORARY), &path)?;
        self.sync_names()?;
        Ok(Segment { version: VERSION, number, size, path, salt: Salt::new(self.log_id, number), file })
    }

    fn work(&self, state: &mut State) -> Option<Work> {
        if state.closed || state.busy {
            return None;
        }
        if state.not_put_away.is_none()
            && let Some(retired) = state.retired.pop_front()
        {
            return Some(Work::PutAway(retired));
        }
        if state.spare.is_some() || !state.wanted || state.not_prepared.is_some() {
            return None;
        }
        Some(Work::Prepare { number: state.next_number(), old: state.old.pop() })
    }

    /// Does one piece of work without holding the lock.
    fn perform<'a>(&'a self, mut state: MutexGuard<'a, State>, work: Work) -> MutexGuard<'a, State> {
        state.busy = true;
        match work {
            Work::PutAway(retired) => {
                let keep = state.has_room_for(&retired, self.segment_bytes);
                match MutexGuard::unlocked(&mut state, || self.put_away(&retired, keep)) {
                    Ok(()) => {
                        state.keep(&retired, self.segment_bytes);
                        // There is a file to use again, or more room.
                        state.not_prepared = None;
                    }
                    Err(error) => {
                        state.retired.push_front(retired);
                        state.not_put_away = Some(error.to_string());
                    }
                }
            }
            Work::Prepare { number, old } => {
                let prepare = || self.prepare(number, self.segment_bytes, old, Fill::Now);
                match MutexGuard::unlocked(&mut state, prepare) {
                    Ok(segment) => state.spare = Some(segment),
                    Err(error) => state.not_prepared = Some(error.to_string()),
                }
            }
        }
        state.busy = false;
        self.changed.notify_all();
        state
    }
}

impl State {
    fn has_room_for(&self, retired: &Retired, segment_bytes: u64) -> bool {
        retired.size == segment_bytes && self.old.len() < KEEP_OLD
    }

    /// Notes an old file for use again, if there is room for it.
    fn keep(&mut self, retired: &Retired, segment_bytes: u64) -> bool {
        let keep = self.has_room_for(retired, segment_bytes);
        if keep {
            self.old.push(retired.number);
        }
        keep
    }

    fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }
}

/// Makes segments ready before they are needed and puts old ones away. Meant for a thread of its own; see [`super::Wal::preparer`].
pub struct Preparer {
    pool: Arc<Pool>,
}

impl Preparer {
    pub(super) fn new(pool: Arc<Pool>) -> Preparer {
        pool.state.lock().preparers += 1;
        Preparer { pool }
    }

    /// Does what there is to do and waits for more, until the log is dropped. The calling thread gives way to others from then on.
    pub fn run(self) {
        give_way();
        let mut state = self.pool.state.lock();
        while !state.closed {
            match self.pool.work(&mut state) {
                Some(work) => state = self.pool.perform(state, work),
                None => self.pool.changed.wait(&mut state),
            }
        }
    }

    /// Does what there is to do now, and returns.
    pub fn run_once(&self) {
        let mut state = self.pool.state.lock();
        while let Some(work) = self.pool.work(&mut state) {
            state = self.pool.perform(state, work);
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.pool.state.lock().preparers -= 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_strictly() {
        assert_eq!(parse_name(&segment_name(7), "wal"), Some(7));
        assert_eq!(parse_name(&old_name(7), "old"), Some(7));
        assert_eq!(parse_name(&old_name(7), "wal"), None);
        for name in ["7.wal", "0000000000000007wal", "000000000000000x.wal", "next.tmp", ""] {
            assert_eq!(parse_name(name, "wal"), None, "{name}");
        }
    }
}
