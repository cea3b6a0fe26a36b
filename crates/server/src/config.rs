//! The configuration of `hadron serve`: the flags as they were given ([`Settings`]) and what they mean ([`Config`]).
//!
//! Flags have etcd's names and defaults ([`flags`]); they come from the command line, the environment or a file
//! ([`settings`]). [`Config::from_settings`] checks everything that can be known without touching disk or network, so that
//! whoever receives a [`Config`] need not check again:
//! - nothing was asked for that does not exist;
//! - listen addresses are IP addresses with ports, advertised URLs are `http://host:port` or `https://host:port`;
//! - where `https` is listened on, there is a certificate;
//! - the election timeout is at least five heartbeats.
//!
//! What the cluster is at a first start ([`Initial`]) is checked when it is asked for, since later starts do not ask.

mod auth;
mod discovery;
mod error;
mod file;
pub mod flags;
mod initial;
mod keyspaces;
mod log;
pub mod security;
pub mod settings;
mod traces;
mod url;
mod value;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hadron_balance::Policy;

use crate::api::{Access, KeyspaceOptions, Retention};

pub use auth::AuthConfig;
pub use discovery::{Discovery, Registry};
pub use error::ConfigError;
pub use file::FileError;
pub use initial::{Initial, InitialMember};
pub use log::{Log, LogFormat, LogOutput, Rotation};
pub use security::Security;
pub use settings::{Asked, SettingError, Settings};
pub use traces::Traces;
pub use url::{Url, UrlError};

/// Peer URL when none is given.
const DEFAULT_PEER_URL: &str = "http://127.0.0.1:2380";
/// etcd's bound: beyond this a lost leader would be missed for nearly a minute.
const ELECTION_TIMEOUT_MS_MAX: u64 = 50_000;
/// How many heartbeats must fit into an election timeout, so that a single lost one starts no election.
const HEARTBEATS_PER_ELECTION_MIN: u64 = 5;
/// More shards than any machine has a use for.
const SHARDS_MAX: usize = 256;

/// A checked configuration: what `driver::run` gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of this node.
    pub name: String,
    /// Where this node stores everything. It may not exist yet.
    pub data_dir: PathBuf,
    /// Where the write-ahead log lives: `--wal-dir`, or `wal` within [`Config::data_dir`]. It may not exist yet.
    pub wal_dir: PathBuf,
    /// Where to accept peers, and what `MemberList` says about clients.
    pub addresses: Addresses,
    /// What cluster a first start makes.
    pub initial: Initial,
    /// After so many entries the log tells that they are durable in the engine.
    pub snapshot_count: u64,
    /// Time between heartbeats; more than zero.
    pub heartbeat_interval: Duration,
    /// Time without a leader before an election; at least five heartbeats.
    pub election_timeout: Duration,
    /// How clients are served.
    pub clients: Clients,
    /// How the client port is secured, where it is.
    pub clients_security: Option<Security>,
    /// How the peer port is secured, where it is.
    pub peers_security: Option<Security>,
    /// How users show who they are.
    pub auth: AuthConfig,
    /// How members may be changed.
    pub membership: Membership,
    /// Where this node stands: what fails together. Empty if that is not known.
    pub zone: String,
    /// How the pool is balanced while this node leads its root group.
    pub balance: Balance,
    /// Every keyspace's stored state is read again once in this time; zero for never.
    pub scrub_interval: Duration,
    /// Threads among which the groups are divided; at least 1.
    pub shards: usize,
    /// How much history is kept; `None` for all of it.
    pub retention: Option<Retention>,
    /// What is logged, and where.
    pub log: Log,
    /// Where requests are traced; `None` for nowhere.
    pub traces: Option<Traces>,
    /// Stop when standard input is closed.
    pub stop_on_stdin_close: bool,
}

