//! Replication: what a leader sends, and what a follower takes.
//!
//! The leader sends an entry in the same step in which it is proposed, before its own disk has it; its own disk
//! counts for the quorum like any other. An entry is committed when it is durable on a quorum *and* of the leader's own
//! term: an entry of an earlier term that merely sits on a quorum can still be replaced (Raft §5.4.2).
//!
//! A follower takes entries only after the position that it shares with the leader, checksum included. Where the logs
//! differ in term it gives up its own entries; where they differ in checksum at one term and index, somebody's memory
//! or disk is damaged, nothing is taken, and both sides report the [`Divergence`]. A committed entry is never given
//! up: that is asserted.

use crate::election::VoteRequest;
use crate::entry::{Entry, HardState, LogPosition};
use crate::event::{Divergence, Effects};
use crate::group::{Config, Group};
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::log::Log;
use crate::membership::Configuration;
use crate::message::Message;
use crate::progress::{Progress, ProgressState};
use crate::quorum::Voters;
use crate::read::Rounds;
use crate::role::{Follower, RoleState};
use crate::transfer::Transfer;

/// State of a leader.
#[derive(Debug)]
pub(crate) struct Leader {
    /// When it was elected, or its voters last changed: their nodes need not have been heard from before an election
    /// timeout after that.
    pub(crate) quorum_since: Time,
    /// When it last looked after its followers.
    pub(crate) ticked_at: Time,
    /// When it will next.
    pub(crate) tick_at: Time,
    /// When it was last asked for something.
    pub(crate) active_at: Time,
    /// Looks after nobody, because nothing happens.
    pub(crate) asleep: bool,
    /// Bytes of entries that are not committed.
    pub(crate) uncommitted_bytes: usize,
    /// The other replicas.
    pub(crate) progress: Vec<Progress>,
    /// Reads that wait for a quorum.
    pub(crate) rounds: Rounds,
    /// The leadership transfer under way.
    pub(crate) transfer: Option<Transfer>,
}

/// What an append is made from.
struct Source<'a> {
    config: &'a Config,
    log: &'a Log,
    term: Term,
    commit: Index,
    round: u64,
}

impl Leader {
    pub(crate) fn progress_of(&mut self, replica: ReplicaId) -> Option<&mut Progress> {
        self.progress.iter_mut().find(|progress| progress.replica == replica)
    }

    /// The highest index that is durable on a quorum, given how far this replica's own disk is.
    fn quorum_index(&self, voters: &Voters, me: ReplicaId, durable: Index) -> Index {
        voters.committed(|voter| {
            if voter == me {
                return durable;
            }
            let progress = self.progress.iter().find(|progress| progress.replica == voter);
            progress.map_or(Index(0), |progress| progress.matched)
        })
    }

    /// Whether somebody waits for an answer, so that the leader should look after it soon. Who does not answer can wait.
    pub(crate) fn is_busy(&self, last: Index) -> bool {
        let lacks = |progress: &Progress| progress.responsive && progress.matched < last;
        self.rounds.in_flight().is_some() || self.progress.iter().any(lacks)
    }
}

