//! What is read from the engine bit by bit: no view of it stays open between two bits, and what is swept there does no harm.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::collections::BTreeSet;

use bytes::Bytes;
use common::{Entry, GROUP, Replica};
use hadron_keyspace::{Command, DestroyedSweep, Error, Exporter, Importer, Options, Owner, Scrub};
use hadron_proto::etcdserverpb as pb;
use hadron_storage::engine::{Engine, Read as _, Space};

fn put(key: &str, value: impl Into<Bytes>) -> Command {
    Command::Put(pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() })
}

fn delete(key: &str) -> Command {
    Command::DeleteRange(pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() })
}

fn compact(revision: i64) -> Command {
    Command::Compact(pb::CompactionRequest { revision, physical: false })
}

fn all(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() }
}

/// A source, what it follows, and how far that has come.
struct Source {
    replica: Replica,
    log: Vec<Entry>,
}

impl Source {
    fn new(commands: Vec<Command>) -> Source {
        let mut source = Source { replica: Replica::new(Options::default()), log: Vec::new() };
        commands.into_iter().for_each(|command| source.write(command));
        source
    }

    /// Applies and flushes.
    fn write(&mut self, command: Command) {
        self.log.push((0, vec![command]));
        self.replica.follow(&self.log);
        self.replica.flush_all();
    }

    /// All that may be swept.
    fn sweep(&self) {
        while self.replica.sweep(1000) {}
    }

    fn open_views(&self) -> usize {
        self.replica.engine.open_views()
    }

    fn exporter(&self, log_bytes: usize) -> Exporter {
        Exporter::new(self.replica.keyspace.clone(), log_bytes).unwrap()
    }
}

/// Carries the rest of a snapshot and switches to it.
fn carry(
    mut exporter: Exporter,
    chunk_bytes: usize,
    target: &Replica,
    mut importer: Importer,
    mut between: impl FnMut(),
) {
    while let Some(chunk) = exporter.next_chunk(chunk_bytes).unwrap() {
        importer.chunk(chunk).unwrap();
        between();
    }
    assert_eq!(target.install(importer).unwrap(), exporter.applied());
    target.scrub(100).unwrap();
    let keys = |space| target.present(space).into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>();
    assert!(keys(Space::Values).is_subset(&keys(Space::Versions)), "values that nothing would ever delete");
}

fn importer(target: &Replica) -> Importer {
    Importer::new(target.engine.clone(), GROUP).unwrap()
}

/// As long as a view is open the engine keeps in memory what is written. A snapshot held one while it was carried over a slow link: the leader's
/// memory grew by all that its clients wrote.
#[test]
fn no_view_outlives_a_chunk_of_a_snapshot() {
    let mut source = Source::new((0..20).map(|n| put(&format!("k{n}"), vec![n; 100])).collect());
    let grant = |id| Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 60 });
    (1..20).for_each(|id| source.write(grant(id)));
    for log_bytes in [1, 8000, usize::MAX] {
        let target = Replica::new(Options::default());
        let (mut importer, mut exporter, mut chunks) =
            (importer(&target), source.exporter(log_bytes), 0_usize);
        assert_eq!(source.open_views(), 0);
        while let Some(chunk) = exporter.next_chunk(200).unwrap() {
            assert_eq!(source.open_views(), 0, "chunk {chunks}");
            importer.chunk(chunk).unwrap();
            chunks += 1;
            if chunks < 30 {
                // Clients go on, and clean up behind themselves.
                source.write(put(&format!("k{}", chunks % 7), vec![chunks as u8; 100]));
                source.write(delete(&format!("k{}", (chunks + 3) % 7)));
                source.write(compact(source.replica.keyspace.revision() - 1));
                source.sweep();
            }
        }
        assert!(chunks > 10, "{chunks}");
        assert_eq!(exporter.rounds() == 1, log_bytes == usize::MAX);
        assert_eq!(target.install(importer).unwrap(), exporter.applied());
        target.scrub(100).unwrap();
        assert_eq!(source.open_views() + target.engine.open_views(), 0);
        target.follow(&source.log);
        assert_eq!(target.keyspace.digest(), source.replica.keyspace.digest());
        assert_eq!(target.keyspace.hash_kv(0).unwrap(), source.replica.keyspace.hash_kv(0).unwrap());
        drop(exporter);
        source.sweep();
        target.flush_all();
        while target.sweep(1000) {}
        for space in [Space::Versions, Space::Values] {
            assert_eq!(target.present(space).len(), source.replica.present(space).len(), "{space:?}");
        }
    }
}

