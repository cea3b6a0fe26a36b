//! The periodic consistency check: do all replicas hold the same state, and how far is each?
//!
//! Every few seconds the leader of a group that changed logs a mark; each replica remembers its live digest at that
//! index. The leader then asks for them. When a majority agrees, whoever differs from it is named: in the log, in the
//! metrics and by a CORRUPT alarm for that member alone. The named replica stops serving; the group goes on. Where the catalog
//! says where replicas are, whoever plans has it rebuilt, as its node reports it; the alarm ends with the replica. A group that sleeps is
//! woken once for what was changed since the last comparison, and then left alone.
//!
//! Here too is C(x), each node's share of the entries that were acknowledged within the last window.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hadron_consensus::{Amnesia, Divergence, Event as CoreEvent, GroupId, Index, NodeId, ReplicaId, Time};
use hadron_keyspace::{Command, Keyspace};
use hadron_proto::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};

use crate::board::{GroupBoard, LogShare};
use crate::envelope::Origin;
use crate::event::{Effects, Failure, Reply};
use crate::groups::Replica;
use crate::node::Node;
use crate::peer::PeerMessage;
use crate::reconfigure::Places;

/// Questions that wait for this replica to reach the index they are about.
const QUESTIONS_MAX: usize = 16;
/// A new leader does not know what the others have before they acknowledged something: it waits for so small a part of
/// the check interval, once, before it samples.
const FIRST_SAMPLE_PART: u64 = 20;
/// Samples of the window over which C(x) is counted; one per check interval.
const WINDOW_SAMPLES: usize = 4;

/// One group's part of the check.
#[derive(Debug)]
pub(crate) struct Integrity {
    /// When the leader logs the next mark.
    pub(crate) next_at: Time,
    /// The revision at the last mark: without a change there is nothing new to compare.
    marked_revision: Option<i64>,
    /// The index of the mark being compared, and the digests received for it.
    round: Option<Round>,
    /// Questions of the leader about an index that is not applied yet: who asks, the index, its digest.
    questions: VecDeque<(NodeId, u64, u64)>,
    /// What each replica had acknowledged at the last samples, oldest first. Without those that nothing is known of.
    acknowledged: VecDeque<BTreeMap<ReplicaId, u64>>,
    /// The first sample of this leadership was put off.
    has_waited: bool,
    /// The end of the leader's log when it proposed last to lift alarms.
    lifting: Option<Index>,
}

#[derive(Debug)]
struct Round {
    index: u64,
    digests: BTreeMap<NodeId, u64>,
}

impl Integrity {
    pub(crate) fn new(now: Time) -> Integrity {
        Integrity {
            next_at: now,
            marked_revision: None,
            round: None,
            questions: VecDeque::new(),
            acknowledged: VecDeque::new(),
            has_waited: false,
            lifting: None,
        }
    }
}

impl Node {
    /// Leader: sample the shares and log a mark, if it is time.
    pub(crate) fn maybe_check_integrity(&mut self, group: GroupId, effects: &mut Effects) {
        let (now, interval_us) = (self.now, self.config.limits.digest_interval_us);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if !replica.core.is_leader() || replica.integrity.next_at > now {
            return;
        }
        let is_sampled = replica.sample_shares();
        let wait_us = if is_sampled { interval_us } else { interval_us / FIRST_SAMPLE_PART };
        replica.integrity.next_at = now.plus_micros(wait_us);
        let revision = replica.keyspace.revision();
        if replica.integrity.marked_revision == Some(revision) {
            return;
        }
        let nobody = Origin { node: self.config.node, incarnation: self.config.incarnation, token: 0 };
        let is_proposed = self.propose_entry(group, vec![(nobody, Command::DigestMark.to_bytes())], effects);
        if let Some(replica) = self.replicas.get_mut(&group).filter(|_| is_proposed) {
            replica.integrity.marked_revision = Some(revision);
        }
    }

