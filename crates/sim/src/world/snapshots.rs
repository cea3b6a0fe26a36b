//! Snapshots on their way: one node's engine, chunk by chunk, into another's.

use std::collections::btree_map::Entry;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hadron_consensus::{GroupId, Index, LogPosition, ReplicaId, Term};
use hadron_keyspace::{Applied, Exporter, Importer, Loaded, SnapshotError};
use hadron_node::{Event as NodeEvent, SnapshotJob};
use rand::Rng;

use super::machine::Process;
use super::story::StoryEvent;
use super::threads::EngineJob;
use super::{Happening, Life, World};
use crate::history::Violation;

/// Bytes of a chunk.
const CHUNK_BYTES: usize = 4 << 10;
/// Bytes of a state from which its snapshot is a large one: no small one waits for it.
const LARGE_BYTES: u64 = 256 << 10;

/// To which machine snapshots of which size go, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    node: u64,
    is_large: bool,
}

/// Whose snapshot is on its way to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    sender: Life,
    group: GroupId,
    to: ReplicaId,
    lane: Lane,
}

/// A part of a snapshot, and what makes the others.
#[derive(Debug)]
pub(super) struct Chunk {
    transfer: Transfer,
    receiver: Life,
    /// Names the transfer.
    ticket: u64,
    bytes: Bytes,
    exporter: Exporter,
}

/// A snapshot that is being received.
pub(super) struct Incoming {
    transfer: Transfer,
    /// What it contains, and in how many rounds it came, once it is complete.
    complete: Option<(Applied, u32)>,
    loaded: Option<Loaded>,
    importer: Option<Importer>,
}

impl Incoming {
    /// Who sends it, and what.
    pub(super) fn transfer(&self) -> Transfer {
        self.transfer
    }

    /// Removes what came of it, as far as the engine can. An engine that fails ends its node, and the next one sweeps it.
    fn abandon(self) -> Transfer {
        let _: Option<Result<(), SnapshotError>> = self.importer.map(Importer::abandon);
        self.transfer
    }

    /// Makes the engine switch to the snapshot.
    pub(super) fn switch(&mut self) -> Result<(), String> {
        let importer = self.importer.take().ok_or("switched twice")?;
        let applied = importer.finish().map_err(|error| error.to_string())?;
        match self.complete {
            Some((expected, _)) if expected == applied => Ok(()),
            expected => Err(format!("{applied:?} instead of {expected:?}")),
        }
    }
}

impl World {
    /// Begins a transfer, once none of its size is under way to that node.
    pub(super) fn queue_snapshot(&mut self, sender: Life, job: SnapshotJob) {
        let Some(process) = self.process(sender) else { return };
        let lane = Lane { node: job.node.0, is_large: job.keyspace.db_bytes() >= LARGE_BYTES };
        match process.outgoing.entry(lane) {
            Entry::Occupied(mut waiting) => waiting.get_mut().push_back(job),
            Entry::Vacant(nobody) => {
                nobody.insert(VecDeque::new());
                self.send_snapshot(sender, job, lane);
            }
        }
    }

    fn send_snapshot(&mut self, sender: Life, job: SnapshotJob, lane: Lane) {
        let SnapshotJob { group, node, to, keyspace, log_bytes } = job;
        self.deliver(sender, NodeEvent::SnapshotBegun { group, to });
        let transfer = Transfer { sender, group, to, lane };
        let Some(receiver) = self.life(node.0) else { return self.snapshot_fails(transfer) };
        let board = self.process(sender).map(|process| process.node().board());
        let here = board.and_then(|board| board.group(group));
        let is_here = here.is_some_and(|here| Arc::ptr_eq(&here.keyspace, &keyspace));
        let Some(machine) = self.machines.get(&sender.node) else { return };
        let views = self.cut_views(machine.engine.clone(), group);
        let exporter = match Exporter::over(keyspace, log_bytes, views) {
            Ok(exporter) => exporter,
            // While it waited for its turn the replica left, or another came in its place.
            Err(SnapshotError::Nothing) if !is_here => return self.snapshot_fails(transfer),
            Err(error) => return self.export_fails(transfer, &error),
        };
        let ticket = self.next_ticket();
        let (now, index) = (self.schedule.now(), exporter.applied().index);
        self.trace.note(
            now,
            format_args!("snapshot {ticket} of {group} at {index}: n{} -> n{}", sender.node, node.0),
        );
        self.send_next_chunk(Chunk { transfer, receiver, ticket, bytes: Bytes::new(), exporter });
    }

