//! A namespace: a prefix that all keys get on their way to the nodes, and lose on their way back.
//!
//! Ranges end within it: "everything from here on" is everything from here on that has the prefix. Election names and the names of
//! locks are keys here, too; etcd's proxy passes those on as they are, so that what it answers cannot be used through it.

use std::sync::Arc;

use bytes::Bytes;
use hadron_proto::{etcdserverpb as pb, mvccpb, v3electionpb, v3lockpb};
use pb::request_op::Request as Op;
use pb::response_op::Response as Answer;
use pb::watch_request::RequestUnion;
use prost::Message;
use tonic::Status;

use super::messages::Change;

/// The prefix.
#[derive(Clone, Debug)]
pub(super) struct Namespace(Arc<[u8]>);

impl Namespace {
    /// Keys with that prefix; it is not empty.
    pub(super) fn new(prefix: &str) -> Namespace {
        Namespace(prefix.as_bytes().into())
    }

    /// What happens to the messages of a call with that path: of the request, and of the answer. `None` if no keys are in them.
    pub(super) fn changes(&self, path: &str) -> (Option<Change>, Option<Change>) {
        match path {
            "/etcdserverpb.KV/Range" => {
                (self.change(Namespace::enter_range), self.change(Namespace::leave_range))
            }
            "/etcdserverpb.KV/RangeStream" => {
                (self.change(Namespace::enter_range), self.change(Namespace::leave_range_stream))
            }
            "/etcdserverpb.KV/Put" => (self.change(Namespace::enter_put), self.change(Namespace::leave_put)),
            "/etcdserverpb.KV/DeleteRange" => {
                (self.change(Namespace::enter_delete), self.change(Namespace::leave_delete))
            }
            "/etcdserverpb.KV/Txn" => (self.change(Namespace::enter_txn), self.change(Namespace::leave_txn)),
            "/etcdserverpb.Watch/Watch" => {
                (self.change(Namespace::enter_watch), self.change(Namespace::leave_watch))
            }
            "/etcdserverpb.Lease/LeaseTimeToLive" => (None, self.change(Namespace::leave_time_to_live)),
            path => self.changes_of_names(path),
        }
    }

    fn changes_of_names(&self, path: &str) -> (Option<Change>, Option<Change>) {
        match path {
            "/v3electionpb.Election/Campaign" => (
                self.change(|space, message: &mut v3electionpb::CampaignRequest| {
                    space.enter(&mut message.name);
                }),
                self.change(|space, message: &mut v3electionpb::CampaignResponse| {
                    space.leave_leader(&mut message.leader);
                }),
            ),
            "/v3electionpb.Election/Proclaim" => (
                self.change(|space, message: &mut v3electionpb::ProclaimRequest| {
                    space.enter_leader(&mut message.leader);
                }),
                None,
            ),
            "/v3electionpb.Election/Resign" => (
                self.change(|space, message: &mut v3electionpb::ResignRequest| {
                    space.enter_leader(&mut message.leader);
                }),
                None,
            ),
            "/v3electionpb.Election/Leader" | "/v3electionpb.Election/Observe" => (
                self.change(|space, message: &mut v3electionpb::LeaderRequest| {
                    space.enter(&mut message.name)
                }),
                self.change(|space, message: &mut v3electionpb::LeaderResponse| {
                    message.kv.iter_mut().for_each(|kv| space.leave_kv(kv));
                }),
            ),
            "/v3lockpb.Lock/Lock" => (
                self.change(|space, message: &mut v3lockpb::LockRequest| space.enter(&mut message.name)),
                self.change(|space, message: &mut v3lockpb::LockResponse| space.leave(&mut message.key)),
            ),
            "/v3lockpb.Lock/Unlock" => (
                self.change(|space, message: &mut v3lockpb::UnlockRequest| space.enter(&mut message.key)),
                None,
            ),
            _ => (None, None),
        }
    }

