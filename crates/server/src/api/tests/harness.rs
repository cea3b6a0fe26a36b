//! A server over keyspaces in memory, and clients for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use hadron_balance::{NodeState, NodeView, Policy, View, assess, waiting};
use hadron_consensus::{DEFAULT_GROUP, GroupId, Index, NodeId, ROOT_GROUP, Term, Time};
use hadron_keyspace::{Applied, Command, Keyspace, Options};
use hadron_node::{Catalog, KeyspaceRecord, Pool, Report};
use hadron_proto::{etcdserverpb, hadron};
use hadron_storage::engine::ModelEngine;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::transport::Channel;

use crate::api::backend::Standing;
use crate::api::context::Context;
use crate::api::hitters::{Heaviest, Hitters};
use crate::api::{
    Backend, GroupStatus, Identity, Listener, PassedOn, Server, ServerOptions, Traffic, Unavailable, Written,
};
use crate::metrics::Metrics;
use crate::tls::Stream;
use crate::transport::Presence;

/// A node without peers, log or clock: what is written is applied at once.
#[derive(Clone)]
pub(super) struct TestBackend(Arc<Inner>);

struct Inner {
    groups: RwLock<BTreeMap<GroupId, Arc<Group>>>,
    catalog: RwLock<Catalog>,
    clock_ms: Mutex<u64>,
    leads: AtomicBool,
    /// Terms that began after what is being answered.
    terms_since: AtomicU64,
    /// The groups sleep without a leader, and have one once somebody asks for something.
    asleep: AtomicBool,
    woken: Notify,
    applied: Notify,
    learner: AtomicBool,
    has_other: AtomicBool,
    /// No linearizable read gets through.
    cannot_read: AtomicBool,
    /// That begins with the next write.
    cannot_read_since_write: AtomicBool,
    /// The replica of `default` is damaged.
    is_damaged: AtomicBool,
    /// Where other nodes take calls that are passed on.
    others: Mutex<BTreeMap<NodeId, SocketAddr>>,
    /// What another client's write does right before the next one.
    before_write: Mutex<Option<Command>>,
    /// What comes right before the next linearizable reads, one after the other.
    before_reads: Mutex<VecDeque<Option<Command>>>,
    /// Nobody hears of a write while this is held.
    answers: tokio::sync::RwLock<()>,
    /// When set, writes and barriers fail so.
    failure: Mutex<Option<Unavailable>>,
    /// What the planner sees; without it what members and catalog tell.
    view: Mutex<Option<View>>,
    hitters: Hitters,
    identity: Identity,
}

struct Group {
    keyspace: Arc<Keyspace>,
    applied: Mutex<u64>,
}

impl Group {
    fn new(group: GroupId) -> Arc<Group> {
        let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), group.0, Options::default()).unwrap();
        Arc::new(Group { keyspace, applied: Mutex::new(0) })
    }
}

const TERM: Term = Term(2);
/// The node that all is on.
pub(super) const OWN: NodeId = NodeId(1);
/// Another member, if there is one, which is down.
pub(super) const OTHER: NodeId = NodeId(2);

impl TestBackend {
    fn new(id: NodeId) -> TestBackend {
        let groups = [ROOT_GROUP, DEFAULT_GROUP].map(|group| (group, Group::new(group)));
        TestBackend(Arc::new(Inner {
            groups: RwLock::new(groups.into()),
            catalog: RwLock::default(),
            clock_ms: Mutex::new(1000),
            leads: AtomicBool::new(true),
            terms_since: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            woken: Notify::new(),
            applied: Notify::new(),
            learner: AtomicBool::new(false),
            has_other: AtomicBool::new(false),
            cannot_read: AtomicBool::new(false),
            cannot_read_since_write: AtomicBool::new(false),
            is_damaged: AtomicBool::new(false),
            others: Mutex::default(),
            before_write: Mutex::new(None),
            before_reads: Mutex::default(),
            answers: tokio::sync::RwLock::default(),
            failure: Mutex::new(None),
            view: Mutex::new(None),
            hitters: Hitters::default(),
            identity: Identity::new(7, id, "test"),
        }))
    }

    /// Applies a command to `default`, as a client's.
    pub(super) fn apply_to_default(&self, command: Command) {
        self.apply(DEFAULT_GROUP, command).unwrap().response.unwrap();
    }

