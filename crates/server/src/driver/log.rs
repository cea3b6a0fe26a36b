//! The log's thread: owns the write-ahead log, writes everything that waits as one batch, syncs once, reports.
//!
//! The queue needs no bound: what can be in it is bounded by what the groups may have uncommitted and in flight.
//! A failed write or fsync is fatal. Nothing that waits is ever reported durable after it. Before the first batch of a node's
//! life is reported, the data directory remembers that its log is in use ([`Places::mark`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use hadron_node::Event;
use hadron_storage::wal::{Record, Wal, WalError};
use tracing::{info, warn};

use super::error::RunError;
use super::fatal::Fatal;
use super::inputs::Inputs;
use super::whole::Places;
use crate::metrics::Metrics;

/// Entry bytes written as one batch, about.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// A log without work for so long is sealed, so that damage to its end cannot pass for a torn tail.
const IDLE: Duration = Duration::from_secs(1);
/// How often old segments that somebody keeps alive are looked for.
const PINNING_INTERVAL: Duration = Duration::from_secs(5);
/// Segments may be kept alive up to here before those who keep them are asked to move on. Several times what can be
/// alive (see `Limits::node_log_bytes`), so that little of what is written is written twice.
const PINNED_BYTES_MAX: u64 = 1 << 30;

/// Records of one turn of a shard.
struct Batch {
    shard: usize,
    sequence: u64,
    records: Vec<Record>,
}

/// Sends records to the log's thread.
#[derive(Clone)]
pub(super) struct LogQueue(Sender<Batch>);

impl LogQueue {
    /// Queues `records` of a shard; [`Event::LogDurable`] with `sequence` follows.
    pub(super) fn append(&self, shard: usize, sequence: u64, records: Vec<Record>) {
        // Fails only after the thread died of something fatal, which ends the process.
        let _ = self.0.send(Batch { shard, sequence, records });
    }
}

/// Starts the log's thread, and the one that prepares its segments. The first ends, after sealing the log, when the queue is gone.
pub(super) fn start(
    wal: Wal,
    places: Places,
    inputs: Inputs,
    metrics: Arc<Metrics>,
    fatal: Fatal,
) -> Result<(LogQueue, JoinHandle<()>), RunError> {
    let preparer = wal.preparer();
    thread::Builder::new()
        .name("log-prepare".into())
        .spawn(move || preparer.run())
        .map_err(RunError::Threads)?;
    let (sender, batches) = unbounded();
    let writer = LogWriter { wal, places, batches, inputs, metrics, looked_at: Instant::now() };
    let thread = thread::Builder::new()
        .name("log".into())
        .spawn(move || {
            if let Err(error) = writer.run() {
                fatal.report(format!(
                    "the write-ahead log failed: {error}; this node stops, because what is on its disk is not known any more"
                ));
            }
        })
        .map_err(RunError::Threads)?;
    Ok((LogQueue(sender), thread))
}

struct LogWriter {
    wal: Wal,
    places: Places,
    batches: Receiver<Batch>,
    inputs: Inputs,
    metrics: Arc<Metrics>,
    looked_at: Instant,
}

impl LogWriter {
    fn run(mut self) -> Result<(), RunError> {
        self.metrics.wal_segments.set_integer(self.wal.segment_count() as u64);
        loop {
            match self.batches.recv_timeout(IDLE) {
                Ok(batch) => self.write(batch)?,
                Err(RecvTimeoutError::Timeout) => self.wal.seal()?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look_for_pinned_segments();
        }
        self.wal.seal()?;
        info!("write-ahead log sealed");
        Ok(())
    }

    /// One write and one fsync for everything that waits, whichever shard it comes from.
    fn write(&mut self, first: Batch) -> Result<(), RunError> {
        let Batch { shard, sequence, mut records } = first;
        let mut sequences = BTreeMap::from([(shard, sequence)]);
        let mut bytes = data_bytes(&records);
        while bytes < BATCH_BYTES_MAX
            && let Ok(next) = self.batches.try_recv()
        {
            sequences.insert(next.shard, next.sequence);
            bytes += data_bytes(&next.records);
            records.extend(next.records);
        }
        let began = Instant::now();
        self.append(&records)?;
        let written = Instant::now();
        self.wal.sync()?;
        let durable = Instant::now();
        self.places.mark()?;
        for (shard, sequence) in sequences {
            self.inputs.to_shard(shard, Event::LogDurable { sequence });
        }
        self.metrics.wal_write_duration.observe(written - began);
        self.metrics.wal_fsync_duration.observe(durable - written);
        self.metrics.wal_write_bytes.set_total(self.wal.written_bytes());
        self.metrics.wal_batch_records.add(records.len() as u64);
        self.metrics.wal_segments.set_integer(self.wal.segment_count() as u64);
        Ok(())
    }

    /// A full disk ends the node too, but gives it room to say so first.
    fn append(&mut self, records: &[Record]) -> Result<(), WalError> {
        let outcome = self.wal.append(records);
        if let Err(WalError::Full { .. }) = &outcome
            && self.wal.release_ballast().unwrap_or(false)
        {
            warn!("the disk is full; released the ballast file");
        }
        outcome
    }

    fn look_for_pinned_segments(&mut self) {
        if self.looked_at.elapsed() < PINNING_INTERVAL {
            return;
        }
        self.looked_at = Instant::now();
        if let Some(failure) = self.wal.background_failure() {
            warn!(%failure, "preparing log segments failed");
        }
        let groups = self.wal.pinning(PINNED_BYTES_MAX);
        if !groups.is_empty() {
            self.inputs.event(Event::LogPinned { groups });
        }
    }
}

fn data_bytes(records: &[Record]) -> usize {
    let bytes = |record: &Record| match record {
        Record::Entries(_, entries) => entries.iter().map(|entry| entry.data.len() + 32).sum(),
        _ => 32,
    };
    records.iter().map(bytes).sum()
}