    /// A change of messages that are `M`s.
    fn change<M: Message + Default + 'static>(&self, change: fn(&Namespace, &mut M)) -> Option<Change> {
        let space = self.clone();
        Some(change_message(move |message| change(&space, message)))
    }

    /// A key on its way in. An empty one stays so: the nodes refuse it.
    fn enter(&self, key: &mut Bytes) {
        if !key.is_empty() {
            *key = [&self.0, key.as_ref()].concat().into();
        }
    }

    /// The end of a range on its way in.
    fn enter_end(&self, end: &mut Bytes) {
        match end.as_ref() {
            [] => {}
            [0] => *end = self.end(),
            _ => *end = [&self.0, end.as_ref()].concat().into(),
        }
    }

    /// What follows everything that has the prefix: "everything from here on" if nothing does.
    fn end(&self) -> Bytes {
        let Some(last) = self.0.iter().rposition(|byte| *byte < u8::MAX) else {
            return Bytes::from_static(&[0]);
        };
        let mut end = self.0[..=last].to_vec();
        end[last] += 1;
        end.into()
    }

    fn leave(&self, key: &mut Bytes) {
        if key.starts_with(&self.0) {
            *key = key.slice(self.0.len()..);
        }
    }

    fn leave_kv(&self, kv: &mut mvccpb::KeyValue) {
        self.leave(&mut kv.key);
    }

    fn enter_leader(&self, leader: &mut Option<v3electionpb::LeaderKey>) {
        if let Some(leader) = leader {
            self.enter(&mut leader.name);
            self.enter(&mut leader.key);
        }
    }

    fn leave_leader(&self, leader: &mut Option<v3electionpb::LeaderKey>) {
        if let Some(leader) = leader {
            self.leave(&mut leader.name);
            self.leave(&mut leader.key);
        }
    }

    fn enter_range(&self, range: &mut pb::RangeRequest) {
        self.enter(&mut range.key);
        self.enter_end(&mut range.range_end);
    }

    fn leave_range(&self, range: &mut pb::RangeResponse) {
        range.kvs.iter_mut().for_each(|kv| self.leave_kv(kv));
    }

    fn leave_range_stream(&self, part: &mut pb::RangeStreamResponse) {
        part.range_response.iter_mut().for_each(|range| self.leave_range(range));
    }

    fn enter_put(&self, put: &mut pb::PutRequest) {
        self.enter(&mut put.key);
    }

    fn leave_put(&self, put: &mut pb::PutResponse) {
        put.prev_kv.iter_mut().for_each(|kv| self.leave_kv(kv));
    }

    fn enter_delete(&self, delete: &mut pb::DeleteRangeRequest) {
        self.enter(&mut delete.key);
        self.enter_end(&mut delete.range_end);
    }

    fn leave_delete(&self, delete: &mut pb::DeleteRangeResponse) {
        delete.prev_kvs.iter_mut().for_each(|kv| self.leave_kv(kv));
    }

    fn enter_txn(&self, txn: &mut pb::TxnRequest) {
        for compare in &mut txn.compare {
            self.enter(&mut compare.key);
            self.enter_end(&mut compare.range_end);
        }
        let operations = txn.success.iter_mut().chain(&mut txn.failure);
        for operation in operations.filter_map(|operation| operation.request.as_mut()) {
            match operation {
                Op::RequestRange(range) => self.enter_range(range),
                Op::RequestPut(put) => self.enter_put(put),
                Op::RequestDeleteRange(delete) => self.enter_delete(delete),
                Op::RequestTxn(txn) => self.enter_txn(txn),
            }
        }
    }

    fn leave_txn(&self, txn: &mut pb::TxnResponse) {
        for answer in txn.responses.iter_mut().filter_map(|answer| answer.response.as_mut()) {
            match answer {
                Answer::ResponseRange(range) => self.leave_range(range),
                Answer::ResponsePut(put) => self.leave_put(put),
                Answer::ResponseDeleteRange(delete) => self.leave_delete(delete),
                Answer::ResponseTxn(txn) => self.leave_txn(txn),
            }
        }
    }

    fn enter_watch(&self, request: &mut pb::WatchRequest) {
        if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
            // An empty key means the first one here.
            create.key = [&self.0, create.key.as_ref()].concat().into();
            self.enter_end(&mut create.range_end);
        }
    }

    fn leave_watch(&self, response: &mut pb::WatchResponse) {
        for event in &mut response.events {
            let kvs = event.kv.iter_mut().chain(&mut event.prev_kv);
            kvs.for_each(|kv| self.leave_kv(kv));
        }
    }

    /// Keys of others that hang on the same lease are nobody's business here.
    fn leave_time_to_live(&self, response: &mut pb::LeaseTimeToLiveResponse) {
        response.keys.retain(|key| key.starts_with(&self.0));
        response.keys.iter_mut().for_each(|key| self.leave(key));
    }
}

