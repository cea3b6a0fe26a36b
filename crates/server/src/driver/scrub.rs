//! The scrubber: a thread that reads again what the engine holds, one keyspace after the other, before somebody needs it and it is not there.
//!
//! Replicas compare what they have in memory; what is on disk would otherwise be looked at when it is read, or at the next start, and by
//! then others may have lost the same. A replica whose stored state is damaged is named by a CORRUPT alarm, like one that differs from the
//! others. `docs/design/2026-11-28-scrub.md`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, never, unbounded};
use hadron_consensus::GroupId;
use hadron_keyspace::{OpenError, Scrub, ScrubError};
use hadron_node::{Accusation, GroupBoard, accuse};
use tokio::runtime;
use tracing::{error, info, warn};

use super::error::RunError;
use super::handle::Handle;
use crate::api::Backend as _;
use crate::metrics::Metrics;

/// What is read at once.
const SLICE_BYTES: usize = 256 << 10;
/// What is read in a second at most.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// Finding a keyspace's records costs about as much as reading so much.
const KEYSPACE_BYTES: u64 = 64 << 10;
/// Pauses are no shorter than this.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The first pass begins within so small a part of the interval: nodes that start together shall not read together.
const FIRST_PART: u32 = 8;
/// When a damaged replica that is not named yet is looked at again.
const AGAIN: Duration = Duration::from_secs(600);

/// What others want of the scrubber.
pub(super) enum Ask {
    /// To look at a keyspace now.
    Suspect(GroupId),
    End,
}

/// The way to the scrubber. Cheap to clone.
#[derive(Clone)]
pub(super) struct Scrubber(Sender<Ask>);

/// That way, and where it ends.
pub(super) fn queue() -> (Scrubber, Receiver<Ask>) {
    let (sender, receiver) = unbounded();
    (Scrubber(sender), receiver)
}

impl Scrubber {
    /// Something of this keyspace's stored state did not fit.
    pub(super) fn suspect(&self, group: GroupId) {
        // Fails only while everything ends.
        let _ = self.0.send(Ask::Suspect(group));
    }

    /// The thread ends soon.
    pub(super) fn end(&self) {
        let _ = self.0.send(Ask::End);
    }
}

/// Starts the thread, which looks at every keyspace once in an `interval` (zero: only at those that are suspected).
pub(super) fn start(
    queue: Receiver<Ask>,
    interval: Duration,
    handle: Handle,
    runtime: runtime::Handle,
    metrics: Arc<Metrics>,
) -> Result<JoinHandle<()>, RunError> {
    let run = move || {
        let (suspects, unnamed) = (BTreeSet::new(), BTreeMap::new());
        let mut work = Work { queue, suspects, unnamed, owed: 0, handle, runtime, metrics };
        // It ends by that.
        let _: Result<(), Ended> = work.run(interval);
    };
    thread::Builder::new().name("scrub".into()).spawn(run).map_err(RunError::Threads)
}

/// Nobody needs the scrubber any more.
struct Ended;

struct Work {
    queue: Receiver<Ask>,
    suspects: BTreeSet<GroupId>,
    /// Where damage was found and the replica goes on, and when it was looked at.
    unnamed: BTreeMap<GroupId, Instant>,
    /// Bytes that were read since the last pause.
    owed: u64,
    handle: Handle,
    runtime: runtime::Handle,
    metrics: Arc<Metrics>,
}

impl Work {
    fn run(&mut self, interval: Duration) -> Result<(), Ended> {
        let begins = !interval.is_zero();
        let first = interval.mul_f64(rand::random::<f64>()) / FIRST_PART;
        let mut next = begins.then(|| Instant::now() + first);
        let mut pass: VecDeque<GroupId> = VecDeque::new();
        loop {
            let now = Instant::now();
            let again = self.unnamed.iter().find(|(_, looked)| now >= **looked + AGAIN);
            if let Some(group) = self.suspects.pop_first().or(again.map(|(group, _)| *group)) {
                self.scrub(group)?;
            } else if let Some(group) = pass.pop_front() {
                self.scrub(group)?;
            } else if next.is_some_and(|next| next <= now) {
                next = Some(now + interval);
                pass.extend(self.handle.board().groups().into_iter().map(|(group, _)| group));
            } else {
                let again = self.unnamed.values().map(|looked| *looked + AGAIN).min();
                self.wait_until([next, again].into_iter().flatten().min())?;
            }
        }
    }

