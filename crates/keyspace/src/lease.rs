//! Leases: promises that keys live for a while, counted on the group's logical clock.
//!
//! A lease ends by a command only ([`crate::Command::LeaseRevoke`], [`crate::Command::LeaseExpire`]); an expiry is
//! carried out only if its time has come at the entry's stamp, so a keep-alive that was ordered before it wins. Which
//! lease a key is attached to is in the newest version of the key; the sets here are the way back.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// What a lease occupies in memory beside its keys, in bytes, about.
pub const LEASE_BYTES: usize = 100;

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Never 0.
    pub(crate) id: i64,
    /// Granted, in seconds.
    pub(crate) ttl: i64,
    /// When it ends, on the group's clock.
    pub(crate) expiry_ms: u64,
    /// The keys that are deleted when it ends.
    pub(crate) keys: BTreeSet<Bytes>,
}

/// The leases of one keyspace.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_id: BTreeMap<i64, Lease>,
    by_expiry: BTreeSet<(u64, i64)>,
}

/// When a lease of `ttl` seconds ends that starts at `stamp_ms`.
pub(crate) fn expiry_ms(stamp_ms: u64, ttl: i64) -> u64 {
    let ttl = u64::try_from(ttl).unwrap_or(0);
    stamp_ms.saturating_add(ttl.saturating_mul(1000))
}

impl Leases {
    /// The lease with this id.
    pub(crate) fn get(&self, id: i64) -> Option<&Lease> {
        self.by_id.get(&id)
    }

    /// Adds a lease, or gives one another time; its keys stay.
    pub(crate) fn set(&mut self, id: i64, ttl: i64, expiry_ms: u64) -> &Lease {
        let keys = self.remove(id).map(|old| old.keys).unwrap_or_default();
        self.by_expiry.insert((expiry_ms, id));
        self.by_id.entry(id).or_insert(Lease { id, ttl, expiry_ms, keys })
    }

    /// Takes a lease out.
    pub(crate) fn remove(&mut self, id: i64) -> Option<Lease> {
        let lease = self.by_id.remove(&id)?;
        self.by_expiry.remove(&(lease.expiry_ms, id));
        Some(lease)
    }

    /// The key is on the lease from now on.
    pub(crate) fn attach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.insert(key.clone());
        }
    }

    /// The key is not on the lease any more.
    pub(crate) fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.by_id.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// Takes a key off the lease, the first one.
    pub(crate) fn pop_key(&mut self, id: i64) -> Option<Bytes> {
        self.by_id.get_mut(&id)?.keys.pop_first()
    }

    /// What they occupy, in bytes, about: the same on all replicas.
    pub(crate) fn bytes(&self) -> u64 {
        (self.by_id.len() * LEASE_BYTES) as u64
    }

    /// All leases, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_id.values()
    }

    /// Ids of leases in the order they end, with the time of each.
    pub(crate) fn by_expiry(&self) -> impl Iterator<Item = (u64, i64)> {
        self.by_expiry.iter().copied()
    }
}
