//! Two or more transports on loopback, and hand-made peers where an honest one would not do the thing under test.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use hadron_consensus::NodeId;
use hadron_node::Bootstrap;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::frame::{self, BODY_BYTES_MAX, Kind};
use super::handshake::{Class, Hello, VERSION_PARTS, Welcome};
use super::{
    Admit, AskError, FrameError, Identity, Inbound, IncomingSnapshot, MembersAnswer, MessageBatch, Messages,
    Options, Order, Peer, PeerTls, Refusal, Rejection, Setup, SnapshotError, Transport, answer, ask,
};
use crate::metrics::Metrics;
use crate::tls::authority;
use crate::tls::client::ClientFiles;
use crate::tls::files::KeyPair;
use crate::tls::server::ServerFiles;
use crate::tls::{ClientTls, ServerTls};

const A: NodeId = NodeId(0xa);
const B: NodeId = NodeId(0xb);

/// A transport, and what it received.
struct TestNode {
    transport: Transport,
    events: UnboundedReceiver<(NodeId, Inbound)>,
    address: SocketAddr,
}

fn identity(node: NodeId) -> Identity {
    Identity {
        cluster_id: 1,
        node,
        incarnation: 5,
        data_dir_id: node.0 * 100,
        name: format!("node-{:x}", node.0),
    }
}

fn quick() -> Options {
    let ms = Duration::from_millis;
    Options { retry_min: ms(1), retry_max: ms(20), refused_retry: ms(20), ..Options::default() }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn peer(node: NodeId, address: SocketAddr) -> Peer {
    Peer { node, urls: vec![format!("http://{address}").parse().unwrap()] }
}

fn no_members() -> MembersAnswer {
    MembersAnswer { revision: 0, pool: Bootstrap::default() }
}

/// Admits nodes that show the data directory they are known with.
fn admit_known() -> Admit {
    Arc::new(|other, _| match other.data_dir_id == other.node.0 * 100 {
        true => Ok(()),
        false => Err(format!("node {:x} is known with another data directory", other.node.0).into()),
    })
}

fn start_on(listener: TcpListener, identity: Identity, peers: Vec<Peer>, options: Options) -> TestNode {
    start_encrypted(listener, identity, peers, options, PeerTls::default())
}

fn start_encrypted(
    listener: TcpListener,
    identity: Identity,
    peers: Vec<Peer>,
    options: Options,
    tls: PeerTls,
) -> TestNode {
    let address = listener.local_addr().unwrap();
    let (sender, events) = unbounded_channel();
    let setup = Setup {
        identity,
        peers,
        admit: admit_known(),
        known: Arc::new(|node| (node == B).then_some(77)),
        roster_revision: Arc::new(|| 0),
        members: Arc::new(no_members),
        receive: Arc::new(move |node, inbound| drop(sender.send((node, inbound)))),
        tls,
        metrics: Arc::default(),
        options,
    };
    TestNode { transport: Transport::start(vec![listener], setup), events, address }
}

async fn start(identity: Identity, peers: Vec<Peer>) -> TestNode {
    start_on(listen().await.0, identity, peers, quick())
}

/// Two nodes that know each other, connected.
async fn pair() -> (TestNode, TestNode) {
    let ((listener_a, address_a), (listener_b, address_b)) = (listen().await, listen().await);
    let mut a = start_on(listener_a, identity(A), vec![peer(B, address_b)], quick());
    let mut b = start_on(listener_b, identity(B), vec![peer(A, address_a)], quick());
    assert_eq!(a.up().await, (B, 5));
    assert_eq!(b.up().await, (A, 5));
    (a, b)
}

impl TestNode {
    async fn next(&mut self) -> (NodeId, Inbound) {
        tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await.unwrap().unwrap()
    }

    async fn up(&mut self) -> (NodeId, u64) {
        match self.next().await {
            (node, Inbound::Up { incarnation, .. }) => (node, incarnation),
            other => panic!("expected up, got {other:?}"),
        }
    }

    async fn down(&mut self) -> NodeId {
        match self.next().await {
            (node, Inbound::Down) => node,
            other => panic!("expected down, got {other:?}"),
        }
    }

    async fn messages(&mut self) -> (Vec<Bytes>, OwnedSemaphorePermit) {
        match self.next().await {
            (_, Inbound::Messages { messages, permit }) => (messages.map(Result::unwrap).collect(), permit),
            other => panic!("expected messages, got {other:?}"),
        }
    }

    async fn snapshot(&mut self) -> IncomingSnapshot {
        match self.next().await {
            (_, Inbound::Snapshot(snapshot)) => snapshot,
            other => panic!("expected a snapshot, got {other:?}"),
        }
    }

    fn send(&self, to: NodeId, messages: &[&[u8]]) {
        self.transport.send(to, batch(messages), Order::InTurn);
    }
}

fn batch(messages: &[&[u8]]) -> Bytes {
    let mut batch = MessageBatch::default();
    messages.iter().for_each(|message| batch.push(|out| out.put_slice(message)).unwrap());
    batch.take()
}

async fn write_frame(stream: &mut TcpStream, kind: Kind, body: &[u8]) {
    stream.write_all(&frame::encode(kind, body)).await.unwrap();
}

/// Says hello by hand; returns the connection and the answer.
async fn call(address: SocketAddr, hello: &Hello) -> (TcpStream, Result<Welcome, String>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    write_frame(&mut stream, Kind::Hello, &hello.encode()).await;
    let answer = match frame::read(&mut stream, BODY_BYTES_MAX).await.unwrap() {
        (Kind::Welcome, body) => Ok(Welcome::decode(body).unwrap()),
        (Kind::Refused, body) => Err(Refusal::decode(body).unwrap().reason),
        other => panic!("{other:?}"),
    };
    (stream, answer)
}

/// Accepts one connection by hand and welcomes it as `identity`.
async fn welcome(listener: &TcpListener, identity: Identity) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (kind, body) = frame::read(&mut stream, BODY_BYTES_MAX).await.unwrap();
    assert_eq!(kind, Kind::Hello);
    Hello::decode(body).unwrap();
    write_frame(&mut stream, Kind::Welcome, &Welcome { version: VERSION_PARTS, from: identity }.encode())
        .await;
    stream
}