    /// After applying: compare what has become comparable.
    pub(crate) fn answer_digests(&mut self, group: GroupId, effects: &mut Effects) {
        self.ask_for_digests(group, effects);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let applied = replica.applied().0;
        let (due, later): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut replica.integrity.questions).into_iter().partition(|q| q.1 <= applied);
        replica.integrity.questions = later;
        for (from, index, live) in due {
            self.answer_digest(from, group, index, live, effects);
        }
    }

    /// Leader: a new mark was applied here; ask the others.
    fn ask_for_digests(&mut self, group: GroupId, effects: &mut Effects) {
        let me = self.config.node;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let Some((index, live)) = replica.keyspace.last_mark() else { return };
        let is_new = replica.integrity.round.as_ref().is_none_or(|round| round.index < index);
        if !is_new || !replica.core.is_leader() {
            return;
        }
        replica.integrity.round = Some(Round { index, digests: BTreeMap::from([(me, live)]) });
        let others = replica.places.nodes.values().filter(|node| **node != me);
        let question = PeerMessage::Digest { group, index, live, answer: false };
        effects.sends.extend(others.map(|node| (*node, question.clone())));
    }

    /// A question of the leader, or an answer to ours.
    pub(crate) fn on_digest(
        &mut self,
        from: NodeId,
        group: GroupId,
        index: u64,
        live: u64,
        answer: bool,
        effects: &mut Effects,
    ) {
        let me = self.config.node;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if answer {
            if let Some(round) = replica.integrity.round.as_mut().filter(|round| round.index == index)
                && round.digests.insert(from, live).is_none()
            {
                replica.board.count_digest(round.digests.get(&me) == Some(&live));
            }
            return self.judge_round(group, effects);
        }
        if replica.applied().0 >= index {
            return self.answer_digest(from, group, index, live, effects);
        }
        if replica.integrity.questions.len() == QUESTIONS_MAX {
            replica.integrity.questions.pop_front();
        }
        replica.integrity.questions.push_back((from, index, live));
    }

    /// Follower: compare with the leader's digest and tell it ours.
    fn answer_digest(&mut self, to: NodeId, group: GroupId, index: u64, theirs: u64, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let Some(mine) = replica.keyspace.digest_at(index) else { return };
        replica.board.count_digest(mine == theirs);
        if mine != theirs {
            tracing::error!(
                group = group.0,
                index,
                mine,
                theirs,
                leader = %format_args!("{:x}", to.0),
                "this replica's state differs from the leader's"
            );
        }
        effects.sends.push((to, PeerMessage::Digest { group, index, live: mine, answer: true }));
    }

    /// Leader: with every answer, see whether a majority agrees and who does not.
    fn judge_round(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let Some(round) = &replica.integrity.round else { return };
        let Some(agreed) = majority(&round.digests, replica.places.nodes.len()) else { return };
        let index = round.index;
        let differing: Vec<(NodeId, u64)> = round
            .digests
            .iter()
            .filter(|(node, live)| **live != agreed && replica.is_on(**node))
            .map(|(node, live)| (*node, *live))
            .collect();
        for (node, found) in differing {
            tracing::error!(
                group = group.0,
                index,
                node = %format_args!("{:x}", node.0),
                found,
                agreed,
                "a replica's state differs from the majority: it is damaged and must be rebuilt"
            );
            self.raise_corrupt(group, node, effects);
        }
    }

    /// The log of a replica differs from the leader's where it cannot.
    pub(crate) fn on_divergence(&mut self, group: GroupId, divergence: Divergence, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let Some(node) = replica.node_of(divergence.replica) else { return };
        tracing::error!(
            group = group.0,
            index = divergence.index.0,
            node = %format_args!("{:x}", node.0),
            expected = divergence.expected,
            found = divergence.found,
            "the log of a replica differs from the leader's: it is damaged and must be rebuilt"
        );
        self.raise_corrupt(group, node, effects);
        if node == self.config.node {
            self.quarantine(group, effects);
        }
    }

    /// A follower has not what it had acknowledged. It is named, since what else it promised and forgot nobody knows. Then it is sent again what
    /// it lost: so it hears that it was named, and its acknowledgements, without which the group may be unable to go on, count for what it has.
    pub(crate) fn on_amnesia(&mut self, group: GroupId, amnesia: Amnesia, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let Some(node) = replica.node_of(amnesia.replica) else { return };
        tracing::error!(
            group = group.0,
            node = %format_args!("{:x}", node.0),
            acknowledged = amnesia.acknowledged.0,
            left = amnesia.left.0,
            "a replica has lost entries that it had acknowledged: an older copy of its data directory was put in its place, or its disk does \
             not keep what it is told to sync. It must be rebuilt"
        );
        let is_known = amnesia.is_again || replica.accused().contains(&node);
        // Each time: the first may have been refused, or not have come to pass.
        self.raise_corrupt(group, node, effects);
        if is_known {
            self.step_group(group, CoreEvent::Refeed { replica: amnesia.replica }, effects);
        }
    }

    /// Names `node` in an alarm that every replica learns of. Ignored where this replica does not lead.
    fn raise_corrupt(&mut self, group: GroupId, node: NodeId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if !replica.core.is_leader() || replica.accused().contains(&node) {
            return;
        }
        self.propose_alarms(group, vec![corrupt(node, AlarmAction::Activate)], effects);
    }

    /// False if they were refused.
    fn propose_alarms(&mut self, group: GroupId, alarms: Vec<AlarmRequest>, effects: &mut Effects) -> bool {
        let nobody = Origin { node: self.config.node, incarnation: self.config.incarnation, token: 0 };
        let commands = alarms.into_iter().map(|alarm| (nobody, Command::Alarm(alarm).to_bytes()));
        self.propose_entry(group, commands.collect(), effects)
    }

    /// Leader of a group of the catalog: an alarm about a replica that is gone is over. True while there is such a one. A new replica on that
    /// node must come after its end in the log, or it would take the alarm for its own.
    pub(crate) fn lift_alarms(&mut self, group: GroupId, effects: &mut Effects) -> bool {
        let Some(replica) = self.replicas.get_mut(&group) else { return false };
        if replica.follows_roster || !replica.core.is_leader() {
            return false;
        }
        let over: Vec<NodeId> = replica.accused().into_iter().filter(|node| !replica.is_on(*node)).collect();
        let is_under_way = replica.integrity.lifting.is_some_and(|end| replica.applied() <= end);
        if over.is_empty() || is_under_way {
            return !over.is_empty();
        }
        let end = replica.core.last();
        let lifted = over.into_iter().map(|node| corrupt(node, AlarmAction::Deactivate));
        let is_proposed = self.propose_alarms(group, lifted.collect(), effects);
        if let Some(replica) = self.replicas.get_mut(&group).filter(|_| is_proposed) {
            replica.integrity.lifting = Some(end);
        }
        true
    }

    /// After applying: a replica that an alarm names stops serving and leading until the alarm is lifted, and an alarm about one that is gone is
    /// lifted here. If those that no alarm names could not go on alone, whoever is not quarantined yet goes on as well: they may need what
    /// it knows, and nobody could lift the alarms otherwise.
    pub(crate) fn heed_alarms(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let accused = replica.accused();
        // Whoever reads of it before it belonged to the group reads of another replica that was on this node.
        let was_accused = replica.is_accused;
        let is_accused = accused.contains(&self.config.node) && (was_accused || replica.belongs());
        replica.is_accused = is_accused;
        if is_accused && replica.is_spared(&accused) {
            self.quarantine(group, effects);
        } else if was_accused && !is_accused {
            self.release(group, effects);
        }
        if !accused.is_empty() {
            self.lift_alarms(group, effects);
        }
    }

    /// This node's replica is damaged: it answers nobody from its state and leads no more. It goes on voting and
    /// acknowledging, so that the group keeps its quorum until it is rebuilt.
    fn quarantine(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group).filter(|replica| !replica.quarantined) else {
            return;
        };
        tracing::error!(group = group.0, "this replica is quarantined: rebuild it from the others");
        replica.quarantined = true;
        replica.board.set_quarantined(true);
        let waiting = std::mem::take(&mut replica.waiting).into_iter().map(|(token, _)| token);
        let certain = waiting.chain(replica.reads.take_all());
        effects.replies.extend(certain.map(|token| (token, Reply::Failed(Failure::Quarantined))));
        replica.give_up_proposals(effects);
        self.step_group(group, CoreEvent::Retire, effects);
    }

    /// Somebody lifted the alarm about this node's replica: it serves again. If it is damaged all the same, it will be named again.
    fn release(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group).filter(|replica| replica.quarantined) else {
            return;
        };
        tracing::warn!(group = group.0, "the alarm about this replica was lifted: it serves again");
        replica.quarantined = false;
        replica.board.set_quarantined(false);
        self.step_group(group, CoreEvent::Reinstate, effects);
    }
}

