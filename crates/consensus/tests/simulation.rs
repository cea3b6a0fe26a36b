//! The group in a hostile world, from a seed: 3 to 7 replicas, a network that loses, delays, doubles, overtakes and
//! partitions, processes that crash and forget what was not synced or stand still, disks that are slow, snapshots,
//! leadership transfers. After every step the properties in `invariants.rs` must hold; when the faults stop, the
//! group must elect a leader and commit.
//!
//! `HADRON_SEED=7` runs one seed, `HADRON_SEEDS=100000` that many, on top of which `HADRON_TRACE=1` prints what happens.

#![allow(clippy::unwrap_used)]

#[path = "simulation/disk.rs"]
mod disk;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/invariants.rs"]
mod invariants;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::{Summary, World};

/// Seeds in a plain test run.
const SEEDS: u64 = 1_200;

/// Says which seed it was, however the run ends.
struct Announce(u64);

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "seed {} failed; reproduce it with: HADRON_SEED={} cargo test -p hadron-consensus --test simulation",
                self.0, self.0
            );
        }
    }
}

fn run(seed: u64) -> Summary {
    let _announce = Announce(seed);
    World::new(seed).run()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

#[test]
fn safe_under_faults_and_live_after_them() {
    if let Some(seed) = number("HADRON_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let (next, seeds) = (AtomicU64::new(0), number("HADRON_SEEDS").unwrap_or(SEEDS));
    let worker = || {
        let mut total = Summary::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return total;
            }
            total.add(run(seed));
        }
    };
    let mut total = Summary::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            total.add(worker.join().unwrap());
        }
    });
    println!("{seeds} seeds: {total:?}");
    // The world must be hostile enough to mean something, and kind enough for something to happen.
    assert!(total.committed > 20 * seeds, "too little was committed: {total:?}");
    assert!(total.elections > 2 * seeds, "too few elections: {total:?}");
    assert!(
        total.crashes > seeds && total.snapshots > seeds / 4 && total.truncated > 0,
        "too quiet: {total:?}"
    );
    assert!(total.changes > seeds, "too few changes of membership: {total:?}");
    assert!(total.sleeps > 2 * seeds, "too few groups slept: {total:?}");
    assert!(total.reads > 5 * seeds, "too few reads were answered: {total:?}");
}

/// Two runs of one seed are the same run: nothing in a group depends on anything but its events.
#[test]
fn a_seed_is_one_run() {
    for seed in 0..10 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
