//! Quorum: which sets of replicas may decide. Pure arithmetic, no state of its own.
//!
//! A configuration is one set of voters, or two while membership changes (a *joint* configuration): then a decision
//! needs a majority of each. Membership changes themselves come later; everything that counts already goes
//! through here, so that they change no other module.
//!
//! Invariant: two quorums of one configuration, or of two neighbouring ones, have a replica in common.

use crate::ids::{Index, ReplicaId};

/// The replicas that vote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Voters {
    /// The voters; in a joint configuration, those of the new one.
    incoming: Vec<ReplicaId>,
    /// The voters of the old configuration while two are in force; empty otherwise.
    outgoing: Vec<ReplicaId>,
}

/// Where a ballot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// A quorum said yes.
    Won,
    /// No quorum can say yes any more.
    Lost,
    /// Not decided yet.
    Pending,
}

impl Voters {
    /// One set of voters.
    pub fn new(voters: impl IntoIterator<Item = ReplicaId>) -> Voters {
        Voters::joint(voters, [])
    }

    /// Two sets, of which both must agree. An empty set agrees to everything.
    pub fn joint(
        incoming: impl IntoIterator<Item = ReplicaId>,
        outgoing: impl IntoIterator<Item = ReplicaId>,
    ) -> Voters {
        Voters { incoming: sorted(incoming), outgoing: sorted(outgoing) }
    }

    /// Whether `replica` votes.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.incoming.contains(&replica) || self.outgoing.contains(&replica)
    }

    /// Each voter once, in order of its id within each set.
    pub fn iter(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let only_outgoing = self.outgoing.iter().filter(|replica| !self.incoming.contains(replica));
        self.incoming.iter().chain(only_outgoing).copied()
    }

    /// Whether `replica` is the only voter.
    pub fn is_only(&self, replica: ReplicaId) -> bool {
        self.iter().eq([replica])
    }

    /// The highest index that a quorum has reached, given what each voter has reached.
    pub fn committed(&self, matched: impl Fn(ReplicaId) -> Index) -> Index {
        majority_index(&self.incoming, &matched).min(majority_index(&self.outgoing, &matched))
    }

    /// Whether a quorum satisfies `agrees`.
    pub fn has_quorum(&self, agrees: impl Fn(ReplicaId) -> bool) -> bool {
        self.tally(|replica| Some(agrees(replica))) == Tally::Won
    }

    /// Counts a ballot in which a voter has said yes, no, or (`None`) nothing yet.
    pub fn tally(&self, answer: impl Fn(ReplicaId) -> Option<bool>) -> Tally {
        match (majority_tally(&self.incoming, &answer), majority_tally(&self.outgoing, &answer)) {
            (Tally::Won, Tally::Won) => Tally::Won,
            (Tally::Lost, _) | (_, Tally::Lost) => Tally::Lost,
            _ => Tally::Pending,
        }
    }
}

fn sorted(replicas: impl IntoIterator<Item = ReplicaId>) -> Vec<ReplicaId> {
    let mut replicas: Vec<ReplicaId> = replicas.into_iter().collect();
    replicas.sort_unstable();
    replicas.dedup();
    replicas
}

fn majority(set: &[ReplicaId]) -> usize {
    set.len() / 2 + 1
}

/// The largest value that a majority has reached. Quadratic, but sets are small and nothing is allocated: this runs
/// with every acknowledgement.
fn majority_index(set: &[ReplicaId], matched: impl Fn(ReplicaId) -> Index) -> Index {
    let reached =
        |index: Index| set.iter().filter(|other| matched(**other) >= index).count() >= majority(set);
    let reached = set.iter().map(|replica| matched(*replica)).filter(|index| reached(*index));
    if set.is_empty() { Index(u64::MAX) } else { reached.max().unwrap_or_default() }
}

fn majority_tally(set: &[ReplicaId], answer: impl Fn(ReplicaId) -> Option<bool>) -> Tally {
    if set.is_empty() {
        return Tally::Won;
    }
    let count = |wanted: Option<bool>| set.iter().filter(|replica| answer(**replica) == wanted).count();
    let (yes, unknown) = (count(Some(true)), count(None));
    if yes >= majority(set) {
        Tally::Won
    } else if yes + unknown >= majority(set) {
        Tally::Pending
    } else {
        Tally::Lost
    }
}
