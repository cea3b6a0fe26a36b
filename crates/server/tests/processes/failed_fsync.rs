//! A disk that refuses an fsync: the node says so and ends, at once and with a failure as its exit code, and nothing that
//! it or the others acknowledged is lost.
//!
//! After a failed fsync the kernel may have thrown the data away and call the next fsync a success, so going on, or trying
//! again, would acknowledge what is not on disk. The failure is made by a library, `failing_fsync.c`, that stands
//! between the shipped binary and the C library; so this needs a C compiler (`cc`) and Linux.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hadron_proto::etcdserverpb::PutRequest;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_sim::history::Operation;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support;
use crate::support::judge::{history_of_all, judge};
use crate::support::load::Load;
use crate::support::{Cluster, eventually};

/// Clients that work at the same time.
const CLIENTS: u64 = 16;

/// A disk that can be told to fail.
struct FailingDisk {
    directory: TempDir,
    library: PathBuf,
}

impl FailingDisk {
    fn new() -> FailingDisk {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("failing_fsync.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/processes/failing_fsync.c");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
        let compiled = compile.arg("-ldl").status().expect("this test needs a C compiler, `cc`");
        assert!(compiled.success(), "cc refused failing_fsync.c");
        FailingDisk { directory, library }
    }

    fn trigger(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("fail-{node}"))
    }

    /// Puts the disk under every node of `cluster`, which must not run.
    fn put_under(&self, cluster: &mut Cluster) {
        for number in 0..cluster.nodes.len() {
            let variables = [("LD_PRELOAD", self.library.clone()), ("FAILING_FSYNC", self.trigger(number))];
            cluster.nodes[number].set_environment(&variables);
        }
    }

    /// From now on every fsync of a file below a directory of this name fails on this node.
    fn fail(&self, node: usize, below: &str) {
        // Renamed into place, so that it is never seen half written.
        let aside = self.directory.path().join("aside");
        std::fs::write(&aside, format!("/{below}/")).unwrap();
        std::fs::rename(aside, self.trigger(node)).unwrap();
    }

    fn mend(&self, node: usize) {
        std::fs::remove_file(self.trigger(node)).unwrap();
    }
}

async fn start(count: usize) -> (Cluster, FailingDisk) {
    let disk = FailingDisk::new();
    let mut cluster = Cluster::start(count, &[]).await;
    cluster.nodes.iter_mut().for_each(support::Node::kill);
    disk.put_under(&mut cluster);
    cluster.nodes.iter_mut().for_each(support::Node::start);
    for node in &cluster.nodes {
        node.wait_until_serving().await;
    }
    (cluster, disk)
}

/// Waits until the node has ended by itself; it must have failed, saying all of `words`.
async fn assert_ends_saying(cluster: &mut Cluster, node: usize, words: &[&str]) {
    let status = cluster.nodes[node].wait_for_exit().await;
    assert_eq!(status.code(), Some(1), "a failure, and no signal or panic: {status:?}");
    let log = cluster.nodes[node].log();
    for word in words {
        assert!(log.contains(word), "{word:?} is not in the log:\n{log}");
    }
    assert!(!log.contains("panicked"), "it ended in good order:\n{log}");
}

/// Holds what the clients saw against what all nodes show now.
async fn check(cluster: &Cluster, operations: &[Operation]) {
    cluster.wait_until_equal().await;
    judge(operations, &history_of_all(&cluster.nodes.iter().collect::<Vec<_>>()).await);
}

const LOG_FAILED: [&str; 3] = ["the write-ahead log failed", "Input/output error", "this node stops"];
const ENGINE_FAILED: [&str; 3] = ["engine", "Input/output error", "this node stops"];

#[tokio::test]
async fn a_leader_whose_log_cannot_be_synced_ends_and_the_others_go_on() {
    let (mut cluster, disk) = start(3).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 100).await;
    let leader = cluster.leader().await;
    disk.fail(leader, "wal");
    assert_ends_saying(&mut cluster, leader, &LOG_FAILED).await;
    let ended_at = load.now();
    eventually("writes go on", async || load.writes_since(ended_at + 50_000) > 20).await;
    disk.mend(leader);
    cluster.nodes[leader].start();
    cluster.nodes[leader].wait_until_serving().await;
    let operations = load.stop().await;
    check(&cluster, &operations).await;
}

#[tokio::test]
async fn a_single_node_acknowledges_nothing_after_a_failed_fsync_of_its_log() {
    let (mut cluster, disk) = start(1).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 100).await;
    disk.fail(0, "wal");
    let failed_at = load.now();
    assert_ends_saying(&mut cluster, 0, &LOG_FAILED).await;
    assert_eq!(
        load.writes_begun_since(failed_at),
        0,
        "nothing that began after the failure was acknowledged"
    );
    // It refuses to come up on a disk that still fails, and changes nothing.
    cluster.nodes[0].start();
    assert_ends_saying(&mut cluster, 0, &["Input/output error"]).await;
    disk.mend(0);
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    let again = load.now();
    eventually("the load goes on", async || load.writes_since(again) > 100).await;
    let operations = load.stop().await;
    check(&cluster, &operations).await;
}

#[tokio::test]
async fn a_node_whose_engine_cannot_be_synced_ends_with_its_log_whole() {
    let (mut cluster, disk) = start(1).await;
    let mut kv = KvClient::new(cluster.nodes[0].channel());
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 100).await;
    disk.fail(0, "engine");
    assert_ends_saying(&mut cluster, 0, &ENGINE_FAILED).await;
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    assert!(tokio::time::timeout(Duration::from_secs(5), kv.put(put)).await.is_ok_and(|put| put.is_err()));
    disk.mend(0);
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    let operations = load.stop().await;
    check(&cluster, &operations).await;
}

/// It said `stopped`, and its exit code was that of a success.
#[tokio::test]
async fn a_node_that_cannot_store_what_it_has_when_it_stops_fails() {
    let (mut cluster, disk) = start(1).await;
    let mut kv = KvClient::new(cluster.nodes[0].channel());
    kv.put(PutRequest { key: "k".into(), ..PutRequest::default() }).await.unwrap();
    disk.fail(0, "engine");
    cluster.nodes[0].signal(Signal::TERM);
    assert_ends_saying(&mut cluster, 0, &ENGINE_FAILED).await;
}
