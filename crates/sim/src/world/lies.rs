//! Lies: what the world tells its nodes and clients that is not true, each like a bug that a store could have.
//!
//! A lie is told at a seam, where the world stands between a node and its disk, engine, network, clock or clients, so that
//! no product code knows of it. It is a test of the checkers: `tests/lies.rs` shows for each which guarantee notices it,
//! and within how many of its worlds ([`worlds`]).

pub mod worlds;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hadron_consensus::{DEFAULT_GROUP, GroupId, Message, NodeId};
use hadron_keyspace::Command;
use hadron_node::{Event as NodeEvent, Limits, PeerMessage, Reply};
use hadron_proto::etcdserverpb::TxnRequest;
use hadron_storage::disk::MemoryDisk;
use hadron_storage::engine::{Change, Engine, EngineError, ModelEngine, Read, Space, Visit};
use hadron_storage::wal::{RecoveredGroup, WalError};
use rand::Rng;

use super::leases::LOCK;
use super::machine::Asked;
use super::repairs::alarm_about;
use super::{Happening, Life, World};
use crate::etcd::{self, Request};
use crate::history::{Action, Event, Operation, Outcome, Response, Step, StepResult};

/// When an old copy of a disk is made, in microseconds.
const COPY_US: u64 = 3_000_000;
/// Former state records of a group that are remembered.
const STATES_MAX: usize = 4;
/// Where the generation is in the state record of a group.
const GENERATION_IN_STATE: std::ops::Range<usize> = 1..5;
/// Where (term, index, checksum, stamp) are in it.
const APPLIED_IN_STATE: std::ops::Range<usize> = 5..37;

/// What is not true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// A log batch is called durable before its fsync.
    DurableBeforeFsync,
    /// A power loss takes the last log batch that was fsynced.
    LostFsync,
    /// A follower that entries do not reach acknowledges them.
    MinorityCommit,
    /// A bit of an entry flips on its way to a follower, and no checksum of the connection notices.
    ChangedEntry,
    /// A restarted node remembers neither its term nor whom it voted for.
    ForgottenVote,
    /// A machine comes back with the disk it had seconds ago.
    OldDisk,
    /// A machine comes back without its data, under its old name.
    WipedDisk,
    /// The engine says that it persisted and did not.
    EngineForgets,
    /// The engine's record of what was applied goes back at a restart, its data do not: entries are applied twice.
    AppliedAgain,
    /// A bit flips in the engine while the node is down.
    EngineBitFlip,
    /// The last record of a snapshot is not sent.
    CutSnapshot,
    /// A linearizable read is answered without asking a quorum.
    StaleRead,
    /// A front end proposes a write again whose outcome it does not know.
    ProposedAgain,
    /// A write arrives in another keyspace.
    WrongKeyspace,
    /// Two clients get each other's answers.
    WrongClient,
    /// A front end acknowledges a write that it never proposed.
    AckUnasked,
    /// A front end says that a write has the revision before its own.
    OldRevision,
    /// A front end forgets the condition under which a lock may be taken.
    LockUnguarded,
    /// A compaction goes further than was asked.
    OverCompaction,
    /// Nothing that is sent to one of the nodes arrives, not even when the network is well.
    DeafNode,
    /// A watcher is not sent an event.
    SkippedEvent,
    /// A watcher is sent an event twice.
    DoubledEvent,
    /// A watcher is sent two events in the wrong order.
    DisorderedEvents,
    /// A watcher is told that it has seen more than it has.
    EarlyProgress,
    /// A sound replica is said to be damaged.
    FalseAlarm,
    /// Clocks run half as fast again as they should, so that leases end early.
    EarlyExpiry,
    /// A front end goes on to keep leases alive whose clients do not.
    EndlessLease,
    /// A front end answers keep-alives without asking the group.
    KeepAliveUnasked,
    /// A node does not know of the bounds on its memory.
    PressureIgnored,
    /// Nobody is told that it pins old segments of the log.
    PinnedForever,
    /// A replica that sleeps hears nothing of what the others of its group say.
    DeafSleeper,
    /// A node that is down is still heard, so that nobody who relies on that wakes.
    GhostNode,
    /// One of the nodes takes no writes, whatever is well.
    NoWrites,
    /// What a sweep removes stays in the engine.
    NothingSwept,
    /// A bit flips in the engine of a machine that will be looked at before it starts, and no checksum of the engine notices.
    UnnoticedFlip,
    /// A machine that lost its data says that it is the one that it was.
    OldName,
    /// A message arrives without its end, and no checksum of the connection notices.
    CutMessage,
    /// A node's timer fires long before it is due.
    EarlyTimer,
}

