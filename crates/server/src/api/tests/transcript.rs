//! One conversation with a fresh server, written down. `transcript.txt` is what a real etcd (3.5) answered; ours must be
//! the same, word for word, errors included. To make it anew, start an empty etcd and run this test with its address:
//! `HADRON_ORACLE=http://127.0.0.1:2379 cargo test -p hadron-server transcript`, then read the diff.
//!
//! Left out of the transcript: ids of cluster and member, terms, and remaining times, which differ between servers.

use std::fmt::{Debug, Write as _};
use std::time::Duration;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::request_op::Request as Op;
use hadron_proto::etcdserverpb::watch_client::WatchClient;
use hadron_proto::etcdserverpb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use super::harness::Harness;

const GOLDEN: &str = include_str!("transcript.txt");
const ORACLE: &str = "HADRON_ORACLE";
/// How long the next response of a stream may take, and how long silence is listened to.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn transcript_is_etcds() {
    match std::env::var(ORACLE) {
        Ok(address) => {
            let text = super::harness::runtime().block_on(async {
                let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
                converse(channel).await
            });
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/tests/transcript.txt");
            std::fs::write(path, text).unwrap();
        }
        Err(_) => {
            let ours = Harness::start().run(converse);
            let pairs = std::iter::zip(ours.lines(), GOLDEN.lines()).enumerate();
            let different: Vec<String> = pairs
                .filter(|(_, (our_line, golden_line))| our_line != golden_line)
                .map(|(number, (our_line, golden_line))| {
                    format!("{}: ours {our_line}\n   etcd's {golden_line}", number + 1)
                })
                .collect();
            assert!(different.is_empty(), "{}", different.join("\n"));
            assert_eq!(ours.lines().count(), GOLDEN.lines().count());
        }
    }
}

/// Writes a conversation down.
struct Scribe {
    channel: Channel,
    text: String,
}

/// What of a message is written down.
trait Comparable: Debug {
    /// Removes what differs between servers.
    fn mask(&mut self);
}

fn mask_header(header: &mut Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
    }
}

macro_rules! comparable {
    ($($message:ident),*) => {
        $(impl Comparable for pb::$message {
            fn mask(&mut self) {
                mask_header(&mut self.header);
            }
        })*
    };
}

comparable!(
    RangeResponse,
    PutResponse,
    DeleteRangeResponse,
    CompactionResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    LeaseKeepAliveResponse,
    LeaseLeasesResponse,
    WatchResponse,
    AlarmResponse,
    MoveLeaderResponse
);

impl Comparable for pb::TxnResponse {
    fn mask(&mut self) {
        mask_header(&mut self.header);
        for response in &mut self.responses {
            if let Some(pb::response_op::Response::ResponseTxn(nested)) = &mut response.response {
                nested.mask();
            }
        }
    }
}

impl Comparable for pb::LeaseTimeToLiveResponse {
    fn mask(&mut self) {
        mask_header(&mut self.header);
        if self.ttl > 0 {
            assert!(self.granted_ttl - 2 <= self.ttl && self.ttl <= self.granted_ttl);
            self.ttl = self.granted_ttl;
        }
    }
}

impl Comparable for pb::HashKvResponse {
    fn mask(&mut self) {
        mask_header(&mut self.header);
        // etcd 3.5 does not send it.
        self.hash_revision = 0;
    }
}

impl Scribe {
    fn title(&mut self, title: &str) {
        writeln!(self.text, "\n# {title}").unwrap();
    }

    fn answer<M: Comparable>(&mut self, request: &str, answer: Result<Response<M>, Status>) {
        writeln!(self.text, "> {request}").unwrap();
        match answer {
            Ok(response) => {
                let mut message = response.into_inner();
                message.mask();
                writeln!(self.text, "< {}", plain(&format!("{message:?}"))).unwrap();
            }
            Err(status) => writeln!(self.text, "< {:?}: {}", status.code(), status.message()).unwrap(),
        }
    }

    async fn put(&mut self, put: pb::PutRequest) {
        let answer = KvClient::new(self.channel.clone()).put(put.clone()).await;
        let mut shown = put;
        if shown.value.len() > 100 {
            shown.value = Bytes::from(format!("{} bytes", shown.value.len()));
        }
        self.answer(&plain(&format!("{shown:?}")), answer);
    }

    async fn range(&mut self, range: pb::RangeRequest) {
        let answer = KvClient::new(self.channel.clone()).range(range.clone()).await;
        self.answer(&plain(&format!("{range:?}")), answer);
    }

