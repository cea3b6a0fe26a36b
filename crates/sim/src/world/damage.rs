//! Machines that come back changed: with a flipped bit in their log, or empty. Such a machine must not serve as if nothing
//! had happened, and as there is no way yet to replace a member, it stays down.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hadron_consensus::NodeId;
use hadron_storage::disk::{Disk, MemoryDisk, read_all};
use hadron_storage::wal::{Recovered, Wal, WalError};
use rand::Rng;

use super::machine::LOG_DIRECTORY;
use super::story::{Stop, StoryEvent};
use super::{Happening, World};
use crate::history::Violation;

/// What is to happen to a machine before it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// A bit of its log flips.
    Flip,
    /// It loses everything.
    Wipe,
}

impl World {
    /// A machine loses its power and will come back changed, as long as a majority stays as it was.
    pub(super) fn damage_a_machine(&mut self) {
        let node = self.rng.random_range(1..=self.settings.nodes);
        let damage = if self.rng.random_bool(0.8) { Damage::Flip } else { Damage::Wipe };
        let stop = if self.rng.random_bool(0.5) { Stop::PowerLoss } else { Stop::Killed };
        let changed = self.machines.values().filter(|machine| machine.is_gone || machine.damage.is_some());
        if changed.count() as u64 >= (self.settings.nodes - 1) / 2 || self.life(node).is_none() {
            return;
        }
        self.stop(node, stop);
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.damage = Some(damage);
        }
        self.schedule.after(200_000, Happening::Boot(node));
    }

    /// Does to a machine that starts what was to happen to it. False if it is gone for good.
    pub(super) fn suffer(&mut self, node: u64) -> bool {
        let damage = self.machines.get_mut(&node).and_then(|machine| machine.damage.take());
        let fate = match damage {
            None => return true,
            Some(Damage::Wipe) => self.wipe(node).map(Some),
            Some(Damage::Flip) => self.flip_a_bit(node),
        };
        match fate {
            Ok(None) => true,
            Ok(Some(why)) => {
                if let Some(machine) = self.machines.get_mut(&node) {
                    machine.is_gone = true;
                }
                self.tell(StoryEvent::Gone { node, why });
                false
            }
            Err(violation) => {
                self.violate(violation);
                false
            }
        }
    }

    /// A machine without its data is a stranger: nobody may admit it under its old name.
    fn wipe(&mut self, node: u64) -> Result<String, Violation> {
        let stranger: u64 = self.rng.random_range(1_000..u64::MAX);
        for (other, machine) in &self.machines {
            let Some(process) = &machine.process else { continue };
            if process.node.board().admit(NodeId(node), stranger).is_ok() {
                let found = format!("n{other} admits n{node}, which has lost all its data");
                return Err(Violation::new("identity", found));
            }
        }
        Ok("it was wiped".into())
    }

    /// Flips a bit of the log. Says why the machine is gone, if it must not start: either the log refuses and names the
    /// damage, or the damage is in the one place where it looks like the torn tail of a crash.
    fn flip_a_bit(&mut self, node: u64) -> Result<Option<String>, Violation> {
        let Some(machine) = self.machines.get(&node) else { return Ok(None) };
        let disk = machine.disk.clone();
        let violation = |found: String| Violation::new("damage_named", format!("n{node}: {found}"));
        let whole = self.read_log(&disk.fork(), node).map_err(|error| violation(error.to_string()))?;
        let Some((file, offset)) = self.a_written_byte(&disk) else { return Ok(None) };
        let bit = self.rng.random_range(0..8);
        disk.flip_bit(&file, offset, bit).map_err(|error| violation(error.to_string()))?;
        let place = format!("bit {bit} of byte {offset} of {}", file.display());
        match self.read_log(&disk.fork(), node) {
            Ok(recovered) if recovered.groups == whole.groups => Ok(None),
            Ok(recovered) if recovered.torn_tail.is_some() && whole.torn_tail.is_none() => {
                Ok(Some(format!("{place} flipped in its last batch")))
            }
            Ok(recovered) if recovered.torn_tail != whole.torn_tail => {
                Ok(Some(format!("{place} flipped before its torn tail")))
            }
            Ok(_) => Err(violation(format!("{place} flipped, and the log says nothing"))),
            Err(error @ (WalError::Io { .. } | WalError::Poisoned | WalError::Misuse(_))) => {
                Err(violation(format!("{place} flipped, and the log says: {error}")))
            }
            Err(error) if error.to_string().contains(LOG_DIRECTORY) => Ok(Some(format!("{place}: {error}"))),
            Err(error) => Err(violation(format!("{place} flipped, and the log names no file: {error}"))),
        }
    }

    fn read_log(&self, disk: &MemoryDisk, node: u64) -> Result<Recovered, WalError> {
        let options = self.log_options(node);
        Wal::open(Arc::new(disk.clone()), Path::new(LOG_DIRECTORY), options).map(|(_, recovered)| recovered)
    }

    /// A place in the log that something was written to.
    fn a_written_byte(&mut self, disk: &MemoryDisk) -> Option<(PathBuf, u64)> {
        let directory = Path::new(LOG_DIRECTORY);
        let names = disk.list(directory).ok()?;
        for _ in 0..20 {
            let file = directory.join(&names[self.rng.random_range(0..names.len())]);
            let bytes = read_all(&*disk.open(&file).ok()?).ok()?;
            let written = bytes.iter().rposition(|byte| *byte != 0);
            if let Some(last) = written {
                return Some((file, self.rng.random_range(0..=last as u64)));
            }
        }
        None
    }
}
