//! What every service holds: the node behind it, the keyspace that it serves, limits and metrics.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::{DEFAULT_GROUP, GroupId, NodeId, Term};
use hadron_keyspace::{Command, Keyspace, Response};
use hadron_node::{DEFAULT_KEYSPACE, KeyspaceRecord};
use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
use hadron_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, Member, ResponseHeader};
use prost::Message;
use ring::digest;
use tokio::sync::{Mutex, Semaphore};
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::apart::Apart;
use super::backend::{Backend, GroupStatus, Written};
use super::beside;
use super::choice::Door;
use super::error::{EtcdError, refusal};
use super::keyspaces::{no_keyspace, serves};
use super::leader;
use super::membership::MembershipOptions;
use super::passwords::Passwords;
use super::rate::Rate;
use super::snapshot;
use super::stamps::TokensTaken;
use super::tokens::{Home, Tokens};
use crate::detached;
use crate::metrics::Metrics;

/// How soon whoever waits for something in a keyspace hears that it is gone.
const GONE_INTERVAL: Duration = Duration::from_secs(1);
/// What a keyspace without keys is said to take, and every other beside its keys. etcdctl divides by the size.
const EMPTY_DB_BYTES: u64 = 4 << 10;

/// What one request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one encoded write, keys and values together.
    pub request_bytes: usize,
    /// Comparisons, and operations of either branch, of a transaction and of the one that each of them may be, and so on: together on any way
    /// down, not among those that are beside each other, as in etcd.
    pub txn_operations: usize,
    /// Keys that a transaction may look at that writes ([`Keyspace::check_reach`]): it does so on every replica, and all others of the shard
    /// wait. One that only reads may look at ten times as many.
    pub txn_keys: usize,
    /// The shortest time to live a lease gets, in seconds: shorter ones are raised to it, as in etcd, because a lease
    /// must outlive an election.
    pub lease_ttl_min: i64,
    /// Bytes of a keyspace with its history, its leases, users and roles at which the space alarm is raised, unless it has a bound of its own; `None` for no
    /// bound.
    pub quota_bytes: Option<u64>,
}

impl Default for Limits {
    /// etcd's defaults, with an election timeout of one second.
    fn default() -> Limits {
        Limits {
            request_bytes: 1536 * 1024,
            txn_operations: 128,
            txn_keys: 1_000_000,
            lease_ttl_min: 2,
            quota_bytes: None,
        }
    }
}

/// Who may be served by a replica that has no vote yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learners {
    /// The call reads local state and is answered by learners too.
    Answer,
    /// The call needs a voter.
    Refuse,
}

/// What the catalog says of how a keyspace may be used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// It may only be read.
    is_frozen: bool,
    /// Bytes that it may hold; 0 for no bound of its own.
    bytes_max: u64,
    /// Requests a second that each node takes for it; 0 for no bound.
    requests_per_second_max: u64,
}

impl Terms {
    fn of(record: &KeyspaceRecord) -> Terms {
        Terms {
            is_frozen: record.is_frozen(),
            bytes_max: record.bytes_max,
            requests_per_second_max: record.requests_per_second_max,
        }
    }
}

/// Shared by the services of one keyspace. Small, since there may be thousands.
pub(super) struct Context<B> {
    pub(super) backend: B,
    /// The keyspace's name.
    pub(super) name: Arc<str>,
    /// The group that carries it.
    pub(super) group: GroupId,
    /// What its answers carry: see [`cluster_id`].
    pub(super) cluster_id: u64,
    /// Requests that were taken lately.
    pub(super) rate: Rate,
    pub(super) limits: Limits,
    pub(super) membership: MembershipOptions,
    pub(super) watch_progress_interval: Duration,
    /// Time without a leader before an election.
    pub(super) election_timeout: Duration,
    /// Where backups are built.
    pub(super) snapshot_dir: Arc<Path>,
    /// Calls for one that may be under way.
    pub(super) snapshots: Arc<Semaphore>,
    /// The building of backups.
    pub(super) backups: Apart,
    /// What is computed from all data, of the keyspace or of the pool.
    pub(super) calculations: Apart,
    pub(super) tokens: Arc<Tokens>,
    pub(super) tokens_taken: Arc<TokensTaken>,
    pub(super) passwords: Passwords,
    /// Held by whoever waits for a leader of the group that it woke.
    pub(super) waking: Arc<Mutex<()>>,
    pub(super) metrics: Arc<Metrics>,
}

