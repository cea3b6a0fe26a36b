//! The hub: synced watchers, and the mailboxes that their events go to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use hadron_proto::etcdserverpb as pb;
use parking_lot::Mutex;

use super::matcher::{Matcher, WatcherNumber};
use crate::mvcc::{KeyRange, Record};

/// What a delivery occupies beside its events, about.
const DELIVERY_BYTES: usize = 64;

/// What a watcher wants to see.
#[derive(Clone, Debug)]
pub(crate) struct Interest {
    pub(crate) range: KeyRange,
    pub(crate) without_puts: bool,
    pub(crate) without_deletes: bool,
}

impl Interest {
    /// True if an event of this kind is wanted, whatever its key.
    pub(crate) fn wants(&self, record: &Record) -> bool {
        let is_delete = record.version.is_tombstone();
        !(is_delete && self.without_deletes || !is_delete && self.without_puts)
    }
}

/// Something for a client, in the order it is to be sent.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// A finished response: created, canceled.
    Control(Box<pb::WatchResponse>),
    /// Events of one revision.
    Events {
        watcher: WatcherNumber,
        revision: i64,
        /// Copies of those that this watcher wants, shared by all who do.
        records: Vec<Arc<Record>>,
    },
}

/// Where the hub puts what a stream is to send.
#[derive(Debug, Default)]
pub(crate) struct Mailbox(Mutex<MailboxState>);

#[derive(Debug, Default)]
pub(crate) struct MailboxState {
    pub(crate) queue: VecDeque<Delivery>,
    /// Bytes of the events in the queue.
    pub(crate) bytes: usize,
    /// Watchers that left the hub, each with the first revision that it has not seen.
    pub(crate) demoted: Vec<(WatcherNumber, i64)>,
    pub(crate) waker: Option<Waker>,
}

impl Mailbox {
    /// The contents. Lock it after the hub, never before.
    pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, MailboxState> {
        self.0.lock()
    }
}

impl Delivery {
    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let Delivery::Events { records, .. } = self else { return 0 };
        DELIVERY_BYTES + records.iter().map(|record| record.key.len() + record.value.len()).sum::<usize>()
    }
}

/// How many watchers a keyspace has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatcherCounts {
    /// All of them.
    pub all: usize,
    /// Those that read history, because they began in the past or fell behind.
    pub lagging: usize,
}

/// All synced watchers of a keyspace.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<HubState>,
    /// How many watchers there are, for apply to look at without the lock.
    watchers: AtomicUsize,
    buffer_bytes: usize,
}

#[derive(Debug)]
struct HubState {
    /// Every event up to here was offered to every watcher here.
    revision: i64,
    next_number: WatcherNumber,
    /// Numbers that were given out and have not left: the watchers here and those that lag.
    numbered: usize,
    watchers: BTreeMap<WatcherNumber, Synced>,
    matcher: Matcher,
}

#[derive(Debug)]
struct Synced {
    interest: Interest,
    /// Events before it are not wanted: a start in the future.
    from: i64,
    mailbox: Arc<Mailbox>,
}

impl Hub {
    /// A hub without watchers. Mailboxes hold about `buffer_bytes`.
    pub(crate) fn new(revision: i64, buffer_bytes: usize) -> Hub {
        let state = HubState {
            revision,
            next_number: 1,
            numbered: 0,
            watchers: BTreeMap::new(),
            matcher: Matcher::default(),
        };
        Hub { state: Mutex::new(state), watchers: AtomicUsize::new(0), buffer_bytes }
    }

    /// True if publishing without records would make watchers lag.
    pub(crate) fn has_watchers(&self) -> bool {
        self.watchers.load(Ordering::Acquire) > 0
    }

    /// The newest revision that watchers know of.
    pub(crate) fn revision(&self) -> i64 {
        self.state.lock().revision
    }

    /// A number for a new watcher, who gives it back with [`Hub::leave`], wherever it is then.
    pub(crate) fn number(&self) -> WatcherNumber {
        let mut state = self.state.lock();
        state.next_number += 1;
        state.numbered += 1;
        state.next_number - 1
    }

    /// Takes a watcher in, if there is nothing at or after `from` yet; otherwise says up to where it must read.
    pub(crate) fn join(
        &self,
        number: WatcherNumber,
        from: i64,
        interest: &Interest,
        mailbox: &Arc<Mailbox>,
    ) -> Result<(), i64> {
        let mut state = self.state.lock();
        if from <= state.revision {
            return Err(state.revision);
        }
        state.matcher.add(number, &interest.range);
        let synced = Synced { interest: interest.clone(), from, mailbox: Arc::clone(mailbox) };
        state.watchers.insert(number, synced);
        self.watchers.store(state.watchers.len(), Ordering::Release);
        Ok(())
    }

