//! Hand-made lies, and honest histories of many clients.

#![allow(clippy::unwrap_used)]

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::history::{KeyValue, Response, Step, StepResult};

fn operation(invoked: u64, returned: u64, action: Action, outcome: Outcome) -> Operation {
    Operation { client: invoked, keyspace: 1, node: 1, replica: None, invoked, returned, action, outcome }
}

fn done(revision: i64, results: Vec<StepResult>) -> Outcome {
    Outcome::Done(Response { revision, succeeded: true, results })
}

fn put(invoked: u64, returned: u64, key: &'static str, value: &'static str, revision: i64) -> Operation {
    operation(invoked, returned, Action::put(key, value), done(revision, vec![StepResult::Put]))
}

fn found(key: &'static str, value: &'static str, create: i64, modified: i64, version: i64) -> StepResult {
    StepResult::Got(Some(KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision: create,
        mod_revision: modified,
        version,
        lease: 0,
    }))
}

#[test]
fn concurrent_operations_may_take_any_order() {
    let history = [
        put(0, 100, "a", "1", 3),
        put(0, 100, "a", "2", 2),
        operation(50, 60, Action::get("a"), done(3, vec![found("a", "1", 2, 3, 2)])),
        operation(50, 60, Action::get("a"), done(1, vec![StepResult::Got(None)])),
    ];
    check(&history, &[]).unwrap();
}

#[test]
fn a_stale_read_is_caught() {
    let history = [
        put(0, 10, "a", "1", 2),
        put(20, 30, "a", "2", 3),
        operation(40, 50, Action::get("a"), done(2, vec![found("a", "1", 2, 2, 1)])),
    ];
    check(&history, &[]).unwrap_err();
    let mut serializable = history.to_vec();
    serializable[2].action = Action::StaleGet("a".into());
    check(&serializable, &[]).unwrap();
}

#[test]
fn a_read_of_what_was_never_written_is_caught() {
    let history = [
        put(0, 10, "a", "1", 2),
        operation(40, 50, Action::get("a"), done(2, vec![found("a", "9", 2, 2, 1)])),
    ];
    check(&history, &[]).unwrap_err();
}

#[test]
fn a_read_from_the_future_is_caught() {
    let history = [
        operation(0, 10, Action::StaleGet("a".into()), done(2, vec![found("a", "1", 2, 2, 1)])),
        put(20, 30, "a", "1", 2),
    ];
    check(&history, &[]).unwrap_err();
}

#[test]
fn revisions_against_real_time_are_caught() {
    check(&[put(0, 10, "a", "1", 3), put(20, 30, "b", "1", 2)], &[]).unwrap_err();
    check(&[put(0, 10, "a", "1", 2), put(0, 10, "b", "1", 2)], &[]).unwrap_err();
    check(&[put(0, 10, "a", "1", 2), put(20, 30, "b", "1", 4)], &[]).unwrap_err();
}

#[test]
fn a_lost_write_is_caught() {
    let history =
        [put(0, 10, "a", "1", 2), operation(20, 30, Action::get("a"), done(2, vec![StepResult::Got(None)]))];
    check(&history, &[]).unwrap_err();
}

#[test]
fn an_unknown_write_may_happen_late_or_never() {
    let unknown = operation(0, 5, Action::put("a", "u"), Outcome::Unknown);
    let absent = operation(10, 20, Action::get("a"), done(1, vec![StepResult::Got(None)]));
    let present = operation(30, 40, Action::get("a"), done(2, vec![found("a", "u", 2, 2, 1)]));
    check(&[unknown.clone(), absent.clone()], &[]).unwrap();
    check(&[unknown.clone(), absent.clone(), present.clone()], &[]).unwrap();
    let absent_again = operation(50, 60, Action::get("a"), done(2, vec![StepResult::Got(None)]));
    check(&[unknown.clone(), absent, present.clone(), absent_again], &[]).unwrap_err();
    let failed = Operation { outcome: Outcome::Failed, ..unknown };
    check(&[failed, present], &[]).unwrap_err();
}

#[test]
fn an_unknown_write_happens_once() {
    let history = [
        operation(0, 5, Action::put("a", "u"), Outcome::Unknown),
        operation(10, 20, Action::get("a"), done(2, vec![found("a", "u", 2, 2, 1)])),
        put(30, 40, "a", "1", 3),
        operation(50, 60, Action::get("a"), done(4, vec![found("a", "u", 2, 4, 3)])),
    ];
    check(&history[..3], &[]).unwrap();
    check(&history, &[]).unwrap_err();
}

#[test]
fn two_winners_of_one_compare_and_set_are_caught() {
    let first = operation(0, 10, Action::compare_and_set("a", 0, "1"), done(2, vec![StepResult::Put]));
    let second = operation(0, 10, Action::compare_and_set("a", 0, "2"), done(3, vec![StepResult::Put]));
    check(&[first.clone(), second.clone()], &[]).unwrap_err();
    let loser = Response { revision: 2, succeeded: false, results: vec![found("a", "1", 2, 2, 1)] };
    check(&[first, Operation { outcome: Outcome::Done(loser), ..second }], &[]).unwrap();
}

#[test]
fn an_expiry_removes_the_keys_of_its_lease() {
    let leased = Action::Transaction(crate::history::Transaction {
        then: vec![Step::Put("a".into(), "1".into(), 7)],
        ..Default::default()
    });
    let history = [
        operation(0, 0, Action::Revoke(7), Outcome::Unknown),
        operation(0, 10, leased, done(2, vec![StepResult::Put])),
        operation(20, 30, Action::get("a"), done(3, vec![StepResult::Got(None)])),
    ];
    check(&history, &[]).unwrap();
    check(&history[1..], &[]).unwrap_err();
}

