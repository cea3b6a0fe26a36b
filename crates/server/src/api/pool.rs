//! The service `hadron.v1.Pool`: the keyspaces that the pool carries, its nodes, and what it tells beyond etcd's services.
//!
//! It is the operator's: it answers in the keyspace `default` alone, and while authentication is on there, root alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use hadron_consensus::{DEFAULT_GROUP, GroupId, NodeId, ROOT_GROUP, ReplicaId};
use hadron_keyspace::auth::Need;
use hadron_node::{KeyspaceRecord, leads, still_needed};
use hadron_proto::hadron as pb;
use tonic::{Request, Response, Status};

use super::asking::Asker;
use super::backend::Backend;
use super::caller::Claim;
use super::context::{Context, cluster_id};
use super::keyspaces::serves;
use super::unsent;

/// The service.
pub(super) struct Pool<B> {
    context: Arc<Context<B>>,
}

impl<B: Backend> Pool<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Pool<B> {
        Pool { context }
    }

    fn check_default(&self) -> Result<(), Status> {
        if self.context.is_default() {
            return Ok(());
        }
        let text =
            "hadron: the pool is asked in its keyspace default, and has no answers for other keyspaces";
        Err(Status::permission_denied(text))
    }

    async fn permit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_default()?;
        self.context.permit(&Claim::of(request), Need::Root).await.map(drop)
    }

    /// The same for a change.
    async fn permit_change<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_default()?;
        self.context.permit_current(&Claim::of(request), Need::Root).await.map(drop)
    }

    /// The same, for a question that wants to know of all changes so far.
    async fn permit_question<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.permit(request).await?;
        Ok(self.context.backend.read_barrier(ROOT_GROUP).await?)
    }

    fn message(&self, record: &KeyspaceRecord) -> pb::Keyspace {
        let replicas = match record.group_id() {
            DEFAULT_GROUP => self.context.backend.members().len() as u32,
            _ => record.replicas,
        };
        pb::Keyspace {
            name: record.name.clone(),
            group: record.group,
            frozen: record.is_frozen(),
            replicas,
            bytes_max: record.bytes_max,
            requests_per_second_max: record.requests_per_second_max,
            created_at_ms: record.created_at_ms,
            cluster_id: cluster_id(self.context.backend.identity().cluster_id, record.group_id()),
        }
    }

    /// The replicas of a group, with what they lack if its leader could be asked.
    async fn replicas(&self, group: GroupId) -> Vec<pb::KeyspaceReplica> {
        let lags = self.context.backend.lags(group).await.unwrap_or_default();
        let lags: BTreeMap<NodeId, u64> = lags.into_iter().collect();
        let members = self.context.backend.members();
        let name =
            |node: NodeId| members.iter().find(|member| member.id == node.0).map(|member| &member.name);
        let (reports, within_reach) = (self.context.backend.reports(), self.context.within_reach());
        let replica = |(node, replica): (NodeId, u64)| {
            let out_of_reach = !within_reach.contains(&node);
            let damaged = reports.get(&node).and_then(|report| report.damaged(group));
            pb::KeyspaceReplica {
                node: node.0,
                name: name(node).cloned().unwrap_or_default(),
                replica,
                lag: lags.get(&node).copied().filter(|_| !out_of_reach),
                out_of_reach,
                damaged: damaged == Some(ReplicaId(replica)),
            }
        };
        let mut replicas: Vec<_> = self.context.places(group).into_iter().map(replica).collect();
        replicas.sort_by_key(|replica| replica.node);
        replicas
    }

    /// Who leads which group: by the replica here, or else by what the nodes report, which comes to those who vote in the root group.
    fn leaders(&self, groups: &[GroupId]) -> BTreeMap<GroupId, NodeId> {
        let backend = &self.context.backend;
        let reported = leads(&backend.reports(), &self.context.within_reach());
        let leader = |group: GroupId| match backend.status(group) {
            Some(status) => status.leader,
            None => reported.get(&group).copied(),
        };
        groups.iter().filter_map(|group| Some((*group, leader(*group)?))).collect()
    }

    /// How many keyspaces each node leads, as far as this one knows.
    fn leader_counts(&self) -> BTreeMap<NodeId, u64> {
        let placed = self.context.backend.with_catalog(|catalog| {
            catalog.placements().map(|(group, _)| group).chain([DEFAULT_GROUP]).collect::<Vec<_>>()
        });
        let mut counts = BTreeMap::new();
        for leader in self.leaders(&placed).into_values() {
            *counts.entry(leader).or_default() += 1;
        }
        counts
    }

    async fn nodes(&self) -> Result<Vec<pb::Node>, Status> {
        let mut waiting = self.context.waiting().await?;
        let backend = &self.context.backend;
        let (within_reach, leaders) = (self.context.within_reach(), self.leader_counts());
        let (members, reports) = (backend.members(), backend.reports());
        let (replicas, leaving, draining) = backend.with_catalog(|catalog| {
            let nodes = members.iter().map(|member| NodeId(member.id));
            let draining: Vec<NodeId> = nodes.filter(|node| catalog.is_draining(*node)).collect();
            (catalog.replica_counts(), still_needed(catalog, &reports), draining)
        });
        let node = |member: hadron_proto::etcdserverpb::Member| {
            let id = NodeId(member.id);
            pb::Node {
                id: member.id,
                name: member.name,
                peer_urls: member.peer_ur_ls,
                client_urls: member.client_ur_ls,
                alive: within_reach.contains(&id),
                learner: member.is_learner,
                // `default` is everywhere.
                replicas: 1 + replicas.get(&id).copied().unwrap_or_default() as u64,
                leaders: leaders.get(&id).copied().unwrap_or_default(),
                draining: draining.contains(&id),
                leaving: leaving.get(&id).copied().unwrap_or_default() as u64,
                waiting: waiting.remove(&id).unwrap_or_default(),
            }
        };
        Ok(members.into_iter().map(node).collect())
    }
}

