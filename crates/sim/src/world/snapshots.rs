//! Snapshots on their way: one node's engine, chunk by chunk, into another's.

use std::collections::btree_map::Entry;

use bytes::{Bytes, BytesMut};
use hadron_consensus::{GroupId, Index, LogPosition, ReplicaId, Term};
use hadron_keyspace::{Applied, Exporter, Importer};
use hadron_node::{Event as NodeEvent, SnapshotJob};
use rand::Rng;

use super::machine::Process;
use super::story::StoryEvent;
use super::threads::EngineJob;
use super::{Happening, Life, World};
use crate::history::Violation;

/// Bytes of a chunk.
const CHUNK_BYTES: usize = 4 << 10;

/// A part of a snapshot, or its end.
#[derive(Debug)]
pub(super) struct Chunk {
    sender: Life,
    receiver: Life,
    job: SnapshotJob,
    /// Names the transfer.
    ticket: u64,
    applied: Applied,
    /// What is still to be sent, in reverse order.
    rest: Vec<Bytes>,
}

/// A snapshot that is being received.
pub(super) struct Incoming {
    sender: Life,
    job: SnapshotJob,
    applied: Applied,
    importer: Option<Importer>,
}

impl Incoming {
    /// Who sends it, and what.
    pub(super) fn transfer(&self) -> (Life, SnapshotJob) {
        (self.sender, self.job)
    }

    /// Makes the engine switch to the snapshot.
    pub(super) fn switch(&mut self) -> Result<(), String> {
        let importer = self.importer.take().ok_or("switched twice")?;
        let applied = importer.finish().map_err(|error| error.to_string())?;
        if applied == self.applied {
            Ok(())
        } else {
            Err(format!("{applied:?} instead of {:?}", self.applied))
        }
    }
}

impl World {
    /// Begins a transfer.
    pub(super) fn send_snapshot(&mut self, sender: Life, job: SnapshotJob) {
        let Some(receiver) = self.life(job.node.0) else { return self.snapshot_fails(sender, job) };
        let Some(machine) = self.machines.get(&sender.node) else { return };
        let view = hadron_storage::engine::Engine::snapshot(&*machine.engine);
        let view = self.cut_view(view, job.group);
        let (applied, chunks) = match export(view, job.group) {
            Ok(exported) => exported,
            Err(what) => {
                let found = format!("n{} cannot export a snapshot: {what}", sender.node);
                return self.violate(Violation::new("no_fatal", found));
            }
        };
        let now = self.schedule.now();
        let ticket = self.next_ticket();
        self.trace.note(
            now,
            format_args!(
                "snapshot {ticket} of {} at {}: n{} -> n{}, {} chunks",
                job.group,
                applied.index,
                sender.node,
                job.node.0,
                chunks.len()
            ),
        );
        let rest = chunks.into_iter().rev().collect();
        self.send_chunk(Chunk { sender, receiver, job, ticket, applied, rest });
    }

    fn send_chunk(&mut self, chunk: Chunk) {
        let delay = 200 + self.network.delay(&mut self.rng);
        self.schedule.after(delay, Happening::Snapshot(Box::new(chunk)));
    }

    /// The next part arrives, unless something broke meanwhile.
    pub(super) fn on_snapshot_chunk(&mut self, mut chunk: Chunk) {
        let direction = (chunk.sender.node, chunk.receiver.node);
        let blocked =
            self.network.is_blocked(direction) || self.network.is_blocked((direction.1, direction.0));
        if blocked || self.process(chunk.sender).is_none() || self.process(chunk.receiver).is_none() {
            if let Some(process) = self.process(chunk.receiver) {
                process.incoming.remove(&chunk.ticket);
            }
            return self.snapshot_fails(chunk.sender, chunk.job);
        }
        let next = chunk.rest.pop();
        let (next, flipped) = self.flip_on_the_way(next);
        let received = self.receive(&chunk, next);
        if flipped {
            return self.flipped_chunk_arrives(chunk, received);
        }
        if let Err(what) = received {
            if self.machines.get(&chunk.receiver.node).is_some_and(|machine| machine.is_ailing) {
                self.snapshot_fails(chunk.sender, chunk.job);
                return self.stop_for_its_disk(chunk.receiver.node);
            }
            let found = format!("n{} cannot import a snapshot: {what}", chunk.receiver.node);
            return self.violate(Violation::new("no_fatal", found));
        }
        match chunk.rest.is_empty() {
            false => self.send_chunk(chunk),
            true => {
                let offer = NodeEvent::SnapshotOffered {
                    group: chunk.job.group,
                    ticket: chunk.ticket,
                    applied: chunk.applied,
                };
                self.deliver(chunk.receiver, offer);
            }
        }
    }

