//! Memory: what all groups of a node hold together, what each of them may hold, and what happens when that is too much.
//!
//! Two things can grow: applied state that the engine does not have yet, and the log's retained entries. Beside its own
//! bound, a group may hold of each at most as much as all groups together leave free of the node's budget (dynamic
//! thresholds, Choudhury and Hahne 1998). So one group that cannot get rid of what it holds, because its flush hangs or
//! it has no quorum, keeps half of the budget at most, and every other group may still have as much as that one.
//!
//! A follower over its bound takes no entries. A leader over its bound refuses proposals; if that lasts for an election
//! timeout it hands over to a replica that keeps up. As long as its log has room it takes keep-alives of leases all the same: they are small, and it
//! would end the leases by itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use hadron_consensus::{Event as CoreEvent, GroupId, NodeId, Progress, ReplicaId, Time};

use crate::event::Effects;
use crate::groups::Replica;
use crate::node::Node;

/// Bytes that groups hold in memory until a disk has them, or followers have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Applied state that the engine does not have yet.
    pub unflushed: usize,
    /// Data of the retained log entries.
    pub log: usize,
}

/// What the groups of all shards of a node hold.
#[derive(Debug, Default)]
pub(crate) struct MemorySum {
    unflushed: AtomicUsize,
    log: AtomicUsize,
}

impl MemorySum {
    fn get(&self) -> MemoryUse {
        let load = |sum: &AtomicUsize| sum.load(Ordering::Relaxed);
        MemoryUse { unflushed: load(&self.unflushed), log: load(&self.log) }
    }

    /// Somebody who held `before` holds `now`.
    fn replace(&self, before: MemoryUse, now: MemoryUse) {
        let change = |sum: &AtomicUsize, before: usize, now: usize| {
            if before != now {
                // Adding wraps around, so that this takes away too.
                sum.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
            }
        };
        change(&self.unflushed, before.unflushed, now.unflushed);
        change(&self.log, before.log, now.log);
    }
}

/// Whether a replica holds as much as it may.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pressure {
    /// What it holds, as it was last counted.
    counted: MemoryUse,
    /// Since when it has held too much; a leader that hands over begins to count anew.
    full_since: Option<Time>,
}

impl Node {
    /// What all groups of the node hold together, whichever shard they belong to.
    pub fn memory_use(&self) -> MemoryUse {
        self.board.memory().get()
    }

    /// How many bytes of applied state `group` may keep from the engine.
    pub(crate) fn unflushed_bytes_max(&self) -> usize {
        let free = self.config.limits.node_unflushed_bytes.saturating_sub(self.memory_use().unflushed);
        self.config.limits.unflushed_bytes.min(free)
    }

    /// How long to wait between two fsyncs of the engine, which are what lets logs be cut.
    pub(crate) fn persist_interval_us(&self) -> u64 {
        let limits = &self.config.limits;
        let hurry = self.memory_use().log > limits.node_log_bytes / 2;
        if hurry { limits.persist_interval_us / 8 } else { limits.persist_interval_us }
    }

    /// How many bytes of its log a group may retain.
    pub(crate) fn log_bytes_free(&self) -> usize {
        self.config.limits.node_log_bytes.saturating_sub(self.memory_use().log)
    }

    /// Whether a replica may take no more: for the applied state that it holds, or for its log.
    pub(crate) fn is_full(&self, replica: &Replica) -> bool {
        self.is_full_of_log(replica) || replica.keyspace.unflushed_bytes() >= self.unflushed_bytes_max()
    }

    /// Whether it may take no more for its log: not even that leases are to live, or have ended.
    pub(crate) fn is_full_of_log(&self, replica: &Replica) -> bool {
        replica.log_is_full(self.log_bytes_free())
    }

    /// Brings the sums up to date with what `group` holds now.
    pub(crate) fn count_memory(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let held = MemoryUse { unflushed: replica.keyspace.unflushed_bytes(), log: replica.core.log_bytes() };
        let counted = std::mem::replace(&mut replica.pressure.counted, held);
        self.board.memory().replace(counted, held);
    }

    /// The logs of replicas that are not open take so many bytes, instead of `before`. They are held as well, and nobody can cut them.
    pub(crate) fn count_closed_logs(&self, before: usize, now: usize) {
        let held = |log| MemoryUse { log, ..MemoryUse::default() };
        self.board.memory().replace(held(before), held(now));
    }

