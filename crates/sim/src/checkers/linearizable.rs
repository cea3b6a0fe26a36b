//! `linearizable`: some order of the operations, which respects real time, explains every response.
//!
//! This is the search of Wing and Gong with Lowe's memory of visited states, over the whole keyspace and not per key,
//! since transactions and revisions tie the keys together. Every response carries a revision, and the specification
//! must agree with it like with the rest of the response. That leaves so little choice that the search is nearly linear:
//!
//! - An operation that changes nothing is put into the order as soon as its response fits: it takes no choice away.
//! - The revision of an acknowledged write belongs to it alone, so at each revision either one known operation comes
//!   next, or one of those whose outcome is unknown.
//! - An operation whose response names a revision that has passed makes the branch hopeless at once.
//! - What the complete history says about a revision (see [`check`]) must be what the operation there writes, no more and no less, and
//!   what responses show of it. Operations with an unknown outcome, of which there may be very many, are found by that: see `Unknown`.
//!
//! None of it assumes that the revisions are right: a wrong one leaves no order, and that is the violation reported.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use super::model::{Changes, Model};
use crate::history::{Action, Event, Operation, Outcome, Step, Violation};

const GUARANTEE: &str = "linearizable";

/// What a search came to that found no violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// An order explains every response.
    Explained,
    /// There was neither time to find such an order nor to rule one out: nothing is known.
    Undecided,
}

/// Steps after which the search gives up; thousands of times what a history of a test takes.
const STEPS_MAX: u64 = 20_000_000;
/// Where nobody knows any more what became of unknown operations there may be too many orders to look at.
const STEPS_MAX_WITH_PAST: u64 = 100_000;

/// Checks `operations`, whose keyspace was empty before the first of them. `events` may hold the complete history of
/// the keyspace, read at the end: it is used where the outcome of operations is unknown, and must be explained too.
///
/// # Errors
/// What no order explains.
pub fn check(operations: &[Operation], events: &[Event]) -> Result<Verdict, Violation> {
    check_within(operations, events, STEPS_MAX)
}

fn check_within(operations: &[Operation], events: &[Event], steps_max: u64) -> Result<Verdict, Violation> {
    let (claims, facts) = (claims(operations)?, facts(operations, events)?);
    Search::new(operations, claims, facts, changes(events)).run(steps_max)
}

/// Likewise of a keyspace of whose history only a part from its beginning on is known.
///
/// # Errors
/// What no order explains.
pub fn check_with_past(operations: &[Operation], past: &[Event]) -> Result<Verdict, Violation> {
    check_within(operations, past, STEPS_MAX_WITH_PAST)
}

/// The key and value (none when removed) that a revision is known to have written.
type Facts = BTreeMap<i64, BTreeMap<Bytes, Option<Bytes>>>;

/// Which acknowledged write claims which revision.
fn claims(operations: &[Operation]) -> Result<BTreeMap<i64, usize>, Violation> {
    let mut claims = BTreeMap::new();
    for (number, operation) in operations.iter().enumerate() {
        let Some(response) = operation.response().filter(|response| response.wrote()) else { continue };
        if let Some(other) = claims.insert(response.revision, number) {
            let found = format!("two writes got one revision:\n  {}\n  {operation}", operations[other]);
            return Err(Violation::new(GUARANTEE, found));
        }
    }
    Ok(claims)
}

fn facts(operations: &[Operation], events: &[Event]) -> Result<Facts, Violation> {
    let mut facts = Facts::new();
    let mut learn = |revision: i64, key: &Bytes, value: Option<&Bytes>| {
        let known = facts.entry(revision).or_default().entry(key.clone()).or_insert_with(|| value.cloned());
        if known.as_ref() == value {
            return Ok(());
        }
        let found = format!("revision {revision} wrote {key:?} as {known:?} and as {value:?}");
        Err(Violation::new(GUARANTEE, found))
    };
    for event in events {
        learn(event.revision, &event.key, event.after.as_ref().map(|after| &after.value))?;
    }
    let responses = operations.iter().filter_map(Operation::response);
    for result in responses.flat_map(|response| &response.results) {
        for found in result.shown() {
            learn(found.mod_revision, &found.key, Some(&found.value))?;
        }
    }
    Ok(facts)
}

/// What each revision of the complete history changed.
fn changes(events: &[Event]) -> BTreeMap<i64, Changes> {
    let mut changes: BTreeMap<i64, Changes> = BTreeMap::new();
    for event in events {
        changes.entry(event.revision).or_default().insert(event.key.clone(), event.after.clone());
    }
    changes
}

