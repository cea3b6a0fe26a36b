//! Sockets, threads and the command line around a [`hadron_node`]: everything that touches the outside world.

pub mod api;
mod backup;
pub mod cli;
mod client;
pub mod config;
mod detached;
mod discovery;
mod dns;
pub mod driver;
mod go_text;
pub mod metrics;
mod notify;
#[cfg(test)]
#[path = "../../pinned.rs"]
mod pinned;
mod process;
mod spans;
pub mod tls;
pub mod transport;
