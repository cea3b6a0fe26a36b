//! Reports: what a node measured of itself and of its replicas, for whoever plans.
//!
//! Each node sends its report to the nodes whose replicas of the root group vote, every few seconds. So whoever leads the
//! root group next knows the loads already, and any of them can show how the pool stands. A report is a message and not a
//! record: a lost one is replaced by the next.

use std::sync::Arc;

use bytes::Bytes;
use hadron_balance::{Capacity, Load, Resource};
use hadron_consensus::{GroupId, NodeId, ReplicaId};
use prost::Message as _;

use crate::board::{Board, GroupBoard};
use crate::event::Effects;
use crate::membership::Member;
use crate::node::Node;
use crate::peer::PeerMessage;
use crate::reconfigure::Places;

/// What a node measured.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Report {
    /// Where the node stands: what fails together. Empty if it was not told.
    #[prost(string, tag = "1")]
    pub zone: String,
    /// How much it has of each resource, in the order of [`Resource::ALL`]; 0 for what is not limited, or not known.
    #[prost(double, repeated, tag = "2")]
    pub capacity: Vec<f64>,
    /// Its load, smoothed over 10 seconds.
    #[prost(double, repeated, tag = "3")]
    pub short: Vec<f64>,
    /// Its load, smoothed over a minute.
    #[prost(double, repeated, tag = "4")]
    pub long: Vec<f64>,
    /// The load to plan with that none of its replicas accounts for.
    #[prost(double, repeated, tag = "5")]
    pub own: Vec<f64>,
    /// Bytes of its disk that are in use.
    #[prost(uint64, tag = "6")]
    pub disk_used: u64,
    /// Bytes of its disk; 0 when that is not known.
    #[prost(uint64, tag = "7")]
    pub disk_total: u64,
    /// The smoothed latency of an fsync, in microseconds.
    #[prost(double, tag = "8")]
    pub fsync_us: f64,
    /// Its replicas that carry something.
    #[prost(message, repeated, tag = "9")]
    pub replicas: Vec<ReplicaReport>,
    /// The groups that it leads.
    #[prost(uint64, repeated, tag = "10")]
    pub leads: Vec<u64>,
    /// Of the groups that it has a replica of, those that a replica is to leave. Of those that it leads also the others that have yet to
    /// come to their placement.
    #[prost(message, repeated, tag = "11")]
    pub settled: Vec<Settled>,
    /// The prefixes of keys that its clients asked most about, in a second.
    #[prost(message, repeated, tag = "12")]
    pub prefixes: Vec<Hitter>,
    /// Its clients that asked most.
    #[prost(message, repeated, tag = "13")]
    pub clients: Vec<Hitter>,
    /// The work of all that its clients caused, in a second: see [`Hitter::work`].
    #[prost(double, tag = "14")]
    pub work: f64,
    /// Its replicas that are damaged: they serve nobody, and are to be rebuilt.
    #[prost(message, repeated, tag = "15")]
    pub damaged: Vec<Damaged>,
}

/// A replica that differs from the others, or cannot be opened.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Damaged {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The replica. Another one of the group on that node is not meant.
    #[prost(uint64, tag = "2")]
    pub replica: u64,
}

/// Who causes load on a node, and how much in a second.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hitter {
    /// The group that was asked.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// A prefix, or a client.
    #[prost(bytes = "vec", tag = "2")]
    pub name: Vec<u8>,
    /// Requests.
    #[prost(double, tag = "3")]
    pub requests: f64,
    /// What they take of the processor, in reads.
    #[prost(double, tag = "4")]
    pub work: f64,
    /// Bytes that were read, or sent with events.
    #[prost(double, tag = "5")]
    pub read: f64,
    /// Bytes that were written.
    #[prost(double, tag = "6")]
    pub written: f64,
    /// Watch events that were sent.
    #[prost(double, tag = "7")]
    pub events: f64,
}

/// How far a group has come. A replica on a dead node never says that it is gone; those that are left know when the group does without it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Settled {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The revision of the placement that the group has come to.
    #[prost(int64, tag = "2")]
    pub revision: i64,
    /// The nodes whose replicas vote, if there is a newer placement: what has yet to be changed.
    #[prost(uint64, repeated, tag = "3")]
    pub voters: Vec<u64>,
}

/// What a node measured of one replica.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReplicaReport {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The load to plan with.
    #[prost(double, repeated, tag = "2")]
    pub steady: Vec<f64>,
    /// The load, smoothed over 10 seconds.
    #[prost(double, repeated, tag = "3")]
    pub short: Vec<f64>,
}

impl Report {
    /// The bytes to send.
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// A report that another node sent.
    ///
    /// # Errors
    /// The bytes are none.
    pub fn from_bytes(bytes: Bytes) -> Result<Report, prost::DecodeError> {
        Report::decode(bytes)
    }

    /// How much the node has.
    pub fn capacity(&self) -> Capacity {
        Capacity::of(load_of(&self.capacity))
    }

    /// Whether it leads `group`.
    pub fn leads(&self, group: GroupId) -> bool {
        self.leads.binary_search(&group.0).is_ok()
    }