    /// Has a command come right before the next write of whoever it is.
    pub(super) fn come_before_next_write(&self, command: Command) {
        *self.0.before_write.lock() = Some(command);
    }

    /// Has these come right before the next linearizable reads, one for each.
    pub(super) fn come_before_reads(&self, commands: impl Into<VecDeque<Option<Command>>>) {
        *self.0.before_reads.lock() = commands.into();
    }

    /// Writes are applied and nobody hears of them while this is held.
    pub(super) async fn hold_answers(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.0.answers.write().await
    }

    /// Makes writes and linearizable reads fail, or succeed again.
    pub(super) fn fail_with(&self, failure: Option<Unavailable>) {
        *self.0.failure.lock() = failure;
    }

    /// Lets no linearizable read through, or all again.
    pub(super) fn set_cannot_read(&self, cannot: bool) {
        self.0.cannot_read.store(cannot, Ordering::Relaxed);
    }

    /// Lets linearizable reads through until something is written, and none then.
    pub(super) fn read_until_write(&self) {
        self.set_cannot_read(false);
        self.0.cannot_read_since_write.store(true, Ordering::Relaxed);
    }

    /// The replica of `default` is found damaged.
    pub(super) fn damage(&self) {
        self.0.is_damaged.store(true, Ordering::Relaxed);
    }

    /// Takes the leader away, or gives it back.
    pub(super) fn set_leader(&self, leads: bool) {
        self.0.leads.store(leads, Ordering::Relaxed);
    }

    /// The groups sleep without a leader until somebody asks for something.
    pub(super) fn sleep_without_leader(&self) {
        self.set_leader(false);
        self.0.asleep.store(true, Ordering::Relaxed);
    }

    /// Waits until they were woken.
    pub(super) async fn woken(&self) {
        self.0.woken.notified().await;
    }

    fn wake(&self) {
        if self.0.asleep.swap(false, Ordering::Relaxed) {
            self.set_leader(true);
            self.0.woken.notify_one();
        }
    }

    /// The replica of `group` is closed, and another one opened in its place.
    pub(super) fn replace(&self, group: GroupId) {
        self.0.groups.write().insert(group, Group::new(group));
    }

    /// Makes the node a learner, or a voter again.
    pub(super) fn set_learner(&self, learner: bool) {
        self.0.learner.store(learner, Ordering::Relaxed);
    }

    /// There is another member.
    pub(super) fn add_member(&self) {
        self.0.has_other.store(true, Ordering::Relaxed);
    }

    /// The planner sees this.
    pub(super) fn set_view(&self, view: View) {
        *self.0.view.lock() = Some(view);
    }

