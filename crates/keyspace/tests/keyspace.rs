//! What scripts cannot show: damage, pins, readers beside apply, snapshots that fail.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use common::{Client, Entry, FailingEngine, Fault, GROUP, Replica};
use hadron_keyspace::{
    Applied, Command, DestroyedSweep, Error, Exporter, Importer, Keyspace, OpenError, Options, Owner,
    Response, Scrub, SnapshotError, ValueCache, WatcherCounts,
};
use hadron_proto::etcdserverpb as pb;
use hadron_storage::engine::{Change, Engine, KEY_BYTES_MAX, ModelEngine, Read, Space};
use pb::compare;
use pb::request_op::Request;
use prost::Message;

fn put(key: &str, value: impl Into<bytes::Bytes>) -> Command {
    Command::Put(pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() })
}

fn all(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() }
}

/// The only key of a space that a keyspace of this test wrote.
fn only_key(engine: &FailingEngine, space: Space) -> bytes::Bytes {
    let mut found = None;
    engine
        .scan(space, &[], &[255; 16], &mut |key, _| {
            found = Some(bytes::Bytes::copy_from_slice(key));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    found.unwrap()
}

/// A key is part of its version's record, not of the record's key: it may be as long as a request.
#[test]
fn a_key_may_be_longer_than_those_of_the_engine() {
    let mut replica = Replica::new(Options::default());
    let key = "k".repeat(2 * KEY_BYTES_MAX);
    let grant = Command::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 9 });
    let bound = pb::PutRequest { key: key.clone().into(), value: "v".into(), lease: 1, ..Default::default() };
    replica.follow(&[(1, vec![grant, Command::Put(bound)])]);
    replica.flush_all();
    replica.open().unwrap();
    let found = replica.keyspace.range(&all(0)).unwrap().kvs;
    assert_eq!((found[0].key.as_ref(), found[0].value.as_ref()), (key.as_bytes(), &b"v"[..]));
}

/// A comparison of the values of a range fetched all of them, under the lock, before it looked at the first.
#[test]
fn a_comparison_of_many_values_reads_no_further_than_it_must() {
    const KEYS: usize = 2500;
    let txn = |value: &str, compared: compare::CompareResult, writes: bool| {
        let compare = pb::Compare {
            result: compared as i32,
            target: compare::CompareTarget::Value as i32,
            key: "k".into(),
            range_end: "l".into(),
            target_union: Some(compare::TargetUnion::Value(value.to_owned().into())),
        };
        let put = pb::PutRequest { key: "z".into(), ..Default::default() };
        let put = pb::RequestOp { request: Some(Request::RequestPut(put)) };
        pb::TxnRequest {
            compare: vec![compare],
            success: if writes { vec![put] } else { vec![] },
            ..Default::default()
        }
    };
    let mut replica = Replica::new(Options::default());
    let puts = (0..KEYS).map(|number| put(&format!("k{number:04}"), if number == 1500 { "x" } else { "v" }));
    let mut log = vec![(1, puts.collect::<Vec<_>>())];
    replica.follow(&log);
    replica.flush_all();
    // Values from here on cannot be read.
    for (key, _) in replica.present(Space::Values).split_off(1501) {
        replica.engine.model.damage(Space::Values, key);
    }
    replica.open().unwrap();
    let succeeded = |replica: &Replica, log: &[Entry]| match replica.follow(log).pop().unwrap().unwrap() {
        Response::Txn(response) => response.succeeded,
        other => panic!("{other:?}"),
    };
    log.push((2, vec![Command::Txn(txn("v", compare::CompareResult::Equal, true))]));
    assert!(!succeeded(&replica, &log));
    let read = replica.keyspace.read_txn(&txn("v", compare::CompareResult::Equal, false)).unwrap();
    assert!(!read.succeeded);
    // Of all of them, where all count.
    let beyond = replica.keyspace.read_txn(&txn("w", compare::CompareResult::NotEqual, false));
    assert!(matches!(beyond, Err(Error::Storage(_))), "{beyond:?}");
    let sound = Replica::new(Options::default());
    sound.follow(&log[..1]);
    log[1].1 = vec![Command::Txn(txn("w", compare::CompareResult::NotEqual, true))];
    assert!(succeeded(&sound, &log));
}

#[test]
fn damaged_metadata_is_noticed_at_open() {
    let replica = Replica::new(Options::default());
    replica.follow(&[(1, vec![put("k", "v")])]);
    replica.flush_all();
    let key = only_key(&replica.engine, Space::Versions);
    let mut record = replica.engine.get(Space::Versions, &key).unwrap().unwrap().to_vec();
    record[17] ^= 1;
    replica.engine.write(vec![Change::Put(Space::Versions, key.clone(), record.into())]).unwrap();
    let opened = Keyspace::open(replica.engine.clone(), GROUP, Options::default());
    assert!(matches!(opened, Err(OpenError::Damaged { .. })));
    replica.engine.write(vec![Change::Delete(Space::Versions, key)]).unwrap();
    let opened = Keyspace::open(replica.engine.clone(), GROUP, Options::default());
    assert!(matches!(opened, Err(OpenError::Damaged { .. })));
}

/// The engine did not give what a key was before. The watcher got its event without that, as if it had been compacted.
#[test]
fn a_watcher_is_not_told_that_nothing_was_before_because_it_cannot_be_read() {
    let mut replica = Replica::new(Options::default());
    let log = [(1, vec![put("k", "first")]), (2, vec![put("k", "second")])];
    replica.follow(&log[..1]);
    replica.flush_all();
    // Nothing is in the cache then.
    replica.crash(usize::MAX);
    let mut client = Client::new(&replica.keyspace);
    client.stream.create(pb::WatchCreateRequest { key: "k".into(), prev_kv: true, ..Default::default() });
    assert!(client.next().unwrap().created);
    replica.follow(&log);
    replica.engine.set_fault(Some(Fault { after: 0, lasting: true }));
    let response = client.next().unwrap();
    assert!(response.canceled && response.events.is_empty(), "{response:?}");
    assert!(response.cancel_reason.contains("made to fail"), "{response:?}");
}

