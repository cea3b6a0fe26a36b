//! A tenant is moved from node to node while it is used: what its clients see.

use std::time::{Duration, Instant};

use hadron_proto::etcdserverpb as pb;
use hadron_sim::checkers::{durable_ack, linearizable, revision_order};
use hadron_sim::history::Event;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::{LeaseGrantRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest};

use crate::leases::{self, LeaseClients};
use crate::nodes::Pool;
use crate::support::load::{Load, longest_outage_us};
use crate::support::{channel, eventually, history};
use crate::tenants::{Tenant, is_leader_change, lost, retried};
use crate::watchers::Watchers;

const NODES: usize = 4;
const NAME: &str = "moving";
const CLIENTS: u64 = 6;
const LEASE_CLIENTS: u64 = 2;
const WATCHERS: usize = 4;
/// How often it is moved off the node that leads it.
const MOVES: usize = 3;
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);
const MOVED_WITHIN: Duration = Duration::from_secs(60);
/// A lease that lives through all of it, in seconds.
const LONG_TTL_S: i64 = 600;
/// Time between two writes of those who measure how long one can take.
const MEASURED_EVERY: Duration = Duration::from_millis(5);
/// Generous, for machines that do other things too; what is aimed at is half a second.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The name of the node that leads the tenant.
async fn leader(pool: &Pool) -> String {
    let mut found = None;
    eventually("the tenant is led", async || {
        let status = pool.status().await;
        found = status.nodes.into_iter().find(|node| node.leaders == 1).map(|node| node.name);
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Moves the tenant off the node that leads it. Returns how long that took.
async fn drain_leader(pool: &Pool, group: u64) -> Duration {
    let name = leader(pool).await;
    let began = Instant::now();
    pool.ctl(&["node", "drain", &name]);
    let is_gone = async || {
        let node = pool.node(&name).await;
        pool.status().await.leaving == 0 && node.is_some_and(|node| node.replicas == 0 && node.leaders == 0)
    };
    pool.within(MOVED_WITHIN, "the tenant is elsewhere", is_gone).await;
    pool.wait_until_whole(&[group], MOVED_WITHIN).await;
    pool.ctl(&["node", "undrain", &name]);
    began.elapsed()
}

async fn grant_long_lease(endpoint: &str) -> i64 {
    let mut leases = LeaseClient::new(channel(endpoint));
    let granted = leases.lease_grant(LeaseGrantRequest { ttl: LONG_TTL_S, id: 0 }).await.unwrap().into_inner();
    let put = PutRequest { key: "held".into(), value: "for long".into(), lease: granted.id, ..Default::default() };
    KvClient::new(channel(endpoint)).put(put).await.unwrap();
    granted.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_is_moved_goes_on_as_if_nothing_happened() {
    let pool = Pool::start(NODES, &[]).await;
    let (group, _) = pool.make(&[NAME.to_owned()]).await[NAME];
    pool.wait_until_whole(&[group], MOVED_WITHIN).await;
    let endpoints = pool.endpoints_of(NAME);
    let granted_at = Instant::now();
    let long_lease = grant_long_lease(&endpoints[0]).await;
    let load = Load::start_with(&endpoints, CLIENTS, CLIENT_PATIENCE);
    let leases = LeaseClients::start(&endpoints, LEASE_CLIENTS, &load.recorder(), 7);
    let watchers = Watchers::start(&endpoints, WATCHERS, 7);
    // Each knows one node alone, and one of these never has a replica.
    let start = |endpoint: &String| Tenant::start(NAME, std::slice::from_ref(endpoint), MEASURED_EVERY);
    let measuring = start(&endpoints[0]);
    eventually("the load runs", async || load.writes_since(0) > 100).await;

    for number in 1..=MOVES {
        let took = drain_leader(&pool, group).await;
        println!("move {number}: {took:?}, the longest write so far {:?}", measuring.seen().longest);
    }

    let measured = measuring.stop().await;
    let stories = leases.finish().await;
    let operations = load.stop().await;
    eventually("only the long lease is left", async || {
        let answer = LeaseClient::new(channel(&endpoints[0])).lease_leases(LeaseLeasesRequest {}).await;
        answer.is_ok_and(|answer| answer.get_ref().leases.len() == 1)
    })
    .await;
    let ask = LeaseTimeToLiveRequest { id: long_lease, keys: true };
    let left = LeaseClient::new(channel(&endpoints[0])).lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!(left.keys, ["held"]);
    let elapsed = granted_at.elapsed().as_secs() as i64;
    assert!(left.ttl >= LONG_TTL_S - elapsed - 1, "{} s are left after {elapsed} s", left.ttl);

    let mut histories = Vec::new();
    for endpoint in &endpoints {
        let range = RangeRequest { key: "held".into(), ..Default::default() };
        let read = KvClient::new(channel(endpoint)).range(range).await.unwrap().into_inner();
        histories.push(history(channel(endpoint), read.header.unwrap().revision).await);
    }
    assert!(histories.iter().all(|events| *events == histories[0]), "the nodes show different histories");
    let events = &histories[0];
    watchers.finish(events).await.unwrap();
    let pause = Duration::from_micros(longest_outage_us(&operations));
    println!(
        "{} operations, {} events, {} leases; of {} writes one after the other the longest took {:?}; the longest time without \
         an acknowledged write was {pause:?}; retried: {:?}",
        operations.len(),
        events.len(),
        stories.len(),
        measured.acknowledged.len(),
        measured.longest,
        measured.retried,
    );
    revision_order::check_events(events).unwrap();
    // The load's own.
    let is_recorded = |event: &&Event| event.key.starts_with(b"k") || event.key.starts_with(b"lease/");
    let events: Vec<Event> = events.iter().filter(is_recorded).cloned().collect();
    let events = &events[..];
    durable_ack::check(&operations, events).unwrap();
    revision_order::check_responses(&operations).unwrap();
    linearizable::check(&operations, events).unwrap();
    leases::check(&stories, &operations).unwrap();
    assert_eq!(lost(&endpoints[0], &measured).await, [0; 0]);
    assert!(measured.failures.is_empty(), "{:?}", measured.failures);
    let others = retried([&measured]).into_keys().find(|said| !is_leader_change(said));
    assert_eq!(others, None, "clients see leaders change, and nothing else");
    assert!(measured.longest < PAUSE_MAX && pause < PAUSE_MAX, "{:?}, {pause:?}", measured.longest);
}
