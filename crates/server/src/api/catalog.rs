//! Changes of the catalog: checked here, decided by a txn on the root group's keyspace (`hadron_node`'s `catalog`), carried out by the
//! nodes that are named and by the groups' leaders.
//!
//! Which nodes a new keyspace comes to is decided here too, by the number of replicas that they have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hadron_consensus::{GroupId, NodeId, ROOT_GROUP};
use hadron_keyspace::{Command, Response};
use hadron_node::{Catalog, CatalogError, KeyspaceRecord, KeyspaceState};
use hadron_proto::hadron::{KeyspaceCreateRequest, KeyspaceUpdateRequest};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use super::backend::{Backend, Unavailable, Written};
use super::context::{Context, mismatch};

/// Between two looks at whether a new keyspace has a leader.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often another change may come first before a change gives up.
const TRIES_MAX: usize = 16;
/// Replicas that a keyspace gets when nobody says how many.
const REPLICAS: usize = 3;

/// What the catalog refuses, as clients are told.
fn refused(error: CatalogError) -> Status {
    let code = match error {
        CatalogError::BadName(_) | CatalogError::NoReplicas => Code::InvalidArgument,
        CatalogError::Exists(_) => Code::AlreadyExists,
        CatalogError::NotFound(_) => Code::NotFound,
        CatalogError::IsDefault => Code::FailedPrecondition,
    };
    Status::new(code, format!("hadron: {error}"))
}

/// The members that may carry keyspaces, the most suitable first: those who are alive and are not to be emptied, and of them those with
/// few replicas.
#[derive(Clone, Debug, Default)]
struct Candidates {
    ranked: Vec<NodeId>,
    alive: BTreeSet<NodeId>,
}

impl Candidates {
    /// Of those that suit equally well, `own` comes first.
    fn new(
        members: &[NodeId],
        alive: BTreeSet<NodeId>,
        draining: impl Fn(NodeId) -> bool,
        replicas: &BTreeMap<NodeId, usize>,
        own: NodeId,
    ) -> Candidates {
        let mut ranked = members.to_vec();
        ranked.sort_by_key(|node| {
            let count = replicas.get(node).copied().unwrap_or_default();
            (!alive.contains(node), draining(*node), count, *node != own, *node)
        });
        Candidates { ranked, alive }
    }

    /// Nodes for a new keyspace; 0 replicas stand for as many as is usual.
    fn pick(&self, replicas: usize) -> Result<Vec<NodeId>, Status> {
        let wanted = if replicas == 0 { REPLICAS.min(self.ranked.len()) } else { replicas };
        let nodes = self.first(wanted, |_| true);
        self.check(&nodes, wanted)?;
        Ok(nodes)
    }

    /// Nodes for a keyspace that is on `present` and is to have so many replicas. Who goes is who is down or has most replicas, but
    /// never the leader.
    fn resize(
        &self,
        present: &[NodeId],
        replicas: usize,
        leader: Option<NodeId>,
        may_come: impl Fn(NodeId) -> bool,
    ) -> Result<Vec<NodeId>, Status> {
        if replicas <= present.len() {
            let mut ranked: Vec<NodeId> = leader.into_iter().filter(|node| present.contains(node)).collect();
            let others = self.first(self.ranked.len(), |node| present.contains(&node));
            ranked.extend(others.into_iter().filter(|node| Some(*node) != leader));
            // Who is no member any more goes first.
            ranked.extend(present.iter().filter(|node| !self.ranked.contains(node)));
            ranked.truncate(replicas);
            return Ok(present.iter().copied().filter(|node| ranked.contains(node)).collect());
        }
        let come = self.first(replicas - present.len(), |node| !present.contains(&node) && may_come(node));
        let nodes: Vec<NodeId> = present.iter().copied().chain(come).collect();
        self.check(&nodes, replicas)?;
        Ok(nodes)
    }

    fn first(&self, count: usize, suits: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        self.ranked.iter().copied().filter(|node| suits(*node)).take(count).collect()
    }

    /// Refuses what could not begin to serve, or has too few nodes.
    fn check(&self, nodes: &[NodeId], wanted: usize) -> Result<(), Status> {
        let (members, alive) =
            (self.ranked.len(), nodes.iter().filter(|node| self.alive.contains(node)).count());
        if nodes.len() < wanted {
            let text = format!("hadron: {wanted} replicas need as many nodes, and {members} can take one");
            return Err(Status::failed_precondition(text));
        }
        if alive < wanted / 2 + 1 {
            let text =
                format!("hadron: {wanted} replicas need a majority of nodes that are alive, and {alive} are");
            return Err(Status::unavailable(text));
        }
        Ok(())
    }
}

