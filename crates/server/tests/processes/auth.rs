//! Authentication on real nodes: a token of one is good on all, what is revoked on one is revoked on all, and a node that was
//! away, or gets a snapshot, knows the same users.

use std::time::{Duration, Instant};

use hadron_proto::authpb::{Permission, permission::Type};
use hadron_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use tonic::{Code, Request, Status};

use crate::support::{Cluster, Node, eventually};

/// More than a log keeps for a node that is away, in values of this size, and for longer than between two fsyncs of the engine, after which
/// logs are cut.
const MISSED_VALUES: usize = 500;
const MISSED_VALUE_BYTES: usize = 64 << 10;
const MISSED_FOR: Duration = Duration::from_secs(7);

fn signed<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    request
}

async fn put(node: &Node, token: &str, key: &'static str, value: Vec<u8>) -> Result<(), Status> {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    KvClient::new(node.channel()).put(signed(token, put)).await.map(drop)
}

/// Answered by the node's own replica.
async fn read_here(node: &Node, token: &str, key: &'static str) -> Result<(), Status> {
    let range = pb::RangeRequest { key: key.into(), serializable: true, ..Default::default() };
    KvClient::new(node.channel()).range(signed(token, range)).await.map(drop)
}

fn auth(node: &Node) -> AuthClient<tonic::transport::Channel> {
    AuthClient::new(node.channel())
}

async fn log_in(node: &Node, name: &str, password: &str) -> Result<String, Status> {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    auth(node).authenticate(request).await.map(|answer| answer.into_inner().token)
}

async fn add_user(node: &Node, name: &str, password: &str, role: &str) {
    let user = pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
    auth(node).user_add(user).await.unwrap();
    auth(node).role_add(pb::AuthRoleAddRequest { name: role.into() }).await.unwrap();
    let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: role.into() };
    auth(node).user_grant_role(grant).await.unwrap();
}

async fn grant(node: &Node, token: &str, role: &str, key: &'static str) {
    let perm =
        Permission { perm_type: Type::Readwrite as i32, key: key.into(), range_end: Default::default() };
    let request = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
    auth(node).role_grant_permission(signed(token, request)).await.unwrap();
}

async fn revoke(node: &Node, token: &str, role: &str, key: &'static str) {
    let request =
        pb::AuthRoleRevokePermissionRequest { role: role.into(), key: key.into(), ..Default::default() };
    auth(node).role_revoke_permission(signed(token, request)).await.unwrap();
}

#[tokio::test]
async fn all_nodes_know_the_same_users_tokens_and_permissions() {
    let mut cluster = Cluster::start(3, &["--bcrypt-cost=4", "--election-timeout=500"]).await;
    // Nobody tells without a token later.
    let away = (cluster.leader().await + 1) % 3;
    add_user(&cluster.nodes[0], "root", "r", "root").await;
    add_user(&cluster.nodes[1], "alice", "a", "a").await;
    grant(&cluster.nodes[2], "", "a", "a").await;
    auth(&cluster.nodes[0]).auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let root = log_in(&cluster.nodes[1], "root", "r").await.unwrap();
    let alice = log_in(&cluster.nodes[2], "alice", "a").await.unwrap();
    for node in &cluster.nodes {
        put(node, &alice, "a", b"v".to_vec()).await.unwrap();
        read_here(node, &alice, "a").await.unwrap();
        assert_eq!(put(node, &alice, "b", Vec::new()).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(put(node, "", "a", Vec::new()).await.unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(log_in(node, "alice", "x").await.unwrap_err().code(), Code::InvalidArgument);
    }
    // What is granted on one node holds on the next at once, even if that has yet to hear of it.
    for round in 0..20 {
        let (here, there) = (round % 3, (round + 1) % 3);
        grant(&cluster.nodes[here], &root, "a", "b").await;
        put(&cluster.nodes[there], &alice, "b", Vec::new()).await.unwrap();
        revoke(&cluster.nodes[there], &root, "a", "b").await;
        let refused = put(&cluster.nodes[here], &alice, "b", Vec::new()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    // A node that is away misses so much that it gets a snapshot, and another one who lost the right meanwhile.
    let alive = (away + 1) % 3;
    cluster.nodes[away].kill();
    revoke(&cluster.nodes[alive], &root, "a", "a").await;
    let (began, mut missed) = (Instant::now(), 0);
    while missed < MISSED_VALUES || began.elapsed() < MISSED_FOR {
        put(&cluster.nodes[alive], &root, "filler", vec![b'x'; MISSED_VALUE_BYTES]).await.unwrap();
        missed += 1;
    }
    cluster.nodes[away].start();
    // It knows better than what it knew when it was killed as soon as it has caught up.
    eventually("it has caught up", async || {
        read_here(&cluster.nodes[away], &root, "filler").await.is_ok()
            && cluster.nodes[away].counter("hadron_snapshots_received_total").await > 0
    })
    .await;
    let refused = read_here(&cluster.nodes[away], &alice, "a").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // All of them start again: tokens are still good.
    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.nodes.iter_mut().for_each(Node::start);
    eventually("they serve", async || {
        let mut all = true;
        for node in &cluster.nodes {
            all &= put(node, &root, "a", Vec::new()).await.is_ok();
        }
        all
    })
    .await;
    auth(&cluster.nodes[0]).auth_disable(signed(&root, pb::AuthDisableRequest {})).await.unwrap();
    eventually("nobody needs a name", async || put(&cluster.nodes[away], "", "b", Vec::new()).await.is_ok())
        .await;
}
