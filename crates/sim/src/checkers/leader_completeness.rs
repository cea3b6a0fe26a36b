//! `leader_completeness`: whatever was committed is in the log of every later leader.
//!
//! What a replica has applied was committed, and an entry's chained checksum stands for the whole log up to it, so it is
//! enough to look for the newest entry that anybody has applied.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::history::Violation;

const GUARANTEE: &str = "leader_completeness";

/// The newest entry of each group that is known to be committed.
#[derive(Debug, Default)]
pub struct LeaderCompleteness {
    /// Per group and term: the newest entry (index, term and checksum) that a replica had applied while in that term.
    committed: BTreeMap<(u64, u64), (u64, u64, u64)>,
}

impl LeaderCompleteness {
    /// Nothing committed yet.
    pub fn new() -> LeaderCompleteness {
        LeaderCompleteness::default()
    }

    /// Some replica of `group`, which is in `term`, has applied this entry: index, term and checksum.
    pub fn observe_applied(&mut self, group: u64, term: u64, entry: (u64, u64, u64)) {
        let newest = self.committed.entry((group, term)).or_default();
        *newest = entry.max(*newest);
    }

    /// `leader` begins to lead `group` in `term`. `holds` says what its log has at an index, or that the index is below
    /// the log.
    ///
    /// What was committed in a later term is not asked of it: it may have won its election before, and not have heard yet
    /// that it leads no more.
    pub fn observe_leader(
        &self,
        leader: impl Display,
        group: u64,
        term: u64,
        holds: impl FnOnce(u64) -> Held,
    ) -> Result<(), Violation> {
        let newest = self.committed.range((group, 0)..(group, term)).map(|(_, entry)| *entry).max();
        let Some((index, term, checksum)) = newest else { return Ok(()) };
        match holds(index) {
            Held::Below => Ok(()),
            Held::Entry(held) if held == (term, checksum) => Ok(()),
            held => {
                let found = format!(
                    "group {group}: {leader} leads without the committed entry {index} of term {term}: {held:?}"
                );
                Err(Violation::new(GUARANTEE, found))
            }
        }
    }
}

/// What a log has at an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It begins later; what was cut from it is in the replica's state.
    Below,
    /// An entry of this term and chained checksum.
    Entry((u64, u64)),
    /// Nothing: it ends before.
    Nothing,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_leader_that_lacks_what_was_committed_is_caught() {
        let mut leaders = LeaderCompleteness::new();
        leaders.observe_leader("n1", 1, 3, |_| Held::Nothing).unwrap();
        leaders.observe_applied(1, 2, (7, 2, 77));
        leaders.observe_applied(1, 2, (5, 2, 55));
        leaders.observe_leader("n1", 1, 3, |index| Held::Entry((2, index * 11))).unwrap();
        leaders.observe_leader("n1", 1, 3, |_| Held::Below).unwrap();
        leaders.observe_leader("n1", 2, 3, |_| Held::Nothing).unwrap();
        leaders.observe_leader("n2", 1, 3, |_| Held::Nothing).unwrap_err();
        leaders.observe_leader("n2", 1, 3, |_| Held::Entry((3, 77))).unwrap_err();
        leaders.observe_leader("n2", 1, 3, |_| Held::Entry((2, 78))).unwrap_err();
    }

    #[test]
    fn a_leader_of_the_past_need_not_know_what_was_committed_after_it() {
        let mut leaders = LeaderCompleteness::new();
        leaders.observe_applied(1, 5, (39, 5, 390));
        leaders.observe_applied(1, 7, (40, 7, 400));
        leaders.observe_leader("n3", 1, 6, |index| Held::Entry((5, index * 10))).unwrap();
        leaders.observe_leader("n3", 1, 6, |_| Held::Nothing).unwrap_err();
        leaders.observe_leader("n3", 1, 8, |index| Held::Entry((5, index * 10))).unwrap_err();
    }
}
