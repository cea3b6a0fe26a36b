//! What may have a large answer waits for its turn on its connection.

use std::pin::pin;

use futures::poll;
use hadron_proto::etcdserverpb as pb;
use pb::kv_server::Kv as _;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op;
use tonic::Request;

use super::harness::{Harness, runtime};
use crate::api::kv::Kv;
use crate::api::unsent::{LARGE_WRITES_MAX, LONG_READS_MAX, Turn, Unsent, turn, turn_of_write};

/// A connection whose turns are taken.
async fn busy() -> (Unsent, Vec<Turn>) {
    let unsent = Unsent::default();
    let mut turns = Vec::new();
    for _ in 0..LONG_READS_MAX {
        turns.push(turn(Some(unsent.clone())).await);
    }
    for _ in 0..LARGE_WRITES_MAX {
        turns.push(turn_of_write(Some(unsent.clone())).await);
    }
    (unsent, turns)
}

fn on<T>(unsent: &Unsent, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(unsent.clone());
    request
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() }
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: key.into(), ..Default::default() }
}

fn txn(operations: Vec<request_op::Request>) -> pb::TxnRequest {
    let success = operations.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect();
    pb::TxnRequest { success, ..Default::default() }
}

/// One connection with many transactions that wrote something and listed everything had all of their answers made at once.
#[test]
fn a_write_with_a_large_answer_waits_for_its_turn() {
    let harness = Harness::start();
    runtime().block_on(async {
        let kv = Kv::new(harness.context.clone());
        let (unsent, turns) = busy().await;
        let also = |operation| on(&unsent, txn(vec![request_op::Request::RequestPut(put("k")), operation]));
        let first = pb::RangeRequest { limit: 1, ..all() };
        kv.put(on(&unsent, put("k"))).await.unwrap();
        kv.txn(also(request_op::Request::RequestRange(first))).await.unwrap();

        let delete_many = pb::DeleteRangeRequest { key: "x".into(), range_end: "z".into(), prev_kv: true };
        let one = || request_op::Request::RequestRange(pb::RangeRequest { range_end: "".into(), ..all() });
        let mut writes = [
            pin!(kv.txn(also(request_op::Request::RequestRange(all())))),
            pin!(kv.txn(also(request_op::Request::RequestTxn(txn(vec![one(); 100]))))),
            pin!(kv.txn(also(request_op::Request::RequestDeleteRange(delete_many.clone())))),
        ];
        let mut delete = pin!(kv.delete_range(on(&unsent, delete_many)));
        for write in &mut writes {
            assert!(poll!(write.as_mut()).is_pending());
        }
        assert!(poll!(delete.as_mut()).is_pending());
        drop(turns);
        for write in writes {
            write.await.unwrap();
        }
        delete.await.unwrap();
    });
}

/// Those with a small limit were read at once, on the thread of the connections, although all keys were looked at.
#[test]
fn a_range_waits_for_its_turn_whatever_its_limit() {
    let harness = Harness::start();
    runtime().block_on(async {
        let kv = Kv::new(harness.context.clone());
        let (unsent, turns) = busy().await;
        kv.range(on(&unsent, pb::RangeRequest { range_end: "".into(), ..all() })).await.unwrap();

        let first = pb::RangeRequest { limit: 1, ..all() };
        let (sort_order, sort_target) = (SortOrder::Descend as i32, SortTarget::Mod as i32);
        let last = pb::RangeRequest { sort_order, sort_target, ..first.clone() };
        let new = pb::RangeRequest { min_mod_revision: 7, ..first.clone() };
        for range in [first, last, new] {
            let mut range = pin!(kv.range(on(&unsent, range)));
            assert!(poll!(range.as_mut()).is_pending());
        }
        drop(turns);
        kv.range(on(&unsent, all())).await.unwrap();
    });
}
