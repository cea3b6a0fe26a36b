//! Placement: the replicas that the catalog wants on this node are opened, and those that it does not want any more are destroyed
//! once nobody needs them.
//!
//! ```text
//!              wanted                     Opened                 not wanted, and the group
//!   nothing ───────────▶ opening ───────────────────▶ open ──── does without it, or is deleted ──▶ destroying
//!      ▲                    │ the log is another's                                                   │ tombstone
//!      │                    ▼                                                                        ▼
//!      └───────────────  forgetting  ◀──────────────────────────────────────────────────────────  Destroyed
//!          durable in the log
//! ```
//! **Only the catalog makes replicas**, never a message: one that is late names a replica that is not here, and is dropped.
//!
//! **No replica lives twice.** A new one owns its records in the engine durably before it speaks; a destroyed one leaves a tombstone
//! before its log is forgotten. So a crash anywhere in between leaves a replica whole, or gone for good, whatever an old
//! catalog says: one that came back without its votes could elect a second leader.
//!
//! **Who is not wanted stays until it is not needed.** To leave a joint configuration takes a majority of the old voters, and a group
//! that never elected needs its first ones. The catalog names it as leaving, with the revision of that; it asks the others, and goes when
//! one of them has applied a configuration of that revision, or a later one, without it. That it is not wanted counts only if
//! the catalog says so: one that lags behind does not know of it yet. Until it is gone its node gets no other
//! replica of the group: two would need each other's place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{Entry, Event as CoreEvent, GroupId, NodeId, ROOT_GROUP, ReplicaId, Role, Time};
use hadron_keyspace::Keyspace;
use hadron_storage::wal::{Record, RecoveredGroup};

use crate::catalog::Catalog;
use crate::config::GroupConfig;
use crate::event::{DestroyJob, Effects, Event, Failure, OpenJob, OpenOutcome, Reply, Retired};
use crate::groups::{Install, Replica, applied_configuration, check_configurations};
use crate::node::Node;
use crate::peer::PeerMessage;
use crate::reconfigure::first_configuration;

/// Replicas that one command says are gone.
const LEFT_AT_ONCE: usize = 100;

/// When what could not be read of the root group is tried again.
const READ_AGAIN_US: u64 = 10_000_000;

/// What is under way for a group that has no open replica here.
#[derive(Debug)]
enum Step {
    /// The driver opens it: this replica, or whichever is there.
    Opening(Option<ReplicaId>),
    /// The driver leaves the tombstone.
    Destroying,
    /// The log's records of a former replica are being forgotten, in the batch of this number.
    Forgetting(u64),
}

/// The groups of the catalog on this node.
#[derive(Debug, Default)]
pub(crate) struct Residents {
    steps: BTreeMap<GroupId, Step>,
    /// What the log holds of groups that are not open: not yet, or never again.
    recovered: BTreeMap<GroupId, RecoveredGroup>,
    /// Those of them of which it was said that the log is kept for them.
    kept: BTreeSet<GroupId>,
    /// Open replicas that are not wanted any more.
    leaving: BTreeSet<GroupId>,
    /// New groups for whose first leadership this node stands, and since when.
    newborn: BTreeMap<GroupId, Time>,
    /// Replicas that cannot be opened because they are damaged. They keep their place until the catalog does without them.
    unopened: BTreeMap<GroupId, ReplicaId>,
    /// Up to this revision of the root group this shard has done what the catalog says. What is on the board may be newer.
    heeded: i64,
    /// Keys of the catalog that entries of this turn may have changed.
    changed: BTreeSet<Bytes>,
}

/// What the catalog says of a group, seen from this node. It may lag behind, even behind what this node did in an earlier life.
struct Known {
    is_deleted: bool,
    is_placed: bool,
    /// The replica that shall be here.
    wanted: Option<ReplicaId>,
    /// The replica that shall not be here any more.
    leaving: Option<ReplicaId>,
}

impl Residents {
    /// `recovered` is what the log holds of groups that are not open.
    pub(crate) fn new(recovered: BTreeMap<GroupId, RecoveredGroup>) -> Residents {
        Residents { recovered, ..Residents::default() }
    }

    /// Whether the log holds something of a replica of `group` that is not open.
    pub(crate) fn holds_log_of(&self, group: GroupId) -> bool {
        self.recovered.contains_key(&group)
    }

    /// The entries that the log holds of a replica that is not open. It is asked for them when old segments are kept for them, which is said
    /// once.
    pub(crate) fn keep_log(&mut self, group: GroupId) -> Vec<Entry> {
        let entries = self.recovered.get(&group).map(|log| log.entries.clone()).unwrap_or_default();
        if !entries.is_empty() && self.kept.insert(group) {
            tracing::warn!(
                group = group.0,
                entries = entries.len(),
                "this replica is not open: the log keeps its entries until it is opened or leaves this node"
            );
        }
        entries
    }

    /// Bytes that it takes to hold the logs of replicas that are not open.
    pub(crate) fn log_bytes(&self) -> usize {
        self.recovered.values().map(log_bytes).sum()
    }

    /// The log is its replica's, or forgotten. Returns the bytes that it took to hold it.
    fn drop_log(&mut self, group: GroupId) -> usize {
        self.kept.remove(&group);
        self.recovered.remove(&group).as_ref().map_or(0, log_bytes)
    }

