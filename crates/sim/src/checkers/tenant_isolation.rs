//! `tenant_isolation`: what is written in one keyspace never appears in another.
//!
//! Values must be unique over the whole run, so that a value names the keyspace that it was written in.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::history::{Action, Event, Operation, Step, StepResult, Violation};

const GUARANTEE: &str = "tenant_isolation";

/// Which keyspace each value was written in.
pub struct TenantIsolation<'a> {
    homes: BTreeMap<&'a Bytes, u64>,
}

impl<'a> TenantIsolation<'a> {
    /// Learns from all operations of all keyspaces.
    pub fn new(operations: &'a [Operation]) -> TenantIsolation<'a> {
        let values = operations.iter().flat_map(|operation| {
            let steps = match &operation.action {
                Action::Transaction(transaction) => {
                    [transaction.then.as_slice(), transaction.otherwise.as_slice()]
                }
                _ => [&[][..], &[][..]],
            };
            let puts = steps.into_iter().flatten().filter_map(|step| match step {
                Step::Put(_, value, _) => Some(value),
                Step::Get(_) | Step::Delete(_) | Step::DeleteRange(..) => None,
            });
            puts.map(|value| (value, operation.keyspace))
        });
        TenantIsolation { homes: values.collect() }
    }

    /// Checks `events`, the complete history of `keyspace`.
    pub fn check_events(&self, keyspace: u64, events: &[Event]) -> Result<(), Violation> {
        let values = events.iter().filter_map(|event| event.after.as_ref().map(|after| &after.value));
        values.into_iter().try_for_each(|value| self.check_value(keyspace, value, "its history"))
    }

    /// Checks what `operation` read.
    pub fn check_operation(&self, operation: &Operation) -> Result<(), Violation> {
        let results = operation.response().map(|response| response.results.as_slice()).unwrap_or_default();
        let mut shown = results.iter().flat_map(StepResult::shown);
        shown.try_for_each(|found| self.check_value(operation.keyspace, &found.value, &operation.to_string()))
    }

    fn check_value(&self, keyspace: u64, value: &Bytes, place: &str) -> Result<(), Violation> {
        match self.homes.get(value) {
            Some(home) if *home != keyspace => {
                let found = format!("{value:?} of keyspace {home} appears in {keyspace}: {place}");
                Err(Violation::new(GUARANTEE, found))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::history::{KeyValue, Outcome, Response};

    fn operation(keyspace: u64, action: Action, outcome: Outcome) -> Operation {
        Operation { client: 1, keyspace, node: 1, replica: None, invoked: 0, returned: 1, action, outcome }
    }

    fn found(value: &'static str) -> KeyValue {
        KeyValue {
            key: "a".into(),
            value: value.into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            lease: 0,
        }
    }

    #[test]
    fn a_value_at_home_passes_and_one_elsewhere_is_caught() {
        let writes = [
            operation(1, Action::put("a", "mine"), Outcome::Unknown),
            operation(2, Action::put("a", "yours"), Outcome::Unknown),
        ];
        let isolation = TenantIsolation::new(&writes);
        let event = Event { revision: 2, key: "a".into(), after: Some(found("mine")) };
        isolation.check_events(1, std::slice::from_ref(&event)).unwrap();
        isolation.check_events(2, &[event]).unwrap_err();
        let got = Outcome::Done(Response {
            revision: 2,
            succeeded: true,
            results: vec![StepResult::Got(Some(found("yours")))],
        });
        isolation.check_operation(&operation(2, Action::get("a"), got.clone())).unwrap();
        isolation.check_operation(&operation(1, Action::get("a"), got)).unwrap_err();
    }
}
