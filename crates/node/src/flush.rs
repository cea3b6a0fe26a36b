//! Flush: applied state reaches the engine in the background, the engine is made durable now and then, and only what
//! is durable there is cut from the log.
//!
//! Invariants: flushed ≤ min(applied, locally durable in the log); the log's floor ≤ durable in the engine.

use std::collections::BTreeMap;

use hadron_consensus::{Event as CoreEvent, GroupId, Index, LogPosition, NodeId, Progress, Time};
use hadron_keyspace::Flush;
use hadron_storage::wal::Record;

use crate::event::{Effects, FlushJob};
use crate::groups::{Install, Replica};
use crate::node::Node;
use crate::snapshot::Feeding;

/// Changes per sweep.
const SWEEP_CHANGES_MAX: usize = 500;

/// Where one group's flush stands.
#[derive(Debug)]
pub(crate) struct FlushState {
    /// A batch is with the engine.
    in_flight: bool,
    /// A sweep is with the engine.
    sweeping: bool,
    /// When the last flush began.
    last_at: Time,
    /// Readers of the engine see up to here.
    flushed: Index,
    /// The engine holds up to here durably.
    durable: Index,
    /// Up to where the log has told so.
    told: Index,
    /// The last compaction of which nothing is left to be swept.
    swept: i64,
}

impl FlushState {
    /// The engine holds up to `durable`, and knows of the compaction at `swept`.
    pub(crate) fn new(durable: Index, swept: i64, now: Time) -> FlushState {
        let (in_flight, sweeping, told) = (false, false, durable);
        FlushState { in_flight, sweeping, last_at: now, flushed: durable, durable, told, swept }
    }

    /// In etcd's words, since tools wait for them.
    fn tell_durable(&mut self, group: GroupId, each: u64) {
        if self.durable.0 >= self.told.0.saturating_add(each.max(1)) {
            self.told = self.durable;
            tracing::info!(group = group.0, snapshot_index = self.durable.0, "saved snapshot");
        }
    }

    fn tell_swept(&mut self, group: GroupId, compacted: i64) {
        if compacted > self.swept {
            self.swept = compacted;
            tracing::info!(group = group.0, compact_revision = compacted, "finished scheduled compaction");
        }
    }

    /// Nothing of the group is on its way to the engine.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.in_flight && !self.sweeping
    }
}

/// The node's rhythm of engine fsyncs: one for all groups.
#[derive(Debug)]
pub(crate) struct EnginePersist {
    ticket: u64,
    in_flight: bool,
    last_at: Time,
    /// What the fsync on its way covers.
    covers: BTreeMap<GroupId, Index>,
    /// Flushed since the last fsync was asked for, or since the start.
    pub(crate) dirty: bool,
}

impl EnginePersist {
    /// The first fsync is due soon, even if nothing is flushed before: it is what lets the log be cut that was recovered,
    /// and may be more than a replica can hold without being too full to take entries.
    pub(crate) fn new(now: Time) -> EnginePersist {
        EnginePersist { ticket: 0, in_flight: false, last_at: now, covers: BTreeMap::new(), dirty: true }
    }

    /// The group's replica is gone: what is flushed of another one is another matter.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.covers.remove(&group);
    }

    /// When the next fsync is due.
    pub(crate) fn deadline(&self, interval_us: u64) -> Option<Time> {
        (self.dirty && !self.in_flight).then(|| self.last_at.plus_micros(interval_us))
    }
}

impl Node {
    /// Starts a flush when enough has gathered or waited long enough; otherwise a sweep of what compaction left.
    pub(crate) fn maybe_flush(&mut self, group: GroupId, effects: &mut Effects) {
        let (now, limits) = (self.now, &self.config.limits);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.flush.in_flight || replica.install != Install::None {
            return;
        }
        let waiting_bytes = replica.keyspace.unflushed_bytes();
        let is_due = now.micros_since(replica.flush.last_at) >= limits.flush_interval_us
            && replica.applied() > replica.flush.flushed;
        if waiting_bytes < limits.flush_bytes && !is_due {
            return;
        }
        let durable = replica.core.durable();
        replica.flush.last_at = now;
        match replica.keyspace.take_flush(durable.0, limits.flush_bytes) {
            Some(flush) => {
                replica.flush.in_flight = true;
                effects.flushes.push(FlushJob { group, flush });
            }
            None => self.maybe_sweep(group, effects),
        }
    }

