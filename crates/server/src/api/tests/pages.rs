//! The plain pages, over HTTP/1.

use std::io::{Read, Write};
use std::net::TcpStream;

use hadron_proto::etcdserverpb::PutRequest;
use hadron_proto::etcdserverpb::kv_client::KvClient;

use super::harness::Harness;
use crate::api::Unavailable;

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
    assert_eq!(get(&harness, "/health?serializable=true&exclude=NOSPACE"), healthy);
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
}
