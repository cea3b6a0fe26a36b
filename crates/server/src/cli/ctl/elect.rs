//! `elect`: leads an election until a signal, or shows who leads.

use std::ffi::OsString;

use bytes::Bytes;
use hadron_proto::etcdserverpb::{RangeRequest, RangeResponse};
use hadron_proto::v3electionpb::election_client::ElectionClient;
use hadron_proto::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ResignRequest};
use tokio::time::sleep;

use super::failure::Failure;
use super::hold::{Interrupts, KeptLease};
use super::kv::{self, into_bytes};
use super::retry::{RETRY, until_answered};
use super::{Global, Session};
use crate::client::CallError;

/// Seconds until a leader that dies is one no more.
const TTL: i64 = 60;

/// Arguments of `elect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Elect {
    /// Name of the election, and what to propose in it
    #[arg(value_name = "NAME [PROPOSAL]")]
    arguments: Vec<OsString>,
    /// Show who leads, now and later
    #[arg(short, long)]
    listen: bool,
}

impl Elect {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let arguments: Vec<Bytes> = self.arguments.into_iter().map(into_bytes).collect();
        match (arguments.as_slice(), self.listen) {
            ([name], true) => observe(&Session::new(global)?, name.clone()).await,
            ([_], false) => Err(Failure::arguments("no proposal argument but -l not set")),
            ([name, proposal], false) => {
                campaign(&Session::new(global)?, name.clone(), proposal.clone()).await
            }
            ([_, _], true) => Err(Failure::arguments("proposal given but -l is set")),
            _ => Err(Failure::arguments(
                "elect takes one election name argument and an optional proposal argument",
            )),
        }
    }
}

async fn observe(session: &Session, name: Bytes) -> Result<(), Failure> {
    let mut interrupts = Interrupts::catch()?;
    tokio::select! {
        result = follow(session, name) => result,
        () = interrupts.next() => Ok(()),
    }
}

/// Shows each leader once, on another server when one goes away.
async fn follow(session: &Session, name: Bytes) -> Result<(), Failure> {
    let request = LeaderRequest { name };
    let call = async |connection| ElectionClient::new(connection).observe(request.clone()).await;
    let lost = |error| match error {
        CallError::Refused(_) => Failure::error("elect: observer lost"),
        error => error.into(),
    };
    let mut leaders = session.client.listen(call).await.map_err(lost)?;
    let mut shown = 0;
    loop {
        match leaders.message().await {
            Err(error) if !error.is_outage() => return Err(lost(error)),
            Ok(None) | Err(_) => {
                sleep(RETRY).await;
                leaders = until_answered(async || session.client.listen(call).await).await.map_err(lost)?;
            }
            Ok(Some(LeaderResponse { header, kv: Some(kv) })) if kv.mod_revision > shown => {
                shown = kv.mod_revision;
                session.printer.print(&RangeResponse { header, kvs: vec![kv], ..Default::default() })?;
            }
            Ok(Some(_)) => {}
        }
    }
}

async fn campaign(session: &Session, name: Bytes, proposal: Bytes) -> Result<(), Failure> {
    let mut lease = KeptLease::grant(&session.client, TTL).await?;
    let mut interrupts = Interrupts::catch()?;
    let elected = tokio::select! {
        elected = win(&mut lease, name, proposal) => Some(elected?),
        () = interrupts.next() => None,
    };
    let Some(leader) = elected else {
        lease.revoke().await?;
        return Err(Failure::error("context canceled"));
    };
    let request = RangeRequest { key: leader.key.clone(), ..RangeRequest::default() };
    let call = async |connection| kv::client(connection).range(request.clone()).await;
    session.printer.print(&session.client.read(call).await?)?;
    tokio::select! {
        () = interrupts.next() => {}
        () = lease.ended() => return Err(Failure::error("elect: session expired")),
    }
    let request = ResignRequest { leader: Some(leader) };
    let call = async |connection| ElectionClient::new(connection).resign(request).await;
    session.client.write(call).await?;
    Ok(())
}

async fn win(lease: &mut KeptLease, name: Bytes, value: Bytes) -> Result<LeaderKey, Failure> {
    let request = CampaignRequest { name, lease: lease.id, value };
    let call = async |connection| ElectionClient::new(connection).campaign(request.clone()).await;
    match lease.wait(call).await {
        Some(elected) => Ok(elected?.leader.unwrap_or_default()),
        None => Err(Failure::error("elect: session expired")),
    }
}