impl<'a> Source<'a> {
    fn new(config: &'a Config, log: &'a Log, hard_state: HardState, rounds: &Rounds) -> Source<'a> {
        Source { config, log, term: hard_state.term, commit: hard_state.commit, round: rounds.newest() }
    }

    /// Sends what `progress` permits: entries if there are any, else the news that it should have at once.
    fn feed(&self, progress: &mut Progress, is_voter: bool, effects: &mut Effects) {
        let mut fed = false;
        while self.send_entries(progress, effects) {
            fed = true;
        }
        if fed {
            return;
        }
        let round_is_news = is_voter && progress.round_sent < self.round;
        // While something is unacknowledged, the next append or the acknowledgement brings the occasion.
        let commit_is_news = progress.state == ProgressState::Replicate
            && progress.inflight_bytes() == 0
            && progress.matched == progress.next.previous()
            && progress.commit_sent < self.commit;
        if round_is_news || commit_is_news {
            self.send_empty(progress, round_is_news, false, effects);
        }
    }

    /// Sends one append with entries, if there are some and `progress` permits.
    fn send_entries(&self, progress: &mut Progress, effects: &mut Effects) -> bool {
        if progress.full {
            return false;
        }
        let may_send = match progress.state {
            ProgressState::Probe => !progress.paused && progress.responsive,
            ProgressState::Replicate => progress.inflight_bytes() < self.config.inflight_bytes,
            ProgressState::Snapshot => false,
        };
        if !may_send {
            return false;
        }
        let Some(previous) = self.log.position_at(progress.next.previous()) else {
            if progress.leaving.is_some() {
                return false;
            }
            progress.become_snapshot();
            effects.snapshots.push(progress.replica);
            return false;
        };
        let (entries, bytes) = self.batch(progress.next);
        let Some(last) = entries.last().map(|entry| entry.index) else { return false };
        progress.sent(last, bytes);
        self.send(progress, previous, (false, false), entries, effects);
        true
    }

    /// At least one entry, if there is one, and not more than `max_append_bytes` otherwise.
    fn batch(&self, from: Index) -> (Vec<Entry>, usize) {
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            // An empty entry still costs something on the way.
            bytes += entry.data.len().max(1);
            first || bytes <= self.config.max_append_bytes
        };
        let entries: Vec<Entry> = self.log.entries_from(from).take_while(fits).cloned().collect();
        let bytes = entries.iter().map(|entry| entry.data.len().max(1)).sum();
        (entries, bytes)
    }

    /// A heartbeat. A follower that is not known to have anything gets one that fits every log.
    fn send_empty(&self, progress: &mut Progress, answer: bool, sleep: bool, effects: &mut Effects) {
        let wanted = match progress.state {
            ProgressState::Snapshot => None,
            _ => self.log.position_at(progress.next.previous()),
        };
        self.send(progress, wanted.unwrap_or_default(), (answer, sleep), Vec::new(), effects);
    }

    fn send(
        &self,
        progress: &mut Progress,
        previous: LogPosition,
        (answer, sleep): (bool, bool),
        entries: Vec<Entry>,
        effects: &mut Effects,
    ) {
        progress.round_sent = self.round;
        progress.commit_sent = self.commit;
        let (term, commit, round) = (self.term, self.commit, self.round);
        let message = Message::Append { term, previous, commit, round, answer, sleep, entries };
        effects.messages.push((progress.replica, message));
    }
}

