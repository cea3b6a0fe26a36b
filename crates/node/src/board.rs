//! What a node shows to those who must not enter its loop: leaders, positions, clocks, elections, members.
//!
//! The loop writes, anybody reads. Nothing here decides anything: a reader that needs certainty asks the loop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use hadron_consensus::{Configuration, GroupId, NodeId, ReplicaId, Term, Time};
use hadron_keyspace::Keyspace;
use parking_lot::{Mutex, RwLock};

use crate::catalog::Catalog;
use crate::clock::GroupClock;
use crate::membership::Member;
use crate::memory::MemorySum;
use crate::report::Report;
use crate::roster::Pool;
use crate::shards::Notes;

/// Elections that are remembered, all groups together.
const ELECTIONS_MAX: usize = 1_000;

/// A node's public state.
#[derive(Debug, Default)]
pub struct Board {
    groups: RwLock<BTreeMap<GroupId, Arc<GroupBoard>>>,
    catalog: RwLock<Catalog>,
    /// What other nodes measured, as far as they told this one.
    reports: RwLock<BTreeMap<NodeId, Report>>,
    pool: RwLock<Arc<Pool>>,
    peers: RwLock<Vec<Member>>,
    alive: RwLock<BTreeSet<NodeId>>,
    is_learner: AtomicBool,
    /// The revision of the newest roster that others told of; 0 for none.
    heard: AtomicI64,
    elections: Mutex<VecDeque<ElectionRecord>>,
    /// Replicas that cannot be opened because they are damaged.
    unopened: RwLock<BTreeMap<GroupId, ReplicaId>>,
    /// Groups whose replicas here cannot be opened although they are not damaged: a newer version wrote them, most often.
    unusable: RwLock<BTreeSet<GroupId>>,
    memory: MemorySum,
    notes: Mutex<Notes>,
}

/// Why a node may not be talked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It was a member, and nobody needs it any more: it should stop.
    #[error(
        "node {:x} was removed from this cluster: its data directory can be deleted; to come back it has to be added \
         again (`etcdctl member add`), and to start with an empty data directory", .0.0
    )]
    Removed(NodeId),
    /// It was a member until this cluster went on without it by force.
    #[error("node {:x} was dropped from this cluster when it was made to go on without it (`--force-new-cluster`)", .0.0)]
    Dropped(NodeId),
    /// It never was one, or not with this data directory.
    #[error("{0}")]
    Refused(String),
}

/// One group's public state on one node.
#[derive(Debug)]
pub struct GroupBoard {
    /// The replica's state; read it directly.
    pub keyspace: Arc<Keyspace>,
    replica: AtomicU64,
    leader: AtomicU64,
    term: AtomicU64,
    commit: AtomicU64,
    applied: AtomicU64,
    settled: AtomicI64,
    quarantined: AtomicBool,
    asleep: AtomicBool,
    voter: AtomicBool,
    digests_same: AtomicU64,
    digests_different: AtomicU64,
    leases_expired: AtomicU64,
    uses: Uses,
    clock: Mutex<GroupClock>,
    configuration: Mutex<Configuration>,
    shares: Mutex<Vec<LogShare>>,
}

/// What a replica has been used for since it was opened.
#[derive(Debug, Default)]
pub struct Uses {
    commands: AtomicU64,
    written_bytes: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    events: AtomicU64,
}

/// [`Uses`], as they stood at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UseTotals {
    /// Commands that were applied.
    pub commands: u64,
    /// Bytes of log entries that were applied.
    pub written_bytes: u64,
    /// Reads that were answered here.
    pub reads: u64,
    /// Bytes of their answers.
    pub read_bytes: u64,
    /// Watch events that were sent from here.
    pub events: u64,
}

