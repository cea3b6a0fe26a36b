//! Failure detection between nodes: one detector per pair, whatever the number of groups.
//!
//! Y is alive to X only while X hears Y *and* Y says that it hears X *and* Y vouches for its own disk and loop. So a
//! link that works in one direction only counts as broken for both, and a node whose disk hangs is replaced as leader
//! although its network is fine. No read is ever answered from liveness; it only starts elections.

use std::collections::{BTreeMap, BTreeSet};

use hadron_consensus::{Contacts, NodeId, ReplicaId, Time};

use crate::reconfigure::Places;

/// What this node knows about the liveness of one other node.
#[derive(Clone, Debug, Default)]
struct Peer {
    /// Its process; a new one has forgotten what the old one led.
    incarnation: u64,
    /// When it was received last, whatever it said.
    received_at: Option<Time>,
    /// When it last said that it hears us and vouched for itself.
    heard_at: Option<Time>,
    /// Whether the groups it leads have been told of a suspicion.
    suspected: bool,
}

/// What a heartbeat says that was not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing.
    None,
    /// It comes from a new process, which leads nothing that the old one led.
    Restarted,
    /// The node was not alive to this one, and is.
    Back,
}

/// The detectors of one node.
#[derive(Debug)]
pub(crate) struct Liveness {
    peers: BTreeMap<NodeId, Peer>,
    me: NodeId,
    timeout_us: u64,
}

impl Liveness {
    /// Detectors for nobody yet; each node is suspected `timeout_us` after the last contact.
    pub(crate) fn new(me: NodeId, timeout_us: u64) -> Liveness {
        Liveness { peers: BTreeMap::new(), me, timeout_us }
    }

    /// From now on these are the others: who is new was never heard, who is gone is forgotten.
    pub(crate) fn set_nodes(&mut self, others: &BTreeSet<NodeId>) {
        self.peers.retain(|node, _| others.contains(node));
        for node in others {
            self.peers.entry(*node).or_default();
        }
    }

    /// The other nodes that are alive to this one.
    pub(crate) fn alive(&self, now: Time) -> BTreeSet<NodeId> {
        self.nodes().filter(|node| self.is_alive(now, *node)).collect()
    }

    /// Whether `node` is alive to this one.
    pub(crate) fn is_alive(&self, now: Time, node: NodeId) -> bool {
        let last_heard = self.last_heard(now, node);
        last_heard != Time(0) && now.micros_since(last_heard) < self.timeout_us
    }

    /// The other nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.keys().copied()
    }

    /// Whether `node` is one of the others.
    pub(crate) fn knows(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    /// A heartbeat arrived.
    pub(crate) fn on_heartbeat(
        &mut self,
        now: Time,
        from: NodeId,
        incarnation: u64,
        hears: bool,
        vouches: bool,
    ) -> News {
        let was_alive = self.is_alive(now, from);
        let restarted = self.on_connected(from, incarnation);
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.incarnation == incarnation) else {
            return News::None;
        };
        peer.received_at = Some(now);
        if hears && vouches {
            peer.heard_at = Some(now);
            peer.suspected = false;
        }
        match restarted {
            true => News::Restarted,
            false if hears && vouches && !was_alive => News::Back,
            false => News::None,
        }
    }

    /// A process of `node` was met. Returns true when it is a new one.
    pub(crate) fn on_connected(&mut self, node: NodeId, incarnation: u64) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let restarted = peer.incarnation != 0 && incarnation > peer.incarnation;
        peer.incarnation = peer.incarnation.max(incarnation);
        restarted
    }

    /// Whether this node receives `node`: what the next heartbeat to it says.
    pub(crate) fn hears(&self, now: Time, node: NodeId) -> bool {
        let received_at = self.peers.get(&node).and_then(|peer| peer.received_at);
        received_at.is_some_and(|at| now.micros_since(at) < self.timeout_us)
    }

    /// Nodes that have just become suspect, each named once per suspicion.
    pub(crate) fn new_suspects(&mut self, now: Time) -> Vec<NodeId> {
        let timeout_us = self.timeout_us;
        let late = |peer: &Peer| peer.heard_at.is_some_and(|at| now.micros_since(at) >= timeout_us);
        let mut suspects = Vec::new();
        for (node, peer) in &mut self.peers {
            if !peer.suspected && late(peer) {
                peer.suspected = true;
                suspects.push(*node);
            }
        }
        suspects
    }

    /// When `node` was last known to be alive; `Time(0)` for never.
    pub(crate) fn last_heard(&self, now: Time, node: NodeId) -> Time {
        if node == self.me {
            return now;
        }
        self.peers.get(&node).and_then(|peer| peer.heard_at).unwrap_or_default()
    }
}

/// One group's view of the detectors: replicas instead of nodes.
pub(crate) struct GroupContacts<'a> {
    /// The present.
    pub(crate) now: Time,
    /// The detectors.
    pub(crate) liveness: &'a Liveness,
    /// Where the group's replicas are.
    pub(crate) places: &'a Places,
}

impl Contacts for GroupContacts<'_> {
    fn last_heard(&self, replica: ReplicaId) -> Time {
        self.places.nodes.get(&replica).map_or(Time(0), |node| self.liveness.last_heard(self.now, *node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn liveness() -> Liveness {
        let mut liveness = Liveness::new(ME, 1_000);
        liveness.set_nodes(&BTreeSet::from([OTHER]));
        liveness
    }

    #[test]
    fn a_node_that_does_not_hear_us_is_not_alive_to_us() {
        let mut liveness = liveness();
        liveness.on_heartbeat(Time(10), OTHER, 1, false, true);
        assert!(liveness.hears(Time(20), OTHER), "we tell it that we hear it");
        assert_eq!(liveness.last_heard(Time(20), OTHER), Time(0));
        liveness.on_heartbeat(Time(30), OTHER, 1, true, true);
        assert_eq!(liveness.last_heard(Time(40), OTHER), Time(30));
    }

    #[test]
    fn a_node_with_a_hung_disk_is_suspected_once() {
        let mut liveness = liveness();
        liveness.on_heartbeat(Time(10), OTHER, 1, true, true);
        liveness.on_heartbeat(Time(900), OTHER, 1, true, false);
        assert!(liveness.new_suspects(Time(1_000)).is_empty());
        assert_eq!(liveness.new_suspects(Time(1_010)), [OTHER]);
        assert!(liveness.new_suspects(Time(1_020)).is_empty());
        liveness.on_heartbeat(Time(1_030), OTHER, 1, true, true);
        assert_eq!(liveness.new_suspects(Time(2_030)), [OTHER]);
    }

    #[test]
    fn a_new_process_is_noticed_and_an_old_one_is_ignored() {
        let mut liveness = liveness();
        assert_eq!(liveness.on_heartbeat(Time(10), OTHER, 1, true, true), News::Back);
        assert_eq!(liveness.on_heartbeat(Time(15), OTHER, 1, true, true), News::None);
        assert_eq!(liveness.on_heartbeat(Time(20), OTHER, 2, true, true), News::Restarted);
        assert_eq!(liveness.on_heartbeat(Time(30), OTHER, 1, true, true), News::None);
        assert_eq!(liveness.last_heard(Time(40), OTHER), Time(20));
    }
}
