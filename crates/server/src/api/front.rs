//! The door: decides for each request which service or page answers it, and counts it.
//!
//! Requests go straight from hyper to the generated service, by one look-up of the path. A general router would box
//! and clone once more per call, which is a tenth of what a Put may cost.
//!
//! A request is a gRPC call if its content type says so, as etcd decides too; everything else is a call of the JSON gateway,
//! which comes back here as a gRPC call, or a page.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use opentelemetry_sdk::trace::SdkTracer;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::{Code, Status};

use hadron_proto::etcdserverpb::auth_server::AuthServer;
use hadron_proto::etcdserverpb::cluster_server::ClusterServer;
use hadron_proto::etcdserverpb::kv_server::KvServer;
use hadron_proto::etcdserverpb::lease_server::LeaseServer;
use hadron_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use hadron_proto::etcdserverpb::watch_server::WatchServer;
use hadron_proto::hadron::pool_server::PoolServer;
use hadron_proto::health::health_server::HealthServer;
use hadron_proto::v3electionpb::election_server::ElectionServer;
use hadron_proto::v3lockpb::lock_server::LockServer;

use super::access::{self, Access};
use super::auth::Auth;
use super::backend::Backend;
use super::cluster::Cluster;
use super::context::Context;
use super::election::Election;
use super::gateway::Gateway;
use super::health::Health;
use super::http::Pages;
use super::kv::Kv;
use super::lease::Lease;
use super::lock::Lock;
use super::maintenance::Maintenance;
use super::pool::Pool;
use super::server::Traffic;
use super::slow::Slow;
use super::socket::{End, EndHidden};
use super::span::CallSpan;
use super::unsent::Unsent;
use super::watch::Watch;
use crate::metrics::{Counter, Metrics};

/// A message may exceed the largest request by this much, as in etcd: then the client hears etcd's own error.
const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

/// A future that the generated services return.
type Call = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The body of a gRPC call: from the network, or made by the gateway.
trait RequestBody:
    hyper::body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send> + Send + 'static
{
}

impl RequestBody for Incoming {}
impl RequestBody for Body {}

#[derive(Clone, Copy, Debug)]
enum Service {
    Kv,
    Watch,
    Lease,
    Cluster,
    Maintenance,
    Auth,
    Lock,
    Election,
    Health,
    Pool,
}

/// A call with one answer, as grpc's metrics spell it.
const UNARY: &str = "unary";

/// Every call: its service, the service's name, its name, and its kind as grpc's metrics spell it.
const CALLS: &[(Service, &str, &[&str], &str)] = &[
    (Service::Kv, "etcdserverpb.KV", &["Range", "Put", "DeleteRange", "Txn", "Compact"], UNARY),
    (Service::Kv, "etcdserverpb.KV", &["RangeStream"], "server_stream"),
    (Service::Watch, "etcdserverpb.Watch", &["Watch"], "bidi_stream"),
    (
        Service::Lease,
        "etcdserverpb.Lease",
        &["LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"],
        UNARY,
    ),
    (Service::Lease, "etcdserverpb.Lease", &["LeaseKeepAlive"], "bidi_stream"),
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
    (Service::Pool, "hadron.v1.Pool", &["ElectionHistory"], UNARY),
];

/// Where a path leads, and its counters.
struct Route {
    service: Service,
    service_name: &'static str,
    method: &'static str,
    kind: &'static str,
    started: Arc<Counter>,
    answered: Arc<Counter>,
    metrics: Arc<Metrics>,
}

impl Route {
    fn count_error(&self, code: Code) {
        let labels = [code_name(code), self.method, self.service_name, self.kind];
        self.metrics.grpc_handled.with(&labels).inc();
    }
}

/// All services and pages of one node. Shared by all connections as an `Arc`.
pub(super) struct Front<B: Backend> {
    routes: HashMap<String, Arc<Route>>,
    kv: KvServer<Kv<B>>,
    watch: WatchServer<Watch<B>>,
    lease: LeaseServer<Lease<B>>,
    cluster: ClusterServer<Cluster<B>>,
    maintenance: MaintenanceServer<Maintenance<B>>,
    auth: AuthServer<Auth<B>>,
    lock: LockServer<Lock<B>>,
    election: ElectionServer<Election<B>>,
    health: HealthServer<Health<B>>,
    pool: PoolServer<Pool<B>>,
    /// `None` when it is switched off.
    gateway: Option<Gateway>,
    pages: Pages<B>,
    access: Access,
    slow: Arc<Slow>,
    /// `None` on a node that does not trace.
    tracer: Option<SdkTracer>,
}

