//! The tests are tested: for each lie that a world can tell, the worlds within which it is found, and what finds it.
//!
//! `cargo test -p hadron-sim --test lies -- --nocapture` prints in which world each was found. A lie that is not found
//! any more means that a checker has become blind, or that the worlds have become too gentle.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use hadron_consensus::GroupId;
use hadron_sim::checkers::GUARANTEES;
use hadron_sim::world::lies::Lie;
use hadron_sim::world::{Scenario, Settings, Trouble, Weights, World};

/// A lie, where it is told, and how it is found.
struct Case {
    lie: Lie,
    world: fn(u64) -> Settings,
    /// It is found within this many seeds, from 1 on.
    seeds: u64,
    /// By one of these. Most lies break several promises, and each world shows another one first.
    by: &'static [&'static str],
}

const fn case(lie: Lie, world: fn(u64) -> Settings, seeds: u64, by: &'static [&'static str]) -> Case {
    Case { lie, world, seeds, by }
}

/// Replicas differ, or one was made to do what its own code knows to be impossible, or it cannot go on.
const SAFETY: &[&str] = &[
    "election_safety",
    "log_matching",
    "leader_completeness",
    "state_machine_safety",
    "revision_order",
    "linearizable",
    "durable_ack",
    "watch_order",
    "compaction",
    "lease_promise",
    "exclusion",
    "assertion",
    "liveness",
];

/// What was stored is not what is read.
const DAMAGE: &[&str] = &[
    "recovery",
    "digest_agreement",
    "state_machine_safety",
    "stored_state",
    "watch_order",
    "no_fatal",
    "assertion",
];

/// Clients hear what is not so.
const ANSWERS: &[&str] = &[
    "durable_ack",
    "revision_order",
    "linearizable",
    "compaction",
    "exclusion",
    "tenant_isolation",
    "lease_promise",
    "liveness",
];

const CASES: [Case; 35] = [
    case(Lie::DurableBeforeFsync, blackouts, 20, SAFETY),
    case(Lie::LostFsync, blackouts, 20, SAFETY),
    case(Lie::MinorityCommit, partitions, 10, SAFETY),
    case(Lie::ForgottenVote, usual, 5, &["durable_ack"]),
    case(Lie::OldDisk, crashes, 10, SAFETY),
    case(Lie::WipedDisk, crashes, 10, SAFETY),
    case(Lie::EngineForgets, usual, 10, &["recovery"]),
    case(Lie::AppliedAgain, crashes, 10, &["digest_agreement", "recovery"]),
    case(Lie::EngineBitFlip, usual, 10, DAMAGE),
    case(Lie::CutSnapshot, snapshots, 10, &["no_fatal"]),
    case(Lie::StaleRead, usual, 10, &["revision_order", "linearizable", "lease_promise"]),
    case(Lie::ProposedAgain, crashes, 10, &["durable_ack"]),
    case(Lie::WrongKeyspace, tenants, 10, &["tenant_isolation", "linearizable"]),
    case(Lie::WrongClient, disks, 10, ANSWERS),
    case(Lie::AckUnasked, usual, 20, &["revision_order", "durable_ack", "lease_promise"]),
    case(Lie::OldRevision, usual, 10, &["revision_order", "durable_ack"]),
    case(Lie::LockUnguarded, leases, 10, &["exclusion"]),
    case(Lie::OverCompaction, partitions, 20, &["compaction", "watch_order"]),
    case(Lie::DeafNode, usual, 10, &["liveness"]),
    case(Lie::SkippedEvent, usual, 10, &["watch_order", "liveness"]),
    case(Lie::DoubledEvent, usual, 10, &["watch_order"]),
    case(Lie::DisorderedEvents, usual, 20, &["watch_order"]),
    case(Lie::EarlyExpiry, leases, 10, &["lease_promise", "exclusion"]),
    case(Lie::EndlessLease, usual, 20, &["lease_promise"]),
    case(Lie::KeepAliveUnasked, leases, 10, &["lease_promise", "exclusion"]),
    case(Lie::PressureIgnored, stalled_flush, 10, &["bounded_memory"]),
    case(Lie::PinnedForever, pinned_log, 20, &["bounded_memory"]),
    case(Lie::DeafSleeper, sleep, 5, &["liveness"]),
    case(Lie::GhostNode, sleep, 5, &["liveness"]),
    case(Lie::NoWrites, usual, 1, &["liveness"]),
    case(Lie::NothingSwept, compactions, 2, &["stored_state"]),
    case(Lie::UnnoticedFlip, damages, 20, &["damage_named"]),
    case(Lie::OldName, damages, 10, &["identity"]),
    case(Lie::CutMessage, usual, 5, &["peer_encoding"]),
    case(Lie::EarlyTimer, usual, 1, &["quiet_timers"]),
];

