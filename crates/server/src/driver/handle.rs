//! What the services hold: questions go into the loop, everything else is read beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hadron_balance::{Policy, View, assess, waiting};
use hadron_consensus::{DEFAULT_GROUP, GroupId, Index, NodeId, ROOT_GROUP, Time};
use hadron_keyspace::{Command, Keyspace};
use hadron_node::{Balancer, Board, Catalog, ElectionRecord, Event, GroupBoard, Pool, Report};
use hadron_proto::{etcdserverpb, hadron};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::clock::Clock;
use super::inputs::Inputs;
use super::observe;
use super::reclaim::Reclaimer;
use super::shard::Input;
use super::waiters::{Slot, Waiter};
use crate::api::admission::{Admission, Admitted};
use crate::api::backend::Standing;
use crate::api::hitters::Hitters;
use crate::api::{Backend, GroupStatus, Identity, Unavailable, Written};
use crate::metrics::Metrics;
use crate::tls::Stream;
use crate::transport::{BODY_BYTES_MAX, Transport};

/// A command that is longer cannot be forwarded in one frame together with its envelope.
const COMMAND_BYTES_MAX: usize = BODY_BYTES_MAX / 2;
/// Requests of clients that may wait for an answer; half of them for one keyspace alone.
const WAITING_REQUESTS_MAX: usize = 40_000;
/// Bytes of their commands; likewise.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Asks the node. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    inputs: Inputs,
    board: Arc<Board>,
    transport: Transport,
    identity: Identity,
    clock: Clock,
    admission: Arc<Admission>,
    next_token: AtomicU64,
    balancer: Mutex<Balancer>,
    policy: Policy,
    hitters: Hitters,
    reclaimer: Reclaimer,
}

impl Handle {
    pub(super) fn new(
        inputs: Inputs,
        board: Arc<Board>,
        transport: Transport,
        identity: Identity,
        clock: Clock,
        policy: Policy,
        reclaimer: Reclaimer,
    ) -> Handle {
        let admission = Arc::new(Admission::new(WAITING_REQUESTS_MAX, WAITING_BYTES_MAX));
        let next_token = AtomicU64::new(1);
        let balancer = Mutex::default();
        let hitters = Hitters::default();
        Handle(Arc::new(Inner {
            inputs,
            board,
            transport,
            identity,
            clock,
            admission,
            next_token,
            balancer,
            policy,
            hitters,
            reclaimer,
        }))
    }

    /// The present, on the node's clock.
    pub(super) fn now(&self) -> Time {
        self.0.clock.now()
    }

    /// The pool as this node knows it, for whoever plans.
    pub(super) fn view(&self) -> View {
        self.0.balancer.lock().view(self.now(), &self.0.board, self.0.identity.member_id)
    }

    /// How this node would plan now.
    pub(super) fn policy(&self) -> Policy {
        let is_paused = self.0.board.with_catalog(Catalog::is_paused);
        Policy { balance: self.0.policy.balance && !is_paused, ..self.0.policy.clone() }
    }

    /// The node's public state.
    pub(super) fn board(&self) -> &Board {
        &self.0.board
    }

    /// Requests that wait for their answer.
    pub(super) fn waiting_requests(&self) -> usize {
        self.0.admission.requests()
    }

    /// Sends a request into the loop and waits for its answer.
    /// Whether the node was told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.0.inputs.are_stopping()
    }

    async fn ask<T>(
        &self,
        group: GroupId,
        admitted: Admitted,
        slot: impl FnOnce(oneshot::Sender<Result<T, Unavailable>>) -> Slot,
        event: impl FnOnce(u64) -> Event,
    ) -> Result<T, Unavailable> {
        let board = self.0.board.group(group).ok_or(Unavailable::NoSuchGroup)?;
        let token = self.0.next_token.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let waiter =
            Waiter { slot: slot(sender), group, term: board.term(), began: Instant::now(), admitted };
        let request = Input::Request { token, event: event(token), waiter };
        if !self.0.inputs.request(group, request) {
            return Err(Unavailable::Stopped);
        }
        let mut pending = Pending { handle: self, token, group, is_answered: false };
        let answer = receiver.await;
        pending.is_answered = true;
        // The loop answers everybody before it ends; only a panic in it leads here.
        answer.unwrap_or(Err(Unavailable::Timeout))
    }
}

/// Gives a request up when its future is dropped before the answer.
struct Pending<'a> {
    handle: &'a Handle,
    token: u64,
    group: GroupId,
    is_answered: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let cancel = Input::Cancel { token: self.token, group: self.group };
            self.handle.0.inputs.request(self.group, cancel);
        }
    }
}

impl Backend for Handle {
    async fn write(&self, group: GroupId, command: Command) -> Result<Written, Unavailable> {
        let command = command.to_bytes();
        if command.len() > COMMAND_BYTES_MAX {
            return Err(Unavailable::TooLarge);
        }
        let admitted = self.0.admission.admit(group, command.len())?;
        self.ask(group, admitted, Slot::Write, |token| Event::Write { token, group, command }).await
    }