/// The id that a keyspace's answers carry, so that its clients can tell it from others: for `default` that of the pool, as with etcd; for
/// others one made of it and of the group, which is never used again.
pub(super) fn cluster_id(pool_id: u64, group: GroupId) -> u64 {
    if group == DEFAULT_GROUP {
        return pool_id;
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"hadron keyspace");
    hash.update(&pool_id.to_be_bytes());
    hash.update(&group.0.to_be_bytes());
    let first = hash.finish().as_ref().first_chunk().copied().unwrap_or_default();
    u64::from_be_bytes(first).max(1)
}

impl<B: Backend> Context<B> {
    /// The same for another keyspace.
    pub(super) fn for_keyspace(&self, name: &str, group: GroupId) -> Context<B> {
        Context {
            backend: self.backend.clone(),
            name: name.into(),
            group,
            cluster_id: cluster_id(self.backend.identity().cluster_id, group),
            rate: Rate::default(),
            limits: self.limits,
            membership: self.membership,
            watch_progress_interval: self.watch_progress_interval,
            election_timeout: self.election_timeout,
            snapshot_dir: Arc::clone(&self.snapshot_dir),
            snapshots: Arc::new(Semaphore::new(snapshot::AT_ONCE)),
            backups: self.backups.for_another(),
            calculations: self.calculations.for_another(),
            tokens: Arc::new(self.tokens.for_another()),
            tokens_taken: Arc::default(),
            passwords: self.passwords.for_another(),
            waking: Arc::default(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Whether this is the keyspace that is the pool's own.
    pub(super) fn is_default(&self) -> bool {
        &*self.name == DEFAULT_KEYSPACE
    }

    /// How the keyspace may be used now; refused once it is deleted.
    pub(super) fn terms(&self) -> Result<Terms, Status> {
        if self.is_default() {
            return Ok(Terms::default());
        }
        let terms = self.backend.with_catalog(|catalog| {
            let record = catalog.record(&self.name).filter(|record| record.group_id() == self.group);
            record.map(Terms::of)
        });
        terms.ok_or_else(|| no_keyspace(&self.name))
    }

    /// Refuses a request beyond those that the keyspace may have a second.
    pub(super) fn admit_rate(&self) -> Result<(), Status> {
        let per_second_max = self.terms()?.requests_per_second_max;
        if self.rate.admits(per_second_max) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!(
            "hadron: the keyspace {} has used up its {per_second_max} requests a second on this node: try again later",
            self.name
        )))
    }

    /// Refuses what a frozen keyspace does not take: everything but what keeps leases alive, since nobody could bring back what ends
    /// with them, and alarms.
    fn check_frozen(&self, command: &Command) -> Result<(), Status> {
        let command = if let Command::As(_, command) = command { command } else { command };
        let is_harmless = matches!(command, Command::LeaseKeepAlive(_) | Command::Alarm(_));
        if is_harmless { Ok(()) } else { self.check_thawed() }
    }

    fn check_thawed(&self) -> Result<(), Status> {
        if !self.terms()?.is_frozen {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "hadron: the keyspace {} is frozen: it can only be read",
            self.name
        )))
    }

    /// Refuses to go on when the keyspace is deleted, or is served by other nodes now.
    pub(super) fn check_here(&self) -> Result<(), Status> {
        self.terms()?;
        if self.is_default() {
            // Its replica is here, and may be damaged.
            return self.keyspace().map(drop);
        }
        if serves(&self.backend, self.group) {
            return Ok(());
        }
        // Clients begin anew after this code, and are led to where it is.
        Err(Status::unavailable(format!(
            "hadron: the keyspace {} is on other nodes now: try again",
            self.name
        )))
    }

    /// The same for whoever holds on to `keyspace`: nothing happens there any more once another replica is in its place.
    pub(super) fn check_still(&self, keyspace: &Arc<Keyspace>) -> Result<(), Status> {
        self.check_here()?;
        if self.backend.keyspace(self.group).is_some_and(|present| Arc::ptr_eq(&present, keyspace)) {
            return Ok(());
        }
        Err(Status::unavailable(format!(
            "hadron: this node has another replica of the keyspace {} now: try again",
            self.name
        )))
    }

    /// Ends when `keyspace` is gone from here, with what to tell whoever waits for something in it.
    pub(super) async fn gone(&self, keyspace: &Arc<Keyspace>) -> Status {
        loop {
            tokio::time::sleep(GONE_INTERVAL).await;
            if let Err(gone) = self.check_still(keyspace) {
                return gone;
            }
        }
    }

    /// Whose users have tokens here.
    pub(super) fn home(&self) -> Home<'_> {
        Home { name: &self.name, cluster_id: self.cluster_id }
    }

    /// Bytes that the keyspace may hold with its history.
    pub(super) fn quota_bytes(&self) -> Result<Option<u64>, Status> {
        let own = Some(self.terms()?.bytes_max).filter(|bytes| *bytes > 0);
        Ok(own.or(self.limits.quota_bytes))
    }

    /// The size that clients and dashboards are told of, in bytes: of the versions that are kept, of leases, users and roles.
    pub(super) fn db_size(&self) -> u64 {
        let bytes = self.backend.keyspace(self.group).map_or(0, |keyspace| keyspace.db_bytes());
        bytes.saturating_add(EMPTY_DB_BYTES)
    }

    /// The members as the keyspace's clients see them. Those of `default` see all there is to see; those of others the nodes that
    /// serve their keyspace, under `door` if no other URL would lead there.
    pub(super) fn members(&self, door: Option<&Door>) -> Vec<Member> {
        let mut members = self.backend.members();
        if self.is_default() {
            return members;
        }
        let nodes: Vec<NodeId> = self.backend.with_catalog(|catalog| {
            let places = catalog.placement(self.group);
            places.map_or_else(Vec::new, |places| places.record.nodes().collect())
        });
        members.retain(|member| nodes.contains(&NodeId(member.id)));
        for member in &mut members {
            member.peer_ur_ls.clear();
            if let Some(Door(url)) = door {
                member.client_ur_ls = vec![url.clone()];
            }
        }
        members
    }

    /// The nodes that can be reached from here, this one among them.
    pub(super) fn within_reach(&self) -> BTreeSet<NodeId> {
        let mut nodes = self.backend.alive();
        nodes.insert(self.backend.identity().member_id);
        nodes
    }

    /// Where the group stands; all zero for a group that is not here.
    pub(super) fn status(&self) -> GroupStatus {
        self.backend.status(self.group).unwrap_or_default()
    }

    /// Refuses what this node cannot serve at all, before the request is looked at.
    pub(super) async fn admit(&self, metadata: &MetadataMap, learners: Learners) -> Result<(), Status> {
        if self.status().is_learner && learners == Learners::Refuse {
            return Err(EtcdError::NotSupportedForLearner.into());
        }
        if leader::is_demanded(metadata) && !self.has_leader().await {
            return Err(EtcdError::NoLeader.into());
        }
        Ok(())
    }

    /// Whether there is a leader. A group that sleeps without one is woken, and has until the request time-out to elect one: whoever is
    /// refused asks nothing more, and nobody else would wake it.
    pub(super) async fn has_leader(&self) -> bool {
        let status = self.status();
        // Once it is awake, whoever comes waits with the one that woke it.
        if status.leader.is_none() && (status.is_asleep || self.waking.try_lock().is_err()) {
            let (waking, backend, group) = (Arc::clone(&self.waking), self.backend.clone(), self.group);
            // Whatever comes of it: it is awake.
            let _ = detached::run(wake_group(waking, backend, group)).await;
        }
        self.status().leader.is_some()
    }

    /// The same in the background: a replica that sleeps without a leader may not have all that was committed, and does not know.
    pub(super) fn wake(self: &Arc<Self>) {
        let status = self.status();
        if status.leader.is_none() && status.is_asleep {
            let context = Arc::clone(self);
            tokio::spawn(async move { context.has_leader().await });
        }
    }

    /// This node's replica of the state.
    pub(super) fn keyspace(&self) -> Result<Arc<Keyspace>, Status> {
        // Another node may well serve: the code tells clients to turn to it.
        self.backend.keyspace(self.group).ok_or_else(|| EtcdError::Unhealthy.into())
    }

    /// The replica, once it has applied all that was committed when the call began.
    pub(super) async fn keyspace_after_barrier(&self) -> Result<Arc<Keyspace>, Status> {
        let before = self.backend.keyspace(self.group);
        match self.backend.read_barrier(self.group).await {
            // Of another one that came in its place nobody has said so.
            Ok(()) => match self.keyspace()? {
                keyspace if before.is_some_and(|before| Arc::ptr_eq(&before, &keyspace)) => {
                    keyspace.note_current();
                    Ok(keyspace)
                }
                _ => Err(EtcdError::Unhealthy.into()),
            },
            Err(error) => {
                self.metrics.read_indexes_failed.inc();
                if error.may_have_happened() {
                    self.metrics.slow_read_indexes.inc();
                }
                Err(error.into())
            }
        }
    }

    /// Looks until the replica has caught up once since the start: then it can be saved though there be no quorum any more.
    pub(super) async fn catch_up(&self) {
        while self.keyspace_after_barrier().await.is_err() {
            tokio::time::sleep(GONE_INTERVAL).await;
        }
    }

    /// Runs a long read beside the connections of this thread, which would wait for it otherwise.
    pub(super) async fn read_beside<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, hadron_keyspace::Error> + Send + 'static,
    ) -> Result<T, Status> {
        let _open = self.metrics.open_reads.hold();
        beside::run(read).await?.map_err(refusal)
    }

    /// The same for one that may take minutes.
    pub(super) async fn read_apart<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, hadron_keyspace::Error> + Send + 'static,
    ) -> Result<T, Status> {
        let _open = self.metrics.open_reads.hold();
        self.calculations.run(|_| read()).await?.map_err(refusal)
    }

    /// Proposes a command, in nobody's name, and returns the state machine's answer with the term of its entry.
    pub(super) async fn write(&self, command: Command) -> Result<(Response, Term), Status> {
        self.propose(command).await?.map_err(refusal)
    }

    /// The same, with the state machine's refusals as they are.
    pub(super) async fn propose(
        &self,
        command: Command,
    ) -> Result<Result<(Response, Term), hadron_keyspace::Error>, Status> {
        self.check_frozen(&command)?;
        let _pending = self.metrics.proposals_pending.hold();
        let behind = self.backend.keyspace(self.group).filter(|keyspace| !keyspace.was_current());
        match self.backend.write(self.group, command).await {
            Ok(Written { response, term }) => {
                // What was written was applied here, after all that had been committed.
                let present = self.backend.keyspace(self.group);
                let same = behind.filter(|before| present.is_some_and(|now| Arc::ptr_eq(before, &now)));
                same.iter().for_each(|keyspace| keyspace.note_current());
                // Another answer may have told a later term meanwhile, and some clients take who goes back for stale.
                Ok(response.map(|response| (response, term.max(self.status().term))))
            }
            Err(error) => {
                self.metrics.proposals_failed.inc();
                Err(error.into())
            }
        }
    }

    /// Refuses a write whose encoding is too large for one command.
    pub(super) fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        match request.encoded_len() > self.limits.request_bytes {
            true => Err(EtcdError::RequestTooLarge.into()),
            false => Ok(()),
        }
    }

    /// Refuses what would make the keyspace larger than its quota, and raises the space alarm, which holds for all nodes and
    /// until somebody disarms it. Several nodes may take a little more together than the last bytes that were free. What a frozen keyspace
    /// does not take anyhow is no reason for an alarm.
    pub(super) async fn check_space(&self, bytes: usize) -> Result<(), Status> {
        self.check_thawed()?;
        let Some(quota) = self.quota_bytes()? else { return Ok(()) };
        let keyspace = self.keyspace()?;
        if keyspace.db_bytes().saturating_add(bytes as u64) < quota {
            return Ok(());
        }
        let alarm =
            AlarmMember { member_id: self.backend.identity().member_id.0, alarm: AlarmType::Nospace as i32 };
        if !keyspace.alarms().contains(&alarm) {
            tracing::warn!(
                keyspace = &*self.name,
                quota_bytes = quota,
                db_bytes = keyspace.db_bytes(),
                "the quota is used up: alarm raised"
            );
            let AlarmMember { member_id, alarm } = alarm;
            let raise = AlarmRequest { action: AlarmAction::Activate as i32, member_id, alarm };
            self.write(Command::Alarm(raise)).await?;
        }
        Err(EtcdError::NoSpace.into())
    }

    /// A header at the keyspace's revision now.
    pub(super) fn header_now(&self) -> ResponseHeader {
        let revision = self.backend.keyspace(self.group).map_or(0, |keyspace| keyspace.revision());
        self.header(revision, self.status().term)
    }

    /// A header at `revision`.
    pub(super) fn header(&self, revision: i64, term: Term) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.backend.identity().member_id.0,
            revision,
            raft_term: term.0,
        }
    }

    /// Completes a header that came from the state machine, which knows the revision only.
    pub(super) fn complete(&self, header: &mut Option<ResponseHeader>, term: Term) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision, term));
    }
}

/// Wakes a group that sleeps without a leader, or waits with whoever did.
async fn wake_group<B: Backend>(waking: Arc<Mutex<()>>, backend: B, group: GroupId) {
    let _waking = waking.lock().await;
    let status = backend.status(group).unwrap_or_default();
    if status.leader.is_none() && status.is_asleep {
        let _ = backend.read_barrier(group).await;
    }
}

/// An answer of another kind than the command. Cannot happen unless this build has a bug.
pub(super) fn mismatch() -> Status {
    Status::internal("hadron: the state machine answered another kind of command")
}
