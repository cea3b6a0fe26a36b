//! One client's stream of watches: requests in, responses out, in the order that the client may rely on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::{Event, KeyValue, event::EventType};
use pb::watch_create_request::FilterType;
use prost::Message;

use super::history::{self, PIECE_BYTES, Piece};
use super::hub::{Delivery, Interest, Mailbox};
use super::matcher::WatcherNumber;
use crate::auth::Need;
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::{KeyRange, Record};
use crate::range::{header, key_value};

/// Deliveries without effect per poll, before other tasks get their turn.
const STEPS_PER_POLL: usize = 16;
/// The id in responses that concern no watcher, or all.
const NO_WATCH_ID: i64 = -1;
/// What the server adds to a header, at most, in bytes: three numbers.
const HEADER_BYTES: usize = 40;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// What may be chosen for a stream.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Instead of [`crate::Options::fragment_bytes`].
    pub fragment_bytes: Option<usize>,
}

/// The watches of one client. Dropping it cancels them.
///
/// Drive it with [`WatchStream::poll_next`]; requests may be made between polls. Its memory is bounded by
/// [`crate::Options::watch_buffer_bytes`] and one response.
#[derive(Debug)]
pub struct WatchStream {
    keyspace: Arc<Keyspace>,
    mailbox: Arc<Mailbox>,
    watchers: BTreeMap<i64, Watcher>,
    ids: BTreeMap<WatcherNumber, i64>,
    /// The next id to give to a watcher that brings none.
    next_id: i64,
    /// The last lagging watcher that was served, so that each gets its turn.
    last_served: i64,
    /// History was read since other tasks last had their turn.
    has_read: bool,
    /// The rest of a response that was split.
    fragments: VecDeque<pb::WatchResponse>,
    fragment_bytes: usize,
    /// The client asked how far its watchers are.
    progress_requested: bool,
}

#[derive(Debug)]
struct Watcher {
    number: WatcherNumber,
    interest: Interest,
    start_revision: i64,
    place: Place,
    prev_kv: bool,
    fragment: bool,
    /// Wants to know now and then how far it is.
    progress_notify: bool,
    /// Nothing was sent to it since the last tick.
    is_quiet: bool,
    /// A tick found it quiet.
    progress_due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the hub.
    Synced,
    /// Has everything before this revision.
    Lagging(i64),
    /// Its history is gone; it only waits for being cancelled.
    Compacted,
}

/// What one step of a poll came to.
enum Step {
    Ready(pb::WatchResponse),
    Again,
    /// It is other tasks' turn.
    Rest,
    Idle,
}

impl Keyspace {
    /// A stream without watches.
    pub fn watch_stream(self: &Arc<Keyspace>, options: WatchOptions) -> WatchStream {
        WatchStream {
            fragment_bytes: options.fragment_bytes.unwrap_or(self.options.fragment_bytes),
            keyspace: Arc::clone(self),
            mailbox: Arc::default(),
            watchers: BTreeMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            last_served: i64::MIN,
            has_read: false,
            fragments: VecDeque::new(),
            progress_requested: false,
        }
    }
}

impl WatchStream {
    /// Begins a watch. The answer, also to a bad request, is a response with `created`.
    pub fn create(&mut self, mut request: pb::WatchCreateRequest) {
        if request.key.is_empty() {
            request.key = Bytes::from_static(&[0]);
        }
        let revision = self.keyspace.hub.revision();
        let range = KeyRange::new(&request.key, &request.range_end);
        if request.start_revision < 0 {
            return self.refuse(revision, COMPACTED);
        }
        if range.is_empty() {
            return self.refuse(revision, EMPTY_RANGE);
        }
        if request.watch_id != 0 && self.watchers.contains_key(&request.watch_id) {
            return self.refuse(revision, DUPLICATE_ID);
        }
        let id = if request.watch_id == 0 { self.free_id() } else { request.watch_id };
        // Before the first event can be queued.
        self.control(pb::WatchResponse {
            header: header(revision),
            watch_id: id,
            created: true,
            ..Default::default()
        });
        self.add(id, range, revision, &request);
    }

