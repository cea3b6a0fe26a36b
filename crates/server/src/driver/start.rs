//! From a configuration to a running node, and back to a directory at rest.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hadron_consensus::{DEFAULT_GROUP, GroupId, ROOT_GROUP};
use hadron_keyspace::{Keyspace, Options as KeyspaceOptions};
use hadron_node::{
    Board, Bootstrap, Config as NodeConfig, Event, Limits as NodeLimits, Member, Node, NotAdmitted,
};
use hadron_storage::disk::{Disk, RealDisk};
use hadron_storage::engine::{Engine, FjallEngine, FjallOptions};
use hadron_storage::wal::{Options as WalOptions, Recovered, Wal};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::balance::Balance;
use super::clock::Clock;
use super::data_dir::Home;
use super::error::RunError;
use super::fatal::Fatal;
use super::fork::{Dropped, Life};
use super::handle::Handle;
use super::inputs::Inputs;
use super::peers::Network;
use super::pool_file::PoolFile;
use super::reclaim::Reclaimer;
use super::room::Room;
use super::scrub::Scrubber;
use super::shard::{Outlets, Setup as ShardSetup, Shard};
use super::snapshots::{self, Snapshots};
use super::whole::Places;
use super::{flush, force, fork, log, observe, opener, reclaim, scrub};
use crate::api;
use crate::api::server::ask_whether_there;
use crate::config::{Config, Url};
use crate::metrics::Metrics;
use crate::process::Descriptors;
use crate::transport::{self, Cause, Inbound, MembersAnswer, Peer, PeerTls, Refusal, Setup, Transport};

/// etcd's time-out of a request, to which two election timeouts are added.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that the kernel holds until they are accepted; it may allow fewer.
const ACCEPT_BACKLOG: i32 = 1024;
/// How long the tasks of the peers' runtime may take to end.
const PEERS_GRACE: Duration = Duration::from_secs(1);
/// Connections of other nodes that wait to be answered.
const CALLS_CONNECTIONS_MAX: usize = 1024;
/// How often a handing over is looked at.
const HAND_OVER_POLL: Duration = Duration::from_millis(10);

/// A running node.
pub struct Running {
    handle: Handle,
    /// Connections of other nodes that pass calls on.
    passed_on: mpsc::Receiver<api::PassedOn>,
    inputs: Inputs,
    ready: watch::Receiver<bool>,
    fatal: Fatal,
    election_timeout: Duration,
    transport: Transport,
    scrubber: Scrubber,
    reclaimer: Reclaimer,
    /// Dropping it ends the peers' thread.
    peers_end: oneshot::Sender<()>,
    /// In the order in which they end.
    threads: Vec<JoinHandle<()>>,
    _home: Home,
}

/// What was read from disk.
struct Stored {
    home: Home,
    places: Places,
    engine: Arc<dyn Engine>,
    wal: Wal,
    recovered: Recovered,
    keyspaces: BTreeMap<GroupId, Arc<Keyspace>>,
    /// How keyspaces are opened. They share a cache.
    options: KeyspaceOptions,
}