    async fn delete(&mut self, delete: pb::DeleteRangeRequest) {
        let answer = KvClient::new(self.channel.clone()).delete_range(delete.clone()).await;
        self.answer(&plain(&format!("{delete:?}")), answer);
    }

    async fn txn(&mut self, what: &str, txn: pb::TxnRequest) {
        let answer = KvClient::new(self.channel.clone()).txn(txn).await;
        self.answer(&format!("Txn: {what}"), answer);
    }

    async fn compact(&mut self, revision: i64, physical: bool) {
        let request = pb::CompactionRequest { revision, physical };
        let answer = KvClient::new(self.channel.clone()).compact(request).await;
        self.answer(&plain(&format!("{request:?}")), answer);
    }

    async fn grant(&mut self, id: i64, ttl: i64) {
        let answer =
            LeaseClient::new(self.channel.clone()).lease_grant(pb::LeaseGrantRequest { id, ttl }).await;
        self.answer(&format!("LeaseGrant {id} {ttl}"), answer);
    }

    async fn revoke(&mut self, id: i64) {
        let answer = LeaseClient::new(self.channel.clone()).lease_revoke(pb::LeaseRevokeRequest { id }).await;
        self.answer(&format!("LeaseRevoke {id}"), answer);
    }

    async fn time_to_live(&mut self, id: i64, keys: bool) {
        let request = pb::LeaseTimeToLiveRequest { id, keys };
        let answer = LeaseClient::new(self.channel.clone()).lease_time_to_live(request).await;
        self.answer(&format!("LeaseTimeToLive {id} keys={keys}"), answer);
    }

    async fn leases(&mut self) {
        let answer = LeaseClient::new(self.channel.clone()).lease_leases(pb::LeaseLeasesRequest {}).await;
        self.answer("LeaseLeases", answer);
    }

    async fn keep_alive(&mut self, ids: &[i64]) {
        let requests: Vec<_> = ids.iter().map(|&id| pb::LeaseKeepAliveRequest { id }).collect();
        let answers =
            LeaseClient::new(self.channel.clone()).lease_keep_alive(tokio_stream::iter(requests)).await;
        let mut answers = answers.unwrap().into_inner();
        while let Some(answer) = answers.message().await.transpose() {
            self.answer(&format!("LeaseKeepAlive of {ids:?}"), answer.map(Response::new));
        }
    }

    async fn hash_kv(&mut self, revision: i64) {
        let answer =
            MaintenanceClient::new(self.channel.clone()).hash_kv(pb::HashKvRequest { revision }).await;
        self.answer(&format!("HashKV {revision}"), answer);
    }
}

/// Shortens a debug text: default values say nothing.
fn plain(text: &str) -> String {
    const NOISE: &[&str] = &[
        "cluster_id: 0, member_id: 0, ",
        ", raft_term: 0",
        ", prev_kv: None",
        ", range_end: b\"\"",
        ", limit: 0",
        ", lease: 0",
        ", version: 0",
        ", min_mod_revision: 0",
        ", max_mod_revision: 0",
        ", min_create_revision: 0",
        ", max_create_revision: 0",
        ", start_revision: 0",
        ", compact_revision: 0",
        ", create_revision: 0",
        ", revision: 0",
        ", sort_order: None",
        ", sort_target: Key",
        ", serializable: false",
        ", keys_only: false",
        ", count_only: false",
        ", prev_kv: false",
        ", ignore_value: false",
        ", ignore_lease: false",
        ", progress_notify: false",
        ", fragment: false",
        ", created: false",
        ", canceled: false",
        ", filters: []",
        ", events: []",
        ", cancel_reason: \"\"",
        ", error: \"\"",
    ];
    let text = NOISE.iter().fold(text.to_owned(), |text, noise| text.replace(noise, ""));
    let mut parts = text.split("header: Some(ResponseHeader { ");
    let mut short = parts.next().unwrap_or_default().replace("r#type", "type");
    for part in parts {
        short.push_str(&part.replacen(" })", "", 1));
    }
    short
}

async fn converse(channel: Channel) -> String {
    let mut scribe = Scribe { channel, text: String::new() };
    puts(&mut scribe).await;
    ranges(&mut scribe).await;
    bad_requests(&mut scribe).await;
    deletes(&mut scribe).await;
    txns(&mut scribe).await;
    bad_txns(&mut scribe).await;
    leases(&mut scribe).await;
    watches(&mut scribe).await;
    compactions(&mut scribe).await;
    maintenance(&mut scribe).await;
    scribe.text
}

