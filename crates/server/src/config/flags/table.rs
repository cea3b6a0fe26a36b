//! The table of all flags, in etcd's order and sections.

use super::Effect::{Gone, Nothing, Refused, Works};
use super::Kind::{AnyCase, Choice, Duration, List, Number, Switch, Text};
use super::{Effect, Flag, Kind, Section};

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    effect: Effect,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, help, effect }
}

/// Every flag, by section.
pub const TABLE: &[Section] = &[
    ("Member", MEMBER),
    ("Cluster", CLUSTER),
    ("Security", SECURITY),
    ("Auth", AUTH),
    ("Logging, metrics and tracing", OBSERVE),
    ("Tuning and checks", TUNING),
    ("Unsafe", UNSAFE),
    ("Former flags", FORMER),
    ("Hadron's own", OWN),
];

const ENGINE: &str = "the engine is not bbolt, and decides this itself";
const SEGMENTS: &str = "log segments are recycled as soon as nothing needs them";
const DIGESTS: &str = "replicas compare themselves all the time";
const PACED: &str = "compaction is paced by the load";
const V2_DISCOVERY: &str =
    "it needs the v2 API, which is gone from etcd too; use --discovery-token and --discovery-endpoints";

#[rustfmt::skip]
const MEMBER: &[Flag] = &[
    flag("name", Text, "default", Works, "Human-readable name of this node"),
    flag("data-dir", Text, "", Works, "Directory for everything this node stores; by default `{name}.hadron`, or `{name}.etcd` when run as etcd"),
    flag("wal-dir", Text, "", Works, "Directory for the write-ahead log, to put it on a disk of its own; by default `wal` in the data directory"),
    flag("snapshot-count", Number, "10000", Works, "Entries after which the log tells `saved snapshot`: that the engine has them durably, which it does all the time"),
    flag("heartbeat-interval", Number, "100", Works, "Time between heartbeats, in milliseconds"),
    flag("election-timeout", Number, "1000", Works, "Time without a leader before an election, in milliseconds"),
    flag("initial-election-tick-advance", Switch, "true", Nothing("a node that starts waits no longer than it must"), "Hold the first election sooner"),
    flag("listen-peer-urls", List, "http://127.0.0.1:2380", Works, "URLs to listen on for the other nodes"),
    flag("listen-client-urls", List, "http://127.0.0.1:2379", Works, "URLs to listen on for clients: gRPC, and HTTP unless it has URLs of its own"),
    flag("listen-client-http-urls", List, "", Works, "URLs to listen on for clients' HTTP alone; the client URLs are then for gRPC alone"),
    flag("max-wals", Number, "5", Nothing(SEGMENTS), "Most log files to keep"),
    flag("memory-mlock", Switch, "false", Nothing("no file is mapped into memory"), "Keep the database's pages in memory"),
    flag("quota-backend-bytes", Number, "0", Works, "Bytes of data at which the space alarm is raised; 0 for no bound, since size is no hazard here"),
    flag("backend-bbolt-freelist-type", Choice(&["map", "array"]), "map", Nothing(ENGINE), "bbolt's kind of free list"),
    flag("backend-batch-interval", Duration, "0s", Nothing(ENGINE), "Longest time before a batch is committed to bbolt"),
    flag("backend-batch-limit", Number, "0", Nothing(ENGINE), "Most operations before a batch is committed to bbolt"),
    flag("max-txn-ops", Number, "128", Works, "Most operations in one transaction"),
    flag("max-request-bytes", Number, "1572864", Works, "Largest client request, in bytes"),
    flag("max-concurrent-streams", Number, "4294967295", Works, "Most calls at a time over one connection"),
    flag("grpc-keepalive-min-time", Duration, "5s", Nothing("no client is turned away for its pings"), "Shortest time between a client's pings"),
    flag("grpc-keepalive-interval", Duration, "2h0m0s", Works, "Time without traffic before a client is pinged; 0 for never"),
    flag("grpc-keepalive-timeout", Duration, "20s", Works, "Time to wait for the answer to a ping"),
    flag("socket-reuse-port", Switch, "false", Works, "Let other processes listen on the same ports (SO_REUSEPORT)"),
    flag("socket-reuse-address", Switch, "false", Nothing("always so"), "Listen on addresses whose last connections linger (SO_REUSEADDR)"),
    flag("enable-grpc-gateway", Switch, "true", Works, "Serve the JSON gateway below /v3/"),
    flag("raft-read-timeout", Duration, "5s", Nothing("the failure detector decides when a peer is gone"), "Read time-out of connections between nodes"),
    flag("raft-write-timeout", Duration, "5s", Nothing("the failure detector decides when a peer is gone"), "Write time-out of connections between nodes"),
    flag("feature-gates", List, "", Nothing("what the features stand for is always so, or is about bbolt"), "Features to turn on or off: Name=true,Name=false"),
    flag("config-file", Text, "", Works, "Read the configuration from a YAML file; flags and environment are then ignored"),
];

