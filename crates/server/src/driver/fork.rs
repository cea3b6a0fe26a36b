//! Two clusters where there was one: a node was made a cluster of its own by force, because its others were thought lost, and they were not.
//!
//! When they meet it, it says that it dropped them. Whoever was lost believes that and stops, as who was removed does. But whoever has gone on with a
//! majority may have what was acknowledged since, and the other one lacks it: such a node must not stop, and its data must not be thrown away
//! on the other one's word. It goes on, also after a restart, and says that there are two.
//!
//! Nodes that were lost and come back together make a majority as well, within seconds, unless they hear of it before. So only one that had run for
//! much longer went on. Which of the two clusters is the right one people must say: either may have what the other lacks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hadron_consensus::{NodeId, ROOT_GROUP};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::error;

use super::fatal::Fatal;
use super::handle::Handle;
use super::pool_file::PoolFile;
use crate::api::{Backend as _, Unavailable};

/// Election timeouts that a node must have run for: much more than those who start together need to hear of each other.
const LIVED_FOR: u32 = 30;
/// Election timeouts within which a majority is to be found.
const PATIENCE: u32 = 10;
/// Between two tries to find one.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// That there are two clusters is said so often.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// What to do if this node was lost, and if it was not.
const LOST: &str = "If this node was lost then, its data directory can be deleted: add it again as a new member, with an empty one. If its \
                    cluster had gone on without that node, it has what was acknowledged since, and that node lacks it: keep this \
                    directory, stop that node, and start this one again";
const FORK: &str = "and this node's cluster has a majority and went on. There are two clusters now, and each may have what was acknowledged \
                    there and is not in the other: find out which of them clients have used, stop the other one, keep its data \
                    directories until nobody needs them, and rebuild its nodes as members of the first";

/// Where it is told that another node dropped this one.
#[derive(Clone, Debug)]
pub(super) struct Dropped(watch::Sender<Option<(NodeId, String)>>);

/// What was told last.
pub(super) type Told = watch::Receiver<Option<(NodeId, String)>>;

impl Dropped {
    pub(super) fn tell(&self, by: NodeId, reason: String) {
        self.0.send_replace(Some((by, reason)));
    }
}

/// The two ends.
pub(super) fn channel() -> (Dropped, Told) {
    let (sender, told) = watch::channel(None);
    (Dropped(sender), told)
}

/// What a node knows of itself when it is told that it was dropped.
pub(super) struct Life {
    pub(super) handle: Handle,
    /// Whether it has had a leader.
    pub(super) ready: watch::Receiver<bool>,
    pub(super) met: Arc<PoolFile>,
    pub(super) election_timeout: Duration,
}

/// Decides what becomes of this node when it is told that it was dropped.
pub(super) async fn heed(life: Life, mut told: Told, fatal: Fatal) {
    let began = Instant::now();
    let mut said: Option<Instant> = None;
    while told.changed().await.is_ok() {
        let Some((by, reason)) = told.borrow_and_update().clone() else { continue };
        if !life.met.went_on_without(by) {
            let lived = *life.ready.borrow() && began.elapsed() >= LIVED_FOR * life.election_timeout;
            match lived && life.has_majority().await {
                true => life.go_on_without(by).await,
                false if life.handle.is_stopping() => return,
                false => return fatal.report(format!("{reason}. {LOST}")),
            }
        }
        if said.is_none_or(|said| said.elapsed() >= TELL_AGAIN) {
            error!("{reason}, {FORK}");
            said = Some(Instant::now());
        }
    }
}

impl Life {
    /// Whether a majority vouches for what is read, soon.
    async fn has_majority(&self) -> bool {
        let until = Instant::now() + PATIENCE * self.election_timeout;
        while Instant::now() < until {
            match self.handle.read_barrier(ROOT_GROUP).await {
                Ok(()) => return true,
                Err(Unavailable::Stopped) => return false,
                Err(_) => sleep(TRY_AGAIN).await,
            }
        }
        false
    }

    async fn go_on_without(&self, node: NodeId) {
        let met = Arc::clone(&self.met);
        let _ = spawn_blocking(move || met.go_on_without(node)).await;
    }
}