/// Where a node listens, and where others find it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Addresses to serve clients on; never empty.
    pub clients: Vec<Listen>,
    /// Addresses to serve clients' HTTP on. If there are any, [`Addresses::clients`] are for gRPC alone.
    pub clients_http: Vec<Listen>,
    /// Addresses to serve metrics and health on.
    pub metrics: Vec<Listen>,
    /// Addresses to serve clients of one keyspace on, with its name.
    pub keyspaces: Vec<(String, Listen)>,
    /// Addresses to accept peers on; never empty.
    pub peers: Vec<SocketAddr>,
    /// Whether peers are to speak TLS there.
    pub peers_are_tls: bool,
    /// What `MemberList` tells clients about this node; never empty.
    pub advertise_client_urls: Vec<Url>,
    /// Whether other processes may listen on the same ports.
    pub reuse_port: bool,
}

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
    /// Whether TLS is spoken there.
    pub is_tls: bool,
}

/// How clients are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clients {
    /// Largest request, in bytes of its encoded message.
    pub request_bytes_max: usize,
    /// Most operations in one transaction.
    pub txn_operations_max: usize,
    /// Bytes of data at which the space alarm is raised; `None` for no bound.
    pub quota_bytes: Option<u64>,
    /// Most calls at a time over one connection.
    pub streams_max: u32,
    /// Time without traffic before a client is pinged; `None` for never.
    pub keepalive_interval: Option<Duration>,
    /// Time to wait for the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Time between two notes to a quiet watcher of how far it is.
    pub watch_progress_interval: Duration,
    /// Calls that take so long are logged; `None` for none.
    pub slow_call: Option<Duration>,
    /// Whether the JSON gateway is served.
    pub gateway: bool,
    /// Which web pages may use the port.
    pub access: Access,
    /// How clients choose keyspaces.
    pub keyspaces: KeyspaceOptions,
}

/// How members may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// Refuse changes that could cost the quorum.
    pub is_strict: bool,
    /// Learners at a time.
    pub learners_max: usize,
    /// The leader lets learners vote once they have caught up.
    pub promotes: bool,
}

/// How the pool is balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// How long a group that was changed is left alone, unless something is broken.
    pub cool_down: Duration,
    /// How long a node may be out of reach before its replicas are rebuilt elsewhere.
    pub grace_period: Duration,
    /// Percentage of its disk beyond which a node is given nothing, and gives some away; 1 to 100.
    pub disk_max: u8,
}

impl Balance {
    /// What the planner is told.
    pub fn policy(&self) -> Policy {
        let micros = |time: Duration| time.as_micros().try_into().unwrap_or(u64::MAX);
        let (cool_down_us, grace_us) = (micros(self.cool_down), micros(self.grace_period));
        let disk_max = f64::from(self.disk_max) / 100.0;
        Policy { cool_down_us, grace_us, disk_max, ..Policy::default() }
    }
}

