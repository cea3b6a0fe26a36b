//! The span of a call, for nodes that trace (`--enable-distributed-tracing`): as etcd's interceptors make it, with the same names and attributes.
//!
//! A call of a trace says so in its metadata (`traceparent`, of W3C's Trace Context), and whether that trace is sampled; a call of none
//! begins one, if it is sampled. A span ends with its call: when that is answered, or when its stream ends or is given up.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::Frame;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status as SpanStatus, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tonic::body::Body;
use tonic::{Code, Status};

/// Where a request comes from: an extension of it, on nodes that trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

/// The span of one call, which ends it when it is dropped.
pub(super) struct CallSpan {
    span: Span,
    /// How the call ended, as far as that is known.
    outcome: Option<(Code, String)>,
}

impl CallSpan {
    /// Begins the span of a call of `method`; `None` if it is not sampled.
    pub(super) fn begin<B>(
        tracer: &SdkTracer,
        service: &'static str,
        method: &'static str,
        request: &Request<B>,
    ) -> Option<CallSpan> {
        let metadata = Metadata(request.headers());
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &metadata);
        let mut attributes = vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service),
            KeyValue::new("rpc.method", method),
        ];
        if let Some(Caller(address)) = request.extensions().get() {
            attributes.push(KeyValue::new("net.sock.peer.addr", address.ip().to_string()));
            attributes.push(KeyValue::new("net.sock.peer.port", i64::from(address.port())));
        }
        let builder = SpanBuilder::from_name(format!("{service}/{method}"));
        let builder = builder.with_kind(SpanKind::Server).with_attributes(attributes);
        let span = tracer.build_with_context(builder, &parent);
        span.is_recording().then_some(CallSpan { span, outcome: None })
    }

    /// Ends with this answer: at once if its status is known, or with its stream if it is one.
    pub(super) fn end_with(mut self, response: Response<Body>, is_stream: bool) -> Response<Body> {
        match status_of(response.headers()) {
            None if is_stream => return response.map(|body| Body::new(Traced { body, span: self })),
            None => self.outcome = Some((Code::Ok, String::new())),
            outcome => self.outcome = outcome,
        }
        response
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        // What has no outcome was given up by its caller.
        let (code, message) = self.outcome.take().unwrap_or((Code::Cancelled, String::new()));
        self.span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        if is_fault(code) {
            self.span.set_status(SpanStatus::error(message));
        }
        self.span.end();
    }
}

/// Whether a call that ended like that failed by a fault of the server: others are the callers' business.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The status in headers or trailers, if it is there.
fn status_of(headers: &HeaderMap) -> Option<(Code, String)> {
    let status = Status::from_header_map(headers)?;
    Some((status.code(), status.message().to_owned()))
}

/// The metadata of a call, as the SDK reads it.
struct Metadata<'a>(&'a HeaderMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// The body of a stream, whose end is the end of its span.
struct Traced {
    body: Body,
    span: CallSpan,
}

impl hyper::body::Body for Traced {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(task));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(outcome) = frame.trailers_ref().and_then(status_of) {
                    self.span.outcome = Some(outcome);
                }
            }
            Some(Err(status)) => self.span.outcome = Some((status.code(), status.message().to_owned())),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
