//! A client of a cluster, Hadron's or etcd's: the endpoints are tried in turn, and errors are told in `etcdctl`'s words.
//!
//! - [`endpoints`]: which of them is asked first; [`replies`]: what one says in a stream.
//! - [`security`]: how endpoints are spoken to; [`identity`]: as whom.
//! - [`links`]: connections over which the calls of others are passed on.

mod endpoints;
pub(crate) mod identity;
pub(crate) mod links;
mod replies;
pub(crate) mod security;

use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::TryFutureExt as _;
use futures::stream::{BoxStream, StreamExt as _, unfold};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};
use tower::service_fn;

use crate::api::error::EtcdError;
use crate::tls::{ClientTls, Stream};
pub(crate) use endpoints::Endpoints;
pub(crate) use identity::{Connection, Identity, KEYSPACE, Shown, Token};
pub(crate) use replies::Replies;
pub(crate) use security::Security;

/// As in Go's gRPC: etcd hangs up on clients that ping more often than every 5 s.
const KEEPALIVE_MIN: Duration = Duration::from_secs(10);
/// Requests of a stream that wait to be sent.
const REQUESTS_MAX: usize = 16;

/// Where to connect, and for how long to try.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// `host:port` or `http://host:port`, never empty.
    pub(crate) endpoints: Endpoints,
    /// How they are spoken to.
    pub(crate) security: Security,
    /// As whom.
    pub(crate) identity: Identity,
    /// In which keyspace, if it is another than `default`.
    pub(crate) keyspace: Option<AsciiMetadataValue>,
    /// Bound on each attempt to connect.
    pub(crate) dial_timeout: Duration,
    /// Bound on each call, connecting excluded.
    pub(crate) command_timeout: Duration,
    /// Time without traffic before the server is pinged, and time to wait for its answer.
    pub(crate) keepalive: (Duration, Duration),
}

/// A call that brought no reply.
#[derive(Debug)]
pub(crate) enum CallError {
    /// No endpoint could be connected to; each with its reason.
    Unreachable(Vec<(String, String)>),
    /// The user was not let in.
    Login(Status),
    /// The call took longer than `--command-timeout`.
    Timeout,
    /// The server refused, or the connection broke.
    Refused(Status),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Unreachable(attempts) => {
                let attempts: Vec<String> =
                    attempts.iter().map(|(endpoint, reason)| format!("{endpoint}: {reason}")).collect();
                write!(f, "cannot connect to any endpoint ({})", attempts.join("; "))
            }
            CallError::Timeout => f.write_str("context deadline exceeded"),
            CallError::Login(status) | CallError::Refused(status) => f.write_str(&status_text(status)),
        }
    }
}

impl CallError {
    /// Whether servers or connections failed, and not the call: later, or on another server, it may succeed.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            CallError::Unreachable(_) | CallError::Timeout => true,
            CallError::Login(_) => false,
            CallError::Refused(status) => is_outage(status),
        }
    }
}

fn is_outage(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Internal | Code::DeadlineExceeded => true,
        // Either the connection broke, or it is one of etcd's services that are clients themselves, whose errors have lost their codes.
        Code::Unknown | Code::Cancelled => status.source().is_some() || is_text_of_outage(status.message()),
        _ => false,
    }
}

fn is_text_of_outage(text: &str) -> bool {
    EtcdError::ALL.iter().any(|error| error.code() == Code::Unavailable && error.text() == text)
}

/// The text of a status as etcd's client shows it: etcd's own errors bare, others with their code. Of a connection that broke it is why.
pub(crate) fn status_text(status: &Status) -> String {
    let reason = status.source().map(innermost_reason).unwrap_or_default();
    let message = match status.message() {
        message if message.to_lowercase().contains(&reason) => message,
        message => &format!("{message}: {reason}"),
    };
    if message.starts_with("etcdserver: ") || message.starts_with("auth: ") {
        return message.to_owned();
    }
    match status.code() {
        Code::DeadlineExceeded => "context deadline exceeded".to_owned(),
        code => format!("rpc error: code = {code:?} desc = {message}"),
    }
}

