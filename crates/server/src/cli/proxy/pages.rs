//! The plain pages of the proxy: health and metrics, its own and those of a node.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use pb::watch_request::RequestUnion;
use prost::Message as _;
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::messages::{AnyBody, single, unframed};
use super::{Forwarder, text};
use crate::client::Client;
use crate::metrics::Metrics;
use crate::process;

/// How long a read that shows health may take.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a watch that shows health may take to be created.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// What is read to find out whether anything can be.
const PROBED_KEY: &[u8] = b"a";
/// What etcd's proxy counts and this one has nothing of.
const NOTHING: [(&str, &str, &str); 5] = [
    ("cache_hits_total", "gauge", "Total number of cache hits"),
    ("cache_keys_total", "gauge", "Total number of keys/ranges cached"),
    ("cache_misses_total", "gauge", "Total number of cache misses"),
    ("events_coalescing_total", "counter", "Total number of events coalescing"),
    ("watchers_coalescing_total", "gauge", "Total number of current watchers coalescing"),
];

/// Makes the pages.
pub(super) struct Pages {
    client: Client,
}

impl Pages {
    /// Pages of a node come through `client`.
    pub(super) fn new(client: Client) -> Pages {
        Pages { client }
    }

    /// Answers what is no call.
    pub(super) async fn answer(
        &self,
        method: &Method,
        path: &str,
        forwarder: &Forwarder,
    ) -> Response<AnyBody> {
        let is_known = matches!(path, "/health" | "/proxy/health" | "/metrics" | "/proxy/metrics");
        if is_known && method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        }
        match path {
            "/health" => health(read(forwarder).await),
            "/proxy/health" => health(match read(forwarder).await {
                Ok(()) => watch(forwarder).await,
                error => error,
            }),
            "/metrics" => self.metrics_of_a_node().await,
            "/proxy/metrics" => metrics(own_metrics()),
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    async fn metrics_of_a_node(&self) -> Response<AnyBody> {
        let page = timeout(self.client.command_timeout, self.client.page("/metrics")).await;
        let page = page.unwrap_or_else(|elapsed| Err(elapsed.into()));
        match page.as_deref().ok().and_then(|page| page.split_once("\r\n\r\n")) {
            Some((_, body)) => metrics(body.to_owned()),
            None => text(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error\n"),
        }
    }
}

/// Reads a key through the proxy. That it may not be read is an answer, too.
async fn read(forwarder: &Forwarder) -> Result<(), String> {
    let request = pb::RangeRequest { key: PROBED_KEY.into(), ..Default::default() };
    let call = async {
        let request = request_of("/etcdserverpb.KV/Range", &request.encode_to_vec());
        let answer = forwarder.call(request, &forwarder.links).await;
        let status = match Status::from_header_map(answer.headers()) {
            Some(status) => status,
            None => trailing(answer.into_body()).await,
        };
        match status.code() {
            Code::Ok | Code::PermissionDenied => Ok(()),
            _ if status.message() == "etcdserver: permission denied" => Ok(()),
            // Nobody is logged in here.
            _ if status.message() == "etcdserver: user name is empty" => Ok(()),
            _ => Err(format!("GET ERROR:{}", status.message())),
        }
    };
    let answered = timeout(READ_TIMEOUT, call).await;
    answered.unwrap_or_else(|_| Err("GET ERROR:context deadline exceeded".to_owned()))
}

async fn trailing(body: AnyBody) -> Status {
    let ended = match body.collect().await {
        Ok(collected) => collected.trailers().and_then(Status::from_header_map),
        Err(error) => Some(Status::unavailable(error.to_string())),
    };
    ended.unwrap_or_else(|| Status::unknown("the answer has no status"))
}

/// Creates a watch through the proxy.
async fn watch(forwarder: &Forwarder) -> Result<(), String> {
    let create = pb::WatchCreateRequest { key: PROBED_KEY.into(), ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let call = async {
        let request = request_of("/etcdserverpb.Watch/Watch", &request.encode_to_vec());
        let answer = forwarder.call(request, &forwarder.links).await;
        if let Some(status) = Status::from_header_map(answer.headers()) {
            return Err(format!("WATCH ERROR:{}", status.message()));
        }
        let mut body = answer.into_body();
        let mut came = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            came.extend_from_slice(&frame.into_data().unwrap_or_default());
            if unframed(&came).is_some_and(|message| pb::WatchResponse::decode(message).is_ok()) {
                return Ok(());
            }
        }
        Err("WATCH ERROR:the call ended".to_owned())
    };
    timeout(WATCH_TIMEOUT, call).await.unwrap_or_else(|_| Err("WATCH TIMEOUT".to_owned()))
}

/// A call of the proxy's own.
fn request_of(path: &'static str, message: &[u8]) -> Request<AnyBody> {
    let mut request = Request::new(single(message));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
}

/// What this process takes, and the names that dashboards of etcd's proxy know.
fn own_metrics() -> String {
    let metrics = Metrics::default();
    process::show(&metrics);
    let page = metrics.render();
    let mut own: String = page
        .lines()
        .filter(|line| {
            line.trim_start_matches(['#', ' ']).split(' ').any(|word| word.starts_with("process_"))
        })
        .filter(|line| !line.contains("process_start_time"))
        .flat_map(|line| [line, "\n"])
        .collect();
    for (name, kind, help) in NOTHING {
        let name = format!("etcd_grpc_proxy_{name}");
        let _ = writeln!(own, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} 0");
    }
    own
}

fn health(found: Result<(), String>) -> Response<AnyBody> {
    let (status, health, reason) = match found {
        Ok(()) => (StatusCode::OK, "true", String::new()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, "false", reason),
    };
    text(status, json!({ "health": health, "reason": reason }).to_string())
}

fn metrics(page: impl Into<Bytes>) -> Response<AnyBody> {
    let mut response = text(StatusCode::OK, page);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
