//! `/metrics` of real nodes: everything that `docs/metrics.md` names is there, and moves when what it counts happens.

use std::process::Command;
use std::time::Duration;

use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::watch_client::WatchClient;
use hadron_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest, WatchResponse,
    request_op, watch_request,
};
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::support::ctl::ctl;
use crate::support::{Cluster, Node, eventually};

const DOCS: &str = include_str!("../../../../docs/metrics.md");
/// Puts in the first test.
const PUTS: u64 = 200;

/// Names and kinds of all metrics in the documentation's tables.
fn documented() -> Vec<(&'static str, &'static str)> {
    let row = |row: &'static str| {
        let (metric, rest) = row.strip_prefix("| `")?.split_once('`')?;
        Some((metric.split('{').next()?, rest.split('|').nth(1)?.trim()))
    };
    DOCS.lines().filter_map(row).collect()
}

/// A page of metrics.
struct Page(String);

impl Page {
    async fn of(node: &Node) -> Page {
        Page(node.metrics().await)
    }

    /// The value of one sample, named with its labels.
    fn get(&self, sample: &str) -> Option<f64> {
        self.0.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    /// The values of all samples of a metric whose labels contain `label`.
    fn all(&self, metric: &str, label: &str) -> Vec<f64> {
        let samples = self.0.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
        let chosen = samples.filter_map(|rest| rest.rsplit_once("} ")).filter(|(l, _)| l.contains(label));
        chosen.map(|(_, value)| value.parse().unwrap()).collect()
    }

    fn value(&self, sample: &str) -> f64 {
        self.get(sample).unwrap_or_else(|| panic!("{sample} is not in\n{}", self.0))
    }
}

/// Waits until a page shows what it should.
async fn until_page(node: &Node, what: &str, shows: impl Fn(&Page) -> bool) {
    eventually(what, async || shows(&Page::of(node).await)).await;
}

fn put(key: impl Into<bytes::Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: vec![b'x'; 100].into(), ..PutRequest::default() }
}

/// One of each kind of call, and many puts, through one node.
async fn use_everything(node: &Node) {
    let mut kv = KvClient::new(node.channel());
    for number in 0..PUTS {
        kv.put(put(format!("k{number}"))).await.unwrap();
    }
    kv.range(RangeRequest { key: "k0".into(), ..Default::default() }).await.unwrap();
    kv.delete_range(DeleteRangeRequest { key: "k0".into(), ..Default::default() }).await.unwrap();
    let operation = RequestOp { request: Some(request_op::Request::RequestPut(put("in a txn"))) };
    kv.txn(TxnRequest { success: vec![operation], ..Default::default() }).await.unwrap();
    kv.compact(CompactionRequest { revision: 10, physical: false }).await.unwrap();
    let mut leases = LeaseClient::new(node.channel());
    for id in [7, 8] {
        leases.lease_grant(LeaseGrantRequest { ttl: 1, id }).await.unwrap();
    }
    let renewal = tokio_stream::once(LeaseKeepAliveRequest { id: 7 });
    leases.lease_keep_alive(renewal).await.unwrap().into_inner().next().await.unwrap().unwrap();
    leases.lease_revoke(LeaseRevokeRequest { id: 7 }).await.unwrap();
}

/// A stream of watches, with its end for requests: it lives as long as either.
type Watching = (Sender<WatchRequest>, Streaming<WatchResponse>);

/// Two watchers, one of which begins in the past.
async fn watch(node: &Node) -> Watching {
    let create = |start_revision| WatchRequest {
        request_union: Some(watch_request::RequestUnion::CreateRequest(WatchCreateRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            start_revision,
            ..Default::default()
        })),
    };
    let (sender, requests) = channel(2);
    sender.send(create(0)).await.unwrap();
    sender.send(create(20)).await.unwrap();
    let requests = ReceiverStream::new(requests);
    let mut stream = WatchClient::new(node.channel()).watch(requests).await.unwrap().into_inner();
    let mut events = 0;
    while events == 0 {
        events = stream.next().await.unwrap().unwrap().events.len();
    }
    (sender, stream)
}