    /// Nobody sees what the planner sees while this is held.
    pub(super) fn hold_view(&self) -> MutexGuard<'_, Option<View>> {
        self.0.view.lock()
    }

    /// Nobody learns what time it is while this is held.
    pub(super) fn hold_clock(&self) -> MutexGuard<'_, u64> {
        self.0.clock_ms.lock()
    }

    /// What a planner sees that was told nothing: OWN alone is alive.
    fn unmeasured(&self) -> View {
        let mut view = View { now: Time(1), ..View::default() };
        for member in self.members() {
            let is_own = member.id == OWN.0;
            let state = if is_own { NodeState::Alive } else { NodeState::Suspected { since: Time(1) } };
            view.nodes.insert(NodeId(member.id), NodeView { state, ..NodeView::default() });
        }
        view
    }

    /// Makes a keyspace on a node.
    pub(super) fn create(&self, name: &str, node: NodeId) {
        self.create_on(name, &[node]);
    }

    /// Makes a keyspace on some nodes.
    pub(super) fn create_on(&self, name: &str, nodes: &[NodeId]) {
        let wanted = KeyspaceRecord { name: name.to_owned(), ..KeyspaceRecord::default() };
        self.change(|catalog| catalog.create(&wanted, nodes).unwrap());
    }

    /// Moves a keyspace to a node.
    pub(super) fn place(&self, name: &str, node: NodeId) {
        self.change(|catalog| {
            let group = catalog.keyspace(name).unwrap().group_id();
            catalog.place(group, &[node], "a test").unwrap()
        });
    }

    /// Changes what the catalog says of a keyspace.
    pub(super) fn alter(&self, name: &str, change: impl FnOnce(&mut KeyspaceRecord)) {
        self.change(|catalog| {
            let mut record = catalog.keyspace(name).unwrap();
            change(&mut record);
            catalog.alter(&record).unwrap()
        });
    }

    /// Deletes a keyspace.
    pub(super) fn delete(&self, name: &str) {
        self.change(|catalog| catalog.delete(name).unwrap());
    }

    fn change(&self, command: impl FnOnce(&Catalog) -> Command) {
        let command = command(&self.0.catalog.read());
        self.apply(ROOT_GROUP, command).unwrap();
    }

    fn group(&self, group: GroupId) -> Option<Arc<Group>> {
        self.0.groups.read().get(&group).cloned()
    }

    fn apply(&self, group: GroupId, command: Command) -> Result<Written, Unavailable> {
        let there = self.group(group).ok_or(Unavailable::NoSuchGroup)?;
        let mut applied = there.applied.lock();
        *applied += 1;
        let stamp_ms = *self.0.clock_ms.lock();
        let position = Applied { term: TERM.0, index: *applied, checksum: 0, stamp_ms };
        let response = there.keyspace.apply(position, vec![command]).pop().unwrap();
        self.0.applied.notify_one();
        if group == ROOT_GROUP {
            self.follow_catalog(Catalog::read(&there.keyspace).unwrap());
        }
        Ok(Written { response, term: TERM })
    }

    fn follow_catalog(&self, catalog: Catalog) {
        // In the order of those who ask for a group while they look at the catalog.
        let (mut known, mut groups) = (self.0.catalog.write(), self.0.groups.write());
        let own = self.0.identity.member_id;
        let is_here = |group: &GroupId| {
            catalog.placement(*group).is_some_and(|placement| placement.record.replica_on(own).is_some())
        };
        groups.retain(|group, _| *group <= DEFAULT_GROUP || is_here(group));
        for (group, placement) in catalog.placements() {
            if placement.record.replica_on(own).is_some() {
                groups.entry(group).or_insert_with(|| Group::new(group));
            }
        }
        *known = catalog;
    }

    /// The last stamp in the log of `default`.
    pub(super) fn logged_ms(&self) -> u64 {
        self.group(DEFAULT_GROUP).unwrap().keyspace.applied().stamp_ms
    }

    /// Waits until that is `stamp_ms` or later.
    pub(super) async fn logged(&self, stamp_ms: u64) {
        while self.logged_ms() < stamp_ms {
            self.0.applied.notified().await;
        }
    }

    /// Another term began after what was written, and answers tell of that.
    pub(super) fn begin_term(&self) {
        self.0.terms_since.fetch_add(1, Ordering::Relaxed);
    }

    /// There is another leader.
    pub(super) fn change_leader(&self) {
        *self.0.clock_ms.lock() = self.logged_ms();
    }

    /// Lets time pass in the group.
    pub(super) fn advance_ms(&self, millis: u64) {
        *self.0.clock_ms.lock() += millis;
    }
}

impl Backend for TestBackend {
    async fn write(&self, group: GroupId, command: Command) -> Result<Written, Unavailable> {
        if let Some(failure) = *self.0.failure.lock() {
            return Err(failure);
        }
        if let Some(command) = self.0.before_write.lock().take() {
            self.apply_to_default(command);
        }
        let written = self.apply(group, command);
        if self.0.cannot_read_since_write.swap(false, Ordering::Relaxed) {
            self.set_cannot_read(true);
        }
        drop(self.0.answers.read().await);
        written
    }

    async fn read_barrier(&self, _: GroupId) -> Result<(), Unavailable> {
        if self.0.cannot_read.load(Ordering::Relaxed) {
            return Err(Unavailable::LeaderChanged);
        }
        self.wake();
        if let Some(command) = self.0.before_reads.lock().pop_front().flatten() {
            self.apply_to_default(command);
        }
        self.0.failure.lock().map_or(Ok(()), Err)
    }

    fn keyspace(&self, group: GroupId) -> Option<Arc<Keyspace>> {
        if group == DEFAULT_GROUP && self.0.is_damaged.load(Ordering::Relaxed) {
            return None;
        }
        self.group(group).map(|group| Arc::clone(&group.keyspace))
    }

