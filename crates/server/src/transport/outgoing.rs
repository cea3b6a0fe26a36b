//! The sending side: dial a node, say hello, send what is queued, and start again when the connection ends.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hadron_consensus::NodeId;
use hadron_storage::data_dir::starts;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::frame::{self, FrameError, HANDSHAKE_BODY_BYTES_MAX, Kind};
use super::handshake::{Cause, Class, Hello, Refusal, VERSION_PARTS, Welcome, check_welcome};
use super::{Inbound, Options, Order, Peer, Shared};
use crate::metrics::{Counter, Gauge, RoundTripHistogram};
use crate::tls::Stream;
use crate::tls::stream::{Reader, Writer};

/// Frames handed to the kernel in one call.
const SLICES_MAX: usize = 64;
/// A node that cannot be reached for another reason than last time is told of at most this often.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// A connection that lived so long was a good one: its end is retried quickly.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);

/// One other node, as this one sends to it.
pub(super) struct Outgoing {
    shared: Arc<Shared>,
    peer: Peer,
    queue: Mutex<Queue>,
    /// Something was queued.
    wake: Notify,
    /// The queue became empty, or the connection ended.
    idle: Notify,
    /// The node is not to be connected any more.
    stop: Notify,
    dropped: AtomicU64,
    sent_bytes: Arc<Counter>,
    round_trips: Arc<RoundTripHistogram>,
    failures: Arc<Counter>,
    disconnections: Arc<Counter>,
    active: Arc<Gauge>,
    known: Arc<Gauge>,
}

/// What waits for the connection.
#[derive(Default)]
struct Queue {
    /// The version that is spoken on the connection, if there is one. Otherwise nothing is queued.
    version: Option<u16>,
    /// They go before all others.
    ahead: VecDeque<Bytes>,
    frames: VecDeque<Bytes>,
    /// Bytes of the frames above, and of those taken from there that the kernel does not have yet.
    bytes: usize,
}

/// What was taken from the queue, in the order in which it is written.
#[derive(Default)]
struct Line {
    frames: VecDeque<Bytes>,
    /// So many at the front are not overtaken: they go ahead themselves.
    ahead: usize,
}

impl Line {
    /// Takes what is queued. What goes ahead is written after the frame at the front, which may have begun.
    fn take(&mut self, queue: &mut Queue) {
        let mut place = self.ahead.max(1).min(self.frames.len());
        for frame in queue.ahead.drain(..) {
            self.frames.insert(place, frame);
            place += 1;
            self.ahead = place;
        }
        self.frames.append(&mut queue.frames);
    }

    /// Hands some of it to the kernel, and returns how many bytes.
    async fn write_some<W: AsyncWrite + Unpin>(&mut self, writer: &mut W) -> io::Result<usize> {
        let before = self.frames.len();
        let written = write_some(writer, &mut self.frames).await?;
        self.ahead = self.ahead.saturating_sub(before - self.frames.len());
        Ok(written)
    }
}

/// The pings of a connection, each of which is answered, in order.
struct Pings {
    /// When something came back last, or the connection was made.
    heard_at: Instant,
    /// Those that wait for their turn.
    queued: usize,
    /// When those had it that are not answered yet.
    sent: VecDeque<Instant>,
}

impl Pings {
    fn new() -> Pings {
        Pings { heard_at: Instant::now(), queued: 0, sent: VecDeque::new() }
    }

    /// All that was queued is written now, and pings before the rest.
    fn on_taken(&mut self) {
        let now = Instant::now();
        self.sent.extend(std::iter::repeat_n(now, std::mem::take(&mut self.queued)));
    }