fn put(key: &'static str, value: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: Bytes::from_static(key.as_bytes()), value: value.into(), ..Default::default() }
}

fn range(key: &'static str, end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

fn delete(key: &'static str, end: &'static str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: true }
}

async fn puts(scribe: &mut Scribe) {
    scribe.title("puts");
    scribe.put(put("a", "1")).await;
    scribe.put(pb::PutRequest { prev_kv: true, ..put("a", "2") }).await;
    scribe.put(pb::PutRequest { prev_kv: true, ..put("b", "1") }).await;
    scribe.put(pb::PutRequest { ignore_value: true, ..put("a", "") }).await;
    scribe.put(pb::PutRequest { ignore_lease: true, ..put("a", "3") }).await;
    scribe.put(put("c", "")).await;
    scribe.put(put("c/d", "x")).await;
}

async fn ranges(scribe: &mut Scribe) {
    scribe.title("ranges");
    scribe.range(range("a", "")).await;
    scribe.range(range("nothing", "")).await;
    scribe.range(range("a", "c")).await;
    scribe.range(range("\0", "\0")).await;
    scribe.range(range("b", "\0")).await;
    scribe.range(range("c", "a")).await;
    let all = || range("\0", "\0");
    scribe.range(pb::RangeRequest { limit: 2, ..all() }).await;
    scribe.range(pb::RangeRequest { limit: -1, ..all() }).await;
    scribe.range(pb::RangeRequest { revision: 3, ..all() }).await;
    scribe.range(pb::RangeRequest { revision: -1, ..all() }).await;
    scribe.range(pb::RangeRequest { serializable: true, ..range("a", "") }).await;
    scribe.range(pb::RangeRequest { keys_only: true, ..all() }).await;
    scribe.range(pb::RangeRequest { count_only: true, ..all() }).await;
    scribe.range(pb::RangeRequest { count_only: true, limit: 1, ..all() }).await;
    scribe.range(pb::RangeRequest { min_mod_revision: 5, ..all() }).await;
    scribe.range(pb::RangeRequest { max_mod_revision: 5, ..all() }).await;
    scribe.range(pb::RangeRequest { min_create_revision: 5, ..all() }).await;
    scribe.range(pb::RangeRequest { max_create_revision: 5, limit: 1, ..all() }).await;
    for target in 0..5 {
        for order in 0..3 {
            scribe
                .range(pb::RangeRequest { sort_target: target, sort_order: order, limit: 3, ..all() })
                .await;
        }
    }
}

async fn bad_requests(scribe: &mut Scribe) {
    scribe.title("bad requests");
    scribe.put(put("", "1")).await;
    scribe.put(pb::PutRequest { ignore_value: true, ..put("a", "1") }).await;
    scribe.put(pb::PutRequest { ignore_value: true, ..put("nothing", "") }).await;
    scribe.put(pb::PutRequest { ignore_lease: true, lease: 7, ..put("a", "1") }).await;
    scribe.put(pb::PutRequest { ignore_lease: true, ..put("nothing", "1") }).await;
    scribe.put(pb::PutRequest { lease: 12345, ..put("a", "1") }).await;
    for bytes in [1536 * 1024 - 64, 1536 * 1024 + 1, 2 * 1024 * 1024 - 100, 3 * 1024 * 1024] {
        let value = Bytes::from(vec![b'x'; bytes]);
        scribe.put(pb::PutRequest { key: "large".into(), value, ..Default::default() }).await;
    }
    scribe.range(range("", "")).await;
    scribe.range(pb::RangeRequest { revision: 1000, ..range("a", "") }).await;
    scribe.delete(delete("", "")).await;
    scribe.delete(delete("", "z")).await;
}

async fn deletes(scribe: &mut Scribe) {
    scribe.title("deletes");
    scribe.delete(pb::DeleteRangeRequest { prev_kv: false, ..delete("large", "") }).await;
    scribe.delete(delete("b", "")).await;
    scribe.delete(delete("b", "")).await;
    scribe.delete(pb::DeleteRangeRequest { prev_kv: false, ..delete("c", "d") }).await;
    scribe.range(range("\0", "\0")).await;
    scribe.put(put("b", "again")).await;
    scribe.range(range("b", "")).await;
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn op_put(key: &'static str, value: &'static str) -> pb::RequestOp {
    op(Op::RequestPut(put(key, value)))
}

fn op_range(key: &'static str, end: &'static str) -> pb::RequestOp {
    op(Op::RequestRange(range(key, end)))
}

fn op_delete(key: &'static str, end: &'static str) -> pb::RequestOp {
    op(Op::RequestDeleteRange(delete(key, end)))
}

fn op_txn(txn: pb::TxnRequest) -> pb::RequestOp {
    op(Op::RequestTxn(txn))
}

fn compare(key: &'static str, result: CompareResult, union: TargetUnion) -> pb::Compare {
    let target = match union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(union),
        range_end: Bytes::new(),
    }
}

