//! What goes wrong, one thing after another, until the world is healed.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use hadron_consensus::{DEFAULT_GROUP, NodeId};
use hadron_node::Event as NodeEvent;
use hadron_storage::disk::{Fault as DiskFault, Operation};
use rand::Rng;
use rand::seq::SliceRandom;

use super::story::{Stop, StoryEvent};
use super::{Happening, TROUBLE_US, Trouble, World};

/// Lets something go wrong.
type Fault = fn(&mut World);

/// How often each kind of fault happens, compared with the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// One node loses its power or is killed.
    pub stop_one: u32,
    /// Two do.
    pub stop_two: u32,
    /// All do.
    pub stop_all: u32,
    /// One is asked to stop, and does so in good order.
    pub stop_asked: u32,
    /// The network is cut.
    pub partition: u32,
    /// Connections of a node break.
    pub connections: u32,
    /// Queues to other nodes are full.
    pub queues: u32,
    /// One disk becomes slow, or all do.
    pub slow_disks: u32,
    /// A disk is full, or fails a write or an fsync; or the engine fails. The node stops, and restarts when all is well.
    pub bad_disk: u32,
    /// A machine comes back with a flipped bit in its log, or is wiped. A minority of the machines at most.
    pub damage: u32,
    /// A process stands still, and its clock goes on.
    pub pause: u32,
    /// A machine stands still with its clock.
    pub suspend: u32,
    /// The leader is asked to hand over.
    pub transfer: u32,
}

impl Weights {
    /// A bit of everything.
    pub fn usual() -> Weights {
        Weights {
            stop_one: 25,
            stop_two: 7,
            stop_all: 4,
            stop_asked: 8,
            partition: 24,
            connections: 10,
            queues: 6,
            slow_disks: 10,
            bad_disk: 6,
            damage: 1,
            pause: 9,
            suspend: 4,
            transfer: 7,
        }
    }

    /// No faults at all.
    pub fn none() -> Weights {
        Weights::default()
    }
}

