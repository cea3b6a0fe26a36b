//! `exclusion`: two clients never hold a lock at a time, as long as each trusts its lease no longer than it was promised;
//! and whoever gets it later has the greater fencing token.

use std::fmt;

use crate::history::{At, Violation};

const GUARANTEE: &str = "exclusion";

/// A time in which a client held the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who: the lease that the lock was bound to.
    pub holder: i64,
    /// When it learnt that it holds the lock, in microseconds.
    pub from: u64,
    /// When it gave the lock up, or its lease's promise ended.
    pub until: u64,
    /// The revision that the lock was taken at.
    pub token: i64,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Claim { holder, from, until, token } = self;
        write!(f, "lease {holder} [{}..{}] with token {token}", At(*from), At(*until))
    }
}

/// Checks all claims on one lock.
pub fn check(claims: &[Claim]) -> Result<(), Violation> {
    let mut claims: Vec<&Claim> = claims.iter().filter(|claim| claim.until > claim.from).collect();
    claims.sort_by_key(|claim| (claim.from, claim.token));
    for pair in claims.windows(2) {
        let [earlier, later] = [pair[0], pair[1]];
        if later.from < earlier.until {
            return Err(Violation::new(GUARANTEE, format!("two hold the lock: {earlier} and {later}")));
        }
        if later.token <= earlier.token {
            let found = format!("the fencing token does not grow: {earlier}, then {later}");
            return Err(Violation::new(GUARANTEE, found));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn claim(holder: i64, from: u64, until: u64, token: i64) -> Claim {
        Claim { holder, from, until, token }
    }

    #[test]
    fn one_after_another_passes() {
        check(&[claim(2, 20, 30, 9), claim(1, 5, 20, 4)]).unwrap();
        // One that was promised nothing by the time it knew.
        check(&[claim(1, 5, 20, 4), claim(2, 10, 8, 9)]).unwrap();
    }

    #[test]
    fn two_holders_at_a_time_are_caught() {
        check(&[claim(1, 5, 20, 4), claim(2, 19, 30, 9)]).unwrap_err();
    }

    #[test]
    fn a_token_that_does_not_grow_is_caught() {
        check(&[claim(1, 5, 20, 4), claim(2, 21, 30, 4)]).unwrap_err();
    }
}
