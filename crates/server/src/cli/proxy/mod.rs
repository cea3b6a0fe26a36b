//! `hadron grpc-proxy start`, and `etcd grpc-proxy start`: passes calls on to the nodes of a cluster, in turn.
//!
//! - `upstream`: the nodes, and the connections to them.
//! - `messages`: the messages of a call as they pass; `namespace`: the prefix that keys may get on the way.
//! - `members`: the proxies that clients are told of in place of the nodes.
//! - `pages`: health and metrics.
//!
//! Calls pass as they are, tokens and errors with them, but for what a flag changes. Invariant: a call is sent to one node only, unless it
//! certainly was not sent. Left out, since our nodes serve watchers and reads cheaply: etcd's proxy makes one watch of
//! several and answers some reads from a cache.

mod members;
mod messages;
mod namespace;
mod pages;
mod upstream;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Subcommand;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::{Level, info, warn};

use super::ctl::secure::Secure;
use super::discovery::Discovery;
use super::{complain, logging};
use crate::api::Connections;
use crate::api::authority::Mended;
use crate::api::server::{METRICS_CONNECTIONS_MAX, ask_whether_there, connection_builder, open, silence};
use crate::api::socket::Socket;
use crate::client::Client;
use crate::client::Identity;
use crate::client::Security;
use crate::client::links::Keepalive;
use crate::config::{Log, LogFormat, LogOutput};
use crate::discovery::srv::Node;
use crate::metrics::Metrics;
use crate::process::Descriptors;
use crate::tls::files::KeyPair;
use crate::tls::name::common_name;
use crate::tls::server::ServerFiles;
use crate::tls::{Names, Protocol, ServerTls, own};
use crate::{go_text, notify};
use members::Members;
use messages::{AnyBody, Messages};
use namespace::Namespace;
use pages::Pages;
use upstream::{Links, Upstream};

/// Pause after the process ran out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The header that says how answers may be compressed.
const ENCODINGS: &str = "grpc-accept-encoding";

/// Subcommands of `grpc-proxy`.
#[derive(Debug, Subcommand)]
pub enum Proxy {
    /// Pass calls on to the nodes of a cluster
    Start(Box<Start>),
}

/// The flags, those of etcd's proxy.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:23790", value_name = "ADDRESS")]
    listen_addr: String,
    /// The nodes
    #[arg(long, default_value = "127.0.0.1:2379", value_delimiter = ',', value_name = "LIST")]
    endpoints: Vec<String>,
    #[command(flatten)]
    discovery: Discovery,
    /// Time between two questions to the nodes who the members are; 0 for never
    #[arg(long, default_value = "0s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    endpoints_auto_sync_interval: Duration,
    /// Where else to serve /metrics and /health: http://HOST:PORT or https://HOST:PORT
    #[arg(long, default_value = "", hide_default_value = true, value_name = "URL")]
    metrics_addr: String,
    /// Where clients are told to connect; empty to tell them of the nodes
    #[arg(long, default_value = "127.0.0.1:23790", value_name = "ADDRESS")]
    advertise_client_url: String,
    /// Where this proxy and others note who they are, so that clients are told of all
    #[arg(long, default_value = "", hide_default_value = true, value_name = "KEY")]
    resolver_prefix: String,
    /// Seconds after which a proxy that is gone is forgotten
    #[arg(long, default_value_t = 0, allow_hyphen_values = true, value_name = "SECONDS")]
    resolver_ttl: i64,
    /// Prefix that all keys of clients get
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PREFIX")]
    namespace: String,
    /// Largest request, in bytes
    #[arg(long, default_value_t = 1536 * 1024, value_name = "BYTES")]
    max_send_bytes: usize,
    /// Largest message of an answer, in bytes
    #[arg(long, default_value_t = i32::MAX as usize, value_name = "BYTES")]
    max_recv_bytes: usize,
    /// Most calls of a client's connection at a time
    #[arg(long, default_value_t = u32::MAX, value_name = "NUMBER")]
    max_concurrent_streams: u32,
    /// Make serializable reads linearizable, so that what is read never goes back
    #[arg(long)]
    experimental_serializable_ordering: bool,
    /// Does nothing: linearizable reads are answered by the nodes
    #[arg(long, default_value = "", hide_default_value = true, value_name = "KEY")]
    experimental_leasing_prefix: String,
    /// Log each call
    #[arg(long)]
    experimental_enable_grpc_logging: bool,
    /// Log more
    #[arg(long)]
    debug: bool,
    /// Does nothing: there is no profiler of Go
    #[arg(long)]
    enable_pprof: bool,
    #[command(flatten)]
    calling: Calling,
    #[command(flatten)]
    listening: Listening,
    #[command(flatten)]
    pings: Pings,
}

