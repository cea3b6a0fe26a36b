//! Shards: a node's groups are spread over loops that run beside each other, each with a [`Node`] of its own.
//!
//! A group belongs to one shard as long as the process lives. The first shard has the root group, and with it the node's
//! own affairs: it sends heartbeats, publishes, keeps the catalog, and says who is to be connected. It tells the others
//! what has changed ([`crate::Effects::tells`]); they leave it a [`Note`] on the board, which it reads with each heartbeat.
//! `docs/design/2026-11-28-shards.md` has the reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hadron_consensus::{DEFAULT_GROUP, GroupId, NodeId, ROOT_GROUP, Time};
use hadron_keyspace::Keyspace;
use hadron_storage::wal::RecoveredGroup;

use crate::config::Config;
use crate::event::{Effects, Event};
use crate::node::Node;
use crate::peer::PeerMessage;

/// Which of a node's shards a [`Node`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    number: usize,
    count: usize,
}

impl Shard {
    /// It has all groups.
    pub(crate) const ONLY: Shard = Shard { number: 0, count: 1 };

    pub(crate) fn owns(self, group: GroupId) -> bool {
        shard_of(group, self.count) == self.number
    }

    pub(crate) fn is_first(self) -> bool {
        self.number == 0
    }

    pub(crate) fn count(self) -> usize {
        self.count
    }
}

/// The shard to which a group belongs, of so many.
pub fn shard_of(group: GroupId, shards: usize) -> usize {
    match group {
        ROOT_GROUP | DEFAULT_GROUP => 0,
        GroupId(id) => (id % shards.max(1) as u64) as usize,
    }
}

/// Gives an event to the shards that it concerns, of so many. Not for what only one shard is told, because it asked:
/// [`Event::LogDurable`], [`Event::EnginePersisted`] and [`Event::Timer`].
pub fn route(event: Event, shards: usize, mut deliver: impl FnMut(usize, Event)) {
    match event {
        _ if shards <= 1 => deliver(0, event),
        Event::PeerUp { node, incarnation } => {
            (0..shards).for_each(|shard| deliver(shard, Event::PeerUp { node, incarnation }));
        }
        Event::PeerDown { node } => (0..shards).for_each(|shard| deliver(shard, Event::PeerDown { node })),
        Event::HandOver => (0..shards).for_each(|shard| deliver(shard, Event::HandOver)),
        Event::Peer { from, message } if message.is_for_all_shards() => {
            let copy = |message: &PeerMessage| Event::Peer { from, message: message.clone() };
            (0..shards).for_each(|shard| deliver(shard, copy(&message)));
        }
        Event::LogPinned { groups } => {
            let parts = split(groups, shards).into_iter();
            parts.for_each(|(shard, groups)| deliver(shard, Event::LogPinned { groups }));
        }
        Event::PoolChanged => (1..shards).for_each(|shard| deliver(shard, Event::PoolChanged)),
        Event::CatalogReread { revision } => {
            (1..shards).for_each(|shard| deliver(shard, Event::CatalogReread { revision }));
        }
        Event::CatalogChanged { groups, revision } => {
            let parts = split(groups, shards).into_iter();
            parts.for_each(|(shard, groups)| deliver(shard, Event::CatalogChanged { groups, revision }));
        }
        event => deliver(event.group().map_or(0, |group| shard_of(group, shards)), event),
    }
}

fn split(groups: Vec<GroupId>, shards: usize) -> BTreeMap<usize, Vec<GroupId>> {
    let mut parts: BTreeMap<usize, Vec<GroupId>> = BTreeMap::new();
    for group in groups {
        parts.entry(shard_of(group, shards)).or_default().push(group);
    }
    parts
}

/// What the groups of a shard need of the other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The oldest roster that a group which follows it has come to; `None` without such a group.
    pub(crate) settled: Option<i64>,
    /// Where their replicas are.
    pub(crate) nodes: BTreeSet<NodeId>,
}

impl Needs {
    fn add(&mut self, other: &Needs) {
        self.settled = self.settled.into_iter().chain(other.settled).min();
        self.nodes.extend(&other.nodes);
    }
}