impl Lie {
    /// All of them.
    pub const ALL: [Lie; 38] = [
        Lie::DurableBeforeFsync,
        Lie::LostFsync,
        Lie::MinorityCommit,
        Lie::ChangedEntry,
        Lie::ForgottenVote,
        Lie::OldDisk,
        Lie::WipedDisk,
        Lie::EngineForgets,
        Lie::AppliedAgain,
        Lie::EngineBitFlip,
        Lie::CutSnapshot,
        Lie::StaleRead,
        Lie::ProposedAgain,
        Lie::WrongKeyspace,
        Lie::WrongClient,
        Lie::AckUnasked,
        Lie::OldRevision,
        Lie::LockUnguarded,
        Lie::OverCompaction,
        Lie::DeafNode,
        Lie::SkippedEvent,
        Lie::DoubledEvent,
        Lie::DisorderedEvents,
        Lie::EarlyProgress,
        Lie::FalseAlarm,
        Lie::EarlyExpiry,
        Lie::EndlessLease,
        Lie::KeepAliveUnasked,
        Lie::PressureIgnored,
        Lie::PinnedForever,
        Lie::DeafSleeper,
        Lie::GhostNode,
        Lie::NoWrites,
        Lie::NothingSwept,
        Lie::UnnoticedFlip,
        Lie::OldName,
        Lie::CutMessage,
        Lie::EarlyTimer,
    ];
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lie::DurableBeforeFsync => "a log batch is called durable before its fsync",
            Lie::LostFsync => "a power loss takes the last batch that was fsynced",
            Lie::MinorityCommit => "a follower acknowledges entries that it never got",
            Lie::ChangedEntry => "a bit of an entry flips on its way to a follower",
            Lie::ForgottenVote => "term and vote are forgotten at a restart",
            Lie::OldDisk => "a machine comes back with a disk of seconds ago",
            Lie::WipedDisk => "a machine comes back empty under its old name",
            Lie::EngineForgets => "the engine says that it persisted and did not",
            Lie::AppliedAgain => "the engine's applied index goes back at a restart",
            Lie::EngineBitFlip => "a bit flips in the engine of a stopped node",
            Lie::CutSnapshot => "the last record of a snapshot is not sent",
            Lie::StaleRead => "a read is answered without asking a quorum",
            Lie::ProposedAgain => "a write with an unknown outcome is proposed again",
            Lie::WrongKeyspace => "a write arrives in another keyspace",
            Lie::WrongClient => "two clients get each other's answers",
            Lie::AckUnasked => "a write is acknowledged that was never proposed",
            Lie::OldRevision => "a write is said to have the revision before its own",
            Lie::LockUnguarded => "a lock is taken without its condition",
            Lie::OverCompaction => "a compaction goes further than was asked",
            Lie::DeafNode => "nothing arrives at one of the nodes",
            Lie::SkippedEvent => "a watcher is not sent an event",
            Lie::DoubledEvent => "a watcher is sent an event twice",
            Lie::DisorderedEvents => "a watcher is sent two events in the wrong order",
            Lie::EarlyProgress => "a watcher is told that it has seen more than it has",
            Lie::FalseAlarm => "a sound replica is said to be damaged",
            Lie::EarlyExpiry => "clocks are half as fast again: leases end early",
            Lie::EndlessLease => "leases are kept alive that nobody keeps alive",
            Lie::KeepAliveUnasked => "keep-alives are answered without asking the group",
            Lie::PressureIgnored => "a node does not know the bounds on its memory",
            Lie::DeafSleeper => "a replica that sleeps hears nothing of its group",
            Lie::GhostNode => "a node that is down is still heard",
            Lie::NothingSwept => "what a sweep removes stays in the engine",
            Lie::NoWrites => "one of the nodes takes no writes",
            Lie::PinnedForever => "nobody is told that it pins segments of the log",
            Lie::UnnoticedFlip => "a bit flips in the engine of a machine that is looked at before it starts",
            Lie::OldName => "a machine that lost its data says that it is the one that it was",
            Lie::CutMessage => "a message arrives without its end",
            Lie::EarlyTimer => "a timer fires long before it is due",
        })
    }
}