#[test]
fn a_damaged_value_is_not_served() {
    let mut replica = Replica::new(Options::default());
    replica.follow(&[(1, vec![put("k", "v")])]);
    replica.flush_all();
    let key = only_key(&replica.engine, Space::Values);
    replica.engine.write(vec![Change::Put(Space::Values, key, "x".into())]).unwrap();
    assert!(replica.keyspace.range(&all(0)).is_ok(), "still in the cache");
    replica.crash(usize::MAX);
    assert!(matches!(replica.keyspace.range(&all(0)), Err(Error::Storage(_))));
}

/// Events that waited for a client which read nothing kept the whole entries alive that they came in, uncounted.
#[test]
fn what_waits_for_a_slow_client_keeps_no_entry_alive() {
    struct Entry(Bytes, #[allow(dead_code)] Arc<()>);
    impl AsRef<[u8]> for Entry {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let replica = Replica::new(Options::default());
    let mut client = Client::new(&replica.keyspace);
    client.stream.create(pb::WatchCreateRequest { key: "k".into(), ..Default::default() });
    assert!(client.next().unwrap().created);
    let alive = Arc::new(());
    let entry = Bytes::from_owner(Entry(put("k", vec![7; 1000]).to_bytes(), alive.clone()));
    let command = Command::decode(entry).unwrap();
    replica.keyspace.apply(Applied { index: 1, ..Applied::default() }, vec![command]);
    replica.flush_all();
    // The engine of this test does not copy either.
    let key = only_key(&replica.engine, Space::Values);
    replica.engine.write(vec![Change::Delete(Space::Values, key)]).unwrap();
    replica.engine.persist().unwrap();
    assert_eq!(Arc::strong_count(&alive), 1, "neither the state nor the watcher has it");
    assert_eq!(client.next().unwrap().events[0].kv.as_ref().unwrap().value, vec![7; 1000]);
}

/// A command that wanted to read a damaged value with what it does stopped the node, also where nobody waited for its answer; and
/// again after each start.
#[test]
fn what_only_the_answer_needs_stops_nobody() {
    let one = pb::RangeRequest { key: "k".into(), ..Default::default() };
    let request = |request| pb::RequestOp { request: Some(request) };
    let previous = |value: &str| pb::PutRequest {
        key: "k".into(),
        value: value.to_owned().into(),
        prev_kv: true,
        ..Default::default()
    };
    let commands = [
        Command::Txn(pb::TxnRequest {
            success: vec![
                request(Request::RequestRange(one)),
                request(Request::RequestPut(pb::PutRequest { key: "l".into(), ..previous("") })),
            ],
            ..Default::default()
        }),
        Command::Put(previous("2")),
        Command::DeleteRange(pb::DeleteRangeRequest { key: "k".into(), prev_kv: true, ..Default::default() }),
    ];
    let keeps = pb::PutRequest { ignore_value: true, value: Default::default(), ..previous("") };
    for (number, command) in commands.into_iter().enumerate() {
        let (sound, mut damaged) = (Replica::new(Options::default()), Replica::new(Options::default()));
        let mut log = vec![(1, vec![put("k", "v")])];
        sound.follow(&log);
        damaged.follow(&log);
        damaged.flush_all();
        let key = only_key(&damaged.engine, Space::Values);
        damaged.engine.write(vec![Change::Put(Space::Values, key, "x".into())]).unwrap();
        damaged.crash(usize::MAX);

        log.push((2, vec![command, put("other", "v")]));
        let expected = sound.follow(&log);
        assert!(expected.iter().all(Result::is_ok));
        for is_asked in [false, true] {
            damaged.crash(usize::MAX);
            let answers = damaged.follow_for(&log, is_asked);
            assert_eq!(matches!(answers[0], Err(Error::Unreadable(_))), is_asked, "{number}: {answers:?}");
            assert!(answers[1].is_ok(), "{number}: {answers:?}");
            assert_eq!(damaged.keyspace.digest(), sound.keyspace.digest(), "{number}");
        }

        // What the state depends on must be there.
        damaged.crash(usize::MAX);
        log[1].1[0] = Command::Put(keeps.clone());
        let stopped = catch_unwind(AssertUnwindSafe(|| damaged.follow_for(&log, false)));
        assert!(stopped.is_err(), "{number}");
    }
}

#[test]
fn a_newer_format_is_refused() {
    let replica = Replica::new(Options::default());
    replica.follow(&[(1, vec![put("k", "v")])]);
    replica.flush_all();
    let key = only_key(&replica.engine, Space::State);
    replica.engine.write(vec![Change::Put(Space::State, key, [9; 57].to_vec().into())]).unwrap();
    let opened = Keyspace::open(replica.engine.clone(), GROUP, Options::default());
    assert!(matches!(opened, Err(OpenError::Newer { found: 9, supported: 1, .. })));
}

/// Each was called damage: a replica was rebuilt, and what it had was deleted, where the version that wrote it would have read it.
#[test]
fn no_record_of_a_newer_version_is_damage() {
    let replica = Replica::new(Options::default());
    let alarm = pb::AlarmRequest { action: 1, member_id: 1, alarm: 1 };
    replica.follow(&[(1, vec![put("k", "v"), Command::Alarm(alarm)])]);
    replica.flush_all();
    let of_format_2 = |space: Space| {
        let (key, value) = replica.present(space).swap_remove(0);
        (space, key, [&[2], &value[1..]].concat())
    };
    let (_, alarm_key, alarm) = of_format_2(Space::Tables);
    let of_table_7 = [&alarm_key[..12], &[7], &alarm_key[13..]].concat();
    let owner_key = [&GROUP.to_be_bytes()[..], &[2]].concat();
    for (space, key, value) in [
        of_format_2(Space::Versions),
        of_format_2(Space::Tables),
        (Space::Tables, of_table_7.into(), [&[1], &alarm[1..]].concat()),
        (Space::State, owner_key.into(), [&[2, 1][..], &[0; 9]].concat()),
    ] {
        let before = replica.engine.get(space, &key).unwrap();
        replica.engine.write(vec![Change::Put(space, key.clone(), value.into())]).unwrap();
        let opened = match space {
            Space::State => Owner::of(&*replica.engine, GROUP).map(drop),
            _ => Keyspace::open(replica.engine.clone(), GROUP, Options::default()).map(drop),
        };
        let error = opened.unwrap_err();
        assert!(matches!(error, OpenError::Newer { .. }) && !error.is_damage(), "{space:?} {key:?}: {error}");
        if space == Space::Versions {
            a_snapshot_of_it_is_no_damage_either(&replica);
        }
        let restored = match before {
            Some(before) => Change::Put(space, key, before),
            None => Change::Delete(space, key),
        };
        replica.engine.write(vec![restored]).unwrap();
    }
    Keyspace::open(replica.engine.clone(), GROUP, Options::default()).unwrap();
}

/// Whose snapshot is called damaged looks for damage in what it has stored.
fn a_snapshot_of_it_is_no_damage_either(source: &Replica) {
    let target = Replica::new(Options::default());
    let mut importer = Importer::new(target.engine.clone(), GROUP).unwrap();
    let mut exporter = source.exporter().unwrap();
    while let Some(chunk) = exporter.next_chunk(1 << 20).unwrap() {
        importer.chunk(chunk).unwrap();
    }
    let error = importer.load().map(drop).unwrap_err();
    assert!(matches!(error, SnapshotError::Open(OpenError::Newer { .. })) && !error.is_damage(), "{error}");
}

#[test]
fn flushes_end_where_entries_end_and_stay_behind_the_log() {
    let replica = Replica::new(Options::default());
    replica.follow(&[
        (1, vec![put("a", vec![1; 500]), put("b", vec![1; 500])]),
        (2, vec![put("c", "v")]),
        (3, vec![]),
    ]);
    assert!(replica.keyspace.take_flush(0, 1 << 20).is_none(), "nothing is durable in the log");
    assert!(replica.flush(2, 1));
    assert_eq!(replica.keyspace.flushed_index(), 1, "one entry, however large");
    assert!(replica.flush(2, 1 << 20));
    assert_eq!(replica.keyspace.flushed_index(), 2);
    assert!(!replica.flush(2, 1 << 20));
    replica.flush_all();
    assert_eq!(replica.keyspace.flushed_index(), 3, "an empty entry is flushed too");
}

#[test]
fn groups_share_an_engine() {
    let engine = Arc::new(ModelEngine::new());
    let keyspaces = [1, 2].map(|group| Keyspace::open(engine.clone(), group, Options::default()).unwrap());
    for (number, keyspace) in keyspaces.iter().enumerate() {
        let applied = Applied { index: 1, ..Applied::default() };
        keyspace.apply(applied, vec![put("k", vec![number as u8])]).pop().unwrap().unwrap();
        let flush = keyspace.take_flush(1, 1000).unwrap();
        engine.write(flush.batch()).unwrap();
        keyspace.flush_done(flush);
    }
    for group in [1, 2] {
        let keyspace = Keyspace::open(engine.clone(), group, Options::default()).unwrap();
        assert_eq!(keyspace.range(&all(0)).unwrap().kvs[0].value.as_ref(), [group as u8 - 1]);
    }
}

/// What lives when a scrub begins may be overwritten, compacted and swept before it is looked at.
#[test]
fn a_scrub_misses_nothing_that_is_swept_while_it_is_under_way() {
    let replica = Replica::new(Options::default());
    let mut log = twenty_puts();
    replica.follow(&log);
    replica.flush_all();
    let mut scrub = Scrub::begin(replica.keyspace.clone()).unwrap().unwrap();
    assert!(scrub.step(1).unwrap().is_some());
    log.extend(twenty_puts());
    log.push((40, vec![Command::Compact(pb::CompactionRequest { revision: 41, physical: false })]));
    replica.follow(&log);
    replica.flush_all();
    while replica.sweep(100) {}
    while scrub.step(100).unwrap().is_some() {}
    while replica.sweep(100) {}
    assert_eq!(records(&replica), 20, "the scrub holds nothing any more");
    replica.scrub(100).unwrap();
}

/// The oldest version of a key is none of the digest's business, and may be read all the same.
#[test]
fn a_scrub_misses_a_version_that_is_history() {
    let replica = Replica::new(Options::default());
    replica.follow(&[(1, vec![put("k", "first")]), (2, vec![put("k", "second")])]);
    assert!(Scrub::begin(replica.keyspace.clone()).unwrap().is_none(), "nothing was flushed");
    replica.flush_all();
    replica.scrub(1).unwrap();
    let (oldest, _) = replica.present(Space::Versions).swap_remove(0);
    replica.engine.write(vec![Change::Delete(Space::Versions, oldest)]).unwrap();
    let found = replica.scrub(1).unwrap_err();
    assert!(found.to_string().contains("versions that are missing: 1"), "{found}");
}

#[test]
fn a_scrub_notices_that_the_engine_lost_all_or_went_back() {
    let replica = Replica::new(Options::default());
    replica.follow(&[(1, vec![put("a", "1")])]);
    replica.flush_all();
    let key = only_key(&replica.engine, Space::State);
    let before = replica.engine.get(Space::State, &key).unwrap().unwrap();
    replica.follow(&[(1, vec![put("a", "1")]), (2, vec![put("b", "2")])]);
    replica.flush_all();
    replica.scrub(100).unwrap();
    for (change, expected) in [
        (Change::Put(Space::State, key.clone(), before), "the state is of index 1, 2 was flushed"),
        (Change::Delete(Space::State, key), "there is no state record"),
    ] {
        replica.engine.write(vec![change]).unwrap();
        let found = replica.scrub(100).unwrap_err();
        assert!(found.to_string().contains(expected), "{found}");
    }
}

/// A replica that is rebuilt where it was, because a record of it is damaged, found that record again among what the former one left: it could
/// not be opened, and was rebuilt for ever.
#[test]
fn what_is_damaged_of_a_former_replica_is_in_nobodys_way() {
    for space in [Space::Tables, Space::Versions, Space::Values] {
        let mut replica = Replica::new(Options::default());
        let grant = Command::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 60 });
        replica.follow(&[(1, vec![grant, put("k", "v"), put("l", "w")])]);
        replica.flush_all();
        let (damaged, _) = replica.present(space).swap_remove(0);
        replica.engine.model.damage(space, damaged);
        Owner::claim(replica.engine.as_ref(), GROUP, 2).unwrap();
        replica.open().unwrap();
        while replica.sweep(1) {}
        replica.follow(&[(1, vec![put("k", "new")])]);
        replica.flush_all();
        replica.crash(usize::MAX);
        assert_eq!(replica.keyspace.range(&all(0)).unwrap().kvs[0].value, "new");
        replica.scrub(100).unwrap();
    }
}

