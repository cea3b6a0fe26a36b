//! Clients that load a cluster and write down what they see.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_sim::etcd::{self, Request};
use hadron_sim::history::{Action, Operation, Outcome, Response, StepResult};
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
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

/// What clients saw, on one clock.
struct Recorder {
    started: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Load {
    /// Starts `count` clients, spread over `endpoints`.
    pub fn start(endpoints: &[String], count: u64) -> Load {
        let recorder = Arc::new(Recorder { started: Instant::now(), operations: Mutex::default() });
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number| {
            let channels = endpoints.iter().map(|url| super::channel(url)).collect();
            let client = Client::new(number, channels, recorder.clone());
            tokio::spawn(client.run(stop.clone()))
        };
        let clients = (0..count).map(client).collect();
        Load { recorder, stop, clients }
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
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut self.recorder.operations.lock().unwrap())
    }
}

/// The longest time between two acknowledged writes, in microseconds.
pub fn longest_outage_us(operations: &[Operation]) -> u64 {
    let mut times: Vec<u64> = operations.iter().filter(|one| wrote(one)).map(|one| one.returned).collect();
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(u64::MAX)
}

fn wrote(operation: &Operation) -> bool {
    operation.response().is_some_and(Response::wrote)
}

impl Recorder {
    fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
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

    async fn run(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let action = self.action();
            let invoked = self.recorder.now();
            let answer =
                tokio::time::timeout(CLIENT_TIMEOUT, carry_out(&self.channels[self.node], &action)).await;
            let outcome =
                outcome(&action, answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("client"))));
            let returned = self.recorder.now();
            let answered = matches!(outcome, Outcome::Done(_));
            let node = self.node as u64;
            self.learn(&action, &outcome);
            let operation =
                Operation { client: self.number, keyspace: 1, node, invoked, returned, action, outcome };
            self.recorder.operations.lock().unwrap().push(operation);
            if !answered {
                self.node = (self.node + 1) % self.channels.len();
            }
            tokio::time::sleep(self.rng.random_range(Duration::ZERO..2 * THINK)).await;
        }
    }

    fn action(&mut self) -> Action {
        let key = Bytes::from(format!("k{}", self.rng.random_range(0..KEYS)));
        self.values += 1;
        let value = format!("c{}-{}", self.number, self.values);
        match self.rng.random_range(0..10) {
            0..6 => Action::put(key, value),
            6 => Action::delete(key),
            7 => Action::compare_and_set(key.clone(), self.seen.get(&key).copied().unwrap_or(0), value),
            _ => Action::get(key),
        }
    }

    fn learn(&mut self, action: &Action, outcome: &Outcome) {
        let (Outcome::Done(response), Action::Transaction(transaction)) = (outcome, action) else { return };
        let Some(hadron_sim::history::Step::Put(key, ..) | hadron_sim::history::Step::Get(key)) =
            transaction.then.first()
        else {
            return;
        };
        let revision = match response.results.first() {
            Some(StepResult::Put) => response.revision,
            Some(StepResult::Got(Some(found))) => found.mod_revision,
            _ => 0,
        };
        self.seen.insert(key.clone(), revision);
    }
}

/// Sends `action` and translates the answer.
async fn carry_out(channel: &Channel, action: &Action) -> Result<Response, Status> {
    let mut client = KvClient::new(channel.clone());
    Ok(match etcd::request(action) {
        Request::Range(range) => {
            let found = client.range(range).await?.into_inner();
            etcd::response(&found.header, etcd::got(&found))
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
