//! A group's clock: logical, carried by the stamps of its entries, so that every replica computes the same expiries.
//!
//! A leader's stamp is the last stamp in its log when it was elected plus its monotonic time since. Time without a
//! leader does not count, jumps of wall clocks do not matter, and a lease never ends early. Time in which nothing was
//! written would not count for the next leader either; so as long as there are leases the leader logs a stamp from time to time
//! ([`crate::Limits::stamp_interval_us`]).

use hadron_consensus::Time;

/// A point of a group's clock, and when it was read on ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupClock {
    stamp_ms: u64,
    at: Time,
}

impl GroupClock {
    /// The clock shows `stamp_ms` at `at`.
    pub fn new(stamp_ms: u64, at: Time) -> GroupClock {
        GroupClock { stamp_ms, at }
    }

    /// What the clock shows at `now`, in milliseconds.
    pub fn now_ms(&self, now: Time) -> u64 {
        self.stamp_ms + now.micros_since(self.at) / 1_000
    }

    /// When the clock will show at least `stamp_ms`.
    pub fn time_of(&self, stamp_ms: u64) -> Time {
        self.at.plus_micros(stamp_ms.saturating_sub(self.stamp_ms).saturating_mul(1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_with_monotonic_time() {
        let clock = GroupClock::new(500, Time(10_000));
        assert_eq!(clock.now_ms(Time(10_999)), 500);
        assert_eq!(clock.now_ms(Time(12_000)), 502);
        assert_eq!(clock.time_of(502), Time(12_000));
        assert_eq!(clock.time_of(100), Time(10_000));
    }
}
