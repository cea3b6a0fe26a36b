//! The world: a clock, a queue of what is going to happen, the replicas with their disks, and the clients.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use bytes::{Bytes, BytesMut};
use hadron_consensus::{
    Config, Configuration, Contacts, Effects, Event, Group, GroupId, Index, LogPosition, Message, Outcome,
    ReadOutcome, ReplicaId, Restored, Time,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::disk::Disk;
use crate::invariants::Invariants;
use crate::network::Network;

pub(crate) const ELECTION_TIMEOUT_US: u64 = 100_000;
const HEARTBEAT_US: u64 = 20_000;
/// Nodes tell each other that they are there.
const PING_US: u64 = 25_000;
const FAULTS_END: Time = Time(3_000_000);
/// With a kind network, everything must be in order after this long: many elections' worth.
const HEALING_US: u64 = 2_000_000;

/// What is going to happen.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Happening {
    Deliver { from: usize, to: usize, bytes: Vec<u8> },
    Ping { from: usize, to: usize, incarnation: u64, hears: bool },
    Pings(usize),
    DiskDone { replica: usize, incarnation: u64 },
    SnapshotArrives { from: usize, to: usize, incarnation: u64, position: (u64, u64, u64) },
    Timer(usize),
    Restart(usize),
    Resumed(usize),
    Fault,
    Client,
    Compact(usize),
}

/// Counts of what happened, to see that the test tests something; equal for two runs of one seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) steps: u64,
    pub(crate) committed: u64,
    pub(crate) elections: u64,
    pub(crate) crashes: u64,
    pub(crate) snapshots: u64,
    pub(crate) truncated: u64,
    pub(crate) reads: u64,
    pub(crate) transfers: u64,
    pub(crate) changes: u64,
    pub(crate) sleeps: u64,
    checksum: u64,
}

impl Summary {
    pub(crate) fn add(&mut self, other: Summary) {
        self.steps += other.steps;
        self.committed += other.committed;
        self.elections += other.elections;
        self.crashes += other.crashes;
        self.snapshots += other.snapshots;
        self.truncated += other.truncated;
        self.reads += other.reads;
        self.transfers += other.transfers;
        self.changes += other.changes;
        self.sleeps += other.sleeps;
        self.checksum ^= other.checksum;
    }
}

/// One replica, its node and its disk.
pub(crate) struct Replica {
    /// `None` while it is down.
    group: Option<Group>,
    pub(crate) disk: Disk,
    applied: LogPosition,
    incarnation: u64,
    pub(crate) disk_latency_us: u64,
    pub(crate) paused_until: Time,
    /// It was told to lead no more.
    pub(crate) is_retired: bool,
    contacts: BTreeMap<ReplicaId, Contact>,
    timer: Option<Time>,
    /// Reads that wait, with the commit index that was known anywhere when they began.
    reads: HashMap<u64, Index>,
}

/// What a node knows about another.
#[derive(Clone, Copy, Debug, Default)]
struct Contact {
    incarnation: u64,
    received_at: Option<Time>,
    heard_at: Time,
    is_suspected: bool,
}

struct Directory<'a>(&'a BTreeMap<ReplicaId, Contact>);

impl Contacts for Directory<'_> {
    fn last_heard(&self, replica: ReplicaId) -> Time {
        self.0.get(&replica).map_or(Time(0), |contact| contact.heard_at)
    }
}

pub(crate) struct World {
    seed: u64,
    pub(crate) rng: SmallRng,
    pub(crate) now: Time,
    queue: BinaryHeap<Reverse<(Time, u64, Happening)>>,
    scheduled: u64,
    pub(crate) network: Network,
    pub(crate) replicas: Vec<Replica>,
    /// In half of the worlds the membership changes; the others have retiring replicas.
    pub(crate) has_changes: bool,
    /// How long nothing must happen before a group sleeps; 0 for never.
    sleep_after_us: u64,
    /// Whoever starts sleeps until somebody needs it.
    starts_asleep: bool,
    pub(crate) invariants: Invariants,
    /// Down for good? No: but no more faults.
    is_healing: bool,
    next_token: u64,
    answered_reads: HashSet<u64>,
    summary: Summary,
    trace: bool,
}