/// A node that is connected to a peer made by hand, and that peer's end of the connection.
async fn connected(options: Options) -> (TestNode, TcpStream) {
    let (listener, address) = listen().await;
    let mut node = start_on(listen().await.0, identity(A), vec![peer(B, address)], options);
    let stream = welcome(&listener, identity(B)).await;
    node.up().await;
    (node, stream)
}

fn messages(body: Bytes) -> Vec<Bytes> {
    Messages::new(body).map(Result::unwrap).collect()
}

/// The next messages, in however many parts they come; pings are passed over.
async fn read_messages(stream: &mut TcpStream) -> Vec<Bytes> {
    read_between(stream, &mut frame::Parts::default()).await
}

/// The same, where messages may come between the parts of others.
async fn read_between(stream: &mut TcpStream, parts: &mut frame::Parts) -> Vec<Bytes> {
    loop {
        let (kind, body) = frame::read(stream, BODY_BYTES_MAX).await.unwrap();
        match parts.gather(kind, body).unwrap() {
            None | Some((Kind::Ping, _)) => {}
            Some((Kind::Messages, body)) => return messages(body),
            other => panic!("{other:?}"),
        }
    }
}

/// Waits until the other side has closed.
async fn closed(stream: &mut TcpStream) {
    let mut buffer = [0; 1024];
    while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
}

#[tokio::test]
async fn messages_travel_both_ways_and_in_order() {
    let (mut a, mut b) = pair().await;
    b.send(A, &[b"from b"]);
    for number in 0..1_000_u32 {
        a.send(B, &[&number.to_le_bytes(), b""]);
    }
    assert_eq!(a.messages().await.0, ["from b"]);
    for number in 0..1_000_u32 {
        assert_eq!(b.messages().await.0, [Bytes::copy_from_slice(&number.to_le_bytes()), Bytes::new()]);
    }
}

