//! The process's monotonic clock, as the node counts it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hadron_consensus::Time;

/// What the clock shows at its origin. Not 0, which means "never".
const ORIGIN_US: u64 = 1_000_000;

/// Turns instants into [`Time`]s and back. Copies show the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    origin: Instant,
    /// The wall clock at the origin, in milliseconds; for people only.
    origin_wall_ms: i64,
}

impl Clock {
    /// A clock that begins now.
    pub(super) fn start() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { origin: Instant::now(), origin_wall_ms: wall.as_millis() as i64 }
    }

    pub(super) fn now(&self) -> Time {
        Time(ORIGIN_US + self.origin.elapsed().as_micros() as u64)
    }

    /// When the clock shows `time`; the origin for times before it.
    pub(super) fn instant(&self, time: Time) -> Instant {
        self.origin + Duration::from_micros(time.0.saturating_sub(ORIGIN_US))
    }

    /// What a wall clock that never jumped would show at `time`, in milliseconds since 1970.
    pub(super) fn wall_ms(&self, time: Time) -> i64 {
        self.origin_wall_ms + (time.0.saturating_sub(ORIGIN_US) / 1_000) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_instants_are_each_others_inverse() {
        let clock = Clock::start();
        let time = Time(ORIGIN_US + 1_234_567);
        assert_eq!(clock.instant(time), clock.origin + Duration::from_micros(1_234_567));
        assert_eq!(clock.instant(Time(0)), clock.origin);
        assert_eq!(clock.wall_ms(time), clock.origin_wall_ms + 1_234);
        assert!(clock.now() >= Time(ORIGIN_US));
    }
}
