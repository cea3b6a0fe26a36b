//! Reconfigure: what the roster wants becomes what the groups are.
//!
//! ```text
//!  roster (root group, applied)        configuration of a group (in its own log)
//!  revision 7: a, b, c, d      ──▶     revision 3: a, b, c
//!                                        │ d follows as a learner
//!                                        ▼
//!                                      revision 7: a, b, c; learner d
//!                                        │ d has caught up
//!                                        ▼
//!                                      revision 7: a, b, c, d
//! ```
//! The leader of each group does this for its group: the root group first, the others once it is done there. A leader that
//! is not in the roster any more hands over first. Every
//! configuration says for which revision of the roster it was made, so a leader that lags behind in the root group never
//! takes one back that a better informed one made. Nobody votes before it has what it votes about: a new voter follows as
//! a learner until it has caught up, and until then it cannot cost a quorum. Nor is a group given to voters of whom a
//! majority is not alive: those who vote go on until it is.
//!
//! Whoever is removed stays connected until no group here needs it any more: to leave a joint configuration takes a
//! majority of the old members, and it may be one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::{
    Configuration, ConfigurationError, Entry, Event as CoreEvent, GroupId, NodeId, Progress, ProgressState,
    ROOT_GROUP, ReplicaId,
};

use crate::apply::cannot_be_read;
use crate::event::{Effects, Failure, Reply};
use crate::groups::Replica;
use crate::membership::Member;
use crate::node::Node;
use crate::peer::PeerMessage;
use crate::roster::{KnownRoster, Pool, Roster, replica_of};
use crate::shards::Needs;

/// A learner that lacks no more entries than these, and no more bytes of them, has caught up: it gets the rest in a moment. Nothing is committed
/// before it has, if the others are too few without it.
const CAUGHT_UP_ENTRIES: u64 = 512;
const CAUGHT_UP_BYTES: usize = 4 << 20;
/// Version of the bytes of [`Places`].
const VERSION: u8 = 1;
/// Replicas outside the configuration that are remembered, so that they can be answered.
const ROUTES_MAX: usize = 64;

/// What a group's configuration says beside who votes: its context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    /// The revision of the roster that the configuration was made for; 0 for that of the beginning.
    pub(crate) revision: i64,
    /// Where its replicas are.
    pub(crate) nodes: BTreeMap<ReplicaId, NodeId>,
}

impl Places {
    /// As the context of a configuration. `docs/formats/messages.md` has the bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_i64_le(self.revision);
        out.put_u32_le(self.nodes.len() as u32);
        for (replica, node) in &self.nodes {
            out.put_u64_le(replica.0);
            out.put_u64_le(node.0);
        }
        out.freeze()
    }

    /// The places of a configuration; an empty one has none. `None` if this version cannot read them.
    pub(crate) fn of(configuration: &Configuration) -> Option<Places> {
        let mut bytes = configuration.context.clone();
        if bytes.is_empty() {
            return Some(Places::default());
        }
        if bytes.get_u8() != VERSION {
            return None;
        }
        let revision = bytes.try_get_i64_le().ok()?;
        let count = bytes.try_get_u32_le().ok()? as usize;
        if bytes.len() != count.checked_mul(16)? {
            return None;
        }
        let nodes = (0..count).map(|_| (ReplicaId(bytes.get_u64_le()), NodeId(bytes.get_u64_le()))).collect();
        Some(Places { revision, nodes })
    }
}

/// The configuration in an entry's data, if it holds one; with places that this version can read.
///
/// # Errors
/// A newer version wrote it.
pub(crate) fn readable_configuration(data: &Bytes) -> Result<Option<Configuration>, ConfigurationError> {
    match Configuration::of(data)? {
        Some(configuration) if Places::of(&configuration).is_none() => Err(ConfigurationError),
        configuration => Ok(configuration),
    }
}

/// A replica that shall belong to a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) replica: ReplicaId,
    pub(crate) node: NodeId,
    is_learner: bool,
}

impl Seat {
    /// The seat that a member has in every group that follows the roster.
    fn of(member: &Member) -> Seat {
        let (replica, node) = replica_of(member);
        Seat { replica, node, is_learner: member.is_learner }
    }
}

/// Who shall belong to a group, and since which revision of the root group.
#[derive(Debug)]
pub(crate) struct Wanted {
    revision: i64,
    pub(crate) seats: Vec<Seat>,
}

