//! Sleep: a group in which nothing happens costs nothing.
//!
//! A leader that had nothing to do for a while, and whose members all have the whole log, says so in its heartbeats. A member that
//! finds the same falls asleep: it keeps no election timer any more, and acknowledges as a sleeper. When all have, the leader sleeps
//! too: no heartbeats. From then on the group relies on what nodes know of each other.
//!
//! ```text
//!   leader   ── Append(sleep) ──▶ members    has last = commit, hears the leader's node ─▶ asleep
//!   all have ◀─ AppendAck(asleep) ──         otherwise it stays awake, and is asked again with the next heartbeat
//!   asleep
//! ```
//! | who sleeps | wakes when |
//! |---|---|
//! | a leader | it is asked for something, somebody asks for votes, the driver wakes it; it steps down when a quorum of nodes is silent |
//! | a follower | its leader says anything, its leader's node is suspected, it is asked for something, somebody asks for votes |
//! | a replica without a leader, after a start | the same; it stands for election at once |
//!
//! Nothing is decided by sleep: whoever should not have slept is woken by the first thing that is asked of it. A sleeper that
//! doubts its leader asks it ([`Message::Wake`]), and one that does not lead says so. A replica that is awake while its leader sleeps
//! hears nothing from it, asks for votes after some time, and so wakes it.

use crate::event::{Contacts, Effects};
use crate::group::Group;
use crate::ids::{ReplicaId, Term, Time};
use crate::message::Message;
use crate::progress::ProgressState;
use crate::role::RoleState;

/// Replicas that wake without a leader stand for election within so small a part of a heartbeat: somebody waits, and they should
/// not all do so at the same moment.
const PROMPT_PART: u64 = 5;

impl Group {
    /// Whether this replica keeps no time, because nothing happens in its group.
    pub fn is_asleep(&self) -> bool {
        match &self.role {
            RoleState::Follower(follower) => follower.asleep,
            RoleState::Candidate(_) => false,
            RoleState::Leader(leader) => leader.asleep,
        }
    }

    /// Somebody asks for something: nobody thinks of sleep for a while.
    pub(crate) fn be_active(&mut self) {
        self.rouse();
        if let RoleState::Leader(leader) = &mut self.role {
            leader.active_at = self.now;
        }
    }

    /// Something happens: whoever sleeps wakes. A leader soon looks after its members, and sleeps again if there is nothing else to do.
    pub(crate) fn rouse(&mut self) {
        let (now, heartbeat_us) = (self.now, self.config.heartbeat_us);
        match &mut self.role {
            RoleState::Leader(leader) => {
                leader.progress.iter_mut().for_each(|progress| progress.asleep = false);
                if std::mem::take(&mut leader.asleep) {
                    leader.ticked_at = now;
                    leader.tick_at = now.plus_micros(heartbeat_us);
                }
            }
            RoleState::Follower(follower) if follower.asleep => {
                follower.asleep = false;
                follower.heard_at = now;
                match follower.leader {
                    Some(_) => self.arm(),
                    None => self.timer = Some(self.soon(0, heartbeat_us / PROMPT_PART)),
                }
            }
            _ => {}
        }
    }

    /// Somebody needs the leader: a follower asks whether there still is one. Without a leader, whoever cannot become one itself asks
    /// those who can.
    pub(crate) fn on_wake(&mut self, effects: &mut Effects) {
        self.rouse();
        let term = self.hard_state.term;
        match self.leader() {
            Some(leader) if leader == self.config.id => {}
            Some(leader) => effects.messages.push((leader, Message::Wake { term })),
            None if self.may_campaign() => {}
            None => effects.messages.extend(self.voters.iter().map(|voter| (voter, Message::Wake { term }))),
        }
    }

    /// A replica that does not see the leader asks for votes: those who sleep look whether it is there.
    pub(crate) fn on_doubt(&mut self, effects: &mut Effects) {
        match self.role {
            RoleState::Leader(_) => self.rouse(),
            _ if self.is_asleep() => self.on_wake(effects),
            _ => {}
        }
    }

    /// Somebody needs this replica as the leader of `term`, and is told if it is not. It may know of no term, but it shows that the group
    /// needs a leader.
    pub(crate) fn on_woken(&mut self, from: ReplicaId, term: Term, effects: &mut Effects) {
        let own = self.hard_state.term;
        if term >= own || self.leader().is_none() {
            self.rouse();
        }
        if term < own {
            return effects.messages.push((from, Message::Stale { term: own }));
        }
        if !self.is_leader() {
            effects.messages.push((from, Message::Abdicate { term }));
        }
    }

