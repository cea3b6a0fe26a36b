//! Load: measured on every node, balanced by the one that leads the root group.
//!
//! ```text
//!   every node:         uses of replicas, processor, disk ─▶ meters ─▶ report ─▶ the others (hadron_node::Report)
//!   root group's leader: reports ─▶ Balancer::view ─▶ hadron_balance::plan ─▶ txns on the catalog, words to leaders
//! ```
//! The planner runs beside the node's loop, on the runtime of the peers, and holds nothing that another could not take over:
//! what is under way stands in the catalog.

mod measure;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hadron_balance::{Move, plan, with_names};
use hadron_consensus::{NodeId, ROOT_GROUP};
use hadron_keyspace::{Command, Response};
use hadron_node::{Decision, Event, Report, decide, forget_moves};
use hadron_proto::etcdserverpb::CompactionRequest;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use self::measure::Measure;
use super::handle::Handle;
use super::inputs::Inputs;
use crate::api::Backend as _;
use crate::api::hitters::Heaviest;
use crate::metrics::Metrics;

/// How often a node measures and reports.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);
/// Replicas that are measured and reported in a second: with more of them it is done less often, so that it costs no more.
const REPLICAS_PER_SECOND: usize = 1_000;
/// Measurements between two plans.
const PLAN_EVERY: u64 = 5;
/// Plans between two looks at what the root group may forget.
const TIDY_EVERY: u64 = 120;
/// Prefixes and clients that a node tells of.
const HITTERS_REPORTED: usize = 16;
/// Moves that are remembered, and commands at a time that forget older ones.
const MOVES_KEPT: usize = 1_000;
const FORGETS_MAX: usize = 100;
/// Revisions of the root group that are kept.
const REVISIONS_KEPT: i64 = 10_000;

/// How this node's pool is balanced. Cheap to clone.
#[derive(Clone)]
pub(super) struct Balance(Arc<Inner>);

struct Inner {
    handle: Handle,
    inputs: Inputs,
    zone: String,
}

impl Balance {
    pub(super) fn new(handle: Handle, inputs: Inputs, zone: String) -> Balance {
        Balance(Arc::new(Inner { handle, inputs, zone }))
    }

