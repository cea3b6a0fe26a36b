//! Snapshots in both directions, in tasks beside the loop. `docs/formats/peer.md` has the bytes.
//!
//! A sender exports from views of the engine, a receiver imports beside the present state, reads that back and then asks the
//! node whether to switch. Chunks pass through queues of two, so that neither side ever holds more than a few of them.
//! To each other node a node sends one small and one large snapshot at a time, and it receives a bounded number of each at once: what
//! comes soon does not wait for what takes hours.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::{GroupId, Index, LogPosition, NodeId, ReplicaId, Term};
use hadron_keyspace::{Applied, Exporter, Importer, Loaded, OpenError, SnapshotError as CarryError};
use hadron_node::{Board, Event, Retired, SnapshotJob};
use hadron_storage::engine::Engine;
use parking_lot::Mutex;
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::fatal::Fatal;
use super::inputs::Inputs;
use super::room::Room;
use super::scrub::Scrubber;
use crate::metrics::{Counter, Family, Gauge, Metrics, TransferHistogram};
use crate::transport::{IncomingSnapshot, Rejection, SnapshotError, Transport};

/// Version of the header.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 8;
/// Bytes of the state's size behind the header. Who is older does not say it, nor looks for it.
const SIZE_BYTES: usize = 8;
/// Bytes of a chunk, about.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks between the engine's thread and the connection.
const CHUNKS_QUEUED: usize = 2;
/// Bytes of a state from which its snapshot is a large one.
const LARGE_BYTES: u64 = 64 << 20;
/// Snapshots of one size that are received at once; further ones are refused, and sent again later.
const RECEIVED_AT_ONCE: usize = 2;
/// Received bytes after which the receiver looks again whether there is room on its disk.
const LOOK_BYTES: usize = 16 << 20;
/// Nobody is sent what is damaged again before this: by then another may lead, whose state is sound. Nor is who had no room for it.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// Nor is anybody before this to whom it did not get for another reason: as long as it receives one from a former leader, say, it refuses this.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// Sends and receives snapshots. Cheap to clone.
#[derive(Clone)]
pub(super) struct Snapshots(Arc<Inner>);

/// What snapshots are made of.
pub(super) struct Setup {
    /// Where the tasks run.
    pub(super) runtime: runtime::Handle,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) room: Arc<Room>,
    pub(super) inputs: Inputs,
    /// This node, and who leads what.
    pub(super) me: NodeId,
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) fatal: Fatal,
    pub(super) scrubber: Scrubber,
}

struct Inner {
    setup: Setup,
    sending: Turns,
    /// Groups of which a snapshot is being received.
    receiving: Mutex<Vec<(GroupId, Size)>>,
    /// Who waits for the node's decision on which offer.
    offers: Mutex<HashMap<u64, oneshot::Sender<bool>>>,
    next_ticket: AtomicU64,
}

impl Deref for Inner {
    type Target = Setup;

    fn deref(&self) -> &Setup {
        &self.setup
    }
}

impl Snapshots {
    pub(super) fn new(setup: Setup) -> Snapshots {
        Snapshots(Arc::new(Inner {
            setup,
            sending: Turns::default(),
            receiving: Mutex::default(),
            offers: Mutex::default(),
            next_ticket: AtomicU64::new(1),
        }))
    }