impl World {
    /// Lets one thing go wrong and arranges the next.
    pub(super) fn fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let weights = self.settings.weights.clone();
        let kinds: [(u32, Fault); 13] = [
            (weights.stop_one, |world| world.stop_some(1)),
            (weights.stop_two, |world| world.stop_some(2)),
            (weights.stop_all, |world| world.stop_some(usize::MAX)),
            (weights.stop_asked, World::ask_to_stop),
            (weights.partition, World::partition),
            (weights.connections, World::break_connections),
            (weights.queues, World::fill_queues),
            (weights.slow_disks, World::slow_disks),
            (weights.bad_disk, World::spoil_a_disk),
            (weights.damage, World::damage_a_machine),
            (weights.pause, |world| world.pause_a_process(false)),
            (weights.suspend, |world| world.pause_a_process(true)),
            (weights.transfer, World::transfer_leadership),
        ];
        let sum: u32 = kinds.iter().map(|(weight, _)| weight).sum();
        if sum == 0 {
            return;
        }
        let mut drawn = self.rng.random_range(0..sum);
        for (weight, happens) in kinds {
            if drawn < weight {
                happens(self);
                break;
            }
            drawn -= weight;
        }
        let pause = self.rng.random_range(0..=2 * self.settings.fault_pause_us);
        self.schedule.after(pause, Happening::Fault);
    }

    /// Ends all faults: everything that is broken now is put right.
    pub(super) fn heal_everything(&mut self) {
        let now = self.schedule.now();
        self.faults_on = false;
        self.healed_at = now;
        self.tell(StoryEvent::Healed);
        self.heal_network();
        for node in self.nodes() {
            self.boot(node);
            if let Some(machine) = self.machines.get_mut(&node) {
                machine.slowness = 1;
                machine.make_well();
                if let Some(process) = &mut machine.process {
                    process.resume(now);
                }
            }
            if let Some(life) = self.life(node) {
                self.resume_flushes(life);
            }
        }
    }

    /// Whether this trouble ails its group now.
    pub(super) fn is_troubled(&self, trouble: Trouble) -> bool {
        let now = self.schedule.now();
        self.faults_on && now >= TROUBLE_US && self.settings.troubles.contains(&trouble)
    }

    fn nodes_in_any_order(&mut self) -> Vec<u64> {
        let mut nodes = self.nodes();
        nodes.shuffle(&mut self.rng);
        nodes
    }

    /// A node, more often than not the one that leads.
    pub(super) fn victim(&mut self) -> u64 {
        let leader = self.leader();
        let any = self.any_node();
        if self.rng.random_bool(0.6) { leader.unwrap_or(any) } else { any }
    }

    /// The node that the newest term's leader is on, as the nodes see it.
    pub(super) fn leader(&self) -> Option<u64> {
        let boards = self.machines.values().filter_map(|machine| machine.process.as_ref());
        let groups = boards.filter_map(|process| process.node().board().group(DEFAULT_GROUP));
        let led = groups.filter_map(|group| group.leader().map(|leader| (group.term(), leader.0)));
        led.max().map(|(_, leader)| leader)
    }

    fn stop_some(&mut self, count: usize) {
        let first = self.victim();
        let mut nodes = self.nodes_in_any_order();
        nodes.retain(|node| *node != first);
        nodes.insert(0, first);
        let power_loss = self.rng.random_bool(0.7);
        for node in nodes.into_iter().take(count) {
            self.stop(node, if power_loss { Stop::PowerLoss } else { Stop::Killed });
            let down_us = *super::settings::pick(&mut self.rng, &[1_000, 100_000, 1_000_000, 4_000_000]);
            let down_us = self.rng.random_range(down_us / 2..=down_us);
            self.schedule.after(down_us, Happening::Boot(node));
        }
    }

    fn partition(&mut self) {
        let nodes = self.nodes_in_any_order();
        let victim = self.victim();
        let half: BTreeSet<u64> = nodes.iter().copied().take(nodes.len() / 2).collect();
        let side = |node: &u64| half.contains(node);
        let kind = self.rng.random_range(0..5);
        let mut blocked = Vec::new();
        for from in &nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                let cut = match kind {
                    // One node alone, in both directions or in one.
                    0 => *from == victim || *to == victim,
                    1 => *from == victim,
                    2 => *to == victim,
                    // Two sides.
                    3 => side(from) != side(to),
                    // A pair that cannot talk, while both reach all others.
                    _ => [from, to].iter().all(|node| nodes[..2].contains(node)),
                };
                if cut {
                    blocked.push((*from, *to));
                }
            }
        }
        self.tell(StoryEvent::Partition { cut: blocked.clone() });
        self.cut_network(&blocked);
        let lasts_us = *super::settings::pick(&mut self.rng, &[300_000, 2_000_000, 5_000_000]);
        self.schedule.after(lasts_us, Happening::Heal(self.partition));
    }

    /// Lets nothing through in these directions. The end of an older partition heals nothing any more.
    pub(super) fn cut_network(&mut self, directions: &[(u64, u64)]) {
        self.partition += 1;
        directions.iter().for_each(|direction| self.network.block(*direction));
    }

    /// Lets everything through again, and is the end of all partitions.
    pub(super) fn heal_network(&mut self) {
        self.partition += 1;
        self.network.heal();
    }

    /// Ends the partition of this number, if the network has neither been cut nor healed since.
    pub(super) fn end_partition(&mut self, number: u64) {
        if number == self.partition {
            self.tell(StoryEvent::PartitionEnds);
            self.heal_network();
        }
    }

    fn break_connections(&mut self) {
        let victim = self.victim();
        self.tell(StoryEvent::ConnectionsBreak { node: victim });
        for other in self.nodes().into_iter().filter(|other| *other != victim) {
            if self.rng.random_bool(0.7) {
                self.disconnect((victim, other));
            }
            if self.rng.random_bool(0.7) {
                self.disconnect((other, victim));
            }
        }
    }

    /// What a node has to say to some others does not fit into its queues, or some of it.
    fn fill_queues(&mut self) {
        let victim = self.victim();
        let for_us = *super::settings::pick(&mut self.rng, &[100_000, 500_000, 2_000_000]);
        let share = *super::settings::pick(&mut self.rng, &[0.2, 0.6, 1.0]);
        self.tell(StoryEvent::QueuesFull { node: victim, for_us });
        let until = self.schedule.now() + for_us;
        for other in self.nodes().into_iter().filter(|other| *other != victim) {
            if self.rng.random_bool(0.6) {
                self.network.fill((victim, other), until, share);
            }
        }
    }

    /// One disk or all become slow, until their machines restart or all is healed. Often the power goes soon after, while
    /// much is written and not yet durable.
    fn slow_disks(&mut self) {
        let victim = self.victim();
        let all = self.rng.random_bool(0.4);
        let slowness = *super::settings::pick(&mut self.rng, &[10, 100, 500]);
        let power_loss_in = self.rng.random_bool(0.5).then(|| self.rng.random_range(10_000..800_000));
        for node in self.nodes().into_iter().filter(|node| all || *node == victim) {
            self.tell(StoryEvent::SlowDisk { node, factor: slowness });
            if let Some(machine) = self.machines.get_mut(&node) {
                machine.slowness = slowness;
            }
            if let Some(delay) = power_loss_in {
                self.schedule.after(delay, Happening::PowerLoss(node));
            }
        }
    }

    /// A machine loses its power and comes back soon.
    pub(super) fn lose_power(&mut self, node: u64) {
        if self.faults_on {
            self.stop(node, Stop::PowerLoss);
            self.boot_soon(node);
        }
    }

    pub(super) fn boot_soon(&mut self, node: u64) {
        let down_us = self.rng.random_range(1_000..200_000);
        self.schedule.after(down_us, Happening::Boot(node));
    }

    /// Now would be a bad time to lose power, so now and then that is when it happens.
    pub(super) fn delicate_moment(&mut self, node: u64) {
        let one_in = self.settings.delicate_one_in;
        if self.faults_on && one_in > 0 && self.rng.random_range(0..one_in) == 0 {
            // Not within the turn that goes on, but before anything else takes long.
            let delay = self.rng.random_range(0..300);
            self.schedule.after(delay, Happening::PowerLoss(node));
        }
    }

    /// A disk that will be full, or will fail soon.
    fn spoil_a_disk(&mut self) {
        let node = self.victim();
        let after = self.rng.random_range(0..40);
        let room = self.rng.random_range(0..self.settings.segment_bytes);
        let lasting = self.rng.random_bool(0.5);
        let kind = self.rng.random_range(0..4);
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let Some(process) = machine.process.as_ref().filter(|_| !machine.is_ailing) else { return };
        machine.is_ailing = true;
        let fails =
            |operation| DiskFault { operation: Some(operation), after, kind: ErrorKind::Other, lasting };
        match kind {
            0 => machine.disk.set_capacity(Some(process.log.disk_bytes() + room)),
            1 => machine.disk.set_fault(Some(fails(Operation::Sync))),
            2 => machine.disk.set_fault(Some(fails(Operation::Write))),
            _ => machine.engine.set_failing(true),
        }
        self.tell(match kind {
            0 => StoryEvent::FullDisk { node },
            1 => StoryEvent::FailingDisk { node, what: "an fsync" },
            2 => StoryEvent::FailingDisk { node, what: "a write" },
            _ => StoryEvent::FailingDisk { node, what: "the engine" },
        });
    }

    /// The node said that its disk failed, as it should. Its process or machine is started again when the disk is well.
    pub(super) fn stop_for_its_disk(&mut self, node: u64) {
        self.stop(node, Stop::Disk);
        self.boot_soon(node);
    }

    fn pause_a_process(&mut self, clock: bool) {
        let node = self.victim();
        let for_us = *super::settings::pick(&mut self.rng, &[50_000, 900_000, 2_500_000]);
        let now = self.schedule.now();
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let Some(process) = machine.process.as_mut().filter(|process| process.paused_until <= now) else {
            return;
        };
        let shards = process.shards();
        if !clock && shards > 1 && self.rng.random_bool(0.5) {
            let shard = self.rng.random_range(0..shards);
            process.hang(shard, now + for_us);
            return self.tell(StoryEvent::Hangs { node, shard, for_us });
        }
        process.pause(now, for_us, clock);
        self.tell(StoryEvent::Pauses { node, for_us, clock });
    }

    fn transfer_leadership(&mut self) {
        let Some(life) = self.leader().and_then(|leader| self.life(leader)) else { return };
        let to = self.any_node();
        self.tell(StoryEvent::HandsOver { from: life.node, to });
        let (group, from, to) = (DEFAULT_GROUP, NodeId(life.node), NodeId(to));
        // Nobody waits for the answer. What a planner wants, any node passes on.
        let teller = self.any_node();
        match self.rng.random_bool(0.5) {
            true => self.deliver(life, NodeEvent::TransferLeader { token: 0, group, to }),
            false => {
                let Some(teller) = self.life(teller) else { return };
                self.deliver(teller, NodeEvent::HandOverTo { group, from, to });
            }
        }
    }
}
