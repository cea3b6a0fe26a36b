//! Watchers: each follows a range of keys on some node, and goes on from where it stood on another when that node fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use hadron_consensus::GroupId;
use hadron_keyspace::{Keyspace, WatchStream};
use hadron_node::Board;
use hadron_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use rand::Rng;
use rand::rngs::SmallRng;

use super::{Happening, Life, World};
use crate::checkers::watch_order::Watcher;
use crate::etcd;
use crate::history::{Event, Violation};

/// Looks without anything new, after all replicas are equal, before a watcher counts as having seen everything.
const QUIET_LOOKS: u32 = 5;
/// Microseconds after which a stream ends whose replica has left.
const NOTICED_AFTER_US: u64 = 1_000_000;
/// A watcher asks how far it is once in so many looks.
const PROGRESS_ONE_IN: u32 = 5;
/// Microseconds between two looks, at most.
const LOOK_US: u64 = 60_000;

/// What a stream has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    newest: i64,
    complete_to: i64,
}

/// One watcher and its stream.
pub(super) struct Watching {
    /// The keyspace that it watches, by its group or the first that it had.
    keyspace: GroupId,
    /// The group that it watches.
    group: GroupId,
    seen: Watcher,
    /// What it saw of former groups of the keyspace, which were deleted.
    former: Vec<(GroupId, Watcher)>,
    /// On which node, and of which replica there.
    stream: Option<(Life, Arc<Keyspace>, WatchStream)>,
    /// What the stream has sent: the newest revision of an event, and up to which it has promised that there is no more to come.
    sent: Sent,
    /// When its replica was found to have left; the stream is ended a while later, as the server does.
    left_at: Option<u64>,
    /// Changes stream now and then even if its node is well.
    restless: bool,
    /// Looks without anything new since its node's revision was [`Watching::looked_at`].
    quiet_looks: u32,
    looked_at: i64,
}

impl Watching {
    pub(super) fn new(number: u64, keyspaces: u64, rng: &mut SmallRng) -> Watching {
        // The first sees everything, the others some of the keys.
        let (key_from, key_to) = if number == 0 { ("a", "z") } else { ("k1", "k4") };
        let seen = Watcher {
            name: format!("watcher {number}"),
            from_revision: if number == 0 { 1 } else { rng.random_range(1..200) },
            key_from: key_from.into(),
            key_to: key_to.into(),
            events: Vec::new(),
            gaps: Vec::new(),
            complete_to: 0,
        };
        let keyspace = GroupId(1 + number % keyspaces);
        Watching {
            keyspace,
            group: keyspace,
            seen,
            former: Vec::new(),
            stream: None,
            sent: Sent::default(),
            left_at: None,
            restless: rng.random_bool(0.5),
            quiet_looks: 0,
            looked_at: 0,
        }
    }

    /// The keyspace was made anew.
    fn begin_anew(&mut self, group: GroupId) {
        self.former.push((self.group, self.seen.clone()));
        self.group = group;
        self.stream = None;
        (self.quiet_looks, self.looked_at) = (0, 0);
        self.seen.from_revision = 1;
        self.seen.events.clear();
        self.seen.gaps.clear();
        self.seen.complete_to = 0;
    }

    /// What it saw of each group, as its checker takes it.
    pub(super) fn seen(&self) -> impl Iterator<Item = (GroupId, &Watcher)> {
        self.former.iter().map(|(group, seen)| (*group, seen)).chain([(self.group, &self.seen)])
    }

    fn next_revision(&self) -> i64 {
        let after_newest = self.seen.events.last().map_or(0, |event| event.revision + 1);
        let after_gap = self.seen.gaps.last().map_or(0, |(_, to)| to + 1);
        self.seen.from_revision.max(after_newest).max(after_gap).max(self.seen.complete_to + 1)
    }

    /// Takes what the stream has. An error says that the watch ended.
    fn take(&mut self) -> Result<Taken, String> {
        let mut taken = Taken::default();
        let Some((.., stream)) = &mut self.stream else { return Ok(taken) };
        while let Some(response) = poll(stream) {
            if response.compact_revision > 0 {
                taken.compacted_at = Some(response.compact_revision);
                break;
            }
            let events = events(&response)?;
            self.sent.note(&response, &events)?;
            taken.events.extend(events);
        }
        self.seen.complete_to = self.seen.complete_to.max(self.sent.complete_to);
        Ok(taken)
    }

