//! The lease commands.

use std::time::Duration;

use clap::Subcommand;
use futures::stream::unfold;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::failure::{Exit, Failure};
use super::print::lease::{Revoked, TimeToLive};
use super::print::{Format, write_out};
use super::{Global, Session, go_text};
use crate::client::Connection;
use crate::client::{CallError, Client};

/// Leases are renewed when a third of their time is over, so that two attempts may fail.
pub(super) const RENEWALS_PER_TTL: u32 = 3;

/// Subcommands of `lease`.
#[derive(Debug, Subcommand)]
pub(crate) enum Lease {
    /// Create a lease
    Grant {
        /// Time to live, in seconds
        #[arg(value_name = "TTL", allow_negative_numbers = true)]
        arguments: Vec<String>,
    },
    /// End a lease and delete its keys
    Revoke {
        /// Lease, in hexadecimal
        #[arg(value_name = "LEASE")]
        arguments: Vec<String>,
    },
    /// Show how long a lease has to live
    Timetolive {
        /// Lease, in hexadecimal
        #[arg(value_name = "LEASE")]
        arguments: Vec<String>,
        /// Show the keys attached to it
        #[arg(long)]
        keys: bool,
    },
    /// List all leases
    List,
    /// Renew a lease until interrupted
    KeepAlive {
        /// Lease, in hexadecimal
        #[arg(value_name = "LEASE")]
        arguments: Vec<String>,
        /// Renew it once
        #[arg(long)]
        once: bool,
    },
}

impl Lease {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        match self {
            Lease::Grant { arguments } => grant(global, &arguments).await,
            Lease::Revoke { arguments } => revoke(global, &arguments).await,
            Lease::Timetolive { arguments, keys } => time_to_live(global, &arguments, keys).await,
            Lease::List => list(global).await,
            Lease::KeepAlive { arguments, once } => keep_alive(global, &arguments, once).await,
        }
    }
}

async fn grant(global: Global, arguments: &[String]) -> Result<(), Failure> {
    let ttl = single(arguments, "lease grant command needs TTL argument")?;
    let ttl =
        go_text::parse_int(ttl, 10).map_err(|error| Failure::arguments(format_args!("bad TTL ({error})")))?;
    let session = Session::new(global)?;
    let request = LeaseGrantRequest { ttl, id: 0 };
    let call = session.client.write(async |channel| LeaseClient::new(channel).lease_grant(request).await);
    let reply =
        call.await.map_err(|error| Failure::error(format_args!("failed to grant lease ({error})")))?;
    session.printer.print(&reply)
}

async fn revoke(global: Global, arguments: &[String]) -> Result<(), Failure> {
    let id = lease_id(single(arguments, "lease revoke command needs 1 argument")?)?;
    let session = Session::new(global)?;
    let request = LeaseRevokeRequest { id };
    let call = session.client.write(async |channel| LeaseClient::new(channel).lease_revoke(request).await);
    let response =
        call.await.map_err(|error| Failure::error(format_args!("failed to revoke lease ({error})")))?;
    session.printer.print(&Revoked { id, response })
}

async fn time_to_live(global: Global, arguments: &[String], keys: bool) -> Result<(), Failure> {
    let id = lease_id(single(arguments, "lease timetolive command needs lease ID as argument")?)?;
    let session = Session::new(global)?;
    let request = LeaseTimeToLiveRequest { id, keys };
    let call =
        session.client.read(async |channel| big(LeaseClient::new(channel)).lease_time_to_live(request).await);
    let response = call.await.map_err(bad_connection)?;
    session.printer.print(&TimeToLive { response, keys })
}

async fn list(global: Global) -> Result<(), Failure> {
    let session = Session::new(global)?;
    let call =
        async |channel| big(LeaseClient::new(channel)).lease_leases(LeaseLeasesRequest::default()).await;
    let reply = session.client.read(call).await.map_err(bad_connection)?;
    session.printer.print(&reply)
}

async fn keep_alive(global: Global, arguments: &[String], once: bool) -> Result<(), Failure> {
    let id = lease_id(single(arguments, "lease keep-alive command needs lease ID as argument")?)?;
    let session = Session::new(global)?;
    loop {
        let alive = renew(&session, id, once).await;
        match alive {
            // The connection broke: the lease may well live on, so try the endpoints again until it cannot.
            Ok(Renewal::Disconnected) if !once => continue,
            Ok(Renewal::Gone) if once => {
                return Err(
                    Failure::error("etcdserver: requested lease not found").exiting(Exit::BadConnection)
                );
            }
            Ok(Renewal::Gone) if session.printer.format == Format::Simple => {
                return write_out(format!("lease {id:016x} expired or revoked.\n").as_bytes());
            }
            Ok(_) => return Ok(()),
            Err(failure) => return Err(failure),
        }
    }
}

/// How a stream of renewals ended.
enum Renewal {
    Done,
    Gone,
    Disconnected,
}

/// Renews a lease over one connection: once, or for as long as it lives and the connection holds.
async fn renew(session: &Session, id: i64, once: bool) -> Result<Renewal, Failure> {
    let opened = open_stream(&session.client, LeaseKeepAliveRequest { id }).await;
    let (requests, mut replies) = opened.map_err(bad_connection)?;
    loop {
        let reply = match replies.message().await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ok(Renewal::Disconnected),
            Err(status) if once => return Err(bad_connection(CallError::Refused(status))),
            Err(_) => return Ok(Renewal::Disconnected),
        };
        let Some(ttl) = u64::try_from(reply.ttl).ok().filter(|ttl| *ttl > 0) else {
            return Ok(Renewal::Gone);
        };
        session.printer.print(&reply)?;
        if once {
            return Ok(Renewal::Done);
        }
        tokio::time::sleep(Duration::from_secs(ttl) / RENEWALS_PER_TTL).await;
        if requests.send(LeaseKeepAliveRequest { id }).await.is_err() {
            return Ok(Renewal::Disconnected);
        }
    }
}

/// Both ends of a stream of renewals.
pub(super) type KeepAliveStream = (mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>);

/// Opens a stream with its first request, without which etcd would not answer at all.
pub(super) async fn open_stream(
    client: &Client,
    first: LeaseKeepAliveRequest,
) -> Result<KeepAliveStream, CallError> {
    let channel = client.connect().await?;
    let (sender, receiver) = mpsc::channel(1);
    // The channel is empty and its receiver lives: this cannot fail.
    let _ = sender.try_send(first);
    let requests =
        unfold(receiver, async |mut receiver| receiver.recv().await.map(|request| (request, receiver)));
    let opened: Result<_, Status> = LeaseClient::new(channel).lease_keep_alive(Box::pin(requests)).await;
    Ok((sender, opened.map_err(CallError::Refused)?.into_inner()))
}

fn big(client: LeaseClient<Connection>) -> LeaseClient<Connection> {
    client.max_decoding_message_size(usize::MAX)
}

/// These commands have an exit code of their own for every error.
fn bad_connection(error: CallError) -> Failure {
    Failure::from(error).exiting(Exit::BadConnection)
}

fn single<'a>(arguments: &'a [String], complaint: &str) -> Result<&'a str, Failure> {
    match arguments {
        [argument] => Ok(argument),
        _ => Err(Failure::arguments(complaint)),
    }
}

fn lease_id(text: &str) -> Result<i64, Failure> {
    go_text::parse_int(text, 16)
        .map_err(|error| Failure::arguments(format_args!("bad lease ID arg ({error}), expecting ID in Hex")))
}
