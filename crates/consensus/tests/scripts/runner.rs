//! The commands of the scripts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use hadron_consensus::{
    Config, Configuration, Contacts, Effects, Entry, Event, Group, GroupId, HardState, Index, LogPosition,
    Message, ReplicaId, Restored, Term, Time, chain_checksum,
};

use crate::show;

const GROUP: GroupId = GroupId(1);
const ELECTION_TIMEOUT_US: u64 = 1_000_000;

/// The state of a script.
#[derive(Default)]
pub(crate) struct Runner {
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Who belonged to the group when it began.
    first: Configuration,
    now: Time,
    /// Messages that wait, in the order of sending.
    network: VecDeque<(ReplicaId, ReplicaId, Message)>,
    /// When the node of a replica fell silent.
    silent_since: BTreeMap<ReplicaId, Time>,
    /// Links that lose everything, in this direction.
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    limits: Limits,
    sleep_after_us: u64,
    starts: u64,
}

#[derive(Clone, Copy)]
struct Limits {
    max_append_bytes: usize,
    inflight_bytes: usize,
    uncommitted_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_append_bytes: 1 << 20, inflight_bytes: 1 << 22, uncommitted_bytes: 1 << 24 }
    }
}

#[derive(Default)]
struct Replica {
    group: Option<Group>,
    hard_state: HardState,
    log: Vec<Entry>,
    floor: LogPosition,
    /// Writes that wait: number, what they carry.
    writes: VecDeque<hadron_consensus::Persist>,
    applied: LogPosition,
    /// The configurations that were applied, and where.
    configurations: Vec<(Index, Configuration)>,
}

impl Replica {
    /// The configuration that the state machine has at `index`.
    fn configuration_at(&self, index: Index) -> Configuration {
        let applied = self.configurations.iter().rev().find(|(at, _)| *at <= index);
        applied.map(|(_, configuration)| configuration.clone()).unwrap_or_default()
    }
}

/// Nodes that are not silent are heard from all the time.
struct Silence<'a>(Time, &'a BTreeMap<ReplicaId, Time>);

impl Contacts for Silence<'_> {
    fn last_heard(&self, replica: ReplicaId) -> Time {
        self.1.get(&replica).copied().unwrap_or(self.0)
    }
}

fn replica(text: &str) -> ReplicaId {
    ReplicaId(text.trim_start_matches('r').parse().unwrap_or_else(|_| panic!("{text} is not a replica")))
}

fn index(text: &str) -> Index {
    Index(text.trim_start_matches('i').parse().unwrap())
}

