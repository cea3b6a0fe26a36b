//! A cluster of real processes for tests: started, killed and restarted, on ports of their own, in a directory that is
//! gone afterwards.

pub mod authority;
pub mod contenders;
pub mod content;
pub mod ctl;
pub mod dns;
pub mod etcd;
pub mod judge;
pub mod leases;
pub mod load;
pub mod place;
pub mod ports;
pub mod small_disk;
pub mod watchers;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::watch_client::WatchClient;
use hadron_proto::etcdserverpb::{
    HashKvRequest, RangeRequest, StatusRequest, StatusResponse, WatchCreateRequest, WatchRequest,
    watch_request,
};
use hadron_sim::history::Event;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use ports::Port;

/// How long anything that must happen may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The root group and `default`.
const GROUPS: usize = 2;
/// Clusters of one test binary take turns, so that times are measured on a machine that has nothing else to do.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
/// A node that is to refuse to start has so much time for it.
const START_MUST_FAIL_WITHIN: Duration = Duration::from_secs(30);

/// Processes that form one cluster.
pub struct Cluster {
    pub nodes: Vec<Node>,
    directory: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// One node: its command line and, while it runs, its process.
pub struct Node {
    pub name: String,
    pub client_url: String,
    /// Where it listens for the other nodes.
    pub peer_address: SocketAddr,
    binary: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    log: PathBuf,
    child: Option<Child>,
    /// For clients and for peers.
    _ports: [Port; 2],
}

impl Cluster {
    /// Starts `count` nodes with `extra` arguments each and waits until they have a leader.
    pub async fn start(count: usize, extra: &[&str]) -> Cluster {
        let mut cluster = Cluster::at_rest(count, extra, &[]).await;
        cluster.bring_up().await;
        cluster
    }

    /// `count` nodes that know each other, none of them started.
    pub async fn prepared(count: usize) -> Cluster {
        Cluster::at_rest(count, &[], &[]).await
    }

    /// A cluster whose nodes were never started. They tell each other to connect to `advertised`, one address for each
    /// node, and to where they listen if it is empty.
    pub async fn at_rest(count: usize, extra: &[&str], advertised: &[SocketAddr]) -> Cluster {
        Cluster::prepare(count, extra, advertised, ONE_AT_A_TIME.lock().await)
    }

    /// Starts all nodes and waits until they have a leader.
    pub async fn bring_up(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
        let led = async |node: &Node| node.status().await.is_some_and(|status| status.leader != 0);
        eventually("all nodes serve and name a leader", async || {
            for node in &self.nodes {
                if !led(node).await {
                    return false;
                }
            }
            true
        })
        .await;
    }

    fn prepare(
        count: usize,
        extra: &[&str],
        advertised: &[SocketAddr],
        turn: MutexGuard<'static, ()>,
    ) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let ports: Vec<[Port; 2]> = (0..count).map(|_| [Port::hold(), Port::hold()]).collect();
        let reached: Vec<String> = match advertised {
            [] => ports.iter().map(|[_, peer]| peer.url()).collect(),
            addresses => addresses.iter().map(|address| format!("http://{address}")).collect(),
        };
        let members: Vec<String> =
            reached.iter().enumerate().map(|(number, url)| format!("n{number}={url}")).collect();
        let extra: Vec<String> = extra.iter().map(|argument| (*argument).to_owned()).collect();
        let node = |(number, ports): (usize, [Port; 2])| {
            Node::at_rest(directory.path(), number, ports, &reached[number], &members, &extra)
        };
        let nodes = ports.into_iter().enumerate().map(node).collect();
        Cluster { nodes, directory, _turn: turn }
    }

    /// One more node, which is not started: it is to join the cluster, whose present nodes it is told of. Returns its number.
    pub fn prepare_to_join(&mut self) -> usize {
        let number = self.nodes.len();
        let ports = [(); 2].map(|()| Port::hold());
        let reached = ports[1].url();
        let present = self.nodes.iter().map(|node| format!("{}=http://{}", node.name, node.peer_address));
        let members: Vec<String> = present.chain([format!("n{number}={reached}")]).collect();
        let extra = ["--initial-cluster-state".to_owned(), "existing".to_owned()];
        self.nodes.push(Node::at_rest(self.directory.path(), number, ports, &reached, &members, &extra));
        number
    }

