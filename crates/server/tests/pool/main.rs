//! A pool of real processes with many keyspaces: load that is spread, nodes that come, go and die, tenants that move while they are
//! used, and thousands that sleep.
//!
//! `docs/testing.md` has the environment variables.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/ctl.rs"]
mod ctl;
mod idle;
#[path = "../torture/leases.rs"]
#[allow(dead_code)]
mod leases;
mod moved;
mod nodes;
mod noisy;
mod spread;
#[path = "../support/mod.rs"]
mod support;
mod tenants;
#[path = "../torture/watchers.rs"]
mod watchers;
