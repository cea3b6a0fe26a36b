//! What is on each node's disk for certain, held against what the node says and what it finds when it starts again.
//!
//! A vote, a candidacy and an acknowledgement are promises: what they promise is on the disk before they leave, and is there at the
//! next start. A broken promise has consequences only if several things go wrong at once; here it is seen by itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hadron_consensus::{GroupId, Message, ReplicaId};
use hadron_keyspace::{Keyspace, Options as KeyspaceOptions};
use hadron_node::PeerMessage;
use hadron_storage::engine::ModelEngine;
use hadron_storage::wal::{Record, RecoveredGroup};

use super::logs::Log;
use super::{Life, World};
use crate::checkers::leader_completeness::Held;
use crate::history::Violation;

/// What all nodes promised.
#[derive(Default)]
pub(super) struct Promises {
    /// By node and group.
    durable: BTreeMap<(u64, GroupId), Durable>,
    /// What each node's log will have after the next write, and after the one that is under way.
    waiting: BTreeMap<u64, Vec<Record>>,
    writing: BTreeMap<u64, Vec<Record>>,
    /// For whom each replica voted in a term.
    votes: BTreeMap<(u64, GroupId, ReplicaId, u64), ReplicaId>,
}

/// What a replica has on its disk.
#[derive(Clone, Default)]
struct Durable {
    term: u64,
    voted_for: Option<ReplicaId>,
    log: Log,
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, checksum) = self.log.last();
        write!(f, "term {}, a vote for {:?}, ", self.term, self.voted_for)?;
        write!(f, "and a log up to {index} with the checksum {checksum}")
    }
}

fn group_of(record: &Record) -> GroupId {
    match record {
        Record::HardState(group, _)
        | Record::Entries(group, _)
        | Record::Floor(group, _)
        | Record::Forget(group) => *group,
    }
}

impl Durable {
    /// Whether a replica that has `found` has forgotten nothing of this. Checksums stand for all before them.
    fn is_kept_by(&self, found: &Durable) -> bool {
        let keeps_vote = found.term > self.term
            || found.term == self.term && (self.voted_for.is_none() || self.voted_for == found.voted_for);
        let (index, checksum) = self.log.last();
        let keeps_log = match found.log.held(index) {
            Held::Below => true,
            Held::Entry((_, kept)) => kept == checksum,
            Held::Nothing => false,
        };
        keeps_vote && keeps_log
    }

    /// Likewise, when its node may have come as far as any of these records, which it was writing when it stopped.
    fn is_kept_or_rewritten(&self, found: &Durable, writing: &[&Record]) -> bool {
        let mut rewritten = self.clone();
        self.is_kept_by(found)
            || writing.iter().any(|record| {
                rewritten.take(record);
                rewritten.is_kept_by(found)
            })
    }

    /// A record is on the disk as well.
    fn take(&mut self, record: &Record) {
        match record {
            Record::HardState(_, state) => (self.term, self.voted_for) = (state.term.0, state.voted_for),
            Record::Entries(_, entries) => self.log.append(entries),
            Record::Floor(_, position) => self.log.cut(position.index.0, position.checksum),
            Record::Forget(_) => *self = Durable::default(),
        }
    }

    fn of(found: &RecoveredGroup) -> Durable {
        let state = &found.hard_state;
        Durable { term: state.term.0, voted_for: state.voted_for, log: Log::of(found) }
    }
}

impl Promises {
    /// The write of what waits begins.
    pub(super) fn write(&mut self, node: u64) {
        let waiting = self.waiting.remove(&node).unwrap_or_default();
        self.writing.entry(node).or_default().extend(waiting);
    }

    /// What was written is durable.
    pub(super) fn synced(&mut self, node: u64) {
        for record in self.writing.remove(&node).unwrap_or_default() {
            self.durable.entry((node, group_of(&record))).or_default().take(&record);
        }
    }

