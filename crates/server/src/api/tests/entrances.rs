//! The ways to a keyspace: metadata, host names, ports, certificates; and those that lead to none.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use hadron_proto::etcdserverpb as pb;
use hyper_util::rt::TokioIo;
use pb::cluster_client::ClusterClient;
use pb::watch_client::WatchClient;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use super::harness::{Harness, OTHER, OWN};
use super::keyspaces::{content, http, of_two, put, to};
use crate::api::{KeyspaceOptions, Listener, ServerOptions, Traffic};
use crate::tls::authority::Authority;
use crate::tls::client::ClientFiles;
use crate::tls::files::KeyPair;
use crate::tls::server::ServerFiles;
use crate::tls::{ClientTls, ServerTls};

#[test]
fn what_is_not_there_is_named() {
    let harness = of_two();
    harness.backend.add_member();
    harness.backend.create("far", OTHER);
    harness.run(async |channel| {
        let status = put(to(&channel, "none"), "k", "v").await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::NotFound, "hadron: there is no keyspace \"none\"")
        );
        let status = put(to(&channel, "far"), "k", "v").await.unwrap_err();
        let text = "hadron: the keyspace far has no replica on this node, and nobody who has one took the request: ask other \
                    (http://127.0.0.2:2379) [node 2: host unreachable]";
        assert_eq!((status.code(), status.message()), (Code::Unavailable, text));
        let status = WatchClient::new(to(&channel, "none")).watch(tokio_stream::empty()).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    });
    let ask = |path: &str, keyspace: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nhadron-keyspace: {keyspace}");
        http(harness.address, &head, "{}")
    };
    let (code, body) = ask("/v3/kv/range", "none");
    assert_eq!(code, 404);
    assert!(body.contains(r#"there is no keyspace \"none\""#), "{body}");
    assert_eq!(ask("/v3/kv/range", "far").0, 503);
    let page = |path: &str, keyspace: &str| {
        http(harness.address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nhadron-keyspace: {keyspace}"), "")
    };
    assert_eq!(page("/health", "none"), (404, "hadron: there is no keyspace \"none\"\n".to_owned()));
    assert_eq!(page("/readyz", "a").0, 200);
    assert_eq!(page("/version", "a").0, 200);
    assert_eq!(page("/metrics", "a").0, 403, "they tell of other keyspaces");
    assert_eq!(page("/debug/vars", "a").0, 403);
    assert_eq!(page("/metrics", "default").0, 200);
}

#[test]
fn a_host_name_chooses_and_stays_the_way_to_the_members() {
    let keyspaces = KeyspaceOptions { host_suffix: Some(".hadron.example".to_owned()), certificate: None };
    let options = ServerOptions { threads: 1, keyspaces, ..ServerOptions::default() };
    let harness = Harness::start_with(options, Traffic::Everything);
    harness.backend.create("a", OWN);
    let channel = async |host: &str| {
        let origin: Uri = format!("http://{host}").parse().unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", harness.address)).unwrap();
        endpoint.origin(origin).connect().await.unwrap()
    };
    super::harness::runtime().block_on(async {
        let (a, plain) = (channel("a.hadron.example:2379").await, channel("127.0.0.1").await);
        put(to(&a, ""), "k", "in a").await.unwrap();
        assert_eq!(content(to(&plain, "")).await.unwrap(), [""; 0]);
        assert_eq!(content(to(&plain, "a")).await.unwrap(), ["k=in a"]);
        assert_eq!(content(to(&a, "default")).await.unwrap(), [""; 0], "metadata before host name");
        let unknown = put(to(&channel("none.hadron.example").await, ""), "k", "v").await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);

        let members = async |way| {
            let list = pb::MemberListRequest { linearizable: true };
            ClusterClient::new(way).member_list(list).await.unwrap().into_inner().members
        };
        let by_host = members(to(&a, "")).await;
        assert_eq!(by_host[0].client_ur_ls, ["http://a.hadron.example:2379"], "another would lead elsewhere");
        assert_eq!(by_host[0].peer_ur_ls, [""; 0]);
        assert_eq!(members(to(&plain, "a")).await[0].client_ur_ls, ["http://127.0.0.1:2379"]);
        let add =
            pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()], is_learner: false };
        let refused = ClusterClient::new(to(&plain, "a")).member_add(add).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    });
    let range = "POST /v3/kv/range HTTP/1.1\r\nHost: a.hadron.example:2379";
    let (_, body) = http(harness.address, range, r#"{"key":"aw=="}"#);
    assert!(body.contains(r#""value":"aW4gYQ==""#), "{body}");
}

#[test]
fn a_port_binds() {
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let port_of_a = second.local_addr().unwrap();
    let listener = |socket, keyspace: Option<&str>| Listener {
        socket,
        traffic: Traffic::Everything,
        tls: None,
        keyspace: keyspace.map(Arc::from),
    };
    let options = ServerOptions { threads: 1, ..ServerOptions::default() };
    let harness =
        Harness::start_at(options, |first| vec![listener(first, None), listener(second, Some("a"))]);
    let endpoint = Channel::from_shared(format!("http://{port_of_a}")).unwrap();
    super::harness::runtime().block_on(async {
        let channel = endpoint.connect().await.unwrap();
        let early = put(to(&channel, ""), "k", "v").await.unwrap_err();
        assert_eq!(early.code(), Code::NotFound, "a port may wait for its keyspace");
        harness.backend.create("a", OWN);
        harness.backend.create("b", OWN);
        put(to(&channel, ""), "k", "in a").await.unwrap();
        put(to(&channel, "a"), "k", "in a").await.unwrap();
        for other in ["b", "default", "none"] {
            let status = put(to(&channel, other), "k", "v").await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{other}");
        }
    });
    let other = "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nGrpc-Metadata-hadron-keyspace: b";
    assert_eq!(http(port_of_a, other, "{}").0, 403);
    assert_eq!(http(port_of_a, "GET /health HTTP/1.1\r\nHost: x", "").0, 200);
    assert_eq!(http(port_of_a, "GET /metrics HTTP/1.1\r\nHost: x", "").0, 403);
}

/// A channel that shows a certificate and calls the server by a name.
async fn secure(address: SocketAddr, files: ClientFiles, server_name: &'static str) -> Channel {
    let tls = Arc::new(ClientTls::new(ClientFiles { speaks: vec![b"h2".to_vec()], ..files }).unwrap());
    let connector = tower::service_fn(move |_: Uri| {
        let tls = Arc::clone(&tls);
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(server_name, stream).await?))
        }
    });
    Endpoint::from_static("http://10.0.0.1:2379").connect_with_connector(connector).await.unwrap()
}