impl Replica {
    /// Leader: whether there is something to look at. Not in a group that sleeps, or has one replica, once it was looked at as it is now.
    pub(crate) fn is_check_due(&self) -> bool {
        let is_quiet = self.core.is_asleep() || self.core.progress().is_empty();
        !is_quiet || self.integrity.marked_revision != Some(self.keyspace.revision())
    }

    /// Publishes C(x) and the lag of each replica; false if that has to wait for the others' first acknowledgements.
    pub(crate) fn sample_shares(&mut self) -> bool {
        let last = self.core.last().0;
        let mut matched: BTreeMap<ReplicaId, u64> =
            self.core.progress().iter().map(|progress| (progress.replica, progress.matched.0)).collect();
        let is_unknown = matched.values().any(|matched| *matched == 0);
        matched.insert(self.me, self.core.durable().0);
        if is_unknown && !std::mem::replace(&mut self.integrity.has_waited, true) {
            return false;
        }
        let acknowledged = |replica: &ReplicaId| {
            let now = matched.get(replica).copied().unwrap_or_default();
            let before = self.integrity.acknowledged.iter().find_map(|sample| sample.get(replica));
            now.saturating_sub(before.copied().unwrap_or(now))
        };
        let sum: u64 = matched.keys().map(acknowledged).sum();
        let share = |replica: &ReplicaId| match sum {
            0 => 1.0 / matched.len() as f64,
            _ => acknowledged(replica) as f64 / sum as f64,
        };
        let shares = matched.iter().filter_map(|(replica, matched)| {
            let node = self.node_of(*replica)?;
            Some(LogShare { node, share: share(replica), lag: last.saturating_sub(*matched) })
        });
        self.board.set_shares(shares.collect());
        if self.integrity.acknowledged.len() == WINDOW_SAMPLES {
            self.integrity.acknowledged.pop_front();
        }
        matched.retain(|_, matched| *matched > 0);
        self.integrity.acknowledged.push_back(matched);
        true
    }

