//! Silence: all is well and nobody asks for anything, so groups sleep. Then a node is lost, and comes back. Those that depend on it
//! must notice although no request wakes them.

use super::story::{Stop, Story};
use super::{World, machine::Process};
use crate::history::Violation;

impl World {
    /// Loses a node while everybody sleeps, and gets it back.
    pub(super) fn lose_a_node_in_silence(&mut self, tell: &mut dyn FnMut(&Story)) -> Result<(), Violation> {
        if !self.settings.ends_in_silence {
            return Ok(());
        }
        self.wait_until("nobody asks, and not all groups sleep", World::all_sleep, tell)?;
        let node = self.leader().unwrap_or(1);
        self.stop(node, Stop::Killed);
        self.wait_until("a node is lost, and not all groups have another leader", World::all_are_led, tell)?;
        self.boot(node);
        let is_well = |world: &World| world.all_are_led() && world.all_sleep() && world.replicas_are_equal();
        self.wait_until("a node is back, and not all its replicas are", is_well, tell)
    }

    fn wait_until(
        &mut self,
        otherwise: &str,
        is_so: impl Fn(&World) -> bool,
        tell: &mut dyn FnMut(&Story),
    ) -> Result<(), Violation> {
        let began_at = self.schedule.now();
        let mut until = began_at;
        while until < began_at + self.settings.recovery_us_max {
            until += 20_000;
            self.run_until(until, tell)?;
            if is_so(self) {
                return Ok(());
            }
        }
        let found = format!("{otherwise}: {}", self.positions());
        self.minded(Err(Violation::new("liveness", found)))
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Process> {
        self.machines.values().filter_map(|machine| machine.process.as_ref())
    }

    fn all_sleep(&self) -> bool {
        self.running()
            .all(|process| process.node().board().groups().iter().all(|(_, board)| board.is_asleep()))
    }

    /// Every replica that runs knows a leader, on a node that runs.
    fn all_are_led(&self) -> bool {
        self.running().all(|process| {
            let groups = process.node().board().groups();
            groups.iter().all(|(_, board)| board.leader().is_some_and(|leader| self.life(leader.0).is_some()))
        })
    }
}