/// Former states of a machine.
#[derive(Default)]
pub(super) struct Memories {
    /// The disk before its last sync.
    pub(super) before_sync: Option<MemoryDisk>,
    /// Disk and engine at one moment of the past.
    copy: Option<(MemoryDisk, ModelEngine)>,
    /// State records of the group `default`, oldest first.
    states: Vec<Bytes>,
}

impl World {
    /// Whether this lie is told in this world.
    pub(super) fn lies(&self, lie: Lie) -> bool {
        self.settings.lie == Some(lie)
    }

    /// Whether this lie is told in this world, and now: one time in `one_in`.
    fn lies_now(&mut self, lie: Lie, one_in: u32) -> bool {
        self.lies(lie) && self.rng.random_range(0..one_in) == 0
    }

    /// [`Lie::EarlyProgress`]: whether a watcher is told so now.
    pub(super) fn is_told_too_early(&mut self) -> bool {
        self.lies_now(Lie::EarlyProgress, 3)
    }

    /// [`Lie::FalseAlarm`]: about any node's replica of `default`.
    pub(super) fn raise_false_alarm(&mut self) {
        if !self.faults_on || !self.lies_now(Lie::FalseAlarm, 5) {
            return;
        }
        let (asked, accused) = (self.any_node(), self.any_node());
        let Some(life) = self.life(asked) else { return };
        self.write_unasked(life, DEFAULT_GROUP, alarm_about(accused));
    }

    /// [`Lie::PressureIgnored`]: the bounds as nodes are told them.
    pub(super) fn limits_told(&self) -> Limits {
        let mut limits = self.settings.limits.clone();
        if self.lies(Lie::PressureIgnored) {
            limits.unflushed_bytes = 1 << 40;
            limits.node_unflushed_bytes = 1 << 40;
        }
        limits
    }

    /// [`Lie::DurableBeforeFsync`].
    pub(super) fn report_too_early(&mut self, life: Life) {
        if self.lies(Lie::DurableBeforeFsync)
            && let Some(sequences) = self.process(life).and_then(|process| process.log.writing.clone())
        {
            self.tell_durable(life, sequences);
        }
    }

    /// Syncs the log; with [`Lie::LostFsync`] remembers how the disk was before.
    pub(super) fn sync_log(&mut self, life: Life) -> Result<(), WalError> {
        let lies = self.lies(Lie::LostFsync);
        let Some(machine) = self.machines.get_mut(&life.node) else { return Ok(()) };
        if lies {
            machine.memories.before_sync = Some(machine.disk.fork());
        }
        machine.process.as_mut().map_or(Ok(()), |process| process.log.wal.sync())
    }

    /// [`Lie::GhostNode`]: the heartbeat of a node that is down, in answer to one.
    fn answer_for_the_dead(&mut self, life: Life, to: u64) {
        let Some(dead) = self.machines.get(&to).filter(|machine| machine.process.is_none()) else { return };
        let heartbeat = PeerMessage::Heartbeat { incarnation: dead.incarnation, hears: true, vouches: true };
        self.deliver(life, NodeEvent::Peer { from: NodeId(to), message: heartbeat });
    }

    /// [`Lie::MinorityCommit`], [`Lie::ChangedEntry`] and [`Lie::GhostNode`].
    pub(super) fn falsify_message(&mut self, life: Life, to: u64, message: &mut PeerMessage) {
        if self.lies(Lie::GhostNode) && matches!(message, PeerMessage::Heartbeat { .. }) {
            self.answer_for_the_dead(life, to);
        }
        let direction = (life.node, to);
        let PeerMessage::Group { group, from, to: receiver, message } = message else { return };
        let Message::Append { term, entries, .. } = message else { return };
        let Some(last) = entries.last_mut() else { return };
        let is_lost = self.network.is_blocked(direction) || self.life(to).is_none();
        if is_lost && self.lies(Lie::MinorityCommit) {
            let message =
                Message::AppendAck { term: *term, round: 0, matched: last.index, full: false, asleep: false };
            let message = PeerMessage::Group { group: *group, from: *receiver, to: *from, message };
            return self.deliver(life, NodeEvent::Peer { from: NodeId(to), message });
        }
        if !last.data.is_empty() && self.lies_now(Lie::ChangedEntry, 50) {
            let at = self.rng.random_range(0..last.data.len());
            last.data = with_flipped_bit(&last.data, at);
        }
    }