    /// The nodes whose replicas an alarm names as damaged.
    pub(crate) fn accused(&self) -> BTreeSet<NodeId> {
        accused_in(&self.keyspace)
    }

    /// Whether those whose nodes are none of `accused` are half of the voters at least. They may need the accused one's vote, as one of two does.
    fn is_spared(&self, accused: &BTreeSet<NodeId>) -> bool {
        let is_sound =
            |voter: &&ReplicaId| self.node_of(**voter).is_some_and(|node| !accused.contains(&node));
        let configuration = self.core.configuration();
        [&configuration.voters, &configuration.outgoing]
            .into_iter()
            .filter(|voters| !voters.is_empty())
            .all(|voters| 2 * voters.iter().filter(is_sound).count() >= voters.len())
    }

    /// Whether this replica was in the group as of what is applied.
    fn belongs(&self) -> bool {
        self.applied_configuration().is_ok_and(|applied| applied.members().any(|member| member == self.me))
    }

    /// Forgets what only a leader knows.
    pub(crate) fn forget_checks(&mut self) {
        self.integrity.round = None;
        self.integrity.marked_revision = None;
        self.integrity.acknowledged.clear();
        self.integrity.has_waited = false;
        self.integrity.lifting = None;
        self.board.set_shares(Vec::new());
    }
}

