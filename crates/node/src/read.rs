//! Linearizable reads: each waits for an index that a quorum vouched for after the read began, then for this replica
//! to have applied it. All reads of a turn share one question to the group.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hadron_consensus::{Event as CoreEvent, GroupId, Index, ReadOutcome, Time};

use crate::event::{Effects, Failure, Reply};
use crate::node::Node;
use crate::propose::RETRY_US;

/// The reads of one group that have not been answered.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Not asked yet, or to be asked again.
    new: Vec<u64>,
    /// Asked, by the number of the question.
    asked: HashMap<u64, Vec<u64>>,
    /// Answered by the group: waiting to be applied.
    ready: BTreeMap<Index, Vec<u64>>,
    next_batch: u64,
    /// Not before this time.
    pub(crate) retry_at: Option<Time>,
}

impl Reads {
    /// Whether reads wait to be asked again.
    pub(crate) fn retry_deadline(&self) -> Option<Time> {
        self.retry_at.filter(|_| !self.new.is_empty())
    }

    fn len(&self) -> usize {
        self.new.len() + self.asked.values().map(Vec::len).sum::<usize>()
    }

    /// Takes all of them, whatever they wait for.
    pub(crate) fn take_all(&mut self) -> BTreeSet<u64> {
        let asked = self.asked.drain().flat_map(|(_, tokens)| tokens);
        let ready = std::mem::take(&mut self.ready).into_values().flatten();
        self.new.drain(..).chain(asked).chain(ready).collect()
    }

    fn remove(&mut self, token: u64) {
        self.new.retain(|other| *other != token);
        self.asked.values_mut().for_each(|tokens| tokens.retain(|other| *other != token));
        self.ready.values_mut().for_each(|tokens| tokens.retain(|other| *other != token));
    }
}

impl Node {
    /// A client's read wants to begin.
    pub(crate) fn on_read(&mut self, token: u64, group: GroupId, effects: &mut Effects) {
        let waiting_max = self.config.limits.waiting_requests;
        let Some(replica) = self.replicas.get_mut(&group) else {
            return effects.replies.push((token, Reply::Failed(Failure::NoSuchGroup)));
        };
        if replica.quarantined {
            return effects.replies.push((token, Reply::Failed(Failure::Quarantined)));
        }
        if replica.reads.new.len() >= waiting_max && replica.reads.len() >= waiting_max {
            return effects.replies.push((token, Reply::Failed(Failure::Busy)));
        }
        replica.reads.new.push(token);
        self.touch(group);
    }

    /// Nobody waits for this read any more.
    pub(crate) fn cancel_read(&mut self, group: GroupId, token: u64) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.reads.remove(token);
        }
    }

    /// Asks the group once for all reads of this turn.
    pub(crate) fn ask_reads(&mut self, group: GroupId, effects: &mut Effects) {
        let now = self.now;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let reads = &mut replica.reads;
        if reads.new.is_empty() || reads.retry_at.is_some_and(|at| at > now) {
            return;
        }
        reads.retry_at = None;
        reads.next_batch += 1;
        let batch = reads.next_batch;
        reads.asked.insert(batch, std::mem::take(&mut reads.new));
        self.step_group(group, CoreEvent::Read { token: batch }, effects);
    }

    /// The group answered.
    pub(crate) fn on_read_outcomes(&mut self, group: GroupId, outcomes: impl Iterator<Item = ReadOutcome>) {
        let now = self.now;
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        let reads = &mut replica.reads;
        for outcome in outcomes {
            match outcome {
                ReadOutcome::Ready { token, index } => {
                    let tokens = reads.asked.remove(&token).unwrap_or_default();
                    reads.ready.entry(index).or_default().extend(tokens);
                }
                ReadOutcome::Retry { token } => {
                    reads.new.extend(reads.asked.remove(&token).unwrap_or_default());
                    reads.retry_at = Some(now.plus_micros(RETRY_US));
                }
            }
        }
        self.touch(group);
    }

    /// Answers the reads whose index is applied.
    pub(crate) fn serve_reads(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(replica) = self.replicas.get_mut(&group) else { return };
        if replica.reads.ready.is_empty() {
            return;
        }
        let applied = replica.applied();
        while let Some(entry) = replica.reads.ready.first_entry() {
            if *entry.key() > applied {
                break;
            }
            effects.replies.extend(entry.remove().into_iter().map(|token| (token, Reply::ReadReady)));
        }
    }
}