    /// Sends the part after the one that arrived; after the last, the receiving node is asked.
    fn send_next_chunk(&mut self, mut chunk: Chunk) {
        match chunk.exporter.next_chunk(CHUNK_BYTES) {
            Ok(Some(bytes)) => {
                chunk.bytes = bytes;
                let delay = 200 + self.network.delay(&mut self.rng);
                self.schedule.after(delay, Happening::Snapshot(Box::new(chunk)));
            }
            Ok(None) => self.offer_snapshot(&chunk),
            Err(error) => {
                self.forget_incoming(&chunk);
                self.export_fails(chunk.transfer, &error);
            }
        }
    }

    fn offer_snapshot(&mut self, chunk: &Chunk) {
        let (group, ticket, applied) = (chunk.transfer.group, chunk.ticket, chunk.exporter.applied());
        let Some(process) = self.process(chunk.receiver) else { return };
        let board = process.node().board();
        let Some(incoming) = process.incoming.get_mut(&ticket) else { return };
        incoming.complete = Some((applied, chunk.exporter.rounds()));
        let Some(importer) = &incoming.importer else { return };
        let generation = importer.generation();
        match importer.load() {
            Ok(loaded) => incoming.loaded = Some(loaded),
            // It was for a former replica, and the present one sweeps it.
            Err(_) if !board.group(group).is_some_and(|here| here.keyspace.may_switch_to(generation)) => {
                self.forget_incoming(chunk);
                return self.snapshot_fails(chunk.transfer);
            }
            Err(error) => {
                let found = format!("n{} does not take a snapshot: {error}", chunk.receiver.node);
                return self.violate(Violation::new("no_fatal", found));
            }
        }
        self.deliver(chunk.receiver, NodeEvent::SnapshotOffered { group, ticket, applied, generation });
    }

    /// A sender whose own state is replaced or goes away meanwhile can only begin anew.
    fn export_fails(&mut self, transfer: Transfer, error: &SnapshotError) {
        let is_rotten = error.is_damage() && self.is_rotten(transfer.sender.node, transfer.group);
        if !matches!(error, SnapshotError::Replaced) && !is_rotten {
            let found = format!("n{} cannot export a snapshot: {error}", transfer.sender.node);
            return self.violate(Violation::new("no_fatal", found));
        }
        self.snapshot_fails(transfer);
    }

    fn forget_incoming(&mut self, chunk: &Chunk) {
        let incoming =
            self.process(chunk.receiver).and_then(|process| process.incoming.remove(&chunk.ticket));
        if let Some(incoming) = incoming {
            incoming.abandon();
        }
    }

    /// The next part arrives, unless something broke meanwhile.
    pub(super) fn on_snapshot_chunk(&mut self, mut chunk: Chunk) {
        let direction = (chunk.transfer.sender.node, chunk.receiver.node);
        let blocked =
            self.network.is_blocked(direction) || self.network.is_blocked((direction.1, direction.0));
        if blocked || self.process(chunk.transfer.sender).is_none() || self.process(chunk.receiver).is_none()
        {
            self.forget_incoming(&chunk);
            return self.snapshot_fails(chunk.transfer);
        }
        if self.receives_another(&chunk) {
            return self.snapshot_fails(chunk.transfer);
        }
        let bytes = std::mem::take(&mut chunk.bytes);
        let (bytes, flipped) = self.flip_on_the_way(bytes);
        let received = self.receive(&chunk, bytes);
        if flipped {
            return self.flipped_chunk_arrives(&chunk, received);
        }
        if let Err(what) = received {
            if self.machines.get(&chunk.receiver.node).is_some_and(|machine| machine.is_ailing) {
                self.snapshot_fails(chunk.transfer);
                return self.stop_for_its_disk(chunk.receiver.node);
            }
            let found = format!("n{} cannot import a snapshot: {what}", chunk.receiver.node);
            return self.violate(Violation::new("no_fatal", found));
        }
        self.send_next_chunk(chunk);
    }

    /// A node receives one snapshot of a group at a time.
    fn receives_another(&mut self, chunk: &Chunk) -> bool {
        let (group, ticket) = (chunk.transfer.group, chunk.ticket);
        let Some(process) = self.process(chunk.receiver) else { return false };
        let waiting = process
            .incoming
            .iter()
            .any(|(other, incoming)| *other != ticket && incoming.transfer.group == group);
        waiting || process.engine.installing().any(|incoming| incoming.transfer.group == group)
    }

    /// Now and then a bit of a chunk flips on its way.
    fn flip_on_the_way(&mut self, bytes: Bytes) -> (Bytes, bool) {
        let one_in = self.settings.chunk_flip_one_in;
        let flips = self.faults_on && one_in > 0 && self.rng.random_range(0..one_in) == 0;
        if !flips {
            return (bytes, false);
        }
        let mut changed = BytesMut::from(&bytes[..]);
        let at = self.rng.random_range(0..changed.len());
        changed[at] ^= 1 << self.rng.random_range(0..8);
        (changed.freeze(), true)
    }

