//! What the tests share: a replica that applies a log, flushes and crashes, and a client of a watch stream.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

pub mod failing;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
#[allow(unused_imports)]
pub use failing::{FailingEngine, Fault};
use hadron_keyspace::{
    Applied, Command, Error, Exporter, Importer, Keyspace, OpenError, Options, Response, Scrub, ScrubError,
    SnapshotError, WatchStream,
};
use hadron_proto::etcdserverpb as pb;
use hadron_storage::engine::{Engine, EngineError, Read as _, Space};

pub const GROUP: u64 = 7;

pub type Answers = Vec<Result<Response, Error>>;

/// One entry: its stamp and commands. Its index is its place in the log, from 1.
pub type Entry = (u64, Vec<Command>);

pub struct Replica {
    pub engine: Arc<FailingEngine>,
    pub keyspace: Arc<Keyspace>,
    pub options: Options,
    /// How much of an entry is done at a time.
    pub effort: usize,
}

impl Replica {
    pub fn new(options: Options) -> Replica {
        let engine = Arc::new(FailingEngine::default());
        let keyspace = Keyspace::open(engine.clone(), GROUP, options.clone()).unwrap();
        Replica { engine, keyspace, options, effort: usize::MAX }
    }

    pub fn index(&self) -> u64 {
        self.keyspace.applied().index
    }

    /// Applies what it lacks of the log; returns the answers to the last entry.
    pub fn follow(&self, log: &[Entry]) -> Answers {
        self.follow_for(log, true)
    }

    /// The same, where nobody may wait for answers.
    pub fn follow_for(&self, log: &[Entry], is_asked: bool) -> Answers {
        let mut answers = Vec::new();
        for (index, (stamp_ms, commands)) in log.iter().enumerate().skip(self.index() as usize) {
            let applied =
                Applied { term: 1, index: index as u64 + 1, checksum: index as u64, stamp_ms: *stamp_ms };
            // Leases end one after the other.
            let is_one = commands.len() == 1 && !matches!(commands[0], Command::LeaseExpire(_));
            // Through their bytes, as in an entry.
            let commands = commands.iter().map(|c| (Command::decode(c.to_bytes()).unwrap(), is_asked));
            self.keyspace.begin_entry(applied, commands.collect());
            answers = self.carry_out(is_one);
        }
        answers
    }

    /// Goes on with the entry to its end. Of what is done of a single command nothing shows before, whatever else goes on.
    fn carry_out(&self, is_one: bool) -> Answers {
        let before = self.shown();
        loop {
            if let (_, Some(answers)) = self.keyspace.go_on(self.effort) {
                return answers;
            }
            assert!(
                !is_one || self.shown() == before,
                "something shows of a command that is not carried out"
            );
            // What fails here goes on failing.
            drop(self.try_flush(u64::MAX, 100));
            drop(self.try_sweep(2));
        }
    }

