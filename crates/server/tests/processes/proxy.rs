//! `etcd grpc-proxy start`: clients see through it what they would see of a node, but for what its flags change.

use std::path::PathBuf;

use hadron_proto::etcdserverpb as pb;
use hadron_proto::v3lockpb::LockRequest;
use hadron_proto::v3lockpb::lock_client::LockClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request as Op;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use crate::support;
use crate::support::authority::Authority;
use crate::support::place::{Place, Served, text};
use crate::support::ports::Port;
use crate::support::{Cluster, eventually};

/// A proxy that runs, and the directory that it runs in.
struct Proxy {
    address: String,
    served: Served,
    _place: Place,
}

/// Starts a proxy of these endpoints with these flags.
fn start(endpoints: &[String], flags: &[&str]) -> Proxy {
    let place = Place::new();
    let mut command = place.command("etcd");
    command.args(["grpc-proxy", "start", "--listen-addr=127.0.0.1:0"]).args(flags);
    command.arg(format!("--endpoints={}", endpoints.join(",")));
    let served = place.serve(&mut command);
    let address = served.line("started gRPC proxy")["address"].as_str().unwrap().to_owned();
    Proxy { address, served, _place: place }
}

impl Proxy {
    fn channel(&self) -> Channel {
        support::channel(&format!("http://{}", self.address))
    }
}

