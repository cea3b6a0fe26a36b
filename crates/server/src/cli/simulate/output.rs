//! What is printed: what was found on standard output, what is about this run of the program on standard error.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _};

/// Exit code when what was found could not be printed.
const UNTOLD: i32 = 3;
/// What shells show for a program that a closed pipe has ended, as it ends other tools.
const PIPE_CLOSED: i32 = 141;

/// Prints at once. Where that fails the process ends: what nobody will read need not be found out.
pub(super) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let said = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    let Err(error) = said else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(PIPE_CLOSED);
    }
    note(format_args!("hadron simulate: cannot write to standard output: {error}"));
    std::process::exit(UNTOLD);
}

/// A line on standard error. Nothing is lost if nobody reads it.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
