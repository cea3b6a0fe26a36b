//! The tests are tested: for each lie that a world can tell, the worlds within which it is found, and what finds it.
//!
//! `cargo test -p hadron-sim --test lies -- --nocapture` prints in which world each was found. A lie that is not found
//! any more means that a checker has become blind, or that the worlds have become too gentle.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use hadron_sim::checkers::GUARANTEES;
use hadron_sim::world::lies::Lie;
use hadron_sim::world::lies::worlds::{
    blackouts, compactions, crashes, damages, disks, leases, partitions, pinned_log, quarrels, repairs,
    sickness, sleep, snapshots, stalled_flush, tenants, usual,
};
use hadron_sim::world::{Settings, World};

/// A lie, where it is told, and how it is found.
struct Case {
    lie: Lie,
    /// The world in which it is told, if not the lie's own.
    world: Option<fn(u64) -> Settings>,
    /// It is found within this many seeds, from 1 on.
    seeds: u64,
    /// By one of these. Most lies break several promises, and each world shows another one first.
    by: &'static [&'static str],
}

const fn case(lie: Lie, seeds: u64, by: &'static [&'static str]) -> Case {
    Case { lie, world: None, seeds, by }
}

const fn case_in(world: fn(u64) -> Settings, lie: Lie, seeds: u64, by: &'static [&'static str]) -> Case {
    Case { lie, world: Some(world), seeds, by }
}

