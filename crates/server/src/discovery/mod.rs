//! How the nodes of a cluster are found by those who are told of some other place where they are written down.
//!
//! - [`registry`]: another etcd, in which the nodes of a new cluster register (`--discovery-token`).
//! - [`srv`]: DNS, whose SRV records name nodes to each other and to clients (`--discovery-srv`).

pub(crate) mod registry;
pub(crate) mod srv;