/// A log that puts twenty keys, each in an entry.
fn twenty_puts() -> Vec<Entry> {
    (0..20).map(|n| (n, vec![put(&format!("k{n}"), vec![n as u8; 100])])).collect()
}

/// How many versions the engine holds, of whatever generation.
fn records(replica: &Replica) -> usize {
    let mut count = 0;
    let visit = &mut |_: &[u8], _: &[u8]| {
        count += 1;
        std::ops::ControlFlow::Continue(())
    };
    replica.engine.scan(Space::Versions, &[], &[255; 16], visit).unwrap();
    count
}

/// Each import that came to nothing left its records until the keyspace was opened again: a link that kept breaking
/// filled the disk.
#[test]
fn an_import_that_is_given_up_leaves_nothing() {
    let source = Replica::new(Options::default());
    let log = twenty_puts();
    source.follow(&log);
    source.flush_all();
    let target = Replica::new(Options::default());
    for keep in [1, 3, usize::MAX] {
        let mut importer = Importer::new(target.engine.clone(), GROUP).unwrap();
        let mut exporter = source.exporter().unwrap();
        for chunk in std::iter::from_fn(|| exporter.next_chunk(300).unwrap()).take(keep) {
            importer.chunk(chunk).unwrap();
        }
        importer.abandon().unwrap();
        assert_eq!(records(&target), 0);
    }
    assert!(target.import(source.exporter().unwrap(), 300, usize::MAX));
    assert_eq!(target.keyspace.digest(), source.keyspace.digest());
}

