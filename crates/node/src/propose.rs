//! Admit, propose and reply: how a client's command finds the leader and how its answer finds the client.
//!
//! ```text
//!            ┌──────────── no leader, or certainly not proposed ───────────┐
//!            ▼                                                            │
//! Write ─▶ waiting ── leader here ──▶ proposed(term) ── applied here ──▶ reply
//!            └────── leader elsewhere: Forward(term) ──▶ proposed(term) ──┘
//! ```
//! **At most once.** A command is in one leader's hands at a time. A forward names the term it is meant for, and is
//! refused in any other; so once an entry of a later term is applied here, whatever was proposed in an earlier term
//! and has not been applied never will be, and may be proposed again. A command whose outcome stays unknown (its
//! entry may be inside a snapshot that replaced the state) is never proposed again: the client is told so.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hadron_consensus::{Event as CoreEvent, GroupId, NodeId, Outcome, Refusal, ReplicaId, Term};
use hadron_keyspace::Command;

use crate::envelope::{self, Origin};
use crate::event::{Effects, Failure, Reply};
use crate::groups::{Proposed, Replica};
use crate::node::Node;
use crate::peer::{Forward, NotProposedReason, PeerMessage};

/// Microseconds before a command that could not be taken is offered again.
pub(crate) const RETRY_US: u64 = 20_000;

/// Commands of one entry that is being proposed.
type Gathered = Vec<(Origin, Bytes)>;

impl Node {
    /// A client's write: admitted here, proposed at the end of the turn.
    pub(crate) fn on_write(&mut self, token: u64, group: GroupId, command: Bytes, effects: &mut Effects) {
        let waiting_max = self.config.limits.waiting_requests;
        let Some(replica) = self.replicas.get_mut(&group) else {
            return effects.replies.push((token, Reply::Failed(Failure::NoSuchGroup)));
        };
        if replica.quarantined {
            return effects.replies.push((token, Reply::Failed(Failure::Quarantined)));
        }
        if replica.waiting.len() >= waiting_max {
            return effects.replies.push((token, Reply::Failed(Failure::Busy)));
        }
        replica.waiting.push_back((token, command));
        self.touch(group);
    }

    /// Nobody waits for this request any more.
    pub(crate) fn on_cancel(&mut self, token: u64, group: GroupId) {
        if let Some(replica) = self.replicas.get_mut(&group)
            && replica.proposed.remove(&token).is_none()
        {
            replica.waiting.retain(|(other, _)| *other != token);
        }
        if let Some(replica) = self.replicas.get_mut(&group)
            && replica.transfer.is_some_and(|(waiting, _)| waiting == token)
        {
            replica.transfer = None;
        }
        self.cancel_read(group, token);
    }

    /// Another node's clients' commands, for the leader of `term`.
    pub(crate) fn on_forward(&mut self, from: NodeId, forward: Forward, effects: &mut Effects) {
        let Forward { group, term, incarnation, number, commands } = forward;
        if self.replicas.get_mut(&group).is_some_and(|here| !here.is_new_forward(from, incarnation, number)) {
            return;
        }
        match self.replicas.get_mut(&group) {
            // Who is no member could not answer for it: it would not apply it.
            Some(replica)
                if replica.core.is_leader() && replica.core.term() == term && replica.is_on(from) =>
            {
                // What is in the log stops every replica that cannot read it, and no replica may pass it over.
                let (readable, unreadable): (Vec<_>, Vec<_>) =
                    commands.into_iter().partition(|(_, bytes)| Command::decode(bytes.clone()).is_ok());
                let origin = |token| Origin { node: from, incarnation, token };
                let readable = readable.into_iter().map(|(token, bytes)| (term, origin(token), bytes));
                replica.forwarded.extend(readable);
                let unreadable = unreadable.into_iter().map(|(token, _)| (term, origin(token)));
                refuse(group, unreadable, NotProposedReason::Unreadable, effects);
                self.touch(group);
            }
            _ => {
                let tokens = commands.into_iter().map(|(token, _)| token).collect();
                let reason = NotProposedReason::NotLeading;
                let refusal = PeerMessage::NotProposed { group, term, incarnation, reason, tokens };
                effects.sends.push((from, refusal));
            }
        }
    }

