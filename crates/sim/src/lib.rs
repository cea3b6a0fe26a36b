//! A world from one seed: whole nodes on a simulated clock, network and disk, and the checkers of what they promise.

pub mod checkers;
pub mod history;