/// A key that the first round carried is deleted, and that compacted and swept, before the second: it is deleted there too.
#[test]
fn what_is_deleted_between_two_rounds_of_a_snapshot_does_not_come_back() {
    let source = Arc::new(Replica::new(Options::default()));
    let delete = Command::DeleteRange(pb::DeleteRangeRequest {
        key: "a".into(),
        prev_kv: false,
        ..Default::default()
    });
    let compact = Command::Compact(pb::CompactionRequest { revision: 5, physical: false });
    let lease = |id| Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 5 });
    let revoke = Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 });
    let before = vec![(0, vec![lease(1), put("a", vec![1; 100])]), (0, vec![put("b", vec![2; 100])])];
    let mut log = before.clone();
    log.extend([(0, vec![delete, revoke, lease(2)]), (0, vec![put("c", vec![3]), compact])]);
    source.follow(&before);
    source.flush_all();
    // The moment after the first view is the earliest at which the tombstone may be swept.
    let (behind, complete) = (Arc::clone(&source), log.clone());
    let views = Box::new(move || {
        let view = behind.engine.snapshot();
        behind.follow(&complete);
        behind.flush_all();
        while behind.sweep(1) {}
        view
    });
    let mut exporter = Exporter::over(source.keyspace.clone(), 1, views).unwrap();
    let target = Replica::new(Options::default());
    let mut importer = Importer::new(target.engine.clone(), GROUP).unwrap();
    std::iter::from_fn(|| exporter.next_chunk(50).unwrap()).for_each(|chunk| importer.chunk(chunk).unwrap());
    assert!(exporter.rounds() > 1);
    assert_eq!(target.install(importer).unwrap(), source.keyspace.applied());
    assert_eq!(target.keyspace.range(&all(0)), source.keyspace.range(&all(0)));
    assert_eq!(target.keyspace.leases(), [2]);
    drop(exporter);
    while source.sweep(7) || target.sweep(7) {}
    assert_eq!(records(&source), 2, "nothing is held for ever");
    assert_eq!(records(&target), 2);
}

/// A round is the difference of two views of one state: it cannot go on with another.
#[test]
fn a_snapshot_whose_source_is_replaced_begins_anew() {
    let source = Replica::new(Options::default());
    let log = twenty_puts();
    source.follow(&log[..10]);
    source.flush_all();
    let mut exporter = Exporter::new(source.keyspace.clone(), 1).unwrap();
    exporter.next_chunk(100).unwrap();
    let other = Replica::new(Options::default());
    other.follow(&log);
    other.flush_all();
    source.import(other.exporter().unwrap(), 300, usize::MAX);
    let outcome = std::iter::from_fn(|| exporter.next_chunk(300).transpose()).find_map(Result::err);
    assert!(matches!(outcome, Some(SnapshotError::Replaced)), "{outcome:?}");
}

