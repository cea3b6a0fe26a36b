//! The configuration of `hadron serve`: the flags as they were given ([`Options`]) and what they mean ([`Config`]).
//!
//! Flags have etcd's names and defaults, and each one is also an environment variable (`ETCD_` and the name in upper
//! case); a flag beats the environment. [`Config::from_options`] checks everything that can be known without touching
//! disk or network, so that whoever receives a [`Config`] need not check again:
//! - listen addresses are IP addresses with ports, advertised URLs are `http://host:port`;
//! - the election timeout is at least five heartbeats.
//!
//! What the cluster is at a first start ([`Initial`]) is checked when it is asked for, since later starts do not ask.
//!
//! Left out for now: TLS (`https` URLs are refused), joining an existing cluster, and configuration files.

mod initial;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use initial::{Initial, InitialMember};

/// Listen and advertise URL for clients when none is given.
const DEFAULT_CLIENT_URL: &str = "http://127.0.0.1:2379";
/// Listen and advertise URL for peers when none is given.
const DEFAULT_PEER_URL: &str = "http://127.0.0.1:2380";
/// etcd's bound: beyond this a lost leader would be missed for nearly a minute.
const ELECTION_TIMEOUT_MS_MAX: u64 = 50_000;
/// How many heartbeats must fit into an election timeout, so that a single lost one starts no election.
const HEARTBEATS_PER_ELECTION_MIN: u64 = 5;

/// The flags of `hadron serve`, not yet checked. Absent values are filled in by [`Config::from_options`].
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Human-readable name of this node
    #[arg(long, env = "ETCD_NAME", default_value = "default", hide_env = true)]
    pub name: String,
    /// Directory for everything this node stores [default: {name}.hadron]
    #[arg(long, env = "ETCD_DATA_DIR", value_name = "DIR", hide_env = true)]
    pub data_dir: Option<PathBuf>,
    /// Directory for the write-ahead log, to put it on a disk of its own [default: {data-dir}/wal]
    #[arg(long, env = "ETCD_WAL_DIR", value_name = "DIR", hide_env = true)]
    pub wal_dir: Option<PathBuf>,
    /// URLs to listen on for clients, separated by commas [default: http://127.0.0.1:2379]
    #[arg(long, env = "ETCD_LISTEN_CLIENT_URLS", value_name = "URLS", hide_env = true)]
    pub listen_client_urls: Option<String>,
    /// URLs that clients are told to use [default: http://127.0.0.1:2379]
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", value_name = "URLS", hide_env = true)]
    pub advertise_client_urls: Option<String>,
    /// URLs to listen on for the other nodes [default: http://127.0.0.1:2380]
    #[arg(long, env = "ETCD_LISTEN_PEER_URLS", value_name = "URLS", hide_env = true)]
    pub listen_peer_urls: Option<String>,
    /// URL under which the other nodes reach this one [default: http://127.0.0.1:2380]
    #[arg(long, env = "ETCD_INITIAL_ADVERTISE_PEER_URLS", value_name = "URL", hide_env = true)]
    pub initial_advertise_peer_urls: Option<String>,
    /// All nodes of a new cluster: name=peer-url,name=peer-url,... [default: this node alone]
    #[arg(long, env = "ETCD_INITIAL_CLUSTER", value_name = "NODES", hide_env = true)]
    pub initial_cluster: Option<String>,
    /// `new` to bootstrap a cluster; `existing` is not supported yet. Ignored by a node that has a data directory
    #[arg(
        long,
        env = "ETCD_INITIAL_CLUSTER_STATE",
        value_name = "STATE",
        default_value = "new",
        hide_env = true
    )]
    pub initial_cluster_state: String,
    /// Text that tells this cluster from others made with the same URLs [default: etcd-cluster]
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_TOKEN", value_name = "TOKEN", hide_env = true)]
    pub initial_cluster_token: Option<String>,
    /// Time between heartbeats, in milliseconds
    #[arg(long, env = "ETCD_HEARTBEAT_INTERVAL", value_name = "MS", default_value_t = 100, hide_env = true)]
    pub heartbeat_interval: u64,
    /// Time without a leader before an election, in milliseconds
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", value_name = "MS", default_value_t = 1000, hide_env = true)]
    pub election_timeout: u64,
    /// Largest client request, in bytes
    #[arg(
        long,
        env = "ETCD_MAX_REQUEST_BYTES",
        value_name = "BYTES",
        default_value_t = 1_572_864,
        hide_env = true
    )]
    pub max_request_bytes: usize,
    /// Most operations in one transaction
    #[arg(long, env = "ETCD_MAX_TXN_OPS", value_name = "COUNT", default_value_t = 128, hide_env = true)]
    pub max_txn_ops: usize,
    /// Least severe level that is logged: debug, info, warn, error, panic or fatal
    #[arg(long, env = "ETCD_LOG_LEVEL", value_name = "LEVEL", default_value = "info", hide_env = true)]
    pub log_level: String,
    /// Form of the log lines on standard error: json or console
    #[arg(long, env = "ETCD_LOG_FORMAT", value_name = "FORMAT", default_value = "json", hide_env = true)]
    pub log_format: String,
    /// Stop when standard input is closed: how `hadron playground` ties its nodes to its own life
    #[arg(long, hide = true)]
    pub stop_on_stdin_close: bool,
}