    /// An entry of the root group was applied, which may have changed these keys of the catalog.
    pub(crate) fn note(&mut self, mut keys: BTreeSet<Bytes>) {
        self.changed.append(&mut keys);
    }
}

fn log_bytes(log: &RecoveredGroup) -> usize {
    log.entries.iter().map(|entry| entry.data.len()).sum()
}

impl Replica {
    /// Tells whoever waits for something that certainly did not happen that there is no such group here.
    fn refuse_waiting(&mut self, effects: &mut Effects) {
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|(token, _)| token);
        let certain = waiting.chain(self.reads.take_all());
        effects.replies.extend(certain.map(|token| (token, Reply::Failed(Failure::NoSuchGroup))));
    }
}

impl Node {
    /// The root group's state is another one altogether: after the start, or a snapshot.
    pub(crate) fn reread_catalog(&mut self, effects: &mut Effects) {
        let Some(root) = self.replicas.get(&ROOT_GROUP) else { return };
        let revision = root.keyspace.revision();
        match Catalog::read(&root.keyspace) {
            Ok(catalog) => self.board.set_catalog(catalog),
            Err(what) => return self.cannot_read_root(what),
        }
        self.tell_shards(Event::CatalogReread { revision }, effects);
        self.heed_whole_catalog(revision, effects);
    }

    /// The catalog as of `revision`, or a later one, is on the board.
    pub(crate) fn heed_whole_catalog(&mut self, revision: i64, effects: &mut Effects) {
        let shard = self.shard;
        let placed: BTreeSet<GroupId> = self.board.with_catalog(|catalog| {
            catalog.placements().map(|(group, _)| group).filter(|group| shard.owns(*group)).collect()
        });
        let residents = &self.residents;
        let unopened = residents.unopened.keys();
        let here = self.replicas.keys().chain(residents.recovered.keys()).chain(unopened);
        let concerned: BTreeSet<GroupId> = here.copied().chain(placed).collect();
        self.heed_catalog(concerned, revision, effects);
    }

    /// Goes on with what it knew: what cannot be read is not gone.
    pub(crate) fn cannot_read_root(&mut self, what: String) {
        tracing::error!(
            what,
            "what the root group says cannot be read: it is tried again, and what was known holds"
        );
        self.unread = Some((what, self.now.plus_micros(READ_AGAIN_US)));
    }

    /// Now and then: what could not be read may have been an error that passes.
    pub(crate) fn read_root_again(&mut self, effects: &mut Effects) {
        if self.unread.as_ref().is_some_and(|(_, at)| *at <= self.now) {
            self.unread = None;
            self.refresh_pool();
            self.reread_catalog(effects);
        }
    }

