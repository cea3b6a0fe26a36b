//! The arithmetic of quorums against a twin that is written for clarity alone.

use std::collections::BTreeMap;

use hadron_consensus::quorum::{Tally, Voters};
use hadron_consensus::{Index, ReplicaId};
use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

/// Every subset of `set` that is larger than its half.
fn majorities(set: &[ReplicaId]) -> Vec<Vec<ReplicaId>> {
    let members =
        |mask: u32| (0..set.len()).filter(move |bit| mask >> bit & 1 == 1).map(|bit| set[bit]).collect();
    let all = (0..1u32 << set.len()).map(members);
    all.filter(|subset: &Vec<ReplicaId>| subset.len() * 2 > set.len()).collect()
}

/// The best index that all of some majority have reached.
fn naive_committed(set: &[ReplicaId], matched: &BTreeMap<ReplicaId, Index>) -> Index {
    if set.is_empty() {
        return Index(u64::MAX);
    }
    let reached = |replica: &ReplicaId| matched.get(replica).copied().unwrap_or_default();
    let of_subset = |subset: Vec<ReplicaId>| subset.iter().map(reached).min();
    majorities(set).into_iter().filter_map(of_subset).max().unwrap_or_default()
}

/// Won if some majority agrees; lost if none could if everybody else did.
fn naive_tally(set: &[ReplicaId], answers: &BTreeMap<ReplicaId, bool>) -> Tally {
    let some_majority =
        |agrees: &dyn Fn(&ReplicaId) -> bool| majorities(set).iter().any(|subset| subset.iter().all(agrees));
    if set.is_empty() || some_majority(&|replica| answers.get(replica) == Some(&true)) {
        Tally::Won
    } else if some_majority(&|replica| answers.get(replica) != Some(&false)) {
        Tally::Pending
    } else {
        Tally::Lost
    }
}

fn set() -> impl Strategy<Value = Vec<ReplicaId>> {
    btree_set(1..9u64, 0..6).prop_map(|ids| ids.into_iter().map(ReplicaId).collect())
}

proptest! {
    #[test]
    fn commits_what_the_twin_commits(
        incoming in set(),
        outgoing in set(),
        matched in btree_map(1..9u64, 0..20u64, 0..9),
    ) {
        let matched: BTreeMap<ReplicaId, Index> =
            matched.into_iter().map(|(replica, index)| (ReplicaId(replica), Index(index))).collect();
        let voters = Voters::joint(incoming.clone(), outgoing.clone());
        let committed = voters.committed(|replica| matched.get(&replica).copied().unwrap_or_default());
        prop_assert_eq!(committed, naive_committed(&incoming, &matched).min(naive_committed(&outgoing, &matched)));
    }

    #[test]
    fn counts_what_the_twin_counts(
        incoming in set(),
        outgoing in set(),
        answers in btree_map(1..9u64, any::<bool>(), 0..9),
    ) {
        let answers: BTreeMap<ReplicaId, bool> =
            answers.into_iter().map(|(replica, granted)| (ReplicaId(replica), granted)).collect();
        let voters = Voters::joint(incoming.clone(), outgoing.clone());
        let expected = match (naive_tally(&incoming, &answers), naive_tally(&outgoing, &answers)) {
            (Tally::Won, Tally::Won) => Tally::Won,
            (Tally::Lost, _) | (_, Tally::Lost) => Tally::Lost,
            _ => Tally::Pending,
        };
        prop_assert_eq!(voters.tally(|replica| answers.get(&replica).copied()), expected);
    }

    /// What makes it a quorum: any two have a replica in common.
    #[test]
    fn two_quorums_meet(incoming in set(), outgoing in set(), one in set(), other in set()) {
        let voters = Voters::joint(incoming, outgoing);
        let is_quorum = |set: &[ReplicaId]| voters.has_quorum(|replica| set.contains(&replica));
        if voters.iter().next().is_some() && is_quorum(&one) && is_quorum(&other) {
            prop_assert!(one.iter().any(|replica| other.contains(replica)));
        }
    }
}

#[test]
fn a_set_of_one_decides_alone() {
    let voters = Voters::new([ReplicaId(3)]);
    assert!(voters.is_only(ReplicaId(3)));
    assert_eq!(voters.tally(|_| Some(true)), Tally::Won);
    assert_eq!(voters.committed(|_| Index(7)), Index(7));
}
