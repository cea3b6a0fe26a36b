//! `state_machine_safety`: no two replicas apply different entries at one index, and none applies backwards.
//!
//! An entry's chained checksum stands for the whole log up to it, so replicas that jump over indices (many entries in
//! one step, or a snapshot) are compared wherever they come to stand.

use std::collections::BTreeMap;

use crate::history::Violation;

const GUARANTEE: &str = "state_machine_safety";

/// What replicas were seen to have applied.
#[derive(Debug, Default)]
pub struct StateMachineSafety {
    /// Per group and index: term and chained checksum of the log there.
    applied: BTreeMap<(u64, u64), (u64, u64)>,
    /// Per node, its start and group: the newest applied index. A restarted node may resume further back.
    newest: BTreeMap<(u64, u64, u64), u64>,
}

impl StateMachineSafety {
    /// Nothing seen yet.
    pub fn new() -> StateMachineSafety {
        StateMachineSafety::default()
    }

    /// In its start number `incarnation`, `node` has applied the log of `group` up to `index`, where the entry has
    /// `term` and the log `checksum`.
    pub fn observe(
        &mut self,
        (node, incarnation): (u64, u64),
        group: u64,
        (term, index, checksum): (u64, u64, u64),
    ) -> Result<(), Violation> {
        let newest = self.newest.entry((node, incarnation, group)).or_insert(index);
        if index < *newest {
            let found = format!("group {group}: n{node} went back from index {newest} to {index}");
            return Err(Violation::new(GUARANTEE, found));
        }
        *newest = index;
        let first = *self.applied.entry((group, index)).or_insert((term, checksum));
        if first == (term, checksum) {
            return Ok(());
        }
        let found = format!(
            "group {group}, index {index}: n{node} applied (term, checksum) {:?}, another {first:?}",
            (term, checksum)
        );
        Err(Violation::new(GUARANTEE, found))
    }

    /// The highest index of `group` that any replica applied.
    pub fn highest(&self, group: u64) -> u64 {
        let of_group = self.applied.range((group, 0)..=(group, u64::MAX));
        of_group.last().map_or(0, |((_, index), _)| *index)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn different_entries_at_one_index_are_caught() {
        let mut safety = StateMachineSafety::new();
        safety.observe((1, 1), 1, (1, 5, 77)).unwrap();
        safety.observe((2, 1), 1, (1, 5, 77)).unwrap();
        safety.observe((2, 1), 2, (1, 5, 78)).unwrap();
        assert_eq!(safety.highest(1), 5);
        safety.observe((3, 1), 1, (1, 5, 78)).unwrap_err();
        safety.observe((3, 1), 1, (2, 5, 77)).unwrap_err();
    }

    #[test]
    fn applying_backwards_is_caught_but_a_restart_may_resume_earlier() {
        let mut safety = StateMachineSafety::new();
        safety.observe((1, 1), 1, (1, 5, 77)).unwrap();
        safety.observe((1, 1), 1, (1, 7, 79)).unwrap();
        safety.observe((1, 2), 1, (1, 5, 77)).unwrap();
        safety.observe((1, 1), 1, (1, 5, 77)).unwrap_err();
    }
}
