//! What locks and elections have in common: a queue of keys, one for each contender, bound to its lease. The key that
//! was created first owns the queue.
//!
//! Everything is done through the services that clients use, in the name of the caller: what they check and count is
//! checked and counted here too. Keys are those of etcd's own recipe, so contenders that use a client library's recipe
//! and those that call the service queue up together.
//!
//! Invariants:
//! - Whoever waits is told only of what a quorum has confirmed: after each wake-up the queue is read anew, linearizably.
//! - A contender whose key is gone (its lease has ended) is told so, and never waits for others.
//! - A contender that gives up waiting (its call is dropped) leaves the queue, whether or not it knows yet that it is there.
//! - Calls with the same lease share a place, such as one that its client gave up and the next one, on another node. It belongs to whoever came
//!   last: each call takes it over by writing its key, and removes only what nobody has written to since. So nobody can remove what another call
//!   has told its client that it owns, however late: whoever wins has the key's last write. A call that finds the lease in the queue and ends before
//!   it has looked leaves only if somebody is before it: then no call of that lease can have been told anything.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hadron_keyspace::auth::Need;
use hadron_keyspace::{Keyspace, WatchOptions, WatchStream};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_server::Kv as _;
use pb::lease_server::Lease as _;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request as Operation;
use pb::response_op::Response as Done;
use pb::watch_create_request::FilterType;
use tokio::time::sleep;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::backend::Backend;
use super::caller::{Claim, CommonName, TOKEN_KEYS};
use super::context::Context;
use super::error::EtcdError;
use super::kv::Kv;
use super::lease::Lease;
use super::span::Caller;

/// What a contender without a lease gets, in seconds: etcd's.
const LEASE_TTL: i64 = 60;
/// How often a contender that gave up tries to leave its queue.
const LEAVE_TRIES_MAX: usize = 50;
/// Between two tries.
const LEAVE_PAUSE: Duration = Duration::from_millis(200);

/// A caller's way to the services of this node.
pub(super) struct Session<B> {
    context: Arc<Context<B>>,
    metadata: MetadataMap,
    /// Who the caller is without a token, and where that is.
    common_name: Option<CommonName>,
    caller: Option<Caller>,
}

impl<B> Clone for Session<B> {
    fn clone(&self) -> Session<B> {
        let (metadata, common_name) = (self.metadata.clone(), self.common_name.clone());
        Session { context: Arc::clone(&self.context), metadata, common_name, caller: self.caller }
    }
}

/// Watches, and the replica that they are of.
pub(super) struct Watching {
    keyspace: Arc<Keyspace>,
    watches: WatchStream,
}

/// A contender's place in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its key.
    pub(super) key: Bytes,
    /// The revision that created the key.
    pub(super) revision: i64,
}

/// Why a contender does not own the queue.
pub(super) enum Lost {
    /// Its key is gone: the lease ended, or somebody deleted it.
    Place,
    /// Something failed; it left the queue if that was possible.
    Call(Status),
}

impl From<Status> for Lost {
    fn from(status: Status) -> Lost {
        Lost::Call(status)
    }
}

/// The keys of a queue begin so.
fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The first key after those: the slash becomes the byte after it.
fn end_of_prefix(name: &[u8]) -> Bytes {
    [name, b"0"].concat().into()
}

/// The key of the contender with this lease.
fn key_of(name: &[u8], lease: i64) -> Bytes {
    [name, format!("/{lease:x}").as_bytes()].concat().into()
}

/// etcd's services of this kind are clients themselves, whose errors have lost their codes.
pub(super) fn without_code(status: Status) -> Status {
    Status::unknown(status.message())
}

impl<B: Backend> Session<B> {
    /// In the name of whoever sent `request`.
    pub(super) fn new<T>(context: &Arc<Context<B>>, request: &Request<T>) -> Session<B> {
        let (common_name, caller) =
            (request.extensions().get().cloned(), request.extensions().get().copied());
        Session { context: Arc::clone(context), metadata: request.metadata().clone(), common_name, caller }
    }

