//! One world from one seed: whole nodes on a simulated clock, network and disk, and clients that write down what they see.
//!
//! ```text
//!  clients ──requests──▶ inbox ─▶ Node::step .. Node::settle ─▶ effects ─┬─▶ log thread    (MemoryDisk)
//!     ▲                    ▲                                             ├─▶ engine thread (ModelEngine)
//!     └────── replies ─────┼─────────────────────────────────────────────┤
//!                          └── completions, peer messages, timers ◀──────┴─▶ network
//! ```
//! The nodes are the shipped ones, log and keyspaces included; only disk, network, clock and threads are replaced.
//! The world takes the place of the server's driver, so it keeps the same contract: events in, one settle per turn,
//! effects out, completions back.
//!
//! A run has two parts. While faults are on, machines crash (losing what they had not synced), processes are killed and
//! paused, disks are slow, connections break, the network is partitioned. Then everything is healed, and the pool must
//! serve again within a bounded time, with all nodes equal. Safety is checked at every turn and over the history.
//!
//! Invariants: everything follows from the seed (no hash map is iterated, no clock is read); a run's trace has a hash,
//! and two runs of one seed have the same one.
//!
//! [`lies`] tells nodes and clients things that are not true, so that it is known that the checkers would notice.
//!
//! In some worlds members come and go (`members`), in some keyspaces are made, moved and deleted (`placements`), or damaged and rebuilt (`repairs`); in the others a machine that lost its data stays down.

mod clients;
mod compaction;
mod damage;
mod faults;
mod garbage;
mod leases;
pub mod lies;
mod logs;
mod machine;
mod members;
mod memory;
mod moments;
mod network;
mod observe;
mod placements;
mod promises;
mod repairs;
mod root;
mod scenario;
mod schedule;
mod scrubs;
mod settings;
mod shutdown;
pub mod sickness;
mod silence;
mod snapshots;
mod story;
mod threads;
mod trace;
mod watchers;
mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use hadron_consensus::{DEFAULT_GROUP, GroupId, LogPosition};
use rand::SeedableRng;
use rand::rngs::SmallRng;

pub use faults::Weights;
pub use network::Delays;
pub use scenario::Scenario;
pub use settings::{REST_EVERY_US, Settings, TROUBLE_US, Trouble};
pub use story::{Share, Stop, Story, StoryEvent};
pub use trace::panicked;

use crate::checkers::bounded_memory::Usage;
use crate::history::{Event, Operation, Outcome, Violation};
use clients::Client;
use leases::LeaseClient;
use logs::Logs;
use machine::Machine;
use members::Administrator;
use network::{Direction, Network};
use observe::Observer;
use placements::Placer;
use promises::Promises;
use repairs::Repairs;
use root::Root;
use schedule::Schedule;
use scrubs::Scrubs;
use snapshots::{Chunk, Transfer};
use trace::Trace;
use watchers::Watching;

/// One life of a process on a node. What is due for another life is nobody's business any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Life {
    node: u64,
    incarnation: u64,
}