    pub(crate) fn maybe_sweep(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.flush.sweeping {
            return;
        }
        if replica.install == Install::None {
            if let Some(sweep) = replica.keyspace.take_sweep(SWEEP_CHANGES_MAX) {
                replica.flush.sweeping = true;
                return effects.sweeps.push((group, sweep));
            }
            let compacted = replica.keyspace.flushed_compact_revision();
            replica.flush.tell_swept(group, compacted);
        }
        if replica.keyspace.has_former() {
            self.unswept.insert(group);
        }
    }

    /// With every heartbeat: who read what is to go does not say when he is done, what a crash left unswept nobody asks for, and a group that
    /// rests has no other occasion.
    pub(crate) fn sweep_again(&mut self, effects: &mut Effects) {
        for group in std::mem::take(&mut self.unswept) {
            self.maybe_sweep(group, effects);
        }
    }

    /// The engine has a flush.
    pub(crate) fn on_flushed(&mut self, group: GroupId, flush: Flush, effects: &mut Effects) {
        self.engine_persist.dirty = true;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        replica.flush.in_flight = false;
        replica.flush.flushed = Index(flush.index());
        replica.keyspace.flush_done(flush);
        self.maybe_sweep(group, effects);
        self.answer_install(group, effects);
        self.touch(group);
    }

    /// The engine has a sweep.
    pub(crate) fn on_swept(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        replica.flush.sweeping = false;
        self.maybe_sweep(group, effects);
        self.answer_install(group, effects);
    }

    /// Asks for an engine fsync when one is due.
    pub(crate) fn maybe_persist_engine(&mut self, effects: &mut Effects) {
        let deadline = self.engine_persist.deadline(self.persist_interval_us());
        if deadline.is_none_or(|deadline| deadline > self.now) {
            return;
        }
        let persist = &mut self.engine_persist;
        persist.ticket += 1;
        persist.in_flight = true;
        persist.dirty = false;
        persist.last_at = self.now;
        // For all others nothing changes, and they may be thousands.
        let concerned = self.replicas.iter().filter(|(_, replica)| replica.gains_by_persist());
        persist.covers = concerned.map(|(id, replica)| (*id, replica.flush.flushed)).collect();
        effects.persist_engine = Some(persist.ticket);
    }

    /// The engine holds durably what was flushed when `ticket` was issued: the log may be cut.
    pub(crate) fn on_engine_persisted(&mut self, ticket: u64, effects: &mut Effects) {
        if ticket != self.engine_persist.ticket {
            return;
        }
        self.engine_persist.in_flight = false;
        for (group, index) in std::mem::take(&mut self.engine_persist.covers) {
            let free = self.log_bytes_free();
            let limits = &self.config.limits;
            let (tail, for_snapshot) = (limits.log_tail_bytes.min(free), limits.snapshot_log_bytes.min(free));
            let is_alive = |node| self.liveness.is_alive(self.now, node);
            let Some(replica) = self.replicas.get_mut(&group) else { continue };
            replica.flush.durable = replica.flush.durable.max(index);
            replica.flush.tell_durable(group, limits.told_entries);
            let floor = replica.log_floor_wanted((tail, for_snapshot), is_alive);
            // What is kept for a follower is given up also if nothing more is written.
            self.engine_persist.dirty |= replica.feeds(is_alive);
            self.cut_log(group, floor, effects);
            self.count_memory(group);
        }
    }

    /// Old segments are kept for these groups alone. They give up their tails, which is enough for most; what is still
    /// named the next time cannot be given up, and is written again at the head of the log. That is all that can be done for
    /// replicas that are not open: what they acknowledged others may rely on.
    pub(crate) fn on_log_pinned(&mut self, groups: Vec<GroupId>, effects: &mut Effects) {
        let again = std::mem::take(&mut self.pinning);
        for group in &groups {
            match self.replicas.get(group).map(|replica| replica.flush.durable) {
                Some(durable) => self.cut_log(*group, durable, effects),
                None if self.residents.holds_log_of(*group) => {}
                None => continue,
            }
            if again.contains(group) {
                self.rewrite_log(*group, effects);
            } else {
                self.pinning.insert(*group);
            }
            self.touch(*group);
        }
    }

