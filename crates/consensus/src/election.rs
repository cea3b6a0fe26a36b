//! Elections: when to call one, whom to vote for, how to count.
//!
//! * *Pre-vote*: before it disturbs anybody, a replica asks whether it would be elected. A replica that was cut off so
//!   comes back without having raised its term.
//! * *Loyalty* (leader stickiness): a voter whose leader's node was heard from within an election timeout refuses votes and pre-votes,
//!   so that a replica that cannot hear the leader cannot unseat it. Not when the leader itself asked for the election.
//! * *Check-quorum*: a leader whose node has not heard from a quorum of the voters' nodes for an election timeout steps
//!   down, so that a minority does not go on believing in it.
//! * *Durability*: a vote is told only once it is durable; a candidate asks for votes only once its own is. (A candidate
//!   that asked earlier, crashed, and came back with less of its log could be elected by old votes for the longer log.)
//! * *Counting*: a voter that refuses says whom it voted for, so the candidate counts every vote: P(x) = V(x) / ΣV(i).
//! * *Timers* are random between one and two election timeouts; each split vote in a row widens the range.
//! * *Giving way*: of two that ask for pre-votes at a time the one with the older log lets the other go first, or with equal logs the one with the
//!   lower id. Where all who are left are those two, they hardly ever share the votes: each needs the other's pre-vote, and so hears of it in time.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::Rng;

use crate::event::{Contacts, Effects, Election};
use crate::group::Group;
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::message::Message;
use crate::progress::Progress;
use crate::quorum::Tally;
use crate::read::Rounds;
use crate::replication::Leader;
use crate::role::{Candidate, Follower, RoleState, VoteAnswer};

/// The range of timers grows with split votes up to this many times.
const WIDEN_MAX: u64 = 4;

/// A follower that hears the leader's node, but for this many election timeouts nothing from the leader itself, takes
/// it that the leader stepped down unheard.
const SILENT_TIMEOUTS: u64 = 3;

/// A candidate's request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VoteRequest {
    pub(crate) term: Term,
    pub(crate) pre: bool,
    pub(crate) transfer: bool,
    pub(crate) last: (Term, Index),
}

/// Timers.
impl Group {
    /// A random moment between `low` and `high` microseconds from now.
    pub(crate) fn soon(&mut self, low: u64, high: u64) -> Time {
        self.now.plus_micros(self.rng.random_range(low..=high.max(low)))
    }

    /// Restarts the election timer.
    pub(crate) fn arm(&mut self) {
        let timeout = self.config.election_timeout_us;
        let widen = (1 + self.split_votes).min(WIDEN_MAX);
        self.timer = Some(self.soon(timeout, timeout + timeout * widen));
    }

    /// The election timer has run out: look whether the leader is alive; if not, campaign.
    pub(crate) fn on_election_timer(&mut self, contacts: &dyn Contacts, effects: &mut Effects) {
        match &self.role {
            _ if !self.may_campaign() => {}
            RoleState::Leader(_) => {}
            RoleState::Follower(Follower { leader: Some(leader), since, .. })
                if self.is_leader_alive(contacts) =>
            {
                let heard = contacts.last_heard(*leader).max(*since).min(self.now);
                let timeout = self.config.election_timeout_us;
                let random = self.rng.random_range(timeout..=2 * timeout);
                self.timer = Some(heard.plus_micros(random));
            }
            RoleState::Candidate(candidate) if !candidate.pre => {
                self.report_election(false, effects);
                self.split_votes += 1;
                self.start_pre_vote(effects);
            }
            _ => self.start_pre_vote(effects),
        }
    }