/// The headers of a page, and what comes after them.
async fn page(address: &str, path: &str) -> (String, String) {
    let page = support::page(address, path).await.unwrap();
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn put(channel: &Channel, key: &str, value: &str) -> Result<i64, tonic::Status> {
    let put =
        pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
    let answer = KvClient::new(channel.clone()).put(put).await?;
    Ok(answer.into_inner().header.unwrap().revision)
}

/// All keys, as they are seen there.
async fn keys(channel: &Channel) -> Vec<String> {
    let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    let found = KvClient::new(channel.clone()).range(all).await.unwrap().into_inner();
    found.kvs.iter().map(|kv| text(&kv.key)).collect()
}

async fn members(channel: &Channel) -> Vec<pb::Member> {
    let list = pb::MemberListRequest::default();
    ClusterClient::new(channel.clone()).member_list(list).await.unwrap().into_inner().members
}

/// A stream of what happens to all keys. Its requests end when the sender is dropped.
async fn watch_all(
    channel: &Channel,
) -> (tonic::Streaming<pb::WatchResponse>, tokio::sync::mpsc::Sender<pb::WatchRequest>) {
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        prev_kv: true,
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    sender.send(request).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut stream = WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner();
    assert!(stream.next().await.unwrap().unwrap().created);
    (stream, sender)
}

/// A client that asks for everything that begins with `big`, often, and takes no more than the beginning.
async fn ask_and_take_nothing(address: &str, calls: usize) -> Vec<h2::client::ResponseFuture> {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let range = pb::RangeRequest {
        key: "big".into(),
        range_end: "bih".into(),
        serializable: true,
        ..Default::default()
    };
    let message = range.encode_to_vec();
    let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let mut answers = Vec::new();
    for _ in 0..calls {
        let request = http::Request::post("http://proxy/etcdserverpb.KV/Range")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let mut sender = sender.clone().ready().await.unwrap();
        let (answer, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        body.send_data(framed.clone().into(), true).unwrap();
        answers.push(answer);
    }
    answers
}

/// All clients used to share the proxy's connection to a node, which makes no more answers for one that has 32 MiB of them waiting.
#[tokio::test]
async fn a_client_that_takes_nothing_holds_up_no_other() {
    const LARGE: usize = 1 << 20;
    let cluster = Cluster::start(1, &[]).await;
    for number in 0..8 {
        put(&cluster.nodes[0].channel(), &format!("big{number}"), &"x".repeat(LARGE)).await.unwrap();
    }
    let proxy = start(&cluster.endpoints(), &[]);
    let other = proxy.channel();
    put(&other, "k", "v").await.unwrap();
    let answers = ask_and_take_nothing(&proxy.address, 20).await;
    let watched = cluster.nodes[0].channel();
    // Four are 32 MiB. Whether the fifth is begun before the fourth is made is a matter of chance.
    eventually("the node has made as many answers as it makes", async || {
        let page = cluster.nodes[0].metrics().await;
        let ranges = page.lines().find_map(|line| line.strip_prefix("etcd_mvcc_range_total "));
        ranges.is_some_and(|ranges| ranges.parse::<u64>().unwrap() >= 4)
    })
    .await;
    put(&watched, "k", "v").await.unwrap();
    let waiting = tokio::time::timeout(std::time::Duration::from_secs(10), put(&other, "k", "w"));
    waiting.await.expect("the other client is served").unwrap();
    drop(answers);
}

#[tokio::test]
async fn calls_go_to_the_nodes_that_are_there() {
    let mut cluster = Cluster::start(3, &[]).await;
    let nobody = Port::hold();
    let mut endpoints = cluster.endpoints();
    endpoints.push(nobody.url());
    let proxy = start(&endpoints, &["--advertise-client-url=http://proxy.example:23790"]);
    let channel = proxy.channel();

    let (mut events, _requests) = watch_all(&channel).await;
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        let answer = KvClient::new(channel.clone()).put(put).await.unwrap().into_inner();
        answered.insert(answer.header.unwrap().member_id);
        assert_eq!(events.next().await.unwrap().unwrap().events.len(), 1);
    }
    assert_eq!(answered.len(), 3, "each of the nodes in turn");
    proxy.served.line("deactivated endpoint");

    let found = members(&channel).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].client_ur_ls, ["http://proxy.example:23790"]);

    // Errors pass as they are.
    let refused = put(&channel, "", "").await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: key is not provided");
    let large = "x".repeat(2 * 1024 * 1024);
    let refused = put(&channel, "k", &large).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(refused.message().starts_with("trying to send message larger than max"), "{refused:?}");
    let unknown = LeaseClient::new(channel.clone()).lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await;
    assert_eq!(unknown.unwrap_err().message(), "etcdserver: requested lease not found");

    for path in ["/health", "/proxy/health"] {
        let (head, body) = page(&proxy.address, path).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        assert_eq!(body, r#"{"health":"true","reason":""}"#, "{path}");
    }
    let (_, of_a_node) = page(&proxy.address, "/metrics").await;
    assert!(of_a_node.contains("etcd_server_has_leader 1"), "{of_a_node}");
    let (_, own) = page(&proxy.address, "/proxy/metrics").await;
    assert!(own.contains("process_resident_memory_bytes"), "{own}");

    cluster.nodes[0].kill();
    eventually("the others answer", async || put(&channel, "k", "v").await.is_ok()).await;
    for _ in 0..6 {
        put(&channel, "k", "v").await.unwrap();
    }
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    eventually("nobody is there", async || {
        let refused = put(&channel, "k", "v").await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        refused.message().starts_with("no node can be connected")
    })
    .await;
    let (head, _) = page(&proxy.address, "/health").await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
}

/// Whoever reached it could call what the other listener demands certificates for.
#[tokio::test]
async fn the_listener_for_metrics_answers_no_calls() {
    let cluster = Cluster::start(1, &[]).await;
    let port = Port::hold();
    let url = port.url();
    let proxy = start(&cluster.endpoints(), &[&format!("--metrics-addr={url}")]);
    put(&proxy.channel(), "k", "v").await.unwrap();
    let range = pb::RangeRequest { key: "k".into(), ..Default::default() };
    let refused = KvClient::new(support::channel(&url)).range(range).await.unwrap_err();
    assert!(refused.message().ends_with("404 Not Found"), "{refused:?}");
    let address = port.address().to_string();
    let (_, health) = page(&address, "/health").await;
    assert_eq!(health, r#"{"health":"true","reason":""}"#);
    let (_, of_a_node) = page(&address, "/metrics").await;
    assert!(of_a_node.contains("etcd_server_has_leader 1"), "{of_a_node}");
}

#[tokio::test]
async fn a_watch_ends_with_its_client() {
    let cluster = Cluster::start(1, &[]).await;
    let proxy = start(&cluster.endpoints(), &[]);
    let watchers = async || cluster.nodes[0].counter("etcd_debugging_mvcc_watcher_total").await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(watch_all(&proxy.channel()).await);
    }
    assert!(watchers().await >= 20);
    drop(streams);
    eventually("the watches are gone", async || watchers().await == 0).await;
}

