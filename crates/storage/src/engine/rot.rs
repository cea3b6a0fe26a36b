//! Bits that flip at rest in the real engine's files: whatever is read must be what was written, or an error.
//!
//! The journal is the exception: a flip in the part that is in no table yet may look like a torn end, and the engine then
//! holds fewer batches, whole ones. A node sees that from the floor of its log.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::crash_images::{engine_with_a_past, files, image, open, tables, write};
use super::{Change, Engine, EngineError, FjallEngine, FjallOptions, Read, Space};

/// Flips in each file.
const FLIPS: usize = 24;
/// At the end of a table are the places of all its parts.
const PLACES_BYTES: u64 = 256;
const BATCHES: u64 = 200;
/// Batches since the engine was opened again, which are in the journal only.
const JOURNALED: u64 = 20;
const WRITTEN: u64 = BATCHES + JOURNALED;

/// Everything in two spaces, for comparison, and how many batches that is.
fn contents(engine: &impl Read) -> Result<(u64, Vec<Vec<u8>>), EngineError> {
    let mut found = Vec::new();
    let mut batches = 0;
    for space in [Space::Values, Space::State] {
        engine.scan(space, &[], &[0xff; 9], &mut |key, value| {
            batches += u64::from(space == Space::Values);
            found.extend([key.to_vec(), value.to_vec()]);
            ControlFlow::Continue(())
        })?;
    }
    Ok((batches, found))
}

#[test]
fn a_flipped_bit_is_noticed_or_means_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine_with_a_past(directory.path(), BATCHES);
    (BATCHES + 1..=WRITTEN).for_each(|number| write(&engine, number, 1000));
    engine.persist().unwrap();
    let pristine = image(directory.path());
    drop(engine);
    let whole = contents(&open(pristine.path()).unwrap()).unwrap();
    assert_eq!(whole.0, WRITTEN);
    let mut random = SmallRng::seed_from_u64(1);
    let (mut noticed, mut meaningless) = (0, 0);
    for (path, length, _) in files(pristine.path()).into_iter().filter(|(_, length, _)| *length > 0) {
        let from = [0, length.saturating_sub(PLACES_BYTES)];
        for from in from.into_iter().flat_map(|from| [from; FLIPS]) {
            let (at, bit) = (random.random_range(from..length), random.random_range(0..8));
            let damaged = image(pristine.path());
            let name = path.strip_prefix(pristine.path()).unwrap();
            flip(&damaged.path().join(name), at, bit);
            match open(damaged.path()).and_then(|engine| contents(&engine)) {
                Err(error) => {
                    let advice = ["rebuild this member", "a format that this version cannot read"];
                    let error = error.to_string();
                    assert!(
                        advice.iter().any(|advice| error.contains(advice)),
                        "{}, byte {at}, bit {bit}: {error}",
                        name.display()
                    );
                    noticed += 1;
                }
                Ok(found) if found == whole => meaningless += 1,
                Ok((batches, _)) => {
                    let is_journal = name.extension().is_some_and(|extension| extension == "jnl");
                    assert!(
                        is_journal && batches < WRITTEN,
                        "{}, byte {at}, bit {bit}: served",
                        name.display()
                    );
                }
            }
        }
    }
    assert!(noticed > meaningless, "{noticed} noticed, {meaningless} without meaning");
}

/// It said that an fsync had failed, and nothing else.
#[test]
fn an_engine_that_cannot_merge_damaged_tables_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let options = FjallOptions { cache_bytes: 1 << 20, memtable_bytes: 256 << 10, ..FjallOptions::default() };
    let engine = FjallEngine::open(directory.path(), &options).unwrap();
    let mut flipped = BTreeSet::new();
    // The same keys again and again, so that tables overlap.
    let error = (0..20_000_u64).find_map(|number| {
        let (key, value) = (Bytes::from(vec![number as u8 % 10]), Bytes::from(vec![number as u8; 20_000]));
        let written = engine.write(vec![Change::Put(Space::Values, key, value)]);
        for (path, _) in tables(directory.path()).filter(|(path, _)| flipped.insert(path.clone())) {
            // It may be gone again.
            let _ = try_flip(&path, 1_000, 1);
        }
        written.err()
    });
    let error = error.unwrap().to_string();
    assert!(error.contains("rebuild this member from the others"), "{error}");
    // Who writes nothing can see it too.
    assert_eq!(engine.check().unwrap_err().to_string(), error);
}

fn flip(path: &Path, at: u64, bit: u32) {
    try_flip(path, at, bit).unwrap();
}

fn try_flip(path: &Path, at: u64, bit: u32) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at)
}
