//! The service `KV`: receives a request, checks that it is well-formed and within limits, has it proposed or reads the
//! local replica, and replies. Everything here runs once per request: no logging, no locks, no copies of values.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use hadron_keyspace::auth::Need;
use hadron_keyspace::{Command, check, may_look_at_much};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::request_op;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::caller::Claim;
use super::context::{Context, Learners, mismatch};
use super::error::refusal;
use super::hitters::{bytes_of, first_key};
use super::range_stream::{self, RangeStream};
use super::unsent::{self, Turn, Unsent};
use crate::metrics::Histogram;

/// A write whose answer has no more pairs than this needs no turn: most writes that read look at the key that they compete for.
const FEW_PAIRS: usize = 10;

/// As many keys are counted at once; for more another thread does it.
const FEW_KEYS: usize = 1_000;

/// A transaction that only reads may look at so many times as many keys as one that writes.
const READ_KEYS_FACTOR: usize = 10;

/// What a version takes beside its key and value, by etcd's estimate.
const PUT_OVERHEAD_BYTES: usize = 256;

/// The service.
pub(super) struct Kv<B> {
    context: Arc<Context<B>>,
    /// How long ranges took that were answered.
    ranged: Arc<Histogram>,
    /// How long those took that were refused.
    range_failed: Arc<Histogram>,
}

impl<B: Backend> Kv<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Kv<B> {
        let durations = |success| context.metrics.range_duration.with(&[success]);
        Kv { ranged: durations("true"), range_failed: durations("false"), context }
    }

    async fn answer_range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let serializable = request.get_ref().serializable;
        let learners = if serializable { Learners::Answer } else { Learners::Refuse };
        self.context.admit(request.metadata(), learners).await?;
        let (claim, unsent) = (Claim::of(&request), request.extensions().get::<Unsent>().cloned());
        let range = request.into_inner();
        check::range(&range).map_err(refusal)?;
        let counting = self.context.count_read(&claim, Some(&range.key));
        self.context.metrics.range_total.inc();
        let keyspace = match serializable {
            true => self.context.keyspace()?,
            false => self.context.keyspace_after_barrier().await?,
        };
        let permit = self.context.permit(&claim, Need::Read(&range.key, &range.range_end)).await?;
        // Not before: while there is no leader, those who need none must not wait for those who do.
        let is_long = may_be_long(&range);
        let _turn = if is_long { Some(unsent::turn(unsent).await) } else { None };
        let beside = Arc::clone(&keyspace);
        let mut response = match is_long {
            true => self.context.read_beside(move || beside.range(&range)).await?,
            false => keyspace.range(&range).map_err(refusal)?,
        };
        permit.check_still(&keyspace)?;
        counting.returned(response.kvs.iter().map(bytes_of).sum());
        self.context.complete(&mut response.header, self.context.status().term);
        Ok(unsent::answer(response))
    }

    /// A transaction that writes nothing is read from the local replica instead of being proposed.
    async fn read_txn(
        &self,
        claim: &Claim,
        txn: pb::TxnRequest,
        unsent: Option<Unsent>,
    ) -> Result<pb::TxnResponse, Status> {
        let counting = self.context.count_read(claim, first_key(&txn));
        let keyspace = match is_serializable(&txn) {
            true => self.context.keyspace()?,
            false => self.context.keyspace_after_barrier().await?,
        };
        let command = Command::Txn(txn);
        let permit =
            self.context.permit_if(claim, |now, caller| now.permit_command(caller, &command)).await?;
        let Command::Txn(txn) = command else { return Err(mismatch()) };
        let is_long = may_look_at_much(&txn);
        let _turn = if is_long { Some(unsent::turn(unsent).await) } else { None };
        let beside = Arc::clone(&keyspace);
        let keys_max = self.context.limits.txn_keys.saturating_mul(READ_KEYS_FACTOR);
        let mut response = match is_long {
            true => {
                let read = move || {
                    beside.check_reach(&txn, keys_max)?;
                    beside.read_txn(&txn)
                };
                self.context.read_beside(read).await?
            }
            false => keyspace.read_txn(&txn).map_err(refusal)?,
        };
        permit.check_still(&keyspace)?;
        counting.returned(response.encoded_len());
        self.context.complete(&mut response.header, self.context.status().term);
        Ok(response)
    }

    async fn write_txn(
        &self,
        claim: &Claim,
        txn: pb::TxnRequest,
        unsent: Option<Unsent>,
    ) -> Result<pb::TxnResponse, Status> {
        self.context.check_size(&txn)?;
        let txn = self.check_reach(claim, txn).await?;
        let _turn = turn_of_write(pairs_of_txn(&txn), unsent).await;
        if let Some(bytes) = cost_of_puts(&txn) {
            self.context.check_space(bytes).await?;
        }
        let (response, term) = self.context.write_for(claim, Command::Txn(txn)).await?;
        let hadron_keyspace::Response::Txn(mut response) = response else { return Err(mismatch()) };
        self.context.complete(&mut response.header, term);
        Ok(response)
    }

    /// Refuses a transaction that would hold all replicas up, and gives the others back.
    async fn check_reach(&self, claim: &Claim, txn: pb::TxnRequest) -> Result<pb::TxnRequest, Status> {
        if !may_look_at_much(&txn) {
            return Ok(txn);
        }
        let (keyspace, keys_max) = (self.context.keyspace()?, self.context.limits.txn_keys);
        if keyspace.check_reach(&txn, FEW_KEYS.min(keys_max)).is_ok() {
            return Ok(txn);
        }
        // Whoever may not carry it out is told that, and not how many keys there are.
        let command = Command::Txn(txn);
        self.context.permit_if(claim, |now, caller| now.permit_command(caller, &command)).await?;
        let Command::Txn(txn) = command else { return Err(mismatch()) };
        self.context.read_beside(move || keyspace.check_reach(&txn, keys_max).map(|()| txn)).await
    }
}

