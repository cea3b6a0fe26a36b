//! The reclaimer: a thread that has the engine give back what deleted records take on the disk, when that is about as much as what is kept,
//! or when somebody asks for it (`Defragment`). It also looks whether the engine has given up, which the flush thread does not see while
//! a write of its own waits in the engine. `docs/design/2026-11-28-space.md`.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use hadron_consensus::NodeId;
use hadron_node::Board;
use hadron_storage::engine::{Engine, EngineError, Reclaimed};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::error::RunError;
use super::fatal::Fatal;
use crate::metrics::Metrics;
use crate::process;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// So much more than twice what is kept may be on the disk: journals, tables that wait to be merged, and what is not worth the work.
const SLACK_BYTES: u64 = 512 << 20;
/// Nodes that hold the same shall not all rewrite it at the same moment: each begins a little earlier than the next.
const TURNS: u64 = 4;
/// Rewriting takes no more than this part of the time.
const SHARE: u32 = 10;
/// If it gave less than this part back, something that is still to be swept or is looked at holds it: the next time comes later and later.
const WORTHWHILE: u64 = 4;
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);

/// What came of it, or why nothing did.
type Outcome = Result<(), &'static str>;

/// What others want of the reclaimer.
pub(super) enum Ask {
    Now(oneshot::Sender<Outcome>),
    End,
}

/// The way to the reclaimer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reclaimer(Sender<Ask>);

/// That way, and where it ends.
pub(super) fn queue() -> (Reclaimer, Receiver<Ask>) {
    let (sender, receiver) = unbounded();
    (Reclaimer(sender), receiver)
}

impl Reclaimer {
    /// Gives back what can be; returns when that is done.
    pub(super) async fn reclaim(&self) -> Outcome {
        let (sender, receiver) = oneshot::channel();
        // Fails only while everything ends.
        let _ = self.0.send(Ask::Now(sender));
        receiver.await.unwrap_or(Err("the node is stopping"))
    }

    /// The thread ends when it is done with what it is at. Nobody needs to wait for that: the process may end at any moment.
    pub(super) fn end(&self) {
        let _ = self.0.send(Ask::End);
    }
}

/// Whose space it is.
pub(super) struct Place {
    pub(super) node: NodeId,
    /// Its groups hold the engine too.
    pub(super) board: Weak<Board>,
    pub(super) data_dir: PathBuf,
}

/// Starts the thread.
pub(super) fn start(
    queue: Receiver<Ask>,
    engine: &Arc<dyn Engine>,
    place: Place,
    metrics: Arc<Metrics>,
    fatal: Fatal,
) -> Result<(), RunError> {
    // Whoever stops the node must not have to wait until this thread, which gives way to all others, has ended to open the engine again.
    let engine = Arc::downgrade(engine);
    let mut work =
        Work { queue, engine, place, metrics, fatal, next: Instant::now() + PAUSE_MIN, pause: PAUSE_MIN };
    let run = move || {
        hadron_storage::give_way();
        work.run();
    };
    thread::Builder::new().name("reclaim".into()).spawn(run).map(drop).map_err(RunError::Threads)
}

struct Work {
    queue: Receiver<Ask>,
    engine: Weak<dyn Engine>,
    place: Place,
    metrics: Arc<Metrics>,
    fatal: Fatal,
    /// When it looks next whether there is enough, and how long it waits after that at least.
    next: Instant,
    pause: Duration,
}

impl Work {
    fn run(&mut self) {
        while let Some(answers) = self.wait() {
            let Some(engine) = self.engine.upgrade() else { return };
            if let Err(error) = engine.check() {
                return self.give_up(&error);
            }
            // Those who gave up have nobody work for them.
            if answers.iter().any(|answer| !answer.is_closed()) {
                let outcome = self.reclaim(&*engine).map(drop);
                for answer in answers {
                    // Nobody waits for it any more, perhaps.
                    let _ = answer.send(outcome);
                }
            } else {
                self.reclaim_if_worth_it(&*engine);
            }
        }
    }