    /// A leader certainly did not propose these commands of ours.
    pub(crate) fn on_not_proposed(
        &mut self,
        group: GroupId,
        term: Term,
        incarnation: u64,
        reason: NotProposedReason,
        tokens: Vec<u64>,
        effects: &mut Effects,
    ) {
        if incarnation != self.config.incarnation {
            return;
        }
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        for token in tokens {
            // A late refusal: the command is in the hands of a later leader by now.
            if replica.proposed.get(&token).is_none_or(|proposed| proposed.term != term) {
                continue;
            }
            let Some(proposed) = replica.proposed.remove(&token) else { continue };
            match reason {
                NotProposedReason::NotLeading => replica.waiting.push_back((token, proposed.command)),
                NotProposedReason::Busy => effects.replies.push((token, Reply::Failed(Failure::Busy))),
                NotProposedReason::Unreadable => {
                    effects.replies.push((token, Reply::Failed(Failure::Unreadable)));
                }
            }
        }
        // It may not know that it leads, or not lead any more.
        let is_doubtful = reason == NotProposedReason::NotLeading && replica.core.term() == term;
        // Two nodes with different ideas of who leads must not play ball with a command.
        self.rest(group);
        self.touch(group);
        if is_doubtful {
            self.step_group(group, CoreEvent::Wake, effects);
        }
    }

    /// What waits for the leader waits for a moment more.
    fn rest(&mut self, group: GroupId) {
        let until = self.now.plus_micros(RETRY_US);
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.hold_until = Some(until);
        }
    }

    /// Proposes or forwards everything that this turn gathered for `group`.
    pub(crate) fn propose_gathered(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.waiting.is_empty() && replica.forwarded.is_empty() {
            return;
        }
        if replica.core.is_leader() {
            self.propose_here(group, effects);
        } else {
            self.refuse_forwarded(group, effects);
            self.forward_to_leader(group, effects);
        }
    }

    fn propose_here(&mut self, group: GroupId, effects: &mut Effects) {
        let me = self.config.node;
        let incarnation = self.config.incarnation;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let term = replica.core.term();
        let (current, stale): (Vec<_>, Vec<_>) =
            std::mem::take(&mut replica.forwarded).into_iter().partition(|(meant, _, _)| *meant == term);
        let mut gathered: Gathered =
            current.into_iter().map(|(_, origin, command)| (origin, command)).collect();
        let own = std::mem::take(&mut replica.waiting).into_iter();
        gathered.extend(own.map(|(token, command)| (Origin { node: me, incarnation, token }, command)));
        refuse(
            group,
            stale.into_iter().map(|(meant, origin, _)| (meant, origin)),
            NotProposedReason::NotLeading,
            effects,
        );

        if let Some(replica) = self.replicas.get(&group).filter(|replica| self.is_full(replica)) {
            // They may be all that goes into a log that cannot be cut meanwhile.
            let has_room = replica.core.log_bytes() < self.log_bytes_free();
            let (kept, refused): (Gathered, Gathered) =
                gathered.into_iter().partition(|(_, command)| has_room && Command::is_keep_alive(command));
            gathered = kept;
            self.refuse_gathered(group, refused, Refusal::Busy, term, effects);
        }
        for commands in split(gathered, self.config.limits.entry_bytes) {
            self.propose_entry(group, commands, effects);
        }
    }

    /// Proposes one entry; its commands are remembered or refused according to the group's answer.
    pub(crate) fn propose_entry(
        &mut self,
        group: GroupId,
        commands: Gathered,
        effects: &mut Effects,
    ) -> bool {
        let Some(replica) = self.replicas.get_mut(&group) else { return false };
        let term = replica.core.term();
        let stamp_ms = replica.clock.now_ms(self.now);
        replica.stamped_at = self.now;
        let data = envelope::encode(stamp_ms, &commands);
        self.entry_token += 1;
        let token = self.entry_token;
        let outcome = self.step_group(group, CoreEvent::Propose { token, data }, effects);
        match outcome {
            Some(Outcome::Proposed { term: in_term, .. }) => {
                self.remember(group, in_term, commands);
                return true;
            }
            Some(Outcome::Refused { reason, .. }) => {
                self.refuse_gathered(group, commands, reason, term, effects)
            }
            None => self.refuse_gathered(group, commands, Refusal::Busy, term, effects),
        }
        false
    }

    fn remember(&mut self, group: GroupId, term: Term, commands: Gathered) {
        let me = self.config.node;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        for (origin, command) in commands {
            if origin.node == me && origin.token != 0 {
                replica.proposed.insert(origin.token, Proposed { term, command });
            }
        }
    }

    fn refuse_gathered(
        &mut self,
        group: GroupId,
        commands: Gathered,
        reason: Refusal,
        term: Term,
        effects: &mut Effects,
    ) {
        let me = self.config.node;
        let reason = match reason {
            Refusal::Busy => NotProposedReason::Busy,
            _ => NotProposedReason::NotLeading,
        };
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let (own, others): (Gathered, Gathered) =
            commands.into_iter().partition(|(origin, _)| origin.node == me);
        for (origin, command) in own.into_iter().filter(|(origin, _)| origin.token != 0) {
            match reason {
                NotProposedReason::Busy => {
                    effects.replies.push((origin.token, Reply::Failed(Failure::Busy)));
                }
                _ => replica.waiting.push_back((origin.token, command)),
            }
        }
        refuse(group, others.into_iter().map(|(origin, _)| (term, origin)), reason, effects);
    }

    fn refuse_forwarded(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let forwarded = std::mem::take(&mut replica.forwarded);
        refuse(
            group,
            forwarded.into_iter().map(|(meant, origin, _)| (meant, origin)),
            NotProposedReason::NotLeading,
            effects,
        );
    }

    fn forward_to_leader(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.hold_until.is_some_and(|at| at > self.now) {
            return;
        }
        replica.hold_until = None;
        let Some(leader) = replica.leader_node().filter(|node| self.connected.contains_key(node)) else {
            if self.wake_for_request(group, effects) {
                self.rest(group);
            }
            return;
        };
        let term = replica.core.term();
        let commands: Vec<(u64, Bytes)> = std::mem::take(&mut replica.waiting).into();
        if commands.is_empty() {
            return;
        }
        for (token, command) in &commands {
            replica.proposed.insert(*token, Proposed { term, command: command.clone() });
        }
        self.forward_number += 1;
        let (incarnation, number) = (self.config.incarnation, self.forward_number);
        let forward = Forward { group, term, incarnation, number, commands };
        effects.sends.push((leader, PeerMessage::Forward(forward)));
    }
}

