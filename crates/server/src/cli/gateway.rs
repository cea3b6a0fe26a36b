//! `hadron gateway start`, and `etcd gateway start`: passes connections on to the nodes of a cluster, in turn.
//!
//! It knows nothing of what is said on them, so TLS goes through. A node that cannot be connected gets no connections until it was tried
//! again, unless there is no other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use clap::Subcommand;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::discovery::Discovery;
use super::{complain, logging};
use crate::client::endpoint_parts;
use crate::config::{Log, LogFormat, LogOutput};
use crate::dns::{self, Place};
use crate::{go_text, notify};

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the process ran out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Subcommands of `gateway`.
#[derive(Debug, Subcommand)]
pub enum Gateway {
    /// Pass connections on to the nodes of a cluster
    Start(Start),
}

/// The flags, those of etcd's gateway.
#[derive(Debug, clap::Args)]
pub struct Start {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:23790", value_name = "ADDRESS")]
    listen_addr: String,
    /// The nodes
    #[arg(long, default_value = "127.0.0.1:2379", value_delimiter = ',', value_name = "LIST")]
    endpoints: Vec<String>,
    /// Time until a node that could not be connected is tried again
    #[arg(long, default_value = "1m0s", value_parser = go_text::parse_duration, value_name = "DURATION")]
    retry_delay: Duration,
    #[command(flatten)]
    discovery: Discovery,
    /// File of certificates to check the nodes against that were found in DNS
    #[arg(long, value_name = "FILE")]
    trusted_ca_file: Option<PathBuf>,
}

/// One of the nodes.
#[derive(Debug)]
struct Endpoint {
    /// `host:port`, looked up for each connection.
    address: String,
    /// Of those that are up only those with the smallest are used.
    priority: u16,
    /// How often it is used, among those of its priority; 0 for in turn, and for hardly ever if others have more.
    weight: u16,
    is_down: AtomicBool,
}

#[derive(Debug)]
struct Endpoints {
    all: Vec<Endpoint>,
    next: AtomicUsize,
    retry_delay: Duration,
}

/// Runs until it is told to stop by SIGTERM or SIGINT.
pub fn run(command: Gateway) -> ExitCode {
    let Gateway::Start(options) = command;
    let outputs = vec![LogOutput::Stderr];
    let log = Log { level: tracing::Level::INFO, format: LogFormat::Json, outputs, rotation: None };
    if let Err(error) = logging::start(&log) {
        complain(&error);
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format_args!("cannot start a runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(start(options));
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

async fn start(options: Start) -> Result<(), String> {
    let listener = TcpListener::bind(&options.listen_addr).await;
    let listener = listener.map_err(|error| format!("cannot listen on {}: {error}", options.listen_addr))?;
    let own = listener.local_addr().map_err(|error| error.to_string())?;
    let trusted = options.trusted_ca_file.as_deref().filter(|file| !file.as_os_str().is_empty());
    let found = options.discovery.nodes(trusted).await?;
    let all = match found.is_empty() {
        true => options.endpoints.iter().map(|text| Endpoint::given(text)).collect::<Result<_, String>>()?,
        false => found.into_iter().map(|node| Endpoint::found(node.place)).collect(),
    };
    let endpoints = Arc::new(Endpoints { all, next: AtomicUsize::new(0), retry_delay: options.retry_delay });
    endpoints.check_not(own).await?;
    let mut stops = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let [Ok(terminate), Ok(interrupt)] = &mut stops else {
        return Err("cannot be told to stop: signals are not available".to_owned());
    };
    let addresses: Vec<&str> = endpoints.all.iter().map(|endpoint| endpoint.address.as_str()).collect();
    info!(address = %own, endpoints = addresses.join(","), "ready to proxy client requests");
    notify::ready();
    tokio::select! {
        () = accept(listener, Arc::clone(&endpoints)) => {}
        () = Arc::clone(&endpoints).watch() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopped");
    Ok(())
}

async fn accept(listener: TcpListener, endpoints: Arc<Endpoints>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let endpoints = Arc::clone(&endpoints);
                tokio::spawn(async move { endpoints.serve(client).await });
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Endpoints {
    /// Refuses to pass connections on to itself.
    async fn check_not(&self, own: SocketAddr) -> Result<(), String> {
        for endpoint in &self.all {
            // A name that means nothing yet may do so later.
            let Ok(mut addresses) = lookup_host(&endpoint.address).await else { continue };
            if addresses.any(|address| address == own) {
                return Err(format!("{} is where the gateway itself listens", endpoint.address));
            }
        }
        Ok(())
    }

    /// Passes one connection on, to the next node that accepts it.
    async fn serve(&self, mut client: TcpStream) {
        let Some(mut node) = self.connect().await else { return };
        // Answers are small, and somebody waits for them.
        let _ = client.set_nodelay(true).and_then(|()| node.set_nodelay(true));
        // However it ends, both sides hear of it.
        let _ = copy_bidirectional(&mut client, &mut node).await;
    }

    async fn connect(&self) -> Option<TcpStream> {
        for endpoint in self.order() {
            if let Some(node) = endpoint.connect().await {
                return Some(node);
            }
        }
        None
    }

    /// The nodes in the order in which they are to be tried: those that are down last, then as their priorities and weights want it, and in turn where
    /// these say nothing.
    fn order(&self) -> Vec<&Endpoint> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.all.len();
        let mut order: Vec<&Endpoint> =
            (0..count).map(|step| &self.all[first.wrapping_add(step) % count]).collect();
        let is_down = |endpoint: &Endpoint| endpoint.is_down.load(Ordering::Relaxed);
        order.sort_by_cached_key(|endpoint| {
            (is_down(endpoint), endpoint.priority, dns::draw(endpoint.weight))
        });
        order
    }

    /// Tries those again that are down, for as long as it is polled.
    async fn watch(self: Arc<Self>) {
        loop {
            sleep(self.retry_delay).await;
            for endpoint in self.all.iter().filter(|endpoint| endpoint.is_down.load(Ordering::Relaxed)) {
                endpoint.connect().await;
            }
        }
    }
}

impl Endpoint {
    /// As `--endpoints` names it.
    fn given(text: &str) -> Result<Endpoint, String> {
        let (_, address) = endpoint_parts(text).map_err(|error| format!("endpoint {text:?}: {error}"))?;
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Endpoint { address, priority: 0, weight: 0, is_down: AtomicBool::new(false) })
            }
            _ => Err(format!("endpoint {text:?}: expected HOST:PORT")),
        }
    }

    /// As DNS names it.
    fn found(Place { host, port, priority, weight }: Place) -> Endpoint {
        let address = format!("{host}:{port}");
        Endpoint { address, priority, weight, is_down: AtomicBool::new(false) }
    }

    async fn connect(&self) -> Option<TcpStream> {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address)).await;
        let connected = connected.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let was_down = self.is_down.swap(connected.is_err(), Ordering::Relaxed);
        match connected {
            Ok(node) => {
                if was_down {
                    info!(address = self.address, "activated");
                }
                Some(node)
            }
            Err(error) => {
                if !was_down {
                    warn!(address = self.address, %error, "deactivated endpoint");
                }
                None
            }
        }
    }
}
