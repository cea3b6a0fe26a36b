//! The simulator's engine: ordered maps in memory that remember how to forget what was not persisted.
//!
//! It is deterministic, and honest about the one thing that matters: after [`ModelEngine::crash`] some prefix of the
//! written batches is left, never less than what the last [`Engine::persist`] covered. It stores nothing on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Batch, Change, Engine, EngineError, Read, Space, Visit, check_sizes};

type Map = BTreeMap<Bytes, Bytes>;

/// An [`Engine`] in memory. A clone is an independent copy of the whole engine, unpersisted batches included.
///
/// Copies are made on write: a snapshot costs nothing, the first write while it lives copies the touched space.
#[derive(Default)]
pub struct ModelEngine {
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    spaces: Spaces,
    /// What undoes each batch written since the last persist, oldest first.
    undo: Vec<Batch>,
    /// While true, `write` and `persist` fail and change nothing.
    failing: bool,
}

#[derive(Clone, Default)]
struct Spaces {
    maps: [Arc<Map>; Space::ALL.len()],
    /// Records whose checksum does not fit any more.
    damaged: Arc<BTreeSet<(Space, Bytes)>>,
}

impl ModelEngine {
    /// An empty engine.
    pub fn new() -> ModelEngine {
        ModelEngine::default()
    }

    /// How many batches a crash could lose at most.
    pub fn unpersisted(&self) -> usize {
        self.state.lock().undo.len()
    }

    /// The machine stops: the batches written since the last persist are lost, except for the oldest `keep` of them (all
    /// are kept when there are no more than that). What is left is durable.
    pub fn crash(&self, keep: usize) {
        let mut state = self.state.lock();
        state.lose_all_but(keep);
        state.undo.clear();
    }

    /// The process stops, the machine does not: as in a crash, batches that were still in the process's own buffers are
    /// lost. What is left can be read and is no more durable than before.
    pub fn kill(&self, keep: usize) {
        self.state.lock().lose_all_but(keep);
    }

    /// A bit of this record flips at rest: whoever reads it is told that it is damaged, until it is written again.
    pub fn damage(&self, space: Space, key: Bytes) {
        Arc::make_mut(&mut self.state.lock().spaces.damaged).insert((space, key));
    }

    /// Makes every later write and persist fail, or work again.
    pub fn set_failing(&self, failing: bool) {
        self.state.lock().failing = failing;
    }
}

impl Clone for ModelEngine {
    fn clone(&self) -> ModelEngine {
        ModelEngine { state: Mutex::new(self.state.lock().clone()) }
    }
}

impl State {
    fn lose_all_but(&mut self, keep: usize) {
        while self.undo.len() > keep {
            let Some(undo) = self.undo.pop() else { break };
            self.spaces.apply(undo);
        }
    }

    fn usable(&self) -> Result<(), EngineError> {
        if self.failing { Err(EngineError::Io("made to fail".into())) } else { Ok(()) }
    }
}

impl Spaces {
    fn check(&self, space: Space, key: &Bytes) -> Result<(), EngineError> {
        match !self.damaged.is_empty() && self.damaged.contains(&(space, key.clone())) {
            true => Err(EngineError::Damaged(format!("a record of {space:?} does not fit its checksum"))),
            false => Ok(()),
        }
    }

    /// Applies `batch` and returns the batch that undoes it.
    fn apply(&mut self, batch: Batch) -> Batch {
        let mut undo: Batch = batch.into_iter().map(|change| self.apply_change(change)).collect();
        undo.reverse();
        undo
    }

    fn apply_change(&mut self, change: Change) -> Change {
        let (space, key, value) = match change {
            Change::Put(space, key, value) => (space, key, Some(value)),
            Change::Delete(space, key) => (space, key, None),
        };
        let map = Arc::make_mut(&mut self.maps[space as usize]);
        if !self.damaged.is_empty() {
            Arc::make_mut(&mut self.damaged).remove(&(space, key.clone()));
        }
        let previous = match value {
            Some(value) => map.insert(key.clone(), value),
            None => map.remove(&key),
        };
        match previous {
            Some(value) => Change::Put(space, key, value),
            None => Change::Delete(space, key),
        }
    }
}

