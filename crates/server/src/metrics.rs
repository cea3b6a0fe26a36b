//! What `/metrics` shows: one struct of counters, gauges and histograms, shared by every thread of the process.
//!
//! Whoever does a thing counts it here; the page is written out on request in the Prometheus text format. A metric that
//! means the same as one of etcd's has etcd's name, so that dashboards go on working; the rest begin with `hadron_`.
//!
//! Invariants: plain metrics are atomics and may be used on the hottest path; a labelled family takes a lock to find
//! its member, so a hot path keeps the `Arc` that [`Family::with`] returned. Order on the page is the order below, and
//! members of a family are sorted, so that two pages can be compared.
//!
//! Left out: a general registry. The set of metrics is known when the program is built.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Takes over a total that is counted elsewhere.
    pub fn set_total(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Replaces the number.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Replaces the number by an integer; exact up to 2^53.
    pub fn set_integer(&self, value: u64) {
        self.set(value as f64);
    }

    /// Replaces the number by 1 or 0.
    pub fn set_bool(&self, value: bool) {
        self.set(f64::from(u8::from(value)));
    }

    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: f64) {
        let add = |bits| Some((f64::from_bits(bits) + amount).to_bits());
        // Never fails: the closure always returns a value.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Adds one until the guard is dropped.
    pub fn hold(&self) -> Held<'_> {
        self.add(1.0);
        Held(self)
    }

    /// The number now.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// A number that only grows, and is counted elsewhere.
#[derive(Debug, Default)]
pub struct Total(Gauge);

impl Total {
    /// Replaces the number by a larger one.
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }

    /// Adds `amount`, which is not negative.
    pub fn add(&self, amount: f64) {
        self.0.add(amount);
    }

    /// The number now.
    pub fn get(&self) -> f64 {
        self.0.get()
    }
}

/// What [`Gauge::hold`] added, taken away again when dropped.
#[derive(Debug)]
pub struct Held<'a>(&'a Gauge);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

/// Buckets with an upper bound; each bound is twice the one before.
const BOUNDS: usize = 20;

/// How durations are distributed, in buckets from `FIRST_BOUND_MICROS` on. Usually these end at 16 µs, doubling, up to 8.4 s: the
/// finer low end shows disks and loops that take less than etcd's first bucket of 1 ms.
#[derive(Debug, Default)]
pub struct Histogram<const FIRST_BOUND_MICROS: u64 = 16> {
    /// How many fell into each bucket; the last one has no upper bound.
    buckets: [AtomicU64; BOUNDS + 1],
    sum_nanos: AtomicU64,
}

/// Of what may take minutes: from 10 ms to 87 minutes.
pub type LongHistogram = Histogram<10_000>;

/// Of round trips between nodes, in the buckets that etcd has, and some more: from 100 µs to 52 s.
pub type RoundTripHistogram = Histogram<100>;

/// Of snapshots on their way, in the buckets that etcd has, and some more: from 100 ms to 15 hours.
pub type TransferHistogram = Histogram<100_000>;

/// Of the lives of leases: from 1 s to 6 days.
pub type LifeHistogram = Histogram<1_000_000>;

impl<const FIRST_BOUND_MICROS: u64> Histogram<FIRST_BOUND_MICROS> {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        let bucket = match micros.div_ceil(FIRST_BOUND_MICROS) {
            0 | 1 => 0,
            ratio => (64 - (ratio - 1).leading_zeros() as usize).min(BOUNDS),
        };
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// All durations together, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_nanos.load(Ordering::Relaxed) / 1_000
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

/// Metrics of one name that differ in their labels.
#[derive(Debug)]
pub struct Family<M> {
    label_names: &'static [&'static str],
    members: RwLock<BTreeMap<Vec<String>, Arc<M>>>,
}

impl<M: Default> Family<M> {
    fn new(label_names: &'static [&'static str]) -> Family<M> {
        Family { label_names, members: RwLock::default() }
    }

    /// The member with these label values, in the order of the family's label names. Made when it is asked for first.
    pub fn with(&self, values: &[&str]) -> Arc<M> {
        assert_eq!(values.len(), self.label_names.len(), "one value for each of {:?}", self.label_names);
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        if let Some(member) = self.members.read().get(&values) {
            return Arc::clone(member);
        }
        Arc::clone(self.members.write().entry(values).or_default())
    }
}