    /// How far it knows that `group` has come, if it says that.
    pub fn settled(&self, group: GroupId) -> Option<&Settled> {
        let place = self.settled.binary_search_by_key(&group.0, |settled| settled.group).ok()?;
        self.settled.get(place)
    }

    /// The damaged replica that it has of `group`.
    pub fn damaged(&self, group: GroupId) -> Option<ReplicaId> {
        let place = self.damaged.binary_search_by_key(&group.0, |damaged| damaged.group).ok()?;
        self.damaged.get(place).map(|damaged| ReplicaId(damaged.replica))
    }

    /// What it measured of its replica of `group`; nothing if that carries nothing.
    pub fn replica(&self, group: GroupId) -> Option<&ReplicaReport> {
        let place = self.replicas.binary_search_by_key(&group.0, |replica| replica.group).ok()?;
        self.replicas.get(place)
    }
}

/// What `me` has to say in [`Report::settled`]. Nothing about groups that are where they shall be: there may be thousands.
///
/// That a group has come to a placement any replica may say that applied it; a group that sleeps since all its nodes were started has no
/// leader. That it has not, where no replica is to leave, only the leader: another may lag behind.
pub fn settled(board: &Board, me: NodeId) -> Vec<Settled> {
    let of = |(group, here): (GroupId, Arc<GroupBoard>)| {
        let revision = here.settled();
        board.with_catalog(|catalog| {
            let placement = catalog.placement(group)?;
            let is_open = revision < placement.revision && placement.record.was_changed();
            let is_left = catalog.leaving_of(group).next().is_some();
            let voters = if is_open { voters(&here) } else { Vec::new() };
            let is_told = is_left || is_open && here.leader() == Some(me);
            is_told.then_some(Settled { group: group.0, revision, voters })
        })
    };
    board.groups().into_iter().filter_map(of).collect()
}

/// The nodes whose replicas vote; those that did before, while they are replaced.
fn voters(here: &GroupBoard) -> Vec<u64> {
    let configuration = here.configuration();
    let places = Places::of(&configuration).unwrap_or_default();
    let voters = if configuration.is_joint() { &configuration.outgoing } else { &configuration.voters };
    voters.iter().filter_map(|replica| places.nodes.get(replica)).map(|node| node.0).collect()
}

/// What a node has to say in [`Report::damaged`].
pub fn damaged(board: &Board) -> Vec<Damaged> {
    let damaged = board.damaged().into_iter();
    damaged.map(|(group, replica)| Damaged { group: group.0, replica: replica.0 }).collect()
}

impl Node {
    /// Tells those who may plan what this node measured.
    pub(crate) fn spread_report(&mut self, report: Report, effects: &mut Effects) {
        let message = PeerMessage::Report(report.to_bytes());
        self.board.set_report(self.config.node, report);
        let planners = self.pool.roster.voters().map(Member::node);
        let others = planners.filter(|node| *node != self.config.node && self.connected.contains_key(node));
        effects.sends.extend(others.map(|node| (node, message.clone())));
    }

    /// Another node measured this.
    pub(crate) fn on_report(&mut self, from: NodeId, bytes: Bytes) {
        match Report::from_bytes(bytes) {
            Ok(report) => self.board.set_report(from, report),
            Err(error) => {
                tracing::warn!(node = %format_args!("{:x}", from.0), %error, "cannot understand a report")
            }
        }
    }
}

/// A load as it is sent.
pub fn amounts_of(load: &Load) -> Vec<f64> {
    Resource::ALL.into_iter().map(|resource| load[resource]).collect()
}

/// A load that was sent; 0 for resources that the sender does not know.
pub fn load_of(amounts: &[f64]) -> Load {
    let amount = |resource: Resource| {
        let place = Resource::ALL.iter().position(|other| *other == resource)?;
        amounts.get(place).copied().filter(|amount| amount.is_finite() && *amount >= 0.0)
    };
    Load::each(|resource| amount(resource).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_reported_is_what_is_read() {
        let load = Load::ZERO.with(Resource::Cpu, 0.5).with(Resource::Memory, 7.0);
        let replica = ReplicaReport { group: 3, steady: amounts_of(&load), short: Vec::new() };
        let damaged = vec![Damaged { group: 3, replica: 9 }];
        let leads = vec![1, 3];
        let report =
            Report { zone: "a".into(), replicas: vec![replica], leads, damaged, ..Report::default() };
        let read = Report::from_bytes(report.to_bytes()).unwrap();
        assert_eq!(read, report);
        assert_eq!(load_of(&read.replica(GroupId(3)).unwrap().steady), load);
        assert_eq!((read.damaged(GroupId(3)), read.damaged(GroupId(4))), (Some(ReplicaId(9)), None));
        assert!(read.leads(GroupId(3)) && !read.leads(GroupId(2)) && read.replica(GroupId(2)).is_none());
    }

    #[test]
    fn nonsense_is_no_load() {
        assert_eq!(load_of(&[f64::NAN, -1.0, f64::INFINITY]), Load::ZERO);
        assert!(Report::from_bytes(Bytes::from_static(b"\xff\xff")).is_err());
    }
}
