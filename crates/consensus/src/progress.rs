//! What a leader knows about one other replica, and how it feeds it.
//!
//! ```text
//!                     acknowledged
//!          ┌───────┐ ──────────────────▶ ┌───────────┐
//!   ─────▶ │ Probe │                     │ Replicate │
//!          └───────┘ ◀────────────────── └───────────┘
//!            │   ▲      rejected
//!            │   │
//!  its next  │   │ sent, failed, or acknowledged something that is in the log
//!  entry was ▼   │
//!  cut off ┌──────────┐
//!          │ Snapshot │
//!          └──────────┘
//! ```
//! *Probe*: one append at a time, to find out where the two logs agree. *Replicate*: appends follow each other without
//! waiting, until `inflight_bytes` are unacknowledged. *Snapshot*: nothing but heartbeats. A follower that is full, in
//! whatever state, gets no entries and no snapshot until it says that it is not.
//!
//! Invariant: `matched < next <= last + 1`. `matched` never decreases: it is durable at the follower, and ids of
//! replicas that lost their disk are not used again. One that denies again and again what it has acknowledged was given an older disk: once it was
//! named, it begins at nothing.

use std::collections::VecDeque;

use crate::event::Amnesia;
use crate::ids::{Index, ReplicaId, Time};

/// A denial may be older than the acknowledgement: it came late, or twice, and a whole stream of appends may have been denied. So many ticks with
/// denials and without an acknowledgement are not.
const TICKS_DENIED_MAX: u32 = 16;

/// How a follower is being fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// One append at a time, until the follower and the leader agree on where they agree.
    Probe,
    /// A stream of appends.
    Replicate,
    /// The follower needs a snapshot, and is thought to be receiving one.
    Snapshot,
}

/// The leader's knowledge of one other replica.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Whose.
    pub replica: ReplicaId,
    /// Durable there and equal to the leader's log, up to here.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    /// How it is being fed.
    pub state: ProgressState,
    /// In `Probe`: an append is on its way, and nothing more is sent until it is answered or the next tick.
    pub(crate) paused: bool,
    /// It has said something since it was probed by a tick. One that is silent gets no entries and no snapshot.
    pub(crate) responsive: bool,
    /// It has said something since the last tick.
    pub(crate) answered: bool,
    /// It said that it sleeps, and nothing happened since.
    pub(crate) asleep: bool,
    /// It takes no entries now, and says so in its answers.
    pub full: bool,
    /// Up to here it said itself that it has all. What a snapshot brought it to, whose sender heard of it another way, it may deny for as long as
    /// denials from before take.
    acknowledged: Index,
    /// Where its log may end, if it denied an entry that it had acknowledged, and in how many ticks it has since it last acknowledged all of them.
    denied: (Index, u32),
    /// It has since the last tick.
    denied_now: bool,
    /// The commit index that it was told.
    pub(crate) commit_sent: Index,
    /// The newest round of reads it was told.
    pub(crate) round_sent: u64,
    /// The newest round of reads it has confirmed.
    pub(crate) round_acknowledged: u64,
    /// It does not belong to the group any more, and is fed until it knows.
    pub(crate) leaving: Option<Leaving>,
    inflight: Inflight,
}

/// A replica on its way out of the group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    /// The configuration without it.
    pub(crate) index: Index,
    /// When that was proposed.
    pub(crate) since: Time,
}

/// Appends on their way.
#[derive(Clone, Debug, Default)]
struct Inflight {
    /// Last index and bytes of each, oldest first.
    appends: VecDeque<(Index, usize)>,
    bytes: usize,
}

impl Progress {
    /// Nothing is known yet but that the leader's log ends at `last`.
    pub(crate) fn new(replica: ReplicaId, last: Index) -> Progress {
        Progress {
            replica,
            matched: Index(0),
            next: last.next(),
            state: ProgressState::Probe,
            paused: false,
            responsive: true,
            answered: false,
            asleep: false,
            full: false,
            acknowledged: Index(0),
            denied: (Index(0), 0),
            denied_now: false,
            commit_sent: Index(0),
            round_sent: 0,
            round_acknowledged: 0,
            leaving: None,
            inflight: Inflight::default(),
        }
    }

    /// Bytes of entries sent and not yet acknowledged.
    pub fn inflight_bytes(&self) -> usize {
        self.inflight.bytes
    }

    /// Whether it belongs to the configuration at `index`, which is in force from `now` on.
    pub(crate) fn set_member(&mut self, is_member: bool, index: Index, now: Time) {
        let leaving = self.leaving.unwrap_or(Leaving { index, since: now });
        self.leaving = (!is_member).then_some(leaving);
    }

