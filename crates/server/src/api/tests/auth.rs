//! Users, roles, tokens, and who may do what. `auth.txt` is what a real etcd (3.5) answered to [`conversation`]; ours must
//! say the same. To make it anew, start an empty etcd and run `HADRON_ORACLE=127.0.0.1:2379 cargo test -p hadron-server auth`.
//!
//! Where later versions of etcd are stricter than 3.5, so is this; that is in the other tests here.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hadron_consensus::GroupId;
use hadron_keyspace::auth::{AuthCommand, Caller, NAME_BYTES_MAX};
use hadron_keyspace::{Applied, Command, Keyspace, Options};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::hadron as pool;
use hadron_proto::v3lockpb as lockpb;
use hadron_storage::engine::ModelEngine;
use lockpb::lock_client::LockClient;
use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use pool::pool_client::PoolClient;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::balance;
use super::gateway::{mask, send};
use super::harness::Harness;
use crate::api::{Limits, ServerOptions, Traffic};

const GOLDEN: &str = include_str!("auth.txt");
const STREAM_TIMEOUT: Duration = Duration::from_secs(10);

fn b64(text: &str) -> String {
    BASE64.encode(text)
}

/// What is asked, in order: by whom, the path below `/v3/`, and the body. Whoever authenticated last under a name has its token.
fn conversation() -> Vec<(&'static str, &'static str, Value)> {
    let mut all = before_it_is_on();
    all.extend(while_it_is_on());
    all.extend(what_changes());
    all
}

fn grant(role: &str, kind: &str, key: &str, range_end: &str) -> Value {
    json!({"name": role, "perm": {"permType": kind, "key": b64(key), "range_end": b64(range_end)}})
}

fn range(key: &str, range_end: &str) -> Value {
    json!({"key": b64(key), "range_end": b64(range_end)})
}

fn put(key: &str) -> Value {
    json!({"key": b64(key), "value": b64("v")})
}

fn before_it_is_on() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("", "auth/status", json!({})),
        ("", "auth/authenticate", json!({"name": "root", "password": "x"})),
        ("", "auth/enable", json!({})),
        ("", "auth/user/add", json!({"name": "", "password": "x"})),
        ("", "auth/user/add", json!({"name": "root", "password": "secret"})),
        ("", "auth/user/add", json!({"name": "root", "password": "other"})),
        ("", "auth/enable", json!({})),
        ("", "auth/user/get", json!({"name": "nobody"})),
        ("", "auth/user/grant", json!({"user": "root", "role": "missing"})),
        ("", "auth/user/grant", json!({"user": "nobody", "role": "root"})),
        ("", "auth/role/add", json!({"name": ""})),
        ("", "auth/role/add", json!({"name": "root"})),
        ("", "auth/role/add", json!({"name": "root"})),
        ("", "auth/user/grant", json!({"user": "root", "role": "root"})),
        ("", "auth/user/grant", json!({"user": "root", "role": "root"})),
        ("", "auth/user/get", json!({"name": "root"})),
        ("", "auth/role/get", json!({"role": "missing"})),
        ("", "auth/user/add", json!({"name": "alice", "password": "a"})),
        ("", "auth/user/add", json!({"name": "silent", "options": {"no_password": true}})),
        ("", "auth/role/add", json!({"name": "b-to-d"})),
        ("", "auth/role/grant", grant("b-to-d", "READWRITE", "b", "d")),
        ("", "auth/role/grant", grant("b-to-d", "READ", "r", "")),
        ("", "auth/role/grant", grant("b-to-d", "WRITE", "w", "")),
        ("", "auth/role/grant", grant("missing", "READ", "r", "")),
        ("", "auth/role/grant", json!({"name": "b-to-d"})),
        ("", "auth/role/get", json!({"role": "b-to-d"})),
        ("", "auth/user/grant", json!({"user": "alice", "role": "b-to-d"})),
        ("", "auth/user/revoke", json!({"name": "alice", "role": "root"})),
        ("", "auth/user/revoke", json!({"name": "nobody", "role": "root"})),
        ("", "auth/role/revoke", json!({"role": "b-to-d", "key": b64("nothing")})),
        ("", "auth/user/list", json!({})),
        ("", "auth/role/list", json!({})),
        ("", "kv/put", put("a")),
        ("", "kv/put", put("r")),
        ("", "auth/enable", json!({})),
        ("", "auth/enable", json!({})),
    ]
}

