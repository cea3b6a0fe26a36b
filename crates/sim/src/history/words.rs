//! Histories in words, for those who look for what went wrong.

use std::fmt::{self, Display, Formatter};

use super::{Action, Guard, KeyValue, Outcome, Response, Step, StepResult, Transaction};

/// Bytes of a key or a value that are shown of a longer one.
const SHOWN_BYTES: usize = 48;

/// A moment in seconds, always with six decimals, by which it is told from other numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(pub(crate) u64);

impl At {
    pub(super) fn parse(text: &str) -> Option<At> {
        let (seconds, micros) = text.split_once('.')?;
        let micros = Some(micros).filter(|micros| micros.len() == 6)?;
        Some(At(seconds.parse::<u64>().ok()?.checked_mul(1_000_000)? + micros.parse::<u64>().ok()?))
    }
}

impl Display for At {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Bytes, of which most are letters.
struct Text<'a>(&'a [u8]);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.len() <= SHOWN_BYTES {
            return write!(f, "{}", self.0.escape_ascii());
        }
        write!(f, "{}… ({} bytes)", self.0[..SHOWN_BYTES].escape_ascii(), self.0.len())
    }
}

/// Several, with commas.
struct List<'a, T>(&'a [T]);

impl<T: Display> Display for List<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(number, item)| {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{item}")
        })
    }
}

impl Display for KeyValue {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let KeyValue { key, value, create_revision, mod_revision, version, lease } = self;
        write!(f, "{}=\"{}\" (", Text(key), Text(value))?;
        write!(f, "made at revision {create_revision}, changed at {mod_revision}, version {version}")?;
        if *lease == 0 { write!(f, ")") } else { write!(f, ", lease {lease})") }
    }
}

impl Display for Guard {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Guard::ModRevision(key, 0) | Guard::CreateRevision(key, 0) => {
                write!(f, "there is no {}", Text(key))
            }
            Guard::ModRevision(key, revision) => {
                write!(f, "{} was changed last at revision {revision}", Text(key))
            }
            Guard::CreateRevision(key, revision) => {
                write!(f, "{} was made at revision {revision}", Text(key))
            }
            Guard::Value(key, value) => write!(f, "{} is \"{}\"", Text(key), Text(value)),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Step::Get(key) => write!(f, "get {}", Text(key)),
            Step::Put(key, value, 0) => write!(f, "put {}=\"{}\"", Text(key), Text(value)),
            Step::Put(key, value, lease) => {
                write!(f, "put {}=\"{}\" with lease {lease}", Text(key), Text(value))
            }
            Step::Delete(key) => write!(f, "delete {}", Text(key)),
            Step::DeleteRange(from, to) => write!(f, "delete from {} to {}", Text(from), Text(to)),
        }
    }
}

impl Display for Transaction {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.guards.is_empty() {
            return write!(f, "{}", List(&self.then));
        }
        write!(f, "if {} then {}", List(&self.guards), List(&self.then))?;
        if self.otherwise.is_empty() { Ok(()) } else { write!(f, " else {}", List(&self.otherwise)) }
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Action::Transaction(transaction) => write!(f, "{transaction}"),
            Action::StaleGet(key) => write!(f, "get {} from this replica (serializable)", Text(key)),
            Action::GetAt(key, revision) => write!(f, "get {} as of revision {revision}", Text(key)),
            Action::GetRange(from, to) => write!(f, "get all from {} to {}", Text(from), Text(to)),
            Action::Revoke(lease) => write!(f, "revoke lease {lease}"),
            Action::Compact(revision) => write!(f, "compact up to revision {revision}"),
        }
    }
}

impl Display for StepResult {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            StepResult::Got(None) => write!(f, "no such key"),
            StepResult::Got(Some(found)) => write!(f, "{found}"),
            StepResult::Put => write!(f, "written"),
            StepResult::Found(found) => write!(f, "[{}]", List(found)),
            StepResult::Deleted(count) => write!(f, "{count} deleted"),
        }
    }
}

impl Display for Response {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "at revision {}", self.revision)?;
        if !self.succeeded {
            write!(f, ", the condition did not hold")?;
        }
        if self.results.is_empty() { Ok(()) } else { write!(f, ": {}", List(&self.results)) }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(response) => write!(f, "done {response}"),
            Outcome::Failed => write!(f, "certainly not done"),
            Outcome::Compacted => write!(f, "not done: the revision is compacted"),
            Outcome::Unknown => write!(f, "no answer: may be done at any time, or never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Operation, Violation};
    use super::*;

    #[test]
    fn an_operation_reads_well_and_its_moments_are_found_again() {
        let done = Response { revision: 25, succeeded: false, results: vec![StepResult::Got(None)] };
        let operation = Operation {
            client: 2,
            keyspace: 1,
            node: 3,
            replica: None,
            invoked: 1_775_836,
            returned: 12_000_001,
            action: Action::compare_and_set("k", 7, "v"),
            outcome: Outcome::Done(done),
        };
        let text = "[1.775836..12.000001] client 2 of group 1 at n3: if k was changed last at revision 7 \
                    then put k=\"v\" else get k -> done at revision 25, the condition did not hold: no such key";
        assert_eq!(operation.to_string(), text);
        let unknown = Operation { outcome: Outcome::Unknown, invoked: 500_000, ..operation.clone() };
        assert!(unknown.to_string().starts_with("[0.500000..] client 2"), "{unknown}");
        let violation = Violation::new("linearizable", format!("1.5 %:\n  {operation}\n  {unknown}."));
        assert_eq!(violation.moments(), [500_000, 1_775_836, 12_000_001]);
    }
}
