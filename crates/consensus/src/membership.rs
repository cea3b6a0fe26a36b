//! Membership: who votes and who follows in a group, and how that changes.
//!
//! A [`Configuration`] is an entry of the log like any other, written by the leader. It is in force on a replica as soon as
//! it is in that replica's log, committed or not, and no longer if it is replaced there (Ongaro 2014, §4.1). So the
//! configuration in force follows from the log alone, and from the configuration at its beginning.
//!
//! ```text
//!   C old ──Reconfigure──▶ both, each must agree ──committed──▶ C new ──committed──▶ a leader that is not in it steps down
//!                     └──▶ C new, if the voters stay the same
//! ```
//! A change of voters goes through a *joint* configuration, in which every decision needs a majority of the old voters
//! and one of the new (§4.3), so that any number of voters can change at once. The leader leaves it by itself.
//!
//! Whoever leaves is fed until it knows that the others do without it, or for an election timeout: what it passed on to the leader before
//! is in its log then, and it can answer for it.
//!
//! One change at a time: the next is refused until the last is committed, and until the leader has committed an entry
//! of its own term, without which it does not know whether there is one that is not over.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::entry::Entry;
use crate::event::{Effects, Outcome, Refusal};
use crate::group::Group;
use crate::ids::{Index, ReplicaId};
use crate::progress::Progress;
use crate::quorum::Voters;
use crate::role::RoleState;

/// First byte of an entry that holds a configuration. No other entry may begin with it.
pub const CONFIGURATION: u8 = 0;
/// Version of its format.
const VERSION: u8 = 1;

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The replicas that vote; in a joint configuration, those of the new one.
    pub voters: Vec<ReplicaId>,
    /// The voters of the old configuration while two are in force; empty otherwise.
    pub outgoing: Vec<ReplicaId>,
    /// The replicas that only follow.
    pub learners: Vec<ReplicaId>,
    /// Whatever the driver wants to know with it, such as where the replicas are.
    pub context: Bytes,
}

impl Configuration {
    /// Voters and learners, without anything else.
    pub fn new(
        voters: impl IntoIterator<Item = ReplicaId>,
        learners: impl IntoIterator<Item = ReplicaId>,
    ) -> Configuration {
        Configuration {
            voters: voters.into_iter().collect(),
            learners: learners.into_iter().collect(),
            ..Configuration::default()
        }
    }

    /// Whether two sets of voters are in force.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// How votes and acknowledgements are counted.
    pub fn counting(&self) -> Voters {
        Voters::joint(self.voters.iter().copied(), self.outgoing.iter().copied())
    }

    /// Each member once.
    pub fn members(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let is_voter = |replica: &ReplicaId| self.voters.contains(replica) || self.outgoing.contains(replica);
        let only_outgoing = self.outgoing.iter().filter(|replica| !self.voters.contains(replica));
        let learners = self.learners.iter().filter(move |replica| !is_voter(replica));
        self.voters.iter().chain(only_outgoing).chain(learners).copied()
    }

    /// The configuration in an entry's data, if it holds one.
    ///
    /// # Errors
    /// The data begins as a configuration and is none that this version can read.
    pub fn of(data: &Bytes) -> Result<Option<Configuration>, ConfigurationError> {
        match data.first() {
            Some(&CONFIGURATION) => Configuration::decode(data.clone()).map(Some),
            _ => Ok(None),
        }
    }

    /// As the data of an entry: `docs/formats/messages.md` has the bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(CONFIGURATION);
        out.put_u8(VERSION);
        for replicas in [&self.voters, &self.outgoing, &self.learners] {
            out.put_u32_le(replicas.len() as u32);
            replicas.iter().for_each(|replica| out.put_u64_le(replica.0));
        }
        out.put_slice(&self.context);
        out.freeze()
    }

    fn decode(mut data: Bytes) -> Result<Configuration, ConfigurationError> {
        data.advance(1);
        if data.try_get_u8() != Ok(VERSION) {
            return Err(ConfigurationError);
        }
        let voters = decode_replicas(&mut data)?;
        let outgoing = decode_replicas(&mut data)?;
        let learners = decode_replicas(&mut data)?;
        if voters.is_empty() {
            return Err(ConfigurationError);
        }
        Ok(Configuration { voters, outgoing, learners, context: data })
    }
}

fn decode_replicas(data: &mut Bytes) -> Result<Vec<ReplicaId>, ConfigurationError> {
    let count = data.try_get_u32_le().map_err(|_| ConfigurationError)? as usize;
    if data.len() / 8 < count {
        return Err(ConfigurationError);
    }
    Ok((0..count).map(|_| ReplicaId(data.get_u64_le())).collect())
}

