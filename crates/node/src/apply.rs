//! Apply: committed entries change the state, in order, and answer the clients of this node.
//!
//! How much one command does depends on the state: a deletion may concern every key. So each group does only so much in a turn, and all of them
//! together, and goes on in the next one: what comes in meanwhile, heartbeats and the other groups' entries, does not wait for it.

use std::collections::BTreeSet;

use bytes::Bytes;
use hadron_consensus::{Configuration, Entry, Event as CoreEvent, GroupId, Index, ROOT_GROUP, Term};
use hadron_keyspace::{Applied, Command, Response};

use crate::catalog;
use crate::clock::GroupClock;
use crate::envelope::{self, Origin};
use crate::event::{Effects, Reply};
use crate::groups::Install;
use crate::node::Node;
use crate::reconfigure::readable_configuration;

/// Keys looked at or changed before readers of the group get their turn.
const EFFORT_PER_LOCK: usize = 1_000;

/// An entry of which something is applied.
#[derive(Debug)]
pub(crate) struct OpenEntry {
    term: Term,
    /// Who asked for each of its commands, and whether somebody here waits for the answer.
    origins: Vec<(Origin, bool)>,
    /// Keys of the catalog that it may change.
    catalog_keys: BTreeSet<Bytes>,
}

impl Node {
    /// Applies what is committed, as long as the flush keeps up and there is time for it in this turn.
    pub(crate) fn apply_committed(&mut self, group: GroupId, effects: &mut Effects) {
        // It has had its share.
        if self.left_over.iter().any(|(_, left_over)| *left_over == group) {
            return;
        }
        let effort_max = self.config.limits.apply_effort;
        let (mut effort_left, mut applied_any) = (effort_max, false);
        loop {
            self.count_memory(group);
            let max = self.unflushed_bytes_max();
            let Some(replica) = self.replicas.get(&group) else { return };
            let flush_is_behind = replica.keyspace.unflushed_bytes() >= max;
            // What is begun reaches the engine once it is whole.
            let is_next_due = !replica.unapplied.is_empty() && !flush_is_behind;
            let is_due = replica.open_entry.is_some() || is_next_due;
            if !is_due || replica.install == Install::Switching || effects.fatal.is_some() {
                break;
            }
            if effort_left == 0 || self.turn_effort_left == 0 {
                self.left_over.push((effort_left < effort_max, group));
                break;
            }
            applied_any |= match replica.open_entry {
                None => self.begin_next_entry(group, effects),
                Some(_) => {
                    let effort = effort_left.min(self.turn_effort_left).min(EFFORT_PER_LOCK);
                    let (effort, is_applied) = self.go_on_with_entry(group, effort, effects);
                    effort_left = effort_left.saturating_sub(effort);
                    self.turn_effort_left = self.turn_effort_left.saturating_sub(effort);
                    is_applied
                }
            };
        }
        if applied_any {
            self.after_apply(group, effects);
        }
    }

    /// Begins with the next entry; true if it is applied already.
    fn begin_next_entry(&mut self, group: GroupId, effects: &mut Effects) -> bool {
        let (me, incarnation, now) = (self.config.node, self.config.incarnation, self.now);
        let Some(replica) = self.replicas.get_mut(&group) else { return false };
        let Some(entry) = replica.unapplied.pop_front() else { return false };
        assert_eq!(entry.index, replica.applied().next(), "entries are applied without gaps");
        if entry.term > replica.applied_term {
            replica.reclaim_proposals_before(entry.term);
            replica.applied_term = entry.term;
        }
        match readable_configuration(&entry.data) {
            Ok(Some(configuration)) => {
                self.apply_configuration(group, entry, &configuration);
                return true;
            }
            Ok(None) => {}
            Err(error) => {
                effects.fatal = Some(cannot_be_read(group, entry.index, &error.to_string()));
                return false;
            }
        }
        let (stamp_ms, origins, commands) = match decode(&entry, replica.keyspace.applied().stamp_ms) {
            Ok(decoded) => decoded,
            Err(what) => {
                effects.fatal = Some(cannot_be_read(group, entry.index, &what));
                return false;
            }
        };
        let applied =
            Applied { term: entry.term.0, index: entry.index.0, checksum: entry.checksum, stamp_ms };
        replica.board.uses().count_entry(commands.len(), entry.data.len());
        if !replica.core.is_leader() {
            replica.clock = GroupClock::new(stamp_ms, now);
        }
        // Only where the answer is waited for is anything read for it.
        let is_asked = |origin: &Origin| {
            let is_of_this_life = origin.node == me && origin.incarnation == incarnation;
            is_of_this_life && replica.proposed.contains_key(&origin.token)
        };
        let origins: Vec<_> = origins.into_iter().map(|origin| (origin, is_asked(&origin))).collect();
        let catalog_keys = match group {
            ROOT_GROUP => commands.iter().flat_map(catalog::keys_of).collect(),
            _ => BTreeSet::new(),
        };
        let commands =
            commands.into_iter().zip(&origins).map(|(command, (_, is_asked))| (command, *is_asked));
        replica.keyspace.begin_entry(applied, commands.collect());
        replica.open_entry = Some(OpenEntry { term: entry.term, origins, catalog_keys });
        false
    }

