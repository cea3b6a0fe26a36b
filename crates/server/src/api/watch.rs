//! The service `Watch`: carries requests of one stream to the keyspace's watch stream, and its responses back.
//!
//! Nothing is buffered here. A response is taken from the keyspace only when HTTP/2 has room for it, so the flow
//! control of a client that does not read reaches the keyspace, which lets such a watcher fall back to history.
//!
//! As in etcd, a request of an unknown kind is ignored, a client may close its half and still receive events, and a
//! client that demanded a leader is cut off when there was none for a while.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use futures::{Stream, StreamExt};
use hadron_keyspace::{Keyspace, WatchOptions, WatchStream};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::watch_request::RequestUnion;
use rand::Rng;
use tokio::time::{Instant, Interval};
use tonic::{Request, Response, Status, Streaming};

use super::backend::Backend;
use super::context::{Context, Learners};
use super::leader::WhileLed;

/// The service.
pub(super) struct Watch<B> {
    context: Arc<Context<B>>,
}

impl<B> Watch<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Watch<B> {
        Watch { context }
    }
}

/// One client's stream of watches.
pub(super) struct WatchCall<B: Backend> {
    context: Arc<Context<B>>,
    requests: Streaming<pb::WatchRequest>,
    /// The client has closed its half: no more requests, but events go on.
    requests_ended: bool,
    watches: WatchStream,
    progress_ticks: Interval,
    ended: bool,
}

impl<B: Backend> WatchCall<B> {
    fn new(
        context: Arc<Context<B>>,
        keyspace: &Arc<Keyspace>,
        requests: Streaming<pb::WatchRequest>,
    ) -> Self {
        let interval = context.watch_progress_interval;
        let interval = interval + interval.mul_f64(rand::rng().random_range(0.0..0.1));
        context.metrics.watch_streams.add(1.0);
        WatchCall {
            context,
            requests,
            requests_ended: false,
            watches: keyspace.watch_stream(WatchOptions::default()),
            progress_ticks: tokio::time::interval_at(Instant::now() + interval, interval),
            ended: false,
        }
    }
}

impl<B: Backend> Drop for WatchCall<B> {
    fn drop(&mut self) {
        self.context.metrics.watch_streams.add(-1.0);
    }
}

impl<B: Backend> WatchCall<B> {
    fn take_request(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.watches.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.watches.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.watches.request_progress(),
            None => {}
        }
    }

    /// Takes one request if there is one. `Ready(Err)` ends the call.
    fn poll_request(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        if self.requests_ended {
            return Poll::Pending;
        }
        match self.requests.poll_next_unpin(task) {
            Poll::Ready(Some(Ok(request))) => {
                self.take_request(request);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error)),
            Poll::Ready(None) => {
                self.requests_ended = true;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn complete(&self, mut response: pb::WatchResponse) -> pb::WatchResponse {
        self.context.metrics.watch_events.add(response.events.len() as u64);
        self.context.complete(&mut response.header, self.context.status().term);
        if response.compact_revision != 0 {
            // etcd gives no reason here; the revision is the reason.
            response.cancel_reason.clear();
        }
        response
    }
}

impl<B: Backend> Stream for WatchCall<B> {
    type Item = Result<pb::WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        while self.progress_ticks.poll_tick(task).is_ready() {
            self.watches.tick_progress();
        }
        loop {
            // One request, then a response: so neither side of the stream can starve the other, and a client that
            // only sends requests cannot pile answers up.
            let request = self.poll_request(task);
            if let Poll::Ready(Err(error)) = request {
                self.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
            if let Poll::Ready(response) = self.watches.poll_next(task) {
                return Poll::Ready(Some(Ok(self.complete(response))));
            }
            if request.is_pending() {
                return Poll::Pending;
            }
        }
    }
}

#[tonic::async_trait]
impl<B: Backend> pb::watch_server::Watch for Watch<B> {
    type WatchStream = WhileLed<B, WatchCall<B>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse)?;
        let keyspace = self.context.keyspace()?;
        let (metadata, _, requests) = request.into_parts();
        let call = WatchCall::new(Arc::clone(&self.context), &keyspace, requests);
        Ok(Response::new(WhileLed::new(Arc::clone(&self.context), &metadata, call)))
    }
}
