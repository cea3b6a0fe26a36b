//! Values that are on disk and were lately written or read, bounded in bytes.
//!
//! A cached value is a copy of its own: a slice would keep the whole entry alive that it arrived in, uncounted. Values
//! leave in the order they came; one that was read meanwhile gets a second round.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;

/// Shards, so that readers on different cores seldom meet.
const SHARDS: usize = 8;
/// What an entry costs beside its bytes, about.
const OVERHEAD_BYTES: usize = 96;

/// A generation and a place in the history of its keys.
pub(crate) type ValueId = (u32, i64, u32);

/// The cache of one keyspace.
#[derive(Debug)]
pub(crate) struct ValueCache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes: usize,
}

#[derive(Debug, Default)]
struct Shard {
    values: HashMap<ValueId, (Bytes, bool)>,
    queue: VecDeque<ValueId>,
    bytes: usize,
}

impl ValueCache {
    /// A cache of about `bytes`; 0 keeps nothing.
    pub(crate) fn new(bytes: usize) -> ValueCache {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        ValueCache { shards, shard_bytes: bytes / SHARDS }
    }

    fn shard(&self, id: &ValueId) -> &Mutex<Shard> {
        let number = (id.1 as u64).wrapping_add(u64::from(id.2)) as usize % SHARDS;
        &self.shards[number]
    }

    /// The value, if it is here.
    pub(crate) fn get(&self, id: &ValueId) -> Option<Bytes> {
        let mut shard = self.shard(id).lock();
        let (value, was_read) = shard.values.get_mut(id)?;
        *was_read = true;
        Some(value.clone())
    }

    /// Keeps a copy of a value.
    pub(crate) fn insert(&self, id: ValueId, value: &[u8]) {
        if value.len() + OVERHEAD_BYTES > self.shard_bytes {
            return;
        }
        let mut shard = self.shard(&id).lock();
        if shard.values.contains_key(&id) {
            return;
        }
        shard.values.insert(id, (Bytes::copy_from_slice(value), false));
        shard.queue.push_back(id);
        shard.bytes += value.len() + OVERHEAD_BYTES;
        shard.evict(self.shard_bytes);
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.shards.iter().for_each(|shard| *shard.lock() = Shard::default());
    }
}

impl Shard {
    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some(id) = self.queue.pop_front() else { return };
            let Some((value, was_read)) = self.values.get_mut(&id) else { continue };
            if std::mem::take(was_read) {
                self.queue.push_back(id);
                continue;
            }
            self.bytes -= value.len() + OVERHEAD_BYTES;
            self.values.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_its_bytes_and_favours_what_is_read() {
        let cache = ValueCache::new(SHARDS * 1000);
        for main in 0..200 {
            cache.insert((0, main, 0), &[1; 100]);
            assert!(cache.get(&(0, 0, 0)).is_some(), "read again and again, so it stays");
        }
        assert!(cache.shards.iter().all(|shard| shard.lock().bytes <= 1000));
        assert_eq!(cache.get(&(0, 9, 0)), None);
    }
}