    /// Takes over what the root group's entries of this turn changed.
    pub(crate) fn refresh_catalog(&mut self, effects: &mut Effects) {
        let changed = std::mem::take(&mut self.residents.changed);
        let Some(root) = self.replicas.get(&ROOT_GROUP).filter(|_| !changed.is_empty()) else { return };
        let groups = match self.board.refresh_catalog(&root.keyspace, &changed) {
            Ok(groups) => groups,
            Err(what) => return self.cannot_read_root(what),
        };
        let revision = root.keyspace.revision();
        let (own, groups): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| self.shard.owns(*group));
        self.heed_catalog(own, revision, effects);
        if !groups.is_empty() {
            self.tell_shards(Event::CatalogChanged { groups, revision }, effects);
        }
    }

    /// The catalog says something else about these groups since `revision`.
    pub(crate) fn heed_catalog(
        &mut self,
        groups: impl IntoIterator<Item = GroupId>,
        revision: i64,
        effects: &mut Effects,
    ) {
        for group in groups {
            self.reside(group, effects);
            self.look_after_dormant(group);
            self.touch(group);
        }
        self.residents.heeded = self.residents.heeded.max(revision);
    }

    /// Takes a group a step towards what the catalog wants on this node.
    fn reside(&mut self, group: GroupId, effects: &mut Effects) {
        let follows_roster = self.replicas.get(&group).is_some_and(|replica| replica.follows_roster);
        if follows_roster || self.residents.steps.contains_key(&group) {
            return;
        }
        let is_in_log = self.residents.recovered.contains_key(&group);
        let Known { is_deleted, is_placed, wanted, leaving } = self.known(group);
        match self.replica_here(group) {
            Some(_) if is_deleted && !self.root_is_quarantined() => self.destroy(group, effects),
            Some(here) if leaving == Some(here) => drop(self.residents.leaving.insert(group)),
            // Wanted, or of a time that the catalog has yet to come to.
            Some(_) => drop(self.residents.leaving.remove(&group)),
            None if is_placed && (wanted.or(leaving).is_some() || is_in_log) || is_deleted && is_in_log => {
                let replica = wanted.or(leaving);
                self.residents.steps.insert(group, Step::Opening(replica));
                effects.opens.push(OpenJob { group, replica, is_in_log });
            }
            None => {}
        }
    }

    /// What a replica of the root group says that is known to be damaged ends nothing.
    fn root_is_quarantined(&self) -> bool {
        self.board.group(ROOT_GROUP).is_some_and(|root| root.quarantined())
    }

    fn known(&self, group: GroupId) -> Known {
        let me = self.config.node;
        self.board.with_catalog(|catalog| {
            let placement = catalog.placement(group);
            Known {
                is_deleted: catalog.is_deleted(group),
                is_placed: placement.is_some(),
                wanted: placement.and_then(|placement| placement.record.replica_on(me)),
                leaving: catalog.leaving(group, me).map(|leaving| leaving.record),
            }
        })
    }

    /// A job of [`Effects::opens`] ended.
    pub(crate) fn on_opened(&mut self, group: GroupId, outcome: OpenOutcome, effects: &mut Effects) {
        let step = self.residents.steps.remove(&group);
        self.board.set_unusable(group, false);
        match outcome {
            OpenOutcome::Open(replica, keyspace) => self.take_in(group, replica, keyspace, effects),
            OpenOutcome::Gone if self.residents.recovered.contains_key(&group) => {
                self.forget_log(group, effects);
            }
            // An old catalog: a newer one is on its way, or came meanwhile.
            OpenOutcome::Gone => {
                let Known { wanted, leaving, .. } = self.known(group);
                if matches!(step, Some(Step::Opening(asked)) if asked != wanted.or(leaving)) {
                    self.reside(group, effects);
                }
            }
            // Nobody needs it.
            OpenOutcome::Damaged(None, _) if self.known(group).is_deleted && !self.root_is_quarantined() => {
                self.forget_log(group, effects);
            }
            OpenOutcome::Damaged(replica, why) => {
                let asked = if let Some(Step::Opening(asked)) = step { asked } else { None };
                self.give_up_damaged(group, replica.or(asked), &why, effects);
            }
            OpenOutcome::Unusable(why) => self.give_up(group, &why),
        }
    }

    /// The replica on this node, open or too damaged for that.
    fn replica_here(&self, group: GroupId) -> Option<ReplicaId> {
        let open = self.replicas.get(&group).map(|replica| replica.me);
        open.or_else(|| self.residents.unopened.get(&group).copied())
    }

    /// A replica stays closed, until somebody did what is to be done.
    fn give_up(&self, group: GroupId, why: &str) {
        tracing::error!(group = group.0, why, "this replica cannot be used: the group goes on without it");
        self.board.set_unusable(group, true);
    }

    /// A replica is too damaged to be opened; without a number it is the one that the catalog names now. The node reports it, and whoever plans has
    /// it rebuilt.
    fn give_up_damaged(
        &mut self,
        group: GroupId,
        replica: Option<ReplicaId>,
        why: &str,
        effects: &mut Effects,
    ) {
        tracing::error!(
            group = group.0,
            why,
            "this replica is damaged: the group goes on without it, and it is rebuilt from the others"
        );
        let Known { wanted, leaving, .. } = self.known(group);
        let Some(replica) = replica.or(wanted).or(leaving) else { return };
        self.residents.unopened.insert(group, replica);
        self.board.set_unopened(group, Some(replica));
        self.reside(group, effects);
    }

    fn take_in(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        keyspace: Arc<Keyspace>,
        effects: &mut Effects,
    ) {
        let voters = self.board.with_catalog(|catalog| {
            let placement = catalog.placement(group);
            placement.map(|placement| placement.record.voters_from_the_start(replica)).unwrap_or_default()
        });
        // A copy, since it stays with the log's other closed replicas if this one cannot be used; the data is not copied.
        let log = self.residents.recovered.get(&group).cloned().unwrap_or_default();
        // A newer version may have written who belongs to the group: that is no damage. It lives, and so does its log.
        let is_readable = applied_configuration(group, &keyspace, &first_configuration(&voters))
            .and_then(|_| check_configurations(group, &log.entries));
        if let Err(why) = is_readable {
            return self.give_up(group, &why);
        }
        let begins = voters.first().is_some_and(|(id, _)| *id == replica)
            && log.entries.is_empty()
            && keyspace.applied().index == 0;
        let config = GroupConfig { group, replica, follows_roster: false, voters };
        let board = self.board.add_group(group, keyspace.clone());
        match Replica::restore(&self.config, &config, keyspace, board, log, self.now) {
            Ok(opened) => {
                self.replicas.insert(group, opened);
                self.unswept.insert(group);
                self.drop_closed_log(group);
            }
            Err(why) => {
                self.board.remove_group(group);
                return self.give_up_damaged(group, Some(replica), &why, effects);
            }
        }
        self.log_new_floor(group, effects);
        self.heed_alarms(group, effects);
        self.refresh_peers();
        if begins {
            // One of those who are there from the start need not wait for its timer.
            self.residents.newborn.insert(group, self.now);
            self.step_group(group, CoreEvent::Campaign, effects);
        }
        self.reside(group, effects);
        self.look_after_dormant(group);
        self.touch(group);
    }

    /// With every heartbeat: who stands for the first leadership of a group asks again those who had no replica yet when they were asked.
    /// From an election timeout on it has its timer for that.
    pub(crate) fn stand_again(&mut self, effects: &mut Effects) {
        let (now, timeout_us) = (self.now, self.config.election_timeout_us);
        let replicas = &self.replicas;
        self.residents.newborn.retain(|group, since| {
            let stands = |replica: &Replica| replica.core.role() == Role::PreCandidate;
            replicas.get(group).is_some_and(stands) && now.micros_since(*since) < timeout_us
        });
        for group in self.residents.newborn.keys().copied().collect::<Vec<_>>() {
            self.step_group(group, CoreEvent::Campaign, effects);
        }
    }

    /// Closes a replica that nobody needs any more, and wants its tombstone.
    fn destroy(&mut self, group: GroupId, effects: &mut Effects) {
        let is_switching = |replica: &Replica| replica.install == Install::Switching;
        if self.replicas.get(&group).is_some_and(is_switching) {
            // Whatever the engine switches to would come after the tombstone.
            self.residents.leaving.insert(group);
            return;
        }
        if let Some(replica) = self.residents.unopened.remove(&group) {
            self.board.set_unopened(group, None);
            return self.leave_tombstone(group, replica, effects);
        }
        let Some(mut replica) = self.replicas.remove(&group) else { return };
        if let Some(timer) = replica.timer {
            self.forget_timer(timer, group);
        }
        replica.refuse_waiting(effects);
        replica.give_up_proposals(effects);
        if let Some((token, _)) = replica.transfer {
            effects.replies.push((token, Reply::Failed(Failure::Unknown)));
        }
        if let Install::Offered(ticket, _) = replica.install {
            effects.installs.push((ticket, false));
        }
        self.board.remove_group(group);
        self.forget_memory(&replica);
        self.engine_persist.forget(group);
        self.pinning.remove(&group);
        self.leave_tombstone(group, replica.me, effects);
        effects.retired.push(Retired::Keyspace(replica.keyspace));
        self.refresh_peers();
    }

    fn leave_tombstone(&mut self, group: GroupId, replica: ReplicaId, effects: &mut Effects) {
        tracing::info!(group = group.0, replica = replica.0, "a replica leaves this node");
        self.residents.leaving.remove(&group);
        self.residents.steps.insert(group, Step::Destroying);
        effects.destroys.push(DestroyJob { group, replica });
    }

    /// The tombstone is durable: the log may forget the replica.
    pub(crate) fn on_destroyed(&mut self, group: GroupId, effects: &mut Effects) {
        self.residents.steps.remove(&group);
        self.forget_log(group, effects);
    }

    fn forget_log(&mut self, group: GroupId, effects: &mut Effects) {
        self.drop_closed_log(group);
        self.append_record(Record::Forget(group), effects);
        self.residents.steps.insert(group, Step::Forgetting(effects.log_sequence));
    }

    /// What the log holds of a replica that was not open is its own now, or forgotten.
    fn drop_closed_log(&mut self, group: GroupId) {
        let bytes = self.residents.drop_log(group);
        self.count_closed_logs(bytes, 0);
    }

    /// The log is durable up to `sequence`: a new replica may come where the log has forgotten the former one.
    pub(crate) fn on_log_forgotten(&mut self, sequence: u64, effects: &mut Effects) {
        let is_done = |step: &Step| matches!(step, Step::Forgetting(batch) if *batch <= sequence);
        let steps = self.residents.steps.iter().filter(|(_, step)| is_done(step));
        for group in steps.map(|(group, _)| *group).collect::<Vec<_>>() {
            self.residents.steps.remove(&group);
            self.reside(group, effects);
        }
    }

    /// The command that says which replicas are gone from this node, if the catalog has yet to hear of any.
    pub(crate) fn left(&self) -> Option<Bytes> {
        let mut gone = self.gone();
        gone.extend(self.gone_elsewhere());
        gone.truncate(LEFT_AT_ONCE);
        (!gone.is_empty()).then(|| Catalog::left(&gone, self.config.node).to_bytes())
    }

    /// This shard's replicas that are gone and of which the catalog has yet to hear, and since which revision they are to leave.
    pub(crate) fn gone(&self) -> Vec<(GroupId, i64)> {
        let is_gone = |group: &GroupId| {
            let residents = &self.residents;
            self.replica_here(*group).is_none()
                && !residents.steps.contains_key(group)
                && !residents.recovered.contains_key(group)
        };
        let (me, shard, heeded) = (self.config.node, self.shard, self.residents.heeded);
        self.board.with_catalog(|catalog| {
            let own = catalog.leaving_node(me).filter(|group| shard.owns(*group) && is_gone(group));
            let since = |group| Some((group, catalog.leaving(group, me)?.revision));
            // A replica that this shard has yet to hear of may be about to come.
            own.filter_map(since).filter(|(_, since)| *since <= heeded).take(LEFT_AT_ONCE).collect()
        })
    }

    /// Asks the members of groups that are to do without this node's replica whether they do.
    pub(crate) fn ask_to_leave(&mut self, effects: &mut Effects) {
        for group in self.residents.leaving.iter().copied().collect::<Vec<_>>() {
            let is_deleted = self.board.with_catalog(|catalog| catalog.is_deleted(group));
            if is_deleted && !self.root_is_quarantined() {
                self.destroy(group, effects);
            }
            let Some(replica) = self.replica_here(group) else { continue };
            let asked = self.board.with_catalog(|catalog| {
                let revision = catalog.leaving(group, self.config.node)?.revision;
                let nodes = catalog.placement(group)?.record.nodes();
                Some((revision, nodes.collect::<Vec<_>>()))
            });
            let Some((revision, nodes)) = asked else { continue };
            if self.replicas.get(&group).is_some_and(|here| here.does_without(replica, revision)) {
                self.destroy(group, effects);
                continue;
            }
            let question = PeerMessage::Leaving { group, replica, revision, answer: false };
            let nodes = nodes.into_iter().filter(|node| *node != self.config.node);
            effects.sends.extend(nodes.map(|node| (node, question.clone())));
        }
    }

    /// Requests of clients that a replica cannot answer any more, since it knows that the group does without it: they certainly did not
    /// happen, and another node can take them.
    pub(crate) fn turn_away(&mut self, group: GroupId, effects: &mut Effects) {
        if !self.residents.leaving.contains(&group) {
            return;
        }
        let Some(replica) = self.replicas.get_mut(&group).filter(|here| here.does_without(here.me, 0)) else {
            return;
        };
        replica.refuse_waiting(effects);
    }

    /// Another node asks whether its replica is not needed any more, or says that ours is not.
    pub(crate) fn on_leaving(
        &mut self,
        from: NodeId,
        (group, replica): (GroupId, ReplicaId),
        revision: i64,
        answer: bool,
        effects: &mut Effects,
    ) {
        if !answer {
            if self.replicas.get(&group).is_some_and(|here| here.does_without(replica, revision)) {
                let answer = PeerMessage::Leaving { group, replica, revision, answer: true };
                effects.sends.push((from, answer));
            }
        } else if self.replica_here(group) == Some(replica) && self.residents.leaving.contains(&group) {
            self.destroy(group, effects);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ops::ControlFlow;

    use hadron_consensus::{CONFIGURATION, DEFAULT_GROUP, HardState, Index, Message, Term, chain_checksum};
    use hadron_keyspace::{Applied, Command, Options, ValueCache};
    use hadron_storage::engine::{Engine, ModelEngine, Read as _, Space};

    use super::*;
    use crate::catalog::{self, KeyspaceRecord};
    use crate::node::tests::{alone, leading};
    use crate::propose::RETRY_US;

    /// How often node 2 was asked something in this group.
    fn asked(effects: &Effects, group: GroupId) -> usize {
        let is_of =
            |message: &PeerMessage| matches!(message, PeerMessage::Group { group: of, .. } if *of == group);
        effects.sends.iter().filter(|(to, message)| *to == NodeId(2) && is_of(message)).count()
    }

    /// The first of a new group's replicas asked the others for their votes before they were there, and waited for its election
    /// timeout: a keyspace was made in more than a second.
    #[test]
    fn who_had_no_replica_when_it_was_asked_for_its_vote_is_asked_again() {
        let mut node = leading();
        let mut effects = create(&mut node, &[1, 2, 3]);
        let group = open(&mut node, &mut effects);
        assert_eq!(asked(&effects, group), 1);
        let mut effects = Effects::default();
        node.step(node.deadline(), Event::Timer, &mut effects);
        assert_eq!(asked(&effects, group), 1, "soon again");
        for _ in 0..30 {
            node.step(node.deadline(), Event::Timer, &mut effects);
        }
        assert!(node.residents.newborn.is_empty(), "not for ever");
    }

    /// A replica that could not be opened was named in the log, and kept its place for ever.
    #[test]
    fn a_replica_that_cannot_be_opened_is_reported_and_leaves_when_it_is_not_needed() {
        let mut node = leading();
        let mut effects = create(&mut node, &[1, 2, 3]);
        let group = effects.opens.pop().expect("a replica is wanted here").group;
        let outcome = OpenOutcome::Damaged(None, "a bit flipped".into());
        node.step(Time(30), Event::Opened { group, outcome }, &mut effects);
        assert_eq!(node.board.damaged(), BTreeMap::from([(group, ReplicaId(1))]));

        let nodes = [2, 3, 4].map(NodeId);
        let moved = node.board.with_catalog(|catalog| catalog.place(group, &nodes, "test")).unwrap();
        let mut effects = write(&mut node, &moved);
        assert_eq!((effects.opens.len(), effects.destroys.len()), (0, 0), "it may be needed");
        node.ask_to_leave(&mut effects);
        let asks = |(_, message): &(NodeId, PeerMessage)| matches!(message, PeerMessage::Leaving { .. });
        assert_eq!(effects.sends.iter().filter(|sent| asks(sent)).count(), 3);
        assert_eq!(node.left(), None);
        node.on_leaving(NodeId(2), (group, ReplicaId(1)), 0, true, &mut effects);
        assert_eq!(effects.destroys, [DestroyJob { group, replica: ReplicaId(1) }]);
        assert_eq!(node.board.damaged(), BTreeMap::new());
        node.on_destroyed(group, &mut effects);
        let sequence = effects.log_sequence;
        node.step(Time(60), Event::LogDurable { sequence }, &mut effects);
        node.step(Time(70), Event::Opened { group, outcome: OpenOutcome::Gone }, &mut effects);
        assert!(node.left().is_some());
    }

    /// Who belongs to its group was written by a newer version. It was taken for gone, and its log forgotten, once it was not needed here.
    #[test]
    fn a_replica_that_a_newer_version_wrote_is_not_gone() {
        let mut node = leading();
        let mut effects = create(&mut node, &[1, 2, 3]);
        let job = effects.opens.pop().expect("a replica is wanted here");
        let group = job.group;
        node.residents.recovered.insert(group, newer_log(group));
        let nodes = [2, 3, 4].map(NodeId);
        let moved = node.board.with_catalog(|catalog| catalog.place(group, &nodes, "test")).unwrap();
        write(&mut node, &moved);

        let engine: Arc<dyn Engine> = Arc::new(ModelEngine::new());
        let mut effects = Effects::default();
        let outcome = job.carry_out(&engine, Default::default());
        node.step(Time(30), Event::Opened { group, outcome }, &mut effects);
        assert_eq!(effects.log, [], "nothing is forgotten");
        assert!(effects.destroys.is_empty());
        assert!(node.residents.recovered.contains_key(&group));
        assert_eq!((node.left(), node.board.damaged()), (None, BTreeMap::new()));
    }

    fn newer_log(group: GroupId) -> RecoveredGroup {
        let data = Bytes::from_static(&[CONFIGURATION, 9, 0]);
        let (term, index) = (Term(1), Index(1));
        let checksum = chain_checksum(0, group, term, index, &data);
        let entry = Entry { term, index, checksum, data };
        RecoveredGroup { entries: vec![entry], ..RecoveredGroup::default() }
    }

    /// What was too damaged to say whose replica it is stayed in the log and on the disk.
    #[test]
    fn what_is_damaged_of_a_keyspace_that_was_deleted_meanwhile_is_forgotten() {
        let mut node = leading();
        let group = create(&mut node, &[1, 2, 3]).opens.pop().expect("a replica is wanted here").group;
        node.residents.recovered.insert(group, RecoveredGroup::default());
        let deleted = node.board.with_catalog(|catalog| catalog.delete("a")).unwrap();
        assert!(write(&mut node, &deleted).destroys.is_empty(), "it is being opened");
        let mut effects = Effects::default();
        let outcome = OpenOutcome::Damaged(None, "a bit flipped".into());
        node.step(Time(30), Event::Opened { group, outcome }, &mut effects);
        assert!(effects.log.contains(&Record::Forget(group)), "{:?}", effects.log);
        assert!(!node.residents.recovered.contains_key(&group));
        assert_eq!(node.board.damaged(), BTreeMap::new());
    }

    /// One value of the root group could not be read, and every group of the catalog counted as deleted: the node destroyed all its
    /// replicas.
    #[test]
    fn what_cannot_be_read_of_the_catalog_is_not_deleted() {
        let engine = ModelEngine::new();
        let options = Options { cache: ValueCache::new(0), ..Options::default() };
        let open = |engine: &Arc<ModelEngine>, group: GroupId| {
            Keyspace::open(engine.clone(), group.0, options.clone()).unwrap()
        };
        let sound = Arc::new(engine);
        let root = open(&sound, ROOT_GROUP);
        let mut keys = BTreeSet::new();
        for (index, name) in [(1, "a"), (2, "b")] {
            let wanted = KeyspaceRecord { name: name.into(), ..Default::default() };
            let made = Catalog::read(&root).unwrap().create(&wanted, &[NodeId(1)]).unwrap();
            keys.append(&mut catalog::keys_of(&made));
            root.apply(Applied { index, ..root.applied() }, vec![made]);
        }
        let flush = root.take_flush(u64::MAX, usize::MAX).unwrap();
        sound.write(flush.batch()).unwrap();
        root.flush_done(flush);
        let catalog = Catalog::read(&root).unwrap();
        let mut values = Vec::new();
        let see = &mut |key: &[u8], _: &[u8]| {
            values.push(Bytes::copy_from_slice(key));
            ControlFlow::Continue(())
        };
        sound.scan(Space::Values, &[], &[u8::MAX; 32], see).unwrap();
        assert_eq!(values.len(), 6, "of each a record, a placement and the next number");
        for value in values {
            let engine = Arc::new((*sound).clone());
            engine.damage(Space::Values, value);
            let root = open(&engine, ROOT_GROUP);
            // The number that the second one replaced is nobody's any more.
            let Err(_) = Catalog::read(&root) else { continue };
            let mut known = catalog.clone();
            known.refresh(&root, &keys).unwrap_err();
            assert_eq!(known, catalog);

            let (mut config, _) = alone();
            // Whoever is alone goes on with `default`; here others vote.
            let voters: Vec<_> = (1..=3).map(|id| (ReplicaId(id), NodeId(id))).collect();
            config.groups.iter_mut().for_each(|group| group.voters.clone_from(&voters));
            let keyspaces = [ROOT_GROUP, DEFAULT_GROUP].map(|group| (group, open(&engine, group)));
            let logs = [2, 3].map(|group| (GroupId(group), RecoveredGroup::default()));
            let mut node = Node::new(config, logs.into(), &keyspaces.into(), Time(1)).unwrap();
            let mut effects = Effects::default();
            node.start(Time(1), &mut effects);
            assert!(effects.fatal.is_some_and(|what| what.contains("rebuild this member")));
            assert!(effects.opens.is_empty() && effects.destroys.is_empty());
        }
    }

    /// Opens the one replica that is wanted here.
    fn open(node: &mut Node, effects: &mut Effects) -> GroupId {
        let job = effects.opens.pop().expect("a replica is wanted here");
        let group = job.group;
        let engine: Arc<dyn Engine> = Arc::new(ModelEngine::new());
        let outcome = job.carry_out(&engine, Default::default());
        node.step(Time(30), Event::Opened { group, outcome }, effects);
        node.settle(Time(30), effects);
        group
    }

    /// Has a keyspace made, on these nodes.
    fn create(node: &mut Node, nodes: &[u64]) -> Effects {
        let wanted = KeyspaceRecord { name: "a".into(), ..Default::default() };
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        let made = node.board.with_catalog(|catalog| catalog.create(&wanted, &nodes)).unwrap();
        write(node, &made)
    }

    /// Lets the root group decide something.
    fn write(node: &mut Node, command: &Command) -> Effects {
        let (mut effects, now) = (Effects::default(), Time(node.now.0 + 1));
        let write = Event::Write { token: 9, group: ROOT_GROUP, command: command.to_bytes() };
        node.step(now, write, &mut effects);
        node.settle(now, &mut effects);
        let sequence = effects.log_sequence;
        node.step(now, Event::LogDurable { sequence }, &mut effects);
        node.settle(now, &mut effects);
        effects
    }

    /// A node whose replica was added to a group that sleeps without a leader, and that nobody of that group spoke to.
    fn untold() -> (Node, GroupId) {
        let mut node = leading();
        assert!(create(&mut node, &[2, 3]).opens.is_empty());
        let all = [1, 2, 3].map(NodeId);
        let placed = node.board.with_catalog(|catalog| catalog.place(GroupId(2), &all, "")).unwrap();
        let mut effects = write(&mut node, &placed);
        let group = open(&mut node, &mut effects);
        assert_eq!(asked(&effects, group), 0);
        (node, group)
    }

    /// Whoever plans took it for the leader, and had it hand over what it did not have, again and again: a node that was drained kept what
    /// sleeps.
    #[test]
    fn who_is_to_hand_over_what_sleeps_without_a_leader_wakes_it() {
        let (mut node, group) = untold();
        let mut effects = Effects::default();
        node.step(Time(40), Event::HandOverTo { group, from: NodeId(1), to: NodeId(2) }, &mut effects);
        node.settle(Time(40), &mut effects);
        assert!(asked(&effects, group) > 0);
    }

    /// A replica that had never heard of its group's leader left a request to its time-out, while all the others slept without one.
    #[test]
    fn who_was_never_told_of_its_group_asks_the_others_for_a_leader() {
        let (mut node, group) = untold();
        let mut effects = Effects::default();
        node.step(Time(40), Event::Write { token: 7, group, command: Bytes::new() }, &mut effects);
        node.settle(Time(40), &mut effects);
        assert!(asked(&effects, group) > 0);

        // Each answer was a reason to ask all of them again, a thousand times until the leader spoke.
        let mut effects = Effects::default();
        let message = Message::Abdicate { term: Term(1) };
        let answer = PeerMessage::Group { group, from: ReplicaId(1), to: ReplicaId(3), message };
        node.step(Time(50), Event::Peer { from: NodeId(2), message: answer }, &mut effects);
        node.settle(Time(50), &mut effects);
        assert_eq!(asked(&effects, group), 0, "an answer is no reason to ask again");
        while node.now < Time(40 + RETRY_US) {
            assert_eq!(asked(&effects, group), 0);
            node.step(node.deadline(), Event::Timer, &mut effects);
            node.settle(node.now, &mut effects);
        }
        assert!(asked(&effects, group) > 0, "time is");
    }

    /// A node that came back with an old catalog looked for a replica that had been here before the one that lives here, did not find it,
    /// and made the log forget what the living one had acknowledged.
    #[test]
    fn a_living_replica_that_an_old_catalog_does_not_know_keeps_its_log() {
        let group = GroupId(2);
        let mut node = leading();
        let engine: Arc<dyn Engine> = Arc::new(ModelEngine::new());
        hadron_keyspace::Owner::claim(engine.as_ref(), group.0, 6).unwrap();
        let hard_state = HardState { term: Term(4), ..HardState::default() };
        let log = RecoveredGroup { hard_state, ..RecoveredGroup::default() };
        node.residents.recovered.insert(group, log);
        let mut effects = create(&mut node, &[1, 2, 3]);
        let job = effects.opens.pop().expect("the first replica is looked for");
        assert_eq!(job, OpenJob { group, replica: Some(ReplicaId(1)), is_in_log: true });
        let outcome = job.carry_out(&engine, Default::default());
        let mut effects = Effects::default();
        node.on_opened(group, outcome, &mut effects);
        assert_eq!(effects.log, [], "nothing is forgotten");
        let here = &node.replicas[&group];
        assert_eq!((here.me, here.core.term()), (ReplicaId(6), Term(4)));
    }

    /// The engine had lost the record of who lives there. The log was forgotten, and a replica with the same number came, which had voted and
    /// acknowledged what it knew nothing of any more.
    #[test]
    fn a_log_whose_owner_the_engine_has_lost_is_kept_and_the_replica_reported() {
        let group = GroupId(2);
        for (owner, wanted) in [(None, 1), (Some(1), 2)] {
            let mut node = leading();
            let engine: Arc<dyn Engine> = Arc::new(ModelEngine::new());
            if let Some(former) = owner {
                hadron_keyspace::Owner::claim(engine.as_ref(), group.0, former).unwrap();
                DestroyJob { group, replica: ReplicaId(former) }.carry_out(engine.as_ref()).unwrap();
            }
            let hard_state = HardState { term: Term(4), ..HardState::default() };
            let log = RecoveredGroup { hard_state, ..RecoveredGroup::default() };
            node.residents.recovered.insert(group, log);
            let job = create(&mut node, &[1, 2, 3]).opens.pop().expect("a replica is looked for");
            let job = OpenJob { replica: Some(ReplicaId(wanted)), ..job };
            let mut effects = Effects::default();
            node.on_opened(group, job.carry_out(&engine, Default::default()), &mut effects);
            assert_eq!(effects.log, [], "nothing is forgotten");
            assert_eq!(node.board.damaged(), BTreeMap::from([(group, ReplicaId(1))]));
        }
    }

    /// The catalog came with a snapshot of the root group, and nobody looked whether a group that slept without a leader was to move now: it
    /// did when a client asked it for something.
    #[test]
    fn a_group_that_sleeps_without_a_leader_is_woken_when_a_snapshot_says_that_it_is_wanted_elsewhere() {
        let mut node = leading();
        let (group, root) = (GroupId(2), node.replicas[&ROOT_GROUP].keyspace.clone());
        // A former life of this replica applied something.
        let engine = ModelEngine::new();
        hadron_keyspace::Owner::claim(&engine, group.0, 1).unwrap();
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let former = Keyspace::open(engine.clone(), group.0, Default::default()).unwrap();
        former.apply(Applied { term: 1, index: 1, checksum: 1, stamp_ms: 0 }, Vec::new());
        let flush = former.take_flush(1, usize::MAX).unwrap();
        engine.write(flush.batch()).unwrap();
        let hard_state = HardState { term: Term(1), commit: Index(1), ..HardState::default() };
        let log = RecoveredGroup { hard_state, ..RecoveredGroup::default() };
        node.residents.recovered.insert(group, log);

        let job = create(&mut node, &[1, 2, 3]).opens.pop().expect("a replica is wanted here");
        let mut effects = Effects::default();
        node.on_opened(group, job.carry_out(&engine, Default::default()), &mut effects);
        // It has come to this placement.
        let revision = node.board.with_catalog(|catalog| catalog.placement(group).unwrap().revision);
        node.replicas.get_mut(&group).unwrap().places.revision = revision;
        node.dormant = Default::default();
        let sleeps_on = |node: &mut Node| {
            let end = node.now.plus_micros(2 * node.config.election_timeout_us);
            while node.now < end {
                let mut effects = Effects::default();
                node.step(node.deadline(), Event::Timer, &mut effects);
                node.settle(node.now, &mut effects);
            }
            node.replicas[&group].core.is_asleep()
        };
        assert!(sleeps_on(&mut node), "it is where it is wanted");

        let nodes = [1, 2, 4].map(NodeId);
        let moved = node.board.with_catalog(|catalog| catalog.place(group, &nodes, "")).unwrap();
        root.apply(Applied { index: root.applied().index + 1, ..root.applied() }, vec![moved]);
        node.reread_catalog(&mut effects);
        assert!(!sleeps_on(&mut node));
    }

    /// A node that came back with an old catalog found that the replica which that names had been destroyed. While it looked, the catalog
    /// came to name another one, which was never opened: the group could not be moved any more.
    #[test]
    fn what_the_catalog_came_to_want_while_another_replica_was_looked_for_is_opened() {
        let mut node = leading();
        let (group, me) = (GroupId(2), NodeId(1));
        let wanted = KeyspaceRecord { name: "a".into(), ..Default::default() };
        let root = node.replicas[&ROOT_GROUP].keyspace.clone();
        let apply = |node: &mut Node, command: Command, effects: &mut Effects| {
            let applied = Applied { index: root.applied().index + 1, ..root.applied() };
            node.residents.note(catalog::keys_of(&command));
            root.apply(applied, vec![command]);
            node.refresh_catalog(effects);
        };
        let engine: Arc<dyn Engine> = Arc::new(ModelEngine::new());
        hadron_keyspace::Owner::claim(engine.as_ref(), group.0, 1).unwrap();
        DestroyJob { group, replica: ReplicaId(1) }.carry_out(engine.as_ref()).unwrap();

        let mut effects = Effects::default();
        let made = node.board.with_catalog(|catalog| catalog.create(&wanted, &[me])).unwrap();
        apply(&mut node, made, &mut effects);
        let job = effects.opens.pop().expect("the first replica is looked for");
        let outcome = job.carry_out(&engine, Default::default());
        assert!(matches!(outcome, OpenOutcome::Gone));
        // Meanwhile it was moved away, was gone, and came back as another one.
        let moved = node.board.with_catalog(|catalog| catalog.place(group, &[NodeId(2)], "")).unwrap();
        apply(&mut node, moved, &mut effects);
        let since = node.board.with_catalog(|catalog| catalog.leaving(group, me).unwrap().revision);
        apply(&mut node, Catalog::left(&[(group, since)], me), &mut effects);
        let back = node.board.with_catalog(|catalog| catalog.place(group, &[me], "")).unwrap();
        apply(&mut node, back, &mut effects);
        assert!(effects.opens.is_empty(), "one at a time");
        node.on_opened(group, outcome, &mut effects);
        let job = effects.opens.pop().expect("the other one is wanted now");
        assert!(job.replica > Some(ReplicaId(1)), "{job:?}");
        let outcome = job.carry_out(&engine, Default::default());
        node.on_opened(group, outcome, &mut effects);
        assert!(node.replicas.contains_key(&group));
    }
}