fn while_it_is_on() -> Vec<(&'static str, &'static str, Value)> {
    let read = |key: &str| json!({"request_range": {"key": b64(key)}});
    let write = |key: &str, prev_kv: bool| json!({"request_put": {"key": b64(key), "value": b64("v"), "prev_kv": prev_kv}});
    vec![
        ("", "kv/put", put("b")),
        ("", "kv/range", range("b", "")),
        ("", "kv/deleterange", range("b", "")),
        ("", "kv/txn", json!({"success": [read("b")]})),
        ("", "kv/txn", json!({"success": [write("b", false)]})),
        ("", "auth/user/list", json!({})),
        ("", "auth/user/add", json!({"name": "x", "password": "x"})),
        ("", "auth/disable", json!({})),
        ("nonsense", "kv/range", range("b", "")),
        ("nonsense", "kv/put", put("b")),
        ("", "auth/authenticate", json!({"name": "alice", "password": "wrong"})),
        ("", "auth/authenticate", json!({"name": "nobody", "password": "a"})),
        ("", "auth/authenticate", json!({"name": "silent", "password": ""})),
        ("", "auth/authenticate", json!({"name": "alice", "password": "a"})),
        ("", "auth/authenticate", json!({"name": "root", "password": "secret"})),
        ("alice", "kv/put", put("b")),
        ("alice", "kv/put", put("cx")),
        ("alice", "kv/put", put("a")),
        ("alice", "kv/put", put("d")),
        ("alice", "kv/put", put("r")),
        ("alice", "kv/put", put("w")),
        ("alice", "kv/put", json!({"key": b64("w"), "prev_kv": true})),
        ("alice", "kv/range", range("b", "d")),
        ("alice", "kv/range", range("b", "e")),
        ("alice", "kv/range", range("a", "c")),
        ("alice", "kv/range", range("b", "\0")),
        ("alice", "kv/range", range("r", "")),
        ("alice", "kv/range", range("w", "")),
        ("alice", "kv/deleterange", range("w", "")),
        ("alice", "kv/deleterange", json!({"key": b64("w"), "prev_kv": true})),
        ("alice", "kv/deleterange", range("b", "z")),
        ("alice", "kv/txn", json!({"success": [read("b"), read("r")]})),
        ("alice", "kv/txn", json!({"success": [read("b")], "failure": [read("a")]})),
        ("alice", "kv/txn", json!({"success": [write("b", true), write("w", false)]})),
        ("alice", "kv/txn", json!({"compare": [{"key": b64("a"), "version": "1"}], "success": [read("b")]})),
        (
            "alice",
            "kv/txn",
            json!({"compare": [{"key": b64("r"), "version": "1"}], "success": [write("b", false)]}),
        ),
        ("alice", "auth/user/get", json!({"name": "alice"})),
        ("alice", "auth/user/get", json!({"name": "root"})),
        ("alice", "auth/role/get", json!({"role": "b-to-d"})),
        ("alice", "auth/role/get", json!({"role": "root"})),
        ("alice", "auth/user/list", json!({})),
        ("alice", "auth/role/list", json!({})),
        ("alice", "auth/user/changepw", json!({"name": "alice", "password": "mine"})),
        ("alice", "auth/disable", json!({})),
        ("root", "lease/grant", json!({"ID": "7", "TTL": "100"})),
        ("root", "kv/put", json!({"key": b64("z"), "lease": "7"})),
        ("alice", "kv/put", json!({"key": b64("b"), "lease": "7"})),
        ("alice", "lease/revoke", json!({"ID": "7"})),
        ("root", "lease/revoke", json!({"ID": "7"})),
        ("root", "kv/range", range("a", "\0")),
        ("root", "auth/user/list", json!({})),
        ("root", "auth/user/delete", json!({"name": "root"})),
        ("root", "auth/user/revoke", json!({"name": "root", "role": "root"})),
        ("root", "auth/role/delete", json!({"role": "root"})),
        ("root", "auth/user/delete", json!({"name": "nobody"})),
        ("root", "auth/role/delete", json!({"role": "missing"})),
    ]
}

fn what_changes() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("root", "auth/role/grant", grant("b-to-d", "READ", "a", "")),
        ("alice", "kv/range", range("a", "d")),
        ("alice", "kv/range", range("a", "c")),
        ("root", "auth/role/revoke", json!({"role": "b-to-d", "key": b64("b"), "range_end": b64("d")})),
        ("alice", "kv/range", range("b", "")),
        ("alice", "kv/range", range("a", "")),
        ("root", "auth/user/changepw", json!({"name": "alice", "password": "new"})),
        ("", "auth/authenticate", json!({"name": "alice", "password": "a"})),
        ("", "auth/authenticate", json!({"name": "alice", "password": "new"})),
        ("root", "auth/role/delete", json!({"role": "b-to-d"})),
        ("alice", "kv/range", range("a", "")),
        ("root", "auth/user/get", json!({"name": "alice"})),
        ("root", "auth/user/delete", json!({"name": "alice"})),
        ("alice", "kv/range", range("a", "")),
        ("", "auth/authenticate", json!({"name": "alice", "password": "new"})),
        ("root", "auth/disable", json!({})),
        ("", "auth/status", json!({})),
        ("", "kv/put", put("b")),
    ]
}

