//! Garbage on every port of real nodes: bytes that are no protocol, HTTP/2 frames that make no sense, requests whose
//! messages were thrown together. The nodes must stay up, answer the next sensible request, and agree with each other.
//!
//! `GARBAGE_SEED=7` throws other garbage.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::{PutRequest, RangeRequest};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Cluster, PATIENCE, hash_kv};

/// How long a connection is kept to see what comes back.
const LISTEN: Duration = Duration::from_millis(50);
/// Connections of each kind, to each port.
const CONNECTIONS: usize = 60;
/// Requests to each method.
const REQUESTS: usize = 25;
/// What a node may hold after all this; an idle one holds some 40 MB.
const RESIDENT_BYTES_MAX: u64 = 400 << 20;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const METHODS: [&str; 24] = [
    "etcdserverpb.KV/Range",
    "etcdserverpb.KV/Put",
    "etcdserverpb.KV/DeleteRange",
    "etcdserverpb.KV/Txn",
    "etcdserverpb.KV/Compact",
    "etcdserverpb.Watch/Watch",
    "etcdserverpb.Lease/LeaseGrant",
    "etcdserverpb.Lease/LeaseRevoke",
    "etcdserverpb.Lease/LeaseKeepAlive",
    "etcdserverpb.Lease/LeaseTimeToLive",
    "etcdserverpb.Lease/LeaseLeases",
    "etcdserverpb.Cluster/MemberList",
    "etcdserverpb.Cluster/MemberAdd",
    "etcdserverpb.Maintenance/Alarm",
    "etcdserverpb.Maintenance/Status",
    "etcdserverpb.Maintenance/Defragment",
    "etcdserverpb.Maintenance/Hash",
    "etcdserverpb.Maintenance/HashKV",
    "etcdserverpb.Maintenance/Snapshot",
    "etcdserverpb.Maintenance/MoveLeader",
    "etcdserverpb.Auth/Authenticate",
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "Nobody/Knows",
];

fn random_bytes(rng: &mut SmallRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// A frame with a random head and a payload that may be shorter than the head says.
fn http2_frame(rng: &mut SmallRng) -> Vec<u8> {
    let payload = random_bytes(rng, 300);
    let length = if rng.random_bool(0.9) { payload.len() as u32 } else { rng.random_range(0..1 << 24) };
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([rng.random_range(0..12), rng.random()]);
    frame.extend(rng.random_range(0..8_u32).to_be_bytes());
    frame.extend(payload);
    frame
}

/// What is sent on a connection before it is closed.
fn garbage(rng: &mut SmallRng) -> Vec<u8> {
    match rng.random_range(0..4) {
        0 => random_bytes(rng, 2_000),
        1 => {
            let path = "x".repeat(rng.random_range(0..20_000));
            format!("GET /{path} HTTP/1.1\r\nHost: {}\r\n", path.len()).into_bytes()
        }
        2 => PREFACE[..rng.random_range(0..=PREFACE.len())].to_vec(),
        _ => {
            let mut bytes = PREFACE.to_vec();
            // Settings first, as it must be.
            bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
            (0..rng.random_range(1..10)).for_each(|_| bytes.extend(http2_frame(rng)));
            bytes
        }
    }
}

/// Sends `bytes` and reads what comes back for a moment.
async fn throw(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The node may close the connection in the middle.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(LISTEN, stream.read_to_end(&mut answer)).await;
}

/// Fields with small numbers and values of the right kinds more often than not.
fn message(rng: &mut SmallRng, depth: u32) -> Vec<u8> {
    let mut out = BytesMut::new();
    for _ in 0..rng.random_range(0..6) {
        let field = rng.random_range(1..14_u8);
        match rng.random_range(0..10) {
            0..=3 => {
                out.put_slice(&[field << 3]);
                varint(&mut out, interesting(rng));
            }
            4..=8 => {
                let deeper = depth > 0 && rng.random_bool(0.5);
                let value = if deeper { message(rng, depth - 1) } else { random_bytes(rng, 20) };
                out.put_u8(field << 3 | 2);
                varint(&mut out, value.len() as u64);
                out.put_slice(&value);
            }
            _ => out.put_slice(&random_bytes(rng, 5)),
        }
    }
    out.to_vec()
}

fn interesting(rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..4) {
        0 => rng.random_range(0..4),
        1 => rng.random_range(0..1_000),
        2 => i64::MAX as u64 + rng.random_range(0..2),
        _ => rng.random(),
    }
}

fn varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The body of a call: a frame, or something like one.
fn body(rng: &mut SmallRng) -> Bytes {
    let message = message(rng, 4);
    let mut out = BytesMut::new();
    out.put_u8(if rng.random_bool(0.95) { 0 } else { rng.random() });
    let length = if rng.random_bool(0.9) { message.len() as u32 } else { rng.random() };
    out.put_u32(length);
    out.put_slice(&message);
    out.freeze()
}

/// Calls `method` with garbage; what it answers is its business, but it may not take for ever.
async fn call(address: SocketAddr, method: &str, rng: &mut SmallRng) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..REQUESTS {
        let Ok(mut sender) = sender.clone().ready().await else { break };
        let request = http::Request::post(format!("http://{address}/{method}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, mut stream) = sender.send_request(request, false).unwrap();
        let _ = stream.send_data(body(rng), true);
        // A stream that never ends (a watch of health) is left to its own.
        let _ = timeout(LISTEN, response).await;
    }
    connection.abort();
}

/// Every node takes a write and shows it.
async fn all_serve(cluster: &Cluster, round: &str) {
    for node in &cluster.nodes {
        let serve = async {
            let mut client = KvClient::new(node.channel());
            let (key, value) = (format!("sane/{}", node.name).into_bytes(), round.as_bytes().to_vec());
            let put =
                PutRequest { key: key.clone().into(), value: value.clone().into(), ..PutRequest::default() };
            client.put(put).await.unwrap();
            let range = RangeRequest { key: key.into(), ..RangeRequest::default() };
            let found = client.range(range).await.unwrap().into_inner().kvs;
            assert_eq!(found[0].value, value);
        };
        let answered = timeout(PATIENCE, serve).await;
        assert!(answered.is_ok(), "{} does not answer after {round}:\n{}", node.name, cluster.logs());
    }
}

fn address(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

fn resident_bytes(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

#[tokio::test]
async fn garbage_on_every_port_harms_nobody() {
    let seed = std::env::var("GARBAGE_SEED").map_or(1, |text| text.parse().unwrap());
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(3, &[]).await;
    all_serve(&cluster, "the start").await;
    let node = &cluster.nodes[0];
    let (clients, peers) = (address(&node.client_url), node.peer_address);
    for _ in 0..CONNECTIONS {
        throw(clients, &garbage(&mut rng)).await;
        throw(peers, &garbage(&mut rng)).await;
    }
    all_serve(&cluster, "bytes that are no protocol").await;
    for method in METHODS {
        call(clients, method, &mut rng).await;
    }
    all_serve(&cluster, "requests that make no sense").await;
    for node in &mut cluster.nodes {
        assert_eq!(node.has_ended(), None, "{} ended", node.name);
        let resident = resident_bytes(node.pid());
        assert!(resident < RESIDENT_BYTES_MAX, "{} holds {resident} bytes", node.name);
    }
    cluster.wait_until_equal().await;
    let mut hashes = Vec::new();
    for node in &cluster.nodes {
        hashes.push(hash_kv(node, 0).await.0);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "the nodes differ: {hashes:?}");
}
