//! Who may do what. The same checks are made twice: on the replica that a client talks to, so that what is not allowed is never
//! proposed, and in the order of the log, where they decide.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeSet;
use std::ops::Bound::{Included, Unbounded};

use bytes::Bytes;
use hadron_proto::authpb::{Permission, User, permission::Type};
use hadron_proto::etcdserverpb as pb;
use pb::request_op::Request;

use super::{Auth, AuthCommand, AuthError, Caller, Need, ROOT_ROLE, has_role};
use crate::command::Command;
use crate::lease::{Lease, Leases};
use crate::mvcc::KeyRange;
use crate::state::State;

/// Single keys that are looked for among all permissions one by one: for more it is worth to put those in order.
const FEW_KEYS: usize = 4;

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
        let check = Check::new(self, caller);
        match command {
            Command::Put(put) => check.put(put),
            Command::DeleteRange(delete) => check.delete(delete),
            Command::Txn(txn) => check.txn(txn),
            Command::LeaseRevoke(revoke) => check.lease(revoke.id),
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
        let check = Check::new(self, caller);
        let name = caller.map(|caller| caller.name.as_str());
        match need {
            Need::User => check.user().map(drop),
            Need::Root => check.root(),
            Need::Read(key, range_end) => check.keys(key, range_end, Deed::Read),
            Need::ReadKeys(keys) => {
                check.user()?;
                check.all_keys(keys, Deed::Read)
            }
            Need::WriteLease(id) => check.lease(id),
            Need::ReadLeases => {
                check.user()?;
                check.leases(self.leases.iter(), Deed::Read)
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
    /// What the user may read and write, once it was asked for: a txn asks tens of thousands of times.
    readable: OnceCell<Merged>,
    writable: OnceCell<Merged>,
    /// Single keys that were looked for one by one.
    looked_for: Cell<usize>,
}

impl<'a> Check<'a> {
    fn new(state: &'a State, caller: Option<&'a Caller>) -> Check<'a> {
        Check {
            auth: &state.auth,
            leases: &state.leases,
            caller,
            readable: OnceCell::new(),
            writable: OnceCell::new(),
            looked_for: Cell::new(0),
        }
    }
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

    /// The user, as users and roles are now.
    fn present_user(&self) -> Result<&User, AuthError> {
        let caller = self.user()?;
        if caller.auth_revision < self.auth.switch.revision {
            return Err(AuthError::AuthOldRevision);
        }
        self.auth.users.get(&caller.name).ok_or(AuthError::PermissionDenied)
    }

    fn keys(&self, key: &Bytes, range_end: &Bytes, deed: Deed) -> Result<(), AuthError> {
        let is_allowed = self.covers(self.present_user()?, &KeyRange::new(key, range_end), deed);
        if is_allowed { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    /// What the user's permissions allow, all roles together.
    fn allowed(&self, user: &User, deed: Deed) -> impl Iterator<Item = KeyRange> {
        let everything = KeyRange::Span { from: Bytes::new(), to: None };
        let of_root = has_role(user, ROOT_ROLE).then_some(everything);
        let roles = user.roles.iter().filter_map(|role| self.auth.roles.get(role));
        let permissions = roles.flat_map(|role| &role.key_permission).filter(move |one| allows(one, deed));
        of_root.into_iter().chain(permissions.map(|one| KeyRange::new(&one.key, &one.range_end)))
    }

    /// The same in order, which is made once. `user` is ever the caller.
    fn merged(&self, user: &User, deed: Deed) -> &Merged {
        let merged = match deed {
            Deed::Read => &self.readable,
            Deed::Write => &self.writable,
        };
        merged.get_or_init(|| merge(self.allowed(user, deed)))
    }

    /// Whether they cover the range without a gap.
    fn covers(&self, user: &User, range: &KeyRange, deed: Deed) -> bool {
        match range {
            KeyRange::One(key) if self.looked_for.get() < FEW_KEYS => {
                self.looked_for.update(|keys| keys + 1);
                self.allowed(user, deed).any(|range| range.contains(key))
            }
            KeyRange::One(key) => self.merged(user, deed).end(key).is_some(),
            KeyRange::Span { from, to } => self.merged(user, deed).cover_span(from, to.as_deref()),
        }
    }

    fn put(&self, put: &pb::PutRequest) -> Result<(), AuthError> {
        self.put_key(put)?;
        self.lease_keys([put.lease])
    }

    fn put_key(&self, put: &pb::PutRequest) -> Result<(), AuthError> {
        self.keys(&put.key, &Bytes::new(), Deed::Write)?;
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
        let mut leases = BTreeSet::new();
        self.operations(txn, &mut leases)?;
        self.lease_keys(leases)
    }

    /// All of a txn but the keys of the leases that its puts name: a thousand puts may name the same one, which has any number.
    fn operations(&self, txn: &pb::TxnRequest, leases: &mut BTreeSet<i64>) -> Result<(), AuthError> {
        for compare in &txn.compare {
            self.keys(&compare.key, &compare.range_end, Deed::Read)?;
        }
        for operation in txn.success.iter().chain(&txn.failure) {
            match &operation.request {
                Some(Request::RequestRange(range)) => {
                    self.keys(&range.key, &range.range_end, Deed::Read)?;
                }
                Some(Request::RequestPut(put)) => {
                    self.put_key(put)?;
                    leases.insert(put.lease);
                }
                Some(Request::RequestDeleteRange(delete)) => self.delete(delete)?,
                Some(Request::RequestTxn(txn)) => self.operations(txn, leases)?,
                None => {}
            }
        }
        Ok(())
    }

    fn lease(&self, id: i64) -> Result<(), AuthError> {
        self.user()?;
        self.lease_keys([id])
    }

    /// Whoever may not end a lease must not bind a key to it either.
    fn lease_keys(&self, ids: impl IntoIterator<Item = i64>) -> Result<(), AuthError> {
        self.leases(ids.into_iter().filter_map(|id| self.leases.get(id)), Deed::Write)
    }

    fn all_keys(&self, keys: &[Bytes], deed: Deed) -> Result<(), AuthError> {
        if keys.is_empty() || self.root().is_ok() {
            return Ok(());
        }
        let allowed = self.merged(self.present_user()?, deed);
        let is_allowed = allowed.cover_keys(|from| keys.get(keys.partition_point(|key| key < from)));
        if is_allowed { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    /// Whether all keys of these leases may be read or written. They may be many.
    fn leases<'a>(&self, leases: impl Iterator<Item = &'a Lease>, deed: Deed) -> Result<(), AuthError> {
        let mut leases = leases.filter(|lease| !lease.keys.is_empty()).peekable();
        if leases.peek().is_none() || self.root().is_ok() {
            return Ok(());
        }
        let allowed = self.merged(self.present_user()?, deed);
        let is_allowed = leases.all(|lease| {
            allowed.cover_keys(|from| lease.keys.range::<[u8], _>((Included(from), Unbounded)).next())
        });
        if is_allowed { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }
}

fn allows(permission: &Permission, deed: Deed) -> bool {
    match (permission.perm_type(), deed) {
        (Type::Readwrite, _) | (Type::Read, Deed::Read) | (Type::Write, Deed::Write) => true,
        (Type::Read, Deed::Write) | (Type::Write, Deed::Read) => false,
    }
}

/// Ranges without any key between them in one: where each begins and ends (`None`: nowhere), in order and with a gap between two.
struct Merged(Vec<(Bytes, Option<Bytes>)>);

fn merge(ranges: impl Iterator<Item = KeyRange>) -> Merged {
    let spans = ranges.filter(|range| !range.is_empty()).map(|range| match range {
        // No key is between a key and the same with a zero byte behind it.
        KeyRange::One(key) => (key.clone(), Some([&key, &b"\0"[..]].concat().into())),
        KeyRange::Span { from, to } => (from, to),
    });
    let mut spans: Vec<(Bytes, Option<Bytes>)> = spans.collect();
    spans.sort_unstable();
    spans.dedup_by(|(from, to), (_, reached)| {
        let Some(end) = reached else { return true };
        let is_joined = from <= end;
        if is_joined {
            *reached = to.take().map(|to| to.max(end.clone()));
        }
        is_joined
    });
    Merged(spans)
}

impl Merged {
    /// Where the range ends that holds a key.
    fn end(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        let (_, end) = self.0.get(self.0.partition_point(|(from, _)| from <= key).checked_sub(1)?)?;
        end.as_ref().is_none_or(|end| key < end).then_some(end.as_deref())
    }

    /// Whether every key from `from` up to `to` is in a range. A span that can hold no key needs its first one all the same.
    fn cover_span(&self, from: &[u8], to: Option<&[u8]>) -> bool {
        self.end(from).is_some_and(|end| end.is_none_or(|end| to.is_some_and(|to| end >= to)))
    }

    /// Whether every key of a set is in a range. `first` gives the first key at or after another; it is asked once for each range at most, however many
    /// keys are in that.
    fn cover_keys<'a>(&self, first: impl Fn(&[u8]) -> Option<&'a Bytes>) -> bool {
        let mut next = first(&[]);
        while let Some(key) = next {
            next = match self.end(key) {
                None => return false,
                Some(None) => return true,
                Some(Some(end)) => first(end),
            };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    use hadron_proto::authpb::Role;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

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
            merge(ranges(pairs).into_iter()).cover_span(from.as_bytes(), to)
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

    const KEYS: u32 = 100_000;

    fn role(permissions: &[(&'static str, &'static str)]) -> Role {
        let permission = |(key, range_end): &(&'static str, &'static str)| Permission {
            perm_type: Type::Readwrite as i32,
            key: (*key).into(),
            range_end: (*range_end).into(),
        };
        let key_permission = permissions.iter().map(permission).collect();
        Role { name: "some".into(), key_permission }
    }

    /// `alice`, who may write what begins with `a/` and `c/`, and a lease with many keys of both kinds.
    fn with_lease() -> (State, Caller) {
        let mut state = State::new(0);
        state.set_role(role(&[("a/", "a0"), ("c/", "c0")]));
        state.set_user(User { name: "alice".into(), roles: vec!["some".into()], ..User::default() });
        state.auth.switch.enabled = true;
        state.leases.set(7, 60, 60_000);
        for number in 0..KEYS {
            let kind = if number % 2 == 0 { "a" } else { "c" };
            state.leases.attach(7, &format!("{kind}/{number}").into());
        }
        let auth_revision = state.auth.switch.revision;
        (state, Caller { name: "alice".into(), auth_revision })
    }

    /// Each key of the lease was compared with each permission, and again for each put: under the state's lock, on every replica.
    #[test]
    fn a_lease_with_many_keys_costs_little_however_many_puts_name_it() {
        let (mut state, alice) = with_lease();
        let put = pb::PutRequest { key: "c/new".into(), lease: 7, ..Default::default() };
        let operation = pb::RequestOp { request: Some(Request::RequestPut(put)) };
        let txn = pb::TxnRequest { success: vec![operation; 5000], ..Default::default() };
        let command = Command::Txn(txn);
        let begun = std::time::Instant::now();
        assert_eq!(state.permit_command(Some(&alice), &command), Ok(()));
        state.leases.attach(7, &"b/".into());
        assert_eq!(state.permit_command(Some(&alice), &command), Err(AuthError::PermissionDenied));
        assert!(begun.elapsed().as_secs() < 10, "it took {:?}, and minutes before", begun.elapsed());
    }

    /// For each operation all permissions were put in order again: under the state's lock, on every replica.
    #[test]
    fn many_permissions_are_put_in_order_once_for_a_txn() {
        const PERMISSIONS: usize = 10_000;
        let mut state = State::new(0);
        let permission = |number: usize| Permission {
            perm_type: Type::Readwrite as i32,
            key: format!("{number:05}/").into(),
            range_end: format!("{number:05}0").into(),
        };
        let key_permission = (0..PERMISSIONS).rev().map(permission).collect();
        state.set_role(Role { name: "some".into(), key_permission });
        state.set_user(User { name: "alice".into(), roles: vec!["some".into()], ..User::default() });
        state.auth.switch.enabled = true;
        let alice = Caller { name: "alice".into(), auth_revision: state.auth.switch.revision };
        let range = |number: usize, end: &str| {
            let range_end = if end.is_empty() { Bytes::new() } else { format!("{number:05}/{end}").into() };
            let range =
                pb::RangeRequest { key: format!("{number:05}/a").into(), range_end, ..Default::default() };
            pb::RequestOp { request: Some(Request::RequestRange(range)) }
        };
        let ranges = |end| (0..PERMISSIONS).map(move |number| range(number, end));
        let allowed =
            pb::TxnRequest { success: ranges("").chain(ranges("b")).collect(), ..Default::default() };
        let refused = pb::TxnRequest { failure: vec![range(PERMISSIONS, "")], ..allowed.clone() };
        let begun = std::time::Instant::now();
        assert_eq!(state.permit_command(Some(&alice), &Command::Txn(allowed)), Ok(()));
        let refusal = Err(AuthError::PermissionDenied);
        assert_eq!(state.permit_command(Some(&alice), &Command::Txn(refused)), refusal);
        assert!(begun.elapsed().as_secs() < 10, "it took {:?}, and half a minute before", begun.elapsed());
    }

    #[test]
    fn a_lease_is_looked_at_once_for_each_range() {
        let (state, _) = with_lease();
        let keys = &state.leases.get(7).unwrap().keys;
        let looked = std::cell::Cell::new(0);
        let first = |from: &[u8]| {
            looked.set(looked.get() + 1);
            keys.range::<[u8], _>((Included(from), Unbounded)).next()
        };
        assert!(
            merge(ranges(&[("a/", "a0"), ("b", ""), ("c/", "c0"), ("d", "")]).into_iter()).cover_keys(first)
        );
        assert_eq!(looked.take(), 3);
        assert!(!merge(ranges(&[("a/", "a0")]).into_iter()).cover_keys(first));
    }

    /// Short keys of few letters: ranges touch, overlap, are empty, and begin where others end.
    fn some_key() -> impl Strategy<Value = Bytes> {
        vec(0..3_u8, 1..4).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn merged_ranges_cover_the_keys_that_one_of_them_holds(
            pairs in vec((some_key(), prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(&[0])), some_key()]), 0..6),
            keys in btree_set(some_key(), 0..5),
        ) {
            let ranges: Vec<KeyRange> = pairs.iter().map(|(key, end)| KeyRange::new(key, end)).collect();
            let merged = merge(ranges.iter().cloned());
            let is_held = |key: &Bytes| ranges.iter().any(|range| range.contains(key));
            for key in &keys {
                prop_assert_eq!(merged.end(key).is_some(), is_held(key));
            }
            let first = |from: &[u8]| keys.range::<[u8], _>((Included(from), Unbounded)).next();
            prop_assert_eq!(merged.cover_keys(first), keys.iter().all(is_held));
        }
    }
}
