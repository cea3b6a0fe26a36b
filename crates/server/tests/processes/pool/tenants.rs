//! Tenants: each writes one key after the other into its keyspace and reads some of them back at once. A refusal that says that it may be
//! tried again is tried again, on the next node that the tenant knows; anything else is a failure.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::{PutRequest, RangeRequest};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support;

/// How long an answer is waited for: longer than a server tries.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a tenant tries again.
const GIVES_UP_AFTER: Duration = Duration::from_secs(60);
/// Wait before another try.
const RETRY: Duration = Duration::from_millis(20);
/// One of so many writes is read back at once.
const READ_EVERY: u64 = 5;
/// What all keys of tenants begin with.
const PREFIX: &str = "t";
/// Bytes of a value.
const VALUE_BYTES: usize = 100;
/// What a change of leader looks like to a client.
const LEADER_CHANGES: [&str; 6] = [
    "etcdserver: leader changed",
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: request timed out",
    "etcdserver: request timed out, possibly due to previous leader failure",
    "etcdserver: request timed out, possibly due to connection lost",
];

/// A tenant at work.
pub struct Tenant {
    pub name: String,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// What a tenant saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Numbers of the writes that were acknowledged.
    pub acknowledged: Vec<u64>,
    /// Refusals after which it tried again, by what they said.
    pub retried: BTreeMap<String, usize>,
    /// What must not be.
    pub failures: Vec<String>,
    /// The longest time from a write's first try to its acknowledgement.
    pub longest: Duration,
    /// That time of all writes.
    pub took: Vec<Duration>,
}

impl Seen {
    fn acknowledge(&mut self, number: u64, took: Duration) {
        self.acknowledged.push(number);
        self.longest = self.longest.max(took);
        self.took.push(took);
    }
}

impl Tenant {
    /// Starts a tenant that writes so often. It begins with the first of its `endpoints`.
    pub fn start(name: &str, endpoints: &[String], period: Duration) -> Tenant {
        let (seen, stop): (Arc<Mutex<Seen>>, Arc<AtomicBool>) = Default::default();
        let channels = endpoints.iter().map(|url| support::channel(url)).collect();
        let client = Client { channels, at: 0, number: 0, seen: Arc::clone(&seen) };
        let task = tokio::spawn(client.run(period, Arc::clone(&stop)));
        Tenant { name: name.to_owned(), seen, stop, task }
    }

    /// What it saw so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.seen.lock().unwrap().acknowledged.len()
    }

    /// Lets it finish what it does.
    pub async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        Arc::try_unwrap(self.seen).unwrap().into_inner().unwrap()
    }
}

struct Client {
    channels: Vec<Channel>,
    at: usize,
    number: u64,
    seen: Arc<Mutex<Seen>>,
}

impl Client {
    async fn run(mut self, period: Duration, stop: Arc<AtomicBool>) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            self.number += 1;
            let number = self.number;
            let began = Instant::now();
            if self.persist(Call::Put(number)).await.is_none() {
                continue;
            }
            self.seen.lock().unwrap().acknowledge(number, began.elapsed());
            if number.is_multiple_of(READ_EVERY) {
                self.read_back(number).await;
            }
        }
    }

    async fn read_back(&mut self, number: u64) {
        if self.persist(Call::Get(number)).await == Some(0) {
            self.fail(format!("write {number} was acknowledged and is not there"));
        }
    }

    /// Asks until there is an answer; `None` if what was said instead must not be.
    async fn persist(&mut self, call: Call) -> Option<usize> {
        let began = Instant::now();
        loop {
            let answer = timeout(PATIENCE, call.make(self.channels[self.at].clone())).await;
            let refusal = match answer {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("no answer"),
            };
            let said = format!("{:?}: {}", refusal.code(), refusal.message());
            if !may_be_retried(&refusal) || began.elapsed() > GIVES_UP_AFTER {
                self.fail(said);
                return None;
            }
            *self.seen.lock().unwrap().retried.entry(said).or_default() += 1;
            self.at = (self.at + 1) % self.channels.len();
            sleep(RETRY).await;
        }
    }

    fn fail(&self, what: String) {
        self.seen.lock().unwrap().failures.push(what);
    }
}

/// What a tenant asks for.
#[derive(Clone, Copy)]
enum Call {
    /// To write the key of this number.
    Put(u64),
    /// To read it.
    Get(u64),
}

impl Call {
    /// How many keys were written or found.
    async fn make(self, channel: Channel) -> Result<usize, Status> {
        let mut client = KvClient::new(channel);
        match self {
            Call::Put(number) => client.put(put(number)).await.map(|_| 1),
            Call::Get(number) => {
                let range = RangeRequest { key: key(number).into(), ..Default::default() };
                client.range(range).await.map(|found| found.get_ref().kvs.len())
            }
        }
    }
}

/// Whether the refusal promises that another try may help. A node that was killed breaks connections off.
fn may_be_retried(status: &Status) -> bool {
    let is_broken_off = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable || is_broken_off
}

/// Whether a retried refusal is what a change of leader looks like.
pub fn is_leader_change(said: &str) -> bool {
    said.strip_prefix("Unavailable: ").is_some_and(|said| LEADER_CHANGES.contains(&said))
}

fn key(number: u64) -> String {
    format!("{PREFIX}{number:08}")
}

fn put(number: u64) -> PutRequest {
    PutRequest { key: key(number).into(), value: vec![b'v'; VALUE_BYTES].into(), ..Default::default() }
}

/// Which acknowledged writes a keyspace lacks.
pub async fn lost(endpoint: &str, seen: &Seen) -> Vec<u64> {
    let mut client = KvClient::new(support::channel(endpoint)).max_decoding_message_size(usize::MAX);
    let all =
        RangeRequest { key: PREFIX.into(), range_end: "u".into(), keys_only: true, ..Default::default() };
    let found = client.range(all).await.unwrap().into_inner().kvs;
    let there =
        |number: &u64| found.binary_search_by(|kv| kv.key.as_ref().cmp(key(*number).as_bytes())).is_ok();
    seen.acknowledged.iter().copied().filter(|number| !there(number)).collect()
}

/// What all tenants together were told before they tried again.
pub fn retried<'a>(seen: impl IntoIterator<Item = &'a Seen>) -> BTreeMap<String, usize> {
    let mut sum = BTreeMap::new();
    for (said, times) in seen.into_iter().flat_map(|seen| &seen.retried) {
        *sum.entry(said.clone()).or_default() += times;
    }
    sum
}
