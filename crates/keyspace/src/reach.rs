//! Reach: how much of a keyspace a txn may look at, counted before it does.
//!
//! A txn of a megabyte has room for tens of thousands of ranges, each of which may be the whole keyspace, and for as many readings of one large value.
//! Carried out, it would hold every replica up for hours, and again after each restart, since it is in the log. So whoever takes one counts
//! first, beside apply, and refuses what is too much.

use std::collections::BTreeMap;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use pb::compare::CompareTarget;
use pb::range_request::SortTarget;
use pb::request_op::Request;

use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::{KeyRange, Version};
use crate::range::{has_default_order, passes_filters};
use crate::read::{BYTES_PER_KEY, KEYS_PER_VALUE, pair_bytes};

/// Keys looked at under the lock at a time.
const PIECE_KEYS: usize = 1000;
/// Operations and comparisons that look at one key each and are not worth counting.
const FEW_OPERATIONS: usize = 128;
/// What a txn may answer, in bytes: etcd's clients take less than 2 GiB, and no message of gRPC has more than 4 GiB.
const ANSWER_BYTES_MAX: usize = 1 << 30;

impl Keyspace {
    /// Refuses a txn that may look at more than `keys_max` keys, each as often as it does, whichever way it goes; a value that is read
    /// counts as ten more, and as one for each KiB. Refuses it as well if what both ways may answer is larger than a client takes.
    /// From any thread. What is counted is the state of now with what the txn puts, and it may meet a larger one.
    ///
    /// # Errors
    /// [`Error::TooManyKeys`] and [`Error::TooManyBytes`].
    pub fn check_reach(&self, request: &pb::TxnRequest, keys_max: usize) -> Result<(), Error> {
        let mut reach = Reach {
            keyspace: self,
            puts: BTreeMap::new(),
            keys_max,
            keys_left: keys_max,
            bytes_left: ANSWER_BYTES_MAX,
            writes: false,
        };
        reach.note_writes(request);
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

/// What is read of the keys that are looked at.
#[derive(Clone, Copy)]
struct Reading<'a> {
    /// Of so many the value, at most.
    values_max: usize,
    /// So many are answered, at most.
    pairs_max: usize,
    /// The range that reads them; `None` where the newest of each key is read.
    range: Option<&'a pb::RangeRequest>,
}

impl<'a> Reading<'a> {
    /// All values, or none; answered or for the txn itself.
    fn all_if(are_read: bool, are_answered: bool) -> Reading<'a> {
        let all_if = |all: bool| if all { usize::MAX } else { 0 };
        Reading { values_max: all_if(are_read), pairs_max: all_if(are_answered), range: None }
    }

