//! Sockets and threads of the client port.
//!
//! One acceptor hands each connection to one of a few threads, in turn; each thread runs a runtime of its own that
//! never shares work with another. A call is thereby answered on the thread that read it, and the only wake-up between
//! threads on its way is the one to the node's loop and back.
//!
//! One port speaks HTTP/2 with prior knowledge (gRPC) and HTTP/1 (pages, the JSON gateway); the first bytes of a connection
//! tell which. [`Traffic`] says what of it a listener is for.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::net::TcpStream as StdTcpStream;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use opentelemetry_sdk::trace::SdkTracer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::access::Access;
use super::apart::Apart;
use super::authority::{Mended, PREFACE};
use super::backend::Backend;
use super::beside;
use super::caller::CommonName;
use super::choice::{Entrance, KeyspaceOptions};
use super::context::{Context, Limits, cluster_id};
use super::front::{Connection, Front};
use super::membership::MembershipOptions;
use super::passed_on;
use super::passwords::Passwords;
use super::rate::Rate;
use super::snapshot;
use super::socket::{End, Socket};
use super::span::Caller;
use super::tokens::Tokens;
use super::unsent::Unsent;
use crate::metrics::Metrics;
use crate::tls::{ServerTls, Stream};
use crate::transport::{LOOK_UPS_MAX, Presence};
use hadron_consensus::DEFAULT_GROUP;
use hadron_node::DEFAULT_KEYSPACE;

/// Window of one stream: a request of the largest size fits, so that no call waits for a window update.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How much of a stream's answers is buffered before the stream has to wait: bounds the memory of a slow watcher.
const STREAM_SEND_BUFFER_BYTES: usize = 256 * 1024;
/// Bytes of a call's headers: large tokens and what traces carry along fit, and nobody fills memory with them.
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// A client that gives many calls up at once (deadlines under load) is no attacker.
const RESET_STREAMS_MAX: usize = 10_000;
/// How long an HTTP/1 connection may wait for its next request, or take for its head: as long as etcd gives it for the head. Clients keep
/// connections for longer than they ask in.
const HTTP1_HEADER_TIMEOUT: Duration = Duration::from_secs(300);
/// How long calls that are being answered may take when the server stops.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// A connection that is still for so long is asked whether there is still somebody, and as often after that; Linux asks nine times.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Of a worker's runtime that look at the files of certificates: those for clients, and those for other nodes.
const FILES_THREADS: usize = 2;
/// Connections that wait for a busy thread; beyond, the acceptor waits and the kernel's queue fills.
const HANDED_OVER_MAX: usize = 256;
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections to the pages for metrics at a time: they have places of their own, so that clients cannot hide what is wrong.
pub(crate) const METRICS_CONNECTIONS_MAX: usize = 16;
/// That there is no place for a connection is said so often at most.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// How the client port is served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Threads that serve connections; at least 1.
    pub threads: usize,
    /// How clients choose keyspaces.
    pub keyspaces: KeyspaceOptions,
    /// What one request may ask for.
    pub limits: Limits,
    /// How the pool's members may be changed.
    pub membership: MembershipOptions,
    /// How often a watcher that asked for it is told how far it is while nothing happens. Each stream adds up to a
    /// tenth, so that they do not all speak at once.
    pub watch_progress_interval: Duration,
    /// Time without a leader before an election.
    pub election_timeout: Duration,
    /// Serve the JSON gateway below `/v3/`.
    pub gateway: bool,
    /// Which web pages may use the port.
    pub access: Access,
    /// What connections may do, and when they are given up.
    pub connections: Connections,
    /// Connections that clients have at a time, those included that are made to other nodes for them; further ones wait.
    pub connections_max: usize,
    /// Where backups are built while they are sent. There must be room for all data.
    pub snapshot_dir: PathBuf,
    /// Calls that take so long are logged; `None` for none.
    pub slow_call: Option<Duration>,
    /// Which tokens users get.
    pub tokens: Arc<Tokens>,
    /// What begins the spans of calls; `None` on a node that does not trace.
    pub tracer: Option<SdkTracer>,
    /// The cost of hashing passwords: the binary logarithm of the number of rounds, 4 to 31.
    pub bcrypt_cost: u32,
}

