//! The node, or the part of it that one of its shards drives: one `step` per event, one `settle` per turn.
//!
//! The driver drains whatever waits, steps each event, then settles once: what the turn gathered becomes one entry,
//! one forward, one read question and one message per follower. So the cost of a turn is shared by all its clients.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hadron_consensus::{Effects as CoreEffects, Event as CoreEvent, GroupId, NodeId, ROOT_GROUP, Time};
use hadron_keyspace::Keyspace;
use hadron_storage::wal::RecoveredGroup;

use crate::board::Board;
use crate::config::Config;
use crate::event::{Effects, Event};
use crate::flush::EnginePersist;
use crate::groups::Replica;
use crate::liveness::{Liveness, News};
use crate::peer::PeerMessage;
use crate::persist::LogQueue;
use crate::placement::Residents;
use crate::propose::RETRY_US;
use crate::roster::{self, KnownRoster, Pool};
use crate::shards::Shard;
use crate::sleep::Dormant;

/// All groups together may apply as much in a turn as so many of them may.
const GROUPS_PER_TURN: usize = 4;
/// Tokens of requests that the node makes itself; nobody waits for their replies.
const OWN_TOKENS: u64 = 1 << 63;
/// Heartbeats between two looks at whether this node's own record is published.
const PUBLISH_EVERY: u64 = 5;
/// Heartbeats after which a publication that was not applied is taken for lost. Another one does no harm.
const PUBLISH_LOST_AFTER: u64 = 100;

/// A node without sockets, threads and files; or the part of one that one of its [shards](Node::shards) drives.
#[derive(Debug)]
pub struct Node {
    pub(crate) shard: Shard,
    pub(crate) config: Config,
    pub(crate) now: Time,
    pub(crate) replicas: BTreeMap<GroupId, Replica>,
    pub(crate) liveness: Liveness,
    pub(crate) board: Arc<Board>,
    /// What the root group says about the pool, as far as it is applied here.
    pub(crate) pool: Arc<Pool>,
    /// Groups of the catalog on this node.
    pub(crate) residents: Residents,
    /// The newest roster that others told of.
    pub(crate) heard: KnownRoster,
    pub(crate) dormant: Dormant,
    pub(crate) started_at: Time,
    /// Who is to be connected may have changed in this turn.
    pub(crate) are_peers_stale: bool,
    /// Others are to be connected since the last turn.
    pub(crate) are_peers_new: bool,
    /// The other shards must hear of the pool, or of who is to be connected.
    pub(crate) is_pool_new: bool,
    /// How often the others' needs had changed when they were last looked at.
    pub(crate) needs_seen: u64,
    /// What of the root group could not be read when it was read last, and when to try again.
    pub(crate) unread: Option<(String, Time)>,
    /// Groups of which something may be left that nobody needs: all that were just opened, and those of whose former states somebody reads yet.
    pub(crate) unswept: BTreeSet<GroupId>,
    pub(crate) log: LogQueue,
    /// Groups for which old segments of the log were kept when somebody last looked.
    pub(crate) pinning: BTreeSet<GroupId>,
    pub(crate) engine_persist: EnginePersist,
    /// Nodes with a connection, and the incarnation at its other end.
    pub(crate) connected: BTreeMap<NodeId, u64>,
    pub(crate) forward_number: u64,
    pub(crate) entry_token: u64,
    /// Reused by every step of a group.
    pub(crate) core_effects: CoreEffects,
    /// Groups to settle at the end of the turn.
    touched: Vec<GroupId>,
    /// What all groups together may still apply in this turn ([`crate::Limits::apply_effort`]).
    pub(crate) turn_effort_left: usize,
    /// Groups that have something to apply for which there was no time in this turn, and whether there was time for some of it.
    pub(crate) left_over: Vec<(bool, GroupId)>,
    /// There were some in the last turn: the next one does not wait.
    pub(crate) is_work_left: bool,
    timers: BTreeSet<(Time, GroupId)>,
    heartbeat_at: Time,
    heartbeats: u64,
}

impl Node {
    /// Builds a node with one shard from its configuration, what its log holds, and the open keyspace of each configured group.
    ///
    /// # Errors
    /// Says which group cannot be used, why, and what to do. Nothing was changed.
    pub fn new(
        config: Config,
        recovered: BTreeMap<GroupId, RecoveredGroup>,
        keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
        now: Time,
    ) -> Result<Node, String> {
        Node::of_shard(Shard::ONLY, Arc::default(), config, recovered, keyspaces, now)
    }

