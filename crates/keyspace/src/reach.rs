//! Reach: how much of a keyspace a txn may look at, counted before it does.
//!
//! A txn of a megabyte has room for tens of thousands of ranges, each of which may be the whole keyspace, and for as many readings of one large value.
//! Carried out, it would hold every replica up for hours, and again after each restart, since it is in the log. So whoever takes one counts
//! first, beside apply, and refuses what is too much.

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use pb::compare::CompareTarget;
use pb::range_request::SortTarget;
use pb::request_op::Request;

use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::{KeyRange, Version};
use crate::range::{has_default_order, passes_filters};
use crate::read::{BYTES_PER_KEY, KEYS_PER_VALUE};

/// Keys looked at under the lock at a time.
const PIECE_KEYS: usize = 1000;
/// Operations and comparisons that look at one key each and are not worth counting.
const FEW_OPERATIONS: usize = 128;

impl Keyspace {
    /// Refuses a txn that may look at more than `keys_max` keys, each as often as it does, whichever way it goes; a value that is read
    /// counts as ten more, and as one for each KiB. From any thread. What is counted is the state of now, and the txn may meet
    /// a larger one.
    ///
    /// # Errors
    /// [`Error::TooManyKeys`].
    pub fn check_reach(&self, request: &pb::TxnRequest, keys_max: usize) -> Result<(), Error> {
        let mut reach = Reach { keyspace: self, keys_max, left: keys_max };
        reach.txn(request)
    }
}

/// Whether a txn, with those that are nested in it, may look at more than some keys: it names a range, or has many operations.
pub fn may_look_at_much(request: &pb::TxnRequest) -> bool {
    fn count(request: &pb::TxnRequest) -> usize {
        let ranges = request.compare.iter().map(|compare| of(&compare.range_end));
        let operations =
            request.success.iter().chain(&request.failure).map(|operation| match &operation.request {
                Some(Request::RequestRange(range)) => of(&range.range_end),
                Some(Request::RequestDeleteRange(delete)) => of(&delete.range_end),
                Some(Request::RequestTxn(nested)) => count(nested),
                Some(Request::RequestPut(_)) | None => 1,
            });
        ranges.chain(operations).fold(0, usize::saturating_add)
    }
    fn of(range_end: &Bytes) -> usize {
        if range_end.is_empty() { 1 } else { usize::MAX }
    }
    count(request) > FEW_OPERATIONS
}

/// Which values are read of the keys that are looked at.
#[derive(Clone, Copy)]
struct Values<'a> {
    /// So many at most.
    max: usize,
    /// The range that reads them; `None` where the newest of each key is read.
    range: Option<&'a pb::RangeRequest>,
}

impl<'a> Values<'a> {
    fn all_if(are_read: bool) -> Values<'a> {
        Values { max: if are_read { usize::MAX } else { 0 }, range: None }
    }

    /// Those that a range answers or sorts by.
    fn of_range(range: &'a pb::RangeRequest) -> Values<'a> {
        let by_value = range.sort_target() == SortTarget::Value;
        let max = match usize::try_from(range.limit) {
            _ if range.count_only => 0,
            _ if by_value => usize::MAX,
            _ if range.keys_only => 0,
            Ok(limit) if limit > 0 => limit,
            _ => usize::MAX,
        };
        Values { max, range: Some(range) }
    }

    /// The revision that the keys are looked at.
    fn revision(&self) -> i64 {
        self.range.map(|range| range.revision).filter(|revision| *revision > 0).unwrap_or(i64::MAX)
    }

    /// Whether they are those of the first keys. Of a range that is sorted and cut it is not known before which they are.
    fn are_first(&self) -> bool {
        self.range.is_none_or(|range| has_default_order(range) && range.sort_target() == SortTarget::Key)
    }

    /// Whether that of a living key may be read.
    fn may_have(&self, version: &Version) -> bool {
        self.range.is_none_or(|range| passes_filters(version, range))
    }
}