    /// Returns then, or when somebody suspects something.
    fn wait_until(&mut self, moment: Option<Instant>) -> Result<(), Ended> {
        let moment = moment.map_or_else(never, crossbeam_channel::at);
        crossbeam_channel::select! {
            recv(self.queue) -> ask => self.take(ask.unwrap_or(Ask::End)),
            recv(moment) -> _ => Ok(()),
        }
    }

    fn take(&mut self, ask: Ask) -> Result<(), Ended> {
        match ask {
            // What is known to be damaged and cannot be helped is not read again each time that it shows.
            Ask::Suspect(group) if self.unnamed.contains_key(&group) => {}
            Ask::Suspect(group) => drop(self.suspects.insert(group)),
            Ask::End => return Err(Ended),
        }
        Ok(())
    }

    /// Lets the disk rest as long as is due for what was read.
    fn pause(&mut self) -> Result<(), Ended> {
        let pause = Duration::from_secs_f64(self.owed as f64 / BYTES_PER_SECOND as f64);
        if pause < PAUSE_MIN {
            return Ok(());
        }
        self.owed = 0;
        let until = Instant::now() + pause;
        loop {
            match self.queue.recv_deadline(until) {
                Ok(ask) => self.take(ask)?,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Ended),
            }
        }
    }

    fn scrub(&mut self, group: GroupId) -> Result<(), Ended> {
        let was_unnamed = self.unnamed.remove(&group).is_some();
        let Some(board) = self.handle.board().group(group).filter(|board| !board.quarantined()) else {
            self.show_unnamed();
            return Ok(());
        };
        let mut outcome = self.read(&board)?;
        // Nobody is accused for what was read once.
        if matches!(&outcome, Err(ScrubError::Stored(found)) if found.is_damage()) {
            outcome = self.read(&board)?;
        }
        // What was destroyed meanwhile is no damage.
        let is_gone = self.handle.board().group(group).is_none_or(|now| !Arc::ptr_eq(&now, &board));
        let (result, is_unnamed) = match outcome {
            Ok(()) => {
                if was_unnamed {
                    info!(group = group.0, "the stored state is as it should be again");
                }
                ("sound", false)
            }
            Err(ScrubError::Stored(found)) if found.is_damage() && !is_gone => {
                ("damaged", !self.name(group, &board, &found))
            }
            Err(ScrubError::Stored(found)) if !is_gone => {
                warn!(group = group.0, error = %found, "the stored state cannot be read now");
                ("unreadable", was_unnamed)
            }
            Err(_) => ("replaced", was_unnamed && !is_gone),
        };
        if is_unnamed {
            self.unnamed.insert(group, Instant::now());
        }
        self.metrics.scrubs.with(&[result]).inc();
        self.show_unnamed();
        Ok(())
    }

    fn show_unnamed(&self) {
        self.metrics.scrub_damaged.set_integer(self.unnamed.len() as u64);
    }

    fn read(&mut self, board: &GroupBoard) -> Result<Result<(), ScrubError>, Ended> {
        self.owed += KEYSPACE_BYTES;
        self.pause()?;
        let mut scrub = match Scrub::begin(board.keyspace.clone()) {
            Ok(Some(scrub)) => scrub,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        loop {
            match scrub.step(SLICE_BYTES) {
                Ok(Some(bytes)) => {
                    self.metrics.scrub_bytes.add(bytes as u64);
                    self.owed += bytes as u64;
                    self.pause()?;
                }
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Has everybody know that this node's replica is damaged, so that it serves no more and is rebuilt. Whether they do.
    fn name(&self, group: GroupId, board: &GroupBoard, found: &OpenError) -> bool {
        error!(group = group.0, error = %found, "what is stored of this replica is damaged");
        match accuse(board, self.handle.identity().member_id) {
            Accusation::Raise(alarm) => {
                let raised = self.runtime.block_on(self.handle.write(group, alarm));
                if let Err(error) = &raised {
                    warn!(group = group.0, %error, "cannot raise the alarm; this replica goes on serving for now");
                }
                raised.is_ok()
            }
            Accusation::Raised => true,
            Accusation::TooFewLeft => {
                warn!(
                    group = group.0,
                    "this replica goes on serving what can be read: without it too few would be left. Take a backup, and add \
                     members before this one is rebuilt"
                );
                false
            }
        }
    }
}
