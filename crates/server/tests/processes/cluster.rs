//! Three real processes: what must survive when they are killed.
//!
//! What the clients saw is judged by the checkers of `hadron-sim`, against the complete history of the keyspace that a
//! watch from the first revision shows afterwards.

use std::time::Duration;

use hadron_proto::etcdserverpb::PutRequest;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_sim::history::Operation;

use crate::support;
use crate::support::ctl::ctl;
use crate::support::judge::{history_of_all, judge};
use crate::support::load::{Load, longest_outage_us};
use crate::support::{Cluster, PATIENCE, eventually};

/// Clients that work at the same time.
const CLIENTS: u64 = 32;
/// Kills of the leader.
const LEADER_KILLS: usize = 10;
/// Writes must go on within this time after a kill.
const OUTAGE_MAX: Duration = Duration::from_secs(3);
/// Writes of a KiB that a node misses in the test of catching up; more with `HADRON_TEST_MISSED_WRITES`. The log is kept for 16 MiB before
/// what the engine made durable last, which may be seconds ago.
const MISSED_WRITES: u64 = 50_000;

/// Holds what the clients saw against what all nodes show now.
async fn check(cluster: &Cluster, operations: &[Operation]) {
    cluster.wait_until_equal().await;
    judge(operations, &history_of_all(&cluster.nodes.iter().collect::<Vec<_>>()).await);
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_leader_is_killed_ten_times() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 100).await;
    for _ in 0..LEADER_KILLS {
        let leader = cluster.leader().await;
        let killed_at = load.now();
        cluster.nodes[leader].kill();
        eventually("writes go on", async || load.writes_since(killed_at + 50_000) > 20).await;
        cluster.nodes[leader].start();
        cluster.nodes[leader].wait_until_serving().await;
    }
    let operations = load.stop().await;
    let outage = Duration::from_micros(longest_outage_us(&operations));
    println!("{} operations, longest outage of writes {outage:?}", operations.len());
    check(&cluster, &operations).await;
    assert!(outage < OUTAGE_MAX, "writes stood still for {outage:?}");
}

#[tokio::test]
async fn leadership_goes_to_whom_it_is_given() {
    let cluster = Cluster::start(3, &[]).await;
    for _ in 0..2 {
        let leader = cluster.leader().await;
        let target = (leader + 1) % cluster.nodes.len();
        let id = cluster.nodes[target].status().await.unwrap().header.unwrap().member_id;
        ctl(&cluster.nodes[leader].client_url, &["move-leader", &format!("{id:x}")]);
        eventually("the other one leads", async || cluster.leader().await == target).await;
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_all_nodes_are_killed() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    for _ in 0..2 {
        let before = load.now();
        eventually("the load runs", async || load.writes_since(before) > 500).await;
        cluster.nodes.iter_mut().for_each(support::Node::kill);
        cluster.nodes.iter_mut().for_each(support::Node::start);
        for node in &cluster.nodes {
            node.wait_until_serving().await;
        }
    }
    let after = load.now();
    eventually("the load goes on", async || load.writes_since(after) > 100).await;
    let operations = load.stop().await;
    check(&cluster, &operations).await;
}

/// Writes `count` keys of 1 KiB with many requests at a time.
async fn write_many(cluster: &Cluster, through: usize, count: u64) {
    const AT_A_TIME: u64 = 64;
    let channel = cluster.nodes[through].channel();
    let writers = (0..AT_A_TIME).map(|writer| {
        let mut client = KvClient::new(channel.clone());
        tokio::spawn(async move {
            for number in (writer..count).step_by(AT_A_TIME as usize) {
                let key = format!("many/{:06}", number % 5_000);
                let put =
                    PutRequest { key: key.into(), value: vec![b'x'; 1024].into(), ..Default::default() };
                client.put(put).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_missed_many_writes_catches_up_while_the_others_serve() {
    let missed = std::env::var("HADRON_TEST_MISSED_WRITES").ok();
    let missed = missed.map_or(MISSED_WRITES, |text| text.parse().unwrap());
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let (away, stays) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[away].kill();
    write_many(&cluster, stays, missed).await;
    let load = Load::start(&cluster.endpoints()[..], 4);
    cluster.nodes[away].start();
    let goal = cluster.nodes[leader].status().await.unwrap().header.unwrap().revision;
    let deadline = std::time::Instant::now() + 10 * PATIENCE;
    loop {
        let status = cluster.nodes[away].status().await;
        if status.and_then(|status| status.header).is_some_and(|header| header.revision >= goal) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "it does not catch up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(load.writes_since(0) > 0, "the others served meanwhile");
    load.stop().await;
    cluster.wait_until_equal().await;
    let snapshots = cluster.nodes[away].counter("hadron_snapshots_received_total").await;
    assert!(snapshots > 0, "the log should have been cut by then");
    // What the log's tail does not hold is large enough for more than one.
    let has_rounds = |line: &str| line.contains("sent a snapshot") && !line.contains(r#""rounds":1}"#);
    let in_rounds = cluster.nodes.iter().any(|node| node.log().lines().any(has_rounds));
    assert!(in_rounds, "all that was written meanwhile was left to the log");
    let mut hashes = Vec::new();
    for node in &cluster.nodes {
        hashes.push(support::hash_kv(node, goal).await);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "the nodes differ: {hashes:?}");
}
