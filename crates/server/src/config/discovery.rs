//! The `--discovery-*` flags: where a first start learns who the nodes of its cluster are, if `--initial-cluster` does not say.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::security::pair;
use super::{ConfigError, Settings, duration, parts, switch};
use crate::tls::files::KeyPair;

/// Where the nodes of a new cluster are written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// In another etcd.
    Registry(Box<Registry>),
    /// In DNS.
    Srv {
        /// `--discovery-srv`.
        domain: String,
        /// `--discovery-srv-name`; empty if the domain has one cluster only.
        name: String,
    },
}

/// Another etcd, in which the nodes of a new cluster register, and how it is called.
#[derive(Clone, PartialEq, Eq)]
pub struct Registry {
    /// `--discovery-token`.
    pub token: String,
    /// `--discovery-endpoints`; never empty.
    pub endpoints: Vec<String>,
    /// Time to wait for a connection.
    pub dial_timeout: Duration,
    /// Time to wait for an answer.
    pub request_timeout: Duration,
    /// Time without traffic before it is pinged, and time to wait for its answer.
    pub keepalive: (Duration, Duration),
    /// Whether endpoints without a scheme are spoken to in plain text, if nothing asks for TLS.
    pub insecure_transport: bool,
    /// Do not check who it is.
    pub skip_verify: bool,
    /// What it is shown.
    pub certificate: Option<KeyPair>,
    /// Whom to believe to be it; the system's certificates if there are none.
    pub trusted: Option<PathBuf>,
    /// Whom it must be, whatever host is called; the host if there is none.
    pub server_name: Option<String>,
    /// A user and the password.
    pub user: Option<(String, String)>,
}

/// Without the password.
impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        let mut shown = f.debug_struct("Registry");
        shown.field("token", &self.token).field("endpoints", &self.endpoints).field("user", &user);
        shown.finish_non_exhaustive()
    }
}

/// What the flags say; `None` if the nodes are named by `--initial-cluster`, or there is one only.
pub(super) fn read(settings: &Settings) -> Result<Option<Discovery>, ConfigError> {
    let srv = settings.given("discovery-srv");
    let given = [
        settings.given("initial-cluster").is_some(),
        srv.is_some(),
        settings.given("discovery-endpoints").is_some(),
    ];
    if given.into_iter().filter(|given| *given).count() > 1 {
        return Err(ConfigError::ManyBootstraps);
    }
    if srv.is_none() && settings.given("discovery-srv-name").is_some() {
        return Err(ConfigError::Together { one: "discovery-srv-name", other: "discovery-srv" });
    }
    if let Some(domain) = srv {
        let name = settings.text("discovery-srv-name").to_owned();
        return Ok(Some(Discovery::Srv { domain: domain.to_owned(), name }));
    }
    Ok(registry(settings)?.map(|registry| Discovery::Registry(Box::new(registry))))
}

fn registry(settings: &Settings) -> Result<Option<Registry>, ConfigError> {
    let (token, endpoints) = match (settings.given("discovery-token"), settings.given("discovery-endpoints"))
    {
        (Some(token), Some(endpoints)) => (token.to_owned(), endpoints),
        (None, None) => return Ok(None),
        (Some(_), None) => {
            return Err(ConfigError::Together { one: "discovery-token", other: "discovery-endpoints" });
        }
        (None, Some(_)) => {
            return Err(ConfigError::Together { one: "discovery-endpoints", other: "discovery-token" });
        }
    };
    if endpoints.split(',').any(|endpoint| endpoint.trim().is_empty()) {
        return Err(ConfigError::EmptyDiscoveryEndpoint);
    }
    Ok(Some(Registry {
        token,
        endpoints: parts(endpoints).map(str::to_owned).collect(),
        dial_timeout: duration(settings, "discovery-dial-timeout"),
        request_timeout: duration(settings, "discovery-request-timeout"),
        keepalive: (
            duration(settings, "discovery-keepalive-time"),
            duration(settings, "discovery-keepalive-timeout"),
        ),
        insecure_transport: switch(settings, "discovery-insecure-transport"),
        skip_verify: switch(settings, "discovery-insecure-skip-tls-verify"),
        certificate: pair(settings, "discovery-cert", "discovery-key")?,
        trusted: settings.given("discovery-cacert").map(PathBuf::from),
        server_name: settings.given("discovery-server-name").map(str::to_owned),
        user: user(settings)?,
    }))
}

/// A name, and a password beside it or after a colon: a node has nobody to ask for one.
fn user(settings: &Settings) -> Result<Option<(String, String)>, ConfigError> {
    let (user, password) = (settings.given("discovery-user"), settings.given("discovery-password"));
    let owned = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
    match (user, password) {
        (None, None) => Ok(None),
        (Some(name), Some(password)) => Ok(owned(name, password)),
        (Some(both), None) => match both.split_once(':') {
            Some((name, password)) => Ok(owned(name, password)),
            None => Err(ConfigError::Together { one: "discovery-user", other: "discovery-password" }),
        },
        (None, Some(_)) => Err(ConfigError::Together { one: "discovery-password", other: "discovery-user" }),
    }
}
