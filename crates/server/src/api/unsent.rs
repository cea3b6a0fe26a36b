//! Answers that are made and not sent yet: how much of them one connection may have.
//!
//! Whether a client takes its answers is its own business (HTTP/2 lets it close the window of each stream), and an answer may be a
//! thousand times as large as its question. So a connection with [`UNSENT_BYTES_MAX`] of large answers that wait for it gets no further
//! ones made until it took some. Streams need no such thing: they make their next message when there is room for it.
//!
//! Large answers leave in pieces: the connection takes a whole frame as soon as its stream may send one byte, and what it took would
//! not count any more.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Extensions, Response};
use hyper::body::Frame;
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

/// Bytes of large answers beyond which a connection gets no further ones made.
const UNSENT_BYTES_MAX: usize = 32 << 20;
/// Smaller answers do not count: what a stream occupies that nobody reads is of their size.
const LARGE_BYTES: usize = 16 << 10;
/// How much of an answer is handed to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// What a large answer occupies; beside it on its way from the service to the connection.
#[derive(Clone, Copy, Debug)]
struct LargeAnswer(usize);

/// Makes an answer that may be large.
pub(super) fn answer<M: Message>(message: M) -> tonic::Response<M> {
    let bytes = message.encoded_len();
    let mut answer = tonic::Response::new(message);
    if bytes > LARGE_BYTES {
        answer.extensions_mut().insert(LargeAnswer(bytes));
    }
    answer
}

/// What one connection has.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsent(Arc<State>);

#[derive(Debug, Default)]
struct State {
    bytes: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

impl State {
    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < UNSENT_BYTES_MAX
    }
}

impl Unsent {
    /// Ready when an answer may be made: to be asked before a call goes on, each time.
    pub(super) fn poll_room(&self, task: &mut Context<'_>) -> Poll<()> {
        if self.0.has_room() {
            return Poll::Ready(());
        }
        let mut waiting = self.0.waiting.lock();
        // Whoever makes room wakes those who wait by then.
        if self.0.has_room() {
            return Poll::Ready(());
        }
        waiting.push(task.waker().clone());
        Poll::Pending
    }

    /// Counts an answer, if it is large, until it is sent or given up.
    pub(super) fn count(&self, mut response: Response<Body>) -> Response<Body> {
        let Some(bytes) = take_size(response.extensions_mut()) else { return response };
        self.0.bytes.fetch_add(bytes, Ordering::AcqRel);
        let unsent = self.clone();
        response.map(|body| Body::new(Counted { body, rest: Bytes::new(), bytes, unsent }))
    }
}

fn take_size(extensions: &mut Extensions) -> Option<usize> {
    extensions.remove::<LargeAnswer>().map(|LargeAnswer(bytes)| bytes)
}

/// The body of an answer that counts as long as it is there.
struct Counted {
    body: Body,
    /// What is still to be handed over of the body's last frame.
    rest: Bytes,
    bytes: usize,
    unsent: Unsent,
}

impl hyper::body::Body for Counted {
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
            self.unsent.0.waiting.lock().drain(..).for_each(Waker::wake);
        }
    }
}
