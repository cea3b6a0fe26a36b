//! A disk that completes writes in order, later, and loses what it has not completed.

use std::collections::VecDeque;

use hadron_consensus::{Entry, HardState, Index, LogPosition, Persist, Restored, Time};

/// A write on its way.
#[derive(Debug)]
enum Write {
    Log(Persist),
    /// The log goes on after this position, which the state machine holds durably.
    Floor(LogPosition),
}

/// What survives a crash, and what does not.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    floor: LogPosition,
    entries: VecDeque<Entry>,
    /// The state machine's own durable state; written at once, since its rhythm is not the subject here.
    pub(crate) engine: LogPosition,
    pending: VecDeque<(Time, Write)>,
}

impl Disk {
    /// Starts a write that ends at `done_at`, or when the ones before it have ended.
    pub(crate) fn write(&mut self, persist: Persist, done_at: Time) -> Time {
        self.push(Write::Log(persist), done_at)
    }

    /// Starts the write of a new floor.
    pub(crate) fn write_floor(&mut self, floor: LogPosition, done_at: Time) {
        self.push(Write::Floor(floor), done_at);
    }

    fn push(&mut self, write: Write, done_at: Time) -> Time {
        let done_at = self.pending.back().map_or(done_at, |(previous, _)| done_at.max(*previous));
        self.pending.push_back((done_at, write));
        done_at
    }

    /// Completes what is due; returns the highest number of a persist among it.
    pub(crate) fn complete(&mut self, now: Time) -> Option<u64> {
        let mut sequence = None;
        while self.pending.front().is_some_and(|(done_at, _)| *done_at <= now) {
            let (_, write) = self.pending.pop_front().unwrap();
            sequence = self.apply(write).or(sequence);
        }
        sequence
    }

    /// Power fails: of the writes on their way, the first `survivors` happen to have made it.
    pub(crate) fn crash(&mut self, survivors: usize) {
        let pending = std::mem::take(&mut self.pending);
        for (_, write) in pending.into_iter().take(survivors) {
            self.apply(write);
        }
    }

    /// Writes on their way.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    fn apply(&mut self, write: Write) -> Option<u64> {
        match write {
            Write::Log(persist) => {
                self.hard_state = persist.hard_state.unwrap_or(self.hard_state);
                if let Some(first) = persist.entries.first() {
                    let keep = first.index.0.saturating_sub(self.floor.index.0 + 1);
                    assert!(keep <= self.entries.len() as u64, "a gap in the log on disk");
                    self.entries.truncate(keep as usize);
                    let floor = self.floor.index;
                    self.entries.extend(persist.entries.into_iter().filter(|entry| entry.index > floor));
                }
                Some(persist.sequence)
            }
            Write::Floor(floor) => {
                match self.position_at(floor.index) {
                    Some(position) if position == floor => {
                        self.entries.drain(..(floor.index.0 - self.floor.index.0) as usize);
                    }
                    _ => self.entries.clear(),
                }
                self.floor = floor;
                None
            }
        }
    }

    /// The durable log's position at `index`.
    pub(crate) fn position_at(&self, index: Index) -> Option<LogPosition> {
        if index == self.floor.index {
            return Some(self.floor);
        }
        let offset = index.0.checked_sub(self.floor.index.0 + 1)?;
        self.entries.get(offset as usize).map(Entry::position)
    }

    /// Whether `position`, and so everything before it, would survive a crash now.
    pub(crate) fn has(&self, position: LogPosition) -> bool {
        self.position_at(position.index) == Some(position) || self.engine.index >= position.index
    }

    /// What a process finds when it starts.
    pub(crate) fn restore(&mut self) -> Restored {
        if self.position_at(self.engine.index) != Some(self.engine) {
            // A snapshot was installed, and the log does not know yet.
            self.floor = self.engine;
            self.entries.clear();
        }
        Restored {
            hard_state: self.hard_state,
            floor: self.floor,
            entries: self.entries.iter().cloned().collect(),
            applied: self.engine.index,
        }
    }
}
