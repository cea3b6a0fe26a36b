//! Versions of keys in memory: the index, values that are not yet on disk or were lately there, and pins of readers.

mod cache;
mod index;
mod key_range;
mod pins;
mod unflushed;

pub use cache::ValueCache;
pub(crate) use index::{Index, Version};
pub(crate) use key_range::KeyRange;
pub(crate) use pins::{Pin, Pins};
pub(crate) use unflushed::{EntryMark, Record, TableChange, Unflushed};
