//! Clients: each asks one thing at a time of any node, waits for the answer or gives up, and writes down what it saw.
//!
//! A node's front end (what the server does outside its loop) is here as well: the translation to commands, the
//! barrier before a linearizable read, the read itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use hadron_consensus::GroupId;
use hadron_keyspace::{Command, Error, Response as CommandResponse};
use hadron_node::{Event as NodeEvent, Failure as NodeFailure, Reply};
use hadron_proto::etcdserverpb::RangeRequest;
use rand::Rng;
use rand::rngs::SmallRng;

use super::compaction::COMPACTOR;
use super::lies::Lie;
use super::machine::Asked;
use super::writes::WRITERS;
use super::{Happening, Life, Settings, World};
use crate::etcd::{self, Request};
use crate::history::{Action, Guard, Operation, Outcome, Response, Step, StepResult, Transaction, Violation};

/// Keys that all clients share.
const KEYS: u64 = 6;
/// Further clients of a busy keyspace.
const BUSY_CLIENTS: usize = 10;
/// How much less they think.
const BUSY_FACTOR: u64 = 20;
/// Bytes of a large value.
pub(super) const LARGE_VALUE: usize = 6 << 10;

/// A client that reads and writes.
pub(super) struct Client {
    number: u64,
    /// The group of its keyspace, or the first that this had.
    keyspace: GroupId,
    /// The group that it asked last.
    group: GroupId,
    /// Mean pause between two operations, in microseconds.
    think_us: u64,
    /// Stays with one node as long as that answers, or goes to another each time.
    faithful: bool,
    node: u64,
    values: u64,
    /// The last revision of each key that this client saw.
    seen: BTreeMap<Bytes, i64>,
}

impl Client {
    /// The clients of a world, by their numbers.
    pub(super) fn all(settings: &Settings, rng: &mut SmallRng) -> Vec<Client> {
        let think_us = settings.think_us;
        let usual = (0..settings.clients).map(|number| (GroupId(1 + number % settings.keyspaces), think_us));
        let busy = settings.busy_keyspaces.iter();
        let busy = busy.flat_map(|group| [(*group, think_us / BUSY_FACTOR); BUSY_CLIENTS]);
        let all = (0..).zip(usual.chain(busy));
        all.map(|(number, (keyspace, think_us))| Client::new(number, keyspace, think_us, rng)).collect()
    }

    fn new(number: u64, keyspace: GroupId, think_us: u64, rng: &mut SmallRng) -> Client {
        let faithful = rng.random_bool(0.5);
        Client {
            number,
            keyspace,
            group: keyspace,
            think_us,
            faithful,
            node: 0,
            values: 0,
            seen: BTreeMap::new(),
        }
    }

    fn action(&mut self, rng: &mut SmallRng, large_value_one_in: u32, newest: i64) -> Action {
        let key = key(rng.random_range(0..KEYS));
        match rng.random_range(0..100) {
            0..40 => Action::put(key, self.value(rng, large_value_one_in)),
            40..60 => Action::get(key),
            60..62 => Action::GetRange(key, Bytes::from_static(END)),
            62..68 => Action::StaleGet(key),
            68..71 => Action::GetAt(key, rng.random_range(1..=newest.max(1))),
            71..76 => Action::delete(key),
            76..78 => Action::delete_range(key, END),
            78..90 => {
                let expected = self.seen.get(&key).copied().unwrap_or(0);
                Action::compare_and_set(key, expected, self.value(rng, large_value_one_in))
            }
            _ => self.move_between_keys(rng, key),
        }
    }

    /// Writes two keys and reads a third, if the first is as it was seen; otherwise reads.
    fn move_between_keys(&mut self, rng: &mut SmallRng, first: Bytes) -> Action {
        let second = key((1 + rng.random_range(0..KEYS)) % KEYS);
        let third = key(rng.random_range(0..KEYS));
        let expected = self.seen.get(&first).copied().unwrap_or(0);
        let mut then = vec![Step::Get(third), Step::Put(first.clone(), self.value(rng, 0), 0)];
        if second != first {
            then.push(Step::Delete(second));
        }
        let otherwise = vec![Step::Get(first.clone())];
        Action::Transaction(Transaction {
            guards: vec![Guard::ModRevision(first, expected)],
            then,
            otherwise,
        })
    }

    /// A value that nobody else writes.
    fn value(&mut self, rng: &mut SmallRng, large_one_in: u32) -> Bytes {
        self.values += 1;
        let mut value = format!("c{}-{}", self.number, self.values).into_bytes();
        if large_one_in > 0 && rng.random_range(0..large_one_in) == 0 {
            value.resize(LARGE_VALUE, b'.');
        }
        value.into()
    }

    /// Remembers the revisions that a response showed.
    fn learn(&mut self, operation: &Operation) {
        let Some(response) = operation.response() else { return };
        for (step, result) in operation.done_steps() {
            match (step, result) {
                (Step::Put(key, ..), _) => self.seen.insert(key.clone(), response.revision),
                (Step::Delete(key), _) => self.seen.insert(key.clone(), 0),
                (Step::Get(key), StepResult::Got(found)) => {
                    self.seen.insert(key.clone(), found.as_ref().map_or(0, |found| found.mod_revision))
                }
                (Step::Get(_) | Step::DeleteRange(..), _) => None,
            };
        }
    }
}

