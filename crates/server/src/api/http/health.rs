//! `/health`, `/livez` and `/readyz`, with etcd's parameters, texts and status codes.
//!
//! `/health` answers with JSON; `?serializable=true` asks about this node alone, `?exclude=NOSPACE` overlooks an alarm.
//! `/livez` and `/readyz` run the checks of a list, `/livez/NAME` and `/readyz/NAME` run one; `?verbose` lists the results,
//! which a failure does in any case, `?exclude=NAME` leaves a check out.

use std::collections::BTreeSet;

use hadron_proto::etcdserverpb::{AlarmMember, AlarmType};
use http::header::{HeaderName, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;
use tonic::body::Body;

use super::{TEXT, text};
use crate::api::backend::Backend;
use crate::api::context::Context;
use crate::api::error::EtcdError;

const NOSNIFF: (HeaderName, HeaderValue) = (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// One thing that can be wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Check {
    /// No alarm says that a replica is corrupt.
    DataCorruption,
    /// This node's state can be read.
    SerializableRead,
    /// The group can vouch for a read.
    LinearizableRead,
    /// This node has a vote.
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run<B: Backend>(self, context: &Context<B>) -> Result<(), String> {
        match self {
            Check::DataCorruption => {
                // Who is known to be damaged does not show its alarms, nor anything else.
                let shows_nothing = context.backend.keyspace(context.group).is_none()
                    && context.backend.status(context.group).is_some();
                let is_corrupt = |alarm: &AlarmMember| alarm.alarm() == AlarmType::Corrupt;
                match shows_nothing || alarms(context).iter().any(is_corrupt) {
                    true => Err("alarm activated: CORRUPT".to_owned()),
                    false => Ok(()),
                }
            }
            Check::SerializableRead => read(context, true).await.map_err(str::to_owned),
            Check::LinearizableRead => read(context, false).await.map_err(str::to_owned),
            Check::NonLearner if context.status().is_learner => Err("not supported for learner".to_owned()),
            Check::NonLearner => Ok(()),
        }
    }
}

/// A list of checks that has a page.
struct Checklist {
    /// Its path without the slash.
    name: &'static str,
    checks: &'static [Check],
}

const CHECKLISTS: &[Checklist] = &[
    Checklist { name: "livez", checks: &[Check::SerializableRead] },
    Checklist {
        name: "readyz",
        checks: &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner],
    },
];

/// A page of this module.
pub(in crate::api) enum Page {
    Health,
    Checks { list: &'static str, checks: Vec<Check>, is_whole: bool },
}

impl Page {
    /// The page at a path.
    pub(super) fn at(path: &str) -> Option<Page> {
        let path = path.strip_prefix('/')?;
        if path == "health" {
            return Some(Page::Health);
        }
        let (name, check) = path.split_once('/').map_or((path, None), |(name, check)| (name, Some(check)));
        let list = CHECKLISTS.iter().find(|list| list.name == name)?;
        let is_asked = |known: &Check| check.is_none_or(|check| check == known.name());
        let checks: Vec<Check> = list.checks.iter().copied().filter(is_asked).collect();
        (!checks.is_empty()).then_some(Page::Checks { list: list.name, checks, is_whole: check.is_none() })
    }

    /// Examines the node.
    pub(super) async fn answer<B: Backend>(self, context: &Context<B>, query: &Query) -> Response<Body> {
        match self {
            Page::Health => health(context, query).await,
            Page::Checks { list, checks, is_whole } => {
                let excluded = if is_whole { query.all("exclude") } else { BTreeSet::new() };
                checklist(context, list, &checks, &excluded, query.has("verbose")).await
            }
        }
    }
}

/// The parameters of a request.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Query {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Query(pairs.map(|(name, value)| (decoded(name), decoded(value))).collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// The first value of a parameter.
    fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter that are not empty.
    fn all(&self, name: &str) -> BTreeSet<&str> {
        let values = self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        values.filter(|value| !value.is_empty()).collect()
    }
}

/// Undoes the escaping of a query. What is no escape stands for itself.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let escape = others.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            None => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = others;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn health<B: Backend>(context: &Context<B>, query: &Query) -> Response<Body> {
    let serializable = query.first("serializable") == Some("true");
    match illness(context, serializable, &query.all("exclude")).await {
        None => {
            context.metrics.health_success.inc();
            text(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#.to_owned())
        }
        Some(reason) => {
            context.metrics.health_failures.inc();
            let body = json!({"health": "false", "reason": reason}).to_string();
            tracing::warn!(output = body, "/health error");
            failure(&body)
        }
    }
}

