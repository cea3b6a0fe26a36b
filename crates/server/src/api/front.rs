//! The door: decides for each request which service or page answers it, and counts it.
//!
//! Requests go straight from hyper to the generated service of their keyspace (`choice`, `keyspaces`), by one look-up of the path.
//! A general router would box and clone once more per call, which is a tenth of what a Put may cost.
//!
//! A request is a gRPC call if its content type says so, as etcd decides too; everything else is a call of the JSON gateway,
//! which comes back here as a gRPC call, or a page.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use opentelemetry_sdk::trace::SdkTracer;
use tonic::body::Body;
use tonic::{Code, Status};

use super::access::{self, Access};
use super::backend::Backend;
use super::calls::{self, Begun, Route, code_in};
use super::choice::{Entrance, KeyspaceOptions};
use super::context::Context;
use super::gateway::Gateway;
use super::http;
use super::keyspaces::{Chosen, Keyspaces, Known};
use super::reflection::Reflections;
use super::server::Traffic;
use super::services::{Call, RequestBody, Service, message_bytes_max};
use super::slow::Slow;
use super::socket::{End, EndHidden};
use super::unsent::Unsent;

/// All services and pages of one node. Shared by all connections as an `Arc`.
pub(super) struct Front<B: Backend> {
    routes: HashMap<String, Arc<Route>>,
    keyspaces: Keyspaces<B>,
    /// `None` only if the build is damaged.
    reflections: Option<Reflections>,
    /// `None` when it is switched off.
    gateway: Option<Gateway>,
    access: Access,
    slow: Arc<Slow>,
    /// `None` on a node that does not trace.
    tracer: Option<SdkTracer>,
}

impl<B: Backend> Front<B> {
    pub(super) fn new(
        context: Arc<Context<B>>,
        keyspaces: KeyspaceOptions,
        with_gateway: bool,
        access: Access,
        slow: Option<Duration>,
        tracer: Option<SdkTracer>,
    ) -> Front<B> {
        Front {
            routes: calls::routes(&context.metrics),
            gateway: with_gateway.then(|| Gateway::new(message_bytes_max(context.limits.request_bytes))),
            keyspaces: Keyspaces::new(context, keyspaces),
            reflections: Reflections::new().ok(),
            access,
            slow: Arc::new(Slow::new(slow)),
            tracer,
        }
    }

    /// Whether it matters where requests come from.
    pub(super) fn is_traced(&self) -> bool {
        self.tracer.is_some()
    }

    /// How clients choose keyspaces.
    pub(super) fn keyspace_options(&self) -> &KeyspaceOptions {
        self.keyspaces.options()
    }