impl Config {
    /// Checks the flags and fills in what was not given. `default_suffix` is what the default data directory's name ends
    /// with, after the node's name and a dot.
    ///
    /// # Errors
    /// The first thing that is wrong, in words that name the flag.
    pub fn from_settings(settings: &Settings, default_suffix: &str) -> Result<Config, ConfigError> {
        check_built(settings)?;
        check_features(settings.text("feature-gates"))?;
        let name = settings.text("name").to_owned();
        check_name(&name)?;
        let heartbeat_ms = number(settings, "heartbeat-interval")?;
        let election_ms = number(settings, "election-timeout")?;
        check_timing(heartbeat_ms, election_ms)?;
        let data_dir = settings.given("data-dir").map(PathBuf::from);
        let data_dir = data_dir.unwrap_or_else(|| format!("{name}.{default_suffix}").into());
        let wal_dir = settings.given("wal-dir").map(PathBuf::from);
        let addresses = addresses(settings)?;
        let mut client_hosts = hosts(settings, &["listen-client-urls", "listen-client-http-urls"])?;
        client_hosts.extend(keyspaces::urls(settings)?.iter().map(|(_, url)| url.host().to_owned()));
        client_hosts.sort();
        client_hosts.dedup();
        let clients_security = security::of_clients(settings, &data_dir, client_hosts)?;
        let peers_security =
            security::of_peers(settings, &data_dir, hosts(settings, &["listen-peer-urls"])?)?;
        let peers_security = match settings.given("discovery-srv") {
            Some(domain) => peers_security.map(|security| security.of_domain(domain)),
            None => peers_security,
        };
        check_certificates(&addresses, clients_security.is_some(), peers_security.is_some())?;
        Ok(Config {
            wal_dir: wal_dir.unwrap_or_else(|| data_dir.join("wal")),
            data_dir,
            addresses,
            initial: initial(settings)?,
            snapshot_count: number(settings, "snapshot-count")?,
            heartbeat_interval: Duration::from_millis(heartbeat_ms),
            election_timeout: Duration::from_millis(election_ms),
            clients: clients(settings)?,
            clients_security,
            peers_security,
            auth: auth::read(settings)?,
            membership: Membership {
                is_strict: switch(settings, "strict-reconfig-check"),
                learners_max: number(settings, "max-learners")?,
                promotes: switch(settings, "auto-promote"),
            },
            zone: settings.text("zone").to_owned(),
            scrub_interval: duration(settings, "scrub-interval"),
            shards: shards(settings)?,
            balance: Balance {
                cool_down: duration(settings, "balance-cool-down"),
                grace_period: duration(settings, "balance-grace-period"),
                disk_max: percentage(settings, "balance-disk-max")?,
            },
            retention: retention(settings)?,
            log: log::read(settings)?,
            traces: traces::read(settings)?,
            stop_on_stdin_close: switch(settings, "stop-on-stdin-close"),
            name,
        })
    }
}

/// Refuses what asks for something that does not exist.
fn check_built(settings: &Settings) -> Result<(), ConfigError> {
    for (flag, value) in settings.changed() {
        if let flags::Effect::Refused(why) | flags::Effect::Gone(why) = flag.effect {
            return Err(ConfigError::Gone { flag: flag.name, value: value.to_owned(), why });
        }
    }
    Ok(())
}