    /// Streams a snapshot; [`Event::SnapshotBegun`] and [`Event::SnapshotSent`] follow.
    pub(super) fn send(&self, transport: &Transport, job: SnapshotJob) {
        let (inner, transport) = (self.0.clone(), transport.clone());
        self.0.runtime.spawn(async move {
            let (group, to, peer) = (job.group, job.to, format!("{:x}", job.node.0));
            let position = match inner.stream(&transport, job).await {
                Ok((position, rounds)) => {
                    info!(group = group.0, %peer, index = position.index.0, rounds, "sent a snapshot");
                    inner.metrics.snapshots_sent.inc();
                    Some(position)
                }
                Err(Failure::Other(error)) => {
                    warn!(group = group.0, %peer, error, "sending a snapshot failed");
                    sleep(FAILED_PAUSE).await;
                    None
                }
                Err(Failure::Damaged(what)) => {
                    error!(group = group.0, %peer, what, "a snapshot of what is stored here cannot be used");
                    inner.scrubber.suspect(group);
                    sleep(REFUSED_PAUSE).await;
                    None
                }
                Err(Failure::NoRoom(what)) => {
                    warn!(group = group.0, %peer, what, "the receiver has no room for a snapshot");
                    sleep(REFUSED_PAUSE).await;
                    None
                }
            };
            inner.inputs.event(Event::SnapshotSent { group, to, position });
        });
    }

    /// Takes a snapshot that another node sends.
    pub(super) fn receive(&self, from: NodeId, mut snapshot: IncomingSnapshot) {
        let inner = self.0.clone();
        self.0.runtime.spawn(async move {
            let peer = format!("{:x}", from.0);
            let (began, installing) = (Instant::now(), inner.metrics.snapshots_installing.hold());
            let outcome = Tally::of_received(&inner.metrics).count(&peer, inner.take(&mut snapshot)).await;
            drop(installing);
            match &outcome {
                Ok(_) => inner.metrics.snapshot_save_duration.observe(began.elapsed()),
                Err(rejection) => warn!(%peer, reason = %rejection, "did not install a snapshot"),
            }
            let answer = outcome.map(encode_position);
            if let Err(error) = snapshot.answer(answer).await {
                warn!(%peer, %error, "cannot answer a snapshot");
            }
        });
    }

    /// Drops what is not needed any more where that may take long.
    pub(super) fn retire(&self, retired: Vec<Retired>) {
        self.0.retire(retired);
    }

    /// The node's decision on an offered snapshot.
    pub(super) fn decide(&self, ticket: u64, yes: bool) {
        if let Some(offer) = self.0.offers.lock().remove(&ticket) {
            let _ = offer.send(yes);
        }
    }
}

impl Inner {
    fn retire(&self, retired: Vec<Retired>) {
        self.runtime.spawn_blocking(move || drop(retired));
    }

    /// Sends a snapshot when it is its turn. Where the receiver is then, and in how many rounds it came there.
    async fn stream(&self, transport: &Transport, job: SnapshotJob) -> Result<(LogPosition, u32), Failure> {
        let keyspace = job.keyspace.clone();
        // It waits for what the keyspace is doing, and others use this thread.
        let bytes = spawn_blocking(move || keyspace.db_bytes()).await.map_err(Failure::other)?;
        let _turn = self.sending.take(job.node, Size::of(bytes)).await?;
        // The next leader's would be refused as long as this one came.
        let leader = self.board.group(job.group).and_then(|group| group.leader());
        if leader.is_some_and(|leader| leader != self.me) {
            return Err(Failure::Other("another node leads the group by now".to_owned()));
        }
        self.inputs.event(Event::SnapshotBegun { group: job.group, to: job.to });
        let peer = format!("{:x}", job.node.0);
        Tally::of_sent(&self.metrics).count(&peer, self.stream_now(transport, job, bytes)).await
    }

    async fn stream_now(
        &self,
        transport: &Transport,
        job: SnapshotJob,
        bytes: u64,
    ) -> Result<(LogPosition, u32), Failure> {
        let (sender, mut chunks) = mpsc::channel(CHUNKS_QUEUED);
        let header = encode_header(job.group, job.to, bytes);
        let mut snapshot = transport.open_snapshot(job.node, header).await?;
        let export = spawn_blocking(move || export(job, &sender));
        while let Some(chunk) = chunks.recv().await {
            snapshot.chunk(chunk).await?;
        }
        // The queue ends when the export does, whether it came to its end or not.
        let rounds = export.await.map_err(Failure::other)??;
        let position = decode_position(snapshot.finish().await?).map_err(Failure::Other)?;
        Ok((position, rounds))
    }

