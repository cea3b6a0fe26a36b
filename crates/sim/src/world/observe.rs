//! What is checked: at every turn what replicas show, at the end the history.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{DEFAULT_GROUP, GroupId};
use hadron_node::{Board, ElectionRecord, GroupBoard, LogShare};
use hadron_proto::etcdserverpb::RangeRequest;

use super::machine::Machine;
use super::story::{Share, StoryEvent, parts_of};
use super::watchers::history_from;
use super::{Happening, Life, World};
use crate::checkers::digest_agreement::DigestAgreement;
use crate::checkers::election_safety::ElectionSafety;
use crate::checkers::state_machine_safety::StateMachineSafety;
use crate::checkers::tenant_isolation::TenantIsolation;
use crate::checkers::{
    compaction, durable_ack, exclusion, lease_promise, linearizable, revision_order, watch_order,
};
use crate::etcd;
use crate::history::{Event, KeyValue, Operation, Violation};

/// How late a lease may end when all is well: its end has to be noticed, logged and committed.
const LEASE_LATE_US: u64 = 2_000_000;
/// A time without an acknowledged write of a group that is longer than this may be one without a leader.
const OUTAGE_US: u64 = 500_000;
/// Microseconds between two looks at C(x).
const SHARES_US: u64 = 5_000_000;

/// The checkers of replicas.
#[derive(Default)]
pub(super) struct Observer {
    elections: ElectionSafety,
    state_machines: StateMachineSafety,
    digests: DigestAgreement<u64>,
    last_revisions: BTreeMap<GroupId, i64>,
    /// Elections that were told of: group, term, candidate.
    elections_told: BTreeSet<(u64, u64, u64)>,
    /// By group and term, when it was known that nobody had won.
    pub(super) elections_lost: BTreeMap<GroupId, BTreeMap<u64, u64>>,
    /// Groups and terms whose leader was looked at, and when it was first.
    leaders_seen: BTreeMap<(u64, u64), u64>,
    /// What was last told of C(x).
    shares_told: Vec<Share>,
    /// Replicas that were looked at.
    looks: u64,
    /// Times that a replica was found asleep that had not been, and the reverse.
    pub(super) sleeps: u64,
    pub(super) wakes: u64,
}

impl Observer {
    pub(super) fn terms_led(&self) -> usize {
        self.elections.terms_led(DEFAULT_GROUP.0)
    }

    /// The newest group that any node had a replica of.
    fn newest_group(&self) -> GroupId {
        self.last_revisions.keys().max().copied().unwrap_or(DEFAULT_GROUP)
    }

    /// The newest revision that any replica of `group` showed.
    pub(super) fn last_revision(&self, group: GroupId) -> i64 {
        self.last_revisions.get(&group).copied().unwrap_or_default()
    }
}

/// What one replica shows.
struct Shown {
    group: GroupId,
    life: u64,
    term: u64,
    leader: Option<u64>,
    applied: (u64, u64, u64),
    digest: u64,
    revision: i64,
}

/// The replicas of a node that are observed.
#[derive(Default)]
pub(super) struct Watched {
    replicas: Vec<Observed>,
    /// Replicas that came or went. Each life of a replica is told from the others of its process.
    changes: u64,
}

impl Watched {
    /// The number of the present replica of a group, as it was when its node was looked at last.
    pub(super) fn replica(&self, group: GroupId) -> Option<u64> {
        let present = self.replicas.iter().find(|observed| observed.group == group);
        present.map(|observed| observed.life)
    }

    /// The replicas that are there now.
    fn look(&mut self, board: &Board) {
        let present = board.groups();
        let same = |(observed, (_, board)): (&Observed, &(GroupId, Arc<GroupBoard>))| {
            Arc::ptr_eq(&observed.board, board)
        };
        if self.replicas.len() == present.len() && self.replicas.iter().zip(&present).all(same) {
            return;
        }
        let mut before = std::mem::take(&mut self.replicas);
        for (group, board) in present {
            let known = before.iter().position(|observed| Arc::ptr_eq(&observed.board, &board));
            let observed = known.map(|place| before.swap_remove(place)).unwrap_or_else(|| {
                self.changes += 1;
                Observed { group, board, life: self.changes, is_asleep: false, seen: Default::default() }
            });
            self.replicas.push(observed);
        }
    }
}

/// A replica that is observed, and what of it was seen when it was last looked at closely: term, leader, applied index.
pub(super) struct Observed {
    group: GroupId,
    board: Arc<GroupBoard>,
    /// Tells it from replicas of the group that were here before it.
    life: u64,
    is_asleep: bool,
    seen: (u64, Option<u64>, u64),
}

