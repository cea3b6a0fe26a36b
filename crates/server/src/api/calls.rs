//! Every call that there is, and the counting of calls: that one begins, its messages, and how it ends; with its span, if it is traced.
//!
//! Invariant: each call that begins ends once: with the status that its client gets, or as cancelled when the client is gone before that.
//! So those that began less those that ended are those that are open, as dashboards reckon.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Request, Response};
use hyper::body::Frame;
use opentelemetry_sdk::trace::SdkTracer;
use tonic::body::Body;
use tonic::{Code, Status};

use super::forward::Wants;
use super::services::{RequestBody, Service};
use super::slow::Slow;
use super::span::CallSpan;
use crate::metrics::{Counter, Histogram, Metrics};

/// A call with one answer, as grpc's metrics spell it.
const UNARY: &str = "unary";
/// A call whose client may send any number of messages.
const BOTH_WAYS: &str = "bidi_stream";
/// Where a client says for which version of etcd it was made.
const CLIENT_VERSION: &str = "client-api-version";
/// The longest such version: everything else counts as unknown, or clients could make up any number of labels.
const CLIENT_VERSION_BYTES_MAX: usize = 5;

/// Every call: its service, the service's name, its name, and its kind as grpc's metrics spell it.
const CALLS: &[(Service, &str, &[&str], &str)] = &[
    (Service::Kv, "etcdserverpb.KV", &["Range", "Put", "DeleteRange", "Txn", "Compact"], UNARY),
    (Service::Kv, "etcdserverpb.KV", &["RangeStream"], "server_stream"),
    (Service::Watch, "etcdserverpb.Watch", &["Watch"], BOTH_WAYS),
    (
        Service::Lease,
        "etcdserverpb.Lease",
        &["LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"],
        UNARY,
    ),
    (Service::Lease, "etcdserverpb.Lease", &["LeaseKeepAlive"], BOTH_WAYS),
    (
        Service::Cluster,
        "etcdserverpb.Cluster",
        &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"],
        UNARY,
    ),
    (
        Service::Maintenance,
        "etcdserverpb.Maintenance",
        &["Alarm", "Status", "Defragment", "Hash", "HashKV", "MoveLeader", "Downgrade"],
        UNARY,
    ),
    (Service::Maintenance, "etcdserverpb.Maintenance", &["Snapshot"], "server_stream"),
    (
        Service::Auth,
        "etcdserverpb.Auth",
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
        UNARY,
    ),
    (Service::Lock, "v3lockpb.Lock", &["Lock", "Unlock"], UNARY),
    (Service::Election, "v3electionpb.Election", &["Campaign", "Proclaim", "Leader", "Resign"], UNARY),
    (Service::Election, "v3electionpb.Election", &["Observe"], "server_stream"),
    (Service::Health, "grpc.health.v1.Health", &["Check"], UNARY),
    (Service::Health, "grpc.health.v1.Health", &["Watch"], "server_stream"),
    (
        Service::Pool,
        "hadron.v1.Pool",
        &[
            "ElectionHistory",
            "KeyspaceCreate",
            "KeyspaceList",
            "KeyspaceGet",
            "KeyspaceUpdate",
            "KeyspaceDelete",
            "NodeList",
            "BalanceStatus",
            "BalanceHistory",
            "BalanceSimulate",
            "BalancePause",
            "NodeDrain",
            "Top",
        ],
        UNARY,
    ),
    (Service::Reflection, "grpc.reflection.v1.ServerReflection", &["ServerReflectionInfo"], BOTH_WAYS),
    (
        Service::OldReflection,
        "grpc.reflection.v1alpha.ServerReflection",
        &["ServerReflectionInfo"],
        BOTH_WAYS,
    ),
];

/// Where a path leads, and its counters.
pub(super) struct Route {
    pub(super) service: Service,
    service_name: &'static str,
    method: &'static str,
    kind: &'static str,
    started: Arc<Counter>,
    answered: Arc<Counter>,
    received: Arc<Counter>,
    sent: Arc<Counter>,
    /// Made with the first call: nobody wants the buckets of calls that are never made.
    duration: OnceLock<Arc<Histogram>>,
    /// The first version that a client said, since most clients say the same.
    version: OnceLock<(String, Arc<Counter>)>,
    metrics: Arc<Metrics>,
}