/// A checked configuration: what `driver::run` gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of this node.
    pub name: String,
    /// Where this node stores everything. It may not exist yet.
    pub data_dir: PathBuf,
    /// Where the write-ahead log lives: `--wal-dir`, or `wal` within [`Config::data_dir`]. It may not exist yet.
    pub wal_dir: PathBuf,
    /// Addresses to serve clients on; never empty.
    pub listen_client: Vec<SocketAddr>,
    /// What `MemberList` tells clients about this node; never empty.
    pub advertise_client_urls: Vec<Url>,
    /// Addresses to accept peers on; never empty.
    pub listen_peer: Vec<SocketAddr>,
    /// What cluster a first start makes.
    pub initial: Initial,
    /// Time between heartbeats; more than zero.
    pub heartbeat_interval: Duration,
    /// Time without a leader before an election; at least five heartbeats.
    pub election_timeout: Duration,
    /// Largest client request, in bytes of its encoded message.
    pub max_request_bytes: usize,
    /// Most operations in one transaction.
    pub max_txn_ops: usize,
    /// Least severe level that is logged.
    pub log_level: tracing::Level,
    /// Form of log lines.
    pub log_format: LogFormat,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, as etcd writes them.
    Json,
    /// For people.
    Console,
}

/// `http://host:port`, with nothing after it. The host may be a name or an address (IPv6 in brackets).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    host: String,
    port: u16,
}

impl Url {
    /// Name or address, IPv6 without its brackets.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, as `TcpStream::connect` takes it.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The address to bind. Only IP addresses and `localhost` can be bound: a name could change its meaning.
    fn listen_address(&self, flag: &'static str) -> Result<SocketAddr, ConfigError> {
        let ip = match self.host() {
            "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host => host.parse(),
        };
        let ip = ip.map_err(|_| ConfigError::ListenName { flag, url: self.to_string() })?;
        Ok(SocketAddr::new(ip, self.port))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Url, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        match scheme {
            "http" => {}
            "https" => return Err(UrlError::Tls),
            "unix" | "unixs" => return Err(UrlError::UnixSocket),
            _ => return Err(UrlError::Scheme),
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !path.is_empty() {
            return Err(UrlError::Path);
        }
        let (host, port) = authority.rsplit_once(':').ok_or(UrlError::Authority)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !bracketed) || host.contains(['@', '?', '#', ' ']) {
            return Err(UrlError::Authority);
        }
        let port = port.parse().map_err(|_| UrlError::Authority)?;
        Ok(Url { host: host.to_ascii_lowercase(), port })
    }
}

/// Why a text is not a [`Url`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No scheme, or one that means nothing here.
    #[error("a URL must begin with http://")]
    Scheme,
    /// `https`, for which there is no TLS yet.
    #[error("https is not supported yet, use http://")]
    Tls,
    /// A Unix socket.
    #[error("Unix sockets are not supported, use http://host:port")]
    UnixSocket,
    /// Something after the port.
    #[error("a URL must not contain a path")]
    Path,
    /// Host or port is missing or malformed.
    #[error("a URL must have the form http://host:port")]
    Authority,
}

