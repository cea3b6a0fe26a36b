//! Whole nodes in this process: real files, real sockets, asked through their handles.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use hadron_consensus::{DEFAULT_GROUP, NodeId};
use hadron_keyspace::{Command, Response};
use hadron_proto::etcdserverpb::{PutRequest, RangeRequest};
use tempfile::TempDir;

use super::start::bind;
use super::{Handle, RunError, Running};
use crate::api::{Backend, Unavailable};
use crate::config::{Addresses, Asked, Config, Initial, Settings};
use crate::metrics::Metrics;

/// A cluster of one node with quick timings.
pub(super) fn config(name: &str, data_dir: impl Into<PathBuf>) -> Config {
    let data_dir = data_dir.into();
    let flags = [
        "--advertise-client-urls=http://127.0.0.1:2",
        "--initial-advertise-peer-urls=http://127.0.0.1:1",
        "--initial-cluster-token=test",
        "--heartbeat-interval=50",
        "--election-timeout=500",
    ];
    let own = [
        format!("--name={name}"),
        format!("--data-dir={}", data_dir.display()),
        format!("--initial-cluster={name}=http://127.0.0.1:1"),
    ];
    let line = flags.iter().map(ToString::to_string).chain(own).map(OsString::from);
    let Asked::Serve(settings) = Settings::read(line, []).unwrap() else { unreachable!() };
    Config::from_settings(&settings, "hadron").unwrap()
}

fn start(config: &Config, listeners: Vec<TcpListener>) -> Result<Running, RunError> {
    Running::start(config, listeners, Arc::new(Metrics::default()))
}

/// Nodes on addresses of their own that know each other.
struct Cluster {
    _directory: TempDir,
    configs: Vec<Config>,
    nodes: Vec<Option<Running>>,
}

impl Cluster {
    fn new(count: usize) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let free: Vec<SocketAddr> = vec!["127.0.0.1:0".parse().unwrap(); count];
        let listeners = bind(&free, "listen-peer-urls", false).unwrap();
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let entries: Vec<String> =
            (0..).zip(&addresses).map(|(number, address)| format!("n{number}=http://{address}")).collect();
        let config = |(number, address): (usize, &SocketAddr)| {
            let name = format!("n{number}");
            let alone = config(&name, directory.path().join(&name));
            let initial = Initial {
                cluster: Some(entries.join(",")),
                advertise_peer_url: format!("http://{address}").parse().ok(),
                ..alone.initial
            };
            let addresses = Addresses { peers: vec![*address], ..alone.addresses };
            Config { addresses, initial, ..alone }
        };
        let configs: Vec<Config> = addresses.iter().enumerate().map(config).collect();
        // At once, since each asks the others before it starts.
        let nodes = std::thread::scope(|scope| {
            let started: Vec<_> = configs
                .iter()
                .zip(listeners)
                .map(|(config, listener)| scope.spawn(|| start(config, vec![listener]).unwrap()))
                .collect();
            started.into_iter().map(|node| node.join().ok()).collect()
        });
        Cluster { _directory: directory, configs, nodes }
    }

    fn handle(&self, number: usize) -> Handle {
        self.nodes[number].as_ref().unwrap().handle()
    }

    async fn ready(&self) {
        for node in self.nodes.iter().flatten() {
            node.ready().await;
        }
    }

    async fn stop(&mut self, number: usize) {
        let node = self.nodes[number].take().unwrap();
        node.hand_over().await;
        node.stop().await.unwrap();
    }

    fn restart(&mut self, number: usize) {
        let config = &self.configs[number];
        let listeners = bind(&config.addresses.peers, "listen-peer-urls", false).unwrap();
        self.nodes[number] = Some(start(config, listeners).unwrap());
    }

    /// The number of the node that leads, as node `of` sees it.
    fn leader(&self, of: usize) -> usize {
        let leader = self.handle(of).status(DEFAULT_GROUP).unwrap().leader.unwrap();
        (0..self.nodes.len()).find(|number| self.id(*number) == Some(leader)).unwrap()
    }

    fn id(&self, number: usize) -> Option<NodeId> {
        self.nodes[number].as_ref().map(|node| node.handle().identity().member_id)
    }
}

