//! `hadron ctl node remove` on real nodes: one that is gone for good, one that is well, and what is refused; and what
//! `hadron ctl balance simulate` says before.

use serde_json::Value;

use crate::support::ctl::{complaint, ctl, run, text};
use crate::support::{Cluster, eventually};

const KEYSPACES: [&str; 3] = ["a", "b", "c"];

fn json(endpoints: &str, words: &[&str]) -> Value {
    serde_json::from_str(&ctl(endpoints, words)).unwrap()
}

/// Nodes of a list by their names.
fn named<'a>(reply: &'a Value, name: &str) -> &'a Value {
    reply["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap()
}

/// The nodes with replicas of a keyspace.
fn places(endpoints: &str, keyspace: &str) -> Vec<String> {
    let reply = json(endpoints, &["keyspace", "get", keyspace, "-w", "json"]);
    let replicas = reply["replicas"].as_array().unwrap();
    replicas.iter().map(|replica| replica["name"].as_str().unwrap().to_owned()).collect()
}

/// Every keyspace still has what was written, and takes more.
async fn serve(cluster: &Cluster) {
    for keyspace in KEYSPACES {
        let served = async || {
            cluster.nodes.iter().filter(|node| node.is_running()).any(|node| {
                let url = &node.client_url;
                let got = run(url, &["--keyspace", keyspace, "get", "key", "--print-value-only"]);
                let put = run(url, &["--keyspace", keyspace, "put", "more", "of it"]);
                text(&got.stdout).trim() == keyspace && put.status.success()
            })
        };
        eventually(&format!("{keyspace} is served with what was written"), served).await;
    }
}

#[tokio::test]
async fn nodes_are_emptied_and_leave_and_what_would_lose_data_is_refused() {
    let mut cluster = Cluster::start(4, &[]).await;
    let url = cluster.nodes[0].client_url.clone();
    for name in KEYSPACES {
        ctl(&url, &["keyspace", "create", name]);
        let put = async || {
            cluster
                .nodes
                .iter()
                .any(|node| run(&node.client_url, &["--keyspace", name, "put", "key", name]).status.success())
        };
        eventually("the keyspace takes a write", put).await;
    }
    let names: Vec<String> = cluster.nodes.iter().map(|node| node.argument("--name")).collect();
    eventually("all nodes have told their loads", async || {
        run(&url, &["balance", "simulate"]).status.success()
    })
    .await;

    // What would be is shown, and nothing is done.
    let before: Vec<_> = KEYSPACES.iter().map(|keyspace| places(&url, keyspace)).collect();
    let simulated = json(&url, &["balance", "simulate", "--drain", &names[3], "--add", "1", "-w", "json"]);
    assert_eq!(named(&simulated, &names[3])["replicas"]["after"], 0, "{simulated}");
    assert_eq!(named(&simulated, "new-1")["state"], "added");
    assert_eq!(simulated["settled"], true);
    let after: Vec<_> = KEYSPACES.iter().map(|keyspace| places(&url, keyspace)).collect();
    assert_eq!(before, after);

    // A node that is gone for good.
    cluster.nodes[3].kill();
    let is_down = async || {
        let nodes = json(&url, &["node", "list", "-w", "json"]);
        named(&nodes, &names[3])["alive"].is_null()
    };
    eventually("the node is missed", is_down).await;
    let refused = complaint(&url, &["node", "remove", &names[3]]);
    assert!(refused.contains("cannot be reached: start it, or use --force"), "{refused}");
    let removed = run(&url, &["node", "remove", "--force", &names[3], "--timeout", "60s"]);
    assert!(removed.status.success(), "{}\n{}", text(&removed.stderr), cluster.logs());
    assert_eq!(ctl(&url, &["member", "list"]).lines().count(), 3);
    for keyspace in KEYSPACES {
        assert_eq!(places(&url, keyspace), sorted_by_id(&url, &names[..3]), "rebuilt elsewhere");
    }
    serve(&cluster).await;

    // Nobody could take over from the next.
    let refused = complaint(&url, &["node", "remove", &names[2]]);
    assert!(refused.contains("3 replicas on node") && refused.contains("nothing was changed"), "{refused}");
    let nodes = json(&url, &["node", "list", "-w", "json"]);
    assert!(named(&nodes, &names[2])["draining"].is_null());

    // With fewer replicas it can go, and the others have all.
    for keyspace in KEYSPACES {
        ctl(&url, &["keyspace", "update", keyspace, "--replicas", "2"]);
    }
    let removed = run(&url, &["node", "remove", &names[2], "--timeout", "60s"]);
    assert!(removed.status.success(), "{}\n{}", text(&removed.stderr), cluster.logs());
    assert_eq!(ctl(&url, &["member", "list"]).lines().count(), 2);
    for keyspace in KEYSPACES {
        assert_eq!(places(&url, keyspace), sorted_by_id(&url, &names[..2]));
    }
    cluster.nodes[2].kill();
    serve(&cluster).await;

    // Nor does etcd's own way take the last majority of a keyspace away.
    ctl(&url, &["keyspace", "update", KEYSPACES[0], "--replicas", "1"]);
    eventually("it is on one node", async || places(&url, KEYSPACES[0]).len() == 1).await;
    let only =
        named(&json(&url, &["node", "list", "-w", "json"]), &places(&url, KEYSPACES[0])[0])["id"].clone();
    let only = only.as_str().map_or_else(|| format!("{:x}", only.as_u64().unwrap()), str::to_owned);
    let refused = complaint(&url, &["member", "remove", &only]);
    assert!(refused.contains("would lose the majority of its replicas"), "{refused}");
    assert_eq!(ctl(&url, &["member", "list"]).lines().count(), 2);
}

/// Names in the order in which replicas are listed: of the nodes' ids.
fn sorted_by_id(endpoints: &str, names: &[String]) -> Vec<String> {
    let nodes = json(endpoints, &["node", "list", "-w", "json"]);
    let nodes =
        nodes["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap().to_owned());
    nodes.filter(|name| names.contains(name)).collect()
}