    async fn take(&self, snapshot: &mut IncomingSnapshot) -> Result<LogPosition, Rejection> {
        let (group, bytes) = decode_header(snapshot.header().clone())?;
        let _receiving = Receiving::begin(&self.receiving, group, Size::of(bytes))?;
        let importer = self.import(group, bytes, snapshot).await?;
        let Some(applied) = importer.applied().filter(|_| importer.is_complete()) else {
            return Err(self.abandon(importer, "it is not complete").await.into());
        };
        let generation = importer.generation();
        let (importer, loaded) = self.load(importer).await?;
        let (ticket, decision) = self.offer();
        self.inputs.event(Event::SnapshotOffered { group, ticket, applied, generation });
        if !decision.await.map_err(text)? {
            self.retire(vec![Retired::State(loaded)]);
            let reason = "not wanted: this replica leads or is ahead of it";
            return Err(self.abandon(importer, reason).await.into());
        }
        if let Err(error) = self.install(importer).await {
            // The node waits for the switch, and the engine may hold either state: only a restart can tell.
            self.fatal.report(format!("group {group}: installing a snapshot failed: {error}"));
            self.retire(vec![Retired::State(loaded)]);
            return Err(error.into());
        }
        self.metrics.snapshots_received.inc();
        self.inputs.event(Event::SnapshotInstalled { group, applied, loaded });
        Ok(position(applied))
    }

    /// Reads all chunks into the engine, beside the present state: about so many bytes, if there is room.
    async fn import(
        &self,
        group: GroupId,
        bytes: u64,
        snapshot: &mut IncomingSnapshot,
    ) -> Result<Importer, Rejection> {
        let (sender, chunks) = mpsc::channel(CHUNKS_QUEUED);
        let (engine, room) = (self.engine.clone(), self.room.clone());
        let import = spawn_blocking(move || {
            room.check(bytes).map_err(Rejection::NoRoom)?;
            import(engine, group, &room, chunks)
        });
        let read = async {
            while let Some(chunk) = snapshot.next_chunk().await.map_err(text)? {
                if sender.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok::<(), String>(())
        };
        let read = read.await;
        drop(sender);
        let importer = import.await.map_err(text)??;
        match read {
            Ok(()) => Ok(importer),
            Err(reason) => Err(self.abandon(importer, &reason).await.into()),
        }
    }

    /// Reads back what was imported. This is where a sender's damage shows, before anything is switched to.
    async fn load(&self, importer: Importer) -> Result<(Importer, Loaded), Rejection> {
        let load = spawn_blocking(move || (importer.load(), importer));
        match load.await.map_err(text)? {
            (Ok(loaded), importer) => Ok((importer, loaded)),
            (Err(CarryError::Open(OpenError::Damaged { what, .. })), importer) => {
                Err(Rejection::Damaged(self.abandon(importer, &what).await))
            }
            (Err(error), importer) => Err(self.abandon(importer, &text(error)).await.into()),
        }
    }

    /// Removes what an import wrote; why it ended.
    async fn abandon(&self, importer: Importer, reason: &str) -> String {
        let removed = spawn_blocking(move || importer.abandon().map_err(text)).await.map_err(text);
        match removed.flatten() {
            Ok(()) => reason.to_owned(),
            Err(error) => format!("{reason}; what was received of it stays for now: {error}"),
        }
    }

    fn offer(&self) -> (u64, oneshot::Receiver<bool>) {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let (sender, decision) = oneshot::channel();
        self.offers.lock().insert(ticket, sender);
        (ticket, decision)
    }

    /// Switches to what was imported, durably.
    async fn install(&self, importer: Importer) -> Result<(), String> {
        let install = spawn_blocking(move || importer.finish());
        install.await.map_err(text)?.map(drop).map_err(text)
    }
}

/// Where the snapshots of one direction are counted, by the other node.
struct Tally<'a> {
    in_flight: &'a Family<Gauge>,
    successes: &'a Family<Counter>,
    failures: &'a Family<Counter>,
    duration: &'a Family<TransferHistogram>,
}

