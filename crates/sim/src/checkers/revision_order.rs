//! `revision_order`: revisions are dense, unique and in the order of real time, and the metadata of each key follows
//! from its own past.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::model::FIRST_REVISION;
use crate::history::{Event, KeyValue, Operation, Violation};

const GUARANTEE: &str = "revision_order";

/// Checks that `events`, the complete history of a keyspace from its first write, skips no revision, repeats none, and
/// gives each key the versions and creation revisions that its past demands.
pub fn check_events(events: &[Event]) -> Result<(), Violation> {
    let mut revision = FIRST_REVISION;
    let mut keys: BTreeMap<&Bytes, (i64, Option<&KeyValue>)> = BTreeMap::new();
    for event in events {
        if event.revision != revision && event.revision != revision + 1 || event.revision == FIRST_REVISION {
            return Err(Violation::new(GUARANTEE, format!("after revision {revision} comes {event:?}")));
        }
        revision = event.revision;
        let (changed, before) = keys.get(&event.key).copied().unwrap_or((0, None));
        if changed == revision {
            return Err(Violation::new(GUARANTEE, format!("a key twice in one revision: {event:?}")));
        }
        if !follows(before, event) {
            return Err(Violation::new(GUARANTEE, format!("{event:?} does not follow from {before:?}")));
        }
        keys.insert(&event.key, (revision, event.after.as_ref()));
    }
    Ok(())
}

fn follows(before: Option<&KeyValue>, event: &Event) -> bool {
    let Some(after) = &event.after else { return before.is_some() };
    let (create_revision, version) = match before {
        Some(before) => (before.create_revision, before.version + 1),
        None => (event.revision, 1),
    };
    after.key == event.key
        && after.mod_revision == event.revision
        && after.create_revision == create_revision
        && after.version == version
}

/// Checks the revisions in responses: those of writes are unique, and an operation that was invoked after another had
/// returned has no smaller revision, and a greater one if it wrote. A stale get may lag behind, but not behind what the
/// replica that answers it has shown before.
pub fn check_responses(operations: &[Operation]) -> Result<(), Violation> {
    let mut by_return: Vec<&Operation> = operations.iter().filter(|one| one.response().is_some()).collect();
    let mut by_invocation = by_return.clone();
    by_return.sort_by_key(|operation| operation.returned);
    by_invocation.sort_by_key(|operation| operation.invoked);
    let mut returned = by_return.into_iter().peekable();
    let mut newest: Option<&Operation> = None;
    let mut shown_by: BTreeMap<(u64, u64), &Operation> = BTreeMap::new();
    let mut writes: BTreeMap<i64, &Operation> = BTreeMap::new();
    for operation in by_invocation {
        while let Some(earlier) = returned.next_if(|earlier| earlier.returned < operation.invoked) {
            newest = Some(newer(newest, earlier));
            if let Some(replica) = earlier.replica {
                let place = shown_by.entry((earlier.node, replica)).or_insert(earlier);
                *place = newer(Some(place), earlier);
            }
        }
        if wrote(operation)
            && let Some(other) = writes.insert(revision(operation), operation)
        {
            let found = format!("two writes with one revision:\n  {other}\n  {operation}");
            return Err(Violation::new(GUARANTEE, found));
        }
        let of_replica = |replica| shown_by.get(&(operation.node, replica)).copied();
        let is_stale = operation.action.is_stale_read();
        let earlier = if is_stale { operation.replica.and_then(of_replica) } else { newest };
        if let Some(earlier) = earlier
            && revision(operation) < revision(earlier) + i64::from(wrote(operation))
        {
            let found = format!("against real time: after\n  {earlier}\ncomes\n  {operation}");
            return Err(Violation::new(GUARANTEE, found));
        }
    }
    Ok(())
}

/// The one of the two with the newer revision.
fn newer<'a>(newest: Option<&'a Operation>, other: &'a Operation) -> &'a Operation {
    newest.filter(|newest| revision(newest) >= revision(other)).unwrap_or(other)
}

fn wrote(operation: &Operation) -> bool {
    operation.response().is_some_and(|response| response.wrote())
}