async fn txns(scribe: &mut Scribe) {
    scribe.title("transactions");
    let ops = || vec![op_put("t", "1"), op_range("a", "c"), op_delete("u", ""), op_range("t", "")];
    scribe.txn("no comparison", pb::TxnRequest { success: ops(), ..Default::default() }).await;
    scribe.txn("empty", pb::TxnRequest::default()).await;
    scribe.txn("only reads", pb::TxnRequest { success: vec![op_range("t", "")], ..Default::default() }).await;
    for result in [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual]
    {
        for (key, union) in [
            ("t", TargetUnion::Version(1)),
            ("t", TargetUnion::CreateRevision(2)),
            ("t", TargetUnion::ModRevision(1000)),
            ("t", TargetUnion::Value("1".into())),
            ("t", TargetUnion::Lease(0)),
            ("nothing", TargetUnion::Version(0)),
            ("nothing", TargetUnion::CreateRevision(0)),
            ("nothing", TargetUnion::Value("".into())),
        ] {
            let what = format!("{key} {result:?} {union:?}");
            let compare = vec![compare(key, result, union)];
            scribe.txn(&what, pb::TxnRequest { compare, ..Default::default() }).await;
        }
    }
    let whole = pb::Compare {
        range_end: "\0".into(),
        ..compare("\0", CompareResult::Greater, TargetUnion::Version(0))
    };
    scribe.txn("a range of keys", pb::TxnRequest { compare: vec![whole], ..Default::default() }).await;
    let none = pb::Compare {
        range_end: "nothinh".into(),
        ..compare("nothing", CompareResult::Greater, TargetUnion::Version(5))
    };
    scribe.txn("a range without keys", pb::TxnRequest { compare: vec![none], ..Default::default() }).await;
    let no_union = pb::Compare { key: "t".into(), ..Default::default() };
    scribe
        .txn("a comparison with nothing", pb::TxnRequest { compare: vec![no_union], ..Default::default() })
        .await;
    nested_txns(scribe).await;
}

async fn nested_txns(scribe: &mut Scribe) {
    let inner = pb::TxnRequest {
        compare: vec![compare("t", CompareResult::Equal, TargetUnion::Value("2".into()))],
        success: vec![op_put("inner", "yes"), op_range("t", "")],
        failure: vec![op_put("inner", "no")],
    };
    let outer = pb::TxnRequest {
        success: vec![op_put("t", "2"), op_txn(inner), op_range("inner", "")],
        ..Default::default()
    };
    scribe.txn("nested, seeing what the outer one put", outer).await;
    scribe.range(range("inner", "")).await;
    let both = pb::TxnRequest {
        success: vec![op_delete("t", ""), op_put("v", "1"), op_put("w", "2")],
        ..Default::default()
    };
    scribe.txn("several changes at one revision", both).await;
    scribe.range(range("t", "z")).await;
}

