//! The service `Lease`. Time is the group's logical clock, never this node's.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hadron_keyspace::auth::Need;
use hadron_keyspace::{Command, LEASE_BYTES, check};
use hadron_proto::etcdserverpb as pb;
use rand::Rng;
use tonic::{Request, Response, Status, Streaming};

use super::backend::Backend;
use super::caller::Claim;
use super::context::{Context, Learners, mismatch};
use super::error::refusal;
use super::leader::WhileLed;
use super::unsent;

/// Keep-alives of one stream that may be under way at once. Answers keep the order of the requests. Without this a
/// client with many leases on one stream would renew them one entry at a time.
const KEEP_ALIVES_IN_FLIGHT: usize = 128;

/// The service.
pub(super) struct Lease<B> {
    context: Arc<Context<B>>,
}

impl<B> Lease<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Lease<B> {
        Lease { context }
    }
}

/// A random positive id. It is chosen before the command is proposed, so that all replicas use the same.
fn random_id() -> i64 {
    rand::rng().random_range(1..=i64::MAX)
}

/// Keeps one lease alive. The header is made before, as in etcd: a client that sees revision N in it may conclude that
/// the lease had not ended at N.
async fn keep_alive<B: Backend>(
    context: Arc<Context<B>>,
    claim: Claim,
    request: Result<pb::LeaseKeepAliveRequest, Status>,
) -> Result<pb::LeaseKeepAliveResponse, Status> {
    let id = request?.id;
    context.permit(&claim, Need::WriteLease(id)).await?;
    let header = Some(context.header_now());
    let (response, _) = context.write_counted(&claim, Command::LeaseKeepAlive(vec![id])).await?;
    let hadron_keyspace::Response::LeaseKeepAlive(mut answers) = response else { return Err(mismatch()) };
    let answer = answers.pop().ok_or_else(mismatch)?;
    context.metrics.leases_renewed.inc();
    Ok(pb::LeaseKeepAliveResponse { header, ..answer })
}

#[tonic::async_trait]
impl<B: Backend> pb::lease_server::Lease for Lease<B> {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        self.context.permit(&claim, Need::User).await?;
        let mut grant = request.into_inner();
        check::lease_grant(&grant).map_err(refusal)?;
        if grant.id == 0 {
            grant.id = random_id();
        }
        grant.ttl = grant.ttl.max(self.context.limits.lease_ttl_min);
        self.context.check_space(LEASE_BYTES).await?;
        let (response, term) = self.context.write_counted(&claim, Command::LeaseGrant(grant)).await?;
        let hadron_keyspace::Response::LeaseGrant(mut response) = response else { return Err(mismatch()) };
        self.context.complete(&mut response.header, term);
        self.context.metrics.leases_granted.inc();
        self.context.metrics.lease_ttl.observe(Duration::from_secs(response.ttl.unsigned_abs()));
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        let revoke = Command::LeaseRevoke(request.into_inner());
        let (response, term) = self.context.write_for(&claim, revoke).await?;
        let hadron_keyspace::Response::LeaseRevoke(mut response) = response else { return Err(mismatch()) };
        self.context.complete(&mut response.header, term);
        self.context.metrics.leases_revoked.inc();
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    /// A lease that does not exist, or no longer, is answered with a remaining time of 0. Any other failure ends the
    /// stream: the client reconnects, maybe to another node.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        let (metadata, _, requests) = request.into_parts();
        let context = Arc::clone(&self.context);
        let answers = requests
            .map(move |request| keep_alive(Arc::clone(&context), claim.clone(), request))
            .buffered(KEEP_ALIVES_IN_FLIGHT);
        let answers = WhileLed::new(Arc::clone(&self.context), &metadata, Box::pin(answers));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        let _counting = self.context.count_read(&claim, None);
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let keyspace = self.context.keyspace_after_barrier().await?;
        let permit = self.context.permit(&claim, Need::User).await?;
        let clock_ms = self.context.backend.group_clock_ms(self.context.group);
        let mut response = match keys {
            true => {
                let beside = Arc::clone(&keyspace);
                let read = move || Ok(beside.lease_time_to_live(id, keys, clock_ms));
                self.context.read_beside(read).await?
            }
            false => keyspace.lease_time_to_live(id, keys, clock_ms),
        };
        // Of what is shown: the lease may have other keys by now.
        self.context.permit(&claim, Need::ReadKeys(&response.keys)).await?;
        permit.check_still(&keyspace)?;
        self.context.complete(&mut response.header, self.context.status().term);
        Ok(unsent::answer(response))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        let _counting = self.context.count_read(&claim, None);
        let keyspace = self.context.keyspace_after_barrier().await?;
        let permit = self.context.permit(&claim, Need::ReadLeases).await?;
        let leases = keyspace.leases().into_iter().map(|id| pb::LeaseStatus { id }).collect();
        permit.check_still(&keyspace)?;
        Ok(unsent::answer(pb::LeaseLeasesResponse { header: Some(self.context.header_now()), leases }))
    }
}