/// An alarm about the replica on `node`, which is damaged, or its end.
pub(crate) fn corrupt(node: NodeId, action: AlarmAction) -> AlarmRequest {
    AlarmRequest { action: action as i32, member_id: node.0, alarm: AlarmType::Corrupt as i32 }
}

/// What comes of it that a node's own replica is found damaged.
#[derive(Clone, Debug, PartialEq)]
pub enum Accusation {
    /// To be proposed: an alarm that names it. Every replica heeds it.
    Raise(Command),
    /// There is such an alarm already.
    Raised,
    /// Without it too few replicas would be left that nothing is known against: it has to go on.
    TooFewLeft,
}

/// The replica on `node` of the group on `board` was found damaged by its own node. Two nodes that find themselves damaged at the same moment do
/// not know of each other.
pub fn accuse(board: &GroupBoard, node: NodeId) -> Accusation {
    let accused = accused_in(&board.keyspace);
    if accused.contains(&node) {
        return Accusation::Raised;
    }
    let configuration = board.configuration();
    let places = Places::of(&configuration).unwrap_or_default();
    // Alarms about those who are gone, or have no vote, cost nobody anything.
    let is_sound = |voter: &ReplicaId| {
        places.nodes.get(voter).is_some_and(|place| *place != node && !accused.contains(place))
    };
    let sound = configuration.voters.iter().filter(|voter| is_sound(voter)).count();
    match sound > configuration.voters.len() / 2 {
        true => Accusation::Raise(Command::Alarm(corrupt(node, AlarmAction::Activate))),
        false => Accusation::TooFewLeft,
    }
}

/// The nodes whose replicas an alarm names as damaged.
fn accused_in(keyspace: &Keyspace) -> BTreeSet<NodeId> {
    let alarms = keyspace.alarms().into_iter();
    let corrupt = alarms.filter(|alarm| alarm.alarm == AlarmType::Corrupt as i32);
    corrupt.map(|alarm| NodeId(alarm.member_id)).collect()
}