/// The keyspace took the records of an import that had begun before it switched to another for leftovers, and swept them.
#[test]
fn a_switch_leaves_an_import_alone_that_has_begun() {
    let source = Replica::new(Options::default());
    let log = twenty_puts();
    source.follow(&log[..10]);
    source.flush_all();
    let target = Replica::new(Options::default());
    let mut first = Importer::new(target.engine.clone(), GROUP).unwrap();
    let mut exporter = source.exporter().unwrap();
    std::iter::from_fn(|| exporter.next_chunk(300).unwrap()).for_each(|chunk| first.chunk(chunk).unwrap());
    let loaded = first.load().unwrap();
    first.finish().unwrap();

    source.follow(&log);
    source.flush_all();
    let mut second = Importer::new(target.engine.clone(), GROUP).unwrap();
    let mut exporter = source.exporter().unwrap();
    let mut chunks = std::iter::from_fn(|| exporter.next_chunk(300).unwrap());
    second.chunk(chunks.next().unwrap()).unwrap();
    target.keyspace.switch(loaded);
    while target.sweep(7) {}
    chunks.for_each(|chunk| second.chunk(chunk).unwrap());
    target.install(second).unwrap();
    assert_eq!(target.keyspace.range(&all(0)), source.keyspace.range(&all(0)));
}

/// What was imported for a replica that was destroyed meanwhile would have been switched to by the next one, which sweeps it.
#[test]
fn what_was_imported_before_a_keyspace_was_opened_is_not_switched_to() {
    let source = Replica::new(Options::default());
    source.follow(&[(0, vec![put("a", "b")])]);
    source.flush_all();
    let mut target = Replica::new(Options::default());
    let mut first = Importer::new(target.engine.clone(), GROUP).unwrap();
    assert!(target.keyspace.may_switch_to(first.generation()));
    let mut exporter = source.exporter().unwrap();
    first.chunk(exporter.next_chunk(1 << 20).unwrap().unwrap()).unwrap();
    target.open().unwrap();
    assert!(!target.keyspace.may_switch_to(first.generation()));
    while target.sweep(1) {}
    assert_eq!(records(&target), 0);
    let second = Importer::new(target.engine.clone(), GROUP).unwrap();
    assert!(target.keyspace.may_switch_to(second.generation()));
}

#[test]
fn bad_snapshots_change_nothing() {
    let source = Replica::new(Options::default());
    let log = twenty_puts();
    source.follow(&log);
    assert!(source.exporter().is_none(), "nothing was flushed");
    source.flush_all();
    let chunks = || {
        let mut exporter = source.exporter().unwrap();
        std::iter::from_fn(move || exporter.next_chunk(300).unwrap()).collect::<Vec<_>>()
    };
    let target = Replica::new(Options::default());
    target.follow(&log[..3]);
    target.flush_all();

    let mut importer = Importer::new(target.engine.clone(), GROUP).unwrap();
    let all_chunks = chunks();
    assert!(all_chunks.len() > 3);
    importer.chunk(all_chunks[0].clone()).unwrap();
    assert!(
        matches!(importer.chunk(all_chunks[2].clone()), Err(SnapshotError::BadChunk(_))),
        "one is missing"
    );
    assert!(matches!(importer.finish(), Err(SnapshotError::BadChunk(_))), "the end is missing");

    for (number, chunk) in all_chunks.iter().enumerate() {
        for bit in 0..8 * chunk.len() {
            let mut importer = Importer::new(target.engine.clone(), GROUP).unwrap();
            for sound in &all_chunks[..number] {
                importer.chunk(sound.clone()).unwrap();
            }
            let mut bad = chunk.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let outcome = importer.chunk(bad.into());
            assert!(
                matches!(outcome, Err(SnapshotError::BadChunk(_) | SnapshotError::Newer(_))),
                "{bit} of chunk {number}: {outcome:?}"
            );
            importer.abandon().unwrap();
        }
    }

    assert_eq!(target.keyspace.applied().index, 3);
    while target.sweep(7) {}
    assert!(target.import(source.exporter().unwrap(), 300, usize::MAX));
    assert_eq!(target.keyspace.digest(), source.keyspace.digest());
    while target.sweep(7) {}
    assert_eq!(records(&target), records(&source), "what former generations left is swept");
    assert_eq!(target.keyspace.range(&all(0)), source.keyspace.range(&all(0)));
}