#[tokio::test]
async fn a_namespace_is_all_that_its_clients_see() {
    let cluster = Cluster::start(1, &[]).await;
    let node = cluster.nodes[0].channel();
    let proxies = ["one/", "two/"].map(|space| start(&cluster.endpoints(), &["--namespace", space]));
    let [one, other] = [0, 1].map(|number: usize| proxies[number].channel());
    let (mut events, _requests) = watch_all(&one).await;
    for (channel, value) in [(&one, "1"), (&other, "2"), (&node, "0")] {
        put(channel, "k", value).await.unwrap();
    }
    put(&one, "k", "1b").await.unwrap();
    assert_eq!(keys(&one).await, ["k"]);
    assert_eq!(keys(&other).await, ["k"]);
    assert_eq!(keys(&node).await, ["k", "one/k", "two/k"]);

    let first = events.next().await.unwrap().unwrap().events.remove(0);
    assert_eq!((first.kv.unwrap().key, first.prev_kv), ("k".into(), None));
    let second = events.next().await.unwrap().unwrap().events.remove(0);
    assert_eq!(second.kv.unwrap().value, "1b", "what happens elsewhere is not seen");
    assert_eq!(second.prev_kv.unwrap().key, "k");

    // A transaction that compares, and writes in a nested one.
    let compare = pb::Compare {
        key: "k".into(),
        target: pb::compare::CompareTarget::Value as i32,
        target_union: Some(pb::compare::TargetUnion::Value("1b".into())),
        ..Default::default()
    };
    let write = pb::PutRequest { key: "t".into(), ..Default::default() };
    let nested = pb::TxnRequest {
        success: vec![pb::RequestOp { request: Some(Op::RequestPut(write)) }],
        ..Default::default()
    };
    let read = pb::RangeRequest { key: "a".into(), range_end: vec![0].into(), ..Default::default() };
    let operations = [Op::RequestTxn(nested), Op::RequestRange(read)];
    let success = operations.map(|request| pb::RequestOp { request: Some(request) }).to_vec();
    let txn = pb::TxnRequest { compare: vec![compare], success, ..Default::default() };
    let answer = KvClient::new(one.clone()).txn(txn).await.unwrap().into_inner();
    assert!(answer.succeeded);
    let Some(pb::response_op::Response::ResponseRange(seen)) = &answer.responses[1].response else {
        panic!()
    };
    assert_eq!(seen.kvs.iter().map(|kv| text(&kv.key)).collect::<Vec<_>>(), ["k", "t"]);
    assert_eq!(keys(&node).await, ["k", "one/k", "one/t", "two/k"]);

    // Keys of leases and locks.
    let mut leases = LeaseClient::new(one.clone());
    let id = leases.lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 0 }).await.unwrap().into_inner().id;
    let lock = LockRequest { name: "l".into(), lease: id };
    let locked = LockClient::new(one.clone()).lock(lock).await.unwrap().into_inner();
    assert!(locked.key.starts_with(b"l/"), "{:?}", locked.key);
    let asked = pb::LeaseTimeToLiveRequest { id, keys: true };
    let answer = leases.lease_time_to_live(asked).await.unwrap().into_inner();
    assert_eq!(answer.keys, std::slice::from_ref(&locked.key));
    assert!(keys(&node).await.contains(&format!("one/{}", text(&locked.key))));

    // "Everything" is everything of the namespace.
    let delete = pb::DeleteRangeRequest { key: vec![0].into(), range_end: vec![0].into(), prev_kv: true };
    let deleted = KvClient::new(one.clone()).delete_range(delete).await.unwrap().into_inner();
    assert_eq!(deleted.prev_kvs.len(), 3);
    assert_eq!(keys(&node).await, ["k", "two/k"]);
}