fn converse(address: SocketAddr) -> String {
    let (mut text, mut tokens) = (String::new(), HashMap::new());
    for (user, path, body) in conversation() {
        let head = match (user, tokens.get(user)) {
            ("", _) => String::new(),
            (_, Some(token)) => format!("Authorization: {token}\r\n"),
            (unknown, None) => format!("Authorization: {unknown}\r\n"),
        };
        let body_text = body.to_string();
        let length = body_text.len();
        let request = format!(
            "POST /v3/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}Content-Length: {length}\r\n\r\n{body_text}"
        );
        let mut answer = send(address, &request);
        let mut said = answer.json();
        if let Some(token) = said.as_object_mut().and_then(|said| said.remove("token")) {
            tokens.insert(body["name"].as_str().unwrap().to_owned(), token.as_str().unwrap().to_owned());
        }
        mask(&mut said);
        let status = answer.status;
        writeln!(text, "> {user}: {path} {body}\n< {status} {said}").unwrap();
    }
    text
}

/// Passwords are not what is tested here.
pub(super) fn options() -> ServerOptions {
    ServerOptions { threads: 1, bcrypt_cost: 4, ..ServerOptions::default() }
}

#[test]
fn the_conversation_is_etcds() {
    if let Ok(address) = std::env::var("HADRON_ORACLE") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/tests/auth.txt");
        std::fs::write(path, converse(address.parse().unwrap())).unwrap();
        return;
    }
    let ours = converse(Harness::start_with(options(), Traffic::Everything).address);
    let lines: Vec<(&str, &str)> = std::iter::zip(ours.lines(), GOLDEN.lines()).collect();
    let question = |at: usize| if at % 2 == 1 { lines[at - 1].0 } else { "" };
    let different: Vec<String> = (0..lines.len())
        .filter(|at| lines[*at].0 != lines[*at].1)
        .map(|at| format!("{}\n ours {}\netcd's {}", question(at), lines[at].0, lines[at].1))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_eq!(ours.lines().count(), GOLDEN.lines().count());
}

/// A client with a token, or without.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) channel: Channel,
    token: Option<String>,
}

impl Client {
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    /// The same connection with a user's token.
    pub(super) async fn log_in(&self, name: &str, password: &str) -> Result<Client, Status> {
        let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        let answer = AuthClient::new(self.channel.clone()).authenticate(request).await?;
        Ok(Client { channel: self.channel.clone(), token: Some(answer.into_inner().token) })
    }

    async fn range(&self, key: &'static str) -> Result<(), Status> {
        let range = pb::RangeRequest { key: key.into(), ..Default::default() };
        KvClient::new(self.channel.clone()).range(self.request(range)).await.map(drop)
    }

    async fn put(&self, key: &'static str) -> Result<(), Status> {
        let put = pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
        KvClient::new(self.channel.clone()).put(self.request(put)).await.map(drop)
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    async fn grant(&self, role: &str, key: &'static str, range_end: &'static str) -> Result<(), Status> {
        let perm = hadron_proto::authpb::Permission {
            perm_type: hadron_proto::authpb::permission::Type::Readwrite as i32,
            key: key.into(),
            range_end: range_end.into(),
        };
        let request = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
        self.auth().role_grant_permission(self.request(request)).await.map(drop)
    }

    pub(super) async fn revoke(
        &self,
        role: &str,
        key: &'static str,
        range_end: &'static str,
    ) -> Result<(), Status> {
        let request = pb::AuthRoleRevokePermissionRequest {
            role: role.into(),
            key: key.into(),
            range_end: range_end.into(),
        };
        self.auth().role_revoke_permission(self.request(request)).await.map(drop)
    }

    async fn add_user(&self, name: &str, password: &str, role: &str) -> Result<(), Status> {
        let user =
            pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
        self.auth().user_add(self.request(user)).await?;
        let add = pb::AuthRoleAddRequest { name: role.into() };
        self.auth().role_add(self.request(add)).await?;
        let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: role.into() };
        self.auth().user_grant_role(self.request(grant)).await.map(drop)
    }

    async fn watch(
        &self,
        key: &'static str,
    ) -> (mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>) {
        let (sender, receiver) = mpsc::channel(4);
        let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        sender.send(request).await.unwrap();
        let request = self.request(ReceiverStream::new(receiver));
        (sender, WatchClient::new(self.channel.clone()).watch(request).await.unwrap().into_inner())
    }
}

async fn next(stream: &mut Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    tokio::time::timeout(STREAM_TIMEOUT, stream.message()).await.unwrap().unwrap().unwrap()
}