fn id(replica: usize) -> ReplicaId {
    ReplicaId(replica as u64 + 1)
}

fn index_of(id: ReplicaId) -> usize {
    id.0 as usize - 1
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let count = [3, 3, 4, 5, 5, 6, 7][rng.random_range(0..7)];
        let learners = usize::from(count > 3 && rng.random_bool(0.3));
        let has_changes = rng.random_bool(0.5);
        let sleep_after_us = [0, 20_000, 50_000, 200_000][rng.random_range(0..4)];
        let starts_asleep = rng.random_bool(0.3);
        let members: Vec<ReplicaId> = (1..=count as u64).map(ReplicaId).collect();
        let (voters, rest) = members.split_at(count - learners);
        let first = Configuration::new(voters.iter().copied(), rest.iter().copied());
        // Those who are not yet members.
        let count = count + if has_changes { rng.random_range(0..3) } else { 0 };
        let network = Network::new(count, &mut rng);
        let replica = || Replica {
            group: None,
            disk: Disk::default(),
            applied: LogPosition::default(),
            incarnation: 0,
            disk_latency_us: 300,
            paused_until: Time(0),
            is_retired: false,
            contacts: BTreeMap::new(),
            timer: None,
            reads: HashMap::new(),
        };
        let mut world = World {
            seed,
            rng,
            now: Time(1),
            queue: BinaryHeap::new(),
            scheduled: 0,
            network,
            replicas: (0..count).map(|_| replica()).collect(),
            has_changes,
            sleep_after_us,
            starts_asleep,
            invariants: Invariants::new(first),
            is_healing: false,
            next_token: 0,
            answered_reads: HashSet::new(),
            summary: Summary::default(),
            trace: std::env::var("HADRON_TRACE").is_ok(),
        };
        for replica in 0..count {
            world.schedule(replica as u64, Happening::Restart(replica));
            world.schedule(replica as u64 + 10, Happening::Pings(replica));
            world.schedule(50_000, Happening::Compact(replica));
        }
        world.schedule(200_000, Happening::Fault);
        world.schedule(1_000, Happening::Client);
        world
    }

    pub(crate) fn run(mut self) -> Summary {
        self.run_until(FAULTS_END);
        self.heal();
        self.run_until(FAULTS_END.plus_micros(HEALING_US));
        self.check_healed();
        self.summary.committed = self.invariants.commit().0;
        self.summary.elections = self.invariants.elections();
        self.summary.changes = self.invariants.changes();
        self.summary.checksum =
            self.invariants.committed_at(self.invariants.commit()).map_or(0, |last| last.checksum);
        self.summary
    }

    fn run_until(&mut self, end: Time) {
        while self.queue.peek().is_some_and(|Reverse((at, _, _))| *at <= end) {
            let Reverse((at, _, happening)) = self.queue.pop().unwrap();
            self.now = at;
            self.happen(happening);
        }
    }

    /// The faults stop: everybody is up and can talk.
    fn heal(&mut self) {
        self.is_healing = true;
        self.network.become_kind();
        for replica in 0..self.replicas.len() {
            self.replicas[replica].disk_latency_us = 300;
            self.replicas[replica].paused_until = self.now;
            self.restart(replica);
            self.step(replica, Event::Pressure { full: false });
        }
    }

    /// Liveness: one leader, whom everybody follows, and everything proposed lately is committed everywhere.
    fn check_healed(&mut self) {
        let seed = self.seed;
        let leaders: Vec<&Group> = self
            .replicas
            .iter()
            .filter_map(|replica| replica.group.as_ref())
            .filter(|group| group.is_leader())
            .collect();
        assert!(leaders.len() == 1, "seed {seed}: {} leaders after the faults stopped", leaders.len());
        let leader = leaders[0];
        assert!(leader.last().0 - leader.commit().0 < 100, "seed {seed}: the leader does not commit");
        let is_member = |(replica, _): &(usize, &Replica)| {
            leader.configuration().members().any(|member| member == id(*replica))
        };
        assert!(!leader.configuration().is_joint(), "seed {seed}: a change of membership is not over");
        for (replica, state) in self.replicas.iter().enumerate().filter(is_member) {
            let group = state.group.as_ref().unwrap();
            assert!(group.leader() == leader.leader(), "seed {seed}: {} does not follow", id(replica));
            let behind = leader.commit().0 - group.commit().0.min(leader.commit().0);
            assert!(behind < 100, "seed {seed}: {} is {behind} entries behind", id(replica));
            assert!(state.reads.len() < 50, "seed {seed}: {} reads were not answered", state.reads.len());
        }
        let committed_lately = self.invariants.commit();
        assert!(committed_lately > Index(20), "seed {seed}: only {committed_lately} was ever committed");
    }

    pub(crate) fn schedule(&mut self, after_us: u64, happening: Happening) {
        self.schedule_at(self.now.plus_micros(after_us), happening);
    }

    fn schedule_at(&mut self, at: Time, happening: Happening) {
        self.scheduled += 1;
        self.queue.push(Reverse((at, self.scheduled, happening)));
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(replica) = concerned(&happening)
            && self.replicas[replica].paused_until > self.now
        {
            return self.schedule_at(self.replicas[replica].paused_until, happening);
        }
        match happening {
            Happening::Deliver { from, to, bytes } => {
                let message = Message::decode(Bytes::from(bytes)).unwrap();
                self.step(to, Event::Message { from: id(from), message });
            }
            Happening::Ping { from, to, incarnation, hears } => self.on_ping(from, to, incarnation, hears),
            Happening::Pings(replica) => self.send_pings(replica),
            Happening::DiskDone { replica, incarnation } => {
                if self.replicas[replica].incarnation == incarnation
                    && let Some(sequence) = self.replicas[replica].disk.complete(self.now)
                {
                    self.step(replica, Event::Persisted { sequence });
                }
            }
            Happening::SnapshotArrives { from, to, incarnation, position: (term, index, checksum) } => {
                let position = position(term, index, checksum);
                self.on_snapshot(from, to, incarnation, position);
            }
            // A timer that was replaced by an earlier one, or is of an earlier process, has nothing to say.
            Happening::Timer(replica)
                if self.replicas[replica].timer.is_none_or(|timer| timer > self.now) => {}
            Happening::Timer(replica) => {
                self.replicas[replica].timer = None;
                self.step(replica, Event::Timer);
            }
            Happening::Restart(replica) => self.restart(replica),
            Happening::Resumed(replica) => self.step(replica, Event::Paused),
            Happening::Fault if self.is_healing => {}
            Happening::Fault => {
                self.fault();
                let after_us = self.rng.random_range(5_000..200_000);
                self.schedule(after_us, Happening::Fault);
            }
            Happening::Client => self.on_client(),
            Happening::Compact(replica) => self.on_compact(replica),
        }
    }

    /// Steps one replica, checks everything, and carries out the effects.
    pub(crate) fn step(&mut self, replica: usize, event: Event) {
        let me = id(replica);
        let Some(mut group) = self.replicas[replica].group.take() else { return };
        if self.trace {
            println!("{:>9} {me} {event:?}", self.now.0);
        }
        self.summary.steps += 1;
        let mut effects = Effects::default();
        let known_commit = self.invariants.commit();
        let last_before = group.last();
        let configuration_before = group.configuration().clone();
        let (was_asleep, is_wake) = (group.is_asleep(), matches!(event, Event::Wake));
        let is_transfer = matches!(event, Event::Message { message: Message::TimeoutNow { .. }, .. });
        self.summary.transfers += u64::from(is_transfer);
        group.step(self.now, &Directory(&self.replicas[replica].contacts), event, &mut effects);
        if self.trace {
            println!(
                "          {me} {:?} {} commit {} {effects:?}",
                group.role(),
                group.term(),
                group.commit()
            );
        }
        assert!(!(is_wake && group.is_asleep()), "{me} was woken, and sleeps");
        if group.is_asleep() && !was_asleep {
            self.summary.sleeps += 1;
            self.invariants.check_sleeper(me, &group, self.replicas.iter().map(|replica| &replica.disk));
        }
        let new_entries = effects.persist.iter().flat_map(|persist| &persist.entries);
        let replaced = effects.persist.iter().filter_map(|persist| persist.entries.first());
        self.summary.truncated += replaced.filter(|first| first.index <= last_before).count() as u64;
        let disks = self.replicas.iter().map(|replica| &replica.disk);
        self.invariants.check(me, &group, new_entries, &configuration_before, disks);
        for (to, message) in &effects.messages {
            self.invariants.check_message(me, *to, message, &group, &self.replicas[replica].disk);
        }
        if self.summary.steps.is_multiple_of(64) {
            self.invariants.check_whole_log(me, &group);
        }
        assert!(effects.divergence.is_none(), "a false alarm: {:?}", effects.divergence);
        self.replicas[replica].group = Some(group);
        if self.invariants.commit() > known_commit {
            let groups = self.replicas.iter().enumerate();
            let groups = groups.filter_map(|(other, state)| Some((id(other), state.group.as_ref()?)));
            self.invariants.check_leaders(groups, known_commit);
        }
        self.carry_out(replica, effects);
        self.arm(replica);
    }

    fn carry_out(&mut self, replica: usize, effects: Effects) {
        let incarnation = self.replicas[replica].incarnation;
        for persist in effects.persist {
            let latency = self.replicas[replica].disk_latency_us;
            let latency = self.rng.random_range(latency / 2..=latency * 2);
            let done_at = self.replicas[replica].disk.write(persist, self.now.plus_micros(latency));
            self.schedule_at(done_at, Happening::DiskDone { replica, incarnation });
        }
        for (to, message) in effects.messages {
            self.send(replica, index_of(to), &message);
        }
        for to in effects.snapshots {
            self.send_snapshot(replica, index_of(to));
        }
        for outcome in effects.proposals {
            if let Outcome::Proposed { term, index, .. } = outcome {
                let group = self.replicas[replica].group.as_ref().unwrap();
                assert_eq!(group.position_at(index).unwrap().term, term);
            }
        }
        for read in effects.reads {
            self.on_read_outcome(replica, read);
        }
        if !effects.committed.is_empty() {
            for entry in &effects.committed {
                self.invariants.state_machine_safety(
                    id(replica),
                    self.replicas[replica].applied.index,
                    entry,
                );
                self.replicas[replica].applied = entry.position();
            }
            let index = self.replicas[replica].applied.index;
            self.step(replica, Event::Applied { index });
        }
    }

    /// A linearizable read must see everything that anybody knew to be committed when it began.
    fn on_read_outcome(&mut self, replica: usize, read: ReadOutcome) {
        let (ReadOutcome::Ready { token, .. } | ReadOutcome::Retry { token }) = read;
        let known = self.replicas[replica].reads.remove(&token);
        let known =
            known.unwrap_or_else(|| panic!("{} answers read {token}, which does not wait", id(replica)));
        assert!(self.answered_reads.insert(token), "read {token} was answered twice");
        if let ReadOutcome::Ready { index, .. } = read {
            self.summary.reads += 1;
            assert!(index >= known, "a stale read: {index} was answered, {known} was committed before");
        }
    }

    fn send(&mut self, from: usize, to: usize, message: &Message) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        for at in self.network.arrivals(from, to, self.now, &mut self.rng).into_iter().flatten() {
            self.schedule_at(at, Happening::Deliver { from, to, bytes: bytes.to_vec() });
        }
    }

    /// Keeps the driver's timer at the group's deadline.
    fn arm(&mut self, replica: usize) {
        let Some(deadline) = self.replicas[replica].group.as_ref().and_then(Group::deadline) else { return };
        let deadline = deadline.max(self.now.plus_micros(1));
        if self.replicas[replica].timer.is_none_or(|timer| timer > deadline) {
            self.replicas[replica].timer = Some(deadline);
            self.schedule_at(deadline, Happening::Timer(replica));
        }
    }
}