/// What there is of something among the keys of a range.
#[derive(Default)]
struct Tally {
    keys: usize,
    sum: usize,
    largest: usize,
}

impl Tally {
    fn add(&mut self, amount: usize) {
        self.keys += 1;
        self.sum = self.sum.saturating_add(amount);
        self.largest = self.largest.max(amount);
    }

    /// What `keys` of them may come to.
    fn most(&self, keys: usize) -> usize {
        self.sum.min(self.largest.saturating_mul(keys))
    }
}

fn effort_of_value(version: &Version) -> usize {
    match version.value_len {
        0 => 0,
        bytes => KEYS_PER_VALUE + bytes as usize / BYTES_PER_KEY,
    }
}

struct Reach<'a> {
    keyspace: &'a Keyspace,
    keys_max: usize,
    left: usize,
}

impl Reach<'_> {
    fn txn(&mut self, request: &pb::TxnRequest) -> Result<(), Error> {
        for compare in &request.compare {
            let values = Values::all_if(compare.target == CompareTarget::Value as i32);
            self.range(&compare.key, &compare.range_end, values)?;
        }
        for operation in request.success.iter().chain(&request.failure) {
            match &operation.request {
                Some(Request::RequestRange(range)) => {
                    self.range(&range.key, &range.range_end, Values::of_range(range))?;
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    self.range(&delete.key, &delete.range_end, Values::all_if(delete.prev_kv))?;
                }
                Some(Request::RequestPut(put)) => {
                    self.range(&put.key, &Bytes::new(), Values::all_if(put.prev_kv || put.ignore_value))?;
                }
                Some(Request::RequestTxn(nested)) => self.txn(nested)?,
                None => {}
            }
        }
        Ok(())
    }

    fn range(&mut self, key: &Bytes, range_end: &Bytes, values: Values<'_>) -> Result<(), Error> {
        let range = KeyRange::new(key, range_end);
        let is_one = matches!(range, KeyRange::One(_));
        if is_one && values.max == 0 {
            return self.take(1);
        }
        // Also what finds nothing is an effort.
        let (mut keys, mut efforts, mut after) = (usize::from(!is_one), Tally::default(), None);
        let (revision, are_first) = (values.revision(), values.are_first());
        loop {
            let look = |_: &Bytes, version: &Version| {
                if values.may_have(version) && !(are_first && efforts.keys >= values.max) {
                    efforts.add(effort_of_value(version));
                }
            };
            let state = self.keyspace.state.read();
            let (looked, next) = state.index.visit(&range, after.as_ref(), revision, PIECE_KEYS, look);
            drop(state);
            keys += looked;
            let counted = keys.saturating_add(efforts.most(values.max));
            if next.is_none() || counted > self.left {
                return self.take(counted);
            }
            after = next;
        }
    }

    fn take(&mut self, counted: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(counted).ok_or(Error::TooManyKeys(self.keys_max))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use hadron_storage::engine::ModelEngine;

    use super::*;
    use crate::command::Command;
    use crate::keyspace::Options;
    use crate::state::Applied;

    /// Keys `a0000` to `a1499` with values of 2 KiB, of which the last 500 are deleted.
    fn keyspace() -> Arc<Keyspace> {
        let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), 1, Options::default()).unwrap();
        let value = Bytes::from(vec![b'.'; 2 << 10]);
        let put = |number| pb::PutRequest { key: key(number), value: value.clone(), ..Default::default() };
        let puts = (0..1500).map(|number| Command::Put(put(number))).collect();
        keyspace.apply(Applied { term: 1, index: 1, checksum: 0, stamp_ms: 0 }, puts);
        let delete = pb::DeleteRangeRequest { key: key(1000), range_end: "b".into(), prev_kv: false };
        let delete = vec![Command::DeleteRange(delete)];
        keyspace.apply(Applied { term: 1, index: 2, checksum: 0, stamp_ms: 0 }, delete);
        keyspace
    }

    fn key(number: usize) -> Bytes {
        format!("a{number:04}").into()
    }

    /// Counts the keys before that one.
    fn count(to: usize) -> pb::RangeRequest {
        pb::RangeRequest { key: "a".into(), range_end: key(to), count_only: true, ..Default::default() }
    }

    fn operation(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn of(request: Request) -> pb::TxnRequest {
        pb::TxnRequest { success: vec![operation(request)], ..Default::default() }
    }

    fn compare(target: CompareTarget) -> pb::Compare {
        pb::Compare { key: "a".into(), range_end: key(20), target: target as i32, ..Default::default() }
    }

    /// The txn is refused with one key less than that.
    fn assert_reach(request: &pb::TxnRequest, keys: usize) {
        assert_reach_in(&keyspace(), request, keys);
    }

    fn assert_reach_in(keyspace: &Keyspace, request: &pb::TxnRequest, keys: usize) {
        assert_eq!(keyspace.check_reach(request, keys), Ok(()));
        assert_eq!(keyspace.check_reach(request, keys - 1), Err(Error::TooManyKeys(keys - 1)));
    }

    #[test]
    fn keys_count_and_values_count_by_their_size() {
        let assert_range =
            |range: pb::RangeRequest, keys| assert_reach(&of(Request::RequestRange(range)), keys);
        assert_range(count(9999), 1 + 1500);
        assert_range(count(0), 1);
        let whole = pb::RangeRequest { count_only: false, ..count(9999) };
        let keys_only = pb::RangeRequest { keys_only: true, ..whole.clone() };
        assert_range(keys_only.clone(), 1 + 1500);
        assert_range(whole.clone(), 1 + 1500 + 1000 * 12);
        assert_range(pb::RangeRequest { limit: 10, ..whole.clone() }, 1 + 1500 + 10 * 12);
        let newest_first =
            pb::RangeRequest { sort_target: SortTarget::Mod as i32, limit: 10, ..whole.clone() };
        assert_range(newest_first, 1 + 1500 + 10 * 12);
        let by_value = pb::RangeRequest { sort_target: SortTarget::Value as i32, ..keys_only };
        assert_range(by_value, 1 + 1500 + 1000 * 12);
        // Before they were deleted, and when there were ten.
        assert_range(pb::RangeRequest { revision: 1501, ..whole.clone() }, 1 + 1500 + 1500 * 12);
        assert_range(pb::RangeRequest { revision: 11, ..whole }, 1 + 1500 + 10 * 12);
        let delete = |prev_kv| pb::DeleteRangeRequest { key: "a".into(), range_end: key(100), prev_kv };
        assert_reach(&of(Request::RequestDeleteRange(delete(false))), 1 + 100);
        assert_reach(&of(Request::RequestDeleteRange(delete(true))), 1 + 100 * 13);
    }

    /// They used up the limit, and the large value behind them was read tens of thousands of times.
    #[test]
    fn keys_that_are_not_answered_do_not_use_up_the_limit() {
        let keyspace = keyspace();
        let put = pb::PutRequest { key: key(1499), value: vec![b'.'; 1 << 20].into(), ..Default::default() };
        keyspace.apply(Applied { term: 1, index: 3, checksum: 0, stamp_ms: 0 }, vec![Command::Put(put)]);
        let assert_first = |range: pb::RangeRequest, keys| {
            assert_reach_in(&keyspace, &of(Request::RequestRange(range)), keys);
        };
        let first = pb::RangeRequest { count_only: false, limit: 1, ..count(9999) };
        assert_first(first.clone(), 1 + 1500 + 12);
        let revision = keyspace.revision();
        assert_first(pb::RangeRequest { min_mod_revision: revision, ..first.clone() }, 1 + 1500 + 1034);
        let of_deleted = pb::RangeRequest { key: key(1000), ..first };
        assert_first(of_deleted.clone(), 1 + 500 + 1034);
        // None of them lived yet.
        assert_first(pb::RangeRequest { revision: 1000, ..of_deleted }, 1 + 500);
    }

    /// All of its versions were looked at under the lock, each time.
    #[test]
    fn a_key_in_the_past_costs_what_it_was_then() {
        let keyspace = keyspace();
        let put =
            |bytes| pb::PutRequest { key: "k".into(), value: vec![b'.'; bytes].into(), ..Default::default() };
        let puts = [1 << 10, 1 << 20, 0].map(|bytes| Command::Put(put(bytes)));
        keyspace.apply(Applied { term: 1, index: 3, checksum: 0, stamp_ms: 0 }, puts.into());
        let newest = keyspace.revision();
        for (ago, keys) in [(2, 12), (1, 1 + 1034), (0, 1)] {
            let range = pb::RangeRequest { key: "k".into(), revision: newest - ago, ..Default::default() };
            assert_reach_in(&keyspace, &of(Request::RequestRange(range)), keys);
        }
    }

    #[test]
    fn comparisons_both_branches_and_nested_txns_count() {
        let counted = operation(Request::RequestRange(count(3)));
        let inner = pb::TxnRequest {
            compare: vec![compare(CompareTarget::Version)],
            success: vec![counted.clone()],
            failure: vec![counted],
        };
        assert_reach(&inner, 21 + 4 + 4);
        let nested = operation(Request::RequestTxn(inner));
        let outer = pb::TxnRequest {
            compare: vec![compare(CompareTarget::Value)],
            success: vec![nested.clone(), nested],
            failure: Vec::new(),
        };
        assert_reach(&outer, 1 + 20 * 13 + 2 * 29);
    }

    /// Each of tens of thousands of operations may read the same large value.
    #[test]
    fn values_of_single_keys_count_too() {
        let get = |number| pb::RangeRequest { key: key(number), ..Default::default() };
        assert_reach(&of(Request::RequestRange(get(1))), 13);
        assert_reach(&of(Request::RequestRange(pb::RangeRequest { keys_only: true, ..get(1) })), 1);
        let put = pb::PutRequest { key: key(1), ..Default::default() };
        assert_reach(&of(Request::RequestPut(put.clone())), 1);
        assert_reach(&of(Request::RequestPut(pb::PutRequest { prev_kv: true, ..put.clone() })), 13);
        assert_reach(&of(Request::RequestPut(pb::PutRequest { ignore_value: true, ..put })), 13);
        let one = pb::Compare { key: key(1), range_end: Bytes::new(), ..compare(CompareTarget::Value) };
        assert_reach(&pb::TxnRequest { compare: vec![one], ..Default::default() }, 13);
    }

    #[test]
    fn what_may_look_at_much_names_a_range_or_has_many_operations() {
        let put = operation(Request::RequestPut(pb::PutRequest::default()));
        let puts = |count| pb::TxnRequest { success: vec![put.clone(); count], ..Default::default() };
        assert!(!may_look_at_much(&puts(FEW_OPERATIONS)));
        assert!(may_look_at_much(&puts(FEW_OPERATIONS + 1)));
        let nested = operation(Request::RequestTxn(puts(FEW_OPERATIONS / 2 + 1)));
        assert!(may_look_at_much(&pb::TxnRequest { success: vec![nested; 2], ..Default::default() }));

        let in_compare =
            pb::TxnRequest { compare: vec![compare(CompareTarget::Version)], ..Default::default() };
        let delete = pb::DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: false };
        for txn in [in_compare, of(Request::RequestRange(count(1))), of(Request::RequestDeleteRange(delete))]
        {
            assert!(may_look_at_much(&txn));
            assert!(may_look_at_much(&of(Request::RequestTxn(txn.clone()))));
            let beside =
                pb::TxnRequest { failure: of(Request::RequestTxn(txn)).success, ..Default::default() };
            assert!(may_look_at_much(&beside));
        }
    }
}