fn put_command(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Command {
    Command::Put(PutRequest { key: key.into(), value: value.into(), ..Default::default() })
}

/// Puts, and returns the revision.
async fn put(handle: &Handle, key: &str, value: impl Into<Bytes>) -> i64 {
    let written = handle.write(DEFAULT_GROUP, put_command(key.to_owned(), value)).await.unwrap();
    match written.response.unwrap() {
        Response::Put(response) => response.header.unwrap().revision,
        other => panic!("{other:?}"),
    }
}

/// A linearizable read.
async fn get(handle: &Handle, key: &str) -> Option<Bytes> {
    handle.read_barrier(DEFAULT_GROUP).await.unwrap();
    let request = RangeRequest { key: key.to_owned().into(), ..Default::default() };
    let response = handle.keyspace(DEFAULT_GROUP).unwrap().range(&request).unwrap();
    response.kvs.into_iter().next().map(|pair| pair.value)
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let config = config("a", directory.path().join("data"));
    let mut revision = 0;
    for round in 0..3_u8 {
        let node = start(&config, Vec::new()).unwrap();
        node.ready().await;
        let handle = node.handle();
        if round > 0 {
            assert_eq!(get(&handle, "key").await.unwrap(), vec![round - 1; 100]);
        }
        let next = put(&handle, "key", vec![round; 100]).await;
        assert!(next > revision, "revisions go on after a restart");
        revision = next;
        assert_eq!(get(&handle, "key").await.unwrap(), vec![round; 100]);
        node.hand_over().await;
        node.stop().await.unwrap();
    }
}

/// As in etcd the next start says how a member is called. It was refused.
#[tokio::test]
async fn a_member_that_is_started_under_another_name_is_renamed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    for name in ["a", "z", "z"] {
        // The flags may say that it moved as well, which counts no more than before: it finds only itself there.
        let listeners = bind(&["127.0.0.1:0".parse().unwrap()], "listen-peer-urls", false).unwrap();
        let mut config = config(name, &path);
        if name == "z" {
            let url = format!("http://{}", listeners[0].local_addr().unwrap());
            config.initial.advertise_peer_url = url.parse().ok();
            config.initial.cluster = Some(format!("z={url}"));
        }
        let node = start(&config, listeners).unwrap();
        node.ready().await;
        let handle = node.handle();
        let named = async {
            while handle.members().iter().any(|member| member.name != name) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), named).await.unwrap();
        assert_eq!(handle.members().len(), 1);
        node.stop().await.unwrap();
    }
}

#[tokio::test]
async fn many_writes_at_once_each_get_their_own_revision() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(&config("a", directory.path()), Vec::new()).unwrap();
    node.ready().await;
    let handle = node.handle();
    let writes = (0..500).map(|number| {
        let handle = handle.clone();
        async move { put(&handle, &format!("key{number}"), "value").await }
    });
    let mut revisions = futures::future::join_all(writes).await;
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 500);
    assert_eq!(revisions[499] - revisions[0], 499, "without gaps");
    node.stop().await.unwrap();
}

#[tokio::test]
async fn any_node_serves_any_request_and_the_next_leader_goes_on() {
    let mut cluster = Cluster::new(3);
    cluster.ready().await;
    for number in 0..3 {
        put(&cluster.handle(number), &format!("from{number}"), "value").await;
    }
    for reader in 0..3 {
        for number in 0..3 {
            let found = get(&cluster.handle(reader), &format!("from{number}")).await;
            assert_eq!(found.unwrap(), "value", "node {reader} reads what node {number} wrote");
        }
    }
    let leader = cluster.leader(0);
    cluster.stop(leader).await;
    let other = (leader + 1) % 3;
    put(&cluster.handle(other), "after", "the change").await;
    cluster.restart(leader);
    cluster.ready().await;
    assert_eq!(get(&cluster.handle(leader), "after").await.unwrap(), "the change");
    let members = cluster.handle(leader).members();
    assert_eq!(members.len(), 3);
    assert!(!cluster.handle(other).elections().is_empty());
}

#[tokio::test]
async fn a_node_that_was_away_too_long_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(3);
    cluster.ready().await;
    let away = (cluster.leader(0) + 1) % 3;
    let writer = cluster.leader(0);
    put(&cluster.handle(writer), "first", "value").await;
    cluster.stop(away).await;
    // More than the log keeps for followers that are behind.
    for number in 0..80 {
        put(&cluster.handle(writer), &format!("key{}", number % 7), vec![number; 512 << 10]).await;
    }
    // Until the engine holds it durably, the log keeps it, and no snapshot is needed.
    let metrics = Arc::new(Metrics::default());
    let config = cluster.configs[away].clone();
    let mut number = 0_u32;
    loop {
        let listeners = bind(&config.addresses.peers, "listen-peer-urls", false).unwrap();
        let node = Running::start(&config, listeners, metrics.clone()).unwrap();
        node.ready().await;
        let handle = node.handle();
        // A barrier that comes too early times out while the snapshot is on its way.
        while handle.read_barrier(DEFAULT_GROUP).await.is_err() {}
        assert_eq!(get(&handle, "key2").await.unwrap(), vec![79; 512 << 10]);
        if metrics.snapshots_received.get() > 0 {
            node.stop().await.unwrap();
            break;
        }
        node.stop().await.unwrap();
        number += 1;
        for _ in 0..40 {
            put(&cluster.handle(writer), "more", vec![number as u8; 512 << 10]).await;
        }
    }
    cluster.restart(away);
    cluster.ready().await;
    assert_eq!(get(&cluster.handle(away), "first").await.unwrap(), "value", "it survives a restart");
    put(&cluster.handle(away), "last", "value").await;
}

