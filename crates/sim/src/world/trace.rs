//! What happened, as text: all of it in a hash, the end of it kept to be read, and what was found wrong first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::rc::Rc;

use super::moments::Moments;
use super::{Failure, Settings};
use crate::history::{At, Violation};

/// Lines that are kept.
const LINES_MAX: usize = 200;
/// Bytes of a line that are kept.
const LINE_BYTES_MAX: usize = 400;

/// A time, in seconds.
pub(super) struct Seconds(pub(super) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12}", At(self.0).to_string())
    }
}

thread_local! {
    /// The trace of the world that ran on this thread last.
    static LATEST: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// What there is to tell of the world of `seed`, which runs on this thread, for a hook of panics in which it just ended: a program that is built
/// to abort does not come back from there.
pub fn panicked(seed: u64, panic: &PanicHookInfo<'_>) -> Box<Failure> {
    let place = panic.location().map(|place| format!(" ({place})")).unwrap_or_default();
    let said = message(panic.payload()) + &place;
    match LATEST.take() {
        Some(trace) => trace.failure(trace.asserted(said)),
        // It had not begun.
        None => {
            let violation = Violation::new("assertion", said);
            Box::new(Failure { seed, violation, tail: String::new(), tail_since_us: 0 })
        }
    }
}

/// What a panic said.
pub(super) fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// The trace of one run. Two runs with equal hashes did the same. Shared with whoever looks after a panic of its thread.
#[derive(Clone)]
pub(super) struct Trace(Rc<RefCell<Lines>>);

struct Lines {
    seed: u64,
    hasher: DefaultHasher,
    /// The last ones, with their times.
    last: VecDeque<(u64, String)>,
    /// How many of them a failure comes with.
    tail: usize,
    /// Earlier ones, if somebody wants to know of some moments.
    moments: Option<Moments>,
    /// What was found first.
    violation: Option<Violation>,
    /// Also print each line at once.
    verbose: bool,
}

impl Trace {
    /// With the environment variable `SIM_TRACE` set, every line is printed to standard error.
    pub(super) fn new(settings: &Settings) -> Trace {
        let trace = Trace(Rc::new(RefCell::new(Lines {
            seed: settings.seed,
            hasher: DefaultHasher::new(),
            last: VecDeque::new(),
            tail: settings.tail_lines,
            moments: None,
            violation: None,
            verbose: std::env::var_os("SIM_TRACE").is_some(),
        })));
        LATEST.set(Some(trace.clone()));
        trace
    }

    pub(super) fn note(&self, now: u64, what: fmt::Arguments<'_>) {
        let line = format!("{} {what}", Seconds(now));
        self.0.borrow_mut().note(now, line);
    }

    /// Notes what was found wrong.
    pub(super) fn violated(&self, now: u64, violation: Violation) {
        self.note(now, format_args!("VIOLATION {violation}"));
        self.0.borrow_mut().violation.get_or_insert(violation);
    }

    /// What was found wrong first.
    pub(super) fn take_violation(&self) -> Option<Violation> {
        self.0.borrow_mut().violation.take()
    }

    /// Keeps lines about some moments as well.
    pub(super) fn keep(&self, moments: Moments) {
        self.0.borrow_mut().moments = Some(moments);
    }

    /// What was kept about them.
    pub(super) fn take_kept(&self) -> Option<Moments> {
        self.0.borrow_mut().moments.take()
    }

    /// Whether the world runs only for some moments, which are over.
    pub(super) fn is_complete(&self) -> bool {
        self.0.borrow().moments.as_ref().is_some_and(Moments::are_over)
    }

    /// Whether somebody reads along.
    pub(super) fn is_verbose(&self) -> bool {
        self.0.borrow().verbose
    }

    /// Shows something to whoever reads along, and notes nothing.
    pub(super) fn show(&self, now: u64, what: fmt::Arguments<'_>) {
        self.0.borrow().print(&format!("{} {what}", Seconds(now)));
    }

    /// Counts bytes that are not worth a line.
    pub(super) fn count(&self, bytes: &[u8]) {
        self.0.borrow_mut().hasher.write(bytes);
    }

    pub(super) fn hash(&self) -> u64 {
        self.0.borrow().hasher.finish()
    }

    /// How a run ended in which this did not hold.
    pub(super) fn failure(&self, violation: Violation) -> Box<Failure> {
        self.0.borrow().failure(violation)
    }

    /// What did not hold where a panic said this. What was found before it counts for more than what came of it.
    pub(super) fn asserted(&self, said: String) -> Violation {
        self.take_violation().unwrap_or_else(|| Violation::new("assertion", said))
    }
}

impl Lines {
    /// Shows a line to whoever reads along. That changes nothing else: what a program prints follows from its arguments alone.
    fn print(&self, line: &str) {
        if self.verbose {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }

    fn note(&mut self, now: u64, line: String) {
        self.hasher.write(line.as_bytes());
        self.print(&line);
        if let Some(moments) = &mut self.moments {
            moments.note(now, &line);
        }
        if self.last.len() == LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back((now, line));
    }

    fn failure(&self, violation: Violation) -> Box<Failure> {
        let skip = self.last.len().saturating_sub(self.tail);
        let tail_since_us = self.last.get(skip).map_or(0, |(at, _)| *at);
        let lines = self.last.iter().skip(skip).map(|(_, line)| format!("{}\n", shortened(line)));
        Box::new(Failure { seed: self.seed, violation, tail: lines.collect(), tail_since_us })
    }
}

/// As much of a line as is shown.
pub(super) fn shortened(line: &str) -> &str {
    let end = (0..=line.len().min(LINE_BYTES_MAX)).rev().find(|&end| line.is_char_boundary(end));
    &line[..end.unwrap_or(0)]
}
