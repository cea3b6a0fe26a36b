//! `log_matching`: where two logs have an entry with the same index and term, they are equal up to there.
//!
//! An entry's chained checksum stands for the whole log up to it.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::history::Violation;

const GUARANTEE: &str = "log_matching";

/// The entries that were seen in any log.
#[derive(Debug, Default)]
pub struct LogMatching {
    /// Per group, index and term: the chained checksum.
    seen: BTreeMap<(u64, u64, u64), u64>,
}

impl LogMatching {
    /// Nothing seen yet.
    pub fn new() -> LogMatching {
        LogMatching::default()
    }

    /// `replica` wrote an entry of `group` to its log.
    pub fn observe(
        &mut self,
        replica: impl Display,
        group: u64,
        (index, term, checksum): (u64, u64, u64),
    ) -> Result<(), Violation> {
        let first = *self.seen.entry((group, index, term)).or_insert(checksum);
        if first == checksum {
            return Ok(());
        }
        let found = format!(
            "group {group}, index {index}, term {term}: the log of {replica} has checksum {checksum}, another {first}"
        );
        Err(Violation::new(GUARANTEE, found))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn different_logs_under_one_entry_are_caught() {
        let mut logs = LogMatching::new();
        logs.observe("n1", 1, (5, 2, 77)).unwrap();
        logs.observe("n2", 1, (5, 2, 77)).unwrap();
        logs.observe("n2", 1, (5, 3, 78)).unwrap();
        logs.observe("n2", 2, (5, 2, 79)).unwrap();
        logs.observe("n3", 1, (5, 2, 78)).unwrap_err();
    }
}
