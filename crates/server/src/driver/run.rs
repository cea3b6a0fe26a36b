//! `hadron serve`: one node as a process, from its start to its signal.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tracing::{info, warn};

use super::discover;
use super::error::RunError;
use super::start::{REQUEST_TIMEOUT, Running, bind};
use crate::api::backend::ETCD_VERSION;
use crate::api::compactor;
use crate::api::{
    Backend as _, Connections, Limits, Listener, MembershipOptions, Server, ServerOptions, Tokens, Traffic,
};
use crate::config::{Config, Security};
use crate::metrics::Metrics;
use crate::notify;
use crate::process::Descriptors;
use crate::spans::Spans;

/// Runs a node until SIGTERM or SIGINT, then stops it in good order: leadership handed over, log sealed.
///
/// # Errors
/// What kept the node from starting, or what forced it to stop.
pub fn run(config: Config) -> Result<(), RunError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Threads)?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), RunError> {
    // Before anything else, so that a signal during recovery is not lost.
    let mut signals = Signals::listen()?;
    let client_listeners = client_listeners(&config)?;
    let tokens = Tokens::new(&config.auth.tokens)?;
    tell_unknown_suites(&config);
    let peer_listeners = bind(&config.addresses.peers, "listen-peer-urls", config.addresses.reuse_port)?;
    let config = tokio::select! {
        config = discover::members(config) => config?,
        name = signals.next() => {
            info!(signal = name, "received signal; shutting down");
            return Ok(());
        }
    };
    let spans = config.traces.as_ref().map(Spans::start).transpose()?;
    let metrics = Arc::new(Metrics::default());
    let mut node = Running::start(&config, peer_listeners, metrics.clone())?;
    let identity = node.handle().identity().clone();
    info!(
        etcd_version = ETCD_VERSION,
        hadron_version = env!("CARGO_PKG_VERSION"),
        name = %identity.name,
        local_member_id = %format_args!("{:x}", identity.member_id.0),
        cluster_id = %format_args!("{:x}", identity.cluster_id),
        data_dir = %config.data_dir.display(),
        wal_dir = %config.wal_dir.display(),
        "started"
    );
    let served = client_listeners.iter().map(served_at).collect::<Result<Vec<_>, _>>()?;
    let server = Server::new(node.handle(), metrics, server_options(&config, tokens, &spans));
    if let Some(retention) = config.retention {
        // Ends with the runtime.
        tokio::spawn(compactor::run(node.handle(), retention));
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = tokio::spawn(server.serve(client_listeners, node.passed_on(), async {
        let _ = stopped.await;
    }));
    // Fail-stop: after a fault no goodbye that would need what failed.
    until_stopped(&node, &mut serving, &mut signals, &served, &config).await?;
    node.hand_over().await;
    drop(stop);
    if let Ok(Err(error)) = serving.await {
        warn!(%error, "the client port failed");
    }
    let stopped = node.stop().await;
    if let Some(spans) = spans {
        spans.stop().await;
    }
    stopped?;
    info!("stopped");
    Ok(())
}

fn client_listeners(config: &Config) -> Result<Vec<Listener>, RunError> {
    let addresses = &config.addresses;
    let tls = config.clients_security.as_ref().map(Security::server).transpose().map_err(RunError::Tls)?;
    let grpc = if addresses.clients_http.is_empty() { Traffic::Everything } else { Traffic::Grpc };
    let wanted = [
        (&addresses.clients, "listen-client-urls", grpc),
        (&addresses.clients_http, "listen-client-http-urls", Traffic::Http),
        (&addresses.metrics, "listen-metrics-urls", Traffic::Metrics),
    ];
    let mut listeners = Vec::new();
    for (listens, flag, traffic) in wanted {
        let bound: Vec<SocketAddr> = listens.iter().map(|listen| listen.address).collect();
        let sockets = bind(&bound, flag, addresses.reuse_port)?;
        listeners.extend(sockets.into_iter().zip(listens).map(|(socket, listen)| {
            let tls = tls.clone().filter(|_| listen.is_tls);
            Listener { socket, traffic, tls, keyspace: None }
        }));
    }
    for (name, listen) in &addresses.keyspaces {
        let sockets = bind(&[listen.address], "keyspace-listen", addresses.reuse_port)?;
        let (tls, keyspace) = (tls.clone().filter(|_| listen.is_tls), Some(Arc::from(name.as_str())));
        let traffic = Traffic::Everything;
        listeners.extend(sockets.into_iter().map(|socket| Listener {
            socket,
            traffic,
            tls: tls.clone(),
            keyspace: keyspace.clone(),
        }));
    }
    Ok(listeners)
}

/// Not having an old cipher suite is no reason to refuse a list that names it among others.
fn tell_unknown_suites(config: &Config) {
    let security = config.clients_security.as_ref().or(config.peers_security.as_ref());
    let unknown = security.map(Security::unknown_suites).unwrap_or_default();
    if !unknown.is_empty() {
        warn!(suites = unknown.join(","), "these cipher suites do not exist here and are passed over");
    }
}

/// What is served where.
struct Served {
    /// In etcd's words.
    traffic: &'static str,
    address: SocketAddr,
    is_secure: bool,
    /// The keyspace, if it is one alone.
    keyspace: Option<Arc<str>>,
}

fn served_at(listener: &Listener) -> Result<Served, RunError> {
    let traffic = match listener.traffic {
        Traffic::Everything => "grpc+http",
        Traffic::Grpc => "grpc",
        Traffic::Http => "http",
        Traffic::Metrics => "metrics",
    };
    let address = listener.socket.local_addr().map_err(RunError::Threads)?;
    Ok(Served { traffic, address, is_secure: listener.tls.is_some(), keyspace: listener.keyspace.clone() })
}

impl Served {
    fn tell(&self) {
        let Served { traffic, address, is_secure, keyspace } = self;
        let keyspace = keyspace.as_deref();
        match is_secure {
            true => info!(traffic, %address, keyspace, "serving client traffic securely"),
            false => {
                info!(traffic, %address, keyspace, "serving client traffic insecurely; this is strongly discouraged!");
            }
        }
    }
}

/// Returns when a signal came, or with what went wrong.
async fn until_stopped(
    node: &Running,
    serving: &mut JoinHandle<io::Result<()>>,
    signals: &mut Signals,
    served: &[Served],
    config: &Config,
) -> Result<(), RunError> {
    let announce = async {
        node.ready().await;
        let urls = config.addresses.advertise_client_urls.iter().map(ToString::to_string);
        info!(urls = urls.collect::<Vec<_>>().join(","), "ready to serve client requests");
        served.iter().for_each(Served::tell);
        notify::ready();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = announce => Ok(()),
        name = signals.next() => {
            info!(signal = name, "received signal; shutting down");
            Ok(())
        }
        error = node.failed() => Err(error),
        served = serving => Err(RunError::ClientPort(why_ended(served))),
    }
}

/// Why clients are served no more, although nobody asked for that.
fn why_ended(served: Result<io::Result<()>, JoinError>) -> io::Error {
    match served {
        Ok(Err(error)) => error,
        Ok(Ok(())) => io::Error::other("it ended"),
        Err(error) => io::Error::other(error),
    }
}

fn server_options(config: &Config, tokens: Tokens, spans: &Option<Spans>) -> ServerOptions {
    let defaults = ServerOptions::default();
    // As in etcd: a lease must outlive an election, so it gets at least one and a half election timeouts, in whole seconds.
    let lease_ttl_min = (config.election_timeout.as_millis() * 3).div_ceil(2_000) as i64;
    let clients = &config.clients;
    let limits = Limits {
        request_bytes: clients.request_bytes_max,
        txn_operations: clients.txn_operations_max,
        lease_ttl_min,
        quota_bytes: clients.quota_bytes,
        ..Limits::default()
    };
    let membership = MembershipOptions {
        is_strict: config.membership.is_strict,
        learners_max: config.membership.learners_max,
        promotes: config.membership.promotes,
        timeout: REQUEST_TIMEOUT + 2 * config.election_timeout,
    };
    let connections = Connections {
        streams_max: clients.streams_max,
        keepalive_interval: clients.keepalive_interval,
        keepalive_timeout: clients.keepalive_timeout,
        ..Connections::default()
    };
    ServerOptions {
        limits,
        membership,
        watch_progress_interval: clients.watch_progress_interval,
        election_timeout: config.election_timeout,
        slow_call: clients.slow_call,
        gateway: clients.gateway,
        access: clients.access.clone(),
        keyspaces: clients.keyspaces.clone(),
        connections,
        connections_max: Descriptors::of_process().clients,
        snapshot_dir: config.data_dir.clone(),
        tokens: Arc::new(tokens),
        tracer: spans.as_ref().map(Spans::tracer),
        bcrypt_cost: config.auth.bcrypt_cost,
        ..defaults
    }
}

/// The signals that end the process in good order, by the names that Go gives them.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Signals, RunError> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(RunError::Threads)?,
            interrupt: signal(SignalKind::interrupt()).map_err(RunError::Threads)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "terminated",
            _ = self.interrupt.recv() => "interrupt",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tests::config;
    use super::*;

    /// A node whose client port could not be served said that it was ready, and went on without.
    #[tokio::test]
    async fn a_node_that_cannot_serve_clients_ends() {
        let directory = tempfile::tempdir().unwrap();
        let config = config("a", directory.path());
        let node = Running::start(&config, Vec::new(), Arc::default()).unwrap();
        let mut signals = Signals::listen().unwrap();
        let mut serving = tokio::spawn(async { Err(io::Error::other("no thread")) });
        let ended = until_stopped(&node, &mut serving, &mut signals, &[], &config).await;
        assert_eq!(ended.unwrap_err().to_string(), "the client port failed: no thread");
        node.stop().await.unwrap();
    }
}