    /// Like [`Node::new`], for the part that `shard` drives. The first one has to be built first.
    pub(crate) fn of_shard(
        shard: Shard,
        board: Arc<Board>,
        config: Config,
        mut recovered: BTreeMap<GroupId, RecoveredGroup>,
        keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
        now: Time,
    ) -> Result<Node, String> {
        let mut replicas = BTreeMap::new();
        for group in &config.groups {
            let id = group.group;
            let keyspace = keyspaces.get(&id).ok_or_else(|| format!("group {id}: no keyspace was opened"))?;
            let log = recovered.remove(&id).unwrap_or_default();
            let board = board.add_group(id, keyspace.clone());
            replicas.insert(id, Replica::restore(&config, group, keyspace.clone(), board, log, now)?);
        }
        let unswept = replicas.keys().copied().collect();
        let residents = Residents::new(recovered);
        let liveness = Liveness::new(config.node, config.election_timeout_us);
        let mut node = Node {
            shard,
            now,
            replicas,
            liveness,
            board,
            pool: Arc::default(),
            residents,
            heard: KnownRoster::default(),
            dormant: Dormant::default(),
            started_at: now,
            are_peers_stale: false,
            are_peers_new: false,
            is_pool_new: false,
            needs_seen: 0,
            unread: None,
            unswept,
            log: LogQueue::default(),
            pinning: BTreeSet::new(),
            engine_persist: EnginePersist::new(now),
            connected: BTreeMap::new(),
            forward_number: 0,
            entry_token: 0,
            core_effects: CoreEffects::default(),
            touched: Vec::new(),
            turn_effort_left: 0,
            left_over: Vec::new(),
            is_work_left: false,
            timers: BTreeSet::new(),
            heartbeat_at: now,
            heartbeats: 0,
            config,
        };
        node.count_closed_logs(0, node.residents.log_bytes());
        node.refresh_pool();
        match &node.unread {
            Some((what, _)) => Err(unreadable(what)),
            None => Ok(node),
        }
    }

    /// What others may read without entering the loop.
    pub fn board(&self) -> Arc<Board> {
        self.board.clone()
    }