    /// A node starts with what is left of its log.
    pub(super) fn recovered(
        &mut self,
        node: u64,
        groups: &BTreeMap<GroupId, RecoveredGroup>,
    ) -> Result<(), String> {
        self.waiting.remove(&node);
        let writing = self.writing.remove(&node).unwrap_or_default();
        let mut found = BTreeMap::new();
        found.extend(groups.iter().map(|(group, found)| ((node, *group), Durable::of(found))));
        let mut had = self.durable.split_off(&(node, GroupId(0)));
        self.durable.append(&mut had.split_off(&(node + 1, GroupId(0))));
        let nothing = Durable::default();
        let lost = had.iter().find_map(|((_, group), durable)| {
            let found = found.get(&(node, *group)).unwrap_or(&nothing);
            let writing: Vec<&Record> = writing.iter().filter(|record| group_of(record) == *group).collect();
            let is_kept = durable.is_kept_or_rewritten(found, &writing);
            (!is_kept).then(|| format!("of {group} it had {durable:?} on its disk and finds {found:?}"))
        });
        self.durable.append(&mut found);
        lost.map_or(Ok(()), Err)
    }

    /// The term that a replica must not have forgotten.
    pub(super) fn term(&self, node: u64, group: GroupId) -> u64 {
        self.durable.get(&(node, group)).map_or(0, |durable| durable.term)
    }

    /// A replica of `group` says that it has, as of `term`, what it `gave` its log at an index, if that is known.
    /// `stored` finds up to which index its engine has everything for certain.
    fn acknowledges(
        &self,
        (node, group): (u64, GroupId),
        (term, matched): (u64, u64),
        gave: Held,
        stored: impl FnOnce() -> u64,
    ) -> Result<(), String> {
        let nothing = Durable::default();
        let durable = self.durable.get(&(node, group)).unwrap_or(&nothing);
        // An acknowledgement of an older term means nothing any more.
        let is_kept = durable.term > term
            || durable.term == term
                && match (gave, durable.log.held(matched)) {
                    (_, Held::Below) | (Held::Below, Held::Entry(_)) => true,
                    (Held::Entry(gave), Held::Entry(kept)) if gave == kept => true,
                    _ => matched <= stored(),
                };
        match is_kept {
            true => Ok(()),
            false => Err(format!("acknowledges {matched} of {group} in {term} with {durable:?} on its disk")),
        }
    }

    /// A replica votes, or asks for votes.
    fn votes(&mut self, node: u64, message: &PeerMessage) -> Result<(), String> {
        let PeerMessage::Group { group, from, to, message } = message else { return Ok(()) };
        let (vote, term) = match message {
            Message::VoteAnswer { term, pre: false, granted: true, .. } => (to, term.0),
            Message::VoteRequest { term, pre: false, .. } => (from, term.0),
            _ => return Ok(()),
        };
        let nothing = Durable::default();
        let durable = self.durable.get(&(node, *group)).unwrap_or(&nothing);
        let before = *self.votes.entry((node, *group, *from, term)).or_insert(*vote);
        if before != *vote {
            return Err(format!("votes for {before} and for {vote} in term {term} of {group}"));
        }
        match durable.term > term || (durable.term, durable.voted_for) == (term, Some(*vote)) {
            true => Ok(()),
            false => Err(format!("votes for {vote} in term {term} of {group} with {durable:?} on its disk")),
        }
    }
}

impl World {
    /// A node gives records to its log, which were observed before.
    pub(super) fn expect_records(&mut self, node: u64, records: &[Record]) {
        self.promises.waiting.entry(node).or_default().extend_from_slice(records);
    }

    /// What leaves a node must be true of its disk.
    pub(super) fn check_promise(&mut self, life: Life, message: &PeerMessage) {
        let checked = match message {
            PeerMessage::Group { group, message: Message::AppendAck { term, matched, .. }, .. } => {
                let gave = self.gave_log(life, *group, term.0, matched.0);
                let stored = || self.stored_for_certain(life, *group);
                self.promises.acknowledges((life.node, *group), (term.0, matched.0), gave, stored)
            }
            message => self.promises.votes(life.node, message),
        };
        if let Err(what) = checked {
            self.violate(Violation::new("durable_ack", format!("n{} {what}", life.node)));
        }
    }

    /// What a node has given its log at an index. Who is in a later term by now may have given it another's entries in the same turn, after
    /// it acknowledged what was there.
    fn gave_log(&self, life: Life, group: GroupId, term: u64, index: u64) -> Held {
        let board = self.board(life).and_then(|board| board.group(group));
        match board.is_some_and(|board| board.term().0 > term) {
            true => Held::Below,
            false => self.logs.held(life.node, group, index),
        }
    }