#[tokio::test]
async fn long_messages_arrive_whole() {
    let (a, mut b) = pair().await;
    let long: Vec<u8> = (0..20_000_000_u32).map(|number| (number / 7) as u8).collect();
    a.send(B, &[b"before", &long, b"after"]);
    let mut received = Vec::new();
    while received.len() < 3 {
        received.extend(b.messages().await.0);
    }
    assert_eq!(received, [&b"before"[..], &long, b"after"]);
}

#[tokio::test]
async fn strangers_are_refused_with_a_reason() {
    let node = start(identity(A), vec![]).await;
    let refusal = async |hello: Hello| call(node.address, &hello).await.1.unwrap_err();
    let hello = Hello::new(identity(B), A, Class::Urgent, 0);

    let from = Identity { cluster_id: 2, ..identity(B) };
    let reason = refusal(Hello { from, ..hello.clone() }).await;
    assert!(reason.contains("belongs to cluster 2"), "{reason}");

    let from = Identity { data_dir_id: 1, ..identity(B) };
    let reason = refusal(Hello { from, ..hello.clone() }).await;
    assert_eq!(reason, "node b is known with another data directory");

    let reason = refusal(Hello { versions: (7, 9), ..hello.clone() }).await;
    assert!(reason.contains("speaks versions 7 to 9"), "{reason}");

    let reason = refusal(Hello { to: NodeId(0xc), ..hello.clone() }).await;
    assert!(reason.contains("not node c"), "{reason}");

    assert!(call(node.address, &hello).await.1.is_ok());
}

#[tokio::test]
async fn a_refused_dialer_is_told_why_and_comes_in_once_it_may() {
    let (listener, address) = listen().await;
    let mut a = start(identity(A), vec![peer(B, address)]).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    write_frame(&mut stream, Kind::Refused, &Refusal::from("not today".to_owned()).encode()).await;
    drop(stream);
    let _stream = welcome(&listener, identity(B)).await;
    assert_eq!(a.up().await, (B, 5), "refused first, welcome later, and nothing in between");
}

#[tokio::test]
async fn a_dialer_does_not_talk_to_strangers_either() {
    let (listener, address) = listen().await;
    let a = start(identity(A), vec![]).await;
    let setup_peer = peer(B, address);
    let b = start_on(listen().await.0, identity(A), vec![setup_peer], quick());
    let strangers = [
        Identity { cluster_id: 9, ..identity(B) },
        Identity { data_dir_id: 1, ..identity(B) },
        identity(NodeId(0xc)),
    ];
    for stranger in strangers {
        let mut stream = welcome(&listener, stranger).await;
        closed(&mut stream).await;
    }
    assert!(b.events.is_empty() && a.events.is_empty());
}

#[tokio::test]
async fn an_inquiry_is_answered_whoever_asks_and_leaves_no_trace() {
    let mut a = start(identity(A), vec![]).await;
    let urls = peer(A, a.address).urls;
    let patience = Duration::from_secs(20);
    let answer = ask(&PeerTls::default(), &urls, B, patience).await.unwrap();
    assert_eq!((answer.from, answer.known), (identity(A), Some(77)));
    assert_eq!(ask(&PeerTls::default(), &urls, NodeId(0xc), patience).await.unwrap().known, None);
    let (_stream, welcome) = call(a.address, &Hello::new(identity(B), A, Class::Urgent, 0)).await;
    assert!(welcome.is_ok() && a.events.try_recv().is_err());
}

#[tokio::test]
async fn whoever_asks_learns_why_there_is_no_answer() {
    let patience = Duration::from_millis(50);
    let (listener, address) = listen().await;
    let urls = peer(A, address).urls;
    assert_eq!(
        ask(&PeerTls::default(), &urls, B, patience).await.unwrap_err().to_string(),
        "no answer in time"
    );
    drop(listener);
    assert!(matches!(ask(&PeerTls::default(), &urls, B, patience).await, Err(AskError::Connect(_))));
}

#[tokio::test]
async fn an_inquiry_that_is_cut_off_is_asked_again() {
    let (listener, address) = listen().await;
    let hanging_up = tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        listener
    });
    let urls = peer(A, address).urls;
    let asking =
        tokio::spawn(async move { ask(&PeerTls::default(), &urls, B, Duration::from_secs(20)).await });
    let listener = hanging_up.await.unwrap();
    tokio::spawn(answer(PeerTls::default(), listener, identity(A), Arc::new(|_| None)));
    assert_eq!(asking.await.unwrap().unwrap().known, None);
}

