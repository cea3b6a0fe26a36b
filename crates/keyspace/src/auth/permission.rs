//! Who may do what. The same checks are made twice: on the replica that a client talks to, so that what is not allowed is never
//! proposed, and in the order of the log, where they decide.

use bytes::Bytes;
use hadron_proto::authpb::{Permission, User, permission::Type};
use hadron_proto::etcdserverpb as pb;
use pb::request_op::Request;

use super::{Auth, AuthCommand, AuthError, Caller, Need, ROOT_ROLE, has_role};
use crate::command::Command;
use crate::lease::Leases;
use crate::mvcc::KeyRange;
use crate::state::State;

/// What is done with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Read,
    Write,
}

impl State {
    /// Whether a command may be carried out in somebody's name.
    pub(crate) fn permit_command(&self, caller: Option<&Caller>, command: &Command) -> Result<(), AuthError> {
        if !self.auth.switch.enabled {
            return Ok(());
        }
        let check = Check { auth: &self.auth, leases: &self.leases, caller };
        match command {
            Command::Put(put) => check.put(put),
            Command::DeleteRange(delete) => check.delete(delete),
            Command::Txn(txn) => check.txn(txn),
            Command::LeaseRevoke(revoke) => check.lease(revoke.id, Deed::Write),
            // Nobody can have a token before there is a secret, and where there is one this does nothing.
            Command::Auth(AuthCommand::Secret(_)) => Ok(()),
            // As earlier versions chose a secret after a restore.
            Command::Auth(AuthCommand::Enable(_)) if self.auth.switch.secret.is_empty() => Ok(()),
            Command::Auth(_) => check.root(),
            // In nobody's name, by the nodes themselves; the service has asked for what else clients need.
            Command::Compact(_)
            | Command::LeaseGrant(_)
            | Command::LeaseKeepAlive(_)
            | Command::LeaseExpire(_)
            | Command::Alarm(_)
            | Command::DigestMark
            | Command::As(..) => Ok(()),
        }
    }

    /// Whether what a caller needs is given.
    pub(crate) fn permit(&self, caller: Option<&Caller>, need: Need<'_>) -> Result<(), AuthError> {
        if !self.auth.switch.enabled {
            return Ok(());
        }
        let check = Check { auth: &self.auth, leases: &self.leases, caller };
        let name = caller.map(|caller| caller.name.as_str());
        match need {
            Need::User => check.user().map(drop),
            Need::Root => check.root(),
            Need::Read(key, range_end) => check.keys(key, range_end, Deed::Read),
            Need::ReadLease(id) => check.lease(id, Deed::Read),
            Need::WriteLease(id) => check.lease(id, Deed::Write),
            Need::ReadLeases => {
                check.user()?;
                self.leases.iter().try_for_each(|lease| check.lease(lease.id, Deed::Read))
            }
            Need::SameUser(user) if name == Some(user) => Ok(()),
            Need::SameRole(role) if check.holds(role) => Ok(()),
            Need::SameUser(_) | Need::SameRole(_) => check.root(),
        }
    }
}

/// One caller's request against the state.
struct Check<'a> {
    auth: &'a Auth,
    leases: &'a Leases,
    caller: Option<&'a Caller>,
}