/// The way of each path.
pub(super) fn routes(metrics: &Arc<Metrics>) -> HashMap<String, Arc<Route>> {
    let mut routes = HashMap::new();
    for &(service, service_name, methods, kind) in CALLS {
        for &method in methods {
            let labels = [method, service_name, kind];
            let route = Route {
                service,
                service_name,
                method,
                kind,
                started: metrics.grpc_started.with(&labels),
                answered: metrics.grpc_handled.with(&["OK", method, service_name, kind]),
                received: metrics.grpc_received.with(&labels),
                sent: metrics.grpc_sent.with(&labels),
                duration: OnceLock::new(),
                version: OnceLock::new(),
                metrics: Arc::clone(metrics),
            };
            routes.insert(format!("/{service_name}/{method}"), Arc::new(route));
        }
    }
    routes
}

impl Route {
    /// Counts that a call begins, and lets `tracer` begin its span.
    pub(super) fn begin<R>(route: &Arc<Route>, request: &Request<R>, tracer: Option<&SdkTracer>) -> Begun {
        route.started.inc();
        route.count_version(request.headers());
        let span = tracer
            .and_then(|tracer| CallSpan::begin(tracer, route.service_name, route.method, request))
            .map(Box::new);
        if !route.is_asked_many_times() {
            route.received.inc();
        }
        Begun { route: Some(Arc::clone(route)), at: Instant::now(), span }
    }

    /// Whether it has one answer.
    pub(super) fn is_unary(&self) -> bool {
        self.kind == UNARY
    }

    /// Whether a call may read so much that it has to wait for its turn.
    pub(super) fn may_read_long(&self) -> bool {
        self.service == Service::Kv && matches!(self.method, "Range" | "RangeStream" | "DeleteRange" | "Txn")
    }

    /// Whether its calls count among the requests that a keyspace may have a second. Not what keeps leases alive, for the sake of
    /// what ends with them, nor what probes ask.
    pub(super) fn is_limited(&self) -> bool {
        self.service != Service::Health && self.method != "LeaseKeepAlive"
    }

    /// Which replica should get it, if none is here.
    pub(super) fn wants(&self) -> Wants {
        let reads = match self.service {
            Service::Kv => matches!(self.method, "Range" | "RangeStream"),
            Service::Maintenance => matches!(self.method, "Snapshot" | "Hash" | "HashKV"),
            Service::Election => matches!(self.method, "Leader" | "Observe"),
            Service::Watch | Service::Cluster | Service::Health => true,
            _ => false,
        };
        if reads { Wants::Replica } else { Wants::Leader }
    }

    /// Whether its client may send more than one message.
    pub(super) fn is_asked_many_times(&self) -> bool {
        self.kind == BOTH_WAYS
    }

    /// Counts the messages of a request.
    pub(super) fn count_received<R: RequestBody>(&self, body: R) -> Body {
        let (messages, counter) = (Messages::default(), Arc::clone(&self.received));
        Body::new(CountedRequest { body: Box::pin(body), messages, counter })
    }

    fn count_version(&self, headers: &HeaderMap) {
        let said = headers.get(CLIENT_VERSION).and_then(|version| version.to_str().ok());
        let is_version = |text: &&str| {
            text.len() <= CLIENT_VERSION_BYTES_MAX && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        };
        let version = said.filter(is_version).unwrap_or("unknown");
        let kind = if self.is_unary() { UNARY } else { "stream" };
        let counter = || self.metrics.client_requests.with(&[version, kind]);
        match self.version.get_or_init(|| (version.to_owned(), counter())) {
            (known, counter) if known == version => counter.inc(),
            _ => counter().inc(),
        }
    }

    fn end(&self, code: Code, began: Instant) {
        let labels = [self.method, self.service_name, self.kind];
        self.duration.get_or_init(|| self.metrics.grpc_duration.with(&labels)).observe(began.elapsed());
        match code {
            Code::Ok => self.answered.inc(),
            code => {
                let labels = [code_name(code), self.method, self.service_name, self.kind];
                self.metrics.grpc_handled.with(&labels).inc();
            }
        }
    }
}

