//! Force: a node whose others are lost for good makes the pool its own, with the data that it has (`--force-new-cluster`).
//!
//! It writes the end of its logs by itself: in the root group a roster of itself alone, then in every group a configuration of itself
//! alone. These are entries like any other, of a term that nobody led, in which it has voted for itself; so it starts as after any
//! restart, is elected by its own vote, and commits what is in its logs. All of that: an entry that is not known to be committed may have
//! been acknowledged.
//!
//! Those who are lost were removed, and are told so should they come back.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{
    Configuration, Entry, GroupId, HardState, Index, LogPosition, NodeId, ROOT_GROUP, ReplicaId, Term,
    chain_checksum,
};
use hadron_keyspace::{Applied, Keyspace};
use hadron_storage::wal::{Record, RecoveredGroup};

use crate::apply::decode;
use crate::config::GroupConfig;
use crate::envelope::{self, Origin};
use crate::groups::{applied_configuration, fit_log_to_engine};
use crate::membership::Member;
use crate::reconfigure::{Places, first_configuration};
use crate::roster::{Pool, Roster};

/// What must go into the log for a pool of one.
#[derive(Debug)]
pub struct Forced {
    /// The records, in their order; empty if the node is alone already.
    pub records: Vec<Record>,
    /// The other members, who are lost.
    pub lost: Vec<Member>,
}

/// A log that is written on by nobody's leave.
struct Log {
    group: GroupId,
    end: LogPosition,
    state: HardState,
    records: Vec<Record>,
}

impl Log {
    /// The log of a group, and its entries that are not in the engine.
    fn of(
        group: GroupId,
        keyspace: &Keyspace,
        recovered: RecoveredGroup,
    ) -> Result<(Log, Vec<Entry>), String> {
        let applied = keyspace.applied();
        let in_engine =
            LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum };
        let RecoveredGroup { hard_state, floor, entries } = recovered;
        let (floor, mut entries) = fit_log_to_engine(group, in_engine, floor, entries)?;
        let end = entries.last().map_or(floor, Entry::position);
        entries.retain(|entry| entry.index > in_engine.index);
        // The log on disk may not know its floor yet.
        let records = vec![Record::Floor(group, floor)];
        Ok((Log { group, end, state: hard_state, records }, entries))
    }

    fn vote_for(&mut self, me: ReplicaId) {
        self.state.term = Term(self.state.term.max(self.end.term).0 + 1);
        self.state.voted_for = Some(me);
        self.records.push(Record::HardState(self.group, self.state));
    }

    fn append(&mut self, data: Bytes) {
        let (term, index) = (self.state.term, self.end.index.next());
        let checksum = chain_checksum(self.end.checksum, self.group, term, index, &data);
        let entry = Entry { term, index, checksum, data };
        self.end = entry.position();
        self.records.push(Record::Entries(self.group, vec![entry]));
    }
}

/// What makes `node` the only member. `keyspaces` are as the engine has them; the root group's is driven to the end of its log, and
/// must be opened anew afterwards.
///
/// # Errors
/// Why it cannot be: the node is no member, or its log does not fit its engine.
pub fn force(
    node: NodeId,
    groups: &[GroupConfig],
    initial: &Roster,
    keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
    recovered: &BTreeMap<GroupId, RecoveredGroup>,
) -> Result<Forced, String> {
    let mut logs = Vec::new();
    let mut pool = Pool { roster: initial.clone(), ..Pool::default() };
    let mut is_alone = true;
    for group in groups {
        let Some(keyspace) = keyspaces.get(&group.group) else { continue };
        let stored = recovered.get(&group.group).cloned().unwrap_or_default();
        let (log, entries) = Log::of(group.group, keyspace, stored)?;
        is_alone &= last_configuration(group, keyspace, &entries)?.members().eq([group.replica]);
        if group.group == ROOT_GROUP {
            replay(keyspace, &entries)?;
            pool = Pool::read(keyspace, initial);
        }
        logs.push((group.replica, log));
    }
    let members = pool.members();
    let (own, lost): (Vec<Member>, Vec<Member>) =
        members.into_iter().partition(|member| member.node() == node);
    let Some(own) = own.into_iter().next() else {
        return Err(
            "this node is not a member: it was removed, and has nothing of its own to go on with".into()
        );
    };
    if is_alone && lost.is_empty() {
        return Ok(Forced { records: Vec::new(), lost });
    }
    let roster = Roster { members: vec![Member { is_learner: false, ..own }], ..pool.roster };
    // A roster that names nobody else is written all the same: configurations refer to its revision.
    let revision = keyspaces.get(&ROOT_GROUP).map_or(0, |root| root.revision()) + 1;
    for (me, log) in &mut logs {
        log.vote_for(*me);
        if log.group == ROOT_GROUP {
            let origin = Origin { node, incarnation: 0, token: 0 };
            let stamp_ms = keyspaces.get(&ROOT_GROUP).map_or(0, |root| root.applied().stamp_ms);
            log.append(envelope::encode(stamp_ms, &[(origin, pool.replace(&roster).to_bytes())]));
        }
        let context = Places { revision, nodes: BTreeMap::from([(*me, node)]) }.encode();
        log.append(Configuration { context, ..Configuration::new([*me], []) }.encode());
    }
    Ok(Forced { records: logs.into_iter().flat_map(|(_, log)| log.records).collect(), lost })
}

/// The configuration in force at the end of a log.
fn last_configuration(
    group: &GroupConfig,
    keyspace: &Keyspace,
    entries: &[Entry],
) -> Result<Configuration, String> {
    let first = first_configuration(&group.voters);
    let logged = entries.iter().rev().find_map(|entry| Configuration::of(&entry.data).ok().flatten());
    logged.map_or_else(|| applied_configuration(group.group, keyspace, &first), Ok)
}

/// Applies entries, as if all were committed.
fn replay(keyspace: &Keyspace, entries: &[Entry]) -> Result<(), String> {
    for entry in entries {
        let previous_ms = keyspace.applied().stamp_ms;
        let (term, index, checksum) = (entry.term.0, entry.index.0, entry.checksum);
        let is_configuration = matches!(Configuration::of(&entry.data), Ok(Some(_)));
        if is_configuration {
            let applied = Applied { term, index, checksum, stamp_ms: previous_ms };
            keyspace.apply_configuration(applied, entry.data.clone());
            continue;
        }
        let (stamp_ms, _, commands) = decode(entry, previous_ms)?;
        keyspace.apply(Applied { term, index, checksum, stamp_ms }, commands);
    }
    Ok(())
}