/// Replicas differ, or one was made to do what its own code knows to be impossible, or it cannot go on.
const SAFETY: &[&str] = &[
    "election_safety",
    "log_matching",
    "leader_completeness",
    "state_machine_safety",
    // A leader names a follower that denies what it acknowledged, although its state is as it should be.
    "digest_agreement",
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

const CASES: [Case; 37] = [
    case(Lie::DurableBeforeFsync, 20, SAFETY),
    case(Lie::LostFsync, 20, SAFETY),
    case(Lie::MinorityCommit, 10, SAFETY),
    case(Lie::ForgottenVote, 5, &["durable_ack"]),
    case(Lie::OldDisk, 10, SAFETY),
    case(Lie::WipedDisk, 10, SAFETY),
    case(Lie::EngineForgets, 10, &["recovery"]),
    case(Lie::AppliedAgain, 10, &["digest_agreement", "recovery"]),
    case(Lie::EngineBitFlip, 10, DAMAGE),
    case(Lie::CutSnapshot, 10, &["no_fatal"]),
    case(Lie::StaleRead, 10, &["revision_order", "linearizable", "lease_promise"]),
    case(Lie::ProposedAgain, 10, &["durable_ack"]),
    case(Lie::WrongKeyspace, 10, &["tenant_isolation", "linearizable", "watch_order"]),
    case(Lie::WrongClient, 10, ANSWERS),
    case(Lie::AckUnasked, 20, &["revision_order", "durable_ack", "lease_promise"]),
    case(Lie::OldRevision, 10, &["revision_order", "durable_ack"]),
    case(Lie::LockUnguarded, 10, &["exclusion"]),
    case(Lie::OverCompaction, 20, &["compaction", "watch_order"]),
    case(Lie::DeafNode, 10, &["liveness"]),
    case(Lie::SkippedEvent, 10, &["watch_order", "liveness"]),
    case(Lie::DoubledEvent, 10, &["watch_order"]),
    case(Lie::DisorderedEvents, 20, &["watch_order"]),
    case(Lie::EarlyProgress, 5, &["watch_order"]),
    case(Lie::FalseAlarm, 5, &["digest_agreement"]),
    case(Lie::EarlyExpiry, 10, &["lease_promise", "exclusion"]),
    case(Lie::EndlessLease, 10, &["lease_promise"]),
    case(Lie::KeepAliveUnasked, 10, &["lease_promise", "exclusion"]),
    case(Lie::PressureIgnored, 10, &["bounded_memory"]),
    case(Lie::PinnedForever, 20, &["bounded_memory"]),
    case(Lie::DeafSleeper, 5, &["liveness"]),
    case(Lie::GhostNode, 5, &["liveness"]),
    case(Lie::NoWrites, 1, &["liveness"]),
    case(Lie::NothingSwept, 2, &["stored_state"]),
    case(Lie::UnnoticedFlip, 20, &["damage_named"]),
    case(Lie::OldName, 10, &["identity"]),
    case(Lie::CutMessage, 5, &["peer_encoding"]),
    case(Lie::EarlyTimer, 1, &["quiet_timers"]),
];

/// For each guarantee a lie that its checker finds while no other is asked. Where there are several, each has another way to find it.
const ALONE: [Case; 38] = [
    case_in(quarrels, Lie::ForgottenVote, 10, &["election_safety"]),
    case_in(quarrels, Lie::ForgottenVote, 20, &["log_matching"]),
    case(Lie::MinorityCommit, 10, &["leader_completeness"]),
    case(Lie::LostFsync, 10, &["leader_completeness"]),
    case(Lie::MinorityCommit, 10, &["state_machine_safety"]),
    case(Lie::AppliedAgain, 10, &["state_machine_safety"]),
    // What is sent, what is found at a start, and what the history has.
    case(Lie::DurableBeforeFsync, 10, &["durable_ack"]),
    case(Lie::ForgottenVote, 5, &["durable_ack"]),
    case(Lie::LostFsync, 10, &["durable_ack"]),
    case(Lie::AckUnasked, 10, &["durable_ack"]),
    case_in(usual, Lie::ProposedAgain, 10, &["durable_ack"]),
    case(Lie::StaleRead, 5, &["linearizable"]),
    case(Lie::WrongKeyspace, 5, &["linearizable"]),
    case(Lie::OldRevision, 5, &["revision_order"]),
    case(Lie::StaleRead, 5, &["revision_order"]),
    case_in(compactions, Lie::OverCompaction, 5, &["compaction"]),
    case(Lie::SkippedEvent, 5, &["watch_order"]),
    case(Lie::DoubledEvent, 5, &["watch_order"]),
    case(Lie::DisorderedEvents, 5, &["watch_order"]),
    case(Lie::EarlyProgress, 5, &["watch_order"]),
    case(Lie::EarlyExpiry, 5, &["lease_promise"]),
    case(Lie::KeepAliveUnasked, 5, &["lease_promise"]),
    case(Lie::EndlessLease, 5, &["lease_promise"]),
    case(Lie::LockUnguarded, 5, &["exclusion"]),
    case(Lie::WrongKeyspace, 5, &["tenant_isolation"]),
    case(Lie::AppliedAgain, 5, &["digest_agreement"]),
    case(Lie::FalseAlarm, 5, &["digest_agreement"]),
    case(Lie::PressureIgnored, 10, &["bounded_memory"]),
    case(Lie::PinnedForever, 20, &["bounded_memory"]),
    case(Lie::DeafNode, 5, &["liveness"]),
    case_in(sickness, Lie::DeafNode, 5, &["availability"]),
    case(Lie::NothingSwept, 2, &["stored_state"]),
    case(Lie::EngineForgets, 10, &["recovery"]),
    case(Lie::CutSnapshot, 10, &["no_fatal"]),
    case(Lie::UnnoticedFlip, 20, &["damage_named"]),
    case(Lie::OldName, 10, &["identity"]),
    case(Lie::CutMessage, 5, &["peer_encoding"]),
    case(Lie::EarlyTimer, 1, &["quiet_timers"]),
];

/// The first seed whose world notices, and what noticed; with `only`, whose world notices that this does not hold.
fn hunt(case: &Case, only: Option<&'static str>) -> Option<(u64, &'static str)> {
    (1..=case.seeds).find_map(|seed| {
        let world = case.world.map_or_else(|| case.lie.world(seed), |world| world(seed));
        let settings = Settings { lie: Some(case.lie), only, ..world };
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
        repairs,
    ] {
        World::run(world(1)).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn what_a_node_notices_itself_does_no_harm() {
    for lie in Lie::ALL.into_iter().filter(|lie| lie.is_harmless()) {
        for seed in 1..=10 {
            World::run(lie.world(seed)).unwrap_or_else(|failure| panic!("{lie:?}: {failure}"));
        }
    }
}

#[test]
fn no_lie_is_forgotten() {
    for lie in Lie::ALL {
        let told = CASES.iter().filter(|case| case.lie == lie).count();
        assert_eq!(told + usize::from(lie.is_harmless()), 1, "{lie:?}");
    }
}