/// The configuration that a group is made with.
pub(crate) fn first_configuration(voters: &[(ReplicaId, NodeId)]) -> Configuration {
    let places = Places { revision: 0, nodes: voters.iter().copied().collect() };
    let context = if voters.is_empty() { Bytes::new() } else { places.encode() };
    Configuration { context, ..Configuration::new(voters.iter().map(|(replica, _)| *replica), []) }
}

impl Replica {
    /// The configuration in force changed.
    ///
    /// # Errors
    /// A newer version wrote it: this replica does not know where the others are, and must stop.
    pub(crate) fn adopt_configuration(&mut self) -> Result<(), ConfigurationError> {
        let configuration = self.core.configuration();
        self.places = Places::of(configuration).ok_or(ConfigurationError)?;
        self.board.set_configuration(configuration.clone(), self.me);
        // What a joint configuration said of those who left is still there, and the leader has yet to tell them.
        let is_member =
            |(replica, _): &(ReplicaId, NodeId)| configuration.members().any(|member| member == *replica);
        let nodes = std::mem::take(&mut self.places.nodes).into_iter();
        let (members, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = nodes.partition(is_member);
        self.places.nodes = members;
        self.routes.extend(gone);
        self.routes.retain(|replica, _| !self.places.nodes.contains_key(replica));
        Ok(())
    }

    /// The configuration as of what is applied, and since when it is the only one in force.
    pub(crate) fn note_applied_configuration(&mut self, configuration: &Configuration) {
        if !configuration.is_joint()
            && let Some(places) = Places::of(configuration)
        {
            self.settled = self.settled.max(places.revision);
            self.board.set_settled(self.settled);
        }
    }

    /// The node of a replica, whether it is in the configuration or not.
    pub(crate) fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.places.nodes.get(&replica).or_else(|| self.routes.get(&replica)).copied()
    }

    /// Remembers who sent a message. False if this replica is known to be elsewhere.
    pub(crate) fn is_plausible(&mut self, replica: ReplicaId, node: NodeId) -> bool {
        if let Some(known) = self.places.nodes.get(&replica) {
            return *known == node;
        }
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert(replica, node);
        true
    }

    /// Whether `replica` is sent this leader's entries as they come. One that needs a snapshot, or has not answered yet, is not.
    fn follows(&self, replica: ReplicaId) -> bool {
        self.following(replica).is_some()
    }

    /// Whether `replica` has all but what is on its way in a moment.
    pub(crate) fn has_caught_up(&self, replica: ReplicaId) -> bool {
        let last = self.core.last().0;
        let missing = |progress: &Progress| last.saturating_sub(progress.matched.0);
        self.following(replica).is_some_and(|it| are_few(missing(it), self.core.entries()))
    }

    fn following(&self, replica: ReplicaId) -> Option<&Progress> {
        let mut all = self.core.progress().iter();
        let follows = |progress: &&Progress| {
            progress.state == ProgressState::Replicate && progress.lost_after().is_none()
        };
        all.find(|progress| progress.replica == replica).filter(follows)
    }
}

/// Whether the last `missing` entries of a log are on their way in a moment.
fn are_few<'a>(missing: u64, log: impl DoubleEndedIterator<Item = &'a Entry>) -> bool {
    let last = log.rev().take(missing.min(CAUGHT_UP_ENTRIES) as usize);
    missing <= CAUGHT_UP_ENTRIES && last.map(|entry| entry.data.len()).sum::<usize>() <= CAUGHT_UP_BYTES
}

impl Node {
    /// Reads what the root group says about the pool, as far as it is applied here.
    pub(crate) fn refresh_pool(&mut self) {
        let pool = match self.shard.is_first() {
            true => match self.read_pool() {
                Ok(pool) => Arc::new(pool),
                Err(what) => return self.cannot_read_root(what),
            },
            false => self.board.pool(),
        };
        if self.pool == pool {
            return;
        }
        let is_changed = self.pool.revision != pool.revision;
        let was_removed = self.is_removed();
        self.pool = pool;
        self.tell_removal(was_removed);
        if self.shard.is_first() {
            self.board.set_pool(self.pool.clone(), self.config.node);
            self.is_pool_new = true;
        }
        self.refresh_peers();
        if is_changed {
            self.touch_all();
        }
    }