#[tokio::test]
async fn a_reconnect_resends_nothing() {
    let (listener, address) = listen().await;
    let mut a = start(identity(A), vec![peer(B, address)]).await;
    a.send(B, &[b"before there is a connection"]);
    let mut stream = welcome(&listener, identity(B)).await;
    assert_eq!(a.up().await, (B, 5));
    a.send(B, &[b"first"]);
    assert_eq!(read_messages(&mut stream).await, ["first"]);
    drop(stream);
    a.send(B, &[b"into the void"]);
    assert_eq!(a.down().await, B);
    a.send(B, &[b"while it is down"]);

    let restarted = Identity { incarnation: 6, ..identity(B) };
    let mut stream = welcome(&listener, restarted).await;
    assert_eq!(a.up().await, (B, 6));
    a.send(B, &[b"second"]);
    assert_eq!(read_messages(&mut stream).await, ["second"]);
}

#[tokio::test]
async fn a_full_queue_drops_and_counts() {
    let (a, mut stream) = connected(Options { queue_bytes_max: 1 << 20, ..quick() }).await;
    a.transport.drained().await;

    let frame = batch(&[&[7; 64 << 10]]);
    // Nothing is written meanwhile: this runtime has one thread, and it is here.
    for _ in 0..100 {
        a.transport.send(B, frame.clone(), Order::InTurn);
    }
    let fit = (1 << 20) / frame.len();
    assert_eq!(a.transport.dropped(B), 100 - fit as u64);
    for _ in 0..fit {
        assert_eq!(read_messages(&mut stream).await.len(), 1);
    }
    a.transport.drained().await;
    a.send(B, &[b"room again"]);
    assert_eq!(read_messages(&mut stream).await, ["room again"]);
}

/// A heartbeat waited for all that a follower was behind: over a slow link it suspected the leader that was sending to it.
#[tokio::test]
async fn what_goes_ahead_does_not_wait_for_what_is_long() {
    let (a, mut stream) = connected(quick()).await;

    let long = vec![7; 1 << 20];
    a.send(B, &[&long[..]; 40]);
    let mut parts = frame::Parts::default();
    let first = read_between(&mut stream, &mut parts).await;
    let mut lengths: Vec<usize> = first.iter().map(Bytes::len).collect();
    for message in [b"1", b"2"] {
        a.transport.send(B, batch(&[message]), Order::Ahead);
    }
    while lengths.len() < 42 {
        lengths.extend(read_between(&mut stream, &mut parts).await.iter().map(Bytes::len));
    }
    let overtaken = lengths.iter().rev().take_while(|length| **length > 1).count();
    assert!(overtaken >= 20, "the kernel holds a few of them: {lengths:?}");
    assert_eq!(lengths.iter().filter(|length| **length == long.len()).count(), 40);
}

/// It waited for the whole of a message that had begun, and the connection was given up meanwhile: again and again, as it is sent again.
#[tokio::test]
async fn what_goes_ahead_does_not_wait_for_one_long_message() {
    let (a, mut stream) = connected(quick()).await;
    let long = vec![7; 40 << 20];
    a.send(B, &[&long]);
    let mut parts = frame::Parts::default();
    let (mut sent, mut came, mut behind) = (false, false, 0);
    let whole = loop {
        let (kind, body) = frame::read(&mut stream, BODY_BYTES_MAX).await.unwrap();
        match (kind, parts.gather(kind, body).unwrap()) {
            (Kind::Part, _) if !sent => {
                a.transport.send(B, batch(&[b"heartbeat"]), Order::Ahead);
                sent = true;
            }
            (Kind::Part, _) => behind += usize::from(came),
            (Kind::LastPart, Some((_, body))) => break body,
            (Kind::Messages, Some((_, body))) => {
                assert_eq!(messages(body), ["heartbeat"]);
                came = true;
            }
            (kind, _) => assert_eq!(kind, Kind::Ping),
        }
    };
    assert!(behind > 320, "the kernel holds a few megabytes, and no more: {behind} parts came behind");
    assert_eq!(messages(whole), [long]);
}