#[rustfmt::skip]
const CLUSTER: &[Flag] = &[
    flag("initial-advertise-peer-urls", List, "http://127.0.0.1:2380", Works, "URL under which the other nodes reach this one"),
    flag("initial-cluster", List, "", Works, "All nodes of a new cluster: name=peer-url,name=peer-url; by default this node alone"),
    flag("initial-cluster-state", Choice(&["new", "existing"]), "new", Works, "Whether a first start makes a cluster or joins one"),
    flag("initial-cluster-token", Text, "etcd-cluster", Works, "Tells this cluster from others made with the same URLs"),
    flag("advertise-client-urls", List, "http://127.0.0.1:2379", Works, "URLs that clients are told to use"),
    flag("discovery", Text, "", Refused(V2_DISCOVERY), "URL of a v2 discovery service"),
    flag("discovery-token", Text, "", Works, "Token of the new cluster there; its size is the value of /_etcd/registry/TOKEN/_config/size"),
    flag("discovery-endpoints", List, "", Works, "Endpoints of another etcd, in which the members of a new cluster register"),
    flag("discovery-dial-timeout", Duration, "2s", Works, "Time to wait for a connection to it"),
    flag("discovery-request-timeout", Duration, "5s", Works, "Time to wait for its answers"),
    flag("discovery-keepalive-time", Duration, "2s", Works, "Time between pings to it"),
    flag("discovery-keepalive-timeout", Duration, "6s", Works, "Time to wait for an answer to a ping"),
    flag("discovery-insecure-transport", Switch, "true", Works, "Speak to it without TLS"),
    flag("discovery-insecure-skip-tls-verify", Switch, "false", Works, "Do not check its certificate"),
    flag("discovery-cert", Text, "", Works, "Client certificate for it"),
    flag("discovery-key", Text, "", Works, "Key of that certificate"),
    flag("discovery-cacert", Text, "", Works, "Certificates to check its certificate against"),
    flag("discovery-server-name", Text, "", Works, "Name that its certificate must have, instead of its host; in etcd a key of the configuration file alone"),
    flag("discovery-user", Text, "", Works, "User at it: a name, or name:password"),
    flag("discovery-password", Text, "", Works, "That user's password"),
    flag("discovery-fallback", Choice(&["exit", "proxy"]), "exit", Refused("etcd has no v2 proxy any more either"), "What to do when discovery fails"),
    flag("discovery-proxy", Text, "", Nothing("it is about v2 discovery, which is gone"), "HTTP proxy for the v2 discovery service"),
    flag("discovery-srv", Text, "", Works, "DNS domain whose SRV records name the members"),
    flag("discovery-srv-name", Text, "", Works, "Suffix of the SRV records' service"),
    flag("strict-reconfig-check", Switch, "true", Works, "Refuse changes of members that could cost the quorum"),
    flag("pre-vote", Switch, "true", Nothing("always so: without it, a node that comes back would disturb the others"), "Ask before an election whether it could be won"),
    flag("auto-compaction-retention", Text, "0", Works, "How much history to keep when compacting by itself"),
    flag("auto-compaction-mode", Choice(&["periodic", "revision"]), "periodic", Works, "What --auto-compaction-retention counts"),
    flag("max-learners", Number, "1", Works, "Most learners at a time"),
];

