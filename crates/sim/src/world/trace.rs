//! What happened, as text: all of it in a hash, the end of it kept to be read.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};

/// Lines that are kept.
const LINES_MAX: usize = 200;
/// Bytes of a line that are kept.
const LINE_BYTES_MAX: usize = 400;

/// A time, in seconds.
pub(super) struct Seconds(pub(super) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// The trace of one run. Two runs with equal hashes did the same.
pub(super) struct Trace {
    hasher: DefaultHasher,
    lines: VecDeque<String>,
    /// Also print each line at once.
    verbose: bool,
}

impl Trace {
    /// With the environment variable `SIM_TRACE` set, every line is printed.
    pub(super) fn new() -> Trace {
        Trace {
            hasher: DefaultHasher::new(),
            lines: VecDeque::new(),
            verbose: std::env::var_os("SIM_TRACE").is_some(),
        }
    }

    pub(super) fn note(&mut self, now: u64, what: fmt::Arguments<'_>) {
        let line = format!("{} {what}", Seconds(now));
        self.hasher.write(line.as_bytes());
        if self.verbose {
            println!("{line}");
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
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

    /// The last lines.
    pub(super) fn tail(&self, count: usize) -> String {
        let skip = self.lines.len().saturating_sub(count);
        let mut tail = String::new();
        for line in self.lines.iter().skip(skip) {
            let end = (0..=line.len().min(LINE_BYTES_MAX)).rev().find(|&end| line.is_char_boundary(end));
            tail.push_str(&line[..end.unwrap_or(0)]);
            tail.push('\n');
        }
        tail
    }
}
