//! The story of a world: its notable events, told while it runs, in the order of their times.
//!
//! [`World::run_with`](super::World::run_with) hands each [`Story`] out as soon as it is known; its `Display` is a line
//! to print. A story begins with the starts of the nodes. Then come elections (with votes, whose parts are P(x)), C(x) as
//! leaders measure it, and faults, until [`StoryEvent::Healed`]. After that: [`StoryEvent::Recovered`],
//! [`StoryEvent::Equal`], one [`StoryEvent::Checked`] for each guarantee (and keyspace, where it has keyspaces), and the
//! end. A run that goes wrong ends with [`StoryEvent::Violated`] instead, whatever it had come to; the [`Failure`]
//! (seed, violation, the end of the trace) is the run's result.
//!
//! What is told follows from the settings alone.
//!
//! [`Failure`]: super::Failure

use std::fmt;

use hadron_consensus::{DEFAULT_GROUP, ROOT_GROUP};

use super::sickness::Ailment;
use super::trace::Seconds;

/// Something notable that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// When, in microseconds since the world began.
    pub at_us: u64,
    /// What.
    pub event: StoryEvent,
}

/// What may be notable. Nodes and groups are named by their numbers; group 0 is the root group, group 1 is `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoryEvent {
    /// A node's process starts; `start` counts its starts.
    Starts {
        /// The node.
        node: u64,
        /// 1 for the first.
        start: u64,
    },
    /// A node's process ends.
    Stops {
        /// The node.
        node: u64,
        /// Why.
        cause: Stop,
    },
    /// A machine is gone for good.
    Gone {
        /// The node.
        node: u64,
        /// Why.
        why: String,
    },
    /// An election was decided, or nobody won it.
    Election {
        /// The group.
        group: u64,
        /// The term.
        term: u64,
        /// The candidate that counted.
        candidate: u64,
        /// False for a split vote.
        won: bool,
        /// Candidates and their votes, as far as they were counted.
        votes: Vec<(u64, u64)>,
        /// How many replicas have a vote; unknown while the voters change.
        voters: Option<u64>,
    },
    /// Nothing gets through in these directions.
    Partition {
        /// From and to.
        cut: Vec<(u64, u64)>,
    },
    /// Everything gets through again.
    PartitionEnds,
    /// Connections of a node break.
    ConnectionsBreak {
        /// The node.
        node: u64,
    },
    /// A disk slows down.
    SlowDisk {
        /// The node.
        node: u64,
        /// How many times slower it is than usual.
        factor: u64,
    },
    /// A disk has no room left.
    FullDisk {
        /// The node.
        node: u64,
    },
    /// The next fsync or write of a disk will fail.
    FailingDisk {
        /// The node.
        node: u64,
        /// `an fsync`, `a write` or `the engine`.
        what: &'static str,
    },
    /// A process stands still.
    Pauses {
        /// The node.
        node: u64,
        /// For how long, in microseconds.
        for_us: u64,
        /// Whether its clock stands still as well, like that of a suspended machine.
        clock: bool,
    },
    /// The loop of one of a process's shards stands still.
    Hangs {
        /// The node.
        node: u64,
        /// The shard; the first is 0.
        shard: usize,
        /// For how long, in microseconds.
        for_us: u64,
    },
    /// A node half works, for a while.
    Ails {
        /// The node.
        node: u64,
        /// What it has.
        ailment: Ailment,
    },
    /// What a node sends to some others finds its queues full.
    QueuesFull {
        /// The node.
        node: u64,
        /// For how long.
        for_us: u64,
    },
    /// Somebody wants a node emptied, or not any more.
    DrainWanted {
        /// The node.
        node: u64,
        /// Whether it is to be emptied.
        wanted: bool,
    },
    /// A node is asked to stop.
    AskedToStop {
        /// The node.
        node: u64,
    },
    /// A leader is asked to hand over.
    HandsOver {
        /// The node that leads.
        from: u64,
        /// The node that shall lead.
        to: u64,
    },
    /// A node has installed another's snapshot.
    Snapshot {
        /// The group.
        group: u64,
        /// The sender.
        from: u64,
        /// The receiver.
        to: u64,
        /// The last entry in it.
        index: u64,
        /// How many rounds it took.
        rounds: u32,
    },
    /// A part of a snapshot arrived with a flipped bit, and the receiver noticed.
    DamagedChunk {
        /// The sender.
        from: u64,
        /// The receiver.
        to: u64,
    },
    /// What part the nodes had in the replication of a group lately, as its leader measures it.
    Shares {
        /// The group.
        group: u64,
        /// The leader.
        leader: u64,
        /// For each node.
        shares: Vec<Share>,
    },
    /// A keyspace was compacted.
    Compacted {
        /// The group of the keyspace.
        group: u64,
        /// Up to this revision.
        revision: i64,
    },
    /// Somebody wants these to be the members.
    MembersWanted {
        /// The nodes.
        members: Vec<u64>,
    },
    /// Somebody wants the replicas of a group there.
    PlacementWanted {
        /// The group.
        group: u64,
        /// The nodes.
        nodes: Vec<u64>,
    },
    /// Somebody wants a keyspace deleted.
    DeletionWanted {
        /// Its group.
        group: u64,
    },
    /// A replica is said to be damaged.
    Accused {
        /// Its node.
        node: u64,
        /// Its group.
        group: u64,
    },
    /// A record of what is stored of a replica rots.
    Rots {
        /// Its node.
        node: u64,
        /// Its group.
        group: u64,
    },
    /// Who plans has decided something.
    MoveDecided {
        /// What, and why.
        planned: String,
    },
    /// Faults are over: everything is put right.
    Healed,
    /// Every client has been served since the healing.
    Recovered {
        /// How long that took, in microseconds.
        after_us: u64,
    },
    /// All replicas have applied the same, and all there is.
    Equal,
    /// A guarantee was checked and held.
    Checked {
        /// Its name.
        guarantee: &'static str,
        /// The group of the keyspace that it was checked of, if it is checked keyspace by keyspace.
        group: Option<u64>,
        /// How many things were looked at.
        count: u64,
    },
    /// A guarantee did not hold: the end of the story.
    Violated {
        /// Its name.
        guarantee: &'static str,
    },
}

