//! What is done to a cluster, and in which order: all of it follows from a seed.
//!
//! Who leads when a fault strikes does not, so a run cannot be repeated exactly; its plan can.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::network::Link;

/// A fault is shorter than this if it must not make a leader lose its place, and longer if it must.
pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// Whom a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// This node.
    Node(usize),
    /// Whoever leads.
    Leader,
    /// All.
    All,
}

/// How the nodes are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Partition {
    /// One node from all others.
    Alone(Whom),
    /// Those named from those not named.
    Halves(Vec<usize>),
    /// What one node says reaches nobody.
    Mute(Whom),
    /// What the others say does not reach one node.
    Deaf(Whom),
    /// Two nodes from each other.
    Pair(usize, usize),
    /// What the first says does not reach the second.
    OneWay(usize, usize),
}

/// Something bad. It lasts until the end of its step, when everything is mended.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// `kill -9`.
    Kill(Whom),
    /// `kill -9`, and the others take more writes than their logs keep.
    Miss(usize),
    /// `SIGSTOP`.
    Pause(Whom),
    /// `SIGTERM`; the node must stop in good order.
    Stop(Whom),
    /// `SIGTERM`, and at once a start from another copy of the executable.
    Upgrade(Whom),
    /// The same for all nodes, one after the other.
    UpgradeAll,
    /// Messages do not arrive.
    Partition(Partition),
    /// All connections between nodes break, once.
    Break,
    /// Bad links everywhere.
    Weather(Link),
    /// Bad links from one node.
    Distant(Whom, Link),
    /// Every fsync takes so much longer.
    SlowDisk(Whom, Duration),
    /// Nothing can be written to the node's data directory.
    FullDisk(Whom),
    /// `kill -9`, the disk is lost, and an administrator replaces the member.
    Replace(Whom),
    /// The same with a member that runs, and must end by itself.
    Retire(Whom),
}

impl Fault {
    /// What the report calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Kill(Whom::All) => "all killed",
            Fault::Kill(_) => "killed",
            Fault::Miss(_) => "killed for long",
            Fault::Pause(_) => "paused",
            Fault::Stop(_) => "stopped",
            Fault::Upgrade(_) | Fault::UpgradeAll => "upgraded",
            Fault::Partition(Partition::Mute(_) | Partition::Deaf(_) | Partition::OneWay(..)) => {
                "one-way partition"
            }
            Fault::Partition(_) => "partition",
            Fault::Break => "connections broken",
            Fault::Weather(_) | Fault::Distant(..) => "bad links",
            Fault::SlowDisk(..) => "slow disk",
            Fault::FullDisk(_) => "full disk",
            Fault::Replace(_) => "dead member replaced",
            Fault::Retire(_) => "running member replaced",
        }
    }
}

/// Faults that begin together, how long they last, and what comes afterwards.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub faults: Vec<Fault>,
    pub lasts: Duration,
    /// Time between the mending and the next step.
    pub calm: Duration,
    /// Writes must go on before the next step.
    pub must_recover: bool,
}

/// An endless row of steps.
pub struct Plan {
    rng: SmallRng,
    nodes: usize,
}

impl Plan {
    pub fn new(seed: u64, nodes: usize) -> Plan {
        Plan { rng: SmallRng::seed_from_u64(seed), nodes }
    }

    fn whom(&mut self) -> Whom {
        match self.rng.random_range(0..5) {
            0..3 => Whom::Leader,
            _ => Whom::Node(self.node()),
        }
    }

    fn node(&mut self) -> usize {
        self.rng.random_range(0..self.nodes)
    }

    /// Two different nodes.
    fn pair(&mut self) -> (usize, usize) {
        let from = self.node();
        (from, (from + self.rng.random_range(1..self.nodes)) % self.nodes)
    }

    fn partition(&mut self) -> Partition {
        let (from, to) = self.pair();
        match self.rng.random_range(0..6) {
            0 => Partition::Alone(self.whom()),
            1 => Partition::Halves(self.half()),
            2 => Partition::Mute(self.whom()),
            3 => Partition::Deaf(self.whom()),
            4 => Partition::Pair(from, to),
            _ => Partition::OneWay(from, to),
        }
    }

    fn half(&mut self) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.nodes).collect();
        nodes.shuffle(&mut self.rng);
        nodes.truncate(self.nodes / 2);
        nodes
    }

    fn link(&mut self) -> Link {
        let milliseconds = |most: u64, rng: &mut SmallRng| Duration::from_millis(rng.random_range(0..most));
        Link {
            delay: milliseconds(60, &mut self.rng),
            jitter: milliseconds(120, &mut self.rng),
            loss: *[0.0, 0.02, 0.2].choose(&mut self.rng).unwrap_or(&0.0),
            bytes_per_second: *[0, 64 << 10, 1 << 20].choose(&mut self.rng).unwrap_or(&0),
            ..Link::default()
        }
    }

    fn fault(&mut self) -> Fault {
        match self.rng.random_range(0..100) {
            0..14 => Fault::Kill(self.whom()),
            14..20 => Fault::Kill(Whom::All),
            20..24 => Fault::Miss(self.node()),
            24..28 => Fault::Replace(self.whom()),
            28..32 => Fault::Retire(self.whom()),
            32..44 => Fault::Pause(self.whom()),
            44..47 => Fault::Pause(Whom::All),
            47..52 => Fault::Stop(self.whom()),
            52..57 => Fault::Upgrade(self.whom()),
            57..60 => Fault::UpgradeAll,
            60..78 => Fault::Partition(self.partition()),
            78..84 => Fault::Break,
            84..88 => Fault::Weather(self.link()),
            88..92 => Fault::Distant(self.whom(), self.link()),
            92..96 => Fault::FullDisk(self.whom()),
            _ => Fault::SlowDisk(self.whom(), Duration::from_millis(self.rng.random_range(5..400))),
        }
    }

    fn lasting(&mut self) -> Duration {
        let timeouts = match self.rng.random_range(0..10) {
            0..4 => self.rng.random_range(0.1..0.9),
            4..9 => self.rng.random_range(1.1..6.0),
            _ => self.rng.random_range(6.0..16.0),
        };
        ELECTION_TIMEOUT.mul_f64(timeouts)
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let count = *[1, 1, 1, 2, 2, 3].choose(&mut self.rng).unwrap_or(&1);
        Some(Step {
            faults: (0..count).map(|_| self.fault()).collect(),
            lasts: self.lasting(),
            calm: Duration::from_millis(self.rng.random_range(0..1_500)),
            must_recover: self.rng.random_bool(0.5),
        })
    }
}

#[test]
fn a_plan_follows_from_its_seed() {
    let plan = |seed| Plan::new(seed, 5).take(200).collect::<Vec<Step>>();
    assert_eq!(plan(1), plan(1));
    assert_ne!(plan(1), plan(2));
}

#[test]
fn plans_hold_every_kind_of_fault() {
    let names: std::collections::BTreeSet<&str> =
        Plan::new(1, 3).take(300).flat_map(|step| step.faults).map(|fault| fault.name()).collect();
    assert_eq!(names.len(), 14, "{names:?}");
}