impl Uses {
    /// A read was answered with so many bytes.
    pub fn count_read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Watch events were sent.
    pub fn count_events(&self, events: usize) {
        self.events.fetch_add(events as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_entry(&self, commands: usize, bytes: usize) {
        self.commands.fetch_add(commands as u64, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// All of them.
    pub fn totals(&self) -> UseTotals {
        UseTotals {
            commands: self.commands.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            reads: self.reads.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            events: self.events.load(Ordering::Relaxed),
        }
    }
}

/// One election: how many votes each candidate got, as the candidate that counted them saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionRecord {
    /// The group.
    pub group: GroupId,
    /// The term.
    pub term: Term,
    /// The candidate that counted.
    pub candidate: NodeId,
    /// False for a split vote.
    pub won: bool,
    /// Votes by candidate.
    pub votes: BTreeMap<NodeId, u64>,
    /// When this node learnt of it, on its monotonic clock.
    pub at: Time,
}

impl ElectionRecord {
    /// P(x) = V(x) / ΣV(i): the share of the counted votes that `candidate` got.
    pub fn share(&self, candidate: NodeId) -> f64 {
        let sum: u64 = self.votes.values().sum();
        let votes = self.votes.get(&candidate).copied().unwrap_or_default();
        if sum == 0 { 0.0 } else { votes as f64 / sum as f64 }
    }
}

/// A node's part in the replication of a group, as its leader measures it over a recent window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogShare {
    /// The node.
    pub node: NodeId,
    /// C(x) = L(x) / ΣL(i), with L(x) the entries that x acknowledged within the window.
    pub share: f64,
    /// Entries between the leader's last and what the node acknowledged.
    pub lag: u64,
}

/// How often a replica's digest was compared with another replica's at the same index, since this node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DigestComparisons {
    /// The two were the same.
    pub same: u64,
    /// One of the two replicas is damaged.
    pub different: u64,
}

impl Board {
    /// The public state of `group`, if it has a replica here.
    pub fn group(&self, group: GroupId) -> Option<Arc<GroupBoard>> {
        self.groups.read().get(&group).cloned()
    }

    /// All groups with a replica here.
    pub fn groups(&self) -> Vec<(GroupId, Arc<GroupBoard>)> {
        self.groups.read().iter().map(|(id, group)| (*id, group.clone())).collect()
    }

    /// What the root group says about the pool, as far as it is applied here.
    pub fn pool(&self) -> Arc<Pool> {
        self.pool.read().clone()
    }

    /// Looks at the catalog, as far as it is applied here. `look` must be short: the loop may wait for it. It may ask for
    /// groups: nobody waits for the catalog who holds them.
    pub fn with_catalog<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        look(&self.catalog.read())
    }

    /// The newest report of each node that sends them here, this one included.
    pub fn reports(&self) -> BTreeMap<NodeId, Report> {
        self.reports.read().clone()
    }

    pub(crate) fn set_report(&self, node: NodeId, report: Report) {
        self.reports.write().insert(node, report);
    }

    /// Brings what `keys` of the root group hold up to date. Returns the groups that are concerned.
    ///
    /// # Errors
    /// Some of it cannot be read.
    pub(crate) fn refresh_catalog(
        &self,
        root: &Keyspace,
        keys: &BTreeSet<Bytes>,
    ) -> Result<Vec<GroupId>, String> {
        self.catalog.write().refresh(root, keys)
    }

    pub(crate) fn set_catalog(&self, catalog: Catalog) {
        *self.catalog.write() = catalog;
    }

    /// The members of the pool, by id.
    pub fn members(&self) -> Vec<Member> {
        self.pool().members()
    }

    /// The nodes to be connected with: the other members, and those who were removed and are still needed.
    pub fn peers(&self) -> Vec<Member> {
        self.peers.read().clone()
    }

    /// This node has no vote yet, and is not to get one by itself.
    pub fn is_learner(&self) -> bool {
        self.is_learner.load(Ordering::Relaxed)
    }

    /// The other nodes that were alive at the last heartbeat, to this one.
    pub fn alive(&self) -> BTreeSet<NodeId> {
        self.alive.read().clone()
    }

    /// The revision of the newest roster that this node has applied or heard of.
    pub fn roster_revision(&self) -> i64 {
        self.pool.read().revision.max(self.heard.load(Ordering::Acquire))
    }

