//! Load detection: running totals in, smoothed rates out.
//!
//! A [`Meter`] is fed with the totals of one group's replica, or of a whole node, whenever its owner has the time, and gives
//! rates that are smoothed over 10 seconds and over 1 minute, for the eye and for alarms. Plans are made with a third one, the *steady*
//! load, because a planner that believes every minute chases noise: it is smoothed over 10 minutes, and gives up its past when
//! the last minute says something else altogether. So it is calm in calm times and still sees a hot spot within a minute.
//!
//! The averages are exponential, weighted by time, so that samples need not be regular, and are divided by the weight they have
//! gathered, so that a new meter tells the truth from its second sample on instead of climbing from zero. What is not a
//! rate (storage, memory) is passed on as it is.

use hadron_consensus::Time;

use crate::load::{Load, Resource};

/// The shorter time over which rates are smoothed, in microseconds.
pub const SHORT_US: u64 = 10_000_000;
/// The longer one.
pub const LONG_US: u64 = 60_000_000;
/// The time over which the load to plan with is smoothed as long as it stays what it was.
pub const STEADY_US: u64 = 600_000_000;
/// When the last minute differs by more than this part from the ten before, these do not count any more.
pub const STEADY_MAX: f64 = 0.25;

/// What has been used since the process began, and what is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Processor time in microseconds.
    pub cpu_us: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written, to the log and to the engine.
    pub written_bytes: u64,
    /// Requests.
    pub requests: u64,
    /// Watch events sent.
    pub events: u64,
    /// Bytes on disk now.
    pub storage_bytes: u64,
    /// Bytes in memory now.
    pub memory_bytes: u64,
}

impl Totals {
    /// The rates per second of what was used since `earlier`. A total that went back began anew at 0: its process restarted.
    fn rates_since(&self, earlier: &Totals, seconds: f64) -> Load {
        let since = |now: u64, before: u64| if now < before { now } else { now - before };
        let used = |now, before| since(now, before) as f64 / seconds;
        Load::ZERO
            .with(Resource::Cpu, used(self.cpu_us, earlier.cpu_us) / 1e6)
            .with(Resource::Read, used(self.read_bytes, earlier.read_bytes))
            .with(Resource::Written, used(self.written_bytes, earlier.written_bytes))
            .with(Resource::Requests, used(self.requests, earlier.requests))
            .with(Resource::Events, used(self.events, earlier.events))
    }

    /// `rates` with what is held now.
    fn held(&self, rates: Load) -> Load {
        rates
            .with(Resource::Storage, self.storage_bytes as f64)
            .with(Resource::Memory, self.memory_bytes as f64)
    }
}

/// An exponential average over time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Average {
    sum: Load,
    /// What the samples in `sum` weigh together. Below 1 until several time constants have passed.
    weight: f64,
}

impl Average {
    fn add(&mut self, sample: Load, elapsed_us: u64, over_us: u64) {
        let fresh = 1.0 - (-(elapsed_us as f64) / over_us as f64).exp();
        self.sum = self.sum * (1.0 - fresh) + &(sample * fresh);
        self.weight = self.weight * (1.0 - fresh) + fresh;
    }

    /// Takes the value of `recent` for each resource in which this one has gone too far from it.
    fn follow(&mut self, recent: Load) {
        let value = self.value();
        for resource in Resource::ALL {
            let (now, before) = (recent[resource], value[resource]);
            if (now - before).abs() > STEADY_MAX * before {
                self.sum[resource] = now * self.weight;
            }
        }
    }

    fn value(&self) -> Load {
        if self.weight > 0.0 { self.sum * (1.0 / self.weight) } else { Load::ZERO }
    }
}

/// The smoothed load of one replica, or of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Meter {
    last: Option<(Time, Totals)>,
    short: Average,
    long: Average,
    steady: Average,
    /// Since when there have been samples.
    since: Option<Time>,
}

impl Meter {
    /// Takes the totals as they are at `now`. Samples of one moment count once.
    pub fn observe(&mut self, now: Time, totals: Totals) {
        self.since.get_or_insert(now);
        if let Some((at, earlier)) = self.last {
            let elapsed_us = now.micros_since(at);
            if elapsed_us == 0 {
                return;
            }
            let rates = totals.rates_since(&earlier, elapsed_us as f64 / 1e6);
            self.short.add(rates, elapsed_us, SHORT_US);
            self.long.add(rates, elapsed_us, LONG_US);
            self.steady.add(rates, elapsed_us, STEADY_US);
            self.steady.follow(self.long.value());
        }
        self.last = Some((now, totals));
    }

    /// The load smoothed over 10 seconds.
    pub fn short(&self) -> Load {
        self.held(self.short.value())
    }

    /// The load smoothed over 1 minute.
    pub fn long(&self) -> Load {
        self.held(self.long.value())
    }

    /// The load to plan with.
    pub fn steady(&self) -> Load {
        self.held(self.steady.value())
    }