/// Whom the proxy believes to be a node, and who it is to them.
#[derive(Debug, clap::Args)]
struct Calling {
    /// File of the certificate that the nodes are shown; it names nobody
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// File of its key
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// File of certificates to check nodes against
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Do not check who a node is: for tests only
    #[arg(long)]
    insecure_skip_tls_verify: bool,
}

/// What clients are shown, and what is demanded of them.
#[derive(Debug, clap::Args)]
struct Listening {
    /// File of the certificate that clients are shown
    #[arg(long, value_name = "FILE")]
    cert_file: Option<PathBuf>,
    /// File of its key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// File of certificates to check clients against
    #[arg(long, value_name = "FILE")]
    trusted_ca_file: Option<PathBuf>,
    /// File of clients' certificates that are trusted no more
    #[arg(long, value_name = "FILE")]
    client_crl_file: Option<PathBuf>,
    /// Suites that TLS 1.2 may use
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    listen_cipher_suites: Vec<String>,
    /// Oldest TLS that clients may speak: TLS1.2 or TLS1.3
    #[arg(long, default_value = "TLS1.2", value_parser = ["TLS1.2", "TLS1.3"], value_name = "VERSION")]
    tls_min_version: String,
    /// Newest TLS that clients may speak: TLS1.2 or TLS1.3
    #[arg(long, default_value = "", hide_default_value = true, value_parser = ["", "TLS1.2", "TLS1.3"], value_name = "VERSION")]
    tls_max_version: String,
    /// Show clients a certificate that is made at the first start
    #[arg(long)]
    auto_tls: bool,
    /// Years that it is valid for
    #[arg(long, default_value_t = 1, value_name = "YEARS")]
    self_signed_cert_validity: u32,
    /// Where it is kept
    #[arg(long, default_value = "default.proxy", value_name = "DIRECTORY")]
    data_dir: PathBuf,
}

/// How connections are found to be dead.
#[derive(Debug, clap::Args)]
struct Pings {
    /// Time without traffic before a node is pinged; 0 for never
    #[arg(long, default_value = "0s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    dial_keepalive_time: Duration,
    /// Time to wait for its answer
    #[arg(long, default_value = "20s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    dial_keepalive_timeout: Duration,
    /// Ping nodes without calls too
    #[arg(long)]
    permit_without_stream: bool,
    /// Does nothing: clients may ping as often as they like
    #[arg(long, default_value = "5s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    grpc_keepalive_min_time: Duration,
    /// Time without traffic before a client is pinged; 0 for never
    #[arg(long, default_value = "2h0m0s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    grpc_keepalive_interval: Duration,
    /// Time to wait for its answer
    #[arg(long, default_value = "20s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    grpc_keepalive_timeout: Duration,
}

/// What a listener of the proxy serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    /// Calls and pages.
    Everything,
    /// Metrics and health, which may be asked for without what clients must show.
    Pages,
}

/// How the connections of a listener are served.
#[derive(Clone)]
struct Manner {
    tls: Option<Arc<ServerTls>>,
    connections: Connections,
    traffic: Traffic,
    /// What each of them needs one of.
    places: Arc<Semaphore>,
}

/// Passes calls on.
struct Forwarder {
    upstream: Upstream,
    /// Where bytes of clients count. Nobody is shown them.
    metrics: Arc<Metrics>,
    /// For calls of its own.
    links: Links,
    namespace: Option<Namespace>,
    /// `None` to pass the question for the members on.
    members: Option<Arc<Members>>,
    pages: Pages,
    /// Largest message of a request and of an answer.
    message_max: (usize, usize),
    is_ordering: bool,
    logs_calls: bool,
}