impl Tally<'_> {
    fn of_sent(metrics: &Metrics) -> Tally<'_> {
        Tally {
            in_flight: &metrics.snapshots_sending,
            successes: &metrics.snapshot_sends,
            failures: &metrics.snapshot_send_failures,
            duration: &metrics.snapshot_send_duration,
        }
    }

    fn of_received(metrics: &Metrics) -> Tally<'_> {
        Tally {
            in_flight: &metrics.snapshots_receiving,
            successes: &metrics.snapshot_receives,
            failures: &metrics.snapshot_receive_failures,
            duration: &metrics.snapshot_receive_duration,
        }
    }

    /// Counts one.
    async fn count<T, E>(&self, peer: &str, transfer: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let (began, in_flight) = (Instant::now(), self.in_flight.with(&[peer]));
        let _held = in_flight.hold();
        let outcome = transfer.await;
        match &outcome {
            Ok(_) => {
                self.successes.with(&[peer]).inc();
                self.duration.with(&[peer]).observe(began.elapsed());
            }
            Err(_) => self.failures.with(&[peer]).inc(),
        }
        outcome
    }
}

/// Small snapshots do not wait for large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Size {
    Small,
    Large,
}

impl Size {
    fn of(bytes: u64) -> Size {
        if bytes < LARGE_BYTES { Size::Small } else { Size::Large }
    }
}

/// Of each size one snapshot at a time is sent to a node.
#[derive(Default)]
struct Turns(Mutex<HashMap<(NodeId, Size), Arc<Semaphore>>>);

impl Turns {
    /// Waits until it is a snapshot's turn, which ends when what is returned is dropped.
    async fn take(&self, to: NodeId, size: Size) -> Result<OwnedSemaphorePermit, Failure> {
        let turn = self.0.lock().entry((to, size)).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
        turn.acquire_owned().await.map_err(Failure::other)
    }
}

/// The right to receive a snapshot of a group; given back when dropped.
#[derive(Debug)]
struct Receiving<'a> {
    groups: &'a Mutex<Vec<(GroupId, Size)>>,
    group: GroupId,
}

impl Receiving<'_> {
    fn begin(
        groups: &Mutex<Vec<(GroupId, Size)>>,
        group: GroupId,
        size: Size,
    ) -> Result<Receiving<'_>, String> {
        let mut receiving = groups.lock();
        let of_size = receiving.iter().filter(|other| other.1 == size).count();
        if of_size >= RECEIVED_AT_ONCE || receiving.iter().any(|other| other.0 == group) {
            return Err("busy with another snapshot".into());
        }
        receiving.push((group, size));
        Ok(Receiving { groups, group })
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.groups.lock().retain(|(group, _)| *group != self.group);
    }
}

/// Why a snapshot did not get to where it was sent.
enum Failure {
    /// What is stored here is damaged, as it seems.
    Damaged(String),
    /// The receiver's disk has too little room.
    NoRoom(String),
    Other(String),
}

