//! Contenders for a lock and for an election, through the services of these names. Each takes a lease that it keeps alive, asks any node, hangs up
//! when it has waited long enough, asks another one with the same lease, and holds what it got for a while. When it held it is for `exclusion` to judge.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient as Leases;
use hadron_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest};
use hadron_proto::v3electionpb::election_client::ElectionClient;
use hadron_proto::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use hadron_proto::v3lockpb::lock_client::LockClient;
use hadron_proto::v3lockpb::{LockRequest, UnlockRequest};
use hadron_sim::checkers::exclusion::{self, Claim};
use hadron_sim::history::Violation;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use crate::support;
use crate::support::leases::keep_alive;
use crate::support::load::Recorder;

/// What is contended for.
const LOCK: &str = "contended-lock";
/// The same.
const ELECTION: &str = "contended-election";

/// Seconds that leases are granted for.
const TTL_S: i64 = 2;
/// The clock of a group counts whole milliseconds.
const ROUNDING_US: u64 = 2_000;
/// Leases of contenders have ids from here on.
const LEASES: i64 = 9_000_000_000;
/// How long an answer is waited for that comes at once.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a contender waits for what it wants, if it is not impatient.
const QUEUING_MAX: Duration = Duration::from_secs(5);
/// Between two tries of whatever failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Contenders at work.
pub struct Contenders {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What they all saw.
#[derive(Clone, Default)]
pub struct Seen {
    /// When the lock was held, and by whom.
    pub lock: Vec<Claim>,
    /// When who led.
    pub election: Vec<Claim>,
    /// How many of these were got by a lease's second call, or a later one.
    pub after_hanging_up: usize,
    /// Questions about what was held, the answers to which must show it.
    pub looks: usize,
    /// What a holder was told that cannot be.
    violation: Option<Violation>,
}

impl Contenders {
    pub fn start(endpoints: &[String], count: u64, recorder: &Arc<Recorder>, seed: u64) -> Contenders {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let contender = |number: u64| Contender {
            channels: endpoints.iter().map(|url| support::channel(url)).collect(),
            recorder: recorder.clone(),
            seen: seen.clone(),
            rng: SmallRng::seed_from_u64(seed ^ (number << 8)),
            lease: LEASES + number as i64 * 1_000_000,
        };
        let tasks = (0..count).map(|number| tokio::spawn(contender(number).run(stop.clone()))).collect();
        Contenders { stop, seen, tasks }
    }

    /// Whether both the lock and the leadership have been got after `moment`.
    pub fn got_since(&self, moment: u64) -> bool {
        let seen = self.seen.lock().unwrap();
        [&seen.lock, &seen.election].iter().all(|claims| claims.iter().any(|claim| claim.from > moment))
    }

    /// Lets each come to an end; what was seen.
    pub async fn finish(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            timeout(support::PATIENCE, task).await.expect("contenders come to an end").unwrap();
        }
        let seen = self.seen.lock().unwrap();
        seen.clone()
    }
}