/// Behind all keys.
const END: &[u8] = b"l";

fn key(number: u64) -> Bytes {
    Bytes::from(format!("k{number}"))
}

impl World {
    /// A client begins its next operation.
    pub(super) fn client_next(&mut self, number: usize) {
        if self.quiet {
            return;
        }
        if let Some(end) = self.settings.rest_ends(self.schedule.now()) {
            let late = self.rng.random_range(0..=2 * self.clients[number].think_us);
            return self.schedule.at(end + late, Happening::ClientNext(number));
        }
        let Some(life) = self.choose_node(number) else {
            return self.schedule.after(100_000, Happening::ClientNext(number));
        };
        let Some(group) = self.present_group(self.clients[number].keyspace, life) else {
            return self.schedule.after(100_000, Happening::ClientNext(number));
        };
        let newest = self.observer.last_revision(group);
        let large_value_one_in = self.settings.large_value_one_in;
        let client = &mut self.clients[number];
        if std::mem::replace(&mut client.group, group) != group {
            client.seen.clear();
        }
        let action = client.action(&mut self.rng, large_value_one_in, newest);
        self.begin_operation(number as u64, group, life, action);
    }

    /// A node that accepts connections; the client's own, if it is faithful and that is up.
    fn choose_node(&mut self, number: usize) -> Option<Life> {
        let any = self.any_node();
        let client = &mut self.clients[number];
        if !client.faithful || client.node == 0 {
            client.node = any;
        }
        let node = client.node;
        let life = self.life(node);
        if life.is_none() {
            self.clients[number].node = any;
        }
        life
    }

    /// Writes an operation into the history and sends it on its way.
    pub(super) fn begin_operation(
        &mut self,
        client: u64,
        keyspace: GroupId,
        life: Life,
        action: Action,
    ) -> usize {
        let now = self.schedule.now();
        let operation = self.history.len();
        self.history.push(Operation {
            client,
            keyspace: keyspace.0,
            node: life.node,
            replica: None,
            invoked: now,
            returned: now,
            action,
            outcome: Outcome::Unknown,
        });
        self.open.push(true);
        let delay = self.rng.random_range(50..500);
        self.schedule.after(delay, Happening::Request { operation, life });
        operation
    }

    /// A request arrives at a front end.
    pub(super) fn on_request(&mut self, operation: usize, life: Life) {
        if self.process(life).is_none() {
            // The node went down before the request was there.
            return self.answer(operation, Outcome::Failed);
        }
        if let Some(outcome) = self.made_up_answer(operation) {
            return self.answer(operation, outcome);
        }
        let mut command = match etcd::request(&self.history[operation].action) {
            Request::Range(range) if range.serializable => {
                let delay = self.rng.random_range(0..200);
                return self.schedule.after(delay, Happening::ServeRead { operation, life });
            }
            Request::Range(_) => None,
            Request::Put(request) => Some(Command::Put(request)),
            Request::Delete(request) => Some(Command::DeleteRange(request)),
            Request::Txn(request) => Some(Command::Txn(request)),
            Request::Revoke(request) => Some(Command::LeaseRevoke(request)),
            Request::Compact(request) => Some(Command::Compact(request)),
        };
        if command.is_none() && self.lies(Lie::StaleRead) {
            return self.schedule.after(0, Happening::ServeRead { operation, life });
        }
        let mut group = GroupId(self.history[operation].keyspace);
        if let Some(command) = &mut command {
            if self.lies(Lie::NoWrites) && life.node == 1 {
                return self.answer(operation, Outcome::Failed);
            }
            self.falsify_command(group, command);
            group = self.group_of_write(group);
        }
        let token = self.ask(life, Asked::Operation(operation), |token| match command {
            Some(command) => NodeEvent::Write { token, group, command: command.to_bytes() },
            None => NodeEvent::Read { token, group },
        });
        if let Some(token) = token {
            let timeout = self.settings.client_timeout_us;
            self.schedule.after(timeout, Happening::GiveUp { operation, life, token });
        }
    }

    /// The node answers a client's request.
    pub(super) fn on_operation_reply(&mut self, life: Life, operation: usize, reply: Reply) {
        self.note_replica(operation, life);
        let outcome = match reply {
            Reply::Written { response: Ok(response), .. } => {
                let mut response = command_response(response);
                self.falsify_response(&mut response);
                Outcome::Done(response)
            }
            // A lease may have ended before a key was attached to it.
            Reply::Written { response: Err(Error::LeaseNotFound), .. } => {
                self.on_lease_missed(operation);
                Outcome::Failed
            }
            Reply::Written { response: Err(Error::Compacted), .. } => Outcome::Compacted,
            Reply::Written { response: Err(Error::Unreadable(_)), .. }
                if self.is_rotten(life.node, GroupId(self.history[operation].keyspace)) =>
            {
                Outcome::Unknown
            }
            Reply::Written { response: Err(error), .. } => {
                let found = format!("{}: {error}", self.history[operation]);
                return self.violate(Violation::new("linearizable", found));
            }
            Reply::ReadReady => {
                let delay = self.rng.random_range(0..200);
                return self.schedule.after(delay, Happening::ServeRead { operation, life });
            }
            Reply::Failed(NodeFailure::Unknown) => {
                self.propose_again(operation);
                Outcome::Unknown
            }
            Reply::Failed(_) | Reply::Transferred | Reply::Lags(_) => Outcome::Failed,
        };
        self.answer(operation, outcome);
    }

