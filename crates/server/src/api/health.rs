//! The service `grpc.health.v1.Health`, which load balancers and probes ask. As in etcd, only the server as a whole
//! (the empty service name) has a status; it is serving when this node has state to serve from.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use hadron_proto::health;
use hadron_proto::health::health_check_response::ServingStatus;
use hadron_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::context::Context;

/// How soon a watcher hears of a change.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The service.
pub(super) struct Health<B> {
    context: Arc<Context<B>>,
}

impl<B: Backend> Health<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Health<B> {
        Health { context }
    }
}

fn serving<B: Backend>(context: &Context<B>) -> ServingStatus {
    match context.backend.keyspace(context.group) {
        Some(_) => ServingStatus::Serving,
        None => ServingStatus::NotServing,
    }
}

/// The status whenever it differs from `last`, which is `None` at first.
async fn next_change<B: Backend>(
    context: Arc<Context<B>>,
    known: bool,
    last: Option<ServingStatus>,
) -> ServingStatus {
    loop {
        let status = if known { serving(&context) } else { ServingStatus::ServiceUnknown };
        if last != Some(status) {
            return status;
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl<B: Backend> health::health_server::Health for Health<B> {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match request.get_ref().service.as_str() {
            "" => Ok(Response::new(response(serving(&self.context)))),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.get_ref().service.is_empty();
        let context = Arc::clone(&self.context);
        let changes = stream::unfold(None, move |last| {
            let context = Arc::clone(&context);
            async move {
                let status = next_change(context, known, last).await;
                Some((Ok(response(status)), Some(status)))
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
