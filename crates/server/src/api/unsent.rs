//! Answers that are made and not sent yet: how much of them one connection may have.
//!
//! Whether a client takes its answers is its own business (HTTP/2 lets it close the window of each stream), and an answer may be a
//! thousand times as large as its question. So a connection with [`UNSENT_BYTES_MAX`] of large answers that wait for it gets no further
//! ones made until it took some.
//!
//! A stream makes its next message when the connection took the one before, whether or not HTTP/2 has room for it: hyper asks for it first.
//! So each has one that waits. Those of a listing may be large, and a connection gets [`PARTS_MAX`] of them made ([`part`]). They share
//! nothing with the answers that count: a client may leave its listings alone for as long as it likes, and its other calls go on.
//!
//! How large the answer to a long read is shows when it was read. So a long read waits for room and for its turn before it begins
//! ([`Unsent::turn`]), and [`LONG_READS_MAX`] of a connection have theirs at a time. What one connection costs is at most the bound and
//! two more answers. A write that answers with much of what is there waits in the same way, for one of [`LARGE_WRITES_MAX`] turns, before it is proposed:
//! nothing holds its answer back once it is applied.
//!
//! Large answers and messages leave in pieces: the connection takes a whole frame as soon as its stream may send one byte, and what it took would
//! not count any more.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Extensions, Response};
use hyper::body::Frame;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;

/// Bytes of large answers beyond which a connection gets no further ones made.
const UNSENT_BYTES_MAX: usize = 32 << 20;
/// Smaller answers do not count: what a stream occupies that nobody reads is of their size.
const LARGE_BYTES: usize = 16 << 10;
/// Long reads that one connection has under way; more than that are not carried out at a time beside the thread it belongs to either.
pub(super) const LONG_READS_MAX: usize = 2;
/// Writes with large answers that one connection has under way. Each waits for its commit, and they share that: more than of reads.
pub(super) const LARGE_WRITES_MAX: usize = 16;
/// Parts of listings that one connection has and does not take.
pub(super) const PARTS_MAX: usize = 16;
/// How much of an answer is handed to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// What a large answer occupies; beside it on its way from the service to the connection.
#[derive(Clone, Copy, Debug)]
struct LargeAnswer(usize);

/// Makes an answer that may be large.
pub(super) fn answer<M: Message>(message: M) -> tonic::Response<M> {
    let bytes = message.encoded_len();
    let mut answer = tonic::Response::new(message);
    mark(answer.extensions_mut(), bytes);
    answer
}

/// Notes beside an answer that it has so many bytes.
pub(super) fn mark(beside: &mut Extensions, bytes: usize) {
    if bytes > LARGE_BYTES {
        beside.insert(LargeAnswer(bytes));
    }
}

/// What one connection has. Requests that may be long reads carry it as an extension.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsent(Arc<State>);

#[derive(Debug)]
struct State {
    bytes: AtomicUsize,
    waiting: Mutex<Waiting>,
    turns: Arc<Semaphore>,
    turns_of_writes: Arc<Semaphore>,
    turns_of_parts: Arc<Semaphore>,
}

/// Who waits for room, by when they came. Each wakes the next one when it goes on: if all were woken at once, most would find that those before have
/// taken it.
#[derive(Debug, Default)]
struct Waiting {
    came: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Waiting {
    fn come(&mut self) -> u64 {
        self.came += 1;
        self.came
    }

    fn wake_first(&self) {
        if let Some(waker) = self.wakers.values().next() {
            waker.wake_by_ref();
        }
    }
}

impl Default for State {
    fn default() -> State {
        let turns = Arc::new(Semaphore::new(LONG_READS_MAX));
        let turns_of_writes = Arc::new(Semaphore::new(LARGE_WRITES_MAX));
        let turns_of_parts = Arc::new(Semaphore::new(PARTS_MAX));
        State {
            bytes: AtomicUsize::new(0),
            waiting: Mutex::default(),
            turns,
            turns_of_writes,
            turns_of_parts,
        }
    }
}

/// Held by a long read, or by a write with a large answer, until its answer is made. It counts in the same breath ([`Unsent::count`]), before another read that waits for
/// a turn can look. By a listing until the connection took its part.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "gives the turn back")] Option<OwnedSemaphorePermit>);

/// Waits until a long read may begin. One that came over no connection of its own begins at once.
pub(super) async fn turn(unsent: Option<Unsent>) -> Turn {
    match unsent {
        Some(unsent) => unsent.turn(&unsent.0.turns).await,
        None => Turn(None),
    }
}

/// The same for a write with a large answer.
pub(super) async fn turn_of_write(unsent: Option<Unsent>) -> Turn {
    match unsent {
        Some(unsent) => unsent.turn(&unsent.0.turns_of_writes).await,
        None => Turn(None),
    }
}

/// Waits until the next part of a listing may be made, which holds the turn until the connection took it.
pub(super) async fn part(unsent: Option<Unsent>) -> Turn {
    match unsent {
        Some(unsent) => Turn(Arc::clone(&unsent.0.turns_of_parts).acquire_owned().await.ok()),
        None => Turn(None),
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < UNSENT_BYTES_MAX
    }

    /// Somebody waits no more.
    fn leave(&self, waiting: &mut Waiting, place: u64) {
        waiting.wakers.remove(&place);
        if self.has_room() {
            waiting.wake_first();
        }
    }
}

/// Lets one call go on while its connection has room. Nothing is left of it where others wait when it is dropped.
#[derive(Debug)]
pub(super) struct Gate {
    unsent: Unsent,
    /// Where it waits, if it does.
    place: Option<u64>,
}

impl Gate {
    /// Ready when an answer may be made: to be asked before a call goes on, each time.
    pub(super) fn poll_room(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let state = &self.unsent.0;
        if self.place.is_none() && state.has_room() {
            return Poll::Ready(());
        }
        let mut waiting = state.waiting.lock();
        // Whoever makes room wakes those who wait by then.
        if state.has_room() {
            if let Some(place) = self.place.take() {
                state.leave(&mut waiting, place);
            }
            return Poll::Ready(());
        }
        let place = *self.place.get_or_insert_with(|| waiting.come());
        waiting.wakers.insert(place, task.waker().clone());
        Poll::Pending
    }

