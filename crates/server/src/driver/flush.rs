//! The flush thread: writes what the node gathered to the engine, in order, and makes it durable when asked.
//!
//! Nothing that a client waits for passes through here, so an engine that stalls only delays the cutting of the log. The
//! queue needs no bound: a group has at most one flush and one sweep in it.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Sender, unbounded};
use hadron_consensus::GroupId;
use hadron_keyspace::{OpenError, Sweep};
use hadron_node::{DestroyJob, Event, FlushJob};
use hadron_storage::engine::Engine;

use super::error::RunError;
use super::fatal::Fatal;
use super::inputs::Inputs;
use crate::metrics::Metrics;

enum Job {
    Flush(FlushJob),
    Sweep(GroupId, Sweep),
    Destroy(DestroyJob),
    /// For the shard beside.
    Persist(usize, u64),
}

/// Sends work to the flush thread.
#[derive(Clone)]
pub(super) struct FlushQueue(Sender<Job>);

impl FlushQueue {
    /// Queues a batch; [`Event::Flushed`] follows.
    pub(super) fn flush(&self, job: FlushJob) {
        self.push(Job::Flush(job));
    }

    /// Queues physical deletions; [`Event::Swept`] follows.
    pub(super) fn sweep(&self, group: GroupId, sweep: Sweep) {
        self.push(Job::Sweep(group, sweep));
    }

    /// Leaves a replica's tombstone after everything queued before; [`Event::Destroyed`] follows.
    pub(super) fn destroy(&self, job: DestroyJob) {
        self.push(Job::Destroy(job));
    }

    /// Makes everything queued before durable; [`Event::EnginePersisted`] for the shard follows.
    pub(super) fn persist(&self, shard: usize, ticket: u64) {
        self.push(Job::Persist(shard, ticket));
    }

    fn push(&self, job: Job) {
        // Fails only after the thread died of something fatal, which ends the process.
        let _ = self.0.send(job);
    }
}

/// Starts the flush thread. It ends, with the engine durable, when the queue is gone. What is in it when the node stops is not done: the log has
/// all of it, and who was to be destroyed is found again after the next start.
pub(super) fn start(
    engine: Arc<dyn Engine>,
    inputs: Inputs,
    metrics: Arc<Metrics>,
    fatal: Fatal,
) -> Result<(FlushQueue, JoinHandle<()>), RunError> {
    let (sender, jobs) = unbounded();
    let run = move || {
        let outcome: Result<(), OpenError> = (|| {
            metrics.engine_disk_bytes.set_integer(engine.disk_bytes());
            for job in jobs.iter().take_while(|_| !inputs.are_stopping()) {
                carry_out(&*engine, job, &metrics, &inputs)?;
            }
            Ok(engine.persist()?)
        })();
        if let Err(error) = outcome {
            fatal.report(format!("{error}; this node stops, because it cannot store what it applied"));
        }
    };
    let thread = thread::Builder::new().name("flush".into()).spawn(run).map_err(RunError::Threads)?;
    Ok((FlushQueue(sender), thread))
}

fn carry_out(engine: &dyn Engine, job: Job, metrics: &Metrics, inputs: &Inputs) -> Result<(), OpenError> {
    match job {
        Job::Flush(FlushJob { group, flush }) => {
            let began = Instant::now();
            engine.write(flush.batch())?;
            metrics.engine_flush_duration.observe(began.elapsed());
            inputs.event(Event::Flushed { group, flush });
        }
        Job::Sweep(group, sweep) => {
            engine.write(sweep.batch())?;
            inputs.event(Event::Swept { group });
        }
        Job::Destroy(job) => {
            job.carry_out(engine)?;
            inputs.event(Event::Destroyed { group: job.group });
        }
        Job::Persist(shard, ticket) => {
            let began = Instant::now();
            engine.persist()?;
            metrics.backend_commit_duration.observe(began.elapsed());
            metrics.engine_disk_bytes.set_integer(engine.disk_bytes());
            inputs.to_shard(shard, Event::EnginePersisted { ticket });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_consensus::ReplicaId;
    use hadron_storage::engine::ModelEngine;

    use super::super::shard::Input;
    use super::*;

    /// A node that was told to stop left thousands of tombstones first, with an fsync for each.
    #[test]
    fn nothing_is_destroyed_any_more_when_the_node_stops() {
        let (inputs, queues) = Inputs::new(1);
        let engine = Arc::new(ModelEngine::new());
        inputs.stop();
        let (queue, thread) = start(engine, inputs, Arc::default(), Fatal::new()).unwrap();
        queue.destroy(DestroyJob { group: GroupId(7), replica: ReplicaId(1) });
        drop(queue);
        thread.join().unwrap();
        assert!(!queues[0].try_iter().any(|input| matches!(input, Input::Event(_))));
    }
}