/// A leader's side.
impl Group {
    /// Feeds every follower.
    pub(crate) fn replicate(&mut self, effects: &mut Effects) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let source = Source::new(&self.config, &self.log, self.hard_state, &leader.rounds);
        for progress in &mut leader.progress {
            source.feed(progress, self.voters.contains(progress.replica), effects);
        }
        let patience_us = self.config.election_timeout_us;
        leader.progress.retain(|progress| progress.is_needed(self.now, patience_us));
    }

    /// The tick: whoever is behind and silent is probed again, everybody gets a heartbeat. If nothing happens, it is one to sleep on, and
    /// those who sleep already are left alone.
    pub(crate) fn send_heartbeats(&mut self, sleep: bool, effects: &mut Effects) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let source = Source::new(&self.config, &self.log, self.hard_state, &leader.rounds);
        for progress in &mut leader.progress {
            progress.asleep &= sleep;
            if progress.asleep {
                continue;
            }
            progress.tick();
            let is_cut_off = self.log.position_at(progress.next.previous()).is_none();
            match progress.state {
                // What it has not acknowledged may be lost, and is not in the log any more.
                ProgressState::Replicate if is_cut_off => progress.become_probe(progress.next),
                ProgressState::Probe if progress.responsive => progress.paused = false,
                _ => {}
            }
            source.send_empty(progress, true, sleep, effects);
        }
    }

    /// A replica that asks for pre-votes in this term does not know that it has a leader: say so.
    pub(crate) fn reassure(&mut self, to: ReplicaId, request: VoteRequest, effects: &mut Effects) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let source = Source::new(&self.config, &self.log, self.hard_state, &leader.rounds);
        let is_of_this_term = request.pre && request.term.0 == source.term.0 + 1;
        let progress = leader.progress.iter_mut().find(|progress| progress.replica == to);
        if let Some(progress) = progress.filter(|_| is_of_this_term) {
            source.send_empty(progress, true, false, effects);
        }
    }

    /// Moves the commit index to what is durable on a quorum, if that ends with an entry of this term.
    pub(crate) fn advance_commit(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let index = leader.quorum_index(&self.voters, self.config.id, self.persistence.durable());
        if index <= self.hard_state.commit || self.log.term_at(index) != Some(self.hard_state.term) {
            return;
        }
        let newly = self.log.entries_from(self.hard_state.commit.next());
        let newly = newly.take_while(|entry| entry.index <= index);
        let bytes: usize = newly.map(|entry| entry.data.len()).sum();
        leader.uncommitted_bytes -= bytes;
        self.commit_to(index);
    }

    pub(crate) fn on_append_ack(
        &mut self,
        from: ReplicaId,
        term: Term,
        round: u64,
        (matched, full, asleep): (Index, bool, bool),
    ) {
        if term != self.hard_state.term {
            return;
        }
        let (last, floor) = (self.log.last().index, self.log.floor().index);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress_of(from) else { return };
        assert!(matched <= last, "{from} acknowledged {matched}, but the log ends at {last}");
        progress.heard(round);
        progress.acknowledged(matched, floor);
        progress.set_full(full);
        progress.asleep = asleep && matched == last;
    }

    pub(crate) fn on_append_reject(
        &mut self,
        from: ReplicaId,
        term: Term,
        round: u64,
        rejected: Index,
        hint: (Index, Term),
        effects: &mut Effects,
    ) {
        if term != self.hard_state.term {
            return;
        }
        let candidate = self.log.last_at_or_below(hint.0.min(self.log.last().index), hint.1);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress_of(from) else { return };
        progress.heard(round);
        effects.amnesia = progress.denied(rejected, candidate);
        progress.rejected(rejected, candidate);
    }

    pub(crate) fn on_refeed(&mut self, replica: ReplicaId) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.progress_of(replica) {
            progress.refeed();
        }
    }

    pub(crate) fn on_diverged(
        &mut self,
        from: ReplicaId,
        term: Term,
        (divergence, broken): (Divergence, bool),
        effects: &mut Effects,
    ) {
        if term != self.hard_state.term {
            return;
        }
        let is_ours_intact = self.log.is_intact_at(divergence.index);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress_of(from) else { return };
        // A damaged one takes nothing until it is rebuilt; sending it more would only repeat the report.
        progress.heard(0);
        progress.become_probe(progress.next);
        progress.paused = true;
        effects.divergence = match (broken, is_ours_intact) {
            (false, _) => Some(divergence),
            (true, false) => Some(Divergence { replica: self.config.id, ..divergence }),
            // It was damaged on the way; the next tick tries again.
            (true, true) => None,
        };
    }
}

/// Why an append was not taken.
enum Refused {
    /// The previous entry is missing, or of another term.
    Conflict { hint: Index },
    /// Same term, same index, another checksum.
    Diverged(Divergence),
    /// The entry continues this log, and does not fit its own checksum.
    Broken(Divergence),
    /// The entry at this index is a configuration that a newer version wrote.
    Unreadable(Index),
}