/// Processes.
impl World {
    pub(crate) fn crash(&mut self, replica: usize) {
        let state = &mut self.replicas[replica];
        if state.group.take().is_none() {
            return;
        }
        self.summary.crashes += 1;
        let survivors = self.rng.random_range(0..=state.disk.pending());
        state.disk.crash(survivors);
        self.invariants.forget_term(id(replica), state.disk.hard_state.term);
        state.reads.clear();
        state.timer = None;
        state.is_retired = false;
        state.contacts.clear();
        // What is on its way to the disk ends with the process that asked for it.
        state.incarnation += 1;
    }

    fn restart(&mut self, replica: usize) {
        if self.replicas[replica].group.is_some() {
            return;
        }
        let seed = self.rng.random();
        let config = self.config(id(replica), seed);
        let state = &mut self.replicas[replica];
        state.incarnation += 1;
        let restored: Restored = state.disk.restore();
        state.applied = state.disk.engine;
        state.group = Some(Group::new(config, restored));
        self.arm(replica);
    }

    fn config(&self, id: ReplicaId, seed: u64) -> Config {
        // Who is not a member yet has heard of nothing.
        let applied = self.replicas[index_of(id)].disk.engine.index;
        let configuration = self.invariants.configuration_at(applied);
        let is_stranger = applied == Index(0) && !configuration.members().any(|member| member == id);
        Config {
            group: GroupId(1),
            id,
            configuration: if is_stranger { Configuration::default() } else { configuration },
            election_timeout_us: ELECTION_TIMEOUT_US,
            heartbeat_us: HEARTBEAT_US,
            max_append_bytes: 100,
            inflight_bytes: 400,
            uncommitted_bytes: 1_000,
            sleep_after_us: self.sleep_after_us,
            starts_asleep: self.starts_asleep,
            seed,
        }
    }

