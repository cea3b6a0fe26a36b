//! Members that come and go, as real processes under load: what etcd's member calls promise.

use std::time::Duration;

use hadron_proto::etcdserverpb as pb;
use hadron_sim::history::Operation;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use tonic::{Code, Status};

use crate::support::ctl::{ctl, run};
use crate::support::judge::{history_of_all, judge};
use crate::support::load::Load;
use crate::support::{Cluster, Node, eventually};

const CLIENTS: u64 = 16;

fn cluster_of(node: &Node) -> ClusterClient<tonic::transport::Channel> {
    ClusterClient::new(node.channel())
}

async fn member_list(node: &Node) -> Vec<pb::Member> {
    let request = pb::MemberListRequest { linearizable: true };
    cluster_of(node).member_list(request).await.unwrap().into_inner().members
}

async fn add(node: &Node, new: &Node, is_learner: bool) -> Result<pb::Member, Status> {
    let peer_ur_ls = vec![format!("http://{}", new.peer_address)];
    let request = pb::MemberAddRequest { peer_ur_ls, is_learner };
    let response = cluster_of(node).member_add(request).await?.into_inner();
    let member = response.member.unwrap();
    assert!(response.members.contains(&member));
    Ok(member)
}

async fn remove(node: &Node, id: u64) -> Result<Vec<pb::Member>, Status> {
    let response = cluster_of(node).member_remove(pb::MemberRemoveRequest { id }).await?;
    Ok(response.into_inner().members)
}

async fn promote(node: &Node, id: u64) -> Result<Vec<pb::Member>, Status> {
    let response = cluster_of(node).member_promote(pb::MemberPromoteRequest { id }).await?;
    Ok(response.into_inner().members)
}

async fn id_of(node: &Node) -> u64 {
    node.status().await.unwrap().header.unwrap().member_id
}

async fn put(node: &Node, value: &str) -> Result<(), Status> {
    let request = pb::PutRequest { key: "k".into(), value: value.to_owned().into(), ..Default::default() };
    KvClient::new(node.channel()).put(request).await.map(drop)
}

/// Holds what the clients saw against what the running nodes show now.
async fn check(cluster: &Cluster, operations: &[Operation]) {
    cluster.wait_until_equal().await;
    let running: Vec<&Node> = cluster.nodes.iter().filter(|node| node.is_running()).collect();
    judge(operations, &history_of_all(&running).await);
}

#[tokio::test]
async fn a_cluster_grows_from_one_to_three_under_load() {
    let mut cluster = Cluster::start(1, &[]).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 100).await;
    for _ in 0..2 {
        let new = cluster.prepare_to_join();
        // As in etcd not before the one added last has said who it is.
        let member =
            eventually_ok("one is added", async || add(&cluster.nodes[0], &cluster.nodes[new], false).await)
                .await;
        assert!(member.name.is_empty() && !member.is_learner && member.id != 0);
        let added_at = load.now();
        // Unlike in etcd it costs no quorum before it is there.
        eventually("writes go on", async || load.writes_since(added_at) > 100).await;
        cluster.nodes[new].start();
        cluster.nodes[new].wait_until_serving().await;
        cluster.nodes[new].wait_until_voting().await;
    }
    eventually("all say who they are", async || {
        member_list(&cluster.nodes[0]).await.iter().all(|member| !member.name.is_empty())
    })
    .await;
    let operations = load.stop().await;
    check(&cluster, &operations).await;
}