    /// Begins to answer a request that came in on a listener for `traffic`.
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        traffic: Traffic,
        entrance: &Entrance,
        end: &End,
        unsent: &Unsent,
    ) -> Answer {
        match (traffic, is_grpc(request.headers())) {
            (Traffic::Everything | Traffic::Grpc, true) => {
                let chosen = self.keyspaces.choose(&request, entrance);
                self.answer_grpc(request, chosen, unsent).counted_in(unsent)
            }
            (Traffic::Grpc, false) => Answer::ready(not_grpc()),
            (Traffic::Everything | Traffic::Http, _) => self.answer_http(request, entrance, end, unsent),
            (Traffic::Metrics, _) => {
                let context = Arc::clone(&self.keyspaces.default_services().context);
                Answer {
                    hidden: hidden(&request, end),
                    ..Answer::of(Box::pin(http::answer(Ok(context), request, http::metrics_port)))
                }
            }
        }
    }

    fn answer_http(
        self: &Arc<Self>,
        request: Request<Incoming>,
        entrance: &Entrance,
        end: &End,
        unsent: &Unsent,
    ) -> Answer {
        let origin = self.access.allowed_origin(request.headers());
        let gateway = self.gateway.as_ref().filter(|_| Gateway::owns(request.uri().path()));
        let is_stream = gateway.is_some_and(|gateway| gateway.is_stream(request.uri().path()));
        let hidden = if is_stream { None } else { hidden(&request, end) };
        let chosen = self.keyspaces.choose(&request, entrance);
        let call: Call = if let Some(answer) = self.access.answer(&request) {
            Box::pin(std::future::ready(Ok(answer)))
        } else if let Some(gateway) = gateway {
            let (front, unsent) = (Arc::clone(self), unsent.clone());
            Box::pin(gateway.answer(request, move |request| front.answer_grpc(request, chosen, &unsent)))
        } else {
            let front = Arc::clone(self);
            Box::pin(async move {
                let context =
                    front.keyspaces.settle(chosen).await.map(|known| Arc::clone(&known.services.context));
                http::answer(context, request, http::client_port).await
            })
        };
        let call = async move {
            let Ok(mut response) = call.await;
            access::allow_origin(response.headers_mut(), origin);
            Ok(response)
        };
        let unsent = (!is_stream).then(|| unsent.clone());
        Answer { hidden, unsent, ..Answer::of(Box::pin(call)) }
    }

    fn answer_grpc<R: RequestBody>(
        self: &Arc<Self>,
        mut request: Request<R>,
        chosen: Result<Chosen<B>, Status>,
        unsent: &Unsent,
    ) -> Answer {
        let Some(route) = self.routes.get(request.uri().path()) else {
            let status = calls::unknown(request.uri().path());
            return Answer::ready(status.into_http());
        };
        let waits = matches!(route.service, Service::Lock | Service::Election);
        let slow = (route.is_unary() && !waits).then(|| Arc::clone(&self.slow));
        if route.may_read_long() {
            request.extensions_mut().insert(unsent.clone());
        }
        let begun = Some(Route::begin(route, &request, self.tracer.as_ref()));
        let call: Call = match chosen {
            // What calls there are is no secret of a keyspace.
            _ if matches!(route.service, Service::Reflection | Service::OldReflection) => {
                self.reflect(route.service, request.map(|body| route.count_received(body)))
            }
            Ok(Chosen::Known(known)) => begin(route, request, Ok(known)),
            unsettled => {
                let (front, route) = (Arc::clone(self), Arc::clone(route));
                Box::pin(async move { begin(&route, request, front.keyspaces.settle(unsettled).await).await })
            }
        };
        Answer { begun, slow, ..Answer::of(call) }
    }

    fn reflect(&self, service: Service, request: Request<Body>) -> Call {
        match (&self.reflections, service) {
            (Some(reflections), Service::Reflection) => (reflections.present)(request),
            (Some(reflections), _) => (reflections.before)(request),
            (None, _) => ready_call(calls::unknown(request.uri().path()).into_http()),
        }
    }
}

/// Begins a call in a keyspace.
fn begin<B: Backend, R: RequestBody>(
    route: &Route,
    mut request: Request<R>,
    known: Result<Known<B>, Status>,
) -> Call {
    let admitted = known.and_then(|known| match route.is_limited() {
        true => known.services.context.admit_rate().map(|()| known),
        false => Ok(known),
    });
    let Known { services, door } = match admitted {
        Ok(known) => known,
        Err(status) => return ready_call(status.into_http()),
    };
    if let Some(door) = door {
        request.extensions_mut().insert(door);
    }
    match route.is_asked_many_times() {
        true => services.call(route.service, request.map(|body| route.count_received(body))),
        false => services.call(route.service, request),
    }
}

/// A call whose answer is there.
fn ready_call(response: Response<Body>) -> Call {
    Box::pin(std::future::ready(Ok(response)))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// An answer that is being made; counts its outcome.
pub(super) struct Answer {
    call: Call,
    /// `None` for pages and unknown calls.
    begun: Option<Begun>,
    /// Told of the call if it is one that should not take long.
    slow: Option<Arc<Slow>>,
    /// Where the answer counts; `None` for streams, and for what is no call.
    unsent: Option<Unsent>,
    /// Present while the client may have closed its half already and is answered all the same.
    hidden: Option<EndHidden>,
}

impl Answer {
    fn of(call: Call) -> Answer {
        Answer { call, begun: None, slow: None, unsent: None, hidden: None }
    }

    fn counted_in(self, unsent: &Unsent) -> Answer {
        let is_unary = self.begun.as_ref().is_some_and(Begun::is_unary);
        Answer { unsent: is_unary.then(|| unsent.clone()), ..self }
    }

    fn ready(response: Response<Body>) -> Answer {
        Answer::of(ready_call(response))
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
        if let Some(begun) = self.begun.take() {
            if let Some(slow) = &self.slow {
                begun.note(slow);
            }
            name_oversized_message(response.headers_mut());
            response = begun.answered(response);
        }
        let response = match &self.unsent {
            Some(unsent) => unsent.count(response),
            None => response,
        };
        Poll::Ready(Ok(response))
    }
}

/// Gives a message that is too large to be decoded the code and text that Go's gRPC gives it, since clients know those.
fn name_oversized_message(headers: &mut HeaderMap) {
    let text = headers.get(Status::GRPC_MESSAGE).and_then(|text| text.to_str().ok()).unwrap_or_default();
    if code_in(headers) != Some(Code::OutOfRange) || !text.contains("length%20too%20large") {
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