impl<B: Backend> Front<B> {
    pub(super) fn new(
        context: Arc<Context<B>>,
        with_gateway: bool,
        access: Access,
        slow: Option<Duration>,
        tracer: Option<SdkTracer>,
    ) -> Front<B> {
        let limit = context.limits.request_bytes + MESSAGE_OVERHEAD_BYTES;
        let shared = || Arc::clone(&context);
        Front {
            routes: routes(&context.metrics),
            kv: KvServer::new(Kv::new(shared())).max_decoding_message_size(limit),
            watch: WatchServer::new(Watch::new(shared())).max_decoding_message_size(limit),
            lease: LeaseServer::new(Lease::new(shared())).max_decoding_message_size(limit),
            cluster: ClusterServer::new(Cluster::new(shared())).max_decoding_message_size(limit),
            maintenance: MaintenanceServer::new(Maintenance::new(shared())).max_decoding_message_size(limit),
            auth: AuthServer::new(Auth::new(shared())).max_decoding_message_size(limit),
            lock: LockServer::new(Lock::new(shared())).max_decoding_message_size(limit),
            election: ElectionServer::new(Election::new(shared())).max_decoding_message_size(limit),
            health: HealthServer::new(Health::new(shared())).max_decoding_message_size(limit),
            pool: PoolServer::new(Pool::new(shared())).max_decoding_message_size(limit),
            gateway: with_gateway.then(|| Gateway::new(limit)),
            pages: Pages::new(shared()),
            access,
            slow: Arc::new(Slow::new(slow)),
            tracer,
        }
    }

    /// Whether it matters where requests come from.
    pub(super) fn is_traced(&self) -> bool {
        self.tracer.is_some()
    }

    /// Begins to answer a request that came in on a listener for `traffic`.
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        traffic: Traffic,
        end: &End,
        unsent: &Unsent,
    ) -> Answer {
        match (traffic, is_grpc(request.headers())) {
            (Traffic::Everything | Traffic::Grpc, true) => self.answer_grpc(request).counted_in(unsent),
            (Traffic::Grpc, false) => Answer::ready(not_grpc()),
            (Traffic::Everything | Traffic::Http, _) => self.answer_http(request, end),
            (Traffic::Metrics, _) => {
                Answer { hidden: hidden(&request, end), ..Answer::of(self.pages.answer_metrics(request)) }
            }
        }
    }

    fn answer_http(self: &Arc<Self>, request: Request<Incoming>, end: &End) -> Answer {
        let origin = self.access.allowed_origin(request.headers());
        let gateway = self.gateway.as_ref().filter(|_| Gateway::owns(request.uri().path()));
        let is_stream = gateway.is_some_and(|gateway| gateway.is_stream(request.uri().path()));
        let hidden = if is_stream { None } else { hidden(&request, end) };
        let call: Call = if let Some(answer) = self.access.answer(&request) {
            Box::pin(std::future::ready(Ok(answer)))
        } else if let Some(gateway) = gateway {
            let front = Arc::clone(self);
            Box::pin(gateway.answer(request, move |request| front.answer_grpc(request)))
        } else {
            self.pages.answer(request)
        };
        let call = async move {
            let Ok(mut response) = call.await;
            access::allow_origin(response.headers_mut(), origin);
            Ok(response)
        };
        Answer { hidden, ..Answer::of(Box::pin(call)) }
    }

    fn answer_grpc<R: RequestBody>(&self, request: Request<R>) -> Answer {
        let Some(route) = self.routes.get(request.uri().path()) else {
            let status = unknown_call(request.uri().path());
            return Answer::ready(status.into_http());
        };
        route.started.inc();
        let waits = matches!(route.service, Service::Lock | Service::Election);
        let slow = (route.kind == UNARY && !waits).then(|| (Arc::clone(&self.slow), Instant::now()));
        let begin = |tracer| CallSpan::begin(tracer, route.service_name, route.method, &request);
        let span = self.tracer.as_ref().and_then(begin).map(Box::new);
        let route = Arc::clone(route);
        Answer { slow, span, ..Answer::of(self.call(route.service, request)) }.on(route)
    }

    fn call<R: RequestBody>(&self, service: Service, request: Request<R>) -> Call {
        // `call` wants a `&mut` of its own; a clone of a generated service is one more reference to the real one.
        match service {
            Service::Kv => self.kv.clone().call(request),
            Service::Watch => self.watch.clone().call(request),
            Service::Lease => self.lease.clone().call(request),
            Service::Cluster => self.cluster.clone().call(request),
            Service::Maintenance => self.maintenance.clone().call(request),
            Service::Auth => self.auth.clone().call(request),
            Service::Lock => self.lock.clone().call(request),
            Service::Election => self.election.clone().call(request),
            Service::Health => self.health.clone().call(request),
            Service::Pool => self.pool.clone().call(request),
        }
    }
}

