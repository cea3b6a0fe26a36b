//! Ranges, with etcd's rules, over any source of rows: the state under its lock, or a pinned view of it.
//!
//! Rows are selected, filtered, sorted and cut by metadata alone; values are fetched for those that are left.
//! `count` is the number of living keys in the range, whatever the limit and the revision filters, as in etcd.

use std::cmp::Ordering;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use pb::range_request::{SortOrder, SortTarget};

use crate::error::Error;
use crate::mvcc::{KeyRange, Version};

/// A key, the version that is seen, and its value as far as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: Bytes,
    pub(crate) version: Version,
    /// `None`: on disk.
    pub(crate) value: Option<Bytes>,
}

/// Rows of a range, and how many there are in all.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Row>,
    pub(crate) count: usize,
}

/// Where rows come from.
pub(crate) trait Source {
    /// The newest revision that is seen.
    fn revision(&self) -> i64;

    /// Reads below it are refused.
    fn compact_revision(&self) -> i64;

    /// The first `rows_max` living keys of `range` at `revision` in key order, and the number of all.
    fn rows(&self, range: &KeyRange, revision: i64, rows_max: usize) -> Result<Rows, Error>;

    /// Adds the next rows of `range`, beyond the key `after`, as they are seen now; where to go on, `None` at the end. However large the range is,
    /// they are not many.
    fn next_rows(
        &self,
        range: &KeyRange,
        after: Option<&Bytes>,
        rows: &mut Rows,
    ) -> Result<Option<Bytes>, Error>;

    /// Fetches the values that the rows lack.
    fn fetch(&self, rows: &mut [Row]) -> Result<(), Error>;

    /// The same for one of many rows that are looked at once.
    fn fetch_once(&self, row: &mut Row) -> Result<(), Error>;
}

/// A header with a revision; the server adds the rest.
pub(crate) fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..Default::default() })
}

/// The revision that a range at `asked` reads, 0 and below meaning the newest.
pub(crate) fn resolve_revision(source: &impl Source, asked: i64) -> Result<i64, Error> {
    if asked > source.revision() {
        return Err(Error::FutureRev);
    }
    let revision = if asked <= 0 { source.revision() } else { asked };
    if revision < source.compact_revision() { Err(Error::Compacted) } else { Ok(revision) }
}

/// Answers a range request.
pub(crate) fn execute(source: &impl Source, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
    let revision = resolve_revision(source, request.revision)?;
    let range = KeyRange::new(&request.key, &request.range_end);
    let found = source.rows(&range, revision, rows_needed(request))?;
    let mut response = pb::RangeResponse {
        header: header(source.revision()),
        count: found.count as i64,
        ..Default::default()
    };
    if request.count_only {
        return Ok(response);
    }
    let mut rows = found.rows;
    rows.retain(|row| passes_filters(&row.version, request));
    // Also without an order: the target alone sorts upwards.
    let by_value = request.sort_target() == SortTarget::Value;
    if by_value {
        source.fetch(&mut rows)?;
    }
    sort(&mut rows, request);
    if let Ok(limit) = usize::try_from(request.limit)
        && limit > 0
        && rows.len() > limit
    {
        rows.truncate(limit);
        response.more = true;
    }
    if !request.keys_only && !by_value {
        source.fetch(&mut rows)?;
    }
    response.kvs = rows.into_iter().map(|row| key_value(row, request.keys_only)).collect();
    Ok(response)
}

/// How many rows must be looked at: all of them, if they are to be filtered or sorted before the cut.
fn rows_needed(request: &pb::RangeRequest) -> usize {
    if request.count_only {
        return 0;
    }
    if !has_default_order(request) || has_filters(request) || request.limit <= 0 {
        return usize::MAX;
    }
    // One more than asked for, to know whether there are more.
    usize::try_from(request.limit).unwrap_or(usize::MAX).saturating_add(1)
}

/// Whether the answer is in the order of the keys.
pub(crate) fn has_default_order(request: &pb::RangeRequest) -> bool {
    match request.sort_order() {
        SortOrder::None => true,
        SortOrder::Ascend => request.sort_target() == SortTarget::Key,
        SortOrder::Descend => false,
    }
}

/// Whether keys are left out for their revisions.
pub(crate) fn has_filters(request: &pb::RangeRequest) -> bool {
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    filters.iter().any(|revision| *revision != 0)
}

/// Whether the filters of the request leave it.
pub(crate) fn passes_filters(version: &Version, request: &pb::RangeRequest) -> bool {
    let not_below = |value: i64, min: i64| min == 0 || value >= min;
    let not_above = |value: i64, max: i64| max == 0 || value <= max;
    not_below(version.main, request.min_mod_revision)
        && not_above(version.main, request.max_mod_revision)
        && not_below(version.create, request.min_create_revision)
        && not_above(version.create, request.max_create_revision)
}

/// Sorts rows that are in key order. A target without an order sorts upwards; rows that are equal stay in key order
/// (etcd leaves theirs open).
fn sort(rows: &mut [Row], request: &pb::RangeRequest) {
    let target = request.sort_target();
    let is_descending = request.sort_order() == SortOrder::Descend;
    if target == SortTarget::Key && !is_descending {
        return;
    }
    rows.sort_by(|a, b| {
        let ascending = compare(a, b, target);
        if is_descending { ascending.reverse() } else { ascending }
    });
}

fn compare(a: &Row, b: &Row, target: SortTarget) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.version.cmp(&b.version.version),
        SortTarget::Create => a.version.create.cmp(&b.version.create),
        SortTarget::Mod => a.version.main.cmp(&b.version.main),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

/// The row as clients see it.
pub(crate) fn key_value(row: Row, keys_only: bool) -> KeyValue {
    KeyValue {
        key: row.key,
        create_revision: row.version.create,
        mod_revision: row.version.main,
        version: row.version.version,
        value: if keys_only { Bytes::new() } else { row.value.unwrap_or_default() },
        lease: row.version.lease,
    }
}
