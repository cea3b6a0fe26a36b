//! What happens to the nodes of a pool, and when.

use std::fmt;

use hadron_balance::View;
use hadron_consensus::{NodeId, Time};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::{HOUR_US, Settings, TROUBLED};

const MINUTE_US: u64 = HOUR_US / 60;
/// Nodes that fall in a day, for each node.
const LOSSES_PER_NODE: f64 = 0.05;
/// Nodes that join and that are drained, for each node.
const CHANGE_PER_NODE: f64 = 0.02;

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble {
    /// Nodes cannot be reached any more.
    Falls { nodes: Vec<NodeId>, what: String },
    /// They can again.
    Returns { nodes: Vec<NodeId>, what: String },
    /// New nodes join.
    Join { count: usize },
    /// Nodes are to be emptied.
    Drain { nodes: Vec<NodeId> },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Falls { what, .. } => write!(f, "{what} cannot be reached"),
            Trouble::Returns { what, .. } => write!(f, "{what} can be reached again"),
            Trouble::Join { count } => write!(f, "{count} nodes join"),
            Trouble::Drain { nodes } => write!(f, "{} nodes are to be emptied", nodes.len()),
        }
    }
}

/// Everything that happens, in order.
pub(super) fn schedule(settings: &Settings, view: &View) -> Vec<(Time, Trouble)> {
    let mut random = StdRng::seed_from_u64(settings.seed ^ 0x7472_6f75_626c_6500);
    let mut all = single_losses(settings, view, &mut random);
    let outage = |part: f64, zone: &str, micros| outage(settings, view, part, zone, micros);
    all.extend(outage(0.3, "zone-1", 5 * MINUTE_US));
    all.extend(outage(0.45, "zone-2", (settings.end().0 / 16).max(20 * MINUTE_US)));
    let changed = ((settings.nodes as f64 * CHANGE_PER_NODE) as usize).max(1);
    all.push((settings.at(0.65), Trouble::Join { count: changed }));
    let mut nodes: Vec<NodeId> = view.nodes.keys().copied().collect();
    nodes.shuffle(&mut random);
    nodes.truncate(changed);
    all.push((settings.at(0.72), Trouble::Drain { nodes }));
    all.sort_by_key(|(at, _)| *at);
    all
}

/// Half of the nodes that fall are back within the grace time, most others within hours, some never.
fn single_losses(settings: &Settings, view: &View, random: &mut StdRng) -> Vec<(Time, Trouble)> {
    let nodes: Vec<NodeId> = view.nodes.keys().copied().collect();
    let count = ((settings.nodes as f64 * LOSSES_PER_NODE) as usize).max(2);
    let mut all = Vec::new();
    for _ in 0..count {
        let at = settings.at(random.random_range(TROUBLED.0..TROUBLED.1));
        let Some(&node) = nodes.choose(random) else { continue };
        let (nodes, what) = (vec![node], node.to_string());
        all.push((at, Trouble::Falls { nodes: nodes.clone(), what: what.clone() }));
        let away = match random.random_range(0..10) {
            0..5 => random.random_range(1..9) * MINUTE_US,
            5..9 => random.random_range(30..240) * MINUTE_US,
            _ => continue,
        };
        if at.plus_micros(away) < settings.at(TROUBLED.1) {
            all.push((at.plus_micros(away), Trouble::Returns { nodes, what }));
        }
    }
    all
}

/// All of a zone is away for a while.
fn outage(settings: &Settings, view: &View, part: f64, zone: &str, micros: u64) -> [(Time, Trouble); 2] {
    let in_zone = view.nodes.iter().filter(|(_, node)| node.zone == zone);
    let nodes: Vec<NodeId> = in_zone.map(|(id, _)| *id).collect();
    let what = format!("{zone} with {} nodes", nodes.len());
    let at = settings.at(part);
    [
        (at, Trouble::Falls { nodes: nodes.clone(), what: what.clone() }),
        (at.plus_micros(micros), Trouble::Returns { nodes, what }),
    ]
}