    /// The engine now holds a snapshot's state at `position`, durably.
    pub(crate) fn restart_flush_at(&mut self, group: GroupId, position: LogPosition, effects: &mut Effects) {
        let now = self.now;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let compacted = replica.keyspace.flushed_compact_revision();
        replica.flush = FlushState::new(position.index, compacted, now);
        self.engine_persist.forget(group);
        self.append_record(Record::Floor(group, position), effects);
    }

    /// A crash between the installation of a snapshot and the record of its floor left a log that ends before the engine:
    /// the record is made up for before anything is appended.
    pub(crate) fn log_new_floor(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if std::mem::take(&mut replica.floor_is_new) {
            let position = replica.core.floor();
            self.append_record(Record::Floor(group, position), effects);
        }
    }

    /// A follower whose log is more than it may hold gives up what the engine has of it. Nobody else would cut it: with no
    /// room for new entries there is nothing to flush, and so no fsync of the engine after which logs are cut.
    pub(crate) fn shorten_log(&mut self, group: GroupId, effects: &mut Effects) {
        let log_max = self.log_bytes_free();
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.core.is_leader() || replica.core.log_bytes() <= log_max {
            return;
        }
        let durable = replica.flush.durable;
        self.cut_log(group, durable, effects);
        self.count_memory(group);
    }

    /// Gives up the log up to `floor`, which must not be beyond what the engine holds durably.
    fn cut_log(&mut self, group: GroupId, floor: Index, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if floor <= replica.core.floor().index {
            return;
        }
        self.step_group(group, CoreEvent::Compact { index: floor }, effects);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let position = replica.core.floor();
        self.append_record(Record::Floor(group, position), effects);
    }

    /// Writes the group's whole live log again, at the head. Entries that are still on their way to the disk are among
    /// them, because everything at and after the first index is replaced.
    fn rewrite_log(&mut self, group: GroupId, effects: &mut Effects) {
        let live = match self.replicas.get(&group) {
            Some(replica) => replica.core.entries().cloned().collect(),
            None => self.residents.keep_log(group),
        };
        if !live.is_empty() {
            self.append_record(Record::Entries(group, live), effects);
        }
    }

    /// Appends a record that no group waits for.
    pub(crate) fn append_record(&mut self, record: Record, effects: &mut Effects) {
        effects.log_sequence = self.log.add_unwatched(self.now, effects.log.is_empty());
        effects.log.push(record);
    }
}

impl Replica {
    /// When the next flush is due, if anything waits for one.
    pub(crate) fn flush_deadline(&self, interval_us: u64) -> Option<Time> {
        let waits =
            !self.flush.in_flight && self.applied() > self.flush.flushed && self.install == Install::None;
        waits.then(|| self.flush.last_at.plus_micros(interval_us))
    }

    /// Whether an fsync of the engine makes something of it durable, or lets its log be cut.
    fn gains_by_persist(&self) -> bool {
        self.flush.flushed > self.flush.durable || self.core.entries().len() > 0
    }

    /// Up to where the log may go: never beyond what the engine holds durably, and less while a follower that is
    /// only a little behind, or receives a snapshot, or has one and not yet what was written meanwhile, still needs the entries.
    fn log_floor_wanted(
        &mut self,
        (tail_bytes, snapshot_bytes): (usize, usize),
        is_alive: impl Fn(NodeId) -> bool,
    ) -> Index {
        let tail = self.log_floor_with(tail_bytes);
        let (progress, floor) = (self.core.progress(), self.core.floor().index);
        // One that is cut off already is sent another snapshot.
        let is_behind = |one: &&Progress| one.matched < tail && one.matched >= floor;
        let needs = |to| progress.iter().filter(is_behind).any(|one| one.replica == to);
        self.fed.retain(|to, feeding| *feeding != Feeding::CatchesUp || needs(*to));
        let sends = self.core.is_leader() && self.fed.values().any(|feeding| *feeding == Feeding::Receives);
        if !sends && !self.feeds(is_alive) {
            return tail;
        }
        tail.min(self.log_floor_with(snapshot_bytes))
    }