/// `root` with the password `r`, and `alice`, who has the role `ab` for the keys from `a` to `b`, with the password `a`. On.
pub(super) async fn switched_on(channel: Channel) -> (Client, Client, Client) {
    let nobody = Client { channel, token: None };
    nobody.add_user("root", "r", "root").await.unwrap();
    nobody.add_user("alice", "a", "ab").await.unwrap();
    nobody.grant("ab", "a", "b").await.unwrap();
    nobody.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let root = nobody.log_in("root", "r").await.unwrap();
    let alice = nobody.log_in("alice", "a").await.unwrap();
    (nobody, root, alice)
}

fn assert_refused(result: Result<(), Status>, code: Code, text: &str) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

const EMPTY: (Code, &str) = (Code::InvalidArgument, "etcdserver: user name is empty");
const DENIED: (Code, &str) = (Code::PermissionDenied, "etcdserver: permission denied");
const BAD_TOKEN: (Code, &str) = (Code::Unauthenticated, "etcdserver: invalid auth token");

/// Every call that needs root, made by `client`: its name and its outcome.
async fn calls_of_root(client: &Client) -> Vec<(&'static str, Result<(), Status>)> {
    let mut kv = KvClient::new(client.channel.clone());
    let mut cluster = ClusterClient::new(client.channel.clone());
    let mut maintenance = MaintenanceClient::new(client.channel.clone());
    let disarm = pb::AlarmRequest { action: 2, ..Default::default() };
    let auth = || client.auth();
    let name = || "new".to_owned();
    let add_user = pb::AuthUserAddRequest { name: name(), password: "n".into(), ..Default::default() };
    let grant_root = pb::AuthUserGrantRoleRequest { user: "alice".into(), role: "root".into() };
    let revoke_role = pb::AuthUserRevokeRoleRequest { name: "alice".into(), role: "ab".into() };
    let key = hadron_proto::authpb::Permission { key: "z".into(), ..Default::default() };
    let permit = pb::AuthRoleGrantPermissionRequest { name: "ab".into(), perm: Some(key) };
    let forbid =
        pb::AuthRoleRevokePermissionRequest { role: "ab".into(), key: "z".into(), ..Default::default() };
    vec![
        ("UserAdd", auth().user_add(client.request(add_user)).await.map(drop)),
        ("UserGrantRole", auth().user_grant_role(client.request(grant_root)).await.map(drop)),
        ("UserRevokeRole", auth().user_revoke_role(client.request(revoke_role)).await.map(drop)),
        (
            "UserDelete",
            auth().user_delete(client.request(pb::AuthUserDeleteRequest { name: name() })).await.map(drop),
        ),
        ("RoleAdd", auth().role_add(client.request(pb::AuthRoleAddRequest { name: name() })).await.map(drop)),
        ("RoleGrantPermission", auth().role_grant_permission(client.request(permit)).await.map(drop)),
        ("RoleRevokePermission", auth().role_revoke_permission(client.request(forbid)).await.map(drop)),
        (
            "RoleDelete",
            auth().role_delete(client.request(pb::AuthRoleDeleteRequest { role: name() })).await.map(drop),
        ),
        ("Compact", kv.compact(client.request(Default::default())).await.map(drop)),
        ("MemberAdd", cluster.member_add(client.request(Default::default())).await.map(drop)),
        ("MemberRemove", cluster.member_remove(client.request(Default::default())).await.map(drop)),
        ("MemberUpdate", cluster.member_update(client.request(Default::default())).await.map(drop)),
        ("MemberPromote", cluster.member_promote(client.request(Default::default())).await.map(drop)),
        ("Alarm", maintenance.alarm(client.request(disarm)).await.map(drop)),
        ("Defragment", maintenance.defragment(client.request(Default::default())).await.map(drop)),
        ("Hash", maintenance.hash(client.request(Default::default())).await.map(drop)),
        ("HashKV", maintenance.hash_kv(client.request(Default::default())).await.map(drop)),
        ("MoveLeader", maintenance.move_leader(client.request(Default::default())).await.map(drop)),
        ("Snapshot", maintenance.snapshot(client.request(Default::default())).await.map(drop)),
        ("Downgrade", maintenance.downgrade(client.request(Default::default())).await.map(drop)),
        ("UserList", client.auth().user_list(client.request(Default::default())).await.map(drop)),
        ("RoleList", client.auth().role_list(client.request(Default::default())).await.map(drop)),
    ]
}

