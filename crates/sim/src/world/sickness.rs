//! Sickness: a node is not down, and not well either. One after the other some node gets into such a state for a while, most often the one that
//! leads, and all others must serve meanwhile: the guarantee `availability`.
//!
//! Peers notice a node that is down. What is worse is one that half works: it answers heartbeats and stores nothing, or is heard and hears nothing.

use std::collections::BTreeMap;
use std::fmt;

use hadron_consensus::GroupId;
use rand::Rng;

use super::clients::LARGE_VALUE;
use super::settings::pick;
use super::story::{Story, StoryEvent};
use super::writes::writer;
use super::{Life, World};
use crate::history::{Action, Violation};

/// For how long a node is sick.
const SICK_US: u64 = 12_000_000;
/// The pause between two writes of one keyspace through one node.
const THINK_US: u64 = 50_000;
/// Steps of the world between two looks.
const STEP_US: u64 = 20_000;
/// Within so long each of the others acknowledges a write of each keyspace. Most take a second or two after an election.
const UNSERVED_US_MAX: u64 = 6_000_000;
/// Where logs are short a node that is well may be cut off from several, and gets one snapshot after the other: a group may take so much
/// longer for each one that it waits for, and for no more than so many.
const SNAPSHOT_US_MAX: u64 = 2_000_000;
const SNAPSHOTS_MAX: usize = 2;
/// Two that stand at the same moment may share the votes, and again: each such election may take so much longer, and no more than so many.
const ELECTION_US_MAX: u64 = 2_000_000;
const ELECTIONS_MAX: usize = 2;
/// For how long a node that is well again may have more log than others: until those who keep segments have moved on, which they do
/// as more is written.
const CONVALESCENCE_US: u64 = 12_000_000;
/// One value in this many is large.
const LARGE_VALUE_ONE_IN: u32 = 4;

/// What a node may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// An fsync of its log does not return.
    LogHangs,
    /// Its engine does not finish what it is at.
    EngineHangs,
    /// Both, as where both are on one disk.
    DiskHangs,
    /// All that its disk does takes 500 times as long.
    SlowDisk,
    /// One of its shards stands still, and the others go on.
    ShardHangs,
    /// Its process stands still, and its connections stay.
    Hangs,
    /// Its process stands still again and again.
    Stutters,
    /// It hears nobody, and is heard.
    Deaf,
    /// It hears all, and nobody hears it.
    Mute,
}

impl Ailment {
    const ALL: [Ailment; 9] = [
        Ailment::LogHangs,
        Ailment::EngineHangs,
        Ailment::DiskHangs,
        Ailment::SlowDisk,
        Ailment::ShardHangs,
        Ailment::Hangs,
        Ailment::Stutters,
        Ailment::Deaf,
        Ailment::Mute,
    ];
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ailment::LogHangs => "an fsync of its log does not return",
            Ailment::EngineHangs => "its engine does not go on",
            Ailment::DiskHangs => "its disk does not answer",
            Ailment::SlowDisk => "its disk is 500 times slower",
            Ailment::ShardHangs => "one of its shards stands still",
            Ailment::Hangs => "it stands still, and its connections stay",
            Ailment::Stutters => "it stands still again and again",
            Ailment::Deaf => "it hears nobody",
            Ailment::Mute => "nobody hears it",
        })
    }
}

/// A write that a node that is well is asked for.
struct Asked {
    operation: Option<usize>,
    /// When one was acknowledged last.
    served_at: u64,
    next_at: u64,
}

impl World {
    /// One node after the other is sick, and the others serve.
    pub(super) fn bear_the_sick(&mut self, tell: &mut dyn FnMut(&Story)) -> Result<(), Violation> {
        for _ in 0..self.settings.sicknesses {
            let node = self.victim();
            let ailment = *pick(&mut self.rng, &Ailment::ALL);
            let until = self.schedule.now() + SICK_US;
            self.tell(StoryEvent::Ails { node, ailment });
            self.ailing.insert(node, u64::MAX);
            self.fall_sick(node, ailment, until);
            self.serve_without(node, ailment, until, tell)?;
            self.recover_from_sickness(node);
            self.converge(tell)?;
            self.ailing.insert(node, self.schedule.now() + CONVALESCENCE_US);
        }
        Ok(())
    }

    /// Whether a node is sick, or was a moment ago.
    pub(super) fn ails(&self, node: u64) -> bool {
        self.ailing.get(&node).is_some_and(|until| self.schedule.now() < *until)
    }