    /// The receiver must have noticed; the transfer begins anew.
    fn flipped_chunk_arrives(&mut self, chunk: &Chunk, received: Result<(), String>) {
        let (from, to) = (chunk.transfer.sender.node, chunk.receiver.node);
        if received.is_ok() {
            let found = format!("n{to} takes a damaged chunk of a snapshot");
            return self.violate(Violation::new("damage_named", found));
        }
        self.forget_incoming(chunk);
        self.tell(StoryEvent::DamagedChunk { from, to });
        self.snapshot_fails(chunk.transfer);
    }

    fn receive(&mut self, chunk: &Chunk, bytes: Bytes) -> Result<(), String> {
        let Some(machine) = self.machines.get(&chunk.receiver.node) else { return Ok(()) };
        let engine = machine.engine.clone();
        let Some(process) = self.process(chunk.receiver) else { return Ok(()) };
        let incoming = match process.incoming.entry(chunk.ticket) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let transfer = chunk.transfer;
                let importer = Importer::new(engine, transfer.group.0).map_err(|error| error.to_string())?;
                entry.insert(Incoming { transfer, complete: None, loaded: None, importer: Some(importer) })
            }
        };
        match incoming.importer.as_mut() {
            Some(importer) => importer.chunk(bytes).map_err(|error| error.to_string()),
            None => Ok(()),
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
        self.snapshot_fails(incoming.abandon());
    }

    /// The receiver's engine has switched, durably.
    pub(super) fn installed(&mut self, life: Life, incoming: Incoming) {
        let Transfer { sender, group, .. } = incoming.transfer;
        let (Some((applied, rounds)), Some(loaded)) = (incoming.complete, incoming.loaded) else { return };
        self.snapshots += 1;
        self.tell(StoryEvent::Snapshot {
            group: group.0,
            from: sender.node,
            to: life.node,
            index: applied.index,
            rounds,
        });
        self.note_installed(life, group);
        self.deliver(life, NodeEvent::SnapshotInstalled { group, applied, loaded });
        let position =
            LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum };
        self.snapshot_ends(incoming.transfer, Some(position));
    }

    /// Writes down who has waited for this.
    fn note_installed(&mut self, life: Life, group: GroupId) {
        let now = self.schedule.now();
        let mut waited = self.groups_that_wait(life);
        waited.insert(group);
        let Some(process) = self.process(life) else { return };
        for group in waited {
            process.installed.entry(group).or_default().push(now);
        }
    }

    /// The groups whose snapshots are on their way to a node, or wait for their turns.
    fn groups_that_wait(&self, life: Life) -> BTreeSet<GroupId> {
        let queues = self.running().flat_map(|process| &process.outgoing);
        let queued = queues.filter(|(lane, _)| lane.node == life.node).flat_map(|(_, jobs)| jobs);
        let receiver = self.machines.get(&life.node).and_then(|machine| machine.process.as_ref());
        let received = receiver
            .into_iter()
            .flat_map(|process| process.incoming.values().chain(process.engine.installing()));
        queued.map(|job| job.group).chain(received.map(|incoming| incoming.transfer.group)).collect()
    }

    /// A process ended that had received snapshots and not yet switched to them: their senders hear of it.
    pub(super) fn transfers_break(&mut self, process: &Process) {
        let received = process.incoming.values().chain(process.engine.installing());
        let broken: Vec<_> = received.map(Incoming::transfer).collect();
        broken.into_iter().for_each(|transfer| self.snapshot_fails(transfer));
    }

    pub(super) fn snapshot_fails(&mut self, transfer: Transfer) {
        self.snapshot_ends(transfer, None);
    }

    fn snapshot_ends(&mut self, transfer: Transfer, position: Option<LogPosition>) {
        let delay = self.network.delay(&mut self.rng);
        self.schedule.after(delay, Happening::SnapshotEnded(transfer, position));
    }

    /// The sender hears of the end, and begins the next transfer to that node.
    pub(super) fn on_snapshot_ended(&mut self, transfer: Transfer, position: Option<LogPosition>) {
        let Transfer { sender, group, to, lane } = transfer;
        self.deliver(sender, NodeEvent::SnapshotSent { group, to, position });
        let Some(process) = self.process(sender) else { return };
        match process.outgoing.get_mut(&lane).and_then(VecDeque::pop_front) {
            Some(job) => self.send_snapshot(sender, job, lane),
            None => drop(process.outgoing.remove(&lane)),
        }
    }
}
