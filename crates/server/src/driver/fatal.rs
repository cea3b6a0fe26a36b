//! What ends the process: a disk that failed, data that cannot be trusted, no place in the cluster any more. Nothing is
//! retried.

use tokio::sync::watch;
use tracing::error;

use super::error::RunError;

/// Why the process ends.
#[derive(Clone, Debug)]
enum Ending {
    Fatal(String),
    Removed(String),
}

/// Where fatal things are reported. The first one counts.
#[derive(Clone, Debug)]
pub(super) struct Fatal(watch::Sender<Option<Ending>>);

impl Fatal {
    pub(super) fn new() -> Fatal {
        Fatal(watch::Sender::new(None))
    }

    /// Logs what was found; whoever waits in [`Fatal::reported`] ends the process.
    pub(super) fn report(&self, what: impl Into<String>) {
        let what = what.into();
        error!("{what}");
        self.end(Ending::Fatal(what));
    }

    /// The others say that this node is no member any more.
    pub(super) fn removed(&self, reason: String) {
        self.end(Ending::Removed(reason));
    }

    fn end(&self, why: Ending) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(why);
            is_first
        });
    }

    /// Waits for a report; what was found.
    pub(super) async fn reported(&self) -> RunError {
        let mut receiver = self.0.subscribe();
        // Does not fail: this very sender is alive.
        let _ = receiver.wait_for(Option::is_some).await;
        match self.found() {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// What was found so far.
    pub(super) fn found(&self) -> Option<RunError> {
        self.0.borrow().clone().map(|ending| match ending {
            Ending::Fatal(what) => RunError::Fatal(what),
            Ending::Removed(reason) => RunError::Removed(reason),
        })
    }
}