    /// Microseconds from the first sample to the last: how much the averages can know.
    pub fn observed_us(&self) -> u64 {
        match (self.since, self.last) {
            (Some(since), Some((last, _))) => last.micros_since(since),
            _ => 0,
        }
    }

    fn held(&self, rates: Load) -> Load {
        self.last.map_or(rates, |(_, totals)| totals.held(rates))
    }
}

/// The smoothed mean of a latency, such as that of fsync.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LatencyMeter {
    /// Calls, and microseconds that they took: averaged apart, so that the mean is one over calls and not over samples.
    totals: Meter,
}

impl LatencyMeter {
    /// Takes the number of calls since the process began and the microseconds that they took together.
    pub fn observe(&mut self, now: Time, calls: u64, micros: u64) {
        self.totals.observe(now, Totals { requests: calls, cpu_us: micros, ..Totals::default() });
    }

    /// The mean of 10 seconds, in microseconds; 0 without calls.
    pub fn short_us(&self) -> f64 {
        mean_us(&self.totals.short())
    }

    /// The mean of 1 minute.
    pub fn long_us(&self) -> f64 {
        mean_us(&self.totals.long())
    }
}

fn mean_us(load: &Load) -> f64 {
    let calls = load[Resource::Requests];
    if calls > 0.0 { load[Resource::Cpu] * 1e6 / calls } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn requests(total: u64) -> Totals {
        Totals { requests: total, storage_bytes: 7, ..Totals::default() }
    }

    /// A meter that sees `rates` requests per second, a second each.
    fn fed(rates: &[u64]) -> Meter {
        let mut meter = Meter::default();
        let mut total = 0;
        meter.observe(Time(0), requests(0));
        for (second, rate) in rates.iter().enumerate() {
            total += rate;
            meter.observe(Time((second as u64 + 1) * SECOND), requests(total));
        }
        meter
    }

    #[test]
    fn a_new_meter_tells_the_truth_from_its_second_sample_on() {
        let meter = fed(&[100]);
        assert!((meter.short()[Resource::Requests] - 100.0).abs() < 1e-6);
        assert!((meter.long()[Resource::Requests] - 100.0).abs() < 1e-6);
        assert_eq!(meter.long()[Resource::Storage], 7.0);
        assert_eq!(meter.observed_us(), SECOND);
        assert_eq!(Meter::default().long(), Load::ZERO);
    }

    #[test]
    fn the_short_average_follows_a_jump_in_seconds_and_the_long_one_in_minutes() {
        let jump: Vec<u64> = [vec![0; 300], vec![1000; 10]].concat();
        let meter = fed(&jump);
        let (short, long) = (meter.short()[Resource::Requests], meter.long()[Resource::Requests]);
        assert!((short - 632.0).abs() < 5.0, "1 - 1/e of the jump after one time constant: {short}");
        assert!((long - 154.0).abs() < 5.0, "1 - e^(-1/6): {long}");
    }

    #[test]
    fn the_steady_load_ignores_noise_and_follows_what_lasts() {
        let noisy: Vec<u64> = (0..6000).map(|second| if second % 2 == 0 { 80 } else { 120 }).collect();
        let calm = fed(&noisy).steady()[Resource::Requests];
        assert!((calm - 100.0).abs() < 1.0, "{calm}");
        let hot = fed(&[noisy.clone(), vec![1000; 60]].concat()).steady()[Resource::Requests];
        assert!((600.0..1000.0).contains(&hot), "what the last minute says: {hot}");
        let drifting = fed(&[noisy, vec![110; 600]].concat()).steady()[Resource::Requests];
        assert!((drifting - 106.3).abs() < 1.0, "1 - 1/e of a small change after ten minutes: {drifting}");
    }

    #[test]
    fn how_often_one_looks_makes_no_difference() {
        let mut seldom = Meter::default();
        seldom.observe(Time(0), requests(0));
        seldom.observe(Time(60 * SECOND), requests(6_000));
        seldom.observe(Time(60 * SECOND), requests(9_999));
        let often = fed(&[100; 60]);
        assert!((seldom.long()[Resource::Requests] - often.long()[Resource::Requests]).abs() < 1e-6);
    }

    #[test]
    fn totals_that_begin_anew_are_no_negative_load() {
        let mut meter = fed(&[100]);
        meter.observe(Time(2 * SECOND), requests(40));
        let rate = meter.short()[Resource::Requests];
        assert!((40.0..=100.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_latency_is_the_mean_over_calls() {
        let mut meter = LatencyMeter::default();
        assert_eq!(meter.short_us(), 0.0);
        meter.observe(Time(0), 0, 0);
        meter.observe(Time(SECOND), 99, 99 * 100);
        meter.observe(Time(2 * SECOND), 100, 99 * 100 + 10_000);
        let mean = meter.long_us();
        assert!((mean - 199.0).abs() < 5.0, "19,900 us in 100 calls: {mean}");
    }
}
