//! One group's replica on this node: the consensus core, the state it drives, and everything that waits for either.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{
    Config as CoreConfig, Configuration, DEFAULT_GROUP, Entry, Group, GroupId, Index, LogPosition, NodeId,
    ROOT_GROUP, ReplicaId, Restored, Term, Time,
};
use hadron_keyspace::Keyspace;
use hadron_storage::wal::RecoveredGroup;

use crate::apply::{OpenEntry, cannot_be_read};
use crate::board::GroupBoard;
use crate::clock::GroupClock;
use crate::config::{Config, GroupConfig};
use crate::envelope::{self, Origin};
use crate::flush::FlushState;
use crate::integrity::Integrity;
use crate::memory::Pressure;
use crate::read::Reads;
use crate::reconfigure::{Places, first_configuration, readable_configuration};
use crate::snapshot::Feeding;

/// A group's replica on this node.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: GroupId,
    pub(crate) me: ReplicaId,
    /// Where the replicas of the configuration in force are, and for which roster it was made.
    pub(crate) places: Places,
    /// Where replicas are that sent something and are not in it.
    pub(crate) routes: BTreeMap<ReplicaId, NodeId>,
    /// The newest roster for which a configuration was applied here that is not joint; 0 for that of the beginning.
    pub(crate) settled: i64,
    /// The roster under which this leader, which is not in it, tried to hand over.
    pub(crate) handed_over_at: i64,
    /// It exists from the start, on every member; otherwise the catalog says where it shall be.
    pub(crate) follows_roster: bool,
    /// Who was in the group at its beginning.
    pub(crate) first: Configuration,
    pub(crate) core: Group,
    pub(crate) keyspace: Arc<Keyspace>,
    pub(crate) board: Arc<GroupBoard>,

    /// Own clients' commands that have not been proposed or forwarded: they wait for this turn's end, or for a leader.
    pub(crate) waiting: VecDeque<(u64, Bytes)>,
    /// Not to be forwarded before this time: the node that was thought to lead refused, or others were asked for one that leads.
    pub(crate) hold_until: Option<Time>,
    /// Other nodes' commands of this turn, with the term they are meant for.
    pub(crate) forwarded: Vec<(Term, Origin, Bytes)>,
    /// The newest forward of each node that was taken: incarnation and number.
    pub(crate) forwards_seen: BTreeMap<NodeId, (u64, u64)>,
    /// Own clients' commands that were proposed or forwarded, by token. Once an entry of a later term is applied,
    /// those of earlier terms are known not to have happened.
    pub(crate) proposed: HashMap<u64, Proposed>,

    /// Committed entries that wait to be applied, without gaps.
    pub(crate) unapplied: VecDeque<Entry>,
    /// The one before them, of which something is applied.
    pub(crate) open_entry: Option<OpenEntry>,
    /// Term of the last entry that was applied, or begun.
    pub(crate) applied_term: Term,
    pub(crate) reads: Reads,

    /// The group's clock: running while this replica leads, otherwise what the last applied entry showed.
    pub(crate) clock: GroupClock,
    /// When this replica, which leads, logged a stamp of the clock last, or began to lead.
    pub(crate) stamped_at: Time,
    /// Until when an expiry that was proposed may still be on its way.
    pub(crate) expiry_pending_until: Option<Time>,

    pub(crate) flush: FlushState,
    pub(crate) integrity: Integrity,
    pub(crate) pressure: Pressure,
    /// Followers that need a snapshot, or have one and not yet what was written meanwhile.
    pub(crate) fed: BTreeMap<ReplicaId, Feeding>,
    /// A snapshot that may be, or is being, installed.
    pub(crate) install: Install,
    /// The request for the leadership transfer in progress, and its target.
    pub(crate) transfer: Option<(u64, ReplicaId)>,
    /// Deadline under which this replica stands in the node's timers.
    pub(crate) timer: Option<Time>,
    /// Whether this replica is on the list of those to settle at the end of the turn.
    pub(crate) touched: bool,
    /// This replica differs from the others: it neither serves nor leads.
    pub(crate) quarantined: bool,
    /// An alarm names this replica, as of what is applied.
    pub(crate) is_accused: bool,
    /// The engine was ahead of the whole log when the replica was restored: the log on disk does not know its floor yet,
    /// and would take the next entry for one after a gap.
    pub(crate) floor_is_new: bool,
}

/// A command that is in some leader's hands.
#[derive(Debug)]
pub(crate) struct Proposed {
    /// The term of the leader that has it.
    pub(crate) term: Term,
    /// Kept to be proposed again once it is certain that it did not happen.
    pub(crate) command: Bytes,
}