/// The digest that more than half of `replicas` have, if any does.
fn majority(digests: &BTreeMap<NodeId, u64>, replicas: usize) -> Option<u64> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    digests.values().for_each(|live| *counts.entry(*live).or_default() += 1);
    counts.into_iter().find(|(_, count)| *count > replicas / 2).map(|(live, _)| live)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hadron_consensus::{DEFAULT_GROUP, Message, ROOT_GROUP, Term};
    use hadron_keyspace::Applied;
    use hadron_proto::etcdserverpb::PutRequest;
    use hadron_storage::engine::{Engine, ModelEngine};

    use super::*;
    use crate::board::DigestComparisons;
    use crate::catalog::KeyspaceRecord;
    use crate::event::Event;
    use crate::groups::Proposed;
    use crate::node::tests::leading;
    use crate::propose::tests::{acknowledge, lead, node};

    /// A node whose replica of `default` has a mark at index 1, and the digest there.
    fn marked() -> (Node, u64) {
        let node = node();
        let keyspace = node.replicas[&DEFAULT_GROUP].keyspace.clone();
        let applied = Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 };
        drop(keyspace.apply(applied, vec![Command::DigestMark]));
        let live = keyspace.digest();
        (node, live)
    }

    fn hear(node: &mut Node, from: u64, live: u64, answer: bool) -> DigestComparisons {
        node.on_digest(NodeId(from), DEFAULT_GROUP, 1, live, answer, &mut Effects::default());
        node.replicas[&DEFAULT_GROUP].board.digest_comparisons()
    }

    /// Two that had lost something, and without which nothing could be committed, were named in turns, and neither was sent anything.
    #[test]
    fn who_has_lost_something_is_named_and_when_that_goes_on_sent_it_again() {
        let mut node = node();
        lead(&mut node);
        let others = [2, 3].map(ReplicaId);
        let mut effects = Effects::default();
        others.iter().for_each(|other| acknowledge(&mut node, *other, false, &mut effects));
        let lost = node.replicas[&DEFAULT_GROUP].core.last();
        let first_entry = lost.0 + 1;
        for _ in 0..40 {
            node.now = node.replicas[&DEFAULT_GROUP].core.deadline().expect("it leads");
            for other in [2, 3].map(NodeId) {
                node.connected.insert(other, 1);
                node.liveness.on_heartbeat(node.now, other, 1, true, true);
            }
            node.step_group(DEFAULT_GROUP, CoreEvent::Timer, &mut effects);
            node.on_log_durable(effects.log_sequence, &mut Effects::default());
            for from in others {
                let core = &node.replicas[&DEFAULT_GROUP].core;
                let (term, hint_index, hint_term) = (core.term(), Index(0), Term(0));
                let message = Message::AppendReject { term, round: 0, rejected: lost, hint_index, hint_term };
                node.step_group(DEFAULT_GROUP, CoreEvent::Message { from, message }, &mut effects);
            }
        }
        let core = &node.replicas[&DEFAULT_GROUP].core;
        assert!(core.is_leader());
        let named = |member: u64| {
            let alarm = Command::Alarm(corrupt(NodeId(member), AlarmAction::Activate)).to_bytes();
            core.entries().filter(|entry| entry.index.0 >= first_entry).any(|entry| {
                crate::envelope::decode(entry.data.clone())
                    .is_ok_and(|it| it.commands.iter().any(|(_, command)| *command == alarm))
            })
        };
        assert!(named(2) && named(3));
        assert_eq!(core.progress().iter().map(|it| it.matched).collect::<Vec<_>>(), [Index(0); 2]);
    }

    #[test]
    fn a_follower_counts_each_question_that_it_compares_itself_with() {
        let (mut node, live) = marked();
        assert_eq!(hear(&mut node, 2, live, false), DigestComparisons { same: 1, different: 0 });
        assert_eq!(hear(&mut node, 2, live + 1, false), DigestComparisons { same: 1, different: 1 });
    }

    #[test]
    fn a_leader_counts_each_answer_once() {
        let (mut node, live) = marked();
        let round = Round { index: 1, digests: BTreeMap::from([(NodeId(1), live)]) };
        let replica = node.replicas.get_mut(&DEFAULT_GROUP);
        replica.expect("it is there").integrity.round = Some(round);
        assert_eq!(hear(&mut node, 2, live, true), DigestComparisons { same: 1, different: 0 });
        assert_eq!(hear(&mut node, 2, live, true), DigestComparisons { same: 1, different: 0 });
        assert_eq!(hear(&mut node, 3, live + 1, true), DigestComparisons { same: 1, different: 1 });
    }

    /// A quarantined replica went on leading, and answered what was on its way from its damaged state.
    #[test]
    fn a_quarantined_replica_answers_nobody_and_retires() {
        let mut node = node();
        let mut effects = Effects::default();
        node.on_write(1, DEFAULT_GROUP, Command::DigestMark.to_bytes(), &mut effects);
        node.on_read(2, DEFAULT_GROUP, &mut effects);
        let replica = node.replicas.get_mut(&DEFAULT_GROUP).expect("it is there");
        let command = Command::DigestMark.to_bytes();
        replica.proposed.insert(3, Proposed { term: Term(1), command });
        node.quarantine(DEFAULT_GROUP, &mut effects);
        let failed = |token, failure| (token, Reply::Failed(failure));
        let quarantined = Failure::Quarantined;
        let expected = [failed(1, quarantined), failed(2, quarantined), failed(3, Failure::Unknown)];
        assert_eq!(effects.replies, expected);
        node.step_group(DEFAULT_GROUP, CoreEvent::Campaign, &mut effects);
        assert_eq!(effects.sends, [], "it does not campaign");
        effects.replies.clear();
        node.on_write(4, DEFAULT_GROUP, Command::DigestMark.to_bytes(), &mut effects);
        assert_eq!(effects.replies, [failed(4, quarantined)]);
    }

    /// Takes an event, and what follows from it as soon as the log is durable.
    fn take(node: &mut Node, event: Event) -> Effects {
        let (mut effects, now) = (Effects::default(), Time(node.now.0 + 1));
        node.step(now, event, &mut effects);
        node.settle(now, &mut effects);
        while !std::mem::take(&mut effects.log).is_empty() {
            node.step(now, Event::LogDurable { sequence: effects.log_sequence }, &mut effects);
            node.settle(now, &mut effects);
        }
        effects
    }

    /// A node that is alone, with a keyspace of the catalog.
    fn placed() -> (Node, GroupId) {
        placed_on(leading())
    }

    /// A node whose groups take one entry after the other.
    fn with_room_for_one_entry() -> Node {
        let mut node = leading();
        node.config.limits.uncommitted_bytes = 1;
        node
    }

    fn placed_on(mut node: Node) -> (Node, GroupId) {
        let wanted = KeyspaceRecord { name: "a".into(), ..Default::default() };
        let made = node.board.with_catalog(|catalog| catalog.create(&wanted, &[NodeId(1)]));
        let command = made.expect("a good name").to_bytes();
        let job = take(&mut node, Event::Write { token: 9, group: ROOT_GROUP, command }).opens.pop();
        let job = job.expect("a replica is wanted here");
        let engine: Arc<dyn Engine> = Arc::new(ModelEngine::new());
        let outcome = job.carry_out(&engine, Default::default());
        take(&mut node, Event::Opened { group: job.group, outcome });
        assert!(node.replicas[&job.group].core.is_leader());
        (node, job.group)
    }

    fn accusation(member_id: u64) -> Command {
        Command::Alarm(corrupt(NodeId(member_id), AlarmAction::Activate))
    }

    #[test]
    fn a_damaged_replica_is_named_as_long_as_enough_others_are_sound() {
        let node = node();
        let replica = &node.replicas[&DEFAULT_GROUP];
        assert_eq!(replica.board.configuration().voters.len(), 3);
        assert_eq!(accuse(&replica.board, NodeId(1)), Accusation::Raise(accusation(1)));
        let applied = Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 };
        drop(replica.keyspace.apply(applied, vec![accusation(7)]));
        assert_eq!(accuse(&replica.board, NodeId(1)), Accusation::Raise(accusation(1)), "n7 is nobody here");
        let applied = Applied { index: 2, ..applied };
        drop(replica.keyspace.apply(applied, vec![accusation(2)]));
        assert_eq!(accuse(&replica.board, NodeId(2)), Accusation::Raised);
        assert_eq!(accuse(&replica.board, NodeId(1)), Accusation::TooFewLeft);
    }

    #[test]
    fn an_alarm_ends_with_the_replica_that_it_is_about() {
        let (mut node, group) = placed();
        let (mut effects, now) = (Effects::default(), Time(node.now.0 + 1));
        let write = Event::Write { token: 10, group, command: accusation(7).to_bytes() };
        node.step(now, write, &mut effects);
        node.settle(now, &mut effects);
        node.step(now, Event::LogDurable { sequence: effects.log_sequence }, &mut effects);
        node.settle(now, &mut effects);
        assert_eq!(node.replicas[&group].accused(), BTreeSet::from([NodeId(7)]));
        let before = node.replicas[&group].core.last();
        assert!(node.lift_alarms(group, &mut effects), "a new replica there has to wait");
        assert_eq!(node.replicas[&group].core.last(), before, "its end is on its way already");
        take(&mut node, Event::LogDurable { sequence: effects.log_sequence });
        assert_eq!(node.replicas[&group].accused(), BTreeSet::new());
        assert!(!node.lift_alarms(group, &mut effects));
    }

    /// The end of an alarm, and a mark, that were refused counted as on their way for ever: nothing of the group could be
    /// changed any more, and its state was not compared.
    #[test]
    fn what_was_refused_is_proposed_again() {
        let (mut node, group) = placed_on(with_room_for_one_entry());
        let put = Command::Put(PutRequest { key: "k".into(), ..Default::default() });
        let nobody = Origin { node: NodeId(1), incarnation: 7, token: 0 };
        let mut effects = Effects::default();
        assert!(node.propose_entry(group, vec![(nobody, put.to_bytes())], &mut effects));
        let replica = &node.replicas[&group];
        let applied = Applied { index: replica.applied().0 + 1, ..replica.keyspace.applied() };
        drop(replica.keyspace.apply(applied, vec![accusation(7), put]));
        let last = replica.core.last();
        assert!(node.lift_alarms(group, &mut effects));
        node.replicas.get_mut(&group).expect("it is there").integrity.next_at = Time(0);
        node.maybe_check_integrity(group, &mut effects);
        let replica = &node.replicas[&group];
        assert_eq!(replica.core.last(), last, "it takes nothing");
        assert_eq!(replica.integrity.lifting, None);
        assert!(replica.is_check_due());
    }

    /// A replica that came to a node whose former replica had been damaged read of that in the log, and took it for its own.
    #[test]
    fn an_alarm_about_a_former_replica_is_none_of_the_new_ones_business() {
        let (mut node, group) = (node(), DEFAULT_GROUP);
        let replica = node.replicas.get_mut(&group).expect("it is there");
        let me = std::mem::replace(&mut replica.me, ReplicaId(9));
        assert!(!hears_of(&mut node, accusation(1)), "it does not belong to the group yet");
        node.replicas.get_mut(&group).expect("it is there").me = me;
        node.heed_alarms(group, &mut Effects::default());
        assert!(node.replicas[&group].quarantined);
        let found = node.board.damaged();
        assert_eq!(found, BTreeMap::from([(group, me)]));
    }

    /// Applies a command; whether the replica is quarantined then.
    fn hears_of(node: &mut Node, command: Command) -> bool {
        let keyspace = node.replicas[&DEFAULT_GROUP].keyspace.clone();
        let applied = Applied { index: keyspace.applied().index + 1, ..keyspace.applied() };
        drop(keyspace.apply(applied, vec![command]));
        node.heed_alarms(DEFAULT_GROUP, &mut Effects::default());
        node.replicas[&DEFAULT_GROUP].quarantined
    }

    /// Whoever lifted the alarm got nothing back before the node was started again; and where a client's alarms named all members,
    /// or the only one, nobody could lift them.
    #[test]
    fn a_replica_serves_again_when_its_alarm_is_lifted_and_somebody_can_always_lift_it() {
        let mut node = node();
        let lifted = |member| Command::Alarm(corrupt(NodeId(member), AlarmAction::Deactivate));
        assert!(!hears_of(&mut node, accusation(2)));
        assert!(!hears_of(&mut node, lifted(2)));
        assert!(hears_of(&mut node, accusation(1)));
        assert!(!hears_of(&mut node, lifted(1)));
        assert!(!hears_of(&mut node, accusation(3)));
        assert!(!hears_of(&mut node, accusation(1)), "too few others would be left");
        let (mut alone, group) = placed();
        take(&mut alone, Event::Write { token: 10, group, command: accusation(1).to_bytes() });
        assert!(!alone.replicas[&group].quarantined);
    }

    #[test]
    fn a_majority_is_of_all_replicas_not_of_those_that_answered() {
        let digests =
            |values: &[u64]| values.iter().zip(1..).map(|(live, node)| (NodeId(node), *live)).collect();
        assert_eq!(majority(&digests(&[7]), 3), None);
        assert_eq!(majority(&digests(&[7, 8]), 3), None);
        assert_eq!(majority(&digests(&[7, 8, 7]), 3), Some(7));
        assert_eq!(majority(&digests(&[7, 7]), 4), None);
    }
}