impl Read for Spaces {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = self.maps[space as usize].get_key_value(key);
        found.map(|(key, value)| self.check(space, key).map(|()| value.clone())).transpose()
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
        if from >= to {
            return Ok(());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        for (key, value) in self.maps[space as usize].range::<[u8], _>(bounds) {
            self.check(space, key)?;
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

impl Read for ModelEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.state.lock().spaces.get(space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
        // Scans a view, so that `visit` may use the engine.
        let view = self.state.lock().spaces.clone();
        view.scan(space, from, to, visit)
    }
}

impl Engine for ModelEngine {
    fn write(&self, batch: Batch) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        state.usable()?;
        check_sizes(&batch)?;
        let undo = state.spaces.apply(batch);
        state.undo.push(undo);
        Ok(())
    }

    fn persist(&self) -> Result<(), EngineError> {
        let mut state = self.state.lock();
        state.usable()?;
        state.undo.clear();
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Read> {
        Box::new(self.state.lock().spaces.clone())
    }

    fn disk_bytes(&self) -> u64 {
        let spaces = self.state.lock().spaces.clone();
        spaces
            .maps
            .iter()
            .flat_map(|map| map.iter())
            .map(|(key, value)| (key.len() + value.len()) as u64)
            .sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::engine::conformance;

    fn put(key: &'static str, value: &'static str) -> Change {
        Change::Put(Space::Values, key.into(), value.into())
    }

    fn get(engine: &ModelEngine, key: &str) -> Option<Bytes> {
        engine.get(Space::Values, key.as_bytes()).unwrap()
    }

    #[test]
    fn conforms() {
        conformance::check(&mut || Arc::new(ModelEngine::new()));
    }

    #[test]
    fn crash_keeps_a_prefix_no_shorter_than_the_last_persist() {
        for keep in 0..4 {
            let engine = ModelEngine::new();
            engine.write(vec![put("a", "1")]).unwrap();
            engine.persist().unwrap();
            engine.write(vec![put("a", "2"), put("b", "2")]).unwrap();
            engine
                .write(vec![Change::Delete(Space::Values, "a".into()), put("a", "3"), put("b", "3")])
                .unwrap();
            engine.write(vec![Change::Delete(Space::Values, "b".into())]).unwrap();
            assert_eq!(engine.unpersisted(), 3);
            engine.crash(keep);
            let expected = [("1", None), ("2", Some("2")), ("3", Some("3")), ("3", None)][keep];
            assert_eq!(get(&engine, "a").as_deref(), Some(expected.0.as_bytes()));
            assert_eq!(get(&engine, "b").as_deref(), expected.1.map(str::as_bytes));
            engine.crash(0);
            assert_eq!(get(&engine, "a").as_deref(), Some(expected.0.as_bytes()));
        }
    }

    #[test]
    fn what_a_kill_leaves_is_not_durable() {
        let engine = ModelEngine::new();
        for value in ["1", "2", "3"] {
            engine.write(vec![put("a", value)]).unwrap();
        }
        engine.kill(2);
        assert_eq!(get(&engine, "a").as_deref(), Some(&b"2"[..]));
        assert_eq!(engine.unpersisted(), 2);
        engine.crash(0);
        assert_eq!(get(&engine, "a"), None);
    }

    #[test]
    fn a_damaged_record_is_never_shown_until_it_is_written_again() {
        let engine = ModelEngine::new();
        engine.write(vec![put("a", "1"), put("b", "2")]).unwrap();
        engine.damage(Space::Values, "a".into());
        assert!(matches!(engine.get(Space::Values, b"a"), Err(EngineError::Damaged(_))));
        let mut visit = |_: &[u8], _: &[u8]| ControlFlow::Continue(());
        assert!(engine.scan(Space::Values, b"a", b"c", &mut visit).is_err());
        assert!(engine.scan(Space::Values, b"b", b"c", &mut visit).is_ok());
        engine.write(vec![put("a", "3")]).unwrap();
        assert_eq!(get(&engine, "a").as_deref(), Some(&b"3"[..]));
    }

    #[test]
    fn a_clone_is_independent() {
        let engine = ModelEngine::new();
        engine.write(vec![put("a", "1")]).unwrap();
        let copy = engine.clone();
        engine.crash(0);
        assert_eq!(get(&engine, "a"), None);
        assert_eq!(get(&copy, "a").as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn a_failing_engine_changes_nothing() {
        let engine = ModelEngine::new();
        engine.set_failing(true);
        assert!(engine.write(vec![put("a", "1")]).is_err());
        assert!(engine.persist().is_err());
        engine.set_failing(false);
        assert_eq!(get(&engine, "a"), None);
    }
}
