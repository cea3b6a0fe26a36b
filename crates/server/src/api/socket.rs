//! A client's socket, and what its end means.
//!
//! A client that closes its half of a connection may want the answer to what it asked before (shells and probes do that),
//! or it may be gone. For HTTP/1 the answer tells: a page is sent all the same, so the end is hidden until it is there; a
//! stream of the gateway, which may be silent for days, ends with its client, as it does in etcd, and so does a call that waits
//! for its turn. A request that its client cut off has no answer, and is not waited for. In HTTP/2 streams have ends of their own, and the
//! end of the connection is the end of all.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::metrics::Metrics;
use crate::tls::Stream;

/// The socket of one client. Hides its end while somebody holds an [`EndHidden`].
#[derive(Debug)]
pub(crate) struct Socket {
    inner: Stream,
    state: Arc<State>,
    metrics: Arc<Metrics>,
}

/// What a socket and those who answer its client tell each other. They share a task.
#[derive(Debug, Default)]
struct State {
    /// Bytes that were read.
    received: AtomicUsize,
    /// Whether the end may not be seen.
    is_hidden: AtomicBool,
    /// Whether it was there while it was hidden.
    is_there: AtomicBool,
    /// Whether the request that is being answered was read to its last byte, as far as is known.
    has_request: AtomicBool,
}

/// Says whether the end of a socket may be seen.
#[derive(Clone, Debug)]
pub(crate) struct End(Arc<State>);

/// The end of a socket is hidden until this is dropped. The reader must look again then.
#[derive(Debug)]
pub(super) struct EndHidden(Arc<State>);

impl Socket {
    /// A socket whose bytes are counted in `metrics`.
    pub(crate) fn new(inner: Stream, metrics: Arc<Metrics>) -> (Socket, End) {
        let state = Arc::new(State::default());
        (Socket { inner, state: Arc::clone(&state), metrics }, End(state))
    }

    fn count_sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.metrics.client_sent_bytes.add(bytes as u64);
        }
        written
    }
}

impl End {
    /// Bytes that the client has sent and that were read.
    pub(super) fn received(&self) -> usize {
        self.0.received.load(Ordering::Relaxed)
    }

    /// Hides the end. Once at a time: a connection of HTTP/1 answers one request after the other. Whoever needs the body of its request
    /// says when it has it.
    pub(super) fn hide(&self, has_request: bool) -> EndHidden {
        self.0.is_there.store(false, Ordering::Relaxed);
        self.0.has_request.store(has_request, Ordering::Relaxed);
        self.0.is_hidden.store(true, Ordering::Relaxed);
        EndHidden(Arc::clone(&self.0))
    }

    /// The request that is being answered has been read.
    pub(super) fn note_request(&self) {
        self.0.has_request.store(true, Ordering::Relaxed);
    }
}

impl EndHidden {
    /// Whether the end came before the request was read.
    pub(super) fn cuts_off(&self) -> bool {
        self.0.is_there.load(Ordering::Relaxed) && !self.0.has_request.load(Ordering::Relaxed)
    }
}

impl Drop for EndHidden {
    fn drop(&mut self) {
        self.0.is_hidden.store(false, Ordering::Relaxed);
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        ready!(Pin::new(&mut self.inner).poll_read(task, buffer))?;
        let received = before - buffer.remaining();
        self.state.received.fetch_add(received, Ordering::Relaxed);
        self.metrics.client_received_bytes.add(received as u64);
        let ended = received == 0 && before > 0;
        match ended && self.state.is_hidden.load(Ordering::Relaxed) {
            // Nobody need be woken: hyper reads again when it has written the answer.
            true => {
                self.state.is_there.store(true, Ordering::Relaxed);
                Poll::Pending
            }
            false => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(task, bytes);
        self.count_sent(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(task)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(task, slices);
        self.count_sent(written)
    }
}