    async fn read_barrier(&self, group: GroupId) -> Result<(), Unavailable> {
        // Clients ask again for a read that got this, and take `too many requests` for final.
        let in_vain = |error| if error == Unavailable::Busy { Unavailable::Timeout } else { error };
        let admitted = self.0.admission.admit(group, 0).map_err(in_vain)?;
        self.ask(group, admitted, Slot::Other, |token| Event::Read { token, group }).await.map_err(in_vain)
    }

    fn keyspace(&self, group: GroupId) -> Option<Arc<Keyspace>> {
        let board = self.0.board.group(group).filter(|board| !board.quarantined())?;
        Some(board.keyspace.clone())
    }

    fn status(&self, group: GroupId) -> Option<GroupStatus> {
        let board = self.0.board.group(group)?;
        Some(GroupStatus {
            leader: board.leader(),
            term: board.term(),
            commit: Index(board.commit()),
            applied: Index(board.applied()),
            // What is placed votes wherever it is.
            is_learner: self.0.board.is_learner() && group <= DEFAULT_GROUP,
            is_voter: board.is_voter(),
            is_asleep: board.is_asleep(),
        })
    }

    fn group_clock_ms(&self, group: GroupId) -> u64 {
        self.0.board.group(group).map_or(0, |board| board.clock().now_ms(self.0.clock.now()))
    }

    fn members(&self) -> Vec<etcdserverpb::Member> {
        let member = |member: hadron_node::Member| etcdserverpb::Member {
            id: member.id,
            name: member.name,
            peer_ur_ls: member.peer_urls,
            client_ur_ls: member.client_urls,
            is_learner: member.is_learner,
        };
        self.0.board.members().into_iter().map(member).collect()
    }

    fn elections(&self) -> Vec<hadron::Election> {
        let records = self.0.board.elections();
        records.into_iter().map(|record| election(record, self.0.clock)).collect()
    }

    fn log_shares(&self) -> Vec<hadron::LogShares> {
        self.0.board.groups().into_iter().filter_map(|(id, group)| log_shares(id, &group)).collect()
    }

    async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<(), Unavailable> {
        let admitted = self.0.admission.admit(group, 0)?;
        self.ask(group, admitted, Slot::Other, |token| Event::TransferLeader { token, group, to }).await
    }

    async fn lags(&self, group: GroupId) -> Result<Vec<(NodeId, u64)>, Unavailable> {
        let admitted = self.0.admission.admit(group, 0)?;
        self.ask(group, admitted, Slot::Lags, |token| Event::Lags { token, group }).await
    }

    async fn defragment(&self) -> Result<(), &'static str> {
        self.0.reclaimer.reclaim().await
    }

    fn pool(&self) -> Arc<Pool> {
        self.0.board.pool()
    }

    fn with_catalog<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        self.0.board.with_catalog(look)
    }

    fn settled(&self) -> i64 {
        let following = [ROOT_GROUP, DEFAULT_GROUP].into_iter().filter_map(|group| self.0.board.group(group));
        following.map(|group| group.settled()).min().unwrap_or_default()
    }

    fn alive(&self) -> BTreeSet<NodeId> {
        self.0.board.alive()
    }

    async fn connect(&self, node: NodeId) -> io::Result<Stream> {
        self.0.transport.open_calls(node).await
    }

    fn reports(&self) -> BTreeMap<NodeId, Report> {
        self.0.board.reports()
    }

    fn standing(&self) -> Standing {
        let view = self.view();
        let assessment = assess(&view, &self.0.policy);
        Standing { waiting: waiting(&view, &self.0.policy), view, assessment, reports: self.reports() }
    }

    fn outlook(&self) -> (View, Policy) {
        (self.view(), self.policy())
    }

    fn count_read(&self, group: GroupId, bytes: usize) {
        if let Some(board) = self.0.board.group(group) {
            board.uses().count_read(bytes);
        }
    }

    fn hitters(&self) -> &Hitters {
        &self.0.hitters
    }

    fn count_events(&self, group: GroupId, events: usize) {
        if let Some(board) = self.0.board.group(group).filter(|_| events > 0) {
            board.uses().count_events(events);
        }
    }

    fn show(&self, metrics: &Metrics) {
        observe::show(self, metrics);
    }

    fn identity(&self) -> &Identity {
        &self.0.identity
    }
}

fn election(record: ElectionRecord, clock: Clock) -> hadron::Election {
    let shares = record.votes.iter().map(|(node, votes)| hadron::VoteShare {
        node: node.0,
        votes: *votes,
        share: record.share(*node),
    });
    hadron::Election {
        group: record.group.0,
        term: record.term.0,
        winner: if record.won { record.candidate.0 } else { 0 },
        recorded_at_ms: clock.wall_ms(record.at),
        shares: shares.collect(),
    }
}

/// The shares that the leader of a group measured; `None` where this node does not lead.
fn log_shares(id: GroupId, group: &GroupBoard) -> Option<hadron::LogShares> {
    let shares = group.shares();
    let leader = group.leader().filter(|_| !shares.is_empty())?;
    let share = |share: hadron_node::LogShare| hadron::LogShare {
        node: share.node.0,
        share: share.share,
        lag: share.lag,
    };
    Some(hadron::LogShares {
        group: id.0,
        term: group.term().0,
        leader: leader.0,
        shares: shares.into_iter().map(share).collect(),
    })
}