async fn bad_txns(scribe: &mut Scribe) {
    scribe.title("bad transactions");
    let success = |success| pb::TxnRequest { success, ..Default::default() };
    scribe.txn("a key put twice", success(vec![op_put("x", "1"), op_put("x", "2")])).await;
    scribe.txn("a key put and deleted", success(vec![op_put("x", "1"), op_delete("a", "z")])).await;
    scribe.txn("a key deleted twice", success(vec![op_delete("x", ""), op_delete("a", "y")])).await;
    let nested = success(vec![op_put("x", "1")]);
    scribe.txn("a key put twice, nested", success(vec![op_txn(nested.clone()), op_put("x", "2")])).await;
    scribe.txn("a key put in two nested", success(vec![op_txn(nested.clone()), op_txn(nested)])).await;
    let either = pb::TxnRequest {
        success: vec![op_put("x", "1")],
        failure: vec![op_put("x", "2")],
        ..Default::default()
    };
    scribe.txn("a key put in either branch", success(vec![op_txn(either)])).await;
    scribe.txn("an operation that is none", success(vec![pb::RequestOp { request: None }])).await;
    scribe.txn("an empty key in an operation", success(vec![op_put("", "1")])).await;
    let empty_key = pb::TxnRequest { compare: vec![pb::Compare::default()], ..Default::default() };
    scribe.txn("an empty key in a comparison", empty_key).await;
    scribe.txn("128 operations", success((0..128).map(|_| op_range("nothing", "")).collect())).await;
    scribe.txn("129 operations", success((0..129).map(|_| op_range("a", "")).collect())).await;
    let compares = |n| vec![compare("a", CompareResult::Equal, TargetUnion::Version(1)); n];
    scribe.txn("129 comparisons", pb::TxnRequest { compare: compares(129), ..Default::default() }).await;
    let deep = success((0..64).map(|_| op_range("a", "")).collect());
    scribe
        .txn("65 over 64 operations", success([vec![op_txn(deep)], vec![op_range("a", ""); 64]].concat()))
        .await;
    let future = op(Op::RequestRange(pb::RangeRequest { revision: 1000, ..range("a", "") }));
    scribe.txn("a read of the future", success(vec![future.clone()])).await;
    scribe.txn("a write with a read of the future", success(vec![op_put("y", "1"), future])).await;
    let leased = op(Op::RequestPut(pb::PutRequest { lease: 999, ..put("y", "1") }));
    scribe.txn("an unknown lease", success(vec![op_put("z", "1"), leased])).await;
    let ignore = op(Op::RequestPut(pb::PutRequest { ignore_value: true, ..put("nothing", "") }));
    scribe.txn("no value to keep", success(vec![ignore])).await;
    scribe.range(range("x", "")).await;
    scribe.range(range("y", "zz")).await;
}

async fn leases(scribe: &mut Scribe) {
    scribe.title("leases");
    scribe.grant(1, 60).await;
    scribe.grant(1, 60).await;
    scribe.grant(2, 1).await;
    scribe.revoke(2).await;
    scribe.grant(3, 0).await;
    scribe.revoke(3).await;
    scribe.grant(4, -5).await;
    scribe.revoke(4).await;
    scribe.grant(5, 9_000_000_000).await;
    scribe.grant(6, 9_000_000_001).await;
    scribe.grant(-7, 60).await;
    scribe.revoke(-7).await;
    scribe.revoke(777).await;
    scribe.revoke(0).await;
    scribe.put(pb::PutRequest { lease: 1, ..put("l1", "x") }).await;
    scribe.put(pb::PutRequest { lease: 1, ..put("l2", "x") }).await;
    scribe.put(pb::PutRequest { ignore_lease: true, prev_kv: true, ..put("l2", "y") }).await;
    scribe.range(range("l", "m")).await;
    scribe.time_to_live(1, false).await;
    scribe.time_to_live(777, true).await;
    scribe.put(put("l1", "detached")).await;
    scribe.time_to_live(1, true).await;
    scribe.keep_alive(&[1, 777, 1]).await;
    scribe.revoke(5).await;
    scribe.leases().await;
    scribe.revoke(1).await;
    scribe.range(range("l", "m")).await;
    scribe.leases().await;
}

fn write_request(scribe: &mut Scribe, request: &RequestUnion) {
    writeln!(scribe.text, "> {}", plain(&format!("{request:?}"))).unwrap();
}

