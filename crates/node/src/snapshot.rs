//! Snapshots: for a follower whose next entry is no longer in the log.
//!
//! The content never passes through here. The leader's node asks its driver to stream the engine's state; the follower's
//! driver writes it under a new generation and then asks whether to switch. The node says yes only if the snapshot
//! is ahead of what it applied, and lets nothing of that group reach the engine until the switch is durable.

use hadron_consensus::{Event as CoreEvent, GroupId, Index, LogPosition, ReplicaId, Term};
use hadron_keyspace::Applied;

use crate::clock::GroupClock;
use crate::event::{Effects, SnapshotJob};
use crate::groups::Install;
use crate::node::Node;

impl Node {
    /// The group asks for snapshots for these followers.
    pub(crate) fn send_snapshots(
        &mut self,
        group: GroupId,
        followers: impl Iterator<Item = ReplicaId>,
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        for to in followers {
            let Some(node) = replica.nodes.get(&to).copied() else { continue };
            if !replica.snapshots_in_flight.contains(&to) {
                replica.snapshots_in_flight.push(to);
                effects.snapshots.push(SnapshotJob { group, node, to });
            }
        }
    }

    /// A transfer ended; the log need not be kept for it any more.
    pub(crate) fn on_snapshot_sent(
        &mut self,
        group: GroupId,
        to: ReplicaId,
        position: Option<LogPosition>,
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        replica.snapshots_in_flight.retain(|other| *other != to);
        self.step_group(group, CoreEvent::SnapshotSent { to, position }, effects);
    }

    /// A whole snapshot lies ready beside the present state.
    pub(crate) fn on_snapshot_offered(
        &mut self,
        group: GroupId,
        ticket: u64,
        offered: Applied,
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return effects.installs.push((ticket, false));
        };
        let is_newer = offered.index > replica.applied().0;
        if !is_newer || replica.install != Install::None || replica.core.is_leader() {
            return effects.installs.push((ticket, false));
        }
        replica.install = Install::Offered(ticket);
        self.answer_install(group, effects);
    }

    /// Allows the switch once nothing of the old state is on its way to the engine.
    pub(crate) fn answer_install(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let Install::Offered(ticket) = replica.install else { return };
        if replica.flush.is_quiet() {
            replica.install = Install::Switching;
            effects.installs.push((ticket, true));
        }
    }

    /// The engine has switched: so do the state and the log.
    pub(crate) fn on_snapshot_installed(&mut self, group: GroupId, applied: Applied, effects: &mut Effects) {
        let now = self.now;
        let position =
            LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum };
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if let Err(error) = replica.keyspace.reload() {
            effects.fatal = Some(format!("group {group}: an installed snapshot cannot be opened: {error}"));
            return;
        }
        replica.install = Install::None;
        replica.unapplied.retain(|entry| entry.index > position.index);
        replica.applied_term = position.term;
        replica.clock = GroupClock::new(applied.stamp_ms, now);
        replica.give_up_proposals(effects);
        replica.board.set_applied(position.index.0);
        tracing::info!(group = group.0, index = position.index.0, "installed a snapshot");
        self.restart_flush_at(group, position, effects);
        self.step_group(group, CoreEvent::SnapshotInstalled { position }, effects);
        self.refresh_members();
        self.touch(group);
    }
}