/// A deletion that is swept after the key was carried and before its own turn has come.
#[test]
fn what_was_deleted_before_a_snapshot_does_not_come_back_if_that_is_swept_meanwhile() {
    let commands = vec![put("a", "1"), put("b", vec![2; 100]), delete("a"), put("c", "3"), compact(5)];
    let source = Source::new(commands.clone());
    let target = Replica::new(Options::default());
    carry(source.exporter(1), 1, &target, importer(&target), || source.sweep());
    assert_eq!(target.keyspace.range(&all(0)), source.replica.keyspace.range(&all(0)));

    // Deletions of both may be on their way to the engine when the snapshot begins.
    let source = Source::new(commands);
    let target = Replica::new(Options::default());
    let mut on_its_way = source.replica.keyspace.take_sweep(1000);
    let between = || {
        if let Some(sweep) = on_its_way.take() {
            source.replica.engine.write(sweep.batch()).unwrap();
        }
        source.sweep();
    };
    carry(source.exporter(1), 1, &target, importer(&target), between);
    assert_eq!(target.keyspace.range(&all(0)), source.replica.keyspace.range(&all(0)));
}

/// The last round is of one moment: what is compacted and swept while it is carried can be read where it is installed.
#[test]
fn the_last_round_of_a_snapshot_holds_what_its_readers_see() {
    let mut source = Source::new((0..5).flat_map(|n| [put("a", vec![n; 50]), put("b", vec![n])]).collect());
    source.write(compact(3));
    let hashes: Vec<_> =
        (4..=11).map(|revision| source.replica.keyspace.hash_kv(revision).unwrap().hash).collect();
    let target = Replica::new(Options::default());
    let (exporter, mut is_compacted) = (source.exporter(usize::MAX), false);
    carry(exporter, 1, &target, importer(&target), || {
        if !is_compacted {
            source.write(compact(11));
            is_compacted = true;
        }
        source.sweep();
    });
    assert_eq!(target.keyspace.compact_revision(), 3);
    let there: Vec<_> = (4..=11).map(|revision| target.keyspace.hash_kv(revision).unwrap().hash).collect();
    assert_eq!(there, hashes);
    source.sweep();
    assert_eq!(source.replica.present(Space::Versions).len(), 2, "nothing is held any more");
}

/// A large state is carried for long: what is overwritten meanwhile must not be kept for that.
#[test]
fn a_round_that_cannot_be_the_last_lets_sweeps_go_on() {
    let mut source = Source::new((0..40).map(|n| put(&format!("k{n}"), vec![n; 100])).collect());
    let mut exporter = source.exporter(8000);
    for number in 0..8 {
        exporter.next_chunk(200).unwrap().unwrap();
        (0..10).for_each(|key| source.write(put(&format!("k{key}"), vec![number; 100])));
        source.write(compact(source.replica.keyspace.revision()));
        source.sweep();
    }
    assert_eq!((exporter.rounds(), source.replica.present(Space::Versions).len()), (1, 40));
}

/// A backup, or `HashKV`, held one view for as long as it was built.
#[test]
fn no_view_stays_open_while_a_backup_is_built() {
    let replica = Replica::new(Options::default());
    replica.follow(&[(0, (0..2500).map(|n| put(&format!("k{n}"), "v")).collect())]);
    replica.flush_all();
    let (backup, mut shown) = (replica.keyspace.backup(0), 0);
    let show = |_: &[u8], _: &[u8]| {
        assert_eq!(replica.engine.open_views(), 0);
        shown += 1;
        Ok::<(), Error>(())
    };
    replica.keyspace.visit_backup(&backup, show).unwrap();
    assert_eq!(shown, 2500);
}

