//! Panics of what runs in a world: a finding about its seed, while other worlds go on. Any other panic ends the process.
//!
//! A program that is built to abort, as releases are, cannot leave a function that panicked. So each world has a thread of its own, and one that
//! panics has that stand still for ever, once it was told of.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use hadron_sim::world::{Failure, panicked};

use super::output::note;

/// Worlds that may stand still, each with what it takes in memory: some ten megabytes, a hundred where many groups are in it.
const STANDING_MAX: usize = 20;

/// Whom to tell of the panic of a world.
type End = Box<dyn FnOnce(Box<Failure>)>;

thread_local! {
    /// The seed of the world that this thread runs, and what to do if it panics.
    static WORLD: RefCell<Option<(u64, End)>> = const { RefCell::new(None) };
}

/// How many worlds have panicked.
static STANDING: AtomicUsize = AtomicUsize::new(0);

/// Whether the thread runs a world, for which a panic is an outcome.
pub(in crate::cli) fn is_in_a_world() -> bool {
    WORLD.with_borrow(Option::is_some)
}

/// Whether so many worlds panicked that there may be no room for more of them.
pub(super) fn are_too_many() -> bool {
    STANDING.load(Ordering::Relaxed) >= STANDING_MAX
}

/// Does what runs the world of `seed`. If that panics, what there is to tell of it.
pub(super) fn in_world<T: Send + 'static>(
    seed: u64,
    run: impl FnOnce() -> Result<T, Box<Failure>> + Send + 'static,
) -> Result<T, Box<Failure>> {
    let (sender, outcome) = mpsc::channel();
    thread::spawn(move || {
        let end = sender.clone();
        // Nobody waits for it any more only if the process ends.
        WORLD.set(Some((seed, Box::new(move |failure| drop(end.send(Err(failure)))))));
        let done = run();
        WORLD.take();
        let _ = sender.send(done);
    });
    // It sends something before it ends or stands still.
    outcome.recv().unwrap_or_else(|_| std::process::abort())
}

/// Has each panic in a world name its seed on standard error at once, and end that world.
pub(super) fn end_worlds() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let seed = WORLD.with_borrow(|world| world.as_ref().map(|(seed, _)| *seed));
        if let Some(seed) = seed {
            note(format_args!("a panic in the world of seed {seed}:"));
        }
        usual(panic);
        let Some((seed, end)) = WORLD.take() else { return };
        STANDING.fetch_add(1, Ordering::Relaxed);
        end(panicked(seed, panic));
        loop {
            thread::park();
        }
    }));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use super::*;

    /// In a process of its own, which is this test once more: threads that stand still keep the hook, and whoever would set another waits for ever.
    #[test]
    fn a_world_that_panics_is_told_of_and_others_go_on_until_too_many_stand() {
        const CHILD: &str = "HADRON_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            end_worlds();
            for seed in 0.. {
                if are_too_many() {
                    break;
                }
                if let Err(failure) = in_world::<()>(seed, || panic!("on purpose")) {
                    println!("ended: seed {}: {}", failure.seed, failure.violation);
                }
                println!("the next: {:?}", in_world(seed, || Ok(is_in_a_world())).ok());
            }
            println!("outside: {}", is_in_a_world());
            std::process::exit(0);
        }
        let name = "cli::simulate::panics::tests::a_world_that_panics_is_told_of_and_others_go_on_until_too_many_stand";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let complained = String::from_utf8(output.stderr).unwrap();
        for seed in 0..STANDING_MAX {
            let ended = format!("ended: seed {seed}: assertion does not hold: on purpose (");
            let line = told.lines().find(|line| line.starts_with(&ended)).unwrap();
            assert!(line.contains("panics.rs:"), "{line}");
            assert!(complained.contains(&format!("a panic in the world of seed {seed}:")));
        }
        assert_eq!(told.matches("ended: ").count(), STANDING_MAX, "{told}");
        assert_eq!(told.matches("the next: Some(true)").count(), STANDING_MAX);
        assert!(told.contains("outside: false"));
        assert!(output.status.success());
    }
}
