//! A group: what it is told, in which order it acts on it, and what it can be asked.
//!
//! [`Group::step`] is in two parts. First the event changes what the group knows: one call per kind of event. Then
//! the group *settles*: whatever has become possible is done, in one fixed order, whichever event it was. So an
//! acknowledgement is never sent from where an entry is taken, but from where it turns out to be durable.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::election::VoteRequest;
use crate::entry::{Entry, HardState, LogPosition};
use crate::event::{Contacts, Divergence, Effects, Event, Outcome, Refusal};
use crate::ids::{GroupId, Index, ReplicaId, Term, Time};
use crate::log::Log;
use crate::membership::{CONFIGURATION, Configuration, Membership};
use crate::message::Message;
use crate::persistence::Persistence;
use crate::quorum::Voters;
use crate::read::Asking;
use crate::role::{Follower, RoleState, VoteAnswer};

/// Messages that may wait for the disk.
const HELD_MAX: usize = 64;

/// What a group is told when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The group. Part of the chained checksum.
    pub group: GroupId,
    /// This replica.
    pub id: ReplicaId,
    /// Who belonged to the group when the state machine was where it is found ([`Restored::applied`]); without voters for a
    /// replica that has yet to hear of its group. What the log says after that counts from the start.
    pub configuration: Configuration,
    /// Microseconds without contact after which a leader is given up, and a leader gives up.
    pub election_timeout_us: u64,
    /// Microseconds between two looks of a leader at followers that are behind. Less than half of the election timeout.
    pub heartbeat_us: u64,
    /// Bytes of entries in one append; a larger entry travels alone.
    pub max_append_bytes: usize,
    /// Bytes of entries that may be unacknowledged by one follower.
    pub inflight_bytes: usize,
    /// Bytes of entries that may wait for a quorum before proposals are refused.
    pub uncommitted_bytes: usize,
    /// Microseconds without requests after which a leader lets its group sleep; 0 for never.
    pub sleep_after_us: u64,
    /// Sleeps until somebody needs it, instead of electing a leader as soon as it starts.
    pub starts_asleep: bool,
    /// Where all randomness comes from. Must differ between replicas, and between two processes of one replica (mix in
    /// the incarnation): it also names batches of reads, and an old answer must not fit a new question.
    pub seed: u64,
}

/// What was found on the disk. All default for a replica that starts empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// As it was last made durable.
    pub hard_state: HardState,
    /// The position before the first entry.
    pub floor: LogPosition,
    /// The log, consecutive from the floor.
    pub entries: Vec<Entry>,
    /// What the state machine holds. Not below the floor.
    pub applied: Index,
}

/// One replica of a group.
#[derive(Debug)]
pub struct Group {
    pub(crate) config: Config,
    /// The configuration in force, and how it came to be.
    pub(crate) membership: Membership,
    /// How votes are counted in it.
    pub(crate) voters: Voters,
    pub(crate) rng: SmallRng,
    /// `commit` never decreases, and is at most the last index of the log.
    pub(crate) hard_state: HardState,
    pub(crate) log: Log,
    pub(crate) persistence: Persistence,
    pub(crate) role: RoleState,
    /// Reads that wait for a leader's answer.
    pub(crate) asking: Asking,
    /// The time of the present step.
    pub(crate) now: Time,
    /// When to look after the leader, or to campaign again. `None` until the first step: a group has no clock.
    pub(crate) timer: Option<Time>,
    /// Elections in a row that this replica lost.
    pub(crate) split_votes: u64,
    /// A term whose leader said that it no longer leads.
    pub(crate) abdicated: Option<Term>,
    /// Committed entries were handed out up to here. At most the commit index.
    pub(crate) delivered: Index,
    /// The state machine has applied up to here. At most what was handed out.
    pub(crate) applied: Index,
    /// Messages that wait for the present term and vote to be durable.
    held: Vec<(ReplicaId, Message)>,
    /// The state machine cannot keep up: no entries are taken from a leader.
    pub(crate) full: bool,
    /// This replica is damaged: it neither leads nor campaigns.
    pub(crate) retired: bool,
    /// The configuration in force changed in this step.
    pub(crate) is_reconfigured: bool,
}