    /// The front end reads the local keyspace.
    pub(super) fn serve_read(&mut self, operation: usize, life: Life) {
        self.note_replica(operation, life);
        let action = self.history[operation].action.clone();
        let group = GroupId(self.history[operation].keyspace);
        let Some(keyspace) = self.process(life).and_then(|process| process.keyspace(group)) else {
            return self.answer(operation, Outcome::Failed);
        };
        let Request::Range(range) = etcd::request(&action) else { return };
        let outcome = match keyspace.range(&range) {
            Ok(found) => Outcome::Done(etcd::response(&found.header, etcd::read(&action, &found))),
            Err(Error::Compacted) => Outcome::Compacted,
            Err(Error::Storage(_)) if self.is_rotten(life.node, group) => Outcome::Failed,
            Err(Error::Storage(what)) => {
                return self
                    .violate(Violation::new("no_fatal", format!("n{} cannot read: {what}", life.node)));
            }
            // A barrier leaves no revision in the future.
            Err(error) => {
                let found = format!("{}: {error}", self.history[operation]);
                return self.violate(Violation::new("linearizable", found));
            }
        };
        self.answer(operation, outcome);
    }

    /// Writes down which replica answers.
    fn note_replica(&mut self, operation: usize, life: Life) {
        let group = GroupId(self.history[operation].keyspace);
        let replica = self.process(life).and_then(|process| process.observed.replica(group));
        self.history[operation].replica = replica.map(|replica| life.incarnation << 32 | replica);
    }

    /// An outcome is on its way to the client.
    fn answer(&mut self, operation: usize, outcome: Outcome) {
        let delay = self.rng.random_range(50..500);
        self.schedule.after(delay, Happening::Answer { operation, outcome });
    }

    /// The connection with the node is gone, and with it the answer.
    pub(super) fn on_connection_lost(&mut self, asked: Asked) {
        match asked {
            Asked::Operation(operation) => {
                self.propose_again(operation);
                self.answer(operation, Outcome::Unknown);
            }
            Asked::Lease(client) => self.on_lease_connection_lost(client),
            Asked::Administrator => self.administrator.waits_until = None,
            Asked::Placer => self.placer.waits_until = None,
        }
    }

    /// The client has waited long enough; the node is told that nobody waits any more.
    pub(super) fn give_up(&mut self, operation: usize, life: Life, token: u64) {
        let Some(process) = self.process(life) else { return };
        if process.asked.remove(&token).is_some() {
            let group = GroupId(self.history[operation].keyspace);
            self.deliver(life, NodeEvent::Cancel { token, group });
            self.answer(operation, Outcome::Unknown);
        }
    }

    /// The client learns how its operation ended, and goes on after a while.
    pub(super) fn on_answer(&mut self, number: usize, outcome: Outcome) {
        let now = self.schedule.now();
        if !std::mem::replace(&mut self.open[number], false) {
            return;
        }
        let operation = &mut self.history[number];
        operation.returned = now;
        operation.outcome = match outcome {
            // A read without an answer changed nothing.
            Outcome::Unknown if is_read(&operation.action) => Outcome::Failed,
            outcome => outcome,
        };
        self.trace.note(now, format_args!("{operation}"));
        let client = operation.client as usize;
        match self.clients.get_mut(client) {
            Some(state) => {
                state.learn(operation);
                let unanswered = operation.response().is_none();
                if unanswered {
                    state.node = 0;
                }
                let think = self.rng.random_range(0..=2 * state.think_us);
                self.schedule.after(think, Happening::ClientNext(client));
            }
            None if operation.client == COMPACTOR => self.on_compacted(number),
            None if operation.client >= WRITERS => {}
            None => self.on_lease_answer(number),
        }
    }
}

fn is_read(action: &Action) -> bool {
    matches!(etcd::request(action), Request::Range(RangeRequest { .. }))
}

fn command_response(response: CommandResponse) -> Response {
    match response {
        CommandResponse::Put(put) => etcd::response(&put.header, StepResult::Put),
        CommandResponse::DeleteRange(delete) => {
            etcd::response(&delete.header, StepResult::Deleted(delete.deleted))
        }
        CommandResponse::Txn(txn) => etcd::txn_response(&txn),
        CommandResponse::LeaseRevoke(revoke) => etcd::plain_response(&revoke.header),
        CommandResponse::Compact(compact) => etcd::plain_response(&compact.header),
        // Not what was asked for: a response that fits no action.
        _ => Response { revision: 0, succeeded: false, results: Vec::new() },
    }
}