    /// Lets a watcher go, whether it was here or lagged.
    pub(crate) fn leave(&self, number: WatcherNumber) {
        let mut state = self.state.lock();
        state.remove(number);
        state.numbered -= 1;
        self.watchers.store(state.watchers.len(), Ordering::Release);
    }

    /// Wakes everybody who waits for events.
    pub(crate) fn wake_all(&self) {
        let state = self.state.lock();
        let wakers = state.watchers.values().filter_map(|watcher| watcher.mailbox.lock().waker.take());
        let wakers: Vec<Waker> = wakers.collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How many watchers there are.
    pub(crate) fn population(&self) -> WatcherCounts {
        let state = self.state.lock();
        WatcherCounts { all: state.numbered, lagging: state.numbered - state.watchers.len() }
    }

    /// Runs `look` while nothing can be published, with the present revision.
    pub(crate) fn while_still<T>(&self, look: impl FnOnce(i64) -> T) -> T {
        let state = self.state.lock();
        look(state.revision)
    }

    /// Offers the records that an entry added, up to `revision`. `None`: nobody watched when it was applied; whoever came
    /// since reads them from history.
    pub(crate) fn publish(&self, revision: i64, records: Option<Vec<Record>>) {
        let mut wakers = Vec::new();
        let mut state = self.state.lock();
        if revision > state.revision {
            match records {
                Some(records) => state.offer(records, self.buffer_bytes, &mut wakers),
                None => state.demote_all(revision, &mut wakers),
            }
            state.revision = revision;
            self.watchers.store(state.watchers.len(), Ordering::Release);
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A snapshot replaced the state: what was published between is in its history only.
    pub(crate) fn restart(&self, revision: i64) {
        let mut wakers = Vec::new();
        let mut state = self.state.lock();
        state.demote_all(i64::MAX, &mut wakers);
        state.revision = revision;
        self.watchers.store(0, Ordering::Release);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl HubState {
    fn remove(&mut self, number: WatcherNumber) -> Option<Synced> {
        let synced = self.watchers.remove(&number)?;
        self.matcher.remove(number, &synced.interest.range);
        Some(synced)
    }

    /// Offers the records of each revision in turn.
    fn offer(&mut self, records: Vec<Record>, buffer_bytes: usize, wakers: &mut Vec<Waker>) {
        let mut records = records.into_iter().peekable();
        while let Some(first) = records.next() {
            let revision = first.version.main;
            let mut batch = vec![first];
            while let Some(next) = records.next_if(|next| next.version.main == revision) {
                batch.push(next);
            }
            self.offer_revision(revision, &batch, buffer_bytes, wakers);
        }
    }

    fn offer_revision(
        &mut self,
        revision: i64,
        batch: &[Record],
        buffer_bytes: usize,
        wakers: &mut Vec<Waker>,
    ) {
        // In the order of numbers, so that the order within a mailbox does not depend on a hash map.
        let mut picks: BTreeMap<WatcherNumber, Vec<Arc<Record>>> = BTreeMap::new();
        for record in batch {
            let mut copy = None;
            self.matcher.matches(&record.key, |number| {
                let wanted = self.watchers.get(&number);
                if wanted.is_some_and(|synced| synced.from <= revision && synced.interest.wants(record)) {
                    let copy = copy.get_or_insert_with(|| Arc::new(record.detached()));
                    picks.entry(number).or_default().push(Arc::clone(copy));
                }
            });
        }
        for (watcher, records) in picks {
            let delivery = Delivery::Events { watcher, revision, records };
            self.deliver(watcher, revision, delivery, buffer_bytes, wakers);
        }
    }

    fn deliver(
        &mut self,
        watcher: WatcherNumber,
        revision: i64,
        delivery: Delivery,
        buffer_bytes: usize,
        wakers: &mut Vec<Waker>,
    ) {
        let Some(synced) = self.watchers.get(&watcher) else { return };
        let bytes = delivery.bytes();
        let mut mailbox = synced.mailbox.lock();
        wakers.extend(mailbox.waker.take());
        // An event that is larger than the mailbox still fits into an empty one.
        if mailbox.bytes == 0 || mailbox.bytes + bytes <= buffer_bytes {
            mailbox.bytes += bytes;
            mailbox.queue.push_back(delivery);
            return;
        }
        mailbox.demoted.push((watcher, revision));
        drop(mailbox);
        self.remove(watcher);
    }

    /// Everybody goes on from history, if anything that concerns them came before `revision`.
    fn demote_all(&mut self, revision: i64, wakers: &mut Vec<Waker>) {
        let concerned: Vec<WatcherNumber> = self
            .watchers
            .iter()
            .filter(|(_, synced)| synced.from <= revision)
            .map(|(number, _)| *number)
            .collect();
        for number in concerned {
            let Some(synced) = self.remove(number) else { continue };
            let mut mailbox = synced.mailbox.lock();
            mailbox.demoted.push((number, synced.from.max(self.revision + 1)));
            wakers.extend(mailbox.waker.take());
        }
    }
}