    /// To be called once, before the first event. A group whose only voter is here, and that does not sleep, elects at once.
    pub fn start(&mut self, now: Time, effects: &mut Effects) {
        self.now = now;
        self.started_at = now;
        for group in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.log_new_floor(group, effects);
            let is_alone = |replica: &Replica| {
                replica.core.configuration().voters == [replica.me]
                    && replica.places.nodes.len() == 1
                    && !replica.core.is_asleep()
            };
            let alone = self.replicas.get(&group).is_some_and(is_alone);
            if alone {
                self.step_group(group, CoreEvent::Campaign, effects);
            }
            self.heed_alarms(group, effects);
            self.touch(group);
        }
        self.reread_catalog(effects);
        let others_vote =
            self.replicas.get(&ROOT_GROUP).is_some_and(|root| root.core.configuration().voters != [root.me]);
        // Whoever is alone serves what can be read: there is nobody else who could.
        if let (Some((what, _)), true) = (&self.unread, others_vote) {
            effects.fatal = Some(unreadable(what));
        }
        self.settle(now, effects);
    }

    /// Whether something is to be applied for which there was no time in the last turn: the next one is due at once.
    pub fn has_left_over(&self) -> bool {
        self.is_work_left
    }

    /// When [`Event::Timer`] is due.
    pub fn deadline(&self) -> Time {
        if self.is_work_left {
            return self.now;
        }
        let group = self.timers.first().map(|(at, _)| *at);
        let persist = self.engine_persist.deadline(self.persist_interval_us());
        [group, persist].into_iter().flatten().fold(self.heartbeat_at, Time::min)
    }

    /// Takes one event. Follow a run of steps with [`Node::settle`].
    pub fn step(&mut self, now: Time, event: Event, effects: &mut Effects) {
        self.advance(now, effects);
        match event {
            Event::Timer => self.on_timer(effects),
            Event::Peer { from, message } => self.on_peer(from, message, effects),
            Event::PeerUp { node, incarnation } => self.on_peer_up(node, incarnation, effects),
            Event::PeerDown { node } => self.on_peer_down(node),
            Event::Write { token, group, command } => self.on_write(token, group, command, effects),
            Event::Read { token, group } => self.on_read(token, group, effects),
            Event::TransferLeader { token, group, to } => self.on_transfer(token, group, to, effects),
            Event::HandOver => self.hand_over(effects),
            Event::HandOverTo { group, from, to } => self.hand_over_to(group, from, to, effects),
            Event::Report(report) => self.spread_report(report, effects),
            Event::Lags { token, group } => self.on_lags_asked(token, group, effects),
            Event::Cancel { token, group } => self.on_cancel(token, group),
            Event::LogDurable { sequence } => self.on_log_durable(sequence, effects),
            Event::LogPinned { groups } => self.on_log_pinned(groups, effects),
            Event::Flushed { group, flush } => self.on_flushed(group, flush, effects),
            Event::Swept { group } => self.on_swept(group, effects),
            Event::EnginePersisted { ticket } => self.on_engine_persisted(ticket, effects),
            Event::SnapshotBegun { group, to } => self.on_snapshot_begun(group, to),
            Event::SnapshotSent { group, to, position } => {
                self.on_snapshot_sent(group, to, position, effects)
            }
            Event::SnapshotOffered { group, ticket, applied, generation } => {
                self.on_snapshot_offered(group, ticket, (applied, generation), effects);
            }
            Event::Opened { group, outcome } => self.on_opened(group, outcome, effects),
            Event::Destroyed { group } => self.on_destroyed(group, effects),
            Event::SnapshotInstalled { group, applied, loaded } => {
                self.on_snapshot_installed(group, applied, loaded, effects)
            }
            Event::PoolChanged => self.on_pool_changed(),
            Event::CatalogChanged { groups, revision } => self.heed_catalog(groups, revision, effects),
            Event::CatalogReread { revision } => self.heed_whole_catalog(revision, effects),
        }
    }

    /// Ends a turn: proposes, asks, applies, answers and flushes for every group that something happened to.
    pub fn settle(&mut self, now: Time, effects: &mut Effects) {
        self.advance(now, effects);
        self.turn_effort_left = self.config.limits.apply_effort.saturating_mul(GROUPS_PER_TURN);
        // Settling a group may touch it again (a single voter commits what it proposes); twice is enough for that, and
        // what cannot proceed now has a timer.
        for _ in 0..2 {
            for group in std::mem::take(&mut self.touched) {
                if let Some(replica) = self.replicas.get_mut(&group) {
                    replica.touched = false;
                    self.settle_group(group, effects);
                }
            }
        }
        for group in std::mem::take(&mut self.touched) {
            if let Some(replica) = self.replicas.get_mut(&group) {
                replica.touched = false;
            }
            self.set_timer(group);
        }
        self.touch_left_over();
        self.maybe_persist_engine(effects);
        if std::mem::take(&mut self.are_peers_stale) {
            self.refresh_peers();
        }
        effects.are_peers_new |= std::mem::take(&mut self.are_peers_new);
        if std::mem::take(&mut self.is_pool_new) {
            self.tell_shards(Event::PoolChanged, effects);
        }
    }

    fn settle_group(&mut self, group: GroupId, effects: &mut Effects) {
        self.apply_committed(group, effects);
        self.turn_away(group, effects);
        self.propose_gathered(group, effects);
        self.ask_reads(group, effects);
        self.apply_committed(group, effects);
        self.serve_reads(group, effects);
        self.maybe_expire_leases(group, effects);
        self.maybe_log_clock(group, effects);
        self.maybe_check_integrity(group, effects);
        self.maybe_reconfigure(group, effects);
        self.maybe_flush(group, effects);
        self.heed_pressure(group, effects);
        if let Some(replica) = self.replicas.get(&group) {
            let leader = replica.leader_node();
            replica.board.set_status(leader, replica.core.term(), replica.core.commit().0);
        }
        self.show_sleep(group);
        self.set_timer(group);
    }

    /// Marks a group to be settled at the end of the turn.
    pub(crate) fn touch(&mut self, group: GroupId) {
        if let Some(replica) = self.replicas.get_mut(&group)
            && !replica.touched
        {
            replica.touched = true;
            self.touched.push(group);
        }
    }

    /// Groups for which there was no time are the first in the next turn, and of these the ones for which there was none at all.
    fn touch_left_over(&mut self) {
        let mut left_over = std::mem::take(&mut self.left_over);
        self.is_work_left = !left_over.is_empty();
        left_over.sort_by_key(|(had_some, _)| *had_some);
        left_over.into_iter().for_each(|(_, group)| self.touch(group));
    }

    /// Marks all groups to be settled at the end of the turn.
    pub(crate) fn touch_all(&mut self) {
        for group in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.touch(group);
        }
    }

    /// The present moves on. A loop that was paused for longer than an election timeout may have been replaced as leader
    /// meanwhile: what it led, awake or asleep, is given up before anything is stamped or answered.
    fn advance(&mut self, now: Time, effects: &mut Effects) {
        let paused = now.micros_since(self.now) > self.config.election_timeout_us;
        self.now = self.now.max(now);
        if paused {
            let leads = |replica: &&Replica| replica.core.is_leader();
            let led: Vec<_> = self.replicas.values().filter(leads).map(|replica| replica.id).collect();
            for group in led {
                self.step_group(group, CoreEvent::Paused, effects);
            }
        }
    }

    fn on_timer(&mut self, effects: &mut Effects) {
        if self.heartbeat_at <= self.now {
            self.heartbeat(effects);
        }
        while let Some((at, group)) = self.timers.first().copied().filter(|(at, _)| *at <= self.now) {
            self.timers.remove(&(at, group));
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            replica.timer = None;
            let core_is_due = replica.core.deadline().is_some_and(|deadline| deadline <= self.now);
            if core_is_due {
                self.step_group(group, CoreEvent::Timer, effects);
            }
            self.touch(group);
        }
    }

    fn heartbeat(&mut self, effects: &mut Effects) {
        self.heartbeat_at = self.now.plus_micros(self.config.heartbeat_us);
        self.heartbeats += 1;
        self.leave_note();
        self.send_heartbeats(effects);
        for suspect in self.liveness.new_suspects(self.now) {
            if self.shard.is_first() {
                tracing::warn!(node = %format_args!("{:x}", suspect.0), "no word from a node: its groups elect");
            }
            self.suspect(suspect, effects);
        }
        self.wake_some(effects);
        self.stand_again(effects);
        self.sweep_again(effects);
        self.show_alive();
        if self.are_needs_new() {
            self.refresh_peers();
        }
        if self.heartbeats % PUBLISH_EVERY == 1 {
            self.read_root_again(effects);
            self.publish();
            self.tell_roster(self.connected.keys().copied().collect(), effects);
            self.ask_to_leave(effects);
            self.lead_no_more(effects);
        }
    }

    /// One to each of the others, for all shards.
    fn send_heartbeats(&mut self, effects: &mut Effects) {
        if !self.shard.is_first() {
            return;
        }
        let vouches = self.vouches();
        for node in self.liveness.nodes() {
            let hears = self.liveness.hears(self.now, node);
            let heartbeat = PeerMessage::Heartbeat { incarnation: self.config.incarnation, hears, vouches };
            effects.sends.push((node, heartbeat));
        }
    }

    fn on_peer(&mut self, from: NodeId, message: PeerMessage, effects: &mut Effects) {
        match message {
            // A stranger says first how it came to be one of us.
            PeerMessage::Group { .. } if !self.liveness.knows(from) => {}
            PeerMessage::Group { group, from: replica, to, message } => {
                self.on_group_message(from, group, replica, to, message, effects);
            }
            PeerMessage::Heartbeat { incarnation, hears, vouches } => {
                match self.liveness.on_heartbeat(self.now, from, incarnation, hears, vouches) {
                    News::None => {}
                    News::Restarted => self.on_restarted(from, effects),
                    // Groups may have waited for it to be alive.
                    News::Back => self.touch_all(),
                }
            }
            PeerMessage::Forward(forward) => self.on_forward(from, forward, effects),
            PeerMessage::NotProposed { group, term, incarnation, reason, tokens } => {
                self.on_not_proposed(group, term, incarnation, reason, tokens, effects);
            }
            PeerMessage::Elected { group, term, candidate, won, votes } => {
                self.on_elected(group, term, candidate, won, votes);
            }
            PeerMessage::Digest { group, index, live, answer } => {
                self.on_digest(from, group, index, live, answer, effects);
            }
            PeerMessage::Roster(known) => self.on_roster(from, known),
            PeerMessage::Report(bytes) => self.on_report(from, bytes),
            PeerMessage::HandOver { group, to } => {
                self.hand_over_to(group, self.config.node, to, effects);
            }
            PeerMessage::Leaving { group, replica, revision, answer } => {
                self.on_leaving(from, (group, replica), revision, answer, effects);
            }
            PeerMessage::Lags { group, incarnation, token, answer, lags } => {
                self.on_lags(from, group, (incarnation, token), answer.then_some(lags), effects);
            }
        }
    }

    fn on_peer_up(&mut self, node: NodeId, incarnation: u64, effects: &mut Effects) {
        self.connected.insert(node, incarnation);
        self.tell_roster([node].into(), effects);
        if self.liveness.on_connected(node, incarnation) {
            self.on_restarted(node, effects);
        }
        self.touch_all();
    }

    fn on_peer_down(&mut self, node: NodeId) {
        self.connected.remove(&node);
        self.show_alive();
    }

    fn show_alive(&self) {
        if !self.shard.is_first() {
            return;
        }
        let mut alive = self.liveness.alive(self.now);
        alive.retain(|node| self.connected.contains_key(node));
        self.board.set_alive(alive);
    }

    fn hand_over(&mut self, effects: &mut Effects) {
        for group in self.replicas.keys().copied().collect::<Vec<_>>() {
            if let Some(to) = self.best_successor(group) {
                self.step_group(group, CoreEvent::TransferLeader { to }, effects);
            }
        }
    }

    /// Who was removed hands over what it leads of the catalog's groups. It is in the root group no more, and would go on by an old catalog for as
    /// long as it is needed there: whoever plans waits for a leader that is a member.
    fn lead_no_more(&mut self, effects: &mut Effects) {
        let (revision, roster) = self.newest_roster();
        if revision == 0 || roster.member(self.config.node.0).is_some() {
            return;
        }
        let is_led = |replica: &&Replica| replica.core.is_leader() && !replica.follows_roster;
        let led: Vec<_> = self.replicas.values().filter(is_led).map(|replica| replica.id).collect();
        for group in led {
            if let Some(to) = self.best_successor(group) {
                tracing::info!(group = group.0, to = %to, "this node was removed: it leads no more");
                self.step_group(group, CoreEvent::TransferLeader { to }, effects);
            }
        }
    }

    /// Writes to the root group what this node has to say there, until it is there: its own record, and which replicas are gone.
    fn publish(&mut self) {
        let Some(root) = self.replicas.get_mut(&ROOT_GROUP) else { return };
        // A forward can be lost with its connection. A client's request then times out; nobody waits for this one.
        let lost = OWN_TOKENS | self.heartbeats.saturating_sub(PUBLISH_LOST_AFTER);
        root.proposed.retain(|token, _| token & OWN_TOKENS == 0 || *token > lost);
        let on_its_way =
            !root.waiting.is_empty() || root.proposed.keys().any(|token| token & OWN_TOKENS != 0);
        if on_its_way || root.core.leader().is_none() {
            return;
        }
        let own = &self.config.own;
        let Ok(pool) = Pool::read(&root.keyspace, &self.config.roster) else { return };
        if pool.removed.contains_key(&own.id) {
            return;
        }
        let is_published = pool.said.get(&own.id) == Some(own);
        let news = if is_published { self.left() } else { Some(roster::say(own)) };
        if let Some(news) = news
            && let Some(root) = self.replicas.get_mut(&ROOT_GROUP)
        {
            root.waiting.push_back((OWN_TOKENS | self.heartbeats, news));
            self.touch(ROOT_GROUP);
        }
    }

    /// A group that was closed is due no more.
    pub(crate) fn forget_timer(&mut self, deadline: Time, group: GroupId) {
        self.timers.remove(&(deadline, group));
    }

    /// Puts a group under its next deadline.
    fn set_timer(&mut self, group: GroupId) {
        let limits = &self.config.limits;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let retry = (!replica.waiting.is_empty()).then(|| self.now.plus_micros(RETRY_US));
        let leads = replica.core.is_leader();
        let integrity = (leads && replica.is_check_due()).then_some(replica.integrity.next_at);
        let hand_over = replica.pressure.hand_over_at(self.config.election_timeout_us).filter(|_| leads);
        let candidates = [
            replica.core.deadline(),
            replica.expiry_deadline(),
            replica.stamp_deadline(limits.stamp_interval_us),
            replica.flush_deadline(limits.flush_interval_us),
            replica.reads.retry_deadline(),
            retry,
            integrity,
            hand_over,
        ];
        let deadline = candidates.into_iter().flatten().min();
        if deadline == replica.timer {
            return;
        }
        if let Some(earlier) = replica.timer {
            self.timers.remove(&(earlier, group));
        }
        if let Some(deadline) = deadline {
            self.timers.insert((deadline, group));
        }
        replica.timer = deadline;
    }
}

