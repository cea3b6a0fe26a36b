//! The service `Cluster`: who the members are, and how that changes (`membership`). Members are the pool's, and are changed in
//! `default`; clients of other keyspaces are told where to find theirs.

use std::sync::Arc;

use hadron_keyspace::auth::Need;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::{MemberListRequest, MemberListResponse};
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::caller::Claim;
use super::choice::Door;
use super::context::{Context, Learners};

/// The service.
pub(super) struct Cluster<B> {
    context: Arc<Context<B>>,
}

impl<B> Cluster<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Cluster<B> {
        Cluster { context }
    }
}

impl<B: Backend> Cluster<B> {
    /// Members have no revision; etcd leaves it out of these headers too.
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.context.header(0, self.context.status().term))
    }

    /// Refuses a change to whoever may not make it.
    async fn permit_change<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        if !self.context.is_default() {
            let text = "hadron: members are the pool's, and are changed in its keyspace default";
            return Err(Status::permission_denied(text));
        }
        self.context.permit_current(&Claim::of(request), Need::Root).await.map(drop)
    }
}

#[tonic::async_trait]
impl<B: Backend> pb::cluster_server::Cluster for Cluster<B> {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        if request.get_ref().linearizable {
            self.context.backend.read_barrier(hadron_consensus::ROOT_GROUP).await?;
        }
        self.context.permit(&Claim::of(&request), Need::User).await?;
        let members = self.context.members(request.extensions().get::<Door>());
        Ok(Response::new(MemberListResponse { header: self.header(), members }))
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.permit_change(&request).await?;
        let request = request.into_inner();
        let added = self.context.add_member(&request.peer_ur_ls, request.is_learner).await?;
        let members = self.context.backend.members();
        let member = members.iter().find(|member| member.id == added.id).cloned();
        Ok(Response::new(pb::MemberAddResponse { header: self.header(), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.permit_change(&request).await?;
        self.context.remove_member(request.get_ref().id).await?;
        let members = self.context.backend.members();
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header(), members }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.permit_change(&request).await?;
        let request = request.into_inner();
        self.context.update_member(request.id, &request.peer_ur_ls).await?;
        let members = self.context.backend.members();
        Ok(Response::new(pb::MemberUpdateResponse { header: self.header(), members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.permit_change(&request).await?;
        let metrics = &self.context.metrics;
        if let Err(error) = self.context.promote_member(request.get_ref().id).await {
            metrics.learner_promotion_failures.with(&[error.message()]).inc();
            return Err(error);
        }
        metrics.learner_promotions.inc();
        let members = self.context.backend.members();
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header(), members }))
    }
}