#[tokio::test]
async fn a_dead_member_is_replaced_under_load() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 100).await;
    let dead = cluster.leader().await;
    let alive = (dead + 1) % 3;
    let id = id_of(&cluster.nodes[dead]).await;
    cluster.nodes[dead].kill();
    let left =
        eventually_ok("the dead member is removed", async || remove(&cluster.nodes[alive], id).await).await;
    assert_eq!(left.len(), 2);
    let new = cluster.prepare_to_join();
    add(&cluster.nodes[alive], &cluster.nodes[new], false).await.unwrap();
    cluster.nodes[new].start();
    cluster.nodes[new].wait_until_serving().await;
    cluster.nodes[new].wait_until_voting().await;
    let replaced_at = load.now();
    eventually("writes go on", async || load.writes_since(replaced_at) > 100).await;
    let operations = load.stop().await;
    check(&cluster, &operations).await;
    // The dead one comes back, hears that it was removed, and ends.
    cluster.nodes[dead].start();
    let status = cluster.nodes[dead].wait_for_exit().await;
    assert!(status.success(), "{status}");
    assert!(cluster.nodes[dead].log().contains("was removed from this cluster"));
    // Nothing of it is needed: all that is left can restart.
    let ids: Vec<u64> = member_list(&cluster.nodes[alive]).await.iter().map(|member| member.id).collect();
    for number in (0..cluster.nodes.len()).filter(|number| *number != dead) {
        cluster.nodes[number].kill();
    }
    for number in (0..cluster.nodes.len()).filter(|number| *number != dead) {
        cluster.nodes[number].start();
    }
    cluster.nodes[alive].wait_until_serving().await;
    let after: Vec<u64> = member_list(&cluster.nodes[alive]).await.iter().map(|member| member.id).collect();
    assert_eq!(after, ids);
}

/// Retries while the cluster is not ready for it.
async fn eventually_ok<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let mut done = None;
    eventually(what, async || {
        done = call().await.ok();
        done.is_some()
    })
    .await;
    done.unwrap()
}

#[tokio::test]
async fn the_leader_is_removed_under_load_and_ends_by_itself() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 100).await;
    let leader = cluster.leader().await;
    let id = id_of(&cluster.nodes[leader]).await;
    let left =
        eventually_ok("the leader is removed", async || remove(&cluster.nodes[leader], id).await).await;
    assert!(left.len() == 2 && left.iter().all(|member| member.id != id));
    let status = cluster.nodes[leader].wait_for_exit().await;
    assert!(status.success(), "{status}");
    let log = cluster.nodes[leader].log();
    assert!(log.contains("was removed from this cluster"), "{log}");
    let removed_at = load.now();
    eventually("writes go on", async || load.writes_since(removed_at) > 100).await;
    let operations = load.stop().await;
    check(&cluster, &operations).await;
    // An id is never used again, and its URL is free.
    let error = remove(&cluster.nodes[(leader + 1) % 3], id).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "etcdserver: member not found"));
}

/// It went on for as long as no other node could take its replica of a keyspace: with no word of what it waited for, and on the ports of whoever was to
/// come in its place.
#[tokio::test]
async fn a_member_whose_replicas_can_go_nowhere_ends_when_it_is_removed() {
    let mut cluster = Cluster::start(3, &[]).await;
    let (url, goes) = (cluster.nodes[0].client_url.clone(), 2);
    ctl(&url, &["keyspace", "create", "a", "--replicas", "3"]);
    let put = async |cluster: &Cluster, value: &str| {
        let put = async || {
            let running = cluster.nodes.iter().filter(|node| node.is_running());
            let put = |node: &Node| run(&node.client_url, &["--keyspace", "a", "put", "k", value]);
            running.map(put).any(|put| put.status.success())
        };
        eventually("the keyspace takes a write", put).await;
    };
    put(&cluster, "before").await;
    let id = id_of(&cluster.nodes[goes]).await;
    eventually_ok("one is removed", async || remove(&cluster.nodes[0], id).await).await;
    assert!(cluster.nodes[goes].wait_for_exit().await.success());
    assert!(cluster.nodes[goes].log().contains("this node was removed from the cluster: it ends as soon as"));
    put(&cluster, "of two").await;
    let new = cluster.prepare_to_join();
    eventually_ok("one is added", async || add(&cluster.nodes[0], &cluster.nodes[new], false).await).await;
    cluster.nodes[new].start();
    cluster.nodes[new].wait_until_serving().await;
    let new_id = id_of(&cluster.nodes[new]).await;
    eventually("the keyspace has three replicas again", async || {
        let told: serde_json::Value =
            serde_json::from_str(&ctl(&url, &["keyspace", "get", "a", "-w", "json"])).unwrap();
        let replicas = told["replicas"].as_array().unwrap();
        let is_new = |replica: &serde_json::Value| replica["node"].as_u64() == Some(new_id);
        replicas.len() == 3 && replicas.iter().any(is_new)
    })
    .await;
}

