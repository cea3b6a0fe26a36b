//! The loop of a shard: everything that happens to its groups passes through here, one turn at a time, on one thread.
//!
//! A turn drains what waits, steps the node with each of it, settles once, and hands the effects to those who carry
//! them out. It waits for nothing but its own queue. That queue has no bound of its own, so that nobody who completes
//! something can be held up; what enters it is bounded where it comes from: clients' requests by [`Admission`], peers'
//! messages by the transport's byte permits, completions by what is on its way.
//!
//! [`Admission`]: crate::api::admission::Admission

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use hadron_consensus::{DEFAULT_GROUP, GroupId, NodeId};
use hadron_node::{Effects, Event, GroupBoard, Node, PeerMessage};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tracing::{error, info, warn};

use super::clock::Clock;
use super::fatal::Fatal;
use super::flush::FlushQueue;
use super::inputs::Inputs;
use super::log::LogQueue;
use super::opener::Opener;
use super::snapshots::Snapshots;
use super::start::peers_of;
use super::waiters::{Waiter, Waiters};
use crate::api::Unavailable;
use crate::metrics::{Metrics, Total};
use crate::transport::{MessageBatch, Order, Transport};

/// Inputs taken in one turn. Bounds how long the first of them waits for its effects.
const TURN_INPUTS_MAX: usize = 1_024;

/// A turn that takes longer is slow: etcd's bound for applying an entry.
const SLOW_TURN: Duration = Duration::from_millis(100);

/// Something for the loop.
pub(super) enum Input {
    /// It goes to the node as it is.
    Event(Event),
    /// A client's request: `event` goes to the node, `waiter` waits for the answer to `token`.
    Request {
        /// The same token as in the event.
        token: u64,
        /// What the node is told.
        event: Event,
        /// Who is told the answer.
        waiter: Waiter,
    },
    /// Nobody waits for this request any more.
    Cancel {
        /// The request.
        token: u64,
        /// Its group.
        group: GroupId,
    },
    /// Another node's messages, in their order.
    Messages {
        /// The sender.
        from: NodeId,
        /// What it says.
        messages: Vec<PeerMessage>,
        /// Given back after the turn, which lets the transport read on.
        permit: Arc<OwnedSemaphorePermit>,
    },
    /// End the loop after this turn.
    Stop,
}

/// Those who carry effects out.
#[derive(Clone)]
pub(super) struct Outlets {
    /// To the other shards.
    pub(super) inputs: Inputs,
    /// To other nodes.
    pub(super) transport: Transport,
    /// To the log.
    pub(super) log: LogQueue,
    /// To the engine.
    pub(super) flush: FlushQueue,
    /// To replicas that come here.
    pub(super) opener: Opener,
    /// Snapshots in both directions.
    pub(super) snapshots: Snapshots,
    /// What ends the process.
    pub(super) fatal: Fatal,
}

/// What a loop is made of.
pub(super) struct Setup {
    /// Whose loop it is.
    pub(super) id: NodeId,
    /// Which of the node's shards; the first is 0.
    pub(super) number: usize,
    /// The shard's part of the node, not started.
    pub(super) node: Node,
    /// The process's clock.
    pub(super) clock: Clock,
    /// Where inputs come from.
    pub(super) inputs: Receiver<Input>,
    /// Where effects go.
    pub(super) outlets: Outlets,
    /// How long a client's request may wait.
    pub(super) request_timeout: Duration,
    /// The groups' election timeout.
    pub(super) election_timeout: Duration,
    /// Where changes of leader are counted.
    pub(super) metrics: Arc<Metrics>,
    /// Becomes true once the group `default` has a leader.
    pub(super) ready: watch::Sender<bool>,
}

/// The loop's own state.
pub(super) struct Shard {
    number: usize,
    node: Node,
    clock: Clock,
    inputs: Receiver<Input>,
    outlets: Outlets,
    waiters: Waiters,
    election_timeout: Duration,
    /// Reused by every turn.
    effects: Effects,
    /// Messages of this turn, by receiver. Stays, with its buffers, from turn to turn.
    batches: BTreeMap<(NodeId, Order), MessageBatch>,
    /// When the connection to a node was last lost: tells a lost connection from a slow leader.
    lost_at: HashMap<NodeId, Instant>,
    /// Permits of the messages of this turn.
    permits: Vec<Arc<OwnedSemaphorePermit>>,
    default_group: DefaultGroup,
    busy: Arc<Total>,
    stopping: bool,
}

