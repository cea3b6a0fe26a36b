//! Real nodes and clients that speak TLS, and others that should not get in.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Output;

use hadron_proto::etcdserverpb::PutRequest;
use hadron_proto::etcdserverpb::kv_client::KvClient;

use crate::support::authority::Authority;
use crate::support::place::{PATIENCE, Place, Served, text};
use crate::support::{Cluster, eventually};

fn node(place: &Place, flags: &[&str]) -> Served {
    let mut command = place.command("etcd");
    command.args([
        "--listen-peer-urls=http://127.0.0.1:0",
        "--listen-client-urls=https://127.0.0.1:0",
        "--advertise-client-urls=https://127.0.0.1:2379",
    ]);
    place.serve(command.args(flags))
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// Runs `etcdctl` against the node.
fn ctl(place: &Place, served: &Served, scheme: &str, flags: &[&str], command: &[&str]) -> Output {
    let endpoint = format!("--endpoints={scheme}{}", served.address("grpc+http"));
    let words: Vec<&str> = [&[endpoint.as_str()][..], flags, command].concat();
    place.output("etcdctl", &words)
}

fn assert_refused(output: &Output, said: &str) {
    assert!(!output.status.success() && text(&output.stderr).contains(said), "{}", text(&output.stderr));
}

#[test]
fn clients_show_certificates_and_check_the_servers() {
    let (place, authority, stranger) = (Place::new(), Authority::new(), Authority::new());
    let (cert, key) = authority.sign("server", &["127.0.0.1"]);
    let trusted = authority.trusted();
    let served = node(
        &place,
        &[
            &flag("cert-file", &cert),
            &flag("key-file", &key),
            &flag("trusted-ca-file", &trusted),
            "--client-cert-auth",
        ],
    );
    served.line("serving client traffic securely");

    let (own_cert, own_key) = authority.sign("client", &["client.example"]);
    let own = [flag("cert", &own_cert), flag("key", &own_key)];
    let good = [own[0].as_str(), &own[1], &flag("cacert", &trusted)];
    for scheme in ["https://", ""] {
        let put = ctl(&place, &served, scheme, &good, &["put", "a", "1"]);
        assert_eq!(text(&put.stdout), "OK\n", "{}", text(&put.stderr));
    }
    let unchecked = [own[0].as_str(), &own[1], "--insecure-skip-tls-verify"];
    assert_eq!(text(&ctl(&place, &served, "https://", &unchecked, &["get", "a"]).stdout), "a\n1\n");

    let foreign = [own[0].as_str(), &own[1], &flag("cacert", &stranger.trusted())];
    assert_refused(&ctl(&place, &served, "https://", &foreign, &["get", "a"]), "invalid peer certificate");
    let nobody = ["--dial-timeout=1s", &flag("cacert", &trusted)];
    assert!(!ctl(&place, &served, "https://", &nobody, &["get", "a"]).status.success());
    assert!(!ctl(&place, &served, "http://", &["--dial-timeout=1s"], &["get", "a"]).status.success());
    served.line("rejected connection on client endpoint");

    let (new_cert, new_key) = authority.sign("renewed", &["127.0.0.1"]);
    fs::rename(new_key, key).unwrap();
    fs::rename(new_cert, cert).unwrap();
    let get = ctl(&place, &served, "https://", &good, &["get", "a"]);
    assert_eq!(text(&get.stdout), "a\n1\n", "{}", text(&get.stderr));
    served.line("certificates were read again");
}

/// A certificate names a user only where certificates were asked for by that flag, and a token counts more.
#[test]
fn the_common_name_of_a_certificate_is_a_user() {
    let (place, authority) = (Place::new(), Authority::new());
    let (cert, key) = authority.sign("server", &["127.0.0.1"]);
    let trusted = authority.trusted();
    let files = [flag("cert-file", &cert), flag("key-file", &key), flag("trusted-ca-file", &trusted)];
    let mut flags: Vec<&str> = files.iter().map(String::as_str).collect();
    flags.push("--bcrypt-cost=4");
    let with_names = [&flags[..], &["--client-cert-auth"]].concat();
    let served = node(&place, &with_names);
    let as_user = |served: &Served, name: &str, words: &[&str]| {
        let (cert, key) = authority.sign(name, &["client.example"]);
        let own = [flag("cert", &cert), flag("key", &key), flag("cacert", &trusted)];
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        ctl(&place, served, "https://", &own, words)
    };
    for words in [
        &["user", "add", "root:r"][..],
        &["user", "add", "tenant", "--no-password"],
        &["role", "add", "tenant"],
        &["role", "grant-permission", "tenant", "readwrite", "/tenant/", "--prefix"],
        &["user", "grant-role", "tenant", "tenant"],
        &["auth", "enable"],
    ] {
        let done = as_user(&served, "anybody", words);
        assert!(done.status.success(), "{words:?}: {}", text(&done.stderr));
    }
    assert_eq!(text(&as_user(&served, "tenant", &["put", "/tenant/a", "1"]).stdout), "OK\n");
    assert_refused(&as_user(&served, "tenant", &["get", "/other/a"]), "etcdserver: permission denied");
    assert_refused(&as_user(&served, "stranger", &["get", "/tenant/a"]), "etcdserver: permission denied");
    assert_eq!(
        text(&as_user(&served, "tenant", &["--user=root:r", "user", "list"]).stdout),
        "root\ntenant\n"
    );
    let wrong = as_user(&served, "tenant", &["--user=root:x", "get", "/tenant/a"]);
    assert_refused(&wrong, "etcdserver: authentication failed, invalid user ID or password");
    assert_eq!(wrong.status.code(), Some(2));
    drop(served);
    fs::remove_file(place.path("notify")).unwrap();
    let served = node(&place, &flags);
    assert_refused(&as_user(&served, "tenant", &["get", "/tenant/a"]), "etcdserver: user name is empty");
    assert!(as_user(&served, "tenant", &["--user=root:r", "get", "/tenant/a"]).status.success());
}

#[test]
fn a_node_makes_itself_a_certificate_and_keeps_it() {
    let place = Place::new();
    let made = place.path("default.etcd/fixtures/client/cert.pem");
    let mut before = None;
    for _ in 0..2 {
        let served = node(&place, &["--auto-tls"]);
        let put = ctl(&place, &served, "https://", &[&flag("cacert", &made)], &["put", "a", "1"]);
        assert_eq!(text(&put.stdout), "OK\n", "{}", text(&put.stderr));
        let now = fs::read(&made).unwrap();
        assert_eq!(before.get_or_insert_with(|| now.clone()), &now);
        drop(served);
        fs::remove_file(place.path("notify")).unwrap();
    }
}

/// A client that says nothing is let go, and holds nobody up meanwhile; so is one that speaks plain text.
#[test]
fn silence_and_plain_text_are_hung_up_on() {
    let place = Place::new();
    let served = node(&place, &["--auto-tls"]);
    let mut silent = TcpStream::connect(served.address("grpc+http")).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut plain = TcpStream::connect(served.address("grpc+http")).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"));

    let get = ctl(&place, &served, "https://", &["--insecure-skip-tls-verify"], &["get", "a"]);
    assert!(get.status.success(), "{}", text(&get.stderr));
    answer.clear();
    silent.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"");
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let place = Place::new();
    fs::write(place.path("cert.pem"), "nothing").unwrap();
    fs::write(place.path("key.pem"), "nothing").unwrap();
    for (key, said) in [("missing.pem", "missing.pem: No such file"), ("key.pem", "key.pem: no private key")]
    {
        let key = format!("--key-file={key}");
        let urls =
            ["--listen-client-urls=https://127.0.0.1:0", "--advertise-client-urls=https://127.0.0.1:1"];
        let output = place.output("etcd", &[&urls[..], &["--cert-file=cert.pem", &key]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

/// Three nodes whose peer URLs are `https`, with these flags.
async fn cluster(flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::at_rest(3, flags, &[]).await;
    for node in &mut cluster.nodes {
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls", "--initial-cluster"] {
            node.set_argument(flag, &node.argument(flag).replace("http://", "https://"));
        }
    }
    cluster.bring_up().await;
    cluster
}

async fn assert_works(cluster: &mut Cluster) {
    let put = |number: usize| PutRequest { key: format!("k{number}").into(), ..PutRequest::default() };
    for number in 0..3 {
        KvClient::new(cluster.nodes[number].channel()).put(put(number)).await.unwrap();
    }
    cluster.nodes[0].kill();
    cluster.nodes[1].wait_until_serving().await;
    KvClient::new(cluster.nodes[1].channel()).put(put(3)).await.unwrap();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    cluster.wait_until_equal().await;
}

#[tokio::test]
async fn nodes_show_each_other_certificates() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("node", &["127.0.0.1"]);
    let flags = [
        flag("peer-cert-file", &cert),
        flag("peer-key-file", &key),
        flag("peer-trusted-ca-file", &authority.trusted()),
        "--peer-client-cert-auth".to_owned(),
    ];
    let mut cluster = cluster(&flags.each_ref().map(String::as_str)).await;
    assert_works(&mut cluster).await;

    let mut plain = TcpStream::connect(cluster.nodes[0].peer_address).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    eventually("it is turned away", async || {
        cluster.nodes[0].log().contains("rejected connection on peer endpoint")
    })
    .await;
}

#[tokio::test]
async fn nodes_make_themselves_certificates() {
    let mut cluster = cluster(&["--peer-auto-tls"]).await;
    assert_works(&mut cluster).await;
    assert!(cluster.nodes[0].data_dir().join("fixtures/peer/cert.pem").exists());
}
