//! What replicas of one group say to each other.

/// To be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {}
