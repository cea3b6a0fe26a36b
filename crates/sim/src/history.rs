//! What clients saw: the language that the checkers read.
//!
//! It is independent of how the operations were carried out, so that the simulated world and the tests over real
//! processes record into the same types. Times are microseconds on one clock shared by all clients of a run.
//!
//! Left out: ranges over several keys inside of transactions, and nested ones, which other tests cover.

use std::fmt;

use bytes::Bytes;

use crate::checkers::GUARANTEES;

mod words;

pub(crate) use words::At;

/// A key with its metadata, as a response or an event showed it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The revision that created it.
    pub create_revision: i64,
    /// The revision that wrote it last.
    pub mod_revision: i64,
    /// Writes since it was created; the first is 1.
    pub version: i64,
    /// The lease it is attached to, or 0.
    pub lease: i64,
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// The key's last revision is this; 0 while the key does not exist.
    ModRevision(Bytes, i64),
    /// The key was created at this revision; 0 while the key does not exist.
    CreateRevision(Bytes, i64),
    /// The key exists and has this value.
    Value(Bytes, Bytes),
}

/// One request inside a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Read a key.
    Get(Bytes),
    /// Write a key: key, value and lease (0 for none).
    Put(Bytes, Bytes, i64),
    /// Remove a key.
    Delete(Bytes),
    /// Remove all keys from the first to before the second.
    DeleteRange(Bytes, Bytes),
}

/// What a [`Step`] answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// The key, or that it does not exist.
    Got(Option<KeyValue>),
    /// It was written.
    Put,
    /// All keys of a range, in order.
    Found(Vec<KeyValue>),
    /// The number of keys that were removed.
    Deleted(i64),
}

impl StepResult {
    /// The keys that it shows.
    pub fn shown(&self) -> &[KeyValue] {
        match self {
            StepResult::Got(found) => found.as_slice(),
            StepResult::Found(found) => found,
            StepResult::Put | StepResult::Deleted(_) => &[],
        }
    }
}

/// A transaction. A plain get, put or delete is one without guards and with one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// All must hold for `then` to be carried out.
    pub guards: Vec<Guard>,
    /// Carried out, in order and as one, when the guards hold.
    pub then: Vec<Step>,
    /// Carried out otherwise.
    pub otherwise: Vec<Step>,
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Linearizable, whether it reads or writes.
    Transaction(Transaction),
    /// A serializable get: the state of any past revision will do, and the response says which.
    StaleGet(Bytes),
    /// A linearizable get of a key as it was at a revision.
    GetAt(Bytes, i64),
    /// A linearizable get of all keys from the first to before the second.
    GetRange(Bytes, Bytes),
    /// Revoke a lease and remove its keys. A lease's expiry is recorded as a revocation with [`Outcome::Unknown`] that
    /// was invoked when the lease was granted: it may happen at any time after, or never. Its timing is judged by
    /// [`crate::checkers::lease_promise`].
    Revoke(i64),
    /// Forget what was superseded by this revision.
    Compact(i64),
}

impl Action {
    /// Whether any replica may answer it by itself, however far behind.
    pub fn is_stale_read(&self) -> bool {
        matches!(self, Action::StaleGet(_))
    }

    /// A get.
    pub fn get(key: impl Into<Bytes>) -> Action {
        Action::once(Step::Get(key.into()))
    }

    /// A put without a lease.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Action {
        Action::once(Step::Put(key.into(), value.into(), 0))
    }

    /// A delete.
    pub fn delete(key: impl Into<Bytes>) -> Action {
        Action::once(Step::Delete(key.into()))
    }

    /// A delete of all keys from one to before another.
    pub fn delete_range(from: impl Into<Bytes>, to: impl Into<Bytes>) -> Action {
        Action::once(Step::DeleteRange(from.into(), to.into()))
    }

    /// A put that is carried out only while the key's last revision is `expected`; otherwise the key is read.
    pub fn compare_and_set(key: impl Into<Bytes>, expected: i64, value: impl Into<Bytes>) -> Action {
        let key = key.into();
        Action::Transaction(Transaction {
            guards: vec![Guard::ModRevision(key.clone(), expected)],
            then: vec![Step::Put(key.clone(), value.into(), 0)],
            otherwise: vec![Step::Get(key)],
        })
    }

    fn once(step: Step) -> Action {
        Action::Transaction(Transaction { then: vec![step], ..Transaction::default() })
    }
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The revision in the response's header.
    pub revision: i64,
    /// Whether the guards held; true where there were none.
    pub succeeded: bool,
    /// One result for each step that was carried out; empty for a revocation or a compaction.
    pub results: Vec<StepResult>,
}

