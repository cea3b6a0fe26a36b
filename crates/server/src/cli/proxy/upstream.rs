//! The nodes behind the proxy, and calls sent to them in turn.
//!
//! Each client has connections of its own to the nodes, made when they are needed and passed on to others when it leaves: a node
//! makes no more answers for a connection that does not take those it has, so one slow client would hold up all that share one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::header::{HOST, HeaderValue, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::Status;
use tracing::{info, warn};

use super::messages::AnyBody;
use crate::client::Security;
use crate::client::dial;
use crate::client::endpoint_parts;
use crate::tls::ClientTls;

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node that could not be connected is left alone.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// What a client that reads slowly may have waiting for it.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same of all that it asked of one node.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// A client that gives many calls up at once is no reason to give the connection up.
const RESET_STREAMS_MAX: usize = 10_000;
/// Connections to a node that are kept for clients to come.
const IDLE_MAX: usize = 16;

/// How connections are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keepalive {
    /// Time without traffic before a node is pinged; `None` for never.
    pub(super) interval: Option<Duration>,
    /// Time to wait for its answer.
    pub(super) timeout: Duration,
    /// Whether that is done without calls too.
    pub(super) while_idle: bool,
}

/// The nodes.
pub(super) struct Upstream {
    all: Mutex<Vec<Arc<Node>>>,
    next: AtomicUsize,
    security: Security,
    keepalive: Keepalive,
}

struct Node {
    /// As it was given.
    endpoint: String,
    authority: Authority,
    tls: Option<Arc<ClientTls>>,
    /// Connections that no client has.
    idle: Mutex<Vec<Sender>>,
    /// When it could not be connected last, and why; `None` since it could.
    failed: Mutex<Option<(Instant, String)>>,
}

/// Sends calls over one connection.
type Sender = http2::SendRequest<AnyBody>;

/// The connections that one client has.
#[derive(Default)]
pub(super) struct Links(Mutex<Vec<Arc<Link>>>);

/// The connection to a node. It goes back there when it is dropped.
struct Link {
    node: Arc<Node>,
    /// Whoever holds the lock connects.
    sender: tokio::sync::Mutex<Option<Sender>>,
}

impl Upstream {
    /// # Errors
    /// What is wrong with the endpoints or the files, in words.
    pub(super) fn new(
        endpoints: &[String],
        security: Security,
        keepalive: Keepalive,
    ) -> Result<Upstream, String> {
        let nodes = endpoints.iter().map(|endpoint| Node::new(endpoint, &security).map(Arc::new));
        let all = Mutex::new(nodes.collect::<Result<_, _>>()?);
        Ok(Upstream { all, next: AtomicUsize::new(0), security, keepalive })
    }

    /// The endpoints.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.all.lock().iter().map(|node| node.endpoint.clone()).collect()
    }

    /// From now on these are the endpoints. Connections to those that stay are kept.
    pub(super) fn set_endpoints(&self, endpoints: &[String]) {
        let mut all = self.all.lock();
        if all.iter().map(|node| &node.endpoint).eq(endpoints) {
            return;
        }
        let known = |endpoint: &String| all.iter().find(|node| node.endpoint == *endpoint).cloned();
        let node = |endpoint: &String| match known(endpoint) {
            Some(node) => Some(node),
            None => Node::new(endpoint, &self.security)
                .map(Arc::new)
                .map_err(|error| warn!(error, "a member's URL cannot be used"))
                .ok(),
        };
        let nodes: Vec<Arc<Node>> = endpoints.iter().filter_map(node).collect();
        if !nodes.is_empty() {
            info!(endpoints = endpoints.join(","), "the members changed");
            *all = nodes;
        }
    }

    /// Sends a call to the next node that takes it. It is sent to another one only if it certainly was not sent.
    ///
    /// # Errors
    /// No node could be connected, or the one that it was sent to did not answer.
    pub(super) async fn send(
        &self,
        mut request: Request<AnyBody>,
        links: &Links,
    ) -> Result<Response<Incoming>, Status> {
        let mut attempts = Vec::new();
        for node in self.in_turn() {
            let mut sender = match links.to(&node, self.keepalive).await {
                Ok(sender) => sender,
                Err(error) => {
                    attempts.push(format!("{}: {error}", node.endpoint));
                    continue;
                }
            };
            node.address(&mut request);
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            match error.take_message() {
                Some(unsent) => request = unsent,
                None => {
                    let text = format!("{} did not answer: {}", node.endpoint, error.into_error());
                    return Err(Status::unavailable(text));
                }
            }
            attempts.push(format!("{}: the connection was lost", node.endpoint));
        }
        Err(Status::unavailable(format!("no node can be connected ({})", attempts.join("; "))))
    }

    /// All nodes, those last that could not be connected a moment ago: they only say why.
    fn in_turn(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.all.lock().clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % nodes.len().max(1);
        nodes.rotate_left(first);
        let (mut in_turn, mut down): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| !node.is_down());
        in_turn.append(&mut down);
        in_turn
    }
}

