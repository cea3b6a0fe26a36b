//! `hadron ctl` as people call it.

use std::process::{Command, Output, Stdio};

/// Runs it against these endpoints.
pub fn run(endpoints: &str, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadron"));
    command.args(["ctl", "--endpoints", endpoints]).args(words).stdin(Stdio::null());
    command.output().unwrap()
}

/// What it prints when all goes well.
pub fn ctl(endpoints: &str, words: &[&str]) -> String {
    let output = run(endpoints, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What it complains about.
pub fn complaint(endpoints: &str, words: &[&str]) -> String {
    let output = run(endpoints, words);
    assert!(!output.status.success(), "{words:?}: {}", text(&output.stdout));
    text(&output.stderr)
}

/// What a process printed.
pub fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}