/// Whether a range may take so long that the other connections of the thread should not wait for it. Its limit does not tell: all keys
/// are looked at to count them, and to sort or filter them before the cut.
fn may_be_long(range: &pb::RangeRequest) -> bool {
    !range.range_end.is_empty()
}

/// Visits the operations of a transaction and of all that is nested in it, until one satisfies `stop`.
fn any_operation(txn: &pb::TxnRequest, stop: &impl Fn(&request_op::Request) -> bool) -> bool {
    txn.success.iter().chain(&txn.failure).filter_map(|operation| operation.request.as_ref()).any(
        |operation| match operation {
            request_op::Request::RequestTxn(nested) => any_operation(nested, stop),
            operation => stop(operation),
        },
    )
}

/// Waits until a write may begin whose answer may have so many pairs. The answer is made as soon as the write is applied, whether or not
/// there is room for it.
async fn turn_of_write(pairs: usize, unsent: Option<Unsent>) -> Option<Turn> {
    if pairs > FEW_PAIRS { Some(unsent::turn_of_write(unsent).await) } else { None }
}

/// How many pairs the answer to a transaction may have: those of the branch that may have more.
fn pairs_of_txn(txn: &pb::TxnRequest) -> usize {
    let of = |branch: &[pb::RequestOp]| {
        let operations = branch.iter().filter_map(|operation| operation.request.as_ref());
        operations.map(pairs_of).fold(0, usize::saturating_add)
    };
    of(&txn.success).max(of(&txn.failure))
}

fn pairs_of(operation: &request_op::Request) -> usize {
    match operation {
        request_op::Request::RequestRange(range) if range.count_only => 0,
        request_op::Request::RequestRange(range) => {
            let limit = usize::try_from(range.limit).ok().filter(|limit| *limit > 0);
            keys_of(&range.range_end).min(limit.unwrap_or(usize::MAX))
        }
        request_op::Request::RequestPut(put) => usize::from(put.prev_kv),
        request_op::Request::RequestDeleteRange(delete) => pairs_of_delete(delete),
        request_op::Request::RequestTxn(nested) => pairs_of_txn(nested),
    }
}

fn pairs_of_delete(delete: &pb::DeleteRangeRequest) -> usize {
    if delete.prev_kv { keys_of(&delete.range_end) } else { 0 }
}

/// How many keys there may be up to the end of a range.
fn keys_of(range_end: &[u8]) -> usize {
    if range_end.is_empty() { 1 } else { usize::MAX }
}

fn is_read_only(txn: &pb::TxnRequest) -> bool {
    !any_operation(txn, &|operation| !matches!(operation, request_op::Request::RequestRange(_)))
}

/// Whether a read-only transaction may be answered from this replica as it is: all its operations are ranges that say so. As in etcd one
/// with a transaction inside may not, whatever that says.
fn is_serializable(txn: &pb::TxnRequest) -> bool {
    let says_so = |operation: &pb::RequestOp| match &operation.request {
        Some(request_op::Request::RequestRange(range)) => range.serializable,
        _ => false,
    };
    txn.success.iter().chain(&txn.failure).all(says_so)
}

/// What a put adds to the keyspace: etcd's estimate.
fn cost(put: &pb::PutRequest) -> usize {
    put.key.len() + put.value.len() + PUT_OVERHEAD_BYTES
}

