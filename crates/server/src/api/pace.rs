//! How long another node takes to answer, for the choice between nodes: a peak-sensitive moving average of its answers' latency, and
//! the calls that wait for it (as in Finagle's and tower's "peak EWMA").

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How soon what was measured counts for little: a node that was slow is tried again.
const MEMORY: Duration = Duration::from_secs(5);

/// What is known of one node.
#[derive(Debug)]
pub(super) struct Pace {
    /// Microseconds, and when that was.
    latency: Mutex<(f64, Instant)>,
    waiting: AtomicUsize,
}

/// A call that waits for its answer.
pub(super) struct Waiting<'p> {
    pace: &'p Pace,
    began: Instant,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { latency: Mutex::new((0.0, Instant::now())), waiting: AtomicUsize::new(0) }
    }
}

impl Pace {
    /// What one more call may be expected to cost there: the one with the lower one is to be preferred.
    pub(super) fn cost(&self) -> f64 {
        let (latency_us, at) = *self.latency.lock();
        let waiting = self.waiting.load(Ordering::Relaxed);
        (faded(latency_us, at.elapsed()) + 1.0) * (waiting + 1) as f64
    }

    /// A call begins.
    pub(super) fn begin(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting { pace: self, began: Instant::now() }
    }

    fn observe(&self, took: Duration) {
        let sample_us = took.as_secs_f64() * 1e6;
        let mut latency = self.latency.lock();
        let before_us = latency.0;
        // Bad news counts at once, good news as time passes.
        let kept = (-latency.1.elapsed().as_secs_f64() / MEMORY.as_secs_f64()).exp();
        let next_us =
            if sample_us > before_us { sample_us } else { before_us * kept + sample_us * (1.0 - kept) };
        *latency = (next_us, Instant::now());
    }
}

fn faded(latency_us: f64, since: Duration) -> f64 {
    latency_us * (-since.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

impl Waiting<'_> {
    /// The answer came.
    pub(super) fn answered(self) {
        self.pace.observe(self.began.elapsed());
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pace.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_slow_or_busy_costs_more() {
        let (fast, slow, busy) = (Pace::default(), Pace::default(), Pace::default());
        fast.observe(Duration::from_millis(1));
        slow.observe(Duration::from_millis(10));
        busy.observe(Duration::from_millis(1));
        assert!(fast.cost() < slow.cost());
        let waiting: Vec<Waiting<'_>> = (0..3).map(|_| busy.begin()).collect();
        assert!(fast.cost() * 2.0 < busy.cost());
        drop(waiting);
        assert!(busy.cost() < fast.cost() * 1.5);
        slow.observe(Duration::ZERO);
        assert!(fast.cost() < slow.cost(), "one good answer is no proof");
    }

    #[test]
    fn what_was_is_forgotten() {
        assert!(faded(1000.0, Duration::ZERO) > 999.0);
        assert!(faded(1000.0, MEMORY * 5) < 10.0);
    }
}