/// A node of the first version does not know parts.
#[tokio::test]
async fn an_older_node_is_sent_whole_messages() {
    let (listener, address) = listen().await;
    let mut a = start_on(listen().await.0, identity(A), vec![peer(B, address)], quick());
    let (mut stream, _) = listener.accept().await.unwrap();
    frame::read(&mut stream, BODY_BYTES_MAX).await.unwrap();
    write_frame(&mut stream, Kind::Welcome, &Welcome { version: 1, from: identity(B) }.encode()).await;
    a.up().await;
    a.send(B, &[&[7; 300 << 10]]);
    loop {
        match frame::read(&mut stream, BODY_BYTES_MAX).await.unwrap() {
            (Kind::Ping, _) => {}
            (kind, body) => break assert_eq!((kind, messages(body)[0].len()), (Kind::Messages, 300 << 10)),
        }
    }
}

/// A ping did not fit beside them, and so a healthy connection was given up.
#[tokio::test]
async fn what_goes_ahead_has_room_beside_a_full_queue() {
    let (a, mut stream) = connected(Options { queue_bytes_max: 1 << 20, ..quick() }).await;
    for _ in 0..3 {
        a.send(B, &[&[7; 600 << 10]]);
    }
    a.transport.send(B, batch(&[b"heartbeat"]), Order::Ahead);
    assert_eq!(read_messages(&mut stream).await, ["heartbeat"]);
    assert_eq!(read_messages(&mut stream).await[0].len(), 600 << 10);
    assert_eq!(a.transport.dropped(B), 2);
}

#[tokio::test]
async fn a_receiver_that_is_behind_stops_reading() {
    let budget = 1 << 20;
    let (listener, address) = listen().await;
    let options = Options { inbound_bytes_max: budget, ..quick() };
    let mut b = start_on(listener, identity(B), vec![], options);
    let mut a = start(identity(A), vec![peer(B, address)]).await;
    a.up().await;

    let message = vec![1; 200 << 10];
    for _ in 0..100 {
        a.send(B, &[&message]);
    }
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(b.messages().await.1);
        let waiting = (held.len() + b.events.len()) * message.len();
        assert!(waiting <= budget, "{waiting} bytes wait");
        if waiting + message.len() > budget {
            drop(held.remove(0));
        }
    }
}

#[tokio::test]
async fn a_silent_connection_is_given_up() {
    let (listener, address) = listen().await;
    let ms = Duration::from_millis;
    let options = Options { ping_interval: ms(10), silence_timeout: ms(50), ..quick() };
    let mut a = start_on(listen().await.0, identity(A), vec![peer(B, address)], options);
    let _never_answers = welcome(&listener, identity(B)).await;
    a.up().await;
    assert_eq!(a.down().await, B);
}

#[tokio::test]
async fn a_caller_that_stays_silent_is_given_up() {
    let ms = Duration::from_millis;
    let options = Options { ping_interval: ms(10), silence_timeout: ms(50), ..quick() };
    let b = start_on(listen().await.0, identity(B), vec![], options);
    let (mut stream, answer) = call(b.address, &Hello::new(identity(A), B, Class::Urgent, 0)).await;
    answer.unwrap();
    closed(&mut stream).await;
}

#[tokio::test]
async fn the_newest_connection_of_a_node_counts() {
    let mut b = start(identity(B), vec![]).await;
    let hello = |incarnation| Hello::new(Identity { incarnation, ..identity(A) }, B, Class::Urgent, 0);
    let (mut first, answer) = call(b.address, &hello(5)).await;
    answer.unwrap();
    let (mut second, answer) = call(b.address, &hello(6)).await;
    answer.unwrap();
    closed(&mut first).await;
    second.write_all(&batch(&[b"still here"])).await.unwrap();
    assert_eq!(b.messages().await.0, ["still here"]);
}

