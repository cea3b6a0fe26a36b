//! Scenarios: worlds in which one kind of fault or load prevails, by name.

use std::fmt;
use std::str::FromStr;

use hadron_consensus::GroupId;
use hadron_node::Limits;

use super::faults::Weights;
use super::{Settings, Trouble};

/// What prevails in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// A bit of everything.
    #[default]
    Usual,
    /// No faults at all.
    Calm,
    /// A bit of everything, and often.
    Storm,
    /// The network is cut all the time.
    Partitions,
    /// Machines lose their power and processes are killed all the time, at the worst moments.
    Crashes,
    /// Disks are slow, full, failing or damaged.
    Disks,
    /// Clocks are fast or slow, processes and machines stand still.
    Clocks,
    /// Many leases and locks.
    Leases,
    /// Followers are always so far behind that they need snapshots.
    Snapshots,
    /// Frequent compaction, and reads and watches of the past.
    Compactions,
    /// Dozens of groups, two of them in trouble.
    ManyGroups,
    /// Members come and go all the time.
    Members,
    /// Keyspaces are made, on a few nodes each, and moved all the time.
    Placements,
    /// Replicas of keyspaces are found damaged all the time, and rebuilt.
    Repairs,
    /// Members come and go, once they are emptied, and keyspaces are moved meanwhile.
    Pool,
    /// Hardly anybody asks for anything, and groups sleep whatever goes wrong.
    Sleep,
    /// In the end one node after the other half works, and the others must serve.
    Sickness,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 17] = [
        Scenario::Usual,
        Scenario::Calm,
        Scenario::Storm,
        Scenario::Partitions,
        Scenario::Crashes,
        Scenario::Disks,
        Scenario::Clocks,
        Scenario::Leases,
        Scenario::Snapshots,
        Scenario::Compactions,
        Scenario::ManyGroups,
        Scenario::Members,
        Scenario::Placements,
        Scenario::Repairs,
        Scenario::Pool,
        Scenario::Sleep,
        Scenario::Sickness,
    ];

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Usual => "usual",
            Scenario::Calm => "calm",
            Scenario::Storm => "storm",
            Scenario::Partitions => "partitions",
            Scenario::Crashes => "crashes",
            Scenario::Disks => "disks",
            Scenario::Clocks => "clocks",
            Scenario::Leases => "leases",
            Scenario::Snapshots => "snapshots",
            Scenario::Compactions => "compactions",
            Scenario::ManyGroups => "many-groups",
            Scenario::Members => "members",
            Scenario::Placements => "placements",
            Scenario::Repairs => "repairs",
            Scenario::Pool => "pool",
            Scenario::Sleep => "sleep",
            Scenario::Sickness => "sickness",
        }
    }

    /// The fewest nodes with which it makes sense: with fewer there is nothing that could go wrong as it should, or nobody to take over.
    pub fn nodes_min(self) -> u64 {
        match self {
            Scenario::ManyGroups
            | Scenario::Repairs
            | Scenario::Pool
            | Scenario::Sleep
            | Scenario::Sickness => 3,
            Scenario::Partitions => 2,
            _ => 1,
        }
    }

    pub(super) fn change(self, settings: &mut Settings) {
        let weights = &mut settings.weights;
        match self {
            Scenario::Usual => {}
            Scenario::Calm => {
                *weights = Weights::none();
                settings.delicate_one_in = 0;
                settings.chunk_flip_one_in = 0;
                settings.drift_ppm = 0;
            }
            Scenario::Storm => {
                settings.fault_pause_us = 200_000;
                settings.delicate_one_in = 20;
                settings.chunk_flip_one_in = 30;
                settings.drift_ppm = 20_000;
                settings.compaction_us = 500_000;
                settings.lock_clients = 3;
            }
            Scenario::Partitions => {
                *weights =
                    Weights { partition: 70, connections: 15, queues: 10, transfer: 5, ..Weights::none() };
                settings.fault_pause_us = 600_000;
            }
            Scenario::Crashes => {
                *weights = Weights { stop_one: 70, stop_two: 20, stop_all: 10, ..Weights::none() };
                settings.fault_pause_us = 500_000;
                settings.delicate_one_in = 20;
            }
            Scenario::Disks => {
                weights.slow_disks = 40;
                weights.bad_disk = 60;
                weights.damage = 10;
                settings.sync_us_max = 10_000;
            }
            Scenario::Clocks => {
                *weights = Weights { pause: 50, suspend: 40, stop_one: 10, ..Weights::none() };
                settings.drift_ppm = 20_000;
                settings.lock_clients = 3;
            }
            Scenario::Leases => {
                settings.lease_clients = 6;
                settings.lock_clients = 5;
                settings.drift_ppm = 20_000;
                settings.calm_us = 8_000_000;
            }
            Scenario::Snapshots => {
                settings.limits.log_tail_bytes = 1 << 10;
                settings.limits.snapshot_log_bytes = 4 << 10;
                settings.limits.flush_bytes = 1 << 10;
                settings.limits.persist_interval_us = 200_000;
                settings.chunk_flip_one_in = 30;
                settings.large_value_one_in = 5;
                settings.delicate_one_in = 20;
            }
            Scenario::Compactions => {
                settings.compaction_us = 200_000;
                settings.watchers = 5;
            }
            Scenario::ManyGroups => many_groups(settings),
            Scenario::Members => members(settings),
            Scenario::Placements => placements(settings),
            Scenario::Repairs => repairs(settings),
            Scenario::Pool => pool(settings),
            Scenario::Sleep => sleep(settings),
            Scenario::Sickness => sickness(settings),
        }
    }
}