impl Check<'_> {
    fn user(&self) -> Result<&Caller, AuthError> {
        self.caller.ok_or(AuthError::UserEmpty)
    }

    fn root(&self) -> Result<(), AuthError> {
        let user = self.auth.user(&self.user()?.name)?;
        if has_role(user, ROOT_ROLE) { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    fn holds(&self, role: &str) -> bool {
        let user = self.caller.and_then(|caller| self.auth.users.get(&caller.name));
        user.is_some_and(|user| has_role(user, role))
    }

    fn keys(&self, key: &Bytes, range_end: &Bytes, deed: Deed) -> Result<(), AuthError> {
        let caller = self.user()?;
        if caller.auth_revision < self.auth.switch.revision {
            return Err(AuthError::AuthOldRevision);
        }
        let user = self.auth.users.get(&caller.name).ok_or(AuthError::PermissionDenied)?;
        let is_allowed = has_role(user, ROOT_ROLE) || self.covers(user, &KeyRange::new(key, range_end), deed);
        if is_allowed { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    /// Whether the user's permissions, all roles together, cover the range without a gap.
    fn covers(&self, user: &User, range: &KeyRange, deed: Deed) -> bool {
        let roles = user.roles.iter().filter_map(|role| self.auth.roles.get(role));
        let permissions = roles.flat_map(|role| &role.key_permission);
        let ranges =
            permissions.filter(|one| allows(one, deed)).map(|one| KeyRange::new(&one.key, &one.range_end));
        match range {
            KeyRange::One(key) => ranges.into_iter().any(|range| range.contains(key)),
            KeyRange::Span { from, to } => covers_span(ranges.collect(), from, to.as_deref()),
        }
    }

    fn put(&self, put: &pb::PutRequest) -> Result<(), AuthError> {
        self.keys(&put.key, &Bytes::new(), Deed::Write)?;
        // Whoever may not end the lease must not bind a key to it either.
        self.lease_keys(put.lease, Deed::Write)?;
        if put.prev_kv { self.keys(&put.key, &Bytes::new(), Deed::Read) } else { Ok(()) }
    }

    fn delete(&self, delete: &pb::DeleteRangeRequest) -> Result<(), AuthError> {
        self.keys(&delete.key, &delete.range_end, Deed::Write)?;
        match delete.prev_kv {
            true => self.keys(&delete.key, &delete.range_end, Deed::Read),
            false => Ok(()),
        }
    }

    /// Both branches, whichever will be taken: else a refusal would tell how the comparisons came out.
    fn txn(&self, txn: &pb::TxnRequest) -> Result<(), AuthError> {
        for compare in &txn.compare {
            self.keys(&compare.key, &compare.range_end, Deed::Read)?;
        }
        for operation in txn.success.iter().chain(&txn.failure) {
            match &operation.request {
                Some(Request::RequestRange(range)) => {
                    self.keys(&range.key, &range.range_end, Deed::Read)?;
                }
                Some(Request::RequestPut(put)) => self.put(put)?,
                Some(Request::RequestDeleteRange(delete)) => self.delete(delete)?,
                Some(Request::RequestTxn(txn)) => self.txn(txn)?,
                None => {}
            }
        }
        Ok(())
    }

    fn lease(&self, id: i64, deed: Deed) -> Result<(), AuthError> {
        self.user()?;
        self.lease_keys(id, deed)
    }

    fn lease_keys(&self, id: i64, deed: Deed) -> Result<(), AuthError> {
        let Some(lease) = self.leases.get(id) else { return Ok(()) };
        if self.root().is_ok() {
            return Ok(());
        }
        // Mostly one permission covers all of them, and they may be many.
        if let (Some(first), Some(last)) = (lease.keys.first(), lease.keys.last())
            && self.keys(first, &[last, &b"\0"[..]].concat().into(), deed).is_ok()
        {
            return Ok(());
        }
        lease.keys.iter().try_for_each(|key| self.keys(key, &Bytes::new(), deed))
    }
}

fn allows(permission: &Permission, deed: Deed) -> bool {
    match (permission.perm_type(), deed) {
        (Type::Readwrite, _) | (Type::Read, Deed::Read) | (Type::Write, Deed::Write) => true,
        (Type::Read, Deed::Write) | (Type::Write, Deed::Read) => false,
    }
}

/// Whether the ranges together hold every key from `from` up to `to`. A span that can hold no key needs its first one all the same.
fn covers_span(mut ranges: Vec<KeyRange>, from: &[u8], to: Option<&[u8]>) -> bool {
    ranges.sort_unstable_by(|a, b| first(a).cmp(first(b)));
    // Every key before it is covered.
    let mut reached = from.to_vec();
    let mut is_first_covered = false;
    for range in &ranges {
        if first(range) > reached.as_slice() {
            break;
        }
        let end = match range {
            KeyRange::Span { to: None, .. } => return true,
            KeyRange::Span { to: Some(to), .. } => to.to_vec(),
            // No key is between a key and the same with a zero byte behind it.
            KeyRange::One(key) => [key, &b"\0"[..]].concat(),
        };
        is_first_covered |= end.as_slice() > from;
        reached = reached.max(end);
    }
    is_first_covered && to.is_some_and(|to| reached.as_slice() >= to)
}

fn first(range: &KeyRange) -> &[u8] {
    match range {
        KeyRange::One(key) | KeyRange::Span { from: key, .. } => key,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ranges(pairs: &[(&str, &str)]) -> Vec<KeyRange> {
        let range = |(key, end): &(&str, &str)| {
            KeyRange::new(&Bytes::copy_from_slice(key.as_bytes()), &Bytes::copy_from_slice(end.as_bytes()))
        };
        pairs.iter().map(range).collect()
    }

    #[test]
    fn spans_are_covered_by_several_permissions_without_a_gap() {
        let covers = |pairs: &[(&str, &str)], from: &str, to: &str| {
            let to = if to == "*" { None } else { Some(to.as_bytes()) };
            covers_span(ranges(pairs), from.as_bytes(), to)
        };
        assert!(covers(&[("a", "c")], "a", "c"));
        assert!(covers(&[("b", "d"), ("a", "b")], "a", "d"));
        assert!(!covers(&[("a", "b"), ("c", "d")], "a", "d"), "a gap");
        assert!(!covers(&[("a", "c")], "a", "d"));
        assert!(!covers(&[("b", "c")], "a", "c"));
        assert!(covers(&[("a", "")], "a", "a\0"), "a span of one key");
        assert!(covers(&[("a", ""), ("a\0", "b")], "a", "b"));
        assert!(!covers(&[("a", "z")], "a", "*"), "no end is more than any");
        assert!(covers(&[("a", "\0")], "b", "*"));
        assert!(covers(&[("a", "c"), ("b", "\0")], "a", "*"));
        assert!(!covers(&[("b", "\0")], "a", "*"));
        assert!(!covers(&[], "b", "a"), "an empty span is not free");
        assert!(!covers(&[("a", "b")], "c", "a"));
        assert!(covers(&[("a", "d")], "c", "a"));
    }
}
