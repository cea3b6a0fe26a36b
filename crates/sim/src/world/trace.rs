//! What happened, as text: all of it in a hash, the end of it kept to be read.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};

use super::moments::Moments;
use crate::history::At;

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

/// The trace of one run. Two runs with equal hashes did the same.
pub(super) struct Trace {
    hasher: DefaultHasher,
    /// The last ones, with their times.
    lines: VecDeque<(u64, String)>,
    /// Earlier ones, if somebody wants to know of some moments.
    moments: Option<Moments>,
    /// Also print each line at once.
    verbose: bool,
}

impl Trace {
    /// With the environment variable `SIM_TRACE` set, every line is printed.
    pub(super) fn new() -> Trace {
        Trace {
            hasher: DefaultHasher::new(),
            lines: VecDeque::new(),
            moments: None,
            verbose: std::env::var_os("SIM_TRACE").is_some(),
        }
    }

    pub(super) fn note(&mut self, now: u64, what: fmt::Arguments<'_>) {
        let line = format!("{} {what}", Seconds(now));
        self.hasher.write(line.as_bytes());
        if self.verbose {
            println!("{line}");
        }
        if let Some(moments) = &mut self.moments {
            moments.note(now, &line);
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back((now, line));
    }

    /// Keeps lines about some moments as well.
    pub(super) fn keep(&mut self, moments: Moments) {
        self.moments = Some(moments);
    }

    /// What was kept about them.
    pub(super) fn kept(self) -> Option<Moments> {
        self.moments
    }

    /// Whether the world runs only for some moments, which are over.
    pub(super) fn is_complete(&self) -> bool {
        self.moments.as_ref().is_some_and(Moments::are_over)
    }

    /// Whether somebody reads along.
    pub(super) fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Counts bytes that are not worth a line.
    pub(super) fn count(&mut self, bytes: &[u8]) {
        self.hasher.write(bytes);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    /// The last lines, and the time of the first of them.
    pub(super) fn tail(&self, count: usize) -> (u64, String) {
        let skip = self.lines.len().saturating_sub(count);
        let since = self.lines.get(skip).map_or(0, |(at, _)| *at);
        let lines = self.lines.iter().skip(skip).map(|(_, line)| format!("{}\n", shortened(line)));
        (since, lines.collect())
    }
}

/// As much of a line as is shown.
pub(super) fn shortened(line: &str) -> &str {
    let end = (0..=line.len().min(LINE_BYTES_MAX)).rev().find(|&end| line.is_char_boundary(end));
    &line[..end.unwrap_or(0)]
}
