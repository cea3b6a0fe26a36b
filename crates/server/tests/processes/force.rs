//! `--force-new-cluster`: who is left alone goes on with all that it had, and only if it is alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hadron_proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::ctl::{ctl, run};
use crate::support::judge::judge;
use crate::support::load::Load;
use crate::support::{Cluster, Node, complete_history, eventually};

const FLAG: &str = "ETCD_FORCE_NEW_CLUSTER";
const CLIENTS: u64 = 8;
/// More than the election timeouts that a node must have run for before it counts as not lost.
const LIVED: Duration = Duration::from_secs(7);

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

/// A node that was cut off was forced, since nobody answered it: when it was heard again it had the majority, which had gone on, stop and be told
/// that its data can be deleted.
#[tokio::test]
async fn who_went_on_is_not_stopped_by_one_that_was_forced() {
    let mut cluster = Cluster::start(3, &["--election-timeout=200", "--heartbeat-interval=20"]).await;
    let began = Instant::now();
    cluster.nodes[0].kill();
    let mut since = put(&cluster.nodes[1], "since").await;
    // Those who have just started might have been lost together.
    while began.elapsed() < LIVED {
        since = put(&cluster.nodes[2], "since").await;
    }
    let others = [1, 2];
    others.iter().for_each(|other| cluster.nodes[*other].signal(Signal::STOP));
    force(&mut cluster.nodes[0]);
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    assert_eq!(members(&cluster.nodes[0]).await, ["n0"]);
    others.iter().for_each(|other| cluster.nodes[*other].signal(Signal::CONT));
    for other in others {
        let node = &cluster.nodes[other];
        eventually("it says that there are two", async || node.log().contains("There are two clusters now"))
            .await;
        assert!(put(node, "on").await > since);
    }
    // It knows that when it starts again.
    for other in others {
        cluster.nodes[other].kill();
        cluster.nodes[other].start();
        cluster.nodes[other].wait_until_serving().await;
        put(&cluster.nodes[other], "still").await;
    }
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
    // How far its log goes, and so whether it is the one to choose.
    assert!(text.contains(r#""msg":"a log goes up to here","group":1,"index":"#), "{text}");

    cluster.nodes[1].kill();
    force(&mut cluster.nodes[2]);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    assert_eq!(members(&cluster.nodes[2]).await, ["n2"]);
    let events = complete_history(&cluster.nodes[2], revision).await;
    judge(&operations, &events);
    assert_eq!(put(&cluster.nodes[2], "alone").await, revision + 1);

    // Once more with the flag, as a supervisor would.
    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    assert!(
        cluster.nodes[2].log().contains("--force-new-cluster was heeded at an earlier start and is ignored")
    );
    assert_eq!(put(&cluster.nodes[2], "still alone").await, revision + 2);

    // One that was lost comes back, and hears that it was dropped.
    cluster.nodes[0].start();
    let ended = cluster.nodes[0].wait_for_exit().await;
    assert_eq!(ended.code(), Some(1), "{}", cluster.nodes[0].log());
    for said in ["was dropped from this cluster", "keep this directory, stop that node"] {
        assert!(cluster.nodes[0].log().contains(said), "{said}");
    }

    let new = cluster.prepare_to_join();
    let peer_ur_ls = vec![format!("http://{}", cluster.nodes[new].peer_address)];
    let request = pb::MemberAddRequest { peer_ur_ls, is_learner: false };
    ClusterClient::new(cluster.nodes[2].channel()).member_add(request).await.unwrap();
    cluster.nodes[new].start();
    cluster.nodes[new].wait_until_voting().await;
    // It knows its own name before the others do.
    eventually("the others know its name", async || members(&cluster.nodes[2]).await == ["n2", "n3"]).await;
    let newest = put(&cluster.nodes[new], "two").await;
    let [one, other] = [2, new].map(|number| &cluster.nodes[number]);
    assert!(complete_history(one, newest).await == complete_history(other, newest).await);

    // The flag was left where it was: it takes nobody away who does not answer yet when all start again.
    [2, new].into_iter().for_each(|number| cluster.nodes[number].kill());
    cluster.nodes[2].start();
    eventually("the flag is ignored again", async || {
        cluster.nodes[2].log().matches("was heeded at an earlier start and is ignored").count() == 2
    })
    .await;
    cluster.nodes[new].start();
    cluster.nodes[2].wait_until_serving().await;
    assert_eq!(members(&cluster.nodes[2]).await, ["n2", "n3"]);

    // After a start without it, it counts again.
    cluster.nodes[2].kill();
    force_no_more(&mut cluster.nodes[2]);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    [2, new].into_iter().for_each(|number| cluster.nodes[number].kill());
    force(&mut cluster.nodes[2]);
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    assert_eq!(members(&cluster.nodes[2]).await, ["n2"]);
}

/// The nodes with replicas of a keyspace.
fn places(url: &str, keyspace: &str) -> Vec<String> {
    let told: Value = serde_json::from_str(&ctl(url, &["keyspace", "get", keyspace, "-w", "json"])).unwrap();
    let name = |replica: &Value| replica["name"].as_str().unwrap().to_owned();
    let mut names: Vec<String> = told["replicas"].as_array().unwrap().iter().map(name).collect();
    names.sort();
    names
}

/// What the keyspace `here` has, in the order of its keys.
fn values(url: &str) -> String {
    ctl(url, &["--keyspace", "here", "get", "k", "--prefix", "--print-value-only"])
}

async fn put_in(url: &str, keyspace: &str, key: &str, value: &str) {
    let taken = async || run(url, &["--keyspace", keyspace, "put", key, value]).status.success();
    eventually(&format!("{keyspace} takes {key} at {url}"), taken).await;
}

/// Only the root group and that of `default` went on: all other keyspaces could never elect anybody again.
#[tokio::test]
async fn keyspaces_go_on_as_well_and_those_that_were_elsewhere_are_named() {
    // However full the disk is on which this runs.
    let mut cluster = Cluster::start(3, &["--balance-disk-max", "100"]).await;
    let urls = cluster.endpoints();
    for (name, replicas) in [("here", "3"), ("apart", "1")] {
        ctl(&urls[0], &["keyspace", "create", name, "--replicas", replicas]);
        put_in(&urls[0], name, "k", name).await;
    }
    let last = (0..3).rfind(|number| places(&urls[0], "apart") != [format!("n{number}")]).unwrap();
    for (number, url) in urls.iter().enumerate() {
        put_in(url, "here", &format!("k{number}"), "before").await;
    }
    // It has all that was acknowledged.
    assert_eq!(values(&urls[last]), "here\nbefore\nbefore\nbefore\n");
    cluster.nodes.iter_mut().for_each(Node::kill);

    let url = &urls[last];
    force(&mut cluster.nodes[last]);
    for again in [false, true] {
        cluster.nodes[last].start();
        cluster.nodes[last].wait_until_serving().await;
        assert_eq!(cluster.nodes[last].log().contains("was heeded at an earlier start"), again);
        put_in(url, "here", "k3", "after").await;
        assert_eq!(values(url), "here\nbefore\nbefore\nbefore\nafter\n");
        assert_eq!(places(url, "here"), [format!("n{last}")]);
        cluster.nodes[last].kill();
    }
    let log = cluster.nodes[last].log();
    let lost = log.lines().find(|line| line.contains("are lost with the other members")).unwrap();
    assert!(lost.contains("apart") && !lost.contains("here,"), "{lost}");
    force_no_more(&mut cluster.nodes[last]);
    cluster.nodes[last].start();
    cluster.nodes[last].wait_until_serving().await;
    ctl(url, &["keyspace", "delete", "apart"]);
    ctl(url, &["keyspace", "create", "apart"]);
    put_in(url, "apart", "k", "anew").await;

    // It grows again with the pool.
    let new = cluster.prepare_to_join();
    let peer_url = format!("--peer-urls=http://{}", cluster.nodes[new].peer_address);
    ctl(url, &["member", "add", "n3", &peer_url]);
    cluster.nodes[new].start();
    let both = [format!("n{last}"), "n3".to_owned()];
    eventually("a second replica", async || places(url, "here") == both).await;
    put_in(&cluster.nodes[new].client_url, "here", "k4", "grown").await;
    // Both are needed now, so both have it.
    assert_eq!(values(url), "here\nbefore\nbefore\nbefore\nafter\ngrown\n");
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
