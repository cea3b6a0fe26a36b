//! Keyspaces of real nodes: made and deleted, chosen in every way there is, through restarts and resizing.

use std::net::SocketAddr;
use std::path::Path;

use futures::future::join_all;
use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::{AlarmRequest, AlarmType, RangeRequest};
use rustix::process::Signal;
use serde_json::Value;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::support::authority::Authority;
use crate::support::ctl::{complaint, ctl, run};
use crate::support::place::{Place, text};
use crate::support::{Cluster, Node, eventually, page};

const SUFFIX: &str = "hadron.example";

/// Three nodes, each with a port for the keyspace a.
async fn cluster() -> Cluster {
    let mut cluster = Cluster::at_rest(3, &["--keyspace-host-suffix", SUFFIX], &[]).await;
    for (number, node) in cluster.nodes.iter_mut().enumerate() {
        node.set_argument("--keyspace-listen", "a=http://127.0.0.1:0");
        // How a node divides its groups is its own affair.
        node.set_argument("--shards", &(number + 1).to_string());
    }
    cluster.bring_up().await;
    cluster
}

/// Waits until it prints this at every node.
async fn everywhere(cluster: &Cluster, words: &[&str], expected: &str) {
    for node in &cluster.nodes {
        let mut last = String::new();
        let same = async || {
            let output = run(&node.client_url, words);
            last = text(&output.stdout) + &text(&output.stderr);
            last == expected
        };
        eventually(&format!("{} prints {expected:?} for {words:?}", node.name), same).await;
    }
}