    /// Returns who asked meanwhile, after a while nobody; `None` at the end.
    fn wait(&self) -> Option<Vec<oneshot::Sender<Outcome>>> {
        let first = match self.queue.recv_timeout(INTERVAL) {
            Ok(ask) => Some(ask),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        let answer = |ask| match ask {
            Ask::Now(answer) => Some(answer),
            Ask::End => None,
        };
        first.into_iter().chain(self.queue.try_iter()).map(answer).collect()
    }

    fn reclaim_if_worth_it(&mut self, engine: &dyn Engine) {
        let began = Instant::now();
        // What is being received is in the engine, and no keyspace counts it yet.
        if began < self.next || self.metrics.snapshots_installing.get() > 0.0 {
            return;
        }
        let Some(kept_bytes) = self.kept_bytes() else { return };
        let disk = engine.disk_bytes();
        if !is_worth_it(disk, kept_bytes, self.place.node) {
            return;
        }
        let gave = self.reclaim(engine).unwrap_or_default();
        self.pause = if gave > disk / WORTHWHILE { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        self.next = Instant::now() + self.pause.max(began.elapsed() * SHARE);
    }

    /// What the keyspaces count; `None` when the node stops.
    fn kept_bytes(&self) -> Option<u64> {
        let groups = self.place.board.upgrade()?.groups();
        Some(groups.iter().map(|(_, group)| group.keyspace.db_bytes()).sum())
    }

    /// How many bytes it gave back.
    fn reclaim(&self, engine: &dyn Engine) -> Result<u64, &'static str> {
        let began = Instant::now();
        match self.reclaim_if_there_is_room(engine) {
            Ok(Some(Reclaimed { before, after, ran_out: false })) => {
                let seconds = began.elapsed().as_secs_f32();
                let done = match after < before {
                    true => "gave back what deleted values took on the disk",
                    false => {
                        "looked for what deleted values take on the disk: there was nothing to give back"
                    }
                };
                info!(before, after, seconds, "{done}");
                Ok(before.saturating_sub(after))
            }
            Ok(_) => {
                warn!("too little room on the disk to give back what deleted values take");
                Err("too little room on the disk to write anew what is kept")
            }
            // What is damaged belongs to some replica: the scrub names it, and the others go on.
            Err(error @ EngineError::Damaged(_)) => {
                warn!(%error, "could not give back what deleted values take on the disk");
                Err("a table of the engine is damaged")
            }
            Err(error) => {
                self.give_up(&error);
                Err("the engine failed")
            }
        }
    }

    /// `None` if there is not. What is kept is there twice for a while, and that may be all there is: a snapshot that is being received, what was
    /// destroyed and is not deleted yet, and replicas that are not open are no garbage to the engine, and nobody counts them.
    fn reclaim_if_there_is_room(&self, engine: &dyn Engine) -> Result<Option<Reclaimed>, EngineError> {
        let needed = engine.disk_bytes();
        let free = process::disk_bytes(&self.place.data_dir).map_or(u64::MAX, |(used, all)| all - used);
        if free < needed {
            return Ok(None);
        }
        let _inflight = self.metrics.defragmentations.hold();
        engine.reclaim().map(Some)
    }

    fn give_up(&self, error: &EngineError) {
        self.fatal.report(format!("{error}; this node stops, because it cannot store what it applied"));
    }
}

fn is_worth_it(disk_bytes: u64, kept_bytes: u64, node: NodeId) -> bool {
    let garbage_max = kept_bytes + SLACK_BYTES;
    let earlier = garbage_max / (2 * TURNS) * (node.0 % TURNS);
    disk_bytes > kept_bytes + garbage_max - earlier
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use hadron_consensus::Time;
    use hadron_keyspace::Keyspace;
    use hadron_node::{Bootstrap, Config, Limits, Member, Node};
    use hadron_storage::engine::{Batch, ModelEngine, Read, Space, Visit};

    use super::*;

    /// An engine that takes more of the disk than there is, and what was asked of it.
    #[derive(Default)]
    struct Vast {
        model: ModelEngine,
        sized: AtomicUsize,
        rewritten: AtomicUsize,
    }

    impl Read for Vast {
        fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
            self.model.get(space, key)
        }

        fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), EngineError> {
            self.model.scan(space, from, to, visit)
        }
    }

    impl Engine for Vast {
        fn write(&self, batch: Batch) -> Result<(), EngineError> {
            self.model.write(batch)
        }

        fn persist(&self) -> Result<(), EngineError> {
            self.model.persist()
        }

        fn snapshot(&self) -> Box<dyn Read> {
            self.model.snapshot()
        }

        fn disk_bytes(&self) -> u64 {
            self.sized.fetch_add(1, Ordering::Relaxed);
            u64::MAX / 4
        }

        fn reclaim(&self) -> Result<Reclaimed, EngineError> {
            self.rewritten.fetch_add(1, Ordering::Relaxed);
            Ok(Reclaimed::default())
        }
    }

    /// A node that has hardly anything, in such an engine.
    fn node(engine: &Arc<Vast>) -> Node {
        let own = Member { id: 1, ..Member::default() };
        let pool = Bootstrap::of(vec![own.clone()]);
        let config = Config {
            node: NodeId(1),
            incarnation: 1,
            own,
            roster: pool.roster(),
            groups: pool.groups(NodeId(1)),
            heartbeat_us: 100_000,
            election_timeout_us: 1_000_000,
            seed: 1,
            limits: Limits::default(),
        };
        let open = |group: u64| Keyspace::open(engine.clone(), group, Default::default()).unwrap();
        let keyspaces = config.groups.iter().map(|group| (group.group, open(group.group.0))).collect();
        Node::new(config, BTreeMap::new(), &keyspaces, Time(1)).unwrap()
    }

    /// It rewrote what it took for garbage, with too little room on the disk, and the node stopped for a full one, again after each start.
    #[test]
    fn what_may_all_be_kept_is_rewritten_only_where_there_is_room_for_it_and_never_while_a_snapshot_comes() {
        let engine = Arc::new(Vast::default());
        let node = node(&engine);
        let place =
            Place { node: NodeId(1), board: Arc::downgrade(&node.board()), data_dir: std::env::temp_dir() };
        let (_reclaimer, queue) = queue();
        let weak: Weak<dyn Engine> = Arc::downgrade(&(engine.clone() as Arc<dyn Engine>));
        let mut work = Work {
            queue,
            engine: weak,
            place,
            metrics: Arc::default(),
            fatal: Fatal::new(),
            next: Instant::now(),
            pause: PAUSE_MIN,
        };
        let metrics = work.metrics.clone();
        let installing = metrics.snapshots_installing.hold();
        work.reclaim_if_worth_it(&*engine);
        assert_eq!(engine.sized.load(Ordering::Relaxed), 0, "what comes is in no keyspace yet");
        drop(installing);
        work.reclaim_if_worth_it(&*engine);
        assert_ne!(engine.sized.load(Ordering::Relaxed), 0);
        assert!(work.next > Instant::now(), "it was tried");
        assert_eq!(work.reclaim(&*engine), Err("too little room on the disk to write anew what is kept"));
        assert_eq!(engine.rewritten.load(Ordering::Relaxed), 0);
        assert!(work.fatal.found().is_none());
    }

    #[test]
    fn nodes_that_hold_the_same_rewrite_it_one_after_the_other() {
        let kept = 10 << 30;
        let begins = |node| (0..).find(|gib| is_worth_it(gib << 30, kept, NodeId(node)));
        assert_eq!([0, 1, 2, 3].map(begins), [21, 20, 18, 17].map(Some));
        assert!(!is_worth_it(SLACK_BYTES / 2, 0, NodeId(3)));
    }
}