/// Every call that needs some user.
async fn calls_of_users(client: &Client) -> Vec<(&'static str, Result<(), Status>)> {
    let mut cluster = ClusterClient::new(client.channel.clone());
    let mut maintenance = MaintenanceClient::new(client.channel.clone());
    let mut lease = LeaseClient::new(client.channel.clone());
    let grant = pb::LeaseGrantRequest { ttl: 100, id: 0 };
    vec![
        ("MemberList", cluster.member_list(client.request(Default::default())).await.map(drop)),
        ("Alarm", maintenance.alarm(client.request(Default::default())).await.map(drop)),
        ("Status", maintenance.status(client.request(Default::default())).await.map(drop)),
        ("LeaseGrant", lease.lease_grant(client.request(grant)).await.map(drop)),
        ("LeaseLeases", lease.lease_leases(client.request(Default::default())).await.map(drop)),
        ("LeaseTimeToLive", lease.lease_time_to_live(client.request(Default::default())).await.map(drop)),
    ]
}

#[test]
fn every_call_needs_somebody_who_may() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let (nobody, root, alice) = switched_on(channel).await;
        let stranger = Client { token: Some("abc.def".into()), ..nobody.clone() };
        let refused = |outcomes: Vec<(&str, Result<(), Status>)>, (code, text): (Code, &str)| {
            for (call, outcome) in outcomes {
                let status = outcome.expect_err(call);
                assert_eq!((status.code(), status.message()), (code, text), "{call}");
            }
        };
        refused(calls_of_root(&nobody).await, EMPTY);
        refused(calls_of_root(&alice).await, DENIED);
        refused(calls_of_root(&stranger).await, BAD_TOKEN);
        refused(calls_of_users(&nobody).await, EMPTY);
        refused(calls_of_users(&stranger).await, BAD_TOKEN);
        for (call, outcome) in calls_of_users(&alice).await {
            outcome.expect(call);
        }
        for (call, outcome) in calls_of_root(&root).await {
            if let Err(status) = outcome {
                let is_refused = [Code::PermissionDenied, Code::Unauthenticated].contains(&status.code());
                assert!(!is_refused && status.message() != EMPTY.1, "{call}: {status}");
            }
        }
    });
}

/// A node that had not heard yet that authentication was switched on let anybody delete keyspaces and history, and change the members.
#[test]
fn what_nobody_checks_again_is_allowed_by_all_that_was_committed() {
    let harness = Harness::start_with(options(), Traffic::Everything);
    harness.run(async |channel| {
        let nobody = Client { channel: channel.clone(), token: None };
        nobody.add_user("root", "r", "root").await.unwrap();
        let mut kv = KvClient::new(channel.clone());
        let mut cluster = ClusterClient::new(channel.clone());
        let mut maintenance = MaintenanceClient::new(channel.clone());
        let mut pool = PoolClient::new(channel);
        // Each call begins before the node knows, and its barrier brings the news.
        let late = || {
            let enable = AuthCommand::Enable(Bytes::from_static(b"what tokens are signed with......"));
            harness.backend.come_before_reads([Some(Command::Auth(enable))]);
        };
        let refused = |call: &str, outcome: Result<(), Status>| {
            let status = outcome.expect_err(call);
            assert_eq!((status.code(), status.message()), EMPTY, "{call}");
            let auth_revision = harness.context.keyspace().unwrap().auth_revision();
            let root = Caller { name: "root".into(), auth_revision };
            let disable = Command::Auth(AuthCommand::Disable);
            harness.backend.apply_to_default(Command::As(root, Box::new(disable)));
        };
        let disarm = pb::AlarmRequest { action: 2, ..Default::default() };
        late();
        refused("Compact", kv.compact(pb::CompactionRequest::default()).await.map(drop));
        late();
        refused("MemberAdd", cluster.member_add(pb::MemberAddRequest::default()).await.map(drop));
        late();
        refused("MemberRemove", cluster.member_remove(pb::MemberRemoveRequest::default()).await.map(drop));
        late();
        refused("MoveLeader", maintenance.move_leader(pb::MoveLeaderRequest::default()).await.map(drop));
        late();
        refused("Alarm", maintenance.alarm(disarm).await.map(drop));
        late();
        let create = pool::KeyspaceCreateRequest { name: "new".into(), ..Default::default() };
        refused("KeyspaceCreate", pool.keyspace_create(create).await.map(drop));
        late();
        refused(
            "KeyspaceUpdate",
            pool.keyspace_update(pool::KeyspaceUpdateRequest::default()).await.map(drop),
        );
        late();
        refused(
            "KeyspaceDelete",
            pool.keyspace_delete(pool::KeyspaceDeleteRequest::default()).await.map(drop),
        );
        late();
        refused("BalancePause", pool.balance_pause(pool::BalancePauseRequest::default()).await.map(drop));
        late();
        refused("NodeDrain", pool.node_drain(pool::NodeDrainRequest::default()).await.map(drop));
    });
}

