//! `etcd gateway start`: connections go to the nodes that are there.

use hadron_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;

use crate::support;
use crate::support::place::Place;
use crate::support::ports::Port;
use crate::support::{Cluster, eventually};

#[tokio::test]
async fn connections_go_to_the_nodes_that_are_there() {
    let mut cluster = Cluster::start(3, &[]).await;
    let place = Place::new();
    let nobody = Port::hold();
    let mut endpoints = cluster.endpoints();
    endpoints.push(nobody.url());
    let mut command = place.command("etcd");
    command.args(["gateway", "start", "--listen-addr=127.0.0.1:0", "--retry-delay=100ms"]);
    command.arg(format!("--endpoints={}", endpoints.join(",")));
    let gateway = place.serve(&mut command);
    let address = gateway.line("ready to proxy client requests")["address"].as_str().unwrap().to_owned();
    let put = async || {
        // A new connection each time.
        let mut kv = KvClient::new(support::channel(&format!("http://{address}")));
        kv.put(pb::PutRequest { key: "k".into(), ..Default::default() }).await
    };
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..12 {
        answered.insert(put().await.unwrap().into_inner().header.unwrap().member_id);
    }
    assert_eq!(answered.len(), 3, "each of the nodes in turn");
    gateway.line("deactivated endpoint");

    // With one node left there is no quorum, but somebody who says so.
    cluster.nodes[0].kill();
    eventually("the others answer", async || put().await.is_ok()).await;
    for _ in 0..6 {
        put().await.unwrap();
    }
    cluster.nodes[0].start();
    let activated = async || gateway.lines().iter().any(|line| line["msg"] == "activated");
    eventually("it is tried again", activated).await;
}
