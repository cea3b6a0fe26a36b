//! The plain pages of the client port, as etcd serves them: `/version`, `/metrics`, `/debug/vars` and those of [`health`].
//!
//! Health is that of the keyspace that the request is about; metrics and variables are the node's, and are shown to clients of `default`.
//!
//! Left out: `/debug/pprof`.

mod health;
mod vars;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use hadron_proto::etcdserverpb::AlarmMember;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;
use tonic::Status;
use tonic::body::Body;

use super::backend::Backend;
use super::context::Context;
use super::gateway::http_status;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const VARS: &str = "application/json; charset=utf-8";
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a request for a page about a keyspace, of the pages that a port has.
pub(super) async fn answer<B: Backend>(
    context: Arc<Context<B>>,
    request: Request<Incoming>,
    is_served: fn(&Kind) -> bool,
) -> Result<Response<Body>, Infallible> {
    Ok(page(&context, &request, is_served).await)
}

/// Whether the port for clients has a page.
pub(super) fn client_port(_: &Kind) -> bool {
    true
}

/// Whether the ports of `--listen-metrics-urls` have a page.
pub(super) fn metrics_port(kind: &Kind) -> bool {
    matches!(kind, Kind::Health(_) | Kind::Metrics)
}

/// Which page is asked for.
pub(super) enum Kind {
    Health(health::Page),
    Version,
    Metrics,
    Vars,
}

impl Kind {
    fn at(path: &str) -> Option<Kind> {
        match path {
            "/version" => Some(Kind::Version),
            "/metrics" => Some(Kind::Metrics),
            "/debug/vars" => Some(Kind::Vars),
            _ => health::Page::at(path).map(Kind::Health),
        }
    }
}

async fn page<B: Backend>(
    context: &Context<B>,
    request: &Request<Incoming>,
    is_served: fn(&Kind) -> bool,
) -> Response<Body> {
    let Some(kind) = Kind::at(request.uri().path()).filter(is_served) else {
        return text(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".to_owned());
    };
    // Go's handler of metrics answers whatever the method is.
    let is_probe = request.method() == Method::HEAD && matches!(kind, Kind::Metrics);
    if request.method() != Method::GET && !is_probe {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n".to_owned());
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return refusal;
    }
    if matches!(kind, Kind::Metrics | Kind::Vars) && !context.is_default() {
        let text = "hadron: this page is about the node, which clients of the keyspace default may look at";
        return refusal(&Status::permission_denied(text));
    }
    match kind {
        Kind::Health(page) => {
            let query = health::Query::parse(request.uri().query().unwrap_or_default());
            page.answer(context, &query).await
        }
        Kind::Version => text(StatusCode::OK, JSON, version(context)),
        Kind::Metrics => text(StatusCode::OK, METRICS_TEXT, metrics(context)),
        Kind::Vars => text(StatusCode::OK, VARS, vars::page(context)),
    }
}

/// The page for who cannot have one.
pub(super) fn refusal(status: &Status) -> Response<Body> {
    text(http_status(status.code()), TEXT, format!("{}\n", status.message()))
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn version<B: Backend>(context: &Context<B>) -> String {
    let identity = context.backend.identity();
    // Written by hand to keep etcd's order of fields.
    format!(
        r#"{{"etcdserver":{},"etcdcluster":{},"storage":{},"hadron":{}}}"#,
        json!(identity.etcd_version),
        json!(identity.cluster_version),
        json!(identity.cluster_version),
        json!(identity.hadron_version),
    )
}

/// The first two numbers of a version: all that a cluster has.
fn minor(version: &str) -> &str {
    version.match_indices('.').nth(1).map_or(version, |(end, _)| &version[..end])
}

/// The metrics page. What only the state knows is read when it is asked for.
fn metrics<B: Backend>(context: &Context<B>) -> String {
    let (metrics, identity, status) = (&context.metrics, context.backend.identity(), context.status());
    let _page = metrics.pages_in_flight.hold();
    metrics.pages.with(&["200"]).inc();
    metrics.server_id.with(&[&format!("{:x}", identity.member_id.0)]).set(1.0);
    metrics.server_version.with(&[&identity.etcd_version]).set(1.0);
    metrics.cluster_version.with(&[minor(&identity.cluster_version)]).set(1.0);
    metrics.hadron_version.with(&[&identity.hadron_version]).set(1.0);
    metrics.has_leader.set_bool(status.leader.is_some());
    metrics.is_leader.set_bool(status.leader == Some(identity.member_id));
    metrics.is_learner.set_bool(status.is_learner);
    metrics.proposals_committed.set_integer(status.commit.0);
    metrics.proposals_applied.set_integer(status.applied.0);
    let quota = context.quota_bytes().ok().flatten();
    metrics.quota_bytes.set(quota.map_or(f64::INFINITY, |quota| quota as f64));
    metrics.db_total_bytes.set_integer(context.db_size());
    metrics.db_in_use_bytes.set_integer(context.db_size());
    if let Some(keyspace) = context.backend.keyspace(context.group) {
        metrics.auth_revision.set(keyspace.auth_revision() as f64);
        metrics.current_revision.set(keyspace.revision() as f64);
        metrics.compact_revision.set(keyspace.compact_revision() as f64);
        metrics.keys_total.set(keyspace.len() as f64);
        let labels = |alarm: &AlarmMember| {
            vec![format!("{:x}", alarm.member_id), alarm.alarm().as_str_name().to_owned()]
        };
        metrics.alarms.replace(keyspace.alarms().iter().map(|alarm| (labels(alarm), 1.0)));
        let watchers = keyspace.watcher_counts();
        metrics.watchers.set_integer(watchers.all as u64);
        metrics.slow_watchers.set_integer(watchers.lagging as u64);
    }
    context.backend.show(metrics);
    metrics.render()
}