#[tokio::test]
async fn everything_that_is_documented_is_there() {
    let cluster = Cluster::start(1, &[]).await;
    let page = Page::of(&cluster.nodes[0]).await;
    for (name, kind) in documented() {
        let line = format!("# TYPE {name} {kind}\n");
        assert!(page.0.contains(&line), "{line} is not in\n{}", page.0);
    }
}

/// To clear a huge page took a thread up to two milliseconds, and every request that needed the thread waited: half of the p99 of puts.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_request_waits_for_a_huge_page() {
    let cluster = Cluster::start(1, &[]).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.nodes[0].pid())).unwrap();
    let huge = status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).map(str::trim);
    // A system without them does not tell.
    assert_ne!(huge, Some("1"));
}

#[tokio::test]
async fn what_is_counted_moves_when_it_happens() {
    let cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let (used, other) = (&cluster.nodes[(leader + 1) % 3], &cluster.nodes[(leader + 2) % 3]);
    let leader = &cluster.nodes[leader];
    let before = Page::of(used).await;
    use_everything(used).await;
    let watching = watch(used).await;
    let after = Page::of(used).await;
    check_calls(&before, &after, &Page::of(other).await);
    check_growth(&before, &after);
    check_present(&after);
    wait_for_the_network(used).await;
    assert_eq!(Page::of(leader).await.value("etcd_server_is_leader"), 1.0);

    until_page(used, "all watchers are at the present", |page| {
        page.value("etcd_debugging_mvcc_slow_watcher_total") == 0.0
    })
    .await;
    drop(watching);
    until_page(used, "the watchers are gone", |page| {
        page.value("etcd_debugging_mvcc_watcher_total") == 0.0
            && open_streams(page) == 0.0
            && page.value("etcd_debugging_mvcc_watch_stream_total") == 0.0
    })
    .await;
    wait_for_the_background(&cluster, leader, used).await;
}

/// Calls are counted once each, by the node that is asked.
fn check_calls(before: &Page, after: &Page, other: &Page) {
    for (name, calls) in [
        ("etcd_mvcc_put_total", PUTS),
        ("etcd_mvcc_range_total", 1),
        ("etcd_mvcc_delete_total", 1),
        ("etcd_mvcc_txn_total", 1),
        ("etcd_debugging_lease_granted_total", 2),
        ("etcd_debugging_lease_renewed_total", 1),
        ("etcd_debugging_lease_revoked_total", 1),
    ] {
        assert_eq!(after.value(name) - before.value(name), calls as f64, "{name}");
        assert_eq!(other.value(name), 0.0, "{name} of a node that was not asked");
    }
    let puts = "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",\
                grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
    assert_eq!(after.value(puts), PUTS as f64);
    for (name, calls) in [
        ("grpc_server_msg_received_total", PUTS),
        ("grpc_server_msg_sent_total", PUTS),
        ("grpc_server_handling_seconds_count", PUTS),
    ] {
        let sample =
            format!("{name}{{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}}");
        assert_eq!(after.value(&sample), calls as f64, "{sample}");
    }
    assert!(after.value("etcd_network_client_grpc_received_bytes_total") > (PUTS * 100) as f64);
    assert!(after.value("etcd_network_client_grpc_sent_bytes_total") > 0.0);
    assert_eq!(after.value("etcd_debugging_lease_ttl_total_count"), 2.0);
    assert_eq!(after.value("etcd_server_range_duration_seconds_count{success=\"true\"}"), 1.0);
    let unary = "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"unary\"}";
    assert!(after.value(unary) > PUTS as f64);
}

/// Streams of watches that are open, as dashboards reckon: those that began less those that ended. All used to count as
/// ended when they were opened.
fn open_streams(page: &Page) -> f64 {
    let of = |name| {
        page.all(name, "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\"").iter().sum::<f64>()
    };
    of("grpc_server_started_total") - of("grpc_server_handled_total")
}

