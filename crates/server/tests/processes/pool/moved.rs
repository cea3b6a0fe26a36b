//! A tenant is moved from node to node while it is used: what its clients see.

use std::time::{Duration, Instant};

use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::{LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest};
use hadron_proto::hadron as pb;
use pb::pool_client::PoolClient;

use super::nodes::Pool;
use super::tenants::{Tenant, is_leader_change, lost, retried};
use crate::support::judge::judge;
use crate::support::leases::{self, LeaseClients};
use crate::support::load::{Load, longest_outage_us};
use crate::support::watchers::Watchers;
use crate::support::{channel, eventually, history};

const NODES: usize = 4;
/// The tenant whose history is checked.
const CHECKED: &str = "checked";
/// The tenant whose writes are measured one after the other, by a client that knows one node alone, and that has a lease for long.
const MEASURED: &str = "measured";
const CLIENTS: u64 = 6;
const LEASE_CLIENTS: u64 = 2;
const WATCHERS: usize = 4;
/// How often each is moved off the node that leads it.
const MOVES: usize = 2;
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);
/// Usually ten seconds; but nobody is given anything whose disk takes long to fsync, as on a machine that builds programs at the time.
const MOVED_WITHIN: Duration = Duration::from_secs(180);
/// A lease that lives through all of it, in seconds.
const LONG_TTL_S: i64 = 600;
/// Time between two writes of those who measure how long one can take.
const MEASURED_EVERY: Duration = Duration::from_millis(5);
/// Generous, for machines that do other things too; what is aimed at is half a second.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The node that leads a tenant.
async fn leader(pool: &Pool, tenant: &str) -> pb::BalanceNode {
    let mut found = None;
    eventually("the tenant is led", async || {
        let mut leader = 0;
        for node in pool.running() {
            let get = pb::KeyspaceGetRequest { name: tenant.to_owned() };
            let answer = PoolClient::new(node.channel()).keyspace_get(get).await.unwrap().into_inner();
            leader = leader.max(answer.leader);
        }
        found = pool.status().await.nodes.into_iter().find(|node| node.id == leader);
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Moves a tenant off the node that leads it. Returns how long that took.
async fn drain_leader(pool: &Pool, tenant: &str, groups: &[u64]) -> Duration {
    let name = leader(pool, tenant).await.name;
    let began = Instant::now();
    pool.ctl(&["node", "drain", &name]);
    let is_gone = async || {
        let node = pool.node(&name).await;
        pool.status().await.leaving == 0 && node.is_some_and(|node| node.replicas == 0 && node.leaders == 0)
    };
    pool.within(MOVED_WITHIN, "the tenant is elsewhere", is_gone).await;
    pool.wait_until_whole(groups, MOVED_WITHIN).await;
    pool.ctl(&["node", "undrain", &name]);
    began.elapsed()
}

async fn grant_long_lease(endpoint: &str) -> i64 {
    let mut leases = LeaseClient::new(channel(endpoint));
    let granted =
        leases.lease_grant(LeaseGrantRequest { ttl: LONG_TTL_S, id: 0 }).await.unwrap().into_inner();
    let put =
        PutRequest { key: "held".into(), value: "for long".into(), lease: granted.id, ..Default::default() };
    KvClient::new(channel(endpoint)).put(put).await.unwrap();
    granted.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_is_moved_goes_on_as_if_nothing_happened() {
    let pool = Pool::start(NODES, &[]).await;
    let made = pool.make(&[CHECKED, MEASURED].map(str::to_owned)).await;
    let groups: Vec<u64> = made.values().map(|(group, _)| *group).collect();
    pool.wait_until_whole(&groups, MOVED_WITHIN).await;
    let endpoints = pool.endpoints_of(CHECKED);
    let only = &pool.endpoints_of(MEASURED)[0];
    let granted_at = Instant::now();
    let long_lease = grant_long_lease(only).await;
    let load = Load::start_with(&endpoints, CLIENTS, CLIENT_PATIENCE);
    let leases = LeaseClients::start(&endpoints, LEASE_CLIENTS, &load.recorder(), 7);
    let watchers = Watchers::start(&endpoints, WATCHERS, 7);
    let measuring = Tenant::start(MEASURED, std::slice::from_ref(only), MEASURED_EVERY);
    eventually("the load runs", async || load.writes_since(0) > 100).await;

    for tenant in [CHECKED, MEASURED].repeat(MOVES) {
        let took = drain_leader(&pool, tenant, &groups).await;
        println!("{tenant} moved in {took:?}; the longest write so far took {:?}", measuring.seen().longest);
    }

    let measured = measuring.stop().await;
    let stories = leases.finish().await;
    let operations = load.stop().await;
    let ask = LeaseTimeToLiveRequest { id: long_lease, keys: true };
    let left = LeaseClient::new(channel(only)).lease_time_to_live(ask).await.unwrap().into_inner();
    assert_eq!(left.keys, ["held"]);
    let elapsed = granted_at.elapsed().as_secs() as i64;
    assert!(left.ttl >= LONG_TTL_S - elapsed - 1, "{} s are left after {elapsed} s", left.ttl);

    let mut histories = Vec::new();
    for endpoint in &endpoints {
        let range = RangeRequest { key: "k".into(), ..Default::default() };
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
    judge(&operations, events);
    leases::check(&stories, &operations).unwrap();
    assert_eq!(lost(only, &measured).await, [0; 0]);
    assert!(measured.failures.is_empty(), "{:?}", measured.failures);
    let others = retried([&measured]).into_keys().find(|said| !is_leader_change(said));
    assert_eq!(others, None, "clients see leaders change, and nothing else");
    assert!(measured.longest < PAUSE_MAX && pause < PAUSE_MAX, "{:?}, {pause:?}", measured.longest);
}