    fn status(&self, group: GroupId) -> Option<GroupStatus> {
        let applied = Index(*self.group(group)?.applied.lock());
        Some(GroupStatus {
            leader: self.0.leads.load(Ordering::Relaxed).then_some(self.0.identity.member_id),
            term: Term(TERM.0 + self.0.terms_since.load(Ordering::Relaxed)),
            commit: applied,
            applied,
            is_learner: self.0.learner.load(Ordering::Relaxed),
            is_voter: true,
            is_asleep: self.0.asleep.load(Ordering::Relaxed),
        })
    }

    fn group_clock_ms(&self, _: GroupId) -> u64 {
        *self.0.clock_ms.lock()
    }

    fn members(&self) -> Vec<etcdserverpb::Member> {
        let member = |id: NodeId, name: &str, client_url: &str, peer_url: &str| etcdserverpb::Member {
            id: id.0,
            name: name.to_owned(),
            peer_ur_ls: vec![peer_url.to_owned()],
            client_ur_ls: vec![client_url.to_owned()],
            is_learner: false,
        };
        let mut members = vec![member(OWN, "test", "http://127.0.0.1:2379", "http://127.0.0.1:2380")];
        if self.0.has_other.load(Ordering::Relaxed) {
            members.push(member(OTHER, "other", "http://127.0.0.2:2379", "http://127.0.0.2:2380"));
        }
        members
    }

    async fn lags(&self, _: GroupId) -> Result<Vec<(NodeId, u64)>, Unavailable> {
        Ok(vec![(NodeId(1), 0)])
    }

    async fn defragment(&self) -> Result<(), &'static str> {
        Ok(())
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::default()
    }

    fn with_catalog<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        look(&self.0.catalog.read())
    }

    fn settled(&self) -> i64 {
        i64::MAX
    }

    fn alive(&self) -> BTreeSet<NodeId> {
        self.0.others.lock().keys().copied().collect()
    }

    async fn connect(&self, node: NodeId) -> io::Result<Stream> {
        let address = self.0.others.lock().get(&node).copied();
        let address = address.ok_or_else(|| io::Error::from(io::ErrorKind::HostUnreachable))?;
        Ok(Stream::Plain(TcpStream::connect(address).await?))
    }

    fn elections(&self) -> Vec<hadron::Election> {
        let election = |group, term| hadron::Election { group, term, winner: 1, ..Default::default() };
        vec![election(0, 1), election(1, 1), election(1, 2)]
    }

    fn log_shares(&self) -> Vec<hadron::LogShares> {
        let shares = |group| hadron::LogShares { group, term: 2, leader: 1, ..Default::default() };
        vec![shares(0), shares(1)]
    }

    async fn transfer_leader(&self, _: GroupId, to: NodeId) -> Result<(), Unavailable> {
        if to == NodeId(1) { Ok(()) } else { Err(Unavailable::BadTransferTarget) }
    }

    fn reports(&self) -> BTreeMap<NodeId, Report> {
        self.standing().reports
    }

    fn standing(&self) -> Standing {
        let (view, policy) = self.outlook();
        let Heaviest { prefixes, clients, work } = self.0.hitters.take(9);
        // Two cores that are busy.
        let report = Report { short: vec![2.0], prefixes, clients, work, ..Report::default() };
        let (assessment, waiting) = (assess(&view, &policy), waiting(&view, &policy));
        Standing { assessment, waiting, view, reports: [(OWN, report)].into() }
    }

    fn outlook(&self) -> (View, Policy) {
        let view = self.0.view.lock().clone();
        (view.unwrap_or_else(|| self.unmeasured()), Policy::default())
    }

    fn count_read(&self, _: GroupId, _: usize) {}

    fn hitters(&self) -> &Hitters {
        &self.0.hitters
    }

    fn count_events(&self, _: GroupId, _: usize) {}

    fn show(&self, _: &Metrics) {}

    fn identity(&self) -> &Identity {
        &self.0.identity
    }
}

/// The nodes whose connections may stay.
type Nodes = Arc<watch::Sender<BTreeSet<NodeId>>>;

