//! Snapshots: for a follower whose next entry is no longer in the log.
//!
//! The content never passes through here. The leader's node asks its driver to stream the engine's state; the follower's
//! driver writes it under a new generation and then asks whether to switch. The node says yes only if the snapshot
//! is ahead of what it applied, and lets nothing of that group reach the engine until the switch is durable.

use std::sync::Arc;

use hadron_consensus::{Event as CoreEvent, GroupId, Index, LogPosition, ROOT_GROUP, ReplicaId, Term};
use hadron_keyspace::{Applied, Loaded};

use crate::clock::GroupClock;
use crate::event::{Effects, Retired, SnapshotJob};
use crate::groups::Install;
use crate::node::Node;

/// Whatever others need, a log keeps about as much as this.
const LOG_BYTES_MIN: usize = 1 << 20;

/// How far a follower is that is brought up by a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feeding {
    /// Its snapshot has not begun: to another node there go one small and one large one at a time. It comes with what is in the engine then, and until then
    /// nothing is kept for it.
    Waits,
    /// It is being sent one: the log is kept for it.
    Receives,
    /// It has one and needs the entries after it: the log is kept for it as long as it lives.
    CatchesUp,
}

impl Node {
    /// The group asks for snapshots for these followers.
    pub(crate) fn send_snapshots(
        &mut self,
        group: GroupId,
        followers: impl Iterator<Item = ReplicaId>,
        effects: &mut Effects,
    ) {
        let limits = &self.config.limits;
        let free = self.log_bytes_free().max(limits.log_tail_bytes.min(LOG_BYTES_MIN));
        let log_bytes = limits.snapshot_log_bytes.min(free);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        for to in followers {
            let Some(node) = replica.node_of(to) else { continue };
            if !matches!(replica.fed.get(&to), Some(Feeding::Waits | Feeding::Receives)) {
                replica.fed.insert(to, Feeding::Waits);
                let keyspace = Arc::clone(&replica.keyspace);
                effects.snapshots.push(SnapshotJob { group, node, to, keyspace, log_bytes });
            }
        }
    }

