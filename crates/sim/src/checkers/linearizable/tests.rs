//! Hand-made lies, and honest histories of many clients.

#![allow(clippy::unwrap_used)]

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::history::{KeyValue, Response, Step, StepResult, Transaction};

/// As the checker's own, and every history here is small enough to be decided.
fn check(operations: &[Operation], events: &[Event]) -> Result<(), Violation> {
    super::check(operations, events).map(|verdict| assert_eq!(verdict, Verdict::Explained))
}

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
    let leased = Action::Transaction(Transaction {
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

/// Histories of many clients: each operation takes effect at a point between its invocation and its return,
/// some lose their answer. Then one response is bent.
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

/// A group without a quorum left thousands of operations behind whose outcome nobody knew. Each was tried at each step of the search, which took
/// as good as for ever.
#[test]
fn very_many_unknown_operations_are_soon_explained() {
    const COUNT: u64 = 20_000;
    let mut reference = Reference::new();
    let mut history = Vec::new();
    for number in 0..COUNT {
        let lost = Action::put("a", format!("lost {number}"));
        history.push(operation(number, 0, lost, Outcome::Unknown));
    }
    for number in 0..COUNT {
        let at = COUNT + 10 * number;
        let late = Action::put("a", format!("late {number}"));
        reference.apply(&late);
        history.push(operation(at, 0, late, Outcome::Unknown));
        let next = Action::put("a", format!("v{number}"));
        let response = reference.apply(&next);
        history.push(operation(at, at + 9, next, Outcome::Done(response)));
    }
    check(&history, &reference.events).unwrap();
    let read = operation(
        20 * COUNT,
        21 * COUNT,
        Action::get("a"),
        done(2 * COUNT as i64, vec![StepResult::Got(None)]),
    );
    history.push(read);
    check(&history, &reference.events).unwrap_err();
}

#[test]
fn a_search_that_gives_up_has_found_nothing() {
    let history: Vec<Operation> = (0..20).map(|number| put(0, 100, "a", "v", 2 + number)).collect();
    assert_eq!(check_within(&history, &[], 5), Ok(Verdict::Undecided));
    assert_eq!(check_within(&history, &[], 50), Ok(Verdict::Explained));
}

/// Small histories, honest and bent: what the search leaves out changes no verdict.
#[test]
fn the_search_finds_what_trying_all_orders_finds() {
    let mut verdicts = [0; 2];
    for seed in 0..20_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (history, events) = small(&mut rng);
        let naive = claims(&history).is_ok()
            && facts(&history, &events).is_ok_and(|facts| {
                let mut left: Vec<usize> = (0..history.len()).collect();
                left.retain(|number| !matches!(history[*number].outcome, Outcome::Failed));
                explains(&history, &facts, &super::changes(&events), &mut left, &mut Model::new())
            });
        verdicts[usize::from(naive)] += 1;
        let found = check(&history, &events);
        let lines = || history.iter().map(|operation| format!("\n{operation}")).collect::<String>();
        assert_eq!(found.is_ok(), naive, "seed {seed}: {found:?} of{}\n{events:?}", lines());
    }
    assert!(verdicts.iter().all(|count| *count > 2_000), "{verdicts:?}");
}

/// Whether some order of those that are left, or of some of those with an unknown outcome and all others, explains every response.
fn explains(
    history: &[Operation],
    facts: &Facts,
    complete: &BTreeMap<i64, Changes>,
    left: &mut Vec<usize>,
    model: &mut Model,
) -> bool {
    let returns = left.iter().filter(|number| history[**number].response().is_some());
    let Some(earliest_return) = returns.map(|number| history[*number].returned).min() else { return true };
    for place in 0..left.len() {
        let number = left[place];
        let operation = &history[number];
        if operation.invoked > earliest_return {
            continue;
        }
        let changes = match (model.evaluate(&operation.action), &operation.action, operation.response()) {
            (None, Action::StaleGet(key), Some(response)) if model.explains_stale_get(key, response) => {
                Changes::new()
            }
            (Some((expected, changes)), _, response) if response.is_none_or(|found| *found == expected) => {
                changes
            }
            _ => continue,
        };
        let known = facts.get(&(model.revision() + 1));
        let fits = |(key, known): (&Bytes, &Option<Bytes>)| {
            changes.get(key).is_some_and(|after| after.as_ref().map(|after| &after.value) == known.as_ref())
        };
        let all = complete.get(&(model.revision() + 1));
        let may_write =
            known.is_none_or(|known| known.iter().all(fits)) && all.is_none_or(|all| *all == changes);
        if !changes.is_empty() && !may_write {
            continue;
        }
        left.remove(place);
        if !changes.is_empty() {
            model.commit(&changes);
        }
        let explained = explains(history, facts, complete, left, model);
        if !changes.is_empty() {
            model.take_back(&changes);
        }
        left.insert(place, number);
        if explained {
            return true;
        }
    }
    false
}

/// Up to seven operations, of which many lose their answer and most write one of few values to one of two keys. Half of them are bent. With
/// them all events, those up to a revision, or none.
fn small(rng: &mut SmallRng) -> (Vec<Operation>, Vec<Event>) {
    let mut reference = Reference::new();
    let mut history = Vec::new();
    for number in 0..rng.random_range(2..=7) {
        let action = small_action(rng, reference.revision());
        let at = 100 + 10 * number;
        let outcome = match rng.random_range(0..10) {
            0 => Outcome::Failed,
            1 => Outcome::Unknown,
            2..=4 if !action.is_stale_read() => {
                reference.apply(&action);
                Outcome::Unknown
            }
            _ => Outcome::Done(reference.apply(&action)),
        };
        let (before, after) = (rng.random_range(0..40), rng.random_range(0..40));
        history.push(operation(at - before, at + after, action, outcome));
    }
    let known = rng.random_range(0..=reference.revision()).max(rng.random_range(0..=reference.revision()));
    let mut events = reference.events;
    events.retain(|event| event.revision <= known);
    if rng.random_bool(0.6) {
        bend_small(rng, &mut history);
    }
    (history, events)
}

fn small_action(rng: &mut SmallRng, revision: i64) -> Action {
    let key = |rng: &mut SmallRng| Bytes::from(*["a", "b"].get(rng.random_range(0..2)).unwrap_or(&"a"));
    let value = |rng: &mut SmallRng| Bytes::from(format!("{}", rng.random_range(0..3)));
    let (key, value) = (key(rng), value(rng));
    match rng.random_range(0..12) {
        0 => Action::get(key),
        1 => Action::StaleGet(key),
        2 => Action::GetRange("a".into(), "c".into()),
        3 => Action::GetAt(key, rng.random_range(1..=revision)),
        4 => Action::delete(key),
        5 => Action::delete_range("a", "c"),
        6 => Action::Revoke(7),
        7 => Action::compare_and_set(key, rng.random_range(0..=revision), value),
        8 => Action::Transaction(Transaction {
            guards: vec![crate::history::Guard::Value(key.clone(), value)],
            then: vec![Step::Delete(key)],
            otherwise: vec![Step::Put("a".into(), "0".into(), 0), Step::Put("b".into(), "1".into(), 7)],
        }),
        _ => Action::Transaction(Transaction {
            then: vec![Step::Put(key, value, 7 * i64::from(rng.random_bool(0.3)))],
            ..Transaction::default()
        }),
    }
}

/// Something about one operation is not so.
fn bend_small(rng: &mut SmallRng, history: &mut Vec<Operation>) {
    let at = rng.random_range(0..history.len());
    let bent = &mut history[at];
    match (rng.random_range(0..4), &mut bent.outcome) {
        (0, _) => drop(history.remove(at)),
        (1, Outcome::Done(response)) => response.revision += rng.random_range(-1..=1),
        (2, Outcome::Done(response)) => match response.results.first_mut() {
            Some(StepResult::Got(Some(found))) => found.value = "0".into(),
            Some(StepResult::Deleted(count)) => *count = 1 - *count,
            Some(StepResult::Found(found)) => drop(found.pop()),
            _ => response.revision -= 1,
        },
        _ => bent.returned = bent.invoked,
    }
}

/// Answers operations one after the other like one etcd without replicas.
struct Reference {
    model: Model,
    /// All that happened.
    events: Vec<Event>,
}

impl Reference {
    /// An empty keyspace.
    fn new() -> Reference {
        Reference { model: Model::new(), events: Vec::new() }
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
        let (response, changes) = self.model.evaluate(action).expect("every other action has one answer");
        if !changes.is_empty() {
            self.model.commit(&changes);
        }
        let revision = self.model.revision();
        self.events.extend(changes.into_iter().map(|(key, after)| Event { revision, key, after }));
        response
    }

    /// The newest revision.
    fn revision(&self) -> i64 {
        self.model.revision()
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