    /// The pool as the root group's replica has it.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_pool(&self) -> Result<Pool, String> {
        let initial = &self.config.roster;
        let mut pool = match self.replicas.get(&ROOT_GROUP) {
            Some(root) => Pool::read(&root.keyspace, initial)?,
            None => Pool { roster: initial.clone(), ..Pool::default() },
        };
        // Also before the others have heard of it, and after the record of an earlier start.
        pool.said.insert(self.config.own.id, self.config.own.clone());
        Ok(pool)
    }

    /// The first shard says that the pool, or who is to be connected, may have changed.
    pub(crate) fn on_pool_changed(&mut self) {
        self.refresh_pool();
        self.refresh_peers();
        self.touch_all();
    }

    /// Who is to be connected: the members, and those who were removed as long as a group here may need them.
    pub(crate) fn refresh_peers(&mut self) {
        let needs = self.share_needs(self.needs());
        if self.shard.is_first() {
            let are_new = self.board.set_peers(self.wanted_peers(&needs));
            self.are_peers_new |= are_new;
            self.is_pool_new |= are_new;
        }
        self.liveness.set_nodes(&self.board.peers().iter().map(Member::node).collect());
    }

    fn needs(&self) -> Needs {
        let following = self.replicas.values().filter(|replica| replica.follows_roster);
        Needs {
            settled: following.map(|replica| replica.settled).min(),
            nodes: self
                .replicas
                .values()
                .flat_map(|replica| replica.places.nodes.values().copied())
                .collect(),
        }
    }

    fn wanted_peers(&self, needs: &Needs) -> Vec<Member> {
        let settled = needs.settled.unwrap_or_default();
        let mut peers: BTreeMap<u64, Member> =
            self.pool.members().into_iter().map(|member| (member.id, member)).collect();
        for (id, removed) in &self.pool.removed {
            if removed.revision > settled || needs.nodes.contains(&removed.member.node()) {
                peers.insert(*id, removed.member.clone());
            }
        }
        if self.heard.revision > self.pool.revision {
            let heard = self.heard.roster.members.iter().chain(&self.heard.leaving);
            peers.extend(heard.map(|member| (member.id, member.clone())));
        }
        peers.remove(&self.config.node.0);
        peers.into_values().collect()
    }

    /// Tells these nodes who the members are, as far as this one knows. It is told again and again, so it may be lost.
    ///
    /// Without it a node that was away while the leader was replaced would neither know the new one nor admit it.
    pub(crate) fn tell_roster(&self, nodes: Vec<NodeId>, effects: &mut Effects) {
        if !self.shard.is_first() {
            return;
        }
        let known = self.known_roster();
        if known.revision > 0 {
            let told = PeerMessage::Roster(known);
            effects.sends.extend(nodes.into_iter().map(|node| (node, told.clone())));
        }
    }

    /// The newest roster that this node knows, for others.
    fn known_roster(&self) -> KnownRoster {
        if self.heard.revision > self.pool.revision {
            return self.heard.clone();
        }
        let roster = Roster { members: self.pool.members(), ..self.pool.roster };
        let mut leaving = self.board.peers();
        leaving.push(self.config.own.clone());
        leaving.retain(|member| roster.member(member.id).is_none());
        KnownRoster { revision: self.pool.revision, roster, leaving }
    }

    /// Another node says who the members are. Not if it speaks of another history, in which somebody belongs to them who was removed in this one:
    /// it was not heard of when this node was forced to go on alone.
    pub(crate) fn on_roster(&mut self, from: NodeId, known: KnownRoster) {
        if known.revision > self.newest_roster().0 {
            // An id is never used again.
            let is_removed = |member: &&Member| self.pool.removed.contains_key(&member.id);
            if let Some(removed) = known.roster.members.iter().find(is_removed) {
                tracing::error!(
                    peer = %format_args!("{:x}", from.0),
                    member = %format_args!("{:x}", removed.id),
                    "a node says that a member belongs to this cluster that was removed from it: it is of those who were thought lost when a \
                     member was forced to go on alone. If they were, stop it and delete its data directory; if they had gone on, there are \
                     two clusters now: find out which one clients have used"
                );
                return;
            }
            if self.shard.is_first() {
                self.board.set_heard(known.revision);
            }
            let was_removed = self.is_removed();
            self.heard = known;
            self.tell_removal(was_removed);
            self.refresh_peers();
            self.touch_all();
        }
    }

    /// Whether this node is no member any more, as far as it knows. One that comes just now is in no older roster either.
    fn is_removed(&self) -> bool {
        let me = self.config.node.0;
        self.pool.removed.contains_key(&me) || self.heard.leaving.iter().any(|member| member.id == me)
    }

    /// Says that this node is no member any more, unless that was known before.
    fn tell_removal(&self, was_removed: bool) {
        if self.shard.is_first() && !was_removed && self.is_removed() {
            tracing::warn!(
                revision = self.newest_roster().0,
                "this node was removed from the cluster: it ends as soon as the others need none of its replicas any more"
            );
        }
    }

    /// The configuration in force of `group` changed. False if a newer version wrote it: the node must stop.
    #[must_use]
    pub(crate) fn on_reconfigured(&mut self, group: GroupId, effects: &mut Effects) -> bool {
        if let Some(replica) = self.replicas.get_mut(&group) {
            if let Err(error) = replica.adopt_configuration() {
                let last = replica.core.last();
                effects.fatal = Some(cannot_be_read(group, last, &error.to_string()));
                return false;
            }
            tracing::info!(
                group = %group,
                voters = ?replica.core.configuration().voters,
                outgoing = ?replica.core.configuration().outgoing,
                learners = ?replica.core.configuration().learners,
                "the group's members changed"
            );
        }
        self.are_peers_stale = true;
        true
    }

    /// An entry with this configuration was applied, or a snapshot with it installed.
    pub(crate) fn on_configuration_applied(&mut self, group: GroupId, configuration: &Configuration) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.note_applied_configuration(configuration);
        }
        self.are_peers_stale = true;
        // The others wait for the root group.
        if group == ROOT_GROUP {
            self.touch_all();
            self.is_pool_new = true;
        }
    }

    /// Leader: takes the group a step towards the roster, if it is not there.
    pub(crate) fn maybe_reconfigure(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(wanted) = self.wanted_configuration(group) else { return };
        if self.lift_alarms(group, effects) {
            return;
        }
        let Some(revision) = Places::of(&wanted).map(|places| places.revision) else { return };
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let stays = wanted.voters.contains(&replica.me);
        if !stays && replica.handed_over_at != revision {
            replica.handed_over_at = revision;
            if let Some(to) = self.best_successor(group).filter(|to| wanted.voters.contains(to)) {
                self.step_group(group, CoreEvent::TransferLeader { to }, effects);
                return;
            }
        }
        self.entry_token += 1;
        let token = self.entry_token;
        // A refusal is not worth a word: the group is looked at again when something changes.
        self.step_group(group, CoreEvent::Reconfigure { token, wanted }, effects);
    }

    /// The next configuration of a group that this node leads; `None` if there is nothing to change, or not yet.
    fn wanted_configuration(&self, group: GroupId) -> Option<Configuration> {
        let replica = self.replicas.get(&group).filter(|replica| replica.core.is_leader())?;
        let current = replica.core.configuration();
        let is_settled = replica.core.is_configuration_committed() && !current.is_joint();
        if !is_settled || self.must_wait(replica) {
            return None;
        }
        let wanted = self.wanted_seats(replica)?;
        if wanted.revision < replica.places.revision {
            return None;
        }
        let (revision, voters, learners) = self.next_step(replica, &wanted);
        let is_there = same(&voters, &current.voters)
            && same(&learners, &current.learners)
            && replica.places.revision == revision;
        if is_there {
            return None;
        }
        let mut nodes: BTreeMap<ReplicaId, NodeId> =
            wanted.seats.iter().map(|seat| (seat.replica, seat.node)).collect();
        // Those who leave are in the joint configuration too.
        let leaving = replica.places.nodes.iter().filter(|(id, _)| current.voters.contains(id));
        for (id, node) in leaving {
            nodes.entry(*id).or_insert(*node);
        }
        let context = Places { revision, nodes }.encode();
        Some(Configuration { context, ..Configuration::new(voters, learners) })
    }

    /// Who shall belong to a group, as far as this node knows; `None` if the catalog does not name it.
    pub(crate) fn wanted_seats(&self, replica: &Replica) -> Option<Wanted> {
        if replica.follows_roster {
            let (revision, roster) = self.newest_roster();
            return Some(Wanted { revision, seats: roster.members.iter().map(Seat::of).collect() });
        }
        self.board.with_catalog(|catalog| {
            let placement = catalog.placement(replica.id)?;
            let seats = placement.record.places.iter().map(|place| Seat {
                replica: ReplicaId(place.replica),
                node: NodeId(place.node),
                is_learner: false,
            });
            Some(Wanted { revision: placement.revision, seats: seats.collect() })
        })
    }

    /// Whether a group stays as it is for now: it is as at the beginning, or other groups come first.
    fn must_wait(&self, replica: &Replica) -> bool {
        if !replica.follows_roster {
            return false;
        }
        let (revision, roster) = self.newest_roster();
        let root_is_done = self.board.group(ROOT_GROUP).is_none_or(|root| root.settled() >= revision);
        // Who is to go may never hear that the root group is done without it.
        let stays = roster.member(self.config.node.0).is_some();
        revision == 0 || replica.id != ROOT_GROUP && !root_is_done && stays
    }

    /// The revision, voters and learners that come next on the way to what is wanted.
    fn next_step(&self, replica: &Replica, wanted: &Wanted) -> (i64, Vec<ReplicaId>, Vec<ReplicaId>) {
        let current = &replica.core.configuration().voters;
        let (_, roster) = self.newest_roster();
        let may_vote = |seat: &Seat| {
            // Who was removed since this was planned may be gone as soon as it hears of it.
            let is_member = || roster.member(seat.node.0).is_some();
            let is_ready = || {
                is_member()
                    && replica.has_caught_up(seat.replica)
                    && self.liveness.is_alive(self.now, seat.node)
            };
            current.contains(&seat.replica) || !seat.is_learner && is_ready()
        };
        let ids = |seats: &[Seat]| seats.iter().map(|seat| seat.replica).collect::<Vec<_>>();
        let (voters, others): (Vec<Seat>, Vec<Seat>) = wanted.seats.iter().partition(|seat| may_vote(seat));
        // A member that was removed goes at once. A replica that moves goes when the one in its place can vote.
        let is_complete = replica.follows_roster || others.is_empty();
        if is_complete && self.can_decide(replica, &voters) && self.is_any_well(replica, &voters) {
            return (wanted.revision, ids(&voters), ids(&others));
        }
        // Given to those, the group would be lost, or have fewer replicas for a while: who votes now goes on until enough of the
        // others have caught up. Those who have must go on following.
        let following = wanted.seats.iter().filter(|seat| !current.contains(&seat.replica));
        let learners = following.map(|seat| seat.replica).collect();
        (replica.places.revision, current.clone(), learners)
    }

    /// Whether one of `voters` at least is not known to be damaged: to those alone a group would be lost.
    fn is_any_well(&self, replica: &Replica, voters: &[Seat]) -> bool {
        let accused = replica.accused();
        voters.iter().any(|seat| !accused.contains(&seat.node))
    }

    /// Whether a majority of `voters` is alive and follows: given to others, the group could decide nothing before they have a snapshot, and
    /// what is begun is not taken back.
    fn can_decide(&self, replica: &Replica, voters: &[Seat]) -> bool {
        let is_ready = |seat: &&Seat| {
            seat.node == self.config.node
                || self.liveness.is_alive(self.now, seat.node) && replica.follows(seat.replica)
        };
        2 * voters.iter().filter(is_ready).count() > voters.len()
    }

    /// The newest roster that this node knows, and its revision. A group's leader may have left the root group, and then
    /// knows from others what became of the roster after that.
    pub(crate) fn newest_roster(&self) -> (i64, &Roster) {
        if self.heard.revision > self.pool.revision {
            return (self.heard.revision, &self.heard.roster);
        }
        (self.pool.revision, &self.pool.roster)
    }

    /// How far behind the replicas of `group` are: answered by its leader, wherever that is.
    pub(crate) fn on_lags_asked(&mut self, token: u64, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get(&group) else {
            return effects.replies.push((token, Reply::Failed(Failure::NoSuchGroup)));
        };
        if replica.core.is_leader() {
            return effects.replies.push((token, Reply::Lags(replica.lags())));
        }
        let Some(leader) = replica.leader_node().filter(|node| self.connected.contains_key(node)) else {
            return effects.replies.push((token, Reply::Failed(Failure::NotLeader)));
        };
        let incarnation = self.config.incarnation;
        let question = PeerMessage::Lags { group, incarnation, token, answer: false, lags: Vec::new() };
        effects.sends.push((leader, question));
    }

    /// Another node asks, or answers.
    pub(crate) fn on_lags(
        &mut self,
        from: NodeId,
        group: GroupId,
        (incarnation, token): (u64, u64),
        lags: Option<Vec<(NodeId, u64)>>,
        effects: &mut Effects,
    ) {
        match lags {
            None => {
                let replica = self.replicas.get(&group).filter(|replica| replica.core.is_leader());
                let lags = replica.map(Replica::lags).unwrap_or_default();
                let answer = PeerMessage::Lags { group, incarnation, token, answer: true, lags };
                effects.sends.push((from, answer));
            }
            Some(lags) if incarnation == self.config.incarnation => {
                // Only a leader knows of any.
                let reply =
                    if lags.is_empty() { Reply::Failed(Failure::NotLeader) } else { Reply::Lags(lags) };
                effects.replies.push((token, reply));
            }
            Some(_) => {}
        }
    }
}