/// Runs until it is told to stop by SIGTERM or SIGINT.
pub fn run(command: Proxy) -> ExitCode {
    let Proxy::Start(options) = command;
    let level = if options.debug { Level::DEBUG } else { Level::INFO };
    let log = Log { level, format: LogFormat::Json, outputs: vec![LogOutput::Stderr], rotation: None };
    if let Err(error) = logging::start(&log) {
        complain(&error);
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format_args!("cannot start a runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(start(*options));
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

async fn start(mut options: Start) -> Result<(), String> {
    options.check()?;
    let found = options.discovery.nodes(None).await?;
    if !found.is_empty() {
        options.endpoints = found.iter().map(Node::url).collect();
    }
    let tls = options.listening.tls(&options.listen_addr)?;
    let listener = bind(&options.listen_addr).await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let metrics = match options.metrics_addr.as_str() {
        "" => None,
        url => Some(bind_url(url, tls.clone()).await?),
    };
    let forwarder = Arc::new(Forwarder::new(&options)?);
    let mut stops = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(terminate), Ok(interrupt)] = &mut stops else {
        return Err("cannot be told to stop: signals are not available".to_owned());
    };
    let connections = options.pings.connections(options.max_concurrent_streams);
    let places = Descriptors::of_process().clients / (1 + options.endpoints.len());
    let manner = Manner { tls, connections, traffic: Traffic::Everything, places: places_for(places) };
    if let Some((listener, tls)) = metrics {
        // They have places of their own, so that clients cannot hide what is wrong.
        let places = places_for(METRICS_CONNECTIONS_MAX);
        let manner = Manner { tls, traffic: Traffic::Pages, places, ..manner.clone() };
        tokio::spawn(accept(listener, manner, Arc::clone(&forwarder)));
    }
    let (client, interval) = (options.client()?, options.endpoints_auto_sync_interval);
    info!(address = %address, endpoints = options.endpoints.join(","), "started gRPC proxy");
    notify::ready();
    let announced = async {
        match &forwarder.members {
            Some(members) => Arc::clone(members).keep().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = accept(listener, manner, Arc::clone(&forwarder)) => {}
        () = announced => {}
        () = members::follow_nodes(client, interval, &forwarder.upstream) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Some(members) = &forwarder.members {
        members.leave().await;
    }
    info!("stopped");
    Ok(())
}

async fn bind(address: &str) -> Result<TcpListener, String> {
    let bound = TcpListener::bind(address).await;
    let bound = bound.and_then(|listener| ask_whether_there(&SockRef::from(&listener)).map(|()| listener));
    bound.map_err(|error| format!("cannot listen on {address}: {error}"))
}

fn places_for(connections: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS)))
}

/// Listens where a URL says, encrypted if it says so.
async fn bind_url(
    url: &str,
    tls: Option<Arc<ServerTls>>,
) -> Result<(TcpListener, Option<Arc<ServerTls>>), String> {
    let (is_https, address) =
        crate::client::endpoint_parts(url).map_err(|error| format!("--metrics-addr: {error}"))?;
    let tls = match is_https {
        Some(true) => {
            Some(tls.ok_or("--metrics-addr: https needs --cert-file and --key-file, or --auto-tls")?)
        }
        _ => None,
    };
    Ok((bind(&address).await?, tls))
}

async fn accept(listener: TcpListener, manner: Manner, forwarder: Arc<Forwarder>) {
    loop {
        // While there is no place for one, those who come wait in the kernel's queue.
        let Ok(place) = Arc::clone(&manner.places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, address)) => {
                let serving = serve(socket, address, manner.clone(), Arc::clone(&forwarder));
                tokio::spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a client connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    socket: tokio::net::TcpStream,
    address: SocketAddr,
    manner: Manner,
    forwarder: Arc<Forwarder>,
) {
    let Manner { tls, connections, traffic, .. } = manner;
    let Ok(socket) = socket.into_std() else { return };
    let Some(stream) = open(socket, tls.as_deref(), connections.first_word_timeout).await else { return };
    let (socket, end) = Socket::new(stream, Arc::clone(&forwarder.metrics));
    let links = Arc::new(Links::default());
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (forwarder, links) = (Arc::clone(&forwarder), Arc::clone(&links));
        async move { Ok::<_, Infallible>(forwarder.answer(request.map(boxed), traffic, &links).await) }
    });
    let builder = connection_builder(connections);
    let served = tokio::select! {
        biased;
        served = builder.serve_connection(TokioIo::new(Mended::new(socket)), service) => served,
        () = silence(end, connections.first_word_timeout) => return,
    };
    if let Err(error) = served {
        tracing::debug!(%address, %error, "client connection failed");
    }
}

