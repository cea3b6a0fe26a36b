//! Members that come and go: one administrator, who changes the roster through any node, and machines that join and leave.
//!
//! What the server does around its loop is here as well: a node connects with those that its board names, refuses who is no
//! member, and ends when it is told that it was removed.

use std::collections::BTreeSet;

use hadron_consensus::{GroupId, NodeId, ReplicaId};
use hadron_keyspace::{Command, Response};
use hadron_node::{Catalog, NotAdmitted, Pool, Reply, Roster};
use rand::Rng;

use super::machine::{Asked, Machine};
use super::story::{Stop, StoryEvent};
use super::{Happening, Life, World};
use crate::history::Violation;

/// Members beyond those of the beginning.
const MORE_MAX: usize = 2;
/// Learners at a time.
const LEARNERS_MAX: usize = 2;
/// A change that nobody acknowledged is not carried out later than this.
const DOUBT_US: u64 = 10_000_000;
/// The administrator gives up waiting after this time.
const PATIENCE_US: u64 = 3_000_000;

/// Who changes the roster.
#[derive(Debug, Default)]
pub(super) struct Administrator {
    /// What it waits for, until when.
    pub(super) waits_until: Option<u64>,
    /// Until then a change may still be carried out that nobody acknowledged.
    in_doubt_until: u64,
    /// Changes that were acknowledged.
    pub(super) changes: u64,
    /// The revision of the last of them.
    acknowledged_at: i64,
}

/// What becomes of a member that is to be emptied.
enum Emptied {
    /// None is, or it takes its time.
    Nobody,
    /// By this command one is to be, or is no more.
    Wanted(Command),
    /// This one is.
    Done(u64),
}

/// How a machine came to the pool.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    /// The roster that it was told.
    pub(super) roster: Roster,
    /// Its replica in every group.
    pub(super) replica: ReplicaId,
}

impl World {
    /// All machines that ever were.
    pub(super) fn nodes(&self) -> Vec<u64> {
        self.machines.keys().copied().collect()
    }

    /// Any machine that is not gone.
    pub(super) fn any_node(&mut self) -> u64 {
        let present: Vec<u64> =
            self.machines.iter().filter(|(_, machine)| !machine.is_gone).map(|(node, _)| *node).collect();
        match present.is_empty() {
            true => 1,
            false => present[self.rng.random_range(0..present.len())],
        }
    }

    /// The newest pool that any running node knows.
    fn newest_pool(&self) -> Option<std::sync::Arc<Pool>> {
        let processes = self.machines.values().filter_map(|machine| machine.process.as_ref());
        processes.map(|process| process.node().board().pool()).max_by_key(|pool| pool.revision)
    }

    /// The members, as those know who know most.
    pub(super) fn members_now(&self) -> BTreeSet<u64> {
        let members =
            self.newest_pool().map(|pool| pool.roster.members.iter().map(|member| member.id).collect());
        members.unwrap_or_default()
    }

    /// Whether every group has become what the roster wants; says what is missing otherwise.
    pub(super) fn check_reconfigured(&self) -> Result<(), String> {
        let Some(pool) = self.newest_pool().filter(|pool| pool.revision > 0) else { return Ok(()) };
        let wanted: BTreeSet<ReplicaId> =
            pool.roster.voters().map(|member| ReplicaId(member.replica)).collect();
        for (node, machine) in self.machines.iter().filter(|(_, machine)| !machine.is_gone) {
            let Some(process) = &machine.process else { continue };
            let own = process.node().board();
            let is_placed = |group: &GroupId| {
                own.with_catalog(|catalog| catalog.placement(*group).is_some() || catalog.is_deleted(*group))
            };
            for (group, board) in own.groups().into_iter().filter(|(group, _)| !is_placed(group)) {
                let configuration = board.configuration();
                let voters: BTreeSet<ReplicaId> = configuration.voters.iter().copied().collect();
                let is_done =
                    !configuration.is_joint() && voters == wanted && board.settled() == pool.revision;
                if pool.roster.member(*node).is_some() && !is_done {
                    return Err(format!(
                        "n{node} has {configuration:?} in {group}, settled at {}, and the roster of revision {} wants \
                         {wanted:?}",
                        board.settled(),
                        pool.revision
                    ));
                }
            }
        }
        Ok(())
    }

    /// The administrator looks at the roster, and may change it.
    pub(super) fn administer(&mut self) {
        let pause = self.rng.random_range(0..=2 * self.settings.member_changes_us);
        self.schedule.after(pause, Happening::Administer);
        let now = self.schedule.now();
        if self.quiet {
            // Nobody asks any more. Whose addition was never acknowledged is to be there all the same.
            if let Some(pool) = self.newest_pool() {
                self.start_new_members(&pool);
            }
            return;
        }
        if self.administrator.waits_until.is_some_and(|until| now < until) {
            return;
        }
        let node = self.any_node();
        let Some(life) = self.life(node) else { return };
        self.administrator.waits_until = Some(now + PATIENCE_US);
        self.ask_root(life, Asked::Administrator);
    }

