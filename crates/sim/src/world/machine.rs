//! A machine with one node on it: what survives a process, what does not, and the node's loop.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hadron_consensus::{DEFAULT_GROUP, GroupId, Message, NodeId, ROOT_GROUP, Time};
use hadron_keyspace::{Command, Keyspace, Options as KeyspaceOptions, ValueCache};
use hadron_node::{
    Bootstrap, Config, Effects, Event as NodeEvent, Failure as NodeFailure, GroupConfig, Member, Node,
    PeerMessage, Reply, SnapshotJob,
};
use hadron_storage::disk::{Disk, Fault, MemoryDisk};
use hadron_storage::engine::{Engine, ModelEngine};
use hadron_storage::wal::{Options as WalOptions, Recovered, Wal};
use rand::Rng;
use rand::rngs::SmallRng;

use super::damage::Damage;
use super::lies::{Lie, Memories, forget_votes};
use super::members::{Handshake, Joined};
use super::network::{Direction, Fate};
use super::observe::Watched;
use super::snapshots::{Incoming, Lane};
use super::story::{Stop, StoryEvent};
use super::threads::{EngineJob, EngineThread, LogThread};
use super::{Happening, Life, Settings, Trouble, World};
use crate::history::Violation;

/// The directory of the log on each disk.
pub(super) const LOG_DIRECTORY: &str = "/log";
/// Microseconds that a turn of the loop may take to begin.
const TURN_US_MAX: u64 = 60;
/// One in so many starts is interrupted by a power loss.
const BOOTS_PER_INTERRUPTION: u32 = 10;
/// Timers within [`SPIN_US`] that are too many: a node whose deadline does not move on burns its processor.
const SPIN_TIMERS: u32 = 500;
/// See [`SPIN_TIMERS`].
const SPIN_US: u64 = 50_000;

/// What a node runs on. It survives the node's process.
pub(super) struct Machine {
    pub(super) disk: MemoryDisk,
    pub(super) engine: Arc<ModelEngine>,
    /// Counts the starts of the process.
    pub(super) incarnation: u64,
    pub(super) process: Option<Process>,
    /// Multiplies the time that the disk takes.
    pub(super) slowness: u64,
    /// No fsync of its log returns before that.
    pub(super) log_hangs_until: u64,
    /// Nor does its engine finish anything.
    pub(super) engine_hangs_until: u64,
    /// The disk is full or fails: the node may stop because of it.
    pub(super) is_ailing: bool,
    /// What is to happen to it before it starts again.
    pub(super) damage: Option<Damage>,
    /// Its last process ended in good order, and its log is sealed.
    pub(super) is_sealed: bool,
    /// It never comes back.
    pub(super) is_gone: bool,
    /// How it came to the pool, if not at the beginning.
    pub(super) joined: Option<Joined>,
    /// What its clocks show when a million microseconds have passed.
    clock_rate: u64,
    /// Former states, for lies.
    pub(super) memories: Memories,
}

/// A running node and its threads.
pub(super) struct Process {
    shards: Vec<Shard>,
    /// How its keyspaces are opened: they share a cache.
    pub(super) keyspaces: KeyspaceOptions,
    pub(super) log: LogThread,
    pub(super) engine: EngineThread,
    pub(super) observed: Watched,
    started_at: u64,
    /// The process stands still until then.
    pub(super) paused_until: u64,
    /// Microseconds that its clock stood still, the present pause included.
    stood_still_us: u64,
    /// Whether the clock stands still in the present pause.
    clock_pauses: bool,
    clock_rate: u64,
    next_token: u64,
    /// The operation that waits for the reply of each token.
    pub(super) asked: BTreeMap<u64, Asked>,
    /// Snapshots that are being received, by ticket.
    pub(super) incoming: BTreeMap<u64, Incoming>,
    /// When it installed snapshots for which each group had waited: its own and those before it.
    pub(super) installed: BTreeMap<GroupId, Vec<u64>>,
    /// Snapshots that wait until the one before them has got to the same node, or not. A lane in which none is sent is not here.
    pub(super) outgoing: BTreeMap<Lane, VecDeque<SnapshotJob>>,
}

