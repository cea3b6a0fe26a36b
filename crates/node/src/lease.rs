//! Expiry: the leader proposes what its group's clock says is over; every replica checks it against the entry's stamp.

use hadron_consensus::{GroupId, Time};
use hadron_keyspace::Command;

use crate::envelope::Origin;
use crate::event::Effects;
use crate::groups::Replica;
use crate::node::Node;

/// Microseconds before an expiry that was proposed and has not been applied is proposed again.
const EXPIRY_RETRY_US: u64 = 1_000_000;

impl Node {
    /// Leader: proposes the expiry of leases whose time has come.
    pub(crate) fn maybe_expire_leases(&mut self, group: GroupId, effects: &mut Effects) {
        let (now, limit) = (self.now, self.config.limits.expiries_per_entry);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.expiry_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let expired = replica.keyspace.expired_leases(replica.clock.now_ms(now), limit);
        if expired.is_empty() {
            return;
        }
        replica.expiry_pending_until = Some(now.plus_micros(EXPIRY_RETRY_US));
        let nobody = Origin { node: self.config.node, incarnation: self.config.incarnation, token: 0 };
        self.propose_entry(group, vec![(nobody, Command::LeaseExpire(expired).to_bytes())], effects);
    }
}

impl Replica {
    /// When the next expiry is to be proposed, if this replica leads and any lease exists.
    pub(crate) fn expiry_deadline(&self) -> Option<Time> {
        if !self.core.is_leader() {
            return None;
        }
        let expiry = self.clock.time_of(self.keyspace.next_expiry()?);
        Some(self.expiry_pending_until.map_or(expiry, |pending| expiry.max(pending)))
    }
}
