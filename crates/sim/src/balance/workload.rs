//! What keyspaces cost: a Zipf distribution over keyspaces of several kinds, days and nights, hot spots that appear and move; and how that
//! is measured.

use hadron_balance::{Capacity, GroupLoad, Load, Meter, Resource, Totals, View};
use hadron_consensus::{GroupId, Time};
use rand::rngs::{SmallRng, StdRng};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{HOUR_US, Settings};

/// Load of all keyspaces together, for each node: what leaders carry of it.
const LOAD_PER_NODE: f64 = 0.25;
/// What a keyspace can cost its leader at most: its clients wait for it then. A part of a node.
const KEYSPACE_LOAD_MAX: f64 = 0.5;
/// Parts of the day in which the keyspaces of one part of the world are busy.
const TIME_ZONES: usize = 4;
/// How much busier than the mean a keyspace is at its best hour.
const DAILY_SWING: f64 = 0.2;
/// What a sample may be off by.
const NOISE: f64 = 0.2;
/// Hot spots at a time, for each node.
const HOT_SPOTS_PER_NODE: f64 = 0.025;
/// When the last hot spot has gone: a part of the whole.
const HOT_UNTIL: f64 = 0.88;

/// The capacity of an ordinary node.
pub(super) fn capacity() -> Load {
    Load::ZERO
        .with(Resource::Cpu, 16.0)
        .with(Resource::Read, 1e9)
        .with(Resource::Written, 4e8)
        .with(Resource::Requests, 2e5)
        .with(Resource::Events, 1e6)
        .with(Resource::Storage, 2e12)
        .with(Resource::Memory, 128e9)
}

/// All keyspaces, the first as group 1.
pub(super) struct Workload {
    keyspaces: Vec<Keyspace>,
    /// Hot spots that come and go, the next last.
    changes: Vec<(Time, Change)>,
    /// Small and fast: it is asked for every keyspace all the time.
    noise: SmallRng,
    now: Time,
}

/// What is used of a keyspace's kind, by its leader beside the replica and by each replica, so that both together take an ordinary node.
struct Kind {
    leader: Load,
    replica: Load,
}

struct Keyspace {
    kind: GroupLoad,
    /// What its leader costs in the mean, as a part of an ordinary node.
    rate: f64,
    /// What a hot spot adds.
    hot: f64,
    time_zone: usize,
    bytes: u64,
    leader: Measured,
    follower: Measured,
}

/// A replica's totals and the meter that reads them.
#[derive(Default)]
struct Measured {
    totals: Totals,
    meter: Meter,
}

/// A keyspace gets so much hotter, or colder.
struct Change {
    keyspace: usize,
    by: f64,
}

impl Workload {
    pub(super) fn new(settings: &Settings) -> Workload {
        let mut random = StdRng::seed_from_u64(settings.seed);
        let rates = rates(settings, &mut random);
        let kinds = kinds();
        let keyspaces = rates.into_iter().map(|rate| keyspace(rate, &kinds, &mut random)).collect();
        let changes = hot_spots(settings, &mut random);
        Workload { keyspaces, changes, noise: SmallRng::seed_from_u64(settings.seed), now: Time(0) }
    }

    /// Bytes of each keyspace.
    pub(super) fn bytes(&self) -> impl Iterator<Item = (GroupId, u64)> {
        self.keyspaces.iter().enumerate().map(|(number, it)| (GroupId(number as u64 + 1), it.bytes))
    }

    /// Time passes, and every replica's meter is read.
    pub(super) fn advance(&mut self, now: Time) {
        while self.changes.last().is_some_and(|(at, _)| *at <= now) {
            let Some((_, change)) = self.changes.pop() else { break };
            self.keyspaces[change.keyspace].hot += change.by;
        }
        let seconds = now.micros_since(self.now) as f64 / 1e6;
        self.now = now;
        let swing = swing(now);
        for it in &mut self.keyspaces {
            let noise = 1.0 + NOISE * self.noise.random_range(-1.0..=1.0);
            let load = it.load(&swing, noise);
            it.leader.observe(now, &load.at(true), seconds);
            it.follower.observe(now, &load.at(false), seconds);
        }
    }

    /// Writes into the view what was measured.
    pub(super) fn report(&self, view: &mut View) {
        for (group, it) in view.groups.values_mut().zip(&self.keyspaces) {
            group.load = GroupLoad::split(&it.leader.meter.steady(), &[it.follower.meter.steady()]);
        }
    }

    /// Writes into the view what is true.
    pub(super) fn reveal(&self, view: &mut View) {
        let swing = swing(self.now);
        for (group, it) in view.groups.values_mut().zip(&self.keyspaces) {
            group.load = it.load(&swing, 1.0);
        }
    }
}

impl Keyspace {
    fn load(&self, swing: &[f64; TIME_ZONES], noise: f64) -> GroupLoad {
        let rate = (self.rate * swing[self.time_zone] + self.hot).min(KEYSPACE_LOAD_MAX) * noise;
        let held = Load::ZERO
            .with(Resource::Storage, self.bytes as f64)
            .with(Resource::Memory, self.bytes as f64 * MEMORY_PER_BYTE);
        GroupLoad { leader: self.kind.leader * rate, replica: self.kind.replica * rate + &held }
    }
}