    fn fall_sick(&mut self, node: u64, ailment: Ailment, until: u64) {
        let others = || self.nodes().into_iter().filter(|other| *other != node);
        let from_it: Vec<(u64, u64)> = others().map(|other| (node, other)).collect();
        let to_it: Vec<(u64, u64)> = others().map(|other| (other, node)).collect();
        let shard_drawn: u32 = self.rng.random();
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let Some(process) = &mut machine.process else { return };
        match ailment {
            Ailment::LogHangs => machine.log_hangs_until = until,
            Ailment::EngineHangs => machine.engine_hangs_until = until,
            Ailment::DiskHangs => (machine.log_hangs_until, machine.engine_hangs_until) = (until, until),
            Ailment::SlowDisk => machine.slowness = 500,
            Ailment::ShardHangs => process.hang(shard_drawn as usize % process.shards(), until),
            Ailment::Hangs => (0..process.shards()).for_each(|shard| process.hang(shard, until)),
            Ailment::Stutters => {}
            Ailment::Deaf => self.cut_network(&to_it),
            Ailment::Mute => self.cut_network(&from_it),
        }
    }

    fn recover_from_sickness(&mut self, node: u64) {
        self.heal_network();
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.slowness = 1;
        }
    }

    /// Writes to each keyspace through each node but the sick one, again and again.
    fn serve_without(
        &mut self,
        sick: u64,
        ailment: Ailment,
        end: u64,
        tell: &mut dyn FnMut(&Story),
    ) -> Result<(), Violation> {
        let began_at = self.schedule.now();
        let mut asked: BTreeMap<(u64, GroupId), Asked> = BTreeMap::new();
        let mut next_pause = began_at;
        while self.schedule.now() < end {
            let now = self.schedule.now();
            if ailment == Ailment::Stutters && now >= next_pause {
                next_pause = now + self.stutter(sick);
            }
            for (life, group) in self.carried().into_iter().filter(|(life, _)| life.node != sick) {
                let write = asked.entry((life.node, group)).or_insert(Asked {
                    operation: None,
                    served_at: began_at,
                    next_at: began_at,
                });
                self.look_after(write, life, group);
                let unserved_us = now - write.served_at;
                let more_us = self.snapshots_us_max(life, group, write.served_at)
                    + self.elections_us_max(group, write.served_at);
                if unserved_us > UNSERVED_US_MAX + more_us {
                    let found = format!(
                        "n{sick} is sick ({ailment}), and n{} has acknowledged no write of {group} for {unserved_us} µs; {}",
                        life.node,
                        self.positions()
                    );
                    self.minded(Err(Violation::new("availability", found)))?;
                }
            }
            self.run_until(now + STEP_US, tell)?;
        }
        Ok(())
    }

    /// How much longer a group may take because of the snapshots for which it has waited on a node since then.
    fn snapshots_us_max(&mut self, life: Life, group: GroupId, since: u64) -> u64 {
        let installed = self.process(life).and_then(|process| process.installed.get(&group));
        let count = installed.map_or(0, |times| times.iter().filter(|at| **at > since).count());
        SNAPSHOT_US_MAX * count.min(SNAPSHOTS_MAX) as u64
    }

    /// How much longer a group may take because of the elections that nobody won since then.
    fn elections_us_max(&self, group: GroupId, since: u64) -> u64 {
        let lost = self.observer.elections_lost.get(&group);
        let count = lost.map_or(0, |terms| terms.values().filter(|at| **at > since).count());
        ELECTION_US_MAX * count.min(ELECTIONS_MAX) as u64
    }

    /// Notes whether a write was acknowledged, and asks for the next when it is time.
    fn look_after(&mut self, write: &mut Asked, life: Life, group: GroupId) {
        let now = self.schedule.now();
        if let Some(operation) = write.operation.filter(|operation| !self.open[*operation]) {
            write.operation = None;
            if self.history[operation].response().is_some() {
                (write.served_at, write.next_at) = (now, now + THINK_US);
            }
        }
        if write.operation.is_none() && now >= write.next_at {
            let mut value = format!("s{}", self.history.len()).into_bytes();
            if self.rng.random_range(0..LARGE_VALUE_ONE_IN) == 0 {
                value.resize(LARGE_VALUE, b'.');
            }
            let action = Action::put("w", value);
            write.operation = Some(self.begin_operation(writer(life.node, group), group, life, action));
        }
    }

    /// It stands still once more. Returns after what time it will again.
    fn stutter(&mut self, node: u64) -> u64 {
        let now = self.schedule.now();
        let for_us = *pick(&mut self.rng, &[200_000, 800_000, 1_500_000]);
        if let Some(process) = self.machines.get_mut(&node).and_then(|machine| machine.process.as_mut()) {
            process.pause(now, for_us, false);
        }
        for_us + self.rng.random_range(20_000..400_000)
    }
}
