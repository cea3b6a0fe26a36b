//! What the planner would do with the pool as it was measured: `hadron.v1.Pool/BalanceSimulate`.

use std::collections::BTreeMap;

use hadron_balance::{
    Assessment, Move, NodeAssessment, NodeState, Policy, Simulation, View, simulate, with_names,
};
use hadron_consensus::NodeId;
use hadron_proto::hadron as pb;
use tonic::Status;

use super::backend::Backend;
use super::balance::{Names, no_node};
use super::context::Context;

/// Rounds after which a pool is left as it is then.
const ROUNDS_MAX: usize = 64;
/// Moves that are shown one by one.
const MOVES_SHOWN: usize = 2_000;
/// Nodes that may be added.
const ADDED_MAX: u32 = 1_000;

impl<B: Backend> Context<B> {
    /// What would become of the pool.
    pub(super) async fn balance_simulate(
        &self,
        request: pb::BalanceSimulateRequest,
    ) -> Result<pb::BalanceSimulateResponse, Status> {
        let (backend, names) = (self.backend.clone(), self.node_and_keyspace_names());
        let simulated = move || {
            let (view, policy) = backend.outlook();
            check(&request, &view)?;
            Ok(Simulated::new(view, policy, &request, names).response())
        };
        self.calculations.run(|_| simulated()).await?
    }
}

fn check(request: &pb::BalanceSimulateRequest, view: &View) -> Result<(), Status> {
    let unheard = view.unheard();
    if unheard > 0 || view.nodes.is_empty() {
        let text = format!(
            "hadron: {unheard} nodes have not told this one their load: ask again in some seconds, or ask a member that votes"
        );
        return Err(Status::unavailable(text));
    }
    let unknown =
        request.drain.iter().chain(&request.remove).find(|id| !view.nodes.contains_key(&NodeId(**id)));
    if let Some(node) = unknown {
        return Err(no_node(*node));
    }
    if request.add > ADDED_MAX {
        let text = format!("hadron: at most {ADDED_MAX} nodes can be added, not {}", request.add);
        return Err(Status::invalid_argument(text));
    }
    Ok(())
}

struct Simulated {
    simulation: Simulation,
    /// As everything was, before something was assumed.
    before: Assessment,
    added: Vec<NodeId>,
    is_paused: bool,
    names: Names,
}

impl Simulated {
    fn new(mut view: View, policy: Policy, request: &pb::BalanceSimulateRequest, names: Names) -> Simulated {
        let before = hadron_balance::assess(&view, &policy);
        for node in request.drain.iter().map(|id| NodeId(*id)) {
            view.nodes.get_mut(&node).into_iter().for_each(|node| node.draining = true);
        }
        request.remove.iter().for_each(|id| view.lose(NodeId(*id)));
        let added = view.add_nodes(request.add as usize);
        let simulation = simulate(&view, &policy, ROUNDS_MAX);
        Simulated { simulation, before, added, is_paused: !policy.balance, names }
    }

    fn response(&self) -> pb::BalanceSimulateResponse {
        let Simulation { after, rounds, is_settled, .. } = &self.simulation;
        let moves = || (1..).zip(rounds).flat_map(|(round, moves)| moves.iter().map(move |it| (round, it)));
        pb::BalanceSimulateResponse {
            nodes: self.nodes(),
            moves: moves().take(MOVES_SHOWN).map(|(round, it)| self.planned(round, it)).collect(),
            move_count: moves().count() as u64,
            bytes: moves().map(|(_, it)| it.effect.bytes).sum(),
            rounds: rounds.len() as u32,
            settled: *is_settled,
            paused: self.is_paused,
            largest_before: self.before.largest,
            largest_after: after.largest,
            mean_before: self.before.mean,
            mean_after: after.mean,
            short_of_replicas: after.short_of_replicas as u64,
            without_quorum: after.without_quorum as u64,
            sharing_a_zone: after.sharing_a_zone as u64,
        }
    }

    fn nodes(&self) -> Vec<pb::SimulatedNode> {
        let by_id = |it: &Assessment| -> BTreeMap<NodeId, NodeAssessment> {
            it.nodes.iter().map(|node| (node.node, *node)).collect()
        };
        let (before, after) = (by_id(&self.before), by_id(&self.simulation.after));
        // What is left on a node that is gone was counted by nobody else.
        let mut left: BTreeMap<NodeId, u64> = BTreeMap::new();
        for replica in self.simulation.view.groups.values().flat_map(|group| &group.replicas) {
            *left.entry(replica.node).or_default() += 1;
        }
        let node = |(id, node): (&NodeId, &hadron_balance::NodeView)| {
            let (before, after) = (before.get(id), after.get(id));
            pb::SimulatedNode {
                id: id.0,
                name: self.name(*id),
                zone: node.zone.clone(),
                added: self.added.contains(id),
                draining: node.draining,
                removed: node.state == NodeState::Dead,
                load_before: before.map_or(0.0, |node| node.load),
                load_after: after.map_or(0.0, |node| node.load),
                share_before: before.map_or(0.0, |node| node.share),
                share_after: after.map_or(0.0, |node| node.share),
                replicas_before: before.map_or(0, |node| node.replicas as u64),
                replicas_after: left.get(id).copied().unwrap_or_default(),
                leaders_before: before.map_or(0, |node| node.leaders as u64),
                leaders_after: after.map_or(0, |node| node.leaders as u64),
            }
        };
        self.simulation.view.nodes.iter().map(node).collect()
    }

    fn name(&self, id: NodeId) -> String {
        match self.added.iter().position(|added| *added == id) {
            Some(number) => format!("new-{}", number + 1),
            None => self.names.node(id).unwrap_or_default().to_owned(),
        }
    }

    fn planned(&self, round: u32, it: &Move) -> pb::SimulatedMove {
        let text = |text: String| with_names(&text, |id| Some(self.name(id)));
        let planned = pb::Move {
            at_ms: 0,
            group: it.group.0,
            keyspace: self.names.keyspace(it.group).unwrap_or_default().to_owned(),
            kind: text(it.kind.to_string()),
            cause: it.reason.name().to_owned(),
            reason: text(it.reason.to_string()),
            effect: it.effect.to_string(),
            bytes: it.effect.bytes,
        };
        pb::SimulatedMove { round, planned: Some(planned) }
    }
}
