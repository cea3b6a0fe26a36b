//! `hadron simulate`: whole clusters in a simulated world, each from one seed.
//!
//! The nodes are the shipped ones; disks, network, clocks and clients are simulated, and faults are injected for a while.
//! Then everything is healed, and what the clients saw is held against what a store like this must promise (see
//! [`hadron_sim`]). One seed is told as a story, many are counted (`survey`). Standard output follows from the arguments
//! alone; the progress of many worlds is shown on standard error.
//!
//! The scenario `balance` is another kind of world (`balance`): a pool of up to thousands of nodes of which only places and loads are
//! simulated, for the planner that decides which replica goes where.

mod balance;
mod survey;
mod tally;

use std::io::Write as _;
use std::process::ExitCode;

use hadron_sim::world::lies::Lie;
use hadron_sim::world::{Failure, Report, Scenario, Settings, Story, World};

/// Exit code when a guarantee did not hold.
const VIOLATED: u8 = 1;
/// Exit code when the arguments do not go together, as clap's.
const USAGE: u8 = 2;
/// Nodes in a world in which they are the shipped ones, at most.
const WORLD_NODES_MAX: u64 = 9;
/// The commit of the source, where it is known: see `build.rs`.
const COMMIT: &str = env!("HADRON_COMMIT");

/// Flags of `simulate`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The seed of the world, or of the first of several
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many worlds to run, each from the next seed; more than one are counted, not told
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Nodes in the cluster, at most 9 [default: as the seed says, 3 or 5; 100 with --scenario balance, there 30 to 10000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    nodes: Option<u64>,
    /// Keyspaces, with --scenario balance [default: 100 for each node]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keyspaces: Option<u64>,
    /// Simulated hours, with --scenario balance [default: 24]
    #[arg(long, value_parser = clap::value_parser!(u64).range(12..=240))]
    hours: Option<u64>,
    /// Simulated seconds with faults, before everything is healed and checked
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=86_400))]
    seconds: u64,
    /// What prevails in the world: usual, calm, storm, partitions, crashes, disks, clocks, leases, snapshots, compactions,
    /// many-groups, members, placements, repairs, pool, sleep, sickness; all, each seed another; or balance, a pool of many nodes whose load is balanced
    #[arg(long, default_value = "usual", value_parser = Choice::parse)]
    scenario: Choice,
    /// Tell the nodes or the clients something that is not true, to see that the checks notice
    #[arg(long, value_parser = lie, value_name = "LIE")]
    lie: Option<Lie>,
    /// Worlds that run at a time [default: one for each processor]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Which scenario a seed gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    One(Scenario),
    All,
    Balance,
}

impl Choice {
    fn parse(text: &str) -> Result<Choice, String> {
        match text {
            "all" => Ok(Choice::All),
            "balance" => Ok(Choice::Balance),
            _ => {
                text.parse().map(Choice::One).map_err(|error: String| format!("{error}; or all, or balance"))
            }
        }
    }

    fn of(self, seed: u64) -> Scenario {
        match self {
            Choice::One(scenario) => scenario,
            // A pool is run before a world is asked for.
            Choice::All | Choice::Balance => Scenario::ALL[(seed % Scenario::ALL.len() as u64) as usize],
        }
    }
}