#[test]
fn a_stream_of_a_range_shows_what_may_be_read() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let (nobody, root, alice) = switched_on(channel.clone()).await;
        root.put("a").await.unwrap();
        let all = async |client: &Client, key: &'static str, range_end: &'static str| {
            let range =
                pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
            let request = client.request(range);
            let mut parts = KvClient::new(channel.clone()).range_stream(request).await?.into_inner();
            while parts.message().await?.is_some() {}
            Ok::<(), Status>(())
        };
        all(&alice, "a", "").await.unwrap();
        all(&alice, "a", "b").await.unwrap();
        all(&root, "a", "z").await.unwrap();
        for (client, key, range_end, (code, text)) in [
            (&nobody, "a", "", EMPTY),
            (&nobody, "a", "z", EMPTY),
            (&alice, "x", "", DENIED),
            (&alice, "a", "c", DENIED),
        ] {
            assert_refused(all(client, key, range_end).await, code, text);
        }
    });
}

#[test]
fn a_lease_is_its_keys() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let (_, root, alice) = switched_on(channel.clone()).await;
        let mut lease = LeaseClient::new(channel.clone());
        lease.lease_grant(root.request(pb::LeaseGrantRequest { ttl: 100, id: 7 })).await.unwrap();
        let put = pb::PutRequest { key: "x".into(), lease: 7, ..Default::default() };
        KvClient::new(channel).put(root.request(put)).await.unwrap();
        let keep = tokio_stream::once(pb::LeaseKeepAliveRequest { id: 7 });
        let mut answers = lease.lease_keep_alive(alice.request(keep)).await.unwrap().into_inner();
        let (code, text) = DENIED;
        assert_refused(answers.message().await.map(drop), code, text);
        let with_keys = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
        assert_refused(lease.lease_time_to_live(alice.request(with_keys)).await.map(drop), code, text);
        assert_refused(lease.lease_leases(alice.request(Default::default())).await.map(drop), code, text);
        let without = pb::LeaseTimeToLiveRequest { id: 7, keys: false };
        lease.lease_time_to_live(alice.request(without)).await.unwrap();
    });
}

#[test]
fn a_token_ends_when_it_is_not_used_and_when_its_password_does() {
    let harness = Harness::start_with(options(), Traffic::Everything);
    harness.run(async |channel| {
        let (nobody, root, alice) = switched_on(channel).await;
        harness.backend.advance_ms(299_000);
        alice.range("a").await.unwrap();
        root.range("a").await.unwrap();
        harness.backend.advance_ms(299_000);
        alice.range("a").await.unwrap();
        root.range("a").await.unwrap();
        let change = pb::AuthUserChangePasswordRequest {
            name: "alice".into(),
            password: "b".into(),
            ..Default::default()
        };
        root.auth().user_change_password(root.request(change)).await.unwrap();
        let (code, text) = BAD_TOKEN;
        assert_refused(alice.range("a").await, code, text);
        let alice = nobody.log_in("alice", "b").await.unwrap();
        alice.put("a").await.unwrap();
        harness.backend.advance_ms(300_000);
        assert_refused(alice.put("a").await, code, text);
        assert_refused(root.range("a").await, code, text);
    });
}

/// Nothing was logged of the time that a token lived, so another leader began it anew.
#[test]
fn a_token_that_ended_is_not_good_again_under_another_leader() {
    let ttl = Duration::from_millis(50);
    let tokens = crate::api::Tokens::new(&crate::api::TokenOptions::Simple(ttl)).unwrap();
    let options = ServerOptions { tokens: Arc::new(tokens), ..options() };
    let harness = Harness::start_with(options, Traffic::Everything);
    harness.run(async |channel| {
        let (nobody, _, _) = switched_on(channel).await;
        harness.backend.advance_ms(1_000_000);
        let before = harness.backend.logged_ms();
        let alice = nobody.log_in("alice", "a").await.unwrap();
        let made = harness.backend.logged_ms();
        assert_eq!(made, before + 1_000_000, "another leader's clock does not begin before that");
        harness.backend.advance_ms(49);
        alice.range("a").await.unwrap();
        harness.backend.advance_ms(50);
        assert_refused(alice.range("a").await, BAD_TOKEN.0, BAD_TOKEN.1);
        tokio::time::timeout(STREAM_TIMEOUT, harness.backend.logged(made + 99)).await.unwrap();
        harness.backend.change_leader();
        assert_refused(alice.range("a").await, BAD_TOKEN.0, BAD_TOKEN.1);
    });
}

