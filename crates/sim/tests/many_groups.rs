//! Hundreds of groups on one set of nodes, two of them in trouble: the nodes share one log and one engine for all, so
//! one group that cannot go on must cost the others nothing but its share of the memory.
//!
//! `SIM_GROUPS_SEEDS=100` runs that many, `SIM_SEED=7` runs one.

#![allow(clippy::unwrap_used)]

use hadron_consensus::GroupId;
use hadron_node::Limits;
use hadron_sim::world::{Report, Settings, Trouble, World};

const GROUPS: u64 = 500;
/// Its replicas cannot talk to each other.
const WITHOUT_QUORUM: GroupId = GroupId(7);
/// One node's engine does not finish its flush.
const STALLED: GroupId = GroupId(11);

/// Every group has a client, the two in trouble have more, and large values; all machines lose their power twice.
fn settings(seed: u64) -> Settings {
    let mut settings = Settings::of_seed(seed);
    settings.nodes = 3;
    settings.keyspaces = GROUPS;
    settings.clients = GROUPS;
    settings.busy_keyspaces = vec![WITHOUT_QUORUM, STALLED];
    settings.troubles = vec![Trouble::NoQuorum(WITHOUT_QUORUM), Trouble::StalledFlush(1 + seed % 3, STALLED)];
    settings.blackouts_us = vec![7_000_000, 12_000_000];
    settings.fault_pause_us = 2_000_000;
    settings.recovery_us_max = 30_000_000;
    settings.client_timeout_us = 1_500_000;
    settings.think_us = 500_000;
    settings.rest_us = 2_000_000;
    settings.large_value_one_in = 4;
    settings.sync_us_max = 2_000;
    settings.segment_bytes = 256 << 10;
    settings.pinned_bytes_max = 4 << 20;
    settings.limits = Limits {
        unflushed_bytes: 128 << 10,
        node_unflushed_bytes: 2 << 20,
        node_log_bytes: 2 << 20,
        log_tail_bytes: 16 << 10,
        snapshot_log_bytes: 1 << 20,
        persist_interval_us: 1_000_000,
        sleep_after_us: 500_000,
        ..Limits::default()
    };
    settings
}

fn run(seed: u64) -> Report {
    let report = World::run(settings(seed)).unwrap_or_else(|failure| panic!("{failure}"));
    println!("seed {seed}: {report:?}");
    report
}

#[test]
fn groups_in_trouble_pin_neither_log_nor_memory_and_nobody_loses_anything() {
    let variable = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let seeds = match variable("SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=variable("SIM_GROUPS_SEEDS").unwrap_or(2),
    };
    for seed in seeds {
        let report = run(seed);
        // Both troubles had something to hold on to, and all machines lost their power twice.
        assert!(report.crashes >= 6);
        assert!(report.usage.unflushed > 128 << 10);
        assert!(report.acknowledged as u64 > 4 * GROUPS);
    }
}