#[tonic::async_trait]
impl<B: Backend> pb::pool_server::Pool for Pool<B> {
    async fn election_history(
        &self,
        request: Request<pb::ElectionHistoryRequest>,
    ) -> Result<Response<pb::ElectionHistoryResponse>, Status> {
        self.permit(&request).await?;
        let group = match request.into_inner().keyspace.as_str() {
            "" => None,
            "root" => Some(ROOT_GROUP),
            name => Some(self.context.keyspace_record(name)?.group_id()),
        };
        let mut elections = self.context.backend.elections();
        elections.retain(|election| group.is_none_or(|group| election.group == group.0));
        let mut log_shares = self.context.backend.log_shares();
        log_shares.retain(|shares| group.is_none_or(|group| shares.group == group.0));
        Ok(unsent::answer(pb::ElectionHistoryResponse { elections, log_shares }))
    }

    async fn keyspace_create(
        &self,
        request: Request<pb::KeyspaceCreateRequest>,
    ) -> Result<Response<pb::KeyspaceCreateResponse>, Status> {
        self.permit_change(&request).await?;
        let asker = Asker::of(&request);
        let (record, leader) = self.context.create_keyspace(request.into_inner(), &asker).await?;
        tracing::info!(keyspace = record.name, group = record.group, "made a keyspace");
        let keyspace = Some(self.message(&record));
        Ok(Response::new(pb::KeyspaceCreateResponse { keyspace, leader: leader.0 }))
    }

    async fn keyspace_list(
        &self,
        request: Request<pb::KeyspaceListRequest>,
    ) -> Result<Response<pb::KeyspaceListResponse>, Status> {
        self.permit_question(&request).await?;
        let mut records = vec![self.context.keyspace_record(hadron_node::DEFAULT_KEYSPACE)?];
        self.context.backend.with_catalog(|catalog| records.extend(catalog.keyspaces().cloned()));
        records.sort_by(|one, other| one.name.cmp(&other.name));
        let keyspaces = records.iter().map(|record| self.message(record)).collect();
        Ok(unsent::answer(pb::KeyspaceListResponse { keyspaces }))
    }