    /// Up to which index a node's engine would have everything of a group if its power were lost now.
    fn stored_for_certain(&self, life: Life, group: GroupId) -> u64 {
        let Some(machine) = self.machines.get(&life.node) else { return 0 };
        let after_a_crash = ModelEngine::clone(&machine.engine);
        after_a_crash.crash(0);
        let opened = Keyspace::open(Arc::new(after_a_crash), group.0, KeyspaceOptions::default());
        opened.map_or(0, |keyspace| keyspace.applied().index)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_consensus::{Entry, HardState, Index, LogPosition, Term};

    use super::*;

    const GROUP: GroupId = GroupId(1);

    /// Entries of a term, from the first index to the last; the checksum tells terms apart.
    fn entries(term: u64, first: u64, last: u64) -> Record {
        let entry = |index| Entry {
            term: Term(term),
            index: Index(index),
            checksum: 100 * term + index,
            data: Default::default(),
        };
        Record::Entries(GROUP, (first..=last).map(entry).collect())
    }

    fn found(records: &[Record]) -> BTreeMap<GroupId, RecoveredGroup> {
        let mut group = RecoveredGroup::default();
        for record in records {
            match record {
                Record::HardState(_, state) => group.hard_state = *state,
                Record::Entries(_, entries) => group.entries.clone_from(entries),
                Record::Floor(_, floor) => group.floor = *floor,
                Record::Forget(_) => {}
            }
        }
        BTreeMap::from([(GROUP, group)])
    }

    /// Of a node that has entries 1 to 5 of term 2 on its disk and was writing these.
    fn writing(records: &[Record]) -> Promises {
        let mut promises = Promises::default();
        promises.writing.insert(1, vec![term(2), entries(2, 1, 5)]);
        promises.synced(1);
        promises.writing.insert(1, records.to_vec());
        promises
    }

    fn term(term: u64) -> Record {
        Record::HardState(GROUP, HardState { term: Term(term), ..HardState::default() })
    }

    #[test]
    fn what_was_durable_is_there_although_more_was_being_written() {
        let more = [entries(2, 6, 9)];
        writing(&more).recovered(1, &found(&[term(2), entries(2, 1, 5)])).unwrap();
        writing(&more).recovered(1, &found(&[term(2), entries(2, 1, 9)])).unwrap();
        writing(&more).recovered(1, &found(&[term(2), entries(2, 1, 4)])).unwrap_err();
        writing(&more).recovered(1, &found(&[term(2), entries(1, 1, 5)])).unwrap_err();
        writing(&more).recovered(1, &found(&[term(1), entries(2, 1, 5)])).unwrap_err();
    }

    #[test]
    fn what_was_being_written_anew_may_be_there_as_it_was_or_as_it_is_to_be() {
        let anew = [term(3), entries(3, 4, 4)];
        writing(&anew).recovered(1, &found(&[term(2), entries(2, 1, 5)])).unwrap();
        let mut rewritten = found(&[term(3), entries(2, 1, 3)]);
        writing(&anew).recovered(1, &rewritten).unwrap_err();
        let Record::Entries(_, last) = entries(3, 4, 4) else { return };
        rewritten.get_mut(&GROUP).unwrap().entries.extend(last);
        writing(&anew).recovered(1, &rewritten).unwrap();
    }

    #[test]
    fn what_is_below_a_floor_or_forgotten_is_missed_by_nobody() {
        let floor = LogPosition { term: Term(3), index: Index(4), checksum: 304 };
        let below = found(&[term(2), Record::Floor(GROUP, floor)]);
        writing(&[]).recovered(1, &below).unwrap_err();
        writing(&[Record::Floor(GROUP, floor)]).recovered(1, &below).unwrap();
        writing(&[Record::Forget(GROUP)]).recovered(1, &BTreeMap::new()).unwrap();
        writing(&[]).recovered(1, &BTreeMap::new()).unwrap_err();
    }

    #[test]
    fn an_acknowledgement_is_of_what_is_on_the_disk() {
        let promises = writing(&[entries(2, 6, 9)]);
        let says = |matched, gave, stored| promises.acknowledges((1, GROUP), (2, matched), gave, || stored);
        says(5, Held::Entry((2, 205)), 0).unwrap();
        says(5, Held::Below, 0).unwrap();
        says(5, Held::Entry((3, 305)), 4).unwrap_err();
        says(6, Held::Entry((2, 206)), 5).unwrap_err();
        says(6, Held::Below, 6).unwrap();
        promises.acknowledges((1, GROUP), (3, 5), Held::Entry((2, 205)), || 0).unwrap_err();
    }
}
