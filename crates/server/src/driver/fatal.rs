//! What ends the process: a disk that failed, data that cannot be trusted. Nothing is retried.

use tokio::sync::watch;
use tracing::error;

/// Where fatal things are reported. The first one counts.
#[derive(Clone, Debug)]
pub(super) struct Fatal(watch::Sender<Option<String>>);

impl Fatal {
    pub(super) fn new() -> Fatal {
        Fatal(watch::Sender::new(None))
    }

    /// Logs what was found; whoever waits in [`Fatal::reported`] ends the process.
    pub(super) fn report(&self, what: impl Into<String>) {
        let what = what.into();
        error!("{what}");
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(what);
            is_first
        });
    }

    /// Waits for a report; what was found.
    pub(super) async fn reported(&self) -> String {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(what) => what.clone().unwrap_or_default(),
            // Cannot be: this very sender is alive.
            Err(_) => std::future::pending().await,
        }
    }
}