/// Something that is due.
#[derive(Debug)]
enum Happening {
    /// The loop of one of the node's shards takes what is in its inbox.
    Turn(Life, usize),
    /// The shard's deadline, as it was set.
    Timer(Life, usize, u64),
    /// A peer message arrives on the connection of this number.
    Message { direction: Direction, number: u64, to: Life, bytes: Bytes },
    /// The log thread's write and sync end.
    LogSynced(Life),
    /// The log may have had nothing to do since it had written so many batches.
    LogIdle { life: Life, batches: u64 },
    /// A node that was asked to stop looks whether it may.
    ShutDown { life: Life, until: u64 },
    /// The engine thread's job ends.
    EngineDone(Life),
    /// `direction.0` tries to connect.
    Connect(Direction, Life),
    /// The sender finds its connection of this number dead.
    FoundDead(Direction, u64),
    /// A part of a snapshot arrives.
    Snapshot(Box<Chunk>),
    /// The sender of a snapshot learns how it ended.
    SnapshotEnded(Transfer, Option<LogPosition>),
    /// A client begins its next operation.
    ClientNext(usize),
    /// A client's request arrives.
    Request { operation: usize, life: Life },
    /// A front end serves a read, after its barrier if it has one.
    ServeRead { operation: usize, life: Life },
    /// A client learns the outcome of its operation.
    Answer { operation: usize, outcome: Outcome },
    /// A client has waited long enough.
    GiveUp { operation: usize, life: Life, token: u64 },
    /// A lease client goes on.
    LeaseNext(usize),
    /// A lease client has waited long enough.
    LeaseGiveUp { client: usize, request: u64, life: Life, token: u64 },
    /// A watcher looks for events, or for a node.
    Watch(usize),
    /// Some keyspace is compacted.
    Compact,
    /// Some node reads again what it has stored.
    Scrub,
    /// The administrator looks at the members.
    Administer,
    /// Somebody makes or moves a keyspace.
    Place,
    /// Somebody plans, and replicas are accused.
    Repair,
    /// The next fault begins.
    Fault,
    /// Somebody looks at the leaders' measurements.
    LookAtShares,
    /// Somebody looks at how much memory and log the nodes use.
    Measure,
    /// A machine loses its power.
    PowerLoss(u64),
    /// A machine that was down comes back.
    Boot(u64),
    /// A partition ends.
    Heal(u64),
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Equal for runs that did the same.
    pub trace_hash: u64,
    /// Operations that clients began.
    pub operations: usize,
    /// Operations that were acknowledged.
    pub acknowledged: usize,
    /// Operations whose outcome stayed unknown.
    pub unknown: usize,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// Terms of the group `default` that had a leader.
    pub terms_led: usize,
    /// Crashes and kills.
    pub crashes: u64,
    /// Snapshots that were installed.
    pub snapshots: u64,
    /// Compactions that were acknowledged.
    pub compactions: u64,
    /// Nodes that stopped because their disk failed.
    pub disk_failures: u64,
    /// Machines that were damaged for good, or removed.
    pub gone: u64,
    /// Changes of the members.
    pub member_changes: u64,
    /// Keyspaces that were made, and wanted elsewhere.
    pub placement_changes: u64,
    /// Moves because of damage that were decided.
    pub repairs: u64,
    /// Replicas with another digest than the others, which these named.
    pub named: u64,
    /// Times that a replica fell asleep.
    pub sleeps: u64,
    /// Times that one woke.
    pub wakes: u64,
    /// Times that a client held the lock.
    pub locks_held: u64,
    /// The last revision.
    pub revision: i64,
    /// The most that a node held in memory and in its log at a time.
    pub usage: Usage,
    /// The longest time without an acknowledged write while all was well again, in microseconds.
    pub recovery_us: u64,
    /// Keyspaces of which it stayed undecided whether `linearizable` holds, as the search took too long.
    pub undecided: u64,
}

/// A run that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// What did not hold.
    pub violation: Violation,
    /// The end of the trace. What it does not reach back to, [`World::around`] finds.
    pub tail: String,
    /// Where that begins, in microseconds.
    pub tail_since_us: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nseed {}: {}", self.tail, self.seed, self.violation)
    }
}

impl std::error::Error for Failure {}

/// The simulated world.
pub struct World {
    settings: Settings,
    rng: SmallRng,
    schedule: Schedule<Happening>,
    network: Network,
    trace: Trace,
    machines: BTreeMap<u64, Machine>,
    clients: Vec<Client>,
    leases: Vec<LeaseClient>,
    watchers: Vec<Watching>,
    history: Vec<Operation>,
    /// For each operation of the history: whether its client still waits for it.
    open: Vec<bool>,
    observer: Observer,
    administrator: Administrator,
    placer: Placer,
    repairs: Repairs,
    root: Root,
    scrubs: Scrubs,
    logs: Logs,
    promises: Promises,
    /// What was compacted away and what came before, by group: its history up to a revision.
    past: BTreeMap<GroupId, (i64, Vec<Event>)>,
    /// What has not been told yet.
    stories: Vec<Story>,
    /// Counts cuts and healings of the network, so that an old partition's end does not heal what came after.
    partition: u64,
    faults_on: bool,
    /// When everything was healed.
    healed_at: u64,
    /// Clients begin nothing new.
    quiet: bool,
    /// Nodes that half work or did a moment ago, and until when that may show.
    ailing: BTreeMap<u64, u64>,
    crashes: u64,
    disk_failures: u64,
    snapshots: u64,
    tickets: u64,
    /// See [`Report::usage`].
    usage: Usage,
    /// Times that a node's use was measured.
    measured: u64,
    /// See [`Report::undecided`].
    undecided: u64,
}

