//! The way into the loops: whoever has something for the node gives it here, and it goes to the shards that it concerns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use hadron_consensus::{GroupId, NodeId};
use hadron_node::{Event, PeerMessage, route, shard_of};
use tokio::sync::OwnedSemaphorePermit;

use super::shard::Input;

/// The queues of a node's shards. Cheap to clone. What is given to a loop that has ended is dropped: nobody wants to know.
#[derive(Clone)]
pub(super) struct Inputs {
    shards: Arc<[Sender<Input>]>,
    is_stopping: Arc<AtomicBool>,
}

impl Inputs {
    /// Queues for so many shards.
    pub(super) fn new(shards: usize) -> (Inputs, Vec<Receiver<Input>>) {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
        (Inputs { shards: senders.into(), is_stopping: Arc::default() }, receivers)
    }

    /// For the shards that the event concerns.
    pub(super) fn event(&self, event: Event) {
        route(event, self.shards.len(), |shard, event| self.to_shard(shard, event));
    }

    /// For one shard, whose question this answers.
    pub(super) fn to_shard(&self, shard: usize, event: Event) {
        self.send(shard, Input::Event(event));
    }

    /// Something that a client wants of `group`. False if its shard has ended.
    pub(super) fn request(&self, group: GroupId, request: Input) -> bool {
        self.send(shard_of(group, self.shards.len()), request)
    }

    /// Messages of another node, in their order. The permit is given back when all shards have taken theirs.
    pub(super) fn messages(&self, from: NodeId, messages: Vec<PeerMessage>, permit: OwnedSemaphorePermit) {
        let permit = Arc::new(permit);
        let shards = self.shards.len();
        if shards == 1 {
            self.send(0, Input::Messages { from, messages, permit });
            return;
        }
        let mut parts: Vec<Vec<PeerMessage>> = vec![Vec::new(); shards];
        for message in messages {
            route(Event::Peer { from, message }, shards, |shard, event| {
                if let Event::Peer { message, .. } = event {
                    parts[shard].push(message);
                }
            });
        }
        for (shard, messages) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            self.send(shard, Input::Messages { from, messages, permit: permit.clone() });
        }
    }

    /// Ends all loops.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for shard in 0..self.shards.len() {
            self.send(shard, Input::Stop);
        }
    }

    /// Whether the loops end: then nobody needs what they still want to be done.
    pub(super) fn are_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    fn send(&self, shard: usize, input: Input) -> bool {
        self.shards.get(shard).is_some_and(|queue| queue.send(input).is_ok())
    }
}