impl<M: Default> Family<M> {
    /// Replaces all members at once, so that no page shows some of them, and none those that are gone.
    fn replace_with<N>(&self, members: impl IntoIterator<Item = (Vec<String>, N)>, set: impl Fn(&M, N)) {
        let member = |(values, number): (Vec<String>, N)| {
            assert_eq!(values.len(), self.label_names.len(), "one value for each of {:?}", self.label_names);
            let member = M::default();
            set(&member, number);
            (values, Arc::new(member))
        };
        let members = members.into_iter().map(member).collect();
        *self.members.write() = members;
    }
}

impl<M> Family<M> {
    /// Keeps those members whose label values are `wanted`.
    pub fn retain(&self, wanted: impl Fn(&[String]) -> bool) {
        self.members.write().retain(|values, _| wanted(values));
    }
}

impl Family<Gauge> {
    /// Replaces all members by these label values and numbers.
    pub fn replace(&self, members: impl IntoIterator<Item = (Vec<String>, f64)>) {
        self.replace_with(members, Gauge::set);
    }
}

impl Family<Counter> {
    /// Replaces all members by these label values and totals that are counted elsewhere.
    pub fn replace(&self, members: impl IntoIterator<Item = (Vec<String>, u64)>) {
        self.replace_with(members, Counter::set_total);
    }
}

/// How a metric is written on the page.
trait Render {
    const KIND: &'static str;
    fn render(&self, out: &mut String, name: &str, labels: &str);
}

impl Render for Counter {
    const KIND: &'static str = "counter";

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        write_sample(out, name, "", labels, self.get());
    }
}

impl Render for Gauge {
    const KIND: &'static str = "gauge";

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        match self.get() {
            // As Prometheus spells it.
            f64::INFINITY => write_sample(out, name, "", labels, "+Inf"),
            value => write_sample(out, name, "", labels, value),
        }
    }
}

impl Render for Total {
    const KIND: &'static str = "counter";

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        self.0.render(out, name, labels);
    }
}

impl<const FIRST_BOUND_MICROS: u64> Render for Histogram<FIRST_BOUND_MICROS> {
    const KIND: &'static str = "histogram";

    fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut count = 0;
        let separator = if labels.is_empty() { "" } else { "," };
        for (position, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let bound = match position {
                BOUNDS => "+Inf".to_owned(),
                _ => ((FIRST_BOUND_MICROS << position) as f64 / 1e6).to_string(),
            };
            let labels = format!("{labels}{separator}le=\"{bound}\"");
            write_sample(out, name, "_bucket", &labels, count);
        }
        let sum = Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)).as_secs_f64();
        write_sample(out, name, "_sum", labels, sum);
        write_sample(out, name, "_count", labels, count);
    }
}

impl<M: Render> Render for Family<M> {
    const KIND: &'static str = M::KIND;

    fn render(&self, out: &mut String, name: &str, _labels: &str) {
        for (values, member) in self.members.read().iter() {
            let pairs: Vec<String> = std::iter::zip(self.label_names, values)
                .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                .collect();
            member.render(out, name, &pairs.join(","));
        }
    }
}