#[test]
fn a_watch_is_refused_and_one_whose_permission_goes_ends_before_it_shows_more() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let (nobody, root, alice) = switched_on(channel).await;
        for (client, reason) in [
            (&nobody, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"),
            (&alice, "rpc error: code = PermissionDenied desc = etcdserver: permission denied"),
        ] {
            let (_requests, mut stream) = client.watch("x").await;
            let refusal = next(&mut stream).await;
            assert!(refusal.canceled && refusal.created && refusal.watch_id == -1, "{refusal:?}");
            assert_eq!(refusal.cancel_reason, reason);
        }
        let (_requests, mut stream) = alice.watch("a").await;
        assert!(next(&mut stream).await.created);
        root.put("a").await.unwrap();
        assert_eq!(next(&mut stream).await.events.len(), 1);
        // What does not concern it changes nothing.
        root.grant("ab", "y", "").await.unwrap();
        root.put("a").await.unwrap();
        assert_eq!(next(&mut stream).await.events.len(), 1);
        root.revoke("ab", "a", "b").await.unwrap();
        let end = next(&mut stream).await;
        assert!(end.canceled && end.events.is_empty(), "{end:?}");
        assert_eq!(
            end.cancel_reason,
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        );
    });
}

#[test]
fn a_watch_of_nobody_ends_when_authentication_begins() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let nobody = Client { channel: channel.clone(), token: None };
        let (_requests, mut stream) = nobody.watch("a").await;
        assert!(next(&mut stream).await.created);
        switched_on(channel).await;
        let end = next(&mut stream).await;
        assert!(end.canceled, "{end:?}");
        assert_eq!(
            end.cancel_reason,
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        );
    });
}

/// What a restore leaves, authentication without a secret, is told from its being switched off: that looks alike, and the first `Authenticate`
/// switched it on again in nobody's name.
#[test]
fn who_logs_in_does_not_undo_what_was_switched_off() {
    let harness = Harness::start_with(options(), Traffic::Everything);
    harness.run(async |channel| {
        let nobody = Client { channel, token: None };
        nobody.add_user("root", "r", "root").await.unwrap();
        let without_secret = Command::Auth(AuthCommand::Enable(Bytes::new()));
        harness.backend.apply_to_default(without_secret.clone());
        let auth_revision = harness.context.keyspace().unwrap().auth_revision();
        let root = Caller { name: "root".to_owned(), auth_revision };
        let disable = Command::As(root, Box::new(Command::Auth(AuthCommand::Disable)));
        harness.backend.come_before_next_write(disable);
        let refused = nobody.log_in("root", "r").await.map(drop);
        assert_refused(refused, Code::FailedPrecondition, "etcdserver: authentication is not enabled");
        assert!(!harness.context.keyspace().unwrap().is_auth_enabled());
        harness.backend.apply_to_default(without_secret);
        let root = nobody.log_in("root", "r").await.unwrap();
        root.put("a").await.unwrap();
    });
}

/// Beyond so many uses those were forgotten that were over by the clock of the keyspace that was asked for, whosever they were.
#[test]
fn the_clock_of_one_keyspace_ends_no_tokens_of_another() {
    const LATE_MS: u64 = 1_000_000_000;
    let harness = Harness::start();
    let (one, other) = (&harness.context, harness.context.for_keyspace("other", GroupId(9)));
    let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), 1, Options::default()).unwrap();
    let user = pb::AuthUserAddRequest { name: "root".to_owned(), ..Default::default() };
    let grant = pb::AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
    let commands =
        [AuthCommand::UserAdd(user), AuthCommand::UserGrantRole(grant), AuthCommand::Enable("secret".into())];
    let applied = keyspace
        .apply(Applied { term: 1, index: 1, checksum: 1, stamp_ms: 1 }, commands.map(Command::Auth).to_vec());
    assert!(applied.iter().all(Result::is_ok), "{applied:?}");
    let credentials = keyspace.credentials("root").unwrap();
    let token = one.tokens.assign("root", one.home(), &credentials, 1_000).unwrap();
    let is_good = |clock_ms| one.tokens.caller(&token, one.home(), &keyspace, clock_ms).is_some();
    assert!(is_good(300_000));
    for _ in 0..2_000 {
        let token = other.tokens.assign("root", other.home(), &credentials, LATE_MS).unwrap();
        assert!(other.tokens.caller(&token, other.home(), &keyspace, LATE_MS).is_some());
    }
    assert!(is_good(599_000), "it was used, on its own clock");
}

#[test]
fn locks_are_taken_in_the_callers_name() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let (nobody, _, alice) = switched_on(channel.clone()).await;
        let lock = |name: &'static str| lockpb::LockRequest { name: name.into(), lease: 0 };
        let mut locks = LockClient::new(channel);
        locks.lock(alice.request(lock("a"))).await.unwrap();
        let refused = locks.lock(alice.request(lock("x"))).await.unwrap_err();
        assert_eq!(refused.message(), DENIED.1);
        let refused = locks.lock(nobody.request(lock("a"))).await.unwrap_err();
        assert_eq!(refused.message(), EMPTY.1);
    });
}

