//! Names of things that must not be mixed up: each a newtype, so that mixing them does not compile.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $form:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $form, self.0)
            }
        }
    };
}

id! {
    /// A Raft group. 0 is the root group, 1 carries the keyspace `default`. Never used again after deletion.
    GroupId, "g{}"
}
id! {
    /// A voter or learner of one group. Allocated once and never used again: a replica that lost its disk comes
    /// back under a new one, because it has forgotten its votes.
    ReplicaId, "r{}"
}
id! {
    /// A node (a process with a data directory); what etcd calls a member. Shown in hexadecimal, as everywhere.
    NodeId, "n{:x}"
}
id! {
    /// A Raft term: at most one leader is elected in each. 0 is before the first election.
    Term, "t{}"
}
id! {
    /// A position in a group's log. The first entry has index 1; 0 is the position before it.
    Index, "i{}"
}

impl Index {
    /// The index after this one.
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }

    /// The index before this one; the index before 0 is 0.
    pub fn previous(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
}

/// The root group, which holds nodes, keyspaces and placement.
pub const ROOT_GROUP: GroupId = GroupId(0);
/// The group that carries the keyspace `default`, all that a plain etcd client ever sees.
pub const DEFAULT_GROUP: GroupId = GroupId(1);

/// A moment on the monotonic clock of whoever drives the group: microseconds since an origin of the driver's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This moment plus `micros` microseconds.
    pub fn plus_micros(self, micros: u64) -> Time {
        Time(self.0.saturating_add(micros))
    }

    /// Microseconds from `earlier` to this moment; 0 when `earlier` is later.
    pub fn micros_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
