//! Changes of the pool's members: checked here, decided by a txn on the root group's roster, carried out by the leaders
//! of the groups (`hadron_node`'s `reconfigure`).
//!
//! A call returns once every group has been changed, as far as this node has applied it. A new voter follows as a learner
//! until it has caught up, so adding one that is not running yet does not cost the quorum that it costs in etcd; etcd's
//! checks are made all the same (`--strict-reconfig-check`).

use std::collections::BTreeSet;
use std::time::Duration;

use hadron_balance::{GroupView, View};
use hadron_consensus::{DEFAULT_GROUP, NodeId, ROOT_GROUP};
use hadron_keyspace::Response;
use hadron_node::{Catalog, KeyspaceRecord, Member, Pool, Roster, RosterError};
use rand::Rng as _;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::backend::{Backend, Unavailable, Written};
use super::context::{Context, mismatch};
use super::error::EtcdError;

/// Between two looks at whether a change has been carried out.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often another change may come first before a change gives up.
const TRIES_MAX: usize = 16;
/// Between two looks at whether learners have caught up.
const PROMOTE_INTERVAL: Duration = Duration::from_secs(1);
/// A learner may be promoted when it lacks at most this part of the leader's log. As in etcd.
const LEARNER_LACKS_MAX: f64 = 0.1;

/// What may be changed, and how carefully.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipOptions {
    /// Refuse changes that could cost the quorum.
    pub is_strict: bool,
    /// Learners at a time.
    pub learners_max: usize,
    /// The leader lets learners vote once they have caught up, without being asked.
    pub promotes: bool,
    /// How long a change may take to be carried out.
    pub timeout: Duration,
}

impl Default for MembershipOptions {
    /// etcd's defaults.
    fn default() -> MembershipOptions {
        MembershipOptions {
            is_strict: true,
            learners_max: 1,
            promotes: false,
            timeout: Duration::from_secs(7),
        }
    }
}

impl From<RosterError> for EtcdError {
    fn from(error: RosterError) -> EtcdError {
        match error {
            RosterError::IdExists => EtcdError::MemberExists,
            RosterError::PeerUrlExists => EtcdError::PeerUrlExists,
            RosterError::NotFound => EtcdError::MemberNotFound,
            RosterError::TooManyLearners => EtcdError::TooManyLearners,
            RosterError::NotLearner => EtcdError::MemberNotLearner,
        }
    }
}

impl<B: Backend> Context<B> {
    /// Adds a member and returns it.
    pub(super) async fn add_member(&self, urls: &[String], is_learner: bool) -> Result<Member, Status> {
        let urls = peer_urls(urls)?;
        let learners_max = self.membership.learners_max;
        let id = rand::rng().random_range(1..=u64::MAX);
        let add = |roster: &mut Roster, pool: &Pool| {
            roster.add(id, urls.clone(), is_learner, learners_max).map_err(EtcdError::from)?;
            Ok(self.check_add(pool, is_learner)?)
        };
        let pool = self.change_roster(add).await?;
        Ok(pool.roster.member(id).cloned().unwrap_or_default())
    }

    /// Takes a member out.
    pub(super) async fn remove_member(&self, id: u64) -> Result<(), Status> {
        let remove = |roster: &mut Roster, pool: &Pool| {
            let member = roster.remove(id).map_err(EtcdError::from)?;
            if !member.is_learner {
                self.check_remove(pool, id)?;
            }
            self.check_keyspaces_without(id, roster)
        };
        self.change_roster(remove).await.map(drop)
    }

    /// Gives a member other peer URLs.
    pub(super) async fn update_member(&self, id: u64, urls: &[String]) -> Result<(), Status> {
        let urls = peer_urls(urls)?;
        let update =
            |roster: &mut Roster, _: &Pool| Ok(roster.update(id, urls.clone()).map_err(EtcdError::from)?);
        self.change_roster(update).await.map(drop)
    }

    /// Lets a learner vote that has caught up.
    pub(super) async fn promote_member(&self, id: u64) -> Result<(), Status> {
        self.backend.read_barrier(ROOT_GROUP).await?;
        self.backend.pool().roster.clone().promote(id).map_err(EtcdError::from)?;
        self.check_caught_up(id).await?;
        let promote = |roster: &mut Roster, pool: &Pool| {
            roster.promote(id).map_err(EtcdError::from)?;
            let (started, all) = self.started_voters(pool, None);
            Ok(self.require(started + 1 >= quorum(all + 1), EtcdError::MemberNotEnoughStarted)?)
        };
        self.change_roster(promote).await.map(drop)
    }

    /// Promotes learners that have caught up, while this node leads, for as long as it is polled.
    pub(super) async fn promote_learners(&self) {
        loop {
            sleep(PROMOTE_INTERVAL).await;
            let leader = self.backend.status(DEFAULT_GROUP).and_then(|status| status.leader);
            if leader != Some(self.backend.identity().member_id) {
                continue;
            }
            let pool = self.backend.pool();
            for learner in pool.roster.members.iter().filter(|member| member.is_learner) {
                // Refused until it has caught up, and whoever added it may have changed his mind.
                if self.promote_member(learner.id).await.is_ok() {
                    self.metrics.learner_promotions.inc();
                    tracing::info!(member_id = %format_args!("{:x}", learner.id), "promoted a learner that has caught up");
                }
            }
        }
    }

