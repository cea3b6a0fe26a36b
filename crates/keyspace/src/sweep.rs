//! Sweep: what compaction made unreachable, and what former generations left, is deleted bit by bit.
//!
//! A version is removed once the engine durably knows that it is compacted (the mark was flushed before it) and no pinned
//! reader is below the mark. Memory and disk lose it together: the batch that is returned is written next, in order.

use std::ops::ControlFlow;

use bytes::Bytes;
use hadron_storage::engine::{Batch, Change, Engine, EngineError, Space};

use crate::error::OpenError;
use crate::keyspace::Keyspace;
use crate::record;

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
        let mut dropped = Dropped::before(engine, group, current)?;
        dropped.extend(Dropped::stretches(engine, group, (current + 1, highest + 1))?);
        Ok(dropped)
    }

    /// What may be left of generations before `current`. Later ones may be in the hands of an import.
    pub(crate) fn before(engine: &dyn Engine, group: u64, current: u32) -> Result<Vec<Dropped>, OpenError> {
        Ok(Dropped::stretches(engine, group, (0, current))?)
    }

    /// What the engine holds of the generations from the first to before the second.
    pub(crate) fn stretches(
        engine: &dyn Engine,
        group: u64,
        (first, end): (u32, u32),
    ) -> Result<Vec<Dropped>, EngineError> {
        let mut dropped = Vec::new();
        for space in [Space::Versions, Space::Values, Space::Tables] {
            let (from, to) = record::generation_bounds(group, first, end);
            if first < end && !is_nothing_there(engine, space, &from, &to)? {
                dropped.push(Dropped { space, from, to });
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

    /// Deletions of up to `limit` keys from where the last call ended.
    pub(crate) fn step(&mut self, engine: &dyn Engine, limit: usize) -> Result<Batch, EngineError> {
        let mut batch = Batch::new();
        engine.scan(self.space, &self.from, &self.to, &mut |key, _| {
            batch.push(Change::Delete(self.space, Bytes::copy_from_slice(key)));
            if batch.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
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
    ///
    /// An engine that fails here is left to fail at the next write.
    pub fn take_sweep(&self, limit: usize) -> Option<Batch> {
        let limit = limit.max(1);
        self.sweep_versions(limit).or_else(|| self.sweep_dropped(limit))
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

    fn sweep_dropped(&self, limit: usize) -> Option<Batch> {
        let current = self.state.read().generation;
        let mut dropped = self.dropped.lock();
        if dropped.is_empty() || self.pins.any_but(current) || self.tombstone_pins.any_but(current) {
            return None;
        }
        while let Some(last) = dropped.last_mut() {
            match last.step(self.engine.as_ref(), limit) {
                Ok(batch) if batch.is_empty() => dropped.pop(),
                Ok(batch) => return Some(batch),
                // A replica was rebuilt because of that. What is left of the former one takes room and is in nobody's way.
                Err(EngineError::Damaged(_)) => dropped.pop(),
                Err(_) => return None,
            };
        }
        None
    }
}
