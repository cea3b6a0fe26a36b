//! Torture: a cluster of real processes is hurt by a seeded plan while clients, watchers and holders of leases use it.
//! What they saw is judged by the checkers of `hadron-sim`; afterwards the cluster must be well again in bounded time.
//!
//! `docs/testing.md` has the faults, the environment variables, and what is checked.

mod members;
mod network;
mod patient;
mod plan;

use std::str::FromStr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use hadron_sim::history::Event;
use patient::Patient;
use plan::Plan;

use crate::support::contenders::{self, Contenders};
use crate::support::judge::{history_of_all, judge};
use crate::support::leases::{self, LeaseClients};
use crate::support::load::{Load, outages};
use crate::support::watchers::Watchers;
use crate::support::{Cluster, eventually, hash_kv};

const CLIENTS: u64 = 12;
const LEASE_CLIENTS: u64 = 4;
const WATCHERS: usize = 4;
const CONTENDERS: u64 = 8;
/// Clients ask another node when an answer takes longer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(3);
/// Longer times without an acknowledged write are shown.
const OUTAGE_SHOWN_US: u64 = 1_500_000;
/// After the last fault every client must be served within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(20);

fn variable<T: FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// What a cluster goes through.
struct Ordeal {
    seed: u64,
    nodes: usize,
    lasts: Duration,
}

impl Ordeal {
    /// As the environment has it, or chance; it lasts so many seconds unless told.
    fn new(seconds: u64) -> Ordeal {
        let seed = variable("TORTURE_SEED", rand::random_range(0..1_000_000));
        let nodes = variable("TORTURE_NODES", 3);
        let lasts = Duration::from_secs(variable("TORTURE_SECONDS", seconds));
        println!("TORTURE_SEED={seed} TORTURE_NODES={nodes} TORTURE_SECONDS={}", lasts.as_secs());
        Ordeal { seed, nodes, lasts }
    }

    /// Returns when the last fault is mended.
    async fn inflict(&self, patient: &mut Patient, load: &Load) {
        let began = Instant::now();
        for step in Plan::new(self.seed, self.nodes).take_while(|_| began.elapsed() < self.lasts) {
            patient.suffer(&step, load).await;
        }
    }
}

#[tokio::test]
async fn a_tortured_cluster_keeps_its_promises() {
    let ordeal = Ordeal::new(25);
    let (seed, nodes) = (ordeal.seed, ordeal.nodes);
    let mut patient = Patient::admit(nodes, seed).await;
    let endpoints = patient.cluster.endpoints();
    let load = Load::start_with(&endpoints, CLIENTS, CLIENT_PATIENCE);
    patient.set_clock(&load);
    let leases = LeaseClients::start(&endpoints, LEASE_CLIENTS, &load.recorder(), seed);
    let watchers = Watchers::start(&endpoints, WATCHERS, seed);
    eventually("the load runs", async || load.writes_since(0) > 100).await;

    ordeal.inflict(&mut patient, &load).await;
    let healed_at = load.now();
    eventually("every client is served", async || load.all_served_since(healed_at)).await;
    let healed_after = Duration::from_micros(load.now() - healed_at);
    patient.assert_alive();

    let stories = leases.finish().await;
    let operations = load.stop().await;
    for node in &patient.cluster.nodes {
        leases::wait_until_none(node).await;
    }
    let events = final_history(&patient.cluster).await;
    println!(
        "{} operations, {} events, {} leases; all clients served {healed_after:?} after the last fault; {:?}",
        operations.len(),
        events.len(),
        stories.len(),
        patient.tally,
    );
    for (from, to) in outages(&operations).filter(|(from, to)| to - from > OUTAGE_SHOWN_US) {
        println!(
            "no write was acknowledged for {:?} before {:.3}",
            Duration::from_micros(to - from),
            to as f64 / 1e6
        );
    }
    watchers.finish(&events).await.unwrap();
    judge(&operations, &events);
    leases::check(&stories, &operations).unwrap();
    assert!(healed_after < HEALED_WITHIN, "a client was served only after {healed_after:?}");
}

/// Nobody has the lock or leads while another does, whatever happens to the nodes that they asked for it.
#[tokio::test]
async fn in_a_tortured_cluster_nobody_holds_what_another_holds() {
    let ordeal = Ordeal::new(15);
    let mut patient = Patient::admit(ordeal.nodes, ordeal.seed).await;
    let endpoints = patient.cluster.endpoints();
    let load = Load::start_with(&endpoints, 2, CLIENT_PATIENCE);
    patient.set_clock(&load);
    let contenders = Contenders::start(&endpoints, CONTENDERS, &load.recorder(), ordeal.seed);
    eventually("both are got", async || contenders.got_since(0)).await;

    ordeal.inflict(&mut patient, &load).await;
    let healed_at = load.now();
    eventually("both are got again", async || contenders.got_since(healed_at)).await;
    let healed_after = Duration::from_micros(load.now() - healed_at);
    patient.assert_alive();
    let seen = contenders.finish().await;
    load.stop().await;
    println!(
        "the lock was held {} times, the leadership {}, {} of these after hanging up; {} looks; got again {healed_after:?} after the last fault; {:?}",
        seen.lock.len(),
        seen.election.len(),
        seen.after_hanging_up,
        seen.looks,
        patient.tally,
    );
    seen.check().unwrap();
    assert!(healed_after < HEALED_WITHIN, "nobody got one of them for {healed_after:?}");
    for node in &patient.cluster.nodes {
        leases::wait_until_none(node).await;
        contenders::assert_none_left(node).await;
    }
}

/// What all nodes show, which must be the same.
async fn final_history(cluster: &Cluster) -> Vec<Event> {
    cluster.wait_until_equal().await;
    let revision = cluster.nodes[0].status().await.unwrap().header.unwrap().revision;
    let hashes = join_all(cluster.nodes.iter().map(|node| hash_kv(node, revision))).await;
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "the nodes differ: {hashes:?}");
    history_of_all(&cluster.nodes.iter().collect::<Vec<_>>()).await
}
