//! What works could work better: nodes above their goal give, nodes far below the level take.
//!
//! The level is the mean of W, without the replicas that are heavier than that and the nodes they are on. The goal of a node is the level, or
//! what its heaviest replica makes up alone if that is more: a replica cannot be divided, and a node that holds such a one should
//! hold nothing else. Leaderships move first, for they cost next to nothing. Of the
//! replicas those go first that take the most load away for the bytes they have.
//!
//! **Invariant**: a move lowers the larger W of its two nodes.

use super::board::{Board, Draft, Seat};
use crate::load::Load;
use crate::moves::{MoveKind, Reason};

/// Replicas of one node that are tried for a place.
const TRIES: usize = 12;
/// Nodes that are asked to give to one.
const DONORS: usize = 24;
/// What a move costs beside its bytes, in bytes: many small moves are no bargain.
const FIXED_COST_BYTES: f64 = 16e6;
/// Where everybody is above the level already, a replica moves only if that takes this part off the larger of two W.
const RELIEF_MIN: f64 = 0.10;

/// Nodes above their goal give, the most loaded first.
pub(super) fn overload(board: &mut Board<'_>) {
    let rocks = board.rocks();
    let (level, urgent) = (board.level_around(&rocks), urgent(board, &rocks));
    let mut is_done: Vec<bool> = board.seats.iter().map(|seat| !seat.is_alive || seat.is_draining).collect();
    while let Some(node) = heaviest(board, &is_done, level * (1.0 + board.policy.overload.begin)) {
        is_done[node] = true;
        let goal = level.max(board.heaviest(node));
        if board.seats[node].weight > goal * (1.0 + board.policy.overload.begin) {
            let until = goal * (1.0 + board.policy.overload.end);
            let is_urgent = |board: &Board<'_>| board.seats[node].weight > urgent;
            while board.seats[node].weight > until && relieve(board, node, level, goal, is_urgent(board)) {}
        }
    }
}

/// W above which a node stands out of the whole pool: above the mean, and above the heaviest replica anywhere. Bytes are no object there. Below
/// it only the spread is at stake. The heaviest replica is taken as it is: the largest of many measured loads is rather too large.
fn urgent(board: &Board<'_>, rocks: &[f64]) -> f64 {
    let heaviest = rocks.first().copied().unwrap_or(0.0);
    heaviest.max(board.mean() * (1.0 + board.policy.overload.begin))
}

/// The most loaded node that is not done and above `limit`.
fn heaviest(board: &Board<'_>, is_done: &[bool], limit: f64) -> Option<usize> {
    let open = (0..board.seats.len()).filter(|node| !is_done[*node] && board.seats[*node].weight > limit);
    open.max_by(|a, b| board.seats[*a].weight.total_cmp(&board.seats[*b].weight).then(b.cmp(a)))
}

/// Takes one thing off `node`. False if there is nothing to take.
fn relieve(board: &mut Board<'_>, node: usize, level: f64, goal: f64, is_urgent: bool) -> bool {
    let Some((group, kind)) = relief(board, node, level, goal, is_urgent) else { return false };
    let (resource, load) = board.seats[node].scarcest();
    board.decide(group, kind, Reason::Overloaded { node: board.seats[node].id, resource, load, goal });
    true
}

fn relief(
    board: &Board<'_>,
    node: usize,
    level: f64,
    goal: f64,
    is_urgent: bool,
) -> Option<(usize, MoveKind)> {
    best_transfer(board, node, level).or_else(|| {
        let gifts = gifts(board, node, level);
        let (bargains, others): (Vec<Gift>, Vec<Gift>) = gifts.into_iter().partition(|gift| gift.is_bargain);
        let best = |gifts: &[Gift]| {
            cheap_gift(board, node, level, goal, gifts).or_else(|| heavy_gift(board, node, gifts))
        };
        best(&bargains).or_else(|| best(&others).filter(|_| is_urgent))
    })
}

/// The leadership that brings `node` and its heir closest together, without lifting the heir above the mean.
fn best_transfer(board: &Board<'_>, node: usize, level: f64) -> Option<(usize, MoveKind)> {
    if !board.may_transfer() {
        return None;
    }
    let ceiling = level * (1.0 + board.policy.overload.end);
    let led = board.seats[node].held.iter().filter(|group| board.groups[**group].leader == Some(node));
    let pairs = led.flat_map(|group| transfers(board, node, *group, level));
    let fitting = pairs.filter(|pair| pair.to_after <= ceiling);
    let best = fitting.reduce(|best, next| if next.larger() < best.larger() { next } else { best })?;
    Some((best.group, best.kind))
}