/// What a shard leaves on the board for the first one.
#[derive(Clone, Debug, Default)]
struct Note {
    /// When its loop last turned for a heartbeat.
    turned_at: Time,
    /// Since when its oldest batch waits for the log's disk.
    log_waits_since: Option<Time>,
    needs: Needs,
    /// Replicas that were to leave since the revision beside, and are gone.
    gone: Vec<(GroupId, i64)>,
}

/// The notes of all shards but the first.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    by_shard: BTreeMap<usize, Note>,
    /// Counts changes of what is needed.
    needs_changes: u64,
}

impl Notes {
    fn set_needs(&mut self, shard: usize, needs: Needs) {
        let note = self.by_shard.entry(shard).or_default();
        if note.needs != needs {
            note.needs = needs;
            self.needs_changes += 1;
        }
    }

    fn vouches(&self, now: Time, patience_us: u64) -> bool {
        let is_well = |note: &Note| {
            let waits_us = note.log_waits_since.map_or(0, |since| now.micros_since(since));
            now.micros_since(note.turned_at) < patience_us && waits_us < patience_us
        };
        self.by_shard.values().all(is_well)
    }
}

impl Node {
    /// Builds the parts of a node that so many shards drive, the first one's first. Otherwise as [`Node::new`].
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn shards(
        config: &Config,
        count: usize,
        recovered: BTreeMap<GroupId, RecoveredGroup>,
        keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
        now: Time,
    ) -> Result<Vec<Node>, String> {
        let (board, mut recovered) = (Arc::default(), recovered);
        let of_shard = |number: usize| {
            let shard = Shard { number, count };
            let owned = config.groups.iter().filter(|group| shard.owns(group.group)).cloned();
            let config = Config { groups: owned.collect(), ..config.clone() };
            let (own, others) =
                std::mem::take(&mut recovered).into_iter().partition(|(group, _)| shard.owns(*group));
            recovered = others;
            Node::of_shard(shard, Arc::clone(&board), config, own, keyspaces, now)
        };
        (0..count.max(1)).map(of_shard).collect()
    }

    /// Tells the other shards something that the first one knows.
    pub(crate) fn tell_shards(&self, event: Event, effects: &mut Effects) {
        if self.shard.count > 1 {
            effects.tells.push(event);
        }
    }

    /// Leaves word for the first shard that this one turns, and how its log does; with every heartbeat.
    pub(crate) fn leave_note(&mut self) {
        if self.shard.is_first() {
            return;
        }
        let gone = self.gone();
        let mut notes = self.board.notes().lock();
        let note = notes.by_shard.entry(self.shard.number).or_default();
        note.turned_at = self.now;
        note.log_waits_since = self.log.waits_since();
        note.gone = gone;
    }

    /// Whether all shards turn, and the disk keeps up with them.
    pub(crate) fn vouches(&self) -> bool {
        let patience_us = self.config.election_timeout_us / 2;
        let waits_us = self.log.waits_since().map_or(0, |since| self.now.micros_since(since));
        waits_us < patience_us && self.board.notes().lock().vouches(self.now, patience_us)
    }

    /// What the groups of all shards need, for the first one. The others leave what theirs need.
    pub(crate) fn share_needs(&mut self, own: Needs) -> Needs {
        let mut notes = self.board.notes().lock();
        if !self.shard.is_first() {
            notes.set_needs(self.shard.number, own);
            return Needs::default();
        }
        self.needs_seen = notes.needs_changes;
        let mut all = own;
        notes.by_shard.values().for_each(|note| all.add(&note.needs));
        all
    }

    /// Whether other shards need other nodes than when this one looked.
    pub(crate) fn are_needs_new(&self) -> bool {
        self.shard.is_first() && self.board.notes().lock().needs_changes != self.needs_seen
    }

