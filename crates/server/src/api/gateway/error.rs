//! Failures as the gateway tells them: the gRPC code, its text, and the HTTP status that stands for the code.
//!
//! etcd 3.6 has `code` and `message`, etcd 3.5 the text as `error` too, and for streams other names. Clients of either find
//! what they look for.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::{Code, Status};

/// The answer to a call that failed.
pub(super) fn response(status: &Status) -> Response<Body> {
    let text = status.message();
    with_body(status, &json!({ "error": text, "code": status.code() as i32, "message": text }))
}

/// The answer to a streaming call that failed before it had anything to say.
pub(super) fn stream_response(status: &Status) -> Response<Body> {
    with_body(status, &stream_error(status))
}

/// The last line of a stream that failed.
pub(super) fn stream_line(status: &Status) -> Bytes {
    format!("{}\n", stream_error(status)).into()
}

fn stream_error(status: &Status) -> Value {
    let (code, http) = (status.code() as i32, http_status(status.code()));
    json!({ "error": {
        "grpc_code": code,
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
        "code": code,
    } })
}

fn with_body(status: &Status, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(body.to_string()))));
    *response.status_mut() = http_status(status.code());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// grpc-gateway's table.
pub(in crate::api) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // No standard status; this one is what proxies write down for a client that went away.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
