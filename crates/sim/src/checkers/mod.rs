//! What must never happen, one file per guarantee: each reads what was recorded and says what it found.
//!
//! A checker never asks the system under test for its opinion of itself, and each has tests that it catches a lie and
//! accepts an honest history. A write whose answer never came is *unknown*, never *failed*.
//!
//! The checkers of histories ([`durable_ack`], [`linearizable`], [`revision_order`], [`watch_order`],
//! [`lease_promise`], [`exclusion`], [`compaction`], [`tenant_isolation`]) are functions over a finished run. Those of
//! replicas ([`election_safety`], [`log_matching`], [`leader_completeness`], [`state_machine_safety`],
//! [`digest_agreement`], [`bounded_memory`]) observe while it runs, so that a run stops where it went wrong.

pub mod bounded_memory;
pub mod compaction;
pub mod digest_agreement;
pub mod durable_ack;
pub mod election_safety;
pub mod exclusion;
pub mod leader_completeness;
pub mod lease_promise;
pub mod linearizable;
pub mod log_matching;
mod model;
pub mod revision_order;
pub mod state_machine_safety;
pub mod tenant_isolation;
pub mod watch_order;