    /// Leader: whether there is nothing to do but to wait, and all members are there and have everything.
    pub(crate) fn is_drowsy(&self, contacts: &dyn Contacts) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        let last = self.log.last().index;
        let has_all = |other: &crate::Progress| {
            other.matched == last && other.state == ProgressState::Replicate && !other.full
        };
        self.is_idle()
            && leader.progress.iter().all(|other| has_all(other) && self.is_heard(other.replica, contacts))
    }

    /// Leader: sleeps, if all members do.
    pub(crate) fn fall_asleep(&mut self) {
        let is_idle = self.is_idle();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let all_sleep = leader.progress.iter().all(|other| other.asleep) && !leader.progress.is_empty();
        leader.asleep |= is_idle && all_sleep;
    }

    /// Leader: nothing was asked for a while, and what was is done.
    fn is_idle(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        let (idle_us, last) = (self.now.micros_since(leader.active_at), self.log.last().index);
        self.config.sleep_after_us > 0
            && idle_us >= self.config.sleep_after_us
            && self.hard_state.commit == last
            && self.persistence.durable() == last
            && self.membership.is_committed()
            && !self.configuration().is_joint()
            && leader.transfer.is_none()
            && leader.rounds.is_empty()
    }

    /// Whether the node of `replica` is there: the driver will say when it is not any more. Of one that was never heard it would not.
    pub(crate) fn is_heard(&self, replica: ReplicaId, contacts: &dyn Contacts) -> bool {
        let heard = contacts.last_heard(replica);
        heard != Time(0) && self.now.micros_since(heard) < self.config.election_timeout_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::group::{Config, Restored};
    use crate::ids::GroupId;
    use crate::{Configuration, HardState, LogPosition};

    struct Heard(Time);

    impl Contacts for Heard {
        fn last_heard(&self, _: ReplicaId) -> Time {
            self.0
        }
    }

    /// One of three that has just started.
    fn started(restored: Restored) -> Group {
        let config = Config {
            group: GroupId(2),
            id: ReplicaId(1),
            configuration: Configuration::new([1, 2, 3].map(ReplicaId), []),
            election_timeout_us: 1_000_000,
            heartbeat_us: 100_000,
            max_append_bytes: 1 << 20,
            inflight_bytes: 1 << 20,
            uncommitted_bytes: 1 << 20,
            sleep_after_us: 1,
            starts_asleep: true,
            seed: 1,
        };
        Group::new(config, restored)
    }

    /// A follower that has just started is told that it may sleep.
    fn sleeps(heard: Time) -> bool {
        let mut group = started(Restored::default());
        let mut step = |event| {
            let mut effects = Effects::default();
            group.step(Time(500_000), &Heard(heard), event, &mut effects);
            effects.persist
        };
        let (term, previous, commit) = (Term(1), LogPosition::default(), crate::Index(0));
        let (round, answer, sleep, entries) = (0, true, true, Vec::new());
        let message = Message::Append { term, previous, commit, round, answer, sleep, entries };
        for write in step(Event::Message { from: ReplicaId(2), message }) {
            step(Event::Persisted { sequence: write.sequence });
        }
        group.is_asleep()
    }

    /// All who knew the group slept without a leader. One that was new to it asked them for one, and was only told of their term.
    #[test]
    fn who_sleeps_without_a_leader_is_woken_by_one_who_knows_of_no_term() {
        let hard_state = HardState { term: Term(7), ..HardState::default() };
        let mut group = started(Restored { hard_state, ..Restored::default() });
        assert!(group.is_asleep());
        let message = Message::Wake { term: Term(0) };
        let event = Event::Message { from: ReplicaId(9), message };
        group.step(Time(500_000), &Heard(Time(0)), event, &mut Effects::default());
        assert!(!group.is_asleep());
    }

    /// Within its first election timeout a node took those for heard of whom it had never heard. It would not have been told of
    /// their death, and the follower would have slept on.
    #[test]
    fn nobody_sleeps_on_the_word_of_a_node_that_was_never_heard() {
        assert!(sleeps(Time(400_000)));
        assert!(!sleeps(Time(0)));
    }
}
