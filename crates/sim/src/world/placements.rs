//! Keyspaces that come, and move: somebody who makes those of the world through the catalog, on a few nodes each, and wants
//! them elsewhere again and again, through any node.

use std::collections::BTreeSet;

use hadron_consensus::{GroupId, NodeId, ROOT_GROUP, ReplicaId};
use hadron_keyspace::{Command, Response};
use hadron_node::{Catalog, Event as NodeEvent, KeyspaceRecord, Reply};
use rand::Rng;

use super::machine::Asked;
use super::settings::pick;
use super::story::StoryEvent;
use super::{Happening, Life, World};

/// Who makes and moves keyspaces gives up waiting after this time.
const PATIENCE_US: u64 = 3_000_000;

/// Who makes and moves keyspaces.
#[derive(Debug, Default)]
pub(super) struct Placer {
    /// What it waits for, until when.
    pub(super) waits_until: Option<u64>,
    /// Changes that were acknowledged.
    pub(super) changes: u64,
}

impl World {
    /// The placer looks at the catalog, and may change it.
    pub(super) fn place(&mut self) {
        let pause = self.rng.random_range(0..=2 * self.settings.placement_changes_us);
        self.schedule.after(pause, Happening::Place);
        let now = self.schedule.now();
        if self.quiet || self.placer.waits_until.is_some_and(|until| now < until) {
            return;
        }
        let node = self.any_node();
        let Some(life) = self.life(node) else { return };
        self.placer.waits_until = Some(now + PATIENCE_US);
        self.ask(life, Asked::Placer, |token| NodeEvent::Read { token, group: ROOT_GROUP });
    }

    /// The node answers the placer, or cannot.
    pub(super) fn on_placer_reply(&mut self, life: Life, reply: Reply) {
        self.placer.waits_until = None;
        match reply {
            Reply::ReadReady => self.change_catalog(life),
            Reply::Written { response: Ok(Response::Txn(response)), .. } if response.succeeded => {
                self.placer.changes += 1;
            }
            _ => {}
        }
    }

    /// The node shows the catalog as it was when the question began, or newer.
    fn change_catalog(&mut self, life: Life) {
        let Some(board) = self.process(life).map(|process| process.node().board()) else { return };
        let made = 1 + board.with_catalog(|catalog| catalog.keyspaces().count()) as u64;
        let command = match made < self.settings.keyspaces {
            true => {
                let nodes = self.some_nodes();
                board.with_catalog(|catalog| make(catalog, made + 1, &nodes))
            }
            false if self.faults_on && self.settings.accusations_us == 0 => {
                let group = GroupId(self.rng.random_range(2..=self.settings.keyspaces));
                let nodes = self.some_nodes();
                self.tell(StoryEvent::PlacementWanted {
                    group: group.0,
                    nodes: nodes.iter().map(|node| node.0).collect(),
                });
                board.with_catalog(|catalog| catalog.place(group, &nodes, "the world wants it there"))
            }
            false => None,
        };
        let Some(command) = command.map(|command| command.to_bytes()) else { return };
        self.placer.waits_until = Some(self.schedule.now() + PATIENCE_US);
        self.ask(life, Asked::Placer, |token| NodeEvent::Write { token, group: ROOT_GROUP, command });
    }

    fn some_nodes(&mut self) -> Vec<NodeId> {
        let counts: &[usize] =
            if self.settings.accusations_us > 0 { &[3, 3, 5] } else { &[1, 2, 3, 3, 3, 5] };
        let count = *pick(&mut self.rng, counts);
        let mut nodes: Vec<NodeId> = (1..=self.settings.nodes).map(NodeId).collect();
        while nodes.len() > count {
            nodes.remove(self.rng.random_range(0..nodes.len()));
        }
        nodes
    }

    /// Whether the groups of the catalog are where they are wanted, and nowhere else; says what is missing otherwise.
    pub(super) fn check_placed(&self) -> Result<(), String> {
        let boards = self.machines.iter().filter_map(|(node, machine)| {
            let board = machine.process.as_ref()?.node().board();
            Some((*node, board))
        });
        let boards: Vec<_> = boards.collect();
        let revision =
            |board: &hadron_node::Board| board.group(ROOT_GROUP).map_or(0, |root| root.keyspace.revision());
        let Some((_, newest)) = boards.iter().max_by_key(|(_, board)| revision(board)) else { return Ok(()) };
        newest.with_catalog(|catalog| {
            let made = 1 + catalog.keyspaces().count() as u64;
            if self.settings.placement_changes_us > 0 && made < self.settings.keyspaces {
                return Err(format!("{made} of {} keyspaces are made", self.settings.keyspaces));
            }
            catalog.placements().try_for_each(|(group, placement)| {
                let wanted: BTreeSet<ReplicaId> =
                    placement.record.places.iter().map(|place| ReplicaId(place.replica)).collect();
                for (node, board) in &boards {
                    let is_wanted = placement.record.replica_on(NodeId(*node)).is_some();
                    let is_done = board.group(group).map_or(!is_wanted, |here| {
                        let configuration = here.configuration();
                        let voters: BTreeSet<ReplicaId> = configuration.voters.iter().copied().collect();
                        is_wanted
                            && !configuration.is_joint()
                            && voters == wanted
                            && here.settled() == placement.revision
                    });
                    if !is_done {
                        let here = board.group(group).map(|here| (here.configuration(), here.settled()));
                        return Err(format!(
                            "n{node} has {here:?} of {group}, and the catalog wants {placement:?}"
                        ));
                    }
                }
                Ok(())
            })
        })
    }
}

fn make(catalog: &Catalog, number: u64, nodes: &[NodeId]) -> Option<Command> {
    let wanted = KeyspaceRecord { name: format!("k{number}"), ..KeyspaceRecord::default() };
    catalog.create(&wanted, nodes).ok()
}
