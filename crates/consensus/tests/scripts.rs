//! Golden scripts: whole-group stories in `tests/scripts/*.txt`, to be read like a log.
//!
//! A block is comments (`#`), commands, a line `----`, and what came of them; blocks are separated by empty lines. With
//! `UPDATE_SCRIPTS=1` the output is written anew; read the difference before believing it.
//!
//! Nothing moves by itself: messages wait in queues until `deliver`, writes until `persist`, time until `wait`.
//! `settle` does both until nothing is left. The commands are in `scripts/runner.rs`.

#![allow(clippy::unwrap_used)]

#[path = "scripts/runner.rs"]
mod runner;
#[path = "scripts/show.rs"]
mod show;

use std::path::Path;

use runner::Runner;

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(name);
    let script = read(&path);
    let actual = play(&script);
    if std::env::var("UPDATE_SCRIPTS").is_ok() {
        return write(&path, &actual);
    }
    for (line, (expected, actual)) in script.lines().zip(actual.lines()).enumerate() {
        assert_eq!(actual, expected, "{name}:{} differs; UPDATE_SCRIPTS=1 writes it anew", line + 1);
    }
    assert_eq!(actual, script, "{name} differs; UPDATE_SCRIPTS=1 writes it anew");
}

/// The one place where this crate's tests touch files: the scripts themselves.
#[allow(clippy::disallowed_methods)]
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[allow(clippy::disallowed_methods)]
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// The script as it should be.
fn play(script: &str) -> String {
    let mut runner = Runner::default();
    let blocks: Vec<String> =
        script.trim_end().split("\n\n").map(|block| play_block(&mut runner, block)).collect();
    blocks.join("\n\n") + "\n"
}

fn play_block(runner: &mut Runner, block: &str) -> String {
    let input: Vec<&str> = block.lines().take_while(|line| *line != "----").collect();
    let commands = input.iter().filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut output = Vec::new();
    let mut has_commands = false;
    for command in commands {
        has_commands = true;
        runner.run(command, &mut output);
    }
    if !has_commands {
        return input.join("\n");
    }
    if output.is_empty() {
        output.push("ok".to_string());
    }
    format!("{}\n----\n{}", input.join("\n"), output.join("\n"))
}

#[test]
fn membership() {
    check("membership.txt");
}

#[test]
fn elections() {
    check("elections.txt");
}

#[test]
fn check_quorum() {
    check("check_quorum.txt");
}

#[test]
fn replication() {
    check("replication.txt");
}

#[test]
fn conflicts() {
    check("conflicts.txt");
}

#[test]
fn pressure() {
    check("pressure.txt");
}

#[test]
fn snapshots() {
    check("snapshots.txt");
}

#[test]
fn transfer() {
    check("transfer.txt");
}

#[test]
fn sleep() {
    check("sleep.txt");
}

#[test]
fn reads() {
    check("reads.txt");
}
