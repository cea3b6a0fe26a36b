//! Groups of this crate, with disks that are always ready.

use std::collections::VecDeque;

use bytes::Bytes;
use hadron_consensus::{
    Config, Configuration, Contacts, Effects, Event, Group, GroupId, Message, ReplicaId, Restored, Time,
};

use crate::{Cluster, State};

/// So long that no timer of a follower ever matters.
const ELECTION_TIMEOUT_US: u64 = 1_000_000_000_000;
const HEARTBEAT_US: u64 = 1_000;

pub(crate) struct Ours {
    groups: Vec<Group>,
    applied: Vec<Vec<Vec<u8>>>,
    sides: Vec<bool>,
    network: VecDeque<(ReplicaId, ReplicaId, Message)>,
    now: Time,
}

/// All nodes are heard all the time; who does not believe that says so by `suspect`.
struct Everybody(Time);

impl Contacts for Everybody {
    fn last_heard(&self, _: ReplicaId) -> Time {
        self.0
    }
}

fn id(replica: usize) -> ReplicaId {
    ReplicaId(replica as u64 + 1)
}

fn index_of(id: ReplicaId) -> usize {
    id.0 as usize - 1
}

impl Ours {
    pub(crate) fn new(replicas: usize) -> Ours {
        let config = |replica: usize| Config {
            group: GroupId(1),
            id: id(replica),
            configuration: Configuration::new((0..replicas).map(id), []),
            election_timeout_us: ELECTION_TIMEOUT_US,
            heartbeat_us: HEARTBEAT_US,
            max_append_bytes: 1 << 20,
            inflight_bytes: 1 << 20,
            uncommitted_bytes: 1 << 20,
            sleep_after_us: 0,
            starts_asleep: false,
            seed: replica as u64,
        };
        Ours {
            groups: (0..replicas).map(|replica| Group::new(config(replica), Restored::default())).collect(),
            applied: vec![Vec::new(); replicas],
            sides: vec![false; replicas],
            network: VecDeque::new(),
            now: Time(1_000_000),
        }
    }

    fn step(&mut self, replica: usize, event: Event) {
        self.now = self.now.plus_micros(1);
        let mut effects = Effects::default();
        self.groups[replica].step(self.now, &Everybody(self.now), event, &mut effects);
        for (to, message) in effects.messages {
            if self.sides[index_of(to)] == self.sides[replica] {
                self.network.push_back((id(replica), to, message));
            }
        }
        let applied = effects.committed.iter().filter(|entry| !entry.data.is_empty());
        self.applied[replica].extend(applied.map(|entry| entry.data.to_vec()));
        for persist in effects.persist {
            self.step(replica, Event::Persisted { sequence: persist.sequence });
        }
    }

    fn settle(&mut self) {
        while let Some((from, to, message)) = self.network.pop_front() {
            self.step(index_of(to), Event::Message { from, message });
        }
    }
}

impl Cluster for Ours {
    fn partition(&mut self, sides: &[bool]) {
        self.sides = sides.to_vec();
    }

    fn campaign(&mut self, replica: usize) {
        self.step(replica, Event::Campaign);
        self.settle();
    }

    fn suspect(&mut self, replica: usize) {
        if let Some(leader) = self.groups[replica].leader() {
            self.step(replica, Event::Suspect { replica: leader });
        }
    }

    fn propose(&mut self, replica: usize, data: &[u8]) {
        self.step(replica, Event::Propose { token: 0, data: Bytes::copy_from_slice(data) });
        self.settle();
    }

    fn transfer(&mut self, from: usize, to: usize) {
        self.step(from, Event::TransferLeader { to: id(to) });
        self.settle();
    }

    /// A read makes an idle leader ask its followers at once; the tick does it for one that cannot serve reads yet.
    fn heartbeat(&mut self) {
        for token in 0..3 {
            self.now = self.now.plus_micros(2 * HEARTBEAT_US);
            for replica in 0..self.groups.len() {
                if self.groups[replica].is_leader() {
                    self.step(replica, Event::Timer);
                    self.step(replica, Event::Read { token });
                }
            }
            self.settle();
        }
    }

    fn state(&self, replica: usize) -> State {
        let group = &self.groups[replica];
        State {
            is_leader: group.is_leader(),
            term: group.term().0,
            commit: group.commit().0,
            last: group.last().0,
            applied: self.applied[replica].clone(),
        }
    }
}