#[tokio::test]
async fn proxies_know_each_other() {
    let cluster = Cluster::start(1, &[]).await;
    let flags = ["--resolver-prefix=___grpc_proxy", "--resolver-ttl=3"];
    let proxy =
        |url: &str| start(&cluster.endpoints(), &[&flags[..], &["--advertise-client-url", url]].concat());
    let one = proxy("one.example:1");
    let other = proxy("two.example:2");
    let known = async || {
        let mut urls: Vec<String> =
            members(&one.channel()).await.into_iter().flat_map(|member| member.client_ur_ls).collect();
        urls.sort();
        urls
    };
    eventually("both are known", async || known().await == ["one.example:1", "two.example:2"]).await;
    let noted = keys(&cluster.nodes[0].channel()).await;
    assert_eq!(noted, ["___grpc_proxy/one.example:1", "___grpc_proxy/two.example:2"]);
    // Killed: its lease ends.
    drop(other);
    eventually("one is left", async || known().await == ["one.example:1"]).await;
}

#[tokio::test]
async fn tls_on_both_sides() {
    let (place, authority) = (Place::new(), Authority::new());
    let words = |(certificate, key): (PathBuf, PathBuf)| {
        (certificate.display().to_string(), key.display().to_string())
    };
    let nobody = words(authority.sign_as("nobody", "", &["127.0.0.1"]));
    let user = words(authority.sign("alice", &["127.0.0.1"]));
    let ca = authority.trusted().display().to_string();
    let mut cluster = Cluster::at_rest(1, &["--client-cert-auth"], &[]).await;
    for (flag, value) in [("--cert-file", &nobody.0), ("--key-file", &nobody.1), ("--trusted-ca-file", &ca)] {
        cluster.nodes[0].set_argument(flag, value);
    }
    let url = cluster.nodes[0].client_url.replace("http:", "https:");
    for flag in ["--listen-client-urls", "--advertise-client-urls"] {
        cluster.nodes[0].set_argument(flag, &url);
    }
    cluster.nodes[0].start();

    // Whoever is named would be every client of the proxy.
    let named = place.output(
        "etcd",
        &[
            "grpc-proxy",
            "start",
            "--listen-addr=127.0.0.1:0",
            "--cert",
            &user.0,
            "--key",
            &user.1,
            "--cacert",
            &ca,
        ],
    );
    assert!(!named.status.success());
    assert!(text(&named.stderr).contains("its common name is \"alice\""), "{}", text(&named.stderr));

    let proxy = start(
        &[url],
        &[
            "--cert",
            &nobody.0,
            "--key",
            &nobody.1,
            "--cacert",
            &ca,
            "--cert-file",
            &nobody.0,
            "--key-file",
            &nobody.1,
        ],
    );
    let ctl = |arguments: &[&str]| {
        let endpoint = format!("https://{}", proxy.address);
        let common = ["--endpoints", &endpoint, "--cacert", &ca];
        place.output("etcdctl", &[&common, arguments].concat())
    };
    eventually("the node serves", async || ctl(&["put", "k", "v"]).status.success()).await;
    assert_eq!(text(&ctl(&["get", "k"]).stdout), "k\nv\n");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let place = Place::new();
    for (flags, said) in [
        (vec!["--resolver-prefix=p"], "invalid resolver-ttl 0"),
        (vec!["--resolver-ttl=5"], "invalid resolver-prefix \"\""),
        (
            vec!["--resolver-prefix=p", "--resolver-ttl=5", "--advertise-client-url="],
            "invalid advertise-client-url \"\"",
        ),
        (vec!["--endpoints=nowhere"], "endpoint \"nowhere\": expected HOST:PORT"),
        (vec!["--cert-file=c"], "--cert-file needs --key-file beside it"),
        (
            vec!["--auto-tls", "--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (vec!["--metrics-addr=https://127.0.0.1:0"], "--metrics-addr: https needs --cert-file"),
    ] {
        let mut arguments = vec!["grpc-proxy", "start", "--listen-addr=127.0.0.1:0"];
        arguments.extend(&flags);
        let output = place.output("etcd", &arguments);
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(text(&output.stderr).contains(said), "{flags:?}: {}", text(&output.stderr));
    }
}