    /// How long the one took that is answered.
    fn on_pong(&mut self) -> Option<Duration> {
        self.heard_at = Instant::now();
        self.sent.pop_front().map(|sent| self.heard_at - sent)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The node cannot be reached.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// It did not answer in time.
    #[error("cannot connect: no answer in time")]
    TimedOut,
    /// What it said makes no sense.
    #[error("handshake failed: {0}")]
    Handshake(#[from] FrameError),
    /// It does not want us.
    #[error("refused by the other node: {0}")]
    Refused(Refusal),
    /// We do not want it.
    #[error("not the expected node: {0}")]
    Unwanted(Refusal),
}

impl Outgoing {
    pub(super) fn new(shared: Arc<Shared>, peer: Peer) -> Outgoing {
        let label = format!("{:x}", peer.node.0);
        let own = format!("{:x}", shared.identity.node.0);
        let sent_bytes = shared.metrics.peer_sent_bytes.with(&[&label]);
        let round_trips = shared.metrics.peer_round_trips.with(&[&label]);
        let failures = shared.metrics.peer_sent_failures.with(&[&label]);
        let disconnections = shared.metrics.disconnected_peers.with(&[&own, &label]);
        let active = shared.metrics.active_peers.with(&[&own, &label]);
        let known = shared.metrics.known_peers.with(&[&own, &label]);
        Outgoing {
            shared,
            peer,
            queue: Mutex::default(),
            wake: Notify::new(),
            idle: Notify::new(),
            stop: Notify::new(),
            dropped: AtomicU64::new(0),
            sent_bytes,
            round_trips,
            failures,
            disconnections,
            active,
            known,
        }
    }

    /// Queues frames, or drops them when there is no connection, or too much waits for it already that they do not overtake.
    pub(super) fn send(&self, frames: Bytes, order: Order) {
        let version = {
            let queue = self.queue.lock();
            let Some(version) = queue.version.filter(|_| !frames.is_empty()) else { return };
            let is_full = queue.bytes + frames.len() > self.shared.options.queue_bytes_max;
            if order == Order::InTurn && is_full {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                self.failures.inc();
                return;
            }
            version
        };
        // Nobody waits for the lock meanwhile; who queues at the same time may exceed the bound by what is queued at once.
        let frames: Vec<Bytes> = match order {
            Order::Ahead => vec![frames],
            Order::InTurn if version < VERSION_PARTS => frame::cut(frames).collect(),
            Order::InTurn => frame::cut(frames).flat_map(frame::parts).collect(),
        };
        let mut queue = self.queue.lock();
        if queue.version != Some(version) {
            return;
        }
        let was_empty = queue.ahead.is_empty() && queue.frames.is_empty();
        queue.bytes += frames.iter().map(Bytes::len).sum::<usize>();
        match order {
            Order::Ahead => queue.ahead.extend(frames),
            Order::InTurn => queue.frames.extend(frames),
        }
        drop(queue);
        // Otherwise whoever queued the first one has woken the task, and it has not come to look yet.
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Where bytes to the node are counted.
    pub(super) fn sent_bytes(&self) -> &Arc<Counter> {
        &self.sent_bytes
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Returns when nothing waits to be sent.
    pub(super) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            if self.queue.lock().bytes == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Where the node is.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Ends [`Outgoing::run`].
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Keeps a connection until it is stopped.
    pub(super) async fn run(self: Arc<Self>) {
        let _known = self.known.hold();
        tokio::select! {
            () = self.keep_connected() => {}
            () = self.stop.notified() => self.close(),
        }
    }

    async fn keep_connected(&self) {
        let mut backoff = Backoff::new(&self.shared.options, self.peer.node);
        let mut last_error = String::new();
        let mut told_at = Instant::now();
        loop {
            match self.dial(Class::Urgent).await {
                Ok((stream, welcome)) => {
                    let began = Instant::now();
                    last_error.clear();
                    self.hold(stream, &welcome).await;
                    if began.elapsed() >= GOOD_CONNECTION {
                        backoff.reset();
                    }
                    sleep(backoff.next()).await;
                }
                Err(error) => {
                    self.failures.inc();
                    // Said once, not with every attempt; where the reasons alternate, each now and then.
                    let text = error.to_string();
                    let needs_people = matches!(error, DialError::Refused(_) | DialError::Unwanted(_));
                    let may_tell = last_error.is_empty() || needs_people || told_at.elapsed() >= TELL_AGAIN;
                    if text != last_error && may_tell {
                        told_at = Instant::now();
                        warn!(peer = %format_args!("{:x}", self.peer.node.0), urls = %self.urls(), "{text}");
                        last_error = text;
                    }
                    match error {
                        DialError::Refused(Refusal { reason, cause }) => {
                            let inbound = match cause {
                                Cause::Other => None,
                                Cause::Removed => Some(Inbound::Removed { reason }),
                                Cause::Outdated => Some(Inbound::Outdated { reason }),
                                Cause::Dropped => Some(Inbound::Dropped { reason }),
                            };
                            inbound.into_iter().for_each(|it| (self.shared.receive)(self.peer.node, it));
                            sleep(self.shared.options.refused_retry).await;
                        }
                        DialError::Unwanted(_) => sleep(self.shared.options.refused_retry).await,
                        _ => sleep(backoff.next()).await,
                    }
                }
            }
        }
    }

    fn urls(&self) -> String {
        self.peer.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Connects to one of the node's addresses and shakes hands.
    pub(super) async fn dial(&self, class: Class) -> Result<(Stream, Welcome), DialError> {
        let mut stream = self.connect().await?;
        let revision = (self.shared.roster_revision)();
        let hello = Hello::new(self.shared.identity.clone(), self.peer.node, class, revision);
        let handshake = shake_hands(&mut stream, &hello);
        let welcome = timeout(self.shared.options.connect_timeout, handshake)
            .await
            .map_err(|_| DialError::TimedOut)??;
        self.shared.admit(&welcome.from, 0).await.map_err(DialError::Unwanted)?;
        Ok((stream, welcome))
    }

    async fn connect(&self) -> Result<Stream, DialError> {
        let mut last_error = DialError::Connect(io::ErrorKind::AddrNotAvailable.into());
        for url in &self.peer.urls {
            match timeout(self.shared.options.connect_timeout, self.shared.tls.connect(url)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last_error = DialError::Connect(error),
                Err(_) => last_error = DialError::TimedOut,
            }
        }
        Err(last_error)
    }

    /// Sends on a connection until it ends.
    async fn hold(&self, stream: Stream, welcome: &Welcome) {
        let Welcome { version, from: other } = welcome;
        let (peer, name) = (format!("{:x}", other.node.0), &other.name);
        info!(%peer, %name, starts = starts(other.incarnation), "connected to peer");
        self.queue.lock().version = Some(*version);
        self.active.set(1.0);
        let up = Inbound::Up { incarnation: other.incarnation, data_dir_id: other.data_dir_id };
        (self.shared.receive)(other.node, up);

        let error = self.session(stream).await;

        warn!(%peer, %name, %error, "connection to peer ended");
        self.failures.inc();
        self.disconnections.inc();
        self.close();
    }

    /// What was queued is lost, if there is a connection.
    fn close(&self) {
        let before = std::mem::take(&mut *self.queue.lock());
        self.idle.notify_waiters();
        if before.version.is_some() {
            (self.shared.receive)(self.peer.node, Inbound::Down);
        }
        self.active.set(0.0);
    }

    async fn session(&self, stream: Stream) -> FrameError {
        let (mut reader, mut writer) = stream.into_split();
        let pings = Mutex::new(Pings::new());
        tokio::select! {
            error = self.write_queued(&mut writer, &pings) => FrameError::Io(error),
            error = self.read_pongs(&mut reader, &pings) => error,
            error = self.watch(&pings) => error,
        }
    }

    async fn write_queued(&self, writer: &mut Writer, pings: &Mutex<Pings>) -> io::Error {
        let mut line = Line::default();
        loop {
            self.wake.notified().await;
            if let Err(error) = self.write_line(&mut line, writer, pings).await {
                return error;
            }
        }
    }

    /// Writes until nothing is queued any more.
    async fn write_line(&self, line: &mut Line, writer: &mut Writer, pings: &Mutex<Pings>) -> io::Result<()> {
        loop {
            line.take(&mut self.queue.lock());
            pings.lock().on_taken();
            if line.frames.is_empty() {
                return Ok(());
            }
            let written = line.write_some(writer).await?;
            if line.frames.is_empty() {
                writer.flush().await?;
            }
            self.sent_bytes.add(written as u64);
            self.on_written(written);
        }
    }

    fn on_written(&self, bytes: usize) {
        let mut queue = self.queue.lock();
        queue.bytes -= bytes;
        if queue.bytes == 0 {
            drop(queue);
            self.idle.notify_waiters();
        }
    }

    /// Pings now and then, and ends when no pong comes back.
    async fn watch(&self, pings: &Mutex<Pings>) -> FrameError {
        let ping = frame::encode(Kind::Ping, &[]);
        loop {
            pings.lock().queued += 1;
            self.send(ping.clone(), Order::Ahead);
            sleep(self.shared.options.ping_interval).await;
            if pings.lock().heard_at.elapsed() >= self.shared.options.silence_timeout {
                return FrameError::TimedOut;
            }
        }
    }

    async fn read_pongs(&self, reader: &mut Reader, pings: &Mutex<Pings>) -> FrameError {
        loop {
            match frame::read(reader, 0).await {
                Ok((Kind::Pong, _)) => {
                    let round_trip = pings.lock().on_pong();
                    round_trip.into_iter().for_each(|it| self.round_trips.observe(it));
                }
                Ok(_) => return FrameError::Unexpected("only pongs come back on an urgent connection"),
                Err(error) => return error,
            }
        }
    }
}

async fn shake_hands(stream: &mut Stream, hello: &Hello) -> Result<Welcome, DialError> {
    frame::write(stream, &frame::encode(Kind::Hello, &hello.encode())).await.map_err(FrameError::Io)?;
    let (kind, body) = frame::read(stream, HANDSHAKE_BODY_BYTES_MAX).await?;
    match kind {
        Kind::Welcome => {
            let welcome = Welcome::decode(body)?;
            check_welcome(&welcome, &hello.from, hello.to)
                .map_err(|reason| DialError::Unwanted(reason.into()))?;
            Ok(welcome)
        }
        Kind::Refused => Err(DialError::Refused(Refusal::decode(body)?)),
        _ => Err(DialError::Handshake(FrameError::Unexpected("neither a welcome nor a refusal"))),
    }
}

/// Hands everything to the kernel with as few calls as possible. `frames` is empty afterwards.
pub(super) async fn write_all<W: AsyncWrite + Unpin>(
    writer: &mut W,
    frames: &mut VecDeque<Bytes>,
) -> io::Result<()> {
    // An empty slice would look like a closed connection.
    frames.retain(|frame| !frame.is_empty());
    while !frames.is_empty() {
        write_some(writer, frames).await?;
    }
    writer.flush().await
}

/// Hands to the kernel what it takes in one call, and returns how many bytes. None of the frames is empty.
async fn write_some<W: AsyncWrite + Unpin>(
    writer: &mut W,
    frames: &mut VecDeque<Bytes>,
) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
    let count = frames.len().min(SLICES_MAX);
    for (slice, frame) in slices.iter_mut().zip(frames.iter()) {
        *slice = IoSlice::new(frame);
    }
    let written = writer.write_vectored(&slices[..count]).await?;
    if written == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut left = written;
    while left > 0 {
        let Some(front) = frames.front_mut() else { break };
        let step = left.min(front.len());
        front.advance(step);
        left -= step;
        if front.is_empty() {
            frames.pop_front();
        }
    }
    Ok(written)
}

/// Waits that double, with jitter, so that nodes that lost each other do not come back in step.
struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: SmallRng,
}

impl Backoff {
    fn new(options: &Options, node: NodeId) -> Backoff {
        let random = SmallRng::seed_from_u64(options.seed ^ node.0);
        Backoff { min: options.retry_min, max: options.retry_max, next: options.retry_min, random }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    /// Between half of the wait and all of it.
    fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        wait.mul_f64(self.random.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_start_again() {
        let options = Options::default();
        let mut backoff = Backoff::new(&options, NodeId(1));
        let waits: Vec<Duration> = (0..8).map(|_| backoff.next()).collect();
        assert!(waits[0] <= options.retry_min && waits[0] >= options.retry_min / 2, "{waits:?}");
        assert!(waits[7] <= options.retry_max && waits[7] >= options.retry_max / 2, "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= options.retry_min);
    }
}
