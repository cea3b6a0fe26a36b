//! `RangeStream`: a range in parts, so that neither side holds a large result whole.
//!
//! Parts are read one at a time, each when the connection took the one before, all at the revision at which the first was read. Header,
//! `more` and `count` are in the last one, as in etcd. A connection has only so many parts that it did not take
//! ([`unsent::part`]).

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use futures::stream::unfold;
use hadron_keyspace::auth::Need;
use hadron_keyspace::{Keyspace, RangePart};
use hadron_proto::etcdserverpb as pb;
use prost::Message as _;
use tonic::Status;

use super::backend::Backend;
use super::caller::{Claim, Permit};
use super::context::Context;
use super::error::refusal;
use super::hitters::bytes_of;
use super::unsent::{self, Turn, Unsent};

/// Keys of the first part; later ones are as many as fit.
const FIRST_KEYS: usize = 10;
/// Bytes of a part, unless a single pair has more.
const PART_BYTES_MAX: usize = 1 << 20;
/// Keys of the largest part: the keyspace looks at no more of them at a time.
const KEYS_MAX: usize = 1000;

/// A range that is being answered.
pub(super) struct RangeStream<B> {
    context: Arc<Context<B>>,
    /// What is read: another replica that comes in its place may know less.
    keyspace: Arc<Keyspace>,
    claim: Claim,
    /// Names the revision once the first part was read.
    request: pb::RangeRequest,
    /// The newest revision when it began; 0 before that.
    revision: i64,
    after: Option<Bytes>,
    keys_max: usize,
    sent: i64,
    /// Of the connection.
    unsent: Option<Unsent>,
    /// Held for the part that the connection has not taken.
    turn: Option<Turn>,
    is_over: bool,
}

impl<B: Backend> RangeStream<B> {
    /// The answers to `request`, which has been checked, from `keyspace`, which is as new as the request wants it.
    pub(super) fn answers(
        context: Arc<Context<B>>,
        keyspace: Arc<Keyspace>,
        claim: Claim,
        request: pb::RangeRequest,
        unsent: Option<Unsent>,
    ) -> impl Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send {
        let range = RangeStream {
            context,
            keyspace,
            claim,
            request,
            revision: 0,
            after: None,
            keys_max: FIRST_KEYS,
            sent: 0,
            unsent,
            turn: None,
            is_over: false,
        };
        unfold(range, async |mut range| {
            // Whoever asks for the next part has taken the one before.
            range.turn = None;
            if range.is_over {
                return None;
            }
            range.turn = Some(unsent::part(range.unsent.clone()).await);
            let answer = range.next().await;
            range.is_over = answer.as_ref().map_or(true, |answer| answer.header.is_some());
            let answer = answer.map(|part| pb::RangeStreamResponse { range_response: Some(part) });
            Some((answer, range))
        })
    }

    async fn next(&mut self) -> Result<pb::RangeResponse, Status> {
        if self.request.count_only {
            return self.count().await;
        }
        let mut kvs = Vec::new();
        loop {
            let part = self.part().await?;
            self.after = part.next;
            kvs.extend(part.kvs);
            let is_full = self.request.limit > 0 && self.sent + kvs.len() as i64 >= self.request.limit;
            if is_full || self.after.is_none() {
                return self.last(kvs).await;
            }
            // A stretch of dead keys is not worth an answer.
            if !kvs.is_empty() {
                break;
            }
        }
        self.sent += kvs.len() as i64;
        let part = pb::RangeResponse { kvs, ..Default::default() };
        self.adjust(part.kvs.len(), part.encoded_len());
        Ok(part)
    }

    async fn part(&mut self) -> Result<RangePart, Status> {
        let (request, after, keys_max) = (self.request.clone(), self.after.take(), self.keys_max);
        let counting = self.context.count_read(&self.claim, Some(&request.key));
        let permit = self.permit().await?;
        let beside = Arc::clone(&self.keyspace);
        let read = move || beside.range_part(&request, after.as_ref(), (keys_max, PART_BYTES_MAX));
        let part = self.context.read_beside(read).await?;
        self.check_still(&permit)?;
        counting.returned(part.kvs.iter().map(bytes_of).sum());
        if self.revision == 0 {
            self.revision = part.revision;
            if self.request.revision <= 0 {
                self.request.revision = part.revision;
            }
        }
        Ok(part)
    }

    /// The next part shall look at about as many keys as it may have.
    fn adjust(&mut self, keys: usize, bytes: usize) {
        if bytes < PART_BYTES_MAX / 2 {
            self.keys_max = (self.keys_max * 2).min(KEYS_MAX);
        } else if keys < self.keys_max / 2 {
            self.keys_max /= 2;
        }
    }

    /// The end of the range, or of what was asked for; counts what is beyond it.
    async fn last(
        &mut self,
        mut kvs: Vec<hadron_proto::mvccpb::KeyValue>,
    ) -> Result<pb::RangeResponse, Status> {
        let mut beyond = 0;
        if let Ok(left) = usize::try_from(self.request.limit - self.sent)
            && left > 0
        {
            beyond = kvs.len().saturating_sub(left) as i64;
            kvs.truncate(left);
        }
        if let Some(after) = &self.after {
            let key = Bytes::from([after.as_ref(), b"\0"].concat());
            let request = pb::RangeRequest { key, count_only: true, ..self.request.clone() };
            beyond += self.count_of(request).await?.count;
        }
        let count = self.sent + kvs.len() as i64 + beyond;
        Ok(pb::RangeResponse { header: self.header(), kvs, more: beyond > 0, count })
    }

    async fn count(&mut self) -> Result<pb::RangeResponse, Status> {
        let response = self.count_of(self.request.clone()).await?;
        self.revision = response.header.unwrap_or_default().revision;
        Ok(pb::RangeResponse { header: self.header(), count: response.count, ..Default::default() })
    }

    async fn count_of(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let counting = self.context.count_read(&self.claim, Some(&request.key));
        let permit = self.permit().await?;
        let beside = Arc::clone(&self.keyspace);
        let response = self.context.read_beside(move || beside.range(&request)).await?;
        counting.returned(0);
        self.check_still(&permit)?;
        Ok(response)
    }

    /// After each part: what was read is still allowed, and was not of a replica that has left meanwhile.
    fn check_still(&self, permit: &Permit) -> Result<(), Status> {
        permit.check_still(&self.keyspace)?;
        self.context.check_still(&self.keyspace)
    }

    /// Before each part: the stream may last, and permissions change.
    async fn permit(&self) -> Result<Permit, Status> {
        self.context.permit(&self.claim, Need::Read(&self.request.key, &self.request.range_end)).await
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.context.header(self.revision, self.context.status().term))
    }
}

/// Refuses what cannot be answered in parts.
pub(super) fn check(range: &pb::RangeRequest) -> Result<(), Status> {
    use hadron_keyspace::check;
    check::range(range).map_err(refusal)?;
    let plain = |range: pb::RangeRequest| check::is_plain_range(&range);
    let unordered = pb::RangeRequest { sort_order: 0, ..range.clone() };
    match (plain(range.clone()), plain(unordered)) {
        (true, _) => Ok(()),
        (false, true) => Err(Status::unimplemented("RangeStream does not support custom sort orders")),
        (false, false) => Err(Status::unimplemented("RangeStream does not support revision filters")),
    }
}
