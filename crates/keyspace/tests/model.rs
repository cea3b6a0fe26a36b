//! Random histories against a naive model: two replicas that flush, sweep, crash and import snapshots at different times
//! hold, answer and tell their watchers the same as a list of all events would. So they do when their engines fail at any
//! call: the failure is told, what is still served is right, and a restart brings everything back.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Answers, Client, Entry, FailingEngine, Fault, GROUP, Replica};
use hadron_keyspace::{
    Command, Error, Exporter, Importer, OpenError, Options, Response, Scrub, ScrubError, SnapshotError,
    ValueCache,
};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::{Event, KeyValue, event::EventType};
use hadron_storage::engine::{Change, Engine, Space};
use pb::request_op::Request;
use proptest::prelude::*;

/// All events ever, and what is alive.
#[derive(Clone, Debug, Default)]
struct Model {
    events: Vec<Event>,
    live: BTreeMap<Vec<u8>, KeyValue>,
    /// Granted seconds and expiry.
    leases: BTreeMap<i64, (i64, u64)>,
    revision: i64,
    compacted: i64,
}

impl Model {
    fn put(&mut self, revision: i64, key: &[u8], value: &[u8], lease: i64) {
        let before = self.live.get(key).cloned();
        let kv = KeyValue {
            key: key.to_vec().into(),
            value: value.to_vec().into(),
            create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(0, |kv| kv.version) + 1,
            lease,
        };
        self.live.insert(key.to_vec(), kv.clone());
        self.events.push(Event { r#type: EventType::Put as i32, kv: Some(kv), prev_kv: before });
    }

    fn delete(&mut self, revision: i64, from: &[u8], to: &[u8]) -> i64 {
        let doomed: Vec<Vec<u8>> = self.live.keys().filter(|key| in_range(key, from, to)).cloned().collect();
        for key in &doomed {
            let before = self.live.remove(key);
            let kv = KeyValue { key: key.clone().into(), mod_revision: revision, ..Default::default() };
            self.events.push(Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: before });
        }
        doomed.len() as i64
    }

    fn end_lease(&mut self, id: i64) {
        if self.leases.remove(&id).is_none() {
            return;
        }
        let keys: Vec<Vec<u8>> =
            self.live.iter().filter(|(_, kv)| kv.lease == id).map(|(key, _)| key.clone()).collect();
        let revision = self.revision + 1;
        for key in &keys {
            self.delete(revision, key, b"");
        }
        self.revision += i64::from(!keys.is_empty());
    }

    fn at(&self, revision: i64) -> Vec<KeyValue> {
        let mut live = BTreeMap::new();
        for event in &self.events {
            let kv = event.kv.clone().unwrap();
            if kv.mod_revision > revision {
                break;
            }
            match event.r#type() {
                EventType::Put => live.insert(kv.key.clone(), kv),
                EventType::Delete => live.remove(&kv.key),
            };
        }
        live.into_values().collect()
    }
}

