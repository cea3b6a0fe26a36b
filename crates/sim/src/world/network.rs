//! The network between nodes: for each direction of each pair one connection at a time, as TCP gives it.
//!
//! - Inside a connection messages arrive in order and without holes: once one was lost, nothing more arrives. Only heartbeats overtake
//!   others, as they do in the server's transport.
//! - A new connection knows nothing of the one before it, so stragglers of the old one may arrive after messages of the
//!   new one, if `stragglers` allows it.
//! - A sender whose queue is full drops what does not overtake, and the connection goes on.
//! - A blocked direction swallows what is sent. The sender learns of it late, when its connection times out.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::rngs::SmallRng;

/// Delays of the network, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// Every message takes at least this long.
    pub least_us: u64,
    /// And up to this much longer.
    pub jitter_us: u64,
    /// One in this many messages takes `spike_us` longer, and all behind it with it.
    pub spike_one_in: u32,
    /// See [`Delays::spike_one_in`].
    pub spike_us: u64,
}

/// A direction between two nodes.
pub(super) type Direction = (u64, u64);

/// The state of all connections.
pub(super) struct Network {
    delays: Delays,
    connections: BTreeMap<Direction, Connection>,
    blocked: BTreeSet<Direction>,
    /// Until when the queue of a direction is full, and how much of what is sent finds it so.
    full: BTreeMap<Direction, (u64, f64)>,
}

#[derive(Default)]
struct Connection {
    up: bool,
    /// Counts the connections of this direction.
    number: u64,
    /// A message was lost: nothing more arrives.
    has_hole: bool,
    /// When the last message arrives, of those that go ahead and of the others.
    last_arrivals: [u64; 2],
    /// Connections up to this number have lost what was on its way.
    lost_up_to: u64,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It arrives at this time on the connection of this number, unless that is lost first.
    Arrives(u64, u64),
    /// It is lost.
    Lost,
    /// It is lost, and it is the first: the connection of this number will be found dead.
    LostFirst(u64),
}

impl Network {
    pub(super) fn new(delays: Delays) -> Network {
        Network { delays, connections: BTreeMap::new(), blocked: BTreeSet::new(), full: BTreeMap::new() }
    }

    /// How long something takes that is not bound to a connection.
    pub(super) fn delay(&self, rng: &mut SmallRng) -> u64 {
        let delays = &self.delays;
        let spike = delays.spike_one_in > 0 && rng.random_range(0..delays.spike_one_in) == 0;
        let jitter = rng.random_range(0..=delays.jitter_us);
        delays.least_us + jitter + if spike { rng.random_range(0..=delays.spike_us) } else { 0 }
    }

    pub(super) fn send(
        &mut self,
        rng: &mut SmallRng,
        now: u64,
        direction: Direction,
        goes_ahead: bool,
    ) -> Fate {
        let delay = self.delay(rng);
        let blocked = self.blocked.contains(&direction);
        let full = self.full.get(&direction).filter(|(until, _)| now < *until && !goes_ahead);
        if full.is_some_and(|(_, share)| rng.random_bool(*share)) {
            return Fate::Lost;
        }
        let connection = self.connections.entry(direction).or_default();
        if !connection.up || connection.has_hole {
            return Fate::Lost;
        }
        if blocked {
            connection.has_hole = true;
            return Fate::LostFirst(connection.number);
        }
        let last_arrival = &mut connection.last_arrivals[usize::from(!goes_ahead)];
        *last_arrival = (*last_arrival).max(now + delay);
        Fate::Arrives(*last_arrival, connection.number)
    }

    /// Whether a message that was on its way on this connection still arrives.
    pub(super) fn arrives(&self, direction: Direction, number: u64) -> bool {
        self.connections.get(&direction).is_some_and(|connection| connection.lost_up_to < number)
    }

    /// Makes a connection, if the packets of both directions get through. False if there is one or none can be made.
    pub(super) fn connect(&mut self, direction: Direction) -> bool {
        if !self.is_open(direction) {
            return false;
        }
        let connection = self.connections.entry(direction).or_default();
        if connection.up {
            return false;
        }
        connection.up = true;
        connection.number += 1;
        connection.has_hole = false;
        connection.last_arrivals = [0; 2];
        true
    }

    /// Whether packets of both directions get through.
    pub(super) fn is_open(&self, direction: Direction) -> bool {
        let reverse = (direction.1, direction.0);
        !self.blocked.contains(&direction) && !self.blocked.contains(&reverse)
    }

    pub(super) fn is_up(&self, direction: Direction) -> bool {
        self.connections.get(&direction).is_some_and(|connection| connection.up)
    }

    /// The number of the newest connection of this direction.
    pub(super) fn number(&self, direction: Direction) -> u64 {
        self.connections.get(&direction).map_or(0, |connection| connection.number)
    }