    /// The same in the name of whoever that is now, who may read the queue: a token may end, or be older than a change of users, and what was begun
    /// with it does not end for that.
    pub(super) async fn by_name(mut self, name: &[u8]) -> Result<Session<B>, Status> {
        let claim = Claim::of(&self.request(()));
        let need = (prefix(name), end_of_prefix(name));
        let permit = self.context.permit(&claim, Need::Read(&need.0, &need.1)).await?;
        if let Some(caller) = permit.caller {
            self.common_name = Some(CommonName(caller.name.into()));
            TOKEN_KEYS.iter().for_each(|key| drop(self.metadata.remove(*key)));
        }
        Ok(self)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::from_parts(self.metadata.clone(), Default::default(), message);
        if let Some(name) = &self.common_name {
            request.extensions_mut().insert(name.clone());
        }
        if let Some(caller) = self.caller {
            request.extensions_mut().insert(caller);
        }
        request
    }

    fn kv(&self) -> Kv<B> {
        Kv::new(Arc::clone(&self.context))
    }

    pub(super) async fn range(&self, range: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.kv().range(self.request(range)).await.map(Response::into_inner)
    }

    async fn txn(&self, txn: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.kv().txn(self.request(txn)).await.map(Response::into_inner)
    }

    pub(super) async fn delete(&self, key: Bytes) -> Result<pb::DeleteRangeResponse, Status> {
        let delete = pb::DeleteRangeRequest { key, ..Default::default() };
        self.kv().delete_range(self.request(delete)).await.map(Response::into_inner)
    }

    /// `lease`, or a new one for 0.
    pub(super) async fn lease(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let grant = pb::LeaseGrantRequest { ttl: LEASE_TTL, id: 0 };
        let granted = Lease::new(Arc::clone(&self.context)).lease_grant(self.request(grant)).await?;
        Ok(granted.into_inner().id)
    }

    /// The first key of the queue, with the header of the read.
    pub(super) async fn owner(
        &self,
        name: &[u8],
    ) -> Result<(Option<pb::ResponseHeader>, Option<KeyValue>), Status> {
        let response = self.range(by_creation(name, SortOrder::Ascend, 0)).await?;
        Ok((response.header, response.kvs.into_iter().next()))
    }

    /// Waits until one of the keys is deleted at `since` or later, or until the watch ends for any reason: the caller looks
    /// again in any case.
    async fn wait_for_deletion(&self, keys: &[Bytes], since: i64) -> Result<(), Status> {
        let deletion = |key: &Bytes| pb::WatchCreateRequest {
            key: key.clone(),
            start_revision: since,
            filters: vec![FilterType::Noput as i32],
            ..Default::default()
        };
        self.wait_for_event(keys.iter().map(deletion).collect()).await
    }

    /// Waits until something is in the queue that was put there at `since` or later, or until the watch ends.
    pub(super) async fn wait_for_contender(&self, name: &[u8], since: i64) -> Result<(), Status> {
        let watch = pb::WatchCreateRequest {
            key: prefix(name),
            range_end: end_of_prefix(name),
            start_revision: since,
            filters: vec![FilterType::Nodelete as i32],
            ..Default::default()
        };
        self.wait_for_event(vec![watch]).await
    }

    async fn wait_for_event(&self, watches: Vec<pb::WatchCreateRequest>) -> Result<(), Status> {
        let mut watches = self.watch(watches)?;
        loop {
            let response = self.next(&mut watches).await?;
            if response.canceled || !response.events.is_empty() {
                return Ok(());
            }
        }
    }

    /// Watches on this node's replica. The caller has read what it watches, and so may.
    pub(super) fn watch(&self, requests: Vec<pb::WatchCreateRequest>) -> Result<Watching, Status> {
        // So that whoever waits hears that its keyspace is deleted, and not that a replica is not here.
        self.context.check_here()?;
        let keyspace = self.context.keyspace()?;
        let mut watches = keyspace.watch_stream(WatchOptions::default());
        requests.into_iter().for_each(|request| watches.create(request));
        Ok(Watching { keyspace, watches })
    }

    /// Refuses a caller who may not read `key` any more.
    pub(super) async fn check_reads(&self, key: &Bytes) -> Result<(), Status> {
        let claim = Claim::of(&self.request(()));
        self.context.permit(&claim, Need::Read(key, &Bytes::new())).await.map(drop)
    }

