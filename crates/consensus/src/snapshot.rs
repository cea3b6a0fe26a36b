//! Snapshots, as far as the log is concerned. What they contain and how they travel is the driver's business: a leader
//! says who needs one ([`Effects::snapshots`](crate::Effects::snapshots)), hears how sending it ended, and a follower hears that its state
//! machine was replaced.

use crate::entry::LogPosition;
use crate::event::{Divergence, Effects};
use crate::group::Group;
use crate::ids::{Index, ReplicaId};
use crate::membership::Configuration;
use crate::progress::ProgressState;
use crate::role::RoleState;

impl Group {
    /// The state machine has everything up to `index` durably: the log no longer needs it.
    pub(crate) fn on_compact(&mut self, index: Index) {
        let index = index.min(self.applied);
        if index > self.log.floor().index {
            self.log.compact(index);
            self.persistence.covered(index);
        }
    }

    /// The state machine was replaced. The rest of the log stays if it continues the snapshot; otherwise it is of
    /// a leader that lost, and goes.
    pub(crate) fn on_snapshot_installed(
        &mut self,
        position: LogPosition,
        configuration: Configuration,
        effects: &mut Effects,
    ) {
        if position.index < self.log.floor().index || position.index < self.applied {
            return;
        }
        match self.log.position_at(position.index) {
            Some(ours) if ours == position => {
                self.log.compact(position.index);
                self.persistence.covered(position.index);
            }
            ours => {
                if let Some(ours) = ours.filter(|ours| ours.term == position.term) {
                    let (expected, found) = (position.checksum, ours.checksum);
                    let index = position.index;
                    effects.divergence = Some(Divergence { replica: self.config.id, index, expected, found });
                }
                self.log.restart_at(position);
                self.persistence.restarted(position.index);
                self.restart_membership(configuration);
            }
        }
        if position.term > self.hard_state.term {
            // The log's terms never exceed the replica's own; it has certainly not voted in that one.
            self.become_follower(position.term, None, effects);
        }
        self.applied = position.index;
        self.delivered = self.delivered.max(position.index);
        self.hard_state.commit = self.hard_state.commit.max(position.index);
        self.membership.committed(self.hard_state.commit);
        match &mut self.role {
            RoleState::Follower(follower) => {
                // What a snapshot contains is committed, so the leader has the same.
                follower.verified = follower.verified.min(self.log.last().index).max(position.index);
            }
            // Elected while its state machine was being replaced.
            RoleState::Leader(leader) => {
                let waiting = self.log.entries_from(self.hard_state.commit.next());
                leader.uncommitted_bytes = waiting.map(|entry| entry.data.len()).sum();
            }
            RoleState::Candidate(_) => {}
        }
    }

    /// Sending a snapshot ended.
    pub(crate) fn on_snapshot_sent(&mut self, to: ReplicaId, position: Option<LogPosition>) {
        let last = self.log.last().index;
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress_of(to) else { return };
        let installed = position.filter(|position| position.index <= last);
        if let Some(position) = installed {
            progress.matched = progress.matched.max(position.index);
        }
        if progress.state == ProgressState::Snapshot {
            progress.become_probe(progress.matched.next());
            // After a failure it has to show that it is there before the next attempt.
            progress.responsive = installed.is_some();
        }
    }
}
