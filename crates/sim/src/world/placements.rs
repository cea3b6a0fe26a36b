//! Keyspaces that come, and move: somebody who makes those of the world through the catalog, on a few nodes each, and wants
//! them elsewhere again and again, or deletes one and makes it anew, through any node.

use std::collections::BTreeSet;

use hadron_consensus::{GroupId, NodeId, ROOT_GROUP, ReplicaId};
use hadron_keyspace::{Command, Response};
use hadron_node::{Board, Catalog, KeyspaceRecord, Reply};
use rand::Rng;

use super::machine::Asked;
use super::settings::pick;
use super::story::StoryEvent;
use super::{Happening, Life, World};

/// Who makes and moves keyspaces gives up waiting after this time.
const PATIENCE_US: u64 = 3_000_000;
/// A mortal keyspace is deleted instead of moved once in so many times.
const DELETED_ONE_IN: u32 = 2;

/// Who makes and moves keyspaces.
#[derive(Debug, Default)]
pub(super) struct Placer {
    /// What it waits for, until when.
    pub(super) waits_until: Option<u64>,
    /// Changes that were acknowledged.
    pub(super) changes: u64,
    /// The groups of keyspaces that were to be deleted.
    pub(super) unwanted: BTreeSet<GroupId>,
}

impl World {
    /// The placer looks at the catalog, and may change it.
    pub(super) fn place(&mut self) {
        let pause = self.rng.random_range(0..=2 * self.settings.placement_changes_us);
        self.schedule.after(pause, Happening::Place);
        let now = self.schedule.now();
        if self.placer.waits_until.is_some_and(|until| now < until) {
            return;
        }
        let node = self.any_node();
        let Some(life) = self.life(node) else { return };
        self.placer.waits_until = Some(now + PATIENCE_US);
        self.ask_root(life, Asked::Placer);
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
        let mut wanted = (2..=self.settings.keyspaces).map(GroupId);
        let missing = board.with_catalog(|catalog| wanted.find(|it| group_of(catalog, *it).is_none()));
        let command = match missing {
            Some(keyspace) => self
                .some_nodes(&board)
                .and_then(|nodes| board.with_catalog(|catalog| make(catalog, keyspace, &nodes))),
            None if self.faults_on => self.unsettle(&board),
            None => None,
        };
        let Some(command) = command else { return };
        self.placer.waits_until = Some(self.schedule.now() + PATIENCE_US);
        self.decide(life, Asked::Placer, &command);
    }

    /// A keyspace is wanted elsewhere, or not at all any more.
    fn unsettle(&mut self, board: &Board) -> Option<Command> {
        let keyspace = GroupId(self.rng.random_range(2..=self.settings.keyspaces));
        let group = board.with_catalog(|catalog| group_of(catalog, keyspace))?;
        if self.settings.is_mortal(keyspace) && self.rng.random_range(0..DELETED_ONE_IN) == 0 {
            self.tell(StoryEvent::DeletionWanted { group: group.0 });
            self.placer.unwanted.insert(group);
            // Later nobody can.
            let recorded = self.record_past(group);
            self.mind(recorded.map(drop));
            return board.with_catalog(|catalog| catalog.delete(&name(keyspace)).ok());
        }
        if self.settings.accusations_us > 0 {
            return None;
        }
        let nodes = self.some_nodes(board)?;
        self.tell(StoryEvent::PlacementWanted {
            group: group.0,
            nodes: nodes.iter().map(|node| node.0).collect(),
        });
        board.with_catalog(|catalog| {
            let place = catalog.place(group, &nodes, "the world wants it there")?;
            if !self.settings.plans {
                return Some(place);
            }
            let record = catalog.record(&name(keyspace))?.clone();
            // A planner goes by the number that is wanted.
            let record = KeyspaceRecord { replicas: nodes.len() as u32, ..record };
            Some(Catalog::together(catalog.alter(&record).ok()?, place))
        })
    }

    /// The group that a node takes a keyspace's requests to; one that is deleted now and then has another each time.
    pub(super) fn present_group(&self, keyspace: GroupId, life: Life) -> Option<GroupId> {
        if !self.settings.is_mortal(keyspace) {
            return Some(keyspace);
        }
        self.board(life)?.with_catalog(|catalog| group_of(catalog, keyspace))
    }

    /// Whether a group was deleted, as the node knows that knows most.
    pub(super) fn is_deleted(&self, group: GroupId) -> bool {
        let boards =
            self.machines.values().filter_map(|machine| Some(machine.process.as_ref()?.node().board()));
        boards.into_iter().any(|board| board.with_catalog(|catalog| catalog.is_deleted(group)))
    }

    /// Some of the members that vote and are not to be emptied. What whoever plans may lose a node of is on three at least.
    fn some_nodes(&mut self, board: &Board) -> Option<Vec<NodeId>> {
        let counts: &[usize] = if self.settings.plans { &[3, 3, 5] } else { &[1, 2, 3, 3, 3, 5] };
        let count = *pick(&mut self.rng, counts);
        let pool = board.pool();
        let mut nodes: Vec<NodeId> = pool.roster.voters().map(|member| member.node()).collect();
        if self.settings.member_changes_us > 0 {
            nodes.retain(|node| !board.with_catalog(|catalog| catalog.is_draining(*node)));
        }
        while nodes.len() > count {
            nodes.remove(self.rng.random_range(0..nodes.len()));
        }
        (nodes.len() >= count.min(3)).then_some(nodes)
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
            if let Some(node) = catalog.draining().next() {
                return Err(format!("{node:?} is still to be emptied"));
            }
            if catalog.leaving_count() > 0 {
                return Err(format!("{} replicas have not left yet", catalog.leaving_count()));
            }
            for (node, board) in &boards {
                if let Some((group, _)) = board.groups().iter().find(|(group, _)| catalog.is_deleted(*group))
                {
                    return Err(format!("n{node} still has the deleted group {group}"));
                }
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

/// The name of a keyspace whose first group was this one.
fn name(keyspace: GroupId) -> String {
    format!("k{}", keyspace.0)
}

fn group_of(catalog: &Catalog, keyspace: GroupId) -> Option<GroupId> {
    catalog.record(&name(keyspace)).map(KeyspaceRecord::group_id)
}

fn make(catalog: &Catalog, keyspace: GroupId, nodes: &[NodeId]) -> Option<Command> {
    let wanted = KeyspaceRecord { name: name(keyspace), ..KeyspaceRecord::default() };
    catalog.create(&wanted, nodes).ok()
}