/// What a destroyed replica had is deleted while a backup of it is built. That must not look like a history that ends there.
#[test]
fn a_backup_of_what_is_destroyed_meanwhile_is_not_cut_short() {
    let replica = Replica::new(Options::default());
    replica.follow(&[(0, (0..2500).map(|n| put(&format!("k{n}"), "")).collect())]);
    replica.flush_all();
    let backup = replica.keyspace.backup(0);
    let show = |_: &[u8], _: &[u8]| {
        if Owner::of(replica.engine.as_ref(), GROUP).unwrap() == Owner::Nobody {
            Owner::destroy(replica.engine.as_ref(), GROUP, 1).unwrap();
            let mut sweep = DestroyedSweep::new(GROUP);
            while sweep.step(replica.engine.as_ref()).unwrap() {}
        }
        Ok::<(), Error>(())
    };
    let outcome = replica.keyspace.visit_backup(&backup, show);
    assert!(matches!(outcome, Err(Error::Storage(_))), "{outcome:?}");
}

/// A scrub held one view while it read versions, at 16 MiB a second.
#[test]
fn no_view_stays_open_between_two_slices_of_a_scrub() {
    let mut source = Source::new((0..20).map(|n| put(&format!("k{n}"), vec![n; 100])).collect());
    source.write(Command::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 60 }));
    let mut scrub = Scrub::begin(source.replica.keyspace.clone()).unwrap().unwrap();
    let mut slices = 0;
    loop {
        assert_eq!(source.open_views(), 0, "slice {slices}");
        slices += 1;
        if slices < 30 {
            source.write(put(&format!("k{}", slices % 20), vec![slices; 100]));
            source.write(delete(&format!("k{}", (slices + 7) % 20)));
            source.write(compact(source.replica.keyspace.revision()));
            source.sweep();
        }
        if scrub.step(200).unwrap().is_none() {
            break;
        }
    }
    assert!(slices > 10, "{slices}");
}

/// To delete what a former generation left, the thread that answers requests read it, with its values.
#[test]
fn a_sweep_of_a_former_generation_reads_elsewhere_and_little_at_once() {
    let source = Source::new((0..50).map(|n| put(&format!("k{n}"), vec![n; 64 << 10])).collect());
    let target = Replica::new(Options::default());
    target.follow(&source.log[..40]);
    target.flush_all();
    let read = || target.engine.bytes_read();
    let importer = importer(&target);
    carry(source.exporter(usize::MAX), 1 << 20, &target, importer, || {});
    let mut steps = 0;
    loop {
        let before = read();
        let Some(sweep) = target.keyspace.take_sweep(500) else { break };
        assert_eq!(read(), before, "where others wait");
        target.engine.write(sweep.batch()).unwrap();
        assert!(read() - before <= 1_200_000, "{} in step {steps}", read() - before);
        steps += 1;
    }
    assert!(steps > 2, "{steps}");
    for space in [Space::Versions, Space::Values] {
        let mut records = 0;
        let visit = &mut |_: &[u8], _: &[u8]| {
            records += 1;
            std::ops::ControlFlow::Continue(())
        };
        hadron_storage::engine::Read::scan(&*target.engine, space, &[], &[255; 16], visit).unwrap();
        assert_eq!(records, 50);
    }
}

/// Each step began at the first key, and so read all that the former ones had deleted as long as the engine had not merged it: up to 100 TB
/// for 10 GB.
#[test]
fn what_a_destroyed_replica_left_is_read_once() {
    let replica = Replica::new(Options::default());
    replica.follow(&[(0, (0..5500).map(|n| put(&format!("k{n}"), vec![1; 700])).collect())]);
    replica.flush_all();
    let engine = replica.engine.as_ref();
    Owner::destroy(engine, GROUP, 1).unwrap();
    engine.take_scans();
    let (mut sweep, mut begun, mut steps) = (DestroyedSweep::new(GROUP), Vec::<(Space, Bytes)>::new(), 0);
    let mut goes_on = true;
    while goes_on {
        let before = engine.bytes_read();
        goes_on = sweep.step(engine).unwrap();
        assert!(engine.bytes_read() - before <= 1_200_000, "step {steps}");
        for (space, from) in engine.take_scans() {
            let last = begun.iter().rfind(|(other, _)| *other == space);
            assert!(
                last.is_none_or(|(_, last)| *last < from),
                "step {steps} begins {space:?} at {from:?} again"
            );
            begun.push((space, from));
        }
        steps += 1;
    }
    assert!(steps > 10, "{steps}");
    for space in [Space::Versions, Space::Values, Space::Tables] {
        let visit = &mut |key: &[u8], _: &[u8]| panic!("{space:?} still has {key:?}");
        engine.scan(space, &[], &[255; 16], visit).unwrap();
    }
}
