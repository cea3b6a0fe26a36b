//! The service `Cluster`: who the members are. Changes of membership are not supported yet.

use std::sync::Arc;

use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::{MemberListRequest, MemberListResponse};
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::context::{Context, Learners};
use super::error::unimplemented;

/// The service.
pub(super) struct Cluster<B> {
    context: Arc<Context<B>>,
}

impl<B> Cluster<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Cluster<B> {
        Cluster { context }
    }
}

#[tonic::async_trait]
impl<B: Backend> pb::cluster_server::Cluster for Cluster<B> {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse)?;
        if request.get_ref().linearizable {
            self.context.backend.read_barrier(hadron_consensus::ROOT_GROUP).await?;
        }
        // Members have no revision; etcd leaves it out of this header too.
        let header = self.context.header(0, self.context.status().term);
        let members = self.context.backend.members();
        Ok(Response::new(MemberListResponse { header: Some(header), members }))
    }

    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(unimplemented("MemberAdd"))
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(unimplemented("MemberRemove"))
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(unimplemented("MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(unimplemented("MemberPromote"))
    }
}
