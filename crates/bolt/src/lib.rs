//! Files in the format of bbolt, the engine of etcd: what its tools take for a backup.
//!
//! A [`Writer`] makes a file in one go, from buckets whose keys come in order: every page is written once, where it stays, so memory
//! is bounded by a page for each level of a tree. It is made for a file that nobody reads before it is finished.
//!
//! The format (version 2, pages of 4096 bytes, numbers little-endian, as bbolt has it on the machines that etcd runs on):
//! - Every page begins with its number (8), flags (2), count of elements (2), number of pages that follow and belong to it (4).
//! - Pages 0 and 1 are metas: magic, version, size of a page, flags (4 each); root page and sequence of the root bucket, page of the
//!   list of free pages, number of pages, transaction (8 each); FNV-1a-64 of all that. The valid one of the newest transaction counts.
//! - An element of a leaf: flags (1 for a bucket), distance from the element to its key, sizes of key and value (4 each); the value
//!   follows the key. An element of a branch: distance, size of the key (4 each), page (8); its key is the first one below it.
//! - A bucket's value is its root page and its sequence (8 each).
//!
//! A [`Reader`] trusts nothing that it reads.
//!
//! Left out: everything that changes a file.

mod format;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::{Damage, Reader};
pub use writer::{Bucket, Writer};