fn in_range(key: &[u8], from: &[u8], to: &[u8]) -> bool {
    match to {
        [] => key == from,
        [0] => key >= from,
        _ => key >= from && key < to,
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put {
        key: u8,
        len: u16,
        lease: i64,
    },
    Delete {
        from: u8,
        to: u8,
    },
    Txn {
        compare: u8,
        version: i64,
        put: u8,
        delete: u8,
    },
    Compact {
        back: i64,
    },
    Grant {
        id: i64,
        ttl: i64,
    },
    Revoke {
        id: i64,
    },
    KeepAlive {
        id: i64,
    },
    Expire {
        after_ms: u64,
    },
    Empty,
    Flush {
        replica: usize,
        max_bytes: usize,
    },
    Persist {
        replica: usize,
    },
    Sweep {
        replica: usize,
        limit: usize,
    },
    Crash {
        replica: usize,
        keep: usize,
    },
    Import {
        replica: usize,
        chunk_bytes: usize,
        chunks_max: usize,
    },
    /// A snapshot for `replica` goes on, or begins; much happens in between.
    Carry {
        replica: usize,
        log_bytes: usize,
        chunk_bytes: usize,
        chunks: usize,
    },
    /// A scrub of `replica` goes on, or begins; much happens in between.
    Scrub {
        replica: usize,
        slice_bytes: usize,
        slices: usize,
    },
    Drain {
        watcher: usize,
    },
    Fail {
        replica: usize,
        failure: Failure,
    },
}

/// When an engine fails, and what becomes of its replica then.
#[derive(Clone, Copy, Debug)]
struct Failure {
    fault: Fault,
    /// Batches that the restart leaves beyond the durable ones.
    keep: usize,
    /// The engine fails once more after so many calls while it is opened.
    open_after: u64,
}

fn key(number: u8) -> Vec<u8> {
    vec![b'a' + number / 4, b'0' + number % 4]
}

/// As many rounds as can be, some, or one.
fn log_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), 100..20_000usize, Just(usize::MAX)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..12u8, 0..300u16, 0..4i64).prop_map(|(key, len, lease)| Op::Put { key, len, lease }),
        3 => (0..12u8, 0..12u8).prop_map(|(from, to)| Op::Delete { from, to }),
        3 => (0..12u8, 0..3i64, 0..6u8, 6..12u8)
            .prop_map(|(compare, version, put, delete)| Op::Txn { compare, version, put, delete }),
        2 => (0..8i64).prop_map(|back| Op::Compact { back }),
        2 => (1..4i64, 1..5i64).prop_map(|(id, ttl)| Op::Grant { id, ttl }),
        1 => (1..4i64).prop_map(|id| Op::Revoke { id }),
        1 => (1..4i64).prop_map(|id| Op::KeepAlive { id }),
        1 => (0..4000u64).prop_map(|after_ms| Op::Expire { after_ms }),
        1 => Just(Op::Empty),
        5 => (0..2usize, 1..2000usize).prop_map(|(replica, max_bytes)| Op::Flush { replica, max_bytes }),
        2 => (0..2usize).prop_map(|replica| Op::Persist { replica }),
        4 => (0..2usize, 1..8usize).prop_map(|(replica, limit)| Op::Sweep { replica, limit }),
        2 => (0..2usize, 0..4usize).prop_map(|(replica, keep)| Op::Crash { replica, keep }),
        1 => (0..2usize, 1..2000usize, prop_oneof![Just(usize::MAX), 0..3usize])
            .prop_map(|(replica, chunk_bytes, chunks_max)| Op::Import { replica, chunk_bytes, chunks_max }),
        3 => (0..2usize, log_bytes(), 1..500usize, prop_oneof![Just(usize::MAX), 1..5usize])
            .prop_map(|(replica, log_bytes, chunk_bytes, chunks)| {
                Op::Carry { replica, log_bytes, chunk_bytes, chunks }
            }),
        3 => (0..2usize, 1..200usize, prop_oneof![1 => Just(usize::MAX), 4 => 1..3usize])
            .prop_map(|(replica, slice_bytes, slices)| Op::Scrub { replica, slice_bytes, slices }),
        4 => (0..6usize).prop_map(|watcher| Op::Drain { watcher }),
    ]
}

/// Like [`op`], with engines that fail.
fn op_or_failure() -> impl Strategy<Value = Op> {
    let failure =
        (0..40u64, any::<bool>(), 0..4usize, 0..8u64).prop_map(|(after, lasting, keep, open_after)| {
            Failure { fault: Fault { after, lasting }, keep, open_after }
        });
    prop_oneof![
        12 => op(),
        1 => (0..2usize, failure).prop_map(|(replica, failure)| Op::Fail { replica, failure }),
    ]
}

/// A client that resumes its watch where it was when its replica restarts.
struct Watcher {
    replica: usize,
    client: Client,
    from: &'static [u8],
    to: &'static [u8],
    prev_kv: bool,
    /// What it has to see next.
    next: i64,
    seen: Vec<Event>,
    /// The start of the events that it has to see; later if it learned that they are compacted.
    start: i64,
}

impl Watcher {
    fn new(replica: usize, replicas: &[Replica; 2], from: &'static [u8], to: &'static [u8]) -> Watcher {
        let client = Client::new(&replicas[replica].keyspace);
        let prev_kv = from == b"a0";
        let mut watcher = Watcher { replica, client, from, to, prev_kv, next: 2, seen: Vec::new(), start: 2 };
        watcher.begin();
        watcher
    }

