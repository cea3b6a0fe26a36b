//! Connections over which the calls of others are passed on: those of clients of a proxy, and of nodes without a replica.
//!
//! Each client has connections of its own to the nodes, made when they are needed and passed on to others when it leaves: a node
//! makes no more answers for a connection that does not take those it has, so one slow client would hold up all that share one.
//!
//! Invariant: a node that could not be connected costs no client time until it can be again. A task tries that, nobody's call does.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{HOST, HeaderValue, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Uri, Version};
use hyper::body::Body;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::tls::Stream;

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait before a node that could not be connected is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// What a client that reads slowly may have waiting for it.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same of all that it asked of one node.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// A client that gives many calls up at once is no reason to give the connection up.
const RESET_STREAMS_MAX: usize = 10_000;
/// Connections to a node that are kept for clients to come.
const IDLE_MAX: usize = 16;

/// Sends calls over one connection.
pub(crate) type Sender<B> = http2::SendRequest<B>;
/// Makes a connection.
type Dial = Box<dyn Fn() -> BoxFuture<'static, io::Result<Stream>> + Send + Sync>;

/// How connections are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keepalive {
    /// Time without traffic before a node is pinged; `None` for never.
    pub(crate) interval: Option<Duration>,
    /// Time to wait for its answer.
    pub(crate) timeout: Duration,
    /// Whether that is done without calls too.
    pub(crate) while_idle: bool,
}

/// A node to which calls may be passed on.
pub(crate) struct Target<B> {
    /// For people.
    pub(crate) name: String,
    dial: Dial,
    keepalive: Keepalive,
    /// What each connection needs one of; `None` if there may be any number.
    places: Option<Arc<Semaphore>>,
    /// Connections that no client has.
    idle: Mutex<Vec<Sender<B>>>,
    /// Why it could not be connected, until it can be again: a task tries.
    failed: Mutex<Option<String>>,
}

/// The connections that one client has.
pub(crate) struct Links<B>(Mutex<Vec<Arc<Link<B>>>>);

/// The connection to a node. It goes back there when it is dropped.
struct Link<B> {
    target: Arc<Target<B>>,
    /// Whoever holds the lock connects.
    sender: tokio::sync::Mutex<Option<Sender<B>>>,
}

impl<B> Default for Links<B> {
    fn default() -> Links<B> {
        Links(Mutex::default())
    }
}

impl<B> Links<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// Something that sends calls to the node.
    ///
    /// # Errors
    /// It cannot be connected; why.
    pub(crate) async fn to(&self, target: &Arc<Target<B>>) -> Result<Sender<B>, String> {
        let link = self.link(target);
        let mut sender = link.sender.lock().await;
        if let Some(sender) = sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        Ok(sender.insert(target.sender().await?).clone())
    }

    fn link(&self, target: &Arc<Target<B>>) -> Arc<Link<B>> {
        let mut links = self.0.lock();
        if let Some(link) = links.iter().find(|link| Arc::ptr_eq(&link.target, target)) {
            return Arc::clone(link);
        }
        let link = Arc::new(Link { target: Arc::clone(target), sender: tokio::sync::Mutex::default() });
        links.push(Arc::clone(&link));
        link
    }
}

impl<B> Drop for Link<B> {
    fn drop(&mut self) {
        let Some(sender) = self.sender.get_mut().take().filter(|sender| !sender.is_closed()) else { return };
        let mut idle = self.target.idle.lock();
        idle.retain(|sender| !sender.is_closed());
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
    }
}

impl<B> Target<B>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// A node that `dial` connects.
    pub(crate) fn new(
        name: String,
        keepalive: Keepalive,
        dial: impl Fn() -> BoxFuture<'static, io::Result<Stream>> + Send + Sync + 'static,
    ) -> Target<B> {
        let (idle, failed) = (Mutex::default(), Mutex::default());
        Target { name, dial: Box::new(dial), keepalive, places: None, idle, failed }
    }

    /// The same with no more connections than there are places.
    pub(crate) fn with_places(self, places: Arc<Semaphore>) -> Target<B> {
        Target { places: Some(places), ..self }
    }

    fn place(&self) -> io::Result<Option<OwnedSemaphorePermit>> {
        let place = self.places.as_ref().map(|places| Arc::clone(places).try_acquire_owned());
        place.transpose().map_err(|_| io::Error::other("this node has as many connections as it may"))
    }

    /// Whether it could not be connected, and has not been since.
    pub(crate) fn is_down(&self) -> bool {
        self.failed.lock().is_some()
    }

    /// A connection that no client has, or a new one.
    async fn sender(self: &Arc<Self>) -> Result<Sender<B>, String> {
        let idle = std::iter::from_fn(|| self.idle.lock().pop()).find(|sender| !sender.is_closed());
        if let Some(sender) = idle {
            return Ok(sender);
        }
        if let Some(reason) = self.failed.lock().as_ref() {
            return Err(reason.clone());
        }
        // That there is none says nothing of the node.
        let place = self.place().map_err(|error| error.to_string())?;
        let connected = self.connect_in_time(place).await;
        connected.map_err(|error| self.fail(&error))
    }

    /// From now on it is down, for this reason.
    fn fail(self: &Arc<Self>, error: &io::Error) -> String {
        let reason = error.to_string();
        if self.failed.lock().replace(reason.clone()).is_none() {
            warn!(endpoint = self.name, %error, "deactivated endpoint");
            tokio::spawn(try_again(Arc::downgrade(self)));
        }
        reason
    }

    /// Tries whether it can be connected again. If so the next client has that connection. Of one that nobody knows any more whoever calls it
    /// is told.
    async fn is_back(&self) -> bool {
        let Ok(place) = self.place() else { return false };
        match self.connect_in_time(place).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *self.failed.lock() = None;
                true
            }
            Ok(sender) => {
                self.idle.lock().push(sender);
                *self.failed.lock() = None;
                info!(endpoint = self.name, "activated");
                true
            }
            Err(error) => {
                *self.failed.lock() = Some(error.to_string());
                false
            }
        }
    }

    async fn connect_in_time(&self, place: Option<OwnedSemaphorePermit>) -> io::Result<Sender<B>> {
        timeout(CONNECT_TIMEOUT, self.connect(place)).await?
    }

    async fn connect(&self, place: Option<OwnedSemaphorePermit>) -> io::Result<Sender<B>> {
        let stream = TokioIo::new((self.dial)().await?);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_reset_streams(RESET_STREAMS_MAX)
            .keep_alive_interval(self.keepalive.interval)
            .keep_alive_timeout(self.keepalive.timeout)
            .keep_alive_while_idle(self.keepalive.while_idle)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        let name = self.name.clone();
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                warn!(endpoint = name, %error, "the connection to a node was lost");
            }
        });
        Ok(sender)
    }
}

/// Tries a node that is down now and then, until it can be connected or nobody knows it any more.
async fn try_again<B>(target: Weak<Target<B>>)
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    loop {
        sleep(RETRY_DELAY).await;
        let Some(target) = target.upgrade() else { return };
        if target.is_back().await {
            return;
        }
    }
}

/// Makes a client's request one that is passed on to whoever is called so.
pub(crate) fn address<B>(request: &mut Request<B>, scheme: Scheme, authority: Authority) {
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let parts = Uri::builder().scheme(scheme).authority(authority).path_and_query(path);
    if let Ok(uri) = parts.build() {
        *request.uri_mut() = uri;
    }
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
}
