//! `durable_ack`: an acknowledged write is in the history for good, at its revision; a refused one is not in it; and
//! nothing happens twice.
//!
//! Values must be unique over the whole run, so that an event names the operation that wrote it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{Action, Event, Operation, Outcome, Step, StepResult, Violation};

const GUARANTEE: &str = "durable_ack";

/// Checks `operations` against `events`, the complete history of the keyspace, read after the run.
pub fn check(operations: &[Operation], events: &[Event]) -> Result<(), Violation> {
    let by_place = index_by_place(events)?;
    operations.iter().try_for_each(|operation| acknowledged_is_there(operation, &by_place))?;
    events_have_one_cause(operations, events)
}

/// The event at each revision and key. Two at one place would be a write that happened twice.
type ByPlace<'a> = BTreeMap<(i64, &'a Bytes), &'a Event>;

fn index_by_place(events: &[Event]) -> Result<ByPlace<'_>, Violation> {
    let mut by_place = ByPlace::new();
    for event in events {
        if by_place.insert((event.revision, &event.key), event).is_some() {
            return Err(Violation::new(GUARANTEE, format!("twice in the history: {event:?}")));
        }
    }
    Ok(by_place)
}

fn acknowledged_is_there(operation: &Operation, by_place: &ByPlace<'_>) -> Result<(), Violation> {
    let Some(response) = operation.response() else { return Ok(()) };
    for (step, result) in operation.done_steps() {
        let (key, written) = match (step, result) {
            (Step::Put(key, value, _), StepResult::Put) => (key, Some(value)),
            (Step::Delete(key), StepResult::Deleted(1..)) => (key, None),
            (Step::DeleteRange(from, to), StepResult::Deleted(count)) => {
                removed_are_there(operation, by_place, (response.revision, from, to), *count)?;
                continue;
            }
            _ => continue,
        };
        let event = by_place.get(&(response.revision, key));
        let found = event.map(|event| event.after.as_ref().map(|after| &after.value));
        if found != Some(written) {
            let found = format!("lost: {operation}\nin its place: {event:?}");
            return Err(Violation::new(GUARANTEE, found));
        }
    }
    Ok(())
}

/// As many keys of a range were removed at a revision as the answer says.
fn removed_are_there(
    operation: &Operation,
    by_place: &ByPlace<'_>,
    (revision, from, to): (i64, &Bytes, &Bytes),
    count: i64,
) -> Result<(), Violation> {
    let there = by_place.range((revision, from)..(revision, to));
    let removed = there.filter(|(_, event)| event.after.is_none()).count();
    // Where nothing was removed the revision is another's.
    if count > 0 && removed as i64 != count {
        let found = format!("lost: {operation}\nof which {removed} are in their place");
        return Err(Violation::new(GUARANTEE, found));
    }
    Ok(())
}

fn events_have_one_cause(operations: &[Operation], events: &[Event]) -> Result<(), Violation> {
    let mut causes: BTreeMap<(&Bytes, &Bytes), &Operation> = BTreeMap::new();
    for operation in operations {
        for (key, value) in puts(&operation.action) {
            if let Some(other) = causes.insert((key, value), operation) {
                let found = format!("the workload repeats a value: {operation} and {other}");
                return Err(Violation::new(GUARANTEE, found));
            }
        }
    }
    let mut written: BTreeMap<(&Bytes, &Bytes), i64> = BTreeMap::new();
    for event in events {
        let Some(after) = &event.after else { continue };
        let put = (&event.key, &after.value);
        match causes.get(&put) {
            None => return Err(Violation::new(GUARANTEE, format!("nobody asked for {event:?}"))),
            Some(cause) if cause.outcome == Outcome::Failed => {
                let found = format!("it failed and yet it happened: {cause}\nas {event:?}");
                return Err(Violation::new(GUARANTEE, found));
            }
            Some(cause) => {
                if let Some(first) = written.insert(put, event.revision) {
                    let found = format!("happened at revision {first} and at {}: {cause}", event.revision);
                    return Err(Violation::new(GUARANTEE, found));
                }
            }
        }
    }
    Ok(())
}