/// Down to one member, where none is ever damaged, or down to three.
fn members(settings: &mut Settings) {
    let is_daring = settings.seed.is_multiple_of(2);
    settings.member_changes_us = 400_000;
    settings.members_min = if is_daring { 1 } else { 3 };
    settings.weights.damage = if is_daring { 0 } else { 8 };
    settings.faults_us = 20_000_000;
    settings.recovery_us_max = 30_000_000;
}

/// Several keyspaces beside `default`, on one to five of the nodes each, one of which is deleted and made anew. None is ever damaged: what is on one node alone would be lost.
fn placements(settings: &mut Settings) {
    settings.nodes = 5;
    settings.keyspaces = 4;
    settings.clients = 8;
    // One for each.
    settings.watchers = settings.keyspaces;
    settings.placement_changes_us = 400_000;
    settings.mortals = 2;
    settings.weights.damage = 0;
    settings.faults_us = 20_000_000;
    settings.recovery_us_max = 30_000_000;
}

/// Several keyspaces on three or five nodes each; on three nodes there is no other for what is damaged.
fn repairs(settings: &mut Settings) {
    placements(settings);
    settings.nodes = if settings.seed.is_multiple_of(2) { 3 } else { 5 };
    settings.accusations_us = 1_500_000;
    settings.plans = true;
}

/// Four to six members, one of which is to be emptied most of the time, and keyspaces on three or five of them.
fn pool(settings: &mut Settings) {
    placements(settings);
    settings.nodes = 4;
    settings.member_changes_us = 400_000;
    settings.members_min = 3;
    settings.accusations_us = if settings.seed.is_multiple_of(2) { 3_000_000 } else { 0 };
    settings.plans = true;
}

/// Long rests, in which nodes are lost and come back, and some leases end.
fn sleep(settings: &mut Settings) {
    settings.weights = Weights { slow_disks: 5, bad_disk: 0, damage: 0, transfer: 2, ..Weights::usual() };
    settings.fault_pause_us = 600_000;
    settings.keyspaces = 6;
    settings.clients = 6;
    settings.lease_clients = settings.seed % 2;
    settings.lock_clients = 0;
    settings.compaction_us = 0;
    settings.think_us = 150_000;
    settings.rest_us = 4_000_000;
    settings.ends_in_silence = true;
    // A rest and more, so that some leases end while all sleep.
    settings.calm_us = 8_000_000;
    settings.faults_us = 25_000_000;
    settings.limits.sleep_after_us = 300_000;
}

/// A short time in which anything happens, and then several nodes that are sick, while all others are well.
fn sickness(settings: &mut Settings) {
    settings.weights.damage = 0;
    settings.faults_us = 5_000_000;
    settings.client_timeout_us = 1_500_000;
    settings.sicknesses = 3;
    // As much as is written while a snapshot comes, or the next one is needed when it is there.
    settings.limits.snapshot_log_bytes = 1 << 20;
}

/// Two groups in trouble, on nodes that have little room for them.
fn many_groups(settings: &mut Settings) {
    let (without_quorum, stalled) = (GroupId(7), GroupId(11));
    settings.nodes = 3;
    settings.keyspaces = 40;
    settings.clients = 40;
    settings.busy_keyspaces = vec![without_quorum, stalled];
    settings.troubles =
        vec![Trouble::NoQuorum(without_quorum), Trouble::StalledFlush(1 + settings.seed % 3, stalled)];
    settings.blackouts_us = vec![9_000_000];
    settings.fault_pause_us = 2_000_000;
    settings.delicate_one_in = 0;
    settings.recovery_us_max = 30_000_000;
    settings.client_timeout_us = 1_500_000;
    settings.think_us = 200_000;
    settings.large_value_one_in = 2;
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
        ..Limits::default()
    };
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scenario {
    type Err = String;

    /// # Errors
    /// Names the scenarios that there are.
    fn from_str(text: &str) -> Result<Scenario, String> {
        Scenario::ALL.into_iter().find(|scenario| scenario.name() == text).ok_or_else(|| {
            let names = Scenario::ALL.map(Scenario::name).join(", ");
            format!("no scenario {text:?}; there are {names}")
        })
    }
}
