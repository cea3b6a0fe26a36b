//! `--force-new-cluster`: who is left alone goes on with all that it had, and only if it is alone.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use hadron_proto::etcdserverpb as pb;
use hadron_sim::checkers::{durable_ack, linearizable, revision_order};
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use support::load::Load;
use support::{Cluster, Node, complete_history, eventually};

const FLAG: &str = "ETCD_FORCE_NEW_CLUSTER";
const CLIENTS: u64 = 8;

async fn members(node: &Node) -> Vec<String> {
    let request = pb::MemberListRequest { linearizable: true };
    let answer = ClusterClient::new(node.channel()).member_list(request).await.unwrap();
    let mut names: Vec<String> = answer.into_inner().members.into_iter().map(|member| member.name).collect();
    names.sort();
    names
}

async fn put(node: &Node, value: &'static str) -> i64 {
    let put = pb::PutRequest { key: "k".into(), value: value.into(), ..Default::default() };
    KvClient::new(node.channel()).put(put).await.unwrap().into_inner().header.unwrap().revision
}

fn force(node: &mut Node) {
    node.set_environment(&[(FLAG, PathBuf::from("true"))]);
}

fn force_no_more(node: &mut Node) {
    node.set_environment(&[]);
}

#[tokio::test]
async fn the_last_one_goes_on_with_everything_and_grows_again() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(&cluster.endpoints(), CLIENTS);
    eventually("the load runs", async || load.writes_since(0) > 300).await;
    let operations = load.stop().await;
    cluster.wait_until_equal().await;
    let revision = cluster.nodes[2].status().await.unwrap().header.unwrap().revision;
    for lost in [0, 2] {
        cluster.nodes[lost].kill();
    }

    // Not as long as another one runs.
    let refused = cluster.nodes[2].run_with(&["--force-new-cluster"]).await;
    let text = cluster.nodes[2].log() + &String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("answers, so the cluster is not lost"), "{text}");

    cluster.nodes[1].kill();
    force(&mut cluster.nodes[2]);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    assert_eq!(members(&cluster.nodes[2]).await, ["n2"]);
    let events = complete_history(&cluster.nodes[2], revision).await;
    durable_ack::check(&operations, &events).unwrap();
    revision_order::check_events(&events).unwrap();
    linearizable::check(&operations, &events).unwrap();
    assert_eq!(put(&cluster.nodes[2], "alone").await, revision + 1);

    // Once more with the flag, as a supervisor would; then without.
    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    assert!(cluster.nodes[2].log().contains("has nothing to do"));
    cluster.nodes[2].kill();
    force_no_more(&mut cluster.nodes[2]);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    assert_eq!(put(&cluster.nodes[2], "still alone").await, revision + 2);

    // One that was lost comes back, and hears that it was removed.
    cluster.nodes[0].start();
    let ended = cluster.nodes[0].wait_for_exit().await;
    assert!(ended.success(), "{}", cluster.nodes[0].log());
    assert!(cluster.nodes[0].log().contains("removed"));

    let new = cluster.prepare_to_join();
    let peer_ur_ls = vec![format!("http://{}", cluster.nodes[new].peer_address)];
    let request = pb::MemberAddRequest { peer_ur_ls, is_learner: false };
    ClusterClient::new(cluster.nodes[2].channel()).member_add(request).await.unwrap();
    cluster.nodes[new].start();
    cluster.nodes[new].wait_until_voting().await;
    assert_eq!(members(&cluster.nodes[new]).await, ["n2", "n3"]);
    let newest = put(&cluster.nodes[new], "two").await;
    let [one, other] = [2, new].map(|number| &cluster.nodes[number]);
    assert!(complete_history(one, newest).await == complete_history(other, newest).await);
}

#[tokio::test]
async fn a_first_start_is_one_all_the_same() {
    let mut cluster = Cluster::prepared(1).await;
    force(&mut cluster.nodes[0]);
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    assert_eq!(put(&cluster.nodes[0], "first").await, 2);
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    assert_eq!(put(&cluster.nodes[0], "second").await, 3);
}
