//! What people and dashboards see of the node beside what the services report: elections, shares, lags.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::{GroupId, NodeId, ReplicaId};
use hadron_node::{ElectionRecord, GroupBoard, PeerMessage};
use hadron_proto::etcdserverpb::AlarmType;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::handle::Handle;
use super::scrub::Scrubber;
use crate::api::Backend as _;
use crate::metrics::Metrics;
use crate::process;
use crate::transport::Messages;

/// How often the metrics are brought up to date.
const INTERVAL: Duration = Duration::from_secs(1);

/// The messages of a frame, but for those that cannot be understood: the sender is a newer version or broken, and either way Raft copes with
/// loss. The others, which would be lost with them each time, may be of other groups. Where a length cannot be right the frame ends.
pub(super) fn decode(from: NodeId, messages: Messages) -> Vec<PeerMessage> {
    let mut decoded = Vec::new();
    let (mut passed_over, mut last_error) = (0, None);
    for message in messages {
        let message = message.map_err(|error| error.to_string());
        match message.and_then(|bytes| PeerMessage::decode(bytes).map_err(|error| error.to_string())) {
            Ok(message) => decoded.push(message),
            Err(error) => {
                passed_over += 1;
                last_error = Some(error);
            }
        }
    }
    if let Some(error) = last_error {
        let peer = format_args!("{:x}", from.0);
        warn!(%peer, messages = passed_over, error, "cannot understand a message");
    }
    decoded
}

/// Keeps the metrics up to date, for ever.
pub(super) async fn run(handle: Handle, scrubber: Scrubber, metrics: Arc<Metrics>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = HashMap::new();
    process::begin(&metrics);
    loop {
        ticks.tick().await;
        process::show(&metrics);
        // What a client could not read nobody else need find out first.
        let groups = handle.board().groups();
        let suspects = groups.iter().filter(|(_, group)| group.keyspace.take_suspicion());
        suspects.for_each(|(group, _)| scrubber.suspect(*group));
        metrics.client_requests_waiting.set_integer(handle.waiting_requests() as u64);
        let (board, elections) = (handle.board(), handle.board().elections());
        if tell_elections(&elections, &mut told, &metrics) {
            // Not each time: there may be thousands of groups, and nothing comes up in between.
            forget_elections(|group| board.group(group).is_some(), &elections, &mut told, &metrics);
        }
    }
}

/// The newest term of which each candidate's election was told.
type Told = HashMap<(GroupId, NodeId), u64>;

/// Tells those of `elections` that were not told yet. True if there were any.
fn tell_elections(elections: &[ElectionRecord], told: &mut Told, metrics: &Metrics) -> bool {
    let mut any = false;
    for record in elections {
        let newest = told.entry((record.group, record.candidate)).or_insert(0);
        if record.term.0 > *newest {
            *newest = record.term.0;
            tell_election(record, metrics);
            any = true;
        }
    }
    any
}

/// Forgets groups that have no replica here any more, since their numbers are never used again. Of elections that are remembered it
/// stays known that they were told.
fn forget_elections(
    is_here: impl Fn(GroupId) -> bool,
    elections: &[ElectionRecord],
    told: &mut Told,
    metrics: &Metrics,
) {
    let remembered: HashSet<_> = elections.iter().map(|record| (record.group, record.candidate)).collect();
    told.retain(|key, _| is_here(key.0) || remembered.contains(key));
    let group = |labels: &[String]| labels.first()?.parse().ok().map(GroupId);
    metrics.elections.retain(|labels| group(labels).is_some_and(&is_here));
}

/// What is told of all groups, for a page that somebody wants to see now.
pub(super) fn show(handle: &Handle, metrics: &Metrics) {
    let groups = handle.board().groups();
    show_vote_shares(&handle.board().elections(), metrics);
    show_groups(&groups, metrics);
    metrics.unusable_replicas.set_integer(handle.board().unusable().len() as u64);
    show_votes(handle, &groups, metrics);
    show_loads(handle, metrics);
}

