//! A differential run against the crate `raft` 0.7 (TiKV's, a port of etcd/raft): one schedule of events for both, and
//! the same decisions out, where the two should agree: who leads in which term, what is committed, and how far
//! everybody that the leader reaches knows it.
//!
//! The schedule has no clock: elections are called explicitly, everything that is sent is delivered at once in order, unless a partition
//! loses it. What depends on a clock has its counterpart: *suspecting* a leader is `election_elapsed` beyond the
//! timeout there. Where they differ on purpose is left out: `raft` tells commit indexes in vote answers, so outside
//! of the leader's reach its commit index may be ahead; it sends a transfer's request again and again; and our leader
//! tells a pre-candidate that it is there, so candidates whom it reaches give up.

#![allow(clippy::unwrap_used)]

#[path = "oracle/ours.rs"]
mod ours;
#[path = "oracle/theirs.rs"]
mod theirs;

use ours::Ours;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use theirs::Theirs;

/// Schedules in a plain test run, and operations in each.
const SCHEDULES: u64 = 500;
const OPERATIONS: usize = 60;

/// A group of replicas 0, 1, 2, ... of either kind. Each call delivers everything before it returns.
trait Cluster {
    /// Cuts the links between replicas of different sides; mends the others.
    fn partition(&mut self, sides: &[bool]);
    /// A replica stands for election, pre-vote first.
    fn campaign(&mut self, replica: usize);
    /// A follower stops being loyal to its leader until it hears it again.
    fn suspect(&mut self, replica: usize);
    /// A proposal, which only a leader takes.
    fn propose(&mut self, replica: usize, data: &[u8]);
    /// Leadership is to move.
    fn transfer(&mut self, from: usize, to: usize);
    /// Every leader says that it is there, until nothing changes any more.
    fn heartbeat(&mut self);
    /// What can be compared.
    fn state(&self, replica: usize) -> State;
}

/// What can be seen of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    is_leader: bool,
    term: u64,
    commit: u64,
    last: u64,
    /// The data of the committed entries that have some.
    applied: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Operation {
    Partition(Vec<bool>),
    Campaign(usize),
    Propose(usize, usize),
    /// The leader is cut off from everybody, who suspect it, and one of whom campaigns.
    Fail(usize, usize),
    Transfer(usize, usize),
}

struct Schedule {
    rng: SmallRng,
    replicas: usize,
    sides: Vec<bool>,
    proposals: u64,
    elections: u64,
    committed: u64,
}

impl Schedule {
    fn operation(&mut self, leader: Option<usize>) -> Operation {
        let replica = self.rng.random_range(0..self.replicas);
        let leader = leader.unwrap_or(replica);
        match self.rng.random_range(0..12) {
            0 => Operation::Partition((0..self.replicas).map(|_| self.rng.random_bool(0.4)).collect()),
            1..=2 => Operation::Partition(vec![false; self.replicas]),
            3..=5 => Operation::Campaign(replica),
            6..=8 => Operation::Propose(leader, self.rng.random_range(1..6)),
            9 => Operation::Propose(replica, 1),
            10 => Operation::Fail(leader, replica),
            _ => Operation::Transfer(leader, replica),
        }
    }

    fn carry_out(&mut self, operation: &Operation, clusters: &mut [&mut dyn Cluster; 2]) {
        let first_proposal = self.proposals;
        match operation {
            Operation::Partition(sides) => self.sides.clone_from(sides),
            Operation::Fail(leader, _) => {
                self.sides = (0..self.replicas).map(|replica| replica == *leader).collect()
            }
            _ => {}
        }
        for cluster in clusters {
            cluster.partition(&self.sides);
            match operation {
                Operation::Partition(_) => {}
                Operation::Campaign(replica) => cluster.campaign(*replica),
                Operation::Propose(replica, count) => {
                    for number in 1..=*count as u64 {
                        cluster.propose(*replica, format!("{}", first_proposal + number).as_bytes());
                    }
                    self.proposals = first_proposal + *count as u64;
                }
                Operation::Fail(leader, candidate) => {
                    (0..self.replicas)
                        .filter(|other| other != leader)
                        .for_each(|other| cluster.suspect(other));
                    cluster.campaign(*candidate);
                }
                Operation::Transfer(from, to) => cluster.transfer(*from, *to),
            }
            cluster.heartbeat();
        }
    }

    /// A transfer to somebody who is out of reach would stay pending, and be repeated by one and not by the other.
    fn makes_sense(&self, operation: &Operation, cluster: &dyn Cluster) -> bool {
        let Operation::Transfer(from, to) = operation else { return true };
        let reached = (0..self.replicas).filter(|other| self.sides[*other] == self.sides[*from]).count();
        let is_leader = cluster.state(*from).is_leader;
        is_leader && from != to && self.sides[*from] == self.sides[*to] && reached > self.replicas / 2
    }

    fn compare(&self, ours: &Ours, theirs: &Theirs) {
        let states =
            |cluster: &dyn Cluster| (0..self.replicas).map(|replica| cluster.state(replica)).collect();
        let (ours, theirs): (Vec<State>, Vec<State>) = (states(ours), states(theirs));
        let leaders = |states: &[State]| -> Vec<(usize, u64)> {
            let leaders = states.iter().enumerate().filter(|(_, state)| state.is_leader);
            leaders.map(|(replica, state)| (replica, state.term)).collect()
        };
        assert_eq!(leaders(&ours), leaders(&theirs), "different leaders: {ours:?}, {theirs:?}");
        let newest = leaders(&ours).into_iter().max_by_key(|(_, term)| *term);
        let Some((leader, _)) = newest else { return };
        for replica in (0..self.replicas).filter(|replica| self.sides[*replica] == self.sides[leader]) {
            assert_eq!(ours[replica], theirs[replica], "replica {replica} differs");
        }
    }
}

fn run(seed: u64) -> (u64, u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let replicas = [3, 4, 5][rng.random_range(0..3)];
    let sides = vec![false; replicas];
    let mut schedule = Schedule { rng, replicas, sides, proposals: 0, elections: 0, committed: 0 };
    let (mut ours, mut theirs) = (Ours::new(replicas), Theirs::new(replicas));
    let mut past = Vec::new();
    for _ in 0..OPERATIONS {
        let leaders = (0..replicas).filter(|replica| ours.state(*replica).is_leader);
        let leader = leaders.max_by_key(|replica| ours.state(*replica).term);
        let operation = schedule.operation(leader);
        if !schedule.makes_sense(&operation, &ours) {
            continue;
        }
        past.push(operation.clone());
        let compared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            schedule.carry_out(&operation, &mut [&mut ours, &mut theirs]);
            schedule.compare(&ours, &theirs);
        }));
        assert!(compared.is_ok(), "seed {seed} with {replicas} replicas differs after {past:?}");
    }
    let best = (0..replicas).map(|replica| ours.state(replica)).max_by_key(|state| state.commit).unwrap();
    schedule.elections = best.term;
    schedule.committed = best.applied.len() as u64;
    (schedule.elections, schedule.committed)
}

#[test]
fn both_decide_alike() {
    let one = std::env::var("HADRON_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    if let Some(seed) = one {
        run(seed);
        return;
    }
    let (mut elections, mut committed) = (0, 0);
    for seed in 0..SCHEDULES {
        let (of_elections, of_committed) = run(seed);
        elections += of_elections;
        committed += of_committed;
    }
    println!("{SCHEDULES} schedules, {elections} terms, {committed} proposals committed by both");
    assert!(elections > 3 * SCHEDULES, "too few elections: {elections}");
    assert!(committed > 10 * SCHEDULES, "too little was committed: {committed}");
}
