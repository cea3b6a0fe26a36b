//! The worlds in which lies are told: each lie needs something to happen for which it matters.

use hadron_consensus::GroupId;

use super::Lie;
use crate::world::{Scenario, Settings, Trouble, Weights};

/// The fewest nodes with which these worlds make sense.
pub const NODES_MIN: u64 = 3;

impl Lie {
    /// A world of `seed` in which it is told, and most often noticed.
    pub fn world(self, seed: u64) -> Settings {
        let world = match self {
            Lie::DurableBeforeFsync | Lie::LostFsync => blackouts(seed),
            Lie::MinorityCommit | Lie::OverCompaction => partitions(seed),
            Lie::ForgottenVote
            | Lie::EngineForgets
            | Lie::EngineBitFlip
            | Lie::StaleRead
            | Lie::AckUnasked
            | Lie::OldRevision
            | Lie::DeafNode
            | Lie::SkippedEvent
            | Lie::DoubledEvent
            | Lie::DisorderedEvents
            | Lie::EarlyProgress
            | Lie::NoWrites
            | Lie::CutMessage
            | Lie::EarlyTimer
            | Lie::ChangedEntry => usual(seed),
            Lie::OldDisk | Lie::WipedDisk | Lie::AppliedAgain | Lie::ProposedAgain => crashes(seed),
            Lie::CutSnapshot => snapshots(seed),
            Lie::WrongKeyspace => tenants(seed),
            Lie::WrongClient => disks(seed),
            Lie::LockUnguarded | Lie::EarlyExpiry | Lie::EndlessLease | Lie::KeepAliveUnasked => leases(seed),
            Lie::PressureIgnored => stalled_flush(seed),
            Lie::PinnedForever => pinned_log(seed),
            Lie::DeafSleeper | Lie::GhostNode => sleep(seed),
            Lie::NothingSwept => compactions(seed),
            Lie::UnnoticedFlip | Lie::OldName => damages(seed),
            Lie::FalseAlarm => repairs(seed),
        };
        Settings { lie: Some(self), ..world }
    }

    /// Whether nothing comes of it, as the nodes notice it themselves.
    pub fn is_harmless(self) -> bool {
        self == Lie::ChangedEntry
    }
}

/// A bit of everything.
pub fn usual(seed: u64) -> Settings {
    Settings::of(Scenario::Usual, seed)
}

/// [`Scenario::Partitions`].
pub fn partitions(seed: u64) -> Settings {
    Settings::of(Scenario::Partitions, seed)
}

/// [`Scenario::Crashes`].
pub fn crashes(seed: u64) -> Settings {
    Settings::of(Scenario::Crashes, seed)
}

/// [`Scenario::Disks`].
pub fn disks(seed: u64) -> Settings {
    Settings::of(Scenario::Disks, seed)
}

/// [`Scenario::Leases`].
pub fn leases(seed: u64) -> Settings {
    Settings::of(Scenario::Leases, seed)
}

/// [`Scenario::Sleep`].
pub fn sleep(seed: u64) -> Settings {
    Settings::of(Scenario::Sleep, seed)
}

/// [`Scenario::Compactions`].
pub fn compactions(seed: u64) -> Settings {
    Settings::of(Scenario::Compactions, seed)
}

/// [`Scenario::Snapshots`].
pub fn snapshots(seed: u64) -> Settings {
    Settings::of(Scenario::Snapshots, seed)
}

/// [`Scenario::Repairs`].
pub fn repairs(seed: u64) -> Settings {
    Settings::of(Scenario::Repairs, seed)
}

/// [`Scenario::Sickness`].
pub fn sickness(seed: u64) -> Settings {
    Settings::of(Scenario::Sickness, seed)
}

/// A bit of everything, in several keyspaces.
pub fn tenants(seed: u64) -> Settings {
    Settings { keyspaces: 3, ..usual(seed) }
}

/// Leaders stand still or are cut off all the time, so that there are many elections.
pub fn quarrels(seed: u64) -> Settings {
    let weights = Weights { pause: 60, partition: 40, ..Weights::none() };
    Settings {
        nodes: 5,
        delicate_one_in: 0,
        fault_pause_us: 300_000,
        sync_us_max: 300,
        weights,
        ..partitions(seed)
    }
}

/// Machines come back changed all the time.
pub fn damages(seed: u64) -> Settings {
    let weights = Weights { damage: 20, stop_one: 2, ..Weights::none() };
    Settings { nodes: 5, fault_pause_us: 400_000, weights, ..disks(seed) }
}

/// All machines lose their power again and again, and their disks are slow.
pub fn blackouts(seed: u64) -> Settings {
    let weights = Weights { stop_all: 80, stop_two: 20, ..Weights::none() };
    Settings { fault_pause_us: 1_000_000, sync_us_max: 100_000, weights, ..crashes(seed) }
}

const STALLED: GroupId = GroupId(2);

/// One node's engine does not finish its flush of a keyspace in which much is written.
pub fn stalled_flush(seed: u64) -> Settings {
    let mut settings = Settings { busy_keyspaces: vec![STALLED], ..little_room(seed) };
    // Otherwise it is this bound that ends it.
    settings.limits.node_log_bytes = 64 << 20;
    settings
}

/// One node's engine does not finish its flush of a keyspace, and much is written in another.
pub fn pinned_log(seed: u64) -> Settings {
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
