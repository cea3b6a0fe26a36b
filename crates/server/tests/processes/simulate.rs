//! `hadron simulate` as its users see it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadron"));
    command.arg("simulate").args(arguments).env_remove("SIM_TRACE");
    command
}

fn simulate(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn one_seed_tells_one_story() {
    let (once, again) = (simulate(&["--seed", "7"]), simulate(&["--seed", "7"]));
    assert!(once.status.success());
    assert_eq!(text(&once.stdout), text(&again.stdout));
    let traced = command(&["--seed", "7"]).env("SIM_TRACE", "1").output().unwrap();
    assert_eq!(
        text(&once.stdout),
        text(&traced.stdout),
        "nor is it another one where everything is told beside it"
    );
    let story = text(&once.stdout);
    for part in ["wins the election", "everything is healed", "linearizable holds", "Every guarantee held"] {
        assert!(story.contains(part), "{part:?} is not in\n{story}");
    }
    for part in
        ["P(x) = V(x) / ΣV(i)", "C(x)      = L(x) / ΣL(i)", "of 3 votes, needs 2", "holds for default ("]
    {
        assert!(story.contains(part), "{part:?} is not in\n{story}");
    }
    let other = simulate(&["--seed", "8"]);
    assert_ne!(story, text(&other.stdout));
}

#[test]
fn many_seeds_are_counted_in_any_order() {
    let arguments = ["--seeds", "11", "--scenario", "all", "--seconds", "5"];
    let threads = |count| simulate(&[&arguments[..], &["--threads", count]].concat());
    let (alone, together) = (threads("1"), threads("4"));
    assert!(alone.status.success(), "{}", text(&alone.stdout));
    assert!(text(&alone.stdout).starts_with("11 worlds in which every guarantee held"));
    assert_eq!(text(&alone.stdout), text(&together.stdout));
}

#[test]
fn a_failure_says_how_to_see_it_again() {
    let lies = simulate(&["--seeds", "8", "--lie", "stale-read"]);
    assert_eq!(lies.status.code(), Some(1));
    let report = text(&lies.stdout);
    let (_, again) = report.rsplit_once("again: hadron simulate ").unwrap();
    let once_more = simulate(&again.split_whitespace().collect::<Vec<_>>());
    assert_eq!(once_more.status.code(), Some(1));
    assert!(text(&once_more.stdout).contains("The last events:"));
}

/// Who does not wait for the end, or is not given the time, knows what was found by then.
#[test]
fn a_failure_is_told_when_it_is_found() {
    let lies = simulate(&["--seeds", "20", "--lie", "stale-read", "--threads", "3"]);
    let (report, progress) = (text(&lies.stdout), text(&lies.stderr));
    let told = progress.matches("FAILED: seed ").count();
    assert!(told > 0);
    assert!(report.contains(&format!("\n{told} world")), "{told} are not in\n{report}");
    assert_eq!(progress.matches("  again: hadron simulate --seed ").count(), told);
    assert!(progress.contains(&format!("20 of 20 worlds, {told} failed")), "{progress}");
}

/// The program used to abort in such a world, and took along what it had found in all others.
#[test]
fn a_panic_in_a_world_is_a_finding_among_others() {
    // Not each world whose engine is damaged panics. One in some fifty does.
    let report = |first: u64| {
        let arguments = ["--seeds", "50", "--lie", "engine-bit-flip", "--scenario", "crashes", "--seed"];
        let lies = simulate(&[&arguments[..], &[&first.to_string()]].concat());
        assert_eq!(lies.status.code(), Some(1));
        text(&lies.stdout)
    };
    let reports = (0..1_000).step_by(50).map(report);
    let report = { reports }.find(|report| report.contains("assertion does not hold")).unwrap();
    let asserted = report.lines().find(|line| line.contains("assertion does not hold")).unwrap();
    assert!(asserted.contains(" (crates/"), "the place in the code: {asserted}");
    let seed = asserted.split([' ', ':', ',']).nth(1).unwrap();
    let alone = ["--seed", seed, "--lie", "engine-bit-flip", "--scenario", "crashes"];
    let alone = simulate(&alone);
    assert_eq!(alone.status.code(), Some(1));
    let story = text(&alone.stdout);
    for part in ["The last events:", "assertion does not hold", "commit ", "again: hadron simulate --seed "] {
        assert!(story.contains(part), "{part:?} is not in\n{story}");
    }
    assert!(text(&alone.stderr).contains(&format!("a panic in the world of seed {seed}:")));
}

#[test]
fn what_cannot_be_printed_is_not_taken_for_found() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let untold = command(&["--seed", "7"]).stdout(full).output().unwrap();
    assert_eq!(untold.status.code(), Some(3));
    assert!(text(&untold.stderr).contains("cannot write to standard output"));
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let mut command = command(&["--seconds", "86400"]);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("How to read it"), "{line}");
    assert_eq!(process.wait().unwrap().code(), Some(141), "as of a tool that SIGPIPE ends");
    let mut complaint = String::new();
    process.stderr.unwrap().read_to_string(&mut complaint).unwrap();
    assert_eq!(complaint, "");
}

