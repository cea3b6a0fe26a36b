//! Clients that take more than their share: of connections, of streams, of memory. The node answers everybody else, and what it holds
//! stays within the bounds that stand here.
//!
//! `RANGE_BYTES` says how much is listed, `IDLE_WATCHES` how many watch.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use electionpb::election_client::ElectionClient;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::v3electionpb as electionpb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use crate::support;
use crate::support::{Cluster, Node, PATIENCE, eventually};

const MIB: u64 = 1 << 20;
/// A stream that lists grows the node by less than this, whatever it lists: the engine's cache, the part that is being sent, and what
/// the allocator has not given back yet.
const LISTING_BYTES_MAX: u64 = 64 * MIB;
/// What an idle watch may cost: on a stream of its own, and on one with others.
const STREAM_BYTES_MAX: u64 = 24 << 10;
const WATCHER_BYTES_MAX: u64 = 4 << 10;
/// What a node may hold beyond what it held before, while one client does all it can.
const ABUSE_BYTES_MAX: u64 = 192 * MIB;
const RANGES_BEGUN: &str =
    r#"grpc_server_started_total{grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;
const LISTINGS_BEGUN: &str = r#"grpc_server_started_total{grpc_method="RangeStream",grpc_service="etcdserverpb.KV",grpc_type="server_stream"}"#;
const LEADERS_BEGUN: &str = r#"grpc_server_started_total{grpc_method="Leader",grpc_service="v3electionpb.Election",grpc_type="unary"}"#;
/// A node whose memory stays the same for so long does nothing beside.
const CALM: Duration = Duration::from_secs(1);
/// File descriptors of a node whose clients would take them all.
const DESCRIPTORS: u64 = 200;
/// Between two looks at whether others are served.
const OTHERS_PAUSE: Duration = Duration::from_millis(50);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// Bytes that a node holds now, and the most that it held since [`forget_peak`].
fn resident(node: &Node) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn forget_peak(node: &Node) {
    fs::write(format!("/proc/{}/clear_refs", node.pid()), "5").unwrap();
}

fn put(key: String, value: Bytes) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value, ..Default::default() }
}

fn prefix(key: &str) -> pb::RangeRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    pb::RangeRequest { key: key.to_owned().into(), range_end: end.into(), ..Default::default() }
}

async fn fill(channel: &Channel, bytes: u64, value: usize) {
    for number in 0..bytes / value as u64 {
        KvClient::new(channel.clone())
            .put(put(format!("/fill/{number:08}"), vec![number as u8; value].into()))
            .await
            .unwrap();
    }
}