impl Client {
    /// A client of one of the endpoints only.
    pub(crate) fn only(&self, endpoint: &str) -> Client {
        Client { endpoints: vec![endpoint.to_owned()].into(), ..self.clone() }
    }

    /// Connects to the first of these endpoints that accepts.
    async fn connect_in(
        &self,
        turns: &mut impl Iterator<Item = usize>,
    ) -> Result<(usize, Connection), CallError> {
        let mut attempts = Vec::new();
        for position in turns {
            let endpoint = &self.endpoints[position];
            let reason = match self.connect_to(endpoint).await {
                Ok(channel) => match self.log_in(&channel).await {
                    Ok(token) => {
                        let shown = Shown { token, keyspace: self.keyspace.clone() };
                        return Ok((position, Connection::new(channel, shown)));
                    }
                    Err(status) if !is_outage(&status) => return Err(CallError::Login(status)),
                    Err(status) => status_text(&status),
                },
                Err(reason) => reason,
            };
            self.endpoints.leave(position);
            attempts.push((endpoint.clone(), reason));
        }
        Err(CallError::Unreachable(attempts))
    }

    /// The token that a user shows to the first endpoint, and to all others.
    ///
    /// # Errors
    /// In words.
    pub(crate) async fn token(&self) -> Result<Token, String> {
        let endpoint = self.endpoints.first().map(String::as_str).unwrap_or_default();
        let channel = self.connect_to(endpoint).await?;
        self.log_in(&channel).await.map_err(|status| status_text(&status))
    }

    async fn log_in(&self, channel: &Channel) -> Result<Token, Status> {
        let token = self.identity.token(channel, self.keyspace.as_ref());
        let token = tokio::time::timeout(self.command_timeout, token).await;
        token.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer to the login")))
    }

    /// Connects to one endpoint, or says in a few words why not.
    async fn connect_to(&self, endpoint: &str) -> Result<Channel, String> {
        let (is_https, authority) = endpoint_parts(endpoint)?;
        let tls = self.security.of(is_https)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let origin: Uri =
            format!("{scheme}://{authority}").parse().map_err(|_| format!("bad endpoint {endpoint}"))?;
        // tonic is told of plain text: what is beneath is the connector's business.
        let endpoint =
            Endpoint::from_shared(format!("http://{authority}")).map_err(|error| error.to_string())?;
        let (keepalive_time, keepalive_timeout) = self.keepalive;
        endpoint
            .origin(origin)
            .connect_timeout(self.dial_timeout)
            .http2_keep_alive_interval(keepalive_time.max(KEEPALIVE_MIN))
            .keep_alive_timeout(keepalive_timeout)
            .connect_with_connector(service_fn(move |_: Uri| {
                dial(authority.clone(), tls.clone()).map_ok(TokioIo::new)
            }))
            .await
            .map_err(|error| innermost_reason(&error))
    }

    /// Connects to an endpoint that accepts.
    pub(crate) async fn connect(&self) -> Result<Connection, CallError> {
        self.connect_in(&mut self.endpoints.turns()).await.map(|(_, channel)| channel)
    }

    /// Makes a call that changes something: sent at most once, since its outcome is unknown when the connection breaks.
    pub(crate) async fn write<T>(
        &self,
        call: impl AsyncFnOnce(Connection) -> Result<Response<T>, Status>,
    ) -> Result<T, CallError> {
        let (position, channel) = self.connect_in(&mut self.endpoints.turns()).await?;
        let result = self.bounded(call(channel)).await;
        if result.as_ref().is_err_and(CallError::is_outage) {
            self.endpoints.leave(position);
        }
        result
    }

    /// Makes a call that changes nothing: tried on the next endpoint when one fails.
    pub(crate) async fn read<T>(
        &self,
        call: impl AsyncFn(Connection) -> Result<Response<T>, Status>,
    ) -> Result<T, CallError> {
        // All of them together may take as long as one.
        let (until, tried) = (Instant::now() + self.command_timeout, AtomicUsize::new(0));
        let call = async |channel| {
            let left = self.endpoints.len().saturating_sub(tried.fetch_add(1, Ordering::Relaxed)).max(1);
            let patience = until.saturating_duration_since(Instant::now()) / left as u32;
            within(patience, call(channel)).await
        };
        self.in_turn(call).await.map(|(_, reply)| reply)
    }

