//! Golden outputs, taken from `etcdctl`.
#![allow(clippy::unwrap_used)]