impl Drop for Contenders {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Seen {
    /// Nobody held anything while another did, or was told that it does not hold what it held.
    ///
    /// # Errors
    /// Who did.
    pub fn check(&self) -> Result<(), Violation> {
        self.violation.clone().map_or(Ok(()), Err)?;
        exclusion::check(&self.lock)?;
        exclusion::check(&self.election)
    }
}

/// Nobody is in a queue any more.
pub async fn assert_none_left(node: &support::Node) {
    let range =
        RangeRequest { key: "contended-".into(), range_end: "contended.".into(), ..RangeRequest::default() };
    let left = KvClient::new(node.channel()).range(range).await.unwrap().into_inner().kvs;
    assert!(left.is_empty(), "{} has contenders whose leases have ended: {left:?}", node.name);
}

struct Contender {
    channels: Vec<Channel>,
    recorder: Arc<Recorder>,
    seen: Arc<Mutex<Seen>>,
    rng: SmallRng,
    lease: i64,
}

/// What a contender got.
enum Held {
    /// Under this key.
    Lock(Bytes),
    Leadership(LeaderKey),
}

impl Held {
    /// Of what, and under which key.
    fn place(&self) -> (&'static str, &Bytes) {
        match self {
            Held::Lock(key) => (LOCK, key),
            Held::Leadership(leader) => (ELECTION, &leader.key),
        }
    }
}

/// A lease that is kept alive until this is dropped.
struct Kept {
    /// On the recorder's clock.
    promised_until: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Kept {
    fn promised_until(&self) -> u64 {
        self.promised_until.load(Ordering::Relaxed)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Contender {
    async fn run(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            match self.granted().await {
                Some(kept) => self.contend(&kept).await,
                None => sleep(PAUSE).await,
            }
        }
    }

    /// Any node.
    fn channel(&mut self) -> Channel {
        self.channels[self.rng.random_range(0..self.channels.len())].clone()
    }

    /// A new lease.
    async fn granted(&mut self) -> Option<Kept> {
        self.lease += 1;
        let (id, invoked) = (self.lease, self.recorder.now());
        let mut leases = Leases::new(self.channel());
        let granted = leases.lease_grant(LeaseGrantRequest { ttl: TTL_S, id });
        let ttl_s = timeout(PATIENCE, granted).await.ok()?.ok()?.get_ref().ttl as u64;
        let ttl_us = ttl_s * 1_000_000 - ROUNDING_US;
        let promised_until = Arc::new(AtomicU64::new(invoked + ttl_us));
        let (promised, channels, recorder) =
            (promised_until.clone(), self.channels.clone(), self.recorder.clone());
        let mut rng = SmallRng::from_rng(&mut self.rng);
        let task = tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(rng.random_range(100..900))).await;
                let leases = Leases::new(channels[rng.random_range(0..channels.len())].clone());
                let invoked = recorder.now();
                match timeout(PATIENCE, keep_alive(leases, id)).await {
                    Ok(Some(true)) => promised.fetch_max(invoked + ttl_us, Ordering::Relaxed),
                    Ok(Some(false)) => return,
                    Ok(None) | Err(_) => continue,
                };
            }
        });
        Some(Kept { promised_until, task })
    }

    /// Asks until it gets what it wants, or its lease may have ended.
    async fn contend(&mut self, kept: &Kept) {
        let wants_lock = self.rng.random_bool(0.5);
        let mut calls = 0;
        while self.recorder.now() < kept.promised_until() {
            calls += 1;
            let patience = match self.rng.random_bool(0.4) {
                true => Duration::from_millis(self.rng.random_range(1..300)),
                false => QUEUING_MAX,
            };
            match timeout(patience, self.ask(wants_lock, calls)).await {
                Ok(Ok((held, token))) => return self.hold(kept, held, token, calls > 1).await,
                Ok(Err(_)) => sleep(PAUSE).await,
                Err(_) => {}
            }
        }
    }

    /// Waits for the lock or the leadership; with its fencing token.
    async fn ask(&mut self, wants_lock: bool, calls: usize) -> Result<(Held, i64), Status> {
        let (lease, channel) = (self.lease, self.channel());
        if wants_lock {
            let request = LockRequest { name: LOCK.into(), lease };
            let locked = LockClient::new(channel).lock(request).await?.into_inner();
            return Ok((Held::Lock(locked.key), locked.header.unwrap().revision));
        }
        // Each call says something else.
        let value = format!("{lease} for the {calls}. time").into();
        let request = CampaignRequest { name: ELECTION.into(), lease, value };
        let elected = ElectionClient::new(channel).campaign(request).await?.into_inner();
        let leader = elected.leader.unwrap();
        let token = leader.rev;
        Ok((Held::Leadership(leader), token))
    }

    /// Holds it for a while, and lets go of it in one way or another.
    async fn hold(&mut self, kept: &Kept, held: Held, token: i64, after_hanging_up: bool) {
        let from = self.recorder.now();
        let until = from + self.rng.random_range(0..600_000);
        while self.recorder.now() < until.min(kept.promised_until()) {
            self.look(kept, &held).await;
            sleep(Duration::from_millis(self.rng.random_range(1..100))).await;
        }
        // If it neither lets go nor keeps the lease, that ends with its time.
        let way = self.rng.random_range(0..4);
        let is_kept = way < 3;
        let until =
            if is_kept { self.recorder.now().min(kept.promised_until()) } else { kept.promised_until() };
        let claim = Claim { holder: self.lease, from, until, token };
        {
            let mut seen = self.seen.lock().unwrap();
            seen.after_hanging_up += usize::from(after_hanging_up);
            match held {
                Held::Lock(_) => seen.lock.push(claim),
                Held::Leadership(_) => seen.election.push(claim),
            }
        }
        let channel = self.channel();
        let letting_go = async {
            match (way, held) {
                (0, _) => {
                    drop(Leases::new(channel).lease_revoke(LeaseRevokeRequest { id: self.lease }).await)
                }
                (1 | 2, Held::Lock(key)) => {
                    drop(LockClient::new(channel).unlock(UnlockRequest { key }).await)
                }
                (1 | 2, Held::Leadership(leader)) => {
                    let resign = ResignRequest { leader: Some(leader) };
                    drop(ElectionClient::new(channel).resign(resign).await);
                }
                _ => {}
            }
        };
        drop(timeout(PATIENCE, letting_go).await);
    }

    /// Whoever holds something is shown as its holder, and may speak as the leader, as long as its lease is promised to live.
    async fn look(&mut self, kept: &Kept, held: &Held) {
        let mut elections = ElectionClient::new(self.channel());
        let found = match held {
            Held::Leadership(leader) if self.rng.random_bool(0.5) => {
                let value = format!("{} says {}", leader.lease, self.rng.random::<u32>()).into();
                let proclaim = ProclaimRequest { leader: Some(leader.clone()), value };
                let said = timeout(PATIENCE, elections.proclaim(proclaim)).await;
                let is_refused =
                    matches!(&said, Ok(Err(status)) if status.message() == "election: not leader");
                is_refused.then(|| "may not speak".to_owned())
            }
            // The keys of a lock's queue are those of an election's.
            Held::Lock(_) | Held::Leadership(_) => {
                let (name, own) = held.place();
                match timeout(PATIENCE, elections.leader(LeaderRequest { name: name.into() })).await {
                    Ok(Ok(leader)) => {
                        let first = leader.into_inner().kv.unwrap();
                        (first.key != own).then(|| format!("is told that {:?} is the first", first.key))
                    }
                    Ok(Err(status)) if status.message() == "election: no leader" => {
                        Some("is told that nobody is".into())
                    }
                    Ok(Err(_)) | Err(_) => None,
                }
            }
        };
        // What came later than the promise says nothing.
        let mut seen = self.seen.lock().unwrap();
        seen.looks += 1;
        if let Some(found) = found.filter(|_| self.recorder.now() < kept.promised_until()) {
            let (at, (_, key)) = (self.recorder.now() as f64 / 1e6, held.place());
            let found = format!("{at:.6}: lease {}, which holds {key:?}, {found}", self.lease);
            seen.violation.get_or_insert(Violation { guarantee: "exclusion", found });
        }
    }
}
