//! `hadron serve`: one node as a process, from its start to its signal.

use std::sync::Arc;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::error::RunError;
use super::start::{REQUEST_TIMEOUT, Running, bind};
use crate::api::{Backend as _, Limits, Listener, MembershipOptions, Server, ServerOptions, Traffic};
use crate::config::Config;
use crate::metrics::Metrics;

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
    let peer_listeners = bind(&config.listen_peer, "listen-peer-urls")?;
    let metrics = Arc::new(Metrics::default());
    let node = Running::start(&config, peer_listeners, metrics.clone())?;
    let identity = node.handle().identity().clone();
    info!(
        name = %identity.name,
        node = %format_args!("{:x}", identity.member_id.0),
        cluster = %format_args!("{:x}", identity.cluster_id),
        data_dir = %config.data_dir.display(),
        "started"
    );
    let server = Server::new(node.handle(), metrics, server_options(&config));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(client_listeners, async {
        let _ = stopped.await;
    }));
    // Fail-stop: after a fault no goodbye that would need what failed.
    until_stopped(&node, &mut signals, &config).await?;
    node.hand_over().await;
    drop(stop);
    if let Ok(Err(error)) = serving.await {
        warn!(%error, "the client port failed");
    }
    node.stop().await;
    info!("stopped");
    Ok(())
}

fn client_listeners(config: &Config) -> Result<Vec<Listener>, RunError> {
    let sockets = bind(&config.listen_client, "listen-client-urls")?;
    Ok(sockets.into_iter().map(|socket| Listener { socket, traffic: Traffic::Everything }).collect())
}

async fn until_stopped(node: &Running, signals: &mut Signals, config: &Config) -> Result<(), RunError> {
    let announce = async {
        node.ready().await;
        let urls: Vec<String> = config.advertise_client_urls.iter().map(ToString::to_string).collect();
        info!(urls = urls.join(","), "ready to serve client requests");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = announce => Ok(()),
        name = signals.next() => {
            info!(signal = name, "stopping");
            Ok(())
        }
        error = node.failed() => Err(error),
    }
}

fn server_options(config: &Config) -> ServerOptions {
    let defaults = ServerOptions::default();
    // As in etcd: a lease must outlive an election, so it gets at least one and a half election timeouts, in whole seconds.
    let lease_ttl_min = (config.election_timeout.as_millis() * 3).div_ceil(2_000) as i64;
    let limits =
        Limits { request_bytes: config.max_request_bytes, txn_operations: config.max_txn_ops, lease_ttl_min };
    let timeout = REQUEST_TIMEOUT + 2 * config.election_timeout;
    let membership = MembershipOptions { timeout, ..MembershipOptions::default() };
    ServerOptions { limits, membership, ..defaults }
}

/// The signals that end the process in good order.
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
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
