//! What may have a large answer waits for its turn on its connection.

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::join_all;
use futures::poll;
use h2::client::{ResponseFuture, SendRequest};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::hadron::{BalanceSimulateRequest, KeyspaceCreateRequest};
use pb::kv_client::KvClient;
use pb::kv_server::Kv as _;
use pb::maintenance_client::MaintenanceClient;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op;
use prost::Message;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Request;

use super::harness::{Harness, runtime};
use crate::api::kv::Kv;
use crate::api::unsent::{LARGE_WRITES_MAX, LONG_READS_MAX, Turn, Unsent, turn, turn_of_write};
use crate::api::{ServerOptions, Traffic};

/// As long as nobody waits for something that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client that takes the heads of its answers and nothing more.
struct Sleeper(SendRequest<Bytes>);

impl Sleeper {
    async fn connect(address: SocketAddr) -> Sleeper {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) =
            h2::client::Builder::new().initial_window_size(0).handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Sleeper(sender)
    }

    fn call(&mut self, method: &str, message: &impl Message) -> ResponseFuture {
        let request = http::Request::post(format!("http://hadron/{method}"));
        let request = request.header("content-type", "application/grpc").body(()).unwrap();
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(message.encoded_len() as u32);
        message.encode(&mut body).unwrap();
        let (answer, mut stream) = self.0.send_request(request, false).unwrap();
        stream.send_data(body.freeze(), true).unwrap();
        answer
    }
}

/// A client that took no answers was handed the threads and turns that were free next, and did not use them: nobody else had them any more.
#[test]
fn a_client_that_takes_nothing_keeps_nothing_from_others() {
    let options = ServerOptions { threads: 1, ..ServerOptions::default() };
    let harness = Harness::start_with(options, Traffic::Everything);
    let mut view = Some(harness.backend.hold_view());
    harness.run(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        kv.put(pb::PutRequest { value: vec![7; 1 << 20].into(), ..put("large") }).await.unwrap();
        let mut sleeper = Sleeper::connect(harness.address).await;
        let mut waiting = Vec::new();
        let create = KeyspaceCreateRequest { name: "new".into(), replicas: 1, ..Default::default() };
        // Those that begin last for as long as nobody sees the pool, and the others wait for them.
        for _ in 0..2 {
            waiting.push(sleeper.call("hadron.v1.Pool/KeyspaceCreate", &create));
            waiting.push(sleeper.call("hadron.v1.Pool/BalanceSimulate", &BalanceSimulateRequest::default()));
        }
        for _ in 0..2 {
            waiting
                .push(sleeper.call("etcdserverpb.KV/Range", &pb::RangeRequest { key: "x".into(), ..all() }));
        }
        let large = pb::RangeRequest { key: "large".into(), ..Default::default() };
        let answers = (0..32).map(|_| sleeper.call("etcdserverpb.KV/Range", &large)).collect::<Vec<_>>();
        // Whoever drops them gives them up.
        let heads = timeout(PATIENCE, join_all(answers)).await.unwrap();
        assert!(heads.iter().all(Result::is_ok));
        drop(view.take());
        timeout(PATIENCE, kv.range(all())).await.unwrap().unwrap();
        let mut maintenance = MaintenanceClient::new(channel);
        timeout(PATIENCE, maintenance.hash_kv(pb::HashKvRequest::default())).await.unwrap().unwrap();
    });
}

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