impl Observed {
    /// Whether it sleeps, if that is new.
    fn sleep_news(&mut self) -> Option<bool> {
        let is_asleep = self.board.is_asleep();
        (std::mem::replace(&mut self.is_asleep, is_asleep) != is_asleep).then_some(is_asleep)
    }

    /// What the replica shows, unless it is what it showed the last time.
    fn news(&mut self) -> Option<Shown> {
        let board = &self.board;
        let now = (board.term().0, board.leader().map(|leader| leader.0), board.applied());
        if std::mem::replace(&mut self.seen, now) == now {
            return None;
        }
        let applied = board.keyspace.applied();
        Some(Shown {
            group: self.group,
            life: self.life,
            term: now.0,
            leader: now.1,
            applied: (applied.term, applied.index, applied.checksum),
            digest: board.keyspace.digest(),
            revision: board.keyspace.revision(),
        })
    }
}

impl World {
    /// Looks at all replicas of a node after its turn.
    pub(super) fn observe(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        let board = process.node().board();
        process.observed.look(&board);
        let observed = &mut process.observed.replicas;
        let terms = |observed: &Observed| (observed.seen.0, observed.seen.1);
        let before: u64 = observed.iter().map(|observed| observed.seen.0).sum();
        let leaders: Vec<_> = observed.iter().map(terms).collect();
        let shown: Vec<Shown> = observed.iter_mut().filter_map(Observed::news).collect();
        let after: u64 = observed.iter().map(|observed| observed.seen.0).sum();
        let sleep_news: Vec<bool> = observed.iter_mut().filter_map(Observed::sleep_news).collect();
        let changed = before != after || !observed.iter().map(terms).eq(leaders);
        self.observer.sleeps += sleep_news.iter().filter(|is_asleep| **is_asleep).count() as u64;
        self.observer.wakes += sleep_news.iter().filter(|is_asleep| !**is_asleep).count() as u64;
        for replica in shown {
            self.observe_replica(life, &replica);
        }
        if changed {
            self.tell_elections(life);
        }
    }

    fn observe_replica(&mut self, life: Life, shown: &Shown) {
        let group = shown.group.0;
        let promised = self.promises.term(life.node, shown.group);
        // Who has not had its first turn shows none.
        if shown.term > 0 && shown.term < promised {
            let found =
                format!("n{} is in term {} of group {group}, and was in {promised}", life.node, shown.term);
            self.violate(Violation::new("durable_ack", found));
        }
        let now = self.schedule.now();
        self.observer.looks += 1;
        if let Some(leader) = shown.leader {
            let found = self.observer.elections.observe(group, shown.term, leader);
            self.mind(found);
            if leader == life.node
                && let Entry::Vacant(unseen) = self.observer.leaders_seen.entry((group, shown.term))
            {
                unseen.insert(now);
                let found = self.logs.leads(leader, shown.group, shown.term);
                self.mind(found);
            }
        }
        let (term, index, checksum) = shown.applied;
        // Before its first turn it shows no term, and is in the one that it was in.
        self.logs.applied(group, shown.term.max(promised), (index, term, checksum));
        let one_life = (life.node, life.incarnation << 32 | shown.life);
        let found = self.observer.state_machines.observe(one_life, group, shown.applied);
        self.mind(found);
        let node = format_args!("n{}", life.node);
        let found = self.observer.digests.observe(node, group, index, shown.digest);
        self.mind(found);
        let last = self.observer.last_revisions.entry(shown.group).or_default();
        *last = shown.revision.max(*last);
    }

    /// Tells of the elections that this node knows and nobody has told of.
    fn tell_elections(&mut self, life: Life) {
        let Some(process) = self.process(life) else { return };
        let board = process.node().board();
        for record in board.elections() {
            let (group, term, candidate) = (record.group.0, record.term.0, record.candidate.0);
            if self.observer.elections_told.insert((group, term, candidate)) {
                let voters = board.group(record.group).and_then(|here| voters(&here, &record));
                if !record.won {
                    let now = self.schedule.now();
                    self.observer.elections_lost.entry(record.group).or_default().entry(term).or_insert(now);
                }
                let votes = record.votes.iter().map(|(node, count)| (node.0, *count)).collect();
                self.tell(StoryEvent::Election { group, term, candidate, won: record.won, votes, voters });
            }
        }
    }