/// It could go on giving calls in the names of users.
#[tokio::test]
async fn a_node_that_is_removed_passes_no_calls_on_any_more() {
    let (mut a, b) = pair().await;
    let mut stream = b.transport.open_calls(A).await.unwrap();
    let (from, Inbound::Calls(accepted, presence)) = a.next().await else { panic!("no calls") };
    assert_eq!(from, B);
    let served = tokio::spawn(async move {
        presence.ended().await;
        drop(accepted);
    });
    let peers = a.transport.outgoing.read().values().map(|peer| peer.peer().clone()).collect();
    a.transport.set_peers(peers);
    tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await.unwrap_err();
    a.transport.set_peers(Vec::new());
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    served.await.unwrap();
}

#[tokio::test]
async fn garbage_closes_the_connection_and_nothing_else() {
    let mut b = start(identity(B), vec![]).await;
    let mut random = SmallRng::seed_from_u64(7);
    for round in 0..200 {
        let mut stream = if round % 2 == 0 {
            TcpStream::connect(b.address).await.unwrap()
        } else {
            call(b.address, &Hello::new(identity(A), B, Class::Urgent, 0)).await.0
        };
        let mut garbage = vec![0; random.random_range(16..2_000)];
        random.fill(&mut garbage[..]);
        // Lengths that could be meant are the harder case.
        if round % 3 == 0 {
            garbage[..4].copy_from_slice(&random.random_range(0..16_u32).to_le_bytes());
        }
        // The other side may hang up in the middle.
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        closed(&mut stream).await;
    }
    let (mut stream, answer) = call(b.address, &Hello::new(identity(A), B, Class::Urgent, 0)).await;
    answer.unwrap();
    stream.write_all(&batch(&[b"fine"])).await.unwrap();
    assert_eq!(b.messages().await.0, ["fine"]);
}

#[tokio::test]
async fn a_damaged_frame_ends_the_connection_before_its_messages_are_seen() {
    let mut b = start(identity(B), vec![]).await;
    let (mut stream, _) = call(b.address, &Hello::new(identity(A), B, Class::Urgent, 0)).await;
    let mut damaged = batch(&[b"good"]).to_vec();
    damaged.extend_from_slice(&batch(&[b"bad"]));
    *damaged.last_mut().unwrap() ^= 1;
    stream.write_all(&damaged).await.unwrap();
    closed(&mut stream).await;
    assert_eq!(b.messages().await.0, ["good"]);
    assert!(b.events.is_empty());
}

#[tokio::test]
async fn a_snapshot_is_streamed_and_answered() {
    let (a, b) = pair().await;
    stream_a_snapshot(a, b).await;
}

/// The same frames, within TLS; and whoever does not speak it, or has no certificate, is not heard.
#[tokio::test]
async fn encrypted_nodes_exchange_the_same_and_hear_nobody_else() {
    let authority = authority::Authority::new();
    let tls = |name: &str| {
        let (certificate, key) = authority.sign(name, &["127.0.0.1"]);
        let own = KeyPair { certificate, key };
        let trusted = Some(authority.trusted());
        let server = ServerFiles::of(own.clone(), trusted.clone());
        let client = ClientFiles { own: Some(own), trusted, ..ClientFiles::default() };
        PeerTls {
            server: Some(Arc::new(ServerTls::new(server).unwrap())),
            client: Some(Arc::new(ClientTls::new(client).unwrap())),
        }
    };
    let ((listener_a, address_a), (listener_b, address_b)) = (listen().await, listen().await);
    let to =
        |node, address: SocketAddr| Peer { node, urls: vec![format!("https://{address}").parse().unwrap()] };
    let a = start_encrypted(listener_a, identity(A), vec![to(B, address_b)], quick(), tls("a"));
    let mut b = start_encrypted(listener_b, identity(B), vec![to(A, address_a)], quick(), tls("b"));
    while b.events.is_empty() {
        a.transport.send(B, batch(&[b"hello"]), Order::InTurn);
        tokio::task::yield_now().await;
    }
    let urls = to(B, address_b).urls;
    let patience = Duration::from_secs(20);
    assert_eq!(ask(&tls("asker"), &urls, B, patience).await.unwrap().known, Some(77));
    let nobody = PeerTls { client: None, ..tls("nobody") };
    assert!(ask(&nobody, &urls, B, patience).await.unwrap_err().to_string().contains("--peer-cert-file"));
    let mut plain = TcpStream::connect(address_b).await.unwrap();
    let hello = Hello::new(identity(A), B, Class::Urgent, 0);
    write_frame(&mut plain, Kind::Hello, &hello.encode()).await;
    let mut answer = Vec::new();
    // What comes is an alert of TLS, and no frame.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(frame::read(&mut answer.as_slice(), BODY_BYTES_MAX).await.is_err());
    while b.events.try_recv().is_ok() {}
    stream_a_snapshot(a, b).await;
}