#[rustfmt::skip]
const SECURITY: &[Flag] = &[
    flag("cert-file", Text, "", Works, "Certificate of the client port"),
    flag("key-file", Text, "", Works, "Key of that certificate"),
    flag("client-cert-file", Text, "", Nothing("a node is no client of itself"), "Certificate with which this node is a client of itself"),
    flag("client-key-file", Text, "", Nothing("a node is no client of itself"), "Key of that certificate"),
    flag("client-cert-auth", Switch, "false", Works, "Demand certificates of clients"),
    flag("client-crl-file", Text, "", Works, "Revoked certificates of clients"),
    flag("client-cert-allowed-hostname", List, "", Works, "Host names that clients' certificates may have"),
    flag("client-cert-allowed-cn", List, "", Works, "Common names that clients' certificates may have; in etcd a key of the configuration file alone"),
    flag("trusted-ca-file", Text, "", Works, "Certificates to check clients' certificates against"),
    flag("auto-tls", Switch, "false", Works, "Make a certificate for the client port"),
    flag("peer-cert-file", Text, "", Works, "Certificate of the peer port"),
    flag("peer-key-file", Text, "", Works, "Key of that certificate"),
    flag("peer-client-cert-file", Text, "", Works, "Certificate towards other nodes, if another"),
    flag("peer-client-key-file", Text, "", Works, "Key of that certificate"),
    flag("peer-client-cert-auth", Switch, "false", Works, "Demand certificates of other nodes"),
    flag("peer-trusted-ca-file", Text, "", Works, "Certificates to check other nodes' certificates against"),
    flag("peer-cert-allowed-cn", List, "", Works, "Common names that other nodes' certificates may have"),
    flag("peer-cert-allowed-hostname", List, "", Works, "Host names that other nodes' certificates may have"),
    flag("peer-auto-tls", Switch, "false", Works, "Make a certificate for the peer port"),
    flag("peer-crl-file", Text, "", Works, "Revoked certificates of other nodes"),
    flag("peer-skip-client-san-verification", Switch, "false", Nothing("certificates of nodes that connect are not compared with their addresses"), "Do not compare other nodes' certificates with their addresses"),
    flag("self-signed-cert-validity", Number, "1", Works, "Validity of certificates made here, in years"),
    flag("cipher-suites", List, "", Works, "TLS cipher suites that may be used"),
    flag("tls-min-version", Choice(&["", "TLS1.2", "TLS1.3"]), "TLS1.2", Works, "Oldest version of TLS that may be used"),
    flag("tls-max-version", Choice(&["", "TLS1.2", "TLS1.3"]), "", Works, "Newest version of TLS that may be used"),
    flag("cors", List, "*", Works, "Origins of web pages that may read the answers"),
    flag("host-whitelist", List, "*", Works, "Host names that HTTP requests without TLS may be for"),
];

#[rustfmt::skip]
const AUTH: &[Flag] = &[
    flag("auth-token", Text, "simple", Works, "Kind of tokens that users get: simple, or jwt,sign-method=METHOD,pub-key=FILE,priv-key=FILE,ttl=DURATION"),
    flag("bcrypt-cost", Number, "10", Works, "Cost of hashing passwords"),
    flag("auth-token-ttl", Number, "300", Works, "Life of simple tokens, in seconds"),
];

