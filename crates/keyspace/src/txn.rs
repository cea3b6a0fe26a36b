//! Transactions: all comparisons first, then all checks, then the operations of the path that was chosen.
//!
//! As in etcd, every comparison, of nested txns too, sees the state before the txn, and so do the checks; the operations
//! see what was written before them in the same txn. After the checks nothing can fail, so a txn happens wholly or not.

use std::cmp::Ordering;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use pb::response_op::Response as OpResponse;

use crate::apply::Applier;
use crate::deletion::Deletion;
use crate::error::Error;
use crate::mvcc::KeyRange;
use crate::range::{self, Row, Rows, Source, header};
use crate::state::Write;

/// Which way a txn and its nested txns go.
#[derive(Debug)]
pub(crate) struct Path {
    succeeded: bool,
    /// One for each nested txn among the chosen operations, in order.
    nested: Vec<Path>,
}

/// Compares, and chooses the way through the txn.
pub(crate) fn choose(source: &impl Source, request: &pb::TxnRequest) -> Result<Path, Error> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(source, compare)? {
            succeeded = false;
            break;
        }
    }
    let mut nested = Vec::new();
    for operation in operations(request, succeeded) {
        if let Some(Request::RequestTxn(txn)) = &operation.request {
            nested.push(choose(source, txn)?);
        }
    }
    Ok(Path { succeeded, nested })
}