    fn begin(&mut self) {
        self.client.stream.create(pb::WatchCreateRequest {
            key: self.from.into(),
            range_end: self.to.into(),
            start_revision: self.next,
            prev_kv: self.prev_kv,
            ..Default::default()
        });
    }

    /// Takes what there is. A stream that ends says why, and only an engine that has failed is a reason.
    fn drain(&mut self, engine: &FailingEngine) {
        while let Some(response) = self.client.next() {
            if response.canceled && response.cancel_reason.starts_with("hadron: ") {
                assert!(engine.has_failed(), "{}", response.cancel_reason);
            }
            if response.compact_revision != 0 {
                assert!(response.compact_revision > self.next);
                (self.next, self.start) = (response.compact_revision, response.compact_revision);
                self.seen.clear();
                self.client.stream.cancel(response.watch_id);
                self.begin();
            }
            for event in response.events {
                let revision = event.kv.as_ref().unwrap().mod_revision;
                assert!(revision >= self.next, "an event came twice or out of order");
                self.seen.push(event);
            }
            // Revisions come whole.
            self.next = self.seen.last().map_or(self.next, |last| last.kv.as_ref().unwrap().mod_revision + 1);
        }
    }
}

struct Run {
    model: Model,
    log: Vec<Entry>,
    stamp_ms: u64,
    replicas: [Replica; 2],
    failures: [Option<Failure>; 2],
    /// The snapshots on their way to them.
    transfers: [Option<(Exporter, Importer)>; 2],
    scrubs: [Option<Scrub>; 2],
    watchers: Vec<Watcher>,
}

impl Run {
    fn new() -> Run {
        let small = Options { cache: ValueCache::new(2000), watch_buffer_bytes: 700, ..Options::default() };
        let replicas = [Replica::new(Options::default()), Replica { effort: 2, ..Replica::new(small) }];
        let ranges: [(&[u8], &[u8]); 3] = [(b"a0", b""), (b"b", b"c"), (b"a2", b"\0")];
        let watchers =
            (0..6).map(|n| Watcher::new(n % 2, &replicas, ranges[n / 2].0, ranges[n / 2].1)).collect();
        let model = Model { revision: 1, compacted: -1, ..Model::default() };
        Run {
            model,
            log: Vec::new(),
            stamp_ms: 0,
            replicas,
            failures: [None; 2],
            transfers: [None, None],
            scrubs: [None, None],
            watchers,
        }
    }

    fn apply(&mut self, command: Command) -> Option<Response> {
        self.stamp_ms += 7;
        // Now one of them, now the other has the client.
        let asked = self.log.len() % 2;
        self.log.push((self.stamp_ms, vec![command]));
        let [mut answers, mut others] =
            [asked, 1 - asked].map(|replica| self.follow(replica, replica == asked));
        let [a, b] = &self.replicas;
        assert_eq!(a.keyspace.digest(), b.keyspace.digest(), "whoever is asked");
        if answers.iter().any(|answer| matches!(answer, Err(Error::Unreadable(_)))) {
            assert!(self.replicas[asked].engine.has_failed());
            answers = self.restart(asked);
        }
        let (answer, other) = (answers.pop()?, others.pop()?);
        assert_eq!(answer.as_ref().err(), other.as_ref().err());
        answer.ok()
    }

