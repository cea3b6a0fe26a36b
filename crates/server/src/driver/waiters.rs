//! Clients' requests that wait for their answer: who is told, and when they have waited long enough.
//!
//! Every request has the same time-out, so those that began first end first: a queue in the order of their beginning
//! replaces a timer per request. Answered ones are left in the queue and passed over when they reach its front.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use hadron_consensus::{GroupId, NodeId, Term};
use hadron_node::{Failure, Reply};
use tokio::sync::oneshot;
use tracing::error;

use crate::api::admission::Admitted;
use crate::api::{Unavailable, Written};

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum Slot {
    /// A write's.
    Write(oneshot::Sender<Result<Written, Unavailable>>),
    /// A question's how far replicas are behind.
    Lags(oneshot::Sender<Result<Vec<(NodeId, u64)>, Unavailable>>),
    /// Any other request's.
    Other(oneshot::Sender<Result<(), Unavailable>>),
}

impl Slot {
    pub(super) fn fail(self, why: Unavailable) {
        // Whoever asked may have gone away.
        match self {
            Slot::Write(sender) => drop(sender.send(Err(why))),
            Slot::Lags(sender) => drop(sender.send(Err(why))),
            Slot::Other(sender) => drop(sender.send(Err(why))),
        }
    }

    fn answer(self, reply: Reply) {
        match (self, reply) {
            (slot, Reply::Failed(failure)) => slot.fail(unavailable(failure)),
            (Slot::Write(sender), Reply::Written { response, term }) => {
                drop(sender.send(Ok(Written { response, term: Term(term) })));
            }
            (Slot::Lags(sender), Reply::Lags(lags)) => drop(sender.send(Ok(lags))),
            (Slot::Other(sender), Reply::ReadReady | Reply::Transferred) => drop(sender.send(Ok(()))),
            (slot, reply) => {
                error!(?reply, "the node answered another question than it was asked");
                slot.fail(Unavailable::Timeout);
            }
        }
    }
}

fn unavailable(failure: Failure) -> Unavailable {
    match failure {
        Failure::NoSuchGroup => Unavailable::NoSuchGroup,
        Failure::NotLeader => Unavailable::NotLeader,
        Failure::BadTransferTarget => Unavailable::BadTransferTarget,
        Failure::Busy => Unavailable::Busy,
        Failure::Quarantined => Unavailable::Quarantined,
        Failure::Unreadable => Unavailable::LeaderTooOld,
        Failure::Unknown => Unavailable::TimeoutLeaderFailed,
    }
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Where the answer goes.
    pub(super) slot: Slot,
    /// The request's group.
    pub(super) group: GroupId,
    /// The group's term when the request began.
    pub(super) term: Term,
    /// When it began.
    pub(super) began: Instant,
    /// Its room.
    pub(super) admitted: Admitted,
}

/// All requests that wait.
#[derive(Debug)]
pub(super) struct Waiters {
    by_token: HashMap<u64, Waiter>,
    by_age: VecDeque<(Instant, u64)>,
    timeout: Duration,
}

impl Waiters {
    pub(super) fn new(timeout: Duration) -> Waiters {
        Waiters { by_token: HashMap::new(), by_age: VecDeque::new(), timeout }
    }

    pub(super) fn add(&mut self, token: u64, waiter: Waiter) {
        self.by_age.push_back((waiter.began, token));
        self.by_token.insert(token, waiter);
    }

    /// Hands an answer over. Nobody waits for the answers to the node's own requests.
    pub(super) fn answer(&mut self, token: u64, reply: Reply) {
        if let Some(Waiter { slot, admitted, .. }) = self.by_token.remove(&token) {
            // First the room: whoever has the answer may ask again at once.
            drop(admitted);
            slot.answer(reply);
        }
    }

    /// Forgets a request; true if it was still waiting.
    pub(super) fn forget(&mut self, token: u64) -> bool {
        self.by_token.remove(&token).is_some()
    }

    /// When the next request will have waited too long.
    pub(super) fn deadline(&mut self) -> Option<Instant> {
        while let Some((began, token)) = self.by_age.front() {
            if self.by_token.contains_key(token) {
                return Some(*began + self.timeout);
            }
            self.by_age.pop_front();
        }
        None
    }

    /// Takes a request that has waited too long at `now`, if there is one.
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<(u64, Waiter)> {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return None;
        }
        let (_, token) = self.by_age.pop_front()?;
        self.by_token.remove(&token).map(|waiter| (token, waiter))
    }

    /// The node stops. A write may be on its way, and is not promised to have failed.
    pub(super) fn stop(&mut self) {
        for (_, waiter) in self.by_token.drain() {
            let why = match waiter.slot {
                Slot::Write(_) => Unavailable::Timeout,
                Slot::Lags(_) | Slot::Other(_) => Unavailable::Stopped,
            };
            waiter.slot.fail(why);
        }
        self.by_age.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;
    use crate::api::admission::Admission;

    fn waiter(
        admission: &Arc<Admission>,
        began: Instant,
    ) -> (Waiter, oneshot::Receiver<Result<(), Unavailable>>) {
        let (sender, receiver) = oneshot::channel();
        let admitted = admission.admit(GroupId(1), 10).unwrap();
        let waiter = Waiter { slot: Slot::Other(sender), group: GroupId(1), term: Term(1), began, admitted };
        (waiter, receiver)
    }

    #[test]
    fn requests_expire_in_the_order_in_which_they_began() {
        let admission = Arc::new(Admission::new(20, 2_000));
        let start = Instant::now();
        let mut waiters = Waiters::new(Duration::from_secs(5));
        let mut receivers = Vec::new();
        for token in 1..=3 {
            let (waiter, receiver) = waiter(&admission, start + Duration::from_secs(token));
            waiters.add(token, waiter);
            receivers.push(receiver);
        }
        waiters.answer(1, Reply::ReadReady);
        assert_eq!(receivers[0].try_recv().unwrap(), Ok(()));
        assert_eq!(waiters.deadline(), Some(start + Duration::from_secs(7)), "the first was answered");
        assert!(waiters.take_expired(start + Duration::from_secs(6)).is_none());
        assert_eq!(waiters.take_expired(start + Duration::from_secs(7)).unwrap().0, 2);
        assert!(waiters.forget(3));
        assert_eq!(waiters.deadline(), None);
        assert_eq!(admission.requests(), 0, "all room was given back");
    }

    #[test]
    fn a_stop_promises_nothing_about_writes() {
        let admission = Arc::new(Admission::new(4, 200));
        let (sender, mut write) = oneshot::channel();
        let (mut write_waiter, _) = waiter(&admission, Instant::now());
        write_waiter.slot = Slot::Write(sender);
        let (read_waiter, mut read) = waiter(&admission, Instant::now());
        let mut waiters = Waiters::new(Duration::from_secs(5));
        waiters.add(1, write_waiter);
        waiters.add(2, read_waiter);
        waiters.stop();
        assert!(write.try_recv().unwrap().unwrap_err().may_have_happened());
        assert_eq!(read.try_recv().unwrap().unwrap_err(), Unavailable::Stopped);
    }
}