impl<B: Backend> Context<B> {
    /// Makes a keyspace, and returns it with its leader once it has one; without, if this node has no replica and cannot know.
    pub(super) async fn create_keyspace(
        &self,
        request: KeyspaceCreateRequest,
    ) -> Result<(KeyspaceRecord, Option<NodeId>), Status> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wanted = KeyspaceRecord {
            name: request.name,
            bytes_max: request.bytes_max,
            requests_per_second_max: request.requests_per_second_max,
            created_at_ms: now.as_millis() as i64,
            ..KeyspaceRecord::default()
        };
        self.change_catalog(|catalog| {
            // What is wrong with the name comes first, whichever nodes there are.
            catalog.create(&wanted, &[self.backend.identity().member_id]).map_err(refused)?;
            let nodes = self.candidates(catalog).pick(request.replicas as usize)?;
            catalog.create(&wanted, &nodes).map(Some).map_err(refused)
        })
        .await?;
        let record = self.keyspace_record(&wanted.name)?;
        let leader = self.wait_for_leader(&record).await?;
        Ok((record, leader))
    }

    /// Changes a keyspace, and returns it as it is then.
    pub(super) async fn update_keyspace(
        &self,
        change: &KeyspaceUpdateRequest,
    ) -> Result<KeyspaceRecord, Status> {
        self.change_catalog(|catalog| {
            // Refused before anything is changed, if it cannot be.
            self.placed(catalog, change)?;
            let present = catalog.record(&change.name);
            let record = changed(present.cloned().unwrap_or_default(), change);
            let command = catalog.alter(&record).map_err(refused)?;
            Ok(Some(command).filter(|_| present != Some(&record)))
        })
        .await?;
        self.change_catalog(|catalog| self.placed(catalog, change)).await?;
        self.keyspace_record(&change.name)
    }

    /// Deletes a keyspace, and returns it as it was.
    pub(super) async fn delete_keyspace(&self, name: &str) -> Result<KeyspaceRecord, Status> {
        let mut deleted = None;
        self.change_catalog(|catalog| {
            let command = catalog.delete(name).map_err(refused)?;
            deleted = catalog.record(name).cloned();
            Ok(Some(command))
        })
        .await?;
        deleted.ok_or_else(mismatch)
    }

    /// What the catalog says of a keyspace, `default` included.
    pub(super) fn keyspace_record(&self, name: &str) -> Result<KeyspaceRecord, Status> {
        let record = self.backend.with_catalog(|catalog| catalog.keyspace(name));
        record.ok_or_else(|| refused(CatalogError::NotFound(name.to_owned())))
    }

    /// The command that places a keyspace as a request wants it, if it is to be placed and is not there yet.
    fn placed(&self, catalog: &Catalog, change: &KeyspaceUpdateRequest) -> Result<Option<Command>, Status> {
        let Some(replicas) = change.replicas else { return Ok(None) };
        // In the catalog's words, if there is no such keyspace.
        catalog
            .alter(&KeyspaceRecord { name: change.name.clone(), ..Default::default() })
            .map_err(refused)?;
        if replicas == 0 {
            return Err(refused(CatalogError::NoReplicas));
        }
        let group = catalog.record(&change.name).map(KeyspaceRecord::group_id).unwrap_or_default();
        let present: Vec<NodeId> =
            catalog.placement(group).map_or_else(Vec::new, |placement| placement.record.nodes().collect());
        let leader = self.backend.status(group).and_then(|status| status.leader);
        let may_come = |node| catalog.leaving(group, node).is_none();
        let candidates = self.candidates(catalog);
        let nodes = candidates.resize(&present, replicas as usize, leader, may_come)?;
        let reason = format!("from {} replicas to {replicas}", present.len());
        Ok(catalog.place(group, &nodes, &reason))
    }

    fn candidates(&self, catalog: &Catalog) -> Candidates {
        let own = self.backend.identity().member_id;
        let members = self.backend.members();
        let voters = members.iter().filter(|member| !member.is_learner).map(|member| NodeId(member.id));
        let mut alive = self.backend.alive();
        alive.insert(own);
        let draining = |node| catalog.is_draining(node);
        Candidates::new(&voters.collect::<Vec<_>>(), alive, draining, &catalog.replica_counts(), own)
    }

    /// Decides a change. `change` may be called several times; it returns nothing if nothing is to be done.
    async fn change_catalog(
        &self,
        mut change: impl FnMut(&Catalog) -> Result<Option<Command>, Status>,
    ) -> Result<(), Status> {
        for _ in 0..TRIES_MAX {
            self.backend.read_barrier(ROOT_GROUP).await?;
            let Some(command) = self.backend.with_catalog(&mut change)? else { return Ok(()) };
            let Written { response, .. } = self.backend.write(ROOT_GROUP, command).await?;
            let Ok(Response::Txn(response)) = response else { return Err(mismatch()) };
            if response.succeeded {
                return Ok(());
            }
        }
        Err(Unavailable::Busy.into())
    }

    async fn wait_for_leader(&self, record: &KeyspaceRecord) -> Result<Option<NodeId>, Status> {
        let (own, group) = (self.backend.identity().member_id, record.group_id());
        if !self.places(group).iter().any(|(node, _)| *node == own) {
            return Ok(None);
        }
        let led = async {
            loop {
                let leader = self.backend.status(group).and_then(|status| status.leader);
                if leader.is_some() {
                    return leader;
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(self.membership.timeout, led).await.map_err(|_| {
            let name = &record.name;
            Status::unavailable(format!(
                "hadron: the keyspace {name} was made, but has no leader yet: `hadron ctl keyspace get {name}` tells when it has"
            ))
        })
    }

    /// Where the replicas of a group shall be; of `default` and the root group, on every member.
    pub(super) fn places(&self, group: GroupId) -> Vec<(NodeId, u64)> {
        let placed = self.backend.with_catalog(|catalog| {
            let places = catalog.placement(group)?.record.places.iter();
            Some(places.map(|place| (NodeId(place.node), place.replica)).collect())
        });
        placed.unwrap_or_else(|| {
            let pool = self.backend.pool();
            pool.roster.members.iter().map(|member| (member.node(), member.replica)).collect()
        })
    }
}

fn changed(record: KeyspaceRecord, change: &KeyspaceUpdateRequest) -> KeyspaceRecord {
    let state = change.frozen.map(|frozen| match frozen {
        true => KeyspaceState::Frozen as i32,
        false => KeyspaceState::Active as i32,
    });
    KeyspaceRecord {
        name: change.name.clone(),
        state: state.unwrap_or(record.state),
        replicas: change.replicas.unwrap_or(record.replicas),
        bytes_max: change.bytes_max.unwrap_or(record.bytes_max),
        requests_per_second_max: change.requests_per_second_max.unwrap_or(record.requests_per_second_max),
        ..record
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn none(_: NodeId) -> bool {
        false
    }

    /// Nodes 1 to 5, of which 5 is down; node n has n replicas.
    fn candidates() -> Candidates {
        let counts = (1..=5).map(|id| (NodeId(id), id as usize)).collect();
        let alive = nodes(&[1, 2, 3, 4]).into_iter().collect();
        Candidates::new(&nodes(&[1, 2, 3, 4, 5]), alive, none, &counts, NodeId(4))
    }

    #[test]
    fn a_new_keyspace_comes_to_those_with_the_fewest_replicas() {
        assert_eq!(candidates().pick(0).unwrap(), nodes(&[1, 2, 3]));
        assert_eq!(candidates().pick(5).unwrap(), nodes(&[1, 2, 3, 4, 5]), "who is down comes last");
        let all = nodes(&[1, 2, 3, 4]);
        let equal = Candidates::new(&all, all.iter().copied().collect(), none, &BTreeMap::new(), NodeId(4));
        assert_eq!(equal.pick(1).unwrap(), nodes(&[4]), "the node that is asked");
        assert_eq!(candidates().pick(6).unwrap_err().code(), Code::FailedPrecondition);
    }

    #[test]
    fn who_is_to_be_emptied_gets_nothing_while_others_can_take_it() {
        let all = nodes(&[1, 2, 3]);
        let drained = |node| node == NodeId(1);
        let alive = all.iter().copied().collect();
        let candidates = Candidates::new(&all, alive, drained, &BTreeMap::new(), NodeId(1));
        assert_eq!(candidates.pick(2).unwrap(), nodes(&[2, 3]));
        assert_eq!(candidates.pick(3).unwrap(), nodes(&[2, 3, 1]));
        assert_eq!(candidates.resize(&all, 2, None, none).unwrap(), nodes(&[2, 3]), "and is left first");
    }

    #[test]
    fn a_pool_that_is_mostly_down_takes_no_keyspace() {
        let alive = BTreeSet::from([NodeId(1)]);
        let candidates = Candidates::new(&nodes(&[1, 2, 3]), alive, none, &BTreeMap::new(), NodeId(1));
        assert_eq!(candidates.pick(0).unwrap_err().code(), Code::Unavailable);
        assert_eq!(candidates.pick(1).unwrap(), nodes(&[1]));
        assert_eq!(
            Candidates::new(&nodes(&[1, 2]), BTreeSet::new(), none, &BTreeMap::new(), NodeId(1)).ranked.len(),
            2
        );
    }

    #[test]
    fn who_stays_keeps_its_place_and_the_leader_stays() {
        let resize = |present: &[u64], replicas, leader: Option<u64>| {
            candidates().resize(&nodes(present), replicas, leader.map(NodeId), |node| node != NodeId(1))
        };
        assert_eq!(resize(&[3], 3, Some(3)).unwrap(), nodes(&[3, 2, 4]), "1 has yet to go");
        assert_eq!(resize(&[5, 3, 1], 1, Some(5)).unwrap(), nodes(&[5]));
        assert_eq!(resize(&[5, 3, 1], 2, None).unwrap(), nodes(&[3, 1]), "who is down goes");
        assert_eq!(resize(&[9, 3, 1], 2, None).unwrap(), nodes(&[3, 1]), "who is no member goes");
        assert_eq!(resize(&[2, 3], 2, None).unwrap(), nodes(&[2, 3]));
        assert_eq!(resize(&[2], 5, None).unwrap_err().code(), Code::FailedPrecondition);
    }
}
