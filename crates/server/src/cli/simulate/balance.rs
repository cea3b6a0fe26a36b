//! The scenario `balance`: a day of a pool of many nodes, planned by load, beside the same pool planned by counts.

use std::time::Duration;

use hadron_sim::balance::{Report, Settings};

use super::output::{note, say};
use super::{COMMIT, Options, commit};
use crate::cli::counted;

const NODES: u64 = 100;
const KEYSPACES_PER_NODE: u64 = 100;
/// What a plan is to take of a processor at most.
const ROUND_MAX: Duration = Duration::from_secs(1);

/// Runs the pool of each seed. True if every bound held.
pub(super) fn run(options: &Options) -> bool {
    let broken = (0..options.seeds).filter(|number| !run_one(options, options.seed.wrapping_add(*number)));
    broken.count() == 0
}

fn run_one(options: &Options, seed: u64) -> bool {
    let settings = settings(options, seed);
    say(&format!(
        "The pool of seed {seed}: {} nodes, {}, {} hours.\n",
        settings.nodes,
        counted(settings.keyspaces as u64, "keyspace", "keyspaces"),
        settings.hours
    ));
    let report = hadron_sim::balance::run(&settings, &mut |line| say(&format!("{line}\n")));
    say(&format!("{report}"));
    if !report.holds() {
        say(&format!(
            "seed {seed}, commit {}\nagain: hadron simulate {}\n",
            commit(COMMIT),
            again(&settings)
        ));
    }
    tell_duration(&report);
    report.holds()
}

fn settings(options: &Options, seed: u64) -> Settings {
    let nodes = options.nodes.unwrap_or(NODES);
    let keyspaces = options.keyspaces.unwrap_or(nodes * KEYSPACES_PER_NODE);
    let mut settings = Settings::of(seed, nodes as usize, keyspaces as usize);
    settings.hours = options.hours.unwrap_or(settings.hours);
    settings
}

fn again(settings: &Settings) -> String {
    let Settings { seed, nodes, keyspaces, hours, .. } = settings;
    format!("--scenario balance --seed {seed} --nodes {nodes} --keyspaces {keyspaces} --hours {hours}")
}

/// How long plans took. On standard error, and without consequence: it is about this machine and what else runs on it, and what is on
/// standard output, and whether all held, follows from the arguments alone.
fn tell_duration(report: &Report) {
    let slowest = report.slowest_round;
    let verdict =
        if slowest < ROUND_MAX { "as is aimed at" } else { "more than the second that is aimed at" };
    note(format_args!("  note: the slowest plan took {slowest:.1?} of a processor, {verdict}"));
}
