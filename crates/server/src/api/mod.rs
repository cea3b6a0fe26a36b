//! The client port: etcd's gRPC services, one file each, and the plain pages.
//!
//! - [`backend`]: the seam to the node; what the driver implements.
//! - [`server`]: sockets and threads; `socket`: a client's. `front`: from a request to the service or page that answers it;
//!   `calls`: which there are, and how they are counted.
//! - `choice`: which keyspace a request is about; `keyspaces`: who serves it, and where; `services`: its services; `rate`: how often.
//! - `forward`: calls for keyspaces without a replica here go to other nodes; `pace`: how fast those are; `passed_on`: what they are told.
//! - `beside`: what the connections of a thread should not wait for; `apart`: what nothing should.
//! - `admission`: room for what waits, so that each keyspace finds some.
//! - `access`: which web pages of others may use the port. `caller`: who calls, and what they may do; `tokens`, `stamps`, `passwords`.
//! - `gateway`: the same calls as JSON over HTTP.
//! - `compactor`: compaction by itself.
//! - `membership`: how the pool's members are changed; `catalog`: how its keyspaces are.
//! - `kv`, `watch`, `lease`, `cluster`, `maintenance`, `auth`, `lock`, `election`, `health`, `pool`, `reflection`: the services; `http`: the
//!   pages. `range_stream`: ranges in parts. `snapshot`: backups. `session`: the queues of contenders behind locks and elections.
//!   `unsent`: what a client that takes nothing may cost.
//! - [`error`]: etcd's codes and texts, in one table. `context`: what all services share. `leader`: calls that
//!   demand a leader.
//!
//! The first verb of a Put, *receive*, and its last, *reply*, are here: a request is well-formed and within limits when
//! it leaves for the node, and an answer is complete (headers, etcd's errors) when it leaves for the client. Nothing
//! here decides what a command does; nothing here retries a write, but for one that was refused because users or roles changed.

mod access;
pub(crate) mod admission;
mod apart;
mod asking;
mod auth;
pub(crate) mod authority;
pub mod backend;
mod balance;
mod beside;
mod caller;
mod calls;
mod catalog;
mod choice;
mod cluster;
pub(crate) mod compactor;
mod context;
mod election;
pub mod error;
mod forward;
mod front;
mod gateway;
mod health;
pub mod hitters;
mod http;
mod keyspaces;
mod kv;
mod leader;
mod lease;
mod lock;
mod maintenance;
mod membership;
mod pace;
mod passed_on;
mod passwords;
mod placing;
mod pool;
mod range_stream;
mod rate;
mod reflection;
pub mod server;
mod services;
mod session;
mod simulate;
mod slow;
mod snapshot;
pub(crate) mod socket;
mod span;
mod stamps;
#[cfg(test)]
mod tests;
mod tokens;
mod unsent;
mod watch;

pub use access::Access;
pub use backend::{Backend, GroupStatus, Identity, Unavailable, Written};
pub use choice::{CertificateRule, KeyspaceOptions};
pub use compactor::Retention;
pub use context::Limits;
pub use membership::MembershipOptions;
pub use server::{Connections, Listener, PassedOn, Server, ServerOptions, Traffic};
pub use tokens::{JwtOptions, TokenError, TokenOptions, Tokens};
