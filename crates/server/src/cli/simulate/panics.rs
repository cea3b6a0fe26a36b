//! Panics of what runs in a world: a finding about its seed, while other worlds go on. Any other panic ends the process.

use std::cell::{Cell, RefCell};

use hadron_sim::world::Failure;

use super::output::note;

// What a program that is built to abort cannot catch would take the findings of all seeds along.
#[cfg(not(panic = "unwind"))]
compile_error!("`hadron simulate` tells of the panics of its worlds: build with panic = \"unwind\"");

thread_local! {
    /// The seed of the world that this thread runs.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    /// Where in the code this thread panicked last.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Whether the thread runs a world, for which a panic is an outcome.
pub(in crate::cli) fn is_in_a_world() -> bool {
    SEED.get().is_some()
}

/// Does what runs the world of `seed`.
pub(super) fn in_world<T>(seed: u64, run: impl FnOnce() -> T) -> T {
    PLACE.take();
    SEED.set(Some(seed));
    let outcome = run();
    SEED.set(None);
    outcome
}

/// Has what is said of the panic that ended a world name its place in the code.
pub(super) fn name_place(failure: &mut Failure) {
    let place = PLACE.take().filter(|_| failure.violation.guarantee == "assertion");
    failure.violation.found += &place.map(|place| format!(" ({place})")).unwrap_or_default();
}

/// Has each panic in a world name its seed on standard error at once.
pub(super) fn name_seeds() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(seed) = SEED.get() {
            PLACE.set(panic.location().map(ToString::to_string));
            note(format_args!("a panic in the world of seed {seed}:"));
        }
        usual(panic);
    }));
}