/// A put and a get on a new connection, within the patience of a client.
async fn serves(node: &Node) {
    let mut kv = KvClient::new(node.channel());
    let began = Instant::now();
    kv.put(put("/alive".into(), "yes".into())).await.unwrap();
    let range = pb::RangeRequest { key: "/alive".into(), ..Default::default() };
    assert_eq!(kv.range(range).await.unwrap().into_inner().count, 1);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

/// Waits until a node's memory stays as it is.
async fn calm(node: &Node) {
    let mut since = (Instant::now(), 0);
    eventually("the node is calm", async || {
        let (now, _) = resident(node);
        if now.abs_diff(since.1) > MIB {
            since = (Instant::now(), now);
        }
        since.0.elapsed() > CALM
    })
    .await;
}

/// Waits until a node has begun this many calls, by a counter, and made of their answers what it makes, while `raw` reads what comes.
async fn calls_are_answered(node: &Node, (counter, begun): (&str, u64), raw: Raw) {
    let answered = async {
        eventually("all calls have begun", async || node.counter(counter).await >= begun).await;
        calm(node).await;
    };
    tokio::select! {
        () = answered => {}
        _ = raw.ends() => panic!("the connection is well"),
    }
}

#[tokio::test]
async fn listing_takes_no_memory() {
    let bytes = number("RANGE_BYTES", 192 * MIB);
    let mut cluster = Cluster::start(1, &[]).await;
    fill(&cluster.nodes[0].channel(), bytes, 256 << 10).await;
    // What was written lately is in memory all the same, and after one restart what the log still had of it.
    for _ in 0..2 {
        cluster.nodes[0].signal(rustix::process::Signal::TERM);
        cluster.nodes[0].wait_for_exit().await;
        cluster.nodes[0].start();
        cluster.nodes[0].wait_until_serving().await;
        eventually("all is flushed", async || {
            cluster.nodes[0].counter("hadron_unflushed_bytes{group=\"1\"}").await == 0
        })
        .await;
    }
    let node = &cluster.nodes[0];
    // The engine tidies up after a start, beside everything else.
    calm(node).await;
    let (before, _) = resident(node);
    forget_peak(node);
    let mut kv = KvClient::new(node.channel()).max_decoding_message_size(usize::MAX);
    let mut parts = kv.range_stream(prefix("/fill/")).await.unwrap().into_inner();
    let mut listed = 0;
    while let Some(part) = parts.next().await {
        let part = part.unwrap().range_response.unwrap();
        listed += part.kvs.iter().map(|pair| pair.value.len() as u64).sum::<u64>();
    }
    assert_eq!(listed, bytes / (256 << 10) * (256 << 10));
    let (_, peak) = resident(node);
    println!("listing {} MiB: {} MiB before, {} MiB at most", bytes / MIB, before / MIB, peak / MIB);
    let grown = peak.saturating_sub(before);
    assert!(grown < LISTING_BYTES_MAX, "grew by {} MiB", grown / MIB);
}

fn watch_of(key: String) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// A stream of watches, and what keeps its requests from ending.
type Open = (tonic::Streaming<pb::WatchResponse>, tokio::sync::oneshot::Sender<()>);

/// Streams over some connections, each with these watches, all created.
async fn watch(node: &Node, streams: u64, watches: u64) -> Vec<Open> {
    const STREAMS_PER_CONNECTION: u64 = 100;
    let mut open = Vec::new();
    let mut channel = node.channel();
    for stream in 0..streams {
        if stream % STREAMS_PER_CONNECTION == 0 {
            channel = node.channel();
        }
        let requests = (0..watches).map(move |number| watch_of(format!("/idle/{stream}/{number}")));
        let (keep, end) = tokio::sync::oneshot::channel::<()>();
        let end = futures::stream::once(end).filter_map(|_| None);
        let requests = tokio_stream::iter(requests).chain(end);
        let mut answers = WatchClient::new(channel.clone()).watch(requests).await.unwrap().into_inner();
        for _ in 0..watches {
            assert!(answers.message().await.unwrap().unwrap().created);
        }
        open.push((answers, keep));
    }
    open
}

async fn event_on(node: &Node, answers: &mut tonic::Streaming<pb::WatchResponse>, key: &str) {
    KvClient::new(node.channel()).put(put(key.into(), "now".into())).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.events[0].kv.as_ref().unwrap().key, key);
}

#[tokio::test]
async fn idle_watches_cost_little() {
    let count = number("IDLE_WATCHES", 10_000);
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0];
    serves(node).await;
    for (streams, watches, bytes_max) in [(1, count, WATCHER_BYTES_MAX), (count, 1, STREAM_BYTES_MAX)] {
        let (before, _) = resident(node);
        let mut open = watch(node, streams, watches).await;
        let (after, _) = resident(node);
        let each = after.saturating_sub(before) / count;
        println!("{streams} streams with {watches} watches each: {each} bytes for a watch");
        assert!(each < bytes_max, "{each} bytes for a watch");
        serves(node).await;
        let last = format!("/idle/{}/{}", streams - 1, watches - 1);
        event_on(node, &mut open.last_mut().unwrap().0, &last).await;
        drop(open);
        eventually("all watches are gone", async || {
            node.counter("etcd_debugging_mvcc_watcher_total").await == 0
        })
        .await;
    }
}

/// A connection that speaks HTTP/2 by hand.
struct Raw(TcpStream);

impl Raw {
    async fn connect(node: &Node) -> Raw {
        let address = node.client_url.trim_start_matches("http://").to_owned();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(PREFACE).await.unwrap();
        Raw(stream)
    }