    /// Whether this follower has a leader and no reason to doubt it.
    fn is_leader_alive(&self, contacts: &dyn Contacts) -> bool {
        let RoleState::Follower(follower) = &self.role else { return false };
        let Some(leader) = follower.leader else { return false };
        let timeout = self.config.election_timeout_us;
        let node_heard = contacts.last_heard(leader).max(follower.since);
        let is_suspect = follower.suspected_at.is_some_and(|suspected_at| follower.heard_at <= suspected_at);
        self.now.micros_since(node_heard) < timeout
            && (follower.asleep || self.now.micros_since(follower.heard_at) < SILENT_TIMEOUTS * timeout)
            && self.abdicated != Some(self.hard_state.term)
            && !is_suspect
    }

    /// The node of `replica` is suspected.
    pub(crate) fn on_suspect(&mut self, replica: ReplicaId, contacts: &dyn Contacts, effects: &mut Effects) {
        let is_leader = self.leader() == Some(replica);
        match &mut self.role {
            RoleState::Leader(_) => self.check_quorum(contacts, effects),
            RoleState::Follower(_) if is_leader => {
                self.rouse();
                self.doubt();
                self.hurry();
            }
            _ => {}
        }
    }

    fn doubt(&mut self) {
        let now = self.now;
        if let RoleState::Follower(follower) = &mut self.role {
            follower.suspected_at = Some(now);
        }
    }

    /// The leader says that it no longer leads.
    pub(crate) fn on_abdicate(&mut self, from: ReplicaId, term: Term, effects: &mut Effects) {
        if term != self.hard_state.term || self.leader() != Some(from) {
            return;
        }
        self.abdicated = Some(term);
        self.become_follower(term, None, effects);
        self.hurry();
    }

    /// Lets the election timer run out shortly, at different moments on different replicas.
    fn hurry(&mut self) {
        let short = self.soon(self.config.heartbeat_us / 2, self.config.election_timeout_us / 2);
        self.timer = self.timer.map(|timer| timer.min(short)).or(Some(short));
    }
}

/// The candidate's side.
impl Group {
    /// Asks whether this replica would be elected.
    pub(crate) fn start_pre_vote(&mut self, effects: &mut Effects) {
        self.give_up_reads(effects);
        let election = Term(self.hard_state.term.0 + 1);
        let mut candidate = Candidate::new(true, election);
        candidate.record(VoteAnswer { voter: self.config.id, granted: true, voted_for: None });
        self.role = RoleState::Candidate(candidate);
        self.arm();
        for (to, request) in self.vote_requests(election, true, false) {
            effects.messages.push((to, request));
        }
        self.decide(effects);
    }

    /// Stands for election in the next term.
    pub(crate) fn start_election(&mut self, transfer: bool, effects: &mut Effects) {
        self.give_up_reads(effects);
        let election = Term(self.hard_state.term.0 + 1);
        self.enter_term(election);
        self.hard_state.voted_for = Some(self.config.id);
        self.role = RoleState::Candidate(Candidate::new(false, election));
        self.arm();
        for (to, request) in self.vote_requests(election, false, transfer) {
            self.send_when_durable(to, request);
        }
    }

    fn vote_requests(&self, term: Term, pre: bool, transfer: bool) -> Vec<(ReplicaId, Message)> {
        let last = self.log.last();
        let (last_term, last_index) = (last.term, last.index);
        let request = Message::VoteRequest { term, pre, transfer, last_term, last_index };
        let others = self.voters.iter().filter(|voter| *voter != self.config.id);
        others.map(|voter| (voter, request.clone())).collect()
    }

    /// Counts this replica's own vote once it is durable. The vote requests leave at the same moment.
    pub(crate) fn count_own_vote(&mut self, effects: &mut Effects) {
        let me = self.config.id;
        if let RoleState::Candidate(candidate) = &mut self.role
            && !candidate.has_answered(me)
        {
            candidate.record(VoteAnswer { voter: me, granted: true, voted_for: Some(me) });
            self.decide(effects);
        }
    }