    /// What it asked for next is not there any more; it goes on after that.
    fn pass_over(&mut self, compacted_at: i64, compacted_at_most: i64) -> Result<(), String> {
        let next = self.next_revision();
        if compacted_at <= next || compacted_at > compacted_at_most {
            return Err(format!(
                "the watch from revision {next} ended because of a compaction at {compacted_at}, and nobody compacted beyond {compacted_at_most}"
            ));
        }
        self.stream = None;
        // What happened at that revision itself is there still.
        self.seen.gaps.push((next, compacted_at - 1));
        Ok(())
    }
}

impl Sent {
    /// Holds a response of the stream against what it has sent before: a revision comes whole, in one response, and what was promised to be all is all.
    fn note(&mut self, response: &WatchResponse, events: &[Event]) -> Result<(), String> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if let (Some(first), Some(last)) = (events.first(), events.last()) {
            if first.revision <= self.newest.max(self.complete_to) || last.revision > revision {
                return Err(format!("{self:?}, and then comes {response:?}"));
            }
            self.newest = last.revision;
        } else if !response.created && !response.canceled {
            self.complete_to = self.complete_to.max(revision);
        }
        Ok(())
    }
}

/// What a look at a stream brought.
#[derive(Debug, Default)]
struct Taken {
    events: Vec<Event>,
    /// The watch ended because what it asked for was compacted up to this revision.
    compacted_at: Option<i64>,
}

/// The next response, if there is one without anything new happening. A stream that only wants others to have their turn
/// wakes its task at once and is polled again.
fn poll(stream: &mut WatchStream) -> Option<WatchResponse> {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    loop {
        match stream.poll_next(&mut Context::from_waker(&waker)) {
            Poll::Ready(response) => return Some(response),
            Poll::Pending if woken.0.swap(false, Ordering::Relaxed) => {}
            Poll::Pending => return None,
        }
    }
}

/// Whether a task was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn events(response: &WatchResponse) -> Result<Vec<Event>, String> {
    if response.canceled {
        return Err(format!("it was cancelled: {response:?}"));
    }
    Ok(response.events.iter().filter_map(etcd::event).collect())
}

fn open(keyspace: &Arc<Keyspace>, from: &Bytes, to: &Bytes, start_revision: i64) -> WatchStream {
    let mut stream = keyspace.watch_stream(Default::default());
    stream.create(WatchCreateRequest {
        key: from.clone(),
        range_end: to.clone(),
        start_revision,
        ..WatchCreateRequest::default()
    });
    stream
}

impl World {
    /// A watcher looks for events; without a stream, for a node.
    pub(super) fn watch(&mut self, number: usize) {
        let any = self.any_node();
        let moves = self.watchers[number].restless && self.rng.random_range(0..50) == 0;
        let has_left = !self.is_watched_here(number) && !self.lingers(number);
        if moves || has_left {
            self.watchers[number].stream = None;
            self.watchers[number].left_at = None;
            self.open_watch(number, any);
        }
        let asks = self.rng.random_range(0..PROGRESS_ONE_IN) == 0;
        if let Some((.., stream)) = self.watchers[number].stream.as_mut().filter(|_| asks) {
            stream.request_progress();
        }
        if asks && self.is_told_too_early() {
            self.watchers[number].sent.complete_to += 1;
        }
        let mut taken = self.watchers[number].take();
        if taken.is_err() && self.watchers[number].left_at.is_some() {
            // What it was to tell is gone.
            self.watchers[number].stream = None;
            taken = Ok(Taken::default());
        }
        let stream = self.watchers[number].stream.as_ref();
        let (node, revision) = stream.map_or((0, 0), |(life, keyspace, _)| (life.node, keyspace.revision()));
        let watching = &mut self.watchers[number];
        if watching.looked_at != revision {
            (watching.looked_at, watching.quiet_looks) = (revision, 0);
        }
        let delay = self.rng.random_range(0..LOOK_US);
        self.schedule.after(delay, Happening::Watch(number));
        if taken.is_err() && self.is_rotten(node, self.watchers[number].group) {
            // It could not read what it should tell.
            self.watchers[number].stream = None;
            return;
        }
        if let Err(what) = taken.and_then(|taken| self.note_taken(number, taken)) {
            let found = format!("{}: {what}", self.watchers[number].seen.name);
            self.violate(Violation::new("watch_order", found));
        }
    }