    /// Remembers the state record that a flush is about to replace, for [`Lie::AppliedAgain`].
    pub(super) fn remember_state(&mut self, node: u64, group: GroupId) {
        if group != DEFAULT_GROUP || !self.lies(Lie::AppliedAgain) {
            return;
        }
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if let Ok(Some(record)) = machine.engine.get(Space::State, &state_key(group)) {
            let states = &mut machine.memories.states;
            states.push(record);
            states.drain(..states.len().saturating_sub(STATES_MAX));
        }
    }

    /// Makes the copy for [`Lie::OldDisk`].
    pub(super) fn remember_disks(&mut self) {
        if !self.lies(Lie::OldDisk) || self.schedule.now() < COPY_US {
            return;
        }
        for machine in self.machines.values_mut().filter(|machine| machine.process.is_some()) {
            if machine.memories.copy.is_none() {
                machine.memories.copy = Some((machine.disk.fork(), (*machine.engine).clone()));
            }
        }
    }

    /// What a machine finds when it starts is not what it left.
    pub(super) fn falsify_disks(&mut self, node: u64) {
        let wipes = self.lies_now(Lie::WipedDisk, 2);
        let (lie, random) = (self.settings.lie, self.rng.random::<u64>());
        let Some(machine) = self.machines.get_mut(&node).filter(|machine| machine.incarnation > 0) else {
            return;
        };
        match lie {
            Some(Lie::WipedDisk) if wipes => {
                machine.disk = MemoryDisk::new();
                machine.engine = Arc::new(ModelEngine::new());
            }
            Some(Lie::OldDisk) => {
                if let Some((disk, engine)) = machine.memories.copy.take() {
                    machine.disk = disk;
                    machine.engine = Arc::new(engine);
                }
            }
            Some(Lie::AppliedAgain) => put_applied_back(&machine.engine, &machine.memories.states),
            Some(Lie::EngineBitFlip) => flip_in_engine(&machine.engine, random),
            _ => {}
        }
    }

    /// [`Lie::CutSnapshot`]: what the sender of a snapshot sees of its engine.
    pub(super) fn cut_views(
        &self,
        engine: Arc<dyn Engine>,
        group: GroupId,
    ) -> Box<dyn Fn() -> Box<dyn Read> + Send> {
        let cuts = self.lies(Lie::CutSnapshot) && group == DEFAULT_GROUP;
        Box::new(move || match engine.snapshot() {
            view if cuts => Box::new(CutView(view)),
            view => view,
        })
    }

    /// [`Lie::WrongKeyspace`]: where a write arrives.
    pub(super) fn group_of_write(&mut self, group: GroupId) -> GroupId {
        match self.lies_now(Lie::WrongKeyspace, 20) {
            true => GroupId(1 + group.0 % self.settings.keyspaces),
            false => group,
        }
    }

    /// [`Lie::ForgottenVote`]: forgetting matters most right after a vote.
    pub(super) fn stop_voter(&mut self, node: u64) {
        if self.faults_on && self.lies_now(Lie::ForgottenVote, 3) {
            self.schedule.after(200, Happening::PowerLoss(node));
        }
    }

    /// [`Lie::AckUnasked`]: the answer to a write that is not asked for.
    pub(super) fn made_up_answer(&mut self, operation: usize) -> Option<Outcome> {
        if !self.lies_now(Lie::AckUnasked, 100) {
            return None;
        }
        let Operation { action: Action::Transaction(transaction), keyspace, .. } = &self.history[operation]
        else {
            return None;
        };
        let is_put = matches!(transaction.then[..], [Step::Put(..)]) && transaction.guards.is_empty();
        let revision = self.observer.last_revision(GroupId(*keyspace)) + 1;
        is_put.then(|| Outcome::Done(Response { revision, succeeded: true, results: vec![StepResult::Put] }))
    }

    /// [`Lie::OldRevision`].
    pub(super) fn falsify_response(&mut self, response: &mut Response) {
        if response.wrote() && self.lies_now(Lie::OldRevision, 20) {
            response.revision -= 1;
        }
    }

    /// [`Lie::LockUnguarded`] and [`Lie::OverCompaction`]: what is proposed instead.
    pub(super) fn falsify_command(&mut self, group: GroupId, command: &mut Command) {
        match command {
            Command::Txn(txn) if self.lies(Lie::LockUnguarded) && takes_lock(txn) => txn.compare.clear(),
            Command::Compact(compact) if self.lies(Lie::OverCompaction) => {
                compact.revision = self.observer.last_revision(group);
            }
            _ => {}
        }
    }

