//! Clients that load a cluster and write down what they see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_sim::etcd::{self, Request};
use hadron_sim::history::{Action, Guard, Operation, Outcome, Response, Step, StepResult, Transaction};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long a client waits for an answer: longer than a server tries.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Mean pause of a client between two operations.
const THINK: Duration = Duration::from_millis(25);
/// Keys that all clients share.
const KEYS: u64 = 40;

/// Clients at work.
pub struct Load {
    recorder: Arc<Recorder>,
    orders: Arc<Orders>,
    clients: Vec<JoinHandle<()>>,
}

/// What all clients are told.
struct Orders {
    stop: AtomicBool,
    /// Values are filled up to this length.
    value_bytes: AtomicUsize,
    /// How long a client waits for an answer.
    patience: Duration,
}

/// What clients saw, on one clock.
pub struct Recorder {
    started: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Load {
    /// Starts `count` clients, spread over `endpoints`.
    pub fn start(endpoints: &[String], count: u64) -> Load {
        Load::start_with(endpoints, count, CLIENT_TIMEOUT)
    }

    /// The same, with clients that wait no longer than `patience` for an answer.
    pub fn start_with(endpoints: &[String], count: u64, patience: Duration) -> Load {
        let recorder = Arc::new(Recorder { started: Instant::now(), operations: Mutex::default() });
        let orders = Orders { stop: AtomicBool::new(false), value_bytes: AtomicUsize::new(0), patience };
        let orders = Arc::new(orders);
        let client = |number| {
            let channels = endpoints.iter().map(|url| super::channel(url)).collect();
            let client = Client::new(number, channels, recorder.clone());
            tokio::spawn(client.run(orders.clone()))
        };
        let clients = (0..count).map(client).collect();
        Load { recorder, orders, clients }
    }

    /// Where what other clients do is to be written down.
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }

    /// Makes all values at least so long from now on.
    pub fn fill_values_to(&self, bytes: usize) {
        self.orders.value_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether every client had an answer to something that it asked after `moment`.
    pub fn all_served_since(&self, moment: u64) -> bool {
        let operations = self.recorder.operations.lock().unwrap();
        let answered = operations.iter().filter(|one| one.invoked >= moment && one.response().is_some());
        let served: BTreeSet<u64> = answered.map(|one| one.client).collect();
        (0..self.clients.len() as u64).all(|client| served.contains(&client))
    }

    /// Microseconds since the load began.
    pub fn now(&self) -> u64 {
        self.recorder.now()
    }

    /// How many writes were acknowledged since `moment`.
    pub fn writes_since(&self, moment: u64) -> usize {
        let operations = self.recorder.operations.lock().unwrap();
        operations.iter().rev().take_while(|one| one.returned >= moment).filter(|one| wrote(one)).count()
    }

    /// How many writes that began after `moment` were acknowledged.
    pub fn writes_begun_since(&self, moment: u64) -> usize {
        let operations = self.recorder.operations.lock().unwrap();
        operations.iter().filter(|one| one.invoked >= moment && wrote(one)).count()
    }

    /// Lets every client finish, and returns what they saw.
    pub async fn stop(self) -> Vec<Operation> {
        self.orders.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut self.recorder.operations.lock().unwrap())
    }
}

/// The longest time between two acknowledged writes, in microseconds.
pub fn longest_outage_us(operations: &[Operation]) -> u64 {
    outages(operations).map(|(from, to)| to - from).max().unwrap_or(u64::MAX)
}

/// The times between each two acknowledged writes: when they began and ended, in microseconds.
pub fn outages(operations: &[Operation]) -> impl Iterator<Item = (u64, u64)> {
    let mut times: Vec<u64> = operations.iter().filter(|one| wrote(one)).map(|one| one.returned).collect();
    times.sort_unstable();
    let later: Vec<u64> = times.iter().skip(1).copied().collect();
    times.into_iter().zip(later)
}

fn wrote(operation: &Operation) -> bool {
    operation.response().is_some_and(Response::wrote)
}

impl Recorder {
    /// Microseconds since the load began.
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Writes an operation down.
    pub fn record(&self, operation: Operation) {
        self.operations.lock().unwrap().push(operation);
    }
}

struct Client {
    number: u64,
    channels: Vec<Channel>,
    /// Which of the channels it uses.
    node: usize,
    recorder: Arc<Recorder>,
    rng: SmallRng,
    values: u64,
    seen: BTreeMap<Bytes, i64>,
}

impl Client {
    fn new(number: u64, channels: Vec<Channel>, recorder: Arc<Recorder>) -> Client {
        Client {
            number,
            node: number as usize % channels.len(),
            channels,
            recorder,
            rng: SmallRng::seed_from_u64(number),
            values: 0,
            seen: BTreeMap::new(),
        }
    }

