//! The scenario `balance`: a day of a pool of many nodes, planned by load, beside the same pool planned by counts.

use std::time::Duration;

use hadron_sim::balance::{Report, Settings};

use super::{Options, say};

const NODES: u64 = 100;
const KEYSPACES_PER_NODE: u64 = 100;
/// What a plan may take of a processor.
const ROUND_MAX: Duration = Duration::from_secs(1);

/// Runs the pool of each seed. True if every bound held.
pub(super) fn run(options: &Options) -> bool {
    let broken = (0..options.seeds).filter(|number| !run_one(options, options.seed.wrapping_add(*number)));
    broken.count() == 0
}

fn run_one(options: &Options, seed: u64) -> bool {
    let settings = settings(options, seed);
    say(&format!(
        "The pool of seed {seed}: {} nodes, {} keyspaces, {} hours.\n",
        settings.nodes, settings.keyspaces, settings.hours
    ));
    let report = hadron_sim::balance::run(&settings, &mut |line| say(&format!("{line}\n")));
    say(&format!("{report}"));
    if !report.holds() {
        say(&format!("again: hadron simulate {}\n", again(&settings)));
    }
    tell_duration(&report) && report.holds()
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

/// Whether every plan was made in time. On standard error: it is about this machine, and what is on standard output follows from the
/// arguments alone.
fn tell_duration(report: &Report) -> bool {
    let in_time = report.slowest_round < ROUND_MAX;
    let verdict = if in_time { "held:   " } else { "BROKEN: " };
    eprintln!(
        "  {verdict}the slowest plan took {:?} of a processor, at most {ROUND_MAX:?}",
        report.slowest_round
    );
    in_time
}
