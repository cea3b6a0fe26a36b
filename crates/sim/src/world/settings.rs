//! What a world is like: most of it drawn from the seed, so that different seeds are different worlds.

use hadron_consensus::GroupId;
use hadron_node::Limits;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::faults::Weights;
use super::lies::Lie;
use super::network::Delays;
use super::scenario::Scenario;

/// The properties of one world. [`Settings::of_seed`] draws them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Everything else follows from it.
    pub seed: u64,
    /// Nodes, each with a replica of every group, unless these are placed.
    pub nodes: u64,
    /// Keyspaces, the first of which is `default`; each has a group of its own.
    pub keyspaces: u64,
    /// Shards that a node has at most; each of its processes has as many as it happens to.
    pub shards_max: usize,
    /// Clients that read and write, each in one keyspace. They take turns.
    pub clients: u64,
    /// Clients that hold leases.
    pub lease_clients: u64,
    /// Clients that compete for one lock.
    pub lock_clients: u64,
    /// Watchers.
    pub watchers: u64,
    /// Keyspaces that have ten more clients, who hardly think.
    pub busy_keyspaces: Vec<GroupId>,
    /// Microseconds during which faults happen.
    pub faults_us: u64,
    /// Microseconds within which the healed pool must serve every client, and later be equal everywhere.
    pub recovery_us_max: u64,
    /// Microseconds of undisturbed work after the recovery.
    pub calm_us: u64,
    /// Microseconds after which a client gives a request up.
    pub client_timeout_us: u64,
    /// Mean pause of a client between two operations, in microseconds.
    pub think_us: u64,
    /// At the end of every [`REST_EVERY_US`] nobody begins anything for so many microseconds, so that groups fall asleep.
    pub rest_us: u64,
    /// How many nodes are sick in the end, one after the other.
    pub sicknesses: u32,
    /// In the end, when all sleep, a node is lost.
    pub ends_in_silence: bool,
    /// Mean pause between two faults, in microseconds.
    pub fault_pause_us: u64,
    /// How often each kind of fault happens, compared with the others.
    pub weights: Weights,
    /// At one in this many delicate moments (a vote on its way, a switch to a snapshot, a cut of the log) the machine
    /// loses its power; 0 for never.
    pub delicate_one_in: u32,
    /// One chunk of a snapshot in this many arrives with a flipped bit; 0 for none.
    pub chunk_flip_one_in: u32,
    /// How many parts in a million a machine's clock may be fast or slow.
    pub drift_ppm: u64,
    /// Mean pause between two compactions, each of some keyspace, in microseconds; 0 for none.
    pub compaction_us: u64,
    /// Mean pause between two changes of the members, in microseconds; 0 for none.
    pub member_changes_us: u64,
    /// Mean pause between two changes of where keyspaces are, in microseconds; 0 if each is on every node from the start.
    pub placement_changes_us: u64,
    /// Keyspaces, the last ones, that are deleted now and then, and made anew under their names.
    pub mortals: u64,
    /// Mean pause between two accusations of replicas, which are rebuilt then, in microseconds; 0 for none. Then keyspaces are not moved otherwise.
    pub accusations_us: u64,
    /// Whoever leads the root group plans, as the server's driver does.
    pub plans: bool,
    /// As few members may be left to vote.
    pub members_min: usize,
    /// Troubles of single groups, from [`TROUBLE_US`] on until everything is healed.
    pub troubles: Vec<Trouble>,
    /// When all machines lose their power at once, in microseconds.
    pub blackouts_us: Vec<u64>,
    /// Microseconds that an fsync takes at most when the disk is well.
    pub sync_us_max: u64,
    /// Bytes in a segment of the log.
    pub segment_bytes: u64,
    /// Bytes of log that may be kept before those for whom it is kept must move on.
    pub pinned_bytes_max: u64,
    /// One value in this many is large.
    pub large_value_one_in: u32,
    /// Bytes of values that the keyspaces of a node keep in memory together.
    pub cache_bytes: usize,
    /// Bytes of events that wait for a watcher before it reads history instead.
    pub watch_buffer_bytes: usize,
    /// The nodes' bounds and rhythms.
    pub limits: Limits,
    /// Lines of the trace in a report of failure.
    pub tail_lines: usize,
    /// A lie that the world tells its nodes or clients, for tests of the checkers.
    pub lie: Option<Lie>,
    /// The only guarantee that is checked, for tests of its checker; without one all are.
    pub only: Option<&'static str>,
    /// Delays of the network.
    pub delays: Delays,
}

/// See [`Settings::rest_us`].
pub const REST_EVERY_US: u64 = 5_000_000;

/// When the troubles of single groups begin, in microseconds.
pub const TROUBLE_US: u64 = 3_000_000;

/// What ails one group while all others are well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Its replicas cannot talk to each other.
    NoQuorum(GroupId),
    /// The engine of this node does not finish the flush that it was given for the group.
    StalledFlush(u64, GroupId),
}

impl Settings {
    /// The usual world of `seed`.
    pub fn of_seed(seed: u64) -> Settings {
        Settings::of(Scenario::Usual, seed)
    }