fn check_features(gates: &str) -> Result<(), ConfigError> {
    for gate in parts(gates) {
        let known = gate.split_once('=').is_some_and(|(name, value)| {
            flags::FEATURES.contains(&name.trim()) && value::switch(value.trim()).is_some()
        });
        if !known {
            return Err(ConfigError::FeatureGate(gate.to_owned()));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || name.contains([',', '=']) {
        return Err(ConfigError::Name(name.to_owned()));
    }
    Ok(())
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

fn addresses(settings: &Settings) -> Result<Addresses, ConfigError> {
    // Before the flag that depends on it: whoever mistyped this one is not helped by a word about the other.
    let clients = listen(settings, "listen-client-urls")?;
    // As in etcd a file is not held to it: clients are told the default then, and whoever reads the log is told so.
    let is_given = |flag| settings.given(flag).is_some();
    if !settings.are_of_file() && is_given("listen-client-urls") && !is_given("advertise-client-urls") {
        return Err(ConfigError::AdvertiseMissing);
    }
    let peers = listen(settings, "listen-peer-urls")?;
    let peers_are_tls = peers.iter().all(|listen| listen.is_tls);
    if !peers_are_tls && peers.iter().any(|listen| listen.is_tls) {
        return Err(ConfigError::MixedPeers);
    }
    Ok(Addresses {
        clients,
        clients_http: listen(settings, "listen-client-http-urls")?,
        metrics: listen(settings, "listen-metrics-urls")?,
        keyspaces: keyspaces::listen(settings)?,
        peers: peers.into_iter().map(|listen| listen.address).collect(),
        peers_are_tls,
        advertise_client_urls: urls(settings, "advertise-client-urls")?,
        reuse_port: switch(settings, "socket-reuse-port"),
    })
}

fn initial(settings: &Settings) -> Result<Initial, ConfigError> {
    let advertised = settings.given("initial-advertise-peer-urls");
    Ok(Initial {
        cluster: settings.given("initial-cluster").map(str::to_owned),
        advertise_peer_url: advertised.map(|given| advertised_peer_url(settings, given)).transpose()?,
        token: settings.given("initial-cluster-token").map(str::to_owned),
        is_existing: settings.text("initial-cluster-state") == "existing",
        discovery: discovery::read(settings)?,
        is_forced: switch(settings, "force-new-cluster"),
    })
}

fn clients(settings: &Settings) -> Result<Clients, ConfigError> {
    let interval = duration(settings, "grpc-keepalive-interval");
    let timeout = duration(settings, "grpc-keepalive-timeout");
    Ok(Clients {
        request_bytes_max: limit(settings, "max-request-bytes")?,
        txn_operations_max: limit(settings, "max-txn-ops")?,
        // Unlike in etcd size is no hazard, so there is no quota unless somebody wants one.
        quota_bytes: value::number(settings.text("quota-backend-bytes"))
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0),
        streams_max: limit(settings, "max-concurrent-streams")?,
        // As in etcd: without one of them there are no pings.
        keepalive_interval: Some(interval).filter(|interval| !interval.is_zero() && !timeout.is_zero()),
        keepalive_timeout: timeout,
        slow_call: Some(duration(settings, "warning-unary-request-duration")).filter(|slow| !slow.is_zero()),
        watch_progress_interval: match duration(settings, "watch-progress-notify-interval") {
            Duration::ZERO => return Err(ConfigError::LimitZero("watch-progress-notify-interval")),
            interval => interval,
        },
        gateway: switch(settings, "enable-grpc-gateway"),
        access: Access {
            origins: unless_all(settings.text("cors")),
            hosts: unless_all(settings.text("host-whitelist")),
        },
        keyspaces: keyspaces::options(settings)?,
    })
}

/// As in etcd: a plain number is hours, or revisions if those are counted.
fn retention(settings: &Settings) -> Result<Option<Retention>, ConfigError> {
    let text = settings.text("auto-compaction-retention");
    let counts_revisions = settings.text("auto-compaction-mode") == "revision";
    let wrong = || ConfigError::Retention { value: text.to_owned(), counts_revisions };
    match text.parse::<i64>() {
        Ok(..0) => Err(wrong()),
        Ok(0) => Ok(None),
        Ok(revisions) if counts_revisions => Ok(Some(Retention::Revisions(revisions))),
        Ok(hours) => {
            Ok(Some(Retention::Time(Duration::from_secs(hours.unsigned_abs().saturating_mul(3_600)))))
        }
        Err(_) if counts_revisions => Err(wrong()),
        Err(_) => {
            let time = value::duration(text).ok_or_else(wrong)?;
            Ok(Some(Retention::Time(time)).filter(|_| !time.is_zero()))
        }
    }
}

/// The parts of a list; `None` if one of them stands for everything, or there are none.
fn unless_all(list: &str) -> Option<BTreeSet<String>> {
    let parts: BTreeSet<String> = parts(list).map(str::to_owned).collect();
    (!parts.is_empty() && !parts.contains("*")).then_some(parts)
}

fn parts(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn switch(settings: &Settings, flag: &'static str) -> bool {
    value::switch(settings.text(flag)).unwrap_or_default()
}

fn duration(settings: &Settings, flag: &'static str) -> Duration {
    value::duration(settings.text(flag)).unwrap_or_default()
}

/// A number as a type that may be too small for it.
fn number<T: TryFrom<i128>>(settings: &Settings, flag: &'static str) -> Result<T, ConfigError> {
    let text = settings.text(flag);
    let number = value::number(text).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| ConfigError::Range { flag, value: text.to_owned() })
}

/// How many shards are wanted; 0 for half of the cores.
fn shards(settings: &Settings) -> Result<usize, ConfigError> {
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    match number(settings, "shards")? {
        0 => Ok((cores() / 2).max(1)),
        shards @ 1..=SHARDS_MAX => Ok(shards),
        other => Err(ConfigError::Range { flag: "shards", value: other.to_string() }),
    }
}

/// A number from 1 to 100.
fn percentage(settings: &Settings, flag: &'static str) -> Result<u8, ConfigError> {
    match number(settings, flag)? {
        percentage @ 1..=100 => Ok(percentage),
        other => Err(ConfigError::Range { flag, value: other.to_string() }),
    }
}

/// A number that must not be zero.
fn limit<T: TryFrom<i128> + Default + PartialEq>(
    settings: &Settings,
    flag: &'static str,
) -> Result<T, ConfigError> {
    match number(settings, flag)? {
        zero if zero == T::default() => Err(ConfigError::LimitZero(flag)),
        number => Ok(number),
    }
}

/// The URLs of a flag: as given, or the default; none only if that is the default.
fn urls(settings: &Settings, flag: &'static str) -> Result<Vec<Url>, ConfigError> {
    let given = settings.given(flag);
    let default = flags::find(flag).map_or("", |flag| flag.default);
    let parsed = parts(given.unwrap_or(default)).map(|part| parse_url(flag, part));
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    if parsed.is_empty() && given.is_some() { Err(ConfigError::NoUrl(flag)) } else { Ok(parsed) }
}

fn parse_url(flag: &'static str, text: &str) -> Result<Url, ConfigError> {
    text.parse().map_err(|error| ConfigError::BadUrl { flag, url: text.to_owned(), error })
}

fn listen(settings: &Settings, flag: &'static str) -> Result<Vec<Listen>, ConfigError> {
    urls(settings, flag)?.iter().map(|url| Listen::at(url, flag)).collect()
}

impl Listen {
    fn at(url: &Url, flag: &'static str) -> Result<Listen, ConfigError> {
        Ok(Listen { address: url.listen_address(flag)?, is_tls: url.is_tls() })
    }
}

/// The hosts of several flags' URLs.
fn hosts(settings: &Settings, flags: &[&'static str]) -> Result<Vec<String>, ConfigError> {
    let mut hosts = BTreeSet::new();
    for flag in flags {
        hosts.extend(urls(settings, flag)?.iter().map(|url| url.host().to_owned()));
    }
    Ok(hosts.into_iter().collect())
}

/// Refuses to listen for TLS without a certificate.
fn check_certificates(addresses: &Addresses, clients: bool, peers: bool) -> Result<(), ConfigError> {
    let no = |flag, certificate, key, auto| Err(ConfigError::NoCertificate { flag, certificate, key, auto });
    let of_clients = [
        ("listen-client-urls", &addresses.clients),
        ("listen-client-http-urls", &addresses.clients_http),
        ("listen-metrics-urls", &addresses.metrics),
    ];
    for (flag, listens) in of_clients {
        if !clients && listens.iter().any(|listen| listen.is_tls) {
            return no(flag, "cert-file", "key-file", "auto-tls");
        }
    }
    if !clients && addresses.keyspaces.iter().any(|(_, listen)| listen.is_tls) {
        return no("keyspace-listen", "cert-file", "key-file", "auto-tls");
    }
    if !peers && addresses.peers_are_tls {
        return no("listen-peer-urls", "peer-cert-file", "peer-key-file", "peer-auto-tls");
    }
    Ok(())
}

fn advertised_peer_url(settings: &Settings, given: &str) -> Result<Url, ConfigError> {
    let mut urls = urls(settings, "initial-advertise-peer-urls")?;
    match (urls.pop(), urls.is_empty()) {
        (Some(url), true) => Ok(url),
        _ => Err(ConfigError::ManyPeerUrls(given.to_owned())),
    }
}

#[cfg(test)]
mod tests;