impl Replica {
    /// Whether this forward has not been seen: a leader takes each number of a sender's process once. The forwards of one group are
    /// numbered upwards; those of two groups need not be, since two shards of the sender may count them.
    fn is_new_forward(&mut self, from: NodeId, incarnation: u64, number: u64) -> bool {
        let seen = self.forwards_seen.entry(from).or_default();
        let new = (incarnation, number) > *seen;
        if new {
            *seen = (incarnation, number);
        }
        new
    }

    /// An entry of `term` is about to be applied: what was proposed in earlier terms and is not applied by now never
    /// will be. It waits again.
    pub(crate) fn reclaim_proposals_before(&mut self, term: Term) {
        let earlier = self.proposed.iter().filter(|(_, proposed)| proposed.term < term);
        // In the order of their tokens: the order of a hash map must not reach the log.
        let certain: BTreeSet<u64> = earlier.map(|(token, _)| *token).collect();
        for token in certain {
            if let Some(proposed) = self.proposed.remove(&token) {
                self.waiting.push_back((token, proposed.command));
            }
        }
    }

    /// The state was replaced: whether these proposals are in it cannot be told.
    pub(crate) fn give_up_proposals(&mut self, effects: &mut Effects) {
        let tokens: BTreeSet<u64> = self.proposed.drain().map(|(token, _)| token).collect();
        effects.replies.extend(tokens.into_iter().map(|token| (token, Reply::Failed(Failure::Unknown))));
    }

    /// Whether `node` has a replica that belongs to the group.
    pub(crate) fn is_on(&self, node: NodeId) -> bool {
        self.places.nodes.values().any(|other| *other == node)
    }

    /// The replica of this group on `node`, if it votes.
    pub(crate) fn voter_on(&self, node: NodeId) -> Option<ReplicaId> {
        let mut voters = self.core.configuration().voters.iter();
        voters.find(|replica| self.places.nodes.get(replica) == Some(&node)).copied()
    }
}

/// Tells the nodes that forwarded these commands that they were certainly not proposed.
fn refuse(
    group: GroupId,
    origins: impl Iterator<Item = (Term, Origin)>,
    reason: NotProposedReason,
    effects: &mut Effects,
) {
    let mut by_sender: BTreeMap<(NodeId, u64, Term), Vec<u64>> = BTreeMap::new();
    for (meant, origin) in origins {
        by_sender.entry((origin.node, origin.incarnation, meant)).or_default().push(origin.token);
    }
    for ((node, incarnation, term), tokens) in by_sender {
        effects.sends.push((node, PeerMessage::NotProposed { group, term, incarnation, reason, tokens }));
    }
}

