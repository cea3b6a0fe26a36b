//! Values that are on disk and were lately written or read, bounded in bytes for all keyspaces that share the cache.
//!
//! A cached value is a copy of its own: a slice would keep the whole entry alive that it arrived in, uncounted. Values
//! leave in the order they came; one that was read meanwhile gets a second round.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Shards, so that readers on different cores seldom meet.
const SHARDS: usize = 8;
/// What an entry costs beside its bytes, about.
const OVERHEAD_BYTES: usize = 96;

/// A group, a generation of its state, and a place in the history of its keys.
pub(crate) type ValueId = (u64, u32, i64, u32);

/// A cache of values. Clones are the same one.
#[derive(Clone, Debug)]
pub struct ValueCache(Arc<Shards>);

#[derive(Debug)]
struct Shards {
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
    pub fn new(bytes: usize) -> ValueCache {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        ValueCache(Arc::new(Shards { shards, shard_bytes: bytes / SHARDS }))
    }

    /// An empty one of the same size.
    pub fn to_empty(&self) -> ValueCache {
        ValueCache::new(self.0.shard_bytes * SHARDS)
    }

    fn shard(&self, id: &ValueId) -> &Mutex<Shard> {
        let (group, _, main, sub) = *id;
        let number = group.wrapping_add(main as u64).wrapping_add(u64::from(sub)) as usize % SHARDS;
        &self.0.shards[number]
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
        if value.len() + OVERHEAD_BYTES > self.0.shard_bytes {
            return;
        }
        let mut shard = self.shard(&id).lock();
        if shard.values.contains_key(&id) {
            return;
        }
        shard.values.insert(id, (Bytes::copy_from_slice(value), false));
        shard.queue.push_back(id);
        shard.bytes += value.len() + OVERHEAD_BYTES;
        shard.evict(self.0.shard_bytes);
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
            cache.insert((1, 0, main, 0), &[1; 100]);
            assert!(cache.get(&(1, 0, 0, 0)).is_some(), "read again and again, so it stays");
        }
        assert!(cache.0.shards.iter().all(|shard| shard.lock().bytes <= 1000));
        assert_eq!(cache.get(&(1, 0, 9, 0)), None);
        assert_eq!(cache.get(&(2, 0, 0, 0)), None, "another keyspace's");
    }
}