fn routes(metrics: &Arc<Metrics>) -> HashMap<String, Arc<Route>> {
    let mut routes = HashMap::new();
    for &(service, service_name, methods, kind) in CALLS {
        for &method in methods {
            let route = Route {
                service,
                service_name,
                method,
                kind,
                started: metrics.grpc_started.with(&[method, service_name, kind]),
                answered: metrics.grpc_handled.with(&["OK", method, service_name, kind]),
                metrics: Arc::clone(metrics),
            };
            routes.insert(format!("/{service_name}/{method}"), Arc::new(route));
        }
    }
    routes
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The answer that Go's gRPC gives for a path it does not know.
fn unknown_call(path: &str) -> Status {
    let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or((path, ""));
    match CALLS.iter().any(|(_, known, _, _)| *known == service) {
        true => Status::unimplemented(format!("unknown method {method} for service {service}")),
        false => Status::unimplemented(format!("unknown service {service}")),
    }
}

/// An answer that is being made; counts its outcome.
pub(super) struct Answer {
    call: Call,
    /// `None` for pages and unknown calls.
    route: Option<Arc<Route>>,
    /// When the call began, if it is one that should not take long.
    slow: Option<(Arc<Slow>, Instant)>,
    /// Where the answer counts; `None` for streams, and for what is no call.
    unsent: Option<Unsent>,
    /// Present while the call goes on, if it is traced.
    span: Option<Box<CallSpan>>,
    /// Present while the client may have closed its half already and is answered all the same.
    hidden: Option<EndHidden>,
}

impl Answer {
    fn of(call: Call) -> Answer {
        Answer { call, route: None, slow: None, unsent: None, span: None, hidden: None }
    }

    fn on(self, route: Arc<Route>) -> Answer {
        Answer { route: Some(route), ..self }
    }

    fn counted_in(self, unsent: &Unsent) -> Answer {
        let is_unary = self.route.as_ref().is_some_and(|route| route.kind == UNARY);
        Answer { unsent: is_unary.then(|| unsent.clone()), ..self }
    }

    fn ready(response: Response<Body>) -> Answer {
        Answer::of(Box::pin(std::future::ready(Ok(response))))
    }
}

/// Hides the end of the client's half until the request is answered; HTTP/2 has other means.
fn hidden(request: &Request<Incoming>, end: &End) -> Option<EndHidden> {
    (request.version() < Version::HTTP_2).then(|| end.hide())
}

/// The answer to what is not gRPC on a port for gRPC.
fn not_grpc() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        if let Some(unsent) = &self.unsent {
            ready!(unsent.poll_room(task));
        }
        let Ok(mut response) = ready!(self.call.as_mut().poll(task));
        drop(self.hidden.take());
        if let Some(route) = &self.route {
            if let Some((slow, began)) = &self.slow {
                slow.note(route.service_name, route.method, *began);
            }
            // Only an error that was found before any message was sent stands in the headers.
            match response.headers().contains_key(Status::GRPC_STATUS) {
                false => route.answered.inc(),
                true => {
                    name_oversized_message(response.headers_mut());
                    route.count_error(header_code(response.headers()));
                }
            }
        }
        let is_stream = self.route.as_ref().is_some_and(|route| route.kind != UNARY);
        let response = match self.span.take() {
            Some(span) => span.end_with(response, is_stream),
            None => response,
        };
        let response = match &self.unsent {
            Some(unsent) => unsent.count(response),
            None => response,
        };
        Poll::Ready(Ok(response))
    }
}

fn header_code(headers: &HeaderMap) -> Code {
    headers.get(Status::GRPC_STATUS).map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// Gives a message that is too large to be decoded the code and text that Go's gRPC gives it, since clients know those.
fn name_oversized_message(headers: &mut HeaderMap) {
    let text = headers.get(Status::GRPC_MESSAGE).and_then(|text| text.to_str().ok()).unwrap_or_default();
    if header_code(headers) != Code::OutOfRange || !text.contains("length%20too%20large") {
        return;
    }
    let text = text.replace("%20", " ");
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let (found, limit) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
    let text = format!("grpc:%20received%20message%20larger%20than%20max%20({found}%20vs.%20{limit})");
    if let Ok(text) = HeaderValue::from_str(&text) {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::ResourceExhausted as i32));
        headers.insert(Status::GRPC_MESSAGE, text);
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
