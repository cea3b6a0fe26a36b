//! A server over a single keyspace in memory, and a client for it.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use hadron_consensus::{DEFAULT_GROUP, GroupId, Index, NodeId, Term};
use hadron_keyspace::{Applied, Command, Keyspace, Options};
use hadron_node::Pool;
use hadron_proto::{etcdserverpb, hadron};
use hadron_storage::engine::ModelEngine;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use crate::api::{
    Backend, GroupStatus, Identity, Listener, Server, ServerOptions, Traffic, Unavailable, Written,
};
use crate::metrics::Metrics;

/// A node without peers, log or clock: what is written is applied at once.
#[derive(Clone)]
pub(super) struct TestBackend(Arc<Inner>);

struct Inner {
    keyspace: Arc<Keyspace>,
    applied: Mutex<u64>,
    clock_ms: AtomicU64,
    leads: AtomicBool,
    learner: AtomicBool,
    /// When set, writes and barriers fail so.
    failure: Mutex<Option<Unavailable>>,
    identity: Identity,
}

const TERM: Term = Term(2);

impl TestBackend {
    fn new() -> TestBackend {
        let engine = Arc::new(ModelEngine::new());
        let keyspace = Keyspace::open(engine, DEFAULT_GROUP.0, Options::default()).unwrap();
        TestBackend(Arc::new(Inner {
            keyspace,
            applied: Mutex::new(0),
            clock_ms: AtomicU64::new(1000),
            leads: AtomicBool::new(true),
            learner: AtomicBool::new(false),
            failure: Mutex::new(None),
            identity: Identity::new(7, NodeId(1), "test"),
        }))
    }

    /// Makes writes and linearizable reads fail, or succeed again.
    pub(super) fn fail_with(&self, failure: Option<Unavailable>) {
        *self.0.failure.lock() = failure;
    }

    /// Takes the leader away, or gives it back.
    pub(super) fn set_leader(&self, leads: bool) {
        self.0.leads.store(leads, Ordering::Relaxed);
    }

    /// Makes the node a learner, or a voter again.
    pub(super) fn set_learner(&self, learner: bool) {
        self.0.learner.store(learner, Ordering::Relaxed);
    }

    /// Lets time pass in the group.
    pub(super) fn advance_ms(&self, millis: u64) {
        self.0.clock_ms.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Backend for TestBackend {
    async fn write(&self, _: GroupId, command: Command) -> Result<Written, Unavailable> {
        if let Some(failure) = *self.0.failure.lock() {
            return Err(failure);
        }
        let mut applied = self.0.applied.lock();
        *applied += 1;
        let stamp_ms = self.0.clock_ms.load(Ordering::Relaxed);
        let position = Applied { term: TERM.0, index: *applied, checksum: 0, stamp_ms };
        let response = self.0.keyspace.apply(position, vec![command]).pop().unwrap();
        Ok(Written { response, term: TERM })
    }

    async fn read_barrier(&self, _: GroupId) -> Result<(), Unavailable> {
        self.0.failure.lock().map_or(Ok(()), Err)
    }

    fn keyspace(&self, group: GroupId) -> Option<Arc<Keyspace>> {
        (group == DEFAULT_GROUP).then(|| Arc::clone(&self.0.keyspace))
    }

    fn status(&self, _: GroupId) -> Option<GroupStatus> {
        let applied = Index(*self.0.applied.lock());
        Some(GroupStatus {
            leader: self.0.leads.load(Ordering::Relaxed).then_some(NodeId(1)),
            term: TERM,
            commit: applied,
            applied,
            is_learner: self.0.learner.load(Ordering::Relaxed),
        })
    }

    fn group_clock_ms(&self, _: GroupId) -> u64 {
        self.0.clock_ms.load(Ordering::Relaxed)
    }

    fn members(&self) -> Vec<etcdserverpb::Member> {
        vec![etcdserverpb::Member {
            id: 1,
            name: "test".to_owned(),
            peer_ur_ls: vec!["http://127.0.0.1:2380".to_owned()],
            client_ur_ls: vec!["http://127.0.0.1:2379".to_owned()],
            is_learner: false,
        }]
    }

    async fn lags(&self, _: GroupId) -> Result<Vec<(NodeId, u64)>, Unavailable> {
        Ok(vec![(NodeId(1), 0)])
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::default()
    }

    fn settled(&self) -> i64 {
        i64::MAX
    }

    fn alive(&self) -> BTreeSet<NodeId> {
        BTreeSet::new()
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

    fn identity(&self) -> &Identity {
        &self.0.identity
    }
}

/// A running server; stops when it is dropped.
pub(super) struct Harness {
    pub(super) backend: TestBackend,
    pub(super) address: SocketAddr,
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
        let backend = TestBackend::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(backend.clone(), Arc::new(Metrics::default()), options);
        let (stop, stopped) = oneshot::channel();
        let thread =
            std::thread::spawn(move || {
                let shutdown = async { stopped.await.unwrap_or_default() };
                runtime()
                    .block_on(server.serve(
                        vec![Listener { socket: listener, traffic, tls: None, keyspace: None }],
                        shutdown,
                    ))
                    .unwrap();
            });
        Harness { backend, address, stop: Some(stop), thread: Some(thread) }
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