    /// False once the other side has hung up.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let written = tokio::time::timeout(Duration::from_secs(10), self.0.write_all(bytes)).await;
        matches!(written, Ok(Ok(())))
    }

    /// Whether a call is answered with a message.
    async fn is_answered(&mut self) -> bool {
        let answer = async {
            loop {
                let mut head = [0; 9];
                self.0.read_exact(&mut head).await.unwrap();
                let payload_bytes = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                self.0.read_exact(&mut vec![0; payload_bytes]).await.unwrap();
                match head[3] {
                    DATA => return true,
                    RST_STREAM => return false,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap()
    }

    /// Whether the other side hangs up, whatever it says before.
    async fn ends(mut self) -> bool {
        let mut said = [0; 4096];
        let end = async {
            loop {
                match self.0.read(&mut said).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, end).await.is_ok()
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
    out.to_vec()
}

/// A field that is not in any table.
fn field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = vec![0x10];
    for text in [name.as_bytes(), value] {
        // Lengths of one byte and of more.
        match text.len() {
            0..127 => out.push(text.len() as u8),
            long => {
                out.push(127);
                let mut rest = long - 127;
                while rest >= 128 {
                    out.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                out.push(rest as u8);
            }
        }
        out.extend_from_slice(text);
    }
    out
}

fn call(path: &str) -> Vec<u8> {
    call_of(path, "application/grpc")
}

fn call_of(path: &str, content_type: &str) -> Vec<u8> {
    fields_of(path, content_type, "node")
}

fn fields_of(path: &str, content_type: &str, authority: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", content_type),
        ("te", "trailers"),
    ];
    fields.iter().flat_map(|(name, value)| field(name, value.as_bytes())).collect()
}

fn message(request: &impl prost::Message) -> Vec<u8> {
    let body = request.encode_to_vec();
    let mut out = vec![0];
    out.put_u32(body.len() as u32);
    out.extend_from_slice(&body);
    out
}

/// Does to a node what `abuse` does, and looks at what it holds and whether it serves others meanwhile and afterwards.
async fn within_bounds(node: &Node, what: &str, abuse: impl AsyncFnOnce()) {
    let (before, _) = resident(node);
    forget_peak(node);
    let others = async {
        loop {
            serves(node).await;
            tokio::time::sleep(OTHERS_PAUSE).await;
        }
    };
    tokio::select! {
        () = abuse() => {}
        () = others => {}
    }
    serves(node).await;
    let (_, peak) = resident(node);
    let grown = peak.saturating_sub(before);
    println!("{what}: {} MiB more than before", grown / MIB);
    assert!(grown < ABUSE_BYTES_MAX, "{what}: grew by {} MiB", grown / MIB);
}

/// Clients that etcd answers: its own of version 3.5.0, one that is told a URL with a slash, one with several addresses, one that looked up its servers.
#[tokio::test]
async fn whoever_names_no_authority_is_answered() {
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0];
    for authority in ["node:2379", "#initially=[node:2379]", "node:2379/", "one:2379,two:2379", ""] {
        let mut raw = Raw::connect(node).await;
        let call = fields_of("/etcdserverpb.KV/Range", "application/grpc", authority);
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &call)).await;
        let range = pb::RangeRequest { key: "a".into(), ..Default::default() };
        raw.send(&frame(DATA, END_STREAM, 1, &message(&range))).await;
        assert!(raw.is_answered().await, "{authority:?}");
    }
}