    /// The node's failure detector: it tells everybody that it is there, and whom it hears.
    fn send_pings(&mut self, replica: usize) {
        self.schedule(PING_US, Happening::Pings(replica));
        if self.replicas[replica].group.is_none() {
            return;
        }
        let incarnation = self.replicas[replica].incarnation;
        for to in (0..self.replicas.len()).filter(|to| *to != replica) {
            let contact = self.replicas[replica].contacts.get(&id(to)).copied().unwrap_or_default();
            let hears = contact.received_at.is_some_and(|at| self.now.micros_since(at) < ELECTION_TIMEOUT_US);
            let arrivals = self.network.arrivals(replica, to, self.now, &mut self.rng);
            for at in arrivals.into_iter().flatten() {
                self.schedule_at(at, Happening::Ping { from: replica, to, incarnation, hears });
            }
        }
        self.suspect_the_silent(replica);
    }

    fn suspect_the_silent(&mut self, replica: usize) {
        let now = self.now;
        let mut suspects = Vec::new();
        for (other, contact) in &mut self.replicas[replica].contacts {
            if !contact.is_suspected && now.micros_since(contact.heard_at) >= ELECTION_TIMEOUT_US {
                contact.is_suspected = true;
                suspects.push(*other);
            }
        }
        for suspect in suspects {
            self.step(replica, Event::Suspect { replica: suspect });
        }
    }

