//! Sweep: what compaction made unreachable, and what former generations left, is deleted bit by bit.
//!
//! A version is removed once the engine durably knows that it is compacted (the mark was flushed before it) and no pinned
//! reader is below the mark. Memory and disk lose it together: the batch that is returned is written next, in order.
//!
//! What there is of former generations is not in memory. It is read to be deleted, values with their keys, by the thread that writes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hadron_storage::engine::{Batch, Change, Engine, EngineError, Space};
use parking_lot::Mutex;

use crate::error::OpenError;
use crate::keyspace::Keyspace;
use crate::record;

/// Bytes that are read at once to delete what they are of, about.
const STEP_BYTES: usize = 1 << 20;

/// Physical deletions that are due.
pub struct Sweep(Due);

enum Due {
    /// Of what compaction made unreachable.
    Versions(Batch),
    /// Of what former generations left.
    Former { engine: Arc<dyn Engine>, former: Arc<Former>, limit: usize },
}

impl std::fmt::Debug for Sweep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sweep").finish_non_exhaustive()
    }
}

impl Sweep {
    /// The deletions, to be written. May read the engine for it: not for a thread on which others wait.
    ///
    /// An engine that fails here is asked again later; one that goes on failing fails at the next write.
    pub fn batch(self) -> Batch {
        match self.0 {
            Due::Versions(batch) => batch,
            Due::Former { engine, former, limit } => former.step(engine.as_ref(), limit),
        }
    }
}

/// What former generations left.
#[derive(Debug, Default)]
pub(crate) struct Former {
    stretches: Mutex<Vec<Dropped>>,
    /// The engine failed, and nobody asked since.
    failed: AtomicBool,
}

impl Former {
    pub(crate) fn new(stretches: Vec<Dropped>) -> Arc<Former> {
        Arc::new(Former { stretches: Mutex::new(stretches), failed: AtomicBool::new(false) })
    }

    /// These too are to be deleted.
    pub(crate) fn add(&self, stretches: impl IntoIterator<Item = Dropped>) {
        self.stretches.lock().extend(stretches);
    }

    /// Some deletions; none at the end.
    fn step(&self, engine: &dyn Engine, limit: usize) -> Batch {
        loop {
            // Nobody waits for the lock while the engine is read.
            let Some(mut last) = self.stretches.lock().pop() else { return Batch::new() };
            match last.step(engine, limit) {
                Ok(batch) if batch.is_empty() => {}
                Ok(batch) => {
                    self.add([last]);
                    return batch;
                }
                // A replica was rebuilt because of that. What is left of the former one takes room and is in nobody's way.
                Err(EngineError::Damaged(_)) => {}
                Err(_) => {
                    self.add([last]);
                    self.failed.store(true, Ordering::Relaxed);
                    return Batch::new();
                }
            }
        }
    }
}

/// A stretch of one space that belongs to no living generation.
#[derive(Debug)]
pub(crate) struct Dropped {
    space: Space,
    from: Bytes,
    to: Bytes,
}

impl Dropped {
    /// Everything in `space` from one key to before another.
    pub(crate) fn new(space: Space, from: Bytes, to: Bytes) -> Dropped {
        Dropped { space, from, to }
    }

    /// What may be left of generations other than `current`, up to `highest`: older ones, and imports that were begun and not
    /// finished.
    pub(crate) fn all_but(
        engine: &dyn Engine,
        group: u64,
        current: u32,
        highest: u32,
    ) -> Result<Vec<Dropped>, OpenError> {
        let mut dropped = Dropped::stretches(engine, group, (0, current))?;
        dropped.extend(Dropped::stretches(engine, group, (current + 1, highest + 1))?);
        Ok(dropped)
    }

    /// The generations from the first to before the second, whatever there is of them.
    pub(crate) fn generations(group: u64, (first, end): (u32, u32)) -> [Dropped; 3] {
        let (from, to) = record::generation_bounds(group, first, end);
        [Space::Versions, Space::Values, Space::Tables]
            .map(|space| Dropped::new(space, from.clone(), to.clone()))
    }

