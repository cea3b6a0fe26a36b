//! Why a configuration is refused.

use super::url::{Url, UrlError};
use super::{ELECTION_TIMEOUT_MS_MAX, HEARTBEATS_PER_ELECTION_MIN};

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
    /// Not a kind of tokens.
    #[error(
        "--auth-token: {0:?}: expected simple, or jwt,sign-method=METHOD with pub-key=FILE, priv-key=FILE and ttl=DURATION as \
         needed"
    )]
    AuthToken(String),
    /// Not a cost of bcrypt.
    #[error("--bcrypt-cost: expected 4 to 31, got {0}")]
    BcryptCost(String),
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
    /// An entry of `--keyspace-listen` without `=`.
    #[error("--keyspace-listen: expected name=url, got {0:?}")]
    KeyspaceListen(String),
    /// A suffix that no host name has.
    #[error("--keyspace-host-suffix: expected the end of host names, such as hadron.example, got {0:?}")]
    KeyspaceHostSuffix(String),
    /// Not a rule for certificates.
    #[error("--keyspace-from-certificate: expected cn: or o: and a text with {{name}} in it, got {0:?}")]
    KeyspaceFromCertificate(String),
    /// Joining a cluster.
    #[error(
        "--initial-cluster-state=existing needs an --initial-cluster that names this node and at least one running member"
    )]
    ExistingCluster,
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
    /// A number that is too small or too large for its flag.
    #[error("--{flag}: {value} is out of range")]
    Range {
        /// The flag, without dashes.
        flag: &'static str,
        /// As given.
        value: String,
    },
    /// `--auto-compaction-retention` is no time, or no number of revisions.
    #[error(
        "--auto-compaction-retention: expected {}, got {value:?}",
        if *counts_revisions { "a number of revisions" } else { "a duration or a number of hours" }
    )]
    Retention {
        /// As given.
        value: String,
        /// `--auto-compaction-mode=revision`.
        counts_revisions: bool,
    },
    /// A flag that asks for what is gone from etcd.
    #[error("--{flag}={value} is not supported: {why}")]
    Gone {
        /// The flag, without dashes.
        flag: &'static str,
        /// As given; no secret, since secrets are never refused.
        value: String,
        /// What to do about it.
        why: &'static str,
    },
    /// The nodes of a new cluster are named in several places.
    #[error(
        "multiple discovery or bootstrap flags are set: choose one of --initial-cluster, --discovery-endpoints or --discovery-srv"
    )]
    ManyBootstraps,
    /// A list with nothing between its commas.
    #[error("--discovery-endpoints must not contain empty endpoints")]
    EmptyDiscoveryEndpoint,
    /// To join a cluster that runs by registering for a new one.
    #[error(
        "--discovery-endpoints is for new clusters: name the members of the running one in --initial-cluster, beside \
         --initial-cluster-state=existing"
    )]
    DiscoveryOfExisting,
    /// How many of a million requests are traced.
    #[error("--distributed-tracing-sampling-rate: expected 0 to 1000000, got {0}")]
    SamplingRate(String),
    /// A flag that needs another one.
    #[error("--{one} needs --{other} beside it")]
    Together {
        /// Without dashes.
        one: &'static str,
        /// Without dashes.
        other: &'static str,
    },
    /// Two flags of which one may be given.
    #[error("--{one} and --{other} exclude each other")]
    Exclusive {
        /// Without dashes.
        one: &'static str,
        /// Without dashes.
        other: &'static str,
    },
    /// TLS is to be spoken without a certificate.
    #[error("--{flag}: https needs --{certificate} and --{key}, or --{auto}")]
    NoCertificate {
        /// Where it was asked for, without dashes.
        flag: &'static str,
        /// The flag of the certificate.
        certificate: &'static str,
        /// The flag of its key.
        key: &'static str,
        /// The flag that makes both.
        auto: &'static str,
    },
    /// Some peer URLs are for TLS and some are not.
    #[error("--listen-peer-urls: all must be https, or none")]
    MixedPeers,
    /// No version of TLS is left.
    #[error("--tls-min-version is above --tls-max-version")]
    TlsVersions,
    /// Suites are chosen where there is no choice.
    #[error("--cipher-suites: TLS 1.3 alone leaves no choice of cipher suites")]
    SuitesOfTls13,
    /// None of the named cipher suites exists.
    #[error("--cipher-suites: none of {0} can be used")]
    NoSuite(String),
    /// A feature gate without a name that is known, or without a value.
    #[error("--feature-gates: expected Name=true or Name=false with a name that is known, got {0:?}")]
    FeatureGate(String),
    /// Log lines to standard error in etcd's own way, and elsewhere too.
    #[error("--log-outputs: {0:?} cannot be combined with other outputs")]
    LogOutputs(String),
    /// Log rotation without a file, or with several.
    #[error("--log-outputs: --enable-log-rotation needs exactly one file among the outputs")]
    RotationOutput,
    /// How logs are rotated cannot be read.
    #[error(
        "--log-rotation-config-json: expected an object with maxsize (MiB), maxage (days), maxbackups, localtime and compress, got {given:?}: {error}"
    )]
    Rotation {
        /// As given.
        given: String,
        /// Why.
        error: String,
    },
}