fn revision(operation: &Operation) -> i64 {
    operation.response().map_or(0, |response| response.revision)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::history::{Action, Outcome, Response, StepResult};

    fn event(revision: i64, create_revision: i64, version: i64) -> Event {
        let after = KeyValue {
            key: "a".into(),
            value: "v".into(),
            create_revision,
            mod_revision: revision,
            version,
            lease: 0,
        };
        Event { revision, key: "a".into(), after: Some(after) }
    }

    fn removal(revision: i64) -> Event {
        Event { revision, key: "a".into(), after: None }
    }

    #[test]
    fn a_dense_history_passes() {
        check_events(&[event(2, 2, 1), event(3, 2, 2), removal(4), event(5, 5, 1)]).unwrap();
    }

    #[test]
    fn gaps_repeats_and_disorder_are_caught() {
        check_events(&[event(2, 2, 1), event(4, 2, 2)]).unwrap_err();
        check_events(&[event(3, 3, 1)]).unwrap_err();
        check_events(&[event(1, 1, 1)]).unwrap_err();
        check_events(&[event(2, 2, 1), event(2, 2, 2)]).unwrap_err();
        check_events(&[event(2, 2, 1), event(3, 2, 2), event(2, 2, 1)]).unwrap_err();
    }

    #[test]
    fn wrong_metadata_is_caught() {
        check_events(&[event(2, 2, 1), event(3, 2, 3)]).unwrap_err();
        check_events(&[event(2, 2, 1), event(3, 3, 1)]).unwrap_err();
        check_events(&[event(2, 2, 1), removal(3), event(4, 2, 2)]).unwrap_err();
        check_events(&[removal(2)]).unwrap_err();
    }

    fn operation(invoked: u64, returned: u64, revision: i64, wrote: bool) -> Operation {
        let (action, result) = match wrote {
            true => (Action::put("a", "v"), StepResult::Put),
            false => (Action::get("a"), StepResult::Got(None)),
        };
        let outcome = Outcome::Done(Response { revision, succeeded: true, results: vec![result] });
        Operation { client: 1, keyspace: 1, node: 1, replica: None, invoked, returned, action, outcome }
    }

    #[test]
    fn responses_in_the_order_of_real_time_pass() {
        check_responses(&[
            operation(0, 10, 3, true),
            operation(5, 20, 2, true),
            operation(12, 15, 3, false),
            operation(30, 40, 4, true),
        ])
        .unwrap();
    }

    #[test]
    fn responses_against_real_time_are_caught() {
        check_responses(&[operation(0, 10, 3, true), operation(11, 20, 2, true)]).unwrap_err();
        check_responses(&[operation(0, 10, 3, true), operation(11, 20, 2, false)]).unwrap_err();
        check_responses(&[operation(0, 10, 3, false), operation(11, 20, 3, true)]).unwrap_err();
        check_responses(&[operation(0, 10, 3, true), operation(0, 10, 3, true)]).unwrap_err();
    }

    #[test]
    fn a_stale_get_lags_behind_others_and_not_behind_its_own_replica() {
        let of = |replica, operation| Operation { replica: Some(replica), ..operation };
        let stale = |replica| {
            let get = Operation { action: Action::StaleGet("a".into()), ..operation(20, 30, 2, false) };
            of(replica, get)
        };
        let write = of(5, operation(0, 10, 3, true));
        check_responses(&[write.clone(), stale(5)]).unwrap_err();
        check_responses(&[write.clone(), stale(6)]).unwrap();
        check_responses(&[write.clone(), Operation { node: 2, ..stale(5) }]).unwrap();
        check_responses(&[write, Operation { invoked: 10, ..stale(5) }]).unwrap();
        check_responses(&[of(5, operation(0, 10, 3, false)), stale(5)]).unwrap_err();
        let earlier = Operation { invoked: 0, returned: 10, ..stale(5) };
        check_responses(&[earlier.clone(), stale(5)]).unwrap();
        let at_3 =
            Outcome::Done(Response { revision: 3, succeeded: true, results: vec![StepResult::Got(None)] });
        check_responses(&[Operation { outcome: at_3, ..earlier }, stale(5)]).unwrap_err();
    }
}