    fn shown(&self) -> (Applied, u64, i64, Option<pb::RangeResponse>) {
        let all = pb::RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            keys_only: true,
            ..Default::default()
        };
        let keyspace = &self.keyspace;
        (keyspace.applied(), keyspace.digest(), keyspace.revision(), keyspace.range(&all).ok())
    }

    /// Like [`Replica::follow_for`] with an engine that may fail, which stops the replica: `None`.
    pub fn try_follow_for(&self, log: &[Entry], is_asked: bool) -> Option<Answers> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.follow_for(log, is_asked)));
        outcome.inspect_err(|_| assert!(self.engine.has_failed(), "stopped with a healthy engine")).ok()
    }

    /// Flushes once; false if there was nothing to flush.
    pub fn flush(&self, durable_index: u64, max_bytes: usize) -> bool {
        self.try_flush(durable_index, max_bytes).unwrap()
    }

    pub fn try_flush(&self, durable_index: u64, max_bytes: usize) -> Result<bool, EngineError> {
        let Some(flush) = self.keyspace.take_flush(durable_index, max_bytes) else { return Ok(false) };
        assert!(self.keyspace.take_flush(u64::MAX, max_bytes).is_none(), "one flush at a time");
        self.engine.write(flush.batch())?;
        let index = flush.index();
        self.keyspace.flush_done(flush);
        assert_eq!(self.keyspace.flushed_index(), index);
        Ok(true)
    }

    pub fn flush_all(&self) {
        while self.flush(u64::MAX, 1 << 20) {}
        assert_eq!(self.keyspace.unflushed_bytes(), 0);
    }

    pub fn sweep(&self, limit: usize) -> bool {
        self.try_sweep(limit).unwrap()
    }

    pub fn try_sweep(&self, limit: usize) -> Result<bool, EngineError> {
        let Some(sweep) = self.keyspace.take_sweep(limit) else { return Ok(false) };
        self.engine.write(sweep.batch()).map(|()| true)
    }

    /// Loses what is not durable, but for the oldest `keep` batches, and opens again.
    pub fn crash(&mut self, keep: usize) {
        self.engine.model.crash(keep);
        self.open().unwrap();
    }

    pub fn open(&mut self) -> Result<(), OpenError> {
        // Another process: nothing of the former one's memory is left.
        self.options.cache = self.options.cache.to_empty();
        self.keyspace = Keyspace::open(self.engine.clone(), GROUP, self.options.clone())?;
        Ok(())
    }

    /// From its beginning to its end.
    pub fn scrub(&self, slice_bytes: usize) -> Result<(), ScrubError> {
        let Some(mut scrub) = Scrub::begin(self.keyspace.clone())? else { return Ok(()) };
        while scrub.step(slice_bytes)?.is_some() {}
        Ok(())
    }

    /// What the engine holds in a space of the generation that is in use.
    pub fn present(&self, space: Space) -> Vec<(Bytes, Bytes)> {
        let state = self.engine.get(Space::State, &[&GROUP.to_be_bytes()[..], &[0]].concat()).unwrap();
        let Some(state) = state else { return Vec::new() };
        let prefix = [&GROUP.to_be_bytes()[..], &state[1..5]].concat();
        let mut records = Vec::new();
        self.engine
            .scan(space, &prefix, &[&prefix[..], &[255; 16]].concat(), &mut |key, value| {
                records.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                ControlFlow::Continue(())
            })
            .unwrap();
        records
    }

    pub fn exporter(&self) -> Option<Exporter> {
        Exporter::new(self.keyspace.clone(), usize::MAX).ok()
    }

    /// Takes in what `exporter` gives; stops after `chunks_max` chunks and returns false if that was not all.
    pub fn import(&self, exporter: Exporter, chunk_bytes: usize, chunks_max: usize) -> bool {
        self.try_import(exporter, chunk_bytes, chunks_max).unwrap()
    }

    pub fn try_import(
        &self,
        mut exporter: Exporter,
        chunk_bytes: usize,
        chunks_max: usize,
    ) -> Result<bool, SnapshotError> {
        let mut importer = Importer::new(self.engine.clone(), GROUP)?;
        let mut chunks = 0;
        while let Some(chunk) = exporter.next_chunk(chunk_bytes)? {
            if chunks == chunks_max {
                return Ok(false);
            }
            importer.chunk(chunk)?;
            chunks += 1;
        }
        assert_eq!(importer.applied(), Some(exporter.applied()));
        self.install(importer)?;
        Ok(true)
    }

    /// Switches to what was imported.
    pub fn install(&self, importer: Importer) -> Result<Applied, SnapshotError> {
        let loaded = importer.load()?;
        let applied = importer.finish()?;
        self.keyspace.switch(loaded);
        assert_eq!(self.keyspace.applied(), applied);
        Ok(applied)
    }
}

#[derive(Default)]
pub struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A client that reads its stream to the end of what there is.
pub struct Client {
    pub stream: WatchStream,
    woken: Arc<Woken>,
}

impl Client {
    pub fn new(keyspace: &Arc<Keyspace>) -> Client {
        Client { stream: keyspace.watch_stream(Default::default()), woken: Arc::default() }
    }

    /// True if the stream woke its task since the last [`Client::next`].
    pub fn was_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }

    pub fn next(&mut self) -> Option<pb::WatchResponse> {
        let waker = Waker::from(self.woken.clone());
        for _ in 0..10_000 {
            self.woken.0.store(false, Ordering::SeqCst);
            match self.stream.poll_next(&mut Context::from_waker(&waker)) {
                Poll::Ready(response) => return Some(response),
                Poll::Pending if self.was_woken() => {}
                Poll::Pending => return None,
            }
        }
        panic!("the stream wakes its task again and again, for nothing: {:?}", self.stream);
    }

    pub fn drain(&mut self) -> Vec<pb::WatchResponse> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
