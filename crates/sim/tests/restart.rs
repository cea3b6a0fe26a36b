//! Restarts in states that a crash can leave and that random worlds meet rarely.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{
    DEFAULT_GROUP, Entry, GroupId, Index, LogPosition, NodeId, ROOT_GROUP, Term, Time, chain_checksum,
};
use hadron_keyspace::{Applied, Command, Keyspace};
use hadron_node::{Bootstrap, Config, Effects, Event, Limits, Member, Node};
use hadron_proto::etcdserverpb::PutRequest;
use hadron_storage::disk::MemoryDisk;
use hadron_storage::engine::{Engine, ModelEngine};
use hadron_storage::wal::{Options, Record, RecoveredGroup, Wal};

const POSITION: LogPosition = LogPosition { term: Term(2), index: Index(7), checksum: 77 };

fn config() -> Config {
    let member = |id| Member { id, name: format!("n{id}"), ..Member::default() };
    let pool = Bootstrap::of((1..=3).map(member).collect());
    Config {
        node: NodeId(1),
        incarnation: 2,
        own: member(1),
        roster: pool.roster(),
        groups: pool.groups(NodeId(1)),
        heartbeat_us: 100_000,
        election_timeout_us: 1_000_000,
        seed: 1,
        limits: Limits::default(),
    }
}

/// An engine that holds the state of the default group at `position`, as an installed snapshot leaves it.
fn engine_at(position: LogPosition) -> Arc<ModelEngine> {
    let engine = Arc::new(ModelEngine::new());
    let keyspace = Keyspace::open(engine.clone(), DEFAULT_GROUP.0, Default::default()).unwrap();
    let put = PutRequest { key: "a".into(), value: "1".into(), ..PutRequest::default() };
    let applied =
        Applied { term: position.term.0, index: position.index.0, checksum: position.checksum, stamp_ms: 1 };
    keyspace.apply(applied, vec![Command::Put(put)]);
    let flush = keyspace.take_flush(u64::MAX, usize::MAX).unwrap();
    engine.write(flush.batch()).unwrap();
    engine.persist().unwrap();
    engine
}

fn open_keyspaces(engine: &Arc<ModelEngine>) -> BTreeMap<GroupId, Arc<Keyspace>> {
    let open = |group: GroupId| Keyspace::open(engine.clone(), group.0, Default::default()).unwrap();
    [ROOT_GROUP, DEFAULT_GROUP].map(|group| (group, open(group))).into()
}

/// A follower that restarted with more log than it may hold, all of it applied and flushed, had no reason to fsync its
/// engine, which alone lets the log be cut. It was too full to take entries for ever.
#[test]
fn a_log_that_is_too_large_at_the_start_is_cut_although_nothing_is_flushed() {
    let data = Bytes::from(vec![1; 1 << 10]);
    let mut previous = LogPosition::default();
    let entries = (1..=POSITION.index.0).map(|index| {
        let (term, index) = (Term(1), Index(index));
        let checksum = chain_checksum(previous.checksum, DEFAULT_GROUP, term, index, &data);
        previous = LogPosition { term, index, checksum };
        Entry { term, index, checksum, data: data.clone() }
    });
    let log = RecoveredGroup { entries: entries.collect(), ..RecoveredGroup::default() };
    let engine = engine_at(previous);
    let limits = Limits { node_log_bytes: 4 << 10, persist_interval_us: 1_000_000, ..Limits::default() };
    let config = Config { limits, ..config() };
    let recovered = [(DEFAULT_GROUP, log)].into();
    let mut node = Node::new(config, recovered, &open_keyspaces(&engine), Time(1)).unwrap();
    let mut effects = Effects::default();
    node.start(Time(1), &mut effects);
    node.step(Time(1_000_001), Event::Timer, &mut effects);
    node.settle(Time(1_000_001), &mut effects);
    let ticket = effects.persist_engine.expect("an fsync of the engine");
    node.step(Time(1_100_000), Event::EnginePersisted { ticket }, &mut effects);
    assert!(node.memory_use().log <= 4 << 10, "{:?}", node.memory_use());
}

/// A snapshot is durable in the engine before the log knows its floor. After a crash in between the log ends before the
/// engine, and took the leader's next entry for one after a gap: the node stopped. So the floor is logged at the start.
#[test]
fn a_crash_between_a_snapshot_and_its_floor_leaves_a_log_that_can_go_on() {
    let engine = engine_at(POSITION);
    let options = || Options { segment_bytes: 64 << 10, log_id: 1, ballast_bytes: 0 };
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, recovered) = Wal::open(disk.clone(), Path::new("/log"), options()).unwrap();
    let mut node = Node::new(config(), recovered.groups, &open_keyspaces(&engine), Time(1)).unwrap();
    let mut effects = Effects::default();
    node.start(Time(1), &mut effects);
    assert!(effects.log.contains(&Record::Floor(DEFAULT_GROUP, POSITION)), "{:?}", effects.log);

    wal.append(&effects.log).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, recovered) = Wal::open(disk, Path::new("/log"), options()).unwrap();
    assert_eq!(recovered.groups[&DEFAULT_GROUP].floor, POSITION);
    let mut node = Node::new(config(), recovered.groups, &open_keyspaces(&engine), Time(1)).unwrap();
    let mut effects = Effects::default();
    node.start(Time(1), &mut effects);
    assert!(effects.log.is_empty(), "once is enough: {:?}", effects.log);
}