    fn add(&mut self, id: i64, range: KeyRange, revision: i64, request: &pb::WatchCreateRequest) {
        let number = self.keyspace.hub.number();
        let interest = Interest {
            range: range.detached(),
            without_puts: request.filters.contains(&(FilterType::Noput as i32)),
            without_deletes: request.filters.contains(&(FilterType::Nodelete as i32)),
        };
        let from = if request.start_revision > 0 { request.start_revision } else { revision + 1 };
        let place = match self.keyspace.hub.join(number, from, &interest, &self.mailbox) {
            Ok(()) => Place::Synced,
            Err(_) => Place::Lagging(from),
        };
        let watcher = Watcher {
            number,
            interest,
            start_revision: request.start_revision,
            place,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            is_quiet: true,
            progress_due: false,
        };
        self.watchers.insert(id, watcher);
        self.ids.insert(number, id);
    }

    /// Ends a watch; nothing of it follows the response with `canceled`. An unknown id is ignored, as in etcd.
    pub fn cancel(&mut self, watch_id: i64) {
        self.end(watch_id, String::new());
    }

    fn end(&mut self, watch_id: i64, cancel_reason: String) {
        let Some(watcher) = self.watchers.remove(&watch_id) else { return };
        self.ids.remove(&watcher.number);
        self.keyspace.hub.leave(watcher.number);
        let header = header(self.keyspace.hub.revision());
        let response =
            pb::WatchResponse { header, watch_id, canceled: true, cancel_reason, ..Default::default() };
        self.control(response);
    }

    /// Answers a request to create a watch with a refusal.
    pub fn refuse_creation(&mut self, reason: &str) {
        self.refuse(self.keyspace.hub.revision(), reason);
    }

    /// Ends the watches of what `user` may not read now: nothing of them follows the response that says why, in the words of
    /// `reason`. Returns which. A response that was taken before is the caller's to withhold.
    pub fn end_forbidden(&mut self, user: Option<&str>, reason: impl Fn(&Error) -> String) -> Vec<i64> {
        let forbidden = |(id, watcher): (&i64, &Watcher)| {
            let (key, range_end) = watcher.interest.range.encoded();
            let error = self.keyspace.permit_user(user, Need::Read(&key, &range_end)).err()?;
            Some((*id, reason(&error)))
        };
        let ended: Vec<(i64, String)> = self.watchers.iter().filter_map(forbidden).collect();
        let end = |(id, reason): (i64, String)| {
            self.fragments.retain(|fragment| fragment.watch_id != id);
            self.end(id, reason);
            id
        };
        ended.into_iter().map(end).collect()
    }

    /// Asks how far the watchers are: once all of them are at the present and everything was sent, a response without
    /// events and with watch id -1 carries that revision. Forgotten if there are no watchers or one starts in the future.
    pub fn request_progress(&mut self) {
        self.progress_requested = !self.watchers.is_empty();
        self.wake();
    }

    /// To be called at the interval of progress notifications (etcd: every 10 min): watchers that want them and got nothing
    /// since the last call are told how far they are.
    pub fn tick_progress(&mut self) {
        for watcher in self.watchers.values_mut().filter(|watcher| watcher.progress_notify) {
            watcher.progress_due = watcher.is_quiet;
            watcher.is_quiet = true;
        }
        self.wake();
    }

    /// The next response, or the promise to wake the task once there is one. Never ends. Between two pieces of history the task is woken at once and
    /// has nothing: many lag at a time, and others have their turn then.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<pb::WatchResponse> {
        if let Some(fragment) = self.fragments.pop_front() {
            return Poll::Ready(fragment);
        }
        for _ in 0..STEPS_PER_POLL {
            match self.step(cx) {
                Step::Ready(response) => return Poll::Ready(response),
                Step::Again => {}
                Step::Rest => break,
                Step::Idle => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What the hub delivered comes first, then history, then progress.
    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        if let Some(delivery) = self.take_delivery(cx) {
            return self.respond(delivery);
        }
        if let Some(id) = self.next_lagging() {
            if std::mem::take(&mut self.has_read) {
                return Step::Rest;
            }
            self.last_served = id;
            return self.catch_up(id);
        }
        self.answer_progress()
    }

    fn take_delivery(&mut self, cx: &mut Context<'_>) -> Option<Delivery> {
        let mut mailbox = self.mailbox.lock();
        for (number, next) in std::mem::take(&mut mailbox.demoted) {
            let watcher = self.ids.get(&number).and_then(|id| self.watchers.get_mut(id));
            if let Some(watcher) = watcher {
                watcher.place = Place::Lagging(next);
            }
        }
        let delivery = mailbox.queue.pop_front();
        match &delivery {
            Some(delivery) => mailbox.bytes -= delivery.bytes(),
            None if mailbox.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) => {}
            None => mailbox.waker = Some(cx.waker().clone()),
        }
        delivery
    }

