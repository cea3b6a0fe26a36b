//! What must hold after every step. The checks see everything, on every replica, crashed ones included.

use std::collections::{BTreeMap, HashMap};

use hadron_consensus::{Configuration, Entry, Group, Index, LogPosition, Message, ReplicaId, Term};

use crate::disk::Disk;

/// Everything that was ever true.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    leaders: BTreeMap<Term, ReplicaId>,
    /// The checksum of each log that ever existed at (index, term). A checksum stands for everything before it too.
    logs: HashMap<(Index, Term), u64>,
    /// Committed positions, from index 1 on, and the term in which each was first known to be committed.
    committed: Vec<(LogPosition, Term)>,
    /// Who got whose vote.
    votes: HashMap<(ReplicaId, Term), ReplicaId>,
    terms: HashMap<ReplicaId, Term>,
    /// The configurations that were committed, and where; the first one at 0.
    configurations: BTreeMap<Index, Configuration>,
}

impl Invariants {
    /// Nothing happened yet in a group that begins as `first`.
    pub(crate) fn new(first: Configuration) -> Invariants {
        Invariants { configurations: BTreeMap::from([(Index(0), first)]), ..Invariants::default() }
    }

    /// The configuration that a state machine has at `index`, which must be committed.
    pub(crate) fn configuration_at(&self, index: Index) -> Configuration {
        self.configurations.range(..=index).next_back().unwrap().1.clone()
    }

    /// Changes of membership that were committed.
    pub(crate) fn changes(&self) -> u64 {
        self.configurations.len() as u64 - 1
    }

    /// The highest index that is committed as far as anybody knows.
    pub(crate) fn commit(&self) -> Index {
        Index(self.committed.len() as u64)
    }

    /// Terms that had a leader.
    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The replica crashed: it may have forgotten a term that was not durable.
    pub(crate) fn forget_term(&mut self, id: ReplicaId, durable: Term) {
        self.terms.insert(id, durable);
    }

    /// The position that is committed at `index`.
    pub(crate) fn committed_at(&self, index: Index) -> Option<LogPosition> {
        let offset = index.0.checked_sub(1)?;
        self.committed.get(offset as usize).map(|(position, _)| *position)
    }

