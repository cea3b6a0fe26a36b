//! The JSON gateway. `gateway.txt` is what a real etcd (3.5) answered to [`CONVERSATION`]; ours must say the same. To make
//! it anew, start an empty etcd and run `HADRON_ORACLE=http://127.0.0.1:2379 cargo test -p hadron-server gateway`.
//!
//! Left out of what is compared: ids of cluster and member, terms, remaining times, and the texts of what a parser says.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::Harness;
use crate::api::Unavailable;

const GOLDEN: &str = include_str!("gateway.txt");
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked, in order: path below `/v3/`, body, and how many lines a stream answers that does not end by itself.
const CONVERSATION: &[(&str, &str, usize)] = &[
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#, 0),
    ("kv/put", r#"{"key":"Zm9v","value":"YmF6","prevKv":true,"lease":"0"}"#, 0),
    ("kv/put", r#"{"key":"Zm9vMg==","value":"+/8="}"#, 0),
    ("kv/put", "{}", 0),
    ("kv/put", r#"{"key":"Zm9v","lease":"77"}"#, 0),
    ("kv/put", r#"{"key":"Zm9v","value":"eA==","ignore_value":true}"#, 0),
    ("kv/range", r#"{"key":"Zm9v"}"#, 0),
    ("kv/range", r#"{"key":"Zm9v","range_end":"Zm9w","limit":"1","sort_order":"DESCEND","nothing":1}"#, 0),
    ("kv/range", r#"{"key":"Zm9v","rangeEnd":"Zm9w","sort_order":1,"sortTarget":"MOD","keys_only":true}"#, 0),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#, 0),
    ("kv/range", r#"{"key":"Zm9v","revision":2}"#, 0),
    ("kv/range", r#"{"key":"Zm9v","revision":"1000"}"#, 0),
    ("kv/range", r#"{"key":"bm9uZQ=="}{"key":"#, 0),
    ("kv/range", " \n", 0),
    ("kv/range", "{", 0),
    ("kv/range", "[]", 0),
    ("kv/range", r#"{"key":"*"}"#, 0),
    ("kv/range", r#"{"key":"Zm9v","limit":"x"}"#, 0),
    (
        "kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"VERSION","result":"GREATER","version":"0"}],
            "success":[{"request_range":{"key":"Zm9v"}},{"request_put":{"key":"dHhu","value":"MQ==","prev_kv":true}},
                       {"request_txn":{"success":[{"requestDeleteRange":{"key":"Zm9vMg==","prev_kv":true}}]}}]}"#,
        0,
    ),
    (
        "kv/txn",
        r#"{"compare":[{"key":"Zm9v","create_revision":"0"}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#,
        0,
    ),
    ("kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#, 0),
    ("kv/deleterange", r#"{"key":"dHhu","prev_kv":true}"#, 0),
    (
        "watch",
        r#"{"create_request":{"key":"Zm9v","range_end":"Zm9w","start_revision":"2","prev_kv":true}}"#,
        2,
    ),
    (
        "watch",
        r#"{"create_request":{"key":"Zm9v"}}{"create_request":{"key":"YQ==","watch_id":"5"}} {"cancelRequest":{"watch_id":5}}"#,
        3,
    ),
    ("kv/compaction", r#"{"revision":"3"}"#, 0),
    ("kv/compaction", r#"{"revision":"3"}"#, 0),
    ("kv/range", r#"{"key":"Zm9v","revision":"2"}"#, 0),
    ("watch", r#"{"create_request":{"key":"Zm9v","start_revision":"1"}}"#, 2),
    ("lease/grant", r#"{"ID":"123","TTL":100}"#, 0),
    ("lease/grant", r#"{"ID":123,"TTL":"100"}"#, 0),
    ("lease/grant", r#"{"TTL":"9223372036854775807"}"#, 0),
    ("kv/put", r#"{"key":"bGVhc2Vk","lease":123}"#, 0),
    ("lease/timetolive", r#"{"ID":123,"keys":true}"#, 0),
    ("kv/lease/timetolive", r#"{"ID":"124"}"#, 0),
    ("lease/keepalive", r#"{"ID":"123"}{"ID":"124"}"#, 0),
    ("lease/leases", "{}", 0),
    ("kv/lease/leases", "", 0),
    ("kv/lease/revoke", r#"{"ID":"123"}"#, 0),
    ("lease/revoke", r#"{"ID":"123"}"#, 0),
    ("maintenance/alarm", r#"{"action":"GET"}"#, 0),
    ("maintenance/transfer-leadership", r#"{"targetID":"4711"}"#, 0),
    ("auth/authenticate", r#"{"name":"a","password":"b"}"#, 0),
];

#[test]
fn the_gateway_answers_as_etcd_does() {
    match std::env::var("HADRON_ORACLE") {
        Ok(oracle) => {
            let address = oracle.trim_start_matches("http://").parse().unwrap();
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/tests/gateway.txt");
            std::fs::write(path, converse(address)).unwrap();
        }
        Err(_) => {
            let ours = converse(Harness::start().address);
            for (number, (our_line, etcds)) in std::iter::zip(ours.lines(), GOLDEN.lines()).enumerate() {
                assert_eq!(our_line, etcds, "line {}", number + 1);
            }
            assert_eq!(ours.lines().count(), GOLDEN.lines().count());
        }
    }
}

/// The whole conversation, written down.
fn converse(address: SocketAddr) -> String {
    let mut text = String::new();
    for (path, body, lines) in CONVERSATION {
        let flat: String = body.lines().map(str::trim).collect();
        writeln!(text, "> {path} {flat}").unwrap();
        let mut answer = post(address, &format!("/v3/{path}"), body);
        write!(text, "< {}", answer.status).unwrap();
        let lines = if *lines == 0 { usize::MAX } else { *lines };
        for _ in 0..lines {
            let Some(line) = answer.line() else { break };
            write!(text, " {}", masked(&line)).unwrap();
        }
        text.push('\n');
    }
    text
}

/// A line of JSON without what differs between servers, its names in order.
fn masked(line: &str) -> String {
    let mut value: Value = serde_json::from_str(line).unwrap();
    mask(&mut value);
    value.to_string()
}

pub(super) fn mask(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(mask),
        Value::Object(fields) => {
            for name in ["cluster_id", "member_id", "raft_term"] {
                fields.remove(name);
            }
            fields.sort_keys();
            for (name, value) in fields.iter_mut() {
                let is_text_of_parser =
                    value.as_str().is_some_and(|text| !text.contains("etcdserver: ")) && name == "message";
                if is_text_of_parser || name == "error" && value.is_string() || name == "TTL" {
                    *value = "...".into();
                }
                mask(value);
            }
        }
        _ => {}
    }
}

/// An answer that is being read.
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    is_chunked: bool,
    socket: BufReader<TcpStream>,
}

fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    let length = body.len();
    send(
        address,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ),
    )
}

pub(super) fn send(address: SocketAddr, request: &str) -> Answer {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut socket = BufReader::new(socket);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(socket.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    Answer { status, head, is_chunked, socket }
}

impl Answer {
    /// The next line that is not empty, or the end. A stream's line is one chunk or two (the line's end apart).
    pub(super) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        while line.trim().is_empty() {
            line.clear();
            if self.is_chunked {
                let mut size = String::new();
                self.socket.read_line(&mut size).unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                self.socket.read_exact(&mut chunk).unwrap();
                if size == 0 {
                    return None;
                }
                line = String::from_utf8(chunk).unwrap();
            } else if self.socket.read_line(&mut line).unwrap() == 0 {
                return None;
            }
        }
        Some(line.trim().to_owned())
    }

    pub(super) fn json(&mut self) -> Value {
        serde_json::from_str(&self.line().unwrap()).unwrap()
    }
}

fn assert_error(mut answer: Answer, status: u16, code: i32, text: &str) {
    assert_eq!(answer.status, status, "{text}");
    let body = answer.json();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["message"], body["error"]);
    assert!(body["message"].as_str().unwrap().contains(text), "{body}");
    assert!(answer.head.to_lowercase().contains("content-type: application/json"), "{}", answer.head);
}

#[test]
fn what_is_no_call_is_refused() {
    let harness = Harness::start();
    let address = harness.address;
    assert_error(post(address, "/v3/kv/nothing", "{}"), 404, 5, "Not Found");
    let get = |method: &str| {
        send(address, &format!("{method} /v3/kv/range HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    };
    assert_error(get("GET"), 501, 12, "Method Not Allowed");
    assert_error(get("PUT"), 501, 12, "Method Not Allowed");
    assert_eq!(post(address, "/v3beta/kv/range", r#"{"key":"YQ=="}"#).status, 200);
}

#[test]
fn a_stream_that_makes_no_sense_ends_with_what_is_wrong() {
    let harness = Harness::start();
    for body in ["{", "3", r#"{"create_request":3}"#, r#"{"create_request":{"key":"*"}}"#] {
        let mut answer = post(harness.address, "/v3/watch", body);
        assert_eq!(answer.status, 400, "{body}");
        let body = answer.json();
        assert_eq!((&body["error"]["code"], &body["error"]["grpc_code"]), (&3.into(), &3.into()));
        assert_eq!(body["error"]["http_status"], "Bad Request");
    }
    let mut answer = post(harness.address, "/v3/lease/keepalive", r#"{"ID":"7"} nonsense"#);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["result"]["ID"], "7");
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("JSON object"));
    assert_eq!(answer.line(), None);
}

#[test]
fn failures_have_their_http_status() {
    let harness = Harness::start();
    let put = || post(harness.address, "/v3/kv/put", r#"{"key":"YQ=="}"#);
    for (failure, status, code, text) in [
        (Unavailable::Timeout, 503, 14, "etcdserver: request timed out"),
        (Unavailable::Busy, 429, 8, "etcdserver: too many requests"),
        (Unavailable::TooLarge, 400, 3, "etcdserver: request is too large"),
    ] {
        harness.backend.fail_with(Some(failure));
        assert_error(put(), status, code, text);
    }
    harness.backend.fail_with(None);
    assert_eq!(put().status, 200);
}

/// By what is said of a body that is no JSON: only a path that leads nowhere is not found.
#[test]
fn every_path_of_etcd_leads_somewhere() {
    let harness = Harness::start();
    for (service, calls) in [
        ("kv", "range put deleterange txn compaction lease/revoke lease/timetolive lease/leases"),
        ("lease", "grant revoke keepalive timetolive leases"),
        ("cluster", "member/add member/remove member/update member/list member/promote"),
        ("maintenance", "alarm status defragment hash hashkv snapshot transfer-leadership downgrade"),
        ("auth", "enable disable status authenticate"),
        ("auth/user", "add get list delete changepw grant revoke"),
        ("auth/role", "add get list delete grant revoke"),
        ("election", "campaign proclaim leader observe resign"),
        ("lock", "lock unlock"),
    ] {
        for call in calls.split(' ') {
            let path = format!("/v3/{service}/{call}");
            assert_eq!(post(harness.address, &path, "{").status, 400, "{path}");
        }
    }
    assert_eq!(post(harness.address, "/v3/watch", "{").status, 400);
    assert_eq!(post(harness.address, "/v3/kv/lease/grant", "{").status, 404);
}

#[test]
fn bodies_are_bounded_as_messages_are() {
    let harness = Harness::start();
    let put = |bytes: usize| {
        let value = "A".repeat(bytes / 3 * 4);
        post(harness.address, "/v3/kv/put", &format!(r#"{{"key":"YQ==","value":"{value}"}}"#))
    };
    assert_eq!(put(1_500_000).status, 200);
    assert_error(put(1_600_000), 400, 3, "etcdserver: request is too large");
    assert_error(put(2_200_000), 429, 8, "received message larger than max");
    // The server answers before it has read everything, so the rest is not sent.
    let head = "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n";
    let endless = format!("{head}{}", " ".repeat(4 * 1024 * 1024 + 1024 * 1024));
    assert_error(send(harness.address, &endless), 429, 8, "received message larger than max");
}

#[test]
fn metadata_and_token_reach_the_services() {
    let harness = Harness::start();
    harness.backend.set_leader(false);
    let body = r#"{"key":"YQ==","serializable":true}"#;
    let head = |more: &str| {
        let length = body.len();
        send(
            harness.address,
            &format!("POST /v3/kv/range HTTP/1.0\r\nContent-Length: {length}\r\n{more}\r\n{body}"),
        )
    };
    assert_eq!(head("Authorization: abc\r\n").status, 200);
    assert_eq!(head("Grpc-Metadata-Grpc-Encoding: gzip\r\n").status, 200);
    assert_error(head("Grpc-Metadata-hasleader: true\r\n"), 503, 14, "etcdserver: no leader");
}

#[test]
fn a_watch_answers_while_it_is_asked() {
    let harness = Harness::start();
    let create = r#"{"create_request":{"key":"YQ=="}}"#;
    let head = "POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let mut answer = send(harness.address, &format!("{head}{}", chunk(create)));
    assert_eq!(answer.json()["result"]["created"], true);
    post(harness.address, "/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#).line();
    assert_eq!(answer.json()["result"]["events"][0]["kv"]["value"], "MQ==");
    let (first, second) = r#"{"progress_request":{}}"#.split_at(9);
    answer.socket.get_mut().write_all(chunk(first).as_bytes()).unwrap();
    answer.socket.get_mut().write_all(chunk(second).as_bytes()).unwrap();
    assert_eq!(answer.json()["result"]["header"]["revision"], "2");
}

#[test]
fn a_watch_ends_with_its_client() {
    let harness = Harness::start();
    let mut answer = post(harness.address, "/v3/watch", r#"{"create_request":{"key":"YQ=="}}"#);
    assert_eq!(answer.json()["result"]["created"], true);
    let open_streams = || {
        let page = send(harness.address, "GET /metrics HTTP/1.0\r\n\r\n");
        let lines = page.socket.lines().map(Result::unwrap);
        let prefix = "etcd_debugging_mvcc_watch_stream_total ";
        lines.filter_map(|line| line.strip_prefix(prefix).map(str::to_owned)).next().unwrap()
    };
    assert_eq!(open_streams(), "1");
    drop(answer);
    let deadline = Instant::now() + TIMEOUT;
    while open_streams() != "0" {
        assert!(Instant::now() < deadline, "the stream of a client that is gone stays open");
    }
}

/// The end of a client's half was hidden from the head of its request on: what came of the body was held for ever, and so was the socket.
#[test]
fn who_goes_away_in_the_middle_of_a_request_is_let_go() {
    let harness = Harness::start();
    let says = |rest: &str| {
        let mut socket = TcpStream::connect(harness.address).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.write_all(format!("POST /v3/kv/put HTTP/1.1\r\nHost: x\r\n{rest}").as_bytes()).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    for cut_off in
        ["Content-Length: 14\r\n\r\n{\"key\"", "Transfer-Encoding: chunked\r\n\r\n6\r\n{\"key\"\r\n"]
    {
        let answer = says(cut_off);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let whole = says("Content-Length: 14\r\n\r\n{\"key\":\"YQ==\"}");
    assert!(whole.starts_with("HTTP/1.1 200"), "{whole}");
}

/// Whoever waited over HTTP/1 and went away stayed in the queue, and owned the lock when it was free.
#[test]
fn who_waits_for_a_lock_leaves_the_queue_when_it_is_gone() {
    let harness = Harness::start();
    let ask = |path: &str, body: &str| post(harness.address, path, body).json();
    for (path, name) in [("/v3/lock/lock", "UQ=="), ("/v3/election/campaign", "Rg==")] {
        let contend = |lease: u64| format!(r#"{{"name":"{name}","lease":"{lease}"}}"#);
        for lease in [7, 8] {
            ask("/v3/lease/grant", &format!(r#"{{"ID":"{lease}","TTL":"600"}}"#));
        }
        ask(path, &contend(7));
        let queue = || {
            let end = if name == "UQ==" { "Ug==" } else { "Rw==" };
            let range = format!(r#"{{"key":"{name}","range_end":"{end}","count_only":true}}"#);
            ask("/v3/kv/range", &range)["count"].as_str().unwrap().to_owned()
        };
        let mut waiter = TcpStream::connect(harness.address).unwrap();
        let body = contend(8);
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        waiter.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while queue() != "2" {
            assert!(Instant::now() < deadline, "it waits its turn");
        }
        drop(waiter);
        while queue() != "1" {
            assert!(Instant::now() < deadline, "a client that is gone waits");
        }
        for lease in [7, 8] {
            ask("/v3/lease/revoke", &format!(r#"{{"ID":"{lease}"}}"#));
        }
    }
}