/// W and B of each node.
fn show_loads(handle: &Handle, metrics: &Metrics) {
    let nodes = handle.standing().assessment.nodes;
    metrics.node_load.replace(nodes.iter().map(|node| (vec![hex(node.node)], node.load)));
    metrics.node_load_share.replace(nodes.iter().map(|node| (vec![hex(node.node)], node.share)));
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

fn show_groups(groups: &[(GroupId, Arc<GroupBoard>)], metrics: &Metrics) {
    let (mut shares, mut lags, mut corrupt) = (Vec::new(), Vec::new(), Vec::new());
    for (id, group) in groups {
        for share in group.shares() {
            shares.push((label(*id, share.node), share.share));
            lags.push((label(*id, share.node), share.lag as f64));
        }
        let alarms = group.keyspace.alarms().into_iter().filter(|alarm| alarm.alarm() == AlarmType::Corrupt);
        corrupt.extend(alarms.map(|alarm| (label(*id, NodeId(alarm.member_id)), 1.0)));
    }
    metrics.log_share.replace(shares);
    metrics.replication_lag_entries.replace(lags);
    metrics.corrupt_replicas.replace(corrupt);
    metrics.lease_expired.set_total(groups.iter().map(|(_, group)| group.leases_expired()).sum());
    let asleep = groups.iter().filter(|(_, group)| group.is_asleep()).count();
    metrics.groups_asleep.set_integer(asleep as u64);
    show_counts(groups, metrics);
}

fn show_counts(groups: &[(GroupId, Arc<GroupBoard>)], metrics: &Metrics) {
    let (mut checks, mut bytes, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (id, group) in groups {
        let (id, digests) = (id.0.to_string(), group.digest_comparisons());
        checks.push((vec![id.clone(), "same".to_owned()], digests.same));
        checks.push((vec![id.clone(), "different".to_owned()], digests.different));
        bytes.push((vec![id.clone()], group.keyspace.unflushed_bytes() as f64));
        let backlog = group.applied().saturating_sub(group.keyspace.flushed_index());
        entries.push((vec![id], backlog as f64));
    }
    metrics.digest_checks.replace(checks);
    metrics.unflushed_bytes.replace(bytes);
    metrics.unflushed_entries.replace(entries);
}

fn show_votes(handle: &Handle, groups: &[(GroupId, Arc<GroupBoard>)], metrics: &Metrics) {
    let own = handle.identity().member_id;
    let member = handle.board().pool().roster.member(own.0).cloned().unwrap_or_default();
    let votes = groups.iter().map(|(id, group)| {
        // Replicas are numbered within their group; those of the groups that follow the members are the members'.
        let placed = handle
            .with_catalog(|catalog| catalog.placement(*id).map(|placement| placement.record.replica_on(own)));
        let replica = placed.unwrap_or(Some(ReplicaId(member.replica)));
        let members = group.configuration();
        let votes = !members.is_joint() && replica.is_some_and(|replica| members.voters.contains(&replica));
        (vec![id.0.to_string()], f64::from(votes))
    });
    metrics.replica_votes.replace(votes);
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

    use bytes::{BufMut, BytesMut};
    use hadron_consensus::{Term, Time};

    use super::*;

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

    /// With one message that only a newer version knows, all that came after it in its frame was lost, of every group, each time.
    #[test]
    fn a_message_that_is_not_known_costs_no_other() {
        let message = |node| PeerMessage::HandOver { group: GroupId(1), to: NodeId(node) };
        let mut body = BytesMut::new();
        let mut put = |bytes: &[u8]| {
            body.put_u32_le(bytes.len() as u32);
            body.put_slice(bytes);
        };
        let bytes_of = |message: PeerMessage| {
            let mut bytes = BytesMut::new();
            message.encode(&mut bytes);
            bytes
        };
        put(&bytes_of(message(1)));
        put(&[250, 1, 2, 3]);
        put(&bytes_of(message(2)));
        body.put_u32_le(1_000);
        body.put_slice(&bytes_of(message(3)));
        assert_eq!(decode(NodeId(9), Messages::new(body.freeze())), [message(1), message(2)]);
    }

    /// Every keyspace that had ever been here stayed on the page, and in memory, for as long as the process ran.
    #[test]
    fn elections_of_groups_that_are_gone_are_forgotten_and_not_told_again() {
        let (metrics, mut told) = (Metrics::default(), Told::new());
        let groups = || {
            let page = metrics.render();
            let counts = page.lines().filter_map(|line| line.strip_prefix("hadron_elections_total{group="));
            counts.map(str::to_owned).collect::<Vec<_>>()
        };
        let elections = [
            election(1, 2, 1, true, &[(1, 3)]),
            election(7, 1, 1, true, &[(1, 1)]),
            election(7, 2, 2, false, &[(2, 1)]),
        ];
        assert!(tell_elections(&elections, &mut told, &metrics));
        forget_elections(|_| true, &elections, &mut told, &metrics);
        assert_eq!(
            groups(),
            [r#""1",outcome="won"} 1"#, r#""7",outcome="split"} 1"#, r#""7",outcome="won"} 1"#]
        );
        let is_here = |group| group == GroupId(1);
        forget_elections(is_here, &elections, &mut told, &metrics);
        assert!(!tell_elections(&elections, &mut told, &metrics), "they are still remembered");
        assert_eq!(groups(), [r#""1",outcome="won"} 1"#]);
        // Newer ones take the place of those of the seventh group.
        forget_elections(is_here, &[election(1, 3, 2, true, &[(2, 3)])], &mut told, &metrics);
        assert_eq!(told, Told::from([((GroupId(1), NodeId(1)), 2)]));
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