/// A node's part in the replication of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The node.
    pub node: u64,
    /// C(x), in thousandths: its part of the entries that were acknowledged lately. Those of a group's nodes add up to 1,000.
    pub thousandths: u64,
    /// Entries between the leader's last and what the node acknowledged.
    pub lag: u64,
}

/// Why a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The machine loses its power.
    PowerLoss,
    /// The process is killed; the machine goes on.
    Killed,
    /// The node stopped itself because its disk failed or was full.
    Disk,
    /// The node stopped itself because it was told that it was removed.
    Removed,
    /// The node was asked to, and did so in good order.
    Asked,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", Seconds(self.at_us), self.event)
    }
}

impl fmt::Display for StoryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoryEvent::Starts { node, start: 1 } => write!(f, "n{node} starts"),
            StoryEvent::Starts { node, start } => write!(f, "n{node} starts again (start {start})"),
            StoryEvent::Stops { node, cause } => write!(f, "n{node} {cause}"),
            StoryEvent::Gone { node, why } => write!(f, "n{node} is gone for good: {why}"),
            StoryEvent::Election { group, term, candidate, won, votes, voters } => {
                let outcome = if *won { "wins" } else { "does not win" };
                write!(f, "n{candidate} {outcome} the election of {} in term {term}: ", Group(*group))?;
                write_votes(f, *candidate, votes, *voters)
            }
            StoryEvent::Partition { cut } => {
                write!(f, "the network is cut:")?;
                cut.iter().try_for_each(|(from, to)| write!(f, " n{from}->n{to}"))
            }
            StoryEvent::PartitionEnds => write!(f, "the network is whole again"),
            StoryEvent::ConnectionsBreak { node } => write!(f, "connections of n{node} break"),
            StoryEvent::SlowDisk { node, factor } => write!(f, "n{node}'s disk is {factor} times slower"),
            StoryEvent::FullDisk { node } => write!(f, "n{node}'s disk is full"),
            StoryEvent::FailingDisk { node, what } => write!(f, "{what} of n{node} will fail"),
            StoryEvent::Pauses { node, for_us, clock } => {
                let with = if *clock { ", and its clock with it" } else { "" };
                write!(f, "n{node} stands still for {} ms{with}", for_us / 1_000)
            }
            StoryEvent::Hangs { node, shard, for_us } => {
                write!(f, "shard {shard} of n{node} stands still for {} ms", for_us / 1_000)
            }
            StoryEvent::Ails { node, ailment } => write!(f, "n{node} is sick: {ailment}"),
            StoryEvent::QueuesFull { node, for_us } => {
                write!(f, "n{node} has full queues to some others for {} ms", for_us / 1_000)
            }
            StoryEvent::DrainWanted { node, wanted: true } => write!(f, "n{node} is to be emptied"),
            StoryEvent::DrainWanted { node, wanted: false } => write!(f, "n{node} is no more to be emptied"),
            StoryEvent::AskedToStop { node } => write!(f, "n{node} is asked to stop"),
            StoryEvent::HandsOver { from, to } => write!(f, "n{from} is to hand over to n{to}"),
            StoryEvent::Snapshot { group, from, to, index, rounds } => {
                write!(f, "n{to} has n{from}'s snapshot of {} at index {index}", Group(*group))?;
                if *rounds > 1 { write!(f, ", in {rounds} rounds") } else { Ok(()) }
            }
            StoryEvent::DamagedChunk { from, to } => {
                write!(f, "a damaged part of n{from}'s snapshot is refused by n{to}")
            }
            StoryEvent::Shares { group, leader, shares } => {
                write!(f, "n{leader}, which leads {}, measures C(x):", Group(*group))?;
                shares.iter().try_for_each(|share| {
                    let Share { node, thousandths, lag } = share;
                    write!(f, " n{node} {}.{} % ({lag} behind)", thousandths / 10, thousandths % 10)
                })
            }
            StoryEvent::Compacted { group, revision } => {
                write!(f, "{} is compacted at revision {revision}", Group(*group))
            }
            StoryEvent::MembersWanted { members } => {
                write!(f, "the members are to be")?;
                members.iter().try_for_each(|node| write!(f, " n{node}"))
            }
            StoryEvent::PlacementWanted { group, nodes } => {
                write!(f, "{} is to be on", Group(*group))?;
                nodes.iter().try_for_each(|node| write!(f, " n{node}"))
            }
            StoryEvent::DeletionWanted { group } => write!(f, "{} is to be deleted", Group(*group)),
            StoryEvent::Accused { node, group } => {
                write!(f, "the replica of {} on n{node} is said to be damaged", Group(*group))
            }
            StoryEvent::Rots { node, group } => {
                write!(f, "a record of what n{node} has stored of {} rots", Group(*group))
            }
            StoryEvent::MoveDecided { planned } => write!(f, "decided: {planned}"),
            StoryEvent::Healed => write!(f, "everything is healed"),
            StoryEvent::Recovered { after_us } => {
                write!(f, "every client is served again after {} ms", after_us / 1_000)
            }
            StoryEvent::Equal => write!(f, "all replicas are equal"),
            StoryEvent::Checked { guarantee, group, count } => {
                write!(f, "{guarantee} holds")?;
                group.map_or(Ok(()), |group| write!(f, " for {}", Group(group)))?;
                write!(f, " ({count} checked)")
            }
            StoryEvent::Violated { guarantee } => write!(f, "{guarantee} DOES NOT HOLD"),
        }
    }
}

