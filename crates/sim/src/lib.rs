//! A world from one seed: whole nodes on a simulated clock, network and disk, and the checkers of what they promise.
//!
//! [`world`] runs the shipped node and records what its clients see; [`history`] is the language of such records, [`etcd`]
//! translates to and from it, and [`checkers`] judge it. The tests over real processes use the latter three as well.

pub mod balance;
pub mod checkers;
pub mod etcd;
pub mod history;
pub mod world;
