//! `compaction`: what was compacted is refused from then on, and nothing else ever is.

use crate::history::{Action, Operation, Outcome, Violation};

const GUARANTEE: &str = "compaction";

/// Checks the gets of old revisions, and the compactions, among the operations of one keyspace.
pub fn check(operations: &[Operation]) -> Result<(), Violation> {
    let compactions: Vec<(&Operation, i64)> = operations
        .iter()
        .filter_map(|operation| match operation.action {
            Action::Compact(revision) => Some((operation, revision)),
            _ => None,
        })
        .collect();
    operations.iter().try_for_each(|operation| {
        // The lowest compaction that forbids it.
        let forbidden_from = match (&operation.action, &operation.outcome) {
            (Action::GetAt(_, revision), _) => revision + 1,
            (Action::Compact(revision), _) => *revision,
            (_, Outcome::Compacted) => {
                let found = format!("it asked for no old revision: {operation}");
                return Err(Violation::new(GUARANTEE, found));
            }
            _ => return Ok(()),
        };
        match &operation.outcome {
            Outcome::Compacted => refused_by_right(operation, &compactions, forbidden_from),
            Outcome::Done(_) => served_by_right(operation, &compactions, forbidden_from),
            Outcome::Failed | Outcome::Unknown => Ok(()),
        }
    })
}

/// A compaction that had begun must explain the refusal.
fn refused_by_right(
    operation: &Operation,
    compactions: &[(&Operation, i64)],
    forbidden_from: i64,
) -> Result<(), Violation> {
    let explained = compactions.iter().any(|(compaction, revision)| {
        let may_have_happened = !matches!(compaction.outcome, Outcome::Failed | Outcome::Compacted);
        let is_other = !std::ptr::eq(*compaction, operation);
        is_other
            && may_have_happened
            && compaction.invoked <= operation.returned
            && *revision >= forbidden_from
    });
    match explained {
        true => Ok(()),
        false => Err(Violation::new(GUARANTEE, format!("no compaction explains {operation}"))),
    }
}

/// No compaction that had been acknowledged may forbid the answer.
fn served_by_right(
    operation: &Operation,
    compactions: &[(&Operation, i64)],
    forbidden_from: i64,
) -> Result<(), Violation> {
    let forbids = |(compaction, compacted): &&(&Operation, i64)| {
        let was_known = compaction.response().is_some() && compaction.returned < operation.invoked;
        was_known && *compacted >= forbidden_from
    };
    match compactions.iter().find(forbids) {
        None => Ok(()),
        Some((compaction, _)) => {
            Err(Violation::new(GUARANTEE, format!("after\n  {compaction}\nwas served\n  {operation}")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::history::{Response, StepResult};

    fn operation(invoked: u64, action: Action, outcome: Outcome) -> Operation {
        Operation {
            client: 1,
            keyspace: 1,
            node: 1,
            replica: None,
            invoked,
            returned: invoked + 5,
            action,
            outcome,
        }
    }

    fn done() -> Outcome {
        Outcome::Done(Response { revision: 9, succeeded: true, results: vec![StepResult::Got(None)] })
    }

    fn get_at(invoked: u64, revision: i64, outcome: Outcome) -> Operation {
        operation(invoked, Action::GetAt("a".into(), revision), outcome)
    }

    #[test]
    fn refusals_after_a_compaction_pass() {
        let compaction = operation(10, Action::Compact(5), done());
        check(&[compaction.clone(), get_at(20, 4, Outcome::Compacted), get_at(20, 5, done())]).unwrap();
        check(&[compaction.clone(), get_at(12, 4, done())]).unwrap();
        check(&[compaction, operation(20, Action::Compact(5), Outcome::Compacted)]).unwrap();
        let unknown = operation(10, Action::Compact(5), Outcome::Unknown);
        check(&[unknown, get_at(90, 4, Outcome::Compacted), get_at(95, 4, done())]).unwrap();
    }

    #[test]
    fn a_refusal_without_a_compaction_is_caught() {
        check(&[get_at(20, 4, Outcome::Compacted)]).unwrap_err();
        let compaction = operation(10, Action::Compact(5), done());
        check(&[compaction.clone(), get_at(20, 5, Outcome::Compacted)]).unwrap_err();
        check(&[compaction.clone(), get_at(1, 4, Outcome::Compacted)]).unwrap_err();
        check(&[compaction, operation(20, Action::Compact(6), Outcome::Compacted)]).unwrap_err();
        check(&[operation(20, Action::get("a"), Outcome::Compacted)]).unwrap_err();
    }

    #[test]
    fn an_answer_from_the_compacted_past_is_caught() {
        let compaction = operation(10, Action::Compact(5), done());
        check(&[compaction.clone(), get_at(20, 4, done())]).unwrap_err();
        check(&[compaction.clone(), operation(20, Action::Compact(5), done())]).unwrap_err();
        check(&[compaction, operation(20, Action::Compact(6), done())]).unwrap();
    }
}