    fn respond(&mut self, delivery: Delivery) -> Step {
        match delivery {
            Delivery::Control(response) => Step::Ready(*response),
            Delivery::Events { watcher, revision, records } => {
                // A watcher that was cancelled meanwhile has no id.
                let Some(id) = self.ids.get(&watcher).copied() else { return Step::Again };
                let picked = records.iter().map(|record| Record::clone(record)).collect();
                self.send_events(id, revision, picked)
            }
        }
    }

    fn next_lagging(&self) -> Option<i64> {
        let lags =
            |(id, watcher): (&i64, &Watcher)| matches!(watcher.place, Place::Lagging(_)).then_some(*id);
        let after = self.last_served.saturating_add(1);
        self.watchers.range(after..).find_map(lags).or_else(|| self.watchers.range(..after).find_map(lags))
    }

    /// Reads a piece of history for a lagging watcher, or lets it join the hub.
    fn catch_up(&mut self, id: i64) -> Step {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Step::Again };
        let Place::Lagging(next) = watcher.place else { return Step::Again };
        let present = match self.keyspace.hub.join(watcher.number, next, &watcher.interest, &self.mailbox) {
            Ok(()) => {
                watcher.place = Place::Synced;
                return Step::Again;
            }
            Err(present) => present,
        };
        let read = history::read(&self.keyspace, &watcher.interest, next, present);
        match self.keyspace.note_read(read) {
            Ok(Piece::Events { events, next }) => {
                watcher.place = Place::Lagging(next);
                self.has_read = true;
                if events.is_empty() { Step::Again } else { self.send_events(id, present, events) }
            }
            Ok(Piece::Compacted(compact_revision)) => {
                watcher.place = Place::Compacted;
                Step::Ready(pb::WatchResponse {
                    // etcd's has no revision.
                    header: header(0),
                    watch_id: id,
                    canceled: true,
                    compact_revision,
                    cancel_reason: COMPACTED.into(),
                    ..Default::default()
                })
            }
            // Whoever drives the stream looks now and then whether the state is still there, and then this is tried again.
            Ok(Piece::Gone) => Step::Idle,
            Err(error) => self.fail(id, &error.to_string()),
        }
    }

    /// The history cannot be read: the client learns of it rather than of a gap.
    fn fail(&mut self, id: i64, reason: &str) -> Step {
        if let Some(watcher) = self.watchers.remove(&id) {
            self.ids.remove(&watcher.number);
            self.keyspace.hub.leave(watcher.number);
        }
        Step::Ready(pb::WatchResponse {
            header: header(self.keyspace.hub.revision()),
            watch_id: id,
            canceled: true,
            cancel_reason: format!("hadron: {reason}"),
            ..Default::default()
        })
    }

    fn send_events(&mut self, id: i64, revision: i64, records: Vec<Record>) -> Step {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Step::Again };
        watcher.is_quiet = false;
        let (events, left_out) = match to_events(&self.keyspace, records, watcher.prev_kv) {
            Ok(events) => events,
            Err(error) => return self.fail(id, &error.to_string()),
        };
        if let Some(next) = left_out {
            watcher.place = Place::Lagging(next);
        }
        let response =
            pb::WatchResponse { header: header(revision), watch_id: id, events, ..Default::default() };
        if !watcher.fragment {
            return Step::Ready(response);
        }
        self.fragments = split(response, self.fragment_bytes).into();
        self.fragments.pop_front().map_or(Step::Again, Step::Ready)
    }

    /// Answers what was asked about progress. Nobody lags here; what the hub may have queued since is sent first.
    fn answer_progress(&mut self) -> Step {
        if !self.progress_requested && self.watchers.values().all(|watcher| !watcher.progress_due) {
            return Step::Idle;
        }
        let still = self.keyspace.hub.while_still(|revision| {
            let mailbox = self.mailbox.lock();
            (mailbox.queue.is_empty() && mailbox.demoted.is_empty()).then_some(revision)
        });
        let Some(revision) = still else { return Step::Again };
        if std::mem::take(&mut self.progress_requested) {
            if self.watchers.values().all(|watcher| watcher.start_revision <= revision) {
                return Step::Ready(progress(NO_WATCH_ID, revision));
            }
            return Step::Again;
        }
        let due = self.watchers.iter_mut().find(|(_, watcher)| watcher.progress_due);
        let Some((id, watcher)) = due else { return Step::Again };
        watcher.progress_due = false;
        let is_there = watcher.place == Place::Synced && watcher.start_revision <= revision;
        if is_there { Step::Ready(progress(*id, revision)) } else { Step::Again }
    }

    fn refuse(&mut self, revision: i64, reason: &str) {
        self.control(pb::WatchResponse {
            header: header(revision),
            watch_id: NO_WATCH_ID,
            created: true,
            canceled: true,
            cancel_reason: reason.into(),
            ..Default::default()
        });
    }

    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn control(&self, response: pb::WatchResponse) {
        self.mailbox.lock().queue.push_back(Delivery::Control(Box::new(response)));
        self.wake();
    }

    fn wake(&self) {
        let waker = self.mailbox.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        for number in self.ids.keys() {
            self.keyspace.hub.leave(*number);
        }
    }
}

