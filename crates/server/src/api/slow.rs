//! A word about calls that took long (`--warning-unary-request-duration`), with etcd's text. Not more than one a second: a node that is
//! slow for all has better things to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing::warn;

/// Between two words.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells which calls took long.
#[derive(Debug)]
pub(super) struct Slow {
    /// What is long; `None` for nothing.
    threshold: Option<Duration>,
    since: Instant,
    /// Milliseconds from `since` to when the next word may be said.
    next_ms: AtomicU64,
    /// Calls that were passed over in silence.
    silent: AtomicU64,
}

impl Slow {
    pub(super) fn new(threshold: Option<Duration>) -> Slow {
        let (next_ms, silent) = (AtomicU64::new(0), AtomicU64::new(0));
        Slow { threshold, since: Instant::now(), next_ms, silent }
    }

    /// A call of this service that began then has been answered.
    pub(super) fn note(&self, service: &str, method: &str, began: Instant) {
        let took = began.elapsed();
        if self.threshold.is_none_or(|threshold| took < threshold) {
            return;
        }
        let now_ms = self.since.elapsed().as_millis() as u64;
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let (order, later_ms) = (Ordering::Relaxed, now_ms + INTERVAL.as_millis() as u64);
        if now_ms < next_ms || self.next_ms.compare_exchange(next_ms, later_ms, order, order).is_err() {
            self.silent.fetch_add(1, Ordering::Relaxed);
            return;
        }
        warn!(
            response_type = format!("/{service}/{method}"),
            time_spent = format!("{took:?}"),
            others_since = self.silent.swap(0, Ordering::Relaxed),
            "request stats"
        );
    }
}
