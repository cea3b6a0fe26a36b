//! The part of `hadron.v1.Pool` that is about load: how it is spread, what was moved, what is to be left alone.

use std::collections::BTreeMap;

use hadron_balance::{Capacity, Hindrance, Load, NodeAssessment, Resource, with_names};
use hadron_consensus::{DEFAULT_GROUP, GroupId, NodeId, ROOT_GROUP};
use hadron_keyspace::{Command, Response};
use hadron_node::{Catalog, DEFAULT_KEYSPACE, Report, load_of, moves};
use hadron_proto::hadron as pb;
use tonic::Status;

use super::backend::{Backend, Standing};
use super::beside;
use super::context::{Context, mismatch};
use super::hitters;

/// What people call nodes and keyspaces.
pub(super) struct Names {
    nodes: BTreeMap<NodeId, String>,
    keyspaces: BTreeMap<GroupId, String>,
}

impl Names {
    /// A node's name, once it has one.
    pub(super) fn node(&self, id: NodeId) -> Option<&str> {
        self.nodes.get(&id).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The keyspace of a group.
    pub(super) fn keyspace(&self, group: GroupId) -> Option<&str> {
        self.keyspaces.get(&group).map(String::as_str)
    }
}

/// The answer to who names a node that is no member.
pub(super) fn no_node(id: u64) -> Status {
    Status::not_found(format!(
        "hadron: there is no node {id:x}: `hadron ctl node list` shows those there are"
    ))
}

impl<B: Backend> Context<B> {
    /// W and B of each node, and what is behind them.
    pub(super) fn balance_status(&self) -> pb::BalanceStatusResponse {
        let Standing { view, assessment, reports, waiting } = self.backend.standing();
        let is_heard = view.unheard() == 0;
        let members = self.backend.members();
        let name =
            |node: NodeId| members.iter().find(|member| member.id == node.0).map(|member| &member.name);
        let node = |assessed: &NodeAssessment| {
            let id = assessed.node;
            let seen = view.nodes.get(&id);
            pb::BalanceNode {
                id: id.0,
                name: name(id).cloned().unwrap_or_default(),
                zone: seen.map(|node| node.zone.clone()).unwrap_or_default(),
                draining: seen.is_some_and(|node| node.draining),
                leaders: assessed.leaders as u64,
                replicas: assessed.replicas as u64,
                load: assessed.load,
                share: assessed.share,
                scarcest: assessed.scarcest.name().to_owned(),
                heaviest_replica: assessed.heaviest_replica,
                loads: reports.get(&id).map(loads_of_node).unwrap_or_default(),
                waiting: waiting.get(&id).filter(|_| is_heard).map(told).unwrap_or_default(),
            }
        };
        let (leaving, paused) =
            self.backend.with_catalog(|catalog| (catalog.leaving_count(), catalog.is_paused()));
        pb::BalanceStatusResponse {
            nodes: assessment.nodes.iter().map(node).collect(),
            mean: assessment.mean,
            largest: assessment.largest,
            heaviest_replica: assessment.heaviest_replica,
            short_of_replicas: assessment.short_of_replicas as u64,
            without_quorum: assessment.without_quorum as u64,
            sharing_a_zone: assessment.sharing_a_zone as u64,
            leaving: leaving as u64,
            paused,
        }
    }

    /// The moves that are remembered.
    pub(super) fn balance_history(&self) -> Result<Vec<pb::Move>, Status> {
        let names = self.node_and_keyspace_names();
        let text = |text: String| with_names(&text, |id| names.node(id).map(str::to_owned));
        let root = self.backend.keyspace(ROOT_GROUP);
        let root =
            root.ok_or_else(|| Status::unavailable("hadron: this node has no replica of the root group"))?;
        let message = |record: hadron_node::MoveRecord| pb::Move {
            at_ms: record.at_ms,
            group: record.group,
            keyspace: names.keyspace(GroupId(record.group)).unwrap_or_default().to_owned(),
            kind: text(record.kind),
            cause: record.cause,
            reason: text(record.reason),
            effect: record.effect,
            bytes: record.bytes,
        };
        Ok(moves(&root).into_iter().map(message).collect())
    }

    /// Leaves load where it is, or balances it again.
    pub(super) async fn pause_balancing(&self, paused: bool) -> Result<(), Status> {
        self.change_pool(Catalog::pause(paused)).await
    }

    /// Wants a member emptied, or not any more. Returns what keeps its replicas there.
    pub(super) async fn drain_node(&self, node: u64, drain: bool) -> Result<Vec<pb::Waiting>, Status> {
        if !self.backend.members().iter().any(|member| member.id == node) {
            return Err(no_node(node));
        }
        self.change_pool(Catalog::drain(NodeId(node), drain)).await?;
        Ok(self.waiting().await?.remove(&NodeId(node)).unwrap_or_default())
    }

    /// What keeps replicas on nodes that are to be emptied; nothing if this node was not told what all nodes measured.
    pub(super) async fn waiting(&self) -> Result<BTreeMap<NodeId, Vec<pb::Waiting>>, Status> {
        let is_any_drained = self.backend.with_catalog(|catalog| catalog.draining().next().is_some());
        if !is_any_drained {
            return Ok(BTreeMap::new());
        }
        let backend = self.backend.clone();
        let Standing { view, waiting, .. } = beside::run(move || backend.standing()).await?;
        let is_heard = view.unheard() == 0;
        Ok(waiting.iter().filter(|_| is_heard).map(|(node, waiting)| (*node, told(waiting))).collect())
    }

