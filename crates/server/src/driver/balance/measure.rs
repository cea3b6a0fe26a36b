//! Measuring: what each replica here was used for, and what the node has.
//!
//! Processor time is not measured for each replica, which would cost a reading of the clock for every command: what the process took is
//! divided by what its replicas did meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use hadron_balance::{LatencyMeter, Load, Meter, Resource, Totals};
use hadron_consensus::{GroupId, NodeId, Time};
use hadron_node::{Board, GroupBoard, ReplicaReport, Report, UseTotals, amounts_of, damaged, settled};

use crate::metrics::Metrics;
use crate::process;

/// What a watch event weighs against a command or a read.
const EVENT_WEIGHT: f64 = 0.2;
/// What leading a command weighs beside applying it.
const LEADING_WEIGHT: f64 = 2.0;

/// The meters of a node.
pub(super) struct Measure {
    zone: String,
    /// A directory on the disk that is measured.
    disk: PathBuf,
    node: Meter,
    fsync: LatencyMeter,
    replicas: BTreeMap<GroupId, Replica>,
    /// Processor time when it was looked at last, in microseconds.
    cpu_us: u64,
}

/// The meter of one replica.
#[derive(Default)]
struct Replica {
    meter: Meter,
    seen: UseTotals,
    /// Its part of the processor time so far, in microseconds.
    cpu_us: f64,
}

impl Measure {
    pub(super) fn new(zone: String, disk: PathBuf) -> Measure {
        Measure {
            zone,
            disk,
            node: Meter::default(),
            fsync: LatencyMeter::default(),
            replicas: BTreeMap::new(),
            cpu_us: 0,
        }
    }

    /// Measures, and says what it came to.
    pub(super) fn take(&mut self, now: Time, board: &Board, me: NodeId, metrics: &Metrics) -> Report {
        let groups = board.groups();
        let cpu_us = process::cpu_us().unwrap_or(self.cpu_us);
        let spent_us = cpu_us.saturating_sub(std::mem::replace(&mut self.cpu_us, cpu_us));
        // In the order of their ids.
        self.replicas.retain(|id, _| groups.binary_search_by_key(id, |(group, _)| *group).is_ok());
        let leads = |group: &GroupBoard| group.leader() == Some(me);
        let works: Vec<f64> =
            groups.iter().map(|(id, group)| self.work_of(*id, group, leads(group))).collect();
        let all: f64 = works.iter().sum();
        for ((id, group), work) in groups.iter().zip(works) {
            let replica = self.replicas.entry(*id).or_default();
            replica.cpu_us += if all > 0.0 { spent_us as f64 * work / all } else { 0.0 };
            replica.meter.observe(now, replica.totals(group));
        }
        self.node.observe(now, self.node_totals(&groups, cpu_us));
        let fsyncs = &metrics.wal_fsync_duration;
        self.fsync.observe(now, fsyncs.count(), fsyncs.sum_us());
        Report { settled: settled(board, me), damaged: damaged(board), ..self.report(&groups, leads) }
    }

    /// What a replica did since the last look.
    fn work_of(&mut self, id: GroupId, group: &GroupBoard, leads: bool) -> f64 {
        let replica = self.replicas.entry(id).or_default();
        let now = group.uses().totals();
        let before = std::mem::replace(&mut replica.seen, now);
        // Another replica of the group begins at 0.
        let since = |now: u64, before: u64| if now < before { now } else { now - before } as f64;
        let weight = if leads { 1.0 + LEADING_WEIGHT } else { 1.0 };
        since(now.commands, before.commands) * weight
            + since(now.reads, before.reads)
            + since(now.events, before.events) * EVENT_WEIGHT
    }

    fn node_totals(&self, groups: &[(GroupId, Arc<GroupBoard>)], cpu_us: u64) -> Totals {
        let mut totals = Totals {
            cpu_us,
            memory_bytes: process::memory_bytes().map_or(0, |(_, resident)| resident),
            ..Totals::default()
        };
        for (_, group) in groups {
            let uses = group.uses().totals();
            totals.read_bytes += uses.read_bytes;
            totals.written_bytes += uses.written_bytes;
            totals.requests += uses.commands + uses.reads;
            totals.events += uses.events;
            totals.storage_bytes += group.keyspace.db_bytes();
        }
        totals
    }

    fn report(&self, groups: &[(GroupId, Arc<GroupBoard>)], leads: impl Fn(&GroupBoard) -> bool) -> Report {
        let carried = self.replicas.values().fold(Load::ZERO, |sum, replica| sum + &replica.meter.steady());
        let (disk_used, disk_total) = process::disk_bytes(&self.disk).unwrap_or_default();
        let replicas = self.replicas.iter().filter_map(|(id, replica)| replica.report(*id));
        Report {
            zone: self.zone.clone(),
            capacity: amounts_of(&capacity(disk_total)),
            short: amounts_of(&self.node.short()),
            long: amounts_of(&self.node.long()),
            own: amounts_of(&self.node.steady().without(&carried)),
            disk_used,
            disk_total,
            fsync_us: self.fsync.short_us(),
            replicas: replicas.collect(),
            leads: groups.iter().filter(|(_, group)| leads(group)).map(|(id, _)| id.0).collect(),
            ..Report::default()
        }
    }
}

impl Replica {
    fn totals(&self, group: &GroupBoard) -> Totals {
        let uses = self.seen;
        Totals {
            cpu_us: self.cpu_us as u64,
            read_bytes: uses.read_bytes,
            written_bytes: uses.written_bytes,
            requests: uses.commands + uses.reads,
            events: uses.events,
            storage_bytes: group.keyspace.db_bytes(),
            memory_bytes: group.keyspace.unflushed_bytes() as u64,
        }
    }

    /// Nothing for one that carries nothing: there may be thousands.
    fn report(&self, id: GroupId) -> Option<ReplicaReport> {
        let (steady, short) = (self.meter.steady(), self.meter.short());
        let carries = |load: &Load| Resource::ALL.into_iter().any(|resource| load[resource] > 0.0);
        (carries(&steady) || carries(&short)).then(|| ReplicaReport {
            group: id.0,
            steady: amounts_of(&steady),
            short: amounts_of(&short),
        })
    }
}

/// What the machine has. What is not known is not limited.
fn capacity(disk_total: u64) -> Load {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Load::ZERO
        .with(Resource::Cpu, cores as f64)
        .with(Resource::Storage, disk_total as f64)
        .with(Resource::Memory, process::machine_memory_bytes().unwrap_or_default() as f64)
}