/// What a client's connection may do, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Most calls at a time.
    pub streams_max: u32,
    /// Time without traffic before the client is pinged, which finds connections whose other end vanished; `None` for never.
    pub keepalive_interval: Option<Duration>,
    /// Time to wait for the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Time to wait until a client has said what it speaks. The handshake of TLS has a time-out of its own.
    pub first_word_timeout: Duration,
}

impl Default for Connections {
    /// etcd's defaults.
    fn default() -> Connections {
        Connections {
            streams_max: u32::MAX,
            keepalive_interval: Some(Duration::from_secs(2 * 60 * 60)),
            keepalive_timeout: Duration::from_secs(20),
            first_word_timeout: Duration::from_secs(30),
        }
    }
}

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// gRPC, the JSON gateway and the pages.
    Everything,
    /// gRPC only: the client URLs when there are others for HTTP.
    Grpc,
    /// The JSON gateway and the pages.
    Http,
    /// Metrics and health.
    Metrics,
}

/// A bound socket and what is served there.
pub struct Listener {
    /// Listening already.
    pub socket: StdTcpListener,
    /// What is served to whoever connects.
    pub traffic: Traffic,
    /// With it, connections are encrypted.
    pub tls: Option<Arc<ServerTls>>,
    /// The keyspace that is served there; `None` if clients choose.
    pub keyspace: Option<Arc<str>>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Listener { socket, traffic, tls, keyspace } = self;
        write!(f, "{socket:?} for {traffic:?}, TLS: {}, keyspace: {keyspace:?}", tls.is_some())
    }
}

/// What each connection of a client needs, and each one that is made for clients: the descriptors that are left are for the node's files.
type Places = Arc<Semaphore>;

/// A connection on its way to a worker, and its place.
type Placed = (Accepted, OwnedSemaphorePermit);

/// Whose a connection is.
enum Accepted {
    /// A client's.
    Client(StdTcpStream, Manner),
    /// That of another node, which passes calls of its clients on.
    Node(PassedOn),
}

/// A connection of another node, and how long that is a member.
pub type PassedOn = (Stream, Presence);

/// etcd's interval of progress notifications.
const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// etcd's election timeout.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

impl Default for ServerOptions {
    /// A thread for every two cores, so that the node's own threads have the rest; etcd's limits.
    fn default() -> ServerOptions {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        ServerOptions {
            threads: (cores / 2).max(1),
            keyspaces: KeyspaceOptions::default(),
            limits: Limits::default(),
            membership: MembershipOptions::default(),
            watch_progress_interval: WATCH_PROGRESS_INTERVAL,
            election_timeout: ELECTION_TIMEOUT,
            gateway: true,
            access: Access::default(),
            connections: Connections::default(),
            connections_max: Semaphore::MAX_PERMITS,
            snapshot_dir: std::env::temp_dir(),
            slow_call: None,
            tokens: Arc::default(),
            tracer: None,
            bcrypt_cost: 10,
        }
    }
}

/// The client port: etcd's gRPC services and the plain pages, over a [`Backend`].
pub struct Server<B: Backend> {
    front: Arc<Front<B>>,
    pub(super) context: Arc<Context<B>>,
    metrics: Arc<Metrics>,
    threads: usize,
    connections: Connections,
    places: Places,
}

impl<B: Backend> Server<B> {
    /// A server that is not listening yet.
    pub fn new(backend: B, metrics: Arc<Metrics>, options: ServerOptions) -> Server<B> {
        let threads = options.threads.max(1);
        let context = Arc::new(Context {
            name: DEFAULT_KEYSPACE.into(),
            group: DEFAULT_GROUP,
            cluster_id: cluster_id(backend.identity().cluster_id, DEFAULT_GROUP),
            rate: Rate::default(),
            backend,
            limits: options.limits,
            membership: options.membership,
            watch_progress_interval: options.watch_progress_interval,
            election_timeout: options.election_timeout,
            snapshot_dir: options.snapshot_dir.into(),
            snapshots: Arc::new(Semaphore::new(snapshot::AT_ONCE)),
            backups: Apart::new(),
            calculations: Apart::new(),
            tokens: options.tokens,
            tokens_taken: Arc::default(),
            passwords: Passwords::new(options.bcrypt_cost),
            waking: Arc::default(),
            metrics: Arc::clone(&metrics),
        });
        let places = Arc::new(Semaphore::new(options.connections_max.min(Semaphore::MAX_PERMITS)));
        Server {
            front: Arc::new(Front::new(
                Arc::clone(&context),
                Arc::clone(&places),
                options.keyspaces,
                options.gateway,
                options.access,
                options.slow_call,
                options.tracer,
            )),
            context,
            metrics,
            threads,
            connections: options.connections,
            places,
        }
    }

