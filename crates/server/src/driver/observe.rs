//! What people and dashboards see of the node beside what the services report: elections, shares, lags.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::{GroupId, NodeId, ReplicaId};
use hadron_node::{ElectionRecord, GroupBoard, PeerMessage};
use hadron_proto::etcdserverpb::AlarmType;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::handle::Handle;
use crate::api::Backend as _;
use crate::metrics::Metrics;
use crate::process;
use crate::transport::Messages;

/// How often the metrics are brought up to date.
const INTERVAL: Duration = Duration::from_secs(1);

/// The messages of a frame. From the first one that cannot be understood, the rest is passed over: the sender is a
/// newer version or broken, and either way Raft copes with loss.
pub(super) fn decode(from: NodeId, messages: Messages) -> Vec<PeerMessage> {
    let mut decoded = Vec::new();
    for message in messages {
        let message = message.map_err(|error| error.to_string());
        match message.and_then(|bytes| PeerMessage::decode(bytes).map_err(|error| error.to_string())) {
            Ok(message) => decoded.push(message),
            Err(error) => {
                warn!(peer = %format_args!("{:x}", from.0), error, "cannot understand a message");
                break;
            }
        }
    }
    decoded
}

/// Keeps the metrics up to date, for ever.
pub(super) async fn run(handle: Handle, metrics: Arc<Metrics>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = HashMap::new();
    let mut groups = Groups::default();
    process::begin(&metrics);
    loop {
        ticks.tick().await;
        process::show(&metrics);
        metrics.client_requests_waiting.set_integer(handle.waiting_requests() as u64);
        let elections = handle.board().elections();
        for record in &elections {
            let counted = seen.entry((record.group, record.candidate)).or_insert(0);
            if record.term.0 > *counted {
                *counted = record.term.0;
                tell_election(record, &metrics);
            }
        }
        show_vote_shares(&elections, &metrics);
        let own = handle.identity().member_id;
        let member = handle.board().pool().roster.member(own.0).cloned().unwrap_or_default();
        groups.show(&handle.board().groups(), ReplicaId(member.replica), &metrics);
    }
}

fn tell_election(record: &ElectionRecord, metrics: &Metrics) {
    let group = record.group.0;
    let outcome = if record.won { "won" } else { "split" };
    metrics.elections.with(&[&group.to_string(), outcome]).inc();
    for (candidate, votes) in &record.votes {
        let outcome = match record.won {
            true if *candidate == record.candidate => "won",
            true => "lost",
            false => "split",
        };
        let (share, candidate) = (record.share(*candidate), hex(*candidate));
        info!(group, term = record.term.0, candidate, votes, share, outcome, "election");
    }
}

/// The last election of each group: of the newest term, and there the one that was won, if one was.
fn last_elections(elections: &[ElectionRecord]) -> BTreeMap<GroupId, &ElectionRecord> {
    let mut last: BTreeMap<GroupId, &ElectionRecord> = BTreeMap::new();
    for record in elections {
        let kept = last.entry(record.group).or_insert(record);
        if (record.term, record.won) > (kept.term, kept.won) {
            *kept = record;
        }
    }
    last
}

fn show_vote_shares(elections: &[ElectionRecord], metrics: &Metrics) {
    let shares = last_elections(elections).into_iter().flat_map(|(group, record)| {
        let share = move |candidate: &NodeId| (label(group, *candidate), record.share(*candidate));
        record.votes.keys().map(share)
    });
    metrics.election_vote_share.replace(shares);
}

/// What is shown of the groups. A group that sleeps is left as it is shown: there may be thousands.
#[derive(Default)]
struct Groups(BTreeMap<GroupId, Look>);

/// All of a sleeping group that its metrics are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    /// Which replica: another one of the group begins anew.
    replica: usize,
    is_asleep: bool,
    position: (u64, u64, u64, u64),
    digests: (u64, u64),
    /// Which of its replicas this node's is.
    own: ReplicaId,
}

impl Look {
    fn at(group: &Arc<GroupBoard>, own: ReplicaId) -> Look {
        let digests = group.digest_comparisons();
        Look {
            replica: Arc::as_ptr(group).addr(),
            is_asleep: group.is_asleep(),
            position: (group.term().0, group.commit(), group.applied(), group.keyspace.flushed_index()),
            digests: (digests.same, digests.different),
            own,
        }
    }
}

impl Groups {
    /// Shows the groups. Returns how many of them had to be looked at.
    fn show(&mut self, groups: &[(GroupId, Arc<GroupBoard>)], own: ReplicaId, metrics: &Metrics) -> usize {
        let mut looked_at = 0;
        for (id, group) in groups {
            let look = Look::at(group, own);
            if !look.is_asleep || self.0.get(id) != Some(&look) {
                looked_at += 1;
                show_group(*id, group, own, metrics);
                self.0.insert(*id, look);
            }
        }
        // In the order of their ids.
        let is_here = |id: &GroupId| groups.binary_search_by_key(id, |(group, _)| *group).is_ok();
        self.0.retain(|id, _| is_here(id) || forget_group(*id, metrics));
        metrics.groups_asleep.set_integer(self.0.values().filter(|look| look.is_asleep).count() as u64);
        metrics.lease_expired.set_total(groups.iter().map(|(_, group)| group.leases_expired()).sum());
        looked_at
    }
}

