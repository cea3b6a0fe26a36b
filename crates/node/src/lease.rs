//! Expiry: the leader proposes what its group's clock says is over; every replica checks it against the entry's stamp. Where nothing else is
//! written the leader logs that stamp alone, now and then.

use hadron_consensus::{GroupId, Time};
use hadron_keyspace::Command;

use crate::envelope::Origin;
use crate::event::Effects;
use crate::groups::Replica;
use crate::node::Node;

/// Microseconds before an expiry that was proposed and has not been applied is proposed again.
const EXPIRY_RETRY_US: u64 = 1_000_000;

impl Node {
    /// Leader: proposes the expiry of leases whose time has come, unless it would refuse to let them live.
    pub(crate) fn maybe_expire_leases(&mut self, group: GroupId, effects: &mut Effects) {
        let (now, limit) = (self.now, self.config.limits.expiries_per_entry);
        let Some(replica) = self.replicas.get(&group) else { return };
        if replica.expiry_deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let is_full = self.is_full_of_log(replica);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if is_full {
            replica.expiry_pending_until = Some(now.plus_micros(EXPIRY_RETRY_US));
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

    /// Leader: logs what the group's clock shows, for those who lead next or follow anew. There is nothing else in the entry.
    pub(crate) fn maybe_log_clock(&mut self, group: GroupId, effects: &mut Effects) {
        let (now, interval_us) = (self.now, self.config.limits.stamp_interval_us);
        let Some(replica) = self.replicas.get(&group) else { return };
        if replica.stamp_deadline(interval_us).is_none_or(|deadline| deadline > now) {
            return;
        }
        if !self.is_full_of_log(replica) {
            self.propose_entry(group, Vec::new(), effects);
        } else if let Some(replica) = self.replicas.get_mut(&group) {
            replica.stamped_at = now;
        }
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

    /// When the clock is to be logged, if this replica leads and any lease exists.
    pub(crate) fn stamp_deadline(&self, interval_us: u64) -> Option<Time> {
        let counts = self.core.is_leader() && self.keyspace.next_expiry().is_some();
        counts.then(|| self.stamped_at.plus_micros(interval_us))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::mem::take;

    use hadron_consensus::DEFAULT_GROUP;
    use hadron_proto::etcdserverpb as pb;

    use super::*;
    use crate::event::{Event, Failure, Reply};
    use crate::node::tests::leading;

    /// Does what there is to do but flushes; the replies.
    fn settle(node: &mut Node, now: Time, effects: &mut Effects) -> Vec<(u64, Reply)> {
        for _ in 0..3 {
            node.settle(now, effects);
            node.step(now, Event::LogDurable { sequence: effects.log_sequence }, effects);
        }
        take(&mut effects.replies)
    }

    fn ask(node: &mut Node, now: Time, token: u64, command: &Command, effects: &mut Effects) {
        node.step(now, Event::Write { token, group: DEFAULT_GROUP, command: command.to_bytes() }, effects);
    }

    /// A leader, which granted lease 7 of ten seconds.
    fn with_lease() -> (Node, Effects) {
        let mut node = leading();
        let mut effects = Effects::default();
        let grant = Command::LeaseGrant(pb::LeaseGrantRequest { id: 7, ttl: 10 });
        ask(&mut node, Time(10), 1, &grant, &mut effects);
        settle(&mut node, Time(10), &mut effects);
        (node, effects)
    }

    /// While its engine stood still a leader refused what would have let leases live, and had them end all the same.
    #[test]
    fn a_leader_that_is_full_lets_leases_live() {
        let mut node = leading();
        let mut effects = Effects::default();
        let second = |number: u64| Time(10).plus_micros(number * 1_000_000);
        node.config.limits.flush_bytes = 1;
        let grant = Command::LeaseGrant(pb::LeaseGrantRequest { id: 7, ttl: 10 });
        ask(&mut node, second(0), 1, &grant, &mut effects);
        assert!(matches!(settle(&mut node, second(0), &mut effects)[..], [(1, Reply::Written { .. })]));
        // The engine holds on to what it was given.
        node.config.limits.unflushed_bytes = 1;
        let jobs = take(&mut effects.flushes);
        assert!(!jobs.is_empty());

        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        ask(&mut node, second(9), 2, &Command::Put(put), &mut effects);
        ask(&mut node, second(9), 3, &Command::LeaseKeepAlive(vec![7]), &mut effects);
        let replies = settle(&mut node, second(9), &mut effects);
        assert_eq!(replies, [(2, Reply::Failed(Failure::Busy))]);
        settle(&mut node, second(12), &mut effects);
        assert!(effects.flushes.is_empty());

        for job in jobs {
            node.step(second(12), Event::Flushed { group: job.group, flush: job.flush }, &mut effects);
        }
        node.config.limits.unflushed_bytes = 1 << 20;
        let replies = settle(&mut node, second(12), &mut effects);
        assert!(matches!(replies[..], [(3, Reply::Written { .. })]), "{replies:?}");
        let keyspace = &node.replicas[&DEFAULT_GROUP].keyspace;
        assert_eq!((keyspace.leases(), keyspace.next_expiry()), (vec![7], Some(19_000)));
    }

    /// All time in which nothing was written was forgotten when another replica led, or a follower was started anew: leases lived that much longer, and
    /// had that much more time left for whoever asked.
    #[test]
    fn the_clock_is_logged_as_long_as_there_are_leases() {
        let (mut node, mut effects) = with_lease();
        node.config.limits.stamp_interval_us = 2_000_000;
        let second = |number: u64| Time(10).plus_micros(number * 1_000_000);
        let logged = |node: &Node| {
            let replica = &node.replicas[&DEFAULT_GROUP];
            (replica.core.last().0, replica.last_stamp_ms())
        };
        let (before, _) = logged(&node);
        settle(&mut node, second(1), &mut effects);
        assert_eq!(logged(&node).0, before);
        for (number, wanted) in [(2, 1), (3, 1), (4, 2), (5, 2), (8, 3)] {
            node.step(second(number), Event::Timer, &mut effects);
            settle(&mut node, second(number), &mut effects);
            assert_eq!(logged(&node).0, before + wanted, "after {number} s");
        }
        let replica = &node.replicas[&DEFAULT_GROUP];
        assert_eq!((logged(&node).1, replica.keyspace.applied().stamp_ms), (8_000, 8_000));
        assert_eq!(replica.keyspace.leases(), [7]);

        // Once it has ended there is nothing to log any more.
        for number in [10, 12, 14] {
            node.step(second(number), Event::Timer, &mut effects);
            settle(&mut node, second(number), &mut effects);
        }
        assert_eq!(logged(&node).0, before + 4, "its end");
    }

    /// They may be all that goes into a log that nothing can be cut from, and all groups need its room.
    #[test]
    fn keep_alives_of_a_group_that_is_full_leave_room_in_the_log() {
        let (mut node, mut effects) = with_lease();
        node.config.limits.unflushed_bytes = 1;
        let mut refused = false;
        node.config.limits.node_log_bytes = 8 << 10;
        for token in 2..1_000 {
            ask(&mut node, Time(20), token, &Command::LeaseKeepAlive(vec![7]), &mut effects);
            let replies = settle(&mut node, Time(20), &mut effects);
            refused |= replies.contains(&(token, Reply::Failed(Failure::Busy)));
        }
        assert!(refused && node.log_bytes_free() > 0);
    }

    /// Neither is in the log, which has no room.
    #[test]
    fn a_leader_without_room_in_its_log_ends_no_leases() {
        let (mut node, mut effects) = with_lease();
        let now = Time(10).plus_micros(20_000_000);
        let room = std::mem::replace(&mut node.config.limits.node_log_bytes, 0);
        ask(&mut node, now, 2, &Command::LeaseKeepAlive(vec![7]), &mut effects);
        let replies = settle(&mut node, now, &mut effects);
        assert_eq!(replies, [(2, Reply::Failed(Failure::Busy))]);
        assert_eq!(node.replicas[&DEFAULT_GROUP].keyspace.leases(), [7]);
        node.config.limits.node_log_bytes = room;
        let now = now.plus_micros(EXPIRY_RETRY_US);
        node.step(now, Event::Timer, &mut effects);
        settle(&mut node, now, &mut effects);
        assert!(node.replicas[&DEFAULT_GROUP].keyspace.leases().is_empty());
    }
}