/// For each guarantee a lie that its checker finds while no other is asked. Where there are several, each has another way to find it.
const ALONE: [Case; 36] = [
    case(Lie::ForgottenVote, quarrels, 10, &["election_safety"]),
    case(Lie::ForgottenVote, quarrels, 20, &["log_matching"]),
    case(Lie::MinorityCommit, partitions, 10, &["leader_completeness"]),
    case(Lie::LostFsync, blackouts, 10, &["leader_completeness"]),
    case(Lie::MinorityCommit, partitions, 10, &["state_machine_safety"]),
    case(Lie::AppliedAgain, crashes, 10, &["state_machine_safety"]),
    // What is sent, what is found at a start, and what the history has.
    case(Lie::DurableBeforeFsync, blackouts, 10, &["durable_ack"]),
    case(Lie::ForgottenVote, usual, 5, &["durable_ack"]),
    case(Lie::LostFsync, blackouts, 10, &["durable_ack"]),
    case(Lie::AckUnasked, usual, 10, &["durable_ack"]),
    case(Lie::ProposedAgain, usual, 10, &["durable_ack"]),
    case(Lie::StaleRead, usual, 5, &["linearizable"]),
    case(Lie::WrongKeyspace, tenants, 5, &["linearizable"]),
    case(Lie::OldRevision, usual, 5, &["revision_order"]),
    case(Lie::StaleRead, usual, 5, &["revision_order"]),
    case(Lie::OverCompaction, compactions, 5, &["compaction"]),
    case(Lie::SkippedEvent, usual, 5, &["watch_order"]),
    case(Lie::DoubledEvent, usual, 5, &["watch_order"]),
    case(Lie::DisorderedEvents, usual, 5, &["watch_order"]),
    case(Lie::EarlyExpiry, leases, 5, &["lease_promise"]),
    case(Lie::KeepAliveUnasked, leases, 5, &["lease_promise"]),
    case(Lie::EndlessLease, leases, 5, &["lease_promise"]),
    case(Lie::LockUnguarded, leases, 5, &["exclusion"]),
    case(Lie::WrongKeyspace, tenants, 5, &["tenant_isolation"]),
    case(Lie::AppliedAgain, crashes, 5, &["digest_agreement"]),
    case(Lie::PressureIgnored, stalled_flush, 10, &["bounded_memory"]),
    case(Lie::PinnedForever, pinned_log, 20, &["bounded_memory"]),
    case(Lie::DeafNode, usual, 5, &["liveness"]),
    case(Lie::DeafNode, sickness, 5, &["availability"]),
    case(Lie::NothingSwept, compactions, 2, &["stored_state"]),
    case(Lie::EngineForgets, usual, 10, &["recovery"]),
    case(Lie::CutSnapshot, snapshots, 10, &["no_fatal"]),
    case(Lie::UnnoticedFlip, damages, 20, &["damage_named"]),
    case(Lie::OldName, damages, 10, &["identity"]),
    case(Lie::CutMessage, usual, 5, &["peer_encoding"]),
    case(Lie::EarlyTimer, usual, 1, &["quiet_timers"]),
];

/// Lies that the nodes themselves notice, so that nothing comes of them.
const HARMLESS: [Lie; 1] = [Lie::ChangedEntry];

fn usual(seed: u64) -> Settings {
    Settings::of(Scenario::Usual, seed)
}

fn partitions(seed: u64) -> Settings {
    Settings::of(Scenario::Partitions, seed)
}

fn crashes(seed: u64) -> Settings {
    Settings::of(Scenario::Crashes, seed)
}

fn disks(seed: u64) -> Settings {
    Settings::of(Scenario::Disks, seed)
}

fn leases(seed: u64) -> Settings {
    Settings::of(Scenario::Leases, seed)
}

fn sleep(seed: u64) -> Settings {
    Settings::of(Scenario::Sleep, seed)
}

fn compactions(seed: u64) -> Settings {
    Settings::of(Scenario::Compactions, seed)
}

fn snapshots(seed: u64) -> Settings {
    Settings::of(Scenario::Snapshots, seed)
}

fn sickness(seed: u64) -> Settings {
    Settings::of(Scenario::Sickness, seed)
}

fn tenants(seed: u64) -> Settings {
    Settings { keyspaces: 3, ..usual(seed) }
}

/// Leaders stand still or are cut off all the time, so that there are many elections.
fn quarrels(seed: u64) -> Settings {
    let weights = Weights { pause: 60, partition: 40, ..Weights::none() };
    Settings {
        nodes: 3,
        delicate_one_in: 0,
        fault_pause_us: 300_000,
        sync_us_max: 300,
        weights,
        ..partitions(seed)
    }
}