    /// [`Lie::CutMessage`].
    pub(super) fn cut_message(&mut self, bytes: &mut BytesMut) {
        if self.lies_now(Lie::CutMessage, 1_000) {
            bytes.truncate(bytes.len() - 1);
        }
    }

    /// [`Lie::DeafNode`].
    pub(super) fn is_deaf(&self, node: u64) -> bool {
        self.lies(Lie::DeafNode) && node == self.settings.nodes
    }

    /// [`Lie::DeafSleeper`].
    pub(super) fn sleeps_through(&mut self, life: Life, message: &PeerMessage) -> bool {
        let PeerMessage::Group { group, .. } = message else { return false };
        if !self.lies(Lie::DeafSleeper) {
            return false;
        }
        let board = self.process(life).and_then(|process| process.node().board().group(*group));
        board.is_some_and(|board| board.is_asleep())
    }

    /// [`Lie::ProposedAgain`]: a front end that cannot let go.
    pub(super) fn propose_again(&mut self, operation: usize) {
        if !self.lies(Lie::ProposedAgain) {
            return;
        }
        let node = self.any_node();
        let Some(life) = self.life(node) else { return };
        let command = match etcd::request(&self.history[operation].action) {
            Request::Put(request) => Command::Put(request),
            Request::Txn(request) => Command::Txn(request),
            _ => return,
        };
        self.write_unasked(life, GroupId(self.history[operation].keyspace), command);
    }

    /// A write that no client waits for.
    pub(super) fn write_unasked(&mut self, life: Life, group: GroupId, command: Command) {
        let Some(process) = self.process(life) else { return };
        let token = process.take_token();
        self.deliver(life, NodeEvent::Write { token, group, command: command.to_bytes() });
    }

    /// [`Lie::WrongClient`]: the token whose client gets this reply.
    pub(super) fn falsify_receiver(&mut self, life: Life, token: u64, reply: &Reply) -> u64 {
        if !matches!(reply, Reply::Written { .. }) || !self.lies_now(Lie::WrongClient, 30) {
            return token;
        }
        let Some(process) = self.process(life) else { return token };
        let operation = |asked: &Asked| match asked {
            Asked::Operation(operation) => Some(*operation),
            Asked::Lease(_) | Asked::Administrator | Asked::Placer => None,
        };
        let Some(mine) = process.asked.get(&token).and_then(operation) else { return token };
        let waiting: Vec<(u64, usize)> = process
            .asked
            .iter()
            .filter(|(other, _)| **other != token)
            .filter_map(|(other, asked)| operation(asked).map(|operation| (*other, operation)))
            .collect();
        let is_write =
            |operation: usize| !matches!(etcd::request(&self.history[operation].action), Request::Range(_));
        let Some((other, its)) = waiting.into_iter().find(|(_, operation)| is_write(*operation)) else {
            return token;
        };
        let Some(process) = self.process(life) else { return token };
        process.asked.insert(token, Asked::Operation(its));
        process.asked.insert(other, Asked::Operation(mine));
        token
    }

    /// What becomes of the events on their way to a watcher.
    pub(super) fn falsify_events(&mut self, events: &mut Vec<Event>) {
        if events.is_empty() || self.rng.random_range(0..20) != 0 {
            return;
        }
        let at = self.rng.random_range(0..events.len());
        match self.settings.lie {
            Some(Lie::SkippedEvent) => drop(events.remove(at)),
            Some(Lie::DoubledEvent) => events.insert(at, events[at].clone()),
            Some(Lie::DisorderedEvents) if at > 0 => events.swap(at - 1, at),
            _ => {}
        }
    }
}

/// [`Lie::ForgottenVote`]: what a restarted node remembers.
pub(super) fn forget_votes(groups: &mut BTreeMap<GroupId, RecoveredGroup>) {
    for group in groups.values_mut() {
        group.hard_state.term = group.entries.last().map_or(group.floor.term, |entry| entry.term);
        group.hard_state.voted_for = None;
    }
}

fn takes_lock(txn: &TxnRequest) -> bool {
    txn.compare.iter().any(|compare| compare.key == LOCK)
}