/// A change of a message that is an `M`.
pub(super) fn change_message<M: Message + Default>(
    change: impl Fn(&mut M) + Send + Sync + 'static,
) -> Change {
    Arc::new(move |bytes| {
        let mut message = M::decode(bytes).map_err(|error| Status::internal(error.to_string()))?;
        change(&mut message);
        Ok(message.encode_to_vec().into())
    })
}

/// The changes that make ranges wait for what was written before: what a client reads never goes back, whichever node it reads from.
pub(super) fn linearizable(path: &str) -> Option<Change> {
    fn txn(request: &mut pb::TxnRequest) {
        let operations = request.success.iter_mut().chain(&mut request.failure);
        for operation in operations.filter_map(|operation| operation.request.as_mut()) {
            match operation {
                Op::RequestRange(range) => range.serializable = false,
                Op::RequestTxn(nested) => txn(nested),
                Op::RequestPut(_) | Op::RequestDeleteRange(_) => {}
            }
        }
    }
    match path {
        "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream" => {
            Some(change_message(|range: &mut pb::RangeRequest| range.serializable = false))
        }
        "/etcdserverpb.KV/Txn" => Some(change_message(txn)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn range(key: &'static str, end: &'static str) -> pb::RangeRequest {
        pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
    }

    fn enter(space: &str, mut range: pb::RangeRequest) -> (Bytes, Bytes) {
        Namespace::new(space).enter_range(&mut range);
        (range.key, range.range_end)
    }

    #[test]
    fn ranges_stay_within() {
        for (space, (key, end), entered) in [
            ("n/", ("k", ""), ("n/k", "")),
            ("n/", ("a", "b"), ("n/a", "n/b")),
            ("n/", ("a", "\0"), ("n/a", "n0")),
            ("n/", ("\0", "\0"), ("n/\0", "n0")),
            ("n/", ("", ""), ("", "")),
        ] {
            assert_eq!(enter(space, range(key, end)), (entered.0.into(), entered.1.into()), "{key:?}");
        }
        let space = Namespace(b"\xff\xff".as_slice().into());
        assert_eq!(space.end(), "\0");
        assert_eq!(Namespace(b"a\xff".as_slice().into()).end(), "b");
    }

    #[test]
    fn nested_operations_and_comparisons_are_changed() {
        let put = |key: &'static str| pb::RequestOp {
            request: Some(Op::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() })),
        };
        let nested = |key| pb::TxnRequest { failure: vec![put(key)], ..Default::default() };
        let compare = |key: &'static str| pb::Compare {
            key: key.into(),
            range_end: vec![0].into(),
            ..Default::default()
        };
        let txn = |key| pb::TxnRequest {
            compare: vec![compare(key)],
            success: vec![pb::RequestOp { request: Some(Op::RequestTxn(nested(key))) }, put(key)],
            failure: Vec::new(),
        };
        let mut expected = txn("n/k");
        expected.compare[0].range_end = "n0".into();
        let (enter, _) = Namespace::new("n/").changes("/etcdserverpb.KV/Txn");
        let changed = enter.unwrap()(txn("k").encode_to_vec().into()).unwrap();
        assert_eq!(pb::TxnRequest::decode(changed).unwrap(), expected);
    }

    /// They used to be shown as they are.
    #[test]
    fn keys_of_others_on_a_lease_are_not_shown() {
        let (_, leave) = Namespace::new("n/").changes("/etcdserverpb.Lease/LeaseTimeToLive");
        let keys = ["n/mine", "theirs", "n", "n/"].map(Bytes::from).to_vec();
        let came = pb::LeaseTimeToLiveResponse { keys, ..Default::default() };
        let left = leave.unwrap()(came.encode_to_vec().into()).unwrap();
        assert_eq!(pb::LeaseTimeToLiveResponse::decode(left).unwrap().keys, ["mine", ""]);
    }

    #[test]
    fn what_cannot_be_read_is_not_passed_on() {
        let (enter, _) = Namespace::new("n/").changes("/etcdserverpb.KV/Put");
        assert!(enter.unwrap()(Bytes::from_static(&[0xff])).is_err());
    }
}
