//! How much memory and log the nodes use, looked at every now and then.

use super::{Happening, World};
use crate::checkers::bounded_memory::{self, Bounds, Usage};

/// Microseconds between two looks.
const LOOK_US: u64 = 50_000;
/// Bytes that groups may go beyond their bounds: an entry or two of each that is written to at that moment.
const SLACK_BYTES: usize = 512 << 10;
/// Bytes that the log may have beyond what is alive in it and what may be kept: what comes in before those who keep
/// segments have been asked twice to move on.
const SPARE_LOG_BYTES: u64 = 4 << 20;

impl World {
    /// Looks at every node that runs.
    pub(super) fn measure(&mut self) {
        self.remember_disks();
        let limits = &self.settings.limits;
        for (node, machine) in &self.machines {
            let Some(process) = &machine.process else { continue };
            let node_says = process.node().memory_use();
            // A node that has lost count would keep to its bounds by its own account.
            let groups = process.node().board().groups();
            let counted: usize = groups.iter().map(|(_, group)| group.keyspace.unflushed_bytes()).sum();
            let usage = Usage {
                unflushed: counted.max(node_says.unflushed),
                log: node_says.log,
                log_on_disk: process.log.disk_bytes(),
            };
            let bounds = Bounds {
                unflushed: limits.node_unflushed_bytes + SLACK_BYTES,
                log: limits.node_log_bytes + SLACK_BYTES,
                // Those who are to move on cannot while they or their engine stand still.
                log_on_disk: match self.ails(*node) {
                    true => u64::MAX,
                    false => self.settings.pinned_bytes_max + SPARE_LOG_BYTES,
                },
            };
            self.usage = self.usage.max(usage);
            self.measured += 1;
            if let Err(violation) = bounded_memory::check(format_args!("n{node}"), usage, bounds) {
                return self.violate(violation);
            }
        }
        self.schedule.after(LOOK_US, Happening::Measure);
    }
}