    /// A replica whose engine fails while it applies is gone; what it answers then it answers after a restart.
    fn follow(&mut self, replica: usize, is_asked: bool) -> Answers {
        let answers = self.replicas[replica].try_follow_for(&self.log, is_asked);
        answers.unwrap_or_else(|| self.restart(replica))
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Put { key: number, len, lease } => self.put(key(number), vec![len as u8; len.into()], lease),
            Op::Delete { from, to } => self.delete(key(from), key(to)),
            Op::Txn { compare, version, put, delete } => {
                self.txn(key(compare), version, key(put), key(delete))
            }
            Op::Compact { back } => {
                let revision = self.model.revision - back;
                let answer =
                    self.apply(Command::Compact(pb::CompactionRequest { revision, physical: false }));
                assert_eq!(answer.is_some(), revision > self.model.compacted);
                self.model.compacted = self.model.compacted.max(revision);
            }
            Op::Grant { id, ttl } => {
                let granted = self.apply(Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl }));
                assert_eq!(granted.is_some(), !self.model.leases.contains_key(&id));
                self.model.leases.entry(id).or_insert((ttl, self.stamp_ms + ttl as u64 * 1000));
            }
            Op::Revoke { id } => {
                self.apply(Command::LeaseRevoke(pb::LeaseRevokeRequest { id }));
                self.model.end_lease(id);
            }
            Op::KeepAlive { id } => {
                self.apply(Command::LeaseKeepAlive(vec![id]));
                if let Some((ttl, expiry_ms)) = self.model.leases.get_mut(&id) {
                    *expiry_ms = self.stamp_ms + *ttl as u64 * 1000;
                }
            }
            Op::Expire { after_ms } => self.expire(after_ms),
            Op::Empty => {
                self.log.push((self.stamp_ms, vec![Command::DigestMark]));
                for replica in 0..2 {
                    self.follow(replica, true);
                }
                let marks =
                    self.replicas.each_ref().map(|r| r.keyspace.digest_at(self.log.len() as u64).unwrap());
                assert_eq!(marks[0], marks[1]);
            }
            Op::Flush { replica, max_bytes } => {
                let flushed = self.replicas[replica].try_flush(self.log.len() as u64, max_bytes);
                self.expect(replica, flushed);
            }
            Op::Persist { replica } => {
                self.expect(replica, self.replicas[replica].engine.persist());
            }
            Op::Sweep { replica, limit } => {
                self.expect(replica, self.replicas[replica].try_sweep(limit));
            }
            Op::Crash { replica, keep } => self.crash(replica, keep),
            Op::Import { replica, chunk_bytes, chunks_max } => self.import(replica, chunk_bytes, chunks_max),
            Op::Carry { replica, log_bytes, chunk_bytes, chunks } => {
                let carried = self.carry(replica, log_bytes, chunk_bytes, chunks);
                if let Err(error) = carried {
                    let failed = self.replicas.iter().any(|replica| replica.engine.has_failed());
                    assert!(failed || matches!(error, SnapshotError::Replaced), "{error}");
                    self.transfers[replica] = None;
                }
            }
            Op::Scrub { replica, slice_bytes, slices } => {
                if let Err(error) = self.scrub(replica, slice_bytes, slices) {
                    let failed = self.replicas[replica].engine.has_failed();
                    assert!(failed || matches!(error, ScrubError::Replaced), "{error}");
                }
            }
            Op::Drain { watcher } => self.drain(watcher),
            Op::Fail { replica, failure } => {
                self.replicas[replica].engine.set_fault(Some(failure.fault));
                self.failures[replica] = Some(failure);
            }
        }
    }

    /// Nothing fails but because of the engine.
    fn expect<T, E: std::fmt::Display>(&self, replica: usize, outcome: Result<T, E>) {
        if let Err(error) = outcome {
            assert!(self.replicas[replica].engine.has_failed(), "{error}");
        }
    }

    fn drain(&mut self, watcher: usize) {
        let watcher = &mut self.watchers[watcher];
        let engine = self.replicas[watcher.replica].engine.clone();
        watcher.drain(&engine);
    }

    /// Replicas whose engines have failed serve what is right or nothing, until they are started again.
    fn restart_failed(&mut self) {
        for replica in 0..2 {
            if self.replicas[replica].engine.has_failed() {
                self.check_replica(replica);
                self.restart(replica);
            }
        }
    }

    /// Once more with a failure, which is told, then in earnest. Returns the answers to the last entry.
    fn restart(&mut self, replica: usize) -> Answers {
        self.transfers = [None, None];
        self.scrubs[replica] = None;
        let own = &mut self.replicas[replica];
        if let Some(Failure { keep, open_after, .. }) = self.failures[replica].take() {
            own.engine.model.crash(keep);
            own.engine.set_fault(Some(Fault { after: open_after, lasting: true }));
            if let Err(error) = own.open() {
                assert!(matches!(error, OpenError::Engine(_)), "{error}");
            }
        }
        own.engine.set_fault(None);
        own.open().unwrap();
        let answers = own.follow(&self.log);
        for watcher in self.watchers.iter_mut().filter(|watcher| watcher.replica == replica) {
            watcher.client = Client::new(&self.replicas[replica].keyspace);
            watcher.begin();
        }
        answers
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>, lease: i64) {
        let request = pb::PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            lease,
            ..Default::default()
        };
        let answer = self.apply(Command::Put(request));
        assert_eq!(answer.is_some(), lease == 0 || self.model.leases.contains_key(&lease));
        if answer.is_some() {
            self.model.revision += 1;
            self.model.put(self.model.revision, &key, &value, lease);
        }
    }

    fn delete(&mut self, from: Vec<u8>, to: Vec<u8>) {
        let request =
            pb::DeleteRangeRequest { key: from.clone().into(), range_end: to.clone().into(), prev_kv: true };
        let Some(Response::DeleteRange(answer)) = self.apply(Command::DeleteRange(request)) else { panic!() };
        let first = self.model.events.len();
        let deleted = self.model.delete(self.model.revision + 1, &from, &to);
        self.model.revision += i64::from(deleted > 0);
        assert_eq!(answer.deleted, deleted);
        let expected: Vec<_> =
            self.model.events[first..].iter().map(|e| e.prev_kv.clone().unwrap()).collect();
        assert_eq!(answer.prev_kvs, expected);
    }

    /// If the version of one key is as given, puts a key, reads it back, and deletes another; else reads.
    fn txn(&mut self, compare: Vec<u8>, version: i64, put: Vec<u8>, delete: Vec<u8>) {
        let op = |request| pb::RequestOp { request: Some(request) };
        let range = Request::RequestRange(pb::RangeRequest { key: put.clone().into(), ..Default::default() });
        let request = pb::TxnRequest {
            compare: vec![pb::Compare {
                key: compare.clone().into(),
                target: pb::compare::CompareTarget::Version as i32,
                target_union: Some(pb::compare::TargetUnion::Version(version)),
                ..Default::default()
            }],
            success: vec![
                op(Request::RequestPut(pb::PutRequest {
                    key: put.clone().into(),
                    value: "txn".into(),
                    ..Default::default()
                })),
                op(range.clone()),
                op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
                    key: delete.clone().into(),
                    ..Default::default()
                })),
            ],
            failure: vec![op(range)],
        };
        let Some(Response::Txn(answer)) = self.apply(Command::Txn(request)) else { panic!() };
        let succeeds = self.model.live.get(&compare).map_or(0, |kv| kv.version) == version;
        assert_eq!(answer.succeeded, succeeds);
        let read = usize::from(succeeds);
        if succeeds {
            self.model.revision += 1;
            self.model.put(self.model.revision, &put, b"txn", 0);
            self.model.delete(self.model.revision, &delete, b"");
        }
        assert_eq!(answer.header.unwrap().revision, self.model.revision);
        let Some(pb::response_op::Response::ResponseRange(range)) = &answer.responses[read].response else {
            panic!()
        };
        assert_eq!(range.kvs, Vec::from_iter(self.model.live.get(&put).cloned()));
    }

    fn expire(&mut self, after_ms: u64) {
        self.stamp_ms += after_ms;
        let clock_ms = self.stamp_ms + 7;
        let over = self.replicas[0].keyspace.expired_leases(clock_ms, 2);
        let Some(Response::LeaseExpire(ended)) = self.apply(Command::LeaseExpire(over.clone())) else {
            panic!()
        };
        assert_eq!(ended, over);
        for id in ended {
            assert!(self.model.leases[&id].1 <= clock_ms);
            self.model.end_lease(id);
        }
    }

    fn crash(&mut self, replica: usize, keep: usize) {
        for watcher in (0..self.watchers.len()).filter(|number| number % 2 == replica) {
            self.drain(watcher);
        }
        self.replicas[replica].engine.model.crash(keep);
        self.failures[replica] = None;
        self.restart(replica);
    }

    /// From the other replica, which may be behind: then the log brings the rest again.
    fn import(&mut self, replica: usize, chunk_bytes: usize, chunks_max: usize) {
        let source = &self.replicas[1 - replica];
        if source.exporter().is_none() {
            return;
        }
        // A node only takes in snapshots that are ahead; behind would make watchers see events twice.
        while matches!(source.try_flush(u64::MAX, 1 << 20), Ok(true)) {}
        if source.engine.has_failed() {
            return;
        }
        let Some(exporter) = source.exporter() else { return };
        self.transfers[replica] = None;
        let imported = self.replicas[replica].try_import(exporter, chunk_bytes, chunks_max);
        if let Err(error) = imported {
            assert!(self.replicas.iter().any(|replica| replica.engine.has_failed()), "{error}");
        }
    }

    /// Some more of a snapshot.
    fn carry(
        &mut self,
        target: usize,
        log_bytes: usize,
        chunk_bytes: usize,
        chunks: usize,
    ) -> Result<(), SnapshotError> {
        let source = &self.replicas[1 - target];
        while source.try_flush(u64::MAX, 1 << 20)? {}
        let (mut exporter, mut importer) = match self.transfers[target].take() {
            Some(transfer) => transfer,
            None if source.keyspace.flushed_index() == 0 => return Ok(()),
            None => (
                Exporter::new(source.keyspace.clone(), log_bytes)?,
                Importer::new(self.replicas[target].engine.clone(), GROUP)?,
            ),
        };
        for _ in 0..chunks {
            let Some(chunk) = exporter.next_chunk(chunk_bytes)? else { break };
            importer.chunk(chunk)?;
        }
        if !importer.is_complete() {
            self.transfers[target] = Some((exporter, importer));
            return Ok(());
        }
        assert_eq!(importer.applied(), Some(exporter.applied()));
        // A node only takes in what is ahead; here that is what is not behind.
        if exporter.applied().index < self.replicas[target].index() {
            return importer.abandon();
        }
        self.replicas[target].install(importer).map(drop)
    }

    fn scrub(&mut self, replica: usize, slice_bytes: usize, slices: usize) -> Result<(), ScrubError> {
        let begun = match self.scrubs[replica].take() {
            Some(scrub) => Some(scrub),
            None => Scrub::begin(self.replicas[replica].keyspace.clone())?,
        };
        let Some(mut scrub) = begun else { return Ok(()) };
        for _ in 0..slices {
            if scrub.step(slice_bytes)?.is_none() {
                return Ok(());
            }
        }
        self.scrubs[replica] = Some(scrub);
        Ok(())
    }

    fn check(&mut self) {
        (0..2).for_each(|replica| self.check_replica(replica));
        let [a, b] = &self.replicas;
        assert_eq!(a.keyspace.digest(), b.keyspace.digest());
        if let (Ok(a), Ok(b)) = (a.keyspace.hash_kv(0), b.keyspace.hash_kv(0)) {
            assert_eq!(a, b);
        } else {
            assert!(a.engine.has_failed() || b.engine.has_failed());
        }
        self.restart_failed();
    }

    fn check_replica(&self, replica: usize) {
        let (model, replica) = (&self.model, &self.replicas[replica]);
        let keyspace = &replica.keyspace;
        assert_eq!(keyspace.revision(), model.revision);
        assert_eq!(keyspace.len(), model.live.len());
        assert_eq!(keyspace.compact_revision(), model.compacted);
        let mut leases = keyspace.leases();
        leases.sort_unstable();
        assert_eq!(leases, model.leases.keys().copied().collect::<Vec<_>>());
        for revision in model.compacted.max(1)..=model.revision {
            let request =
                pb::RangeRequest { key: "a".into(), range_end: "\0".into(), revision, ..Default::default() };
            match keyspace.range(&request) {
                Ok(answer) => assert_eq!(answer.kvs, model.at(revision), "at revision {revision}"),
                Err(Error::Storage(what)) => assert!(replica.engine.has_failed(), "{what}"),
                Err(error) => panic!("at revision {revision}: {error}"),
            }
        }
        for id in model.leases.keys() {
            let keys = keyspace.lease_time_to_live(*id, true, 0).keys;
            let attached = model.live.values().filter(|kv| kv.lease == *id).map(|kv| kv.key.clone());
            assert_eq!(keys, attached.collect::<Vec<_>>());
        }
    }

    /// With healthy engines.
    fn check_watchers(&mut self) {
        for number in 0..self.watchers.len() {
            self.drain(number);
            let watcher = &self.watchers[number];
            let concerns = |event: &&Event| {
                let kv = event.kv.as_ref().unwrap();
                kv.mod_revision >= watcher.start && in_range(&kv.key, watcher.from, watcher.to)
            };
            let expected: Vec<&Event> = self.model.events.iter().filter(concerns).collect();
            let pairs = |event: &Event| (event.r#type, event.kv.clone());
            let seen: Vec<_> = watcher.seen.iter().map(pairs).collect();
            assert_eq!(
                seen,
                expected.iter().map(|event| pairs(event)).collect::<Vec<_>>(),
                "watcher of {:?}..{:?}",
                watcher.from,
                watcher.to
            );
            for (seen, expected) in watcher.seen.iter().zip(expected).filter(|_| watcher.prev_kv) {
                let before = seen.kv.as_ref().unwrap().mod_revision - 1;
                let is_compacted = seen.prev_kv.is_none() && before < self.model.compacted;
                assert!(is_compacted || seen.prev_kv == expected.prev_kv, "{seen:?}, expected {expected:?}");
            }
        }
    }

    /// All that was said, and after a restart of replicas that flushed and swept all they could once more.
    fn finish(mut self) {
        for replica in 0..2 {
            self.replicas[replica].engine.set_fault(None);
            self.restart(replica);
        }
        self.check();
        self.check_watchers();
        for replica in 0..2 {
            self.replicas[replica].flush_all();
            while self.replicas[replica].sweep(100) {}
            self.crash(replica, usize::MAX);
        }
        self.check();
        self.check_watchers();
        self.replicas.iter().for_each(no_value_is_nobodys);
        self.replicas.iter().for_each(scrubs_notice_damage);
    }
}