    /// Whether it is to be fed: it is a member, or leaves and was not told yet that the others do without it. One that does not hear
    /// that within `patience_us` finds out by itself.
    pub(crate) fn is_needed(&self, now: Time, patience_us: u64) -> bool {
        self.leaving.is_none_or(|leaving| {
            self.commit_sent < leaving.index && now.micros_since(leaving.since) < patience_us
        })
    }

    /// It was heard, and had seen `round`.
    pub(crate) fn heard(&mut self, round: u64) {
        self.answered = true;
        self.responsive = true;
        self.round_acknowledged = self.round_acknowledged.max(round);
    }

    /// A tick: what it says from now on is told apart from what it said before.
    pub(crate) fn tick(&mut self) {
        if !self.answered {
            self.responsive = false;
        }
        self.answered = false;
        self.denied_now = false;
    }

    /// An append with entries up to `last` of `bytes` bytes is on its way.
    pub(crate) fn sent(&mut self, last: Index, bytes: usize) {
        match self.state {
            ProgressState::Probe => self.paused = true,
            ProgressState::Replicate => {
                self.inflight.appends.push_back((last, bytes));
                self.inflight.bytes += bytes;
                self.next = last.next();
            }
            ProgressState::Snapshot => {}
        }
    }

    /// Everything up to `matched` is durable there. `floor` is the leader's.
    pub(crate) fn acknowledged(&mut self, matched: Index, floor: Index) {
        let advanced = matched > self.matched;
        self.acknowledged = self.acknowledged.max(matched);
        if matched >= self.acknowledged {
            self.denied = (Index(0), 0);
        }
        self.matched = self.matched.max(matched);
        self.inflight.release(matched);
        match self.state {
            ProgressState::Probe if advanced || matched >= self.next.previous() => self.become_replicate(),
            ProgressState::Snapshot if self.matched >= floor => self.become_replicate(),
            ProgressState::Replicate => self.next = self.next.max(matched.next()),
            _ => {}
        }
    }

    /// Whether it takes entries. What was on its way to one that does not is taken for lost.
    pub(crate) fn set_full(&mut self, full: bool) {
        if full && self.state != ProgressState::Snapshot {
            self.become_probe(self.matched.next());
        }
        self.full = full;
    }

    /// Where its log ends, if it has lost what it had acknowledged.
    pub fn lost_after(&self) -> Option<Index> {
        let (end, ticks) = self.denied;
        (ticks >= TICKS_DENIED_MAX).then_some(end)
    }

    /// It does not have the entry `rejected`; the logs may agree up to `candidate`. What it has lost, if it is time to say so.
    pub(crate) fn denied(&mut self, rejected: Index, candidate: Index) -> Option<Amnesia> {
        if rejected > self.acknowledged || std::mem::replace(&mut self.denied_now, true) {
            return None;
        }
        let ticks = self.denied.1.saturating_add(1);
        self.denied = (candidate, ticks);
        ticks.is_multiple_of(TICKS_DENIED_MAX).then_some(Amnesia {
            replica: self.replica,
            acknowledged: self.acknowledged,
            left: candidate,
            is_again: ticks > TICKS_DENIED_MAX,
        })
    }

    /// It has lost something, and is fed as if nothing were known of it.
    pub(crate) fn refeed(&mut self) {
        if let Some(left) = self.lost_after() {
            self.denied = (Index(0), 0);
            self.acknowledged = Index(0);
            self.matched = Index(0);
            self.become_probe(left.next());
        }
    }

    /// It does not have the entry `rejected`; the logs may agree up to `candidate`. False if that is old news.
    pub(crate) fn rejected(&mut self, rejected: Index, candidate: Index) -> bool {
        let is_current = match self.state {
            ProgressState::Probe => rejected == self.next.previous(),
            ProgressState::Replicate => rejected > self.matched && rejected < self.next,
            ProgressState::Snapshot => false,
        };
        if is_current && rejected > self.matched {
            let next = rejected.min(candidate.next()).max(self.matched.next());
            self.become_probe(next);
            return true;
        }
        false
    }

    /// Finds out anew where the logs agree, beginning with the entry before `next`.
    pub(crate) fn become_probe(&mut self, next: Index) {
        self.state = ProgressState::Probe;
        self.next = next.max(self.matched.next());
        self.paused = false;
        self.inflight = Inflight::default();
    }

