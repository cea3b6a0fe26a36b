//! Real processes that are told what to do in every way that etcd knows: flags, environment, configuration file, and
//! links with the names of etcd's programs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use hadron_proto::etcdserverpb::cluster_client::ClusterClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::{LeaseGrantRequest, MemberAddRequest, MemberListRequest};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use crate::support::place::{PATIENCE, Place, Served, text};

async fn channel(served: &Served, traffic: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address(traffic))).unwrap();
    endpoint.connect().await.unwrap()
}

async fn cluster(served: &Served, traffic: &str) -> ClusterClient<Channel> {
    ClusterClient::new(channel(served, traffic).await)
}

fn page(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[tokio::test]
async fn etcd_in_an_environment_serves_and_says_so_in_etcds_words() {
    let place = Place::new();
    let mut command = place.command("etcd");
    command
        .args([
            "-name",
            "flag",
            "--listen-peer-urls=http://127.0.0.1:0",
            "--experimental-initial-corrupt-check=true",
        ])
        .env("ETCD_NAME", "environment")
        .env("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:0")
        .env("ETCD_ADVERTISE_CLIENT_URLS", "http://etcd.example:2379")
        .env("ETCD_MAX_LEARNERS", "2")
        .env("ETCD_ELECTION_TIMEOUT", "4000")
        .env("ETCD_SNAPSHOT_COUNT", "10000")
        .env("ETCD_NO_SUCH_FLAG", "x");
    let served = place.serve(&mut command);

    assert!(place.path("flag.etcd").is_dir(), "the default directory of a link named etcd");
    assert_eq!(served.line("started")["name"], "flag", "a flag beats the environment");
    assert_eq!(served.line("unrecognized environment variable")["environment-variable"], "ETCD_NO_SUCH_FLAG");
    let ready = served.line("ready to serve client requests");
    assert_eq!(ready["level"], "info");
    assert!(ready["ts"].is_string() && ready["caller"].is_string());
    served.line("serving client traffic insecurely; this is strongly discouraged!");
    let elected = |line: &Value| {
        let message = line["msg"].as_str().unwrap().to_owned();
        message.starts_with("raft.node: ") && message.contains(" elected leader ")
    };
    assert!(served.lines().iter().any(elected), "{}", served.log());

    let mut cluster = cluster(&served, "grpc+http").await;
    let members = cluster.member_list(MemberListRequest::default()).await.unwrap().into_inner().members;
    assert_eq!(members[0].client_ur_ls, ["http://etcd.example:2379"]);
    let add = |port: u16| MemberAddRequest {
        peer_ur_ls: vec![format!("http://127.0.0.1:{port}")],
        is_learner: true,
    };
    cluster.member_add(add(1)).await.unwrap();
    cluster.member_add(add(2)).await.unwrap();
    let third = cluster.member_add(add(3)).await.unwrap_err();
    assert_eq!(third.message(), "etcdserver: too many learner members in cluster");
    let mut leases = LeaseClient::new(channel(&served, "grpc+http").await);
    let short = leases.lease_grant(LeaseGrantRequest { id: 0, ttl: 1 }).await.unwrap().into_inner();
    assert_eq!(short.ttl, 6, "a lease outlives an election and a half");
}

/// The first line that it could not write ended it.
#[cfg(target_os = "linux")]
#[test]
fn a_node_serves_although_nobody_can_be_told() {
    let place = Place::new();
    let mut command = place.command("etcd");
    command.args([
        "--listen-peer-urls=http://127.0.0.1:0",
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://etcd.example:2379",
    ]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    assert!(place.serve_telling(&mut command, full).stop().success());
}

#[tokio::test]
async fn a_configuration_file_replaces_everything_else() {
    let place = Place::new();
    let data = place.path("from-file");
    let file = format!(
        "name: file\ndata-dir: {}\nlisten-peer-urls: http://127.0.0.1:0\nlisten-client-urls: http://127.0.0.1:0\n\
         listen-client-http-urls: http://127.0.0.1:0\nlisten-metrics-urls: http://127.0.0.1:0\n\
         advertise-client-urls: http://127.0.0.1:2379\nlog-outputs: [stderr, {}]\nenable-grpc-gateway: false\n\
         client-transport-security:\n  client-cert-auth: false\nno-such-key: 1\n",
        data.display(),
        place.path("second.log").display(),
    );
    fs::write(place.path("etcd.yaml"), file).unwrap();
    let mut command = place.command("etcd");
    command
        .args(["--name=flag", "--data-dir=from-flag", "--cert-file=not-looked-at"])
        .env("ETCD_CONFIG_FILE", place.path("etcd.yaml"))
        .env("ETCD_DATA_DIR", "from-environment");
    let served = place.serve(&mut command);

    assert!(data.is_dir() && !place.path("from-flag").exists() && !place.path("from-environment").exists());
    assert_eq!(served.line("started")["name"], "file");
    served.line(
        "loaded server configuration, other configuration command line flags and environment variables will be ignored if provided",
    );
    assert_eq!(served.line("unrecognized key in the configuration file")["key"], "no-such-key");
    assert!(fs::read_to_string(place.path("second.log")).unwrap().contains("ready to serve client requests"));

    let mut cluster = cluster(&served, "grpc").await;
    cluster.member_list(MemberListRequest::default()).await.unwrap();
    assert!(page(served.address("grpc"), "/version").starts_with("HTTP/1.1 415"));
    assert!(page(served.address("http"), "/version").contains("etcdserver"));
    assert!(page(served.address("http"), "/v3/kv/range").starts_with("HTTP/1.1 404"));
    assert!(page(served.address("metrics"), "/metrics").contains("etcd_server_has_leader"));
}

#[tokio::test]
async fn calls_that_take_long_are_told_now_and_then() {
    let place = Place::new();
    let mut command = place.command("etcd");
    command.args([
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://etcd.example:2379",
        "--listen-peer-urls=http://127.0.0.1:0",
        "--warning-unary-request-duration=1ns",
    ]);
    let served = place.serve(&mut command);
    let mut cluster = cluster(&served, "grpc+http").await;
    for _ in 0..20 {
        cluster.member_list(MemberListRequest { linearizable: true }).await.unwrap();
    }
    assert_eq!(served.line("request stats")["response-type"], "/etcdserverpb.Cluster/MemberList");
    let told = served.lines().iter().filter(|line| line["msg"] == "request stats").count();
    assert!(told < 20, "{told} words about 20 calls");
}

#[test]
fn links_are_the_programs_whose_names_they_have() {
    let place = Place::new();
    let version = place.output("etcd", &["--version"]);
    assert!(version.status.success());
    let lines = text(&version.stdout);
    let mut lines = lines.lines();
    assert!(lines.next().unwrap().starts_with("etcd Version: 3."));
    assert!(lines.next().unwrap().starts_with("Git SHA: "));
    assert!(lines.next().unwrap().starts_with("Go Version: "));
    assert!(lines.next().unwrap().starts_with("Go OS/Arch: "));
    for (program, first) in [("etcdctl", "etcdctl version: 3."), ("etcdutl", "etcdutl version: 3.")] {
        let version = place.output(program, &["version"]);
        assert!(version.status.success());
        assert!(text(&version.stdout).starts_with(first), "{}", text(&version.stdout));
        assert!(text(&version.stdout).contains("API version: 3."));
        assert!(text(&place.output(program, &["--help"]).stdout).contains(&format!("Usage: {program}")));
    }
    let mut unreachable = place.command("etcdctl");
    unreachable.args(["get", "x"]).env("ETCDCTL_ENDPOINTS", "ftp://nowhere").env("ETCDCTL_API", "3");
    for empty in ["ETCDCTL_WRITE_OUT", "ETCDCTL_DIAL_TIMEOUT", "ETCDCTL_HEX", "ETCDCTL_CACERT"] {
        unreachable.env(empty, "");
    }
    let output = unreachable.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ftp://nowhere"), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let place = Place::new();
    for (program, arguments, code, said) in [
        ("etcd", vec!["--no-such-flag"], 2, "unknown flag --no-such-flag"),
        (
            "etcd",
            vec!["--initial-cluster-state=old"],
            2,
            "--initial-cluster-state: expected new or existing, got \"old\"",
        ),
        ("etcd", vec!["--discovery", "https://discovery.example/t"], 2, "use --discovery-token"),
        ("etcd", vec!["--config-file=missing.yaml"], 2, "the configuration file missing.yaml"),
        ("etcd", vec!["--log-outputs=missing/log"], 2, "--log-outputs: cannot write to missing/log"),
        ("etcd", vec!["--enable-log-rotation"], 2, "needs exactly one file"),
        (
            "etcd",
            vec!["--enable-log-rotation", "--log-outputs=log", "--log-rotation-config-json={"],
            2,
            "--log-rotation-config-json: expected an object",
        ),
        ("etcd", vec!["grpc-proxy", "start", "--resolver-ttl=5"], 1, "invalid resolver-prefix \"\""),
        (
            "etcd",
            vec!["gateway", "start", "--listen-addr=127.0.0.1:0", "--endpoints=nowhere"],
            1,
            "endpoint \"nowhere\": expected HOST:PORT",
        ),
        ("etcdutl", vec!["snapshot", "status", "db"], 1, "db: No such file"),
        ("etcdutl", vec!["nonsense"], 1, "unknown command \"nonsense\""),
    ] {
        let output = place.output(program, &arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{program} {arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{program} {arguments:?}: {stderr}");
    }
    assert!(!Path::new("default.etcd").exists());
}