/// It looked like praise: every guarantee held.
#[test]
fn a_lie_that_is_not_noticed_is_said_not_to_be() {
    let unnoticed = simulate(&["--lie", "ghost-node", "--scenario", "calm", "--seconds", "3"]);
    assert_eq!(unnoticed.status.code(), Some(0));
    let report = text(&unnoticed.stdout);
    let (_, last) = report.trim_end().rsplit_once('\n').unwrap();
    assert!(last.starts_with("The lie was not noticed: a node that is down is still heard"), "{report}");
    let noticed = simulate(&["--lie", "ghost-node"]);
    assert_eq!(noticed.status.code(), Some(1));
    assert!(!text(&noticed.stdout).contains("not noticed"));
}

#[test]
fn few_nodes_are_refused_where_too_few() {
    let refused = simulate(&["--nodes", "2", "--scenario", "sickness"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("needs at least 3"));
    assert_eq!(simulate(&["--nodes", "1", "--seconds", "3"]).status.code(), Some(0));
}

#[test]
fn nonsense_is_refused() {
    for (arguments, named) in [
        (["--scenario", "dull"], "many-groups"),
        (["--nodes", "0"], "1..=10000"),
        (["--nodes", "10"], "at most 9"),
        (["--keyspaces", "10"], "--scenario balance"),
        (["--lie", "white"], "stale-read"),
    ] {
        let refused = simulate(&arguments);
        assert_eq!(refused.status.code(), Some(2));
        let message = text(&refused.stderr);
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn a_pool_is_balanced_and_says_what_held() {
    let arguments = ["--scenario", "balance", "--nodes", "60", "--keyspaces", "1200", "--hours", "12"];
    let (once, again) = (simulate(&arguments), simulate(&arguments));
    let report = text(&once.stdout);
    assert_eq!(report, text(&again.stdout), "what is printed follows from the arguments alone");
    // Nor does anything else: not how long a plan took on this machine.
    assert_eq!(once.status.success(), !report.contains("BROKEN"), "{report}");
    assert_eq!(once.status.code(), again.status.code());
    for part in ["zone-2 with 12 nodes cannot be reached", "moves by reason:", "held:"] {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
    assert!(text(&once.stderr).contains("the slowest plan took"));
    let small = simulate(&["--scenario", "balance", "--nodes", "9"]);
    assert_eq!(small.status.code(), Some(2));
    assert!(text(&small.stderr).contains("at least 30"));
    for other in [["--seconds", "5"], ["--threads", "2"]] {
        let refused = simulate(&["--scenario", "balance", other[0], other[1]]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains("--hours"), "{}", text(&refused.stderr));
    }
}
