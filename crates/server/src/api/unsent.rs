//! Answers that are made and not sent yet: how much of them one connection may have.
//!
//! Whether a client takes its answers is its own business (HTTP/2 lets it close the window of each stream), and an answer may be a
//! thousand times as large as its question. So a connection with [`UNSENT_BYTES_MAX`] of answers that wait for it gets no further ones
//! made until it took some. Streams need no such thing: they make their next message when there is room for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::Response;
use hyper::body::{Body as _, Frame};
use parking_lot::Mutex;
use tonic::Status;
use tonic::body::Body;

/// Bytes of answers beyond which a connection gets no further ones made.
pub(super) const UNSENT_BYTES_MAX: usize = 32 << 20;
/// What an answer occupies beside its bytes, about.
const ANSWER_BYTES: usize = 2 << 10;

/// What one connection has.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsent(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    waiting: Vec<Waker>,
}

impl Unsent {
    /// Ready when an answer may be made: to be asked before a call goes on, each time.
    pub(super) fn poll_room(&self, task: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.bytes < UNSENT_BYTES_MAX {
            return Poll::Ready(());
        }
        state.waiting.push(task.waker().clone());
        Poll::Pending
    }

    /// Counts the answer to a call that is no stream, until it is sent or given up.
    pub(super) fn count(&self, task: &mut Context<'_>, response: Response<Body>) -> Response<Body> {
        if response.body().is_end_stream() {
            return response;
        }
        let (head, mut body) = response.into_parts();
        // The message of such an answer is there already.
        let first = match Pin::new(&mut body).poll_frame(task) {
            Poll::Ready(frame) => frame,
            Poll::Pending => None,
        };
        let data = first.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref().map(Bytes::len));
        let bytes = data.unwrap_or_default() + ANSWER_BYTES;
        self.0.lock().bytes += bytes;
        let counted = Counted { first, rest: body, bytes, unsent: self.clone() };
        Response::from_parts(head, Body::new(counted))
    }
}

/// The body of an answer that counts as long as it is there.
struct Counted {
    first: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
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
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Poll::Ready(ready!(Pin::new(&mut self.rest).poll_frame(task))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.unsent.0.lock();
        state.bytes -= self.bytes;
        if state.bytes < UNSENT_BYTES_MAX {
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }
}
