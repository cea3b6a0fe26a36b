//! Machines that come back changed: with a flipped bit in their log or their engine, or empty. Such a machine must not
//! serve as if nothing had happened; it stays down, and where members come and go it is replaced.
//!
//! The engine's checksums are modelled: who reads a record with a flipped bit is told so. What must hold is that nobody
//! passes that over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{DEFAULT_GROUP, NodeId};
use hadron_keyspace::Keyspace;
use hadron_proto::etcdserverpb::RangeRequest;
use hadron_storage::disk::{Disk, MemoryDisk, read_all};
use hadron_storage::engine::ModelEngine;
use hadron_storage::wal::{Recovered, Wal, WalError};
use rand::Rng;

use super::lies::{Lie, a_record, flip_in_engine};
use super::machine::LOG_DIRECTORY;
use super::observe::first_difference;
use super::settings::pick;
use super::story::{Stop, StoryEvent};
use super::watchers::history_from;
use super::{Happening, World};
use crate::etcd;
use crate::history::{Event, KeyValue, Violation};

/// What whoever finds damage says is to be done.
const ADVICE: &str = "rebuild this member from the others";

/// What is to happen to a machine before it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// A bit of its log flips.
    LogFlip,
    /// A bit of its engine flips.
    EngineFlip,
    /// It loses everything.
    Wipe,
}

impl World {
    /// A machine loses its power and will come back changed, as long as a majority stays as it was.
    pub(super) fn damage_a_machine(&mut self) {
        let node = self.any_node();
        let kinds = [Damage::LogFlip, Damage::LogFlip, Damage::EngineFlip, Damage::EngineFlip, Damage::Wipe];
        let damage = *pick(&mut self.rng, &kinds);
        let stop = *pick(&mut self.rng, &[Stop::PowerLoss, Stop::Killed, Stop::Asked]);
        let Some(life) = self.life(node).filter(|_| !self.too_many_changed()) else { return };
        match stop {
            Stop::Asked if !self.end_in_order(life) => return,
            Stop::Asked => {}
            _ => self.stop(node, stop),
        }
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
            Some(Damage::LogFlip) => self.flip_in_log(node),
            Some(Damage::EngineFlip) => self.flip_in_engine(node),
        };
        match fate {
            Ok(None) => {
                // The bit may be one of the seal, which then is as if it had not been.
                self.machines.get_mut(&node).into_iter().for_each(|machine| machine.is_sealed = false);
                true
            }
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
        let stranger: u64 = match self.lies(Lie::OldName) {
            true => node,
            false => self.rng.random_range(1_000..u64::MAX),
        };
        let came_later = self.machines.get(&node).is_some_and(|machine| machine.joined.is_some());
        for (other, machine) in &self.machines {
            let Some(process) = &machine.process else { continue };
            // Who has not heard yet what a new member says of itself knows it from the first handshake: what the server
            // writes down of that is not simulated.
            if came_later && process.node().board().data_dir_id(NodeId(node)).is_none() {
                continue;
            }
            if process.node().board().admit(NodeId(node), stranger, 0).is_ok() {
                let found = format!("n{other} admits n{node}, which has lost all its data");
                return Err(Violation::new("identity", found));
            }
        }
        Ok("it was wiped".into())
    }

    /// Flips a bit of the log. Says why the machine is gone, if it must not start: either the log refuses and names the
    /// damage, or the damage is in the one place where it looks like the torn tail of a crash.
    fn flip_in_log(&mut self, node: u64) -> Result<Option<String>, Violation> {
        let Some(machine) = self.machines.get(&node) else { return Ok(None) };
        let (disk, is_sealed) = (machine.disk.clone(), machine.is_sealed);
        let violation = |found: String| Violation::new("damage_named", format!("n{node}: {found}"));
        let whole = self.read_log(&disk.fork(), node).map_err(|error| violation(error.to_string()))?;
        let Some((file, offset)) = self.a_written_byte(&disk) else { return Ok(None) };
        let bit = self.rng.random_range(0..8);
        disk.flip_bit(&file, offset, bit).map_err(|error| violation(error.to_string()))?;
        let place = format!("bit {bit} of byte {offset} of {}", file.display());
        match self.read_log(&disk.fork(), node) {
            Ok(recovered) if recovered.groups == whole.groups => Ok(None),
            Ok(_) if is_sealed => {
                Err(violation(format!("{place} of a sealed log flipped, and it says nothing")))
            }
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
            Err(error) => {
                let text = error.to_string();
                match text.contains(LOG_DIRECTORY) && text.contains(ADVICE) {
                    true => Ok(Some(format!("{place}: {text}"))),
                    false => Err(violation(format!(
                        "{place} flipped, and the log names no file or remedy: {text}"
                    ))),
                }
            }
        }
    }

