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
mod help;
mod output;
mod panics;
mod survey;
mod tally;

use std::process::ExitCode;

use super::counted;
use hadron_sim::world::lies::{Lie, worlds};
use hadron_sim::world::{Failure, Report, Scenario, Settings, World};
use output::{note, say};

pub(super) use panics::is_in_a_world;

/// Exit code when a guarantee did not hold.
const VIOLATED: u8 = 1;
/// Exit code when the arguments do not go together, as clap's.
const USAGE: u8 = 2;
/// Simulated seconds with faults, usually.
const SECONDS: u64 = 15;
/// Nodes in a world in which they are the shipped ones, at most.
const WORLD_NODES_MAX: u64 = 9;
/// The commit of the source, where it is known: see `build.rs`.
const COMMIT: &str = env!("HADRON_COMMIT");
/// What [`COMMIT`] is where it is not known.
const UNKNOWN: &str = "unknown";

/// Flags of `simulate`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "`--help` lists the scenarios and the lies.", after_long_help = help::tables())]
pub struct Options {
    /// The seed of the world, or of the first of several
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many worlds to run, each from the next seed; more than one are counted, not told
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    seeds: u64,
    /// Nodes in the cluster, at most 9; with --scenario balance 30 to 10000 [default: 3 or 5, as the seed says; there 100]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    nodes: Option<u64>,
    /// Keyspaces, with --scenario balance [default: 100 for each node]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keyspaces: Option<u64>,
    /// Simulated hours, 12 to 240, with --scenario balance [default: 24]
    #[arg(long, value_parser = clap::value_parser!(u64).range(12..=240))]
    hours: Option<u64>,
    /// Simulated seconds with faults, 3 to 86400, before everything is healed and checked [default: 15, or as --lie has it]
    #[arg(long, value_parser = clap::value_parser!(u64).range(3..=86_400))]
    seconds: Option<u64>,
    /// What prevails in the world; all: each seed another; balance: a pool of many nodes [default: usual, or the world of --lie]
    #[arg(long, value_parser = Choice::parse)]
    scenario: Option<Choice>,
    /// Tell something that is not true, such as stale-read, to see that the checks notice: without --scenario in a world of its own
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

