//! Many worlds, each from a seed: see `hadron_sim::world` and `docs/testing.md`.
//!
//! `SIM_SEEDS=1000` runs that many, `SIM_FIRST_SEED=5000` begins there, `SIM_SEED=7` runs one, and `SIM_TRACE=1` with
//! `--nocapture` prints everything that happens in it.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hadron_sim::world::{Report, Scenario, Settings, StoryEvent, World};

/// Worlds in a usual test run.
const SEEDS: u64 = 60;
/// Threads that run worlds; each world is one thread's business.
const THREADS: usize = 2;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// `SIM_SCENARIO` chooses another kind of world than the usual one.
fn scenario() -> Scenario {
    std::env::var("SIM_SCENARIO").map_or(Scenario::Usual, |name| name.parse().unwrap())
}

/// `SIM_NODES` says how many nodes there are, `SIM_SHARDS` how many shards a node has at most, `SIM_SECONDS` for how long there are faults.
fn settings(seed: u64) -> Settings {
    let drawn = Settings::of(scenario(), seed);
    Settings {
        nodes: variable("SIM_NODES").unwrap_or(drawn.nodes),
        shards_max: variable("SIM_SHARDS").map_or(drawn.shards_max, |most| most as usize),
        faults_us: variable("SIM_SECONDS").map_or(drawn.faults_us, |seconds| seconds * 1_000_000),
        ..drawn
    }
}

/// The command that runs the world of `seed` again, which the other variables are part of.
fn again(seed: u64) -> String {
    let others = ["SIM_SCENARIO", "SIM_NODES", "SIM_SHARDS", "SIM_SECONDS"];
    let set = others
        .map(|name| std::env::var(name).map_or_else(|_| String::new(), |text| format!("{name}={text} ")));
    format!("{}SIM_SEED={seed} cargo test -p hadron-sim --test world many", set.concat())
}

fn run(seed: u64) -> Report {
    match World::run(settings(seed)) {
        Ok(report) => report,
        Err(failure) => {
            panic!("{failure}\nagain: {}", again(seed))
        }
    }
}

fn run_all(seeds: &[u64]) -> Vec<Report> {
    let next = AtomicU64::new(0);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let report = run(seed);
                    println!("seed {seed}: {report:?}");
                    assert_eq!(report.undecided, 0, "seed {seed}");
                    reports.lock().unwrap().push(report);
                }
            });
        }
    });
    reports.into_inner().unwrap()
}

#[test]
fn many_worlds_keep_every_promise_and_heal() {
    let seeds: Vec<u64> = match variable("SIM_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = variable("SIM_FIRST_SEED").unwrap_or(1);
            (first..first + variable("SIM_SEEDS").unwrap_or(SEEDS)).collect()
        }
    };
    let reports = run_all(&seeds);
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    println!(
        "{} worlds: {} operations ({} unknown), {} crashes, {} snapshots, {} leaders, {} sleeps, {} wakes, longest recovery {} ms",
        reports.len(),
        sum(|report| report.operations as u64),
        sum(|report| report.unknown as u64),
        sum(|report| report.crashes),
        sum(|report| report.snapshots),
        sum(|report| report.terms_led as u64),
        sum(|report| report.sleeps),
        sum(|report| report.wakes),
        reports.iter().map(|report| report.recovery_us).max().unwrap_or(0) / 1_000,
    );
    if scenario() == Scenario::Usual && seeds.len() as u64 >= SEEDS {
        // The worlds are not as gentle as they would be if a fault were never injected.
        assert!(sum(|report| report.crashes) > 0);
        assert!(sum(|report| report.snapshots) > 0);
        assert!(sum(|report| report.unknown as u64) > 0);
        assert!(sum(|report| report.wakes) > seeds.len() as u64);
    }
}

/// With one node or two some worlds took away what nobody else could take over, and blamed the nodes.
#[test]
fn every_scenario_works_with_as_few_nodes_as_it_says() {
    for scenario in Scenario::ALL {
        for (nodes, seed) in (scenario.nodes_min()..=3).flat_map(|nodes| [(nodes, 1), (nodes, 2)]) {
            World::run(Settings { nodes, ..Settings::of(scenario, seed) })
                .unwrap_or_else(|failure| panic!("{scenario} with {nodes} nodes: {failure}"));
        }
    }
}

#[test]
fn one_seed_makes_one_world() {
    for seed in [1, 2] {
        assert_eq!(run(seed), run(seed));
    }
}

#[test]
fn every_scenario_keeps_every_promise_and_tells_the_same_story_twice() {
    for scenario in Scenario::ALL {
        let tell = |seed| {
            let mut lines = Vec::new();
            let outcome =
                World::run_with(Settings::of(scenario, seed), &mut |story| lines.push(story.to_string()));
            let report = outcome.unwrap_or_else(|failure| panic!("{scenario}: {failure}"));
            println!("{scenario}, seed {seed}: {report:?}");
            (report, lines)
        };
        for seed in 1..=2 {
            assert_eq!(tell(seed), tell(seed));
        }
    }
}

/// A partition that was over with everything else ended once more seconds later, in the middle of what came then: a node that was sick was heard
/// again.
#[test]
fn what_was_healed_is_not_healed_again() {
    for (scenario, seed) in [(Scenario::Usual, 7), (Scenario::Sickness, 27), (Scenario::Sickness, 61)] {
        let mut told = Vec::new();
        World::run_with(Settings::of(scenario, seed), &mut |story| told.push(story.event.clone())).unwrap();
        let healed = told.iter().position(|event| *event == StoryEvent::Healed).unwrap();
        let cuts = told[..healed].iter().filter(|event| matches!(event, StoryEvent::Partition { .. }));
        assert!(cuts.count() > 0, "{scenario}, seed {seed}");
        assert!(!told[healed..].contains(&StoryEvent::PartitionEnds), "{scenario}, seed {seed}");
    }
}

/// Nodes compare their replicas, and name one that shows something else than the others.
#[test]
fn a_replica_that_differs_is_named_by_the_others() {
    let named = |seed| World::run(Settings::of(Scenario::Repairs, seed)).unwrap().named;
    assert!((1..=12).map(named).sum::<u64>() > 2);
}

/// A damaged replica of a placed group was only named, and stayed where it was for ever.
#[test]
fn damaged_replicas_are_rebuilt_elsewhere_and_in_their_place() {
    let repairs = |seed| World::run(Settings::of(Scenario::Repairs, seed)).unwrap().repairs;
    // Of an even seed there is no node without a replica.
    for (what, seeds) in [("elsewhere", [1, 3, 5]), ("in their place", [2, 4, 6])] {
        assert!(seeds.into_iter().map(repairs).sum::<u64>() > 0, "{what}");
    }
}
