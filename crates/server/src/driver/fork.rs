//! Two clusters where there was one: a node was made a cluster of its own by force, because its others were thought lost, and they were not.
//!
//! When they meet it, it says that it dropped them. Whoever was lost believes that and stops, as who was removed does. But whoever has gone on with a
//! majority has what was acknowledged since, and the other one lacks it: such a node must not stop, and its data must not be thrown away
//! on the other one's word. It goes on, and says which of the two is to be stopped.

use std::time::{Duration, Instant};

use hadron_consensus::ROOT_GROUP;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::error;

use super::fatal::Fatal;
use super::handle::Handle;
use crate::api::Backend as _;

/// How long it may take to find a majority: after an election, say.
const PATIENCE: Duration = Duration::from_secs(10);
/// That there are two clusters is said so often.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Who was lost starts anew, and who was not must be told what to keep.
const LOST: &str = "If this node was lost then, its data directory can be deleted: add it again as a new member, with an empty one. If its \
                    cluster had gone on without that node, it has what was acknowledged since, and that node lacks it: keep this \
                    directory, stop that node, and start this one again";
const FORK: &str = "and this node's cluster has a majority and went on: what was acknowledged here since is not there. There are two clusters \
                    now: stop that node, and rebuild it as a member of this one";

/// Where it is told that another node dropped this one.
#[derive(Clone, Debug)]
pub(super) struct Dropped(watch::Sender<String>);

impl Dropped {
    pub(super) fn tell(&self, reason: String) {
        self.0.send_replace(reason);
    }
}

/// The two ends.
pub(super) fn channel() -> (Dropped, watch::Receiver<String>) {
    let (sender, told) = watch::channel(String::new());
    (Dropped(sender), told)
}

/// Decides what becomes of this node when it is told that it was dropped. It is `ready` once it had a leader.
pub(super) async fn heed(
    handle: Handle,
    ready: watch::Receiver<bool>,
    mut told: watch::Receiver<String>,
    fatal: Fatal,
) {
    let mut lives = false;
    let mut said: Option<Instant> = None;
    while told.changed().await.is_ok() {
        let reason = told.borrow_and_update().clone();
        // A node that starts hears of it before it hears of a leader: two that come back together must not become a cluster again.
        lives = lives || *ready.borrow() && has_majority(&handle).await;
        if !lives {
            return fatal.report(format!("{reason}. {LOST}"));
        }
        if said.is_none_or(|said| said.elapsed() >= TELL_AGAIN) {
            error!("{reason}, {FORK}");
            said = Some(Instant::now());
        }
    }
}

async fn has_majority(handle: &Handle) -> bool {
    timeout(PATIENCE, handle.read_barrier(ROOT_GROUP)).await.is_ok_and(|read| read.is_ok())
}
