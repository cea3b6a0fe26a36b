//! Which watchers an event concerns: found by its key, without asking each watcher.
//!
//! Watchers of one key and watchers of a prefix, which is what clients use, are found in hash maps: one look-up for the
//! key and one for each length of prefix that is watched. Watchers of other ranges are tried one by one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use crate::mvcc::KeyRange;

/// The number of a registered watcher, unique in its hub.
pub(crate) type WatcherNumber = u64;

/// Those of one key or range: they may be many, and all leave at once.
type Watchers = BTreeSet<WatcherNumber>;

/// Watchers by what they watch.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    keys: HashMap<Bytes, Watchers>,
    prefixes: HashMap<Bytes, Watchers>,
    /// How many different prefixes of each length are watched.
    prefix_lengths: BTreeMap<usize, usize>,
    spans: BTreeMap<KeyRange, Watchers>,
}

impl Matcher {
    /// Adds a watcher.
    pub(crate) fn add(&mut self, number: WatcherNumber, range: &KeyRange) {
        if let KeyRange::One(key) = range {
            self.keys.entry(key.clone()).or_default().insert(number);
        } else if let Some(prefix) = range.as_prefix() {
            let watchers = self.prefixes.entry(prefix.clone()).or_default();
            if watchers.is_empty() {
                *self.prefix_lengths.entry(prefix.len()).or_default() += 1;
            }
            watchers.insert(number);
        } else {
            self.spans.entry(range.clone()).or_default().insert(number);
        }
    }

    /// Removes a watcher that was added with this range.
    pub(crate) fn remove(&mut self, number: WatcherNumber, range: &KeyRange) {
        if let KeyRange::One(key) = range {
            if let Some(watchers) = self.keys.get_mut(key) {
                watchers.remove(&number);
                if watchers.is_empty() {
                    self.keys.remove(key);
                }
            }
        } else if let Some(prefix) = range.as_prefix() {
            self.remove_prefix(number, prefix);
        } else if let Some(watchers) = self.spans.get_mut(range) {
            watchers.remove(&number);
            if watchers.is_empty() {
                self.spans.remove(range);
            }
        }
    }

    fn remove_prefix(&mut self, number: WatcherNumber, prefix: &Bytes) {
        let Some(watchers) = self.prefixes.get_mut(prefix) else { return };
        watchers.remove(&number);
        if !watchers.is_empty() {
            return;
        }
        self.prefixes.remove(prefix);
        if let Some(count) = self.prefix_lengths.get_mut(&prefix.len()) {
            *count -= 1;
            if *count == 0 {
                self.prefix_lengths.remove(&prefix.len());
            }
        }
    }

    /// Calls `found` with each watcher of `key`, once.
    pub(crate) fn matches(&self, key: &[u8], mut found: impl FnMut(WatcherNumber)) {
        if let Some(watchers) = self.keys.get(key) {
            watchers.iter().for_each(|number| found(*number));
        }
        for length in self.prefix_lengths.keys().take_while(|length| **length <= key.len()) {
            if let Some(watchers) = self.prefixes.get(&key[..*length]) {
                watchers.iter().for_each(|number| found(*number));
            }
        }
        for watchers in self.spans.iter().filter(|(span, _)| span.contains(key)).map(|(_, watchers)| watchers)
        {
            watchers.iter().for_each(|number| found(*number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static [u8], end: &'static [u8]) -> KeyRange {
        KeyRange::new(&Bytes::from_static(key), &Bytes::from_static(end))
    }

    #[test]
    fn finds_what_contains_the_key_until_it_is_removed() {
        let ranges = [
            range(b"a", b""),
            range(b"a", b"b"),
            range(b"ab", b"ac"),
            range(b"a", b"c"),
            range(b"b", b"\0"),
            range(b"a\xff", b"b"),
            range(b"a", b"b"),
        ];
        let mut matcher = Matcher::default();
        for (number, range) in ranges.iter().enumerate() {
            matcher.add(number as u64, range);
        }
        for removed in 0..=ranges.len() {
            for key in [b"a".as_slice(), b"ab", b"abc", b"a\xff", b"b", b"c", b""] {
                let mut found = Vec::new();
                matcher.matches(key, |number| found.push(number));
                found.sort_unstable();
                let expected: Vec<u64> =
                    (removed..ranges.len()).filter(|n| ranges[*n].contains(key)).map(|n| n as u64).collect();
                assert_eq!(found, expected, "key {key:?} with {removed} removed");
            }
            if let Some(range) = ranges.get(removed) {
                matcher.remove(removed as u64, range);
            }
        }
    }
}