impl Runner {
    /// Runs one command; adds what came of it to `output`.
    pub(crate) fn run(&mut self, command: &str, output: &mut Vec<String>) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let before = output.len();
        match words[..] {
            // group 3 [learners 1]: starts r1, r2, r3 with empty logs.
            ["group", count, ref options @ ..] => self.start_group(count.parse().unwrap(), options),
            // limits APPEND INFLIGHT UNCOMMITTED: bytes; before `group`.
            ["limits", append, inflight, uncommitted] => self.set_limits([append, inflight, uncommitted]),
            // log r1 TERM:DATA ...: a durable log with these entries, in the term of the last; restarts the replica.
            ["log", id, ref entries @ ..] => self.set_log(replica(id), entries),
            // join r4: starts a replica that has yet to hear of its group.
            ["join", id] => self.join(replica(id)),
            // change r1 r1,r2,r4 [r3]: r1 is to change the group to these voters and learners.
            ["change", id, voters, ref learners @ ..] => self.change(replica(id), voters, learners, output),
            ["members", id] => self.members(replica(id), output),
            ["campaign", id] => self.step(replica(id), Event::Campaign, output),
            ["suspect", id, suspect] => {
                self.step(replica(id), Event::Suspect { replica: replica(suspect) }, output)
            }
            ["propose", id, ref data @ ..] => self.propose(replica(id), data, output),
            ["read", id, token] => {
                self.step(replica(id), Event::Read { token: token.parse().unwrap() }, output)
            }
            ["transfer", id, to] => self.step(replica(id), Event::TransferLeader { to: replica(to) }, output),
            ["compact", id, to] => self.step(replica(id), Event::Compact { index: index(to) }, output),
            // pressure r1 full|over: whether its state machine cannot keep up.
            ["pressure", id, how] => self.step(replica(id), Event::Pressure { full: how == "full" }, output),
            // retire r1: it is damaged and must not lead.
            ["retire", id] => self.step(replica(id), Event::Retire, output),
            ["reinstate", id] => self.step(replica(id), Event::Reinstate, output),
            // corrupt: the data of each entry on its way is changed; its checksum is not.
            ["corrupt"] => self.corrupt(),
            // snapshot r1 r2 ok|fails: r1's state reaches r2, or does not.
            ["snapshot", from, to, outcome] => {
                self.snapshot(replica(from), replica(to), outcome == "ok", output)
            }
            // sleep MILLIS: groups that start from now on sleep after so long without requests.
            ["sleep", millis] => self.sleep_after_us = millis.parse::<u64>().unwrap() * 1_000,
            ["wake", id] => self.step(replica(id), Event::Wake, output),
            // paused r1: its driver stood still.
            ["paused", id] => self.step(replica(id), Event::Paused, output),
            ["timer", id] => self.step(replica(id), Event::Timer, output),
            // deliver [r1 [r2]]: the messages that wait (from r1) (to r2), not those they cause.
            ["deliver"] => self.deliver(|_, _| true, output),
            ["deliver", from] => self.deliver(|sender, _| sender == replica(from), output),
            ["deliver", from, to] => {
                self.deliver(|sender, receiver| (sender, receiver) == (replica(from), replica(to)), output)
            }
            // drop [r1 [r2]]: loses them instead.
            ["drop"] => self.network.clear(),
            ["drop", from] => self.network.retain(|(sender, _, _)| *sender != replica(from)),
            ["drop", from, to] => {
                self.network
                    .retain(|(sender, receiver, _)| (*sender, *receiver) != (replica(from), replica(to)));
            }
            // cut r1 r2: what r1 sends to r2 is lost until `mend`.
            ["cut", from, to] => drop(self.cut.insert((replica(from), replica(to)))),
            ["mend"] => self.cut.clear(),
            // silence r1 / hear r1: what the failure detectors say of r1's node.
            ["silence", id] => drop(self.silent_since.insert(replica(id), self.now)),
            ["hear", id] => drop(self.silent_since.remove(&replica(id))),
            // persist r1 [one]: all (or one) of its writes become durable.
            ["persist", id] => while self.persist_one(replica(id), output) {},
            ["persist", id, "one"] => drop(self.persist_one(replica(id), output)),
            ["settle"] => self.settle(output),
            // quiet COMMAND: what comes of it is not shown.
            ["quiet", ..] => self.run(command.trim_start_matches("quiet "), &mut Vec::new()),
            ["wait", millis] => self.wait(millis.parse().unwrap(), output),
            // run MILLIS: time passes, and everything is delivered and persisted at once.
            ["run", millis] => self.run_for(millis.parse().unwrap(), output),
            // pause MILLIS: time passes, and nobody looks.
            ["pause", millis] => self.now = self.now.plus_micros(millis.parse::<u64>().unwrap() * 1_000),
            ["crash", id] => self.crash(replica(id)),
            ["restart", id] => self.restart(replica(id), false),
            // restart r1 asleep: it waits until somebody needs the group.
            ["restart", id, "asleep"] => self.restart(replica(id), true),
            ["damage", id, at] => self.damage(replica(id), index(at)),
            ["status"] => self.status(output),
            ["progress", id] => self.progress(replica(id), output),
            _ => panic!("unknown command: {command}"),
        }
        if output.len() > before && words[0] != "status" {
            let lines = output.split_off(before);
            output.extend(
                std::iter::once(format!("> {command}"))
                    .filter(|_| !["progress", "members"].contains(&words[0])),
            );
            output.extend(lines);
        }
    }

    fn start_group(&mut self, count: u64, options: &[&str]) {
        let learners = match options {
            ["learners", learners] => learners.parse().unwrap(),
            _ => 0,
        };
        let all: Vec<ReplicaId> = (1..=count).map(ReplicaId).collect();
        let (voters, rest) = all.split_at((count - learners) as usize);
        self.first = Configuration::new(voters.iter().copied(), rest.iter().copied());
        self.now = Time(10_000_000);
        self.network.clear();
        self.silent_since.clear();
        self.cut.clear();
        self.replicas.clear();
        for id in all {
            let configurations = vec![(Index(0), self.first.clone())];
            self.replicas.insert(id, Replica { configurations, ..Replica::default() });
            self.restart(id, false);
        }
    }

    fn join(&mut self, id: ReplicaId) {
        self.replicas.insert(id, Replica::default());
        self.restart(id, false);
    }

    fn change(&mut self, id: ReplicaId, voters: &str, learners: &[&str], output: &mut Vec<String>) {
        let ids = |text: &str| text.split(',').map(replica).collect::<Vec<_>>();
        let learners = learners.iter().flat_map(|learners| ids(learners));
        let wanted = Configuration::new(ids(voters), learners);
        self.step(id, Event::Reconfigure { token: 0, wanted }, output);
    }

    fn members(&self, id: ReplicaId, output: &mut Vec<String>) {
        let group = self.replicas[&id].group.as_ref().unwrap();
        let committed = if group.is_configuration_committed() { "" } else { ", not committed" };
        output.push(format!("{id} has {}{committed}", show::configuration(group.configuration())));
    }

    fn set_limits(&mut self, bytes: [&str; 3]) {
        let [max_append_bytes, inflight_bytes, uncommitted_bytes] = bytes.map(|bytes| bytes.parse().unwrap());
        self.limits = Limits { max_append_bytes, inflight_bytes, uncommitted_bytes };
    }

    fn set_log(&mut self, id: ReplicaId, entries: &[&str]) {
        let mut checksum = 0;
        let mut log = Vec::new();
        for (entry, at) in entries.iter().zip(1..) {
            let (term, data) = entry.split_once(':').unwrap();
            let (term, index) = (Term(term.parse().unwrap()), Index(at));
            let data = Bytes::from(data.to_string());
            checksum = chain_checksum(checksum, GROUP, term, index, &data);
            log.push(Entry { term, index, checksum, data });
        }
        let term = log.last().map_or(Term(0), |entry: &Entry| entry.term);
        let state = self.replicas.get_mut(&id).unwrap();
        state.hard_state = HardState { term, voted_for: None, commit: Index(0) };
        state.log = log;
        self.restart(id, false);
    }

    fn propose(&mut self, id: ReplicaId, data: &[&str], output: &mut Vec<String>) {
        for data in data {
            let data = Bytes::from(data.to_string());
            self.step(id, Event::Propose { token: 0, data }, output);
        }
    }

    fn step(&mut self, id: ReplicaId, event: Event, output: &mut Vec<String>) {
        let state = self.replicas.get_mut(&id).unwrap();
        let Some(group) = &mut state.group else { return };
        let mut effects = Effects::default();
        let before = (group.role(), group.term(), group.leader());
        group.step(self.now, &Silence(self.now, &self.silent_since), event, &mut effects);
        let (role, term, leader) = (group.role(), group.term(), group.leader());
        assert_eq!(effects.status_changed, before != (role, term, leader));
        if effects.status_changed {
            let of =
                leader.filter(|leader| *leader != id).map_or(String::new(), |leader| format!(" of {leader}"));
            output.push(format!("{id} is {role:?}{of} in {term}"));
        }
        output.extend(show::effects(&effects).into_iter().map(|line| format!("{id} {line}")));
        for (to, message) in effects.messages {
            output.push(format!("{id} → {to} {}", show::message(&message)));
            if !self.cut.contains(&(id, to)) {
                self.network.push_back((id, to, message));
            }
        }
        let applied = effects.committed.last().map(Entry::position);
        for entry in &effects.committed {
            let configuration = Configuration::of(&entry.data).unwrap();
            state.configurations.extend(configuration.map(|configuration| (entry.index, configuration)));
        }
        state.writes.extend(effects.persist);
        if let Some(applied) = applied {
            state.applied = applied;
            self.step(id, Event::Applied { index: applied.index }, output);
        }
    }

    fn deliver(&mut self, chosen: impl Fn(ReplicaId, ReplicaId) -> bool, output: &mut Vec<String>) {
        let waiting = std::mem::take(&mut self.network);
        let (now, later): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(from, to, _)| chosen(*from, *to));
        self.network.extend(later);
        for (from, to, message) in now {
            self.step(to, Event::Message { from, message }, output);
        }
    }

    fn persist_one(&mut self, id: ReplicaId, output: &mut Vec<String>) -> bool {
        let state = self.replicas.get_mut(&id).unwrap();
        let Some(persist) = state.writes.pop_front() else { return false };
        state.hard_state = persist.hard_state.unwrap_or(state.hard_state);
        if let Some(first) = persist.entries.first() {
            state.log.retain(|entry| entry.index < first.index);
            state.log.extend(persist.entries);
        }
        self.step(id, Event::Persisted { sequence: persist.sequence }, output);
        true
    }

    fn settle(&mut self, output: &mut Vec<String>) {
        loop {
            let mut moved = !self.network.is_empty();
            self.deliver(|_, _| true, output);
            for id in self.replicas.keys().copied().collect::<Vec<_>>() {
                while self.persist_one(id, output) {
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Time passes; timers fire when they are due, and what they cause waits.
    fn wait(&mut self, millis: u64, output: &mut Vec<String>) {
        let end = self.now.plus_micros(millis * 1_000);
        loop {
            let deadline =
                |(id, state): (&ReplicaId, &Replica)| Some((state.group.as_ref()?.deadline()?, *id));
            let next = self.replicas.iter().filter_map(deadline).min();
            let Some((at, id)) = next.filter(|(at, _)| *at <= end) else { break };
            self.now = self.now.max(at);
            self.step(id, Event::Timer, output);
        }
        self.now = end;
    }

    fn run_for(&mut self, millis: u64, output: &mut Vec<String>) {
        for _ in 0..millis {
            self.settle(output);
            self.wait(1, output);
        }
        self.settle(output);
    }

    fn crash(&mut self, id: ReplicaId) {
        let state = self.replicas.get_mut(&id).unwrap();
        state.group = None;
        state.writes.clear();
    }

    fn restart(&mut self, id: ReplicaId, asleep: bool) {
        self.starts += 1;
        let Limits { max_append_bytes, inflight_bytes, uncommitted_bytes } = self.limits;
        let config = Config {
            group: GROUP,
            id,
            configuration: self.replicas[&id].configuration_at(self.replicas[&id].floor.index),
            election_timeout_us: ELECTION_TIMEOUT_US,
            heartbeat_us: 100_000,
            max_append_bytes,
            inflight_bytes,
            uncommitted_bytes,
            sleep_after_us: self.sleep_after_us,
            starts_asleep: asleep,
            seed: self.starts,
        };
        let state = self.replicas.get_mut(&id).unwrap();
        let (floor, entries) = (state.floor, state.log.clone());
        let restored = Restored { hard_state: state.hard_state, floor, entries, applied: floor.index };
        state.group = Some(Group::new(config, restored));
    }

    fn corrupt(&mut self) {
        for (_, _, message) in &mut self.network {
            if let Message::Append { entries, .. } = message {
                entries.iter_mut().for_each(|entry| entry.data = Bytes::from_static(b"corrupt"));
            }
        }
    }

    /// The state of one replica reaches another, or does not.
    fn snapshot(&mut self, from: ReplicaId, to: ReplicaId, succeeds: bool, output: &mut Vec<String>) {
        let position = self.replicas[&from].applied;
        let configuration = self.replicas[&from].configuration_at(position.index);
        if succeeds {
            let state = self.replicas.get_mut(&to).unwrap();
            state.applied = position;
            state.floor = position;
            state.log.retain(|entry| entry.index > position.index);
            state.configurations.push((position.index, configuration.clone()));
            self.step(to, Event::SnapshotInstalled { position, configuration }, output);
        }
        self.step(from, Event::SnapshotSent { to, position: succeeds.then_some(position) }, output);
    }

    /// Another entry than the one that was written, with a chain of its own from there on: what a damaged memory leaves.
    fn damage(&mut self, id: ReplicaId, at: Index) {
        let mut state = self.replicas.remove(&id).unwrap();
        let mut checksum = state.floor.checksum;
        for entry in &mut state.log {
            if entry.index == at {
                entry.data = Bytes::from_static(b"damaged");
            }
            checksum = chain_checksum(checksum, GROUP, entry.term, entry.index, &entry.data);
            entry.checksum = checksum;
        }
        self.replicas.insert(id, state);
    }

    fn status(&self, output: &mut Vec<String>) {
        for (id, state) in &self.replicas {
            let Some(group) = &state.group else {
                output.push(format!("{id} is down"));
                continue;
            };
            let leader = group.leader().map_or("nobody".to_string(), |leader| leader.to_string());
            let (role, term, last) = (group.role(), group.term(), group.last());
            output.push(format!(
                "{id} {role:?}{} {term} leader {leader} log {}..{last} durable {} commit {}",
                if group.is_asleep() { ", asleep," } else { "" },
                group.floor().index,
                group.durable(),
                group.commit()
            ));
        }
    }

    fn progress(&self, id: ReplicaId, output: &mut Vec<String>) {
        for other in self.replicas[&id].group.as_ref().unwrap().progress() {
            let (state, inflight) = (other.state, other.inflight_bytes());
            let (replica, matched, next) = (other.replica, other.matched, other.next);
            output.push(format!("{replica} {state:?} matched {matched} next {next} in flight {inflight}"));
        }
    }
}