/// As Go writes an error: with the end of a line.
fn failure(body: &str) -> Response<Body> {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{body}\n"));
    response.headers_mut().extend([NOSNIFF]);
    response
}

/// The alarms that keep this node from serving. Where another node's replica is damaged, this one goes on.
fn alarms<B: Backend>(context: &Context<B>) -> Vec<AlarmMember> {
    let own = context.backend.identity().member_id.0;
    let concerns = |alarm: &AlarmMember| alarm.alarm() != AlarmType::Corrupt || alarm.member_id == own;
    let alarms = context.backend.keyspace(context.group).map_or_else(Vec::new, |keyspace| keyspace.alarms());
    alarms.into_iter().filter(concerns).collect()
}

/// Why this node is not healthy; `None` when it is.
async fn illness<B: Backend>(
    context: &Context<B>,
    serializable: bool,
    excluded: &BTreeSet<&str>,
) -> Option<String> {
    for alarm in alarms(context) {
        let name = alarm.alarm().as_str_name();
        if alarm.alarm() != AlarmType::None && !excluded.contains(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !serializable && !context.has_leader().await {
        return Some("RAFT NO LEADER".to_owned());
    }
    read(context, serializable).await.err().map(|error| format!("RANGE ERROR:{error}"))
}

/// What a read would end with.
async fn read<B: Backend>(context: &Context<B>, serializable: bool) -> Result<(), &'static str> {
    if !serializable {
        context.backend.read_barrier(context.group).await.map_err(|error| EtcdError::from(error).text())?;
    }
    match context.backend.keyspace(context.group) {
        Some(_) => Ok(()),
        None => Err(EtcdError::Unhealthy.text()),
    }
}

async fn checklist<B: Backend>(
    context: &Context<B>,
    list: &'static str,
    checks: &[Check],
    excluded: &BTreeSet<&str>,
    verbose: bool,
) -> Response<Body> {
    let unknown: Vec<&&str> =
        excluded.iter().filter(|name| checks.iter().all(|check| check.name() != **name)).collect();
    if !unknown.is_empty() {
        tracing::warn!(missing_health_checks = ?unknown, "some health checks cannot be excluded");
    }
    let mut report = String::new();
    let mut failed = false;
    for check in checks.iter().filter(|check| !excluded.contains(check.name())) {
        let result = check.run(context).await;
        count(context, list, *check, result.is_ok());
        match result {
            Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name())),
            Err(error) => {
                failed = true;
                report.push_str(&format!("[-]{} failed: {error}\n", check.name()));
            }
        }
    }
    if failed {
        tracing::warn!(path = format!("/{list}"), reason = report, "Health check error");
        return failure(&report);
    }
    let report = if verbose { report } else { String::new() };
    let mut response = text(StatusCode::OK, TEXT, format!("{report}ok\n"));
    response.headers_mut().extend([NOSNIFF]);
    response
}

fn count<B: Backend>(context: &Context<B>, list: &str, check: Check, is_ok: bool) {
    context.metrics.health_check.with(&[check.name(), list]).set_bool(is_ok);
    let status = if is_ok { "success" } else { "error" };
    context.metrics.health_checks.with(&[check.name(), status, list]).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_go_reads_them() {
        let query = Query::parse(
            "verbose&exclude=a&exclude=&exclude=%62%2Bc+d&serializable=true&serializable=x&%zz=%",
        );
        assert!(query.has("verbose") && !query.has("a") && query.has("%zz"));
        assert_eq!(query.all("exclude"), BTreeSet::from(["a", "b+c d"]));
        assert_eq!(query.first("serializable"), Some("true"));
    }

    #[test]
    fn each_check_has_a_page() {
        for path in ["/livez", "/livez/serializable_read", "/readyz", "/readyz/data_corruption", "/health"] {
            assert!(Page::at(path).is_some(), "{path}");
        }
        for path in ["/livez/", "/livez/non_learner", "/readyz/x", "/healthz", "/health/", "readyz"] {
            assert!(Page::at(path).is_none(), "{path}");
        }
    }
}