fn show_group(id: GroupId, group: &GroupBoard, own: ReplicaId, metrics: &Metrics) {
    let name = id.0.to_string();
    let shares = group.shares();
    metrics.log_share.replace_of(&name, shares.iter().map(|it| (label(id, it.node), it.share)));
    let lags = shares.iter().map(|it| (label(id, it.node), it.lag as f64));
    metrics.replication_lag_entries.replace_of(&name, lags);
    let alarms = group.keyspace.alarms().into_iter().filter(|alarm| alarm.alarm() == AlarmType::Corrupt);
    let corrupt = alarms.map(|alarm| (label(id, NodeId(alarm.member_id)), 1.0));
    metrics.corrupt_replicas.replace_of(&name, corrupt);
    let members = group.configuration();
    let votes = !members.is_joint() && members.voters.contains(&own);
    metrics.replica_votes.replace_of(&name, [(vec![name.clone()], f64::from(votes))]);
    show_counts(&name, group, metrics);
}

/// False: nothing is shown of it any more.
fn forget_group(id: GroupId, metrics: &Metrics) -> bool {
    let name = id.0.to_string();
    for family in [
        &metrics.log_share,
        &metrics.replication_lag_entries,
        &metrics.corrupt_replicas,
        &metrics.replica_votes,
        &metrics.unflushed_bytes,
        &metrics.unflushed_entries,
    ] {
        family.replace_of(&name, []);
    }
    false
}

fn show_counts(id: &str, group: &GroupBoard, metrics: &Metrics) {
    let digests = group.digest_comparisons();
    metrics.digest_checks.with(&[id, "same"]).set_total(digests.same);
    metrics.digest_checks.with(&[id, "different"]).set_total(digests.different);
    let backlog = group.applied().saturating_sub(group.keyspace.flushed_index());
    metrics.unflushed_bytes.with(&[id]).set_integer(group.keyspace.unflushed_bytes() as u64);
    metrics.unflushed_entries.with(&[id]).set_integer(backlog);
}

/// Values of the labels of a family by group and node.
fn label(group: GroupId, node: NodeId) -> Vec<String> {
    vec![group.0.to_string(), hex(node)]
}

fn hex(node: NodeId) -> String {
    format!("{:x}", node.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_consensus::{Term, Time};
    use hadron_keyspace::Keyspace;
    use hadron_storage::engine::ModelEngine;

    use super::*;

    /// All groups used to be looked at every second, whether anything happened in them or not.
    #[test]
    fn groups_that_sleep_are_left_as_they_are_shown() {
        let keyspace =
            |group| Keyspace::open(Arc::new(ModelEngine::new()), group, Default::default()).unwrap();
        let board = |group| (GroupId(group), Arc::new(GroupBoard::new(keyspace(group))));
        let mut boards: Vec<_> = (1..=3).map(board).collect();
        let (metrics, mut groups) = (Metrics::default(), Groups::default());
        let mut show = |boards: &[_]| groups.show(boards, ReplicaId(1), &metrics);
        assert_eq!((show(&boards), show(&boards)), (3, 3), "who is awake is looked at");
        boards.iter().for_each(|(_, board)| board.set_asleep(true));
        assert_eq!((show(&boards), show(&boards)), (3, 0), "once more, and then no more");
        assert!(metrics.render().contains("hadron_groups_asleep 3\n"));
        assert_eq!(metrics.render().matches("hadron_replica_votes{").count(), 3);
        boards[0].1.set_asleep(false);
        boards[1] = board(2);
        boards.pop();
        assert_eq!(show(&boards), 2, "one woke up, and one is another replica");
        let page = metrics.render();
        assert!(page.contains("hadron_groups_asleep 0\n"));
        assert_eq!(page.matches("hadron_replica_votes{").count(), 2, "nothing is shown of what is gone");
    }

    fn election(group: u64, term: u64, candidate: u64, won: bool, votes: &[(u64, u64)]) -> ElectionRecord {
        ElectionRecord {
            group: GroupId(group),
            term: Term(term),
            candidate: NodeId(candidate),
            won,
            votes: votes.iter().map(|(node, votes)| (NodeId(*node), *votes)).collect(),
            at: Time(0),
        }
    }

    /// Candidates of earlier elections used to stay on the page beside those of the last one.
    #[test]
    fn only_the_last_election_of_each_group_is_shown() {
        let metrics = Metrics::default();
        let elections = [
            election(1, 2, 1, true, &[(1, 3)]),
            election(0, 2, 3, true, &[(3, 2)]),
            election(1, 5, 2, true, &[(2, 2), (3, 1)]),
            election(1, 5, 3, false, &[(3, 1)]),
        ];
        show_vote_shares(&elections[..1], &metrics);
        show_vote_shares(&elections, &metrics);
        let page = metrics.render();
        let shares: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("hadron_election_vote_share")).collect();
        assert_eq!(
            shares,
            [
                r#"{group="0",candidate="3"} 1"#,
                &format!(r#"{{group="1",candidate="2"}} {}"#, 2.0 / 3.0),
                &format!(r#"{{group="1",candidate="3"}} {}"#, 1.0 / 3.0),
            ]
        );
    }
}
