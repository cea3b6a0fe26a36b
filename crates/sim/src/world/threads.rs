//! The threads beside a node's loop: one that writes and syncs the log, one that works for the engine. Each does one
//! thing at a time and takes its time for it; what waits meanwhile is done together next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hadron_consensus::GroupId;
use hadron_keyspace::{DestroyedSweep, Owner, Sweep, destroyed_groups};
use hadron_node::{DestroyJob, Event as NodeEvent, FlushJob, OpenJob, OpenOutcome};
use hadron_storage::engine::Engine;
use hadron_storage::wal::{Record, Wal};
use rand::Rng;

use super::lies::Lie;
use super::machine::Machine;
use super::snapshots::{Incoming, Transfer};
use super::{Happening, Life, Trouble, World};
use crate::history::Violation;

/// Microseconds between two looks at which groups pin old segments.
const PINNING_US: u64 = 500_000;

/// The log and the thread that alone touches it.
pub(super) struct LogThread {
    pub(super) wal: Wal,
    /// Records that wait for the write that is under way.
    waiting: Vec<Record>,
    /// The newest batch of each shard in it.
    waiting_sequences: BTreeMap<usize, u64>,
    /// The newest batch of each shard in the write that is under way: written, not yet synced.
    pub(super) writing: Option<BTreeMap<usize, u64>>,
    /// Batches that were written.
    pub(super) batches: u64,
    looked_at: u64,
}

/// The engine's thread: jobs in the order they were given.
#[derive(Default)]
pub(super) struct EngineThread {
    jobs: VecDeque<EngineJob>,
    /// Flushes that hang.
    stalled: Vec<FlushJob>,
    busy: bool,
}

/// Work for the engine's thread.
pub(super) enum EngineJob {
    Flush(FlushJob),
    Sweep(GroupId, Sweep),
    /// For the shard beside.
    Persist(usize, u64),
    Open(OpenJob),
    Destroy(DestroyJob),
    /// Switch to a received snapshot; `Some` until that is done, then it is made durable.
    Install(Box<Incoming>),
    InstallPersist(Box<Incoming>),
}

impl EngineJob {
    /// Who sent the snapshot that this is about, and which.
    fn transfer(&self) -> Option<Transfer> {
        match self {
            EngineJob::Install(incoming) | EngineJob::InstallPersist(incoming) => Some(incoming.transfer()),
            _ => None,
        }
    }
}

impl EngineThread {
    /// What is to be done next.
    pub(super) fn next(&mut self) -> Option<EngineJob> {
        self.jobs.pop_front()
    }

    /// The snapshots that it was told to switch to.
    pub(super) fn installing(&self) -> impl Iterator<Item = &Incoming> {
        self.jobs.iter().filter_map(|job| match job {
            EngineJob::Install(incoming) | EngineJob::InstallPersist(incoming) => Some(&**incoming),
            _ => None,
        })
    }
}

impl LogThread {
    /// Bytes that the log takes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.wal.disk_bytes()
    }

    pub(super) fn new(wal: Wal) -> LogThread {
        let waiting_sequences = BTreeMap::new();
        LogThread { wal, waiting: Vec::new(), waiting_sequences, writing: None, batches: 0, looked_at: 0 }
    }

    /// Takes what waits for the next write, which begins with that.
    pub(super) fn take_waiting(&mut self) -> Option<Vec<Record>> {
        if self.writing.is_some() || self.waiting.is_empty() {
            return None;
        }
        self.writing = Some(std::mem::take(&mut self.waiting_sequences));
        self.batches += 1;
        Some(std::mem::take(&mut self.waiting))
    }
}

impl World {
    /// The batch's shard and number come with it.
    pub(super) fn append_to_log(
        &mut self,
        life: Life,
        (shard, sequence): (usize, u64),
        records: Vec<Record>,
    ) {
        records.iter().for_each(|record| self.check_forgetting(life.node, record));
        self.expect_records(life.node, &records);
        let Some(process) = self.process(life) else { return };
        process.log.waiting.extend(records);
        process.log.waiting_sequences.insert(shard, sequence);
        self.write_log(life);
    }

    /// What a living replica has in its log it has acknowledged, or may have.
    fn check_forgetting(&mut self, node: u64, record: &Record) {
        let Record::Forget(group) = record else { return };
        let Some(machine) = self.machines.get(&node) else { return };
        let board = machine.process.as_ref().map(|process| process.node().board());
        let is_deleted = board.is_some_and(|board| board.with_catalog(|catalog| catalog.is_deleted(*group)));
        let found = match Owner::of(&*machine.engine, group.0) {
            Ok(Owner::Living(replica)) => {
                format!("n{node} forgets the log of replica {replica} of {group}, which lives there")
            }
            Ok(Owner::Nobody) if !is_deleted => {
                format!("n{node} forgets a log of {group}, whose owner its engine has lost")
            }
            _ => return,
        };
        self.violate(Violation::new("durable_ack", found));
    }