/// It knows none of those who are left but one, and that one follows a leader it has never heard of.
#[tokio::test]
async fn a_member_that_was_away_while_the_others_were_replaced_comes_back() {
    let mut cluster = Cluster::start(3, &["--strict-reconfig-check=false"]).await;
    let away = 2;
    put(&cluster.nodes[0], "before").await.unwrap();
    eventually("all have it", async || {
        cluster.nodes[away].status().await.unwrap().header.unwrap().revision == 2
    })
    .await;
    cluster.nodes[away].kill();
    // Not strict: with one of three away etcd's rules allow neither to add nor to remove.
    for old in 0..2 {
        let new = cluster.prepare_to_join();
        eventually_ok("one is added", async || add(&cluster.nodes[1], &cluster.nodes[new], false).await)
            .await;
        cluster.nodes[new].start();
        cluster.nodes[new].wait_until_serving().await;
        cluster.nodes[new].wait_until_voting().await;
        let id = id_of(&cluster.nodes[old]).await;
        eventually_ok("one is removed", async || remove(&cluster.nodes[1], id).await).await;
        assert!(cluster.nodes[old].wait_for_exit().await.success());
    }
    put(&cluster.nodes[4], "meanwhile").await.unwrap();
    cluster.nodes[away].start();
    cluster.nodes[away].wait_until_serving().await;
    put(&cluster.nodes[away], "after").await.unwrap();
    let ids: Vec<u64> = member_list(&cluster.nodes[away]).await.iter().map(|member| member.id).collect();
    for number in [away, 3, 4] {
        assert!(ids.contains(&id_of(&cluster.nodes[number]).await));
    }
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn two_members_become_one_and_one_becomes_two() {
    let mut cluster = Cluster::start(2, &[]).await;
    put(&cluster.nodes[0], "of two").await.unwrap();
    let (stays, goes) = (0, 1);
    let id = id_of(&cluster.nodes[goes]).await;
    eventually_ok("one is removed", async || remove(&cluster.nodes[stays], id).await).await;
    assert!(cluster.nodes[goes].wait_for_exit().await.success());
    put(&cluster.nodes[stays], "of one").await.unwrap();
    cluster.nodes[stays].kill();
    cluster.nodes[stays].start();
    cluster.nodes[stays].wait_until_serving().await;
    put(&cluster.nodes[stays], "of one, again").await.unwrap();
    let new = cluster.prepare_to_join();
    add(&cluster.nodes[stays], &cluster.nodes[new], false).await.unwrap();
    cluster.nodes[new].start();
    cluster.nodes[new].wait_until_serving().await;
    put(&cluster.nodes[new], "of two, again").await.unwrap();
}

#[tokio::test]
async fn a_learner_serves_little_until_it_is_promoted() {
    let mut cluster = Cluster::start(1, &[]).await;
    put(&cluster.nodes[0], "v").await.unwrap();
    let new = cluster.prepare_to_join();
    let learner = add(&cluster.nodes[0], &cluster.nodes[new], true).await.unwrap();
    assert!(learner.is_learner);
    let another = cluster.prepare_to_join();
    let error = add(&cluster.nodes[0], &cluster.nodes[another], true).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: too many learner members in cluster");
    let error = promote(&cluster.nodes[0], learner.id).await.unwrap_err();
    let behind = "etcdserver: can only promote a learner member which is in sync with leader";
    assert_eq!((error.code(), error.message()), (Code::FailedPrecondition, behind));
    cluster.nodes[new].start();
    eventually("it says that it is a learner", async || {
        cluster.nodes[new].status().await.is_some_and(|status| status.is_learner && status.leader != 0)
    })
    .await;
    let error = put(&cluster.nodes[new], "v").await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: rpc not supported for learner");
    eventually_ok("it is promoted", async || promote(&cluster.nodes[0], learner.id).await).await;
    eventually("it serves", async || put(&cluster.nodes[new], "w").await.is_ok()).await;
    let error = promote(&cluster.nodes[0], learner.id).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: can only promote a learner member");
    assert!(!cluster.nodes[new].status().await.unwrap().is_learner);
}

#[tokio::test]
async fn a_wiped_member_comes_back_as_a_new_one() {
    let mut cluster = Cluster::start(3, &[]).await;
    put(&cluster.nodes[0], "v").await.unwrap();
    let wiped = (cluster.leader().await + 1) % 3;
    let alive = (wiped + 1) % 3;
    let id = id_of(&cluster.nodes[wiped]).await;
    cluster.nodes[wiped].kill();
    std::fs::remove_dir_all(cluster.nodes[wiped].data_dir()).unwrap();
    let refused = cluster.nodes[wiped].run_with(&[]).await;
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("has already been bootstrapped") && text.contains("member remove"), "{text}");
    cluster.nodes[wiped].set_argument("--initial-cluster-state", "existing");
    let refused = cluster.nodes[wiped].run_with(&[]).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("has already been bootstrapped"), "{text}");
    eventually_ok("it is removed", async || remove(&cluster.nodes[alive], id).await).await;
    let refused = cluster.nodes[wiped].run_with(&[]).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("add it first"), "{text}");
    let added =
        eventually_ok("it is added", async || add(&cluster.nodes[alive], &cluster.nodes[wiped], false).await)
            .await;
    assert_ne!(added.id, id);
    cluster.nodes[wiped].start();
    cluster.nodes[wiped].wait_until_serving().await;
    put(&cluster.nodes[wiped], "w").await.unwrap();
}