    /// An answer to a vote or pre-vote request.
    pub(crate) fn on_vote_answer(
        &mut self,
        election: Term,
        pre: bool,
        answer: VoteAnswer,
        effects: &mut Effects,
    ) {
        if let RoleState::Candidate(candidate) = &mut self.role
            && (candidate.election, candidate.pre) == (election, pre)
        {
            candidate.record(answer);
            self.decide(effects);
        }
    }

    fn decide(&mut self, effects: &mut Effects) {
        let RoleState::Candidate(candidate) = &self.role else { return };
        let pre = candidate.pre;
        match candidate.tally(&self.voters) {
            Tally::Pending => {}
            Tally::Won if pre => self.start_election(false, effects),
            Tally::Won => {
                self.report_election(true, effects);
                self.become_leader();
            }
            Tally::Lost if pre => self.become_follower(self.hard_state.term, None, effects),
            Tally::Lost => {
                self.report_election(false, effects);
                self.split_votes += 1;
                self.become_follower(self.hard_state.term, None, effects);
            }
        }
    }

    fn report_election(&self, won: bool, effects: &mut Effects) {
        let RoleState::Candidate(candidate) = &self.role else { return };
        let mut votes = BTreeMap::new();
        for elected in candidate.answers.iter().filter_map(|answer| answer.voted_for) {
            *votes.entry(elected).or_insert(0) += 1;
        }
        let (term, candidate) = (candidate.election, self.config.id);
        effects.elections.push(Election { term, candidate, won, votes });
    }

    /// Leads. The first thing it does is to append an empty entry, because only an entry of its own term lets it
    /// commit, and know what its predecessors committed.
    fn become_leader(&mut self) {
        let me = self.config.id;
        let last = self.log.last().index;
        let others = self.membership.current().members().filter(|member| *member != me);
        let waiting = self.log.entries_from(self.hard_state.commit.next());
        let leader = Leader {
            quorum_since: self.now,
            ticked_at: self.now,
            tick_at: self.now.plus_micros(self.config.heartbeat_us),
            active_at: self.now,
            asleep: false,
            uncommitted_bytes: waiting.map(|entry| entry.data.len()).sum(),
            progress: others.map(|other| Progress::new(other, last)).collect(),
            rounds: Rounds::default(),
            transfer: None,
        };
        self.role = RoleState::Leader(Box::new(leader));
        self.split_votes = 0;
        self.log.propose(self.hard_state.term, Bytes::new());
    }
}

/// The voter's side.
impl Group {
    /// A candidate asks. `loyal` is whether this replica keeps to its leader.
    pub(crate) fn on_vote_request(&mut self, from: ReplicaId, request: VoteRequest, effects: &mut Effects) {
        let last = (self.log.last().term, self.log.last().index);
        let log_is_complete = request.last >= last;
        let VoteRequest { term: election, pre, .. } = request;
        if pre {
            let is_news = election > self.hard_state.term;
            // Without a leader, somebody else's need of one may be in vain: this replica may be the only one that can be elected.
            if is_news || self.leader().is_none() {
                self.rouse();
            }
            if is_news && log_is_complete {
                self.give_way((request.last, from) > (last, self.config.id), effects);
            }
            return self.answer_vote(from, request, is_news && log_is_complete);
        }
        let may_vote = match self.hard_state.voted_for {
            Some(candidate) => candidate == from,
            None => self.leader().is_none(),
        };
        let granted = election == self.hard_state.term && may_vote && log_is_complete;
        if granted && self.hard_state.voted_for.is_none() {
            self.hard_state.voted_for = Some(from);
            self.persistence.hard_state_changed();
            self.arm();
        }
        self.answer_vote(from, request, granted);
    }

    /// Another is about to stand for election: who was to do so later lets it go first, and who is about to do so as well if the other one `precedes`.
    fn give_way(&mut self, precedes: bool, effects: &mut Effects) {
        match &self.role {
            RoleState::Follower(_) => {
                let later = self.now.plus_micros(self.config.heartbeat_us);
                self.timer = self.timer.map(|timer| timer.max(later));
            }
            RoleState::Candidate(candidate) if candidate.pre && precedes => {
                self.become_follower(self.hard_state.term, None, effects);
            }
            RoleState::Candidate(_) | RoleState::Leader(_) => {}
        }
    }

