//! Three nodes whose messages arrive at once, and whose disks are as fast.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::{DEFAULT_GROUP, GroupId, NodeId, ROOT_GROUP, Time};
use hadron_keyspace::{Command, Keyspace};
use hadron_node::{Bootstrap, Config, Effects, Event, FlushJob, Limits, Member, Node, PeerMessage, Reply};
use hadron_proto::etcdserverpb::{LeaseGrantRequest, PutRequest, RangeRequest};
use hadron_storage::disk::MemoryDisk;
use hadron_storage::engine::{Engine, ModelEngine};
use hadron_storage::wal::{Options, Wal};

const NODES: usize = 3;
const HEARTBEAT_US: u64 = 100_000;

/// How long something takes, for people to read.
#[allow(clippy::disallowed_methods)]
pub(crate) fn stopwatch() -> impl Fn() -> Duration {
    let began = std::time::Instant::now();
    move || began.elapsed()
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Events that nodes took.
    pub(crate) steps: u64,
    /// Messages within groups, and about them.
    pub(crate) messages: u64,
}

#[derive(Default)]
struct Machine {
    disk: MemoryDisk,
    engine: Arc<ModelEngine>,
    incarnation: u64,
    process: Option<Process>,
}

struct Process {
    node: Node,
    wal: Wal,
}

pub(crate) struct Pool {
    machines: [Machine; NODES],
    groups: u64,
    /// The keyspaces but `default` are where the catalog says, which says nothing.
    are_placed: bool,
    now: u64,
    inbox: VecDeque<(usize, Event)>,
    counts: Counts,
    tokens: u64,
    answers: BTreeMap<u64, Reply>,
}

fn member(index: usize) -> Member {
    let id = index as u64 + 1;
    Member { id, name: format!("n{id}"), data_dir_id: id, ..Member::default() }
}

fn index_of(node: NodeId) -> usize {
    node.0 as usize - 1
}