fn check_growth(before: &Page, after: &Page) {
    for name in [
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_disk_wal_fsync_duration_seconds_sum",
        "etcd_disk_wal_write_duration_seconds_count",
        "etcd_disk_wal_write_duration_seconds_sum",
        "hadron_wal_batch_records_total",
        "hadron_turn_duration_seconds_count",
        "etcd_debugging_mvcc_current_revision",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_debugging_mvcc_events_total",
    ] {
        assert!(after.value(name) > before.value(name), "{name} should have grown");
    }
    let written = "etcd_disk_wal_write_bytes_total";
    assert!(after.value(written) - before.value(written) > (PUTS * 100) as f64, "{written}");
}

/// Right after [`use_everything`] and [`watch`], on a follower.
fn check_present(page: &Page) {
    for (name, value) in [
        ("etcd_debugging_mvcc_keys_total", PUTS as f64),
        ("etcd_debugging_mvcc_compact_revision", 10.0),
        ("etcd_debugging_mvcc_watch_stream_total", 1.0),
        ("etcd_debugging_mvcc_watcher_total", 2.0),
        ("etcd_server_proposals_pending", 0.0),
        ("etcd_server_proposals_failed_total", 0.0),
        ("etcd_server_has_leader", 1.0),
        ("etcd_server_is_leader", 0.0),
        ("hadron_wal_segments", 1.0),
        ("etcd_server_quota_backend_bytes", f64::INFINITY),
        ("etcd_cluster_version{cluster_version=\"3.6\"}", 1.0),
    ] {
        assert_eq!(page.value(name), value, "{name}");
    }
    assert_eq!(page.all("etcd_network_known_peers", ""), [1.0, 1.0]);
    assert!(page.value("promhttp_metric_handler_requests_total{code=\"200\"}") >= 2.0);
    let watch = "{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}";
    assert_eq!(page.value(&format!("grpc_server_msg_received_total{watch}")), 2.0);
    assert!(page.value(&format!("grpc_server_msg_sent_total{watch}")) >= 3.0);
    assert_eq!(open_streams(page), 1.0);
}

/// Both other nodes are connected, and talk in both directions.
async fn wait_for_the_network(node: &Node) {
    let talk = |page: &Page, metric: &str| {
        let bytes = page.all(metric, "");
        bytes.len() == 2 && bytes.iter().all(|bytes| *bytes > 0.0)
    };
    until_page(node, "two connected peers that talk", |page| {
        talk(page, "etcd_network_peer_sent_bytes_total")
            && talk(page, "etcd_network_peer_received_bytes_total")
            && talk(page, "etcd_network_peer_round_trip_time_seconds_count")
            && page.all("etcd_network_peer_sent_failures_total", "").len() == 2
            && page.all("etcd_network_active_peers", "") == [1.0, 1.0]
            && page.value("hadron_client_connections") >= 1.0
    })
    .await;
}

/// What follows a while after the calls: flushes and commits of the engine, expiry, comparisons of digests.
async fn wait_for_the_background(cluster: &Cluster, leader: &Node, used: &Node) {
    until_page(used, "what was applied reaches the engine", |page| {
        page.value("etcd_disk_backend_commit_duration_seconds_count") > 0.0
            && page.value("hadron_engine_flush_duration_seconds_count") > 0.0
            && page.value("hadron_engine_disk_bytes") > 0.0
            && page.get("hadron_unflushed_entries{group=\"1\"}") == Some(0.0)
            && page.get("hadron_unflushed_bytes{group=\"1\"}") == Some(0.0)
    })
    .await;
    until_page(leader, "the lease expires", |page| {
        page.value("etcd_debugging_server_lease_expired_total") == 1.0
    })
    .await;
    for node in &cluster.nodes {
        until_page(node, "digests were compared", |page| {
            page.get("hadron_digest_checks_total{group=\"1\",result=\"same\"}") > Some(0.0)
        })
        .await;
        let page = Page::of(node).await;
        assert_eq!(page.value("hadron_digest_checks_total{group=\"1\",result=\"different\"}"), 0.0);
        assert!(page.all("hadron_corrupt_replica", "").is_empty());
    }
}