#[test]
fn watchers_survive_a_snapshot() {
    let (source, target) = (Replica::new(Options::default()), Replica::new(Options::default()));
    let log: Vec<_> = (0..20).map(|n| (n, vec![put("k", vec![n as u8; 10])])).collect();
    target.follow(&log[..5]);
    let mut client = Client::new(&target.keyspace);
    client.stream.create(pb::WatchCreateRequest { key: "k".into(), start_revision: 4, ..Default::default() });
    client.drain();
    target.follow(&log[..7]);
    source.follow(&log);
    source.flush_all();
    target.import(source.exporter().unwrap(), 100, usize::MAX);
    assert!(client.was_woken());
    let revisions: Vec<i64> =
        client.drain().iter().flat_map(|r| &r.events).map(|e| e.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(revisions, (7..=21).collect::<Vec<_>>());
}

/// The replica had left its node, and the stream was yet to be ended: a watch in the past was told of nothing that the engine had held, and then of
/// what came later.
#[test]
fn a_watcher_of_a_state_that_is_gone_is_not_told_that_nothing_was() {
    let replica = Replica::new(Options::default());
    let engine: &dyn Engine = replica.engine.as_ref();
    replica.follow(&[(0, vec![put("k", "1"), put("k", "2")])]);
    replica.flush_all();
    let log: Vec<Entry> = (0..2).map(|_| (0, vec![put("k", "3")])).collect();
    replica.follow(&log);
    Owner::destroy(engine, GROUP, 1).unwrap();
    let mut sweep = DestroyedSweep::new(GROUP);
    while sweep.step(engine).unwrap() {}
    let mut client = Client::new(&replica.keyspace);
    client.stream.create(pb::WatchCreateRequest { key: "k".into(), start_revision: 2, ..Default::default() });
    client.stream.request_progress();
    let told = client.drain();
    assert_eq!(told.len(), 1, "created, and nothing else: {told:?}");
}

/// Up to 160,000 records in a poll, on a thread that serves others as well.
#[test]
fn a_watcher_that_lags_reads_little_of_history_in_a_poll() {
    const RECORDS: usize = 5_000;
    let replica = Replica::new(Options::default());
    let puts = (0..RECORDS).map(|number| put(&format!("k{number:04}"), "v")).collect();
    replica.follow(&[(0, puts)]);
    replica.flush_all();
    for (key, events) in [("k", RECORDS), ("x", 0)] {
        let mut client = Client::new(&replica.keyspace);
        let (key, range_end, start_revision) = (key.into(), "y".into(), 2);
        client.stream.create(pb::WatchCreateRequest { key, range_end, start_revision, ..Default::default() });
        let begun = replica.engine.bytes_read();
        let (mut seen, mut most, mut polls) = (0, 0, 0);
        while replica.keyspace.watcher_counts().lagging > 0 || seen < events {
            let before = replica.engine.bytes_read();
            let polled = client.stream.poll_next(&mut Context::from_waker(Waker::noop()));
            most = most.max(replica.engine.bytes_read() - before);
            if let Poll::Ready(response) = polled {
                assert!(response.events.len() <= 250, "each has a value that is read");
                seen += response.events.len();
                if !response.created {
                    // Whoever takes responses as long as there are any must not go on with history.
                    let rests = client.stream.poll_next(&mut Context::from_waker(Waker::noop()));
                    assert!(rests.is_pending());
                }
            }
            polls += 1;
        }
        let record = (replica.engine.bytes_read() - begun) / RECORDS;
        assert!(most <= 1_010 * record, "{most} bytes in a poll, {record} for a record");
        assert!(polls < 100, "it comes forward: {polls} polls");
        assert_eq!(seen, events);
    }
}

/// Only the values that were put counted: of deletions with what was there before, 1,000 came in one response.
#[test]
fn what_was_before_counts_when_history_is_told() {
    const KEYS: usize = 50;
    const VALUE: usize = 1 << 20;
    let replica = Replica::new(Options::default());
    let key = |number: usize| format!("k{number:02}");
    let puts = (0..KEYS).map(|number| put(&key(number), vec![7; VALUE])).collect();
    let delete = |number| {
        let key = key(number).into();
        Command::DeleteRange(pb::DeleteRangeRequest { key, ..Default::default() })
    };
    replica.follow(&[(0, puts), (1, (0..KEYS).map(delete).collect())]);
    replica.flush_all();
    let mut client = Client::new(&replica.keyspace);
    client.stream.create(pb::WatchCreateRequest {
        key: "k".into(),
        range_end: "l".into(),
        start_revision: KEYS as i64 + 2,
        prev_kv: true,
        ..Default::default()
    });
    let mut told = Vec::new();
    for response in client.drain() {
        let bytes: usize = response.events.iter().map(Message::encoded_len).sum();
        assert!(bytes < 2 * VALUE, "{bytes} bytes");
        told.extend(response.events);
    }
    assert_eq!(told.len(), KEYS);
    for (number, event) in told.into_iter().enumerate() {
        let (kv, before) = (event.kv.unwrap(), event.prev_kv.unwrap());
        assert_eq!(kv.mod_revision, (KEYS + number) as i64 + 2);
        assert_eq!((kv.key, before.value.len()), (key(number).into_bytes().into(), VALUE));
    }
}

#[test]
fn watchers_are_counted_wherever_they_are_and_until_they_go() {
    let replica = Replica::new(Options::default());
    let log: Vec<_> = (0..5).map(|n| (n, vec![put("k", "v")])).collect();
    replica.follow(&log);
    let counts = || replica.keyspace.watcher_counts();
    let (mut first, mut second) = (Client::new(&replica.keyspace), Client::new(&replica.keyspace));
    let create =
        |start_revision| pb::WatchCreateRequest { key: "k".into(), start_revision, ..Default::default() };
    first.stream.create(create(0));
    first.stream.create(create(2));
    second.stream.create(create(0));
    assert_eq!(counts(), WatcherCounts { all: 3, lagging: 1 });
    first.drain();
    assert_eq!(counts(), WatcherCounts { all: 3, lagging: 0 });
    first.stream.cancel(0);
    first.stream.cancel(0);
    assert_eq!(counts(), WatcherCounts { all: 2, lagging: 0 });
    drop(first);
    drop(second);
    assert_eq!(counts(), WatcherCounts::default());
}

#[test]
fn readers_and_watchers_beside_apply_see_whole_revisions() {
    let replica = Replica::new(Options {
        cache: ValueCache::new(5000),
        watch_buffer_bytes: 2000,
        ..Options::default()
    });
    let is_over = AtomicBool::new(false);
    let pair = |number: u32| {
        let op = |key: &str| pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                key: format!("{key}{}", number % 50).into(),
                value: number.to_be_bytes().to_vec().into(),
                ..Default::default()
            })),
        };
        Command::Txn(pb::TxnRequest { success: vec![op("a"), op("b")], ..Default::default() })
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let response = replica.keyspace.range(&all(0)).unwrap();
                    let (a, b) = response.kvs.split_at(response.kvs.len() / 2);
                    assert!(
                        a.iter().zip(b).all(|(a, b)| a.value == b.value && a.mod_revision == b.mod_revision)
                    );
                }
            });
        }
        scope.spawn(|| {
            let mut client = Client::new(&replica.keyspace);
            let create =
                pb::WatchCreateRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
            client.stream.create(pb::WatchCreateRequest { start_revision: 2, ..create });
            let mut next = 2;
            while next < 3002 {
                let Some(response) = client.next() else { continue };
                assert_eq!(response.compact_revision, 0);
                for event in response.events {
                    assert_eq!(event.kv.unwrap().mod_revision, next);
                    next += 1;
                }
            }
        });
        for number in 0..3000_u32 {
            let applied = Applied { index: u64::from(number) + 1, ..Applied::default() };
            replica.keyspace.apply(applied, vec![pair(number)]);
            if number % 100 == 99 {
                replica.flush_all();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Readers read an old revision while compactions and sweeps go on: each gets all of it, or is told that it is gone.
#[test]
fn sweeps_wait_for_readers() {
    let replica = Replica::new(Options { cache: ValueCache::new(0), ..Options::default() });
    let is_over = AtomicBool::new(false);
    let keys = 3000;
    let fill: Vec<Command> = (0..keys).map(|n| put(&format!("k{n:05}"), "first")).collect();
    replica.keyspace.apply(Applied { index: 1, ..Applied::default() }, fill);
    replica.flush_all();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let revision = replica.keyspace.revision();
                match replica.keyspace.range(&all(revision)) {
                    Ok(response) => {
                        assert_eq!(response.count, keys);
                        assert!(
                            response.kvs.iter().all(|kv| kv.mod_revision <= revision && !kv.value.is_empty())
                        );
                    }
                    Err(error) => assert_eq!(error, Error::Compacted),
                }
            }
        });
        for round in 0..60_u64 {
            let changes: Vec<Command> = (0..50).map(|n| put(&format!("k{:05}", n * 60), "again")).collect();
            replica.keyspace.apply(Applied { index: 2 * round + 2, ..Applied::default() }, changes);
            let revision = replica.keyspace.revision();
            let compact = Command::Compact(pb::CompactionRequest { revision, physical: false });
            replica.keyspace.apply(Applied { index: 2 * round + 3, ..Applied::default() }, vec![compact]);
            replica.flush_all();
            while replica.sweep(20) {}
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// A target without an order sorts upwards. The values were not fetched for that, so what was flushed and had left memory
/// sorted before what had not, each in the order of keys.
#[test]
fn values_are_sorted_wherever_they_are_although_no_order_is_given() {
    let replica = Replica::new(Options { cache: ValueCache::new(0), ..Options::default() });
    let log = [(1, vec![put("a", "4"), put("b", "2")]), (2, vec![put("c", "3"), put("d", "1")])];
    replica.follow(&log[..1]);
    replica.flush_all();
    replica.follow(&log);
    let request = pb::RangeRequest { sort_target: pb::range_request::SortTarget::Value as i32, ..all(0) };
    let sorted = replica.keyspace.range(&request).unwrap();
    let keys: Vec<_> = sorted.kvs.iter().map(|pair| pair.key.as_ref()).collect();
    assert_eq!(keys, [b"d", b"b", b"c", b"a"]);
}

#[test]
fn the_configuration_is_where_the_state_is() {
    let mut replica = Replica::new(Options::default());
    replica.follow(&[(1, vec![put("k", "v")])]);
    let without = replica.keyspace.digest();
    for configuration in ["one", "two"] {
        let applied = Applied { index: replica.index() + 1, ..replica.keyspace.applied() };
        replica.keyspace.apply_configuration(applied, configuration.into());
    }
    assert_ne!(replica.keyspace.digest(), without);
    replica.flush_all();
    replica.crash(usize::MAX);
    assert_eq!(replica.keyspace.configuration(), "two", "after a restart");
    let other = Replica::new(Options::default());
    assert!(other.import(replica.exporter().unwrap(), 10, usize::MAX));
    assert_eq!(other.keyspace.configuration(), "two", "in a snapshot");
    assert_eq!(other.keyspace.digest(), replica.keyspace.digest());
}

/// A command that deletes very many keys held the lock, and with it everything else on the node, until it was through.
#[test]
fn a_large_deletion_is_carried_out_piece_by_piece_and_shows_when_it_is_whole() {
    let mut replica = Replica::new(Options::default());
    let key = |number| format!("k{number:04}");
    let log: Vec<Entry> = vec![(0, (0..5_000).map(|number| put(&key(number), "v")).collect())];
    replica.follow(&log);
    replica.flush_all();
    replica.engine.persist().unwrap();
    let mut client = Client::new(&replica.keyspace);
    client.stream.create(pb::WatchCreateRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..Default::default()
    });
    client.drain();
    let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true };
    let commands = || vec![put("k", "new"), Command::DeleteRange(delete.clone()), put("l", "last")];
    let at = Applied { term: 1, index: 2, checksum: 0, stamp_ms: 0 };
    let ended = (replica.keyspace.applied(), replica.keyspace.digest());

    let begin = |replica: &Replica| {
        replica.keyspace.begin_entry(at, commands().into_iter().map(|command| (command, true)).collect());
    };
    begin(&replica);
    for piece in 0..4 {
        let (effort, answers) = replica.keyspace.go_on(1_000);
        // A value that is read counts as ten keys.
        assert!((1_000..=1_100).contains(&effort), "{effort}");
        assert_eq!((answers, replica.keyspace.is_entry_open()), (None, true));
        let shown = replica.keyspace.range(&all(0)).unwrap();
        assert_eq!((shown.kvs.len(), shown.header.unwrap().revision), (5_001, 5_002), "the put is done");
        assert_eq!((replica.keyspace.applied(), replica.keyspace.digest()), ended);
        assert!(!replica.flush(u64::MAX, 1 << 20), "nothing of it goes to the engine");
        let events: usize = client.drain().iter().map(|response| response.events.len()).sum();
        assert_eq!(events, usize::from(piece == 0));
    }
    // What was begun is forgotten with the process, and done again.
    replica.crash(0);
    assert_eq!((replica.keyspace.applied(), replica.keyspace.digest()), ended);
    begin(&replica);
    assert_eq!(replica.keyspace.go_on(1_000).1, None);
    let mut client = Client::new(&replica.keyspace);
    client.stream.create(pb::WatchCreateRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..Default::default()
    });
    let answers = std::iter::from_fn(|| Some(replica.keyspace.go_on(1_000).1)).flatten().next().unwrap();
    let Ok(Response::DeleteRange(deleted)) = &answers[1] else { panic!("{:?}", answers[1]) };
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (5_001, 5_001));
    assert!(deleted.prev_kvs.iter().all(|pair| pair.value == "v" || pair.value == "new"));
    assert_eq!(replica.keyspace.range(&all(0)).unwrap().kvs.len(), 1);
    let events: Vec<_> = client.drain().into_iter().flat_map(|response| response.events).collect();
    assert_eq!(events.len(), 5_001, "those of the deletion, in one piece");

    let whole = Replica::new(Options::default());
    whole.follow(&log);
    whole.keyspace.apply(at, commands());
    assert_eq!(replica.keyspace.digest(), whole.keyspace.digest());
}