    /// Serves the listeners, and the connections of other nodes that pass calls on, until `shutdown` completes, then lets running calls
    /// finish for a moment (streams, which have no end of their own, are cut) and returns when all threads of the server have ended.
    ///
    /// Runs on any tokio runtime with IO and time enabled. Fails only if a listener or a thread cannot be set up.
    pub async fn serve(
        self,
        listeners: Vec<Listener>,
        passed_on: mpsc::Receiver<PassedOn>,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let listeners = listeners.into_iter().map(into_tokio).collect::<io::Result<Vec<_>>>()?;
        let (ended, mut all_ended) = mpsc::channel::<Infallible>(1);
        let mut workers = Vec::with_capacity(self.threads);
        for number in 0..self.threads {
            workers.push(self.spawn_worker(number, ended.clone())?);
        }
        drop(ended);
        let mut acceptors = JoinSet::new();
        let of_metrics = Arc::new(Semaphore::new(METRICS_CONNECTIONS_MAX));
        for (listener, manner) in listeners {
            let places = if manner.traffic == Traffic::Metrics { &of_metrics } else { &self.places };
            acceptors.spawn(accept(listener, manner, Arc::clone(places), workers.clone()));
        }
        acceptors.spawn(take(passed_on, Arc::clone(&self.places), workers.clone()));
        // The workers stop when the last acceptor, and with it the last sender, is gone.
        drop(workers);
        let catching_up = async {
            self.context.catch_up().await;
            std::future::pending().await
        };
        let promoting = async {
            match self.context.membership.promotes {
                true => self.context.promote_learners().await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = promoting => {}
            () = catching_up => {}
        }
        acceptors.shutdown().await;
        while all_ended.recv().await.is_some() {}
        Ok(())
    }

    fn spawn_worker(
        &self,
        number: usize,
        ended: mpsc::Sender<Infallible>,
    ) -> io::Result<mpsc::Sender<Placed>> {
        let (sender, sockets) = mpsc::channel(HANDED_OVER_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(beside::THREADS + LOOK_UPS_MAX + FILES_THREADS)
            .build()?;
        let worker = Worker {
            front: Arc::clone(&self.front),
            metrics: Arc::clone(&self.metrics),
            connections: self.connections,
        };
        thread::Builder::new().name(format!("front-{number}")).spawn(move || {
            runtime.block_on(worker.run(sockets));
            runtime.shutdown_timeout(STOP_GRACE);
            drop(ended);
        })?;
        Ok(sender)
    }
}

/// What a worker is told of each connection beside its socket.
#[derive(Clone)]
struct Manner {
    traffic: Traffic,
    tls: Option<Arc<ServerTls>>,
    keyspace: Option<Arc<str>>,
}

fn into_tokio(listener: Listener) -> io::Result<(TcpListener, Manner)> {
    let Listener { socket, traffic, tls, keyspace } = listener;
    socket.set_nonblocking(true)?;
    Ok((TcpListener::from_std(socket)?, Manner { traffic, tls, keyspace }))
}

/// Hands connections to the workers in turn, until it is aborted. While there is no place for one, it waits here and later ones in the
/// kernel's queue.
async fn accept(listener: TcpListener, manner: Manner, places: Places, workers: Vec<mpsc::Sender<Placed>>) {
    let mut told = Told::default();
    for worker in workers.iter().cycle() {
        let socket = accept_one(&listener, &mut told).await;
        if places.available_permits() == 0 && told.is_due() {
            tracing::warn!(
                "a client connection waits until another one ends: as many are open as the limit of open files allows beside \
                 the node's own files"
            );
        }
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // A worker only goes away when the server stops.
        if worker.send((Accepted::Client(socket, manner.clone()), place)).await.is_err() {
            return;
        }
    }
}

/// Hands connections of other nodes to the workers in turn, as long as there may be more. Without a place they are hung up: the other node
/// says so to its client, or asks another one.
async fn take(mut passed_on: mpsc::Receiver<PassedOn>, places: Places, workers: Vec<mpsc::Sender<Placed>>) {
    for worker in workers.iter().cycle() {
        let (stream, place) = loop {
            let Some(stream) = passed_on.recv().await else { return };
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                break (stream, place);
            }
        };
        if worker.send((Accepted::Node(stream), place)).await.is_err() {
            return;
        }
    }
}

async fn accept_one(listener: &TcpListener, told: &mut Told) -> StdTcpStream {
    loop {
        match listener.accept().await.and_then(|(socket, _)| socket.into_std()) {
            Ok(socket) => return socket,
            Err(error) => {
                if told.is_due() {
                    tracing::warn!(%error, "cannot accept a client connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// When something was said that need not be said each time.
#[derive(Default)]
struct Told(Option<Instant>);

impl Told {
    fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() >= TOLD_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

/// One thread's share of the connections.
struct Worker<B: Backend> {
    front: Arc<Front<B>>,
    metrics: Arc<Metrics>,
    connections: Connections,
}

impl<B: Backend> Worker<B> {
    async fn run(self, mut sockets: mpsc::Receiver<Placed>) {
        let builder = connection_builder(self.connections);
        let (stop, stopping) = watch::channel(());
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                socket = sockets.recv() => {
                    let Some(placed) = socket else { break };
                    let front = Arc::clone(&self.front);
                    let builder = (builder.clone(), self.connections.first_word_timeout);
                    let metrics = Arc::clone(&self.metrics);
                    connections.spawn(serve_connection(builder, placed, front, metrics, stopping.clone()));
                    self.metrics.client_connections.add(1.0);
                }
                Some(_) = connections.join_next() => self.metrics.client_connections.add(-1.0),
            }
        }
        drop(stop);
        let drained = async { while connections.join_next().await.is_some() {} };
        // Whoever is still connected afterwards is cut off together with the runtime.
        let _ = tokio::time::timeout(STOP_GRACE, drained).await;
    }
}

/// Has those who connect to a listener asked whether they are still there. Whoever vanished without a word, with its machine or behind a router that forgot
/// it, holds its place for some five minutes: as with etcd.
pub(crate) fn ask_whether_there(listener: &SockRef<'_>) -> io::Result<()> {
    listener.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))
}

/// How connections of clients are spoken to.
pub(crate) fn connection_builder(connections: Connections) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(STREAM_SEND_BUFFER_BYTES)
        .max_concurrent_streams(connections.streams_max)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .keep_alive_interval(connections.keepalive_interval)
        .keep_alive_timeout(connections.keepalive_timeout);
    // What the end of a client's half means is decided in `socket`.
    builder.http1().timer(TokioTimer::new()).half_close(false).header_read_timeout(HTTP1_HEADER_TIMEOUT);
    builder
}

/// Waits for a client's first word, or shakes hands with it; `None` if nothing came of that in time.
pub(crate) async fn open(
    socket: StdTcpStream,
    tls: Option<&ServerTls>,
    first_word_timeout: Duration,
) -> Option<Stream> {
    let address = socket.peer_addr().ok();
    // Answers are small and clients wait for them: never hold one back for the next.
    let opened = match (socket.set_nodelay(true).and_then(|()| TcpStream::from_std(socket)), tls) {
        (Ok(socket), Some(tls)) => tls.accept(socket).await,
        (Ok(socket), None) => match tokio::time::timeout(first_word_timeout, socket.readable()).await {
            Ok(readable) => readable.map(|()| Stream::Plain(socket)),
            Err(elapsed) => Err(elapsed.into()),
        },
        (Err(error), _) => Err(error),
    };
    let error = match opened {
        Ok(stream) => return Some(stream),
        Err(error) => error,
    };
    let remote_addr = address.map(|address| address.to_string()).unwrap_or_default();
    match tls.is_some() && error.kind() != io::ErrorKind::UnexpectedEof {
        true => tracing::warn!(remote_addr, %error, "rejected connection on client endpoint"),
        // Probes of load balancers connect and hang up all day.
        false => tracing::debug!(remote_addr, %error, "client connection lost before its first byte"),
    }
    None
}

/// A connection whose other end is known.
struct Opened {
    stream: Stream,
    traffic: Traffic,
    entrance: Entrance,
    /// The user that the client's certificate names.
    user: Option<CommonName>,
    /// The client's address.
    caller: Option<Caller>,
    /// `None` for a client.
    presence: Option<Presence>,
}

impl Opened {
    /// Waits for the first word of whoever connected; `None` if nothing came of that.
    async fn new<B: Backend>(
        accepted: Accepted,
        first_word_timeout: Duration,
        front: &Front<B>,
    ) -> Option<Opened> {
        let (socket, Manner { traffic, tls, keyspace }) = match accepted {
            Accepted::Client(socket, manner) => (socket, manner),
            Accepted::Node((stream, presence)) => {
                let (traffic, entrance) = (Traffic::Everything, Entrance::of_node());
                let presence = Some(presence);
                return Some(Opened { stream, traffic, entrance, user: None, caller: None, presence });
            }
        };
        let caller = socket.peer_addr().ok().map(Caller);
        let stream = open(socket, tls.as_deref(), first_word_timeout).await?;
        let user = tls.and_then(|tls| tls.user_of(&stream)).map(|name| CommonName(name.into()));
        let entrance = Entrance::new(&stream, keyspace.as_ref(), front.keyspace_options());
        Some(Opened { stream, traffic, entrance, user, caller, presence: None })
    }
}

/// Tells with a request what is known of who sent it.
fn introduce(request: &mut http::Request<Incoming>, user: Option<CommonName>, caller: Option<Caller>) {
    if let Some(name) = user {
        request.extensions_mut().insert(name);
    }
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
}

/// Ends if a client says for so long no more than what every client might say first. Whoever says more has the time-outs of what it speaks.
pub(crate) async fn silence(end: End, first_word_timeout: Duration) {
    tokio::time::sleep(first_word_timeout).await;
    if end.received() >= PREFACE.len() {
        std::future::pending::<()>().await;
    }
}

/// Returns when the node that a connection is of is no member any more: it may say in whose name its calls are.
async fn removed(presence: Option<Presence>) {
    match presence {
        Some(presence) => presence.ended().await,
        None => std::future::pending().await,
    }
}

async fn serve_connection<B: Backend>(
    (builder, first_word_timeout): (auto::Builder<TokioExecutor>, Duration),
    (accepted, _place): Placed,
    front: Arc<Front<B>>,
    metrics: Arc<Metrics>,
    mut stopping: watch::Receiver<()>,
) {
    let opened = tokio::select! {
        opened = Opened::new(accepted, first_word_timeout, &front) => opened,
        _ = stopping.changed() => return,
    };
    let Some(Opened { stream, traffic, entrance, user, caller, presence }) = opened else { return };
    let (socket, end) = Socket::new(stream, metrics);
    let silence = silence(end.clone(), first_word_timeout);
    let connection = Connection { traffic, entrance, end, unsent: Unsent::default(), links: Arc::default() };
    let service = service_fn(|mut request: http::Request<Incoming>| {
        match connection.entrance.is_passed_on() {
            false => introduce(&mut request, user.clone(), caller),
            true => {
                let headers = request.headers();
                let (user, caller) = (passed_on::user(headers), passed_on::from(headers));
                introduce(&mut request, user, caller);
            }
        }
        front.answer(request, &connection)
    });
    let socket = TokioIo::new(Mended::new(socket));
    let mut connection = pin!(builder.serve_connection(socket, service));
    let result = tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = silence => return,
        () = removed(presence) => return,
        _ = stopping.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "client connection failed");
    }
}
