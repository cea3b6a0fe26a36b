//! The service `Lock`: mutual exclusion, first come, first served, fenced by revisions.

use std::sync::Arc;

use bytes::Bytes;
use hadron_proto::v3lockpb as lockpb;
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::context::{Context, Learners};
use super::session::{Lost, Session, enter, without_code};

/// The service.
pub(super) struct Lock<B> {
    context: Arc<Context<B>>,
}

impl<B: Backend> Lock<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Lock<B> {
        Lock { context }
    }

    async fn lock(
        session: &Session<B>,
        request: lockpb::LockRequest,
    ) -> Result<lockpb::LockResponse, Status> {
        let lockpb::LockRequest { name, lease } = request;
        let lease = session.lease(lease).await?;
        let (candidacy, _) = enter(session, &name, lease, Bytes::new()).await?;
        let key = candidacy.place().key.clone();
        let header = candidacy.win().await.map_err(|lost| match lost {
            Lost::Place => Status::unknown("mutex: session is expired"),
            Lost::Call(status) => status,
        })?;
        Ok(lockpb::LockResponse { header, key })
    }
}

#[tonic::async_trait]
impl<B: Backend> lockpb::lock_server::Lock for Lock<B> {
    async fn lock(
        &self,
        request: Request<lockpb::LockRequest>,
    ) -> Result<Response<lockpb::LockResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let session = Session::new(&self.context, &request);
        Lock::lock(&session, request.into_inner()).await.map(Response::new).map_err(without_code)
    }

    async fn unlock(
        &self,
        request: Request<lockpb::UnlockRequest>,
    ) -> Result<Response<lockpb::UnlockResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let session = Session::new(&self.context, &request);
        let deleted = session.delete(request.into_inner().key).await.map_err(without_code)?;
        Ok(Response::new(lockpb::UnlockResponse { header: deleted.header }))
    }
}