/// A follower's side.
impl Group {
    /// An append of the leader of the present term. `may_sleep` is whether it lets this replica sleep, and nothing speaks against it.
    pub(crate) fn on_append(
        &mut self,
        from: ReplicaId,
        previous: LogPosition,
        commit: Index,
        (round, answer, may_sleep): (u64, bool, bool),
        mut entries: Vec<Entry>,
        effects: &mut Effects,
    ) {
        self.follow(from, effects);
        self.rouse();
        let turned_away = self.full && !entries.is_empty();
        if turned_away {
            entries.clear();
        }
        let matched = Index(previous.index.0 + entries.len() as u64);
        let (now, term) = (self.now, self.hard_state.term);
        let has_entries = !entries.is_empty();
        let result = self.take(previous, entries);
        // Entries are acknowledged when they are durable; if they have long been, the leader missed that.
        let is_repetition = has_entries && matched <= self.persistence.durable();
        let RoleState::Follower(follower) = &mut self.role else { return };
        follower.heard_at = now;
        follower.sleep_asked = may_sleep;
        follower.answer_owed |= answer || round > follower.round || is_repetition || turned_away;
        follower.round = follower.round.max(round);
        match result {
            Ok(()) => {
                follower.verified = follower.verified.max(matched);
                let commit = commit.min(follower.verified);
                self.commit_to(commit.max(self.hard_state.commit));
            }
            Err(Refused::Conflict { hint }) => {
                let (rejected, round) = (previous.index, follower.round);
                let hint_term = self.log.term_at(hint).unwrap_or_default();
                follower.answer_owed = false;
                let reject = Message::AppendReject { term, round, rejected, hint_index: hint, hint_term };
                self.send_when_durable(from, reject);
            }
            Err(Refused::Diverged(divergence)) => {
                effects.divergence = Some(divergence);
                self.report(from, divergence, false);
            }
            Err(Refused::Broken(divergence)) => self.report(from, divergence, true),
            Err(Refused::Unreadable(index)) => effects.unreadable = Some(index),
        }
    }

    fn report(&mut self, to: ReplicaId, divergence: Divergence, broken: bool) {
        let term = self.hard_state.term;
        let Divergence { index, expected, found, .. } = divergence;
        self.send_when_durable(to, Message::Diverged { term, index, expected, found, broken });
    }

    /// Makes the log contain `entries` after `previous`, or says why not.
    fn take(&mut self, previous: LogPosition, mut entries: Vec<Entry>) -> Result<(), Refused> {
        let floor = self.log.floor();
        let mut previous = previous;
        if previous.index < floor.index {
            // What is below the floor is committed, so the leader has the same; only the rest is looked at.
            let below = (floor.index.0 - previous.index.0).min(entries.len() as u64) as usize;
            let Some(last_below) = entries[..below].last().map(Entry::position) else { return Ok(()) };
            if last_below.index < floor.index {
                return Ok(());
            }
            entries.drain(..below);
            previous = last_below;
        }
        self.check(previous)?;
        for entry in entries {
            self.take_one(entry)?;
        }
        Ok(())
    }

    /// Whether the log has `theirs`.
    fn check(&self, theirs: LogPosition) -> Result<(), Refused> {
        let last = self.log.last().index;
        let Some(ours) = self.log.position_at(theirs.index) else {
            return Err(Refused::Conflict { hint: last });
        };
        if ours.term != theirs.term {
            let committed = self.hard_state.commit;
            assert!(
                theirs.index > committed,
                "the committed entry {} has another term at the leader",
                theirs.index
            );
            let hint = self.log.last_at_or_below(theirs.index.previous(), theirs.term);
            return Err(Refused::Conflict { hint });
        }
        match ours.checksum == theirs.checksum {
            true => Ok(()),
            false => Err(self.diverged(theirs.index, theirs.checksum, ours.checksum)),
        }
    }

    fn take_one(&mut self, entry: Entry) -> Result<(), Refused> {
        self.check_whole(&entry)?;
        let index = entry.index;
        let configuration = Configuration::of(&entry.data).map_err(|_| Refused::Unreadable(index))?;
        if let Some(ours) = self.log.position_at(entry.index) {
            if ours == entry.position() {
                return Ok(());
            }
            if ours.term == entry.term {
                return Err(self.diverged(entry.index, entry.checksum, ours.checksum));
            }
            let committed = self.hard_state.commit;
            assert!(entry.index > committed, "{} is committed and would be overwritten", entry.index);
            self.log.truncate(entry.index);
            self.persistence.truncated(entry.index);
            self.configurations_truncated(entry.index);
        }
        self.log.push(entry);
        if let Some(configuration) = configuration {
            self.configuration_logged(index, configuration);
        }
        Ok(())
    }