/// Machines come back changed all the time.
fn damages(seed: u64) -> Settings {
    let weights = Weights { damage: 20, stop_one: 2, ..Weights::none() };
    Settings { nodes: 5, fault_pause_us: 400_000, weights, ..disks(seed) }
}

/// All machines lose their power again and again, and their disks are slow.
fn blackouts(seed: u64) -> Settings {
    let weights = Weights { stop_all: 80, stop_two: 20, ..Weights::none() };
    Settings { fault_pause_us: 1_000_000, sync_us_max: 100_000, weights, ..crashes(seed) }
}

const STALLED: GroupId = GroupId(2);

/// One node's engine does not finish its flush of a keyspace in which much is written.
fn stalled_flush(seed: u64) -> Settings {
    let mut settings = Settings { busy_keyspaces: vec![STALLED], ..little_room(seed) };
    // Otherwise it is this bound that ends it.
    settings.limits.node_log_bytes = 64 << 20;
    settings
}

/// One node's engine does not finish its flush of a keyspace, and much is written in another.
fn pinned_log(seed: u64) -> Settings {
    Settings { busy_keyspaces: vec![GroupId(1)], ..little_room(seed) }
}

fn little_room(seed: u64) -> Settings {
    let mut settings = Settings {
        nodes: 3,
        keyspaces: 2,
        troubles: vec![Trouble::StalledFlush(1 + seed % 3, STALLED)],
        faults_us: 9_000_000,
        weights: Weights::none(),
        think_us: 20_000,
        large_value_one_in: 1,
        sync_us_max: 300,
        segment_bytes: 64 << 10,
        pinned_bytes_max: 256 << 10,
        ..usual(seed)
    };
    settings.limits.unflushed_bytes = 64 << 10;
    settings.limits.node_unflushed_bytes = 128 << 10;
    settings.limits.node_log_bytes = 1 << 20;
    settings
}

/// The first seed whose world notices, and what noticed; with `only`, whose world notices that this does not hold.
fn hunt(case: &Case, only: Option<&'static str>) -> Option<(u64, &'static str)> {
    (1..=case.seeds).find_map(|seed| {
        let settings = Settings { lie: Some(case.lie), only, ..(case.world)(seed) };
        let failure = World::run(settings).err()?;
        let guarantee = failure.violation.guarantee;
        // What the product itself asserts cannot be passed over.
        only.is_none_or(|only| only == guarantee).then_some((seed, guarantee))
    })
}

#[test]
fn every_lie_is_found_within_its_budget() {
    for case in &CASES {
        let begun = Instant::now();
        let found = hunt(case, None);
        println!("{:?} ({}): {found:?} in {:?}", case.lie, case.lie, begun.elapsed());
        let (_, by) = found.unwrap_or_else(|| panic!("{:?} is not found in {} worlds", case.lie, case.seeds));
        assert!(case.by.contains(&by), "{:?} is found by {by}", case.lie);
    }
}

#[test]
fn each_checker_finds_lies_alone() {
    for case in &ALONE {
        let begun = Instant::now();
        for only in case.by {
            let found = hunt(case, Some(only));
            println!("{only} of {:?}: {found:?} in {:?}", case.lie, begun.elapsed());
            assert!(found.is_some(), "{only} does not notice {:?} in {} worlds", case.lie, case.seeds);
        }
    }
}

#[test]
fn no_checker_is_forgotten() {
    for guarantee in GUARANTEES.into_iter().filter(|guarantee| *guarantee != "assertion") {
        assert!(ALONE.iter().any(|case| case.by == [guarantee]), "{guarantee}");
    }
}

#[test]
fn the_same_worlds_hold_without_the_lie() {
    for world in [
        usual,
        partitions,
        crashes,
        disks,
        leases,
        snapshots,
        sleep,
        tenants,
        quarrels,
        blackouts,
        stalled_flush,
        pinned_log,
        damages,
        sickness,
        compactions,
    ] {
        World::run(world(1)).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn what_a_node_notices_itself_does_no_harm() {
    for lie in HARMLESS {
        for seed in 1..=10 {
            let settings = Settings { lie: Some(lie), ..usual(seed) };
            World::run(settings).unwrap_or_else(|failure| panic!("{lie:?}: {failure}"));
        }
    }
}

#[test]
fn no_lie_is_forgotten() {
    for lie in Lie::ALL {
        let told = CASES.iter().filter(|case| case.lie == lie).count();
        assert_eq!(told + HARMLESS.iter().filter(|other| **other == lie).count(), 1, "{lie:?}");
    }
}