    /// Whether a node that shows `data_dir_id` may be talked to as `node`. One that nobody here knows may, if it knows a
    /// newer `revision` of the roster: it has come since, and tells who the others are.
    ///
    /// # Errors
    /// Why not, and the way out.
    pub fn admit(&self, node: NodeId, data_dir_id: u64, revision: i64) -> Result<(), NotAdmitted> {
        if let Some(peer) = self.peers.read().iter().find(|member| member.id == node.0) {
            return peer.admit(data_dir_id).map_err(NotAdmitted::Refused);
        }
        let pool = self.pool.read();
        if pool.dropped.contains(&node.0) {
            return Err(NotAdmitted::Dropped(node));
        }
        if pool.removed.contains_key(&node.0) {
            return Err(NotAdmitted::Removed(node));
        }
        drop(pool);
        if revision > self.roster_revision() {
            return Ok(());
        }
        Err(NotAdmitted::Refused(format!("node {:x} is not a member of this cluster", node.0)))
    }

    /// The identity of `node`'s data directory, if it is known.
    pub fn data_dir_id(&self, node: NodeId) -> Option<u64> {
        let peers = self.peers.read();
        let known = peers.iter().find(|member| member.id == node.0).map(|member| member.data_dir_id);
        known.filter(|id| *id != 0)
    }

    /// The elections that this node knows of, oldest first.
    pub fn elections(&self) -> Vec<ElectionRecord> {
        self.elections.lock().iter().cloned().collect()
    }

    pub(crate) fn memory(&self) -> &MemorySum {
        &self.memory
    }

    pub(crate) fn notes(&self) -> &Mutex<Notes> {
        &self.notes
    }

    pub(crate) fn add_group(&self, group: GroupId, keyspace: Arc<Keyspace>) -> Arc<GroupBoard> {
        let board = Arc::new(GroupBoard::new(keyspace));
        self.groups.write().insert(group, board.clone());
        board
    }

    pub(crate) fn remove_group(&self, group: GroupId) {
        self.groups.write().remove(&group);
    }

    /// The replicas here that are damaged, by group: those that differ from the others, and those that cannot be opened.
    pub fn damaged(&self) -> BTreeMap<GroupId, ReplicaId> {
        let mut damaged = self.unopened.read().clone();
        let quarantined = self.groups.read();
        let quarantined = quarantined.iter().filter(|(_, group)| group.quarantined());
        damaged.extend(quarantined.map(|(id, group)| (*id, group.replica())));
        damaged
    }

    /// `replica` cannot be opened because it is damaged; `None`: there is none such any more.
    pub(crate) fn set_unopened(&self, group: GroupId, replica: Option<ReplicaId>) {
        let mut unopened = self.unopened.write();
        match replica {
            Some(replica) => drop(unopened.insert(group, replica)),
            None => drop(unopened.remove(&group)),
        }
    }

    /// Groups whose replicas here cannot be used, and are not damaged: they stay closed until somebody did what the log says.
    pub fn unusable(&self) -> BTreeSet<GroupId> {
        self.unusable.read().clone()
    }

    pub(crate) fn set_unusable(&self, group: GroupId, is_unusable: bool) {
        let mut unusable = self.unusable.write();
        match is_unusable {
            true => unusable.insert(group),
            false => unusable.remove(&group),
        };
    }

    pub(crate) fn set_pool(&self, pool: Arc<Pool>, own: NodeId) {
        let is_learner = pool.roster.member(own.0).is_some_and(|member| member.is_learner);
        self.is_learner.store(is_learner, Ordering::Relaxed);
        *self.pool.write() = pool;
    }

    /// True if these are others than before.
    pub(crate) fn set_peers(&self, peers: Vec<Member>) -> bool {
        let mut present = self.peers.write();
        let are_new = *present != peers;
        *present = peers;
        are_new
    }

    /// Somebody told of a newer roster, of this revision.
    pub(crate) fn set_heard(&self, revision: i64) {
        self.heard.store(revision, Ordering::Release);
    }

    pub(crate) fn set_alive(&self, alive: BTreeSet<NodeId>) {
        *self.alive.write() = alive;
    }

    /// Remembers an election once, however often it is announced.
    pub(crate) fn add_election(&self, record: ElectionRecord) {
        let mut elections = self.elections.lock();
        let same = |other: &ElectionRecord| {
            (other.group, other.term, other.candidate) == (record.group, record.term, record.candidate)
        };
        if elections.iter().rev().any(same) {
            return;
        }
        if elections.len() == ELECTIONS_MAX {
            elections.pop_front();
        }
        elections.push_back(record);
    }
}