    /// Flips a bit of what the engine holds of the group `default`. The keyspace must not open, or show all that it shows
    /// as it was and refuse the rest.
    fn flip_in_engine(&mut self, node: u64) -> Result<Option<String>, Violation> {
        let random = self.rng.random();
        let Some(machine) = self.machines.get(&node) else { return Ok(None) };
        let violation = |found: String| Violation::new("damage_named", format!("n{node}: {found}"));
        let changed = Arc::new((*machine.engine).clone());
        let Some((space, key, _)) = a_record(&changed, random) else { return Ok(None) };
        match self.lies(Lie::UnnoticedFlip) {
            true => flip_in_engine(&changed, random),
            false => changed.damage(space, key),
        }
        let place = format!("a record in {space:?}");
        let whole = Shown::of(Arc::new((*machine.engine).clone()));
        let whole = whole.map_err(|error| violation(format!("before any damage: {error}")))?;
        let flipped = match Shown::of(changed) {
            Ok(flipped) => flipped,
            Err(error) if error.contains("damaged") && error.contains(ADVICE) => {
                return Ok(Some(format!("{place}: {error}")));
            }
            Err(error) => return Err(violation(format!("{place} flipped, and the keyspace says: {error}"))),
        };
        match flipped.is_part_of(&whole) {
            true if flipped == whole => Ok(None),
            true => Ok(Some(format!("{place}: some of it cannot be read"))),
            false => {
                let difference = flipped.difference(&whole);
                Err(violation(format!("{place} flipped, and it shows {difference}")))
            }
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

/// All that a keyspace shows, as far as it can be read.
#[derive(Debug, PartialEq)]
struct Shown {
    keys: Result<Vec<KeyValue>, String>,
    history: Result<Vec<Event>, String>,
}

impl Shown {
    /// What the keyspace `default` of an engine shows; an error if it cannot be opened.
    fn of(engine: Arc<ModelEngine>) -> Result<Shown, String> {
        let keyspace = Keyspace::open(engine, DEFAULT_GROUP.0, Default::default()).map_err(text)?;
        let everything = Bytes::from_static(&[0]);
        let range =
            RangeRequest { key: everything.clone(), range_end: everything, ..RangeRequest::default() };
        let keys = keyspace.range(&range).map_err(text);
        let keys = keys.map(|found| found.kvs.iter().map(etcd::key_value).collect());
        let history = history_from(&keyspace, keyspace.compact_revision().max(0) + 1);
        Ok(Shown { keys, history })
    }

    /// What it shows that `whole` does not.
    fn difference(&self, whole: &Shown) -> String {
        let found = differing(&self.keys, &whole.keys).or_else(|| differing(&self.history, &whole.history));
        found.unwrap_or_else(|| "what could not be read before".into())
    }

    /// Whether it shows nothing but what `whole` shows.
    fn is_part_of(&self, whole: &Shown) -> bool {
        (self.keys.is_err() || self.keys == whole.keys)
            && (self.history.is_err() || self.history == whole.history)
    }
}

/// The first difference of what could be read.
fn differing<T: fmt::Debug + PartialEq>(
    shown: &Result<Vec<T>, String>,
    whole: &Result<Vec<T>, String>,
) -> Option<String> {
    let (Ok(shown), Ok(whole)) = (shown, whole) else { return None };
    first_difference(shown, whole).map(|(shown, whole)| format!("{shown:?} instead of {whole:?}"))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