    /// The scenario of a seed in a world of so many nodes, or of as many as it happens to have.
    fn of(self, seed: u64, nodes: Option<u64>) -> Scenario {
        match self {
            Choice::One(scenario) => scenario,
            // A pool is run before a world is asked for.
            Choice::All | Choice::Balance => {
                let works = |scenario: &Scenario| nodes.is_none_or(|nodes| scenario.nodes_min() <= nodes);
                let scenarios: Vec<Scenario> = Scenario::ALL.into_iter().filter(works).collect();
                scenarios[(seed % scenarios.len() as u64) as usize]
            }
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
    Lie::ALL
        .into_iter()
        .find(|lie| lie_name(*lie) == text)
        .ok_or_else(|| format!("no such lie; there are\n{}", help::lies()))
}

impl Options {
    /// What clap cannot tell: which arguments go with which scenario.
    fn check(&self) -> Result<(), String> {
        if self.scenario == Some(Choice::Balance) {
            return self.check_balance();
        }
        if self.keyspaces.is_some() || self.hours.is_some() {
            return Err("--keyspaces and --hours belong to --scenario balance".into());
        }
        match self.nodes {
            Some(nodes) if nodes > WORLD_NODES_MAX => Err(format!(
                "--nodes {nodes}: a world has at most {WORLD_NODES_MAX} nodes; --scenario balance takes more"
            )),
            Some(nodes) if nodes < self.nodes_min() => Err(format!(
                "--nodes {nodes}: {} needs at least {}",
                self.world_name(self.seed),
                self.nodes_min()
            )),
            _ => Ok(()),
        }
    }

    /// The fewest nodes with which the worlds that were chosen make sense.
    fn nodes_min(&self) -> u64 {
        match (self.lies_world(), self.scenario) {
            (Some(_), _) => worlds::NODES_MIN,
            (None, Some(Choice::One(scenario))) => scenario.nodes_min(),
            _ => 1,
        }
    }

    /// The lie whose own world is run.
    fn lies_world(&self) -> Option<Lie> {
        self.lie.filter(|_| self.scenario.is_none())
    }

    /// The scenario of a seed, unless it is a lie's own world.
    fn scenario(&self, seed: u64) -> Scenario {
        self.scenario.unwrap_or(Choice::One(Scenario::Usual)).of(seed, self.nodes)
    }

    /// What kind of world a seed gets.
    fn world_name(&self, seed: u64) -> String {
        match self.lies_world() {
            Some(lie) => format!("the world of --lie {}", lie_name(lie)),
            None => format!("--scenario {}", self.scenario(seed)),
        }
    }

    fn check_balance(&self) -> Result<(), String> {
        let least = hadron_sim::balance::NODES_MIN as u64;
        match self.nodes {
            _ if self.lie.is_some() => Err("--scenario balance knows no lies".into()),
            _ if self.seconds.is_some() || self.threads.is_some() => {
                Err("--scenario balance takes --hours, not --seconds, and runs one pool after the other, without --threads".into())
            }
            Some(nodes) if nodes < least => {
                Err(format!("--nodes {nodes}: --scenario balance needs at least {least}"))
            }
            _ => Ok(()),
        }
    }

    fn settings(&self, seed: u64) -> Settings {
        let (mut settings, seconds) = match self.lies_world() {
            Some(lie) => (lie.world(seed), self.seconds),
            None => (Settings::of(self.scenario(seed), seed), self.seconds.or(Some(SECONDS))),
        };
        settings.nodes = self.nodes.unwrap_or(settings.nodes);
        settings.faults_us = seconds.map_or(settings.faults_us, |seconds| seconds * 1_000_000);
        settings.lie = self.lie;
        settings
    }

    /// The command that runs the world of `seed` again.
    fn again(&self, seed: u64) -> String {
        let seconds = self.settings(seed).faults_us / 1_000_000;
        let mut command = format!("hadron simulate --seed {seed} --seconds {seconds}");
        if self.lies_world().is_none() {
            command += &format!(" --scenario {}", self.scenario(seed));
        }
        command += &self.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
        command += &self.lie.map(|lie| format!(" --lie {}", lie_name(lie))).unwrap_or_default();
        command
    }
}

/// Runs the worlds. Fails when a guarantee did not hold in one of them.
pub fn run(options: &Options) -> ExitCode {
    if let Err(reason) = options.check() {
        note(format_args!("hadron simulate: {reason}"));
        return ExitCode::from(USAGE);
    }
    panics::end_worlds();
    let held = match options.scenario {
        Some(Choice::Balance) => balance::run(options),
        _ if options.seeds == 1 => tell_one(options),
        _ => survey::run(options),
    };
    if let (true, Some(lie)) = (held, options.lie) {
        say(&unnoticed(options, lie));
    }
    if held { ExitCode::SUCCESS } else { ExitCode::from(VIOLATED) }
}

/// Prints what happens in one world while it happens.
fn tell_one(options: &Options) -> bool {
    let settings = options.settings(options.seed);
    say(help::LEGEND);
    say(&format!(
        "The world of seed {} ({}): {}, {}, {}; faults for {} s.\n",
        options.seed,
        options.world_name(options.seed).trim_start_matches("--scenario "),
        counted(settings.nodes, "node", "nodes"),
        counted(settings.keyspaces, "keyspace", "keyspaces"),
        counted(
            settings.clients + settings.lease_clients + settings.lock_clients + settings.watchers,
            "client",
            "clients"
        ),
        settings.faults_us / 1_000_000
    ));
    let outcome = panics::in_world(options.seed, move || {
        World::run_with(settings, &mut |story| say(&format!("{story}\n")))
    });
    match &outcome {
        Ok(report) => say(&summary(report)),
        Err(failure) => say(&failure_text(options, failure)),
    }
    outcome.is_ok()
}

/// What to say of a lie that no world noticed, which would look like praise otherwise.
fn unnoticed(options: &Options, lie: Lie) -> String {
    let why = if lie.is_harmless() {
        "nothing comes of it, as the nodes notice it themselves"
    } else if options.scenario.is_some() {
        "perhaps it does not matter in such worlds: without --scenario it gets one in which it does"
    } else {
        "perhaps it does not matter with this seed: try others, or several (--seeds 20)"
    };
    format!("\nThe lie was not noticed: {lie} ({why}).\n")
}

fn summary(report: &Report) -> String {
    format!(
        "\n{:.1} s simulated: {}, {} acknowledged, {} with an unknown outcome; {}, {}, {}.\n\
         {} After the healing every client was served within {} ms.\n\
         The trace's hash is {:016x}: two runs with one hash did the same.\n",
        report.simulated_us as f64 / 1e6,
        counted(report.operations as u64, "operation", "operations"),
        report.acknowledged,
        report.unknown,
        counted(report.crashes, "crash", "crashes"),
        counted(report.snapshots, "snapshot", "snapshots"),
        counted(report.compactions, "compaction", "compactions"),
        verdict(report.undecided),
        report.recovery_us / 1_000,
        report.trace_hash
    )
}

/// What to say where nothing was found not to hold, and of so many keyspaces it was not found out.
fn verdict(undecided: u64) -> String {
    if undecided == 0 {
        return "Every guarantee held.".into();
    }
    let keyspaces = counted(undecided, "keyspace", "keyspaces");
    format!(
        "Nothing was found not to hold; undecided: linearizable, of {keyspaces}, where the search took too long."
    )
}

fn failure_text(options: &Options, failure: &Failure) -> String {
    let seed = failure.seed;
    // Runs the world once more where what was found in the end is about earlier times.
    let (settings, again) = (options.settings(seed), failure.clone());
    let around = panics::in_world(seed, move || Ok(World::around(settings, &again)));
    let around = around
        .ok()
        .flatten()
        .map(|lines| format!("\nWhat happened at the times that are named below:\n{lines}"));
    format!(
        "{}\nThe last events:\n{}\nseed {seed}, commit {}: {}\nagain: {}\n",
        around.unwrap_or_default(),
        failure.tail,
        commit(COMMIT),
        failure.violation,
        options.again(seed)
    )
}

/// Without the commit a seed says little: another one makes another world of it.
fn commit(known: &str) -> String {
    match known {
        UNKNOWN => {
            format!(
                "{UNKNOWN} (only release builds know theirs; keep what `git rev-parse HEAD` says with the seed)"
            )
        }
        known => known.to_owned(),
    }
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
        let met: std::collections::BTreeSet<_> = seeds.map(|seed| Choice::All.of(seed, None)).collect();
        assert_eq!(met.len(), Scenario::ALL.len(), "consecutive seeds meet all");
    }

    fn options(arguments: &str) -> Options {
        let command =
            <Options as clap::Args>::augment_args(clap::Command::new("simulate").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments.split_whitespace()).unwrap();
        <Options as clap::FromArgMatches>::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn fewer_nodes_than_a_scenario_needs_are_refused() {
        let refused = |arguments: &str| options(arguments).check().err().unwrap_or_default();
        assert_eq!(refused("--nodes 2 --scenario sleep"), "--nodes 2: --scenario sleep needs at least 3");
        assert_eq!(
            refused("--nodes 1 --scenario partitions"),
            "--nodes 1: --scenario partitions needs at least 2"
        );
        assert_eq!(
            refused("--nodes 2 --lie ghost-node"),
            "--nodes 2: the world of --lie ghost-node needs at least 3"
        );
        for taken in [
            "--nodes 1",
            "--nodes 3 --scenario sickness",
            "--nodes 1 --scenario all",
            "--nodes 1 --lie ghost-node --scenario usual",
        ] {
            assert_eq!(refused(taken), "", "{taken}");
        }
        // Only such scenarios are drawn as make sense.
        assert!((0..50).all(|seed| Choice::All.of(seed, Some(2)).nodes_min() <= 2));
    }

    #[test]
    fn a_lie_gets_a_world_in_which_it_matters() {
        let own = options("--lie pinned-forever");
        assert_eq!((own.settings(3).faults_us, own.settings(3).keyspaces), (9_000_000, 2));
        assert_eq!(own.again(3), "hadron simulate --seed 3 --seconds 9 --lie pinned-forever");
        let chosen = options("--lie pinned-forever --scenario calm --seconds 20");
        assert_eq!(chosen.settings(3).faults_us, 20_000_000);
        assert_eq!(
            chosen.again(3),
            "hadron simulate --seed 3 --seconds 20 --scenario calm --lie pinned-forever"
        );
        assert_eq!(options("").again(7), "hadron simulate --seed 7 --seconds 15 --scenario usual");
        assert!(unnoticed(&own, Lie::PinnedForever).starts_with("\nThe lie was not noticed: nobody is told"));
    }

    #[test]
    fn the_help_names_all_scenarios_and_lies_in_lines_that_can_be_read() {
        let mut command = <Options as clap::Args>::augment_args(clap::Command::new("simulate"));
        let help = command.render_long_help().to_string();
        let names = Scenario::ALL.map(|scenario| scenario.name().to_owned()).into_iter();
        let missing =
            names.chain(Lie::ALL.map(lie_name)).filter(|name| !help.contains(&format!("\n  {name} ")));
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0], "{help}");
        let long = help.lines().chain(help::LEGEND.lines()).filter(|line| line.chars().count() > 140);
        assert_eq!(long.collect::<Vec<_>>(), [""; 0]);
        assert!(command.render_help().to_string().contains("`--help` lists"));
    }

    #[test]
    fn a_commit_that_is_not_known_is_asked_for() {
        assert!(commit(UNKNOWN).contains("git rev-parse HEAD"));
        assert_eq!(commit("0123456789ab-dirty"), "0123456789ab-dirty");
    }
}
