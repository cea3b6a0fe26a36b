//! Several keyspaces over one port: that they share nothing. Who gets to which is in `entrances`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hadron::pool_client::PoolClient;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::hadron;
use hadron_proto::v3lockpb as lockpb;
use lockpb::lock_client::LockClient;
use pb::alarm_request::AlarmAction;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::balance;
use super::harness::{Harness, OWN};
use crate::api::{Backend as _, ServerOptions, Traffic};

const PATIENCE: Duration = Duration::from_secs(20);

/// Puts the keyspace's name, and a token if there is one, into each call.
#[derive(Clone)]
pub(super) struct Named {
    keyspace: &'static str,
    token: Option<String>,
}

impl tonic::service::Interceptor for Named {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if !self.keyspace.is_empty() {
            metadata.insert("hadron-keyspace", self.keyspace.parse().unwrap());
        }
        if let Some(token) = &self.token {
            metadata.insert("token", token.parse().unwrap());
        }
        Ok(request)
    }
}

pub(super) type Way = InterceptedService<Channel, Named>;

/// The way to a keyspace; the empty name names none.
pub(super) fn to(channel: &Channel, keyspace: &'static str) -> Way {
    InterceptedService::new(channel.clone(), Named { keyspace, token: None })
}

fn with_token(channel: &Channel, keyspace: &'static str, token: &str) -> Way {
    InterceptedService::new(channel.clone(), Named { keyspace, token: Some(token.to_owned()) })
}

pub(super) fn put_request(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

pub(super) async fn put(way: Way, key: &str, value: &str) -> Result<pb::PutResponse, Status> {
    KvClient::new(way).put(put_request(key, value)).await.map(tonic::Response::into_inner)
}

pub(super) fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

pub(super) async fn range(way: Way, range: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
    KvClient::new(way).range(range).await.map(tonic::Response::into_inner)
}

/// Everything in a keyspace as `key=value`.
pub(super) async fn content(way: Way) -> Result<Vec<String>, Status> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let kvs = range(way, all()).await?.kvs;
    Ok(kvs.iter().map(|kv| format!("{}={}", text(&kv.key), text(&kv.value))).collect())
}

pub(super) fn of_two() -> Harness {
    let harness = Harness::start();
    harness.backend.create("a", OWN);
    harness.backend.create("b", OWN);
    harness
}