    fn on_ping(&mut self, from: usize, to: usize, incarnation: u64, hears: bool) {
        let now = self.now;
        if self.replicas[to].group.is_none() {
            return;
        }
        let contact = self.replicas[to].contacts.entry(id(from)).or_default();
        if incarnation < contact.incarnation {
            return;
        }
        let has_restarted = contact.incarnation != 0 && incarnation > contact.incarnation;
        contact.incarnation = incarnation;
        contact.received_at = Some(now);
        if hears {
            contact.heard_at = now;
            contact.is_suspected = false;
        }
        if has_restarted {
            self.step(to, Event::Suspect { replica: id(from) });
            self.wake_leader(to);
        }
    }
}

impl World {
    /// A member's node has started anew: its leader looks what has become of the member.
    fn wake_leader(&mut self, replica: usize) {
        if self.replicas[replica].group.as_ref().is_some_and(Group::is_leader) {
            self.step(replica, Event::Wake);
        }
    }
}

/// Clients, state machines and snapshots.
impl World {
    /// A few proposals and reads, wherever.
    fn on_client(&mut self) {
        for replica in 0..self.replicas.len() {
            let is_leader = self.replicas[replica].group.as_ref().is_some_and(Group::is_leader);
            if is_leader || self.rng.random_bool(0.05) {
                let (token, bytes) = (self.token(), self.rng.random_range(8..60));
                let mut data = token.to_le_bytes().to_vec();
                data.insert(0, b'p');
                data.resize(bytes, 0);
                self.step(replica, Event::Propose { token, data: data.into() });
            }
            if is_leader && self.has_changes && !self.is_healing && self.rng.random_bool(0.1) {
                self.change_membership(replica);
            }
            if self.replicas[replica].group.is_some() && self.rng.random_bool(0.2) {
                let token = self.token();
                let known = self.invariants.commit();
                self.replicas[replica].reads.insert(token, known);
                self.step(replica, Event::Read { token });
            }
        }
        let rests = self.sleep_after_us > 0 && !self.is_healing && self.rng.random_bool(0.03);
        let after_us = self.rng.random_range(if rests { 200_000..800_000 } else { 500..40_000 });
        self.schedule(after_us, Happening::Client);
    }