/// Two nodes after a move between them.
struct Pair {
    group: usize,
    kind: MoveKind,
    from_after: f64,
    to_after: f64,
}

impl Pair {
    fn larger(&self) -> f64 {
        self.from_after.max(self.to_after)
    }
}

/// The ways to hand over a leadership that take enough off `node`.
fn transfers<'b>(
    board: &'b Board<'_>,
    node: usize,
    group: usize,
    level: f64,
) -> impl Iterator<Item = Pair> + use<'b> {
    let draft = &board.groups[group];
    let part = &draft.view.load.leader;
    let from_after = board.seats[node].weight_without(part);
    let is_worth_it = board.seats[node].weight - from_after >= board.policy.leader_gain_min * level
        && is_settled(board, draft);
    let heirs = draft.replicas.iter().copied().filter(move |heir| is_worth_it && *heir != node);
    heirs.filter(|heir| board.may_lead(*heir, draft)).map(move |heir| Pair {
        group,
        kind: MoveKind::TransferLeader { from: board.seats[node].id, to: board.seats[heir].id },
        from_after,
        to_after: board.seats[heir].weight_with(part),
    })
}

/// A replica that could be taken off a node.
struct Gift {
    group: usize,
    load: Load,
    /// What that takes off the node's W.
    gain: f64,
    /// It is worth its bytes also where only the spread is at stake.
    is_bargain: bool,
}

/// The replicas that could be taken off `node`.
fn gifts(board: &Board<'_>, node: usize, level: f64) -> Vec<Gift> {
    if !board.may_build() {
        return Vec::new();
    }
    let seat = &board.seats[node];
    let gift = |group: &usize| {
        let draft = &board.groups[*group];
        let load = draft.view.load.at(draft.leader == Some(node));
        let gain = seat.weight - seat.weight_without(&load);
        let is_offered = gain >= board.policy.replica_gain_min * level
            && is_settled(board, draft)
            && board.has_sender(draft);
        let part_of_bytes = draft.view.bytes as f64 / board.bytes_per_node;
        let is_bargain = gain / level >= board.policy.bargain * part_of_bytes;
        is_offered.then_some(Gift { group: *group, load, gain, is_bargain })
    };
    seat.held.iter().filter_map(gift).collect()
}

/// The replica that takes the most off `node` for its bytes, without making it cold, and fits under the level elsewhere.
fn cheap_gift(
    board: &Board<'_>,
    node: usize,
    level: f64,
    goal: f64,
    gifts: &[Gift],
) -> Option<(usize, MoveKind)> {
    let weight = board.seats[node].weight;
    let (floor, ceiling) =
        (level * (1.0 - board.policy.underuse.end), level * (1.0 + board.policy.overload.end));
    let price = |gift: &&Gift| {
        let bytes = board.groups[gift.group].view.bytes as f64;
        (bytes + FIXED_COST_BYTES) / gift.gain.min(weight - goal)
    };
    // What does not even fit on the least loaded node is not worth a try.
    let lightest = lightest(board)?;
    let fits = |gift: &&Gift| weight - gift.gain >= floor && lightest.weight_with(&gift.load) <= ceiling;
    let mut cheap: Vec<&Gift> = gifts.iter().filter(fits).collect();
    cheap.sort_by(|a, b| price(a).total_cmp(&price(b)));
    first_fitting(board, node, &cheap, ceiling)
}

/// The least loaded node that may receive.
fn lightest<'b, 'a>(board: &'b Board<'a>) -> Option<&'b Seat<'a>> {
    let open = board.seats.iter().filter(|seat| board.may_receive(seat, 0));
    open.min_by(|a, b| a.weight.total_cmp(&b.weight))
}

/// The heaviest replica that makes the larger W of two nodes clearly smaller, also if the other will have to give in turn.
fn heavy_gift(board: &Board<'_>, node: usize, gifts: &[Gift]) -> Option<(usize, MoveKind)> {
    let ceiling = board.seats[node].weight * (1.0 - RELIEF_MIN);
    let lightest = lightest(board)?;
    let mut heavy: Vec<&Gift> =
        gifts.iter().filter(|gift| lightest.weight_with(&gift.load) <= ceiling).collect();
    heavy.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    first_fitting(board, node, &heavy, ceiling)
}

