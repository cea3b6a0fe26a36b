//! The files of the real engine as a crash may leave them: at every persist, and with the tail of its journal cut, lost or
//! torn. An image must open with whole batches, in order, and with all that was persisted.
//!
//! With its journal cut *below* the last persist, which no crash does but a disk that lies, fjall opens all the same and
//! has silently lost batches. That is shown here too, because it is the reason why a node compares the index in the
//! engine with the floor of its log before it serves.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::{Change, Engine, EngineError, FjallEngine, FjallOptions, Read, Space};

const SECTOR: u64 = 512;
const APPLIED: &[u8] = b"applied";

/// Opens an engine that makes tables only when it is told to: before it does, it fsyncs the journal, of which nothing can
/// be torn off then.
pub(super) fn open(directory: &Path) -> Result<FjallEngine, EngineError> {
    let options = FjallOptions { cache_bytes: 1 << 20, memtable_bytes: 64 << 20, ..FjallOptions::default() };
    FjallEngine::open(directory, &options)
}

/// Writes batch `number`: the number in one space, and a value of its own in another.
pub(super) fn write(engine: &FjallEngine, number: u64, value_bytes: usize) {
    let value = Bytes::from(vec![number as u8; value_bytes]);
    let number = Bytes::copy_from_slice(&number.to_be_bytes());
    engine
        .write(vec![
            Change::Put(Space::Values, number.clone(), value),
            Change::Put(Space::State, APPLIED.into(), number),
        ])
        .unwrap();
}

/// How many batches the engine holds; they must be the first ones, and whole.
pub(super) fn batches(engine: &FjallEngine) -> u64 {
    let applied = engine.get(Space::State, APPLIED).unwrap();
    let applied = applied.map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().unwrap()));
    let mut found: u64 = 0;
    let visit = &mut |key: &[u8], value: &[u8]| {
        found += 1;
        assert_eq!(key, found.to_be_bytes());
        assert!(value.iter().all(|byte| *byte == found as u8));
        ControlFlow::Continue(())
    };
    engine.scan(Space::Values, &[], &[0xff; 9], visit).unwrap();
    assert_eq!(found, applied, "a batch is there in part");
    applied
}

/// Every file below `directory` with its length and last change.
pub(super) fn files(directory: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // It may be gone again, which the next look shows.
        match fs::metadata(&path) {
            Ok(data) if data.is_dir() => found.extend(files(&path)),
            Ok(data) => found.push((path, data.len(), data.modified().unwrap())),
            Err(_) => {}
        }
    }
    found.sort();
    found
}

/// The files of tables below `directory`, with their lengths.
pub(super) fn tables(directory: &Path) -> impl Iterator<Item = (PathBuf, u64)> {
    let is_table = |path: &Path| path.parent().is_some_and(|parent| parent.ends_with("tables"));
    let all = files(directory).into_iter().map(|(path, bytes, _)| (path, bytes));
    all.filter(move |(path, _)| is_table(path))
}

/// A copy of `directory` while nothing changes in it, so that it is what a crash at that moment would leave.
pub(super) fn image(directory: &Path) -> TempDir {
    loop {
        let before = files(directory);
        let image = tempfile::tempdir().unwrap();
        let copied = before.iter().all(|(path, ..)| {
            let to = image.path().join(path.strip_prefix(directory).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(path, to).is_ok()
        });
        if copied && files(directory) == before {
            return image;
        }
    }
}

/// The newest journal.
fn journal(directory: &Path) -> PathBuf {
    let number = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.strip_suffix(".jnl").and_then(|number| number.parse::<u64>().ok())
    };
    let paths = files(directory).into_iter().map(|(path, ..)| path);
    paths.filter(|path| number(path).is_some()).max_by_key(number).unwrap()
}

/// An engine with tables and, since it was opened again, a journal that is as long as what is in it.
pub(super) fn engine_with_a_past(directory: &Path, batches_before: u64) -> FjallEngine {
    let engine = open(directory).unwrap();
    for number in 1..=batches_before {
        write(&engine, number, 10_000);
        if number % 100 == 0 {
            engine.make_tables();
        }
    }
    engine.persist().unwrap();
    drop(engine);
    let engine = open(directory).unwrap();
    assert_eq!(batches(&engine), batches_before);
    engine
}