    /// Whether the replica that a watcher's stream is of is still there, and serves.
    fn is_watched_here(&self, number: usize) -> bool {
        let Watching { group, stream: Some((life, keyspace, _)), .. } = &self.watchers[number] else {
            return false;
        };
        let board = self.life(life.node).filter(|now| now == life).and_then(|life| self.board(life));
        let here = board.and_then(|board| board.group(*group)).filter(|here| !here.quarantined());
        here.is_some_and(|here| Arc::ptr_eq(&here.keyspace, keyspace))
    }

    /// Whether a stream goes on although its replica has left: its process has yet to notice. A client makes its watch anew on it.
    fn lingers(&mut self, number: usize) -> bool {
        let now = self.schedule.now();
        let Watching { group, stream: Some((life, keyspace, _)), .. } = &self.watchers[number] else {
            return false;
        };
        let board = self.life(life.node).filter(|now| now == life).and_then(|life| self.board(life));
        let is_gone =
            |board: Arc<Board>| board.group(*group).is_none_or(|here| !Arc::ptr_eq(&here.keyspace, keyspace));
        if !board.is_some_and(is_gone) {
            return false;
        }
        let watching = &mut self.watchers[number];
        let Some(left_at) = watching.left_at else {
            watching.left_at = Some(now);
            let next = watching.next_revision();
            if let Some((_, keyspace, stream)) = &mut watching.stream {
                *stream = open(keyspace, &watching.seen.key_from, &watching.seen.key_to, next);
                watching.sent = Sent::default();
            }
            return true;
        };
        now < left_at + NOTICED_AFTER_US
    }

    fn note_taken(&mut self, number: usize, mut taken: Taken) -> Result<(), String> {
        self.falsify_events(&mut taken.events);
        let now = self.schedule.now();
        let (count, compacted_at) = (taken.events.len(), taken.compacted_at);
        let group = self.watchers[number].group;
        let compacted_at_most = compacted_at.map_or(0, |_| self.compacted_at_most(group));
        let watching = &mut self.watchers[number];
        watching.seen.events.extend(taken.events);
        if let Some(compacted_at) = compacted_at {
            watching.pass_over(compacted_at, compacted_at_most)?;
        }
        if count == 0 && compacted_at.is_none() {
            watching.quiet_looks += 1;
            return Ok(());
        }
        watching.quiet_looks = 0;
        let newest = watching.next_revision() - 1;
        self.trace.note(now, format_args!("watcher {number} sees {count} events, up to {newest}"));
        Ok(())
    }

    fn open_watch(&mut self, number: usize, node: u64) {
        let Some(life) = self.life(node) else { return };
        let Some(group) = self.present_group(self.watchers[number].keyspace, life) else { return };
        // A node that knows less may still have the former one.
        if group > self.watchers[number].group {
            self.watchers[number].begin_anew(group);
        }
        let group = self.watchers[number].group;
        let board = self.board(life).and_then(|board| board.group(group));
        let Some(board) = board.filter(|board| !board.quarantined()) else { return };
        let keyspace = Arc::clone(&board.keyspace);
        let watching = &mut self.watchers[number];
        let next = watching.next_revision();
        let stream = open(&keyspace, &watching.seen.key_from, &watching.seen.key_to, next);
        (watching.stream, watching.sent) = (Some((life, keyspace, stream)), Sent::default());
    }

    /// Whether every watcher has looked often enough to have seen everything. Replicas must be equal.
    pub(super) fn watchers_are_done(&mut self) -> bool {
        let last = |watching: &Watching| self.observer.last_revision(watching.group);
        let done = self
            .watchers
            .iter()
            .all(|watching| watching.looked_at == last(watching) && watching.quiet_looks >= QUIET_LOOKS);
        if done {
            for watching in &mut self.watchers {
                watching.seen.complete_to = self.observer.last_revision(watching.group);
            }
        }
        done
    }
}

/// All events of a keyspace from this revision on, which must not be compacted.
pub(super) fn history_from(keyspace: &Arc<Keyspace>, revision: i64) -> Result<Vec<Event>, String> {
    let everything = Bytes::from_static(&[0]);
    let mut stream = open(keyspace, &everything, &everything, revision);
    let mut history = Vec::new();
    while let Some(response) = poll(&mut stream) {
        history.extend(events(&response)?);
    }
    Ok(history)
}