    /// What the engine holds of the generations from the first to before the second.
    pub(crate) fn stretches(
        engine: &dyn Engine,
        group: u64,
        (first, end): (u32, u32),
    ) -> Result<Vec<Dropped>, EngineError> {
        let mut dropped = Vec::new();
        for stretch in Dropped::generations(group, (first, end)) {
            if first < end && !is_nothing_there(engine, stretch.space, &stretch.from, &stretch.to)? {
                dropped.push(stretch);
            }
        }
        Ok(dropped)
    }

    /// Deletes all of it, `limit` keys at once.
    pub(crate) fn delete(mut self, engine: &dyn Engine, limit: usize) -> Result<(), EngineError> {
        loop {
            let batch = self.step(engine, limit)?;
            if batch.is_empty() {
                return Ok(());
            }
            engine.write(batch)?;
        }
    }

    /// Deletions of up to `limit` keys from where the last call ended, fewer if there is much to read for them.
    pub(crate) fn step(&mut self, engine: &dyn Engine, limit: usize) -> Result<Batch, EngineError> {
        let (mut batch, mut bytes) = (Batch::new(), 0);
        engine.scan(self.space, &self.from, &self.to, &mut |key, value| {
            batch.push(Change::Delete(self.space, Bytes::copy_from_slice(key)));
            bytes += key.len() + value.len();
            let is_enough = batch.len() >= limit || bytes >= STEP_BYTES;
            if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(Change::Delete(_, last)) = batch.last() {
            self.from = [last.as_ref(), &[0]].concat().into();
        }
        Ok(batch)
    }
}

/// What cannot be read is there.
fn is_nothing_there(engine: &dyn Engine, space: Space, from: &[u8], to: &[u8]) -> Result<bool, EngineError> {
    let mut is_empty = true;
    let scanned = engine.scan(space, from, to, &mut |_, _| {
        is_empty = false;
        ControlFlow::Break(())
    });
    match scanned {
        Err(EngineError::Damaged(_)) => Ok(false),
        scanned => scanned.map(|()| is_empty),
    }
}

impl Keyspace {
    /// Deletions for up to `limit` versions that nobody can reach any more; `None` if there are none now. Write the batch
    /// before asking again: the oldest versions of a key must go first. There may be none in it, and more to come.
    pub fn take_sweep(&self, limit: usize) -> Option<Sweep> {
        let limit = limit.max(1);
        let due = self.sweep_versions(limit).map(Due::Versions).or_else(|| self.sweep_former(limit));
        due.map(Sweep)
    }

    /// Whether something of former generations is left, which is not deleted before those who read it are done.
    pub fn has_former(&self) -> bool {
        !self.former.stretches.lock().is_empty()
    }

    fn sweep_versions(&self, limit: usize) -> Option<Batch> {
        let mut state = self.state.write();
        let mut compacted = state.flushed.compact_revision;
        if let Some(pinned) = self.pins.oldest(state.generation) {
            compacted = compacted.min(pinned);
        }
        let tombstones_until = self.tombstone_pins.oldest(state.generation).unwrap_or(i64::MAX);
        let (removed, is_over) = state.index.sweep(compacted, tombstones_until, limit);
        let generation = state.generation;
        drop(state);
        let mut batch = Batch::with_capacity(2 * removed.len());
        for place in &removed {
            let key = record::version_key(self.group, generation, *place);
            batch.push(Change::Delete(Space::Versions, key.clone()));
            batch.push(Change::Delete(Space::Values, key));
        }
        (!batch.is_empty() || !is_over).then_some(batch)
    }

    fn sweep_former(&self, limit: usize) -> Option<Due> {
        let current = self.state.read().generation;
        if !self.has_former()
            || self.pins.any_but(current)
            || self.tombstone_pins.any_but(current)
            || self.former.failed.swap(false, Ordering::Relaxed)
        {
            return None;
        }
        Some(Due::Former { engine: Arc::clone(&self.engine), former: Arc::clone(&self.former), limit })
    }
}