#[test]
fn the_complete_history_decides_between_unknown_writes() {
    let mut history: Vec<Operation> = Vec::new();
    let mut events = Vec::new();
    for number in 0..40_i64 {
        let value = Bytes::from(format!("v{number}"));
        history.push(operation(0, 0, Action::put("a", value.clone()), Outcome::Unknown));
        let revision = 2 + 39 - number;
        let after = KeyValue {
            key: "a".into(),
            value,
            create_revision: 2,
            mod_revision: revision,
            version: revision - 1,
            lease: 0,
        };
        events.push(Event { revision, key: "a".into(), after: Some(after) });
    }
    history.push(operation(10, 20, Action::get("a"), done(41, vec![found("a", "v0", 2, 41, 40)])));
    check(&history, &events).unwrap();
    history.push(operation(30, 40, Action::get("b"), done(40, vec![StepResult::Got(None)])));
    check(&history, &events).unwrap_err();
}

/// Honest histories of many clients: each operation takes effect at a point between its invocation and its return,
/// some lose their answer. Then one response is bent.
#[test]
fn a_range_that_was_deleted_in_part_is_caught() {
    let whole = || operation(40, 50, Action::delete_range("a", "c"), done(4, vec![StepResult::Deleted(2)]));
    let shown = |results: &[&StepResult]| {
        let pairs = results.iter().flat_map(|result| result.shown()).cloned().collect();
        StepResult::Found(pairs)
    };
    let (a, b) = (found("a", "1", 2, 2, 1), found("b", "2", 3, 3, 1));
    let read = |invoked, revision, results: &[&StepResult]| {
        let action = Action::GetRange("a".into(), "c".into());
        operation(invoked, invoked + 5, action, done(revision, vec![shown(results)]))
    };
    let history = |reads: &[Operation]| {
        let mut history = vec![put(0, 10, "a", "1", 2), put(20, 30, "b", "2", 3), whole()];
        history.extend_from_slice(reads);
        history
    };
    check(&history(&[read(41, 3, &[&a, &b]), read(45, 4, &[])]), &[]).unwrap();
    check(&history(&[read(41, 3, &[&b])]), &[]).unwrap_err();
    check(&history(&[read(41, 4, &[&b])]), &[]).unwrap_err();
    check(&history(&[read(60, 4, &[&b])]), &[]).unwrap_err();
    let half = operation(40, 50, Action::delete_range("a", "c"), done(4, vec![StepResult::Deleted(1)]));
    check(&[put(0, 10, "a", "1", 2), put(20, 30, "b", "2", 3), half], &[]).unwrap_err();
}

#[test]
fn honest_histories_pass_and_bent_ones_do_not() {
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut history = honest(&mut rng);
        check(&history, &[]).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        bend(&mut rng, &mut history);
        check(&history, &[]).expect_err(&format!("seed {seed}: not caught"));
    }
}

/// Answers operations one after the other like one etcd without replicas.
struct Reference(Model);

impl Reference {
    /// An empty keyspace.
    fn new() -> Reference {
        Reference(Model::new())
    }

    /// Carries `action` out and answers. A stale get sees the newest state.
    fn apply(&mut self, action: &Action) -> Response {
        let fresh;
        let action = match action {
            Action::StaleGet(key) => {
                fresh = Action::get(key.clone());
                &fresh
            }
            other => other,
        };
        let (response, changes) = self.0.evaluate(action).expect("every other action has one answer");
        if !changes.is_empty() {
            self.0.commit(&changes);
        }
        response
    }

    /// The newest revision.
    fn revision(&self) -> i64 {
        self.0.revision()
    }
}

fn honest(rng: &mut SmallRng) -> Vec<Operation> {
    let mut reference = Reference::new();
    let mut history = Vec::new();
    for number in 0..600_u64 {
        let key = Bytes::from(format!("k{}", rng.random_range(0..4)));
        let action = match rng.random_range(0..10) {
            0 => Action::get(key),
            1 => Action::StaleGet(key),
            2 => Action::delete(key),
            3 => Action::GetRange(key, "l".into()),
            4 if rng.random_bool(0.3) => Action::delete_range(key, "l"),
            5 | 6 => {
                Action::compare_and_set(key, rng.random_range(0..reference.revision()), format!("v{number}"))
            }
            _ => Action::put(key, format!("v{number}")),
        };
        let at = 1_000 + number * 10;
        let happens = rng.random_bool(0.98);
        let outcome = match (happens, rng.random_bool(0.04)) {
            (false, lost) => {
                if lost {
                    Outcome::Unknown
                } else {
                    Outcome::Failed
                }
            }
            (true, lost) => {
                let response = reference.apply(&action);
                if lost { Outcome::Unknown } else { Outcome::Done(response) }
            }
        };
        let (before, after) = (rng.random_range(0..80), rng.random_range(0..80));
        history.push(operation(at - before, at + after, action, outcome));
    }
    history
}

/// Makes the answer of one get, of those that found something, older by one version.
fn bend(rng: &mut SmallRng, history: &mut [Operation]) {
    let start = rng.random_range(0..300);
    for operation in &mut history[start..] {
        let Outcome::Done(response) = &mut operation.outcome else { continue };
        if let Some(StepResult::Got(Some(found))) = response.results.first_mut() {
            found.version += 1;
            return;
        }
    }
}
