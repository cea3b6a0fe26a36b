//! Random histories with crashes, against a model that is a plain map.
//!
//! The rule (`durable_ack`): after a crash the log holds what some prefix of the appended batches made, no shorter than
//! what was synced. After a mere kill it holds everything.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use hadron_consensus::{GroupId, HardState, Index, LogPosition, ReplicaId, Term};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::tests::entries_after;
use super::{Options, Record, Recovered, RecoveredGroup, Wal, WalError};
use crate::disk::{Disk, MemoryDisk};

pub(super) const DIRECTORY: &str = "/wal";

pub(super) type Model = BTreeMap<GroupId, RecoveredGroup>;

fn apply(model: &mut Model, record: &Record) {
    match record {
        Record::HardState(group, state) => model.entry(*group).or_default().hard_state = *state,
        Record::Entries(group, entries) => {
            let log = model.entry(*group).or_default();
            for entry in entries.iter().filter(|entry| entry.index > log.floor.index) {
                log.entries.retain(|old| old.index < entry.index);
                log.entries.push(entry.clone());
            }
        }
        Record::Floor(group, position) => {
            let log = model.entry(*group).or_default();
            if position.index < log.floor.index {
                return;
            }
            let shared = log.entries.iter().any(|entry| entry.position() == *position);
            if shared || *position == log.floor {
                log.entries.retain(|entry| entry.index > position.index);
            } else {
                log.entries.clear();
            }
            log.floor = *position;
        }
        Record::Forget(group) => {
            model.remove(group);
        }
    }
}

/// A log beside its model.
pub(super) struct World {
    pub(super) random: SmallRng,
    pub(super) disk: MemoryDisk,
    wal: Option<Wal>,
    /// The model after each batch since the last sync; the first is what is durable.
    pub(super) history: Vec<Model>,
    sealed: bool,
    groups: u64,
    torn_tails: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut world = World {
            random: SmallRng::seed_from_u64(seed),
            disk: MemoryDisk::new(),
            wal: None,
            history: vec![Model::new()],
            sealed: false,
            groups: 1 + seed % 5,
            torn_tails: 0,
        };
        let (wal, recovered) = open(&world.disk).unwrap();
        assert_eq!(recovered, Recovered::default());
        world.wal = Some(wal);
        world
    }

    fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().unwrap()
    }

    pub(super) fn model(&self) -> &Model {
        self.history.last().unwrap()
    }

    fn random_record(&mut self, model: &Model) -> Record {
        let group = GroupId(self.random.random_range(0..self.groups));
        let log = model.get(&group).cloned().unwrap_or_default();
        let last = log.entries.last().map_or(log.floor, |entry| entry.position());
        let term = log.hard_state.term.0;
        let count = self.random.random_range(1..4);
        let size = if self.random.random_ratio(1, 10) { 3000 } else { self.random.random_range(0..300) };
        match self.random.random_range(0..20) {
            0..10 => Record::Entries(group, entries_after(group, last, term, count, size)),
            10..12 => {
                let state = HardState {
                    term: Term(term + 1),
                    voted_for: self.random.random_bool(0.5).then_some(ReplicaId(5)),
                    commit: last.index,
                };
                Record::HardState(group, state)
            }
            12..14 => {
                let previous =
                    log.entries.choose(&mut self.random).map_or(log.floor, |entry| entry.position());
                Record::Entries(group, entries_after(group, previous, term + 1, count, size))
            }
            14..17 => {
                let position =
                    log.entries.choose(&mut self.random).map_or(log.floor, |entry| entry.position());
                Record::Floor(group, position)
            }
            17 => Record::Entries(group, log.entries),
            18 if self.random.random_ratio(1, 3) => {
                let index = Index(last.index.0 + self.random.random_range(0..10));
                Record::Floor(group, LogPosition { term: Term(term + 2), index, checksum: 7 })
            }
            19 if self.random.random_ratio(1, 5) => Record::Forget(group),
            _ => Record::Floor(group, last),
        }
    }

    pub(super) fn append(&mut self) {
        let mut model = self.model().clone();
        let mut records = Vec::new();
        for _ in 0..self.random.random_range(1..4) {
            let record = self.random_record(&model);
            apply(&mut model, &record);
            records.push(record);
        }
        self.wal().append(&records).unwrap();
        self.history.push(model);
        self.sealed = false;
    }

    pub(super) fn sync(&mut self) {
        self.wal().sync().unwrap();
        self.history.drain(..self.history.len() - 1);
    }

    fn seal(&mut self) {
        self.wal().seal().unwrap();
        self.history.drain(..self.history.len() - 1);
        self.sealed = true;
    }

    fn rewrite_pinning(&mut self) {
        for group in self.wal().pinning(40 << 10) {
            let entries = self.model()[&group].entries.clone();
            self.wal().append(&[Record::Entries(group, entries)]).unwrap();
            self.history.push(self.model().clone());
        }
    }

    /// Opens the disk after a crash; what it holds is what goes on from here.
    fn restart(&mut self, recovered: Recovered) {
        self.check(&recovered);
        self.torn_tails += u64::from(recovered.torn_tail.is_some());
        self.history = vec![recovered.groups];
    }

    fn check(&self, recovered: &Recovered) {
        assert!(
            self.history.contains(&recovered.groups),
            "{:#?}\nis none of\n{:#?}",
            recovered.groups,
            self.history
        );
    }

    /// Many ways in which the machine could crash right now.
    fn check_crash_images(&mut self, count: u64) {
        for _ in 0..count {
            let image = self.disk.fork();
            image.crash(self.random.random());
            let (wal, recovered) = open(&image).unwrap();
            self.check(&recovered);
            drop(wal);
            // What was recovered is durable.
            image.crash(self.random.random());
            let (_, again) = open(&image).unwrap();
            assert_eq!(again.groups, recovered.groups);
        }
    }

    /// A bit that flips at rest is noticed, or does not matter.
    fn check_bit_flip(&mut self) {
        let image = self.disk.fork();
        let names = image.list(Path::new(DIRECTORY)).unwrap();
        let name = names.choose(&mut self.random).unwrap();
        let path = Path::new(DIRECTORY).join(name);
        let size = image.open(&path).unwrap().size().unwrap();
        if size == 0 {
            return;
        }
        // Most of what is written is at the beginning.
        let bound = if self.random.random_bool(0.5) { size } else { size.min(6000) };
        image.flip_bit(&path, self.random.random_range(0..bound), self.random.random_range(0..8)).unwrap();
        match open(&image) {
            Err(error) => assert!(matches!(error, WalError::Damaged { .. }), "{error}"),
            Ok((_, recovered)) if recovered.groups == *self.model() => {}
            Ok((_, recovered)) => {
                assert!(!self.sealed, "sealed, and yet changed by a flip in {name}");
                assert!(recovered.torn_tail.is_some(), "cut silently by a flip in {name}");
                self.check(&recovered);
            }
        }
    }
}