    /// Waits for a snapshot.
    pub(crate) fn become_snapshot(&mut self) {
        self.state = ProgressState::Snapshot;
        self.paused = false;
        self.inflight = Inflight::default();
    }

    fn become_replicate(&mut self) {
        self.state = ProgressState::Replicate;
        self.next = self.matched.next();
        self.paused = false;
        self.inflight = Inflight::default();
    }
}

impl Inflight {
    fn release(&mut self, matched: Index) {
        while let Some((last, bytes)) = self.appends.front().copied() {
            if last > matched {
                break;
            }
            self.appends.pop_front();
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It denies an entry in so many ticks, more than once in each.
    fn deny(progress: &mut Progress, rejected: u64, ticks: u32) {
        for _ in 0..ticks {
            progress.tick();
            for _ in 0..3 {
                progress.denied(Index(rejected), Index(5));
                assert!(!progress.rejected(Index(rejected), Index(5)));
            }
        }
    }

    /// The leader took each for an old one, and the follower stayed where it was, without a word.
    #[test]
    fn who_denies_again_and_again_what_it_acknowledged_has_lost_it() {
        let mut progress = Progress::new(ReplicaId(2), Index(9));
        progress.acknowledged(Index(9), Index(0));
        deny(&mut progress, 9, TICKS_DENIED_MAX - 1);
        assert_eq!(progress.lost_after(), None);
        // They were late.
        progress.acknowledged(Index(9), Index(0));
        deny(&mut progress, 9, TICKS_DENIED_MAX - 1);
        assert_eq!(progress.lost_after(), None);
        progress.tick();
        let amnesia =
            Amnesia { replica: ReplicaId(2), acknowledged: Index(9), left: Index(5), is_again: false };
        assert_eq!(progress.denied(Index(9), Index(5)), Some(amnesia));
        assert_eq!(progress.lost_after(), Some(Index(5)));
        assert_eq!((progress.matched, progress.next), (Index(9), Index(10)), "what counts is what it said");
        // It was named and given nothing as long as its leader led, so that it never heard of it.
        progress.refeed();
        assert_eq!((progress.matched, progress.next), (Index(0), Index(6)));
        assert_eq!(progress.lost_after(), None);
        progress.acknowledged(Index(5), Index(0));
        assert_eq!((progress.matched, progress.state), (Index(5), ProgressState::Replicate));
    }

    /// The first time nobody may have been able to take the news.
    #[test]
    fn who_goes_on_denying_is_told_of_again() {
        let mut progress = Progress::new(ReplicaId(2), Index(9));
        progress.acknowledged(Index(9), Index(0));
        let told = (0..3 * TICKS_DENIED_MAX).filter_map(|_| {
            progress.tick();
            progress.denied(Index(9), Index(5))
        });
        assert_eq!(told.map(|amnesia| amnesia.is_again).collect::<Vec<_>>(), [false, true, true]);
        progress.refeed();
        progress.refeed();
        assert_eq!(progress.denied(Index(9), Index(5)), None);
    }

    #[test]
    fn what_a_follower_does_not_deny_it_may_have() {
        let mut progress = Progress::new(ReplicaId(3), Index(9));
        progress.acknowledged(Index(4), Index(0));
        for _ in 0..2 * TICKS_DENIED_MAX {
            progress.tick();
            assert_eq!(progress.denied(Index(7), Index(5)), None);
        }
        assert_eq!(progress.lost_after(), None);
    }

    /// A stream of appends had been denied when a snapshot came. Its sender heard first that it was installed, and then of the denials: it said
    /// that the follower has lost what the snapshot brought.
    #[test]
    fn denials_from_before_a_snapshot_that_come_after_it_are_no_loss() {
        let mut progress = Progress::new(ReplicaId(2), Index(9));
        progress.acknowledged(Index(4), Index(0));
        progress.matched = Index(9);
        deny(&mut progress, 7, 2 * TICKS_DENIED_MAX);
        assert_eq!(progress.lost_after(), None);
    }

    /// Nor are all that had been on their way when it acknowledged what they deny, however many they are.
    #[test]
    fn a_stream_of_late_denials_is_no_loss() {
        let mut progress = Progress::new(ReplicaId(2), Index(9));
        progress.acknowledged(Index(9), Index(0));
        progress.tick();
        for _ in 0..10 * TICKS_DENIED_MAX {
            assert_eq!(progress.denied(Index(7), Index(5)), None);
        }
        assert_eq!(progress.lost_after(), None);
    }
}