/// An entry that begins as a configuration is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigurationError;

impl std::fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a configuration that this version can read")
    }
}

impl std::error::Error for ConfigurationError {}

/// The configurations of a log: the last one that is committed, and those after it.
#[derive(Debug)]
pub(crate) struct Membership {
    committed: Configuration,
    /// Those that may still be replaced, oldest first.
    logged: Vec<(Index, Configuration)>,
}

impl Membership {
    /// What `committed` and the log's entries after it come to.
    ///
    /// # Panics
    /// If an entry that begins as a configuration is none: the log was checked before it came here.
    pub(crate) fn new<'a>(committed: Configuration, entries: impl Iterator<Item = &'a Entry>) -> Membership {
        let mut membership = Membership { committed, logged: Vec::new() };
        for entry in entries {
            match Configuration::of(&entry.data) {
                Ok(Some(configuration)) => membership.logged.push((entry.index, configuration)),
                Ok(None) => {}
                Err(error) => panic!("the recovered log's entry {} is {error}", entry.index),
            }
        }
        membership
    }

    /// The configuration in force.
    pub(crate) fn current(&self) -> &Configuration {
        self.logged.last().map_or(&self.committed, |(_, configuration)| configuration)
    }

    /// Whether the configuration in force is committed.
    pub(crate) fn is_committed(&self) -> bool {
        self.logged.is_empty()
    }

    /// Whether `replica` votes in a configuration that is in force again if those after it are replaced.
    pub(crate) fn may_vote_again(&self, replica: ReplicaId) -> bool {
        let earlier = self.logged.split_last().map(|(_, earlier)| earlier);
        earlier.is_some_and(|earlier| {
            let mut earlier = earlier.iter().map(|(_, configuration)| configuration).chain([&self.committed]);
            earlier.any(|configuration| configuration.counting().contains(replica))
        })
    }

    /// `configuration` was added to the log.
    fn pushed(&mut self, index: Index, configuration: Configuration) {
        self.logged.push((index, configuration));
    }

    /// `from` and everything after it left the log. True if that changed the configuration in force.
    fn truncated(&mut self, from: Index) -> bool {
        let before = self.logged.len();
        self.logged.retain(|(index, _)| *index < from);
        self.logged.len() < before
    }

    /// Everything up to `index` is committed.
    pub(crate) fn committed(&mut self, index: Index) {
        let count = self.logged.partition_point(|(at, _)| *at <= index);
        if let Some((_, configuration)) = self.logged.drain(..count).next_back() {
            self.committed = configuration;
        }
    }
}

impl Group {
    /// The configuration in force.
    pub fn configuration(&self) -> &Configuration {
        self.membership.current()
    }

    /// Whether the configuration in force is committed. If not, it may be replaced, together with its log entry.
    pub fn is_configuration_committed(&self) -> bool {
        self.membership.is_committed()
    }

    pub(crate) fn on_reconfigure(&mut self, token: u64, wanted: Configuration, effects: &mut Effects) {
        let is_impossible = wanted.voters.is_empty() || wanted.is_joint();
        assert!(!is_impossible, "a change needs voters, and no outgoing ones");
        let refusal = match &self.role {
            RoleState::Leader(leader) if leader.transfer.is_some() => Refusal::Transferring,
            RoleState::Leader(_) if !self.may_reconfigure() => Refusal::Changing,
            RoleState::Leader(_) => {
                let index = self.propose_configuration(self.joint_with(wanted));
                let term = self.hard_state.term;
                return effects.proposals.push(Outcome::Proposed { token, term, index });
            }
            _ => Refusal::NotLeader(self.leader()),
        };
        effects.proposals.push(Outcome::Refused { token, reason: refusal });
    }

    /// Whether no change is under way, for all that a new leader may not know of its predecessor's.
    fn may_reconfigure(&self) -> bool {
        let is_certain = self.log.term_at(self.hard_state.commit) == Some(self.hard_state.term);
        is_certain && self.membership.is_committed() && !self.configuration().is_joint()
    }

    /// The first step towards `wanted`.
    fn joint_with(&self, wanted: Configuration) -> Configuration {
        let current = self.configuration();
        let counting = |voters: &[ReplicaId]| Voters::new(voters.iter().copied());
        match counting(&current.voters) == counting(&wanted.voters) {
            true => wanted,
            false => Configuration { outgoing: current.voters.clone(), ..wanted },
        }
    }