    /// Before anything of the own log is given up for it: an entry that was damaged on its way, its term too, is nobody's.
    fn check_whole(&self, entry: &Entry) -> Result<(), Refused> {
        let Some(found) = self.log.checksum_of(entry).filter(|found| *found != entry.checksum) else {
            return Ok(());
        };
        let (replica, index, expected) = (self.config.id, entry.index, entry.checksum);
        Err(Refused::Broken(Divergence { replica, index, expected, found }))
    }

    /// The state machine falls behind, or has caught up: then the leader, who holds entries back, is told.
    pub(crate) fn on_pressure(&mut self, full: bool) {
        let was_full = std::mem::replace(&mut self.full, full);
        if let RoleState::Follower(follower) = &mut self.role {
            follower.answer_owed |= was_full && !full;
        }
    }

    fn diverged(&self, index: Index, expected: u64, found: u64) -> Refused {
        Refused::Diverged(Divergence { replica: self.config.id, index, expected, found })
    }

    /// Tells the leader what is durable, if that is news or it asked. Only called while the hard state is durable: an
    /// acknowledgement is also a promise not to take anything from earlier terms.
    pub(crate) fn acknowledge(&mut self, effects: &mut Effects) {
        let (term, durable, full) = (self.hard_state.term, self.persistence.durable(), self.full);
        let (last, commit) = (self.log.last().index, self.hard_state.commit);
        let is_idle = last == commit && !full && self.asking.is_empty();
        let RoleState::Follower(Follower {
            leader: Some(leader),
            verified,
            acknowledged,
            answer_owed,
            round,
            sleep_asked,
            asleep,
            ..
        }) = &mut self.role
        else {
            return;
        };
        let matched = durable.min(*verified);
        if *answer_owed || matched > *acknowledged {
            *answer_owed = false;
            *acknowledged = matched.max(*acknowledged);
            *asleep |= std::mem::take(sleep_asked) && is_idle && matched == last;
            let (round, asleep) = (*round, *asleep);
            effects.messages.push((*leader, Message::AppendAck { term, round, matched, full, asleep }));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::entry::chain_checksum;
    use crate::event::{Contacts, Event};
    use crate::group::Restored;
    use crate::ids::GroupId;
    use crate::membership::CONFIGURATION;
    use bytes::Bytes;

    struct AllWell;

    impl Contacts for AllWell {
        fn last_heard(&self, _: ReplicaId) -> Time {
            Time(u64::MAX / 2)
        }
    }

    fn step(group: &mut Group, event: Event) -> Effects {
        let mut effects = Effects::default();
        group.step(Time(1_000_000), &AllWell, event, &mut effects);
        effects
    }

    fn persist(group: &mut Group, effects: &Effects) {
        for sequence in effects.persist.iter().map(|persist| persist.sequence) {
            step(group, Event::Persisted { sequence });
        }
    }

    /// The first of three replicas.
    fn follower() -> Group {
        let config = Config {
            group: GroupId(1),
            id: ReplicaId(1),
            configuration: Configuration::new([1, 2, 3].map(ReplicaId), []),
            election_timeout_us: 1_000_000,
            heartbeat_us: 100_000,
            max_append_bytes: 1 << 20,
            inflight_bytes: 1 << 20,
            uncommitted_bytes: 1 << 20,
            sleep_after_us: 0,
            starts_asleep: false,
            seed: 1,
        };
        Group::new(config, Restored::default())
    }

    /// The same, leading, with one entry of its own that nobody else has.
    fn leader() -> Group {
        let mut group = follower();
        step(&mut group, Event::Campaign);
        for pre in [true, false] {
            let (term, election) = (Term(u64::from(!pre)), Term(1));
            let voted_for = (!pre).then_some(ReplicaId(1));
            let answer = Message::VoteAnswer { term, election, pre, granted: true, voted_for };
            let effects = step(&mut group, Event::Message { from: ReplicaId(2), message: answer });
            persist(&mut group, &effects);
        }
        assert!(group.is_leader());
        step(&mut group, Event::Propose { token: 1, data: Bytes::from_static(b"data") });
        group
    }

    fn broken_entry_is_reported(group: &mut Group) -> Option<Divergence> {
        let (term, index) = (group.term(), group.last());
        let message = Message::Diverged { term, index, expected: 1, found: 2, broken: true };
        step(group, Event::Message { from: ReplicaId(2), message }).divergence
    }

    /// Every follower refused what a leader with a damaged memory sent, and each was taken for the damaged one.
    /// It was a panic, and so the end of the process in a moment of its own choosing, without a word about what to do.
    #[test]
    fn a_configuration_that_cannot_be_read_is_not_taken() {
        let mut group = follower();
        let entry = |index, data: &'static [u8], previous| {
            let (term, index, data) = (Term(1), Index(index), Bytes::from_static(data));
            let checksum = chain_checksum(previous, GroupId(1), term, index, &data);
            Entry { term, index, checksum, data }
        };
        let first = entry(1, b"data", 0);
        let newer = entry(2, &[CONFIGURATION, 9, 1], first.checksum);
        let entries = vec![first.clone(), newer];
        let message = Message::Append {
            term: Term(1),
            previous: LogPosition::default(),
            commit: Index(2),
            round: 0,
            answer: true,
            sleep: false,
            entries,
        };
        let effects = step(&mut group, Event::Message { from: ReplicaId(2), message });
        assert_eq!(effects.unreadable, Some(Index(2)));
        assert_eq!(group.last(), Index(1), "what came before it was taken");
        assert_eq!(group.commit(), Index(0), "and nothing was vouched for");
    }

    #[test]
    fn a_leader_whose_memory_is_damaged_accuses_itself() {
        let mut group = leader();
        assert_eq!(broken_entry_is_reported(&mut group), None, "its log is whole: the message was damaged");
        let mut damaged = group.log.entries().next_back().unwrap().clone();
        group.log.truncate(damaged.index);
        damaged.data = Bytes::from_static(b"dbta");
        group.log.push(damaged);
        assert_eq!(broken_entry_is_reported(&mut group).unwrap().replica, ReplicaId(1));
    }

    /// What a follower had acknowledged was given up for an entry of another term, before the checksum of that was looked at.
    #[test]
    fn nothing_is_given_up_for_an_entry_whose_term_was_damaged() {
        let mut group = follower();
        let append = |term, checksum| {
            let entry = Entry { term, index: Index(1), checksum, data: Bytes::from_static(b"data") };
            let message = Message::Append {
                term: Term(5),
                previous: LogPosition::default(),
                commit: Index(0),
                round: 0,
                answer: true,
                sleep: false,
                entries: vec![entry],
            };
            Event::Message { from: ReplicaId(2), message }
        };
        let checksum = chain_checksum(0, GroupId(1), Term(5), Index(1), b"data");
        let effects = step(&mut group, append(Term(5), checksum));
        persist(&mut group, &effects);
        assert_eq!((group.last(), group.durable()), (Index(1), Index(1)));
        let refused = step(&mut group, append(Term(4), checksum));
        assert_eq!((group.last(), group.durable()), (Index(1), Index(1)));
        let is_broken = |message: &Message| matches!(message, Message::Diverged { broken: true, .. });
        assert!(refused.messages.iter().any(|(_, message)| is_broken(message)), "{:?}", refused.messages);
    }

    /// A replica that was elected while it switched to a snapshot counted what the snapshot had shown to be committed as
    /// waiting for a quorum, for as long as it led: its room for proposals was smaller, or gone.
    #[test]
    fn what_a_snapshot_shows_to_be_committed_does_not_wait_for_a_quorum() {
        let mut group = leader();
        assert_eq!(group.uncommitted_bytes(), 4);
        let position = group.log.last();
        let configuration = group.configuration().clone();
        step(&mut group, Event::SnapshotInstalled { position, configuration });
        assert!(group.is_leader());
        assert_eq!((group.commit(), group.uncommitted_bytes()), (position.index, 0));
    }
}
