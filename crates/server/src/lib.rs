//! Sockets, threads and the command line around a [`hadron_node`]: everything that touches the outside world.

pub mod api;
mod backup;
pub mod cli;
pub mod config;
pub mod driver;
mod go_text;
pub mod metrics;
mod notify;
mod process;
pub mod tls;
pub mod transport;
