//! The service `Watch`: carries requests of one stream to the keyspace's watch stream, and its responses back.
//!
//! Nothing is buffered here. A response is taken from the keyspace only when HTTP/2 has room for it, so the flow
//! control of a client that does not read reaches the keyspace, which lets such a watcher fall back to history.
//!
//! What may not be watched is refused, and a watch whose permission is taken away ends before it shows anything more.
//!
//! As in etcd, a request of an unknown kind is ignored, a client may close its half and still receive events, and a
//! client that demanded a leader is cut off when there was none for a while.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use hadron_keyspace::auth::{Caller, Need};
use hadron_keyspace::{Keyspace, WatchOptions, WatchStream};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::watch_request::RequestUnion;
use rand::Rng;
use tokio::time::{Instant, Interval};
use tonic::{Request, Response, Status, Streaming};

use super::backend::Backend;
use super::caller::Claim;
use super::calls::code_name;
use super::context::{Context, Learners};
use super::error::refusal;
use super::hitters::Usage;
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
    keyspace: Arc<Keyspace>,
    watches: WatchStream,
    rights: Rights,
    /// A watch that this replica does not allow, while it catches up.
    in_doubt: Option<InDoubt>,
    progress_ticks: Interval,
    ended: bool,
}

/// Who watches, and what is known about whether they may.
struct Rights {
    claim: Claim,
    /// Who it was when the first watch was allowed: tokens may end later, watches do not for that.
    user: Option<String>,
    /// The auth revision at which all watches were allowed; `None` while authentication was off.
    seen: Option<u64>,
}

/// A watch that was asked for, and the end of the wait.
struct InDoubt {
    create: pb::WatchCreateRequest,
    caught_up: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Why a watch ends, as etcd spells it: clients compare the text.
fn cancel_reason(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
}

/// Whether a response may be given out although these watches have ended: it is of another, or tells no more than that a watch began or ended. Clients
/// wait for both.
fn may_be_shown(response: &pb::WatchResponse, ended: &[i64]) -> bool {
    response.created || response.canceled || !ended.contains(&response.watch_id)
}

fn auth_revision(keyspace: &Keyspace) -> Option<u64> {
    keyspace.is_auth_enabled().then(|| keyspace.auth_revision())
}

impl<B: Backend> WatchCall<B> {
    fn new(
        context: Arc<Context<B>>,
        keyspace: Arc<Keyspace>,
        claim: Claim,
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
            rights: Rights { claim, user: None, seen: auth_revision(&keyspace) },
            in_doubt: None,
            keyspace,
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
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => self.watches.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.watches.request_progress(),
            None => {}
        }
    }

    fn create(&mut self, create: pb::WatchCreateRequest) {
        if self.permit(&create).is_ok() {
            return self.watches.create(create);
        }
        let context = Arc::clone(&self.context);
        // If this replica cannot catch up, what it knows decides.
        let caught_up = Box::pin(async move { drop(context.keyspace_after_barrier().await) });
        self.in_doubt = Some(InDoubt { create, caught_up });
    }

    /// Whether the watch is allowed as far as this replica knows.
    fn permit(&mut self, create: &pb::WatchCreateRequest) -> Result<(), Status> {
        // Refused for another reason.
        if create.start_revision < 0 {
            return Ok(());
        }
        let first_key = Bytes::from_static(&[0]);
        let key = if create.key.is_empty() { &first_key } else { &create.key };
        let allow = |keyspace: &Keyspace, caller: Option<&Caller>| {
            keyspace.permit(caller, Need::Read(key, &create.range_end))
        };
        let permit = self.context.permit_now(&self.keyspace, &self.rights.claim, allow)?;
        if let Some(caller) = permit.caller {
            self.rights.user.get_or_insert(caller.name);
        }
        Ok(())
    }

    /// Decides about the watch in doubt once the replica has caught up.
    fn poll_in_doubt(&mut self, task: &mut TaskContext<'_>) -> Poll<()> {
        let Some(InDoubt { caught_up, .. }) = &mut self.in_doubt else { return Poll::Ready(()) };
        ready!(caught_up.as_mut().poll(task));
        let Some(InDoubt { create, .. }) = self.in_doubt.take() else { return Poll::Ready(()) };
        match self.permit(&create) {
            Ok(()) => self.watches.create(create),
            Err(status) => self.watches.refuse_creation(&cancel_reason(&status)),
        }
        Poll::Ready(())
    }

    /// Ends the watches that are not allowed any more; which.
    fn end_forbidden(&mut self) -> Vec<i64> {
        let now = auth_revision(&self.keyspace);
        if now == self.rights.seen {
            return Vec::new();
        }
        self.rights.seen = now;
        if now.is_none() {
            return Vec::new();
        }
        if self.rights.user.is_none() {
            let caller = self.context.caller(&self.keyspace, &self.rights.claim).unwrap_or(None);
            self.rights.user = caller.map(|caller| caller.name);
        }
        let reason = |error: &hadron_keyspace::Error| cancel_reason(&refusal(error.clone()));
        self.watches.end_forbidden(self.rights.user.as_deref(), reason)
    }

    /// The next response that may be given out.
    fn poll_response(&mut self, task: &mut TaskContext<'_>) -> Poll<pb::WatchResponse> {
        self.end_forbidden();
        loop {
            let response = ready!(self.watches.poll_next(task));
            // Permissions may have changed since, and before these events.
            let ended = self.end_forbidden();
            if may_be_shown(&response, &ended) {
                return Poll::Ready(response);
            }
        }
    }

    /// Takes one request if there is one. `Ready(Err)` ends the call.
    fn poll_request(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        ready!(self.poll_in_doubt(task));
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
        self.context.backend.count_events(self.context.group, response.events.len());
        if let Some(first) = response.events.iter().find_map(|event| event.kv.as_ref()) {
            self.context.count(&self.rights.claim, Some(&first.key), &Usage::events(&response.events));
        }
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
        // One request, then a response: so neither side of the stream can starve the other, and a client that only sends requests cannot
        // pile answers up.
        let request = self.poll_request(task);
        if let Poll::Ready(Err(error)) = request {
            self.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        if let Poll::Ready(response) = self.poll_response(task) {
            return Poll::Ready(Some(Ok(self.complete(response))));
        }
        if request.is_ready() {
            // There may be another one; other calls have their turn before.
            task.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[tonic::async_trait]
impl<B: Backend> pb::watch_server::Watch for Watch<B> {
    type WatchStream = WhileLed<B, WatchCall<B>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let keyspace = self.context.keyspace()?;
        // What this replica lacks would not come before somebody asks for something else.
        self.context.wake();
        let claim = Claim::of(&request);
        let (metadata, _, requests) = request.into_parts();
        let call = WatchCall::new(Arc::clone(&self.context), Arc::clone(&keyspace), claim, requests);
        Ok(Response::new(WhileLed::new(Arc::clone(&self.context), &metadata, call).on(keyspace)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that is not told that its watch began waits for that, and the ones after it with it.
    #[test]
    fn of_a_watch_that_ended_nothing_is_withheld_that_clients_wait_for() {
        let plain = pb::WatchResponse { watch_id: 3, ..Default::default() };
        let created = pb::WatchResponse { created: true, ..plain.clone() };
        let canceled = pb::WatchResponse { canceled: true, ..plain.clone() };
        assert!(may_be_shown(&plain, &[]) && may_be_shown(&plain, &[4]));
        assert!(!may_be_shown(&plain, &[3]));
        assert!(may_be_shown(&created, &[3]) && may_be_shown(&canceled, &[3]));
    }
}