    /// Tells of C(x) in the group `default`, if its leader has measured anew.
    pub(super) fn tell_shares(&mut self) {
        let boards = self.machines.iter().filter_map(|(node, machine)| {
            let group = machine.process.as_ref()?.node().board().group(DEFAULT_GROUP)?;
            Some((*node, group)).filter(|(_, group)| !group.shares().is_empty())
        });
        let newest = boards.max_by_key(|(_, group)| group.term());
        if let Some((leader, group)) = newest {
            let measured = group.shares();
            let parts: Vec<f64> = measured.iter().map(|share| share.share).collect();
            let thousandths = parts_of(1_000, &parts);
            let share = |(share, thousandths): (&LogShare, u64)| Share {
                node: share.node.0,
                thousandths,
                lag: share.lag,
            };
            let shares: Vec<Share> = measured.iter().zip(thousandths).map(share).collect();
            if self.observer.shares_told != shares {
                self.observer.shares_told = shares.clone();
                self.tell(StoryEvent::Shares { group: DEFAULT_GROUP.0, leader, shares });
            }
        }
        self.schedule.after(SHARES_US, Happening::LookAtShares);
    }

    /// Whether all nodes are up that can be, and all replicas of each group have applied the same, and all that any replica
    /// ever had applied.
    pub(super) fn replicas_are_equal(&self) -> bool {
        let mut positions: BTreeMap<GroupId, (u64, u64, i64, i64)> = BTreeMap::new();
        let members = self.members_now();
        let are_here = |(node, machine): &(&u64, &Machine)| !machine.is_gone && members.contains(node);
        for (_, machine) in self.machines.iter().filter(are_here) {
            let Some(process) = &machine.process else { return false };
            for (group, board) in process.node().board().groups() {
                let keyspace = &board.keyspace;
                let newest = self.observer.last_revisions.get(&group);
                let (revision, compacted) = (keyspace.revision(), keyspace.compact_revision());
                let here = (keyspace.applied().index, keyspace.digest(), revision, compacted);
                let lacks = newest.is_some_and(|newest| revision < *newest);
                if lacks || *positions.entry(group).or_insert(here) != here {
                    return false;
                }
            }
        }
        true
    }

    /// Where everybody stands, for a report.
    pub(super) fn positions(&self) -> String {
        let mut text = format!("open operations {}", self.open.iter().filter(|open| **open).count());
        for (node, machine) in &self.machines {
            let Some(process) = &machine.process else {
                text.push_str(&format!("; n{node} down"));
                continue;
            };
            for (group, status) in process.node().board().groups() {
                text.push_str(&format!(
                    "; n{node} {group}: {} leader {:?} commit {} applied {}",
                    status.term(),
                    status.leader(),
                    status.commit(),
                    status.keyspace.applied().index,
                ));
            }
        }
        text
    }

    /// Reads the complete history of every keyspace from every node, and holds everything against it.
    pub(super) fn check_history(&mut self) -> Result<(), Violation> {
        let looks = self.observer.looks;
        for (guarantee, count) in [
            ("election_safety", looks),
            ("log_matching", self.logs.entries_seen),
            ("leader_completeness", self.observer.leaders_seen.len() as u64),
            ("state_machine_safety", looks),
            ("digest_agreement", looks),
            ("bounded_memory", self.measured),
            ("stored_state", self.scrubs.ended),
        ] {
            self.checked(guarantee, count);
        }
        self.check_root()?;
        self.check_isolation()?;
        self.check_leases()?;
        for group in self.groups_of_history() {
            self.check_keyspace(group)?;
        }
        self.check_watchers()
    }

    /// The newest group that there was.
    pub(super) fn newest_group(&self) -> GroupId {
        self.observer.newest_group().max(GroupId(self.settings.keyspaces))
    }

    /// The groups of all keyspaces that clients used, deleted ones too.
    fn groups_of_history(&self) -> impl Iterator<Item = GroupId> + use<> {
        (DEFAULT_GROUP.0..=self.newest_group().0).map(GroupId)
    }

    fn checked(&mut self, guarantee: &'static str, count: u64) {
        self.tell(StoryEvent::Checked { guarantee, group: None, count });
    }

    pub(super) fn checked_of(&mut self, keyspace: GroupId, guarantee: &'static str, count: u64) {
        self.tell(StoryEvent::Checked { guarantee, group: Some(keyspace.0), count });
    }

