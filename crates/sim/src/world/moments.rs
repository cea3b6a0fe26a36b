//! What happened about some moments of a world, when it is known only in the end that they matter: a history is checked once it is
//! complete. Everything follows from the seed, so the world runs once more, and this time lines are kept of those moments.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Failure, Settings, World};

/// Moments of which lines are kept, the last ones: a history that nothing explains may name hundreds of operations.
const MOMENTS_MAX: usize = 6;
/// Lines that are kept up to a moment, and after it.
const LINES_BEFORE: usize = 12;
const LINES_AFTER: usize = 4;

/// Collects lines about moments.
pub(super) struct Moments {
    /// In order.
    all: Vec<Moment>,
    /// Lines so far.
    lines: u64,
}

/// What happened up to a moment and after it: lines with their numbers.
struct Moment {
    at_us: u64,
    before: VecDeque<(u64, String)>,
    after: Vec<(u64, String)>,
}

impl Moments {
    fn new(moments: &[u64]) -> Moments {
        let last = &moments[moments.len().saturating_sub(MOMENTS_MAX)..];
        let of = |at_us: &u64| Moment { at_us: *at_us, before: VecDeque::new(), after: Vec::new() };
        Moments { all: last.iter().map(of).collect(), lines: 0 }
    }

    pub(super) fn note(&mut self, now: u64, line: &str) {
        self.lines += 1;
        for Moment { at_us, before, after } in &mut self.all {
            let line = || (self.lines, line.to_owned());
            if now > *at_us {
                if after.len() < LINES_AFTER {
                    after.push(line());
                }
                continue;
            }
            if before.len() == LINES_BEFORE {
                before.pop_front();
            }
            before.push_back(line());
        }
    }

    /// Whether nothing more is of interest.
    pub(super) fn are_over(&self) -> bool {
        self.all.iter().all(|moment| moment.after.len() == LINES_AFTER)
    }

    /// The lines in order, each once, with a mark where some are left out.
    fn text(self) -> String {
        let all = self.all.into_iter().flat_map(|moment| moment.before.into_iter().chain(moment.after));
        let all: BTreeMap<u64, String> = all.collect();
        let mut text = String::new();
        let mut next = all.keys().next().copied().unwrap_or_default();
        for (number, line) in all {
            if number != next {
                text += "            …\n";
            }
            text += super::trace::shortened(&line);
            text.push('\n');
            next = number + 1;
        }
        text
    }
}

impl World {
    /// What happened about the moments that a failure names, from the world of the same `settings`; `None` if it names none, or if
    /// the last events are of those moments.
    pub fn around(settings: Settings, failure: &Failure) -> Option<String> {
        let moments = failure.violation.moments();
        if moments.last().is_none_or(|last| *last >= failure.tail_since_us) {
            return None;
        }
        let mut world = World::new(settings);
        world.trace.keep(Moments::new(&moments));
        world.begin();
        // How it ends is known.
        let _ = catch_unwind(AssertUnwindSafe(|| world.play(&mut |_| {})));
        world.trace.take_kept().map(Moments::text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::world::lies::Lie;

    /// The last events used to be seconds after what they were to explain.
    #[test]
    fn what_a_history_shows_in_the_end_is_told_with_what_happened_then() {
        let settings = |seed| Settings { lie: Some(Lie::StaleRead), ..Settings::of_seed(seed) };
        let failures = (1..=20).filter_map(|seed| World::run(settings(seed)).err());
        let told =
            failures.filter_map(|failure| Some((World::around(settings(failure.seed), &failure)?, failure)));
        let mut count = 0;
        for (around, failure) in told {
            count += 1;
            let found = failure.violation.to_string();
            let last = *failure.violation.moments().last().unwrap();
            // The line of an operation begins with its end.
            let named = found.lines().filter_map(|line| line.trim().strip_prefix('['));
            let named = named
                .filter_map(|line| line.split_once(']'))
                .find(|(span, _)| span.ends_with(&format!("{}", crate::history::At(last))));
            assert!(named.is_none_or(|(span, _)| around.contains(&format!("[{span}]"))), "{found}\n{around}");
            assert!(around.lines().count() <= MOMENTS_MAX * (LINES_BEFORE + LINES_AFTER + 1), "{around}");
        }
        assert!(count > 0, "no history of these named a moment before the last events");
    }

    #[test]
    fn lines_are_kept_once_and_in_order() {
        let mut moments = Moments::new(&[1, 2, 3, 4, 50, 51, 90, 95]);
        (1..=100).for_each(|now| moments.note(now, &format!("line {now}")));
        assert!(moments.are_over());
        let text = moments.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.first(), Some(&"line 1"), "six moments, of which the first is 3: {text}");
        assert_eq!(lines.iter().filter(|line| line.contains('…')).count(), 2, "{text}");
        assert_eq!(lines.iter().filter(|line| **line == "line 50").count(), 1, "{text}");
        assert_eq!(lines.last(), Some(&"line 99"));
    }
}