    /// A replica is gone, with what it held.
    pub(crate) fn forget_memory(&mut self, replica: &Replica) {
        self.board.memory().replace(replica.pressure.counted, MemoryUse::default());
    }

    /// Lets the group know whether its state keeps up, and hands over what has not kept up for too long.
    pub(crate) fn heed_pressure(&mut self, group: GroupId, effects: &mut Effects) {
        self.count_memory(group);
        self.shorten_log(group, effects);
        let Some(replica) = self.replicas.get(&group) else { return };
        let full = self.is_full(replica);
        let now = self.now;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let was_full = replica.pressure.full_since.is_some();
        if full != was_full {
            replica.pressure.full_since = full.then_some(now);
            self.step_group(group, CoreEvent::Pressure { full }, effects);
        }
        self.hand_over_if_stuck(group, effects);
    }

    /// A follower's log grew. After a pause many appends wait, all of which belong to one turn: those for which there is no
    /// room are turned away, as they are when they come one by one.
    pub(crate) fn heed_log(&mut self, group: GroupId, effects: &mut Effects) {
        self.count_memory(group);
        let (now, log_max) = (self.now, self.log_bytes_free());
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let is_new = replica.pressure.full_since.is_none();
        if is_new && !replica.core.is_leader() && replica.log_is_full(log_max) {
            replica.pressure.full_since = Some(now);
            self.step_group(group, CoreEvent::Pressure { full: true }, effects);
        }
    }

    fn hand_over_if_stuck(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let due = replica.pressure.hand_over_at(self.config.election_timeout_us);
        if !replica.core.is_leader() || due.is_none_or(|due| due > self.now) {
            return;
        }
        replica.pressure.full_since = Some(self.now);
        if let Some(to) = self.best_successor(group) {
            tracing::warn!(
                group = %group,
                to = %to,
                "what waits for the disk is at its limit: leadership goes to a replica that keeps up"
            );
            self.step_group(group, CoreEvent::TransferLeader { to }, effects);
        }
    }

    /// The voter that lacks least, of those on nodes that are alive that keep up and that are not said to be damaged.
    pub(crate) fn best_successor(&self, group: GroupId) -> Option<ReplicaId> {
        let best = self.successors(self.replicas.get(&group)?).max_by_key(|other| other.matched);
        best.map(|other| other.replica)
    }

    /// The voters on nodes that are alive that keep up and that are not said to be damaged.
    pub(crate) fn successors<'a>(&'a self, replica: &'a Replica) -> impl Iterator<Item = &'a Progress> {
        let accused = replica.accused();
        let may_lead = move |node: &NodeId| {
            let is_reachable = self.connected.contains_key(node) && self.liveness.is_alive(self.now, *node);
            is_reachable && !accused.contains(node)
        };
        let is_reachable = move |id| replica.places.nodes.get(id).is_some_and(&may_lead);
        let voters = &replica.core.configuration().voters;
        let others = replica.core.progress().iter().filter(|other| voters.contains(&other.replica));
        others.filter(move |other| is_reachable(&other.replica) && !other.full)
    }
}

impl Replica {
    /// Whether the log is as long as it may be. What of it is committed a leader can cut. A follower that has nothing committed takes more all the
    /// same: what it has can only go when something more is committed, which may need its own log, and then there is no end to it. How much that
    /// is the leaders bound.
    fn log_is_full(&self, bytes_free: usize) -> bool {
        if self.core.is_leader() {
            return self.core.uncommitted_bytes() >= bytes_free;
        }
        self.pressure.counted.log > bytes_free && self.core.commit() > self.core.floor().index
    }
}