async fn stream_a_snapshot(a: TestNode, mut b: TestNode) {
    let sender = tokio::spawn({
        let transport = a.transport.clone();
        async move {
            let mut snapshot = transport.open_snapshot(B, "header".into()).await?;
            for number in 0..50_u8 {
                snapshot.chunk(vec![number; 1 << 20].into()).await?;
            }
            snapshot.finish().await
        }
    });
    let mut snapshot = b.snapshot().await;
    assert_eq!(snapshot.header(), "header");
    let mut chunks = 0;
    while let Some(chunk) = snapshot.next_chunk().await.unwrap() {
        assert_eq!(chunk, vec![chunks; 1 << 20]);
        chunks += 1;
    }
    assert_eq!(chunks, 50);
    snapshot.answer(Ok("installed".into())).await.unwrap();
    assert_eq!(sender.await.unwrap().unwrap(), "installed");
}

#[tokio::test]
async fn a_receiver_that_gives_up_says_why() {
    let (a, mut b) = pair().await;
    let reasons = [
        Rejection::Failed("busy with another snapshot".into()),
        Rejection::Damaged("its digest is wrong".into()),
        Rejection::NoRoom("the disk is full".into()),
    ];
    for expected in reasons {
        let mut sender = a.transport.open_snapshot(B, Bytes::new()).await.unwrap();
        sender.chunk(Bytes::from_static(b"one")).await.unwrap();
        let mut snapshot = b.snapshot().await;
        snapshot.next_chunk().await.unwrap();
        snapshot.answer(Err(expected.clone())).await.unwrap();
        let error = sender.finish().await.unwrap_err();
        assert!(matches!(&error, SnapshotError::Receiver(found) if *found == expected), "{error}");
    }
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_is_never_complete() {
    let (a, mut b) = pair().await;
    let mut sender = a.transport.open_snapshot(B, Bytes::new()).await.unwrap();
    sender.chunk(Bytes::from_static(b"one")).await.unwrap();
    drop(sender);
    let mut snapshot = b.snapshot().await;
    assert_eq!(snapshot.next_chunk().await.unwrap().unwrap(), "one");
    assert!(matches!(snapshot.next_chunk().await, Err(FrameError::Closed)));
}

#[tokio::test]
async fn bytes_are_counted_per_peer() {
    let ((listener_a, _), (listener_b, address_b)) = (listen().await, listen().await);
    let metrics = Arc::new(Metrics::default());
    let setup = Setup {
        identity: identity(A),
        peers: vec![peer(B, address_b)],
        admit: admit_known(),
        known: Arc::new(|node| (node == B).then_some(77)),
        roster_revision: Arc::new(|| 0),
        members: Arc::new(no_members),
        receive: Arc::new(|_, _| {}),
        tls: PeerTls::default(),
        metrics: metrics.clone(),
        options: quick(),
    };
    let transport = Transport::start(vec![listener_a], setup);
    let mut b = start_on(listener_b, identity(B), vec![], quick());
    // Sent until the connection is there: what comes before it is dropped.
    while b.events.is_empty() {
        transport.send(B, batch(&[b"hello"]), Order::InTurn);
        tokio::task::yield_now().await;
    }
    drop(b.messages().await);
    transport.drained().await;
    assert!(metrics.peer_sent_bytes.with(&["b"]).get() >= batch(&[b"hello"]).len() as u64);
    assert_eq!(metrics.active_peers.with(&["a", "b"]).get(), 1.0);
    let round_trips = metrics.peer_round_trips.with(&["b"]);
    while round_trips.count() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(round_trips.sum_us() < 1_000_000);
}
