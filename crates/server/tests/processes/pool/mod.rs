//! A pool of real processes with many keyspaces: load that is spread, nodes that come, go and die, tenants that move while they are
//! used, and thousands that sleep.
//!
//! `docs/testing.md` has the environment variables.

mod idle;
mod moved;
mod nodes;
mod noisy;
mod spread;
mod tenants;
