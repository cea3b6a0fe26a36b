//! How many requests a second a keyspace may have on a node: a bucket that fills evenly and holds what a second brings.
//!
//! It is kept as the one moment at which the bucket would be full again (the generic cell rate algorithm), so that taking from it is
//! one compare-and-swap and threads share it without a lock.
//!
//! A refusal should cost the neighbours as little as may be, so it waits a little: who asks anew as soon as it was refused then asks ten times a
//! second and not thousands of times. Each waits for itself. Answered all together they kept a thread busy, and the neighbours waiting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::sleep;

const SECOND_NS: u64 = 1_000_000_000;
/// How long a refusal waits.
const REFUSAL_DELAY: Duration = Duration::from_millis(100);
/// Refusals of a keyspace that wait; more are answered at once, for they would take memory.
const REFUSALS_WAITING_MAX: usize = 1_000;

/// The bucket of one keyspace on one node.
#[derive(Debug)]
pub(super) struct Rate {
    began: Instant,
    /// Nanoseconds from `began` to when it is full again.
    full_at_ns: AtomicU64,
    /// Places of refusals that wait.
    refusals: Semaphore,
}

impl Default for Rate {
    fn default() -> Rate {
        let refusals = Semaphore::new(REFUSALS_WAITING_MAX);
        Rate { began: Instant::now(), full_at_ns: AtomicU64::new(0), refusals }
    }
}

impl Rate {
    /// Whether one more request may come now. The bound may be another one each time; 0 for none.
    pub(super) fn admits(&self, per_second_max: u64) -> bool {
        per_second_max == 0 || self.admits_at(self.began.elapsed().as_nanos() as u64, per_second_max)
    }

    /// Waits until whoever was not admitted may be told.
    pub(super) async fn refusal_is_due(&self) {
        let Ok(_place) = self.refusals.try_acquire() else { return };
        sleep(REFUSAL_DELAY).await;
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
    #![allow(clippy::unwrap_used)]

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn refusals_wait_unless_too_many_do() {
        let rate = Rate::default();
        let began = Instant::now();
        rate.refusal_is_due().await;
        assert!(began.elapsed() >= REFUSAL_DELAY);
        let others = rate.refusals.try_acquire_many(REFUSALS_WAITING_MAX as u32).unwrap();
        assert!(rate.refusal_is_due().now_or_never().is_some(), "nobody waits who has no place");
        drop(others);
        assert!(rate.refusal_is_due().now_or_never().is_none());
    }

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
