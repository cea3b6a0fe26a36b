//! A snapshot on its way: a header, chunks, an end, and one answer. Whoever is slower sets the pace: a chunk is only read when
//! the previous one has been dealt with, and TCP holds the sender back.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hadron_consensus::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::Shared;
use super::frame::{self, BODY_BYTES_MAX, FrameError, Kind};
use super::handshake::Class;
use super::outgoing::{DialError, Outgoing, write_all};
use crate::metrics::Counter;
use crate::tls::Stream;

/// First byte of an answer: installed.
const INSTALLED: u8 = 0;
/// First byte of an answer: not installed; the rest says why.
const FAILED: u8 = 1;
/// First byte of an answer: not installed, because what the sender has stored is damaged; the rest says how that shows.
const DAMAGED: u8 = 2;
/// First byte of an answer: not installed, because there is no room for it; the rest says where, and what to do.
const NO_ROOM: u8 = 3;

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such node is known here.
    #[error("unknown node {:x}", .0.0)]
    UnknownNode(NodeId),
    /// No connection could be made.
    #[error("{0}")]
    Dial(String),
    /// The connection broke.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The receiver could not, or did not want to, install it.
    #[error("receiver: {0}")]
    Receiver(Rejection),
}

/// Why a receiver did not install a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It could not, or did not want to. It may be sent again.
    #[error("{0}")]
    Failed(String),
    /// All came as it was sent, and does not fit together.
    #[error("what was sent is damaged: {0}")]
    Damaged(String),
    /// There is too little room on its disk. It may be sent again, but not at once.
    #[error("there is no room for it: {0}")]
    NoRoom(String),
}

impl From<String> for Rejection {
    fn from(reason: String) -> Rejection {
        Rejection::Failed(reason)
    }
}

impl From<DialError> for SnapshotError {
    fn from(error: DialError) -> SnapshotError {
        SnapshotError::Dial(error.to_string())
    }
}

impl From<io::Error> for SnapshotError {
    fn from(error: io::Error) -> SnapshotError {
        SnapshotError::Frame(error.into())
    }
}

/// The sender's end.
#[derive(Debug)]
pub struct OutgoingSnapshot {
    stream: Stream,
    step_timeout: Duration,
    install_timeout: Duration,
    sent_bytes: Arc<Counter>,
}

impl OutgoingSnapshot {
    pub(super) async fn open(
        shared: &Shared,
        peer: &Outgoing,
        header: Bytes,
    ) -> Result<OutgoingSnapshot, SnapshotError> {
        let (stream, _) = peer.dial(Class::Bulk).await?;
        let (step_timeout, install_timeout) = (shared.options.bulk_timeout, shared.options.install_timeout);
        let sent_bytes = Arc::clone(peer.sent_bytes());
        let mut snapshot = OutgoingSnapshot { stream, step_timeout, install_timeout, sent_bytes };
        snapshot.write(Kind::SnapshotBegin, header).await?;
        Ok(snapshot)
    }

    /// Sends one chunk of at most [`BODY_BYTES_MAX`] bytes; returns when the kernel has it, which is when the receiver keeps up.
    ///
    /// # Errors
    /// The connection broke, or the receiver gave up: then its reason.
    pub async fn chunk(&mut self, chunk: Bytes) -> Result<(), SnapshotError> {
        self.write(Kind::SnapshotChunk, chunk).await
    }

    /// Says that all chunks were sent, and waits until the receiver has installed them. Returns its answer.
    ///
    /// # Errors
    /// The connection broke (whether it was installed is then unknown), or the receiver says why it was not.
    pub async fn finish(mut self) -> Result<Bytes, SnapshotError> {
        self.write(Kind::SnapshotEnd, Bytes::new()).await?;
        self.read_answer(self.install_timeout).await
    }

