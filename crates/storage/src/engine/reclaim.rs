//! Giving back what deleted records take on the disk. `docs/design/2026-11-28-space.md`.
//!
//! fjall merges a level into the next when it is too large, and moves tables as they are where nothing is in their way. Records of
//! [`Space::Values`] and [`Space::Versions`] have ascending keys, so what is new always moves and never meets what is old; and what a
//! deletion leaves is too small to fill a level by itself. So the deleted stays, however much it is. Here a space is rewritten as a whole
//! instead, for those to ask for who know how much of it is garbage.

use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fjall::{AbstractTree as _, Error, Keyspace, LsmError};
use rustix::io::Errno;

use super::fjall::engine_error;
use super::{Change, Engine as _, EngineError, FjallEngine, Space};
use crate::disk::is_full;

/// The largest first: what it gives back is room for the others.
const ORDER: [Space; 4] = [Space::Values, Space::Versions, Space::Tables, Space::State];
/// Nothing has this key.
const NOBODY: &[u8] = &[0xff];
/// How long to wait for a table to be written; what is not in one by then is left for the next time.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// What [`super::Engine::reclaim`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes on disk before it.
    pub before: u64,
    /// And after it.
    pub after: u64,
    /// The disk was too full to write anew what is kept. The next start removes what was written in vain.
    pub ran_out: bool,
}

impl FjallEngine {
    /// Rewrites each space in which something was deleted.
    ///
    /// Others read and write meanwhile, but no tables are merged, of any space: of fjall's two workers only one merges, and it waits for the
    /// end of the rewriting as soon as a memtable of the space was written. The other one passes the same message back to the queue
    /// without a pause until then, which keeps one processor busy at a low priority. So writes wait once some space has about 30 tables
    /// beside each other. The old tables are there until the new ones are complete, and for as long as there are views from before.
    pub(super) fn reclaim_all(&self) -> Result<Reclaimed, EngineError> {
        let _alone = self.reclaiming.lock();
        let before = self.disk_bytes();
        for space in ORDER {
            let deletions = self.deletions[space as usize].swap(0, Ordering::Relaxed);
            let outcome = self.rewrite(space, deletions);
            if outcome.is_err() {
                self.deletions[space as usize].fetch_add(deletions, Ordering::Relaxed);
            }
            match outcome {
                Err(error) if io_error(&error).is_some_and(is_full) => {
                    return Ok(Reclaimed { before, after: self.disk_bytes(), ran_out: true });
                }
                outcome => outcome.map_err(rewrite_error)?,
            }
        }
        self.release_history().map_err(|error| self.failed(error))?;
        Ok(Reclaimed { before, after: self.disk_bytes(), ran_out: false })
    }

    fn rewrite(&self, space: Space, deletions: u64) -> Result<(), Error> {
        let keyspace = self.spaces.of(space);
        if deletions == 0 && keyspace.tree.tombstone_count() == 0 {
            return Ok(());
        }
        self.make_table(keyspace)?;
        if keyspace.tree.tombstone_count() == 0 {
            return Ok(());
        }
        // Nobody looks at what was before now, unless he has a view of it.
        self.release_history()?;
        keyspace.major_compact()
    }

