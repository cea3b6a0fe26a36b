//! Between the history's language and etcd's messages: what to send for an action, and what a response says.

use bytes::Bytes;
use hadron_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use hadron_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, request_op, response_op,
};
use hadron_proto::mvccpb;

use crate::history::{Action, Event, Guard, KeyValue, Response, Step, StepResult, Transaction};

/// The request that carries an action out.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A read.
    Range(RangeRequest),
    /// A plain put.
    Put(PutRequest),
    /// A plain delete.
    Delete(DeleteRangeRequest),
    /// Everything else.
    Txn(TxnRequest),
    /// A revocation.
    Revoke(LeaseRevokeRequest),
    /// A compaction.
    Compact(CompactionRequest),
}

/// What to send for `action`.
pub fn request(action: &Action) -> Request {
    match action {
        Action::Transaction(Transaction { guards, then, otherwise })
            if guards.is_empty() && otherwise.is_empty() && then.len() == 1 =>
        {
            single(&then[0])
        }
        Action::Transaction(transaction) => Request::Txn(txn(transaction)),
        Action::StaleGet(key) => {
            Request::Range(RangeRequest { key: key.clone(), serializable: true, ..RangeRequest::default() })
        }
        Action::GetAt(key, revision) => {
            Request::Range(RangeRequest { key: key.clone(), revision: *revision, ..RangeRequest::default() })
        }
        Action::GetRange(from, to) => Request::Range(RangeRequest {
            key: from.clone(),
            range_end: to.clone(),
            ..RangeRequest::default()
        }),
        Action::Revoke(lease) => Request::Revoke(LeaseRevokeRequest { id: *lease }),
        Action::Compact(revision) => {
            Request::Compact(CompactionRequest { revision: *revision, physical: false })
        }
    }
}

fn single(step: &Step) -> Request {
    match step {
        Step::Get(key) => Request::Range(get(key)),
        Step::Put(key, value, lease) => Request::Put(put(key, value, *lease)),
        Step::Delete(key) => Request::Delete(delete(key)),
        Step::DeleteRange(from, to) => Request::Delete(delete_range(from, to)),
    }
}

fn get(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..RangeRequest::default() }
}

fn put(key: &Bytes, value: &Bytes, lease: i64) -> PutRequest {
    PutRequest { key: key.clone(), value: value.clone(), lease, ..PutRequest::default() }
}

fn delete(key: &Bytes) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() }
}

fn delete_range(from: &Bytes, to: &Bytes) -> DeleteRangeRequest {
    DeleteRangeRequest { range_end: to.clone(), ..delete(from) }
}

fn txn(transaction: &Transaction) -> TxnRequest {
    TxnRequest {
        compare: transaction.guards.iter().map(compare).collect(),
        success: transaction.then.iter().map(operation).collect(),
        failure: transaction.otherwise.iter().map(operation).collect(),
    }
}

fn compare(guard: &Guard) -> Compare {
    let (key, target, value) = match guard {
        Guard::ModRevision(key, revision) => (key, CompareTarget::Mod, TargetUnion::ModRevision(*revision)),
        Guard::CreateRevision(key, revision) => {
            (key, CompareTarget::Create, TargetUnion::CreateRevision(*revision))
        }
        Guard::Value(key, value) => (key, CompareTarget::Value, TargetUnion::Value(value.clone())),
    };
    Compare {
        result: CompareResult::Equal as i32,
        target: target as i32,
        key: key.clone(),
        target_union: Some(value),
        ..Compare::default()
    }
}

fn operation(step: &Step) -> RequestOp {
    let request = match step {
        Step::Get(key) => request_op::Request::RequestRange(get(key)),
        Step::Put(key, value, lease) => request_op::Request::RequestPut(put(key, value, *lease)),
        Step::Delete(key) => request_op::Request::RequestDeleteRange(delete(key)),
        Step::DeleteRange(from, to) => request_op::Request::RequestDeleteRange(delete_range(from, to)),
    };
    RequestOp { request: Some(request) }
}

/// The response to a plain operation with this result.
pub fn response(header: &Option<ResponseHeader>, result: StepResult) -> Response {
    Response { revision: revision(header), succeeded: true, results: vec![result] }
}

/// The response to a transaction.
pub fn txn_response(response: &TxnResponse) -> Response {
    Response {
        revision: revision(&response.header),
        succeeded: response.succeeded,
        results: response.responses.iter().map(step_result).collect(),
    }
}

/// The response to a revocation or a compaction.
pub fn plain_response(header: &Option<ResponseHeader>) -> Response {
    Response { revision: revision(header), succeeded: true, results: Vec::new() }
}

/// What a read found, for `action`.
pub fn read(action: &Action, response: &RangeResponse) -> StepResult {
    match action {
        Action::GetRange(..) => StepResult::Found(response.kvs.iter().map(key_value).collect()),
        _ => got(response),
    }
}

/// What a range over a single key found.
pub fn got(response: &RangeResponse) -> StepResult {
    StepResult::Got(response.kvs.first().map(key_value))
}

/// The revision in a header; 0, which fits nothing, when there is no header.
pub fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

fn step_result(response: &ResponseOp) -> StepResult {
    match &response.response {
        Some(response_op::Response::ResponseRange(range)) => got(range),
        Some(response_op::Response::ResponsePut(_)) => StepResult::Put,
        Some(response_op::Response::ResponseDeleteRange(delete)) => StepResult::Deleted(delete.deleted),
        // Never asked for: a result that fits no step.
        Some(response_op::Response::ResponseTxn(_)) | None => StepResult::Deleted(-1),
    }
}

/// A key as etcd shows it.
pub fn key_value(pair: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: pair.key.clone(),
        value: pair.value.clone(),
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
        lease: pair.lease,
    }
}

/// An event as a watcher receives it; `None` if it has no key.
pub fn event(event: &mvccpb::Event) -> Option<Event> {
    let pair = event.kv.as_ref()?;
    let is_put = event.r#type == mvccpb::event::EventType::Put as i32;
    let after = is_put.then(|| key_value(pair));
    Some(Event { revision: pair.mod_revision, key: pair.key.clone(), after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_operations_are_plain_requests() {
        assert!(matches!(request(&Action::get("a")), Request::Range(range) if !range.serializable));
        assert!(matches!(request(&Action::put("a", "1")), Request::Put(put) if put.value == "1"));
        assert!(matches!(request(&Action::delete("a")), Request::Delete(_)));
        assert!(
            matches!(request(&Action::StaleGet("a".into())), Request::Range(range) if range.serializable)
        );
        let Request::Txn(txn) = request(&Action::compare_and_set("a", 7, "1")) else { panic!("not a txn") };
        assert_eq!((txn.compare.len(), txn.success.len(), txn.failure.len()), (1, 1, 1));
    }

    #[test]
    fn removals_have_nothing_afterwards() {
        let pair = mvccpb::KeyValue { key: "a".into(), mod_revision: 5, ..Default::default() };
        let removal = mvccpb::Event { r#type: 1, kv: Some(pair.clone()), prev_kv: None };
        assert_eq!(event(&removal), Some(Event { revision: 5, key: "a".into(), after: None }));
        let written = mvccpb::Event { r#type: 0, kv: Some(pair), prev_kv: None };
        assert!(event(&written).is_some_and(|event| event.after.is_some()));
    }
}