    /// Makes a call that may be made again, and takes as long as it takes: tried on the next endpoint when one fails.
    pub(crate) async fn wait<T>(
        &self,
        call: impl AsyncFn(Connection) -> Result<Response<T>, Status>,
    ) -> Result<T, CallError> {
        let call = async |channel| call(channel).await.map_err(CallError::Refused);
        self.in_turn(call).await.map(|(_, reply)| reply.into_inner())
    }

    /// Asks for a stream, which may take as long as it takes.
    pub(crate) async fn listen<T>(
        &self,
        call: impl AsyncFn(Connection) -> Result<Response<Streaming<T>>, Status>,
    ) -> Result<Replies<T>, CallError> {
        let call = async |channel| call(channel).await.map_err(CallError::Refused);
        let (position, stream) = self.in_turn(call).await?;
        Ok(Replies { endpoints: self.endpoints.clone(), position, stream: stream.into_inner() })
    }

    /// Opens a stream of requests and replies with its first request, without which etcd would not answer at all.
    pub(crate) async fn converse<Q: Clone + Send + 'static, A>(
        &self,
        first: &Q,
        call: impl AsyncFn(Connection, BoxStream<'static, Q>) -> Result<Response<Streaming<A>>, Status>,
    ) -> Result<(mpsc::Sender<Q>, Replies<A>), CallError> {
        let call = async |channel| {
            let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
            // The channel is empty and its receiver lives: this cannot fail.
            let _ = sender.try_send(first.clone());
            let requests = unfold(receiver, async |mut receiver: mpsc::Receiver<Q>| {
                receiver.recv().await.map(|request| (request, receiver))
            });
            self.bounded(call(channel, requests.boxed())).await.map(|replies| (sender, replies))
        };
        let (position, (requests, stream)) = self.in_turn(call).await?;
        Ok((requests, Replies { endpoints: self.endpoints.clone(), position, stream }))
    }

    /// Makes a call on one endpoint after the other, on each at most once, until one does not fail. Returns which one.
    async fn in_turn<T>(
        &self,
        call: impl AsyncFn(Connection) -> Result<T, CallError>,
    ) -> Result<(usize, T), CallError> {
        let mut turns = self.endpoints.turns();
        let mut failed = None;
        loop {
            let (position, channel) = match self.connect_in(&mut turns).await {
                Ok(connected) => connected,
                // What one said that was reached says more.
                Err(error @ CallError::Unreachable(_)) => return Err(failed.unwrap_or(error)),
                Err(error) => return Err(error),
            };
            match call(channel).await {
                Err(error) if error.is_outage() => failed = Some(error),
                result => return result.map(|reply| (position, reply)),
            }
            self.endpoints.leave(position);
        }
    }

    /// A call within the time it may take.
    pub(crate) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        within(self.command_timeout, call).await
    }
}

/// A call that may take so long.
async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(patience, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CallError::Refused(status)),
        Err(_) => Err(CallError::Timeout),
    }
}

impl Client {
    /// A page of the first endpoint.
    ///
    /// # Errors
    /// It cannot be connected, or the connection broke.
    pub(crate) async fn page(&self, path: &str) -> io::Result<String> {
        let endpoint = self.endpoints.first().map(String::as_str).unwrap_or_default();
        let (is_https, authority) = endpoint_parts(endpoint).map_err(io::Error::other)?;
        let tls = self.security.for_pages().of(is_https).map_err(io::Error::other)?;
        let mut stream = dial(authority.clone(), tls).await?;
        let keyspace = self.keyspace.as_ref().and_then(|keyspace| keyspace.to_str().ok());
        let keyspace = keyspace.map(|keyspace| format!("{KEYSPACE}: {keyspace}\r\n")).unwrap_or_default();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n{keyspace}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut page = Vec::new();
        stream.read_to_end(&mut page).await?;
        Ok(String::from_utf8_lossy(&page).into_owned())
    }
}

