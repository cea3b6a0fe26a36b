//! The ordered index: every key with the metadata of its versions, oldest first. Values are elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use super::KeyRange;

/// One version of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// The revision that wrote it.
    pub(crate) main: i64,
    /// The revision that created the key, since it was last deleted. 0 in a tombstone.
    pub(crate) create: i64,
    /// How many puts since the key was created, this one included. 0 in a tombstone, and only there.
    pub(crate) version: i64,
    /// The lease it is attached to; 0 for none.
    pub(crate) lease: i64,
    /// The hash of the value; 0 in a tombstone.
    pub(crate) value_hash: u64,
    /// The place within its revision.
    pub(crate) sub: u32,
    /// The value's size in bytes.
    pub(crate) value_len: u32,
}

impl Version {
    /// What a deletion leaves.
    pub(crate) fn tombstone(main: i64, sub: u32) -> Version {
        Version { main, create: 0, version: 0, lease: 0, value_hash: 0, sub, value_len: 0 }
    }

    /// True if the key was deleted here.
    pub(crate) fn is_tombstone(&self) -> bool {
        self.version == 0
    }

    /// Its place in the history of all keys.
    pub(crate) fn place(&self) -> (i64, u32) {
        (self.main, self.sub)
    }
}

/// Versions of one key in the order of their places; never empty while in the index.
pub(crate) type Versions = VecDeque<Version>;

/// A version that a newer one replaced, to be removed once a compaction reaches the newer one.
#[derive(Clone, Debug)]
struct Superseded {
    by: (i64, u32),
    /// The compaction that reaches it: the revision of `by`; one later if the old version is of that revision too, so
    /// that a watcher that starts at the compacted revision sees the whole of it.
    removable_at: i64,
    key: Bytes,
}

/// The index of one keyspace.
///
/// Beside the map it keeps two queues, in the order of revisions, of what compaction will be able to remove, so that
/// a sweep costs what it removes and not what there is.
#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, Versions>,
    superseded: VecDeque<Superseded>,
    tombstones: VecDeque<Superseded>,
    /// Keys whose newest version is not a tombstone.
    live: usize,
    /// Bytes of all versions: keys, values and metadata.
    bytes: u64,
    versions: u64,
    /// Versions that were ever swept.
    swept: u64,
}

/// So much room is left to a queue however short it is.
const ROOM_MIN: usize = 8;

/// What a version occupies beside its key and value, about.
const VERSION_BYTES: u64 = 58;

fn size_of(key: &[u8], version: &Version) -> u64 {
    key.len() as u64 + u64::from(version.value_len) + VERSION_BYTES
}

/// The version that a reader at `revision` sees, tombstones included.
fn newest_at(versions: &Versions, revision: i64) -> Option<&Version> {
    let after = versions.partition_point(|version| version.main <= revision);
    versions.get(after.checked_sub(1)?)
}

/// Takes the first element out if it is the one.
fn pop_if<T>(queue: &mut VecDeque<T>, is_it: impl Fn(&T) -> bool) -> Option<T> {
    if queue.front().is_some_and(is_it) { queue.pop_front() } else { None }
}

/// Gives memory back that is held since there was much more.
fn shrink<T>(queue: &mut VecDeque<T>) {
    let (length, room) = (queue.len(), queue.capacity());
    if room > ROOM_MIN && room > 4 * length {
        queue.shrink_to(2 * length);
    }
}

