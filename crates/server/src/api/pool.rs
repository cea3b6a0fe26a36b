//! The service `hadron.v1.Pool`: what a pool tells beyond etcd's services.

use std::sync::Arc;

use hadron_consensus::{DEFAULT_GROUP, ROOT_GROUP};
use hadron_keyspace::auth::Need;
use hadron_proto::hadron;
use hadron_proto::hadron::{ElectionHistoryRequest, ElectionHistoryResponse};
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::caller::Claim;
use super::context::Context;

/// The service.
pub(super) struct Pool<B> {
    context: Arc<Context<B>>,
}

impl<B> Pool<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Pool<B> {
        Pool { context }
    }
}

#[tonic::async_trait]
impl<B: Backend> hadron::pool_server::Pool for Pool<B> {
    async fn election_history(
        &self,
        request: Request<ElectionHistoryRequest>,
    ) -> Result<Response<ElectionHistoryResponse>, Status> {
        self.context.permit(&Claim::of(&request), Need::User).await?;
        let group = match request.into_inner().keyspace.as_str() {
            "" => None,
            "default" => Some(DEFAULT_GROUP),
            "root" => Some(ROOT_GROUP),
            unknown => return Err(Status::not_found(format!("hadron: no keyspace is named {unknown:?}"))),
        };
        let mut elections = self.context.backend.elections();
        elections.retain(|election| group.is_none_or(|group| election.group == group.0));
        let mut log_shares = self.context.backend.log_shares();
        log_shares.retain(|shares| group.is_none_or(|group| shares.group == group.0));
        Ok(Response::new(ElectionHistoryResponse { elections, log_shares }))
    }
}