#[tokio::test]
async fn one_client_can_do_nothing_to_the_others() {
    let cluster = Cluster::start(1, &[]).await;
    let node = &cluster.nodes[0];
    fill(&node.channel(), 160 * MIB, 1 << 20).await;
    serves(node).await;

    within_bounds(node, "headers of 64 MiB", async || {
        let mut raw = Raw::connect(node).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw.send(&frame(HEADERS, 0, 1, &call("/etcdserverpb.KV/Range"))).await;
        let piece = field("x", &[b'x'; 16_000]);
        for _ in 0..4096 {
            if !raw.send(&frame(CONTINUATION, 0, 1, &piece)).await {
                break;
            }
        }
        assert!(raw.ends().await, "headers have a bound");
    })
    .await;

    within_bounds(node, "a million empty continuations", async || {
        let mut raw = Raw::connect(node).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw.send(&frame(HEADERS, 0, 1, &call("/etcdserverpb.KV/Range"))).await;
        let pieces = frame(CONTINUATION, 0, 1, &[]).repeat(10_000);
        for _ in 0..100 {
            if !raw.send(&pieces).await {
                break;
            }
        }
        assert!(raw.ends().await, "they have a bound");
    })
    .await;

    within_bounds(node, "a hundred thousand calls that are given up at once", async || {
        let mut raw = Raw::connect(node).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        'calls: for batch in 0..100 {
            let mut frames = Vec::new();
            for number in 0..1_000u32 {
                let stream = 2 * (batch * 1_000 + number) + 1;
                frames.extend(frame(HEADERS, END_HEADERS, stream, &call("/etcdserverpb.KV/Range")));
                frames.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            }
            if !raw.send(&frames).await {
                break 'calls;
            }
        }
    })
    .await;

    within_bounds(node, "half a million settings and pings whose answers nobody reads", async || {
        let mut raw = Raw::connect(node).await;
        let frames = [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[7; 8])].concat().repeat(1_000);
        for _ in 0..500 {
            if !raw.send(&frames).await {
                break;
            }
        }
    })
    .await;

    within_bounds(node, "answers of 160 MiB that nobody takes", async || {
        let begun = node.counter(RANGES_BEGUN).await;
        let mut raw = Raw::connect(node).await;
        // No stream may send anything: its window is 0.
        raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
        for number in 0..160u32 {
            let key = format!("/fill/{number:08}").into();
            let range = pb::RangeRequest { key, ..Default::default() };
            let stream = 2 * number + 1;
            let mut frames = frame(HEADERS, END_HEADERS, stream, &call("/etcdserverpb.KV/Range"));
            frames.extend(frame(DATA, END_STREAM, stream, &message(&range)));
            if !raw.send(&frames).await {
                break;
            }
        }
        calls_are_answered(node, (RANGES_BEGUN, begun + 160), raw).await;
    })
    .await;

    let campaign = electionpb::CampaignRequest { name: "e".into(), lease: 0, value: vec![7; 1 << 20].into() };
    ElectionClient::new(node.channel()).campaign(campaign).await.unwrap();
    for (what, path, counter, request) in [
        (
            "answers of 400 MiB about a leader, which nobody takes",
            "/v3electionpb.Election/Leader",
            LEADERS_BEGUN,
            message(&electionpb::LeaderRequest { name: "e".into() }),
        ),
        (
            "four hundred listings in parts of which nobody takes one",
            "/etcdserverpb.KV/RangeStream",
            LISTINGS_BEGUN,
            message(&prefix("/fill/")),
        ),
    ] {
        within_bounds(node, what, async || {
            let begun = node.counter(counter).await;
            let mut raw = Raw::connect(node).await;
            // No stream may send anything: its window is 0.
            raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
            for number in 0..400u32 {
                let stream = 2 * number + 1;
                let mut frames = frame(HEADERS, END_HEADERS, stream, &call(path));
                frames.extend(frame(DATA, END_STREAM, stream, &request));
                if !raw.send(&frames).await {
                    break;
                }
            }
            calls_are_answered(node, (counter, begun + 400), raw).await;
        })
        .await;
    }

    within_bounds(node, "listings of 400 MiB of which nobody takes more than the beginning", async || {
        let begun = node.counter(RANGES_BEGUN).await;
        let mut raw = Raw::connect(node).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).await;
        for number in 0..40u32 {
            let range = prefix(&format!("/fill/{:07}", number % 10));
            let stream = 2 * number + 1;
            let mut frames = frame(HEADERS, END_HEADERS, stream, &call("/etcdserverpb.KV/Range"));
            frames.extend(frame(DATA, END_STREAM, stream, &message(&range)));
            if !raw.send(&frames).await {
                break;
            }
        }
        calls_are_answered(node, (RANGES_BEGUN, begun + 40), raw).await;
    })
    .await;

    within_bounds(node, "the same listings as JSON", async || {
        let begun = node.counter(RANGES_BEGUN).await;
        let mut raw = Raw::connect(node).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw.send(&frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())).await;
        for number in 0..40u32 {
            let pb::RangeRequest { key, range_end, .. } = prefix(&format!("/fill/{:07}", number % 10));
            let (key, range_end) = (BASE64_STANDARD.encode(key), BASE64_STANDARD.encode(range_end));
            let body = serde_json::json!({ "key": key, "range_end": range_end }).to_string();
            let stream = 2 * number + 1;
            let head = call_of("/v3/kv/range", "application/json");
            let mut frames = frame(HEADERS, END_HEADERS, stream, &head);
            frames.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
            if !raw.send(&frames).await {
                break;
            }
        }
        calls_are_answered(node, (RANGES_BEGUN, begun + 40), raw).await;
    })
    .await;

    within_bounds(node, "a thousand connections that say nothing", async || {
        let address = node.client_url.trim_start_matches("http://").to_owned();
        let mut silent = Vec::new();
        for number in 0..1_000 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            if number % 2 == 0 {
                stream.write_all(&PREFACE[..number % PREFACE.len()]).await.unwrap();
            }
            silent.push(stream);
        }
        serves(node).await;
    })
    .await;
}

/// The node could create no more files and stopped, and said that those it has may be damaged.
#[tokio::test]
async fn who_holds_connections_open_leaves_the_node_its_files() {
    let mut cluster = Cluster::prepared(1).await;
    let limited = cluster.nodes[0].data_dir().with_extension("sh");
    let hadron = support::binary().display().to_string();
    fs::write(&limited, format!("#!/bin/sh\nulimit -n {DESCRIPTORS}\nexec {hadron} \"$@\"\n")).unwrap();
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).unwrap();
    cluster.nodes[0].set_binary(limited);
    cluster.bring_up().await;
    let node = &cluster.nodes[0];
    let connected = node.channel();
    fill(&connected, MIB, 1 << 20).await;
    let mut held = Vec::new();
    for _ in 0..2 * DESCRIPTORS {
        let mut raw = Raw::connect(node).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        held.push(raw);
    }
    eventually("connections wait", async || node.log().contains("client connection")).await;
    // Several of the engine's tables, a journal and a segment of the log.
    fill(&connected, 96 * MIB, 1 << 20).await;
    drop(held);
    serves(node).await;
    eventually("all is flushed", async || node.counter("hadron_unflushed_bytes{group=\"1\"}").await == 0)
        .await;
}