fn boxed(body: hyper::body::Incoming) -> AnyBody {
    body.map_err(Into::into).boxed_unsync()
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<AnyBody> {
    let body = Full::new(text.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

impl Forwarder {
    fn new(options: &Start) -> Result<Forwarder, String> {
        let (client, pings) = (options.client()?, &options.pings);
        let keepalive = Keepalive {
            interval: Some(pings.dial_keepalive_time).filter(|interval| !interval.is_zero()),
            timeout: pings.dial_keepalive_timeout,
            while_idle: pings.permit_without_stream,
        };
        let has_namespace = !options.namespace.is_empty();
        let namespace = has_namespace.then(|| Namespace::new(&options.namespace));
        let is_told = !options.advertise_client_url.is_empty();
        let members = is_told.then(|| {
            let prefix = Some(options.resolver_prefix.clone()).filter(|prefix| !prefix.is_empty());
            // Proxies of a namespace note who they are within it.
            let prefix = prefix.map(|prefix| format!("{}{prefix}", options.namespace));
            let announced = prefix.map(|prefix| (prefix, options.resolver_ttl));
            Arc::new(Members::new(options.advertise_client_url.clone(), announced, client.clone()))
        });
        Ok(Forwarder {
            upstream: Upstream::new(&options.endpoints, options.calling.security()?, keepalive)?,
            metrics: Arc::default(),
            links: Links::default(),
            namespace,
            members,
            pages: Pages::new(client),
            message_max: (options.max_send_bytes, options.max_recv_bytes),
            is_ordering: options.experimental_serializable_ordering,
            logs_calls: options.experimental_enable_grpc_logging,
        })
    }

    /// Answers a call, where these are served, or a page.
    async fn answer(&self, request: Request<AnyBody>, traffic: Traffic, links: &Links) -> Response<AnyBody> {
        let kind = request.headers().get(CONTENT_TYPE);
        let is_call = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        match is_call && traffic == Traffic::Everything {
            true => self.call(request, links).await,
            false => {
                let (parts, _) = request.into_parts();
                self.pages.answer(&parts.method, parts.uri.path(), self).await
            }
        }
    }

    async fn call(&self, request: Request<AnyBody>, links: &Links) -> Response<AnyBody> {
        let path = request.uri().path().to_owned();
        let answered = match (&self.members, path.as_str()) {
            (Some(members), "/etcdserverpb.Cluster/MemberList") => Ok(members.answer()),
            _ => self.forward(request, &path, links).await,
        };
        let answer = answered.unwrap_or_else(|status| status.into_http().map(|body: AnyBody| body));
        if self.logs_calls {
            let code = Status::from_header_map(answer.headers()).map_or(tonic::Code::Ok, |it| it.code());
            info!(method = path, ?code, "call");
        }
        answer
    }

    async fn forward(
        &self,
        request: Request<AnyBody>,
        path: &str,
        links: &Links,
    ) -> Result<Response<AnyBody>, Status> {
        let (mut enter, leave) = self.namespace.as_ref().map_or((None, None), |space| space.changes(path));
        if self.is_ordering
            && let Some(order) = namespace::linearizable(path)
        {
            enter = Some(match enter {
                Some(enter) => Arc::new(move |message| order(enter(message)?)),
                None => order,
            });
        }
        let (send_max, receive_max) = self.message_max;
        let (mut parts, body) = request.into_parts();
        if leave.is_some() {
            // What is compressed could not be changed.
            parts.headers.remove(ENCODINGS);
        }
        let (body, refusal) = Messages::of_request(body, enter, send_max);
        let sent = self.upstream.send(Request::from_parts(parts, body), links).await;
        let answer = sent.map_err(|status| refusal.take().unwrap_or(status))?;
        let (mut parts, body) = answer.into_parts();
        parts.version = http::Version::default();
        Ok(Response::from_parts(parts, Messages::of_answer(boxed(body), leave, receive_max, refusal)))
    }
}

impl Start {
    /// Refuses what makes no sense together, as etcd's proxy does.
    fn check(&self) -> Result<(), String> {
        if !self.resolver_prefix.is_empty() && self.resolver_ttl < 1 {
            return Err(format!("invalid resolver-ttl {}", self.resolver_ttl));
        }
        if self.resolver_prefix.is_empty() && self.resolver_ttl > 0 {
            return Err("invalid resolver-prefix \"\"".to_owned());
        }
        if !self.resolver_prefix.is_empty() && self.advertise_client_url.is_empty() {
            return Err("invalid advertise-client-url \"\"".to_owned());
        }
        if !self.experimental_leasing_prefix.is_empty() {
            warn!(
                "--experimental-leasing-prefix does nothing here: linearizable reads are answered by the nodes"
            );
        }
        Ok(())
    }

    /// Something that makes the proxy's own calls.
    fn client(&self) -> Result<Client, String> {
        Ok(Client {
            endpoints: self.endpoints.clone().into(),
            security: self.calling.security()?,
            identity: Identity::Nobody,
            keyspace: None,
            dial_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(5),
            keepalive: (Duration::from_secs(10), Duration::from_secs(20)),
        })
    }
}

impl Calling {
    fn security(&self) -> Result<Security, String> {
        let (cacert, cert, key) = (self.cacert.clone(), self.cert.clone(), self.key.clone());
        if let (Some(certificate), Some(key)) = (&cert, &key) {
            check_nameless(certificate, key)?;
        }
        let flags = Secure::of(cacert, cert, key, true).without_check(self.insecure_skip_tls_verify);
        flags.security(None).map_err(|failure| failure.text.unwrap_or_default())
    }
}

/// Refuses a certificate that names somebody: all clients of the proxy would be that user.
fn check_nameless(certificate: &Path, key: &Path) -> Result<(), String> {
    let pair = KeyPair { certificate: certificate.to_owned(), key: key.to_owned() };
    let (chain, _) = pair.read().map_err(|error| error.to_string())?;
    match chain.first().and_then(|first| common_name(first)).filter(|name| !name.is_empty()) {
        None => Ok(()),
        Some(name) => Err(format!(
            "--cert {}: its common name is {name:?}: nodes with --client-cert-auth would take each client of this proxy for that user; \
             use a certificate without a common name",
            certificate.display()
        )),
    }
}

impl Listening {
    /// How clients are spoken to; `None` for plain text.
    fn tls(&self, address: &str) -> Result<Option<Arc<ServerTls>>, String> {
        let own = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => KeyPair { certificate: certificate.clone(), key: key.clone() },
            (None, None) if self.trusted_ca_file.is_some() => {
                return Err("--trusted-ca-file needs --cert-file and --key-file beside it".to_owned());
            }
            (None, None) if self.auto_tls => self.made(address)?,
            (None, None) => return Ok(None),
            (Some(_), None) => return Err("--cert-file needs --key-file beside it".to_owned()),
            (None, Some(_)) => return Err("--key-file needs --cert-file beside it".to_owned()),
        };
        let files = ServerFiles {
            own,
            trusted: self.trusted_ca_file.clone(),
            revoked: self.client_crl_file.clone(),
            allowed: Names::default(),
            names_users: false,
            protocol: self.protocol()?,
        };
        ServerTls::new(files).map(|tls| Some(Arc::new(tls))).map_err(|error| error.to_string())
    }

    fn made(&self, address: &str) -> Result<KeyPair, String> {
        if self.self_signed_cert_validity == 0 {
            return Err("--self-signed-cert-validity must be greater than 0".to_owned());
        }
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let directory = self.data_dir.join("fixtures/proxy");
        own::certificate(&directory, &[host], self.self_signed_cert_validity)
            .map_err(|error| error.to_string())
    }

    fn protocol(&self) -> Result<Protocol, String> {
        let has_tls12 = self.tls_min_version != "TLS1.3";
        let has_tls13 = self.tls_max_version != "TLS1.2";
        if !has_tls12 && !has_tls13 {
            return Err("min version (TLS1.3) is greater than max version (TLS1.2)".to_owned());
        }
        let suites: Vec<String> =
            self.listen_cipher_suites.iter().filter(|suite| !suite.is_empty()).cloned().collect();
        if !has_tls12 && !suites.is_empty() {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
        }
        let protocol = Protocol { has_tls12, has_tls13, suites };
        let unknown = protocol.unknown_suites();
        match unknown.is_empty() {
            true => Ok(protocol),
            false => Err(format!("--listen-cipher-suites: {} cannot be used", unknown.join(","))),
        }
    }
}

impl Pings {
    fn connections(&self, streams_max: u32) -> Connections {
        Connections {
            streams_max,
            keepalive_interval: Some(self.grpc_keepalive_interval).filter(|interval| !interval.is_zero()),
            keepalive_timeout: self.grpc_keepalive_timeout,
            ..Connections::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    /// As long as nobody waits for something that comes.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        proxy: Proxy,
    }

    fn forwarder() -> Arc<Forwarder> {
        let Proxy::Start(options) = Line::parse_from(["proxy", "start"]).proxy;
        Arc::new(Forwarder::new(&options).unwrap())
    }

    /// Probes and the like that sent a few bytes had their connections for ever, as many as there were.
    #[tokio::test]
    async fn whoever_says_nothing_is_hung_up_and_leaves_its_place() {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let first_word_timeout = Duration::from_millis(100);
        let manner = Manner {
            tls: None,
            connections: Connections { first_word_timeout, ..Connections::default() },
            traffic: Traffic::Everything,
            places: places_for(1),
        };
        tokio::spawn(accept(listener, manner, forwarder()));
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"PRI").await.unwrap();
            clients.push(client);
        }
        for mut client in clients {
            let ended = timeout(PATIENCE, client.read_to_end(&mut Vec::new())).await;
            assert!(ended.is_ok());
        }
    }

    /// Whoever vanished without a word kept its connection for two hours.
    #[tokio::test]
    async fn listeners_ask_whether_there_is_still_somebody() {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(SockRef::from(&accepted).keepalive().unwrap());
    }
}
