//! Load detection and allocation as pure functions: totals and a view of the pool in, moves with reasons out. No IO, no clock.
//!
//! ```text
//!   totals ──▶ Meter ──▶ loads ──┐
//!   configurations, zones, disks ├─▶ View ──▶ plan ──▶ Move ──▶ next_step, next_step, .. ──▶ done
//!   moves in progress ───────────┘     └────▶ assess ──▶ metrics, dashboard
//! ```
//! * [`detect`]: rates smoothed over 10 seconds and 1 minute, of groups and of nodes.
//! * [`load`]: W(x), a node's load in its scarcest resource relative to its capacity, and B(x) = W(x) / ΣW(i), its share.
//! * [`view`]: what a planner sees. [`plan()`]: what it decides. [`next_step`]: how that is carried out, resumed by whoever comes next.
//! * [`assess()`]: how the pool stands. [`simulate()`]: what would be decided, and where that would lead.
//! * [`waiting`]: why a node that is to be emptied is not. [`place`], [`release`]: where a new group goes, and which replicas can be missed.
//!
//! The root group's leader plans for the whole pool; the simulation (`hadron simulate --scenario balance`) calls the same functions.
//! Left out: who measures, who sends, and everything that needs a disk or a network.
//!
//! # How it is tested
//! `tests/scripts/` (stories to be read like a log), `tests/properties.rs` (the rules, and that plans come to an end, on random
//! pools), `crates/sim/src/balance` (24 hours of 1,000 nodes).

pub mod assess;
pub mod detect;
pub mod load;
pub mod moves;
pub mod plan;
pub mod policy;
pub mod simulate;
pub mod step;
pub mod view;

pub use assess::{Assessment, NodeAssessment, assess};
pub use detect::{LatencyMeter, Meter, Totals};
pub use load::{Capacity, GroupLoad, Load, Resource, shares};
pub use moves::{Bytes, Change, Effect, Move, MoveKind, Reason, with_names};
pub use plan::{Hindrance, Wanted, place, plan, release, waiting};
pub use policy::{Band, Policy};
pub use simulate::{Simulation, simulate};
pub use step::{Obstacle, Step, next_step};
pub use view::{Disk, GroupView, NodeState, NodeView, ReplicaRole, ReplicaView, View};
