//! Loads and capacities: an amount of each [`Resource`], and how full that makes a node.

use std::fmt;
use std::ops::{Add, AddAssign, Index, IndexMut, Mul};

/// What a node has a limited amount of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Processor time, in cores: seconds per second.
    Cpu,
    /// Bytes read per second.
    Read,
    /// Bytes written per second, to the log and to the engine.
    Written,
    /// Requests per second.
    Requests,
    /// Watch events sent per second.
    Events,
    /// Bytes on disk.
    Storage,
    /// Bytes in memory.
    Memory,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; COUNT] = [
        Resource::Cpu,
        Resource::Read,
        Resource::Written,
        Resource::Requests,
        Resource::Events,
        Resource::Storage,
        Resource::Memory,
    ];

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Cpu => "cpu",
            Resource::Read => "read",
            Resource::Written => "written",
            Resource::Requests => "requests",
            Resource::Events => "events",
            Resource::Storage => "storage",
            Resource::Memory => "memory",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

const COUNT: usize = 7;

/// An amount of each resource, in the units of [`Resource`]. Never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load([f64; COUNT]);

impl Load {
    /// Nothing of anything.
    pub const ZERO: Load = Load([0.0; COUNT]);

    /// `amount` of each resource.
    pub fn each(mut amount: impl FnMut(Resource) -> f64) -> Load {
        Load(Resource::ALL.map(&mut amount))
    }

    /// This load with `amount` of one resource instead of what it had.
    pub fn with(mut self, resource: Resource, amount: f64) -> Load {
        self[resource] = amount;
        self
    }

    /// This load without `other`; what would be negative is 0.
    pub fn without(&self, other: &Load) -> Load {
        let mut rest = *self;
        rest.0.iter_mut().zip(other.0).for_each(|(amount, other)| *amount = (*amount - other).max(0.0));
        rest
    }
}

impl Index<Resource> for Load {
    type Output = f64;

    fn index(&self, resource: Resource) -> &f64 {
        &self.0[resource as usize]
    }
}

impl IndexMut<Resource> for Load {
    fn index_mut(&mut self, resource: Resource) -> &mut f64 {
        &mut self.0[resource as usize]
    }
}

impl AddAssign<&Load> for Load {
    fn add_assign(&mut self, other: &Load) {
        self.0.iter_mut().zip(other.0).for_each(|(amount, other)| *amount += other);
    }
}

impl Add<&Load> for Load {
    type Output = Load;

    fn add(mut self, other: &Load) -> Load {
        self += other;
        self
    }
}

impl Mul<f64> for Load {
    type Output = Load;

    fn mul(self, factor: f64) -> Load {
        Load(self.0.map(|amount| amount * factor))
    }
}

/// How much of each resource a node has. A resource of which nothing is known does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Capacity {
    /// 1 / amount, and 0 where nothing is known: utilisation is on the planner's hottest path.
    inverse: Load,
}

impl Capacity {
    /// A capacity of these amounts; 0 means that a resource is not limited, or not known.
    pub fn of(amounts: Load) -> Capacity {
        let inverse = |amount: f64| if amount > 0.0 { 1.0 / amount } else { 0.0 };
        Capacity { inverse: Load(amounts.0.map(inverse)) }
    }

    /// How much of `resource` there is; 0 when it is not limited, or not known.
    pub fn amount(&self, resource: Resource) -> f64 {
        let inverse = self.inverse[resource];
        if inverse > 0.0 { 1.0 / inverse } else { 0.0 }
    }

    /// W: the load in the scarcest resource, relative to the capacity. 1 is full.
    pub fn utilisation(&self, load: &Load) -> f64 {
        self.inverse
            .0
            .iter()
            .zip(load.0)
            .fold(0.0, |most, (inverse, amount)| f64::max(most, inverse * amount))
    }

    /// The scarcest resource under this load, and W in it.
    pub fn scarcest(&self, load: &Load) -> (Resource, f64) {
        let used = Resource::ALL.map(|resource| (resource, self.inverse[resource] * load[resource]));
        used.into_iter()
            .reduce(|most, next| if next.1 > most.1 { next } else { most })
            .unwrap_or((Resource::Cpu, 0.0))
    }
}

/// What a group costs the nodes that carry it. Leadership moves the first part alone, a replica the second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GroupLoad {
    /// What the leader's node carries beside the replica: proposals, linearizable reads, sending to followers.
    pub leader: Load,
    /// What each replica costs its node: the log, applying, storage, and the clients and watchers that it serves.
    pub replica: Load,
}

impl GroupLoad {
    /// Takes apart what was measured at the replicas of one group: followers show what a replica costs, and what the leader's
    /// has beyond that is due to leading. A group without followers is all replica: its leadership goes nowhere alone.
    pub fn split(leader: &Load, followers: &[Load]) -> GroupLoad {
        if followers.is_empty() {
            return GroupLoad { leader: Load::ZERO, replica: *leader };
        }
        let sum = followers.iter().fold(Load::ZERO, |sum, follower| sum + follower);
        let replica = sum * (1.0 / followers.len() as f64);
        GroupLoad { leader: leader.without(&replica), replica }
    }

    /// What the group costs one of its nodes.
    pub fn at(&self, leads: bool) -> Load {
        if leads { self.replica + &self.leader } else { self.replica }
    }
}

/// B: each node's part in the sum of all W. All 0 when nothing is loaded.
pub fn shares(utilisations: &[f64]) -> Vec<f64> {
    let sum: f64 = utilisations.iter().sum();
    utilisations.iter().map(|w| if sum > 0.0 { w / sum } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(cores: f64) -> Load {
        Load::ZERO.with(Resource::Cpu, cores)
    }

    #[test]
    fn the_scarcest_resource_decides_and_unknown_ones_do_not_count() {
        let capacity = Capacity::of(cpu(4.0).with(Resource::Storage, 100.0));
        let load = cpu(1.0).with(Resource::Storage, 50.0).with(Resource::Memory, 1e12);
        assert_eq!(capacity.scarcest(&load), (Resource::Storage, 0.5));
        assert_eq!(capacity.utilisation(&load), 0.5);
        assert_eq!(Capacity::default().utilisation(&load), 0.0);
        assert_eq!((capacity.amount(Resource::Cpu), capacity.amount(Resource::Read)), (4.0, 0.0));
    }

    #[test]
    fn leading_costs_what_the_leader_has_beyond_a_follower() {
        let parts = GroupLoad::split(&cpu(1.0), &[cpu(0.2), cpu(0.4)]);
        assert!((parts.replica[Resource::Cpu] - 0.3).abs() < 1e-9);
        assert!((parts.leader[Resource::Cpu] - 0.7).abs() < 1e-9);
        assert_eq!(parts.at(true), cpu(1.0));
        assert_eq!(GroupLoad::split(&cpu(1.0), &[]), GroupLoad { leader: Load::ZERO, replica: cpu(1.0) });
        let busy_followers = GroupLoad::split(&cpu(0.1), &[cpu(0.5)]);
        assert_eq!(busy_followers.leader, Load::ZERO, "leading never costs less than nothing");
    }

    #[test]
    fn shares_sum_up_to_one() {
        assert_eq!(shares(&[0.125, 0.375]), [0.25, 0.75]);
        assert_eq!(shares(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
