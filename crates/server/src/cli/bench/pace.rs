//! Requests that become due at a rate.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// A pace that began.
///
/// A thread of its own sleeps from one request to the next, because the timers of the asynchronous runtime are exact to a millisecond
/// only, which is longer than a request takes.
pub(super) struct Pace {
    started: Instant,
    interval: Duration,
    burst: u64,
    /// Holds one for each request that is due and not begun.
    due: Arc<Semaphore>,
}

impl Pace {
    /// Begins it, with the first of `total` requests due now, and `rate` of them in each second, at least one. They become due `burst` at
    /// a time, at least one.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub(super) fn start(rate: u64, burst: u64, total: u64) -> Result<Pace, String> {
        let pace = Pace {
            started: Instant::now(),
            interval: Duration::from_secs_f64(1.0 / rate as f64),
            burst,
            due: Arc::new(Semaphore::new(0)),
        };
        let (started, interval, due) = (pace.started, pace.interval, Arc::clone(&pace.due));
        let count = move || {
            let mut counted = 0;
            while counted < total {
                let passed = started.elapsed().div_duration_f64(interval) as u64;
                let due_now = (passed / burst + 1).saturating_mul(burst).clamp(counted, total);
                due.add_permits((due_now - counted) as usize);
                counted = due_now;
                thread::sleep(interval.mul_f64(counted as f64).saturating_sub(started.elapsed()));
            }
        };
        let spawned = thread::Builder::new().name("pace".to_owned()).spawn(count);
        spawned.map(|_| pace).map_err(|error| format!("cannot start a thread: {error}"))
    }

    /// Waits until a request is due, and tells since when it has been. Requests must be waited for in the order of their numbers, from 0.
    pub(super) async fn due(&self, index: u64) -> Instant {
        if let Ok(permit) = self.due.acquire().await {
            permit.forget();
        }
        self.started + self.interval.mul_f64((index / self.burst * self.burst) as f64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn requests_are_never_early_and_none_is_left_out() {
        for burst in [1, 30] {
            let pace = Pace::start(10_000, burst, 500).unwrap();
            for index in 0..500 {
                let due = pace.due(index).await;
                let first = index / burst * burst;
                assert_eq!(due - pace.started, Duration::from_micros(100) * first as u32);
                assert!(Instant::now() >= due, "request {index} came early");
            }
        }
    }
}