/// `stale-read` for [`Lie::StaleRead`].
fn lie_name(lie: Lie) -> String {
    let mut name = String::new();
    for letter in format!("{lie:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn lie(text: &str) -> Result<Lie, String> {
    Lie::ALL.into_iter().find(|lie| lie_name(*lie) == text).ok_or_else(|| {
        let lines = Lie::ALL.map(|lie| format!("  {:<22} {lie}", lie_name(lie)));
        format!("no such lie; there are\n{}", lines.join("\n"))
    })
}

impl Options {
    /// What clap cannot tell: which arguments go with which scenario.
    fn check(&self) -> Result<(), String> {
        if self.scenario == Choice::Balance {
            return self.check_balance();
        }
        if self.keyspaces.is_some() || self.hours.is_some() {
            return Err("--keyspaces and --hours belong to --scenario balance".into());
        }
        match self.nodes {
            Some(nodes) if nodes > WORLD_NODES_MAX => Err(format!(
                "--nodes {nodes}: a world has at most {WORLD_NODES_MAX} nodes; --scenario balance takes more"
            )),
            _ => Ok(()),
        }
    }

    fn check_balance(&self) -> Result<(), String> {
        let least = hadron_sim::balance::NODES_MIN as u64;
        match self.nodes {
            _ if self.lie.is_some() => Err("--scenario balance knows no lies".into()),
            Some(nodes) if nodes < least => {
                Err(format!("--nodes {nodes}: --scenario balance needs at least {least}"))
            }
            _ => Ok(()),
        }
    }

    fn settings(&self, seed: u64) -> Settings {
        let mut settings = Settings::of(self.scenario.of(seed), seed);
        settings.nodes = self.nodes.unwrap_or(settings.nodes);
        settings.faults_us = self.seconds * 1_000_000;
        settings.lie = self.lie;
        settings
    }

    /// The command that runs the world of `seed` again.
    fn again(&self, seed: u64) -> String {
        let mut command = format!("hadron simulate --seed {seed} --seconds {}", self.seconds);
        command += &format!(" --scenario {}", self.scenario.of(seed));
        command += &self.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
        command += &self.lie.map(|lie| format!(" --lie {}", lie_name(lie))).unwrap_or_default();
        command
    }
}

/// Runs the worlds. Fails when a guarantee did not hold in one of them.
pub fn run(options: &Options) -> ExitCode {
    if let Err(reason) = options.check() {
        eprintln!("hadron simulate: {reason}");
        return ExitCode::from(USAGE);
    }
    let held = match options.scenario {
        Choice::Balance => balance::run(options),
        _ if options.seeds == 1 => tell_one(options),
        _ => survey::run(options),
    };
    if held { ExitCode::SUCCESS } else { ExitCode::from(VIOLATED) }
}

/// Prints what happens in one world while it happens.
fn tell_one(options: &Options) -> bool {
    let settings = options.settings(options.seed);
    say(&format!(
        "The world of seed {} ({}): {} nodes, {} keyspaces, {} clients; faults for {} s.\n",
        options.seed,
        options.scenario.of(options.seed),
        settings.nodes,
        settings.keyspaces,
        settings.clients + settings.lease_clients + settings.lock_clients + settings.watchers,
        options.seconds
    ));
    let outcome = world(options, options.seed, &mut |story| say(&format!("{story}\n")));
    match &outcome {
        Ok(report) => say(&summary(report)),
        Err(failure) => say(&failure_text(options, failure)),
    }
    outcome.is_ok()
}

/// Runs the world of `seed`. In a program that is built to abort when it panics, what it found goes out before that.
fn world(options: &Options, seed: u64, tell: &mut dyn FnMut(&Story)) -> Result<Report, Box<Failure>> {
    World::run_with(options.settings(seed), tell)
}

fn summary(report: &Report) -> String {
    format!(
        "\n{:.1} s simulated: {} operations, {} acknowledged, {} with an unknown outcome; {} crashes, {} snapshots, \
         {} compactions.\nEvery guarantee held. After the healing every client was served within {} ms.\n\
         The trace's hash is {:016x}.\n",
        report.simulated_us as f64 / 1e6,
        report.operations,
        report.acknowledged,
        report.unknown,
        report.crashes,
        report.snapshots,
        report.compactions,
        report.recovery_us / 1_000,
        report.trace_hash
    )
}

fn failure_text(options: &Options, failure: &Failure) -> String {
    format!(
        "\nThe last events:\n{}\nseed {}, commit {COMMIT}: {}\nagain: {}\n",
        failure.tail,
        failure.seed,
        failure.violation,
        options.again(failure.seed)
    )
}

/// Prints at once. Nobody reads along any more when that fails.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lies_and_scenarios_are_found_by_name() {
        assert_eq!(lie("stale-read"), Ok(Lie::StaleRead));
        assert!(lie("white").unwrap_err().contains("stale-read"));
        assert_eq!(Choice::parse("clocks"), Ok(Choice::One(Scenario::Clocks)));
        assert!(Choice::parse("dull").is_err());
        let seeds = 0..Scenario::ALL.len() as u64;
        let met: std::collections::BTreeSet<_> = seeds.map(|seed| Choice::All.of(seed)).collect();
        assert_eq!(met.len(), Scenario::ALL.len(), "consecutive seeds meet all");
    }

    #[test]
    fn the_help_names_all_scenarios() {
        let command = <Options as clap::Args>::augment_args(clap::Command::new("simulate"));
        let scenario = command.get_arguments().find(|argument| argument.get_id() == "scenario");
        let help = scenario.and_then(clap::Arg::get_help).unwrap().to_string();
        let missing = Scenario::ALL.map(Scenario::name).into_iter().filter(|name| !help.contains(name));
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
    }
}