impl Group {
    /// A replica as it was left, as a follower that knows no leader.
    ///
    /// # Panics
    /// If the configuration is impossible or what was restored does not fit together.
    pub fn new(config: Config, restored: Restored) -> Group {
        let Restored { mut hard_state, floor, entries, applied } = restored;
        assert!(config.heartbeat_us > 0, "the heartbeat interval is zero");
        assert!(config.heartbeat_us * 2 <= config.election_timeout_us, "the election timeout is too short");
        let log = Log::new(config.group, floor, entries);
        let after = log.entries().filter(|entry| entry.index > applied);
        let mut membership = Membership::new(config.configuration.clone(), after);
        let last = log.last();
        assert!(applied >= floor.index, "the state machine is behind the log's floor");
        assert!(applied <= last.index, "the state machine is ahead of the log");
        // A log whose last term is ahead of the hard state comes from a snapshot that was installed just before the end.
        if last.term > hard_state.term {
            hard_state.term = last.term;
            hard_state.voted_for = None;
        }
        hard_state.commit = hard_state.commit.max(applied).min(last.index);
        let mut rng = SmallRng::seed_from_u64(config.seed);
        membership.committed(hard_state.commit);
        let voters = membership.current().counting();
        let mut follower = Follower::new(None, Time(0), hard_state.commit);
        follower.asleep = config.starts_asleep;
        Group {
            timer: (voters.is_only(config.id) && !config.starts_asleep).then_some(Time(0)),
            membership,
            voters,
            asking: Asking::new(rng.random()),
            rng,
            persistence: Persistence::new(last.index, hard_state.commit),
            role: RoleState::Follower(follower),
            hard_state,
            log,
            now: Time(0),
            split_votes: 0,
            abdicated: None,
            delivered: applied,
            applied,
            held: Vec::new(),
            full: false,
            retired: false,
            is_reconfigured: false,
            config,
        }
    }

    /// Takes one event and adds to `effects` whatever is to be done about it. `now` never goes back.
    pub fn step(&mut self, now: Time, contacts: &dyn Contacts, event: Event, effects: &mut Effects) {
        self.now = self.now.max(now);
        let before = self.status();
        self.step_down_after_pause(effects);
        if self.timer.is_none() && !self.is_asleep() {
            let timeout = self.config.election_timeout_us;
            self.timer = Some(self.soon(timeout / 2, timeout + timeout / 2));
        }
        if is_activity(&event) {
            self.be_active();
        }
        match event {
            Event::Timer => self.on_timer(contacts, effects),
            Event::Message { from, message } => self.on_message(from, message, contacts, effects),
            Event::Propose { token, data } => self.on_propose(token, data, effects),
            Event::Reconfigure { token, wanted } => self.on_reconfigure(token, wanted, effects),
            Event::Read { token } => self.on_read(token, effects),
            Event::Persisted { sequence } => self.persistence.completed(sequence),
            Event::Applied { index } => self.applied = self.applied.max(index.min(self.delivered)),
            Event::Compact { index } => self.on_compact(index),
            Event::SnapshotInstalled { position, configuration } => {
                self.on_snapshot_installed(position, configuration, effects)
            }
            Event::SnapshotSent { to, position } => self.on_snapshot_sent(to, position),
            Event::Pressure { full } => self.on_pressure(full),
            Event::Retire => self.on_retire(effects),
            Event::Reinstate => self.retired = false,
            Event::Refeed { replica } => self.on_refeed(replica),
            Event::Suspect { replica } => self.on_suspect(replica, contacts, effects),
            Event::TransferLeader { to } => self.on_transfer(to),
            Event::Campaign => self.on_campaign(effects),
            Event::Wake => self.on_wake(effects),
            Event::Paused => self.on_paused(effects),
        }
        self.settle(effects);
        effects.status_changed |= self.status() != before;
        effects.is_reconfigured |= std::mem::take(&mut self.is_reconfigured);
    }

    /// When the next [`Event::Timer`] is due; `None` if only other events can move this group.
    pub fn deadline(&self) -> Option<Time> {
        match &self.role {
            RoleState::Leader(leader) if leader.progress.is_empty() || leader.asleep => None,
            RoleState::Leader(leader) => {
                let transfer = leader.transfer.map(|transfer| transfer.until);
                Some(transfer.map_or(leader.tick_at, |until| until.min(leader.tick_at)))
            }
            _ => {
                let keeps_time = self.may_campaign() && !self.is_asleep();
                let election = keeps_time.then(|| self.timer.unwrap_or_default());
                election.into_iter().chain(self.asking.deadline()).min()
            }
        }
    }
}