/// A piece was cut by the number of keys only, and read up to a thousand values of any size under the lock.
#[test]
fn a_deletion_that_tells_what_was_reads_little_at_a_time() {
    const VALUE_BYTES: usize = 100 << 10;
    let replica = Replica::new(Options::default());
    let key = |number: usize| format!("k{number:02}");
    replica.follow(&[(0, (0..40).map(|number| put(&key(number), vec![7; VALUE_BYTES])).collect())]);
    replica.flush_all();
    let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true };
    let at = Applied { term: 1, index: 2, ..Applied::default() };
    replica.keyspace.begin_entry(at, vec![(Command::DeleteRange(delete), true)]);
    let mut pieces = 0;
    let answers = loop {
        let (effort, answers) = replica.keyspace.go_on(1_000);
        // One value counts as 110 keys.
        assert!(effort <= 1_120, "{effort}");
        pieces += 1;
        if let Some(answers) = answers {
            break answers;
        }
    };
    assert_eq!(pieces, 5);
    let Ok(Response::DeleteRange(deleted)) = &answers[0] else { panic!("{:?}", answers[0]) };
    assert_eq!(deleted.deleted, 40);
    let told: Vec<_> = deleted.prev_kvs.iter().map(|pair| (pair.key.clone(), pair.value.len())).collect();
    let were: Vec<_> = (0..40).map(|number| (Bytes::from(key(number)), VALUE_BYTES)).collect();
    assert_eq!(told, were);
    assert!(replica.keyspace.is_empty());
}

