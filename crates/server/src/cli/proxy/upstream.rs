//! The nodes behind the proxy: one connection each, made when it is needed, and calls sent over them in turn.

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
/// Clients share the connection: none may stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// Clients that give many calls up at once are no reason to give the connection up.
const RESET_STREAMS_MAX: usize = 10_000;

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
    link: tokio::sync::Mutex<Link>,
}

/// The connection to a node.
#[derive(Default)]
struct Link {
    sender: Option<http2::SendRequest<AnyBody>>,
    /// When it could not be made last, and why.
    failed: Option<(Instant, String)>,
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
    pub(super) async fn send(&self, mut request: Request<AnyBody>) -> Result<Response<Incoming>, Status> {
        let mut attempts = Vec::new();
        for node in self.in_turn().await {
            let mut sender = match node.sender(self.keepalive).await {
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
    async fn in_turn(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.all.lock().clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % nodes.len().max(1);
        nodes.rotate_left(first);
        let mut down = Vec::new();
        let mut in_turn = Vec::with_capacity(nodes.len());
        for node in nodes {
            // Whoever holds the lock connects.
            let is_down = node.link.try_lock().is_ok_and(|link| link.is_down());
            if is_down { &mut down } else { &mut in_turn }.push(node);
        }
        in_turn.append(&mut down);
        in_turn
    }
}

impl Link {
    fn is_down(&self) -> bool {
        self.failed.as_ref().is_some_and(|(since, _)| since.elapsed() < RETRY_DELAY)
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
        Ok(Node { endpoint: endpoint.to_owned(), authority, tls, link: tokio::sync::Mutex::default() })
    }

    /// Something that sends calls to the node.
    async fn sender(&self, keepalive: Keepalive) -> Result<http2::SendRequest<AnyBody>, String> {
        let mut link = self.link.lock().await;
        if let Some(sender) = link.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        if let Some((_, reason)) = link.failed.as_ref().filter(|_| link.is_down()) {
            return Err(reason.clone());
        }
        let connected = timeout(CONNECT_TIMEOUT, self.connect(keepalive)).await;
        let connected = connected.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let had_failed = link.failed.is_some();
        match connected {
            Ok(sender) => {
                if had_failed {
                    info!(endpoint = self.endpoint, "activated");
                }
                *link = Link { sender: Some(sender.clone()), failed: None };
                Ok(sender)
            }
            Err(error) => {
                if !had_failed {
                    warn!(endpoint = self.endpoint, %error, "deactivated endpoint");
                }
                *link = Link { sender: None, failed: Some((Instant::now(), error.to_string())) };
                Err(error.to_string())
            }
        }
    }

    async fn connect(&self, keepalive: Keepalive) -> io::Result<http2::SendRequest<AnyBody>> {
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