    /// Counts an answer, if it is large, until it is sent or given up.
    pub(super) fn count(&self, response: Response<Body>) -> Response<Body> {
        self.unsent.count(response)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let state = &self.unsent.0;
            state.leave(&mut state.waiting.lock(), place);
        }
    }
}

impl Unsent {
    async fn turn(&self, turns: &Arc<Semaphore>) -> Turn {
        // It is never closed.
        let turn = Arc::clone(turns).acquire_owned().await.ok();
        let mut gate = self.gate();
        poll_fn(|task| gate.poll_room(task)).await;
        Turn(turn)
    }

    /// What one call has to pass.
    pub(super) fn gate(&self) -> Gate {
        Gate { unsent: self.clone(), place: None }
    }

    fn count(&self, mut response: Response<Body>) -> Response<Body> {
        let Some(bytes) = take_size(response.extensions_mut()) else { return response };
        self.0.bytes.fetch_add(bytes, Ordering::AcqRel);
        let counted = Counted { bytes, unsent: self.clone() };
        response.map(|body| Body::new(Pieces { body, rest: Bytes::new(), _counted: Some(counted) }))
    }
}

/// Hands the messages of a stream over in pieces, so that what the connection has taken of one is little.
pub(super) fn in_pieces(response: Response<Body>) -> Response<Body> {
    response.map(|body| Body::new(Pieces { body, rest: Bytes::new(), _counted: None }))
}

fn take_size(extensions: &mut Extensions) -> Option<usize> {
    extensions.remove::<LargeAnswer>().map(|LargeAnswer(bytes)| bytes)
}

/// The body of an answer.
struct Pieces {
    body: Body,
    /// What is still to be handed over of the body's last frame.
    rest: Bytes,
    _counted: Option<Counted>,
}

/// What an answer counts with as long as it is there.
struct Counted {
    bytes: usize,
    unsent: Unsent,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(task)).transpose()?.map(Frame::into_data) {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(trailers)) => return Poll::Ready(Some(Ok(trailers))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.unsent.0.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        if self.unsent.0.has_room() {
            self.unsent.0.waiting.lock().wake_first();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::pin::pin;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use futures::poll;
    use http_body_util::Full;

    use super::*;

    /// A connection without room, and an answer that takes all of it.
    fn full() -> (Unsent, Response<Body>) {
        let unsent = Unsent::default();
        let mut answer = Response::new(Body::new(Full::new(Bytes::from_static(b"x"))));
        mark(answer.extensions_mut(), UNSENT_BYTES_MAX);
        let answer = unsent.count(answer);
        (unsent, answer)
    }

    fn waiting(unsent: &Unsent) -> usize {
        unsent.0.waiting.lock().wakers.len()
    }

    /// Each time that a call was looked at, it was written down once more, and stayed there when its client had given it up.
    #[tokio::test]
    async fn nothing_is_left_of_whoever_gives_up_waiting() {
        let (unsent, answer) = full();
        for _ in 0..3 {
            let mut gate = unsent.gate();
            for _ in 0..3 {
                assert!(poll!(poll_fn(|task| gate.poll_room(task))).is_pending());
            }
            assert_eq!(waiting(&unsent), 1);
        }
        assert_eq!(waiting(&unsent), 0);
        drop(answer);
        assert!(poll!(pin!(turn(Some(unsent)))).is_ready());
    }

    /// Whether a call was woken.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn room_wakes_one_after_the_other_whoever_gives_up() {
        let (unsent, answer) = full();
        let woken = [(); 3].map(|()| Arc::new(Woken::default()));
        let is_woken = |call: usize| woken[call].0.load(Ordering::Relaxed);
        let wakers = woken.clone().map(Waker::from);
        let [mut first, mut second, mut third] = [(); 3].map(|()| unsent.gate());
        for (gate, waker) in [&mut first, &mut second, &mut third].into_iter().zip(&wakers) {
            assert!(gate.poll_room(&mut Context::from_waker(waker)).is_pending());
        }
        drop(answer);
        assert!(is_woken(0) && !is_woken(1));
        drop(first);
        assert!(is_woken(1) && !is_woken(2));
        assert!(second.poll_room(&mut Context::from_waker(&wakers[1])).is_ready());
        assert!(is_woken(2));
        assert!(third.poll_room(&mut Context::from_waker(&wakers[2])).is_ready());
        assert_eq!(waiting(&unsent), 0);
    }
}
