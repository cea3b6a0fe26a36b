//! Many worlds, on several threads. What is printed does not depend on which thread is done first; what is said on standard error
//! meanwhile does: each failure when it is found, so that it is known also if the rest is not waited for, and how far it is.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hadron_sim::world::{Failure, World};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use super::output::{note, say};
use super::tally::Tally;
use super::{Options, failure_text, panics};
use crate::cli::counted;

/// How long nothing is said of the progress at most where no bar shows it.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Characters of a violation in a line that says that there is one.
const SUMMARY_CHARS_MAX: usize = 240;

/// What the worlds came to.
#[derive(Default)]
struct Found {
    tally: Tally,
    failures: Vec<Failure>,
}

/// Runs the worlds and prints their sums, then what went wrong: the first in full. True if nothing did.
pub(super) fn run(options: &Options) -> bool {
    let progress = Progress::new(options.seeds);
    let found = Mutex::new(Found::default());
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..threads(options) {
            scope.spawn(|| {
                while !panics::are_too_many()
                    && let Some(seed) = next_seed(options, &next)
                {
                    run_one(options, seed, &found, &progress);
                }
            });
        }
    });
    progress.bar.finish_and_clear();
    let Found { tally, mut failures } = found.into_inner();
    failures.sort_by_key(|failure| failure.seed);
    say(&tally.to_string());
    let begun = next.into_inner().min(options.seeds);
    report(options, &failures, begun < options.seeds);
    failures.is_empty()
}

fn threads(options: &Options) -> usize {
    let processors = || thread::available_parallelism().map_or(1, usize::from);
    options.threads.map_or_else(processors, usize::from)
}

fn next_seed(options: &Options, next: &AtomicU64) -> Option<u64> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    (number < options.seeds).then(|| options.seed.wrapping_add(number))
}

fn run_one(options: &Options, seed: u64, found: &Mutex<Found>, progress: &Progress) {
    let settings = options.settings(seed);
    let outcome = panics::in_world(seed, move || {
        let mut tally = Tally::default();
        let report = World::run_with(settings, &mut |story| tally.event(story))?;
        tally.world(&report);
        Ok(tally)
    });
    progress.tell(options, outcome.as_ref().err().map(AsRef::as_ref));
    let mut found = found.lock();
    match outcome {
        Ok(tally) => found.tally.add(tally),
        Err(failure) => found.failures.push(*failure),
    }
}

fn report(options: &Options, failures: &[Failure], is_cut_short: bool) {
    let Some((first, others)) = failures.split_first() else { return };
    say(&format!("\n{} FAILED\n", counted(failures.len() as u64, "world", "worlds")));
    for failure in others {
        say(&format!(
            "seed {}: {}\n  again: {}\n",
            failure.seed,
            failure.violation,
            options.again(failure.seed)
        ));
    }
    say(&failure_text(options, first));
    if is_cut_short {
        say(
            "\nThe rest was not run: worlds that panic keep their memory, and of so many there may be too little left.\n",
        );
    }
}

/// How far it is, on standard error: a bar where that is a terminal, a line now and then where it is not.
struct Progress {
    bar: ProgressBar,
    is_shown: bool,
    total: u64,
    so_far: Mutex<SoFar>,
}

struct SoFar {
    done: u64,
    failed: u64,
    told_at: Instant,
}

impl Progress {
    fn new(total: u64) -> Progress {
        let is_shown = std::io::stderr().is_terminal();
        let so_far = Mutex::new(SoFar { done: 0, failed: 0, told_at: Instant::now() });
        if !is_shown {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
            return Progress { bar, is_shown, total, so_far };
        }
        let bar = ProgressBar::new(total);
        let template = "{bar:40} {pos}/{len} worlds{msg}  {per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Progress { bar, is_shown, total, so_far }
    }

    /// A world has ended.
    fn tell(&self, options: &Options, failure: Option<&Failure>) {
        let mut so_far = self.so_far.lock();
        so_far.done += 1;
        if let Some(failure) = failure {
            so_far.failed += 1;
            self.bar.suspend(|| note(failure_line(options, failure)));
            self.bar.set_message(format!(", {} failed", so_far.failed));
        }
        self.bar.inc(1);
        let SoFar { done, failed, told_at } = &mut *so_far;
        if !self.is_shown && (ends_a_tenth(*done, self.total) || told_at.elapsed() > SILENCE_MAX) {
            *told_at = Instant::now();
            note(format_args!("{done} of {}, {failed} failed", counted(self.total, "world", "worlds")));
        }
    }
}

/// Whether another tenth is over once so many are done.
fn ends_a_tenth(done: u64, total: u64) -> bool {
    let tenths = |done: u64| u128::from(done) * 10 / u128::from(total);
    tenths(done) > tenths(done - 1)
}

/// That a world failed, and how to see more of it.
fn failure_line(options: &Options, failure: &Failure) -> String {
    let violation = failure.violation.to_string();
    let first = violation.lines().next().unwrap_or_default();
    let shown: String = first.chars().take(SUMMARY_CHARS_MAX).collect();
    let more = if shown.len() < violation.len() { " …" } else { "" };
    format!("FAILED: seed {}: {shown}{more}\n  again: {}", failure.seed, options.again(failure.seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_at_most_tell_of_the_progress() {
        for (total, lines) in [(1, 1), (7, 7), (10, 10), (11, 10), (1_000, 10), (u64::MAX, 0)] {
            let told = (1..=total.min(1_000)).filter(|done| ends_a_tenth(*done, total));
            assert_eq!(told.count(), lines, "{total}");
        }
    }
}