impl World {
    /// Runs one world from its beginning to its end.
    ///
    /// # Errors
    /// The first guarantee that did not hold, with the seed and the last events.
    pub fn run(settings: Settings) -> Result<Report, Box<Failure>> {
        World::run_with(settings, &mut |_| {})
    }

    /// Like [`World::run`], and tells the world's story while it runs. What is told follows from `settings` alone.
    ///
    /// A panic of what runs in the world counts as a violation of `assertion`, where panics unwind; see [`panicked`] for where they do not.
    ///
    /// # Errors
    /// As [`World::run`].
    pub fn run_with(settings: Settings, tell: &mut dyn FnMut(&Story)) -> Result<Report, Box<Failure>> {
        let mut world = World::new(settings);
        world.begin();
        let played = catch_unwind(AssertUnwindSafe(|| world.play(tell)));
        let outcome = played.unwrap_or_else(|panic| Err(world.trace.asserted(trace::message(&*panic))));
        let result = match outcome {
            Ok(recovery_us) => Ok(world.report(recovery_us)),
            Err(violation) => {
                world.tell(StoryEvent::Violated { guarantee: violation.guarantee });
                Err(world.trace.failure(violation))
            }
        };
        world.stories.iter().for_each(tell);
        result
    }

    fn new(settings: Settings) -> World {
        let mut rng = SmallRng::seed_from_u64(settings.seed);
        let machines = (1..=settings.nodes).map(|node| (node, Machine::new(&settings, &mut rng))).collect();
        let clients = Client::all(&settings, &mut rng);
        let leases = LeaseClient::all(&settings);
        let watchers = (0..settings.watchers)
            .map(|number| Watching::new(number, settings.keyspaces, &mut rng))
            .collect();
        World {
            network: Network::new(settings.delays),
            rng,
            schedule: Schedule::new(),
            trace: Trace::new(&settings),
            machines,
            clients,
            leases,
            watchers,
            history: Vec::new(),
            open: Vec::new(),
            observer: Observer::default(),
            administrator: Administrator::default(),
            placer: Placer::default(),
            repairs: Repairs::default(),
            root: Root::default(),
            scrubs: Scrubs::default(),
            logs: Logs::default(),
            promises: Promises::default(),
            past: BTreeMap::new(),
            stories: Vec::new(),
            partition: 0,
            faults_on: true,
            healed_at: u64::MAX,
            quiet: false,
            ailing: BTreeMap::new(),
            crashes: 0,
            disk_failures: 0,
            snapshots: 0,
            tickets: 0,
            usage: Usage::default(),
            measured: 0,
            undecided: 0,
            settings,
        }
    }

    fn begin(&mut self) {
        for node in 1..=self.settings.nodes {
            self.schedule.at(node * 10_000, Happening::Boot(node));
        }
        for client in 0..self.clients.len() {
            self.schedule.at(500_000, Happening::ClientNext(client));
        }
        for client in 0..self.leases.len() {
            self.schedule.at(500_000, Happening::LeaseNext(client));
        }
        for watcher in 0..self.watchers.len() {
            self.schedule.at(500_000, Happening::Watch(watcher));
        }
        self.schedule.at(2_000_000, Happening::Fault);
        self.schedule.at(2_000_000, Happening::Measure);
        self.schedule.at(1_000_000, Happening::Scrub);
        self.schedule.at(5_000_000, Happening::LookAtShares);
        if self.settings.compaction_us > 0 {
            self.schedule.at(1_000_000, Happening::Compact);
        }
        if self.settings.member_changes_us > 0 {
            self.schedule.at(2_000_000, Happening::Administer);
        }
        if self.settings.placement_changes_us > 0 {
            self.schedule.at(500_000, Happening::Place);
        }
        if self.settings.plans {
            self.schedule.at(2_000_000, Happening::Repair);
        }
        for at in self.settings.blackouts_us.clone() {
            for node in 1..=self.settings.nodes {
                self.schedule.at(at, Happening::PowerLoss(node));
            }
        }
    }