/// A call that has begun. If it is dropped before its end, it was cancelled.
pub(super) struct Begun {
    /// `None` after its end.
    route: Option<Arc<Route>>,
    at: Instant,
    /// Present until its end, if it is traced.
    span: Option<Box<CallSpan>>,
}

impl Begun {
    /// Whether it has one answer; to be asked before its end.
    pub(super) fn is_unary(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.is_unary())
    }

    /// Tells `slow` how long it took.
    pub(super) fn note(&self, slow: &Slow) {
        if let Some(route) = &self.route {
            slow.note(route.service_name, route.method, self.at);
        }
    }

    /// Counts an answer, which ends a call unless it is a stream.
    pub(super) fn answered(mut self, response: Response<Body>) -> Response<Body> {
        let (code, is_unary) = (code_in(response.headers()), self.is_unary());
        // Only an error that was found before any message was sent stands in the headers.
        if code.is_some() || is_unary {
            let sent = u64::from(code.is_none());
            self.end(code.unwrap_or(Code::Ok), sent, response.headers());
            return response;
        }
        let messages = Messages::default();
        response.map(|body| Body::new(CountedStream { body, messages, begun: self }))
    }

    /// `headers` are those that the code stood in, if it stood in any.
    fn end(&mut self, code: Code, sent: u64, headers: &HeaderMap) {
        if let Some(route) = self.route.take() {
            route.sent.add(sent);
            route.end(code, self.at);
        }
        if let Some(span) = self.span.take() {
            span.end(code, headers);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.end(Code::Cancelled, 0, &HeaderMap::new());
    }
}

/// Finds messages in what passes.
#[derive(Debug, Default)]
struct Messages {
    prefix: Vec<u8>,
    /// Bytes of the present message that are still to come.
    left: usize,
}

impl Messages {
    /// How many begin in these bytes, which follow the ones before.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes.advance(skipped);
                continue;
            }
            self.prefix.push(bytes.get_u8());
            if let [_, a, b, c, d] = *self.prefix {
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.prefix.clear();
                begun += 1;
            }
        }
        begun
    }
}

/// The messages of a client.
struct CountedRequest<R> {
    body: Pin<Box<R>>,
    messages: Messages,
    counter: Arc<Counter>,
}

impl<R: RequestBody> hyper::body::Body for CountedRequest<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let frame = ready!(self.body.as_mut().poll_frame(task));
        if let Some(bytes) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            let begun = self.messages.count(bytes);
            self.counter.add(begun);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The messages of an answer, and the end of its call.
struct CountedStream {
    body: Body,
    messages: Messages,
    begun: Begun,
}

impl hyper::body::Body for CountedStream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(task));
        if let Some(Ok(frame)) = &frame {
            if let Some(bytes) = frame.data_ref() {
                let sent = self.messages.count(bytes);
                self.begun.route.iter().for_each(|route| route.sent.add(sent));
            } else if let Some(trailers) = frame.trailers_ref() {
                self.begun.end(code_in(trailers).unwrap_or(Code::Ok), 0, trailers);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// The code in headers or trailers, if there is one.
pub(super) fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// The answer that Go's gRPC gives for a path it does not know.
pub(super) fn unknown(path: &str) -> Status {
    let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or((path, ""));
    match CALLS.iter().any(|(_, known, _, _)| *known == service) {
        true => Status::unimplemented(format!("unknown method {method} for service {service}")),
        false => Status::unimplemented(format!("unknown service {service}")),
    }
}

/// A code's name as Go's gRPC metrics spell it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_in_any_pieces() {
        let bytes = [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[0; 5], &[0, 0, 0, 0, 1, 9]].concat();
        for size in 1..=bytes.len() {
            let mut messages = Messages::default();
            let found: u64 = bytes.chunks(size).map(|piece| messages.count(piece)).sum();
            assert_eq!(found, 3, "{size}");
        }
    }
}