    async fn write(&mut self, kind: Kind, body: Bytes) -> Result<(), SnapshotError> {
        let bytes = frame::HEADER_BYTES + body.len();
        let mut frames = VecDeque::from([frame::header(kind, &body), body]);
        let written = timeout(self.step_timeout, write_all(&mut self.stream, &mut frames)).await;
        match written {
            Ok(Ok(())) => {
                self.sent_bytes.add(bytes as u64);
                Ok(())
            }
            // The receiver may have said why before it hung up.
            Ok(Err(error)) => match self.read_answer(Duration::from_secs(1)).await {
                Err(SnapshotError::Receiver(rejection)) => Err(SnapshotError::Receiver(rejection)),
                _ => Err(error.into()),
            },
            Err(_) => Err(FrameError::TimedOut.into()),
        }
    }

    async fn read_answer(&mut self, wait: Duration) -> Result<Bytes, SnapshotError> {
        let answer = timeout(wait, frame::read(&mut self.stream, BODY_BYTES_MAX)).await;
        let (kind, mut body) = answer.map_err(|_| FrameError::TimedOut)??;
        if kind != Kind::SnapshotResult || body.is_empty() {
            return Err(FrameError::Unexpected("a snapshot is answered by its result").into());
        }
        let result = body.split_to(1)[0];
        let reason = || String::from_utf8_lossy(&body).replace(char::is_control, " ");
        match result {
            INSTALLED => Ok(body),
            DAMAGED => Err(SnapshotError::Receiver(Rejection::Damaged(reason()))),
            NO_ROOM => Err(SnapshotError::Receiver(Rejection::NoRoom(reason()))),
            _ => Err(SnapshotError::Receiver(Rejection::Failed(reason()))),
        }
    }
}

/// The receiver's end.
#[derive(Debug)]
pub struct IncomingSnapshot {
    stream: Stream,
    header: Bytes,
    step_timeout: Duration,
    received_bytes: Arc<Counter>,
}

impl IncomingSnapshot {
    pub(super) async fn open(
        mut stream: Stream,
        step_timeout: Duration,
        received_bytes: Arc<Counter>,
    ) -> Result<IncomingSnapshot, FrameError> {
        let begin = timeout(step_timeout, frame::read(&mut stream, BODY_BYTES_MAX)).await;
        match begin.map_err(|_| FrameError::TimedOut)?? {
            (Kind::SnapshotBegin, header) => {
                Ok(IncomingSnapshot { stream, header, step_timeout, received_bytes })
            }
            _ => Err(FrameError::Unexpected("a bulk connection begins with a snapshot's header")),
        }
    }

    /// What the sender says the snapshot is.
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// The next chunk; `None` after the last one.
    ///
    /// # Errors
    /// The connection broke, or nothing came for too long: the snapshot is incomplete.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, FrameError> {
        let next = timeout(self.step_timeout, frame::read(&mut self.stream, BODY_BYTES_MAX)).await;
        match next.map_err(|_| FrameError::TimedOut)?? {
            (Kind::SnapshotChunk, chunk) => {
                self.received_bytes.add((frame::HEADER_BYTES + chunk.len()) as u64);
                Ok(Some(chunk))
            }
            (Kind::SnapshotEnd, _) => Ok(None),
            _ => Err(FrameError::Unexpected("neither a chunk nor the end of a snapshot")),
        }
    }

    /// Tells the sender what became of the snapshot.
    ///
    /// # Errors
    /// The sender could not be told.
    pub async fn answer(mut self, result: Result<Bytes, Rejection>) -> io::Result<()> {
        let (code, rest) = match result {
            Ok(answer) => (INSTALLED, answer),
            Err(Rejection::Failed(reason)) => (FAILED, reason.into()),
            Err(Rejection::Damaged(what)) => (DAMAGED, what.into()),
            Err(Rejection::NoRoom(what)) => (NO_ROOM, what.into()),
        };
        let mut body = BytesMut::with_capacity(1 + rest.len());
        body.put_u8(code);
        body.put_slice(&rest);
        frame::write(&mut self.stream, &frame::encode(Kind::SnapshotResult, &body)).await?;
        self.stream.shutdown().await
    }
}
