//! The plain pages, over HTTP/1.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use hadron_keyspace::Command;
use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::{AlarmRequest, AlarmType, PutRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::harness::{Harness, OTHER, OWN, runtime};
use crate::api::{Access, Connections, Listener, ServerOptions, Traffic, Unavailable};
use crate::tls::authority::Authority;
use crate::tls::client::ClientFiles;
use crate::tls::files::KeyPair;
use crate::tls::server::ServerFiles;
use crate::tls::{ClientTls, ServerTls, Stream};

/// Status line and body of the answer to a request.
fn fetch(harness: &Harness, method: &str, path: &str) -> (String, String) {
    let mut socket = TcpStream::connect(harness.address).unwrap();
    write!(socket, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn get(harness: &Harness, path: &str) -> (String, String) {
    fetch(harness, "GET", path)
}

const OK: &str = "HTTP/1.1 200 OK";

#[test]
fn health_says_what_is_wrong() {
    let harness = Harness::start();
    let healthy = (OK.to_owned(), r#"{"health":"true","reason":""}"#.to_owned());
    assert_eq!(get(&harness, "/health"), healthy);

    harness.backend.fail_with(Some(Unavailable::Timeout));
    let (status, body) = get(&harness, "/health");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(body, "{\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n");
    assert_eq!(get(&harness, "/health?serializable=true"), healthy);

    harness.backend.fail_with(None);
    harness.backend.set_leader(false);
    assert!(get(&harness, "/health").1.contains("RAFT NO LEADER"));
    harness.backend.sleep_without_leader();
    assert_eq!(get(&harness, "/health"), healthy, "whoever asks wakes it");
    assert_eq!(get(&harness, "/health?serializable=true"), healthy);

    harness.backend.set_leader(true);
    let (action, alarm) = (AlarmAction::Activate as i32, AlarmType::Nospace as i32);
    let raise = AlarmRequest { action, member_id: OWN.0, alarm };
    harness.backend.apply_to_default(Command::Alarm(raise));
    assert!(get(&harness, "/health").1.contains("ALARM NOSPACE"));
    assert_eq!(get(&harness, "/health?exclude=NOSPACE"), healthy);
}

/// One damaged replica took all nodes from their load balancers, and their supervisors restarted them again and again.
#[test]
fn a_node_is_healthy_while_another_ones_replica_is_damaged() {
    let harness = Harness::start();
    let raise = |member_id| {
        let (action, alarm) = (AlarmAction::Activate as i32, AlarmType::Corrupt as i32);
        harness.backend.apply_to_default(Command::Alarm(AlarmRequest { action, member_id, alarm }));
    };
    raise(OTHER.0);
    for page in ["/health", "/readyz", "/livez"] {
        assert_eq!(get(&harness, page).0, OK, "{page}");
    }
    raise(OWN.0);
    assert!(get(&harness, "/health").1.contains("ALARM CORRUPT"));
    assert!(get(&harness, "/readyz").1.contains("alarm activated: CORRUPT"));
}

/// Its alarms were not shown any more either, and so the check said that all is well.
#[test]
fn a_node_whose_replica_is_damaged_says_so() {
    let harness = Harness::start();
    harness.backend.damage();
    let (status, body) = get(&harness, "/readyz");
    assert_ne!(status, OK);
    assert!(body.contains("[-]data_corruption failed: alarm activated: CORRUPT"), "{body}");
}

#[test]
fn version_is_an_etcd_version_with_ours_beside_it() {
    let (status, body) = get(&Harness::start(), "/version");
    assert_eq!(status, OK);
    assert!(body.starts_with(r#"{"etcdserver":"3.6."#), "{body}");
    let fields: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(fields["etcdcluster"], "3.6.0");
    assert_eq!(fields["hadron"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn metrics_count_calls_by_outcome() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = KvClient::new(channel);
        client.put(PutRequest { key: "k".into(), ..Default::default() }).await.unwrap();
        client.put(PutRequest::default()).await.unwrap_err();
    });
    let (status, page) = get(&harness, "/metrics");
    assert_eq!(status, OK);
    for line in [
        "etcd_server_has_leader 1",
        "etcd_mvcc_put_total 1",
        "etcd_debugging_mvcc_current_revision 2",
        "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 2",
        "grpc_server_handled_total{grpc_code=\"InvalidArgument\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

#[test]
fn other_pages_and_methods_are_refused() {
    let harness = Harness::start();
    assert_eq!(get(&harness, "/nothing").0, "HTTP/1.1 404 Not Found");
    assert_eq!(fetch(&harness, "POST", "/health").0, "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(fetch(&harness, "POST", "/readyz/non_learner").0, "HTTP/1.1 405 Method Not Allowed");
}

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable";

#[test]
fn checks_say_what_is_wrong() {
    let harness = Harness::start();
    let all =
        "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    assert_eq!(get(&harness, "/livez"), (OK.to_owned(), "ok\n".to_owned()));
    assert_eq!(get(&harness, "/readyz?verbose"), (OK.to_owned(), all.to_owned()));
    assert_eq!(get(&harness, "/readyz?verbose=true&exclude=nothing").1, all);

    harness.backend.fail_with(Some(Unavailable::Timeout));
    let failed = "[+]data_corruption ok\n[+]serializable_read ok\n\
                  [-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n";
    assert_eq!(get(&harness, "/readyz"), (UNAVAILABLE.to_owned(), failed.to_owned()));
    assert_eq!(get(&harness, "/readyz?exclude=linearizable_read").0, OK);
    assert_eq!(get(&harness, "/livez").0, OK);
    assert_eq!(get(&harness, "/readyz/linearizable_read?exclude=linearizable_read").0, UNAVAILABLE);
    assert_eq!(get(&harness, "/readyz/serializable_read?verbose").1, "[+]serializable_read ok\nok\n");

    harness.backend.fail_with(None);
    harness.backend.set_learner(true);
    let refused = "[-]non_learner failed: not supported for learner\n\n";
    assert_eq!(get(&harness, "/readyz/non_learner"), (UNAVAILABLE.to_owned(), refused.to_owned()));
    let page = get(&harness, "/metrics").1;
    for line in [
        r#"etcd_server_healthcheck{name="non_learner",type="readyz"} 0"#,
        r#"etcd_server_healthchecks_total{name="linearizable_read",status="error",type="readyz"} 2"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

#[test]
fn vars_have_etcds_names() {
    let (status, body) = get(&Harness::start(), "/debug/vars");
    let vars: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status.as_str(), &vars["raft.status"]["raftState"]), (OK, &"StateLeader".into()));
    assert!(vars["memstats"]["Sys"].as_u64().unwrap() > 0 && vars["cmdline"].is_array());
}

#[test]
fn a_listener_serves_what_it_is_for() {
    let start = |traffic| Harness::start_with(ServerOptions::default(), traffic);
    let metrics = start(Traffic::Metrics);
    assert_eq!(get(&metrics, "/metrics").0, OK);
    assert_eq!(get(&metrics, "/readyz").0, OK);
    assert_eq!(get(&metrics, "/version").0, "HTTP/1.1 404 Not Found");
    assert_eq!(fetch(&metrics, "POST", "/v3/kv/range").0, "HTTP/1.1 404 Not Found");
    let grpc = start(Traffic::Grpc);
    assert_eq!(get(&grpc, "/metrics").0, "HTTP/1.1 415 Unsupported Media Type");
    grpc.run(async |channel| {
        KvClient::new(channel).put(PutRequest { key: "k".into(), ..Default::default() }).await
    })
    .unwrap();
    let http = start(Traffic::Http);
    assert_eq!(fetch(&http, "POST", "/v3/lease/leases").0, OK);
    let refused = http.run(async |channel| KvClient::new(channel).put(PutRequest::default()).await);
    assert!(refused.is_err());
    let without_gateway = ServerOptions { gateway: false, ..ServerOptions::default() };
    let closed = Harness::start_with(without_gateway, Traffic::Everything);
    assert_eq!(fetch(&closed, "POST", "/v3/lease/leases").0, "HTTP/1.1 404 Not Found");
}

#[test]
fn web_pages_of_others_are_let_in_as_configured() {
    let harness = Harness::start();
    assert_eq!(fetch(&harness, "OPTIONS", "/v3/kv/put").0, OK);
    let hosts = Some(["elsewhere".to_owned()].into());
    let options = ServerOptions { access: Access { hosts, origins: None }, ..ServerOptions::default() };
    let closed = Harness::start_with(options.clone(), Traffic::Everything);
    assert_eq!(get(&closed, "/version").0, "HTTP/1.1 421 Misdirected Request");
    // Not over HTTP/1: a web page can say that it speaks gRPC.
    let mut socket = TcpStream::connect(closed.address).unwrap();
    let head = "Host: x\r\nContent-Type: application/grpc\r\nConnection: close";
    write!(socket, "POST /etcdserverpb.KV/Range HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{answer}");

    let (authority, secure) = secure(options);
    runtime().block_on(async {
        let mut stream = connect(&authority, &secure).await;
        stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(OK), "a certificate says who this is: {answer}");
    });
}

#[test]
fn old_and_half_closed_clients_get_their_page() {
    let harness = Harness::start();
    let mut socket = TcpStream::connect(harness.address).unwrap();
    socket.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
}

/// A server with TLS, and who signed its certificate.
fn secure(options: ServerOptions) -> (Authority, Harness) {
    let authority = Authority::new();
    let (certificate, key) = authority.sign("server", &["localhost"]);
    let tls = ServerTls::new(ServerFiles::of(KeyPair { certificate, key }, None));
    let tls = Some(Arc::new(tls.unwrap()));
    let secure = Harness::start_at(options, |socket| {
        vec![Listener { socket, traffic: Traffic::Everything, tls, keyspace: None }]
    });
    (authority, secure)
}

async fn connect(authority: &Authority, server: &Harness) -> Stream {
    let files = ClientFiles { trusted: Some(authority.trusted()), ..ClientFiles::default() };
    let socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    ClientTls::new(files).unwrap().connect("localhost", socket).await.unwrap()
}

/// A connection without a word used to be held for ever, and so did one with half a word.
#[test]
fn a_client_that_does_not_say_what_it_speaks_is_let_go() {
    let connections =
        Connections { first_word_timeout: Duration::from_millis(500), ..Connections::default() };
    let options = || ServerOptions { connections, ..ServerOptions::default() };
    let harness = Harness::start_with(options(), Traffic::Everything);
    for said in ["", "PRI * HTTP/2.0\r\n"] {
        let mut socket = TcpStream::connect(harness.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(said.as_bytes()).unwrap();
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    }

    let (authority, secure) = secure(options());
    runtime().block_on(async {
        let mut stream = connect(&authority, &secure).await;
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await.unwrap();
        end.unwrap_err();
    });
}