/// Takes connections of other nodes, as the transport does.
async fn accept_nodes(listener: TcpListener, sender: mpsc::Sender<PassedOn>, nodes: Nodes) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let _ = sender.send((Stream::Plain(socket), Presence::among(OTHER, &nodes))).await;
    }
}

/// A running server; stops when it is dropped.
pub(super) struct Harness {
    pub(super) backend: TestBackend,
    /// What the services of `default` share.
    pub(super) context: Arc<Context<TestBackend>>,
    pub(super) address: SocketAddr,
    /// Where other nodes pass calls on.
    passed_on: SocketAddr,
    nodes: Nodes,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A runtime for the client side of a test.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Harness {
    /// Starts a server on a free port.
    pub(super) fn start() -> Harness {
        let options = ServerOptions { threads: 2, ..ServerOptions::default() };
        Harness::start_with(options, Traffic::Everything)
    }

    /// Starts a server for this traffic on a free port.
    pub(super) fn start_with(options: ServerOptions, traffic: Traffic) -> Harness {
        Harness::start_at(options, |socket| vec![Listener { socket, traffic, tls: None, keyspace: None }])
    }

    /// Starts several nodes, with ids from 1, which pass calls on to each other.
    pub(super) fn start_pool(count: u64) -> Vec<Harness> {
        let options = || ServerOptions { threads: 2, ..ServerOptions::default() };
        let everything =
            |socket| vec![Listener { socket, traffic: Traffic::Everything, tls: None, keyspace: None }];
        let pool: Vec<Harness> =
            (1..=count).map(|id| Harness::start_node(NodeId(id), options(), everything)).collect();
        for (node, other) in pool.iter().flat_map(|node| pool.iter().map(move |other| (node, other))) {
            if node.id() != other.id() {
                node.backend.0.others.lock().insert(other.id(), other.passed_on);
            }
        }
        pool
    }

    /// The node's id.
    pub(super) fn id(&self) -> NodeId {
        self.backend.0.identity.member_id
    }

    /// Where other nodes pass calls on.
    pub(super) fn passed_on(&self) -> SocketAddr {
        self.passed_on
    }

    /// No other node is a member any more.
    pub(super) fn remove_nodes(&self) {
        self.nodes.send_replace(BTreeSet::new());
    }

    /// From now on another node takes calls that are passed on at this address, or is down.
    pub(super) fn set_other(&self, node: NodeId, address: Option<SocketAddr>) {
        let mut others = self.backend.0.others.lock();
        match address {
            Some(address) => others.insert(node, address),
            None => others.remove(&node),
        };
    }

    /// Starts a server whose first port is free, for these listeners.
    pub(super) fn start_at(
        options: ServerOptions,
        listeners: impl FnOnce(TcpListener) -> Vec<Listener>,
    ) -> Harness {
        Harness::start_node(OWN, options, listeners)
    }

    fn start_node(
        id: NodeId,
        options: ServerOptions,
        listeners: impl FnOnce(TcpListener) -> Vec<Listener>,
    ) -> Harness {
        let backend = TestBackend::new(id);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listeners = listeners(listener);
        let server = Server::new(backend.clone(), Arc::new(Metrics::default()), options);
        let context = Arc::clone(&server.context);
        let peers = TcpListener::bind("127.0.0.1:0").unwrap();
        let passed_on = peers.local_addr().unwrap();
        peers.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let nodes = Nodes::default();
        let of_others = Arc::clone(&nodes);
        let thread = std::thread::spawn(move || {
            let shutdown = async { stopped.await.unwrap_or_default() };
            runtime().block_on(async {
                let (sender, receiver) = mpsc::channel(16);
                tokio::spawn(accept_nodes(peers, sender, of_others));
                server.serve(listeners, receiver, shutdown).await.unwrap();
            });
        });
        Harness { backend, context, address, passed_on, nodes, stop: Some(stop), thread: Some(thread) }
    }

    /// Runs a client's side of a conversation to its end.
    pub(super) fn run<T>(&self, conversation: impl AsyncFnOnce(Channel) -> T) -> T {
        let address = format!("http://{}", self.address);
        runtime().block_on(async {
            let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
            conversation(channel).await
        })
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok(), "the server stopped cleanly");
        }
    }
}
