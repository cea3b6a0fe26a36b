//! A network: each link in each direction may be cut; what goes through may be lost, doubled, late and overtaken.

use hadron_consensus::Time;
use rand::Rng;
use rand::rngs::SmallRng;

/// The state of all links.
#[derive(Debug)]
pub(crate) struct Network {
    replicas: usize,
    cut: Vec<bool>,
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    /// The share of messages that take up to `late_us`.
    pub(crate) late: f64,
    late_us: u64,
}

impl Network {
    /// A network with its seed's character.
    pub(crate) fn new(replicas: usize, rng: &mut SmallRng) -> Network {
        let pick = |rng: &mut SmallRng, choices: [f64; 4]| choices[rng.random_range(0..4)];
        Network {
            replicas,
            cut: vec![false; replicas * replicas],
            loss: pick(rng, [0.0, 0.0, 0.01, 0.1]),
            duplication: pick(rng, [0.0, 0.01, 0.05, 0.1]),
            late: pick(rng, [0.0, 0.01, 0.05, 0.2]),
            late_us: rng.random_range(5_000..150_000),
        }
    }

    /// Cuts or mends the link from one replica to another, in this direction only.
    pub(crate) fn set_cut(&mut self, from: usize, to: usize, cut: bool) {
        self.cut[from * self.replicas + to] = cut;
    }

    /// Cuts the replicas in `side` off from the others, both ways.
    pub(crate) fn partition(&mut self, side: &[bool]) {
        for from in 0..self.replicas {
            for to in 0..self.replicas {
                self.set_cut(from, to, side[from] != side[to]);
            }
        }
    }

    /// Mends all links.
    pub(crate) fn heal(&mut self) {
        self.cut.fill(false);
    }

    /// From now on nothing is lost, late or doubled.
    pub(crate) fn become_kind(&mut self) {
        self.heal();
        self.loss = 0.0;
        self.duplication = 0.0;
        self.late = 0.0;
    }

    /// When the copies of a message sent now arrive, if any do.
    pub(crate) fn arrivals(
        &self,
        from: usize,
        to: usize,
        now: Time,
        rng: &mut SmallRng,
    ) -> [Option<Time>; 2] {
        let first = (!self.cut[from * self.replicas + to] && !rng.random_bool(self.loss))
            .then(|| self.arrival(now, rng));
        let second = (first.is_some() && rng.random_bool(self.duplication)).then(|| self.arrival(now, rng));
        [first, second]
    }

    fn arrival(&self, now: Time, rng: &mut SmallRng) -> Time {
        let usual = rng.random_range(100..2_000);
        let late = if rng.random_bool(self.late) { rng.random_range(0..self.late_us) } else { 0 };
        now.plus_micros(usual + late)
    }
}
