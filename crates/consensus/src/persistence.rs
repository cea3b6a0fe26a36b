//! What this replica's disk has been told and what it has confirmed.
//!
//! Writes are numbered and complete in order. The group never waits for them; instead it asks here how far the log and
//! the hard state are durable *as they are now*. An entry that was replaced while its write was on the way does
//! not become durable when that write completes, which is why a truncation also shortens what is outstanding:
//!
//! ```text
//!   write 7: entries 3 4 5 (term 1)   ──┐
//!   leader of term 2 replaces 4..       │  write 7 now counts up to 3 only
//!   write 8: entries 4' (term 2)        │  ──┐
//!   Persisted(7) ───────────────────────┘    │  durable = 3
//!   Persisted(8) ────────────────────────────┘  durable = 4
//! ```

use std::collections::VecDeque;

use crate::entry::{Entry, HardState};
use crate::event::Persist;
use crate::ids::Index;
use crate::log::Log;

/// The two ends of the way to the disk.
#[derive(Debug)]
pub(crate) struct Persistence {
    /// Number of the newest write.
    sequence: u64,
    /// Number of the newest write that is durable.
    completed: u64,
    /// The write that carries the present term and vote.
    hard_state_sequence: u64,
    /// The term or the vote changed since it was last written.
    hard_state_dirty: bool,
    /// The commit index that was written last.
    written_commit: Index,
    /// The last index that a write carries. `durable <= submitted`.
    submitted: Index,
    /// The present log is durable up to here.
    durable: Index,
    /// Writes on their way: number, and the last index of the present log that it makes durable.
    writes: VecDeque<(u64, Index)>,
}

impl Persistence {
    /// Everything up to `last`, and the hard state, came from the disk.
    pub(crate) fn new(last: Index, commit: Index) -> Persistence {
        Persistence {
            sequence: 0,
            completed: 0,
            hard_state_sequence: 0,
            hard_state_dirty: false,
            written_commit: commit,
            submitted: last,
            durable: last,
            writes: VecDeque::new(),
        }
    }

    /// The log, as it is now, is durable up to here.
    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    /// Whether the term and the vote, as they are now, are durable.
    pub(crate) fn is_hard_state_durable(&self) -> bool {
        !self.hard_state_dirty && self.completed >= self.hard_state_sequence
    }

    /// The term or the vote changed.
    pub(crate) fn hard_state_changed(&mut self) {
        self.hard_state_dirty = true;
    }

    /// `from` and everything after it left the log: whatever was or will be written of it does not count.
    pub(crate) fn truncated(&mut self, from: Index) {
        let kept = from.previous();
        self.submitted = self.submitted.min(kept);
        self.durable = self.durable.min(kept);
        for (_, last) in &mut self.writes {
            *last = kept.min(*last);
        }
    }

    /// The state machine holds everything up to `index` durably, and the log goes on after it.
    pub(crate) fn restarted(&mut self, index: Index) {
        self.truncated(Index(1));
        self.covered(index);
    }

    /// The state machine holds everything up to `index` durably, whatever the log's writes do.
    pub(crate) fn covered(&mut self, index: Index) {
        self.durable = self.durable.max(index);
        self.submitted = self.submitted.max(index);
    }

    /// The next write, if there is something to write. The commit index alone is not.
    pub(crate) fn submit(&mut self, hard_state: HardState, log: &Log) -> Option<Persist> {
        let last = log.last().index;
        if !self.hard_state_dirty && self.submitted == last {
            return None;
        }
        self.sequence += 1;
        let changed = self.hard_state_dirty || hard_state.commit != self.written_commit;
        if self.hard_state_dirty {
            self.hard_state_sequence = self.sequence;
            self.hard_state_dirty = false;
        }
        self.written_commit = hard_state.commit;
        let entries: Vec<Entry> = log.entries_from(self.submitted.next()).cloned().collect();
        self.submitted = last;
        self.writes.push_back((self.sequence, last));
        Some(Persist { sequence: self.sequence, hard_state: changed.then_some(hard_state), entries })
    }

    /// Writes up to `sequence` are durable.
    pub(crate) fn completed(&mut self, sequence: u64) {
        assert!(sequence <= self.sequence, "write {sequence} completed before it was asked for");
        self.completed = self.completed.max(sequence);
        while let Some((number, last)) = self.writes.front().copied() {
            if number > sequence {
                break;
            }
            self.writes.pop_front();
            self.durable = self.durable.max(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::LogPosition;
    use crate::ids::{GroupId, Term};
    use bytes::Bytes;

    /// A write that was overtaken by a truncation must not vouch for the entries that replaced its own.
    #[test]
    fn a_replaced_entry_is_not_durable_before_its_own_write() {
        let mut log = Log::new(GroupId(1), LogPosition::default(), Vec::new());
        let mut persistence = Persistence::new(Index(0), Index(0));
        for _ in 0..5 {
            log.propose(Term(1), Bytes::new());
        }
        assert_eq!(persistence.submit(HardState::default(), &log).unwrap().sequence, 1);
        log.truncate(Index(4));
        persistence.truncated(Index(4));
        log.propose(Term(2), Bytes::new());
        let second = persistence.submit(HardState::default(), &log).unwrap();
        assert_eq!(second.entries[0].index, Index(4));
        persistence.completed(1);
        assert_eq!(persistence.durable(), Index(3));
        persistence.completed(2);
        assert_eq!(persistence.durable(), Index(4));
    }

    #[test]
    fn the_hard_state_is_durable_only_after_its_own_write() {
        let log = Log::new(GroupId(1), LogPosition::default(), Vec::new());
        let mut persistence = Persistence::new(Index(0), Index(0));
        assert!(persistence.is_hard_state_durable());
        persistence.hard_state_changed();
        assert!(!persistence.is_hard_state_durable());
        persistence.submit(HardState::default(), &log);
        assert!(!persistence.is_hard_state_durable());
        persistence.completed(1);
        assert!(persistence.is_hard_state_durable());
        assert_eq!(persistence.submit(HardState::default(), &log), None);
    }
}
