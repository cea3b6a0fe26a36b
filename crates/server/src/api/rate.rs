//! How many requests a second a keyspace may have on a node: a bucket that fills evenly and holds what a second brings.
//!
//! It is kept as the one moment at which the bucket would be full again (the generic cell rate algorithm), so that taking from it is
//! one compare-and-swap and threads share it without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const SECOND_NS: u64 = 1_000_000_000;

/// The bucket of one keyspace on one node.
#[derive(Debug)]
pub(super) struct Rate {
    began: Instant,
    /// Nanoseconds from `began` to when it is full again.
    full_at_ns: AtomicU64,
}

impl Default for Rate {
    fn default() -> Rate {
        Rate { began: Instant::now(), full_at_ns: AtomicU64::new(0) }
    }
}

impl Rate {
    /// Whether one more request may come now. The bound may be another one each time; 0 for none.
    pub(super) fn admits(&self, per_second_max: u64) -> bool {
        per_second_max == 0 || self.admits_at(self.began.elapsed().as_nanos() as u64, per_second_max)
    }

    fn admits_at(&self, now_ns: u64, per_second_max: u64) -> bool {
        let step_ns = (SECOND_NS / per_second_max).max(1);
        let take = |full_at_ns: u64| {
            let next = full_at_ns.max(now_ns) + step_ns;
            (next <= now_ns + SECOND_NS).then_some(next)
        };
        self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_may_be_used_up_at_once_and_then_fills_evenly() {
        let rate = Rate::default();
        let admitted = |at_ns| (0..100).filter(|_| rate.admits_at(at_ns, 10)).count();
        assert_eq!(admitted(0), 10);
        assert_eq!(admitted(SECOND_NS / 20), 0);
        assert_eq!(admitted(SECOND_NS / 10), 1);
        assert_eq!(admitted(SECOND_NS / 2), 4);
        assert_eq!(admitted(100 * SECOND_NS), 10, "no more is saved up than a second brings");
    }

    #[test]
    fn without_a_bound_everything_comes_and_a_small_one_lets_something_through() {
        let rate = Rate::default();
        assert!((0..1_000).all(|_| rate.admits(0)));
        assert!(rate.admits_at(0, 1) && !rate.admits_at(SECOND_NS - 1, 1) && rate.admits_at(SECOND_NS, 1));
        let fast = Rate::default();
        assert!((0..1_000).all(|_| fast.admits_at(0, u64::MAX)));
    }
}
