//! The door: decides for each request which service or page answers it, here or on another node (`forward`), and counts it.
//!
//! Requests go straight from hyper to the generated service of their keyspace (`choice`, `keyspaces`), by one look-up of the path.
//! A general router would box and clone once more per call, which is a tenth of what a Put may cost.
//!
//! A request is a gRPC call if it comes over HTTP/2 and its content type says so, as etcd decides too; everything else is a call of the JSON gateway,
//! which comes back here as a gRPC call, or a page.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use ::http::header::CONTENT_TYPE;
use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use opentelemetry_sdk::trace::SdkTracer;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tonic::body::Body;
use tonic::{Code, Status};

use super::access::{self, Access};
use super::backend::Backend;
use super::caller::Claim;
use super::calls::{self, Begun, Route, code_in};
use super::choice::{Entrance, KeyspaceOptions};
use super::context::Context;
use super::error::EtcdError;
use super::forward::{Forward, Links, Outcome, Parcel, Wants};
use super::gateway::Gateway;
use super::hitters::Usage;
use super::http;
use super::keyspaces::{Chosen, Elsewhere, Keyspaces, Known, Place};
use super::passed_on;
use super::reflection::Reflections;
use super::server::Traffic;
use super::services::{Call, RequestBody, Service, message_bytes_max};
use super::slow::Slow;
use super::socket::{End, EndHidden};
use super::unsent::{self, Gate, Unsent};
use crate::detached;

/// How long a call that nobody takes is tried to be passed on: a bit less than clients wait, so that they hear why.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is known of a client's connection.
pub(super) struct Connection {
    pub(super) traffic: Traffic,
    pub(super) entrance: Entrance,
    pub(super) end: End,
    pub(super) unsent: Unsent,
    pub(super) links: Arc<Links>,
}