/// How many calls a node has passed on.
async fn passed_on(cluster: &Cluster, number: usize) -> u64 {
    let page = cluster.nodes[number].metrics().await;
    let lines = page.lines().filter(|line| line.starts_with("hadron_calls_passed_on_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Where a node listens for clients of a keyspace, since its last start.
fn port_of(cluster: &Cluster, number: usize, keyspace: &str) -> SocketAddr {
    let log = cluster.nodes[number].log();
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = lines.filter(|line| line["keyspace"] == keyspace && line["traffic"] == "grpc+http");
    lines.next().unwrap()["address"].as_str().unwrap().parse().unwrap()
}

async fn value(channel: Channel) -> Result<String, tonic::Status> {
    let range = RangeRequest { key: "k".into(), ..RangeRequest::default() };
    let kvs = KvClient::new(channel).range(range).await?.into_inner().kvs;
    Ok(kvs.first().map_or_else(String::new, |kv| text(&kv.value)))
}

fn by_host(url: &str, host: &str) -> Channel {
    let origin: Uri = format!("http://{host}").parse().unwrap();
    Endpoint::from_shared(url.to_owned()).unwrap().origin(origin).connect_lazy()
}

#[tokio::test]
async fn keyspaces_live_through_restarts_and_come_back_empty_when_made_anew() {
    let mut cluster = cluster().await;
    let all = cluster.endpoints().join(",");
    assert_eq!(ctl(&all, &["keyspace", "create", "a"]), "Keyspace a created\n");
    assert_eq!(ctl(&all, &["keyspace", "create", "b", "--replicas", "3"]), "Keyspace b created\n");
    ctl(&all, &["put", "k", "in default"]);
    ctl(&all, &["--keyspace", "a", "put", "k", "in a"]);
    ctl(&all, &["--keyspace=b", "put", "k", "in b"]);
    let expect = async |cluster: &Cluster| {
        everywhere(cluster, &["get", "k", "--print-value-only"], "in default\n").await;
        everywhere(cluster, &["--keyspace", "a", "get", "k", "--print-value-only"], "in a\n").await;
        everywhere(cluster, &["get", "k", "--print-value-only", "--keyspace", "b"], "in b\n").await;
    };
    expect(&cluster).await;
    let listed = ctl(&all, &["keyspace", "list", "-w", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let seen: Vec<_> = listed["keyspaces"].as_array().unwrap().iter().collect();
    let seen: Vec<_> = seen.iter().map(|one| (one["name"].as_str().unwrap(), &one["replicas"])).collect();
    assert_eq!(seen, [("a", &3.into()), ("b", &3.into()), ("default", &3.into())]);
    let status = ctl(&all, &["--keyspace", "a", "endpoint", "status", "-w", "json"]);
    assert_eq!(status.matches("\"leader\"").count(), 3, "{status}");

    for number in 0..3 {
        cluster.nodes[number].kill();
        ctl(&all, &["--keyspace", "a", "put", "while", &number.to_string()]);
        cluster.nodes[number].start();
        cluster.nodes[number].wait_until_serving().await;
    }
    expect(&cluster).await;
    everywhere(&cluster, &["--keyspace", "a", "get", "while", "--print-value-only"], "2\n").await;

    assert_eq!(ctl(&all, &["keyspace", "delete", "a"]), "Keyspace a deleted\n");
    let unknown = "Error: rpc error: code = NotFound desc = hadron: there is no keyspace \"a\"\n";
    everywhere(&cluster, &["--keyspace", "a", "get", "k"], unknown).await;
    ctl(&all, &["keyspace", "create", "a"]);
    everywhere(&cluster, &["--keyspace", "a", "get", "", "--prefix"], "").await;
    let fresh = ctl(&all, &["--keyspace", "a", "get", "k", "-w", "json"]);
    assert!(fresh.contains("\"revision\":1,"), "{fresh}");
    ctl(&all, &["--keyspace", "a", "put", "k", "again"]);
    everywhere(&cluster, &["--keyspace", "a", "get", "k", "--print-value-only"], "again\n").await;
    everywhere(&cluster, &["--keyspace", "b", "get", "k", "--print-value-only"], "in b\n").await;
}

/// Since all nodes had been restarted it slept without a leader. Whoever demanded one was refused, as `etcdctl watch` was, and its page of
/// health said that it was ill: for ever, since neither woke it.
#[tokio::test]
async fn a_keyspace_that_sleeps_finds_a_leader_for_who_demands_one() {
    let mut cluster = cluster().await;
    let all = cluster.endpoints().join(",");
    for name in ["a", "b"] {
        ctl(&all, &["keyspace", "create", name]);
        ctl(&all, &["--keyspace", name, "put", "k", "v"]);
    }
    eventually("both sleep", async || {
        let asleep = cluster.nodes.iter().map(|node| node.counter("hadron_groups_asleep"));
        join_all(asleep).await.into_iter().all(|groups| groups >= 2)
    })
    .await;
    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.bring_up().await;
    let port = port_of(&cluster, 0, "a").to_string();
    eventually("a is healthy", async || {
        page(&port, "/health").await.is_some_and(|page| page.contains(r#"{"health":"true""#))
    })
    .await;
    let channel = cluster.nodes[0].channel();
    eventually("b answers who demands a leader", async || {
        let range = RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() };
        let mut request = Request::new(range);
        request.metadata_mut().insert("hadron-keyspace", "b".parse().unwrap());
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        KvClient::new(channel.clone()).range(request).await.is_ok()
    })
    .await;
}

/// A replica that differs from the others was named in the log, and never replaced.
#[tokio::test]
async fn a_damaged_replica_is_rebuilt() {
    let cluster = Cluster::start(3, &[]).await;
    let all = cluster.endpoints().join(",");
    for (name, replicas) in [("everywhere", "3"), ("on-two", "2")] {
        ctl(&all, &["keyspace", "create", name, "--replicas", replicas]);
        ctl(&all, &["--keyspace", name, "put", "k", "v"]);
        let told = keyspace(&all, name);
        let of = |one: &Value| (one["node"].as_u64().unwrap(), one["replica"].as_u64().unwrap());
        let places: Vec<(u64, u64)> = told["replicas"].as_array().unwrap().iter().map(of).collect();
        let (accused, replica) = places[0];
        accuse(&cluster.nodes[0].client_url, name, accused).await;
        eventually("another replica in its place", async || {
            let told = keyspace(&all, name);
            let left: Vec<(u64, u64)> = told["replicas"].as_array().unwrap().iter().map(of).collect();
            left.len() == places.len() && left.iter().all(|(_, it)| *it != replica)
        })
        .await;
        let alarms = ["--keyspace", name, "alarm", "list"];
        eventually("the alarm ends with the replica", async || ctl(&all, &alarms).is_empty()).await;
        let history = ctl(&all, &["balance", "history"]);
        let moved = history.lines().find(|line| line.contains(&format!(", {name}, "))).unwrap();
        assert!(moved.contains("the replica on n") && moved.contains("is damaged"), "{history}");
        everywhere(&cluster, &["--keyspace", name, "get", "k", "--print-value-only"], "v\n").await;
    }
}

fn keyspace(endpoints: &str, name: &str) -> Value {
    serde_json::from_str(&ctl(endpoints, &["keyspace", "get", name, "-w", "json"])).unwrap()
}

/// Raises the alarm that a comparison of digests raises.
async fn accuse(url: &str, keyspace: &str, node: u64) {
    let channel = Endpoint::from_shared(url.to_owned()).unwrap().connect_lazy();
    let (action, alarm) = (AlarmAction::Activate as i32, AlarmType::Corrupt as i32);
    let mut request = Request::new(AlarmRequest { action, member_id: node, alarm });
    request.metadata_mut().insert("hadron-keyspace", keyspace.parse().unwrap());
    MaintenanceClient::new(channel).alarm(request).await.unwrap();
}

#[tokio::test]
async fn ports_and_host_names_lead_to_keyspaces() {
    let cluster = cluster().await;
    let all = cluster.endpoints().join(",");
    ctl(&all, &["keyspace", "create", "a"]);
    ctl(&all, &["keyspace", "create", "b"]);
    ctl(&all, &["--keyspace", "a", "put", "k", "in a"]);
    ctl(&all, &["--keyspace", "b", "put", "k", "in b"]);
    everywhere(&cluster, &["--keyspace", "a", "get", "k", "--print-value-only"], "in a\n").await;
    everywhere(&cluster, &["--keyspace", "b", "get", "k", "--print-value-only"], "in b\n").await;
    for number in 0..3 {
        let port = port_of(&cluster, number, "a").to_string();
        assert_eq!(ctl(&port, &["get", "k", "--print-value-only"]), "in a\n");
        let refused = complaint(&port, &["--keyspace", "b", "get", "k"]);
        assert!(refused.contains("this port is for the keyspace a"), "{refused}");
        let members = ctl(&port, &["member", "list", "-w", "json"]);
        assert_eq!(members.matches(&format!("\"http://{port}\"")).count(), 3, "{members}");
        let denied = complaint(&port, &["member", "add", "x", "--peer-urls=http://127.0.0.1:1"]);
        assert!(denied.contains("members are the pool's"), "{denied}");
        let denied = complaint(&port, &["keyspace", "list"]);
        assert!(denied.contains("code = PermissionDenied"), "{denied}");
    }
    let url = &cluster.nodes[0].client_url;
    assert_eq!(value(by_host(url, "a.hadron.example:2379")).await.unwrap(), "in a");
    assert_eq!(value(by_host(url, "b.hadron.example")).await.unwrap(), "in b");
    assert_eq!(value(by_host(url, "127.0.0.1")).await.unwrap(), "");
    let unknown = value(by_host(url, "none.hadron.example")).await.unwrap_err();
    assert_eq!(unknown.message(), "hadron: there is no keyspace \"none\"");
}

/// It waited for a whole election timeout, in which a supervisor may kill it.
#[tokio::test]
async fn who_is_stopped_waits_for_nobody_to_take_over_what_nobody_else_has() {
    let mut cluster = cluster().await;
    let all = cluster.endpoints().join(",");
    ctl(&all, &["keyspace", "create", "b", "--replicas", "1"]);
    ctl(&all, &["--keyspace", "b", "put", "k", "v"]);
    let get: Value = serde_json::from_str(&ctl(&all, &["keyspace", "get", "b", "-w", "json"])).unwrap();
    let name = get["replicas"][0]["name"].as_str().unwrap();
    let holder = cluster.nodes.iter().position(|node| node.argument("--name") == name).unwrap();
    cluster.nodes[holder].signal(Signal::TERM);
    assert!(cluster.nodes[holder].wait_for_exit().await.success());
    let log = cluster.nodes[holder].log();
    assert!(!log.contains("could not hand leadership over"), "{log}");
}

#[tokio::test]
async fn keyspaces_are_limited_frozen_and_resized() {
    let cluster = cluster().await;
    let all = cluster.endpoints().join(",");
    let one = ctl(&all, &["keyspace", "create", "b", "--replicas", "1", "-w", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&one).unwrap()["keyspace"]["replicas"], 1);
    // The least loaded node has it. The others pass on what they are asked.
    let get: Value = serde_json::from_str(&ctl(&all, &["keyspace", "get", "b", "-w", "json"])).unwrap();
    let name = get["replicas"][0]["name"].as_str().unwrap();
    let first = cluster.nodes.iter().position(|node| node.argument("--name") == name).unwrap();
    let others = [(first + 1) % 3, (first + 2) % 3];
    ctl(&cluster.nodes[others[0]].client_url, &["--keyspace", "b", "put", "k", "v"]);
    everywhere(&cluster, &["--keyspace", "b", "get", "k", "--print-value-only"], "v\n").await;
    assert_eq!(passed_on(&cluster, first).await, 0);
    assert!(passed_on(&cluster, others[0]).await > 0 && passed_on(&cluster, others[1]).await > 0);

    assert_eq!(ctl(&all, &["keyspace", "update", "b", "--replicas=3"]), "Keyspace b updated\n");
    everywhere(&cluster, &["--keyspace", "b", "get", "k", "--print-value-only"], "v\n").await;
    let get = ctl(&all, &["keyspace", "get", "b", "-w", "json"]);
    let get: Value = serde_json::from_str(&get).unwrap();
    assert_eq!((get["replicas"].as_array().unwrap().len(), &get["revision"]), (3, &2.into()));
    // It leads, and stays.
    ctl(&all, &["keyspace", "update", "b", "--replicas=1"]);
    for number in others {
        let before = passed_on(&cluster, number).await;
        let passes_on = async || {
            ctl(&cluster.nodes[number].client_url, &["--keyspace", "b", "get", "k"]);
            passed_on(&cluster, number).await > before
        };
        eventually("a node without its replica passes calls on", passes_on).await;
    }
    assert_eq!(ctl(&all, &["--keyspace", "b", "get", "k", "--print-value-only"]), "v\n");

    ctl(&all, &["keyspace", "freeze", "b"]);
    let frozen = complaint(&all, &["--keyspace", "b", "put", "k", "w"]);
    assert!(frozen.contains("the keyspace b is frozen: it can only be read"), "{frozen}");
    assert_eq!(ctl(&all, &["--keyspace", "b", "get", "k", "--print-value-only"]), "v\n");
    ctl(&all, &["keyspace", "thaw", "b"]);
    ctl(&all, &["--keyspace", "b", "put", "k", "w"]);

    ctl(&all, &["keyspace", "update", "b", "--bytes-max", "1"]);
    let full = complaint(&all, &["--keyspace", "b", "put", "k", "x"]);
    assert_eq!(full, "Error: etcdserver: mvcc: database space exceeded\n");
    let alarms = ctl(&all, &["--keyspace", "b", "alarm", "list"]);
    assert!(alarms.contains("alarm:NOSPACE") && ctl(&all, &["alarm", "list"]).is_empty(), "{alarms}");
    ctl(&all, &["put", "k", "x"]);
    let nodes = ctl(&all, &["node", "list"]);
    assert_eq!(nodes.lines().filter(|line| line.contains(", alive, false, ")).count(), 3, "{nodes}");
}

#[test]
fn certificates_bind_clients_to_keyspaces() {
    let (place, authority) = (Place::new(), Authority::new());
    let (cert, key) = authority.sign("server", &["127.0.0.1"]);
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let mut command = place.command("etcd");
    command.args([
        "--listen-peer-urls=http://127.0.0.1:0",
        "--listen-client-urls=https://127.0.0.1:0",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--client-cert-auth",
        "--keyspace-from-certificate=cn:tenant-{name}",
    ]);
    command.args([
        flag("cert-file", &cert),
        flag("key-file", &key),
        flag("trusted-ca-file", &authority.trusted()),
    ]);
    let served = place.serve(&mut command);
    let endpoint = format!("--endpoints=https://{}", served.address("grpc+http"));
    let trusted = flag("cacert", &authority.trusted());
    let as_client = |name: &str, words: &[&str]| {
        let (cert, key) = authority.sign(name, &["client.example"]);
        let own = [endpoint.clone(), trusted.clone(), flag("cert", &cert), flag("key", &key)];
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        place.output("etcdctl", &[&own[..], words].concat())
    };
    for name in ["a", "b"] {
        let made = as_client("operator", &["keyspace", "create", name]);
        assert_eq!(text(&made.stdout), format!("Keyspace {name} created\n"), "{}", text(&made.stderr));
    }
    assert_eq!(text(&as_client("tenant-a", &["put", "k", "in a"]).stdout), "OK\n");
    assert_eq!(text(&as_client("operator", &["get", "k"]).stdout), "");
    assert_eq!(text(&as_client("operator", &["--keyspace=a", "get", "k"]).stdout), "k\nin a\n");
    assert_eq!(text(&as_client("tenant-b", &["get", "k"]).stdout), "");
    for words in [&["--keyspace=b", "get", "k"][..], &["keyspace", "list"], &["node", "list"]] {
        let refused = as_client("tenant-a", words);
        assert!(text(&refused.stderr).contains("code = PermissionDenied"), "{}", text(&refused.stderr));
    }
}
