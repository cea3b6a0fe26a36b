//! The span of a call, for nodes that trace (`--enable-distributed-tracing`): as etcd's interceptors make it, with the same names and attributes.
//!
//! A call of a trace says so in its metadata (`traceparent`, of W3C's Trace Context), and whether that trace is sampled; a call of none
//! begins one, if it is sampled. A span ends with its call: when that is answered, or when its stream ends or is given up.

use std::net::SocketAddr;

use http::{HeaderMap, Request};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status as SpanStatus, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tonic::{Code, Status};

/// Where a request comes from: an extension of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

/// The span of one call.
pub(super) struct CallSpan(Span);

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
        span.is_recording().then_some(CallSpan(span))
    }

    /// Ends it with the call. `headers` are those that the code stood in, perhaps with a message.
    pub(super) fn end(mut self, code: Code, headers: &HeaderMap) {
        self.0.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        if is_fault(code) {
            let message = Status::from_header_map(headers).map(|status| status.message().to_owned());
            self.0.set_status(SpanStatus::error(message.unwrap_or_default()));
        }
        self.0.end();
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