    async fn keyspace_get(
        &self,
        request: Request<pb::KeyspaceGetRequest>,
    ) -> Result<Response<pb::KeyspaceGetResponse>, Status> {
        self.permit_question(&request).await?;
        let record = self.context.keyspace_record(&request.get_ref().name)?;
        let (backend, group) = (&self.context.backend, record.group_id());
        if !serves(backend, group)
            && let Some(told) = Asker::of(&request).ask_about(&self.context, &record.name, group).await
        {
            return Ok(Response::new(told));
        }
        let leader = self.leaders(&[group]).remove(&group);
        let replicas = self.replicas(group).await;
        let keyspace = backend.keyspace(group);
        Ok(Response::new(pb::KeyspaceGetResponse {
            keyspace: Some(self.message(&record)),
            leader: leader.map_or(0, |leader| leader.0),
            replicas,
            revision: keyspace.as_ref().map(|keyspace| keyspace.revision()),
            db_size: keyspace.map(|keyspace| keyspace.db_bytes().try_into().unwrap_or(i64::MAX)),
        }))
    }

    async fn keyspace_update(
        &self,
        request: Request<pb::KeyspaceUpdateRequest>,
    ) -> Result<Response<pb::KeyspaceUpdateResponse>, Status> {
        self.permit_change(&request).await?;
        let record = self.context.update_keyspace(request.get_ref()).await?;
        tracing::info!(keyspace = record.name, change = ?request.get_ref(), "changed a keyspace");
        Ok(Response::new(pb::KeyspaceUpdateResponse { keyspace: Some(self.message(&record)) }))
    }

    async fn keyspace_delete(
        &self,
        request: Request<pb::KeyspaceDeleteRequest>,
    ) -> Result<Response<pb::KeyspaceDeleteResponse>, Status> {
        self.permit_change(&request).await?;
        let record = self.context.delete_keyspace(&request.get_ref().name).await?;
        tracing::info!(keyspace = record.name, group = record.group, "deleted a keyspace");
        Ok(Response::new(pb::KeyspaceDeleteResponse { keyspace: Some(self.message(&record)) }))
    }

    async fn node_list(
        &self,
        request: Request<pb::NodeListRequest>,
    ) -> Result<Response<pb::NodeListResponse>, Status> {
        self.permit_question(&request).await?;
        Ok(Response::new(pb::NodeListResponse { nodes: self.nodes().await? }))
    }

    async fn balance_status(
        &self,
        request: Request<pb::BalanceStatusRequest>,
    ) -> Result<Response<pb::BalanceStatusResponse>, Status> {
        self.permit(&request).await?;
        Ok(Response::new(self.context.balance_status()))
    }

    async fn balance_history(
        &self,
        request: Request<pb::BalanceHistoryRequest>,
    ) -> Result<Response<pb::BalanceHistoryResponse>, Status> {
        self.permit_question(&request).await?;
        Ok(unsent::answer(pb::BalanceHistoryResponse { moves: self.context.balance_history()? }))
    }

    async fn balance_pause(
        &self,
        request: Request<pb::BalancePauseRequest>,
    ) -> Result<Response<pb::BalancePauseResponse>, Status> {
        self.permit_change(&request).await?;
        self.context.pause_balancing(request.get_ref().paused).await?;
        Ok(Response::new(pb::BalancePauseResponse {}))
    }

    async fn balance_simulate(
        &self,
        request: Request<pb::BalanceSimulateRequest>,
    ) -> Result<Response<pb::BalanceSimulateResponse>, Status> {
        self.permit_question(&request).await?;
        Ok(Response::new(self.context.balance_simulate(request.into_inner()).await?))
    }

    async fn node_drain(
        &self,
        request: Request<pb::NodeDrainRequest>,
    ) -> Result<Response<pb::NodeDrainResponse>, Status> {
        self.permit_change(&request).await?;
        self.context.backend.read_barrier(ROOT_GROUP).await?;
        let pb::NodeDrainRequest { node, drain } = request.into_inner();
        let waiting = self.context.drain_node(node, drain).await?;
        Ok(Response::new(pb::NodeDrainResponse { waiting }))
    }

    async fn top(&self, request: Request<pb::TopRequest>) -> Result<Response<pb::TopResponse>, Status> {
        self.permit(&request).await?;
        let (mut keyspaces, mut entries) = (Vec::new(), Vec::new());
        match request.get_ref().by() {
            pb::TopBy::Keyspace => keyspaces = self.context.top(),
            by => entries = self.context.top_hitters(by),
        }
        Ok(unsent::answer(pb::TopResponse { keyspaces, entries }))
    }
}