/// The loop of one of the node's shards.
struct Shard {
    node: Node,
    inbox: Vec<NodeEvent>,
    turn_is_due: bool,
    /// This loop stands still until then.
    paused_until: u64,
    timer: Option<u64>,
    /// Timers that fired since the moment beside.
    timers_fired: (u32, u64),
}

/// Who waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A client's operation in the history.
    Operation(usize),
    /// A lease client.
    Lease(usize),
    /// Who changes the members.
    Administrator,
    /// Who makes and moves keyspaces.
    Placer,
}

impl Machine {
    pub(super) fn new(settings: &Settings, rng: &mut SmallRng) -> Machine {
        let drift = settings.drift_ppm;
        let clock_rate = 1_000_000 - drift + rng.random_range(0..=2 * drift);
        Machine {
            clock_rate: if settings.lie == Some(Lie::EarlyExpiry) { 1_500_000 } else { clock_rate },
            is_ailing: false,
            damage: None,
            is_sealed: false,
            is_gone: false,
            joined: None,
            memories: Memories::default(),
            disk: MemoryDisk::new(),
            engine: Arc::new(ModelEngine::new()),
            incarnation: 0,
            process: None,
            slowness: 1,
            log_hangs_until: 0,
            engine_hangs_until: 0,
        }
    }

    /// Opens the log and the engine, as a server does: the engine is made durable as it is, if `persists`.
    fn open(
        &self,
        options: WalOptions,
        keyspaces: &KeyspaceOptions,
        groups: &[GroupConfig],
        persists: bool,
    ) -> Result<Stored, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let disk = Arc::new(self.disk.clone());
        disk.create_dir(Path::new(LOG_DIRECTORY)).map_err(|error| text(&error))?;
        let opened = Wal::open(disk, Path::new(LOG_DIRECTORY), options);
        let (wal, recovered) = opened.map_err(|error| text(&error))?;
        if persists {
            self.engine.persist().map_err(|error| text(&error))?;
        }
        let open = |group: &GroupConfig| {
            let engine: Arc<dyn Engine> = self.engine.clone();
            let keyspace = Keyspace::open(engine, group.group.0, keyspaces.clone());
            keyspace.map(|keyspace| (group.group, keyspace)).map_err(|error| text(&error))
        };
        let keyspaces = groups.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Stored { wal, recovered, keyspaces })
    }

    /// The disk works again and has room.
    pub(super) fn make_well(&mut self) {
        self.is_ailing = false;
        self.disk.set_fault(None);
        self.disk.set_capacity(None);
        self.engine.set_failing(false);
    }
}

/// What a machine holds, opened.
struct Stored {
    wal: Wal,
    recovered: Recovered,
    keyspaces: BTreeMap<GroupId, Arc<Keyspace>>,
}

impl Process {
    fn new(nodes: Vec<Node>, wal: Wal, keyspaces: KeyspaceOptions, now: u64, clock_rate: u64) -> Process {
        let shard = |node| Shard {
            node,
            inbox: Vec::new(),
            turn_is_due: false,
            paused_until: 0,
            timer: None,
            timers_fired: (0, now),
        };
        Process {
            observed: Watched::default(),
            keyspaces,
            shards: nodes.into_iter().map(shard).collect(),
            log: LogThread::new(wal),
            engine: EngineThread::default(),
            started_at: now,
            paused_until: 0,
            stood_still_us: 0,
            clock_pauses: false,
            clock_rate,
            next_token: 1,
            asked: BTreeMap::new(),
            incoming: BTreeMap::new(),
            installed: BTreeMap::new(),
            outgoing: BTreeMap::new(),
        }
    }

    /// The first shard's part of the node, which shows what all of them show.
    pub(super) fn node(&self) -> &Node {
        &self.shards[0].node
    }

    pub(super) fn keyspace(&self, group: GroupId) -> Option<Arc<Keyspace>> {
        self.node().board().group(group).map(|group| group.keyspace.clone())
    }

