//! Real processes: the built binary is started, used, hurt and killed, with clients that are as real. One file or room for each thing
//! that is tested, whose name tells `cargo test` which to run: `cargo test -p hadron-server --test processes pool::`.

#![allow(clippy::unwrap_used, unreachable_pub)]

mod abuse;
mod auth;
mod backup;
mod bootstrap;
mod cluster;
mod ctl;
mod differential;
mod discovery;
mod failed_fsync;
mod flags;
mod force;
mod full_disk;
mod garbage;
mod gateway;
mod keyspaces;
mod large;
mod membership;
mod metrics;
mod node_remove;
mod pool;
mod proxy;
mod refusals;
mod restore;
mod rot;
mod scrub;
mod simulate;
mod space;
mod srv;
mod support;
mod tls;
mod tools;
mod torture;
mod traces;