    /// Writes everything that waits as one batch, unless a write is under way.
    fn write_log(&mut self, life: Life) {
        let Some(records) = self.process(life).and_then(|process| process.log.take_waiting()) else { return };
        self.promises.write(life.node);
        let Some(LogThread { wal, .. }) = self.process(life).map(|process| &mut process.log) else { return };
        if let Err(error) = wal.append(&records) {
            return self.on_disk_failure(life, &format!("cannot append to its log: {error}"));
        }
        if records.iter().any(|record| !matches!(record, Record::Entries(..))) {
            self.delicate_moment(life.node);
        }
        self.report_too_early(life);
        let ends_at = self.disk_ends_at(life, |machine| machine.log_hangs_until);
        self.schedule.at(ends_at, Happening::LogSynced(life));
    }

    /// The sync ends: what was written is durable.
    pub(super) fn on_log_synced(&mut self, life: Life) {
        let (now, pinned_bytes_max) = (self.schedule.now(), self.settings.pinned_bytes_max);
        let Some(process) = self.process(life) else { return };
        if process.paused_until > now {
            let until = process.paused_until;
            return self.schedule.at(until, Happening::LogSynced(life));
        }
        let Some(sequences) = process.log.writing.take() else { return };
        if let Err(error) = self.sync_log(life) {
            return self.on_disk_failure(life, &format!("cannot sync its log: {error}"));
        }
        self.promises.synced(life.node);
        let Some(process) = self.process(life) else { return };
        let mut pinning = Vec::new();
        if now >= process.log.looked_at + PINNING_US {
            process.log.looked_at = now;
            pinning = process.log.wal.pinning(pinned_bytes_max);
        }
        if self.lies(Lie::PinnedForever) {
            pinning.clear();
        }
        if !self.lies(Lie::DurableBeforeFsync) {
            self.tell_durable(life, sequences);
        }
        if !pinning.is_empty() {
            self.deliver(life, NodeEvent::LogPinned { groups: pinning });
        }
        self.write_log(life);
        self.rest_log(life);
    }

    /// Tells each shard that its batches are durable up to the one beside.
    pub(super) fn tell_durable(&mut self, life: Life, sequences: BTreeMap<usize, u64>) {
        for (shard, sequence) in sequences {
            self.deliver_to(life, shard, NodeEvent::LogDurable { sequence });
        }
    }

    pub(super) fn queue_engine_jobs(
        &mut self,
        life: Life,
        flushes: Vec<FlushJob>,
        sweeps: Vec<(GroupId, Sweep)>,
        persist: Option<(usize, u64)>,
    ) {
        let flushes = flushes.into_iter().map(EngineJob::Flush);
        let sweeps = sweeps.into_iter().map(|(group, sweep)| EngineJob::Sweep(group, sweep));
        let persist = persist.into_iter().map(|(shard, ticket)| EngineJob::Persist(shard, ticket));
        for job in flushes.chain(sweeps).chain(persist) {
            self.queue_engine_job(life, job);
        }
    }

    pub(super) fn queue_engine_job(&mut self, life: Life, job: EngineJob) {
        let Some(process) = self.process(life) else { return };
        process.engine.jobs.push_back(job);
        self.start_engine_job(life);
    }

    fn start_engine_job(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        if process.engine.busy || process.engine.jobs.is_empty() {
            return;
        }
        process.engine.busy = true;
        let ends_at = self.disk_ends_at(life, |machine| machine.engine_hangs_until);
        self.schedule.at(ends_at, Happening::EngineDone(life));
    }

    /// The job's time is over: now it has its effect.
    pub(super) fn on_engine_done(&mut self, life: Life) {
        let now = self.schedule.now();
        let Some(process) = self.process(life) else { return };
        if process.paused_until > now {
            let until = process.paused_until;
            return self.schedule.at(until, Happening::EngineDone(life));
        }
        process.engine.busy = false;
        let Some(job) = process.engine.next() else { return };
        let transfer = job.transfer();
        if let Err(what) = self.do_engine_job(life, job) {
            // Whoever sent the snapshot hears that its connection is gone.
            transfer.into_iter().for_each(|transfer| self.snapshot_fails(transfer));
            return self.on_disk_failure(life, &format!("the engine fails: {what}"));
        }
        self.start_engine_job(life);
    }

    /// Flushes that hung until everything was healed.
    pub(super) fn resume_flushes(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        for job in std::mem::take(&mut process.engine.stalled) {
            self.queue_engine_job(life, EngineJob::Flush(job));
        }
    }