fn with_flipped_bit(bytes: &Bytes, at: usize) -> Bytes {
    let mut changed = BytesMut::from(&bytes[..]);
    changed[at] ^= 1;
    changed.freeze()
}

/// The key of a group's state record, as `docs/formats/keyspace.md` has it.
fn state_key(group: GroupId) -> Vec<u8> {
    [&group.0.to_be_bytes()[..], &[0]].concat()
}

/// Writes the newest former position into the present state record.
fn put_applied_back(engine: &ModelEngine, states: &[Bytes]) {
    let key = state_key(DEFAULT_GROUP);
    let Ok(Some(present)) = engine.get(Space::State, &key) else { return };
    let index = |record: &Bytes| record.get(13..21).map(<[u8]>::to_vec);
    let Some(former) = states.iter().rev().find(|former| index(former) < index(&present)) else { return };
    let mut changed = BytesMut::from(&present[..]);
    changed[APPLIED_IN_STATE].copy_from_slice(&former[APPLIED_IN_STATE]);
    write(engine, Change::Put(Space::State, key.into(), changed.freeze()));
}

/// Flips a bit of one of the group's records, durably, and no checksum of the engine notices.
pub(super) fn flip_in_engine(engine: &ModelEngine, random: u64) {
    if let Some((space, key, value)) = a_record(engine, random) {
        let at = (random / 7) as usize % value.len();
        write(engine, Change::Put(space, key, with_flipped_bit(&value, at)));
    }
}

/// One of the records that the engine holds of the present state of a group, in a space.
pub(super) fn a_record_of(
    engine: &ModelEngine,
    group: GroupId,
    space: Space,
    random: u64,
) -> Option<(Bytes, Bytes)> {
    let mut records = present_records(engine, group, space);
    (!records.is_empty()).then(|| records.swap_remove(random as usize % records.len()))
}

/// All records that the engine holds of the present state of a group, in a space.
pub(super) fn present_records(engine: &ModelEngine, group: GroupId, space: Space) -> Vec<(Bytes, Bytes)> {
    let Some(generation) = generation_of(engine, group) else { return Vec::new() };
    let prefix = [&group.0.to_be_bytes()[..], &generation].concat();
    records(engine, space, &prefix, &[&prefix[..], &[u8::MAX; 16]].concat())
}

/// The generation of a group's state that is in use, as in the keys of its records.
pub(super) fn generation_of(engine: &ModelEngine, group: GroupId) -> Option<Bytes> {
    let state = engine.get(Space::State, &state_key(group)).ok()??;
    (state.len() >= GENERATION_IN_STATE.end).then(|| state.slice(GENERATION_IN_STATE))
}

pub(super) fn records(engine: &ModelEngine, space: Space, from: &[u8], to: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut records = Vec::new();
    let scanned = engine.scan(space, from, to, &mut |key, value| {
        records.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        std::ops::ControlFlow::Continue(())
    });
    if scanned.is_ok() { records } else { Vec::new() }
}

/// One of the records of the group `default`.
pub(super) fn a_record(engine: &ModelEngine, random: u64) -> Option<(Space, Bytes, Bytes)> {
    let space = Space::ALL[random as usize % Space::ALL.len()];
    let (from, to) = (DEFAULT_GROUP.0.to_be_bytes(), (DEFAULT_GROUP.0 + 1).to_be_bytes());
    let mut pairs = records(engine, space, &from, &to);
    pairs.retain(|(_, value)| !value.is_empty());
    if pairs.is_empty() {
        return None;
    }
    let (key, value) = pairs.swap_remove((random / 4) as usize % pairs.len());
    Some((space, key, value))
}

fn write(engine: &ModelEngine, change: Change) {
    // The model fails only when it is made to, and no lie is told to a failing engine.
    let written = engine.write(vec![change]).and_then(|()| engine.persist());
    debug_assert!(written.is_ok(), "{written:?}");
}

/// A view of an engine that ends one version too early.
struct CutView(Box<dyn Read>);

impl Read for CutView {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.0.get(space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
        if space != Space::Versions {
            return self.0.scan(space, from, to, visit);
        }
        let mut held: Option<(Bytes, Bytes)> = None;
        self.0.scan(space, from, to, &mut |key, value| {
            let next = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            match held.replace(next) {
                Some((key, value)) => visit(&key, &value),
                None => std::ops::ControlFlow::Continue(()),
            }
        })
    }
}