/// What can happen to the end of a file that was not synced.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// It ends early.
    Cut,
    /// It has its length, but zeros from there on.
    Zeros,
    /// One sector did not arrive.
    Hole,
}

fn damage(journal: &Path, at: u64, how: Damage) {
    let file = File::options().write(true).open(journal).unwrap();
    let length = file.metadata().unwrap().len();
    match how {
        Damage::Cut => file.set_len(at).unwrap(),
        Damage::Zeros => {
            file.set_len(at).unwrap();
            file.set_len(length).unwrap();
        }
        Damage::Hole => {
            let end = (at + 1).next_multiple_of(SECTOR).min(length);
            file.write_all_at(&vec![0; (end - at) as usize], at).unwrap();
        }
    }
}

#[test]
fn an_engine_opens_at_every_persist_and_with_its_journal_torn_behind_it() {
    let mut random = SmallRng::seed_from_u64(1);
    for before in [0, 400] {
        let directory = tempfile::tempdir().unwrap();
        let engine = engine_with_a_past(directory.path(), before);
        let (mut written, mut torn) = (before, 0);
        for _ in 0..12 {
            for _ in 0..random.random_range(1..6) {
                written += 1;
                write(&engine, written, random.random_range(0..8_000));
            }
            engine.persist().unwrap();
            let persisted = written;
            let whole = image(directory.path());
            let end = fs::metadata(journal(whole.path())).unwrap().len();
            assert_eq!(batches(&open(whole.path()).unwrap()), persisted);
            for _ in 0..random.random_range(2..6) {
                written += 1;
                write(&engine, written, random.random_range(0..8_000));
            }
            torn += check_torn_tails(directory.path(), end, (persisted, written), &mut random);
        }
        assert!(torn > 20, "only {torn} images had a torn tail");
    }
}

/// Tears the journal behind `end`, where it was persisted. Returns how many images lacked a batch.
fn check_torn_tails(
    directory: &Path,
    end: u64,
    (persisted, written): (u64, u64),
    random: &mut SmallRng,
) -> usize {
    let length = fs::metadata(journal(directory)).unwrap().len();
    let sectors: Vec<u64> = (end.next_multiple_of(SECTOR)..length).step_by(SECTOR as usize).collect();
    // Every image costs an opening, so some of the cuts in each round.
    let mut cuts: Vec<u64> = sectors.iter().copied().skip(random.random_range(0..8)).step_by(8).collect();
    cuts.push(end);
    cuts.extend((0..2).filter(|_| length > end).map(|_| random.random_range(end..length)));
    let mut lacking = 0;
    for at in cuts {
        let how = [Damage::Cut, Damage::Zeros, Damage::Hole][random.random_range(0..3)];
        let torn = image(directory);
        damage(&journal(torn.path()), at, how);
        let found = open(torn.path()).map(|engine| batches(&engine));
        let found = found.unwrap_or_else(|error| panic!("{how:?} at {at} of {end}..{length}: {error}"));
        assert!(
            (persisted..=written).contains(&found),
            "{how:?} at {at} of {end}..{length}: {found} batches"
        );
        lacking += usize::from(found < written);
    }
    lacking
}

#[test]
fn a_journal_cut_below_the_last_persist_loses_whole_batches_from_its_end_or_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine_with_a_past(directory.path(), 0);
    (1..=20).for_each(|number| write(&engine, number, 3_000));
    engine.persist().unwrap();
    drop(engine);
    let length = fs::metadata(journal(directory.path())).unwrap().len();
    let mut silently_lost = 0;
    for at in (0..length).step_by(7 * SECTOR as usize + 11) {
        for how in [Damage::Cut, Damage::Zeros, Damage::Hole] {
            let damaged = image(directory.path());
            damage(&journal(damaged.path()), at, how);
            // Refusing is right; otherwise it must at least be a prefix.
            if let Ok(engine) = open(damaged.path()) {
                silently_lost += usize::from(batches(&engine) < 20);
            }
        }
    }
    assert!(silently_lost > 0, "fjall notices it by now: say so in engine/fjall.rs");
}