/// The operations that are not in the order yet, by one of their times: a list from which items can be taken out, and
/// put back in the opposite order, in constant time.
struct Remaining {
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Remaining {
    /// A list of `numbers` of `count` items in the given order. `count` itself is both ends.
    fn new(count: usize, numbers: &[usize]) -> Remaining {
        let mut list = Remaining { next: vec![count; count + 1], previous: vec![count; count + 1] };
        let mut last = count;
        for &number in numbers {
            list.next[last] = number;
            list.previous[number] = last;
            last = number;
        }
        list.next[last] = count;
        list.previous[count] = last;
        list
    }

    fn end(&self) -> usize {
        self.next.len() - 1
    }

    fn first(&self) -> usize {
        self.next[self.end()]
    }

    fn take(&mut self, number: usize) {
        let (previous, next) = (self.previous[number], self.next[number]);
        self.next[previous] = next;
        self.previous[next] = previous;
    }

    fn put_back(&mut self, number: usize) {
        let (previous, next) = (self.previous[number], self.next[number]);
        self.next[previous] = number;
        self.previous[next] = number;
    }
}

/// The operations with an unknown outcome, each at its place when all are sorted by invocation.
///
/// They stay until the end, as each may still happen, and to try all of them at each step takes time that grows with their square. So those
/// that can explain the next revision are looked up by what is known of it. Nothing is left out that could be chosen:
///
/// - Where it is known that a key got a value, the operation there has a step that puts this value there: there is no other way.
/// - Where it is known that a key was removed, it has a step that may remove keys, or revokes a lease.
/// - At a revision that an acknowledged write claims no other can be.
/// - Beyond the newest revision that any response names nothing is to be explained. What was not explained at that revision, where every
///   response with it was tried, is not explained later: a stale get sees a past that does not change, and all others need a response
///   with a newer revision.
/// - Of several that ask for the very same only the one that was invoked first is tried. Wherever another explains something, that one
///   does; and where it would have come itself, the other may, as it was invoked before that.
#[derive(Default)]
struct Unknown {
    /// By invocation.
    all: Vec<usize>,
    /// Their places in `all`, by the key and the value that they may put there.
    puts: BTreeMap<(Bytes, Bytes), Vec<usize>>,
    /// The places of those that may remove something.
    removals: Vec<usize>,
    /// For each place the last one before it that asks for the same.
    twins: Vec<Option<usize>>,
}

impl Unknown {
    /// Those of `numbers`, which are sorted by invocation.
    fn new(operations: &[Operation], numbers: Vec<usize>) -> Unknown {
        let mut unknown = Unknown::default();
        let mut last: HashMap<&Action, usize> = HashMap::new();
        for (place, number) in numbers.iter().enumerate() {
            let action = &operations[*number].action;
            unknown.twins.push(last.insert(action, place));
            match action {
                Action::Transaction(transaction) => {
                    let steps = transaction.then.iter().chain(&transaction.otherwise);
                    steps.for_each(|step| unknown.learn(place, step));
                }
                Action::Revoke(_) => unknown.removals.push(place),
                Action::StaleGet(_) | Action::GetAt(..) | Action::GetRange(..) | Action::Compact(_) => {}
            }
        }
        unknown.all = numbers;
        unknown
    }

    fn learn(&mut self, place: usize, step: &Step) {
        let places = match step {
            Step::Put(key, value, _) => self.puts.entry((key.clone(), value.clone())).or_default(),
            Step::Delete(_) | Step::DeleteRange(..) => &mut self.removals,
            Step::Get(_) => return,
        };
        if places.last() != Some(&place) {
            places.push(place);
        }
    }

    /// The places of all that may have written what is known, by invocation.
    fn candidates(
        &self,
        known: Option<&BTreeMap<Bytes, Option<Bytes>>>,
    ) -> Box<dyn Iterator<Item = usize> + '_> {
        let put = known.and_then(|known| known.iter().find(|(_, value)| value.is_some()));
        match put.or_else(|| known.and_then(BTreeMap::first_key_value)) {
            Some((key, Some(value))) => {
                let places = self.puts.get(&(key.clone(), value.clone()));
                Box::new(places.into_iter().flatten().copied())
            }
            Some((_, None)) => Box::new(self.removals.iter().copied()),
            None => Box::new(0..self.all.len()),
        }
    }
}

/// A point where the search chose, and what it may still choose there.
struct Branch {
    choices: Vec<(usize, Changes)>,
    /// Length of the order before the choice.
    order_length: usize,
}

