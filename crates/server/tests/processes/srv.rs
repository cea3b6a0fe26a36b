//! Nodes and clients that find each other through SRV records, of a DNS server of the test's own.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use hadron_proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;

use crate::support;
use crate::support::authority::Authority;
use crate::support::dns::{Dns, Record};
use crate::support::place::{Place, Served, text};
use crate::support::{Cluster, Node, eventually};

/// Where a process is told of the DNS server.
const SERVER: &str = "HADRON_DNS_SERVER";

fn variable(dns: &Dns) -> (&'static str, PathBuf) {
    (SERVER, dns.address.to_string().into())
}

/// Nodes that are to find each other in `example.test`, and are not started.
async fn prepared(count: usize, dns: &Dns) -> Cluster {
    let mut cluster = Cluster::prepared(count).await;
    for node in &mut cluster.nodes {
        node.drop_argument("--initial-cluster");
        node.set_argument("--discovery-srv", "example.test");
        node.set_environment(&[variable(dns)]);
    }
    cluster
}

fn peer_records(nodes: &[Node]) -> Vec<Record> {
    nodes.iter().map(|node| (0, 0, node.peer_address.port(), "localhost")).collect()
}

fn client_port(node: &Node) -> u16 {
    node.client_url.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// A node and the port on which it serves clients.
fn served(flags: &[&str], scheme: &str) -> (Place, Served, u16) {
    let place = Place::new();
    let mut command = place.command("etcd");
    command.args([
        "--listen-peer-urls=http://127.0.0.1:0",
        &format!("--listen-client-urls={scheme}://127.0.0.1:0"),
        &format!("--advertise-client-urls={scheme}://127.0.0.1:2379"),
    ]);
    let served = place.serve(command.args(flags));
    let port = served.address("grpc+http").port();
    (place, served, port)
}

fn run(command: &mut Command, dns: &Dns) -> Output {
    let (name, value) = variable(dns);
    command.env(name, value).output().unwrap()
}

async fn put(url: &str) -> Result<u64, tonic::Status> {
    let mut kv = KvClient::new(support::channel(url));
    let put = pb::PutRequest { key: "k".into(), ..Default::default() };
    kv.put(put).await.map(|answer| answer.into_inner().header.unwrap().member_id)
}

#[tokio::test]
async fn nodes_find_each_other_and_ask_only_once() {
    let dns = Dns::start();
    let mut cluster = prepared(3, &dns).await;
    // Of two clusters in one domain.
    for node in &mut cluster.nodes {
        node.set_argument("--discovery-srv-name", "blue");
    }
    let mut late = cluster.nodes.split_off(2);
    dns.set("_etcd-server-blue._tcp.example.test", &peer_records(&cluster.nodes));
    dns.set("_etcd-server._tcp.example.test", &[(0, 0, 1, "localhost")]);
    cluster.bring_up().await;

    let names = async |node: &Node| {
        let mut client = ClusterClient::new(node.channel());
        let members = client.member_list(pb::MemberListRequest::default()).await;
        let members = members.map(|members| members.into_inner().members).unwrap_or_default();
        members.into_iter().map(|member| (member.name, member.peer_ur_ls.join(","))).collect::<BTreeSet<_>>()
    };
    // One more, which joins: the records say where the others are, too.
    let mut late = late.pop().unwrap();
    let url = format!("http://localhost:{}", late.peer_address.port());
    eventually("the cluster takes a member", async || {
        let add = pb::MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: false };
        ClusterClient::new(cluster.nodes[0].channel()).member_add(add).await.is_ok()
    })
    .await;
    late.set_argument("--initial-cluster-state", "existing");
    cluster.nodes.push(late);
    dns.set("_etcd-server-blue._tcp.example.test", &peer_records(&cluster.nodes));
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_serving().await;
    let expected: BTreeSet<(String, String)> = cluster
        .nodes
        .iter()
        .map(|node| (node.name.clone(), format!("http://localhost:{}", node.peer_address.port())))
        .collect();
    for node in &cluster.nodes {
        eventually("each knows the names of all", async || names(node).await == expected).await;
        assert!(node.log().contains("got bootstrap from DNS for etcd-server"));
    }

    // A node that has its data asks nobody.
    dns.fall_silent();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    eventually("it knows the names of all", async || names(&cluster.nodes[0]).await == expected).await;
    assert!(!cluster.nodes[0].log().contains("these flags are not what the cluster"), "they are");
}