impl Links {
    /// Something that sends calls to the node.
    async fn to(&self, node: &Arc<Node>, keepalive: Keepalive) -> Result<Sender, String> {
        let link = self.link(node);
        let mut sender = link.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        Ok(sender.insert(node.sender(keepalive).await?).clone())
    }

    fn link(&self, node: &Arc<Node>) -> Arc<Link> {
        let mut links = self.0.lock();
        if let Some(link) = links.iter().find(|link| Arc::ptr_eq(&link.node, node)) {
            return Arc::clone(link);
        }
        let link = Arc::new(Link { node: Arc::clone(node), sender: tokio::sync::Mutex::default() });
        links.push(Arc::clone(&link));
        link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(sender) = self.sender.get_mut().take().filter(|sender| !sender.is_closed()) else { return };
        let mut idle = self.node.idle.lock();
        idle.retain(|sender| !sender.is_closed());
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
    }
}

impl Node {
    fn new(endpoint: &str, security: &Security) -> Result<Node, String> {
        let (is_https, authority) =
            endpoint_parts(endpoint).map_err(|error| format!("endpoint {endpoint:?}: {error}"))?;
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = authority.parse::<Authority>().ok().filter(|_| has_port);
        let authority = authority.ok_or_else(|| format!("endpoint {endpoint:?}: expected HOST:PORT"))?;
        let tls = security.of(is_https)?;
        let (idle, failed) = (Mutex::default(), Mutex::default());
        Ok(Node { endpoint: endpoint.to_owned(), authority, tls, idle, failed })
    }

    fn is_down(&self) -> bool {
        self.failed.lock().as_ref().is_some_and(|(since, _)| since.elapsed() < RETRY_DELAY)
    }

    /// A connection that no client has, or a new one.
    async fn sender(&self, keepalive: Keepalive) -> Result<Sender, String> {
        let idle = std::iter::from_fn(|| self.idle.lock().pop()).find(|sender| !sender.is_closed());
        if let Some(sender) = idle {
            return Ok(sender);
        }
        if let Some((_, reason)) =
            self.failed.lock().as_ref().filter(|(since, _)| since.elapsed() < RETRY_DELAY)
        {
            return Err(reason.clone());
        }
        let connected = timeout(CONNECT_TIMEOUT, self.connect(keepalive)).await;
        let connected = connected.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let mut failed = self.failed.lock();
        match connected {
            Ok(sender) => {
                if failed.take().is_some() {
                    info!(endpoint = self.endpoint, "activated");
                }
                Ok(sender)
            }
            Err(error) => {
                if failed.is_none() {
                    warn!(endpoint = self.endpoint, %error, "deactivated endpoint");
                }
                *failed = Some((Instant::now(), error.to_string()));
                Err(error.to_string())
            }
        }
    }

    async fn connect(&self, keepalive: Keepalive) -> io::Result<Sender> {
        let stream = dial(self.authority.to_string(), self.tls.clone()).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_reset_streams(RESET_STREAMS_MAX)
            .keep_alive_interval(keepalive.interval)
            .keep_alive_timeout(keepalive.timeout)
            .keep_alive_while_idle(keepalive.while_idle)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        let endpoint = self.endpoint.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                warn!(endpoint, %error, "the connection to a node was lost");
            }
        });
        Ok(sender)
    }

    /// Makes the request one to this node.
    fn address<B>(&self, request: &mut Request<B>) {
        let scheme = if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let path = request.uri().path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let parts = Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(path);
        if let Ok(uri) = parts.build() {
            *request.uri_mut() = uri;
        }
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    }
}