/// What happens, one function per kind of event that no other module is about.
impl Group {
    fn on_timer(&mut self, contacts: &dyn Contacts, effects: &mut Effects) {
        match self.role {
            RoleState::Leader(_) => self.on_tick(contacts, effects),
            _ if !self.is_asleep() && self.timer.is_some_and(|timer| self.now >= timer) => {
                self.on_election_timer(contacts, effects)
            }
            _ => {}
        }
    }

    fn on_campaign(&mut self, effects: &mut Effects) {
        if self.may_campaign() && !self.is_leader() {
            self.start_pre_vote(effects);
        }
    }

    fn on_propose(&mut self, token: u64, data: bytes::Bytes, effects: &mut Effects) {
        assert!(!data.is_empty(), "an empty entry is reserved for a new leader");
        assert!(data[0] != CONFIGURATION, "an entry that begins with zero is reserved for a configuration");
        let bytes = data.len();
        let refusal = match &mut self.role {
            RoleState::Leader(leader) if leader.transfer.is_some() => Refusal::Transferring,
            RoleState::Leader(leader) => {
                let waiting = leader.uncommitted_bytes;
                if waiting == 0 || waiting + bytes <= self.config.uncommitted_bytes {
                    leader.uncommitted_bytes += bytes;
                    let term = self.hard_state.term;
                    let index = self.log.propose(term, data);
                    return effects.proposals.push(Outcome::Proposed { token, term, index });
                }
                Refusal::Busy
            }
            _ => Refusal::NotLeader(self.leader()),
        };
        effects.proposals.push(Outcome::Refused { token, reason: refusal });
    }

    fn on_message(
        &mut self,
        from: ReplicaId,
        message: Message,
        contacts: &dyn Contacts,
        effects: &mut Effects,
    ) {
        if let Some(request) = vote_request(&message)
            && self.is_loyal(request, contacts)
        {
            self.answer_vote(from, request, false);
            self.on_doubt(effects);
            return self.reassure(from, request, effects);
        }
        if let Some(term) = message.binding_term().filter(|term| *term > self.hard_state.term) {
            self.become_follower(term, None, effects);
        }
        self.dispatch(from, message, contacts, effects);
    }

    /// The table of contents of the protocol. No message is of a later term than this replica's here, except a pre-vote.
    fn dispatch(
        &mut self,
        from: ReplicaId,
        message: Message,
        contacts: &dyn Contacts,
        effects: &mut Effects,
    ) {
        if let Some(request) = vote_request(&message) {
            return self.on_vote_request(from, request, effects);
        }
        match message {
            Message::VoteRequest { .. } | Message::Stale { .. } => {}
            Message::VoteAnswer { election, pre, granted, voted_for, .. } => {
                let answer = VoteAnswer { voter: from, granted, voted_for };
                self.on_vote_answer(election, pre, answer, effects);
            }
            Message::Append { term, .. } if term < self.hard_state.term => {
                effects.messages.push((from, Message::Stale { term: self.hard_state.term }));
            }
            Message::Append { previous, commit, round, answer, sleep, entries, .. } => {
                let may_sleep = sleep && self.is_heard(from, contacts);
                self.on_append(from, previous, commit, (round, answer, may_sleep), entries, effects);
            }
            Message::AppendAck { term, round, matched, full, asleep } => {
                self.on_append_ack(from, term, round, (matched, full, asleep));
            }
            Message::AppendReject { term, round, rejected, hint_index, hint_term } => {
                self.on_append_reject(from, term, round, rejected, (hint_index, hint_term), effects);
            }
            Message::Diverged { term, index, expected, found, broken } => {
                let divergence = Divergence { replica: from, index, expected, found };
                self.on_diverged(from, term, (divergence, broken), effects);
            }
            Message::ReadRequest { term, batch } => self.on_read_request(from, term, batch, effects),
            Message::ReadAnswer { term, batch, index } => {
                self.on_read_answer(from, term, batch, index, effects)
            }
            Message::TimeoutNow { term } => self.on_timeout_now(from, term, effects),
            Message::Abdicate { term } => self.on_abdicate(from, term, effects),
            Message::Wake { term } => self.on_woken(from, term, effects),
        }
    }
}

