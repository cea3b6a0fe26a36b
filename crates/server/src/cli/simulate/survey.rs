//! Many worlds, on several threads. What is printed does not depend on which thread is done first.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use hadron_sim::world::Failure;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use super::tally::Tally;
use super::{Options, failure_text, say};

thread_local! {
    /// The seed of the world that this thread runs.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// What the worlds came to.
#[derive(Default)]
struct Found {
    tally: Tally,
    failures: Vec<Failure>,
}

/// Runs the worlds and prints their sums, then what went wrong: the first in full. True if nothing did.
pub(super) fn run(options: &Options) -> bool {
    let bar = progress_bar(options.seeds);
    name_seeds_in_panics();
    let found = Mutex::new(Found::default());
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..threads(options) {
            scope.spawn(|| {
                while let Some(seed) = next_seed(options, &next) {
                    run_one(options, seed, &found);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let Found { tally, mut failures } = found.into_inner();
    failures.sort_by_key(|failure| failure.seed);
    say(&tally.to_string());
    report(options, &failures);
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

fn run_one(options: &Options, seed: u64, found: &Mutex<Found>) {
    SEED.set(seed);
    let mut tally = Tally::default();
    let outcome = super::world(options, seed, &mut |story| tally.event(story));
    let mut found = found.lock();
    match outcome {
        Ok(report) => {
            tally.world(&report);
            found.tally.add(tally);
        }
        Err(failure) => found.failures.push(*failure),
    }
}

fn report(options: &Options, failures: &[Failure]) {
    let Some((first, others)) = failures.split_first() else { return };
    say(&format!("\n{} worlds FAILED\n", failures.len()));
    for failure in others {
        say(&format!(
            "seed {}: {}\n  again: {}\n",
            failure.seed,
            failure.violation,
            options.again(failure.seed)
        ));
    }
    say(&failure_text(options, first));
}

/// A world that panics counts as one that failed; where a panic ends the program, it names the seed at least.
fn name_seeds_in_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("a panic in the world of seed {}:", SEED.get());
        usual(panic);
    }));
}

/// A bar on standard error; hidden when that is not a terminal.
fn progress_bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} worlds  {per_sec}  {eta} left") {
        bar.set_style(style);
    }
    bar
}