fn write_sample(out: &mut String, name: &str, suffix: &str, labels: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = match labels {
        "" => writeln!(out, "{name}{suffix} {value}"),
        _ => writeln!(out, "{name}{suffix}{{{labels}}} {value}"),
    };
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Declares [`Metrics`]: each line is a field, its kind (a family with its label names), its name and its help text,
/// which is the field's documentation too.
macro_rules! metrics {
    ($($field:ident: $kind:ty $([$($label:literal),+])? = $name:literal, $help:literal;)*) => {
        /// All metrics of the process. Shared as an `Arc`.
        #[derive(Debug)]
        pub struct Metrics {
            $(#[doc = $help] #[doc = concat!(" On the page: `", $name, "`.")] pub $field: $kind,)*
        }

        impl Default for Metrics {
            fn default() -> Metrics {
                Metrics { $($field: metrics!(@new $($($label),+)?),)* }
            }
        }

        impl Metrics {
            /// The page in the Prometheus text format, version 0.0.4.
            pub fn render(&self) -> String {
                let mut out = String::with_capacity(32 * 1024);
                $(render_metric(&mut out, $name, $help, &self.$field);)*
                out
            }
        }
    };
    (@new) => { Default::default() };
    (@new $($label:literal),+) => { Family::new(&[$($label),+]) };
}

fn render_metric<M: Render>(out: &mut String, name: &str, help: &str, metric: &M) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", M::KIND);
    metric.render(out, name, "");
}

metrics! {
    server_id: Family<Gauge>["server_id"] = "etcd_server_id", "This node's id, as the label of a 1.";
    server_version: Family<Gauge>["server_version"] = "etcd_server_version", "The etcd version offered, as the label of a 1.";
    cluster_version: Family<Gauge>["cluster_version"] = "etcd_cluster_version", "The etcd version that all nodes offer, as the label of a 1.";
    hadron_version: Family<Gauge>["version"] = "hadron_version", "Hadron's version, as the label of a 1.";

    has_leader: Gauge = "etcd_server_has_leader", "Whether the keyspace `default` has a leader: 1 or 0.";
    is_leader: Gauge = "etcd_server_is_leader", "Whether this node leads the keyspace `default`: 1 or 0.";
    is_learner: Gauge = "etcd_server_is_learner", "Whether this node has no vote yet: 1 or 0.";
    leader_changes_seen: Counter = "etcd_server_leader_changes_seen_total", "Changes of leader that this node saw.";
    proposals_committed: Gauge = "etcd_server_proposals_committed_total", "The commit index of the keyspace `default`.";
    proposals_applied: Gauge = "etcd_server_proposals_applied_total", "The applied index of the keyspace `default`.";
    proposals_pending: Gauge = "etcd_server_proposals_pending", "Writes of this node's clients that wait for their outcome.";
    proposals_failed: Counter = "etcd_server_proposals_failed_total", "Writes of this node's clients that ended without an answer of the state machine.";
    read_indexes_failed: Counter = "etcd_server_read_indexes_failed_total", "Linearizable reads that could not be confirmed.";
    slow_read_indexes: Counter = "etcd_server_slow_read_indexes_total", "Linearizable reads that were not confirmed before their time-out.";
    slow_apply: Counter = "etcd_server_slow_apply_total", "Entries of the keyspace `default` applied in a turn of the loop that took over 100 ms.";
    learner_promotions: Counter = "etcd_server_learner_promote_successes", "Learners that were promoted through this node.";
    learner_promotion_failures: Family<Counter>["Reason"] = "etcd_server_learner_promote_failures", "Promotions of learners that this node refused, by the error.";
    client_requests: Family<Counter>["client_api_version", "type"] = "etcd_server_client_requests_total", "Calls that began, by the version that the client says it is made for, and by type: unary or stream.";
    range_duration: Family<Histogram>["success"] = "etcd_server_range_duration_seconds", "Time of ranges, waiting for a quorum included.";
    quota_bytes: Gauge = "etcd_server_quota_backend_bytes", "Bytes that the keyspace `default` may have; +Inf for no bound.";
    snapshots_installing: Gauge = "etcd_server_snapshot_apply_in_progress_total", "Snapshots of other nodes that are being received or installed.";
    lease_expired: Counter = "etcd_debugging_server_lease_expired_total", "Leases that expired while this node led their group.";
    alarms: Family<Gauge>["server_id", "alarm_type"] = "etcd_debugging_server_alarms", "1 for each alarm of the keyspace `default` that is raised.";
    health_success: Counter = "etcd_server_health_success", "Health checks over HTTP that succeeded.";
    health_failures: Counter = "etcd_server_health_failures", "Health checks over HTTP that failed.";
    health_check: Family<Gauge>["name", "type"] = "etcd_server_healthcheck", "The last result of each check of `/livez` and `/readyz`: 1 or 0.";
    health_checks: Family<Counter>["name", "status", "type"] = "etcd_server_healthchecks_total", "Checks of `/livez` and `/readyz` by their result.";

    wal_fsync_duration: Histogram = "etcd_disk_wal_fsync_duration_seconds", "Time to make one batch of the log durable.";
    wal_write_duration: Histogram = "etcd_disk_wal_write_duration_seconds", "Time to append one batch to the log.";
    wal_write_bytes: Counter = "etcd_disk_wal_write_bytes_total", "Bytes written to the log since the start, framing included.";
    backend_commit_duration: Histogram = "etcd_disk_backend_commit_duration_seconds", "Time to make durable what was flushed to the engine.";
    backup_duration: LongHistogram = "etcd_disk_backend_snapshot_duration_seconds", "Time of backups that were sent to their end.";
    snapshot_save_duration: LongHistogram = "etcd_snap_db_save_total_duration_seconds", "Time to receive and install a snapshot of another node.";
    defragmentations: Gauge = "etcd_disk_defrag_inflight", "Whether what deleted values take on the disk is being given back.";
    db_total_bytes: Gauge = "etcd_mvcc_db_total_size_in_bytes", "The size of the keyspace `default`, as its status tells: bytes of the versions that are kept.";
    db_in_use_bytes: Gauge = "etcd_mvcc_db_total_size_in_use_in_bytes", "The same: what is not kept counts nowhere.";
    engine_disk_bytes: Gauge = "hadron_engine_disk_bytes", "Bytes that the engine takes on disk, all keyspaces together, as of its last commit.";

    range_total: Counter = "etcd_mvcc_range_total", "Ranges asked of this node.";
    put_total: Counter = "etcd_mvcc_put_total", "Puts asked of this node.";
    delete_total: Counter = "etcd_mvcc_delete_total", "Deletions asked of this node.";
    txn_total: Counter = "etcd_mvcc_txn_total", "Transactions asked of this node.";
    put_bytes: Counter = "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of the keys and values that were put through this node, transactions left out.";
    open_reads: Gauge = "etcd_mvcc_db_open_read_transactions", "Long reads that are being made.";
    hash_duration: Histogram = "etcd_mvcc_hash_duration_seconds", "Time of calls of Hash.";
    hash_revision_duration: Histogram = "etcd_mvcc_hash_rev_duration_seconds", "Time of calls of HashKV.";
    auth_revision: Gauge = "etcd_debugging_auth_revision", "The revision of users and roles.";
    current_revision: Gauge = "etcd_debugging_mvcc_current_revision", "The revision of the keyspace `default`.";
    compact_revision: Gauge = "etcd_debugging_mvcc_compact_revision", "The revision up to which history was compacted.";
    keys_total: Gauge = "etcd_debugging_mvcc_keys_total", "Keys that exist now.";
    watch_streams: Gauge = "etcd_debugging_mvcc_watch_stream_total", "Watch streams that are open.";
    watchers: Gauge = "etcd_debugging_mvcc_watcher_total", "Watchers of the keyspace `default` on this node.";
    slow_watchers: Gauge = "etcd_debugging_mvcc_slow_watcher_total", "Watchers thereof that read history because they are behind.";
    watch_events: Counter = "etcd_debugging_mvcc_events_total", "Events sent to watchers.";
    leases_granted: Counter = "etcd_debugging_lease_granted_total", "Leases granted through this node.";
    leases_revoked: Counter = "etcd_debugging_lease_revoked_total", "Leases revoked through this node.";
    leases_renewed: Counter = "etcd_debugging_lease_renewed_total", "Leases kept alive through this node.";
    lease_ttl: LifeHistogram = "etcd_debugging_lease_ttl_total", "Lives of the leases that were granted through this node.";

    peer_sent_bytes: Family<Counter>["To"] = "etcd_network_peer_sent_bytes_total", "Bytes sent to a node, snapshots included.";
    peer_received_bytes: Family<Counter>["From"] = "etcd_network_peer_received_bytes_total", "Bytes received from a node, snapshots included.";
    peer_round_trips: Family<RoundTripHistogram>["To"] = "etcd_network_peer_round_trip_time_seconds", "Time from a ping to a node to its answer.";
    peer_sent_failures: Family<Counter>["To"] = "etcd_network_peer_sent_failures_total", "Connections to a node that could not be made or were lost, and messages to it that were dropped.";
    peer_received_failures: Family<Counter>["From"] = "etcd_network_peer_received_failures_total", "Connections of a node that broke off.";
    disconnected_peers: Family<Counter>["Local", "Remote"] = "etcd_network_disconnected_peers_total", "Connections to a node that were lost.";
    snapshots_sending: Family<Gauge>["To"] = "etcd_network_snapshot_send_inflights_total", "Snapshots that are being sent to a node.";
    snapshot_sends: Family<Counter>["To"] = "etcd_network_snapshot_send_success", "Snapshots sent to a node and installed there.";
    snapshot_send_failures: Family<Counter>["To"] = "etcd_network_snapshot_send_failures", "Snapshots that did not get to a node.";
    snapshot_send_duration: Family<TransferHistogram>["To"] = "etcd_network_snapshot_send_total_duration_seconds", "Time to send a snapshot to a node, until it was installed there.";
    snapshots_receiving: Family<Gauge>["From"] = "etcd_network_snapshot_receive_inflights_total", "Snapshots of a node that are being received or installed.";
    snapshot_receives: Family<Counter>["From"] = "etcd_network_snapshot_receive_success", "Snapshots of a node that were installed.";
    snapshot_receive_failures: Family<Counter>["From"] = "etcd_network_snapshot_receive_failures", "Snapshots of a node that were not installed.";
    snapshot_receive_duration: Family<TransferHistogram>["From"] = "etcd_network_snapshot_receive_total_duration_seconds", "Time to receive and install a snapshot of a node.";
    active_peers: Family<Gauge>["Local", "Remote"] = "etcd_network_active_peers", "Whether a node is connected: 1 or 0.";
    known_peers: Family<Gauge>["Local", "Remote"] = "etcd_network_known_peers", "Whether a node is a member that this one talks to: 1 or 0.";
    client_received_bytes: Counter = "etcd_network_client_grpc_received_bytes_total", "Bytes received from clients, without those of TLS.";
    client_sent_bytes: Counter = "etcd_network_client_grpc_sent_bytes_total", "Bytes sent to clients, without those of TLS.";
    grpc_started: Family<Counter>["grpc_method", "grpc_service", "grpc_type"] = "grpc_server_started_total", "Calls that began.";
    grpc_handled: Family<Counter>["grpc_code", "grpc_method", "grpc_service", "grpc_type"] = "grpc_server_handled_total", "Calls that ended.";
    grpc_duration: Family<Histogram>["grpc_method", "grpc_service", "grpc_type"] = "grpc_server_handling_seconds", "Time of calls, from their beginning to their end.";
    grpc_received: Family<Counter>["grpc_method", "grpc_service", "grpc_type"] = "grpc_server_msg_received_total", "Messages received from clients.";
    grpc_sent: Family<Counter>["grpc_method", "grpc_service", "grpc_type"] = "grpc_server_msg_sent_total", "Messages sent to clients.";
    pages_in_flight: Gauge = "promhttp_metric_handler_requests_in_flight", "Pages of metrics that are being made.";
    pages: Family<Counter>["code"] = "promhttp_metric_handler_requests_total", "Pages of metrics that were asked for, by the status of the answer.";
    process_cpu_seconds: Total = "process_cpu_seconds_total", "User and system time that the process took, in seconds.";
    process_resident_bytes: Gauge = "process_resident_memory_bytes", "Memory of the process that is resident.";
    process_virtual_bytes: Gauge = "process_virtual_memory_bytes", "All memory of the process, resident or not.";
    process_open_fds: Gauge = "process_open_fds", "File descriptors that are open.";
    process_max_fds: Gauge = "process_max_fds", "File descriptors that may be open.";
    fds_used: Gauge = "os_fd_used", "File descriptors that are open.";
    fds_limit: Gauge = "os_fd_limit", "File descriptors that may be open.";
    process_start_time: Gauge = "process_start_time_seconds", "When the process began, in seconds since 1970.";
    calls_passed_on: Family<Counter>["To"] = "hadron_calls_passed_on_total", "Calls about keyspaces without a replica here that another node took.";
    client_connections: Gauge = "hadron_client_connections", "Connections of clients, and of nodes that pass calls on, that are open.";
    client_requests_waiting: Gauge = "hadron_client_requests_waiting", "Requests of clients, reads and writes, that wait for the loop's answer.";

    election_vote_share: Family<Gauge>["group", "candidate"] = "hadron_election_vote_share", "P(x): the part of the counted votes that a candidate got in the group's last election.";
    elections: Family<Counter>["group", "outcome"] = "hadron_elections_total", "Elections by outcome: won or split.";
    log_share: Family<Gauge>["group", "node"] = "hadron_log_share", "C(x): a node's part of the log entries that the group's replicas acknowledged within the last 20 s. Shown by the leader.";
    replication_lag_entries: Family<Gauge>["group", "node"] = "hadron_replication_lag_entries", "Entries between the leader's last one and what a node's replica acknowledged. Shown by the leader.";
    node_load: Family<Gauge>["node"] = "hadron_node_load", "W(x): a node's load in its scarcest resource, where 1 is full. Shown by nodes that vote in the root group.";
    node_load_share: Family<Gauge>["node"] = "hadron_node_load_share", "B(x): a node's part in the sum of all W.";
    moves: Family<Counter>["reason"] = "hadron_moves_total", "Moves of replicas and leaderships that this node decided while it led the root group, by reason.";
    digest_checks: Family<Counter>["group", "result"] = "hadron_digest_checks_total", "Comparisons of this replica's digest with another's, by result: same or different.";
    groups_asleep: Gauge = "hadron_groups_asleep", "Groups with a replica here that sleep: nothing happens in them.";
    replica_votes: Family<Gauge>["group"] = "hadron_replica_votes", "Whether this node's replica has a vote in the group, and no change of its members is under way: 1 or 0.";
    corrupt_replicas: Family<Gauge>["group", "node"] = "hadron_corrupt_replica", "1 for a node whose replica differs from the majority, until it is rebuilt.";
    unusable_replicas: Gauge = "hadron_unusable_replicas", "Replicas here that stay closed although they are not damaged: a newer version wrote them, most often. The log says why.";
    scrub_bytes: Counter = "hadron_scrub_bytes_total", "Bytes that were read to see whether what is stored is as it should be.";
    scrubs: Family<Counter>["result"] = "hadron_scrubs_total", "Keyspaces whose stored state was read for that, by result: sound, damaged, unreadable or replaced.";
    scrub_damaged: Gauge = "hadron_scrub_damaged_replicas", "Replicas here whose stored state was found damaged and which serve all the same.";
    unflushed_bytes: Family<Gauge>["group"] = "hadron_unflushed_bytes", "Bytes that a group's replica applied and the engine does not have yet.";
    unflushed_entries: Family<Gauge>["group"] = "hadron_unflushed_entries", "Entries that a group's replica applied and the engine does not have yet.";
    engine_flush_duration: Histogram = "hadron_engine_flush_duration_seconds", "Time to write one flush to the engine, not yet durable.";
    turn_duration: Histogram = "hadron_turn_duration_seconds", "Time of one turn of a shard's loop: requests, messages, proposals and applies taken together.";
    shard_busy: Family<Total>["shard"] = "hadron_shard_busy_seconds_total", "Time that a shard's loop was not waiting, in seconds.";
    wal_segments: Gauge = "hadron_wal_segments", "Segments that hold the log.";
    wal_batch_records: Counter = "hadron_wal_batch_records_total", "Records written to the log; divided by the fsyncs, the batch size.";
    snapshots_sent: Counter = "hadron_snapshots_sent_total", "Snapshots streamed to other nodes.";
    snapshots_received: Counter = "hadron_snapshots_received_total", "Snapshots received from other nodes.";
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_page_has_help_type_and_samples() {
        let metrics = Metrics::default();
        metrics.put_total.add(3);
        metrics.has_leader.set_bool(true);
        metrics.election_vote_share.with(&["1", "2"]).set(0.75);
        metrics.server_id.with(&["a\"b\\c\nd"]).set(1.0);
        metrics.quota_bytes.set(f64::INFINITY);
        let page = metrics.render();
        assert!(page.contains("# TYPE etcd_mvcc_put_total counter\netcd_mvcc_put_total 3\n"));
        assert!(page.contains("# TYPE etcd_server_has_leader gauge\netcd_server_has_leader 1\n"));
        assert!(page.contains("etcd_server_quota_backend_bytes +Inf\n"));
        assert!(page.contains("hadron_election_vote_share{group=\"1\",candidate=\"2\"} 0.75\n"));
        assert!(page.contains("etcd_server_id{server_id=\"a\\\"b\\\\c\\nd\"} 1\n"));
    }

    #[test]
    fn a_duration_counts_in_its_bucket_and_all_larger_ones() {
        let histogram: Histogram = Histogram::default();
        for micros in [0, 16, 17, 32, 33, 10_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut page = String::new();
        histogram.render(&mut page, "x", "a=\"b\"");
        let expected = [
            "x_bucket{a=\"b\",le=\"0.000016\"} 2\n",
            "x_bucket{a=\"b\",le=\"0.000032\"} 4\n",
            "x_bucket{a=\"b\",le=\"0.000064\"} 5\n",
            "x_bucket{a=\"b\",le=\"8.388608\"} 5\n",
            "x_bucket{a=\"b\",le=\"+Inf\"} 6\n",
            "x_sum{a=\"b\"} 10.000098\n",
            "x_count{a=\"b\"} 6\n",
        ];
        for line in expected {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    /// A metric that nobody can look up is half a metric, and a row about one that is gone is worse.
    #[test]
    fn the_page_in_docs_names_every_metric_with_its_kind_and_no_other() {
        const DOCS: &str = include_str!("../../../docs/metrics.md");
        let page = Metrics::default().render();
        let exposed = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut exposed: Vec<(&str, &str)> = exposed.filter_map(|line| line.split_once(' ')).collect();
        let mut documented: Vec<(&str, &str)> = Vec::new();
        for row in DOCS.lines().filter_map(|line| line.strip_prefix("| `")) {
            let (metric, rest) = row.split_once('`').unwrap();
            let cells: Vec<&str> = rest.split('|').map(str::trim).collect();
            documented.push((metric.split('{').next().unwrap(), cells[1]));
            assert!(cells[2..4].iter().all(|cell| !cell.is_empty()), "unit and meaning of {metric}");
        }
        exposed.sort_unstable();
        documented.sort_unstable();
        assert_eq!(documented, exposed);
    }

    /// Half of those that dashboards ask for used to be missing, and nobody had said so.
    #[test]
    fn the_metrics_of_etcd_are_here_or_the_docs_say_why_not() {
        const DOCS: &str = include_str!("../../../docs/metrics.md");
        const ETCD: &str = include_str!("../tests/processes/metrics-of-etcd.txt");
        let page = Metrics::default().render();
        let (_, left_out) = DOCS.split_once("## Metrics of etcd that are not here").unwrap();
        for name in ETCD.lines() {
            let is_here = page.contains(&format!("# TYPE {name} "));
            let is_explained = left_out.contains(&format!("`{name}`"));
            assert!(is_here != is_explained, "{name}: here: {is_here}, said to be left out: {is_explained}");
        }
    }

    #[test]
    fn gauges_add_and_families_share_members() {
        let family: Family<Gauge> = Family::new(&["x"]);
        family.with(&["1"]).add(2.0);
        family.with(&["1"]).add(-0.5);
        assert_eq!(family.with(&["1"]).get(), 1.5);
        let held = family.with(&["1"]);
        let hold = held.hold();
        assert_eq!(held.get(), 2.5);
        drop(hold);
        assert_eq!(held.get(), 1.5);
        family.replace([(vec!["2".to_owned()], 4.0)]);
        assert_eq!((family.with(&["1"]).get(), family.with(&["2"]).get()), (0.0, 4.0));
    }
}