impl Response {
    /// Whether the response says that the operation changed something, and so has a revision of its own.
    pub fn wrote(&self) -> bool {
        self.results.iter().any(|result| match result {
            StepResult::Got(_) | StepResult::Found(_) => false,
            StepResult::Put => true,
            StepResult::Deleted(count) => *count > 0,
        })
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was carried out between its invocation and its return.
    Done(Response),
    /// It certainly was not, and never will be.
    Failed,
    /// It was not carried out, because the revision that it names has been compacted.
    Compacted,
    /// It may have been carried out at any time after its invocation, may still be, or never.
    Unknown,
}

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked.
    pub client: u64,
    /// Of which keyspace: the number of its group.
    pub keyspace: u64,
    /// Which node was asked.
    pub node: u64,
    /// Which of the replicas that the node has had answered, if that is known.
    pub replica: Option<u64>,
    /// When it was asked.
    pub invoked: u64,
    /// When the outcome was known to the client. Without meaning for [`Outcome::Unknown`].
    pub returned: u64,
    /// What was asked.
    pub action: Action,
    /// How it ended.
    pub outcome: Outcome,
}

impl Operation {
    /// The response, if there was one.
    pub fn response(&self) -> Option<&Response> {
        match &self.outcome {
            Outcome::Done(response) => Some(response),
            Outcome::Failed | Outcome::Compacted | Outcome::Unknown => None,
        }
    }

    /// The same for somebody who knows what happened up to a revision and nothing of what came later.
    pub fn known_up_to(&self, revision: i64) -> Operation {
        let is_later = self.response().is_some_and(|response| response.revision > revision);
        let outcome = if is_later { Outcome::Unknown } else { self.outcome.clone() };
        Operation { outcome, ..self.clone() }
    }

    /// The steps that were carried out, with their results, as far as they are known.
    pub fn done_steps(&self) -> impl Iterator<Item = (&Step, &StepResult)> {
        let pair = match (&self.action, &self.outcome) {
            (Action::Transaction(transaction), Outcome::Done(response)) => {
                let steps = if response.succeeded { &transaction.then } else { &transaction.otherwise };
                (steps.as_slice(), response.results.as_slice())
            }
            _ => (&[][..], &[][..]),
        };
        pair.0.iter().zip(pair.1)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}..", At(self.invoked))?;
        if self.outcome != Outcome::Unknown {
            write!(f, "{}", At(self.returned))?;
        }
        write!(f, "] client {} of group {} at n{}: ", self.client, self.keyspace, self.node)?;
        write!(f, "{} -> {}", self.action, self.outcome)
    }
}

/// One change of one key, as the complete history of the keyspace (or a watcher) shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// The revision that made the change.
    pub revision: i64,
    /// The key.
    pub key: Bytes,
    /// The key afterwards; `None` when the change removed it.
    pub after: Option<KeyValue>,
}

/// A guarantee that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The guarantee's name: that of its checker.
    pub guarantee: &'static str,
    /// What was found.
    pub found: String,
}

impl Violation {
    pub(crate) fn new(guarantee: &'static str, found: impl Into<String>) -> Violation {
        debug_assert!(GUARANTEES.contains(&guarantee), "{guarantee} is not in the list");
        Violation { guarantee, found: found.into() }
    }

    /// The moments that it names, in microseconds and in order: of operations, leases and held locks.
    pub fn moments(&self) -> Vec<u64> {
        let words = self.found.split(|letter: char| !letter.is_ascii_digit() && letter != '.');
        let words = words.flat_map(|word| word.split("..")).map(|word| word.trim_matches('.'));
        let mut moments: Vec<u64> = words.filter_map(At::parse).map(|at| at.0).collect();
        moments.sort_unstable();
        moments.dedup();
        moments
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not hold: {}", self.guarantee, self.found)
    }
}

impl std::error::Error for Violation {}