#[tokio::test]
async fn records_that_make_no_cluster_are_refused() {
    let dns = Dns::start();
    let cluster = prepared(2, &dns).await;
    let (node, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let started = async |server: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hadron"));
        command.env(SERVER, server);
        let output = node.run_as(command, &[]).await;
        assert_eq!(output.status.code(), Some(1));
        text(&output.stdout) + &text(&output.stderr)
    };
    let server = dns.address.to_string();
    let said = started(&server).await;
    assert!(said.contains("lookup _etcd-server._tcp.example.test: no such host"), "{said}");

    dns.set("_etcd-server._tcp.example.test", &peer_records(std::slice::from_ref(other)));
    let said = started(&server).await;
    assert!(said.contains("cannot find local etcd member \\\"n0\\\" in SRV records"), "{said}");

    // A host that nobody can resolve may be a member for others: the nodes must not come to different clusters.
    let mut records = peer_records(&cluster.nodes);
    records.push((0, 0, 2380, "no-such-host.invalid"));
    dns.set("_etcd-server._tcp.example.test", &records);
    let said = started(&server).await;
    assert!(said.contains("need no-such-host.invalid to be resolved"), "{said}");

    dns.set("_etcd-server._tcp.example.test", &[]);
    dns.set("_etcd-server-ssl._tcp.example.test", &peer_records(&cluster.nodes));
    let said = started(&server).await;
    assert!(said.contains("the schemes differ"), "{said}");

    let said = started("nonsense").await;
    assert!(said.contains("HADRON_DNS_SERVER: expected IP:PORT, got"), "{said}");
    assert!(!node.data_dir().join("POOL").exists(), "nothing was begun");
}

#[test]
fn ctl_finds_endpoints() {
    let dns = Dns::start();
    let (place, _served, port) = served(&[], "http");
    let ctl = |flags: &[&str]| run(place.command("etcdctl").args(flags), &dns);
    let missing = ctl(&["--discovery-srv=example.test", "put", "a", "1"]);
    let stderr = text(&missing.stderr);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr.contains("dns lookup errors: lookup _etcd-client-ssl._tcp.example.test: no such host"),
        "{stderr}"
    );

    dns.set("_etcd-client._tcp.example.test", &[(0, 0, port, "localhost")]);
    dns.set("_etcd-client-green._tcp.example.test", &[(0, 0, 1, "localhost"), (1, 0, port, "localhost")]);
    for flags in [
        vec!["--discovery-srv=example.test"],
        vec!["-d", "example.test", "--endpoints=127.0.0.1:1"],
        vec!["--discovery-srv=example.test", "--discovery-srv-name=green"],
    ] {
        let put = ctl(&[&flags[..], &["put", "a", "1"]].concat());
        assert_eq!(text(&put.stdout), "OK\n", "{flags:?}: {}", text(&put.stderr));
    }
    let mut from_environment = place.command("etcdctl");
    from_environment.args(["get", "a"]).env("ETCDCTL_DISCOVERY_SRV", "example.test");
    assert_eq!(text(&run(&mut from_environment, &dns).stdout), "a\n1\n");

    let endpoint = format!("--endpoints=localhost:{port}");
    let wary = ctl(&[
        "-d",
        "example.test",
        "--insecure-discovery=false",
        &endpoint,
        "--dial-timeout=1s",
        "get",
        "a",
    ]);
    let stderr = text(&wary.stderr);
    assert!(stderr.contains(&format!("ignoring discovered insecure endpoint \"http://localhost:{port}\"")));
    assert!(!wary.status.success(), "--endpoints counts then, and is spoken to with TLS");
}

