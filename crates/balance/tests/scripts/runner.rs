//! The commands of the scripts.

use hadron_balance::{
    Capacity, Disk, GroupLoad, GroupView, Load, MoveKind, NodeState, NodeView, Policy, ReplicaRole,
    ReplicaView, Resource, Simulation, Step, View, Wanted, assess, next_step, place, plan, release, simulate,
    waiting,
};
use hadron_consensus::{GroupId, NodeId, Time};

/// Rounds after which a pool that still moves is said to oscillate.
const ROUNDS_MAX: usize = 200;
const GIB: u64 = 1 << 30;

/// The state of a script.
pub(crate) struct Runner {
    view: View,
    policy: Policy,
}

impl Default for Runner {
    fn default() -> Runner {
        Runner { view: View { now: Time(1_000_000_000_000), ..View::default() }, policy: Policy::default() }
    }
}

fn node(text: &str) -> NodeId {
    let id = u64::from_str_radix(text.trim_start_matches('n'), 16);
    NodeId(id.unwrap_or_else(|_| panic!("{text} is not a node")))
}

fn group(text: &str) -> GroupId {
    GroupId(text.trim_start_matches('g').parse().unwrap_or_else(|_| panic!("{text} is not a group")))
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
}

fn cpu(cores: f64) -> Load {
    Load::ZERO.with(Resource::Cpu, cores)
}

/// Nodes of one line: `n1`, or `n1..n4`.
fn nodes(text: &str) -> Vec<NodeId> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    (node(first).0..=node(last).0).map(NodeId).collect()
}

