//! Linearizable reads without writing to the log (ReadIndex).
//!
//! A read may be served from any state machine that has applied everything that was committed when the read began. The
//! leader knows that index, provided that it has committed an entry of its own term (before that, it may not know
//! everything its predecessors committed) and that it still leads. The latter takes one exchange with a quorum that
//! begins after the request: a *round*. Rounds are batched: one is in flight, everything that arrives meanwhile
//! shares the next. They travel as numbers on ordinary appends.
//!
//! ```text
//!   follower: Read Read ──ReadRequest(batch)──▶ leader: waits with the leader's own reads
//!                                               Append(round n) ──▶ voters
//!                                               AppendAck(round n) ◀── quorum
//!   Ready Ready ◀───────ReadAnswer(batch, i)──  i = commit index when round n began
//! ```
//! A follower gives its reads back ([`ReadOutcome::Retry`]) when its leader or term changes and when there is no answer within an
//! election timeout. Nothing is ever answered from a lease or from what nodes know about each other.

use crate::event::{Effects, ReadOutcome};
use crate::group::Group;
use crate::ids::{Index, ReplicaId, Term, Time};
use crate::message::Message;
use crate::role::RoleState;

/// Somebody who waits for a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A read of this replica.
    Own(u64),
    /// A batch of reads of a follower.
    Follower(ReplicaId, u64),
}

/// The leader's reads.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Number of the newest round of this term; 0 before the first.
    newest: u64,
    in_flight: Option<Round>,
    /// Those that came too late for the round in flight.
    waiting: Vec<Waiter>,
}

/// A round that is on its way.
#[derive(Debug)]
pub(crate) struct Round {
    number: u64,
    /// The commit index when it began.
    index: Index,
    waiters: Vec<Waiter>,
}

impl Rounds {
    /// Number of the newest round.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.in_flight.is_none() && self.waiting.is_empty()
    }

    /// The round on its way.
    pub(crate) fn in_flight(&self) -> Option<&Round> {
        self.in_flight.as_ref()
    }

    /// Adds a waiter. A follower repeats itself and has one batch at a time, so its newest one replaces the one before.
    fn add(&mut self, waiter: Waiter) {
        if let Waiter::Follower(replica, _) = waiter {
            if self.in_flight.as_ref().is_some_and(|round| round.waiters.contains(&waiter)) {
                return;
            }
            self.waiting.retain(|other| !matches!(other, Waiter::Follower(same, _) if *same == replica));
        }
        self.waiting.push(waiter);
    }

    fn begin(&mut self, index: Index) {
        self.newest += 1;
        let waiters = std::mem::take(&mut self.waiting);
        self.in_flight = Some(Round { number: self.newest, index, waiters });
    }

    /// The reads of this replica, which are given back when it stops leading.
    fn own(self) -> impl Iterator<Item = u64> {
        let waiters = self.in_flight.map(|round| round.waiters).unwrap_or_default();
        waiters.into_iter().chain(self.waiting).filter_map(|waiter| match waiter {
            Waiter::Own(token) => Some(token),
            Waiter::Follower(..) => None,
        })
    }
}

/// A follower's reads.
#[derive(Debug)]
pub(crate) struct Asking {
    /// Name of the next batch; never repeated, also not by the next process of this replica (see `Config::seed`).
    next_batch: u64,
    asked: Option<Asked>,
    /// Those that came after the batch that is with the leader.
    waiting: Vec<u64>,
}

/// A batch that is with the leader.
#[derive(Debug)]
struct Asked {
    batch: u64,
    tokens: Vec<u64>,
    resend_at: Time,
    until: Time,
}

impl Asking {
    /// Names batches from `first_batch` on.
    pub(crate) fn new(first_batch: u64) -> Asking {
        Asking { next_batch: first_batch, asked: None, waiting: Vec::new() }
    }

    /// When something is to be done about the batch that is with the leader.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.asked.as_ref().map(|asked| asked.resend_at.min(asked.until))
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.asked.is_none() && self.waiting.is_empty()
    }

    /// Gives everything back.
    pub(crate) fn give_up(&mut self, effects: &mut Effects) {
        let asked = self.asked.take().map(|asked| asked.tokens).unwrap_or_default();
        let tokens = asked.into_iter().chain(self.waiting.drain(..));
        effects.reads.extend(tokens.map(|token| ReadOutcome::Retry { token }));
    }
}