    fn check_isolation(&mut self) -> Result<(), Violation> {
        let isolation = TenantIsolation::new(&self.history);
        for group in self.groups_of_history() {
            let (_, events) = self.known_history(group)?;
            self.minded(isolation.check_events(group.0, &events))?;
        }
        self.minded(self.history.iter().try_for_each(|operation| isolation.check_operation(operation)))?;
        self.checked("tenant_isolation", self.history.len() as u64);
        Ok(())
    }

    fn check_watchers(&mut self) -> Result<(), Violation> {
        let mut count = 0;
        for (group, seen) in self.watchers.iter().flat_map(|watcher| watcher.seen()) {
            count += seen.events.len() as u64;
            let (known_to, events) = self.known_history(group)?;
            self.minded(watch_order::check(&seen.up_to(known_to), &events))?;
        }
        self.checked("watch_order", count);
        Ok(())
    }

    /// The times between each two acknowledged writes of a group, from the beginning to the end, in which its clock may have stood still: those
    /// in which another leader came, of which there may be many short ones, and long ones that began before all was healed.
    fn outages(&self, group: GroupId) -> Vec<(u64, u64)> {
        let written = |operation: &&Operation| {
            operation.keyspace == group.0 && operation.response().is_some_and(|response| response.wrote())
        };
        let mut times: Vec<u64> =
            self.history.iter().filter(written).map(|operation| operation.returned).collect();
        times.extend([0, self.schedule.now()]);
        times.sort_unstable();
        let terms = self.observer.leaders_seen.range((group.0, 0)..=(group.0, u64::MAX));
        let led_at: Vec<u64> = terms.map(|(_, at)| *at).collect();
        let stands_still = |(from, to): &(u64, u64)| {
            to - from > OUTAGE_US && *from < self.healed_at
                || led_at.iter().any(|at| (from..=to).contains(&at))
        };
        times.windows(2).map(|pair| (pair[0], pair[1])).filter(stands_still).collect()
    }

    fn check_leases(&mut self) -> Result<(), Violation> {
        // A group's clock stands still while it has no leader.
        let mut leases = 0;
        for client in &self.leases {
            let outages = self.outages(client.group());
            for lease in client.stories() {
                let stood_still_us = lease_promise::stood_still_us(lease, &outages, 0);
                let late_us_max = stood_still_us + LEASE_LATE_US;
                self.minded(lease_promise::check(lease, late_us_max, self.settings.drift_ppm))?;
                leases += 1;
            }
        }
        self.checked("lease_promise", leases);
        let claims: Vec<_> = self.leases.iter().flat_map(|client| client.claims()).cloned().collect();
        self.minded(exclusion::check(&claims))?;
        self.checked("exclusion", claims.len() as u64);
        Ok(())
    }

    fn check_keyspace(&mut self, keyspace: GroupId) -> Result<(), Violation> {
        let operations: Vec<Operation> =
            self.history.iter().filter(|operation| operation.keyspace == keyspace.0).cloned().collect();
        self.minded(revision_order::check_responses(&operations))?;
        self.minded(compaction::check(&operations))?;
        let count = operations.len() as u64;
        let is_deleted = self.is_deleted(keyspace);
        if is_deleted && !self.placer.unwanted.contains(&keyspace) {
            let found = format!("group {keyspace} was deleted, which nobody wanted");
            self.minded(Err(Violation::new("durable_ack", found)))?;
        }
        let (known_to, events) = self.known_history(keyspace)?;
        let known: Vec<Operation> =
            operations.iter().map(|operation| operation.known_up_to(known_to)).collect();
        self.minded(durable_ack::check(&known, &events))?;
        let found = match is_deleted {
            true => linearizable::check_with_past(&operations, &events),
            false => {
                self.minded(self.check_present(keyspace, &events))?;
                linearizable::check(&operations, &events)
            }
        };
        self.minded(revision_order::check_events(&events))?;
        for guarantee in ["revision_order", "durable_ack", "compaction"] {
            self.checked_of(keyspace, guarantee, count);
        }
        let mut decided = true;
        self.minded(found.map(|verdict| decided = verdict == linearizable::Verdict::Explained))?;
        if decided {
            self.checked_of(keyspace, "linearizable", count);
        } else {
            self.undecided += 1;
        }
        Ok(())
    }

    /// The history of a keyspace, and up to which revision it is known. Of one that was deleted nobody knows any more what happened after it was to be.
    fn known_history(&self, group: GroupId) -> Result<(i64, Vec<Event>), Violation> {
        if !self.is_deleted(group) {
            return Ok((i64::MAX, self.agreed_history(group)?));
        }
        let (recorded, past) = self.past(group);
        Ok((recorded, past.to_vec()))
    }