#[test]
fn certificates_bind_and_server_names_choose() {
    let authority = Authority::new();
    let sign = |name: &str, hosts: &[&str]| {
        let (certificate, key) = authority.sign(name, hosts);
        KeyPair { certificate, key }
    };
    let hosts = ["node.example", "a.hadron.example", "b.hadron.example"];
    let tls = ServerTls::new(ServerFiles::of(sign("server", &hosts), Some(authority.trusted())));
    let tls = Some(Arc::new(tls.unwrap()));
    let keyspaces = KeyspaceOptions {
        host_suffix: Some(".hadron.example".to_owned()),
        certificate: Some("cn:tenant-{name}".parse().unwrap()),
    };
    let options = ServerOptions { threads: 1, keyspaces, ..ServerOptions::default() };
    let harness = Harness::start_at(options, |socket| {
        vec![Listener { socket, traffic: Traffic::Everything, tls, keyspace: None }]
    });
    harness.backend.create("a", OWN);
    harness.backend.create("b", OWN);
    let trusted = Some(authority.trusted());
    let client = |name: &str| ClientFiles {
        own: Some(sign(name, &[])),
        trusted: trusted.clone(),
        ..Default::default()
    };
    super::harness::runtime().block_on(async {
        let tenant = secure(harness.address, client("tenant-a"), "node.example").await;
        put(to(&tenant, ""), "k", "in a").await.unwrap();
        let status = content(to(&tenant, "b")).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::PermissionDenied,
                "hadron: this client's certificate is for the keyspace a, and hadron-keyspace asks for \"b\""
            )
        );
        let by_name = secure(harness.address, client("tenant-a"), "b.hadron.example").await;
        assert_eq!(content(to(&by_name, "")).await.unwrap_err().code(), Code::PermissionDenied);
        let stranger = secure(harness.address, client("tenant-none"), "node.example").await;
        assert_eq!(content(to(&stranger, "")).await.unwrap_err().code(), Code::NotFound);

        let operator = client("operator");
        let plain = secure(harness.address, operator.clone(), "node.example").await;
        assert_eq!(content(to(&plain, "")).await.unwrap(), [""; 0]);
        assert_eq!(content(to(&plain, "a")).await.unwrap(), ["k=in a"]);
        let to_a = secure(harness.address, operator, "a.hadron.example").await;
        assert_eq!(content(to(&to_a, "")).await.unwrap(), ["k=in a"]);
    });
}