    async fn run(mut self, orders: Arc<Orders>) {
        while !orders.stop.load(Ordering::Relaxed) {
            let action = self.action(orders.value_bytes.load(Ordering::Relaxed));
            let invoked = self.recorder.now();
            let outcome = perform(&self.channels[self.node], &action, orders.patience).await;
            let returned = self.recorder.now();
            let answered = matches!(outcome, Outcome::Done(_));
            self.learn(&action, &outcome);
            self.recorder.record(Operation {
                client: self.number,
                keyspace: 1,
                node: self.node as u64,
                replica: None,
                invoked,
                returned,
                action,
                outcome,
            });
            if !answered {
                self.node = (self.node + 1) % self.channels.len();
            }
            tokio::time::sleep(self.rng.random_range(Duration::ZERO..2 * THINK)).await;
        }
    }

    fn action(&mut self, value_bytes: usize) -> Action {
        let (key, other) = (self.key(), self.key());
        self.values += 1;
        let mut value = format!("c{}-{}-", self.number, self.values);
        value.extend(std::iter::repeat_n('x', value_bytes.saturating_sub(value.len())));
        let seen = self.seen.get(&key).copied().unwrap_or(0);
        match self.rng.random_range(0..20) {
            0..11 => Action::put(key, value),
            11 => Action::delete(key),
            12 => Action::delete_range(key, END),
            13..15 => Action::compare_and_set(key, seen, value),
            15 if key != other => both(key, seen, other, value),
            16 => Action::StaleGet(key),
            17 => Action::GetRange(key, END.into()),
            _ => Action::get(key),
        }
    }

    fn key(&mut self) -> Bytes {
        Bytes::from(format!("k{}", self.rng.random_range(0..KEYS)))
    }

    fn learn(&mut self, action: &Action, outcome: &Outcome) {
        let (Outcome::Done(response), Action::Transaction(transaction)) = (outcome, action) else { return };
        let Some(Step::Put(key, ..) | Step::Get(key)) = transaction.then.first() else { return };
        let revision = match response.results.first() {
            Some(StepResult::Put) => response.revision,
            Some(StepResult::Got(Some(found))) => found.mod_revision,
            _ => 0,
        };
        self.seen.insert(key.clone(), revision);
    }
}

/// Behind all keys.
const END: &[u8] = b"l";

/// Writes two keys at once if the first is still as it was seen; otherwise reads both.
fn both(key: Bytes, seen: i64, other: Bytes, value: String) -> Action {
    let put = |key: &Bytes| Step::Put(key.clone(), value.clone().into(), 0);
    Action::Transaction(Transaction {
        guards: vec![Guard::ModRevision(key.clone(), seen)],
        then: vec![put(&key), put(&other)],
        otherwise: vec![Step::Get(key), Step::Get(other)],
    })
}

/// Asks for `action` and waits no longer than `patience`.
pub async fn perform(channel: &Channel, action: &Action, patience: Duration) -> Outcome {
    let answer = tokio::time::timeout(patience, carry_out(channel, action)).await;
    outcome(action, answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("client"))))
}

/// Sends `action` and translates the answer.
async fn carry_out(channel: &Channel, action: &Action) -> Result<Response, Status> {
    let mut client = KvClient::new(channel.clone());
    Ok(match etcd::request(action) {
        Request::Range(range) => {
            let found = client.range(range).await?.into_inner();
            etcd::response(&found.header, etcd::read(action, &found))
        }
        Request::Put(put) => {
            let put = client.put(put).await?.into_inner();
            etcd::response(&put.header, StepResult::Put)
        }
        Request::Delete(delete) => {
            let deleted = client.delete_range(delete).await?.into_inner();
            etcd::response(&deleted.header, StepResult::Deleted(deleted.deleted))
        }
        Request::Txn(txn) => etcd::txn_response(&client.txn(txn).await?.into_inner()),
        Request::Revoke(_) | Request::Compact(_) => {
            unreachable!("this load has neither leases nor compactions")
        }
    })
}

/// A refusal that the server gives before it proposes anything is certain; every other failure of a write leaves open
/// whether it happened.
fn outcome(action: &Action, answer: Result<Response, Status>) -> Outcome {
    match answer {
        Ok(response) => Outcome::Done(response),
        Err(_) if matches!(etcd::request(action), Request::Range(_)) => Outcome::Failed,
        Err(status) if status.code() == Code::ResourceExhausted => Outcome::Failed,
        Err(_) => Outcome::Unknown,
    }
}