impl GroupBoard {
    /// A replica of which nothing is known but its state.
    fn new(keyspace: Arc<Keyspace>) -> GroupBoard {
        GroupBoard {
            keyspace,
            replica: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            term: AtomicU64::new(0),
            commit: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            settled: AtomicI64::new(0),
            quarantined: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            voter: AtomicBool::new(false),
            digests_same: AtomicU64::new(0),
            digests_different: AtomicU64::new(0),
            leases_expired: AtomicU64::new(0),
            uses: Uses::default(),
            clock: Mutex::default(),
            configuration: Mutex::default(),
            shares: Mutex::default(),
        }
    }

    /// The replica's id within its group.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId(self.replica.load(Ordering::Acquire))
    }

    /// The node that leads the group, as far as this one knows.
    pub fn leader(&self) -> Option<NodeId> {
        Some(self.leader.load(Ordering::Acquire)).filter(|id| *id != 0).map(NodeId)
    }

    /// The replica's term.
    pub fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    /// The highest index known to be committed.
    pub fn commit(&self) -> u64 {
        self.commit.load(Ordering::Acquire)
    }

    /// The highest applied index.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// The newest revision of the roster, or of the group's placement, for which the group's members were changed, and that is over, as far
    /// as this replica has applied it; 0 if they are those of the beginning.
    pub fn settled(&self) -> i64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Whether this replica differs from the others and must not serve.
    pub fn quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// Whether nothing happens in the group, so that this replica keeps no time.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Acquire)
    }

    /// Whether this replica votes, and is to go on doing so when a change that is under way is over; as far as its log says.
    pub fn is_voter(&self) -> bool {
        self.voter.load(Ordering::Acquire)
    }

    /// The group's clock as this replica knows it.
    pub fn clock(&self) -> GroupClock {
        *self.clock.lock()
    }

    /// Who belongs to the group, as far as this replica's log says; committed or not.
    pub fn configuration(&self) -> Configuration {
        self.configuration.lock().clone()
    }

    /// C(x) of each node; empty where this node does not lead.
    pub fn shares(&self) -> Vec<LogShare> {
        self.shares.lock().clone()
    }

    /// Comparisons of this replica's digest with others': the leader counts each answer, a follower each question.
    pub fn digest_comparisons(&self) -> DigestComparisons {
        DigestComparisons {
            same: self.digests_same.load(Ordering::Relaxed),
            different: self.digests_different.load(Ordering::Relaxed),
        }
    }

    /// What the replica has been used for.
    pub fn uses(&self) -> &Uses {
        &self.uses
    }

    /// Leases that expired while this replica led.
    pub fn leases_expired(&self) -> u64 {
        self.leases_expired.load(Ordering::Relaxed)
    }

    pub(crate) fn count_digest(&self, is_same: bool) {
        let counter = if is_same { &self.digests_same } else { &self.digests_different };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_expired(&self, leases: usize) {
        self.leases_expired.fetch_add(leases as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_status(&self, leader: Option<NodeId>, term: Term, commit: u64) {
        self.leader.store(leader.map_or(0, |node| node.0), Ordering::Release);
        self.term.store(term.0, Ordering::Release);
        self.commit.store(commit, Ordering::Release);
    }

    pub(crate) fn set_applied(&self, applied: u64) {
        self.applied.store(applied, Ordering::Release);
    }

    pub(crate) fn set_settled(&self, revision: i64) {
        self.settled.store(revision, Ordering::Release);
    }

    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Release);
    }

    pub(crate) fn set_quarantined(&self, quarantined: bool) {
        self.quarantined.store(quarantined, Ordering::Release);
    }

    pub(crate) fn set_clock(&self, clock: GroupClock) {
        *self.clock.lock() = clock;
    }

    pub(crate) fn set_configuration(&self, configuration: Configuration, me: ReplicaId) {
        self.replica.store(me.0, Ordering::Release);
        self.voter.store(configuration.voters.contains(&me), Ordering::Release);
        *self.configuration.lock() = configuration;
    }

    pub(crate) fn set_shares(&self, shares: Vec<LogShare>) {
        *self.shares.lock() = shares;
    }
}
