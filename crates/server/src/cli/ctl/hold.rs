//! What `lock` and `elect` share: a lease that is kept alive for as long as they hold something, and the signals that end
//! them.
//!
//! What is held belongs to the lease, so it is lost with it. The lease counts as lost here when the server says so, or when
//! its time is over without word from any server: never later than there, but for the time that an answer travels.

use std::io;
use std::time::Duration;

use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Response, Status};

use super::failure::Failure;
use super::lease::{KeepAliveStream, RENEWALS_PER_TTL, open_stream};
use crate::client::Connection;
use crate::client::{CallError, Client};

/// Time between attempts to reach a server again.
const RETRY: Duration = Duration::from_millis(500);

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
        let until = asked + Duration::from_secs(granted.ttl.unsigned_abs());
        let renewals = tokio::spawn(renew(client.clone(), granted.id, until));
        Ok(KeptLease { id: granted.id, client: client.clone(), renewals })
    }

    /// Makes a call that waits for its turn, on another server when one goes away. `None` once the lease has ended.
    pub(super) async fn wait<T>(
        &mut self,
        call: impl AsyncFn(Connection) -> Result<Response<T>, Status>,
    ) -> Option<Result<T, CallError>> {
        let client = self.client.clone();
        let attempts = async {
            loop {
                let result = match client.connect().await {
                    Ok(connection) => call(connection).await.map_err(CallError::Refused),
                    Err(error) => Err(error),
                };
                match result {
                    Err(CallError::Unreachable(_)) => sleep(RETRY).await,
                    Err(CallError::Refused(status)) if status.code() == Code::Unavailable => {
                        sleep(RETRY).await;
                    }
                    other => return other.map(Response::into_inner),
                }
            }
        };
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

/// Renews a lease until it is gone, or its time is over without word of it.
async fn renew(client: Client, id: i64, mut until: Instant) {
    let mut stream = None;
    loop {
        let asked = Instant::now();
        match timeout_at(until, renewal(&client, id, &mut stream)).await {
            Ok(Ok(Some(ttl))) => {
                until = asked + ttl;
                sleep(ttl / RENEWALS_PER_TTL).await;
            }
            Ok(Err(_)) => sleep(RETRY).await,
            Ok(Ok(None)) | Err(_) => return,
        }
    }
}

/// One renewal: how long the lease has to live now, `None` if it is gone. A stream that broke is not put back.
async fn renewal(
    client: &Client,
    id: i64,
    stream: &mut Option<KeepAliveStream>,
) -> Result<Option<Duration>, CallError> {
    let request = LeaseKeepAliveRequest { id };
    let (requests, mut replies) = match stream.take() {
        Some((requests, replies)) => {
            // If nobody takes it, there is no answer either.
            let _ = requests.send(request).await;
            (requests, replies)
        }
        None => open_stream(client, request).await?,
    };
    let reply = replies.message().await.map_err(CallError::Refused)?;
    let reply = reply.ok_or_else(|| CallError::Refused(Status::unavailable("the stream ended")))?;
    *stream = Some((requests, replies));
    let ttl = u64::try_from(reply.ttl).ok().filter(|ttl| *ttl > 0);
    Ok(ttl.map(Duration::from_secs))
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