    /// Measures and balances, for ever.
    pub(super) async fn run(self, metrics: Arc<Metrics>, disk: std::path::PathBuf) {
        let mut ticks = interval(MEASURE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measure = Measure::new(self.0.zone.clone(), disk);
        let mut due = 0;
        for tick in 0u64.. {
            ticks.tick().await;
            // They fade by the second.
            let heaviest = self.0.handle.hitters().take(HITTERS_REPORTED);
            if tick >= due {
                let (balance, metrics) = (self.clone(), metrics.clone());
                // It asks every keyspace, and the system about the disk, and others use this thread.
                let measuring = spawn_blocking(move || {
                    let carrying = balance.report(&mut measure, heaviest, &metrics);
                    (measure, carrying)
                });
                let Ok((back, carrying)) = measuring.await else { return };
                measure = back;
                due = tick + 1 + (carrying / REPLICAS_PER_SECOND) as u64;
            }
            if tick % PLAN_EVERY == PLAN_EVERY - 1 {
                self.plan_if_leading(&metrics).await;
            }
            if tick % (PLAN_EVERY * TIDY_EVERY) == 0 {
                self.tidy().await;
            }
        }
    }

    /// Measures and tells. Returns how many replicas carry something.
    fn report(&self, measure: &mut Measure, heaviest: Heaviest, metrics: &Metrics) -> usize {
        let handle = &self.0.handle;
        let me = handle.identity().member_id;
        let Heaviest { prefixes, clients, work } = heaviest;
        let measured = measure.take(handle.now(), handle.board(), me, metrics);
        let report = Report { prefixes, clients, work, ..measured };
        let carrying = report.replicas.len();
        self.0.inputs.event(Event::Report(report));
        carrying
    }

    fn leads(&self) -> bool {
        let handle = &self.0.handle;
        let leader = handle.board().group(ROOT_GROUP).and_then(|root| root.leader());
        leader == Some(handle.identity().member_id)
    }

    async fn plan_if_leading(&self, metrics: &Metrics) {
        if !self.leads() {
            return;
        }
        let handle = self.0.handle.clone();
        // Thousands of groups take a while, and others use this thread.
        let planning = spawn_blocking(move || plan(&handle.view().without_unheard(), &handle.policy()));
        let Ok(moves) = planning.await else { return };
        let begin = |planned: Move| async move {
            let is_begun = self.begin(&planned).await?;
            if is_begun {
                self.tell(&planned, metrics);
            }
            Some(())
        };
        one_by_one(moves, || self.leads(), begin).await;
    }

    /// Whether a move was begun; `None` if that is not known.
    async fn begin(&self, planned: &Move) -> Option<bool> {
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        let decided = self.0.handle.board().with_catalog(|catalog| decide(catalog, planned, at_ms));
        match decided {
            Some(Decision::Place(command)) => self.write(command).await,
            Some(Decision::HandOver { group, from, to, record }) => {
                let is_recorded = self.write(record).await?;
                if is_recorded {
                    self.0.inputs.event(Event::HandOverTo { group, from, to });
                }
                Some(is_recorded)
            }
            None => Some(false),
        }
    }

    fn tell(&self, planned: &Move, metrics: &Metrics) {
        let members = self.0.handle.board().members();
        let name =
            |id: NodeId| members.iter().find(|member| member.node() == id).map(|member| member.name.clone());
        let kind = with_names(&planned.kind.to_string(), name);
        let reason = with_names(&planned.reason.to_string(), name);
        info!(group = planned.group.0, kind, reason, effect = %planned.effect, "move");
        metrics.moves.with(&[planned.reason.name()]).inc();
    }

    /// Whether the command was carried out; `None` if that is not known. The next plan sees what there is.
    async fn write(&self, command: Command) -> Option<bool> {
        match self.0.handle.write(ROOT_GROUP, command).await {
            Ok(written) => {
                let is_done = matches!(written.response, Ok(Response::Txn(response)) if response.succeeded);
                Some(is_done)
            }
            Err(error) => {
                warn!(%error, "a move could not be decided");
                None
            }
        }
    }

    /// The root group's leader forgets old moves, nodes that are no members any more, and old revisions of the root group.
    async fn tidy(&self) {
        let Some(root) = self.0.handle.board().group(ROOT_GROUP).filter(|_| self.leads()) else { return };
        let surplus = || forget_moves(&root.keyspace, MOVES_KEPT);
        while_any(surplus, |command| async { self.write(command).await == Some(true) }).await;
        let pool = self.0.handle.board().pool();
        let is_member = |node: hadron_consensus::NodeId| pool.roster.member(node.0).is_some();
        if let Some(command) =
            self.0.handle.board().with_catalog(|catalog| catalog.forget_strangers(is_member))
        {
            self.write(command).await;
        }
        let revision = root.keyspace.revision() - REVISIONS_KEPT;
        if revision > root.keyspace.compact_revision() + REVISIONS_KEPT / 10 {
            let compact = CompactionRequest { revision, ..Default::default() };
            if let Err(error) = self.0.handle.write(ROOT_GROUP, Command::Compact(compact)).await {
                warn!(%error, "the root group could not be compacted");
            }
        }
    }
}

/// Begins what was planned, as long as this node leads: each write takes its time, and others may lead by then. Nor is anything begun after
/// what is not known to have been.
async fn one_by_one<T, F: Future<Output = Option<()>>>(
    planned: Vec<T>,
    leads: impl Fn() -> bool,
    begin: impl Fn(T) -> F,
) {
    for next in planned {
        if !leads() || begin(next).await.is_none() {
            return;
        }
    }
}

/// Writes what there is to be written until there is no more, or a write fails; not for ever, if others add to it.
async fn while_any<T, F: Future<Output = bool>>(next: impl Fn() -> Option<T>, write: impl Fn(T) -> F) {
    for _ in 0..FORGETS_MAX {
        let Some(command) = next() else { return };
        if !write(command).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::{Cell, RefCell};

    use futures::FutureExt as _;

    use super::{FORGETS_MAX, one_by_one, while_any};

    /// One command was written each time, which forgets a hundred records, however many more had been made.
    #[test]
    fn all_that_is_too_much_is_forgotten_at_once() {
        let forgotten = |surplus: usize, failing: usize| {
            let written = Cell::new(0);
            let next = || (written.get() < surplus).then_some(());
            let write = |()| {
                written.set(written.get() + 1);
                std::future::ready(written.get() != failing)
            };
            while_any(next, write).now_or_never().unwrap();
            written.get()
        };
        assert_eq!(forgotten(0, 0), 0);
        assert_eq!(forgotten(30, 0), 30);
        assert_eq!(forgotten(30, 3), 3);
        assert_eq!(forgotten(FORGETS_MAX + 1, 0), FORGETS_MAX, "the rest comes next time");
    }

    /// A planner that others had taken the leadership from went on to write each of its moves until that timed out.
    #[test]
    fn a_planner_ends_when_others_lead_or_a_write_fails() {
        let begun = |leads_for: usize, failing: u32| {
            let begun = RefCell::new(Vec::new());
            let begin = |planned: u32| {
                begun.borrow_mut().push(planned);
                std::future::ready((planned != failing).then_some(()))
            };
            let leads = || begun.borrow().len() < leads_for;
            one_by_one(vec![1, 2, 3, 4], leads, begin).now_or_never().unwrap();
            begun.take()
        };
        assert_eq!(begun(9, 9), [1, 2, 3, 4]);
        assert_eq!(begun(2, 9), [1, 2]);
        assert_eq!(begun(9, 3), [1, 2, 3]);
        assert_eq!(begun(0, 9), [0; 0]);
    }
}