#[tokio::test]
async fn changes_that_could_cost_the_quorum_are_refused() {
    let mut cluster = Cluster::start(3, &[]).await;
    let urls = |node: &Node| vec![format!("http://{}", node.peer_address)];
    let leader = cluster.leader().await;
    let (alive, dead) = (leader, (leader + 1) % 3);
    let ids = [id_of(&cluster.nodes[alive]).await, id_of(&cluster.nodes[dead]).await];
    let request = pb::MemberUpdateRequest { id: ids[0], peer_ur_ls: urls(&cluster.nodes[dead]) };
    let error = cluster_of(&cluster.nodes[alive]).member_update(request).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: Peer URLs already exists");
    let request = pb::MemberAddRequest { peer_ur_ls: vec!["nonsense".into()], is_learner: false };
    let error = cluster_of(&cluster.nodes[alive]).member_add(request).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::InvalidArgument, "etcdserver: given member URLs are invalid")
    );
    cluster.nodes[dead].kill();
    eventually("it is known to be down", async || {
        let page = cluster.nodes[alive].metrics().await;
        let is_down = |line: &str| line.starts_with("etcd_network_active_peers") && line.ends_with(" 0");
        page.lines().any(is_down)
    })
    .await;
    assert_eq!(member_list(&cluster.nodes[alive]).await.len(), 3, "after what the loop has heard by now");
    let error = remove(&cluster.nodes[alive], ids[0]).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "etcdserver: unhealthy cluster"));
    let new = cluster.prepare_to_join();
    let error = add(&cluster.nodes[alive], &cluster.nodes[new], false).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "etcdserver: unhealthy cluster"));
    tokio::time::timeout(Duration::from_secs(30), remove(&cluster.nodes[alive], ids[1]))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_learner_is_promoted_by_itself_if_that_was_asked_for() {
    let mut cluster = Cluster::start(1, &["--auto-promote"]).await;
    put(&cluster.nodes[0], "before").await.unwrap();
    let new = cluster.prepare_to_join();
    let learner = add(&cluster.nodes[0], &cluster.nodes[new], true).await.unwrap();
    cluster.nodes[new].start();
    eventually("it votes", async || {
        let members = member_list(&cluster.nodes[0]).await;
        members.iter().any(|member| member.id == learner.id && !member.is_learner)
    })
    .await;
    cluster.nodes[new].wait_until_voting().await;
    // It says so once it knows that everybody does.
    eventually("it says so", async || {
        cluster.nodes[0].log().contains("promoted a learner that has caught up")
    })
    .await;
}
