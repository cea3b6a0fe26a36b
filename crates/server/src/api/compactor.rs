//! Compaction by itself (`--auto-compaction-mode` and `-retention`): keeps history for a time, or a number of revisions.
//! Works as etcd's compactors do, so that what worked with etcd's history works with this one's.
//!
//! Every node runs one for each keyspace that it has a replica of, and notes the revisions that go by; only that of the group's leader
//! compacts. What is frozen keeps its history.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use hadron_consensus::{DEFAULT_GROUP, GroupId};
use hadron_keyspace::{Command, Error};
use hadron_proto::etcdserverpb::CompactionRequest;
use tokio::time::{Instant, MissedTickBehavior};

use super::backend::Backend;

/// Between two compactions that keep a number of revisions.
const REVISIONS_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// The longest time between two compactions that keep history for a time.
const PERIOD_MAX: Duration = Duration::from_secs(60 * 60);
/// Looks at the revision within that time.
const LOOKS: u32 = 10;
/// Keyspaces that are compacted at the same time.
const AT_ONCE: usize = 4;

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// What is younger than this; more than zero.
    Time(Duration),
    /// So many revisions before the newest; more than zero.
    Revisions(i64),
}

impl Retention {
    /// Time between two looks.
    fn interval(self) -> Duration {
        match self {
            Retention::Time(time) => (time.min(PERIOD_MAX) / LOOKS).max(Duration::from_millis(1)),
            Retention::Revisions(_) => REVISIONS_INTERVAL,
        }
    }
}

/// Decides when to compact, and up to where. Knows neither the clock nor the keyspace.
#[derive(Debug)]
struct Compactor {
    retention: Retention,
    /// The revisions of the last looks, oldest first.
    seen: VecDeque<i64>,
    compacted_at: Instant,
    compacted: i64,
}

impl Compactor {
    fn new(retention: Retention, now: Instant) -> Compactor {
        Compactor { retention, seen: VecDeque::new(), compacted_at: now, compacted: 0 }
    }

    /// A look: the revision up to which to compact now, if any.
    fn look(&mut self, now: Instant, revision: i64) -> Option<i64> {
        let up_to = match self.retention {
            Retention::Revisions(kept) => revision - kept,
            Retention::Time(time) => {
                self.seen.push_back(revision);
                let looks = time.as_nanos() / self.retention.interval().as_nanos();
                if (self.seen.len() as u128) <= looks {
                    return None;
                }
                let oldest = self.seen.pop_front()?;
                if now.duration_since(self.compacted_at) < time.min(PERIOD_MAX) {
                    return None;
                }
                oldest
            }
        };
        (up_to > 0 && up_to != self.compacted).then_some(up_to)
    }

    fn done(&mut self, now: Instant, revision: i64) {
        (self.compacted_at, self.compacted) = (now, revision);
    }
}

/// Compacts the keyspaces that this node leads for as long as it is polled.
pub(crate) async fn run<B: Backend>(backend: B, retention: Retention) {
    let mut compactors: BTreeMap<GroupId, Compactor> = BTreeMap::new();
    let mut ticks = tokio::time::interval(retention.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let present = present(&backend);
        compactors.retain(|group, _| present.contains_key(group));
        let now = Instant::now();
        for group in present.keys() {
            compactors.entry(*group).or_insert_with(|| Compactor::new(retention, now));
        }
        stream::iter(&mut compactors)
            .for_each_concurrent(AT_ONCE, |(group, compactor)| {
                turn(&backend, *group, present.get(group).copied().unwrap_or_default(), compactor)
            })
            .await;
    }
}

/// The groups whose keyspaces this node has replicas of, and whether they are frozen.
fn present<B: Backend>(backend: &B) -> BTreeMap<GroupId, bool> {
    let mut groups: BTreeMap<GroupId, bool> = backend.with_catalog(|catalog| {
        catalog.keyspaces().map(|record| (record.group_id(), record.is_frozen())).collect()
    });
    groups.insert(DEFAULT_GROUP, false);
    groups.retain(|group, _| backend.keyspace(*group).is_some());
    groups
}

/// One look at a keyspace.
async fn turn<B: Backend>(backend: &B, group: GroupId, is_frozen: bool, compactor: &mut Compactor) {
    let Some(keyspace) = backend.keyspace(group) else { return };
    let Some(revision) = compactor.look(Instant::now(), keyspace.revision()) else { return };
    let leader = backend.status(group).and_then(|status| status.leader);
    if leader != Some(backend.identity().member_id) || is_frozen {
        return;
    }
    if compact(backend, group, revision).await {
        compactor.done(Instant::now(), revision);
    }
}

/// Whether the history up to `revision` is gone now.
async fn compact<B: Backend>(backend: &B, group: GroupId, revision: i64) -> bool {
    let request = CompactionRequest { revision, physical: false };
    match backend.write(group, Command::Compact(request)).await.map(|written| written.response) {
        Ok(Ok(_)) => {
            tracing::info!(group = group.0, revision, "completed auto compaction");
            true
        }
        Ok(Err(Error::Compacted)) => true,
        Ok(Err(error)) => {
            tracing::warn!(group = group.0, revision, %error, "failed auto compaction");
            false
        }
        Err(error) => {
            tracing::warn!(group = group.0, revision, %error, "failed auto compaction");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// What it compacts, and after how many minutes, when each minute adds one revision.
    fn compactions(retention: Retention, minutes: u32) -> Vec<(u32, i64)> {
        let start = Instant::now();
        let mut compactor = Compactor::new(retention, start);
        let interval = compactor.retention.interval();
        let mut all = Vec::new();
        for look in 0.. {
            let after = interval * look;
            if after > MINUTE * minutes {
                return all;
            }
            let revision = 1 + (after.as_secs() / 60) as i64;
            if let Some(up_to) = compactor.look(start + after, revision) {
                compactor.done(start + after, up_to);
                all.push(((after.as_secs() / 60) as u32, up_to));
            }
        }
        all
    }

    #[test]
    fn history_is_kept_for_a_time_and_compacted_as_often() {
        let ten_minutes = Retention::Time(10 * MINUTE);
        assert_eq!(compactions(ten_minutes, 35), [(10, 1), (20, 11), (30, 21)]);
    }

    #[test]
    fn a_long_time_is_kept_and_compacted_every_hour() {
        let three_hours = Retention::Time(180 * MINUTE);
        assert_eq!(compactions(three_hours, 330), [(180, 1), (240, 61), (300, 121)]);
    }

    #[test]
    fn a_number_of_revisions_is_kept() {
        assert_eq!(compactions(Retention::Revisions(10), 21), [(10, 1), (15, 6), (20, 11)]);
    }

    #[tokio::test]
    async fn nothing_is_compacted_twice() {
        let now = Instant::now();
        let mut compactor = Compactor::new(Retention::Revisions(5), now);
        assert_eq!(compactor.look(now, 5), None);
        assert_eq!(compactor.look(now, 8), Some(3));
        compactor.done(now, 3);
        assert_eq!(compactor.look(now, 8), None);
        assert_eq!(compactor.look(now, 9), Some(4));
        assert_eq!(compactor.look(now, 9), Some(4), "it failed");
    }
}
