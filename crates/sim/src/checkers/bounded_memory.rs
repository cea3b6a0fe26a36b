//! `bounded_memory`: a node holds no more than it was allowed, whatever its groups, disks and peers do.

use std::fmt;

use crate::history::Violation;

/// What a node holds at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Applied state that the engine does not have yet, all groups together.
    pub unflushed: usize,
    /// Log entries in memory, all groups together.
    pub log: usize,
    /// The write-ahead log's files.
    pub log_on_disk: u64,
}

impl Usage {
    /// The larger of each.
    pub fn max(self, other: Usage) -> Usage {
        Usage {
            unflushed: self.unflushed.max(other.unflushed),
            log: self.log.max(other.log),
            log_on_disk: self.log_on_disk.max(other.log_on_disk),
        }
    }
}

/// How much a node may hold.
pub type Bounds = Usage;

/// Holds a node's usage against its bounds.
///
/// # Errors
/// What is too much.
pub fn check(node: fmt::Arguments<'_>, usage: Usage, bounds: Bounds) -> Result<(), Violation> {
    let too_much = usage.unflushed > bounds.unflushed
        || usage.log > bounds.log
        || usage.log_on_disk > bounds.log_on_disk;
    if too_much {
        let found = format!("{node} holds {usage:?}, and may hold {bounds:?}");
        return Err(Violation::new("bounded_memory", found));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_counts() {
        let bounds = Bounds { unflushed: 10, log: 20, log_on_disk: 30 };
        assert!(check(format_args!("n1"), bounds, bounds).is_ok());
        for usage in [
            Usage { unflushed: 11, ..bounds },
            Usage { log: 21, ..bounds },
            Usage { log_on_disk: 31, ..bounds },
        ] {
            let violation = check(format_args!("n1"), usage, bounds).unwrap_err();
            assert_eq!(violation.guarantee, "bounded_memory");
        }
    }
}
