//! What is on each node's disk for certain, held against what the node says and what it finds when it starts again.
//!
//! A vote, a candidacy and an acknowledgement are promises: what they promise is on the disk before they leave, and is there at the
//! next start. A broken promise has consequences only if several things go wrong at once; here it is seen by itself.

use std::collections::BTreeMap;

use hadron_consensus::{GroupId, Message, ReplicaId};
use hadron_node::PeerMessage;
use hadron_storage::wal::{Record, RecoveredGroup};

use super::{Life, World};
use crate::history::Violation;

/// What all nodes promised.
#[derive(Default)]
pub(super) struct Promises {
    /// By node and group.
    durable: BTreeMap<(u64, GroupId), Durable>,
    /// What each node's log will have after the next write, and after the one that is under way.
    waiting: BTreeMap<u64, Vec<Change>>,
    writing: BTreeMap<u64, Vec<Change>>,
    /// For whom each replica voted in a term.
    votes: BTreeMap<(u64, GroupId, ReplicaId, u64), ReplicaId>,
}

/// What a replica has on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Durable {
    term: u64,
    voted_for: Option<ReplicaId>,
    /// Index and checksum of the last entry.
    last: (u64, u64),
}

/// What a batch of the log does to a group.
#[derive(Clone, Copy, Debug)]
enum Change {
    Vote(GroupId, u64, Option<ReplicaId>),
    /// The log ends with this entry.
    Last(GroupId, (u64, u64)),
    Forgotten(GroupId),
}

impl Change {
    fn group(self) -> GroupId {
        match self {
            Change::Vote(group, ..) | Change::Last(group, _) | Change::Forgotten(group) => group,
        }
    }
}

impl Durable {
    /// Whether a replica that has `found` has forgotten nothing of this. `may_be_cut`: its log was being written anew.
    fn is_kept_by(&self, found: &RecoveredGroup, may_be_cut: bool) -> bool {
        let (term, vote) = (found.hard_state.term.0, found.hard_state.voted_for);
        let keeps_vote =
            term > self.term || term == self.term && (self.voted_for.is_none() || self.voted_for == vote);
        let (index, checksum) = self.last;
        let has_last = index <= found.floor.index.0
            || found.entries.iter().any(|entry| (entry.index.0, entry.checksum) == (index, checksum));
        keeps_vote && (may_be_cut || has_last)
    }

    fn of(found: &RecoveredGroup) -> Durable {
        let last = found.entries.last().map(|entry| (entry.index.0, entry.checksum));
        Durable {
            term: found.hard_state.term.0,
            voted_for: found.hard_state.voted_for,
            last: last.unwrap_or((found.floor.index.0, found.floor.checksum)),
        }
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
        for change in self.writing.remove(&node).unwrap_or_default() {
            let durable = self.durable.entry((node, change.group())).or_default();
            match change {
                Change::Vote(_, term, voted_for) => (durable.term, durable.voted_for) = (term, voted_for),
                Change::Last(_, last) => durable.last = last,
                Change::Forgotten(group) => drop(self.durable.remove(&(node, group))),
            }
        }
    }

    /// A node starts with what is left of its log.
    pub(super) fn recovered(
        &mut self,
        node: u64,
        groups: &BTreeMap<GroupId, RecoveredGroup>,
    ) -> Result<(), String> {
        self.waiting.remove(&node);
        let pending = self.writing.remove(&node).unwrap_or_default();
        let nothing = RecoveredGroup::default();
        for ((_, group), durable) in self.durable.range((node, GroupId(0))..=(node, GroupId(u64::MAX))) {
            let pends = |is_it: fn(&Change) -> bool| {
                pending.iter().any(|change| change.group() == *group && is_it(change))
            };
            let found = groups.get(group).unwrap_or(&nothing);
            let is_forgotten = pends(|change| matches!(change, Change::Forgotten(_)));
            let may_be_cut = pends(|change| matches!(change, Change::Last(..)));
            if !is_forgotten && !durable.is_kept_by(found, may_be_cut) {
                let found = Durable::of(found);
                return Err(format!("of {group} it had {durable:?} on its disk and finds {found:?}"));
            }
        }
        self.durable.retain(|(other, _), _| *other != node);
        self.durable.extend(groups.iter().map(|(group, found)| ((node, *group), Durable::of(found))));
        Ok(())
    }

    /// The term that a replica must not have forgotten.
    pub(super) fn term(&self, node: u64, group: GroupId) -> u64 {
        self.durable.get(&(node, group)).map_or(0, |durable| durable.term)
    }

    /// A replica says something. `stored` is what its engine has.
    fn says(&mut self, node: u64, message: &PeerMessage, stored: u64) -> Result<(), String> {
        let PeerMessage::Group { group, from, to, message } = message else { return Ok(()) };
        let durable = self.durable.get(&(node, *group)).copied().unwrap_or_default();
        let (vote, term) = match message {
            Message::VoteAnswer { term, pre: false, granted: true, .. } => (to, term.0),
            Message::VoteRequest { term, pre: false, .. } => (from, term.0),
            Message::AppendAck { term, matched, .. } => {
                // An acknowledgement of an older term means nothing any more.
                let is_kept = durable.term > term.0
                    || durable.term == term.0 && matched.0 <= durable.last.0.max(stored);
                return match is_kept {
                    true => Ok(()),
                    false => Err(format!(
                        "acknowledges {matched} of {group} in {term} with {durable:?} on its disk"
                    )),
                };
            }
            _ => return Ok(()),
        };
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
        let waiting = self.promises.waiting.entry(node).or_default();
        waiting.extend(records.iter().map(|record| match record {
            Record::HardState(group, hard_state) => {
                Change::Vote(*group, hard_state.term.0, hard_state.voted_for)
            }
            Record::Entries(group, _) | Record::Floor(group, _) => {
                Change::Last(*group, self.logs.last(node, *group))
            }
            Record::Forget(group) => Change::Forgotten(*group),
        }));
    }

    /// What leaves a node must be true of its disk.
    pub(super) fn check_promise(&mut self, life: Life, message: &PeerMessage) {
        let stored = |group| {
            let board = self.machines.get(&life.node)?.process.as_ref()?.node().board().group(group)?;
            Some(board.keyspace.flushed_index())
        };
        let stored = match message {
            PeerMessage::Group { group, message: Message::AppendAck { .. }, .. } => stored(*group),
            _ => None,
        };
        if let Err(what) = self.promises.says(life.node, message, stored.unwrap_or_default()) {
            self.violate(Violation::new("durable_ack", format!("n{} {what}", life.node)));
        }
    }
}