    /// All members must show what the history comes to, and no key of a lease: all have ended.
    fn check_present(&self, group: GroupId, events: &[Event]) -> Result<(), Violation> {
        let mut present: BTreeMap<&Bytes, &KeyValue> = BTreeMap::new();
        for event in events {
            match &event.after {
                Some(after) => present.insert(&event.key, after),
                None => present.remove(&event.key),
            };
        }
        if let Some(kept) = present.values().find(|kept| kept.lease != 0) {
            return Err(Violation::new("lease_promise", format!("its lease has ended: {kept:?}")));
        }
        let everything = Bytes::from_static(&[0]);
        let range =
            RangeRequest { key: everything.clone(), range_end: everything, ..RangeRequest::default() };
        let members = self.members_now();
        for (node, machine) in self.machines.iter().filter(|(node, _)| members.contains(node)) {
            let keyspace = machine.process.as_ref().and_then(|process| process.keyspace(group));
            let Some(keyspace) = keyspace else { continue };
            let found = keyspace.range(&range).map_err(|error| {
                Violation::new("no_fatal", format!("n{node} cannot read all of group {group}: {error}"))
            })?;
            let shown: Vec<KeyValue> = found.kvs.iter().map(etcd::key_value).collect();
            if let Some((shown, expected)) = first_difference(&shown, present.values().copied()) {
                let found = format!(
                    "n{node} shows {shown:?} of group {group} where its history ends with {expected:?}"
                );
                return Err(Violation::new("state_machine_safety", found));
            }
        }
        Ok(())
    }

    /// The complete history of a keyspace: what was written down before it was compacted, and the rest, which all members
    /// must show alike.
    pub(super) fn agreed_history(&self, group: GroupId) -> Result<Vec<Event>, Violation> {
        let (recorded, past) = self.past(group);
        let mut agreed: Option<(u64, Vec<Event>)> = None;
        // Whoever was removed and has not been told yet may be behind.
        let members = self.members_now();
        for (node, machine) in self.machines.iter().filter(|(node, _)| members.contains(node)) {
            let keyspace = machine.process.as_ref().and_then(|process| process.keyspace(group));
            let Some(keyspace) = keyspace else { continue };
            let compacted = keyspace.compact_revision().max(0);
            // What happened at the compacted revision itself is there still.
            let shown = match history_from(&keyspace, compacted.max(1)) {
                Ok(shown) => shown,
                Err(what) => {
                    let found = format!("n{node} does not show its history: {what}");
                    self.minded(Err(Violation::new("watch_order", found)))?;
                    continue;
                }
            };
            let mut events: Vec<Event> =
                past.iter().filter(|event| event.revision < compacted).cloned().collect();
            events.extend(shown);
            let differs = |others: &[Event], what: String| match events.starts_with(others) {
                true => Ok(()),
                false => {
                    let found = format!("n{node} shows another history of group {group} than {what}");
                    self.minded(Err(Violation::new("state_machine_safety", found)))
                }
            };
            differs(past, format!("was written down up to revision {recorded}"))?;
            match &agreed {
                Some((first, others)) if others.len() == events.len() => {
                    differs(others, format!("n{first}"))?
                }
                Some((first, _)) => {
                    let found =
                        format!("n{node} shows more or less of the history of group {group} than n{first}");
                    self.minded(Err(Violation::new("state_machine_safety", found)))?;
                }
                None => agreed = Some((*node, events)),
            }
        }
        Ok(agreed.map(|(_, events)| events).unwrap_or_default())
    }
}

/// What is shown first where something else is expected, which is there as well.
pub(super) fn first_difference<'a, T: PartialEq>(
    shown: &'a [T],
    expected: impl IntoIterator<Item = &'a T>,
) -> Option<(Option<&'a T>, Option<&'a T>)> {
    let (mut shown, mut expected) = (shown.iter(), expected.into_iter());
    loop {
        match (shown.next(), expected.next()) {
            (None, None) => return None,
            (shown, expected) if shown == expected => {}
            different => return Some(different),
        }
    }
}

/// How many replicas of a group had a vote in an election, if what the node shows of the group now agrees with that.
fn voters(here: &GroupBoard, election: &ElectionRecord) -> Option<u64> {
    let configuration = here.configuration();
    let voters = configuration.voters.len() as u64;
    let votes = election.votes.get(&election.candidate).copied().unwrap_or_default();
    let counted: u64 = election.votes.values().sum();
    let agrees = counted <= voters && election.won == (votes > voters / 2);
    (!configuration.is_joint() && agrees).then_some(voters)
}
