//! `lease_promise`: a lease lives at least its time to live after its last renewal, and not much longer.
//!
//! A group's clock is logical: it stands still while there is no leader, so a lease may outlive its time by as much as
//! the group was without one. It never runs ahead, so a lease never ends early.

use std::fmt;

use crate::history::{At, Violation};

const GUARANTEE: &str = "lease_promise";

/// The group's clock counts whole milliseconds.
const ROUNDING_US: u64 = 1_000;

/// A grant or a keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// When it was asked for, in microseconds.
    pub invoked: u64,
    /// When the answer came, or when it could no longer have an effect.
    pub returned: u64,
    /// Whether the answer said that the lease lives; false when no answer came.
    pub acknowledged: bool,
}

/// What was seen of one lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: i64,
    /// The time to live that the server granted, in microseconds.
    pub ttl_us: u64,
    /// Its grant and all attempts to keep it alive.
    pub renewals: Vec<Renewal>,
    /// When a revocation was asked for, if ever.
    pub revoked: Option<u64>,
    /// The latest moment at which a linearizable look that began then found it alive.
    pub alive_at: Option<u64>,
    /// The earliest moment by which a look had found it, or a key attached to it, gone.
    pub gone_by: Option<u64>,
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease {} of {} ms", self.id, self.ttl_us / 1_000)?;
        for Renewal { invoked, returned, acknowledged } in &self.renewals {
            let answer = if *acknowledged { "renewed" } else { "perhaps renewed" };
            write!(f, ", {answer} [{}..{}]", At(*invoked), At(*returned))?;
        }
        let moment = |f: &mut fmt::Formatter<'_>, what, at: Option<u64>| {
            at.map_or(Ok(()), |at| write!(f, ", {what} {}", At(at)))
        };
        moment(f, "asked to be revoked at", self.revoked)?;
        moment(f, "seen alive at", self.alive_at)?;
        moment(f, "gone by", self.gone_by)
    }
}

/// Checks one lease. `late_by_us` is what it may live too long: the time without a leader and the time that an expiry
/// takes to be noticed and committed. Clocks may be fast or slow by `drift_ppm` parts in a million.
pub fn check(lease: &Lease, late_by_us: u64, drift_ppm: u64) -> Result<(), Violation> {
    let early_by_us = ROUNDING_US + lease.ttl_us * drift_ppm / 1_000_000;
    let late_by_us = late_by_us + 2 * lease.ttl_us * drift_ppm / 1_000_000;
    let acknowledged = lease.renewals.iter().filter(|renewal| renewal.acknowledged);
    let promised = acknowledged.map(|renewal| renewal.invoked + lease.ttl_us).max();
    let revoked_before = |moment: u64| lease.revoked.is_some_and(|revoked| revoked <= moment);
    if let (Some(gone_by), Some(promised)) = (lease.gone_by, promised)
        && gone_by + early_by_us < promised
        && !revoked_before(gone_by)
    {
        let found = format!("gone by {}, promised until {}: {lease}", At(gone_by), At(promised));
        return Err(Violation::new(GUARANTEE, found));
    }
    let latest = lease.renewals.iter().map(|renewal| renewal.returned + lease.ttl_us + late_by_us).max();
    if let (Some(alive_at), Some(latest)) = (lease.alive_at, latest)
        && alive_at > latest
    {
        let found = format!("still lived at {}, at most until {}: {lease}", At(alive_at), At(latest));
        return Err(Violation::new(GUARANTEE, found));
    }
    if let (Some(alive_at), Some(gone_by)) = (lease.alive_at, lease.gone_by)
        && alive_at > gone_by
    {
        let found = format!("came back after it was gone: {lease}");
        return Err(Violation::new(GUARANTEE, found));
    }
    Ok(())
}

/// For how long the clock of a lease's group may have stood still while the lease was seen: the longer ones of the `times` between
/// two acknowledged writes, as far as they touch its life.
pub fn stood_still_us(lease: &Lease, times: &[(u64, u64)], longer_than_us: u64) -> u64 {
    let granted = lease.renewals.first().map_or(0, |renewal| renewal.invoked);
    let until = lease.alive_at.unwrap_or(granted);
    let meanwhile = times.iter().filter(|(from, to)| *to >= granted && *from <= until);
    meanwhile.map(|(from, to)| to - from).filter(|for_us| *for_us > longer_than_us).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn lease() -> Lease {
        let renewal = |invoked, acknowledged| Renewal { invoked, returned: invoked + 1_000, acknowledged };
        Lease {
            id: 7,
            ttl_us: 5 * SECOND,
            renewals: vec![renewal(0, true), renewal(2 * SECOND, true)],
            ..Lease::default()
        }
    }

    #[test]
    fn an_expiry_in_its_time_passes() {
        check(&Lease { alive_at: Some(7 * SECOND), gone_by: Some(7 * SECOND + 500), ..lease() }, SECOND, 0)
            .unwrap();
    }

    #[test]
    fn an_early_expiry_is_caught() {
        let early = Lease { gone_by: Some(6 * SECOND), ..lease() };
        check(&early, SECOND, 0).unwrap_err();
        check(&Lease { revoked: Some(SECOND), ..early }, SECOND, 0).unwrap();
    }

    #[test]
    fn an_unanswered_renewal_promises_nothing_but_may_count() {
        let mut lease = lease();
        lease.renewals[1].acknowledged = false;
        check(&Lease { gone_by: Some(5 * SECOND), ..lease.clone() }, 0, 0).unwrap();
        check(&Lease { alive_at: Some(7 * SECOND), ..lease }, 0, 0).unwrap();
    }

    #[test]
    fn a_lease_that_outlives_its_time_is_caught() {
        check(&Lease { alive_at: Some(9 * SECOND), ..lease() }, SECOND, 0).unwrap_err();
        check(&Lease { alive_at: Some(9 * SECOND), ..lease() }, 3 * SECOND, 0).unwrap();
    }

    #[test]
    fn a_lease_that_comes_back_is_caught() {
        check(
            &Lease { alive_at: Some(7 * SECOND + 600), gone_by: Some(7 * SECOND + 500), ..lease() },
            SECOND,
            0,
        )
        .unwrap_err();
    }

    #[test]
    fn clocks_may_drift_as_far_as_was_agreed() {
        let early = Lease { gone_by: Some(7 * SECOND - 90_000), ..lease() };
        check(&early, SECOND, 20_000).unwrap();
        check(&early, SECOND, 10_000).unwrap_err();
    }

    #[test]
    fn long_times_without_a_write_count_while_the_lease_is_seen() {
        let lease = Lease { alive_at: Some(8 * SECOND), ..lease() };
        let times =
            [(0, SECOND), (SECOND, SECOND + 500), (7 * SECOND, 9 * SECOND), (9 * SECOND, 99 * SECOND)];
        assert_eq!(stood_still_us(&lease, &times, 1_000), 3 * SECOND);
    }
}