/// Why a configuration was refused. The texts name the flags, because that is what the user can change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `--name` is empty or would not survive `--initial-cluster`.
    #[error("--name must not be empty or contain ',' or '=', got {0:?}")]
    Name(String),
    /// A flag holds a text that is no URL.
    #[error("--{flag}: bad URL {url:?}: {error}")]
    BadUrl {
        /// The flag, without dashes.
        flag: &'static str,
        /// As given.
        url: String,
        /// What is wrong with it.
        error: UrlError,
    },
    /// A flag that needs a URL holds none.
    #[error("--{0} must name at least one URL")]
    NoUrl(&'static str),
    /// A listen URL with a host name.
    #[error("--{flag}: expected an IP address to listen on, got {url}")]
    ListenName {
        /// The flag, without dashes.
        flag: &'static str,
        /// As given.
        url: String,
    },
    /// Clients would be told the default URL, on which nothing listens.
    #[error("--advertise-client-urls is required when --listen-client-urls is given")]
    AdvertiseMissing,
    /// More than one URL where a node has one.
    #[error("--initial-advertise-peer-urls: a node has one peer URL, got {0:?}")]
    ManyPeerUrls(String),
    /// An entry of `--initial-cluster` without `=`.
    #[error("--initial-cluster: expected name=url, got {0:?}")]
    ClusterEntry(String),
    /// Two entries of `--initial-cluster` with one name.
    #[error(
        "--initial-cluster: the name {name:?} is given twice ({first} and {second}): names must be unique"
    )]
    NameTwice {
        /// The name.
        name: String,
        /// Its first URL.
        first: Url,
        /// Its second URL.
        second: Url,
    },
    /// Two entries of `--initial-cluster` with one URL.
    #[error("--initial-cluster: {first:?} and {second:?} have the same peer URL {url}")]
    PeerUrlTwice {
        /// One name.
        first: String,
        /// The other name.
        second: String,
        /// Their URL.
        url: Url,
    },
    /// This node is not in `--initial-cluster`.
    #[error("--initial-cluster does not contain this node's name {name:?}, only {known}")]
    NameNotInCluster {
        /// `--name`.
        name: String,
        /// The names it does contain.
        known: String,
    },
    /// This node's entry has another URL than the one it advertises.
    #[error(
        "--initial-cluster says {name}={listed}, but --initial-advertise-peer-urls is {advertised}: they must be equal"
    )]
    PeerUrlMismatch {
        /// `--name`.
        name: String,
        /// From `--initial-cluster`.
        listed: Url,
        /// From `--initial-advertise-peer-urls`.
        advertised: Url,
    },
    /// Joining a cluster.
    #[error(
        "--initial-cluster-state=existing needs an --initial-cluster that names this node and at least one running member"
    )]
    ExistingCluster,
    /// Neither `new` nor `existing`.
    #[error("--initial-cluster-state must be new or existing, got {0:?}")]
    ClusterState(String),
    /// The heartbeat is zero.
    #[error("--heartbeat-interval must be more than 0 ms")]
    HeartbeatZero,
    /// Too few heartbeats fit into an election timeout.
    #[error(
        "--election-timeout ({election} ms) must be at least {HEARTBEATS_PER_ELECTION_MIN} times --heartbeat-interval ({heartbeat} ms)"
    )]
    ElectionTooShort {
        /// Election timeout, in milliseconds.
        election: u64,
        /// Heartbeat interval, in milliseconds.
        heartbeat: u64,
    },
    /// A lost leader would go unnoticed for too long.
    #[error("--election-timeout ({0} ms) must be at most {ELECTION_TIMEOUT_MS_MAX} ms")]
    ElectionTooLong(u64),
    /// A limit of zero would refuse everything.
    #[error("--{0} must be more than 0")]
    LimitZero(&'static str),
    /// An unknown log level.
    #[error("--log-level must be debug, info, warn, error, panic or fatal, got {0:?}")]
    LogLevel(String),
    /// An unknown log format.
    #[error("--log-format must be json or console, got {0:?}")]
    LogFormat(String),
}

impl Config {
    /// Checks the flags and fills in what was not given.
    ///
    /// # Errors
    /// The first thing that is wrong, in words that name the flag.
    pub fn from_options(options: Options) -> Result<Config, ConfigError> {
        check_name(&options.name)?;
        let is_existing = is_existing(&options.initial_cluster_state)?;
        check_timing(options.heartbeat_interval, options.election_timeout)?;
        check_limit("max-request-bytes", options.max_request_bytes)?;
        check_limit("max-txn-ops", options.max_txn_ops)?;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());