    async fn change_pool(&self, command: Command) -> Result<(), Status> {
        match self.backend.write(ROOT_GROUP, command).await?.response {
            Ok(Response::Txn(response)) if response.succeeded => Ok(()),
            _ => Err(mismatch()),
        }
    }

    /// Which keyspaces cause the load, the heaviest first.
    pub(super) fn top(&self) -> Vec<pb::TopKeyspace> {
        let names = self.names();
        let mut sums: BTreeMap<GroupId, Load> = BTreeMap::new();
        for replica in self.backend.reports().values().flat_map(|report| &report.replicas) {
            let sum = sums.entry(GroupId(replica.group)).or_default();
            *sum += &load_of(&replica.short);
        }
        let mut sums: Vec<_> = sums.into_iter().filter(|(group, _)| names.contains_key(group)).collect();
        let weight = |load: &Load| (load[Resource::Cpu], load[Resource::Requests], load[Resource::Storage]);
        sums.sort_by(|(_, one), (_, other)| {
            weight(other).partial_cmp(&weight(one)).unwrap_or(std::cmp::Ordering::Equal)
        });
        let keyspace = |(group, load): (GroupId, Load)| pb::TopKeyspace {
            keyspace: names.get(&group).cloned().unwrap_or_default(),
            group: group.0,
            loads: loads(&load, &Load::ZERO, &Capacity::default()),
        };
        sums.into_iter().map(keyspace).collect()
    }

    /// Which prefixes or clients cause the load, the heaviest first.
    pub(super) fn top_hitters(&self, by: pb::TopBy) -> Vec<pb::TopEntry> {
        let (reports, names) = (self.backend.reports(), self.names());
        let cpu: f64 = reports.values().map(|report| load_of(&report.short)[Resource::Cpu]).sum();
        let work: f64 = reports.values().map(|report| report.work).sum();
        let mut sums: BTreeMap<(u64, Vec<u8>), Load> = BTreeMap::new();
        let hitters = reports.into_values().flat_map(|report| match by {
            pb::TopBy::Client => report.clients,
            _ => report.prefixes,
        });
        // Of a keyspace that is just deleted somebody may have counted something still.
        for hitter in hitters.filter(|hitter| names.contains_key(&GroupId(hitter.group))) {
            let load = Load::ZERO
                .with(Resource::Cpu, if work > 0.0 { cpu * hitter.work / work } else { 0.0 })
                .with(Resource::Requests, hitter.requests)
                .with(Resource::Read, hitter.read)
                .with(Resource::Written, hitter.written)
                .with(Resource::Events, hitter.events);
            *sums.entry((hitter.group, hitter.name)).or_default() += &load;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        let weight = |load: &Load| (load[Resource::Cpu], load[Resource::Requests]);
        sums.sort_by(|(_, one), (_, other)| {
            weight(other).partial_cmp(&weight(one)).unwrap_or(std::cmp::Ordering::Equal)
        });
        let entry = |((group, name), load): ((u64, Vec<u8>), Load)| pb::TopEntry {
            keyspace: names.get(&GroupId(group)).cloned().unwrap_or_default(),
            name: name.into(),
            loads: loads(&load, &Load::ZERO, &Capacity::default())
                .into_iter()
                .filter(|load| hitters::RESOURCES.contains(&load.resource.as_str()))
                .collect(),
        };
        sums.into_iter().map(entry).collect()
    }

    pub(super) fn node_and_keyspace_names(&self) -> Names {
        let members = self.backend.members().into_iter();
        let nodes = members.map(|member| (NodeId(member.id), member.name)).collect();
        Names { nodes, keyspaces: self.names() }
    }

    /// The keyspaces of groups, `default` included.
    fn names(&self) -> BTreeMap<GroupId, String> {
        let mut names: BTreeMap<GroupId, String> = self.backend.with_catalog(|catalog| {
            catalog.keyspaces().map(|record| (record.group_id(), record.name.clone())).collect()
        });
        names.insert(DEFAULT_GROUP, DEFAULT_KEYSPACE.to_owned());
        names
    }
}

/// What keeps replicas on a node, as it is told.
fn told(waiting: &BTreeMap<Hindrance, usize>) -> Vec<pb::Waiting> {
    let told = |(hindrance, replicas): (&Hindrance, &usize)| pb::Waiting {
        reason: hindrance.name().to_owned(),
        text: hindrance.to_string(),
        replicas: *replicas as u64,
    };
    waiting.iter().map(told).collect()
}

fn loads_of_node(report: &Report) -> Vec<pb::ResourceLoad> {
    loads(&load_of(&report.short), &load_of(&report.long), &report.capacity())
}

fn loads(short: &Load, long: &Load, capacity: &Capacity) -> Vec<pb::ResourceLoad> {
    let load = |resource: Resource| pb::ResourceLoad {
        resource: resource.name().to_owned(),
        short: short[resource],
        long: long[resource],
        capacity: capacity.amount(resource),
    };
    Resource::ALL.into_iter().map(load).collect()
}
