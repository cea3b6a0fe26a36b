//! Groups of the crate `raft`, with disks that are always ready.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, Message};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use slog::{Discard, Logger, o};

use crate::{Cluster, State};

/// In ticks, of which there are none.
const ELECTION_TICK: usize = 1_000;

pub(crate) struct Theirs {
    nodes: Vec<RawNode<MemStorage>>,
    applied: Vec<Vec<Vec<u8>>>,
    sides: Vec<bool>,
    network: VecDeque<Message>,
}

fn index_of(id: u64) -> usize {
    id as usize - 1
}

impl Theirs {
    pub(crate) fn new(replicas: usize) -> Theirs {
        let ids: Vec<u64> = (1..=replicas as u64).collect();
        let node = |id: &u64| {
            let storage = MemStorage::new_with_conf_state((ids.clone(), Vec::new()));
            let config = Config {
                id: *id,
                election_tick: ELECTION_TICK,
                heartbeat_tick: 1,
                check_quorum: true,
                pre_vote: true,
                ..Config::default()
            };
            RawNode::new(&config, storage, &Logger::root(Discard, o!())).unwrap()
        };
        Theirs {
            nodes: ids.iter().map(node).collect(),
            applied: vec![Vec::new(); replicas],
            sides: vec![false; replicas],
            network: VecDeque::new(),
        }
    }

    /// Carries out whatever a node wants done.
    fn advance(&mut self, replica: usize) {
        while self.nodes[replica].has_ready() {
            let mut ready = self.nodes[replica].ready();
            self.send(replica, ready.take_messages());
            self.apply(replica, ready.take_committed_entries());
            let storage = self.nodes[replica].raft.raft_log.store.clone();
            storage.wl().append(ready.entries()).unwrap();
            if let Some(hard_state) = ready.hs() {
                storage.wl().set_hardstate(hard_state.clone());
            }
            self.send(replica, ready.take_persisted_messages());
            let mut light = self.nodes[replica].advance(ready);
            self.send(replica, light.take_messages());
            self.apply(replica, light.take_committed_entries());
            self.nodes[replica].advance_apply();
        }
    }

    fn send(&mut self, from: usize, messages: Vec<Message>) {
        let sides = &self.sides;
        self.network
            .extend(messages.into_iter().filter(|message| sides[index_of(message.to)] == sides[from]));
    }

    fn apply(&mut self, replica: usize, entries: Vec<Entry>) {
        let data = entries.into_iter().filter(|entry| !entry.data.is_empty());
        self.applied[replica].extend(data.map(|entry| entry.data.to_vec()));
    }

    fn settle(&mut self) {
        (0..self.nodes.len()).for_each(|replica| self.advance(replica));
        while let Some(message) = self.network.pop_front() {
            let to = index_of(message.to);
            // A message that it cannot use now is an error there; it is dropped, as a network might.
            let _ = self.nodes[to].step(message);
            self.advance(to);
        }
    }
}

impl Cluster for Theirs {
    fn partition(&mut self, sides: &[bool]) {
        self.sides = sides.to_vec();
    }

    fn campaign(&mut self, replica: usize) {
        self.nodes[replica].campaign().unwrap();
        self.settle();
    }

    fn suspect(&mut self, replica: usize) {
        if self.nodes[replica].raft.state == StateRole::Follower {
            self.nodes[replica].raft.election_elapsed = ELECTION_TICK;
        }
    }

    fn propose(&mut self, replica: usize, data: &[u8]) {
        // A follower would forward it.
        if self.nodes[replica].raft.state == StateRole::Leader {
            let _ = self.nodes[replica].propose(Vec::new(), data.to_vec());
        }
        self.settle();
    }

    fn transfer(&mut self, from: usize, to: usize) {
        self.nodes[from].transfer_leader(to as u64 + 1);
        self.settle();
    }

    fn heartbeat(&mut self) {
        for _ in 0..3 {
            self.nodes.iter_mut().for_each(RawNode::ping);
            self.settle();
        }
    }

    fn state(&self, replica: usize) -> State {
        let raft = &self.nodes[replica].raft;
        State {
            is_leader: raft.state == StateRole::Leader,
            term: raft.term,
            commit: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
            applied: self.applied[replica].clone(),
        }
    }
}
