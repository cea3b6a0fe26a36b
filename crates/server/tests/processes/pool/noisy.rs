//! A tenant that asks for ten times what it may have, and its neighbour on the same nodes. `bench/noisy` measures what it costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hadron_proto::etcdserverpb::PutRequest;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::interval;
use tonic::Code;
use tonic::transport::Channel;

use super::nodes::Pool;
use super::tenants::Tenant;
use crate::support::{channel, eventually};

/// Requests a second that each node takes from the noisy tenant.
const LIMIT: u32 = 20;
/// Time between two writes of the quiet one, and how many are looked at.
const PERIOD: Duration = Duration::from_millis(10);
const WRITES: usize = 400;

/// A tenant that asks one node for ten times its limit.
struct Noise {
    served: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Noise {
    fn start(endpoint: &str) -> Noise {
        let (served, refused): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let counts = (Arc::clone(&served), Arc::clone(&refused));
        let task = tokio::spawn(ask(channel(endpoint), counts, Arc::clone(&stop)));
        Noise { served, refused, stop, task }
    }

    /// Requests that were served and refused.
    async fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        (self.served.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

async fn ask(
    channel: Channel,
    (served, refused): (Arc<AtomicUsize>, Arc<AtomicUsize>),
    stop: Arc<AtomicBool>,
) {
    let mut ticks = interval(Duration::from_secs(1) / (10 * LIMIT));
    let mut asked = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let (mut client, served, refused) = (KvClient::new(channel.clone()), served.clone(), refused.clone());
        asked.spawn(async move {
            let put = PutRequest { key: "loud".into(), value: vec![0; 1000].into(), ..Default::default() };
            match client.put(put).await {
                Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    refused.fetch_add(1, Ordering::Relaxed)
                }
            }
        });
    }
    asked.join_all().await;
}

/// The 99th percentile of the last writes.
fn p99(took: &[Duration]) -> Duration {
    let mut took = took.to_vec();
    took.sort();
    took[took.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_tenant_is_held_to_its_limit_and_its_neighbour_is_served() {
    let pool = Pool::start(3, &[]).await;
    pool.make(&["quiet", "noisy"].map(str::to_owned)).await;
    pool.ctl(&["keyspace", "update", "noisy", &format!("--requests-per-second-max={LIMIT}")]);
    let quiet = Tenant::start("quiet", &pool.endpoints_of("quiet"), PERIOD);
    eventually("writes without noise", async || quiet.acknowledged() > WRITES).await;
    let alone = quiet.seen().took;

    let noises: Vec<Noise> =
        pool.endpoints_of("noisy").iter().map(|endpoint| Noise::start(endpoint)).collect();
    eventually("somebody is refused", async || {
        noises.iter().all(|noise| noise.refused.load(Ordering::Relaxed) > 0)
    })
    .await;
    let since = quiet.acknowledged();
    eventually("writes beside the noise", async || quiet.acknowledged() > since + WRITES).await;
    for noise in noises {
        let (served, refused) = noise.stop().await;
        assert!(served > 0 && refused > served, "{served} served, {refused} refused");
    }
    let seen = quiet.stop().await;
    println!("p99 {:?} alone, {:?} beside the noise", p99(&alone), p99(&seen.took[since..]));
    assert!(seen.failures.is_empty() && seen.retried.is_empty(), "{:?} {:?}", seen.failures, seen.retried);
}