    pub(super) fn do_engine_job(&mut self, life: Life, job: EngineJob) -> Result<(), String> {
        let Some(machine) = self.machines.get(&life.node) else { return Ok(()) };
        let engine = machine.engine.clone();
        match job {
            EngineJob::Flush(job) if self.is_troubled(Trouble::StalledFlush(life.node, job.group)) => {
                if let Some(process) = self.process(life) {
                    process.engine.stalled.push(job);
                }
            }
            EngineJob::Flush(FlushJob { group, flush }) => {
                self.remember_state(life.node, group);
                engine.write(flush.batch()).map_err(|error| error.to_string())?;
                self.deliver(life, NodeEvent::Flushed { group, flush });
            }
            EngineJob::Sweep(group, sweep) => {
                let batch = sweep.batch();
                if !self.lies(Lie::NothingSwept) {
                    engine.write(batch).map_err(|error| error.to_string())?;
                }
                self.deliver(life, NodeEvent::Swept { group });
            }
            EngineJob::Persist(shard, ticket) => {
                if !self.lies(Lie::EngineForgets) {
                    engine.persist().map_err(|error| error.to_string())?;
                }
                self.delicate_moment(life.node);
                self.deliver_to(life, shard, NodeEvent::EnginePersisted { ticket });
            }
            EngineJob::Open(job) => self.open_replica(life, job)?,
            EngineJob::Destroy(job) => {
                job.carry_out(engine.as_ref()).map_err(|error| error.to_string())?;
                self.sweep_destroyed(life, job.group)?;
                self.delicate_moment(life.node);
                self.deliver(life, NodeEvent::Destroyed { group: job.group });
            }
            EngineJob::Install(mut incoming) => {
                incoming.switch()?;
                self.delicate_moment(life.node);
                if let Some(process) = self.process(life) {
                    process.engine.jobs.push_front(EngineJob::InstallPersist(incoming));
                }
            }
            EngineJob::InstallPersist(incoming) => {
                engine.persist().map_err(|error| error.to_string())?;
                self.delicate_moment(life.node);
                self.installed(life, *incoming);
            }
        }
        Ok(())
    }

    /// What an earlier process did not come to.
    pub(super) fn sweep_all_destroyed(&mut self, life: Life) -> Result<(), String> {
        let Some(machine) = self.machines.get(&life.node) else { return Ok(()) };
        let groups = destroyed_groups(machine.engine.as_ref()).map_err(|error| error.to_string())?;
        groups.into_iter().try_for_each(|group| self.sweep_destroyed(life, GroupId(group)))
    }

    /// Deletes what a destroyed replica left, as far as it can be read.
    fn sweep_destroyed(&mut self, life: Life, group: GroupId) -> Result<(), String> {
        let Some(machine) = self.machines.get(&life.node) else { return Ok(()) };
        let mut sweep = DestroyedSweep::new(group.0);
        loop {
            match sweep.step(machine.engine.as_ref()) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.is_damage() && self.ever_rotted(life.node, group) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn open_replica(&mut self, life: Life, job: OpenJob) -> Result<(), String> {
        let Some(machine) = self.machines.get(&life.node) else { return Ok(()) };
        let Some(process) = &machine.process else { return Ok(()) };
        let engine: Arc<dyn Engine> = machine.engine.clone();
        let outcome = job.carry_out(&engine, process.keyspaces.clone());
        match outcome {
            OpenOutcome::Damaged(..) if self.is_rotten(life.node, job.group) => {}
            OpenOutcome::Damaged(_, why) | OpenOutcome::Unusable(why) => return Err(why),
            _ => {}
        }
        self.delicate_moment(life.node);
        self.deliver(life, NodeEvent::Opened { group: job.group, outcome });
        Ok(())
    }

    /// The node stops when its disk fails, as it should; that is a violation only if nothing was wrong with the disk.
    pub(super) fn on_disk_failure(&mut self, life: Life, what: &str) {
        let is_ailing = self.machines.get(&life.node).is_some_and(|machine| machine.is_ailing);
        if is_ailing {
            self.trace.note(self.schedule.now(), format_args!("n{} {what}", life.node));
            return self.stop_for_its_disk(life.node);
        }
        self.violate(Violation::new("no_fatal", format!("n{} {what}", life.node)));
    }

    /// When a write and sync that begins now ends on this machine, what hangs not before that.
    fn disk_ends_at(&mut self, life: Life, hangs_until: impl FnOnce(&Machine) -> u64) -> u64 {
        let usual_us = self.rng.random_range(50..=self.settings.sync_us_max);
        let Some(machine) = self.machines.get(&life.node) else { return self.schedule.now() + usual_us };
        (self.schedule.now() + machine.slowness * usual_us).max(hangs_until(machine))
    }
}