    /// The next response of what is watched, with its header. Fails when the keyspace is deleted.
    pub(super) async fn next(&self, watching: &mut Watching) -> Result<pb::WatchResponse, Status> {
        let Watching { keyspace, watches } = watching;
        let mut response = tokio::select! {
            response = poll_fn(|task| watches.poll_next(task)) => response,
            gone = self.context.gone(keyspace) => return Err(gone),
        };
        self.context.complete(&mut response.header, self.context.status().term);
        Ok(response)
    }

    /// Leaves the queue.
    pub(super) async fn leave(&self, place: &Place) -> Result<pb::TxnResponse, Status> {
        self.delete_if(&place.key, created_at(&place.key, place.revision)).await
    }

    async fn delete_if(&self, key: &Bytes, compare: pb::Compare) -> Result<pb::TxnResponse, Status> {
        let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
        self.txn_if(compare, Operation::RequestDeleteRange(delete)).await
    }

    /// Does `then` if `compare` holds.
    pub(super) async fn txn_if(
        &self,
        compare: pb::Compare,
        then: Operation,
    ) -> Result<pb::TxnResponse, Status> {
        let success = vec![pb::RequestOp { request: Some(then) }];
        self.txn(pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() }).await
    }
}

/// What becomes of a place when the call that took it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The lease was in the queue before: what it had before it asked stays with it, which is so if nobody is before it.
    LeavesIfNotFirst,
    /// It came to the queue, or waits in it: no call before it can have told its client that it owns the queue.
    Leaves,
    /// It owns the queue.
    Stays,
}

/// Who stands where in a queue.
#[derive(Clone)]
struct Contender<B> {
    session: Session<B>,
    name: Bytes,
    place: Place,
    /// The revision of its last write to its key.
    written: i64,
}

/// A contender in its queue. Leaves that when it is dropped: a caller that hung up must not get what it will not give back.
pub(super) struct Candidacy<B: Backend> {
    contender: Contender<B>,
    /// What its key held when it came, if it was there.
    said: Option<Bytes>,
    ending: Ending,
}

impl<B: Backend> Candidacy<B> {
    pub(super) fn place(&self) -> &Place {
        &self.contender.place
    }

    /// Whether its key was there and holds something else.
    pub(super) fn says_other_than(&self, value: &Bytes) -> bool {
        self.said.as_ref().is_some_and(|said| said != value)
    }

    /// Its caller wrote its key, and got this header.
    pub(super) fn wrote(&mut self, header: Option<&pb::ResponseHeader>) {
        self.contender.written = header.map_or(self.contender.written, |header| header.revision);
    }

    /// Waits until it is the first in its queue, and stays there. The header is that of what showed it.
    pub(super) async fn win(mut self) -> Result<Option<pb::ResponseHeader>, Lost> {
        let contender = self.contender.clone();
        let (session, Place { key, revision }) = (&contender.session, &contender.place);
        loop {
            // Only the one right before: when an owner goes, one contender wakes up, not all.
            let before = contender.before().await?;
            // Not before that: a key that is there with its revision has been there all the time.
            let own = session.range(pb::RangeRequest { key: key.clone(), ..Default::default() }).await?;
            let own_kv = own.kvs.first().filter(|kv| kv.create_revision == *revision).ok_or(Lost::Place)?;
            let Some(older) = before.kvs.into_iter().next() else {
                self.ending = Ending::Stays;
                let is_last = own_kv.mod_revision == contender.written;
                return if is_last { Ok(own.header) } else { contender.take_over().await };
            };
            self.ending = Ending::Leaves;
            let since = before.header.unwrap_or_default().revision + 1;
            session.wait_for_deletion(&[key.clone(), older.key], since).await?;
        }
    }
}

impl<B: Backend> Drop for Candidacy<B> {
    fn drop(&mut self) {
        // Without a runtime the node stops, and the lease ends the candidacy.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.ending != Ending::Stays {
            runtime.spawn(self.contender.clone().leave_at_last(self.ending == Ending::Leaves));
        }
    }
}

impl<B: Backend> Contender<B> {
    /// Who is right before it in the queue.
    async fn before(&self) -> Result<pb::RangeResponse, Status> {
        self.session.range(by_creation(&self.name, SortOrder::Descend, self.place.revision - 1)).await
    }

