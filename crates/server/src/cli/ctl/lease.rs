//! The lease commands.

use std::time::Duration;

use clap::Subcommand;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Status};

use super::failure::{Exit, Failure};
use super::print::lease::{Revoked, TimeToLive};
use super::print::{Format, write_out};
use super::retry::RETRY;
use super::{Global, Session, go_text};
use crate::client::Connection;
use crate::client::{CallError, Client, Replies};

/// Leases are renewed when a third of their time is over, so that two attempts may fail.
const RENEWALS_PER_TTL: u32 = 3;

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
    let mut renewals = Renewals::of(&session.client, id);
    loop {
        match renewals.next().await {
            Ok(Some(reply)) => session.printer.print(&reply)?,
            Ok(None) if once => {
                return Err(
                    Failure::error("etcdserver: requested lease not found").exiting(Exit::BadConnection)
                );
            }
            Ok(None) if session.printer.format == Format::Simple => {
                return write_out(format!("lease {id:016x} expired or revoked.\n").as_bytes());
            }
            Ok(None) => return Ok(()),
            Err(error) if renewals.may_go_on_after(&error) => continue,
            Err(error) => return Err(bad_connection(error)),
        }
        if once {
            return Ok(());
        }
    }
}

/// The renewals of a lease, on another server when one goes away.
pub(super) struct Renewals {
    client: Client,
    id: i64,
    /// Both ends of the stream, unless that broke.
    stream: Option<(mpsc::Sender<LeaseKeepAliveRequest>, Replies<LeaseKeepAliveResponse>)>,
    /// When it is time for the next.
    due: Instant,
    /// When the lease has ended unless it is renewed; unknown before there is word of it.
    until: Option<Instant>,
}

impl Renewals {
    /// Of a lease that nothing is known of.
    pub(super) fn of(client: &Client, id: i64) -> Renewals {
        Renewals { client: client.clone(), id, stream: None, due: Instant::now(), until: None }
    }

    /// The same of one that had so long to live when somebody asked.
    pub(super) fn since(mut self, asked: Instant, ttl: Duration) -> Renewals {
        self.note(asked, ttl);
        self
    }

    fn note(&mut self, asked: Instant, ttl: Duration) {
        self.until = Some(asked + ttl);
        // A server that does not answer leaves time to ask another.
        self.client.command_timeout = self.client.command_timeout.min(ttl / RENEWALS_PER_TTL);
    }

    /// Renews the lease when it is time for that. `None` when it is gone, or its time is over without word of it.
    ///
    /// # Errors
    /// It was not renewed. The next attempt is on a new connection, after a pause.
    pub(super) async fn next(&mut self) -> Result<Option<LeaseKeepAliveResponse>, CallError> {
        match self.until {
            None => self.renew().await,
            Some(until) => timeout_at(until, self.renew()).await.unwrap_or(Ok(None)),
        }
    }

    /// Whether the next attempt may succeed, and the lease is known to live for as long as that.
    fn may_go_on_after(&self, error: &CallError) -> bool {
        let is_token = |status: &Status| status.code() == Code::Unauthenticated;
        // A token that ended is replaced with the connection.
        let passes = error.is_outage() || matches!(error, CallError::Refused(status) if is_token(status));
        passes && self.until.is_some()
    }

    async fn renew(&mut self) -> Result<Option<LeaseKeepAliveResponse>, CallError> {
        sleep_until(self.due).await;
        let asked = Instant::now();
        match self.ask().await {
            Ok(reply) if reply.ttl > 0 => {
                let ttl = Duration::from_secs(reply.ttl.unsigned_abs());
                self.note(asked, ttl);
                self.due = Instant::now() + ttl / RENEWALS_PER_TTL;
                Ok(Some(reply))
            }
            Ok(_) => Ok(None),
            Err(error) => {
                self.stream = None;
                self.due = Instant::now() + RETRY;
                Err(error)
            }
        }
    }

    async fn ask(&mut self) -> Result<LeaseKeepAliveResponse, CallError> {
        let request = LeaseKeepAliveRequest { id: self.id };
        let (_, replies) = match &mut self.stream {
            Some(stream) => {
                // If nobody takes it, there is no answer either.
                let _ = stream.0.send(request).await;
                stream
            }
            None => {
                let call = async |connection, requests| {
                    LeaseClient::new(connection).lease_keep_alive(requests).await
                };
                self.stream.insert(self.client.converse(&request, call).await?)
            }
        };
        match timeout(self.client.command_timeout, replies.message()).await {
            Ok(reply) => reply?.ok_or_else(|| CallError::Refused(Status::unavailable("the stream ended"))),
            Err(_) => {
                replies.leave();
                Err(CallError::Timeout)
            }
        }
    }
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