impl Running {
    /// Opens everything, recovers, and starts all threads. Peers are accepted on `peer_listeners`.
    ///
    /// # Errors
    /// What is wrong, in one line for the person who starts the node. Nothing runs then.
    pub fn start(
        config: &Config,
        peer_listeners: Vec<TcpListener>,
        metrics: Arc<Metrics>,
    ) -> Result<Running, RunError> {
        let clock = Clock::start();
        let tls = peer_tls(config)?;
        let network = Network { listeners: &peer_listeners, tls: &tls };
        let Stored { home, places, engine, wal, recovered, keyspaces, options } =
            Stored::open(config, &network)?;
        let node_config = node_config(config, &home);
        let nodes = Node::shards(&node_config, config.shards, recovered.groups, &keyspaces, clock.now());
        let nodes = nodes.map_err(RunError::Unusable)?;
        let board = nodes[0].board();

        let fatal = Fatal::new();
        let (inputs, queues) = Inputs::new(nodes.len());
        let (log_queue, log_thread) =
            log::start(wal, places, inputs.clone(), metrics.clone(), fatal.clone())?;
        let (flush_queue, flush_thread) =
            flush::start(engine.clone(), inputs.clone(), metrics.clone(), fatal.clone())?;
        let (opener, opener_thread) = opener::start(engine.clone(), options, inputs.clone(), fatal.clone())?;
        let peers = peers_runtime()?;
        let (reclaimer, reclaims) = reclaim::queue();
        let place = reclaim::Place {
            node: home.node(),
            board: Arc::downgrade(&board),
            data_dir: config.data_dir.clone(),
        };
        reclaim::start(reclaims, &engine, place, metrics.clone(), fatal.clone())?;
        let (scrubber, asks) = scrub::queue();
        let snapshots = Snapshots::new(snapshots::Setup {
            runtime: peers.handle().clone(),
            engine,
            room: Arc::new(Room::at(&config.data_dir)),
            inputs: inputs.clone(),
            me: home.node(),
            board: board.clone(),
            metrics: metrics.clone(),
            fatal: fatal.clone(),
            scrubber: scrubber.clone(),
        });
        let (calls, passed_on) = mpsc::channel(CALLS_CONNECTIONS_MAX);
        let pool = home.pool.clone();
        let met = Arc::new(PoolFile::written(Arc::new(RealDisk), config.data_dir.clone(), pool));
        let (dropped, told) = fork::channel();
        let receive = receive(inputs.clone(), snapshots.clone(), calls, met.clone(), dropped, fatal.clone());
        let setup = transport_setup(config, &home, met.clone(), board.clone(), receive, metrics.clone())?;
        let setup = Setup { tls, ..setup };
        let transport = start_transport(&peers, peer_listeners, setup)?;
        let identity = api::Identity::new(home.pool.cluster_id, home.node(), config.name.clone());
        let handle = Handle::new(
            inputs.clone(),
            board,
            transport.clone(),
            identity,
            clock,
            config.balance.policy(),
            reclaimer.clone(),
        );
        peers.spawn(observe::run(handle.clone(), scrubber.clone(), metrics.clone()));
        let runtime = peers.handle().clone();
        let scrub_thread =
            scrub::start(asks, config.scrub_interval, handle.clone(), runtime, metrics.clone())?;
        let balance = Balance::new(handle.clone(), inputs.clone(), config.zone.clone());
        peers.spawn(balance.run(metrics.clone(), config.data_dir.clone()));

        let outlets = Outlets {
            inputs: inputs.clone(),
            transport: transport.clone(),
            log: log_queue,
            flush: flush_queue,
            opener,
            snapshots,
            fatal: fatal.clone(),
        };
        let (ready_sender, ready) = watch::channel(false);
        let (ready_here, election_timeout) = (ready.clone(), config.election_timeout);
        let life = Life { handle: handle.clone(), ready: ready_here, met, election_timeout };
        peers.spawn(fork::heed(life, told, fatal.clone()));
        let mut threads = Vec::new();
        for (number, (node, inputs)) in nodes.into_iter().zip(queues).enumerate() {
            let shard = Shard::new(ShardSetup {
                id: home.node(),
                number,
                node,
                clock,
                inputs,
                outlets: outlets.clone(),
                request_timeout: REQUEST_TIMEOUT + 2 * config.election_timeout,
                election_timeout: config.election_timeout,
                metrics: metrics.clone(),
                ready: ready_sender.clone(),
            });
            threads.push(spawn(&format!("shard-{number}"), move || shard.run())?);
        }
        // The threads behind the shards end when nobody can give them anything any more.
        drop(outlets);
        let (peers_end, peers_ended) = oneshot::channel();
        threads.extend([log_thread, flush_thread, opener_thread]);
        threads.push(spawn("peers", move || run_peers(peers, peers_ended))?);
        threads.push(scrub_thread);
        Ok(Running {
            handle,
            passed_on,
            inputs,
            ready,
            fatal,
            election_timeout: config.election_timeout,
            transport,
            scrubber,
            reclaimer,
            peers_end,
            threads,
            _home: home,
        })
    }

