//! The JSON gateway: every gRPC call of etcd as `POST /v3/...` with a JSON object, as grpc-gateway serves it for etcd.
//!
//! A request becomes the gRPC request that it stands for, in memory, and goes to the same services that answer those
//! from the network: whatever checks or counts a gRPC call does so here too, and no service knows of JSON. Messages are
//! translated by their descriptors, so a new call is one line in [`routes`].
//!
//! - `routes`: paths and the calls behind them.
//! - [`json`]: messages as JSON, and back.
//! - [`requests`], [`answers`]: bodies. A call that streams takes one JSON object after the other, and answers with lines
//!   `{"result":...}`, an error being the last line `{"error":...}`.
//! - [`error`]: failures with their HTTP status.
//!
//! As in etcd: bytes are base64, 64-bit integers strings (numbers are understood), fields have the names of the protobuf
//! files (camel case is understood), fields with their default value are left out, unknown fields are ignored, an empty
//! body is an empty message and what follows the message in a call that takes one is not looked at.
//!
//! Left out: WebSockets, and `Grpc-Timeout`.

mod answers;
mod error;
mod json;
mod requests;
mod routes;
#[cfg(test)]
mod tests;

pub(super) use error::http_status;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_TYPE, TE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use prost_reflect::MessageDescriptor;
use tonic::Status;
use tonic::body::Body;

use super::span::Caller;

/// What the gateway's paths begin with, and an older spelling that means the same.
const PREFIX: &str = "/v3/";
const OLD_PREFIX: &str = "/v3beta/";
/// Headers with this prefix are gRPC metadata.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// Where etcd's clients put the token that `Authenticate` gave them.
const TOKEN: HeaderName = HeaderName::from_static("token");

/// A gRPC call that has a path of the gateway.
#[derive(Debug)]
struct Call {
    /// `/package.Service/Method`.
    grpc_path: String,
    request: MessageDescriptor,
    response: MessageDescriptor,
    streams_requests: bool,
    streams_responses: bool,
    /// It is answered when it is the client's turn.
    waits: bool,
}

/// The gateway. Holds the calls only: who answers them is said with each.
pub(super) struct Gateway {
    /// By what follows the prefix.
    calls: HashMap<&'static str, Arc<Call>>,
    /// Bytes of an encoded request that a service still looks at.
    message_limit: usize,
}

impl Gateway {
    /// A gateway for services that take messages of up to `message_limit` bytes.
    pub(super) fn new(message_limit: usize) -> Gateway {
        Gateway { calls: routes::calls(), message_limit }
    }

    /// Whether a path is the gateway's to answer, even if with a refusal.
    pub(super) fn owns(path: &str) -> bool {
        rest_of_path(path).is_some()
    }

    /// Whether the answer to a path is a stream, which may have no end.
    pub(super) fn is_stream(&self, path: &str) -> bool {
        self.call_at(path).is_some_and(|call| call.streams_responses)
    }

    /// Whether the answer to a path may be long in coming for other reasons than that there is much to do: a client that is gone must not
    /// go on waiting, and then own what it waited for.
    pub(super) fn waits(&self, path: &str) -> bool {
        self.call_at(path).is_some_and(|call| call.waits)
    }

    fn call_at(&self, path: &str) -> Option<&Arc<Call>> {
        self.calls.get(rest_of_path(path)?)
    }

    /// Answers a request; `call` carries out the gRPC call that it stands for.
    pub(super) fn answer<F>(
        &self,
        request: Request<Incoming>,
        call: impl FnOnce(Request<Body>) -> F + Send + 'static,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static
    where
        F: Future<Output = Result<Response<Body>, Infallible>> + Send,
    {
        let known = self.find(&request);
        let limit = self.message_limit;
        async move {
            let answer = match known {
                Ok(known) => serve(&known, limit, request, call).await,
                Err(refusal) => Err(refusal),
            };
            Ok(answer.unwrap_or_else(|status| error::response(&status)))
        }
    }

    fn find(&self, request: &Request<Incoming>) -> Result<Arc<Call>, Status> {
        let call = self.call_at(request.uri().path()).ok_or_else(|| Status::not_found("Not Found"))?;
        match *request.method() {
            Method::POST => Ok(Arc::clone(call)),
            // grpc-gateway says it with this code, which makes it HTTP's 501.
            _ => Err(Status::unimplemented("Method Not Allowed")),
        }
    }
}

fn rest_of_path(path: &str) -> Option<&str> {
    path.strip_prefix(PREFIX).or_else(|| path.strip_prefix(OLD_PREFIX))
}

/// Translates the request, has it answered, and translates the answer.
async fn serve<F>(
    known: &Arc<Call>,
    limit: usize,
    request: Request<Incoming>,
    call: impl FnOnce(Request<Body>) -> F,
) -> Result<Response<Body>, Status>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let (head, body) = request.into_parts();
    let body = match known.streams_requests {
        true => requests::stream(body, known.request.clone(), limit),
        false => requests::single(body, &known.request, limit).await?,
    };
    let Ok(response) = call(grpc_request(&known.grpc_path, &head, body)?).await;
    match known.streams_responses {
        true => answers::stream(response, known.response.clone()).await,
        false => answers::single(response, &known.response).await,
    }
}

/// The gRPC request that the services get. Of what the connection knows of the client only its address comes along: as in etcd, a
/// certificate counts for gRPC only.
fn grpc_request(path: &str, head: &Parts, body: Body) -> Result<Request<Body>, Status> {
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|_| Status::internal("hadron: a call without a path"))?;
    *request.headers_mut() = metadata(&head.headers);
    if let Some(caller) = head.extensions.get::<Caller>() {
        request.extensions_mut().insert(*caller);
    }
    Ok(request)
}

/// The metadata of a call: what the client sent as such, and its token.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(METADATA_PREFIX) else { continue };
        // Names that begin so are gRPC's own: they say how a message is encoded, which is ours to say.
        if let Ok(name) = HeaderName::try_from(name)
            && !name.as_str().starts_with("grpc-")
        {
            metadata.append(name, value.clone());
        }
    }
    if let Some(token) = headers.get(AUTHORIZATION) {
        metadata.insert(AUTHORIZATION, token.clone());
        metadata.entry(TOKEN).or_insert_with(|| token.clone());
    }
    metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    metadata.insert(TE, HeaderValue::from_static("trailers"));
    metadata
}