    /// A transfer begins: from now on the log is kept for it.
    pub(crate) fn on_snapshot_begun(&mut self, group: GroupId, to: ReplicaId) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if let Some(feeding) = replica.fed.get_mut(&to) {
            *feeding = Feeding::Receives;
        }
    }

    /// A transfer ended. The log is kept until the follower has what was written meanwhile.
    pub(crate) fn on_snapshot_sent(
        &mut self,
        group: GroupId,
        to: ReplicaId,
        position: Option<LogPosition>,
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        replica.fed.remove(&to);
        if position.is_some() && replica.core.is_leader() {
            replica.fed.insert(to, Feeding::CatchesUp);
        }
        // What was kept of the log may go also if nothing more is written.
        self.engine_persist.dirty = true;
        // The transfer held tombstones.
        self.maybe_sweep(group, effects);
        self.step_group(group, CoreEvent::SnapshotSent { to, position }, effects);
    }

    /// A whole snapshot lies ready beside the present state.
    pub(crate) fn on_snapshot_offered(
        &mut self,
        group: GroupId,
        ticket: u64,
        (offered, generation): (Applied, u32),
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return effects.installs.push((ticket, false));
        };
        if replica.install != Install::None || !replica.keyspace.may_switch_to(generation) {
            return effects.installs.push((ticket, false));
        }
        replica.install = Install::Offered(ticket, Index(offered.index));
        self.answer_install(group, effects);
    }

    /// Allows the switch once nothing of the old state is on its way to the engine. While the offer waited for that,
    /// this replica may have applied more than the snapshot holds, or been elected: the state must not go back.
    pub(crate) fn answer_install(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let Install::Offered(ticket, index) = replica.install else { return };
        let is_wanted = index > replica.applied() && !replica.core.is_leader();
        if is_wanted && !replica.flush.is_quiet() {
            return;
        }
        replica.install = if is_wanted { Install::Switching } else { Install::None };
        effects.installs.push((ticket, is_wanted));
        self.touch(group);
    }

    /// The engine has switched: so do the state and the log.
    pub(crate) fn on_snapshot_installed(
        &mut self,
        group: GroupId,
        applied: Applied,
        loaded: Loaded,
        effects: &mut Effects,
    ) {
        let now = self.now;
        let position =
            LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum };
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        effects.retired.push(Retired::State(replica.keyspace.switch(loaded)));
        replica.install = Install::None;
        let configuration = match replica.applied_configuration() {
            Ok(configuration) => configuration,
            Err(what) => return effects.fatal = Some(what),
        };
        replica.open_entry = None;
        replica.unapplied.retain(|entry| entry.index > position.index);
        replica.applied_term = position.term;
        if !replica.core.is_leader() {
            // A leader's, which began with its log's last stamp, is ahead of that.
            replica.clock = GroupClock::new(applied.stamp_ms, now);
        }
        replica.board.set_clock(replica.clock);
        replica.give_up_proposals(effects);
        replica.board.set_applied(position.index.0);
        tracing::info!(group = group.0, index = position.index.0, "installed a snapshot");
        self.restart_flush_at(group, position, effects);
        let installed = CoreEvent::SnapshotInstalled { position, configuration: configuration.clone() };
        self.step_group(group, installed, effects);
        self.on_configuration_applied(group, &configuration);
        self.heed_alarms(group, effects);
        // The former state is to go, also if nothing more is written to this group.
        self.maybe_sweep(group, effects);
        if group == ROOT_GROUP {
            self.refresh_pool();
            self.reread_catalog(effects);
        }
        self.touch(group);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::collections::BTreeMap;

    use hadron_consensus::{DEFAULT_GROUP, NodeId, Time};
    use hadron_keyspace::{Command, Exporter, Importer, Keyspace, Scrub};
    use hadron_proto::etcdserverpb::PutRequest;
    use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
    use hadron_storage::engine::{Engine as _, ModelEngine};

    use crate::config::{Config, Limits};
    use crate::flush::FlushState;
    use crate::integrity::corrupt;
    use crate::membership::{Bootstrap, Member};
    use crate::propose::tests::lead;

    /// The first of three nodes, and its engine.
    fn first() -> (Node, Arc<ModelEngine>) {
        let engine = Arc::new(ModelEngine::new());
        (first_with(&engine), engine)
    }

    fn first_with(engine: &Arc<ModelEngine>) -> Node {
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
        let open = |id: GroupId| (id, Keyspace::open(engine.clone(), id.0, Default::default()).unwrap());
        let keyspaces = config.groups.iter().map(|group| open(group.group)).collect();
        Node::new(config, BTreeMap::new(), &keyspaces, Time(1)).unwrap()
    }

    /// The same; one entry is applied, and its flush is on its way.
    fn flushing() -> Node {
        let (mut node, _) = first();
        apply(&mut node, 1);
        let mut effects = Effects::default();
        let position = LogPosition { term: Term(1), index: Index(1), checksum: 1 };
        let configuration = node.replicas[&DEFAULT_GROUP].core.configuration().clone();
        let installed = CoreEvent::SnapshotInstalled { position, configuration };
        node.step_group(DEFAULT_GROUP, installed, &mut effects);
        node.now = Time(1_000_000);
        node.maybe_flush(DEFAULT_GROUP, &mut effects);
        assert_eq!(effects.flushes.len(), 1);
        // The engine has it, and the node has not heard so yet.
        node
    }

    fn at(index: u64) -> Applied {
        Applied { term: 1, index, checksum: index, stamp_ms: 0 }
    }

    fn apply(node: &mut Node, index: u64) {
        node.replicas[&DEFAULT_GROUP].keyspace.apply(at(index), Vec::new());
    }

    fn flush_ends(node: &mut Node) -> Effects {
        let mut effects = Effects::default();
        let replica = node.replicas.get_mut(&DEFAULT_GROUP).unwrap();
        replica.flush = FlushState::new(Index(1), 0, Time(1));
        node.answer_install(DEFAULT_GROUP, &mut effects);
        effects
    }

    /// The state of `default` with this command in its only entry comes as a snapshot.
    fn install(node: &mut Node, engine: Arc<ModelEngine>, at: Applied, command: Command) {
        let keyspace = &node.replicas[&DEFAULT_GROUP].keyspace;
        keyspace.apply(at, vec![command]);
        let flush = keyspace.take_flush(at.index, usize::MAX).unwrap();
        engine.write(flush.batch()).unwrap();
        keyspace.flush_done(flush);
        let mut exporter = Exporter::new(keyspace.clone(), usize::MAX).unwrap();
        let mut importer = Importer::new(engine, DEFAULT_GROUP.0).unwrap();
        importer.chunk(exporter.next_chunk(1 << 20).unwrap().unwrap()).unwrap();
        let loaded = importer.load().unwrap();
        let applied = importer.finish().unwrap();
        let mut effects = Effects::default();
        node.on_snapshot_installed(DEFAULT_GROUP, applied, loaded, &mut effects);
        assert_eq!(effects.retired.len(), 1);
    }

    fn put() -> Command {
        Command::Put(PutRequest { key: "k".into(), value: "v".into(), ..Default::default() })
    }

    /// A node whose replica has switched to a snapshot and has yet to delete what was before.
    fn with_former_state() -> (Node, Arc<ModelEngine>) {
        let (mut node, engine) = first();
        install(&mut node, engine.clone(), at(1), put());
        node.replicas.get_mut(&DEFAULT_GROUP).unwrap().flush = FlushState::new(Index(1), 0, Time(1));
        (node, engine)
    }

    /// The alarm was in the snapshot and no entry came after it: the replica went on serving, and nobody rebuilt it.
    #[test]
    fn a_replica_that_learns_from_a_snapshot_that_it_is_damaged_serves_no_more() {
        let (mut node, engine) = first();
        assert!(!node.replicas[&DEFAULT_GROUP].quarantined);
        let alarm = Command::Alarm(corrupt(NodeId(1), AlarmAction::Activate));
        install(&mut node, engine, at(1), alarm);
        assert!(node.replicas[&DEFAULT_GROUP].quarantined);
    }

    /// A scrub read the former state when it was to go. It stayed on the disk until something was written to the group again.
    #[test]
    fn a_former_state_goes_when_nobody_reads_it_any_more() {
        let (mut node, engine) = with_former_state();
        let reader = Scrub::begin(node.replicas[&DEFAULT_GROUP].keyspace.clone()).unwrap();
        assert!(reader.is_some());
        install(&mut node, engine, at(2), put());
        let mut effects = Effects::default();
        node.sweep_again(&mut effects);
        assert_eq!(effects.sweeps.len(), 0, "somebody reads it");
        drop(reader);
        node.sweep_again(&mut effects);
        assert_eq!(effects.sweeps.len(), 1);
    }

    /// A snapshot was offered when somebody looked whether the former state can go: nobody looked again.
    #[test]
    fn a_former_state_is_not_forgotten_while_a_snapshot_is_offered() {
        let (mut node, _) = with_former_state();
        node.replicas.get_mut(&DEFAULT_GROUP).unwrap().install = Install::Offered(9, Index(2));
        let mut effects = Effects::default();
        node.sweep_again(&mut effects);
        assert_eq!(effects.sweeps.len(), 0, "the engine may be about to switch");
        node.replicas.get_mut(&DEFAULT_GROUP).unwrap().install = Install::None;
        node.sweep_again(&mut effects);
        assert_eq!(effects.sweeps.len(), 1);
    }

    /// Power was lost before what the former state had left was deleted. It stayed until something was written to the group again.
    #[test]
    fn a_former_state_goes_after_a_start_too() {
        let (mut node, engine) = first();
        install(&mut node, engine.clone(), at(1), put());
        drop(node);
        let mut node = first_with(&engine);
        let mut effects = Effects::default();
        node.sweep_again(&mut effects);
        assert_eq!(effects.sweeps.iter().map(|(group, _)| *group).collect::<Vec<_>>(), [DEFAULT_GROUP]);
    }

    /// Until the next entry the group's clock was shown as counted from the node's start.
    #[test]
    fn a_snapshot_tells_what_the_clock_of_its_group_shows() {
        let (mut node, engine) = first();
        node.now = Time(5_000_000);
        install(&mut node, engine, Applied { stamp_ms: 90_000, ..at(1) }, Command::DigestMark);
        let shown = node.board().group(DEFAULT_GROUP).unwrap().clock();
        assert_eq!(shown.now_ms(Time(7_000_000)), 92_000);
    }

    /// It went back to what the snapshot said, which is less than what the leader had stamped: leases ended late.
    #[test]
    fn whoever_was_elected_while_it_switched_to_a_snapshot_keeps_its_clock() {
        let (mut node, engine) = first();
        node.replicas.get_mut(&DEFAULT_GROUP).unwrap().install = Install::Switching;
        node.now = Time(5_000_000);
        lead(&mut node);
        // What it had in its log.
        node.replicas.get_mut(&DEFAULT_GROUP).unwrap().clock = GroupClock::new(90_000, node.now);
        install(&mut node, engine, Applied { stamp_ms: 60_000, ..at(1) }, Command::DigestMark);
        let replica = &node.replicas[&DEFAULT_GROUP];
        assert_eq!(replica.clock.now_ms(Time(7_000_000)), 92_000);
        assert_eq!(replica.board.clock(), replica.clock);
    }

    /// An offer waited for a flush; meanwhile the replica caught up by its log. The switch was allowed all the same and
    /// took the state back to before what had been applied and answered.
    #[test]
    fn an_offer_that_was_overtaken_while_it_waited_is_refused() {
        let mut node = flushing();
        let mut effects = Effects::default();
        node.on_snapshot_offered(DEFAULT_GROUP, 9, (at(2), 2), &mut effects);
        assert_eq!(effects.installs, [], "it waits for the flush");
        apply(&mut node, 2);
        apply(&mut node, 3);
        assert_eq!(flush_ends(&mut node).installs, [(9, false)]);
        assert_eq!(node.replicas[&DEFAULT_GROUP].install, Install::None);
    }

    #[test]
    fn an_offer_that_is_still_ahead_is_taken_after_the_flush() {
        let mut node = flushing();
        let mut effects = Effects::default();
        node.on_snapshot_offered(DEFAULT_GROUP, 9, (at(2), 2), &mut effects);
        assert_eq!(flush_ends(&mut node).installs, [(9, true)]);
        assert_eq!(node.replicas[&DEFAULT_GROUP].install, Install::Switching);
    }
}
