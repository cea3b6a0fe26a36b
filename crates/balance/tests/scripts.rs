//! Golden scripts: stories of pools in `tests/scripts/*.txt`, to be read like a log.
//!
//! A block is comments (`#`), commands, a line `----`, and what came of them; blocks are separated by empty lines. With
//! `UPDATE_SCRIPTS=1` the output is written anew; read the difference before believing it.
//!
//! Nothing moves by itself: `plan` shows a plan and forgets it, `start` begins it, `step` takes the next step of what was begun, and
//! `settle` plans and carries out until there is nothing left to do. The commands are in `scripts/runner.rs`.

#![allow(clippy::unwrap_used)]

#[path = "scripts/runner.rs"]
mod runner;

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
    commands.for_each(|command| runner.run(command, &mut output));
    if input.iter().all(|line| line.starts_with('#')) {
        return input.join("\n");
    }
    if output.is_empty() {
        output.push("ok".to_string());
    }
    format!("{}\n----\n{}", input.join("\n"), output.join("\n"))
}

#[test]
fn load() {
    check("load.txt");
}

#[test]
fn loss() {
    check("loss.txt");
}

#[test]
fn gone() {
    check("gone.txt");
}

#[test]
fn hidden() {
    check("hidden.txt");
}

#[test]
fn stuck() {
    check("stuck.txt");
}

#[test]
fn stranded() {
    check("stranded.txt");
}

#[test]
fn learners() {
    check("learners.txt");
}

#[test]
fn damage() {
    check("damage.txt");
}

#[test]
fn drain() {
    check("drain.txt");
}

#[test]
fn zones() {
    check("zones.txt");
}

#[test]
fn disks() {
    check("disks.txt");
}

#[test]
fn factor() {
    check("factor.txt");
}

#[test]
fn steps() {
    check("steps.txt");
}

#[test]
fn place() {
    check("place.txt");
}

#[test]
fn simulate() {
    check("simulate.txt");
}