        // Before the flag that depends on it: whoever mistyped this one is not helped by a word about the other.
        let listen_client_given = given(&options.listen_client_urls);
        let listen_client = listen("listen-client-urls", listen_client_given.clone(), DEFAULT_CLIENT_URL)?;
        let advertise_given = given(&options.advertise_client_urls);
        if listen_client_given.is_some() && advertise_given.is_none() {
            return Err(ConfigError::AdvertiseMissing);
        }
        let initial = Initial {
            cluster: given(&options.initial_cluster),
            advertise_peer_url: given(&options.initial_advertise_peer_urls)
                .map(advertised_peer_url)
                .transpose()?,
            token: options.initial_cluster_token,
            is_existing,
        };
        let data_dir = options.data_dir.unwrap_or_else(|| format!("{}.hadron", options.name).into());
        Ok(Config {
            wal_dir: options.wal_dir.unwrap_or_else(|| data_dir.join("wal")),
            data_dir,
            listen_client,
            advertise_client_urls: urls("advertise-client-urls", advertise_given, DEFAULT_CLIENT_URL)?,
            listen_peer: listen("listen-peer-urls", given(&options.listen_peer_urls), DEFAULT_PEER_URL)?,
            initial,
            heartbeat_interval: Duration::from_millis(options.heartbeat_interval),
            election_timeout: Duration::from_millis(options.election_timeout),
            max_request_bytes: options.max_request_bytes,
            max_txn_ops: options.max_txn_ops,
            log_level: log_level(&options.log_level)?,
            log_format: log_format(&options.log_format)?,
            name: options.name,
        })
    }
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || name.contains([',', '=']) {
        return Err(ConfigError::Name(name.to_owned()));
    }
    Ok(())
}

fn is_existing(state: &str) -> Result<bool, ConfigError> {
    match state {
        "new" => Ok(false),
        "existing" => Ok(true),
        other => Err(ConfigError::ClusterState(other.to_owned())),
    }
}

fn check_timing(heartbeat: u64, election: u64) -> Result<(), ConfigError> {
    if heartbeat == 0 {
        return Err(ConfigError::HeartbeatZero);
    }
    if election > ELECTION_TIMEOUT_MS_MAX {
        return Err(ConfigError::ElectionTooLong(election));
    }
    if heartbeat.saturating_mul(HEARTBEATS_PER_ELECTION_MIN) > election {
        return Err(ConfigError::ElectionTooShort { election, heartbeat });
    }
    Ok(())
}

fn check_limit(flag: &'static str, value: usize) -> Result<(), ConfigError> {
    if value == 0 { Err(ConfigError::LimitZero(flag)) } else { Ok(()) }
}

fn urls(flag: &'static str, given: Option<String>, default: &str) -> Result<Vec<Url>, ConfigError> {
    let text = given.unwrap_or_else(|| default.to_owned());
    let parsed: Vec<Url> = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| parse_url(flag, part))
        .collect::<Result<_, _>>()?;
    if parsed.is_empty() { Err(ConfigError::NoUrl(flag)) } else { Ok(parsed) }
}

fn parse_url(flag: &'static str, text: &str) -> Result<Url, ConfigError> {
    text.parse().map_err(|error| ConfigError::BadUrl { flag, url: text.to_owned(), error })
}

fn listen(flag: &'static str, given: Option<String>, default: &str) -> Result<Vec<SocketAddr>, ConfigError> {
    urls(flag, given, default)?.iter().map(|url| url.listen_address(flag)).collect()
}

fn advertised_peer_url(given: String) -> Result<Url, ConfigError> {
    let mut urls = urls("initial-advertise-peer-urls", Some(given.clone()), DEFAULT_PEER_URL)?;
    match (urls.pop(), urls.is_empty()) {
        (Some(url), true) => Ok(url),
        _ => Err(ConfigError::ManyPeerUrls(given)),
    }
}

fn log_level(text: &str) -> Result<tracing::Level, ConfigError> {
    match text {
        "debug" => Ok(tracing::Level::DEBUG),
        "info" => Ok(tracing::Level::INFO),
        "warn" => Ok(tracing::Level::WARN),
        // etcd knows levels beyond error; nothing of ours is logged there, so they mean the same.
        "error" | "dpanic" | "panic" | "fatal" => Ok(tracing::Level::ERROR),
        other => Err(ConfigError::LogLevel(other.to_owned())),
    }
}

fn log_format(text: &str) -> Result<LogFormat, ConfigError> {
    match text {
        "json" => Ok(LogFormat::Json),
        "console" => Ok(LogFormat::Console),
        other => Err(ConfigError::LogFormat(other.to_owned())),
    }
}

#[cfg(test)]
mod tests;
