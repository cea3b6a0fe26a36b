//! Tests of the client port through a real socket, over a keyspace that applies at once.
#![allow(clippy::unwrap_used)]

mod apart;
mod auth;
mod balance;
mod contenders;
mod entrances;
mod forward;
mod gateway;
mod harness;
mod keyspaces;
mod pages;
mod pool;
mod range_stream;
mod services;
mod space;
mod transcript;
mod unsent;