    /// Now and then a bit of a chunk flips on its way.
    fn flip_on_the_way(&mut self, bytes: Option<Bytes>) -> (Option<Bytes>, bool) {
        let one_in = self.settings.chunk_flip_one_in;
        let flips = self.faults_on && one_in > 0 && self.rng.random_range(0..one_in) == 0;
        match bytes.filter(|bytes| !bytes.is_empty()) {
            Some(bytes) if flips => {
                let mut changed = BytesMut::from(&bytes[..]);
                let at = self.rng.random_range(0..changed.len());
                changed[at] ^= 1 << self.rng.random_range(0..8);
                (Some(changed.freeze()), true)
            }
            bytes => (bytes, false),
        }
    }

    /// The receiver must have noticed; the transfer begins anew.
    fn flipped_chunk_arrives(&mut self, chunk: Chunk, received: Result<(), String>) {
        let Chunk { sender, receiver, job, ticket, .. } = chunk;
        match received {
            Ok(()) => {
                let found = format!("n{} takes a damaged chunk of a snapshot", receiver.node);
                self.violate(Violation::new("damage_named", found));
            }
            Err(_) => {
                if let Some(process) = self.process(receiver) {
                    process.incoming.remove(&ticket);
                }
                self.tell(StoryEvent::DamagedChunk { from: sender.node, to: receiver.node });
                self.snapshot_fails(sender, job);
            }
        }
    }

    fn receive(&mut self, chunk: &Chunk, bytes: Option<Bytes>) -> Result<(), String> {
        let Some(machine) = self.machines.get(&chunk.receiver.node) else { return Ok(()) };
        let engine = machine.engine.clone();
        let Some(process) = self.process(chunk.receiver) else { return Ok(()) };
        let incoming = match process.incoming.entry(chunk.ticket) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let importer = Importer::new(engine, chunk.job.group.0).map_err(|error| error.to_string())?;
                let (sender, job, applied) = (chunk.sender, chunk.job, chunk.applied);
                entry.insert(Incoming { sender, job, applied, importer: Some(importer) })
            }
        };
        let importer = incoming.importer.as_mut();
        match (importer, bytes) {
            (Some(importer), Some(bytes)) => importer.chunk(bytes).map_err(|error| error.to_string()),
            _ => Ok(()),
        }
    }

    /// The receiving node decided.
    pub(super) fn answer_snapshot(&mut self, life: Life, ticket: u64, yes: bool) {
        let now = self.schedule.now();
        let Some(process) = self.process(life) else { return };
        let Some(incoming) = process.incoming.remove(&ticket) else { return };
        if yes {
            return self.queue_engine_job(life, EngineJob::Install(Box::new(incoming)));
        }
        self.trace.note(now, format_args!("n{} refuses snapshot {ticket}", life.node));
        self.snapshot_fails(incoming.sender, incoming.job);
    }

    /// The receiver's engine has switched, durably.
    pub(super) fn installed(&mut self, life: Life, incoming: &Incoming) {
        let (group, applied) = (incoming.job.group, incoming.applied);
        self.snapshots += 1;
        self.tell(StoryEvent::Snapshot {
            group: group.0,
            from: incoming.sender.node,
            to: life.node,
            index: applied.index,
        });
        self.deliver(life, NodeEvent::SnapshotInstalled { group, applied });
        let position =
            LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum };
        self.snapshot_ends(incoming.sender, group, incoming.job.to, Some(position));
    }

    /// A process ended that had received snapshots and not yet switched to them: their senders hear of it.
    pub(super) fn transfers_break(&mut self, process: &Process) {
        let received = process.incoming.values().chain(process.engine.installing());
        let broken: Vec<_> = received.map(Incoming::transfer).collect();
        for (sender, job) in broken {
            self.snapshot_fails(sender, job);
        }
    }

    pub(super) fn snapshot_fails(&mut self, sender: Life, job: SnapshotJob) {
        self.snapshot_ends(sender, job.group, job.to, None);
    }

    fn snapshot_ends(&mut self, sender: Life, group: GroupId, to: ReplicaId, position: Option<LogPosition>) {
        let delay = self.network.delay(&mut self.rng);
        self.schedule.after(delay, Happening::SnapshotEnded { sender, group, to, position });
    }
}

fn export(
    view: Box<dyn hadron_storage::engine::Read>,
    group: GroupId,
) -> Result<(Applied, Vec<Bytes>), String> {
    let mut exporter = Exporter::new(view, group.0).map_err(|error| error.to_string())?;
    let mut chunks = Vec::new();
    while let Some(chunk) = exporter.next_chunk(CHUNK_BYTES).map_err(|error| error.to_string())? {
        chunks.push(chunk);
    }
    Ok((exporter.applied(), chunks))
}
