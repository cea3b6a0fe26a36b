//! What goes wrong. Each fault is drawn from the seed, takes effect at once, and may be undone by a later one.

use hadron_consensus::{Event, ReplicaId};
use rand::Rng;

use crate::world::{ELECTION_TIMEOUT_US, Happening, World};

impl World {
    /// One random fault.
    pub(crate) fn fault(&mut self) {
        let replica = self.rng.random_range(0..self.replicas.len());
        match self.rng.random_range(0..20) {
            0..=2 => self.crash_for_a_while(replica),
            3 => (0..self.replicas.len()).for_each(|replica| self.crash_for_a_while(replica)),
            4..=5 => self.partition(),
            6 => self.cut_one_way(replica),
            7 => self.cut_one_link(replica),
            8..=10 => self.network.heal(),
            11 => self.replicas[replica].disk_latency_us = self.rng.random_range(1_000..200_000),
            12 => self.replicas[replica].disk_latency_us = 300,
            13..=14 => self.transfer(replica),
            15 => self.step(replica, Event::Campaign),
            16..=17 => {
                let full = self.rng.random_bool(0.5);
                self.step(replica, Event::Pressure { full });
            }
            19 => self.step(replica, Event::Wake),
            18 if self.rng.random_bool(0.2) => self.retire(replica),
            _ => self.pause(replica),
        }
    }

    /// A process stands still. If that was long, its replica is told before it hears anything else.
    fn pause(&mut self, replica: usize) {
        let pause_us = self.rng.random_range(1_000..400_000);
        let until = self.now.plus_micros(pause_us);
        self.replicas[replica].paused_until = until;
        if pause_us > ELECTION_TIMEOUT_US {
            self.schedule(pause_us, Happening::Resumed(replica));
        }
    }

    fn crash_for_a_while(&mut self, replica: usize) {
        self.crash(replica);
        let down_us = self.rng.random_range(1_000..600_000);
        self.schedule(down_us, Happening::Restart(replica));
    }

    /// Fewer than half of the voters, or nobody might be left who may lead and has everything.
    fn retire(&mut self, replica: usize) {
        let retired = self.replicas.iter().filter(|replica| replica.is_retired).count();
        let voters = self.invariants.configuration_at(self.invariants.commit()).voters.len();
        if !self.has_changes && 2 * (retired + 1) < voters {
            self.replicas[replica].is_retired = true;
            self.step(replica, Event::Retire);
        }
    }

    fn partition(&mut self) {
        let sides: Vec<bool> = (0..self.replicas.len()).map(|_| self.rng.random_bool(0.5)).collect();
        self.network.partition(&sides);
    }

    /// Everything to, or everything from, one replica is lost.
    fn cut_one_way(&mut self, replica: usize) {
        let outgoing = self.rng.random_bool(0.5);
        for other in 0..self.replicas.len() {
            let (from, to) = if outgoing { (replica, other) } else { (other, replica) };
            self.network.set_cut(from, to, true);
        }
    }

    fn cut_one_link(&mut self, replica: usize) {
        let other = self.rng.random_range(0..self.replicas.len());
        self.network.set_cut(replica, other, true);
    }

    fn transfer(&mut self, to: usize) {
        let to = ReplicaId(to as u64 + 1);
        for replica in 0..self.replicas.len() {
            self.step(replica, Event::TransferLeader { to });
        }
    }
}