fn progress(watch_id: i64, revision: i64) -> pb::WatchResponse {
    pb::WatchResponse { header: header(revision), watch_id, ..Default::default() }
}

/// The events as clients see them. What a key was before is looked up now; if it is compacted, the event goes without. If it
/// cannot be read there are no events: one without what came before would say that it is compacted. With what keys were before, a piece of history
/// may be larger than it was read: then it ends with a revision, and the first one that is left out is named.
fn to_events(
    keyspace: &Keyspace,
    records: Vec<Record>,
    prev_kv: bool,
) -> Result<(Vec<Event>, Option<i64>), Error> {
    let mut events = Vec::with_capacity(records.len());
    let mut bytes = 0;
    let mut records = records.into_iter().peekable();
    while let Some(first) = records.next() {
        let revision = first.version.main;
        if bytes >= PIECE_BYTES {
            return Ok((events, Some(revision)));
        }
        let mut same = vec![first];
        while let Some(next) = records.next_if(|next| next.version.main == revision) {
            same.push(next);
        }
        let mut before = BTreeMap::new();
        if prev_kv {
            let keys: Vec<Bytes> =
                same.iter().filter(|record| !is_creation(record)).map(|r| r.key.clone()).collect();
            before = match keyspace.values_before(revision, &keys) {
                Err(Error::Compacted) => BTreeMap::new(),
                values => values?,
            };
        }
        for record in same {
            let previous = if is_creation(&record) { None } else { before.get(&record.key).cloned() };
            let previous = previous.map(|row| key_value(row, false));
            bytes += record.key.len() + record.value.len();
            bytes += previous.as_ref().map_or(0, |previous| previous.key.len() + previous.value.len());
            events.push(to_event(record, previous));
        }
    }
    Ok((events, None))
}

fn is_creation(record: &Record) -> bool {
    !record.version.is_tombstone() && record.version.create == record.version.main
}

fn to_event(record: Record, prev_kv: Option<KeyValue>) -> Event {
    let Record { key, version, value } = record;
    let (kind, kv) = if version.is_tombstone() {
        (EventType::Delete, KeyValue { key, mod_revision: version.main, ..Default::default() })
    } else {
        let kv = KeyValue {
            key,
            create_revision: version.create,
            mod_revision: version.main,
            version: version.version,
            value,
            lease: version.lease,
        };
        (EventType::Put, kv)
    };
    Event { r#type: kind as i32, kv: Some(kv), prev_kv }
}

/// Splits a response into fragments below `bytes_max`, each with at least one event; all but the last say so.
fn split(mut response: pb::WatchResponse, bytes_max: usize) -> Vec<pb::WatchResponse> {
    let events = std::mem::take(&mut response.events);
    let empty_bytes = response.encoded_len() + HEADER_BYTES;
    let mut fragments = vec![response.clone()];
    let mut bytes = empty_bytes;
    for event in events {
        let event_bytes = event.encoded_len() + 6;
        let is_full = bytes + event_bytes >= bytes_max && bytes > empty_bytes;
        if is_full {
            fragments.push(response.clone());
            bytes = empty_bytes;
        }
        bytes += event_bytes;
        if let Some(last) = fragments.last_mut() {
            last.events.push(event);
        }
    }
    let last = fragments.len() - 1;
    fragments[..last].iter_mut().for_each(|fragment| fragment.fragment = true);
    fragments
}
