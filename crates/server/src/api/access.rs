//! Which web pages may use the client port: `--cors` and `--host-whitelist`, as etcd applies them.
//!
//! Both are about browsers, and so about HTTP: gRPC is not looked at. Everything is allowed unless configured, as in etcd.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE,
    HOST, ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tonic::body::Body;

/// Who may ask. `None` stands for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Origins of web pages that may read the answers.
    pub origins: Option<BTreeSet<String>>,
    /// Names in the header `Host` that are answered, without a port. Protects from pages that have their name resolved to this
    /// server's address; where there is TLS, its certificate does that.
    pub hosts: Option<BTreeSet<String>>,
}

impl Access {
    /// The answer to a request that goes no further.
    pub(super) fn answer<R>(&self, request: &Request<R>, is_tls: bool) -> Option<Response<Body>> {
        let host = host_name(request);
        if !is_tls && self.hosts.as_ref().is_some_and(|hosts| !hosts.contains(host)) {
            tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
            return Some(misdirected(host));
        }
        (request.method() == Method::OPTIONS).then(|| Response::new(Body::empty()))
    }

    /// The origin that the answer is to allow.
    pub(super) fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let Some(origins) = &self.origins else { return Some(HeaderValue::from_static("*")) };
        let origin = headers.get(ORIGIN)?;
        origin.to_str().is_ok_and(|origin| origins.contains(origin)).then(|| origin.clone())
    }
}

/// Says in an answer which origin may read it.
pub(super) fn allow_origin(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    let Some(origin) = origin else { return };
    let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
    let names = HeaderValue::from_static("accept, content-type, authorization");
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
}

/// The host that the client asked for, without its port.
pub(super) fn host_name<R>(request: &Request<R>) -> &str {
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority =
        request.uri().authority().map(http::uri::Authority::as_str).or(header).unwrap_or_default();
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    };
    name.trim_start_matches('[').trim_end_matches(']')
}

fn misdirected(host: &str) -> Response<Body> {
    let text = format!(
        "The host {host:?} in this request is not one that this server answers to.\n\nEither use TLS, or add the host to \
         --host-whitelist. This protects from DNS rebinding (CVE-2018-5702).\n"
    );
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn request(host: &str, origin: &str) -> Request<()> {
        Request::builder().uri("/health").header(HOST, host).header(ORIGIN, origin).body(()).unwrap()
    }

    fn only(names: &[&str]) -> Option<BTreeSet<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn hosts_are_compared_without_their_port() {
        let access = Access { hosts: only(&["a.example", "::1"]), origins: None };
        for (host, is_refused) in [
            ("a.example", false),
            ("a.example:2379", false),
            ("[::1]:2379", false),
            ("evil.example:2379", true),
            ("", true),
        ] {
            let answer = access.answer(&request(host, "x"), false);
            assert_eq!(answer.is_some(), is_refused, "{host}");
            assert!(answer.is_none_or(|answer| answer.status() == StatusCode::MISDIRECTED_REQUEST));
        }
        assert!(Access::default().answer(&request("evil.example", "x"), false).is_none());
    }

    #[test]
    fn origins_are_named_back_when_not_all_are_allowed() {
        let origin = |access: &Access, origin| access.allowed_origin(request("x", origin).headers());
        assert_eq!(origin(&Access::default(), "http://a").unwrap(), "*");
        let access = Access { origins: only(&["http://a"]), hosts: None };
        assert_eq!(origin(&access, "http://a").unwrap(), "http://a");
        assert_eq!(origin(&access, "http://b"), None);
    }
}