    /// The world of `seed` in which one kind of fault or load prevails.
    pub fn of(scenario: Scenario, seed: u64) -> Settings {
        // Drawn from another stream than what happens in the world.
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5e77_1465);
        let mut settings = Settings::draw(seed, &mut rng);
        scenario.change(&mut settings);
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x51a2_d500);
        settings.shards_max = *pick(&mut rng, &[1, 3, 3]);
        if settings.shards_max > 1 && rng.random_bool(0.5) {
            // So that there is something to be divided.
            settings.keyspaces = settings.keyspaces.max(3);
        }
        settings.cache_bytes = *pick(&mut rng, &[0, 4 << 10, 64 << 20]);
        settings.watch_buffer_bytes = *pick(&mut rng, &[500, 4 << 20]);
        settings.limits.apply_effort = *pick(&mut rng, &[1, 3, 4_000]);
        settings
    }

    /// Whether anybody wants to know that a guarantee does not hold.
    pub(super) fn checks(&self, guarantee: &str) -> bool {
        self.only.is_none_or(|only| only == guarantee)
    }

    /// Whether a keyspace is deleted now and then.
    pub(super) fn is_mortal(&self, keyspace: GroupId) -> bool {
        keyspace.0 + self.mortals > self.keyspaces
    }

    /// When the rest that there is at `now` ends; `None` if there is none.
    pub(super) fn rest_ends(&self, now: u64) -> Option<u64> {
        let since = now % REST_EVERY_US;
        (since + self.rest_us >= REST_EVERY_US).then(|| now - since + REST_EVERY_US)
    }

    fn draw(seed: u64, rng: &mut SmallRng) -> Settings {
        let segment_bytes = *pick(rng, &[64 << 10, 256 << 10]);
        Settings {
            seed,
            nodes: *pick(rng, &[3, 3, 5]),
            keyspaces: *pick(rng, &[1, 1, 1, 3]),
            shards_max: 1,
            clients: rng.random_range(4..=8),
            lease_clients: 1,
            lock_clients: *pick(rng, &[0, 2, 3]),
            watchers: 2,
            sicknesses: 0,
            ends_in_silence: false,
            faults_us: 15_000_000,
            recovery_us_max: 15_000_000,
            calm_us: 1_000_000,
            client_timeout_us: *pick(rng, &[1_500_000, 3_000_000, 7_000_000]),
            think_us: *pick(rng, &[10_000, 30_000, 80_000]),
            fault_pause_us: *pick(rng, &[400_000, 800_000, 1_500_000]),
            weights: Weights::usual(),
            delicate_one_in: *pick(rng, &[0, 50, 500]),
            chunk_flip_one_in: *pick(rng, &[0, 30, 300]),
            drift_ppm: *pick(rng, &[0, 1_000, 20_000]),
            compaction_us: *pick(rng, &[0, 500_000, 3_000_000]),
            member_changes_us: 0,
            placement_changes_us: 0,
            mortals: 0,
            accusations_us: 0,
            plans: false,
            members_min: 3,
            busy_keyspaces: Vec::new(),
            troubles: Vec::new(),
            blackouts_us: Vec::new(),
            sync_us_max: *pick(rng, &[300, 2_000, 10_000]),
            segment_bytes,
            pinned_bytes_max: 4 * segment_bytes,
            large_value_one_in: *pick(rng, &[0, 10, 50]),
            cache_bytes: 64 << 20,
            watch_buffer_bytes: 4 << 20,
            limits: limits(rng),
            tail_lines: 60,
            lie: None,
            only: None,
            delays: Delays {
                least_us: *pick(rng, &[50, 200, 2_000]),
                jitter_us: *pick(rng, &[100, 1_000, 8_000]),
                spike_one_in: *pick(rng, &[0, 100, 1_000]),
                spike_us: *pick(rng, &[20_000, 300_000]),
            },
            rest_us: *pick(rng, &[0, 1_500_000, 3_000_000]),
        }
    }
}

/// Small bounds, so that a short run meets them.
fn limits(rng: &mut SmallRng) -> Limits {
    Limits {
        entry_bytes: *pick(rng, &[200, 4 << 10, 1 << 20]),
        inflight_bytes: *pick(rng, &[8 << 10, 16 << 20]),
        uncommitted_bytes: *pick(rng, &[32 << 10, 64 << 20]),
        unflushed_bytes: *pick(rng, &[128 << 10, 64 << 20]),
        node_unflushed_bytes: *pick(rng, &[128 << 10, 256 << 20]),
        node_log_bytes: *pick(rng, &[256 << 10, 512 << 20]),
        flush_bytes: *pick(rng, &[1 << 10, 4 << 20]),
        flush_interval_us: *pick(rng, &[50_000, 200_000]),
        persist_interval_us: *pick(rng, &[200_000, 2_000_000]),
        log_tail_bytes: *pick(rng, &[1 << 10, 16 << 10, 16 << 20]),
        snapshot_log_bytes: *pick(rng, &[4 << 10, 256 << 20]),
        digest_interval_us: 1_000_000,
        stamp_interval_us: *pick(rng, &[500_000, 5_000_000, 300_000_000]),
        sleep_after_us: *pick(rng, &[0, 300_000, 1_000_000]),
        ..Limits::default()
    }
}

pub(super) fn pick<'a, T>(rng: &mut SmallRng, choices: &'a [T]) -> &'a T {
    &choices[rng.random_range(0..choices.len())]
}