impl Runner {
    /// Runs one command; adds what came of it to `output`.
    pub(crate) fn run(&mut self, command: &str, output: &mut Vec<String>) {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            // nodes n1..n4 [zone a] [cores 10] [disk USED/TOTAL in GiB] [own CORES]
            ["nodes", ids, ref options @ ..] => self.add_nodes(&nodes(ids), options),
            // group g1 n1* n2 n3?9 [leader CORES] [replica CORES] [bytes GIB] [factor 3]: * leads, ?9 is a learner that lacks 9.
            ["group", id, ref words @ ..] => self.add_group(group(id), words),
            // load g1 LEADER REPLICA: in cores
            ["load", id, leader, replica] => self.group(id).load = parts(number(leader), number(replica)),
            ["factor", id, factor] => self.group(id).factor = factor.parse().unwrap(),
            // damaged g1 n3: its replica there
            ["damaged", id, on] => self.replica(id, on).is_damaged = true,
            // leaving g1 n3: it has yet to give up its last replica
            ["leaving", id, on] => self.group(id).leaving.push(node(on)),
            ["lag", id, on, entries] => self.replica(id, on).lag = entries.parse().unwrap(),
            // leader g1 n2 | none
            ["leader", id, "none"] => self.group(id).leader = None,
            ["leader", id, on] => self.group(id).leader = Some(node(on)),
            ["suspect", ids] => self.set_state(ids, NodeState::Suspected { since: self.view.now }),
            ["dead", ids] => self.set_state(ids, NodeState::Dead),
            ["alive", ids] => self.set_state(ids, NodeState::Alive),
            ["drain", ids] => self.nodes(ids, |node| node.draining = true),
            // learner n4: it has no vote in the root group; voter n4: it has one
            ["learner", ids] => self.nodes(ids, |node| node.learner = true),
            ["voter", ids] => self.nodes(ids, |node| node.learner = false),
            ["fsync", ids, micros] => self.nodes(ids, |node| node.fsync_us = number(micros)),
            ["forget", id] => drop(self.view.nodes.remove(&node(id))),
            ["wait", seconds] => self.view.now = self.view.now.plus_micros((number(seconds) * 1e6) as u64),
            ["policy", name, value] => self.set_policy(name, value),
            ["plan"] => self.plan(output),
            ["start"] => self.start(output),
            // waiting: why nodes that are to be emptied are not
            ["waiting"] => self.waiting(output),
            ["step", id] => self.step(group(id), output),
            ["settle"] => self.settle(output),
            // place 3 [beside n1] [near n2] [not n4]: nodes for a new group, or for more replicas of one that is on n1
            ["place", count, ref options @ ..] => self.place(count, options, output),
            // release 1 g1: which replica of g1 can be missed
            ["release", count, id] => self.release(count, group(id), output),
            // add 2: nodes like those there are
            ["add", count] => drop(self.view.add_nodes(count.parse().unwrap())),
            ["lose", id] => self.view.lose(node(id)),
            // simulate ROUNDS: what would be done, and nothing is
            ["simulate", rounds] => self.simulate(rounds.parse().unwrap(), output),
            ["show"] => self.show(output),
            ["assess"] => self.assess(output),
            _ => panic!("no such command: {command}"),
        }
    }

    fn add_nodes(&mut self, ids: &[NodeId], options: &[&str]) {
        let mut it = NodeView { capacity: Capacity::of(cpu(10.0)), ..NodeView::default() };
        for option in options.chunks(2) {
            match option {
                ["zone", zone] => it.zone = zone.to_string(),
                ["cores", cores] => it.capacity = Capacity::of(cpu(number(cores))),
                ["own", cores] => it.own_load = cpu(number(cores)),
                ["disk", disk] => {
                    let (used, total) = disk.split_once('/').unwrap();
                    let bytes = |gib: &str| gib.parse::<u64>().unwrap() * GIB;
                    it.disk = Disk { used: bytes(used), total: bytes(total) };
                }
                _ => panic!("no such option of a node: {option:?}"),
            }
        }
        self.view.nodes.extend(ids.iter().map(|id| (*id, it.clone())));
    }

    fn add_group(&mut self, id: GroupId, words: &[&str]) {
        let count = words.iter().take_while(|word| word.starts_with('n')).count();
        let (replicas, options) = words.split_at(count);
        let mut it = GroupView { factor: 3, bytes: GIB, load: parts(0.6, 0.2), ..GroupView::default() };
        for word in replicas {
            let (id, lag) = word.split_once('?').unwrap_or((word.trim_end_matches('*'), ""));
            it.leader = if word.ends_with('*') { Some(node(id)) } else { it.leader };
            it.replicas.push(match lag {
                "" => ReplicaView::voter(node(id)),
                lag => ReplicaView::learner(node(id), lag.parse().unwrap()),
            });
        }
        for option in options.chunks(2) {
            match option {
                ["leader", cores] => it.load.leader = cpu(number(cores)),
                ["replica", cores] => it.load.replica = cpu(number(cores)),
                ["bytes", gib] => it.bytes = gib.parse::<u64>().unwrap() * GIB,
                ["factor", factor] => it.factor = factor.parse().unwrap(),
                _ => panic!("no such option of a group: {option:?}"),
            }
        }
        self.view.groups.insert(id, it);
        self.view.moves.remove(&id);
    }

    fn group(&mut self, id: &str) -> &mut GroupView {
        self.view.groups.get_mut(&group(id)).unwrap()
    }

    fn replica(&mut self, id: &str, on: &str) -> &mut ReplicaView {
        self.group(id).replicas.iter_mut().find(|replica| replica.node == node(on)).unwrap()
    }

    fn nodes(&mut self, ids: &str, change: impl Fn(&mut NodeView)) {
        nodes(ids).iter().for_each(|id| change(self.view.nodes.get_mut(id).unwrap()));
    }

    /// Groups whose leader cannot be reached elect another, if a majority can.
    fn set_state(&mut self, ids: &str, state: NodeState) {
        self.nodes(ids, |node| node.state = state);
        let is_alive =
            |id: NodeId| self.view.nodes.get(&id).is_some_and(|node| node.state == NodeState::Alive);
        for it in self.view.groups.values_mut() {
            let alive: Vec<NodeId> = it.voters().filter(|id| is_alive(*id)).collect();
            let has_quorum = alive.len() > it.voters().count() / 2;
            let stays = it.leader.filter(|leader| has_quorum && is_alive(*leader));
            it.leader = stays.or(alive.first().copied().filter(|_| has_quorum));
        }
    }

    fn set_policy(&mut self, name: &str, value: &str) {
        match name {
            "balance" => self.policy.balance = value == "on",
            "incoming" => self.policy.incoming_max = value.parse().unwrap(),
            "outgoing" => self.policy.outgoing_max = value.parse().unwrap(),
            "moves-per-node" => self.policy.moves_per_node = number(value),
            _ => panic!("no such policy: {name}"),
        }
    }

    fn plan(&self, output: &mut Vec<String>) {
        let moves = plan(&self.view, &self.policy);
        output.extend(moves.iter().map(|it| it.to_string()));
        if moves.is_empty() {
            output.push("nothing to do".to_string());
        }
    }

    fn waiting(&self, output: &mut Vec<String>) {
        for (node, hindrances) in waiting(&self.view, &self.policy) {
            let waiting = hindrances.iter().map(|(why, count)| format!("{count} because {why}"));
            let waiting = waiting.collect::<Vec<_>>().join("; ");
            output.push(if waiting.is_empty() {
                format!("{node} is empty")
            } else {
                format!("{node}: {waiting}")
            });
        }
    }

    fn start(&mut self, output: &mut Vec<String>) {
        self.plan(output);
        let moves = plan(&self.view, &self.policy);
        self.view.moves.extend(moves.iter().map(|it| (it.group, it.kind)));
    }

    /// Does at once what the next step asks for, as a group would in its time.
    fn step(&mut self, id: GroupId, output: &mut Vec<String>) {
        let Some(kind) = self.view.moves.get(&id).copied() else {
            return output.push(format!("{id} has no move"));
        };
        let step = next_step(&self.view, &self.view.groups[&id], &kind, &self.policy);
        output.push(format!("{id}: {step}"));
        if matches!(step, Step::Done | Step::Abandon(_)) {
            self.view.moves.remove(&id);
        }
        let it = self.view.groups.get_mut(&id).unwrap();
        match step {
            Step::AddLearner { to } => it.replicas.push(ReplicaView::learner(to, 100_000)),
            Step::Promote { to } => {
                it.replicas.iter_mut().filter(|it| it.node == to).for_each(|it| it.role = ReplicaRole::Voter)
            }
            Step::TransferLeader { to } => it.leader = Some(to),
            Step::Remove { from } => it.carry_out(&MoveKind::RemoveReplica { from }),
            Step::CatchUp { .. } | Step::Done | Step::Abandon(_) => {}
        }
    }

    /// Plans and carries out, round after round; each takes longer than a group's time of rest.
    fn settle(&mut self, output: &mut Vec<String>) {
        for round in 1..=ROUNDS_MAX {
            let moves = plan(&self.view, &self.policy);
            if moves.is_empty() {
                return output.push(format!("settled in round {round}"));
            }
            for it in &moves {
                output.push(format!("{round}: {it}"));
                let changed = self.view.groups.get_mut(&it.group).unwrap();
                changed.carry_out(&it.kind);
                changed.changed_at = Some(self.view.now);
            }
            self.view.now = self.view.now.plus_micros(self.policy.cool_down_us);
        }
        panic!("still moving after {ROUNDS_MAX} rounds");
    }

    fn place(&self, count: &str, options: &[&str], output: &mut Vec<String>) {
        let mut wanted = Wanted { count: count.parse().unwrap(), ..Wanted::default() };
        let mut barred = Vec::new();
        for option in options.chunks(2) {
            match option {
                ["beside", ids] => wanted.present.extend(nodes(ids)),
                ["near", id] => wanted.near = Some(node(id)),
                ["not", ids] => barred.extend(nodes(ids)),
                _ => panic!("no such option of a place: {option:?}"),
            }
        }
        let chosen = place(&self.view, &self.policy, &wanted, |node| !barred.contains(&node));
        output.push(listed(&chosen));
    }

    fn release(&self, count: &str, id: GroupId, output: &mut Vec<String>) {
        let group = &self.view.groups[&id];
        let present = group.replicas.iter().map(|replica| replica.node).collect();
        let is_damaged = |it: &&ReplicaView| it.is_damaged;
        let damaged = group.replicas.iter().filter(is_damaged).map(|it| it.node).collect();
        let wanted = Wanted { present, count: count.parse().unwrap(), near: None, damaged };
        output.push(listed(&release(&self.view, &self.policy, &wanted, group.leader)));
    }

    fn simulate(&self, rounds: usize, output: &mut Vec<String>) {
        let Simulation { before, after, rounds, is_settled, .. } = simulate(&self.view, &self.policy, rounds);
        for (round, moves) in (1..).zip(&rounds) {
            output.extend(moves.iter().map(|it| format!("{round}: {it}")));
        }
        let end = if is_settled { "nothing is left to do" } else { "more is left to do" };
        output.push(format!("largest {:.3} ⇒ {:.3}, {end}", before.largest, after.largest));
        assert!(before.mean <= before.largest && after.mean <= after.largest, "a mean above the largest");
    }

    fn show(&self, output: &mut Vec<String>) {
        for (id, it) in &self.view.groups {
            let replica = |replica: &ReplicaView| match replica.role {
                ReplicaRole::Learner => format!("{}?{}", replica.node, replica.lag),
                ReplicaRole::Voter if it.leader == Some(replica.node) => format!("{}*", replica.node),
                ReplicaRole::Voter => replica.node.to_string(),
            };
            output.push(format!("{id}: {}", it.replicas.iter().map(replica).collect::<Vec<_>>().join(" ")));
        }
    }

    fn assess(&self, output: &mut Vec<String>) {
        let it = assess(&self.view, &self.policy);
        for node in &it.nodes {
            output.push(format!(
                "{}: W {:.3} ({}), B {:.3}, {} replicas, leads {}",
                node.node, node.load, node.scarcest, node.share, node.replicas, node.leaders
            ));
        }
        output.push(format!(
            "mean {:.3}, level {:.3}, largest {:.3}, heaviest replica {:.3}, spread {:.3}; short of replicas {}, without quorum {}, \
             sharing a zone {}",
            it.mean,
            it.level,
            it.largest,
            it.heaviest_replica,
            it.spread,
            it.short_of_replicas,
            it.without_quorum,
            it.sharing_a_zone
        ));
    }
}

fn listed(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" ")
}

fn parts(leader: f64, replica: f64) -> GroupLoad {
    GroupLoad { leader: cpu(leader), replica: cpu(replica) }
}