/// A group by what it is for, as far as its number tells: that of a keyspace which is deleted and made anew is another one each time.
struct Group(u64);

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            group if group == ROOT_GROUP.0 => f.write_str("the root group"),
            group if group == DEFAULT_GROUP.0 => f.write_str("default"),
            group => write!(f, "group {group}"),
        }
    }
}

/// The candidate's votes, and P(x) of all candidates if there are several.
fn write_votes(
    f: &mut fmt::Formatter<'_>,
    candidate: u64,
    votes: &[(u64, u64)],
    voters: Option<u64>,
) -> fmt::Result {
    let own = votes.iter().find(|(node, _)| *node == candidate).map_or(0, |(_, count)| *count);
    match voters {
        Some(voters) => write!(f, "{own} of {voters} votes, needs {}", voters / 2 + 1)?,
        None => write!(f, "{own} vote{}, the voters change", if own == 1 { "" } else { "s" })?,
    }
    if votes.iter().all(|(node, _)| *node == candidate) {
        return Ok(());
    }
    write!(f, "; P(x) of those counted:")?;
    let counts: Vec<f64> = votes.iter().map(|(_, count)| *count as f64).collect();
    let mut parts = votes.iter().zip(parts_of(100, &counts));
    parts.try_for_each(|((node, _), percent)| write!(f, " n{node} {percent} %"))
}