impl Shard {
    /// A loop that is not running yet.
    pub(super) fn new(setup: Setup) -> Shard {
        let Setup {
            id,
            number,
            node,
            clock,
            inputs,
            outlets,
            request_timeout,
            election_timeout,
            metrics,
            ready,
        } = setup;
        let group = node.board().group(DEFAULT_GROUP).filter(|_| number == 0);
        let busy = metrics.shard_busy.with(&[&number.to_string()]);
        let default_group = DefaultGroup::new(id, group, metrics, ready);
        Shard {
            number,
            busy,
            node,
            clock,
            inputs,
            outlets,
            waiters: Waiters::new(request_timeout),
            election_timeout,
            effects: Effects::default(),
            batches: BTreeMap::new(),
            lost_at: HashMap::new(),
            permits: Vec::new(),
            default_group,
            stopping: false,
        }
    }

    /// Runs until [`Input::Stop`], or until nobody can send any more, or until the node says that it must stop.
    pub(super) fn run(mut self) {
        self.node.start(self.clock.now(), &mut self.effects);
        self.carry_out();
        while !self.stopping {
            let first = self.wait();
            self.turn(first);
        }
        self.waiters.stop();
    }

    /// The next input; `None` when the time of a deadline has come first.
    fn wait(&mut self) -> Option<Input> {
        let mut deadline = self.clock.instant(self.node.deadline());
        if let Some(expiry) = self.waiters.deadline() {
            deadline = deadline.min(expiry);
        }
        match self.inputs.recv_deadline(deadline) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Input::Stop),
        }
    }

    fn turn(&mut self, first: Option<Input>) {
        let began = Instant::now();
        let mut next = first;
        for _ in 0..TURN_INPUTS_MAX {
            let Some(input) = next else { break };
            self.take(input);
            next = self.inputs.try_recv().ok();
        }
        if let Some(input) = next {
            self.take(input);
        }
        self.expire();
        let now = self.clock.now();
        if self.node.deadline() <= now {
            self.node.step(now, Event::Timer, &mut self.effects);
        }
        self.node.settle(now, &mut self.effects);
        self.carry_out();
        self.permits.clear();
        self.default_group.look();
        let took = began.elapsed();
        self.busy.add(took.as_secs_f64());
        self.default_group.count_turn(took);
    }

    fn take(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Event(event) => {
                match &event {
                    Event::PeerDown { node } => drop(self.lost_at.insert(*node, Instant::now())),
                    Event::Destroyed { group } => self.outlets.opener.sweep(*group),
                    _ => {}
                }
                self.node.step(now, event, &mut self.effects);
            }
            Input::Request { token, event, waiter } => {
                self.waiters.add(token, waiter);
                self.node.step(now, event, &mut self.effects);
            }
            Input::Cancel { token, group } => self.cancel(token, group),
            Input::Messages { from, messages, permit } => {
                for message in messages {
                    self.node.step(now, Event::Peer { from, message }, &mut self.effects);
                }
                self.permits.push(permit);
            }
            Input::Stop => self.stopping = true,
        }
    }

    fn cancel(&mut self, token: u64, group: GroupId) {
        if self.waiters.forget(token) {
            self.node.step(self.clock.now(), Event::Cancel { token, group }, &mut self.effects);
        }
    }

    /// Tells those who have waited too long.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((token, waiter)) = self.waiters.take_expired(now) {
            let cancel = Event::Cancel { token, group: waiter.group };
            self.node.step(self.clock.now(), cancel, &mut self.effects);
            let why = self.why_it_took_too_long(&waiter);
            // First the room: whoever has the answer may ask again at once.
            drop(waiter.admitted);
            waiter.slot.fail(why);
        }
    }

    /// etcd tells its clients apart: a leader that failed, a connection that was lost, or neither.
    fn why_it_took_too_long(&self, waiter: &Waiter) -> Unavailable {
        let board = self.node.board();
        let Some(group) = board.group(waiter.group) else { return Unavailable::Timeout };
        if group.term() != waiter.term {
            return Unavailable::TimeoutLeaderFailed;
        }
        // Lost a little before the request began counts too: the leader was already unreachable then.
        let since = waiter.began.checked_sub(self.election_timeout).unwrap_or(waiter.began);
        let lost_at = group.leader().and_then(|leader| self.lost_at.get(&leader));
        match lost_at.is_some_and(|at| *at >= since) {
            true => Unavailable::TimeoutConnectionLost,
            false => Unavailable::Timeout,
        }
    }

    /// Hands the effects of the turn to those who carry them out. The messages go first: other nodes may begin while
    /// this one's disk is still writing.
    fn carry_out(&mut self) {
        let Shard { number, effects, outlets, batches, waiters, .. } = self;
        for (node, message) in effects.sends.drain(..) {
            let order = if message.goes_ahead() { Order::Ahead } else { Order::InTurn };
            let batch = batches.entry((node, order)).or_default();
            if let Err(too_long) = batch.push(|out| message.encode(out)) {
                error!(peer = %format_args!("{:x}", node.0), %too_long, "a message cannot be sent");
            }
        }
        for ((node, order), batch) in batches.iter_mut().filter(|(_, batch)| !batch.is_empty()) {
            outlets.transport.send(*node, batch.take(), *order);
        }
        if !effects.log.is_empty() {
            outlets.log.append(*number, effects.log_sequence, std::mem::take(&mut effects.log));
        }
        for (token, reply) in effects.replies.drain(..) {
            waiters.answer(token, reply);
        }
        effects.flushes.drain(..).for_each(|job| outlets.flush.flush(job));
        effects.sweeps.drain(..).for_each(|(group, sweep)| outlets.flush.sweep(group, sweep));
        effects.destroys.drain(..).for_each(|job| outlets.flush.destroy(job));
        effects.opens.drain(..).for_each(|job| outlets.opener.open(job));
        if let Some(ticket) = effects.persist_engine.take() {
            outlets.flush.persist(*number, ticket);
        }
        effects.snapshots.drain(..).for_each(|job| outlets.snapshots.send(&outlets.transport, job));
        effects.installs.drain(..).for_each(|(ticket, yes)| outlets.snapshots.decide(ticket, yes));
        if !effects.retired.is_empty() {
            outlets.snapshots.retire(std::mem::take(&mut effects.retired));
        }
        effects.tells.drain(..).for_each(|event| outlets.inputs.event(event));
        if std::mem::take(&mut effects.are_peers_new) {
            outlets.transport.set_peers(peers_of(&self.node.board()));
        }
        if let Some(what) = effects.fatal.take() {
            outlets.fatal.report(what);
            self.stopping = true;
        }
    }
}

