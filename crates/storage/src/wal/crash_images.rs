//! The files of a log as a crash may leave them: at every sync, and with the last write cut at every sector and at points
//! in between. Each image must open, with everything that was synced and nothing but what was written.
//!
//! [`super::model_tests`] has crashes of other kinds: what was not synced lost, torn and reordered at random.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::Rng;

use super::format::FIRST_BATCH;
use super::model_tests::{DIRECTORY, Model, World, open};
use crate::disk::{Disk, MemoryDisk, read_all};

const SECTOR: usize = 512;
/// Cuts that are at no sector's beginning, for each write.
const RANDOM_CUTS: usize = 4;

fn segments(disk: &MemoryDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let names = disk.list(Path::new(DIRECTORY)).unwrap();
    let paths =
        names.iter().filter(|name| name.ends_with(".wal")).map(|name| Path::new(DIRECTORY).join(name));
    paths.map(|path| (path.clone(), read_all(&*disk.open(&path).unwrap()).unwrap())).collect()
}

/// What a write changed: in which file, from where on, and what was there before and after.
struct Change {
    path: PathBuf,
    offset: usize,
    before: Vec<u8>,
    length: usize,
}

/// The one change that `before` and `after` differ in.
fn change(before: &MemoryDisk, after: &MemoryDisk) -> Change {
    let (old, new) = (segments(before), segments(after));
    let differs = |path: &&PathBuf| old.get(*path) != new.get(*path);
    let path = new.keys().rfind(differs).expect("something was written").clone();
    let contents = &new[&path];
    // A new segment has its header before it has its name, and nothing of use behind it.
    let blank = vec![0; contents.len()];
    let past = old.get(&path).unwrap_or(&blank);
    let header = if old.contains_key(&path) { 0 } else { FIRST_BATCH as usize };
    let differing = |at: &usize| contents[*at] != past[*at];
    let first = (header..contents.len()).find(differing).expect("a batch is not blank");
    let last = (header..contents.len()).rfind(differing).expect("a batch is not blank");
    Change { path, offset: first, before: past[first..=last].to_vec(), length: last + 1 - first }
}

/// The disk after a write of which only the first `kept` bytes arrived.
fn cut(after: &MemoryDisk, change: &Change, kept: usize) -> MemoryDisk {
    let image = after.fork();
    let file = image.open(&change.path).unwrap();
    file.write_at((change.offset + kept) as u64, &change.before[kept..]).unwrap();
    image.kill();
    image
}

fn recovered(image: &MemoryDisk) -> Model {
    open(image).unwrap().1.groups
}

/// Every sector boundary inside the write, its ends, and some points in between.
fn cuts(world: &mut World, change: &Change) -> Vec<usize> {
    let end = change.offset + change.length;
    let boundaries = (change.offset.next_multiple_of(SECTOR)..end).step_by(SECTOR);
    let mut cuts: Vec<usize> = boundaries.map(|at| at - change.offset).collect();
    cuts.extend([0, change.length]);
    cuts.extend((0..RANDOM_CUTS).map(|_| world.random.random_range(0..change.length)));
    cuts
}

#[test]
fn a_log_opens_at_every_sync_and_with_its_last_write_cut_anywhere() {
    let (mut images, mut torn) = (0, 0);
    for seed in 0..12 {
        let mut world = World::new(3000 + seed);
        for _ in 0..40 {
            let before = world.disk.fork();
            world.append();
            let change = change(&before, &world.disk);
            let [old, new] = world.history.last_chunk().unwrap().clone();
            for kept in cuts(&mut world, &change) {
                let found = recovered(&cut(&world.disk, &change, kept));
                assert!(found == old || found == new, "seed {seed}: neither without nor with, cut at {kept}");
                assert!(kept < change.length || found == new, "seed {seed}: whole, and yet not there");
                images += 1;
                torn += usize::from(found == old && old != new);
            }
            if world.random.random_bool(0.6) {
                world.sync();
                let image = world.disk.fork();
                image.crash(world.random.random());
                assert_eq!(&recovered(&image), world.model(), "seed {seed}: synced, and yet not there");
            }
        }
    }
    assert!(torn > 500 && images - torn > 500, "{torn} of {images} images lacked the last write");
}