/// What is in memory of what is on disk.
const MEMORY_PER_BYTE: f64 = 0.04;

impl Measured {
    fn observe(&mut self, now: Time, load: &Load, seconds: f64) {
        let used = |resource: Resource| (load[resource] * seconds) as u64;
        let totals = &mut self.totals;
        totals.cpu_us += (load[Resource::Cpu] * seconds * 1e6) as u64;
        totals.read_bytes += used(Resource::Read);
        totals.written_bytes += used(Resource::Written);
        totals.requests += used(Resource::Requests);
        totals.events += used(Resource::Events);
        totals.storage_bytes = load[Resource::Storage] as u64;
        totals.memory_bytes = load[Resource::Memory] as u64;
        self.meter.observe(now, *totals);
    }
}

/// How busy each part of the world is, around 1.
fn swing(now: Time) -> [f64; TIME_ZONES] {
    let day = now.0 as f64 / (24 * HOUR_US) as f64;
    std::array::from_fn(|zone| {
        let turn = day + zone as f64 / TIME_ZONES as f64;
        1.0 + DAILY_SWING * (turn * std::f64::consts::TAU).sin()
    })
}

/// Zipf: the keyspace of rank k has 1/k^s of the first one's load. Ranks are dealt at random.
fn rates(settings: &Settings, random: &mut StdRng) -> Vec<f64> {
    let weights: Vec<f64> = (1..=settings.keyspaces).map(|rank| (rank as f64).powf(-settings.zipf)).collect();
    let scale = LOAD_PER_NODE * settings.nodes as f64 / weights.iter().sum::<f64>();
    let mut rates: Vec<f64> = weights.into_iter().map(|weight| weight * scale).collect();
    rates.shuffle(random);
    rates
}

/// Read-heavy, write-heavy, watched by many, and a bit of everything.
fn kinds() -> [Kind; 4] {
    let ordinary = capacity();
    let share = |cpu, read, written, requests, events| {
        let of = |resource: Resource, part: f64| ordinary[resource] * part;
        Load::ZERO
            .with(Resource::Cpu, of(Resource::Cpu, cpu))
            .with(Resource::Read, of(Resource::Read, read))
            .with(Resource::Written, of(Resource::Written, written))
            .with(Resource::Requests, of(Resource::Requests, requests))
            .with(Resource::Events, of(Resource::Events, events))
    };
    [
        Kind { leader: share(0.75, 0.5, 0.0, 0.7, 0.0), replica: share(0.2, 0.2, 0.05, 0.1, 0.0) },
        Kind { leader: share(0.4, 0.1, 0.0, 0.3, 0.0), replica: share(0.4, 0.05, 1.0, 0.1, 0.1) },
        Kind { leader: share(0.4, 0.1, 0.0, 0.2, 0.3), replica: share(0.35, 0.1, 0.2, 0.1, 0.5) },
        Kind { leader: share(0.5, 0.2, 0.0, 0.5, 0.2), replica: share(0.3, 0.2, 0.4, 0.3, 0.2) },
    ]
}

fn keyspace(rate: f64, kinds: &[Kind; 4], random: &mut StdRng) -> Keyspace {
    let kind = &kinds[random.random_range(0..kinds.len())];
    let full = Capacity::of(capacity()).utilisation(&(kind.leader + &kind.replica));
    Keyspace {
        kind: GroupLoad { leader: kind.leader * (1.0 / full), replica: kind.replica * (1.0 / full) },
        rate,
        hot: 0.0,
        time_zone: random.random_range(0..TIME_ZONES),
        bytes: bytes(random),
        leader: Measured::default(),
        follower: Measured::default(),
    }
}

/// Log-normal: half of the keyspaces have less than 300 MB, a few have 16 GB.
fn bytes(random: &mut StdRng) -> u64 {
    let (radius, angle): (f64, f64) = (random.random_range(f64::EPSILON..1.0), random.random());
    let normal = (-2.0 * radius.ln()).sqrt() * (angle * std::f64::consts::TAU).cos();
    (3e8 * (1.3 * normal).exp()).clamp(1e6, 16e9) as u64
}

/// Each hot spot stays with a keyspace for a while and then moves on to another.
fn hot_spots(settings: &Settings, random: &mut StdRng) -> Vec<(Time, Change)> {
    let count = ((settings.nodes as f64 * HOT_SPOTS_PER_NODE) as usize).max(1);
    let (begin, end) = (settings.at(super::TROUBLED.0), settings.at(HOT_UNTIL));
    let mut changes = Vec::new();
    for _ in 0..count {
        let mut at = begin.plus_micros(random.random_range(0..2 * HOUR_US));
        while at < end {
            let keyspace = random.random_range(0..settings.keyspaces);
            let by = random.random_range(0.05..0.4);
            changes.push((at, Change { keyspace, by }));
            at = end.min(at.plus_micros(random.random_range(HOUR_US / 2..4 * HOUR_US)));
            changes.push((at, Change { keyspace, by: -by }));
        }
    }
    changes.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    changes
}
