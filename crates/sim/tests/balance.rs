//! The planner of `hadron_balance` in small pools, for a day each: the bounds that `hadron simulate --scenario balance` checks.

#![allow(clippy::unwrap_used)]

use hadron_sim::balance::{Settings, run};

fn size() -> (usize, usize, u64) {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    (number("SIM_NODES", 60), number("SIM_KEYSPACES", 3_000), number("SIM_HOURS", 24) as u64)
}

#[test]
fn a_day_of_a_pool_keeps_its_bounds_and_runs_alike_twice() {
    let (nodes, keyspaces, hours) = size();
    let settings = Settings { hours, ..Settings::of(1, nodes, keyspaces) };
    let mut story = Vec::new();
    let report = run(&settings, &mut |line| story.push(line.to_string()));
    println!("{}\n{report}\nslowest round {:?}", story.join("\n"), report.slowest_round);
    assert!(report.holds(), "{report}");
    let mut again = Vec::new();
    let repeated = run(&settings, &mut |line| again.push(line.to_string()));
    assert_eq!((story, report.to_string()), (again, repeated.to_string()));
}

/// With few keyspaces that stand out the mean is what nodes are held to, and not the heaviest replica.
#[test]
fn where_no_keyspace_stands_out_no_node_is_far_above_the_mean() {
    let settings = Settings { zipf: 0.5, ..Settings::of(2, 60, 3_000) };
    let mut story = Vec::new();
    let report = run(&settings, &mut |line| story.push(line.to_string()));
    println!("{}\n{report}", story.join("\n"));
    assert!(report.holds(), "{report}");
    assert!(report.by_load.0.largest_of_its_own <= 1.05, "{report}");
}