    /// A token that no request has had.
    pub(super) fn take_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// The process's own monotonic clock.
    fn time(&self, now: u64) -> Time {
        let passed = (now - self.started_at).saturating_sub(self.stood_still_us);
        Time(1 + (u128::from(passed) * u128::from(self.clock_rate) / 1_000_000) as u64)
    }

    /// When [`Process::time`] will be `time`, if the process does not stand still.
    fn moment_of(&self, time: Time) -> u64 {
        let passed = (u128::from(time.0.saturating_sub(1)) * 1_000_000).div_ceil(u128::from(self.clock_rate));
        self.started_at + self.stood_still_us + passed as u64
    }

    /// The process stands still; its clock too, if `clock`.
    pub(super) fn pause(&mut self, now: u64, for_us: u64, clock: bool) {
        self.paused_until = now + for_us;
        self.clock_pauses = clock;
        self.stood_still_us += if clock { for_us } else { 0 };
    }

    /// How many shards it has.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The loop of one shard stands still.
    pub(super) fn hang(&mut self, shard: usize, until: u64) {
        self.shards[shard].paused_until = until;
    }

    /// The process goes on.
    pub(super) fn resume(&mut self, now: u64) {
        self.shards.iter_mut().for_each(|shard| shard.paused_until = 0);
        let rest = self.paused_until.saturating_sub(now);
        self.stood_still_us -= if self.clock_pauses { rest } else { 0 };
        self.paused_until -= rest;
    }
}

/// The root group and one group for each keyspace.
fn groups(pool: &Bootstrap, node: NodeId, keyspaces: u64) -> Vec<GroupConfig> {
    let mut groups = pool.groups(node);
    let Some(like) = groups.first().cloned() else { return groups };
    let further = DEFAULT_GROUP.0 + 1..=keyspaces;
    groups.extend(further.map(|group| GroupConfig { group: GroupId(group), ..like.clone() }));
    groups
}

fn member(id: u64) -> Member {
    Member { id, name: format!("n{id}"), data_dir_id: id, ..Member::default() }
}

impl World {
    /// The running process of this life, if it is the present one.
    pub(super) fn process(&mut self, life: Life) -> Option<&mut Process> {
        let machine = self.machines.get_mut(&life.node)?;
        machine.process.as_mut().filter(|_| machine.incarnation == life.incarnation)
    }

    /// The present life of a node that runs.
    pub(super) fn life(&self, node: u64) -> Option<Life> {
        let machine = self.machines.get(&node)?;
        machine.process.as_ref().map(|_| Life { node, incarnation: machine.incarnation })
    }

    /// Starts the process of a node that is down.
    pub(super) fn boot(&mut self, node: u64) {
        let is_gone = self.machines.get(&node).is_none_or(|machine| machine.is_gone);
        if is_gone || self.life(node).is_some() || !self.suffer(node) {
            return;
        }
        let now = self.schedule.now();
        if let Err(what) = self.try_boot(node, now) {
            self.violate(Violation::new("recovery", format!("n{node} does not start: {what}")));
        }
    }

    pub(super) fn log_options(&self, node: u64) -> WalOptions {
        WalOptions { segment_bytes: self.settings.segment_bytes, log_id: node, ballast_bytes: 0 }
    }