/// Whether the search can go on from where it is.
enum Way {
    Explained,
    Hopeless,
    Open(Vec<(usize, Changes)>),
}

struct Search<'a> {
    operations: &'a [Operation],
    claims: BTreeMap<i64, usize>,
    facts: Facts,
    /// By revision, as far as the complete history is known.
    changes: BTreeMap<i64, Changes>,
    /// The newest revision that a response names.
    newest: i64,
    model: Model,
    /// The acknowledged operations by invocation. Failed ones are nowhere.
    invoked: Remaining,
    /// The same by return; operations with an unknown outcome never return.
    returned: Remaining,
    unknown: Unknown,
    /// For each operation: whether it is in the order.
    taken: Vec<bool>,
    /// The order so far, with the changes of each (empty for one that changed nothing).
    order: Vec<(usize, Changes)>,
    /// Combines a number per operation in the order.
    order_hash: u64,
    seen: HashSet<(u64, u64)>,
    branches: Vec<Branch>,
    /// How far the best branch came, and what it could not explain.
    best: (usize, String),
}

impl<'a> Search<'a> {
    fn new(
        operations: &'a [Operation],
        claims: BTreeMap<i64, usize>,
        facts: Facts,
        changes: BTreeMap<i64, Changes>,
    ) -> Search<'a> {
        let count = operations.len();
        let with = |wanted: fn(&Outcome) -> bool| -> Vec<usize> {
            (0..count).filter(|&number| wanted(&operations[number].outcome)).collect()
        };
        let mut by_invocation = with(|outcome| matches!(outcome, Outcome::Done(_)));
        let mut by_return = by_invocation.clone();
        let mut unknown = with(|outcome| *outcome == Outcome::Unknown);
        by_invocation.sort_by_key(|&number| operations[number].invoked);
        by_return.sort_by_key(|&number| operations[number].returned);
        unknown.sort_by_key(|&number| operations[number].invoked);
        let responses = operations.iter().filter_map(Operation::response);
        Search {
            operations,
            claims,
            facts,
            changes,
            newest: responses.map(|response| response.revision).max().unwrap_or(0),
            model: Model::new(),
            invoked: Remaining::new(count, &by_invocation),
            returned: Remaining::new(count, &by_return),
            unknown: Unknown::new(operations, unknown),
            taken: vec![false; count],
            order: Vec::new(),
            order_hash: 0,
            seen: HashSet::new(),
            branches: Vec::new(),
            best: (0, String::new()),
        }
    }

    /// What is found within so many steps. No order at all is a violation.
    fn run(&mut self, steps_max: u64) -> Result<Verdict, Violation> {
        for _ in 0..=steps_max {
            match self.look() {
                Way::Explained => return Ok(Verdict::Explained),
                Way::Hopeless => {}
                Way::Open(choices) => {
                    self.branches.push(Branch { choices, order_length: self.order.len() });
                }
            }
            if !self.choose() {
                return Err(Violation::new(GUARANTEE, std::mem::take(&mut self.best.1)));
            }
        }
        Ok(Verdict::Undecided)
    }

    /// Takes the next choice of the newest branch that has one; false when there is none at all.
    fn choose(&mut self) -> bool {
        while let Some(branch) = self.branches.last_mut() {
            let length = branch.order_length;
            let choice = branch.choices.pop();
            self.take_back_to(length);
            match choice {
                Some((number, changes)) => {
                    self.append(number, changes);
                    return true;
                }
                None => {
                    self.branches.pop();
                }
            }
        }
        false
    }

    /// Puts everything into the order that leaves no choice, and finds what may come next.
    fn look(&mut self) -> Way {
        loop {
            let earliest_return = match self.returned.first() {
                end if end == self.returned.end() => return Way::Explained,
                first => self.operations[first].returned,
            };
            let mut progress = false;
            let mut choices = Vec::new();
            let mut number = self.invoked.first();
            while number != self.invoked.end() && self.operations[number].invoked <= earliest_return {
                let next = self.invoked.next[number];
                match self.judge(number) {
                    Fit::Now => {
                        self.append(number, Changes::new());
                        progress = true;
                    }
                    Fit::Choice(changes) => choices.push((number, changes)),
                    Fit::NotNow => {}
                    Fit::Never => {
                        self.note_failure(number);
                        return Way::Hopeless;
                    }
                }
                number = next;
            }
            if progress {
                continue;
            }
            self.add_unknown(earliest_return, &mut choices);
            if choices.is_empty() {
                self.note_failure(self.returned.first());
                return Way::Hopeless;
            }
            if !self.seen.insert((self.order_hash, self.model.hash())) {
                return Way::Hopeless;
            }
            return Way::Open(choices);
        }
    }

    /// Adds the operations with an unknown outcome that may come next, among those that were invoked by then.
    fn add_unknown(&self, by: u64, choices: &mut Vec<(usize, Changes)>) {
        let revision = self.model.revision() + 1;
        // Nearly always so, and cheap: the next revision belongs to an acknowledged write.
        if self.claims.contains_key(&revision) || revision > self.newest {
            return;
        }
        let candidates = self.unknown.candidates(self.facts.get(&revision));
        for place in candidates {
            let number = self.unknown.all[place];
            if self.operations[number].invoked > by {
                return;
            }
            let has_waiting_twin =
                self.unknown.twins[place].is_some_and(|twin| !self.taken[self.unknown.all[twin]]);
            if !self.taken[number]
                && !has_waiting_twin
                && let Fit::Choice(changes) = self.judge(number)
            {
                choices.push((number, changes));
            }
        }
    }

    /// How operation `number`, which may come next as far as real time is concerned, fits the state.
    fn judge(&self, number: usize) -> Fit {
        let operation = &self.operations[number];
        let response = operation.response();
        if let Action::StaleGet(key) = &operation.action {
            let fits = response.is_some_and(|response| self.model.explains_stale_get(key, response));
            return if fits { Fit::Now } else { Fit::NotNow };
        }
        let Some((expected, changes)) = self.model.evaluate(&operation.action) else { return Fit::NotNow };
        match response {
            Some(response) if response.revision < self.model.revision() => Fit::Never,
            Some(response) if *response != expected => Fit::NotNow,
            Some(_) if changes.is_empty() => Fit::Now,
            // An unknown outcome without an effect here explains nothing; it may have one later.
            None if changes.is_empty() => Fit::NotNow,
            _ if self.may_write(number, &changes) => Fit::Choice(changes),
            _ => Fit::NotNow,
        }
    }

    /// Whether what is known of the next revision allows `number` to write `changes` there.
    fn may_write(&self, number: usize, changes: &Changes) -> bool {
        let revision = self.model.revision() + 1;
        let claimed_by_other = self.claims.get(&revision).is_some_and(|&claimant| claimant != number);
        let fact_fits = |(key, value): (&Bytes, &Option<Bytes>)| {
            changes.get(key).map(|after| after.as_ref().map(|after| &after.value)) == Some(value.as_ref())
        };
        !claimed_by_other
            && self.changes.get(&revision).is_none_or(|known| known == changes)
            && self.facts.get(&revision).is_none_or(|facts| facts.iter().all(fact_fits))
    }

    fn append(&mut self, number: usize, changes: Changes) {
        self.taken[number] = true;
        if self.operations[number].response().is_some() {
            self.invoked.take(number);
            self.returned.take(number);
        }
        if !changes.is_empty() {
            self.model.commit(&changes);
        }
        self.order_hash ^= number_hash(number);
        self.order.push((number, changes));
    }

    fn take_back_to(&mut self, length: usize) {
        while self.order.len() > length {
            let Some((number, changes)) = self.order.pop() else { return };
            self.order_hash ^= number_hash(number);
            if !changes.is_empty() {
                self.model.take_back(&changes);
            }
            self.taken[number] = false;
            if self.operations[number].response().is_some() {
                self.returned.put_back(number);
                self.invoked.put_back(number);
            }
        }
    }

    fn note_failure(&mut self, number: usize) {
        if self.order.len() < self.best.0 || (self.order.len() == self.best.0 && !self.best.1.is_empty()) {
            return;
        }
        let expected = self.model.evaluate(&self.operations[number].action).map(|(expected, _)| expected);
        let mut found = format!(
            "no order explains\n  {}\nat revision {}, where the answer would be {expected:?}; the order before it ends",
            self.operations[number],
            self.model.revision(),
        );
        for (before, _) in self.order.iter().rev().take(8).rev() {
            found.push_str(&format!("\n  {}", self.operations[*before]));
        }
        self.best = (self.order.len(), found);
    }
}

/// How an operation fits the state of the search.
enum Fit {
    /// It changes nothing and its response is right: it may as well come now.
    Now,
    /// It would change the state.
    Choice(Changes),
    /// Not in this state.
    NotNow,
    /// Nor in any that can follow.
    Never,
}

/// A well-spread number for each operation (the finaliser of SplitMix64).
fn number_hash(number: usize) -> u64 {
    let mut mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
