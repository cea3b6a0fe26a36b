//! Apply: committed entries change the state, in order, and answer the clients of this node.

use hadron_consensus::{Configuration, Entry, Event as CoreEvent, GroupId, ROOT_GROUP};
use hadron_keyspace::{Applied, Command, Response};

use crate::clock::GroupClock;
use crate::envelope::{self, Origin};
use crate::event::{Effects, Reply};
use crate::groups::Install;
use crate::node::Node;

impl Node {
    /// Applies what is committed, as long as the flush keeps up.
    pub(crate) fn apply_committed(&mut self, group: GroupId, effects: &mut Effects) {
        let mut applied_any = false;
        loop {
            self.count_memory(group);
            let max = self.unflushed_bytes_max();
            let Some(replica) = self.replicas.get_mut(&group) else { return };
            let flush_is_behind = replica.keyspace.unflushed_bytes() >= max;
            if flush_is_behind || replica.install == Install::Switching || effects.fatal.is_some() {
                break;
            }
            let Some(entry) = replica.unapplied.pop_front() else { break };
            self.apply_entry(group, entry, effects);
            applied_any = true;
        }
        if applied_any {
            self.after_apply(group, effects);
        }
    }

    fn apply_entry(&mut self, group: GroupId, entry: Entry, effects: &mut Effects) {
        let (me, incarnation, now) = (self.config.node, self.config.incarnation, self.now);
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        assert_eq!(entry.index, replica.applied().next(), "entries are applied without gaps");
        if entry.term > replica.applied_term {
            replica.reclaim_proposals_before(entry.term);
            replica.applied_term = entry.term;
        }
        match Configuration::of(&entry.data) {
            Ok(Some(configuration)) => return self.apply_configuration(group, entry, &configuration),
            Ok(None) => {}
            Err(error) => {
                effects.fatal = Some(cannot_be_applied(group, &entry, &error.to_string()));
                return;
            }
        }
        let (stamp_ms, origins, commands) = match decode(&entry, replica.keyspace.applied().stamp_ms) {
            Ok(decoded) => decoded,
            Err(what) => {
                effects.fatal = Some(cannot_be_applied(group, &entry, &what));
                return;
            }
        };
        let applied =
            Applied { term: entry.term.0, index: entry.index.0, checksum: entry.checksum, stamp_ms };
        if group == ROOT_GROUP {
            commands.iter().for_each(|command| self.residents.note(command));
        }
        replica.board.uses().count_entry(commands.len(), entry.data.len());
        // Only where the answer is waited for is anything read for it.
        let mut is_asked = |origin: &Origin| {
            let is_of_this_life = origin.node == me && origin.incarnation == incarnation;
            is_of_this_life && replica.proposed.remove(&origin.token).is_some()
        };
        let asked: Vec<bool> = origins.iter().map(&mut is_asked).collect();
        let commands = commands.into_iter().zip(asked.iter().copied()).collect();
        let responses = replica.keyspace.apply_for(applied, commands);
        for ((origin, is_asked), response) in origins.into_iter().zip(asked).zip(responses) {
            if let Ok(Response::LeaseExpire(expired)) = &response
                && replica.core.is_leader()
            {
                replica.board.count_expired(expired.len());
            }
            if is_asked {
                let reply = Reply::Written { response, term: entry.term.0 };
                effects.replies.push((origin.token, reply));
            } else if origin.token == 0 && origin.node == me {
                replica.expiry_pending_until = None;
            }
        }
        if !replica.core.is_leader() {
            replica.clock = GroupClock::new(stamp_ms, now);
        }
    }

    /// The group's members changed: nothing that clients see.
    fn apply_configuration(&mut self, group: GroupId, entry: Entry, configuration: &Configuration) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let stamp_ms = replica.keyspace.applied().stamp_ms;
        let applied =
            Applied { term: entry.term.0, index: entry.index.0, checksum: entry.checksum, stamp_ms };
        replica.keyspace.apply_configuration(applied, entry.data);
        self.on_configuration_applied(group, configuration);
    }

    /// What follows once for all entries of a turn.
    fn after_apply(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let applied = replica.applied();
        replica.board.set_applied(applied.0);
        replica.board.set_clock(replica.clock);
        self.step_group(group, CoreEvent::Applied { index: applied }, effects);
        self.answer_digests(group, effects);
        self.heed_alarms(group, effects);
        if group == ROOT_GROUP {
            self.refresh_pool();
            self.refresh_catalog(effects);
        }
    }
}

fn cannot_be_applied(group: GroupId, entry: &Entry, what: &str) -> String {
    format!(
        "group {group}: the entry at index {} cannot be applied by this version ({what}): run the version that the other \
         members run",
        entry.index.0
    )
}

pub(crate) type Decoded = (u64, Vec<Origin>, Vec<Command>);

/// The stamp, and each command with its origin.
pub(crate) fn decode(entry: &Entry, previous_stamp_ms: u64) -> Result<Decoded, String> {
    if envelope::is_of_the_group(&entry.data) {
        return Ok((previous_stamp_ms, Vec::new(), Vec::new()));
    }
    let envelope = envelope::decode(entry.data.clone()).map_err(|error| error.to_string())?;
    let mut origins = Vec::with_capacity(envelope.commands.len());
    let mut commands = Vec::with_capacity(envelope.commands.len());
    for (origin, bytes) in envelope.commands {
        origins.push(origin);
        commands.push(Command::decode(bytes).map_err(|error| error.to_string())?);
    }
    Ok((envelope.stamp_ms.max(previous_stamp_ms), origins, commands))
}