/// The keys of a lease are deleted piece by piece, and then it is gone.
#[test]
fn a_lease_with_many_keys_ends_piece_by_piece() {
    let replica = Replica::new(Options::default());
    let bound = |number: usize| {
        let key = format!("k{number:04}").into();
        Command::Put(pb::PutRequest { key, value: "v".into(), lease: 1, ..Default::default() })
    };
    let grant = |id| Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 1 });
    let commands = [grant(1), grant(2)].into_iter().chain((0..3_000).map(bound)).collect();
    replica.follow(&[(0, commands)]);
    let expire = vec![(Command::LeaseExpire(vec![2, 7, 1]), true)];
    replica.keyspace.begin_entry(Applied { term: 1, index: 2, checksum: 0, stamp_ms: 1_000 }, expire);
    let mut pieces = 0;
    let answers = loop {
        let answers = replica.keyspace.go_on(1_000).1;
        pieces += 1;
        if let Some(answers) = answers {
            break answers;
        }
        assert_eq!(replica.keyspace.leases(), [1], "one after the other");
        assert_eq!(replica.keyspace.lease_time_to_live(1, true, 0).keys.len(), 3_000);
        assert_eq!(replica.keyspace.range(&all(0)).unwrap().kvs.len(), 3_000);
    };
    assert_eq!(pieces, 7);
    assert_eq!(answers, [Ok(Response::LeaseExpire(vec![2, 1]))]);
    assert!(replica.keyspace.leases().is_empty() && replica.keyspace.is_empty());
}

/// The middle of a deletion showed, and what a txn had bound to the lease before it was whole.
#[test]
fn the_keys_of_a_lease_are_those_of_whole_commands() {
    let replica = Replica::new(Options::default());
    let bound = |key: &str| pb::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        lease: 1,
        ..Default::default()
    };
    let grant = Command::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 60 });
    let puts = (0..3_000).map(|number| Command::Put(bound(&format!("k{number:04}"))));
    replica.follow(&[(0, std::iter::once(grant).chain(puts).collect())]);
    let keys = || replica.keyspace.lease_time_to_live(1, true, 0).keys;
    let before = keys();
    let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let operations = [Request::RequestPut(bound("new")), Request::RequestDeleteRange(delete)];
    let success = operations.map(|one| pb::RequestOp { request: Some(one) }).into();
    let txn = Command::Txn(pb::TxnRequest { success, ..Default::default() });
    replica.keyspace.begin_entry(Applied { term: 1, index: 2, ..Applied::default() }, vec![(txn, true)]);
    let mut pieces = 0;
    while replica.keyspace.go_on(1_000).1.is_none() {
        assert_eq!(keys(), before);
        pieces += 1;
    }
    assert!(pieces > 1, "{pieces}");
    assert_eq!(keys(), ["new"]);
}