#[tokio::test]
async fn requests_that_are_given_up_leave_nothing_behind() {
    let mut cluster = Cluster::new(3);
    cluster.ready().await;
    // Without a quorum nothing is answered.
    let alone = cluster.leader(0);
    for number in (0..3).filter(|number| *number != alone) {
        cluster.nodes[number].take().unwrap().stop().await.unwrap();
    }
    let handle = cluster.handle(alone);
    {
        let mut write = Box::pin(handle.write(DEFAULT_GROUP, put_command("key", "value")));
        let mut read = Box::pin(handle.read_barrier(DEFAULT_GROUP));
        assert!(write.as_mut().now_or_never().is_none() && read.as_mut().now_or_never().is_none());
        assert_eq!(handle.waiting_requests(), 2);
    }
    // The loop forgets them in the order of its queue, so a later request's end proves it.
    let error = handle.read_barrier(DEFAULT_GROUP).await.unwrap_err();
    assert!(matches!(
        error,
        Unavailable::Timeout | Unavailable::TimeoutLeaderFailed | Unavailable::TimeoutConnectionLost
    ));
    assert_eq!(handle.waiting_requests(), 0);
}

#[tokio::test]
async fn a_stopped_node_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let node = start(&config("a", directory.path()), Vec::new()).unwrap();
    node.ready().await;
    let handle = node.handle();
    node.stop().await.unwrap();
    assert_eq!(handle.read_barrier(DEFAULT_GROUP).await, Err(Unavailable::Stopped));
    let error = handle.write(DEFAULT_GROUP, put_command("key", "value")).await.unwrap_err();
    assert_eq!(error, Unavailable::Stopped);
}

#[tokio::test]
async fn a_directory_in_use_and_an_address_in_use_are_clear_errors() {
    let directory = tempfile::tempdir().unwrap();
    let config = config("a", directory.path());
    let node = start(&config, Vec::new()).unwrap();
    let error = start(&config, Vec::new()).err().unwrap().to_string();
    assert!(error.contains("is in use by another process"), "{error}");
    node.stop().await.unwrap();

    let taken = bind(&["127.0.0.1:0".parse().unwrap()], "listen-peer-urls", false).unwrap();
    let address = taken[0].local_addr().unwrap();
    let error = bind(&[address], "listen-peer-urls", false).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot listen on {address} (--listen-peer-urls)")), "{error}");
}

#[tokio::test]
async fn damage_in_the_log_refuses_to_start_and_names_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let config = config("a", directory.path());
    let node = start(&config, Vec::new()).unwrap();
    node.ready().await;
    for number in 0..20 {
        put(&node.handle(), &format!("key{number}"), "a value to be damaged").await;
    }
    node.stop().await.unwrap();
    let (file, offset) = find(&config.wal_dir, b"a value to be damaged").unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[offset] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let error = start(&config, Vec::new()).err().unwrap();
    assert!(matches!(error, RunError::Wal(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains(&file.display().to_string()) && text.contains("at offset"), "{text}");
    assert_eq!(fs::read(&file).unwrap(), bytes, "nothing was changed");
}

/// Where `needle` first stands in a file of `directory`.
fn find(directory: &Path, needle: &[u8]) -> Option<(PathBuf, usize)> {
    fs::read_dir(directory).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        bytes.windows(needle.len()).position(|window| window == needle).map(|offset| (path, offset))
    })
}

/// Whoever vanished without a word, with its machine or behind a router that forgot it, held its place for two hours.
#[test]
fn accepted_connections_are_asked_whether_there_is_still_somebody() {
    let listeners = bind(&["127.0.0.1:0".parse().unwrap()], "listen-client-urls", false).unwrap();
    let client = std::net::TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
    let (accepted, _) = listeners[0].accept().unwrap();
    let asked = |stream: &std::net::TcpStream| socket2::SockRef::from(stream).keepalive().unwrap();
    assert_eq!((asked(&accepted), asked(&client)), (true, false));
}