    /// Writes its key as it is: whoever wrote it last may leave, and then this one has no place either.
    async fn take_over(&self) -> Result<Option<pb::ResponseHeader>, Lost> {
        let Place { key, revision } = &self.place;
        let put =
            pb::PutRequest { key: key.clone(), ignore_value: true, ignore_lease: true, ..Default::default() };
        let response = self.session.txn_if(created_at(key, *revision), Operation::RequestPut(put)).await?;
        if response.succeeded { Ok(response.header) } else { Err(Lost::Place) }
    }

    /// Leaves the queue, also if there is no leader just now: the lease may live on, and all others would wait for its end.
    async fn leave_at_last(self, leaves_if_first: bool) {
        for _ in 0..LEAVE_TRIES_MAX {
            match self.leave(leaves_if_first).await {
                Err(status) if may_succeed_later(&status) => sleep(LEAVE_PAUSE).await,
                _ => return,
            }
        }
    }

    /// Not if another call has written the key since.
    async fn leave(&self, leaves_if_first: bool) -> Result<(), Status> {
        if !leaves_if_first && self.before().await?.kvs.is_empty() {
            return Ok(());
        }
        let key = &self.place.key;
        self.session.delete_if(key, written_at(key, self.written)).await.map(drop)
    }
}

fn may_succeed_later(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
}

/// The key of the queue that was created first, or last before a revision (0 for no bound).
fn by_creation(name: &[u8], order: SortOrder, max_create_revision: i64) -> pb::RangeRequest {
    pb::RangeRequest {
        key: prefix(name),
        range_end: end_of_prefix(name),
        limit: 1,
        sort_order: order as i32,
        sort_target: SortTarget::Create as i32,
        max_create_revision,
        ..Default::default()
    }
}

/// The key was created at `revision`.
pub(super) fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    equal(key, CompareTarget::Create, TargetUnion::CreateRevision(revision))
}

/// The key was written at `revision`, and not since.
fn written_at(key: &Bytes, revision: i64) -> pb::Compare {
    equal(key, CompareTarget::Mod, TargetUnion::ModRevision(revision))
}

fn equal(key: &Bytes, target: CompareTarget, value: TargetUnion) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: target as i32,
        key: key.clone(),
        target_union: Some(value),
        ..Default::default()
    }
}

/// Enters the queue with `value`, or takes the place over that the lease has in it, with what it says there: whoever asked may have been given up
/// long before that is done, and another call may have said something since. If the caller goes away meanwhile, what comes of it is dropped, and
/// leaves the queue. The header is that of the write.
pub(super) async fn enter<B: Backend>(
    session: &Session<B>,
    name: &[u8],
    lease: i64,
    value: Bytes,
) -> Result<(Candidacy<B>, Option<pb::ResponseHeader>), Status> {
    // Waits for a leader, but only as long as the caller does. A write that waits goes on, and would come when the lease's next call waits in the same
    // place. (It still does if the leader is lost between the two: that call is told that its lease has ended, and has to come again.)
    session.range(pb::RangeRequest { key: key_of(name, lease), ..Default::default() }).await?;
    let entering = enter_at(session.clone(), Bytes::copy_from_slice(name), lease, value);
    // Not given up with the caller: what is on its way would be in the queue, and nobody would know.
    tokio::spawn(entering).await.map_err(|_| EtcdError::Stopped)?
}

async fn enter_at<B: Backend>(
    session: Session<B>,
    name: Bytes,
    lease: i64,
    value: Bytes,
) -> Result<(Candidacy<B>, Option<pb::ResponseHeader>), Status> {
    let key = key_of(&name, lease);
    let put = |put| vec![pb::RequestOp { request: Some(Operation::RequestPut(put)) }];
    let come = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    let take_over = pb::PutRequest { ignore_value: true, prev_kv: true, value: Bytes::new(), ..come.clone() };
    let compare = vec![created_at(&key, 0)];
    let response =
        session.txn(pb::TxnRequest { compare, success: put(come), failure: put(take_over) }).await?;
    let written = response.header.unwrap_or_default().revision;
    let there = response.responses.into_iter().find_map(|done| match done.response {
        Some(Done::ResponsePut(put)) => put.prev_kv,
        _ => None,
    });
    let (revision, ending) = match &there {
        Some(there) => (there.create_revision, Ending::LeavesIfNotFirst),
        None => (written, Ending::Leaves),
    };
    let said = there.map(|there| there.value);
    let place = Place { key, revision };
    let contender = Contender { session, name, place, written };
    Ok((Candidacy { contender, said, ending }, response.header))
}
