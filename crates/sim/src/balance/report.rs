//! What became of the pools: counted while they run, and held against the bounds in the end.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use hadron_balance::{Assessment, Bytes, Move, MoveKind, Policy, View};
use hadron_consensus::{GroupId, NodeId, Time};

use super::pool::Pool;
use super::{HOUR_US, Settings};

/// What the largest load may be, in parts of the larger of the mean and the heaviest replica.
const LARGEST_MAX: f64 = 1.05;

/// Hours, minutes: 07:30.
pub(super) struct Clock(pub(super) Time);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.0.0 / (HOUR_US / 60);
        write!(f, "{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

/// How a pool stands, in a line.
pub(super) fn state(it: &Assessment) -> String {
    let mut text = format!(
        "largest W {:.3}, mean {:.3}, heaviest replica {:.3}, spread {:.3}",
        it.largest, it.mean, it.heaviest_replica, it.spread
    );
    for (what, count) in [
        ("short of replicas", it.short_of_replicas),
        ("without a quorum", it.without_quorum),
        ("sharing a zone", it.sharing_a_zone),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

/// What a pool did.
#[derive(Clone, Default)]
pub(super) struct Tally {
    totals: Totals,
    /// Moves of the last hour, the oldest first.
    recent: VecDeque<(Time, GroupId, MoveKind)>,
    /// All moves of each group for the sake of balance.
    balancing: BTreeMap<GroupId, Vec<MoveKind>>,
    /// Nodes that were emptied and have left.
    pub(super) left: usize,
}

/// Moves and bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Moves begun and bytes sent, by reason.
    pub by_reason: BTreeMap<&'static str, (u64, u64)>,
    /// Leaderships handed over as moves of their own.
    pub transfers: u64,
    /// Bytes sent for the sake of balance.
    pub balancing_bytes: u64,
    /// Moves that were given up.
    pub given_up: u64,
    /// Moves for the sake of balance that took back one of the last hour.
    pub undone: u64,
    /// Moves for the sake of balance, at any time, that took back an earlier one: what a hot spot has driven away may come back.
    pub returned: u64,
    /// Replicas that went there, back and there again for the sake of balance, however long that took.
    pub circled: u64,
    /// Replicas that were put where they must not be: on disks too full, on nodes out of reach.
    pub misplaced: u64,
    /// Nodes that were emptied and have left.
    pub left: usize,
}

impl Totals {
    /// Bytes sent in all.
    pub fn bytes(&self) -> u64 {
        self.by_reason.values().map(|(_, bytes)| bytes).sum()
    }

    /// Moves begun in all.
    pub fn moves(&self) -> u64 {
        self.by_reason.values().map(|(moves, _)| moves).sum()
    }
}

impl Tally {
    pub(super) fn begin(&mut self, now: Time, it: &Move) {
        self.totals.by_reason.entry(it.reason.name()).or_default().0 += 1;
        self.totals.transfers += u64::from(matches!(it.kind, MoveKind::TransferLeader { .. }));
        while self.recent.front().is_some_and(|(at, _, _)| now.micros_since(*at) > HOUR_US) {
            self.recent.pop_front();
        }
        let undoes =
            |(_, group, kind): &(Time, GroupId, MoveKind)| *group == it.group && kind.inverse() == it.kind;
        if it.reason.is_balancing() {
            self.totals.undone += u64::from(self.recent.iter().any(undoes));
            self.remember(it);
        }
        self.recent.push_back((now, it.group, it.kind));
    }

    /// What goes to and fro oscillates, also if it takes its time.
    fn remember(&mut self, it: &Move) {
        let earlier = self.balancing.entry(it.group).or_default();
        let back = earlier.iter().rposition(|kind| kind.inverse() == it.kind);
        self.totals.returned += u64::from(back.is_some());
        let again = back.is_some_and(|back| earlier[..back].contains(&it.kind));
        self.totals.circled += u64::from(again && it.kind.destination().is_some());
        earlier.push(it.kind);
    }

    pub(super) fn sent(&mut self, reason: &'static str, is_balancing: bool, bytes: u64) {
        self.totals.by_reason.entry(reason).or_default().1 += bytes;
        self.totals.balancing_bytes += if is_balancing { bytes } else { 0 };
    }

    pub(super) fn end(&mut self, is_done: bool) {
        self.totals.given_up += u64::from(!is_done);
    }

    /// A replica of so many bytes is about to be put on a node.
    pub(super) fn place(&mut self, view: &View, policy: &Policy, node: NodeId, bytes: u64) {
        let fits = view.nodes.get(&node).is_some_and(|node| {
            !node.draining && (node.disk.used + bytes) as f64 <= policy.disk_max * node.disk.total as f64
        });
        self.totals.misplaced += u64::from(!fits);
    }

    /// Moves begun in the hour before `now`, in a line.
    pub(super) fn moves_in_hour(&self, now: Time) -> String {
        let recent = self.recent.iter().filter(|(at, _, _)| now.micros_since(*at) < HOUR_US);
        let all = recent.clone().count();
        let leaders = recent.filter(|(_, _, kind)| matches!(kind, MoveKind::TransferLeader { .. })).count();
        format!("{leaders} leaders and {} replicas moved in the last hour", all - leaders)
    }
}

/// What was seen of the truth.
#[derive(Default)]
pub(super) struct Judge {
    ours: Seen,
    theirs: Seen,
}

/// What was seen of one pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The largest W while the pool had to be balanced, in parts of the larger of the mean and the heaviest replica.
    pub largest: f64,
    /// Of each node, the same with the heaviest replica that it has itself; and then the largest of these.
    pub largest_of_its_own: f64,
    /// The largest W at any time.
    pub peak: f64,
    /// The most groups without a quorum at a time.
    pub without_quorum: usize,
    /// The most groups, at a time at which the pool had to be balanced, with fewer replicas than they shall have or two in a zone although
    /// there was another.
    pub broken: usize,
}

impl Seen {
    fn look(&mut self, is_calm: bool, it: &Assessment) {
        self.peak = self.peak.max(it.largest);
        self.without_quorum = self.without_quorum.max(it.without_quorum);
        if is_calm {
            self.largest = self.largest.max(it.largest / it.mean.max(it.heaviest_replica));
            let own = it.nodes.iter().map(|node| node.load / it.mean.max(node.heaviest_replica));
            self.largest_of_its_own = own.fold(self.largest_of_its_own, f64::max);
            self.broken = self.broken.max(it.short_of_replicas + it.sharing_a_zone);
        }
    }
}

impl Judge {
    pub(super) fn look(&mut self, settings: &Settings, now: Time, ours: &Assessment, theirs: &Assessment) {
        let is_calm = settings.is_calm(now);
        self.ours.look(is_calm, ours);
        self.theirs.look(is_calm, theirs);
    }

    pub(super) fn finish(
        self,
        settings: &Settings,
        ours: &Pool,
        theirs: &Pool,
        slowest_round: Duration,
    ) -> Report {
        let totals = |pool: &Pool| Totals { left: pool.tally.left, ..pool.tally.totals.clone() };
        Report {
            settings: settings.clone(),
            by_load: (self.ours, totals(ours)),
            by_counts: (self.theirs, totals(theirs)),
            slowest_round,
        }
    }
}

/// What became of the pools.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    settings: Settings,
    /// The pool that is planned by load.
    pub by_load: (Seen, Totals),
    /// The pool that is planned by counts.
    pub by_counts: (Seen, Totals),
    /// The longest that a plan took of a processor of this machine. Not part of what is displayed, which follows from the settings alone.
    pub slowest_round: Duration,
}