    /// Replicas of other shards that are gone and of which the catalog has not heard, and since which revision they are to leave.
    pub(crate) fn gone_elsewhere(&self) -> Vec<(GroupId, i64)> {
        let notes = self.board.notes().lock();
        let gone = notes.by_shard.values().flat_map(|note| &note.gone);
        self.board.with_catalog(|catalog| {
            let is_meant = |(group, revision): &&(GroupId, i64)| {
                catalog.leaving(*group, self.config.node).is_some_and(|leaving| leaving.revision == *revision)
            };
            gone.filter(is_meant).copied().collect()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_consensus::Term;
    use hadron_storage::engine::{Engine, ModelEngine};

    use super::*;
    use crate::catalog::{self, Catalog, KeyspaceRecord};
    use crate::event::Reply;
    use crate::node::tests::alone;

    /// Of two shards, one for each.
    const GROUPS: [GroupId; 2] = [GroupId(2), GroupId(3)];

    fn routed(event: Event, shards: usize) -> Vec<(usize, Event)> {
        let mut parts = Vec::new();
        route(event, shards, |shard, event| parts.push((shard, event)));
        parts
    }

    fn receivers(event: Event, shards: usize) -> Vec<usize> {
        routed(event, shards).into_iter().map(|(shard, _)| shard).collect()
    }

    #[test]
    fn an_event_goes_to_the_shard_of_its_group_and_what_is_about_nodes_to_all() {
        for (group, shard) in [(0, 0), (1, 0), (2, 2), (3, 0), (4, 1)] {
            assert_eq!(receivers(Event::Read { token: 1, group: GroupId(group) }, 3), [shard], "{group}");
        }
        let from = NodeId(9);
        let heartbeat = PeerMessage::Heartbeat { incarnation: 1, hears: true, vouches: true };
        assert_eq!(receivers(Event::Peer { from, message: heartbeat }, 3), [0, 1, 2]);
        assert_eq!(receivers(Event::PeerDown { node: from }, 3), [0, 1, 2]);
        assert_eq!(receivers(Event::Peer { from, message: PeerMessage::Report(Default::default()) }, 3), [0]);
        assert_eq!(receivers(Event::PoolChanged, 3), [1, 2]);
        assert_eq!(receivers(Event::PoolChanged, 1), [0]);
        let parts = routed(Event::LogPinned { groups: vec![GroupId(1), GroupId(2), GroupId(4)] }, 2);
        assert!(matches!(&parts[..], [(0, Event::LogPinned { groups })] if groups.len() == 3), "{parts:?}");
    }

    /// A node that is alone and leads, of two shards, with their engine.
    struct Shards {
        nodes: Vec<Node>,
        engine: Arc<dyn Engine>,
        now: u64,
        replies: Vec<(u64, Reply)>,
    }

    impl Shards {
        fn new() -> Shards {
            let (config, keyspaces) = alone();
            let nodes = Node::shards(&config, 2, BTreeMap::new(), &keyspaces, Time(1)).unwrap();
            let engine = Arc::new(ModelEngine::new());
            let mut shards = Shards { nodes, engine, now: 1, replies: Vec::new() };
            for number in [0, 1] {
                let mut effects = Effects::default();
                shards.nodes[number].start(Time(1), &mut effects);
                shards.carry_out(number, effects);
            }
            shards
        }

        fn give(&mut self, number: usize, event: Event) {
            self.now += 1_000;
            let mut effects = Effects::default();
            self.nodes[number].step(Time(self.now), event, &mut effects);
            self.nodes[number].settle(Time(self.now), &mut effects);
            self.carry_out(number, effects);
        }

        fn route(&mut self, event: Event) {
            routed(event, 2).into_iter().for_each(|(number, event)| self.give(number, event));
        }

        fn carry_out(&mut self, number: usize, effects: Effects) {
            self.replies.extend(effects.replies);
            effects.tells.into_iter().for_each(|event| self.route(event));
            for job in effects.opens {
                let outcome = job.carry_out(&self.engine, Default::default());
                self.route(Event::Opened { group: job.group, outcome });
            }
            if !effects.log.is_empty() {
                self.give(number, Event::LogDurable { sequence: effects.log_sequence });
            }
        }

        fn make_keyspaces(&mut self) {
            for name in ["a", "b"] {
                let wanted = KeyspaceRecord { name: name.into(), ..Default::default() };
                let board = self.nodes[0].board();
                let made = board.with_catalog(|catalog| catalog.create(&wanted, &[NodeId(1)])).unwrap();
                self.route(Event::Write { token: 5, group: ROOT_GROUP, command: made.to_bytes() });
            }
        }

        fn pass_heartbeat(&mut self) {
            self.now += 100_000;
            (0..2).for_each(|number| self.give(number, Event::Timer));
        }
    }

    #[test]
    fn keyspaces_are_opened_and_led_by_the_shards_that_they_belong_to() {
        let mut shards = Shards::new();
        shards.make_keyspaces();
        for (number, group) in GROUPS.into_iter().enumerate() {
            assert!(shards.nodes[number].replicas[&group].core.is_leader(), "{group}");
            assert!(!shards.nodes[1 - number].replicas.contains_key(&group));
            let command = hadron_keyspace::Command::DigestMark.to_bytes();
            shards.replies.clear();
            shards.route(Event::Write { token: 7, group, command });
            let written = |reply: &Reply| matches!(reply, Reply::Written { term, .. } if *term == Term(1).0);
            assert!(matches!(&shards.replies[..], [(7, reply)] if written(reply)), "{:?}", shards.replies);
        }
        let held: Vec<_> = shards.nodes.iter().map(Node::memory_use).collect();
        assert_eq!(held[0], held[1], "the node's, not the shard's");
    }

    #[test]
    fn a_node_does_not_vouch_for_itself_while_one_of_its_shards_hangs() {
        let mut shards = Shards::new();
        shards.pass_heartbeat();
        assert!(shards.nodes[0].vouches());
        for _ in 0..10 {
            shards.now += 100_000;
            shards.give(0, Event::Timer);
        }
        assert!(!shards.nodes[0].vouches(), "the other one has not turned for a second");
        shards.pass_heartbeat();
        assert!(shards.nodes[0].vouches());
        // A batch that does not become durable.
        let mut effects = Effects::default();
        let now = Time(shards.now);
        shards.nodes[1].log.add_unwatched(now, true);
        for _ in 0..10 {
            shards.now += 100_000;
            for node in &mut shards.nodes {
                node.step(Time(shards.now), Event::Timer, &mut effects);
            }
        }
        assert!(!shards.nodes[0].vouches(), "its log waits");
    }

    /// A shard had yet to hear that a replica was wanted when the board said that it was to leave already: it said that the replica was
    /// gone, and opened it then. The catalog knew of it no more, and it stayed for ever.
    #[test]
    fn a_shard_does_not_say_what_is_gone_before_it_heard_what_was_wanted() {
        let mut shards = Shards::new();
        let (board, group) = (shards.nodes[0].board(), GROUPS[1]);
        let mut late = Vec::new();
        let mut apply = |shards: &mut Shards, command: hadron_keyspace::Command| {
            let mut effects = Effects::default();
            let root = &shards.nodes[0].replicas[&ROOT_GROUP].keyspace;
            let applied = hadron_keyspace::Applied { index: root.applied().index + 1, ..root.applied() };
            root.apply(applied, vec![command.clone()]);
            shards.nodes[0].residents.note(catalog::keys_of(&command));
            shards.nodes[0].refresh_catalog(&mut effects);
            late.extend(effects.tells);
        };
        for name in ["a", "b"] {
            let wanted = KeyspaceRecord { name: name.into(), ..Default::default() };
            let made = board.with_catalog(|catalog| catalog.create(&wanted, &[NodeId(1)])).unwrap();
            apply(&mut shards, made);
        }
        let elsewhere = board.with_catalog(|catalog| catalog.place(group, &[NodeId(2)], "")).unwrap();
        apply(&mut shards, elsewhere);
        assert!(shards.nodes[1].gone().is_empty(), "it has yet to hear of it");
        late.into_iter().for_each(|event| shards.route(event));
        assert!(shards.nodes[1].replicas.contains_key(&group), "it is there until the others do without it");
        assert!(shards.nodes[1].gone().is_empty());
    }

    /// The note may be older than the replica that the catalog wants to leave now.
    #[test]
    fn a_replica_is_gone_only_if_the_note_is_about_it() {
        let mut shards = Shards::new();
        shards.make_keyspaces();
        let board = shards.nodes[0].board();
        let group = GROUPS[1];
        let elsewhere = board.with_catalog(|catalog| catalog.place(group, &[NodeId(2)], "")).unwrap();
        shards.route(Event::Write { token: 6, group: ROOT_GROUP, command: elsewhere.to_bytes() });
        let since =
            board.with_catalog(|catalog: &Catalog| catalog.leaving(group, NodeId(1)).unwrap().revision);
        let note = |gone| board.notes().lock().by_shard.entry(1).or_default().gone = vec![gone];
        note((group, since - 1));
        assert!(shards.nodes[0].gone_elsewhere().is_empty());
        note((group, since));
        assert_eq!(shards.nodes[0].gone_elsewhere(), [(group, since)]);
    }
}
