//! Scrubs: now and then a node reads again what its engine holds of a keyspace, in small slices, while everything goes on. As long as nobody damaged
//! it, nothing may be found.
//!
//! Where replicas are rebuilt, records rot as well, under a running node: a scrub must find that, and the node has its replica named.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hadron_consensus::{GroupId, NodeId, ReplicaId};
use hadron_keyspace::{Owner, Scrub, ScrubError};
use hadron_node::{Accusation, Event as NodeEvent, GroupBoard, accuse};
use hadron_storage::engine::Space;
use rand::Rng;

use super::lies::a_record_of;
use super::machine::Asked;
use super::story::StoryEvent;
use super::{Happening, Life, World};
use crate::history::Violation;

/// Between two slices, at most.
const PAUSE_US_MAX: u64 = 60_000;
/// Bytes of a slice, at most.
const SLICE_BYTES_MAX: usize = 16 << 10;

/// What is being read.
#[derive(Debug, Default)]
pub(super) struct Scrubs {
    under_way: Option<UnderWay>,
    /// Replicas of which a record rotted, and which are there still.
    rotten: BTreeMap<(u64, GroupId), ReplicaId>,
    /// Where records ever rotted: they may be there still, and nobody's.
    ever: BTreeSet<(u64, GroupId)>,
    /// Scrubs that came to their end.
    pub(super) ended: u64,
}

#[derive(Debug)]
struct UnderWay {
    life: Life,
    group: GroupId,
    board: Arc<GroupBoard>,
    scrub: Scrub,
}

impl World {
    /// Reads the next slice of some replica.
    pub(super) fn scrub(&mut self) {
        if self.quiet {
            // What a scrub reads stays until it ends.
            self.scrubs.under_way = None;
            return;
        }
        let pause = self.rng.random_range(0..=PAUSE_US_MAX);
        self.schedule.after(pause, Happening::Scrub);
        let slice_bytes = self.rng.random_range(1..=SLICE_BYTES_MAX);
        let begun = match self.scrubs.under_way.take() {
            Some(under_way) => Some(under_way),
            None => self.begin_scrub(),
        };
        let Some(mut under_way) = begun.filter(|begun| self.is_here(begun)) else { return };
        match under_way.scrub.step(slice_bytes) {
            Ok(Some(_)) => self.scrubs.under_way = Some(under_way),
            Ok(None) => self.scrubs.ended += 1,
            Err(error) => self.scrub_fails(under_way.life, under_way.group, error),
        }
    }

    fn begin_scrub(&mut self) -> Option<UnderWay> {
        let node = self.any_node();
        let life = self.life(node)?;
        let groups = self.board(life)?.groups();
        let (group, board) = groups.get(self.rng.random_range(0..groups.len().max(1)))?.clone();
        match Scrub::begin(board.keyspace.clone()) {
            Ok(scrub) => Some(UnderWay { life, group, board, scrub: scrub? }),
            Err(error) => {
                self.scrub_fails(life, group, error);
                None
            }
        }
    }

    /// Whether the replica that is read is there still; one that was destroyed leaves nothing.
    fn is_here(&self, UnderWay { life, group, board, .. }: &UnderWay) -> bool {
        self.board_of(*life, *group).is_some_and(|here| Arc::ptr_eq(&here, board))
    }

    fn scrub_fails(&mut self, life: Life, group: GroupId, error: ScrubError) {
        match error {
            ScrubError::Stored(error) if self.is_rotten(life.node, group) && error.is_damage() => {
                self.name_rotten(life, group);
            }
            ScrubError::Stored(error) => {
                let found = format!("n{} finds what it has stored of {group} damaged: {error}", life.node);
                self.violate(Violation::new("stored_state", found));
            }
            ScrubError::Replaced => {}
        }
    }

    /// Whether a record rotted of the replica that a node has of a group.
    pub(super) fn is_rotten(&self, node: u64, group: GroupId) -> bool {
        self.scrubs.rotten.contains_key(&(node, group))
    }

    /// The same, or of a former one: what that left is nobody's.
    pub(super) fn ever_rotted(&self, node: u64, group: GroupId) -> bool {
        self.scrubs.ever.contains(&(node, group))
    }

    /// Some record of a node's replica rots, and a scrub must find it. False if nothing was stored of it, or too few others are sound.
    pub(super) fn rot(&mut self, node: u64, group: GroupId) -> bool {
        let random: u64 = self.rng.random();
        let Some(life) = self.life(node) else { return false };
        let Some(board) = self.board_of(life, group) else { return false };
        let Some(machine) = self.machines.get(&node) else { return false };
        let space = [Space::Versions, Space::Tables, Space::Values][random as usize % 3];
        let Some((key, _)) = a_record_of(&machine.engine, group, space, random / 3) else { return false };
        if !matches!(accuse(&board, NodeId(node)), Accusation::Raise(_)) {
            return false;
        }
        machine.engine.damage(space, key);
        self.scrubs.rotten.insert((node, group), board.replica());
        self.scrubs.ever.insert((node, group));
        self.tell(StoryEvent::Rots { node, group: group.0 });
        let found = (|| {
            let mut scrub = Scrub::begin(board.keyspace.clone())?;
            while let Some(scrub) = &mut scrub
                && scrub.step(SLICE_BYTES_MAX)?.is_some()
            {}
            Ok(())
        })();
        match found {
            Ok(()) => {
                let found = format!("n{node} does not find that a record of {group} in {space:?} rotted");
                self.violate(Violation::new("stored_state", found));
            }
            Err(error) => self.scrub_fails(life, group, error),
        }
        true
    }

    /// Has everybody know of rotten replicas who does not yet; those that were destroyed are forgotten.
    pub(super) fn name_all_rotten(&mut self) {
        for ((node, group), replica) in self.scrubs.rotten.clone() {
            let Some(machine) = self.machines.get(&node) else { continue };
            if !matches!(Owner::of(&*machine.engine, group.0), Ok(Owner::Living(living)) if living == replica.0)
            {
                self.scrubs.rotten.remove(&(node, group));
                continue;
            }
            let Some(life) = self.life(node) else { continue };
            self.name_rotten(life, group);
        }
    }

    fn name_rotten(&mut self, life: Life, group: GroupId) {
        let Some(board) = self.board_of(life, group) else { return };
        if let Accusation::Raise(alarm) = accuse(&board, NodeId(life.node)) {
            let command = alarm.to_bytes();
            self.ask(life, Asked::Placer, |token| NodeEvent::Write { token, group, command });
        }
    }

    fn board_of(&self, life: Life, group: GroupId) -> Option<Arc<GroupBoard>> {
        self.board(life)?.group(group)
    }

    /// What is still there of what rotted.
    pub(super) fn rotten(&self) -> impl Iterator<Item = &(u64, GroupId)> {
        self.scrubs.rotten.keys()
    }
}