    /// Faults, then healing, then silence, then the checks. Returns how long the recovery took.
    fn play(&mut self, tell: &mut dyn FnMut(&Story)) -> Result<u64, Violation> {
        self.run_until(self.settings.faults_us, tell)?;
        self.heal_everything();
        let recovery_us = self.recover(tell)?;
        self.quiet = true;
        self.converge(tell)?;
        self.write_everywhere(tell)?;
        self.converge(tell)?;
        self.bear_the_sick(tell)?;
        self.tidy_up(tell)?;
        self.lose_a_node_in_silence(tell)?;
        self.tell(StoryEvent::Equal);
        self.check_history()?;
        Ok(recovery_us)
    }

    fn run_until(&mut self, until: u64, tell: &mut dyn FnMut(&Story)) -> Result<(), Violation> {
        while let Some(happening) = self.schedule.next(until) {
            self.happen(happening);
            self.stories.drain(..).for_each(|story| tell(&story));
            if let Some(violation) = self.trace.take_violation() {
                return Err(violation);
            }
            if self.trace.is_complete() {
                return Err(Violation::new("assertion", "nobody wants to know the rest"));
            }
        }
        Ok(())
    }

    /// Notes something in the trace, and for those who read the story.
    fn tell(&mut self, event: StoryEvent) {
        let now = self.schedule.now();
        self.trace.note(now, format_args!("{event}"));
        self.stories.push(Story { at_us: now, event });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Turn(life, shard) => self.turn(life, shard),
            Happening::Timer(life, shard, deadline) => self.on_timer(life, shard, deadline),
            Happening::Message { direction, number, to, bytes } => {
                self.on_message(direction, number, to, bytes)
            }
            Happening::LogSynced(life) => self.on_log_synced(life),
            Happening::LogIdle { life, batches } => self.seal_idle_log(life, batches),
            Happening::ShutDown { life, until } => self.shut_down(life, until),
            Happening::EngineDone(life) => self.on_engine_done(life),
            Happening::Connect(direction, life) => self.connect(direction, life),
            Happening::FoundDead(direction, number) => self.on_found_dead(direction, number),
            Happening::Snapshot(chunk) => self.on_snapshot_chunk(*chunk),
            Happening::SnapshotEnded(transfer, position) => self.on_snapshot_ended(transfer, position),
            Happening::ClientNext(client) => self.client_next(client),
            Happening::Request { operation, life } => self.on_request(operation, life),
            Happening::ServeRead { operation, life } => self.serve_read(operation, life),
            Happening::Answer { operation, outcome } => self.on_answer(operation, outcome),
            Happening::GiveUp { operation, life, token } => self.give_up(operation, life, token),
            Happening::LeaseNext(client) => self.lease_next(client),
            Happening::LeaseGiveUp { client, request, life, token } => {
                self.lease_give_up(client, request, life, token);
            }
            Happening::Watch(watcher) => self.watch(watcher),
            Happening::Compact => self.compact(),
            Happening::Scrub => self.scrub(),
            Happening::Administer => self.administer(),
            Happening::Place => self.place(),
            Happening::Repair => self.repair(),
            Happening::Fault => self.fault(),
            Happening::LookAtShares => self.tell_shares(),
            Happening::Measure => self.measure(),
            Happening::PowerLoss(node) => self.lose_power(node),
            Happening::Boot(node) => self.boot(node),
            Happening::Heal(partition) => self.end_partition(partition),
        }
    }

    /// Waits until every client has been served by something it asked a quorum after the healing.
    fn recover(&mut self, tell: &mut dyn FnMut(&Story)) -> Result<u64, Violation> {
        let healed_at = self.healed_at;
        let first = self.history.len();
        let mut until = healed_at;
        while until < healed_at + self.settings.recovery_us_max {
            until += 50_000;
            self.run_until(until, tell)?;
            self.turn_off_the_forgotten();
            let served: BTreeSet<u64> = self.history[first..]
                .iter()
                .filter(|operation| operation.response().is_some() && !operation.action.is_stale_read())
                .map(|operation| operation.client)
                .filter(|client| *client < self.clients.len() as u64)
                .collect();
            if served.len() >= self.clients.len() {
                let recovered_at = self.schedule.now();
                self.tell(StoryEvent::Recovered { after_us: recovered_at - healed_at });
                self.run_until(recovered_at + self.settings.calm_us, tell)?;
                return Ok(recovered_at - healed_at);
            }
        }
        let found = format!(
            "{} µs after the healing not every client is served: {}; {}",
            self.settings.recovery_us_max,
            self.positions(),
            self.check_arrangement().err().unwrap_or_default()
        );
        self.minded(Err(Violation::new("liveness", found)))?;
        Ok(self.settings.recovery_us_max)
    }

    /// Waits until all replicas have applied the same.
    fn converge(&mut self, tell: &mut dyn FnMut(&Story)) -> Result<(), Violation> {
        let began_at = self.schedule.now();
        let mut until = began_at;
        while until < began_at + self.settings.recovery_us_max {
            until += 20_000;
            self.run_until(until, tell)?;
            self.turn_off_the_forgotten();
            let is_done = !self.open.contains(&true) && self.replicas_are_equal() && self.watchers_are_done();
            if is_done && self.check_arrangement().is_ok() {
                return Ok(());
            }
        }
        let mut found = format!("the replicas do not converge: {}", self.positions());
        if let Err(missing) = self.check_arrangement() {
            found = format!("{found}; {missing}");
        }
        self.minded(Err(Violation::new("liveness", found)))
    }

    /// Whether all replicas are where they are wanted, and well; says what is missing otherwise.
    fn check_arrangement(&self) -> Result<(), String> {
        self.check_reconfigured()?;
        self.check_placed()?;
        if self.settings.accusations_us > 0 { self.check_repaired() } else { Ok(()) }
    }

    fn report(&self, recovery_us: u64) -> Report {
        let count = |wanted: fn(&Outcome) -> bool| {
            self.history.iter().filter(|operation| wanted(&operation.outcome)).count()
        };
        Report {
            trace_hash: self.trace.hash(),
            operations: self.history.len(),
            acknowledged: count(|outcome| matches!(outcome, Outcome::Done(_))),
            unknown: count(|outcome| *outcome == Outcome::Unknown),
            simulated_us: self.schedule.now(),
            terms_led: self.observer.terms_led(),
            crashes: self.crashes,
            snapshots: self.snapshots,
            compactions: self.compactions(),
            disk_failures: self.disk_failures,
            gone: self.machines.values().filter(|machine| machine.is_gone).count() as u64,
            member_changes: self.administrator.changes,
            placement_changes: self.placer.changes,
            repairs: self.repairs.decided,
            named: self.repairs.named,
            sleeps: self.observer.sleeps,
            wakes: self.observer.wakes,
            locks_held: self.leases.iter().map(|client| client.claims().len() as u64).sum(),
            revision: self.observer.last_revision(DEFAULT_GROUP),
            usage: self.usage,
            recovery_us,
            undecided: self.undecided,
        }
    }

    /// A number for a snapshot transfer.
    fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// What a check found, if anybody wants to know.
    fn minded(&self, found: Result<(), Violation>) -> Result<(), Violation> {
        found.or_else(|violation| match self.settings.checks(violation.guarantee) {
            true => Err(violation),
            false => Ok(()),
        })
    }

    /// Ends the world if a check found something.
    fn mind(&mut self, found: Result<(), Violation>) {
        if let Err(violation) = found {
            self.violate(violation);
        }
    }

    fn violate(&mut self, violation: Violation) {
        if !self.settings.checks(violation.guarantee) {
            return;
        }
        self.trace.violated(self.schedule.now(), violation);
    }
}
