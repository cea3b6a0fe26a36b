//! Admission: bounds what clients of this node may have waiting, all keyspaces together, and leaves room for everybody. Used where requests
//! wait for their group (`driver::handle`) and where calls are held that are passed on (`forward`).
//!
//! A keyspace may have no more waiting than is left free, as with the memory of the groups. So one alone gets half, two that are
//! greedy a third each, and who asks for little finds room whatever the others do. Without it one tenant with large writes
//! had all others told `too many requests`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hadron_consensus::GroupId;
use parking_lot::RwLock;

use super::backend::Unavailable;

/// Groups of which nothing waits that are remembered before they are looked for.
const IDLE_GROUPS_KEPT: usize = 1_024;

/// Bounds what clients may have waiting.
#[derive(Debug)]
pub(crate) struct Admission {
    all: Waiting,
    /// Every group of which something waits, and some others.
    groups: RwLock<HashMap<GroupId, Arc<Waiting>>>,
    requests_max: usize,
    bytes_max: usize,
}

/// What waits.
#[derive(Debug, Default)]
struct Waiting {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl Waiting {
    /// Adds a request. Returns the requests and bytes that wait then.
    fn add(&self, bytes: usize) -> (usize, usize) {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        (requests, self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    fn take(&self, bytes: usize) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(requests_max: usize, bytes_max: usize) -> Admission {
        Admission { all: Waiting::default(), groups: RwLock::default(), requests_max, bytes_max }
    }

    /// Room for a request of `bytes` to `group`, or [`Unavailable::Busy`].
    pub(crate) fn admit(self: &Arc<Self>, group: GroupId, bytes: usize) -> Result<Admitted, Unavailable> {
        let own = self.waiting_of(group);
        let (all_requests, all_bytes) = self.all.add(bytes);
        let (own_requests, own_bytes) = own.add(bytes);
        let admitted = Admitted { admission: Arc::clone(self), own, bytes };
        let fits = |own: usize, all: usize, max: usize| own <= max.saturating_sub(all);
        // One request fits however large it is: its size has a limit of its own. And a read takes nothing from the writes.
        let bytes_fit = bytes == 0 || all_bytes == bytes || fits(own_bytes, all_bytes, self.bytes_max);
        let has_room = fits(own_requests, all_requests, self.requests_max) && bytes_fit;
        if has_room { Ok(admitted) } else { Err(Unavailable::Busy) }
    }

    /// Requests that wait now.
    pub(crate) fn requests(&self) -> usize {
        self.all.requests.load(Ordering::Relaxed)
    }

    fn waiting_of(&self, group: GroupId) -> Arc<Waiting> {
        if let Some(waiting) = self.groups.read().get(&group) {
            return Arc::clone(waiting);
        }
        let mut groups = self.groups.write();
        // Doubles before it is looked through again, so that this costs nothing for each request.
        if groups.len() >= IDLE_GROUPS_KEPT && groups.len() == groups.capacity() {
            groups.retain(|_, waiting| Arc::strong_count(waiting) > 1);
        }
        Arc::clone(groups.entry(group).or_default())
    }
}

/// A request's room, given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    own: Arc<Waiting>,
    bytes: usize,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.own.take(self.bytes);
        self.admission.all.take(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const ONE: GroupId = GroupId(1);
    const TWO: GroupId = GroupId(2);

    fn as_many_as_fit(admission: &Arc<Admission>, group: GroupId, bytes: usize) -> Vec<Admitted> {
        std::iter::from_fn(|| admission.admit(group, bytes).ok()).collect()
    }

    #[test]
    fn the_bound_is_on_requests_and_on_bytes() {
        let admission = Arc::new(Admission::new(4, 200));
        let huge = admission.admit(ONE, 1_000).unwrap();
        assert_eq!(admission.admit(ONE, 1).unwrap_err(), Unavailable::Busy);
        drop(huge);
        let held = as_many_as_fit(&admission, ONE, 50);
        assert_eq!(held.len(), 2, "half of what there is");
        assert_eq!(admission.admit(ONE, 0).unwrap_err(), Unavailable::Busy);
        drop(held);
        assert_eq!(admission.requests(), 0, "all room was given back");
    }

    /// All that waited was one budget: who filled it had the requests of all other keyspaces refused.
    #[test]
    fn a_greedy_keyspace_leaves_room_for_the_others() {
        let admission = Arc::new(Admission::new(1_000, 100_000));
        for bytes in [0, 1_000] {
            let greedy = as_many_as_fit(&admission, ONE, bytes);
            let second = as_many_as_fit(&admission, TWO, bytes);
            assert!(second.len() * 2 >= greedy.len() - 1, "{} and {}", greedy.len(), second.len());
            for modest in 3..20 {
                admission.admit(GroupId(modest), bytes).unwrap();
            }
        }
        assert_eq!(admission.requests(), 0);
    }

    /// The reads of a keyspace with many writes were refused when another came to write as well.
    #[test]
    fn reads_are_not_refused_for_the_bytes_of_writes() {
        let admission = Arc::new(Admission::new(1_000, 100));
        let writes = as_many_as_fit(&admission, ONE, 10);
        let _others = as_many_as_fit(&admission, TWO, 10);
        assert_eq!(admission.admit(ONE, 1).unwrap_err(), Unavailable::Busy);
        admission.admit(ONE, 0).unwrap();
        drop(writes);
    }

    #[test]
    fn groups_that_wait_for_nothing_are_forgotten() {
        let admission = Arc::new(Admission::new(1_000, 100_000));
        let held = admission.admit(ONE, 7).unwrap();
        for group in 2..50_000 {
            admission.admit(GroupId(group), 0).unwrap();
        }
        assert!(admission.groups.read().len() < 4 * IDLE_GROUPS_KEPT);
        drop(held);
        assert_eq!(admission.groups.read()[&ONE].bytes.load(Ordering::Relaxed), 0);
    }
}
