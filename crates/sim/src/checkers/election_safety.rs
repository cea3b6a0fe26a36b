//! `election_safety`: at most one replica leads a group in a term.

use std::collections::BTreeMap;

use crate::history::Violation;

const GUARANTEE: &str = "election_safety";

/// The leaders seen so far.
#[derive(Debug, Default)]
pub struct ElectionSafety {
    /// Per group and term: the node that led.
    leaders: BTreeMap<(u64, u64), u64>,
}

impl ElectionSafety {
    /// Nothing seen yet.
    pub fn new() -> ElectionSafety {
        ElectionSafety::default()
    }

    /// Some node says that `leader` leads `group` in `term`: the leader itself, or one that follows it.
    pub fn observe(&mut self, group: u64, term: u64, leader: u64) -> Result<(), Violation> {
        let first = *self.leaders.entry((group, term)).or_insert(leader);
        if first == leader {
            return Ok(());
        }
        let found = format!("group {group}, term {term}: both n{first} and n{leader} lead");
        Err(Violation::new(GUARANTEE, found))
    }

    /// How many terms had a leader in `group`.
    pub fn terms_led(&self, group: u64) -> usize {
        self.leaders.range((group, 0)..=(group, u64::MAX)).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_second_leader_in_a_term_is_caught() {
        let mut elections = ElectionSafety::new();
        elections.observe(1, 3, 1).unwrap();
        elections.observe(1, 3, 1).unwrap();
        elections.observe(1, 4, 2).unwrap();
        elections.observe(2, 3, 2).unwrap();
        assert_eq!(elections.terms_led(1), 2);
        elections.observe(1, 3, 2).unwrap_err();
    }
}