    /// Writes the memtable to a table, with the deletions that are in it.
    fn make_table(&self, keyspace: &Keyspace) -> Result<(), Error> {
        let newest = keyspace.tree.get_highest_memtable_seqno();
        keyspace.rotate_memtable()?;
        let began = Instant::now();
        while keyspace.tree.get_highest_persisted_seqno() < newest
            && keyspace.tree.sealed_memtable_count() > 0
            && began.elapsed() < PATIENCE
        {
            self.check_poisoned()?;
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// fjall looks which versions of records and lists of tables nobody needs any more, and removes tables that are on no list, when it
    /// puts a memtable aside that something was written to.
    fn release_history(&self) -> Result<(), Error> {
        self.commit(vec![Change::Delete(Space::State, Bytes::from_static(NOBODY))])?;
        self.make_table(self.spaces.of(Space::State))
    }
}

fn io_error(error: &Error) -> Option<&io::Error> {
    match error {
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => Some(error),
        _ => None,
    }
}

/// Rewriting reads and writes, and when the disk fails, fjall does not say at which of both. A failed write or fsync must stop the node, so
/// that does not count as damage: unlike where nothing but a read can have failed.
fn rewrite_error(error: Error) -> EngineError {
    match io_error(&error) {
        Some(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => EngineError::Io(format!(
            "rewriting tables: {error}; should that come again after a restart, tables cannot be read: move the data directory and the \
             write-ahead log away and rebuild this member from the others"
        )),
        _ => engine_error(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::ops::ControlFlow;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::engine::crash_images::tables;
    use crate::engine::{FjallOptions, Read as _};

    const VALUE_BYTES: u64 = 32_000;
    /// How many keys there are, of which the last record each is live.
    const KEYS: usize = 120;
    const LIVE_BYTES: u64 = KEYS as u64 * VALUE_BYTES;
    /// So many records are written between two sweeps.
    const SWEEP: u64 = 40;
    /// What is in memory or just written, and garbage that is not worth the work.
    const SLACK_BYTES: u64 = 2 << 20;

    /// Everything is smaller than in life by the same factor.
    fn open(directory: &Path) -> FjallEngine {
        let options = FjallOptions {
            cache_bytes: 1 << 20,
            memtable_bytes: 64 << 10,
            table_bytes: 256 << 10,
            ..FjallOptions::default()
        };
        FjallEngine::open(directory, &options).unwrap()
    }

    fn key(number: u64) -> Bytes {
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    fn value(number: u64) -> Bytes {
        number.to_be_bytes().repeat(VALUE_BYTES as usize / 8).into()
    }

    fn deletions(numbers: impl IntoIterator<Item = u64>) -> Vec<Change> {
        let delete =
            |number| [Space::Values, Space::Versions].map(|space| Change::Delete(space, key(number)));
        numbers.into_iter().flat_map(delete).collect()
    }

    /// What the tables take, those included that are on no list any more.
    fn table_bytes(directory: &Path) -> u64 {
        tables(directory).map(|(_, bytes)| bytes).sum()
    }

    /// Keys that are put again and again, as a keyspace stores them: under ascending numbers, of which a sweep deletes the old ones.
    struct Churn {
        random: SmallRng,
        next: u64,
        keys: Vec<Option<u64>>,
    }

    impl Churn {
        fn new() -> Churn {
            Churn { random: SmallRng::seed_from_u64(1), next: 0, keys: vec![None; KEYS] }
        }

        fn live(&self) -> BTreeSet<u64> {
            self.keys.iter().flatten().copied().collect()
        }

        /// One sweep, and what was put before it.
        fn step(&mut self, engine: &FjallEngine) {
            let mut old = Vec::new();
            for number in self.next..self.next + SWEEP {
                // Some are put much more often than others.
                let limit = self.random.random_range(1..=KEYS);
                let at = self.random.random_range(0..limit);
                old.extend(self.keys[at].replace(number));
                let put = |space, value| Change::Put(space, key(number), value);
                engine
                    .write(vec![put(Space::Values, value(number)), put(Space::Versions, key(number))])
                    .unwrap();
            }
            engine.make_tables();
            self.next += SWEEP;
            engine.write(deletions(old)).unwrap();
            engine.make_tables();
            engine.merge_tables();
        }

        fn check(&self, engine: &FjallEngine) {
            let live = self.live();
            for (space, length) in [(Space::Values, VALUE_BYTES as usize), (Space::Versions, 8)] {
                let mut expected = live.iter();
                let visit = &mut |found: &[u8], bytes: &[u8]| {
                    assert_eq!(found, key(*expected.next().unwrap()));
                    assert_eq!((&bytes[..8], bytes.len()), (found, length));
                    ControlFlow::Continue(())
                };
                engine.scan(space, &[], &[0xff; 9], visit).unwrap();
                assert_eq!(expected.next(), None);
            }
            for number in live.into_iter().step_by(7) {
                assert_eq!(engine.get(Space::Values, &key(number)).unwrap(), Some(value(number)));
            }
        }
    }

    /// The disk held nearly all that was ever written, once that was more than fits in fjall's first level.
    #[test]
    fn what_is_deleted_is_given_back_while_it_serves() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let engine = open(path);
        let mut churn = Churn::new();
        let steps = |volumes: u64| volumes * KEYS as u64 / SWEEP;
        (0..steps(6)).for_each(|_| churn.step(&engine));
        let garbage = table_bytes(path);
        assert!(garbage > 3 * LIVE_BYTES, "{garbage}: fjall does it by itself now; is all this needed?");
        let (mut runs, mut most) = (0, 0);
        for _ in steps(6)..steps(20) {
            churn.step(&engine);
            if table_bytes(path) > 2 * LIVE_BYTES + SLACK_BYTES {
                let reclaimed = engine.reclaim().unwrap();
                assert!(!reclaimed.ran_out && reclaimed.after < reclaimed.before, "{reclaimed:?}");
                runs += 1;
                most = most.max(table_bytes(path));
            }
        }
        assert!(most < LIVE_BYTES + SLACK_BYTES, "{most} left");
        // So many that as much is written again as was written.
        assert!((2..=14).contains(&runs), "{runs} runs");
        churn.check(&engine);
        drop(engine);
        let engine = open(path);
        churn.check(&engine);
        // All the rest, which is in memory only when it is asked for, and after a start.
        engine.write(deletions(churn.live())).unwrap();
        drop(engine);
        let engine = open(path);
        engine.reclaim().unwrap();
        assert!(table_bytes(path) < SLACK_BYTES, "{}", table_bytes(path));
    }

    /// It passed for a table that could not be read, and the node went on.
    #[test]
    fn a_disk_that_fails_while_it_rewrites_stops_the_node() {
        let both = |error: fn() -> io::Error| [Error::Io(error()), Error::Storage(LsmError::Io(error()))];
        let is_damage = |error| matches!(rewrite_error(error), EngineError::Damaged(_));
        let eio = || io::Error::from_raw_os_error(Errno::IO.raw_os_error());
        assert!(!both(eio).into_iter().any(is_damage));
        assert!(!both(|| io::ErrorKind::PermissionDenied.into()).into_iter().any(is_damage));
        assert!(!is_damage(Error::Poisoned));
        assert!(both(|| io::ErrorKind::UnexpectedEof.into()).into_iter().all(is_damage));
        assert!(is_damage(Error::Storage(LsmError::InvalidHeader("block"))));
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(io_error(&Error::Storage(LsmError::Io(kind.into()))).is_some_and(is_full));
        }
    }

    /// The node goes on with what it can read, and the scrub finds the rest.
    #[test]
    fn a_damaged_table_ends_the_rewriting_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let engine = open(directory.path());
        let mut churn = Churn::new();
        (0..4).for_each(|_| churn.step(&engine));
        for (path, _) in tables(directory.path()) {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[0x55; 64], 1_000).unwrap();
        }
        let error = engine.reclaim().unwrap_err();
        assert!(matches!(error, EngineError::Damaged(_)), "{error}");
        engine.check().unwrap();
    }

    #[test]
    fn a_view_from_before_keeps_what_it_shows() {
        let directory = tempfile::tempdir().unwrap();
        let engine = open(directory.path());
        let mut churn = Churn::new();
        (0..4).for_each(|_| churn.step(&engine));
        let view = engine.snapshot();
        engine.write(deletions(churn.live())).unwrap();
        engine.reclaim().unwrap();
        for number in churn.live() {
            assert_eq!(engine.get(Space::Values, &key(number)).unwrap(), None);
            assert_eq!(view.get(Space::Values, &key(number)).unwrap(), Some(value(number)));
        }
        drop(view);
        engine.reclaim().unwrap();
        assert!(table_bytes(directory.path()) < 1 << 20, "{}", table_bytes(directory.path()));
    }

    #[test]
    fn what_nothing_was_deleted_from_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let engine = open(directory.path());
        let puts = (0..500).map(|number| Change::Put(Space::Values, key(number), value(number)));
        engine.write(puts.collect()).unwrap();
        engine.make_tables();
        // What the journal holds after a start is not known.
        engine.reclaim().unwrap();
        let tables = |engine: &FjallEngine| {
            let version = engine.spaces.of(Space::Values).tree.current_version();
            let ids: BTreeSet<u64> = version.iter_tables().map(|table| table.id()).collect();
            ids
        };
        let before = tables(&engine);
        assert!(!before.is_empty());
        engine.reclaim().unwrap();
        assert_eq!(tables(&engine), before);
    }
}