/// `host:port` of an endpoint that may have a scheme in front: what clients connect to, and whether its scheme is
/// `https`, if it has one.
pub(crate) fn endpoint_parts(endpoint: &str) -> Result<(Option<bool>, String), String> {
    let bare = |authority: &str| authority.trim_end_matches('/').to_owned();
    match endpoint.split_once("://") {
        _ if endpoint.is_empty() => Err("empty endpoint".to_owned()),
        None => Ok((None, endpoint.to_owned())),
        Some(("http", authority)) => Ok((Some(false), bare(authority))),
        Some(("https", authority)) => Ok((Some(true), bare(authority))),
        Some((scheme, _)) => Err(format!("unsupported scheme {scheme}")),
    }
}

/// Connects to `authority`, and shakes hands with it if it is to be encrypted.
pub(crate) async fn dial(authority: String, tls: Option<Arc<ClientTls>>) -> io::Result<Stream> {
    let stream = TcpStream::connect(&authority).await?;
    stream.set_nodelay(true)?;
    let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => tls.connect(host, stream).await?,
    };
    Ok(stream)
}

/// The error at the bottom of a chain: the ones above it only say that a transport failed.
fn innermost_reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn etcd_errors_are_bare_and_others_have_their_code() {
        let text = |code, message: &str| status_text(&Status::new(code, message));
        assert_eq!(
            text(Code::NotFound, "etcdserver: requested lease not found"),
            "etcdserver: requested lease not found"
        );
        assert_eq!(text(Code::Unavailable, "closing"), "rpc error: code = Unavailable desc = closing");
        assert_eq!(text(Code::DeadlineExceeded, "x"), "context deadline exceeded");
        // As whoever shows no certificate where one is wanted hears it.
        #[derive(Debug)]
        struct Transport(io::Error);
        impl fmt::Display for Transport {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("transport error")
            }
        }
        impl std::error::Error for Transport {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let broken = Transport(io::Error::other("received fatal alert: CertificateRequired"));
        let told =
            "rpc error: code = Unknown desc = transport error: received fatal alert: certificaterequired";
        assert_eq!(status_text(&Status::from_error(Box::new(broken))), told);
        let plain = Status::from_error(Box::new(io::Error::other("Broken pipe")));
        assert_eq!(status_text(&plain), "rpc error: code = Unknown desc = Broken pipe", "said once");
    }

    #[test]
    fn outages_are_told_from_refusals() {
        let is_outage = |code, message: &str| is_outage(&Status::new(code, message));
        assert!(is_outage(Code::Unavailable, "etcdserver: no leader") && is_outage(Code::Internal, "x"));
        assert!(!is_outage(Code::InvalidArgument, "etcdserver: user name is empty"));
        // As a server says it that is a client itself.
        assert!(is_outage(Code::Unknown, "etcdserver: request timed out"));
        assert!(!is_outage(Code::Unknown, "mutex: session is expired"));
        assert!(CallError::Refused(Status::from_error(io::Error::other("broken pipe").into())).is_outage());
    }

    #[test]
    fn endpoints_need_no_scheme() {
        assert_eq!(endpoint_parts("127.0.0.1:2379").unwrap(), (None, "127.0.0.1:2379".to_owned()));
        assert_eq!(endpoint_parts("http://h:1/").unwrap(), (Some(false), "h:1".to_owned()));
        assert_eq!(endpoint_parts("https://h:1").unwrap(), (Some(true), "h:1".to_owned()));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_unreachable_endpoint_is_named() {
        // Bound and dropped: nobody listens there.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client {
            endpoints: vec![address.to_string(), "ftp://x".to_owned()].into(),
            security: Security::default(),
            identity: Identity::default(),
            keyspace: None,
            keepalive: (Duration::from_secs(2), Duration::from_secs(6)),
            dial_timeout: Duration::from_secs(1),
            command_timeout: Duration::from_secs(1),
        };
        let error = client.connect().await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "cannot connect to any endpoint ({address}: connection refused; ftp://x: unsupported scheme ftp)"
            )
        );
    }
}