/// A page, or what the gateway says: status code and body.
pub(super) fn http(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(socket, "{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn keys_revisions_hashes_and_counts_are_a_keyspaces_own() {
    of_two().run(async |channel| {
        let way = |keyspace| to(&channel, keyspace);
        put(way(""), "k", "in default").await.unwrap();
        put(way(""), "k2", "x").await.unwrap();
        let in_a = put(way("a"), "k", "in a").await.unwrap().header.unwrap();
        let in_b = put(way("b"), "k", "in b").await.unwrap().header.unwrap();
        assert_eq!((in_a.revision, in_b.revision), (2, 2), "each begins at its own beginning");
        assert_eq!(content(way("")).await.unwrap(), ["k=in default", "k2=x"]);
        assert_eq!(content(way("default")).await.unwrap(), ["k=in default", "k2=x"]);
        assert_eq!(content(way("a")).await.unwrap(), ["k=in a"]);
        let counted = range(way("b"), pb::RangeRequest { count_only: true, ..all() }).await.unwrap();
        assert_eq!(counted.count, 1);

        let hash = async |keyspace| {
            let request = pb::HashKvRequest { revision: 2 };
            let mut client = MaintenanceClient::new(way(keyspace));
            client.hash_kv(request).await.unwrap().into_inner().hash
        };
        assert_ne!(hash("a").await, hash("b").await);

        let everything =
            pb::DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let deleted = KvClient::new(way("a")).delete_range(everything).await.unwrap().into_inner();
        assert_eq!(deleted.deleted, 1);
        let compact = pb::CompactionRequest { revision: 3, physical: true };
        KvClient::new(way("a")).compact(compact).await.unwrap();
        assert_eq!(content(way("a")).await.unwrap(), [""; 0]);
        assert_eq!(content(way("b")).await.unwrap(), ["k=in b"]);
        let old = range(way("b"), pb::RangeRequest { revision: 1, ..all() }).await;
        assert!(old.is_ok(), "what was compacted is another keyspace's history");
    });
}

#[test]
fn cluster_ids_tell_keyspaces_apart_even_those_of_one_name() {
    let harness = of_two();
    harness.run(async |channel| {
        let id = async |keyspace| {
            let header = range(to(&channel, keyspace), all()).await.unwrap().header.unwrap();
            assert_eq!(header.member_id, 1);
            header.cluster_id
        };
        let (default, a, b) = (id("").await, id("a").await, id("b").await);
        assert_eq!(default, 7, "as with etcd");
        assert!(a != default && a != b && b != default);
        harness.backend.delete("a");
        harness.backend.create("a", OWN);
        assert_ne!(id("a").await, a);
        let status = MaintenanceClient::new(to(&channel, "b")).status(pb::StatusRequest {}).await.unwrap();
        assert_eq!(status.into_inner().header.unwrap().cluster_id, b);
    });
}

#[test]
fn leases_and_locks_are_a_keyspaces_own() {
    of_two().run(async |channel| {
        let lease = |keyspace| LeaseClient::new(to(&channel, keyspace));
        let grant = pb::LeaseGrantRequest { ttl: 60, id: 9 };
        lease("a").lease_grant(grant).await.unwrap();
        lease("b").lease_grant(grant).await.unwrap();
        let with_lease = pb::PutRequest { lease: 9, ..put_request("k", "v") };
        KvClient::new(to(&channel, "a")).put(with_lease.clone()).await.unwrap();
        KvClient::new(to(&channel, "b")).put(with_lease.clone()).await.unwrap();
        let status = KvClient::new(to(&channel, "")).put(with_lease).await.unwrap_err();
        assert_eq!(status.message(), "etcdserver: requested lease not found");
        lease("a").lease_revoke(pb::LeaseRevokeRequest { id: 9 }).await.unwrap();
        assert_eq!(content(to(&channel, "a")).await.unwrap(), [""; 0]);
        assert_eq!(content(to(&channel, "b")).await.unwrap(), ["k=v"]);
        let leases = async |keyspace| {
            lease(keyspace).lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner().leases.len()
        };
        assert_eq!((leases("").await, leases("a").await, leases("b").await), (0, 0, 1));

        for keyspace in ["", "a", "b"] {
            let lock = lockpb::LockRequest { name: "one".into(), lease: 0 };
            let mut client = LockClient::new(to(&channel, keyspace));
            tokio::time::timeout(PATIENCE, client.lock(lock)).await.expect("nobody else has it").unwrap();
        }
    });
}

pub(super) async fn watch(way: Way) -> (mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>) {
    let (sender, requests) = mpsc::channel(4);
    let create = pb::WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    sender.send(create).await.unwrap();
    let answer = WatchClient::new(way).watch(ReceiverStream::new(requests)).await;
    let mut responses = answer.unwrap().into_inner();
    assert!(responses.message().await.unwrap().unwrap().created);
    (sender, responses)
}

#[test]
fn watches_see_their_keyspace_alone() {
    of_two().run(async |channel| {
        let (_a, mut in_a) = watch(to(&channel, "a")).await;
        let (_default, mut in_default) = watch(to(&channel, "")).await;
        put(to(&channel, "b"), "other", "x").await.unwrap();
        put(to(&channel, ""), "k", "in default").await.unwrap();
        put(to(&channel, "a"), "k", "in a").await.unwrap();
        for (responses, value) in [(&mut in_a, "in a"), (&mut in_default, "in default")] {
            let response = responses.message().await.unwrap().unwrap();
            let values: Vec<_> =
                response.events.iter().map(|event| event.kv.clone().unwrap().value).collect();
            assert_eq!(values, [value]);
            assert_eq!(response.header.unwrap().revision, 2);
        }
    });
}

#[test]
fn what_is_deleted_ends_its_streams_and_comes_back_empty() {
    let harness = of_two();
    harness.run(async |channel| {
        put(to(&channel, "a"), "k", "v").await.unwrap();
        let (_watch, mut events) = watch(to(&channel, "a")).await;
        let (_other, mut others) = watch(to(&channel, "b")).await;
        let lock = |keyspace| {
            let lock = lockpb::LockRequest { name: "one".into(), lease: 0 };
            let mut client = LockClient::new(to(&channel, keyspace));
            async move { client.lock(lock).await }
        };
        lock("a").await.unwrap();
        let waiting = tokio::spawn(lock("a"));
        // It waits once it watches its own key and that before it.
        let group = harness.backend.with_catalog(|catalog| catalog.keyspace("a").unwrap().group_id());
        let replica = harness.backend.keyspace(group).unwrap();
        let start = std::time::Instant::now();
        while replica.watcher_counts().all < 3 {
            assert!(start.elapsed() < PATIENCE);
            content(to(&channel, "a")).await.unwrap();
        }
        harness.backend.delete("a");
        harness.backend.create("a", OWN);
        let end = async {
            loop {
                if let Err(status) = events.message().await {
                    return status.code();
                }
            }
        };
        let end = tokio::time::timeout(PATIENCE, end).await.expect("the watch ends");
        assert_eq!(end, Code::NotFound);
        let end = tokio::time::timeout(PATIENCE, waiting).await.expect("the wait ends").unwrap();
        assert_eq!(end.unwrap_err().message(), "hadron: there is no keyspace \"a\"");
        assert_eq!(content(to(&channel, "a")).await.unwrap(), [""; 0]);
        put(to(&channel, "b"), "k", "v").await.unwrap();
        assert_eq!(others.message().await.unwrap().unwrap().events.len(), 1, "others go on");
    });
}

async fn switch_auth_on(way: Way) -> String {
    let mut auth = AuthClient::new(way);
    let user = |password: &str| pb::AuthUserAddRequest {
        name: "root".to_owned(),
        password: password.to_owned(),
        ..Default::default()
    };
    auth.user_add(user("same")).await.unwrap();
    auth.role_add(pb::AuthRoleAddRequest { name: "root".to_owned() }).await.unwrap();
    let grant = pb::AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
    auth.user_grant_role(grant).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let login = pb::AuthenticateRequest { name: "root".to_owned(), password: "same".to_owned() };
    auth.authenticate(login).await.unwrap().into_inner().token
}

#[test]
fn users_and_tokens_are_a_keyspaces_own() {
    let options = ServerOptions { threads: 2, bcrypt_cost: 4, ..ServerOptions::default() };
    let harness = Harness::start_with(options, Traffic::Everything);
    harness.backend.create("a", OWN);
    harness.backend.create("b", OWN);
    harness.run(async |channel| {
        let token_of_a = switch_auth_on(to(&channel, "a")).await;
        assert_eq!(put(to(&channel, "a"), "k", "v").await.unwrap_err().code(), Code::InvalidArgument);
        put(to(&channel, "b"), "k", "v").await.unwrap();
        put(to(&channel, ""), "k", "v").await.unwrap();
        let token_of_b = switch_auth_on(to(&channel, "b")).await;
        let token_of_default = switch_auth_on(to(&channel, "")).await;
        let tokens = [("a", &token_of_a), ("b", &token_of_b), ("", &token_of_default)];
        for (keyspace, _) in tokens {
            for (maker, token) in tokens {
                let answer = put(with_token(&channel, keyspace, token), "k", "w").await;
                let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
                let expected = if maker == keyspace { Code::Ok } else { Code::Unauthenticated };
                assert_eq!(code, expected, "a token of {maker:?} in {keyspace:?}");
            }
        }
    });
}

#[test]
fn space_and_alarms_are_a_keyspaces_own() {
    let harness = of_two();
    harness.backend.alter("a", |record| record.bytes_max = 5_000);
    harness.run(async |channel| {
        let full = async |keyspace| {
            let value = "x".repeat(1_000);
            for n in 0..20 {
                if let Err(status) = put(to(&channel, keyspace), &format!("k{n}"), &value).await {
                    assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
                    return true;
                }
            }
            false
        };
        assert!(full("a").await);
        assert!(!full("b").await && !full("").await);
        let alarms = async |keyspace| {
            let get = pb::AlarmRequest { action: AlarmAction::Get as i32, ..Default::default() };
            let mut client = MaintenanceClient::new(to(&channel, keyspace));
            client.alarm(get).await.unwrap().into_inner().alarms.len()
        };
        assert_eq!((alarms("a").await, alarms("b").await, alarms("").await), (1, 0, 0));
        let status = async |keyspace| {
            let mut client = MaintenanceClient::new(to(&channel, keyspace));
            client.status(pb::StatusRequest {}).await.unwrap().into_inner()
        };
        assert_eq!((status("a").await.db_size_quota, status("b").await.db_size_quota), (5_000, 0));
        assert!(status("a").await.db_size < status("b").await.db_size);
        let (_, health) = http(harness.address, "GET /health HTTP/1.1\r\nHost: x\r\nhadron-keyspace: a", "");
        assert!(health.contains("ALARM NOSPACE"), "{health}");
        assert_eq!(http(harness.address, "GET /health HTTP/1.1\r\nHost: x", "").0, 200);
    });
}

#[test]
fn requests_are_limited_for_each_keyspace_alone_and_leases_live_on() {
    let harness = of_two();
    harness.backend.alter("a", |record| record.requests_per_second_max = 1);
    harness.run(async |channel| {
        let lease = pb::LeaseGrantRequest { ttl: 60, id: 9 };
        LeaseClient::new(to(&channel, "a")).lease_grant(lease).await.unwrap();
        let mut refused = None;
        for _ in 0..100 {
            refused = refused.or(range(to(&channel, "a"), all()).await.err());
            range(to(&channel, "b"), all()).await.unwrap();
        }
        let refused = refused.expect("a hundred reads are more than one a second");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(
            refused.message().contains("the keyspace a has used up its 1 requests a second"),
            "{refused}"
        );
        let ids = tokio_stream::iter((0..10).map(|_| pb::LeaseKeepAliveRequest { id: 9 }));
        let answers = LeaseClient::new(to(&channel, "a")).lease_keep_alive(ids).await.unwrap();
        let mut answers = answers.into_inner();
        for _ in 0..10 {
            assert_eq!(answers.message().await.unwrap().unwrap().ttl, 60);
        }
        let by_client = hadron::TopRequest { by: hadron::TopBy::Client.into() };
        let top = PoolClient::new(channel.clone()).top(by_client).await.unwrap().into_inner();
        let requests = |keyspace: &str| {
            balance::load(top.entries.iter().find(|entry| entry.keyspace == keyspace).unwrap(), "requests")
        };
        assert!(requests("a") > requests("b"), "what is refused counts for who asks: {top:?}");
        let head = "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nGrpc-Metadata-Hadron-Keyspace: a";
        assert_eq!((0..3).map(|_| http(harness.address, head, "{}").0).max(), Some(429));
    });
}

#[test]
fn what_is_frozen_is_read_and_not_written_and_its_leases_live_on() {
    let harness = of_two();
    harness.run(async |channel| {
        LeaseClient::new(to(&channel, "a"))
            .lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 9 })
            .await
            .unwrap();
        put(to(&channel, "a"), "k", "v").await.unwrap();
        let (_watch, _events) = watch(to(&channel, "a")).await;
        harness.backend.alter("a", |record| record.state = 1);
        let expected = "hadron: the keyspace a is frozen: it can only be read";
        let frozen = |status: Status| {
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, expected));
        };
        frozen(put(to(&channel, "a"), "k", "w").await.unwrap_err());
        // One that is full besides raised an alarm for what it would not have taken anyhow.
        harness.backend.alter("a", |record| record.bytes_max = 1);
        frozen(put(to(&channel, "a"), "k", "w").await.unwrap_err());
        let grant = pb::LeaseGrantRequest { ttl: 60, id: 10 };
        frozen(LeaseClient::new(to(&channel, "a")).lease_grant(grant).await.unwrap_err());
        let alarms = MaintenanceClient::new(to(&channel, "a")).alarm(pb::AlarmRequest::default()).await;
        assert_eq!(alarms.unwrap().into_inner().alarms, []);
        harness.backend.alter("a", |record| record.bytes_max = 0);
        let mut kv = KvClient::new(to(&channel, "a"));
        frozen(kv.compact(pb::CompactionRequest { revision: 2, physical: false }).await.unwrap_err());
        frozen(
            kv.delete_range(pb::DeleteRangeRequest { key: "k".into(), ..Default::default() })
                .await
                .unwrap_err(),
        );
        let mut lease = LeaseClient::new(to(&channel, "a"));
        frozen(lease.lease_revoke(pb::LeaseRevokeRequest { id: 9 }).await.unwrap_err());
        let alive = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 9 }]);
        let alive = lease.lease_keep_alive(alive).await.unwrap().into_inner().message().await.unwrap();
        assert_eq!(alive.unwrap().ttl, 60);
        assert_eq!(content(to(&channel, "a")).await.unwrap(), ["k=v"]);
        harness.backend.alter("a", |record| record.state = 0);
        put(to(&channel, "a"), "k", "w").await.unwrap();
    });
}