    /// Goes on with the entry that was begun: how much was done, and whether it is applied.
    fn go_on_with_entry(
        &mut self,
        group: GroupId,
        effort_max: usize,
        effects: &mut Effects,
    ) -> (usize, bool) {
        let me = self.config.node;
        let Some(replica) = self.replicas.get_mut(&group) else { return (0, false) };
        let (effort, answers) = replica.keyspace.go_on(effort_max);
        let Some((answers, entry)) = answers.and_then(|answers| Some((answers, replica.open_entry.take()?)))
        else {
            return (effort, false);
        };
        for ((origin, is_asked), response) in entry.origins.into_iter().zip(answers) {
            if let Ok(Response::LeaseExpire(expired)) = &response
                && replica.core.is_leader()
            {
                replica.board.count_expired(expired.len());
            }
            // Whoever waited may have given up meanwhile.
            if is_asked && replica.proposed.remove(&origin.token).is_some() {
                let reply = Reply::Written { response, term: entry.term.0 };
                effects.replies.push((origin.token, reply));
            } else if origin.token == 0 && origin.node == me {
                replica.expiry_pending_until = None;
            }
        }
        self.residents.note(entry.catalog_keys);
        (effort, true)
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

/// What a node says that stops because an entry is of a newer version.
pub(crate) fn cannot_be_read(group: GroupId, index: Index, what: &str) -> String {
    format!(
        "group {group}: the entry at index {} cannot be applied by this version ({what}): run the version that the other \
         members run",
        index.0
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_consensus::{DEFAULT_GROUP, Time};
    use hadron_proto::etcdserverpb as pb;
    use pb::request_op::Request;

    use super::*;
    use crate::event::Event;
    use crate::node::tests::leading;

    /// A turn that takes one write; whatever is to be in the log is durable after it.
    fn write(node: &mut Node, (token, group): (u64, GroupId), command: &Command) -> Effects {
        let mut effects = Effects::default();
        node.step(Time(10), Event::Write { token, group, command: command.to_bytes() }, &mut effects);
        node.settle(Time(10), &mut effects);
        let sequence = effects.log_sequence;
        node.step(Time(10), Event::LogDurable { sequence }, &mut effects);
        effects
    }

    fn turn(node: &mut Node) -> Vec<u64> {
        let mut effects = Effects::default();
        node.settle(Time(10), &mut effects);
        assert_eq!(effects.fatal, None);
        effects.replies.into_iter().map(|(token, _)| token).collect()
    }

    fn put(number: usize) -> pb::PutRequest {
        pb::PutRequest { key: format!("k{number:03}").into(), ..Default::default() }
    }

    /// One tenant's deletion of very many keys kept the shard from everything else until it was through: from the other groups, and from the
    /// heartbeats, so that the node lost all that it led.
    #[test]
    fn a_large_deletion_takes_many_turns_and_others_get_theirs() {
        let mut node = leading();
        node.settle(Time(10), &mut Effects::default());
        let operation = |number| pb::RequestOp { request: Some(Request::RequestPut(put(number))) };
        let puts = pb::TxnRequest { success: (0..500).map(operation).collect(), ..Default::default() };
        write(&mut node, (1, DEFAULT_GROUP), &Command::Txn(puts));
        assert_eq!(turn(&mut node), [1]);

        node.config.limits.apply_effort = 20;
        let all = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: false };
        write(&mut node, (2, DEFAULT_GROUP), &Command::DeleteRange(all));
        assert_eq!(turn(&mut node), []);
        assert!(node.is_work_left);
        write(&mut node, (3, DEFAULT_GROUP), &Command::Put(put(1)));
        write(&mut node, (4, ROOT_GROUP), &Command::Put(put(1)));
        assert_eq!(turn(&mut node), [4], "the other group does not wait");
        let mut turns = 0;
        let answered = loop {
            let answered = turn(&mut node);
            turns += 1;
            if !answered.is_empty() {
                break answered;
            }
        };
        assert_eq!(answered, [2, 3], "in their order");
        assert!(
            (20..=30).contains(&turns),
            "{turns}: a key is looked at and changed, and a piece is not cut"
        );
        assert_eq!(node.replicas[&DEFAULT_GROUP].keyspace.len(), 1);
        assert!(!node.is_work_left);
    }
}
