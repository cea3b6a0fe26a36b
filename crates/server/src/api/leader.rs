//! etcd's demand for a leader: with the metadata `hasleader: true` a client asks to be refused, and its streams to be
//! ended, while there is no leader, instead of waiting for a node that the others may have left behind. Streams also end when their
//! keyspace is deleted, or moved to other nodes, or its replica here is damaged, which nobody has to demand.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use hadron_keyspace::Keyspace;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::backend::Backend;
use super::context::Context;
use super::error::EtcdError;

const REQUIRE_LEADER: &str = "hasleader";

/// How often a stream looks that demands a leader, or is of a keyspace that may be deleted. It looks more often if elections begin sooner.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How many election timeouts long a stream that demands a leader goes on without one, as in etcd.
const TIMEOUTS_MAX: u32 = 3;

/// How often a stream of `default` that demands nothing looks whether its replica is damaged. There may be very many.
const DAMAGE_INTERVAL: Duration = Duration::from_secs(5);

/// How often a stream that demands a leader looks for one, and how often in a row it may find none.
fn pace(election_timeout: Duration) -> (Duration, u32) {
    let interval = election_timeout.min(CHECK_INTERVAL).max(Duration::from_millis(1));
    let patience = election_timeout * TIMEOUTS_MAX;
    let checks = patience.as_millis().div_ceil(interval.as_millis());
    (interval, checks.max(1).try_into().unwrap_or(u32::MAX))
}

/// Whether a call carries the demand.
pub(super) fn is_demanded(metadata: &MetadataMap) -> bool {
    metadata.get(REQUIRE_LEADER).is_some_and(|value| value == "true")
}

/// A stream that ends with an error when its client demanded a leader and there has been none for a while, and when its
/// keyspace, or the replica that it tells of, is gone from here.
pub(super) struct WhileLed<B, S> {
    context: Arc<Context<B>>,
    /// What the stream tells of, if it holds on to that.
    keyspace: Option<Arc<Keyspace>>,
    stream: S,
    checks: Interval,
    demands_leader: bool,
    checks_failed: u32,
    /// How often in a row it may find no leader.
    checks_failed_max: u32,
    ended: bool,
}

impl<B: Backend, S> WhileLed<B, S> {
    /// Wraps the stream that answers a call with this metadata.
    pub(super) fn new(context: Arc<Context<B>>, metadata: &MetadataMap, stream: S) -> WhileLed<B, S> {
        let demands_leader = is_demanded(metadata);
        let is_pressing = !context.is_default();
        let (interval, checks_failed_max) = match demands_leader {
            true => pace(context.election_timeout),
            false if is_pressing => (CHECK_INTERVAL, u32::MAX),
            false => (DAMAGE_INTERVAL, u32::MAX),
        };
        let mut checks = tokio::time::interval_at(Instant::now() + interval, interval);
        // While nobody asks for more, nobody looks: what was not seen says nothing of the leader.
        checks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        WhileLed {
            context,
            keyspace: None,
            stream,
            checks,
            demands_leader,
            checks_failed: 0,
            checks_failed_max,
            ended: false,
        }
    }

    /// The stream ends as well when another replica is in the place of `keyspace`.
    pub(super) fn on(self, keyspace: Arc<Keyspace>) -> WhileLed<B, S> {
        WhileLed { keyspace: Some(keyspace), ..self }
    }

    /// What was lost; otherwise the task is woken for the next look.
    fn poll_lost(&mut self, task: &mut TaskContext<'_>) -> Result<(), Status> {
        while self.checks.poll_tick(task).is_ready() {
            match &self.keyspace {
                Some(keyspace) => self.context.check_still(keyspace)?,
                None => self.context.check_here()?,
            }
            let has_leader = !self.demands_leader || self.context.status().leader.is_some();
            self.checks_failed = if has_leader { 0 } else { self.checks_failed + 1 };
        }
        if self.checks_failed < self.checks_failed_max { Ok(()) } else { Err(EtcdError::NoLeader.into()) }
    }
}

impl<B, T, S> Stream for WhileLed<B, S>
where
    B: Backend,
    S: Stream<Item = Result<T, Status>> + Unpin,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Err(lost) = self.poll_lost(task) {
            self.ended = true;
            return Poll::Ready(Some(Err(lost)));
        }
        self.stream.poll_next_unpin(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was three seconds, whatever `--election-timeout` said.
    #[test]
    fn a_stream_goes_on_for_three_election_timeouts_without_a_leader() {
        for (timeout, interval, checks) in
            [(1_000, 1_000, 3), (5_000, 1_000, 15), (50_000, 1_000, 150), (300, 300, 3), (1_500, 1_000, 5)]
        {
            let expected = (Duration::from_millis(interval), checks);
            assert_eq!(pace(Duration::from_millis(timeout)), expected, "{timeout} ms");
        }
    }
}
