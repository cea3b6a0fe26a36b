//! Lease clients: each takes a lease, attaches a key to it, keeps it alive for a while, and then looks until the key is
//! gone. What they see of time goes into stories for `lease_promise`, what they see of keys into the common history.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hadron_proto::etcdserverpb::lease_client::LeaseClient as Leases;
use hadron_proto::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest};
use hadron_sim::checkers::lease_promise::{self, Lease, Renewal};
use hadron_sim::history::{Action, Operation, Outcome, Step, StepResult, Transaction, Violation};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tonic::transport::Channel;

use crate::support;
use crate::support::load::{Recorder, outages, perform};

/// Seconds that leases are granted for.
const TTL_S: i64 = 2;
/// Client numbers of lease clients in the history begin here.
const NUMBERS: u64 = 1_000_000;
/// Time between two looks at whether the key is gone.
const LOOK: Duration = Duration::from_millis(100);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// A server gives up a request after this at the latest; what was not acknowledged may happen until then.
const SERVER_GIVES_UP_US: u64 = 10_000_000;
/// How long after its time an expiry may take to be noticed, proposed and committed in a cluster that serves.
const EXPIRY_US: u64 = 3_000_000;
/// All processes have one clock.
const DRIFT_PPM: u64 = 0;
/// A time without an acknowledged write that is longer than this may be one without a leader, in which the clock of
/// leases stands still.
const OUTAGE_US: u64 = 100_000;

/// Lease clients at work.
pub struct LeaseClients {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Vec<Lease>>>,
}

impl LeaseClients {
    pub fn start(endpoints: &[String], count: u64, recorder: &Arc<Recorder>, seed: u64) -> LeaseClients {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number: u64| LeaseClient {
            number,
            granted: 0,
            channels: endpoints.iter().map(|url| support::channel(url)).collect(),
            node: 0,
            recorder: recorder.clone(),
            rng: SmallRng::seed_from_u64(seed ^ number),
            story: Lease::default(),
        };
        let tasks = (0..count).map(|number| tokio::spawn(client(number).run(stop.clone()))).collect();
        LeaseClients { stop, tasks }
    }

    /// Lets every client see its last lease through; what was seen of each lease.
    pub async fn finish(mut self) -> Vec<Lease> {
        self.stop.store(true, Ordering::Relaxed);
        let mut stories = Vec::new();
        for task in std::mem::take(&mut self.tasks) {
            let ended = timeout(support::PATIENCE, task).await;
            stories.extend(ended.expect("a cluster that is well ends every lease").unwrap());
        }
        stories
    }
}

impl Drop for LeaseClients {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Waits until `node` knows of no lease any more.
pub async fn wait_until_none(node: &support::Node) {
    support::eventually("every lease ends", async || {
        let answer = Leases::new(node.channel()).lease_leases(LeaseLeasesRequest {}).await;
        answer.is_ok_and(|answer| answer.get_ref().leases.is_empty())
    })
    .await;
}

/// Holds every story against the promise. While no writes were acknowledged, leases may live on.
pub fn check(stories: &[Lease], operations: &[Operation]) -> Result<(), Violation> {
    let outages: Vec<(u64, u64)> = outages(operations).collect();
    for story in stories {
        let stood_still_us = lease_promise::stood_still_us(story, &outages, OUTAGE_US);
        lease_promise::check(story, stood_still_us + EXPIRY_US, DRIFT_PPM)?;
    }
    Ok(())
}

struct LeaseClient {
    number: u64,
    granted: i64,
    channels: Vec<Channel>,
    node: usize,
    recorder: Arc<Recorder>,
    rng: SmallRng,
    /// Of the present lease.
    story: Lease,
}

impl LeaseClient {
    async fn run(mut self, stop: Arc<AtomicBool>) -> Vec<Lease> {
        let mut stories = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            self.move_on();
            self.granted += 1;
            let id = (self.number as i64 + 1) * 1_000_000 + self.granted;
            self.story = Lease { id, ..Lease::default() };
            if self.grant().await && self.attach().await {
                self.keep().await;
                self.look_until_gone().await;
            } else {
                sleep(LOOK).await;
            }
            stories.push(std::mem::take(&mut self.story));
        }
        stories
    }