impl Report {
    /// What must be so, and whether it is.
    pub fn bounds(&self) -> Vec<(String, bool)> {
        let (seen, totals) = &self.by_load;
        let percent = |part: f64| format!("{:.1} %", part * 100.0);
        vec![
            (
                format!(
                    "the largest load is {} of the larger of mean and heaviest replica, at most 105 %",
                    percent(seen.largest)
                ),
                seen.largest <= LARGEST_MAX,
            ),
            (
                format!(
                    "{} were sent, and {} by the planner that balances counts",
                    Bytes(totals.bytes()),
                    Bytes(self.by_counts.1.bytes())
                ),
                totals.bytes() < self.by_counts.1.bytes(),
            ),
            (
                format!("{} moves took back one of the hour before, none may", totals.undone),
                totals.undone == 0,
            ),
            (
                format!("{} replicas went there, back and there again, none may", totals.circled),
                totals.circled == 0,
            ),
            (
                format!("{} replicas were put where they must not be, none may", totals.misplaced),
                totals.misplaced == 0,
            ),
            (
                format!("{} groups lacked replicas or zones after all was well again, none may", seen.broken),
                seen.broken == 0,
            ),
        ]
    }

    /// Whether every bound holds.
    pub fn holds(&self) -> bool {
        self.bounds().iter().all(|(_, holds)| *holds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.settings;
        writeln!(
            f,
            "\n{} nodes, {} keyspaces, {} hours:",
            settings.nodes, settings.keyspaces, settings.hours
        )?;
        let (ours, theirs) = (&self.by_load, &self.by_counts);
        writeln!(f, "{:<44} {:>14} {:>14}", "", "by load", "by counts")?;
        let mut line =
            |what: &str, ours: String, theirs: String| writeln!(f, "{what:<44} {ours:>14} {theirs:>14}");
        let part = |part: f64| format!("{:.1} %", part * 100.0);
        line("largest W, of mean or heaviest, when calm", part(ours.0.largest), part(theirs.0.largest))?;
        line(
            "each node, of mean or its own heaviest",
            part(ours.0.largest_of_its_own),
            part(theirs.0.largest_of_its_own),
        )?;
        line("largest W at any time", part(ours.0.peak), part(theirs.0.peak))?;
        line(
            "groups without a quorum at a time, at most",
            ours.0.without_quorum.to_string(),
            theirs.0.without_quorum.to_string(),
        )?;
        let counts = |of: fn(&Totals) -> u64| (of(&ours.1).to_string(), of(&theirs.1).to_string());
        for (what, (ours, theirs)) in [
            ("moves", counts(Totals::moves)),
            ("of these leaderships", counts(|it| it.transfers)),
            ("moves given up", counts(|it| it.given_up)),
            ("moves that took back one of the hour before", counts(|it| it.undone)),
            ("moves that took back an earlier one", counts(|it| it.returned)),
            ("nodes emptied that have left", counts(|it| it.left as u64)),
        ] {
            line(what, ours, theirs)?;
        }
        line("sent", Bytes(ours.1.bytes()).to_string(), Bytes(theirs.1.bytes()).to_string())?;
        let balancing = |it: &Totals| Bytes(it.balancing_bytes).to_string();
        line("of that for the sake of balance", balancing(&ours.1), balancing(&theirs.1))?;
        writeln!(f, "\nmoves by reason:")?;
        let reasons = ours.1.by_reason.keys().chain(theirs.1.by_reason.keys());
        for reason in reasons.collect::<std::collections::BTreeSet<_>>() {
            let moves = |it: &Totals| {
                let (moves, bytes) = it.by_reason.get(reason).copied().unwrap_or_default();
                format!("{moves}, {}", Bytes(bytes))
            };
            writeln!(f, "  {reason:<22} {:>20} {:>20}", moves(&ours.1), moves(&theirs.1))?;
        }
        writeln!(f, "\nbounds:")?;
        self.bounds().iter().try_for_each(|(what, holds)| {
            writeln!(f, "  {} {what}", if *holds { "held:  " } else { "BROKEN:" })
        })
    }
}
