//! What `lock` and `elect` share: a lease that is kept alive for as long as they hold something, and the signals that end
//! them.
//!
//! What is held belongs to the lease, so it is lost with it. The lease counts as lost here when the server says so, or when
//! its time is over without word from any server: never later than there, but for the time that an answer travels.

use std::io;
use std::time::Duration;

use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;
use tonic::{Response, Status};

use super::failure::Failure;
use super::lease::Renewals;
use super::retry::until_answered;
use crate::client::Connection;
use crate::client::{CallError, Client};

/// A lease that is renewed beside everything else.
pub(super) struct KeptLease {
    pub(super) id: i64,
    client: Client,
    /// Ends with the lease.
    renewals: JoinHandle<()>,
}

impl KeptLease {
    /// Gets a lease of `ttl` seconds and renews it from now on.
    pub(super) async fn grant(client: &Client, ttl: i64) -> Result<KeptLease, CallError> {
        let asked = Instant::now();
        let request = LeaseGrantRequest { ttl, id: 0 };
        let call = async |connection| LeaseClient::new(connection).lease_grant(request).await;
        let granted = client.write(call).await?;
        let ttl = Duration::from_secs(granted.ttl.unsigned_abs());
        let mut renewals = Renewals::of(client, granted.id).since(asked, ttl);
        let renewals = spawn_local(async move { while !matches!(renewals.next().await, Ok(None)) {} });
        Ok(KeptLease { id: granted.id, client: client.clone(), renewals })
    }

    /// Makes a call that waits for its turn, on another server when one goes away. `None` once the lease has ended.
    pub(super) async fn wait<T>(
        &mut self,
        call: impl AsyncFn(Connection) -> Result<Response<T>, Status>,
    ) -> Option<Result<T, CallError>> {
        let client = self.client.clone();
        let attempts = until_answered(async || client.wait(&call).await);
        tokio::select! {
            result = attempts => Some(result),
            () = self.ended() => None,
        }
    }

    /// Waits for the end of the lease.
    pub(super) async fn ended(&mut self) {
        if !self.renewals.is_finished() {
            // However the task ended, nobody renews the lease any more.
            let _ = (&mut self.renewals).await;
        }
    }

    /// Ends the lease, and everything that belongs to it.
    pub(super) async fn revoke(self) -> Result<(), CallError> {
        self.renewals.abort();
        let request = LeaseRevokeRequest { id: self.id };
        let call = async |connection| LeaseClient::new(connection).lease_revoke(request).await;
        self.client.write(call).await.map(|_| ())
    }
}

/// SIGINT and SIGTERM, which end no command while this lives.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Catches the signals from now on.
    pub(super) fn catch() -> Result<Interrupts, Failure> {
        let catch = || -> io::Result<Interrupts> {
            Ok(Interrupts {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
            })
        };
        catch().map_err(Failure::error)
    }

    /// Waits for one of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