impl Replica {
    /// Whether the group is known to need `replica` no more, as it was wanted at `revision` of the root group.
    pub(crate) fn does_without(&self, replica: ReplicaId, revision: i64) -> bool {
        let Ok(applied) = self.applied_configuration() else { return false };
        let is_of_it = Places::of(&applied).is_some_and(|places| places.revision >= revision);
        is_of_it && !applied.is_joint() && applied.members().all(|member| member != replica)
    }

    /// Leader: what each node's replica lacks, in entries; its own too.
    fn lags(&self) -> Vec<(NodeId, u64)> {
        let last = self.core.last().0;
        let others = self.core.progress().iter().filter_map(|progress| {
            let node = self.node_of(progress.replica)?;
            let matched = progress.lost_after().unwrap_or(progress.matched);
            Some((node, last.saturating_sub(matched.0)))
        });
        let own = self.node_of(self.me).map(|node| (node, last.saturating_sub(self.core.durable().0)));
        others.chain(own).collect()
    }
}

fn same(one: &[ReplicaId], two: &[ReplicaId]) -> bool {
    one.iter().collect::<BTreeSet<_>>() == two.iter().collect::<BTreeSet<_>>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_consensus::{CONFIGURATION, DEFAULT_GROUP, Index, LogPosition, Message, Term, chain_checksum};
    use hadron_storage::wal::{Record, RecoveredGroup};

    use super::*;
    use crate::event::Event;
    use crate::node::tests::leading;
    use crate::propose::tests::{acknowledge, lead, node as of_three, node_with};
    use crate::roster::Removed;

    #[test]
    fn places_survive_their_bytes_and_every_cut_is_noticed() {
        let nodes = [(1, 10), (2, 20), (4, 40)].map(|(replica, node)| (ReplicaId(replica), NodeId(node)));
        let places = Places { revision: 7, nodes: nodes.into() };
        let context = places.encode();
        let with = |context: Bytes| Configuration { context, ..Configuration::default() };
        assert_eq!(Places::of(&with(context.clone())), Some(places));
        for end in 1..context.len() {
            assert_eq!(Places::of(&with(context.slice(..end))), None, "{end} bytes");
        }
        assert_eq!(Places::of(&with(Bytes::from_static(&[9, 0, 0]))), None, "of a newer version");
        assert_eq!(Places::of(&with(Bytes::new())), Some(Places::default()));
    }

    /// Entries with configurations that a newer version wrote: one that consensus cannot read, and one with such places.
    fn newer_configurations() -> [Entry; 2] {
        let places = Configuration {
            context: Bytes::from_static(&[VERSION + 1, 0, 0]),
            ..Configuration::new([1, 2, 3].map(ReplicaId), [])
        };
        [Bytes::from_static(&[CONFIGURATION, 9, 0]), places.encode()].map(|data| {
            let (term, index) = (Term(1), Index(1));
            let checksum = chain_checksum(0, DEFAULT_GROUP, term, index, &data);
            Entry { term, index, checksum, data }
        })
    }

    /// One was a panic; with the other the replica went on and knew nobody.
    #[test]
    fn a_configuration_of_a_newer_version_stops_the_node_in_good_order() {
        for entry in newer_configurations() {
            let mut node = of_three();
            let message = Message::Append {
                term: Term(1),
                previous: LogPosition::default(),
                commit: Index(0),
                round: 0,
                answer: true,
                sleep: false,
                entries: vec![entry],
            };
            let (group, from, to) = (DEFAULT_GROUP, ReplicaId(2), ReplicaId(1));
            let message = PeerMessage::Group { group, from, to, message };
            let mut effects = Effects::default();
            node.step(node.now, Event::Peer { from: NodeId(2), message }, &mut effects);
            let why = effects.fatal.unwrap();
            assert!(why.contains("run the version that the other members run"), "{why}");
            let entries = effects.log.iter().filter(|record| matches!(record, Record::Entries(..)));
            assert_eq!(entries.count(), 0, "it could not start with that any more");
        }
    }

    #[test]
    fn a_log_with_a_configuration_of_a_newer_version_is_refused_at_the_start() {
        for entry in newer_configurations() {
            let log = RecoveredGroup { entries: vec![entry], ..RecoveredGroup::default() };
            let why = node_with([(DEFAULT_GROUP, log)].into()).err().unwrap();
            assert!(why.contains("run the version that the other members run"), "{why}");
            assert!(!why.contains("rebuild"), "{why}");
        }
    }

    fn told(revision: i64, members: &[u64], leaving: &[u64]) -> KnownRoster {
        let member = |id: &u64| Member { id: *id, replica: *id, data_dir_id: id * 100, ..Member::default() };
        let roster = Roster::of(&members.iter().map(member).collect::<Vec<_>>());
        KnownRoster { revision, roster, leaving: leaving.iter().map(member).collect() }
    }

    fn peers(node: &Node) -> Vec<u64> {
        node.board.peers().iter().map(|member| member.id).collect()
    }

    /// A member that was away while all that it knew but one were replaced, the leader among them: the leader was no
    /// member for it, and it would have followed nobody, for ever.
    #[test]
    fn a_node_connects_with_members_that_others_tell_of_and_with_those_who_leave() {
        let mut node = leading();
        assert_eq!(peers(&node), []);
        node.on_roster(NodeId(2), told(9, &[1, 2, 3], &[4]));
        assert_eq!(peers(&node), [2, 3, 4]);
        node.on_roster(NodeId(2), told(8, &[1, 5], &[]));
        assert_eq!(peers(&node), [2, 3, 4], "older than what is known");
        assert_eq!(node.known_roster(), told(9, &[1, 2, 3], &[4]), "and passes it on");
    }

    #[test]
    fn a_stranger_is_admitted_if_it_knows_a_newer_roster() {
        let mut node = leading();
        let board = node.board();
        assert!(board.admit(NodeId(7), 700, 0).is_err(), "as many know nothing");
        assert_eq!(board.admit(NodeId(7), 700, 9), Ok(()));
        node.on_roster(NodeId(2), told(9, &[1, 2], &[]));
        assert_eq!(board.roster_revision(), 9, "it is what this node introduces itself with");
        assert!(board.admit(NodeId(7), 700, 9).is_err());
        assert!(board.admit(NodeId(2), 1, 10).is_err(), "a known one with another data directory");
        assert_eq!(board.admit(NodeId(2), 200, 0), Ok(()));
    }

    /// A node that was just being added said that it had been removed, when it had read an older roster first.
    #[test]
    fn who_is_in_no_roster_yet_was_not_removed() {
        let mut node = leading();
        node.on_roster(NodeId(2), told(9, &[2, 3], &[4]));
        assert!(!node.is_removed());
        node.on_roster(NodeId(2), told(12, &[2, 3], &[1, 4]));
        assert!(node.is_removed());
    }

    /// A node that had been forced to go on alone let one in that it had never heard of, believed its roster, and followed those who had been
    /// removed.
    #[test]
    fn a_roster_with_somebody_who_was_removed_is_of_another_history() {
        let mut node = leading();
        let gone = Removed { revision: 9, member: Member { id: 3, ..Member::default() } };
        let pool = Pool { removed: [(3, gone)].into(), ..(*node.pool).clone() };
        node.pool = Arc::new(pool);
        let (before, revision) = (node.board.peers(), node.board.roster_revision());
        let ask = |node: &mut Node| {
            let mut effects = Effects::default();
            let (term, index) = (Term(90), Index(900));
            let message =
                Message::VoteRequest { term, pre: true, transfer: false, last_term: term, last_index: index };
            let (group, from, to) = (DEFAULT_GROUP, ReplicaId(7), ReplicaId(1));
            let message = PeerMessage::Group { group, from, to, message };
            node.step(node.now, Event::Peer { from: NodeId(7), message }, &mut effects);
            node.settle(node.now, &mut effects);
            effects.sends.iter().filter(|(to, _)| *to == NodeId(7)).count()
        };
        node.on_roster(NodeId(7), told(12, &[1, 2, 3, 7], &[]));
        assert_eq!((node.board.peers(), node.board.roster_revision()), (before, revision));
        assert_eq!(ask(&mut node), 0, "a stranger's candidate is not answered");
        node.on_roster(NodeId(7), told(12, &[1, 2, 7], &[]));
        assert_eq!(node.board.roster_revision(), 12);
        assert!(ask(&mut node) > 0, "one of us is");
    }

    /// The leader of a group had left the root group, and so never applied what became of the roster afterwards. And of
    /// those to whom the group was to be given none had a replica of it yet: it did not even tell them of it.
    #[test]
    fn a_leader_that_is_to_go_takes_others_in_before_it_gives_the_group_away() {
        let mut node = leading();
        let group = GroupId(1);
        assert_eq!(node.wanted_configuration(group), None);
        node.on_roster(NodeId(2), told(9, &[2, 3], &[]));
        let wanted = node.wanted_configuration(group).expect("a step towards the roster");
        assert_eq!(
            (wanted.voters.clone(), wanted.learners.clone()),
            (vec![ReplicaId(1)], [2, 3].map(ReplicaId).into())
        );
        assert_eq!(
            Places::of(&wanted).map(|places| places.revision),
            Some(0),
            "the roster is not fulfilled yet"
        );
    }

    /// A newcomer that lacked 512 entries of a megabyte each was let in as one that has caught up, and until it had them nothing was committed.
    #[test]
    fn few_entries_of_many_bytes_are_not_caught_up_in_a_moment() {
        let entry = |bytes| {
            let data = bytes::Bytes::from(vec![0; bytes]);
            Entry { term: Term(1), index: Index(1), checksum: 0, data }
        };
        let log: Vec<Entry> = [8 << 20, 1 << 20, 1 << 20, 100].map(entry).into();
        assert!(are_few(3, log.iter()));
        assert!(!are_few(4, log.iter()));
        assert!(are_few(512, std::iter::repeat_n(&log[3], 600)));
        assert!(!are_few(513, std::iter::repeat_n(&log[3], 600)));
    }

    /// One of three was dead, a fourth had just come: to remove a second of the three left two voters, one of them dead.
    #[test]
    fn voters_of_whom_no_majority_is_alive_do_not_get_the_group() {
        let mut node = of_three();
        lead(&mut node);
        acknowledge(&mut node, ReplicaId(2), false, &mut Effects::default());
        assert!(can_decide(&node, &[1]));
        assert!(!can_decide(&node, &[1, 2]), "never heard");
        node.liveness.on_heartbeat(node.now, NodeId(2), 1, true, true);
        assert!(can_decide(&node, &[1, 2]));
        assert!(!can_decide(&node, &[]));
    }

    fn can_decide(node: &Node, voters: &[u64]) -> bool {
        let seat = |id: &u64| Seat::of(&Member { id: *id, replica: *id, ..Member::default() });
        let seats: Vec<Seat> = voters.iter().map(seat).collect();
        node.can_decide(&node.replicas[&DEFAULT_GROUP], &seats)
    }

    /// One of three still received its snapshot, and another was damaged: the group was given to the two that were left, and took no
    /// write until the snapshot had come; and none for ever if that replica could not be opened.
    #[test]
    fn voters_who_lack_a_snapshot_do_not_get_the_group() {
        let mut node = of_three();
        lead(&mut node);
        node.liveness.on_heartbeat(node.now, NodeId(2), 1, true, true);
        assert!(!can_decide(&node, &[1, 2]), "it has not said what it has");
        acknowledge(&mut node, ReplicaId(2), false, &mut Effects::default());
        assert!(can_decide(&node, &[1, 2]));
    }

    #[test]
    fn a_group_that_this_node_did_not_found_begins_without_members() {
        assert_eq!(first_configuration(&[]), Configuration::default());
        let first = first_configuration(&[(ReplicaId(1), NodeId(10))]);
        assert_eq!(Places::of(&first).map(|places| places.nodes.len()), Some(1));
    }
}