    /// Decides a change, and waits until the groups have been changed. `change` may be called several times.
    async fn change_roster(
        &self,
        change: impl Fn(&mut Roster, &Pool) -> Result<(), Status>,
    ) -> Result<std::sync::Arc<Pool>, Status> {
        for _ in 0..TRIES_MAX {
            self.backend.read_barrier(ROOT_GROUP).await?;
            let pool = self.backend.pool();
            let mut roster = pool.roster.clone();
            change(&mut roster, &pool)?;
            let Written { response, .. } = self.backend.write(ROOT_GROUP, pool.replace(&roster)).await?;
            let Ok(Response::Txn(response)) = response else { return Err(mismatch()) };
            if response.succeeded {
                let revision = response.header.map_or(0, |header| header.revision);
                return self.carried_out(revision).await;
            }
        }
        Err(Unavailable::Busy.into())
    }

    /// Waits for all groups; a node that was removed does not see it, and need not.
    async fn carried_out(&self, revision: i64) -> Result<std::sync::Arc<Pool>, Status> {
        let own = self.backend.identity().member_id.0;
        let done = async {
            loop {
                let pool = self.backend.pool();
                if self.backend.settled() >= revision || pool.roster.member(own).is_none() {
                    return pool;
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        let done = timeout(self.membership.timeout, done).await;
        done.map_err(|_| Unavailable::Timeout.into())
    }

    fn require(&self, holds: bool, otherwise: EtcdError) -> Result<(), EtcdError> {
        if holds || !self.membership.is_strict { Ok(()) } else { Err(otherwise) }
    }

    /// Voters that were ever started, and all; without one of them.
    fn started_voters(&self, pool: &Pool, without: Option<u64>) -> (usize, usize) {
        let members = pool.members();
        let voters = members.iter().filter(|member| !member.is_learner && Some(member.id) != without);
        let started = voters.clone().filter(|member| !member.name.is_empty());
        (started.count(), voters.count())
    }

    /// Voters that this node is connected with, itself included.
    fn connected_voters(&self, pool: &Pool) -> usize {
        let within_reach = self.within_reach();
        pool.roster.voters().filter(|member| within_reach.contains(&member.node())).count()
    }

    fn check_add(&self, pool: &Pool, is_learner: bool) -> Result<(), EtcdError> {
        let (started, voters) = self.started_voters(pool, None);
        let is_first = started == 1 && voters == 1;
        if !is_learner {
            let enough = is_first || started >= quorum(voters + 1);
            self.require(enough, EtcdError::MemberNotEnoughStarted)?;
        }
        let connected = self.connected_voters(pool);
        self.require(is_first || connected >= quorum(voters + 1), EtcdError::Unhealthy)
    }

    fn check_remove(&self, pool: &Pool, id: u64) -> Result<(), EtcdError> {
        let (started, rest) = self.started_voters(pool, Some(id));
        self.require(started >= quorum(rest), EtcdError::MemberNotEnoughStarted)?;
        let is_down = !self.within_reach().contains(&NodeId(id));
        // Who is down is not part of what makes the quorum now.
        let connected = self.connected_voters(pool).saturating_sub(1);
        self.require(is_down || connected >= quorum(rest), EtcdError::Unhealthy)
    }

    /// Refuses to take the majority of its replicas from a keyspace: who is removed ends soon, and never comes back.
    fn check_keyspaces_without(&self, id: u64, others: &Roster) -> Result<(), Status> {
        if !self.membership.is_strict {
            return Ok(());
        }
        let mut alive = self.within_reach();
        // Who was removed a moment ago may be alive yet, and ends soon.
        alive.retain(|node| others.member(node.0).is_some());
        let (view, _) = self.backend.outlook();
        let lost = self.backend.with_catalog(|catalog| lost_without(catalog, &view, NodeId(id), &alive));
        let Some(keyspace) = lost else { return Ok(()) };
        Err(Status::failed_precondition(format!(
            "keyspace {keyspace} would lose the majority of its replicas with member {id:x}, and is not rebuilt elsewhere yet: empty the \
             member first (`hadron ctl node remove {id:x}`), or delete the keyspace (`hadron ctl keyspace delete {keyspace}`)"
        )))
    }

    /// Refuses a learner that lacks much of a leader's log.
    async fn check_caught_up(&self, id: u64) -> Result<(), Status> {
        for group in [ROOT_GROUP, DEFAULT_GROUP] {
            let lags = self.backend.lags(group).await?;
            let lag = lags.iter().find(|(node, _)| node.0 == id).map(|(_, lag)| *lag);
            let last = self.backend.status(group).unwrap_or_default().commit.0;
            let lacks_max = (last as f64 * LEARNER_LACKS_MAX) as u64;
            if lag.is_none_or(|lag| lag > lacks_max) {
                return Err(EtcdError::LearnerNotReady.into());
            }
        }
        Ok(())
    }
}

/// A keyspace that would have no majority left on `others` without `node`.
fn lost_without(catalog: &Catalog, view: &View, node: NodeId, others: &BTreeSet<NodeId>) -> Option<String> {
    let is_lost = |keyspace: &&KeyspaceRecord| {
        let group = keyspace.group_id();
        let (Some(placement), Some(now)) = (catalog.placement(group), view.groups.get(&group)) else {
            return false;
        };
        takes_majority(now, placement.record.nodes().collect(), node, others)
    };
    catalog.keyspaces().find(is_lost).map(|keyspace| keyspace.name.clone())
}

/// Whether a group has no majority left on `others` without `node`, of the replicas that vote, or of those that shall (`wanted`): until a
/// newcomer has caught up those vote who did before.
fn takes_majority(
    group: &GroupView,
    wanted: BTreeSet<NodeId>,
    node: NodeId,
    others: &BTreeSet<NodeId>,
) -> bool {
    let is_left = |other: &&NodeId| {
        others.contains(other) && group.replica(**other).is_some_and(|replica| !replica.is_damaged)
    };
    let needs = |nodes: &BTreeSet<NodeId>| {
        nodes.contains(&node) && nodes.iter().filter(is_left).count() < quorum(nodes.len())
    };
    // What is told of the votes may be older than the catalog, where a node says that its replica is gone.
    let is_there = |node: &NodeId| wanted.contains(node) || group.leaving.contains(node);
    needs(&group.voters().filter(is_there).collect()) || needs(&wanted)
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Checks URLs as etcd does.
fn peer_urls(urls: &[String]) -> Result<Vec<String>, EtcdError> {
    let is_good = |url: &String| {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let port = rest.and_then(|rest| rest.rsplit_once(':')).map(|(_, port)| port);
        port.is_some_and(|port| port.parse::<u16>().is_ok())
    };
    let mut urls: Vec<String> = urls.iter().map(|url| url.trim().to_owned()).collect();
    urls.sort();
    if urls.is_empty() || !urls.iter().all(is_good) { Err(EtcdError::MemberBadUrls) } else { Ok(urls) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_balance::ReplicaView;

    use super::*;

    /// The replicas of a group, voters and learners, and whether it loses its majority without a node.
    #[test]
    fn who_is_needed_for_a_majority_is_seen_by_the_votes_too() {
        let nodes = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let group = |voters: &[u64], learners: &[u64], leaving: &[u64]| {
            let voters = voters.iter().map(|node| ReplicaView::voter(NodeId(*node)));
            let learners = learners.iter().map(|node| ReplicaView::learner(NodeId(*node), 5));
            let leaving = leaving.iter().copied().map(NodeId).collect();
            GroupView { replicas: voters.chain(learners).collect(), leaving, ..GroupView::default() }
        };
        let takes = |group: &GroupView, wanted: &[u64], node, others: &[u64]| {
            takes_majority(group, nodes(wanted), NodeId(node), &nodes(others))
        };
        let settled = group(&[1, 2, 3], &[], &[]);
        assert!(!takes(&settled, &[1, 2, 3], 1, &[2, 3, 4]));
        assert!(takes(&settled, &[1, 2, 3], 1, &[2, 4]), "3 is down, or was removed");
        assert!(!takes(&settled, &[1, 2, 3], 4, &[1]), "it has no replica there");
        // 1 was removed, 4 shall vote in its place and has yet to catch up.
        let moving = group(&[1, 2, 3], &[4], &[1]);
        assert!(takes(&moving, &[2, 3, 4], 2, &[3, 4, 5]));
        assert!(!takes(&moving, &[2, 3, 4], 2, &[1, 3, 4, 5]));
        // It is on its way from two replicas to one, which both are needed for.
        let shrinking = group(&[1, 2], &[], &[2]);
        assert!(takes(&shrinking, &[1], 2, &[1, 3]));
        let shrunk = group(&[1, 2], &[], &[]);
        assert!(!takes(&shrunk, &[1], 2, &[1, 3]), "its leader has not said so yet");
        let mut damaged = group(&[1, 2, 3], &[], &[]);
        damaged.replicas[2].is_damaged = true;
        assert!(takes(&damaged, &[1, 2, 3], 1, &[2, 3]));
    }

    #[test]
    fn urls_have_a_scheme_a_port_and_no_path() {
        let check = |urls: &[&str]| peer_urls(&urls.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(check(&["http://b:2", " http://a:1"]).unwrap(), ["http://a:1", "http://b:2"]);
        for bad in ["", "a:1", "ftp://a:1", "http://a", "http://a:x", "http://a:1/", "http://a:1/path"] {
            assert_eq!(check(&[bad]), Err(EtcdError::MemberBadUrls), "{bad}");
        }
        assert_eq!(check(&[]), Err(EtcdError::MemberBadUrls));
    }
}