/// What `hadron ctl election history` prints.
fn election_history(cluster: &Cluster) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadron"));
    command.args(["ctl", "--endpoints", &cluster.endpoints().join(","), "election", "history"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn is_one(shares: &[f64]) -> bool {
    (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9
}

/// The alerts about the size that etcd's mixin (`contrib/mixin/alerts`) has, of a database that does not grow, and of any size.
fn alerts_of_size(page: &Page) -> [bool; 3] {
    let (total, quota) =
        (page.value("etcd_mvcc_db_total_size_in_bytes"), page.value("etcd_server_quota_backend_bytes"));
    let in_use = page.value("etcd_mvcc_db_total_size_in_use_in_bytes");
    let (grows_too_fast, has_little_room, is_fragmented) =
        (total > quota, total / quota * 100.0 > 95.0, in_use / total < 0.5);
    [grows_too_fast, has_little_room, is_fragmented]
}

/// The first one used to be there for ever, and the others as soon as keyspaces beside `default` were large.
#[tokio::test]
async fn etcds_alerts_about_the_size_are_about_the_keyspace_that_the_quota_is_for() {
    const QUOTA_BYTES: usize = 1_000_000;
    let mut cluster = Cluster::start(1, &[]).await;
    let page = Page::of(&cluster.nodes[0]).await;
    assert_eq!(alerts_of_size(&page), [false; 3]);
    assert!(page.value("etcd_mvcc_db_total_size_in_bytes") > 0.0);

    cluster.nodes[0].kill();
    cluster.nodes[0].set_argument("--quota-backend-bytes", &QUOTA_BYTES.to_string());
    cluster.bring_up().await;
    let node = &cluster.nodes[0];
    ctl(&node.client_url, &["keyspace", "create", "large", "--bytes-max", "1000000000"]);
    for number in 0..20 {
        let value = "x".repeat(QUOTA_BYTES / 10);
        ctl(&node.client_url, &["--keyspace", "large", "put", &format!("k{number}"), &value]);
    }
    until_page(node, "it reaches the engine", |page| {
        page.value("hadron_engine_disk_bytes") > QUOTA_BYTES as f64
    })
    .await;
    let page = Page::of(node).await;
    assert_eq!(page.value("etcd_server_quota_backend_bytes"), QUOTA_BYTES as f64);
    assert_eq!(alerts_of_size(&page), [false; 3]);
    let value = vec![b'x'; QUOTA_BYTES - 10_000].into();
    KvClient::new(node.channel()).put(PutRequest { value, ..put("k") }).await.unwrap();
    assert_eq!(alerts_of_size(&Page::of(node).await), [false, true, false], "nearly full");
}

#[tokio::test]
async fn the_shares_of_votes_and_of_the_log_are_shown_on_the_page_and_in_the_history() {
    let mut cluster = Cluster::start(3, &[]).await;
    let first = cluster.leader().await;
    let mut kv = KvClient::new(cluster.nodes[first].channel());
    kv.put(put("a")).await.unwrap();
    for group in ["0", "1"] {
        let group = format!("group=\"{group}\"");
        until_page(&cluster.nodes[first], "P(x) of the last election adds up", |page| {
            is_one(&page.all("hadron_election_vote_share", &group))
        })
        .await;
    }
    until_page(&cluster.nodes[first], "C(x) of three members adds up, and nobody lags", |page| {
        let shares = page.all("hadron_log_share", "group=\"1\"");
        let lags = page.all("hadron_replication_lag_entries", "group=\"1\"");
        shares.len() == 3 && is_one(&shares) && lags == [0.0, 0.0, 0.0]
    })
    .await;
    let follower = Page::of(&cluster.nodes[(first + 1) % 3]).await;
    assert!(follower.all("hadron_log_share", "group=\"1\"").is_empty(), "only the leader measures");
    let history = election_history(&cluster);
    for sign in ["P(", "C("] {
        assert!(history.contains(sign), "{sign} is not in\n{history}");
    }

    // One is away while others write: its part of the log shrinks, its lag grows.
    let away = (first + 1) % 3;
    cluster.nodes[away].kill();
    for number in 0..PUTS {
        kv.put(put(format!("k{number}"))).await.unwrap();
    }
    until_page(&cluster.nodes[first], "the lag of the one that is away", |page| {
        let lags = page.all("hadron_replication_lag_entries", "group=\"1\"");
        let shares = page.all("hadron_log_share", "group=\"1\"");
        lags.iter().filter(|lag| **lag > 100.0).count() == 1
            && shares.iter().any(|share| *share < 0.2)
            && is_one(&shares)
    })
    .await;
    cluster.nodes[away].start();
    until_page(&cluster.nodes[first], "it catches up", |page| {
        page.all("hadron_replication_lag_entries", "group=\"1\"") == [0.0, 0.0, 0.0]
    })
    .await;
    println!("{}", election_history(&cluster));
}

#[tokio::test]
async fn elections_and_failures_are_counted() {
    let mut cluster = Cluster::start(3, &[]).await;
    let first = cluster.leader().await;
    let (second, third) = ((first + 1) % 3, (first + 2) % 3);
    let changes = "etcd_server_leader_changes_seen_total";
    let won = "hadron_elections_total{group=\"1\",outcome=\"won\"}";
    let mut kv = KvClient::new(cluster.nodes[third].channel());
    for number in 0..PUTS {
        kv.put(put(format!("k{number}"))).await.unwrap();
    }
    cluster.wait_until_equal().await;
    let before = Page::of(&cluster.nodes[third]).await;
    let dead = cluster.nodes[first].status().await.unwrap().header.unwrap().member_id;
    let failures =
        |page: &Page, id: u64| page.value(&format!("etcd_network_peer_sent_failures_total{{To=\"{id:x}\"}}"));
    cluster.nodes[first].kill();
    until_page(&cluster.nodes[third], "another leader is seen and its election counted", |page| {
        page.value(changes) > before.value(changes)
            && page.get(won) > before.get(won)
            && is_one(&page.all("hadron_election_vote_share", "group=\"1\""))
    })
    .await;

    for node in [second, third] {
        let seen = failures(&Page::of(&cluster.nodes[node]).await, dead);
        until_page(&cluster.nodes[node], "each attempt to connect the dead one is counted", |page| {
            failures(page, dead) >= seen + 2.0
        })
        .await;
    }
    let alive = cluster.nodes[second].status().await.unwrap().header.unwrap().member_id;
    assert_eq!(failures(&Page::of(&cluster.nodes[third]).await, alive), failures(&before, alive));

    // A new leader used to take those that it had not heard of yet for empty ones.
    let leader = cluster.leader().await;
    until_page(&cluster.nodes[leader], "the lags, that of the dead one alone a long one", |page| {
        let lags = page.all("hadron_replication_lag_entries", "group=\"1\"");
        assert!(lags.iter().filter(|lag| **lag >= PUTS as f64).count() <= 1, "{lags:?}");
        lags.len() == 3
    })
    .await;

    cluster.nodes[second].kill();
    let failing = tokio::spawn(async move { kv.put(put("a")).await });
    until_page(&cluster.nodes[third], "a write waits", |page| {
        page.value("etcd_server_proposals_pending") == 1.0
    })
    .await;
    assert!(tokio::time::timeout(Duration::from_secs(30), failing).await.unwrap().unwrap().is_err());
    let after = Page::of(&cluster.nodes[third]).await;
    assert_eq!(after.value("etcd_server_proposals_failed_total"), 1.0);
    assert_eq!(after.value("etcd_server_proposals_pending"), 0.0);
    assert_eq!(after.value("etcd_server_has_leader"), 0.0);
    assert_eq!(after.all("etcd_network_active_peers", ""), [0.0, 0.0]);
}