    /// The node answers the administrator, or cannot.
    pub(super) fn on_administrator_reply(&mut self, life: Life, reply: Reply) {
        self.administrator.waits_until = None;
        match reply {
            Reply::ReadReady => self.look_at_roster(life),
            Reply::Written { response: Ok(Response::Txn(response)), .. } if response.succeeded => {
                self.administrator.changes += 1;
                self.administrator.in_doubt_until = 0;
                if let Some(pool) = self.process(life).map(|process| process.node().board().pool()) {
                    self.administrator.acknowledged_at =
                        pool.revision.max(self.administrator.acknowledged_at);
                    self.start_new_members(&pool);
                }
            }
            _ => {}
        }
    }

    /// The node shows the roster as it was when the question began, or newer.
    fn look_at_roster(&mut self, life: Life) {
        let Some(pool) = self.process(life).map(|process| process.node().board().pool()) else { return };
        // Also those whose addition nobody acknowledged.
        self.start_new_members(&pool);
        if !self.faults_on {
            return;
        }
        let now = self.schedule.now();
        let emptied = match self.settings.placement_changes_us {
            0 => Emptied::Nobody,
            _ => self.empty_somebody(life, &pool),
        };
        let next = match emptied {
            Emptied::Nobody => self.next_roster(&pool),
            Emptied::Wanted(command) => {
                self.administrator.waits_until = Some(now + PATIENCE_US);
                return self.decide(life, Asked::Administrator, &command);
            }
            Emptied::Done(node) => {
                let mut next = pool.roster.clone();
                next.remove(node).ok().map(|_| next)
            }
        };
        let Some(next) = next else { return };
        let ids: Vec<u64> = next.members.iter().map(|member| member.id).collect();
        self.tell(StoryEvent::MembersWanted { members: ids });
        self.administrator.waits_until = Some(now + PATIENCE_US);
        self.administrator.in_doubt_until = now + DOUBT_US;
        self.decide(life, Asked::Administrator, &pool.replace(&next));
    }

    /// Another roster: one member more, one less, or one that votes.
    fn next_roster(&mut self, pool: &Pool) -> Option<Roster> {
        let mut next = pool.roster.clone();
        let is_gone = |id: &u64| self.machines.get(id).is_some_and(|machine| machine.is_gone);
        let gone = next.members.iter().map(|member| member.id).find(is_gone);
        let learners = next.members.iter().filter(|member| member.is_learner).map(|member| member.id);
        // One whose machine will not come back as it was never comes to more.
        let is_lost = |machine: Option<&Machine>| machine.is_some_and(|it| it.is_gone || it.damage.is_some());
        let learners: Vec<u64> = learners.filter(|id| !is_lost(self.machines.get(id))).collect();
        let (least, most) = (self.settings.members_min, self.settings.nodes as usize + MORE_MAX);
        let drawn = self.rng.random_range(0..100);
        let voters = next.voters().count();
        if let Some(id) = gone.filter(|_| voters > 1 && drawn < 70) {
            next.remove(id).ok()?;
        } else if let Some(learner) = learners.first().filter(|_| drawn < 40) {
            next.promote(*learner).ok()?;
        } else if next.members.len() < most && (drawn < 65 || voters <= least) {
            let id = self.machines.keys().last().copied().unwrap_or_default() + 1 + drawn % 3;
            let is_learner = self.rng.random_bool(0.3);
            next.add(id, vec![format!("sim://{id}")], is_learner, LEARNERS_MAX).ok()?;
        } else if voters > least && self.settings.placement_changes_us == 0 {
            let id = next.members[self.rng.random_range(0..next.members.len())].id;
            self.may_leave(&next, id).then(|| next.remove(id).ok())??;
        }
        (next != pool.roster).then_some(next)
    }

    /// Where keyspaces are placed, a member is emptied before it is removed.
    fn empty_somebody(&mut self, life: Life, pool: &Pool) -> Emptied {
        let Some(board) = self.board(life) else { return Emptied::Nobody };
        let voters: Vec<NodeId> = pool.roster.voters().map(|member| member.node()).collect();
        let may_go = voters.len() > self.settings.members_min;
        let (drawn, other) = (self.rng.random_range(0..100), voters[self.rng.random_range(0..voters.len())]);
        board.with_catalog(|catalog| {
            let is_member = |node: &NodeId| pool.roster.member(node.0).is_some();
            let Some(node) = catalog.draining().find(is_member) else {
                let is_time = may_go && drawn < 40;
                return if is_time { Emptied::Wanted(Catalog::drain(other, true)) } else { Emptied::Nobody };
            };
            let has_some = catalog.placements().any(|(group, placement)| {
                placement.record.replica_on(node).is_some() || catalog.leaving(group, node).is_some()
            });
            match has_some {
                false if may_go && self.may_leave(&pool.roster, node.0) => Emptied::Done(node.0),
                _ if drawn < 5 => Emptied::Wanted(Catalog::drain(node, false)),
                _ => Emptied::Nobody,
            }
        })
    }

