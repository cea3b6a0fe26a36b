//! Load is spread over the nodes as they come, are to go, and die.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::nodes::{Pool, is_even, shares};
use super::tenants::{Seen, Tenant, is_leader_change, lost, retried};
use crate::support::eventually;

const NODES: usize = 5;
const KEYSPACES: usize = 40;
/// Tenants that are busy, and led by one node if it leads so many.
const BUSY: usize = 10;
/// Time between two writes of a busy tenant, and of any other.
const BUSY_PERIOD: Duration = Duration::from_millis(66);
const PERIOD: Duration = Duration::from_secs(1);
/// Writes after which the load is known.
const KNOWN_AFTER: usize = 1_500;
/// In which load must be spread.
const EVEN_WITHIN: Duration = Duration::from_secs(60);
/// In which a node must be filled, emptied, or replaced. Two replicas come to a node at a time, every five seconds.
const MOVED_WITHIN: Duration = Duration::from_secs(240);
/// A node that was filled carries this part of the mean.
const FILLED: f64 = 0.6;

/// One tenant for each keyspace. Some of those that the same node leads are busy, so that there is something to do.
fn start_tenants(pool: &Pool, made: &BTreeMap<String, (u64, u64)>) -> Vec<Tenant> {
    let mut led: BTreeMap<u64, usize> = BTreeMap::new();
    made.values().for_each(|(_, leader)| *led.entry(*leader).or_default() += 1);
    led.remove(&0);
    let busiest = led.into_iter().max_by_key(|(_, count)| *count).map(|(node, _)| node);
    let mut names: Vec<&String> = made.keys().collect();
    names.sort_by_key(|name| Some(made[*name].1) != busiest);
    let start = |(rank, name): (usize, &String)| {
        let mut endpoints = pool.endpoints_of(name);
        endpoints.rotate_left(rank % NODES);
        Tenant::start(name, &endpoints, if rank < BUSY { BUSY_PERIOD } else { PERIOD })
    };
    names.into_iter().enumerate().map(start).collect()
}

fn all_seen(tenants: &[Tenant]) -> Vec<Seen> {
    tenants.iter().map(Tenant::seen).collect()
}

/// Nobody was told anything that must not be, and while no node died nothing but that a leader changed.
fn check(tenants: &[Tenant], what: &str) {
    let seen = all_seen(tenants);
    let retried = retried(&seen);
    let writes: usize = seen.iter().map(|seen| seen.acknowledged.len()).sum();
    let longest = seen.iter().map(|seen| seen.longest).max().unwrap();
    println!("{what}: {writes} writes, the longest took {longest:?}; retried: {retried:?}");
    let failures: Vec<&String> = seen.iter().flat_map(|seen| &seen.failures).collect();
    assert!(failures.is_empty(), "{what}: {failures:?}");
}

async fn wait_until_served(tenants: &[Tenant]) {
    let before: Vec<usize> = tenants.iter().map(Tenant::acknowledged).collect();
    eventually("every tenant is served", async || {
        tenants.iter().zip(&before).all(|(tenant, before)| tenant.acknowledged() > *before)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_is_spread_while_nodes_come_and_go() {
    let patience = [("--balance-cool-down", "10s"), ("--balance-grace-period", "5s")];
    let mut pool = Pool::start(NODES, &patience).await;
    let names: Vec<String> = (0..KEYSPACES).map(|number| format!("tenant-{number}")).collect();
    let began = Instant::now();
    let made = pool.make(&names).await;
    println!("{KEYSPACES} keyspaces made in {:?}", began.elapsed());
    let groups: Vec<u64> = made.values().map(|(group, _)| *group).collect();
    pool.wait_until_whole(&groups, MOVED_WITHIN).await;

    pool.ctl(&["balance", "pause"]);
    let tenants = start_tenants(&pool, &made);
    let writes = || tenants.iter().map(Tenant::acknowledged).sum::<usize>();
    pool.within(EVEN_WITHIN, "the load is known", async || writes() > KNOWN_AFTER).await;
    wait_until_served(&tenants).await;
    assert!(!is_even(&pool.status().await), "{}", shares(&pool.status().await));
    println!("before: {}", shares(&pool.status().await));
    pool.ctl(&["balance", "resume"]);
    let even = async || is_even(&pool.status().await);
    let took = pool.within(EVEN_WITHIN, "the load is spread", even).await;
    println!("spread {took:?} later: {}", shares(&pool.status().await));
    check(&tenants, "spreading");
    let retried_while_all_live = retried(&all_seen(&tenants));
    let others = retried_while_all_live.keys().find(|said| !is_leader_change(said));
    assert_eq!(others, None, "clients see leaders change, and nothing else");

    let sixth = pool.join().await;
    let name = pool.cluster.nodes[sixth].name.clone();
    let filled = async || {
        let status = pool.status().await;
        let node = status.nodes.iter().find(|node| node.name == name);
        node.is_some_and(|node| node.load > FILLED * status.mean && node.replicas > 0) && is_even(&status)
    };
    let took = pool.within(MOVED_WITHIN, "the sixth node is filled", filled).await;
    println!("filled after {took:?}: {}", shares(&pool.status().await));
    check(&tenants, "filling");

    pool.ctl(&["node", "drain", "n1"]);
    let emptied = async || {
        let node = pool.node("n1").await;
        pool.status().await.leaving == 0 && node.is_some_and(|node| node.replicas == 0 && node.leaders == 0)
    };
    let took = pool.within(MOVED_WITHIN, "n1 is empty", emptied).await;
    pool.wait_until_whole(&groups, MOVED_WITHIN).await;
    println!("emptied after {took:?}: {}", shares(&pool.status().await));
    check(&tenants, "emptying");
    let retried_while_all_live = retried(&all_seen(&tenants));
    let others = retried_while_all_live.keys().find(|said| !is_leader_change(said));
    assert_eq!(others, None, "clients see leaders change, and nothing else");
    pool.ctl(&["node", "undrain", "n1"]);

    pool.cluster.nodes[2].kill();
    let began = Instant::now();
    pool.wait_until_whole(&groups, MOVED_WITHIN).await;
    println!("rebuilt {:?} after the kill: {}", began.elapsed(), shares(&pool.status().await));
    check(&tenants, "rebuilding");
    // What was rebuilt counts: without it some keyspaces would have one replica left of three.
    pool.cluster.nodes[3].kill();
    wait_until_served(&tenants).await;
    check(&tenants, "after another loss");

    let stop = async |tenant: Tenant| (pool.endpoints_of(&tenant.name).pop().unwrap(), tenant.stop().await);
    for (endpoint, seen) in join_all(tenants.into_iter().map(stop)).await {
        assert_eq!(lost(&endpoint, &seen).await, [0; 0], "acknowledged writes are lost");
    }
    let moves = pool.moves().await;
    let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
    moves.iter().for_each(|one| *causes.entry(&one.cause).or_default() += 1);
    println!("moves: {causes:?}");
    assert!(moves.iter().all(|one| !one.reason.is_empty() && !one.cause.is_empty()));
    assert!(["drained", "lost"].iter().all(|cause| causes.contains_key(cause)), "{causes:?}");
    let shown: serde_json::Value =
        serde_json::from_str(&pool.ctl(&["balance", "history", "-w", "json"])).unwrap();
    let shown = shown["moves"].as_array().unwrap();
    assert_eq!(shown.len(), moves.len());
    assert!(shown.iter().all(|one| one["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
}