fn operations(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// A comparison with a range holds if it holds for every key of it. A key that does not exist compares as zeros, but
/// its value compares as nothing. Keys are looked at up to the first for which it does not hold, one value at a time.
fn holds(source: &impl Source, compare: &pb::Compare) -> Result<bool, Error> {
    let range = KeyRange::new(&compare.key, &compare.range_end);
    let is_value = compare.target == CompareTarget::Value as i32;
    let (mut after, mut is_empty) = (None, true);
    loop {
        let mut found = Rows::default();
        after = source.next_rows(&range, after.as_ref(), &mut found)?;
        for mut row in found.rows {
            is_empty = false;
            match range {
                _ if !is_value => {}
                // What is compared and set is mostly one key, again and again.
                KeyRange::One(_) => source.fetch(std::slice::from_mut(&mut row))?,
                KeyRange::Span { .. } => source.fetch_once(&mut row)?,
            }
            if !holds_for(compare, Some(&row)) {
                return Ok(false);
            }
        }
        if after.is_none() {
            return Ok(!is_empty || !is_value && holds_for(compare, None));
        }
    }
}

fn holds_for(compare: &pb::Compare, row: Option<&Row>) -> bool {
    let number = |of: fn(&Row) -> i64, wanted: Option<i64>| row.map_or(0, of).cmp(&wanted.unwrap_or(0));
    let union = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => compare_value(row, union),
        Ok(CompareTarget::Create) => number(|row| row.version.create, create_of(union)),
        Ok(CompareTarget::Mod) => number(|row| row.version.main, mod_of(union)),
        Ok(CompareTarget::Version) => number(|row| row.version.version, version_of(union)),
        Ok(CompareTarget::Lease) => number(|row| row.version.lease, lease_of(union)),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

fn compare_value(row: Option<&Row>, union: Option<&TargetUnion>) -> Ordering {
    let wanted: &[u8] = match union {
        Some(TargetUnion::Value(value)) => value,
        _ => &[],
    };
    row.and_then(|row| row.value.as_deref()).unwrap_or_default().cmp(wanted)
}

fn create_of(union: Option<&TargetUnion>) -> Option<i64> {
    if let Some(TargetUnion::CreateRevision(revision)) = union { Some(*revision) } else { None }
}

fn mod_of(union: Option<&TargetUnion>) -> Option<i64> {
    if let Some(TargetUnion::ModRevision(revision)) = union { Some(*revision) } else { None }
}

fn version_of(union: Option<&TargetUnion>) -> Option<i64> {
    if let Some(TargetUnion::Version(version)) = union { Some(*version) } else { None }
}

fn lease_of(union: Option<&TargetUnion>) -> Option<i64> {
    if let Some(TargetUnion::Lease(lease)) = union { Some(*lease) } else { None }
}

/// A range inside a txn is refused by the state before it. Unlike elsewhere, a negative revision counts as compacted
/// once it is below the compact revision, which starts at -1.
fn check_range(source: &impl Source, request: &pb::RangeRequest) -> Result<(), Error> {
    match request.revision {
        0 => Ok(()),
        revision if revision > source.revision() => Err(Error::FutureRev),
        revision if revision < source.compact_revision() => Err(Error::Compacted),
        _ => Ok(()),
    }
}

/// Checks the operations of a path; an error means that nothing happens.
pub(crate) fn check_path(applier: &Applier<'_>, request: &pb::TxnRequest, path: &Path) -> Result<(), Error> {
    let mut nested = path.nested.iter();
    for operation in operations(request, path.succeeded) {
        match &operation.request {
            Some(Request::RequestRange(range)) => check_range(&applier.source(None), range)?,
            Some(Request::RequestPut(put)) => applier.check_put_of_txn(put)?,
            Some(Request::RequestTxn(txn)) => {
                nested.next().map_or(Ok(()), |path| check_path(applier, txn, path))?;
            }
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

/// Whether any operation of either branch, or nested in one, is a put.
pub(crate) fn may_put(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|operation| match &operation.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(txn)) => may_put(txn),
        _ => false,
    })
}

/// A txn on its way. Ranges are read only for those who wait for the answer.
#[derive(Debug)]
pub(crate) struct Execution {
    /// The txn, the one nested in it that is under way, and so on.
    running: Vec<Running>,
    /// The operation that is under way.
    deletion: Option<Deletion>,
}

/// One txn of those nested in each other.
#[derive(Debug)]
struct Running {
    succeeded: bool,
    operations: std::vec::IntoIter<pb::RequestOp>,
    nested: std::vec::IntoIter<Path>,
    responses: Vec<pb::ResponseOp>,
}

impl Running {
    fn new(request: pb::TxnRequest, path: Path) -> Running {
        let operations = if path.succeeded { request.success } else { request.failure };
        Running {
            succeeded: path.succeeded,
            responses: Vec::with_capacity(operations.len()),
            operations: operations.into_iter(),
            nested: path.nested.into_iter(),
        }
    }
}

impl Execution {
    /// The txn goes this way, which has passed [`check_path`].
    pub(crate) fn new(request: pb::TxnRequest, path: Path) -> Execution {
        Execution { running: vec![Running::new(request, path)], deletion: None }
    }

    /// Carries operations out, one at least; `None` if some are left.
    pub(crate) fn go_on(
        &mut self,
        applier: &mut Applier<'_>,
        write: &mut Write,
    ) -> Result<Option<pb::TxnResponse>, Error> {
        loop {
            if let Some(deletion) = &mut self.deletion {
                let Some(response) = deletion.go_on(applier, write)? else { return Ok(None) };
                self.deletion = None;
                self.answer(Some(OpResponse::ResponseDeleteRange(response)));
            } else if let Some(operation) = self.running.last_mut().and_then(|txn| txn.operations.next()) {
                self.begin(applier, write, operation)?;
            } else if let Some(Running { succeeded, responses, .. }) = self.running.pop() {
                let response = pb::TxnResponse { header: header(0), succeeded, responses };
                if self.running.is_empty() {
                    return Ok(Some(response));
                }
                self.answer(Some(OpResponse::ResponseTxn(response)));
            }
            if applier.effort.left() == 0 {
                return Ok(None);
            }
        }
    }

    fn begin(
        &mut self,
        applier: &mut Applier<'_>,
        write: &mut Write,
        operation: pb::RequestOp,
    ) -> Result<(), Error> {
        applier.effort.add(1);
        let response = match operation.request {
            Some(Request::RequestRange(range)) => {
                let read = |this: &Applier<'_>| range::execute(&this.source(Some(write)), &range);
                Some(OpResponse::ResponseRange(applier.read_for_answer(read)))
            }
            Some(Request::RequestPut(put)) => Some(OpResponse::ResponsePut(applier.put(write, put)?)),
            Some(Request::RequestDeleteRange(delete)) => {
                self.deletion = Some(Deletion::new(&delete));
                return Ok(());
            }
            Some(Request::RequestTxn(txn)) => {
                match self.running.last_mut().and_then(|outer| outer.nested.next()) {
                    Some(path) => {
                        self.running.push(Running::new(txn, path));
                        return Ok(());
                    }
                    None => None,
                }
            }
            None => None,
        };
        self.answer(response);
        Ok(())
    }

    fn answer(&mut self, response: Option<OpResponse>) {
        if let Some(txn) = self.running.last_mut() {
            txn.responses.push(pb::ResponseOp { response });
        }
    }
}

/// Carries a txn out that writes nothing.
pub(crate) fn read_only(source: &impl Source, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
    let path = choose(source, request)?;
    check_read_path(source, request, &path)?;
    let mut response = execute_read(source, request, &path)?;
    response.header = header(source.revision());
    Ok(response)
}

fn check_read_path(source: &impl Source, request: &pb::TxnRequest, path: &Path) -> Result<(), Error> {
    let mut nested = path.nested.iter();
    for operation in operations(request, path.succeeded) {
        match &operation.request {
            Some(Request::RequestRange(range)) => check_range(source, range)?,
            Some(Request::RequestTxn(txn)) => {
                nested.next().map_or(Ok(()), |path| check_read_path(source, txn, path))?;
            }
            Some(_) => panic!("a txn that writes is not read-only"),
            None => {}
        }
    }
    Ok(())
}

fn execute_read(
    source: &impl Source,
    request: &pb::TxnRequest,
    path: &Path,
) -> Result<pb::TxnResponse, Error> {
    let mut nested = path.nested.iter();
    let mut responses = Vec::new();
    for operation in operations(request, path.succeeded) {
        let response = match &operation.request {
            Some(Request::RequestRange(range)) => {
                Some(OpResponse::ResponseRange(range::execute(source, range)?))
            }
            Some(Request::RequestTxn(txn)) => match nested.next() {
                Some(path) => Some(OpResponse::ResponseTxn(execute_read(source, txn, path)?)),
                None => None,
            },
            _ => None,
        };
        responses.push(pb::ResponseOp { response });
    }
    Ok(pb::TxnResponse { header: header(0), succeeded: path.succeeded, responses })
}

/// The oldest revision that any range of the txn asks for; 0 if all read the present.
pub(crate) fn oldest_revision(request: &pb::TxnRequest) -> i64 {
    let all = request.success.iter().chain(&request.failure);
    let asked = all.filter_map(|operation| match operation.request.as_ref()? {
        Request::RequestRange(range) => Some(range.revision),
        Request::RequestTxn(txn) => Some(oldest_revision(txn)),
        _ => None,
    });
    asked.filter(|revision| *revision > 0).min().unwrap_or(0)
}

/// A value that a put keeps, or nothing.
pub(crate) fn kept_value(previous: Option<&Row>) -> Bytes {
    previous.and_then(|row| row.value.clone()).unwrap_or_default()
}