    fn propose_configuration(&mut self, configuration: Configuration) -> Index {
        let data = configuration.encode();
        if let RoleState::Leader(leader) = &mut self.role {
            leader.uncommitted_bytes += data.len();
        }
        let index = self.log.propose(self.hard_state.term, data);
        self.configuration_logged(index, configuration);
        index
    }

    /// Leader: a committed joint configuration has served its purpose. True if there is something new in the log.
    pub(crate) fn leave_joint(&mut self) -> bool {
        let is_due = matches!(self.role, RoleState::Leader(_))
            && self.membership.is_committed()
            && self.configuration().is_joint();
        if is_due {
            let configuration = Configuration { outgoing: Vec::new(), ..self.configuration().clone() };
            self.propose_configuration(configuration);
        }
        is_due
    }

    /// Leader: the configuration without it is committed, so its work is done.
    pub(crate) fn step_down_if_removed(&mut self, effects: &mut Effects) {
        if matches!(self.role, RoleState::Leader(_)) && self.membership.is_committed() && !self.is_voter() {
            self.abdicate(effects);
        }
    }

    /// `configuration` is now in the log, and so in force.
    pub(crate) fn configuration_logged(&mut self, index: Index, configuration: Configuration) {
        self.membership.pushed(index, configuration);
        self.configuration_changed();
    }

    /// `from` and everything after it left the log.
    pub(crate) fn configurations_truncated(&mut self, from: Index) {
        if self.membership.truncated(from) {
            self.configuration_changed();
        }
    }

    /// The log begins anew, in this configuration.
    pub(crate) fn restart_membership(&mut self, configuration: Configuration) {
        self.membership = Membership { committed: configuration, logged: Vec::new() };
        self.configuration_changed();
    }

    fn configuration_changed(&mut self) {
        let configuration = self.membership.current();
        self.voters = configuration.counting();
        self.is_reconfigured = true;
        let (me, now, last) = (self.config.id, self.now, self.log.last().index);
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.progress.is_empty() {
            // It had nobody to look after.
            leader.ticked_at = now;
            leader.tick_at = now.plus_micros(self.config.heartbeat_us);
        }
        leader.quorum_since = now;
        for progress in &mut leader.progress {
            let is_member = configuration.members().any(|member| member == progress.replica);
            progress.set_member(is_member, last, now);
        }
        for member in configuration.members().filter(|member| *member != me) {
            if leader.progress_of(member).is_none() {
                leader.progress.push(Progress::new(member, last));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ids::Term;

    fn ids(ids: &[u64]) -> Vec<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn example() -> Configuration {
        let (voters, outgoing) = (ids(&[1, 2, 4]), ids(&[1, 2, 3]));
        Configuration { voters, outgoing, learners: ids(&[3, 5]), context: Bytes::from_static(b"where") }
    }

    #[test]
    fn a_configuration_survives_its_entry() {
        let data = example().encode();
        assert_eq!(Configuration::of(&data), Ok(Some(example())));
        assert_eq!(Configuration::of(&Bytes::new()), Ok(None), "a new leader's entry");
        assert_eq!(Configuration::of(&Bytes::from_static(b"\x01put")), Ok(None));
        let context = example().context.len();
        for cut in 1..data.len() - context {
            assert_eq!(Configuration::of(&data.slice(..cut)), Err(ConfigurationError), "{cut} bytes");
        }
        let many = Bytes::from_static(b"\x00\x01\xff\xff\xff\xff");
        assert_eq!(Configuration::of(&many), Err(ConfigurationError));
    }

    #[test]
    fn each_member_counts_once() {
        assert_eq!(example().members().collect::<Vec<_>>(), ids(&[1, 2, 4, 3, 5]));
    }

    #[test]
    fn the_log_says_what_is_in_force() {
        let configuration = |voters: &[u64]| Configuration::new(ids(voters), []);
        let entry = |index, data: Bytes| Entry { term: Term(1), index: Index(index), checksum: 0, data };
        let entries = [
            entry(4, configuration(&[1, 2]).encode()),
            entry(5, Bytes::from_static(b"\x01put")),
            entry(6, configuration(&[1, 2, 3]).encode()),
        ];
        let mut membership = Membership::new(configuration(&[1]), entries.iter());
        assert_eq!(membership.current().voters, ids(&[1, 2, 3]));
        assert!(membership.truncated(Index(6)));
        assert_eq!(membership.current().voters, ids(&[1, 2]));
        membership.committed(Index(4));
        assert!(membership.is_committed());
        assert!(!membership.truncated(Index(5)));
        assert_eq!(membership.current().voters, ids(&[1, 2]));
    }
}