impl Group {
    /// A read of this replica's driver.
    pub(crate) fn on_read(&mut self, token: u64, effects: &mut Effects) {
        let has_leader = self.leader().is_some();
        match &mut self.role {
            RoleState::Leader(leader) => leader.rounds.add(Waiter::Own(token)),
            _ if has_leader => self.asking.waiting.push(token),
            _ => {
                effects.reads.push(ReadOutcome::Retry { token });
                self.on_wake(effects);
            }
        }
    }

    /// A follower's batch.
    pub(crate) fn on_read_request(&mut self, from: ReplicaId, term: Term, batch: u64, effects: &mut Effects) {
        self.on_woken(from, term, effects);
        if term == self.hard_state.term {
            self.be_active();
        }
        if let RoleState::Leader(leader) = &mut self.role
            && term == self.hard_state.term
        {
            leader.rounds.add(Waiter::Follower(from, batch));
        }
    }

    /// The leader's answer.
    pub(crate) fn on_read_answer(
        &mut self,
        from: ReplicaId,
        term: Term,
        batch: u64,
        index: Index,
        effects: &mut Effects,
    ) {
        if term != self.hard_state.term || self.leader() != Some(from) {
            return;
        }
        if let Some(asked) = self.asking.asked.take_if(|asked| asked.batch == batch) {
            effects.reads.extend(asked.tokens.into_iter().map(|token| ReadOutcome::Ready { token, index }));
        }
    }

    /// Follower: sends what has gathered, repeats what may have been lost, gives up what takes too long.
    pub(crate) fn advance_asking(&mut self, effects: &mut Effects) {
        let Some(leader) = self.leader().filter(|leader| *leader != self.config.id) else { return };
        if self.asking.asked.as_ref().is_some_and(|asked| self.now >= asked.until) {
            return self.asking.give_up(effects);
        }
        let resend_at = self.now.plus_micros(self.config.heartbeat_us);
        if self.asking.asked.is_none() && !self.asking.waiting.is_empty() {
            let tokens = std::mem::take(&mut self.asking.waiting);
            let until = self.now.plus_micros(self.config.election_timeout_us);
            let batch = self.asking.next_batch;
            self.asking.next_batch = batch.wrapping_add(1);
            self.asking.asked = Some(Asked { batch, tokens, resend_at: self.now, until });
        }
        if let Some(asked) = self.asking.asked.as_mut().filter(|asked| self.now >= asked.resend_at) {
            asked.resend_at = resend_at;
            let request = Message::ReadRequest { term: self.hard_state.term, batch: asked.batch };
            effects.messages.push((leader, request));
        }
    }

    /// Leader: answers the round that a quorum has confirmed, begins the next if somebody waits.
    pub(crate) fn advance_rounds(&mut self, effects: &mut Effects) {
        let (me, term, commit) = (self.config.id, self.hard_state.term, self.hard_state.commit);
        let knows_all_commits = self.log.term_at(commit) == Some(term);
        let RoleState::Leader(leader) = &mut self.role else { return };
        loop {
            if let Some(round) = &leader.rounds.in_flight {
                let confirms = |voter| {
                    let of_voter = leader.progress.iter().find(|progress| progress.replica == voter);
                    voter == me || of_voter.is_some_and(|other| other.round_acknowledged >= round.number)
                };
                if !self.voters.has_quorum(confirms) {
                    return;
                }
            }
            for (waiter, index) in leader.rounds.take_confirmed() {
                match waiter {
                    Waiter::Own(token) => effects.reads.push(ReadOutcome::Ready { token, index }),
                    Waiter::Follower(replica, batch) => {
                        effects.messages.push((replica, Message::ReadAnswer { term, batch, index }));
                    }
                }
            }
            if leader.rounds.waiting.is_empty() || !knows_all_commits {
                return;
            }
            leader.rounds.begin(commit);
        }
    }

    /// Gives back whatever waits, because who leads is about to change.
    pub(crate) fn give_up_reads(&mut self, effects: &mut Effects) {
        self.asking.give_up(effects);
        if let RoleState::Leader(leader) = &mut self.role {
            let own = std::mem::take(&mut leader.rounds).own();
            effects.reads.extend(own.map(|token| ReadOutcome::Retry { token }));
        }
    }
}

impl Rounds {
    fn take_confirmed(&mut self) -> impl Iterator<Item = (Waiter, Index)> + use<> {
        let round = self.in_flight.take();
        round.into_iter().flat_map(|round| round.waiters.into_iter().map(move |waiter| (waiter, round.index)))
    }
}