#[test]
fn certificates_may_be_of_the_domain() {
    let (dns, authority) = (Dns::start(), Authority::new());
    let (cert, key) = authority.sign("domain", &["example.test"]);
    let flags = [format!("--cert-file={}", cert.display()), format!("--key-file={}", key.display())];
    let (place, _served, port) = served(&flags.each_ref().map(String::as_str), "https");
    dns.set("_etcd-client-ssl._tcp.example.test", &[(0, 0, port, "localhost")]);
    let trusted = format!("--cacert={}", authority.trusted().display());
    let put = |insecure: &str| {
        let flags = ["-d", "example.test", &trusted, insecure, "--dial-timeout=2s", "put", "a", "1"];
        run(place.command("etcdctl").args(flags), &dns)
    };
    let of_domain = put("--insecure-discovery=false");
    assert_eq!(text(&of_domain.stdout), "OK\n", "{}", text(&of_domain.stderr));
    let of_host = put("--insecure-discovery=true");
    assert!(text(&of_host.stderr).contains("not valid for name"), "{}", text(&of_host.stderr));

    // The gateway, too, takes who speaks TLS; and with authorities, whose certificate is the domain's.
    let stranger = Authority::new();
    for (trusted, count) in [(None, 1), (Some(authority.trusted()), 1), (Some(stranger.trusted()), 0)] {
        let place = Place::new();
        let mut command = place.command("etcd");
        command.args(["gateway", "start", "--listen-addr=127.0.0.1:0", "--discovery-srv=example.test"]);
        command.args(trusted.map(|file| format!("--trusted-ca-file={}", file.display())));
        command.env(SERVER, dns.address.to_string());
        let gateway = place.serve(&mut command);
        let found = gateway.line("using validated discovered SRV endpoints")["endpoints"].to_string();
        assert_eq!(found.matches("https://").count(), count, "{}", gateway.log());
        let used = gateway.line("ready to proxy client requests")["endpoints"].to_string();
        let expected = if count == 0 { "127.0.0.1:2379".to_owned() } else { format!("localhost:{port}") };
        assert_eq!(used, format!("\"{expected}\""), "--endpoints counts if none is left");
    }
}

#[tokio::test]
async fn gateway_and_proxy_use_the_nodes_that_dns_names() {
    let dns = Dns::start();
    let mut cluster = Cluster::start(3, &[]).await;
    let ports: Vec<u16> = cluster.nodes.iter().map(client_port).collect();
    let id = async |node: &Node| node.status().await.unwrap().header.unwrap().member_id;
    let ids = [id(&cluster.nodes[0]).await, id(&cluster.nodes[1]).await];
    dns.set(
        "_etcd-client._tcp.example.test",
        &[(5, 0, ports[1], "localhost"), (0, 0, ports[0], "localhost")],
    );
    let (gateway_place, proxy_place) = (Place::new(), Place::new());
    let start = |place: &Place, what: &str| {
        let mut command = place.command("etcd");
        command.args([what, "start", "--listen-addr=127.0.0.1:0", "--insecure-discovery"]);
        command.args(["--discovery-srv=example.test", "--endpoints=127.0.0.1:1"]);
        place.serve(command.env(SERVER, dns.address.to_string()))
    };
    let gateway = start(&gateway_place, "gateway");
    let proxy = start(&proxy_place, "grpc-proxy");
    let url = |served: &Served, message: &str| {
        format!("http://{}", served.line(message)["address"].as_str().unwrap())
    };
    let through_gateway = url(&gateway, "ready to proxy client requests");
    let through_proxy = url(&proxy, "started gRPC proxy");

    for _ in 0..5 {
        assert_eq!(put(&through_gateway).await.unwrap(), ids[0], "the one with the smallest priority");
    }
    let mut answered = BTreeSet::new();
    for _ in 0..4 {
        answered.insert(put(&through_proxy).await.unwrap());
    }
    assert_eq!(answered, BTreeSet::from(ids), "both in turn, as etcd's client does");

    cluster.nodes[0].kill();
    eventually("the other one is used", async || put(&through_gateway).await.ok() == Some(ids[1])).await;
}