#[rustfmt::skip]
const OBSERVE: &[Flag] = &[
    flag("enable-pprof", Switch, "false", Nothing("there is no Go runtime to look into; use `perf` and /metrics"), "Serve Go's profiles below /debug/pprof/"),
    flag("metrics", Choice(&["basic", "extensive"]), "basic", Nothing("/metrics has everything always"), "How much /metrics shows"),
    flag("listen-metrics-urls", List, "", Works, "URLs to listen on for /metrics and health alone; the client URLs have them too"),
    flag("logger", Choice(&["zap"]), "zap", Works, "Kind of log lines: zap is the only one, and what these look like"),
    flag("log-outputs", List, "default", Works, "Where log lines go: default and systemd/journal (standard error), stderr, stdout, or files"),
    flag("log-level", AnyCase(&["", "debug", "info", "warn", "error", "dpanic", "panic", "fatal"]), "info", Works, "Least severe level that is logged"),
    flag("log-format", Choice(&["", "json", "console"]), "json", Works, "Form of the log lines"),
    flag("enable-log-rotation", Switch, "false", Works, "Begin a new log file when one is full"),
    flag("log-rotation-config-json", Text, r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#, Works, "When a log file is full, and how many are kept"),
    flag("warning-apply-duration", Duration, "100ms", Nothing("how long applying takes is in /metrics"), "Warn when applying an entry takes longer"),
    flag("warning-unary-request-duration", Duration, "300ms", Works, "Warn when a request takes longer, once a second at most"),
    flag("enable-distributed-tracing", Switch, "false", Works, "Send traces to an OpenTelemetry collector"),
    flag("distributed-tracing-address", Text, "localhost:4317", Works, "Address of the collector, which is spoken to in plain text"),
    flag("distributed-tracing-service-name", Text, "etcd", Works, "Name of the service in traces"),
    flag("distributed-tracing-instance-id", Text, "", Works, "Name of this node in traces"),
    flag("distributed-tracing-sampling-rate", Number, "0", Works, "How many of a million requests to trace, beside those that belong to a trace"),
];

#[rustfmt::skip]
const TUNING: &[Flag] = &[
    flag("corrupt-check-time", Duration, "0s", Nothing(DIGESTS), "Time between two comparisons of the replicas"),
    flag("compact-hash-check-time", Duration, "1m0s", Nothing(DIGESTS), "Time between two comparisons of compacted replicas"),
    flag("compaction-batch-limit", Number, "0", Nothing(PACED), "Most revisions to delete in one step of a compaction"),
    flag("compaction-sleep-interval", Duration, "0s", Nothing(PACED), "Pause between two steps of a compaction"),
    flag("watch-progress-notify-interval", Duration, "10m0s", Works, "Time between two notes to a quiet watcher of how far it is"),
    flag("downgrade-check-time", Duration, "5s", Nothing("there is no version to go back to yet"), "Time between two looks at a downgrade"),
    flag("bootstrap-defrag-threshold-megabytes", Number, "0", Nothing(ENGINE), "Space that a defragmentation at a start must free"),
    flag("snapshot-catchup-entries", Number, "5000", Nothing("how much of the log is kept for slow followers is bounded in bytes"), "Entries to keep for slow followers"),
];

#[rustfmt::skip]
const UNSAFE: &[Flag] = &[
    flag("unsafe-no-fsync", Switch, "false", Nothing("what is acknowledged is always fsynced; one fsync serves many writes"), "Acknowledge writes that are not durable"),
    flag("force-new-cluster", Switch, "false", Works, "The other members are lost: make a cluster of this node alone, with its data"),
];

#[rustfmt::skip]
const FORMER: &[Flag] = &[
    flag("max-snapshots", Number, "5", Nothing("a node keeps no snapshot files"), "Most snapshot files to keep"),
    flag("v2-deprecation", Choice(&["", "not-yet", "write-only", "write-only-drop-data", "gone"]), "", Nothing("there is no v2 data"), "What to do with data of the v2 API"),
    flag("enable-v2", Switch, "false", Gone("the v2 API is gone from etcd too"), "Serve the v2 API"),
    flag("proxy", Choice(&["off", "readonly", "on"]), "off", Gone("the v2 proxy is gone from etcd too"), "Be a v2 proxy"),
    flag("proxy-failure-wait", Number, "5000", Nothing("the v2 proxy is gone"), "Time that the v2 proxy holds an endpoint for failed, in milliseconds"),
    flag("proxy-refresh-interval", Number, "30000", Nothing("the v2 proxy is gone"), "Time between two refreshes of the v2 proxy's endpoints, in milliseconds"),
    flag("proxy-dial-timeout", Number, "1000", Nothing("the v2 proxy is gone"), "Time that the v2 proxy waits for a connection, in milliseconds"),
    flag("proxy-write-timeout", Number, "5000", Nothing("the v2 proxy is gone"), "Write time-out of the v2 proxy, in milliseconds"),
    flag("proxy-read-timeout", Number, "0", Nothing("the v2 proxy is gone"), "Read time-out of the v2 proxy, in milliseconds"),
];

#[rustfmt::skip]
const OWN: &[Flag] = &[
    flag("zone", Text, "", Works, "Where this node stands: what fails together. Replicas of a keyspace do not share a zone while another has room"),
    flag("shards", Number, "0", Works, "Threads among which the keyspaces are divided, at most 256; 0 for half of the cores, at least one"),
    flag("scrub-interval", Duration, "24h0m0s", Works, "How often what is stored of every keyspace is read again and compared with what it should be, at 16 MiB a second; 0 for only when something of it did not fit. What is in the engine's or the system's cache is looked at there, and on the disk once it is not"),
    flag("balance-cool-down", Duration, "1h0m0s", Works, "How long a keyspace is left alone after it was moved, unless something is broken; to be given to all members"),
    flag("balance-grace-period", Duration, "10m0s", Works, "How long a node may be out of reach before its replicas are rebuilt elsewhere; to be given to all members"),
    flag("balance-disk-max", Number, "85", Works, "Percentage of its disk beyond which a node is given no replicas, and gives some away; to be given to all members"),
    flag("keyspace-listen", List, "", Works, "URLs to listen on for clients of one keyspace alone: name=url,name=url"),
    flag("keyspace-host-suffix", Text, "", Works, "Host names that end so choose the keyspace that is named before: with hadron.example, a.hadron.example is for the keyspace a"),
    flag("keyspace-from-certificate", Text, "", Works, "Clients with certificates are for the keyspace that these name: cn:{name} by the common name, o:{name} by an organization, with text before and after if wanted; needs --client-cert-auth"),
    flag("auto-promote", Switch, "false", Works, "Let learners vote as soon as they have caught up; to be given to all members"),
    flag("stop-on-stdin-close", Switch, "false", Works, "Stop when standard input is closed: how `hadron playground` ties its nodes to its own life"),
];

/// Flags that were `--experimental-…` once and became features.
pub(super) const GATES: &[(&str, &str)] = &[
    ("compact-hash-check-enabled", "CompactHashCheck"),
    ("enable-lease-checkpoint", "LeaseCheckpoint"),
    ("enable-lease-checkpoint-persist", "LeaseCheckpointPersist"),
    ("initial-corrupt-check", "InitialCorruptCheck"),
    ("stop-grpc-service-on-defrag", "StopGRPCServiceOnDefrag"),
    ("txn-mode-write-with-shared-buffer", "TxnModeWriteWithSharedBuffer"),
];

/// Flags that were `--experimental-…` once and lost that.
pub(super) const FORMERLY_EXPERIMENTAL: &[&str] = &[
    "bootstrap-defrag-threshold-megabytes",
    "compact-hash-check-time",
    "compaction-batch-limit",
    "compaction-sleep-interval",
    "corrupt-check-time",
    "distributed-tracing-address",
    "distributed-tracing-instance-id",
    "distributed-tracing-sampling-rate",
    "distributed-tracing-service-name",
    "downgrade-check-time",
    "enable-distributed-tracing",
    "max-learners",
    "memory-mlock",
    "peer-skip-client-san-verification",
    "snapshot-catchup-entries",
    "warning-apply-duration",
    "warning-unary-request-duration",
    "watch-progress-notify-interval",
];