/// Where the installation of a received snapshot stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Install {
    /// None is offered.
    #[default]
    None,
    /// Offered under this ticket with state up to this index; waits for a flush that is on its way.
    Offered(u64, Index),
    /// The driver is switching the engine to it.
    Switching,
}

impl Replica {
    /// Builds the replica from what the engine and the log hold.
    ///
    /// # Errors
    /// Says why the two do not fit together; such a replica must be rebuilt from the others.
    pub(crate) fn restore(
        config: &Config,
        group: &GroupConfig,
        keyspace: Arc<Keyspace>,
        board: Arc<GroupBoard>,
        recovered: RecoveredGroup,
        now: Time,
    ) -> Result<Replica, String> {
        let id = group.group;
        let me = group.replica;
        let first = first_configuration(&group.voters);
        let configuration = applied_configuration(id, &keyspace, &first)?;
        let applied = keyspace.applied();
        let in_engine =
            LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum };
        check_configurations(id, &recovered.entries)?;
        let (floor, entries) = fit_log_to_engine(id, in_engine, recovered.floor, recovered.entries)?;
        let floor_is_new = floor != recovered.floor;
        let restored =
            Restored { hard_state: recovered.hard_state, floor, entries, applied: in_engine.index };
        // A new group needs a leader, also if nobody asks for anything.
        let is_new = restored.entries.is_empty() && applied.index == 0;
        let is_urgent = [ROOT_GROUP, DEFAULT_GROUP].contains(&id) || is_new;
        let core_config = CoreConfig {
            starts_asleep: config.limits.sleep_after_us > 0 && !is_urgent,
            ..core_config(config, id, me, configuration.clone())
        };
        let core = Group::new(core_config, restored);
        board.set_applied(applied.index);
        let clock = GroupClock::new(applied.stamp_ms, now);
        board.set_clock(clock);
        let compacted = keyspace.flushed_compact_revision();
        let mut replica = Replica {
            id,
            me,
            places: Places::default(),
            routes: BTreeMap::new(),
            settled: 0,
            handed_over_at: 0,
            follows_roster: group.follows_roster,
            first,
            core,
            keyspace,
            board,
            waiting: VecDeque::new(),
            hold_until: None,
            forwarded: Vec::new(),
            forwards_seen: BTreeMap::new(),
            proposed: HashMap::new(),
            unapplied: VecDeque::new(),
            open_entry: None,
            applied_term: in_engine.term,
            reads: Reads::default(),
            clock,
            stamped_at: now,
            expiry_pending_until: None,
            flush: FlushState::new(in_engine.index, compacted, now),
            integrity: Integrity::new(now),
            pressure: Pressure::default(),
            fed: BTreeMap::new(),
            install: Install::None,
            transfer: None,
            timer: None,
            touched: false,
            quarantined: false,
            is_accused: false,
            floor_is_new,
        };
        replica.adopt_configuration().map_err(|error| error.to_string())?;
        replica.note_applied_configuration(&configuration);
        Ok(replica)
    }

    /// Who belonged to the group as of what is applied.
    ///
    /// # Errors
    /// What is stored cannot be read.
    pub(crate) fn applied_configuration(&self) -> Result<Configuration, String> {
        applied_configuration(self.id, &self.keyspace, &self.first)
    }

    /// The index of the last applied entry.
    pub(crate) fn applied(&self) -> Index {
        Index(self.keyspace.applied().index)
    }

    /// The node that leads, as far as this replica knows.
    pub(crate) fn leader_node(&self) -> Option<NodeId> {
        self.core.leader().and_then(|replica| self.node_of(replica))
    }

    /// The stamp of the last entry in the log that has one; falls back to what is applied.
    pub(crate) fn last_stamp_ms(&self) -> u64 {
        let stamp = self.core.entries().rev().find_map(|entry| envelope::stamp_ms(&entry.data));
        stamp.unwrap_or_else(|| self.keyspace.applied().stamp_ms)
    }
}

/// The configuration that was applied last; `first` if there was none.
pub(crate) fn applied_configuration(
    group: GroupId,
    keyspace: &Keyspace,
    first: &Configuration,
) -> Result<Configuration, String> {
    let stored = keyspace.configuration();
    if stored.is_empty() {
        return Ok(first.clone());
    }
    readable_configuration(&stored).ok().flatten().ok_or_else(|| {
        format!(
            "group {group}: who belongs to it cannot be read: run the version that the other members run, or rebuild \
             this member from them"
        )
    })
}

