//! `node remove`: a node is emptied, and then it is no member any more.
//!
//! Whether it can be emptied is asked of the planner first, before anything is changed. Who is gone for good is emptied as well: its replicas
//! are rebuilt elsewhere from those that are left.

use std::time::Duration;

use clap::Args;
use hadron_proto::etcdserverpb::MemberRemoveRequest;
use hadron_proto::etcdserverpb::cluster_client::ClusterClient;
use hadron_proto::hadron as pb;
use tokio::time::{Instant, sleep};

use super::balance::named;
use super::failure::Failure;
use super::keyspace::pool;
use super::print::balance::{Done, waiting_text};
use super::{Session, go_text};

/// Between two looks at what a node still has.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Arguments of `node remove`.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Its id or its name
    node: String,
    /// Remove it although it cannot be reached; what it had is rebuilt elsewhere first
    #[arg(long)]
    force: bool,
    /// Give up when the node is not empty after this time; it stays drained (0: never)
    #[arg(long, default_value = "0s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

/// What keeps a node from being removed.
fn obstacle(nodes: &[pb::Node], node: &pb::Node, force: bool) -> Option<String> {
    let others: Vec<&pb::Node> = nodes.iter().filter(|other| other.id != node.id && !other.learner).collect();
    let alive = others.iter().filter(|other| other.alive).count();
    let what = shown(node);
    if others.is_empty() {
        return Some(format!("{what} is the last member that votes: without it there is no pool"));
    }
    if alive <= others.len() / 2 {
        return Some(format!(
            "without {what} there are {} members that vote, and {alive} of them can be reached: that is no majority",
            others.len()
        ));
    }
    (!node.alive && !force).then(|| {
        format!(
            "{what} cannot be reached: start it, or use --force if it is gone for good; what it had is rebuilt elsewhere first"
        )
    })
}

/// What would be left on a node after all that the planner can do.
fn left_behind(node: &pb::Node, simulated: &pb::BalanceSimulateResponse) -> Option<String> {
    let left = simulated.nodes.iter().find(|it| it.id == node.id).map_or(0, |it| it.replicas_after);
    let advice = match node.alive {
        true => "Add a node first",
        false => {
            "Add a node first; or `member remove` this one, if a new one is to take its place: replicas that have a majority without it come \
             back on that"
        }
    };
    (left > 0).then(|| {
        format!(
            "{left} replicas on {} can go nowhere: a keyspace needs as many nodes as it has replicas, with room on their \
             disks, and a majority of its replicas within reach; nothing was changed. {advice}",
            shown(node)
        )
    })
}

fn shown(node: &pb::Node) -> String {
    match node.name.as_str() {
        "" => format!("node {:x}", node.id),
        name => format!("node {name} ({:x})", node.id),
    }
}

/// What a node still has; nothing once it is empty. `default` leaves with the member.
fn progress(node: &pb::Node) -> Option<String> {
    let replicas = node.replicas.saturating_sub(1);
    let is_empty = replicas == 0 && node.leaving == 0;
    (!is_empty).then(|| {
        let waiting = node.waiting.iter().map(|it| format!("; {}", waiting_text(it)));
        let waiting = waiting.collect::<String>();
        format!(
            "{} has {replicas} replicas to give away, and {} on their way{waiting}",
            shown(node),
            node.leaving
        )
    })
}

impl Session {
    /// Empties a node and removes it.
    pub(super) async fn remove_node(&self, remove: &Remove) -> Result<(), Failure> {
        let nodes = self.nodes().await?;
        let node = named(&nodes, &remove.node)?;
        if let Some(obstacle) = obstacle(&nodes, &node, remove.force) {
            return Err(Failure::error(obstacle));
        }
        let request = pb::BalanceSimulateRequest { drain: vec![node.id], ..Default::default() };
        let call = async |channel| pool(channel).balance_simulate(request.clone()).await;
        if let Some(left) = left_behind(&node, &self.client.read(call).await?) {
            return Err(Failure::error(left));
        }
        self.set_draining(node.id, true).await?;
        self.wait_until_empty(&node, remove.timeout).await?;
        let request = MemberRemoveRequest { id: node.id };
        let call = async |channel| ClusterClient::new(channel).member_remove(request).await;
        self.client.write(call).await?;
        self.printer.print(&Done(format!("Node {:x} removed", node.id)))
    }

    async fn wait_until_empty(&self, node: &pb::Node, timeout: Duration) -> Result<(), Failure> {
        let began = Instant::now();
        let mut told = String::new();
        loop {
            let node = named(&self.nodes().await?, &format!("{:x}", node.id))?;
            let Some(text) = progress(&node) else { return Ok(()) };
            if text != told {
                eprintln!("{text}");
                told = text;
            }
            if !timeout.is_zero() && began.elapsed() >= timeout {
                let text = format!("{told} after {timeout:?}: it stays drained, `node undrain` ends that");
                return Err(Failure::error(text));
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Members that vote, of whom those in `alive` can be reached.
    fn nodes(count: u64, alive: &[u64]) -> Vec<pb::Node> {
        let node = |id| pb::Node { id, alive: alive.contains(&id), replicas: 1, ..Default::default() };
        (1..=count).map(node).collect()
    }

    #[test]
    fn what_would_lose_the_pool_is_refused() {
        let refused = |nodes: &[pb::Node], force| obstacle(nodes, &nodes[0], force);
        assert!(refused(&nodes(1, &[1]), true).unwrap().contains("the last member"));
        assert!(refused(&nodes(3, &[1, 2]), true).unwrap().contains("1 of them can be reached"));
        assert!(refused(&nodes(3, &[2, 3]), false).unwrap().contains("use --force"));
        assert_eq!(refused(&nodes(3, &[2, 3]), true), None);
        assert_eq!(refused(&nodes(3, &[1, 2, 3]), false), None);
        let mut learner = nodes(2, &[1, 2]);
        learner[1].learner = true;
        assert!(refused(&learner, true).unwrap().contains("the last member"));
    }

    #[test]
    fn what_can_go_nowhere_is_named_before_anything_is_changed() {
        let node = pb::Node { id: 10, name: "n1".into(), ..Default::default() };
        let simulated = |replicas_after| pb::BalanceSimulateResponse {
            nodes: vec![pb::SimulatedNode { id: 10, replicas_after, ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(left_behind(&node, &simulated(0)), None);
        let left = left_behind(&node, &simulated(2)).unwrap();
        assert!(left.starts_with("2 replicas on node n1 (a) can go nowhere"), "{left}");
        // In its place a new one may come.
        assert!(left.contains("`member remove`"), "{left}");
        let alive = pb::Node { alive: true, ..node };
        assert!(left_behind(&alive, &simulated(2)).unwrap().ends_with("Add a node first"));
    }

    #[test]
    fn a_node_is_empty_when_nothing_is_left_to_give_and_nothing_on_its_way() {
        let node = |replicas, leaving| pb::Node { id: 1, replicas, leaving, ..Default::default() };
        assert_eq!(progress(&node(1, 0)), None);
        assert!(progress(&node(3, 0)).unwrap().contains("2 replicas to give away, and 0 on their way"));
        assert!(progress(&node(1, 1)).is_some());
    }
}