/// A watch stream of the conversation.
struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Watching {
    /// Opens a stream by its first request. etcd answers nothing, not even headers, before that.
    async fn open(scribe: &mut Scribe, first: RequestUnion, answers: usize) -> Watching {
        let (requests, receiver) = mpsc::channel(16);
        write_request(scribe, &first);
        requests.send(pb::WatchRequest { request_union: Some(first) }).await.unwrap();
        let responses = WatchClient::new(scribe.channel.clone()).watch(ReceiverStream::new(receiver)).await;
        let mut watching = Watching { requests, responses: responses.unwrap().into_inner() };
        watching.hear(scribe, answers).await;
        watching
    }

    async fn send(&mut self, scribe: &mut Scribe, request: RequestUnion) {
        write_request(scribe, &request);
        self.requests.send(pb::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn hear(&mut self, scribe: &mut Scribe, count: usize) {
        for _ in 0..count {
            let answer = tokio::time::timeout(STREAM_TIMEOUT, self.responses.message()).await;
            let answer =
                answer.expect("an answer in time").map(|answer| Response::new(answer.expect("no end")));
            scribe.answer("watch", answer);
        }
    }

    async fn ask(&mut self, scribe: &mut Scribe, request: RequestUnion, answers: usize) {
        self.send(scribe, request).await;
        self.hear(scribe, answers).await;
    }
}

fn watch(key: &'static str, end: &'static str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

async fn watches(scribe: &mut Scribe) {
    use RequestUnion::{CancelRequest, CreateRequest, ProgressRequest};
    scribe.title("watches");
    let mut watching = Watching::open(scribe, CreateRequest(watch("w/", "w0")), 1).await;
    scribe.put(put("w/1", "1")).await;
    watching.hear(scribe, 1).await;
    scribe.put(put("other", "1")).await;
    scribe.delete(delete("w/", "w0")).await;
    watching.hear(scribe, 1).await;
    let past = pb::WatchCreateRequest { start_revision: 2, prev_kv: true, ..watch("a", "") };
    watching.ask(scribe, CreateRequest(past), 2).await;
    watching.ask(scribe, CreateRequest(pb::WatchCreateRequest { watch_id: 1, ..watch("a", "") }), 1).await;
    watching.ask(scribe, CreateRequest(pb::WatchCreateRequest { watch_id: 50, ..watch("a", "") }), 1).await;
    watching.ask(scribe, CreateRequest(watch("b", "a")), 1).await;
    watching.ask(scribe, CancelRequest(pb::WatchCancelRequest { watch_id: 50 }), 1).await;
    watching.send(scribe, CancelRequest(pb::WatchCancelRequest { watch_id: 51 })).await;
    watching.ask(scribe, ProgressRequest(pb::WatchProgressRequest {}), 1).await;
    watching.requests.send(pb::WatchRequest { request_union: None }).await.unwrap();
    watching.ask(scribe, CancelRequest(pb::WatchCancelRequest { watch_id: 0 }), 1).await;
    filtered_watches(scribe).await;
}

async fn filtered_watches(scribe: &mut Scribe) {
    use RequestUnion::CreateRequest;

    let no_put = pb::WatchCreateRequest { filters: vec![0], ..watch("f", "") };
    let mut watching = Watching::open(scribe, CreateRequest(no_put), 1).await;

    let no_delete = pb::WatchCreateRequest { filters: vec![1], ..watch("f", "") };
    let mut other = Watching::open(scribe, CreateRequest(no_delete), 1).await;
    scribe.put(put("f", "1")).await;
    scribe.delete(delete("f", "")).await;
    scribe.put(put("f", "2")).await;
    watching.hear(scribe, 1).await;
    other.hear(scribe, 2).await;
    let mut all = Watching::open(scribe, CreateRequest(watch("", "\0")), 1).await;
    let txn = pb::TxnRequest {
        success: vec![op_put("q", "1"), op_put("p", "1"), op_delete("f", "")],
        ..Default::default()
    };
    scribe.txn("several events at one revision", txn).await;
    all.hear(scribe, 1).await;
}

async fn compactions(scribe: &mut Scribe) {
    use RequestUnion::CreateRequest;
    scribe.title("compactions");
    scribe.compact(5, false).await;
    scribe.compact(5, false).await;
    scribe.compact(4, true).await;
    scribe.compact(1000, true).await;
    scribe.compact(0, false).await;
    scribe.compact(-3, false).await;
    scribe.compact(8, true).await;
    scribe.range(pb::RangeRequest { revision: 7, ..range("a", "") }).await;
    scribe.range(pb::RangeRequest { revision: 8, ..range("a", "") }).await;
    let compacted = op(Op::RequestRange(pb::RangeRequest { revision: 7, ..range("a", "") }));
    let txn = pb::TxnRequest { success: vec![op_put("a", "x"), compacted], ..Default::default() };
    scribe.txn("a read of what was compacted", txn).await;

    let past = pb::WatchCreateRequest { start_revision: 3, ..watch("a", "") };
    Watching::open(scribe, CreateRequest(past), 2).await;
}

async fn maintenance(scribe: &mut Scribe) {
    scribe.title("maintenance");
    scribe.hash_kv(0).await;
    scribe.hash_kv(7).await;
    scribe.hash_kv(1000).await;
    let mut client = MaintenanceClient::new(scribe.channel.clone());
    let alarm = client.alarm(pb::AlarmRequest::default()).await;
    scribe.answer("Alarm GET", alarm);
    let moved = client.move_leader(pb::MoveLeaderRequest { target_id: 42 }).await;
    scribe.answer("MoveLeader to a stranger", moved);
}
