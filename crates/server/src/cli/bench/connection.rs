//! One HTTP/2 connection that makes unary gRPC calls, as cheaply as they can be made.
//!
//! A call is one `HEADERS` frame and one `DATA` frame with the message behind its five-byte prefix. The reply's message
//! is not decoded: a benchmark only wants to know that it came with `grpc-status: 0`. A connection that broke is made
//! anew by whichever client next needs it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{HeaderMap, Method, Request, Uri, Version};
use tokio::time::timeout;

use crate::client::Security;
use crate::client::dial as dial_stream;
use crate::client::endpoint_parts;
use crate::tls::ClientTls;

/// Windows wide enough that flow control never shows in the result.
const WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// As long as etcd's own request time-out: whoever waits longer is stuck.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to one endpoint.
pub(crate) struct Connection {
    authority: String,
    tls: Option<Arc<ClientTls>>,
    /// Headers of each call.
    shown: Vec<(&'static str, HeaderValue)>,
    /// Absent while the connection is down.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    /// Only one client at a time reconnects.
    reconnecting: tokio::sync::Mutex<()>,
}

impl Connection {
    /// Connects to an endpoint (`host:port`, with a scheme in front or without).
    pub(crate) async fn open(
        endpoint: &str,
        security: &Security,
        shown: Vec<(&'static str, HeaderValue)>,
    ) -> Result<Connection, String> {
        let (is_https, authority) = endpoint_parts(endpoint)?;
        let tls = security.of(is_https)?;
        let sender = dial(&authority, tls.clone()).await?;
        Ok(Connection {
            authority,
            tls,
            shown,
            sender: RefCell::new(Some(sender)),
            reconnecting: tokio::sync::Mutex::new(()),
        })
    }

    /// A call of the method at `path` of this connection's endpoint.
    pub(crate) fn request(&self, path: &'static str) -> Result<Request<()>, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(self.authority.as_str()).path_and_query(path);
        let mut request = Request::new(());
        *request.uri_mut() = uri.build().map_err(|error| format!("{}: {error}", self.authority))?;
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        for (name, value) in &self.shown {
            request.headers_mut().insert(*name, value.clone());
        }
        Ok(request)
    }

    /// Makes one call with an encoded message. The error is a text fit for counting.
    pub(crate) async fn call(&self, request: Request<()>, message: Bytes) -> Result<(), String> {
        let sender = self.sender().await?;
        match timeout(CALL_TIMEOUT, exchange(sender, request, message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(CallError::Refused(text))) => Err(text),
            Ok(Err(CallError::Broken(error))) => {
                if !error.is_reset() {
                    self.sender.borrow_mut().take();
                }
                Err(format!("connection: {error}"))
            }
            Err(_) => Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())),
        }
    }

    async fn sender(&self) -> Result<SendRequest<Bytes>, String> {
        if let Some(sender) = self.sender.borrow().as_ref() {
            return Ok(sender.clone());
        }
        let _guard = self.reconnecting.lock().await;
        if let Some(sender) = self.sender.borrow().as_ref() {
            return Ok(sender.clone());
        }
        let sender = dial(&self.authority, self.tls.clone()).await?;
        *self.sender.borrow_mut() = Some(sender.clone());
        Ok(sender)
    }
}

async fn dial(authority: &str, tls: Option<Arc<ClientTls>>) -> Result<SendRequest<Bytes>, String> {
    let told = |error: &dyn std::fmt::Display| format!("cannot connect to {authority}: {error}");
    let stream = match timeout(CONNECT_TIMEOUT, dial_stream(authority.to_owned(), tls)).await {
        Ok(connected) => connected.map_err(|error| told(&error))?,
        Err(_) => return Err(told(&"timed out")),
    };
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(stream)
        .await
        .map_err(|error| told(&error))?;
    // Drives the connection; how it ends shows in the calls.
    tokio::task::spawn_local(connection);
    Ok(sender)
}

enum CallError {
    /// The server answered with an error.
    Refused(String),
    /// The stream or the connection broke.
    Broken(h2::Error),
}

impl From<h2::Error> for CallError {
    fn from(error: h2::Error) -> CallError {
        CallError::Broken(error)
    }
}

async fn exchange(sender: SendRequest<Bytes>, request: Request<()>, message: Bytes) -> Result<(), CallError> {
    let mut sender = sender.ready().await?;
    let (response, mut stream) = sender.send_request(request, false)?;
    stream.send_data(message, true)?;
    let response = response.await?;
    if let Some(outcome) = grpc_outcome(response.headers()) {
        return outcome;
    }
    let mut body = response.into_body();
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        // Capacity is only lost with the connection, which shows elsewhere.
        let _ = body.flow_control().release_capacity(length);
    }
    let trailers = body.trailers().await?;
    trailers
        .as_ref()
        .and_then(grpc_outcome)
        .unwrap_or_else(|| Err(CallError::Refused("answer without a gRPC status".to_owned())))
}

/// What `grpc-status` and `grpc-message` say, if they are there.
fn grpc_outcome(headers: &HeaderMap) -> Option<Result<(), CallError>> {
    let status = tonic::Status::from_header_map(headers)?;
    Some(match (status.code(), status.message()) {
        (tonic::Code::Ok, _) => Ok(()),
        (code, "") => Err(CallError::Refused(format!("gRPC status {}", code as i32))),
        (_, message) => Err(CallError::Refused(message.to_owned())),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn outcome(headers: &[(&'static str, &'static str)]) -> Option<Result<(), String>> {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        grpc_outcome(&headers.collect()).map(|outcome| {
            outcome.map_err(|error| match error {
                CallError::Refused(message) => message,
                CallError::Broken(error) => panic!("{error}"),
            })
        })
    }

    #[test]
    fn a_refusal_is_readable() {
        assert!(outcome(&[]).is_none());
        assert_eq!(outcome(&[("grpc-status", "0")]), Some(Ok(())));
        let refused = [("grpc-status", "3"), ("grpc-message", "etcdserver:%20request%20is%20too%20large")];
        assert_eq!(outcome(&refused), Some(Err("etcdserver: request is too large".to_owned())));
        assert_eq!(outcome(&[("grpc-status", "14")]), Some(Err("gRPC status 14".to_owned())));
    }
}