/// What the puts of a transaction add, of the branch that has more; `None` if it has none.
fn cost_of_puts(txn: &pb::TxnRequest) -> Option<usize> {
    let of = |branch: &[pb::RequestOp]| {
        let costs = branch.iter().filter_map(|operation| match operation.request.as_ref()? {
            request_op::Request::RequestPut(put) => Some(cost(put)),
            request_op::Request::RequestTxn(nested) => cost_of_puts(nested),
            _ => None,
        });
        costs.reduce(usize::saturating_add)
    };
    of(&txn.success).max(of(&txn.failure))
}

#[tonic::async_trait]
impl<B: Backend> pb::kv_server::Kv for Kv<B> {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let began = Instant::now();
        let ended = self.answer_range(request).await;
        let durations = if ended.is_ok() { &self.ranged } else { &self.range_failed };
        durations.observe(began.elapsed());
        ended
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        let put = request.into_inner();
        check::put(&put).map_err(refusal)?;
        self.context.check_size(&put)?;
        self.context.check_space(cost(&put)).await?;
        self.context.metrics.put_total.inc();
        self.context.metrics.put_bytes.add((put.key.len() + put.value.len()) as u64);
        let (response, term) = self.context.write_for(&claim, Command::Put(put)).await?;
        let hadron_keyspace::Response::Put(mut response) = response else { return Err(mismatch()) };
        self.context.complete(&mut response.header, term);
        Ok(unsent::answer(response))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let (claim, unsent) = (Claim::of(&request), request.extensions().get::<Unsent>().cloned());
        let delete = request.into_inner();
        check::delete_range(&delete).map_err(refusal)?;
        self.context.check_size(&delete)?;
        let _turn = turn_of_write(pairs_of_delete(&delete), unsent).await;
        self.context.metrics.delete_total.inc();
        let (response, term) = self.context.write_for(&claim, Command::DeleteRange(delete)).await?;
        let hadron_keyspace::Response::DeleteRange(mut response) = response else { return Err(mismatch()) };
        self.context.complete(&mut response.header, term);
        Ok(unsent::answer(response))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let (claim, unsent) = (Claim::of(&request), request.extensions().get::<Unsent>().cloned());
        let txn = request.into_inner();
        check::txn(&txn, self.context.limits.txn_operations).map_err(refusal)?;
        self.context.metrics.txn_total.inc();
        let response = match is_read_only(&txn) {
            true => self.read_txn(&claim, txn, unsent).await?,
            false => self.write_txn(&claim, txn, unsent).await?,
        };
        Ok(unsent::answer(response))
    }

    /// History is gone for readers once this is answered. The space is freed afterwards at a measured pace; nothing
    /// that a client can see depends on it, so `physical` is not waited for.
    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        self.context.permit_current(&claim, Need::Root).await?;
        let compact = Command::Compact(request.into_inner());
        let (response, term) = self.context.write_counted(&claim, compact).await?;
        let hadron_keyspace::Response::Compact(mut response) = response else { return Err(mismatch()) };
        self.context.complete(&mut response.header, term);
        Ok(unsent::answer(response))
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let serializable = request.get_ref().serializable;
        let learners = if serializable { Learners::Answer } else { Learners::Refuse };
        self.context.admit(request.metadata(), learners).await?;
        range_stream::check(request.get_ref())?;
        self.context.metrics.range_total.inc();
        let keyspace = match serializable {
            true => self.context.keyspace()?,
            false => self.context.keyspace_after_barrier().await?,
        };
        let (claim, unsent) = (Claim::of(&request), request.extensions().get::<Unsent>().cloned());
        let range = request.into_inner();
        self.context.permit(&claim, Need::Read(&range.key, &range.range_end)).await?;
        let answers = RangeStream::answers(Arc::clone(&self.context), keyspace, claim, range, unsent);
        Ok(Response::new(Box::pin(answers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_txn_inside_a_txn_is_not_answered_from_a_replica_as_it_is() {
        let operation = |request| pb::RequestOp { request: Some(request) };
        let range = |serializable| {
            operation(request_op::Request::RequestRange(pb::RangeRequest {
                key: "k".into(),
                serializable,
                ..Default::default()
            }))
        };
        let txn = |success, failure| pb::TxnRequest { success, failure, ..Default::default() };
        let inner = |txn| operation(request_op::Request::RequestTxn(txn));
        assert!(is_serializable(&txn(vec![], vec![])));
        assert!(is_serializable(&txn(vec![range(true)], vec![range(true)])));
        assert!(!is_serializable(&txn(vec![range(true)], vec![range(false)])));
        for nested in [
            txn(vec![inner(txn(vec![range(true)], vec![]))], vec![]),
            txn(vec![], vec![inner(txn(vec![], vec![]))]),
        ] {
            assert!(!is_serializable(&nested));
            // It is read once this replica has caught up, which shows what it would in its place in the log.
            assert!(is_read_only(&nested));
        }
    }
}
