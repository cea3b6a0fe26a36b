//! Bad input over real gRPC and on the command line: each a clear error, etcd's own where etcd has one, nothing lost.

use std::path::Path;
use std::process::{Command, Output};

use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseRevokeRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, request_op,
};
use tonic::{Code, Status};

use crate::support::Cluster;

fn put(key: &'static str, value: impl Into<bytes::Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

fn txn(puts: &[PutRequest]) -> TxnRequest {
    let operation =
        |put: &PutRequest| RequestOp { request: Some(request_op::Request::RequestPut(put.clone())) };
    TxnRequest { success: puts.iter().map(operation).collect(), ..TxnRequest::default() }
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

#[tokio::test]
async fn requests_that_etcd_refuses_are_refused_in_its_words() {
    let cluster = Cluster::start(1, &[]).await;
    let mut kv = KvClient::new(cluster.nodes[0].channel());
    let revision = kv.put(put("a", "1")).await.unwrap().into_inner().header.unwrap().revision;

    assert_refused(kv.put(put("", "1")).await, Code::InvalidArgument, "etcdserver: key is not provided");
    assert_refused(
        kv.range(RangeRequest::default()).await,
        Code::InvalidArgument,
        "etcdserver: key is not provided",
    );
    assert_refused(
        kv.put(put("a", vec![b'x'; 1_700_000])).await,
        Code::InvalidArgument,
        "etcdserver: request is too large",
    );
    assert_refused(
        kv.put(PutRequest { lease: 77, ..put("a", "2") }).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    assert_refused(
        kv.put(PutRequest { ignore_value: true, ..put("a", "2") }).await,
        Code::InvalidArgument,
        "etcdserver: value is provided",
    );
    assert_refused(
        kv.put(PutRequest { ignore_value: true, ..put("absent", "") }).await,
        Code::InvalidArgument,
        "etcdserver: key not found",
    );
    assert_refused(
        kv.txn(txn(&[put("b", "1"), put("b", "2")])).await,
        Code::InvalidArgument,
        "etcdserver: duplicate key given in txn request",
    );
    assert_refused(
        kv.txn(txn(&vec![put("b", "1"); 129])).await,
        Code::InvalidArgument,
        "etcdserver: too many operations in txn request",
    );
    let at = |revision| RangeRequest { key: "a".into(), revision, ..RangeRequest::default() };
    let future = "etcdserver: mvcc: required revision is a future revision";
    assert_refused(kv.range(at(revision + 10)).await, Code::OutOfRange, future);
    assert_refused(
        kv.compact(CompactionRequest { revision: revision + 10, physical: false }).await,
        Code::OutOfRange,
        future,
    );
    let newer = kv.put(put("a", "2")).await.unwrap().into_inner().header.unwrap().revision;
    assert_eq!(newer, revision + 1, "nothing that was refused left a trace");
    kv.compact(CompactionRequest { revision: newer, physical: false }).await.unwrap();
    let compacted = "etcdserver: mvcc: required revision has been compacted";
    assert_refused(kv.range(at(revision)).await, Code::OutOfRange, compacted);
    assert_refused(
        kv.compact(CompactionRequest { revision, physical: false }).await,
        Code::OutOfRange,
        compacted,
    );
}

#[tokio::test]
async fn leases_and_leaders_that_do_not_exist_are_refused_in_etcds_words() {
    let cluster = Cluster::start(1, &[]).await;
    let mut leases = LeaseClient::new(cluster.nodes[0].channel());
    leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await.unwrap();
    assert_refused(
        leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await,
        Code::FailedPrecondition,
        "etcdserver: lease already exists",
    );
    assert_refused(
        leases.lease_grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 8 }).await,
        Code::OutOfRange,
        "etcdserver: too large lease TTL",
    );
    assert_refused(
        leases.lease_revoke(LeaseRevokeRequest { id: 9 }).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    let mut maintenance = MaintenanceClient::new(cluster.nodes[0].channel());
    assert_refused(
        maintenance.move_leader(MoveLeaderRequest { target_id: 12345 }).await,
        Code::FailedPrecondition,
        "etcdserver: bad leader transferee",
    );
}

fn serve(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hadron")).arg("serve").args(arguments).output().unwrap()
}

fn assert_fails_naming(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it should have failed: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    assert_fails_naming(&serve(&["--no-such-flag"]), &["--no-such-flag"]);
    let twice = "default=http://127.0.0.1:1,default=http://127.0.0.1:2";
    assert_fails_naming(&serve(&["--initial-cluster", twice]), &["default"]);
}

/// The error used to be about `--advertise-client-urls`, which nobody had mentioned.
#[test]
fn a_client_url_that_cannot_be_used_is_refused_under_its_own_flag() {
    for (url, said) in
        [("127.0.0.1:2379", "begin with http://"), ("unix://etcd.sock", "Unix sockets are not supported")]
    {
        let output = serve(&["--listen-client-urls", url]);
        assert_fails_naming(&output, &["--listen-client-urls", url, said]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("advertise"));
    }
}

/// A node that was killed after it had written `a`, and the revision of that.
async fn killed_after_a_write() -> (Cluster, i64) {
    let mut cluster = Cluster::start(1, &[]).await;
    let mut kv = KvClient::new(cluster.nodes[0].channel());
    let revision = kv.put(put("a", "1")).await.unwrap().into_inner().header.unwrap().revision;
    cluster.nodes[0].kill();
    (cluster, revision)
}

async fn assert_serves_again(cluster: &mut Cluster, revision: i64) {
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    let read = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    let mut kv = KvClient::new(cluster.nodes[0].channel());
    let found = kv.range(read).await.unwrap().into_inner();
    assert_eq!(found.kvs.first().map(|pair| pair.mod_revision), Some(revision));
}

fn move_away(path: &Path) {
    std::fs::rename(path, path.with_extension("away")).unwrap();
}

fn put_back(path: &Path) {
    // What a refused start must not have made.
    let _ = std::fs::remove_dir(path);
    std::fs::rename(path.with_extension("away"), path).unwrap();
}

/// A node used to start without its log as if it had received a snapshot: with its votes and newest writes forgotten.
#[tokio::test]
async fn a_log_or_an_engine_that_is_gone_is_refused_by_name_and_nothing_is_made_in_its_place() {
    let (mut cluster, revision) = killed_after_a_write().await;
    for (lost, said) in [("wal", "its write-ahead log in"), ("engine", "its engine in")] {
        let path = cluster.nodes[0].data_dir().join(lost);
        move_away(&path);
        let place = path.display().to_string();
        assert_fails_naming(
            &cluster.nodes[0].run_with(&[]).await,
            &[said, &place, "missing or empty", "rebuild"],
        );
        assert!(!path.exists(), "{lost} was made anew");
        std::fs::create_dir(&path).unwrap();
        assert_fails_naming(
            &cluster.nodes[0].run_with(&[]).await,
            &[said, &place, "missing or empty", "rebuild"],
        );
        put_back(&path);
        assert_serves_again(&mut cluster, revision).await;
        cluster.nodes[0].kill();
    }
}

#[tokio::test]
async fn a_wal_dir_that_points_elsewhere_than_before_is_refused() {
    let (mut cluster, revision) = killed_after_a_write().await;
    let elsewhere = cluster.nodes[0].data_dir().join("elsewhere");
    let place = elsewhere.display().to_string();
    let output = cluster.nodes[0].run_with(&["--wal-dir", &place]).await;
    assert_fails_naming(&output, &["its write-ahead log in", &place, "--wal-dir"]);
    assert_serves_again(&mut cluster, revision).await;
}

#[tokio::test]
async fn a_log_whose_segments_were_deleted_is_refused_however_young_the_node() {
    let (cluster, _) = killed_after_a_write().await;
    let wal = cluster.nodes[0].data_dir().join("wal");
    for entry in std::fs::read_dir(&wal).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name != "LOCK") {
            std::fs::remove_file(path).unwrap();
        }
    }
    for _ in 0..2 {
        let output = cluster.nodes[0].run_with(&[]).await;
        assert_fails_naming(&output, &["its write-ahead log in", &wal.display().to_string(), "rebuild"]);
    }
}
