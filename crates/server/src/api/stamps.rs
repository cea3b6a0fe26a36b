//! Stamps: the time goes on in a keyspace's log while simple tokens are in use.
//!
//! Tokens live by the clock of their group, and a new leader's begins with the last stamp in its log: in a keyspace that is only read,
//! tokens that had ended would be good again. So the time is logged when a token is made, and each node that took tokens has it logged
//! once in a token's life, until it says in the log that all of them have ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hadron_consensus::GroupId;
use hadron_keyspace::Command;
use tonic::Status;

use super::backend::Backend;
use super::context::Context;

/// The simple tokens that this node took in a keyspace.
#[derive(Debug, Default)]
pub(super) struct TokensTaken {
    /// When it took the last one, on the group's clock.
    last_ms: AtomicU64,
    /// A task has the time logged.
    is_logging: AtomicBool,
}

/// A command that does nothing but say what time it is. Older versions know it.
fn stamp() -> Command {
    Command::LeaseKeepAlive(Vec::new())
}

impl<B: Backend> Context<B> {
    /// What the group's clock shows, for a token that is made now: no later leader's clock will begin before that.
    pub(super) async fn logged_clock_ms(&self) -> Result<u64, Status> {
        if self.tokens.ttl().is_some() {
            self.write(stamp()).await?;
        }
        let clock_ms = self.backend.group_clock_ms(self.group);
        self.note_token(clock_ms);
        Ok(clock_ms)
    }

    /// A token was taken, or made.
    pub(super) fn note_token(&self, clock_ms: u64) {
        let Some(ttl) = self.tokens.ttl() else { return };
        let taken = &self.tokens_taken;
        taken.last_ms.fetch_max(clock_ms, Ordering::SeqCst);
        if !taken.is_logging.load(Ordering::SeqCst) && !taken.is_logging.swap(true, Ordering::AcqRel) {
            tokio::spawn(log_time(self.backend.clone(), self.group, ttl, Arc::clone(taken)));
        }
    }
}

/// Has the time logged once in `ttl`, until all tokens that were taken have ended by what is logged.
async fn log_time<B: Backend>(backend: B, group: GroupId, ttl: Duration, taken: Arc<TokensTaken>) {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    loop {
        tokio::time::sleep(ttl).await;
        // Where that cannot be done now, it is tried again after the same time.
        let written = backend.write(group, stamp()).await;
        if let Err(error) = written {
            tracing::debug!(group = group.0, %error, "the time was not logged");
        }
        let logged_ms = backend.keyspace(group).map(|keyspace| keyspace.applied().stamp_ms);
        // In one order with what `note_token` does: one of the two sees what the other wrote.
        taken.is_logging.store(false, Ordering::SeqCst);
        // Without a replica here the tokens are of no more use.
        let Some(logged_ms) = logged_ms else { return };
        let all_ended = taken.last_ms.load(Ordering::SeqCst).saturating_add(ttl_ms) <= logged_ms;
        if all_ended || taken.is_logging.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}