    /// The nodes' URLs for clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client_url.clone()).collect()
    }

    /// The number of the node that leads, as soon as all running nodes agree on it.
    pub async fn leader(&self) -> usize {
        let mut found = None;
        eventually("one leader that all nodes name", async || {
            let mut statuses = Vec::new();
            for (number, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
                let Some(status) = node.status().await else { return false };
                statuses.push((number, status));
            }
            let leader = statuses.first().map_or(0, |(_, status)| status.leader);
            let agreed = leader != 0 && statuses.iter().all(|(_, status)| status.leader == leader);
            let member =
                |status: &StatusResponse| status.header.as_ref().map_or(0, |header| header.member_id);
            found = statuses.iter().find(|(_, status)| member(status) == leader).map(|(number, _)| *number);
            agreed && found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Waits until all nodes that run have applied what any of them has committed by now.
    pub async fn wait_until_equal(&self) {
        eventually("all nodes have applied the same", async || {
            let mut positions = Vec::new();
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                let Some(status) = node.status().await else { return false };
                positions
                    .push((status.header.map_or(0, |header| header.revision), status.raft_applied_index));
            }
            let newest = positions.iter().map(|(revision, _)| *revision).max();
            positions.iter().all(|(revision, _)| Some(*revision) == newest)
        })
        .await;
    }

    /// The end of each node's log, for reports.
    pub fn logs(&self) -> String {
        let tail = |node: &Node| {
            let text = std::fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            format!("--- {}\n{}\n", node.name, lines.join("\n"))
        };
        self.nodes.iter().map(tail).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.nodes.iter_mut().for_each(Node::kill);
    }
}

impl Node {
    /// One that was never started, which the others shall reach at `reached`.
    fn at_rest(
        directory: &Path,
        number: usize,
        ports: [Port; 2],
        reached: &str,
        members: &[String],
        extra: &[String],
    ) -> Node {
        let name = format!("n{number}");
        let [client_url, peer_url] = ports.each_ref().map(Port::url);
        let flags = [
            ("--name", name.clone()),
            ("--data-dir", directory.join(&name).display().to_string()),
            ("--listen-client-urls", client_url.clone()),
            ("--advertise-client-urls", client_url.clone()),
            ("--listen-peer-urls", peer_url),
            ("--initial-advertise-peer-urls", reached.to_owned()),
            ("--initial-cluster", members.join(",")),
        ];
        let mut arguments: Vec<String> =
            flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        arguments.extend_from_slice(extra);
        Node {
            log: directory.join(format!("{name}.log")),
            name,
            client_url,
            peer_address: ports[1].address(),
            _ports: ports,
            binary: binary(),
            arguments,
            environment: Vec::new(),
            child: None,
        }
    }

    /// Starts the process; its output is appended to its log.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(&self.binary)
            .arg("serve")
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// The value of one of the node's flags.
    pub fn argument(&self, flag: &str) -> String {
        let position = self.arguments.iter().position(|argument| argument == flag).unwrap();
        self.arguments[position + 1].clone()
    }

    /// Gives one of the node's flags another value, or one more flag to the node.
    pub fn set_argument(&mut self, flag: &str, value: &str) {
        match self.arguments.iter().position(|argument| argument == flag) {
            Some(position) => self.arguments[position + 1] = value.to_owned(),
            None => self.arguments.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// Takes one of the node's flags away.
    pub fn drop_argument(&mut self, flag: &str) {
        let position = self.arguments.iter().position(|argument| argument == flag).unwrap();
        self.arguments.drain(position..position + 2);
    }

    /// Runs the node with more arguments until it ends by itself: for starts that must fail. One that does not end is
    /// killed, which is no way to end by itself.
    pub async fn run_with(&self, extra: &[&str]) -> Output {
        self.run_as(Command::new(env!("CARGO_BIN_EXE_hadron")), extra).await
    }

    /// Like [`Node::run_with`], with a command that was made by the caller.
    pub async fn run_as(&self, mut command: Command, extra: &[&str]) -> Output {
        command.arg("serve").args(&self.arguments).args(extra).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + START_MUST_FAIL_WITHIN;
        while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
        // It may have ended meanwhile.
        let _ = child.kill();
        child.wait_with_output().unwrap()
    }

    /// Environment variables of later starts, beside those of this process.
    pub fn set_environment(&mut self, variables: &[(&'static str, PathBuf)]) {
        self.environment = variables.to_vec();
    }

    /// The executable of later starts.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Sends a signal to the process, which must have been started.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it was started");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// How the process has ended, if it did so by itself.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// Waits until the process has ended by itself.
    pub async fn wait_for_exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it was started");
        let mut status = None;
        eventually(&format!("{} ends by itself", self.name), async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        self.child = None;
        status.unwrap()
    }

    /// Everything that the node has said in all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Where the node's data is.
    pub fn data_dir(&self) -> PathBuf {
        self.log.with_extension("")
    }

    /// Of the process that runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// A connection, made with the first request.
    pub fn channel(&self) -> Channel {
        channel(&self.client_url)
    }

    /// What the node says about itself; `None` while it does not answer.
    pub async fn status(&self) -> Option<StatusResponse> {
        status(self.channel()).await
    }

    /// One of the node's counters, from its page of metrics; 0 when it is not there.
    pub async fn counter(&self, name: &str) -> u64 {
        let page = self.metrics().await;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// The node's page of metrics.
    pub async fn metrics(&self) -> String {
        self.page_of_metrics().await.unwrap()
    }

    /// The same; `None` while the node does not answer.
    async fn page_of_metrics(&self) -> Option<String> {
        page(self.client_url.trim_start_matches("http://"), "/metrics").await
    }

    /// Whether the node has a vote in every group, and no change of the members is under way: the others could do without
    /// one of them then.
    pub async fn votes(&self) -> bool {
        let Some(page) = self.page_of_metrics().await else { return false };
        let votes: Vec<&str> =
            page.lines().filter(|line| line.starts_with("hadron_replica_votes{")).collect();
        votes.len() == GROUPS && votes.iter().all(|line| line.ends_with(" 1"))
    }

    /// Waits until [`Node::votes`].
    pub async fn wait_until_voting(&self) {
        eventually(&format!("{} votes", self.name), async || self.votes().await).await;
    }

    /// Waits until the node serves linearizable reads.
    pub async fn wait_until_serving(&self) {
        eventually(&format!("{} serves", self.name), async || {
            let read = RangeRequest { key: "x".into(), ..RangeRequest::default() };
            let mut client = KvClient::new(self.channel());
            let answer = tokio::time::timeout(Duration::from_secs(2), client.range(read)).await;
            answer.is_ok_and(|answer| answer.is_ok())
        })
        .await;
    }
}

const POLL: Duration = Duration::from_millis(20);

/// A page with its headers; `None` if nobody answers there.
pub async fn page(authority: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(authority).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await.ok()?;
    Some(page)
}

/// What nodes run: `$HADRON`, which may be an optimised build, or what was built for the test.
pub fn binary() -> PathBuf {
    std::env::var_os("HADRON").map_or_else(|| env!("CARGO_BIN_EXE_hadron").into(), PathBuf::from)
}

/// A connection that is made with the first request. What is behind a `#` is the host name under which the node is asked: it may choose
/// a keyspace.
pub fn channel(url: &str) -> Channel {
    let (url, host) = url.split_once('#').unwrap_or((url, ""));
    let mut endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    if !host.is_empty() {
        endpoint = endpoint.origin(format!("http://{host}").parse().unwrap());
    }
    endpoint.connect_timeout(Duration::from_secs(1)).tcp_nodelay(true).connect_lazy()
}

/// What the node at the other end says about itself; `None` if it does not answer.
pub async fn status(channel: Channel) -> Option<StatusResponse> {
    let mut client = MaintenanceClient::new(channel);
    let answer = tokio::time::timeout(Duration::from_secs(2), client.status(StatusRequest {})).await;
    answer.ok()?.ok().map(tonic::Response::into_inner)
}

/// Polls until `condition` holds; panics after [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Every event of the keyspace `default` up to `revision`, from one node.
pub async fn complete_history(node: &Node, revision: i64) -> Vec<Event> {
    history(node.channel(), revision).await
}

/// Every event of a keyspace up to `revision`.
pub async fn history(channel: Channel, revision: i64) -> Vec<Event> {
    let create = WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: 1,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.watch(requests).await.unwrap().into_inner();
    let mut events: Vec<Event> = Vec::new();
    while events.last().map_or(0, |event| event.revision) < revision {
        let message = tokio::time::timeout(PATIENCE, stream.next()).await.expect("the history goes on");
        let message = message.expect("the stream stays open").unwrap();
        assert!(!message.canceled, "the watch was cancelled: {message:?}");
        events.extend(message.events.iter().filter_map(hadron_sim::etcd::event));
    }
    events
}

/// The hash of a node's keyspace at `revision`.
pub async fn hash_kv(node: &Node, revision: i64) -> (u32, i64) {
    let mut client = MaintenanceClient::new(node.channel());
    let answer = client.hash_kv(HashKvRequest { revision }).await.unwrap().into_inner();
    (answer.hash, answer.compact_revision)
}