/// Rounds parts of a whole to whole numbers that add up to `whole`: what is left over goes to those that lost most. All are 0 if there is
/// nothing to be divided by.
pub(super) fn parts_of(whole: u64, values: &[f64]) -> Vec<u64> {
    let sum: f64 = values.iter().sum();
    if sum <= 0.0 {
        return vec![0; values.len()];
    }
    let exact: Vec<f64> = values.iter().map(|value| value / sum * whole as f64).collect();
    let mut parts: Vec<u64> = exact.iter().map(|part| part.floor() as u64).collect();
    let missing = whole.saturating_sub(parts.iter().sum());
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|one, other| exact[*other].fract().total_cmp(&exact[*one].fract()));
    order.into_iter().take(missing as usize).for_each(|place| parts[place] += 1);
    parts
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stop::PowerLoss => "loses power",
            Stop::Killed => "is killed",
            Stop::Disk => "stops: its disk failed",
            Stop::Removed => "stops: it was removed",
            Stop::Asked => "stops in good order",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election(candidate: u64, won: bool, votes: &[(u64, u64)], voters: Option<u64>) -> String {
        let votes = votes.to_vec();
        StoryEvent::Election { group: 1, term: 4, candidate, won, votes, voters }.to_string()
    }

    #[test]
    fn elections_say_how_many_votes_there_were_and_were_needed() {
        let won = election(2, true, &[(2, 2)], Some(3));
        assert_eq!(won, "n2 wins the election of default in term 4: 2 of 3 votes, needs 2");
        let nobody = election(2, false, &[], Some(3));
        assert_eq!(nobody, "n2 does not win the election of default in term 4: 0 of 3 votes, needs 2");
        let split = election(1, false, &[(1, 2), (3, 1)], Some(5));
        assert!(
            split.ends_with("term 4: 2 of 5 votes, needs 3; P(x) of those counted: n1 67 % n3 33 %"),
            "{split}"
        );
        let joint = election(2, true, &[(2, 1)], None);
        assert!(joint.ends_with("term 4: 1 vote, the voters change"), "{joint}");
    }

    #[test]
    fn percentages_add_up() {
        assert_eq!(parts_of(100, &[2.0, 1.0]), [67, 33]);
        assert_eq!(parts_of(1_000, &[1.0, 1.0, 1.0]), [334, 333, 333]);
        assert_eq!(parts_of(100, &[0.0, 0.0]), [0, 0]);
        assert_eq!(parts_of(100, &[]), [0; 0]);
    }

    #[test]
    fn groups_and_keyspaces_are_named() {
        let checked = |group| StoryEvent::Checked { guarantee: "durable_ack", group, count: 5 }.to_string();
        assert_eq!(checked(None), "durable_ack holds (5 checked)");
        assert_eq!(checked(Some(1)), "durable_ack holds for default (5 checked)");
        assert_eq!(checked(Some(3)), "durable_ack holds for group 3 (5 checked)");
        let root = StoryEvent::Accused { node: 2, group: 0 }.to_string();
        assert_eq!(root, "the replica of the root group on n2 is said to be damaged");
    }
}
