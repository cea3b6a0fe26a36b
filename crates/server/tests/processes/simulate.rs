//! `hadron simulate` as its users see it.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadron"));
    command.arg("simulate").args(arguments).env_remove("SIM_TRACE").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn one_seed_tells_one_story() {
    let (once, again) = (simulate(&["--seed", "7"]), simulate(&["--seed", "7"]));
    assert!(once.status.success());
    assert_eq!(text(&once.stdout), text(&again.stdout));
    let story = text(&once.stdout);
    for part in ["wins the election", "everything is healed", "linearizable holds", "Every guarantee held"] {
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
    assert_eq!(once.status.success(), !report.contains("BROKEN"), "{report}");
    for part in ["zone-2 with 12 nodes cannot be reached", "moves by reason:", "held:"] {
        assert!(report.contains(part), "{part:?} is not in\n{report}");
    }
    assert!(text(&once.stderr).contains("the slowest plan took"));
    let small = simulate(&["--scenario", "balance", "--nodes", "9"]);
    assert_eq!(small.status.code(), Some(2));
    assert!(text(&small.stderr).contains("at least 30"));
}