    fn try_boot(&mut self, node: u64, now: u64) -> Result<(), String> {
        self.falsify_disks(node);
        if self.settings.lie.is_none() && self.rng.random_range(0..BOOTS_PER_INTERRUPTION) == 0 {
            self.lose_power_while_starting(node);
        }
        let options = self.log_options(node);
        let shards = self.draw_shards();
        let Some(machine) = self.machines.get_mut(&node) else { return Ok(()) };
        machine.incarnation += 1;
        let life = Life { node, incarnation: machine.incarnation };
        let config = self.node_config(life);
        let Some(machine) = self.machines.get(&node) else { return Ok(()) };
        let persists = !self.lies(Lie::EngineForgets);
        let keyspace_options = self.keyspace_options();
        let Stored { wal, mut recovered, keyspaces } =
            machine.open(options, &keyspace_options, &config.groups, persists)?;
        if let Err(what) = self.promises.recovered(node, &recovered.groups) {
            self.violate(Violation::new("durable_ack", format!("n{node}: {what}")));
        }
        if self.lies(Lie::ForgottenVote) {
            forget_votes(&mut recovered.groups);
        }
        let Some(machine) = self.machines.get(&node) else { return Ok(()) };
        let clock_rate = machine.clock_rate;
        let torn = recovered.torn_tail.is_some();
        if torn && machine.is_sealed {
            return Err("its log was sealed and has a torn end".to_owned());
        }
        let positions: Vec<u64> = keyspaces.values().map(|keyspace| keyspace.applied().index).collect();
        self.logs.recovered(node, &recovered.groups);
        let shell = Node::shards(&config, shards, recovered.groups, &keyspaces, Time(1))?;
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.is_sealed = false;
            machine.process = Some(Process::new(shell, wal, keyspace_options, now, clock_rate));
        }
        self.sweep_all_destroyed(life)?;
        self.tell(StoryEvent::Starts { node, start: life.incarnation });
        self.trace.note(now, format_args!("n{node} applied {positions:?}, torn tail {torn}"));
        (0..shards).for_each(|shard| self.first_turn(life, shard));
        for other in self.nodes().into_iter().filter(|other| *other != node) {
            // Connections with its former life are found dead at once.
            self.disconnect((other, node));
            let delay = self.rng.random_range(100..20_000);
            self.schedule.after(delay, Happening::Connect((node, other), life));
        }
        Ok(())
    }

    /// The machine loses its power while the log is opened: of what that did up to some operation, what is durable is what the next start finds.
    fn lose_power_while_starting(&mut self, node: u64) {
        let (after, seed) = (self.rng.random_range(0..30), self.rng.random());
        let kept_share: f64 = self.rng.random();
        let (now, options) = (self.schedule.now(), self.log_options(node));
        let Some(machine) = self.machines.get(&node) else { return };
        let fault = Fault { operation: None, after, kind: ErrorKind::Other, lasting: true };
        machine.disk.set_fault(Some(fault));
        let opened = Wal::open(Arc::new(machine.disk.clone()), Path::new(LOG_DIRECTORY), options);
        let is_open = opened.is_ok();
        drop(opened);
        machine.disk.crash(seed);
        let unpersisted = machine.engine.unpersisted();
        machine.engine.crash((unpersisted as f64 * kept_share) as usize);
        self.trace
            .note(now, format_args!("n{node} loses power while it starts; its log was open: {is_open}"));
    }

    fn keyspace_options(&self) -> KeyspaceOptions {
        KeyspaceOptions {
            cache: ValueCache::new(self.settings.cache_bytes),
            watch_buffer_bytes: self.settings.watch_buffer_bytes,
            ..KeyspaceOptions::default()
        }
    }

    /// A process may have another number of shards than the one before.
    fn draw_shards(&mut self) -> usize {
        match self.settings.shards_max {
            1 => 1,
            most => self.rng.random_range(1..=most),
        }
    }

    fn node_config(&mut self, life: Life) -> Config {
        let (node, pool) = (NodeId(life.node), Bootstrap::of(self.first_members()));
        let everywhere = if self.settings.placement_changes_us > 0 { 1 } else { self.settings.keyspaces };
        let mut groups = groups(&pool, node, everywhere);
        let mut roster = pool.roster();
        if let Some(joined) = self.machines.get(&life.node).and_then(|machine| machine.joined.clone()) {
            roster = joined.roster;
            for group in &mut groups {
                (group.replica, group.voters) = (joined.replica, Vec::new());
            }
        }
        Config {
            node,
            incarnation: life.incarnation,
            own: member(life.node),
            roster,
            groups,
            heartbeat_us: 100_000,
            election_timeout_us: 1_000_000,
            seed: self.rng.random(),
            limits: self.limits_told(),
        }
    }

    fn first_members(&self) -> Vec<Member> {
        (1..=self.settings.nodes).map(member).collect()
    }

    fn first_turn(&mut self, life: Life, shard: usize) {
        let now = self.schedule.now();
        let mut effects = Effects::default();
        if let Some(process) = self.process(life) {
            let time = process.time(now);
            process.shards[shard].node.start(time, &mut effects);
        }
        self.after_turn(life, shard, effects);
    }

    /// Puts an event into the inboxes of the shards that it concerns.
    pub(super) fn deliver(&mut self, life: Life, event: NodeEvent) {
        let shards = self.process(life).map_or(1, |process| process.shards());
        hadron_node::route(event, shards, |shard, event| self.deliver_to(life, shard, event));
    }

    /// Puts an event into the inbox of one shard.
    pub(super) fn deliver_to(&mut self, life: Life, shard: usize, event: NodeEvent) {
        let delay = self.rng.random_range(0..TURN_US_MAX);
        let Some(process) = self.process(life) else { return };
        let to = &mut process.shards[shard];
        to.inbox.push(event);
        if !to.turn_is_due {
            to.turn_is_due = true;
            self.schedule.after(delay, Happening::Turn(life, shard));
        }
    }

    /// One turn of a shard's loop: everything that waits, then one settle.
    pub(super) fn turn(&mut self, life: Life, shard: usize) {
        let now = self.schedule.now();
        let Some(process) = self.process(life) else { return };
        let until = process.paused_until.max(process.shards[shard].paused_until);
        if until > now {
            return self.schedule.at(until, Happening::Turn(life, shard));
        }
        let time = process.time(now);
        let Shard { node, inbox, turn_is_due, .. } = &mut process.shards[shard];
        *turn_is_due = false;
        let mut effects = Effects::default();
        for event in std::mem::take(inbox) {
            node.step(time, event, &mut effects);
        }
        node.settle(time, &mut effects);
        self.after_turn(life, shard, effects);
    }

    pub(super) fn on_timer(&mut self, life: Life, shard: usize, deadline: u64) {
        let now = self.schedule.now();
        let Some(process) = self.process(life) else { return };
        let here = &mut process.shards[shard];
        if here.timer != Some(deadline) {
            return;
        }
        here.timer = None;
        let (fired, since) = here.timers_fired;
        // Who has something to go on with does not spin.
        if !here.node.has_left_over() {
            here.timers_fired = if now > since + SPIN_US { (1, now) } else { (fired + 1, since) };
        }
        if fired > SPIN_TIMERS {
            let found = format!("n{} had {fired} timers within {} µs", life.node, now - since);
            return self.violate(Violation::new("quiet_timers", found));
        }
        self.deliver_to(life, shard, NodeEvent::Timer);
    }

    fn after_turn(&mut self, life: Life, shard: usize, effects: Effects) {
        self.observe_records(life, &effects.log);
        self.observe(life);
        self.carry_out(life, shard, effects);
        let now = self.schedule.now();
        let is_early = self.lies(Lie::EarlyTimer);
        let Some(process) = self.process(life) else { return };
        let due = match is_early {
            true => now + 1,
            false => process.moment_of(process.shards[shard].node.deadline()).max(now + 1),
        };
        let here = &mut process.shards[shard];
        if here.timer.is_none_or(|timer| timer != due) {
            here.timer = Some(due);
            self.schedule.at(due, Happening::Timer(life, shard, due));
        }
    }

    fn carry_out(&mut self, life: Life, shard: usize, effects: Effects) {
        let Effects {
            log,
            log_sequence,
            sends,
            replies,
            flushes,
            sweeps,
            persist_engine,
            snapshots,
            installs,
            retired: _,
            opens,
            destroys,
            are_peers_new,
            tells,
            fatal,
        } = effects;
        tells.into_iter().for_each(|event| self.deliver(life, event));
        if are_peers_new {
            self.set_peers(life);
        }
        if let Some(what) = fatal {
            self.violate(Violation::new("no_fatal", format!("n{} stops: {what}", life.node)));
        }
        for (to, message) in sends {
            self.send(life, to.0, message);
        }
        if !log.is_empty() {
            self.append_to_log(life, (shard, log_sequence), log);
        }
        for (token, reply) in replies {
            self.on_reply(life, token, reply);
        }
        self.queue_engine_jobs(life, flushes, sweeps, persist_engine.map(|ticket| (shard, ticket)));
        let opens = opens.into_iter().map(EngineJob::Open);
        for job in destroys.into_iter().map(EngineJob::Destroy).chain(opens) {
            self.queue_engine_job(life, job);
        }
        for job in snapshots {
            self.queue_snapshot(life, job);
        }
        for (ticket, yes) in installs {
            self.answer_snapshot(life, ticket, yes);
        }
    }

    /// Sends a peer message, in its encoded form.
    fn send(&mut self, life: Life, to: u64, mut message: PeerMessage) {
        let direction = (life.node, to);
        if let PeerMessage::Group { group, message: inner, .. } = &message {
            if self.is_troubled(Trouble::NoQuorum(*group)) {
                return;
            }
            if matches!(inner, Message::VoteAnswer { .. } | Message::TimeoutNow { .. }) {
                self.delicate_moment(life.node);
                self.stop_voter(life.node);
            }
        }
        self.check_promise(life, &message);
        self.change_digest(life, &mut message);
        self.falsify_message(life, to, &mut message);
        let Some(target) = self.life(to) else { return };
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.cut_message(&mut bytes);
        let goes_ahead = message.goes_ahead();
        match self.network.send(&mut self.rng, self.schedule.now(), direction, goes_ahead) {
            Fate::Arrives(at, number) => {
                let bytes = bytes.freeze();
                self.schedule.at(at, Happening::Message { direction, number, to: target, bytes });
            }
            Fate::LostFirst(number) => {
                let delay = self.rng.random_range(200_000..3_000_000);
                self.schedule.after(delay, Happening::FoundDead(direction, number));
            }
            Fate::Lost => {}
        }
    }

    pub(super) fn on_message(&mut self, direction: Direction, number: u64, to: Life, bytes: Bytes) {
        if self.is_deaf(to.node) || !self.network.arrives(direction, number) || self.process(to).is_none() {
            return;
        }
        self.trace.count(&bytes);
        match PeerMessage::decode(bytes) {
            Ok(message) if self.sleeps_through(to, &message) => {}
            Ok(message) => {
                if self.trace.is_verbose() && !matches!(message, PeerMessage::Heartbeat { .. }) {
                    let now = self.schedule.now();
                    self.trace.show(now, format_args!("n{} <- n{}: {message:?}", to.node, direction.0));
                }
                self.deliver(to, NodeEvent::Peer { from: NodeId(direction.0), message });
            }
            Err(error) => {
                let found = format!("n{} cannot read a message of n{}: {error}", to.node, direction.0);
                self.violate(Violation::new("peer_encoding", found));
            }
        }
    }

    pub(super) fn connect(&mut self, direction: Direction, life: Life) {
        if self.process(life).is_none() || self.network.is_up(direction) {
            return;
        }
        let target = self.life(direction.1).filter(|_| self.network.is_open(direction));
        let handshake = target.map_or(Handshake::Later, |target| self.shake_hands(life, target));
        if handshake == Handshake::Never {
            return;
        }
        match target {
            Some(target) if handshake == Handshake::Done && self.network.connect(direction) => {
                let up = NodeEvent::PeerUp { node: NodeId(direction.1), incarnation: target.incarnation };
                self.deliver(life, up);
            }
            _ => {
                let delay = self.rng.random_range(50_000..150_000);
                self.schedule.after(delay, Happening::Connect(direction, life));
            }
        }
    }

    /// The connection ends, both ends know, and the sender tries again.
    pub(super) fn disconnect(&mut self, direction: Direction) {
        let stragglers = self.rng.random_bool(0.5);
        if !self.network.disconnect(direction, stragglers) {
            return;
        }
        let Some(life) = self.life(direction.0) else { return };
        self.deliver(life, NodeEvent::PeerDown { node: NodeId(direction.1) });
        let delay = self.rng.random_range(1_000..100_000);
        self.schedule.after(delay, Happening::Connect(direction, life));
    }

    pub(super) fn on_found_dead(&mut self, direction: Direction, number: u64) {
        if self.network.number(direction) == number {
            self.disconnect(direction);
        }
    }

    /// Hands an event of a client to the node under a new token.
    pub(super) fn ask(
        &mut self,
        life: Life,
        asked: Asked,
        event: impl FnOnce(u64) -> NodeEvent,
    ) -> Option<u64> {
        let process = self.process(life)?;
        let token = process.take_token();
        process.asked.insert(token, asked);
        self.deliver(life, event(token));
        Some(token)
    }

    /// Has the node decide something in the root group.
    pub(super) fn decide(&mut self, life: Life, asked: Asked, command: &Command) {
        let command = command.to_bytes();
        self.ask(life, asked, |token| NodeEvent::Write { token, group: ROOT_GROUP, command });
    }

    fn on_reply(&mut self, life: Life, token: u64, reply: Reply) {
        let token = self.falsify_receiver(life, token, &reply);
        let Some(process) = self.process(life) else { return };
        // A request that was given up, or one of the node's own.
        let Some(asked) = process.asked.remove(&token) else { return };
        if reply == Reply::Failed(NodeFailure::Quarantined) {
            self.see_quarantined(life, asked);
        }
        self.see_root(life, token, asked, &reply);
        match asked {
            Asked::Operation(operation) => self.on_operation_reply(life, operation, reply),
            Asked::Lease(client) => self.on_lease_reply(life, client, reply),
            Asked::Administrator => self.on_administrator_reply(life, reply),
            Asked::Placer => self.on_placer_reply(life, reply),
        }
    }

    /// A replica says that it is damaged: it must have been accused.
    fn see_quarantined(&mut self, life: Life, asked: Asked) {
        let group = match asked {
            Asked::Operation(operation) => Some(GroupId(self.history[operation].keyspace)),
            Asked::Lease(client) => Some(self.leases[client].group()),
            // Of whatever group.
            Asked::Administrator | Asked::Placer => None,
        };
        if !group.map_or(self.settings.accusations_us > 0, |group| self.is_accused(group, life.node)) {
            let found = format!("n{}'s replica of {group:?} is quarantined", life.node);
            self.violate(Violation::new("digest_agreement", found));
        }
    }

    /// Ends a process: with the machine's power, or alone.
    pub(super) fn stop(&mut self, node: u64, cause: Stop) {
        let now = self.schedule.now();
        // After a failure of the disk the machine is started anew, or the process alone.
        // And who was asked to stop may be switched off.
        let may_lose_power = matches!(cause, Stop::Disk | Stop::Asked);
        let power_loss = cause == Stop::PowerLoss || may_lose_power && self.rng.random_bool(0.5);
        let (seed, keep_all) = (self.rng.random(), !power_loss && self.rng.random_bool(0.5));
        let kept_share: f64 = self.rng.random();
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let Some(process) = machine.process.take() else { return };
        if let Some(disk) = machine.memories.before_sync.take().filter(|_| power_loss) {
            machine.disk = disk;
        }
        match power_loss {
            true => machine.disk.crash(seed),
            false => machine.disk.kill(),
        }
        let unpersisted = machine.engine.unpersisted();
        let kept = if keep_all { unpersisted } else { (unpersisted as f64 * kept_share) as usize };
        match power_loss {
            true => machine.engine.crash(kept),
            false => machine.engine.kill(kept),
        }
        machine.slowness = 1;
        machine.make_well();
        self.crashes += u64::from(matches!(cause, Stop::PowerLoss | Stop::Killed));
        self.disk_failures += u64::from(cause == Stop::Disk);
        self.tell(StoryEvent::Stops { node, cause });
        self.trace.note(now, format_args!("n{node}'s engine keeps {kept} of {unpersisted} batches"));
        self.transfers_break(&process);
        for asked in process.asked.into_values() {
            self.on_connection_lost(asked);
        }
        for other in self.nodes().into_iter().filter(|other| *other != node) {
            let stragglers = self.rng.random_bool(0.5);
            self.network.disconnect((node, other), stragglers);
            match power_loss {
                // Nobody is left to say that the connection is closed.
                true => {
                    let number = self.network.sever((other, node));
                    let delay = self.rng.random_range(200_000..3_000_000);
                    self.schedule.after(delay, Happening::FoundDead((other, node), number));
                }
                false => self.disconnect((other, node)),
            }
        }
    }
}