#[test]
fn history_is_compacted_in_every_keyspace_but_frozen_ones() {
    let harness = of_two();
    harness.backend.create("still", OWN);
    harness.run(async |channel| {
        for keyspace in ["", "a", "b", "still"] {
            for n in 0..10 {
                put(to(&channel, keyspace), "k", &n.to_string()).await.unwrap();
            }
        }
        harness.backend.alter("still", |record| record.state = 1);
        let retention = crate::api::Retention::Time(Duration::from_millis(100));
        let compacting = crate::api::compactor::run(harness.backend.clone(), retention);
        let compacted = async |keyspace| {
            let old = pb::RangeRequest { revision: 2, ..all() };
            range(to(&channel, keyspace), old).await.is_err_and(|status| status.code() == Code::OutOfRange)
        };
        let done = async {
            while !(compacted("").await && compacted("a").await && compacted("b").await) {
                tokio::task::yield_now().await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, done);
        tokio::select! {
            () = compacting => unreachable!("it goes on for ever"),
            done = done => done.unwrap(),
        }
        assert!(!compacted("still").await);
    });
}

#[test]
fn many_keyspaces_are_kept_apart_and_forgotten() {
    let options = ServerOptions { threads: 1, ..ServerOptions::default() };
    let harness = Harness::start_with(options, Traffic::Everything);
    let names: Vec<String> = (0..200).map(|n| format!("t{n}")).collect();
    harness.run(async |channel| {
        for name in &names {
            harness.backend.create(name, OWN);
            let name: &'static str = name.clone().leak();
            put(to(&channel, name), "who", name).await.unwrap();
        }
        for name in names.iter().rev() {
            let name: &'static str = name.clone().leak();
            assert_eq!(content(to(&channel, name)).await.unwrap(), [format!("who={name}")]);
            harness.backend.delete(name);
            assert_eq!(content(to(&channel, name)).await.unwrap_err().code(), Code::NotFound);
        }
    });
}