/// Looks for configurations of a newer version among what was recovered of a log.
///
/// # Errors
/// There is one: the replica is not damaged, and cannot be used by this version.
pub(crate) fn check_configurations(group: GroupId, entries: &[Entry]) -> Result<(), String> {
    entries.iter().try_for_each(|entry| {
        let readable = readable_configuration(&entry.data);
        readable.map(drop).map_err(|error| cannot_be_read(group, entry.index, &error.to_string()))
    })
}

fn core_config(config: &Config, group: GroupId, id: ReplicaId, configuration: Configuration) -> CoreConfig {
    CoreConfig {
        group,
        id,
        configuration,
        election_timeout_us: config.election_timeout_us,
        heartbeat_us: config.heartbeat_us,
        max_append_bytes: config.limits.entry_bytes,
        inflight_bytes: config.limits.inflight_bytes,
        uncommitted_bytes: config.limits.uncommitted_bytes,
        sleep_after_us: config.limits.sleep_after_us,
        // These two are for the pool itself and for those who know no other: they do not wait to be asked.
        starts_asleep: false,
        seed: config.seed ^ (group.0 << 32) ^ id.0,
    }
}

/// Makes the recovered log continue what the engine holds.
///
/// The engine may be behind the log's end (the usual case: the rest is applied again), or ahead of the whole log (a
/// snapshot was installed, and the process ended before the log knew). It is never behind the log's floor: what
/// was cut from the log had been made durable in the engine.
pub(crate) fn fit_log_to_engine(
    group: GroupId,
    engine: LogPosition,
    floor: LogPosition,
    entries: Vec<Entry>,
) -> Result<(LogPosition, Vec<Entry>), String> {
    if engine.index < floor.index {
        return Err(format!(
            "group {group}: the engine holds state up to index {}, but the log begins after {}: the engine has lost \
             data; move the data directory away and rebuild this member from the others",
            engine.index.0, floor.index.0
        ));
    }
    let term_in_log = match engine.index == floor.index {
        true => Some(floor),
        false => entries.iter().find(|entry| entry.index == engine.index).map(Entry::position),
    };
    match term_in_log {
        Some(position) if position == engine => Ok((floor, entries)),
        Some(position) if position.term == engine.term => Err(format!(
            "group {group}: log and engine differ at index {} (checksums {:016x} and {:016x}): this replica is \
             damaged; move the data directory away and rebuild this member from the others",
            engine.index.0, position.checksum, engine.checksum
        )),
        _ => Ok((engine, Vec::new())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hadron_consensus::chain_checksum;

    const GROUP: GroupId = GroupId(1);

    fn log(terms: &[u64]) -> Vec<Entry> {
        let mut checksum = 0;
        let numbered = terms.iter().zip(1..);
        let entry = |(term, index): (&u64, u64)| {
            let (term, index) = (Term(*term), Index(index));
            checksum = chain_checksum(checksum, GROUP, term, index, b"x");
            Entry { term, index, checksum, data: Bytes::from_static(b"x") }
        };
        numbered.map(entry).collect()
    }

    #[test]
    fn an_engine_inside_the_log_keeps_the_log() {
        let entries = log(&[1, 1, 2]);
        let engine = entries[1].position();
        let fitted = fit_log_to_engine(GROUP, engine, LogPosition::default(), entries.clone());
        assert_eq!(fitted, Ok((LogPosition::default(), entries)));
    }

    #[test]
    fn an_engine_ahead_of_the_log_restarts_the_log() {
        let engine = LogPosition { term: Term(3), index: Index(9), checksum: 7 };
        let fitted = fit_log_to_engine(GROUP, engine, LogPosition::default(), log(&[1, 1]));
        assert_eq!(fitted, Ok((engine, Vec::new())));
    }

    #[test]
    fn a_snapshot_of_another_term_replaces_a_conflicting_log() {
        let engine = LogPosition { term: Term(3), index: Index(2), checksum: 7 };
        let fitted = fit_log_to_engine(GROUP, engine, LogPosition::default(), log(&[1, 1, 1]));
        assert_eq!(fitted, Ok((engine, Vec::new())));
    }

    #[test]
    fn an_engine_behind_the_floor_has_lost_data() {
        let floor = LogPosition { term: Term(1), index: Index(5), checksum: 1 };
        let error = fit_log_to_engine(GROUP, LogPosition::default(), floor, Vec::new()).unwrap_err();
        assert!(error.contains("the engine has lost data"), "{error}");
    }

    #[test]
    fn differing_checksums_at_one_term_and_index_are_damage() {
        let entries = log(&[1, 1]);
        let engine = LogPosition { checksum: 1, ..entries[0].position() };
        let error = fit_log_to_engine(GROUP, engine, LogPosition::default(), entries).unwrap_err();
        assert!(error.contains("differ at index 1"), "{error}");
    }
}