/// A change of leader in the words that etcd's Raft has for it, since tools look for them.
fn tell_leader(node: NodeId, before: Option<NodeId>, leader: Option<NodeId>, term: u64) {
    let node = node.0;
    match (before.map(|node| node.0), leader.map(|node| node.0)) {
        (Some(before), None) => warn!("raft.node: {node:x} lost leader {before:x} at term {term}"),
        (Some(before), Some(leader)) => {
            info!("raft.node: {node:x} changed leader from {before:x} to {leader:x} at term {term}");
        }
        (None, Some(leader)) => info!("raft.node: {node:x} elected leader {leader:x} at term {term}"),
        (None, None) => {}
    }
    if leader.is_some_and(|leader| leader.0 == node) {
        info!("{node:x} became leader at term {term}");
    }
}

/// Where the group `default` is: notices who leads it, for the log and for those who wait until the node is of use, and how long its
/// entries take.
struct DefaultGroup {
    /// This node.
    node: NodeId,
    group: Option<Arc<GroupBoard>>,
    leader: Option<NodeId>,
    /// The applied index after the last turn.
    applied: u64,
    metrics: Arc<Metrics>,
    ready: watch::Sender<bool>,
}

impl DefaultGroup {
    fn new(
        node: NodeId,
        group: Option<Arc<GroupBoard>>,
        metrics: Arc<Metrics>,
        ready: watch::Sender<bool>,
    ) -> DefaultGroup {
        let applied = group.as_ref().map_or(0, |group| group.applied());
        DefaultGroup { node, group, leader: None, applied, metrics, ready }
    }

    fn count_turn(&mut self, took: Duration) {
        self.metrics.turn_duration.observe(took);
        let Some(group) = &self.group else { return };
        let before = std::mem::replace(&mut self.applied, group.applied());
        if took > SLOW_TURN {
            self.metrics.slow_apply.add(self.applied.saturating_sub(before));
        }
    }

    fn look(&mut self) {
        let Some(group) = &self.group else { return };
        let leader = group.leader();
        if leader == self.leader {
            return;
        }
        let before = std::mem::replace(&mut self.leader, leader);
        tell_leader(self.node, before, leader, group.term().0);
        if leader.is_some() {
            self.metrics.leader_changes_seen.inc();
            self.ready.send_replace(true);
        }
    }
}