/// All services and pages of one node. Shared by all connections as an `Arc`.
pub(super) struct Front<B: Backend> {
    routes: HashMap<String, Arc<Route>>,
    keyspaces: Keyspaces<B>,
    forward: Arc<Forward<B>>,
    /// Bytes of a call's message.
    message_bytes_max: usize,
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
        places: Arc<Semaphore>,
        keyspaces: KeyspaceOptions,
        with_gateway: bool,
        access: Access,
        slow: Option<Duration>,
        tracer: Option<SdkTracer>,
    ) -> Front<B> {
        let message_bytes_max = message_bytes_max(context.limits.request_bytes);
        Front {
            routes: calls::routes(&context.metrics),
            gateway: with_gateway.then(|| Gateway::new(message_bytes_max)),
            forward: Arc::new(Forward::new(context.backend.clone(), Arc::clone(&context.metrics), places)),
            message_bytes_max,
            keyspaces: Keyspaces::new(context, keyspaces),
            reflections: Reflections::new().ok(),
            access,
            slow: Arc::new(Slow::new(slow)),
            tracer,
        }
    }

    /// How clients choose keyspaces.
    pub(super) fn keyspace_options(&self) -> &KeyspaceOptions {
        self.keyspaces.options()
    }

    /// Begins to answer a request that came in on a listener for `traffic`.
    pub(super) fn answer(self: &Arc<Self>, request: Request<Incoming>, connection: &Connection) -> Answer {
        match (connection.traffic, is_grpc(&request)) {
            (Traffic::Everything | Traffic::Grpc, true) => {
                let chosen = self.keyspaces.choose(&request, &connection.entrance);
                let Connection { links, unsent, .. } = connection;
                self.answer_grpc(request, chosen, links, unsent).counted_in(unsent)
            }
            (Traffic::Grpc, false) => Answer::ready(not_grpc()),
            (Traffic::Everything | Traffic::Http, _) => self.answer_http(request, connection),
            (Traffic::Metrics, _) => {
                let context = Arc::clone(&self.keyspaces.default_services().context);
                Answer {
                    hidden: hidden(&request, &connection.end, true),
                    ..Answer::of(Box::pin(http::answer(context, request, http::metrics_port)))
                }
            }
        }
    }

    fn answer_http(self: &Arc<Self>, request: Request<Incoming>, connection: &Connection) -> Answer {
        let Connection { entrance, end, links, unsent, .. } = connection;
        let origin = self.access.allowed_origin(request.headers());
        let gateway = self.gateway.as_ref().filter(|_| Gateway::owns(request.uri().path()));
        let is_stream = gateway.is_some_and(|gateway| gateway.is_stream(request.uri().path()));
        let waits = gateway.is_some_and(|gateway| gateway.waits(request.uri().path()));
        // Pages do without a body.
        let hidden = if is_stream || waits { None } else { hidden(&request, end, gateway.is_none()) };
        let chosen = self.keyspaces.choose(&request, entrance);
        let (front, links) = (Arc::clone(self), Arc::clone(links));
        // Whoever passed it on has looked at that.
        let refusal =
            if entrance.is_passed_on() { None } else { self.access.answer(&request, entrance.is_tls()) };
        let call: Call = if let Some(answer) = refusal {
            Box::pin(std::future::ready(Ok(answer)))
        } else if let Some(gateway) = gateway {
            let (unsent, end) = (unsent.clone(), end.clone());
            let call = move |request| {
                end.note_request();
                front.answer_grpc(request, chosen, &links, &unsent)
            };
            Box::pin(gateway.answer(request, call))
        } else {
            Box::pin(async move { front.answer_page(request, chosen, &links).await })
        };
        let call = async move {
            let Ok(mut response) = call.await;
            access::allow_origin(response.headers_mut(), origin);
            Ok(response)
        };
        let gate = (!is_stream).then(|| unsent.gate());
        Answer { hidden, gate, ..Answer::of(Box::pin(call)) }
    }

    async fn answer_page(
        &self,
        request: Request<Incoming>,
        chosen: Result<Chosen<B>, Status>,
        links: &Links,
    ) -> Result<Response<Body>, Infallible> {
        let there = match self.keyspaces.settle(chosen).await {
            Ok(Place::Here(known)) => {
                let context = Arc::clone(&known.services.context);
                return http::answer(context, request, http::client_port).await;
            }
            Ok(Place::Elsewhere(there)) if !there.named.is_passed_on => there,
            Ok(Place::Elsewhere(there)) => return Ok(self.not_here(&there)),
            Err(status) => return Ok(http::refusal(&status)),
        };
        let parcel = Parcel::Stream(request.map(Body::new));
        Ok(match self.forward.send(parcel, &there, Wants::Replica, links).await {
            Outcome::Answered(response) => response,
            Outcome::Untaken(_, reasons) => http::refusal(&self.keyspaces.elsewhere(&there, &reasons)),
            Outcome::Lost(status) => http::refusal(&status),
        })
    }

    /// Answers a call that may be about a keyspace without a replica here, or with one that is to go.
    async fn answer_anywhere<R: RequestBody>(
        &self,
        route: &Route,
        request: Request<R>,
        chosen: Result<Chosen<B>, Status>,
        links: &Arc<Links>,
    ) -> Result<Response<Body>, Infallible> {
        let place = match self.keyspaces.settle(chosen).await {
            Ok(Place::Here(known)) if !known.is_leaving || known.is_passed_on || !route.is_unary() => {
                return begin(route, request, known).await;
            }
            Ok(Place::Elsewhere(there)) if there.named.is_passed_on => return Ok(self.not_here(&there)),
            Ok(place) => place,
            Err(status) => return Ok(status.into_http()),
        };
        let parcel = match route.is_unary() {
            true => {
                let room = (self.forward.room(), place.group());
                Parcel::whole(request, self.message_bytes_max, room).await
            }
            false => Ok(Parcel::Stream(request.map(|body| route.count_received(body)))),
        };
        match parcel {
            Ok(parcel) => self.answer_somewhere(route, parcel, place, links).await,
            Err(status) => Ok(status.into_http()),
        }
    }

    /// Has a call answered by whoever serves its keyspace by then, for a while: it may be on its way from one node to another.
    async fn answer_somewhere(
        &self,
        route: &Route,
        mut parcel: Parcel,
        mut place: Place<B>,
        links: &Arc<Links>,
    ) -> Result<Response<Body>, Infallible> {
        let began = Instant::now();
        loop {
            let (named, back, refusal) = match place {
                Place::Here(known) => {
                    let named = known.named();
                    let (request, rest) = parcel.split();
                    let Ok(response) = begin(route, request, known).await;
                    match rest.filter(|_| passed_on::is_not_here(&response)) {
                        Some(rest) => (named, rest, response),
                        None => return Ok(response),
                    }
                }
                Place::Elsewhere(there) => match self.send(parcel, there, route.wants(), links).await {
                    Err(status) | Ok((Outcome::Lost(status), _)) => return Ok(status.into_http()),
                    Ok((Outcome::Answered(response), _)) => return Ok(response),
                    Ok((Outcome::Untaken(back, reasons), there)) => {
                        let refusal = self.keyspaces.elsewhere(&there, &reasons).into_http();
                        (there.named, back, refusal)
                    }
                },
            };
            if began.elapsed() > PATIENCE {
                return Ok(refusal);
            }
            parcel = back;
            sleep(LOOK_AGAIN).await;
            place = match self.keyspaces.find(named).await {
                Ok(place) => place,
                Err(status) => return Ok(status.into_http()),
            };
        }
    }

    /// Has a call sent whether or not it is polled meanwhile: what is sent holds room that others need as well.
    async fn send(
        &self,
        parcel: Parcel,
        there: Elsewhere,
        wants: Wants,
        links: &Arc<Links>,
    ) -> Result<(Outcome, Elsewhere), Status> {
        let (forward, links) = (Arc::clone(&self.forward), Arc::clone(links));
        let sending = async move { (forward.send(parcel, &there, wants, &links).await, there) };
        Ok(detached::run(sending).await.ok_or(EtcdError::Stopped)?)
    }

    /// The answer to another node that passed on what this one does not serve either.
    fn not_here(&self, there: &Elsewhere) -> Response<Body> {
        passed_on::marked(self.keyspaces.elsewhere(there, &[])).into_http()
    }

    fn answer_grpc<R: RequestBody>(
        self: &Arc<Self>,
        mut request: Request<R>,
        chosen: Result<Chosen<B>, Status>,
        links: &Arc<Links>,
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
            Ok(Chosen::At(Place::Here(known))) if !known.is_leaving => begin(route, request, known),
            chosen => {
                let (front, route, links) = (Arc::clone(self), Arc::clone(route), Arc::clone(links));
                Box::pin(async move { front.answer_anywhere(&route, request, chosen, &links).await })
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
fn begin<B: Backend, R: RequestBody>(route: &Route, mut request: Request<R>, known: Known<B>) -> Call {
    let Known { services, door, is_passed_on, .. } = known;
    if route.is_limited()
        && let Err(status) = services.context.admit_rate()
    {
        let claim = Claim::of_connection(request.extensions());
        services.context.count(&claim, None, &Usage::refusal());
        return Box::pin(async move {
            services.context.rate.refusal_is_due().await;
            Ok(status.into_http())
        });
    }
    if let Some(door) = door {
        request.extensions_mut().insert(door);
    }
    let call = match route.is_asked_many_times() {
        true => services.call(route.service, request.map(|body| route.count_received(body))),
        false => services.call(route.service, request),
    };
    if !is_passed_on {
        return call;
    }
    Box::pin(async move {
        let Ok(mut response) = call.await;
        if let Some(leader) = services.context.status().leader {
            passed_on::note_leader(response.headers_mut(), leader);
        }
        Ok(response)
    })
}

/// A call whose answer is there.
fn ready_call(response: Response<Body>) -> Call {
    Box::pin(std::future::ready(Ok(response)))
}

/// Over HTTP/1 there is no gRPC: what says so is from a web page, and looked at like all that is.
fn is_grpc<R>(request: &Request<R>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    request.version() == Version::HTTP_2 && kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// An answer that is being made; counts its outcome.
pub(super) struct Answer {
    call: Call,
    /// `None` for pages and unknown calls.
    begun: Option<Begun>,
    /// Told of the call if it is one that should not take long.
    slow: Option<Arc<Slow>>,
    /// What it has to pass, and where the answer counts; `None` for streams, and for what is no call.
    gate: Option<Gate>,
    /// Present while the client may have closed its half already and is answered all the same.
    hidden: Option<EndHidden>,
}

impl Answer {
    fn of(call: Call) -> Answer {
        Answer { call, begun: None, slow: None, gate: None, hidden: None }
    }

    fn counted_in(self, unsent: &Unsent) -> Answer {
        let is_unary = self.begun.as_ref().is_some_and(Begun::is_unary);
        Answer { gate: is_unary.then(|| unsent.gate()), ..self }
    }

    fn ready(response: Response<Body>) -> Answer {
        Answer::of(ready_call(response))
    }

    /// Shows the end to the reader, which is of the same task, if the call waits for a request that was cut off by it. A large request that
    /// is translated beside looks like one: who sends such and closes its half may get no answer, as from etcd.
    fn give_up_if_cut_off(&mut self, task: &TaskContext<'_>) {
        if self.hidden.as_ref().is_some_and(EndHidden::cuts_off) {
            self.hidden = None;
            task.waker().wake_by_ref();
        }
    }
}

/// Hides the end of the client's half until the request is answered; HTTP/2 has other means.
fn hidden(request: &Request<Incoming>, end: &End, has_request: bool) -> Option<EndHidden> {
    (request.version() < Version::HTTP_2).then(|| end.hide(has_request))
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
        if let Some(gate) = &mut self.gate {
            ready!(gate.poll_room(task));
        }
        let Poll::Ready(Ok(mut response)) = self.call.as_mut().poll(task) else {
            self.give_up_if_cut_off(task);
            return Poll::Pending;
        };
        drop(self.hidden.take());
        if let Some(begun) = self.begun.take() {
            if let Some(slow) = &self.slow {
                begun.note(slow);
            }
            name_oversized_message(response.headers_mut());
            let is_unary = begun.is_unary();
            response = begun.answered(response);
            if !is_unary {
                response = unsent::in_pieces(response);
            }
        }
        let response = match &self.gate {
            Some(gate) => gate.count(response),
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
