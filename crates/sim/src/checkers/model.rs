//! The sequential specification: what one etcd without replicas, crashes or concurrency would answer.
//!
//! It keeps every version of every key, so that a get of an old revision can be answered, and it can be taken back step
//! by step, which is what a search over orders needs.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;

use crate::history::{Action, Guard, KeyValue, Response, Step, StepResult, Transaction};

/// The key and what it is afterwards, for each key that an operation changes, in key order.
pub(super) type Changes = BTreeMap<Bytes, Option<KeyValue>>;

/// The revision of an empty keyspace; its first write has the next one.
pub(super) const FIRST_REVISION: i64 = 1;

/// The state of one keyspace and all its past.
pub(super) struct Model {
    revision: i64,
    /// Per key its versions, oldest first: the revision and the key after it.
    versions: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    /// Combines the hashes of all versions, in any order.
    hash: u64,
}

impl Model {
    pub(super) fn new() -> Model {
        Model { revision: FIRST_REVISION, versions: BTreeMap::new(), hash: 0 }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// Equal for equal pasts, and practically never for others.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// What `action` would answer and change now. `None` for a [`Action::StaleGet`], which has many right answers.
    pub(super) fn evaluate(&self, action: &Action) -> Option<(Response, Changes)> {
        let mut changes = Changes::new();
        let (succeeded, results) = match action {
            Action::Transaction(transaction) => self.transaction(transaction, &mut changes),
            Action::GetAt(key, revision) => {
                (true, vec![StepResult::Got(self.get_at(key, *revision).cloned())])
            }
            Action::GetRange(from, to) => (true, vec![StepResult::Found(self.living(from, to, &changes))]),
            Action::Revoke(lease) => {
                self.remove_attached(*lease, &mut changes);
                (true, Vec::new())
            }
            Action::Compact(_) => (true, Vec::new()),
            Action::StaleGet(_) => return None,
        };
        let revision = self.revision + i64::from(!changes.is_empty());
        Some((Response { revision, succeeded, results }, changes))
    }

    /// Whether `response` is right for a get of `key` that may see any state up to now.
    pub(super) fn explains_stale_get(&self, key: &Bytes, response: &Response) -> bool {
        response.revision <= self.revision
            && response.results == [StepResult::Got(self.get_at(key, response.revision).cloned())]
    }

    /// Carries `changes` out under the next revision.
    pub(super) fn commit(&mut self, changes: &Changes) {
        self.revision += 1;
        for (key, after) in changes {
            self.hash ^= version_hash(self.revision, key, after);
            self.versions.entry(key.clone()).or_default().push((self.revision, after.clone()));
        }
    }

    /// Takes the last [`Model::commit`] back.
    pub(super) fn take_back(&mut self, changes: &Changes) {
        for (key, after) in changes {
            self.hash ^= version_hash(self.revision, key, after);
            let newest = self.versions.get_mut(key).and_then(Vec::pop);
            assert_eq!(newest.map(|(revision, _)| revision), Some(self.revision), "not the last commit");
        }
        self.revision -= 1;
    }

    fn get_at(&self, key: &Bytes, revision: i64) -> Option<&KeyValue> {
        let versions = self.versions.get(key)?;
        let count = versions.partition_point(|(written, _)| *written <= revision);
        versions.get(count.checked_sub(1)?)?.1.as_ref()
    }

    fn transaction(&self, transaction: &Transaction, changes: &mut Changes) -> (bool, Vec<StepResult>) {
        let succeeded = transaction.guards.iter().all(|guard| self.holds(guard));
        let steps = if succeeded { &transaction.then } else { &transaction.otherwise };
        (succeeded, steps.iter().map(|step| self.step(step, changes)).collect())
    }

    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::ModRevision(key, expected) => {
                self.get_at(key, self.revision).map_or(0, |found| found.mod_revision) == *expected
            }
            Guard::CreateRevision(key, expected) => {
                self.get_at(key, self.revision).map_or(0, |found| found.create_revision) == *expected
            }
            Guard::Value(key, expected) => {
                self.get_at(key, self.revision).is_some_and(|found| found.value == *expected)
            }
        }
    }

    fn step(&self, step: &Step, changes: &mut Changes) -> StepResult {
        match step {
            Step::Get(key) => StepResult::Got(self.current(key, changes).cloned()),
            Step::Put(key, value, lease) => {
                let revision = self.revision + 1;
                let before = self.current(key, changes);
                let after = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: before.map_or(revision, |before| before.create_revision),
                    mod_revision: revision,
                    version: before.map_or(1, |before| before.version + 1),
                    lease: *lease,
                };
                changes.insert(key.clone(), Some(after));
                StepResult::Put
            }
            Step::Delete(key) => {
                let existed = self.current(key, changes).is_some();
                if existed {
                    changes.insert(key.clone(), None);
                }
                StepResult::Deleted(i64::from(existed))
            }
            Step::DeleteRange(from, to) => {
                let removed = self.living(from, to, changes);
                let count = removed.len() as i64;
                changes.extend(removed.into_iter().map(|found| (found.key, None)));
                StepResult::Deleted(count)
            }
        }
    }

    /// The keys from one to before another, in order.
    fn living(&self, from: &Bytes, to: &Bytes, changes: &Changes) -> Vec<KeyValue> {
        let range = || from.clone()..to.clone();
        let known = self.versions.range(range()).map(|(key, _)| key);
        let keys: BTreeSet<&Bytes> = known.chain(changes.range(range()).map(|(key, _)| key)).collect();
        keys.into_iter().filter_map(|key| self.current(key, changes).cloned()).collect()
    }

    fn current<'a>(&'a self, key: &Bytes, changes: &'a Changes) -> Option<&'a KeyValue> {
        match changes.get(key) {
            Some(after) => after.as_ref(),
            None => self.get_at(key, self.revision),
        }
    }

    fn remove_attached(&self, lease: i64, changes: &mut Changes) {
        for (key, versions) in &self.versions {
            let attached = versions.last().and_then(|(_, after)| after.as_ref());
            if attached.is_some_and(|found| found.lease == lease) {
                changes.insert(key.clone(), None);
            }
        }
    }
}

fn version_hash(revision: i64, key: &Bytes, after: &Option<KeyValue>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (revision, key, after).hash(&mut hasher);
    hasher.finish()
}
