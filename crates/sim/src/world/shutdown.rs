//! Nodes that are asked to stop, as the server does it: leaderships are handed over, and when the loops have ended, the log is written
//! to its end and sealed, and the engine does what it was given and is made durable. A log without work for a while is sealed too.

use hadron_node::Event as NodeEvent;
use hadron_storage::engine::Engine as _;

use super::story::{Stop, StoryEvent};
use super::{Happening, Life, Trouble, World};

/// How long a node waits until it leads nothing any more: an election timeout.
const HAND_OVER_US: u64 = 1_000_000;
/// Between two looks at that.
const LOOK_US: u64 = 20_000;
/// A log without work for so long is sealed.
const IDLE_US: u64 = 1_000_000;

impl World {
    /// Somebody asks a node to stop, and starts it again soon.
    pub(super) fn ask_to_stop(&mut self) {
        let node = self.victim();
        let Some(life) = self.life(node) else { return };
        self.tell(StoryEvent::AskedToStop { node });
        self.deliver(life, NodeEvent::HandOver);
        let until = self.schedule.now() + HAND_OVER_US;
        self.schedule.after(LOOK_US, Happening::ShutDown { life, until });
    }

    /// Waits until the node leads nothing any more, but no longer than `until`.
    pub(super) fn shut_down(&mut self, life: Life, until: u64) {
        let (now, faults_on) = (self.schedule.now(), self.faults_on);
        // When all is healed, nobody stops any more.
        let Some(process) = self.process(life).filter(|_| faults_on) else { return };
        let goes_on_at = process.paused_until;
        if goes_on_at > now {
            return self.schedule.at(goes_on_at, Happening::ShutDown { life, until });
        }
        let groups = process.node().board().groups();
        let mut led = groups.iter().filter(|(_, group)| group.leader().is_some_and(|it| it.0 == life.node));
        if now < until && led.any(|(_, group)| group.configuration().voters.len() > 1) {
            return self.schedule.after(LOOK_US, Happening::ShutDown { life, until });
        }
        if self.end_in_order(life) {
            self.boot_soon(life.node);
        }
    }

    /// Ends a process in good order. False if it ended otherwise: its disk failed, or what it waits for does not return, and it is killed.
    pub(super) fn end_in_order(&mut self, life: Life) -> bool {
        if self.would_hang(life) {
            self.stop(life.node, Stop::Killed);
            return true;
        }
        let ended = self.end_log(life).and_then(|()| self.end_engine(life));
        if let Err(what) = ended {
            self.on_disk_failure(life, &what);
            return false;
        }
        // A full disk may have had no room for that.
        let is_sealed = self.process(life).is_some_and(|process| process.log.wal.is_sealed());
        self.stop(life.node, Stop::Asked);
        if let Some(machine) = self.machines.get_mut(&life.node) {
            machine.is_sealed = is_sealed;
        }
        true
    }

    fn would_hang(&self, life: Life) -> bool {
        let now = self.schedule.now();
        let hangs =
            |trouble: &Trouble| matches!(trouble, Trouble::StalledFlush(node, _) if *node == life.node);
        let is_stalled = self.settings.troubles.iter().any(|it| hangs(it) && self.is_troubled(*it));
        let machine = self.machines.get(&life.node);
        is_stalled || machine.is_some_and(|it| it.log_hangs_until.max(it.engine_hangs_until) > now)
    }

    /// Writes all that waits, and seals the log.
    fn end_log(&mut self, life: Life) -> Result<(), String> {
        let text = |error: hadron_storage::wal::WalError| format!("cannot end its log: {error}");
        while let Some(process) = self.process(life) {
            if process.log.writing.take().is_some() {
                self.sync_log(life).map_err(text)?;
                self.promises.synced(life.node);
            }
            let Some(records) = self.process(life).and_then(|process| process.log.take_waiting()) else {
                break;
            };
            self.promises.write(life.node);
            let Some(process) = self.process(life) else { break };
            process.log.wal.append(&records).map_err(text)?;
        }
        self.process(life).map_or(Ok(()), |process| process.log.wal.seal().map_err(text))
    }

    /// Does all that the engine was given, and makes it durable.
    fn end_engine(&mut self, life: Life) -> Result<(), String> {
        while let Some(job) = self.process(life).and_then(|process| process.engine.next()) {
            self.do_engine_job(life, job)?;
        }
        let Some(machine) = self.machines.get(&life.node) else { return Ok(()) };
        machine.engine.persist().map_err(|error| error.to_string())
    }

    /// The log has nothing to do at the moment.
    pub(super) fn rest_log(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        let batches = process.log.batches;
        self.schedule.after(IDLE_US, Happening::LogIdle { life, batches });
    }

    /// Seals the log, if it has had nothing to do since it had written so many batches.
    pub(super) fn seal_idle_log(&mut self, life: Life, batches: u64) {
        let now = self.schedule.now();
        let hangs = self.machines.get(&life.node).is_some_and(|machine| machine.log_hangs_until > now);
        let Some(process) = self.process(life) else { return };
        if hangs || process.paused_until > now || process.log.batches != batches {
            return;
        }
        if let Err(error) = process.log.wal.seal() {
            self.on_disk_failure(life, &format!("cannot seal its log: {error}"));
        }
    }
}
