//! The world's clock and what is due: a queue in which equal times keep the order in which they were put in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Happenings of type `H` in the order of their times.
pub(super) struct Schedule<H> {
    now: u64,
    number: u64,
    queue: BinaryHeap<Reverse<Due<H>>>,
}

struct Due<H> {
    at: u64,
    number: u64,
    what: H,
}

impl<H> Schedule<H> {
    pub(super) fn new() -> Schedule<H> {
        Schedule { now: 0, number: 0, queue: BinaryHeap::new() }
    }

    /// Microseconds since the world began.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Makes `what` happen at `at`, or now if that is past.
    pub(super) fn at(&mut self, at: u64, what: H) {
        self.number += 1;
        self.queue.push(Reverse(Due { at: at.max(self.now), number: self.number, what }));
    }

    /// Makes `what` happen `delay_us` from now.
    pub(super) fn after(&mut self, delay_us: u64, what: H) {
        self.at(self.now + delay_us, what);
    }

    /// Goes to the next happening, if it is not later than `until`.
    pub(super) fn next(&mut self, until: u64) -> Option<H> {
        if self.queue.peek().is_none_or(|Reverse(due)| due.at > until) {
            self.now = self.now.max(until);
            return None;
        }
        let Reverse(due) = self.queue.pop()?;
        self.now = due.at;
        Some(due.what)
    }
}

impl<H> Due<H> {
    fn key(&self) -> (u64, u64) {
        (self.at, self.number)
    }
}

impl<H> PartialEq for Due<H> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<H> Eq for Due<H> {}

impl<H> PartialOrd for Due<H> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<H> Ord for Due<H> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn happenings_come_by_time_and_then_in_the_order_they_were_put_in() {
        let mut schedule = Schedule::new();
        for (at, what) in [(5, 'a'), (3, 'b'), (5, 'c'), (9, 'd')] {
            schedule.at(at, what);
        }
        let order: Vec<_> = std::iter::from_fn(|| schedule.next(8)).collect();
        assert_eq!(order, ['b', 'a', 'c']);
        assert_eq!(schedule.now(), 8);
        schedule.at(1, 'e');
        assert_eq!(schedule.next(8), Some('e'));
    }
}