/// Cuts commands into entries of about `entry_bytes` each.
fn split(commands: Gathered, entry_bytes: usize) -> Vec<Gathered> {
    let mut entries: Vec<Gathered> = Vec::new();
    let mut size = usize::MAX;
    for (origin, command) in commands {
        let bytes = envelope::command_bytes(&command);
        if size.saturating_add(bytes) > entry_bytes {
            entries.push(Vec::new());
            size = 0;
        }
        size += bytes;
        if let Some(entry) = entries.last_mut() {
            entry.push((origin, command));
        }
    }
    entries
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    use hadron_consensus::{DEFAULT_GROUP, Message, ReplicaId, Time};
    use hadron_keyspace::Keyspace;
    use hadron_storage::engine::ModelEngine;
    use hadron_storage::wal::{Record, RecoveredGroup};

    use crate::config::{Config, Limits};
    use crate::membership::{Bootstrap, Member};

    /// The first of three nodes; nobody leads yet.
    pub(crate) fn node() -> Node {
        node_with(BTreeMap::new()).unwrap()
    }

    /// The same, with these logs.
    pub(crate) fn node_with(recovered: BTreeMap<GroupId, RecoveredGroup>) -> Result<Node, String> {
        let pool = Bootstrap::of((1..=3).map(|id| Member { id, ..Member::default() }).collect());
        let config = Config {
            node: NodeId(1),
            incarnation: 7,
            own: Member { id: 1, ..Member::default() },
            roster: pool.roster(),
            groups: pool.groups(NodeId(1)),
            heartbeat_us: 100_000,
            election_timeout_us: 1_000_000,
            seed: 1,
            limits: Limits::default(),
        };
        let engine = Arc::new(ModelEngine::new());
        let open = |id: GroupId| (id, Keyspace::open(engine.clone(), id.0, Default::default()).unwrap());
        let keyspaces = config.groups.iter().map(|group| open(group.group)).collect();
        Node::new(config, recovered, &keyspaces, Time(1))
    }

    /// Makes the first node lead, as the second votes for it.
    pub(crate) fn lead(node: &mut Node) {
        let mut effects = Effects::default();
        node.step_group(DEFAULT_GROUP, CoreEvent::Campaign, &mut effects);
        for pre in [true, false] {
            let (term, election) = (Term(u64::from(!pre)), Term(1));
            let voted_for = (!pre).then_some(ReplicaId(1));
            let message = Message::VoteAnswer { term, election, pre, granted: true, voted_for };
            node.step_group(DEFAULT_GROUP, CoreEvent::Message { from: ReplicaId(2), message }, &mut effects);
            node.on_log_durable(effects.log_sequence, &mut Effects::default());
        }
        assert!(node.replicas[&DEFAULT_GROUP].core.is_leader());
    }

    /// A follower says that it has all that this leader has, and whether it has room for more.
    pub(crate) fn acknowledge(node: &mut Node, from: ReplicaId, full: bool, effects: &mut Effects) {
        let core = &node.replicas[&DEFAULT_GROUP].core;
        let (term, matched) = (core.term(), core.last());
        let message = Message::AppendAck { term, round: 0, matched, full, asleep: false };
        node.step_group(DEFAULT_GROUP, CoreEvent::Message { from, message }, effects);
    }

    fn proposed_in(term: Term) -> Node {
        let mut node = node();
        let replica = node.replicas.get_mut(&DEFAULT_GROUP).unwrap();
        replica.proposed.insert(5, Proposed { term, command: Bytes::from_static(b"put") });
        node
    }

    fn refuse_in(node: &mut Node, term: Term, reason: NotProposedReason) -> Effects {
        let mut effects = Effects::default();
        node.on_not_proposed(DEFAULT_GROUP, term, 7, reason, vec![5], &mut effects);
        effects
    }

    /// A deposed leader refused a forward, slowly. Meanwhile the command was reclaimed and given to the next leader,
    /// which logged it. The late refusal was believed, and the command was proposed a second time.
    #[test]
    fn a_late_refusal_of_an_earlier_term_touches_nothing() {
        let reasons = [NotProposedReason::NotLeading, NotProposedReason::Busy, NotProposedReason::Unreadable];
        for reason in reasons {
            let mut node = proposed_in(Term(2));
            let effects = refuse_in(&mut node, Term(1), reason);
            let replica = &node.replicas[&DEFAULT_GROUP];
            assert!(effects.replies.is_empty(), "the client must not be told that it did not happen");
            assert!(replica.waiting.is_empty(), "the command must not be proposed again");
            assert!(replica.proposed.contains_key(&5));
        }
    }

    #[test]
    fn a_refusal_of_the_same_term_lets_the_command_wait_again() {
        let mut node = proposed_in(Term(2));
        refuse_in(&mut node, Term(2), NotProposedReason::NotLeading);
        let replica = &node.replicas[&DEFAULT_GROUP];
        assert!(replica.proposed.is_empty());
        assert_eq!(replica.waiting.len(), 1);
    }

    #[test]
    fn a_busy_leader_is_told_to_the_client() {
        let mut node = proposed_in(Term(2));
        let effects = refuse_in(&mut node, Term(2), NotProposedReason::Busy);
        assert_eq!(effects.replies, [(5, Reply::Failed(Failure::Busy))]);
    }

    /// A leader of an older version logged what a node of a newer one forwarded, unread. Once that was committed, every node of the older
    /// version stopped.
    #[test]
    fn what_the_leader_cannot_read_is_not_logged() {
        let mut node = node();
        lead(&mut node);
        node.settle(Time(1), &mut Effects::default());
        let replica = &node.replicas[&DEFAULT_GROUP];
        let (group, term, before) = (DEFAULT_GROUP, replica.core.term(), replica.core.last());
        let mut with_field = Command::Put(Default::default()).to_bytes().to_vec();
        with_field.extend([0xa0, 0x06, 1]);
        let commands = vec![
            (1, Bytes::from_static(&[200])),
            (2, Command::DigestMark.to_bytes()),
            (3, with_field.into()),
        ];
        let mut effects = Effects::default();
        node.on_forward(
            NodeId(2),
            Forward { group, term, incarnation: 9, number: 1, commands },
            &mut effects,
        );
        let refusal = PeerMessage::NotProposed {
            group,
            term,
            incarnation: 9,
            reason: NotProposedReason::Unreadable,
            tokens: vec![1, 3],
        };
        assert_eq!(effects.sends, [(NodeId(2), refusal)]);
        node.settle(Time(1), &mut effects);
        let mut entries = effects.log.iter().filter_map(|record| match record {
            Record::Entries(_, entries) => entries.last(),
            _ => None,
        });
        let entry = entries.next_back().unwrap();
        assert!(entry.index > before);
        let logged = envelope::decode(entry.data.clone()).unwrap().commands;
        let origin = Origin { node: NodeId(2), incarnation: 9, token: 2 };
        assert_eq!(logged, [(origin, Command::DigestMark.to_bytes())]);
    }

    #[test]
    fn what_the_leader_cannot_read_is_told_to_the_client_and_not_tried_again() {
        let mut node = proposed_in(Term(2));
        let effects = refuse_in(&mut node, Term(2), NotProposedReason::Unreadable);
        assert_eq!(effects.replies, [(5, Reply::Failed(Failure::Unreadable))]);
        assert!(node.replicas[&DEFAULT_GROUP].waiting.is_empty());
    }

    #[test]
    fn an_entry_of_a_later_term_frees_what_was_proposed_before() {
        let mut node = proposed_in(Term(2));
        let replica = node.replicas.get_mut(&DEFAULT_GROUP).unwrap();
        replica.reclaim_proposals_before(Term(2));
        assert!(replica.waiting.is_empty(), "the entries of this term may still hold it");
        replica.reclaim_proposals_before(Term(3));
        assert_eq!(replica.waiting, [(5, Bytes::from_static(b"put"))]);
    }

    #[test]
    fn a_forward_is_taken_once() {
        let mut node = node();
        let replica = node.replicas.get_mut(&DEFAULT_GROUP).unwrap();
        assert!(replica.is_new_forward(NodeId(2), 1, 1));
        assert!(!replica.is_new_forward(NodeId(2), 1, 1));
        assert!(replica.is_new_forward(NodeId(2), 2, 1), "a new process counts anew");
        assert!(!replica.is_new_forward(NodeId(2), 1, 9), "an old one is over");
    }

    #[test]
    fn commands_are_cut_into_entries_of_bounded_size() {
        let origin = Origin { node: NodeId(1), incarnation: 1, token: 1 };
        let commands: Gathered = (0..10).map(|_| (origin, Bytes::from(vec![0; 100]))).collect();
        let sizes: Vec<usize> = split(commands, 400).iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 3, 3, 1]);
        let large: Gathered = vec![(origin, Bytes::from(vec![0; 1_000]))];
        assert_eq!(split(large, 400).len(), 1, "a command that is larger stands alone");
    }
}