impl Failure {
    fn other(error: impl std::fmt::Display) -> Failure {
        Failure::Other(error.to_string())
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Failure {
        match error {
            SnapshotError::Receiver(Rejection::Damaged(what)) => Failure::Damaged(what),
            SnapshotError::Receiver(Rejection::NoRoom(what)) => Failure::NoRoom(what),
            error => Failure::other(error),
        }
    }
}

impl From<CarryError> for Failure {
    fn from(error: CarryError) -> Failure {
        match error.is_damage() {
            true => Failure::Damaged(error.to_string()),
            false => Failure::other(error),
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Reads the engine, chunk by chunk, as fast as the connection takes them. Returns how many rounds that took.
fn export(job: SnapshotJob, chunks: &mpsc::Sender<Bytes>) -> Result<u32, CarryError> {
    let mut exporter = Exporter::new(job.keyspace, job.log_bytes)?;
    while let Some(chunk) = exporter.next_chunk(CHUNK_BYTES)? {
        // The receiver of chunks goes away when the connection ends, which has its own error.
        if chunks.blocking_send(chunk).is_err() {
            break;
        }
    }
    Ok(exporter.rounds())
}

fn import(
    engine: Arc<dyn Engine>,
    group: GroupId,
    room: &Room,
    chunks: mpsc::Receiver<Bytes>,
) -> Result<Importer, Rejection> {
    let mut importer = Importer::new(engine, group.0).map_err(text)?;
    match take_chunks(&mut importer, room, chunks) {
        Ok(()) => Ok(importer),
        Err(rejection) => {
            importer.abandon().map_err(text)?;
            Err(rejection)
        }
    }
}

fn take_chunks(
    importer: &mut Importer,
    room: &Room,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<(), Rejection> {
    let mut unlooked = 0;
    while let Some(chunk) = chunks.blocking_recv() {
        unlooked += chunk.len();
        importer.chunk(chunk).map_err(text)?;
        if unlooked >= LOOK_BYTES {
            room.check_more(importer.records()).map_err(Rejection::NoRoom)?;
            unlooked = 0;
        }
    }
    Ok(())
}

fn position(applied: Applied) -> LogPosition {
    LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum }
}

fn encode_header(group: GroupId, to: ReplicaId, bytes: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + SIZE_BYTES);
    out.put_u8(VERSION);
    out.put_u64_le(group.0);
    out.put_u64_le(to.0);
    out.put_u64_le(bytes);
    out.freeze()
}

/// The group, and about how many bytes its state has: none if the sender does not say.
fn decode_header(mut bytes: Bytes) -> Result<(GroupId, u64), String> {
    if bytes.len() < HEADER_BYTES {
        return Err("its header is too short".into());
    }
    let mut size = bytes.split_off(HEADER_BYTES);
    let version = bytes.get_u8();
    if version != VERSION {
        return Err(format!("its header has version {version}, this node knows {VERSION}"));
    }
    Ok((GroupId(bytes.get_u64_le()), size.try_get_u64_le().unwrap_or(0)))
}

fn encode_position(position: LogPosition) -> Bytes {
    let mut out = BytesMut::with_capacity(24);
    out.put_u64_le(position.term.0);
    out.put_u64_le(position.index.0);
    out.put_u64_le(position.checksum);
    out.freeze()
}

fn decode_position(mut bytes: Bytes) -> Result<LogPosition, String> {
    if bytes.len() < 24 {
        return Err("the receiver's answer is too short".into());
    }
    let (term, index) = (Term(bytes.get_u64_le()), Index(bytes.get_u64_le()));
    Ok(LogPosition { term, index, checksum: bytes.get_u64_le() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ops::ControlFlow;

    use futures::FutureExt as _;
    use hadron_keyspace::{Command, Keyspace, Options};
    use hadron_proto::etcdserverpb as pb;
    use hadron_storage::engine::{ModelEngine, Read as _, Space};

    use super::*;

    const GROUP: GroupId = GroupId(7);

    #[test]
    fn what_goes_before_and_after_a_snapshot_is_written_as_ever() {
        let mut pinned = crate::pinned::Pinned::open(env!("CARGO_MANIFEST_DIR"), "snapshots.txt");
        let header = pinned.bytes("header", &encode_header(GROUP, ReplicaId(2), 1_000));
        assert_eq!(decode_header(header.into()), Ok((GROUP, 1_000)));
        let position = LogPosition { term: Term(1), index: Index(2), checksum: 3 };
        let answer = pinned.bytes("position", &encode_position(position));
        assert_eq!(decode_position(answer.into()), Ok(position));
        pinned.finish();
    }

    /// A snapshot with values of 40 MiB.
    fn chunks() -> mpsc::Receiver<Bytes> {
        let engine = Arc::new(ModelEngine::new());
        let keyspace = Keyspace::open(engine.clone(), GROUP.0, Options::default()).unwrap();
        let put = |n: u8| pb::PutRequest {
            key: vec![n].into(),
            value: vec![n; 1 << 20].into(),
            ..Default::default()
        };
        let puts = (0..40).map(|n| Command::Put(put(n))).collect();
        keyspace.apply(Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 }, puts);
        while let Some(flush) = keyspace.take_flush(1, usize::MAX) {
            engine.write(flush.batch()).unwrap();
            keyspace.flush_done(flush);
        }
        let (sender, chunks) = mpsc::channel(100);
        let mut exporter = Exporter::new(keyspace, usize::MAX).unwrap();
        while let Some(chunk) = exporter.next_chunk(CHUNK_BYTES).unwrap() {
            sender.try_send(chunk).unwrap();
        }
        chunks
    }

    fn values(engine: &ModelEngine) -> usize {
        let mut values = 0;
        let visit = &mut |_: &[u8], _: &[u8]| {
            values += 1;
            ControlFlow::Continue(())
        };
        engine.scan(Space::Values, &[], &[255; 16], visit).unwrap();
        values
    }

    /// It was received until the engine could write nothing more, and the node stopped with all its groups.
    #[test]
    fn a_snapshot_for_which_the_disk_has_no_room_is_refused_and_removed() {
        let engine = Arc::new(ModelEngine::new());
        let fills_up = {
            let engine = engine.clone();
            // Room for 27 values and the reserve.
            Room::with(move || Some(((970 + values(&engine) as u64) << 20, 1050 << 20)))
        };
        let rejection = import(engine.clone(), GROUP, &fills_up, chunks()).map(drop).unwrap_err();
        assert!(matches!(&rejection, Rejection::NoRoom(_)), "{rejection}");
        assert!(rejection.to_string().contains("make room on that disk"), "{rejection}");
        assert_eq!(values(&engine), 0);

        let importer = import(engine.clone(), GROUP, &Room::with(|| Some((0, 1 << 40))), chunks()).unwrap();
        assert!(importer.is_complete());
        assert_eq!(values(&engine), 40);
    }

    #[test]
    fn small_snapshots_are_sent_beside_large_ones() {
        let turns = Turns::default();
        let take = |node, size| turns.take(NodeId(node), size).now_or_never();
        let large = take(1, Size::Large).unwrap();
        assert!(take(1, Size::Large).is_none());
        let small = take(1, Size::Small).unwrap();
        assert!(take(1, Size::Small).is_none());
        assert!(take(2, Size::Large).is_some());
        drop((large, small));
        assert!(take(1, Size::Large).is_some());
    }

    #[test]
    fn small_snapshots_are_received_beside_large_ones() {
        let groups = Mutex::default();
        let begin = |group, bytes| Receiving::begin(&groups, GroupId(group), Size::of(bytes));
        let large = [begin(1, u64::MAX), begin(2, LARGE_BYTES)].map(Result::unwrap);
        let small = [begin(3, 0), begin(4, LARGE_BYTES - 1)].map(Result::unwrap);
        assert!(begin(5, LARGE_BYTES).is_err() && begin(5, 0).is_err());
        drop(small);
        assert!(begin(2, 0).is_err(), "it is on its way already");
        begin(5, 0).unwrap();
        drop(large);
    }

    #[test]
    fn headers_and_positions_come_back() {
        let header = encode_header(GroupId(1), ReplicaId(6), 77);
        assert_eq!(decode_header(header.clone()), Ok((GroupId(1), 77)));
        assert_eq!(decode_header(header.slice(..HEADER_BYTES)), Ok((GroupId(1), 0)), "of an older node");
        assert!(decode_header(header.slice(..HEADER_BYTES - 1)).is_err());
        assert!(decode_header([&[9], &header[1..]].concat().into()).unwrap_err().contains("version 9"));
        let at = LogPosition { term: Term(2), index: Index(3), checksum: 4 };
        assert_eq!(decode_position(encode_position(at)).unwrap(), at);
        assert!(decode_position(Bytes::new()).is_err());
    }
}