    /// What the services ask.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Connections of other nodes that pass calls of their clients on, for whoever answers calls; none after the first time.
    pub fn passed_on(&mut self) -> mpsc::Receiver<api::PassedOn> {
        std::mem::replace(&mut self.passed_on, mpsc::channel(1).1)
    }

    /// Returns once the group `default` has a leader.
    pub async fn ready(&self) {
        // The sender lives as long as the loop; after its end nobody becomes ready any more.
        if self.ready.clone().wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the node found that it must not go on, with what it found.
    pub async fn failed(&self) -> RunError {
        self.fatal.reported().await
    }

    /// Gives the groups that this node leads to others, if others vote in them; waits for that, but not for long.
    pub async fn hand_over(&self) {
        let me = api::Backend::identity(&self.handle).member_id;
        let leads = || {
            self.handle
                .board()
                .groups()
                .iter()
                .any(|(_, group)| group.leader() == Some(me) && group.configuration().voters.len() > 1)
        };
        if !leads() {
            return;
        }
        self.inputs.event(Event::HandOver);
        let handed_over = async {
            while leads() {
                sleep(HAND_OVER_POLL).await;
            }
        };
        match timeout(self.election_timeout, handed_over).await {
            Ok(()) => info!("handed leadership over"),
            Err(_) => warn!("could not hand leadership over; the others will elect"),
        }
    }

    /// Stops all threads: the log is sealed and the engine durable when it returns. Requests that still wait are told.
    ///
    /// # Errors
    /// What the node found by then with which it must not go on: then nothing is said of log and engine.
    pub async fn stop(self) -> Result<(), RunError> {
        let _ = timeout(PEERS_GRACE, self.transport.drained()).await;
        self.scrubber.end();
        self.reclaimer.end();
        self.inputs.stop();
        drop(self.peers_end);
        let threads = self.threads;
        let join = move || {
            for thread in threads {
                let name = thread.thread().name().unwrap_or_default().to_owned();
                if thread.join().is_err() {
                    warn!(thread = name, "a thread ended with a panic");
                }
            }
        };
        let _ = tokio::task::spawn_blocking(join).await;
        self.fatal.found().map_or(Ok(()), Err)
    }
}

impl Stored {
    fn open(config: &Config, network: &Network<'_>) -> Result<Stored, RunError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (mut home, places) = Home::open(&disk, config, network)?;
        places.check_engine()?;
        let path = home.directory.engine_path();
        let options =
            FjallOptions { open_tables: Descriptors::of_process().tables, ..FjallOptions::default() };
        let engine = FjallEngine::open(&path, &options)
            .map_err(|error| RunError::Engine { path: path.clone(), error })?;
        if let Some(tail) = engine.torn_tail() {
            warn!(
                file = %tail.file.display(), offset = tail.offset, bytes = tail.bytes,
                "cut the torn end of the engine's journal: what it held is taken from the write-ahead log, or this node \
                 does not start"
            );
        }
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let options = KeyspaceOptions::default();
        let (mut wal, mut recovered) = open_log(&disk, config, &home)?;
        let mut keyspaces = open_keyspaces(&engine, &home, &options)?;
        places.check_opened(&recovered, &keyspaces)?;
        tell_ends(&recovered);
        let opened = force::Opened { engine: &engine, options: &options, keyspaces: &keyspaces };
        if force::is_wanted(config, &home) {
            force::go_on_alone(config, &home, network, &opened, &recovered.groups, &mut wal)?;
            // To see who is left, the log was read into the keyspaces, whatever came of it.
            drop(wal);
            (wal, recovered) = open_log(&disk, config, &home)?;
            keyspaces = open_keyspaces(&engine, &home, &options)?;
        }
        force::note(&*disk, config, &mut home)?;
        Ok(Stored { home, places, engine, wal, recovered, keyspaces, options })
    }
}

fn open_log(disk: &Arc<dyn Disk>, config: &Config, home: &Home) -> Result<(Wal, Recovered), RunError> {
    let options = WalOptions { log_id: home.data_dir_id(), ..WalOptions::default() };
    let (wal, recovered) = Wal::open(disk.clone(), &config.wal_dir, options)?;
    if let Some(tail) = &recovered.torn_tail {
        warn!(
            file = %tail.file.display(), offset = tail.offset, bytes = tail.bytes,
            "cut the torn tail of the write-ahead log: what a crash interrupted was never acknowledged"
        );
    }
    Ok((wal, recovered))
}

/// Says how far the logs go of which each member has one: for whoever has to choose among those that are left.
fn tell_ends(recovered: &Recovered) {
    for (group, log) in recovered.groups.range(ROOT_GROUP..=DEFAULT_GROUP) {
        let last = log.last();
        info!(group = group.0, term = last.term.0, index = last.index.0, "a log goes up to here");
    }
}

fn open_keyspaces(
    engine: &Arc<dyn Engine>,
    home: &Home,
    options: &KeyspaceOptions,
) -> Result<BTreeMap<GroupId, Arc<Keyspace>>, RunError> {
    let open = |group: GroupId| {
        let keyspace = Keyspace::open(engine.clone(), group.0, options.clone());
        keyspace.map_err(|error| RunError::Unusable(format!("group {group}: {error}")))
    };
    let groups = home.pool.groups(home.node());
    groups.into_iter().map(|group| Ok((group.group, open(group.group)?))).collect()
}

fn node_config(config: &Config, home: &Home) -> NodeConfig {
    let urls = config.addresses.advertise_client_urls.iter().map(ToString::to_string);
    let stored = home.pool.members.iter().find(|member| member.node() == home.node());
    let own = Member {
        id: home.node().0,
        name: config.name.clone(),
        peer_urls: stored.map(|member| member.peer_urls.clone()).unwrap_or_default(),
        client_urls: urls.collect(),
        data_dir_id: home.data_dir_id(),
        ..Member::default()
    };
    NodeConfig {
        node: home.node(),
        incarnation: home.incarnation(),
        own,
        roster: home.pool.roster(),
        groups: home.pool.groups(home.node()),
        heartbeat_us: config.heartbeat_interval.as_micros() as u64,
        election_timeout_us: config.election_timeout.as_micros() as u64,
        seed: home.data_dir_id() ^ home.incarnation(),
        limits: NodeLimits { told_entries: config.snapshot_count, ..NodeLimits::default() },
    }
}

/// How connections between nodes are encrypted, if they are.
fn peer_tls(config: &Config) -> Result<PeerTls, RunError> {
    let Some(security) = &config.peers_security else { return Ok(PeerTls::default()) };
    let server =
        config.addresses.peers_are_tls.then(|| security.server()).transpose().map_err(RunError::Tls)?;
    Ok(PeerTls { server, client: Some(security.client().map_err(RunError::Tls)?) })
}

fn transport_setup(
    config: &Config,
    home: &Home,
    met: Arc<PoolFile>,
    board: Arc<Board>,
    receive: transport::Receive,
    metrics: Arc<Metrics>,
) -> Result<Setup, RunError> {
    let (known_met, known_board) = (met.clone(), board.clone());
    let (members_board, revision_board) = (board.clone(), board.clone());
    let (cluster_id, restored) = (home.pool.cluster_id, home.pool.restored);
    Ok(Setup {
        identity: transport_identity(config, home),
        peers: peers_of(&board),
        // What the root group knows, as far as it is applied here, and what this node met: both must agree.
        admit: Arc::new(move |other, revision| {
            board.admit(other.node, other.data_dir_id, revision).map_err(|error| {
                let cause = match error {
                    NotAdmitted::Removed(_) => Cause::Removed,
                    NotAdmitted::Dropped(_) => Cause::Dropped,
                    NotAdmitted::Refused(_) => Cause::Other,
                };
                Refusal { reason: error.to_string(), cause }
            })?;
            met.admit(other)
        }),
        known: Arc::new(move |node| known_met.known(node).or_else(|| known_board.data_dir_id(node))),
        roster_revision: Arc::new(move || revision_board.roster_revision()),
        members: Arc::new(move || {
            let pool = members_board.pool();
            let members = Bootstrap { cluster_id, members: pool.members(), restored, ..Bootstrap::default() };
            MembersAnswer { revision: pool.revision, pool: members }
        }),
        receive,
        tls: PeerTls::default(),
        metrics,
        options: transport_options(config, home),
    })
}

fn transport_identity(config: &Config, home: &Home) -> transport::Identity {
    transport::Identity {
        cluster_id: home.pool.cluster_id,
        node: home.node(),
        incarnation: home.incarnation(),
        data_dir_id: home.data_dir_id(),
        name: config.name.clone(),
    }
}

fn transport_options(config: &Config, home: &Home) -> transport::Options {
    let defaults = transport::Options::default();
    transport::Options {
        silence_timeout: defaults.silence_timeout.max(config.election_timeout * 2),
        seed: home.data_dir_id() ^ home.incarnation(),
        ..defaults
    }
}

/// The nodes to be connected with. One whose URLs cannot be understood is left out, and said to be.
pub(super) fn peers_of(board: &Board) -> Vec<Peer> {
    let peer = |member: Member| match peer_urls(&member) {
        Ok(urls) => Some(Peer { node: member.node(), urls }),
        Err(error) => {
            warn!(%error, "a member cannot be connected");
            None
        }
    };
    board.peers().into_iter().filter_map(peer).collect()
}

/// Where a member listens for its peers.
pub(super) fn peer_urls(member: &Member) -> Result<Vec<Url>, RunError> {
    let urls = member.peer_urls.iter().map(|url| url.parse()).collect::<Result<Vec<_>, _>>();
    urls.map_err(|error| {
        RunError::Unusable(format!("peer URL of node {:x} ({}): {error}", member.id, member.name))
    })
}

/// What the transport does with what arrives: decodes messages, so that the loops need not, and passes everything on.
fn receive(
    inputs: Inputs,
    snapshots: Snapshots,
    calls: mpsc::Sender<api::PassedOn>,
    met: Arc<PoolFile>,
    dropped: Dropped,
    fatal: Fatal,
) -> transport::Receive {
    Arc::new(move |from, inbound| {
        match inbound {
            Inbound::Up { incarnation, .. } => inputs.event(Event::PeerUp { node: from, incarnation }),
            Inbound::Down => inputs.event(Event::PeerDown { node: from }),
            Inbound::Messages { messages, permit } => {
                inputs.messages(from, observe::decode(from, messages), permit);
            }
            Inbound::Removed { reason } => fatal.removed(reason),
            Inbound::Outdated { reason } => fatal.report(met.outdated(reason).to_string()),
            Inbound::Dropped { reason } => dropped.tell(from, reason),
            Inbound::Snapshot(snapshot) => snapshots.receive(from, snapshot),
            // Hung up if too many wait: the other node tries again, or another one.
            Inbound::Calls(stream, presence) => drop(calls.try_send((stream, presence))),
        }
    })
}

fn start_transport(
    peers: &runtime::Runtime,
    listeners: Vec<TcpListener>,
    setup: Setup,
) -> Result<Transport, RunError> {
    let _inside = peers.enter();
    let mut accepting = Vec::new();
    for listener in listeners {
        listener.set_nonblocking(true).map_err(RunError::Threads)?;
        accepting.push(tokio::net::TcpListener::from_std(listener).map_err(RunError::Threads)?);
    }
    Ok(Transport::start(accepting, setup))
}

/// A runtime for what concerns the other nodes.
pub(super) fn peers_runtime() -> Result<runtime::Runtime, RunError> {
    runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Threads)
}

fn run_peers(peers: runtime::Runtime, ended: oneshot::Receiver<()>) {
    let _ = peers.block_on(ended);
    peers.shutdown_timeout(PEERS_GRACE);
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, RunError> {
    thread::Builder::new().name(name.into()).spawn(run).map_err(RunError::Threads)
}

/// Listens on every address.
pub(super) fn bind(
    addresses: &[SocketAddr],
    flag: &'static str,
    reuse_port: bool,
) -> Result<Vec<TcpListener>, RunError> {
    let bind = |address: &SocketAddr| {
        bind_one(*address, reuse_port).map_err(|error| RunError::Listen { address: *address, flag, error })
    };
    addresses.iter().map(bind).collect()
}

fn bind_one(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last connections of the run before.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    // Accepted connections have it too.
    ask_whether_there(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(ACCEPT_BACKLOG)?;
    Ok(socket.into())
}