pub(super) fn open(disk: &MemoryDisk) -> Result<(Wal, Recovered), WalError> {
    let options = Options { segment_bytes: 16 << 10, log_id: 77, ballast_bytes: 0 };
    Wal::open(Arc::new(disk.clone()), Path::new(DIRECTORY), options)
}

#[test]
fn crashes_lose_nothing_that_was_synced() {
    let mut torn_tails = 0;
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..80 {
            match world.random.random_range(0..20) {
                0..10 => world.append(),
                10..15 => world.sync(),
                15 => world.wal().preparer().run_once(),
                16 => world.rewrite_pinning(),
                17 => world.check_crash_images(3),
                18 => {
                    drop(world.wal.take());
                    let seed = world.random.random();
                    world.disk.crash(seed);
                    let (wal, recovered) = open(&world.disk).unwrap();
                    world.wal = Some(wal);
                    world.restart(recovered);
                }
                _ => {
                    drop(world.wal.take());
                    world.disk.kill();
                    let (wal, recovered) = open(&world.disk).unwrap();
                    world.wal = Some(wal);
                    assert_eq!(recovered.groups, *world.model(), "a kill loses nothing");
                    world.restart(recovered);
                }
            }
        }
        world.sync();
        world.check_crash_images(3);
        torn_tails += world.torn_tails;
    }
    assert!(torn_tails > 10, "the crashes of this test are too kind: {torn_tails}");
}

/// A crash between any two operations of the disk, in particular while segments are made, renamed and removed.
#[test]
fn a_crash_at_any_operation_leaves_a_log_that_opens() {
    for seed in 0..40 {
        let mut world = World::new(1000 + seed);
        for _ in 0..30 {
            world.append();
            if world.random.random_bool(0.5) {
                world.sync();
            }
        }
        for after in 0..12 {
            let image = world.disk.fork();
            let (mut wal, recovered) = open(&image).unwrap();
            let mut history = vec![recovered.groups.clone()];
            image.set_fault(Some(crate::disk::Fault {
                operation: None,
                after,
                kind: std::io::ErrorKind::Other,
                lasting: true,
            }));
            let mut model = recovered.groups;
            loop {
                let record = world.random_record(&model);
                apply(&mut model, &record);
                history.push(model.clone());
                if wal.append(&[record]).is_err() {
                    break;
                }
                if wal.sync().is_err() {
                    break;
                }
                history.drain(..history.len() - 1);
            }
            drop(wal);
            image.crash(world.random.random());
            let (_, recovered) = open(&image).unwrap();
            assert!(history.contains(&recovered.groups), "seed {seed}, after {after}");
        }
    }
}

#[test]
fn bits_that_flip_at_rest_are_noticed() {
    for seed in 0..40 {
        let mut world = World::new(2000 + seed);
        for step in 0..60 {
            world.append();
            if world.random.random_bool(0.5) {
                world.sync();
            }
            if step % 10 == 9 {
                world.sync();
                // Flips are looked at one batch at a time: what precedes the last batch must never be lost.
                world.append();
                world.wal().sync().unwrap();
                for _ in 0..10 {
                    world.check_bit_flip();
                }
                world.seal();
                for _ in 0..10 {
                    world.check_bit_flip();
                }
            }
        }
    }
}