/// The puts that an action may carry out.
fn puts(action: &Action) -> impl Iterator<Item = (&Bytes, &Bytes)> {
    let steps = match action {
        Action::Transaction(transaction) => [transaction.then.as_slice(), transaction.otherwise.as_slice()],
        _ => [&[][..], &[][..]],
    };
    steps.into_iter().flatten().filter_map(|step| match step {
        Step::Put(key, value, _) => Some((key, value)),
        Step::Get(_) | Step::Delete(_) | Step::DeleteRange(..) => None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::history::{KeyValue, Response};

    fn put(value: &'static str, outcome: Outcome) -> Operation {
        Operation {
            client: 1,
            keyspace: 1,
            node: 1,
            replica: None,
            invoked: 0,
            returned: 1,
            action: Action::put("a", value),
            outcome,
        }
    }

    fn done(revision: i64) -> Outcome {
        Outcome::Done(Response { revision, succeeded: true, results: vec![StepResult::Put] })
    }

    fn event(revision: i64, value: &'static str) -> Event {
        let after = KeyValue {
            key: "a".into(),
            value: value.into(),
            create_revision: 2,
            mod_revision: revision,
            version: revision - 1,
            lease: 0,
        };
        Event { revision, key: "a".into(), after: Some(after) }
    }

    #[test]
    fn acknowledged_writes_and_some_unknown_ones_are_there() {
        let operations = [
            put("1", done(2)),
            put("2", Outcome::Unknown),
            put("3", Outcome::Unknown),
            put("4", Outcome::Failed),
        ];
        check(&operations, &[event(2, "1"), event(3, "3")]).unwrap();
    }

    #[test]
    fn a_lost_write_is_caught() {
        check(&[put("1", done(2))], &[]).unwrap_err();
        check(&[put("1", done(3))], &[event(2, "1")]).unwrap_err();
        check(&[put("1", done(2)), put("2", done(2))], &[event(2, "1")]).unwrap_err();
    }

    #[test]
    fn a_lost_removal_is_caught() {
        let outcome =
            Outcome::Done(Response { revision: 3, succeeded: true, results: vec![StepResult::Deleted(1)] });
        let delete = Operation { action: Action::delete("a"), ..put("", outcome) };
        let gone = Event { revision: 3, key: "a".into(), after: None };
        check(&[put("1", done(2)), delete.clone()], &[event(2, "1"), gone]).unwrap();
        check(&[put("1", done(2)), delete], &[event(2, "1")]).unwrap_err();
    }

    #[test]
    fn a_range_of_which_something_is_left_is_caught() {
        let outcome =
            Outcome::Done(Response { revision: 3, succeeded: true, results: vec![StepResult::Deleted(2)] });
        let delete = Operation { action: Action::delete_range("a", "c"), ..put("", outcome) };
        let gone = |key: &'static str| Event { revision: 3, key: key.into(), after: None };
        check(std::slice::from_ref(&delete), &[gone("a"), gone("b")]).unwrap();
        check(&[delete], &[gone("a"), gone("c")]).unwrap_err();
    }

    #[test]
    fn a_write_that_happened_twice_is_caught() {
        check(&[put("1", done(2))], &[event(2, "1"), event(3, "1")]).unwrap_err();
        check(&[put("1", Outcome::Unknown)], &[event(2, "1"), event(3, "1")]).unwrap_err();
        check(&[put("1", done(2))], &[event(2, "1"), event(2, "1")]).unwrap_err();
    }

    #[test]
    fn what_failed_or_was_never_asked_for_is_caught() {
        check(&[put("1", Outcome::Failed)], &[event(2, "1")]).unwrap_err();
        check(&[], &[event(2, "1")]).unwrap_err();
    }
}
