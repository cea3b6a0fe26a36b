//! Where a replica may go. The rules that hold for every move are here and nowhere else.

use super::board::{Board, Draft};
use crate::load::Load;

/// A node that may take a replica.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) node: usize,
    /// Other replicas of the group in its zone.
    pub(super) company: usize,
    /// Its W afterwards.
    pub(super) weight: f64,
}

impl Board<'_> {
    /// The best place for a replica of `group` with this load, which leaves the node `from` if that is given: where fewest
    /// others are in the zone, then where W stays lowest, then the first.
    pub(super) fn best_place(&self, group: usize, from: Option<usize>, load: &Load) -> Option<Place> {
        let draft = &self.groups[group];
        if !self.may_build() || !self.has_sender(draft) {
            return None;
        }
        let places = (0..self.seats.len()).filter_map(|node| self.place(group, from, node, load));
        places.reduce(|best, next| if next.is_better(&best) { next } else { best })
    }

    /// What `node` is as a place for a replica of `group`, if it may take one.
    pub(super) fn place(&self, group: usize, from: Option<usize>, node: usize, load: &Load) -> Option<Place> {
        let (draft, seat) = (&self.groups[group], &self.seats[node]);
        if !self.may_receive(seat, draft.view.bytes) || !self.is_free_of(draft, node) {
            return None;
        }
        Some(Place { node, company: self.company(draft, seat.zone, from), weight: seat.weight_with(load) })
    }

    /// Whether `node` has no replica of the group, and none to give up.
    pub(super) fn is_free_of(&self, draft: &Draft<'_>, node: usize) -> bool {
        !draft.replicas.contains(&node) && !draft.view.leaving.contains(&self.seats[node].id)
    }
}

impl Place {
    fn is_better(&self, other: &Place) -> bool {
        (self.company, self.weight) < (other.company, other.weight)
    }
}
