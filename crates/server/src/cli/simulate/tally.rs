//! What happened in many worlds, counted.

use std::collections::BTreeMap;
use std::fmt;

use hadron_sim::world::{Report, Stop, Story, StoryEvent};

use crate::cli::counted;

/// Sums over worlds; the order in which they are added does not matter.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Tally {
    /// Worlds in which every guarantee held.
    worlds: u64,
    simulated_us: u64,
    operations: u64,
    acknowledged: u64,
    unknown: u64,
    recovery_us_max: u64,
    /// Keyspaces of which a guarantee stayed undecided.
    undecided: u64,
    /// Notable events, by what they are.
    events: BTreeMap<&'static str, u64>,
    /// Things looked at, by guarantee.
    checked: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Counts an event of some world.
    pub(super) fn event(&mut self, story: &Story) {
        if let StoryEvent::Checked { guarantee, count, .. } = &story.event {
            *self.checked.entry(guarantee).or_default() += count;
        } else if let Some(kind) = kind(&story.event) {
            *self.events.entry(kind).or_default() += 1;
        }
    }

    /// Counts a world that came to its end.
    pub(super) fn world(&mut self, report: &Report) {
        self.worlds += 1;
        self.simulated_us += report.simulated_us;
        self.operations += report.operations as u64;
        self.acknowledged += report.acknowledged as u64;
        self.unknown += report.unknown as u64;
        self.recovery_us_max = self.recovery_us_max.max(report.recovery_us);
        self.undecided += report.undecided;
    }

    /// Adds another's sums to these.
    pub(super) fn add(&mut self, other: Tally) {
        self.worlds += other.worlds;
        self.simulated_us += other.simulated_us;
        self.operations += other.operations;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.recovery_us_max = self.recovery_us_max.max(other.recovery_us_max);
        self.undecided += other.undecided;
        other.events.into_iter().for_each(|(kind, count)| *self.events.entry(kind).or_default() += count);
        other.checked.into_iter().for_each(|(name, count)| *self.checked.entry(name).or_default() += count);
    }
}

/// What an event is counted as, if it is.
fn kind(event: &StoryEvent) -> Option<&'static str> {
    Some(match event {
        StoryEvent::Election { won: true, .. } => "elections won",
        StoryEvent::Election { won: false, .. } => "elections nobody won",
        StoryEvent::Stops { cause: Stop::PowerLoss, .. } => "power losses",
        StoryEvent::Stops { cause: Stop::Killed, .. } => "processes killed",
        StoryEvent::Stops { cause: Stop::Asked, .. } => "nodes stopped in good order",
        StoryEvent::Stops { cause: Stop::Disk, .. } => "nodes stopped by their disks",
        StoryEvent::Gone { .. } => "machines damaged for good",
        StoryEvent::Partition { .. } => "partitions",
        StoryEvent::ConnectionsBreak { .. } => "broken connections",
        StoryEvent::QueuesFull { .. } => "full queues",
        StoryEvent::DrainWanted { wanted: true, .. } => "nodes to be emptied",
        StoryEvent::SlowDisk { .. } => "slow disks",
        StoryEvent::FullDisk { .. } => "full disks",
        StoryEvent::FailingDisk { .. } => "failing disks",
        StoryEvent::Pauses { clock: false, .. } => "paused processes",
        StoryEvent::Pauses { clock: true, .. } => "suspended machines",
        StoryEvent::Hangs { .. } => "shards that stood still",
        StoryEvent::Ails { .. } => "sick nodes",
        StoryEvent::HandsOver { .. } => "leaderships handed over",
        StoryEvent::Snapshot { rounds: 1, .. } => "snapshots installed",
        StoryEvent::Snapshot { .. } => "snapshots installed, of several rounds",
        StoryEvent::Compacted { .. } => "compactions",
        StoryEvent::MembersWanted { .. } => "changes of the members",
        StoryEvent::PlacementWanted { .. } => "keyspaces wanted elsewhere",
        StoryEvent::DeletionWanted { .. } => "keyspaces to be deleted",
        StoryEvent::Accused { .. } => "damaged replicas",
        StoryEvent::Rots { .. } => "records that rot",
        StoryEvent::MoveDecided { .. } => "moves that were planned",
        _ => return None,
    })
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.simulated_us as f64 / 3.6e9;
        let worlds = counted(self.worlds, "world", "worlds");
        writeln!(f, "{worlds} in which every guarantee held, {hours:.2} hours simulated")?;
        if self.undecided > 0 {
            writeln!(
                f,
                "but undecided: linearizable, of {}, where the search took too long",
                counted(self.undecided, "keyspace", "keyspaces")
            )?;
        }
        writeln!(
            f,
            "{} operations, {} acknowledged, {} with an unknown outcome",
            self.operations, self.acknowledged, self.unknown
        )?;
        writeln!(f, "all served again at most {} ms after the healing", self.recovery_us_max / 1_000)?;
        writeln!(f, "\nwhat happened:")?;
        self.events.iter().try_for_each(|(kind, count)| writeln!(f, "  {count:>12} {kind}"))?;
        writeln!(f, "\nwhat was checked:")?;
        self.checked.iter().try_for_each(|(name, count)| writeln!(f, "  {count:>12} {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(event: StoryEvent) -> Story {
        Story { at_us: 1, event }
    }

    #[test]
    fn sums_do_not_depend_on_the_order() {
        let mut one = Tally::default();
        one.event(&story(StoryEvent::Stops { node: 1, cause: Stop::Killed }));
        one.event(&story(StoryEvent::Checked { guarantee: "durable_ack", group: Some(1), count: 5 }));
        let mut other = Tally { worlds: 2, recovery_us_max: 7_000, ..Tally::default() };
        other.event(&story(StoryEvent::Checked { guarantee: "durable_ack", group: Some(1), count: 2 }));
        other.event(&story(StoryEvent::Healed));
        let (mut forth, mut back) = (one.clone(), other.clone());
        forth.add(other);
        back.add(one);
        assert_eq!(forth, back);
        let text = forth.to_string();
        assert!(text.contains("1 processes killed") && text.contains("7 durable_ack"), "{text}");
    }
}
