//! What goes wrong, one thing after another, until the world is healed.

use std::collections::BTreeSet;

use hadron_consensus::{DEFAULT_GROUP, NodeId};
use hadron_node::Event as NodeEvent;
use rand::Rng;
use rand::seq::SliceRandom;

use super::{Happening, TROUBLE_US, Trouble, World};

impl World {
    /// Lets one thing go wrong and arranges the next.
    pub(super) fn fault(&mut self) {
        if !self.faults_on {
            return;
        }
        match self.rng.random_range(0..100) {
            0..25 => self.stop_some(1),
            25..32 => self.stop_some(2),
            32..36 => self.stop_some(self.settings.nodes as usize),
            36..60 => self.partition(),
            60..70 => self.break_connections(),
            70..82 => self.slow_disks(),
            82..93 => self.pause_a_process(),
            _ => self.transfer_leadership(),
        }
        let pause = self.rng.random_range(0..=2 * self.settings.fault_pause_us);
        self.schedule.after(pause, Happening::Fault);
    }

    /// Ends all faults: everything that is broken now is put right.
    pub(super) fn heal_everything(&mut self) {
        let now = self.schedule.now();
        self.faults_on = false;
        self.trace.note(now, format_args!("everything is healed"));
        self.network.heal();
        for node in 1..=self.settings.nodes {
            self.boot(node);
            if let Some(machine) = self.machines.get_mut(&node) {
                machine.slowness = 1;
                if let Some(process) = &mut machine.process {
                    process.paused_until = now;
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
        let mut nodes: Vec<u64> = (1..=self.settings.nodes).collect();
        nodes.shuffle(&mut self.rng);
        nodes
    }

    /// A node, more often than not the one that leads.
    fn victim(&mut self) -> u64 {
        let leader = self.leader();
        let any = self.rng.random_range(1..=self.settings.nodes);
        if self.rng.random_bool(0.6) { leader.unwrap_or(any) } else { any }
    }

    /// The node that the newest term's leader is on, as the nodes see it.
    pub(super) fn leader(&self) -> Option<u64> {
        let boards = self.machines.values().filter_map(|machine| machine.process.as_ref());
        let groups = boards.filter_map(|process| process.node.board().group(DEFAULT_GROUP));
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
            self.stop(node, power_loss);
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
        self.trace.note(self.schedule.now(), format_args!("partition: {blocked:?}"));
        blocked.into_iter().for_each(|direction| self.network.block(direction));
        self.partition += 1;
        let lasts_us = *super::settings::pick(&mut self.rng, &[300_000, 2_000_000, 5_000_000]);
        self.schedule.after(lasts_us, Happening::Heal(self.partition));
    }

    /// Ends the partition of this number, if no newer one has begun.
    pub(super) fn end_partition(&mut self, number: u64) {
        if number == self.partition {
            self.trace.note(self.schedule.now(), format_args!("the partition ends"));
            self.network.heal();
        }
    }

    fn break_connections(&mut self) {
        let victim = self.victim();
        self.trace.note(self.schedule.now(), format_args!("connections of n{victim} break"));
        for other in (1..=self.settings.nodes).filter(|other| *other != victim) {
            if self.rng.random_bool(0.7) {
                self.disconnect((victim, other));
            }
            if self.rng.random_bool(0.7) {
                self.disconnect((other, victim));
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
        for node in (1..=self.settings.nodes).filter(|node| all || *node == victim) {
            self.trace.note(self.schedule.now(), format_args!("n{node}'s disk is {slowness} times slower"));
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
            self.stop(node, true);
            let down_us = self.rng.random_range(1_000..200_000);
            self.schedule.after(down_us, Happening::Boot(node));
        }
    }

    fn pause_a_process(&mut self) {
        let victim = self.victim();
        let pause_us = *super::settings::pick(&mut self.rng, &[50_000, 900_000, 2_500_000]);
        let now = self.schedule.now();
        self.trace.note(now, format_args!("n{victim} stands still for {pause_us} µs"));
        if let Some(machine) = self.machines.get_mut(&victim)
            && let Some(process) = &mut machine.process
        {
            process.paused_until = now + pause_us;
        }
    }

    fn transfer_leadership(&mut self) {
        let Some(life) = self.leader().and_then(|leader| self.life(leader)) else { return };
        let to = self.rng.random_range(1..=self.settings.nodes);
        self.trace.note(self.schedule.now(), format_args!("n{} is to hand over to n{to}", life.node));
        // Nobody waits for the answer.
        let event = NodeEvent::TransferLeader { token: 0, group: DEFAULT_GROUP, to: NodeId(to) };
        self.deliver(life, event);
    }
}