    /// The replica at `id` has just taken a step.
    pub(crate) fn check<'a>(
        &mut self,
        id: ReplicaId,
        group: &Group,
        new_entries: impl Iterator<Item = &'a Entry>,
        before: &Configuration,
        disks: impl Iterator<Item = &'a Disk> + Clone,
    ) {
        let known = self.terms.entry(id).or_default();
        assert!(*known <= group.term(), "{id}'s term went from {known} back to {}", group.term());
        *known = group.term();
        for entry in new_entries {
            self.log_matching(id, entry.position());
        }
        self.log_matching(id, group.position_at(group.last()).unwrap());
        self.new_commits(id, group, before, disks);
        if group.is_leader() {
            self.election_safety(id, group);
        }
    }

    /// `log_matching`: logs with one term at one index are equal up to there.
    fn log_matching(&mut self, id: ReplicaId, position: LogPosition) {
        let checksum = *self.logs.entry((position.index, position.term)).or_insert(position.checksum);
        assert!(checksum == position.checksum, "log_matching: {id} has another log at {position:?}");
    }

    /// `log_matching` of a whole log at once.
    pub(crate) fn check_whole_log(&mut self, id: ReplicaId, group: &Group) {
        let mut previous = group.floor().index;
        for entry in group.entries() {
            assert!(entry.index == previous.next(), "a gap in the log of {id}");
            previous = entry.index;
            self.log_matching(id, entry.position());
        }
    }

    /// `election_safety`: one leader per term. `leader_completeness`: it has everything committed in earlier terms.
    fn election_safety(&mut self, id: ReplicaId, group: &Group) {
        let term = group.term();
        let leader = *self.leaders.entry(term).or_insert_with(|| {
            for (position, committed_in) in &self.committed {
                assert!(
                    *committed_in >= term || has(group, *position),
                    "leader_completeness: {id} leads in {term} without {position:?}"
                );
            }
            id
        });
        assert!(leader == id, "election_safety: {leader} and {id} lead in {term}");
    }

    /// A commit index that is news: it must be durable on a quorum, and nobody may lead without it. Both sets of voters
    /// count in a joint configuration, which a leader may leave in the very step in which it is committed; in one that
    /// the step has changed otherwise, the new one counts.
    fn new_commits<'a>(
        &mut self,
        id: ReplicaId,
        group: &Group,
        before: &Configuration,
        disks: impl Iterator<Item = &'a Disk> + Clone,
    ) {
        let counting = if before.is_joint() { before.counting() } else { group.configuration().counting() };
        while self.commit() < group.commit() {
            let index = self.commit().next();
            let position = group.position_at(index);
            let position = position.unwrap_or_else(|| panic!("{id} dropped {index} before it was committed"));
            let holds = |voter: ReplicaId| disks.clone().nth(voter.0 as usize - 1).unwrap().has(position);
            assert!(
                counting.has_quorum(holds),
                "{id} committed {position:?}, which is not durable on a quorum of {counting:?}"
            );
            self.committed.push((position, group.term()));
            let entry = group.entries().find(|entry| entry.index == index);
            let configuration = entry.and_then(|entry| Configuration::of(&entry.data).unwrap());
            self.configurations.extend(configuration.map(|configuration| (index, configuration)));
        }
    }

    /// A leader of a later term than that in which the newest entries were committed must have them.
    pub(crate) fn check_leaders<'a>(
        &self,
        groups: impl Iterator<Item = (ReplicaId, &'a Group)>,
        since: Index,
    ) {
        for (id, group) in groups.filter(|(_, group)| group.is_leader()) {
            for (position, term) in &self.committed[since.0 as usize..] {
                assert!(
                    *term >= group.term() || has(group, *position),
                    "leader_completeness: {id} leads in {} without {position:?}",
                    group.term()
                );
            }
        }
    }

    /// `state_machine_safety`: everybody applies the same at each index, and without gaps.
    pub(crate) fn state_machine_safety(&self, id: ReplicaId, applied: Index, entry: &Entry) {
        assert!(entry.index == applied.next(), "{id} applies {} after {applied}", entry.index);
        let committed = self.committed_at(entry.index);
        assert!(committed == Some(entry.position()), "state_machine_safety: {id} applies {entry:?}");
    }

    /// Who falls asleep has a committed log, and a leader also members that have it on their disks.
    pub(crate) fn check_sleeper<'a>(
        &self,
        id: ReplicaId,
        group: &Group,
        disks: impl Iterator<Item = &'a Disk> + Clone,
    ) {
        let last = group.last();
        assert!(group.commit() == last && group.durable() == last, "{id} sleeps on what is not committed");
        let holds = |member: ReplicaId| {
            let disk = disks.clone().nth(member.0 as usize - 1).unwrap();
            disk.engine.index >= last || group.position_at(last).is_some_and(|position| disk.has(position))
        };
        let lacks = group.configuration().members().find(|member| !holds(*member));
        assert!(!group.is_leader() || lacks.is_none(), "{id} sleeps, and {lacks:?} lacks {last}");
    }

    /// What leaves a replica must be true of its disk.
    pub(crate) fn check_message(
        &mut self,
        id: ReplicaId,
        to: ReplicaId,
        message: &Message,
        group: &Group,
        disk: &Disk,
    ) {
        match message {
            Message::VoteAnswer { term, pre: false, granted: true, .. } => {
                let durable = (disk.hard_state.term, disk.hard_state.voted_for);
                assert!(
                    durable == (*term, Some(to)),
                    "{id} votes for {to} in {term}, its disk says {durable:?}"
                );
                let vote = *self.votes.entry((id, *term)).or_insert(to);
                assert!(vote == to, "{id} votes for {vote} and {to} in {term}");
            }
            Message::VoteRequest { term, pre: false, .. } => {
                let durable = (disk.hard_state.term, disk.hard_state.voted_for);
                assert!(durable == (*term, Some(id)), "{id} stands in {term}, its disk says {durable:?}");
                let vote = *self.votes.entry((id, *term)).or_insert(id);
                assert!(vote == id, "{id} votes for {vote} and itself in {term}");
            }
            Message::AppendAck { term, matched, .. } => {
                assert!(disk.hard_state.term == *term, "{id} acknowledges in {term}, which it may forget");
                let is_durable = match group.position_at(*matched) {
                    Some(position) => disk.has(position),
                    None => disk.engine.index >= *matched,
                };
                assert!(is_durable, "{id} acknowledges {matched}, which is not on its disk");
            }
            _ => {}
        }
    }
}

/// Whether a replica has `position`, in its log or in its state machine.
fn has(group: &Group, position: LogPosition) -> bool {
    position.index < group.floor().index || group.position_at(position.index) == Some(position)
}