/// The first of some replicas for which there is a place whose W stays below `ceiling`.
fn first_fitting(board: &Board<'_>, node: usize, gifts: &[&Gift], ceiling: f64) -> Option<(usize, MoveKind)> {
    gifts.iter().take(TRIES).find_map(|gift| {
        let place = board.best_place(gift.group, Some(node), &gift.load)?;
        let draft = &board.groups[gift.group];
        let company = board.company(draft, board.seats[node].zone, Some(node));
        let kind = MoveKind::MoveReplica { from: board.seats[node].id, to: board.seats[place.node].id };
        (place.weight <= ceiling && place.company <= company).then_some((gift.group, kind))
    })
}

/// Nodes far below the level take from those above it, the least loaded first.
pub(super) fn underuse(board: &mut Board<'_>) {
    let level = board.level();
    let (begin, end) =
        (level * (1.0 - board.policy.underuse.begin), level * (1.0 - board.policy.underuse.end));
    let mut cold: Vec<usize> = (0..board.seats.len())
        .filter(|it| board.seats[*it].receives() && board.seats[*it].weight < begin)
        .collect();
    cold.sort_by(|a, b| board.seats[*a].weight.total_cmp(&board.seats[*b].weight));
    for node in cold {
        while board.seats[node].weight < end && fill(board, node, level) {}
    }
}

/// Gives one thing to `node`. False if there is nothing to give.
fn fill(board: &mut Board<'_>, node: usize, level: f64) -> bool {
    let best = best_inheritance(board, node, level).or_else(|| best_acquisition(board, node, level));
    let Some((group, kind)) = best else { return false };
    let load = board.seats[node].weight;
    board.decide(group, kind, Reason::Underused { node: board.seats[node].id, load, goal: level });
    true
}

/// The leadership that takes the most off a node above the level, of those that `node` could take over.
fn best_inheritance(board: &Board<'_>, node: usize, level: f64) -> Option<(usize, MoveKind)> {
    if !board.may_transfer() {
        return None;
    }
    let to = board.seats[node].id;
    let pairs = board.seats[node].held.iter().filter_map(|group| {
        let leader = board.groups[*group].leader.filter(|leader| *leader != node)?;
        let pair =
            transfers(board, leader, *group, level).find(|pair| pair.kind.leader_after(None) == Some(to))?;
        let gain = board.seats[leader].weight - pair.from_after;
        gives(board, leader, pair.from_after, level).then_some((pair, gain))
    });
    let fitting = pairs.filter(|(pair, _)| pair.to_after <= level);
    let best = fitting.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    Some((best.0.group, best.0.kind))
}

/// The replica that takes the most off a node above the level for its bytes, of those that `node` could take.
fn best_acquisition(board: &Board<'_>, node: usize, level: f64) -> Option<(usize, MoveKind)> {
    let mut donors: Vec<usize> = (0..board.seats.len())
        .filter(|it| board.seats[*it].is_alive && board.seats[*it].weight > level)
        .collect();
    donors.sort_by(|a, b| board.seats[*b].weight.total_cmp(&board.seats[*a].weight));
    let offers = donors.into_iter().take(DONORS).flat_map(|donor| offers(board, donor, node, level));
    let best = offers.reduce(|best, next| if next.2 < best.2 { next } else { best })?;
    Some((best.0, best.1))
}

/// What `donor` could give to `node`, and the price of each.
fn offers(board: &Board<'_>, donor: usize, node: usize, level: f64) -> Vec<(usize, MoveKind, f64)> {
    let kind = MoveKind::MoveReplica { from: board.seats[donor].id, to: board.seats[node].id };
    let offer = |gift: Gift| {
        let draft = &board.groups[gift.group];
        let place = board.place(gift.group, Some(donor), node, &gift.load)?;
        let company = board.company(draft, board.seats[donor].zone, Some(donor));
        let is_fitting = place.weight <= level
            && place.company <= company
            && gives(board, donor, board.seats[donor].weight - gift.gain, level);
        let price = (draft.view.bytes as f64 + FIXED_COST_BYTES) / gift.gain;
        is_fitting.then_some((gift.group, kind, price))
    };
    gifts(board, donor, level).into_iter().filter(|gift| gift.is_bargain).filter_map(offer).collect()
}

/// Whether `node` is above the level, and not cold with W at `after`.
fn gives(board: &Board<'_>, node: usize, after: f64, level: f64) -> bool {
    board.seats[node].weight > level && after >= level * (1.0 - board.policy.underuse.end)
}

/// Whether a group may be touched for the sake of load: it was not lately, and all is well with it.
fn is_settled(board: &Board<'_>, draft: &Draft<'_>) -> bool {
    let changed_at = draft.view.changed_at;
    !draft.is_busy
        && changed_at.is_none_or(|at| board.now.micros_since(at) >= board.policy.cool_down_us)
        && board.reachable(draft) == draft.replicas.len()
        && board.is_idle(draft)
}
