//! The opener: a thread on which replicas that come to this node are opened, one after the other.
//!
//! Opening reads the metadata of every version, and a new replica waits for an fsync of the engine; the loop must wait for neither,
//! nor must flushes. What destroyed replicas left is deleted here too, while there is nothing to open.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use hadron_consensus::GroupId;
use hadron_keyspace::{DestroyedSweep, OpenError, Options, destroyed_groups};
use hadron_node::{Event, OpenJob};
use hadron_storage::engine::Engine;
use tracing::warn;

use super::error::RunError;
use super::fatal::Fatal;
use super::inputs::Inputs;

enum Job {
    Open(OpenJob),
    Sweep(GroupId),
}

/// Sends work to the opener.
#[derive(Clone)]
pub(super) struct Opener(Sender<Job>);

impl Opener {
    /// Opens a replica; [`Event::Opened`] follows.
    pub(super) fn open(&self, job: OpenJob) {
        // Fails only after the thread died of something fatal, which ends the process.
        let _ = self.0.send(Job::Open(job));
    }

    /// Deletes what a destroyed replica left, at leisure.
    pub(super) fn sweep(&self, group: GroupId) {
        let _ = self.0.send(Job::Sweep(group));
    }
}

/// Starts the opener of keyspaces with these options. It ends when its queue is gone, or when the node stops: whatever is in the queue then is wanted
/// again after the next start.
pub(super) fn start(
    engine: Arc<dyn Engine>,
    options: Options,
    inputs: Inputs,
    fatal: Fatal,
) -> Result<(Opener, JoinHandle<()>), RunError> {
    let (sender, jobs) = unbounded();
    let run = move || {
        if let Err(error) = work(&engine, &options, &jobs, &inputs) {
            fatal.report(format!("{error}; this node stops, because it cannot delete what it does not need"));
        }
    };
    let thread = thread::Builder::new().name("opener".into()).spawn(run).map_err(RunError::Threads)?;
    Ok((Opener(sender), thread))
}

fn work(
    engine: &Arc<dyn Engine>,
    options: &Options,
    jobs: &Receiver<Job>,
    inputs: &Inputs,
) -> Result<(), OpenError> {
    // What an earlier process did not come to.
    let mut sweeps: VecDeque<_> =
        destroyed_groups(engine.as_ref())?.into_iter().map(DestroyedSweep::new).collect();
    while let Some(job) = next(jobs, !sweeps.is_empty())
        && !inputs.are_stopping()
    {
        match job {
            Next::Job(Job::Open(job)) => {
                let outcome = job.carry_out(engine, options.clone());
                inputs.event(Event::Opened { group: job.group, outcome });
            }
            Next::Job(Job::Sweep(group)) => {
                // One that is under way does not know of what came after it had begun.
                sweeps.retain(|sweep| sweep.group() != group.0);
                sweeps.push_back(DestroyedSweep::new(group.0));
            }
            Next::Idle => {
                let Some(mut sweep) = sweeps.pop_front() else { continue };
                match sweep.step(engine.as_ref()) {
                    Ok(true) => sweeps.push_back(sweep),
                    Ok(false) => {}
                    // It was destroyed because of that, and nobody reads it any more.
                    Err(error) if error.is_damage() => {
                        warn!(group = sweep.group(), %error, "what a destroyed replica left cannot be deleted")
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(())
}

enum Next {
    Job(Job),
    Idle,
}

/// The next job; does not wait for it while there is something to sweep. `None` at the end.
fn next(jobs: &Receiver<Job>, sweeps: bool) -> Option<Next> {
    if !sweeps {
        return jobs.recv().ok().map(Next::Job);
    }
    match jobs.try_recv() {
        Ok(job) => Some(Next::Job(job)),
        Err(TryRecvError::Empty) => Some(Next::Idle),
        Err(TryRecvError::Disconnected) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_storage::engine::ModelEngine;

    use super::super::shard::Input;
    use super::*;

    /// A node that was told to stop opened thousands of keyspaces first.
    #[test]
    fn nothing_is_opened_any_more_when_the_node_stops() {
        let (inputs, queues) = Inputs::new(1);
        let engine = Arc::new(ModelEngine::new());
        inputs.stop();
        let (opener, thread) = start(engine, Options::default(), inputs, Fatal::new()).unwrap();
        opener.open(OpenJob { group: GroupId(7), replica: None, is_in_log: false });
        drop(opener);
        thread.join().unwrap();
        assert!(!queues[0].try_iter().any(|input| matches!(input, Input::Event(_))));
    }
}
