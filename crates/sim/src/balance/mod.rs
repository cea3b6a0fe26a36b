//! A pool of many nodes and keyspaces, without the nodes: 24 hours of loads, hot spots and losses in minutes, for the planner of
//! [`hadron_balance`].
//!
//! The planner, the meters and the steps of a move are the shipped ones. Around them everything is simulated:
//!
//! ```text
//!   workload (Zipf, noise, hot spots) ──▶ meters ──▶ loads ──┐
//!   trouble (losses of nodes and zones, joins, drains) ──────┼──▶ pool planned by load   ──▶ moves, bytes, largest W
//!                                                            └──▶ pool planned by counts ──▶ the same, to compare with
//! ```
//! Both pools begin alike and meet the same. What is planned with was measured: noisy, and smoothed over a minute. What is judged is
//! the truth. Everything follows from the [`Settings`], except for [`Report::slowest_round`].
//!
//! Left out: what a move costs the nodes beside bytes and time, and groups that are split or merged.

mod counts;
mod pool;
mod report;
mod trouble;
mod workload;

use std::time::Duration;

use hadron_balance::{ReplicaRole, ReplicaView};
use hadron_consensus::Time;

pub use report::{Report, Seen, Totals};

use pool::Pool;
use report::{Clock, Judge};
use trouble::{Trouble, schedule};
use workload::Workload;

/// How often loads are measured, moves go on and a plan is made, in microseconds.
const TICK_US: u64 = 60_000_000;
/// How often the truth is looked at.
const LOOK_US: u64 = 600_000_000;
/// Microseconds in an hour.
const HOUR_US: u64 = 3_600_000_000;

/// The fewest nodes for which the bounds make sense: in smaller pools a zone without a node or two cannot be balanced.
pub const NODES_MIN: usize = 30;

/// What a simulated pool is like.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Everything random follows from it.
    pub seed: u64,
    /// Nodes at the beginning, [`NODES_MIN`] at least.
    pub nodes: usize,
    /// Keyspaces, each with three replicas.
    pub keyspaces: usize,
    /// Simulated hours.
    pub hours: u64,
    /// The exponent of the Zipf distribution of the load over keyspaces.
    pub zipf: f64,
}

impl Settings {
    /// A day of a pool of this size.
    pub fn of(seed: u64, nodes: usize, keyspaces: usize) -> Settings {
        Settings { seed, nodes, keyspaces, hours: 24, zipf: 0.99 }
    }

    fn end(&self) -> Time {
        Time(self.hours * HOUR_US)
    }

    /// The moment at this part of the whole.
    fn at(&self, part: f64) -> Time {
        let at = (self.end().0 as f64 * part) as u64;
        Time(at - at % TICK_US)
    }

    /// Whether nothing has happened for so long that the pool must be balanced.
    fn is_calm(&self, now: Time) -> bool {
        let first = self.at(CALM_FIRST.0)..=self.at(CALM_FIRST.1);
        first.contains(&now) || now >= self.at(CALM_LAST)
    }
}

/// The parts of the whole in which the pool must be balanced: before anything happens, three hours of a day after it began with replicas
/// anywhere, and after everything has.
const CALM_FIRST: (f64, f64) = (0.13, 0.15);
const CALM_LAST: f64 = 0.95;
/// The part of the whole in which something happens.
const TROUBLED: (f64, f64) = (0.15, 0.85);

/// Runs a pool from its first moment to its last. `tell` gets the lines of its story.
pub fn run(settings: &Settings, tell: &mut dyn FnMut(&str)) -> Report {
    World::new(settings).run(tell)
}

struct World<'a> {
    settings: &'a Settings,
    workload: Workload,
    /// What is still to happen, the next last.
    trouble: Vec<(Time, Trouble)>,
    by_load: Pool,
    by_counts: Pool,
    judge: Judge,
    slowest_round: Duration,
}

impl<'a> World<'a> {
    fn new(settings: &'a Settings) -> World<'a> {
        let workload = Workload::new(settings);
        let by_load = Pool::new(settings, &workload, hadron_balance::plan);
        let by_counts = by_load.planned_by(counts::plan);
        let mut trouble = schedule(settings, &by_load.view);
        trouble.reverse();
        let judge = Judge::default();
        World { settings, workload, trouble, by_load, by_counts, judge, slowest_round: Duration::ZERO }
    }

    fn run(mut self, tell: &mut dyn FnMut(&str)) -> Report {
        let mut now = Time(0);
        while now < self.settings.end() {
            now = now.plus_micros(TICK_US);
            self.tick(now, tell);
        }
        self.judge.finish(self.settings, &self.by_load, &self.by_counts, self.slowest_round)
    }

    fn tick(&mut self, now: Time, tell: &mut dyn FnMut(&str)) {
        self.workload.advance(now);
        self.happen(now, tell);
        for pool in [&mut self.by_load, &mut self.by_counts] {
            pool.advance(now, TICK_US);
            self.workload.report(&mut pool.view);
        }
        // Meters that have seen a minute are believed.
        if now.0 >= 2 * TICK_US {
            self.slowest_round = self.slowest_round.max(self.by_load.plan());
            self.by_counts.plan();
        }
        if now.0.is_multiple_of(LOOK_US) {
            self.look(now, tell);
        }
    }

    fn happen(&mut self, now: Time, tell: &mut dyn FnMut(&str)) {
        while self.trouble.last().is_some_and(|(at, _)| *at <= now) {
            let Some((_, trouble)) = self.trouble.pop() else { return };
            tell(&format!("{} {trouble}", Clock(now)));
            self.by_load.suffer(&trouble, now);
            self.by_counts.suffer(&trouble, now);
        }
    }

    /// Holds the pools as they are against what must be true.
    fn look(&mut self, now: Time, tell: &mut dyn FnMut(&str)) {
        let (ours, theirs) = (self.truth(true), self.truth(false));
        self.judge.look(self.settings, now, &ours, &theirs);
        if now.0.is_multiple_of(HOUR_US) {
            let moves = self.by_load.tally.moves_in_hour(now);
            tell(&format!("{} by load: {}; {moves}", Clock(now), report::state(&ours)));
            tell(&format!("{} by counts: {}", Clock(now), report::state(&theirs)));
        }
    }

    /// How a pool really stands: with loads that were not measured, and without what is not done.
    fn truth(&self, by_load: bool) -> hadron_balance::Assessment {
        let pool = if by_load { &self.by_load } else { &self.by_counts };
        let mut view = pool.view.clone();
        view.moves.clear();
        let voters = |it: &ReplicaView| it.role == ReplicaRole::Voter;
        view.groups.values_mut().for_each(|group| group.replicas.retain(voters));
        self.workload.reveal(&mut view);
        hadron_balance::assess(&view, &pool.policy)
    }
}
