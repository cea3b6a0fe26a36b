//! What must never happen, one file per guarantee: each reads what was recorded and says what it found.
//!
//! A checker never asks the system under test for its opinion of itself, and each has tests that it catches a lie and
//! accepts an honest history. A write whose answer never came is *unknown*, never *failed*.
//!
//! The checkers of histories ([`durable_ack`], [`linearizable`], [`revision_order`], [`watch_order`],
//! [`lease_promise`], [`exclusion`], [`compaction`], [`tenant_isolation`]) are functions over a finished run. Those of
//! replicas ([`election_safety`], [`log_matching`], [`leader_completeness`], [`state_machine_safety`],
//! [`digest_agreement`], [`bounded_memory`]) observe while it runs, so that a run stops where it went wrong.

/// Everything that may be found not to hold. Those without a file here are looked at by the world itself, where it stands
/// between the nodes and their surroundings.
pub const GUARANTEES: [&str; 24] = [
    "election_safety",
    "log_matching",
    "leader_completeness",
    "state_machine_safety",
    "durable_ack",
    "linearizable",
    "revision_order",
    "compaction",
    "watch_order",
    "lease_promise",
    "exclusion",
    "tenant_isolation",
    "digest_agreement",
    "bounded_memory",
    // All clients are served again, and replicas equal, soon after all is well.
    "liveness",
    // All are served while one node half works.
    "availability",
    // Engines hold what can be reached, undamaged, and nothing else.
    "stored_state",
    // A node that stopped starts again.
    "recovery",
    // No node gives up while its disk is well.
    "no_fatal",
    // What is damaged is not taken for sound, and says what to do.
    "damage_named",
    // Who lost its data, or is a member, is not taken for somebody else.
    "identity",
    // What a node sends another can read.
    "peer_encoding",
    // Nobody waits by spinning.
    "quiet_timers",
    // What the code itself takes for impossible.
    "assertion",
];

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