    /// Answers; a vote, but not a pre-vote, waits for the disk.
    pub(crate) fn answer_vote(&mut self, to: ReplicaId, request: VoteRequest, granted: bool) {
        let VoteRequest { term: election, pre, .. } = request;
        let term = self.hard_state.term;
        let voted_for = self.hard_state.voted_for.filter(|_| !pre && term == election);
        self.send_when_durable(to, Message::VoteAnswer { term, election, pre, granted, voted_for });
    }

    /// Whether this replica refuses other candidates for the sake of the present leader.
    pub(crate) fn is_loyal(&self, request: VoteRequest, contacts: &dyn Contacts) -> bool {
        let keeps_to_leader = matches!(self.role, RoleState::Leader(_)) || self.is_leader_alive(contacts);
        !request.transfer && request.term > self.hard_state.term && keeps_to_leader
    }
}

/// The leader's side.
impl Group {
    /// Looks after the followers: a quorum must be there, and everybody gets a heartbeat.
    pub(crate) fn on_tick(&mut self, contacts: &dyn Contacts, effects: &mut Effects) {
        let (now, timeout) = (self.now, self.config.election_timeout_us);
        let RoleState::Leader(leader) = &mut self.role else { return };
        if now < leader.tick_at {
            return;
        }
        leader.ticked_at = now;
        leader.tick_at = now.plus_micros(timeout / 2);
        self.check_quorum(contacts, effects);
        let sleep = self.is_drowsy(contacts);
        self.send_heartbeats(sleep, effects);
    }

    /// Steps down if a quorum of the voters' nodes has been silent for an election timeout.
    fn check_quorum(&mut self, contacts: &dyn Contacts, effects: &mut Effects) {
        let RoleState::Leader(leader) = &self.role else { return };
        let is_there = |voter: ReplicaId| {
            let heard = contacts.last_heard(voter).max(leader.quorum_since);
            voter == self.config.id || self.now.micros_since(heard) < self.config.election_timeout_us
        };
        if !self.voters.has_quorum(is_there) {
            self.abdicate(effects);
        }
    }

    /// A leader whose own clockwork stood still for an election timeout may have been replaced without knowing.
    pub(crate) fn step_down_after_pause(&mut self, effects: &mut Effects) {
        let RoleState::Leader(leader) = &self.role else { return };
        let paused_us = self.now.micros_since(leader.ticked_at);
        // One that sleeps has no clockwork: its driver tells it ([`crate::Event::Paused`]).
        if !leader.asleep && paused_us > self.config.election_timeout_us {
            self.on_paused(effects);
        }
    }

    /// What this replica led may be led by another, unless there is no other.
    pub(crate) fn on_paused(&mut self, effects: &mut Effects) {
        if matches!(&self.role, RoleState::Leader(leader) if !leader.progress.is_empty()) {
            self.abdicate(effects);
        }
    }

    /// This replica must not lead any more.
    pub(crate) fn on_retire(&mut self, effects: &mut Effects) {
        self.retired = true;
        match self.role {
            RoleState::Leader(_) => self.abdicate(effects),
            RoleState::Candidate(_) => self.become_follower(self.hard_state.term, None, effects),
            RoleState::Follower(_) => {}
        }
    }

    pub(crate) fn abdicate(&mut self, effects: &mut Effects) {
        let term = self.hard_state.term;
        let RoleState::Leader(leader) = &self.role else { return };
        let others = leader.progress.iter().map(|progress| progress.replica);
        effects.messages.extend(others.map(|other| (other, Message::Abdicate { term })));
        self.abdicated = Some(term);
        self.become_follower(term, None, effects);
    }
}