/// A value without a version would never be deleted.
fn no_value_is_nobodys(replica: &Replica) {
    let keys = |space| replica.present(space).into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>();
    assert!(keys(Space::Values).is_subset(&keys(Space::Versions)));
}

/// Whatever record of a space is changed or gone.
fn scrubs_notice_damage(replica: &Replica) {
    assert_eq!(replica.scrub(100).map_err(|error| error.to_string()), Ok(()));
    for space in [Space::Tables, Space::Versions, Space::Values] {
        let records = replica.present(space);
        let Some((key, value)) = records.get(records.len() / 2) else { continue };
        let mut flipped = value.to_vec();
        let bit = records.len() % (8 * flipped.len());
        flipped[bit / 8] ^= 1 << (bit % 8);
        let changes = [Change::Put(space, key.clone(), flipped.into()), Change::Delete(space, key.clone())];
        for change in changes {
            let what = format!("{change:?}");
            replica.engine.write(vec![change]).unwrap();
            let found = replica.scrub(100);
            assert!(
                matches!(&found, Err(ScrubError::Stored(error)) if error.is_damage()),
                "{found:?}: {what}"
            );
            replica.engine.write(vec![Change::Put(space, key.clone(), value.clone())]).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replicas_and_watchers_agree_with_the_model(ops in prop::collection::vec(op(), 1..120)) {
        let mut run = Run::new();
        for (number, op) in ops.into_iter().enumerate() {
            run.step(op);
            if number % 8 == 7 {
                run.check();
            }
        }
        run.check();
        run.check_watchers();
        run.finish();
    }

    #[test]
    fn an_engine_that_fails_at_any_call_costs_nothing(ops in prop::collection::vec(op_or_failure(), 1..120)) {
        let mut run = Run::new();
        for (number, op) in ops.into_iter().enumerate() {
            run.step(op);
            run.restart_failed();
            if number % 8 == 7 {
                run.check();
            }
        }
        run.finish();
    }
}