    /// What a range answers or sorts by.
    fn of_range(range: &'a pb::RangeRequest) -> Reading<'a> {
        let pairs_max = match usize::try_from(range.limit) {
            _ if range.count_only => 0,
            Ok(limit) if limit > 0 => limit,
            _ => usize::MAX,
        };
        let values_max = match range.sort_target() {
            SortTarget::Value if !range.count_only => usize::MAX,
            _ if range.keys_only => 0,
            _ => pairs_max,
        };
        Reading { values_max, pairs_max, range: Some(range) }
    }

    /// The revision that the keys are looked at.
    fn revision(&self) -> i64 {
        self.range.map(|range| range.revision).filter(|revision| *revision > 0).unwrap_or(i64::MAX)
    }

    /// Only of the first so many keys is anything read. Of a range that is sorted and cut it is not known before of which it is.
    fn first_max(&self) -> usize {
        let is_ordered = |range| !has_default_order(range) || range.sort_target() != SortTarget::Key;
        if self.range.is_some_and(is_ordered) { usize::MAX } else { self.values_max.max(self.pairs_max) }
    }

    /// Whether anything of a living key may be read.
    fn may_have(&self, version: &Version) -> bool {
        self.range.is_none_or(|range| passes_filters(version, range))
    }

    fn keys_only(&self) -> bool {
        self.range.is_some_and(|range| range.keys_only)
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

/// What the keys of one range come to.
#[derive(Default)]
struct Found {
    /// What it takes to read their values, in keys.
    efforts: Tally,
    /// The bytes of their pairs in an answer.
    bytes: Tally,
}

impl Found {
    fn add(&mut self, key: &Bytes, value_len: usize, keys_only: bool) {
        let effort = if value_len == 0 { 0 } else { KEYS_PER_VALUE + value_len / BYTES_PER_KEY };
        self.efforts.add(effort);
        self.bytes.add(pair_bytes(key, value_len, keys_only));
    }
}

struct Reach<'a> {
    keyspace: &'a Keyspace,
    /// What the txn itself puts: the bytes of the largest value for each key.
    puts: BTreeMap<Bytes, usize>,
    /// Whether it puts or deletes anything, so that other keys may be the first of a range than now.
    writes: bool,
    keys_max: usize,
    keys_left: usize,
    /// Of the answer.
    bytes_left: usize,
}

impl Reach<'_> {
    fn note_writes(&mut self, request: &pb::TxnRequest) {
        for operation in request.success.iter().chain(&request.failure) {
            match &operation.request {
                Some(Request::RequestPut(put)) => {
                    self.writes = true;
                    let largest = self.puts.entry(put.key.clone()).or_default();
                    *largest = put.value.len().max(*largest);
                }
                Some(Request::RequestDeleteRange(_)) => self.writes = true,
                Some(Request::RequestTxn(nested)) => self.note_writes(nested),
                Some(Request::RequestRange(_)) | None => {}
            }
        }
    }

    fn txn(&mut self, request: &pb::TxnRequest) -> Result<(), Error> {
        for compare in &request.compare {
            let reading = Reading::all_if(compare.target == CompareTarget::Value as i32, false);
            self.range(&compare.key, &compare.range_end, reading)?;
        }
        for operation in request.success.iter().chain(&request.failure) {
            match &operation.request {
                Some(Request::RequestRange(range)) => {
                    let reading = Reading::of_range(range);
                    self.range(&range.key, &range.range_end, reading)?;
                    self.own_puts(&KeyRange::new(&range.key, &range.range_end), reading)?;
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    let reading = Reading::all_if(delete.prev_kv, delete.prev_kv);
                    self.range(&delete.key, &delete.range_end, reading)?;
                }
                Some(Request::RequestPut(put)) => {
                    let reading = Reading::all_if(put.prev_kv || put.ignore_value, put.prev_kv);
                    self.range(&put.key, &Bytes::new(), reading)?;
                }
                Some(Request::RequestTxn(nested)) => self.txn(nested)?,
                None => {}
            }
        }
        Ok(())
    }

    fn range(&mut self, key: &Bytes, range_end: &Bytes, reading: Reading<'_>) -> Result<(), Error> {
        let range = KeyRange::new(key, range_end);
        let is_one = matches!(range, KeyRange::One(_));
        // No more than the key can be answered, and that is in the request.
        if is_one && reading.values_max == 0 {
            return self.take(1, 0);
        }
        // Also what finds nothing is an effort.
        let (mut keys, mut found, mut after) = (usize::from(!is_one), Found::default(), None);
        let revision = reading.revision();
        let first_max = if self.writes && revision == i64::MAX { usize::MAX } else { reading.first_max() };
        loop {
            let look = |key: &Bytes, version: &Version| {
                if found.bytes.keys < first_max && reading.may_have(version) {
                    found.add(key, version.value_len as usize, reading.keys_only());
                }
            };
            let state = self.keyspace.state.read();
            let (looked, next) = state.index.visit(&range, after.as_ref(), revision, PIECE_KEYS, look);
            drop(state);
            keys += looked;
            let counted = keys.saturating_add(found.efforts.most(reading.values_max));
            let bytes = found.bytes.most(reading.pairs_max);
            if next.is_none() || counted > self.keys_left || bytes > self.bytes_left {
                return self.take(counted, bytes);
            }
            after = next;
        }
    }

    /// What the txn puts is read by its own ranges as well, unless they are of the past. Whether a put comes before them, and instead of
    /// what is there, does not matter here.
    fn own_puts(&mut self, range: &KeyRange, reading: Reading<'_>) -> Result<(), Error> {
        if range.is_empty() || reading.revision() < i64::MAX {
            return Ok(());
        }
        let mut found = Found::default();
        let puts = self.puts.range::<[u8], _>(range.bounds());
        for (key, value_len) in puts.take(self.keys_left.saturating_add(1)) {
            found.add(key, *value_len, reading.keys_only());
        }
        let counted = found.efforts.keys.saturating_add(found.efforts.most(reading.values_max));
        self.take(counted, found.bytes.most(reading.pairs_max))
    }

    fn take(&mut self, keys: usize, bytes: usize) -> Result<(), Error> {
        let too_many_keys = Error::TooManyKeys(self.keys_max);
        self.keys_left = self.keys_left.checked_sub(keys).ok_or(too_many_keys)?;
        let too_many_bytes = Error::TooManyBytes(ANSWER_BYTES_MAX);
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(too_many_bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use hadron_storage::engine::ModelEngine;
    use pb::range_request::SortOrder;

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

    /// The same large value may be answered tens of thousands of times; so may a large key.
    #[test]
    fn answers_are_no_larger_than_clients_take() {
        const MIB: usize = 1 << 20;
        let keyspace = keyspace();
        let large_key = Bytes::from(vec![b'x'; MIB]);
        let of_key = pb::PutRequest { key: large_key, ..Default::default() };
        let of_value =
            pb::PutRequest { key: "y".into(), value: vec![b'.'; MIB].into(), ..Default::default() };
        let puts = vec![Command::Put(of_key), Command::Put(of_value)];
        keyspace.apply(Applied { term: 1, index: 3, checksum: 0, stamp_ms: 0 }, puts);
        let check = |request: Request, times| {
            let txn = pb::TxnRequest { success: vec![operation(request); times], ..Default::default() };
            keyspace.check_reach(&txn, usize::MAX)
        };
        let most = ANSWER_BYTES_MAX / MIB - 1;
        let refused = Err(Error::TooManyBytes(ANSWER_BYTES_MAX));
        let keys = pb::RangeRequest { key: "x".into(), range_end: "y".into(), keys_only: true, ..count(0) };
        let keys = pb::RangeRequest { count_only: false, ..keys };
        let both = pb::RangeRequest { range_end: "z".into(), keys_only: false, ..keys.clone() };
        let one = pb::RangeRequest { limit: 1, ..both.clone() };
        let last = pb::RangeRequest { sort_order: SortOrder::Descend as i32, ..one.clone() };
        let get = pb::RangeRequest { key: "y".into(), ..Default::default() };
        for (range, most) in [(keys, most), (both, most / 2), (one, most), (last, most), (get, most)] {
            let range = Request::RequestRange(range);
            assert_eq!((check(range.clone(), most), check(range, most + 1)), (Ok(()), refused.clone()));
        }
        let delete = |prev_kv| pb::DeleteRangeRequest { key: "x".into(), range_end: "y".into(), prev_kv };
        assert_eq!(check(Request::RequestDeleteRange(delete(true)), most + 1), refused);
        assert_eq!(check(Request::RequestDeleteRange(delete(false)), most + 1), Ok(()));
        let put =
            |prev_kv| pb::PutRequest { key: "y".into(), prev_kv, ignore_value: true, ..Default::default() };
        assert_eq!(check(Request::RequestPut(put(true)), most + 1), refused);
        assert_eq!(check(Request::RequestPut(put(false)), most + 1), Ok(()));
        let compares = vec![pb::Compare { key: "y".into(), ..compare(CompareTarget::Value) }; most + 1];
        let compares = pb::TxnRequest { compare: compares, ..Default::default() };
        assert_eq!(keyspace.check_reach(&compares, usize::MAX), Ok(()));
    }

    /// A txn could put a large value, and answer it tens of thousands of times.
    #[test]
    fn what_a_txn_puts_counts_where_it_is_read() {
        let get = pb::RangeRequest { key: "new".into(), ..Default::default() };
        let all = pb::RangeRequest { key: "n".into(), range_end: "o".into(), ..Default::default() };
        let put = |bytes| {
            let value = vec![b'.'; bytes].into();
            operation(Request::RequestPut(pb::PutRequest { key: "new".into(), value, ..Default::default() }))
        };
        let with_put = |range: &pb::RangeRequest, times| {
            let mut success = vec![operation(Request::RequestRange(range.clone())); times];
            success.extend([
                put(1 << 10),
                operation(Request::RequestTxn(pb::TxnRequest {
                    failure: vec![put(1 << 20)],
                    ..Default::default()
                })),
            ]);
            pb::TxnRequest { success, ..Default::default() }
        };
        assert_reach(&with_put(&get, 1), 1 + 1 + 1 + 1034);
        assert_reach(&with_put(&all, 1), 1 + 1 + 1 + 1 + 1034);
        assert_reach(&with_put(&pb::RangeRequest { count_only: true, ..all.clone() }, 1), 1 + 1 + 1 + 1);
        assert_reach(&with_put(&pb::RangeRequest { revision: 2, ..all.clone() }, 1), 1 + 1 + 1);
        let refused = Err(Error::TooManyBytes(ANSWER_BYTES_MAX));
        assert_eq!(keyspace().check_reach(&with_put(&all, 1024), usize::MAX), refused);
    }

    /// The large value behind what the txn deletes, or puts so that a filter leaves it out, was not counted.
    #[test]
    fn other_keys_may_be_the_first_once_a_txn_has_written() {
        let keyspace = keyspace();
        let put = pb::PutRequest { key: key(1), value: vec![b'.'; 1 << 20].into(), ..Default::default() };
        keyspace.apply(Applied { term: 1, index: 3, checksum: 0, stamp_ms: 0 }, vec![Command::Put(put)]);
        let delete = pb::DeleteRangeRequest { key: key(0), ..Default::default() };
        let again = pb::PutRequest { key: key(0), ..Default::default() };
        let first = pb::RangeRequest { count_only: false, limit: 1, ..count(2) };
        let old = pb::RangeRequest { max_mod_revision: keyspace.revision(), ..first.clone() };
        for (write, range) in
            [(Request::RequestDeleteRange(delete), first), (Request::RequestPut(again), old)]
        {
            let mut success = vec![operation(Request::RequestRange(range)); 1024];
            success.push(operation(write));
            let txn = pb::TxnRequest { success, ..Default::default() };
            let refused = Err(Error::TooManyBytes(ANSWER_BYTES_MAX));
            assert_eq!(keyspace.check_reach(&txn, usize::MAX), refused);
        }
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
