//! The shape of requests: what etcd refuses at its door, before anything is proposed.
//!
//! Pure functions on requests, called by the API. What depends on the state (does the lease exist?) is checked by apply.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use pb::request_op::Request;

use crate::auth::{AuthCommand, NAME_BYTES_MAX};
use crate::error::Error;
use crate::mvcc::KeyRange;

/// The longest time a lease may be granted, in seconds.
pub const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// A range needs a key and a known order.
pub fn range(request: &pb::RangeRequest) -> Result<(), Error> {
    some_key(&request.key)?;
    let order = pb::range_request::SortOrder::try_from(request.sort_order);
    let target = pb::range_request::SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() { Err(Error::InvalidSort) } else { Ok(()) }
}

/// Whether a range request can be answered in parts, which are in the order of the keys and leave nothing out.
pub fn is_plain_range(request: &pb::RangeRequest) -> bool {
    crate::range::has_default_order(request) && !crate::range::has_filters(request)
}

/// A put needs a key, and must not both bring and keep a value or lease.
pub fn put(request: &pb::PutRequest) -> Result<(), Error> {
    some_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// A deletion needs a key.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Error> {
    some_key(&request.key)
}

/// A lease lives at most [`LEASE_TTL_MAX`] seconds.
pub fn lease_grant(request: &pb::LeaseGrantRequest) -> Result<(), Error> {
    if request.ttl > LEASE_TTL_MAX { Err(Error::LeaseTtlTooLarge) } else { Ok(()) }
}

/// A new user or role has a name of at most [`NAME_BYTES_MAX`] bytes.
pub fn auth(command: &AuthCommand) -> Result<(), Error> {
    Ok(command.check_new_name(NAME_BYTES_MAX)?)
}

/// A txn needs well-formed operations, at most `operations_max` in each list, and writes no key twice on any path through it. As in etcd a nested
/// txn may have as many as its txn has left, and so may the next one beside it: what they have together is bounded by the size of a request.
pub fn txn(request: &pb::TxnRequest, operations_max: usize) -> Result<(), Error> {
    txn_shape(request, operations_max)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

fn some_key(key: &Bytes) -> Result<(), Error> {
    if key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

fn txn_shape(request: &pb::TxnRequest, operations_max: usize) -> Result<(), Error> {
    let operations = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = operations_max.checked_sub(operations).ok_or(Error::TooManyOps)?;
    request.compare.iter().try_for_each(|compare| some_key(&compare.key))?;
    request.success.iter().chain(&request.failure).try_for_each(|operation| operation_shape(operation, left))
}

fn operation_shape(operation: &pb::RequestOp, operations_max: usize) -> Result<(), Error> {
    match &operation.request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete_range(request),
        Some(Request::RequestTxn(request)) => txn_shape(request, operations_max),
        None => Err(Error::KeyNotFound),
    }
}

/// What a list of operations may write, whichever way its nested txns go.
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Deletions,
}

impl Writes {
    /// Collects deletions first, then nested txns, then puts, as etcd does: a deletion conflicts with a put of the same
    /// list wherever it stands, and with a put of a nested txn, but not with another deletion.
    fn of(operations: &[pb::RequestOp]) -> Result<Writes, Error> {
        let mut writes = Writes { puts: BTreeSet::new(), deletes: Deletions::default() };
        for operation in operations {
            if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
                writes.deletes.add(KeyRange::new(&delete.key, &delete.range_end));
            }
        }
        for operation in operations {
            if let Some(Request::RequestTxn(nested)) = &operation.request {
                writes.join(Writes::of(&nested.success)?, Writes::of(&nested.failure)?)?;
            }
        }
        for operation in operations {
            if let Some(Request::RequestPut(put)) = &operation.request {
                writes.add(put.key.clone(), &BTreeSet::new())?;
            }
        }
        Ok(writes)
    }

    /// Adds the two ways of a nested txn. They exclude each other, so both may write the same key.
    fn join(&mut self, success: Writes, failure: Writes) -> Result<(), Error> {
        for key in &success.puts {
            self.add(key.clone(), &BTreeSet::new())?;
        }
        for key in failure.puts {
            self.add(key, &success.puts)?;
        }
        self.deletes.join(success.deletes);
        self.deletes.join(failure.deletes);
        Ok(())
    }

    fn add(&mut self, key: Bytes, except: &BTreeSet<Bytes>) -> Result<(), Error> {
        let is_deleted = self.deletes.contains(&key);
        let is_put = self.puts.contains(&key) && !except.contains(&key);
        if is_deleted || is_put {
            return Err(Error::DuplicateKey);
        }
        self.puts.insert(key);
        Ok(())
    }
}

/// A set of deleted keys, whose questions cost little however many deletions a client puts into one txn.
#[derive(Default)]
struct Deletions {
    keys: BTreeSet<Bytes>,
    /// Disjoint: each from its key up to, not including, its value; without one, without end.
    spans: BTreeMap<Bytes, Option<Bytes>>,
}

impl Deletions {
    fn add(&mut self, range: KeyRange) {
        match range {
            KeyRange::One(key) => drop(self.keys.insert(key)),
            range if range.is_empty() => {}
            KeyRange::Span { from, to } => self.add_span(from, to),
        }
    }

