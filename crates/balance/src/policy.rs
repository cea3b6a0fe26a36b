//! What a planner is told to strive for.

/// Replicas that may be built at a time in a pool of any size.
const MOVES_MIN: usize = 16;
/// Leaderships that may be handed over at a time in a pool of any size.
const TRANSFERS_MIN: usize = 64;

/// Limits and thresholds of a planner. Shares are fractions: 0.05 is 5 %.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whether load is balanced. What is broken is mended in any case.
    pub balance: bool,
    /// Nobody receives a replica that would fill its disk beyond this share; who is beyond it sheds.
    pub disk_max: f64,
    /// Nobody whose fsync takes longer than this, in microseconds, receives replicas or leaderships.
    pub fsync_us_max: f64,
    /// How long a node may be out of reach before its replicas are rebuilt elsewhere, in microseconds.
    pub grace_us: u64,
    /// How far above its goal a node may be.
    pub overload: Band,
    /// How far below the level a node may be.
    pub underuse: Band,
    /// A leadership moves if that takes at least this share of the level off its node.
    pub leader_gain_min: f64,
    /// A replica moves if that takes at least this share of the level off its node.
    pub replica_gain_min: f64,
    /// Where only the spread is at stake, a replica moves if its part of the level is at least so many times its part of a node's bytes.
    pub bargain: f64,
    /// A group that was changed is left alone for so long, in microseconds, unless something is broken.
    pub cool_down_us: u64,
    /// Who lacks more entries than this neither leads nor votes.
    pub lag_max: u64,
    /// Replicas that are built at a time, for each node of the pool; sixteen in any case, in small pools what the nodes allow is less.
    pub moves_per_node: f64,
    /// Replicas that one node receives at a time.
    pub incoming_max: usize,
    /// Replicas that one node sends at a time.
    pub outgoing_max: usize,
    /// Leaderships handed over at a time, for each node of the pool; 64 in any case.
    pub transfers_per_node: f64,
}

/// Two thresholds, so that who stands between them is left alone: beyond `begin` something is done, until `end` is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// Where it begins.
    pub begin: f64,
    /// Where it ends.
    pub end: f64,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            balance: true,
            disk_max: 0.85,
            fsync_us_max: 100_000.0,
            grace_us: 600_000_000,
            overload: Band { begin: 0.04, end: 0.025 },
            underuse: Band { begin: 0.10, end: 0.05 },
            leader_gain_min: 0.0005,
            replica_gain_min: 0.0005,
            bargain: 2.0,
            cool_down_us: 3_600_000_000,
            lag_max: 512,
            moves_per_node: 0.25,
            incoming_max: 2,
            outgoing_max: 2,
            transfers_per_node: 0.25,
        }
    }
}

impl Policy {
    /// Replicas that are built at a time in a pool of so many nodes.
    pub fn moves_max(&self, nodes: usize) -> usize {
        ((self.moves_per_node * nodes as f64) as usize).max(MOVES_MIN)
    }

    /// Leaderships that are handed over at a time in a pool of so many nodes.
    pub fn transfers_max(&self, nodes: usize) -> usize {
        ((self.transfers_per_node * nodes as f64) as usize).max(TRANSFERS_MIN)
    }
}
