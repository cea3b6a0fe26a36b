//! One key, or all keys from one up to another: etcd's pair of `key` and `range_end`.

use std::ops::Bound;

use bytes::Bytes;

/// What a request's `key` and `range_end` select.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum KeyRange {
    /// One key: `range_end` is empty.
    One(Bytes),
    /// `from <= key < to`; without `to`, every key at or after `from` (`range_end` is a single zero byte).
    Span { from: Bytes, to: Option<Bytes> },
}

impl KeyRange {
    /// Reads etcd's encoding.
    pub(crate) fn new(key: &Bytes, range_end: &Bytes) -> KeyRange {
        match range_end.as_ref() {
            [] => KeyRange::One(key.clone()),
            [0] => KeyRange::Span { from: key.clone(), to: None },
            _ => KeyRange::Span { from: key.clone(), to: Some(range_end.clone()) },
        }
    }

    /// etcd's encoding.
    pub(crate) fn encoded(&self) -> (Bytes, Bytes) {
        match self {
            KeyRange::One(key) => (key.clone(), Bytes::new()),
            KeyRange::Span { from, to: None } => (from.clone(), Bytes::from_static(&[0])),
            KeyRange::Span { from, to: Some(to) } => (from.clone(), to.clone()),
        }
    }

    /// A copy that keeps no request's buffer alive.
    pub(crate) fn detached(&self) -> KeyRange {
        let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
        match self {
            KeyRange::One(key) => KeyRange::One(copy(key)),
            KeyRange::Span { from, to } => KeyRange::Span { from: copy(from), to: to.as_ref().map(copy) },
        }
    }

    /// True if no key can be in it.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Span { from, to: Some(to) } if from >= to)
    }

    /// True if `key` is in it.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => one.as_ref() == key,
            KeyRange::Span { from, to } => {
                from.as_ref() <= key && to.as_ref().is_none_or(|to| key < to.as_ref())
            }
        }
    }

    /// The bounds of an ordered search; only for ranges that are not empty.
    pub(crate) fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        match self {
            KeyRange::One(key) => (Bound::Included(key), Bound::Included(key)),
            KeyRange::Span { from, to } => {
                (Bound::Included(from), to.as_deref().map_or(Bound::Unbounded, Bound::Excluded))
            }
        }
    }

    /// The prefix whose keys this range holds, if it is one: `to` is `from` with its last byte one higher.
    pub(crate) fn as_prefix(&self) -> Option<&Bytes> {
        let KeyRange::Span { from, to: Some(to) } = self else { return None };
        let (last_from, head_from) = from.split_last()?;
        let (last_to, head_to) = to.split_last()?;
        (head_from == head_to && last_from.checked_add(1) == Some(*last_to)).then_some(from)
    }
}