fn node_id(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

impl Pool {
    /// A new pool with the root group and so many keyspaces.
    pub(crate) fn new(groups: u64) -> Pool {
        let mut pool = Pool {
            machines: Default::default(),
            groups,
            are_placed: false,
            now: 1,
            inbox: VecDeque::new(),
            counts: Counts::default(),
            tokens: 0,
            answers: BTreeMap::new(),
        };
        (0..NODES).for_each(|index| pool.start(index));
        pool
    }

    /// The same; the keyspaces do not follow the roster.
    pub(crate) fn placed(groups: u64) -> Pool {
        let mut pool = Pool::new(groups);
        (0..NODES).for_each(|index| pool.stop(index));
        pool.are_placed = true;
        (0..NODES).for_each(|index| pool.start(index));
        pool
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn keyspaces(&self) -> Vec<GroupId> {
        (DEFAULT_GROUP.0..=self.groups).map(GroupId).collect()
    }

    /// Starts a node that does not run.
    pub(crate) fn start(&mut self, index: usize) {
        let config = self.config(index);
        let machine = &mut self.machines[index];
        let options = Options { segment_bytes: 1 << 20, log_id: 1, ballast_bytes: 0 };
        let (wal, recovered) = Wal::open(Arc::new(machine.disk.clone()), Path::new("/"), options).unwrap();
        let open = |group: GroupId| {
            (group, Keyspace::open(machine.engine.clone(), group.0, Default::default()).unwrap())
        };
        let keyspaces = config.groups.iter().map(|group| open(group.group)).collect();
        let node = Node::new(config, recovered.groups, &keyspaces, Time(self.now)).unwrap();
        machine.process = Some(Process { node, wal });
        let mut effects = Effects::default();
        let now = Time(self.now);
        self.node(index).start(now, &mut effects);
        self.carry_out(index, effects);
        for other in (0..NODES).filter(|other| *other != index) {
            self.connect(index, other);
            self.connect(other, index);
        }
    }

    /// Ends a node's process, and whatever is on its way to or from it.
    pub(crate) fn stop(&mut self, index: usize) {
        self.machines[index].process = None;
        self.inbox.retain(|(to, _)| *to != index);
        for other in (0..NODES).filter(|other| *other != index) {
            self.inbox.push_back((other, Event::PeerDown { node: node_id(index) }));
        }
    }

    fn connect(&mut self, from: usize, to: usize) {
        if self.machines[from].process.is_some() && self.machines[to].process.is_some() {
            let incarnation = self.machines[to].incarnation;
            self.inbox.push_back((from, Event::PeerUp { node: node_id(to), incarnation }));
        }
    }

    fn config(&mut self, index: usize) -> Config {
        let pool = Bootstrap::of((0..NODES).map(member).collect());
        let mut groups = pool.groups(node_id(index));
        let like = groups[0].clone();
        let further = (DEFAULT_GROUP.0 + 1..=self.groups).map(GroupId);
        let follows_roster = !self.are_placed;
        groups.extend(further.map(|group| hadron_node::GroupConfig {
            group,
            follows_roster,
            ..like.clone()
        }));
        let machine = &mut self.machines[index];
        machine.incarnation += 1;
        Config {
            node: node_id(index),
            incarnation: machine.incarnation,
            own: member(index),
            roster: pool.roster(),
            groups,
            heartbeat_us: HEARTBEAT_US,
            election_timeout_us: 1_000_000,
            seed: index as u64 * 1_000 + machine.incarnation,
            limits: Limits::default(),
        }
    }

    fn node(&mut self, index: usize) -> &mut Node {
        &mut self.machines[index].process.as_mut().unwrap().node
    }

    /// Lets so much time pass.
    pub(crate) fn run_for(&mut self, us: u64) {
        let end = self.now + us;
        loop {
            self.take_turns();
            let deadline = |(index, machine): (usize, &Machine)| {
                machine.process.as_ref().map(|process| (process.node.deadline().0, index))
            };
            let next = self.machines.iter().enumerate().filter_map(deadline).min();
            let Some((at, index)) = next.filter(|(at, _)| *at <= end) else { break };
            self.now = self.now.max(at);
            self.inbox.push_back((index, Event::Timer));
        }
        self.now = end;
    }

    /// Delivers everything. A turn of a node takes all that waits for it.
    fn take_turns(&mut self) {
        while let Some((index, _)) = self.inbox.front() {
            let index = *index;
            let (mine, others) =
                std::mem::take(&mut self.inbox).into_iter().partition(|(to, _)| *to == index);
            self.inbox = others;
            let mine: VecDeque<(usize, Event)> = mine;
            let now = Time(self.now);
            let Some(process) = &mut self.machines[index].process else { continue };
            let mut effects = Effects::default();
            self.counts.steps += mine.len() as u64;
            mine.into_iter().for_each(|(_, event)| process.node.step(now, event, &mut effects));
            process.node.settle(now, &mut effects);
            self.carry_out(index, effects);
        }
    }

    fn carry_out(&mut self, index: usize, effects: Effects) {
        assert_eq!(effects.fatal, None);
        assert!(effects.snapshots.is_empty(), "nobody is that far behind");
        for (to, message) in effects.sends {
            let is_about_a_group = !matches!(message, PeerMessage::Heartbeat { .. } | PeerMessage::Roster(_));
            self.counts.messages += u64::from(is_about_a_group);
            self.inbox.push_back((index_of(to), Event::Peer { from: node_id(index), message }));
        }
        // Nodes have requests of their own, with tokens that no client has.
        let tokens = self.tokens;
        self.answers.extend(effects.replies.into_iter().filter(|(token, _)| *token <= tokens));
        let Machine { engine, process, .. } = &mut self.machines[index];
        let Some(process) = process else { return };
        let mut done = Vec::new();
        if !effects.log.is_empty() {
            process.wal.append(&effects.log).unwrap();
            process.wal.sync().unwrap();
            done.push(Event::LogDurable { sequence: effects.log_sequence });
        }
        for FlushJob { group, flush } in effects.flushes {
            engine.write(flush.batch()).unwrap();
            done.push(Event::Flushed { group, flush });
        }
        for (group, sweep) in effects.sweeps {
            engine.write(sweep.batch()).unwrap();
            done.push(Event::Swept { group });
        }
        if let Some(ticket) = effects.persist_engine {
            engine.persist().unwrap();
            done.push(Event::EnginePersisted { ticket });
        }
        self.inbox.extend(done.into_iter().map(|event| (index, event)));
    }
}

/// What clients do.
impl Pool {
    fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// Writes a key, under a new lease of so many seconds if there is to be one. Returns the write's token.
    pub(crate) fn write(&mut self, index: usize, group: GroupId, lease: Option<i64>) -> u64 {
        if let Some(ttl) = lease {
            let (token, id) = (self.token(), 1);
            let command = Command::LeaseGrant(LeaseGrantRequest { ttl, id }).to_bytes();
            self.inbox.push_back((index, Event::Write { token, group, command }));
        }
        let key = if lease.is_some() { "leased" } else { "key" };
        let put = PutRequest {
            key: key.into(),
            value: "value".into(),
            lease: i64::from(lease.is_some()),
            ..Default::default()
        };
        let token = self.token();
        let command = Command::Put(put).to_bytes();
        self.inbox.push_back((index, Event::Write { token, group, command }));
        token
    }

    /// Takes a member out of the roster, and waits for the answer.
    pub(crate) fn remove(&mut self, index: usize) {
        let pool = self.node(0).board().pool();
        let mut next = pool.roster.clone();
        next.remove(node_id(index).0).unwrap();
        let (token, command) = (self.token(), pool.replace(&next).to_bytes());
        self.inbox.push_back((0, Event::Write { token, group: ROOT_GROUP, command }));
        self.wait_for(token);
    }

    /// Microseconds until a write is answered.
    pub(crate) fn write_and_wait(&mut self, index: usize, group: GroupId) -> u64 {
        let token = self.write(index, group, None);
        self.wait_for(token)
    }

    /// Microseconds until a linearizable read is answered.
    pub(crate) fn read_and_wait(&mut self, index: usize, group: GroupId) -> u64 {
        let token = self.token();
        self.inbox.push_back((index, Event::Read { token, group }));
        self.wait_for(token)
    }

    fn wait_for(&mut self, token: u64) -> u64 {
        let began = self.now;
        while !self.answers.contains_key(&token) {
            assert!(self.now < began + 10_000_000, "no answer");
            self.run_for(500);
        }
        self.now - began
    }

    pub(crate) fn answered(&self) -> usize {
        self.answers.len()
    }

    pub(crate) fn take_answers(&mut self) -> BTreeMap<u64, Reply> {
        std::mem::take(&mut self.answers)
    }

    /// How many keys the second node has in `group`.
    pub(crate) fn keys(&mut self, group: GroupId) -> i64 {
        let board = self.node(1).board();
        let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        board.group(group).unwrap().keyspace.range(&all).unwrap().count
    }
}

/// What can be seen.
impl Pool {
    fn boards(&self) -> impl Iterator<Item = (usize, Arc<hadron_node::Board>)> + '_ {
        let running = self.machines.iter().enumerate();
        running.filter_map(|(index, machine)| Some((index, machine.process.as_ref()?.node.board())))
    }

    /// The groups that do not sleep everywhere.
    pub(crate) fn awake(&self) -> Vec<GroupId> {
        let mut awake = BTreeSet::new();
        for (_, board) in self.boards() {
            let groups = board.groups().into_iter();
            awake.extend(groups.filter(|(_, board)| !board.is_asleep()).map(|(group, _)| group));
        }
        awake.into_iter().collect()
    }

    /// What nodes show of how much is lacking anywhere: the lags of all replicas of all groups.
    pub(crate) fn lags(&self) -> Vec<u64> {
        let groups = self.boards().flat_map(|(_, board)| board.groups());
        groups.flat_map(|(_, board)| board.shares()).map(|share| share.lag).collect()
    }

    /// The groups that a node leads.
    pub(crate) fn led_by(&self, index: usize) -> Vec<GroupId> {
        let (_, board) = self.boards().find(|(other, _)| *other == index).unwrap();
        let groups = board.groups().into_iter();
        groups.filter(|(_, board)| board.leader() == Some(node_id(index))).map(|(group, _)| group).collect()
    }

    /// Whether every replica knows a leader.
    pub(crate) fn all_know_a_leader(&self) -> bool {
        self.boards().all(|(_, board)| board.groups().iter().all(|(_, board)| board.leader().is_some()))
    }

    /// Whether a node that runs knows a leader of `group` that runs.
    pub(crate) fn is_led(&self, group: GroupId) -> bool {
        self.boards().any(|(_, board)| {
            let leader = board.group(group).unwrap().leader();
            leader.is_some_and(|leader| self.machines[index_of(leader)].process.is_some())
        })
    }

    /// Runs until all groups have a leader that runs; how long that took since the first had none.
    pub(crate) fn run_until_led(&mut self, us_max: u64) -> u64 {
        let began = self.now;
        while self.keyspaces().iter().any(|group| !self.is_led(*group)) {
            assert!(self.now < began + us_max, "some groups have no leader");
            self.run_for(10_000);
        }
        self.now - began
    }
}
