//! Pins: readers that work in pieces say which revision they still need, and sweeps stay below it.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The pinned (generation, revision) pairs of a keyspace, with the number of readers on each.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<BTreeMap<(u32, i64), usize>>);

/// One reader's pin; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    key: (u32, i64),
}

impl Pins {
    /// Pins `revision`. Call it under the state's lock, after checking that the revision is not compacted: a sweep
    /// takes the lock exclusively, so it either sees the pin or has ended before.
    pub(crate) fn pin(self: &Arc<Pins>, generation: u32, revision: i64) -> Pin {
        *self.0.lock().entry((generation, revision)).or_default() += 1;
        Pin { pins: Arc::clone(self), key: (generation, revision) }
    }

    /// The oldest pinned revision of a generation.
    pub(crate) fn oldest(&self, generation: u32) -> Option<i64> {
        let pins = self.0.lock();
        pins.range((generation, i64::MIN)..=(generation, i64::MAX)).next().map(|((_, revision), _)| *revision)
    }

    /// True if a reader still uses a generation other than `current`.
    pub(crate) fn any_but(&self, current: u32) -> bool {
        self.0.lock().keys().any(|(generation, _)| *generation != current)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock();
        if let Some(readers) = pins.get_mut(&self.key) {
            *readers -= 1;
            if *readers == 0 {
                pins.remove(&self.key);
            }
        }
    }
}