impl Index {
    /// The newest version of a living key.
    pub(crate) fn latest(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key)?.back().filter(|version| !version.is_tombstone())
    }

    /// The same, to be changed while nobody has seen it; what it occupies stays.
    pub(crate) fn latest_mut(&mut self, key: &[u8]) -> Option<&mut Version> {
        self.keys.get_mut(key)?.back_mut().filter(|version| !version.is_tombstone())
    }

    /// The version of `key` that a reader at `revision` sees.
    pub(crate) fn at(&self, key: &[u8], revision: i64) -> Option<(&Bytes, &Version)> {
        let (key, versions) = self.keys.get_key_value(key)?;
        newest_at(versions, revision).filter(|version| !version.is_tombstone()).map(|version| (key, version))
    }

    /// As [`Index::at`], but a deleted key has its tombstone.
    pub(crate) fn at_or_tombstone(&self, key: &[u8], revision: i64) -> Option<&Version> {
        newest_at(self.keys.get(key)?, revision)
    }

    /// The version of `key` that is at `place`, and the next one.
    pub(crate) fn find(&self, key: &[u8], place: (i64, u32)) -> Option<(&Version, Option<&Version>)> {
        let versions = self.keys.get(key)?;
        let at = versions.binary_search_by_key(&place, Version::place).ok()?;
        Some((versions.get(at)?, versions.get(at + 1)))
    }

    /// Visits the keys of `range` after `after` that live at `revision`, in order. Returns how many keys were looked at, and the last of them when
    /// these were `keys_max`, to go on from there; `None` at the end.
    pub(crate) fn visit(
        &self,
        range: &KeyRange,
        after: Option<&Bytes>,
        revision: i64,
        keys_max: usize,
        mut visit: impl FnMut(&Bytes, &Version),
    ) -> (usize, Option<Bytes>) {
        let (mut from, to) = range.bounds();
        if let Some(after) = after {
            from = Bound::Excluded(after);
        }
        if range.is_empty() || matches!((from, to), (Bound::Excluded(a), Bound::Included(b)) if a >= b) {
            return (0, None);
        }
        let mut looked = 0;
        for (key, versions) in self.keys.range::<[u8], _>((from, to)) {
            looked += 1;
            if let Some(version) = newest_at(versions, revision).filter(|version| !version.is_tombstone()) {
                visit(key, version);
            }
            if looked == keys_max {
                return (looked, Some(key.clone()));
            }
        }
        (looked, None)
    }

    /// Adds a version, newer than all others. Returns the key as stored, and the version that was the newest before.
    pub(crate) fn push(&mut self, key: &[u8], version: Version) -> (Bytes, Option<Version>) {
        self.bytes += size_of(key, &version);
        self.versions += 1;
        let exact = (Bound::Included(key), Bound::Included(key));
        let (stored, previous) = match self.keys.range_mut::<[u8], _>(exact).next() {
            Some((stored, versions)) => {
                let previous = versions.back().copied();
                versions.push_back(version);
                (stored.clone(), previous)
            }
            None => {
                let stored = Bytes::copy_from_slice(key);
                let mut versions = Versions::with_capacity(1);
                versions.push_back(version);
                self.keys.insert(stored.clone(), versions);
                (stored, None)
            }
        };
        debug_assert!(
            previous.is_none_or(|previous| previous.place() < version.place()),
            "versions come in order"
        );
        let was_live = previous.is_some_and(|previous| !previous.is_tombstone());
        let by = version.place();
        if let Some(previous) = previous {
            let removable_at = by.0 + i64::from(previous.main == by.0);
            self.superseded.push_back(Superseded { by, removable_at, key: stored.clone() });
        }
        if version.is_tombstone() {
            self.tombstones.push_back(Superseded { by, removable_at: by.0 + 1, key: stored.clone() });
        }
        self.live = self.live + usize::from(!version.is_tombstone()) - usize::from(was_live);
        (stored, previous)
    }

    /// Removes up to `limit` versions that no reader at `compacted` or later can see, the oldest of a key first and a
    /// tombstone only after all that it deleted, and never in one step with it: neither a crash between two steps nor one who reads the
    /// engine piece by piece must bring a deleted key back.
    /// The tombstones of `compacted` itself stay, for watchers that start there, as do those from `tombstones_until` on. False beside
    /// them: there may be more.
    ///
    /// `limit` is also how many places are looked at: what is due may be gone already, as a tombstone is that a later put replaced.
    pub(crate) fn sweep(
        &mut self,
        compacted: i64,
        tombstones_until: i64,
        limit: usize,
    ) -> (Vec<(i64, u32)>, bool) {
        let tombstones = compacted.min(tombstones_until);
        let (mut removed, mut has_tombstones) = (Vec::new(), false);
        for _ in 0..limit {
            if let Some(next) = pop_if(&mut self.superseded, |next| next.removable_at <= compacted) {
                removed.extend(self.remove_oldest(&next.key, |oldest| oldest.place() < next.by));
            } else if !removed.is_empty() && !has_tombstones {
                return (removed, false);
            } else if let Some(next) = pop_if(&mut self.tombstones, |next| next.removable_at <= tombstones) {
                has_tombstones = true;
                removed.extend(self.remove_oldest(&next.key, |oldest| oldest.place() == next.by));
            } else {
                shrink(&mut self.superseded);
                shrink(&mut self.tombstones);
                return (removed, true);
            }
        }
        (removed, false)
    }

    fn remove_oldest(&mut self, key: &Bytes, is_it: impl Fn(&Version) -> bool) -> Option<(i64, u32)> {
        let versions = self.keys.get_mut(key)?;
        let oldest = pop_if(versions, is_it)?;
        self.bytes -= size_of(key, &oldest);
        self.versions -= 1;
        self.swept += 1;
        shrink(versions);
        if versions.is_empty() {
            self.keys.remove(key);
        }
        Some(oldest.place())
    }

    /// Every key that lives, with its newest version.
    pub(crate) fn living(&self) -> impl Iterator<Item = (&Bytes, &Version)> {
        let newest = self.keys.iter().filter_map(|(key, versions)| Some((key, versions.back()?)));
        newest.filter(|(_, version)| !version.is_tombstone())
    }

    /// How many keys live.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// How many versions there are.
    pub(crate) fn versions(&self) -> u64 {
        self.versions
    }

    /// How many were ever swept.
    pub(crate) fn swept(&self) -> u64 {
        self.swept
    }

    /// Bytes of all versions.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(index: &mut Index, main: i64) {
        let version = Version { version: 1, create: main, ..Version::tombstone(main, 0) };
        index.push(b"k", version);
    }

    /// A tombstone that a later put replaced is found gone when its own turn comes. All such were looked at in one go, under the lock.
    #[test]
    fn a_sweep_looks_at_no_more_than_it_may_and_gives_room_back() {
        let mut index = Index::default();
        for round in 0..1000 {
            put(&mut index, 2 * round + 1);
            index.push(b"k", Version::tombstone(2 * round + 2, 0));
        }
        put(&mut index, 3000);
        let mut steps = 0;
        while !index.sweep(3000, i64::MAX, 100).1 {
            steps += 1;
        }
        assert_eq!(steps, 30, "2,000 versions that were replaced, and 1,000 tombstones");
        assert_eq!((index.versions(), index.swept()), (1, 2000));
        assert!(index.superseded.capacity() < 100 && index.tombstones.capacity() < 100);
        assert!(index.keys[&b"k"[..]].capacity() < 100);
    }
}