#[test]
fn a_password_that_bcrypt_would_cut_is_refused() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let nobody = Client { channel, token: None };
        let long = "p".repeat(73);
        let refused = nobody.add_user("root", &long, "root").await.unwrap_err();
        assert_eq!(refused.message(), "bcrypt: password length exceeds 72 bytes");
        nobody.add_user("root", &long[..72], "root").await.unwrap();
        nobody.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        assert!(nobody.log_in("root", &long).await.is_err());
        nobody.log_in("root", &long[..72]).await.unwrap();
    });
}

#[test]
fn names_and_requests_that_are_too_large_are_refused() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let (_, root, _) = switched_on(channel).await;
        let refused =
            |result| assert_refused(result, Code::InvalidArgument, "etcdserver: request is too large");
        let (longest, too_long) = ("n".repeat(NAME_BYTES_MAX), "n".repeat(NAME_BYTES_MAX + 1));
        let role = |name: &str| root.request(pb::AuthRoleAddRequest { name: name.into() });
        refused(root.auth().role_add(role(&too_long)).await.map(drop));
        refused(root.add_user(&too_long, "p", "some").await);
        root.add_user(&longest, "p", &longest).await.unwrap();
        let revoke = |bytes: usize| {
            let key = vec![b'k'; bytes].into();
            let role = "ab".to_owned();
            root.request(pb::AuthRoleRevokePermissionRequest { role, key, ..Default::default() })
        };
        let bytes = Limits::default().request_bytes;
        refused(root.auth().role_revoke_permission(revoke(bytes)).await.map(drop));
        let unknown = root.auth().role_revoke_permission(revoke(bytes - 100)).await.unwrap_err();
        assert_eq!(unknown.message(), "etcdserver: permission is not granted to the role");
    });
}

#[test]
fn a_json_web_token_is_good_until_users_or_roles_change() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "0123456789abcdef").unwrap();
    let tokens = crate::api::Tokens::new(&crate::api::TokenOptions::Jwt(crate::api::JwtOptions {
        sign_method: "HS256".into(),
        public_key: None,
        private_key: Some(file),
        ttl: Duration::from_secs(60),
    }));
    let options = ServerOptions { tokens: Arc::new(tokens.unwrap()), ..options() };
    Harness::start_with(options, Traffic::Everything).run(async |channel| {
        let (nobody, root, alice) = switched_on(channel).await;
        assert_eq!(alice.token.as_ref().unwrap().split('.').count(), 3);
        alice.put("a").await.unwrap();
        assert_refused(alice.put("x").await, DENIED.0, DENIED.1);
        let (_requests, mut stream) = alice.watch("a").await;
        assert!(next(&mut stream).await.created);
        root.grant("ab", "x", "").await.unwrap();
        let old = "etcdserver: revision of auth store is old";
        assert_refused(alice.put("a").await, Code::InvalidArgument, old);
        assert_refused(alice.range("a").await, Code::InvalidArgument, old);
        nobody.log_in("alice", "a").await.unwrap().put("x").await.unwrap();
        // The watch began with a token that was good.
        nobody.log_in("alice", "a").await.unwrap().put("a").await.unwrap();
        assert_eq!(next(&mut stream).await.events.len(), 1);
    });
}

#[test]
fn users_are_told_of_by_name_with_what_they_cost() {
    Harness::start_with(options(), Traffic::Everything).run(async |channel| {
        let (nobody, root, alice) = switched_on(channel).await;
        let (_requests, mut stream) = alice.watch("a").await;
        assert!(next(&mut stream).await.created);
        for _ in 0..20 {
            alice.put("a").await.unwrap();
            assert_eq!(next(&mut stream).await.events.len(), 1);
        }
        assert_refused(alice.put("x").await, DENIED.0, DENIED.1);
        for _ in 0..500 {
            assert_refused(nobody.put("a").await, EMPTY.0, EMPTY.1);
        }
        assert_refused(alice.range("x").await, DENIED.0, DENIED.1);
        let top = pool::TopRequest { by: pool::TopBy::Client.into() };
        let top = PoolClient::new(root.channel.clone()).top(root.request(top)).await.unwrap().into_inner();
        let load = |name: &str, resource: &str| {
            balance::load(top.entries.iter().find(|entry| entry.name == name.as_bytes()).unwrap(), resource)
        };
        let one = load("alice", "requests") / 22.0;
        assert!(one > 0.0 && (load("alice", "events") - 20.0 * one).abs() < 1e-6, "{top:?}");
        assert!(load("alice", "read") > 0.0 && load("alice", "written") > 0.0);
        let nobodys = load("127.0.0.1", "requests");
        assert!(nobodys >= 500.0 * one, "who has no token is where it is: {nobodys} and {one}");
    });
}