    /// Merges the span with those that it meets.
    fn add_span(&mut self, mut from: Bytes, mut to: Option<Bytes>) {
        let reaches = |end: &Option<Bytes>, key: &Bytes| end.as_ref().is_none_or(|end| end >= key);
        if let Some((start, end)) = self.spans.range(..=from.clone()).next_back()
            && reaches(end, &from)
        {
            from = start.clone();
        }
        while let Some((start, end)) = self.spans.range(from.clone()..).next()
            && reaches(&to, start)
        {
            let start = start.clone();
            to = to.zip(end.clone()).map(|(one, other)| one.max(other));
            self.spans.remove(&start);
        }
        self.spans.insert(from, to);
    }

    fn join(&mut self, other: Deletions) {
        self.keys.extend(other.keys);
        other.spans.into_iter().for_each(|(from, to)| self.add_span(from, to));
    }

    fn contains(&self, key: &Bytes) -> bool {
        let before = self.spans.range::<Bytes, _>(..=key).next_back();
        self.keys.contains(key) || before.is_some_and(|(_, to)| to.as_ref().is_none_or(|to| key < to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &'static str) -> pb::RequestOp {
        let put = pb::PutRequest { key: key.into(), ..Default::default() };
        pb::RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn delete_op(key: &'static str, end: &'static str) -> pb::RequestOp {
        let delete = pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: false };
        pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
    }

    fn txn_op(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        let txn = pb::TxnRequest { success, failure, ..Default::default() };
        pb::RequestOp { request: Some(Request::RequestTxn(txn)) }
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), Error> {
        txn(&pb::TxnRequest { success, ..Default::default() }, 4)
    }

    #[test]
    fn puts_need_a_key_and_one_source_of_value_and_lease() {
        let request =
            pb::PutRequest { key: "a".into(), value: "v".into(), ignore_value: true, ..Default::default() };
        assert_eq!(put(&request), Err(Error::ValueProvided));
        let request = pb::PutRequest { key: "a".into(), lease: 1, ignore_lease: true, ..Default::default() };
        assert_eq!(put(&request), Err(Error::LeaseProvided));
        assert_eq!(put(&pb::PutRequest::default()), Err(Error::EmptyKey));
    }

    #[test]
    fn orders_must_exist() {
        let request = pb::RangeRequest { key: "a".into(), sort_order: 9, ..Default::default() };
        assert_eq!(range(&request), Err(Error::InvalidSort));
        let request = pb::RangeRequest { key: "a".into(), sort_target: 9, ..Default::default() };
        assert_eq!(range(&request), Err(Error::InvalidSort));
    }

    #[test]
    fn a_txn_writes_no_key_twice() {
        assert_eq!(check(vec![put_op("a"), put_op("a")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put_op("b"), delete_op("a", "c")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(check(vec![put_op("c"), delete_op("a", "\0")]), Err(Error::DuplicateKey));
        assert_eq!(check(vec![delete_op("a", ""), delete_op("a", "")]), Ok(()));
        assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
        assert_eq!(check(vec![put_op("a"), txn_op(vec![], vec![put_op("a")])]), Err(Error::DuplicateKey));
        assert_eq!(
            check(vec![delete_op("a", ""), txn_op(vec![put_op("a")], vec![])]),
            Err(Error::DuplicateKey)
        );
        assert_eq!(
            check(vec![put_op("a"), txn_op(vec![delete_op("a", "")], vec![])]),
            Err(Error::DuplicateKey)
        );
    }

    #[test]
    fn nested_operations_count() {
        assert_eq!(
            check(vec![put_op("a"), put_op("b"), put_op("c"), put_op("d"), put_op("e")]),
            Err(Error::TooManyOps)
        );
        let nested = txn_op(vec![put_op("c"), put_op("d")], vec![]);
        assert_eq!(check(vec![put_op("a"), put_op("b"), nested.clone()]), Err(Error::TooManyOps));
        assert_eq!(check(vec![put_op("a"), nested]), Ok(()));
        assert_eq!(check(vec![pb::RequestOp { request: None }]), Err(Error::KeyNotFound));
    }

    proptest::proptest! {
        /// Merged spans contain what the ranges contain one by one.
        #[test]
        fn deletions_are_the_union_of_their_ranges(
            ranges in proptest::collection::vec(("[a-d]{1,2}", "[a-e]{0,2}|\\x00"), 0..12),
            asked in "[a-e]{1,3}",
        ) {
            let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
            let ranges: Vec<KeyRange> =
                ranges.iter().map(|(key, end)| KeyRange::new(&bytes(key), &bytes(end))).collect();
            let (half, mut deletions) = (ranges.len() / 2, Deletions::default());
            let mut others = Deletions::default();
            ranges[..half].iter().for_each(|range| deletions.add(range.detached()));
            ranges[half..].iter().for_each(|range| others.add(range.detached()));
            deletions.join(others);
            let expected = ranges.iter().any(|range| range.contains(asked.as_bytes()));
            proptest::prop_assert_eq!(deletions.contains(&bytes(&asked)), expected);
        }
    }
}
