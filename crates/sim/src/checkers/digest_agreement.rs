//! `digest_agreement`: replicas that have applied the same index hold the same state.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};

use crate::history::Violation;

const GUARANTEE: &str = "digest_agreement";

/// The digests seen so far, of any type `D` that is equal for equal states.
pub struct DigestAgreement<D> {
    /// Per group and index: the digest and the first replica that showed it.
    seen: BTreeMap<(u64, u64), (D, String)>,
}

impl<D: PartialEq + Debug> DigestAgreement<D> {
    /// Nothing seen yet.
    pub fn new() -> DigestAgreement<D> {
        DigestAgreement { seen: BTreeMap::new() }
    }

    /// `replica` of `group` has applied up to `index` and its state has this digest.
    pub fn observe(
        &mut self,
        replica: impl Display,
        group: u64,
        index: u64,
        digest: D,
    ) -> Result<(), Violation> {
        match self.seen.get(&(group, index)) {
            None => {
                self.seen.insert((group, index), (digest, replica.to_string()));
                Ok(())
            }
            Some((first, _)) if *first == digest => Ok(()),
            Some((first, witness)) => {
                let found = format!(
                    "group {group}, index {index}: {first:?} on {witness}, but {digest:?} on {replica}"
                );
                Err(Violation::new(GUARANTEE, found))
            }
        }
    }
}

impl<D: PartialEq + Debug> Default for DigestAgreement<D> {
    fn default() -> DigestAgreement<D> {
        DigestAgreement::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn equal_digests_pass_and_different_ones_are_caught() {
        let mut digests = DigestAgreement::new();
        digests.observe("n1", 1, 5, 77).unwrap();
        digests.observe("n2", 1, 5, 77).unwrap();
        digests.observe("n2", 1, 6, 78).unwrap();
        digests.observe("n2", 2, 5, 79).unwrap();
        digests.observe("n3", 1, 5, 80).unwrap_err();
    }
}