    /// Without this member those who are left must be enough, whatever happened to some of them.
    fn may_leave(&self, roster: &Roster, id: u64) -> bool {
        let is_well = |id: u64| {
            self.machines.get(&id).is_some_and(|machine| !machine.is_gone && machine.damage.is_none())
        };
        let rest: Vec<u64> = roster.voters().map(|member| member.id).filter(|other| *other != id).collect();
        let well = rest.iter().filter(|other| is_well(**other)).count();
        // Whom the roster lets vote may be a learner still, and never come to more.
        well == rest.len() || 2 * well > rest.len() && self.check_reconfigured().is_ok()
    }

    /// Machines for the members that have none.
    fn start_new_members(&mut self, pool: &Pool) {
        for member in &pool.roster.members {
            if self.machines.contains_key(&member.id) {
                continue;
            }
            let mut machine = Machine::new(&self.settings, &mut self.rng);
            let (roster, replica) = (pool.roster.clone(), ReplicaId(member.replica));
            machine.joined = Some(Joined { roster, replica });
            self.machines.insert(member.id, machine);
            let delay = self.rng.random_range(1_000..1_000_000);
            self.schedule.after(delay, Happening::Boot(member.id));
        }
    }

    /// Whether as many machines as may be are damaged already, or so few vote that none may.
    pub(super) fn too_many_changed(&self) -> bool {
        let pool = self.newest_pool();
        // Those who know of the last change may all be down, or have just started and not heard of it again.
        let acknowledged_at = self.administrator.acknowledged_at;
        if acknowledged_at > 0 && pool.as_ref().is_none_or(|pool| pool.revision < acknowledged_at) {
            return true;
        }
        let members: Vec<u64> =
            pool.iter().flat_map(|pool| pool.roster.voters().map(|member| member.id)).collect();
        let is_changed = |node: &&u64| {
            let machine = self.machines.get(node);
            machine.is_none_or(|machine| machine.is_gone || machine.damage.is_some())
        };
        let changed = members.iter().filter(is_changed).count();
        // While members change nobody knows who will be needed.
        let in_doubt = self.schedule.now() < self.administrator.in_doubt_until;
        let is_moving =
            self.settings.member_changes_us > 0 && (in_doubt || self.check_reconfigured().is_err());
        is_moving || changed >= members.len().saturating_sub(1) / 2
    }

    /// The node is to be connected with others than before.
    pub(super) fn set_peers(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        let peers: BTreeSet<u64> = process.node().board().peers().iter().map(|member| member.id).collect();
        // Also those whose machine does not exist yet.
        for other in &peers {
            let delay = self.rng.random_range(100..20_000);
            self.schedule.after(delay, Happening::Connect((life.node, *other), life));
        }
        for other in self.nodes().into_iter().filter(|other| *other != life.node && !peers.contains(other)) {
            self.disconnect((life.node, other));
            self.disconnect((other, life.node));
        }
    }

    /// Whether `life` and `target` talk to each other; one that is told that it was removed ends.
    pub(super) fn shake_hands(&mut self, life: Life, target: Life) -> Handshake {
        let Some(dialer) = self.process(life) else { return Handshake::Never };
        if !dialer.node().board().peers().iter().any(|member| member.id == target.node) {
            return Handshake::Never;
        }
        let revision = dialer.node().board().roster_revision();
        let Some(acceptor) = self.process(target) else { return Handshake::Later };
        match acceptor.node().board().admit(NodeId(life.node), life.node, revision) {
            Ok(()) => Handshake::Done,
            Err(NotAdmitted::Refused(_) | NotAdmitted::Dropped(_)) => Handshake::Later,
            Err(NotAdmitted::Removed(_)) => {
                self.expel(life.node);
                Handshake::Never
            }
        }
    }

    /// Nodes that were removed and knew none of those who are left never hear of it: somebody turns them off.
    pub(super) fn turn_off_the_forgotten(&mut self) {
        let Some(pool) = self.newest_pool() else { return };
        let needed: BTreeSet<u64> = self
            .machines
            .iter()
            .filter(|(node, _)| pool.roster.member(**node).is_some())
            .filter_map(|(_, machine)| machine.process.as_ref())
            .flat_map(|process| process.node().board().peers())
            .map(|member| member.id)
            .collect();
        let is_forgotten = |node: &u64| pool.removed.contains_key(node) && !needed.contains(node);
        for node in self.nodes().into_iter().filter(is_forgotten) {
            self.expel(node);
        }
    }

    fn expel(&mut self, node: u64) {
        if self.members_now().contains(&node) {
            let found = format!("n{node} is told that it was removed, and is a member");
            return self.violate(Violation::new("identity", found));
        }
        self.stop(node, Stop::Removed);
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.is_gone = true;
        }
    }
}

/// What becomes of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// They talk.
    Done,
    /// To be tried again.
    Later,
    /// Not to be tried again.
    Never,
}