/// Nothing can be decided without it.
fn unreadable(what: &str) -> String {
    format!(
        "{what}; unless that passes, move the data directory away and rebuild this member from the others"
    )
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use bytes::Bytes;
    use hadron_consensus::{DEFAULT_GROUP, Term};
    use hadron_keyspace::Applied;
    use hadron_storage::engine::ModelEngine;

    use crate::config::Limits;
    use crate::groups::Proposed;
    use crate::membership::{Bootstrap, Member};

    /// A node that is alone, and its keyspaces.
    pub(crate) fn alone() -> (Config, BTreeMap<GroupId, Arc<Keyspace>>) {
        let own = Member { id: 1, data_dir_id: 5, ..Member::default() };
        let pool = Bootstrap::of(vec![own.clone()]);
        let config = Config {
            node: NodeId(1),
            incarnation: 7,
            own,
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
        (config, keyspaces)
    }

    /// A node that is alone and leads.
    pub(crate) fn leading() -> Node {
        let (config, keyspaces) = alone();
        let mut node = Node::new(config, BTreeMap::new(), &keyspaces, Time(1)).unwrap();
        let mut effects = Effects::default();
        node.start(Time(1), &mut effects);
        let sequence = effects.log_sequence;
        node.step(Time(2), Event::LogDurable { sequence }, &mut effects);
        assert!(node.replicas[&ROOT_GROUP].core.is_leader());
        node
    }

    /// Until the next entry, which a quiet group may never see, the group's clock was shown as counted from the node's start: leases had
    /// more time left than they had been granted, and tokens that had ended were good again.
    #[test]
    fn a_node_that_starts_anew_shows_the_clocks_of_its_groups() {
        let (config, keyspaces) = alone();
        let applied = Applied { term: 1, index: 1, checksum: 0, stamp_ms: 90_000 };
        keyspaces[&DEFAULT_GROUP].apply(applied, Vec::new());
        let node = Node::new(config, BTreeMap::new(), &keyspaces, Time(5_000_000)).unwrap();
        let shown = node.board().group(DEFAULT_GROUP).unwrap().clock();
        assert_eq!(shown.now_ms(Time(7_000_000)), 92_000);
    }

    /// The forward of a node's own record was lost with its connection. It counted as on its way for as long as the term
    /// lasted, and the other members never learnt the record.
    #[test]
    fn a_record_whose_publication_was_lost_is_published_again() {
        let mut node = leading();
        let term = Term(1);
        let root = node.replicas.get_mut(&ROOT_GROUP).unwrap();
        root.waiting.clear();
        root.proposed.clear();
        root.proposed.insert(OWN_TOKENS | 1, Proposed { term, command: Bytes::new() });
        root.proposed.insert(1, Proposed { term, command: Bytes::new() });
        node.heartbeats = PUBLISH_LOST_AFTER;
        node.publish();
        assert!(node.replicas[&ROOT_GROUP].waiting.is_empty(), "it may still arrive");
        node.heartbeats += 1;
        node.publish();
        let root = &node.replicas[&ROOT_GROUP];
        assert_eq!(root.waiting.len(), 1);
        assert!(root.proposed.contains_key(&1), "a client's request has a time-out of its own");
    }

    /// However many groups have more to do than there is time for, each gets its turn.
    #[test]
    fn who_had_no_time_is_the_first_in_the_next_turn() {
        let mut node = leading();
        node.settle(Time(3), &mut Effects::default());
        node.left_over = vec![(true, ROOT_GROUP), (false, DEFAULT_GROUP)];
        node.touch_left_over();
        assert_eq!(node.touched, [DEFAULT_GROUP, ROOT_GROUP]);
        assert_eq!(node.deadline(), Time(3), "at once");
    }
}