    fn move_on(&mut self) {
        self.node = self.rng.random_range(0..self.channels.len());
    }

    fn leases(&self) -> Leases<Channel> {
        Leases::new(self.channels[self.node].clone())
    }

    /// Asks for the lease. False when there was no answer; what may have become of it then is followed no further.
    async fn grant(&mut self) -> bool {
        let invoked = self.recorder.now();
        // Its expiry may remove the key at any time from now on, as far as the order of operations is concerned.
        self.record(invoked, Action::Revoke(self.story.id), Outcome::Unknown);
        let request = LeaseGrantRequest { ttl: TTL_S, id: self.story.id };
        let answer = timeout(PATIENCE, self.leases().lease_grant(request)).await;
        let ttl = match &answer {
            Ok(Ok(granted)) => Some(granted.get_ref().ttl),
            _ => None,
        };
        self.story.ttl_us = ttl.unwrap_or(TTL_S) as u64 * 1_000_000;
        self.renewed(invoked, ttl.is_some());
        ttl.is_some()
    }

    async fn attach(&mut self) -> bool {
        let value = format!("held by {}", self.story.id);
        let step = Step::Put(self.key().into(), value.into(), self.story.id);
        let put = Action::Transaction(Transaction { then: vec![step], ..Transaction::default() });
        matches!(self.carry_out(put).await.1, Outcome::Done(_))
    }

    /// Keeps the lease alive a few times, on any node, until an answer does not come or says that it is gone.
    async fn keep(&mut self) {
        for _ in 0..self.rng.random_range(0..6) {
            sleep(Duration::from_millis(self.rng.random_range(50..1_500))).await;
            self.move_on();
            let invoked = self.recorder.now();
            let lives = timeout(PATIENCE, keep_alive(self.leases(), self.story.id)).await.ok().flatten();
            self.renewed(invoked, lives == Some(true));
            if lives == Some(false) {
                self.story.gone_by = Some(self.recorder.now());
            }
            if lives != Some(true) {
                return;
            }
        }
    }

    async fn look_until_gone(&mut self) {
        loop {
            self.move_on();
            let (invoked, outcome) = self.carry_out(Action::get(self.key())).await;
            if let Outcome::Done(response) = outcome {
                if !matches!(response.results.first(), Some(StepResult::Got(Some(_)))) {
                    self.story.gone_by.get_or_insert(self.recorder.now());
                    return;
                }
                self.story.alive_at = self.story.alive_at.max(Some(invoked));
            }
            sleep(LOOK).await;
        }
    }

    fn key(&self) -> String {
        format!("lease/{}", self.story.id)
    }

    /// Asks for an operation and writes it down; when it was asked and how it ended.
    async fn carry_out(&mut self, action: Action) -> (u64, Outcome) {
        let invoked = self.recorder.now();
        let outcome = perform(&self.channels[self.node], &action, PATIENCE).await;
        self.record(invoked, action, outcome.clone());
        (invoked, outcome)
    }

    fn record(&self, invoked: u64, action: Action, outcome: Outcome) {
        self.recorder.record(Operation {
            client: NUMBERS + self.number,
            keyspace: 1,
            node: self.node as u64,
            replica: None,
            invoked,
            returned: self.recorder.now(),
            action,
            outcome,
        });
    }

    fn renewed(&mut self, invoked: u64, acknowledged: bool) {
        let now = self.recorder.now();
        let returned = if acknowledged { now } else { now + SERVER_GIVES_UP_US };
        self.story.renewals.push(Renewal { invoked, returned, acknowledged });
    }
}

/// Whether the lease lives; `None` without an answer.
pub async fn keep_alive(mut leases: Leases<Channel>, id: i64) -> Option<bool> {
    let request = tokio_stream::once(LeaseKeepAliveRequest { id });
    let mut answers = leases.lease_keep_alive(request).await.ok()?.into_inner();
    answers.next().await?.ok().map(|answer| answer.ttl > 0)
}
