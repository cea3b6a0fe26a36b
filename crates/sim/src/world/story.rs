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

/// What may be notable. Nodes and groups are named by their numbers; group 1 is `default`.
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
        /// Candidates and their votes.
        votes: Vec<(u64, u64)>,
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
    /// C(x), in thousandths: its part of the entries that were acknowledged lately.
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
            StoryEvent::Starts { node, start } => write!(f, "n{node} starts ({start})"),
            StoryEvent::Stops { node, cause } => write!(f, "n{node} {cause}"),
            StoryEvent::Gone { node, why } => write!(f, "n{node} is gone for good: {why}"),
            StoryEvent::Election { group, term, candidate, won, votes } => {
                let outcome = if *won { "wins" } else { "does not win" };
                write!(f, "n{candidate} {outcome} the election of group {group} in term {term}:")?;
                let sum: u64 = votes.iter().map(|(_, count)| count).sum();
                votes.iter().try_for_each(|(node, count)| {
                    write!(f, " n{node} {count} ({} %)", 100 * count / sum.max(1))
                })
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
                write!(f, "n{to} has n{from}'s snapshot of group {group} at index {index}")?;
                if *rounds > 1 { write!(f, ", in {rounds} rounds") } else { Ok(()) }
            }
            StoryEvent::DamagedChunk { from, to } => {
                write!(f, "a damaged part of n{from}'s snapshot is refused by n{to}")
            }
            StoryEvent::Shares { group, leader, shares } => {
                write!(f, "n{leader} sees these shares in group {group}:")?;
                shares.iter().try_for_each(|share| {
                    let Share { node, thousandths, lag } = share;
                    write!(f, " n{node} {}.{} % ({lag} behind)", thousandths / 10, thousandths % 10)
                })
            }
            StoryEvent::Compacted { group, revision } => {
                write!(f, "group {group} is compacted at revision {revision}")
            }
            StoryEvent::MembersWanted { members } => {
                write!(f, "the members are to be")?;
                members.iter().try_for_each(|node| write!(f, " n{node}"))
            }
            StoryEvent::PlacementWanted { group, nodes } => {
                write!(f, "group {group} is to be on")?;
                nodes.iter().try_for_each(|node| write!(f, " n{node}"))
            }
            StoryEvent::DeletionWanted { group } => write!(f, "group {group} is to be deleted"),
            StoryEvent::Accused { node, group } => {
                write!(f, "the replica of group {group} on n{node} is said to be damaged")
            }
            StoryEvent::Rots { node, group } => {
                write!(f, "a record of what n{node} has stored of group {group} rots")
            }
            StoryEvent::MoveDecided { planned } => write!(f, "decided: {planned}"),
            StoryEvent::Healed => write!(f, "everything is healed"),
            StoryEvent::Recovered { after_us } => {
                write!(f, "every client is served again after {} ms", after_us / 1_000)
            }
            StoryEvent::Equal => write!(f, "all replicas are equal"),
            StoryEvent::Checked { guarantee, count } => write!(f, "{guarantee} holds ({count} checked)"),
            StoryEvent::Violated { guarantee } => write!(f, "{guarantee} DOES NOT HOLD"),
        }
    }
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