impl Pressure {
    /// When a leader that stays full hands over.
    pub(crate) fn hand_over_at(&self, election_timeout_us: u64) -> Option<Time> {
        self.full_since.map(|since| since.plus_micros(election_timeout_us))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use bytes::Bytes;
    use hadron_consensus::{
        DEFAULT_GROUP, Entry, Index, LogPosition, Message, ROOT_GROUP, Term, chain_checksum,
    };
    use hadron_keyspace::{Applied, Command};
    use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
    use hadron_proto::etcdserverpb::{AlarmRequest, AlarmType};

    use crate::flush::FlushState;
    use crate::peer::PeerMessage;
    use crate::propose::tests::{acknowledge, lead, node};

    /// The leader of `group`, the second node, sends one committed entry of so many bytes.
    fn append(node: &mut Node, group: GroupId, bytes: usize) {
        let data = Bytes::from(vec![7; bytes]);
        let checksum = chain_checksum(0, group, Term(1), Index(1), &data);
        let entry = Entry { term: Term(1), index: Index(1), checksum, data };
        let message = Message::Append {
            term: Term(1),
            previous: LogPosition::default(),
            commit: Index(1),
            round: 0,
            answer: true,
            sleep: false,
            entries: vec![entry],
        };
        let event = CoreEvent::Message { from: ReplicaId(2), message };
        node.step_group(group, event, &mut Effects::default());
        node.count_memory(group);
    }

    /// Leadership was handed to whoever had a connection, again and again: to a process that stood still, or to a replica that does not stand for
    /// election because it is damaged.
    #[test]
    fn leadership_goes_to_one_who_can_take_it() {
        let mut node = node();
        lead(&mut node);
        let (second, third) = (NodeId(2), NodeId(3));
        for other in [second, third] {
            node.connected.insert(other, 1);
        }
        assert_eq!(node.best_successor(DEFAULT_GROUP), None, "no word from either");
        let says = |node: &mut Node, other| {
            node.liveness.on_heartbeat(node.now, other, 1, true, true);
        };
        says(&mut node, second);
        assert_eq!(node.best_successor(DEFAULT_GROUP), Some(ReplicaId(2)));
        says(&mut node, third);
        assert_eq!(node.best_successor(DEFAULT_GROUP), Some(ReplicaId(3)));
        accuse(&mut node, 3);
        assert_eq!(node.best_successor(DEFAULT_GROUP), Some(ReplicaId(2)));
    }

    /// How often somebody is asked to take over.
    fn hand_overs(effects: &Effects) -> usize {
        let asks = |message: &PeerMessage| {
            matches!(message, PeerMessage::Group { message: Message::TimeoutNow { .. }, .. })
        };
        effects.sends.iter().filter(|(_, message)| asks(message)).count()
    }

    /// It was handed to one that came back and waited for a snapshot: nobody could write until that was given up, and then it was handed over
    /// again.
    #[test]
    fn leadership_is_not_handed_to_one_who_lacks_much() {
        let mut node = node();
        lead(&mut node);
        let (second, replica) = (NodeId(2), ReplicaId(2));
        node.connected.insert(second, 1);
        node.liveness.on_heartbeat(node.now, second, 1, true, true);
        let mut effects = Effects::default();
        node.hand_over_to(DEFAULT_GROUP, NodeId(1), second, &mut effects);
        acknowledge(&mut node, replica, false, &mut effects);
        assert_eq!(hand_overs(&effects), 0);
        node.hand_over_to(DEFAULT_GROUP, NodeId(1), second, &mut effects);
        assert_eq!(hand_overs(&effects), 1);
    }

    /// Whoever plans may not know yet: nobody could write for an election timeout.
    #[test]
    fn leadership_is_not_handed_to_one_who_is_dead_full_or_damaged() {
        let handed = |change: &dyn Fn(&mut Node, &mut Effects)| {
            let mut node = node();
            lead(&mut node);
            let mut effects = Effects::default();
            node.connected.insert(NodeId(2), 1);
            node.liveness.on_heartbeat(node.now, NodeId(2), 1, true, true);
            acknowledge(&mut node, ReplicaId(2), false, &mut effects);
            change(&mut node, &mut effects);
            node.hand_over_to(DEFAULT_GROUP, NodeId(1), NodeId(2), &mut effects);
            hand_overs(&effects)
        };
        assert_eq!(handed(&|_, _| ()), 1);
        assert_eq!(handed(&|node, _| node.connected.clear()), 0);
        assert_eq!(handed(&|node, _| node.now = node.now.plus_micros(10_000_000)), 0, "no word from it");
        assert_eq!(handed(&|node, effects| acknowledge(node, ReplicaId(2), true, effects)), 0, "full");
        assert_eq!(handed(&|node, _| accuse(node, 2)), 0, "damaged");
    }

    fn accuse(node: &mut Node, member_id: u64) {
        let alarm = Command::Alarm(AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id,
            alarm: AlarmType::Corrupt as i32,
        });
        let applied = Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 };
        node.replicas[&DEFAULT_GROUP].keyspace.apply(applied, vec![alarm]);
    }

    /// A node stood still while its leader went on. All that had come meanwhile was taken in one turn, which ended with
    /// nearly a third more in memory than there may be.
    #[test]
    fn what_waits_for_a_turn_is_turned_away_where_there_is_no_room_for_it() {
        let mut node = node();
        node.config.limits.node_log_bytes = 1_000;
        let from = (ReplicaId(2), node.replicas[&DEFAULT_GROUP].node_of(ReplicaId(2)).unwrap());
        let mut previous = LogPosition::default();
        for index in 1..=20 {
            let data = Bytes::from(vec![1; 300]);
            let checksum = chain_checksum(previous.checksum, DEFAULT_GROUP, Term(1), Index(index), &data);
            let entry = Entry { term: Term(1), index: Index(index), checksum, data };
            let entries = vec![entry];
            let message = Message::Append {
                term: Term(1),
                previous,
                commit: previous.index,
                round: 0,
                answer: true,
                sleep: false,
                entries,
            };
            let to = node.replicas[&DEFAULT_GROUP].me;
            node.on_group_message(from.1, DEFAULT_GROUP, from.0, to, message, &mut Effects::default());
            previous = LogPosition { term: Term(1), index: Index(index), checksum };
        }
        assert_eq!(node.memory_use().log, 600, "as much as leaves as much free");
    }

    /// A leader died before its follower heard that the last entry was committed. The follower was full with that entry, which it could not cut,
    /// and refused the next leader's first one, without which nothing is committed: the group stood still although a majority was well.
    #[test]
    fn who_is_full_of_what_is_not_committed_takes_what_commits_it() {
        let mut node = node();
        node.config.limits.node_log_bytes = 1_000;
        let me = node.replicas[&DEFAULT_GROUP].me;
        let mut previous = LogPosition::default();
        for (leader, term, bytes) in [(2, Term(1), 600), (3, Term(2), 0)] {
            let data = Bytes::from(vec![1; bytes]);
            let index = previous.index.next();
            let checksum = chain_checksum(previous.checksum, DEFAULT_GROUP, term, index, &data);
            let entry = Entry { term, index, checksum, data };
            let message = Message::Append {
                term,
                previous,
                commit: Index(0),
                round: 0,
                answer: true,
                sleep: false,
                entries: vec![entry],
            };
            let (from, mut effects) = (ReplicaId(leader), Effects::default());
            let sender = node.replicas[&DEFAULT_GROUP].node_of(from).unwrap();
            node.on_group_message(sender, DEFAULT_GROUP, from, me, message, &mut effects);
            let sequence = effects.log_sequence;
            node.step(node.now, crate::event::Event::LogDurable { sequence }, &mut effects);
            node.settle(node.now, &mut effects);
            previous = LogPosition { term, index, checksum };
        }
        assert_eq!(node.replicas[&DEFAULT_GROUP].core.last(), Index(2));
    }

    /// A follower that had flushed all it had, and kept it for others, became too full to take entries when another group
    /// grew. As it took none, nothing was flushed, and so its log was never cut.
    #[test]
    fn a_follower_that_another_group_leaves_no_room_gives_up_its_log() {
        let mut node = node();
        node.config.limits.node_log_bytes = 1_000;
        let mut effects = Effects::default();
        append(&mut node, DEFAULT_GROUP, 500);
        let replica = node.replicas.get_mut(&DEFAULT_GROUP).unwrap();
        replica.keyspace.apply(Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 }, Vec::new());
        replica.flush = FlushState::new(Index(1), 0, Time(1));
        node.step_group(DEFAULT_GROUP, CoreEvent::Applied { index: Index(1) }, &mut effects);
        node.heed_pressure(DEFAULT_GROUP, &mut effects);
        assert_eq!(node.memory_use().log, 500, "there is room: it may keep what others may need");
        append(&mut node, ROOT_GROUP, 400);
        node.heed_pressure(DEFAULT_GROUP, &mut effects);
        assert_eq!(node.memory_use().log, 400);
        assert!(node.replicas[&DEFAULT_GROUP].pressure.full_since.is_none());
        assert!(node.replicas[&ROOT_GROUP].pressure.full_since.is_none());
    }
}