    /// Some replicas become voters, learners, or neither, whatever they were.
    fn change_membership(&mut self, leader: usize) {
        let mut replicas: Vec<ReplicaId> = (0..self.replicas.len()).map(id).collect();
        replicas.shuffle(&mut self.rng);
        let voters = self.rng.random_range(1..=replicas.len().min(5));
        let learners = self.rng.random_range(0..=(replicas.len() - voters).min(2));
        let (voters, rest) = replicas.split_at(voters);
        let wanted = Configuration::new(voters.iter().copied(), rest[..learners].iter().copied());
        let token = self.token();
        self.step(leader, Event::Reconfigure { token, wanted });
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// The state machine becomes durable as far as the log is, and the log is cut somewhere below that.
    fn on_compact(&mut self, replica: usize) {
        let after_us = self.rng.random_range(20_000..400_000);
        self.schedule(after_us, Happening::Compact(replica));
        let state = &mut self.replicas[replica];
        let Some(group) = &state.group else { return };
        let index = state.applied.index.min(group.durable());
        let Some(position) = group.position_at(index).filter(|at| at.index >= state.disk.engine.index) else {
            return;
        };
        state.disk.engine = position;
        let keep = self.rng.random_range(0..10);
        let cut = Index(index.0.saturating_sub(keep));
        let Some(floor) = group.position_at(cut) else { return };
        state.disk.write_floor(floor, self.now.plus_micros(state.disk_latency_us));
        self.step(replica, Event::Compact { index: cut });
    }

    fn send_snapshot(&mut self, from: usize, to: usize) {
        let LogPosition { term, index, checksum } = self.replicas[from].disk.engine;
        let incarnation = self.replicas[from].incarnation;
        let after_us = self.rng.random_range(5_000..100_000);
        let position = (term.0, index.0, checksum);
        self.schedule(after_us, Happening::SnapshotArrives { from, to, incarnation, position });
    }

    /// A snapshot was received, or sometimes was not, and the sender hears about it, or sometimes does not.
    fn on_snapshot(&mut self, from: usize, to: usize, incarnation: u64, position: LogPosition) {
        let is_lost = !self.is_healing && self.rng.random_bool(0.2);
        let can_switch = self.replicas[to].group.as_ref().is_some_and(|group| !group.is_leader());
        let is_news = self.replicas[to].applied.index < position.index;
        let installed = can_switch && is_news && !is_lost;
        if installed {
            self.summary.snapshots += 1;
            let done_at = self.now.plus_micros(self.replicas[to].disk_latency_us);
            let state = &mut self.replicas[to];
            state.disk.engine = position;
            state.applied = position;
            state.disk.write_floor(position, done_at);
            let configuration = self.invariants.configuration_at(position.index);
            self.step(to, Event::SnapshotInstalled { position, configuration });
        }
        if self.replicas[from].incarnation == incarnation {
            let position = installed.then_some(position);
            self.step(from, Event::SnapshotSent { to: id(to), position });
        }
    }
}

fn position(term: u64, index: u64, checksum: u64) -> LogPosition {
    LogPosition { term: hadron_consensus::Term(term), index: Index(index), checksum }
}

/// The replica whose process acts, if it is a process's act: it waits while that one stands still.
fn concerned(happening: &Happening) -> Option<usize> {
    match happening {
        Happening::Deliver { to, .. }
        | Happening::Ping { to, .. }
        | Happening::SnapshotArrives { to, .. }
        | Happening::Pings(to)
        | Happening::DiskDone { replica: to, .. }
        | Happening::Timer(to)
        | Happening::Compact(to) => Some(*to),
        Happening::Restart(_) | Happening::Resumed(_) | Happening::Fault | Happening::Client => None,
    }
}