    /// Ends the connection. What is on its way arrives only if `stragglers`. False if there was none.
    pub(super) fn disconnect(&mut self, direction: Direction, stragglers: bool) -> bool {
        let Some(connection) = self.connections.get_mut(&direction) else { return false };
        if !stragglers {
            connection.lost_up_to = connection.number;
        }
        std::mem::replace(&mut connection.up, false)
    }

    /// Nothing more arrives on the connection, and nobody knows. Returns its number.
    pub(super) fn sever(&mut self, direction: Direction) -> u64 {
        let connection = self.connections.entry(direction).or_default();
        connection.has_hole = true;
        connection.number
    }

    /// Lets nothing through in this direction.
    pub(super) fn block(&mut self, direction: Direction) {
        self.blocked.insert(direction);
    }

    /// The queue of this direction is full until then: a share of what is sent is dropped.
    pub(super) fn fill(&mut self, direction: Direction, until: u64, share: f64) {
        self.full.insert(direction, (until, share));
    }

    /// Lets everything through again. Connections with a hole stay dead until their ends notice.
    pub(super) fn heal(&mut self) {
        self.blocked.clear();
        self.full.clear();
    }

    pub(super) fn is_blocked(&self, direction: Direction) -> bool {
        self.blocked.contains(&direction)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn network() -> (Network, SmallRng) {
        let delays = Delays { least_us: 100, jitter_us: 1_000, spike_one_in: 5, spike_us: 10_000 };
        (Network::new(delays), SmallRng::seed_from_u64(1))
    }

    #[test]
    fn a_connection_keeps_its_order() {
        let (mut network, mut rng) = network();
        assert!(network.connect((1, 2)));
        let mut last = 0;
        for now in 0..500 {
            let Fate::Arrives(at, 1) = network.send(&mut rng, now, (1, 2), false) else { panic!("lost") };
            assert!(at >= last && at >= now + 100);
            last = at;
        }
    }

    #[test]
    fn a_heartbeat_overtakes_what_is_late_and_nothing_else() {
        let (mut network, mut rng) = network();
        network.connect((1, 2));
        let mut arrival = |now, goes_ahead| match network.send(&mut rng, now, (1, 2), goes_ahead) {
            Fate::Arrives(at, 1) => at,
            other => panic!("{other:?}"),
        };
        let (mut last, mut overtook) = (0, false);
        for now in 0..500 {
            let (other, heartbeat) = (arrival(now, false), arrival(now, true));
            assert!(heartbeat >= last);
            (last, overtook) = (heartbeat, overtook | (heartbeat < other));
        }
        assert!(overtook);
    }

    #[test]
    fn a_full_queue_drops_what_does_not_go_ahead_and_the_connection_stays() {
        let (mut network, mut rng) = network();
        network.connect((1, 2));
        network.fill((1, 2), 100, 1.0);
        assert_eq!(network.send(&mut rng, 99, (1, 2), false), Fate::Lost);
        assert!(matches!(network.send(&mut rng, 99, (1, 2), true), Fate::Arrives(_, 1)));
        assert!(matches!(network.send(&mut rng, 99, (2, 1), true), Fate::Lost), "nobody is connected there");
        assert!(matches!(network.send(&mut rng, 100, (1, 2), false), Fate::Arrives(_, 1)));
    }

    #[test]
    fn after_a_hole_nothing_arrives_until_there_is_a_new_connection() {
        let (mut network, mut rng) = network();
        network.connect((1, 2));
        network.block((1, 2));
        assert_eq!(network.send(&mut rng, 0, (1, 2), false), Fate::LostFirst(1));
        network.heal();
        assert_eq!(network.send(&mut rng, 0, (1, 2), false), Fate::Lost);
        assert!(!network.connect((1, 2)));
        assert!(network.disconnect((1, 2), false));
        assert!(network.connect((1, 2)));
        assert!(matches!(network.send(&mut rng, 0, (1, 2), false), Fate::Arrives(_, 2)));
    }

    #[test]
    fn a_connection_needs_both_directions() {
        let (mut network, mut rng) = network();
        network.block((2, 1));
        assert!(!network.connect((1, 2)));
        assert_eq!(network.send(&mut rng, 0, (1, 2), false), Fate::Lost);
    }

    #[test]
    fn stragglers_arrive_only_when_allowed() {
        let (mut network, _) = network();
        network.connect((1, 2));
        network.disconnect((1, 2), true);
        assert!(network.arrives((1, 2), 1));
        network.connect((1, 2));
        network.disconnect((1, 2), false);
        assert!(!network.arrives((1, 2), 1));
        assert!(!network.arrives((1, 2), 2));
        assert!(network.arrives((1, 2), 3));
    }
}