/// Changes of role, and what happens at the end of each step.
impl Group {
    /// Enters a later term, in which this replica has not voted.
    pub(crate) fn enter_term(&mut self, term: Term) {
        assert!(term > self.hard_state.term, "terms only grow");
        self.hard_state.term = term;
        self.hard_state.voted_for = None;
        self.persistence.hard_state_changed();
        // What waits for the disk was said in a term that is over.
        self.held.clear();
    }

    /// Follows `leader`, or nobody yet, in `term`.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<ReplicaId>, effects: &mut Effects) {
        self.give_up_reads(effects);
        if term > self.hard_state.term {
            self.enter_term(term);
        }
        self.role = RoleState::Follower(Follower::new(leader, self.now, self.hard_state.commit));
        self.arm();
    }

    /// `from` leads in the present term: it said something that only a leader says.
    pub(crate) fn follow(&mut self, from: ReplicaId, effects: &mut Effects) {
        let known = self.leader();
        if known.is_none() {
            self.split_votes = 0;
            self.become_follower(self.hard_state.term, Some(from), effects);
        }
        let (term, known) = (self.hard_state.term, known.unwrap_or(from));
        assert!(known == from, "election_safety: both {known} and {from} lead in {term}");
    }

    /// Sends a message as soon as the present term and vote are durable, at the latest when they are.
    /// Behind a disk that stands still the oldest ones are lost: any message may be.
    pub(crate) fn send_when_durable(&mut self, to: ReplicaId, message: Message) {
        if self.held.len() == HELD_MAX {
            self.held.remove(0);
        }
        self.held.push((to, message));
    }

    /// Everything up to `index` is committed.
    pub(crate) fn commit_to(&mut self, index: Index) {
        assert!(index >= self.hard_state.commit, "the commit index does not go back");
        assert!(index <= self.log.last().index, "{index} is committed, but not in the log");
        self.hard_state.commit = index;
        self.membership.committed(index);
    }

    /// Does whatever has become possible. The order matters: an own vote that became durable may make a leader, whose
    /// first entry must be in this step's write; nothing that depends on the hard state leaves after a change
    /// to it that is not yet written; the commit index is moved before it is sent, a round begun before it is sent.
    fn settle(&mut self, effects: &mut Effects) {
        if self.persistence.is_hard_state_durable() {
            effects.messages.append(&mut self.held);
            self.count_own_vote(effects);
        }
        effects.persist.extend(self.persistence.submit(self.hard_state, &self.log));
        if self.persistence.is_hard_state_durable() {
            effects.messages.append(&mut self.held);
            self.acknowledge(effects);
        }
        self.settle_leader(effects);
        self.advance_asking(effects);
        let newly =
            (self.hard_state.commit > self.delivered).then(|| self.log.entries_from(self.delivered.next()));
        let commit = self.hard_state.commit;
        effects
            .committed
            .extend(newly.into_iter().flatten().take_while(|entry| entry.index <= commit).cloned());
        self.delivered = commit.max(self.delivered);
    }

    fn settle_leader(&mut self, effects: &mut Effects) {
        self.advance_commit();
        if self.leave_joint() {
            effects.persist.extend(self.persistence.submit(self.hard_state, &self.log));
        }
        self.advance_rounds(effects);
        self.replicate(effects);
        self.advance_transfer(effects);
        self.step_down_if_removed(effects);
        self.fall_asleep();
        let (last, soon) = (self.log.last().index, self.now.plus_micros(self.config.heartbeat_us));
        if let RoleState::Leader(leader) = &mut self.role
            && leader.is_busy(last)
        {
            leader.tick_at = leader.tick_at.min(soon);
        }
    }
}

/// Whether an event means that somebody needs the group awake.
fn is_activity(event: &Event) -> bool {
    matches!(
        event,
        Event::Propose { .. }
            | Event::Reconfigure { .. }
            | Event::Read { .. }
            | Event::TransferLeader { .. }
            | Event::SnapshotInstalled { .. }
            | Event::SnapshotSent { .. }
    )
}

/// The fields of a vote request, if it is one.
fn vote_request(message: &Message) -> Option<VoteRequest> {
    let Message::VoteRequest { term, pre, transfer, last_term, last_index } = *message else { return None };
    Some(VoteRequest { term, pre, transfer, last: (last_term, last_index) })
}