    /// Whether somebody who has a snapshot is on his way to the log's end.
    fn feeds(&self, is_alive: impl Fn(NodeId) -> bool) -> bool {
        let behind = self.fed.iter().filter(|(_, feeding)| **feeding == Feeding::CatchesUp);
        behind.filter_map(|(to, _)| self.node_of(*to)).any(is_alive)
    }

    /// Where a log begins that keeps `keep_bytes` of what the engine holds durably, and nothing that all others have.
    fn log_floor_with(&self, keep_bytes: usize) -> Index {
        let needed = self.core.progress().iter().map(|progress| progress.matched).min();
        let everybody_has = match (self.core.is_leader(), self.core.leader()) {
            (true, _) => needed.unwrap_or(self.flush.durable),
            // A leader lets its followers sleep when all have everything.
            (false, Some(_)) if self.core.is_asleep() => self.core.last(),
            _ => Index(0),
        };
        let mut floor = self.flush.durable;
        let mut kept = 0;
        for entry in self.core.entries().rev().skip_while(|entry| entry.index > self.flush.durable) {
            kept += entry.data.len();
            if kept > keep_bytes || entry.index <= everybody_has {
                break;
            }
            floor = entry.index.previous();
        }
        floor
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use hadron_consensus::{DEFAULT_GROUP, Entry, HardState, Message, ReplicaId, Term, chain_checksum};
    use hadron_keyspace::Keyspace;
    use hadron_storage::disk::MemoryDisk;
    use hadron_storage::engine::ModelEngine;
    use hadron_storage::wal::{Options, Recovered, RecoveredGroup, Wal};

    use super::*;
    use crate::event::{Event, OpenOutcome};
    use crate::node::tests::alone;
    use crate::propose::tests::{lead, node as of_three};

    /// Has a replica here that is not open.
    const CLOSED: GroupId = GroupId(2);
    /// Others write to it.
    const BUSY: GroupId = GroupId(9);
    const SEGMENT_BYTES: u64 = 16 << 10;
    /// What may be kept until somebody is asked to move on.
    const PINNED_BYTES_MAX: u64 = 4 * SEGMENT_BYTES;

    fn log_of(disk: &MemoryDisk) -> (Wal, Recovered) {
        let options = Options { segment_bytes: SEGMENT_BYTES, log_id: 1, ballast_bytes: 0 };
        Wal::open(Arc::new(disk.clone()), Path::new("/log"), options).unwrap()
    }

    fn entries_after(group: GroupId, previous: LogPosition, count: u64) -> Vec<Entry> {
        let (mut checksum, data) = (previous.checksum, Bytes::from(vec![7; 1_000]));
        let numbers = previous.index.0 + 1..=previous.index.0 + count;
        let entry = |index| {
            let (term, index) = (Term(3), Index(index));
            checksum = chain_checksum(checksum, group, term, index, &data);
            Entry { term, index, checksum, data: data.clone() }
        };
        numbers.map(entry).collect()
    }

    /// What a former life left on the disk of the closed replica: a vote, a floor and four entries after it.
    fn former_life(disk: &MemoryDisk) {
        let (mut wal, _) = log_of(disk);
        let vote = HardState { term: Term(4), voted_for: Some(ReplicaId(3)), commit: Index(5) };
        let floor = entries_after(CLOSED, LogPosition::default(), 2)[1].position();
        let entries = Record::Entries(CLOSED, entries_after(CLOSED, floor, 4));
        wal.append(&[Record::HardState(CLOSED, vote), Record::Floor(CLOSED, floor), entries]).unwrap();
        wal.sync().unwrap();
    }

    fn node(recovered: Recovered) -> (Node, Effects) {
        let (config, keyspaces) = alone();
        let mut node = Node::new(config, recovered.groups, &keyspaces, Time(1)).unwrap();
        let mut effects = Effects::default();
        node.start(Time(1), &mut effects);
        (node, effects)
    }

    fn new_keyspace() -> Arc<Keyspace> {
        Keyspace::open(Arc::new(ModelEngine::new()), CLOSED.0, Default::default()).unwrap()
    }

    fn carry_out(node: &mut Node, wal: &mut Wal, effects: Effects) {
        if !effects.log.is_empty() {
            wal.append(&effects.log).unwrap();
            wal.sync().unwrap();
            let durable = Event::LogDurable { sequence: effects.log_sequence };
            let mut effects = Effects::default();
            node.step(node.now, durable, &mut effects);
            node.settle(node.now, &mut effects);
            carry_out(node, wal, effects);
        }
    }

    fn give(node: &mut Node, wal: &mut Wal, event: Event) {
        let (mut effects, now) = (Effects::default(), Time(node.now.0 + 1));
        node.step(now, event, &mut effects);
        node.settle(now, &mut effects);
        carry_out(node, wal, effects);
    }

    /// Much is written to another group, and now and then somebody looks for old segments.
    fn pass_time(node: &mut Node, wal: &mut Wal) {
        let mut end = LogPosition::default();
        for round in 0..200 {
            let entries = entries_after(BUSY, end, 3);
            end = entries[2].position();
            wal.append(&[Record::Entries(BUSY, entries), Record::Floor(BUSY, end)]).unwrap();
            wal.sync().unwrap();
            let groups = wal.pinning(PINNED_BYTES_MAX);
            if round % 4 == 0 && !groups.is_empty() {
                give(node, wal, Event::LogPinned { groups });
            }
            assert!(wal.disk_bytes() < PINNED_BYTES_MAX + 4 * SEGMENT_BYTES, "{}", wal.disk_bytes());
        }
        wal.append(&[Record::Forget(BUSY)]).unwrap();
        wal.sync().unwrap();
    }

    /// A replica that could not be opened, or of which the catalog did not know, kept all later segments of the log: the disk filled, and the
    /// node stopped with all its groups.
    #[test]
    fn a_closed_replica_keeps_its_records_and_not_the_segments_of_others() {
        let unknown = |_: &mut Node, _: &mut Wal| {};
        let damaged = |node: &mut Node, wal: &mut Wal| {
            let outcome = OpenOutcome::Damaged(Some(ReplicaId(1)), "a bit flipped".into());
            give(node, wal, Event::Opened { group: CLOSED, outcome });
        };
        let unusable = |node: &mut Node, wal: &mut Wal| {
            let outcome = OpenOutcome::Unusable("it is of a newer version".into());
            give(node, wal, Event::Opened { group: CLOSED, outcome });
            assert_eq!(node.board.unusable(), [CLOSED].into());
            assert!(node.board.damaged().is_empty(), "nobody shall rebuild it");
        };
        // The log was cut below what the engine does not have any more.
        let behind = |node: &mut Node, wal: &mut Wal| {
            let outcome = OpenOutcome::Open(ReplicaId(1), new_keyspace());
            give(node, wal, Event::Opened { group: CLOSED, outcome });
            assert_eq!(node.board.damaged(), BTreeMap::from([(CLOSED, ReplicaId(1))]));
        };
        let whys: [fn(&mut Node, &mut Wal); 4] = [unknown, damaged, unusable, behind];
        for close in whys {
            let disk = MemoryDisk::new();
            former_life(&disk);
            let (mut wal, recovered) = log_of(&disk);
            let stored = recovered.groups.clone();
            assert_eq!(stored[&CLOSED].entries.len(), 4);
            let (mut node, effects) = node(recovered);
            carry_out(&mut node, &mut wal, effects);
            let open_bytes = node.memory_use().log - 4_000;
            close(&mut node, &mut wal);
            assert_eq!(node.memory_use().log, open_bytes + 4_000, "what is held counts");
            pass_time(&mut node, &mut wal);

            // A restart finds all of it, and goes on in the same way.
            drop(wal);
            let (mut wal, recovered) = log_of(&disk);
            assert_eq!(recovered.groups[&CLOSED], stored[&CLOSED]);
            give(&mut node, &mut wal, Event::Destroyed { group: CLOSED });
            assert_eq!(node.memory_use().log, open_bytes);
            give(&mut node, &mut wal, Event::LogPinned { groups: vec![CLOSED] });
            give(&mut node, &mut wal, Event::LogPinned { groups: vec![CLOSED] });
            drop(wal);
            assert!(!log_of(&disk).1.groups.contains_key(&CLOSED), "what is gone is not written again");
        }
    }

    #[test]
    fn a_log_counts_once_when_its_replica_is_opened() {
        let log = RecoveredGroup {
            entries: entries_after(CLOSED, LogPosition::default(), 3),
            ..RecoveredGroup::default()
        };
        let groups = BTreeMap::from([(CLOSED, log)]);
        let (mut node, mut effects) = node(Recovered { groups, torn_tail: None });
        let bytes = node.memory_use().log;
        assert!(bytes >= 3_000);
        let outcome = OpenOutcome::Open(ReplicaId(1), new_keyspace());
        node.step(Time(2), Event::Opened { group: CLOSED, outcome }, &mut effects);
        node.settle(Time(2), &mut effects);
        assert_eq!(node.replicas[&CLOSED].core.entries().len(), 3);
        assert_eq!(node.memory_use().log, bytes);
    }

    /// When a snapshot had come, its tail was cut to what is kept for everybody: a follower behind a slow link did not get
    /// what had been written meanwhile before that was gone, and got the next snapshot, for ever.
    #[test]
    fn the_log_is_kept_until_a_follower_has_what_was_written_while_its_snapshot_came() {
        let (keep, keep_for_snapshots) = (2_000, 30_000);
        let position =
            |node: &Node, index| node.replicas[&DEFAULT_GROUP].core.position_at(Index(index)).unwrap();
        let floor = |node: &mut Node| {
            let is_alive = |other| node.liveness.is_alive(node.now, other);
            let replica = node.replicas.get_mut(&DEFAULT_GROUP).unwrap();
            replica.log_floor_wanted((keep, keep_for_snapshots), is_alive).0
        };
        let acknowledge = |node: &mut Node, id, matched| {
            let term = node.replicas[&DEFAULT_GROUP].core.term();
            let (round, full, asleep) = (0, false, false);
            let message = Message::AppendAck { term, round, matched: Index(matched), full, asleep };
            let event = CoreEvent::Message { from: ReplicaId(id), message };
            node.step_group(DEFAULT_GROUP, event, &mut Effects::default());
        };
        let mut node = of_three();
        lead(&mut node);
        node.liveness.on_heartbeat(node.now, NodeId(3), 1, true, true);
        let mut effects = Effects::default();
        for token in 0..60 {
            let data = Bytes::from(vec![7; 1_000]);
            node.step_group(DEFAULT_GROUP, CoreEvent::Propose { token, data }, &mut effects);
        }
        node.on_log_durable(effects.log_sequence, &mut effects);
        let last = node.replicas[&DEFAULT_GROUP].core.last().0;
        node.replicas.get_mut(&DEFAULT_GROUP).unwrap().flush.durable = Index(last);
        acknowledge(&mut node, 2, last);
        assert_eq!(floor(&mut node), last - 2);

        let third = ReplicaId(3);
        node.send_snapshots(DEFAULT_GROUP, [third].into_iter(), &mut effects);
        assert_eq!(floor(&mut node), last - 2, "its turn has not come");
        node.on_snapshot_begun(DEFAULT_GROUP, third);
        assert_eq!(floor(&mut node), last - 30);
        effects.snapshots.clear();
        node.send_snapshots(DEFAULT_GROUP, [third].into_iter(), &mut effects);
        assert!(effects.snapshots.is_empty(), "it is on its way");
        node.engine_persist.dirty = false;
        let installed = Some(position(&node, last - 20));
        node.on_snapshot_sent(DEFAULT_GROUP, third, installed, &mut effects);
        assert!(
            node.engine_persist.dirty,
            "the log is cut after the next fsync of the engine, also if nothing is written"
        );
        assert_eq!(floor(&mut node), last - 20, "it needs all after its snapshot");
        acknowledge(&mut node, 3, last - 10);
        assert_eq!(floor(&mut node), last - 10, "and not what it has");

        node.now = Time(node.now.0 + 1_000_000);
        assert_eq!(floor(&mut node), last - 2, "it is not alive");
        node.liveness.on_heartbeat(node.now, NodeId(3), 1, true, true);
        assert_eq!(floor(&mut node), last - 10);
        acknowledge(&mut node, 3, last - 1);
        assert_eq!(floor(&mut node), last - 1);
        assert!(node.replicas[&DEFAULT_GROUP].fed.is_empty());
    }
}
